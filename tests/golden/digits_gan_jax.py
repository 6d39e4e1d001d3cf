"""digits_gan in JAX (Flax NNX and Optax), compiled from a spec by harness 0.1.0.

A generator and a discriminator on handwritten digits (Goodfellow et al. 2014; the generator
minimises the non-saturating loss). Two updates a step, the discriminator's first.

    python digits_gan_jax.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

import math
import os
import sys
from collections.abc import Callable
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


def leaky_relu(x: Array, slope: float) -> Array:
    """nnx.leaky_relu with gradient `slope` at 0, where Flax's is 1."""
    return jnp.where(x > 0, x, slope * x)


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


class Generator(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense1 = nnx.Linear(16, 256, rngs=rngs)
        self.deconv1 = nnx.ConvTranspose(
            16,
            32,
            (4, 4),
            strides=(2, 2),
            padding=((2, 2), (2, 2)),
            transpose_kernel=True,
            rngs=rngs,
        )
        self.conv1 = nnx.Conv(32, 1, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)

    def __call__(self, noise: Array) -> Array:
        x = self.dense1(noise)
        x = nnx.relu(x)
        x = x.reshape(-1, 4, 4, 16)
        x = self.deconv1(x)
        x = nnx.relu(x)
        x = self.conv1(x)
        return nnx.sigmoid(x)


class Discriminator(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 16, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)), rngs=rngs)
        self.logit = nnx.Linear(128, 1, rngs=rngs)

    def __call__(self, image: Array, masks: dict | None = None) -> Array:
        x = self.conv1(image)
        x = leaky_relu(x, 0.2)
        x = self.conv2(x)
        x = leaky_relu(x, 0.2)
        x = x.reshape(len(x), -1)
        x = x * masks["dropout1"] if masks else x
        return self.logit(x)


class DigitsGan(nnx.Module):
    """The networks that are trained together."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.generator = Generator(rngs)
        self.discriminator = Discriminator(rngs)


def discriminator_loss(model: DigitsGan, batch: dict) -> Array:
    logits = model.discriminator(batch["image"], batch["masks"]["discriminator_logits"])
    fake = jax.lax.stop_gradient(model.generator(batch["noise"]))
    logits2 = model.discriminator(fake, batch["masks"]["discriminator_logits2"])
    return (
        optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, 0.95)).mean()
        + optax.sigmoid_binary_cross_entropy(logits2, jnp.full_like(logits2, 0.0)).mean()
    )


def generator_loss(model: DigitsGan, batch: dict) -> Array:
    fake = model.generator(batch["noise"])
    logits = model.discriminator(fake, batch["masks"]["generator_logits"])
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, 1.0)).mean()


optimizers = {
    "discriminator": optax.chain(
        scale_by_adam(b1=0.5, b2=0.999, eps=1e-08), optax.scale_by_learning_rate(0.0005)
    ),
    "generator": optax.chain(
        scale_by_adam(b1=0.5, b2=0.999, eps=1e-08), optax.scale_by_learning_rate(0.0005)
    ),
}


# The model without its arrays, and their shapes: nothing is allocated.
GRAPHDEF, SHAPES = nnx.split(nnx.eval_shape(lambda: DigitsGan(nnx.Rngs(0))))


class State(NamedTuple):
    """What a training step changes."""

    parameters: dict
    statistics: dict
    optimizer_states: dict[str, optax.OptState]


def minimise(
    state: State, name: str, loss_fn: Callable, networks: tuple[str, ...], batch: dict
) -> tuple[State, Array]:
    """One update of these networks' parameters; returns the new state and the loss before it."""

    def objective(parameters: dict) -> tuple[Array, dict]:
        model = nnx.merge(GRAPHDEF, state.parameters | parameters, state.statistics)
        return loss_fn(model, batch), nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    parameters = {network: state.parameters[network] for network in networks}
    (loss, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
    updates, optimizer_state = optimizers[name].update(
        gradients, state.optimizer_states[name], parameters
    )
    parameters = state.parameters | optax.apply_updates(parameters, updates)
    optimizer_states = state.optimizer_states | {name: optimizer_state}
    return State(parameters, statistics, optimizer_states), loss


@partial(jax.jit, donate_argnames="state")
def train_step(state: State, batch: dict) -> tuple[State, dict[str, Array]]:
    """One update after another; returns the new state and the loss before each."""
    losses = {}
    state, losses["discriminator"] = minimise(
        state, "discriminator", discriminator_loss, ("discriminator",), batch
    )
    state, losses["generator"] = minimise(state, "generator", generator_loss, ("generator",), batch)
    return state, losses


# canonical name -> (Flax's path, the axes that take the canonical array to Flax's)
PARAMETERS = {
    "generator.dense1.kernel": ("generator.dense1.kernel", (0, 1)),
    "generator.dense1.bias": ("generator.dense1.bias", (0,)),
    "generator.deconv1.kernel": ("generator.deconv1.kernel", (0, 1, 2, 3)),
    "generator.deconv1.bias": ("generator.deconv1.bias", (0,)),
    "generator.conv1.kernel": ("generator.conv1.kernel", (0, 1, 2, 3)),
    "generator.conv1.bias": ("generator.conv1.bias", (0,)),
    "discriminator.conv1.kernel": ("discriminator.conv1.kernel", (0, 1, 2, 3)),
    "discriminator.conv1.bias": ("discriminator.conv1.bias", (0,)),
    "discriminator.conv2.kernel": ("discriminator.conv2.kernel", (0, 1, 2, 3)),
    "discriminator.conv2.bias": ("discriminator.conv2.bias", (0,)),
    "discriminator.logit.kernel": ("discriminator.logit.kernel", (0, 1)),
    "discriminator.logit.bias": ("discriminator.logit.bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "discriminator_logits": {"dropout1": (0x1B8F0BBA84EF81C3, (128,), 0.2)},
    "discriminator_logits2": {"dropout1": (0x07081A619FA3BAB8, (128,), 0.2)},
    "generator_logits": {"dropout1": (0x2B8261BF6CC29546, (128,), 0.2)},
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
    return State(
        parameters,
        load(STATISTICS),
        {
            "discriminator": optimizers["discriminator"].init(
                {"discriminator": parameters["discriminator"]}
            ),
            "generator": optimizers["generator"].init({"generator": parameters["generator"]}),
        },
    )


def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = inputs["order"][step]
    return jax.device_put(
        {
            "image": inputs["train.image"][rows],
            "noise": inputs["noise"][step][: len(rows)],
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
        state, losses = train_step(state, load_batch(inputs, step))
        print(step + 1, *map(float, losses.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
