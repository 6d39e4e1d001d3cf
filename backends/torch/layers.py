"""Each op as PyTorch: what to construct, what to call. Imports no framework.

Images and sequences are channels-last in a spec; convolutions and pools want channels first, so the emitter
permutes on the way in and out (a view: the memory is PyTorch's `channels_last`). `LAYOUTS` says who wants what.
"""

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

FIRST, LAST, ANY = "channels first", "channels last", "any"

LAYOUTS = {
    "conv1d": FIRST, "conv2d": FIRST, "conv_transpose2d": FIRST, "upsample2d": FIRST,
    "max_pool1d": FIRST, "max_pool2d": FIRST, "avg_pool1d": FIRST, "avg_pool2d": FIRST,
    "global_avg_pool": FIRST, "global_max_pool": FIRST, "batch_norm": FIRST,
    "relu": ANY, "leaky_relu": ANY, "elu": ANY, "selu": ANY, "gelu": ANY, "silu": ANY, "sigmoid": ANY,
    "tanh": ANY, "softplus": ANY, "add": ANY, "multiply": ANY,
}  # fmt: skip
"""What an op's inputs must be; LAST where it is not said. A rank-1 value is both."""

KERNELS = {"IO": (1, 0), "WIO": (2, 1, 0), "HWIO": (3, 2, 0, 1), "HWOI": (3, 2, 0, 1)}
"""The axes that take a canonical kernel to PyTorch's weight."""


def dense(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Dense)
    bias = "" if op.bias else ", bias=False"
    return Code(f"self.{node.name}({x})", f"nn.Linear({node.input_shapes[0][-1]}, {op.units}{bias})")


def relu(_node: Node, x: str) -> Code:
    return Code(f"F.relu({x})")


def leaky_relu(node: Node, x: str) -> Code:
    assert isinstance(node.op, LeakyRelu)
    return Code(f"F.leaky_relu({x}, {node.op.slope!r})")


def elu(node: Node, x: str) -> Code:
    assert isinstance(node.op, Elu)
    return Code(f"F.elu({x}, {node.op.alpha!r})")


def selu(_node: Node, x: str) -> Code:
    return Code(f"F.selu({x})")


def gelu(node: Node, x: str) -> Code:
    assert isinstance(node.op, Gelu)
    return Code(f'F.gelu({x}, approximate="tanh")' if node.op.form == "tanh" else f"F.gelu({x})")


def silu(_node: Node, x: str) -> Code:
    return Code(f"F.silu({x})")


def sigmoid(_node: Node, x: str) -> Code:
    return Code(f"torch.sigmoid({x})")


def tanh(_node: Node, x: str) -> Code:
    return Code(f"torch.tanh({x})")


def softplus(_node: Node, x: str) -> Code:
    # F.softplus is linear above its threshold of 20, where log(1 + exp(x)) is not yet x in float64.
    return Code(f"torch.logaddexp({x}, torch.zeros_like({x}))")


def softmax(_node: Node, x: str) -> Code:
    return Code(f"F.softmax({x}, dim=-1)")


def flatten(node: Node, x: str) -> Code:
    # A number a row has no axis to flatten from.
    return Code(f"{x}.flatten(1)" if node.input_shapes[0] else f"{x}.unsqueeze(1)")


def reshape(node: Node, x: str) -> Code:
    assert isinstance(node.op, Reshape)
    return Code(f"{x}.reshape(-1, {', '.join(map(str, node.op.shape))})")


def add(_node: Node, *args: str) -> Code:
    return Code(" + ".join(args))


def multiply(_node: Node, *args: str) -> Code:
    return Code(" * ".join(args))


def concatenate(_node: Node, *args: str) -> Code:
    return Code(f"torch.cat(({', '.join(args)}), dim=-1)")


