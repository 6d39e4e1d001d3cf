"""Why trainings part: the catalogue of faults in reverse.

Each fault of the phase in question is planted into an honest program, which takes the same step from the same position;
what it changes is held against what the odd program changes. A fault that explains the difference is a probable cause.
It is planted into another backend than the odd one wherever it can be: then the texts have nothing in common, and an
explanation says what the odd program means, not how it is written.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.backend import Arrays
from harness.check.dissect import Finding, Taken, node_of, position_before
from harness.check.live import LiveWorker
from harness.check.memory import digest
from harness.check.mutants import MUTANTS, Mutant, plant
from harness.check.places import EVERY, FIRST, Place, at, number
from harness.check.subject import ROWS, Subject, open_program
from harness.errors import WorkerFailed

ENOUGH = 0.9
"""The share of the difference from which on a cause is named."""
TIED = 1e-3
"""Causes that explain as much as the best, less than this, are named beside it."""
FEW = 24
"""Of a fault's places, those that are tried one by one where nothing says which it is."""
KIN = {
    "data": ("data",), "forward": ("forward", "state"), "loss": ("loss", "forward"), "backward": ("backward", "loss", "forward"),
    "optimizer": ("optimizer", "state"), "state": ("state", "forward"),
}  # fmt: skip
"""By the phase that was found: the phases whose faults are tried, and in this order."""


@dataclass(frozen=True)
class Cause:
    """A fault of the catalogue and how much of the difference it explains."""

    name: str
    about: str
    explained: float
    """1 less the squared distance from the odd program's change, relative to that change: 1 where they are the same."""
    backend: str
    """Where it was planted."""

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {"name": self.name, "about": self.about, "explained": self.explained, "planted_in": self.backend}


def causes(subject: Subject, taken: Taken, found: Finding) -> list[Cause]:
    """The best explanations, best first; none where nothing in the catalogue fits."""
    odd = found.backend
    if odd not in taken.said:
        return []
    # PyTorch's programs run without compiling: the quickest place to try.
    healthy = sorted(
        (b for b in subject.backends if b != odd and found.votes.get(b) == "agrees"),
        key=lambda b: subject.workers[b].backend != "torch",
    )
    wanted = _material(taken, odd, found)
    # Where there is no other backend, the program that the emitter writes for this one.
    base = _material(taken, healthy[0], found) if healthy else _emitted(subject, odd, taken, found)
    change = _change(base, wanted)
    if not change or _size(change) == 0:
        return []
    tried: list[Cause] = []
    for phase in KIN[found.phase]:
        for mutant in (m for m in MUTANTS if m.phase == phase):
            cause = _explains(subject, taken, found, mutant, [*healthy, odd], change)
            if cause is not None:
                tried.append(cause)
        if any(c.explained > 1 - TIED for c in tried):
            break
    tried.sort(key=lambda c: -c.explained)
    best = [c for c in tried if c.explained >= ENOUGH and c.explained > tried[0].explained - TIED]
    # Among equals, the one whose phase is the one that was found.
    phases = {m.name: m.phase for m in MUTANTS}
    return sorted(best, key=lambda c: (phases[c.name] != found.phase, -round(c.explained, 6)))


def _explains(
    subject: Subject, taken: Taken, found: Finding, mutant: Mutant, backends: Sequence[str], change: Arrays
) -> Cause | None:
    """A fault planted where it can be, and the share of the difference that it makes too: the best of its places."""
    for backend in backends:
        tried = []
        for source in _planted(subject, backend, mutant, found):
            made = _made(subject, backend, source, taken, found)
            if made is not None:
                tried.append(1 - _size(_change(made, change)) / _size(change))
                if tried[-1] > 1 - TIED:
                    break
        if tried:
            return Cause(mutant.name, mutant.about, float(max(tried)), backend)
    return None


def _emitted(subject: Subject, backend: str, taken: Taken, found: Finding) -> Arrays:
    return _step(subject, subject.workers[backend], subject.honest[backend, True], taken, found)


