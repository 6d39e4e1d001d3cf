"""Activations, each value by itself unless said otherwise. Gradients at a kink are part of the definition."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from harness import special
from harness.ops.base import Array, Mode, NotNegative, Op, Positive, Shape, Shift, everywhere, need


class Relu(Op):
    """`max(x, 0)`; its gradient at 0 is 0."""

    kind = "relu"

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.maximum(inputs[0], 0)


class LeakyRelu(Op):
    """`x` where x > 0, else `slope · x`; its gradient at 0 is `slope`."""

    kind = "leaky_relu"
    shorthand = "slope"
    slope: NotNegative = 0.01

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.where(inputs[0] > 0, inputs[0], self.slope * inputs[0])


class Elu(Op):
    """`x` where x > 0, else `alpha · (exp(x) - 1)` (Clevert et al. 2016, arXiv:1511.07289); gradient at 0: alpha."""

    kind = "elu"
    shorthand = "alpha"
    alpha: Positive = 1.0

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.where(inputs[0] > 0, inputs[0], self.alpha * np.expm1(np.minimum(inputs[0], 0)))


class Selu(Op):
    """Self-normalising ELU (Klambauer et al. 2017, arXiv:1706.02515); its gradient at 0 is scale · alpha."""

    kind = "selu"

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        x = inputs[0]
        return SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0)))


SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


class Gelu(Op):
    """`x · Phi(x)`, Phi the normal distribution function (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    `tanh` is that paper's approximation `x/2 · (1 + tanh(sqrt(2/pi) · (x + 0.044715 x³)))`.
    """

    kind = "gelu"
    shorthand = "form"
    form: Literal["erf", "tanh"] = "erf"

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        x = inputs[0]
        if self.form == "tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))


class Silu(Op):
    """`x · sigmoid(x)`, also called swish."""

    kind = "silu"

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0] * special.expit(inputs[0])


class Sigmoid(Op):
    """`1 / (1 + exp(-x))`."""

    kind = "sigmoid"
    gradient_by_value = True

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return special.expit(inputs[0])


class Tanh(Op):
    """The hyperbolic tangent."""

    kind = "tanh"
    gradient_by_value = True

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.tanh(inputs[0])


class Softplus(Op):
    """`log(1 + exp(x))`, without overflow and without PyTorch's linear part above 20."""

    kind = "softplus"

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.logaddexp(inputs[0], 0)


class Softmax(Op):
    """`exp(x) / sum(exp(x))` over the last axis."""

    kind = "softmax"
    gradient_by_value = True

    def output(self, *inputs: Shape) -> Shape:
        need(len(inputs[0]) > 0, "needs at least one axis besides the batch")
        return inputs[0]

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return special.softmax(inputs[0], axis=-1)

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        # exp(x + c) / sum(exp(x + c)): a number that all channels share cancels.
        return None if shifts[0] is None or len(inputs[0]) not in shifts[0] else everywhere(inputs[0])
