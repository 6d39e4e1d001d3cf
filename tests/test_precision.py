"""Precisions of a program: what each rounds, the same in every framework, and faults that tolerances alone would let pass."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from build import EACH, INSTALLED, Arrays, live, program_of
from cases import CASES, ONE_A_WORD, spec_of
from test_lanes import MINIS, RUNNABLE, SINGLE, captured_on_a_cpu

from harness import api, lanes, reference
from harness.backend import BACKENDS
from harness.check import climb
from harness.compare import TOLERANCES
from harness.data.inputs import cast
from harness.errors import CallError
from harness.expressions import Call, Name
from harness.judge import first_batch
from harness.ops.base import to_bfloat16
from harness.precision import NAMES, PRECISIONS, named, on_device
from harness.programs import emitted
from harness.questions import to_json
from harness.results import RunResult

ROUNDOFF = PRECISIONS["bfloat16"].roundoff
PRODUCTS = {"dense", "conv1d", "conv2d", "conv_transpose2d", "lstm", "gru", "attention", "unembed"}


@pytest.fixture(autouse=True)
def flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's program sets XLA's flags for its whole process: here they end with the test."""
    monkeypatch.setenv("XLA_FLAGS", "")


def test_a_bfloat16_number_is_the_upper_half_of_a_float32_rounded_to_even() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(10_000) * 10.0 ** rng.integers(-20, 20, 10_000), [0.0, 1.0, 1 + 2.0**-8]])
    x = x.astype(np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    assert to_bfloat16(x.astype(np.float64)).tolist() == upper.astype(np.uint32).view(np.float32).tolist()
    assert np.isneginf(to_bfloat16(np.array(-np.inf)))
    assert np.isnan(to_bfloat16(np.array(np.nan)))


@pytest.mark.parametrize("name", NAMES)
def test_a_roundoff_is_the_largest_relative_error_of_rounding_a_factor(name: str) -> None:
    own = PRECISIONS[name]
    bits = {"float64": 53, "float32": 24, "tf32": 11, "bfloat16": 8}[own.factors]
    assert own.roundoff == 2.0**-bits
    assert own.mixed == (name in ("tf32", "bfloat16"))
    assert TOLERANCES[name].keys() == {"forward", "gradients", "loss", "state", "outputs"}
    assert cast({"x": np.ones(1)}, name)["x"].dtype == own.dtype


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("float16", "cpu", "--precision is float64, float32, tf32 or bfloat16, got 'float16'"),
        ("tf32", "cpu", "--precision tf32: TF32 products exist on GPUs alone: --device gpu, or --precision float32"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(name: str, device: str, expected: str) -> None:
    with pytest.raises(CallError, match=re.escape(expected)):
        on_device(name, device)


def test_tf32_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="TF32 products exist on GPUs alone"):
        api.run("digits_mlp", precision="tf32", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert on_device("tf32", "gpu") == named("tf32")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tf32_program_differs_from_a_float32_one_by_its_switches(backend: str) -> None:
    plain, fast = (api.load("digits_cnn").emit(backend, name).splitlines() for name in ("float32", "tf32"))
    changed = [(a, b) for a, b in zip(plain, fast, strict=True) if a != b]
    assert changed[0][0].startswith("# Full float32 products")
    off, on = {
        "torch": ("allow_tf32 = False", "allow_tf32 = True"),
        "tensorflow": ("32_execution(False)", "32_execution(True)"),
        "jax": ('"highest"', '"tensorfloat32"'),
    }[backend]
    assert changed[1:] == [(line, line.replace(off, on)) for line in plain if off in line]
    assert len(changed) > 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "digits_lstm", "char_transformer", "digits_gan"])
def test_a_bfloat16_program_defines_what_it_uses_and_nothing_more(backend: str, name: str) -> None:
    tree = ast.parse(api.load(name).emit(backend, "bfloat16"))
    defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    defined |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    own = set(importlib.import_module(f"backends.{backend}.bfloat16").HELPERS)
    assert own & used == own & defined != set()


# Each product ---------------------------------------------------------------------------------------------


def kinds(layers: object) -> set[str]:
    """Every op of a case."""
    if isinstance(layers, str):
        return {layers}
    if isinstance(layers, (list, tuple)):
        return set().union(*map(kinds, layers))
    if isinstance(layers, dict):
        return set(layers).union(*map(kinds, layers.values()))
    return set()


WITH_PRODUCTS = [name for name, case in CASES.items() if not case.rounded and kinds(case.layers) & PRODUCTS]


