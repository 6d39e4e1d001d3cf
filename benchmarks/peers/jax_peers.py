"""Five networks in JAX as its specialists would write them for one CPU core, and the everyday way (Flax NNX, Optax).

`PEERS[network][strategy](run)` reads the arrays of a run directory and returns `train(steps)`, which trains that many
more steps and returns their losses. `train.chunk` is how many steps one call of the compiled function takes; other
numbers of steps are finished one by one. Batches cycle through the run's first eight and are prepared beforehand.

What XLA likes on a CPU, each measured here: no slices among elementwise operations (a fusion with slices is not
vectorised), no convolution inside a scan (it loses its fast path: 15 times slower), no gradient of reduce_window,
kernels of fewer outputs than inputs as [outputs, inputs] (their gradient takes up to twice as long otherwise), and memory
that the C library keeps.
"""
# ruff: noqa: D101, D102 - networks are named after what they are

import ctypes
import math
from collections.abc import Callable
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from safetensors.numpy import load_file

Arrays = dict[str, np.ndarray]
Parameters = dict[str, Array]
Train = Callable[[int], np.ndarray]
Loss = Callable[[Parameters, Array, Array], Array]

FIELDS = {
    "linear_regression": ("x", "y"),
    "mlp": ("image", "label"),
    "cnn": ("image", "label"),
    "lstm": ("sequence", "label"),
    "transformer": ("tokens", "targets"),
}
CHUNKS = {"linear_regression": 10_000, "mlp": 136, "cnn": 16, "lstm": 24, "transformer": 8}
HEADS, LAYERS = 4, 4
GATES = "ifgo"


def read(network: str, run: Path) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Initial parameters, and the inputs and targets of the first eight batches or fewer: [batches, batch, ...]."""
    inputs = run / "inputs"
    data, order = load_file(inputs / "data.safetensors"), load_file(inputs / "batches.safetensors")["order"][:8]
    x, y = (data[f"train.{field}"][order] for field in FIELDS[network])
    return load_file(inputs / "parameters.safetensors"), x, y


# Losses as functions of the parameters by their canonical names.


def dense(p: Parameters, name: str, x: Array) -> Array:
    """By a kernel [outputs, inputs] if `prepare` made one."""
    transposed = p.get(f"{name}.kernel.T")
    return x @ (p[f"{name}.kernel"] if transposed is None else transposed.T) + p[f"{name}.bias"]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The label's logit by a mask: neither a gather nor, in the gradient, a scatter."""
    hit = jnp.arange(logits.shape[-1]) == labels[:, None]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.sum(jnp.where(hit, logits, 0), -1))


def linear_regression(p: Parameters, x: Array, y: Array) -> Array:
    return jnp.mean((dense(p, "linear", x) - y) ** 2)


def mlp(p: Parameters, image: Array, label: Array) -> Array:
    x = jax.nn.relu(dense(p, "dense1", image.reshape(len(image), -1)))
    x = jax.nn.relu(dense(p, "dense2", x))
    return cross_entropy(dense(p, "logits", x), label)


