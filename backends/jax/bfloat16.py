"""What a program in mixed precision says otherwise: its products take and give bfloat16. Imports no framework.

What that means is in `harness.precision`. Only classes and helpers are rewritten, and only where a product stands.
"""

REPLACED = {
    "nnx.Linear": "Bfloat16Linear",
    "nnx.ConvTranspose(": "Bfloat16ConvTranspose(",
    "nnx.Conv(": "Bfloat16Conv(",
    "nnx.OptimizedLSTMCell(": "Bfloat16OptimizedLSTMCell(",
    "nnx.GRUCell(": "Bfloat16GRUCell(",
    "nnx.Embed(": "Bfloat16Embed(",
    "jnp.einsum(": "bfloat16_einsum(",
}
"""By what a program says in float32."""

HELPERS = {
    "round_to_bfloat16": '''
def round_to_bfloat16(x: Array) -> Array:
    """x rounded to bfloat16. Not by a conversion there and back: XLA leaves out those that it can do without."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
''',
    "to_bfloat16": '''
def to_bfloat16(x: Array) -> Array:
    """A product's factor, rounded to bfloat16."""
    return round_to_bfloat16(x).astype(jnp.bfloat16)
''',
    "to_float32": '''
def to_float32(y: Array) -> Array:
    """A product, rounded to bfloat16, for what goes on in float32. Flax's dtype would go on in bfloat16."""
    return round_to_bfloat16(y.astype(jnp.float32))
''',
    "dot_general": '''
def dot_general(a: Array, b: Array, dimension_numbers: tuple, **_: object) -> Array:
    """jax.lax.dot_general of bfloat16 values."""
    return to_float32(jax.lax.dot_general(to_bfloat16(a), to_bfloat16(b), dimension_numbers))
''',
    "conv_general_dilated": '''
def conv_general_dilated(x: Array, kernel: Array, *args: object, **kwargs: object) -> Array:
    """jax.lax.conv_general_dilated of bfloat16 values."""
    return to_float32(jax.lax.conv_general_dilated(to_bfloat16(x), to_bfloat16(kernel), *args, **kwargs))
''',
    "bfloat16_einsum": """
def bfloat16_einsum(rule: str, a: Array, b: Array) -> Array:
    return to_float32(jnp.einsum(rule, to_bfloat16(a), to_bfloat16(b)))
""",
    "Bfloat16Linear": """
# Parameters stay float32, and so do the biases' sums.
Bfloat16Linear = partial(nnx.Linear, dot_general=dot_general)
""",
    "Bfloat16Conv": """
# Parameters stay float32, and so do the biases' sums.
Bfloat16Conv = partial(nnx.Conv, conv_general_dilated=conv_general_dilated)
""",
    "Bfloat16ConvTranspose": '''
class Bfloat16ConvTranspose(nnx.ConvTranspose):
    """nnx.ConvTranspose of bfloat16 values; its parameters stay float32, and so does the bias's sum."""

    def __call__(self, x: Array) -> Array:
        y = jax.lax.conv_transpose(
            to_bfloat16(x), to_bfloat16(self.kernel[...]), self.strides or (1, 1), self.padding, transpose_kernel=True
        )
        y = to_float32(y)
        return y if self.bias is None else y + self.bias[...]
''',
    "Bfloat16OptimizedLSTMCell": '''
class Bfloat16OptimizedLSTMCell(nnx.OptimizedLSTMCell):
    """nnx.OptimizedLSTMCell whose two products are of bfloat16 values."""

    def __init__(self, *args: int, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.dense_i.dot_general = self.dense_h.dot_general = dot_general
''',
    "Bfloat16Embed": '''
class Bfloat16Embed(nnx.Embed):
    """nnx.Embed whose logits are products of bfloat16 values."""

    def attend(self, x: Array) -> Array:
        return bfloat16_einsum("...c,vc->...v", x, self.embedding[...])
''',
}
HELPERS["Bfloat16GRUCell"] = HELPERS["Bfloat16OptimizedLSTMCell"].replace("OptimizedLSTMCell", "GRUCell")
