"""Multi-head scaled dot-product attention over sequences T × C."""

import math
from collections.abc import Mapping

import numpy as np

from harness import special
from harness.initializers import GlorotUniform, Initializer, Zeros
from harness.ops.base import (
    Array,
    Count,
    Flag,
    Mode,
    Op,
    Parameter,
    Products,
    Rate,
    Shape,
    Shift,
    everywhere,
    need,
    need_rank,
)


class Attention(Op):
    """`softmax(q kᵀ / sqrt(C / heads)) v`, heads side by side (Vaswani et al. 2017, arXiv:1706.03762).

    q is made from the first input; k and v from the second, or from the first where there is only one.
    `causal`: a position sees itself and those before it. `dropout` drops attention weights after the softmax.
    """

    kind = "attention"
    shorthand = "heads"
    arity = (1, 2)
    heads: Count
    causal: Flag = False
    dropout: Rate = 0.0
    bias: Flag = True
    kernel_init: Initializer = GlorotUniform()
    bias_init: Initializer = Zeros()

    def output(self, *inputs: Shape) -> Shape:
        for shape in inputs:
            need_rank(shape, 2, "[time, channels]")
        need(inputs[0][1] % self.heads == 0, f"{inputs[0][1]} channels cannot be split into {self.heads} heads")
        if self.causal:
            need(inputs[0][0] == inputs[-1][0], "causal attention needs queries and keys of one length")
        return inputs[0]

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        channels, memory = inputs[0][1], inputs[-1][1]
        parameters = []
        for part, fan_in in (("query", channels), ("key", memory), ("value", memory), ("out", channels)):
            fans = (fan_in, channels)
            parameters.append(Parameter(f"{part}_kernel", fans, "IO", self.kernel_init, *fans))
            if self.bias:
                parameters.append(Parameter(f"{part}_bias", (channels,), "O", self.bias_init, *fans))
        return tuple(parameters)

    def mask(self, *inputs: Shape) -> tuple[Shape, float] | None:
        return ((self.heads, inputs[0][0], inputs[-1][0]), self.dropout) if self.dropout else None

    def values(self, *inputs: Shape) -> int:
        return max(self.heads * inputs[0][0] * inputs[-1][0], math.prod(inputs[0]))  # the scores

    def products(self, *inputs: Shape) -> Products:
        (queries, channels), (keys, memory) = inputs[0], inputs[-1]
        into = queries * channels**2 + 2 * keys * memory * channels
        # A causal mask saves nothing here: the whole square is computed.
        return Products(into, queries * channels**2, 2 * queries * keys * channels)

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        memory = shifts[-1]
        if self._looks_at_one(*inputs):
            return None if memory is None else everywhere(inputs[0])
        # A memory whose positions all move alike moves all scores of a query alike, which softmax does not see, and all values.
        if len(shifts) == 2 and shifts[0] is None and memory is not None and memory <= {2}:
            return self._of_values(inputs[0])
        return super().passes(shifts, *inputs)

    def _looks_at_one(self, *inputs: Shape) -> bool:
        """Whether there is one key, whose weight is 1 whatever its score is."""
        return inputs[-1][0] == 1

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        if parameter == "key_bias":
            return None  # it adds the same to all scores of a query: softmax does not see it
        if parameter.startswith(("query", "key")) and self._looks_at_one(*inputs):
            return None
        if parameter == "value_bias":
            return self._of_values(inputs[0])
        return frozenset({2}) if parameter == "out_bias" else everywhere(inputs[0])

    def _of_values(self, shape: Shape) -> Shift:
        """What the same vector added to all values changes: a query's weights sum to 1, unless some are dropped."""
        return everywhere(shape) if self.dropout else frozenset({2})

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        def multiply(a: Array, b: Array) -> Array:
            return mode.result(mode.factor(a) @ mode.factor(b))

        def project(x: Array, part: str) -> Array:
            return multiply(x, parameters[f"{part}_kernel"]) + parameters.get(f"{part}_bias", 0.0)

        def split(x: Array) -> Array:  # N T C -> N heads T C/heads
            return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

        q, k, v = (split(project(x, part)) for x, part in
                   ((inputs[0], "query"), (inputs[-1], "key"), (inputs[-1], "value")))  # fmt: skip
        scores = multiply(q, k.swapaxes(-1, -2)) / math.sqrt(q.shape[-1])
        if self.causal:
            scores = np.where(np.tril(np.ones(scores.shape[-2:], dtype=bool)), scores, -np.inf)
        weights = special.softmax(scores, axis=-1)
        if mode.training and mode.mask is not None:
            weights = weights * mode.mask
        y = multiply(weights, v).swapaxes(1, 2)
        return project(y.reshape(*y.shape[:2], -1), "out")
