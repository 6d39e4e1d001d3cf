"""Worker results -> metrics, comparisons, verdict. Every backend is held against the others and the reference."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from harness import initial, reference
from harness.compare import TOLERANCES, Comparison, Derived, Measured, Tolerance, compare, compare_losses, join
from harness.data.datasets import Text
from harness.data.inputs import Inputs
from harness.environment import machine
from harness.graph import Program, Update
from harness.invariance import Invariance, invariance
from harness.metrics import Metric
from harness.ops.base import to_bfloat16
from harness.precision import PRECISIONS
from harness.questions import questions
from harness.results import BackendResult, RunResult
from harness.twins import TIMES, ZERO_ROOM, Yardstick

if TYPE_CHECKING:
    from harness.runs import Options

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
DIGESTED = {"parameters": "parameters", "optimizer": "optimizer state", "batches": "batches", "masks": "masks"}
ZERO_MOST = 0.1
"""ZERO_ROOM units of a gradient are at most so much of it: of bfloat16's a thousand are more than all of it."""
STILL = 1e-9
"""How much of itself, or of 1, the reference's loss may move along parameters without gradient: rounding in float64."""
CORNERS = 4
MOVES = 1 / 4  # of the first step's move that two backends may lie apart: gradients near 0 may have another sign
VISIBLE = 1e-5  # of the outputs: what rounding to bfloat16 makes of them at least, where it shows
ROWS = 256  # examples of the forward comparison, as many as a worker evaluates before training


