"""Equivalence tests and variance components against textbooks, other formulas and simulation. Needs no framework."""

import json
import math
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from harness.check.statistics import default_margin, seeds_needed, tost, variance_components

Array = np.ndarray[Any, np.dtype[Any]]


def tail_by_hand(t: float, degrees: float) -> float:
    """P(T >= t) by integrating the density of Student's t."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    inside = integrate.quad(lambda x: scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2), 0, t)[0]
    return 0.5 - float(inside)


def test_a_paired_test_by_hand() -> None:
    # Differences 1, 2, 3, 4, 5: mean 3, standard deviation sqrt(2.5), standard error sqrt(0.5), 4 degrees of freedom.
    found = tost([11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0], margin=5.0)
    assert found.difference == pytest.approx(3.0)
    assert found.standard_error == pytest.approx(math.sqrt(0.5))
    assert found.p_above == pytest.approx(tail_by_hand(8 / math.sqrt(0.5), 4), abs=1e-9)
    assert found.p_below == pytest.approx(tail_by_hand(2 / math.sqrt(0.5), 4), abs=1e-9)
    assert found.p == found.p_below
    # 2.132 is the 95 % point of t with 4 degrees of freedom in every printed table.
    assert (found.low, found.high) == pytest.approx((3 - 2.132 * 0.70711, 3 + 2.132 * 0.70711), abs=5e-4)
    assert found.equivalent
    assert found.different, "a difference may be real and within the margin"


def test_the_published_example_comes_out() -> None:
    """Lakens 2017, organic food and moral judgment: t(182) = 2.69, p = .004 for d within ±0.43."""
    margin = 0.43 * math.sqrt((0.95**2 + 0.83**2) / 2)
    found = tost(sample(5.25, 0.95, 95), sample(5.22, 0.83, 89), margin, paired=False)
    assert found.degrees == pytest.approx(182, abs=1.5)
    assert (margin - found.difference) / found.standard_error == pytest.approx(2.69, abs=0.005)
    assert found.p == pytest.approx(0.004, abs=5e-4)
    assert found.verdict == "equivalent"


def sample(mean: float, deviation: float, count: int) -> Array:
    """Numbers with exactly this mean and standard deviation."""
    raw = np.arange(count, dtype=float)
    return mean + deviation * (raw - raw.mean()) / raw.std(ddof=1)


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_are_those_of_scipys_one_sided_tests(paired: bool) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.normal(0, 1, 7), rng.normal(0.2, 2, 7)
        margin = float(rng.uniform(0.1, 2))
        found = tost(a, b, margin, paired=paired)
        test = stats.ttest_rel if paired else (lambda x, y, **kw: stats.ttest_ind(x, y, equal_var=False, **kw))
        assert found.p_above == pytest.approx(test(a + margin, b, alternative="greater").pvalue)
        assert found.p_below == pytest.approx(test(a - margin, b, alternative="less").pvalue)
        assert found.p_zero == pytest.approx(test(a, b).pvalue)
        interval = test(a, b).confidence_interval(0.90)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


values = st.lists(st.tuples(*[st.floats(-100, 100).map(lambda x: round(x, 3))] * 2), min_size=2, max_size=12)


@given(values, st.floats(0.01, 50), st.booleans())
def test_the_order_of_seeds_and_of_backends_does_not_matter(
    pairs: list[tuple[float, float]], margin: float, paired: bool
) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    found, turned = tost(a, b, margin, paired=paired), tost(b, a, margin, paired=paired)
    shuffled = tost(a[::-1], b[::-1], margin, paired=paired)
    tight = {"rel": 1e-6, "abs": 1e-9}
    assert turned.difference == pytest.approx(-found.difference, **tight)
    assert (turned.p_above, turned.p_below) == pytest.approx((found.p_below, found.p_above), **tight)
    assert (shuffled.p_above, shuffled.p_below) == pytest.approx((found.p_above, found.p_below), **tight)


@given(values, st.floats(0.01, 50))
def test_equivalent_is_the_interval_within_the_margin(pairs: list[tuple[float, float]], margin: float) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    found = tost(a, b, margin)
    room = min(found.low + margin, margin - found.high)
    if abs(room) > 1e-6:
        assert found.equivalent == (room > 0)


def test_equal_samples_are_equivalent_and_two_margins_apart_are_not() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0.97, 0.01, 5)
    assert tost(a, a, 0.005).equivalent
    assert tost(a, a + rng.normal(0, 1e-9, 5), 0.005).equivalent
    planted = tost(a, a + 0.01, 0.005)
    assert not planted.equivalent
    assert planted.verdict == "different"
    noisy = tost(a, a + 0.01 + rng.normal(0, 1e-3, 5), 0.005)
    assert not noisy.equivalent
    assert noisy.verdict == "different"


def test_the_level_holds_at_the_margin() -> None:
    """Of samples exactly one margin apart no more than 5 % are called equivalent (binomial, 4 standard errors)."""
    rng = np.random.default_rng(1)
    count = 4000
    for paired in (True, False):
        wrong = sum(tost(rng.normal(0, 1, 8), rng.normal(2, 1, 8), 2.0, paired=paired).equivalent for _ in range(count))
        assert wrong / count < 0.05 + 4 * math.sqrt(0.05 * 0.95 / count)
        assert wrong / count > 0.05 - 4 * math.sqrt(0.05 * 0.95 / count), "the test is not needlessly strict either"


def test_without_any_spread_the_difference_alone_decides() -> None:
    a = np.array([1.0, 2.0, 3.0])
    inside, at, outside = tost(a + 0.5, a, 0.75), tost(a + 0.5, a, 0.5), tost(a + 0.5, a, 0.25)
    assert (inside.p, at.p, outside.p) == (0.0, 1.0, 1.0)
    assert (inside.equivalent, at.equivalent, outside.equivalent) == (True, False, False)
    assert tost(a, a, 0.0).verdict == "undecided", "a margin of 0 can never be shown"
    assert (inside.low, inside.high) == (0.5, 0.5)
    json.dumps(inside.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("a", "b", "margin", "sentence"),
    [
        ([1.0], [1.0], 1.0, "at least two seeds"),
        ([], [], 1.0, "at least two seeds"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], 1.0, "same length"),
        ([1.0, math.nan], [1.0, 2.0], 1.0, "NaN"),
        ([1.0, 2.0], [1.0, math.inf], 1.0, "NaN or infinity"),
        ([1.0, 2.0], [1.0, 2.0], -1.0, "a margin is"),
        ([1.0, 2.0], [1.0, 2.0], math.nan, "a margin is"),
    ],
)
def test_what_cannot_be_tested_is_refused(a: list[float], b: list[float], margin: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tost(a, b, margin)


def test_the_number_of_seeds_needed_is_the_number_that_suffices() -> None:
    """Of simulated differences with the true difference 0, four fifths are shown to be equivalent at that number."""
    rng = np.random.default_rng(5)
    needed = seeds_needed(standard_error=1 / math.sqrt(5), count=5, margin=0.8)
    assert needed is not None
    shown = np.mean([tost(rng.normal(0, 1, needed), np.zeros(needed), 0.8).equivalent for _ in range(3000)])
    assert 0.77 < shown < 0.88
    fewer = np.mean([tost(rng.normal(0, 1, needed - 3), np.zeros(needed - 3), 0.8).equivalent for _ in range(3000)])
    assert fewer < 0.8
    assert seeds_needed(0.0, 5, 0.1) == 2
    assert seeds_needed(1.0, 5, 0.0) is None
    assert seeds_needed(1.0, 5, 1e-6) is None


def test_the_margin_is_half_the_smallest_backends_deviation() -> None:
    calm, erratic = np.array([1.0, 2.0, 3.0]), np.array([0.0, 50.0, -20.0])
    assert default_margin(np.stack([calm, calm + 9])).value == pytest.approx(0.5)
    assert default_margin(np.stack([calm, erratic])).value == pytest.approx(0.5), "an erratic backend widens nothing"
    assert default_margin(np.stack([calm, erratic]), resolution=0.6).value == 0.6
    assert "one example" in default_margin(np.stack([calm, erratic]), resolution=0.6).reason
    assert default_margin(np.ones((2, 3))).value == 0.0


# Variance components


def by_sums_of_squares(cells: Array) -> dict[str, float]:
    """Searle, Casella and McCulloch's expectations solved by hand, the sums written as loops, estimates below 0 kept."""
    f, s, p = cells.shape
    grand = cells.mean()
    squares = dict.fromkeys(("f", "s", "p", "fs", "fp", "sp", "fsp"), 0.0)
    for i, j, k in product(range(f), range(s), range(p)):
        a, b, c = cells[i].mean(), cells[:, j].mean(), cells[:, :, k].mean()
        ab, ac, bc = cells[i, j].mean(), cells[i, :, k].mean(), cells[:, j, k].mean()
        squares["f"] += (a - grand) ** 2 / (f - 1)
        squares["s"] += (b - grand) ** 2 / (s - 1)
        squares["p"] += (c - grand) ** 2 / (p - 1)
        squares["fs"] += (ab - a - b + grand) ** 2 / ((f - 1) * (s - 1))
        squares["fp"] += (ac - a - c + grand) ** 2 / ((f - 1) * (p - 1))
        squares["sp"] += (bc - b - c + grand) ** 2 / ((s - 1) * (p - 1))
        squares["fsp"] += (cells[i, j, k] - ab - ac - bc + a + b + c - grand) ** 2 / ((f - 1) * (s - 1) * (p - 1))
    m = squares
    return {
        "framework": (m["f"] - m["fs"] - m["fp"] + m["fsp"]) / (s * p),
        "seed": (m["s"] - m["fs"] - m["sp"] + m["fsp"]) / (f * p),
        "precision": (m["p"] - m["fp"] - m["sp"] + m["fsp"]) / (f * s),
        "framework:seed": (m["fs"] - m["fsp"]) / p,
        "framework:precision": (m["fp"] - m["fsp"]) / s,
        "seed:precision": (m["sp"] - m["fsp"]) / f,
        "residual": m["fsp"],
    }


