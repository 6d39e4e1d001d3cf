"""A program whose every value is off by rounding: with it a shaken twin computes (see harness.twins).

A parameter that is moved moves a value by no more than the way from one to the other lets through. Where that is less than a
unit in the last place (a sigmoid before a normalisation, a gate that is almost 1), no twin whose parameters are moved is rounded
otherwise, and another framework is. So each node's value is moved itself, in the observed variant of the program, where all
nodes have names.
"""

import ast
from collections.abc import Collection

from harness.syntax import parse

FUNCTION = "off_by_rounding"
"""A name that such a program lacks: the framework's half of a backend defines it (see harness.backend)."""


def rounded(observed: str) -> str:
    r"""An observed program with every node's value off by rounding. Raises ValueError where it has no node.

    >>> print(rounded('x = f(x)\nvalues["f1"] = x\ny = x'))
    x = f(x)
    x = off_by_rounding(x)
    values['f1'] = x
    y = x
    """
    tree = parse(observed)
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
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
                call = ast.Call(ast.Name(FUNCTION, ast.Load()), [ast.Name(variable, ast.Load())], [])
                changed.append(ast.Assign([ast.Name(variable, ast.Store())], call))
                found += 1
            changed.append(statement)
        node.body = changed  # type: ignore[attr-defined]
    if not found:
        raise ValueError("the variant of the program that returns every value keeps none")
    return ast.unparse(ast.fix_missing_locations(tree))


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
