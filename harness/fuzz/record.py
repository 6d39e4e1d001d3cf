"""What a fuzzing says: an outcome a spec, and the sum."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import harness

SCHEMA = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""
FOUND = ("differs", "failed")
"""What a planted fault is found by."""
WITHOUT_EFFECT = "without effect"
"""A note of a planted fault that was not found: in this spec it changes nothing."""


@dataclass(frozen=True)
class Outcome:
    """What became of one random spec."""

    number: int
    status: str
    """`same`, `rounding`, `differs`, or `failed`."""
    said: str = ""
    ratio: float = 0.0
    notes: tuple[str, ...] = ()
    """`diverged`, `still`, WITHOUT_EFFECT, or a sentence on what could not be found out."""
    failures: dict[str, str] = field(default_factory=dict)
    """By backend, or `harness` where no worker was asked: the last line of what it said."""
    strategies: dict[str, str] = field(default_factory=dict)
    """Backends whose program was not the plain one."""
    fault: str = ""
    planted: str = ""
    """The fault that was planted, and the backend."""
    where: str = ""
    """In which of its places: `first`, `another` or `every`."""
    why: str = ""
    """What the catalogue says of a fault that is hard to see."""
    kept: tuple[str, ...] = ()
    """Files that were written."""
    seconds: float = 0.0

    @property
    def found(self) -> bool:
        """Whether anything was to be seen."""
        return self.status in FOUND

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        ratio = self.ratio if self.ratio < float("inf") else None
        return {
            "number": self.number, "status": self.status, "said": self.said, "ratio": ratio, "notes": list(self.notes),
            "failures": self.failures, "strategies": self.strategies, "fault": self.fault, "planted": self.planted, "where": self.where,
            "why": self.why, "kept": list(self.kept), "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class FuzzResult:
    """A whole fuzzing."""

    seed: int
    precision: str
    backends: tuple[str, ...]
    plant: bool
    outcomes: tuple[Outcome, ...]
    failures: dict[str, str] = field(default_factory=dict)
    """Backends that could not be started."""
    seconds: float = 0.0
    interrupted: bool = False
    """Whether it was ended before it was done."""

    @property
    def counts(self) -> Counter[str]:
        """How many specs ended how."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def missed(self) -> tuple[Outcome, ...]:
        """Planted faults that were not found though they change something; where the harness itself failed, nothing was."""
        return tuple(o for o in self.tried if not o.found or "harness" in o.failures)

    @property
    def tried(self) -> tuple[Outcome, ...]:
        """Those in which a fault was planted that changes something."""
        return tuple(o for o in self.outcomes if self.plant and o.fault and WITHOUT_EFFECT not in o.notes)

    @property
    def exit(self) -> int:
        """0 nothing was found (planted: every fault was, and there was one), 1 trainings differ (a fault was missed), 3 a backend or the harness failed, 130 interrupted."""
        if self.interrupted:
            return INTERRUPTED
        if self.failures or not self.outcomes:
            return 3
        if any("harness" in outcome.failures for outcome in self.outcomes):
            return 3
        if self.plant:
            return int(bool(self.missed) or not self.tried)
        return 3 if self.counts["failed"] else int(bool(self.counts["differs"]))

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "schema": SCHEMA, "harness": harness.__version__, "seed": self.seed, "precision": self.precision,
            "backends": list(self.backends), "plant": self.plant, "exit": self.exit, "counts": dict(self.counts),
            "outcomes": [outcome.to_json() for outcome in self.outcomes], "failures": self.failures,
            "seconds": self.seconds, "interrupted": self.interrupted,
        }  # fmt: skip
