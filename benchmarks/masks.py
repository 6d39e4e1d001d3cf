"""What a dropout mask costs, per 2^20 values: drawn by NumPy on the host, or hashed in each framework.

    python benchmarks/masks.py [ROUNDS]

The host's way is the one that emitted programs use: NumPy's Philox, 16 bits a value, handed to the framework.
The other way is a 32-bit integer hash (lowbias32) of seed, step and position, written in each framework's own
integer ops: once where the counter alone is hashed, three times where seed, step and position are chained.
All of them end with a float32 multiplier in the framework, and all hashed masks are checked to be the same.
One thread each; rounds are interleaved; medians and quartiles in milliseconds. A framework that is not
installed is left out.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np

COUNT = 2**20
RATE = 0.1
THRESHOLD = round(RATE * 2**16)
SCALE = 1 / (1 - RATE)
SEED, STEP = 0x1234567, 41
FIRST, SECOND = 0x7FEB352D, 0x846CA68B  # https://nullprogram.com/blog/2018/07/31/
Way = Callable[[], Any]


def philox() -> np.ndarray[Any, Any]:
    """The multiplier as emitted programs draw it."""
    words = np.random.Philox(key=SEED, counter=STEP << 64).random_raw(COUNT // 4)
    keep = words.view(np.uint16) >= THRESHOLD
    return (keep / (1 - RATE)).astype(np.float32)


def hashed(positions: Any, mix: Callable[[Any], Any], rounds: int) -> Any:  # noqa: ANN401 - any framework's integers
    """A hash of every position; three rounds chain seed, step and position."""
    if rounds == 1:
        return mix(positions ^ SEED)
    return mix(mix(mix(positions) ^ STEP) ^ SEED)


def numpy_ways() -> dict[str, Way]:
    """Philox, and the hash in NumPy, which every other must equal."""
    positions = np.arange(COUNT, dtype=np.uint32)

    def mix(x: Any) -> Any:  # noqa: ANN401
        x = (x ^ (x >> 16)) * np.uint32(FIRST)
        x = (x ^ (x >> 15)) * np.uint32(SECOND)
        return x ^ (x >> 16)

    def draw(rounds: int) -> Any:  # noqa: ANN401
        keep = (hashed(positions, mix, rounds) >> 16) >= THRESHOLD
        return keep.astype(np.float32) * np.float32(SCALE)

    return {
        "Philox, 16 bits, no hand-over": philox,
        "hash, 1 round": lambda: draw(1),
        "hash, 3 rounds": lambda: draw(3),
    }


def torch_ways() -> dict[str, Way]:
    """PyTorch has no shifts of unsigned integers: int32 wraps, and a shift's sign bits are masked away."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    positions = torch.arange(COUNT, dtype=torch.int32)
    second = SECOND - 2**32

    def mix(x: Any) -> Any:  # noqa: ANN401
        x = (x ^ ((x >> 16) & 0xFFFF)) * FIRST
        x = (x ^ ((x >> 15) & 0x1FFFF)) * second
        return x ^ ((x >> 16) & 0xFFFF)

    def draw(rounds: int) -> Any:  # noqa: ANN401
        return (((hashed(positions, mix, rounds) >> 16) & 0xFFFF) >= THRESHOLD) * torch.tensor(SCALE)

    return {
        "Philox on the host": lambda: torch.from_numpy(philox()),
        "hash, 1 round": lambda: draw(1),
        "hash, 3 rounds": lambda: draw(3),
    }


def tensorflow_ways() -> dict[str, Way]:
    """TensorFlow has unsigned integers; as a graph, and compiled by XLA."""
    import tensorflow as tf  # noqa: PLC0415

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    positions = tf.range(COUNT, dtype=tf.int64)
    positions = tf.cast(positions, tf.uint32)

    def right(x: Any, bits: int) -> Any:  # noqa: ANN401
        return tf.bitwise.right_shift(x, tf.constant(bits, tf.uint32))

    def mix(x: Any) -> Any:  # noqa: ANN401
        x = tf.bitwise.bitwise_xor(x, right(x, 16)) * tf.constant(FIRST, tf.uint32)
        x = tf.bitwise.bitwise_xor(x, right(x, 15)) * tf.constant(SECOND, tf.uint32)
        return tf.bitwise.bitwise_xor(x, right(x, 16))

    def draw(x: Any, rounds: int) -> Any:  # noqa: ANN401
        seed, step = tf.constant(SEED, tf.uint32), tf.constant(STEP, tf.uint32)
        if rounds == 1:
            x = mix(tf.bitwise.bitwise_xor(x, seed))
        else:
            x = mix(tf.bitwise.bitwise_xor(mix(tf.bitwise.bitwise_xor(mix(x), step)), seed))
        keep = tf.cast(right(x, 16), tf.int32) >= THRESHOLD
        return tf.cast(keep, tf.float32) * SCALE

    graph, compiled = tf.function(draw), tf.function(draw, jit_compile=True)
    return {
        "Philox on the host": lambda: tf.convert_to_tensor(philox()),
        "hash, 1 round": lambda: graph(positions, 1).numpy(),
        "hash, 3 rounds": lambda: graph(positions, 3).numpy(),
        "hash, 1 round, XLA": lambda: compiled(positions, 1).numpy(),
        "hash, 3 rounds, XLA": lambda: compiled(positions, 3).numpy(),
    }


def jax_ways() -> dict[str, Way]:
    """JAX, under jit."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    positions = jnp.arange(COUNT, dtype=jnp.uint32)

    def mix(x: Any) -> Any:  # noqa: ANN401
        x = (x ^ (x >> 16)) * jnp.uint32(FIRST)
        x = (x ^ (x >> 15)) * jnp.uint32(SECOND)
        return x ^ (x >> 16)

    def draw(x: Any, rounds: int) -> Any:  # noqa: ANN401
        return ((hashed(x, mix, rounds) >> 16) >= THRESHOLD) * jnp.float32(SCALE)

    compiled = jax.jit(draw, static_argnums=1)
    return {
        "Philox on the host": lambda: jax.device_put(philox()).block_until_ready(),
        "hash, 1 round": lambda: compiled(positions, 1).block_until_ready(),
        "hash, 3 rounds": lambda: compiled(positions, 3).block_until_ready(),
    }


def main(rounds: int) -> None:
    """Check, measure and print."""
    found = {"numpy": numpy_ways, "torch": torch_ways, "tensorflow": tensorflow_ways, "jax": jax_ways}
    ways = {
        (name, way): draw
        for name, make in found.items()
        if importlib.util.find_spec(name)
        for way, draw in make().items()
    }
    for (name, way), draw in ways.items():  # warmed up here, too
        kind = "hash, 3 rounds" if "3 rounds" in way else "hash, 1 round"
        expected = philox() if "Philox" in way else ways["numpy", kind]()
        np.testing.assert_array_equal(np.asarray(draw()), expected, err_msg=f"{name}: {way}")
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    for _ in range(rounds):
        for key, draw in ways.items():
            start = time.perf_counter()
            draw()
            seconds[key].append(time.perf_counter() - start)
    sys.stdout.write(f"{COUNT:,} values, rate {RATE}, {rounds} rounds\n")
    for (name, way), times in seconds.items():
        low, middle, high = np.percentile(np.array(times) * 1000, (25, 50, 75))
        sys.stdout.write(f"{name:<11}{way:<32}{middle:8.2f} ms  ({low:.2f} to {high:.2f})\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
