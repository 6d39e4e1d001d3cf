"""char_transformer in Keras on TensorFlow, compiled from a spec by harness 0.1.0.

A causal pre-norm decoder that reads characters of Python's own help text and predicts the next.

    python char_transformer_tensorflow.py RUN_DIRECTORY

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


class DroppedAttention(keras.layers.Layer):
    """Multi-head attention with a given dropout mask; keras.layers.MultiHeadAttention draws its own."""

    def __init__(self, channels: int, *, heads: int, causal: bool, bias: bool, **kwargs) -> None:
        super().__init__(**kwargs)
        self.heads, self.causal = heads, causal
        self.query = keras.layers.Dense(channels, use_bias=bias, name="query")
        self.key = keras.layers.Dense(channels, use_bias=bias, name="key")
        self.value = keras.layers.Dense(channels, use_bias=bias, name="value")
        self.out = keras.layers.Dense(channels, use_bias=bias, name="out")

    def split(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(x, (-1, x.shape[1], self.heads, x.shape[2] // self.heads))
        return tf.transpose(x, (0, 2, 1, 3))  # N, heads, T, C / heads

    def call(
        self, x: tf.Tensor, memory: tf.Tensor, dropout_mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        q, k, v = (
            self.split(self.query(x)),
            self.split(self.key(memory)),
            self.split(self.value(memory)),
        )
        scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(q.shape[-1])
        if self.causal:
            past = tf.linalg.band_part(tf.ones(scores.shape[-2:], dtype=tf.bool), -1, 0)
            scores = tf.where(past, scores, -math.inf)
        weights = tf.nn.softmax(scores, axis=-1)
        if dropout_mask is not None:
            weights = weights * dropout_mask
        y = tf.transpose(tf.matmul(weights, v), (0, 2, 1, 3))
        return self.out(tf.reshape(y, (-1, *x.shape[1:])))


def gelu(x: tf.Tensor) -> tf.Tensor:
    """x times the normal distribution function; tf.nn.gelu has its constants in float32."""
    return 0.5 * x * (1 + tf.math.erf(x * math.sqrt(0.5)))


class Positions(keras.layers.Layer):
    """Adds a learned vector to each position of a sequence."""

    def build(self, input_shape: tuple) -> None:
        self.embedding = self.add_weight(
            name="embedding", shape=input_shape[1:], initializer="zeros"
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.embedding


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


class DecoderBlock(keras.layers.Layer):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.norm1 = keras.layers.LayerNormalization(epsilon=1e-05, name="norm1")
        self.attention1 = DroppedAttention(64, heads=4, causal=True, bias=True, name="attention1")
        self.norm2 = keras.layers.LayerNormalization(epsilon=1e-05, name="norm2")
        self.dense1 = keras.layers.Dense(256, name="dense1")
        self.dense2 = keras.layers.Dense(64, name="dense2")

    def call(self, x: tf.Tensor, masks: dict | None = None) -> tf.Tensor:
        y = self.norm1(x)
        y = self.attention1(y, y, masks and masks["attention1"])
        y = y * masks["dropout1"] if masks else y
        x = x + y
        y = self.norm2(x)
        y = self.dense1(y)
        y = gelu(y)
        y = self.dense2(y)
        y = y * masks["dropout2"] if masks else y
        return x + y


class Decoder(keras.Model):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.embed = keras.layers.Embedding(96, 64, name="embed")
        self.positions1 = Positions(name="positions1")
        self.decoder_block1 = DecoderBlock(name="decoder_block1")
        self.decoder_block2 = DecoderBlock(name="decoder_block2")
        self.norm1 = keras.layers.LayerNormalization(epsilon=1e-05, name="norm1")

    def call(self, tokens: tf.Tensor, masks: dict | None = None) -> tf.Tensor:
        x = self.embed(tokens)
        x = self.positions1(x)
        x = self.decoder_block1(x, masks and masks["decoder_block1"])
        x = self.decoder_block2(x, masks and masks["decoder_block2"])
        x = self.norm1(x)
        return keras.ops.matmul(x, tf.transpose(self.embed.embeddings))


def loss_fn(model: Decoder, batch: dict) -> tf.Tensor:
    logits = model(batch["tokens"], batch["masks"]["decoder"])
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["targets"], logits=logits)
    )


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 over 50 updates, then cosine decay from 0.003 to 0.0003 over 450 updates; `step` counts from 0."""

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float64)  # Keras's own schedules round to float32.
        warmup = 0.003 * step / 50
        after = 0.003 * (0.1 + 0.9 * 0.5 * (1 + tf.cos(math.pi * tf.minimum(step - 50, 450) / 450)))
        return tf.where(step < 50, warmup, after)


