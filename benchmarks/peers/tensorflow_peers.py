"""Five networks in TensorFlow as its specialists would write them for one CPU core, and the everyday way (Keras).

`PEERS[network][strategy](run)` reads the arrays of a run directory and returns `train(steps)`, which trains that many
more steps and returns their losses. `train.chunk` is how many steps one call of the compiled function takes; other
numbers of steps are finished one by one. Batches cycle through the run's first eight and are prepared beforehand.
"""
# ruff: noqa: D102 - networks are named after what they are

import ctypes
import math
import os
from collections.abc import Callable
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras reads it when it is imported.
# On by itself only where the processor has AVX512_VNNI or better; its convolutions are faster without, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

Arrays = dict[str, np.ndarray]
Parameters = dict[str, tf.Tensor]
Train = Callable[[int], np.ndarray]
Loss = Callable[[Parameters, tf.Tensor, tf.Tensor], tf.Tensor]

FIELDS = {
    "linear_regression": ("x", "y"),
    "mlp": ("image", "label"),
    "cnn": ("image", "label"),
    "lstm": ("sequence", "label"),
    "transformer": ("tokens", "targets"),
}
CHUNKS = {"linear_regression": 10_000, "mlp": 136, "cnn": 16, "lstm": 24, "transformer": 8}
EPOCHS = {"linear_regression": 1000, "mlp": 200, "cnn": 40, "lstm": 40, "transformer": 40}
"""Steps an epoch for `fit`, which has much to do between epochs."""
HEADS, LAYERS = 4, 4


