"""The op case table: a row or more for every op, run on every backend against the float64 reference.

A case is a list of layers and the shape of their input. A dense layer goes before a float input, so that the
gradient *through* each op is checked too. Ties and zeros at kinks come from inputs rounded to halves.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Layers, the shape of one example, and whether the example is ids or numbers."""

    layers: tuple[object, ...]
    shape: tuple[int, ...]
    ids: int | None = None
    rounded: bool = False
    """Inputs and no dense layer before: values on a grid of halves, so that kinks and ties are met exactly."""
    examples: int = 8
    """In the one batch that there is."""


def _case(
    *layers: object, shape: tuple[int, ...], ids: int | None = None, rounded: bool = False, examples: int = 8
) -> Case:
    return Case(layers, shape, ids, rounded, examples)


IDENTITY = {"dense": {"units": 3, "kernel_init": {"values": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]}}}

CASES: dict[str, Case] = {
    "dense": _case({"dense": 3}, shape=(4,)),
    "dense on a sequence": _case({"dense": {"units": 3, "bias": False}}, shape=(5, 4)),
    "relu": _case("relu", {"dense": 2}, shape=(6,)),
    "leaky_relu": _case({"leaky_relu": 0.2}, shape=(6,)),
    "leaky_relu at the kink": _case(IDENTITY, {"leaky_relu": 0.3}, shape=(3,), rounded=True),
    "relu at the kink": _case(IDENTITY, "relu", shape=(3,), rounded=True),
    "elu at the kink": _case(IDENTITY, {"elu": 0.5}, shape=(3,), rounded=True),
    "selu at the kink": _case(IDENTITY, "selu", shape=(3,), rounded=True),
    "elu": _case({"elu": 0.7}, shape=(6,)),
    "selu": _case("selu", shape=(6,)),
    "gelu": _case("gelu", shape=(6,)),
    "gelu tanh": _case({"gelu": "tanh"}, shape=(6,)),
    "silu": _case("silu", shape=(6,)),
    "sigmoid": _case("sigmoid", shape=(6,)),
    "tanh": _case("tanh", shape=(6,)),
    "softplus": _case({"dense": {"units": 6, "kernel_init": {"normal": {"std": 12}}}}, "softplus", shape=(6,)),
    "softmax": _case("softmax", shape=(3, 6)),
    "flatten": _case("flatten", {"dense": 2}, shape=(3, 2, 4)),
    "flatten after convolution": _case({"conv2d": {"channels": 3, "kernel": 2}}, "flatten", {"dense": 2}, shape=(4, 3, 2)),
    "reshape": _case({"reshape": [2, 2, 6]}, {"conv2d": {"channels": 2, "kernel": 2}}, shape=(4, 6)),
    "add": _case({"dense": {"units": 4, "name": "a"}}, {"dense": {"units": 4, "name": "b"}}, {"add": {"inputs": ["a", "b", "a"]}}, shape=(5,)),
    "multiply": _case({"dense": {"units": 4, "name": "a"}}, {"tanh": {"name": "b"}}, {"multiply": {"inputs": ["a", "b"]}}, shape=(5,)),
    "concatenate": _case({"dense": {"units": 4, "name": "a"}}, {"dense": {"units": 2, "name": "b"}}, {"concatenate": {"inputs": ["b", "a"]}}, shape=(5,)),
    "concatenate images": _case(
        {"conv2d": {"channels": 4, "kernel": 1, "name": "a"}}, {"conv2d": {"channels": 2, "kernel": 3, "padding": "same", "name": "b"}},
        {"concatenate": {"inputs": ["b", "a"]}}, {"conv2d": {"channels": 2, "kernel": 2}}, shape=(5, 4, 3)),
    "conv1d": _case({"conv1d": {"channels": 3, "kernel": 3}}, shape=(7, 2)),
    "conv1d same stride dilation": _case({"conv1d": {"channels": 3, "kernel": 4, "stride": 2, "padding": "same"}}, {"conv1d": {"channels": 2, "kernel": 2, "dilation": 2, "padding": [2, 0]}}, shape=(9, 2)),
    "conv1d groups": _case({"conv1d": {"channels": 6, "kernel": 3, "groups": 2, "padding": 1}}, shape=(7, 4)),
    "conv2d": _case({"conv2d": {"channels": 3, "kernel": 3}}, shape=(6, 5, 2)),
    "conv2d same": _case({"conv2d": {"channels": 3, "kernel": [3, 2], "padding": "same", "bias": False}}, shape=(6, 5, 2)),
    "conv2d same stride 2, even": _case({"conv2d": {"channels": 3, "kernel": 3, "stride": 2, "padding": "same"}}, shape=(8, 8, 2)),
    "conv2d same stride 2, odd": _case({"conv2d": {"channels": 3, "kernel": 3, "stride": [2, 1], "padding": "same"}}, shape=(7, 6, 2)),
    "conv2d explicit": _case({"conv2d": {"channels": 3, "kernel": 3, "stride": 2, "padding": [[2, 0], [1, 2]]}}, shape=(6, 5, 2)),
    "conv2d symmetric": _case({"conv2d": {"channels": 3, "kernel": 3, "stride": 2, "padding": 1}}, shape=(6, 6, 2)),
    "conv2d dilation": _case({"conv2d": {"channels": 3, "kernel": 3, "dilation": 2, "padding": "same"}}, shape=(7, 6, 2)),
    "conv2d stride and dilation": _case({"conv2d": {"channels": 3, "kernel": 2, "dilation": 2, "stride": 2, "padding": 1}}, shape=(8, 7, 2)),
    "conv2d groups": _case({"conv2d": {"channels": 4, "kernel": 3, "groups": 2, "stride": 2, "padding": "same"}}, shape=(6, 6, 4)),
    "conv2d depthwise": _case({"conv2d": {"channels": 6, "kernel": 3, "groups": 3, "padding": "same"}}, shape=(5, 5, 3)),
    "conv2d groups, stride and dilation": _case({"conv2d": {"channels": 4, "kernel": 2, "groups": 2, "stride": 2, "dilation": 2}}, shape=(6, 6, 4)),
    "conv_transpose2d": _case({"conv_transpose2d": {"channels": 3, "kernel": 3}}, shape=(3, 4, 2)),
    "conv_transpose2d same": _case({"conv_transpose2d": {"channels": 3, "kernel": 4, "stride": 2, "padding": "same"}}, shape=(3, 4, 2)),
    "conv_transpose2d odd crop": _case({"conv_transpose2d": {"channels": 3, "kernel": 3, "stride": 2, "padding": "same"}}, shape=(3, 4, 2)),
    "conv_transpose2d explicit": _case({"conv_transpose2d": {"channels": 3, "kernel": [3, 2], "stride": [2, 3], "padding": [[1, 0], [0, 1]], "bias": False}}, shape=(3, 4, 2)),
    "upsample2d": _case({"upsample2d": 2}, {"conv2d": {"channels": 2, "kernel": 3}}, shape=(3, 2, 2)),
    "upsample2d uneven": _case({"upsample2d": [3, 2]}, shape=(3, 2, 2)),
    "max_pool1d": _case({"max_pool1d": {"window": 3, "stride": 2, "padding": "same"}}, shape=(8, 2)),
    "max_pool2d": _case({"max_pool2d": 2}, shape=(6, 5, 2)),
    "max_pool2d same": _case({"max_pool2d": {"window": 3, "stride": 2, "padding": "same"}}, shape=(6, 7, 2)),
    "max_pool2d explicit": _case({"max_pool2d": {"window": 3, "stride": 1, "padding": [[2, 0], [1, 1]]}}, shape=(4, 4, 2)),
    "max_pool2d symmetric": _case({"max_pool2d": {"window": 3, "stride": 2, "padding": 1}}, shape=(6, 6, 2)),
    "max_pool2d ties": _case({"conv2d": {"channels": 2, "kernel": 1, "kernel_init": "ones"}}, "relu", {"max_pool2d": 2}, shape=(4, 4, 1), rounded=True),
    "avg_pool1d": _case({"avg_pool1d": {"window": 3, "stride": 2, "padding": "same"}}, shape=(8, 2)),
    "avg_pool2d": _case({"avg_pool2d": 2}, shape=(6, 5, 2)),
    "avg_pool2d same": _case({"avg_pool2d": {"window": 3, "stride": 2, "padding": "same"}}, shape=(6, 7, 2)),
    "avg_pool2d counts padding": _case({"avg_pool2d": {"window": 3, "stride": 2, "padding": 1, "count_padding": True}}, shape=(6, 7, 2)),
    "avg_pool2d leaves padding out": _case({"avg_pool2d": {"window": 3, "stride": 2, "padding": 1}}, shape=(6, 7, 2)),
    "avg_pool2d uneven, counts padding": _case({"avg_pool2d": {"window": 3, "stride": 2, "padding": [[0, 2], [1, 0]], "count_padding": True}}, shape=(6, 7, 2)),
    "global_avg_pool": _case("global_avg_pool", shape=(3, 4, 2)),
    "global_avg_pool of a sequence": _case("global_avg_pool", shape=(5, 2)),
    "global_max_pool": _case("global_max_pool", shape=(3, 4, 2)),
    "batch_norm": _case("batch_norm", "tanh", shape=(5,)),
    "batch_norm of a sequence": _case({"batch_norm": {"momentum": 0.7, "epsilon": 0.01}}, "tanh", shape=(4, 3)),
    "batch_norm of an image": _case({"conv2d": {"channels": 3, "kernel": 2, "bias": False}}, "batch_norm", "relu", shape=(4, 5, 2)),
    "batch_norm without scale": _case({"batch_norm": {"scale": False}}, "tanh", shape=(5,)),
    "batch_norm without bias": _case({"batch_norm": {"bias": False}}, "tanh", shape=(5,)),
    "batch_norm without either": _case({"batch_norm": {"scale": False, "bias": False}}, "tanh", shape=(5,)),
    "layer_norm": _case("layer_norm", "tanh", shape=(3, 5)),
    "layer_norm of an image": _case({"conv2d": {"channels": 3, "kernel": 2}}, {"layer_norm": {"epsilon": 0.01}}, "tanh", shape=(4, 5, 2)),
    "layer_norm without scale": _case({"layer_norm": {"scale": False}}, "tanh", shape=(5,)),
    "layer_norm without either": _case({"layer_norm": {"scale": False, "bias": False}}, "tanh", shape=(5,)),
    "dropout": _case({"dropout": 0.4}, {"dense": 2}, shape=(6,)),
    "dropout of an image": _case({"conv2d": {"channels": 2, "kernel": 1}}, {"dropout": 0.3}, {"conv2d": {"channels": 2, "kernel": 2}}, shape=(4, 3, 2)),
    "dropout per channel": _case({"dropout": {"rate": 0.4, "per": "channel"}}, {"dense": 2}, shape=(5, 6)),
    "dropout of nothing": _case({"dropout": 0.0}, {"dense": 2}, shape=(6,)),
    "embedding": _case({"embedding": {"features": 3}}, {"dense": 2}, shape=(5,), ids=4),
    "positions": _case("positions", {"dense": 2}, shape=(5, 3)),
    "unembed": _case({"embedding": {"features": 3, "name": "table"}}, "tanh", {"unembed": "table"}, shape=(5,), ids=4),
    "lstm": _case({"lstm": 4}, shape=(5, 3)),
    "lstm sequence": _case({"lstm": {"units": 4, "returns": "sequence", "bias_init": {"normal": {"std": 0.5}}}}, shape=(5, 3)),
    "lstm with dropout": _case({"lstm": {"units": 4, "recurrent_dropout": 0.4}}, shape=(5, 3)),
    "gru": _case({"gru": {"units": 4, "bias_init": {"normal": {"std": 0.5}}}}, shape=(5, 3)),
    "gru sequence": _case({"gru": {"units": 4, "returns": "sequence"}}, {"lstm": 2}, shape=(5, 3)),
    "gru with dropout": _case({"gru": {"units": 4, "recurrent_dropout": 0.4, "returns": "sequence"}}, shape=(5, 3)),
    "attention": _case({"attention": 2}, shape=(5, 4)),
    "attention causal": _case({"attention": {"heads": 2, "causal": True, "bias_init": {"normal": {"std": 0.5}}}}, shape=(5, 4)),
    "attention without bias": _case({"attention": {"heads": 1, "bias": False}}, shape=(5, 4)),
    "attention with dropout": _case({"attention": {"heads": 2, "causal": True, "dropout": 0.3}}, shape=(5, 4)),
    "attention to a memory": _case(
        {"dense": {"units": 6, "name": "memory"}}, {"dense": {"units": 4, "name": "query", "inputs": "x"}},
        {"attention": {"heads": 2, "inputs": ["query", "memory"]}}, shape=(5, 3)),
    "residual": _case({"residual": [{"dense": 4}, "tanh", {"dense": 4}]}, {"residual": {"layers": [{"dense": 2}], "shortcut": [{"dense": {"units": 2, "bias": False}}]}}, shape=(4,)),
    "repeat": _case({"repeat": {"times": 3, "layers": ["layer_norm", {"residual": [{"dense": 4}, "silu", {"dropout": 0.2}]}]}}, shape=(4,)),
    "block of images": _case({"repeat": {"times": 2, "layers": [{"residual": [{"conv2d": {"channels": 2, "kernel": 3, "padding": "same", "bias": False}}, "batch_norm", "relu"]}]}}, shape=(4, 5, 2)),
    "four values at once": _case(
        {"dense": {"units": 3, "name": "a"}}, {"tanh": {"name": "b"}}, {"sigmoid": {"name": "c", "inputs": "a"}}, {"silu": {"name": "d", "inputs": "b"}},
        {"gelu": {"name": "e", "inputs": "c"}}, {"add": {"inputs": ["a", "b", "c", "d", "e"]}}, shape=(4,)),
    # Corners: one of everything, a number instead of a vector, more axes than an image has. Rounded where a gradient is zero:
    # a softmax over one value does not move, and nothing recurs in one step.
    "flatten of a number": _case("flatten", {"dense": 3}, shape=()),
    "flatten of a vector": _case("flatten", {"dense": 3}, shape=(4,)),
    "reshape of a number": _case({"reshape": [1, 1]}, {"dense": 3}, shape=()),
    "reshape to a number": _case({"dense": 1}, {"reshape": []}, "tanh", {"reshape": [1]}, shape=(4,)),
    "activations of a number": _case(
        "tanh", {"leaky_relu": 0.2}, {"elu": 0.7}, "selu", "gelu", {"gelu": "tanh"}, "silu", "sigmoid", "softplus", "relu",
        {"dropout": {"rate": 0.3, "name": "a"}}, {"add": {"inputs": ["a", "x"], "name": "b"}}, {"multiply": {"inputs": ["b", "x"]}},
        "flatten", {"dense": 2}, shape=()),
    "embedding of one id": _case({"embedding": {"features": 3}}, {"dense": 2}, shape=(), ids=4),
    "embedding of one word": _case({"embedding": {"features": 1}}, {"dense": 2}, shape=(3,), ids=1),
    "embedding of a table of ids": _case({"embedding": {"features": 3}}, "relu", {"conv2d": {"channels": 2, "kernel": 2}}, shape=(4, 3), ids=4),
    "dense of a volume": _case({"dense": 2}, "gelu", shape=(2, 3, 2, 4)),
    "dense of one": _case({"dense": 1}, shape=(1,)),
    "softmax of one": _case("softmax", {"dense": 2}, shape=(1,), rounded=True),
    "softmax of a volume": _case("softmax", shape=(2, 2, 3, 2)),
    "flatten of a volume": _case("relu", "flatten", {"dense": 2}, shape=(2, 3, 2, 2)),
    "concatenate volumes": _case({"dense": {"units": 2, "name": "a"}}, {"dense": {"units": 3, "name": "b"}}, {"concatenate": {"inputs": ["b", "a"]}}, shape=(2, 3, 2, 2)),
    "global_avg_pool of a volume": _case("relu", "global_avg_pool", {"dense": 2}, shape=(2, 3, 4, 2)),
    "global_max_pool of a volume": _case("global_max_pool", shape=(2, 3, 4, 2)),
    "global_max_pool of a sequence": _case("global_max_pool", shape=(5, 2)),
    "global_avg_pool of five axes": _case("global_avg_pool", shape=(2, 3, 2, 2, 3)),
    "global pools of one position": _case({"global_avg_pool": {"name": "a"}}, {"global_max_pool": {"inputs": "x", "name": "b"}}, {"add": {"inputs": ["a", "b"]}}, shape=(1, 1, 3)),
    "layer_norm of a volume": _case("layer_norm", "tanh", shape=(2, 3, 2, 4)),
    "batch_norm of one position": _case("batch_norm", "tanh", shape=(1, 1, 3)),
    "batch_norm of one channel": _case("batch_norm", "tanh", shape=(3, 4, 1)),
    "dropout of a volume": _case({"dropout": {"rate": 0.4, "per": "channel"}}, {"dense": 2}, shape=(2, 3, 2, 4)),
    "conv1d of one position": _case({"conv1d": {"channels": 1, "kernel": 1}}, {"conv1d": {"channels": 2, "kernel": 3, "padding": "same"}}, shape=(1, 1)),
    "conv1d as wide as the sequence": _case({"conv1d": {"channels": 2, "kernel": 5}}, "flatten", {"dense": 2}, shape=(5, 2)),
    "conv2d of one channel": _case({"conv2d": {"channels": 1, "kernel": 1}}, {"conv2d": {"channels": 1, "kernel": 2}}, shape=(3, 3, 1)),
    "conv2d as large as the image": _case({"conv2d": {"channels": 2, "kernel": [4, 3]}}, "flatten", {"dense": 2}, shape=(4, 3, 2)),
    "conv2d, a stride past the kernel": _case({"conv2d": {"channels": 2, "kernel": 1, "stride": 3}}, shape=(7, 6, 2)),
    "conv2d one row": _case({"conv2d": {"channels": 2, "kernel": [1, 3], "padding": "same"}}, {"max_pool2d": [1, 2]}, shape=(1, 6, 2)),
    "conv2d padding wider than the kernel": _case({"conv2d": {"channels": 2, "kernel": 2, "padding": 3}}, shape=(3, 3, 2)),
    "conv2d depthwise of one channel": _case({"conv2d": {"channels": 2, "kernel": 3, "padding": "same"}}, {"conv2d": {"channels": 2, "kernel": 1, "groups": 2}}, shape=(3, 3, 1)),
    "conv_transpose2d of one pixel": _case({"conv_transpose2d": {"channels": 1, "kernel": 3, "stride": 2}}, shape=(1, 1, 1)),
    "conv_transpose2d kernel 1": _case({"conv_transpose2d": {"channels": 2, "kernel": 1}}, shape=(3, 2, 2)),
    "conv_transpose2d, a stride past the kernel": _case({"conv_transpose2d": {"channels": 2, "kernel": 2, "stride": 3}}, shape=(3, 2, 2)),
    "upsample2d by one": _case({"upsample2d": 1}, {"dense": 2}, shape=(3, 2, 2)),
    "pools of one": _case({"max_pool2d": 1}, {"avg_pool2d": 1}, {"dense": 2}, shape=(3, 2, 2)),
    "max_pool2d as large as the image": _case({"max_pool2d": [3, 2]}, {"dense": 2}, shape=(3, 2, 2)),
    "avg_pool2d as large as the image, same": _case({"avg_pool2d": {"window": [3, 2], "stride": 1, "padding": "same"}}, {"dense": 2}, shape=(3, 2, 2)),
    "pools past the window": _case({"max_pool2d": {"window": 1, "stride": 2}}, {"avg_pool2d": {"window": 1, "stride": 2}}, {"dense": 2}, shape=(5, 6, 2)),
    "pools over one step": _case({"max_pool1d": 1}, {"avg_pool1d": {"window": 2, "padding": "same"}}, {"dense": 2}, shape=(1, 2)),
    "lstm of one step and unit": _case({"lstm": 1}, shape=(1, 1), rounded=True),
    "gru of one step and unit": _case({"gru": 1}, shape=(1, 1), rounded=True),
    "attention of one position": _case({"attention": {"heads": 1, "causal": True}}, shape=(1, 2), rounded=True),
    "attention of one channel a head": _case({"attention": 3}, shape=(4, 3)),
    "positions of one": _case("positions", {"dense": 2}, shape=(1, 1)),
    "unembed of one word": _case({"embedding": {"features": 2, "name": "table"}}, "tanh", {"unembed": "table"}, shape=(3,), ids=1),
    "unembed of one id": _case({"embedding": {"features": 3, "name": "table"}}, "tanh", {"unembed": "table"}, shape=(), ids=4),
    "a batch of one": _case({"conv2d": {"channels": 3, "kernel": 2}}, "batch_norm", "relu", {"max_pool2d": 2}, "layer_norm", "flatten", {"dense": 2}, shape=(5, 5, 2), examples=1),
    "a batch of one sequence": _case({"lstm": {"units": 3, "returns": "sequence"}}, {"gru": {"units": 4, "returns": "sequence"}}, {"attention": 2}, "global_max_pool", shape=(4, 2), examples=1),
    "a batch of one number": _case("flatten", {"dense": 2}, shape=(), examples=1),
}  # fmt: skip


