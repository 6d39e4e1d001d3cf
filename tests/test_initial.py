"""Everything random comes from the seed and a name; the distributions are the documented ones."""

import math

import numpy as np
import pytest
from build import program_of
from cases import CASES, spec_of
from hypothesis import given
from hypothesis import strategies as st

from harness import initial, initializers
from harness.initializers import INITIALIZERS


def rng() -> np.random.Generator:
    return initial.stream(0, "test")


@pytest.mark.parametrize(
    ("kind", "variance", "largest"),
    [
        ("glorot_uniform", 2 / 300, math.sqrt(6 / 300)), ("glorot_normal", 2 / 300, 2 * math.sqrt(2 / 300) / 0.8796),
        ("he_uniform", 2 / 200, math.sqrt(6 / 200)), ("he_normal", 2 / 200, 2 * math.sqrt(2 / 200) / 0.8796),
        ("lecun_uniform", 1 / 200, math.sqrt(3 / 200)), ("lecun_normal", 1 / 200, 2 * math.sqrt(1 / 200) / 0.8796),
        ("uniform", 0.1**2 / 12, 0.05), ("normal", 0.05**2, 1.0), ("truncated_normal", (0.05 * 0.87962566) ** 2, 0.1),
    ],
)  # fmt: skip
def test_variance_and_bounds(kind: str, variance: float, largest: float) -> None:
    cls = next(c for c in INITIALIZERS if c.kind == kind)
    values = cls().draw(rng(), (200, 500), 200, 100)
    assert values.dtype == np.float64
    assert values.var() == pytest.approx(variance, rel=0.02)
    assert abs(values.mean()) < 4 * math.sqrt(variance / values.size)
    assert np.abs(values).max() <= largest * (1 + 1e-3)


@pytest.mark.parametrize("shape", [(6, 6), (3, 3, 2, 8), (4, 9), (9, 4)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, ...]) -> None:
    q = initializers.Orthogonal(gain=2.0).draw(rng(), shape, 1, 1).reshape(-1, shape[-1]) / 2
    product = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    assert np.allclose(product, np.eye(len(product)), atol=1e-12)


def test_the_forget_bias_is_the_second_gate_alone() -> None:
    program = program_of(spec_of(CASES["lstm"]))
    bias = initial.parameters(program)["lstm1.bias"]
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


def test_another_layer_changes_no_other_layers_numbers() -> None:
    case = spec_of(CASES["dense"])
    before = initial.parameters(program_of(case))
    longer = {
        **case,
        "networks": {"net": {"inputs": ["x"], "layers": [*case["networks"]["net"]["layers"], {"dense": 3}]}},
    }  # type: ignore[index]
    after = initial.parameters(program_of(longer))
    assert set(before) < set(after)
    for name, value in before.items():
        assert np.array_equal(value, after[name]), name


def test_another_seed_changes_every_random_array() -> None:
    first = initial.parameters(program_of(spec_of(CASES["lstm"]), seed=1))
    second = initial.parameters(program_of(spec_of(CASES["lstm"]), seed=2))
    drawn = [name for name in first if "kernel" in name or "recurrent" in name]
    assert drawn
    assert all(not np.array_equal(first[name], second[name]) for name in drawn)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 30), st.booleans(), st.booleans(), st.integers(0, 3))
def test_every_epoch_uses_every_example_at_most_once(
    examples: int, batch: int, steps: int, shuffle: bool, keep_last: bool, seed: int
) -> None:
    if batch > examples:
        return
    rows = initial.order(seed, examples, batch, steps, shuffle=shuffle, keep_last=keep_last)
    assert rows.shape == (steps, batch)
    per_epoch = -(-examples // batch) if keep_last else examples // batch
    for at in range(0, steps, per_epoch):
        epoch = rows[at : at + per_epoch]
        used = epoch[epoch >= 0]
        assert len(set(used.tolist())) == len(used)
        assert used.min() >= 0
        assert used.max() < examples
        if len(epoch) == per_epoch and keep_last:
            assert sorted(used.tolist()) == list(range(examples))
    if not keep_last:
        assert (rows >= 0).all()


def test_batches_are_the_same_for_the_same_seed_and_differ_for_another() -> None:
    first = initial.order(0, 100, 10, 20, shuffle=True, keep_last=False)
    assert np.array_equal(first, initial.order(0, 100, 10, 20, shuffle=True, keep_last=False))
    assert not np.array_equal(first, initial.order(1, 100, 10, 20, shuffle=True, keep_last=False))
    assert not np.array_equal(first[:10], first[10:]), "each epoch has an order of its own"


def test_masks_keep_the_right_share_and_differ_by_step_layer_and_seed() -> None:
    program = program_of(spec_of(CASES["repeat"]))
    masks = initial.masks(program, 0, 5000)["net"]
    assert set(masks) == {f"block{i}.dropout1" for i in (1, 2, 3)}
    for mask in masks.values():
        assert set(np.unique(mask)) == {0.0, 1 / 0.8}
        assert (mask > 0).mean() == pytest.approx(0.8, abs=0.02)
    assert not np.array_equal(masks["block1.dropout1"], masks["block2.dropout1"])
    assert not np.array_equal(masks["block1.dropout1"], initial.masks(program, 1, 5000)["net"]["block1.dropout1"])
    other = program_of(spec_of(CASES["repeat"]), seed=9)
    assert not np.array_equal(masks["block1.dropout1"], initial.masks(other, 0, 5000)["net"]["block1.dropout1"])


def test_a_longer_batch_begins_like_a_shorter_one() -> None:
    program = program_of(spec_of(CASES["dropout"]))
    long, short = (initial.masks(program, 3, n)["net"]["dropout1"] for n in (9, 4))
    assert np.array_equal(long[:4], short)
