"""Comparisons catch what they must: every check here has a mutant beside it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import compare as module
from harness.compare import FLOAT64, TOLERANCES, Mismatch, Tolerance, compare, compare_losses, join, measure

NAMES = ("torch", "jax")
TIGHT = Tolerance(1e-10)


def test_equal_tensors_are_the_same() -> None:
    found = compare("state", NAMES, {"a": np.ones(3)}, {"a": np.ones(3)}, TIGHT)
    assert found.same
    found.require()


def test_a_tensor_that_one_lacks_is_a_mismatch() -> None:
    found = compare("state", NAMES, {"a": np.ones(3), "b": np.ones(1)}, {"a": np.ones(3)}, TIGHT)
    assert not found.same
    with pytest.raises(Mismatch, match="only torch has b"):
        found.require()


def test_other_shapes_are_a_mismatch_even_where_they_would_broadcast() -> None:
    found = compare("state", NAMES, {"a": np.ones((3, 1))}, {"a": np.ones((1, 3))}, TIGHT)
    with pytest.raises(Mismatch, match=r"a has shape \(3, 1\) and \(1, 3\)"):
        found.require()


def test_nothing_compared_is_not_the_same() -> None:
    assert not compare("state", NAMES, {}, {}, TIGHT).same
    assert not compare_losses(NAMES, {}, {}, TIGHT).same


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_never_passes_not_even_on_both_sides(bad: float) -> None:
    found = compare("state", NAMES, {"a": np.array([1.0, bad])}, {"a": np.array([1.0, bad])}, TIGHT)
    assert not found.same
    assert found.worst is not None
    assert found.worst.index == (1,)


@given(st.floats(1e-9, 1e3), st.integers(0, 5), st.sampled_from([-1.0, 1.0]))
def test_one_moved_element_is_found_where_it_is(shift: float, at: int, sign: float) -> None:
    a = np.linspace(-1, 1, 6).reshape(2, 3)
    b = a.copy()
    b.flat[at] += sign * shift
    found = compare("state", NAMES, {"a": a}, {"a": b}, TIGHT)
    assert not found.same
    assert found.worst is not None
    assert found.worst.index == divmod(at, 3)
    assert found.worst.difference == pytest.approx(shift, rel=1e-6)


NUMBERS = st.one_of(
    st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, -0.0, 1e-30, 3e38, float("nan"), float("inf"), -float("inf")])
)


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4), min_size=1, max_size=5), st.booleans(), st.sampled_from([TIGHT, Tolerance(1e-5, floor=0.0)]))  # fmt: skip
def test_looking_at_all_tensors_at_once_finds_what_looking_at_each_does(
    tensors: list[list[tuple[float, float]]], single: bool, tolerance: Tolerance
) -> None:
    kind = np.float32 if single else np.float64
    a, b = ({f"t{i}": np.array([pair[side] for pair in of], kind) for i, of in enumerate(tensors)} for side in (0, 1))
    losses = [{"loss": [pair[side] for of in tensors for pair in of]} for side in (0, 1)]
    found = [compare("state", NAMES, a, b, tolerance), compare_losses(NAMES, losses[0], losses[1], tolerance)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", 0)
        one_by_one = [compare("state", NAMES, a, b, tolerance), compare_losses(NAMES, losses[0], losses[1], tolerance)]
    assert [repr(c) for c in found] == [repr(c) for c in one_by_one]  # a NaN is not itself


def test_what_can_be_looked_at_at_once_is() -> None:
    pairs = [
        (name, np.full(3, 100.0), np.full(3, b), TIGHT, None) for name, b in (("a", 99.0), ("b", 95.0), ("c", 98.0))
    ]
    assert module._furthest(pairs) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", 8)
        assert module._furthest(pairs) is None
    assert module._furthest([*pairs, ("d", np.zeros(1), np.full(1, np.nan), TIGHT, None)]) is None


@given(st.floats(0, 0.99))
def test_a_difference_within_the_tolerance_passes(share: float) -> None:
    a = np.array([3.0, -5.0])
    assert compare("state", NAMES, {"a": a}, {"a": a + share * 5e-10}, TIGHT).same


def test_the_tolerance_is_of_the_largest_magnitude_or_of_the_floor() -> None:
    assert Tolerance(1e-10).allowed(np.array([1e-3]), np.array([2e-3])) == 1e-10
    assert Tolerance(1e-10).allowed(np.array([-4.0]), np.array([2.0])) == 4e-10
    assert Tolerance(1e-5, floor=0.0).allowed(np.array([0.01]), np.array([0.01])) == pytest.approx(1e-7)


def test_float32_losses_are_judged_relative_to_themselves() -> None:
    tolerance = TOLERANCES["float32"]["loss"]
    assert compare_losses(NAMES, {"u": [1e-3]}, {"u": [1e-3 * (1 + 0.9e-5)]}, tolerance).same
    assert not compare_losses(NAMES, {"u": [1e-3]}, {"u": [1e-3 * (1 + 1.1e-5)]}, tolerance).same


def test_float64_allows_no_more_than_a_ten_billionth_anywhere() -> None:
    assert all(t.relative <= FLOAT64 == 1e-10 for t in TOLERANCES["float64"].values())


def test_losses_are_compared_at_every_step() -> None:
    a = {"u": [1.0, 2.0, 3.0]}
    for step in range(3):
        b = {"u": [x + (1e-9 if i == step else 0) for i, x in enumerate(a["u"])]}
        found = compare_losses(NAMES, a, b, TIGHT)
        assert not found.same
        assert found.worst is not None
        assert found.worst.step == step + 1


def test_other_numbers_of_steps_or_updates_are_a_mismatch() -> None:
    assert not compare_losses(NAMES, {"u": [1.0, 2.0]}, {"u": [1.0]}, TIGHT).same
    assert not compare_losses(NAMES, {"u": [1.0], "v": [1.0]}, {"u": [1.0]}, TIGHT).same


def test_joined_comparisons_keep_the_worst_and_every_missing_tensor() -> None:
    good = compare("state", NAMES, {"a": np.ones(2)}, {"a": np.ones(2)}, TIGHT, 1)
    bad = compare("state", NAMES, {"a": np.ones(2)}, {"a": np.array([1.0, 2.0])}, TIGHT, 2)
    gone = compare("state", NAMES, {"a": np.ones(2)}, {}, TIGHT, 3)
    assert join([good, good]).same
    assert not join([good, bad]).same
    assert join([good, bad]).worst == bad.worst
    assert not join([good, gone]).same
    assert join([good, bad, gone]).compared == 2


def test_measuring_different_shapes_is_an_error() -> None:
    with pytest.raises(ValueError, match="shapes"):
        measure("a", np.ones(2), np.ones(3), TIGHT)
