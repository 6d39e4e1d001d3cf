"""digits_gan in Keras on TensorFlow, compiled from a spec by harness 0.1.0.

A generator and a discriminator on handwritten digits (Goodfellow et al. 2014; the generator
minimises the non-saturating loss). Two updates a step, the discriminator's first.

    python digits_gan_tensorflow.py RUN_DIRECTORY

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
# By TensorFlow 2.21's dependency optimizer an update loses its place before the next one's reads,
# which then see the parameters before it, now and then.
tf.config.optimizer.set_experimental_options({"dependency_optimization": False})


def leaky_relu(x: tf.Tensor, slope: float) -> tf.Tensor:
    """x where it is above 0, else slope * x; tf.nn.leaky_relu keeps its slope in float32."""
    return tf.where(x > 0, x, slope * x)


class Adam(keras.optimizers.Adam):
    """Adam with epsilon added after the bias correction; Keras's own adds it before."""

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        self.assign_add(m, (1 - self.beta_1) * (gradient - m))
        self.assign_add(v, (1 - self.beta_2) * (tf.square(gradient) - v))
        # Scalars in float64: 1 - 0.999 in float32 is wrong in the fifth digit. Both sides of the quotient are
        # multiplied by the correction, which saves a division of every number.
        t = tf.cast(self.iterations + 1, tf.float64)
        rate = tf.cast(learning_rate, tf.float64) / (1 - self.beta_1**t)
        correction = tf.sqrt(1 - self.beta_2**t)
        rate = tf.cast(rate * correction, variable.dtype)
        epsilon = tf.cast(self.epsilon * correction, variable.dtype)
        self.assign_sub(variable, rate * m / (tf.sqrt(v) + epsilon))


class Generator(keras.Model):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.dense1 = keras.layers.Dense(256, name="dense1")
        self.deconv1 = keras.layers.Conv2DTranspose(
            32, (4, 4), strides=(2, 2), padding="same", name="deconv1"
        )
        self.conv1 = keras.layers.Conv2D(1, (3, 3), padding="same", name="conv1")

    def call(self, noise: tf.Tensor) -> tf.Tensor:
        x = self.dense1(noise)
        x = tf.nn.relu(x)
        x = tf.reshape(x, (-1, 4, 4, 16))
        x = self.deconv1(x)
        x = tf.nn.relu(x)
        x = self.conv1(x)
        return tf.sigmoid(x)


class Discriminator(keras.Model):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.conv1 = keras.layers.Conv2D(16, (3, 3), strides=(2, 2), padding="same", name="conv1")
        self.conv2 = keras.layers.Conv2D(32, (3, 3), strides=(2, 2), padding="same", name="conv2")
        self.logit = keras.layers.Dense(1, name="logit")

    def call(self, image: tf.Tensor, masks: dict | None = None) -> tf.Tensor:
        x = self.conv1(image)
        x = leaky_relu(x, 0.2)
        x = self.conv2(x)
        x = leaky_relu(x, 0.2)
        x = tf.reshape(x, (-1, 128))
        x = x * masks["dropout1"] if masks else x
        return self.logit(x)


class DigitsGan:
    """The networks that are trained together."""

    def __init__(self) -> None:
        self.generator = Generator(name="generator")
        self.discriminator = Discriminator(name="discriminator")

    @property
    def weights(self) -> list[keras.Variable]:
        return self.generator.weights + self.discriminator.weights


def discriminator_loss(model: DigitsGan, batch: dict) -> tf.Tensor:
    logits = model.discriminator(batch["image"], batch["masks"]["discriminator_logits"])
    fake = tf.stop_gradient(model.generator(batch["noise"]))
    logits2 = model.discriminator(fake, batch["masks"]["discriminator_logits2"])
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(
            labels=keras.ops.full_like(logits, 0.95), logits=logits
        )
    ) + tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(
            labels=keras.ops.full_like(logits2, 0.0), logits=logits2
        )
    )


