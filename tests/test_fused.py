"""Strategies that call a library's kernels for GPUs alone: what these are given, by stand-ins of the same library."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from build import INSTALLED, Live, live, program_of
from test_lanes import MINIS, SINGLE

from harness import lanes
from harness.graph import Program
from harness.ops.base import to_bfloat16
from harness.programs import emitted
from harness.special import softmax

LSTMS = SINGLE | {
    "name": "lstms",
    "networks": {"net": {"inputs": ["image"], "layers": [
        {"reshape": [8, 8]}, {"lstm": {"units": 5, "returns": "sequence"}}, {"lstm": {"units": 3, "returns": "last"}},
        {"dense": 10},
    ]}},
}  # fmt: skip


def net(*layers: object) -> Program:
    return program_of(SINGLE | {"networks": {"net": {"inputs": ["image"], "layers": [{"reshape": [8, 8]}, *layers]}}})


def test_what_a_fused_kernel_cannot_do_has_no_such_strategy() -> None:
    def found(program: Program, precision: str) -> set[str]:
        own = [
            s.name for b in ("torch", "jax") for s in lanes.strategies(program, b, device="gpu", precision=precision)
        ]
        return {"flash", "cudnn", "autotuned"} & set(own)

    ends = ["flatten", {"dense": 10}]
    attention, dropped = (net({"attention": {"heads": 2, "dropout": rate}}, *ends) for rate in (0.0, 0.5))
    lstm, dropped_lstm = (net({"lstm": {"units": 3, "recurrent_dropout": rate}}, {"dense": 10}) for rate in (0.0, 0.5))
    assert found(attention, "bfloat16") == {"flash", "cudnn"}
    assert found(lstm, "float32") == found(lstm, "tf32") == {"cudnn"}
    assert not any((found(attention, "float32"), found(lstm, "bfloat16"), found(lstm, "float64")))
    assert not any((found(dropped, "bfloat16"), found(dropped_lstm, "float32")))
    assert found(program_of(MINIS["pooled"]), "float32") == {"autotuned"}
    assert not [s for s in lanes.strategies(lstm, "jax") if s.name == "cudnn"], "a CPU has no cuDNN"


def test_autotuning_is_for_the_capture_alone_and_not_for_what_else_runs_in_the_process() -> None:
    program = program_of(MINIS["pooled"])
    graph, tuned = (emitted(program, "torch", "float32", strategy=name).splitlines() for name in ("graph", "autotuned"))
    assert [line.strip() for line in tuned if line not in graph] == [
        "# cuDNN times its kernels for each convolution, and the graph holds the fastest.",
        "torch.backends.cudnn.benchmark = True",
        "torch.backends.cudnn.benchmark = False",
    ]
    assert [line for line in graph if line not in tuned] == []
    on, off = (tuned.index(f"    torch.backends.cudnn.benchmark = {value}") for value in (True, False))
    calls = [i for i, line in enumerate(tuned) if "train_step(model" in line and "def " not in line]
    assert on < min(calls)
    assert max(calls) < off


def by_reference(
    x: Any, h: Any, c: Any, weights: Any, lengths: Any, features: int, units: int, *rest: Any
) -> tuple[Any, Any, Any]:
    """jax.experimental.rnn.lstm by the written-out form that JAX's own tests hold it against."""
    from jax.experimental import rnn  # noqa: PLC0415

    layers, dropout, bidirectional = rest
    parts = rnn.unpack_lstm_weights(weights, features, units, layers, bidirectional)
    return rnn.lstm_ref(x, h, c, *parts, lengths, features, units, layers, dropout, bidirectional)


def trained(own: Live, program: Program) -> dict[str, np.ndarray]:
    session = own.session
    for step in range(program.steps):
        session.wait(session.step(step, session.batch(own.inputs, step)))
    return session.state()


def lstms(folder: Path, old: str = "", new: str = "") -> tuple[dict[str, np.ndarray], ...]:
    """The parameters after a training by Flax's cells, and by what cuDNN is given."""
    program, found = program_of(LSTMS), []
    for strategy in ("scan", "cudnn"):
        text = emitted(program, "jax", "float32", strategy=strategy)
        if old and strategy == "cudnn":
            assert old in text, f"the program no longer says {old!r}"
            text = text.replace(old, new)
        where = folder / strategy
        where.mkdir()
        own = live("jax", program, where, "float32", text, strategy=strategy)
        module = own.session.module  # type: ignore[attr-defined]
        assert hasattr(module, "rnn") == (strategy == "cudnn")
        if module.jax.default_backend() != "gpu":
            module.rnn = SimpleNamespace(lstm=by_reference)
        found.append(trained(own, program))
    return tuple(found)


