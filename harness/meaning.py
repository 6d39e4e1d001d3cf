"""Where two programs differ in meaning: the lines of each whose statements the other does not have.

Comments, blank lines, layout, docstrings, annotations of functions, the order of imports and of arguments given by name
do not count: statements are compared as Python reads them, and shown as they stand.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from harness.syntax import parse

BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""The parts of a statement that hold other statements."""
Line = tuple[int, str]
"""Its number, from 1, and its text."""


@dataclass(frozen=True)
class Hunk:
    """A place where two programs differ: lines of the one in place of lines of the other."""

    where: str
    """The class and function, like `Classifier.__init__`; empty outside of any."""
    before: tuple[Line, ...]
    after: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        sides = {"before": self.before, "after": self.after}
        return {"where": self.where} | {
            name: [{"line": number, "text": text} for number, text in lines] for name, lines in sides.items()
        }


@dataclass(frozen=True)
class _Unit:
    """A statement without those inside it."""

    key: str
    first: int
    last: int
    where: str


def hunks(before: str, after: str) -> list[Hunk]:
    r"""The places where two programs differ in meaning, in the order of the second. Raises SyntaxError.

    >>> [(h.before, h.after) for h in hunks("x = f(1)  # one\ny = 2\n", "x = f(\n    1\n)\ny = 3\n")]
    [(((2, 'y = 2'),), ((4, 'y = 3'),))]
    """
    old, new = _units(before), _units(after)
    old_lines, new_lines = before.splitlines(), after.splitlines()
    found = []
    imports = [[u for u in units if u.key.startswith("import ")] for units in (old, new)]
    known = [{u.key for u in units} for units in imports]
    gone = [u for u in imports[0] if u.key not in known[1]]
    come = [u for u in imports[1] if u.key not in known[0]]
    if gone or come:
        found.append(Hunk("", _lines(gone, old_lines), _lines(come, new_lines)))
    old, new = ([u for u in units if not u.key.startswith("import ")] for units in (old, new))
    matcher = SequenceMatcher(None, [u.key for u in old], [u.key for u in new], autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what != "equal":
            where = (new[c:d] or old[a:b])[0].where
            left, right = old[a:b], new[c:d]
            sides = [(_lines(left, old_lines), _lines(right, new_lines))]
            if len(left) == len(right):
                # As many statements as there were: each is one of them changed.
                sides = [
                    _narrowed(_lines([x], old_lines), _lines([y], new_lines)) for x, y in zip(left, right, strict=True)
                ]
            found.append(
                Hunk(where, *(tuple(line for side in both for line in side) for both in zip(*sides, strict=True)))
            )
    return found


def unified(found: Sequence[Hunk], before: str, after: str) -> list[str]:
    r"""Hunks as lines of a unified diff, each with its number. `before`, `after`: what the programs are called.

    >>> print("\n".join(unified(hunks("x = 1\n", "\nx = 2\n"), "emitted", "mine.py")))
    --- emitted
    +++ mine.py
    @@
    -1 x = 1
    +2 x = 2
    """
    if not found:
        return []
    width = len(str(max(number for hunk in found for number, _ in (*hunk.before, *hunk.after))))
    lines = [f"--- {before}", f"+++ {after}"]
    for hunk in found:
        lines.append(f"@@ {hunk.where}".rstrip())
        lines += [f"-{number:>{width}} {text}" for number, text in hunk.before]
        lines += [f"+{number:>{width}} {text}" for number, text in hunk.after]
    return lines


def _units(text: str) -> list[_Unit]:
    tree = _Plain().visit(parse(text))
    return list(_walk(tree.body, "", 0, ""))


def _walk(statements: Sequence[ast.AST], where: str, depth: int, block: str) -> Iterator[_Unit]:
    for node in statements:
        if isinstance(node, ast.Import | ast.ImportFrom):
            source = "." * getattr(node, "level", 0) + (getattr(node, "module", None) or "")
            for alias in node.names:
                yield _Unit(f"import {source} {alias.name} {alias.asname}", alias.lineno, alias.lineno, where)
            continue
        # An expression that is a constant does nothing: a docstring.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        inner = [(name, getattr(node, name)) for name in BLOCKS if isinstance(getattr(node, name, None), list)]
        own = where
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            own = f"{where}.{node.name}".lstrip(".")
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])  # type: ignore[attr-defined]
        head = next((part[0].lineno - 1 for _, part in inner if part), node.end_lineno)  # type: ignore[attr-defined]
        yield _Unit(f"{depth} {block} {_head(node)}", first, max(head, node.lineno), where or own)  # type: ignore[attr-defined]
        for name, part in inner:
            yield from _walk(part, own, depth + 1, name)


def _head(node: ast.AST) -> str:
    """A statement as Python reads it, without those inside it."""
    kept = {name: [] if name in BLOCKS else value for name, value in ast.iter_fields(node)}
    return ast.dump(type(node)(**kept))


class _Plain(ast.NodeTransformer):
    """Takes away what does not change what a program computes."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815 - the visitor's names

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if all(keyword.arg for keyword in node.keywords):
            node.keywords.sort(key=lambda keyword: keyword.arg or "")
        return self.generic_visit(node)


def _lines(units: Sequence[_Unit], lines: Sequence[str]) -> tuple[Line, ...]:
    numbers = dict.fromkeys(n for unit in units for n in range(unit.first, unit.last + 1))
    return tuple(
        (n, lines[n - 1]) for n in numbers if lines[n - 1].strip() and not lines[n - 1].lstrip().startswith("#")
    )


def _narrowed(before: tuple[Line, ...], after: tuple[Line, ...]) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """Of statements on several lines only the lines that differ; all of them where none does by itself."""
    old, new = ([text.strip().rstrip(",") for _, text in side] for side in (before, after))
    kept: tuple[list[Line], list[Line]] = ([], [])
    for what, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what != "equal":
            kept[0].extend(before[a:b])
            kept[1].extend(after[c:d])
    return (tuple(kept[0]), tuple(kept[1])) if kept[0] or kept[1] else (before, after)


__all__ = ["Hunk", "Line", "hunks", "unified"]