def size(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ONE_A_WORD else pytest.mark.slow) for name in WITH_PRODUCTS]
)
def test_every_product_rounds_its_factors_and_its_result(backend: str, name: str, tmp_path: Path) -> None:
    """What is left beside a reference that rounds alike is a tenth of what rounding makes: not one rounding more or less."""
    case = live(backend, program_of(spec_of(CASES[name])), tmp_path, "bfloat16")
    expression, fields = Call("net", (Name("x"),)), {"x": case.inputs["train.x"]}
    wide = {n: a.astype(np.float64) for n, a in case.parameters.items()}
    exact, rounded = (
        reference.evaluate(
            case.program, expression, wide, {"x": fields["x"].astype(np.float64 if fields["x"].dtype.kind == "f" else int)}, mixed=mixed
        )
        for mixed in (False, True)
    )  # fmt: skip
    said = case.session.evaluate(to_json(expression), fields)
    made = size(rounded - exact)
    assert made > 1e-5 * size(exact), "the case has no product that rounding changes"
    assert size(said - rounded) < made / 10
    assert np.max(np.abs(said - rounded)) <= TOLERANCES["bfloat16"]["forward"].allowed(said, rounded)


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
def test_the_products_of_a_gradient_are_rounded_as_well(backend: str, tmp_path: Path) -> None:
    program = program_of(spec_of(CASES["dense"]))
    case = live(backend, program, tmp_path, "bfloat16")
    batch, _ = first_batch(program, case.inputs, case.inputs, 0)
    x = batch["x"].astype(np.float64)
    first, second = (node.name for node in program.networks["net"].nodes)
    w1, b1, w2, b2 = (
        case.parameters[f"{layer}.{leaf}"].astype(np.float64)
        for layer in (first, second)
        for leaf in ("kernel", "bias")
    )
    r = to_bfloat16
    h = r(r(x) @ r(w1)) + b1
    y = r(r(h) @ r(w2)) + b2
    slope = 2 * (y - 0.25) / y.size
    back = r(r(slope) @ r(w2).T)
    expected = {
        f"{first}.kernel": r(r(x).T @ r(back)), f"{first}.bias": back.sum(axis=0),
        f"{second}.kernel": r(r(h).T @ r(slope)), f"{second}.bias": slope.sum(axis=0),
    }  # fmt: skip
    found = case.session.gradients(case.session.batch(case.inputs, 0))
    assert found.keys() == {f"net/{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[f"net/{name}"], value, rtol=1e-5, atol=1e-6 * np.max(np.abs(value)), err_msg=name
        )
    unrounded = x.T @ (slope @ w2.T)
    assert np.max(np.abs(expected[f"{first}.kernel"] - unrounded)) > ROUNDOFF / 10 * np.max(np.abs(unrounded))


CONVOLUTION = SINGLE | {
    "name": "convolution",
    "networks": {"net": {"inputs": ["image"], "layers": [{"conv2d": {"channels": 4, "kernel": 3}}, "relu", "flatten", {"dense": 10}]}},
}  # fmt: skip
PROGRAMS = MINIS | {"convolution": CONVOLUTION}


def gap(backend: str, name: str, how: str, *changes: str) -> float:
    """How far the first steps of a strategy are from the plain one's, beside how far these are from float32's.

    `changes`: of the strategy's program, what it says and what instead.
    """
    said = [
        after_two_steps(backend, name, "bfloat16"),
        after_two_steps(backend, name, "bfloat16", how, *changes),
        after_two_steps(backend, name, "float32"),
    ]
    plain, other, exact = (np.concatenate([state[n].ravel() for n in said[0]]) for state in said)
    return size(other - plain) / size(exact - plain)


@cache
def after_two_steps(backend: str, name: str, precision: str, how: str | None = None, *changes: str) -> Arrays:
    """The state that a program is in then. The plain ones are the same for every strategy."""
    program = program_of(PROGRAMS[name])
    text = emitted(program, backend, precision, strategy=how)
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text, f"the program no longer says {old!r}"
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory(prefix=f"{precision}_{how}_") as folder, pytest.MonkeyPatch.context() as patch:
        session = (made := live(backend, program, Path(folder), precision, text, strategy=how)).session
        if how in lanes.GRAPHS and session.module.DEVICE.type == "cpu":  # type: ignore[attr-defined]
            captured_on_a_cpu(session.module, patch)  # type: ignore[attr-defined]
        for step in range(2):
            session.step(step, session.batch(made.inputs, step))
        return dict(session.state())


