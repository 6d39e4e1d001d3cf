"""digits_lstm in JAX (Flax NNX and Optax), compiled from a spec by harness 0.1.0.

A handwritten digit read row by row, as eight time steps of eight pixels. For a GRU, write gru for
lstm.

    python digits_lstm_jax.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax import Array
from safetensors.numpy import load_file

# Full float32 products on GPUs and TPUs too: JAX uses TF32 or bfloat16 unless told not to.
jax.config.update("jax_default_matmul_precision", "highest")


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """optax.scale_by_adam whose bias corrections are exact: its 1 - b2**t is 1e-5 off in float32."""

    def init(parameters: dict) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

    def update(
        gradients: dict, state: optax.ScaleByAdamState, _parameters: dict | None = None
    ) -> tuple[dict, optax.ScaleByAdamState]:
        t = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, gradients)
        # 1 - b**t by way of log(b) in Python's float64: b itself loses digits in float32.
        c1, c2 = (-jnp.expm1(t * math.log(b)) if b else 1.0 for b in (b1, b2))
        # m / c1 / (sqrt(v / c2) + eps) with one division of every number.
        root = jnp.sqrt(c2)
        scale = root / c1
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps * root), mu, nu)
        return updates, optax.ScaleByAdamState(t, mu, nu)

    return optax.GradientTransformation(init, update)


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.lstm1 = nnx.RNN(nnx.OptimizedLSTMCell(8, 64, rngs=rngs), rngs=False)
        self.logits = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, image: Array, masks: dict | None = None) -> Array:
        x = image.reshape(-1, 8, 8)
        x = x * masks["dropout1"] if masks else x
        x = self.lstm1(x, rngs=nnx.Rngs(0))[:, -1]
        return self.logits(x)


def loss_fn(model: Classifier, batch: dict) -> Array:
    logits = model(batch["image"], batch["masks"]["classifier"])
    return optax.softmax_cross_entropy(
        logits, optax.smooth_labels(nnx.one_hot(batch["label"], 10), 0.05)
    ).mean()


def learning_rate(step: Array) -> Array:
    """Cosine decay from 0.005 to 0.00025 over 400 updates; `step` counts from 0."""
    return 0.005 * (0.05 + 0.95 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step, 400) / 400)))


optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    scale_by_adam(b1=0.9, b2=0.999, eps=1e-08),
    optax.scale_by_learning_rate(learning_rate),
)


# The model without its arrays, and their shapes: nothing is allocated.
GRAPHDEF, SHAPES = nnx.split(nnx.eval_shape(lambda: Classifier(nnx.Rngs(0))))


class State(NamedTuple):
    """What a training step changes."""

    parameters: dict
    statistics: dict
    optimizer_state: optax.OptState


@partial(jax.jit, donate_argnames="state")
def train_step(state: State, batch: dict) -> tuple[State, Array]:
    """One update; returns the new state and the loss before it."""

    def objective(parameters: dict) -> tuple[Array, dict]:
        model = nnx.merge(GRAPHDEF, parameters, state.statistics)
        return loss_fn(model, batch), nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    parameters = state.parameters
    (loss, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, parameters)
    parameters = optax.apply_updates(parameters, updates)
    return State(parameters, statistics, optimizer_state), loss


# canonical name -> (Flax's path, the axes that take the canonical array to Flax's)
PARAMETERS = {
    "lstm1.kernel": ("lstm1.cell.dense_i.kernel", (0, 1)),
    "lstm1.recurrent": ("lstm1.cell.dense_h.kernel", (0, 1)),
    "lstm1.bias": ("lstm1.cell.dense_h.bias", (0,)),
    "logits.kernel": ("logits.kernel", (0, 1)),
    "logits.bias": ("logits.bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "classifier": {"dropout1": (0x4EBC7AB1B297901E, (1, 8), 0.1)},
}


def dropout_masks(step: int, batch: int) -> dict:
    """What dropout multiplies by at a step: 0, or 1 / (1 - rate). Shape: batch, then the layer's.

    Philox with the step as its counter, 16 bits a value: the same numbers in every framework.
    """
    masks: dict = {}
    for call, layers in DROPOUT.items():
        for path, (key, shape, rate) in layers.items():
            count = batch * math.prod(shape)
            words = np.random.Philox(key=key, counter=step << 64).random_raw(-(-count // 4))
            keep = words.view(np.uint16)[:count] >= round(rate * 2**16)
            *blocks, layer = path.split(".")
            inner = masks.setdefault(call, {})
            for name in blocks:
                inner = inner.setdefault(name, {})
            inner[layer] = (keep / (1 - rate)).astype(np.float32).reshape(batch, *shape)
    return masks


def load_parameters(arrays: dict[str, np.ndarray]) -> State:
    """The state before training, from the canonical array of every parameter and statistic."""
    names = (PARAMETERS | STATISTICS).keys()
    if arrays.keys() != names:
        raise ValueError(
            f"names that only the model or the arrays have: {sorted(arrays.keys() ^ names)}"
        )
    shapes = {
        ".".join(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(SHAPES)
    }

    def load(table: dict) -> dict:
        found = {}
        for name, (path, axes) in table.items():
            array, shape = arrays[name], tuple(shapes[path][i] for i in np.argsort(axes))
            if (array.shape, array.dtype) != (shape, "float32"):
                raise ValueError(
                    f"{name}: the model has {shape} of float32, "
                    f"the array is {array.shape} of {array.dtype}"
                )
            found[path] = jnp.array(array.transpose(axes), jnp.float32)
        return unflatten_dict(found, sep=".")

    parameters = load(PARAMETERS)
    return State(parameters, load(STATISTICS), optimizer.init(parameters))


def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = inputs["order"][step]
    return jax.device_put(
        {
            "image": inputs["train.image"][rows],
            "label": inputs["train.label"][rows],
            "masks": dropout_masks(step, len(rows)),
        }
    )


def main(run: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        # XLA:CPU splits sums by the cores that it may use: as many as in the recorded run.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(
        run / "inputs" / "batches.safetensors"
    )
    state = load_parameters(load_file(run / "inputs" / "parameters.safetensors"))
    for step in range(len(inputs["order"])):
        state, loss = train_step(state, load_batch(inputs, step))
        print(step + 1, float(loss))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
