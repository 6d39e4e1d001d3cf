"""Evaluate a program in float64 NumPy, node by node: the definition that every backend is held against."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.expressions import Call, Expression, Name, Number
from harness.graph import BlockOp, Graph, Program, Ref, Update
from harness.ops.base import Array, Mode
from harness.ops.linear import Unembed
from harness.optimizers import AdamW

Arrays = dict[str, Array]
Observer = Callable[[str, Array], Array | None]
"""Sees a node's name and value; an array that it returns takes the value's place."""


def forward(
    graph: Graph, inputs: tuple[Array, ...], parameters: Mapping[str, Array], *, training: bool = False,
    masks: Mapping[str, Array] | None = None, observe: Observer | None = None, mixed: bool = False,
) -> tuple[Array, Arrays]:  # fmt: skip
    """A network's value on a batch, and its new running statistics (training only).

    `parameters` by the graph's own canonical names; `masks` by layer; `observe` sees every node's value by name;
    `mixed`: with products rounded as in mixed precision, everything else in float64.
    """
    values = dict(zip(graph.inputs, inputs, strict=True))
    statistics: Arrays = {}
    for node in graph.nodes:
        given = tuple(values[name] for name in node.inputs)
        own = _below(parameters, node.name)
        if isinstance(node.op, BlockOp):
            inner = _below(masks, node.name) if masks else None
            see = None if observe is None else _prefixed(observe, node.name)
            values[node.name], new = forward(
                node.op.graph, given, own, training=training, masks=inner, observe=see, mixed=mixed
            )
            statistics |= {f"{node.name}.{name}": value for name, value in new.items()}
        else:
            if isinstance(node.op, Unembed):
                own = _below(parameters, node.op.embedding)
            mode = Mode(training, masks.get(node.name) if masks else None, mixed=mixed)
            values[node.name] = node.op.reference(given, own, mode)
            statistics |= {f"{node.name}.{name}": value for name, value in mode.statistics.items()}
        if observe is not None and (other := observe(node.name, values[node.name])) is not None:
            values[node.name] = other
    return values[graph.output], statistics


def loss(
    program: Program, update: Update, parameters: Mapping[str, Array], batch: Mapping[str, Array],
    masks: Mapping[str, Mapping[str, Array]] | None = None, observe: Observer | None = None, *, mixed: bool = False,
) -> float:  # fmt: skip
    """An update's loss in training mode. `batch` by field; `masks` by call and layer."""
    return train(program, update, parameters, batch, masks, observe, mixed=mixed)[0]


def train(
    program: Program, update: Update, parameters: Mapping[str, Array], batch: Mapping[str, Array],
    masks: Mapping[str, Mapping[str, Array]] | None = None, observe: Observer | None = None, *, mixed: bool = False,
) -> tuple[float, Arrays]:  # fmt: skip
    """An update's loss in training mode, and the running statistics that its calls leave, by canonical name."""
    values: Arrays = {}
    now = dict(parameters)
    changed: Arrays = {}

    def get(ref: Ref) -> Array:
        if ref.kind == "number":
            return np.asarray(ref.number)
        return values[ref.name] if ref.kind == "value" else batch[ref.name]

    for site in update.calls:
        own = network_parameters(program, site.network, now)
        see = None if observe is None else _prefixed(observe, site.variable)
        values[site.variable], statistics = forward(
            program.networks[site.network], tuple(get(a) for a in site.arguments), own, training=True,
            masks=(masks or {}).get(site.scope), observe=see, mixed=mixed,
        )  # fmt: skip
        prefix = "" if len(program.networks) == 1 else f"{site.network}."
        changed |= {f"{prefix}{name}": value for name, value in statistics.items()}
        now |= changed
    total = sum(term.loss.weight * term.loss.reference(get(term.outputs), get(term.targets)) for term in update.terms)
    return float(total), changed


def moved(program: Program, update: Update) -> tuple[str, ...]:
    """The canonical names of what an update moves: the learned parameters of its networks."""
    several = len(program.networks) > 1
    return tuple(
        name
        for name, parameter in program.parameters.items()
        if parameter.learned and (not several or name.partition(".")[0] in update.over)
    )


def initial_slots(program: Program, update: Update) -> Arrays:
    """What an update's optimizer remembers before the first step, as `slot/parameter`: zeros."""
    shapes = {name: program.parameters[name].shape for name in moved(program, update)}
    return {f"{s}/{name}": np.zeros(shape) for s in update.optimizer.remembers for name, shape in shapes.items()}


def apply_update(
    update: Update, parameters: Mapping[str, Array], gradients: Mapping[str, Array], slots: Mapping[str, Array], t: int
) -> tuple[Arrays, Arrays]:
    """Update t of a training: clip, the schedule's rate, the optimizer. Returns all parameters and the new slots.

    `gradients` are the raw ones of everything that the update moves (`moved`), by canonical name, and nothing else
    is touched; `slots` by `slot/parameter`. t counts from 0.
    """
    rule = update.optimizer
    want = {f"{slot}/{name}" for slot in rule.remembers for name in gradients}
    if slots.keys() != want:
        raise ValueError(f"slots and gradients do not belong together: {sorted(slots.keys() ^ want)}")
    bounded = update.clip.reference(gradients) if update.clip else gradients
    rate = rule.learning_rate * update.schedule.factor(t)
    changed: Arrays = dict(parameters)
    kept: Arrays = {}
    for name, gradient in bounded.items():
        own = {slot: slots[f"{slot}/{name}"] for slot in rule.remembers}
        decays = isinstance(rule, AdamW) and rule.decays(name)
        changed[name], new = rule.reference(gradient, parameters[name], own, t, rate, decays=decays)
        kept |= {f"{slot}/{name}": value for slot, value in new.items()}
    return changed, kept


def evaluate(
    program: Program, expression: Expression, parameters: Mapping[str, Array], fields: Mapping[str, Array],
    observe: Observer | None = None, *, mixed: bool = False,
) -> Array:  # fmt: skip
    """An expression in evaluation mode. `observe` sees every node's value, named by its call: `classifier(image).conv1`."""
    match expression:
        case Name(name):
            return fields[name]
        case Number(value):
            return np.asarray(value)
        case Call(network, arguments):
            given = tuple(evaluate(program, a, parameters, fields, observe, mixed=mixed) for a in arguments)
            own = network_parameters(program, network, parameters)
            see = None if observe is None else _prefixed(observe, str(expression))
            return forward(program.networks[network], given, own, observe=see, mixed=mixed)[0]


def network_parameters(program: Program, network: str, parameters: Mapping[str, Array]) -> Mapping[str, Array]:
    """One network's parameters by its own names."""
    return parameters if len(program.networks) == 1 else _below(parameters, network)


def _below(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _prefixed(observe: Observer, name: str) -> Observer:
    return lambda node, value: observe(f"{name}.{node}", value)
