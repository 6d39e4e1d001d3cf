"""What live workers are asked for shaken twins (see harness.twins)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.backend import SHAKEN_UNITS, Arrays
from harness.check.live import LiveWorker
from harness.check.subject import Subject, each, part
from harness.errors import HarnessError
from harness.twins import FIRST_STEPS, moved, rounding_moves

ROOM = 100_000_000
"""Bytes of the gradients that one backend says for shaken twins, beyond which it is asked for those of fewer steps."""


@dataclass(frozen=True)
class Shaken:
    """How a training is shaken."""

    position: str
    """A file with the position that it starts from."""
    train: dict[str, Any]
    """What `train` is asked beside its steps."""
    inputs: dict[str, Any]
    """What every other question is asked with."""


def loaded_anew(subject: Subject) -> Shaken:
    """The training itself, loaded anew after every step: who keeps something more from step to step trains otherwise then."""
    return Shaken(subject.position("start", subject.start), {"number": 0, "units": 0}, {})


def shaken(subject: Subject, name: str, backends: Collection[str], number: int) -> Shaken:
    """A shaken twin of the program that these workers have open under a name. Raises HarnessError where none of them answers."""
    state, slots = part(subject.start, "state/"), part(subject.start, "optimizer/")
    states, gradients = subject.known("first steps", lambda: first_steps(subject, name, backends))
    moves = rounding_moves(subject.program, states, slots, gradients, 0, subject.unit, number)
    near = moved(subject.program, state, number, units=SHAKEN_UNITS)
    start = {n: a for n, a in subject.start.items() if not n.startswith("state/")} | {f"state/{n}": a for n, a in near.items()}  # fmt: skip
    given = {"inputs": subject.nudged(number)}
    how = {"shake": subject.position(f"moves-{number}", moves), "number": number, "units": SHAKEN_UNITS}
    return Shaken(subject.position(f"shaken-{number}", start), how | given, given)


def first_steps(subject: Subject, name: str, backends: Collection[str]) -> tuple[list[Arrays], list[list[Arrays]]]:
    """One backend's parameters before each of the first steps, and the gradients of each of these, by step.

    Raises HarnessError where none answers.
    """
    size = sum(a.nbytes for n, a in subject.start.items() if n.startswith("state/"))
    steps = min(subject.program.steps, max(2, min(FIRST_STEPS, ROOM // max(size, 1))))

    def ask(live: LiveWorker) -> list[tuple[Arrays, Arrays]]:
        if live.name not in backends:
            return []
        live.ask("load", name=name, arrays=subject.position("start", subject.start))
        found = []
        for step in range(steps):
            before = part(live.arrays("position", name=name), "state/")
            found.append((before, live.arrays("gradients", name=name, step=step)))
            if step + 1 < steps:
                live.ask("train", name=name, first=step, last=step + 1)
        return found

    said = [own for own in each(subject, ask).values() if own]
    if not said:
        raise HarnessError(f"no worker said its first gradients: {subject.failures}")
    return [before for before, _ in said[0]], [[gradients for _, gradients in step] for step in zip(*said, strict=True)]
