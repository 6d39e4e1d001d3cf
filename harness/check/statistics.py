"""Equivalence tests and variance components: what N seeds say about frameworks. NumPy and SciPy, nothing else."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, np.dtype[Any]]

ALPHA = 0.05
LEAST = 2  # observations, without which there is no spread
POWER = 0.8
FACTORS = ("framework", "seed", "precision")


@dataclass(frozen=True)
class Equivalence:
    """Two samples tested for equivalence: the difference of their means, and whether it is shown to lie within the margin."""

    difference: float
    """mean(a) - mean(b)."""
    margin: float
    p_above: float
    """Of the hypothesis that the difference is -margin or less."""
    p_below: float
    """Of the hypothesis that the difference is margin or more."""
    low: float
    """The lower end of the 90 % confidence interval of the difference."""
    high: float
    p_zero: float
    """Of the hypothesis that the difference is 0 (two-sided): small where the backends are shown to differ."""
    standard_error: float
    degrees: float
    """Degrees of freedom; with unpaired samples Welch's, a fraction."""
    count: int
    """Observations in each sample, the smaller one's."""

    @property
    def p(self) -> float:
        """The p-value of the equivalence: the larger of the two one-sided ones."""
        return max(self.p_above, self.p_below)

    @property
    def equivalent(self) -> bool:
        """Whether the difference is shown to lie within the margin, at alpha = 0.05."""
        return self.p < ALPHA

    @property
    def different(self) -> bool:
        """Whether the means are shown to differ, at alpha = 0.05; a difference may be both real and within the margin."""
        return self.p_zero < ALPHA

    @property
    def verdict(self) -> str:
        """`equivalent`, `different`, or `undecided`: neither is shown, and more seeds would tell."""
        if self.equivalent:
            return "equivalent"
        return "different" if self.different else "undecided"

    def to_json(self) -> dict[str, Any]:
        """Plain types; a p-value is a number in every case."""
        return {
            "difference": self.difference, "margin": self.margin, "p": self.p, "p_above": self.p_above,
            "p_below": self.p_below, "interval": [self.low, self.high], "p_zero": self.p_zero,
            "standard_error": self.standard_error, "degrees": self.degrees, "count": self.count,
            "equivalent": self.equivalent, "verdict": self.verdict,
        }  # fmt: skip


def tost(a: Array | list[float], b: Array | list[float], margin: float, *, paired: bool = True) -> Equivalence:
    """Two one-sided t-tests of whether the difference of two means lies within ±margin.

    Both `difference <= -margin` and `difference >= margin` must be rejected, each at alpha = 0.05, which is the case
    where the 90 % confidence interval of the difference lies inside ±margin. Pairs (the default) are tested on their
    differences; samples that are not paired by Welch's test, which assumes no common variance. Where no difference
    varies (all pairs equally far apart) there is no t: then |difference| < margin decides, and a p-value is 0 or 1.
    Raises ValueError for fewer than two observations, for pairs that do not match, and for values that are no numbers.

    Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15:657; Lakens 2017, Social Psychological and
    Personality Science 8:355.

    >>> shifted = tost([0.95, 0.96, 0.94, 0.95, 0.97], [0.95, 0.96, 0.95, 0.95, 0.97], margin=0.01)
    >>> round(shifted.difference, 4), round(shifted.p, 4), shifted.equivalent
    (-0.002, 0.0081, True)
    """
    x, y = _sample(a), _sample(b)
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"a margin is a number of 0 or more, got {margin}")
    if paired and len(x) != len(y):
        raise ValueError(f"paired samples have the same length, got {len(x)} and {len(y)}")
    if paired:
        gaps = x - y
        difference = float(gaps.mean())
        error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)) if np.ptp(gaps) > 0 else 0.0
        degrees = float(len(gaps) - 1)
    else:
        difference = float(x.mean() - y.mean())
        parts = [float(s.var(ddof=1)) / len(s) if np.ptp(s) > 0 else 0.0 for s in (x, y)]
        error = math.sqrt(sum(parts))
        spread = sum(part**2 / (len(s) - 1) for part, s in zip(parts, (x, y), strict=True))
        degrees = sum(parts) ** 2 / spread if spread > 0 else float(len(x) + len(y) - 2)
    half = float(stats.t.ppf(1 - ALPHA, degrees)) * error
    return Equivalence(
        difference, float(margin),
        p_above=_upper_tail(difference + margin, error, degrees),
        p_below=_upper_tail(margin - difference, error, degrees),
        low=difference - half, high=difference + half,
        p_zero=min(1.0, 2 * _upper_tail(abs(difference), error, degrees)),
        standard_error=error, degrees=degrees, count=min(len(x), len(y)),
    )  # fmt: skip