def alone(function: str, *arguments: str) -> str:
    """What a function of this file returns in a process of its own: XLA reads its flags once."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_precision as t; print(t.{function}(*{arguments!r}))"
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def gap_of(strategy: lanes.Strategy, name: str, *changes: str) -> float:
    arguments = (strategy.backend, name, strategy.name, *changes)
    return float(alone("gap", *arguments)) if strategy.name.endswith("_xla") else gap(*arguments)


TO_COMPILE = (
    "torch-unrolled",
    "torch-compiled",
    "torch-whole",
    "tensorflow-loop_xla",
    "tensorflow-function_xla",
    "jax-nnx",
)
"""The strategies that take longest to compile; the others are tried in `tests`."""


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["single", pytest.param("several", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", [
    pytest.param(*p.values, id=p.id, marks=[*p.marks, pytest.mark.slow]) if p.id in TO_COMPILE else p
    for p in RUNNABLE
])  # fmt: skip
def test_every_strategy_rounds_what_the_plain_one_rounds(strategy: lanes.Strategy, name: str) -> None:
    assert gap_of(strategy, name) < 1 / 4


ON_GPUS = {
    "torch": ("torch.bfloat16 if torch.cuda.is_available() else torch.float32", "torch.bfloat16"),
    "tensorflow": ('tf.bfloat16 if tf.config.list_physical_devices("GPU") else tf.float32', "tf.bfloat16"),
}
"""What makes a program say on a CPU what it says on GPUs: products by kernels for bfloat16."""
INDUCTOR = ("emulate_precision_casts = True", "emulate_precision_casts = False")


def of_names(*names: tuple[str, str]) -> list[object]:
    return [p for p in RUNNABLE if (p.values[0].backend, p.values[0].name) in names]


@pytest.mark.frameworks
@pytest.mark.slow
@pytest.mark.parametrize("strategy", of_names(("torch", "compiled"), ("torch", "whole")))
def test_inductor_leaves_out_roundings_unless_it_is_told_not_to(strategy: lanes.Strategy) -> None:
    assert gap_of(strategy, "convolution", *INDUCTOR) > 1 / 4


def rounded_by_xla(backend: str, *changes: str) -> bool:
    """Whether a convolution as the program has it, compiled by XLA, gives bfloat16 numbers."""
    program = program_of(CONVOLUTION)
    text = emitted(program, backend, "bfloat16")
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text, f"the program no longer says {old!r}"
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory(prefix=backend) as folder:
        module = live(backend, program, Path(folder), "bfloat16", text).session.module  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 9, 3), (3, 3, 3, 8)))
    if backend == "jax":
        layer = module.jax.jit(module.conv_general_dilated, static_argnums=(2, 3), static_argnames="dimension_numbers")
        y = np.asarray(layer(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")), np.float64)
    else:
        tf = module.tf
        layer = tf.function(
            lambda *xs: module.to_float32(tf.nn.conv2d(*map(module.to_bfloat16, xs), 1, "VALID")), jit_compile=True
        )
        y = layer(x, kernel).numpy().astype(np.float64)
    return np.array_equal(y, to_bfloat16(y))


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("backend", "right", "wrong"),
    [
        ("jax", (), ("return round_to_bfloat16(y.astype(jnp.float32))", "return y.astype(jnp.float32)")),
        pytest.param(
            "tensorflow", ON_GPUS["tensorflow"], (*ON_GPUS["tensorflow"], "excess_precision=false", "excess_precision=true"),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_xla_leaves_out_a_rounding_unless_it_is_told_not_to(
    backend: str, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    assert alone("rounded_by_xla", backend, *right) == "True"
    assert alone("rounded_by_xla", backend, *wrong) == "False"


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("strategy", "name"),
    [(*p.values, n) for p, n in zip(of_names(("torch", "eager"), ("tensorflow", "function_xla")), ("single", "convolution"), strict=True)],
)  # fmt: skip
@pytest.mark.slow
def test_kernels_for_bfloat16_mean_the_same_where_they_add_up_in_float32(strategy: lanes.Strategy, name: str) -> None:
    """What GPUs are given, on a CPU: PyTorch's matrix products and XLA add up so, PyTorch's gradients of convolutions and TensorFlow's own kernels do not."""
    assert gap_of(strategy, name, *ON_GPUS[strategy.backend]) < 1 / 4


# Whole runs -----------------------------------------------------------------------------------------------


def run(tmp_path: Path, backends: tuple[str, ...], name: str = "digits_mlp") -> RunResult:
    return api.run(name, backends=backends, steps=6, precision="bfloat16", out=tmp_path / "run")


