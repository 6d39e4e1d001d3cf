"""Each op as Keras on TensorFlow: what to construct, what to call. Imports no framework.

Layers with parameters are constructed, by name: Keras builds a variable's path from the names. What has no
parameters is a function of `tf`, `tf.nn` or `keras.ops`. Everything is channels-last, as in a spec.
"""

from harness.emit import Code, Slot, mask_of
from harness.emit import block as shared_block
from harness.graph import BlockOp, Graph, Node
from harness.ops.activation import Elu, Gelu, LeakyRelu
from harness.ops.attention import Attention
from harness.ops.base import Pads, Shape, same_pads
from harness.ops.convolution import Convolution, ConvTranspose2d, Upsample2d
from harness.ops.linear import Dense, Embedding, Reshape, Unembed
from harness.ops.normalisation import BatchNorm, LayerNorm
from harness.ops.pooling import AvgPool, Pool
from harness.ops.recurrent import Recurrent


def block(node: Node, *args: str) -> Code:
    """A block: constructed by name, and told whether it trains where something in it asks."""
    code = shared_block(node, *args)
    assert isinstance(node.op, BlockOp)
    call = f"{code.call[:-1]}, training=training)" if trains(node.op.graph) else code.call
    return Code(call, f'{node.op.graph.class_name}(name="{node.name}")')


def trains(graph: Graph) -> bool:
    """Whether a graph's forward pass differs in training by more than its masks."""
    return any(
        trains(node.op.graph) if isinstance(node.op, BlockOp) else isinstance(node.op, BatchNorm)
        for node in graph.nodes
    )


def dense(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Dense)
    bias = "" if op.bias else ", use_bias=False"
    return Code(f"self.{node.name}({x})", f'keras.layers.Dense({op.units}{bias}, name="{node.name}")')


def relu(_node: Node, x: str) -> Code:
    return Code(f"tf.nn.relu({x})")


def leaky_relu(node: Node, x: str) -> Code:
    assert isinstance(node.op, LeakyRelu)
    return Code(f"leaky_relu({x}, {node.op.slope!r})", helpers=("leaky_relu",))


def elu(node: Node, x: str) -> Code:
    assert isinstance(node.op, Elu)
    return Code(f"elu({x}, {node.op.alpha!r})", helpers=("elu",))


def selu(_node: Node, x: str) -> Code:
    return Code(f"selu({x})", helpers=("elu", "selu"))


def gelu(node: Node, x: str) -> Code:
    assert isinstance(node.op, Gelu)
    helper = "gelu_tanh" if node.op.form == "tanh" else "gelu"
    return Code(f"{helper}({x})", helpers=(helper,))


def silu(_node: Node, x: str) -> Code:
    return Code(f"tf.nn.silu({x})")


def sigmoid(_node: Node, x: str) -> Code:
    return Code(f"tf.sigmoid({x})")


def tanh(_node: Node, x: str) -> Code:
    return Code(f"tf.tanh({x})")


def softplus(_node: Node, x: str) -> Code:
    return Code(f"tf.nn.softplus({x})")


def softmax(_node: Node, x: str) -> Code:
    return Code(f"tf.nn.softmax({x}, axis=-1)")


def flatten(node: Node, x: str) -> Code:
    return Code(f"tf.reshape({x}, (-1, {node.shape[0]}))")


def reshape(node: Node, x: str) -> Code:
    assert isinstance(node.op, Reshape)
    return Code(f"tf.reshape({x}, (-1, {', '.join(map(str, node.op.shape))}))")


def add(_node: Node, *args: str) -> Code:
    return Code(" + ".join(args))


def multiply(_node: Node, *args: str) -> Code:
    return Code(" * ".join(args))


def concatenate(_node: Node, *args: str) -> Code:
    return Code(f"tf.concat(({', '.join(args)}), axis=-1)")


