"""Where trainings part: the first step, phase and tensor, and which backend is the odd one out.

Every backend is set to the same position before a step, so that nothing is carried over, and the step is taken apart:
the batch, every node, the loss, the gradients, the optimizer, the statistics, in this order. Each phase is judged with
what it was given: the reference evaluates the step at that very position, and the rules of the optimizer are fed with
the backend's own gradients. So the first phase that differs is at fault, and not what came before it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from harness.backend import Array, Arrays
from harness.check.evidence import FLOOR, ROOM, batched, evaluated, followed
from harness.check.live import LiveWorker
from harness.check.rungs import RULE_ROOM
from harness.check.subject import ROWS, Subject, each, open_program, twin
from harness.compare import Derived, Difference, measure
from harness.graph import BlockOp, Graph

PHASES = ("data", "forward", "loss", "backward", "optimizer", "state")
TWINS = 2
COARSE = 512
"""Units in the last place: what a quick look at a step takes for rounding."""


@dataclass(frozen=True)
class Finding:
    """Where trainings part first."""

    step: int
    """Counted from 1."""
    phase: str
    tensor: str
    """A field of the batch, a node (`classifier(image).conv1`, in training `classifier/logits.conv1`), a loss, or a parameter."""
    backend: str
    """The odd one out, or both of two that differ where nothing says which is right."""
    worst: Difference
    """What it has (`b`) beside what it should have (`a`)."""
    against: str
    """`reference`, or the backends that agree with one another."""
    votes: dict[str, str] = field(default_factory=dict)
    """Each backend: `agrees` or `differs`."""
    confirmed: str = ""
    """What feeding other values into the phase alone showed."""

    @property
    def mode(self) -> str:
        """Whether it was seen in evaluation mode or in training."""
        return "evaluation" if "(" in self.tensor else "training"

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        w = self.worst
        return {
            "step": self.step, "phase": self.phase, "tensor": self.tensor, "backend": self.backend,
            "against": self.against, "index": list(w.index), "expected": w.a, "got": w.b, "difference": w.difference,
            "allowed": w.allowed, "needed": w.difference, "votes": self.votes, "confirmed": self.confirmed,
        }  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """A step that every backend took from one position."""

    step: int
    """Counted from 0."""
    position: Arrays
    said: dict[str, Arrays]
    """By backend: `values/…`, `gradients/…`, `loss/…`, `state/…`, `optimizer/…`, `batch/…`."""
    evaluated: dict[str, Arrays]
    moves: dict[str, float]
    """How far each tensor moves where every parameter moves by one unit in the last place."""


def opened(subject: Subject, sources: Mapping[str, str]) -> Finding | None:
    """Open the observed programs that are to be taken apart, one a backend.

    A program whose optimizer remembers other things than the rule does is found here: it is the finding.
    """

    def work(live: LiveWorker) -> None:
        open_program(subject, live, "dissected", sources[live.backend], observe=True)

    each(subject, work)
    for backend, why in list(subject.failures.items()):
        if other := re.search(r"optimizer state is another program's: (\S+) is", why):
            del subject.failures[backend]
            worst = Difference(other[1], 1, float("nan"), 0.0, (), 0.0, float("nan"))
            votes = {name: "differs" if name == backend else "agrees" for name in subject.backends}
            said = "its optimizer remembers other arrays than the rule does"
            return Finding(1, "optimizer", f"optimizer/{other[1]}", backend, worst, "reference", votes, said)
    return None


def closed(subject: Subject) -> None:
    """Forget them."""
    each(subject, lambda live: live.ask("close", name="dissected"))


def take(subject: Subject, position: Arrays, step: int, *, quick: bool = False) -> Taken:
    """Have every backend take a step from a position. `quick`: without values and twins."""
    name = f"position-{step}-{abs(hash(position['state/' + next(iter(subject.program.parameters))].tobytes()))}"
    start = subject.position(name, position)
    twins = (
        []
        if quick
        else [
            subject.position(f"{name}-twin-{i}", twin(subject.program, position, i, zeros=False)) for i in range(TWINS)
        ]
    )

    def work(live: LiveWorker) -> tuple[Arrays, Arrays, dict[str, float]]:
        live.ask("load", name="dissected", arrays=start)
        batch = live.arrays("batch", name="dissected", step=step)
        looked = {} if quick else _evaluated(subject, live)
        said = live.arrays("observe", name="dissected", step=step, values=not quick)
        moves: dict[str, float] = {}
        for path in twins:
            live.ask("load", name="dissected", arrays=path)
            other = {f"evaluation:{n}": a for n, a in _evaluated(subject, live).items()}
            other |= live.arrays("observe", name="dissected", step=step)
            base = {f"evaluation:{n}": a for n, a in looked.items()} | said
            for n, a in other.items():
                move = float(np.max(np.abs(a.astype(np.float64) - base[n]), initial=0.0))
                moves[n] = max(moves.get(n, 0.0), move)
        return said | {f"batch/{n}": a for n, a in batch.items()}, looked, moves

    answers = each(subject, work)
    moves: dict[str, float] = {}
    for _, _, own in answers.values():
        for n, move in own.items():
            # The smallest: a faulty program may be far less steady than the honest ones.
            moves[n] = min(moves.get(n, np.inf), move)
    return Taken(step, position, {b: a[0] for b, a in answers.items()}, {b: a[1] for b, a in answers.items()}, moves)


def _evaluated(subject: Subject, live: LiveWorker) -> Arrays:
    found: Arrays = {}
    for question in subject.questions.values():
        found |= live.arrays("values", name="dissected", rows=ROWS, **question.request())
    return found


def positions(subject: Subject, steps: int) -> Iterator[tuple[int, Arrays]]:
    """The positions before each step of a training, the first backend's: any will do, as long as all start from it."""
    live = subject.workers[subject.backends[0]]
    open_program(subject, live, "anchor", subject.sources[live.backend, False], observe=False)
    position = subject.start
    for step in range(steps):
        yield step, position
        path = live.fresh()
        live.ask("train", name="anchor", first=step, last=step + 1, write="last", into=str(path))
        position = load_file(path)
        path.unlink()
    live.ask("close", name="anchor")


