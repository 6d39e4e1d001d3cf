"""`harness bench`: the same training in every framework, checked first and then timed, in live workers on one core."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from harness import flops, source, spec
from harness.bench import peers
from harness.bench.checks import checked
from harness.bench.options import BenchOptions, validate
from harness.bench.race import Place, Timed, race
from harness.bench.record import BenchResult, Ledger
from harness.bench.target import metric
from harness.bench.thin import thinned
from harness.bench.timing import ALLOCATOR, Listener, ledger
from harness.bench.trial import beside, tried
from harness.check.live import LiveWorker, allowed_cores
from harness.check.subject import Subject, prepare, workers
from harness.check.trajectory import Training
from harness.environment import Interpreter, interpreters, machine, require_device
from harness.errors import CallError, WorkerFailed
from harness.files import new_folder
from harness.graph import Program
from harness.lanes import STRATEGIES, Strategy, left_out, slow, strategies
from harness.resolve import compile_spec
from harness.runs import prepared
from harness.source import Source
from harness.vary import varied

CHECKED = 20
"""Steps of the trajectory that a program must pass before its time counts."""


def bench(
    paths: Sequence[str | Path], options: BenchOptions | None = None, listen: Listener | None = None,
    keep: Callable[[list[BenchResult]], None] = lambda _results: None,
) -> list[BenchResult]:  # fmt: skip
    """Check and time each spec, each with every value of what is varied. `keep` is called with all results after each.

    Raises SpecError, DataError or CallError before any worker starts.
    """
    options, listen = options or BenchOptions(), listen or (lambda _backend, _event: None)
    validate(options)
    peers.files(options.peers, options.backends)
    wanted = [one for path in paths for one in _variants(spec.find(str(path)), options)]
    if options.target:
        for program, _, _ in wanted:
            metric(program, options.target)
    for program, _, _ in wanted:
        if not any(ways(program, backend, options) for backend in options.backends):
            why = " ".join(said for backend in options.backends for said in _without(program, backend, options))
            raise CallError(f"{program.name}: nothing can be timed: {why}")
    pythons = interpreters(options.pythons)
    require_device(options.device, options.backends, pythons)
    folder = new_folder("harness-bench-")
    results: list[BenchResult] = []
    try:
        for number, (program, text, setting) in enumerate(wanted):
            where = folder / f"{number}-{program.name}"
            if len(wanted) > 1:
                listen(program.name, {"whole": [number, len(wanted)]})
            results.append(replace(_one(program, text, where, pythons, options, listen), setting=setting))
            keep(results)
            shutil.rmtree(where, ignore_errors=True)
        return results
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ways(program: Program, backend: str, options: BenchOptions) -> list[Strategy]:
    """How a backend's program is run in the lanes that are asked for."""
    return strategies(program, backend, options.lanes, options.device, options.precision)


def _without(program: Program, backend: str, options: BenchOptions) -> list[str]:
    """In which of these lanes a backend has nothing, and why; and what is not tried since it is known to be slow."""
    own = ways(program, backend, options)
    left = left_out(program, backend, options.lanes, options.device, options.precision)
    empty = [lane for lane in options.lanes if not any(lane in strategy.lanes for strategy in own)]
    said = []
    for lane in empty:
        gone = [f"'{name}' {why}" for name, why in left.items() if lane in STRATEGIES[backend, name].lanes]
        said.append(f"{backend} has nothing in lane {lane}: {'; '.join(gone)}.")
    known = {name: slow(program, STRATEGIES[backend, name], options.device) for name in left}
    return said + [f"{backend} {name} is not tried: it {why}." for name, why in known.items() if why]


def _variants(path: Path, options: BenchOptions) -> list[tuple[Program, Source, dict[str, Any]]]:
    """The spec as it is, or once for each value of each variation, and what was set."""
    read = source.read(path)
    if not options.vary:
        own, text = spec.validate(read)
        return [(compile_spec(own, text), text, {})]
    found = []
    for variation in options.vary:
        for value in variation.values:
            changed = source.parse(
                varied(read.text, variation.places, value), f"{path} with {variation.name}={value}", path.parent
            )
            own, text = spec.validate(changed)
            found.append((compile_spec(own, text), text, {variation.name: value}))
    return found


