"""What the workers are asked for, and what the reference says: the material that the rungs judge."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from harness import initial, reference
from harness.backend import Array, Arrays
from harness.check.live import LiveWorker
from harness.check.memory import digest
from harness.check.subject import Subject, moved_parameters, open_program, part, twin, wide
from harness.compare import Derived
from harness.graph import Ref, Update

STEPS = 5  # of the optimizer rung
FLOOR, ROOM = 32, 16
"""A derived tolerance: FLOOR units in the last place of a tensor's largest value (measured on the frameworks' own tanh
and erf: up to 8), and ROOM times the largest move of the tensor when every parameter moves by one unit."""


@dataclass(frozen=True)
class Look:
    """A program at one position with one set of inputs: nothing in it depends on another step."""

    evaluated: Arrays
    """Every node's value in evaluation mode, by call and node."""
    seen: Arrays
    """The first training step: `values/…`, `gradients/…`, `loss/…`, and `state/…` after it."""
    gradients: Arrays
    """At the position itself, those of inputs too (`update/@field`); none where they were not asked for."""
    batch: Arrays
    """The first batch as the framework holds it: `image`, `masks/classifier/dropout1`."""

    def every(self) -> Arrays:
        """All of them in one dictionary, where they came from before their names."""
        kept = {n: a for n, a in self.seen.items() if not n.startswith("optimizer/")}
        return {f"{kind}:{n}": a for kind, group in (("evaluation", self.evaluated), ("step", kept), ("at", self.gradients)) for n, a in group.items()}  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What one backend said."""

    look: Look
    twins: tuple[Look, ...] = ()
    moved: Mapping[str, Look] = field(default_factory=dict)
    """The same program with other parameters, and with other inputs: everything must move."""
    steps: tuple[Arrays, ...] = ()
    """Gradients, state and optimizer state of the first steps."""


def look(
    subject: Subject, live: LiveWorker, name: str, position: str, inputs: str | None = None, *, whole: bool = True
) -> Look:
    """Ask an opened, observed program for everything at a position; `whole`: gradients apart from a step's own too."""
    folder = {"inputs": str(subject.folder / inputs)} if inputs else {}
    live.ask("load", name=name, arrays=position)
    evaluated: Arrays = {}
    for question in subject.questions.values():
        evaluated |= live.arrays("values", name=name, rows=subject.effort.rows, **question.request(), **folder)
    batch = live.arrays("batch", name=name, step=0, **folder)
    gradients = live.arrays("gradients", name=name, step=0, **folder) if whole else {}
    # Of a large network: what its step leaves behind belongs to the rungs of many steps, and is most of what is written.
    left = {"left": list(_statistics(subject))} if subject.effort.directions is not None else {}
    seen = live.arrays("observe", name=name, step=0, **folder, **left)
    return Look(evaluated, seen, gradients, batch)


def _statistics(subject: Subject) -> Iterator[str]:
    """What a step leaves behind that is not an optimizer's work."""
    return (f"state/{name}" for name, parameter in subject.program.parameters.items() if not parameter.learned)


def gather(subject: Subject, live: LiveWorker, source: str, *, support: bool, steps: int = STEPS) -> Evidence:
    """One backend's evidence. `support`: its twins and its moved self too, from which tolerances and vacuity come."""
    name = "observed"
    open_program(subject, live, name, source, observe=True)
    start = subject.position("start", subject.start)
    first = look(subject, live, name, start, whole=support)
    twins: tuple[Look, ...] = ()
    moved: dict[str, Look] = {}
    if support:
        twins = tuple(
            look(
                subject, live, name, subject.position(f"near-{i}", twin(subject.program, subject.start, i, zeros=False))
            )
            for i in range(subject.effort.twins)
        )
        other = subject.position("moved", moved_parameters(subject.start))
        moved = {
            "a parameter": look(subject, live, name, other),
            "an input": look(subject, live, name, start, "moved"),
        }
    live.ask("load", name=name, arrays=start)
    taken = tuple(
        live.arrays("observe", name=name, step=t, values=False) for t in range(min(steps, subject.program.steps))
    )
    live.ask("close", name=name)
    return Evidence(first, twins, moved, taken)