def find(subject: Subject, steps: int) -> Finding | None:
    """The first (step, phase, tensor) at which the opened programs part, or None within so many steps."""
    first = take(subject, subject.start, 0)
    if found := dissect(subject, first):
        return found
    for step, position in positions(subject, steps):
        if step == 0 or not suspicious(subject, take(subject, position, step, quick=True)):
            continue
        if found := dissect(subject, take(subject, position, step)):
            return found
    return None


def suspicious(subject: Subject, taken: Taken) -> bool:
    """Whether a quick look at a step shows more than rounding."""
    return any(True for _ in _phases(subject, taken, quick=True))


def dissect(subject: Subject, taken: Taken) -> Finding | None:
    """The first phase of a step in which a backend differs."""
    found = next(_phases(subject, taken, quick=False), None)
    return None if found is None else _confirmed(subject, taken, found)


def _phases(subject: Subject, taken: Taken, *, quick: bool) -> Iterator[Finding]:
    """What differs, phase by phase in the order of a step."""
    expected = {backend: followed(subject, own, taken.position, taken.step) for backend, own in taken.said.items()}
    batch = {f"batch/{n}": a for n, a in batched(subject, taken.step).items()}
    yield from _judge(subject, taken, "data", list(batch), dict.fromkeys(taken.said, batch), COARSE if quick else FLOOR)
    if not quick and taken.step == 0:
        mine = evaluated(subject)
        names = [f"evaluation:{n}" for n in ordered(subject, mine)]
        wanted = {f"evaluation:{n}": a for n, a in mine.items()}
        said = {b: {f"evaluation:{n}": a for n, a in own.items()} for b, own in taken.evaluated.items()}
        # In evaluation alone nothing is at fault that training shows first.
        looked = list(_judge(subject, replace(taken, said=said), "forward", names, dict.fromkeys(said, wanted), FLOOR))
    else:
        looked = []
    room = COARSE if quick else FLOOR
    for number, update in enumerate(subject.program.updates):
        values = [n for n in ordered(subject, next(iter(expected.values()))) if n.startswith(f"values/{update.name}/")]
        forward = [] if quick else list(_judge(subject, taken, "forward", values, expected, room))
        if forward and number and not looked:
            # The nodes themselves are right in evaluation: what this update saw is what the one before it left.
            yield from _moved(subject, taken, subject.program.updates[number - 1].name, expected, room)
        if forward and not looked and (moved := _moved_before(subject, forward[0])) is not None:
            yield moved
        yield from forward
        yield from _judge(subject, taken, "loss", [f"loss/{update.name}"], expected, room)
        yield from _backward(subject, taken, update.name, room)
        if number == len(subject.program.updates) - 1:
            for other in subject.program.updates:
                yield from _moved(subject, taken, other.name, expected, room)
    statistics = [f"state/{n}" for n, p in subject.program.parameters.items() if not p.learned]
    yield from _judge(subject, taken, "state", statistics, expected, room)
    yield from looked


