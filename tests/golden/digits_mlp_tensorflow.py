"""digits_mlp in Keras on TensorFlow, compiled from a spec by harness 0.1.0.

Dense layers with dropout on scikit-learn's handwritten digits, trained by AdamW.

    python digits_mlp_tensorflow.py RUN_DIRECTORY

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


class AdamW(keras.optimizers.AdamW):
    """AdamW with epsilon added after the bias correction; Keras's own adds it before."""

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


class Classifier(keras.Model):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.dense1 = keras.layers.Dense(128, name="dense1")
        self.dense2 = keras.layers.Dense(64, name="dense2")
        self.logits = keras.layers.Dense(10, name="logits")

    def call(self, image: tf.Tensor, masks: dict | None = None) -> tf.Tensor:
        x = tf.reshape(image, (-1, 64))
        x = self.dense1(x)
        x = tf.nn.relu(x)
        x = x * masks["dropout1"] if masks else x
        x = self.dense2(x)
        x = tf.nn.relu(x)
        x = x * masks["dropout2"] if masks else x
        return self.logits(x)


def loss_fn(model: Classifier, batch: dict) -> tf.Tensor:
    logits = model(batch["image"], batch["masks"]["classifier"])
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits)
    )


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0.0003 over 40 updates, then cosine decay from 0.003 to 3e-05 over 360 updates; `step` counts from 0."""

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float64)  # Keras's own schedules round to float32.
        warmup = 0.003 * (0.1 + 0.9 * step / 40)
        after = 0.003 * (
            0.01 + 0.99 * 0.5 * (1 + tf.cos(math.pi * tf.minimum(step - 40, 360) / 360))
        )
        return tf.where(step < 40, warmup, after)


# Weight decay spares these.
NO_DECAY = {"classifier/dense1/bias", "classifier/dense2/bias", "classifier/logits/bias"}


def make_optimizer(model: Classifier) -> keras.optimizers.Optimizer:
    # Keras would round a decay that is a Python float to float32.
    optimizer = AdamW(
        learning_rate=LearningRate(),
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-08,
        weight_decay=np.float64(0.05),
    )
    optimizer.exclude_from_weight_decay([v for v in model.trainable_weights if v.path in NO_DECAY])
    optimizer.build(model.trainable_weights)
    return optimizer


def train_step(model: Classifier, optimizer: keras.optimizers.Optimizer, batch: dict) -> tf.Tensor:
    """One update; returns the loss before it."""
    with tf.GradientTape() as tape:
        loss = loss_fn(model, batch)
    gradients = tape.gradient(loss, model.trainable_weights)
    gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
    optimizer.apply(gradients, model.trainable_weights)
    return loss


def make_compiled_step(
    model: Classifier, optimizer: keras.optimizers.Optimizer
) -> Callable[[dict], tf.Tensor]:
    """`train_step` as a graph, of tensors alone: TensorFlow looks through objects anew at each call."""
    return tf.function(lambda batch: train_step(model, optimizer, batch))


# canonical name -> (the Keras variable's path, the axes that take the canonical array to Keras's)
PARAMETERS = {
    "dense1.kernel": ("classifier/dense1/kernel", (0, 1)),
    "dense1.bias": ("classifier/dense1/bias", (0,)),
    "dense2.kernel": ("classifier/dense2/kernel", (0, 1)),
    "dense2.bias": ("classifier/dense2/bias", (0,)),
    "logits.kernel": ("classifier/logits/kernel", (0, 1)),
    "logits.bias": ("classifier/logits/bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "classifier": {
        "dropout1": (0x4EBC7AB1B297901E, (128,), 0.2),
        "dropout2": (0xA51CC1B7E0E21BBF, (64,), 0.1),
    },
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