class Judging:
    """A run's verdict: every worker is held against the reference and the others, and where two part, against their twins."""

    def __init__(self, program: Program, inputs: Inputs, directory: Path, options: "Options", start: int = 0) -> None:
        """`start`: the steps that were done before the run."""
        self.program, self.inputs, self.directory = program, inputs, directory
        self.options, self.start = options, start
        self.mixed = PRECISIONS[options.precision].factors == "bfloat16"
        self.results: dict[str, BackendResult] = {}
        self.yardstick = Yardstick()
        self._judged: tuple[tuple[str, ...], int, Judged] | None = None
        self._zero: tuple[tuple[str, ...], Zero] | None = None

    @property
    def stop(self) -> int:
        """The step after which the run ends."""
        return self.options.until or self.program.steps

    @cached_property
    def reference(self) -> "Reference":
        """What it says before training."""
        rows = self.options.rows or ROWS
        return Reference.of(self.program, self.directory, self.start, mixed=self.mixed, rows=rows)

    def ended(self) -> dict[str, BackendResult]:
        """What was added, in the order in which the backends were asked for."""
        return {name: self.results[name] for name in self.options.backends if name in self.results}

    def ok(self) -> dict[str, BackendResult]:
        """Those of them that have trained to their end."""
        return {name: result for name, result in self.ended().items() if result.status == "ok"}

    def add(self, result: BackendResult) -> None:
        """Take a worker's result."""
        self.results[result.backend] = finish(self.program, self.inputs, self.directory, result)

    def judged(self) -> "Judged":
        """What the comparisons say, with as many twins as there are by now."""
        key = tuple(self.ok()), self.yardstick.count
        if self._judged is None or self._judged[:2] != key:
            self._judged = (*key, self._compared())
        return self._judged[2]

    def _compared(self) -> "Judged":
        ok = self.ok()
        unit = float(np.finfo(PRECISIONS[self.options.precision].dtype).eps)
        allowance = Allowance(TOLERANCES[self.options.precision], self.yardstick, unit)
        zero = self._zero_by_both(ok)
        against = [c for own in ok.values() for c in against_reference(self.program, self.reference, own, allowance, self.start)]  # fmt: skip
        pairs = {
            (a.backend, b.backend): pair(self.program, self.directory, a, b, allowance, zero, self.start)
            for a, b in combinations(ok.values(), 2)
        }
        return Judged(against, pairs, zero)

    def _zero_by_both(self, ok: Mapping[str, BackendResult]) -> "Zero":
        """Found once for those that trained to their end: twins change nothing about it, and the reference takes its time."""
        if self._zero is None or self._zero[0] != tuple(ok):
            unit = 2 * PRECISIONS[self.options.precision].roundoff
            self._zero = tuple(ok), zero_by_both(self.program, self.directory, ok, self.start, unit)
        return self._zero[1]

    def parted(self) -> bool:
        """Whether something lies further apart than allowed so far, and twins could explain it: all is there, and all are numbers."""
        comparisons = self.judged().comparisons
        sound = all(not c.missing and c.worst is not None and np.isfinite(c.worst.difference) for c in comparisons)
        return sound and any(not c.same for c in comparisons)

    def times(self) -> float:
        """How many times as far as the worst twin two part at most; 0 where the tight tolerance was enough."""
        return max((c.worst.times or 0.0 for c in self.judged().comparisons if c.worst is not None), default=0.0)

    def verdict(self) -> RunResult:
        """The result of a run whose workers are those that were added."""
        program, directory, ok, judged = self.program, self.directory, self.ok(), self.judged()
        comparisons, apart = judged.comparisons, judged.zero.apart
        wrong: list[str] = []
        if self.mixed:
            wrong = [
                *unrounded(program, directory, ok),
                *narrow(program, ok),
                *moved_apart(program, directory, ok, judged.zero.names, self.start),
            ]
        drift: dict[str, float] = {}
        for both in judged.pairs.values():
            drift |= {name: max(value, drift.get(name, 0.0)) for name, value in both.drift.items()}
        reasons = list(wrong)
        for what, name in DIGESTED.items():
            if len({result.digests[what] for result in ok.values()}) > 1:
                reasons.append(f"The backends did not start from the same {name}: their digests differ.")
        if (
            self.options.precision == "float64"
            and len({r.text for r in ok.values()}) > 1
            and not any(c.rounded for c in comparisons)
        ):
            reasons.append("The texts written by greedy decoding differ.")
        same = all(c.same for c in comparisons) and not reasons
        notes = [*reasons, *judged.zero.notes]
        notes += dead(ok, judged.zero.names) if self.options.record else unmoved(program, directory, ok)
        alive = not any(note.startswith("Dead") for note in notes)
        failed = len(ok) < len(self.results) or not alive
        if len(ok) < 2 and not failed:  # noqa: PLR2004
            notes.append("Only one backend was asked for: it is compared with the reference alone.")
        return RunResult(
            spec=program.name, about=program.about, directory=directory,
            verdict="failed" if failed else "same" if same else "differs",
            steps=self.stop, start=self.start, seed=program.seed,
            precision=self.options.precision, threads=self.options.threads, device=self.options.device,
            backends=self.ended(),
            comparisons=[c.record() for c in comparisons],
            series={f"{a}~{b}": both.series for (a, b), both in judged.pairs.items()},
            notes=notes, reasons=reasons, zero_gradient=apart, drift=drift, twins=self._twins(),
            better={name: metric.better for name, metric in metric_names(program).items()},
            tolerances={what: {"relative": t.relative, "floor": t.floor} for what, t in TOLERANCES[self.options.precision].items()},
            machine=machine(),
        )  # fmt: skip

    def _twins(self) -> dict[str, Any] | None:
        """How many twins were asked, and how far two part beside them; None where there was nothing to ask."""
        if not self.yardstick.count:
            return None
        asked = [c for c in self.judged().comparisons if c.worst is not None and c.worst.times is not None]
        worst = max(asked, key=lambda c: c.worst.times or 0.0 if c.worst else 0.0, default=None)
        return {
            "count": self.yardstick.count, "shaken": self.yardstick.shaken, "allowed": TIMES, "times": self.times(),
            "worst": None if worst is None else worst.record(),
        }  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What the comparisons of a run say."""

    against: list[Comparison]
    """With the reference."""
    pairs: dict[tuple[str, str], "Pair"]
    zero: "Zero"

    @property
    def comparisons(self) -> list[Comparison]:
        """All of them: with the reference first, then of pairs, in the order of the backends."""
        return self.against + [c for both in self.pairs.values() for c in both.comparisons]


@dataclass(frozen=True)
class Allowance:
    """What is allowed: the tight tolerance of each kind of value, or what twins make of it where there are any."""

    tight: Mapping[str, Tolerance]
    yardstick: Yardstick
    unit: float
    """The distance from 1 to the next number."""

    def of(self, what: str, name: str, step: int | None) -> Tolerance:
        """That of a tensor at a step, counted from 1."""
        own = self.tight[what]
        if not self.yardstick.count:
            return own
        twin = self.yardstick.at(what, name, step)
        if what == "loss":
            # Cross-entropy forms 1 + sum(exp(...)): a small loss lies on the grid of numbers near 1, from which a unit in the
            # last place of a parameter seldom moves it.
            twin = max(twin, self.unit)
        return Measured(own.relative, own.floor, twin=twin, times=TIMES)

    def each(self, what: str, names: Iterable[str], step: int | None = None) -> Mapping[str, Tolerance]:
        """Those of several tensors."""
        return {name: self.of(what, name, step) for name in names}


@dataclass(frozen=True)
class Zero:
    """Parameters whose true gradient is zero: by what the ops say, and by numbers."""

    names: tuple[str, ...]
    """Those of which both ways agree."""
    apart: dict[str, str]
    """These, and the statistics that carry them, with the reason."""
    carriers: dict[str, tuple[str, ...]]
    notes: list[str]
    """Where the two ways disagree: nothing is excused there."""
    memo: dict[tuple[str, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    """What the reference has said of a pair: twins change nothing about it."""


def zero_by_both(
    program: Program, directory: Path, results: Mapping[str, BackendResult], start: int, unit: float
) -> Zero:
    """What ops say of shifts, held against numbers: gradients of rounding's size, and a reference that does not move."""
    said = invariance(program)
    if not said.parameters or not results:
        return Zero((), {}, {}, [])
    names, notes = [], []
    moves = _moves_reference(program, directory, start, tuple(said.parameters))
    for name, why in said.parameters.items():
        large = [backend for backend, own in results.items() if not of_rounding(own, name, unit)]
        if name in moves or large:
            who = (
                "the reference's loss moves along it"
                if name in moves
                else f"its gradient in {' and '.join(large)} is larger than rounding"
            )
            notes.append(f"The gradient of {name} should be zero ({why}), but {who}: it is judged like any other.")
        else:
            names.append(name)
    kept = {statistic: tuple(n for n in those if n in names) for statistic, those in said.carriers.items()}
    carriers = {statistic: those for statistic, those in kept.items() if those}
    return Zero(tuple(names), Invariance({n: said.parameters[n] for n in names}, carriers).explained(), carriers, notes)