def generator_loss(model: DigitsGan, batch: dict) -> tf.Tensor:
    fake = model.generator(batch["noise"])
    logits = model.discriminator(fake, batch["masks"]["generator_logits"])
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(
            labels=keras.ops.full_like(logits, 1.0), logits=logits
        )
    )


def make_optimizers(model: DigitsGan) -> dict[str, keras.optimizers.Optimizer]:
    optimizers = {
        "discriminator": Adam(learning_rate=0.0005, beta_1=0.5, beta_2=0.999, epsilon=1e-08),
        "generator": Adam(learning_rate=0.0005, beta_1=0.5, beta_2=0.999, epsilon=1e-08),
    }
    optimizers["discriminator"].build(model.discriminator.trainable_weights)
    optimizers["generator"].build(model.generator.trainable_weights)
    return optimizers


def train_step(
    model: DigitsGan, optimizers: dict[str, keras.optimizers.Optimizer], batch: dict
) -> dict[str, tf.Tensor]:
    """One update after another; returns the loss before each."""
    losses = {}
    with tf.GradientTape() as tape:
        losses["discriminator"] = discriminator_loss(model, batch)
    gradients = tape.gradient(losses["discriminator"], model.discriminator.trainable_weights)
    optimizers["discriminator"].apply(gradients, model.discriminator.trainable_weights)
    with tf.GradientTape() as tape:
        losses["generator"] = generator_loss(model, batch)
    gradients = tape.gradient(losses["generator"], model.generator.trainable_weights)
    optimizers["generator"].apply(gradients, model.generator.trainable_weights)
    return losses


def make_compiled_step(
    model: DigitsGan, optimizers: dict[str, keras.optimizers.Optimizer]
) -> Callable[[dict], dict[str, tf.Tensor]]:
    """`train_step` as a graph, of tensors alone: TensorFlow looks through objects anew at each call."""
    return tf.function(lambda batch: train_step(model, optimizers, batch))


# canonical name -> (the Keras variable's path, the axes that take the canonical array to Keras's)
PARAMETERS = {
    "generator.dense1.kernel": ("generator/dense1/kernel", (0, 1)),
    "generator.dense1.bias": ("generator/dense1/bias", (0,)),
    "generator.deconv1.kernel": ("generator/deconv1/kernel", (0, 1, 2, 3)),
    "generator.deconv1.bias": ("generator/deconv1/bias", (0,)),
    "generator.conv1.kernel": ("generator/conv1/kernel", (0, 1, 2, 3)),
    "generator.conv1.bias": ("generator/conv1/bias", (0,)),
    "discriminator.conv1.kernel": ("discriminator/conv1/kernel", (0, 1, 2, 3)),
    "discriminator.conv1.bias": ("discriminator/conv1/bias", (0,)),
    "discriminator.conv2.kernel": ("discriminator/conv2/kernel", (0, 1, 2, 3)),
    "discriminator.conv2.bias": ("discriminator/conv2/bias", (0,)),
    "discriminator.logit.kernel": ("discriminator/logit/kernel", (0, 1)),
    "discriminator.logit.bias": ("discriminator/logit/bias", (0,)),
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


def make_model() -> DigitsGan:
    model = DigitsGan()
    # Keras makes a layer's variables when it first sees an input.
    model.generator(keras.ops.zeros((1, 16)))
    model.discriminator(keras.ops.zeros((1, 8, 8, 1)))
    return model


def load_parameters(model: DigitsGan, arrays: dict[str, np.ndarray]) -> None:
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
        "noise": inputs["noise"][step][: len(rows)],
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
    optimizers = make_optimizers(model)
    compiled_step = make_compiled_step(model, optimizers)
    for step in range(len(inputs["order"])):
        losses = compiled_step(load_batch(inputs, step))
        print(step + 1, *map(float, losses.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
