"""Where trainings part: the first step, phase and tensor, and which backend is the odd one out.

Every backend is set to the same position before a step, so that nothing is carried over, and the step is taken apart:
the batch, every node, the loss, the gradients, the optimizer, the statistics, in this order. Each phase is judged with
what it was given: the reference evaluates the step at that very position, and the rules of the optimizer are fed with
the backend's own gradients. So the first phase that differs is at fault, and not what came before it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from harness.backend import Array, Arrays
from harness.check.evidence import FLOOR, ROOM, batched, differentiated, evaluated, followed
from harness.check.live import LiveWorker
from harness.check.memory import digest
from harness.check.rungs import RULE_ROOM
from harness.check.subject import ROWS, Subject, each, open_program, outputs, part, twin
from harness.compare import Derived, Difference, measure
from harness.errors import WorkerFailed
from harness.graph import BlockOp, Graph, Update

PHASES = ("data", "forward", "loss", "backward", "optimizer", "state")
TWINS = 2
COARSE = 512
"""Units in the last place: what a quick look at a step takes for rounding."""
AHEAD = 8
"""Positions that are trained ahead of the one that is asked for."""


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
    gone: str = ""
    """Why there is nothing to subtract: the tensor is missing, or has another shape."""
    pair: tuple[str, ...] = ()
    """Of a gradient: a backend that has `a`, and the one that has `b`."""

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
            "allowed": w.allowed, "needed": w.difference, "votes": self.votes, "confirmed": self.confirmed, "gone": self.gone,
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


@dataclass(frozen=True)
class Answer:
    """What one backend said of a step."""

    said: Arrays
    evaluated: Arrays
    moves: dict[str, float]


def refusal(subject: Subject, sources: Mapping[str, str]) -> Finding | None:
    """A program whose optimizer remembers other arrays than the rule does: it cannot be set to a position, and that is the finding."""

    def work(live: LiveWorker) -> None:
        source = sources[live.name]
        if subject.memory.get("accepted", live.name, digest(source)) is None:
            _open(subject, live, source)
            subject.memory.keep(True, "accepted", live.name, digest(source))  # noqa: FBT003 - what is kept

    each(subject, work)
    for backend, why in list(subject.failures.items()):
        if other := re.search(r"optimizer state is another program's: (\S+) is", why):
            del subject.failures[backend]
            worst = Difference(other[1], 1, float("nan"), 0.0, (), 0.0, float("nan"))
            votes = {name: "differs" if name == backend else "agrees" for name in subject.backends}
            said = "its optimizer remembers other arrays than the rule does, so that no position can be loaded into it"
            return Finding(
                1, "optimizer", f"optimizer/{other[1]}", backend, worst, "reference", votes, said, why_not(why)
            )
    return None


def why_not(error: str) -> str:
    """What a program that cannot be set to a position said, in short."""
    found = re.search(r"program's: \S+ is (.+?) in it and (.+?) in the program", error)
    return f"it is {found[1]} by the rule and {found[2]} in the program" if found else "it is not the rule's"


def _gone(expected: Array | None, said: Array | None) -> str:
    if said is None:
        return "the program does not say it"
    if expected is not None and expected.shape != said.shape:
        return f"it has shape {list(said.shape)}, and {list(expected.shape)} by the reference"
    return ""


def _open(subject: Subject, live: LiveWorker, source: str) -> None:
    """Have a program at hand under `dissected`; it stays there until another one is asked for."""
    if subject.memory.get("open", live.name) != digest(source):
        subject.memory.forget("open", live.name)
        open_program(subject, live, "dissected", source, observe=True)
        subject.memory.keep(digest(source), "open", live.name)


def closed(subject: Subject) -> None:
    """Forget the programs that were taken apart."""
    for backend in subject.backends:
        subject.memory.forget("open", backend)
    each(subject, lambda live: live.ask("close", name="dissected"))


def take(subject: Subject, sources: Mapping[str, str], step: int, *, quick: bool = False) -> Taken:
    """Have every backend take a step from the position before it. `quick`: without values and twins."""
    path = position_before(subject, step)
    position = subject.start if step == subject.first else load_file(path)
    twins = [] if quick else [_twin_position(subject, step, position, i) for i in range(TWINS)]

    def work(live: LiveWorker) -> Answer:
        source = sources[live.name]
        key = ("take", live.name, digest(source), step, quick)
        known: Answer | None = subject.memory.get(*key)
        if known is None:
            _open(subject, live, source)
            known = _answer(subject, live, step, path, twins, quick=quick)
            subject.memory.keep(known, *key)
        return known

    answers = each(subject, work)
    if not answers:
        raise WorkerFailed("\n".join(subject.failures.values()))
    moves: dict[str, float] = {}
    for answer in answers.values():
        for n, move in answer.moves.items():
            # The smallest: a faulty program may be far less steady than the honest ones.
            moves[n] = min(moves.get(n, np.inf), move)
    said = {backend: answer.said for backend, answer in answers.items()}
    return Taken(step, position, said, {backend: answer.evaluated for backend, answer in answers.items()}, moves)


def _twin_position(subject: Subject, step: int, position: Arrays, number: int) -> Path:
    return Path(subject.position(f"before-{step}-twin-{number}", twin(subject.program, position, number, zeros=False)))


def _answer(
    subject: Subject, live: LiveWorker, step: int, position: Path, twins: Sequence[Path], *, quick: bool
) -> Answer:
    live.ask("load", name="dissected", arrays=str(position))
    batch = live.arrays("batch", name="dissected", step=step)
    looked = {} if quick else _evaluated(subject, live)
    said = live.arrays("observe", name="dissected", step=step, values=not quick)
    moves: dict[str, float] = {}
    for path in twins:
        live.ask("load", name="dissected", arrays=str(path))
        other = {f"evaluation:{n}": a for n, a in _evaluated(subject, live).items()}
        other |= live.arrays("observe", name="dissected", step=step)
        base = {f"evaluation:{n}": a for n, a in looked.items()} | said
        for n, a in other.items():
            if n in base and base[n].shape == a.shape:
                move = float(np.max(np.abs(a.astype(np.float64) - base[n]), initial=0.0))
                moves[n] = max(moves.get(n, 0.0), move)
    return Answer(said | {f"batch/{n}": a for n, a in batch.items()}, looked, moves)


def _evaluated(subject: Subject, live: LiveWorker) -> Arrays:
    found: Arrays = {}
    for question in subject.questions.values():
        found |= live.arrays("values", name="dissected", rows=ROWS, **question.request())
    return found


def position_before(subject: Subject, step: int) -> Path:
    """A file with the position before a step: the first backend's own training leads there.

    Any positions will do, as long as all backends start from the same one. They are trained once and kept.
    """
    name = f"before-{step}"
    path = subject.folder / f"{name}.safetensors"
    if step == subject.first:
        return Path(subject.position(name, subject.start))
    if not path.exists():
        before = position_before(subject, step - 1)
        live = subject.workers[subject.backends[0]]
        open_program(subject, live, "anchor", subject.honest[live.name, False], observe=False)
        live.ask("load", name="anchor", arrays=str(before))
        last = step + AHEAD
        for now in range(step, min(last, subject.program.steps - 1) + 1):
            own = live.fresh()
            live.ask("train", name="anchor", first=now - 1, last=now, write="last", into=str(own))
            own.replace(subject.folder / f"before-{now}.safetensors")
        live.ask("close", name="anchor")
    return path


def find(
    subject: Subject, sources: Mapping[str, str], steps: int, looked: Callable[[int], None] = lambda _done: None
) -> Finding | None:
    """The first (step, phase, tensor) at which programs part, or None within so many steps from the first.

    `looked`: called after each step with how many were looked at.
    """
    first = subject.first
    for step in range(first, min(first + steps, subject.program.steps)):
        closer = step == first or suspicious(subject, take(subject, sources, step, quick=True))
        if closer and (found := dissect(subject, take(subject, sources, step))):
            return found
        looked(step - first + 1)
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
    if not quick and taken.step == subject.first:
        mine = evaluated(subject)
        names = [f"evaluation:{n}" for n in mine]
        wanted = {f"evaluation:{n}": a for n, a in mine.items()}
        said = {b: {f"evaluation:{n}": a for n, a in own.items()} for b, own in taken.evaluated.items()}
        # In evaluation alone nothing is at fault that training shows first.
        looked = list(_judge(subject, replace(taken, said=said), "forward", names, dict.fromkeys(said, wanted), FLOOR))
        if looked:
            ends = outputs(subject, names)
            idle = {b for b in said if not any(_apart(subject, taken, n, wanted, said[b]) for n in ends)}
            left = {b: own for b, own in said.items() if b not in idle}
            looked = list(_judge(subject, replace(taken, said=left), "forward", names, dict.fromkeys(left, wanted), FLOOR))  # fmt: skip
    else:
        looked = []
    room = COARSE if quick else FLOOR
    for number, update in enumerate(subject.program.updates):
        values = [n for n in next(iter(expected.values())) if n.startswith(f"values/{update.name}/")]
        forward = [] if quick else list(_judge(subject, taken, "forward", values, expected, room))
        if forward:
            # A node that is computed otherwise, without a trace in what follows from it, is the same network in other words.
            acting = replace(taken, said={b: own for b, own in taken.said.items() if _acts(subject, taken, b, update, expected)})  # fmt: skip
            forward = list(_judge(subject, acting, "forward", values, expected, room))
        if forward and number and not looked:
            # The nodes themselves are right in evaluation: what this update saw is what the one before it left.
            yield from _moved(subject, taken, subject.program.updates[number - 1].name, expected, room)
        if forward and len(subject.program.updates) > 1 and (early := _moved_early(subject, taken, forward[0])):
            yield early
        yield from forward
        yield from _judge(subject, taken, "loss", [f"loss/{update.name}"], expected, room)
        yield from _backward(subject, taken, update.name, room)
        if number == len(subject.program.updates) - 1:
            for other in subject.program.updates:
                yield from _moved(subject, taken, other.name, expected, room)
    statistics = [f"state/{n}" for n, p in subject.program.parameters.items() if not p.learned]
    yield from _judge(subject, taken, "state", statistics, expected, room)
    yield from looked


def _apart(subject: Subject, taken: Taken, name: str, expected: Mapping[str, Array], said: Mapping[str, Array]) -> bool:
    return _difference(subject, taken, name, expected.get(name), said.get(name), FLOOR).ratio > 1


def _acts(subject: Subject, taken: Taken, backend: str, update: Update, expected: Mapping[str, Arrays]) -> bool:
    """Whether anything that follows from a backend's nodes differs: outputs, loss, gradients, running statistics."""
    said, right = taken.said[backend], expected[backend]
    values = [n for n in right if n.startswith(f"values/{update.name}/")]
    names = [*outputs(subject, values), f"loss/{update.name}"]
    names += [f"state/{n}" for n, p in subject.program.parameters.items() if not p.learned]
    if any(_apart(subject, taken, n, right, said) for n in names):
        return True
    gradients = [
        n for n in said if n.startswith(f"gradients/{update.name}/") and n.split("/", 2)[2] not in subject.apart
    ]
    others = [own for b, own in taken.said.items() if b != backend]
    return any(_apart(subject, taken, n, own, said) for own in others for n in gradients)