def _planted(subject: Subject, backend: str, mutant: Mutant, found: Finding) -> Iterator[str]:
    """Programs with a fault in it: in every place where it can be, in the first, and where the difference was found.

    Where no node was found that a fault could be told by, in each of its places, as long as they are few.
    """
    honest = subject.honest[backend, True]

    def planted(place: Place) -> str | None:
        return subject.known(
            f"planted in {backend}: {mutant.name}: {place.name}",
            lambda: plant(
                mutant, subject.program, subject.workers[backend].backend, subject.precision,
                place=place, honest=honest, tidy=False, observe=True,
            ),
        )  # fmt: skip

    seen: set[str | None] = {None}

    def tried(places: Iterable[Place]) -> Iterator[str]:
        for place in places:
            source = planted(place)
            if source is None:
                return
            if source not in seen:
                seen.add(source)
                yield source

    yield from tried([EVERY, FIRST])
    node = _node(subject, found)
    if node is not None:
        yield from tried([at(*node)])
    elif mutant.phase == found.phase:
        yield from tried(number(n) for n in range(1, FEW))


def _node(subject: Subject, found: Finding) -> tuple[str, str] | None:
    """The class and the node whose value or statistics were found to differ; None in the other phases."""
    tensor = found.tensor
    if found.phase == "state":
        name = tensor.rpartition("/")[2]
        name = name.partition(".")[2] if len(subject.program.networks) > 1 else name
        tensor = f"x.{name.rpartition('.')[0]}"
    elif found.phase != "forward":
        return None
    return node_of(subject.program.networks, tensor)


def _made(subject: Subject, backend: str, source: str, taken: Taken, found: Finding) -> Arrays | None:
    """What a planted fault changes in a step; None where the program does not run."""
    key = ("made", backend, digest(source), taken.step, found.mode, found.phase)
    known: Arrays | None = subject.memory.get(*key)
    if known is None:
        live = subject.workers[backend]
        try:
            said = _step(subject, live, source, taken, found)
            honest = _step(subject, live, subject.honest[backend, True], taken, found)
        except WorkerFailed:
            if live.process.poll() is not None:
                raise
            return None
        known = _change(honest, said)
        subject.memory.keep(known, *key)
    return known


def _step(subject: Subject, live: LiveWorker, source: str, taken: Taken, found: Finding) -> Arrays:
    """What a program says of the step, as much as bears on the finding."""
    honest = source == subject.honest[live.name, True]
    key = ("honest", live.name, taken.step, found.mode, found.phase)
    known: Arrays | None = subject.memory.get(*key) if honest else None
    if known is not None:
        return known
    name = "candidate"
    open_program(subject, live, name, source, observe=True)
    live.ask("load", name=name, arrays=str(position_before(subject, taken.step)))
    said: Arrays = {}
    if found.mode == "evaluation":
        for question in subject.questions.values():
            said |= live.arrays("values", name=name, rows=ROWS, **question.request())
    else:
        if found.phase == "data":
            said |= {f"batch/{n}": a for n, a in live.arrays("batch", name=name, step=taken.step).items()}
        said |= live.arrays("observe", name=name, step=taken.step)
    live.ask("close", name=name)
    kept = _kept(said, found)
    if honest:
        subject.memory.keep(kept, *key)
    return kept


def _material(taken: Taken, backend: str, found: Finding) -> Arrays:
    """What a backend said that bears on a finding."""
    if found.mode == "evaluation":
        return _kept(taken.evaluated[backend], found)
    return _kept(taken.said[backend], found)


def _kept(said: Mapping[str, Any], found: Finding) -> Arrays:
    """The tensors that an explanation must explain: of the phase that was found and all that follow from it."""
    if found.mode == "evaluation":
        return dict(said)
    later = {
        "data": ("batch/", "values/", "loss/", "gradients/"), "forward": ("values/", "loss/", "gradients/"),
        "loss": ("loss/", "gradients/"), "backward": ("gradients/",), "optimizer": ("state/", "optimizer/"),
        "state": ("state/",),
    }[found.phase]  # fmt: skip
    return {n: a for n, a in said.items() if n.startswith(later) and not n.endswith("/count")}


def _change(base: Arrays, other: Arrays) -> Arrays:
    """The difference of every tensor."""
    found: Arrays = {}
    for n, a in base.items():
        b = other.get(n)
        if b is None or b.shape != a.shape:
            found[n] = np.ones(1)  # as different as can be: what is there in one alone
            continue
        with np.errstate(invalid="ignore"):
            found[n] = np.nan_to_num(b.astype(np.float64) - a, nan=1e30, posinf=1e30, neginf=-1e30)
    return found


def _size(change: Arrays) -> float:
    """The squared norm of all tensors together."""
    return float(sum(np.sum(np.square(a)) for a in change.values()))


__all__ = ["ENOUGH", "Cause", "causes"]
