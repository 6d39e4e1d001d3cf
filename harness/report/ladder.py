"""A check's result for a terminal: a table a spec, rungs down, precisions across, then what did not pass and why."""

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.check.record import RUNGS, CheckResult, Rung

STYLES = {"passed": "green", "failed": "bold red", "void": "bold yellow", "skipped": "yellow"}
WORST = 3  # comparisons shown of a rung that failed


def print_check(results: Sequence[CheckResult], console: Console) -> None:
    """Every spec's climb, and the sum where there are several."""
    for number, result in enumerate(results):
        if number:
            console.print()
        _print_one(result, console)
    if len(results) > 1:
        console.print()
        passed = sum(result.verdict == "passed" for result in results)
        seconds = sum(result.seconds for result in results)
        console.print(Text(f"{passed} of {len(results)} specs passed every rung, in {seconds:.0f} s"))


def _print_one(result: CheckResult, console: Console) -> None:
    style = STYLES[result.verdict]
    console.print(Text.assemble((result.verdict.upper(), style), "  ", (result.spec, "bold")))
    about = f"{' · '.join(result.backends)} · {result.steps} steps · seed {result.seed} · {result.seconds:.0f} s"
    console.print(Text(about, style="dim"))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rung", "precision", "", "what was found"):
        grid.add_column(name, overflow="fold", ratio=1 if name.startswith("what") else None)
    for rung in result.rungs:
        label = f"{RUNGS.index(rung.name) + 1} {rung.name}"
        grid.add_row(label, rung.precision, Text(rung.status, style=STYLES[rung.status]), Text(rung.sentence))
    console.print(grid)
    for rung in result.rungs:
        _print_notes(rung, console)
    for backend, why in result.failures.items():
        console.print(Text(f"{backend} failed: {why}", style="red"))


def _print_notes(rung: Rung, console: Console) -> None:
    parted = [c for c in rung.comparisons if not c.same]
    lines = [*rung.notes]
    if rung.status == "failed":
        lines += [str(c) for c in parted[:WORST]]
        lines += [f"and {len(parted) - WORST} more comparisons"] if len(parted) > WORST else []
    for line in lines:
        console.print(Padding(Text(f"{rung.name}, {rung.precision}: {line}", style="dim"), (0, 0, 0, 2)))
