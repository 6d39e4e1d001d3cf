"""What each default would do to one spec: trained with that one default left to its framework, all else identical.

`SCHEMA` counts changes that break a reader of the JSON. Additions do not.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import harness
from harness import initial, judge, runs
from harness.atlas.plants import Draft, Refused, draft
from harness.atlas.rows import ROWS, Row
from harness.data.inputs import Inputs, cast
from harness.environment import interpreters
from harness.errors import CallError
from harness.files import write_arrays
from harness.graph import Program
from harness.precision import proving
from harness.resolve import compile_spec
from harness.results import clean
from harness.runs import Options
from harness.source import Source
from harness.spec import Spec
from harness.supervise import train

SCHEMA = 1
STEPS = 100  # where a spec has more and nobody says how many
NOTHING = 1e-12  # of the loss: what rounding alone may do in float64 in so many steps
FLOOR = 1e-3  # of the first loss: what a loss that nears 0 is held against

HONEST = "honest"  # the name of the program without a plant; no row has it

Array = np.ndarray[Any, np.dtype[Any]]
Progress = Callable[[int, int, str], object]
"""Told how many trainings there are, how many are done, and which one is under way."""


@dataclass(frozen=True)
class Trained:
    """One training of one program, or why there is none."""

    losses: Mapping[str, list[float]] = field(default_factory=dict)
    """By update, of every step."""
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """The answers to the spec's evaluation, after training."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Effect:
    """What a default did, against the same backend's honest program."""

    update: str
    """The one whose loss it moved most."""
    first: float
    """|difference| of the loss of the first step."""
    largest: float
    """The largest of any step."""
    step: int
    """That step, from 1."""
    last: float
    """The last step's loss less the honest one."""
    relative: float
    """The largest |difference| in units of the honest loss of its step (or of FLOOR times the first one)."""
    outputs: float
    """The largest difference of the evaluated outputs after training, in units of their largest magnitude."""
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By metric: honest, and with the default."""

    @property
    def none(self) -> bool:
        """Whether it is no more than rounding."""
        return self.relative < NOTHING and self.outputs < NOTHING


@dataclass(frozen=True)
class Finding:
    """One default of one framework on this spec."""

    row: Row
    backend: str
    default: str
    says: str
    """What the spec says instead."""
    effect: Effect | None = None
    error: str = ""
    """Why there is no effect: the network cannot be built with it, or its training failed."""

    @property
    def status(self) -> str:
        """`measured`, `no effect` or `refused`."""
        if self.effect is None:
            return "refused"
        return "no effect" if self.effect.none else "measured"


@dataclass(frozen=True)
class Explanation:
    """What `harness explain` found."""

    spec: str
    steps: int
    seed: int
    precision: str
    findings: tuple[Finding, ...]
    """Ranked: refused ones first, then by their relative effect on the loss, then on outputs."""
    not_applicable: tuple[str, ...]
    """Rows without a place in this spec, or whose defaults are what it says."""
    unmeasured: Mapping[str, str]
    """Rows without a number, and why."""
    failures: Mapping[str, str]
    """Backends whose honest program did not train."""
    versions: Mapping[str, Mapping[str, str]]
    seconds: float

    @property
    def exit(self) -> int:
        """The exit status: 0, or 3 where a backend's own program failed."""
        return 3 if self.failures else 0

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "schema": SCHEMA, "harness": harness.__version__, "spec": self.spec, "steps": self.steps, "seed": self.seed,
            "precision": self.precision, "nothing": NOTHING, "floor": FLOOR,
            "findings": [
                {
                    "row": f.row.name, "section": f.row.section, "rule": f.row.rule, "backend": f.backend,
                    "default": f.default, "spec_says": f.says, "remedy": f.row.remedy, "status": f.status,
                    "effect": clean(asdict(f.effect)) if f.effect else None, "error": f.error,
                }
                for f in self.findings
            ],
            "not_applicable": list(self.not_applicable), "unmeasured": dict(self.unmeasured),
            "failures": dict(self.failures), "versions": {b: dict(v) for b, v in self.versions.items()},
            "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What all programs of an explanation share."""

    program: Program
    inputs: Inputs
    text: Source
    options: Options
    directory: Path


