"""The catalogue of mutants: semantic faults, each planted alone into the program of one backend.

A fault changes the resolved program where that can say it, so that it is the same fault in every backend; otherwise
the emitted text of the backends that can have it. What parameters there are and their shapes never change: a mutant
loads, runs and trains.
"""

import importlib

from harness.check.edits import planned
from harness.check.faults import backward, data, forward, loss, optimizer, state
from harness.check.mutant import PHASES, Mutant, names
from harness.emit import formatted
from harness.graph import Program

__all__ = ["MUTANTS", "PHASES", "Mutant", "applicable", "first_step", "plant"]

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
    **options: object,
) -> str | None:
    """A backend's program with the fault in it, or None where the fault has nothing to change.

    `options` go to the emitter.
    """
    emit = importlib.import_module(f"backends.{backend}.emit").emit
    if precision not in mutant.precisions or not mutant.where(program):
        return None
    honest: str = emit(program, precision, threads, **options)
    if mutant.change is not None:
        changed = mutant.change(program)
        text = None if changed is None else str(emit(changed, precision, threads, **options))
    else:
        text = planned(honest, mutant.edits.get(backend, ()), names(program))
        text = None if text is None else formatted(text)
    return None if text == honest else text


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
