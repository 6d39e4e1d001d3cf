"""linear_regression in Keras on TensorFlow, compiled from a spec by harness 0.1.0.

Two inputs, one output, two points. The first network of the tutorial that this project grew from,
started from what torch.manual_seed(0); nn.Linear(2, 1) gives.

    python linear_regression_tensorflow.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras reads it when it is imported.
# By itself TensorFlow takes oneDNN's kernels only where a processor has AVX512_VNNI, AVX512_BF16 or AMX.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

# Full float32 products on GPUs too: TensorFlow uses TF32 unless told not to.
tf.config.experimental.enable_tensor_float_32_execution(False)


class Model(keras.Model):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.linear = keras.layers.Dense(1, name="linear")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.linear(x)


def loss_fn(model: Model, batch: dict) -> tf.Tensor:
    predictions = model(batch["x"])
    return tf.reduce_mean(tf.square(predictions - batch["y"]))


def make_optimizer(model: Model) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.SGD(learning_rate=0.01)
    optimizer.build(model.trainable_weights)
    return optimizer


def train_step(model: Model, optimizer: keras.optimizers.Optimizer, batch: dict) -> tf.Tensor:
    """One update; returns the loss before it."""
    with tf.GradientTape() as tape:
        loss = loss_fn(model, batch)
    gradients = tape.gradient(loss, model.trainable_weights)
    optimizer.apply(gradients, model.trainable_weights)
    return loss


def make_compiled_step(
    model: Model, optimizer: keras.optimizers.Optimizer
) -> Callable[[dict], tf.Tensor]:
    """`train_step` as a graph, of tensors alone: TensorFlow looks through objects anew at each call."""
    return tf.function(lambda batch: train_step(model, optimizer, batch))


# canonical name -> (the Keras variable's path, the axes that take the canonical array to Keras's)
PARAMETERS = {
    "linear.kernel": ("model/linear/kernel", (0, 1)),
    "linear.bias": ("model/linear/bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


def make_model() -> Model:
    model = Model(name="model")
    # Keras makes a layer's variables when it first sees an input.
    model(keras.ops.zeros((1, 2)))
    return model


def load_parameters(model: Model, arrays: dict[str, np.ndarray]) -> None:
    """Set every parameter and statistic from its canonical array."""
    table, variables = PARAMETERS | STATISTICS, {v.path: v for v in model.weights}
    if arrays.keys() != table.keys():
        raise ValueError(
            f"names that only the model or the arrays have: {sorted(arrays.keys() ^ table.keys())}"
        )
    for name, (path, axes) in table.items():
        variable, array = variables[path], arrays[name]
        shape = tuple(variable.shape[i] for i in np.argsort(axes))
        if (array.shape, array.dtype) != (shape, variable.dtype):
            raise ValueError(
                f"{name}: the model has {shape} of {variable.dtype}, "
                f"the array is {array.shape} of {array.dtype}"
            )
        variable.assign(array.transpose(axes))


def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = inputs["order"][step]
    batch = {
        "x": inputs["train.x"][rows],
        "y": inputs["train.y"][rows],
    }
    return tf.nest.map_structure(tf.convert_to_tensor, batch)


def main(run: Path) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(
        run / "inputs" / "batches.safetensors"
    )
    model = make_model()
    load_parameters(model, load_file(run / "inputs" / "parameters.safetensors"))
    optimizer = make_optimizer(model)
    compiled_step = make_compiled_step(model, optimizer)
    for step in range(len(inputs["order"])):
        loss = compiled_step(load_batch(inputs, step))
        print(step + 1, float(loss))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
