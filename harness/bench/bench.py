"""`harness bench`: the same training in every framework, checked first and then timed, in live workers on one core."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness import spec
from harness.backend import BACKENDS
from harness.bench.record import BenchResult, Lane, Ledger
from harness.bench.rounds import Contestant, rounds, table, warmed
from harness.check import rungs
from harness.check import trajectory as long
from harness.check.evidence import allowances, gather, slopes
from harness.check.live import LiveWorker, allowed_cores
from harness.check.subject import Subject, each, open_program, prepare, workers
from harness.environment import Interpreter, interpreters, machine
from harness.errors import CallError, WorkerFailed
from harness.graph import Program
from harness.resolve import compile_spec
from harness.runs import prepared
from harness.source import Source

Listener = Callable[[str, Mapping[str, Any]], None]
BATCHES = 8
"""Different batches, made before the clock starts; steps take them in turn."""
CHECKED = 20
"""Steps of the trajectory that a program must pass before its time counts."""
WIDTH = 0.01
"""The relative half-width of an interval that is narrow enough to stop."""


@dataclass(frozen=True)
class BenchOptions:
    """What a call may change."""

    backends: tuple[str, ...] = BACKENDS
    precision: str = "float32"
    batch: int | None = None
    """Instead of the spec's."""
    rounds: int = 40
    """At most; fewer where the ratios are known to WIDTH before."""
    pythons: tuple[str, ...] = ()
    timeout: float = 600.0
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
    with workers(options.backends, (options.precision,), pythons, folder / "workers", options.timeout, core=core) as (
        live,
        unstarted,
    ):
        subject = prepare(program, text, inputs, options.precision, folder / "subject", live[options.precision])
        listen(program.name, {"phase": "checks"})
        parted = _checked(subject) if subject.backends else []
        failures = unstarted | subject.failures
        lanes: tuple[Lane, ...] = ()
        ledger = Ledger({})
        if subject.backends and not parted:
            lanes = _timed(subject, options, listen)
            ledger = _ledger(subject)
            failures = unstarted | subject.failures
        verdict = "failed" if failures else "differs" if parted else "same"
        notes = [f"Load before it began: {load:.1f} on {len(allowed_cores())} cores; every worker on core {core}."]
        notes += [f"Not timed: {why}" for why in parted]
        return BenchResult(
            program.name, options.precision, program.batch, verdict, lanes, ledger, machine(), tuple(notes), failures,
            time.perf_counter() - began,
        )  # fmt: skip


def _checked(subject: Subject) -> list[str]:
    """Forward, gradients and the first steps of the trajectory, by the processes that are timed: what failed."""
    evidence = each(subject, lambda live: gather(subject, live, subject.sources[live.name, True], support=True))
    allowed = allowances(subject, evidence)
    found = [rungs.forward(subject, evidence, allowed), rungs.gradients(subject, evidence, allowed, slopes(subject))]
    trainings = long.train(subject, min(CHECKED, subject.program.steps))
    if len(trainings) > 1:
        found.append(long.trajectory(subject, trainings, None, None))
    each(subject, lambda live: live.ask("close", name="plain"))
    return [f"{rung.name}: {rung.sentence}" for rung in found if rung.status == "failed"]


def _timed(subject: Subject, options: BenchOptions, listen: Listener) -> tuple[Lane, ...]:
    """Open, warm up, and run the rounds."""
    phases: dict[str, dict[str, float]] = {}
    contestants: list[Contestant] = []
    owners: dict[str, str] = {}
    for name in subject.backends:
        live = subject.workers[name]
        try:
            start = time.perf_counter()
            open_program(subject, live, "timed", subject.sources[name, False], observe=False)
            opened = time.perf_counter() - start
            own = contestant(subject, live, f"{name}/step")
            start = time.perf_counter()
            own.run(1)
            phases[own.name] = {"build": opened, "first_step": time.perf_counter() - start}
            listen(subject.program.name, {"phase": f"{name} warm"})
            warmed(own)
        except WorkerFailed as error:
            subject.failures[name] = str(error).splitlines()[0]
            continue
        contestants.append(own)
        owners[own.name] = name
    if not contestants:
        return ()
    listen(subject.program.name, {"phase": "rounds", "total": options.rounds})
    rounds(contestants, most=options.rounds, width=WIDTH, listen=lambda n: listen(subject.program.name, {"step": n, "losses": {}}))  # fmt: skip
    against = table(contestants)
    return tuple(
        Lane(subject.program.name, owners[c.name], "step", c, against[c.name], phases[c.name]) for c in contestants
    )


def contestant(subject: Subject, live: LiveWorker, name: str, *, slower: float = 0.0) -> Contestant:
    """The training step of an opened program."""
    count = min(BATCHES, subject.program.steps)

    def run(steps: int) -> tuple[float, float]:
        said = live.ask("clock", name="timed", steps=steps, batches=count, wait="end", slower=slower)
        return said["seconds"], said["cpu"]

    return Contestant(name, run)


def _ledger(subject: Subject) -> Ledger:
    """What each process says of how it is set."""
    said = each(subject, lambda live: live.ask("environment")["environment"])
    names = dict.fromkeys(key for own in said.values() for key in own)
    shown = [name for name in names if name not in ("peak_memory_bytes", "devices")]
    return Ledger({name: {backend: own.get(name, "—") for backend, own in said.items()} for name in shown})
