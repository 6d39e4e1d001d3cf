"""YAML text -> plain data that remembers the line and column of everything, blocks expanded.

YAML 1.2: `1e-3` is a number and `no` is a word (PyYAML, which reads YAML 1.1, has it the other way round).
"""

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from harness import limits, words
from harness.errors import Problem, SpecError
from harness.ops import OPS


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
    folder: Path = Path()
    """Where the files are that it names: the spec's own folder, or for a text that is no file the working directory."""

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        """A problem at a path, with its position."""
        piece = self.root.at(path)
        return Problem(message, spell(path, self.root), piece.line, piece.column)


def read(path: Path) -> Source:
    """A spec's file. Raises SpecError where it is missing or is not YAML."""
    try:
        text = limits.read_bytes(path, limits.SPEC_BYTES, "a spec", FILES).decode("utf-8")
    except OSError as error:
        raise SpecError(path, [Problem(f"cannot be read: {error.strerror or error}{_nearest(path)}")]) from None
    except UnicodeDecodeError as error:
        raise SpecError(path, [Problem(f"is not UTF-8 text: {error.reason} at byte {error.start}")]) from None
    return parse(text, str(path), path.parent)


FILES = "; what a network trains on belongs into a file of its own (`dataset: npz` or `csv`)"


def _nearest(path: Path) -> str:
    try:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
    except (OSError, ValueError):  # no folder, or no path at all
        return ""
    return f"; did you mean {path.parent / near[0]}?" if near and not os.path.exists(path) else ""  # noqa: PTH110 - a path too long is none


def parse(text: str, name: str = "spec", folder: Path | None = None) -> Source:
    """A spec's text. Raises SpecError where it is not YAML, repeats a key or misuses a block.

    `folder`: where the files are that it names; left out, the working directory.
    """
    if len(text) > limits.SPEC_BYTES:
        much = f"has {len(text):,} characters; a spec has {limits.SPEC_BYTES:,} at most{FILES}"
        raise SpecError(name, [Problem(much)])
    if (words := len(re.findall(r"[^\s,\[\]{}]+", text))) > limits.SPEC_WORDS:
        much = f"has {words:,} words and numbers; a spec has {limits.SPEC_WORDS:,} at most{FILES}"
        raise SpecError(name, [Problem(much)])
    if _depth(text) > limits.SPEC_DEPTH:
        raise SpecError(
            name, [Problem(f"is nested too deeply: {limits.SPEC_DEPTH} brackets within one another at most")]
        )
    problems: list[Problem] = []
    root = _Reader(problems).read(_composed(text, name), ())
    if not problems:
        root = _Expander(root, problems).expand()
    if problems:
        raise SpecError(name, problems)
    return Source(name, text, root, Path() if folder is None else folder)


