"""Pooling over time or over an image, windowed and global."""

from collections.abc import Mapping
from functools import reduce

import numpy as np

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


class Pool(Op):
    """A window that slides over the spatial axes, each channel by itself."""

    label = "pool"
    shorthand = "window"
    window: tuple[Count, ...]
    stride: tuple[Count, ...] | None
    """Left out, the window: the windows tile the input."""
    padding: str | Pads

    def resolve(self, *inputs: Shape) -> "Pool":
        rank = len(self.window)
        need_rank(inputs[0], rank + 1, "[time, channels]" if rank == 1 else "[height, width, channels]")
        stride = self.stride or self.window
        pads = explicit_pads(self.padding, inputs[0][:-1], self.window, stride)
        for w, side in zip(self.window, pads, strict=True):
            need(max(side) < w, f"a padding of {max(side)} makes a window of {w} that sees only padding")
        return self.model_copy(update={"stride": stride, "padding": pads})

    @property
    def steps(self) -> tuple[int, ...]:
        """The stride, known once the op is resolved."""
        return self.stride or self.window

    @property
    def pads(self) -> Pads:
        """The padding before and after each spatial axis, known once the op is resolved."""
        if isinstance(self.padding, str):
            raise TypeError("the op is not resolved")  # pragma: no cover
        return self.padding

    def output(self, *inputs: Shape) -> Shape:
        *sizes, channels = inputs[0]
        return (*window_counts(tuple(sizes), self.window, self.steps, self.pads), channels)


class MaxPool(Pool):
    """The greatest value of each window; padding never wins. At a tie the first takes the gradient, row by row."""

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        seen = taps(inputs[0], self.window, self.steps, self.pads, fill=-np.inf)
        return reduce(np.maximum, (values for _, values in seen))

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        if shifts[0] is None or _alike(shifts[0], inputs[0]):
            return shifts[0]
        return everywhere(self.output(*inputs))


class AvgPool(Pool):
    """The mean of each window, over its real values, or with `count_padding` over the zeros beside them too."""

    count_padding: Flag = False

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        real = np.ones_like(inputs[0][:1, ..., :1])
        total = reduce(np.add, (values for _, values in taps(inputs[0], self.window, self.steps, self.pads)))
        seen = taps(real, self.window, self.steps, self.pads, fill=float(self.count_padding))
        mean: Array = total / reduce(np.add, (values for _, values in seen))
        return mean

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        if shifts[0] is None:
            return None
        # Where zeros are counted, a window at the edge has a smaller share of the shift.
        edges = {axis for axis, side in enumerate(self.pads, start=1) if self.count_padding and any(side)}
        return shifts[0] | edges


class MaxPool1d(MaxPool):
    """The greatest value of each window of a sequence T × C."""

    kind = "max_pool1d"
    window: Single
    stride: Single | None = None
    padding: Padding1d = "valid"


class MaxPool2d(MaxPool):
    """The greatest value of each window of an image H × W × C."""

    kind = "max_pool2d"
    window: Pair
    stride: Pair | None = None
    padding: Padding2d = "valid"


class AvgPool1d(AvgPool):
    """The mean of each window of a sequence T × C."""

    kind = "avg_pool1d"
    window: Single
    stride: Single | None = None
    padding: Padding1d = "valid"


class AvgPool2d(AvgPool):
    """The mean of each window of an image H × W × C."""

    kind = "avg_pool2d"
    window: Pair
    stride: Pair | None = None
    padding: Padding2d = "valid"


class GlobalPool(Op):
    """Every axis but the last reduced: H × W × C or T × C -> C."""

    label = "pool"

    def output(self, *inputs: Shape) -> Shape:
        need(len(inputs[0]) > 1, "needs at least one axis before the channels")
        return (inputs[0][-1],)


class GlobalAvgPool(GlobalPool):
    """The mean over every position: H × W × C or T × C -> C."""

    kind = "global_avg_pool"

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0].mean(axis=tuple(range(1, inputs[0].ndim - 1)))

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return None if shifts[0] is None else _pooled(shifts[0], inputs[0])


class GlobalMaxPool(GlobalPool):
    """The greatest value over every position: H × W × C or T × C -> C. Ties share the gradient evenly."""

    kind = "global_max_pool"

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0].max(axis=tuple(range(1, inputs[0].ndim - 1)))

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        if shifts[0] is None or _alike(shifts[0], inputs[0]):
            return None if shifts[0] is None else _pooled(shifts[0], inputs[0])
        return everywhere(self.output(*inputs))


def _alike(shift: frozenset[int], shape: Shape) -> bool:
    """Whether a shift is the same at every position: then a maximum over positions is shifted as they are."""
    return not shift & frozenset(range(1, len(shape)))


def _pooled(shift: frozenset[int], shape: Shape) -> frozenset[int]:
    """The axes of a shift once the positions are gone: the channels come right after the batch."""
    return frozenset({0} & shift | {1 for axis in shift if axis == len(shape)})