def conv(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Convolution)
    rank = len(op.kernel)
    given = f"{op.channels}, {_window(op.kernel)}"
    strided, dilated = set(op.stride) != {1}, set(op.dilation) != {1}
    native = not (strided and dilated)
    given += f", strides={_window(op.stride)}" if strided and native else ""
    if any(map(any, op.pads)):
        if native and op.pads == _same(node, op.kernel, op.stride, op.dilation):
            given += ', padding="same"'
        else:
            x = f"tf.pad({x}, {_tf_pad(op.pads)})"
    given += f", dilation_rate={_window(op.dilation)}" if dilated else ""
    given += f", groups={op.groups}" if op.groups != 1 else ""
    given += "" if op.bias else ", use_bias=False"
    call, init = f"self.{node.name}({x})", f'keras.layers.Conv{rank}D({given}, name="{node.name}")'
    if native:
        return Code(call, init)
    helper = f"every{rank}d"
    return Code(f"{helper}({call}, {', '.join(map(str, op.stride))})", init, helpers=(helper,))


conv1d = conv2d = conv


def conv_transpose2d(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, ConvTranspose2d)
    given = f"{op.channels}, {_window(op.kernel)}"
    given += f", strides={_window(op.stride)}" if set(op.stride) != {1} else ""
    call = f"self.{node.name}({x})"
    if op.crop == tuple(((k - s) // 2, -((s - k) // 2)) for k, s in zip(op.kernel, op.stride, strict=True)):
        given += ', padding="same"'
    elif any(map(any, op.crop)) or any(k < s for k, s in zip(op.kernel, op.stride, strict=True)):
        # A "valid" output: everything that the input reaches, and where the stride is wider than the kernel more.
        parts = (f"{before or ''}:{before + n}" for n, (before, _) in zip(node.shape, op.crop, strict=False))
        call += f"[:, {', '.join(parts)}]"
    given += "" if op.bias else ", use_bias=False"
    return Code(call, f'keras.layers.Conv2DTranspose({given}, name="{node.name}")')


def upsample2d(node: Node, x: str) -> Code:
    assert isinstance(node.op, Upsample2d)
    for axis, factor in enumerate(node.op.factor, start=1):
        x = f"tf.repeat({x}, {factor}, axis={axis})"
    return Code(x)


def max_pool(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Pool)
    if not any(map(any, op.pads)):
        padding = '"VALID"'
    elif op.pads == _same(node, op.window, op.steps):
        padding = '"SAME"'
    else:
        padding = _tf_pad(op.pads)
    return Code(f"tf.nn.max_pool{len(op.window)}d({x}, {_window(op.window)}, {_window(op.steps)}, {padding})")


max_pool1d = max_pool2d = max_pool


def avg_pool(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, AvgPool)
    pool = f"tf.nn.avg_pool{len(op.window)}d"
    given = f"{_window(op.window)}, {_window(op.steps)}"
    if not any(map(any, op.pads)):
        return Code(f'{pool}({x}, {given}, "VALID")')
    if op.pads == _same(node, op.window, op.steps) and not op.count_padding:
        # TensorFlow never counts its own padding.
        return Code(f'{pool}({x}, {given}, "SAME")')
    mean = f'{pool}(tf.pad({x}, {_tf_pad(op.pads)}), {given}, "VALID")'
    if op.count_padding:
        return Code(mean)
    return Code(f'{mean} / {pool}(tf.pad(tf.ones_like({x}[:1, ..., :1]), {_tf_pad(op.pads)}), {given}, "VALID")')


avg_pool1d = avg_pool2d = avg_pool


def global_avg_pool(node: Node, x: str) -> Code:
    return Code(f"tf.reduce_mean({x}, axis={_spatial(node)})")


def global_max_pool(node: Node, x: str) -> Code:
    return Code(f"tf.reduce_max({x}, axis={_spatial(node)})")


def batch_norm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, BatchNorm)
    given = f"momentum={op.momentum!r}, epsilon={op.epsilon!r}"
    given += ("" if op.bias else ", center=False") + ("" if op.scale else ", scale=False")
    init = f'keras.layers.BatchNormalization({given}, name="{node.name}")'
    return Code(f"self.{node.name}({x}, training=training)", init)


def layer_norm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, LayerNorm)
    given = f"epsilon={op.epsilon!r}"
    given += ("" if op.bias else ", center=False") + ("" if op.scale else ", scale=False")
    return Code(f"self.{node.name}({x})", f'keras.layers.LayerNormalization({given}, name="{node.name}")')


