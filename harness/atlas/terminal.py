"""An explanation as tables for a terminal: what would bite, most first; then what would not, and what was not measured."""

from collections.abc import Callable

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.atlas.measure import NOTHING, Effect, Explanation, Finding

ROOM = 120
"""Columns that the tables need."""


def show(found: Explanation, console: Console) -> None:
    """Print it."""
    console.print(
        f"{found.spec}: each default left to its framework alone, {found.steps} steps, {found.precision}", markup=False
    )
    bites = [f for f in found.findings if f.status == "measured"]
    refused = [f for f in found.findings if f.status == "refused"]
    if bites:
        _shown(bites, _ranked, console)
    if refused:
        console.print("Refused, so that it cannot go unnoticed:")
        _shown(refused, _refused, console)
    quiet = [f for f in found.findings if f.status == "no effect"]
    if quiet:
        names = ", ".join(f"{f.row.rule.replace('`', '')} ({f.backend})" for f in quiet)
        console.print(f"No effect here (below {NOTHING:g}): {names}", markup=False)
    console.print(
        f"{len(found.not_applicable)} rows have no place in this spec or defaults that are what it says; "
        f"{len(found.unmeasured)} cannot be put to a number (backends/README.md says why)",
        markup=False,
    )
    for backend, error in found.failures.items():
        console.print(f"{backend}: its own program did not train: {error}", markup=False)
    versions = dict(pair for seen in found.versions.values() for pair in seen.items())
    shown = ("torch", "tensorflow", "tensorflow-cpu", "keras", "jax", "flax", "optax")
    text = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    console.print(f"{text}; {found.seconds:.0f} s", markup=False)


def _shown(findings: list[Finding], table: Callable[[list[Finding]], Table], console: Console) -> None:
    """As a table, or in a narrow terminal as paragraphs: nine columns would have a few letters each."""
    if console.width >= ROOM:
        console.print(table(findings))
        return
    for f in findings:
        console.print(Text(f"{f.row.rule.replace('`', '')}, {f.backend}", style="bold"))
        lines = [f"its default {f.default}; the spec says {f.says}"]
        if f.effect is None:
            lines.append(f.error)
        else:
            e = f.effect
            lines.append(
                f"the loss is {_number(e.first)} off at step 1, {_number(e.largest)} at step {e.step}, {e.last:+.2g} at the last: "
                f"{_number(e.relative)} of the loss; evaluated: {_evaluated(e)}"
            )
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))


def _ranked(findings: list[Finding]) -> Table:
    table = Table(pad_edge=False)
    for title in ("op or rule", "framework", "its default", "the spec says"):
        table.add_column(title, overflow="fold")
    for title in ("step 1", "largest", "last step", "of the loss"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("evaluated", overflow="fold")
    for f in findings:
        if f.effect is None:
            continue
        e = f.effect
        cells = (f.row.rule.replace("`", ""), f.backend, f.default, f.says, _number(e.first), f"{_number(e.largest)} @{e.step}",
                 f"{e.last:+.2g}", _number(e.relative), _evaluated(e))  # fmt: skip
        table.add_row(*map(Text, cells))
    return table


def _refused(findings: list[Finding]) -> Table:
    table = Table(pad_edge=False)
    for title in ("op or rule", "framework", "its default", "the spec says", "what happens"):
        table.add_column(title, overflow="fold")
    for f in findings:
        table.add_row(*map(Text, (f.row.rule.replace("`", ""), f.backend, f.default, f.says, f.error)))
    return table


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _evaluated(effect: Effect) -> str:
    """The first metric, where it moves; else how far the outputs are."""
    for name, (honest, planted) in effect.metrics.items():
        if f"{honest:.3g}" != f"{planted:.3g}":
            return f"{name} {honest:.3g} → {planted:.3g}"
    return f"outputs {effect.outputs:.2g}" if effect.outputs >= NOTHING else "the same"
