"""Leave one default to a framework: a backend's program in, the same program with that one thing otherwise, out.

Where the resolved program can say it (an epsilon, a pad, a form), the resolved program is changed and emitted again;
where it is a rule of the framework's own (an optimizer's, a layer's), the emitted text is.
"""

import ast
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.emit import Slot
from harness.graph import BlockOp, Graph, Node, Program, Update
from harness.ops.base import Shape, ShapeError, spell
from harness.syntax import parse


class Refused(ValueError):  # noqa: N818 - it is an outcome, not a mistake
    """A default under which this network cannot be built: no number, and nobody would miss it."""


@dataclass(frozen=True)
class Draft:
    """A backend's program while a default is planted into it."""

    backend: str
    program: Program
    precision: str
    threads: int
    source: str
    extra: Mapping[str, Shape] = field(default_factory=dict)
    """Parameters that the spec does not have, by name: they start from zero."""


Make = Callable[[Draft], Draft]
Change = Callable[[Program], Program]


@dataclass(frozen=True)
class Plant:
    """A default and how it is left to its framework; a draft that comes back as it was has no place for it."""

    default: str
    """What the framework does, in a few words: `epsilon 0.001`."""
    make: Make


@dataclass(frozen=True)
class Edit:
    """A substitution on emitted text: a pattern (`.` is any character, ends of lines too) and what stands instead."""

    pattern: str
    instead: str


def draft(program: Program, backend: str, precision: str, threads: int = 1) -> Draft:
    """The program as the harness emits it."""
    return Draft(backend, program, precision, threads, emitter(backend).emit(program, precision, threads))


def emitter(backend: str) -> Any:  # noqa: ANN401 - a module: see harness.backend.Emitter
    """A backend's emitter."""
    return importlib.import_module(f"backends.{backend}.emit")


def changed(change: Change) -> Make:
    """A plant that changes the resolved program."""

    def make(given: Draft) -> Draft:
        program = change(given.program)
        if program == given.program:
            return given
        return replace(draft(program, given.backend, given.precision, given.threads), extra=given.extra)

    return make


def edited(*edits: Edit) -> Make:
    """A plant that changes the emitted text, each edit wherever its pattern is."""

    def make(given: Draft) -> Draft:
        source = given.source
        for edit in edits:
            source = re.sub(edit.pattern, edit.instead, source, flags=re.DOTALL | re.MULTILINE)
        return replace(given, source=source)

    return make


def own(helper: str, instead: str) -> Make:
    """A plant that drops a helper of the emitted file and calls the framework's own (`instead`, up to its arguments)."""

    def make(given: Draft) -> Draft:
        found = definition(given.source, helper)
        if found is None:
            return given
        first, last = found
        lines = given.source.splitlines(keepends=True)
        source = "".join(lines[:first] + lines[last:])
        return replace(given, source=re.sub(rf"(?<![\w.]){helper}\(", instead, source))

    return make


def both(*makes: Make) -> Make:
    """One plant after another."""

    def make(given: Draft) -> Draft:
        for each in makes:
            given = each(given)
        return given

    return make


def definition(source: str, name: str) -> tuple[int, int] | None:
    """The lines of a class or function at the top of a file: first (from 0) and the one after the last."""
    for statement in parse(source).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and statement.name == name:
            return statement.lineno - 1, statement.end_lineno or statement.lineno
    return None


def nodes(program: Program) -> Iterator[tuple[str, Node]]:
    """Every op that is no block, with its canonical name."""

    def walk(graph: Graph, prefix: str) -> Iterator[tuple[str, Node]]:
        for node in graph.nodes:
            if isinstance(node.op, BlockOp):
                yield from walk(node.op.graph, f"{prefix}{node.name}.")
            else:
                yield f"{prefix}{node.name}", node

    for network, graph in program.networks.items():
        yield from walk(graph, "" if len(program.networks) == 1 else f"{network}.")


def slots(given: Draft) -> dict[str, Slot]:
    """Canonical name -> where the backend keeps it."""
    found: dict[str, Slot] = emitter(given.backend).slots(given.program)
    return found


def ops(kinds: Iterable[str], fields: Callable[[Node], Mapping[str, object]]) -> Change:
    """A change of the fields of some kinds of ops; shapes are worked out again. Raises Refused where they do not fit."""
    wanted = frozenset(kinds)

    def change(program: Program) -> Program:
        networks = {n: _graph(graph, graph.input_shapes, wanted, fields) for n, graph in program.networks.items()}
        after = replace(program, networks=networks)
        for name, parameter in program.parameters.items():
            have = after.parameters[name].shape
            if have != parameter.shape:
                raise Refused(f"{name} would have shape {spell(have)}, not {spell(parameter.shape)}")
        for name, graph in program.networks.items():
            if networks[name].shape != graph.shape:
                raise Refused(f"{name} would give {spell(networks[name].shape)}, not {spell(graph.shape)}")
        return after

    return change


def _graph(
    graph: Graph, shapes: tuple[Shape, ...], wanted: frozenset[str], fields: Callable[[Node], Mapping[str, object]]
) -> Graph:
    known = dict(zip(graph.inputs, shapes, strict=True))
    made = []
    for node in graph.nodes:
        inputs = tuple(known[name] for name in node.inputs)
        op = node.op
        if isinstance(op, BlockOp):
            op = op.model_copy(update={"graph": _graph(op.graph, inputs, wanted, fields)})
        elif op.kind in wanted:
            op = op.model_copy(update=dict(fields(replace(node, input_shapes=inputs))))
        try:
            known[node.name] = op.output(*inputs)
        except ShapeError as error:
            raise Refused(f"{node.name}: {error}") from None
        made.append(Node(node.name, op, node.inputs, inputs, known[node.name]))
    return replace(graph, nodes=tuple(made), input_shapes=shapes)


def updates(change: Callable[[Update], Update]) -> Change:
    """A change of every update."""
    return lambda program: replace(program, updates=tuple(change(update) for update in program.updates))


def optimizers(kind: str, **fields: object) -> Change:
    """A change of the fields of one kind of optimizer (and of those that are made from it, for `adam`)."""
    kinds = ("adam", "adamw") if kind == "adam" else (kind,)

    def change(update: Update) -> Update:
        if update.optimizer.kind not in kinds:
            return update
        return replace(update, optimizer=update.optimizer.model_copy(update=fields))

    return updates(change)


def learns(canonical: str, path: str, shape: Shape) -> Make:
    """One more learned parameter, in the table of the emitted program and among what it starts from."""

    def make(given: Draft) -> Draft:
        axes = tuple(range(len(shape)))
        row = f'PARAMETERS = {{\n    "{canonical}": ("{path}", {axes}),\n'
        source = given.source.replace("PARAMETERS = {\n", row)
        return replace(given, source=source, extra={**given.extra, canonical: shape})

    return make
