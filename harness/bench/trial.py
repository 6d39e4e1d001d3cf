"""The trial: every way of running a program is opened and warmed up, and a few rounds find the best of each backend."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from harness.bench import peers
from harness.bench.options import BenchOptions
from harness.bench.peers import EVERYDAY
from harness.bench.ratio import LEAST
from harness.bench.rounds import Contestant, first, survived, warmed
from harness.bench.timing import WARM_UP, Listener, contestant, host
from harness.check.live import LiveWorker
from harness.check.subject import Subject, each, open_program
from harness.errors import WorkerFailed
from harness.lanes import Strategy
from harness.programs import emitted

HOPELESS = 3.0
"""Times as long as its backend's fastest, warm, from which on a way is not in the trial; its warm-up's last block counts."""
TRIAL = 60.0
"""Seconds that the trial of all strategies may take beyond the rounds that it needs."""
NEAR = 1.1
"""Times as long as the fastest: who is nearer than that in the trial is tried again, in AGAIN more rounds."""
AGAIN = 3 * LEAST
Name = TypeVar("Name")


@dataclass(frozen=True)
class Trial:
    """What the trial found."""

    entered: list[tuple[str, str]]
    """Lanes and who is in them, by name: backend and strategy."""
    seconds: Mapping[str, float]
    """A step's of each way that was tried."""
    contestants: Mapping[str, Contestant]
    """By name, those that are in a lane."""
    rivals: Mapping[tuple[str, str], Contestant]
    """By backend and strategy what is timed beside them: of what was written by hand the everyday way and the fastest other."""


def tried(
    subject: Subject, runners: Mapping[str, Strategy], losses: Mapping[str, Mapping[str, list[float]]],
    started: Mapping[str, LiveWorker], options: BenchOptions, notes: list[str], listen: Listener,
) -> Trial:  # fmt: skip
    """Open and warm up all, and find the best of each backend.

    `losses`: what the programs' first steps gave, by backend, which hand-written programs are held against. What
    has just been checked goes on, compiled as it is.
    """
    only_best = frozenset(own for own, s in runners.items() if set(s.lanes) & set(options.lanes) == {"best"})
    hopeless: dict[str, float] = {}
    contestants = opened(subject, runners, listen, anew=False, spare=only_best, hopeless=hopeless)
    if not contestants:
        return Trial([], {}, {}, {})
    least = {backend: min(one.warm_up[-1] for own, one in contestants.items() if runners[own].backend == backend) for backend in {runners[own].backend for own in contestants}}  # fmt: skip
    notes += [
        f"{own} was not in the trial: once compiled, its first steps took {seconds / least[runners[own].backend]:.2g} times as long as its backend's fastest."
        for own, seconds in hopeless.items()
        if runners[own].backend in least
    ]
    rivals = _rivals(subject, losses, started, options, notes, listen)
    listen(subject.program.name, {"phase": "trial"})
    warm = {own: one.warm_up[-1] for own, one in contestants.items()}
    near = _contenders(warm, {own: runners[own].backend for own in contestants})

    def held(these: AbstractSet[str], those: AbstractSet[tuple[str, str]], most: int) -> None:
        """Rounds of these contestants and those rivals; who fails is out, and all that is in the same process if that died."""
        homes = {own: host(subject, own, runners[own]) for own in contestants}
        homes |= {peers.named(*key): started[beside(key[0])] for key in rivals}
        running: dict[str, Contestant] = {own: contestants[own] for own in contestants if own in these}
        running |= {peers.named(*key): rivals[key] for key in rivals if key in those}
        for failed, error in survived(running, most=most, budget=TRIAL).items():
            live, why = homes[failed], str(error).splitlines()[0]
            if live.process.poll() is not None and live.name in subject.workers:
                subject.failures[live.name] = why
            gone = {failed} if live.process.poll() is None else {own for own, home in homes.items() if home is live}
            for own in gone & contestants.keys():
                subject.failures[own] = why
                del contestants[own]
            for key in [key for key in rivals if peers.named(*key) in gone]:
                notes.append(f"{peers.named(*key)} is not timed: {why}")
                del rivals[key]

    held(set(near), set(rivals), LEAST)
    near = [own for own in near if own in contestants]
    finalists: set[str] = set()
    beside_them: set[tuple[str, str]] = set()
    for backend in options.backends if "best" in options.lanes else ():
        able = [own for own in near if runners[own].backend == backend and "best" in runners[own].lanes]
        finalists |= _near({own: contestants[own] for own in able})
        beside_them |= _near({key: own for key, own in rivals.items() if key[0] == backend and key[1] != EVERYDAY})
    if finalists | beside_them:
        held(finalists, beside_them, AGAIN)
        near = [own for own in near if own in contestants]
        finalists, beside_them = finalists & contestants.keys(), beside_them & rivals.keys()
    trial = (
        hopeless
        | {own: warm[own] for own in contestants}
        | {own: float(np.median(contestants[own].seconds)) for own in near}
    )
    entered = _entered(contestants, runners, trial, options, finalists)
    # Of the peers the everyday one, and of the others whichever was the fastest in the trial.
    raced = {key: own for key, own in rivals.items() if key[1] == EVERYDAY}
    for backend in options.backends:
        fast = [key for key in rivals if key[0] == backend and key[1] != EVERYDAY]
        fast = [key for key in fast if key in beside_them] or fast
        raced |= {key: rivals[key] for key in sorted(fast, key=lambda k: float(np.median(rivals[k].seconds)))[:1]}
    chosen = {own: contestants[own] for own in dict.fromkeys(own for _, own in entered)}
    # Beside nobody they would say nothing.
    racing = {runners[own].backend for own in chosen}
    raced = {key: own for key, own in raced.items() if key[0] in racing}
    return Trial(entered, trial, chosen, raced)