def allowances(subject: Subject, evidence: Mapping[str, Evidence]) -> dict[str, Derived]:
    """What is allowed for every tensor of a look, by its full name: derived from its size and from how twins move it."""
    found: dict[str, Derived] = {}
    sizes: dict[str, float] = {}
    moves: dict[str, float] = {}
    for own in evidence.values():
        base = own.look.every()
        for n, value in base.items():
            sizes[n] = max(sizes.get(n, 0.0), float(np.max(np.abs(value), initial=0.0)))
        for other in own.twins:
            for n, value in other.every().items():
                move = float(np.max(np.abs(value.astype(np.float64) - base[n]), initial=0.0))
                moves[n] = max(moves.get(n, 0.0), move)
    for n, size in sizes.items():
        scale = size
        if (gradient_of(n) or "") in subject.apart:
            # Rounding noise: as large as rounding in the others of its update, whatever its own size.
            update = n.rpartition("/")[0]
            scale = max(s for other, s in sizes.items() if other.rpartition("/")[0] == update and "@" not in other)
        bound = (FLOOR * subject.unit + subject.rounding(n)) * scale + ROOM * moves.get(n, 0.0)
        found[n] = Derived(0.0, absolute=bound)
    return found


def gradient_of(name: str) -> str | None:
    """The canonical parameter whose gradient a tensor of a look is, if it is one."""
    kind, _, rest = name.partition(":")
    rest = rest.removeprefix("gradients/") if kind == "step" and rest.startswith("gradients/") else rest
    if kind == "at" or (kind == "step" and name.startswith("step:gradients/")):
        return rest.partition("/")[2]
    return None


# The reference ------------------------------------------------------------------------------------------


def evaluated(subject: Subject, fed: Mapping[str, Array] | None = None) -> Arrays:
    """Every node's value in evaluation mode at the start. `fed`: each computed from these values of those before it."""
    found: Arrays = {}
    parameters = wide(part(subject.start, "state/"))
    for question in subject.questions.values():
        fields = {name: subject.data[key][: subject.effort.rows] for name, key in question.fields.items()}
        reference.evaluate(
            subject.program, question.expression, parameters, fields, partial(_note, found, fed), mixed=subject.mixed
        )
    return found


def batched(subject: Subject, step: int = 0) -> Arrays:
    """The batch of a step as every framework must hold it."""
    batch, masks = subject.batch(step)
    found = {name: batch[name] for name in subject.program.fields}
    for call, layers in masks.items():
        found |= {f"masks/{call}/{layer.replace('.', '/')}": mask for layer, mask in layers.items()}
    return found


def stepped(subject: Subject, seen: Arrays) -> Arrays:
    """Values, losses and statistics of the first step, by the reference."""
    learned = {f"state/{n}" for n, p in subject.program.parameters.items() if p.learned}
    found = followed(subject, seen, subject.start, 0)
    return {n: a for n, a in found.items() if not n.startswith("optimizer/") and n not in learned}


def followed(
    subject: Subject, seen: Arrays, position: Arrays, step: int, *, fed: bool = False, batch: Arrays | None = None
) -> Arrays:
    """A step from a position by the reference: values, losses, and what it leaves behind.

    The reference has no gradients: it moves parameters by the rules with the backend's own, so that a fault of one
    update is not found again in the next. `fed`: every node is computed from the backend's own values of those before
    it, and the loss from its own outputs. `batch`: as a framework held it, instead of the right one.
    """
    found: Arrays = {}
    parameters = wide(part(position, "state/"))
    given = subject.batch(step) if batch is None else _as_given(subject, batch)
    for number, update in enumerate(subject.program.updates):
        prefix = f"values/{update.name}/"
        values, loss, statistics = _forward(
            subject, update, parameters, given, step,
            wide(part(seen, prefix)) if fed else None, cached=number == 0 and batch is None,
        )  # fmt: skip
        found |= {f"{prefix}{name}": value for name, value in values.items()}
        found[f"loss/{update.name}"] = np.array(loss)
        gradients = wide(part(seen, f"gradients/{update.name}/"))
        slots = wide(part(position, f"optimizer/{update.name}/"))
        count = int(slots.pop("count"))
        parameters, slots = reference.apply_update(update, parameters | statistics, gradients, slots, step)
        found |= {f"optimizer/{update.name}/{name}": value for name, value in slots.items()}
        found[f"optimizer/{update.name}/count"] = np.array(count + 1)
    return found | {f"state/{name}": value for name, value in parameters.items()}


