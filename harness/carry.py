"""Carry a change from one program to another: what somebody changed in the plain one, changed in the observed one too.

A merge of three syntax trees. Merges of lines refuse changes that touch one another, and an observed program notes a
value after every statement, or has the same statement in other words: here only changes of the very same piece meet.
"""

import ast
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from harness.syntax import parse

ALIKE = 0.6
"""How much of two statements' text is the same where one is taken for the other's successor."""


class _BothChangedError(Exception):
    """Both programs have another thing in the same place."""


def carried(base: str, other: str, given: str, *, lenient: bool = False) -> str | None:
    r"""`other` with what `given` changed of `base`; None where both changed the same thing. Comments are lost.

    `lenient`: what `other` does not have at all need not be changed.
    All three are Python; raises SyntaxError where `given` is not.

    >>> print(carried("x = f(x)", "x = f(x)\nvalues['f'] = x", "x = h(x, 2)"))
    x = h(x, 2)
    values['f'] = x
    """
    trees = [parse(text) for text in (base, other, given)]
    plain = {function.name for function, _, _ in _returned_at_once(trees[0])}
    for function, before, after in _returned_at_once(trees[2]):
        if function.name not in plain:
            # `loss = f(x)` and `return loss` are `return f(x)` in other words.
            before.id = after.id = f"{RETURNED}0"
    trees = [_Named().visit(tree) for tree in trees]
    try:
        merged = _Merge(lenient).of(*trees)
    except _BothChangedError:
        return None
    return ast.unparse(ast.fix_missing_locations(_unnamed(_noted(merged))))


def _returned_at_once(tree: ast.Module) -> list[tuple[ast.FunctionDef, ast.Name, ast.Name]]:
    """Functions that end in `x = ...` and `return x`, with both names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
            before, after = node.body[-2:]
            if isinstance(before, ast.Assign) and isinstance(after, ast.Return) and len(before.targets) == 1:
                name, value = before.targets[0], after.value
                if isinstance(name, ast.Name) and isinstance(value, ast.Name) and name.id == value.id:
                    found.append((node, name, value))
    return found


RETURNED = "_carried_"
"""What a returned expression is called on the way; no program of anybody's uses it."""


class _Named(ast.NodeTransformer):
    """`return f(x), seen` -> `_carried_0 = f(x)` and `return _carried_0, seen`: what is computed, apart from what is returned."""

    def visit_Return(self, node: ast.Return) -> list[ast.stmt]:
        value = node.value
        parts: list[ast.expr] = list(value.elts) if isinstance(value, ast.Tuple) else [value] if value else []
        found: list[ast.stmt] = []
        for number, part in enumerate(parts):
            if not isinstance(part, ast.Name | ast.Starred):
                name = f"{RETURNED}{number}"
                if isinstance(part, ast.Call) and isinstance(f := part.func, ast.Attribute) and isinstance(f.value, ast.Call):  # fmt: skip
                    # `f(x).permute(...)`: the layout is changed after the value is known.
                    found.append(ast.Assign([ast.Name(name, ast.Store())], f.value))
                    f.value = ast.Name(name, ast.Load())
                found.append(ast.Assign([ast.Name(name, ast.Store())], part))
                parts[number] = ast.Name(name, ast.Load())
        if parts:
            node.value = ast.Tuple(parts, ast.Load()) if isinstance(value, ast.Tuple) else parts[0]
        return [ast.fix_missing_locations(ast.copy_location(made, node)) for made in (*found, node)]


def _unnamed(tree: ast.Module) -> ast.Module:
    """The inverse of `_Named`."""
    for node in ast.walk(tree):
        blocks: list[list[ast.stmt]] = [getattr(node, "body", []), getattr(node, "orelse", [])]
        for block in (one for one in blocks if isinstance(one, list)):
            for at in range(len(block) - 2, -1, -1):
                made, then = block[at], block[at + 1]
                if isinstance(made, ast.Assign) and isinstance(made.targets[0], ast.Name) and isinstance(then, ast.Return | ast.Assign):  # fmt: skip
                    name = made.targets[0].id
                    if name.startswith(RETURNED) and _uses(then, name) == 1:
                        block[at : at + 2] = [_Put(name, made.value).visit(then)]
    return tree


class _Put(ast.NodeTransformer):
    """An expression in the place of a variable."""

    def __init__(self, name: str, value: ast.expr) -> None:
        self.name, self.value = name, value

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.value if node.id == self.name and isinstance(node.ctx, ast.Load) else node


def _uses(node: ast.AST, name: str) -> int:
    return sum(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load) for n in ast.walk(node))


