"""How often `diff` is right: every fault of the catalogue planted into a program that it is then handed, and knows nothing of.

What is right comes from elsewhere: the phase from the catalogue, step and tensor from the same backend's honest program,
which takes the same steps beside the faulty one. `diff` sees the honest programs of the other backends alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import harness
from harness.backend import Arrays
from harness.check import dissect
from harness.check.diagnose import Diagnosis, diagnose
from harness.check.evidence import evaluated
from harness.check.mutants import MUTANTS, Mutant
from harness.check.power import Planting, Untried, by_place, length, not_tried, plan, untried_lines
from harness.check.subject import Subject
from harness.errors import CallError, WorkerFailed
from harness.programs import Written
from harness.results import clean
from harness.runs import describe

SCHEMA = 1
CHANGED = {"float64": 1e-10, "float32": 1e-4}
"""Of a tensor's largest value: what a fault changes, and a compiler's other order of the same sums does not."""
PREFIXES = {
    "data": ("batch/",), "forward": ("values/",), "loss": ("loss/",), "backward": ("gradients/",),
    "optimizer": ("state/", "optimizer/"), "state": ("state/",),
}  # fmt: skip


@dataclass(frozen=True)
class Located:
    """One planted fault, and what `diff` said of it."""

    mutant: str
    phase: str
    spec: str
    backend: str
    precision: str
    found: dict[str, Any] | None = None
    """The finding as JSON; None where nothing was found."""
    step: bool = False
    tensor: bool = False
    causes: tuple[str, ...] = ()
    error: str = ""
    """The program did not run: then there is nothing to take apart."""
    where: str = "first"
    """In which of its places it was planted: the first, another one, or every one."""

    @property
    def located(self) -> bool:
        """Whether backend, step, phase and tensor are right."""
        found = self.found
        return bool(
            found and self.step and self.tensor and found["phase"] == self.phase and found["backend"] == self.backend
        )

    @property
    def explained(self) -> bool:
        """Whether the fault is among the causes that were named."""
        return self.mutant in self.causes

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        names = (
            "mutant", "phase", "spec", "backend", "precision", "where", "found", "step", "tensor", "error", "located",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {
            "causes": list(self.causes),
            "explained": self.explained,
        }


@dataclass(frozen=True)
class ProofResult:
    """How often `diff` was right."""

    cells: tuple[Located, ...]
    failures: dict[str, str]
    seconds: float = 0.0
    untried: tuple[Untried, ...] = ()

    @property
    def located(self) -> float:
        """The share of planted faults whose place was found."""
        return sum(cell.located for cell in self.cells) / max(len(self.cells), 1)

    @property
    def explained(self) -> float:
        """The share of planted faults that were named as a cause."""
        return sum(cell.explained for cell in self.cells) / max(len(self.cells), 1)

    @property
    def exit(self) -> int:
        """0 where places are right in 95 of 100 and causes in 80, 1 where not, 3 where a backend failed."""
        return 3 if self.failures else int(not self.cells or self.located < PLACES or self.explained < CAUSES)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "schema": SCHEMA, "harness": harness.__version__, "exit": self.exit, "located": self.located,
            "explained": self.explained, "cells": [cell.to_json() for cell in self.cells], "failures": self.failures,
            "untried": [one.to_json() for one in self.untried], "seconds": self.seconds,
        }  # fmt: skip


PLACES, CAUSES = 0.95, 0.8


def proof(
    subject: Subject, only: Callable[[Mutant], bool], listen: Callable[[str, Mapping[str, Any]], None]
) -> tuple[list[Located], list[Untried]]:
    """Every fault that applies to a subject, in every backend, handed to `diff`; and what was not tried."""
    backends = {name: live.backend for name, live in subject.workers.items()}
    plans = {name: plan(subject.program, backend, subject.precision, only) for name, backend in backends.items()}
    left = not_tried(subject.program, backends, subject.precision, plans, only)
    listen(subject.program.name, {"phase": subject.precision, "total": sum(map(len, plans.values()))})
    found = []
    every = [(name, planting) for name, own in plans.items() for planting in own]
    for number, (name, planting) in enumerate(every, start=1):
        if name in subject.backends:
            found.append(_located(subject, name, planting))
        listen(subject.program.name, {"step": number, "losses": {}})
    return found, left


def _located(subject: Subject, name: str, planting: Planting) -> Located:
    mutant, text = planting.mutant, planting.source
    backend = subject.workers[name].backend
    empty = Located(mutant.name, mutant.phase, subject.program.name, name, subject.precision, where=planting.where)
    own = Written(backend, text, f"{backend}'s program", subject.honest[name, False], subject.program)
    try:
        observed = own.adapted(subject.program, subject.precision, observe=True)
    except CallError as error:
        return replace(empty, error=str(error))
    programs = {b: subject.honest[b, True] for b in subject.backends} | {name: observed}
    read = {b: subject.honest[b, False] for b in subject.backends} | {name: text}
    said = diagnose(subject, programs, read, length(subject.program, [mutant]))
    live = subject.workers[name]
    if name in subject.failures and live.process.poll() is None:
        return replace(empty, error=subject.failures.pop(name).splitlines()[0])
    if said is None:
        return empty
    step, tensor = _right(subject, mutant, name, programs, said)
    causes = tuple(cause.name for cause in said.causes)
    return replace(empty, found=clean(said.finding.to_json()), causes=causes, step=step, tensor=tensor)


def _right(
    subject: Subject, mutant: Mutant, name: str, programs: Mapping[str, str], said: Diagnosis
) -> tuple[bool, bool]:
    """Whether step and tensor are where the faulty program first leaves its own honest one."""
    found = said.finding
    if found.gone and found.phase == "optimizer":
        # It cannot be set to a position: is the array that was named one that it has too many, or lacks?
        honest, faulty = (_remembered(subject, name, text) for text in (subject.honest[name, True], programs[name]))
        return found.step == 1, found.tensor in honest ^ faulty
    try:
        earlier = [
            step
            for step in range(subject.first, found.step - 1)
            if _changed(subject, name, programs, step, quick=True, phases=tuple(PREFIXES))
        ]
        changed = _changed(subject, name, programs, found.step - 1, quick=False, phases=(mutant.phase,))
    except WorkerFailed:
        return False, False
    right = changed[:1] if mutant.phase in ("forward", "loss") else changed
    return not earlier, found.tensor in right


def _remembered(subject: Subject, name: str, source: str) -> set[str]:
    """What a program's optimizers remember."""
    live = subject.workers[name]
    path = live.fresh().with_suffix(".py")
    path.write_text(source, encoding="utf-8")
    request = describe(subject.program) | {"observe": True}
    live.ask("open", name="asked", program=str(path), inputs=str(subject.folder / "inputs"), request=request)
    live.ask("load", name="asked", arrays=subject.position("parameters", {n: a for n, a in subject.start.items() if n.startswith("state/")}))  # fmt: skip
    found = live.arrays("position", name="asked")
    live.ask("close", name="asked")
    return {n for n in found if n.startswith("optimizer/")}