def _moved_early(subject: Subject, taken: Taken, found: Finding) -> Finding | None:
    """A node that is right for the parameters that its network has after the step: they were moved before it was computed."""
    update = next(u for u in subject.program.updates if found.tensor.startswith(f"{u.name}/"))
    network = next(s.network for s in update.calls if found.tensor.startswith(f"{update.name}/{s.variable}."))
    said = taken.said[found.backend]
    own = {n: a for n, a in part(said, "state/").items() if n.startswith(f"{network}.")}
    learned = [n for n in own if subject.program.parameters[n].learned]
    moved = {f"state/{n}": own[n] for n in learned}
    name = f"values/{found.tensor}"
    wrong, right = (
        _difference(
            subject, taken, name, followed(subject, said, start, taken.step, fed=True).get(name), said.get(name), FLOOR
        ).ratio
        for start in (taken.position, taken.position | moved)
    )
    if wrong <= 1 or right > 1:
        return None
    layer = found.tensor.partition(".")[2]
    first = next((n for n in learned if n.startswith(f"{network}.{layer}.")), learned[0])
    why = f"with the parameters that it has after the step, the reference gives its {found.tensor}: they were moved too early"
    return replace(found, phase="optimizer", tensor=first, confirmed=why)


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
            gone = _gone(expected[worst].get(name), taken.said[worst].get(name))
            yield Finding(taken.step + 1, phase, plain(name), worst, differences[worst], "reference", votes, gone=gone)


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
            yield Finding(
                taken.step + 1, "backward", plain(name), worst, found, " and ".join(others), votes, pair=(others[0], worst)
            )  # fmt: skip
        else:
            pair = max(pairs, key=lambda p: pairs[p].ratio)
            votes = {b: "differs" if b in pair else "agrees" for b in backends}
            yield Finding(
                taken.step + 1, "backward", plain(name), " or ".join(pair), pairs[pair], pair[0], votes, pair=pair
            )  # fmt: skip