CORNERS = frozenset(list(CASES)[list(CASES).index("flatten of a number") :])
"""Cases that meet every backend's plain program; observed ones are of the others, which have every op."""


def kinds_of(layers: object) -> set[str]:
    """The words that layers say, those inside residual branches and repetitions too."""
    if isinstance(layers, str):
        return {layers}
    if isinstance(layers, dict):
        ((kind, arguments),) = layers.items()
        inner = [arguments[key] for key in ("layers", "shortcut") if isinstance(arguments, dict) and key in arguments]
        inner += [arguments] if isinstance(arguments, list) and kind == "residual" else []
        return {kind}.union(*map(kinds_of, inner))
    return set().union(*map(kinds_of, layers)) if isinstance(layers, (list, tuple)) else set()


def _one_a_word() -> frozenset[str]:
    seen: set[str] = set()
    found = []
    for name, case in CASES.items():
        own = kinds_of(case.layers)
        if own - seen:
            seen |= own
            found.append(name)
    return frozenset(found)


ONE_A_WORD = _one_a_word()
"""The first case of every word: where a test compiles programs of its own, the others are for the long session."""


def spec_of(case: Case, name: str = "case") -> dict[str, object]:
    """A spec that trains the case's layers on eight examples drawn from a fixed stream."""
    import numpy as np  # noqa: PLC0415

    rng = np.random.default_rng(7)
    count = case.examples
    if case.ids is not None:
        x = rng.integers(0, case.ids, (count, *case.shape)).tolist()
        x[0] = np.full(case.shape, case.ids - 1).tolist()
    elif case.rounded:
        x = (np.round(rng.normal(size=(count, *case.shape)) * 2) / 2).tolist()
    else:
        x = rng.normal(size=(count, *case.shape)).tolist()
    layers: list[object] = list(case.layers)
    if case.ids is None and not case.rounded and case.shape:
        first = {"dense": {"units": case.shape[-1], "name": "entry", "bias_init": {"normal": {"std": 0.3}}}}
        layers = [first, *layers]
        # Inputs by name mean the entry: the case is about what comes after it.
        layers = [_renamed(layer) for layer in layers]
    return {
        "name": name,
        "seed": 3,
        "data": {"dataset": "inline", "values": {"x": x, "y": [[0.0]] * count}, "batch": count},
        "networks": {"net": {"inputs": ["x"], "layers": layers}},
        "training": {
            "steps": 2,
            "updates": [
                {
                    "loss": {"mse": {"predictions": "net(x)", "targets": 0.25}},
                    "optimizer": {"sgd": {"learning_rate": 0.01}},
                }
            ],
        },
    }


def _renamed(layer: object) -> object:
    if isinstance(layer, dict):
        ((kind, arguments),) = layer.items()
        if isinstance(arguments, dict) and arguments.get("inputs") == "x":
            return {kind: {**arguments, "inputs": "entry"}}
    return layer
