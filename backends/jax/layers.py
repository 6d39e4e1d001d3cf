"""Each op as Flax NNX: what to construct, what to call. Imports no framework.

Flax is channels-last, as a spec is, and so are its kernels: arrays and parameters keep their axes. `rngs` reaches
every construction because Flax asks for it; what it draws is thrown away when the parameters are loaded.
"""

from harness import emit as shared
from harness.emit import Code, Slot, mask_of
from harness.graph import Node
from harness.ops.activation import Elu, Gelu, LeakyRelu
from harness.ops.attention import Attention
from harness.ops.base import Pads
from harness.ops.convolution import Convolution, ConvTranspose2d, Upsample2d
from harness.ops.linear import Dense, Embedding, Reshape, Unembed
from harness.ops.normalisation import BatchNorm, LayerNorm
from harness.ops.pooling import AvgPool, Pool
from harness.ops.recurrent import Recurrent


def block(node: Node, *args: str) -> Code:
    code = shared.block(node, *args)
    return Code(code.call, f"{node.op.graph.class_name}(rngs)")  # type: ignore[attr-defined]


def dense(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Dense)
    bias = "" if op.bias else ", use_bias=False"
    return Code(f"self.{node.name}({x})", f"nnx.Linear({node.input_shapes[0][-1]}, {op.units}{bias}, rngs=rngs)")


def relu(_node: Node, x: str) -> Code:
    return Code(f"nnx.relu({x})")


def leaky_relu(node: Node, x: str) -> Code:
    assert isinstance(node.op, LeakyRelu)
    return Code(f"leaky_relu({x}, {node.op.slope!r})", helpers=("leaky_relu",))


def elu(node: Node, x: str) -> Code:
    assert isinstance(node.op, Elu)
    return Code(f"nnx.elu({x}, {node.op.alpha!r})")


def selu(_node: Node, x: str) -> Code:
    return Code(f"nnx.selu({x})")


def gelu(node: Node, x: str) -> Code:
    assert isinstance(node.op, Gelu)
    # nnx.gelu approximates unless told not to.
    return Code(f"nnx.gelu({x}, approximate={node.op.form == 'tanh'})")


def silu(_node: Node, x: str) -> Code:
    return Code(f"nnx.silu({x})")


def sigmoid(_node: Node, x: str) -> Code:
    return Code(f"nnx.sigmoid({x})")


def tanh(_node: Node, x: str) -> Code:
    return Code(f"nnx.tanh({x})")


def softplus(_node: Node, x: str) -> Code:
    return Code(f"nnx.softplus({x})")


def softmax(_node: Node, x: str) -> Code:
    return Code(f"nnx.softmax({x}, axis=-1)")


def flatten(_node: Node, x: str) -> Code:
    return Code(f"{x}.reshape(len({x}), -1)")


def reshape(node: Node, x: str) -> Code:
    assert isinstance(node.op, Reshape)
    return Code(f"{x}.reshape(-1, {', '.join(map(str, node.op.shape))})")


def add(_node: Node, *args: str) -> Code:
    return Code(" + ".join(args))


def multiply(_node: Node, *args: str) -> Code:
    return Code(" * ".join(args))


def concatenate(_node: Node, *args: str) -> Code:
    return Code(f"jnp.concatenate(({', '.join(args)}), axis=-1)")


def conv(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Convolution)
    given = f"{node.input_shapes[0][-1]}, {op.channels}, {_window(op.kernel)}"
    given += f", strides={_window(op.stride)}" if set(op.stride) != {1} else ""
    given += f", padding={_pads(op.pads)}"  # Flax's default is SAME
    given += f", kernel_dilation={_window(op.dilation)}" if set(op.dilation) != {1} else ""
    given += f", feature_group_count={op.groups}" if op.groups != 1 else ""
    given += "" if op.bias else ", use_bias=False"
    return Code(f"self.{node.name}({x})", f"nnx.Conv({given}, rngs=rngs)")


conv1d = conv2d = conv


def conv_transpose2d(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, ConvTranspose2d)
    given = f"{node.input_shapes[0][-1]}, {op.channels}, {_window(op.kernel)}"
    given += f", strides={_window(op.stride)}" if set(op.stride) != {1} else ""
    # Flax counts what is added to the spread-out input: all but one of the kernel's taps, less what is cropped.
    pads = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(op.kernel, op.crop, strict=True))
    given += f", padding={pads}"
    given += "" if op.bias else ", use_bias=False"
    # Without transpose_kernel Flax correlates where the gradient of a convolution convolves.
    return Code(f"self.{node.name}({x})", f"nnx.ConvTranspose({given}, transpose_kernel=True, rngs=rngs)")


def upsample2d(node: Node, x: str) -> Code:
    assert isinstance(node.op, Upsample2d)
    height, width = node.op.factor
    return Code(f"{x}.repeat({height}, axis=1).repeat({width}, axis=2)")


