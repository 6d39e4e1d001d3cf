"""Rounds: every contestant is timed once in each, in an order drawn anew, until the ratios are known well enough."""

import math
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from typing import Any

import numpy as np

from harness.bench.ratio import LEAST, RESAMPLES, Ratio, ratio, ratio_of_processes, settled
from harness.errors import WorkerFailed

BLOCK = 0.02
"""Seconds that a block of steps lasts at least: far above the clock's resolution, and long enough to bring what the others
have driven from the caches back unnoticed. No longer: on a shared machine longer blocks were no steadier (a log-ratio's
standard deviation was 0.10 to 0.13 in blocks of 5 to 40 ms), so that more rounds tell more."""
MOST = 1_000_000
"""Steps in a block, at most."""


class Failed(WorkerFailed):
    """A contestant whose worker failed while it was timed."""

    def __init__(self, name: str, why: WorkerFailed) -> None:
        super().__init__(str(why))
        self.name = name


@dataclass(frozen=True)
class Block:
    """A contestant's steps in one round."""

    seconds: float
    """A step, by the wall clock."""
    cpu: float
    """A step, of the processor, all threads together."""


@dataclass
class Contestant:
    """Something whose steps are timed: `run(steps)` says how long they took, in wall and processor seconds."""

    name: str
    run: Callable[[int], tuple[float, float]]
    unit: int = 1
    """Steps that cannot be parted: a call's."""
    steps: int = 0
    """In a block, a multiple of the unit."""
    block_seconds: float = BLOCK
    """How long a block lasts at least."""
    warm_up: list[float] = field(default_factory=list)
    """Seconds a step of the blocks before the first round."""
    warm: int | None = None
    """After how many of them it was warm; None where it never was."""
    blocks: list[Block] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    """How many of the blocks are of each process, one after the other; none: all are of one."""
    joules: dict[str, float] = field(default_factory=dict)
    """A step's, by meter, in a block of its own; see harness.bench.energy."""

    def __post_init__(self) -> None:
        self.steps = self.steps or self.unit

    def fill(self, steps: float) -> None:
        """Set the steps of a block, rounded up to whole calls."""
        self.steps = min(max(MOST // self.unit, 1), math.ceil(steps / self.unit)) * self.unit

    def block(self) -> Block:
        """Time one block. Raises Failed."""
        try:
            wall, cpu = self.run(self.steps)
        except WorkerFailed as error:
            raise Failed(self.name, error) from error
        return Block(wall / self.steps, cpu / self.steps)

    @property
    def seconds(self) -> list[float]:
        """A step's, by round."""
        return [block.seconds for block in self.blocks]

    @property
    def apart(self) -> list[list[float]]:
        """The same, by process."""
        ends = list(accumulate(self.processes or [len(self.blocks)]))
        return [self.seconds[end - count : end] for count, end in zip(self.processes or ends, ends, strict=True)]

    def follow(self, earlier: "Contestant | None") -> None:
        """Have the same contestant's blocks of an earlier process, or none, before those of this one, whose warm-up is told.

        Warm it was only where it was in all of them.
        """
        self.processes = [*(earlier.processes if earlier else ()), len(self.blocks)]
        if earlier:
            self.blocks[:0] = earlier.blocks
            self.warm = None if earlier.warm is None else self.warm

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        times = self.seconds
        low, middle, high = np.quantile(times, (0.25, 0.5, 0.75)) if times else (None, None, None)
        return {
            "name": self.name, "steps_a_block": self.steps, "warm_up": self.warm_up, "warm_after": self.warm,
            "seconds": times, "processes": self.processes or [len(times)], "cpu_seconds": [block.cpu for block in self.blocks], "median": middle,
            "quartiles": [low, high], "best": min(times, default=None), "joules": self.joules,
        }  # fmt: skip


def first(contestant: Contestant) -> None:
    """Its first call, with all that is compiled in it."""
    wall, _ = contestant.run(contestant.steps)
    contestant.warm_up.append(wall / contestant.steps)


def warmed(contestant: Contestant, block: float | None = None, budget: float = 20.0) -> None:
    """Find how many steps make a block, and run blocks until they take the same time."""
    until = time.perf_counter() + budget
    block = block or contestant.block_seconds
    while True:
        wall, _ = contestant.run(contestant.steps)
        contestant.warm_up.append(wall / contestant.steps)
        if wall >= block or contestant.steps + contestant.unit > MOST or time.perf_counter() > until:
            break
        # Towards the wanted time, tenfold at most: the first calls are no measure of the later ones.
        factor = min(10.0, 1.2 * block / max(wall, 1e-9))
        contestant.fill(max(contestant.steps + 1, int(contestant.steps * factor)))
    while contestant.warm is None and time.perf_counter() < until:
        contestant.warm_up.append(contestant.block().seconds)
        contestant.warm = settled(contestant.warm_up)
        lasts = contestant.warm_up[-1] * contestant.steps
        if contestant.warm is not None and lasts < 0.8 * block and contestant.steps + contestant.unit <= MOST:
            # It was counted while it was cold: more steps make a block now.
            contestant.fill(contestant.steps * 1.2 * block / max(lasts, 1e-9))
            contestant.warm = None


def rounds(
    contestants: Sequence[Contestant], *, along: Sequence[Contestant] = (), pairs: Sequence[tuple[Contestant, Contestant]] = (),
    most: int, width: float = 0.0, seed: int = 0, budget: float = float("inf"),
    listen: Callable[[int], None] = lambda _done: None,
) -> None:  # fmt: skip
    """Time all of them `most` times, or until every ratio's interval is narrower than `width`, or time is up.

    `along`: what is timed in the same rounds, and is no contestant. `pairs`: of whom the ratio is wanted beside those of all
    contestants.
    """
    rng = np.random.default_rng(seed)
    everybody, wanted = [*contestants, *along], [*combinations(contestants, 2), *pairs]
    until = time.perf_counter() + budget
    for number in range(most):
        for i in rng.permutation(len(everybody)):
            everybody[i].blocks.append(everybody[i].block())
        listen(number + 1)
        enough = number + 1 >= LEAST
        # Looked at rarely: who looks after every round stops more often where the interval is narrow by chance.
        look = (number + 1) % LEAST == 0
        if look and width and wanted and all(narrow(a, b, width) for a, b in wanted):
            break
        if enough and time.perf_counter() > until:
            break


def survived(running: MutableMapping[str, Contestant], *, most: int, budget: float = float("inf")) -> dict[str, Failed]:
    """Rounds of all who run, by name. Who fails in one is taken out and returned; the others' are taken again."""
    had = {own: len(one.blocks) for own, one in running.items()}
    failed: dict[str, Failed] = {}
    while running:
        try:
            rounds(list(running.values()), most=most, budget=budget)
            break
        except Failed as error:
            failed[error.name] = error
            del running[error.name]
            for own, one in running.items():
                del one.blocks[had[own] :]
    return failed


def narrow(a: Contestant, b: Contestant, width: float) -> bool:
    """Whether their ratio is known well enough. Without a bootstrap, which takes longer than a round where there are many."""
    return between(a, b, resamples=0).width <= width


def between(a: Contestant, b: Contestant, resamples: int = RESAMPLES) -> Ratio:
    """Their ratio: of one process each, or of several."""
    if len(a.apart) > 1:
        return ratio_of_processes(a.apart, b.apart)
    return ratio(a.seconds, b.seconds, resamples=resamples)


def fastest(contestants: Sequence[Contestant]) -> Contestant:
    """The one whose median step is the shortest: of several processes by the mean of their medians' logarithms, as ratios are."""
    return min(contestants, key=lambda c: float(np.mean([np.log(np.median(own)) for own in c.apart])))


def table(contestants: Sequence[Contestant]) -> dict[str, Ratio | None]:
    """Each against the fastest; None for that one."""
    best = fastest(contestants)
    return {c.name: None if c is best else between(c, best) for c in contestants}
