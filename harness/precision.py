"""The precisions that a program is emitted in, checked in and timed in: what each one rounds, and to what.

`bfloat16` is mixed precision, and it means one thing in every framework: a **product** (dense layers, convolutions and
their transposes, the two products of a recurrent step, attention's projections, scores and weighted sums, logits from
an embedding) takes its two factors rounded to bfloat16, adds up in float32 and rounds its result to bfloat16, and the
products of its gradient do the same with theirs. Attention's scores alone stay float32 in the strategies `flash` and
`cudnn`, whose fused kernels never write them. Everything else is float32: parameters and their gradients, optimizer
state, biases and sums, activations, statistics and outputs of normalisations, softmax, losses.

No framework's own policy is that: with each, what follows a product goes on in bfloat16. On CPUs `torch.autocast` gives
ReLU, sums, batch and layer normalisation and softmax in bfloat16, cross-entropy in float32; Keras's `mixed_bfloat16` and
Flax's `dtype=jnp.bfloat16` give all of them, and embeddings, in bfloat16.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness import words
from harness.errors import CallError


@dataclass(frozen=True)
class Precision:
    """What a program's numbers are."""

    name: str
    dtype: str
    """Of parameters, data, optimizer state, and of all that is no product."""
    factors: str
    """What the factors of a product are rounded to: `float64`, `float32`, `tf32` or `bfloat16`."""
    roundoff: float
    """The largest relative error of rounding a factor: half the distance from 1 to the next number."""
    accelerated: bool = False
    """Whether it exists on GPUs alone."""
    about: str = ""

    @property
    def mixed(self) -> bool:
        """Whether products are rounded to less than everything else, so that agreement in it is no proof."""
        return self.factors != self.dtype


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float64", "float64", "float64", 2.0**-53, about="the proof"),
        Precision("float32", "float32", "float32", 2.0**-24, about="the practice; TF32 is off"),
        Precision(
            "tf32",
            "float32",
            "tf32",
            2.0**-11,
            accelerated=True,
            about="float32 whose products a GPU may round to TF32",
        ),
        Precision(
            "bfloat16", "float32", "bfloat16", 2.0**-8, about="float32 whose products take and give bfloat16 values"
        ),
    )
}
NAMES = tuple(PRECISIONS)


def named(name: str, option: str = "--precision") -> Precision:
    """A precision by its name. Raises CallError.

    >>> named("bfloat16").dtype
    'float32'
    """
    if name not in PRECISIONS:
        raise CallError(f"{option} is {', '.join(NAMES[:-1])} or {NAMES[-1]}, got '{name}'{words.hint(name, NAMES)}")
    return PRECISIONS[name]


def on_device(name: str, device: str, option: str = "--precision") -> Precision:
    """A precision by its name, for programs that are going to run on a device. Raises CallError."""
    found = named(name, option)
    if found.accelerated and device != "gpu":
        raise CallError(
            f"{option} {name}: TF32 products exist on GPUs alone: --device gpu, or --precision float32 (or bfloat16, "
            "which a CPU can round to as well)"
        )
    return found


def proving(names: Sequence[str], what: str, option: str = "--precision") -> None:
    """Raise CallError where a precision is asked for something that takes float64 or float32."""
    for name in names:
        if named(name, option).mixed:
            raise CallError(f"{option} {name}: {what} in float64 or float32, where rounding is too small to hide it")
