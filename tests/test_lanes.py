"""Every way of running a program's steps: the same losses and states, from text that differs where it must alone."""

import ast
import json
import runpy
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from build import INSTALLED, Arrays, Live, live, program_of, program_of_case
from cases import CASES, ONE_A_WORD, spec_of

from harness import flops, lanes, spec
from harness.errors import CallError
from harness.expressions import Call, Name
from harness.graph import Program
from harness.programs import emitted
from harness.questions import to_json
from harness.resolve import compile_spec

SPECS = ["linear_regression", "digits_mlp", "digits_cnn", "digits_lstm", "char_transformer", "digits_gan"]
DATA = {"dataset": "digits", "batch": 6}
DENSE = [{"dense": {"units": 5, "bias": False}}, "batch_norm", "relu", {"dropout": 0.3}, {"dense": 10}]
SINGLE = {
    "name": "single", "data": DATA,
    "networks": {"net": {"inputs": ["image"], "layers": ["flatten", *DENSE]}},
    "training": {"steps": 7, "updates": [{
        "loss": {"softmax_cross_entropy": {"logits": "net(image)", "labels": "label"}},
        "optimizer": {"adamw": {"learning_rate": 0.02, "weight_decay": 0.1, "no_decay": ["bias"]}},
        "schedule": {"cosine": {"warmup": 3}}, "clip": {"global_norm": 0.5},
    }]},
}  # fmt: skip
SEVERAL = {
    "name": "several", "data": DATA | {"noise": {"noise": {"shape": [3]}}},
    "networks": {
        "maker": {"inputs": ["noise"], "layers": [{"dense": 64}, {"reshape": [8, 8, 1]}]},
        "critic": {"inputs": ["image"], "layers": ["flatten", {"dense": 1}]},
    },
    "training": {"steps": 7, "updates": [
        {"name": "critic", "over": "critic", "loss": [
            {"sigmoid_cross_entropy": {"logits": "critic(image)", "targets": 1}},
            {"sigmoid_cross_entropy": {"logits": "critic(maker(noise))", "targets": 0}},
        ], "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}}, "clip": {"value": 0.01}},
        {"name": "maker", "over": "maker",
         "loss": {"sigmoid_cross_entropy": {"logits": "critic(maker(noise))", "targets": 1}},
         "optimizer": {"adam": {"learning_rate": 0.01}}},
    ]},
}  # fmt: skip
PLAIN_SGD = {
    "name": "plain_sgd", "data": {"dataset": "diabetes", "batch": 4, "normalise": "standardise"},
    "networks": {"net": {"inputs": ["features"], "layers": [{"dense": 1}]}},
    "training": {"steps": 5, "updates": [
        {"loss": {"mse": {"predictions": "net(features)", "targets": "target"}}, "optimizer": {"sgd": {"learning_rate": 1e-4}}}
    ]},
}  # fmt: skip
SEQUENCE = [
    {"reshape": [4, 16]}, {"lstm": {"units": 6, "returns": "sequence"}}, "layer_norm", {"attention": {"heads": 2, "causal": True}},
    {"lstm": {"units": 4, "returns": "last"}}, {"dense": 10},
]  # fmt: skip
POOLED = [
    {"conv2d": {"channels": 3, "kernel": 3, "bias": False}}, "batch_norm", "relu", {"max_pool2d": 2},
    {"conv2d": {"channels": 2, "kernel": 2}}, "relu", "flatten", {"dense": 10},
]  # fmt: skip
REWRITTEN = {"sequence": SEQUENCE, "pooled": POOLED}
"""Layers that some strategies write otherwise."""
MINIS = {"single": SINGLE, "several": SEVERAL, "plain_sgd": PLAIN_SGD} | {
    name: SINGLE | {"name": name, "networks": {"net": {"inputs": ["image"], "layers": layers}}}
    for name, layers in REWRITTEN.items()
}
STRATEGIES = [s for s in lanes.STRATEGIES.values() if s.name != lanes.PLAIN[s.backend]]
RUNNABLE = [
    pytest.param(s, id=f"{s.backend}-{s.name}", marks=() if s.backend in INSTALLED else pytest.mark.skip(reason=f"{s.backend} is not installed"))
    for s in STRATEGIES
]  # fmt: skip


def bundled(name: str) -> Program:
    return compile_spec(*spec.load(spec.find(name)))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.backend}-{s.name}")
