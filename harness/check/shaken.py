"""What live workers are asked for shaken twins (see harness.twins)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from harness.backend import SHAKEN_UNITS, Arrays
from harness.check.live import LiveWorker
from harness.check.subject import Subject, each, open_program, part
from harness.errors import HarnessError, WorkerFailed
from harness.rounded import rounded
from harness.twins import moved, moved_steps, rounding_moves

NAME = "rounded"
"""The name under which workers have the variant whose every value is off by rounding open."""


@dataclass(frozen=True)
class Shaken:
    """How a training is shaken."""

    names: Mapping[str, str]
    """By worker, under which name it has the program open that is trained."""
    position: str
    """A file with the position that it starts from."""
    train: dict[str, Any]
    """What `train` is asked beside its steps."""
    inputs: dict[str, Any]
    """What every other question is asked with."""


def loaded_anew(subject: Subject, name: str) -> Shaken:
    """The training itself, loaded anew after every step: who keeps something more from step to step trains otherwise then."""
    names = dict.fromkeys(subject.workers, name)
    return Shaken(names, subject.position("start", subject.start), {"number": 0, "units": 0}, {})


def shaken(subject: Subject, name: str, backends: Collection[str], number: int, observed: Mapping[str, str]) -> Shaken:
    """A shaken twin of the program that these workers have open under a name. Raises HarnessError where none of them answers.

    `observed`: by backend, the variants that return every value, of those programs that are as emitted: their twins compute with
    every value off by rounding. A variant of a changed program need not be the same program, and would excuse what it is not.
    """
    state, slots = part(subject.start, "state/"), part(subject.start, "optimizer/")
    gradients = subject.known("first gradients", lambda: first_gradients(subject, name, backends))
    moves = rounding_moves(subject.program, slots, gradients, 0, subject.unit, number)
    variants = subject.known(
        "opened rounded", lambda: opened(subject, [b for b in backends if b in observed], observed)
    )
    names = {b: NAME if b in variants else name for b in backends}
    near = moved(subject.program, state, number, units=SHAKEN_UNITS)
    start = {n: a for n, a in subject.start.items() if not n.startswith("state/")} | {f"state/{n}": a for n, a in near.items()}  # fmt: skip
    given = {"inputs": subject.nudged(number)}
    how = {"shake": subject.position(f"moves-{number}", moves), "number": number, "units": SHAKEN_UNITS}
    return Shaken(names, subject.position(f"shaken-{number}", start), how | given, given)


def opened(subject: Subject, backends: Collection[str], observed: Mapping[str, str]) -> list[str]:
    """Open the variants whose every value is off by rounding; those that did. Raises HarnessError where there is none."""
    try:
        sources = {name: rounded(subject.program, observed[name]) for name in backends}
    except ValueError as error:
        raise HarnessError(str(error)) from None

    failed: dict[str, str] = {}

    def ask(live: LiveWorker) -> bool:
        if live.name not in backends:
            return False
        try:
            open_program(subject, live, NAME, sources[live.name], observe=True, rounded=True)
        except WorkerFailed as error:
            if live.process.poll() is not None:
                raise
            failed[live.name] = str(error)
        return True

    done = [name for name, asked in each(subject, ask).items() if asked]
    if failed:  # the program itself is none the worse for it
        raise HarnessError(f"a variant whose values are off by rounding could not be opened: {failed}")
    return done


def closed(subject: Subject) -> None:
    """Forget them, where they were opened."""
    if "opened rounded" in subject.remembered:
        del subject.remembered["opened rounded"]
        each(subject, lambda live: live.ask("close", name=NAME))


def first_gradients(subject: Subject, name: str, backends: Collection[str]) -> list[list[Arrays]]:
    """The gradients at the first steps, by step, of each of these. Raises HarnessError where none answers."""
    steps = min(subject.program.steps, moved_steps(subject.program, subject.unit))

    def ask(live: LiveWorker) -> list[Arrays]:
        if live.name not in backends:
            return []
        live.ask("load", name=name, arrays=subject.position("start", subject.start))
        found = []
        for step in range(steps):
            found.append(live.arrays("gradients", name=name, step=step))
            if step + 1 < steps:
                live.ask("train", name=name, first=step, last=step + 1)
        return found

    said = [own for own in each(subject, ask).values() if own]
    if not said:
        raise HarnessError(f"no worker said its first gradients: {subject.failures}")
    return [list(own) for own in zip(*said, strict=True)]