def of_rounding(result: BackendResult, name: str, unit: float) -> bool:
    """Whether a parameter's first recorded gradients are as small as rounding beside the others of their update."""
    for step in result.gradient_steps[:1]:
        for full, gradient in result.gradients(step).items():
            if full.partition("/")[2] == name:
                update = full.partition("/")[0]
                beside = [
                    a
                    for other, a in result.gradients(step).items()
                    if other.partition("/")[0] == update and other != full
                ]
                size = max((float(np.max(np.abs(a), initial=0.0)) for a in beside), default=0.0)
                if not float(np.max(np.abs(gradient), initial=0.0)) <= min(ZERO_ROOM * unit, ZERO_MOST) * size:
                    return False
    return True


def _moves_reference(program: Program, directory: Path, start: int, names: tuple[str, ...]) -> set[str]:
    """Those of some parameters along which the reference's loss of an update moves: all at once, one by one if that moves it."""
    parameters, data, batches = given(directory)
    batch, masks = first_batch(program, data, batches, start)

    def still(update: Update, those: Iterable[str]) -> bool:
        shifted = {n: initial.stream(2, "zero", n).standard_normal(parameters[n].shape) for n in those}
        with np.errstate(all="ignore"):
            before = reference.loss(program, update, parameters, batch, masks)
            after = reference.loss(
                program, update, parameters | {n: parameters[n] + d for n, d in shifted.items()}, batch, masks
            )
        return abs(after - before) <= STILL * max(1.0, abs(before))

    found: set[str] = set()
    for update in program.updates:
        own = [n for n in names if n in reference.moved(program, update)]
        if own and not still(update, own):
            found |= {n for n in own if not still(update, [n])}
    return found


