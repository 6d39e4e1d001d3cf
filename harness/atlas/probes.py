"""Small specs on which the sizes of the atlas are measured, where no bundled spec shows a row.

Each meets its kinks and ties exactly: values on a grid of halves, labels that are equal to predictions.
"""

import json
from collections.abc import Mapping

from harness import spec
from harness.initial import stream
from harness.source import Source

EXAMPLES = 16
STEPS = 20
"""Of every probe, bundled specs too: the sizes are those of a short run."""


def _grid(*shape: int, offset: float = 0.0) -> object:
    """Halves from a fixed stream, around `offset`: many zeros, many ties."""
    return (offset + stream(7, "probe", *shape).integers(-3, 4, (EXAMPLES, *shape)) / 2).tolist()


def _spec(
    name: str,
    layers: list[object],
    shape: tuple[int, ...],
    optimizer: Mapping[str, object],
    *,
    loss: str = "mse",
    more: Mapping[str, object] | None = None,
    offset: float = 0.0,
) -> dict[str, object]:
    role = "predictions" if loss in ("mse", "mae") else "logits"
    return {
        "name": name,
        "data": {"dataset": "inline", "values": {"x": _grid(*shape, offset=offset), "y": [[float(i % 2)] for i in range(EXAMPLES)]},
                 "batch": EXAMPLES},
        "networks": {"net": {"inputs": ["x"], "layers": layers}},
        "training": {"steps": STEPS, "updates": [
            {"loss": {loss: {role: "net(x)", "targets": "y"}}, "optimizer": dict(optimizer), **(more or {})}]},
    }  # fmt: skip


SGD = {"sgd": {"learning_rate": 0.1}}
IDENTITY = [[1.0 if i == j else 0.0 for j in range(4)] for i in range(4)]
IMAGE = (8, 8, 2)
AT_KINKS = {"dense": {"units": 4, "kernel_init": {"values": IDENTITY}}}
HEAD: list[object] = ["global_avg_pool", {"dense": 1}]

