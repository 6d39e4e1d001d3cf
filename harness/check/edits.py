"""Changes to the text of an emitted program: what is looked for is written as code, however it is laid out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

SIMPLE = r"[\w.]+(?:(?<=e)-\d+)?(?:\[[^\[\]\n]*\])*"
"""A name, an attribute, a number, or one of these with a subscript."""


def _balanced(depth: int) -> str:
    """Text whose brackets close, nested `depth` deep: as little of it as fits."""
    inside = r"[^()\[\]{}]"
    for _ in range(depth):
        inside = rf"(?:[^()\[\]{{}}]|[(\[{{]{inside}*[)\]}}])"
    return rf"{inside}*?"


BALANCED = _balanced(3)


@dataclass(frozen=True)
class Edit:
    """Code that is replaced where it first stands, or everywhere.

    In `old`, `$x` is any name, attribute, subscript or number, and `$$x` any text whose brackets close; `$x` in `new`
    is what was found. Line breaks, indentation and a comma before a closing bracket are not compared.

    >>> Edit("F.relu($x)", "$x.clamp(min=0)").applied("y = F.relu(\\n    self.hidden,\\n)")
    'y = self.hidden.clamp(min=0)'
    >>> Edit("F.relu($x)", "$x").applied("y = nnx.relu(x)") is None
    True
    """

    old: str
    new: str
    everywhere: bool = False

    def applied(self, text: str, known: Mapping[str, str] | None = None) -> str | None:
        """The text changed, or None where the code does not occur. `known` are values for names in `new`."""
        values = dict(known or {})
        changed, count = re.subn(
            expression(self.old),
            lambda found: Template(self.new).substitute(values | found.groupdict()),
            text,
            count=0 if self.everywhere else 1,
        )
        return changed if count else None


@dataclass(frozen=True)
class Helper:
    """A class or function that is put before the program's own first one."""

    text: str

    def applied(self, text: str, known: Mapping[str, str] | None = None) -> str | None:
        """The text with the helper in it."""
        del known
        first = re.search(r"\n\n+(?=(class|def) )", text)
        return None if first is None else f"{text[: first.start()]}\n\n\n{self.text.strip()}\n\n\n{text[first.end() :]}"


Plan = tuple[Edit | Helper, ...]
"""Changes that belong together: all of them, or none."""


def planned(text: str, plans: tuple[Plan, ...], known: Mapping[str, str]) -> str | None:
    """The text changed by the first plan of which every part applies; None where there is none."""
    for plan in plans:
        changed: str | None = text
        for part in plan:
            changed = None if changed is None else part.applied(changed, known)
        if changed is not None:
            return changed
    return None


def expression(pattern: str) -> str:
    """The regular expression of a piece of code with placeholders.

    >>> bool(re.search(expression("f($x, 1)"), "f(\\n    a.b,\\n    1,\\n)"))
    True
    """
    seen: set[str] = set()
    parts = [r"(?<![\w.])"] if re.match(r"\w", pattern) else []
    for token in re.findall(r"\$\$?\w+|\s+|[(\[{]|[)\]}]|\w+|.", pattern):
        name = token.lstrip("$")
        if token[0] == "$" and name in seen:
            parts.append(f"(?P={name})")
        elif token[0] == "$":
            seen.add(name)
            parts.append(f"(?P<{name}>{BALANCED if token.startswith('$$') else SIMPLE})")
        elif token.isspace():
            parts.append(r"\s+")
        elif token in "([{":
            parts.append(re.escape(token) + r"\s*")
        elif token in ")]}":
            parts.append(r",?\s*" + re.escape(token))
        else:
            parts.append(re.escape(token))
    return "".join(parts)