def metric_names(program: Program) -> dict[str, Metric]:
    """What results call each metric: its own name, and of what where a spec has it twice."""
    metrics = program.spec.evaluation.metrics
    counts = Counter(metric.name for metric in metrics)
    return {m.name if counts[m.name] == 1 else f"{m.name} of {getattr(m, m.roles[0])}": m for m in metrics}


def finish(program: Program, inputs: Inputs, directory: Path, result: BackendResult) -> BackendResult:
    """A worker's result with metrics, predictions and text; or where its loss stopped being a number."""
    if result.status == "diverged":
        return replace(result, error=locate(program, directory, result))
    if result.status != "ok":
        return result
    outputs = result.outputs()
    evaluation = program.spec.evaluation
    metrics = {}
    for name, metric in metric_names(program).items():
        said = outputs[f"final/{getattr(metric, metric.roles[0])}"]
        true = inputs.test[str(getattr(metric, metric.roles[1]))][: len(said)]
        metrics[name] = metric.compute(said.astype(np.float64), true)
    predictions = {p.name: outputs[f"final/prediction/{p.name}"].tolist() for p in evaluation.predictions}
    text = None
    if "text" in outputs and isinstance(program.spec.data, Text):
        text = program.spec.data.decode(outputs["text"])
    return replace(result, metrics=metrics, predictions=predictions, text=text)


@dataclass(frozen=True)
class Reference:
    """What float64 NumPy says of a run before training."""

    forward: Arrays
    """Outputs by name."""
    loss: Array
    """That of the first update in the first step. Later updates see what the earlier ones of a step moved."""

    @classmethod
    def of(
        cls, program: Program, directory: Path, start: int = 0, *, mixed: bool = False, rows: int = ROWS
    ) -> "Reference":
        """From what the workers were given; `mixed`: with products rounded as in mixed precision."""
        parameters, data, batches = given(directory)
        batch, masks = first_batch(program, data, batches, start)
        loss = reference.loss(program, program.updates[0], parameters, batch, masks, mixed=mixed)
        return cls(expected(program, directory, mixed=mixed, rows=rows), np.array(loss))


def against_reference(
    program: Program, wanted: Reference, result: BackendResult, allowance: Allowance, start: int = 0
) -> list[Comparison]:
    """Outputs before training, and the loss of the first step, against float64 NumPy."""
    names, said, first = ("reference", result.backend), _part(result.outputs(), "initial/"), program.updates[0].name
    mine, theirs = {first: wanted.loss}, {first: np.array(result.losses[first][0])}
    return [
        compare("forward", names, wanted.forward, said, allowance.each("forward", said)),
        compare("loss", names, mine, theirs, allowance.each("loss", mine, start + 1), step=start + 1),
    ]


def given(directory: Path) -> tuple[Arrays, Arrays, Arrays]:
    """The parameters, data and batches that a run's workers were given, as the reference reads them."""
    parameters, data, batches = (
        _wide(load_file(directory / "inputs" / f"{name}.safetensors")) for name in ("parameters", "data", "batches")
    )
    return parameters, data, batches


def expected(program: Program, directory: Path, *, mixed: bool, rows: int = ROWS) -> Arrays:
    """What the reference says before training."""
    parameters, data, _ = given(directory)
    asked = questions(program, held_out=any(name.startswith("test.") for name in data))
    return {
        name: reference.evaluate(
            program, question.expression, parameters,
            {f: data[key][:rows] for f, key in question.fields.items()}, mixed=mixed,
        )
        for name, question in asked.items()
    }  # fmt: skip


def unrounded(program: Program, directory: Path, results: Mapping[str, BackendResult]) -> list[str]:
    """Notes on programs whose products are more exact than bfloat16 allows: no tolerance would show it."""
    exact, rounded = (expected(program, directory, mixed=mixed) for mixed in (False, True))
    made = _distance(rounded, exact)
    if made <= VISIBLE * _distance(exact, {name: np.zeros(()) for name in exact}):
        return []  # As at parameters that are zero: nothing that rounding could change.
    notes = []
    for backend, result in results.items():
        own = _distance(_part(result.outputs(), "initial/"), exact)
        if own < made / 4:
            notes.append(
                f"The products of {backend} are not of bfloat16 values: its outputs before training are {own:.1e} from "
                f"the exact ones (root of the sum of squares), where rounding makes {made:.1e}."
            )
    return notes