def conv(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Convolution)
    rank = len(op.kernel)
    given = f"{node.input_shapes[0][-1]}, {op.channels}, {_window(op.kernel)}"
    given += f", stride={_window(op.stride)}" if set(op.stride) != {1} else ""
    if _symmetric(op.pads):
        given += f", padding={_window(_befores(op.pads))}" if any(map(any, op.pads)) else ""
    else:
        x = f"F.pad({x}, {_f_pad(op.pads)})"
    given += f", dilation={_window(op.dilation)}" if set(op.dilation) != {1} else ""
    given += f", groups={op.groups}" if op.groups != 1 else ""
    given += "" if op.bias else ", bias=False"
    return Code(f"self.{node.name}({x})", f"nn.Conv{rank}d({given})")


conv1d = conv2d = conv


def conv_transpose2d(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, ConvTranspose2d)
    given = f"{node.input_shapes[0][-1]}, {op.channels}, {_window(op.kernel)}"
    given += f", stride={_window(op.stride)}" if set(op.stride) != {1} else ""
    call = f"self.{node.name}({x})"
    if _symmetric(op.crop):
        given += f", padding={_window(_befores(op.crop))}" if any(map(any, op.crop)) else ""
    else:
        # PyTorch crops both sides alike: a negative pad crops each by its own amount.
        call = f"F.pad({call}, {tuple(-p for p in _f_pad(op.crop))})"
    given += "" if op.bias else ", bias=False"
    return Code(call, f"nn.ConvTranspose2d({given})")


def upsample2d(node: Node, x: str) -> Code:
    assert isinstance(node.op, Upsample2d)
    factor = node.op.factor
    scale = float(factor[0]) if factor[0] == factor[1] else tuple(map(float, factor))
    return Code(f'F.interpolate({x}, scale_factor={scale}, mode="nearest")')


def max_pool(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Pool)
    given = f"{_window(op.window)}, {_window(op.steps)}"
    if any(map(any, op.pads)):
        if _native_pads(op):
            given += f", padding={_window(_befores(op.pads))}"
        else:
            x = f'F.pad({x}, {_f_pad(op.pads)}, value=float("-inf"))'
    return Code(f"F.max_pool{len(op.window)}d({x}, {given})")


max_pool1d = max_pool2d = max_pool


def avg_pool(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, AvgPool)
    pool = f"F.avg_pool{len(op.window)}d"
    given = f"{_window(op.window)}, {_window(op.steps)}"
    if not any(map(any, op.pads)):
        return Code(f"{pool}({x}, {given})")
    if _native_pads(op):
        # PyTorch counts the padding unless told not to.
        return Code(f"{pool}({x}, {given}, {_window(_befores(op.pads))}, count_include_pad={op.count_padding})")
    mean = f"{pool}(F.pad({x}, {_f_pad(op.pads)}), {given})"
    if op.count_padding:
        return Code(mean)
    return Code(f"{mean} / {pool}(F.pad(torch.ones_like({x}[:1, :1]), {_f_pad(op.pads)}), {given})")


avg_pool1d = avg_pool2d = avg_pool


def global_avg_pool(node: Node, x: str) -> Code:
    return Code(f"{x}.mean(dim={_spatial(node)})")


def global_max_pool(node: Node, x: str) -> Code:
    # amax shares the gradient among ties, as TensorFlow and JAX do; max gives it to one of them.
    return Code(f"{x}.amax(dim={_spatial(node)})")


def batch_norm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, BatchNorm)
    rank = {1: "1d", 2: "1d", 3: "2d"}[len(node.shape)]
    # PyTorch's momentum is the weight of the new value.
    given = f"{node.shape[-1]}, eps={op.epsilon!r}, momentum={_complement(op.momentum)!r}"
    given += "" if op.scale or op.bias else ", affine=False"
    init = f"BatchNorm{rank}({given})"
    return Code(f"self.{node.name}({x})", init, _frozen(node, scale=op.scale, bias=op.bias), (f"BatchNorm{rank}",))


def layer_norm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, LayerNorm)
    given = f"{node.shape[-1]}, eps={op.epsilon!r}"
    given += "" if op.scale or op.bias else ", elementwise_affine=False"
    setup = _frozen(node, scale=op.scale, bias=op.bias)
    return Code(f"self.{node.name}({x})", f"nn.LayerNorm({given})", setup)


