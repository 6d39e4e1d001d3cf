"""Ops by cuDNN's fused kernels, which Flax does not call; the strategy `cudnn`, on GPUs. Imports no framework.

Each computes what its plain form in `layers` computes, and its module keeps its arrays under the same paths.
"""

from backends.jax import layers
from harness.emit import Code, Lowerings
from harness.graph import Node
from harness.ops.recurrent import Recurrent


def attention(node: Node, *args: str) -> Code:
    plain = layers.attention(node, *args)
    if node.op.mask(*node.input_shapes):
        return plain
    return Code(plain.call, str(plain.init).replace("Attention", "FusedAttention", 1), (), ("FusedAttention",))


def lstm(node: Node, x: str) -> Code:
    op, plain = node.op, layers.lstm(node, x)
    assert isinstance(op, Recurrent)
    if op.mask(*node.input_shapes):
        return plain
    last = "[:, -1]" if op.returns == "last" else ""
    return Code(f"self.{node.name}({x}){last}", str(plain.init).replace("nnx.RNN", "FusedLSTM", 1), (), ("FusedLSTM",))


OPS: Lowerings = {"attention": attention, "lstm": lstm}
"""In which precision each is taken says harness.lanes.FUSED."""

HELPERS = {
    "FusedLSTM": '''
class FusedLSTM(nnx.RNN):
    """nnx.RNN of an LSTM's cell, all steps by one call of cuDNN."""

    def __call__(self, x: Array) -> Array:
        n, steps, features = x.shape
        cell = self.cell
        recurrent, bias = cell.dense_h.kernel[...], cell.dense_h.bias[...]
        # As PyTorch's, it has two biases that are added.
        parts = cell.dense_i.kernel[...].T, recurrent.T, bias, jnp.zeros_like(bias)
        weights = jnp.concatenate([part.ravel() for part in parts])
        zeros = jnp.zeros((1, n, len(recurrent)), x.dtype)
        lengths = jnp.full(n, steps, jnp.int32)
        # One layer, no dropout, one direction.
        given = features, len(recurrent), 1, 0.0, False
        y, _, _ = rnn.lstm(x, zeros, zeros, weights, lengths, *given)
        return y
''',
    # Of products the scores alone are left as they are: they never leave the kernel.
    "FusedAttention": layers.HELPERS["Attention"]
    .replace("class Attention", "class FusedAttention")
    .replace("dot-product attention.", "dot-product attention by cuDNN, of bfloat16 values; its scores stay float32.")
    .partition("        # jax.nn.dot_product_attention takes")[0]
    + """        q, k, v = (to_bfloat16(part) for part in (q, k, v))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal, implementation="cudnn")
        return self.out(to_float32(y).reshape(*y.shape[:2], -1))
""",
}
