"""`harness bench`: the same training in every framework, checked first and then timed, in live workers on one core."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load_file

from harness import flops, source, spec
from harness.bench import peers
from harness.bench.options import BenchOptions, validate
from harness.bench.record import BenchResult, Ledger
from harness.bench.target import metric
from harness.bench.thin import Thinned, thinned, unmoved
from harness.bench.timing import ALLOCATOR, Listener, Place, Timed, beside, ledger, timed
from harness.bench.vote import STEP_BY_STEP, outvoted
from harness.check import rungs
from harness.check import trajectory as long
from harness.check.evidence import allowances, gather, slopes
from harness.check.live import LiveWorker, allowed_cores
from harness.check.record import Rung
from harness.check.subject import Subject, each, open_program, part, prepare, twin, workers
from harness.check.trajectory import Training
from harness.compare import TOLERANCES, Comparison, compare, compare_losses
from harness.environment import Interpreter, interpreters, machine
from harness.errors import WorkerFailed
from harness.graph import Program
from harness.lanes import PLAIN, Strategy, strategies
from harness.programs import emitted
from harness.resolve import compile_spec
from harness.runs import prepared
from harness.source import Source
from harness.vary import varied

TWINS, FEW_TWINS = 5, 2
"""Trainings that start one unit in the last place away, where those of two ways part by more than is allowed; of a large
network, fewer."""
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
    pythons = interpreters(options.pythons)
    folder = Path(tempfile.mkdtemp(prefix="harness-bench-"))
    results: list[BenchResult] = []
    try:
        for number, (program, text, setting) in enumerate(wanted):
            where = folder / f"{number}-{program.name}"
            results.append(replace(_one(program, text, where, pythons, options, listen), setting=setting))
            keep(results)
            shutil.rmtree(where, ignore_errors=True)
        return results
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _variants(path: Path, options: BenchOptions) -> list[tuple[Program, Source, dict[str, Any]]]:
    """The spec as it is, or once for each value of each variation, and what was set."""
    read = source.read(path)
    if not options.vary:
        own, text = spec.validate(read)
        return [(compile_spec(own, text), text, {})]
    found = []
    for variation in options.vary:
        for value in variation.values:
            changed = source.parse(varied(read.text, variation.places, value), f"{path} with {variation.name}={value}")
            own, text = spec.validate(changed)
            found.append((compile_spec(own, text), text, {variation.name: value}))
    return found


def _one(
    program: Program, text: Source, folder: Path, pythons: Mapping[str, Interpreter], options: BenchOptions, listen: Listener
) -> BenchResult:  # fmt: skip
    began = time.perf_counter()
    core = allowed_cores()[-1] if options.core is None else options.core
    load = psutil.getloadavg()[0]
    inputs = prepared(program, text)
    # What is written by hand has processes of its own: it may change how a whole process allocates, say.
    named = {b: b for b in options.backends} | {beside(b): b for b in peers.files(options.peers, options.backends)}
    with workers(
        named, (options.precision,), pythons, folder / "workers", options.timeout, settings=ALLOCATOR, device=options.device,
        core=core if options.device == "cpu" else None,
    ) as (live, unstarted):  # fmt: skip
        started = live[options.precision]
        own = {name: started[name] for name in options.backends if name in started}
        subject = prepare(program, text, inputs, options.precision, folder / "subject", own)
        subject.device = options.device
        runners = {
            f"{backend} {strategy.name}": strategy
            for backend in subject.backends
            for strategy in strategies(program, backend, options.lanes, options.device)
        }
        losses: dict[str, Mapping[str, list[float]]] = {}
        few = thinned(subject, text, folder / "thinned", CHECKED)
        subject.restarts = not few.at
        checked: list[str] = []
        parted, void = _checked(subject, few, runners, losses, checked, listen) if subject.backends else ({}, {})
        pinned = f"every worker on core {core}" if options.device == "cpu" else "workers on any core"
        notes = [f"Load before it began: {load:.1f} on {len(allowed_cores())} cores; {pinned}."]
        notes += [few.said, *checked] if few.said else []
        notes += [f"{name} is not timed: {why}" for name, why in (void | parted).items()]
        sound = {n: s for n, s in runners.items() if not {n, s.backend} & (void | parted).keys()}
        found, conditions = Timed(), Ledger({})
        if sound and not _undecided(parted):
            conditions = ledger(subject, options.device)
            place = Place(folder, pythons, core, started)
            found = timed(subject, sound, losses, place, options, listen)
            notes += found.notes
            if found.lanes and (changed := conditions.changed(ledger(subject, options.device))):
                found = Timed()
                notes.append(f"Refused: while it was timed, this changed: {', '.join(changed)}")
        failures = unstarted | subject.failures
        verdict = "differs" if parted else "void" if void else "failed" if failures or not found.lanes else "same"
        return BenchResult(
            program.name, options.precision, program.batch, verdict, found.lanes, conditions, machine(), tuple(notes),
            failures, time.perf_counter() - began, flops.step(program), found.beside, options.device, found.asked,
            found.evaluated, found.roof, flops.traffic(program, options.precision),
        )  # fmt: skip


def _undecided(parted: Mapping[str, str]) -> bool:
    """Whether nothing is known to be right: two trainings that differ, and no third to judge them."""
    return any(why.startswith("nobody can tell") for why in parted.values())


def _checked(
    subject: Subject, thin: Thinned, runners: Mapping[str, Strategy], losses: dict[str, Mapping[str, list[float]]],
    notes: list[str], listen: Listener,
) -> tuple[dict[str, str], dict[str, str]]:  # fmt: skip
    """Forward, gradients and the first steps of every way of running them, by the processes that are timed.

    Who parts from the others, and how; and of whom the checks say nothing, and why.
    """
    name = subject.program.name
    listen(name, {"phase": "forward and gradients"})
    few = thin.subject
    evidence = each(few, lambda live: gather(few, live, few.sources[live.name, True], support=True, steps=0))

    def judge() -> list[Rung]:
        allowed = allowances(few, evidence)
        return [rungs.forward(few, evidence, allowed), rungs.gradients(few, evidence, allowed, slopes(few))]

    # The reference takes as long as the frameworks do: it computes here while they train.
    with ThreadPoolExecutor(1) as pool:
        judged = pool.submit(judge)
        listen(name, {"phase": "trajectories", "total": len(runners)})
        trainings, stacked = _trainings(subject, runners, thin, listen)
        found = judged.result()
    comparisons = [c for rung in found for c in rung.comparisons]
    losses |= {runners[own].backend: training.losses for own, training in trainings.items()}
    comparisons += stacked
    if len(trainings) > 1:
        along = long.trajectory(subject, trainings, None, None).comparisons
        if not all(c.same for c in along) and subject.precision != "float64":
            # Rounding grows along a training: whoever parts no faster than a framework from its own twin is not wrong.
            beside = _twins(subject, runners, trainings, thin)
            along = tuple(c for c in along if c.same or not max(beside.overall[f"{c.a}~{c.b}"]) <= long.TIMES)
        comparisons += along
    void = {
        own: why
        for own, training in trainings.items()
        for why in (*long.dead(subject, training), *unmoved(subject, training))
    }
    for rung in found:
        notes += [f"{rung.name}: {note}" for note in rung.notes if "within rounding" in note]
        if rung.status == "void":
            void |= dict.fromkeys(runners, f"{rung.name}: {rung.sentence}")
    return outvoted(comparisons), void


def _twins(
    subject: Subject, runners: Mapping[str, Strategy], trainings: Mapping[str, Training], thin: Thinned
) -> long.Drift:
    """How far the trainings part beside how far each backend's plain one parts from its own twins."""
    steps = thin.steps
    found: dict[str, list[dict[str, list[float]]]] = {}
    for name in subject.backends:
        live, plain = subject.workers[name], PLAIN[name]
        source = emitted(subject.program, name, subject.precision)
        open_program(subject, live, "twins", source, observe=False, strategy=plain)
        live.ask("train", name="twins", first=0, last=steps, keep="twins/base", at=thin.at)
        found[name] = []
        for number in range(FEW_TWINS if thin.said else TWINS):
            start = subject.position(f"twin-{number}", twin(subject.program, subject.start, number))
            live.ask("load", name="twins", arrays=start)
            said = live.ask("train", name="twins", first=0, last=steps, against="twins/base", at=thin.at)
            found[name].append(said["distances"])
        live.ask("close", name="twins")
    return long.drift(subject, trainings, {own: found[runners[own].backend] for own in trainings})


