"""A program whose every value is off by rounding: with it a shaken twin computes (see harness.twins).

A parameter that is moved moves a value by no more than the way from one to the other lets through. Where that is less than a
unit in the last place (a sigmoid before a normalisation, a gate that is almost 1), no twin whose parameters are moved is rounded
otherwise, and another framework is. So each node's value is moved itself, in the observed variant of the program, where all
nodes have names. Equal numbers are moved alike, since which of them a maximum takes is a convention and no rounding. But an op
that subtracts a mean makes of equal numbers what rounding leaves, and divides that by their spread: what it reads is moved
by one unit more, each number by itself. That is as far as the mean of numbers that are alike is off.
"""

import ast
from collections.abc import Collection, Mapping

from harness.backend import OFF_BY_ROUNDING
from harness.emit import graphs
from harness.graph import Program
from harness.syntax import parse


def rounded(program: Program, observed: str) -> str:
    """The observed variant of a program with every node's value off by rounding. Raises ValueError where it has no node."""
    return moved(observed, {g.class_name: [n.name for n in g.nodes if n.op.centres] for g in graphs(program)})


def moved(observed: str, centring: Mapping[str, Collection[str]] | None = None) -> str:
    r"""A text with every node's value moved, and what is read by these nodes of a class. Raises ValueError where it has no node.

    >>> print(moved('class A:\n    x = self.norm1(x)\n    values["norm1"] = x', {"A": ["norm1"]}))
    class A:
        x = self.norm1(off_by_rounding(x, centred=True))
        x = off_by_rounding(x)
        values['norm1'] = x
    """
    tree = parse(observed)
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    for own in tree.body:
        if isinstance(own, ast.ClassDef):
            _move_inputs(own, (centring or {}).get(own.name, ()))
    found = 0
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        changed: list[ast.stmt] = []
        for statement in body:
            variable = _kept(statement, imported)
            # A block's own value, whose nodes are moved inside, comes after theirs are added: `values |= ...`.
            if variable is not None and not (changed and isinstance(changed[-1], ast.AugAssign)):
                call = ast.Call(ast.Name(OFF_BY_ROUNDING, ast.Load()), [ast.Name(variable, ast.Load())], [])
                changed.append(ast.Assign([ast.Name(variable, ast.Store())], call))
                found += 1
            changed.append(statement)
        node.body = changed  # type: ignore[attr-defined]
    if not found:
        raise ValueError("the variant of the program that returns every value keeps none")
    return ast.unparse(ast.fix_missing_locations(tree))


def _move_inputs(own: ast.ClassDef, centring: Collection[str]) -> None:
    """Move what a class's calls of these layers read, in place: `self.norm1(x)`, whatever stands around it."""
    for call in ast.walk(own):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "self"
            and call.func.attr in centring
            and call.args
        ):
            centred = ast.keyword("centred", ast.Constant(value=True))
            call.args[0] = ast.Call(ast.Name(OFF_BY_ROUNDING, ast.Load()), [call.args[0]], [centred])


def _kept(statement: ast.AST, imported: Collection[str]) -> str | None:
    """The variable that a node's entry in `values` is of, in whatever axes: a module may turn them."""
    if (
        isinstance(statement, ast.Assign)
        and isinstance(target := statement.targets[0], ast.Subscript)
        and isinstance(target.value, ast.Name)
        and target.value.id == "values"
    ):
        names = [part.id for part in ast.walk(statement.value) if isinstance(part, ast.Name)]
        own = [name for name in names if name not in imported]
        return own[0] if len(own) == 1 else None
    return None
