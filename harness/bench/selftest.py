"""The measurer measured: a backend against itself, against itself made slower, and what the measuring itself costs."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import harness
from harness import spec
from harness.bench.options import BenchOptions
from harness.bench.ratio import Ratio, ratio
from harness.bench.rounds import Contestant, rounds, warmed
from harness.bench.timing import ALLOCATOR, contestant
from harness.check.live import LiveWorker, allowed_cores
from harness.check.subject import Subject, open_program, prepare, workers
from harness.environment import interpreters
from harness.errors import CallError, WorkerFailed
from harness.resolve import compile_spec
from harness.runs import prepared

COMPARISONS = 100
ROUNDS = BenchOptions.rounds
"""Of one comparison: as many as `harness bench` takes where nothing else is said."""
SLOWER = 0.05
"""Of a step's time, spent busily in every step of the planted slowdown."""
BLOCK = 0.01
"""Seconds of a block, half of a benchmark's: a short comparison is one of two seconds or so."""
EQUAL, FOUND, COST = 0.95, 0.90, 0.01
"""The bars: A/A without a difference, planted slowdowns found, the harness's share of a step of 1 ms."""
SCHEMA = 1


@dataclass(frozen=True)
class SelfTest:
    """What the measuring is worth on this machine, as it is now."""

    backend: str
    spec: str
    step: float
    """Seconds."""
    equal: tuple[Ratio, ...]
    """A backend against itself."""
    slowed: tuple[Ratio, ...]
    """Against itself made SLOWER."""
    overhead: float
    """Seconds a step that the harness adds to the framework's."""
    load: float
    """Of the machine before it began."""

    @property
    def no_difference(self) -> float:
        """The share of comparisons with itself that came out as no difference."""
        return sum(not r.different for r in self.equal) / max(len(self.equal), 1)

    @property
    def found(self) -> float:
        """The share of planted slowdowns that came out as slower."""
        return sum(r.verdict == "slower" for r in self.slowed) / max(len(self.slowed), 1)

    @property
    def cost(self) -> float:
        """The overhead as a share of a step of one millisecond."""
        return self.overhead / 1e-3

    @property
    def exit(self) -> int:
        """0 where all three bars are met, else 1."""
        return int(not (self.no_difference >= EQUAL and self.found >= FOUND and self.cost <= COST))

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "schema": SCHEMA, "harness": harness.__version__, "backend": self.backend, "spec": self.spec,
            "step_seconds": self.step, "comparisons": len(self.equal), "rounds": ROUNDS, "no_difference": self.no_difference,
            "slower": SLOWER, "found": self.found, "overhead_seconds": self.overhead, "load": self.load, "exit": self.exit,
            "equal": [r.to_json() for r in self.equal], "slowed": [r.to_json() for r in self.slowed],
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """The three results in plain English."""
        same = sum(not r.different for r in self.equal)
        found = sum(r.verdict == "slower" for r in self.slowed)
        return [
            f"A/A: {self.backend} against itself: no difference in {same} of {len(self.equal)} comparisons, {100 * EQUAL:g} % wanted.",
            f"Planted slowdown: {100 * SLOWER:g} % of a step, busily waited: found in {found} of {len(self.slowed)}, {100 * FOUND:g} % wanted.",
            f"Overhead: {1e6 * self.overhead:.2g} µs a step, {100 * self.cost:.2g} % of a step of 1 ms, at most {100 * COST:g} % wanted.",
            f"A step of {self.spec} takes {1e3 * self.step:.3g} ms; {ROUNDS} rounds a comparison; load before it began {self.load:.1f}.",
        ]


def self_test(
    path: str, options: BenchOptions, comparisons: int = COMPARISONS,
    listen: Callable[[str, Mapping[str, Any]], None] = lambda _name, _event: None,
) -> SelfTest:  # fmt: skip
    """Measure the measuring with one backend's step. Raises SpecError, CallError, WorkerFailed."""
    backend, *more = options.backends
    if more:
        raise CallError(f"--self-test is of one backend: --backends {backend}")
    load = psutil.getloadavg()[0]
    loaded, text = spec.load(spec.find(path))
    program = compile_spec(loaded, text)
    inputs = prepared(program, text)
    core = allowed_cores()[-1] if options.core is None else options.core
    folder = Path(tempfile.mkdtemp(prefix="harness-bench-"))
    try:
        with workers(
            (backend,),
            (options.precision,),
            interpreters(options.pythons),
            folder,
            options.timeout,
            core=core if options.device == "cpu" else None,
            settings=ALLOCATOR,
            device=options.device,
        ) as (live, failures):
            if failures:
                raise WorkerFailed(failures[backend])
            own = live[options.precision]
            subject = prepare(program, text, inputs, options.precision, folder / "subject", own)
            subject.device = options.device
            return _measured(subject, own[backend], comparisons, load, listen)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(
    subject: Subject, live: LiveWorker, comparisons: int, load: float, listen: Callable[[str, Mapping[str, Any]], None]
) -> SelfTest:
    open_program(subject, live, "timed", subject.sources[live.name, False], observe=False)
    first = contestant(subject, live, "A")
    warmed(first, block=BLOCK)
    step = float(np.median([first.block().seconds for _ in range(9)]))
    name = subject.program.name
    listen(name, {"phase": "A/A", "total": 2 * comparisons})
    equal, slowed = [], []
    for number in range(comparisons):
        equal.append(_compared(subject, live, first.steps, 0.0, number))
        slowed.append(_compared(subject, live, first.steps, SLOWER * step, comparisons + number))
        listen(name, {"step": 2 * (number + 1), "losses": {}})
    overhead = float(live.ask("overhead", steps=200_000)["seconds"])
    return SelfTest(live.name, name, step, tuple(equal), tuple(slowed), overhead, load)


def _compared(subject: Subject, live: LiveWorker, steps: int, slower: float, seed: int) -> Ratio:
    """One comparison of the step with itself, the second made slower."""
    pair: list[Contestant] = [contestant(subject, live, "A"), contestant(subject, live, "B", slower=slower)]
    for one in pair:
        one.steps = steps
    rounds(pair, most=ROUNDS, seed=seed)
    return ratio(pair[1].seconds, pair[0].seconds, seed)
