"""What every op of a spec has: fields, a shape rule, parameters, and a float64 reference.

The reference *is* the definition: readable NumPy over a batch, axes channels-last. Backends are
compared with it and never the other way round. Adding an op is one class in this package, one
lowering of the same name per backend, and one row in `tests/cases.py`; a test names whichever is missing.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from harness import limits
from harness.initializers import InitializerKind
from harness.record import Also, Kind, Real

Shape = tuple[int, ...]
"""The shape of one example: the batch axis is always left out."""

Array = np.ndarray[Any, np.dtype[Any]]
Pads = tuple[tuple[int, int], ...]


class ShapeError(ValueError):
    """Shapes that do not fit an op; the message says which and what would."""


@dataclass(frozen=True)
class Parameter:
    """An array that a layer owns, in canonical axes.

    `axes` spells the axes, channels last: "IO" dense, "HWIO" convolution, "IG" gates side by side.
    `learned` is false for statistics (batch normalisation's running mean and variance).
    """

    name: str
    shape: Shape
    axes: str
    init: InitializerKind
    fan_in: int = 1
    fan_out: int = 1
    learned: bool = True


@dataclass
class Mode:
    """How a reference is evaluated: training or not, with which dropout multiplier, noting new statistics.

    `mixed`: in mixed precision, where an op rounds the factors of its products (`factor`) and their results (`result`).
    """

    training: bool = False
    mask: Array | None = None
    statistics: dict[str, Array] = field(default_factory=dict)
    mixed: bool = False

    def factor(self, x: Array) -> Array:
        """What a product takes."""
        return to_bfloat16(x) if self.mixed else x

    def result(self, y: Array) -> Array:
        """What a product gives."""
        return to_bfloat16(y) if self.mixed else y


def to_bfloat16(x: Array) -> Array:
    """The nearest values with 8 significant bits, the even one of two that are as near; still float64.

    >>> to_bfloat16(np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 / 3])).tolist()
    [1.0, 1.0, 1.015625, -0.333984375]
    """
    fraction, exponent = np.frexp(x)
    rounded: Array = np.ldexp(np.rint(fraction * 2.0**8), exponent - 8)
    return rounded


class Products(NamedTuple):
    """Multiplications in an op's matrix products, by what is multiplied: that decides which gradients they need."""

    outer: int = 0
    """What the op reads, by parameters."""
    inner: int = 0
    """What depends on the op's own parameters already, by parameters."""
    pairs: int = 0
    """Two factors that both depend on the op's own parameters."""


Shift = frozenset[int] | None
"""Along which axes a value changes: 0 the batch, 1 and on an example's own. Empty: by one number everywhere; None: not at all.

A bias shifts along its channel axis alone: the same at every example and position.
"""


def everywhere(shape: Shape) -> frozenset[int]:
    """Along every axis of a batch of this shape.

    >>> sorted(everywhere((8, 8, 3)))
    [0, 1, 2, 3]
    """
    return frozenset(range(len(shape) + 1))


def together(shifts: Iterable[Shift]) -> Shift:
    """The change of a sum whose terms change so."""
    real = [shift for shift in shifts if shift is not None]
    return frozenset().union(*real) if real else None


def rearranged(shift: frozenset[int], before: Shape, after: Shape) -> frozenset[int]:
    """Along which axes the same values change in another shape, row-major.

    >>> sorted(rearranged(frozenset({2}), (4, 3), (12,))), sorted(rearranged(frozenset({2}), (4, 6), (4, 2, 3)))
    ([1], [2, 3])
    """
    number = np.zeros(before, dtype=np.int64)
    for axis in sorted(shift - {0}):
        own = np.arange(before[axis - 1]).reshape([-1 if i == axis - 1 else 1 for i in range(len(before))])
        number = number * before[axis - 1] + own
    number = number.reshape(after)
    changed = {i + 1 for i in range(len(after)) if np.any(number != np.take(number, [0], axis=i))}
    return frozenset(changed) | (shift & {0})