def read(network: str, run: Path) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Initial parameters, and the inputs and targets of the first eight batches or fewer: [batches, batch, ...]."""
    inputs = run / "inputs"
    data, order = load_file(inputs / "data.safetensors"), load_file(inputs / "batches.safetensors")["order"][:8]
    x, y = (data[f"train.{field}"][order] for field in FIELDS[network])
    return load_file(inputs / "parameters.safetensors"), x, y


# Losses as functions of the parameters by their canonical names.


def dense(p: Parameters, name: str, x: tf.Tensor) -> tf.Tensor:
    """By a kernel [outputs, inputs] if `prepare` made one."""
    transposed = f"{name}.kernel.T" in p
    kernel = p[f"{name}.kernel.T" if transposed else f"{name}.kernel"]
    return tf.nn.bias_add(tf.matmul(x, kernel, transpose_b=transposed), p[f"{name}.bias"])


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


def linear_regression(p: Parameters, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(dense(p, "linear", x) - y))


def mlp(p: Parameters, image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    x = tf.nn.relu(dense(p, "dense1", tf.reshape(image, (-1, 784))))
    x = tf.nn.relu(dense(p, "dense2", x))
    return cross_entropy(dense(p, "logits", x), label)


def cnn(p: Parameters, image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    def layer(name: str, x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.conv2d(x, p[f"{name}.kernel"], 1, "SAME")
        return tf.nn.max_pool2d(tf.nn.relu(tf.nn.bias_add(x, p[f"{name}.bias"])), 2, 2, "VALID")

    x = layer("conv2", layer("conv1", image))
    x = tf.nn.relu(dense(p, "dense1", tf.reshape(x, (-1, 3136))))
    return cross_entropy(dense(p, "logits", x), label)


def sigmoid(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.tanh(0.5 * x) + 0.5


def last_state(x: tf.Tensor, kernel: tf.Tensor, recurrent: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """An LSTM over [time, batch, features] for XLA, its gates in arrays of their own: slices would not be vectorised.

    The gradients of the kernels are products over all steps at once, after the loop.
    """
    steps, n, features = x.shape
    x = tf.reshape(x, (steps * n, features))

    def arrays(count: int) -> tuple[tf.TensorArray, ...]:
        return tuple(tf.TensorArray(tf.float32, steps, element_shape=(n, 128)) for _ in range(count))

    def write(
        to: tuple[tf.TensorArray, ...], step: tf.Tensor, values: tuple[tf.Tensor, ...]
    ) -> tuple[tf.TensorArray, ...]:
        return tuple(array.write(step, value) for array, value in zip(to, values, strict=True))

    @tf.custom_gradient
    def run(kernel: tf.Tensor, recurrent: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
        kernels, recurrents, biases = tf.split(kernel, 4, 1), tf.split(recurrent, 4, 1), tf.split(bias, 4)
        inputs = [tf.reshape(x @ w + b, (steps, n, 128)) for w, b in zip(kernels, biases, strict=True)]
        zeros = tf.zeros((n, 128))

        def forward(step: tf.Tensor, h: tf.Tensor, c: tf.Tensor, *saved: tf.TensorArray) -> tuple:
            i, f, g, o = (z[step] + h @ w for z, w in zip(inputs, recurrents, strict=True))
            i, f, g, o = sigmoid(i), sigmoid(f), tf.tanh(g), sigmoid(o)
            new = f * c + i * g
            squashed = tf.tanh(new)
            return step + 1, o * squashed, new, *write(saved, step, (i, f, g, o, c, squashed, h))

        _, h, _, *saved = tf.while_loop(
            lambda step, *_: step < steps, forward, (0, zeros, zeros, *arrays(7)), maximum_iterations=steps
        )
        saved = [array.stack() for array in saved]

        def gradient(dh: tf.Tensor) -> tuple[tf.Tensor, ...]:
            transposed = [tf.transpose(w) for w in recurrents]

            def backward(step: tf.Tensor, dh: tf.Tensor, dc: tf.Tensor, *rows: tf.TensorArray) -> tuple:
                i, f, g, o, c, squashed, _ = (array[step] for array in saved)
                dc = dc + dh * o * (1 - squashed * squashed)
                dz = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * squashed * o * (1 - o)
                dh = tf.add_n([a @ w for a, w in zip(dz, transposed, strict=True)])
                return step - 1, dh, dc * f, *write(rows, step, dz)

            _, _, _, *rows = tf.while_loop(
                lambda step, *_: step >= 0, backward, (steps - 1, dh, zeros, *arrays(4)), maximum_iterations=steps
            )
            dz = tf.concat([tf.reshape(array.stack(), (steps * n, 128)) for array in rows], 1)
            h = tf.reshape(saved[-1], (steps * n, 128))
            return tf.matmul(x, dz, transpose_a=True), tf.matmul(h, dz, transpose_a=True), tf.reduce_sum(dz, 0)

        return h, gradient

    return run(kernel, recurrent, bias)


def lstm(p: Parameters, sequence: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    h = last_state(sequence, p["lstm1.kernel"], p["lstm1.recurrent"], p["lstm1.bias"])
    return cross_entropy(dense(p, "logits", h), label)


def layer_norm(p: Parameters, name: str, x: tf.Tensor) -> tf.Tensor:
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + 1e-5)
    return centred * scale * p[f"{name}.scale"] + p[f"{name}.bias"]


def gelu(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * x * (1 + tf.math.erf(x * math.sqrt(0.5)))


def transformer(p: Parameters, tokens: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    n, t = tokens.shape
    embedding = p["embed.embedding"]
    # A product instead of a gather, whose gradient is a scatter.
    x = tf.reshape(tf.one_hot(tf.reshape(tokens, [-1]), 96) @ embedding, (n, t, 128)) + p["positions1.embedding"]
    x = tf.reshape(x, (n * t, 128))
    past = tf.constant(np.where(np.tri(t), 0, -np.inf).astype(np.float32))
    for block in (f"decoder_block{i}" for i in range(1, LAYERS + 1)):
        qkv = layer_norm(p, f"{block}.norm1", x) @ p[f"{block}.qkv_kernel"] + p[f"{block}.qkv_bias"]
        q, k, v = tf.unstack(tf.transpose(tf.reshape(qkv, (n, t, 3, HEADS, 32)), (2, 0, 3, 1, 4)))
        weights = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / math.sqrt(32) + past)
        y = tf.reshape(tf.transpose(weights @ v, (0, 2, 1, 3)), (n * t, 128))
        x = x + y @ p[f"{block}.attention1.out_kernel"] + p[f"{block}.attention1.out_bias"]
        y = gelu(dense(p, f"{block}.dense1", layer_norm(p, f"{block}.norm2", x)))
        x = x + dense(p, f"{block}.dense2", y)
    logits = tf.matmul(layer_norm(p, "norm1", x), embedding, transpose_b=True)
    return cross_entropy(logits, tf.reshape(targets, [-1]))


LOSSES: dict[str, Loss] = {
    "linear_regression": linear_regression, "mlp": mlp, "cnn": cnn, "lstm": lstm, "transformer": transformer,
}  # fmt: skip


def prepare(network: str, run: Path, *, xla: bool) -> tuple[dict[str, tf.Variable], np.ndarray, np.ndarray]:
    """What the losses take: query, key and value together, sequences time first, for XLA some kernels transposed."""
    p, x, y = read(network, run)
    if network == "lstm":
        x = x.swapaxes(1, 2)
    if network == "transformer":
        for block in (f"decoder_block{i}" for i in range(1, LAYERS + 1)):
            for kind in ("kernel", "bias"):
                parts = [p.pop(f"{block}.attention1.{part}_{kind}") for part in ("query", "key", "value")]
                p[f"{block}.qkv_{kind}"] = np.concatenate(parts, -1)
    if xla:
        p = dict(starmap(narrowing, p.items()))
    return {name: tf.Variable(array) for name, array in p.items()}, x, y


def narrowing(name: str, kernel: np.ndarray) -> tuple[str, np.ndarray]:
    """A kernel of fewer outputs than inputs transposed: its gradient takes XLA up to twice as long the other way round."""
    match kernel.shape:
        case inputs, outputs if name.endswith(".kernel") and 1 < outputs < inputs:
            return f"{name}.T", np.ascontiguousarray(kernel.T)
    return name, kernel


# Strategies


def make_step(network: str, variables: dict[str, tf.Variable]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """One update in place; returns the loss before it."""
    first, second = ({name: tf.Variable(tf.zeros_like(v)) for name, v in variables.items()} for _ in range(2))
    count = tf.Variable(0, dtype=tf.int64)
    beta1, beta2 = np.float32(0.9), np.float32(0.999)

    def adam(gradients: Parameters) -> None:
        # The op computes 1 - beta in float32, for 0.999 wrong in the fifth digit, and adds epsilon before the bias
        # correction: rate and epsilon in float64 make up for both.
        t = tf.cast(count.assign_add(1), tf.float64)
        root = tf.sqrt((1 - 0.999**t) * (float(1 - beta2) / 0.001))
        rate = 0.001 * root / (1 - 0.9**t) / (float(1 - beta1) / 0.1)
        rate, epsilon = tf.cast(rate, tf.float32), tf.cast(1e-8 * root, tf.float32)
        for name, gradient in gradients.items():
            tf.raw_ops.ResourceApplyAdam(
                var=variables[name].handle, m=first[name].handle, v=second[name].handle, beta1_power=0.0,
                beta2_power=0.0, lr=rate, beta1=beta1, beta2=beta2, epsilon=epsilon, grad=gradient,
            )  # fmt: skip

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            weights = {name: v.read_value() for name, v in variables.items()}
            tape.watch(weights)
            loss = LOSSES[network](weights, x, y)
        gradients = tape.gradient(loss, weights)
        if network == "linear_regression":
            for name, gradient in gradients.items():
                variables[name].assign_sub(0.01 * gradient)
        else:
            adam(gradients)
        return loss

    return step


def graph(network: str, run: Path, chunk: int = 1, *, xla: bool) -> Train:
    """Variables and raw ops: one call a step, or one for a loop over many."""
    settle()
    variables, x, y = prepare(network, run, xla=xla)
    step = make_step(network, variables)
    chunk = max(1, chunk // len(x)) * len(x) if chunk > 1 else 1
    batches = [(tf.constant(a), tf.constant(b)) for a, b in zip(x, y, strict=True)]
    stack = tuple(tf.constant(np.concatenate([a] * (chunk // len(a)))) for a in (x, y)) if chunk > 1 else ()

    def loop(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        def body(k: tf.Tensor, losses: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            return k + 1, losses.write(k, step(x[k], y[k]))

        losses = tf.TensorArray(tf.float32, chunk, element_shape=())
        _, losses = tf.while_loop(
            lambda k, _: k < chunk, body, (0, losses), parallel_iterations=1, maximum_iterations=chunk
        )
        return losses.stack()

    one = tf.function(step, jit_compile=xla)
    many = tf.function(loop, jit_compile=xla)
    done = 0

    def train(steps: int) -> np.ndarray:
        nonlocal done
        losses, end = [], done + steps
        while done < end:
            if chunk > 1 and done % len(batches) == 0 and end - done >= chunk:
                losses.append(many(*stack))
                done += chunk
            else:
                losses.append(one(*batches[done % len(batches)]))
                done += 1
        return np.hstack([loss.numpy() for loss in losses])

    return chunked(train, chunk)


class Attention(keras.layers.Layer):
    """Keras's attention of a sequence to its past."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(HEADS, 32)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.attention(x, x, use_causal_mask=True)


