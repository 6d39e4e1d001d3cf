"""Ops written for XLA on CPUs, where Keras's own are slow there; the strategy `tuned`. Imports no framework.

Each computes what its plain form in `layers` computes, and its layer has the same variables, in the axes that
`parameters` tells. An op that is not here, or for which its function finds nothing better, is the plain one.
"""

from backends.tensorflow import layers
from harness.emit import Code, Lowerings, Slot
from harness.graph import Node
from harness.lanes import narrows
from harness.ops.linear import Dense
from harness.ops.recurrent import Recurrent


def dense(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Dense)
    plain = layers.dense(node, x)
    if not narrows(node):
        return plain
    assert plain.init
    return Code(plain.call, plain.init.replace("keras.layers.Dense", "TransposedDense"), (), ("TransposedDense",))


def lstm(node: Node, x: str) -> Code:
    op = node.op
    assert isinstance(op, Recurrent)
    if op.mask(*node.input_shapes) is not None:
        return layers.lstm(node, x)
    last = "[:, -1]" if op.returns == "last" else ""
    return Code(f"self.{node.name}({x}){last}", f'LSTM({op.units}, name="{node.name}")', (), ("lstm_states", "LSTM"))


OPS: Lowerings = {"dense": dense, "lstm": lstm}


def parameters(node: Node) -> dict[str, Slot]:
    """Canonical name -> Keras's, relative to the node's layer."""
    found = layers.parameters(node)
    if narrows(node):
        found["kernel"] = Slot(found["kernel"].path, (1, 0))
    return found


HELPERS = {
    "TransposedDense": '''
class TransposedDense(keras.layers.Layer):
    """A dense layer whose kernel is [outputs, inputs].

    XLA is slow on CPUs at the gradient of a kernel [inputs, outputs] where there are fewer outputs than inputs.
    """

    def __init__(self, units: int, *, use_bias: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.units, self.use_bias = units, use_bias

    def build(self, input_shape: tuple) -> None:
        self.kernel = self.add_weight(name="kernel", shape=(self.units, input_shape[-1]))
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), self.kernel, transpose_b=True)
        y = y if self.bias is None else y + self.bias
        return tf.reshape(y, (-1, *x.shape[1:-1], self.units))
''',
    "lstm_states": '''
@tf.custom_gradient
def lstm_states(
    x: tf.Tensor, kernel: tf.Tensor, recurrent: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    """Every state of an LSTM over [time, batch, features].

    Its gates are tensors of their own, because XLA does not vectorise what reads slices of one on CPUs. The gradients
    of kernel, recurrent and bias are taken after the loop, of all steps at once.
    """
    steps, n, features = x.shape
    units = recurrent.shape[0]
    x = tf.reshape(x, (steps * n, features))
    kernels, recurrents = tf.split(kernel, 4, axis=1), tf.split(recurrent, 4, axis=1)
    gates = [
        tf.reshape(x @ w + b, (steps, n, units)) for w, b in zip(kernels, tf.split(bias, 4), strict=True)
    ]
    zeros = tf.zeros((n, units), x.dtype)

    def arrays(count: int) -> list[tf.TensorArray]:
        return [tf.TensorArray(x.dtype, steps, element_shape=(n, units)) for _ in range(count)]

    def write(arrays: tuple, t: tf.Tensor, *values: tf.Tensor) -> list[tf.TensorArray]:
        return [array.write(t, value) for array, value in zip(arrays, values, strict=True)]

    def sigmoid(x: tf.Tensor) -> tf.Tensor:
        return 0.5 * tf.tanh(0.5 * x) + 0.5  # faster than tf.sigmoid

    def forward(t: tf.Tensor, h: tf.Tensor, c: tf.Tensor, *saved: tf.TensorArray) -> tuple:
        i, f, g, o = (gate[t] + h @ w for gate, w in zip(gates, recurrents, strict=True))
        i, f, g, o = sigmoid(i), sigmoid(f), tf.tanh(g), sigmoid(o)
        new_c = f * c + i * g
        squashed = tf.tanh(new_c)
        h = o * squashed
        return t + 1, h, new_c, *write(saved, t, i, f, g, o, c, squashed, h)

    start = (0, zeros, zeros, *arrays(7))
    _, _, _, *saved = tf.while_loop(
        lambda t, *_: t < steps, forward, start, maximum_iterations=steps
    )
    *saved, states = [array.stack() for array in saved]

    def gradient(dstates: tf.Tensor) -> tuple[tf.Tensor, ...]:
        transposed = [tf.transpose(w) for w in recurrents]

        def backward(t: tf.Tensor, dh: tf.Tensor, dc: tf.Tensor, *dgates: tf.TensorArray) -> tuple:
            i, f, g, o, c, squashed = (values[t] for values in saved)
            dh += dstates[t]
            dc += dh * o * (1 - squashed**2)
            at = (
                dc * g * i * (1 - i),
                dc * c * f * (1 - f),
                dc * i * (1 - g**2),
                dh * squashed * o * (1 - o),
            )
            dh = tf.add_n([d @ w for d, w in zip(at, transposed, strict=True)])
            return t - 1, dh, dc * f, *write(dgates, t, *at)

        start = (steps - 1, zeros, zeros, *arrays(4))
        _, _, _, *dgates = tf.while_loop(
            lambda t, *_: t >= 0, backward, start, maximum_iterations=steps
        )
        dgates = tf.concat([tf.reshape(d.stack(), (steps * n, units)) for d in dgates], axis=1)
        before = tf.reshape(tf.concat([zeros[None], states[:-1]], axis=0), (steps * n, units))
        return (
            tf.reshape(tf.matmul(dgates, kernel, transpose_b=True), (steps, n, features)),
            tf.matmul(x, dgates, transpose_a=True),
            tf.matmul(before, dgates, transpose_a=True),
            tf.reduce_sum(dgates, axis=0),
        )

    return states, gradient
''',
    "LSTM": '''
class LSTM(keras.layers.Layer):
    """keras.layers.LSTM by `lstm_states`; returns every state."""

    def __init__(self, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.cell = keras.layers.LSTMCell(units, name="lstm_cell")

    def build(self, input_shape: tuple) -> None:
        self.cell.build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        cell = self.cell
        weights = (tf.convert_to_tensor(v) for v in (cell.kernel, cell.recurrent_kernel, cell.bias))
        return tf.transpose(lstm_states(tf.transpose(x, (1, 0, 2)), *weights), (1, 0, 2))
''',
}
