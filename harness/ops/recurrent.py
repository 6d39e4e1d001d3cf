"""LSTM and GRU over a sequence T × C, their gates side by side in one kernel."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import InstanceOf

from harness import special
from harness.initializers import GlorotUniform, Initializer, InitializerKind, Orthogonal, Zeros
from harness.ops.base import Array, Count, Mode, Op, Parameter, Products, Rate, Shape, need_rank
from harness.record import Real


class Recurrent(Op):
    """What LSTM and GRU share: fields, shapes and parameters."""

    shorthand = "units"
    units: Count
    returns: Literal["last", "sequence"] = "last"
    """The state after the last step, or the states after every step."""
    recurrent_dropout: Rate = 0.0
    """Drops values of the state that enters a step, one mask for the whole sequence (arXiv:1512.05287)."""
    kernel_init: Initializer = GlorotUniform()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = Zeros()

    def output(self, *inputs: Shape) -> Shape:
        need_rank(inputs[0], 2, "[time, channels]")
        return (self.units,) if self.returns == "last" else (inputs[0][0], self.units)

    def mask(self, *_inputs: Shape) -> tuple[Shape, float] | None:
        return ((self.units,), self.recurrent_dropout) if self.recurrent_dropout else None

    def values(self, *inputs: Shape) -> int:
        return inputs[0][0] * 4 * self.units  # the gates of every step

    def products(self, *inputs: Shape) -> Products:
        kernel, recurrent, _ = self.parameters(*inputs)
        return Products(inputs[0][0] * math.prod(kernel.shape), inputs[0][0] * math.prod(recurrent.shape))

    def _gates(self, features: int, gates: int) -> tuple[Parameter, ...]:
        width = gates * self.units
        return (
            Parameter("kernel", (features, width), "IG", self.kernel_init, features, width),
            Parameter("recurrent", (self.units, width), "HG", self.recurrent_init, self.units, width),
            Parameter("bias", (width,), "G", self.bias_init, features, width),
        )


class ForgetBias(InitializerKind):
    """A bias drawn as usual, `value` added where it feeds the forget gate (the second of four)."""

    kind = "forget_bias"
    bias: InstanceOf[InitializerKind]
    value: Real

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:
        values = self.bias.draw(rng, shape, fan_in, fan_out)
        units = shape[0] // 4
        values[units : 2 * units] += self.value
        return values


class Lstm(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).

    ```
    i, f, g, o = split(x @ kernel + h @ recurrent + bias)
    c = sigmoid(f) · c + sigmoid(i) · tanh(g);  h = sigmoid(o) · tanh(c)
    ```
    One bias, as in Keras and Flax (PyTorch has two, which learn twice as fast). `forget_bias` is added to the
    forget gate's *initial* bias.
    """

    kind = "lstm"
    forget_bias: Real = 1.0

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        kernel, recurrent, bias = self._gates(inputs[0][-1], 4)
        return kernel, recurrent, replace(bias, init=ForgetBias(bias=self.bias_init, value=self.forget_bias))

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        x, kernel, recurrent = map(mode.factor, (inputs[0], parameters["kernel"], parameters["recurrent"]))
        h = c = np.zeros((len(x), self.units))
        states = []
        for t in range(x.shape[1]):
            kept = h * mode.mask if mode.training and mode.mask is not None else h
            gates = mode.result(x[:, t] @ kernel) + mode.result(mode.factor(kept) @ recurrent) + parameters["bias"]
            i, f, g, o = np.split(gates, 4, axis=-1)
            c = special.expit(f) * c + special.expit(i) * np.tanh(g)
            h = special.expit(o) * np.tanh(c)
            states.append(h)
        return h if self.returns == "last" else np.stack(states, axis=1)


class Gru(Recurrent):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), the reset gate applied after the product.

    ```
    xr, xz, xn = split(x @ kernel + bias);  hr, hz, hn = split(h @ recurrent)
    r = sigmoid(xr + hr);  z = sigmoid(xz + hz);  n = tanh(xn + r · hn);  h = (1 - z) · n + z · h
    ```
    One bias, as in Flax (PyTorch and Keras have a second one inside the product with r).
    """

    kind = "gru"

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        return self._gates(inputs[0][-1], 3)

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        x, kernel, recurrent = map(mode.factor, (inputs[0], parameters["kernel"], parameters["recurrent"]))
        h = np.zeros((len(x), self.units))
        states = []
        for t in range(x.shape[1]):
            kept = h * mode.mask if mode.training and mode.mask is not None else h
            xr, xz, xn = np.split(mode.result(x[:, t] @ kernel) + parameters["bias"], 3, axis=-1)
            hr, hz, hn = np.split(mode.result(mode.factor(kept) @ recurrent), 3, axis=-1)
            z = special.expit(xz + hz)
            h = (1 - z) * np.tanh(xn + special.expit(xr + hr) * hn) + z * kept
            states.append(h)
        return h if self.returns == "last" else np.stack(states, axis=1)
