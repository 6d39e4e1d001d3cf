"""digits_cnn in Keras on TensorFlow, compiled from a spec by harness 0.1.0.

A small convolutional network on scikit-learn's handwritten digits, trained by SGD with Nesterov
momentum.

    python digits_cnn_tensorflow.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

import math
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


class NesterovSGD(keras.optimizers.SGD):
    """Nesterov's SGD whose velocity holds no learning rate, so that a schedule acts at once; Keras's own does."""

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        velocity = self.momentums[self._get_variable_index(variable)]
        self.assign(velocity, self.momentum * velocity + gradient)
        rate = tf.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * (gradient + self.momentum * velocity))


class Classifier(keras.Model):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.conv1 = keras.layers.Conv2D(16, (3, 3), padding="same", name="conv1")
        self.norm1 = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-05, name="norm1")
        self.conv2 = keras.layers.Conv2D(
            32, (3, 3), strides=(2, 2), padding="same", use_bias=False, name="conv2"
        )
        self.norm2 = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-05, name="norm2")
        self.logits = keras.layers.Dense(10, name="logits")

    def call(
        self, image: tf.Tensor, masks: dict | None = None, training: bool = False
    ) -> tf.Tensor:
        x = self.conv1(image)
        x = self.norm1(x, training=training)
        x = tf.nn.relu(x)
        x = tf.nn.max_pool2d(x, (2, 2), (2, 2), "VALID")
        x = self.conv2(x)
        x = self.norm2(x, training=training)
        x = tf.nn.relu(x)
        x = tf.nn.avg_pool2d(x, (2, 2), (2, 2), "VALID")
        x = tf.reshape(x, (-1, 32))
        x = x * masks["dropout1"] if masks else x
        return self.logits(x)


def loss_fn(model: Classifier, batch: dict) -> tf.Tensor:
    logits = model(batch["image"], batch["masks"]["classifier"], training=True)
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits)
    )


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine decay from 0.1 to 0 over 300 updates; `step` counts from 0."""

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float64)  # Keras's own schedules round to float32.
        return 0.1 * 0.5 * (1 + tf.cos(math.pi * tf.minimum(step, 300) / 300))


def make_optimizer(model: Classifier) -> keras.optimizers.Optimizer:
    optimizer = NesterovSGD(learning_rate=LearningRate(), momentum=0.9)
    optimizer.build(model.trainable_weights)
    return optimizer


def train_step(model: Classifier, optimizer: keras.optimizers.Optimizer, batch: dict) -> tf.Tensor:
    """One update; returns the loss before it."""
    with tf.GradientTape() as tape:
        loss = loss_fn(model, batch)
    gradients = tape.gradient(loss, model.trainable_weights)
    optimizer.apply(gradients, model.trainable_weights)
    return loss


def make_compiled_step(
    model: Classifier, optimizer: keras.optimizers.Optimizer
) -> Callable[[dict], tf.Tensor]:
    """`train_step` as a graph, of tensors alone: TensorFlow looks through objects anew at each call."""
    return tf.function(lambda batch: train_step(model, optimizer, batch))


# canonical name -> (the Keras variable's path, the axes that take the canonical array to Keras's)
PARAMETERS = {
    "conv1.kernel": ("classifier/conv1/kernel", (0, 1, 2, 3)),
    "conv1.bias": ("classifier/conv1/bias", (0,)),
    "norm1.scale": ("classifier/norm1/gamma", (0,)),
    "norm1.bias": ("classifier/norm1/beta", (0,)),
    "conv2.kernel": ("classifier/conv2/kernel", (0, 1, 2, 3)),
    "norm2.scale": ("classifier/norm2/gamma", (0,)),
    "norm2.bias": ("classifier/norm2/beta", (0,)),
    "logits.kernel": ("classifier/logits/kernel", (0, 1)),
    "logits.bias": ("classifier/logits/bias", (0,)),
}
# the same for running statistics
STATISTICS = {
    "norm1.mean": ("classifier/norm1/moving_mean", (0,)),
    "norm1.variance": ("classifier/norm1/moving_variance", (0,)),
    "norm2.mean": ("classifier/norm2/moving_mean", (0,)),
    "norm2.variance": ("classifier/norm2/moving_variance", (0,)),
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


def make_model() -> Classifier:
    model = Classifier(name="classifier")
    # Keras makes a layer's variables when it first sees an input.
    model(keras.ops.zeros((1, 8, 8, 1)))
    return model


def load_parameters(model: Classifier, arrays: dict[str, np.ndarray]) -> None:
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
        "image": inputs["train.image"][rows],
        "label": inputs["train.label"][rows],
        "masks": dropout_masks(step, len(rows)),
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
