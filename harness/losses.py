"""Losses: scalars that an update minimises. Each is the mean over all examples (and positions) of its batch."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np

from harness import special
from harness.expressions import Value
from harness.ops.base import Array, Fraction, Shape, Shift, need, spell
from harness.record import Kind, OneOf, Real


class Loss(Kind):
    """One term of a loss; an update's loss is the sum of its terms, each times its `weight`."""

    weight: Real = 1.0
    roles: ClassVar[tuple[str, str]]
    """Its two arguments: what the network says, and what is true."""
    integer_targets: ClassVar[bool] = False

    def check(self, outputs: Shape, targets: Shape | None) -> None:
        """Raise ShapeError unless the shapes fit; targets None: one number for all."""
        need(targets is None or outputs == targets,
             f"{self.roles[0]} {spell(outputs)} and {self.roles[1]} {spell(targets or ())} differ in shape")  # fmt: skip

    def ignores(self, outputs: Shift, targets: Shift, shape: Shape) -> bool:
        """Whether it stays as it is when its arguments, outputs of this shape, change along these axes."""
        return outputs is None and targets is None

    def reference(self, outputs: Array, targets: Array) -> float:
        """The loss in float64, without its weight."""
        raise TypeError(self.kind)  # pragma: no cover


class MeanSquaredError(Loss):
    """`mean((predictions - targets)²)` over every element."""

    kind = "mse"
    roles = ("predictions", "targets")
    predictions: Value
    targets: Value

    def reference(self, outputs: Array, targets: Array) -> float:
        return float(np.mean((outputs - targets) ** 2))


class MeanAbsoluteError(Loss):
    """`mean(|predictions - targets|)` over every element; its gradient where they are equal is 0."""

    kind = "mae"
    roles = ("predictions", "targets")
    predictions: Value
    targets: Value

    def reference(self, outputs: Array, targets: Array) -> float:
        return float(np.mean(np.abs(outputs - targets)))


class SoftmaxCrossEntropy(Loss):
    """`-mean(sum(q · log_softmax(logits)))`, the classes along the last axis, labels integers.

    q is 1 for the label, smoothed to `(1 - s) · q + s / classes` (Szegedy et al. 2016, arXiv:1512.00567).
    """

    kind = "softmax_cross_entropy"
    roles = ("logits", "labels")
    integer_targets = True
    logits: Value
    labels: Value
    label_smoothing: Fraction = 0.0

    def check(self, outputs: Shape, targets: Shape | None) -> None:
        need(len(outputs) > 0, "logits need a last axis of classes")
        need(targets is not None and outputs[:-1] == targets,
             f"logits {spell(outputs)} need integer labels of shape {spell(outputs[:-1])}, "
             f"got {spell(targets) if targets is not None else 'a number'}")  # fmt: skip

    def ignores(self, outputs: Shift, targets: Shift, shape: Shape) -> bool:
        # A number that all classes share cancels.
        return targets is None and (outputs is None or len(shape) not in outputs)

    def reference(self, outputs: Array, targets: Array) -> float:
        classes = outputs.shape[-1]
        q = np.eye(classes)[targets.astype(int)]
        q = (1 - self.label_smoothing) * q + self.label_smoothing / classes
        return float(-np.mean(np.sum(q * special.log_softmax(outputs, axis=-1), axis=-1)))


class SigmoidCrossEntropy(Loss):
    """`mean(log(1 + exp(z)) - y·z)` on logits z and targets y in [0, 1], over every element.

    Smoothing moves targets to `(1 - s) · y + s / 2`.
    """

    kind = "sigmoid_cross_entropy"
    roles = ("logits", "targets")
    logits: Value
    targets: Value
    label_smoothing: Fraction = 0.0

    def reference(self, outputs: Array, targets: Array) -> float:
        y = (1 - self.label_smoothing) * targets + self.label_smoothing / 2
        return float(np.mean(np.logaddexp(outputs, 0) - y * outputs))


LOSSES: tuple[type[Loss], ...] = (SoftmaxCrossEntropy, SigmoidCrossEntropy, MeanSquaredError, MeanAbsoluteError)
LossTerm = Annotated[Loss, OneOf("loss", lambda: LOSSES)]


def arguments(loss: Loss) -> Mapping[str, Value]:
    """A loss's two arguments by their roles."""
    return {role: getattr(loss, role) for role in loss.roles}
