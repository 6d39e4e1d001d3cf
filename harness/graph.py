"""The resolved program: every name, shape, pad and constant explicit. The meaning is fixed.

A `Graph` is a network (or a block inside one) as nodes in the order of evaluation; a `Program` is the graphs
with the updates that train them. Nothing below this module looks at the spec again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.data.datasets import Column
from harness.losses import Loss
from harness.ops.base import Op, Parameter, Shape
from harness.optimizers import Clip, Optimizer, Schedule
from harness.spec import Spec


@dataclass(frozen=True)
class Node:
    """One op in its place: its name, what it reads, and the shapes that it meets."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    shape: Shape

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The arrays that this node owns."""
        return self.op.parameters(*self.input_shapes)


@dataclass(frozen=True)
class Graph:
    """A network or a block: nodes in order of evaluation."""

    class_name: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    input_dtypes: tuple[str, ...]
    nodes: tuple[Node, ...]
    output: str

    @property
    def shape(self) -> Shape:
        """The output's shape."""
        shapes = dict(zip(self.inputs, self.input_shapes, strict=True)) | {n.name: n.shape for n in self.nodes}
        return shapes[self.output]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Parameters and statistics by canonical name within the network: `conv1.kernel`, `block1.norm1.scale`."""
        return {name: parameter for node in self.nodes for name, parameter in _owned(node)}

    @property
    def masks(self) -> dict[str, tuple[Shape, float]]:
        """Dropout masks by the name of their layer: shape of one example's, and the share dropped."""
        found: dict[str, tuple[Shape, float]] = {}
        for node in self.nodes:
            if isinstance(node.op, BlockOp):
                found |= {f"{node.name}.{name}": mask for name, mask in node.op.graph.masks.items()}
            elif (mask := node.op.mask(*node.input_shapes)) is not None:
                found[node.name] = mask
        return found

    @property
    def blocks(self) -> Iterator["Graph"]:
        """The graphs of the blocks inside, innermost first."""
        for node in self.nodes:
            if isinstance(node.op, BlockOp):
                yield from node.op.graph.blocks
                yield node.op.graph

    def users(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value."""
        return tuple(node for node in self.nodes if name in node.inputs)


class BlockOp(Op):
    """A node that is a graph of its own, with parameters of its own."""

    kind = "block"
    graph: Any

    def output(self, *_inputs: Shape) -> Shape:
        """The shape of the graph's output."""
        return self.graph.shape  # type: ignore[no-any-return]


def _owned(node: Node) -> Iterator[tuple[str, Parameter]]:
    if isinstance(node.op, BlockOp):
        for name, parameter in node.op.graph.parameters.items():
            yield f"{node.name}.{name}", parameter
    else:
        for parameter in node.parameters:
            yield f"{node.name}.{parameter.name}", parameter


@dataclass(frozen=True)
class Ref:
    """What a call or a loss reads: a field of the batch, a value of the same update, or a number."""

    kind: str
    """`field`, `value` or `number`."""
    name: str = ""
    number: float = 0.0


@dataclass(frozen=True)
class CallSite:
    """One application of a network inside an update."""

    variable: str
    network: str
    arguments: tuple[Ref, ...]
    scope: str
    """Under which name its dropout masks are kept."""
    moved: bool
    """Whether its value depends on a parameter that this update moves."""


@dataclass(frozen=True)
class Term:
    """One term of an update's loss."""

    loss: Loss
    outputs: Ref
    targets: Ref
    outputs_shape: Shape


@dataclass(frozen=True)
class Update:
    """One minimisation: calls in order, the terms of the loss, the networks moved, the rule that moves them."""

    name: str
    calls: tuple[CallSite, ...]
    terms: tuple[Term, ...]
    over: tuple[str, ...]
    optimizer: Optimizer
    schedule: Schedule
    clip: Clip | None


@dataclass(frozen=True)
class Program:
    """Everything that a backend compiles."""

    name: str
    about: str
    seed: int
    source: str
    columns: dict[str, Column]
    batch: int
    networks: dict[str, Graph]
    updates: tuple[Update, ...]
    steps: int
    spec: Spec = field(compare=False)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Parameters and statistics of all networks; with several networks, the network's name comes first."""
        if len(self.networks) == 1:
            return next(iter(self.networks.values())).parameters
        return {f"{net}.{name}": p for net, graph in self.networks.items() for name, p in graph.parameters.items()}

    @property
    def masks(self) -> dict[str, dict[str, tuple[Shape, float]]]:
        """Dropout masks of one step, by call and layer."""
        sites = {site.scope: self.networks[site.network].masks for u in self.updates for site in u.calls}
        return {scope: masks for scope, masks in sites.items() if masks}

    @property
    def fields(self) -> dict[str, Column]:
        """The fields of the data that a training step reads."""
        used = {ref.name for u in self.updates for site in u.calls for ref in site.arguments if ref.kind == "field"}
        used |= {
            ref.name for u in self.updates for t in u.terms for ref in (t.outputs, t.targets) if ref.kind == "field"
        }
        return {name: column for name, column in self.columns.items() if name in used}
