"""Are the trainings of a random spec the same? Tight tolerances first; where they say no, twins (see harness.twins).

Everybody is held against everybody, and what is known without a gradient (outputs before training, the first loss)
against the float64 reference.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np

from harness import reference
from harness.backend import Array, Arrays
from harness.check.subject import Subject, wide
from harness.compare import TOLERANCES, Tolerance, measure
from harness.fuzz.training import ROWS, Answer, asked
from harness.twins import HOPELESS, NEAR, ROUNDS, SHAKES, TIMES, Yardstick

REFERENCE = "reference"
SHOWN = 4
"""Tensors that are named where trainings differ."""


@dataclass(frozen=True)
class Parting:
    """A tensor in which two trainings are further apart than the tight tolerance allows."""

    what: str
    """`forward`, `loss`, `gradients`, `state`, `optimizer` or `outputs`."""
    name: str
    step: int | None
    """Counted from 1; None outside of training."""
    a: str
    b: str
    gap: float
    """The largest difference; infinite where a value is no number in one of them alone, or is missing."""
    share: float
    """The largest difference, as a multiple of what the tight tolerance allows."""
    ratio: float = math.inf
    """The gap, as a multiple of what the worst twin parts by."""

    def __str__(self) -> str:
        when = "" if self.step is None else f", step {self.step}"
        twins = "" if math.isinf(self.ratio) else f", {self.ratio:.2g} times the worst twin"
        return f"{self.what} {self.name}{when}: {self.a} and {self.b} are {self.gap:.2g} apart ({self.share:.2g} times what is allowed{twins})"


@dataclass(frozen=True)
class Verdict:
    """What is to be said of the trainings of a spec."""

    status: str
    """`same`, `rounding` (further apart than the tight tolerance, no further than twins) or `differs`."""
    said: str = ""
    ratio: float = 0.0
    """The largest of all tensors, where twins were asked."""
    odd: str = ""
    """The backend that is in most of the pairs that differ."""
    notes: tuple[str, ...] = ()
    """`diverged`: losses left the numbers, or grew beyond what is compared, in all alike. `still`: nothing moved, so that it is no evidence."""


class Twins(Protocol):
    """What the programs say from elsewhere; asked for only where something parts."""

    def moved(self, number: int) -> Mapping[str, Answer]:
        """From parameters a unit in the last place away."""

    def shaken(self, number: int) -> Mapping[str, Answer]:
        """Of shaken twins."""


def judge(subject: Subject, answers: Mapping[str, Answer], twins: Twins) -> Verdict:
    """Judge the answers of a spec's backends."""
    cut = _steps_compared(subject, answers.values())
    notes = []
    if cut < subject.program.steps:
        notes.append("diverged")
    if all(_still(own) for own in answers.values()):
        notes.append("still")
    seen = {name: _until(own, cut) for name, own in answers.items()}
    parted = list(_partings(subject, seen))
    if not parted:
        return Verdict("same", notes=tuple(notes))
    yardstick = Yardstick()

    def beside(found: Mapping[str, Answer]) -> list[Parting]:
        for name, own in _cut(found, cut).items():
            yardstick.add(_distances(seen[name], own))
        return [replace(p, ratio=_ratio(p, yardstick)) for p in parted]

    for number in range(ROUNDS):
        judged = beside(twins.moved(number))
        ratio = max(p.ratio for p in judged)
        if ratio <= TIMES or (number and ratio > HOPELESS):
            break
    for number in range(SHAKES):
        if ratio <= TIMES or (number and ratio > NEAR):
            break
        judged = beside(twins.shaken(number))
        ratio = max(p.ratio for p in judged)
    if ratio <= TIMES:
        return Verdict(
            "rounding", f"{len(judged)} tensors, up to {ratio:.2g} times the worst twin", ratio, "", tuple(notes)
        )
    beyond = sorted((p for p in judged if p.ratio > TIMES), key=_order)
    sides = [side for p in beyond for side in (p.a, p.b) if side != REFERENCE]
    odd = max(answers, key=sides.count)
    rest = f"; and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
    return Verdict("differs", "; ".join(map(str, beyond[:SHOWN])) + rest, ratio, odd, tuple(notes))


