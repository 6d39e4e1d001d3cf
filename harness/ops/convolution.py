"""Convolutions, their transpose, and nearest-neighbour upsampling: sequences T × C, images H × W × C."""

import math
from collections.abc import Mapping
from functools import reduce

import numpy as np

from harness.initializers import GlorotUniform, Initializer, Zeros
from harness.ops.base import (
    Array,
    Count,
    Flag,
    Mode,
    Op,
    Padding1d,
    Padding2d,
    Pads,
    Pair,
    Parameter,
    Products,
    Shape,
    Shift,
    Single,
    everywhere,
    explicit_pads,
    need,
    need_rank,
    taps,
    window_counts,
)

AT_ONCE = 2**18
"""Numbers that windows see, laid out at once: more would not stay in a processor's cache."""


def correlated(x: Array, kernel: Array, groups: int, stride: Shape, pads: Pads, dilation: Shape) -> Array:
    """The cross-correlation of a batch with a kernel [*window, in / groups, out], few examples at a time.

    `y[n, p, o] = sum over t and c of x[n, p * stride + t * dilation - pads, c] * kernel[t, c, o]`; group g sees the g-th
    slice of the input channels and makes the g-th slice of the output's.
    """
    counts = window_counts(x.shape[1:-1], kernel.shape[:-2], stride, pads, dilation)
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    y = np.empty((len(x), *counts, kernel.shape[-1]))
    channelwise, kernels = groups > 1 == kernel.shape[-2], np.split(kernel, groups, axis=-1)
    examples = max(1, AT_ONCE // (x[0].size * (1 if channelwise else kernel.shape[-3])))
    for first in range(0, len(x), examples):
        part = x[first : first + examples]
        if channelwise:
            own = _channelwise(part, kernel, stride, dilation)
        else:
            slices = zip(np.split(part, groups, axis=-1), kernels, strict=True)
            own = np.concatenate([_multiplied(seen, k, stride, dilation) for seen, k in slices], axis=-1)
        y[first : first + examples] = own.reshape(-1, *counts, kernel.shape[-1])
    return y


def _multiplied(x: Array, kernel: Array, stride: Shape, dilation: Shape) -> Array:
    """As products of matrices: what windows see in one row lies side by side, a row of the kernel multiplies all of it."""
    *rows, width, channels, outputs = kernel.shape
    flat, none = (1,) * len(rows), ((0, 0),) * (len(rows) + 1)
    across = taps(x, (*flat, width), (*flat, stride[-1]), none, (*flat, dilation[-1]))
    wide = np.concatenate([seen for _, seen in across], axis=-1)
    down = taps(wide, (*rows, 1), (*stride[:-1], 1), none, (*dilation[:-1], 1))
    matrices = ((seen.reshape(len(x), -1, width * channels), kernel[place[:-1]]) for place, seen in down)
    return reduce(np.add, (seen @ row.reshape(width * channels, outputs) for seen, row in matrices))


def _channelwise(x: Array, kernel: Array, stride: Shape, dilation: Shape) -> Array:
    """Where each group is one channel: what windows see in one place times the kernel there."""
    *window, _, outputs = kernel.shape
    channels = x.shape[-1]
    places = taps(x, tuple(window), stride, ((0, 0),) * len(window), dilation)
    return reduce(
        np.add, (seen[..., None] * kernel[place].reshape(channels, outputs // channels) for place, seen in places)
    )


class Convolution(Op):
    """Cross-correlation with zero padding, as all frameworks call convolution."""

    label = "conv"
    channels: Count
    kernel: tuple[Count, ...]
    stride: tuple[Count, ...]
    dilation: tuple[Count, ...]
    padding: str | Pads
    groups: Count = 1
    bias: Flag = True
    kernel_init: Initializer = GlorotUniform()
    bias_init: Initializer = Zeros()

    def resolve(self, *inputs: Shape) -> "Convolution":
        rank = len(self.kernel)
        need_rank(inputs[0], rank + 1, "[time, channels]" if rank == 1 else "[height, width, channels]")
        pads = explicit_pads(self.padding, inputs[0][:-1], self.kernel, self.stride, self.dilation)
        return self.model_copy(update={"padding": pads})

    def output(self, *inputs: Shape) -> Shape:
        *sizes, channels = inputs[0]
        for what, n in (("input channels", channels), ("channels", self.channels)):
            need(n % self.groups == 0, f"{n} {what} cannot be split into {self.groups} groups")
        counts = window_counts(tuple(sizes), self.kernel, self.stride, self.pads, self.dilation)
        return (*counts, self.channels)

    @property
    def pads(self) -> Pads:
        """The zeros before and after each spatial axis; known once the op is resolved."""
        if isinstance(self.padding, str):
            raise TypeError("the op is not resolved")  # pragma: no cover
        return self.padding

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        taps, channels = math.prod(self.kernel), inputs[0][-1] // self.groups
        fans = taps * channels, taps * self.channels // self.groups
        shape = (*self.kernel, channels, self.channels)
        kernel = Parameter("kernel", shape, "HWIO"[-len(shape) :], self.kernel_init, *fans)
        bias = Parameter("bias", (self.channels,), "O", self.bias_init, *fans)
        return (kernel, bias) if self.bias else (kernel,)

    def products(self, *inputs: Shape) -> Products:
        taps = math.prod(self.kernel) * inputs[0][-1] // self.groups
        return Products(taps * math.prod(self.output(*inputs)))

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        if shifts[0] is None:
            return None
        # Zeros are not shifted with the rest, so that a window at the edge has less of the shift.
        edges = {axis for axis, side in enumerate(self.pads, start=1) if any(side)}
        return shifts[0] | edges | {len(inputs[0])}

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        return _bias_or_all(parameter, self.output(*inputs))

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        x, kernel = mode.factor(inputs[0]), mode.factor(parameters["kernel"])
        y = mode.result(correlated(x, kernel, self.groups, self.stride, self.pads, self.dilation))
        return y + parameters["bias"] if self.bias else y


class Conv1d(Convolution):
    """Convolution over time: T × C -> T' × channels. The kernel's axes are W, I / groups, O."""

    kind = "conv1d"
    kernel: Single
    stride: Single = (1,)
    dilation: Single = (1,)
    padding: Padding1d = "valid"


class Conv2d(Convolution):
    """Convolution over an image: H × W × C -> H' × W' × channels. The kernel's axes are H, W, I / groups, O."""

    kind = "conv2d"
    kernel: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: Padding2d = "valid"


class ConvTranspose2d(Op):
    """The gradient of a convolution with respect to its input: H × W × C -> about stride·H × stride·W × channels.

    `valid` gives (H - 1)·stride + kernel; `same` gives H·stride, cropping kernel - stride, the odd one after.
    The kernel's axes are H, W, O, I: those of the convolution that it transposes.
    """

    kind = "conv_transpose2d"
    label = "deconv"
    channels: Count
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding2d = "valid"
    """`same`, `valid`, or how much of each side is cropped."""
    bias: Flag = True
    kernel_init: Initializer = GlorotUniform()
    bias_init: Initializer = Zeros()

    def resolve(self, *inputs: Shape) -> "ConvTranspose2d":
        need_rank(inputs[0], 3, "[height, width, channels]")
        if self.padding == "same":
            for k, s in zip(self.kernel, self.stride, strict=True):
                need(k >= s, f"'same' needs a kernel of at least the stride, got {k} and {s}")
            crop = tuple(((k - s) // 2, (k - s) - (k - s) // 2) for k, s in zip(self.kernel, self.stride, strict=True))
            return self.model_copy(update={"padding": crop})
        return self.model_copy(update={"padding": explicit_pads(self.padding, (), self.kernel, self.stride)})

    @property
    def crop(self) -> Pads:
        """How much of each side is cut off; known once the op is resolved."""
        if isinstance(self.padding, str):
            raise TypeError("the op is not resolved")  # pragma: no cover
        return self.padding

    def output(self, *inputs: Shape) -> Shape:
        sizes = []
        for n, k, s, (before, after) in zip(inputs[0], self.kernel, self.stride, self.crop, strict=False):
            need(max(before, after) < k, f"cropping {max(before, after)} of a kernel of {k} leaves nothing of it")
            size = (n - 1) * s + k - before - after
            need(size > 0, f"cropping {before + after} leaves nothing of {(n - 1) * s + k}")
            sizes.append(size)
        return (*sizes, self.channels)

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        taps, channels = math.prod(self.kernel), inputs[0][-1]
        fans = taps * channels, taps * self.channels
        kernel = Parameter("kernel", (*self.kernel, self.channels, channels), "HWOI", self.kernel_init, *fans)
        bias = Parameter("bias", (self.channels,), "O", self.bias_init, *fans)
        return (kernel, bias) if self.bias else (kernel,)

    def products(self, *inputs: Shape) -> Products:
        return Products(math.prod(self.kernel) * self.channels * math.prod(inputs[0]))

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        # How many stamps meet at a pixel, and which of their values, depends on where it lies.
        return None if shifts[0] is None else shifts[0] | {1, 2, 3}

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        return _bias_or_all(parameter, self.output(*inputs))

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        x, kernel = mode.factor(inputs[0]), mode.factor(parameters["kernel"])
        (kh, kw), (sh, sw) = self.kernel, self.stride
        n, height, width, _ = x.shape
        full = np.zeros((n, (height - 1) * sh + kh, (width - 1) * sw + kw, self.channels))
        for i, j in np.ndindex(kh, kw):
            # Every input pixel stamps the kernel, scaled by its value, onto the output: one place of all stamps at once.
            full[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw] += x @ kernel[i, j].T
        (top, bottom), (left, right) = self.crop
        y = mode.result(full)[:, top : full.shape[1] - bottom, left : full.shape[2] - right]
        return y + parameters["bias"] if self.bias else y


def _bias_or_all(parameter: str, shape: Shape) -> Shift:
    """A bias shifts channels; a kernel changes everything."""
    return frozenset({len(shape)}) if parameter == "bias" else everywhere(shape)


class Upsample2d(Op):
    """Every pixel repeated `factor` times in both directions (nearest neighbour)."""

    kind = "upsample2d"
    label = "upsample"
    shorthand = "factor"
    factor: Pair

    def output(self, *inputs: Shape) -> Shape:
        need_rank(inputs[0], 3, "[height, width, channels]")
        height, width, channels = inputs[0]
        return (height * self.factor[0], width * self.factor[1], channels)

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return shifts[0]

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0].repeat(self.factor[0], axis=1).repeat(self.factor[1], axis=2)