def opened(
    subject: Subject, runners: Mapping[str, Strategy], listen: Listener, *, anew: bool = True,
    spare: AbstractSet[str] = frozenset(), hopeless: dict[str, float] | None = None,
) -> dict[str, Contestant]:  # fmt: skip
    """Every way of running the program that can, warm; who cannot goes into `subject.failures`.

    `anew`: opened anew, else what has just been checked goes on. `spare`: of these, those whose first steps after compilation
    take HOPELESS times as long as their backend's fastest are closed again, not warmed up; `hopeless` is given their seconds.
    """
    found: dict[str, Contestant] = {}
    least: dict[str, float] = {}
    hopeless = {} if hopeless is None else hopeless

    def open_all(live: LiveWorker) -> None:
        """Compiling is most of it: frameworks that have cores of their own do it at once."""
        for own, strategy in runners.items():
            if host(subject, own, strategy) is not live or own in subject.failures:
                continue
            listen(subject.program.name, {"phase": f"{own}: first call"})
            try:
                if anew:
                    live.ask("close", name=strategy.name)
                    source = emitted(subject.program, strategy.backend, subject.precision, strategy=strategy.name)
                    open_program(subject, live, strategy.name, source, observe=False, strategy=strategy.name)
                one = contestant(subject, live, own, strategy)
                first(one)
                if spare:
                    second = one.block().seconds  # the first one has compiled
                    one.warm_up.append(second)
                    least[live.backend] = min(second, least.get(live.backend, second))
                found[own] = one
            except WorkerFailed as error:
                if live.process.poll() is not None:
                    raise
                subject.failures[own] = str(error).splitlines()[0]

    each(subject, open_all)
    for own in [own for own in runners if own in found]:
        listen(subject.program.name, {"phase": f"{own}: warm-up"})
        second = found[own].warm_up[-1]
        try:
            if own in spare and second > HOPELESS * least[runners[own].backend]:
                hopeless[own] = second
                del found[own]
                host(subject, own, runners[own]).ask("close", name=runners[own].name)
                continue
            warmed(found[own], budget=WARM_UP)
        except WorkerFailed as error:
            subject.failures[own] = str(error).splitlines()[0]
            found.pop(own, None)
    return {own: found[own] for own in runners if own in found}


def _contenders(warm: Mapping[str, float], backends: Mapping[str, str]) -> list[str]:
    """Who the trial is between: who is hopeless, warm, would take its time from those that are near each other."""
    best = {backend: min(t for own, t in warm.items() if backends[own] == backend) for backend in backends.values()}
    return [own for own, t in warm.items() if t <= HOPELESS * best[backends[own]]]


def _near(contestants: Mapping[Name, Contestant]) -> set[Name]:
    """Those whose trial leaves open which is the fastest, where there are several."""
    medians = {own: float(np.median(one.seconds)) for own, one in contestants.items()}
    found = {own for own, median in medians.items() if median <= NEAR * min(medians.values())}
    return found if len(found) > 1 else set()


def _entered(
    contestants: Mapping[str, Contestant], runners: Mapping[str, Strategy], trial: Mapping[str, float], options: BenchOptions,
    finalists: AbstractSet[str] = frozenset(),
) -> list[tuple[str, str]]:  # fmt: skip
    """Lanes and who is in them: of the lane `best` each backend's fastest in the trial, of its finalists where it has some.

    What was not tried again was timed in other rounds: its median cannot be held against theirs.
    """
    found: list[tuple[str, str]] = []
    for lane in options.lanes:
        for backend in options.backends:
            able = [n for n in contestants if runners[n].backend == backend and lane in runners[n].lanes]
            if lane == "best" and able:
                able = [min([n for n in able if n in finalists] or able, key=trial.__getitem__)]
            found += [(lane, n) for n in able]
    return found


def beside(backend: str) -> str:
    """The name of the worker that runs a backend's peers."""
    return f"{backend}-peers"  # no space: it is in the path of what a compiler is given


def _rivals(
    subject: Subject, losses: Mapping[str, Mapping[str, list[float]]], started: Mapping[str, LiveWorker], options: BenchOptions,
    notes: list[str], listen: Listener,
) -> dict[tuple[str, str], Contestant]:  # fmt: skip
    """By backend and strategy, what somebody has written by hand, warm."""
    found: dict[tuple[str, str], Contestant] = {}
    for backend, file in peers.files(options.peers, options.backends).items():
        if beside(backend) in started and backend in losses:
            listen(subject.program.name, {"phase": f"{backend}: peers"})
            own = peers.opened(
                subject, started[beside(backend)], file, losses[backend], notes, emitted_by=started.get(backend)
            )
            for strategy, one in own.items():
                try:
                    warmed(one, budget=WARM_UP)
                    found[backend, strategy] = one
                except WorkerFailed as error:
                    notes.append(f"{one.name} is not timed: {str(error).splitlines()[0]}")
    return found
