"""Every op on every backend: forward, gradients and one training step against the float64 reference."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from build import EACH, INSTALLED, Arrays, Live, drawn, live, program_of
from cases import CASES, ONE_A_WORD, spec_of

from harness import initial, reference
from harness.expressions import Call, Name
from harness.invariance import zero_gradient
from harness.judge import first_batch
from harness.questions import to_json

pytestmark = pytest.mark.frameworks
CLOSE = 1e-11
"""Of a tensor's largest magnitude, or of 1: rounding in float64, with room for long sums."""


@pytest.fixture(scope="module")
def sessions() -> dict[tuple[str, str], Live]:
    return {}


def started(sessions: dict[tuple[str, str], Live], backend: str, name: str, tmp_path: Path) -> Live:
    if (backend, name) not in sessions:
        sessions[backend, name] = live(backend, program_of(spec_of(CASES[name])), tmp_path)
    found = sessions[backend, name]
    found.session.load(found.parameters)
    return found


def assert_near(a: np.ndarray, b: np.ndarray, what: str, close: float = CLOSE) -> None:
    assert a.shape == b.shape, what
    assert np.isfinite(a).all(), what
    gap = np.max(np.abs(a - b), initial=0.0) / max(1.0, np.max(np.abs(b), initial=0.0))
    assert gap <= close, f"{what}: {gap:.3g} apart"


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ONE_A_WORD else pytest.mark.slow) for name in CASES]
)
def test_forward_in_evaluation_equals_the_reference(
    backend: str, name: str, sessions: dict[tuple[str, str], Live], tmp_path: Path
) -> None:
    case = started(sessions, backend, name, tmp_path)
    expression = Call("net", (Name("x"),))
    fields = {"x": case.inputs["train.x"]}
    expected = reference.evaluate(case.program, expression, case.parameters, fields)
    assert_near(case.session.evaluate(to_json(expression), fields), expected, name)


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("name", CASES)
def test_training_loss_and_statistics_equal_the_reference(
    backend: str, name: str, sessions: dict[tuple[str, str], Live], tmp_path: Path
) -> None:
    case = started(sessions, backend, name, tmp_path)
    batch, masks = first_batch(case.program, case.inputs, drawn(case.inputs), 0)
    update = case.program.updates[0]
    expected = reference.loss(case.program, update, case.parameters, batch, masks)
    _, statistics = reference.forward(
        case.program.networks["net"], (batch["x"],), case.parameters, training=True, masks=masks.get("net")
    )
    told = case.session.wait(case.session.step(0, case.session.batch(case.inputs, 0)))
    assert_near(np.array(told["net"]), np.array(expected), name)
    state = case.session.state()
    assert {n for n, p in case.program.parameters.items() if not p.learned} == set(statistics)
    for statistic, value in statistics.items():
        assert_near(state[statistic], value, f"{name} {statistic}")


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_A_WORD else pytest.mark.slow)
        for name, case in CASES.items()
        if not case.rounded
    ],
)
def test_gradients_equal_finite_differences_of_the_reference(
    backend: str, name: str, sessions: dict[tuple[str, str], Live], tmp_path: Path
) -> None:
    case = started(sessions, backend, name, tmp_path)
    gradients = case.session.gradients(case.session.batch(case.inputs, 0))
    learned = [n for n, p in case.program.parameters.items() if p.learned]
    assert set(gradients) == {f"net/{n}" for n in learned}
    for parameter in learned:
        assert gradients[f"net/{parameter}"].shape == case.parameters[parameter].shape
        slope, expected = directional(case, parameter, gradients[f"net/{parameter}"])
        assert abs(slope - expected) <= 2e-7 * max(1.0, abs(expected)), f"{name} {parameter}: {slope} and {expected}"
    alive = [g for n, g in gradients.items() if n.partition("/")[2] not in zero_gradient(case.program)]
    assert all(np.any(g) for g in alive), "a gradient that is zero everywhere checks nothing"