def alike(subject: Subject, one: Answer, two: Answer) -> bool:
    """Whether a program said the same twice, by the tight tolerance; what is no number in both is the same."""
    steps = max(map(len, one.losses.values()))
    first, second = _said(one, steps), _said(two, steps)
    return first.keys() == second.keys() and not any(
        True for key in first for _ in _parting(subject, key, ("once", "again"), first[key], second[key])
    )


def without_effect(subject: Subject, own: Answer, changed: Answer, twins: Iterable[Answer]) -> bool:
    """Whether a change of a program changes nothing: it says the same by the tight tolerance, and is nowhere further away than rounding.

    Not by the tolerance alone, which hides what is small; nor by twins alone (TIMES the worst), which hide what they are wild beside.
    """
    cut = _steps_compared(subject, (own, changed))
    own, changed = _until(own, cut), _until(changed, cut)
    if not alike(subject, own, changed):
        return False
    yardstick = Yardstick()
    for twin in twins:
        yardstick.add(_distances(own, _until(twin, cut)))
    steps = max(map(len, own.losses.values()))
    was, now = _said(own, steps), _said(changed, steps)
    return was.keys() == now.keys() and all(
        was[key].shape == now[key].shape and _apart(was[key], now[key]) <= TIMES * yardstick.at(*key) for key in was
    )


KINDS = ("forward", "loss", "gradients", "state", "optimizer", "outputs")


def _order(parting: Parting) -> tuple[int, int, float]:
    early = parting.step or (0 if parting.what == "forward" else 10**9)
    return (early, KINDS.index(parting.what), -parting.ratio)


def _steps_compared(subject: Subject, answers: Collection[Answer]) -> int:
    """The step at which one alone leaves the numbers is compared; what comes after none is left at all is not."""
    # Losses start below 1,000 (harness.fuzz.generate): what comes to this explodes, and what rounding does to it as well.
    most = 1 / subject.unit
    learned = [name for name, parameter in subject.program.parameters.items() if parameter.learned]
    until = {_numbers_until(own, most, learned) for own in answers}
    return min(until) + (len(until) > 1)


def _numbers_until(answer: Answer, most: float, learned: Collection[str]) -> int:
    """How many steps pass before a loss or a parameter is beyond the most that is compared, or a statistic is no number."""
    steps = max(map(len, answer.losses.values()))
    good = steps
    for losses in answer.losses.values():
        good = min([good, *(i for i, loss in enumerate(losses) if not abs(loss) < most)])
    for name, states in answer.states.items():
        if len(states) == steps and states.dtype.kind == "f":
            # A running variance is a square, and large where nothing explodes.
            bound = most if name in learned else math.inf
            bad = np.flatnonzero(~(np.abs(states.reshape(steps, -1)) < bound).all(axis=1))
            good = min([good, *bad[:1].tolist()])
    return good


def _until(answer: Answer, cut: int) -> Answer:
    """The answer as far as it is of numbers in every backend: what comes after is no difference in meaning."""
    steps = max(map(len, answer.losses.values()))
    if cut == steps:
        return answer
    states = {n: a[:cut] if len(a) == steps else a[:0] for n, a in answer.states.items()}
    return replace(
        answer, losses={n: own[:cut] for n, own in answer.losses.items()}, states=states, slots={}, outputs={}
    )


def _cut(answers: Mapping[str, Answer], cut: int) -> dict[str, Answer]:
    return {name: _until(own, cut) for name, own in answers.items()}


def _still(answer: Answer) -> bool:
    """Whether a training shows nothing: losses and states that stay."""
    same = all(len(set(losses)) == 1 for losses in answer.losses.values())
    return same and all(len(a) < 2 or np.array_equal(a[0], a[-1]) for a in answer.states.values())  # noqa: PLR2004


def _tensors(answer: Answer) -> Iterator[tuple[str, str, int | None, Array]]:
    """Kind, name, step and value of all that was said; states and losses step by step."""
    for name, losses in answer.losses.items():
        for step, loss in enumerate(losses, start=1):
            yield "loss", name, step, np.array(loss)
    for what, arrays in answer.tensors().items():
        for name, array in arrays.items():
            if what == "state":
                for step, value in enumerate(array, start=1 if len(array) > 1 else -1):
                    yield what, name, step, value
            else:
                yield what, name, None, array