class Op(Kind):
    """One layer of a network: a subclass's fields are what a spec may write, `kind` is its name there."""

    arity: ClassVar[tuple[int, int | None]] = (1, 1)
    """The least and the most inputs."""
    dtype: ClassVar[Literal["float", "int"]] = "float"
    """What its inputs must be."""
    carries: ClassVar[tuple[str, ...]] = ()
    """The statistics that take a shift along which the op's value ignores in training."""
    centres: ClassVar[bool] = False
    """Whether it subtracts from its input a mean of it: of numbers that are alike, rounding is left."""
    gradient_by_value: ClassVar[bool] = False
    """Whether its gradient is made from its value, near 1 by what that lacks of 1: a value rounded otherwise has another."""
    label: ClassVar[str] = ""
    """The stem of an automatic name, where it is not the op's own: conv2d is called conv1, conv2, ..."""

    def resolve(self, *_inputs: Shape) -> "Op":
        """The same op with everything that depends on the input's shape made explicit."""
        return self

    def output(self, *inputs: Shape) -> Shape:
        """The output's shape. Raises ShapeError."""
        return inputs[0]

    def parameters(self, *_inputs: Shape) -> tuple[Parameter, ...]:
        """The op's parameters and statistics, in canonical order."""
        return ()

    def mask(self, *_inputs: Shape) -> tuple[Shape, float] | None:
        """The shape (without the batch axis) and drop rate of this op's dropout mask, if it has one."""
        return None

    def values(self, *inputs: Shape) -> int:
        """How many values of one example there are at once at most, beside what it reads: those of its output, or of what it makes on the way."""
        return math.prod(self.output(*inputs))

    def products(self, *_inputs: Shape) -> Products:
        """The matrix products of one example's forward pass."""
        return Products()

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        """How its value changes in training when its inputs change along these axes, whatever inputs and parameters are.

        Never less than it does: an op of which nothing is known changes everywhere. Axes of length 1 are no axes here.
        """
        return None if together(shifts) is None else everywhere(self.output(*inputs))

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        """How its value changes in training when one of its parameters changes in whatever way."""
        return everywhere(self.output(*inputs))

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        """The op on a batch, in float64. `parameters` are named as in `parameters()`."""
        raise TypeError(f"{self.kind} has no reference")  # pragma: no cover


