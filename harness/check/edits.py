"""Changes to the text of an emitted program: what is looked for is written as code, however it is laid out."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import ClassVar

from harness.backend import BACKENDS
from harness.check.places import FIRST, Place, Site

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
    r"""Code that is replaced where it stands: at one of its places, at some, or always at all of them.

    In `old`, `$x` is any name, attribute, subscript or number, and `$$x` any text whose brackets close; `$x` in `new`
    is what was found. `<head>` in either is a name or number of the program at hand, see `harness.check.mutant.names`;
    without it there is nothing to change. Line breaks, indentation and a comma before a closing bracket are not compared.

    >>> Edit("F.relu($x)", "$x.clamp(min=0)").applied("y = F.relu(\n    self.hidden,\n)", {})
    'y = self.hidden.clamp(min=0)'
    >>> Edit("F.relu($x)", "$x").applied("y = nnx.relu(x)", {}) is None
    True
    >>> Edit("f($x)", "$x").applied("f(a) + f(b)", {}, [1])
    'f(a) + b'
    """

    old: str
    new: str
    everywhere: bool = False
    """A class that is exchanged is exchanged wherever it is used: then a fault inside it is one place."""
    once: bool = False
    """It is needed once, however many places of its plan are chosen: what is there already stays."""

    @property
    def names(self) -> set[str]:
        """The names of the program that it needs."""
        return set(re.findall(NAMED, self.old + self.new))

    def matches(self, text: str, known: Mapping[str, str]) -> list[re.Match[str]]:
        """Where its code stands."""
        if self.names - set(known):
            return []
        return list(re.finditer(expression(_filled(self.old, known)), text))

    def applied(self, text: str, known: Mapping[str, str], chosen: Collection[int] = (0,)) -> str | None:
        """The text changed at these of its places, or None where the code does not occur."""
        found = self.matches(text, known)
        if not found:
            there = self.once and not self.names - set(known) and _filled(self.new, known) in text
            return text if there else None
        parts, end = [], 0
        for i, match in enumerate(found):
            if self.everywhere or i in chosen:
                parts += [text[end : match.start()], Template(_filled(self.new, known)).substitute(match.groupdict())]
                end = match.end()
        return "".join([*parts, text[end:]])


@dataclass(frozen=True)
class Helper:
    """A class or function that is put before the program's own first one."""

    text: str
    names: ClassVar[set[str]] = set()

    def applied(self, text: str, known: Mapping[str, str], chosen: Collection[int] = ()) -> str | None:
        """The text with the helper in it, once."""
        del known, chosen
        if self.text.strip() in text:
            return text
        first = re.search(r"\n\n+(?=(class|def) )", text)
        return None if first is None else f"{text[: first.start()]}\n\n\n{self.text.strip()}\n\n\n{text[first.end() :]}"


@dataclass(frozen=True)
class Needs:
    """Code without which a plan does not apply; it stays as it is."""

    code: str

    @property
    def names(self) -> set[str]:
        """The names of the program that it needs."""
        return set(re.findall(NAMED, self.code))

    def applied(self, text: str, known: Mapping[str, str], chosen: Collection[int] = ()) -> str | None:
        """The text as it is, where the code occurs."""
        del chosen
        return text if re.search(expression(_filled(self.code, known)), text) else None


def _filled(code: str, known: Mapping[str, str]) -> str:
    return re.sub(NAMED, lambda found: known[found[1]], code)


Part = Edit | Helper | Needs
Plan = tuple[Part, ...]
"""Changes that belong together: all of them, or none. The places of the first edit are those of the plan."""


@dataclass(frozen=True)
class Inapplicable:
    """Why a backend cannot have a fault: said, not skipped."""

    why: str


Plans = Mapping[str, "tuple[Plan, ...] | Inapplicable"]
"""By backend, alternatives: each is made wherever it applies."""