def directional(case: Live, parameter: str, gradient: np.ndarray) -> tuple[float, float]:
    """The gradient along a random direction, and the reference's slope there by central differences."""
    batch, masks = first_batch(case.program, case.inputs, drawn(case.inputs), 0)
    direction = initial.stream(1, parameter).standard_normal(gradient.shape)
    width = 1e-5

    def loss(shift: float) -> float:
        moved = case.parameters | {parameter: case.parameters[parameter] + shift * direction}
        return reference.loss(case.program, case.program.updates[0], moved, batch, masks)

    return float(np.sum(gradient * direction)), (loss(width) - loss(-width)) / (2 * width)


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize(
    ("name", "slope"),
    [("relu", 0.0), ("leaky_relu", 0.3), ("elu", 0.5), ("selu", 1.6732632423543772 * 1.0507009873554805)],
)
def test_the_gradient_at_a_kink_is_the_documented_one(
    backend: str, name: str, slope: float, sessions: dict[tuple[str, str], Live], tmp_path: Path
) -> None:
    case = started(sessions, backend, f"{name} at the kink", tmp_path)
    x = case.inputs["train.x"]
    assert (x == 0).any(), "the case does not meet the kink"
    expression = Call("net", (Name("x"),))
    y = reference.evaluate(case.program, expression, case.parameters, {"x": x})
    above, below = {
        "relu": (1.0, 0.0),
        "leaky_relu": (1.0, 0.3),
        "elu": (1.0, 0.5),
        "selu": (1.0507009873554805, None),
    }[name]
    local = np.where(x > 0, above, np.where(x == 0, slope, below if below is not None else 0.0))
    if name == "elu":
        local = np.where(x < 0, 0.5 * np.exp(x), local)
    if name == "selu":
        local = np.where(x < 0, slope * np.exp(x), local)
    expected = (2 * (y - 0.25) / y.size * local).sum(axis=0)
    gradients = case.session.gradients(case.session.batch(case.inputs, 0))
    assert_near(gradients["net/dense1.bias"], expected, name)


@pytest.mark.parametrize("backend", EACH)
def test_measuring_gradients_and_evaluating_change_nothing(
    backend: str, sessions: dict[tuple[str, str], Live], tmp_path: Path
) -> None:
    case = started(sessions, backend, "batch_norm", tmp_path)
    before = case.session.state()
    case.session.gradients(case.session.batch(case.inputs, 0))
    case.session.evaluate(to_json(Call("net", (Name("x"),))), {"x": case.inputs["train.x"]})
    after: Arrays = case.session.state()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert np.array_equal(after[name], value), name


@pytest.mark.parametrize("backend", EACH)
def test_loading_a_table_that_the_model_does_not_have_is_refused(
    backend: str, sessions: dict[tuple[str, str], Live], tmp_path: Path
) -> None:
    case = live(backend, program_of(spec_of(CASES["dense"])), tmp_path)
    module = case.session.module  # type: ignore[attr-defined]
    del module.PARAMETERS["dense1.bias"]
    with pytest.raises(RuntimeError, match="disagree"):
        type(case.session)(module, __import__("harness.runs", fromlist=["describe"]).describe(case.program))


MISFITS = {
    "one number": (lambda a: a | {"dense1.kernel": a["dense1.kernel"][:1, :1]}, r"dense1\.kernel: the model has \(4, 3\).*\(1, 1\)"),
    "a vector": (lambda a: a | {"dense1.kernel": a["dense1.kernel"][0]}, r"dense1\.kernel: the model has \(4, 3\).*\(3,\)"),
    "transposed": (lambda a: a | {"dense1.kernel": a["dense1.kernel"].T}, r"dense1\.kernel: the model has \(4, 3\).*\(3, 4\)"),
    "another dtype": (lambda a: a | {"dense1.bias": a["dense1.bias"].astype(np.float16)}, r"dense1\.bias: the model has \(3,\).*float16"),
    "a name too few": (lambda a: {n: v for n, v in a.items() if n != "dense1.bias"}, r"\['dense1\.bias'\]"),
    "a name too many": (lambda a: a | {"dense1.scale": a["dense1.bias"]}, r"\['dense1\.scale'\]"),
}  # fmt: skip
"""Arrays that are not those of the case `dense`, and what a program says of them."""
OWN = ("torch fused", "tensorflow function", "jax jit", "jax nnx")


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", OWN)
def test_a_program_refuses_arrays_that_are_not_its_models(name: str, precision: str, tmp_path: Path) -> None:
    backend, strategy = name.split()
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    case = live(backend, program_of(spec_of(CASES["dense"])), tmp_path, precision, strategy=strategy)
    module, before = case.session.module, case.session.state()  # type: ignore[attr-defined]
    held = getattr(case.session, "live_model", None) or case.session.model  # type: ignore[attr-defined]
    load = module.load_parameters if name == "jax jit" else partial(module.load_parameters, held)
    for misfit, said in MISFITS.values():
        with pytest.raises(ValueError, match=said):
            load(misfit(case.parameters))
    other = "float64" if precision == "float32" else "float32"
    with pytest.raises(ValueError, match=f"of (torch.)?{precision}, the array is .* of (torch.)?{other}"):
        load({name: array.astype(other) for name, array in case.parameters.items()})
    load(case.parameters)
    after = case.session.state()
    assert all(np.array_equal(after[name], value) and value.dtype == precision for name, value in before.items())


