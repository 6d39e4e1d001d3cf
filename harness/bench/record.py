"""What a benchmark found, as JSON: step times, ratios with intervals, the fairness ledger."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import harness
from harness.bench.alone import Alone
from harness.bench.inference import Evaluation, Inference
from harness.bench.peers import Peer
from harness.bench.ratio import Ratio
from harness.bench.rounds import Contestant
from harness.results import clean

SCHEMA = 2


@dataclass(frozen=True)
class Lane:
    """One way of running one backend's program of one spec."""

    spec: str
    backend: str
    lane: str
    strategy: str
    """A name of harness.lanes."""
    contestant: Contestant
    ratio: Ratio | None
    """Its step's time over the fastest one's; None of the fastest itself."""
    alone: Alone | None
    """What it cost in a process of its own; None where that was not measured."""
    trial: Mapping[str, float] = field(default_factory=dict)
    """Of the lane `best`: the median step of each strategy that was tried."""
    share: float | None = None
    """Of the peak: the matrix products of its step a second, over those of the fastest framework's plain product."""
    lines: int = 0
    """Of its program, empty ones left out."""

    @property
    def name(self) -> str:
        """As ratios name it."""
        return self.contestant.name

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "spec": self.spec, "backend": self.backend, "lane": self.lane, "strategy": self.strategy, "trial": dict(self.trial), "share_of_peak": self.share,
            "lines": self.lines, "alone": None if self.alone is None else self.alone.to_json(),
            "against_fastest": None if self.ratio is None else self.ratio.to_json(), **self.contestant.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class Roof:
    """What the device did, by the fastest framework's plain product and copy, in the same rounds."""

    flops: float
    """Floating-point operations a second."""
    bandwidth: float
    """Bytes a second, read and written."""

    def to_json(self) -> dict[str, float]:
        """The documented JSON object."""
        return {"flops_a_second": self.flops, "bytes_a_second": self.bandwidth}


@dataclass(frozen=True)
class Ledger:
    """How each backend was set, entry by entry; what differs between them is highlighted."""

    entries: Mapping[str, Mapping[str, Any]]
    """By entry: by backend, its value; by process, where a backend's differ."""

    @property
    def differing(self) -> list[str]:
        """Entries that are not the same for all."""
        several = [n for n, own in self.entries.items() if any(isinstance(v, Mapping) for v in own.values())]
        return [n for n, own in self.entries.items() if n in several or len({repr(v) for v in own.values()}) > 1]

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {"entries": {n: dict(v) for n, v in self.entries.items()}, "differing": self.differing}


@dataclass(frozen=True)
class BenchResult:
    """One spec's benchmark."""

    spec: str
    precision: str
    batch: int
    verdict: str
    """`same`: every program passed the checks; `differs`: some part from the others, and have no times; `void`: the checks
    would pass whatever the programs did, `failed`: a backend did, or nothing could be timed."""
    lanes: tuple[Lane, ...]
    ledger: Ledger
    machine: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    flops: int = 0
    """Floating-point operations in the matrix products of a step."""
    peers: tuple[Peer, ...] = ()
    """Hand-written programs that were timed beside."""
    device: str = "cpu"
    inference: tuple[Inference, ...] = ()
    evaluation: tuple[Evaluation, ...] = ()
    roof: Roof | None = None
    traffic: int = 0
    """Bytes that a step reads and writes, each array once for every use: see harness.flops."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """What was set in the spec, place -> value, where it was varied."""

    @property
    def title(self) -> str:
        """The spec's name and what was set in it."""
        return ", ".join([self.spec, *(f"{place}={value}" for place, value in self.setting.items())])

    @property
    def exit(self) -> int:
        """0 measured, 1 the programs do not train identically or nothing shows it, 3 a backend failed."""
        return {"same": 0, "differs": 1, "void": 1, "failed": 3}[self.verdict]

    def break_even(self) -> dict[str, int | None]:
        """By contestant: after how many steps what it took longer to start than its backend's default lane is paid for.

        0 where it starts no later; None where it never is, there is no default lane, or no start was measured.
        """
        found: dict[str, int | None] = {}
        for lane in self.lanes:
            base = next((own for own in self.lanes if own.lane == "default" and own.backend == lane.backend), None)
            found[lane.name] = None if base is None else steps_to_even(base, lane)
        return found

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        found: dict[str, Any] = clean({
            "schema": SCHEMA, "harness": harness.__version__, "spec": self.spec, "precision": self.precision,
            "batch": self.batch, "verdict": self.verdict, "exit": self.exit, "lanes": [lane.to_json() for lane in self.lanes],
            "ledger": self.ledger.to_json(), "machine": dict(self.machine), "notes": list(self.notes),
            "failures": dict(self.failures), "seconds": self.seconds, "flops": self.flops, "traffic": self.traffic,
            "peers": [peer.to_json() for peer in self.peers], "break_even": self.break_even(), "device": self.device,
            "inference": [own.to_json() for own in self.inference], "evaluation": [own.to_json() for own in self.evaluation],
            "roof": None if self.roof is None else self.roof.to_json(), "setting": dict(self.setting),
        })  # fmt: skip
        return found


def steps_to_even(base: Lane, lane: Lane) -> int | None:
    """After how many steps a lane is ahead of another that started earlier; None: never, or it is not known."""
    if base.alone is None or lane.alone is None:
        return None
    later = lane.alone.start - base.alone.start
    gain = float(np.median(base.contestant.seconds) - np.median(lane.contestant.seconds))
    if later <= 0:
        return 0
    return math.ceil(later / gain) if gain > 0 else None
