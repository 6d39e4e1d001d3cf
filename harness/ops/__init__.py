"""The vocabulary of networks: every op by its name in a spec."""

from harness.ops.activation import Elu, Gelu, LeakyRelu, Relu, Selu, Sigmoid, Silu, Softmax, Softplus, Tanh
from harness.ops.attention import Attention
from harness.ops.base import Op
from harness.ops.convolution import Conv1d, Conv2d, ConvTranspose2d, Upsample2d
from harness.ops.linear import (
    Add,
    Concatenate,
    Dense,
    Embedding,
    Flatten,
    Multiply,
    Positions,
    Reshape,
    Unembed,
)
from harness.ops.normalisation import BatchNorm, Dropout, LayerNorm
from harness.ops.pooling import AvgPool1d, AvgPool2d, GlobalAvgPool, GlobalMaxPool, MaxPool1d, MaxPool2d
from harness.ops.recurrent import Gru, Lstm

OPS: dict[str, type[Op]] = {
    cls.kind: cls
    for cls in (
        Dense, Relu, LeakyRelu, Elu, Selu, Gelu, Silu, Sigmoid, Tanh, Softplus, Softmax,
        Flatten, Reshape, Add, Multiply, Concatenate,
        Conv1d, Conv2d, ConvTranspose2d, Upsample2d,
        MaxPool1d, MaxPool2d, AvgPool1d, AvgPool2d, GlobalAvgPool, GlobalMaxPool,
        BatchNorm, LayerNorm, Dropout,
        Embedding, Positions, Unembed, Lstm, Gru, Attention,
    )
}  # fmt: skip
