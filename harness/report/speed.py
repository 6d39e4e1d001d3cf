"""A benchmark's result for a terminal: a table a spec, the fastest first, then what differs between the settings."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.bench.record import BenchResult, Lane


def print_bench(results: Sequence[BenchResult], console: Console) -> None:
    """Every spec's table."""
    for number, result in enumerate(results):
        if number:
            console.print()
        _print_one(result, console)


def _print_one(result: BenchResult, console: Console) -> None:
    about = f"{result.precision} · batch {result.batch} · {result.seconds:.0f} s"
    console.print(Text.assemble((result.spec, "bold"), f"  {about}"))
    if result.lanes:
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("backend", "lane", "strategy", "step", "quartiles", "ratio", "99 % interval", "", "first call"):
            justify: Literal["left", "right"] = "left" if name in ("backend", "lane", "strategy", "") else "right"
            grid.add_column(name, justify=justify, no_wrap=True)
        for lane in sorted(result.lanes, key=lambda one: float(np.median(one.contestant.seconds))):
            grid.add_row(*_row(lane))
        console.print(grid)
    for note in result.notes:
        console.print(Text(note, style="dim"))
    for name in result.ledger.differing:
        own = ", ".join(f"{backend} {value}" for backend, value in result.ledger.entries[name].items())
        console.print(Text(f"differs: {name}: {own}", style="dim"))
    for backend, why in result.failures.items():
        console.print(Text(f"{backend} failed: {why}", style="red"))


def _row(lane: Lane) -> list[str]:
    low, middle, high = np.quantile(lane.contestant.seconds, (0.25, 0.5, 0.75))
    first = spelled(lane.phases["first_call"])
    own = [lane.backend, lane.lane, lane.strategy, spelled(middle), f"{spelled(low)}–{spelled(high)}"]
    if lane.ratio is None:
        return [*own, "1", "", "fastest", first]
    r = lane.ratio
    return [*own, f"{r.value:.3g}", f"{r.low:.3g}–{r.high:.3g}", r.verdict, first]


def spelled(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> spelled(0.00123), spelled(2.5e-6), spelled(12.0)
    ('1.23 ms', '2.5 µs', '12 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError
