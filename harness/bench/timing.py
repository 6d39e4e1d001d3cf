"""The times: every way of running a program warmed up, tried, and timed in interleaved rounds; then started alone, and asked."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harness import flops
from harness.bench import peers
from harness.bench.alone import Alone, Conditions, alone
from harness.bench.energy import driver, metered, meters
from harness.bench.inference import Evaluation, Inference, inference
from harness.bench.options import BenchOptions
from harness.bench.peers import EVERYDAY, Peer
from harness.bench.ratio import LEAST
from harness.bench.record import Lane, Ledger, Roof
from harness.bench.rounds import BLOCK, Contestant, first, rounds, table, warmed
from harness.check.live import LiveWorker
from harness.check.subject import Subject, each, open_program
from harness.environment import Interpreter, machine
from harness.errors import WorkerFailed
from harness.lanes import Strategy, room
from harness.programs import emitted

Listener = Callable[[str, Mapping[str, Any]], None]
BATCHES = 8
"""Different batches, made before the clock starts; steps take them in turn."""
WIDTH = 0.01
"""The relative half-width of an interval that is narrow enough to stop."""
SIZE = {"cpu": 1024, "gpu": 8192}
"""Of the square matrices whose product shows what the device can do."""
COPIED = {"cpu": 64 * 2**20, "gpu": 2**30}
"""Bytes of the array that is read and written to show what its memory can do: more than caches hold."""
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip
"""How glibc allocates in every process that is timed (man 3 mallopt): it keeps freed memory, on huge pages where the kernel
has them on request (glibc from 2.35 on; before, that does nothing).

As it comes it gives large arrays back to the system, whose pages then cost a fault each in the next step: a tax on large
activations, paid by whichever framework has no allocator of its own. On small pages two processes of the same program are
as fast as their pages happen to lie: TensorFlow's CNN beside the same by hand, least times of 20 rounds, was 1.03 to 1.13 in
seven runs, on huge ones 1.00 to 1.06 in six.
"""
WARM_UP = 5.0
"""Seconds that a warm-up may take; one that has not settled by then is said to be none."""
HOPELESS = 3.0
"""Times as long as its backend's fastest, warm, from which on a way is not in the trial; its warm-up's last block counts."""
TRIAL = 60.0
"""Seconds that the trial of all strategies may take beyond the rounds that it needs."""
NEAR = 1.1
"""Times as long as the fastest: who is nearer than that in the trial is tried again, in AGAIN more rounds."""
AGAIN = 3 * LEAST
LONG = 0.5
"""Seconds that a block of Keras's `fit` lasts at least, since each call of it sets a training up anew, and any block on a GPU,
where steps that are called one by one run ahead of it."""

Name = TypeVar("Name")


@dataclass
class Timed:
    """All that was timed of one spec."""

    lanes: tuple[Lane, ...] = ()
    beside: tuple[Peer, ...] = ()
    asked: tuple[Inference, ...] = ()
    evaluated: tuple[Evaluation, ...] = ()
    roof: Roof | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where and how processes of one benchmark are started."""

    folder: Path
    pythons: Mapping[str, Interpreter]
    core: int
    started: Mapping[str, LiveWorker]
    """All that are alive, by name."""