class Decoder(keras.Model):
    """Functional models cannot use an embedding's table again: a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = keras.layers.Embedding(96, 128)
        self.positions = keras.layers.Embedding(64, 128)
        self.blocks = [self.block() for _ in range(LAYERS)]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5)

    def block(self) -> dict[str, keras.layers.Layer]:
        return {
            "norm1": keras.layers.LayerNormalization(epsilon=1e-5),
            "attention": Attention(),
            "norm2": keras.layers.LayerNormalization(epsilon=1e-5),
            "dense1": keras.layers.Dense(512, activation=partial(keras.activations.gelu, approximate=False)),
            "dense2": keras.layers.Dense(128),
        }

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        x = self.embed(tokens) + self.positions(tf.range(64))
        for block in self.blocks:
            x = x + block["attention"](block["norm1"](x))
            x = x + block["dense2"](block["dense1"](block["norm2"](x)))
        return tf.matmul(self.norm(x), self.embed.embeddings, transpose_b=True)


def make_model(network: str) -> tuple[keras.Model, list[str]]:
    """A model, and the canonical names of its weights in its order."""
    layers = keras.layers
    kernel_and_bias = [f"{name}.{kind}" for name in ("dense1", "dense2", "logits") for kind in ("kernel", "bias")]
    if network == "linear_regression":
        return keras.Sequential([layers.Dense(1)]), ["linear.kernel", "linear.bias"]
    if network == "mlp":
        stack = [layers.Dense(256, "relu"), layers.Dense(128, "relu"), layers.Dense(10)]
        return keras.Sequential([layers.Flatten(), *stack]), kernel_and_bias
    if network == "cnn":
        model = keras.Sequential([
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, "relu"),
            layers.Dense(10),
        ])  # fmt: skip
        names = [f"{name}.{kind}" for name in ("conv1", "conv2", "dense1", "logits") for kind in ("kernel", "bias")]
        return model, names
    if network == "lstm":
        names = ["lstm1.kernel", "lstm1.recurrent", "lstm1.bias", "logits.kernel", "logits.bias"]
        return keras.Sequential([layers.LSTM(128), layers.Dense(10)]), names
    names = ["embed.embedding", "positions1.embedding"]
    for block in (f"decoder_block{i}" for i in range(1, LAYERS + 1)):
        names += [f"{block}.norm1.scale", f"{block}.norm1.bias"]
        names += [
            f"{block}.attention1.{part}_{kind}"
            for part in ("query", "key", "value", "out")
            for kind in ("kernel", "bias")
        ]
        names += [f"{block}.norm2.scale", f"{block}.norm2.bias"]
        names += [f"{block}.{layer}.{kind}" for layer in ("dense1", "dense2") for kind in ("kernel", "bias")]
    return Decoder(), [*names, "norm1.scale", "norm1.bias"]


class Losses(keras.callbacks.Callback):
    """The loss of every batch, out of the epoch's mean so far that Keras logs."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []
        self.total = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.total = 0.0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        total = (batch + 1) * logs["loss"]
        self.values.append(total - self.total)
        self.total = total


