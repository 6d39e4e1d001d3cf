"""What a mutant is, and the questions about a program that decide where it makes a difference."""

from collections.abc import Callable
from dataclasses import dataclass, field

from harness.check.changes import Change
from harness.check.edits import Plans
from harness.graph import BlockOp, Graph, Node, Program
from harness.initializers import Zeros
from harness.ops.attention import Attention
from harness.ops.base import Op
from harness.ops.convolution import Convolution, ConvTranspose2d
from harness.ops.linear import Dense, Embedding, Positions, Reshape
from harness.ops.normalisation import BatchNorm, Dropout
from harness.ops.recurrent import Recurrent
from harness.optimizers import Constant

PHASES = ("data", "forward", "loss", "backward", "optimizer", "state")
BOTH = ("float64", "float32")


@dataclass(frozen=True)
class Mutant:
    """One semantic fault."""

    name: str
    about: str
    """Completes "consistent with ..."."""
    phase: str
    """Where it first shows: data, forward, loss, backward, optimizer, or state (running statistics)."""
    change: Change | None = None
    """How it changes the resolved program."""
    edits: Plans = field(default_factory=dict)
    """Or, by backend, how it changes the emitted text: the first plan that applies."""
    where: Callable[[Program], bool] = lambda _program: True
    """The programs that it changes the meaning of."""
    precisions: tuple[str, ...] = BOTH
    """In which it can show."""
    shows_at: int | Callable[[Program], int] = 1
    """The step, from 1, from which it can show: a number, or what to ask of a program. See `first_step`."""
    note: str = ""
    """Why it is hard or impossible to see somewhere."""


def graphs(program: Program) -> list[Graph]:
    """Every graph: blocks before what contains them."""
    return [g for network in program.networks.values() for g in (*network.blocks, network)]


def nodes(program: Program) -> list[Node]:
    """Every node that is an op, not a block."""
    return [node for graph in graphs(program) for node in graph.nodes if not isinstance(node.op, BlockOp)]


def has(*kinds: type[Op]) -> Callable[[Program], bool]:
    """Asks whether a program has an op of these kinds."""
    return lambda program: any(isinstance(node.op, kinds) for node in nodes(program))


def has_masks(program: Program) -> bool:
    """Whether anything drops out."""
    return bool(program.masks)


def scheduled(program: Program) -> bool:
    """Whether a learning rate changes."""
    return any(not isinstance(u.schedule, Constant) or u.schedule.warmup for u in program.updates)


def keeps_last_batch(program: Program) -> bool:
    """Whether the last batch of a pass may be smaller."""
    return program.spec.data.last_batch == "keep"


def names(program: Program) -> dict[str, str]:
    """What faults call the parts of a program: the first of each sort."""
    found = {"batch_size": str(program.batch)}
    for group in groups(program):
        for name, value in group.items():
            found.setdefault(name, value)
    return found


def bindings(program: Program, wanted: set[str]) -> list[dict[str, str]]:
    """What these names may stand for: the first of each sort, and then every other node, pair or field of theirs."""
    first = names(program)
    if not wanted <= set(first):
        return []
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for known in (first, *(first | group for group in groups(program) if wanted & set(group))):
        found.setdefault(tuple(known[name] for name in sorted(wanted)), known)
    return list(found.values())


def groups(program: Program) -> list[dict[str, str]]:
    """Names that belong together, by node, pair of nodes, or field of the data."""
    found = []
    for graph in graphs(program):
        found += [_named(graph, node) for node in graph.nodes if not isinstance(node.op, BlockOp)]
        found.append(_twins(graph))
    for update in program.updates:
        for site in update.calls:
            fields = [ref.name for ref in site.arguments if ref.kind == "field"]
            found += [_field(program, name) for name in fields]
        if momentum := getattr(update.optimizer, "momentum", 0):
            found.append({"momentum": repr(momentum)})
        found += [{"target": term.targets.name} for term in update.terms if term.targets.kind == "field"]
        scopes = [site.scope for site in update.calls if program.networks[site.network].masks]
        if len(scopes) > 1:
            found.append({"scope": scopes[0], "other_scope": scopes[1]})
    return [group for group in found if group]


def _field(program: Program, name: str) -> dict[str, str]:
    if name in program.spec.data.noise:
        return {"noise": name}
    column = program.columns[name]
    found = {"float": {"input": name}, "int": {"ids": name}}[column.dtype]
    if column.dtype == "float" and len(column.shape) == 3 and column.shape[-1] == 3:  # noqa: PLR2004 - H W C, red green blue
        found["coloured"] = name
    return found


def _named(graph: Graph, node: Node) -> dict[str, str]:
    op, first = node.op, node.inputs[0]
    given = first in graph.inputs
    found: dict[str, str] = {}
    if isinstance(op, Convolution):
        if len(set(op.kernel)) == 1 and len(op.kernel) > 1 and max(op.kernel) > 1:
            found["square_conv"] = node.name
        if set(op.stride) == {1} and all(before == after for before, after in op.pads):
            found["plain_conv"] = node.name
        if given and len(set(node.input_shapes[0][:-1])) == 1:
            found |= {"image": first, "image_conv": node.name}
    elif isinstance(op, ConvTranspose2d) and all(before == after for before, after in op.crop):
        found["plain_deconv"] = node.name
    elif isinstance(op, Reshape) and given and len(op.shape) > 1 and len(set(op.shape)) == 1:
        found["sequence"] = first
    elif isinstance(op, Recurrent):
        found["recurrent"] = node.name
    elif isinstance(op, Embedding):
        found |= {"embedding": node.name, "tokens": first, "width": str(op.features)}
    elif isinstance(op, Positions):
        found["positions"] = node.name
    elif isinstance(op, BatchNorm):
        found["norm"] = node.name
    elif isinstance(op, Attention):
        found["attention"] = node.name
    elif isinstance(op, Dropout) and op.rate:
        found["dropout"] = node.name
    elif isinstance(op, Dense):
        if node.input_shapes[0][-1] == op.units:
            found["square"] = node.name
        if node.name == graph.output:
            found["head"] = node.name
            # The data itself may hold numbers that no rounding changes.
            found |= {} if given else {"fed_head": node.name}
            if op.bias:
                found["zero_head" if isinstance(op.bias_init, Zeros) else "offset_head"] = node.name
    return found


def _twins(graph: Graph) -> dict[str, str]:
    """Two dropout layers whose masks have one shape."""
    masks = [(n.name, n.op.mask(*n.input_shapes)) for n in graph.nodes if isinstance(n.op, Dropout)]
    for i, (name, mask) in enumerate(masks):
        for other, its in masks[i + 1 :]:
            if mask is not None and mask == its:
                return {"twin": name, "other_twin": other}
    return {}
