"""Worker results -> metrics, comparisons, verdict. Every backend is held against the others and the reference."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from harness import initial, reference
from harness.compare import TOLERANCES, Comparison, Tolerance, compare, compare_losses, join
from harness.data.datasets import Text
from harness.data.inputs import Inputs
from harness.environment import machine
from harness.graph import Program
from harness.invariance import zero_gradient
from harness.metrics import Metric
from harness.ops.base import to_bfloat16
from harness.precision import PRECISIONS
from harness.questions import questions
from harness.results import BackendResult, RunResult

if TYPE_CHECKING:
    from harness.runs import Options

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
DIGESTED = {"parameters": "parameters", "optimizer": "optimizer state", "batches": "batches", "masks": "masks"}
MOVES = 1 / 4  # of the first step's move that two backends may lie apart: gradients near 0 may have another sign
VISIBLE = 1e-5  # of the outputs: what rounding to bfloat16 makes of them at least, where it shows
ROWS = 256  # examples of the forward comparison, as many as a worker evaluates before training


class Judging:
    """A run's verdict, worker by worker: each is held against the reference and against those that ended before it."""

    def __init__(self, program: Program, inputs: Inputs, directory: Path, options: "Options", start: int = 0) -> None:
        """`start`: the steps that were done before the run."""
        self.program, self.inputs, self.directory = program, inputs, directory
        self.options, self.start = options, start
        self.tolerances = TOLERANCES[options.precision]
        self.mixed = PRECISIONS[options.precision].factors == "bfloat16"
        self.apart = zero_gradient(program)
        self.results: dict[str, BackendResult] = {}
        self.against: dict[str, list[Comparison]] = {}
        self.pairs: dict[tuple[str, str], Pair] = {}

    @cached_property
    def reference(self) -> "Reference":
        """What it says before training."""
        return Reference.of(self.program, self.directory, self.start, mixed=self.mixed)

    def ended(self) -> dict[str, BackendResult]:
        """What was added, in the order in which the backends were asked for."""
        return {name: self.results[name] for name in self.options.backends if name in self.results}

    def ok(self) -> dict[str, BackendResult]:
        """Those of them that have trained to their end."""
        return {name: result for name, result in self.ended().items() if result.status == "ok"}

    def parts(self, result: BackendResult) -> bool:
        """Whether a worker's losses part from those of one before: what takes no time to see."""
        return result.status == "ok" and any(
            not compare_losses(("", ""), other.losses, result.losses, self.tolerances["loss"]).same
            for other in self.ok().values()
        )

    def add(self, result: BackendResult) -> None:
        """Judge a worker's result."""
        name, done = result.backend, finish(self.program, self.inputs, self.directory, result)
        self.results[name] = done
        if done.status != "ok":
            return
        self.against[name] = against_reference(self.program, self.reference, done, self.tolerances, self.start)
        for a, b in combinations(self.ok().values(), 2):
            if name in (a.backend, b.backend):
                self.pairs[a.backend, b.backend] = pair(a, b, self.tolerances, self.apart, self.start)

    def comparisons(self) -> list[Comparison]:
        """All of them: with the reference first, then of pairs, in the order of the backends."""
        ok = list(self.ok())
        found = [comparison for name in ok for comparison in self.against[name]]
        return found + [c for names in combinations(ok, 2) for c in self.pairs[names].comparisons]

    def verdict(self) -> RunResult:
        """The result of a run whose workers are those that were added."""
        program, directory, ok = self.program, self.directory, self.ok()
        pairs = {names: self.pairs[names] for names in combinations(ok, 2)}
        comparisons = self.comparisons()
        wrong: list[str] = []
        if self.mixed:
            wrong = [
                *unrounded(program, directory, ok),
                *narrow(program, ok),
                *moved_apart(program, directory, ok, self.apart, self.start),
            ]
        drift: dict[str, float] = {}
        for both in pairs.values():
            drift |= {name: max(value, drift.get(name, 0.0)) for name, value in both.drift.items()}
        began = all(c.same for found in self.against.values() for c in found) and not wrong
        began = began and all(both.began for both in pairs.values())
        notes = [*wrong]
        same = all(c.same for c in comparisons) and not wrong
        for what, name in DIGESTED.items():
            if len({result.digests[what] for result in ok.values()}) > 1:
                same = False
                notes.append(f"The backends did not start from the same {name}: their digests differ.")
        if self.options.precision == "float64" and len({r.text for r in ok.values()}) > 1:
            same = False
            notes.append("The texts written by greedy decoding differ.")
        notes += dead(ok, self.apart) if self.options.record else unmoved(program, directory, ok)
        alive = not any(note.startswith("Dead") for note in notes)
        failed = len(ok) < len(self.results) or not alive
        if len(ok) < 2 and not failed:  # noqa: PLR2004
            notes.append("Only one backend was asked for: it is compared with the reference alone.")
        return RunResult(
            spec=program.name, about=program.about, directory=directory,
            verdict="failed" if failed else "same" if same else "differs",
            steps=self.options.until or program.steps, start=self.start, seed=program.seed,
            precision=self.options.precision, threads=self.options.threads, device=self.options.device,
            backends=self.ended(),
            comparisons=[c.record() for c in comparisons],
            series={f"{a}~{b}": both.series for (a, b), both in pairs.items()},
            notes=notes, zero_gradient=self.apart, drift=drift,
            better={name: metric.better for name, metric in metric_names(program).items()},
            tolerances={what: {"relative": t.relative, "floor": t.floor} for what, t in self.tolerances.items()},
            machine=machine(), began=began and not any(c.missing for c in comparisons),
        )  # fmt: skip


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
        metrics[name] = metric.compute(said.astype(np.float64), inputs.test[str(getattr(metric, metric.roles[1]))])
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
    def of(cls, program: Program, directory: Path, start: int = 0, *, mixed: bool = False) -> "Reference":
        """From what the workers were given; `mixed`: with products rounded as in mixed precision."""
        parameters, data, batches = given(directory)
        batch, masks = first_batch(program, data, batches, start)
        loss = reference.loss(program, program.updates[0], parameters, batch, masks, mixed=mixed)
        return cls(expected(program, directory, mixed=mixed), np.array(loss))


