"""What a run found: one record a backend, the comparisons, the verdict; as JSON, and as a notebook shows it.

`SCHEMA` counts changes that break a reader of the JSON. Additions do not.
"""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import harness
from harness.errors import CallError
from harness.reading import read_json, run_record

SCHEMA = 1
Array = np.ndarray[Any, np.dtype[Any]]

EXITS = {"same": 0, "differs": 1, "failed": 3}


@dataclass(frozen=True)
class BackendResult:
    """One backend's training, or what became of it."""

    backend: str
    status: str
    """`ok`, `diverged` (a loss that is no number) or `failed`."""
    error: str = ""
    log: str = ""
    losses: dict[str, list[float]] = field(default_factory=dict)
    """By update, of every step of this run."""
    metrics: dict[str, float] = field(default_factory=dict)
    predictions: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: import, build, forward, compile, first_step, steady, data, checks, evaluate, and in all, wall."""
    step_seconds: list[float] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    recorded: list[int] = field(default_factory=list)
    """The steps (from 0) whose state lies in `trajectory/`."""
    stopped_at: int | None = None
    folder: Path | None = field(default=None, compare=False)
    echo: dict[str, list[float]] = field(default_factory=dict, compare=False)
    """Of a twin: the first losses of its training, repeated in the session that then trained the twin."""

    @classmethod
    def from_worker(cls, backend: str, result: Mapping[str, Any], folder: Path) -> "BackendResult":
        """A worker's own result.json."""
        kept = ("losses", "seconds", "step_seconds", "digests", "versions", "environment", "recorded", "stopped_at")
        status = "ok" if result["stopped_at"] is None else "diverged"
        return cls(backend, status, folder=folder, echo=result.get("echo", {}), **{name: result[name] for name in kept})

    @property
    def steps_per_second(self) -> float | None:
        """The steady rate: the reciprocal of the median step, the first one left out."""
        steady = self.step_seconds[1:]
        median = float(np.median(steady)) if steady else 0.0
        return 1 / median if median else None

    def outputs(self) -> dict[str, Array]:
        """What the worker wrote: `initial/...`, `final/...`, `state/...`, `text`."""
        return load_file(self.folder / "outputs.safetensors") if self.folder else {}

    def state(self, step: int) -> dict[str, Array]:
        """Parameters and statistics after a step, counted from 0."""
        return load_file(self.folder / "trajectory" / f"state-{step + 1:08}.safetensors") if self.folder else {}

    @property
    def gradient_steps(self) -> list[int]:
        """The steps, counted from 0, whose gradients are recorded."""
        files = (self.folder / "trajectory").glob("gradients-*.safetensors") if self.folder else []
        return sorted(int(file.stem.rpartition("-")[2]) - 1 for file in files)

    def gradients(self, step: int) -> dict[str, Array]:
        """The gradients of a step, counted from 0, as `update/parameter`; none where they are not recorded."""
        if self.folder is None:
            return {}
        file = self.folder / "trajectory" / f"gradients-{step + 1:08}.safetensors"
        return load_file(file) if file.exists() else {}

    def to_json(self) -> dict[str, Any]:
        """The record without its arrays."""
        names = ("status", "error", "log", "losses", "metrics", "predictions", "text", "seconds", "digests",
                 "versions", "environment", "recorded", "stopped_at", "step_seconds")  # fmt: skip
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class RunResult:
    """A whole run."""

    spec: str
    about: str
    directory: Path
    verdict: str
    """`same`, `differs` or `failed`."""
    steps: int
    """Done at its end, those before its checkpoint included."""
    seed: int
    precision: str
    threads: int
    device: str
    backends: dict[str, BackendResult]
    comparisons: list[dict[str, Any]]
    series: dict[str, dict[str, Any]]
    """By pair `a~b`: `loss` (|difference| by update and step), `state` ([step, worst drift])."""
    notes: list[str]
    zero_gradient: dict[str, str]
    """Parameters that are judged apart, and why."""
    drift: dict[str, float]
    """How far those drifted apart, by parameter."""
    evidence: dict[str, Any] | None = None
    better: dict[str, str] = field(default_factory=dict)
    """By metric: `higher` or `lower`."""
    tolerances: dict[str, dict[str, float]] = field(default_factory=dict)
    """What was allowed, by kind of value: `relative`, and the `floor` of the magnitude that it is relative to."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Operating system, processor, cores, memory."""
    twins: dict[str, Any] | None = None
    """Where backends parted: `count` of twins, `times` the worst of them that they part at most, what is `allowed`, the `worst` comparison."""
    reasons: list[str] = field(default_factory=list)
    """What says that they differ besides a comparison: digests, texts, products that are not rounded, float64."""
    start: int = 0
    """Steps that were done before: a run from a checkpoint goes on from there."""
    started: str = ""
    """When, UTC, ISO 8601."""

    @property
    def exit(self) -> int:
        """The exit status: 0 the same, 1 they differ, 3 a backend failed."""
        return EXITS[self.verdict]

    def with_evidence(self, exact: "RunResult") -> "RunResult":
        """This run in less than float64, judged in the light of the same run in float64."""
        steps = exact.steps - exact.start
        evidence = {
            "verdict": exact.verdict, "directory": exact.directory.name, "comparisons": exact.comparisons, "steps": steps,
            "twins": exact.twins,
        }  # fmt: skip
        return self._settled(exact, evidence, "step" if steps == 1 else f"{steps} steps")

    def _settled(self, exact: "RunResult", evidence: dict[str, Any], steps: str) -> "RunResult":
        def with_note(note: str, verdict: str) -> "RunResult":
            return replace(self, evidence=evidence, notes=[*self.notes, note], verdict=verdict)

        parted = any(not c["same"] for c in exact.comparisons)
        if exact.verdict == "failed" and not parted:
            why = next(
                (f"{n}: {r.error}" for n, r in exact.backends.items() if r.status != "ok"), "; ".join(exact.notes)
            )
            return with_note(
                f"The same programs could not be held against each other in float64 ({why}).", self.verdict
            )
        if exact.verdict != "same":
            note = f"In float64 the same programs do not agree over the first {steps} either: this is not rounding."
            found = with_note(note, "failed" if self.verdict == "failed" else "differs")
            return replace(found, reasons=[*self.reasons, note])
        worst = max(
            (c["worst"]["difference"] for c in exact.comparisons if c["what"] == "loss" and c["worst"]), default=0.0
        )
        agree = f"the same programs in float64 agree over the first {steps} (losses within {worst:.1e})"
        if all(c["same"] for c in self.comparisons):
            return with_note(f"In {self.precision} {self._parting()}; {agree}.", self.verdict)
        if self.twins is None:
            note = f"In {self.precision} they part, and no twin says whether rounding explains it; {agree}."
        else:
            note = f"In {self.precision} they part further than rounding explains, though {agree}: look for what only {self.precision} does."
        return with_note(note, self.verdict)

    def _parting(self) -> str:
        """Which losses part first, and at which step."""
        allowed = self.tolerances.get("loss", {"relative": 0.0, "floor": 0.0})
        first: tuple[int, str, str] | None = None
        for pair, series in self.series.items():
            for update, gaps in series["loss"].items():
                losses = self.backends[pair.partition("~")[0]].losses[update]
                for step, (gap, loss) in enumerate(zip(gaps, losses, strict=False), start=self.start + 1):
                    if gap > allowed["relative"] * max(abs(loss), allowed["floor"]):
                        first = min(first or (step, pair, update), (step, pair, update))
                        break
        if first is None:
            return "parameters or gradients part by more than their tolerance"
        step, pair, update = first
        return f"the losses of '{update}' part by more than their tolerance from step {step} on ({pair.replace('~', ' and ')} first)"

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "schema": SCHEMA, "harness": harness.__version__, "spec": self.spec, "about": self.about,
            "verdict": self.verdict, "exit": self.exit, "directory": str(self.directory),
            "steps": self.steps, "seed": self.seed, "precision": self.precision, "threads": self.threads,
            "device": self.device,
            "backends": {name: clean(result.to_json()) for name, result in self.backends.items()},
            "comparisons": clean(self.comparisons), "series": clean(self.series), "notes": self.notes,
            "zero_gradient": self.zero_gradient, "drift": clean(self.drift), "evidence": clean(self.evidence),
            "better": self.better, "tolerances": self.tolerances, "machine": self.machine, "twins": clean(self.twins),
            "reasons": self.reasons, "start": self.start, "started": self.started,
        }  # fmt: skip

    @classmethod
    def read(cls, directory: Path) -> "RunResult":
        """A run from its directory alone. Raises CallError where it is not a finished run."""
        file = directory / "result.json"
        if directory.exists() and not directory.is_dir():
            raise CallError(
                f"run directory {directory}: is a file; a run directory is the folder that `harness run` made"
            )
        try:
            data = read_json(file)
        except FileNotFoundError:
            what = "has no result.json: it did not finish" if directory.is_dir() else "does not exist"
            raise CallError(f"run directory {directory} {what}") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            have = data.get("schema") if isinstance(data, dict) else None
            raise CallError(f"{file} has schema {have!r:.60}, this version reads {SCHEMA}")
        record: Mapping[str, Any] = run_record(file, data)
        kept = BackendResult.__dataclass_fields__.keys() - {"backend", "folder", "echo"}
        backends = {
            name: BackendResult(
                name,
                folder=directory / name,
                **{n: numbers(own[n]) if n == "predictions" else own[n] for n in kept & own.keys()},
            )
            for name, own in record["backends"].items()
        }
        fields = cls.__dataclass_fields__.keys() - {"directory", "backends"}
        return cls(directory=directory, backends=backends, **{n: record[n] for n in fields & record.keys()})

    def _repr_html_(self) -> str:
        """As a notebook shows it: the verdict and a row a backend."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(r.status)}</td><td>{_last(r)}</td>"
            + "".join(f"<td>{value:.4g}</td>" for value in r.metrics.values())
            + f"<td>{f'{r.steps_per_second:,.0f}' if r.steps_per_second else ''}</td></tr>"
            for name, r in self.backends.items()
        )
        metrics = next((r.metrics for r in self.backends.values() if r.metrics), {})
        head = "".join(
            f"<th>{html.escape(name)}</th>" for name in ("backend", "status", "last loss", *metrics, "steps/s")
        )
        title = f"{html.escape(self.spec)}: <b>{self.verdict}</b> ({self.steps} steps, {self.precision})"
        return f"<div><p>{title}</p><table><tr>{head}</tr>{rows}</table></div>"


def _last(result: BackendResult) -> str:
    return ", ".join(f"{losses[-1]:.6g}" for losses in result.losses.values() if losses)


def clean(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A value as strict JSON: numbers that are none become their names, `NaN`, `Infinity`, `-Infinity`."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def numbers(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The other way round: `NaN`, `Infinity` and `-Infinity` as the numbers that they name."""
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return value
