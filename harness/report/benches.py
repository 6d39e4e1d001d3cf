"""Benchmarks as their JSON has them, and what tables and charts both ask of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.report.story import title
from harness.results import RunResult

Record = Mapping[str, Any]
SCALING = "scaling"
"""The section of charts that are of several benchmarks."""


@dataclass(frozen=True)
class Merged:
    """What was given."""

    benches: tuple[Record, ...] = ()
    """`harness bench --json`: one object a spec."""
    runs: tuple[RunResult, ...] = ()
    suites: tuple[Record, ...] = ()
    """Rows of pytest-benchmark's JSON files, with the machine that each is of."""


def lanes_of(bench: Record) -> list[Record]:
    """The lanes of a benchmark, the fastest first; a strategy that fills two lanes once, in the first of them."""
    found: dict[str, Record] = {}
    for lane in bench["lanes"]:
        found.setdefault(lane["name"], lane)
    return sorted(found.values(), key=lambda lane: float(lane["median"]))


def best_of(bench: Record) -> dict[str, Record]:
    """By backend, its fastest lane."""
    found: dict[str, Record] = {}
    for lane in lanes_of(bench):
        found.setdefault(lane["backend"], lane)
    return found


def done_first(bench: Record, steps: int) -> dict[str, Record]:
    """By backend, the lane that is the first to have trained so many steps."""
    found: dict[str, Record] = {}
    for lane in sorted(lanes_of(bench), key=lambda lane: start(lane) + steps * lane["median"]):
        found.setdefault(lane["backend"], lane)
    return found


def start(lane: Record) -> float:
    """Seconds until a lane's third call, the framework's import apart; NaN where they were not measured."""
    if not lane["alone"]:
        return math.nan
    return float(sum(seconds for phase, seconds in lane["alone"]["phases"].items() if phase != "import"))


def named(bench: Record) -> str:
    """The spec, what was set in it, and what is not the usual: a GPU, another precision than float32.

    >>> named({"spec": "mlp", "setting": {"data.batch": 8}, "device": "gpu", "precision": "tf32"})
    'mlp, data.batch=8, GPU, tf32'
    >>> named({"spec": "mlp", "setting": {}, "device": "cpu", "precision": "float32"})
    'mlp'
    """
    set_to = [f"{place}={value}" for place, value in bench["setting"].items()]
    unusual = [*(["GPU"] if bench["device"] == "gpu" else []), *([p] if (p := bench["precision"]) != "float32" else [])]
    return ", ".join([str(bench["spec"]), *set_to, *unusual])


@dataclass(frozen=True)
class Series:
    """The same spec with several values of one setting: median seconds of a step of each framework's fastest way."""

    spec: str
    place: str
    points: Mapping[str, tuple[tuple[float, float], ...]]
    """By backend: value, seconds."""


def series(merged: Merged) -> list[Series]:
    """Those that have at least two numbers."""
    found: dict[tuple[str, ...], dict[str, dict[float, float]]] = {}
    for bench in merged.benches:
        for place, value in bench["setting"].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                own = found.setdefault((bench["spec"], place, bench["precision"], bench["device"]), {})
                for backend, lane in best_of(bench).items():
                    own.setdefault(backend, {})[float(value)] = float(lane["median"])
    return [
        Series(spec, place, {b: tuple(sorted(points.items())) for b, points in own.items() if len(points) > 1})
        for (spec, place, *_), own in found.items()
        if any(len(points) > 1 for points in own.values())
    ]


def spoken(name: str) -> str:
    """`jax scan` as `JAX (scan)`."""
    backend, _, strategy = name.partition(" ")
    return f"{title(backend)} ({strategy})" if strategy else title(backend)