def _changed(
    subject: Subject, name: str, programs: Mapping[str, str], step: int, *, quick: bool, phases: Sequence[str]
) -> list[str]:
    """What a faulty program says otherwise than the honest one of its backend, in the order of a step."""
    honest = {b: subject.honest[b, True] for b in subject.backends}
    before, after = (dissect.take(subject, sources, step, quick=quick) for sources in (honest, programs))
    a, b = before.said[name], after.said[name]
    found = [n for n in _in_order(subject, a, phases) if _apart(a, b, n, CHANGED[subject.precision])]
    if not found and not quick and "forward" in phases:
        a, b = before.evaluated[name], after.evaluated[name]
        order = subject.known("order in evaluation", lambda: list(evaluated(subject)))
        found = [n for n in order if _apart(a, b, n, CHANGED[subject.precision])]
    return [dissect.plain(n) for n in found]


def _in_order(subject: Subject, said: Arrays, phases: Sequence[str]) -> list[str]:
    """Names of tensors; values as the reference computes them, one after another."""
    prefixes = tuple(p for phase in phases for p in PREFIXES[phase])
    names = [n for n in said if n.startswith(prefixes)]
    order = {n: i for i, n in enumerate(subject.known("order of values", lambda: dissect.order(subject)))}
    return sorted(names, key=lambda n: order.get(n, len(order)))


