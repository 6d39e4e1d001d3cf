"""What a training step computes and moves, counted from the graph.

Floating-point operations are those of its matrix products, two a multiplication. Bytes are those of a step that keeps
nothing in caches between its operations and fuses none of them: the abscissa of a roofline (S. Williams, A. Waterman, D.
Patterson, Roofline, Communications of the ACM 52, 2009), not what a memory bus would count.
"""

import math
from collections.abc import Mapping

from harness.graph import BlockOp, CallSite, Graph, Program, Update


def step(program: Program) -> int:
    """Of one training step over a batch: forward, and the gradients that its updates need."""
    return sum(_update(program, update) for update in program.updates)


RATE = {"float64": 10e9, "float32": 20e9, "bfloat16": 20e9, "tf32": 20e9}
"""Operations of products a second that one core of a usual machine makes in a training: convolutions of 16 to 128 channels."""
CALL = 1e-3
"""Seconds that a step takes however small it is."""


def guess(program: Program, precision: str, steps: int) -> float:
    """Seconds, by their order of magnitude, that a training of so many steps takes on one core: before anything was timed."""
    return steps * (step(program) / RATE[precision] + CALL)


def forward(program: Program) -> int:
    """Of the forward passes of one training step."""
    sites = [site for update in program.updates for site in update.calls]
    return 2 * program.batch * sum(_graph(program.networks[site.network], dict.fromkeys(_inputs(program, site), False), moves=False)[0] for site in sites)  # fmt: skip


def traffic(program: Program, precision: str) -> int:
    """Bytes that one training step reads and writes.

    An operation's output is written and read once in the forward pass; in the backward pass it is read again, and its
    gradient is written and read. A parameter is read in both, its gradient written and read, and the optimizer reads and
    writes it and all that it remembers of it.
    """
    width = 8 if precision == "float64" else 4
    total = 0
    for update in program.updates:
        for site in update.calls:
            graph = program.networks[site.network]
            parameters = sum(math.prod(p.shape) for p in graph.parameters.values())
            total += parameters + program.batch * (sum(map(math.prod, graph.input_shapes)) + 2 * _values(graph))
            if site.moved:
                total += parameters + 3 * program.batch * _values(graph)
        slots = len(update.optimizer.remembers)
        learned = sum(math.prod(p.shape) for n in update.over for p in program.networks[n].parameters.values() if p.learned)  # fmt: skip
        total += (2 + 2 + 2 * slots) * learned
    return width * total


def _values(graph: Graph) -> int:
    """Numbers that all operations of a network put out for one example."""
    return sum(
        _values(node.op.graph) if isinstance(node.op, BlockOp) else math.prod(node.shape) for node in graph.nodes
    )


def _inputs(program: Program, site: CallSite) -> tuple[str, ...]:
    return program.networks[site.network].inputs


def _update(program: Program, update: Update) -> int:
    """A product costs itself; its gradient by its parameters, where they are moved, and by what it reads, as much again each."""
    depends: dict[str, bool] = {}
    total = 0
    for site in update.calls:
        graph = program.networks[site.network]
        given = {
            name: ref.kind == "value" and depends.get(ref.name, False)
            for name, ref in zip(graph.inputs, site.arguments, strict=True)
        }
        moves = site.network in update.over
        products, reached = _graph(graph, given, moves=moves)
        if not site.moved:  # no gradient goes there
            products, reached = _graph(graph, dict.fromkeys(given, False), moves=False)[0], False
        total += products
        depends[site.variable] = reached
    return 2 * program.batch * total


def _graph(graph: Graph, given: Mapping[str, bool], *, moves: bool) -> tuple[int, bool]:
    """Multiplications, and whether the output depends on what is moved; `given`: whether each input does."""
    depends = dict(given)
    total = 0
    for node in graph.nodes:
        inside = any(depends[name] for name in node.inputs)
        if isinstance(node.op, BlockOp):
            own = dict(zip(node.op.graph.inputs, (depends[name] for name in node.inputs), strict=True))
            products, depends[node.name] = _graph(node.op.graph, own, moves=moves)
            total += products
            continue
        outer, inner, pairs = node.op.products(*node.input_shapes)
        reached = moves or inside
        total += outer * (1 + moves + inside) + inner * (1 + moves + reached) + pairs * (1 + 2 * reached)
        depends[node.name] = inside or (moves and bool(node.parameters))
    return total, depends[graph.output]