def explain(
    loaded: Spec,
    text: Source,
    options: Options,
    progress: Progress = lambda _total, _done, _what: None,
    rows: Iterable[Row] = ROWS,
) -> Explanation:
    """Measure every row that has a place in this spec. Raises SpecError, DataError or CallError before any training.

    `options.steps` left out: the spec's own, STEPS at most. `options.out` keeps the programs and their runs.
    """
    runs.check(options)
    proving([options.precision], "what a default does is measured")
    started = time.perf_counter()
    steps = options.steps or min(loaded.training.steps, STEPS)
    program = compile_spec(loaded, text, steps, options.seed)
    inputs = runs.prepared(program, text)
    rows = tuple(rows)
    honest = {b: draft(program, b, options.precision, options.threads) for b in options.backends}
    planted, refused = plan(honest, rows)
    busy = [backend for backend, some in planted.items() if some]
    total, done = len(busy) + sum(map(len, planted.values())), 0
    failures: dict[str, str] = {}
    versions: dict[str, Mapping[str, str]] = {}
    findings = list(refused)
    with _directory(options) as directory:
        job = Job(program, inputs, text, options, directory)
        for backend in busy:

            def tell(name: str, at: int, backend: str = backend, before: int = done) -> None:
                progress(total, before + at, f"{backend} {name}")

            drafts = {HONEST: honest[backend], **{row.name: each for row, each in planted[backend].items()}}
            trained = losses_of(backend, drafts, job, tell)
            done += len(drafts)
            if trained[HONEST].error:
                failures[backend] = trained[HONEST].error
                continue
            versions[backend] = trained[HONEST].versions
            for row in planted[backend]:
                found = _finding(row, backend, program)
                got = trained[row.name]
                if got.error:
                    findings.append(replace(found, error=got.error))
                else:
                    findings.append(replace(found, effect=effect(trained[HONEST], got)))
    applied = {f.row.name for f in findings} | {row.name for some in planted.values() for row in some}
    return Explanation(
        program.name, steps, program.seed, options.precision, tuple(sorted(findings, key=_rank)),
        tuple(row.name for row in rows if row.plants and row.name not in applied),
        {row.name: row.unmeasured for row in rows if not row.plants},
        failures, versions, time.perf_counter() - started,
    )  # fmt: skip


def plan(honest: Mapping[str, Draft], rows: Iterable[Row]) -> tuple[dict[str, dict[Row, Draft]], list[Finding]]:
    """The programs to train, by backend and row, and the defaults under which there is no such network."""
    planted: dict[str, dict[Row, Draft]] = {backend: {} for backend in honest}
    refused = []
    for row in rows:
        for backend, plant in row.plants.items():
            if backend not in honest:
                continue
            try:
                made = plant.make(honest[backend])
            except Refused as error:
                found = _finding(row, backend, honest[backend].program)
                refused.append(replace(found, error=str(error)))
                continue
            if differs(honest[backend], made):
                planted[backend][row] = made
    return planted, refused


def differs(honest: Draft, planted: Draft) -> bool:
    """Whether a plant found its place: another text, or other initial values."""
    if honest.source != planted.source:
        return True
    if honest.program == planted.program:
        return False
    before, after = initial.parameters(honest.program), initial.parameters(planted.program)
    return any(not np.array_equal(before[name], after[name]) for name in before)


