"""char_transformer in JAX (Flax NNX and Optax), compiled from a spec by harness 0.1.0.

A causal pre-norm decoder that reads characters of Python's own help text and predicts the next.

    python char_transformer_jax.py RUN_DIRECTORY

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


class DroppedAttention(nnx.Module):
    """Multi-head attention with a given dropout mask; nnx.dot_product_attention draws its own."""

    def __init__(
        self,
        channels: int,
        memory: int,
        *,
        heads: int,
        causal: bool,
        bias: bool,
        param_dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads, self.causal = heads, causal
        linear = partial(nnx.Linear, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.query = linear(channels, channels)
        self.key = linear(memory, channels)
        self.value = linear(memory, channels)
        self.out = linear(channels, channels)

    def split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)  # N, T, heads, C / heads

    def __call__(self, x: Array, memory: Array, mask: Array | None = None) -> Array:
        q, k, v = (
            self.split(self.query(x)),
            self.split(self.key(memory)),
            self.split(self.value(memory)),
        )
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        if self.causal:
            scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
        weights = nnx.softmax(scores, axis=-1)
        if mask is not None:
            weights = weights * mask
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v)
        return self.out(y.reshape(*y.shape[:2], -1))


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


def all_but(spared: set[str]) -> Callable[[dict], dict]:
    """A mask that is true for every parameter except those."""
    return partial(
        jax.tree.map_with_path,
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator=".") not in spared,
    )


class DecoderBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(64, epsilon=1e-05, use_fast_variance=False, rngs=rngs)
        self.attention1 = DroppedAttention(64, 64, heads=4, causal=True, bias=True, rngs=rngs)
        self.norm2 = nnx.LayerNorm(64, epsilon=1e-05, use_fast_variance=False, rngs=rngs)
        self.dense1 = nnx.Linear(64, 256, rngs=rngs)
        self.dense2 = nnx.Linear(256, 64, rngs=rngs)

    def __call__(self, x: Array, masks: dict | None = None) -> Array:
        y = self.norm1(x)
        y = self.attention1(y, y, masks and masks["attention1"])
        y = y * masks["dropout1"] if masks else y
        x = x + y
        y = self.norm2(x)
        y = self.dense1(y)
        y = nnx.gelu(y, approximate=False)
        y = self.dense2(y)
        y = y * masks["dropout2"] if masks else y
        return x + y


class Decoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(96, 64, rngs=rngs)
        self.positions1 = nnx.Param(jnp.zeros((64, 64)))
        self.decoder_block1 = DecoderBlock(rngs)
        self.decoder_block2 = DecoderBlock(rngs)
        self.norm1 = nnx.LayerNorm(64, epsilon=1e-05, use_fast_variance=False, rngs=rngs)

    def __call__(self, tokens: Array, masks: dict | None = None) -> Array:
        x = self.embed(tokens)
        x = x + self.positions1[...]
        x = self.decoder_block1(x, masks and masks["decoder_block1"])
        x = self.decoder_block2(x, masks and masks["decoder_block2"])
        x = self.norm1(x)
        return self.embed.attend(x)


def loss_fn(model: Decoder, batch: dict) -> Array:
    logits = model(batch["tokens"], batch["masks"]["decoder"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()


def learning_rate(step: Array) -> Array:
    """Linear warm-up from 0 over 50 updates, then cosine decay from 0.003 to 0.0003 over 450 updates; `step` counts from 0."""
    warm_up = 0.003 * step / 50
    after = 0.003 * (0.1 + 0.9 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step - 50, 450) / 450)))
    return jnp.where(step < 50, warm_up, after)


# Weight decay spares these.
NO_DECAY = {
    "embed.embedding",
    "positions1",
    "decoder_block1.norm1.scale",
    "decoder_block1.norm1.bias",
    "decoder_block1.attention1.query.bias",
    "decoder_block1.attention1.key.bias",
    "decoder_block1.attention1.value.bias",
    "decoder_block1.attention1.out.bias",
    "decoder_block1.norm2.scale",
    "decoder_block1.norm2.bias",
    "decoder_block1.dense1.bias",
    "decoder_block1.dense2.bias",
    "decoder_block2.norm1.scale",
    "decoder_block2.norm1.bias",
    "decoder_block2.attention1.query.bias",
    "decoder_block2.attention1.key.bias",
    "decoder_block2.attention1.value.bias",
    "decoder_block2.attention1.out.bias",
    "decoder_block2.norm2.scale",
    "decoder_block2.norm2.bias",
    "decoder_block2.dense1.bias",
    "decoder_block2.dense2.bias",
    "norm1.scale",
    "norm1.bias",
}

optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    scale_by_adam(b1=0.9, b2=0.99, eps=1e-08),
    optax.add_decayed_weights(0.1, mask=all_but(NO_DECAY)),
    optax.scale_by_learning_rate(learning_rate),
)


# The model without its arrays, and their shapes: nothing is allocated.
GRAPHDEF, SHAPES = nnx.split(nnx.eval_shape(lambda: Decoder(nnx.Rngs(0))))


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
    "embed.embedding": ("embed.embedding", (0, 1)),
    "positions1.embedding": ("positions1", (0, 1)),
    "decoder_block1.norm1.scale": ("decoder_block1.norm1.scale", (0,)),
    "decoder_block1.norm1.bias": ("decoder_block1.norm1.bias", (0,)),
    "decoder_block1.attention1.query_kernel": ("decoder_block1.attention1.query.kernel", (0, 1)),
    "decoder_block1.attention1.query_bias": ("decoder_block1.attention1.query.bias", (0,)),
    "decoder_block1.attention1.key_kernel": ("decoder_block1.attention1.key.kernel", (0, 1)),
    "decoder_block1.attention1.key_bias": ("decoder_block1.attention1.key.bias", (0,)),
    "decoder_block1.attention1.value_kernel": ("decoder_block1.attention1.value.kernel", (0, 1)),
    "decoder_block1.attention1.value_bias": ("decoder_block1.attention1.value.bias", (0,)),
    "decoder_block1.attention1.out_kernel": ("decoder_block1.attention1.out.kernel", (0, 1)),
    "decoder_block1.attention1.out_bias": ("decoder_block1.attention1.out.bias", (0,)),
    "decoder_block1.norm2.scale": ("decoder_block1.norm2.scale", (0,)),
    "decoder_block1.norm2.bias": ("decoder_block1.norm2.bias", (0,)),
    "decoder_block1.dense1.kernel": ("decoder_block1.dense1.kernel", (0, 1)),
    "decoder_block1.dense1.bias": ("decoder_block1.dense1.bias", (0,)),
    "decoder_block1.dense2.kernel": ("decoder_block1.dense2.kernel", (0, 1)),
    "decoder_block1.dense2.bias": ("decoder_block1.dense2.bias", (0,)),
    "decoder_block2.norm1.scale": ("decoder_block2.norm1.scale", (0,)),
    "decoder_block2.norm1.bias": ("decoder_block2.norm1.bias", (0,)),
    "decoder_block2.attention1.query_kernel": ("decoder_block2.attention1.query.kernel", (0, 1)),
    "decoder_block2.attention1.query_bias": ("decoder_block2.attention1.query.bias", (0,)),
    "decoder_block2.attention1.key_kernel": ("decoder_block2.attention1.key.kernel", (0, 1)),
    "decoder_block2.attention1.key_bias": ("decoder_block2.attention1.key.bias", (0,)),
    "decoder_block2.attention1.value_kernel": ("decoder_block2.attention1.value.kernel", (0, 1)),
    "decoder_block2.attention1.value_bias": ("decoder_block2.attention1.value.bias", (0,)),
    "decoder_block2.attention1.out_kernel": ("decoder_block2.attention1.out.kernel", (0, 1)),
    "decoder_block2.attention1.out_bias": ("decoder_block2.attention1.out.bias", (0,)),
    "decoder_block2.norm2.scale": ("decoder_block2.norm2.scale", (0,)),
    "decoder_block2.norm2.bias": ("decoder_block2.norm2.bias", (0,)),
    "decoder_block2.dense1.kernel": ("decoder_block2.dense1.kernel", (0, 1)),
    "decoder_block2.dense1.bias": ("decoder_block2.dense1.bias", (0,)),
    "decoder_block2.dense2.kernel": ("decoder_block2.dense2.kernel", (0, 1)),
    "decoder_block2.dense2.bias": ("decoder_block2.dense2.bias", (0,)),
    "norm1.scale": ("norm1.scale", (0,)),
    "norm1.bias": ("norm1.bias", (0,)),
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
            "tokens": inputs["train.tokens"][rows],
            "targets": inputs["train.targets"][rows],
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
