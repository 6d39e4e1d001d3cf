"""Changes to a resolved program, before one backend emits it: a fault that every backend can have.

Each returns the program changed at the places that were chosen (a block that occurs several times is one place), or
None where there is nothing to change.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from harness.check.places import FIRST, Place, Site
from harness.graph import BlockOp, CallSite, Graph, Node, Program, Term, Update
from harness.ops.base import Op
from harness.optimizers import Clip, Optimizer, Schedule


class Change(Protocol):
    """A program with a fault at a place, or None."""

    def __call__(self, program: Program, place: Place = FIRST, /) -> Program | None:
        """The program changed; its parameters and their shapes stay."""


def nodes(change: Callable[[Node], Node | None]) -> Change:
    """Nodes that `change` has an answer for, exchanged. Their users and their shapes stay."""

    def changed(program: Program, place: Place = FIRST) -> Program | None:
        found: dict[Site, Node] = {}
        seen: set[str] = set()

        def visit(graph: Graph) -> None:
            # Every use of a block's class is the same class.
            if graph.class_name in seen:
                return
            seen.add(graph.class_name)
            for node in graph.nodes:
                if isinstance(node.op, BlockOp):
                    visit(node.op.graph)
                elif (new := change(node)) is not None:
                    found[graph.class_name, node.name] = new

        def rebuilt(graph: Graph) -> Graph:
            return replace(
                graph,
                nodes=tuple(
                    replace(node, op=BlockOp(graph=rebuilt(node.op.graph)))
                    if isinstance(node.op, BlockOp)
                    else chosen.get((graph.class_name, node.name), node)
                    for node in graph.nodes
                ),
            )

        for graph in program.networks.values():
            visit(graph)
        sites = list(found)
        chosen = {sites[i]: found[sites[i]] for i in place.of(sites)}
        if not chosen:
            return None
        return replace(program, networks={name: rebuilt(graph) for name, graph in program.networks.items()})

    return changed


def ops(*kinds: type[Op]) -> Callable[[Callable[[Node], Op | None]], Change]:
    """Changes the op of nodes of these kinds for which there is an answer."""

    def of(change: Callable[[Node], Op | None]) -> Change:
        def changed(node: Node) -> Node | None:
            op = change(node) if isinstance(node.op, kinds) else None
            return None if op is None or op == node.op else replace(node, op=op)

        return nodes(changed)

    return of


def fields(*kinds: type[Op], **values: object) -> Change:
    """Nodes of these kinds that have fields of these names, whose values are others."""

    def change(node: Node) -> Op | None:
        if any(not hasattr(node.op, name) for name in values):
            return None
        same = all(getattr(node.op, name) == value for name, value in values.items())
        return None if same else node.op.model_copy(update=values)

    return ops(*(kinds or (Op,)))(change)


def updates(change: Callable[[Update], Update | None]) -> Change:
    """Updates that `change` has an answer for, exchanged."""

    def changed(program: Program, place: Place = FIRST) -> Program | None:
        found = {i: new for i, update in enumerate(program.updates) if (new := change(update)) is not None}
        numbers = list(found)
        chosen = {numbers[i] for i in place.of([("", program.updates[i].name) for i in numbers])}
        if not chosen:
            return None
        return replace(program, updates=tuple(found[i] if i in chosen else u for i, u in enumerate(program.updates)))

    return changed


def terms(change: Callable[[Program, Term], Term | None]) -> Change:
    """Terms of losses that `change` has an answer for, exchanged."""

    def changed(program: Program, place: Place = FIRST) -> Program | None:
        found = {
            (i, j): new
            for i, update in enumerate(program.updates)
            for j, term in enumerate(update.terms)
            if (new := change(program, term)) is not None
        }
        keys = list(found)
        chosen = {keys[n] for n in place.of([("", program.updates[i].name) for i, _ in keys])}
        if not chosen:
            return None
        return replace(
            program,
            updates=tuple(
                replace(u, terms=tuple(found[i, j] if (i, j) in chosen else t for j, t in enumerate(u.terms)))
                for i, u in enumerate(program.updates)
            ),
        )

    return changed


def optimizers(change: Callable[[Optimizer], Optimizer | None]) -> Change:
    """Updates' optimizers that `change` has an answer for, exchanged."""

    def of(update: Update) -> Update | None:
        rule = change(update.optimizer)
        return None if rule is None else replace(update, optimizer=rule)

    return updates(of)


def schedule(change: Callable[[Schedule], Schedule | None]) -> Change:
    """Schedules that `change` has an answer for, exchanged."""

    def of(update: Update) -> Update | None:
        rule = change(update.schedule)
        return None if rule is None else replace(update, schedule=rule)

    return updates(of)


def clip(change: Callable[[Clip], Clip | None]) -> Change:
    """Clipping rules, exchanged, or dropped where `change` says None."""

    def of(update: Update) -> Update | None:
        return None if update.clip is None else replace(update, clip=change(update.clip))

    return updates(of)


def call(site: CallSite, **values: object) -> CallSite:
    """A call site with some of its fields set."""
    return replace(site, **values)  # type: ignore[arg-type]


def elements(program: Program, term: Term) -> int:
    """How many values a term's mean is over, in a full batch."""
    shape = term.outputs_shape[:-1] if term.loss.integer_targets else term.outputs_shape
    return program.batch * math.prod(shape)