def _said(answer: Answer, steps: int) -> dict[tuple[str, str, int | None], Array]:
    """By kind, name and step; a state that alone was kept is that of the last step."""
    return {(what, name, steps if step == -1 else step): value for what, name, step, value in _tensors(answer)}


def _partings(subject: Subject, answers: Mapping[str, Answer]) -> Iterator[Parting]:
    steps = max(len(losses) for own in answers.values() for losses in own.losses.values())
    said = {name: _said(own, steps) for name, own in answers.items()}
    for name, own in said.items():
        for key, value in _reference(subject).items():
            if (key[2] or 0) > steps:
                continue  # its first step left the numbers in all of them
            yield from _parting(subject, key, (REFERENCE, name), value, own.get(key))
    for a, b in combinations(said, 2):
        for key in dict.fromkeys((*said[a], *said[b])):
            if key[0] in ("state", "optimizer") and (_few(answers[a]) or _few(answers[b])) and not (key in said[a] and key in said[b]):  # fmt: skip
                continue  # one call made all steps: there is the last state alone
            yield from _parting(subject, key, (a, b), said[a].get(key), said[b].get(key))


def _few(answer: Answer) -> bool:
    return max(map(len, answer.losses.values())) > max((len(a) for a in answer.states.values()), default=0)


def _reference(subject: Subject) -> dict[tuple[str, str, int | None], Array]:
    """What float64 NumPy says: outputs before training, and the loss of the first update at the first step."""

    def find() -> dict[tuple[str, str, int | None], Array]:
        parameters = wide({n.removeprefix("state/"): a for n, a in subject.start.items() if n.startswith("state/")})
        with np.errstate(all="ignore"):
            found: dict[tuple[str, str, int | None], Array] = {
                ("forward", name, None): reference.evaluate(
                    subject.program,
                    q.expression,
                    parameters,
                    {f: subject.data[key][:ROWS] for f, key in q.fields.items()},
                )
                for name, q in asked(subject).items()
            }
            first = subject.program.updates[0]
            loss = reference.loss(subject.program, first, parameters, *subject.batch(0))
        if math.isfinite(loss):
            found["loss", first.name, 1] = np.array(loss)
        return found

    return subject.known("fuzz", find)


def _parting(
    subject: Subject, key: tuple[str, str, int | None], names: tuple[str, str], a: Array | None, b: Array | None
) -> Iterator[Parting]:
    what, name, step = key
    tolerances = TOLERANCES[subject.precision]
    tolerance: Tolerance = tolerances["state" if what == "optimizer" else what]
    if a is None or b is None or a.shape != b.shape:
        yield Parting(what, name, step, *names, math.inf, math.inf)
        return
    found = measure(name, a, b, tolerance, step)
    # What has left the numbers in both alike is no number, and no difference.
    if found.ratio > 1 and (gap := _apart(a, b)) > 0:
        yield Parting(what, name, step, *names, gap, found.ratio)


def _apart(a: Array, b: Array) -> float:
    """The largest difference: 0 where both are the same and no numbers, infinite where one alone is."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        gap = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
    largest = float(gap.max(initial=0.0))
    return largest if math.isfinite(largest) else math.inf


def _distances(base: Answer, twin: Answer) -> Arrays:
    """How far a twin is from its training, as a yardstick takes it: by kind and tensor, step by step."""
    steps = max(map(len, base.losses.values()))
    own, theirs = _said(base, steps), _said(twin, steps)
    series: dict[tuple[str, str], dict[int, float]] = {}
    for key, value in own.items():
        if key in theirs and theirs[key].shape == value.shape:
            series.setdefault(key[:2], {})[key[2] or 0] = _apart(value, theirs[key])
    found = {f"steps/{kind}": np.array(list(by_step)) for (kind, _), by_step in series.items()}
    return found | {f"{kind}/{name}": np.array(list(by_step.values())) for (kind, name), by_step in series.items()}


def _ratio(parting: Parting, yardstick: Yardstick) -> float:
    allowed = yardstick.at(parting.what, parting.name, parting.step)
    return parting.gap / allowed if allowed else math.inf


__all__ = ["Parting", "Verdict", "judge"]