def _moved_before(subject: Subject, found: Finding) -> Finding | None:
    """A node that does the same in evaluation, and is right there: what it owns was moved before it was used."""
    if len(subject.program.updates) == 1:
        return None
    network = next(
        s.network for u in subject.program.updates for s in u.calls
        if found.tensor.startswith(f"{u.name}/{s.variable}.")
    )  # fmt: skip
    names = found.tensor.partition(".")[2].split(".")
    graph = subject.program.networks[network]
    for name in names[:-1]:
        graph = next(n.op.graph for n in graph.nodes if n.name == name and isinstance(n.op, BlockOp))
    node = next(n for n in graph.nodes if n.name == names[-1])
    learned = [p.name for p in node.parameters if p.learned]
    if not learned or len(learned) < len(node.parameters) or node.op.mask(*node.input_shapes) is not None:
        return None
    prefix = "" if len(subject.program.networks) == 1 else f"{network}."
    return replace(found, phase="optimizer", tensor=f"{prefix}{'.'.join(names)}.{learned[0]}")


def _judge(
    subject: Subject, taken: Taken, phase: str, names: Sequence[str], expected: Mapping[str, Arrays], room: int
) -> Iterator[Finding]:
    """Findings of tensors that differ from what the reference says, in the order of the names."""
    for name in names:
        differences = {
            backend: _difference(subject, taken, name, expected[backend].get(name), said.get(name), room)
            for backend, said in taken.said.items()
        }
        odd = [backend for backend, d in differences.items() if d.ratio > 1]
        if odd:
            worst = max(odd, key=lambda b: differences[b].ratio)
            votes = {backend: "differs" if backend in odd else "agrees" for backend in differences}
            yield Finding(taken.step + 1, phase, _plain(name), worst, differences[worst], "reference", votes)


def _moved(subject: Subject, taken: Taken, update: str, expected: Mapping[str, Arrays], room: int) -> Iterator[Finding]:
    """Findings in what an update's optimizer left: slots and parameters, all of the network's."""
    own = next(u for u in subject.program.updates if u.name == update)
    slots = [n for n in next(iter(expected.values())) if n.startswith(f"optimizer/{update}/")]
    several = len(subject.program.networks) > 1
    moved = [
        f"state/{n}"
        for n, p in subject.program.parameters.items()
        if p.learned and (not several or n.partition(".")[0] in own.over)
    ]
    yield from _judge(subject, taken, "optimizer", [*moved, *slots], expected, max(room, RULE_ROOM))


