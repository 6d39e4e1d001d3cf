"""Ops written for XLA on CPUs, where Flax's own are slow there; the strategies `tuned` and `tuned_scan`. Imports no framework.

Each computes what its plain form in `layers` computes, and its module keeps its arrays under the same paths, in the axes
that `parameters` tells. An op that is not here, or for which its function finds nothing better, is the plain one.
"""

from math import prod

from backends.jax import layers
from harness.emit import Code, Lowerings, Slot
from harness.graph import Node
from harness.lanes import narrows
from harness.ops.activation import Gelu
from harness.ops.convolution import Convolution
from harness.ops.linear import Dense
from harness.ops.normalisation import LayerNorm
from harness.ops.pooling import Pool
from harness.ops.recurrent import Recurrent


def dense(node: Node, x: str) -> Code:
    assert isinstance(node.op, Dense)
    plain = layers.dense(node, x)
    if narrows(node):
        return _instead(plain, "nnx.Linear", "TransposedLinear")
    return plain if len(node.input_shapes[0]) == 1 else _instead(plain, "nnx.Linear", "Linear")


def attention(node: Node, *args: str) -> Code:
    plain = layers.attention(node, *args)
    (helper,) = plain.helpers
    return Code(plain.call, plain.init, (), ("Linear", f"{helper} of rows"))


def gelu(node: Node, x: str) -> Code:
    assert isinstance(node.op, Gelu)
    return layers.gelu(node, x) if node.op.form == "tanh" else Code(f"gelu({x})", helpers=("gelu",))


def layer_norm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, LayerNorm)
    if not (op.scale and op.bias):
        return layers.layer_norm(node, x)
    return Code(f"self.{node.name}({x})", f"LayerNorm({node.shape[-1]}, epsilon={op.epsilon!r}, rngs=rngs)", (), ("LayerNorm",))  # fmt: skip


def conv2d(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Convolution)
    if op.groups != 1 or {*op.stride, *op.dilation} != {1}:
        return layers.conv2d(node, x)
    given = f"{node.input_shapes[0][-1]}, {op.channels}, {tuple(op.kernel)}, padding={tuple(op.pads)}"
    given += "" if op.bias else ", use_bias=False"
    return Code(f"self.{node.name}({x})", f"Conv({given}, rngs=rngs)", (), ("convolve", "Conv"))


def max_pool2d(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Pool)
    sizes = node.input_shapes[0][:-1]
    tiles = op.steps == op.window and not any(n % w for n, w in zip(sizes, op.window, strict=True))
    if not tiles or any(map(any, op.pads)) or prod(op.window) > INT8:
        return layers.max_pool2d(node, x)
    return Code(f"max_pool({x}, {tuple(op.window)})", helpers=("max_pool",))


def lstm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Recurrent)
    if op.mask(*node.input_shapes) is not None:
        return layers.lstm(node, x)
    function, layer = ("last_state", "LastLSTM") if op.returns == "last" else ("lstm_states", "LSTM")
    cell = f"nnx.OptimizedLSTMCell({node.input_shapes[0][-1]}, {op.units}, rngs=rngs)"
    return Code(f"self.{node.name}({x})", f"{layer}({cell}, rngs=False)", (), ("as_rows", function, layer))


INT8 = 127
"""The window's places that a pool's helper can count."""


def _instead(code: Code, plain: str, helper: str) -> Code:
    """The code with a helper's class where the framework's own would be constructed."""
    assert code.init
    return Code(code.call, code.init.replace(plain, helper, 1), code.setup, (*code.helpers, helper))


OPS: Lowerings = {
    "dense": dense,
    "attention": attention,
    "gelu": gelu,
    "layer_norm": layer_norm,
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "lstm": lstm,
}


def parameters(node: Node) -> dict[str, Slot]:
    """Canonical name -> Flax's, relative to the node's module."""
    found = layers.parameters(node)
    if narrows(node):
        found["kernel"] = Slot(found["kernel"].path, (1, 0))
    return found