def timed(
    subject: Subject, runners: Mapping[str, Strategy], losses: Mapping[str, Mapping[str, list[float]]], place: Place,
    options: BenchOptions, listen: Listener,
) -> Timed:  # fmt: skip
    """Open and warm up all, find the best of each backend in a short trial, and run the rounds of those that are in a lane.

    `losses`: what the programs' first steps gave, by backend, which hand-written programs are held against.
    """
    name, found = subject.program.name, Timed()
    contestants = _opened(subject, runners, listen)
    if not contestants:
        return found
    rivals = _peers(subject, losses, place.started, options, found.notes, listen)
    listen(name, {"phase": "trial"})
    warm = {own: one.warm_up[-1] for own, one in contestants.items()}
    tried = _tried(warm, {own: runners[own].backend for own in contestants})
    rounds([*(contestants[own] for own in tried), *rivals.values()], most=LEAST, budget=TRIAL)
    finalists: set[str] = set()
    beside_them: set[tuple[str, str]] = set()
    for backend in options.backends if "best" in options.lanes else ():
        able = [own for own in tried if runners[own].backend == backend and "best" in runners[own].lanes]
        finalists |= _near({own: contestants[own] for own in able})
        beside_them |= _near({key: own for key, own in rivals.items() if key[0] == backend and key[1] != EVERYDAY})
    again = [*(contestants[own] for own in finalists), *(rivals[key] for key in beside_them)]
    rounds(again, most=AGAIN if again else 0, budget=TRIAL)
    trial = warm | {own: float(np.median(contestants[own].seconds)) for own in tried}
    entered = _entered(contestants, runners, trial, options, finalists)
    shown = _machine(subject, list(dict.fromkeys(runners[n].backend for n in contestants)), options.device)
    chosen = {own: contestants[own] for own in dict.fromkeys(own for _, own in entered)}
    # Of the peers the everyday one, and of the others whichever was the fastest in the trial.
    raced = {key: own for key, own in rivals.items() if key[1] == EVERYDAY}
    for backend in options.backends:
        fast = [key for key in rivals if key[0] == backend and key[1] != EVERYDAY]
        fast = [key for key in fast if key in beside_them] or fast
        raced |= {key: rivals[key] for key in sorted(fast, key=lambda k: float(np.median(rivals[k].seconds)))[:1]}
    for one in (*chosen.values(), *raced.values()):
        one.blocks.clear()
    listen(name, {"phase": "rounds", "total": options.rounds})
    competing, compiled = list(chosen.values()), _compilations(subject, chosen, runners)
    rounds(
        competing, along=[*shown, *raced.values()], most=options.rounds, width=WIDTH,
        listen=lambda n: listen(name, {"step": n, "losses": {}}),
    )  # fmt: skip
    if said := metered(competing, meters(options.device)):
        found.notes.append(said)
    found.notes += _recompiled(compiled, _compilations(subject, chosen, runners))
    products, copies = (
        [float(np.median(one.seconds)) for one in shown if one.name.endswith(what)] for what in (PRODUCT, COPY)
    )
    # Of a noisy machine the median is what it did; the roofs are of the framework that was the fastest.
    found.roof = Roof(2 * SIZE[options.device] ** 3 / min(products), 2 * COPIED[options.device] / min(copies))
    starts = _starts(subject, {own: runners[own] for own in chosen}, place, options, listen)
    against = table(competing)
    found.lanes = tuple(
        Lane(
            name, runners[own].backend, lane, runners[own].name, chosen[own], against[own], starts.get(own),
            {n: t for n, t in trial.items() if runners[n].backend == runners[own].backend} if lane == "best" else {},
            flops.step(subject.program) / float(np.median(chosen[own].seconds)) / found.roof.flops,
            _lines(emitted(subject.program, runners[own].backend, subject.precision, strategy=runners[own].name)),
        )
        for lane, own in entered
    )  # fmt: skip
    found.beside = peers.judged(raced, {lane.backend: lane.contestant for lane in found.lanes if lane.lane == "best"})
    if "inference" in options.parts:
        listen(name, {"phase": "inference", "total": 0})
        found.asked, found.evaluated = inference(subject)
    return found


