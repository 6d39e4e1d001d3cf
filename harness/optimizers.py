"""Optimizers, learning-rate schedules and gradient clipping: the rules, with their sources.

t counts updates from 0. The learning rate of update t is `learning_rate · schedule(t)`.
Order within an update: clip the raw gradient, then the optimizer; weight decay never meets the clipping.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, model_validator

from harness.ops.base import Array, Count, Flag, Fraction, NotNegative, Positive, Size
from harness.record import Kind, OneOf, Real


class Optimizer(Kind):
    """A rule that turns gradients into new parameters."""

    slots: ClassVar[tuple[str, ...]] = ()
    """What a kind of rule can remember of each parameter, zero before the first update."""
    scale_free: ClassVar[bool] = False
    """Whether it divides a gradient by its own size: gradients of rounding noise then move a parameter as far as others."""
    learning_rate: NotNegative

    @property
    def remembers(self) -> tuple[str, ...]:
        """The slots that this very rule keeps: plain gradient descent has no velocity."""
        return self.slots

    def reference(
        self, gradient: Array, parameter: Array, slots: Mapping[str, Array], t: int, rate: float, *, decays: bool
    ) -> tuple[Array, dict[str, Array]]:
        """One update of one parameter in float64: the definition. Returns the new parameter and the new slots.

        `rate` is the learning rate of update t, schedule included; `decays` says whether weight decay moves it.
        """
        raise TypeError(self.kind)  # pragma: no cover


class Sgd(Optimizer):
    """Gradient descent with momentum (Sutskever et al. 2013, ICML).

    `v = momentum · v + g;  p -= lr · v`, with Nesterov `p -= lr · (g + momentum · v)`. The learning rate stays
    outside the velocity, so a schedule acts at once (Keras' own rule has it inside).
    """

    kind = "sgd"
    slots = ("velocity",)
    momentum: Fraction = 0.0
    nesterov: Flag = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @property
    def remembers(self) -> tuple[str, ...]:
        return self.slots if self.momentum else ()

    def reference(
        self, gradient: Array, parameter: Array, slots: Mapping[str, Array], t: int, rate: float, *, decays: bool
    ) -> tuple[Array, dict[str, Array]]:
        if not self.momentum:
            return parameter - rate * gradient, {}
        velocity = self.momentum * slots["velocity"] + gradient
        step = gradient + self.momentum * velocity if self.nesterov else velocity
        return parameter - rate * step, {"velocity": velocity}


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1).

    `m = b1·m + (1-b1)·g;  v = b2·v + (1-b2)·g²;  p -= lr · (m / (1-b1^(t+1))) / (sqrt(v / (1-b2^(t+1))) + epsilon)`.
    Epsilon is added after the bias correction (Keras' own rule adds it before).
    """

    kind = "adam"
    slots = ("first_moment", "second_moment")
    scale_free = True
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8

    def reference(
        self, gradient: Array, parameter: Array, slots: Mapping[str, Array], t: int, rate: float, *, decays: bool
    ) -> tuple[Array, dict[str, Array]]:
        first = self.beta1 * slots["first_moment"] + (1 - self.beta1) * gradient
        second = self.beta2 * slots["second_moment"] + (1 - self.beta2) * gradient**2
        # 1 - b^(t+1), whose digits a small t would lose to cancellation; log(0) is none.
        c1, c2 = (-math.expm1((t + 1) * math.log(b)) if b else 1.0 for b in (self.beta1, self.beta2))
        step = (first / c1) / (np.sqrt(second / c2) + self.epsilon)
        return parameter - rate * step, {"first_moment": first, "second_moment": second}


class AdamW(Adam):
    """Adam with decoupled weight decay, `p -= lr · weight_decay · p` (Loshchilov and Hutter 2019, arXiv:1711.05101).

    `no_decay` lists the parameters that are spared: kinds ("bias") or patterns of full names ("*.norm1.*").
    """

    kind = "adamw"
    weight_decay: NotNegative = 0.01
    no_decay: tuple[str, ...] = ("bias", "scale")

    def decays(self, parameter: str) -> bool:
        """Whether a parameter of this canonical name shrinks.

        >>> adamw = AdamW(learning_rate=0.1)
        >>> adamw.decays("dense1.kernel"), adamw.decays("dense1.bias"), adamw.decays("attention1.query_bias")
        (True, False, False)
        """
        leaf = parameter.rpartition(".")[2]
        kind = leaf.rpartition("_")[2]
        return not any(fnmatchcase(parameter, p) or p in (leaf, kind) for p in self.no_decay)

    def reference(
        self, gradient: Array, parameter: Array, slots: Mapping[str, Array], t: int, rate: float, *, decays: bool
    ) -> tuple[Array, dict[str, Array]]:
        moved, slots = super().reference(gradient, parameter, slots, t, rate, decays=decays)
        # The parameter before the update shrinks, not the moved one.
        return (moved - rate * self.weight_decay * parameter if decays else moved), dict(slots)


OPTIMIZERS: tuple[type[Optimizer], ...] = (Sgd, Adam, AdamW)
OptimizerChoice = Annotated[Optimizer, OneOf("optimizer", lambda: OPTIMIZERS)]


class Schedule(Kind):
    """A factor on the learning rate: a linear warm-up, then the schedule's own rule counted from its end."""

    warmup: Size = 0
    """For update t < warmup the factor is `warmup_start + (1 - warmup_start) · t / warmup`."""
    warmup_start: Annotated[Real, Field(ge=0, le=1)] = 0.0

    def after(self, t: int) -> float:
        """The factor t updates after the warm-up."""
        raise TypeError(self.kind)  # pragma: no cover

    def factor(self, t: int) -> float:
        """The factor of update t, in float64."""
        if t < self.warmup:
            return self.warmup_start + (1 - self.warmup_start) * t / self.warmup
        return self.after(t - self.warmup)


class Constant(Schedule):
    """1, always."""

    kind = "constant"

    def after(self, t: int) -> float:
        return 1.0


class Step(Schedule):
    """`multiply_by ** (t // every)`."""

    kind = "step"
    every: Count
    multiply_by: Positive = 0.1

    def after(self, t: int) -> float:
        return self.multiply_by ** (t // self.every)


class Cosine(Schedule):
    """`final + (1 - final) · (1 + cos(pi · min(t, steps) / steps)) / 2` (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    kind = "cosine"
    steps: Count | None = None
    """The updates of the descent, warm-up not counted; left out, what remains of the training."""
    final: Annotated[Real, Field(ge=0, le=1)] = 0.0

    def after(self, t: int) -> float:
        steps = self.steps or 1
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(t, steps) / steps))


SCHEDULES: tuple[type[Schedule], ...] = (Constant, Step, Cosine)
ScheduleChoice = Annotated[Schedule, OneOf("schedule", lambda: SCHEDULES)]


class Clip(Kind):
    """A bound on gradients."""

    shorthand = "limit"
    limit: Positive

    def reference(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """The bounded gradients of one update, all of them together, in float64: the definition."""
        raise TypeError(self.kind)  # pragma: no cover


class GlobalNorm(Clip):
    """All gradients times `min(1, limit / norm)`, norm that of them all together (Pascanu et al. 2013, ICML)."""

    kind = "global_norm"

    def reference(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        norm = math.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in gradients.values()))
        scale = min(1.0, self.limit / norm) if norm else 1.0
        return {name: gradient * scale for name, gradient in gradients.items()}


class ClipValue(Clip):
    """Each value of each gradient into [-limit, limit]."""

    kind = "value"

    def reference(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.clip(gradient, -self.limit, self.limit) for name, gradient in gradients.items()}


CLIPS: tuple[type[Clip], ...] = (GlobalNorm, ClipValue)
ClipChoice = Annotated[Clip, OneOf("clipping rule", lambda: CLIPS)]
