"""Where and why the trainings of a run part: its programs taken apart beside one another, from the run's own inputs."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import harness
from harness import flops
from harness.backend import BACKENDS
from harness.check.diagnose import Diagnosis, diagnose
from harness.check.live import LiveWorker, allowed_cores
from harness.check.reduce import dumped, reduce, require_empty, written_to
from harness.check.stored import Stored, read
from harness.check.subject import Subject, workers
from harness.data.inputs import cast
from harness.environment import Interpreter, interpreters
from harness.errors import CallError, WorkerFailed
from harness.files import new_folder, write_arrays
from harness.meaning import Hunk
from harness.programs import Written, emitted, written
from harness.record import plain
from harness.results import clean

SCHEMA = 1
OPENING = 20.0
"""Seconds until programs that return every value are compiled."""
Listener = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class DiffOptions:
    """What a call may change."""

    backends: tuple[str, ...] = BACKENDS
    steps: int | None = None
    """How many to look at; left out, all of the run."""
    pythons: tuple[str, ...] = ()
    timeout: float = 600.0
    reduce: Path | None = None
    """A new folder for the smallest spec that still shows what is found, and a standalone file per framework."""


@dataclass(frozen=True)
class DiffResult:
    """What was found."""

    spec: str
    runs: tuple[Path, ...]
    backends: tuple[str, ...]
    precision: str
    """In which they were taken apart: float64, and where that shows nothing, the run's own."""
    steps: int
    """That were looked at, where nothing was found."""
    diagnosis: Diagnosis | None
    notes: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    changes: dict[str, tuple[Hunk, ...]] = field(default_factory=dict)
    """By program: where it differs in meaning from the one that this version emits."""

    @property
    def verdict(self) -> str:
        """`same`, `differs` or `failed`."""
        return "differs" if self.diagnosis else "failed" if self.failures else "same"

    @property
    def exit(self) -> int:
        """0 no difference but rounding, 1 a difference was found, 3 a backend failed before one was."""
        return {"same": 0, "differs": 1, "failed": 3}[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        found = None if self.diagnosis is None else clean(self.diagnosis.to_json())
        return {
            "schema": SCHEMA, "harness": harness.__version__, "spec": self.spec, "verdict": self.verdict,
            "exit": self.exit, "runs": [str(run) for run in self.runs], "backends": list(self.backends),
            "precision": self.precision, "steps": self.steps, "finding": found,
            "sentences": [] if self.diagnosis is None else self.diagnosis.sentences(), "notes": list(self.notes),
            "changes": {name: [hunk.to_json() for hunk in own] for name, own in self.changes.items()},
            "failures": self.failures, "seconds": self.seconds,
        }  # fmt: skip


def diff(runs: Sequence[Path], options: DiffOptions | None = None, listen: Listener | None = None) -> DiffResult:
    """Find where the programs of a run, or of two runs of one spec, part. Raises CallError before any worker starts."""
    options, listen = options or DiffOptions(), listen or (lambda _backend, _event: None)
    if options.steps is not None and options.steps < 1:
        raise CallError(f"--steps is at least 1, got {options.steps}")
    stored = [read(run) for run in runs]
    _of_one_spec(stored)
    first = stored[0]
    began = time.perf_counter()
    if options.reduce is not None:
        require_empty(options.reduce)
    given, notes, failed = _programs(stored, options.backends)
    if not given:
        raise CallError(f"{first.directory}: has none of the backends {', '.join(options.backends)}")
    own = first.result.precision
    precisions = ("float64",) if own == "float64" else ("float64", own)
    steps = min(options.steps or first.program.steps, first.result.steps - first.first)
    for each in given.values():
        for precision in precisions:
            each.adapted(first.program, precision, observe=True)  # raises before any worker starts
    pythons = interpreters(options.pythons)
    # Each step is taken twice in each backend: once apart, once on the way to the next position.
    each_step = sum(flops.guess(first.program, precision, 2) for precision in precisions)
    rounds = -(-len(given) // len(allowed_cores()))
    listen(first.program.name, {"roughly": len(precisions) * OPENING + steps * rounds * each_step})
    folder = new_folder("harness-diff-")
    found: Diagnosis | None = None
    failures: dict[str, str] = {}
    precision = precisions[0]
    try:
        for precision in precisions:
            listen(first.program.name, {"phase": f"{precision} programs opened", "total": 0})
            found, failures = _taken_apart(
                first, given, precision, steps, folder / precision, pythons, options, notes, listen
            )
            if found is not None:
                break
            if failures and precision != precisions[-1]:
                said = "; ".join(f"{name}: {why.splitlines()[0]}" for name, why in failures.items())
                notes.append(f"They could not be taken apart in {precision}, in which the run was not: {said}.")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failures = {name: why.splitlines()[0] for name, why in failures.items()} | failed
    if found is None and not failures:
        notes.append(_nothing(first, steps))
    elif found is not None and precision != precisions[0] and not any("taken apart in" in note for note in notes):
        notes.append("In float64 no step shows more than rounding: the difference is one of precision.")
    if first.result.device != "cpu":
        notes.append(f"The run was on {first.result.device}; its programs were taken apart on the CPU.")
    return DiffResult(
        first.program.name, tuple(s.directory for s in stored), tuple(given), precision, steps, found, tuple(notes),
        failures, time.perf_counter() - began,
        {name: tuple(hunks) for name, own in given.items() if (hunks := own.hunks)},
    )  # fmt: skip


def _taken_apart(
    run: Stored, given: Mapping[str, Written], precision: str, steps: int, folder: Path,
    pythons: Mapping[str, Interpreter], options: DiffOptions, notes: list[str], listen: Listener,
) -> tuple[Diagnosis | None, dict[str, str]]:  # fmt: skip
    names = {name: own.backend for name, own in given.items()}
    with workers(names, (precision,), pythons, folder / "workers", options.timeout) as (live, failures):
        if not live[precision]:
            return None, failures
        subject = subject_of(run, precision, folder / "subject", live[precision], given)
        observed = {name: subject.sources[name, True] for name in subject.workers}
        try:
            found = diagnose(subject, observed, {name: given[name].text for name in subject.workers}, steps, listen)
        except WorkerFailed as error:
            return None, subject.failures or {"all": str(error)}
        if found is not None and options.reduce is not None:
            notes += _reduced(run, found, precision, given, live[precision], folder, options.reduce, listen)
        return found, failures | subject.failures


def _reduced(
    run: Stored, found: Diagnosis, precision: str, given: Mapping[str, Written], live: Mapping[str, LiveWorker],
    folder: Path, into: Path, listen: Listener,
) -> list[str]:  # fmt: skip
    """Make the spec smaller, and say what was written."""
    changed = {name: own for name, own in given.items() if own.changed}
    data = YAML(typ="safe").load(run.text)
    data["training"]["steps"], data["seed"] = run.program.steps, run.program.seed
    if (file := run.program.spec.data.source) is not None:
        data["data"]["file"] = str(file.absolute())  # the smaller spec lies elsewhere
    listen(run.program.name, {"phase": "smaller"})
    small = reduce(dumped(data), found.finding, run.program, precision, changed, live, folder / "reduced",
                   lambda tried: listen(run.program.name, {"step": tried, "losses": {}}))  # fmt: skip
    if isinstance(small, str):
        return [small]
    paths = written_to(small, f"{run.program.name}_small", into)
    said = [f"{small.tried} smaller specs tried; written: {', '.join(map(str, paths))}."]
    return said + [f"{name} has no standalone file: {why}." for name, why in small.missing.items()]


def subject_of(
    run: Stored, precision: str, folder: Path, live: Mapping[str, Any], given: Mapping[str, Written]
) -> Subject:
    """A run's programs and inputs in a precision."""
    (folder / "inputs").mkdir(parents=True)
    for name, arrays in run.inputs.items():
        write_arrays(folder / "inputs" / f"{name}.safetensors", cast(arrays, precision))
    subject = Subject(run.program, precision, folder, run.held_out, dict(live), first=run.first)
    for name, own in live.items():
        for observe in (False, True):
            subject.honest[name, observe] = emitted(run.program, own.backend, precision, observe=observe)
            subject.sources[name, observe] = given[name].adapted(run.program, precision, observe=observe)
    return subject


def _programs(
    stored: Sequence[Stored], backends: Sequence[str]
) -> tuple[dict[str, Written], list[str], dict[str, str]]:
    """What is compared, what is to be said of it, and the backends that did not finish.

    Programs by name: the backend's, and where both runs have another one of it, `torch` and `torch-2`.
    """
    found: dict[str, Written] = {}
    notes = []
    failed = {}
    for run in stored:
        for backend, text in run.texts.items():
            if backend not in backends:
                continue
            own = written(backend, text, f"{backend}'s program", [run.program], sorted({1, run.threads}))
            if backend in found:
                if found[backend].text == text:
                    continue
                name = f"{backend}-2"
            else:
                name = backend
            found[name] = own
            if own.hunks:
                notes.append(_changed(name, own.hunks))
        for backend, result in run.result.backends.items():
            if result.status == "failed" and backend in backends:
                failed[backend] = (
                    f"in the run itself: {result.error.splitlines()[0] if result.error else 'no reason is known'}"
                )
    return found, notes, failed


def _changed(name: str, found: Sequence[Hunk]) -> str:
    """How much of a program is not as it is emitted, and where that begins."""
    lines = [line for hunk in found for line in hunk.after]
    if not lines:
        number, text = found[0].before[0]
        return f"{name}: lacks lines that this version emits, first its line {number}: {text.strip()}"
    number, text = lines[0]
    count = f"{len(lines)} line{'s' if len(lines) > 1 else ''}"
    return f"{name}: {count} not as this version emits them, first line {number}: {text.strip()}"


def _of_one_spec(stored: Sequence[Stored]) -> None:
    first = stored[0]
    for other in stored[1:]:
        what = _difference(first, other)
        if what:
            raise CallError(f"runs {first.directory} and {other.directory} are not of the same training: {what}")


def _difference(a: Stored, b: Stored) -> str:
    if a.program.name != b.program.name:
        return f"one is of spec '{a.program.name}', the other of '{b.program.name}'"
    for name in ("steps", "seed"):
        x, y = getattr(a.program, name), getattr(b.program, name)
        if x != y:
            return f"{name} {x} and {y}"
    if a.first != b.first:
        return f"one begins after step {a.first}, the other after {b.first}"
    if a.result.precision != b.result.precision:
        return f"one is in {a.result.precision}, the other in {b.result.precision}"
    # Not as objects: each knows the folder that its files are looked for in, which is its run's.
    if plain(a.program.spec) != plain(b.program.spec):
        return f"both are called '{a.program.name}', but their specs differ"
    for file in sorted(a.inputs.keys() | b.inputs.keys()):
        x, y = a.inputs.get(file, {}), b.inputs.get(file, {})
        for name in sorted(x.keys() | y.keys()):
            if name not in x or name not in y or x[name].shape != y[name].shape or x[name].tobytes() != y[name].tobytes():  # fmt: skip
                return f"inputs/{file}.safetensors: {name} differs"
    return ""


def _nothing(run: Stored, steps: int) -> str:
    parted = [c for c in run.result.comparisons if not c["same"]]
    said = f"From the same position, none of {steps} steps shows more than rounding in any phase"
    if parted:
        return f"{said}: what parts in the run is rounding that grew over its steps, not a difference in meaning."
    return f"{said}."


__all__ = ["DiffOptions", "DiffResult", "diff"]
