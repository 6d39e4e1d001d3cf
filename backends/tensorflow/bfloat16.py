"""What a program in mixed precision says otherwise: its products take and give bfloat16. Imports no framework.

What that means is in `harness.precision`. Only classes and helpers are rewritten, and only where a product stands.
"""

REPLACED = {
    "keras.layers.Dense(": "Bfloat16Dense(",
    "keras.layers.Conv1D(": "Bfloat16Conv1D(",
    "keras.layers.Conv2D(": "Bfloat16Conv2D(",
    "keras.layers.Conv2DTranspose(": "Bfloat16Conv2DTranspose(",
    "keras.layers.LSTM(": "Bfloat16LSTM(",
    "tf.matmul(q, k, transpose_b=True)": "bfloat16_matmul(q, tf.linalg.matrix_transpose(k))",
    "keras.ops.matmul(": "bfloat16_matmul(",
    "tf.matmul(": "bfloat16_matmul(",
}
"""By what a program says in float32, in the order in which it is replaced."""

XLA_FLAGS = """# XLA, where it compiles, would leave out a rounding to bfloat16 that it can do without.
flags = [*os.environ.get("XLA_FLAGS", "").split(), "--xla_allow_excess_precision=false"]
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(flags))
"""

HEADER = """# Products of bfloat16 values, added up in float32: TensorFlow's own kernels for CPUs add up in bfloat16.
PRODUCT = tf.bfloat16 if tf.config.list_physical_devices("GPU") else tf.float32
"""

HELPERS = {
    "to_bfloat16": '''
def to_bfloat16(x: tf.Tensor) -> tf.Tensor:
    """A product's factor, rounded to bfloat16."""
    return tf.cast(tf.cast(x, tf.bfloat16), PRODUCT)
''',
    "to_float32": '''
def to_float32(y: tf.Tensor) -> tf.Tensor:
    """A product, rounded to bfloat16, for what goes on in float32. Keras's mixed_bfloat16 would go on in bfloat16."""
    return tf.cast(tf.cast(y, tf.bfloat16), tf.float32)
''',
    "bfloat16_matmul": """
def bfloat16_matmul(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return to_float32(keras.ops.matmul(to_bfloat16(a), to_bfloat16(b)))
""",
    "Bfloat16Dense": '''
class Bfloat16Dense(keras.layers.Dense):
    """keras.layers.Dense of bfloat16 values; its variables stay float32, and so does the bias's sum."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = bfloat16_matmul(x, self.kernel)
        return y + self.bias if self.use_bias else y
''',
    "Bfloat16Conv2D": '''
class Bfloat16Conv2D(keras.layers.Conv2D):
    """keras.layers.Conv2D of bfloat16 values; its variables stay float32, and so does the bias's sum."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = to_float32(self.convolution_op(to_bfloat16(x), to_bfloat16(self.kernel)))
        return y + self.bias if self.use_bias else y
''',
    "Bfloat16Conv2DTranspose": '''
class Bfloat16Conv2DTranspose(keras.layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose of bfloat16 values; its variables stay float32, and so does the bias's sum."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = keras.ops.conv_transpose(
            to_bfloat16(x), to_bfloat16(self.kernel), strides=self.strides, padding=self.padding
        )
        y = to_float32(y)
        return y + self.bias if self.use_bias else y
''',
    "Bfloat16LSTM": '''
class Bfloat16LSTM(keras.layers.LSTM):
    """keras.layers.LSTM whose two products are of bfloat16 values; its own has one dtype for states too."""

    def call(self, sequences: tf.Tensor, initial_state: None = None) -> tf.Tensor:
        cell = self.cell  # `initial_state` is an argument because Keras's `build` asks for it.
        h = c = tf.zeros((tf.shape(sequences)[0], self.units), dtype=sequences.dtype)
        states = []
        for inputs in tf.unstack(bfloat16_matmul(sequences, cell.kernel) + cell.bias, axis=1):
            gates = inputs + bfloat16_matmul(h, cell.recurrent_kernel)
            i, f, g, o = tf.split(gates, 4, axis=-1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
            states.append(h)
        return tf.stack(states, axis=1) if self.return_sequences else h
''',
}
HELPERS["Bfloat16Conv1D"] = HELPERS["Bfloat16Conv2D"].replace("Conv2D", "Conv1D")