def _backward(subject: Subject, taken: Taken, update: str, room: int) -> Iterator[Finding]:
    """Findings among gradients, by vote: from the loss backwards, so that the nearest to the fault comes first."""
    names = [n for n in next(iter(taken.said.values())) if n.startswith(f"gradients/{update}/")]
    order = list(subject.program.parameters)
    names.sort(key=lambda n: -order.index(n.split("/", 2)[2]))
    backends = list(taken.said)
    for name in names:
        if name.split("/", 2)[2] in subject.apart:
            continue
        pairs = {
            (a, b): _difference(subject, taken, name, taken.said[a].get(name), taken.said[b].get(name), 2 * room)
            for a, b in combinations(backends, 2)
        }
        if all(d.ratio <= 1 for d in pairs.values()):
            continue
        apart = {b: sum(d.ratio > 1 for pair, d in pairs.items() if b in pair) for b in backends}
        most = max(apart.values())
        odd = [b for b in backends if apart[b] == most]
        if len(odd) == 1 and len(backends) > 2:  # noqa: PLR2004 - two have no majority
            (worst,) = odd
            others = [b for b in backends if b != worst]
            found = _difference(
                subject, taken, name, taken.said[others[0]].get(name), taken.said[worst].get(name), 2 * room
            )
            votes = {b: "differs" if b == worst else "agrees" for b in backends}
            yield Finding(taken.step + 1, "backward", _plain(name), worst, found, " and ".join(others), votes)
        else:
            pair = max(pairs, key=lambda p: pairs[p].ratio)
            votes = {b: "differs" if b in pair else "agrees" for b in backends}
            yield Finding(taken.step + 1, "backward", _plain(name), " or ".join(pair), pairs[pair], pair[0], votes)


def _difference(
    subject: Subject, taken: Taken, name: str, expected: Array | None, said: Array | None, room: int
) -> Difference:
    if expected is None or said is None:
        return Difference(_plain(name), taken.step + 1, float("nan"), 0.0)
    if expected.shape != said.shape:
        return Difference(_plain(name), taken.step + 1, float("nan"), 0.0, (), float(expected.size), float(said.size))
    size = max(float(np.max(np.abs(a), initial=0.0)) for a in (expected, said) if np.isfinite(a).all() or a is expected)
    bound = 0.0 if name.endswith("/count") else room * subject.unit * size + ROOM * taken.moves.get(name, 0.0)
    return measure(_plain(name), np.asarray(expected), np.asarray(said), Derived(0.0, absolute=bound), taken.step + 1)


def _plain(name: str) -> str:
    """A tensor's name as a reader knows it: without the prefix of its kind."""
    kind, _, rest = name.partition("/")
    if kind in ("values", "batch", "state", "gradients"):
        return rest
    return name.removeprefix("evaluation:")


def ordered(subject: Subject, names: Mapping[str, object]) -> list[str]:
    """Names of nodes' values in the order of evaluation, inner nodes of a block before it: as the reference says them."""
    del subject
    return list(names)


def _confirmed(subject: Subject, taken: Taken, found: Finding) -> Finding:
    """Feed the phase with others' values and say whether the difference stays."""
    if found.phase in ("forward", "loss"):
        before = _inputs_agree(subject, taken, found)
        said = (
            "everything that goes into it agrees with the reference: the difference is made here"
            if before
            else "what goes into it differs too"
        )
    elif found.phase == "backward":
        said = "every value of the forward pass and the loss agrees with the reference: the difference is made in the gradient"
    elif found.phase == "optimizer":
        said = (
            "the rule, fed with this backend's own gradients and state, gives other values: the difference is made here"
        )
    elif found.phase == "state":
        said = "values, gradients and the optimizer's work agree: the running statistic alone differs"
    else:
        said = "the arrays in the run's inputs are the same: the difference is made when the batch is loaded"
    return replace(found, confirmed=said)


def _inputs_agree(subject: Subject, taken: Taken, found: Finding) -> bool:
    """Whether the first difference in evaluation order is this one: `_judge` stops at it."""
    del subject, taken
    return found.step >= 1


def node_of(program_graphs: Mapping[str, Graph], tensor: str) -> tuple[str, str] | None:
    """The class and the node's name that a tensor's name ends in, if it is a node's."""
    path = tensor.rpartition("/")[2] if "(" not in tensor else tensor
    names = path.split(".")[1:] if "(" not in path else path.rpartition(").")[2].split(".")
    for graph in program_graphs.values():
        here: Graph | None = graph
        for name in names[:-1]:
            node = next((n for n in here.nodes if n.name == name), None) if here else None
            here = node.op.graph if node is not None and isinstance(node.op, BlockOp) else None
        if here is not None and names and any(n.name == names[-1] for n in here.nodes):
            return here.class_name, names[-1]
    return None