def narrow(program: Program, results: Mapping[str, BackendResult]) -> list[str]:
    """Notes on trainings whose parameters are not kept in float32: after training all of them are bfloat16 numbers."""
    learned = [name for name, parameter in program.parameters.items() if parameter.learned]
    notes = []
    for backend, result in results.items():
        after = _wide(_part(result.outputs(), "state/"))
        if all(np.array_equal(after[name], to_bfloat16(after[name])) for name in learned):
            notes.append(f"The parameters of {backend} are not kept in float32: all of them are bfloat16 numbers.")
    return notes


def moved_apart(
    program: Program, directory: Path, results: Mapping[str, BackendResult], apart: Collection[str], start: int
) -> list[str]:
    """Notes on pairs whose first step moved the parameters otherwise: what is too small beside the parameters to be seen.

    A gradient that was scaled and not scaled back, say: from the second step on it would pass for rounding that grew.
    """
    before = given(directory)[0]
    learned = [name for name, parameter in program.parameters.items() if parameter.learned and name not in apart]
    moves = {
        backend: {name: result.state(start)[name].astype(np.float64) - before[name] for name in learned}
        for backend, result in results.items()
        if start in result.recorded
    }
    notes = []
    zero = {name: np.zeros(()) for name in learned}
    # What float32 parameters can say of a move: half a unit in the last place each.
    least = 2.0**-24 * _distance({name: before[name] for name in learned}, zero)
    for a, b in combinations(moves, 2):
        gap, size = _distance(moves[a], moves[b]), max(_distance(moves[n], zero) for n in (a, b))
        if gap > MOVES * size + 2 * least:
            notes.append(
                f"The first step of {a} and {b} moves the parameters otherwise: by {size:.1e} (root of the sum of "
                f"squares), and {gap:.1e} apart."
            )
    return notes


