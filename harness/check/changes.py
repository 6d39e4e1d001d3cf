"""Changes to a resolved program, before one backend emits it: a fault that every backend can have.

Each returns the program changed in one place (a block that occurs several times is one place), or None where there
is nothing to change.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from harness.graph import BlockOp, CallSite, Graph, Node, Program, Term, Update
from harness.ops.base import Op
from harness.optimizers import Clip, Optimizer, Schedule

Change = Callable[[Program], Program | None]
SITE: ContextVar[str | None] = ContextVar("SITE", default=None)
"""The name of the one node that `first_node` may change; None: whichever comes first."""


@contextmanager
def at(node: str) -> Iterator[None]:
    """Plant faults of nodes into the node of this name."""
    token = SITE.set(node)
    try:
        yield
    finally:
        SITE.reset(token)


def first_node(program: Program, change: Callable[[Node], Node | None]) -> Program | None:
    """The first node that `change` has an answer for, exchanged. Its users and its shape stay."""
    done: dict[str, Graph] = {}

    def visit(graph: Graph) -> Graph:
        if graph.class_name in done:
            return done[graph.class_name]
        if done:
            return graph
        for i, node in enumerate(graph.nodes):
            if isinstance(node.op, BlockOp):
                inner = visit(node.op.graph)
                if done:
                    # Every use of the block's class is the same class.
                    nodes = tuple(
                        replace(n, op=BlockOp(graph=visit(n.op.graph))) if isinstance(n.op, BlockOp) else n
                        for n in graph.nodes
                    )
                    return replace(graph, nodes=nodes)
                del inner
            elif SITE.get() in (None, node.name) and (changed := change(node)) is not None:
                done[graph.class_name] = replace(graph, nodes=(*graph.nodes[:i], changed, *graph.nodes[i + 1 :]))
                return done[graph.class_name]
        return graph

    networks = {name: visit(graph) for name, graph in program.networks.items()}
    return replace(program, networks=networks) if done else None


def first_op(*kinds: type[Op]) -> Callable[[Callable[[Node], Op | None]], Change]:
    """Changes the op of the first node of these kinds for which there is an answer."""

    def of(change: Callable[[Node], Op | None]) -> Change:
        def changed(node: Node) -> Node | None:
            op = change(node) if isinstance(node.op, kinds) else None
            return None if op is None else replace(node, op=op)

        return lambda program: first_node(program, changed)

    return of


def fields(kind: type[Op], **values: object) -> Change:
    """The first node of a kind, some of its fields set; None where they have these values already."""

    def change(node: Node) -> Op | None:
        same = all(getattr(node.op, name) == value for name, value in values.items())
        return None if same else node.op.model_copy(update=values)

    return first_op(kind)(change)


def first_update(program: Program, change: Callable[[Update], Update | None]) -> Program | None:
    """The first update that `change` has an answer for, exchanged."""
    for i, update in enumerate(program.updates):
        if (changed := change(update)) is not None:
            return replace(program, updates=(*program.updates[:i], changed, *program.updates[i + 1 :]))
    return None


def first_term(change: Callable[[Program, Term], Term | None]) -> Change:
    """The first term of a loss that `change` has an answer for, exchanged."""

    def changed(program: Program) -> Program | None:
        def of(update: Update) -> Update | None:
            for i, term in enumerate(update.terms):
                if (new := change(program, term)) is not None:
                    return replace(update, terms=(*update.terms[:i], new, *update.terms[i + 1 :]))
            return None

        return first_update(program, of)

    return changed


def optimizers(change: Callable[[Optimizer], Optimizer | None]) -> Change:
    """Every update's optimizer that `change` has an answer for, exchanged."""

    def changed(program: Program) -> Program | None:
        rules = [change(update.optimizer) for update in program.updates]
        if not any(rules):
            return None
        pairs = zip(program.updates, rules, strict=True)
        return replace(program, updates=tuple(replace(u, optimizer=rule) if rule else u for u, rule in pairs))

    return changed


def schedule(change: Callable[[Schedule], Schedule | None]) -> Change:
    """The first schedule that `change` has an answer for, exchanged."""

    def of(update: Update) -> Update | None:
        rule = change(update.schedule)
        return None if rule is None else replace(update, schedule=rule)

    return lambda program: first_update(program, of)


def clip(change: Callable[[Clip], Clip | None]) -> Change:
    """The first clipping rule, exchanged, or dropped where `change` says None."""

    def of(update: Update) -> Update | None:
        return None if update.clip is None else replace(update, clip=change(update.clip))

    return lambda program: first_update(program, of)


def call(site: CallSite, **values: object) -> CallSite:
    """A call site with some of its fields set."""
    return replace(site, **values)  # type: ignore[arg-type]


def elements(program: Program, term: Term) -> int:
    """How many values a term's mean is over, in a full batch."""
    shape = term.outputs_shape[:-1] if term.loss.integer_targets else term.outputs_shape
    return program.batch * math.prod(shape)
