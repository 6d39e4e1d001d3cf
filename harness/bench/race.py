"""The race: rounds of those that are in a lane, each in a process of its own, and what else is measured of them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import flops
from harness.bench import peers
from harness.bench.alone import Alone, Conditions, alone
from harness.bench.checks import passed
from harness.bench.energy import metered, meters
from harness.bench.inference import Evaluation, Inference, inference
from harness.bench.options import BenchOptions
from harness.bench.peers import Peer
from harness.bench.record import Lane, Roof
from harness.bench.rounds import Contestant, Failed, rounds, table, warmed
from harness.bench.thin import Thinned
from harness.bench.timing import ALLOCATOR, BATCHES, WARM_UP, Listener, Told, changed, host, told, unit
from harness.bench.trial import Trial, beside, opened
from harness.check.live import INDUCTOR, LiveWorker
from harness.check.subject import Subject, workers
from harness.check.trajectory import Training
from harness.environment import Interpreter, free_memory
from harness.errors import WorkerFailed
from harness.lanes import Strategy
from harness.programs import emitted, sources

WIDTH = 0.01
"""The relative half-width of an interval that is narrow enough to stop."""
SIZE = {"cpu": 1024, "gpu": 8192}
"""Of the square matrices whose product shows what the device can do."""
COPIED = {"cpu": 64 * 2**20, "gpu": 2**30}
"""Bytes of the array that is read and written to show what its memory can do: more than caches hold."""
RACE = 150.0
"""Seconds that all rounds may take, of a slow network whose every round takes long; there are LEAST at least."""
SHARE = 0.8
"""Of the memory that is free, what processes of their own may be expected to need at most."""


@dataclass
class Timed:
    """All that was timed of one spec."""

    lanes: tuple[Lane, ...] = ()
    beside: tuple[Peer, ...] = ()
    asked: tuple[Inference, ...] = ()
    evaluated: tuple[Evaluation, ...] = ()
    roof: Roof | None = None
    notes: list[str] = field(default_factory=list)
    parted: dict[str, str] = field(default_factory=dict)
    """Who differed in the process that was timed, and how."""
    void: dict[str, str] = field(default_factory=dict)
    """Of whom the checks there said nothing, and why."""
    told: Told = field(default_factory=dict)
    """By process, how it computes: what it first said."""
    changed: list[str] = field(default_factory=list)
    """Entries that were not the same later."""

    def hear(self, said: Told) -> None:
        """Keep what processes say of how they compute, or find what changed."""
        self.changed += [entry for entry in changed(self.told, said) if entry not in self.changed]
        self.told = {**said, **self.told}


@dataclass(frozen=True)
class Place:
    """Where and how processes of one benchmark are started."""

    folder: Path
    pythons: Mapping[str, Interpreter]
    core: int
    started: Mapping[str, LiveWorker]
    """In which the trial was, by name."""
    trainings: Mapping[str, Training]
    """The programs' first steps there, which passed: what is timed in another process, and what is written by hand, is held
    against them."""
    end_rivals: Callable[[], None]
    """Ends those workers that run what is written by hand."""


@dataclass(frozen=True)
class Running:
    """Who runs in the same rounds, warm, in which processes."""

    subject: Subject
    contestants: Mapping[str, Contestant]
    rivals: Mapping[tuple[str, str], Contestant]


def race(
    subject: Subject, thin: Thinned, runners: Mapping[str, Strategy], trial: Trial, place: Place, options: BenchOptions,
    listen: Listener,
) -> Timed:  # fmt: skip
    """Run the rounds, and measure starts and answers of those that ran."""
    name, found = subject.program.name, Timed()
    found.hear(told(subject))
    shown = _machine(subject, list(dict.fromkeys(runners[n].backend for n in trial.contestants)), options.device)
    wanted, rivals = _living(subject, runners, trial, place, found.notes)
    count = _processes(subject, thin, wanted, rivals, place, options, found.notes)
    done: dict[str, Contestant] = {}
    sets, number = 0, 0
    while sets < max(count, 1) and wanted:
        number += 1
        heard = _numbered(listen, sets, count)
        opening = (
            _own_processes(subject, wanted, rivals, place, options, number, found, heard)
            if count
            else _same_processes(subject, trial, wanted, rivals)
        )
        with opening as running:
            if not running.contestants:
                wanted = {}
                break
            try:
                _run(running, shown, runners, trial, options, sets, max(count, 1), found, heard)
            except Failed as error:
                # The rounds of this set are lost, and those of all others are taken again without it.
                dead = {name for name, live in subject.workers.items() if live.process.poll() is not None}
                alive = [one for one in shown if one.name.partition(" ")[0] not in dead]
                timed = {*wanted, *(peers.named(*key) for key in rivals)}
                if error.name not in timed and len(alive) in (0, len(shown)):
                    raise  # of a machine nobody can show what it does
                shown = alive
                subject.failures[error.name] = str(error).splitlines()[0]
                wanted = {own: strategy for own, strategy in wanted.items() if own != error.name}
                rivals = [key for key in rivals if peers.named(*key) != error.name]
                continue
            passing = _passing(subject, thin, running, runners, place, found, heard) if count else running.contestants
            # Who failed once has no times.
            wanted, rivals = {own: runners[own] for own in passing}, list(running.rivals)
            for contestant in (*passing.values(), *running.rivals.values()):
                contestant.follow(done.get(contestant.name))
                done[contestant.name] = contestant
            sets += 1
    competing = {own: done[own] for own in wanted}
    if not competing or found.changed:
        return found
    if len(apart := next(iter(competing.values())).apart) > 1:
        found.notes.append(f"{sum(map(len, apart))} rounds, by {len(apart)} processes of each, one after the other.")
    products, copies = (
        [float(np.median(one.seconds)) for one in shown if one.name.endswith(what)] for what in (PRODUCT, COPY)
    )
    # Of a noisy machine the median is what it did; the roofs are of the framework that was the fastest.
    found.roof = Roof(2 * SIZE[options.device] ** 3 / min(products), 2 * COPIED[options.device] / min(copies))
    starts = _starts(subject, wanted, place, options, listen)
    found.notes += [said for own, alone in starts.items() if (said := _of_short_batches(own, alone))]
    against = table(list(competing.values()))
    found.lanes = tuple(
        Lane(
            name, runners[own].backend, lane, runners[own].name, one, against[own], starts.get(own),
            {n: t for n, t in trial.seconds.items() if runners[n].backend == runners[own].backend} if lane == "best" else {},
            flops.step(subject.program) / float(np.median(one.seconds)) / found.roof.flops,
            _lines(emitted(subject.program, runners[own].backend, subject.precision, strategy=runners[own].name)),
        )
        for lane, own in trial.entered
        if (one := competing.get(own))
    )  # fmt: skip
    best = {lane.backend: lane.contestant for lane in found.lanes if lane.lane == "best"}
    found.beside = peers.judged({key: done[peers.named(*key)] for key in rivals}, best)
    if "inference" in options.parts:
        listen(name, {"phase": "inference", "total": 0})
        found.asked, found.evaluated = inference(subject)
    found.hear(told(subject))
    return found


def _run(
    running: Running, shown: list[Contestant], runners: Mapping[str, Strategy], trial: Trial, options: BenchOptions, now: int,
    count: int, found: Timed, listen: Listener,
) -> None:  # fmt: skip
    """The rounds of one of so many sets of processes, and that nothing changed or was compiled meanwhile. Raises Failed."""
    name, share = running.subject.program.name, math.ceil(options.rounds / count)
    found.hear(told(running.subject))
    compiled = _compilations(running, runners)
    best = {own.partition(" ")[0]: own for lane, own in trial.entered if lane == "best" and own in running.contestants}
    beside_them = [(running.contestants[best[key[0]]], own) for key, own in running.rivals.items() if key[0] in best]
    competing = list(running.contestants.values())
    listen(name, {"phase": "rounds", "total": share})
    for one in (*competing, *running.rivals.values()):
        one.blocks.clear()
    began = time.perf_counter()
    rounds(
        competing, along=[*shown, *running.rivals.values()], pairs=beside_them, most=share, width=WIDTH if count == 1 else 0.0,
        seed=now, budget=RACE / count, listen=lambda n: listen(name, {"step": n, "losses": {}}),
    )  # fmt: skip
    after = _compilations(running, runners)
    if (taken := len(competing[0].blocks)) < share and time.perf_counter() > began + RACE / count:
        found.notes.append(f"{taken} of {share} rounds: they may take {RACE / count:.0f} s in all.")
    found.notes += _recompiled(compiled, after, "was timed")
    if now + 1 == count and (said := metered(competing, meters(options.device))):
        # Blocks of other lengths: their losses are fetched otherwise, perhaps by code of its own.
        found.notes += [said, *_recompiled(after, _compilations(running, runners), "had its energy counted")]
    found.hear(told(running.subject))


def _numbered(listen: Listener, now: int, count: int) -> Listener:
    """What listens, told of which of several sets of processes a phase is."""

    def numbered(name: str, event: Mapping[str, Any]) -> None:
        listen(name, {**event, "phase": f"{now + 1} of {count}: {event['phase']}"} if "phase" in event else event)

    return numbered if count > 1 else listen


def _living(
    subject: Subject, runners: Mapping[str, Strategy], trial: Trial, place: Place, notes: list[str]
) -> tuple[dict[str, Strategy], list[tuple[str, str]]]:
    """Of those who came out of the trial whoever's process there is still alive; and no rival beside nobody."""
    dead = {name for name, live in place.started.items() if live.process.poll() is not None}
    wanted = {own: runners[own] for own in trial.contestants if runners[own].backend not in dead}
    for own in [own for own in trial.contestants if own not in wanted]:
        subject.failures.setdefault(own, "its worker ended after the trial")
    racing = {strategy.backend for strategy in wanted.values()}
    rivals = [key for key in trial.rivals if key[0] in racing]
    notes += [
        f"{peers.named(*key)} is not timed: its worker ended after the trial"
        for key in rivals
        if beside(key[0]) in dead
    ]
    return wanted, [key for key in rivals if beside(key[0]) not in dead]