def max_pool(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Pool)
    # Flax's default stride is 1, not the window.
    given = f"{tuple(op.window)}, strides={tuple(op.steps)}"
    given += f", padding={_pads(op.pads)}" if any(map(any, op.pads)) else ""
    return Code(f"nnx.max_pool({x}, {given})")


max_pool1d = max_pool2d = max_pool


def avg_pool(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, AvgPool)
    given = f"{tuple(op.window)}, strides={tuple(op.steps)}"
    if any(map(any, op.pads)):
        # Flax counts the padding unless told not to.
        given += f", padding={_pads(op.pads)}, count_include_pad={op.count_padding}"
    return Code(f"nnx.avg_pool({x}, {given})")


avg_pool1d = avg_pool2d = avg_pool


def global_avg_pool(node: Node, x: str) -> Code:
    return Code(f"{x}.mean(axis={_spatial(node)})")


def global_max_pool(node: Node, x: str) -> Code:
    return Code(f"global_max({x}, {_spatial(node)})", helpers=("global_max",))


def batch_norm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, BatchNorm)
    given = f"{node.shape[-1]}, momentum={op.momentum!r}, epsilon={op.epsilon!r}"
    return Code(f"self.{node.name}({x})", f"nnx.BatchNorm({given}, {_affine(scale=op.scale, bias=op.bias)}, rngs=rngs)")


def layer_norm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, LayerNorm)
    given = f"{node.shape[-1]}, epsilon={op.epsilon!r}"
    return Code(f"self.{node.name}({x})", f"nnx.LayerNorm({given}, {_affine(scale=op.scale, bias=op.bias)}, rngs=rngs)")


def dropout(node: Node, x: str) -> Code:
    if node.op.mask(*node.input_shapes) is None:
        return Code(x)
    return Code(f'{x} * masks["{node.name}"] if masks else {x}')


def embedding(node: Node, x: str) -> Code:
    assert isinstance(node.op, Embedding)
    return Code(f"self.{node.name}({x})", f"nnx.Embed({node.op.vocabulary}, {node.op.features}, rngs=rngs)")


def positions(node: Node, x: str) -> Code:
    return Code(f"{x} + self.{node.name}[...]", f"nnx.Param(jnp.zeros({node.shape}))")


def unembed(node: Node, x: str) -> Code:
    assert isinstance(node.op, Unembed)
    return Code(f"self.{node.op.embedding}.attend({x})")


def lstm(node: Node, x: str) -> Code:
    return _recurrent(node, x, "LSTM", "nnx.OptimizedLSTMCell")


def gru(node: Node, x: str) -> Code:
    return _recurrent(node, x, "GRU", "nnx.GRUCell")


def _recurrent(node: Node, x: str, name: str, cell: str) -> Code:
    op = node.op
    assert isinstance(op, Recurrent)
    given = f"{node.input_shapes[0][-1]}, {op.units}, rngs=rngs"
    last = "[:, -1]" if op.returns == "last" else ""
    if op.mask(*node.input_shapes) is not None:
        helper = f"Dropped{name}"
        return Code(f"self.{node.name}({x}, {mask_of(node)}){last}", f"{helper}({given})", (), (helper,))
    # Flax asks for a key although the first state is zero; kept in the module, it would be a state of its own.
    return Code(f"self.{node.name}({x}, rngs=nnx.Rngs(0)){last}", f"nnx.RNN({cell}({given}), rngs=False)")


def attention(node: Node, *args: str) -> Code:
    op = node.op
    assert isinstance(op, Attention)
    helper = "DroppedAttention" if op.mask(*node.input_shapes) else "Attention"
    given = f"{node.shape[-1]}, {node.input_shapes[-1][-1]}, heads={op.heads}, causal={op.causal}, bias={op.bias}"
    passed = [args[0], args[-1]]
    if op.mask(*node.input_shapes):
        passed.append(mask_of(node))
    return Code(f"self.{node.name}({', '.join(passed)})", f"{helper}({given}, rngs=rngs)", (), (helper,))