def _one(
    program: Program, text: Source, folder: Path, pythons: Mapping[str, Interpreter], options: BenchOptions, listen: Listener
) -> BenchResult:  # fmt: skip
    began = time.perf_counter()
    core = allowed_cores()[-1] if options.core is None else options.core
    # Programs compile, and are checked, on all cores; what is timed is pinned to one.
    spread = options.device == "cpu" and options.core is None and Path("/proc/self/task").exists()
    load = psutil.getloadavg()[0]
    inputs = prepared(program, text)
    # What is written by hand has processes of its own: it may change how a whole process allocates, say.
    backends = [backend for backend in options.backends if ways(program, backend, options)]
    by_hand = {
        beside(backend): backend for backend in peers.files(options.peers, options.backends) if backend in backends
    }
    with ExitStack() as stack, ExitStack() as beside_them:

        def start(
            names: Mapping[str, str], where: str, until: ExitStack
        ) -> tuple[dict[str, LiveWorker], dict[str, str]]:
            own = workers(
                names, (options.precision,), pythons, folder / where, options.timeout, settings=ALLOCATOR, device=options.device,
                core=None if options.device != "cpu" or spread else core,
            )  # fmt: skip
            live, unstarted = until.enter_context(own)
            return live[options.precision], unstarted

        own, unstarted = start({name: name for name in backends}, "workers", stack)
        rivals, absent = start(by_hand, "rivals", beside_them)
        started, unstarted = own | rivals, unstarted | absent
        subject = prepare(program, text, inputs, options.precision, folder / "subject", own)
        subject.device = options.device
        runners = {
            f"{backend} {strategy.name}": strategy
            for backend in subject.backends
            for strategy in ways(program, backend, options)
        }
        trainings: dict[str, Training] = {}
        few = thinned(subject, text, folder / "thinned", CHECKED)
        subject.restarts = few.restarts
        said: list[str] = []
        parted, void = checked(subject, few, runners, trainings, said, listen) if subject.backends else ({}, {})
        pinned = f"every worker on core {core}" if options.device == "cpu" else "workers on any core"
        notes = [f"Load before it began: {load:.1f} on {len(allowed_cores())} cores; {pinned}."]
        notes += [why for backend in options.backends for why in _without(program, backend, options)]
        notes += [few.said, *said] if few.said else []
        notes += [f"{name} is not timed: {why}" for name, why in (void | parted).items()]
        sound = {n: s for n, s in runners.items() if not {n, s.backend} & (void | parted).keys()}
        found = Timed()
        if sound and not _undecided(parted):
            losses = {runners[own].backend: training.losses for own, training in trainings.items()}
            if spread:
                pin(subject, started, core)
            trial = tried(subject, sound, losses, started, options, notes, listen)
            if trial.contestants:
                proven = {own: trainings.pop(own) for own in trial.contestants}
                trainings.clear()  # the states of all their steps
                place = Place(folder, pythons, core, started, proven, beside_them.close)
                found = race(subject, few, sound, trial, place, options, listen)
            notes += [f"{name} is not timed: {why}" for name, why in (found.void | found.parted).items()]
            notes += found.notes
            if found.changed:
                notes.append(f"Refused: while it was timed, this changed: {', '.join(found.changed)}")
                found = Timed(told=found.told, parted=found.parted, void=found.void)
        parted, void = parted | found.parted, void | found.void
        # Of processes of their own, where there were some: in the trial's nothing was timed.
        apart = {process: own for process, own in found.told.items() if " " in process}
        conditions = ledger(subject, apart or found.told, options.device) if found.told else Ledger({})
        failures = unstarted | subject.failures
        verdict = "differs" if parted else "void" if void else "failed" if failures or not found.lanes else "same"
        return BenchResult(
            program.name, options.precision, program.batch, verdict, found.lanes, conditions, machine(), tuple(notes),
            failures, time.perf_counter() - began, flops.step(program), found.beside, options.device, found.asked,
            found.evaluated, found.roof, flops.traffic(program, options.precision),
        )  # fmt: skip


def pin(subject: Subject, started: Mapping[str, LiveWorker], core: int) -> None:
    """Move all workers to one core. A backend whose worker does not answer any more is out."""
    for name, live in started.items():
        try:
            live.ask("pin", cores=[core])
            live.core = core
        except WorkerFailed as error:
            if name in subject.workers:
                subject.failures.setdefault(name, str(error).splitlines()[0])


def _undecided(parted: Mapping[str, str]) -> bool:
    """Whether nothing is known to be right: two trainings that differ, and no third to judge them."""
    return any(why.startswith("nobody can tell") for why in parted.values())
