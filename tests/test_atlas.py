"""The table of differences: what it says is there, each default can be planted, and what it does is measured."""

import ast
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import INSTALLED, program_of
from cases import CASES, spec_of
from rich.console import Console

import harness
from harness import initial
from harness.atlas import measure, page
from harness.atlas.measure import Effect, Explanation, Finding, Trained, differs, effect
from harness.atlas.plants import Refused, draft
from harness.atlas.probes import PROBES, loaded
from harness.atlas.rows import BY_NAME, ROWS
from harness.atlas.terminal import show
from harness.backend import BACKENDS
from harness.graph import Program
from harness.resolve import compile_spec
from harness.spec import loads

HERE = Path(__file__).parent
PLANTS = [(row.name, backend) for row in ROWS for backend in row.plants]


def program(name: str, steps: int = 20) -> Program:
    return compile_spec(*loaded(name), steps)


def test_the_committed_page_is_what_the_table_writes() -> None:
    assert page.README.read_text(encoding="utf-8") == page.page(page.read())


def test_another_size_is_another_page() -> None:
    sizes = page.read()
    sizes["sizes"]["same_padding"]["torch"]["loss"] = 0.123
    assert page.page(sizes) != page.README.read_text(encoding="utf-8")


def test_every_row_has_a_name_of_its_own_and_a_plant_or_a_reason() -> None:
    assert len(BY_NAME) == len(ROWS)
    for row in ROWS:
        assert bool(row.plants) != bool(row.unmeasured), row.name
        assert bool(row.plants) == bool(row.probes), row.name
        assert set(row.plants) <= set(BACKENDS), row.name


def test_every_row_says_which_test_covers_it_and_that_test_exists() -> None:
    files = {path.name: ast.parse(path.read_text()) for path in HERE.glob("test_*.py")}
    functions = {
        f"{name}::{node.name}" for name, tree in files.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }  # fmt: skip
    faults = mutants(files["test_frameworks.py"])
    assert "tanh for erf" in faults
    for row in ROWS:
        assert row.cases or row.faults or row.tests or row.note, row.name
        assert set(row.cases) <= set(CASES), row.name
        assert set(row.faults) <= faults, row.name
        for test in row.tests:
            name, _, parameter = test.partition("[")
            assert name in functions, test
            assert not parameter or f'"{parameter[:-1]}"' in (HERE / "test_frameworks.py").read_text(), test