def dropout(node: Node, x: str) -> Code:
    if node.op.mask(*node.input_shapes) is None:
        return Code(x)
    return Code(f'{x} * masks["{node.name}"] if masks else {x}')


def embedding(node: Node, x: str) -> Code:
    assert isinstance(node.op, Embedding)
    given = f"{node.op.vocabulary}, {node.op.features}"
    return Code(f"self.{node.name}({x})", f'keras.layers.Embedding({given}, name="{node.name}")')


def positions(node: Node, x: str) -> Code:
    return Code(f"self.{node.name}({x})", f'Positions(name="{node.name}")', helpers=("Positions",))


def unembed(node: Node, x: str) -> Code:
    assert isinstance(node.op, Unembed)
    return Code(f"keras.ops.matmul({x}, tf.transpose(self.{node.op.embedding}.embeddings))")


def lstm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Recurrent)
    if op.mask(*node.input_shapes) is not None:
        return _dropped(node, x, "DroppedLSTM")
    given = f'{op.units}, return_sequences={op.returns == "sequence"}, name="{node.name}"'
    return Code(f"self.{node.name}({x})", f"keras.layers.LSTM({given})")


def gru(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Recurrent)
    if op.mask(*node.input_shapes) is not None:
        return _dropped(node, x, "DroppedGRU")
    given = f'GRUCell({op.units}, name="cell"), return_sequences={op.returns == "sequence"}, name="{node.name}"'
    return Code(f"self.{node.name}({x})", f"keras.layers.RNN({given})", helpers=("GRUCell",))


def _dropped(node: Node, x: str, helper: str) -> Code:
    op = node.op
    assert isinstance(op, Recurrent)
    last = "[:, -1]" if op.returns == "last" else ""
    call = f"self.{node.name}({x}, {mask_of(node)}){last}"
    return Code(call, f'{helper}({op.units}, name="{node.name}")', helpers=(helper,))


def attention(node: Node, *args: str) -> Code:
    op = node.op
    assert isinstance(op, Attention)
    helper = "DroppedAttention" if op.mask(*node.input_shapes) else "Attention"
    given = f'{node.shape[-1]}, heads={op.heads}, causal={op.causal}, bias={op.bias}, name="{node.name}"'
    passed = [args[0], args[-1]]
    if op.mask(*node.input_shapes):
        passed.append(mask_of(node))
    return Code(f"self.{node.name}({', '.join(passed)})", f"{helper}({given})", helpers=(helper,))


