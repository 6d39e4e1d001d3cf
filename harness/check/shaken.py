"""What live workers are asked for shaken twins (see harness.twins)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.backend import SHAKEN_UNITS, Arrays
from harness.check.live import LiveWorker
from harness.check.subject import Subject, each, part
from harness.errors import HarnessError
from harness.twins import moved, rounding_moves


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
    gradients = subject.known("first gradients", lambda: first_gradients(subject, name, backends))
    moves = rounding_moves(subject.program, state, slots, gradients, 0, subject.unit, number)
    near = moved(subject.program, state, number, units=SHAKEN_UNITS)
    start = {n: a for n, a in subject.start.items() if not n.startswith("state/")} | {f"state/{n}": a for n, a in near.items()}  # fmt: skip
    given = {"inputs": subject.nudged(number)}
    how = {"shake": subject.position(f"moves-{number}", moves), "number": number, "units": SHAKEN_UNITS}
    return Shaken(subject.position(f"shaken-{number}", start), how | given, given)


def first_gradients(subject: Subject, name: str, backends: Collection[str]) -> list[list[Arrays]]:
    """The gradients at the first two steps, by step, of each of these. Raises HarnessError where none answers."""

    def ask(live: LiveWorker) -> list[Arrays]:
        if live.name not in backends:
            return []
        live.ask("load", name=name, arrays=subject.position("start", subject.start))
        found = [live.arrays("gradients", name=name, step=0)]
        if subject.program.steps > 1:
            live.ask("train", name=name, first=0, last=1)
            found.append(live.arrays("gradients", name=name, step=1))
        return found

    said = [own for own in each(subject, ask).values() if own]
    if not said:
        raise HarnessError(f"no worker said its first gradients: {subject.failures}")
    return [list(own) for own in zip(*said, strict=True)]
