"""Lanes: ways of running the same training that differ in speed and in nothing else.

A lane is filled by strategies. `default` is what a framework's own beginner's guide does, `step` one compiled call a
step, `best` whatever a short trial finds to be the fastest of all there are, the two other lanes' among them.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from harness import flops
from harness.emit import graphs
from harness.errors import CallError
from harness.graph import Graph, Node, Program
from harness.ops.linear import Dense
from harness.precision import PRECISIONS

LANES = ("default", "step", "best")
BYTES = {"cpu": 64 * 2**20, "gpu": 2**29}
"""What the batches of one call may hold at most. TensorFlow's MLP took 2 % less a step with 68 in a call than
with 34, and 1 % less with 136 than with 68: a call costs a millisecond or more by itself."""
MOST = {"cpu": 10_000, "gpu": 1_000}
"""Steps that one call takes at most. On a GPU a step takes ten or more microseconds of launches, however little it computes."""
WORK, FEW = {"cpu": 2e10, "gpu": 5e12}, 8
"""Floating-point operations that one call does at most, some tenths of a second; but it has these steps at least, or
what a call costs, and the memory that each has anew, are shared by none."""
DEVICES = ("cpu", "gpu")

GRAPHS = ("graph", "autotuned", "flash")
"""PyTorch's strategies whose step is captured as a CUDA graph."""
TINY = 3e4
"""Floating-point operations of a step at most where `unrolled` is tried: more take longer than a call of them costs."""


@dataclass(frozen=True)
class Strategy:
    """One way of running a backend's program, which the emitter writes."""

    backend: str
    name: str
    lanes: tuple[str, ...]
    about: str
    many: bool = False
    """Whether one call takes many steps."""
    devices: tuple[str, ...] = DEVICES
    """Where it is tried: layers written for one compiler and processor are slower on another."""


CPU, GPU = ("cpu",), ("gpu",)
ON = {
    ("torch", "late_relu"): CPU,
    ("torch", "whole"): CPU,
    ("torch", "unrolled"): CPU,
    ("torch", "graph"): GPU,
    ("torch", "autotuned"): GPU,
    ("torch", "flash"): GPU,
    ("tensorflow", "tuned"): CPU,
    ("jax", "tuned"): CPU,
    ("jax", "tuned_scan"): CPU,
    ("jax", "cudnn"): GPU,
}
"""Where strategies are tried that are for one kind of device. On a GPU `graph` does what `whole` and `unrolled` are for."""
STRATEGIES = {
    (backend, name): Strategy(backend, name, lanes, about, many, ON.get((backend, name), DEVICES))
    for backend, name, lanes, about, many in (
        ("torch", "eager", ("default", "best"), "eager, the optimizer as it comes", False),
        ("torch", "fused", ("step", "best"), "eager, the optimizer's fused kernel", False),
        (
            "torch",
            "native",
            ("step", "best"),
            "eager, fused kernels of the optimizer and of batch normalisation",
            False,
        ),
        ("torch", "late_relu", ("best",), "`native`, and ReLU after max pooling", False),
        ("torch", "compiled", ("step", "best"), "torch.compile of the loss, the optimizer's fused kernel", False),
        ("torch", "whole", ("best",), "forward, backward and optimizer captured and compiled as one function", False),
        ("torch", "unrolled", ("best",), "many whole steps, of a tiny network, compiled as one function", True),
        ("torch", "graph", ("best",), "torch.compile of the loss, and the whole step captured as a CUDA graph", False),
        (
            "torch",
            "autotuned",
            ("best",),
            "`graph`, with convolutions by whichever kernel cuDNN finds the fastest",
            False,
        ),
        ("torch", "flash", ("best",), "`graph`, with PyTorch's fused attention of bfloat16 values", False),
        ("tensorflow", "fit", ("default", "best"), "Keras compile and fit", True),
        ("tensorflow", "function", ("step", "best"), "one tf.function call a step", False),
        ("tensorflow", "function_xla", ("step", "best"), "one tf.function call a step, compiled by XLA", False),
        ("tensorflow", "loop", ("best",), "many steps in one tf.function call", True),
        ("tensorflow", "loop_xla", ("best",), "many steps in one tf.function call, compiled by XLA", True),
        (
            "tensorflow",
            "tuned",
            ("best",),
            "many steps in one call, compiled by XLA, layers written for it on CPUs",
            True,
        ),
        ("jax", "nnx", ("default", "best"), "nnx.jit on the model and its optimizer, one call a step", False),
        ("jax", "jit", ("step", "best"), "one donated jax.jit call a step", False),
        ("jax", "scan", ("best",), "many steps in one call by jax.lax.scan", True),
        ("jax", "tuned", ("best",), "one donated jax.jit call a step, layers written for XLA on CPUs", False),
        (
            "jax",
            "tuned_scan",
            ("best",),
            "many steps in one call by jax.lax.scan, layers written for XLA on CPUs",
            True,
        ),
        ("jax", "cudnn", ("best",), "`scan`, with cuDNN's LSTM, or in bfloat16 its fused attention", True),
    )
}
NARROWING = "dense with fewer outputs than inputs"
CONVOLUTIONS = {"conv1d", "conv2d", "conv_transpose2d"}
XLA_LOOPS = frozenset({("tensorflow", "loop_xla"), ("jax", "scan")})
"""Many steps in one call, compiled by XLA, with the layers that the framework has."""
XLA_CALLS = frozenset({("tensorflow", "function_xla")})
"""One step a call, compiled by XLA, where another way has the framework's own kernels."""
WITHOUT_BARRIER = {
    **dict.fromkeys([("tensorflow", "function_xla"), ("tensorflow", "loop_xla"), ("tensorflow", "tuned")], "XLA"),
    **dict.fromkeys([("torch", name) for name in ("compiled", "whole", "unrolled", *GRAPHS)], "Inductor"),
}
"""By strategy in which nothing can hold a value fixed, the compiler. Inductor has no barrier (pytorch/pytorch#186799, #186953); XLA has one,
but the same functions are evaluated without XLA."""
TUNED = {
    ("torch", "native"): {"batch_norm"},
    ("torch", "autotuned"): CONVOLUTIONS,
    ("tensorflow", "tuned"): {NARROWING, "lstm"},
    ("jax", "tuned"): {NARROWING, "attention", "conv2d", "layer_norm", "lstm", "max_pool2d"},
    ("jax", "tuned_scan"): {NARROWING, "attention", "layer_norm", "lstm", "max_pool2d"},
}
"""The ops for which a strategy is there that has other layers than the others, or another library's kernels."""
FUSED = {
    ("torch", "flash"): {"bfloat16": {"attention"}},
    ("jax", "cudnn"): {"float32": {"lstm"}, "tf32": {"lstm"}, "bfloat16": {"attention"}},
}
"""By what products round their factors to: the ops that a strategy has a library's fused kernel for, if they drop nothing.

JAX's LSTM by cuDNN takes no bfloat16, and its attention nothing wider; PyTorch's attention is fused in float32 in all its ways.
"""
PLAIN = {"torch": "fused", "tensorflow": "function", "jax": "jit"}
"""The strategy of the program that `harness run` trains and `harness check` checks."""

