"""YAML text -> plain data that remembers the line and column of everything, blocks expanded.

YAML 1.2: `1e-3` is a number and `no` is a word (PyYAML, which reads YAML 1.1, has it the other way round).
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from harness.errors import Problem, SpecError

LARGEST = 200_000  # nodes: more than any real spec, less than an alias bomb
DEEPEST = 60
LONGEST = 20_000_000  # characters


@dataclass(frozen=True)
class Located:
    """A piece of YAML: its value, made of further pieces, and where it starts (counted from 1)."""

    value: "dict[str, Located] | list[Located] | str | int | float | bool | None"
    line: int
    column: int

    def plain(self) -> Any:  # noqa: ANN401 - whatever the YAML holds
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def at(self, path: Sequence[str | int]) -> "Located":
        """The piece at a path; steps that the text does not have (an implied field) are passed over.

        A record written op first (`- conv2d: {...}`) is entered when a step names one of its fields.
        """
        here = self
        for step in path:
            value = here.value
            if isinstance(value, dict):
                if step in value:
                    here = value[str(step)]
                elif len(value) == 1 and isinstance(inner := next(iter(value.values())).value, dict) and step in inner:
                    here = inner[str(step)]
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                here = value[step]
        return here


@dataclass(frozen=True)
class Source:
    """A spec's text, read: its pieces and the file's name."""

    name: str
    text: str
    root: Located

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        """A problem at a path, with its position."""
        piece = self.root.at(path)
        return Problem(message, spell(path, self.root), piece.line, piece.column)


def read(path: Path) -> Source:
    """A spec's file. Raises SpecError where it is missing or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise SpecError(path, [Problem(f"cannot be read: {error.strerror or error}{hint}")]) from None
    except UnicodeDecodeError as error:
        raise SpecError(path, [Problem(f"is not UTF-8 text: {error.reason} at byte {error.start}")]) from None
    return parse(text, str(path))