def _trainings(
    subject: Subject, runners: Mapping[str, Strategy], thin: Thinned, listen: Listener
) -> tuple[dict[str, Training], list[Comparison]]:
    """The first steps by every strategy; and those whose calls take many steps, in one call beside the same step by step."""
    found: dict[str, Training] = {}
    stacked: list[Comparison] = []
    done = count()

    def work(live: LiveWorker) -> None:
        for own, strategy in runners.items():
            if strategy.backend != live.name:
                continue
            listen(subject.program.name, {"step": next(done), "losses": {}})
            try:
                found[own], more = _trained(subject, live, own, strategy, thin)
                stacked.extend(more)
            except WorkerFailed as error:
                if live.process.poll() is not None:
                    raise
                # A program that cannot run here, for want of a C++ compiler say, is out of the race.
                subject.failures[own] = str(error).splitlines()[0]

    each(subject, work)
    return {own: found[own] for own in runners if own in found}, stacked


def _trained(
    subject: Subject, live: LiveWorker, own: str, strategy: Strategy, thin: Thinned
) -> tuple[Training, list[Comparison]]:
    """By one strategy."""
    steps, tolerances = thin.steps, TOLERANCES[subject.precision]
    text = emitted(subject.program, strategy.backend, subject.precision, strategy=strategy.name)
    open_program(subject, live, strategy.name, text, observe=False, strategy=strategy.name)
    path = live.fresh()
    if strategy.many and thin.at:
        # What takes many steps is compiled for their number: of a large network once, not for one step too.
        said = live.ask("train_stacked", name=strategy.name, count=steps, into=str(path))
        end = load_file(path)
        path.unlink()
        return Training(said["losses"], {n: a[None] for n, a in part(end, "state/").items()}, end, thin.at), []
    said = live.ask("train", name=strategy.name, first=0, last=steps, write="all", into=str(path), at=thin.at)
    states = part(load_file(path), "states/")
    end = {f"state/{name}": kept[-1] for name, kept in states.items()}
    training = Training(said["losses"], states, end, thin.at)
    stacked: list[Comparison] = []
    if strategy.many:
        live.ask("load", name=strategy.name, arrays=subject.position("start", subject.start))
        said = live.ask("train_stacked", name=strategy.name, count=steps, into=str(path))
        names = (own, f"{own}{STEP_BY_STEP}")
        stacked.append(compare_losses(names, said["losses"], training.losses, tolerances["loss"]))
        ends = (part(load_file(path), "state/"), part(end, "state/"))
        left, right = ({n: a for n, a in e.items() if n not in subject.apart} for e in ends)
        stacked.append(compare("state", names, left, right, tolerances["state"]))
    path.unlink()
    return training, stacked
