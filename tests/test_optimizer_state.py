"""Optimizer state crosses frameworks: canonical names, zeros at the start, and the next step as if nothing had happened."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import EACH, INSTALLED, Live, live, program_of
from cases import CASES, spec_of

from harness.graph import Program
from harness.optimizers import Adam, Sgd

pytestmark = pytest.mark.frameworks

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"sgd": {"learning_rate": 0.1}}},
    "sgd, steps": {"optimizer": {"sgd": {"learning_rate": 0.1}}, "schedule": {"step": {"every": 2, "multiply_by": 0.5}}},
    "momentum": {"optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.8}}, "clip": {"value": 0.05}},
    "nesterov, cosine": {
        "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.8, "nesterov": True}}, "schedule": {"cosine": {"steps": 4, "final": 0.2}},
    },
    "adam, warm-up": {"optimizer": {"adam": {"learning_rate": 0.03}}, "schedule": {"constant": {"warmup": 4, "warmup_start": 0.25}}},
    "adamw, clipped": {
        "optimizer": {"adamw": {"learning_rate": 0.03, "weight_decay": 0.3, "epsilon": 0.01}}, "clip": {"global_norm": 0.05},
        "schedule": {"cosine": {"warmup": 2}},
    },
    "adamw that spares nothing": {"optimizer": {"adamw": {"learning_rate": 0.03, "weight_decay": 0.3, "no_decay": []}}},
}  # fmt: skip


def program_with(rule: str, steps: int = 6) -> Program:
    """A small network trained by one rule."""
    text = json.loads(json.dumps(spec_of(CASES["dense"])))
    text["networks"]["net"]["layers"] = [{"dense": 4}, "tanh", {"dense": 1}]
    text["data"]["values"]["y"] = [[float(i % 2)] for i in range(8)]
    text["training"]["updates"] = [{"loss": {"mse": {"predictions": "net(x)", "targets": "y"}}, **RULES[rule]}]
    return program_of(text, steps=steps)


def advance(case: Live, first: int, last: int) -> list[dict[str, float]]:
    session = case.session
    return [session.wait(session.step(t, session.batch(case.inputs, t))) for t in range(first, last)]


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype, name
        assert array.tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("rule", RULES)
def test_a_loaded_optimizer_goes_on_bit_for_bit(backend: str, rule: str, tmp_path: Path) -> None:
    program = program_with(rule)
    whole, half = (live(backend, program, tmp_path) for _ in range(2))
    start = whole.session.optimizer_state()
    slots = {Sgd: ["velocity"] if "momentum" in str(RULES[rule]) else []}.get(
        type(program.updates[0].optimizer), ["first_moment", "second_moment"]
    )
    assert set(start) == {"net/count"} | {f"net/{s}/{n}" for s in slots for n in program.parameters}
    assert not any(np.any(array) for array in start.values())
    assert start["net/count"].dtype == np.int64
    assert start["net/count"].shape == ()
    advance(whole, 0, 3)
    kept, held = whole.session.state(), whole.session.optimizer_state()
    assert held["net/count"] == 3
    assert all(np.any(array) for array in held.values()), "a slot that stays zero shows nothing"
    expected = advance(whole, 3, 6)
    half.session.load(kept)
    half.session.load_optimizer(held)
    assert_equal(half.session.optimizer_state(), held)
    assert advance(half, 3, 6) == expected
    assert_equal(half.session.state(), whole.session.state())
    assert_equal(half.session.optimizer_state(), whole.session.optimizer_state())
    if slots:
        # The fault that this must catch: an optimizer that begins anew.
        half.session.load(kept)
        half.session.load_optimizer(start)
        advance(half, 3, 6)
        assert any(np.any(half.session.state()[n] != a) for n, a in whole.session.state().items())


@pytest.mark.parametrize("backend", EACH)
def test_the_state_of_every_spec_that_is_bundled_is_found_whole(backend: str, tmp_path: Path) -> None:
    from harness import api  # noqa: PLC0415

    for name in ("digits_gan", "char_transformer", "digits_lstm"):
        program = api.load(name).compile(4)
        case, again = (live(backend, program, tmp_path) for _ in range(2))
        advance(case, 0, 2)
        held, kept = case.session.optimizer_state(), case.session.state()
        want = {f"{u.name}/count" for u in program.updates}
        for update in program.updates:
            assert isinstance(update.optimizer, Adam)
            own = [n for n, p in program.parameters.items() if p.learned]
            if len(program.networks) > 1:
                own = [n for n in own if n.partition(".")[0] in update.over]
            want |= {f"{update.name}/{slot}/{n}" for n in own for slot in ("first_moment", "second_moment")}
        assert set(held) == want
        for key, array in held.items():
            if not key.endswith("/count"):
                assert array.shape == program.parameters[key.split("/")[2]].shape, key
        again.session.load(kept)
        again.session.load_optimizer(held)
        assert advance(again, 2, 4) == advance(case, 2, 4)
        assert_equal(again.session.state(), case.session.state())
        assert_equal(again.session.optimizer_state(), case.session.optimizer_state())


@pytest.mark.parametrize("rule", RULES)
def test_optimizer_state_goes_from_framework_to_framework(rule: str, tmp_path: Path) -> None:
    program = program_with(rule)
    cases = {backend: live(backend, program, tmp_path) for backend in INSTALLED}
    for first, other in zip(INSTALLED, (*INSTALLED[1:], INSTALLED[0]), strict=True):
        whole, relay = live(first, program, tmp_path), cases[other]
        advance(whole, 0, 3)
        relay.session.load(whole.session.state())
        relay.session.load_optimizer(whole.session.optimizer_state())
        advance(whole, 3, 6)
        advance(relay, 3, 6)
        for a, b in (
            (whole.session.state(), relay.session.state()),
            (whole.session.optimizer_state(), relay.session.optimizer_state()),
        ):
            assert a.keys() == b.keys()
            for name in a:
                assert np.max(np.abs(a[name] - b[name])) < 1e-13, f"{first} to {other}: {name}"


@pytest.mark.parametrize("backend", EACH)
def test_another_programs_optimizer_state_is_refused(backend: str, tmp_path: Path) -> None:
    case = live(backend, program_with("momentum"), tmp_path)
    state = case.session.optimizer_state()
    with pytest.raises(RuntimeError, match=r"net/velocity/dense1.bias is missing in it and \(4,\) in the program"):
        case.session.load_optimizer({n: a for n, a in state.items() if n != "net/velocity/dense1.bias"})
    with pytest.raises(RuntimeError, match=r"net/velocity/dense1.bias is \(3,\) in it"):
        case.session.load_optimizer(state | {"net/velocity/dense1.bias": np.zeros(3)})