def _distance(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """The root of the sum of squared differences of all tensors together."""
    return float(np.sqrt(sum(float(np.sum(np.square(a[name].astype(np.float64) - b[name]))) for name in b)))


def first_batch(
    program: Program, data: Mapping[str, Array], batches: Mapping[str, Array], step: int
) -> tuple[Arrays, dict[str, Arrays]]:
    """The batch of a step and its masks, as the reference reads them."""
    rows = batches["order"][step].astype(int)
    rows = rows[rows >= 0]
    batch = {key.removeprefix("train."): a[rows] for key, a in data.items() if key.startswith("train.")}
    batch |= {name: a[step][: len(rows)] for name, a in batches.items() if name != "order"}
    return batch, initial.masks(program, step, len(rows))


@dataclass(frozen=True)
class Pair:
    """What two backends' trainings have in common."""

    comparisons: list[Comparison]
    series: dict[str, Any]
    """The differences of losses and states by step, for the report."""
    drift: dict[str, float]
    """How far what is judged apart parted, by parameter."""


def pair(
    program: Program,
    directory: Path,
    a: BackendResult,
    b: BackendResult,
    allowance: Allowance,
    zero: Zero,
    start: int = 0,
) -> Pair:
    """Two backends, at every step."""
    names, apart = (a.backend, b.backend), zero.apart
    mine, theirs = a.outputs(), b.outputs()
    x, y = (_part(outputs, "initial/") for outputs in (mine, theirs))
    found = [compare("forward", names, x, y, allowance.each("forward", x))]
    found.append(compare_losses(names, a.losses, b.losses, partial(allowance.of, "loss"), start))
    parts = []
    for step in sorted({*a.gradient_steps, *b.gradient_steps}):
        x, y = a.gradients(step), b.gradients(step)
        parts.append(compare("gradients", names, x, y, allowance.each("gradients", x, step + 1), step + 1))
    if parts:
        found.append(join(parts))
    states: list[Comparison] = []
    drawn: list[list[float]] = []
    parted: dict[str, float] = {}
    for step in sorted({*a.recorded, *b.recorded}):
        left = a.state(step) if step in a.recorded else {}
        right = b.state(step) if step in b.recorded else {}
        x, y = _without(left, apart), _without(right, apart)
        judged = compare("state", names, x, y, allowance.each("state", x, step + 1), step + 1)
        states.append(judged)
        if judged.worst is not None:
            size = max(abs(judged.worst.a), abs(judged.worst.b), 1.0)
            drawn.append([step + 1, judged.worst.difference / size])
        for name in apart:
            if name in left and name in right:
                parted[name] = max(parted.get(name, 0.0), float(np.max(np.abs(left[name] - right[name]), initial=0.0)))
    if states:
        found.append(join(states))
    x, y = (_part(outputs, "final/") for outputs in (mine, theirs))
    outputs = compare("outputs", names, x, y, allowance.each("outputs", x))
    if zero.names and not (outputs.same and not outputs.rounded) and not outputs.missing:
        # What evaluation sees of parameters without gradient and of the statistics that lag behind them is taken off.
        if ("seen", *names) not in zero.memo:
            zero.memo["seen", *names] = _seen_of(program, directory, mine, theirs, zero)
        x = {n: value - shift for (n, value), shift in zip(x.items(), zero.memo["seen", *names], strict=True)}
        outputs = compare("outputs", names, x, y, allowance.each("outputs", x))
    found.append(outputs)
    gaps = {u: [abs(x - y) for x, y in zip(a.losses[u], b.losses[u], strict=False)] for u in a.losses}
    return Pair(
        [*found, *_carried(program, directory, a, b, zero, parted, allowance)], {"loss": gaps, "state": drawn}, parted
    )


def _seen_of(program: Program, directory: Path, mine: Arrays, theirs: Arrays, zero: Zero) -> list[Array]:
    """By output: how much of it the reference changes when only parameters without gradient, and what carries them, are the others'."""
    own, other = (_wide(_part(outputs, "state/")) for outputs in (mine, theirs))
    swapped = own | {name: other[name] for name in zero.apart}
    _, data, _ = given(directory)
    asked = questions(program, held_out=any(name.startswith("test.") for name in data))
    found = []
    for full in _part(mine, "final/"):
        parts = []
        for at in range(0, len(mine[f"final/{full}"]), ROWS):  # a large network's values of all examples fill memory
            rows = slice(at, min(at + ROWS, len(mine[f"final/{full}"])))
            fields = {f: data[key][rows] for f, key in asked[full].fields.items()}
            one, two = (reference.evaluate(program, asked[full].expression, state, fields) for state in (own, swapped))
            parts.append(one - two)
        found.append(np.concatenate(parts))
    return found


def _carried(
    program: Program, directory: Path, a: BackendResult, b: BackendResult, zero: Zero, parted: Mapping[str, float],
    allowance: Allowance,
) -> list[Comparison]:  # fmt: skip
    """Statistics that carry parameters without gradient: no further apart than these have ever been, as the statistic sees them."""
    steps = [step for step in a.recorded if step in b.recorded]
    if not zero.carriers or not steps:
        return []
    key = ("reach", a.backend, b.backend)
    if key not in zero.memo:
        zero.memo[key] = _reach(program, directory, zero, parted)
    reach = zero.memo[key]
    left, right = a.state(steps[-1]), b.state(steps[-1])
    bounds: dict[str, Tolerance] = {}
    for name in zero.carriers:
        own = allowance.of("state", name, steps[-1] + 1).allowed(left[name], right[name])
        bounds[name] = Derived(0.0, absolute=own + TIMES * reach[name])
    x, y = ({n: state[n] for n in zero.carriers} for state in (left, right))
    return [compare("carriers", (a.backend, b.backend), x, y, bounds, steps[-1] + 1)]


def _reach(program: Program, directory: Path, zero: Zero, parted: Mapping[str, float]) -> dict[str, float]:
    """By statistic: how far it moves in the end when the parameters that it carries are moved as far as two backends parted.

    By the reference, along several corners of the box; a statistic that keeps a share of itself goes a longer way in many steps
    than in one.
    """
    parameters, data, batches = given(directory)
    batch, masks = first_batch(program, data, batches, 0)
    found = dict.fromkeys(zero.carriers, 0.0)
    for update in program.updates:
        own = [n for n in zero.names if n in reference.moved(program, update)]
        if not own:
            continue
        _, before = reference.train(program, update, parameters, batch, masks)
        older = parameters | {n: parameters[n] + 1 for n in zero.carriers}
        _, kept = reference.train(program, update, older, batch, masks)
        for corner in range(CORNERS):
            signs = {
                n: np.sign(initial.stream(3, "corner", corner, n).standard_normal(parameters[n].shape)) for n in own
            }
            moved = parameters | {n: parameters[n] + parted.get(n, 0.0) * signs[n] for n in own}
            _, after = reference.train(program, update, moved, batch, masks)
            for name in zero.carriers:
                if name in after:
                    new = 1 - (kept[name] - before[name])  # the share that a step takes of the batch
                    far = np.max(
                        np.abs(after[name] - before[name]) / np.maximum(new, np.finfo(np.float64).tiny), initial=0.0
                    )
                    found[name] = max(found[name], float(far))
    return found


def dead(results: Mapping[str, BackendResult], apart: Collection[str]) -> list[str]:
    """Notes on trainings in which nothing happens: equal results prove nothing there."""
    notes = []
    for backend, result in results.items():
        still = set(result.losses)
        for step in result.gradient_steps:
            if not still:
                break
            for name, gradient in result.gradients(step).items():
                update, _, parameter = name.partition("/")
                if parameter not in apart and np.any(gradient):
                    still.discard(update)
        notes += [
            f"Dead: in {backend} every recorded gradient of update '{update}' is zero." for update in sorted(still)
        ]
        notes += _constant(result)
    return notes


def unmoved(program: Program, directory: Path, results: Mapping[str, BackendResult]) -> list[str]:
    """`dead` for a run without recorded gradients: an update none of whose parameters ended elsewhere than it began."""
    before = load_file(directory / "inputs" / "parameters.safetensors")
    learned = [name for name, parameter in program.parameters.items() if parameter.learned]
    single = len(program.networks) == 1
    notes = []
    for backend, result in results.items():
        after = _part(result.outputs(), "state/")
        for update in program.updates:
            own = [n for n in learned if single or n.partition(".")[0] in update.over]
            if all(np.array_equal(before[name], after[name]) for name in own):
                notes.append(f"Dead: in {backend} update '{update.name}' moved no parameter.")
        notes += _constant(result)
    return notes


def _constant(result: BackendResult) -> list[str]:
    # A warm-up from 0 moves nothing in the first step: two equal losses prove nothing.
    if all(len(set(losses)) == 1 and len(losses) > 2 for losses in result.losses.values()):  # noqa: PLR2004
        return [f"Dead: in {result.backend} the loss is the same at every step."]
    return []


def locate(program: Program, directory: Path, result: BackendResult) -> str:
    """Where a loss stopped being a number: step, update, and the first node whose value is none."""
    step = result.stopped_at or 0
    update = next(u for u in program.updates if not np.isfinite(result.losses[u.name][-1]))
    head = f"the loss of '{update.name}' became {result.losses[update.name][-1]} at step {step + 1}"
    before = {n.removeprefix("before/"): a for n, a in result.outputs().items() if n.startswith("before/")}
    for name, array in before.items():
        if not np.isfinite(array).all():
            return f"{head}; parameter {name} was no number any more after step {step}: its update overflowed"
    folder = directory / "inputs"
    batch, masks = first_batch(
        program, load_file(folder / "data.safetensors"), load_file(folder / "batches.safetensors"), step
    )
    first: list[str] = []
    biggest = float(np.finfo(next(a.dtype for a in before.values() if a.dtype.kind == "f")).max)

    def observe(node: str, value: Array) -> None:
        if not first and (not np.isfinite(value).all() or np.abs(value).max(initial=0.0) > biggest):
            first.append(node)

    with np.errstate(all="ignore"):
        reference.loss(program, update, _wide(before), _wide(batch), masks, observe)
    where = (
        f"the first value that is no number is that of {first[0]}"
        if first
        else "every node's value is still a number: it is the loss itself"
    )
    return f"{head}; {where}"


def _wide(arrays: Mapping[str, Array]) -> Arrays:
    return {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def _part(arrays: Mapping[str, Array], prefix: str) -> Arrays:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _without(arrays: Mapping[str, Array], names: Mapping[str, str]) -> Arrays:
    return {n: a for n, a in arrays.items() if n not in names}