def dropout(node: Node, x: str) -> Code:
    if node.op.mask(*node.input_shapes) is None:
        return Code(x)
    return Code(f'{x} * masks["{node.name}"] if masks else {x}')


def embedding(node: Node, x: str) -> Code:
    assert isinstance(node.op, Embedding)
    return Code(f"self.{node.name}({x})", f"nn.Embedding({node.op.vocabulary}, {node.op.features})")


def positions(node: Node, x: str) -> Code:
    return Code(f"{x} + self.{node.name}", f"nn.Parameter(torch.zeros{node.shape})")


def unembed(node: Node, x: str) -> Code:
    assert isinstance(node.op, Unembed)
    return Code(f"F.linear({x}, self.{node.op.embedding}.weight)")


def lstm(node: Node, x: str) -> Code:
    return _recurrent(node, x, "LSTM")


def gru(node: Node, x: str) -> Code:
    return _recurrent(node, x, "GRU")


def _recurrent(node: Node, x: str, name: str) -> Code:
    op = node.op
    assert isinstance(op, Recurrent)
    given = f"{node.input_shapes[0][-1]}, {op.units}"
    last = "[:, -1]" if op.returns == "last" else ""
    if op.mask(*node.input_shapes) is not None:
        helper = f"Dropped{name}"
        return Code(f"self.{node.name}({x}, {mask_of(node)}){last}", f"{helper}({given})", (), (helper,))
    # A second bias that learned would double the effective bias's rate.
    setup = (
        "# PyTorch has two biases that are added: only one of them may learn.",
        f"nn.init.zeros_(self.{node.name}.bias_hh_l0).requires_grad_(False)",
    )
    return Code(f"self.{node.name}({x})[0]{last}", f"nn.{name}({given}, batch_first=True)", setup)


def attention(node: Node, *args: str) -> Code:
    op = node.op
    assert isinstance(op, Attention)
    helper = "DroppedAttention" if op.mask(*node.input_shapes) else "Attention"
    given = f"{node.shape[-1]}, {node.input_shapes[-1][-1]}, heads={op.heads}, causal={op.causal}, bias={op.bias}"
    passed = [args[0], args[-1]]
    if op.mask(*node.input_shapes):
        passed.append(mask_of(node))
    return Code(f"self.{node.name}({', '.join(passed)})", f"{helper}({given})", (), (helper,))


HELPERS = {
    "BatchNorm1d": '''
class BatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d whose running variance is the biased one, as in Keras and Flax.

    On CPUs F.batch_norm adds up channels-last values one by one: 42 units in the last place off
    for 50,000 of them, where torch.var_mean is 1 off.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x, dim=(0, *range(2, x.ndim)), correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        shape = (-1,) + (1,) * (x.ndim - 2)
        return x * scale.view(shape) + shift.view(shape)
''',
    "DroppedLSTM": '''
class DroppedLSTM(nn.Module):
    """An LSTM whose state loses values on its way into each step; nn.LSTM has no such mask."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.zeros(4 * units, features))
        self.weight_hh = nn.Parameter(torch.zeros(4 * units, units))
        self.bias = nn.Parameter(torch.zeros(4 * units))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = c = x.new_zeros(len(x), self.weight_hh.shape[1])
        states = []
        for inputs in F.linear(x, self.weight_ih, self.bias).unbind(1):
            kept = h if mask is None else h * mask
            i, f, g, o = (inputs + F.linear(kept, self.weight_hh)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1)
''',
    "DroppedGRU": '''
class DroppedGRU(nn.Module):
    """A GRU whose state loses values on its way into each step; nn.GRU has no such mask."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.zeros(3 * units, features))
        self.weight_hh = nn.Parameter(torch.zeros(3 * units, units))
        self.bias = nn.Parameter(torch.zeros(3 * units))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = x.new_zeros(len(x), self.weight_hh.shape[1])
        states = []
        for inputs in F.linear(x, self.weight_ih, self.bias).unbind(1):
            kept = h if mask is None else h * mask
            xr, xz, xn = inputs.chunk(3, dim=1)
            hr, hz, hn = F.linear(kept, self.weight_hh).chunk(3, dim=1)
            z = torch.sigmoid(xz + hz)
            h = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * kept
            states.append(h)
        return torch.stack(states, dim=1)
''',
    "Attention": '''
class Attention(nn.Module):
    """Multi-head scaled dot-product attention."""

    def __init__(self, channels: int, memory: int, *, heads: int, causal: bool, bias: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key = nn.Linear(memory, channels, bias=bias)
        self.value = nn.Linear(memory, channels, bias=bias)
        self.out = nn.Linear(channels, channels, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # N, heads, T, C / heads

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))
''',
    "DroppedAttention": '''
class DroppedAttention(nn.Module):
    """Multi-head attention with a given dropout mask; F.scaled_dot_product_attention draws its own."""

    def __init__(self, channels: int, memory: int, *, heads: int, causal: bool, bias: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key = nn.Linear(memory, channels, bias=bias)
        self.value = nn.Linear(memory, channels, bias=bias)
        self.out = nn.Linear(channels, channels, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # N, heads, T, C / heads

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if self.causal:
            future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        weights = scores.softmax(dim=-1)
        if mask is not None:
            weights = weights * mask
        return self.out((weights @ v).transpose(1, 2).flatten(2))
''',
}
HELPERS["BatchNorm2d"] = HELPERS["BatchNorm1d"].replace("BatchNorm1d", "BatchNorm2d")