def _difference(
    subject: Subject, taken: Taken, name: str, expected: Array | None, said: Array | None, room: int
) -> Difference:
    if expected is None or said is None:
        return Difference(plain(name), taken.step + 1, float("nan"), 0.0)
    if expected.shape != said.shape:
        return Difference(plain(name), taken.step + 1, float("nan"), 0.0, (), float(expected.size), float(said.size))
    size = max(float(np.max(np.abs(a), initial=0.0)) for a in (expected, said) if np.isfinite(a).all() or a is expected)
    share = room * subject.unit + subject.rounding(name)
    bound = 0.0 if name.endswith("/count") else share * size + ROOM * taken.moves.get(name, 0.0)
    return measure(plain(name), np.asarray(expected), np.asarray(said), Derived(0.0, absolute=bound), taken.step + 1)


def plain(name: str) -> str:
    """A tensor's name as a reader knows it: without the prefix of its kind."""
    kind, _, rest = name.partition("/")
    if kind in ("values", "batch", "state", "gradients"):
        return rest
    return name.removeprefix("evaluation:")


# What feeding shows ---------------------------------------------------------------------------------------


def _confirmed(subject: Subject, taken: Taken, found: Finding) -> Finding:
    """Feed the reference with the odd backend's own values, and say where a difference stays and where it goes."""
    odd = found.backend
    if found.confirmed:
        return found
    if found.phase == "backward":
        return _by_slope(subject, taken, found)
    if odd not in taken.said:
        return found
    if found.phase == "data":
        return replace(found, confirmed=_fed_batch(subject, taken, odd))
    alone = _alone(subject, taken, found)
    name = found.tensor
    if name not in alone:
        return replace(found, confirmed=f"fed with {odd}'s own values, the reference gives the same {name}")
    others = [n for n in alone if n != name]
    rest = (
        f"{len(others)} more {'do' if len(others) > 1 else 'does'} not follow from it: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"  # noqa: PLR2004
        if others
        else "everything else follows from it"
    )
    fed = {"optimizer": "gradients and state", "loss": "outputs"}.get(found.phase, "values before it")
    said = f"fed with {odd}'s own {fed}, the reference still gives another {name}: the difference is made there; {rest}"
    return replace(found, confirmed=said)