def _apart(a: Arrays, b: Arrays, name: str, share: float) -> bool:
    x, y = a[name], b.get(name)
    if y is None or x.shape != y.shape:
        return True
    if name.endswith("/count") or x.dtype.kind != "f":
        return not np.array_equal(x, y)
    size = float(np.max(np.abs(x), initial=0.0))
    with np.errstate(invalid="ignore"):
        return not bool(np.max(np.abs(y - x), initial=0.0) <= share * max(size, 1e-30))


# The table ------------------------------------------------------------------------------------------------


def markdown(result: ProofResult, command: str) -> str:
    """The proof as documentation."""
    cells = result.cells
    lines = [
        "# How often `harness diff` is right", "",
        f"Written by `{command}`. Each fault of `harness/check/faults/` is planted alone into the program of one backend of",
        "one spec, and `harness diff` is asked where the programs part and why. *Place*: backend, step, phase and tensor are",
        "right; *cause*: the fault is among the causes that it names. What is right it is not told: the phase is the",
        "catalogue's, step and tensor are where the faulty program leaves the honest one of the same backend. Of several",
        "tensors that a fault changes at once each counts as right; of values and losses only the first does. Causes come",
        "from the same catalogue as the faults: what is not in it, has no known cause. Where a program has several places for a",
        "fault, it is planted three times: in the first place, in another one, and in every one.", "",
        f"Places right: {sum(c.located for c in cells)} of {len(cells)} ({100 * result.located:.1f} %).",
        f"Causes right: {sum(c.explained for c in cells)} of {len(cells)} ({100 * result.explained:.1f} %).", "",
        f"Places right, by where it was planted: {by_place(cells, lambda c: c.located)}.",
        f"Causes right, by where it was planted: {by_place(cells, lambda c: c.explained)}.", "",
        "| spec | backend | precision | faults | place | cause |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for spec, backend, precision in dict.fromkeys((c.spec, c.backend, c.precision) for c in cells):
        own = [c for c in cells if (c.spec, c.backend, c.precision) == (spec, backend, precision)]
        places, causes = sum(c.located for c in own), sum(c.explained for c in own)
        lines.append(f"| {spec} | {backend} | {precision} | {len(own)} | {places} | {causes} |")
    lines += ["", "| phase | fault | planted | place | cause | not tried |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows(result)]
    wrong = [c for c in cells if not c.located]
    if wrong:
        lines += ["", "Places that were wrong, or not found:", "", "| fault | spec | backend | planted in | phase | what was said |", "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [f"| {c.mutant} | {c.spec} | {c.backend} | {c.where} | {c.phase} | {spelled(c)} |" for c in wrong]
    unnamed = [c for c in cells if c.located and not c.explained]
    if unnamed:
        lines += ["", "Causes that were not named:", "", "| fault | spec | backend | planted in | what was named |", "|---|---|---|---|---|"]  # fmt: skip
        lines += [f"| {c.mutant} | {c.spec} | {c.backend} | {c.where} | {', '.join(c.causes) or 'nothing'} |" for c in unnamed]  # fmt: skip
    return "\n".join([*lines, "", *untried_lines(result.untried)])


def rows(result: ProofResult) -> list[tuple[str, str, int, int, int, int]]:
    """A row a fault: phase, name, how often it was planted, its place found, the fault named; programs not tried."""
    found = []
    for mutant in MUTANTS:
        own = [c for c in result.cells if c.mutant == mutant.name]
        if own:
            places, causes = sum(c.located for c in own), sum(c.explained for c in own)
            left = sum(one.mutant == mutant.name for one in result.untried)
            found.append((mutant.phase, mutant.name, len(own), places, causes, left))
    return found


def spelled(cell: Located) -> str:
    """What was said of a fault, in a few words."""
    if cell.error:
        return f"the program did not run: {cell.error}"
    if cell.found is None:
        return "nothing was found"
    f = cell.found
    return f"step {f['step']}, {f['phase']}, {f['tensor']}, {f['backend']}"


__all__ = ["Located", "ProofResult", "markdown", "proof", "rows", "spelled"]