def convolve(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def windows(x: Array) -> list[Array]:
    """The nine neighbours of every pixel, in the order of a kernel's rows."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


@jax.custom_vjp
def convolve_input(x: Array, kernel: Array) -> Array:
    """Of one channel that needs no gradient."""
    return convolve(x, kernel)


def _convolve_input_backward(saved: tuple[Array, Array], dy: Array) -> tuple[None, Array]:
    x, kernel = saved
    columns = jnp.stack([window.reshape(-1) for window in windows(x)])
    return None, (columns @ dy.reshape(-1, dy.shape[-1])).reshape(kernel.shape)


convolve_input.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_input_backward)


@jax.custom_vjp
def convolve_hidden(x: Array, kernel: Array) -> Array:
    """The input's gradient as a convolution, the kernel's as one product of matrices."""
    return convolve(x, kernel)


def _convolve_hidden_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    columns = jnp.concatenate(windows(x), -1)
    columns, rows = columns.reshape(-1, columns.shape[-1]), dy.reshape(-1, dy.shape[-1])
    # This way round Eigen takes two thirds of the time of columns.T @ rows.
    return dx, lax.optimization_barrier(rows.T @ columns).T.reshape(kernel.shape)


convolve_hidden.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_hidden_backward)


@jax.custom_vjp
def relu_of_pool(x: Array) -> Array:
    """relu(max_pool(x, 2)), which is max_pool(relu(x), 2): the gradient to the first maximum, if it is positive."""
    return _relu_of_pool_forward(x)[0]


def _relu_of_pool_forward(x: Array) -> tuple[Array, Array]:
    a, b, c, d = (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    highest = jnp.maximum(top, bottom)
    which = jnp.where(bottom > top, jnp.where(d > c, 3, 2), jnp.where(b > a, 1, 0)).astype(jnp.int8)
    return jax.nn.relu(highest), jnp.where(highest > 0, which, jnp.int8(-1))


def _relu_of_pool_backward(which: Array, dy: Array) -> tuple[Array]:
    n, h, w, c = dy.shape
    slot = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    dx = jnp.where(which[:, :, None, :, None] == slot, dy[:, :, None, :, None], 0)
    return (dx.reshape(n, 2 * h, 2 * w, c),)


relu_of_pool.defvjp(_relu_of_pool_forward, _relu_of_pool_backward)


def cnn(p: Parameters, image: Array, label: Array) -> Array:
    x = relu_of_pool(convolve_input(image, p["conv1.kernel"]) + p["conv1.bias"])
    x = relu_of_pool(convolve_hidden(x, p["conv2.kernel"]) + p["conv2.bias"])
    x = jax.nn.relu(dense(p, "dense1", x.reshape(len(x), -1)))
    return cross_entropy(dense(p, "logits", x), label)


def columns_cnn(p: Parameters, image: Array, label: Array) -> Array:
    """Convolutions as products of matrices, pools as maxima of an axis: what a scan runs fast."""

    def layer(name: str, x: Array) -> Array:
        kernel = p[f"{name}.kernel"]
        x = jnp.concatenate(windows(x), -1) @ kernel.reshape(-1, kernel.shape[-1]) + p[f"{name}.bias"]
        n, h, w, c = x.shape
        return jax.nn.relu(x).reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))

    x = layer("conv2", layer("conv1", image))
    x = jax.nn.relu(dense(p, "dense1", x.reshape(len(x), -1)))
    return cross_entropy(dense(p, "logits", x), label)


def sigmoid(x: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


@jax.custom_vjp
def last_state(x: Array, kernels: list[Array], recurrents: list[Array], biases: list[Array]) -> Array:
    """An LSTM over [time, batch, features], its gates in arrays of their own: slices of one would not be vectorised.

    The gradients of the kernels are products over all steps at once, after the loop.
    """
    return _last_state_forward(x, kernels, recurrents, biases)[0]


def _last_state_forward(
    x: Array, kernels: list[Array], recurrents: list[Array], biases: list[Array]
) -> tuple[Array, Any]:
    steps, n, _ = x.shape
    x = x.reshape(steps * n, -1)
    inputs = [(x @ w + b).reshape(steps, n, -1) for w, b in zip(kernels, biases, strict=True)]
    zeros = jnp.zeros((n, len(recurrents[0])))

    def step(state: tuple[Array, Array], z: list[Array]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        h, c = state
        i, f, g, o = (a + h @ w for a, w in zip(z, recurrents, strict=True))
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        new = f * c + i * g
        squashed = jnp.tanh(new)
        return (o * squashed, new), (i, f, g, o, c, squashed, h)

    (h, _), saved = lax.scan(step, (zeros, zeros), inputs)
    return h, (x, recurrents, saved)


def _last_state_backward(residuals: Any, dh: Array) -> tuple[None, list[Array], list[Array], list[Array]]:
    x, recurrents, saved = residuals
    transposed = [w.T for w in recurrents]

    def step(state: tuple[Array, Array], saved: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        (dh, dc), (i, f, g, o, c, squashed, _) = state, saved
        dc = dc + dh * o * (1 - squashed * squashed)
        dz = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * squashed * o * (1 - o)
        return (sum(a @ w for a, w in zip(dz, transposed, strict=True)), dc * f), dz

    _, dz = lax.scan(step, (dh, jnp.zeros_like(dh)), saved, reverse=True)
    dz = [a.reshape(len(x), -1) for a in dz]
    # Copied to be transposed: a product over the first axis of both is slower by more than the copy.
    x, h = (lax.optimization_barrier(a.reshape(len(x), -1).T) for a in (x, saved[-1]))
    return None, [x @ a for a in dz], [h @ a for a in dz], [a.sum(0) for a in dz]


last_state.defvjp(_last_state_forward, _last_state_backward)


def lstm(p: Parameters, sequence: Array, label: Array) -> Array:
    kernels, recurrents, biases = ([p[f"lstm1.{k}.{g}"] for g in GATES] for k in ("kernel", "recurrent", "bias"))
    return cross_entropy(dense(p, "logits", last_state(sequence, kernels, recurrents, biases)), label)


def gelu(x: Array) -> Array:
    """By erf: jax.nn.gelu's erfc is slower."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def layer_norm(p: Parameters, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * p[f"{name}.scale"] + p[f"{name}.bias"]


def transformer(p: Parameters, tokens: Array, targets: Array) -> Array:
    n, t = tokens.shape
    embedding = p["embed.embedding"]
    x = (embedding[tokens] + p["positions1.embedding"]).reshape(n * t, -1)
    past = jnp.tri(t, dtype=bool)
    for block in (f"decoder_block{i}" for i in range(1, LAYERS + 1)):
        qkv = layer_norm(p, f"{block}.norm1", x) @ p[f"{block}.qkv_kernel"] + p[f"{block}.qkv_bias"]
        q, k, v = qkv.reshape(n, t, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)  # N, heads, T, C / heads
        scores = jnp.einsum("nhqd,nhkd->nhqk", q, k) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
        y = jnp.einsum("nhqk,nhkd->nqhd", weights, v).reshape(n * t, -1)
        x = x + y @ p[f"{block}.attention1.out_kernel"] + p[f"{block}.attention1.out_bias"]
        y = gelu(dense(p, f"{block}.dense1", layer_norm(p, f"{block}.norm2", x)))
        x = x + dense(p, f"{block}.dense2", y)
    return cross_entropy(layer_norm(p, "norm1", x) @ embedding.T, targets.reshape(-1))


LOSSES: dict[str, Loss] = {
    "linear_regression": linear_regression, "mlp": mlp, "cnn": cnn, "lstm": lstm, "transformer": transformer,
}  # fmt: skip


def prepare(network: str, run: Path) -> tuple[Parameters, np.ndarray, np.ndarray]:
    """What the losses take: gates apart, query, key and value together, sequences time first, some kernels transposed."""
    p, x, y = read(network, run)
    if network == "lstm":
        for kind in ("kernel", "recurrent", "bias"):
            gates = np.split(p.pop(f"lstm1.{kind}"), 4, -1)
            p |= {f"lstm1.{kind}.{gate}": array for gate, array in zip(GATES, gates, strict=True)}
        x = np.ascontiguousarray(x.swapaxes(1, 2))
    if network == "transformer":
        for block in (f"decoder_block{i}" for i in range(1, LAYERS + 1)):
            for kind in ("kernel", "bias"):
                parts = [p.pop(f"{block}.attention1.{part}_{kind}") for part in ("query", "key", "value")]
                p[f"{block}.qkv_{kind}"] = np.concatenate(parts, -1)
    return {name: jnp.array(array) for name, array in starmap(narrowing, p.items())}, x, y


def narrowing(name: str, kernel: np.ndarray) -> tuple[str, np.ndarray]:
    """A kernel of fewer outputs than inputs transposed: its gradient takes XLA up to twice as long the other way round."""
    match kernel.shape:
        case inputs, outputs if name.endswith(".kernel") and 1 < outputs < inputs:
            return f"{name}.T", np.ascontiguousarray(kernel.T)
    return name, kernel


# Strategies


def make_step(network: str, loss: Loss) -> Callable[[Any, tuple[Array, Array]], tuple[Any, Array]]:
    def sgd(p: Parameters, batch: tuple[Array, Array]) -> tuple[Any, Array]:
        value, gradients = jax.value_and_grad(loss)(p, *batch)
        return jax.tree.map(lambda w, g: w - 0.01 * g, p, gradients), value

    def adam(state: Any, batch: tuple[Array, Array]) -> tuple[Any, Array]:
        p, first, second, count = state
        value, gradients = jax.value_and_grad(loss)(p, *batch)
        count += 1
        # 1 - b**t by way of log(b) in Python's float64: b itself loses digits in float32.
        correction = jnp.sqrt(-jnp.expm1(count * math.log(0.999)))
        rate, epsilon = 0.001 * correction / -jnp.expm1(count * math.log(0.9)), 1e-8 * correction
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        p = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + epsilon), p, first, second)
        return (p, first, second, count), value

    return sgd if network == "linear_regression" else adam