def _composed(text: str, name: str) -> MappingNode:
    """The text as ruamel.yaml's nodes. Raises SpecError."""
    yaml = YAML(typ="rt", pure=True)
    try:
        node = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = "is not YAML: " + " ".join(str(part) for part in (error.context, error.problem) if part)
        message = limits.clipped(message, 300)
        raise SpecError(name, [Problem(message, "", mark and mark.line + 1, mark and mark.column + 1)]) from None
    except YAMLError as error:
        raise SpecError(name, [Problem(limits.clipped(f"is not YAML: {' '.join(str(error).split())}", 300))]) from None
    except RecursionError:
        raise SpecError(name, [Problem("is nested too deeply")]) from None
    except Exception as error:  # noqa: BLE001 - the reader meets "\\U00110000", "%YAML x" and more with whatever Python raises
        said = limits.clipped(" ".join(str(error).split()) or type(error).__name__, 200)
        raise SpecError(name, [Problem(f"is not YAML: {said}")]) from None
    if not isinstance(node, MappingNode):
        raise SpecError(name, [Problem("a spec is a mapping: name, data, networks, training, evaluation")])
    return node


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
        most = limits.SPEC_VALUES
        if id(node) in above or len(above) > limits.SPEC_DEPTH or self.count > most:
            if self.count <= most + 1:
                what = f"more than {most:,} values, aliases written out"
                what = (
                    f"deeper than {limits.SPEC_DEPTH} values within one another"
                    if len(above) > limits.SPEC_DEPTH
                    else what
                )
                what = (
                    "an alias that contains itself"
                    if id(node) in above
                    else f"too deep or too large for a spec: {what}"
                )
                self.problems.append(Problem(what, "", line, column))
            self.count = max(self.count, most + 1) if self.count > most else self.count
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
            self._join_halves(key_node)
            key = str(key_node.value)
            if len(key) > limits.NAME:
                message = f"a key of {len(key):,} characters; a name has {limits.NAME} at most"
                self.problems.append(Problem(message, "", line, column))
                continue
            if key == "<<":
                self.problems.append(Problem("merge keys ('<<') are not supported; declare a block", "", line, column))
            if key in items:
                self.problems.append(Problem(f"the key '{key}' is given twice", "", line, column))
            value = self.read(value_node, above)
            # A mapping's own start is its first key: for an error the key above it is the better place.
            items[key] = Located(value.value, line, column) if isinstance(value.value, dict) else value
        return items

    def _join_halves(self, node: ScalarNode) -> None:
        """JSON, which is YAML too, escapes a character beyond the first 65,536 as two halves."""
        try:
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            line, column = node.start_mark.line + 1, node.start_mark.column + 1
            self.problems.append(Problem("half of a surrogate pair is not a character", "", line, column))

    def _scalar(self, node: ScalarNode) -> str | int | float | bool | None:
        if node.style == ">":
            node.value = node.value.replace("\a", "")  # ruamel.yaml's marks of where the text was folded
        self._join_halves(node)
        # A quoted scalar is text whatever it looks like.
        tag = "str" if node.style in ("'", '"', "|", ">") else str(node.tag).rpartition(":")[2]
        text = str(node.value)
        most = limits.DIGITS if tag in ("int", "float") else limits.TEXT
        if len(text) > most:
            what = "a number" if tag in ("int", "float") else "text"
            line, column = node.start_mark.line + 1, node.start_mark.column + 1
            message = f"{what} of {len(text):,} characters; {'it' if what == 'a number' else 'a piece of text'} has {most:,} at most"
            self.problems.append(Problem(message, "", line, column))
            return None
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


CONTAINERS = {"residual": ("layers", "shortcut"), "repeat": ("layers",), "block": ("layers",)}
"""Layers that have layers of their own, and in which of their fields."""


DEEPEST = limits.SPEC_DEPTH + 5 * limits.NESTING
"""Values within one another once blocks are written out: each use adds five."""


class _TooMuchError(Exception):
    """Blocks and their parameters, written out, are more than a spec may have."""


