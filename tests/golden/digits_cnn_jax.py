"""digits_cnn in JAX (Flax NNX and Optax), compiled from a spec by harness 0.1.0.

A small convolutional network on scikit-learn's handwritten digits, trained by SGD with Nesterov
momentum.

    python digits_cnn_jax.py RUN_DIRECTORY

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


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 16, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)
        self.norm1 = nnx.BatchNorm(
            16, momentum=0.9, epsilon=1e-05, use_fast_variance=False, rngs=rngs
        )
        self.conv2 = nnx.Conv(
            16, 32, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)), use_bias=False, rngs=rngs
        )
        self.norm2 = nnx.BatchNorm(
            32, momentum=0.9, epsilon=1e-05, use_fast_variance=False, rngs=rngs
        )
        self.logits = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, image: Array, masks: dict | None = None) -> Array:
        x = self.conv1(image)
        x = self.norm1(x)
        x = nnx.relu(x)
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = self.conv2(x)
        x = self.norm2(x)
        x = nnx.relu(x)
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        x = x * masks["dropout1"] if masks else x
        return self.logits(x)


def loss_fn(model: Classifier, batch: dict) -> Array:
    logits = model(batch["image"], batch["masks"]["classifier"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def learning_rate(step: Array) -> Array:
    """Cosine decay from 0.1 to 0 over 300 updates; `step` counts from 0."""
    return 0.1 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step, 300) / 300))


optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)


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
    "conv1.kernel": ("conv1.kernel", (0, 1, 2, 3)),
    "conv1.bias": ("conv1.bias", (0,)),
    "norm1.scale": ("norm1.scale", (0,)),
    "norm1.bias": ("norm1.bias", (0,)),
    "conv2.kernel": ("conv2.kernel", (0, 1, 2, 3)),
    "norm2.scale": ("norm2.scale", (0,)),
    "norm2.bias": ("norm2.bias", (0,)),
    "logits.kernel": ("logits.kernel", (0, 1)),
    "logits.bias": ("logits.bias", (0,)),
}
# the same for running statistics
STATISTICS = {
    "norm1.mean": ("norm1.mean", (0,)),
    "norm1.variance": ("norm1.var", (0,)),
    "norm2.mean": ("norm2.mean", (0,)),
    "norm2.variance": ("norm2.var", (0,)),
}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "classifier": {"dropout1": (0x4EBC7AB1B297901E, (32,), 0.2)},
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