def parameters(node: Node) -> dict[str, Slot]:
    """Canonical name -> PyTorch's, relative to the node's module."""
    kind, found = node.op.kind, {}
    for p in node.parameters:
        same = tuple(range(len(p.shape)))
        if kind == "positions":
            found[p.name] = Slot("", same)
        elif kind in ("lstm", "gru"):
            suffix = "" if node.op.mask(*node.input_shapes) else "_l0"
            names = {"kernel": f"weight_ih{suffix}", "recurrent": f"weight_hh{suffix}", "bias": f"bias_ih{suffix}"}
            if not suffix:
                names["bias"] = "bias"
            found[p.name] = Slot(names[p.name], tuple(reversed(same)))
        elif kind == "attention":
            part, _, leaf = p.name.rpartition("_")
            found[p.name] = Slot(f"{part}.{'weight' if leaf == 'kernel' else leaf}", tuple(reversed(same)))
        else:
            names = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
            names |= {"mean": "running_mean", "variance": "running_var"}
            found[p.name] = Slot(names[p.name], KERNELS.get(p.axes, same))
    return found


def _window(values: tuple[int, ...]) -> str:
    """`3` for one axis, `(3, 3)` for two."""
    return repr(values[0]) if len(values) == 1 else repr(tuple(values))


def _symmetric(pads: Pads) -> bool:
    return all(before == after for before, after in pads)


def _befores(pads: Pads) -> tuple[int, ...]:
    return tuple(before for before, _ in pads)


def _f_pad(pads: Pads) -> tuple[int, ...]:
    """F.pad counts from the last axis: (left, right, top, bottom)."""
    return tuple(side for pair in reversed(pads) for side in pair)


def _native_pads(op: Pool) -> bool:
    """PyTorch's pools pad both sides alike, by at most half a window."""
    return _symmetric(op.pads) and all(2 * p[0] <= w for p, w in zip(op.pads, op.window, strict=True))


def _spatial(node: Node) -> tuple[int, ...]:
    return tuple(range(2, len(node.input_shapes[0]) + 1))


def _complement(momentum: float) -> float:
    """1 - momentum without the noise of binary fractions: 0.1 for 0.9."""
    return float(f"{1 - momentum:.12g}")


def _frozen(node: Node, *, scale: bool, bias: bool) -> tuple[str, ...]:
    """PyTorch has scale and bias together or neither: one that the spec lacks stays as it is."""
    if scale == bias:
        return ()
    missing = "bias" if scale else "weight"
    return (f"self.{node.name}.{missing}.requires_grad_(False)",)