HELPERS = {
    "global_max": '''
def global_max(x: Array, axes: tuple[int, ...]) -> Array:
    """x.max(axes). Without the barrier XLA computes x anew for the gradient, on CPUs rounded otherwise: then
    no number is the maximum, and the gradient 0 / 0."""
    return jax.lax.optimization_barrier(x).max(axes)
''',
    "leaky_relu": '''
def leaky_relu(x: Array, slope: float) -> Array:
    """nnx.leaky_relu with gradient `slope` at 0, where Flax's is 1."""
    return jnp.where(x > 0, x, slope * x)
''',
    "DroppedLSTM": '''
class DroppedLSTM(nnx.Module):
    """An LSTM whose state loses values on its way into each step; nnx.RNN has no such mask."""

    def __init__(
        self, features: int, units: int, *, param_dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.units = units
        self.cell = nnx.OptimizedLSTMCell(features, units, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        def step(carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
            c, h = carry
            return self.cell((c, h if mask is None else h * mask), inputs)

        zeros = jnp.zeros((len(x), self.units), x.dtype)
        _, states = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return states.swapaxes(0, 1)
''',
    "DroppedGRU": '''
class DroppedGRU(nnx.Module):
    """A GRU whose state loses values on its way into each step; nnx.RNN has no such mask."""

    def __init__(
        self, features: int, units: int, *, param_dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.units = units
        self.cell = nnx.GRUCell(features, units, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        def step(h: Array, inputs: Array) -> tuple[Array, Array]:
            return self.cell(h if mask is None else h * mask, inputs)

        _, states = jax.lax.scan(step, jnp.zeros((len(x), self.units), x.dtype), x.swapaxes(0, 1))
        return states.swapaxes(0, 1)
''',
    "Attention": '''
class Attention(nnx.Module):
    """Multi-head scaled dot-product attention."""

    def __init__(
        self, channels: int, memory: int, *, heads: int, causal: bool, bias: bool,
        param_dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs,
    ) -> None:
        self.heads, self.causal = heads, causal
        linear = partial(nnx.Linear, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.query = linear(channels, channels)
        self.key = linear(memory, channels)
        self.value = linear(memory, channels)
        self.out = linear(channels, channels)

    def split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)  # N, T, heads, C / heads

    def __call__(self, x: Array, memory: Array) -> Array:
        q, k, v = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        # jax.nn.dot_product_attention takes its softmax in float32, whatever the dtype of its inputs.
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        if self.causal:
            scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
        y = jnp.einsum("nhqk,nkhd->nqhd", nnx.softmax(scores, axis=-1), v)
        return self.out(y.reshape(*y.shape[:2], -1))
''',
    "DroppedAttention": '''
class DroppedAttention(nnx.Module):
    """Multi-head attention with a given dropout mask; nnx.dot_product_attention draws its own."""

    def __init__(
        self, channels: int, memory: int, *, heads: int, causal: bool, bias: bool,
        param_dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs,
    ) -> None:
        self.heads, self.causal = heads, causal
        linear = partial(nnx.Linear, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        self.query = linear(channels, channels)
        self.key = linear(memory, channels)
        self.value = linear(memory, channels)
        self.out = linear(channels, channels)

    def split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)  # N, T, heads, C / heads

    def __call__(self, x: Array, memory: Array, mask: Array | None = None) -> Array:
        q, k, v = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        if self.causal:
            scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
        weights = nnx.softmax(scores, axis=-1)
        if mask is not None:
            weights = weights * mask
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v)
        return self.out(y.reshape(*y.shape[:2], -1))
''',
}


def parameters(node: Node) -> dict[str, Slot]:
    """Canonical name -> Flax's, relative to the node's module. Axes are the same."""
    kind, found = node.op.kind, {}
    for p in node.parameters:
        same = tuple(range(len(p.shape)))
        if kind == "positions":
            found[p.name] = Slot("", same)
        elif kind in ("lstm", "gru"):
            # Both cells have one bias: the LSTM's beside the product with the state, the GRU's beside the input's.
            bias = "dense_h.bias" if kind == "lstm" else "dense_i.bias"
            names = {"kernel": "dense_i.kernel", "recurrent": "dense_h.kernel", "bias": bias}
            found[p.name] = Slot(f"cell.{names[p.name]}", same)
        elif kind == "attention":
            part, _, leaf = p.name.rpartition("_")
            found[p.name] = Slot(f"{part}.{leaf}", same)
        else:
            found[p.name] = Slot({"variance": "var"}.get(p.name, p.name), same)
    return found


def _window(values: tuple[int, ...]) -> str:
    """`3` for one axis, `(3, 3)` for two."""
    return repr(values[0]) if len(values) == 1 else repr(tuple(values))


def _pads(pads: Pads) -> str:
    """The zeros before and after each axis; `"VALID"` for none."""
    return repr(tuple(pads)) if any(map(any, pads)) else '"VALID"'


def _spatial(node: Node) -> str:
    rank = len(node.input_shapes[0])
    return "1" if rank == 2 else repr(tuple(range(1, rank)))


EXACT = "use_fast_variance=False"
"""A variance that no cancellation spoils: Flax's fast one, which it takes by itself, is E[x²] - E[x]²."""


def _affine(*, scale: bool, bias: bool) -> str:
    """What the normalisations learn, and which variance they take."""
    given = "" if scale else "use_scale=False, "
    given += "" if bias else "use_bias=False, "
    return f"{given}{EXACT}"
