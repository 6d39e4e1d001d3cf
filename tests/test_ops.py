"""The reference of convolutions, pools and batch normalisation against their formulas, written out window by window."""

import math

import numpy as np
import pytest

from harness.ops.activation import Softmax
from harness.ops.base import Mode, Op, Pads, Shape, ShapeError
from harness.ops.convolution import Conv1d, Conv2d, Convolution, ConvTranspose2d
from harness.ops.linear import Concatenate, Unembed
from harness.ops.normalisation import BatchNorm, Dropout
from harness.ops.pooling import AvgPool2d, MaxPool1d, MaxPool2d, Pool

Array = np.ndarray
CLOSE = 1e-13
"""Of a tensor's largest magnitude."""


def drawn(*shape: int) -> Array:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape)


def assert_close(a: Array, b: Array) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.float64
    assert np.max(np.abs(a - b)) <= CLOSE * np.max(np.abs(b))


def windows(x: Array, window: Shape, stride: Shape, pads: Pads, dilation: Shape, fill: float = 0.0) -> Array:
    """Every window of `x`: shape (N, *counts, *window, C)."""
    spatial = len(window)
    reach = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(1, spatial + 1)))
    every = [slice(None), *(slice(None, None, s) for s in stride)]
    inside = [..., *(slice(None, None, d) for d in dilation)]
    return np.moveaxis(view[tuple(every)][tuple(inside)], spatial + 1, -1)


CONVOLUTIONS = {
    "one by one": (Conv2d(channels=5, kernel=1), (4, 3, 2)),
    "three by three": (Conv2d(channels=5, kernel=3, padding="same"), (8, 7, 4)),
    "strides": (Conv2d(channels=5, kernel=[3, 2], stride=[2, 3], padding="same"), (8, 7, 4)),
    "dilation and uneven pads": (Conv2d(channels=3, kernel=[2, 3], dilation=[3, 2], padding=[[2, 0], [1, 3]]), (9, 8, 2)),
    "stride, dilation, two groups": (Conv2d(channels=6, kernel=3, stride=2, dilation=2, padding=2, groups=2), (9, 8, 4)),
    "depthwise": (Conv2d(channels=4, kernel=3, padding="same", groups=4, bias=False), (6, 5, 4)),
    "depthwise, two of each": (Conv2d(channels=8, kernel=3, stride=2, dilation=2, padding=2, groups=4), (9, 8, 4)),
    "more than is laid out at once": (Conv2d(channels=2, kernel=3), (60, 60, 30)),
    "a stride past the window": (Conv2d(channels=2, kernel=1, stride=3), (8, 7, 3)),
    "a window as large as the image": (Conv2d(channels=2, kernel=[4, 3]), (4, 3, 3)),
    "over time": (Conv1d(channels=3, kernel=4, stride=2, dilation=2, padding=[3, 1]), (11, 2)),
    "over time, depthwise": (Conv1d(channels=4, kernel=3, groups=2), (7, 2)),
}  # fmt: skip


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_the_sum_over_its_windows(name: str, *, mixed: bool) -> None:
    given, shape = CONVOLUTIONS[name]
    op = given.resolve(shape)
    assert isinstance(op, Convolution)
    x, mode = drawn(5, *shape), Mode(mixed=mixed)
    parameters = {p.name: drawn(*p.shape) for p in op.parameters(shape)}
    view = windows(mode.factor(x), op.kernel, op.stride, op.pads, op.dilation)
    kernel = mode.factor(parameters["kernel"])
    rule = "nhwijc,ijco->nhwo" if len(op.kernel) == 2 else "nhic,ico->nho"
    parts = zip(np.split(view, op.groups, axis=-1), np.split(kernel, op.groups, axis=-1), strict=True)
    expected = np.concatenate([np.einsum(rule, seen, k) for seen, k in parts], axis=-1)
    found = op.reference((x,), parameters, Mode(mixed=mixed))
    bias = parameters.get("bias", 0.0)
    if mixed:
        # A sum in another order may fall on the other side of a middle between two bfloat16 numbers.
        off = np.abs(found - bias - mode.result(expected))
        assert np.all(off <= 2.0**-7 * np.abs(expected))
        assert np.mean(off > 1e-12) < 0.01
        return
    assert found.shape[1:] == op.output(shape)
    assert_close(found, expected + bias)


