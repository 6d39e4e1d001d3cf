"""A run's result for a terminal: the verdict first, plain at 80 columns and when it is piped."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from harness.report import story
from harness.results import RunResult

STYLES = {
    "same": "bold green", "differs": "bold yellow", "failed": "bold red", "ok": "", "diverged": "bold red",
    "agree": "green", "rounding": "yellow", "differ": "bold yellow",
}  # fmt: skip
WHERE = 4  # the column that gives way
TAIL = 12  # lines of a failed backend's log


def print_result(result: RunResult, console: Console) -> None:
    """The verdict, a row a backend, a row a comparison, notes, failures, and where the report is."""
    verdict = story.verdict(result)
    _say(console, Text.assemble((f"{verdict.word}  ", STYLES[verdict.kind]), (_plain(result.spec), "bold")))
    _say(console, Text(_plain(verdict.sentence)))
    _say(console, Text(_plain(story.conditions(result)), style="dim"))
    for part in split(story.outcomes(result), console.width):
        console.print()
        console.print(_grid(part, result))
    if result.comparisons:
        console.print()
        console.print(_comparisons(result.comparisons, console.width))
    if result.evidence is not None:
        console.print()
        over = f", the first {story.counted(result.evidence['steps'], 'step')}" if result.evidence.get("steps") else ""
        _say(console, Text(f"the same run in float64{over}:", style="dim"))
        console.print(_comparisons([c for c in result.evidence["comparisons"] if story.is_pair(c)], console.width))
    _notes(result, console)
    _failures(result, console)
    page = result.directory / "report.html"
    if page.exists():
        console.print()
        console.print(Text(f"report: {_short(page)}"), soft_wrap=True)


def split(table: story.Table, width: int) -> list[story.Table]:
    """A table as several that fit, the first column in each.

    >>> wide = story.Table(("backend", "loss", "seconds"), (("torch", "0.25", "1.5"),))
    >>> [part.head for part in split(wide, 18)]
    [('backend', 'loss'), ('backend', 'seconds')]
    """
    wide = [max(len(cell) for cell in column) for column in zip(table.head, *table.rows, strict=True)]
    parts: list[list[int]] = [[]]
    used = wide[0]
    for place in range(1, len(wide)):
        if parts[-1] and used + 2 + wide[place] > width:
            parts.append([])
            used = wide[0]
        parts[-1].append(place)
        used += 2 + wide[place]
    return [
        story.Table(
            tuple(table.head[i] for i in (0, *part)), tuple(tuple(row[i] for i in (0, *part)) for row in table.rows)
        )
        for part in parts
    ]


def _grid(table: story.Table, result: RunResult) -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for i, name in enumerate(table.head):
        words = i == 0 or name == "status"
        grid.add_column(Text(_plain(name)), justify="left" if words else "right", no_wrap=not words)
    for row, backend in zip(table.rows, result.backends.values(), strict=True):
        grid.add_row(
            *(
                Text(_plain(cell), style=STYLES.get(backend.status, "bold red") if cell == backend.status else "")
                for cell in row
            )
        )
    return grid


def _comparisons(comparisons: Sequence[Mapping[str, Any]], width: int) -> Grid:
    """Each comparison in one line; what they have in common is said once."""
    rows, before = [], ""
    for record in story.ordered(comparisons):
        found = record["worst"]
        sizes = ("", "") if found is None else (story.small(found["difference"]), story.small(found["allowed"]))
        said = story.said(record)
        what = "" if record["what"] == before else record["what"]
        before = record["what"]
        rows.append(
            (what, f"{record['a']}, {record['b']}", *sizes, _where(record), said.upper() if said == "differ" else said)
        )
    head = ("compared", "pair", "worst", "allowed", "where, at step", "")
    others = sum(max(len(row[i]) for row in (head, *rows)) + 1 for i in range(len(head)) if i != WHERE)
    room = max(width - others - 1, 12)
    grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in head:
        grid.add_column(name, justify="right" if name in ("worst", "allowed") else "left", no_wrap=True)
    for *cells, where, said in rows:
        grid.add_row(
            *cells,
            Text(where if len(where) <= room else f"…{where[-room + 1 :]}"),
            Text(said, style=STYLES[said.lower()]),
        )
    return grid


def _where(record: Mapping[str, Any]) -> str:
    """The tensor and the step; its end is what tells one from another where there is no room for all of it."""
    if record["missing"]:
        return _plain(record["missing"][0])
    found = record["worst"]
    if found is None:
        return "nothing to compare"
    return _plain(found["name"]) + ("" if found["step"] is None else f" at {found['step']}")


def _notes(result: RunResult, console: Console) -> None:
    notes = list(result.notes)
    if result.zero_gradient:
        some = ", ".join(list(result.zero_gradient)[:4]) + (" and others" if len(result.zero_gradient) > 4 else "")  # noqa: PLR2004
        notes.append(f"Judged apart, because their true gradient is zero: {some}.")
    if notes:
        console.print()
    for note in notes:
        _say(console, Text(f"note: {_plain(note)}"))


def _failures(result: RunResult, console: Console) -> None:
    for name, backend in result.backends.items():
        if backend.status == "ok":
            continue
        console.print()
        _say(
            console,
            Text.assemble((f"{story.title(name)} {backend.status}", STYLES["failed"]), f": {_plain(backend.error)}"),
        )
        log = story.printable(backend.log).rstrip().splitlines()[-TAIL:]
        if log:
            console.print(Text(textwrap.indent("\n".join(log), "  | ", predicate=lambda _line: True)), soft_wrap=True)


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=False)


def _plain(text: str) -> str:
    return " ".join(story.printable(text).split())


def _short(path: Path) -> str:
    """Relative to here where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