def _processes(
    subject: Subject, thin: Thinned, wanted: Mapping[str, Strategy], rivals: list[tuple[str, str]], place: Place,
    options: BenchOptions, notes: list[str],
) -> int:  # fmt: skip
    """How many processes one after the other each that is timed has to itself; 0: the trial's are those that are timed."""
    small = options.device == "cpu" and thin.subject is subject and not thin.at
    count = int(small) if options.processes is None else options.processes
    if not count:
        return 0
    homes = [own.partition(" ")[0] for own in wanted] + [beside(backend) for backend, _ in rivals]
    # More than enough: in the trial a backend's process has run all its ways.
    resident = {home: int(place.started[home].ask("memory")["resident"]) for home in dict.fromkeys(homes)}
    ending = sum(resident[home] for home in {beside(backend) for backend, _ in rivals})
    needed, free = sum(resident[home] for home in homes), free_memory() + ending
    if needed <= SHARE * free:
        place.end_rivals()
        return count
    notes.append(
        f"Timed in the processes of the trial instead of {count} of its own for each: {len(homes)} at once may need "
        f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free."
    )
    return 0


@contextmanager
def _same_processes(
    subject: Subject, trial: Trial, runners: Mapping[str, Strategy], beside_them: list[tuple[str, str]]
) -> Iterator[Running]:
    """Where the trial was."""
    yield Running(
        subject, {own: trial.contestants[own] for own in runners}, {key: trial.rivals[key] for key in beside_them}
    )