HELPERS = {
    "TransposedLinear": '''
class TransposedLinear(nnx.Module):
    """A dense layer whose kernel is [outputs, inputs].

    XLA is slow on CPUs at the gradient of a kernel [inputs, outputs] where there are fewer outputs than inputs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        use_bias: bool = True,
        param_dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        initial = nnx.initializers.lecun_normal(in_axis=1, out_axis=0)
        self.kernel = nnx.Param(initial(rngs.params(), (outputs, inputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if use_bias else None

    def __call__(self, x: Array) -> Array:
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].T
        y = y if self.bias is None else y + self.bias[...]
        return y.reshape(*x.shape[:-1], -1)
''',
    "Linear": '''
class Linear(nnx.Linear):
    """nnx.Linear on a matrix: XLA is slow on CPUs at products with more axes, and at their gradients."""

    def __call__(self, x: Array) -> Array:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
''',
    "gelu": '''
def gelu(x: Array) -> Array:
    """nnx.gelu by erf: on CPUs the erfc in Flax's takes longer."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
''',
    "LayerNorm": '''
class LayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm that takes the mean from x once: XLA has less to go over in its gradient."""

    def __call__(self, x: Array) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + self.epsilon)
        return x * self.scale[...] + self.bias[...]
''',
    "convolve": '''
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, pads: tuple) -> Array:
    """A convolution whose kernel's gradient is a product of matrices: XLA's, a convolution, is slow on CPUs."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_forward(x: Array, kernel: Array, pads: tuple) -> tuple[Array, tuple]:
    return convolve(x, kernel, pads), (x, kernel)


def convolve_backward(pads: tuple, saved: tuple, dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: convolve.fun(x, kernel, pads), x)(dy)
    rows, columns, inputs, outputs = kernel.shape
    _, height, width, _ = dy.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    seen = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    seen = jnp.concatenate(seen, axis=-1).reshape(-1, rows * columns * inputs)
    # Transposed after the product, not fused into it: it takes less time this way round.
    product = jax.lax.optimization_barrier(dy.reshape(-1, outputs).T @ seen)
    return dx, product.T.reshape(kernel.shape)


convolve.defvjp(convolve_forward, convolve_backward)
''',
    "Conv": '''
class Conv(nnx.Conv):
    """nnx.Conv by `convolve`."""

    def __call__(self, x: Array) -> Array:
        y = convolve(x, self.kernel[...], self.padding)
        return y if self.bias is None else y + self.bias[...]
''',
    "max_pool": '''
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Array, window: tuple[int, int]) -> Array:
    """nnx.max_pool by windows that tile x, as a maximum of slices: XLA's gradient of its own is slow on CPUs."""
    return max_pool_forward(x, window)[0]


def max_pool_forward(x: Array, window: tuple[int, int]) -> tuple[Array, Array]:
    """The maxima, and where in its window each is: at a tie the first, which takes the gradient."""
    rows, columns = window
    slices = [x[:, i::rows, j::columns] for i in range(rows) for j in range(columns)]
    highest, where = slices[0], jnp.zeros(slices[0].shape, jnp.int8)
    for place, values in enumerate(slices[1:], start=1):
        where = jnp.where(values > highest, jnp.int8(place), where)
        highest = jnp.maximum(values, highest)
    return highest, where


def max_pool_backward(window: tuple[int, int], where: Array, dy: Array) -> tuple[Array]:
    n, height, width, channels = dy.shape
    rows, columns = window
    place = jnp.arange(rows * columns, dtype=jnp.int8).reshape(rows, 1, columns, 1)
    dx = jnp.where(where[:, :, None, :, None] == place, dy[:, :, None, :, None], 0)
    return (dx.reshape(n, height * rows, width * columns, channels),)


max_pool.defvjp(max_pool_forward, max_pool_backward)
''',
    "as_rows": '''
def as_rows(x: Array) -> Array:
    """All but the last axis as one."""
    return x.reshape(-1, x.shape[-1])
''',
    "lstm_states": '''
@jax.custom_vjp
def lstm_states(x: Array, kernel: Array, recurrent: Array, bias: Array) -> Array:
    """Every state of an LSTM over [batch, time, features].

    Its gates are arrays of their own, because XLA does not vectorise what reads slices of one on CPUs.
    """
    return lstm_forward(x, kernel, recurrent, bias)[0]


def lstm_forward(
    x: Array, kernel: Array, recurrent: Array, bias: Array
) -> tuple[Array, tuple]:
    # By slices: a transposition goes number by number on CPUs.
    x = jax.lax.optimization_barrier(jnp.stack([x[:, t] for t in range(x.shape[1])]))
    kernels, recurrents = jnp.split(kernel, 4, axis=1), jnp.split(recurrent, 4, axis=1)
    gates = [
        (as_rows(x) @ w + b).reshape(*x.shape[:2], -1)
        for w, b in zip(kernels, jnp.split(bias, 4), strict=True)
    ]

    def sigmoid(x: Array) -> Array:
        return 0.5 * jnp.tanh(0.5 * x) + 0.5  # faster than nnx.sigmoid

    def step(carry: tuple[Array, Array], gates: list[Array]) -> tuple[tuple[Array, Array], tuple]:
        before, c = carry
        i, f, g, o = (gate + before @ w for gate, w in zip(gates, recurrents, strict=True))
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        new_c = f * c + i * g
        squashed = jnp.tanh(new_c)
        h = o * squashed
        return (h, new_c), (h, (i, f, g, o, c, squashed, before))

    zeros = jnp.zeros((x.shape[1], len(recurrent)), x.dtype)
    _, (states, saved) = jax.lax.scan(step, (zeros, zeros), gates)
    return states.swapaxes(0, 1), (x, kernels, recurrents, saved)


def lstm_backward(saved: tuple, dstates: Array) -> tuple[Array, Array, Array, Array]:
    """The gradients of kernel, recurrent and bias are taken after the loop, of all steps at once."""
    x, kernels, recurrents, saved = saved
    transposed = [w.T for w in recurrents]

    def step(carry: tuple[Array, Array], at: tuple) -> tuple[tuple[Array, Array], list[Array]]:
        dh, dc = carry
        dstate, (i, f, g, o, c, squashed, _) = at
        dh = dh + dstate
        dc = dc + dh * o * (1 - squashed**2)
        dgates = [
            dc * g * i * (1 - i),
            dc * c * f * (1 - f),
            dc * i * (1 - g**2),
            dh * squashed * o * (1 - o),
        ]
        return (sum(d @ w for d, w in zip(dgates, transposed, strict=True)), dc * f), dgates

    dstates = dstates.swapaxes(0, 1)
    zeros = jnp.zeros_like(dstates[0])
    _, dgates = jax.lax.scan(step, (zeros, zeros), (dstates, saved), reverse=True)
    dx = sum(d @ w.T for d, w in zip(dgates, kernels, strict=True))
    # Transposed copies: a product that sums over the first axis of both takes longer.
    x, before = (jax.lax.optimization_barrier(as_rows(a).T) for a in (x, saved[-1]))
    dgates = [as_rows(d) for d in dgates]
    return (
        dx.swapaxes(0, 1),
        jnp.concatenate([x @ d for d in dgates], axis=1),
        jnp.concatenate([before @ d for d in dgates], axis=1),
        jnp.concatenate([d.sum(axis=0) for d in dgates]),
    )


lstm_states.defvjp(lstm_forward, lstm_backward)
''',
    "LSTM": '''
class LSTM(nnx.RNN):
    """nnx.RNN of an LSTM's cell by `lstm_states`."""

    def __call__(self, x: Array) -> Array:
        cell = self.cell
        kernels = cell.dense_i.kernel[...], cell.dense_h.kernel[...]
        return lstm_states(x, *kernels, cell.dense_h.bias[...])
''',
}
LAST = (
    ("lstm_states", "last_state"),
    ("lstm_forward", "last_forward"),
    ("lstm_backward", "last_backward"),
    ("Every state of an LSTM", "The last state of an LSTM"),
    ("(h, (i, f, g, o, c, squashed, before))", "(i, f, g, o, c, squashed, before)"),
    ("_, (states, saved) = jax", "(h, _), saved = jax"),
    ("return states.swapaxes(0, 1), (x", "return h, (x"),
    ("dstates: Array", "dh: Array"),
    ("dstate, (i, f, g, o, c, squashed, _) = at\n        dh = dh + dstate\n", "i, f, g, o, c, squashed, _ = at\n"),
    ("    dstates = dstates.swapaxes(0, 1)\n    zeros = jnp.zeros_like(dstates[0])\n", ""),
    ("(zeros, zeros), (dstates, saved), reverse", "(dh, jnp.zeros_like(dh)), saved, reverse"),
)
"""What differs where only the last state is read: no gradient comes from the others, and none of them is stacked."""
HELPERS["last_state"] = HELPERS["lstm_states"]
for before, after in LAST:
    HELPERS["last_state"] = HELPERS["last_state"].replace(before, after)
HELPERS["LastLSTM"] = (
    HELPERS["LSTM"]
    .replace("class LSTM(", "class LastLSTM(")
    .replace("an LSTM's cell by `lstm_states`", "an LSTM's cell that returns the last state, by `last_state`")
    .replace("lstm_states(", "last_state(")
)
HELPERS |= {
    f"{name} of rows": layers.HELPERS[name].replace("partial(nnx.Linear,", "partial(Linear,")
    for name in ("Attention", "DroppedAttention")
}
