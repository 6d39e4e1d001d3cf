"""What keeps its digits: ops and optimizers where a framework's own, or another way to write them, loses some."""

from pathlib import Path

import numpy as np
import pytest
from build import EACH, INSTALLED, live, program_of

from harness import reference
from harness.backend import SHAKEN_UNITS
from harness.expressions import Call, Name
from harness.questions import to_json

pytestmark = pytest.mark.frameworks


def made(layers: list[object], optimizer: dict[str, object] | None = None, **field: object) -> dict[str, object]:
    return {
        "name": "digits_kept", "data": {"dataset": "random", "examples": 8, "batch": 4, "fields": {"x": field}},
        "networks": {"net": {"layers": layers}},
        "training": {"steps": 4, "updates": [{"name": "model", "loss": {"mse": {"predictions": "net(x)", "targets": 0.5}}, "optimizer": optimizer or {"sgd": {"learning_rate": 0.1}}}]},
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("op", ["elu", "selu"])
@pytest.mark.parametrize("backend", EACH)
def test_a_linear_unit_keeps_its_digits_near_zero(backend: str, op: str, precision: str, tmp_path: Path) -> None:
    """By np.expm1 in long double; exp(x) - 1 is off by up to 1 / |x| units."""
    case = live(backend, program_of(made([op, "flatten", {"dense": 1}], shape=[8])), tmp_path, precision, observe=True)
    x = np.array([[0.0, -1e-1, -1e-3, -1e-5, -1e-7, 1e-7, -3.0, 2.0]], precision)
    said = case.session.values(to_json(Call("net", (Name("x"),))), {"x": x})
    (value,) = (a for n, a in said.items() if n.endswith(f".{op}1"))
    wide = x.astype(np.longdouble)
    expected = np.where(x > 0, wide, {"elu": 1, "selu": 1.6732632423543772}[op] * np.expm1(wide))
    expected *= 1 if op == "elu" else 1.0507009873554805
    assert np.all(np.abs(value - expected) <= 4 * np.finfo(precision).eps * np.abs(expected))


@pytest.mark.parametrize("rule", ["adam", "adamw"])
@pytest.mark.parametrize("backend", EACH)
def test_moments_of_adam_forget_a_larger_gradient(backend: str, rule: str, tmp_path: Path) -> None:
    """With beta2 0 the second moment is the last gradient's square, whatever the one before was: m + (g - m) is not g."""
    program = program_of(made([{"dense": 1}], {rule: {"learning_rate": 0.1, "beta1": 0.0, "beta2": 0.0}}, shape=[3]))
    case = live(backend, program, tmp_path)
    large = {
        n: np.ones_like(a) if n.endswith("/count") else np.full_like(a, 1e12)
        for n, a in case.session.optimizer_state().items()
    }
    case.session.load_optimizer(large)
    assert all(np.array_equal(a, large[n]) for n, a in case.session.optimizer_state().items()), "they are there"
    batch = case.session.batch(case.inputs, 0)
    gradients = case.session.gradients(batch)
    case.session.wait(case.session.step(0, batch))
    slots = case.session.optimizer_state()
    for name, gradient in gradients.items():
        plain = name.partition("/")[2]
        assert np.allclose(slots[f"model/first_moment/{plain}"], gradient, rtol=1e-12, atol=0)
        assert np.allclose(slots[f"model/second_moment/{plain}"], gradient**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", EACH)
def test_the_maximum_of_what_is_cheap_to_compute_again_has_a_gradient(backend: str, tmp_path: Path) -> None:
    """XLA on CPUs computed it again, rounded otherwise: nothing equalled the maximum, in 163 of 200 draws without the barrier."""
    norm = {"batch_norm": {"bias": False}}
    layers = [norm, norm, {"upsample2d": [8, 3]}, "global_max_pool"]
    case = live(backend, program_of(made(layers, shape=[1, 1, 2])), tmp_path, "float32")
    rng = np.random.default_rng(0)
    for _ in range(10):
        data = case.inputs | {"train.x": rng.standard_normal(case.inputs["train.x"].shape).astype(np.float32)}
        gradients = case.session.gradients(case.session.batch(data, 0))
        assert all(np.isfinite(a).all() for a in gradients.values())


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("backend", EACH)
def test_a_value_off_by_rounding_goes_either_way_by_its_bits_and_its_gradient_alike(
    backend: str, precision: str
) -> None:
    numbers = np.random.default_rng(0).standard_normal(4000) * 10.0 ** np.arange(-12, 8).repeat(200)
    value = np.concatenate([[0.0, -0.0], numbers, 2.0 ** np.arange(-20, 20), numbers[:5]]).astype(precision)
    found, gradient = _off(backend, value)
    assert found.dtype == value.dtype
    assert not np.any(found[:2])
    assert np.isfinite(gradient).all()
    share = (found[2:].astype(np.float64) - value[2:]) / value[2:] / np.finfo(precision).eps
    assert np.all(np.abs(np.abs(share) - SHAKEN_UNITS) <= 0.5)
    assert abs(np.mean(share > 0) - 0.5) < 0.05
    assert 0.25 < np.mean(share[-45:-5] > 0) < 0.75, "powers of 2, too"
    assert np.array_equal(share[-5:], share[:5]), "equal numbers go the same way"
    assert np.allclose(
        gradient[2:].astype(np.float64) - 1, share * np.finfo(precision).eps, atol=np.finfo(precision).eps / 2
    )


@pytest.mark.parametrize("backend", EACH)
def test_a_number_that_is_none_of_a_framework_is_left(backend: str) -> None:
    assert np.array_equal(_off(backend, np.arange(5))[0], np.arange(5))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("backend", EACH)
def test_what_is_centred_moves_by_a_unit_and_equal_numbers_go_both_ways_whatever_they_are_and_wherever(
    backend: str, precision: str
) -> None:
    for number in (0.3, -7.0, 2.0**-40, 1e8):
        value = np.full((20, 5, 40), number, precision)
        found, _ = _off(backend, value, centred=True)
        up = np.abs(found) > np.abs(value)
        units = np.abs(found.astype(np.float64) / value - 1) / np.finfo(precision).eps
        assert np.all(np.abs(units - 1) <= 0.5)
        assert all(abs(np.mean(along) - 0.5) < 0.2 for axis in range(3) for along in np.moveaxis(up, axis, 0))
    assert not np.any(_off(backend, np.zeros(9, precision), centred=True)[0]), "zeros stay"


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("backend", EACH)
def test_a_gradient_that_is_made_from_a_value_is_off_by_as_much_of_what_arrives(backend: str, precision: str) -> None:
    """Near 1 as far as the value; near 0, where nothing is lost, by as much less. The value itself stands for what is read."""
    value = np.array([0.5, 1.0, -0.25, 1e-6, 0.0]).astype(precision)
    plain, gradient = _off(backend, value)
    found, passed = _off(backend, value, read=True)
    assert np.array_equal(found, plain)
    unit = np.finfo(precision).eps
    units = (passed.astype(np.float64) - gradient.astype(np.float64)) / unit
    way = np.sign(plain[:4].astype(np.float64) - value[:4]) * np.sign(value[:4])
    assert np.abs(units - SHAKEN_UNITS * np.append(way, 0) * value).max() <= 1
    assert np.abs(units[:3]).min() >= 1, "moved at all"
    assert units[3] == units[4] == 0


def _off(
    backend: str, value: np.ndarray, *, centred: bool = False, read: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A value off by rounding, and the gradient of its sum."""
    if backend == "torch":
        import torch  # noqa: PLC0415 - where it is installed

        from backends.torch.session import off_by_rounding as of_torch  # noqa: PLC0415

        tensor = torch.tensor(value, requires_grad=value.dtype.kind == "f")
        found = of_torch(tensor, centred=centred, read=tensor if read else None)
        if value.dtype.kind == "f":
            found.sum().backward()
        return found.detach().numpy(), np.zeros(0) if tensor.grad is None else tensor.grad.numpy()
    if backend == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415

        from backends.tensorflow.session import off_by_rounding as of_tensorflow  # noqa: PLC0415

        constant = tf.constant(value)
        with tf.GradientTape() as tape:
            tape.watch(constant)
            said = of_tensorflow(constant, centred=centred, read=constant if read else None)
        return said.numpy(), tape.gradient(said, constant).numpy() if value.dtype.kind == "f" else np.zeros(0)
    import jax  # noqa: PLC0415

    from backends.jax.session import off_by_rounding as of_jax  # noqa: PLC0415

    with jax.enable_x64(True):
        array = jax.numpy.asarray(value)
        gradient = (
            jax.grad(lambda x: of_jax(x, centred=centred, read=x if read else None).sum())(array)
            if value.dtype.kind == "f"
            else np.zeros(0)
        )
        return np.asarray(
            jax.jit(of_jax, static_argnames="centred")(array, centred=centred, read=array if read else None)
        ), np.asarray(gradient)


@pytest.mark.skipif("torch" not in INSTALLED, reason="PyTorch is not installed")
def test_a_whole_step_goes_on_where_two_optimizers_move_one_parameter(tmp_path: Path) -> None:
    """Each optimizer's slots are its own: by parameter alone, those of the last one stood for both."""
    spec = made([{"dense": 1}], shape=[3])
    update = spec["training"]["updates"][0]  # type: ignore[index]
    rules = ({"adam": {"learning_rate": 0.1}}, {"sgd": {"learning_rate": 0.1, "momentum": 0.5}})
    spec["training"]["updates"] = [update | {"name": f"update{i}", "optimizer": rule} for i, rule in enumerate(rules)]  # type: ignore[index]
    case = live("torch", program_of(spec), tmp_path, strategy="whole")
    batch = case.session.batch(case.inputs, 0)
    fresh = case.session.optimizer_state()
    case.session.wait(case.session.step(0, batch))
    first = case.session.state() | case.session.optimizer_state()
    case.session.load(case.parameters)
    case.session.load_optimizer(fresh)
    case.session.wait(case.session.step(0, batch))
    again = case.session.state() | case.session.optimizer_state()
    assert all(np.array_equal(again[n], a) for n, a in first.items())
    program = program_of(spec)
    kept = reference.initial_slots(program, program.updates[1])
    assert any(np.any(first[f"update1/{n}"]) for n in kept)
