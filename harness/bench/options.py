"""What a call of `harness bench` may change."""

from dataclasses import dataclass
from pathlib import Path

from harness.backend import BACKENDS
from harness.bench.ratio import FEWEST, LEAST
from harness.bench.target import Target
from harness.check.live import allowed_cores
from harness.errors import CallError
from harness.lanes import LANES
from harness.precision import on_device
from harness.vary import Variation

PARTS = ("start", "inference")
"""What is measured beside the training step: how each way starts in a process of its own, and how the network is asked."""


@dataclass(frozen=True)
class BenchOptions:
    """What a call may change."""

    backends: tuple[str, ...] = BACKENDS
    precision: str = "float32"
    device: str = "cpu"
    vary: tuple[Variation, ...] = ()
    """The spec once for each value, of one after the other."""
    lanes: tuple[str, ...] = LANES
    rounds: int = 80
    """At most; fewer where the ratios are known to WIDTH before, unless several processes share them."""
    processes: int | None = None
    """Of each way that is timed, one after the other, which share the rounds; 0: it is timed in the process of its backend,
    in which all were tried. Left out, 1 on a CPU, of a network that is not large, else 0: each would compile anew."""
    pythons: tuple[str, ...] = ()
    timeout: float = 600.0
    peers: Path | None = None
    """A folder of hand-written programs to time beside the emitted ones, see harness.bench.peers."""
    parts: tuple[str, ...] = PARTS
    target: Target | None = None
    """What each way is to train to."""
    core: int | None = None
    """That every worker is pinned to; left out, the last of this process's."""


def chosen_lanes(text: str | None) -> tuple[str, ...]:
    """Names separated by commas; None: all. Raises CallError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text else LANES
    for lane in names:
        if lane not in LANES:
            raise CallError(f"unknown lane '{lane}' (lanes: {', '.join(LANES)})")
    return names


def chosen_parts(text: str | None) -> tuple[str, ...]:
    """Names separated by commas; `none`: the training step alone; None: all. Raises CallError."""
    if text == "none":
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text else PARTS
    for part in names:
        if part not in PARTS:
            raise CallError(f"--parts: unknown '{part}' (parts: {', '.join(PARTS)}; none: the training step alone)")
    return names


def validate(options: BenchOptions) -> None:
    """Raise CallError where a value makes no sense."""
    if options.rounds < LEAST:
        raise CallError(f"--rounds is at least {LEAST}, got {options.rounds}")
    if options.processes is not None and not (options.processes in (0, 1) or options.processes >= FEWEST):
        raise CallError(
            f"--processes is 0, 1, or at least {FEWEST}, got {options.processes}: two or three tell too little"
        )
    if options.device not in ("cpu", "gpu"):
        raise CallError(f"--device is cpu or gpu, got '{options.device}'")
    if options.rounds < LEAST * (options.processes or 1):
        raise CallError(f"--rounds {options.rounds}: each of {options.processes} processes needs {LEAST} at least")
    on_device(options.precision, options.device)
    if options.core is not None and options.core not in allowed_cores():
        raise CallError(f"--core {options.core}: this process may use {', '.join(map(str, allowed_cores()))}")
    names = [variation.name for variation in options.vary]
    for name in names:
        if names.count(name) > 1:
            raise CallError(f"--vary: two series are called '{name}'")
    if options.target is not None and "start" not in options.parts:
        raise CallError("--target is reached in the processes that --parts start has")