def _forward(
    subject: Subject, update: Update, parameters: Arrays, given: tuple[Arrays, dict[str, Arrays]], step: int,
    fed: Arrays | None, *, cached: bool,
) -> tuple[Arrays, float, Arrays]:  # fmt: skip
    """An update's values, loss and statistics. The first update's at a position are the same for every backend."""
    key = ("forward", step, update.name, digest(parameters))
    if cached and fed is None and (known := subject.memory.get(*key)) is not None:
        return known  # type: ignore[no-any-return]
    values: Arrays = {}
    loss, statistics = reference.train(
        subject.program, update, parameters, *given, partial(_note, values, fed), mixed=subject.mixed
    )
    if cached and fed is None:
        subject.memory.keep((values, loss, statistics), *key)
    return values, loss, statistics


def _as_given(subject: Subject, held: Arrays) -> tuple[Arrays, dict[str, Arrays]]:
    """A batch as a framework holds it -> as the reference reads it."""
    batch = {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in held.items() if not name.startswith("masks/")}  # fmt: skip
    masks: dict[str, Arrays] = {}
    for call, layers in subject.batch(0)[1].items():
        masks[call] = {layer: held[f"masks/{call}/{layer.replace('.', '/')}"].astype(np.float64) for layer in layers}
    return batch, masks


def differentiated(
    subject: Subject, update_name: str, parameter: str, direction: Array, seen: Arrays, position: Arrays, step: int
) -> tuple[float, float]:
    """The reference's slope of an update's loss along a direction in one parameter, in a step from a position.

    And how far two widths of the difference disagree. Updates before it move parameters with a backend's own gradients.
    """
    parameters = wide(part(position, "state/"))
    batch, masks = subject.batch(step)
    for update in subject.program.updates:
        if update.name == update_name:
            ask = partial(_shifted, subject, update, (parameters, batch, masks), {parameter: direction})
            found = _slope(ask, {parameter: direction}, width=1e-6)
            return found.slope, found.error
        _, statistics = reference.train(subject.program, update, parameters, batch, masks, mixed=subject.mixed)
        slots = wide(part(position, f"optimizer/{update.name}/"))
        del slots["count"]
        gradients = wide(part(seen, f"gradients/{update.name}/"))
        parameters, _ = reference.apply_update(update, parameters | statistics, gradients, slots, step)
    raise ValueError(f"there is no update '{update_name}'")


def _note(found: Arrays, fed: Mapping[str, Array] | None, name: str, value: Array) -> Array | None:
    """Keep a node's value; where others are fed, the nodes after it get those."""
    found[name] = value
    other = None if fed is None else fed.get(name)
    return None if other is None or other.shape != value.shape else other.astype(np.float64)


def optimized(subject: Subject, steps: tuple[Arrays, ...]) -> list[Arrays]:
    """Parameters and optimizer state after each step, by the rules, from a backend's own gradients."""
    parameters = wide(part(subject.start, "state/"))
    slots = {u.name: reference.initial_slots(subject.program, u) for u in subject.program.updates}
    found = []
    for t, said in enumerate(steps):
        now: Arrays = {}
        for update in subject.program.updates:
            gradients = wide(part(said, f"gradients/{update.name}/"))
            parameters, slots[update.name] = reference.apply_update(
                update, parameters, gradients, slots[update.name], t
            )
            now |= {f"optimizer/{update.name}/{name}": value for name, value in slots[update.name].items()}
            now[f"optimizer/{update.name}/count"] = np.array(t + 1)
        now |= {f"state/{n}": parameters[n] for n, p in subject.program.parameters.items() if p.learned}
        found.append(now)
    return found


@dataclass(frozen=True)
class Slope:
    """The reference's slope of a loss along a direction in one parameter or input, or in several."""

    directions: Mapping[str, Array]
    """By `update/parameter` or `update/@field`: along all of them at once."""
    slope: float
    error: float
    """How far two widths of the difference disagree: kinks and curvature."""