def _alone(subject: Subject, taken: Taken, found: Finding) -> list[str]:
    """What differs in the odd backend although the reference was fed with its own values for all that goes into it."""
    said = taken.said[found.backend]
    if found.mode == "evaluation":
        said = {f"evaluation:{n}": a for n, a in taken.evaluated[found.backend].items()}
        expected = {f"evaluation:{n}": a for n, a in evaluated(subject, taken.evaluated[found.backend]).items()}
    else:
        expected = followed(subject, said, taken.position, taken.step, fed=True)
    return list(
        dict.fromkeys(
            plain(name)
            for name, value in expected.items()
            if _difference(subject, taken, name, value, said.get(name), max(FLOOR, RULE_ROOM)).ratio > 1
        )
    )


def _fed_batch(subject: Subject, taken: Taken, odd: str) -> str:
    """Whether all of a step follows from the batch that a backend had, right or wrong."""
    said = taken.said[odd]
    try:
        expected = followed(subject, said, taken.position, taken.step, batch=part(said, "batch/"))
    except (ValueError, IndexError, KeyError) as error:
        return f"the reference cannot be fed with {odd}'s batch: {error}"
    still = [
        plain(n)
        for n, value in expected.items()
        if n.startswith("values/") and _difference(subject, taken, n, value, said.get(n), FLOOR).ratio > 1
    ]
    if still:
        return f"fed with {odd}'s batch, the reference still differs at {still[0]}: the batch is not all that is wrong"
    return f"fed with {odd}'s batch, the reference gives {odd}'s values: the difference is made in the data alone"


def _by_slope(subject: Subject, taken: Taken, found: Finding) -> Finding:
    """Ask the reference for the slope of the loss along the direction in which two gradients differ most: it names the wrong one."""
    update, name = found.tensor.split("/", 1)
    first, second = found.pair
    key = f"gradients/{update}/{name}"
    a, b = (taken.said[x][key].astype(np.float64) for x in (first, second))
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return found
    direction = (b - a) / (float(np.linalg.norm(b - a)) or 1.0)
    slope, error = differentiated(subject, update, name, direction, taken.said[first], taken.position, taken.step)
    wants, gets = float(np.sum(a * direction)), float(np.sum(b * direction))
    if error > abs(gets - wants) / 4:
        said = f"values and loss agree; along the difference the reference's loss has a kink (slope {slope:.9g} ± {error:.2g}), which names nobody"
        return replace(found, confirmed=said)
    wrong, right = (second, first) if abs(slope - wants) <= abs(slope - gets) else (first, second)
    said = (
        f"values and loss agree, so the difference is made in the gradient; along the difference the reference's loss "
        f"has slope {slope:.9g}, {first} says {wants:.9g} and {second} {gets:.9g}: {wrong} is wrong"
    )
    worst = found.worst if wrong == second else replace(found.worst, a=found.worst.b, b=found.worst.a)
    votes = {n: "differs" if n == wrong or (found.backend != wrong and v == "differs" and n != right) else "agrees" for n, v in found.votes.items()}  # fmt: skip
    against = found.against if found.backend == wrong else right
    return replace(found, backend=wrong, worst=worst, votes=votes, against=against, confirmed=said)


def order(subject: Subject) -> list[str]:
    """The names of all that a step of the reference computes, values in the order of their computing."""
    fed = {f"gradients/{u.name}/{n}": np.zeros(p.shape) for u in subject.program.updates for n, p in subject.program.parameters.items()
           if p.learned and (len(subject.program.networks) == 1 or n.partition(".")[0] in u.over)}  # fmt: skip
    return list(followed(subject, fed, subject.start, subject.first))


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