@dataclass(frozen=True)
class _Merge:
    """A merge of three trees."""

    lenient: bool

    def of(self, base: Any, ours: Any, theirs: Any) -> Any:  # noqa: ANN401 - nodes, lists of them, names and numbers
        if _same(base, theirs) or _same(ours, theirs):
            return ours
        if _same(base, ours):
            return theirs
        if isinstance(base, list) and isinstance(ours, list) and isinstance(theirs, list):
            return self._lists(base, ours, theirs)
        if isinstance(base, ast.AST) and type(base) is type(ours) is type(theirs):
            if all(map(_is_prose, (base, ours, theirs))):
                return ours
            fields = {
                name: self.field(name, *(getattr(node, name, None) for node in (base, ours, theirs)))
                for name in base._fields
            }
            return type(base)(**fields)
        raise _BothChangedError

    def field(self, name: str, base: Any, ours: Any, theirs: Any) -> Any:  # noqa: ANN401 - as above
        """A part of a node. What is written about types changes nothing: where both did, ours will do."""
        try:
            return self.of(base, ours, theirs)
        except _BothChangedError:
            if name in ("returns", "annotation"):
                return ours
            raise

    def _lists(self, base: Sequence[Any], ours: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
        """In the order of `theirs`, with what `ours` has besides put behind what it follows."""
        mine, given = _matched(base, ours), _matched(base, theirs)
        inserted: dict[int, list[Any]] = {}
        before = -1
        origin = {j: i for i, j in mine.items()}
        for j, node in enumerate(ours):
            if j in origin:
                before = origin[j]
            else:
                inserted.setdefault(before, []).append(node)
        # Behind something that is gone: behind what was before it.
        for i in sorted(inserted):
            if i not in given and i != -1:
                left = max((k for k in given if k < i), default=-1)
                inserted.setdefault(left, []).extend(inserted.pop(i))
        source = {j: i for i, j in given.items()}
        found: list[Any] = []
        waiting = inserted.pop(-1, [])
        for j, node in enumerate(theirs):
            if j not in source:
                # What is noted of a value comes after what was added and sets it; anything else comes before.
                first = next((k for k, note in enumerate(waiting) if _sets(node, note)), len(waiting))
                found, waiting = [*found, *waiting[:first], node], waiting[first:]
                continue
            i = source[j]
            found, waiting = found + waiting, []
            if i in mine:
                found.append(self.of(base[i], ours[mine[i]], node))
            elif not (self.lenient or _same(base[i], node)):
                raise _BothChangedError
            waiting = inserted.pop(i, [])
        return found + waiting


def _is_prose(node: object) -> bool:
    """Whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _sets(node: object, note: object) -> bool:
    """Whether a statement sets a name that a note reads."""
    if not isinstance(node, ast.stmt) or not isinstance(note, ast.stmt):
        return False
    own = [n.target for n in ast.walk(node) if isinstance(n, ast.For | ast.comprehension)]
    passing = {n.id for target in own for n in ast.walk(target) if isinstance(n, ast.Name)}
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} - passing
    return any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(note))


def _matched(base: Sequence[Any], other: Sequence[Any]) -> dict[int, int]:
    """Which piece of the base each piece of another list is: the same one, wherever it went, or its successor."""
    found: dict[int, int] = {}
    matcher = SequenceMatcher(None, [_text(n) for n in base], [_text(n) for n in other], autojunk=False)
    for low, at, size in matcher.get_matching_blocks():
        found |= {low + k: at + k for k in range(size)}

    def rest(alike: Callable[[Any, Any], bool]) -> None:
        for i, node in enumerate(base):
            if i not in found:
                taken = set(found.values())
                j = next((j for j, n in enumerate(other) if j not in taken and alike(node, n)), None)
                if j is not None:
                    found[i] = j

    rest(lambda a, b: (_is_prose(a) and _is_prose(b)) or (_key(a) is not None and _key(a) == _key(b)))
    for low, high, start, stop in _gaps(found, len(base), len(other)):
        _pair(base, other, range(low, high), [j for j in range(start, stop) if j not in found.values()], found)
    once = {text for text, n in Counter(map(_text, base)).items() if n == 1}
    rest(lambda a, b: _text(a) in once and _same(a, b))  # moved; what is there twice was not
    return found


def _gaps(found: dict[int, int], size: int, other: int) -> list[tuple[int, int, int, int]]:
    """The stretches between matches that are in order in both."""
    ordered: list[tuple[int, int]] = [(-1, -1)]
    for i, j in sorted(found.items()):
        if j > ordered[-1][1]:
            ordered.append((i, j))
    ordered.append((size, other))
    return [(a + 1, c, b + 1, d) for (a, b), (c, d) in pairwise(ordered)]


def _pair(
    base: Sequence[Any], other: Sequence[Any], left: Sequence[int], right: list[int], found: dict[int, int]
) -> None:
    """Pair what is alike, in order; where as many are left on both sides, those too."""
    left = [i for i in left if i not in found]
    if len(left) == len(right):
        pairs = [(i, j) for i, j in zip(left, right, strict=True) if type(base[i]) is type(other[j])]
        if len(pairs) == len(left):
            found |= dict(pairs)
            return
    for i in left:
        scored = [(SequenceMatcher(None, _text(base[i]), _text(other[j])).ratio(), -j) for j in right]
        best, at = max(scored, default=(0.0, 0))
        if best >= ALIKE and type(base[i]) is type(other[-at]):
            found[i] = -at
            right = [j for j in right if j > -at]


def _key(node: object) -> str | None:
    """What a definition is called."""
    return node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def _text(node: object) -> str:
    return ast.unparse(node) if isinstance(node, ast.AST) else repr(node)


def _same(a: object, b: object) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, ast.AST) and isinstance(b, ast.AST):
        return type(a) is type(b) and ast.dump(a) == ast.dump(b)
    return type(a) is type(b) and a == b


def _noted(tree: ast.Module) -> ast.Module:
    """Have `values[...] = x` note the variable that the statement before it sets, whatever that is called now."""
    for node in ast.walk(tree):
        body = node.body if isinstance(node, ast.FunctionDef) else []
        for before, after in pairwise(body):
            if isinstance(before, ast.Assign) and isinstance(after, ast.Assign):
                target, place = before.targets[0], after.targets[0]
                if isinstance(place, ast.Subscript) and ast.unparse(place.value) == "values" and isinstance(target, ast.Name) and target.id != "values" and isinstance(after.value, ast.Name):  # fmt: skip
                    after.value = ast.Name(target.id, ast.Load())
    return tree