def _opened(subject: Subject, runners: Mapping[str, Strategy], listen: Listener) -> dict[str, Contestant]:
    """Every way of running the program that can, warm; who cannot goes into `subject.failures`."""
    found: dict[str, Contestant] = {}

    def open_all(live: LiveWorker) -> None:
        """Compiling is most of it: frameworks that have cores of their own do it at once."""
        for own, strategy in runners.items():
            if strategy.backend != live.name or own in subject.failures:
                continue
            listen(subject.program.name, {"phase": f"{own}: first call"})
            try:
                if subject.restarts:
                    live.ask("close", name=strategy.name)
                    source = emitted(subject.program, strategy.backend, subject.precision, strategy=strategy.name)
                    open_program(subject, live, strategy.name, source, observe=False, strategy=strategy.name)
                # else what has just been checked goes on: to compile a large network again would take minutes.
                one = contestant(subject, live, own, strategy)
                first(one)
                found[own] = one
            except WorkerFailed as error:
                if live.process.poll() is not None:
                    raise
                subject.failures[own] = str(error).splitlines()[0]

    each(subject, open_all)
    for own in [own for own in runners if own in found]:
        listen(subject.program.name, {"phase": f"{own}: warm-up"})
        try:
            warmed(found[own], budget=WARM_UP)
        except WorkerFailed as error:
            subject.failures[own] = str(error).splitlines()[0]
            del found[own]
    return {own: found[own] for own in runners if own in found}


def _tried(warm: Mapping[str, float], backends: Mapping[str, str]) -> list[str]:
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


def _lines(source: str) -> int:
    """Lines of a program that are not empty."""
    return sum(bool(line.strip()) for line in source.splitlines())


Counts = dict[str, dict[str, int]]


def _compilations(subject: Subject, chosen: Mapping[str, Contestant], runners: Mapping[str, Strategy]) -> Counts:
    """By contestant, how much its framework has traced and compiled for it so far, as far as it tells them apart."""
    return {
        own: subject.workers[runners[own].backend].ask("compilations", name=runners[own].name)["compilations"]
        for own in chosen
    }


def _recompiled(before: Counts, after: Counts) -> list[str]:
    """What was compiled while it was timed: nothing, if all is well."""
    more = {own: {w: n - before[own][w] for w, n in counts.items() if n > before[own][w]} for own, counts in after.items()}  # fmt: skip
    return [
        f"While {own} was timed: {', '.join(f'{n} more {what}' for what, n in counts.items())}."
        for own, counts in more.items()
        if counts
    ]


def _starts(
    subject: Subject, runners: Mapping[str, Strategy], place: Place, options: BenchOptions, listen: Listener
) -> dict[str, Alone]:
    """Each way of running it in a process of its own."""
    if "start" not in options.parts:
        return {}
    found: dict[str, Alone] = {}
    for number, (own, strategy) in enumerate(runners.items()):
        listen(subject.program.name, {"phase": f"{own}: start"})
        given = Conditions(
            place.pythons, place.core, options.timeout, ALLOCATOR, options.device, unit(subject, strategy),
            min(BATCHES, subject.program.steps), options.target,
        )  # fmt: skip
        try:
            found[own] = alone(subject, strategy, place.folder / f"alone-{number}", given)
        except WorkerFailed as error:
            subject.failures[f"{own} alone"] = str(error).splitlines()[0]
    return found


PRODUCT, COPY = "matrix product", "copy"


def _machine(subject: Subject, backends: list[str], device: str) -> list[Contestant]:
    """What the frameworks' own product of matrices and copy of an array show of the device, warm."""
    # A CPU's programs take products of float32 values that are rounded to bfloat16.
    found, bfloat16 = [], subject.mixed and device == "gpu"
    for backend in backends:
        live = subject.workers[backend]
        for what, do, size in ((PRODUCT, "peak", SIZE[device]), (COPY, "bandwidth", COPIED[device])):

            def run(steps: int, live: LiveWorker = live, do: str = do, size: int = size) -> tuple[float, float]:
                said = live.ask(do, size=size, steps=steps, bfloat16=bfloat16)
                return said["seconds"], said["cpu"]

            one = Contestant(f"{backend} {what}", run)
            warmed(one, budget=WARM_UP)
            found.append(one)
    return found


def beside(backend: str) -> str:
    """The name of the worker that runs a backend's peers."""
    return f"{backend}-peers"  # no space: it is in the path of what a compiler is given


