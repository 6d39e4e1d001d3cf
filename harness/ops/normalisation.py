"""Batch and layer normalisation, and dropout."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from harness.initializers import Initializer, Ones, Zeros
from harness.ops.base import (
    Array,
    Flag,
    Fraction,
    Mode,
    Op,
    Parameter,
    Positive,
    Rate,
    Shape,
    Shift,
    everywhere,
    need,
)


class BatchNorm(Op):
    """Each channel to mean 0 and variance 1 over batch and positions (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Training: `y = (x - mean) / sqrt(variance + epsilon) · scale + bias` with the batch's own mean and biased
    variance, and `running = momentum · running + (1 - momentum) · batch` for both. Evaluation: with the running
    ones. The running variance is the *biased* one, as in Keras and Flax (PyTorch keeps the unbiased one).
    """

    kind = "batch_norm"
    label = "norm"
    carries = ("mean",)
    centres = True
    momentum: Fraction = 0.9
    """The weight of the old running value (PyTorch's momentum is one minus this)."""
    epsilon: Positive = 1e-5
    scale: Flag = True
    bias: Flag = True
    scale_init: Initializer = Ones()
    bias_init: Initializer = Zeros()

    def output(self, *inputs: Shape) -> Shape:
        need(1 <= len(inputs[0]) <= 3, "needs [channels], [time, channels] or [height, width, channels]")
        return inputs[0]

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        shape = inputs[0][-1:]
        return (
            *((Parameter("scale", shape, "O", self.scale_init),) if self.scale else ()),
            *((Parameter("bias", shape, "O", self.bias_init),) if self.bias else ()),
            Parameter("mean", shape, "O", Zeros(), learned=False),
            Parameter("variance", shape, "O", Ones(), learned=False),
        )

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        # A number that is added to a channel everywhere is part of its mean, which is subtracted.
        if shifts[0] is None or shifts[0] <= {len(inputs[0])}:
            return None
        return everywhere(inputs[0])

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        return _affine_shift(parameter, inputs[0])

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        (x,) = inputs
        mean, variance = parameters["mean"], parameters["variance"]
        if not mode.training:
            return _affine((x - mean) / np.sqrt(variance + self.epsilon), parameters)
        axes = tuple(range(x.ndim - 1))
        old, kept = (mean, variance), self.momentum
        mean = x.mean(axes)
        centred = x - mean
        variance = np.square(centred).mean(axes)
        mode.statistics["mean"] = kept * old[0] + (1 - kept) * mean
        mode.statistics["variance"] = kept * old[1] + (1 - kept) * variance
        return _affine(centred / np.sqrt(variance + self.epsilon), parameters)


class LayerNorm(Op):
    """Each example's last axis to mean 0 and variance 1 (Ba et al. 2016, arXiv:1607.06450).

    `y = (x - mean) / sqrt(variance + epsilon) · scale + bias`, with the biased variance.
    """

    kind = "layer_norm"
    label = "norm"
    centres = True
    epsilon: Positive = 1e-5
    scale: Flag = True
    bias: Flag = True
    scale_init: Initializer = Ones()
    bias_init: Initializer = Zeros()

    def output(self, *inputs: Shape) -> Shape:
        need(len(inputs[0]) > 0, "needs at least one axis besides the batch")
        return inputs[0]

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        shape = inputs[0][-1:]
        return (
            *((Parameter("scale", shape, "O", self.scale_init),) if self.scale else ()),
            *((Parameter("bias", shape, "O", self.bias_init),) if self.bias else ()),
        )

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        # What is the same in every channel is part of the mean over them; of one channel everything is.
        return None if shifts[0] is None or len(inputs[0]) not in shifts[0] else everywhere(inputs[0])

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        if parameter == "scale" and inputs[0][-1] == 1:
            return None  # one channel less its mean is 0, whatever it is multiplied by
        return _affine_shift(parameter, inputs[0])

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        (x,) = inputs
        centred = x - x.mean(-1, keepdims=True)
        return _affine(centred / np.sqrt(x.var(-1, keepdims=True) + self.epsilon), parameters)


def _affine(x: Array, parameters: Mapping[str, Array]) -> Array:
    return x * parameters.get("scale", 1.0) + parameters.get("bias", 0.0)


def _affine_shift(parameter: str, shape: Shape) -> Shift:
    """What scale and bias behind a normalisation change; in training the statistics that are kept are not used."""
    if parameter in ("mean", "variance"):
        return None
    return frozenset({len(shape)}) if parameter == "bias" else everywhere(shape)


class Dropout(Op):
    """Training: zero with probability `rate`, else divided by 1 - rate (Srivastava et al. 2014). Evaluation: nothing.

    The mask comes from the seed, the layer's name and the step, never from a framework. `per: channel` drops a
    channel at all positions alike (spatial dropout; between recurrent layers, variational dropout).
    """

    kind = "dropout"
    shorthand = "rate"
    rate: Rate
    per: Literal["value", "channel"] = "value"

    def output(self, *inputs: Shape) -> Shape:
        need(self.per == "value" or len(inputs[0]) > 0, "'per: channel' needs at least one axis besides the batch")
        return inputs[0]

    def mask(self, *inputs: Shape) -> tuple[Shape, float] | None:
        if not self.rate:
            return None
        shape = inputs[0]
        if self.per == "channel":
            shape = (*(1 for _ in shape[:-1]), shape[-1])
        return shape, self.rate

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        if shifts[0] is None or not self.rate:
            return shifts[0]
        return everywhere(inputs[0]) if self.per == "value" else shifts[0] | {0, len(inputs[0])}

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0] * mode.mask if mode.training and mode.mask is not None else inputs[0]