@pytest.mark.parametrize("name", ["digits_gan", "char_transformer", "digits_cnn"])
def test_a_strategy_changes_how_steps_are_run_and_nothing_that_they_compute(
    name: str, strategy: lanes.Strategy
) -> None:
    program = bundled(name)
    plain, other = (
        {n.name: ast.unparse(n) for n in ast.parse(text).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        for text in (emitted(program, strategy.backend, "float32"), emitted(program, strategy.backend, "float32", strategy=strategy.name))
    )  # fmt: skip
    meaning = {
        n
        for n in plain
        if n.endswith(("_loss", "loss_fn", "learning_rate", "LearningRate")) or n in ("load_batch", "dropout_masks")
    }
    if (strategy.backend, strategy.name) not in lanes.TUNED:
        meaning |= {graph.class_name for net in program.networks.values() for graph in (*net.blocks, net)}
    assert len(meaning) > 2
    assert (strategy.name == "late_relu") <= (lanes.applies(program, strategy) == (plain != other))
    for own in meaning & plain.keys():
        text = other[own].removeprefix("@torch.compile\n")
        if strategy.name == "late_relu":  # the same statements in another order
            assert sorted(text.splitlines()) == sorted(plain[own].splitlines())
            continue
        # The default way has Flax's normalisations as they come.
        assert text == (plain[own].replace("use_fast_variance=False, ", "") if strategy.name == "nnx" else plain[own])
    assert plain != other or strategy.name in ("eager", "late_relu") or not lanes.applies(program, strategy)


def test_a_plain_strategy_is_the_plain_program() -> None:
    program = bundled("digits_mlp")
    for backend, name in lanes.PLAIN.items():
        assert emitted(program, backend, "float32", strategy=name) == emitted(program, backend, "float32")
        assert lanes.STRATEGIES[backend, name].lanes == ("step", "best")


@pytest.mark.parametrize("backend", lanes.PLAIN)
def test_every_lane_of_every_backend_has_a_strategy(backend: str) -> None:
    program = bundled("digits_mlp")
    assert {lane for s in lanes.strategies(program, backend) for lane in s.lanes} == set(lanes.LANES)
    assert [s.lanes for s in lanes.strategies(program, backend, ("default",))] == [("default", "best")]


@pytest.mark.parametrize("backend", lanes.PLAIN)
def test_the_lane_best_is_the_fastest_of_all_ways_those_of_the_other_lanes_too(backend: str) -> None:
    assert all("best" in s.lanes for s in lanes.STRATEGIES.values() if s.backend == backend)


def test_no_compiler_computes_anew_what_a_maximum_over_all_positions_is_of() -> None:
    """Nothing would equal the maximum: XLA's gradient was 0 / 0, Inductor's 0. JAX's programs hold it fixed themselves."""
    program = program_of_case("global_max_pool")
    average = program_of_case("global_avg_pool")
    refused = {}
    for key, compiler in lanes.WITHOUT_BARRIER.items():
        if lanes.why_not(average, lanes.STRATEGIES[key]) is None:  # it is there for its like
            refused[key] = compiler
            assert f"is compiled by {compiler}, which may compute" in str(lanes.why_not(program, lanes.STRATEGIES[key]))
    assert {
        ("torch", "compiled"),
        ("torch", "whole"),
        ("torch", "graph"),
        ("tensorflow", "function_xla"),
    } <= refused.keys()
    assert [s.name for s in lanes.strategies(program, "torch")] == ["eager", "fused"]
    assert {"jit", "scan"} <= {s.name for s in lanes.strategies(program, "jax")}


def test_what_is_known_to_be_slow_is_tried_only_where_its_lane_is_asked_for() -> None:
    program = bundled("digits_cnn")

    def names(backend: str, *wanted: str, device: str = "cpu") -> set[str]:
        return {s.name for s in lanes.strategies(program, backend, wanted, device)}

    assert names("tensorflow", "default", "best") == {"fit", "function", "loop"}
    assert names("tensorflow", "step") == {"function", "function_xla"}
    assert names("tensorflow", "best", device="gpu") == {"fit", "function", "function_xla", "loop", "loop_xla"}
    assert names("jax", "best") == {"nnx", "jit", "tuned"}
    said = lanes.left_out(program, "tensorflow", ("best",))
    assert said["loop_xla"] == "takes many steps in one call: convolutions in it lose XLA's fast path on CPUs"
    assert said.keys() == {"function_xla", "loop_xla", "tuned"}
    lanes.require(program, "jax", "scan", observe=False)  # whoever asks for it has it
    mlp = bundled("digits_mlp")
    assert {"loop_xla", "function_xla"} <= {s.name for s in lanes.strategies(mlp, "tensorflow", ("best",))}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("jax", "fused", False), r"unknown strategy 'fused' \(of jax: nnx, jit, scan, tuned, tuned_scan, cudnn\)"),
        (("jax", "tuned", False), "'tuned' has layers of its own, which do not round to bfloat16"),
        (("torch", "whole", True), "--observe goes with strategy 'fused' alone"),
        (("torch", "late_relu", False), "is for networks where a maximum is taken of a ReLU"),
        (("torch", "autotuned", False), "is for conv1d, conv2d, conv_transpose2d, and there is none"),
        (
            ("torch", "flash", False),
            r"has a fused kernel for attention \(bfloat16\) without dropout, and there is none",
        ),
        (
            ("jax", "cudnn", False),
            r"for lstm \(float32\), lstm \(tf32\), attention \(bfloat16\) without dropout, and there",
        ),
        (("torch", "unrolled", False), "is for steps of at most 30000 floating-point operations"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(arguments: tuple[str, str, bool], expected: str) -> None:
    backend, name, observe = arguments
    with pytest.raises(CallError, match=expected):
        lanes.require(bundled("digits_mlp"), backend, name, observe=observe, precision="bfloat16")


def test_layers_of_its_own_are_for_networks_that_have_such() -> None:
    with pytest.raises(
        CallError, match=r"'tuned' is for attention, .*, dense with fewer outputs than inputs, .* and there is none"
    ):
        lanes.require(bundled("linear_regression"), "jax", "tuned", observe=False)


def test_batches_of_different_sizes_are_not_stacked() -> None:
    program = program_of(SINGLE | {"data": DATA | {"last_batch": "keep"}})
    left = {s.name for backend in lanes.PLAIN for s in lanes.strategies(program, backend)}
    assert left == {"eager", "fused", "native", "compiled", "function", "function_xla", "nnx", "jit", "tuned"}
    for backend, name in (("jax", "scan"), ("torch", "whole")):
        with pytest.raises(CallError, match="needs batches of one size"):
            lanes.require(program, backend, name, observe=False)


def test_a_relu_that_something_else_reads_stays_first() -> None:
    def found(*layers: object) -> dict[str, str]:
        text = SINGLE | {"networks": {"net": {"inputs": ["image"], "layers": [*layers, "flatten", {"dense": 10}]}}}
        return lanes.early_relus(program_of(text).networks["net"])

    assert found("relu", {"max_pool2d": 2}) == {"relu1": "pool1"}
    assert found({"relu": {"name": "early"}}, {"max_pool2d": 1}, {"add": {"inputs": ["early", "pool1"]}}) == {}
    assert found("tanh", {"max_pool2d": 2}) == found("relu", {"avg_pool2d": 2}) == {}


@pytest.mark.parametrize("steps", [1, 7, 100, 1999, 100_000])
def test_calls_share_the_steps_evenly(steps: int) -> None:
    program = program_of(PLAIN_SGD, steps=steps)
    size = lanes.steps_a_call(program, "float32")
    calls = -(-steps // size)
    assert 1 <= size <= lanes.MOST["cpu"]
    assert calls * size - steps < calls, "no call is shorter by more than one step's share"
    heavy = bundled("char_transformer")
    assert lanes.room(heavy, "float64") * flops.step(heavy) <= max(lanes.WORK["cpu"], lanes.FEW * flops.step(heavy))


def captured_on_a_cpu(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs where there is no GPU: a replay runs the captured step again on its tensors, into its tensors."""
    import torch  # noqa: PLC0415

    step, calls = module.train_step, []

    def recorded(*given: object) -> object:
        calls.append((given, step(*given)))
        return calls[-1][1]

    class Graph:
        def replay(self) -> None:
            given, result = calls[-1]
            again = step(*given)
            for old, new in (
                [(result, again)]
                if isinstance(result, torch.Tensor)
                else zip(result.values(), again.values(), strict=True)
            ):
                old.copy_(new)

    waiting = SimpleNamespace(wait_stream=lambda _other: None)
    fakes = {"Stream": lambda: waiting, "current_stream": lambda: waiting, "CUDAGraph": Graph}
    fakes |= {"stream": lambda _stream: nullcontext(), "graph": lambda _graph: nullcontext()}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    module.train_step = recorded  # type: ignore[attr-defined]


def by_hand(program: Program, strategy: lanes.Strategy | None, backend: str, folder: Path) -> Live:
    folder.mkdir()
    return live(backend, program, folder, strategy=strategy.name if strategy else None)


SLOW = {
    *((s.backend, s.name, name) for s in STRATEGIES for name in MINIS if name not in ("single", "several", "sequence")),
    *(("torch", "unrolled", name) for name in MINIS if name != "single"), ("torch", "whole", "sequence"), ("torch", "compiled", "sequence"),
    ("jax", "nnx", "sequence"), ("jax", "tuned_scan", "sequence"),
}  # fmt: skip
"""What takes longest to compile, of strategies and of layers that others of `tests` have, too."""


def trained() -> list[Any]:
    """Every strategy with every program."""
    found = []
    for param in RUNNABLE:
        own = param.values[0]
        for name in MINIS:
            marks = [*param.marks, *([pytest.mark.slow] if (own.backend, own.name, name) in SLOW else [])]
            found.append(pytest.param(own, name, id=f"{param.id}-{name}", marks=marks))
    return found


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo, where it breaks the graph at nn.LSTM
@pytest.mark.parametrize(("strategy", "name"), trained())
def test_every_strategy_trains_alike(
    strategy: lanes.Strategy, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compiling takes `unrolled` the longer the more steps there are: four, in functions of three steps and of one.
    program = program_of(MINIS[name], steps=4) if strategy.name == "unrolled" else program_of(MINIS[name])
    if not lanes.applies(program, strategy) or (
        name in REWRITTEN and strategy.backend != "torch" and strategy.name != "nnx"
        and (strategy.backend, strategy.name) not in lanes.TUNED
    ):  # fmt: skip
        pytest.skip("is not for such a program")
    plain, other = (by_hand(program, s, strategy.backend, tmp_path / str(bool(s))) for s in (None, strategy))
    if strategy.name in lanes.GRAPHS and other.session.module.DEVICE.type == "cpu":
        captured_on_a_cpu(other.session.module, monkeypatch)
    if strategy.name == "unrolled":
        monkeypatch.setattr(other.session.module, "UNROLLED", 3)
    losses: list[list[dict[str, float]]] = []
    for own in (plain, other):
        session = own.session
        losses.append([session.wait(session.step(i, session.batch(own.inputs, i))) for i in range(program.steps)])
    # Where a CUDA graph reads the learning rate from the device, it is a float32.
    rough = strategy.name in lanes.GRAPHS and name not in ("several", "plain")
    close = 1e-6 if rough else 1e-12
    for one, two in zip(*losses, strict=True):
        assert two == pytest.approx(one, rel=close)
    same(plain, other, rough=rough)
    # All steps again, in as few calls as the strategy takes, from where the first training began.
    session = other.session
    session.load(other.parameters)
    session.load_optimizer({n: np.zeros_like(a) for n, a in session.optimizer_state().items()})
    stack = session.stack([session.batch(other.inputs, i) for i in range(program.steps)])
    found = session.losses(session.steps(0, stack, program.steps))
    assert found == {n: pytest.approx([step[n] for step in losses[0]], rel=close) for n in losses[0][0]}
    same(plain, other, rough=rough)


@pytest.mark.frameworks
@pytest.mark.skipif("tensorflow" not in INSTALLED, reason="tensorflow is not installed")
def test_in_float32_adams_kernel_has_the_corrections_of_the_betas_it_takes(tmp_path: Path) -> None:
    """A first step is as long as the learning rate, whatever the gradient; by corrections of other betas, 6e-6 off."""
    text = json.loads(json.dumps(PLAIN_SGD))
    text["training"]["updates"][0]["optimizer"] = {"adam": {"learning_rate": 0.01, "epsilon": 1e-30}}
    own = live("tensorflow", program_of(text), tmp_path, "float32", strategy="loop")
    before = own.session.state()["dense1.bias"]
    assert not before.any(), "a difference would lose digits"
    own.session.wait(own.session.step(0, own.session.batch(own.inputs, 0)))
    moved = np.abs(own.session.state()["dense1.bias"].astype(np.float64))
    assert moved == pytest.approx(0.01, rel=1e-6)


def same(one: Live, other: Live, *, rough: bool = False) -> None:
    for what in ("state", "optimizer_state"):
        a, b = (getattr(own.session, what)() for own in (one, other))
        assert a.keys() == b.keys()
        for name, array in a.items():
            if name.endswith("key_bias"):
                continue  # a softmax does not see it: its gradient is zero but for rounding, and Adam magnifies that
            np.testing.assert_allclose(
                b[name], array, rtol=1e-5 if rough else 1e-11, atol=1e-7 if rough else 1e-13, err_msg=name
            )


OF_ITS_OWN = [
    pytest.param(s, name, id=f"{s.backend}-{s.name}-{name}", marks=[
        *([] if s.backend in INSTALLED else [pytest.mark.skip(reason=f"{s.backend} is not installed")]),
        *([] if name in ONE_A_WORD else [pytest.mark.slow]),
    ])
    for s in STRATEGIES if s.name in ("tuned", "native")
    for name in CASES if lanes.applies(program_of_case(name), s)
]  # fmt: skip


def computed(backend: str, program: Program, folder: Path, strategy: str | None, text: str | None = None) -> Arrays:
    """Outputs, loss, gradients of parameters and inputs, and the state after a step."""
    folder.mkdir()
    own = live(backend, program, folder, strategy=strategy, text=text)
    session, batch = own.session, own.session.batch(own.inputs, 0)
    found = {f"gradient of {name}": array for name, array in session.gradients(batch, inputs=True).items()}
    found["outputs"] = session.evaluate(to_json(Call("net", (Name("x"),))), {"x": own.inputs["train.x"]})
    found |= {f"loss {name}": np.array(loss) for name, loss in session.wait(session.step(0, batch)).items()}
    return found | session.state()


def alike(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.frameworks
@pytest.mark.parametrize(("strategy", "name"), OF_ITS_OWN)
def test_layers_of_its_own_compute_what_the_plain_ones_do(strategy: lanes.Strategy, name: str, tmp_path: Path) -> None:
    program = program_of(spec_of(CASES[name]))
    alike(*(computed(strategy.backend, program, tmp_path / str(own), own) for own in (None, strategy.name)))


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("backend", "case", "old", "new"),
    [
        ("jax", "max_pool2d ties", "values > highest", "values >= highest"),
        (
            "jax",
            "conv2d same",
            "for i in range(rows) for j in range(columns)",
            "for j in range(columns) for i in range(rows)",
        ),
        ("jax", "lstm", "dc * f), dgates", "dc), dgates"),
        ("tensorflow", "lstm", "dc * f, *write", "dc, *write"),
        ("jax", "layer_norm", "self.epsilon", "0.1"),
        ("jax", "dense on a sequence", "self.kernel[...].T\n        y", "self.kernel[...].T * 1.001\n        y"),
        ("jax", "dense", "y + self.bias[...]", "y - self.bias[...]"),
        ("tensorflow", "dense on a sequence", "self.kernel, transpose_b", "1.001 * self.kernel, transpose_b"),
        ("tensorflow", "dense", "else y + self.bias", "else y - self.bias"),
        ("torch", "batch_norm", "(n - 1) / n", "1.0"),
    ],
)
def test_layers_of_its_own_that_compute_otherwise_are_found(
    backend: str, case: str, old: str, new: str, tmp_path: Path
) -> None:
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    program = program_of(spec_of(CASES[case]))
    strategy = "native" if backend == "torch" else "tuned"
    text = emitted(program, backend, "float64", strategy=strategy)
    assert old in text
    plain = computed(backend, program, tmp_path / "plain", None)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        alike(plain, computed(backend, program, tmp_path / "tuned", strategy, text.replace(old, new)))


@pytest.mark.frameworks
@pytest.mark.parametrize("strategy", [
    pytest.param(*p.values, id=p.id, marks=[*p.marks, pytest.mark.slow]) if p.id == "torch-unrolled" else p for p in RUNNABLE
])  # fmt: skip
def test_its_program_alone_prints_the_losses_of_the_plain_one(
    strategy: lanes.Strategy, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`main` as a user runs it, in this process: what it prints."""
    from harness import runs  # noqa: PLC0415

    if strategy.name in lanes.GRAPHS:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("a CUDA graph needs a GPU")
    path = tmp_path / "several.yaml"
    path.write_text(json.dumps(SEVERAL))
    inputs = tmp_path / "run"
    inputs.mkdir()
    program = program_of(SEVERAL)
    runs.write_inputs(
        inputs,
        program,
        runs.prepared(program, spec.load(path)[1]),
        spec.load(path)[1],
        runs.Options(precision="float64"),
        None,
    )
    printed = []
    for name in (None, strategy.name):
        file = tmp_path / f"program_{name}.py"
        file.write_text(emitted(program, strategy.backend, "float64", strategy=name))
        monkeypatch.setattr(sys, "argv", [str(file), str(inputs)])
        if hasattr(__import__("os"), "sched_setaffinity"):
            monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
        if strategy.backend == "tensorflow":
            file.write_text("\n".join(line for line in file.read_text().splitlines() if "config.threading" not in line))
        runpy.run_path(str(file), run_name="__main__")
        rows = [line.split() for line in capfd.readouterr().out.splitlines() if line[:1].isdigit()]
        printed.append([[float(number) for number in row] for row in rows])
    assert len(printed[0]) == program.steps
    assert [row[0] for row in printed[1]] == [row[0] for row in printed[0]]
    np.testing.assert_allclose(printed[1], printed[0], rtol=1e-11)
    shutil.rmtree(inputs)


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["single", "several", "digits_cnn", "digits_gan"])
def test_operations_are_as_many_as_pytorch_counts(name: str, tmp_path: Path) -> None:
    if "torch" not in INSTALLED:
        pytest.skip("needs torch")
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    program = program_of(MINIS[name]) if name in MINIS else bundled(name)
    own = by_hand(program, None, "torch", tmp_path / "torch")
    batch = own.session.batch(own.inputs, 0)
    with FlopCounterMode(display=False) as counter:
        own.session.step(0, batch)
    # PyTorch also goes back through networks whose parameters are not moved, to their parameters.
    wasted = counter.get_total_flops() - flops.step(program)
    assert wasted >= 0
    assert (wasted > 0) == (len(program.networks) > 1)
    assert 0 < flops.forward(program) < flops.step(program) <= 3 * flops.forward(program)


def test_operations_of_a_recurrent_net_and_of_attention_are_those_on_paper() -> None:
    text = {
        "name": "rnn", "data": {"dataset": "digits", "batch": 2},
        "networks": {"net": {"inputs": ["image"], "layers": [{"reshape": [8, 8]}, {"lstm": 3}, {"dense": 10}]}},
        "training": SINGLE["training"],
    }  # fmt: skip
    t, d, h = 8, 8, 3
    step = t * (4 * d * h * 2 + 4 * h * h * 3) + 10 * h * 3
    assert flops.step(program_of(text)) == 2 * 2 * step
    text["networks"]["net"]["layers"] = [{"reshape": [8, 8]}, {"attention": 2}, "flatten", {"dense": 10}]  # type: ignore[index]
    step = 3 * t * d * d * 2 + t * d * d * 3 + 2 * t * t * d * 3 + t * d * 10 * 3
    assert flops.step(program_of(text)) == 2 * 2 * step


def test_bytes_of_a_step_are_those_on_paper() -> None:
    text = {
        "name": "mlp", "data": {"dataset": "digits", "batch": 5},
        "networks": {"net": {"inputs": ["image"], "layers": ["flatten", {"dense": 10}]}}, "training": SINGLE["training"],
    }  # fmt: skip
    program = program_of(text)
    (update,) = program.updates
    assert len(update.optimizer.remembers) == 2, "Adam"
    parameters, values = 64 * 10 + 10, 64 + 10
    forward = parameters + 5 * (64 + 2 * values)
    backward = parameters + 5 * 3 * values + 2 * parameters
    assert flops.traffic(program, "float32") == 4 * (forward + backward + (2 + 2 * 2) * parameters)
    assert flops.traffic(program, "float64") == 2 * flops.traffic(program, "float32")
