"""What the ladder can see: each fault of the catalogue planted into each backend it applies to, and the rungs that find it."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from safetensors.numpy import load_file

import harness
from harness.backend import BACKENDS
from harness.check import rungs
from harness.check import trajectory as long
from harness.check.evidence import Evidence, allowances, gather
from harness.check.live import LiveWorker
from harness.check.mutants import MUTANTS, Mutant, first_step, plant, plantings, untried
from harness.check.record import Rung, judged
from harness.check.subject import Subject, each, open_program, part
from harness.check.trajectory import Drift, Training
from harness.compare import TOLERANCES, Derived, compare_losses
from harness.errors import WorkerFailed
from harness.graph import BlockOp, Graph, Program
from harness.programs import emitted

RUNGS = ("forward", "gradients", "optimizer", "trajectory", "twins")
"""The rungs that a planted fault meets; a relay would say no more than a trajectory."""
LEAST, AFTER = 12, 24
"""Steps of the training with a fault in it: at least so many, and so many after it can first show."""
DEEP = 30
"""Ops, blocks counted as often as they are used, from which on a fault meets no whole training once a first step shows it:
to compile one takes a deep network longer than all else."""
SHAKEN = 2
"""Shaken twins of each honest program, which excuse as the others do (see harness.twins)."""
SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One fault in one backend's program of one spec, in one precision."""

    mutant: str
    phase: str
    spec: str
    backend: str
    precision: str
    outcomes: dict[str, str]
    """By rung that it met: `killed` or `survived`."""
    error: str = ""
    """The program did not run to the end: a fault that nobody could overlook."""
    note: str = ""
    where: str = "first"
    """In which of its places: the first, another one, or every one."""

    @property
    def killed(self) -> bool:
        """Whether anything found it."""
        return bool(self.error) or "killed" in self.outcomes.values()

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object of a cell."""
        names = ("mutant", "phase", "spec", "backend", "precision", "where", "outcomes", "killed", "error", "note")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Untried:
    """A fault that a spec's programs can have, and that was not planted into one backend's: neither found nor missed."""

    mutant: str
    phase: str
    spec: str
    backend: str
    precision: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Sensitivity:
    """The smallest relative change of a constant that a rung finds."""

    spec: str
    precision: str
    constant: str
    smallest: dict[str, float | None]
    """By rung: the change; None where not even a doubling is found."""


@dataclass(frozen=True)
class PowerResult:
    """The matrix, and how small a fault can be."""

    cells: tuple[Cell, ...]
    sensitivity: tuple[Sensitivity, ...]
    failures: dict[str, str]
    seconds: float = 0.0
    untried: tuple[Untried, ...] = ()

    @property
    def survivors(self) -> list[Cell]:
        """The faults that nothing found."""
        return [cell for cell in self.cells if not cell.killed]

    @property
    def unexplained(self) -> list[Cell]:
        """Survivors that must not be: any in float64, and those in float32 without a note that says why."""
        return [cell for cell in self.survivors if cell.precision == "float64" or not cell.note]

    @property
    def exit(self) -> int:
        """0 where every fault is found or its survival explained, 1 where one is not, 3 where a backend failed."""
        return 3 if self.failures else int(bool(self.unexplained) or not self.cells)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "schema": SCHEMA, "harness": harness.__version__, "exit": self.exit,
            "cells": [cell.to_json() for cell in self.cells], "untried": [one.to_json() for one in self.untried],
            "failures": self.failures, "seconds": self.seconds,
            "sensitivity": [
                {"spec": s.spec, "precision": s.precision, "constant": s.constant, "smallest": s.smallest}
                for s in self.sensitivity
            ],
        }  # fmt: skip


@dataclass
class Honest:
    """What the honest programs say, which a fault is held against."""

    subject: Subject
    evidence: dict[str, Evidence]
    allowed: dict[str, Derived]
    trainings: dict[str, Training]
    twins: dict[str, list[dict[str, list[float]]]]
    steps: int
    drifts: dict[str, Drift] = field(default_factory=dict)


def honest(subject: Subject, steps: int, twins: int = 5) -> Honest:
    """Ask the honest programs once."""
    evidence = each(subject, lambda live: gather(subject, live, subject.sources[live.name, True], support=True))
    trainings = long.train(subject, steps)
    distances = long.twin_distances(subject, steps, twins)
    steady = long.loads_anew(subject, steps, [name for name, own in distances.items() if own])
    for number in range(SHAKEN if steady else 0):
        for name, more in long.shaken_distances(subject, steps, steady, number).items():
            distances[name] += more
    trainings = {name: own for name, own in trainings.items() if name in distances and name in subject.backends}
    evidence = {name: own for name, own in evidence.items() if name in trainings}
    return Honest(subject, evidence, allowances(subject, evidence), trainings, distances, steps)


@dataclass(frozen=True)
class Faulty:
    """What a faulty program says."""

    evidence: Evidence
    training: Training


@dataclass(frozen=True)
class Planting:
    """A program with a fault in it."""

    mutant: Mutant
    where: str
    source: str


def plan(
    program: Program, backend: str, precision: str, only: Callable[[Mutant], bool], *, observe: bool = False
) -> list[Planting]:
    """The faults that apply, at each of the places where they are planted."""
    honest = emitted(program, backend, precision, observe=observe)
    return [
        Planting(mutant, where, source)
        for mutant in filter(only, MUTANTS)
        for where, source in plantings(mutant, program, backend, precision, observe=observe, honest=honest).items()
    ]


def not_tried(
    program: Program, backends: Mapping[str, str], precision: str, plans: Mapping[str, Sequence[Planting]],
    only: Callable[[Mutant], bool],
) -> list[Untried]:  # fmt: skip
    """The faults that some backend can have here and that were not planted into a program. `backends`: of each program."""
    planted = {name: {one.mutant.name for one in own} for name, own in plans.items()}
    absent = [backend for backend in BACKENDS if backend not in backends.values()]
    found = []
    for mutant in filter(only, MUTANTS):
        left = [name for name in backends if mutant.name not in planted[name]]
        if left and (
            len(left) < len(backends) or any(plant(mutant, program, b, precision) is not None for b in absent)
        ):
            found += [
                Untried(mutant.name, mutant.phase, program.name, name, precision, untried(mutant, backends[name]))
                for name in left
            ]
    return found


def length(program: Program, mutants: Sequence[Mutant]) -> int:
    """Steps enough for each of these faults to show."""
    latest = max((first_step(mutant, program) for mutant in mutants), default=1)
    return min(program.steps, max(LEAST, latest + AFTER))


def try_source(subject: Subject, live: LiveWorker, source: str, steps: int) -> Faulty:
    """Ask a faulty program what the honest ones were asked. Raises WorkerFailed where it does not run."""
    return Faulty(gather(subject, live, source, support=False), try_training(subject, live, source, steps))


def try_training(subject: Subject, live: LiveWorker, source: str, steps: int) -> Training:
    """Train a faulty program. Raises WorkerFailed where it does not run."""
    name = "faulty"
    open_program(subject, live, name, source, observe=True)
    path = live.fresh()
    try:
        said = live.ask("train", name=name, first=0, last=steps, write="all", into=str(path))
        arrays = load_file(path)
    finally:
        path.unlink(missing_ok=True)
        live.ask("close", name=name)
    return Training(said["losses"], part(arrays, "states/"), {})


def judge_evidence(base: Honest, backend: str, own: Evidence) -> dict[str, Rung]:
    """What the first three rungs say of a faulty program among honest others."""
    subject = base.subject
    evidence = base.evidence | {backend: own}
    return {
        "forward": rungs.forward(subject, evidence, base.allowed, backend),
        "gradients": rungs.gradients(subject, evidence, base.allowed, {}, backend),
        "optimizer": rungs.optimizer(subject, evidence, backend),
    }


def judge(base: Honest, backend: str, faulty: Faulty, steps: int) -> dict[str, Rung]:
    """What each rung says of a faulty program among honest others."""
    subject = base.subject
    others = {name: _first(own, steps) for name, own in base.trainings.items() if name != backend}
    trainings = others | {backend: _first(faulty.training, steps)}
    found = judge_evidence(base, backend, faulty.evidence)
    if len(trainings) < 2:  # noqa: PLR2004 - nobody to hold it beside
        return found | {"trajectory": _trajectory(subject, trainings, backend, None)}
    twins = {
        name: [{n: gaps[:steps] for n, gaps in own.items()} for own in all_twins]
        for name, all_twins in base.twins.items()
    }
    apart = long.drift(subject, trainings, twins)
    return found | {
        "trajectory": _trajectory(subject, trainings, backend, apart),
        "twins": long.twins_rung(subject, apart),
    }


def _first(training: Training, steps: int) -> Training:
    return Training(
        {name: losses[:steps] for name, losses in training.losses.items()},
        {name: states[:steps] for name, states in training.states.items()},
        training.end,
    )


def _trajectory(subject: Subject, trainings: Mapping[str, Training], backend: str, apart: Drift | None) -> Rung:
    """The faulty training beside the honest ones, by the rule of the rung: what twins of honest programs excuse is not found."""
    tolerances = TOLERANCES[subject.precision]
    comparisons = []
    mine = trainings[backend]
    for name, own in trainings.items():
        if name != backend:
            comparisons.append(compare_losses((name, backend), own.losses, mine.losses, tolerances["loss"]))
            left, right = ({n: s for n, s in t.states.items() if n not in subject.apart} for t in (own, mine))
            comparisons.append(long.compare_series("state", (name, backend), left, right, tolerances["state"]))
    found = judged("trajectory", subject.precision, comparisons)
    if found.status == "failed" and apart is not None and long.excused(subject, comparisons, apart):
        return replace(found, status="passed")
    return found


def power(
    subject: Subject, only: Callable[[Mutant], bool], listen: Callable[[str, Mapping[str, Any]], None], *, bisect: bool
) -> tuple[list[Cell], list[Sensitivity], list[Untried]]:
    """Every fault that applies to a subject, in every backend; how small one can be; and what was not tried."""
    plans = {name: plan(subject.program, name, subject.precision, only, observe=True) for name in subject.backends}
    left = not_tried(subject.program, {name: name for name in plans}, subject.precision, plans, only)
    steps = length(subject.program, [one.mutant for own in plans.values() for one in own])
    base = honest(subject, steps)
    total = sum(len(own) for own in plans.values())
    done = [0]
    listen(subject.program.name, {"phase": subject.precision, "total": total})

    def work(live: LiveWorker) -> list[Cell]:
        cells = []
        for planting in plans[live.name]:
            cells.append(_cell(base, live, planting))
            done[0] += 1
            listen(subject.program.name, {"step": done[0], "losses": {}})
        return cells

    found = each(subject, work)
    smallest = _sensitivity(base) if bisect and subject.backends else []
    return [cell for own in found.values() for cell in own], smallest, left


def _cell(base: Honest, live: LiveWorker, planting: Planting) -> Cell:
    subject, mutant = base.subject, planting.mutant
    steps = length(subject.program, [mutant])
    empty = Cell(
        mutant.name, mutant.phase, subject.program.name, live.backend, subject.precision, {}, note=mutant.note,
        where=planting.where,
    )  # fmt: skip
    try:
        evidence = gather(subject, live, planting.source, support=False)
        said = judge_evidence(base, live.backend, evidence) if depth(subject.program) >= DEEP else {}
        if not any(rung.status == "failed" for rung in said.values()):
            training = try_training(subject, live, planting.source, steps)
            said = judge(base, live.backend, Faulty(evidence, training), steps)
    except WorkerFailed as error:
        if live.process.poll() is not None:
            raise
        return replace(empty, error=str(error).splitlines()[0])
    return replace(empty, outcomes={name: "killed" if said[name].status == "failed" else "survived" for name in said})


def depth(program: Program) -> int:
    """The ops of a program, those of a block as often as it is used."""

    def count(graph: Graph) -> int:
        return sum(count(node.op.graph) if isinstance(node.op, BlockOp) else 1 for node in graph.nodes)

    return sum(map(count, program.networks.values()))


# How small -------------------------------------------------------------------------------------------------


def _loss_weight(program: Program, change: float) -> Program:
    first, *rest = program.updates
    terms = tuple(
        replace(t, loss=t.loss.model_copy(update={"weight": t.loss.weight * (1 + change)})) for t in first.terms
    )
    return replace(program, updates=(replace(first, terms=terms), *rest))


def _learning_rate(program: Program, change: float) -> Program:
    first, *rest = program.updates
    rule = first.optimizer.model_copy(update={"learning_rate": first.optimizer.learning_rate * (1 + change)})
    return replace(program, updates=(replace(first, optimizer=rule), *rest))


CONSTANTS: dict[str, Callable[[Program, float], Program]] = {
    "the loss's weight": _loss_weight,
    "the learning rate": _learning_rate,
}


def _sensitivity(base: Honest) -> list[Sensitivity]:
    """By bisection of the exponent of delta, in one backend: the first, which compiles nothing."""
    subject = base.subject
    backend = subject.backends[0]
    live = subject.workers[backend]
    steps = min(LEAST, subject.program.steps)
    found = []
    for name, change in CONSTANTS.items():
        known: dict[float, dict[str, bool]] = {}

        def seen(
            exponent: float,
            change: Callable[[Program, float], Program] = change,
            known: dict[float, dict[str, bool]] = known,
        ) -> dict[str, bool]:
            if exponent not in known:
                known[exponent] = _seen(base, live, change(subject.program, 10.0**exponent), steps)
            return known[exponent]

        smallest: dict[str, float | None] = {}
        for rung in seen(0.0):
            low, high = math.log10(subject.unit), 0.0
            if not seen(high)[rung]:
                smallest[rung] = None
                continue
            while high - low > 0.5:  # noqa: PLR2004 - half a decade is near enough
                middle = round((low + high) / 2, 3)
                low, high = (low, middle) if seen(middle)[rung] else (middle, high)
            smallest[rung] = 10.0**high
        found.append(Sensitivity(subject.program.name, subject.precision, name, smallest))
    return found


def _seen(base: Honest, live: LiveWorker, program: Program, steps: int) -> dict[str, bool]:
    emitter = importlib.import_module(f"backends.{live.backend}.emit")
    source = emitter.emit(program, base.subject.precision, 1, observe=True)
    said = judge(base, live.backend, try_source(base.subject, live, source, steps), steps)
    return {name: rung.status == "failed" for name, rung in said.items()}


# The table ------------------------------------------------------------------------------------------------


def matrix(result: PowerResult) -> list[tuple[str, str, dict[str, dict[str, str]]]]:
    """A row a fault: phase, name, and by precision and rung in how many of its plantings it was found (`3/9`).

    `not tried`: in how many programs, of those of specs to which the fault applies, it was not planted.
    """
    rows = []
    for mutant in MUTANTS:
        own = [cell for cell in result.cells if cell.mutant == mutant.name]
        counts: dict[str, dict[str, str]] = {}
        for precision in dict.fromkeys(cell.precision for cell in own):
            cells = [cell for cell in own if cell.precision == precision]
            counts[precision] = {
                rung: f"{sum(c.outcomes.get(rung) == 'killed' for c in cells)}/{sum(bool(c.error) or rung in c.outcomes for c in cells)}"
                for rung in RUNGS
            } | {
                "any": f"{sum(c.killed for c in cells)}/{len(cells)}",
                "not tried": str(
                    sum((one.mutant, one.precision) == (mutant.name, precision) for one in result.untried)
                ),
            }
        if counts:
            rows.append((mutant.phase, mutant.name, counts))
    return rows


def by_place(cells: Sequence[Any], right: Callable[[Any], bool]) -> str:
    """`first 9 of 9, every 3 of 3`: of plantings by where they are, how many are right."""
    return ", ".join(
        f"{where} {sum(right(cell) for cell in own)} of {len(own)}"
        for where in dict.fromkeys(cell.where for cell in cells)
        if (own := [cell for cell in cells if cell.where == where])
    )


def untried_lines(untried: Sequence[Untried]) -> list[str]:
    """What was not tried and why, as Markdown; nothing where all was."""
    if not untried:
        return []
    lines = ["Not tried, neither found nor missed:", "", "| fault | backend | specs | why |", "|---|---|---|---|"]
    for mutant, backend, why in dict.fromkeys((one.mutant, one.backend, one.why) for one in untried):
        own = (one for one in untried if (one.mutant, one.backend, one.why) == (mutant, backend, why))
        lines.append(f"| {mutant} | {backend} | {', '.join(dict.fromkeys(one.spec for one in own))} | {why} |")
    return [*lines, ""]


def markdown(result: PowerResult, command: str) -> str:
    """The matrix as documentation."""
    precisions = list(dict.fromkeys(cell.precision for cell in result.cells))
    lines = [
        "# What the checks can see", "",
        f"Written by `{command}`. Each row is a fault of `harness/check/faults/`, planted alone into the program of one",
        "backend of one spec, and held against the reference and the honest programs of the others. Where a program has several",
        "places for it, it is planted three times: in the first place, in another one, and in every one. A cell says in how many",
        "of its plantings (specs × backends × places) a rung found it; *any* is the ladder as a whole. *Not tried*: the programs",
        "of those specs into which it was not planted, because their backend cannot have it or no plan fits; they count nowhere else.",
        f"A program of {DEEP} ops or more meets the last two rungs only with faults that the first three did not find.", "",
    ]  # fmt: skip
    for precision in precisions:
        cells = [cell for cell in result.cells if cell.precision == precision]
        killed = sum(cell.killed for cell in cells)
        lines += [
            f"## {precision}: {killed} of {len(cells)} found", "",
            f"By place: {by_place(cells, lambda cell: cell.killed)}.", "",
            f"| phase | fault | {' | '.join(RUNGS)} | any | not tried |", f"|---|---|{'---|' * (len(RUNGS) + 2)}",
        ]  # fmt: skip
        for phase, name, counts in matrix(result):
            if precision in counts:
                own = counts[precision]
                lines.append(f"| {phase} | {name} | {' | '.join(own[r] for r in (*RUNGS, 'any', 'not tried'))} |")
        lines.append("")
        raised = [cell for cell in cells if cell.error]
        if raised:
            lines += [
                "Found because the program did not run to its end (no rung was asked):", "",
                "| fault | spec | backend | place | what it said |", "|---|---|---|---|---|",
            ]  # fmt: skip
            said = [c.error.replace("|", "\\|") for c in raised]
            lines += [f"| {c.mutant} | {c.spec} | {c.backend} | {c.where} | {text} |" for c, text in zip(raised, said, strict=True)]  # fmt: skip
            lines.append("")
        lost = [cell for cell in cells if not cell.killed]
        if lost:
            lines += ["Not found:", "", "| fault | spec | backend | place | why |", "|---|---|---|---|---|"]
            lines += [f"| {c.mutant} | {c.spec} | {c.backend} | {c.where} | {c.note or 'unexplained'} |" for c in lost]
            lines.append("")
    lines += untried_lines(result.untried)
    if result.sensitivity:
        lines += [
            "## The smallest fault", "",
            "One constant of one backend's program times 1 + δ: the smallest δ, to half a decade, that each rung finds.", "",
            f"| spec | precision | constant | {' | '.join(RUNGS)} |", f"|---|---|---|{'---|' * len(RUNGS)}",
        ]  # fmt: skip
        for s in result.sensitivity:
            small = [f"{v:.0e}" if (v := s.smallest.get(r)) is not None else "—" for r in RUNGS]
            lines.append(f"| {s.spec} | {s.precision} | {s.constant} | {' | '.join(small)} |")
        lines.append("")
    return "\n".join(lines)