INFERENCE = {"torch": ("eager", "compiled"), "tensorflow": ("eager", "function", "function_xla"), "jax": ("nnx", "jit")}
"""How a trained network is asked, the framework's beginner's way first."""


def strategies(
    program: Program, backend: str, lanes: tuple[str, ...] = LANES, device: str = "cpu", precision: str = "float32"
) -> list[Strategy]:
    """Those of a backend that are in one of the lanes, for the device, and can run the program.

    Of the lane `best` alone none that is known to be slow: it would be compiled and checked for nothing.
    """
    own = [s for s in STRATEGIES.values() if s.backend == backend and set(s.lanes) & set(lanes) and device in s.devices]
    own = [s for s in own if set(s.lanes) & set(lanes) - {"best"} or slow(program, s, device) is None]
    return [s for s in own if applies(program, s, precision)]


def left_out(
    program: Program, backend: str, lanes: tuple[str, ...] = LANES, device: str = "cpu", precision: str = "float32"
) -> dict[str, str]:
    """By strategy of these lanes and that device which `strategies` leaves out, why."""
    kept = strategies(program, backend, lanes, device, precision)
    own = [s for s in STRATEGIES.values() if s.backend == backend and set(s.lanes) & set(lanes) and device in s.devices]
    return {s.name: why_not(program, s, precision) or slow(program, s, device) or "" for s in own if s not in kept}


def slow(program: Program, strategy: Strategy, device: str = "cpu") -> str | None:
    """Why a way of running the program is known to be no backend's fastest, if it is.

    On CPUs convolutions in a loop of XLA's take three to eleven times as long as outside of one (LeNet, AlexNet), and a step
    that XLA compiles 1.15 to 3 times as long as one of TensorFlow's own kernels.
    """
    if device != "cpu" or not any(node.op.kind in CONVOLUTIONS for graph in graphs(program) for node in graph.nodes):
        return None
    if (strategy.backend, strategy.name) in XLA_LOOPS:
        return "takes many steps in one call: convolutions in it lose XLA's fast path on CPUs"
    if (strategy.backend, strategy.name) in XLA_CALLS:
        return "has XLA's convolutions, which take longer on CPUs than TensorFlow's own"
    return None


def applies(program: Program, strategy: Strategy, precision: str = "float32") -> bool:
    """Whether the program can be run so, and is one that it is for."""
    return why_not(program, strategy, precision) is None


