"""Step times of programs that are open in live workers: how a block is asked for, and the ledger of how they compute."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from harness.bench.energy import driver, meters
from harness.bench.record import Ledger
from harness.bench.rounds import BLOCK, Contestant
from harness.check.live import LiveWorker
from harness.check.subject import Subject, each
from harness.environment import machine
from harness.lanes import Strategy, room

Listener = Callable[[str, Mapping[str, Any]], None]
BATCHES = 8
"""Different batches, made before the clock starts; steps take them in turn."""
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip
"""How glibc allocates in every process that is timed (man 3 mallopt): it keeps freed memory, on huge pages where the kernel
has them on request (glibc from 2.35 on; before, that does nothing).

As it comes it gives large arrays back to the system, whose pages then cost a fault each in the next step: a tax on large
activations, paid by whichever framework has no allocator of its own. On small pages two processes of the same program are
as fast as their pages happen to lie: TensorFlow's CNN beside the same by hand, least times of 20 rounds, was 1.03 to 1.13 in
seven runs, on huge ones 1.00 to 1.06 in six.
"""
WARM_UP = 5.0
"""Seconds that a warm-up may take; one that has not settled by then is said to be none."""
LONG = 0.5
"""Seconds that a block of Keras's `fit` lasts at least, since each call of it sets a training up anew."""
ON_GPU = 0.1
"""Seconds of a block on a GPU, where steps that are called one by one run ahead of it: what fetching the last losses takes,
some 0.1 ms, is a thousandth."""


def host(subject: Subject, own: str, strategy: Strategy) -> LiveWorker:
    """The worker in which one way of running the program is open: one of its own, or its backend's."""
    return subject.workers[own if own in subject.workers else strategy.backend]


def contestant(
    subject: Subject, live: LiveWorker, name: str, strategy: Strategy | None = None, *, slower: float = 0.0
) -> Contestant:
    """The training steps of an opened program, a block going on from where the last one ended, as training does.

    From the start again before a block would pass the training's end, unless that takes too long to load, and where a loss
    was no number: on and on over few batches, gradients may come to be denormal. Not before every block, though: what has just
    been loaded is in no cache, and the memory is not what the steps before had warmed.
    """
    done: int | None = None

    def run(steps: int) -> tuple[float, float]:
        nonlocal done
        afresh = done is None or (subject.restarts and done + steps > subject.program.steps)
        wall, cpu, sound = _clocked(subject, live, strategy, steps, restart=afresh, slower=slower)
        done = (0 if afresh or done is None else done) + steps if sound else None
        return wall, cpu

    return Contestant(
        name,
        run,
        unit(subject, strategy),
        block_seconds=LONG if strategy and strategy.name == "fit" else ON_GPU if subject.device == "gpu" else BLOCK,
    )


def unit(subject: Subject, strategy: Strategy | None) -> int:
    """The steps of one call. Keras's `fit` goes through any number of batches; other calls are compiled for so many."""
    if strategy is None or not strategy.many:
        return 1
    return (
        min(BATCHES, subject.program.steps)
        if strategy.name == "fit"
        else room(subject.program, subject.precision, subject.device)
    )


def _clocked(
    subject: Subject,
    live: LiveWorker,
    strategy: Strategy | None,
    steps: int,
    *,
    restart: bool = True,
    slower: float = 0.0,
) -> tuple[float, float, bool]:
    """Wall and processor seconds of so many steps, and whether they end with losses that are numbers."""
    said = live.ask(
        "clock",
        name=strategy.name if strategy else "timed",
        steps=steps,
        batches=min(BATCHES, subject.program.steps),
        stack=unit(subject, strategy) if strategy and strategy.many else None,
        arrays=subject.position("start", subject.start) if restart else None,
        slower=slower,
    )
    return said["seconds"], said["cpu"], all(map(math.isfinite, said["losses"].values()))


Told = dict[str, dict[str, Any]]


def told(subject: Subject) -> Told:
    """By process, what it says and shows of how it computes."""
    return each(subject, lambda live: dict(live.ask("ledger")["ledger"]))


def changed(before: Told, after: Told) -> list[str]:
    """Entries of the processes that told both times, and not the same."""
    names = [
        name for own in before for name in before[own] if own in after and after[own].get(name) != before[own][name]
    ]
    return list(dict.fromkeys(names))


def ledger(subject: Subject, said: Told, device: str) -> Ledger:
    """How each backend's processes compute: of several that differ, what each does."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(key for own in said.values() for key in own):
        by_backend: dict[str, dict[str, Any]] = {}
        for process, own in said.items():
            if name in own:
                by_backend.setdefault(process.partition(" ")[0], {})[process] = own[name]
        found[name] = {
            backend: next(iter(own.values())) if len({repr(value) for value in own.values()}) == 1 else own
            for backend, own in by_backend.items()
        }
    counters = ", ".join(meter.name for meter in meters(device)) or "none that can be read"
    chip = {"processor": f"{(own := machine())['processor']}: {' '.join(own['flags'])}", "energy counters": counters}
    if device == "gpu":
        chip["driver"] = driver() or "not told"
    if not subject.restarts:
        chip["blocks"] = "go on from where the last one of the same ended, in an order drawn anew every round"
    chip["processes"] = (
        "one for each way that is timed; product, copy and inference in those of the trial, one a backend"
        if any(" " in process for process in said)
        else "one a backend, in which all its ways were checked, tried and timed"
    )
    return Ledger({**found, **COMMON, **{name: {"all": value} for name, value in chip.items()}})


COMMON: Mapping[str, Mapping[str, Any]] = {
    name: {"all": value}
    for name, value in {
        "data": f"{BATCHES} different batches, made and put on the device before the clock starts",
        "clock": "from the first call until the loss of every step is on the host, wall time",
        "garbage collection": "before every block, off during it",
        "blocks": "go on from where the last one of the same ended, in an order drawn anew every round; emitted programs begin again before they would pass the training's end",
    }.items()
}
"""Entries that are the same for all by construction."""
