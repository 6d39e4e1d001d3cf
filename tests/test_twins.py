"""Rounding measured by twins: what they allow, and what no twin excuses. Needs no framework."""

import json
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from build import program_of, program_of_case
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from harness import initial, reference
from harness.backend import BACKENDS, SHAKEN_UNITS, Session, shake
from harness.compare import TOLERANCES, Measured, Tolerance, compare, compare_losses
from harness.graph import Program
from harness.judge import Allowance
from harness.runs import Options, recorded_steps
from harness.twins import (
    FIRST_STEPS,
    LEAST_STEPS,
    MOST_STEPS,
    ROOM,
    ROUNDS,
    TIMES,
    Yardstick,
    moved,
    moved_steps,
    nudged,
    rounding_moves,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_twin_is_one_unit_in_the_last_place_away_up_or_down(dtype: type) -> None:
    program = program_of_case("conv2d")
    start = {n: a.astype(dtype) for n, a in initial.parameters(program).items()}
    for number in range(2 * ROUNDS):
        twin = moved(program, start, number)
        for name, value in start.items():
            steps = np.where(
                value == 0, 0, np.abs(twin[name] - value) / np.spacing(np.minimum(np.abs(value), np.abs(twin[name])))
            )
            assert twin[name].dtype == dtype
            assert set(np.unique(steps)) <= {0.0, 1.0}
            assert np.array_equal(steps == 0, value == 0), "zeros stay, and nothing else"


def test_twins_go_both_ways_and_differ() -> None:
    program = program_of_case("conv2d")
    start = initial.parameters(program)
    ways = [np.sign(moved(program, start, number)["conv1.kernel"] - start["conv1.kernel"]) for number in range(4)]
    assert np.array_equal(ways[0], -ways[1])
    assert np.array_equal(ways[2], -ways[3])
    assert not np.array_equal(ways[0], ways[2])
    assert {-1.0, 1.0} == set(np.unique(ways[0]))


def test_where_every_parameter_is_zero_a_twin_is_a_unit_of_the_first_step_away() -> None:
    program = program_of_case("dense")
    zeros = {n: np.zeros_like(a) for n, a in initial.parameters(program).items()}
    after = {n: np.full_like(a, 0.75) for n, a in zeros.items()}
    assert all(not np.any(a) for a in moved(program, zeros, 0).values())
    twin = moved(program, zeros, 0, after)
    assert all(np.array_equal(np.abs(a), np.full_like(a, np.spacing(0.75))) for a in twin.values())
    assert {-1.0, 1.0} == {float(s) for a in twin.values() for s in np.sign(a).ravel()}
    some = zeros | {"dense1.kernel": np.ones_like(zeros["dense1.kernel"])}
    assert not np.any(moved(program, some, 0, after)["dense1.bias"]), "one that is not 0 is enough to part"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_of_a_shaken_twin_are_some_units_away_and_what_is_no_number_of_that_kind_stays(dtype: type) -> None:
    data = {
        "train.x": np.array([0.0, 1.5, -3.0, 1e-7], dtype),
        "train.label": np.arange(3),
        "order": np.array([[0, -1]]),
    }
    found = nudged(data, 0)
    assert found["train.x"].dtype == dtype
    units = (found["train.x"].astype(np.float64) - data["train.x"]) / np.spacing(np.abs(data["train.x"])).astype(float)
    assert units[0] == 0
    assert set(np.abs(units[1:])) == {SHAKEN_UNITS}
    assert all(np.array_equal(found[n], data[n]) for n in ("train.label", "order"))
    many = {"x": np.linspace(1, 2, 1000, dtype=dtype)}
    assert not np.array_equal(nudged(many, 0)["x"], nudged(many, 1)["x"]), "other coins"
    assert abs(np.mean(nudged(many, 0)["x"] > many["x"]) - 0.5) < 0.1
    tied = nudged({"a": np.full(50, 0.75, dtype), "b": np.full(2, 0.75, dtype)}, 0)
    assert len({*tied["a"], *tied["b"]}) == 1, "a tie stays one"


def made(rule: str, **fields: float) -> Program:
    return program_of(
        {
            "name": "shaken", "data": {"dataset": "random", "examples": 4, "batch": 2, "fields": {"x": {"shape": [2]}}},
            "networks": {"net": {"layers": [{"dense": {"units": 2, "name": "dense1"}}]}},
            "training": {"steps": 3, "updates": [{"name": "model", "loss": {"mse": {"predictions": "net(x)", "targets": 0}}, "optimizer": {rule: {"learning_rate": 0.1, **fields}}}]},
        }
    )  # fmt: skip


def first_moves(rule: str, *said: tuple[list[float], float], later: list[float] | None = None) -> dict[str, np.ndarray]:
    """What shakes a step of which backends say these gradients of the bias, and of every number of the kernel.

    `later`: the gradient of the bias in the next step.
    """
    program = made(rule)
    slots = {f"model/{n}": a for n, a in reference.initial_slots(program, program.updates[0]).items()}
    gradients = [{"model/dense1.bias": np.array(bias), "model/dense1.kernel": np.full((2, 2), kernel)} for bias, kernel in said]  # fmt: skip
    following = [[{**gradients[0], "model/dense1.bias": np.array(later)}]] if later else []
    found = rounding_moves(program, slots, [gradients, *following], 0, 2.0**-52, 0)
    return {name.removeprefix("0/"): array for name, array in found.items()}


def test_what_nothing_reaches_stays_and_a_sum_that_cancels_does_not() -> None:
    """Rows of an embedding that nobody looks up, and a sum that is 0 by chance in every backend."""
    once = ([0.5, 0.0], 1.0)
    assert first_moves("adam", once, once)["state/dense1.bias"][1] == 0
    assert first_moves("adam", once, once, later=[0.5, 0.0])["state/dense1.bias"][1] == 0
    assert first_moves("adam", once, once, later=[0.5, 0.1])["state/dense1.bias"][1] == 0, "it was not looked up before"
    assert first_moves("adam", once, once, later=[0.5, 1e-16])["state/dense1.bias"][1] != 0


def test_rounding_that_an_optimizer_divides_by_its_own_size_is_a_step() -> None:
    """By hand: Adam's first step is g / (|g| + 1e-8), times the rate; any gradient is off by 8 units of the kernel's, which is 1."""
    found = first_moves("adam", ([0.5, 0.0], 1.0), ([0.5, 1e-16], 1.0))
    off = SHAKEN_UNITS * 2.0**-52
    assert abs(found["state/dense1.bias"][1]) == pytest.approx(0.1 * off / (off + 1e-8), rel=1e-6, abs=0)
    assert abs(found["state/dense1.bias"][0]) < 1e-15, "where there is a gradient, rounding is nothing"
    assert np.max(np.abs(found["state/dense1.kernel"])) < 1e-15
    assert abs(found["optimizer/model/first_moment/dense1.bias"][1]) == pytest.approx(0.1 * off, rel=1e-3, abs=0)
    assert np.all(found["optimizer/model/second_moment/dense1.bias"] >= 0), "away from zero: nothing below it"
    plain = first_moves("sgd", ([0.5, 0.0], 1.0), ([0.5, 1e-16], 1.0))
    assert abs(plain["state/dense1.bias"][1]) == pytest.approx(0.1 * off, rel=1e-3, abs=0)


def test_gradients_of_backends_that_lie_apart_by_rounding_are_as_far_off_and_others_are_not() -> None:
    """A normalisation multiplies rounding: 200 units of the largest. What is beyond 1000 is a difference, and no rounding."""
    unit = 2.0**-52
    near = first_moves("sgd", ([0.5, 0.0], 1.0), ([0.5, 200 * unit], 1.0))
    assert abs(near["state/dense1.bias"][1]) == pytest.approx(0.1 * 200 * unit, rel=1e-3, abs=0)
    far = first_moves("sgd", ([0.5, 0.0], 1.0), ([0.5, 0.25], 1.0))
    assert not far["state/dense1.bias"][1], "0 in one, and more than rounding in the other: nothing is excused"
    both = first_moves("sgd", ([0.5, 1e-3], 1.0), ([0.5, 0.25], 1.0))
    assert abs(both["state/dense1.bias"][1]) == pytest.approx(0.1 * SHAKEN_UNITS * unit, rel=1e-3, abs=0), (
        "as of any gradient"
    )


def test_later_steps_are_off_by_rounding_too_from_what_their_optimizer_remembers() -> None:
    """By hand: Adam with beta2 0 divides by the gradient's size; one that has shrunk to 1e-14 is off by 8 units of 1."""
    unit = 2.0**-52
    program = made("adam", beta2=0)
    slots = {f"model/{n}": a for n, a in reference.initial_slots(program, program.updates[0]).items()}
    kernel = {"model/dense1.kernel": np.ones((2, 2))}
    first, second = ([kernel | {"model/dense1.bias": np.array([0.5, bias])}] for bias in (0.25, 1e-14))
    # As far apart as that after a step, they lie apart for what the step before did, which excuses nothing.
    second.append(kernel | {"model/dense1.bias": np.array([0.5, 1e-14 + 900 * unit])})
    found = rounding_moves(program, slots, [first, second], 3, unit, 0)

    def step(gradient: float) -> float:
        moment = (0.9 * 0.1 * 0.25 + 0.1 * gradient) / (1 - 0.9**5)
        return 0.1 * moment / (gradient + 1e-8)

    off = 1e-14 + SHAKEN_UNITS * unit
    assert found["1/state/dense1.bias"][1] == pytest.approx(step(1e-14) - step(off), rel=1e-3, abs=0)
    assert abs(found["1/state/dense1.bias"][1]) > 1e-8
    assert abs(found["0/state/dense1.bias"][1]) < 1e-14
    second[0]["model/dense1.bias"][0] = np.nan
    assert not any(name.startswith("1/") for name in rounding_moves(program, slots, [first, second], 3, unit, 0))


def test_a_tensor_that_is_rounding_in_every_backend_is_as_far_off_as_they_lie_apart_in_later_steps_too() -> None:
    """By hand: 0 in one backend, 2.8e-14 in another, where a normalisation multiplies what is left of a sum that cancels."""
    program = made("adam", beta2=0, epsilon=1e-8)
    slots = {f"model/{n}": a for n, a in reference.initial_slots(program, program.updates[0]).items()}
    kernel = {"model/dense1.kernel": np.ones((2, 2))}
    first = [kernel | {"model/dense1.bias": np.array([0.5, 0.25])}] * 2
    second = [kernel | {"model/dense1.bias": np.array([0.0, bias])} for bias in (0.0, 2.8e-14)]
    found = rounding_moves(program, slots, [first, second], 0, 2.0**-52, 0)
    moment = 0.9 * 0.1 * 0.25 / (1 - 0.9**2)
    assert abs(found["1/state/dense1.bias"][1]) == pytest.approx(
        0.1 * moment * (1e8 - 1 / (2.8e-14 + 1e-8)), rel=1e-4, abs=0
    )
    assert found["1/state/dense1.bias"][0] == 0, "nothing reaches it"
    second[1]["model/dense1.bias"][0] = 1e-9
    more = rounding_moves(program, slots, [first, second], 0, 2.0**-52, 0)
    assert abs(more["1/state/dense1.bias"][1]) < abs(found["1/state/dense1.bias"][1]) / 10, "not all of it is rounding"


@pytest.mark.parametrize(("unit", "bias", "rounding"), [(2.0**-52, 2e-13, True), (2.0**-23, 7.5e-6, False)])
def test_what_may_be_a_signal_in_float32_excuses_no_gradient_that_is_lost_in_a_later_step(
    unit: float, bias: float, rounding: bool
) -> None:
    """Of the largest, 900 units of float64 are 2e-13, and 63 of float32 are 7.5e-6. SGD moves by the rate times what it is off by."""
    program = made("sgd")
    said = [
        [{"model/dense1.kernel": np.ones((2, 2)), "model/dense1.bias": np.array([0.0, b])} for b in (0.0, bias)]
    ] * 2
    found = rounding_moves(program, {}, said, 0, unit, 0)
    assert abs(found["0/state/dense1.bias"][1]) == pytest.approx(0.1 * bias, rel=1e-3, abs=0), (
        "in the first step it is as far off as they lie apart"
    )
    later = bias if rounding else SHAKEN_UNITS * unit
    assert abs(found["1/state/dense1.bias"][1]) == pytest.approx(0.1 * later, rel=1e-3, abs=0)


@pytest.mark.parametrize(
    ("unit", "off"), [(2.0**-52, SHAKEN_UNITS * 2.0**-52), (2.0**-23, SHAKEN_UNITS * 2.0**-23 * 1e-9)]
)
def test_in_float64_the_rounding_of_a_gate_that_saturates_does_not_shrink_with_its_gradient(
    unit: float, off: float
) -> None:
    """1 in the first step, 1e-9 in the second. In float32 that would be more than the gradient itself, which may be a signal."""
    program = made("sgd")
    said = [[{"model/dense1.kernel": np.full((2, 2), g), "model/dense1.bias": np.array([g, g])}] for g in (1.0, 1e-9)]
    found = rounding_moves(program, {}, said, 0, unit, 0)
    assert np.abs(found["1/state/dense1.bias"]) == pytest.approx(np.full(2, 0.1 * off), rel=1e-3, abs=0)


def wide(inputs: int, rule: str, steps: int = 3) -> Program:
    """A layer of 1000 units."""
    return program_of(
        {
            "name": "wide", "data": {"dataset": "random", "examples": 4, "batch": 2, "fields": {"x": {"shape": [inputs]}}},
            "networks": {"net": {"layers": [{"dense": {"units": 1000, "bias": False}}]}},
            "training": {"steps": steps, "updates": [{"loss": {"mse": {"predictions": "net(x)", "targets": 0}}, "optimizer": {rule: {"learning_rate": 0.1}}}]},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "rule", "unit", "steps"),
    [
        (2, "adam", 2.0**-52, MOST_STEPS),
        (2, "adam", 2.0**-23, FIRST_STEPS),
        (600, "sgd", 2.0**-52, 5),  # 8 bytes of 600 * 1000 numbers, once as they move and once from each backend
        (600, "adam", 2.0**-52, 3),  # and of two slots
        (4000, "adam", 2.0**-23, LEAST_STEPS),
    ],
)
def test_as_many_steps_are_moved_as_there_is_room_for(inputs: int, rule: str, unit: float, steps: int) -> None:
    program = wide(inputs, rule)
    assert moved_steps(program, unit) == steps
    copies = 1 + len(BACKENDS) + (2 if rule == "adam" else 0)
    assert (inputs > 2000) or steps in (FIRST_STEPS, MOST_STEPS) or 8 * 1000 * inputs * copies * steps <= ROOM


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("rows", [None, 8])
def test_the_gradients_that_shaken_twins_are_made_of_are_recorded(precision: str, rows: int | None) -> None:
    """In evidence as well, and where states are kept at few steps."""
    for inputs in (2, 200):
        program = wide(inputs, "adam", steps=40)
        _, gradients = recorded_steps(program, Options(precision=precision, rows=rows), 7)
        first = moved_steps(program, float(np.finfo(precision).eps))
        assert set(range(7, 7 + first)) <= set(gradients)
        assert max(gradients) < 40


def test_every_update_of_a_step_is_off_by_rounding_and_a_parameter_by_all_that_move_it() -> None:
    """Plain SGD moves by the rate times what its gradient is off by: 8 units of the largest of the tensor."""
    unit = 2.0**-52
    update = {"loss": {"mse": {"predictions": "net(x)", "targets": 0}}}
    program = program_of(
        {
            "name": "two", "data": {"dataset": "random", "examples": 4, "batch": 2, "fields": {"x": {"shape": [2]}}},
            "networks": {"net": {"layers": [{"dense": {"units": 2, "name": "dense1", "bias": False}}]}},
            "training": {"steps": 3, "updates": [
                {"name": "a", **update, "optimizer": {"sgd": {"learning_rate": 0.5}}},
                {"name": "b", **update, "optimizer": {"sgd": {"learning_rate": 0.25, "momentum": 0.9}}},
            ]},
        }
    )  # fmt: skip
    slots = {f"{u.name}/{n}": a for u in program.updates for n, a in reference.initial_slots(program, u).items()}
    said = [[{"a/dense1.kernel": np.full((2, 2), 2.0), "b/dense1.kernel": np.full((2, 2), 4.0)}]]
    found = rounding_moves(program, slots, said, 0, unit, 0)
    said[0][0]["b/dense1.kernel"] *= -1
    opposed = rounding_moves(program, slots, said, 0, unit, 0)
    assert np.array_equal(np.abs(opposed["0/state/dense1.kernel"]), np.abs(found["0/state/dense1.kernel"])), (
        "none takes the other's away"
    )
    moved, slot = (np.abs(found[f"0/{n}/dense1.kernel"]) for n in ("state", "optimizer/b/velocity"))
    assert moved / (SHAKEN_UNITS * unit * (0.5 * 2 + 0.25 * 4)) == pytest.approx(np.ones((2, 2)), rel=1e-3, abs=0)
    assert slot / (SHAKEN_UNITS * unit * 4) == pytest.approx(np.ones((2, 2)), rel=1e-3, abs=0)


def test_a_tensor_that_is_rounding_is_as_far_off_as_its_updates_largest() -> None:
    found = first_moves("sgd", ([1e-17, 0.0], 1.0), ([0.0, 1e-17], 1.0))
    assert np.abs(found["state/dense1.bias"]) == pytest.approx(0.1 * SHAKEN_UNITS * 2.0**-52, rel=0.1, abs=0)


class Live:
    """A session that is a parameter, a statistic and a slot."""

    def __init__(self) -> None:
        self.now = {"w": np.array([1.0, 0.0]), "mean": np.array([2.0])}
        self.slots = {"model/first_moment/w": np.array([0.5, 0.5]), "model/count": np.array(3)}

    def state(self) -> dict[str, np.ndarray]:
        return dict(self.now)

    def optimizer_state(self) -> dict[str, np.ndarray]:
        return dict(self.slots)

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.now = arrays

    def load_optimizer(self, arrays: dict[str, np.ndarray]) -> None:
        self.slots = arrays


def test_a_shaken_position_is_added_to_and_moved() -> None:
    live = Live()
    shake(cast("Session", live), {"state/w": np.array([0.25, 0.0]), "optimizer/model/first_moment/w": np.ones(2)}, 0, 1)
    unit = np.spacing(1.25)
    assert abs(live.now["w"][0] - 1.25) == pytest.approx(SHAKEN_UNITS * unit, rel=1e-3, abs=0)
    assert live.now["w"][1] == 0, "what is exactly 0 stays"
    assert abs(live.now["mean"][0] - 2) == pytest.approx(SHAKEN_UNITS * np.spacing(2.0), rel=1e-3, abs=0)
    assert np.array_equal(live.slots["model/first_moment/w"], [1.5, 1.5])
    assert live.slots["model/count"] == 3
    assert live.slots["model/count"].dtype == np.array(3).dtype
    now, slots = live.now, live.slots
    shake(cast("Session", live), {}, 0, 1, units=0)
    assert all(np.array_equal(live.now[n], a) for n, a in now.items()), "loaded anew, and where it was"
    assert all(np.array_equal(live.slots[n], a) for n, a in slots.items())


def test_statistics_are_no_parameters() -> None:
    program = program_of_case("batch_norm")
    start = initial.parameters(program)
    assert np.array_equal(moved(program, start, 0)["norm1.variance"], start["norm1.variance"])


def yardstick(*twins: dict[str, list[float]], steps: tuple[int, ...] = (1, 2, 3)) -> Yardstick:
    found = Yardstick()
    for twin in twins:
        found.add({name: np.array(values) for name, values in twin.items()} | {"steps/loss": np.array(steps)})
    return found


def test_the_worst_twin_counts_and_one_that_comes_near_again_was_far() -> None:
    found = yardstick({"loss/net": [1e-7, 5e-7, 1e-9]}, {"loss/net": [3e-7, 2e-7, 1e-8]})
    assert [found.at("loss", "net", step) for step in (0, 1, 2, 3, 9)] == [0.0, 3e-7, 5e-7, 5e-7, 5e-7]
    assert found.at("loss", "other", 2) == found.at("state", "net", 2) == 0.0
    assert found.count == 2


def test_twins_that_stopped_sooner_count_up_to_there() -> None:
    found = Yardstick()
    found.add({"loss/net": np.array([1.0, 2.0]), "steps/loss": np.array([1, 2])})
    found.add({"loss/net": np.array([4.0]), "steps/loss": np.array([1])})
    assert [found.at("loss", "net", step) for step in (1, 2)] == [4.0, 4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_twin_that_is_no_number_allows_nothing(bad: float) -> None:
    assert yardstick({"loss/net": [1e-9, bad, bad]}).at("loss", "net", 3) == 1e-9


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=4))
def test_what_is_allowed_never_shrinks_with_steps_or_twins(twins: list[list[float]]) -> None:
    before = [0.0, 0.0, 0.0]
    for count in range(1, len(twins) + 1):
        found = yardstick(*({"loss/net": values} for values in twins[:count]))
        now = [found.at("loss", "net", step) for step in (1, 2, 3)]
        assert now == sorted(now)
        assert all(a <= b for a, b in zip(before, now, strict=True))
        assert now[2] == max(max(values) for values in twins[:count])
        before = now


