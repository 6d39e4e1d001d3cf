"""The catalogue of mutants: semantic faults, each planted alone into the program of one backend.

A fault changes the resolved program where that can say it, so that it is the same fault in every backend; otherwise
the emitted text of the backends that can have it. What parameters there are and their shapes never change: a mutant
loads, runs and trains.
"""

import importlib
from functools import partial

from harness.check.edits import Inapplicable, planned
from harness.check.faults import backward, data, forward, loss, optimizer, state
from harness.check.mutant import PHASES, Mutant, bindings
from harness.check.places import EVERY, FIRST, Place, another
from harness.emit import formatted
from harness.graph import Program

__all__ = ["MUTANTS", "PHASES", "Mutant", "applicable", "first_step", "places", "plant", "plantings", "untried"]

MUTANTS: tuple[Mutant, ...] = (
    *data.MUTANTS,
    *forward.MUTANTS,
    *loss.MUTANTS,
    *backward.MUTANTS,
    *optimizer.MUTANTS,
    *state.MUTANTS,
)


def plant(
    mutant: Mutant,
    program: Program,
    backend: str,
    precision: str = "float64",
    threads: int = 1,
    *,
    place: Place = FIRST,
    honest: str | None = None,
    tidy: bool = True,
    **options: object,
) -> str | None:
    """A backend's program with the fault in it, or None where the fault has nothing to change there.

    `honest`: the program without it, where it is at hand; `tidy`: whether changed text is laid out as emitted text is;
    `options` go to the emitter.
    """
    if precision not in mutant.precisions or not mutant.where(program):
        return None
    if mutant.change is not None:
        changed = mutant.change(program, place)
        if changed is None:
            return None
        text = _emit(changed, backend, precision, threads, **options)
        return None if text == (honest or _emit(program, backend, precision, threads, **options)) else text
    plans = mutant.edits.get(backend, Inapplicable("no plan"))
    if isinstance(plans, Inapplicable):
        return None
    honest = honest or _emit(program, backend, precision, threads, **options)
    found = planned(honest, plans, partial(bindings, program), place)
    if found is None or found == honest:
        return None
    return formatted(found) if tidy else found


def _emit(program: Program, backend: str, precision: str, threads: int, **options: object) -> str:
    return str(importlib.import_module(f"backends.{backend}.emit").emit(program, precision, threads, **options))


def places(mutant: Mutant, program: Program) -> tuple[Place, ...]:
    """Where a fault is planted: the first place, another one by its name and the spec's, and every one."""
    return FIRST, another(f"{mutant.name} in {program.name}"), EVERY


def plantings(
    mutant: Mutant,
    program: Program,
    backend: str,
    precision: str = "float64",
    *,
    observe: bool = False,
    honest: str | None = None,
) -> dict[str, str]:
    """The programs with a fault, by where it was planted; those alone that differ from one another."""
    found: dict[str, str] = {}
    if precision not in mutant.precisions or not mutant.where(program):
        return found
    honest = honest or _emit(program, backend, precision, 1, observe=observe)
    for place in places(mutant, program):
        text = plant(mutant, program, backend, precision, place=place, honest=honest, observe=observe)
        if text is not None and text not in found.values():
            found[place.name] = text
    return found


def untried(mutant: Mutant, backend: str) -> str:
    """Why a fault that another backend can have in a program was not planted into this one's."""
    plans = mutant.edits.get(backend)
    return plans.why if isinstance(plans, Inapplicable) else NO_PLAN


NO_PLAN = "no plan of the catalogue fits this program"


def applicable(program: Program, backend: str, precision: str = "float64") -> list[Mutant]:
    """The mutants that change this program in this backend."""
    return [mutant for mutant in MUTANTS if plant(mutant, program, backend, precision) is not None]


def first_step(mutant: Mutant, program: Program) -> int:
    """The step, from 1, from which a mutant can show: in what a step reads and computes, or in what it leaves behind."""
    if callable(mutant.shows_at):
        return mutant.shows_at(program)
    # A warm-up from 0 leaves the parameters alone at first, whatever the optimizer does.
    idle = all(update.schedule.factor(0) == 0 for update in program.updates)
    return max(mutant.shows_at, 2) if idle and mutant.phase == "optimizer" else mutant.shows_at