# Weight decay spares these.
NO_DECAY = {
    "decoder/embed/embeddings",
    "decoder/positions1/embedding",
    "decoder/decoder_block1/norm1/gamma",
    "decoder/decoder_block1/norm1/beta",
    "decoder/decoder_block1/attention1/query/bias",
    "decoder/decoder_block1/attention1/key/bias",
    "decoder/decoder_block1/attention1/value/bias",
    "decoder/decoder_block1/attention1/out/bias",
    "decoder/decoder_block1/norm2/gamma",
    "decoder/decoder_block1/norm2/beta",
    "decoder/decoder_block1/dense1/bias",
    "decoder/decoder_block1/dense2/bias",
    "decoder/decoder_block2/norm1/gamma",
    "decoder/decoder_block2/norm1/beta",
    "decoder/decoder_block2/attention1/query/bias",
    "decoder/decoder_block2/attention1/key/bias",
    "decoder/decoder_block2/attention1/value/bias",
    "decoder/decoder_block2/attention1/out/bias",
    "decoder/decoder_block2/norm2/gamma",
    "decoder/decoder_block2/norm2/beta",
    "decoder/decoder_block2/dense1/bias",
    "decoder/decoder_block2/dense2/bias",
    "decoder/norm1/gamma",
    "decoder/norm1/beta",
}


def make_optimizer(model: Decoder) -> keras.optimizers.Optimizer:
    # Keras would round a decay that is a Python float to float32.
    optimizer = AdamW(
        learning_rate=LearningRate(),
        beta_1=0.9,
        beta_2=0.99,
        epsilon=1e-08,
        weight_decay=np.float64(0.1),
    )
    optimizer.exclude_from_weight_decay([v for v in model.trainable_weights if v.path in NO_DECAY])
    optimizer.build(model.trainable_weights)
    return optimizer


def train_step(model: Decoder, optimizer: keras.optimizers.Optimizer, batch: dict) -> tf.Tensor:
    """One update; returns the loss before it."""
    with tf.GradientTape() as tape:
        loss = loss_fn(model, batch)
    gradients = tape.gradient(loss, model.trainable_weights)
    # An embedding's gradient comes as rows: repeated ones are summed before anything reads them.
    gradients = [tf.convert_to_tensor(g) for g in gradients]
    gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
    optimizer.apply(gradients, model.trainable_weights)
    return loss


def make_compiled_step(
    model: Decoder, optimizer: keras.optimizers.Optimizer
) -> Callable[[dict], tf.Tensor]:
    """`train_step` as a graph, of tensors alone: TensorFlow looks through objects anew at each call."""
    return tf.function(lambda batch: train_step(model, optimizer, batch))