def need(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise ShapeError unless the condition holds."""
    if not condition:
        raise ShapeError(message)


def need_rank(shape: Shape, rank: int, axes: str) -> None:
    """Raise ShapeError unless `shape` has `rank` axes."""
    need(len(shape) == rank, f"needs an input of shape {axes}, got {spell(shape)}")


def spell(shape: Shape) -> str:
    """A shape as it is written in a spec.

    >>> spell((8, 8, 1)), spell(())
    ('[8, 8, 1]', '[]')
    """
    return "[" + ", ".join(map(str, shape)) + "]"


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _form(message: str, value: object) -> PydanticCustomError:
    """The error for a value that has none of its field's forms; it names them all."""
    return PydanticCustomError("form", "{message}", {"message": f"{message}; got {limits.shown(value)}"})


def _pair(value: object) -> object:
    if _number(value):
        return (value, value)
    if not isinstance(value, (list, tuple)):
        raise _form("a number, or a list of two: [vertical, horizontal]", value)
    return value


def _single(value: object) -> object:
    if _number(value):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise _form("a number is needed", value)
    return value


def _pads(value: object) -> object:
    """One number is all four sides, a list of two is (vertical, horizontal)."""
    if _number(value):
        return ((value, value), (value, value))
    if isinstance(value, (list, tuple)):
        return tuple((v, v) if _number(v) else v for v in value)
    if value not in ("same", "valid"):
        causal = ", or for a sequence [before, after]" if value == "causal" else ""
        raise _form(
            f"'same', 'valid', a number of zeros for every side, or a list of two: [vertical, horizontal]{causal}",
            value,
        )
    return value


def _pads_1d(value: object) -> object:
    if _number(value):
        return ((value, value),)
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return (tuple(value),)
    if not isinstance(value, (list, tuple)) and value not in ("same", "valid"):
        causal = "; causal is [dilation * (kernel - 1), 0]" if value == "causal" else ""
        raise _form(
            f"'same', 'valid', a number of zeros for both ends, or a list of two: [before, after]{causal}", value
        )
    return value


def _rate(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError("the share to drop is at least 0 and below 1")
    return value


Count = Annotated[int, Field(gt=0, le=limits.COUNT, strict=True)]
Size = Annotated[int, Field(ge=0, le=limits.COUNT, strict=True)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Rate = Annotated[Real, AfterValidator(_rate)]
Flag = Annotated[bool, Field(strict=True)]
WHOLE = {"type": "integer"}
Pair = Annotated[tuple[Count, Count], Also(_pair, WHOLE)]
Single = Annotated[tuple[Count], Also(_single, WHOLE)]
Side = tuple[Size, Size]
SIDES = {"anyOf": [WHOLE, {"type": "array", "items": WHOLE}]}
Padding2d = Annotated[Literal["same", "valid"] | tuple[Side, Side], Also(_pads, SIDES)]
Padding1d = Annotated[Literal["same", "valid"] | tuple[Side], Also(_pads_1d, SIDES)]


def same_pads(size: int, window: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """The zeros before and after one axis so that the output has ceil(size / stride).

    The odd zero goes *after*, as in TensorFlow and XLA.

    >>> same_pads(28, window=3, stride=1), same_pads(14, window=3, stride=2)
    ((1, 1), (0, 1))
    """
    reach = (window - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def explicit_pads(
    padding: str | Pads, sizes: Shape, window: Shape, stride: Shape, dilation: Shape | None = None
) -> Pads:
    """`same` and `valid` as numbers of zeros: ((before, after) for each spatial axis)."""
    if padding == "valid":
        return tuple((0, 0) for _ in window)
    if padding == "same":
        dilation = dilation or tuple(1 for _ in window)
        return tuple(same_pads(*axis) for axis in zip(sizes, window, stride, dilation, strict=True))
    return tuple((side[0], side[1]) for side in padding if not isinstance(side, str))


def window_counts(sizes: Shape, window: Shape, stride: Shape, pads: Pads, dilation: Shape | None = None) -> Shape:
    """How many windows fit on each spatial axis. Raises ShapeError if on one of them none does."""
    dilation = dilation or tuple(1 for _ in window)
    counts = []
    for size, w, s, (before, after), d in zip(sizes, window, stride, pads, dilation, strict=True):
        reach = (w - 1) * d + 1
        need(
            size + before + after >= reach,
            f"a window of {reach} does not fit into {size} + {before + after} zeros of padding",
        )
        counts.append((size + before + after - reach) // s + 1)
    return tuple(counts)


def taps(
    x: Array, window: Shape, stride: Shape, pads: Pads, dilation: Shape | None = None, fill: float = 0.0
) -> Iterator[tuple[Shape, Array]]:
    """Each place of a window, row by row, and what all windows see there: shape (N, *counts, C).

    >>> [(place, seen[0, :, 0].tolist()) for place, seen in taps(np.arange(4.0)[None, :, None], (2,), (1,), ((1, 0),))]
    [((0,), [0.0, 0.0, 1.0, 2.0]), ((1,), [0.0, 1.0, 2.0, 3.0])]
    """
    dilation = dilation or (1,) * len(window)
    counts = window_counts(x.shape[1:-1], window, stride, pads, dilation)
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill) if any(map(any, pads)) else x
    for place in np.ndindex(*window):
        every = (
            slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, n, s in zip(place, dilation, counts, stride, strict=True)
        )
        yield place, x[:, *every]
