"""Ops that are one matrix product or a look-up: dense, embedding, positions, and the tied output."""

import math
from collections.abc import Mapping

import numpy as np

from harness.initializers import GlorotUniform, Initializer, Normal, Zeros
from harness.ops.base import (
    Array,
    Count,
    Flag,
    Mode,
    Op,
    Parameter,
    Products,
    Shape,
    Shift,
    everywhere,
    need,
    need_rank,
    rearranged,
    spell,
    together,
)


class Dense(Op):
    """`y = x @ kernel + bias` over the last axis; the axes before it are kept."""

    kind = "dense"
    shorthand = "units"
    units: Count
    bias: Flag = True
    kernel_init: Initializer = GlorotUniform()
    bias_init: Initializer = Zeros()

    def output(self, *inputs: Shape) -> Shape:
        need(len(inputs[0]) > 0, "needs at least one axis besides the batch")
        return (*inputs[0][:-1], self.units)

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        features = inputs[0][-1]
        kernel = Parameter("kernel", (features, self.units), "IO", self.kernel_init, features, self.units)
        bias = Parameter("bias", (self.units,), "O", self.bias_init, features, self.units)
        return (kernel, bias) if self.bias else (kernel,)

    def products(self, *inputs: Shape) -> Products:
        return Products(math.prod(inputs[0]) * self.units)

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return _multiplied(shifts[0], inputs[0])

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        shape = self.output(*inputs)
        return frozenset({len(shape)}) if parameter == "bias" else everywhere(shape)

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        y = mode.result(mode.factor(inputs[0]) @ mode.factor(parameters["kernel"]))
        return y + parameters["bias"] if self.bias else y


class Embedding(Op):
    """Each integer id as its row of a table: ids T -> T × features. Ids outside the vocabulary are refused."""

    kind = "embedding"
    dtype = "int"
    vocabulary: Count | None = None
    """How many ids there are; left out, the data set's own vocabulary."""
    features: Count
    embedding_init: Initializer = Normal(std=0.02)

    def output(self, *inputs: Shape) -> Shape:
        return (*inputs[0], self.features)

    def parameters(self, *_inputs: Shape) -> tuple[Parameter, ...]:
        need(self.vocabulary is not None, "needs a 'vocabulary': its input's data set has none of its own")
        shape = (self.vocabulary or 0, self.features)
        return (Parameter("embedding", shape, "VE", self.embedding_init, *shape),)

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        ids = inputs[0].astype(int)
        if ids.min() < 0 or ids.max() >= len(parameters["embedding"]):
            raise IndexError(f"ids from {ids.min()} to {ids.max()} in a vocabulary of {len(parameters['embedding'])}")
        return parameters["embedding"][ids]


class Positions(Op):
    """Adds a learned vector to each position of a sequence T × C."""

    kind = "positions"
    embedding_init: Initializer = Normal(std=0.02)

    def output(self, *inputs: Shape) -> Shape:
        need_rank(inputs[0], 2, "[time, channels]")
        return inputs[0]

    def parameters(self, *inputs: Shape) -> tuple[Parameter, ...]:
        return (Parameter("embedding", inputs[0], "TE", self.embedding_init, inputs[0][0], inputs[0][1]),)

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0] + parameters["embedding"]

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return shifts[0]

    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        return frozenset({1, 2})


class Unembed(Op):
    """`y = x @ embedding.T`: logits from an embedding layer's own table (Press and Wolf 2017, arXiv:1608.05859)."""

    kind = "unembed"
    shorthand = "embedding"
    embedding: str
    """The name of the embedding layer, in the same list of layers."""
    vocabulary: Count | None = None
    """Filled in from that layer."""

    def output(self, *inputs: Shape) -> Shape:
        need(len(inputs[0]) > 0, "needs at least one axis besides the batch")
        return (*inputs[0][:-1], self.vocabulary or 0)

    def products(self, *inputs: Shape) -> Products:
        return Products(math.prod(inputs[0]) * (self.vocabulary or 0))

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return _multiplied(shifts[0], inputs[0])

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return mode.result(mode.factor(inputs[0]) @ mode.factor(parameters["embedding"]).T)


class Flatten(Op):
    """All axes in one, channels fastest."""

    kind = "flatten"

    def output(self, *inputs: Shape) -> Shape:
        return (math.prod(inputs[0]),)

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return None if shifts[0] is None else rearranged(shifts[0], inputs[0], self.output(*inputs))

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0].reshape(len(inputs[0]), -1)


class Reshape(Op):
    """The same values in another shape, row-major, channels fastest."""

    kind = "reshape"
    shorthand = "shape"
    shape: tuple[Count, ...]

    def output(self, *inputs: Shape) -> Shape:
        have, want = math.prod(inputs[0]), math.prod(self.shape)
        need(have == want, f"{spell(inputs[0])} holds {have} values, {spell(self.shape)} holds {want}")
        return self.shape

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return None if shifts[0] is None else rearranged(shifts[0], inputs[0], self.shape)

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return inputs[0].reshape(len(inputs[0]), *self.shape)


def _multiplied(shift: Shift, shape: Shape) -> Shift:
    """What a matrix product over the last axis makes of a shift: one number becomes one a channel."""
    return None if shift is None else shift | {len(shape)}


def _same_shapes(inputs: tuple[Shape, ...]) -> Shape:
    need(len(set(inputs)) == 1, "needs inputs of one shape, got " + " and ".join(map(spell, inputs)))
    return inputs[0]


class Add(Op):
    """The sum of its inputs, which have one shape."""

    kind = "add"
    label = "sum"
    arity = (2, None)

    def output(self, *inputs: Shape) -> Shape:
        return _same_shapes(inputs)

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return together(shifts)

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.sum(np.stack(inputs), axis=0)


class Multiply(Op):
    """The product of its inputs, which have one shape."""

    kind = "multiply"
    label = "product"
    arity = (2, None)

    def output(self, *inputs: Shape) -> Shape:
        return _same_shapes(inputs)

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.prod(np.stack(inputs), axis=0)


class Concatenate(Op):
    """Its inputs side by side along the last axis."""

    kind = "concatenate"
    label = "concat"
    arity = (2, None)

    def output(self, *inputs: Shape) -> Shape:
        for shape in inputs:
            need(len(shape) > 0, "needs at least one axis besides the batch")
        _same_shapes(tuple(shape[:-1] for shape in inputs))
        return (*inputs[0][:-1], sum(shape[-1] for shape in inputs))

    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        shift = together(shifts)
        return None if shift is None else shift | {len(inputs[0])}

    def reference(self, inputs: tuple[Array, ...], parameters: Mapping[str, Array], mode: Mode) -> Array:
        return np.concatenate(inputs, axis=-1)