# canonical name -> (the Keras variable's path, the axes that take the canonical array to Keras's)
PARAMETERS = {
    "embed.embedding": ("decoder/embed/embeddings", (0, 1)),
    "positions1.embedding": ("decoder/positions1/embedding", (0, 1)),
    "decoder_block1.norm1.scale": ("decoder/decoder_block1/norm1/gamma", (0,)),
    "decoder_block1.norm1.bias": ("decoder/decoder_block1/norm1/beta", (0,)),
    "decoder_block1.attention1.query_kernel": (
        "decoder/decoder_block1/attention1/query/kernel",
        (0, 1),
    ),
    "decoder_block1.attention1.query_bias": ("decoder/decoder_block1/attention1/query/bias", (0,)),
    "decoder_block1.attention1.key_kernel": (
        "decoder/decoder_block1/attention1/key/kernel",
        (0, 1),
    ),
    "decoder_block1.attention1.key_bias": ("decoder/decoder_block1/attention1/key/bias", (0,)),
    "decoder_block1.attention1.value_kernel": (
        "decoder/decoder_block1/attention1/value/kernel",
        (0, 1),
    ),
    "decoder_block1.attention1.value_bias": ("decoder/decoder_block1/attention1/value/bias", (0,)),
    "decoder_block1.attention1.out_kernel": (
        "decoder/decoder_block1/attention1/out/kernel",
        (0, 1),
    ),
    "decoder_block1.attention1.out_bias": ("decoder/decoder_block1/attention1/out/bias", (0,)),
    "decoder_block1.norm2.scale": ("decoder/decoder_block1/norm2/gamma", (0,)),
    "decoder_block1.norm2.bias": ("decoder/decoder_block1/norm2/beta", (0,)),
    "decoder_block1.dense1.kernel": ("decoder/decoder_block1/dense1/kernel", (0, 1)),
    "decoder_block1.dense1.bias": ("decoder/decoder_block1/dense1/bias", (0,)),
    "decoder_block1.dense2.kernel": ("decoder/decoder_block1/dense2/kernel", (0, 1)),
    "decoder_block1.dense2.bias": ("decoder/decoder_block1/dense2/bias", (0,)),
    "decoder_block2.norm1.scale": ("decoder/decoder_block2/norm1/gamma", (0,)),
    "decoder_block2.norm1.bias": ("decoder/decoder_block2/norm1/beta", (0,)),
    "decoder_block2.attention1.query_kernel": (
        "decoder/decoder_block2/attention1/query/kernel",
        (0, 1),
    ),
    "decoder_block2.attention1.query_bias": ("decoder/decoder_block2/attention1/query/bias", (0,)),
    "decoder_block2.attention1.key_kernel": (
        "decoder/decoder_block2/attention1/key/kernel",
        (0, 1),
    ),
    "decoder_block2.attention1.key_bias": ("decoder/decoder_block2/attention1/key/bias", (0,)),
    "decoder_block2.attention1.value_kernel": (
        "decoder/decoder_block2/attention1/value/kernel",
        (0, 1),
    ),
    "decoder_block2.attention1.value_bias": ("decoder/decoder_block2/attention1/value/bias", (0,)),
    "decoder_block2.attention1.out_kernel": (
        "decoder/decoder_block2/attention1/out/kernel",
        (0, 1),
    ),
    "decoder_block2.attention1.out_bias": ("decoder/decoder_block2/attention1/out/bias", (0,)),
    "decoder_block2.norm2.scale": ("decoder/decoder_block2/norm2/gamma", (0,)),
    "decoder_block2.norm2.bias": ("decoder/decoder_block2/norm2/beta", (0,)),
    "decoder_block2.dense1.kernel": ("decoder/decoder_block2/dense1/kernel", (0, 1)),
    "decoder_block2.dense1.bias": ("decoder/decoder_block2/dense1/bias", (0,)),
    "decoder_block2.dense2.kernel": ("decoder/decoder_block2/dense2/kernel", (0, 1)),
    "decoder_block2.dense2.bias": ("decoder/decoder_block2/dense2/bias", (0,)),
    "norm1.scale": ("decoder/norm1/gamma", (0,)),
    "norm1.bias": ("decoder/norm1/beta", (0,)),
}
# the same for running statistics
STATISTICS = {}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "decoder": {
        "decoder_block1.attention1": (0xCCB82560F1B1496A, (4, 64, 64), 0.1),
        "decoder_block1.dropout1": (0x9A48A863C752E587, (64, 64), 0.1),
        "decoder_block1.dropout2": (0xA44DF77EEA573CC4, (64, 64), 0.1),
        "decoder_block2.attention1": (0xA93150FE458C84F9, (4, 64, 64), 0.1),
        "decoder_block2.dropout1": (0xFDF28B41BFFE996A, (64, 64), 0.1),
        "decoder_block2.dropout2": (0x09D2CE7051968D08, (64, 64), 0.1),
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


def make_model() -> Decoder:
    model = Decoder(name="decoder")
    # Keras makes a layer's variables when it first sees an input.
    model(keras.ops.zeros((1, 64), dtype="int32"))
    return model


def load_parameters(model: Decoder, arrays: dict[str, np.ndarray]) -> None:
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
        "tokens": inputs["train.tokens"][rows],
        "targets": inputs["train.targets"][rows],
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