TRANSPOSED = {
    "valid": (ConvTranspose2d(channels=3, kernel=3), (3, 4, 2)),
    "strides and crops": (ConvTranspose2d(channels=3, kernel=[3, 2], stride=[2, 3], padding=[[1, 0], [0, 1]]), (3, 4, 2)),
    "same": (ConvTranspose2d(channels=3, kernel=4, stride=2, padding="same", bias=False), (3, 4, 2)),
    "a stride past the kernel": (ConvTranspose2d(channels=2, kernel=1, stride=2), (3, 4, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_convolution_stamps_its_kernel_pixel_by_pixel(name: str) -> None:
    given, shape = TRANSPOSED[name]
    op = given.resolve(shape)
    assert isinstance(op, ConvTranspose2d)
    x, parameters = drawn(5, *shape), {p.name: drawn(*p.shape) for p in op.parameters(shape)}
    (kh, kw), (sh, sw) = op.kernel, op.stride
    full = np.zeros((5, (shape[0] - 1) * sh + kh, (shape[1] - 1) * sw + kw, op.channels))
    for i, j in np.ndindex(*shape[:2]):
        stamp = np.einsum("nc,hwoc->nhwo", x[:, i, j], parameters["kernel"])
        full[:, i * sh : i * sh + kh, j * sw : j * sw + kw] += stamp
    (top, bottom), (left, right) = op.crop
    expected = full[:, top : full.shape[1] - bottom, left : full.shape[2] - right] + parameters.get("bias", 0.0)
    found = op.reference((x,), parameters, Mode())
    assert found.shape[1:] == op.output(shape)
    assert_close(found, expected)


POOLS = {
    "maximum": (MaxPool2d(window=2), (6, 5, 3)),
    "maximum, padded": (MaxPool2d(window=3, stride=2, padding=[[2, 0], [1, 1]]), (6, 7, 3)),
    "maximum over time": (MaxPool1d(window=3, stride=1, padding="same"), (7, 3)),
    "mean": (AvgPool2d(window=[2, 3], stride=[3, 1]), (6, 7, 3)),
    "mean of what is real": (AvgPool2d(window=3, stride=2, padding=1), (6, 7, 3)),
    "mean with the padding": (AvgPool2d(window=3, stride=2, padding=[[0, 2], [1, 0]], count_padding=True), (6, 7, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_the_maximum_or_mean_of_its_windows(name: str) -> None:
    given, shape = POOLS[name]
    op = given.resolve(shape)
    assert isinstance(op, Pool)
    x, ones = drawn(5, *shape), (1,) * len(op.window)
    axes = tuple(range(len(ones) + 1, 2 * len(ones) + 1))
    if isinstance(op, MaxPool1d | MaxPool2d):
        expected = windows(x, op.window, op.steps, op.pads, ones, fill=-math.inf).max(axes)
    else:
        assert isinstance(op, AvgPool2d)
        real = windows(np.ones_like(x), op.window, op.steps, op.pads, ones, fill=float(op.count_padding)).sum(axes)
        expected = windows(x, op.window, op.steps, op.pads, ones).sum(axes) / real
    found = op.reference((x,), {}, Mode())
    assert found.shape[1:] == op.output(shape)
    assert_close(found, expected)


def test_a_maximum_of_a_window_with_no_number_is_none() -> None:
    x = np.zeros((1, 4, 4, 1))
    x[0, 1, 2, 0] = math.nan
    found = MaxPool2d(window=2).resolve((4, 4, 1)).reference((x,), {}, Mode())
    assert np.isnan(found).ravel().tolist() == [False, True, False, False]


def test_batch_normalisation_in_training_is_that_of_the_batch_and_moves_the_running_values() -> None:
    x, op = drawn(6, 4, 3, 2) * 3 + 5, BatchNorm(momentum=0.75, epsilon=0.01)
    parameters = {"scale": drawn(2), "bias": drawn(2, 1)[:, 0], "mean": np.array([1.0, 2.0]), "variance": np.array([3.0, 4.0])}  # fmt: skip
    mode, flat = Mode(training=True), x.reshape(-1, 2)
    means = np.array([math.fsum(channel) / len(channel) for channel in flat.T])
    spread = np.array([math.fsum((channel - m) ** 2) / len(channel) for channel, m in zip(flat.T, means, strict=True)])
    found = op.reference((x,), parameters, mode)
    assert_close(found, (x - means) / np.sqrt(spread + 0.01) * parameters["scale"] + parameters["bias"])
    assert_close(mode.statistics["mean"], 0.75 * np.array([1.0, 2.0]) + 0.25 * means)
    assert_close(mode.statistics["variance"], 0.75 * np.array([3.0, 4.0]) + 0.25 * spread)
    evaluated = op.reference((x,), parameters, Mode())
    assert_close(evaluated, (x - [1.0, 2.0]) / np.sqrt([3.01, 4.01]) * parameters["scale"] + parameters["bias"])


@pytest.mark.parametrize(
    "op",
    [Softmax(), Concatenate(), Unembed(embedding="table"), Dropout(rate=0.5, per="channel")],
    ids=lambda op: op.kind,
)
def test_what_needs_a_last_axis_is_refused_for_a_number(op: Op) -> None:
    """The last axis would be the batch's: examples would be mixed."""
    with pytest.raises(ShapeError, match="at least one axis besides the batch"):
        op.output((), ())
    assert op.output((3,), (3,))