@pytest.mark.parametrize("shape", [(2, 5, 2), (3, 4, 2), (3, 6, 3)])
def test_components_are_the_solved_mean_squares(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(shape)
    negatives = 0
    for _ in range(30):
        cells = rng.normal(5, 1, shape) + rng.normal(0, 1, (1, shape[1], 1))
        found, expected = variance_components(cells), by_sums_of_squares(cells)
        assert [c.name for c in found.components] == list(expected)
        for name, value in expected.items():
            assert found[name].variance == pytest.approx(max(0.0, value), abs=1e-12)
            assert found[name].negative == (value < 0)
            assert found[name].deviation == pytest.approx(math.sqrt(max(0.0, value)), abs=1e-9)
            negatives += value < 0
        assert sum(c.share for c in found.components) == pytest.approx(1.0)
        assert found.total == pytest.approx(sum(max(0.0, v) for v in expected.values()))
    assert negatives, "no estimate came out below 0: nothing was shown about those"


def test_a_table_worked_by_hand() -> None:
    # Frameworks' means 2 and 4, seeds' means 2, 3, 4; cells additive but for +-0.5 in the first two seeds.
    # MS_f = 3*2*1 = 6 (1 degree); MS_s = 2*(1+0+1)/2 = 2; residual 4*0.25/2 = 0.5.
    found = variance_components([[1.5, 1.5, 3.0], [2.5, 4.5, 5.0]])
    assert {c.name: c.mean_square for c in found.components} == pytest.approx(
        {"framework": 6, "seed": 2, "residual": 0.5}
    )
    assert {c.name: c.degrees for c in found.components} == {"framework": 1, "seed": 2, "residual": 2}
    assert found["framework"].variance == pytest.approx((6 - 0.5) / 3)
    assert found["seed"].variance == pytest.approx((2 - 0.5) / 2)
    assert found["residual"].variance == pytest.approx(0.5)
    assert found.residual == "framework:seed"
    assert found.levels == {"framework": 2, "seed": 3, "precision": 1}


TRUE = {"framework": 4.0, "seed": 9.0, "precision": 1.0, "framework:seed": 2.0, "framework:precision": 0.5,
        "seed:precision": 1.5, "residual": 0.25}  # fmt: skip


def simulated(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    f, s, p = shape
    sizes = {"framework": (f, 1, 1), "seed": (1, s, 1), "precision": (1, 1, p), "framework:seed": (f, s, 1),
             "framework:precision": (f, 1, p), "seed:precision": (1, s, p), "residual": shape}  # fmt: skip
    cells = np.full(shape, 7.0)
    for name, size in sizes.items():
        cells = cells + rng.normal(0, math.sqrt(TRUE[name]), size)
    return cells


def contrast(name: str, mean_squares: dict[str, float], shape: tuple[int, int, int]) -> float:
    """The estimate of a component before what is below 0 becomes 0, from the mean squares that were reported."""
    factors = ("framework", "seed", "precision")
    own = set(factors) if name == "residual" else set(name.split(":"))
    every = {n: set(factors) if n == "residual" else set(n.split(":")) for n in mean_squares}
    signed = sum((-1) ** (len(e) - len(own)) * mean_squares[n] for n, e in every.items() if e >= own)
    return signed / math.prod(n for factor, n in zip(factors, shape, strict=True) if factor not in own)


def test_estimates_are_unbiased() -> None:
    """Over 3000 simulated experiments the mean estimate lies within 4 of its standard errors of the truth."""
    rng, shape = np.random.default_rng(11), (3, 5, 2)
    estimates: dict[str, list[float]] = {name: [] for name in TRUE}
    for _ in range(3000):
        found = variance_components(simulated(rng, shape))
        squares = {c.name: c.mean_square for c in found.components}
        for component in found.components:
            value = contrast(component.name, squares, shape)
            assert component.variance == pytest.approx(max(0.0, value), abs=1e-12)
            estimates[component.name].append(value)
    for name, values_ in estimates.items():
        error = float(np.std(values_)) / math.sqrt(len(values_))
        assert abs(np.mean(values_) - TRUE[name]) < 4 * error, name


def test_one_precision_and_many_seeds_recover_known_components() -> None:
    rng = np.random.default_rng(2)
    cells = rng.normal(0, 3, (1, 4000)) + rng.normal(0, 0.5, (40, 4000)) + rng.normal(0, 2, (40, 1))
    found = variance_components(cells)
    assert [c.name for c in found.components] == ["framework", "seed", "residual"]
    assert found["seed"].variance == pytest.approx(9, rel=0.1)
    assert found["residual"].variance == pytest.approx(0.25, rel=0.02)
    assert found["framework"].variance == pytest.approx(4, rel=0.6), "40 levels tell a variance no better"
    assert variance_components(cells[..., None]) == found


def test_the_order_of_levels_does_not_matter_and_the_axes_do() -> None:
    rng = np.random.default_rng(4)
    cells = simulated(rng, (3, 4, 2))
    found = variance_components(cells)
    for order in permutations(range(3)):
        shuffled = variance_components(cells[list(order)][:, ::-1, ::-1])
        for one, other in zip(found.components, shuffled.components, strict=True):
            assert other.variance == pytest.approx(one.variance, abs=1e-12)
    turned = variance_components(cells.transpose(1, 0, 2))
    assert turned["seed"].variance == pytest.approx(found["framework"].variance)
    scaled = variance_components(10 * cells + 3)
    assert scaled["framework"].variance == pytest.approx(100 * found["framework"].variance)
    assert scaled["seed"].share == pytest.approx(found["seed"].share)


def test_frameworks_that_agree_have_no_component_and_no_flag() -> None:
    rng = np.random.default_rng(6)
    seeds = rng.normal(0.97, 0.01, 5)
    found = variance_components(np.tile(seeds, (3, 1)))
    assert found["framework"].variance == 0
    assert found["residual"].variance == 0
    assert not any(c.negative for c in found.components)
    assert found["seed"].variance == pytest.approx(np.var(seeds, ddof=1))
    assert found["seed"].share == 1
    shifted = variance_components(np.stack([seeds, seeds, seeds + 0.1]))
    assert shifted["framework"].variance == pytest.approx(0.01 / 3), "the variance of 0, 0, 0.1"


def test_what_never_varies_has_no_components() -> None:
    found = variance_components(np.full((3, 5, 2), 0.1))
    assert found.total == 0
    assert all(c.share == 0 and not c.negative for c in found.components)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (np.ones(3), "axes"),
        (np.ones((1, 5)), "two frameworks and two seeds"),
        (np.ones((3, 1, 2)), "two frameworks and two seeds"),
        (np.array([[1.0, math.nan], [1.0, 2.0]]), "NaN"),
    ],
)
def test_designs_without_components_are_refused(cells: Array, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        variance_components(cells)
