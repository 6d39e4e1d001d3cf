"""Changes to the text of an emitted program: what is looked for is written as code, however it is laid out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

SIMPLE = r"[\w.]+(?:(?<=e)-\d+)?(?:\[[^\[\]\n]*\])*"
"""A name, an attribute, a number, or one of these with a subscript."""


NAMED = r"<(\w+)>"
"""What stands for a name of the program."""


def _balanced(depth: int) -> str:
    """Text whose brackets close, nested `depth` deep: as little of it as fits."""
    inside = r"[^()\[\]{}]"
    for _ in range(depth):
        inside = rf"(?:[^()\[\]{{}}]|[(\[{{]{inside}*[)\]}}])"
    return rf"{inside}*?"


BALANCED = _balanced(3)


@dataclass(frozen=True)
class Edit:
    r"""Code that is replaced where it first stands, or everywhere.

    In `old`, `$x` is any name, attribute, subscript or number, and `$$x` any text whose brackets close; `$x` in `new`
    is what was found. `<head>` in either is a name or number of the program at hand, see `harness.check.mutant.names`;
    without it there is nothing to change. Line breaks, indentation and a comma before a closing bracket are not compared.

    >>> Edit("F.relu($x)", "$x.clamp(min=0)").applied("y = F.relu(\n    self.hidden,\n)", {})
    'y = self.hidden.clamp(min=0)'
    >>> Edit("F.relu($x)", "$x").applied("y = nnx.relu(x)", {}) is None
    True
    """

    old: str
    new: str
    everywhere: bool = False

    def applied(self, text: str, known: Mapping[str, str]) -> str | None:
        """The text changed, or None where the code does not occur."""
        if set(re.findall(NAMED, self.old + self.new)) - set(known):
            return None
        old, new = (re.sub(NAMED, lambda found: known[found[1]], code) for code in (self.old, self.new))
        changed, count = re.subn(
            expression(old),
            lambda found: Template(new).substitute(found.groupdict()),
            text,
            count=0 if self.everywhere else 1,
        )
        return changed if count else None


@dataclass(frozen=True)
class Helper:
    """A class or function that is put before the program's own first one."""

    text: str

    def applied(self, text: str, known: Mapping[str, str]) -> str | None:
        """The text with the helper in it."""
        del known
        first = re.search(r"\n\n+(?=(class|def) )", text)
        return None if first is None else f"{text[: first.start()]}\n\n\n{self.text.strip()}\n\n\n{text[first.end() :]}"


Plan = tuple[Edit | Helper, ...]
"""Changes that belong together: all of them, or none."""

Plans = Mapping[str, tuple[Plan, ...]]
"""By backend, alternatives: the first that applies is made."""


def plans(*alternatives: Edit | Helper | Plan) -> tuple[Plan, ...]:
    """Alternatives, a single change being a plan of one."""
    return tuple(plan if isinstance(plan, tuple) else (plan,) for plan in alternatives)


def same(*alternatives: Edit | Helper | Plan) -> Plans:
    """The same changes in every backend: their programs say it in the same words."""
    return dict.fromkeys(("torch", "tensorflow", "jax"), plans(*alternatives))


def each(torch: Edit, tensorflow: Edit, jax: Edit) -> Plans:
    """One change a backend."""
    return {"torch": plans(torch), "tensorflow": plans(tensorflow), "jax": plans(jax)}


def head(torch: str, tensorflow: str, jax: str) -> Plans:
    """Another call of a network's last dense layer, of which `$x` is the input."""
    return each(*(Edit("self.<head>($x)", new) for new in (torch, tensorflow, jax)))


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
    r"""The regular expression of a piece of code with placeholders.

    >>> bool(re.search(expression("f($x, 1)"), "f(\n    a.b,\n    1,\n)"))
    True
    """
    seen: set[str] = set()
    parts = [r"(?<!\w)"] if re.match(r"\w", pattern) else []
    for part in re.findall(r"\$\$?\w+|\s+|[(\[{]|[)\]}]|\w+|.", pattern):
        name = part.lstrip("$")
        if part[0] == "$" and name in seen:
            parts.append(f"(?P={name})")
        elif part[0] == "$":
            seen.add(name)
            parts.append(f"(?P<{name}>{BALANCED if part.startswith('$$') else SIMPLE})")
        elif part.isspace():
            parts.append(r"\s+")
        elif part in "([{":
            parts.append(re.escape(part) + r"\s*")
        elif part in ")]}":
            parts.append(r",?\s*" + re.escape(part))
        else:
            parts.append(re.escape(part))
    return "".join(parts)