def plans(*alternatives: Part | Plan) -> tuple[Plan, ...]:
    """Alternatives, a single change being a plan of one."""
    return tuple(plan if isinstance(plan, tuple) else (plan,) for plan in alternatives)


def same(*alternatives: Part | Plan) -> dict[str, tuple[Plan, ...]]:
    """The same changes in every backend: their programs say it in the same words."""
    return dict.fromkeys(BACKENDS, plans(*alternatives))


def alone(backend: str, *alternatives: Part | Plan, why: str) -> Plans:
    """Changes that one backend alone can have, and why the others cannot."""
    return {name: plans(*alternatives) if name == backend else Inapplicable(why) for name in BACKENDS}


def each(torch: Edit, tensorflow: Edit, jax: Edit) -> dict[str, tuple[Plan, ...]]:
    """One change a backend."""
    return {"torch": plans(torch), "tensorflow": plans(tensorflow), "jax": plans(jax)}


def head(sort: str, torch: str, tensorflow: str, jax: str) -> Plans:
    """Another call of a network's last dense layer of a sort (see `names`), of which `$x` is the input."""
    return each(*(Edit(f"self.<{sort}>($x)", new.replace("<head>", f"<{sort}>")) for new in (torch, tensorflow, jax)))


Bindings = Callable[[set[str]], Sequence[Mapping[str, str]]]
"""What the names that a plan needs may stand for in a program: the first of each sort first."""


def planned(text: str, alternatives: tuple[Plan, ...], bindings: Bindings, place: Place = FIRST) -> str | None:
    """The text changed at the chosen places of all alternatives; None where there is none, or they exclude one another."""
    found = [
        (plan, known, sites)
        for plan in alternatives
        for known in bindings(set().union(*(part.names for part in plan)))
        if (sites := _sites(plan, text, known))
    ]
    chosen = set(place.of([site for _, _, sites in found for site in sites]))
    if not chosen:
        return None
    start = 0
    for plan, known, sites in found:
        own = [i - start for i in range(start, start + len(sites)) if i in chosen]
        start += len(sites)
        if own:
            changed = _made(plan, text, known, own, len(sites))
            if changed is None:
                return None
            text = changed
    return text


def _sites(plan: Plan, text: str, known: Mapping[str, str]) -> list[Site]:
    """The places of a plan: none where any part of it has nothing to change, or other places than its first edit."""
    main = next((part for part in plan if isinstance(part, Edit) and not part.everywhere and not part.once), None)
    found = [("", "")] if main is None else [_site(text, match) for match in main.matches(text, known)]
    return found if found and _made(plan, text, known, [0], len(found)) is not None else []


def _made(plan: Plan, text: str, known: Mapping[str, str], chosen: Collection[int], count: int) -> str | None:
    changed: str | None = text
    for part in plan:
        if changed is None:
            return None
        own: Collection[int] = chosen
        if isinstance(part, Edit) and not part.everywhere:
            places = len(part.matches(changed, known))
            if places not in (0, 1, count):
                return None
            own = [0] if places == 1 else chosen
        changed = part.applied(changed, known, own)
    return changed


def _site(text: str, match: re.Match[str]) -> Site:
    """The class and the node that a piece of a program is about.

    The layer that its line makes or that it calls; else the one whose value is noted after it.
    """
    line = text.rfind("\n", 0, match.start()) + 1
    classes = re.findall(r"^class (\w+)", text[:line], re.MULTILINE)
    inside = classes and not re.search(r"^\S", text[text.rfind(f"class {classes[-1]}", 0, line) : line].partition("\n")[2], re.MULTILINE)  # fmt: skip
    if not inside:
        return "", ""
    made = re.match(r"\s+self\.(\w+) = ", text[line:]) or re.search(r"self\.(\w+)", match[0])
    noted = re.compile(r"^\s+values\[\"(\w+)\"\] = ", re.MULTILINE).search(text, match.end())
    found = made or noted
    return classes[-1], found[1] if found else ""


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
