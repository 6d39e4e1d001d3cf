"""A program whose every value is off by rounding: with it a shaken twin computes (see harness.twins).

A parameter that is moved moves a value by no more than the way from one to the other lets through. Where that is less than a
unit in the last place (a sigmoid before a normalisation, a gate that is almost 1), no twin whose parameters are moved is rounded
otherwise, and another framework is. So each node's value is moved itself, in the observed variant of the program, where all
nodes have names.
"""

import ast
from itertools import pairwise

from harness.syntax import parse

FUNCTION = "off_by_rounding"
"""A name that such a program lacks: the framework's half of a backend defines it (see harness.backend)."""


def rounded(observed: str) -> str:
    r"""An observed program with every node's value off by rounding. Raises ValueError where it has no node.

    >>> print(rounded('x = f(x)\nvalues["f1"] = x\ny = x'))
    x = off_by_rounding(f(x))
    values['f1'] = x
    y = x
    """
    tree = parse(observed)
    found = 0
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for before, after in pairwise(body) if isinstance(body, list) else ():
            if isinstance(before, ast.Assign) and isinstance(before.targets[0], ast.Name) and _keeps(after):
                before.value = ast.Call(ast.Name(FUNCTION, ast.Load()), [before.value], [])
                found += 1
    if not found:
        raise ValueError("the variant of the program that returns every value keeps none")
    return ast.unparse(ast.fix_missing_locations(tree))


def _keeps(statement: ast.AST) -> bool:
    """Whether it is the entry of a node in `values`. A block's own, whose nodes are moved inside, follows no assignment."""
    return (
        isinstance(statement, ast.Assign)
        and isinstance(target := statement.targets[0], ast.Subscript)
        and isinstance(target.value, ast.Name)
        and target.value.id == "values"
    )