def seeds_needed(standard_error: float, count: int, margin: float, most: int = 10_000) -> int | None:
    """How many seeds show an equivalence with a chance of 80 %, if the true difference is 0; None beyond `most`.

    The normal-theory approximation for paired samples: the smallest n with
    `t(0.95, n-1) + t(0.9, n-1) <= margin sqrt(n) / s`, where s is the standard deviation of the differences.
    """
    deviation = standard_error * math.sqrt(count)
    if deviation == 0:
        return LEAST if margin > 0 else None
    n = np.arange(LEAST, most + 1)
    enough = stats.t.ppf(1 - ALPHA, n - 1) + stats.t.ppf((1 + POWER) / 2, n - 1) <= margin * np.sqrt(n) / deviation
    return int(n[enough.argmax()]) if enough.any() else None


@dataclass(frozen=True)
class Margin:
    """How far apart two backends' means may lie, and what that is derived from."""

    value: float
    reason: str


def default_margin(values: Array, resolution: float = 0.0) -> Margin:
    """Half the seed-to-seed standard deviation, that of the backend where it is smallest, or one example's worth.

    `values` has an axis of frameworks and one of seeds. Half a standard deviation: whoever chooses between two
    frameworks draws one seed, and a smaller difference of the means is drowned by which seed it was (0.5 is Cohen's
    "medium" effect size: one that a careful eye begins to see; Cohen 1988). The smallest backend's: a backend whose
    fault makes it erratic must not widen the margin by which it is judged. No less than `resolution`, the smallest
    step that the metric can take (1/n for a share of n examples): a coarse metric cannot show less.
    The alternatives that lost: a share of the metric, which depends on where its zero lies (1 % of an accuracy is not
    1 % of an error rate); one example's worth alone, which only some metrics have; the deviation pooled over backends,
    which a faulty one inflates. A margin from the data makes the level of the test approximate; one given beforehand
    keeps it exact.

    >>> default_margin(np.array([[1.0, 2.0, 3.0], [1.0, 2.1, 3.0]])).value
    0.5
    """
    deviations = [float(row.std(ddof=1)) if np.ptp(row) > 0 else 0.0 for row in values]
    half = min(deviations) / 2
    if resolution > half:
        return Margin(resolution, "one example's worth, which is more than half the seed-to-seed standard deviation")
    return Margin(half, "half the seed-to-seed standard deviation")


@dataclass(frozen=True)
class Component:
    """One source of variance, estimated."""

    name: str
    """`framework`, `framework:seed`, ..., or `residual`."""
    variance: float
    share: float
    """Of the sum of all components; 0 where nothing varies."""
    degrees: int
    mean_square: float
    negative: bool
    """Whether the estimate came out below 0 and is reported as 0: the source is smaller than what this design can see."""

    @property
    def deviation(self) -> float:
        """The standard deviation, in the metric's unit."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class Components:
    """Where a metric's variance comes from."""

    levels: dict[str, int]
    """By factor, how many frameworks, seeds and precisions."""
    components: tuple[Component, ...]
    residual: str
    """Which interaction the residual is: with one observation a cell the highest one cannot be told from error."""

    @property
    def total(self) -> float:
        """The sum of the components."""
        return sum(component.variance for component in self.components)

    def __getitem__(self, name: str) -> Component:
        """The component of a source."""
        return next(component for component in self.components if component.name == name)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "levels": dict(self.levels),
            "total": self.total,
            "residual": self.residual,
            "components": {
                c.name: {
                    "variance": c.variance, "deviation": c.deviation, "share": c.share, "degrees": c.degrees,
                    "mean_square": c.mean_square, "negative": c.negative,
                }
                for c in self.components
            },
        }  # fmt: skip


