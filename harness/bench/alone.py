"""A way of running a program in a process of its own: what it costs to start, in time and in memory, without any cache."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from harness.backend import Array
from harness.bench.target import Target, reach
from harness.check.live import worker
from harness.check.subject import Subject, open_program
from harness.environment import Interpreter
from harness.lanes import Strategy
from harness.programs import emitted

PHASES = ("import", "build", "first_call", "second_call")


@dataclass(frozen=True)
class Alone:
    """What one of them cost."""

    phases: Mapping[str, float]
    """Seconds by PHASES: the process's start and the framework's import; the program's import and its model; the first two
    calls, with all that they trace and compile (some compile in the second, when all that an optimizer keeps exists)."""
    memory: Mapping[str, int | None]
    """Bytes: `imported`, resident before the program is imported; `peak`, at most from then on; `device_peak`, of arrays on
    a GPU."""
    compilations: Mapping[str, int]
    """By what the framework counts, in the two calls and all before them."""
    later: Mapping[str, int]
    """The same, in the third call: nothing, if all is well."""
    target: Mapping[str, Any] = field(default_factory=dict)
    """Where one was given: `metric` (None: the loss) and `value`; whether it was `reached`, after how many `steps`, and in how
    many `seconds` of training."""
    short: Mapping[str, Any] = field(default_factory=dict)
    """Where a training's batches differ in size, of the first short one: its `step`, from 1, its `examples`, the `seconds` of
    its step, `again` those of another such step, and what was traced and compiled in the first, `compilations`."""

    @property
    def start(self) -> float:
        """Seconds until the third call, the import apart, which all ways of one framework share."""
        return sum(self.phases[phase] for phase in PHASES[1:])

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "phases": dict(self.phases), "memory": dict(self.memory), "compilations": dict(self.compilations),
            "compilations_later": dict(self.later), "short_batch": dict(self.short), "target": dict(self.target),
        }  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """What the process is given."""

    pythons: Mapping[str, Interpreter]
    core: int
    timeout: float
    settings: Mapping[str, str]
    device: str
    unit: int
    """Steps of a call."""
    batches: int
    target: Target | None = None


def alone(subject: Subject, strategy: Strategy, folder: Path, given: Conditions) -> Alone:
    """Start it, run three calls, and train to the target where there is one. Raises WorkerFailed."""
    source = emitted(subject.program, strategy.backend, subject.precision, strategy=strategy.name)
    with worker(
        strategy.backend, given.pythons[strategy.backend], folder, core=given.core, timeout=given.timeout,
        settings=given.settings, device=given.device,
    ) as live:  # fmt: skip
        before = live.ask("memory", reset=True)["resident"]
        began = time.perf_counter()
        open_program(subject, live, strategy.name, source, observe=False, strategy=strategy.name)
        built = time.perf_counter() - began

        def call(**other: int) -> float:
            stack = given.unit if strategy.many else None
            asked = {"steps": given.unit, "batches": given.batches, "stack": stack, **other}
            return float(live.ask("clock", name=strategy.name, **asked)["seconds"])

        def counted() -> dict[str, int]:
            return dict(live.ask("compilations", name=strategy.name)["compilations"])

        first, second = call(), call()
        compiled = counted()
        call()
        later = {name: count - compiled[name] for name, count in counted().items()}
        short: dict[str, Any] = {}
        with safe_open(subject.folder / "inputs" / "batches.safetensors", framework="numpy") as batches:
            order = batches.get_tensor("order")
        if (step := first_short(order)) is not None:
            # Whatever is traced or compiled for the size of a batch is so once more, in the middle of a training.
            before_it, took = counted(), call(steps=1, batches=1, at=step)
            more = {name: count - before_it[name] for name, count in counted().items()}
            examples = int(np.sum(order[step] >= 0))
            short = {"step": step + 1, "examples": examples, "seconds": took, "again": call(steps=1, batches=1, at=step), "compilations": more}  # fmt: skip
        memory = live.ask("memory")
        target: Mapping[str, Any] = {}
        if given.target is not None:
            target = reach(subject, live, strategy.name, given.target, given.unit if strategy.many else None)
        phases = dict(zip(PHASES, (live.seconds, built, first, second), strict=True))
        peaks = {"imported": before, "peak": memory["peak"], "device_peak": memory["device_peak"]}
        return Alone(phases, peaks, compiled, later, target, short)


def first_short(order: Array) -> int | None:
    """The first step, from 0, whose batch has fewer examples than the first one's; None where all are alike.

    >>> first_short(np.array([[4, 1], [0, 3], [2, -1], [1, 0]]))
    2
    """
    sizes = np.sum(order >= 0, axis=1)
    short = np.flatnonzero(sizes < sizes[0])
    return int(short[0]) if len(short) else None
