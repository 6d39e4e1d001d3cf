"""What a check found: a record a rung, and the verdict; as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness.compare import Comparison
from harness.results import clean

if TYPE_CHECKING:
    from harness.check.diagnose import Diagnosis

SCHEMA = 1
RUNGS = ("forward", "gradients", "optimizer", "trajectory", "twins", "relay", "seeds")
"""In order: the rung of number n is RUNGS[n - 1]."""
USUAL = RUNGS[:6]
"""What `harness check` runs unless told otherwise: seeds take minutes."""


@dataclass(frozen=True)
class Rung:
    """One rung in one precision."""

    name: str
    precision: str
    status: str
    """`passed`, `failed`, `void` (it would pass whatever the network did) or `skipped`; only the first is a pass."""
    sentence: str
    """What was found, in one line."""
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def worst(self) -> Comparison | None:
        """The comparison that is furthest from what is allowed."""
        judged = [c for c in self.comparisons if c.worst is not None]
        return max(judged, key=lambda c: c.worst.ratio if c.worst else 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object of a rung."""
        return {
            "name": self.name, "number": RUNGS.index(self.name) + 1, "precision": self.precision,
            "status": self.status, "sentence": self.sentence, "notes": list(self.notes),
            "comparisons": [clean(c.record()) for c in self.comparisons], "details": clean(self.details),
            "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class CheckResult:
    """A spec's climb."""

    spec: str
    directory: Path
    steps: int
    seed: int
    backends: tuple[str, ...]
    rungs: tuple[Rung, ...]
    failures: dict[str, str]
    """Backends that could not be asked to the end, and why."""
    zero_gradient: dict[str, str]
    """Parameters whose true gradient is zero, and why: judged apart."""
    seconds: float = 0.0
    diagnoses: Mapping[str, "Diagnosis | None"] = field(default_factory=dict)
    """By precision in which a rung failed: where and why programs part; None where no single step shows it."""

    @property
    def verdict(self) -> str:
        """`passed`; else the worst there is of `failed` (a rung, or a backend), `void` and `skipped`."""
        found = {rung.status for rung in self.rungs}
        if self.failures or "failed" in found or not self.rungs:
            return "failed"
        return next((status for status in ("void", "skipped") if status in found), "passed")

    @property
    def exit(self) -> int:
        """The exit status: 0 every rung passed, 1 one did not, 3 a backend failed."""
        return 3 if self.failures else 0 if self.verdict == "passed" else 1

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "schema": SCHEMA, "harness": harness.__version__, "spec": self.spec, "verdict": self.verdict,
            "exit": self.exit, "directory": str(self.directory), "steps": self.steps, "seed": self.seed,
            "backends": list(self.backends), "rungs": [rung.to_json() for rung in self.rungs],
            "failures": self.failures, "zero_gradient": self.zero_gradient, "seconds": self.seconds,
            "diagnoses": {p: None if d is None else clean(d.to_json()) for p, d in self.diagnoses.items()},
        }  # fmt: skip


def judged(
    name: str, precision: str, comparisons: Sequence[Comparison], *, void: Sequence[str] = (),
    notes: Sequence[str] = (), details: dict[str, Any] | None = None,
) -> Rung:  # fmt: skip
    """A rung from its comparisons: void where something in it cannot move, failed where something differs."""
    parted = [c for c in comparisons if not c.same]
    worst = max((c for c in comparisons if c.worst), key=lambda c: c.worst.ratio if c.worst else 0.0, default=None)
    if parted:
        status, sentence = "failed", str(max(parted, key=lambda c: c.worst.ratio if c.worst else float("inf")))
    elif void or not comparisons:
        status, sentence = "void", f"{'; '.join(void[:3]) or 'nothing was compared'}: it would pass whatever they did"
    else:
        tensors = sum(c.compared for c in comparisons)
        share = f", at most {worst.worst.ratio:.2g} of what is allowed" if worst and worst.worst else ""
        sentence, status = f"{tensors:,} tensors compared{share}", "passed"
    return Rung(name, precision, status, sentence, tuple(comparisons), tuple(notes), details or {})
