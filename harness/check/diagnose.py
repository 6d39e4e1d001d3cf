"""Where, what and why in one record: the finding, the line of the program that makes it, and a probable cause."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from harness.check import dissect
from harness.check.causes import Cause, causes
from harness.check.dissect import Finding
from harness.check.subject import Subject
from harness.syntax import parse

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Line:
    """A line of an emitted program."""

    number: int
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """Where trainings part, and why."""

    finding: Finding
    line: Line | None
    """Of the odd backend's program; None where nothing in it can be named."""
    causes: tuple[Cause, ...]
    """Faults of the catalogue that explain the difference, best first; none fits where it is empty."""

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        line = None if self.line is None else {"number": self.line.number, "text": self.line.text}
        return {**self.finding.to_json(), "line": line, "causes": [cause.to_json() for cause in self.causes]}

    def sentences(self) -> list[str]:
        """The diagnosis in plain English."""
        f = self.finding
        agree = [b for b, vote in f.votes.items() if vote == "agrees"]
        mode = " (in evaluation)" if f.mode == "evaluation" else ""
        said = [
            f"They part at step {f.step}, in phase {f.phase}, at {f.tensor}{mode}: {f.backend} is the odd one out"
            + (f" ({' and '.join(agree)} agree{'s' if len(agree) == 1 else ''})." if agree else "."),
            self._numbers(),
            f"{f.confirmed[:1].upper()}{f.confirmed[1:]}.",
        ]
        said = [sentence for sentence in said if sentence != "."]
        if self.line is not None:
            said.append(f"Line {self.line.number} of {f.backend}'s program: {self.line.text}")
        if not self.causes:
            said.append("No known cause fits.")
        said += [
            f"Consistent with {cause.about}: planted into {cause.backend}, that explains {_percent(cause.explained)} "
            "of the difference."
            for cause in self.causes
        ]
        return said

    def _numbers(self) -> str:
        f, w = self.finding, self.finding.worst
        if f.gone:
            return f"{f.tensor} cannot be compared: {f.gone}."
        at = list(w.index) if w.index else ""
        return (
            f"{f.tensor}{at}: expected {w.a!r} ({f.against}), got {w.b!r}; {w.allowed:.3g} apart would be allowed, "
            f"a tolerance of {w.difference:.3g} would be needed."
        )


def _percent(share: float) -> str:
    return "all" if share > 1 - 1e-9 else f"{100 * share:.4g} %"


def diagnose(
    subject: Subject, observed: Mapping[str, str], plain: Mapping[str, str], steps: int,
    listen: Callable[[str, Mapping[str, Any]], None] = lambda _name, _event: None,
) -> Diagnosis | None:  # fmt: skip
    """Take programs apart until they part; None where none of so many steps shows more than rounding.

    `observed` and `plain`: by backend, the programs that return every value and those that are read. `listen` hears how far
    it is, as `harness.progress` has it.
    """
    name = subject.program.name
    listen(name, {"phase": f"{subject.precision} steps taken apart", "total": steps})
    refused = dissect.refusal(subject, observed)
    found = refused or dissect.find(subject, observed, steps, lambda done: listen(name, {"step": done, "losses": {}}))
    if found is not None and not refused:
        listen(name, {"phase": f"{subject.precision} causes tried", "total": 0})
    if found is None:
        dissect.closed(subject)
        return None
    why = [] if refused else causes(subject, dissect.take(subject, observed, found.step - 1), found)
    dissect.closed(subject)
    source = plain.get(found.backend)
    line = None if source is None else locate(source, observed[found.backend], found, subject)
    return Diagnosis(found, line, tuple(why))


# The line -------------------------------------------------------------------------------------------------


def locate(source: str, observed: str, found: Finding, subject: Subject) -> Line | None:
    """The statement of a program that makes what was found."""
    tree, other = parse(source), parse(observed)
    lines = source.splitlines()

    def line(node: ast.AST | None) -> Line | None:
        number = getattr(node, "lineno", None)
        return None if number is None else Line(number, lines[number - 1].strip())

    if found.phase in ("forward", "state", "backward"):
        tensor = found.tensor
        if found.phase != "forward":
            tensor = _call_of(found, subject)
        place = dissect.node_of(subject.program.networks, tensor)
        return None if place is None else line(_statement(tree, other, *place))
    if found.phase == "data":
        name = found.tensor.split("/")[0]
        every = [n for f in _functions(tree, "load_batch") for n in ast.walk(f)]
        return line(next((n for n in every if isinstance(n, ast.Constant) and n.value == name), None))
    if found.phase == "loss":
        update = found.tensor.removeprefix("loss/")
        wanted = "loss_fn" if len(subject.program.updates) == 1 else f"{update}_loss"
        returns = [n for f in _functions(tree, wanted) for n in ast.walk(f) if isinstance(n, ast.Return)]
        return line(next(iter(returns), None))
    if found.gone:
        return None
    steps = [*_functions(tree, "train_step"), *_functions(tree, "minimise")]
    calls = [n for f in steps for n in ast.walk(f) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return line(next((n for n in calls if n.func.attr in ("step", "apply", "update")), None))  # type: ignore[attr-defined]


def _call_of(found: Finding, subject: Subject) -> str:
    """A parameter's node as a node's tensor is named."""
    name = found.tensor.rpartition("/")[2]
    if len(subject.program.networks) > 1:
        name = name.partition(".")[2]
    return f"x.{name.rpartition('.')[0]}"


def _functions(tree: ast.Module, name: str) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield node


def _statement(tree: ast.Module, observed: ast.Module, class_name: str, node: str) -> ast.stmt | None:
    """A node's statement in a program's forward pass: where the observed one computes what it calls by that name."""
    forward = _forward(observed, class_name)
    # What each note is of; where a statement was left out, a note follows another note, and there is no line.
    made = [
        (ast.literal_eval(after.targets[0].slice), ast.dump(before.value))  # type: ignore[attr-defined]
        for before, after in pairwise(forward)
        if _is_note(after) and isinstance(before, ast.Assign) and not _is_note(before)
    ]
    wanted = next((value for name, value in made if name == node), None)
    if wanted is None:
        return None
    # The same expression may be there several times: the first note of it is of its first statement.
    number = [name for name, value in made if value == wanted].index(node)
    found = [
        statement
        for statement in _forward(tree, class_name)
        if any(ast.dump(inner) == wanted for inner in ast.walk(statement) if isinstance(inner, ast.expr))
    ]
    return found[min(number, len(found) - 1)] if found else None


def _is_note(statement: ast.stmt) -> bool:
    """Whether a statement keeps a value for those who look: `values["conv1"] = x`."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    return isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant) and ast.unparse(target.value) == "values"  # fmt: skip


def _forward(tree: ast.Module, class_name: str) -> list[ast.stmt]:
    for made in tree.body:
        if isinstance(made, ast.ClassDef) and made.name == class_name:
            for inner in made.body:
                if isinstance(inner, ast.FunctionDef) and inner.name in ("forward", "call", "__call__"):
                    return inner.body
    return []