@pytest.mark.skipif("torch" not in INSTALLED, reason="torch is not installed")
@pytest.mark.parametrize("name", ["dense", "batch_norm", "positions", "lstm with dropout", "attention"])
def test_a_float64_program_of_pytorch_leaves_the_process_as_it_was(name: str, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - where it is installed

    case = live("torch", program_of(spec_of(CASES[name])), tmp_path)
    assert torch.get_default_dtype() == torch.float32
    made = case.session.module.Net()  # type: ignore[attr-defined]
    kinds = {n: value.dtype for n, value in made.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert set(kinds.values()) == {torch.float64}, kinds


@pytest.mark.skipif("jax" not in INSTALLED, reason="JAX is not installed")
def test_flaxs_own_objects_are_asked_as_the_state_is(tmp_path: Path) -> None:
    """Outputs and gradients of strategy `nnx` are those of the plain program, before a step and after it."""
    program = program_of(spec_of(CASES["batch_norm"]))
    plain, own = (live("jax", program, tmp_path, strategy=strategy) for strategy in (None, "nnx"))
    expression = to_json(Call("net", (Name("x"),)))
    for step in range(2):
        fields = {"x": plain.inputs["train.x"]}
        assert_near(own.session.evaluate(expression, fields), plain.session.evaluate(expression, fields), "outputs")
        said = [one.session.gradients(one.session.batch(one.inputs, step)) for one in (own, plain)]
        assert said[0].keys() == said[1].keys()
        for name, gradient in said[1].items():
            assert_near(said[0][name], gradient, name)
        for one in (own, plain):
            one.session.wait(one.session.step(step, one.session.batch(one.inputs, step)))


TWO_UPDATES = {
    "name": "two", "data": {"dataset": "random", "examples": 1, "batch": 1, "fields": {"a": {"shape": [4], "classes": 17}, "b": {"shape": [4], "classes": 17}}},
    "networks": {
        "other": {"layers": [{"embedding": {"features": 2}}, "global_max_pool"]},
        "policy": {"layers": [{"embedding": {"features": 1}}, "global_avg_pool", {"dense": {"units": 2}}]},
    },
    "training": {"steps": 1, "updates": [
        {"name": "one", "loss": {"mse": {"predictions": "policy(b)", "targets": 0.5}}, "over": ["policy"], "optimizer": {"sgd": {"learning_rate": 0.1}}},
        {"name": "two", "loss": {"sigmoid_cross_entropy": {"logits": "other(b)", "targets": "policy(a)"}}, "over": ["other", "policy"], "optimizer": {"sgd": {"learning_rate": 0.1}}},
    ]},
}  # fmt: skip
"""The smallest training in whose graph TensorFlow's dependency optimizer was seen to lose the order of updates and reads."""


@pytest.mark.skipif("tensorflow" not in INSTALLED, reason="TensorFlow is not installed")
def test_an_update_reads_what_the_one_before_it_left(tmp_path: Path) -> None:
    """As a graph, built anew many times: without the line in the program most of 30 graphs were wrong."""
    import tensorflow as tf  # noqa: PLC0415 - where it is installed

    tf.config.optimizer.set_experimental_options({"dependency_optimization": True})  # as a process has it
    case = live("tensorflow", program_of(TWO_UPDATES), tmp_path)
    module = case.session.module  # type: ignore[attr-defined]
    batch = case.session.batch(case.inputs, 0)

    def losses(*, graph: bool) -> tuple[float, ...]:
        model = module.make_model()
        optimizers = module.make_optimizers(model)
        module.load_parameters(model, case.parameters)
        step = module.make_compiled_step(model, optimizers) if graph else partial(module.train_step, model, optimizers)
        return tuple(float(loss) for loss in step(batch).values())

    eagerly = losses(graph=False)
    held = []  # the order was lost by where objects lie in memory
    for number in range(20):
        held.append(bytearray(1000 * number))
        assert losses(graph=True) == pytest.approx(eagerly, rel=1e-14)
