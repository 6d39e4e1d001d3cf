"""Seed -> everything random in a training: initial parameters, batch order, noise, dropout masks.

Each stream is keyed by what it is for (a parameter's *name*, an epoch, a field), never by the order of calls,
so adding a layer changes no other layer's numbers. Draws are float64 and cast once.
"""

import hashlib
import math
from typing import Any

import numpy as np

from harness.emit import mask_key
from harness.graph import Program

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]


def stream(seed: int, *names: object) -> np.random.Generator:
    """The random stream of a purpose.

    >>> stream(0, "a").random() == stream(0, "a").random(), stream(0, "a").random() == stream(0, "b").random()
    (True, False)
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def parameters(program: Program) -> Arrays:
    """Initial parameters and statistics by canonical name, float64."""
    return {
        name: p.init.draw(stream(program.seed, "parameter", name), p.shape, p.fan_in, p.fan_out)
        for name, p in program.parameters.items()
    }


def order(seed: int, examples: int, batch: int, steps: int, *, shuffle: bool, keep_last: bool) -> Array:
    """Which rows make the batch of each step: int32 [steps, batch]; -1 where an epoch's last batch is smaller."""
    per_epoch = -(-examples // batch) if keep_last else examples // batch
    epochs = -(-steps // per_epoch)
    rows = np.full((epochs, per_epoch * batch), -1, dtype=np.int32)
    kept = min(examples, per_epoch * batch)
    if shuffle:
        for epoch in range(epochs):
            rows[epoch, :kept] = stream(seed, "epoch", epoch).permutation(examples)[:kept]
    else:
        rows[:, :kept] = np.arange(kept)
    return rows.reshape(-1, batch)[:steps]


def noise(program: Program, *names: object, count: int) -> Arrays:
    """Fields that are drawn afresh: float64 [count, *shape]."""
    drawn = {}
    for name, spec in program.spec.data.noise.items():
        rng = stream(program.seed, "noise", name, *names)
        shape = (count, *spec.shape)
        drawn[name] = rng.standard_normal(shape) if spec.distribution == "normal" else rng.random(shape)
    return drawn


def masks(program: Program, step: int, batch: int) -> dict[str, Arrays]:
    """The dropout multipliers of a step, by call and layer, float64: what every emitted program must draw."""
    drawn: dict[str, Arrays] = {}
    for scope, layers in program.masks.items():
        for layer, (shape, rate) in layers.items():
            count = batch * math.prod(shape)
            philox = np.random.Philox(key=mask_key(program.seed, scope, layer), counter=step << 64)
            bits = philox.random_raw(-(-count // 4)).astype("<u8").tobytes()
            keep = np.frombuffer(bits, dtype="<u2")[:count] >= round(rate * 2**16)
            drawn.setdefault(scope, {})[layer] = np.where(keep, 1 / (1 - rate), 0.0).reshape(batch, *shape)
    return drawn
