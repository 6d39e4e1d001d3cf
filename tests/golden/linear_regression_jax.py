"""linear_regression in JAX (Flax NNX and Optax), compiled from a spec by harness 0.1.0.

Two inputs, one output, two points. The first network of the tutorial that this project grew from,
started from what torch.manual_seed(0); nn.Linear(2, 1) gives.

    python linear_regression_jax.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

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


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.linear(x)


def loss_fn(model: Model, batch: dict) -> Array:
    predictions = model(batch["x"])
    return optax.squared_error(predictions, batch["y"]).mean()


optimizer = optax.sgd(0.01)


# The model without its arrays, and their shapes: nothing is allocated.
GRAPHDEF, SHAPES = nnx.split(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))


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
    "linear.kernel": ("linear.kernel", (0, 1)),
    "linear.bias": ("linear.bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


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
            "x": inputs["train.x"][rows],
            "y": inputs["train.y"][rows],
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