def why_not(program: Program, strategy: Strategy, precision: str = "float32") -> str | None:
    """Why a program is not run so."""
    if (strategy.many or strategy.name in ("whole", *GRAPHS)) and program.spec.data.last_batch == "keep":
        return "needs batches of one size; with 'last_batch: keep' they differ"
    if strategy.name == "unrolled" and flops.step(program) > TINY:
        return f"is for steps of at most {TINY:g} floating-point operations; these have {flops.step(program):.3g}"
    factors = PRECISIONS[precision].factors
    if (fused := FUSED.get((strategy.backend, strategy.name))) is not None and not any(
        node.op.kind in fused.get(factors, ()) and not node.op.mask(*node.input_shapes)
        for graph in graphs(program)
        for node in graph.nodes
    ):
        return f"has a fused kernel for {spoken(fused)} without dropout, and there is none"
    if strategy.name == "late_relu" and not any(early_relus(graph) for graph in graphs(program)):
        return "is for networks where a maximum is taken of a ReLU"
    if (compiler := WITHOUT_BARRIER.get((strategy.backend, strategy.name))) and any(
        node.op.kind == "global_max_pool" for graph in graphs(program) for node in graph.nodes
    ):
        return (
            f"is compiled by {compiler}, which may compute what a maximum over all positions is of anew for its gradient, "
            "rounded otherwise: then nothing equals the maximum, and the gradient is lost or no number"
        )
    if tuned := TUNED.get((strategy.backend, strategy.name)):
        kinds = {NARROWING if narrows(node) else node.op.kind for graph in graphs(program) for node in graph.nodes}
        if strategy.name in ("tuned", "tuned_scan") and factors == "bfloat16":
            return "has layers of its own, which do not round to bfloat16: in bfloat16 there are the plain ones"
        if not kinds & tuned:
            return f"is for {', '.join(sorted(tuned))}, and there is none"
        if strategy.many and kinds & CONVOLUTIONS:
            return "takes many steps in one call: convolutions in it lose XLA's fast path on CPUs"
    return None


def spoken(fused: Mapping[str, Collection[str]]) -> str:
    """Ops and what their factors are rounded to, in a sentence.

    >>> spoken({"tf32": ["lstm"], "bfloat16": ["attention"]})
    'lstm (tf32), attention (bfloat16)'
    """
    return ", ".join(f"{' and '.join(sorted(kinds))} ({factors})" for factors, kinds in fused.items())


def narrows(node: Node) -> bool:
    """Whether a node is a dense layer with fewer outputs than inputs.

    Where its kernel is [inputs, outputs], XLA takes longer on CPUs at its gradient, up to twice as long. Of a kernel of one
    output both orders are the same.
    """
    return isinstance(node.op, Dense) and 1 < node.op.units < node.input_shapes[0][-1]


def early_relus(graph: Graph) -> dict[str, str]:
    """The ReLUs that nothing but a max pooling reads, each with that pooling: it may as well come first."""
    found = {}
    for node in graph.nodes:
        users = graph.users(node.name)
        if node.op.kind == "relu" and node.name != graph.output and len(users) == 1:
            (user,) = users
            # Every window sees more than padding, which is -inf: a pooling that does not is refused.
            if user.op.kind in ("max_pool1d", "max_pool2d"):
                found[node.name] = user.name
    return found


def room(program: Program, precision: str, device: str = "cpu") -> int:
    """How many steps one call may take: by what their batches hold and what they compute."""
    width = 8 if precision == "float64" else 4
    numbers = sum(math.prod(column.shape) for column in program.fields.values())
    numbers += sum(math.prod(shape) for layers in program.masks.values() for shape, _ in layers.values())
    by_work = max(FEW, int(WORK[device] // max(1, flops.step(program))))
    return max(1, min(MOST[device], BYTES[device] // (width * program.batch * max(1, numbers)), by_work))


def steps_a_call(program: Program, precision: str) -> int:
    """How many steps one call of a whole training takes: as many as there is room for, split evenly."""
    return math.ceil(program.steps / math.ceil(program.steps / room(program, precision)))


def require(program: Program, backend: str, name: str | None, *, observe: bool, precision: str = "float32") -> None:
    """Raise CallError unless a backend has such a strategy, and it can run the program."""
    if name is None:
        return
    strategy = STRATEGIES.get((backend, name))
    if strategy is None:
        known = ", ".join(own for of, own in STRATEGIES if of == backend)
        raise CallError(f"unknown strategy '{name}' (of {backend}: {known})")
    if why := why_not(program, strategy, precision):
        raise CallError(f"strategy '{name}' {why}")
    if observe and name != PLAIN[backend]:
        raise CallError(f"--observe goes with strategy '{PLAIN[backend]}' alone")