class _Expander:
    """Uses of the spec's own `blocks:` -> `block: {name, class, layers}`, parameters put in.

    A block is used where a layer can stand, and nowhere else: not in `inputs: [...]`, whatever is called so there.
    """

    def __init__(self, root: Located, problems: list[Problem]) -> None:
        self.root, self.problems, self.count = root, problems, 0
        declared = root.value.get("blocks") if isinstance(root.value, dict) else None
        self.blocks = declared.value if declared and isinstance(declared.value, dict) else {}

    def expand(self) -> Located:
        items = dict(self.root.value) if isinstance(self.root.value, dict) else {}
        for name, block in self.blocks.items():
            if not (isinstance(block.value, dict) and isinstance(block.value.get("layers", block).value, list)):
                self._note(block, f"block '{name}' needs a list of 'layers'")
                return self.root
            if name in OPS or name in CONTAINERS:
                self._note(block, f"block '{name}' has the name of an op; choose another")
                return self.root
            if extra := set(block.value) - {"parameters", "layers", "about"}:
                self._note(block, f"block '{name}': unknown field '{min(extra)}' (known: about, parameters, layers)")
            declared = block.value.get("parameters")
            for own in ("name", "inputs"):
                if declared and isinstance(declared.value, dict) and own in declared.value:
                    message = f"block '{name}': a parameter cannot be called '{own}', which every layer has; choose another name"
                    self._note(declared.value[own], message)
        networks = items.get("networks")
        if networks and isinstance(networks.value, dict) and not self.problems:
            try:
                expanded = {name: self._within(network, ("layers",), ()) for name, network in networks.value.items()}
                networks = items["networks"] = Located(expanded, networks.line, networks.column)
                self._measure(networks, 0)
            except _TooMuchError as error:
                self._note(networks, str(error))
                return self.root
        return Located(items, self.root.line, self.root.column)

    def _measure(self, piece: Located, depth: int) -> None:
        """Raise _TooMuchError where what blocks and parameters stand for is more than what they are written with allows."""
        self._counted()
        if depth > DEEPEST:
            raise _TooMuchError(
                f"blocks, written out wherever they are used, are more than {DEEPEST} values within one another"
            )
        if isinstance(piece.value, (dict, list)):
            for item in piece.value.values() if isinstance(piece.value, dict) else piece.value:
                self._measure(item, depth + 1)

    def _note(self, at: Located, message: str) -> None:
        problem = Problem(message, "", at.line, at.column)
        if problem not in self.problems:  # a block that is used twice is wrong once
            self.problems.append(problem)

    def _counted(self) -> None:
        self.count += 1
        if self.count > limits.SPEC_VALUES:
            raise _TooMuchError(
                f"blocks, written out wherever they are used, have more than {limits.SPEC_VALUES:,} values"
            )

    def _within(self, piece: Located, keys: Sequence[str], inside: tuple[str, ...]) -> Located:
        """A record, the blocks in its lists of layers expanded."""
        if not isinstance(piece.value, dict):
            return piece
        items = {key: self._layers(item, inside) if key in keys else item for key, item in piece.value.items()}
        return Located(items, piece.line, piece.column)

    def _layers(self, piece: Located, inside: tuple[str, ...]) -> Located:
        if not isinstance(piece.value, list):
            return piece
        return Located([self._layer(item, inside) for item in piece.value], piece.line, piece.column)

    def _layer(self, item: Located, inside: tuple[str, ...]) -> Located:
        self._counted()
        name = self._name(item)
        if name in self.blocks:
            return self._use(item, inside)
        lists = CONTAINERS.get(name or "")
        if lists is None or not isinstance(item.value, dict):
            return item
        ((key, inner),) = item.value.items()
        found = self._layers(inner, inside) if isinstance(inner.value, list) else self._within(inner, lists, inside)
        return Located({key: found}, item.line, item.column)

    def _name(self, item: Located) -> str | None:
        if isinstance(item.value, str):
            return item.value
        if isinstance(item.value, dict) and len(item.value) == 1:
            return next(iter(item.value))
        return None

    def _use(self, item: Located, inside: tuple[str, ...]) -> Located:
        name = str(self._name(item))
        if name in inside:
            self._note(item, f"block '{name}' contains itself")
            return Located(None, item.line, item.column)
        if len(inside) >= limits.NESTING:
            self._note(
                item, f"block '{name}' is within {len(inside)} others; blocks are nested {limits.NESTING} deep at most"
            )
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
        layers = self._layers(self._substitute(block["layers"], bound), (*inside, name))
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
                hint = words.hint(key, declared)
                known = ", ".join(declared) or "none"
                self._note(value, f"block '{name}' has no parameter '{key}'{hint} (parameters: {known})")
            bound[key] = value
        for key, value in bound.items():
            if value.value is None and key not in given.value:
                self._note(given, f"block '{name}' needs its parameter '{key}'")
        return bound

    def _substitute(self, piece: Located, bound: Mapping[str, Located]) -> Located:
        self._counted()
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