def test_only_a_twin_that_came_to_its_end_is_read(tmp_path: Path) -> None:
    arrays = {"loss/net": np.array([1e-7]), "steps/loss": np.array([1])}
    found = Yardstick()
    assert not found.read(tmp_path)
    save_file(arrays, tmp_path / "distances.safetensors")
    assert not found.read(tmp_path), "its result is written last"
    (tmp_path / "result.json").write_text(json.dumps({"stopped_at": 3}))
    assert not found.read(tmp_path), "it left the numbers"
    (tmp_path / "result.json").write_text(json.dumps({"stopped_at": None}))
    assert found.read(tmp_path)
    assert (found.count, found.at("loss", "net", 1)) == (1, 1e-7)
    whole = (tmp_path / "distances.safetensors").read_bytes()
    (tmp_path / "distances.safetensors").write_bytes(whole[: len(whole) // 2])
    assert not found.read(tmp_path), "the disk was full"
    (tmp_path / "result.json").write_text('{"stopped_at"')
    assert not found.read(tmp_path)
    assert found.count == 1


def test_three_times_the_worst_twin_is_rounding_and_more_is_not() -> None:
    def beside(far: float, twin: float) -> object:
        tolerance = Measured(1e-10, twin=twin, times=TIMES)
        return compare("state", ("a", "b"), {"w": np.array([1.0])}, {"w": np.array([1.0 + far])}, {"w": tolerance})

    within, beyond, tight = beside(2.9e-8, 1e-8), beside(3.1e-8, 1e-8), beside(9e-11, 1e-8)
    assert (within.same, within.rounded) == (True, True)
    assert within.worst.times == pytest.approx(2.9, rel=1e-6, abs=0)
    assert (beyond.same, beyond.rounded) == (False, False)
    assert "3.1 times the worst twin" in str(beyond)
    assert (tight.same, tight.rounded, tight.worst.times) == (True, False, None)
    alone = beside(1e-9, 0.0)
    assert not alone.same, "a twin that did not move excuses nothing"
    assert alone.worst.times == float("inf")


def test_what_needed_twins_is_shown_before_what_came_nearer_to_a_tight_limit() -> None:
    tolerances = {"tight": Measured(1e-6, twin=0.0, times=3), "loose": Measured(1e-10, twin=1e-3, times=3)}
    a = {"tight": np.array([1.0]), "loose": np.array([1.0])}
    b = {"tight": np.array([1.0 + 9.9e-7]), "loose": np.array([1.0 + 1e-5])}
    found = compare("state", ("a", "b"), a, b, tolerances)
    assert found.rounded
    assert found.worst is not None
    assert found.worst.name == "loose"
    worse = compare("state", ("a", "b"), a, b | {"tight": np.array([1.0 + 2e-6])}, tolerances)
    assert not worse.same
    assert worse.worst is not None
    assert worse.worst.name == "tight"


def test_losses_are_held_beside_twins_step_by_step() -> None:
    found = yardstick({"loss/net": [1e-9, 1e-6, 1e-3]})

    def judge(gaps: list[float]) -> bool:
        a = {"net": [1.0, 1.0, 1.0]}
        b = {"net": [1.0 + gap for gap in gaps]}
        return compare_losses(
            ("a", "b"), a, b, lambda name, step: Measured(1e-10, twin=found.at("loss", name, step), times=TIMES)
        ).same

    assert judge([2e-9, 2e-6, 2e-3])
    assert not judge([2e-9, 4e-6, 2e-3])
    assert not judge([1e-3, 2e-6, 2e-3]), "what twins do later excuses nothing before"
    assert not judge([float("nan"), 0.0, 0.0])
    assert Tolerance(1e-10).allowed(np.array([1.0]), np.array([1.0])) == 1e-10


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        # 32 examples of 10 classes whose logits are 17 apart: the loss in float32 and in float64, by NumPy; of 14, and of 12.
        (8.83e-7, 9.11e-7, True), (2.1100e-5, 2.1106e-5, True), (4.2302e-4, 4.2303e-4, True),
        (8.83e-7, 1.3e-6, False), (1.0, 1.0 + 2e-5, False),
    ],
)  # fmt: skip
def test_a_small_loss_is_no_more_exact_than_the_sum_that_it_is_the_logarithm_of(
    one: float, other: float, same: bool
) -> None:
    """A twin whose loss has not moved: float32 forms 1 + sum(exp(...)), on a grid that a unit in the last place does not leave."""
    asked = Allowance(TOLERANCES["float32"], yardstick({"loss/net": [0.0]}, steps=(1,)), 2.0**-23)
    found = compare_losses(("reference", "torch"), {"net": [one]}, {"net": [other]}, partial(asked.of, "loss"))
    assert found.same is same
    before = Allowance(TOLERANCES["float32"], Yardstick(), 2.0**-23)
    assert not compare_losses(("a", "b"), {"net": [one]}, {"net": [other]}, partial(before.of, "loss")).same, (
        "float64 is asked"
    )