def variance_components(values: Array | list[Any]) -> Components:
    """The variances of framework, seed, precision and their interactions: axes in this order, one observation a cell.

    Method of moments: each mean square of the analysis of variance is set equal to its expectation in the crossed
    random-effects model and the equations are solved. Three factors with several levels give `framework`, `seed`,
    `precision`, `framework:seed`, `framework:precision`, `seed:precision` and `residual`, for example
    `framework = (MS_f - MS_fs - MS_fp + MS_residual) / (seeds x precisions)`. With one precision (an axis of length
    1, or none) they are `framework`, `seed` and `residual`. The residual is the interaction of all factors, which one
    observation a cell cannot tell from error; here, where a training is reproducible, it is the interaction. The
    estimates are unbiased before those below 0 are reported as 0 (and flagged). Frameworks and precisions are not drawn
    from a population: their components are the spread of these very levels, a size to hold against the seed's.
    Raises ValueError unless there are two frameworks and two seeds, and for values that are no numbers.

    Searle, Casella and McCulloch 1992, Variance Components, chapter 4 (balanced data).

    >>> found = variance_components([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]])
    >>> {c.name: round(c.variance, 3) for c in found.components}
    {'framework': 0.125, 'seed': 1.0, 'residual': 0.0}
    """
    cells = np.asarray(values, dtype=np.float64)
    if cells.ndim == len(FACTORS) - 1:
        cells = cells[..., None]
    if cells.ndim != len(FACTORS):
        raise ValueError(f"values have the axes framework, seed and precision, got {cells.ndim} axes")
    if min(cells.shape[:2]) < LEAST or cells.shape[2] < 1:
        raise ValueError(f"variance components need at least two frameworks and two seeds, got {cells.shape[:2]}")
    if not np.isfinite(cells).all():
        raise ValueError("variance components need numbers, got NaN or infinity")
    factors = tuple(axis for axis in range(len(FACTORS)) if cells.shape[axis] > 1)
    terms = [term for size in range(1, len(factors) + 1) for term in combinations(factors, size)]
    squares, degrees = _mean_squares(cells, terms)
    # What subtracting equal numbers of this size leaves behind: no estimate, neither above nor below 0.
    noise = (16 * np.finfo(np.float64).eps * float(np.abs(cells).max())) ** 2
    estimates = {}
    for term in terms:
        above = [other for other in terms if set(other) >= set(term)]
        contrast = sum((-1) ** (len(other) - len(term)) * squares[other] for other in above)
        estimate = contrast / math.prod(n for axis, n in enumerate(cells.shape) if axis not in term)
        estimates[term] = estimate if abs(estimate) > noise else 0.0
    total = sum(max(0.0, estimate) for estimate in estimates.values())
    spelled = {term: ":".join(FACTORS[axis] for axis in term) for term in terms}
    return Components(
        dict(zip(FACTORS, cells.shape, strict=True)),
        tuple(
            Component(
                name="residual" if term == factors else spelled[term],
                variance=max(0.0, estimates[term]),
                share=max(0.0, estimates[term]) / total if total else 0.0,
                degrees=degrees[term], mean_square=squares[term], negative=estimates[term] < 0,
            )
            for term in terms
        ),
        residual=spelled[factors],
    )  # fmt: skip


def _mean_squares(
    cells: Array, terms: list[tuple[int, ...]]
) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], int]]:
    """Mean squares and degrees of freedom by term, smaller terms first: each takes its effect out of what is left."""
    left = cells - cells.mean()
    squares, degrees = {}, {}
    for term in terms:
        others = tuple(axis for axis in range(cells.ndim) if axis not in term)
        effect = left.mean(axis=others, keepdims=True)
        left = left - effect
        degrees[term] = math.prod(cells.shape[axis] - 1 for axis in term)
        repeated = math.prod(cells.shape[axis] for axis in others)
        squares[term] = float(np.sum(effect**2)) * repeated / degrees[term]
    return squares, degrees


def _sample(values: Array | list[float]) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < LEAST:
        raise ValueError(f"an equivalence test needs at least two seeds (the rung at least five), got {sample.size}")
    if not np.isfinite(sample).all():
        raise ValueError("an equivalence test needs numbers, got NaN or infinity")
    return sample


def _upper_tail(value: float, error: float, degrees: float) -> float:
    """P(T >= value / error); without any error, 0 for a value above 0 and 1 otherwise."""
    if error == 0:
        return 0.0 if value > 0 else 1.0
    return float(stats.t.sf(value / error, degrees))
