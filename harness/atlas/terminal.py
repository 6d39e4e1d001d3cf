"""An explanation as tables for a terminal: what would bite, most first; then what would not, and what was not measured."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.atlas.measure import NOTHING, Effect, Explanation, Finding

NARROW = 110
"""Columns of a terminal below which findings are lines and no table: nine columns need some twelve each."""


def show(found: Explanation, console: Console) -> None:
    """Print it."""
    console.print(
        f"{found.spec}: each default left to its framework alone, {found.steps} steps, {found.precision}", markup=False
    )
    bites = [f for f in found.findings if f.status == "measured"]
    refused = [f for f in found.findings if f.status == "refused"]
    narrow = console.width < NARROW
    if bites:
        console.print(*map(_spelled, bites) if narrow else [_ranked(bites)], sep="\n")
    if refused:
        console.print("Refused, so that it cannot go unnoticed:")
        console.print(*map(_spelled, refused) if narrow else [_refused(refused)], sep="\n")
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


def _spelled(finding: Finding) -> Text:
    """One finding in lines, where a table's columns would be of a few letters each."""
    lines = [
        f"{finding.row.rule.replace('`', '')} ({finding.backend})",
        f"  its default {finding.default}; the spec says {finding.says}",
    ]
    if (e := finding.effect) is None:
        lines.append(f"  {finding.error}")
    else:
        lines.append(
            f"  loss at step 1 {_number(e.first)}, largest {_number(e.largest)} at step {e.step}, last step {e.last:+.2g}, "
            f"{_number(e.relative)} of the loss; evaluated: {_evaluated(e)}"
        )
    return Text("\n".join(lines))


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
