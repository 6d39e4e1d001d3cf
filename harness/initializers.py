"""How initial parameters are drawn: each rule's formula, with its source. All draws are float64 NumPy.

Fans are those of the canonical layout: `fan_in` is the number of inputs that one output sums,
`fan_out` the number of outputs that one input reaches. No framework's own initialiser is used: the same
name means different distributions in them (PyTorch's `kaiming_normal_` is not truncated, Keras' and JAX's is).
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from harness import limits
from harness.record import Kind, OneOf, Real

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

# The standard deviation of N(0, 1) truncated to [-2, 2].
TRUNCATED_STD = 0.87962566103423978


class InitializerKind(Kind):
    """One rule for initial values."""

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        """Values of `shape`, float64."""
        raise TypeError(self.kind)  # pragma: no cover


class Zeros(InitializerKind):
    """All zeros."""

    kind = "zeros"

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        return np.zeros(shape)


class Ones(InitializerKind):
    """All ones."""

    kind = "ones"

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        return np.ones(shape)


class Constant(InitializerKind):
    """One value everywhere."""

    kind = "constant"
    shorthand = "value"
    value: Real

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        return np.full(shape, self.value)


class Values(InitializerKind):
    """The values themselves, as nested lists in canonical axes (a dense kernel: inputs × units)."""

    kind = "values"
    shorthand = "values"
    values: Any

    def check(self, shape: Shape) -> Array:
        """The values as an array. Raises ValueError where they are not finite numbers of that shape."""
        try:
            array = np.asarray(self.values, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError("initial values must be numbers in nested lists of equal lengths") from None
        if array.shape != shape:
            raise ValueError(f"initial values of shape {list(array.shape)} for a parameter of shape {list(shape)}")
        if not (np.abs(array) <= limits.GREATEST).all():  # nor NaN, which is not less than anything
            raise ValueError(f"initial values must be finite, and {limits.GREATEST:g} at most in size")
        return array

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        return self.check(shape)


class Uniform(InitializerKind):
    """U(low, high)."""

    kind = "uniform"
    low: Real = -0.05
    high: Real = 0.05

    @model_validator(mode="after")
    def _in_order(self) -> "Uniform":
        if self.low > self.high:
            raise ValueError(f"'low' is above 'high': {self.low:g} and {self.high:g}")
        return self

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        return rng.uniform(self.low, self.high, shape)


class Normal(InitializerKind):
    """N(mean, std²)."""

    kind = "normal"
    shorthand = "std"
    std: Annotated[Real, Field(ge=0)] = 0.05
    mean: Real = 0.0

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        return self.mean + self.std * rng.standard_normal(shape)


class TruncatedNormal(InitializerKind):
    """N(mean, std²) redrawn beyond two standard deviations; `std` is that of the untruncated normal."""

    kind = "truncated_normal"
    shorthand = "std"
    std: Annotated[Real, Field(ge=0)] = 0.05
    mean: Real = 0.0

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        return self.mean + self.std * _truncated(rng, shape)


class Scaling(InitializerKind):
    """Variance `gain` / fan, the mean of both fans or fan_in alone.

    The normal is truncated at two standard deviations and its variance restored, as in Keras and JAX.
    """

    gain: ClassVar[float]
    fan: ClassVar[Literal["in", "average"]]
    distribution: ClassVar[Literal["uniform", "normal"]]

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        fan = fan_in if self.fan == "in" else (fan_in + fan_out) / 2
        std = math.sqrt(self.gain / fan)
        if self.distribution == "uniform":
            return rng.uniform(-math.sqrt(3) * std, math.sqrt(3) * std, shape)
        return std / TRUNCATED_STD * _truncated(rng, shape)


class GlorotUniform(Scaling):
    """U with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, AISTATS)."""

    kind = "glorot_uniform"
    gain, fan, distribution = 1.0, "average", "uniform"


class GlorotNormal(Scaling):
    """Truncated normal with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, AISTATS)."""

    kind = "glorot_normal"
    gain, fan, distribution = 1.0, "average", "normal"


class HeUniform(Scaling):
    """U with variance 2 / fan_in (He et al. 2015, arXiv:1502.01852)."""

    kind = "he_uniform"
    gain, fan, distribution = 2.0, "in", "uniform"


class HeNormal(Scaling):
    """Truncated normal with variance 2 / fan_in (He et al. 2015, arXiv:1502.01852)."""

    kind = "he_normal"
    gain, fan, distribution = 2.0, "in", "normal"


class LecunUniform(Scaling):
    """U with variance 1 / fan_in (LeCun et al. 1998, Efficient BackProp)."""

    kind = "lecun_uniform"
    gain, fan, distribution = 1.0, "in", "uniform"


class LecunNormal(Scaling):
    """Truncated normal with variance 1 / fan_in (LeCun et al. 1998, Efficient BackProp)."""

    kind = "lecun_normal"
    gain, fan, distribution = 1.0, "in", "normal"


class Orthogonal(InitializerKind):
    """A (semi-)orthogonal matrix of (all axes but the last) × (last axis) (Saxe et al. 2014, arXiv:1312.6120).

    The Q of a Gaussian matrix's QR decomposition, its signs fixed by R's diagonal so that it is uniform.
    """

    kind = "orthogonal"
    gain: Real = 1.0

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.sign(np.diag(r))
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


def _truncated(rng: np.random.Generator, shape: Shape) -> Array:
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():  # noqa: PLR2004 - two standard deviations
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values


INITIALIZERS: tuple[type[InitializerKind], ...] = (
    Zeros, Ones, Constant, Values, Uniform, Normal, TruncatedNormal, GlorotUniform, GlorotNormal,
    HeUniform, HeNormal, LecunUniform, LecunNormal, Orthogonal,
)  # fmt: skip
Initializer = Annotated[InitializerKind, OneOf("initializer", lambda: INITIALIZERS)]
