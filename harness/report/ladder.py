"""A check's result for a terminal: a table a spec, rungs down, precisions across, then what did not pass and why."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.check import power, proof
from harness.check.diagnose import Diagnosis
from harness.check.diff import DiffResult
from harness.check.power import RUNGS as MET
from harness.check.power import PowerResult, Untried, matrix
from harness.check.proof import ProofResult
from harness.check.record import RUNGS, CheckResult, Rung
from harness.files import write_named
from harness.meaning import unified

STYLES = {"passed": "green", "failed": "bold red", "void": "bold yellow", "skipped": "yellow"}
SIGNS = {"-": "red", "+": "green", "@": "cyan"}
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
    for precision, diagnosis in result.diagnoses.items():
        console.print()
        if diagnosis is None:
            said = "from the same position no single step shows more than rounding: it is what many steps make of it"
            console.print(Text(f"diff, {precision}: {said}"))
        else:
            print_diagnosis(f"diff, {precision}", diagnosis, console)
    for backend, why in result.failures.items():
        console.print(Text(f"{backend} failed: {why}", style="red"))


def print_diagnosis(head: str, diagnosis: Diagnosis, console: Console) -> None:
    """Where and why programs part, a sentence a line."""
    console.print(Text(head, style="bold"))
    for sentence in diagnosis.sentences():
        console.print(Padding(Text(sentence), (0, 0, 0, 2)))


def print_diff(result: DiffResult, console: Console) -> None:
    """What `harness diff` found."""
    style = {"same": "bold green", "differs": "bold red", "failed": "bold red"}[result.verdict]
    console.print(Text.assemble((result.verdict.upper(), style), "  ", (result.spec, "bold")))
    console.print(Text(f"{' · '.join(result.backends)} · {result.precision} · {result.seconds:.0f} s", style="dim"))
    if result.diagnosis is not None:
        for sentence in result.diagnosis.sentences():
            console.print(Text(sentence))
    for note in result.notes:
        console.print(Text(note, style="dim"))
    for name, own in result.changes.items():
        for line in unified(own, f"{name}, as emitted", f"{name}'s program"):
            console.print(Text(line, style=SIGNS.get(line[0], "")))
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


def print_planted(result: PowerResult | ProofResult, console: Console) -> None:
    """What became of planted faults."""
    if isinstance(result, PowerResult):
        print_power(result, console)
    else:
        print_proof(result, console)


def write_table(result: PowerResult | ProofResult, path: Path, command: str) -> None:
    """The same as Markdown. Raises OSError where it cannot be written."""
    text = power.markdown(result, command) if isinstance(result, PowerResult) else proof.markdown(result, command)
    write_named(path, text)


def print_proof(result: ProofResult, console: Console) -> None:
    """Where `diff` was right."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("phase", "fault", "planted", "place right", "cause right", "not tried"):
        grid.add_column(name, overflow="fold")
    for phase, fault, *counts in proof.rows(result):
        grid.add_row(phase, fault, *map(str, counts))
    console.print(grid)
    for c in result.cells:
        if not c.located:
            console.print(Text(f"{c.mutant}: {c.spec}, {c.backend}, {c.where}: {proof.spelled(c)}", style="dim"))
    print_untried(result.untried, console)
    for backend, why in result.failures.items():
        console.print(Text(f"{backend} failed: {why}", style="red"))
    shares = f"places right {100 * result.located:.1f} %, causes right {100 * result.explained:.1f} %"
    console.print(Text(f"{len(result.cells)} planted faults: {shares}, in {result.seconds:.0f} s"))


def print_untried(untried: Sequence[Untried], console: Console) -> None:
    """The faults that a program was not given, and why: neither found nor missed."""
    for mutant, backend, why in dict.fromkeys((one.mutant, one.backend, one.why) for one in untried):
        console.print(Text.assemble(("not tried  ", "yellow"), f"{mutant}: {backend}: {why}"))


def print_power(result: PowerResult, console: Console) -> None:
    """The matrix of faults and rungs, what survived, and how small a fault can be."""
    rows = matrix(result)
    precisions = list(dict.fromkeys(cell.precision for cell in result.cells))
    for precision in precisions:
        grid = Table(box=None, pad_edge=False, header_style="bold", title=precision, title_justify="left")
        for name in ("phase", "fault", *MET, "any", "not tried"):
            grid.add_column(name, overflow="fold")
        for phase, name, counts in rows:
            if precision in counts:
                grid.add_row(phase, name, *(counts[precision][rung] for rung in (*MET, "any", "not tried")))
        console.print(grid)
        console.print()
    for cell in result.survivors:
        why = cell.note or "unexplained"
        style = "bold red" if cell in result.unexplained else "yellow"
        place = f"{cell.mutant}: {cell.spec}, {cell.backend}, {cell.where}, {cell.precision}"
        console.print(Text.assemble(("survived  ", style), f"{place}: {why}"))
    print_untried(result.untried, console)
    for s in result.sensitivity:
        small = ", ".join(f"{rung} {v:.0e}" for rung, v in s.smallest.items() if v is not None)
        console.print(
            Text(f"smallest change of {s.constant} found in {s.spec}, {s.precision}: {small or 'none'}", style="dim")
        )
    for backend, why in result.failures.items():
        console.print(Text(f"{backend} failed: {why}", style="red"))
    killed = len(result.cells) - len(result.survivors)
    names = len({cell.mutant for cell in result.cells})
    console.print(
        Text(f"{killed} of {len(result.cells)} planted faults found ({names} kinds), in {result.seconds:.0f} s")
    )