@contextmanager
def _own_processes(
    subject: Subject, runners: Mapping[str, Strategy], beside_them: list[tuple[str, str]], place: Place,
    options: BenchOptions, now: int, found: Timed, listen: Listener,
) -> Iterator[Running]:  # fmt: skip
    """Each in a process that has run nothing else.

    What other programs leave behind in a process slows the next: TensorFlow's CNN took 1.00 to 1.07 times as long where three
    other ways of running it were open, or had been, as in a process of its own, in eleven of twelve runs 1.02 and more.
    """
    file = peers.files(options.peers, options.backends)
    names = {own: strategy.backend for own, strategy in runners.items()}
    names |= {peers.named(*key): key[0] for key in beside_them}
    # Inductor finds what it compiled for the trial: what compiling takes is measured in processes of their own again.
    inductor = {INDUCTOR: str(place.started["torch"].folder / "inductor")} if "torch" in place.started else {}
    with workers(
        names, (subject.precision,), place.pythons, place.folder / f"timed-{now}", options.timeout, settings=ALLOCATOR | inductor,
        device=options.device, core=place.core if options.device == "cpu" else None,
    ) as (live, unstarted):  # fmt: skip
        started = live[subject.precision]
        here = {name: strategy for name, strategy in runners.items() if name in started}
        own = _moved(subject, {name: started[name] for name in here})
        contestants = opened(own, here, listen)
        losses = {name.partition(" ")[0]: training.losses for name, training in place.trainings.items()}
        rivals: dict[tuple[str, str], Contestant] = {}
        for backend, strategy in beside_them:
            if (name := peers.named(backend, strategy)) in started:
                listen(subject.program.name, {"phase": name})
                only = peers.opened(
                    own,
                    started[name],
                    file[backend],
                    losses[backend],
                    found.notes,
                    strategy,
                    place.started.get(backend),
                )
                for one in only.values():
                    try:
                        warmed(one, budget=WARM_UP)
                        rivals[backend, strategy] = one
                    except WorkerFailed as error:
                        found.notes.append(f"{one.name} is not timed: {str(error).splitlines()[0]}")
        try:
            yield Running(own, contestants, rivals)
        finally:
            subject.failures |= unstarted | own.failures