PROBES: dict[str, dict[str, object]] = {
    "valid": _spec("valid", [{"conv2d": {"channels": 4, "kernel": 3}}, {"max_pool2d": 2}, "tanh", *HEAD], IMAGE, SGD),
    "padded": _spec(
        "padded", [{"conv2d": {"channels": 4, "kernel": 3, "padding": "same"}}, "tanh", *HEAD], IMAGE, SGD
    ),
    "transposed": _spec(
        "transposed",
        [{"conv_transpose2d": {"channels": 3, "kernel": 3, "stride": 2, "padding": "same"}}, "relu", {"conv2d": {"channels": 2, "kernel": 3, "stride": 2}}, "tanh", *HEAD],
        (4, 4, 2), SGD,
    ),
    "pools": _spec(
        "pools",
        [{"conv2d": {"channels": 4, "kernel": 3, "padding": "same"}}, {"max_pool2d": {"window": 3, "stride": 2, "padding": "same"}},
         {"avg_pool2d": {"window": 3, "stride": 2, "padding": "same"}}, "tanh", *HEAD],
        IMAGE, SGD,
    ),
    "counted": _spec(
        "counted", [{"conv2d": {"channels": 4, "kernel": 3}}, {"avg_pool2d": {"window": 3, "stride": 2, "padding": 1, "count_padding": True}}, "tanh", *HEAD], IMAGE, SGD
    ),
    "leaky": _spec("leaky", [AT_KINKS, {"leaky_relu": 0.1}, {"dense": 1}], (4,), SGD),
    "selu": _spec("selu", [AT_KINKS, "selu", {"dense": 1}], (4,), SGD),
    "softplus": _spec(
        "softplus", [{"dense": {"units": 8, "kernel_init": {"normal": {"std": 12}}}}, "softplus", {"dense": 1}], (4,), {"sgd": {"learning_rate": 0.0001}}
    ),
    "ties": _spec("ties", [{"conv2d": {"channels": 4, "kernel": 1, "kernel_init": "ones"}}, "relu", "global_max_pool", {"dense": 1}], IMAGE, {"sgd": {"learning_rate": 0.01}}),
    "gelu_tanh": _spec("gelu_tanh", [{"dense": 8}, {"gelu": "tanh"}, {"dense": 1}], (4,), SGD),
    "normalised": _spec(
        "normalised",
        [{"dense": 8}, {"batch_norm": {"momentum": 0.7, "epsilon": 0.01}}, "tanh", {"layer_norm": {"epsilon": 0.01}}, {"dense": 1}],
        (4,), SGD,
    ),
    "offset": _spec("offset", ["batch_norm", "tanh", {"dense": 1}], (4,), SGD, offset=1000.0),
    # Three channels a head: 1 / sqrt(3) is not a number of float32, as 1 / 4 is.
    "attention": _spec("attention", [{"attention": 2}, "global_avg_pool", {"dense": 1}], (5, 6), SGD),
    "gru": _spec("gru", [{"gru": 8}, {"dense": 1}], (6, 4), SGD),
    "forgetful": _spec("forgetful", [{"lstm": {"units": 8, "forget_bias": 0.0}}, {"dense": 1}], (6, 4), SGD),
    "sigmoid_end": _spec("sigmoid_end", [{"dense": 4}, "tanh", {"dense": 1}, "sigmoid"], (4,), SGD, loss="sigmoid_cross_entropy"),
    "equal": _spec("equal", [{"dense": {"units": 1, "kernel_init": "zeros"}}], (4,), SGD, loss="mae"),
    "wide_epsilon": _spec("wide_epsilon", [{"dense": 4}, "tanh", {"dense": 1}], (4,), {"adam": {"learning_rate": 0.01, "epsilon": 0.001}}),
    "decayed": _spec("decayed", [{"dense": 4}, "tanh", {"dense": 1}], (4,), {"adamw": {"learning_rate": 0.01, "weight_decay": 0.1}},
                     more={"schedule": {"cosine": {"warmup": 5}}, "clip": {"global_norm": 0.05}}),
    "clipped_embedding": {
        "name": "clipped_embedding",
        "data": {"dataset": "inline", "values": {"x": [[i % 3, 1, 1, i % 2] for i in range(EXAMPLES)], "y": [i % 4 for i in range(EXAMPLES)]}, "batch": EXAMPLES},
        "networks": {"net": {"inputs": ["x"], "layers": [
            {"embedding": {"vocabulary": 4, "features": 6, "embedding_init": {"normal": {"std": 1}}}}, "flatten", {"dense": 4}]}},
        "training": {"steps": STEPS, "updates": [{"loss": {"softmax_cross_entropy": {"logits": "net(x)", "labels": "y"}},
                                                  "optimizer": SGD, "clip": {"global_norm": 0.1}}]},
    },
    "as_long_as_classes": {
        "name": "as_long_as_classes",
        "data": {"dataset": "inline", "values": {"x": [[(i + t) % 5 for t in range(5)] for i in range(EXAMPLES)],
                                                 "y": [[(i + t + 1) % 5 for t in range(5)] for i in range(EXAMPLES)]}, "batch": EXAMPLES},
        "networks": {"net": {"inputs": ["x"], "layers": [{"embedding": {"vocabulary": 5, "features": 6}}, {"dense": 5}]}},
        "training": {"steps": STEPS, "updates": [{"loss": {"softmax_cross_entropy": {"logits": "net(x)", "labels": "y"}}, "optimizer": SGD}]},
    },
}  # fmt: skip


def loaded(name: str) -> tuple[spec.Spec, Source]:
    """A probe's spec, or the bundled one of that name."""
    if name in PROBES:
        return spec.loads(json.dumps(PROBES[name]))
    return spec.load(spec.find(name))
