"""`harness bench`: the same training in every framework, checked first and then timed, in live workers on one core."""

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from harness import flops, spec
from harness.backend import BACKENDS
from harness.bench import peers
from harness.bench.peers import EVERYDAY, Peer
from harness.bench.ratio import LEAST
from harness.bench.record import BenchResult, Lane, Ledger
from harness.bench.rounds import BLOCK, Contestant, rounds, table, warmed
from harness.check import rungs
from harness.check import trajectory as long
from harness.check.evidence import allowances, gather, slopes
from harness.check.live import LiveWorker, allowed_cores
from harness.check.subject import Subject, each, open_program, part, prepare, twin, workers
from harness.check.trajectory import Training
from harness.compare import TOLERANCES, Comparison, compare, compare_losses
from harness.environment import Interpreter, interpreters, machine
from harness.errors import CallError, WorkerFailed
from harness.graph import Program
from harness.lanes import LANES, PLAIN, Strategy, room, strategies
from harness.programs import emitted
from harness.resolve import compile_spec
from harness.runs import prepared
from harness.source import Source

Listener = Callable[[str, Mapping[str, Any]], None]
BATCHES = 8
"""Different batches, made before the clock starts; steps take them in turn."""
TWINS = 5
"""Trainings that start one unit in the last place away, where those of two ways part by more than is allowed."""
STEP_BY_STEP = " step by step"
"""Of the name of a training whose calls could take many steps, made to take one each: it judges, and is not judged."""
CHECKED = 20
"""Steps of the trajectory that a program must pass before its time counts."""
WIDTH = 0.01
"""The relative half-width of an interval that is narrow enough to stop."""


SIZE = 1024
"""Of the square matrices whose product shows what the processor can do."""
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""How glibc allocates in every process that is timed (man 3 mallopt): it keeps freed memory.

As it comes it gives large arrays back to the system, whose pages then cost a fault each in the next step: a tax on large
activations, paid by whichever framework has no allocator of its own.
"""
WARM_UP = 5.0
"""Seconds that a warm-up may take; one that has not settled by then is said to be none."""
TRIAL = 60.0
"""Seconds that the trial of all strategies may take beyond the rounds that it needs."""
FIT = 0.5
"""Seconds that a block of Keras's `fit` lasts at least: each call of it sets a training up anew."""


@dataclass(frozen=True)
class BenchOptions:
    """What a call may change."""

    backends: tuple[str, ...] = BACKENDS
    precision: str = "float32"
    batch: int | None = None
    """Instead of the spec's."""
    lanes: tuple[str, ...] = LANES
    rounds: int = 40
    """At most; fewer where the ratios are known to WIDTH before."""
    pythons: tuple[str, ...] = ()
    timeout: float = 600.0
    peers: Path | None = None
    """A folder of hand-written programs to time beside the emitted ones, see harness.bench.peers."""
    core: int | None = None
    """That every worker is pinned to; left out, the last of this process's."""


