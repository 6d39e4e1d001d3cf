"""Parameters whose true gradient is zero, by what each op says of itself, and what they move downstream.

A change of such a parameter changes nothing that a loss can see: an op behind it takes the change away again, whatever lies
between them. What a framework computes as its gradient is rounding noise. An optimizer that divides a gradient by its own
size (Adam) moves the parameter by that noise, as far as any other. So it is named and judged apart, and what it moves
(running means, outputs in evaluation) is judged with it in mind (`harness.judge`).

This is one of two ways to know; the other is by numbers (`harness.judge.Zero`). Where they disagree, nothing is excused.
"""

from dataclasses import dataclass, field

from harness.graph import BlockOp, Graph, Node, Program, Ref, Update
from harness.ops.base import Shape, Shift, everywhere, together
from harness.ops.linear import Unembed


@dataclass(frozen=True)
class Invariance:
    """What a program's losses do not see."""

    parameters: dict[str, str]
    """Learned parameters whose true gradient is zero in every update that moves them: canonical name -> why."""
    carriers: dict[str, tuple[str, ...]]
    """Statistics that move with such parameters, which ones; only where an optimizer moves these far enough to show."""

    def explained(self) -> dict[str, str]:
        """Both, by canonical name, with the reason."""
        carried = {
            name: f"a statistic that carries {' and '.join(those)}, whose gradient is zero"
            for name, those in self.carriers.items()
        }
        return self.parameters | carried


def zero_gradient(program: Program) -> dict[str, str]:
    """Canonical name -> why its gradient is zero, or which parameter without gradient a statistic carries."""
    return invariance(program).explained()


def invariance(program: Program) -> Invariance:
    """What the losses of a program do not see."""
    parameters: dict[str, str] = {}
    carriers: dict[str, list[str]] = {}
    for network, graph in program.networks.items():
        prefix = "" if len(program.networks) == 1 else f"{network}."
        updates = [update for update in program.updates if network in update.over]
        for name, parameter in graph.parameters.items():
            if not parameter.learned or not updates:
                continue
            ways = [_in_update(program, update, network, name) for update in updates]
            if any(way.seen or not way.ignored for way in ways):
                continue
            parameters[f"{prefix}{name}"] = next(iter(ways[0].ignored.values()))
            if any(update.optimizer.scale_free for update in updates):
                for statistic in {s: None for way in ways for s in way.carriers}:
                    carriers.setdefault(statistic, []).append(f"{prefix}{name}")
    return Invariance(parameters, {name: tuple(those) for name, those in carriers.items()})


def deaf(node: Node) -> bool:
    """Whether a node, or one inside of it, says the same whatever it is given, as a normalisation of one value does.

    What a framework makes of it is rounding, which a layer behind it may multiply until it is as large as anything.
    """
    if isinstance(node.op, BlockOp):
        return any(map(deaf, node.op.graph.nodes))
    everything = tuple(_real(everywhere(shape), shape) for shape in node.input_shapes)
    return bool(everything) and node.op.passes(everything, *node.input_shapes) is None


@dataclass
class _Way:
    """What became of one parameter's change on its way through an update."""

    seen: bool = False
    """Whether it reaches the loss."""
    ignored: dict[str, str] = field(default_factory=dict)
    """By node: who took it away, as a reason."""
    carriers: list[str] = field(default_factory=list)
    """The statistics that took it along, by canonical name."""


def _in_update(program: Program, update: Update, network: str, parameter: str) -> _Way:
    """Follow a change of a network's parameter through the calls of an update to its loss."""
    way = _Way()
    values: dict[str, Shift] = {}

    def shift_of(ref: Ref) -> Shift:
        return values.get(ref.name) if ref.kind == "value" else None

    for site in update.calls:
        prefix = "" if len(program.networks) == 1 else f"{site.network}."
        changed = parameter if site.network == network else None
        given = tuple(shift_of(argument) for argument in site.arguments)
        values[site.variable] = _through(program.networks[site.network], given, changed, way, prefix)
    for term in update.terms:
        shifts = shift_of(term.outputs), shift_of(term.targets)
        if not term.loss.weight or together(shifts) is None:
            continue
        if term.loss.ignores(*shifts, term.outputs_shape):
            way.ignored.setdefault(term.loss.kind, f"{term.loss.kind} does not see what it adds")
        else:
            way.seen = True
    return way


def _through(graph: Graph, given: tuple[Shift, ...], parameter: str | None, way: _Way, prefix: str) -> Shift:
    """How a network's value changes when its inputs do, and one of its parameters where it has that."""
    shifts: dict[str, Shift] = dict(zip(graph.inputs, given, strict=True))
    for node in graph.nodes:
        inputs = tuple(shifts[name] for name in node.inputs)
        own = _own(node, parameter)
        if isinstance(node.op, BlockOp):
            inner = None if parameter is None else _inside(node, parameter)
            shifts[node.name] = _through(node.op.graph, inputs, inner, way, f"{prefix}{node.name}.")
            continue
        passed = node.op.passes(inputs, *node.input_shapes)
        added = None if own is None else node.op.shifted_by(own, *node.input_shapes)
        if isinstance(node.op, Unembed) and parameter == f"{node.op.embedding}.embedding":
            added = everywhere(node.shape)
        arrived, name = together(inputs) is not None, f"{prefix}{node.name}"
        if arrived and passed is None:
            way.ignored.setdefault(name, f"{name} ({node.op.kind}) takes away again what it adds")
            way.carriers += [f"{name}.{statistic}" for statistic in node.op.carries]
        elif own is not None and added is None:
            way.ignored.setdefault(name, f"{name} ({node.op.kind}) does not see it")
        shifts[node.name] = _real(together((passed, added)), node.shape)
    return shifts[graph.output]


def _own(node: Node, parameter: str | None) -> str | None:
    """The node's own name of the parameter, where it has it."""
    owner, _, name = (parameter or "").rpartition(".")
    return name if parameter is not None and owner == node.name else None


def _inside(node: Node, parameter: str) -> str | None:
    """A block's own name of the parameter, where it lies in the block."""
    owner = f"{node.name}."
    return parameter.removeprefix(owner) if parameter.startswith(owner) else None


def _real(shift: Shift, shape: Shape) -> Shift:
    """A shift without the axes of length 1, along which nothing varies."""
    return None if shift is None else frozenset(axis for axis in shift if axis == 0 or shape[axis - 1] > 1)
