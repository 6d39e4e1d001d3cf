"""A benchmark's result for a terminal: a table a spec, the fastest first, then what differs between the settings."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.bench.inference import MANY
from harness.bench.record import BenchResult, Lane


def print_bench(results: Sequence[BenchResult], console: Console) -> None:
    """Every spec's table."""
    for number, result in enumerate(results):
        if number:
            console.print()
        _print_one(result, console)


def _print_one(result: BenchResult, console: Console) -> None:
    about = (
        f"{result.precision} · batch {result.batch} · {result.flops / 1e6:.3g} MFLOP a step · {result.seconds:.0f} s"
    )
    console.print(Text.assemble((result.title, "bold"), f"  {about}"))
    if result.lanes:
        grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for name in COLUMNS:
            justify: Literal["left", "right"] = "left" if name in ("lane", "strategy") else "right"
            grid.add_column(name, justify=justify, no_wrap=True)
        even = result.break_even()
        for lane in sorted(result.lanes, key=lambda one: float(np.median(one.contestant.seconds))):
            grid.add_row(*_row(lane, even[lane.name]))
        console.print(grid)
        said = "peak: share of a plain product's speed; start: building and two calls, with all that they compile; pays: steps after which that is ahead of lane default; MB: of memory at most, beyond the framework's own"
        console.print(Text(said, style="dim"))
    _print_asked(result, console)
    for lane in {own.name: own for own in result.lanes}.values():
        if lane.alone and (target := lane.alone.target):
            what = "reached the target" if target["reached"] else "did not reach the target"
            console.print(
                Text(f"{lane.name} {what} in {target['steps']:,} steps, {spelled(target['seconds'])} after its start")
            )
    for name, joules in {lane.name: lane.contestant.joules for lane in result.lanes}.items():
        if joules:
            told = ", ".join(f"{value:.3g} J ({meter})" for meter, value in joules.items())
            console.print(Text(f"energy of a step: {name} {told}", style="dim"))
    for peer in result.peers:
        r = peer.ratio
        beside = "" if r is None else f": lane best takes {r.value:.3g} ({r.low:.3g}–{r.high:.3g}) times as long"
        own = spelled(float(np.median(peer.contestant.seconds)))
        console.print(Text(f"by hand: {peer.backend} {peer.strategy}, {own} a step{beside}"))
    for note in result.notes:
        console.print(Text(note, style="dim"))
    for name in result.ledger.differing:
        own = ", ".join(f"{backend} {value}" for backend, value in result.ledger.entries[name].items())
        console.print(Text(f"differs: {name}: {own}", style="dim"))
    for backend, why in result.failures.items():
        console.print(Text(f"{backend} failed: {why}", style="red"))


COLUMNS = ("lane", "strategy", "step", "ratio (99 %)", "peak", "start", "pays", "MB")


def _row(lane: Lane, even: int | None) -> list[str]:
    own = [lane.lane, lane.name, spelled(float(np.median(lane.contestant.seconds)))]
    r = lane.ratio
    against = "fastest" if r is None else f"{times(r.value)} ({times(r.low)}–{times(r.high)})"
    against = f"tie {against}" if r and not r.different else against
    share = "" if lane.share is None else f"{lane.share:.0%}"
    if lane.alone is None:
        return [*own, against, share, "", "", ""]
    pays = "" if lane.lane == "default" else "never" if even is None else f"{even:,}"
    return [*own, against, share, spelled(lane.alone.start), pays, size(lane.alone.memory).removesuffix(" MB")]


def size(memory: Mapping[str, int | None]) -> str:
    """What a process took beyond its framework, on the host; and on a device, where there is one.

    >>> size({"imported": 300_000_000, "peak": 420_000_000, "device_peak": None})
    '120 MB'
    """
    host = f"{((memory['peak'] or 0) - (memory['imported'] or 0)) / 1e6:,.0f} MB"
    return host if memory["device_peak"] is None else f"{memory['device_peak'] / 1e6:,.0f} MB GPU"


def _print_asked(result: BenchResult, console: Console) -> None:
    """How long the trained networks take to answer."""
    if not result.inference:
        return
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("inference", "p50", "p95", "p99", "a second", "ratio (99 %)", "evaluation"):
        grid.add_column(name, justify="left" if name == "inference" else "right", no_wrap=True)
    evaluated = {own.backend: own for own in result.evaluation}
    for own in sorted(result.inference, key=lambda one: -one.examples):
        r = own.ratio
        against = "fastest" if r is None else f"{times(r.value)} ({times(r.low)}–{times(r.high)})"
        whole = evaluated.pop(own.backend, None)
        grid.add_row(
            f"{own.backend} {own.way}", *(spelled(own.latency[p]) for p in ("p50", "p95", "p99")), f"{own.examples:,.0f}", against,
            "" if whole is None else spelled(float(np.median(whole.seconds))),
        )  # fmt: skip
    console.print(grid)
    said = f"p50, p95, p99: of a call with one example; a second: examples, {MANY} a call; evaluation: of all held-out ones"
    console.print(Text(said, style="dim"))


def times(value: float) -> str:
    """A ratio with three digits.

    >>> times(1.0345), times(3921.7)
    ('1.03', '3,922')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - where .3g becomes a power of ten


def spelled(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> spelled(0.00123), spelled(2.5e-6), spelled(12.0)
    ('1.23 ms', '2.5 µs', '12 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError
