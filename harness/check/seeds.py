"""Rung 7, seeds: the same spec trained N times per backend and precision, and whether all backends end equally well.

Where trajectories are longer than float32 can follow, two right programs part. What must not part is how good the
trained network is, over seeds. Each metric is tested for equivalence pair by pair (a backend's seeds are another's:
same initial parameters, batches and masks), and its variance is split into framework, seed and precision.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from harness import initial, runs
from harness.check.statistics import (
    Component,
    Components,
    Equivalence,
    Margin,
    default_margin,
    seeds_needed,
    tost,
    variance_components,
)
from harness.compare import TOLERANCES
from harness.data.inputs import Inputs
from harness.environment import interpreters
from harness.errors import CallError
from harness.graph import Program
from harness.judge import metric_names
from harness.metrics import Accuracy, TopK
from harness.resolve import compile_spec
from harness.results import RunResult, clean
from harness.runs import Options
from harness.source import Source
from harness.spec import Spec
from harness.supervise import Listener

Array = np.ndarray[Any, np.dtype[Any]]
Runner = Callable[[Spec, Source, Options, Listener], RunResult]

LEAST = 5
"""Seeds: with fewer a t-test has hardly any power."""
LAST = 0.1
"""The share of the steps, at the end, whose losses are averaged where a spec has no metric."""


@dataclass(frozen=True)
class Failure:
    """A training that cannot be tested, and why."""

    backend: str
    precision: str
    seed: int
    status: str
    """`failed`, `diverged`, `dead`, `unpaired` (it began from other numbers than the others) or `no number` (a metric)."""
    error: str

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return dict(vars(self))


@dataclass(frozen=True)
class Pair:
    """Two backends' means of a metric over the seeds, in one precision."""

    precision: str
    a: str
    b: str
    test: Equivalence
    status: str
    """`equivalent`, `different`, `undecided`, or `void` where the metric does not move with the seed."""

    @property
    def needed(self) -> int | None:
        """How many seeds would show the equivalence four times in five, if the true difference is 0."""
        return seeds_needed(self.test.standard_error, self.test.count, self.test.margin)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {"precision": self.precision, "a": self.a, "b": self.b, "status": self.status,
                "seeds_needed": self.needed, **self.test.to_json()}  # fmt: skip


@dataclass(frozen=True)
class MetricResult:
    """One metric over all trainings."""

    name: str
    better: str
    """`higher` or `lower`."""
    values: dict[str, dict[str, list[float | None]]]
    """By precision and backend, in the order of the seeds; None where a training has no value."""
    margins: dict[str, Margin]
    """By precision."""
    pairs: tuple[Pair, ...]
    components: Components | None
    """None where fewer than two seeds were finished by every backend."""

    @property
    def status(self) -> str:
        """The worst of its pairs: `different`, `undecided`, `void`, `equivalent`; `untested` without any."""
        have = {pair.status for pair in self.pairs}
        return next((s for s in ("different", "undecided", "void", "equivalent") if s in have), "untested")

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "name": self.name, "better": self.better, "status": self.status, "values": self.values,
            "margins": {precision: dict(vars(margin)) for precision, margin in self.margins.items()},
            "pairs": [pair.to_json() for pair in self.pairs],
            "components": self.components.to_json() if self.components else None,
        }  # fmt: skip


@dataclass(frozen=True)
class SeedsResult:
    """What the rung found."""

    spec: str
    seeds: tuple[int, ...]
    tested: tuple[int, ...]
    """The seeds that every backend finished in every precision: what is tested. Others are among the failures."""
    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    steps: int
    moved: tuple[str, ...]
    """What the seed determines here, and so what the seed effect is the effect of."""
    metrics: tuple[MetricResult, ...]
    failures: tuple[Failure, ...]
    seconds: float
    """In all, wall."""

    @property
    def void(self) -> tuple[str, ...]:
        """The metrics that would pass whatever the network did: they are not passed."""
        return tuple(metric.name for metric in self.metrics if metric.status == "void")

    @property
    def status(self) -> str:
        """`failed`, `void` or `passed`.

        Failed: a training failed, or a pair of backends is not shown to be equivalent in some metric. Void: no metric
        can tell anything. Passed: every pair is equivalent in every metric that can; void metrics are listed apart.
        """
        have = {metric.status for metric in self.metrics}
        if self.failures or have & {"different", "undecided", "untested"}:
            return "failed"
        return "passed" if "equivalent" in have else "void"

    def to_json(self) -> dict[str, Any]:
        """Strict JSON."""
        return dict(clean({
            "status": self.status, "spec": self.spec, "seeds": list(self.seeds), "tested": list(self.tested),
            "backends": list(self.backends), "precisions": list(self.precisions), "steps": self.steps,
            "moved": list(self.moved), "void": list(self.void),
            "metrics": [metric.to_json() for metric in self.metrics],
            "failures": [failure.to_json() for failure in self.failures], "seconds": self.seconds,
        }))  # fmt: skip

    def sentences(self) -> list[str]:
        """The result as lines for a terminal."""
        what = f"{len(self.seeds)} seeds a backend, {self.steps} steps, {' and '.join(self.precisions)}"
        moved = f"a seed moves {_spell(self.moved)}" if self.moved else "the seed moves nothing of this spec"
        lines = [f"{what}; {moved}"]
        lines += [
            f"{f.backend} {f.status} with seed {f.seed} in {f.precision}: {f.error}; the seed is left out of every test"
            for f in self.failures
        ]
        for metric in self.metrics:
            lines += _sentences(metric, len(self.tested))
        return lines


def run_seeds(
    loaded: Spec,
    text: Source,
    *,
    seeds: int,
    backends: tuple[str, ...],
    directory: Path,
    precisions: tuple[str, ...] = ("float32",),
    pythons: tuple[str, ...] = (),
    steps: int | None = None,
    margin: Mapping[str, float] | None = None,
    listen: Listener = lambda _backend, _event: None,
    first: int | None = None,
    threads: int = 1,
    device: str = "cpu",
    timeout: float = 600.0,
    least: int = LEAST,
    runner: Runner = runs.run_spec,
) -> SeedsResult:
    """Train with `seeds` consecutive seeds, from `first` (the spec's own) on, and test every metric for equivalence.

    Metrics are the spec's, at the end of training; where it has none, each update's training loss, the mean over the
    last tenth of the steps. `margin` gives a metric's margin by its name, in its unit; others are derived, see
    `statistics.default_margin`. A metric that no seed moves is void: every run of it is the same run.

    The seed determines the split into training and held-out examples as well as initial parameters, order, noise and
    masks: the seed effect includes all that `SeedsResult.moved` lists. Runs lie under `directory/seeds/`, without
    trajectories; the inputs of those that went well are not kept (`harness run SPEC --seed N` makes them again).

    `listen` hears the backends' own events, and of "seeds" the number of trainings and how many are done. Raises
    CallError, SpecError and DataError before anything is trained.
    """
    margins = dict(margin or {})
    numbers = tuple(range(loaded.seed if first is None else first, (loaded.seed if first is None else first) + seeds))
    _check(numbers, backends, precisions, margins, least)
    program, inputs, moved = _moved(loaded, text, steps, numbers)
    resolutions = _resolutions(program, inputs)
    if unknown := [name for name in margins if name not in resolutions]:
        raise CallError(f"a margin is given for '{unknown[0]}', which is no metric here: {', '.join(resolutions)}")
    interpreters(pythons)

    started = time.perf_counter()
    found: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    failures: list[Failure] = []
    plan = [(precision, seed) for seed in numbers for precision in precisions]
    for done, (precision, seed) in enumerate(plan):
        listen("seeds", {"phase": f"seed {seed}", "total": len(plan)})
        options = Options(
            backends=backends, steps=steps, seed=seed, precision=precision, threads=threads, device=device,
            pythons=pythons, out=directory / "seeds" / f"{precision}-{seed}", timeout=timeout, evidence=False,
            record=False,
        )  # fmt: skip
        result = runner(loaded, text, options, listen)
        values, failed = _values(result, backends, precision, seed)
        found[precision, seed] = values
        failures += failed
        if not failed:
            _lighten(result.directory)
        listen("seeds", {"step": done + 1, "losses": {}})

    bad = {failure.seed for failure in failures}
    tested = tuple(seed for seed in numbers if seed not in bad)
    better = {name: metric.better for name, metric in metric_names(program).items()}
    judged = []
    for name, resolution in resolutions.items():
        table = {p: {b: [found[p, s].get(b, {}).get(name) for s in numbers] for b in backends} for p in precisions}
        cells = np.array([[[found[p, s][b][name] for p in precisions] for s in tested] for b in backends])
        judged.append(judge_metric(name, better.get(name, "lower"), table, cells, resolution, margins.get(name)))
    return SeedsResult(
        program.name, numbers, tested, backends, precisions, program.steps, moved, tuple(judged), tuple(failures),
        time.perf_counter() - started,
    )  # fmt: skip


def judge_metric(
    name: str,
    better: str,
    table: dict[str, dict[str, list[float | None]]],
    cells: Array,
    resolution: float,
    given: float | None,
) -> MetricResult:
    """A metric's tests and components; `cells` has the axes backend, seed (those that all finished) and precision."""
    if cells.ndim < 3 or cells.shape[1] < 2:  # noqa: PLR2004 - without two seeds there is no spread
        return MetricResult(name, better, table, {}, (), None)
    margins, pairs = {}, []
    names = list(next(iter(table.values())))
    for at, precision in enumerate(table):
        values = cells[:, :, at]
        still = _still(values, precision)
        if given is not None:
            margins[precision] = Margin(given, "given")
        elif still:
            allowed = TOLERANCES[precision]["outputs"].relative * float(np.abs(values).max())
            margins[precision] = Margin(allowed, "the tolerance of final outputs, since no seed moves it")
        else:
            margins[precision] = default_margin(values, resolution)
        for i, j in combinations(range(len(names)), 2):
            test = tost(values[i], values[j], margins[precision].value)
            within = float(np.abs(values[i] - values[j]).max()) <= margins[precision].value
            status = ("void" if within else "different") if still else test.verdict
            pairs.append(Pair(precision, names[i], names[j], test, status))
    return MetricResult(name, better, table, margins, tuple(pairs), variance_components(cells))


def _still(values: Array, precision: str) -> bool:
    """Whether no seed moves a metric in any backend by more than rounding: more than losses may lie apart."""
    rounding = TOLERANCES[precision]["loss"].relative * float(np.abs(values).max())
    return bool((np.ptp(values, axis=1) <= rounding).all())


def _check(
    seeds: Sequence[int],
    backends: Sequence[str],
    precisions: Sequence[str],
    margins: Mapping[str, float],
    least: int,
) -> None:
    if len(seeds) < max(least, 2):
        raise CallError(f"the rung 'seeds' needs at least {max(least, 2)} seeds, got {len(seeds)}")
    if len(backends) < 2:  # noqa: PLR2004
        raise CallError(f"the rung 'seeds' compares backends and needs two, got {', '.join(backends) or 'none'}")
    if not precisions or set(precisions) - TOLERANCES.keys():
        raise CallError(f"precisions are {' and '.join(sorted(TOLERANCES))}, got {', '.join(precisions) or 'none'}")
    for name, value in margins.items():
        if not (math.isfinite(value) and value > 0):
            raise CallError(f"the margin of '{name}' is a number above 0, got {value}")


def _moved(
    loaded: Spec, text: Source, steps: int | None, seeds: Sequence[int]
) -> tuple[Program, Inputs, tuple[str, ...]]:
    """The program and data of the first seed, and what differs in those of the second."""
    one, other = (compile_spec(loaded, text, steps, seed) for seed in seeds[:2])
    mine, theirs = runs.prepared(one, text), runs.prepared(other, text)
    differ = {
        "initial parameters": not _equal(initial.parameters(one), initial.parameters(other)),
        "the split into training and held-out examples": mine.held_out and not _equal(mine.test, theirs.test),
        "the order of batches": not np.array_equal(mine.order, theirs.order),
        "noise": not _equal(mine.noise, theirs.noise),
        "dropout masks": bool(one.masks),
    }
    return one, mine, tuple(what for what, differs in differ.items() if differs)