def _peers(
    subject: Subject, losses: Mapping[str, Mapping[str, list[float]]], started: Mapping[str, LiveWorker], options: BenchOptions,
    notes: list[str], listen: Listener,
) -> dict[tuple[str, str], Contestant]:  # fmt: skip
    """By backend and strategy, what somebody has written by hand, warm."""
    found: dict[tuple[str, str], Contestant] = {}
    for backend, file in peers.files(options.peers, options.backends).items():
        if beside(backend) in started and backend in losses:
            listen(subject.program.name, {"phase": f"{backend}: peers"})
            own = peers.opened(subject, started[beside(backend)], file, losses[backend], notes)
            for strategy, one in own.items():
                warmed(one, budget=WARM_UP)
                found[backend, strategy] = one
    return found


def contestant(
    subject: Subject, live: LiveWorker, name: str, strategy: Strategy | None = None, *, slower: float = 0.0
) -> Contestant:
    """The training steps of an opened program, a block going on from where the last one ended, as training does.

    From the start again before a block would pass the training's end, unless that takes too long to load, and where a loss
    was no number: on and on over few batches, gradients may come to be denormal. Not before every block, though: what has just
    been loaded is in no cache, and the memory is not what the steps before had warmed.
    """
    done: int | None = None

    def run(steps: int) -> tuple[float, float]:
        nonlocal done
        afresh = done is None or (subject.restarts and done + steps > subject.program.steps)
        wall, cpu, sound = _clocked(subject, live, strategy, steps, restart=afresh, slower=slower)
        done = (0 if afresh or done is None else done) + steps if sound else None
        return wall, cpu

    return Contestant(
        name,
        run,
        unit(subject, strategy),
        block_seconds=LONG if subject.device == "gpu" or (strategy and strategy.name == "fit") else BLOCK,
    )


def unit(subject: Subject, strategy: Strategy | None) -> int:
    """The steps of one call. Keras's `fit` goes through any number of batches; other calls are compiled for so many."""
    if strategy is None or not strategy.many:
        return 1
    return (
        min(BATCHES, subject.program.steps)
        if strategy.name == "fit"
        else room(subject.program, subject.precision, subject.device)
    )


def _clocked(
    subject: Subject,
    live: LiveWorker,
    strategy: Strategy | None,
    steps: int,
    *,
    restart: bool = True,
    slower: float = 0.0,
) -> tuple[float, float, bool]:
    """Wall and processor seconds of so many steps, and whether they end with losses that are numbers."""
    said = live.ask(
        "clock",
        name=strategy.name if strategy else "timed",
        steps=steps,
        batches=min(BATCHES, subject.program.steps),
        stack=unit(subject, strategy) if strategy and strategy.many else None,
        arrays=subject.position("start", subject.start) if restart else None,
        slower=slower,
    )
    return said["seconds"], said["cpu"], all(map(math.isfinite, said["losses"].values()))


def ledger(subject: Subject, device: str) -> Ledger:
    """What each process says and shows of how it computes."""
    said = each(subject, lambda live: live.ask("ledger")["ledger"])
    names = dict.fromkeys(key for own in said.values() for key in own)
    found = {name: {backend: own[name] for backend, own in said.items() if name in own} for name in names}
    counters = ", ".join(meter.name for meter in meters(device)) or "none that can be read"
    chip = {"processor": f"{(own := machine())['processor']}: {' '.join(own['flags'])}", "energy counters": counters}
    if device == "gpu":
        chip["driver"] = driver() or "not told"
    if not subject.restarts:
        chip["blocks"] = "go on from where the last one of the same ended, in an order drawn anew every round"
    return Ledger({**found, **COMMON, **{name: {"all": value} for name, value in chip.items()}})


COMMON: Mapping[str, Mapping[str, Any]] = {
    name: {"all": value}
    for name, value in {
        "data": f"{BATCHES} different batches, made and put on the device before the clock starts",
        "clock": "from the first call until the loss of every step is on the host, wall time",
        "garbage collection": "before every block, off during it",
        "blocks": "go on from where the last one of the same ended, in an order drawn anew every round; emitted programs begin again before they would pass the training's end",
    }.items()
}
"""Entries that are the same for all by construction."""
