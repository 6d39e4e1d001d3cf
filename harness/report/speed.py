"""A benchmark's result for a terminal: a table a spec, the fastest first, then what differs between the settings."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.bench.inference import MANY
from harness.bench.ratio import Ratio
from harness.bench.record import BenchResult, Lane


def print_bench(results: Sequence[BenchResult], console: Console) -> None:
    """Every spec's table."""
    for number, result in enumerate(results):
        if number:
            console.print()
        _print_one(result, console)


def _print_one(result: BenchResult, console: Console) -> None:
    about = f"{result.precision} · batch {result.batch} · {operations(result.flops)} a step · {result.seconds:.0f} s"
    console.print(Text.assemble((result.title, "bold"), f"  {about}"))
    if result.lanes:
        grid = _grid(COLUMNS, ("lane", "strategy"))
        for lane in sorted(result.lanes, key=lambda one: float(np.median(one.contestant.seconds))):
            grid.add_row(*_row(lane))
        console.print(grid)
        console.print(Text("peak: share of a plain product's speed", style="dim"))
    _print_starts(result, console)
    _print_asked(result, console)
    for lane in {own.name: own for own in result.lanes}.values():
        if lane.alone and (target := lane.alone.target):
            what = "reached" if target["reached"] else "did not reach"
            goal = f"{target['metric'] or 'loss'} {target['value']:g} in {target['steps']:,} steps"
            console.print(Text(f"{lane.name} {what} {goal}, {spelled(target['seconds'])} after its start"))
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


COLUMNS = ("lane", "strategy", "step", "ratio (99 %)", "peak")


def _row(lane: Lane) -> list[str]:
    r = lane.ratio
    return [lane.lane, lane.name, spelled(float(np.median(lane.contestant.seconds))), _against(r), percent(lane.share)]


def _against(r: Ratio | None) -> str:
    if r is None:
        return "fastest"
    told = f"{times(r.value)} ({times(r.low)}–{times(r.high)})"
    return told if r.different else f"tie {told}"


def _grid(names: Sequence[str], left: Sequence[str]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        grid.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return grid


def _print_starts(result: BenchResult, console: Console) -> None:
    """What each way costs before it is under way."""
    alone = {lane.name: lane.alone for lane in result.lanes if lane.alone is not None}
    if not alone:
        return
    grid = _grid(("start", "import", "build", "1st call", "2nd call", "pays", "memory"), ("start",))
    even, default = result.break_even(), {lane.name for lane in result.lanes if lane.lane == "default"}
    for name, own in sorted(alone.items(), key=lambda item: item[1].start):
        pays = "" if name in default else "never" if even[name] is None else f"{even[name]:,}"
        grid.add_row(name, *(spelled(seconds) for seconds in own.phases.values()), pays, size(own.memory))
    console.print(grid)
    said = "in a process of its own, nothing cached; pays: steps after which it is ahead of lane default; memory: beyond the framework's own"
    console.print(Text(said, style="dim"))


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
    grid = _grid(("inference", "p50", "p95", "p99", "a second", "ratio (99 %)"), ("inference",))
    for own in sorted(result.inference, key=lambda one: -one.examples):
        grid.add_row(
            f"{own.backend} {own.way}", *(spelled(own.latency[p]) for p in ("p50", "p95", "p99")), f"{own.examples:,.0f}",
            _against(own.ratio),
        )  # fmt: skip
    console.print(grid)
    said = f"p50, p95, p99: of a call with one example; a second: examples, {MANY} a call"
    console.print(Text(said, style="dim"))
    told = ", ".join(f"{own.backend} {spelled(float(np.median(own.seconds)))}" for own in result.evaluation)
    if result.evaluation:
        console.print(Text(f"evaluation of {result.evaluation[0].examples:,} examples: {told}"))


def times(value: float) -> str:
    """A ratio with three digits.

    >>> times(1.0345), times(3921.7)
    ('1.03', '3,922')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - where .3g becomes a power of ten


def percent(share: float | None) -> str:
    """A share of a peak: of a network that is small for its machine hardly any, and not none.

    >>> percent(0.714), percent(0.0004), percent(None)
    ('71%', '<1%', '')
    """
    return "" if share is None else "<1%" if 0 < 100 * share < 1 else f"{share:.0%}"


def spelled(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> spelled(0.00123), spelled(2.5e-6), spelled(12.0)
    ('1.23 ms', '2.5 µs', '12 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def operations(count: float) -> str:
    """Floating-point operations in the unit that suits them.

    >>> operations(16), operations(1.29e8), operations(5.31e9), operations(2.75e12)
    ('16 FLOP', '129 MFLOP', '5.31 GFLOP', '2.75 TFLOP')
    """
    unit, size = next(((u, s) for u, s in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= s), ("", 1.0))
    return f"{count / size:.3g} {unit}FLOP"