def _equal(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _resolutions(program: Program, inputs: Inputs) -> dict[str, float]:
    """Every metric's name and the smallest step that it can take: 1/n for a share of n examples, else 0."""
    found = {
        name: 1 / inputs.test[str(metric.labels)].size if isinstance(metric, (Accuracy, TopK)) else 0.0
        for name, metric in metric_names(program).items()
    }
    return found or {_loss_name(update.name): 0.0 for update in program.updates}


def _loss_name(update: str) -> str:
    return f"final training loss of {update}"


def _values(
    result: RunResult, backends: Sequence[str], precision: str, seed: int
) -> tuple[dict[str, dict[str, float]], list[Failure]]:
    """Every backend's metrics of one run, and what makes the run no evidence."""
    values: dict[str, dict[str, float]] = {}
    failures = []
    for backend in backends:
        record = result.backends[backend]
        if record.status != "ok":
            failures.append(Failure(backend, precision, seed, record.status, record.error))
            continue
        last = max(1, math.ceil(LAST * result.steps))
        values[backend] = dict(record.metrics) or {
            _loss_name(update): float(np.mean(losses[-last:])) for update, losses in record.losses.items()
        }
        failures += [
            Failure(backend, precision, seed, "no number", f"its {name} is {value}")
            for name, value in values[backend].items()
            if not math.isfinite(value)
        ]
        dead = [note for note in result.notes if note.startswith(f"Dead: in {backend} ")]
        failures += [
            Failure(backend, precision, seed, "dead", note.removeprefix(f"Dead: in {backend} ").rstrip("."))
            for note in dead
        ]
    for what in ("parameters", "batches", "masks"):
        digests = {backend: result.backends[backend].digests.get(what) for backend in values}
        usual = max(digests.values(), key=list(digests.values()).count, default=None)
        failures += [
            Failure(backend, precision, seed, "unpaired", f"its {what} are not those of the other backends")
            for backend, digest in digests.items()
            if digest != usual
        ]
    return values, failures


def _lighten(directory: Path) -> None:
    """Remove a run's input arrays: spec and seed determine them."""
    for path in directory.glob("inputs/*.safetensors"):
        path.unlink()


def _sentences(metric: MetricResult, count: int) -> list[str]:
    """A metric's means, a line a pair, and its variance components."""
    if metric.status == "untested":
        return [f"{metric.name} is not tested: fewer than two seeds were finished by every backend"]
    lines = []
    for precision, by_backend in metric.values.items():
        margin = metric.margins[precision]
        means = ", ".join(f"{backend} {_mean(values)}" for backend, values in by_backend.items())
        lines.append(f"{metric.name} over {count} seeds in {precision}: {means}")
        lines.append(f"  margin {margin.value:.2g}: {margin.reason}")
        lines += [f"  {_verdict(pair)}" for pair in metric.pairs if pair.precision == precision]
    if metric.status == "void":
        lines.append(f"  VOID: no seed moves {metric.name}; it would pass whatever the network did")
    if metric.components:
        sizes = (
            f"{c.name if c.name != 'residual' else metric.components.residual} {c.deviation:.2g} ({_share(c)})"
            for c in metric.components.components
        )
        lines.append(f"  standard deviations (shares of the variance): {', '.join(sizes)}")
    return lines


def _verdict(pair: Pair) -> str:
    test = pair.test
    head = f"{pair.a} and {pair.b} differ by {_signed(test.difference)} [{_signed(test.low)}, {_signed(test.high)}]"
    if pair.status == "equivalent":
        return f"{head}: equivalent within {test.margin:.2g} (p = {test.p:.2g})"
    if pair.status == "void":
        return f"{head}: nothing is shown"
    if pair.status == "different":
        return f"{head}: DIFFERENT, not shown to lie within {test.margin:.2g}"
    needed = f"about {pair.needed} seeds would tell" if pair.needed else "no number of seeds would tell"
    return f"{head}: UNDECIDED, not shown to lie within {test.margin:.2g} ({needed})"


def _signed(value: float) -> str:
    return f"{value:+.2g}" if value else "0"


def _share(component: Component) -> str:
    small = 0 < component.share < 0.001  # noqa: PLR2004 - what one decimal cannot show
    return ("< 0.1 %" if small else f"{component.share:.1%}".replace("%", " %")) + (
        ", estimated below 0" if component.negative else ""
    )


def _mean(values: Sequence[float | None]) -> str:
    have = [value for value in values if value is not None and math.isfinite(value)]
    if not have:
        return "has none"
    spread = float(np.std(have, ddof=1)) if len(have) > 1 else 0.0
    return f"{np.mean(have):.4g} ± {spread:.2g}"


def _spell(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