@pytest.mark.frameworks
@pytest.mark.skipif(len(INSTALLED) < len(BACKENDS), reason="needs all backends")
def test_three_frameworks_train_alike_in_bfloat16_and_not_as_in_float32(tmp_path: Path) -> None:
    result = run(tmp_path, BACKENDS)
    assert (result.verdict, result.evidence) == ("same", None), result.notes
    forward = [c["worst"]["difference"] for c in result.comparisons if c["what"] == "forward"]
    assert max(forward) <= ROUNDOFF
    plain = api.run("digits_mlp", backends=("torch",), steps=6, out=tmp_path / "plain")
    gap = abs(plain.backends["torch"].losses["classifier"][-1] - result.backends["torch"].losses["classifier"][-1])
    assert gap > 1e-6
    assert {a.dtype.name for a in result.backends["jax"].state(5).values()} == {"float32"}


FAULTS = {
    "products of float32": (
        "digits_mlp", "torch", r"The products of torch are not of bfloat16 values",
        "return x.bfloat16().to(PRODUCT)", "return x", "y.bfloat16().float()", "y",
    ),
    "products of float32 by XLA": (
        "digits_mlp", "jax", r"The products of jax are not of bfloat16 values",
        "return round_to_bfloat16(x).astype(jnp.bfloat16)", "return x", "return round_to_bfloat16(y.astype(jnp.float32))", "return y",
    ),
    "master weights in bfloat16": (
        "digits_mlp", "torch", r"The parameters of torch are not kept in float32",
        "optimizer.step()", "optimizer.step()\n    with torch.no_grad():\n        for p in model.parameters():\n            p.copy_(p.bfloat16())",
    ),
    "a loss that is scaled and not scaled back": (
        "linear_regression", "torch", r"The first step of jax and torch moves the parameters otherwise",
        "loss.backward()", "(2 * loss).backward()",
    ),
    "products 2 % too large": (
        "digits_mlp", "tensorflow", "", "tf.cast(tf.cast(y, tf.bfloat16), tf.float32)", "tf.cast(tf.cast(1.02 * y, tf.bfloat16), tf.float32)",
    ),
}  # fmt: skip
"""By name: spec, backend, what the result says of it, and the program's text with and without the fault."""


@pytest.mark.frameworks
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_mixed_precision_is_caught(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, backend, said, *changes = FAULTS[fault]
    other = "torch" if backend != "torch" else "jax"
    if not {backend, other} <= set(INSTALLED):
        pytest.skip(f"needs {backend} and {other}")
    emitter = importlib.import_module(f"backends.{backend}.emit")
    emit = emitter.emit

    def faulty(program: object, precision: str, *arguments: object, **options: object) -> str:
        text = str(emit(program, precision, *arguments, **options))
        if precision != "bfloat16":
            return text  # In float64, which would excuse what rounding makes, it is right.
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text, f"the program no longer says {old!r}: plant the fault elsewhere"
            text = text.replace(old, new)
        return text

    monkeypatch.setattr(emitter, "emit", faulty)
    result = run(tmp_path, (other, backend), name)
    assert (result.verdict, result.exit) == ("differs", 1), result.notes
    assert re.search(said, "\n".join(result.notes))


@pytest.mark.frameworks
@pytest.mark.parametrize(
    "fault",
    ["", "\n    with torch.no_grad():\n        for p in model.parameters():\n            p.copy_(p.bfloat16())"],
)
@pytest.mark.skipif(not {"torch", "jax"} <= set(INSTALLED), reason="needs torch and jax")
def test_the_ladder_stands_in_bfloat16_and_finds_parameters_that_are_not_float32(fault: str, tmp_path: Path) -> None:
    """Against the same reference, rules and slopes: what an optimizer does is float32, and judged as such."""
    path = tmp_path / "mlp.py"
    text = api.load("digits_mlp").emit("torch", "bfloat16", steps=12)
    assert "    optimizer.step()" in text
    path.write_text(text.replace("    optimizer.step()", f"    optimizer.step(){fault}"))
    (found,) = climb.check(
        ["digits_mlp"],
        climb.CheckOptions(backends=("torch", "jax"), precisions=("bfloat16",), steps=12, programs=(f"torch={path}",)),
    )
    status = {rung.name: rung.status for rung in found.rungs}
    if fault:
        assert (status["forward"], status["optimizer"], found.exit) == ("passed", "failed", 1)
    else:
        assert set(status.values()) == {"passed"}, [rung.sentence for rung in found.rungs]
        assert len(status) == 6


def test_sizes_of_defaults_are_not_measured_where_rounding_hides_them() -> None:
    with pytest.raises(CallError, match="what a default does is measured in float64 or float32"):
        api.explain("digits_mlp", precision="bfloat16")


def test_the_text_of_a_precision_is_asked_for_by_name() -> None:
    with pytest.raises(CallError, match="got 'half'"):
        api.load("digits_mlp").emit("torch", "half")
    program = api.load("digits_mlp").compile()
    texts = {name: emitted(program, "torch", name) for name in NAMES}
    assert len(set(texts.values())) == len(NAMES)