HELPERS = {
    "leaky_relu": '''
def leaky_relu(x: tf.Tensor, slope: float) -> tf.Tensor:
    """x where it is above 0, else slope * x; tf.nn.leaky_relu keeps its slope in float32."""
    return tf.where(x > 0, x, slope * x)
''',
    "elu": '''
def elu(x: tf.Tensor, alpha: float) -> tf.Tensor:
    """x where it is above 0, else alpha * (exp(x) - 1); tf.nn.elu subtracts, and near 0 loses digits."""
    return tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0)))
''',
    "selu": '''
def selu(x: tf.Tensor) -> tf.Tensor:
    """A scaled ELU; at 0, tf.nn.selu takes its gradient from the other side."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)
''',
    "gelu": '''
def gelu(x: tf.Tensor) -> tf.Tensor:
    """x times the normal distribution function; tf.nn.gelu has its constants in float32."""
    return 0.5 * x * (1 + tf.math.erf(x * math.sqrt(0.5)))
''',
    "gelu_tanh": '''
def gelu_tanh(x: tf.Tensor) -> tf.Tensor:
    """GELU's approximation by tanh; tf.nn.gelu has its constants in float32."""
    return 0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
''',
    "every1d": '''
def every1d(x: tf.Tensor, steps: int) -> tf.Tensor:
    """A convolution's stride, after the fact: Keras takes none beside a dilation."""
    return x[:, ::steps]
''',
    "every2d": '''
def every2d(x: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """A convolution's stride, after the fact: Keras takes none beside a dilation."""
    return x[:, ::rows, ::columns]
''',
    "Positions": '''
class Positions(keras.layers.Layer):
    """Adds a learned vector to each position of a sequence."""

    def build(self, input_shape: tuple) -> None:
        self.embedding = self.add_weight(name="embedding", shape=input_shape[1:], initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.embedding
''',
    "GRUCell": '''
class GRUCell(keras.layers.Layer):
    """A step of a GRU with one bias; keras.layers.GRU has a second one inside the product with r."""

    def __init__(self, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.state_size = units

    def build(self, input_shape: tuple) -> None:
        gates = 3 * self.state_size
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], gates))
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.state_size, gates)
        )
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer="zeros")

    def call(self, x: tf.Tensor, states: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        (h,) = states
        xr, xz, xn = tf.split(tf.matmul(x, self.kernel) + self.bias, 3, axis=-1)
        hr, hz, hn = tf.split(tf.matmul(h, self.recurrent_kernel), 3, axis=-1)
        z = tf.sigmoid(xz + hz)
        h = (1 - z) * tf.tanh(xn + tf.sigmoid(xr + hr) * hn) + z * h
        return h, [h]
''',
    "DroppedLSTM": '''
class DroppedLSTM(keras.layers.Layer):
    """An LSTM whose state loses values on its way into each step; keras.layers.LSTM draws its own mask."""

    def __init__(self, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: tuple) -> None:
        gates = 4 * self.units
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], gates))
        self.recurrent_kernel = self.add_weight(name="recurrent_kernel", shape=(self.units, gates))
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer="zeros")

    def call(self, x: tf.Tensor, dropout_mask: tf.Tensor | None = None) -> tf.Tensor:
        h = c = tf.zeros((tf.shape(x)[0], self.units), dtype=x.dtype)
        states = []
        for inputs in tf.unstack(keras.ops.matmul(x, self.kernel) + self.bias, axis=1):
            kept = h if dropout_mask is None else h * dropout_mask
            gates = inputs + tf.matmul(kept, self.recurrent_kernel)
            i, f, g, o = tf.split(gates, 4, axis=-1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
            states.append(h)
        return tf.stack(states, axis=1)
''',
    "DroppedGRU": '''
class DroppedGRU(keras.layers.Layer):
    """A GRU whose state loses values on its way into each step; keras.layers.GRU draws its own mask."""

    def __init__(self, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: tuple) -> None:
        gates = 3 * self.units
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], gates))
        self.recurrent_kernel = self.add_weight(name="recurrent_kernel", shape=(self.units, gates))
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer="zeros")

    def call(self, x: tf.Tensor, dropout_mask: tf.Tensor | None = None) -> tf.Tensor:
        h = tf.zeros((tf.shape(x)[0], self.units), dtype=x.dtype)
        states = []
        for inputs in tf.unstack(keras.ops.matmul(x, self.kernel) + self.bias, axis=1):
            kept = h if dropout_mask is None else h * dropout_mask
            xr, xz, xn = tf.split(inputs, 3, axis=-1)
            hr, hz, hn = tf.split(tf.matmul(kept, self.recurrent_kernel), 3, axis=-1)
            z = tf.sigmoid(xz + hz)
            h = (1 - z) * tf.tanh(xn + tf.sigmoid(xr + hr) * hn) + z * kept
            states.append(h)
        return tf.stack(states, axis=1)
''',
    "Attention": '''
class Attention(keras.layers.Layer):
    """Multi-head scaled dot-product attention; keras.layers.MultiHeadAttention scales in float32."""

    def __init__(self, channels: int, *, heads: int, causal: bool, bias: bool, **kwargs) -> None:
        super().__init__(**kwargs)
        self.heads, self.causal = heads, causal
        self.query = keras.layers.Dense(channels, use_bias=bias, name="query")
        self.key = keras.layers.Dense(channels, use_bias=bias, name="key")
        self.value = keras.layers.Dense(channels, use_bias=bias, name="value")
        self.out = keras.layers.Dense(channels, use_bias=bias, name="out")

    def split(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(x, (-1, x.shape[1], self.heads, x.shape[2] // self.heads))
        return tf.transpose(x, (0, 2, 1, 3))  # N, heads, T, C / heads

    def call(self, x: tf.Tensor, memory: tf.Tensor) -> tf.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(q.shape[-1])
        if self.causal:
            past = tf.linalg.band_part(tf.ones(scores.shape[-2:], dtype=tf.bool), -1, 0)
            scores = tf.where(past, scores, -math.inf)
        weights = tf.nn.softmax(scores, axis=-1)
        y = tf.transpose(tf.matmul(weights, v), (0, 2, 1, 3))
        return self.out(tf.reshape(y, (-1, *x.shape[1:])))
''',
}
HELPERS["DroppedAttention"] = (
    HELPERS["Attention"]
    .replace("class Attention", "class DroppedAttention")
    .replace(
        "Multi-head scaled dot-product attention; keras.layers.MultiHeadAttention scales in float32.",
        "Multi-head attention with a given dropout mask; keras.layers.MultiHeadAttention draws its own.",
    )
    .replace("memory: tf.Tensor) ->", "memory: tf.Tensor, dropout_mask: tf.Tensor | None = None) ->")
    .replace(
        "axis=-1)\n        y =",
        "axis=-1)\n        if dropout_mask is not None:\n            weights = weights * dropout_mask\n        y =",
    )
)