def against_reference(
    program: Program, wanted: Reference, result: BackendResult, tolerances: Mapping[str, Tolerance], start: int = 0
) -> list[Comparison]:
    """Outputs before training, and the loss of the first step, against float64 NumPy."""
    names, said, first = ("reference", result.backend), _part(result.outputs(), "initial/"), program.updates[0].name
    mine, theirs = {first: wanted.loss}, {first: np.array(result.losses[first][0])}
    return [
        compare("forward", names, wanted.forward, said, tolerances["forward"]),
        compare("loss", names, mine, theirs, tolerances["loss"], step=start + 1),
    ]


def given(directory: Path) -> tuple[Arrays, Arrays, Arrays]:
    """The parameters, data and batches that a run's workers were given, as the reference reads them."""
    parameters, data, batches = (
        _wide(load_file(directory / "inputs" / f"{name}.safetensors")) for name in ("parameters", "data", "batches")
    )
    return parameters, data, batches


def expected(program: Program, directory: Path, *, mixed: bool) -> Arrays:
    """What the reference says before training."""
    parameters, data, _ = given(directory)
    asked = questions(program, held_out=any(name.startswith("test.") for name in data))
    return {
        name: reference.evaluate(
            program, question.expression, parameters,
            {f: data[key][:ROWS] for f, key in question.fields.items()}, mixed=mixed,
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
    program: Program, directory: Path, results: Mapping[str, BackendResult], apart: Mapping[str, str], start: int
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
    began: bool
    """Whether outputs before training and the first step's losses and gradients agree."""


def pair(
    a: BackendResult, b: BackendResult, tolerances: Mapping[str, Tolerance], apart: Mapping[str, str], start: int = 0
) -> Pair:
    """Two backends, at every step."""
    names = (a.backend, b.backend)
    mine, theirs = a.outputs(), b.outputs()
    found = [compare("forward", names, _part(mine, "initial/"), _part(theirs, "initial/"), tolerances["forward"])]
    found.append(compare_losses(names, a.losses, b.losses, tolerances["loss"], start))
    parts = [
        compare("gradients", names, a.gradients(step), b.gradients(step), tolerances["gradients"], step + 1)
        for step in sorted({*a.gradient_steps, *b.gradient_steps})
    ]
    if parts:
        found.append(join(parts))
    first = compare_losses(names, _first(a.losses), _first(b.losses), tolerances["loss"])
    began = found[0].same and first.same and all(part.same for part in parts[:1])
    states: list[Comparison] = []
    drawn: list[list[float]] = []
    parted: dict[str, float] = {}
    for step in sorted({*a.recorded, *b.recorded}):
        left = a.state(step) if step in a.recorded else {}
        right = b.state(step) if step in b.recorded else {}
        judged = compare("state", names, _without(left, apart), _without(right, apart), tolerances["state"], step + 1)
        states.append(judged)
        if judged.worst is not None:
            drawn.append(
                [step + 1, judged.worst.difference / max(1.0, judged.worst.allowed / tolerances["state"].relative)]
            )
        for name in apart:
            if name in left and name in right:
                parted[name] = max(parted.get(name, 0.0), float(np.max(np.abs(left[name] - right[name]))))
    if states:
        found.append(join(states))
    found.append(compare("outputs", names, _part(mine, "final/"), _part(theirs, "final/"), tolerances["outputs"]))
    gaps = {u: [abs(x - y) for x, y in zip(a.losses[u], b.losses[u], strict=False)] for u in a.losses}
    return Pair(found, {"loss": gaps, "state": drawn}, parted, began)


def dead(results: Mapping[str, BackendResult], apart: Mapping[str, str]) -> list[str]:
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


def _first(losses: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {update: values[:1] for update, values in losses.items()}


def _without(arrays: Mapping[str, Array], names: Mapping[str, str]) -> Arrays:
    return {n: a for n, a in arrays.items() if n not in names}
