"""A program whose every value is off by rounding: with it a shaken twin computes (see harness.twins).

A parameter that is moved moves a value by no more than the way from one to the other lets through. Where that is less than a
unit in the last place (a sigmoid before a normalisation, a gate that is almost 1), no twin whose parameters are moved is rounded
otherwise, and another framework is. So each node's value is moved itself, in the observed variant of the program, where all
nodes have names. Equal numbers are moved alike, since which of them a maximum takes is a convention and no rounding. But an op
that subtracts a mean makes of equal numbers what rounding leaves, and divides that by their spread: what it reads is moved
by one unit more, each number by itself. That is as far as the mean of numbers that are alike is off.

An op whose gradient is made from its value, as y (1 - y), makes it from the value as it was before it was moved, and of what
is near 1 rounding is all that is left in 1 - y. So gradients that pass it are moved by as much of what arrives, times the value:
where y is near 0 none of that is lost.
"""

import ast
from collections.abc import Collection, Mapping
from itertools import pairwise

from harness.backend import OFF_BY_ROUNDING
from harness.emit import graphs
from harness.graph import Program
from harness.syntax import parse


def rounded(program: Program, observed: str) -> str:
    """The observed variant of a program with every node's value off by rounding. Raises ValueError where it has no node."""
    centring = {g.class_name: [n.name for n in g.nodes if n.op.centres] for g in graphs(program)}
    by_value = {g.class_name: [n.name for n in g.nodes if n.op.gradient_by_value] for g in graphs(program)}
    return with_moves(observed, centring, by_value)


def with_moves(
    observed: str, centring: Mapping[str, Collection[str]] | None = None, by_value: Mapping[str, Collection[str]] | None = None
) -> str:  # fmt: skip
    r"""A text with every node's value moved; by class, nodes that subtract a mean, and whose gradient is made from their value.

    Raises ValueError where it has no node.

    >>> text = 'class A:\n    x = self.norm1(x)\n    values["norm1"] = x\n    x = tanh(x)\n    values["tanh1"] = x'
    >>> print(with_moves(text, {"A": ["norm1"]}, {"A": ["tanh1"]}))
    class A:
        x = self.norm1(off_by_rounding(x, centred=True))
        x = off_by_rounding(x)
        values['norm1'] = x
        x = off_by_rounding(tanh(x), read=x)
        values['tanh1'] = x
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
            _move_gradients(own, (by_value or {}).get(own.name, ()), imported)
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
                if not (changed and _is_moved(changed[-1])):
                    changed.append(ast.Assign([ast.Name(variable, ast.Store())], _off(ast.Name(variable, ast.Load()))))
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
            call.args[0] = _off(call.args[0], centred=ast.Constant(value=True))


def _move_gradients(own: ast.ClassDef, by_value: Collection[str], imported: Collection[str]) -> None:
    """Move the values of these nodes of a class where they are made, of what they are made: `x = tanh(x)`."""
    for node in ast.walk(own):
        body = getattr(node, "body", None)
        for before, statement in pairwise(body) if isinstance(body, list) else ():
            if _kept(statement, imported) is None or _entry(statement) not in by_value:
                continue
            if (
                isinstance(before, (ast.Assign, ast.AnnAssign))
                and isinstance(made := before.value, ast.Call)
                and made.args
            ):
                before.value = _off(made, read=made.args[0])


def _off(value: ast.expr, **given: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(OFF_BY_ROUNDING, ast.Load()), [value], [ast.keyword(n, v) for n, v in given.items()])


def _is_moved(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == OFF_BY_ROUNDING


def _entry(statement: ast.stmt) -> object:
    """The name under which a node's value is kept."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    return target.slice.value if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant) else None


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
