"""Metrics, computed once, in float64 NumPy, from each backend's outputs on the held-out data."""

from typing import Annotated, ClassVar

import numpy as np

from harness import special
from harness.expressions import Value
from harness.ops.base import Array, Count, Shape, need, spell
from harness.record import Kind, OneOf


class Metric(Kind):
    """A number that says how good outputs are."""

    roles: ClassVar[tuple[str, str]]
    integer_targets: ClassVar[bool] = False
    better: ClassVar[str]
    """`higher` or `lower`."""

    @property
    def name(self) -> str:
        """What results call it."""
        return self.kind

    def check(self, outputs: Shape, targets: Shape) -> None:
        """Raise ShapeError unless the shapes fit."""
        need(outputs == targets,
             f"{self.roles[0]} {spell(outputs)} and {self.roles[1]} {spell(targets)} differ in shape")  # fmt: skip

    def compute(self, outputs: Array, targets: Array) -> float:
        """The metric over all examples."""
        raise TypeError(self.kind)  # pragma: no cover


class OfClasses(Metric):
    """A metric of logits, classes along the last axis, and integer labels."""

    roles = ("logits", "labels")
    integer_targets = True
    logits: Value
    labels: Value

    def check(self, outputs: Shape, targets: Shape) -> None:
        need(len(outputs) > 0, "logits need a last axis of classes")
        need(outputs[:-1] == targets, f"logits {spell(outputs)} need labels of shape {spell(outputs[:-1])}")


class Accuracy(OfClasses):
    """The share of examples whose greatest logit is their label's; at a tie the first class counts."""

    kind = "accuracy"
    better = "higher"

    def compute(self, outputs: Array, targets: Array) -> float:
        return float(np.mean(outputs.argmax(axis=-1) == targets))


class TopK(OfClasses):
    """The share of examples whose label is among the k greatest logits (fewer than k others are greater)."""

    kind = "top_k"
    better = "higher"
    k: Count = 5

    @property
    def name(self) -> str:
        """`top_3` for k = 3."""
        return f"top_{self.k}"

    def compute(self, outputs: Array, targets: Array) -> float:
        own = np.take_along_axis(outputs, targets.astype(int)[..., None], axis=-1)
        return float(np.mean(np.sum(outputs > own, axis=-1) < self.k))


class CrossEntropy(OfClasses):
    """The mean negative log-likelihood of the labels, in nats."""

    kind = "cross_entropy"
    better = "lower"

    def compute(self, outputs: Array, targets: Array) -> float:
        likelihood = special.log_softmax(outputs.astype(np.float64), axis=-1)
        return float(-np.mean(np.take_along_axis(likelihood, targets.astype(int)[..., None], axis=-1)))


class Perplexity(CrossEntropy):
    """`exp(cross entropy)`: the number of equally likely choices that would be as hard."""

    kind = "perplexity"

    def compute(self, outputs: Array, targets: Array) -> float:
        return float(np.exp(super().compute(outputs, targets)))


class OfPredictions(Metric):
    """A metric of predictions and targets of one shape."""

    roles = ("predictions", "targets")
    better = "lower"
    predictions: Value
    targets: Value


class MeanAbsoluteError(OfPredictions):
    """`mean(|predictions - targets|)`, in the targets' unit."""

    kind = "mae"

    def compute(self, outputs: Array, targets: Array) -> float:
        return float(np.mean(np.abs(outputs.astype(np.float64) - targets)))


class MeanSquaredError(OfPredictions):
    """`mean((predictions - targets)²)`."""

    kind = "mse"

    def compute(self, outputs: Array, targets: Array) -> float:
        return float(np.mean((outputs.astype(np.float64) - targets) ** 2))


METRICS: tuple[type[Metric], ...] = (Accuracy, TopK, CrossEntropy, Perplexity, MeanAbsoluteError, MeanSquaredError)
MetricChoice = Annotated[Metric, OneOf("metric", lambda: METRICS)]