def parse(text: str, name: str = "spec") -> Source:
    """A spec's text. Raises SpecError where it is not YAML, repeats a key or misuses a block."""
    if len(text) > LONGEST or _depth(text) > DEEPEST:
        raise SpecError(name, [Problem("is too large or nested too deeply for a spec")])
    yaml = YAML(typ="rt", pure=True)
    try:
        node = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = "is not YAML: " + " ".join(str(part) for part in (error.context, error.problem) if part)
        raise SpecError(name, [Problem(message, "", mark and mark.line + 1, mark and mark.column + 1)]) from None
    except YAMLError as error:
        raise SpecError(name, [Problem(f"is not YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise SpecError(name, [Problem("is nested too deeply")]) from None
    if not isinstance(node, MappingNode):
        raise SpecError(name, [Problem("a spec is a mapping: name, data, networks, training, evaluation")])
    problems: list[Problem] = []
    root = _Reader(problems).read(node, ())
    if not problems:
        root = _Expander(root, problems).expand()
    if problems:
        raise SpecError(name, problems)
    return Source(name, text, root)


def _depth(text: str) -> int:
    """The deepest nesting of brackets, at most: those in quotes are counted too."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def spell(path: Sequence[str | int], root: Located | None = None) -> str:
    """A path as it is printed, with the op of each layer on it.

    >>> spell(("networks", "classifier", "layers", 3, "conv2d", "stride"))
    'networks.classifier.layers[3].conv2d.stride'
    """
    out = ""
    here = root
    for step in path:
        if here is not None:
            inner = here.at((step,))
            if inner is here:
                continue
            here = inner
        out += f"[{step}]" if isinstance(step, int) else f".{step}" if out else str(step)
    return out


class _Reader:
    """Composed YAML nodes -> Located."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems, self.count = problems, 0

    def read(self, node: Any, above: tuple[int, ...]) -> Located:  # noqa: ANN401 - ruamel's nodes
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.count += 1
        if id(node) in above or len(above) > DEEPEST or self.count > LARGEST:
            if self.count <= LARGEST + 1:
                what = "an alias that contains itself" if id(node) in above else "too deep or too large for a spec"
                self.problems.append(Problem(what, "", line, column))
            self.count = max(self.count, LARGEST + 1) if self.count > LARGEST else self.count
            return Located(None, line, column)
        above = (*above, id(node))
        if isinstance(node, MappingNode):
            return Located(self._mapping(node, above), line, column)
        if isinstance(node, SequenceNode):
            return Located([self.read(item, above) for item in node.value], line, column)
        return Located(self._scalar(node), line, column)

    def _mapping(self, node: MappingNode, above: tuple[int, ...]) -> dict[str, Located]:
        items: dict[str, Located] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem("a key must be a word", "", line, column))
                continue
            key = key_node.value
            if key == "<<":
                self.problems.append(Problem("merge keys ('<<') are not supported; declare a block", "", line, column))
            if key in items:
                self.problems.append(Problem(f"the key '{key}' is given twice", "", line, column))
            value = self.read(value_node, above)
            # A mapping's own start is its first key: for an error the key above it is the better place.
            items[key] = Located(value.value, line, column) if isinstance(value.value, dict) else value
        return items

    def _scalar(self, node: ScalarNode) -> str | int | float | bool | None:
        if node.style == ">":
            node.value = node.value.replace("\a", "")  # ruamel.yaml's marks of where the text was folded
        try:
            # JSON, which is YAML too, escapes a character beyond the first 65,536 as two halves.
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            line, column = node.start_mark.line + 1, node.start_mark.column + 1
            self.problems.append(Problem("half of a surrogate pair is not a character", "", line, column))
        # A quoted scalar is text whatever it looks like.
        tag = "str" if node.style in ("'", '"', "|", ">") else str(node.tag).rpartition(":")[2]
        text = str(node.value)
        try:
            match tag:
                case "int":
                    return int(text.replace("_", ""), 0) if not re.fullmatch(r"[-+]?0\d+", text) else int(text)
                case "float":
                    return float(
                        text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").replace(".NaN", "nan")
                    )
                case "bool":
                    return bool(text.lower() == "true")
                case "null":
                    return None
        except (ValueError, OverflowError):
            return str(text)
        return str(text)


class _Expander:
    """Uses of the spec's own `blocks:` -> `block: {name, class, layers}`, parameters put in."""

    def __init__(self, root: Located, problems: list[Problem]) -> None:
        self.root, self.problems = root, problems
        declared = root.value.get("blocks") if isinstance(root.value, dict) else None
        self.blocks = declared.value if declared and isinstance(declared.value, dict) else {}

    def expand(self) -> Located:
        items = dict(self.root.value) if isinstance(self.root.value, dict) else {}
        for name, block in self.blocks.items():
            if not (isinstance(block.value, dict) and isinstance(block.value.get("layers", block).value, list)):
                self._note(block, f"block '{name}' needs a list of 'layers'")
                return self.root
            if extra := set(block.value) - {"parameters", "layers", "about"}:
                self._note(block, f"block '{name}': unknown field '{min(extra)}' (known: about, parameters, layers)")
        if "networks" in items:
            items["networks"] = self._walk(items["networks"], ())
        return Located(items, self.root.line, self.root.column)

    def _note(self, at: Located, message: str) -> None:
        self.problems.append(Problem(message, "", at.line, at.column))

    def _walk(self, piece: Located, inside: tuple[str, ...]) -> Located:
        if isinstance(piece.value, list):
            return Located([self._walk(self._use(item, inside), inside) if not self._is_use(item)
                            else self._use(item, inside) for item in piece.value], piece.line, piece.column)  # fmt: skip
        if isinstance(piece.value, dict):
            items = {key: self._walk(item, inside) for key, item in piece.value.items()}
            return Located(items, piece.line, piece.column)
        return piece

    def _is_use(self, item: Located) -> bool:
        return self._name(item) in self.blocks

    def _name(self, item: Located) -> str | None:
        if isinstance(item.value, str):
            return item.value
        if isinstance(item.value, dict) and len(item.value) == 1:
            return next(iter(item.value))
        return None

    def _use(self, item: Located, inside: tuple[str, ...]) -> Located:
        name = self._name(item)
        if name is None or name not in self.blocks:
            return item
        if name in inside:
            self._note(item, f"block '{name}' contains itself")
            return Located(None, item.line, item.column)
        block = self.blocks[name].value
        given = item.value[name] if isinstance(item.value, dict) else Located({}, item.line, item.column)
        if given.value is None:
            given = Located({}, item.line, item.column)
        if not isinstance(block, dict) or not isinstance(given.value, dict):
            self._note(given, f"block '{name}' takes its parameters by name: '{name}: {{...}}'")
            return Located(None, item.line, item.column)
        own: dict[str, Located] = {key: given.value[key] for key in ("name", "inputs") if key in given.value}
        bound = self._bind(name, block, given)
        layers = self._walk(self._substitute(block["layers"], bound), (*inside, name))
        call: dict[str, Located] = {"class_name": Located(name, item.line, item.column), "layers": layers, **own}
        return Located({"block": Located(call, item.line, item.column)}, item.line, item.column)

    def _bind(self, name: str, block: Mapping[str, Located], given: Located) -> dict[str, Located]:
        declared = block["parameters"].value if "parameters" in block else {}
        if not isinstance(declared, dict) or not isinstance(given.value, dict):
            self._note(block["parameters"], f"block '{name}': parameters are names with defaults (null: no default)")
            return {}
        bound = dict(declared)
        for key, value in given.value.items():
            if key in ("name", "inputs"):
                continue
            if key not in declared:
                close = get_close_matches(key, declared, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                known = ", ".join(declared) or "none"
                self._note(value, f"block '{name}' has no parameter '{key}'{hint} (parameters: {known})")
            bound[key] = value
        for key, value in bound.items():
            if value.value is None and key not in given.value:
                self._note(given, f"block '{name}' needs its parameter '{key}'")
        return bound

    def _substitute(self, piece: Located, bound: Mapping[str, Located]) -> Located:
        if isinstance(piece.value, str) and piece.value.startswith("$"):
            name = piece.value[1:]
            if name not in bound:
                self._note(
                    piece, f"'{piece.value}' is no parameter of this block (parameters: {', '.join(bound) or 'none'})"
                )
                return piece
            return Located(bound[name].value, piece.line, piece.column)
        if isinstance(piece.value, dict):
            return Located({k: self._substitute(v, bound) for k, v in piece.value.items()}, piece.line, piece.column)
        if isinstance(piece.value, list):
            return Located([self._substitute(v, bound) for v in piece.value], piece.line, piece.column)
        return piece
