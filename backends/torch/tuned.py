"""Ops written for Inductor, pooling before ReLU, PyTorch's own batch normalisation; their strategies. Imports no framework.

Each computes what its plain form in `layers` computes, and its module has the same parameters. An op that is not here,
or for which its function finds nothing better, is the plain one.
"""

from dataclasses import replace

from backends.torch import layers
from harness.emit import Code, Lowerings
from harness.graph import Graph, Node
from harness.lanes import early_relus
from harness.ops.attention import Attention
from harness.ops.recurrent import Recurrent


def attention(node: Node, *args: str) -> Code:
    """Self-attention whose three products of its input are one."""
    op = node.op
    assert isinstance(op, Attention)
    if args[0] != args[-1] or op.mask(*node.input_shapes):
        return layers.attention(node, *args)
    given = f"{node.shape[-1]}, heads={op.heads}, causal={op.causal}, bias={op.bias}"
    return Code(f"self.{node.name}({args[0]})", f"SelfAttention({given})", (), ("SelfAttention",))


def lstm(node: Node, x: str) -> Code:
    """An LSTM written out, where it has no dropout and so nn.LSTM's parameters."""
    op, plain = node.op, layers.lstm(node, x)
    assert isinstance(op, Recurrent)
    if op.mask(*node.input_shapes) is not None:
        return plain
    last = "[:, -1]" if op.returns == "last" else ""
    init = str(plain.init).replace("nn.LSTM", "UnrolledLSTM", 1)
    return Code(f"self.{node.name}({x}){last}", init, plain.setup, ("Recurrence", "UnrolledLSTM"))


OPS: Lowerings = {"attention": attention, "lstm": lstm}


def late_relu(graph: Graph) -> Graph:
    """A graph whose max poolings come before the ReLUs that they read: the same, and the ReLU has fewer values to do."""
    early = early_relus(graph)
    nodes = {node.name: node for node in graph.nodes}
    relu_of = {pool: relu for relu, pool in early.items()}
    found: list[Node] = []
    for node in graph.nodes:
        if node.name in relu_of:
            relu = nodes[relu_of[node.name]]
            found.append(replace(node, name=relu.name, inputs=relu.inputs))
            found.append(
                replace(relu, name=node.name, inputs=(relu.name,), input_shapes=(node.shape,), shape=node.shape)
            )
        elif node.name not in early:
            found.append(node)
    return replace(graph, nodes=tuple(found))


NATIVE = {
    "BatchNorm1d": '''
class BatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d whose running variance is the biased one, as in Keras and Flax."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # By a momentum of 1 they become the batch's own, a variance divided by n - 1.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * ((n - 1) / n), self.momentum)
        return y
''',
}
"""Instead of those of `layers`, of the same names: F.batch_norm takes a tenth to a third of their time where nothing is compiled."""
NATIVE["BatchNorm2d"] = NATIVE["BatchNorm1d"].replace("BatchNorm1d", "BatchNorm2d")
HELPERS = {
    "SelfAttention": '''
class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of a sequence to itself."""

    def __init__(self, channels: int, *, heads: int, causal: bool, bias: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key = nn.Linear(channels, channels, bias=bias)
        self.value = nn.Linear(channels, channels, bias=bias)
        self.out = nn.Linear(channels, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        # One wide product is faster than three narrow ones, by more than joining their weights costs.
        parts = self.query, self.key, self.value
        weight = torch.cat([part.weight for part in parts])
        bias = None if self.out.bias is None else torch.cat([part.bias for part in parts])
        qkv = F.linear(x, weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # N, heads, T, C / heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))
''',
    "Recurrence": '''
class Recurrence(torch.autograd.Function):
    """An LSTM's states, step by step: Inductor fuses what lies between the products.

    Going back, each kernel's gradient is one product over all steps.
    """

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
        n, steps, _ = x.shape
        x = x.transpose(0, 1).flatten(0, 1)
        h = c = x.new_zeros(n, recurrent.shape[1])
        states, saved = [h], []
        for z in torch.addmm(bias, x, kernel.T).view(steps, n, -1):
            i, f, g, o = (z + h @ recurrent.T).chunk(4, 1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            before, c = c, f * c + i * g
            squashed = c.tanh()
            h = o * squashed
            saved += [i, f, g, o, before, squashed]
            states.append(h)
        ctx.save_for_backward(x, kernel, recurrent, torch.cat(states[:-1]), *saved)
        return torch.stack(states[1:], 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, recurrent, states, *saved = ctx.saved_tensors
        dh = dc = torch.zeros_like(gradient[:, 0])
        rows = []
        for step in reversed(range(gradient.shape[1])):
            i, f, g, o, before, squashed = saved[6 * step : 6 * step + 6]
            dh = dh + gradient[:, step]
            dc = dc + dh * o * (1 - squashed * squashed)
            di, df, dg = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g)
            rows.append(torch.cat([di, df, dg, dh * squashed * o * (1 - o)], 1))
            dh, dc = rows[-1] @ recurrent, dc * f
        dz = torch.cat(rows[::-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dz @ kernel).unflatten(0, (-1, len(gradient))).transpose(0, 1)
        return dx, dz.T @ x, dz.T @ states, dz.sum(0)
''',
    "UnrolledLSTM": '''
class UnrolledLSTM(nn.LSTM):
    """nn.LSTM that returns its states alone, by operations that a compiler can see into."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0
        return Recurrence.apply(x, *weights)
''',
}
