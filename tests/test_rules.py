"""The reference of optimizers, schedules and clips: against closed forms, and every backend's training against it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import EACH, live, program_of
from test_optimizer_state import RULES, program_with

from harness import api, reference
from harness.optimizers import Adam, AdamW, Clip, ClipValue, GlobalNorm, Optimizer, Sgd

Array = np.ndarray[Any, np.dtype[Any]]
RATE = 0.1


def train(
    rule: Optimizer, gradients: list[Array], start: Array, *, decays: bool = True
) -> tuple[Array, dict[str, Array]]:
    """A parameter after an update for each gradient, and what the rule then remembers."""
    parameter, slots = start, {name: np.zeros_like(start) for name in rule.remembers}
    for t, gradient in enumerate(gradients):
        parameter, slots = rule.reference(gradient, parameter, slots, t, RATE, decays=decays)
    return parameter, slots


START, SLOPE = np.array([1.0, -2.0, 0.5]), np.array([0.5, -0.25, 2.0])


def near(a: Array, b: Array) -> bool:
    return bool(np.max(np.abs(a - b)) < 1e-14)


def test_plain_descent_moves_by_rate_times_gradient() -> None:
    moved, slots = train(Sgd(learning_rate=RATE), [SLOPE, 2 * SLOPE], START)
    assert near(moved, START - 0.3 * SLOPE)
    assert slots == {}


@pytest.mark.parametrize("updates", [1, 2, 7])
def test_momentum_under_a_constant_gradient_is_a_geometric_sum(updates: int) -> None:
    m = 0.9
    moved, slots = train(Sgd(learning_rate=RATE, momentum=m), [SLOPE] * updates, START)
    assert near(slots["velocity"], SLOPE * (1 - m**updates) / (1 - m))
    travelled = (updates - m * (1 - m**updates) / (1 - m)) / (1 - m)
    assert near(moved, START - RATE * SLOPE * travelled)


def test_nesterov_by_hand() -> None:
    # v = 2, step 2 + 0.5·2 = 3; v = 0.5·2 + 4 = 5, step 4 + 0.5·5 = 6.5.
    gradients = [np.array([2.0]), np.array([4.0])]
    moved, slots = train(Sgd(learning_rate=RATE, momentum=0.5, nesterov=True), gradients, np.array([10.0]))
    assert near(moved, np.array([10 - 0.3 - 0.65]))
    assert near(slots["velocity"], np.array([5.0]))


@pytest.mark.parametrize("updates", [1, 2, 50])
def test_adam_under_a_constant_gradient_moves_by_its_sign_but_for_epsilon(updates: int) -> None:
    epsilon = 0.5  # large, so that its place shows
    moved, slots = train(Adam(learning_rate=RATE, beta1=0.8, beta2=0.95, epsilon=epsilon), [SLOPE] * updates, START)
    assert near(moved, START - updates * RATE * SLOPE / (np.abs(SLOPE) + epsilon))
    assert near(slots["first_moment"], SLOPE * (1 - 0.8**updates))
    assert near(slots["second_moment"], SLOPE**2 * (1 - 0.95**updates))


def test_adam_by_hand() -> None:
    # m = 0.5, v = 0.25: 1 / (1 + 1) ; m = 0.5·0.5 + 0.5·3 = 1.75, /0.75; v = 0.75·0.25 + 0.25·9 = 2.4375, /0.4375.
    rule = Adam(learning_rate=RATE, beta1=0.5, beta2=0.75, epsilon=1.0)
    moved, _ = train(rule, [np.array([1.0]), np.array([3.0])], np.array([0.0]))
    second = (1.75 / 0.75) / (math.sqrt(2.4375 / 0.4375) + 1)
    assert near(moved, np.array([-0.1 * 0.5 - 0.1 * second]))


def test_adam_without_memory_divides_each_gradient_by_its_magnitude() -> None:
    rule = Adam(learning_rate=RATE, beta1=0.0, beta2=0.0, epsilon=1e-37)
    moved, _ = train(rule, [SLOPE, -3 * SLOPE], START)
    assert near(moved, START)


def test_decay_is_decoupled_and_shrinks_the_parameter_before_the_update() -> None:
    rule = AdamW(learning_rate=RATE, weight_decay=0.3, epsilon=0.5)
    updates, sign, left = 5, SLOPE / (np.abs(SLOPE) + 0.5), 1 - RATE * 0.3
    moved, slots = train(rule, [SLOPE] * updates, START)
    assert near(moved, START * left**updates - RATE * sign * (1 - left**updates) / (1 - left))
    assert near(slots["first_moment"], SLOPE * (1 - 0.9**updates)), "decay is no part of the gradient"
    spared, _ = train(rule, [SLOPE] * updates, START, decays=False)
    assert near(spared, START - updates * RATE * sign)


def test_a_global_norm_is_that_of_all_gradients_together() -> None:
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0], [12.0]])}  # norm 13
    clipped = GlobalNorm(limit=6.5).reference(gradients)
    assert near(clipped["a"], np.array([1.5, 0.0]))
    assert near(clipped["b"], np.array([[2.0], [6.0]]))
    within = GlobalNorm(limit=13.5).reference(gradients)
    assert all(np.array_equal(within[name], gradients[name]) for name in gradients), "a bound is no goal"
    zero = {"a": np.zeros(3)}
    assert np.array_equal(GlobalNorm(limit=1.0).reference(zero)["a"], zero["a"])


def test_values_are_clipped_one_by_one() -> None:
    clipped = ClipValue(limit=1.0).reference({"a": np.array([-3.0, 0.5, 1.5])})
    assert np.array_equal(clipped["a"], np.array([-1.0, 0.5, 1.0]))


def test_every_rule_and_clip_has_a_reference() -> None:
    from harness.optimizers import CLIPS, OPTIMIZERS  # noqa: PLC0415

    assert all("reference" in vars(cls) and cls.slots for cls in OPTIMIZERS)
    assert all(cls.reference is not Clip.reference for cls in CLIPS)


def test_a_whole_update_clips_then_schedules_then_spares() -> None:
    program = program_with("adamw, clipped")
    (update,) = program.updates
    parameters = {name: np.full(p.shape, 2.0) for name, p in program.parameters.items()}
    gradients = {name: np.ones(p.shape) for name, p in program.parameters.items()}
    slots = reference.initial_slots(program, update)
    still, slots = reference.apply_update(update, parameters, gradients, slots, 0)
    assert all(np.array_equal(still[name], parameters[name]) for name in parameters), "a warm-up from 0 moves nothing"
    count = sum(g.size for g in gradients.values())
    clipped = 0.05 / math.sqrt(count)
    assert near(slots["first_moment/dense1.bias"], np.full((4,), 0.1 * clipped))
    moved, _ = reference.apply_update(update, still, gradients, slots, 1)
    sign = clipped / (clipped + 0.01)
    assert near(moved["dense1.bias"], np.full((4,), 2 - 0.015 * sign))
    assert near(moved["dense1.kernel"], np.full((4, 4), 2 - 0.015 * (sign + 0.3 * 2)))


def test_an_update_touches_its_own_networks_alone_and_decays_by_full_names() -> None:
    program = api.load("digits_gan").compile(3)
    discriminator, generator = program.updates
    names = reference.moved(program, discriminator)
    assert names
    assert all(name.startswith("discriminator.") for name in names)
    assert not set(names) & set(reference.moved(program, generator))
    parameters = {name: np.ones(p.shape) for name, p in program.parameters.items()}
    gradients = {name: np.ones(program.parameters[name].shape) for name in names}
    slots = reference.initial_slots(program, discriminator)
    moved, _ = reference.apply_update(discriminator, parameters, gradients, slots, 0)
    assert {name for name in moved if np.any(moved[name] != parameters[name])} == set(names)
    with pytest.raises(ValueError, match="do not belong together"):
        reference.apply_update(discriminator, parameters, gradients, {}, 0)


TWO = {
    "name": "two", "seed": 5,
    "data": {"dataset": "inline", "values": {"x": [[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]], "y": [[1.0], [0.0], [1.0]]}, "batch": 3},
    "networks": {"first": {"layers": [{"dense": 3}, "tanh"]}, "second": {"layers": [{"dense": 1}]}},
    "training": {"steps": 5, "updates": [
        {"name": "down", "over": "second", "loss": {"mse": {"predictions": "second(first(x))", "targets": "y"}},
         "optimizer": {"adamw": {"learning_rate": 0.05, "weight_decay": 0.4, "no_decay": ["second.*.kernel"]}}},
        {"name": "up", "over": ["first", "second"], "loss": {"mae": {"predictions": "second(first(x))", "targets": "y"}},
         "optimizer": {"sgd": {"learning_rate": 0.05, "momentum": 0.5}}, "clip": {"global_norm": 0.1}},
    ]},
}  # fmt: skip
"""Two updates that share a network; decay is spared by a pattern of full names."""


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("rule", RULES)
def test_every_update_of_a_backend_is_the_references_of_its_own_gradients(
    backend: str, rule: str, tmp_path: Path
) -> None:
    program = program_with(rule)
    (update,) = program.updates
    case = live(backend, program, tmp_path)
    parameters, slots = case.session.state(), reference.initial_slots(program, update)
    worst = 0.0
    for t in range(5):
        batch = case.session.batch(case.inputs, t)
        gradients = {n.removeprefix("net/"): a for n, a in case.session.gradients(batch).items()}
        assert all(np.any(g) for g in gradients.values())
        before = parameters
        parameters, slots = reference.apply_update(update, parameters, gradients, slots, t)
        case.session.wait(case.session.step(t, batch))
        state, held = case.session.state(), case.session.optimizer_state()
        assert held.pop("net/count") == t + 1
        assert state.keys() == parameters.keys()
        assert held.keys() == {f"net/{name}" for name in slots}
        gaps = [np.max(np.abs(state[n] - a)) for n, a in parameters.items()]
        gaps += [np.max(np.abs(held[f"net/{n}"] - a)) for n, a in slots.items()]
        worst = max(worst, *gaps)
        assert t == 0 or max(np.max(np.abs(parameters[n] - before[n])) for n in before) > 1e-4, "nothing moved"
    assert worst < 1e-12


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
def test_updates_in_turn_are_the_references_and_spare_by_full_names(backend: str, tmp_path: Path) -> None:
    program = program_of(TWO)
    case, probe = (live(backend, program, tmp_path) for _ in range(2))
    parameters = case.session.state()
    slots = {u.name: reference.initial_slots(program, u) for u in program.updates}
    down, up = program.updates
    assert isinstance(down.optimizer, AdamW)
    assert [n for n in reference.moved(program, down) if down.optimizer.decays(n)] == ["second.dense1.bias"]
    for t in range(5):
        batch = case.session.batch(case.inputs, t)
        first = {n.removeprefix("down/"): a for n, a in case.session.gradients(batch).items() if n.startswith("down/")}
        parameters, slots["down"] = reference.apply_update(down, parameters, first, slots["down"], t)
        # The second update sees what the first moved: its gradients are those at that point.
        probe.session.load(parameters)
        second = {n.removeprefix("up/"): a for n, a in probe.session.gradients(batch).items() if n.startswith("up/")}
        parameters, slots["up"] = reference.apply_update(up, parameters, second, slots["up"], t)
        case.session.wait(case.session.step(t, batch))
        state, held = case.session.state(), case.session.optimizer_state()
        for name, array in parameters.items():
            assert np.max(np.abs(state[name] - array)) < 1e-12, f"{name} at {t + 1}"
        for name, own in slots.items():
            for slot, array in own.items():
                assert np.max(np.abs(held[f"{name}/{slot}"] - array)) < 1e-12, f"{name}/{slot} at {t + 1}"


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("momentum", {"optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.8, "nesterov": True}}}),
        ("nesterov, cosine", {"schedule": {"cosine": {"steps": 5, "final": 0.2}}}),
        ("adam, warm-up", {"optimizer": {"adam": {"learning_rate": 0.03, "epsilon": 1e-7}}}),
        ("adamw, clipped", {"clip": {"value": 0.05}}),
        ("adamw that spares nothing", {"optimizer": {"adamw": {"learning_rate": 0.03, "weight_decay": 0.3}}}),
    ],
)
def test_another_rule_is_not_taken_for_the_backends(
    backend: str, rule: str, fault: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = live(backend, program_with(rule), tmp_path)
    monkeypatch.setitem(RULES, rule, RULES[rule] | fault)
    program = program_with(rule)
    (update,) = program.updates
    parameters, slots = case.session.state(), reference.initial_slots(program, update)
    for t in range(5):
        batch = case.session.batch(case.inputs, t)
        gradients = {n.removeprefix("net/"): a for n, a in case.session.gradients(batch).items()}
        parameters, slots = reference.apply_update(update, parameters, gradients, slots, t)
        case.session.wait(case.session.step(t, batch))
    state = case.session.state()
    assert max(np.max(np.abs(state[n] - a)) for n, a in parameters.items()) > 1e-10