def everyday(network: str, run: Path) -> Train:
    """As in Keras's guide: compile and fit.

    Its Adam takes 1 - beta in float32 and adds epsilon before the bias correction: the losses differ in the fifth digit.
    """
    arrays, x, y = read(network, run)
    x, y = (np.concatenate([a] * max(1, EPOCHS[network] // len(a))) for a in (x, y))
    model, names = make_model(network)
    model(x[0])
    for variable, name in zip(model.weights, names, strict=True):
        variable.assign(arrays[name].reshape(variable.shape))
    if network == "linear_regression":
        model.compile(keras.optimizers.SGD(0.01), "mse")
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.001, epsilon=1e-8), loss)
    done = 0

    def train(steps: int) -> np.ndarray:
        nonlocal done
        recorder, end = Losses(), done + steps
        while done < end:
            first = done % len(x)
            last = min(len(x), first + end - done)
            epochs = (end - done) // len(x) if last - first == len(x) else 1
            model.fit(
                x[first:last].reshape(-1, *x.shape[2:]), y[first:last].reshape(-1, *y.shape[2:]),
                batch_size=x.shape[1], epochs=epochs, shuffle=False, verbose=0, callbacks=[recorder],
            )  # fmt: skip
            done += epochs * (last - first)
        return np.array(recorder.values, np.float32)

    return chunked(train, len(x))


def settle() -> None:
    """Memory kept: glibc gives large arrays back, and their pages cost a fault each the next time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-8, 1)  # M_ARENA_MAX
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def chunked(train: Train, chunk: int) -> Train:
    train.chunk = chunk  # type: ignore[attr-defined]
    return train


PEERS: dict[str, dict[str, Callable[[Path], Train]]] = {
    network: {
        "everyday": partial(everyday, network),
        "loop xla": partial(graph, network, chunk=CHUNKS[network], xla=True),
        "loop": partial(graph, network, chunk=CHUNKS[network], xla=False),
    }
    for network in LOSSES
}
# XLA's convolutions lose their fast path inside a loop.
PEERS["cnn"].pop("loop xla")