@pytest.mark.frameworks
@pytest.mark.skipif("jax" not in INSTALLED, reason="jax is not installed")
def test_cudnns_lstm_is_given_what_flaxs_cells_have(tmp_path: Path) -> None:
    plain, fused = lstms(tmp_path)
    assert plain.keys() == fused.keys()
    for name, array in plain.items():
        np.testing.assert_allclose(fused[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.frameworks
@pytest.mark.skipif("jax" not in INSTALLED, reason="jax is not installed")
@pytest.mark.parametrize(
    ("old", "new"),
    [("recurrent.T,", "recurrent,"), ("bias, jnp.zeros_like(bias)", "bias, bias"), (")[:, -1]", ")[:, -2]")],
)
def test_cudnns_lstm_given_something_else_is_found(old: str, new: str, tmp_path: Path) -> None:
    plain, fused = lstms(tmp_path, old, new)
    assert not all(np.allclose(fused[name], array, rtol=1e-4, atol=1e-6) for name, array in plain.items())


ATTENTION = net({"attention": {"heads": 2, "causal": True}}, "flatten", {"dense": 10})


def attended(backend: str, folder: Path, old: str = "", new: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Causal attention [batch, time, heads, features] by the program's fused form, and in float64 of values rounded to bfloat16."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 4, 32, 2, 8)).astype(np.float32)
    strategy = {"torch": "flash", "jax": "cudnn"}[backend]
    text = emitted(ATTENTION, backend, "bfloat16", strategy=strategy)
    if backend == "jax":
        text = text.replace('implementation="cudnn"', 'implementation="xla"')
    assert old in text, f"the program no longer says {old!r}"
    text = text.replace(old, new) if old else text
    module: Any = live(backend, ATTENTION, folder, "bfloat16", text, strategy=strategy).session.module  # type: ignore[attr-defined]
    if backend == "torch":
        given = (module.torch.from_numpy(a).transpose(1, 2) for a in (q, k, v))
        y = module.bfloat16_attention(*given, causal=True).transpose(1, 2).numpy()
    else:
        layer = module.FusedAttention(16, 16, heads=2, causal=True, bias=False, rngs=module.nnx.Rngs(0))
        layer.query, layer.key, layer.value = (lambda _x, a=a: a.reshape(4, 32, 16) for a in (q, k, v))
        layer.out = lambda y: y
        y = np.asarray(layer(q, q)).reshape(q.shape)
    q, k, v = (to_bfloat16(a.astype(np.float64)) for a in (q, k, v))
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(8)
    weights = softmax(np.where(np.tri(32, dtype=bool), scores, -np.inf), axis=-1)
    return y.astype(np.float64), np.einsum("nhqk,nkhd->nqhd", weights, v)


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_fused_attention_rounds_its_factors_and_its_result_and_no_score(backend: str, tmp_path: Path) -> None:
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    y, exact = attended(backend, tmp_path)
    assert np.array_equal(y, to_bfloat16(y))
    # JAX's stand-in rounds the weights too, as fused kernels do.
    assert np.abs(y - exact).max() < 2.0**-8 * np.abs(exact).max()
    if backend == "torch":
        assert (y == to_bfloat16(exact)).mean() > 0.99


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("backend", "old", "new"),
    [
        ("torch", "is_causal=causal", "is_causal=False"),
        ("torch", "q, k, v = to_bfloat16(q), to_bfloat16(k), to_bfloat16(v)", "pass"),
        ("torch", "return to_float32(F.scaled", "return (F.scaled"),
        ("jax", "is_causal=self.causal", "is_causal=False"),
        ("jax", "(to_bfloat16(part) for part in", "(part for part in"),
    ],
)
def test_fused_attention_that_computes_something_else_is_found(
    backend: str, old: str, new: str, tmp_path: Path
) -> None:
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    y, exact = attended(backend, tmp_path, old, new)
    right = np.abs(y - exact).max() < 2.0**-8 * np.abs(exact).max() and np.array_equal(y, to_bfloat16(y))
    assert not (right and (backend == "jax" or (y == to_bfloat16(exact)).mean() > 0.99))