def bench(
    paths: Sequence[str | Path], options: BenchOptions | None = None, listen: Listener | None = None
) -> list[BenchResult]:
    """Check and time each spec. Raises SpecError, DataError or CallError before any worker starts."""
    options, listen = options or BenchOptions(), listen or (lambda _backend, _event: None)
    _validate(options)
    loaded = [spec.load(spec.find(str(path))) for path in paths]
    if options.batch is not None:
        loaded = [(_batched(own, options.batch), text) for own, text in loaded]
    peers.files(options.peers, options.backends)
    programs = [compile_spec(own, text) for own, text in loaded]
    pythons = interpreters(options.pythons)
    folder = Path(tempfile.mkdtemp(prefix="harness-bench-"))
    try:
        return [
            _one(program, text, folder / f"{number}-{program.name}", pythons, options, listen)
            for number, (program, (_, text)) in enumerate(zip(programs, loaded, strict=True))
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def chosen_lanes(text: str | None) -> tuple[str, ...]:
    """Names separated by commas; None: all. Raises CallError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text else LANES
    for lane in names:
        if lane not in LANES:
            raise CallError(f"unknown lane '{lane}' (lanes: {', '.join(LANES)})")
    return names


def _batched(own: spec.Spec, batch: int) -> spec.Spec:
    return own.model_copy(update={"data": own.data.model_copy(update={"batch": batch})})


def _validate(options: BenchOptions) -> None:
    for name, value, least in (("--rounds", options.rounds, 6), ("--batch", options.batch, 1)):
        if value is not None and value < least:
            raise CallError(f"{name} is at least {least}, got {value}")
    if options.precision not in ("float32", "float64"):
        raise CallError(f"--precision is float32 or float64, got '{options.precision}'")
    if options.core is not None and options.core not in allowed_cores():
        raise CallError(f"--core {options.core}: this process may use {', '.join(map(str, allowed_cores()))}")


def _one(
    program: Program, text: Source, folder: Path, pythons: Mapping[str, Interpreter], options: BenchOptions, listen: Listener
) -> BenchResult:  # fmt: skip
    began = time.perf_counter()
    core = allowed_cores()[-1] if options.core is None else options.core
    load = psutil.getloadavg()[0]
    inputs = prepared(program, text)
    # What is written by hand has processes of its own: it may change how a whole process allocates, say.
    named = {b: b for b in options.backends} | {_beside(b): b for b in peers.files(options.peers, options.backends)}
    with workers(
        named, (options.precision,), pythons, folder / "workers", options.timeout, core=core, settings=ALLOCATOR
    ) as (
        live,
        unstarted,
    ):
        started = live[options.precision]
        own = {name: started[name] for name in options.backends if name in started}
        subject = prepare(program, text, inputs, options.precision, folder / "subject", own)
        runners = {
            f"{backend} {strategy.name}": strategy
            for backend in subject.backends
            for strategy in strategies(program, backend, options.lanes)
        }
        phases: dict[str, dict[str, float]] = {}
        losses: dict[str, Mapping[str, list[float]]] = {}
        parted, void = _checked(subject, runners, phases, losses, listen) if subject.backends else ({}, {})
        notes = [f"Load before it began: {load:.1f} on {len(allowed_cores())} cores; every worker on core {core}."]
        notes += [f"{name} is not timed: {why}" for name, why in (void | parted).items()]
        sound = {n: s for n, s in runners.items() if not {n, s.backend} & (void | parted).keys()}
        lanes: tuple[Lane, ...] = ()
        beside: tuple[Peer, ...] = ()
        ledger = Ledger({})
        if sound and not _undecided(parted):
            ledger = _ledger(subject)
            lanes, beside = _timed(subject, sound, phases, losses, started, options, notes, listen)
            if lanes and (changed := ledger.changed(_ledger(subject))):
                lanes = beside = ()
                notes.append(f"Refused: while it was timed, this changed: {', '.join(changed)}")
        failures = unstarted | subject.failures
        verdict = "differs" if parted else "void" if void else "failed" if failures or not lanes else "same"
        return BenchResult(
            program.name, options.precision, program.batch, verdict, lanes, ledger, machine(), tuple(notes), failures,
            time.perf_counter() - began, flops.step(program), beside,
        )  # fmt: skip


def _undecided(parted: Mapping[str, str]) -> bool:
    """Whether nothing is known to be right: two trainings that differ, and no third to judge them."""
    return any(why.startswith("nobody can tell") for why in parted.values())


def _checked(
    subject: Subject, runners: Mapping[str, Strategy], phases: dict[str, dict[str, float]],
    losses: dict[str, Mapping[str, list[float]]], listen: Listener,
) -> tuple[dict[str, str], dict[str, str]]:  # fmt: skip
    """Forward, gradients and the first steps of every way of running them, by the processes that are timed.

    Who parts from the others, and how; and of whom the checks say nothing, and why.
    """
    name = subject.program.name
    listen(name, {"phase": "forward and gradients"})
    evidence = each(subject, lambda live: gather(subject, live, subject.sources[live.name, True], support=True))
    allowed = allowances(subject, evidence)
    found = [rungs.forward(subject, evidence, allowed), rungs.gradients(subject, evidence, allowed, slopes(subject))]
    comparisons = [c for rung in found for c in rung.comparisons]
    listen(name, {"phase": "trajectories", "total": len(runners)})
    trainings, stacked = _trainings(subject, runners, phases, listen)
    losses |= {runners[own].backend: training.losses for own, training in trainings.items()}
    comparisons += stacked
    if len(trainings) > 1:
        along = long.trajectory(subject, trainings, None, None).comparisons
        if not all(c.same for c in along) and subject.precision != "float64":
            # Rounding grows along a training: whoever parts no faster than a framework from its own twin is not wrong.
            beside = _twins(subject, runners, trainings)
            along = tuple(c for c in along if c.same or not max(beside.overall[f"{c.a}~{c.b}"]) <= long.TIMES)
        comparisons += along
    void = {own: why for own, training in trainings.items() for why in long.dead(subject, training)}
    for rung in found:
        if rung.status == "void":
            void |= dict.fromkeys(runners, f"{rung.name}: {rung.sentence}")
    return outvoted(comparisons), void


def _twins(subject: Subject, runners: Mapping[str, Strategy], trainings: Mapping[str, Training]) -> long.Drift:
    """How far the trainings part beside how far each backend's plain one parts from its own twins."""
    count = min(CHECKED, subject.program.steps)
    found: dict[str, list[dict[str, list[float]]]] = {}
    for name in subject.backends:
        live, plain = subject.workers[name], PLAIN[name]
        source = emitted(subject.program, name, subject.precision)
        open_program(subject, live, "twins", source, observe=False, strategy=plain)
        live.ask("train", name="twins", first=0, last=count, keep="twins/base")
        found[name] = []
        for number in range(TWINS):
            start = subject.position(f"twin-{number}", twin(subject.program, subject.start, number))
            live.ask("load", name="twins", arrays=start)
            said = live.ask("train", name="twins", first=0, last=count, against="twins/base")
            found[name].append(said["distances"])
        live.ask("close", name="twins")
    return long.drift(subject, trainings, {own: found[runners[own].backend] for own in trainings})


def outvoted(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Whom to leave out so that the others agree, and over what: whoever differs most often, until nobody does."""
    left = [c for c in comparisons if not c.same]
    found: dict[str, str] = {}
    while left:
        counts = Counter(n for c in left for n in {c.a, c.b} if n != "reference" and not n.endswith(STEP_BY_STEP))
        (worst, most), *others = counts.most_common()
        tied = [name for name, count in others if count == most]
        judge = worst
        own = max((c for c in left if judge in (c.a, c.b)), key=lambda c: c.worst.ratio if c.worst else math.inf)
        if tied and {c.a for c in left} | {c.b for c in left} == {worst, *tied}:
            found |= dict.fromkeys((worst, *tied), f"nobody can tell which is wrong: {own}")
        else:
            found[worst] = str(own)
        left = [c for c in left if not {c.a, c.b} & found.keys()]
    return found


def _trainings(
    subject: Subject, runners: Mapping[str, Strategy], phases: dict[str, dict[str, float]], listen: Listener
) -> tuple[dict[str, Training], list[Comparison]]:
    """The first steps by every strategy, and the seconds until it could start; and those whose calls take many steps, in one call beside the same step by step."""
    count = min(CHECKED, subject.program.steps)
    tolerances = TOLERANCES[subject.precision]
    found: dict[str, Training] = {}
    stacked: list[Comparison] = []
    for number, (own, strategy) in enumerate(runners.items()):
        listen(subject.program.name, {"step": number, "losses": {}})
        live = subject.workers[strategy.backend]
        if live.name in subject.failures:
            continue
        try:
            source = emitted(subject.program, strategy.backend, subject.precision, strategy=strategy.name)
            start = time.perf_counter()
            open_program(subject, live, strategy.name, source, observe=False, strategy=strategy.name)
            opened = time.perf_counter() - start
            # Two: some compile in the second, when everything that an optimizer keeps exists.
            first = sum(_clocked(subject, live, strategy, unit(subject, strategy), restart=False)[0] for _ in range(2))
            phases[own] = {"import": live.seconds, "build": opened, "first_calls": first}
            live.ask("load", name=strategy.name, arrays=subject.position("start", subject.start))
            path = live.fresh()
            said = live.ask("train", name=strategy.name, first=0, last=count, write="all", into=str(path))
            arrays = load_file(path)
            end = {n: a for n, a in arrays.items() if n.startswith(("state/", "optimizer/"))}
            training = found[own] = Training(said["losses"], part(arrays, "states/"), end)
            if strategy.many:
                live.ask("load", name=strategy.name, arrays=subject.position("start", subject.start))
                said = live.ask("train_stacked", name=strategy.name, count=count, into=str(path))
                names = (own, f"{own}{STEP_BY_STEP}")
                stacked.append(compare_losses(names, said["losses"], training.losses, tolerances["loss"]))
                ends = (part(load_file(path), "state/"), part(end, "state/"))
                left, right = ({n: a for n, a in e.items() if n not in subject.apart} for e in ends)
                stacked.append(compare("state", names, left, right, tolerances["state"]))
        except WorkerFailed as error:
            # A program that cannot run here, for want of a C++ compiler say, is out of the race; a process that ended is too.
            subject.failures[own if live.process.poll() is None else live.name] = str(error).splitlines()[0]
    return found, stacked


def _timed(
    subject: Subject, runners: Mapping[str, Strategy], phases: Mapping[str, Mapping[str, float]],
    losses: Mapping[str, Mapping[str, list[float]]], started: Mapping[str, LiveWorker], options: BenchOptions, notes: list[str],
    listen: Listener,
) -> tuple[tuple[Lane, ...], tuple[Peer, ...]]:  # fmt: skip
    """Open and warm up all, find the best of each backend in a short trial, and run the rounds of those that are in a lane."""
    name = subject.program.name
    contestants: dict[str, Contestant] = {}
    for own, strategy in runners.items():
        live = subject.workers[strategy.backend]
        if own in subject.failures or live.name in subject.failures:
            continue
        listen(name, {"phase": f"{own}: warm-up"})
        try:
            live.ask("close", name=strategy.name)
            source = emitted(subject.program, strategy.backend, subject.precision, strategy=strategy.name)
            open_program(subject, live, strategy.name, source, observe=False, strategy=strategy.name)
            one = contestant(subject, live, own, strategy)
            warmed(one, budget=WARM_UP)
        except WorkerFailed as error:
            subject.failures[own] = str(error).splitlines()[0]
            continue
        contestants[own] = one
    if not contestants:
        return (), ()
    rivals = _peers(subject, losses, started, options, notes, listen)
    listen(name, {"phase": "trial"})
    rounds([*contestants.values(), *rivals.values()], most=LEAST, budget=TRIAL)
    trial = {own: float(np.median(one.seconds)) for own, one in contestants.items()}
    entered: list[tuple[str, str]] = []
    for lane in options.lanes:
        for backend in options.backends:
            able = [n for n in contestants if runners[n].backend == backend and lane in runners[n].lanes]
            entered += (
                [(lane, min(able, key=trial.__getitem__))] if lane == "best" and able else [(lane, n) for n in able]
            )
    peaks = [_peak(subject.workers[backend]) for backend in dict.fromkeys(runners[n].backend for n in contestants)]
    for one in peaks:
        warmed(one, budget=WARM_UP)
    chosen = {own: contestants[own] for own in dict.fromkeys(own for _, own in entered)}
    # Of the peers the everyday one, and of the others whichever was the fastest in the trial.
    timed = {key: own for key, own in rivals.items() if key[1] == EVERYDAY}
    for backend in options.backends:
        fast = [key for key in rivals if key[0] == backend and key[1] != EVERYDAY]
        timed |= {key: rivals[key] for key in sorted(fast, key=lambda k: float(np.median(rivals[k].seconds)))[:1]}
    for one in (*chosen.values(), *timed.values()):
        one.blocks.clear()
    listen(name, {"phase": "rounds", "total": options.rounds})
    field = list(chosen.values())
    rounds(field, along=[*peaks, *timed.values()], most=options.rounds, width=WIDTH, listen=lambda n: listen(name, {"step": n, "losses": {}}))  # fmt: skip
    against = table(field)
    # Of a noisy machine the median is what it did; the peak is of the framework whose product was the fastest.
    peak = 2 * SIZE**3 / min(float(np.median(one.seconds)) for one in peaks)
    lanes = tuple(
        Lane(
            name, runners[own].backend, lane, runners[own].name, chosen[own], against[own], phases[own],
            {n: t for n, t in trial.items() if runners[n].backend == runners[own].backend} if lane == "best" else {},
            flops.step(subject.program) / float(np.median(chosen[own].seconds)) / peak,
        )
        for lane, own in entered
    )  # fmt: skip
    best = {lane.backend: lane.contestant for lane in lanes if lane.lane == "best"}
    return lanes, peers.judged(timed, best)


def _beside(backend: str) -> str:
    """The name of the worker that runs a backend's peers."""
    return f"{backend}-peers"  # no space: it is in the path of what a compiler is given


def _peers(
    subject: Subject, losses: Mapping[str, Mapping[str, list[float]]], started: Mapping[str, LiveWorker], options: BenchOptions,
    notes: list[str], listen: Listener,
) -> dict[tuple[str, str], Contestant]:  # fmt: skip
    """By backend and strategy, what somebody has written by hand, warm."""
    found: dict[tuple[str, str], Contestant] = {}
    for backend, file in peers.files(options.peers, options.backends).items():
        if _beside(backend) in started and backend in losses:
            listen(subject.program.name, {"phase": f"{backend}: peers"})
            own = peers.opened(subject, started[_beside(backend)], file, losses[backend], notes)
            for strategy, one in own.items():
                warmed(one, budget=WARM_UP)
                found[backend, strategy] = one
    return found


def contestant(
    subject: Subject, live: LiveWorker, name: str, strategy: Strategy | None = None, *, slower: float = 0.0
) -> Contestant:
    """The training steps of an opened program, each block from the start of training."""
    return Contestant(
        name,
        lambda steps: _clocked(subject, live, strategy, steps, slower=slower),
        unit(subject, strategy),
        block_seconds=FIT if strategy and strategy.name == "fit" else BLOCK,
    )


def unit(subject: Subject, strategy: Strategy | None) -> int:
    """The steps of one call. Keras's `fit` goes through any number of batches; other calls are compiled for so many."""
    if strategy is None or not strategy.many:
        return 1
    return min(BATCHES, subject.program.steps) if strategy.name == "fit" else room(subject.program, subject.precision)


def _clocked(
    subject: Subject,
    live: LiveWorker,
    strategy: Strategy | None,
    steps: int,
    *,
    restart: bool = True,
    slower: float = 0.0,
) -> tuple[float, float]:
    """Wall and processor seconds of so many steps."""
    said = live.ask(
        "clock",
        name=strategy.name if strategy else "timed",
        steps=steps,
        batches=min(BATCHES, subject.program.steps),
        stack=unit(subject, strategy) if strategy and strategy.many else None,
        arrays=subject.position("start", subject.start) if restart else None,
        slower=slower,
    )
    return said["seconds"], said["cpu"]


def _ledger(subject: Subject) -> Ledger:
    """What each process says and shows of how it computes."""
    said = each(subject, lambda live: live.ask("ledger")["ledger"])
    names = dict.fromkeys(key for own in said.values() for key in own)
    found = {name: {backend: own[name] for backend, own in said.items() if name in own} for name in names}
    return Ledger({**found, **COMMON})


COMMON: Mapping[str, Mapping[str, Any]] = {
    name: {"all": value}
    for name, value in {
        "data": f"{BATCHES} different batches, made and put on the device before the clock starts",
        "clock": "from the first call until the loss of every step is on the host, wall time",
        "garbage collection": "before every block, off during it",
        "blocks": "start from the same parameters, in an order drawn anew every round",
    }.items()
}
"""Entries that are the same for all by construction."""


def _peak(live: LiveWorker) -> Contestant:
    """A framework's own matrix product, a step being one of it."""

    def run(steps: int) -> tuple[float, float]:
        said = live.ask("peak", size=SIZE, steps=steps)
        return said["seconds"], said["cpu"]

    return Contestant(f"{live.name} matrix product", run)