def mutants(tree: ast.Module) -> set[str]:
    """The keys of MUTANTS, without importing what needs frameworks."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MUTANTS":
            assert isinstance(node.value, ast.Dict)
            return {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    raise AssertionError("test_frameworks.py has no MUTANTS")


@pytest.fixture(scope="module")
def drafts() -> dict[tuple[str, str, str], measure.Draft]:
    return {}


@pytest.mark.parametrize(("name", "backend"), PLANTS)
def test_every_planted_default_changes_a_program_that_is_still_python(
    name: str, backend: str, drafts: dict[tuple[str, str, str], measure.Draft]
) -> None:
    row = BY_NAME[name]
    for probe in row.probes:
        key = (probe, backend, row.precision)
        if key not in drafts:
            drafts[key] = draft(program(probe), backend, row.precision)
        planted = row.plants[backend].make(drafts[key])
        if differs(drafts[key], planted):
            compile(planted.source, name, "exec")
            return
    raise AssertionError(f"'{name}' has no place in any of its probes: {', '.join(row.probes)}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_spec_without_an_op_has_no_place_for_its_rows(backend: str) -> None:
    honest = draft(program("linear_regression"), backend, "float64")
    planted, refused = measure.plan({backend: honest}, ROWS)
    assert not refused
    assert {row.name for row in planted[backend]} <= {"initial_values", "float64"}
    assert "initial_values" in {row.name for row in planted[backend]}


def test_a_default_is_left_alone_where_the_spec_says_the_same() -> None:
    text = json.loads(json.dumps(spec_of(CASES["batch_norm"])))
    text["networks"]["net"]["layers"] = [{"dense": 3}, {"batch_norm": {"epsilon": 1e-3}}]
    honest = {backend: draft(program_of(text), backend, "float64") for backend in BACKENDS}
    planted, _ = measure.plan(honest, [BY_NAME["batch_norm_epsilon"]])
    assert {backend for backend, rows in planted.items() if rows} == {"torch", "jax"}


def test_a_default_under_which_the_network_cannot_be_built_is_refused_with_the_shapes() -> None:
    honest = draft(program("digits_cnn"), "jax", "float64")
    with pytest.raises(Refused, match=r"logits\.kernel would have shape \[128, 10\], not \[32, 10\]"):
        BY_NAME["pool_stride"].plants["jax"].make(honest)


def test_an_effect_is_held_against_the_honest_loss_of_its_step() -> None:
    honest = Trained({"a": [4.0, 2.0, 1.0], "b": [1.0, 1.0, 1.0]}, {"final/y": np.array([2.0, -4.0])})
    planted = Trained({"a": [4.0, 2.5, 1.3], "b": [1.0, 1.0, 1.1]}, {"final/y": np.array([2.0, -3.0])})
    found = effect(honest, planted)
    assert (found.update, found.first, found.largest, found.step) == ("a", 0.0, 0.5, 2)
    assert found.last == pytest.approx(0.3)
    assert found.relative == pytest.approx(0.3)  # of the third step: 0.3 / 1, more than 0.5 / 2
    assert found.outputs == pytest.approx(0.25)
    assert not found.none
    assert effect(honest, honest).none


def test_a_loss_that_is_no_number_any_more_is_an_infinite_effect() -> None:
    found = effect(Trained({"a": [4.0, 2.0, 1.0]}), Trained({"a": [4.0, math.nan]}))
    assert (found.relative, found.largest, found.step) == (math.inf, math.inf, 2)


def test_running_statistics_show_in_the_outputs_and_are_not_called_no_effect() -> None:
    losses = {"a": [1.0, 0.5]}
    found = effect(Trained(losses, {"final/y": np.ones(3)}), Trained(losses, {"final/y": np.zeros(3)}))
    assert (found.relative, found.outputs) == (0.0, 1.0)
    assert not found.none


def test_findings_are_ranked_and_what_has_no_place_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {"honest": 0.0, "same_padding": 0.2, "running_variance": 0.0, "initial_values": 0.7, "dropout_masks": 0.1}

    def losses_of(_backend: str, drafts: Mapping[str, Any], *_: object) -> dict[str, Trained]:
        failed = {"flatten": Trained(error="RuntimeError: mat1 and mat2 shapes cannot be multiplied")}
        return {n: failed.get(n, Trained({"net": [1.0, 1.0 + moved.get(n, 0)]})) for n in drafts}

    monkeypatch.setattr(measure, "losses_of", losses_of)
    told: list[tuple[int, int, str]] = []
    found = harness.explain("digits_cnn", backends=("torch",), steps=3, progress=lambda *t: told.append(t))
    order = [f.row.name for f in found.findings if f.status == "measured"]
    assert order == ["initial_values", "same_padding", "dropout_masks"]
    assert {f.row.name for f in found.findings if f.status == "refused"} == {"default_padding", "flatten"}
    assert {f.row.name for f in found.findings if f.status == "no effect"} == {"running_variance"}
    names = {f.row.name for f in found.findings}
    assert names.isdisjoint(found.not_applicable)
    assert names | set(found.not_applicable) | set(found.unmeasured) == set(BY_NAME)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["schema"] == measure.SCHEMA
    assert [f["row"] for f in data["findings"]] == [f.row.name for f in found.findings]
    assert {f["spec_says"] for f in data["findings"] if f["row"] == "same_padding"} == {
        "pads ((1, 1), (1, 1)), ((0, 1), (0, 1))"
    }


def test_a_backend_whose_own_program_fails_is_a_failure_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "losses_of", lambda _b, drafts, *_: dict.fromkeys(drafts, Trained(error="no torch")))
    found = harness.explain("linear_regression", backends=("torch",), steps=2)
    assert (found.findings, found.failures, found.exit) == ((), {"torch": "no torch"}, 3)


def test_every_plant_has_a_committed_size() -> None:
    sizes = page.read()["sizes"]
    assert {(row, backend) for row, found in sizes.items() for backend in found} == set(PLANTS)
    for row, found in sizes.items():
        for one in found.values():
            assert one["probe"] in BY_NAME[row].probes
            assert one["probe"] in PROBES or loaded(one["probe"])
            assert one["error"] or one["loss"] is not None


ONE_WEIGHT = {
    "name": "one_weight",
    "data": {"dataset": "inline", "values": {"x": [[1.0]], "y": [[0.001]]}, "batch": 1},
    "networks": {"net": {"inputs": ["x"], "layers": [{"dense": {"units": 1, "bias": False, "kernel_init": {"values": [[0.0]]}}}]}},
    "training": {"steps": 2, "updates": [{"loss": {"mse": {"predictions": "net(x)", "targets": "y"}}, "optimizer": {}}]},
}  # fmt: skip
"""p = w · 1, loss (w - y)², from w = 0: the first gradient is -2 y."""


def measured(row: str, backend: str, loss: str = "mse", y: float = 0.001, **update: object) -> Effect:
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    text = json.loads(json.dumps(ONE_WEIGHT))
    text["data"]["values"]["y"] = [[y]]
    text["training"]["updates"][0] |= {"loss": {loss: {"predictions": "net(x)", "targets": "y"}}, **update}
    options = measure.Options(backends=(backend,), precision="float64")
    found = measure.explain(*loads(json.dumps(text)), options, rows=[BY_NAME[row]])
    assert not found.failures
    (finding,) = found.findings
    assert finding.effect is not None, finding.error
    return finding.effect


@pytest.mark.frameworks
def test_the_place_of_adams_epsilon_in_keras_moves_the_second_loss_as_by_hand() -> None:
    y, rate, epsilon, beta2 = 0.001, 0.0001, 0.0001, 0.999
    found = measured(
        "adam_epsilon_place", "tensorflow", y=y, optimizer={"adam": {"learning_rate": rate, "epsilon": epsilon}}
    )
    g = 2 * y
    after = rate * g / (g + epsilon)
    before = rate * math.sqrt(1 - beta2) * g / (math.sqrt(1 - beta2) * g + epsilon)
    assert found.first == 0
    assert found.last == pytest.approx((before - y) ** 2 - (after - y) ** 2, rel=1e-9)
    assert found.last > 1e-8


@pytest.mark.frameworks
def test_the_epsilon_of_torchs_clipping_moves_the_second_loss_as_by_hand() -> None:
    y, rate, limit = 0.01, 1.0, 0.001
    found = measured(
        "clip_epsilon", "torch", y=y, optimizer={"sgd": {"learning_rate": rate}}, clip={"global_norm": limit}
    )
    g = 2 * y
    exact, planted = rate * g * limit / g, rate * g * limit / (g + 1e-6)
    assert found.last == pytest.approx((planted - y) ** 2 - (exact - y) ** 2, rel=1e-6)
    assert found.relative > 1e-6


@pytest.mark.frameworks
def test_the_gradient_of_abs_at_zero_in_jax_moves_the_second_loss_by_the_learning_rate() -> None:
    found = measured("mae_kink", "jax", loss="mae", y=0.0, optimizer={"sgd": {"learning_rate": 0.25}})
    assert (found.first, found.last) == (0.0, 0.25)


def test_default_initial_values_are_those_of_each_framework_by_formula() -> None:
    honest = draft(program("digits_mlp"), "torch", "float64")
    names = {"torch": 1 / math.sqrt(3 * 64), "tensorflow": math.sqrt(2 / (64 + 128)), "jax": 1 / math.sqrt(64)}
    for backend, std in names.items():
        planted = BY_NAME["initial_values"].plants[backend].make(replace(honest, backend=backend))
        arrays = initial.parameters(planted.program)
        assert arrays["dense1.kernel"].std() == pytest.approx(std, rel=0.03)
        assert np.any(arrays["dense1.bias"]) == (backend == "torch")


@pytest.mark.frameworks
@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=() if name == "torch" else pytest.mark.slow) for name in BACKENDS]
)
def test_default_initial_values_spread_as_the_frameworks_own(backend: str) -> None:
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    layers = ["embedding", "dense", "conv", "deconv", "lstm"]
    text = {
        "name": "wide",
        "data": {"dataset": "inline", "values": {"x": [[0] * 6], "y": [[0.0]]}, "batch": 1},
        "networks": {"net": {"inputs": ["x"], "layers": [
            {"embedding": {"vocabulary": 500, "features": 96, "name": "embedding"}},
            {"dense": {"units": 200, "name": "dense"}}, {"lstm": {"units": 96, "returns": "sequence", "name": "lstm"}},
            {"reshape": [2, 3, 96]}, {"conv2d": {"channels": 64, "kernel": 2, "name": "conv"}},
            {"conv_transpose2d": {"channels": 160, "kernel": 3, "name": "deconv"}}, "flatten", {"dense": 1}]}},
        "training": {"steps": 1, "updates": [{"loss": {"mse": {"predictions": "net(x)", "targets": "y"}}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
    }  # fmt: skip
    plant = BY_NAME["initial_values"].plants[backend]
    ours = [
        initial.parameters(plant.make(draft(program_of(text | {"seed": seed}), backend, "float32")).program)
        for seed in range(DRAWS)
    ]
    theirs = [OWN[backend](seed) for seed in range(DRAWS)]
    assert set(theirs[0]) >= {f"{layer}.kernel" for layer in layers if layer != "embedding"}
    for name in theirs[0]:
        a, b = (np.stack([np.ravel(draw[name]) for draw in draws]) for draws in (ours, theirs))
        assert a.shape == b.shape, name
        if np.ptp(b[0][:96]):  # neither zeros nor a forget gate's ones: draws of one seed would be one draw
            assert {len(np.unique(values, axis=0)) for values in (a, b)} == {DRAWS}, name
        assert a.std() == pytest.approx(b.std(), rel=0.06, abs=1e-9), name
        assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=0.3, abs=1e-9), name


def of_torch(seed: int) -> dict[str, np.ndarray]:
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    torch.manual_seed(seed)
    # In another dtype a seed draws other values, and a test before may have left float64 as the default.
    float32 = {"dtype": torch.float32}
    made = {
        "embedding": nn.Embedding(500, 96, **float32), "dense": nn.Linear(96, 200, **float32),
        "lstm": nn.LSTM(200, 96, **float32), "conv": nn.Conv2d(96, 64, 2, **float32),
        "deconv": nn.ConvTranspose2d(64, 160, 3, **float32),
    }  # fmt: skip
    values = {f"{n}.{p}": v.detach().numpy() for n, m in made.items() for p, v in m.named_parameters()}
    names = {
        "embedding.embedding": "embedding.weight",
        "lstm.kernel": "lstm.weight_ih_l0",
        "lstm.recurrent": "lstm.weight_hh_l0",
    }
    names |= {f"{n}.kernel": f"{n}.weight" for n in ("dense", "conv", "deconv")}
    names |= {f"{n}.bias": f"{n}.bias" for n in ("dense", "conv", "deconv")}
    return {ours: values[theirs] for ours, theirs in names.items()} | {
        "lstm.bias": values["lstm.bias_ih_l0"] + values["lstm.bias_hh_l0"]
    }


def of_keras(seed: int) -> dict[str, np.ndarray]:
    import os  # noqa: PLC0415

    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras  # noqa: PLC0415

    # Keras keeps the dtype of the first layer of a process as its policy, whatever floatx becomes later.
    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    made = {
        "embedding": (layers.Embedding(500, 96), (1, 6)), "dense": (layers.Dense(200), (1, 96)), "lstm": (layers.LSTM(96), (1, 6, 200)),
        "conv": (layers.Conv2D(64, 2), (1, 2, 3, 96)), "deconv": (layers.Conv2DTranspose(160, 3), (1, 1, 2, 64)),
    }  # fmt: skip
    found = {}
    names = {"embeddings": "embedding", "recurrent_kernel": "recurrent"}
    for name, (layer, shape) in made.items():
        layer.build(shape)
        for variable in layer.weights:
            leaf = variable.path.rpartition("/")[2]
            found[f"{name}.{names.get(leaf, leaf)}"] = np.asarray(variable)
    return found


def of_flax(seed: int) -> dict[str, np.ndarray]:
    from flax import nnx  # noqa: PLC0415

    rngs = nnx.Rngs(seed)
    lstm = nnx.OptimizedLSTMCell(200, 96, rngs=rngs)
    made = {
        "dense": nnx.Linear(96, 200, rngs=rngs), "conv": nnx.Conv(96, 64, (2, 2), rngs=rngs),
        "deconv": nnx.ConvTranspose(64, 160, (3, 3), rngs=rngs),
    }  # fmt: skip
    found = {f"{n}.{leaf}": np.asarray(getattr(m, leaf)[...]) for n, m in made.items() for leaf in ("kernel", "bias")}
    found["embedding.embedding"] = np.asarray(nnx.Embed(500, 96, rngs=rngs).embedding[...])
    found["lstm.kernel"] = np.asarray(lstm.dense_i.kernel[...])
    found["lstm.recurrent"] = np.asarray(lstm.dense_h.kernel[...])
    found["lstm.bias"] = np.asarray(lstm.dense_h.bias[...])
    return found


DRAWS = 20
"""With as many seeds; the deviation of one draw of a convolution's 64 biases is 6 % off as a rule, of so many 1.3 %."""
OWN: dict[str, Callable[[int], dict[str, np.ndarray]]] = {"torch": of_torch, "tensorflow": of_keras, "jax": of_flax}


@pytest.mark.parametrize("width", [60, 80, 109, 110, 160])
def test_an_explanation_can_be_read_at_any_width(width: int) -> None:
    row = ROWS[0]
    effect = Effect("net", 0.0, 0.03, 17, 0.001, 0.02, 0.5, {"accuracy": (0.9, 0.8)})
    findings = (
        Finding(row, "torch", "a momentum of 0.1", "a momentum of 0.9", effect),
        Finding(row, "jax", "a stride of one", "a stride of three", None, "the window does not fit"),
    )
    told = Console(width=width, record=True, file=io.StringIO())
    show(Explanation("digits", 100, 0, "float64", findings, (), {}, {}, {}, 1.0), told)
    text = " ".join(told.export_text().split())
    lines = told.export_text()
    words = ["momentum", "accuracy", "torch", "window"]
    assert all(word in text for word in words), lines
    assert max(map(len, lines.splitlines() or [""])) <= width