def parameters(node: Node) -> dict[str, Slot]:
    """Canonical name -> Keras's, relative to the node's layer."""
    kind, found = node.op.kind, {}
    cell = {"lstm": "lstm_cell/", "gru": "cell/"}.get(kind, "") if node.op.mask(*node.input_shapes) is None else ""
    for p in node.parameters:
        name = p.name
        if kind == "attention":
            name = name.replace("_", "/")
        elif kind == "embedding":
            name = "embeddings"
        elif kind in ("lstm", "gru"):
            name = cell + {"recurrent": "recurrent_kernel"}.get(name, name)
        elif kind in ("batch_norm", "layer_norm"):
            name = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "variance": "moving_variance"}[name]
        found[p.name] = Slot(name, tuple(range(len(p.shape))))
    return found


def _window(values: tuple[int, ...]) -> str:
    """`3` for one axis, `(3, 3)` for two."""
    return repr(values[0]) if len(values) == 1 else repr(tuple(values))


def _same(node: Node, window: Shape, stride: Shape, dilation: Shape | None = None) -> Pads:
    """What TensorFlow's own "same" pads."""
    axes = zip(node.input_shapes[0], window, stride, dilation or (1,) * len(window), strict=False)
    return tuple(same_pads(*axis) for axis in axes)


def _tf_pad(pads: Pads) -> str:
    """tf.pad counts from the first axis: batch, the spatial ones, channels."""
    return repr([[0, 0], *map(list, pads), [0, 0]])


def _spatial(node: Node) -> tuple[int, ...]:
    return tuple(range(1, len(node.input_shapes[0])))