def _passing(
    subject: Subject, thin: Thinned, running: Running, runners: Mapping[str, Strategy], place: Place, found: Timed,
    listen: Listener,
) -> dict[str, Contestant]:  # fmt: skip
    """Who passes in the process that was timed what all passed in the trial's: no other's time counts.

    After the rounds: the checks run other programs in the process.
    """
    passing = {}
    for own, contestant in running.contestants.items():
        listen(subject.program.name, {"phase": f"{own}: checks"})
        there = _moved(subject, {own: running.subject.workers[own]})
        few = replace(thin, subject=there if thin.subject is subject else _moved(thin.subject, there.workers))
        size = unit(subject, runners[own])
        try:
            parted, void = passed(there, few, own, runners[own], place.trainings[own], size)
        except WorkerFailed as error:
            subject.failures[own] = str(error).splitlines()[0]
            continue
        found.parted |= parted
        found.void |= void
        if own not in parted | void:
            passing[own] = contestant
    return passing


def _moved(subject: Subject, into: dict[str, LiveWorker]) -> Subject:
    """The same subject in other workers."""
    texts = sources(subject.program, {name: live.backend for name, live in into.items()}, subject.precision, {})
    return replace(subject, workers=into, sources=texts, honest=texts, failures={})


def _lines(source: str) -> int:
    """Lines of a program that are not empty."""
    return sum(bool(line.strip()) for line in source.splitlines())


Counts = dict[str, dict[str, int]]


def _compilations(running: Running, runners: Mapping[str, Strategy]) -> Counts:
    """By contestant, how much its framework has traced and compiled for it so far, as far as it tells them apart. Raises Failed."""
    found = {}
    for own in running.contestants:
        try:
            said = host(running.subject, own, runners[own]).ask("compilations", name=runners[own].name)
        except WorkerFailed as error:
            raise Failed(own, error) from error
        found[own] = said["compilations"]
    return found


def _recompiled(before: Counts, after: Counts, doing: str) -> list[str]:
    """What was compiled while each did that: nothing, if all is well."""
    more = {own: {w: n - before[own][w] for w, n in counts.items() if n > before[own][w]} for own, counts in after.items()}  # fmt: skip
    return [
        f"While {own} {doing}: {', '.join(f'{n} more {what}' for what, n in counts.items())}."
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


def _of_short_batches(own: str, cost: Alone) -> str:
    """What the first batch that has fewer examples costs a training, where there is one."""
    if not (short := cost.short):
        return ""
    more = ", ".join(f"{count} more {what}" for what, count in short["compilations"].items() if count)
    return (
        f"{own}: its first batch of fewer examples ({short['examples']}, step {short['step']}) took {short['seconds']:.2g} s, "
        f"the same again {short['again']:.2g} s{'; ' + more if more else ''}."
    )


PRODUCT, COPY = "matrix product", "copy"


def _machine(subject: Subject, backends: list[str], device: str) -> list[Contestant]:
    """What the frameworks' own product of matrices and copy of an array show of the device, warm.

    Of a backend whose worker fails nothing is shown, and `subject.failures` says why. Raises WorkerFailed where all do.
    """
    # A CPU's programs take products of float32 values that are rounded to bfloat16.
    found, bfloat16 = [], subject.mixed and device == "gpu"
    failed: WorkerFailed | None = None
    for backend in backends:
        live, own = subject.workers[backend], []
        try:
            for what, do, size in ((PRODUCT, "peak", SIZE[device]), (COPY, "bandwidth", COPIED[device])):

                def run(steps: int, live: LiveWorker = live, do: str = do, size: int = size) -> tuple[float, float]:
                    said = live.ask(do, size=size, steps=steps, bfloat16=bfloat16)
                    return said["seconds"], said["cpu"]

                one = Contestant(f"{backend} {what}", run)
                warmed(one, budget=WARM_UP)
                own.append(one)
            found += own
        except WorkerFailed as error:
            failed, subject.failures[backend] = error, str(error).splitlines()[0]
    if failed and not found:
        raise failed
    return found