def losses_of(
    backend: str, drafts: Mapping[str, Draft], job: Job, tell: Callable[[str, int], None]
) -> dict[str, Trained]:
    """Train each of a backend's programs from the same data, in a worker process of its own."""
    python = interpreters(job.options.pythons)[backend]
    found = {}
    for at, (name, each) in enumerate(drafts.items()):
        tell(name, at)
        directory = job.directory / f"{backend}-{name}"
        directory.mkdir()
        options = replace(
            job.options, backends=(backend,), steps=each.program.steps, record=False, plant=_giving(each.source)
        )
        runs.write_inputs(directory, each.program, job.inputs, job.text, options, None)
        if each.extra:
            arrays = initial.parameters(each.program) | {n: np.zeros(shape) for n, shape in each.extra.items()}
            write_arrays(directory / "inputs" / "parameters.safetensors", cast(arrays, options.precision))
        request = runs.write_request(directory, each.program, job.inputs, job.text, backend, options, None)
        result = train(directory, backend, request, python, options, lambda _backend, _event: None)
        if result.status == "failed":
            found[name] = Trained(error=_reason(result.error, result.log))
            continue
        if result.stopped_at is not None and name == HONEST:
            found[name] = Trained(error=f"its loss is no number at step {result.stopped_at + 1}")
            continue
        metrics = {}
        if result.status == "ok":
            metrics = judge.finish(each.program, job.inputs, directory, result).metrics
        outputs = {n: a for n, a in result.outputs().items() if n.startswith("final/")}
        found[name] = Trained(result.losses, outputs, metrics, result.versions)
    return found


def _giving(source: str) -> Callable[[str, Program], str]:
    return lambda _backend, _program: source


def effect(honest: Trained, planted: Trained) -> Effect:
    """How far a planted training went from the honest one.

    >>> effect(Trained({"net": [4.0, 2.0]}), Trained({"net": [4.0, 1.0]}))
    Effect(update='net', first=0.0, largest=1.0, step=2, last=-1.0, relative=0.5, outputs=0.0, metrics={})
    """
    worst: Effect | None = None
    for update, own in honest.losses.items():
        a, b = np.array(own), np.array(planted.losses[update])
        a = a[: len(b)]  # a planted training stops at the first loss that is no number
        gaps = np.abs(b - a)
        gaps[~np.isfinite(b)] = math.inf
        shares = gaps / np.maximum(np.abs(a), FLOOR * abs(a[0]) or 1.0)
        step = int(np.argmax(gaps))
        found = Effect(update, float(gaps[0]), float(gaps[step]), step + 1, float(b[-1] - a[-1]), float(shares.max()),
                       _apart(honest.outputs, planted.outputs))  # fmt: skip
        if worst is None or found.relative > worst.relative:
            worst = found
    if worst is None:
        raise ValueError("a training without an update has no loss")
    both = {n: (value, planted.metrics[n]) for n, value in honest.metrics.items() if n in planted.metrics}
    return replace(worst, metrics=both)


def _apart(honest: Mapping[str, Array], planted: Mapping[str, Array]) -> float:
    gaps = [0.0]
    for name, a in honest.items():
        if name not in planted:
            return math.inf
        b = planted[name]
        size = float(np.max(np.abs(a), initial=0.0)) or 1.0
        gap = float(np.max(np.abs(b - a), initial=0.0)) / size
        gaps.append(gap if math.isfinite(gap) else math.inf)
    return max(gaps)


def _finding(row: Row, backend: str, program: Program) -> Finding:
    says = row.says(program) if row.says else row.means.replace("`", "")
    return Finding(row, backend, row.plants[backend].default, says)


def _rank(finding: Finding) -> tuple[float, float]:
    if finding.effect is None:
        return -math.inf, 0.0
    return -finding.effect.relative, -finding.effect.outputs


def _reason(error: str, log: str) -> str:
    """The last line of a traceback, where there is one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if line.partition(":")[0].rpartition(".")[2].endswith(("Error", "Exception"))]
    return raised[-1] if raised else error


@contextmanager
def _directory(options: Options) -> Iterator[Path]:
    """Where the runs lie: `options.out`, kept, or a temporary directory."""
    out = options.out
    if out is None:
        with tempfile.TemporaryDirectory(prefix="harness-explain-") as name:
            yield Path(name).resolve()
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CallError(f"--out {out}: exists and is not an empty directory; a run never overwrites another")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallError(f"cannot make the directory {out}: {error.strerror}") from None
    yield out.resolve()