def functional(network: str, run: Path, loss: Loss | None = None, chunk: int = 1) -> Train:
    """A pure step whose state is donated: one call a step, or one for a scan over many."""
    settle()
    p, x, y = prepare(network, run)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    state: Any = p if network == "linear_regression" else (p, zeros(p), zeros(p), jnp.int32(0))
    step = make_step(network, loss or LOSSES[network])
    chunk = max(1, chunk // len(x)) * len(x) if chunk > 1 else 1
    batches = [(jnp.array(a), jnp.array(b)) for a, b in zip(x, y, strict=True)]
    stack = tuple(jnp.array(np.concatenate([a] * (chunk // len(a)))) for a in (x, y)) if chunk > 1 else None
    one = jax.jit(step, donate_argnums=0)
    many = jax.jit(lambda state, stack: lax.scan(step, state, stack), donate_argnums=0)
    done = 0

    def train(steps: int) -> np.ndarray:
        nonlocal state, done
        losses, end = [], done + steps
        while done < end:
            if chunk > 1 and done % len(batches) == 0 and end - done >= chunk:
                state, values = many(state, stack)
                done += chunk
            else:
                state, values = one(state, batches[done % len(batches)])
                done += 1
            losses.append(values)
        return np.concatenate([np.atleast_1d(a) for a in fetched(losses)])

    return chunked(train, chunk)


@jax.jit
def stacked(*losses: Array) -> Array:
    return jnp.stack(losses)


def fetched(losses: list[Array]) -> list[np.ndarray]:
    """On the host, scalars a hundred at once: `jax.device_get` of each takes as long as a small step."""
    whole = len(losses) // 100 * 100 if losses[0].ndim == 0 and losses[-1].ndim == 0 else 0
    hundreds = [stacked(*losses[i : i + 100]) for i in range(0, whole, 100)]
    return [np.asarray(a) for a in (*hundreds, *losses[whole:])]


def everyday(network: str, run: Path) -> Train:
    """As in Flax's guide: a model, `nnx.Optimizer`, and a jitted step that changes both."""
    arrays, x, y = read(network, run)
    model = MODELS[network](nnx.Rngs(0))
    for name, array in arrays.items():
        *path, leaf = model.rename(name).split(".")
        parent = model
        for part in path:
            parent = getattr(parent, part)
        parameter = getattr(parent, leaf)
        parameter[...] = array.reshape(parameter.shape)
    rule = optax.sgd(0.01) if network == "linear_regression" else optax.adam(0.001)
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

    def loss_fn(model: nnx.Module, x: Array, y: Array) -> Array:
        outputs = model(x)
        if network == "linear_regression":
            return optax.squared_error(outputs, y).mean()
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    @nnx.jit
    def train_step(model: nnx.Module, optimizer: nnx.Optimizer, x: Array, y: Array) -> Array:
        loss, gradients = nnx.value_and_grad(loss_fn)(model, x, y)
        optimizer.update(model, gradients)
        return loss

    done = 0

    def train(steps: int) -> np.ndarray:
        nonlocal done
        losses = []
        for step in range(done, done + steps):
            losses.append(float(train_step(model, optimizer, x[step % len(x)], y[step % len(x)])))
        done += steps
        return np.array(losses, np.float32)

    return chunked(train, 1)


class Model(nnx.Module):
    def rename(self, name: str) -> str:
        """Flax's path of a canonical name."""
        return name


class LinearRegression(Model):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.linear(x)


class MLP(Model):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense1 = nnx.Linear(784, 256, rngs=rngs)
        self.dense2 = nnx.Linear(256, 128, rngs=rngs)
        self.logits = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, image: Array) -> Array:
        x = nnx.relu(self.dense1(image.reshape(len(image), -1)))
        return self.logits(nnx.relu(self.dense2(x)))


class CNN(Model):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dense1 = nnx.Linear(3136, 128, rngs=rngs)
        self.logits = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, image: Array) -> Array:
        pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
        x = pool(nnx.relu(self.conv1(image)))
        x = pool(nnx.relu(self.conv2(x)))
        x = nnx.relu(self.dense1(x.reshape(len(x), -1)))
        return self.logits(x)


class LSTM(Model):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.lstm1 = nnx.RNN(nnx.OptimizedLSTMCell(128, 128, rngs=rngs))
        self.logits = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, sequence: Array) -> Array:
        return self.logits(self.lstm1(sequence, rngs=nnx.Rngs(0))[:, -1])

    def rename(self, name: str) -> str:
        paths = {"kernel": "dense_i.kernel", "recurrent": "dense_h.kernel", "bias": "dense_h.bias"}
        layer, kind = name.split(".")
        return f"lstm1.cell.{paths[kind]}" if layer == "lstm1" else name


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(128, epsilon=1e-5, rngs=rngs)
        self.attention1 = nnx.MultiHeadAttention(HEADS, 128, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(128, epsilon=1e-5, rngs=rngs)
        self.dense1 = nnx.Linear(128, 512, rngs=rngs)
        self.dense2 = nnx.Linear(512, 128, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention1(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.dense2(nnx.gelu(self.dense1(self.norm2(x)), approximate=False))


class Transformer(Model):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(96, 128, rngs=rngs)
        self.positions1 = nnx.Embed(64, 128, rngs=rngs)
        for i in range(1, LAYERS + 1):
            setattr(self, f"decoder_block{i}", Block(rngs))
        self.norm1 = nnx.LayerNorm(128, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        x = self.embed(tokens) + self.positions1(jnp.arange(tokens.shape[1]))
        for i in range(1, LAYERS + 1):
            x = getattr(self, f"decoder_block{i}")(x)
        return self.embed.attend(self.norm1(x))

    def rename(self, name: str) -> str:
        for part in ("query", "key", "value", "out"):
            name = name.replace(f"{part}_", f"{part}.")
        return name


MODELS = {"linear_regression": LinearRegression, "mlp": MLP, "cnn": CNN, "lstm": LSTM, "transformer": Transformer}


def settle() -> None:
    """Memory kept: XLA asks for its buffers anew at every call, glibc gives them back, and each page costs a fault."""
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
        "scan": partial(functional, network, chunk=CHUNKS[network]),
        "step": partial(functional, network),
    }
    for network in MODELS
}
PEERS["cnn"]["scan"] = partial(functional, "cnn", loss=columns_cnn, chunk=CHUNKS["cnn"])