def slopes(subject: Subject) -> dict[str, Slope]:
    """Central differences of the reference's losses at the first parameters, by `update/parameter` and `update/@field`.

    Where there are more parameters than directions to go, along one in several of them, by the first one's name. On the moved inputs: where pixels are alike, values tie in a maximum, and a gradient there is none of the slopes
    on either side.
    """
    found: dict[str, Slope] = {}
    parameters = wide(part(subject.start, "state/"))
    batch, masks = subject.batch(0, subject.moved_data)
    for update in subject.program.updates:
        ask = partial(_shifted, subject, update, (parameters, batch, masks))
        names = [*reference.moved(subject.program, update)]
        for group in _dealt(names, subject.effort.directions):
            along = {name: initial.stream(1, update.name, name).standard_normal(parameters[name].shape) for name in group}  # fmt: skip
            full = {f"{update.name}/{name}": np.asarray(direction) for name, direction in along.items()}
            loss: Callable[[float], float] = partial(ask, along)
            label = f"{update.name}/{group[0]}" + (f" and {len(group) - 1} more" if group[1:] else "")
            found[label] = _slope(loss, full)
        for name in differentiable(subject, update):
            direction = np.asarray(initial.stream(1, update.name, "@", name).standard_normal(batch[name].shape))
            loss = partial(ask, {f"@{name}": direction})
            found[f"{update.name}/@{name}"] = _slope(loss, {f"{update.name}/@{name}": direction})
    return found


def _dealt(names: list[str], hands: int | None) -> list[list[str]]:
    """Names in at most so many groups: each by itself where there are no more.

    >>> _dealt(["a", "b", "c", "d", "e"], 2)
    [['a', 'c', 'e'], ['b', 'd']]
    """
    hands = len(names) if hands is None else min(hands, len(names))
    return [names[i::hands] for i in range(hands)]


def _shifted(
    subject: Subject,
    update: Update,
    given: tuple[Arrays, Arrays, dict[str, Arrays]],
    directions: Mapping[str, Array],
    h: float,
) -> float:
    """An update's loss by the reference with parameters, or fields (`@name`), shifted."""
    parameters, batch, masks = given
    inputs = {n.removeprefix("@"): d for n, d in directions.items() if n.startswith("@")}
    batch = batch | {name: batch[name] + h * d for name, d in inputs.items()}
    moved = {name: parameters[name] + h * d for name, d in directions.items() if not name.startswith("@")}
    return reference.loss(subject.program, update, parameters | moved, batch, masks)


def differentiable(subject: Subject, update: Update) -> list[str]:
    """The float fields through which an update's gradient flows: those behind a stopped call are constants to it."""
    stopped: set[str] = set()
    values: dict[str, set[str]] = {}

    def fields(ref: Ref) -> set[str]:
        return {ref.name} if ref.kind == "field" else values.get(ref.name, set()) if ref.kind == "value" else set()

    used: set[str] = set()
    for site in update.calls:
        values[site.variable] = set().union(*(fields(argument) for argument in site.arguments))
        used |= values[site.variable]
        stopped |= set() if site.moved else values[site.variable]
    for term in update.terms:
        used |= fields(term.outputs) | fields(term.targets)
    columns = subject.program.columns
    return [name for name in subject.program.fields if name in used - stopped and columns[name].dtype == "float"]


def _slope(loss: Callable[[float], float], directions: Mapping[str, Array], width: float = 2e-7) -> Slope:
    """The slope at three widths: where a kink lies between, they disagree, and none of them is trusted further."""
    found = [(loss(h) - loss(-h)) / (2 * h) for h in (width, 2 * width, 4 * width)]
    return Slope(directions, found[0], max(found) - min(found))


def unmoved(subject: Subject) -> list[str]:
    """Nodes whose value can be anything without a trace in what the network says: comparing outputs says nothing of them."""
    rows, most = 8 if subject.effort.nodes is None else 1, subject.effort.nodes
    parameters = wide(part(subject.start, "state/"))
    silent = []
    for question in subject.questions.values():
        fields = {name: subject.data[key][:rows] for name, key in question.fields.items()}
        ask = partial(reference.evaluate, subject.program, question.expression, parameters, fields)
        names: Arrays = {}
        said = ask(partial(_note, names, None))
        asked = list(names)[:: 1 if most is None else math.ceil(len(names) / most)]
        silent += [name for name in asked if np.array_equal(ask(partial(_moved, name)), said)]
    return silent


def _moved(target: str, name: str, value: Array) -> Array | None:
    if name != target:
        return None
    spread = float(value.std()) or 1.0
    moved: Array = value + 0.1 * spread * initial.stream(0, "moved", name).standard_normal(value.shape)
    return moved
