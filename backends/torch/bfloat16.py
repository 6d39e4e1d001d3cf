"""What a program in mixed precision says otherwise: its products take and give bfloat16. Imports no framework.

What that means is in `harness.precision`. Only classes and helpers are rewritten, and only where a product stands.
"""

from collections.abc import Mapping

from backends.torch.lanes import COMPILED, FLASH
from harness.lanes import GRAPHS

REPLACED = {
    "nn.Linear(": "Bfloat16Linear(",
    "nn.Conv1d(": "Bfloat16Conv1d(",
    "nn.Conv2d(": "Bfloat16Conv2d(",
    "nn.ConvTranspose2d(": "Bfloat16ConvTranspose2d(",
    "nn.LSTM(": "Bfloat16LSTM(",
    "nn.GRU(": "Bfloat16GRU(",
    "F.linear(": "bfloat16_linear(",
    "q @ k.mT": "bfloat16_matmul(q, k.mT)",
    "weights @ v": "bfloat16_matmul(weights, v)",
    "y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)": "y = bfloat16_attention(q, k, v, causal=self.causal)",
}
"""By what a program says in float32."""


def header(strategy: str) -> str:
    """What changes numbers for the whole program."""
    compiled = strategy in ("compiled", *GRAPHS, *COMPILED)
    kept = """# Inductor would leave out a rounding to bfloat16 that it can do without.
torch._inductor.config.emulate_precision_casts = True
"""
    return f"""# Products of bfloat16 values, added up in float32: PyTorch's own kernels for CPUs do not all do so.
PRODUCT = torch.bfloat16 if torch.cuda.is_available() else torch.float32
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
{kept if compiled else ""}"""


def helpers(strategy: str) -> Mapping[str, str]:
    """The helpers by name, in an order in which they can stand."""
    return HELPERS | FUSED if strategy == FLASH else HELPERS


HELPERS = {
    "to_bfloat16": '''
def to_bfloat16(x: Tensor) -> Tensor:
    """A product's factor, rounded to bfloat16."""
    return x.bfloat16().to(PRODUCT)
''',
    "to_float32": '''
def to_float32(y: Tensor) -> Tensor:
    """A product, rounded to bfloat16, for what goes on in float32. torch.autocast would go on in bfloat16."""
    return y.bfloat16().float()
''',
    "bfloat16_matmul": """
def bfloat16_matmul(a: Tensor, b: Tensor) -> Tensor:
    return to_float32(to_bfloat16(a) @ to_bfloat16(b))
""",
    "bfloat16_linear": '''
def bfloat16_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of bfloat16 values, the bias added in float32."""
    y = to_float32(F.linear(to_bfloat16(x), to_bfloat16(weight)))
    return y if bias is None else y + bias
''',
    "bfloat16_attention": '''
def bfloat16_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """F.scaled_dot_product_attention of bfloat16 values, its scores and softmax in float32."""
    scores = bfloat16_matmul(q, k.mT) / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return bfloat16_matmul(scores.softmax(dim=-1), v)
''',
    "Bfloat16Linear": '''
class Bfloat16Linear(nn.Linear):
    """nn.Linear of bfloat16 values; its parameters and bias stay float32."""

    def forward(self, x: Tensor) -> Tensor:
        return bfloat16_linear(x, self.weight, self.bias)
''',
    "Bfloat16Conv2d": '''
class Bfloat16Conv2d(nn.Conv2d):
    """nn.Conv2d of bfloat16 values; its parameters and bias stay float32."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = to_float32(super()._conv_forward(to_bfloat16(x), to_bfloat16(weight), None))
        return y if bias is None else y + bias.view(-1, 1, 1)
''',
    "Bfloat16ConvTranspose2d": '''
class Bfloat16ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d of bfloat16 values; its parameters and bias stay float32."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(to_bfloat16(x), to_bfloat16(self.weight), None, self.stride, self.padding)
        y = to_float32(y)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)
''',
    "Bfloat16LSTM": '''
class Bfloat16LSTM(nn.LSTM):
    """nn.LSTM whose two products are of bfloat16 values; its own has one dtype for factors and states."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = c = x.new_zeros(len(x), self.hidden_size)
        states = []
        for inputs in bfloat16_linear(x, self.weight_ih_l0, self.bias_ih_l0).unbind(1):
            i, f, g, o = (inputs + bfloat16_linear(h, self.weight_hh_l0)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1), (h, c)
''',
    "Bfloat16GRU": '''
class Bfloat16GRU(nn.GRU):
    """nn.GRU whose two products are of bfloat16 values; its own has one dtype for factors and states."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(len(x), self.hidden_size)
        states = []
        for inputs in bfloat16_linear(x, self.weight_ih_l0, self.bias_ih_l0).unbind(1):
            xr, xz, xn = inputs.chunk(3, dim=1)
            hr, hz, hn = bfloat16_linear(h, self.weight_hh_l0).chunk(3, dim=1)
            z = torch.sigmoid(xz + hz)
            h = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h
            states.append(h)
        return torch.stack(states, dim=1), h
''',
}
HELPERS["Bfloat16Conv1d"] = (
    HELPERS["Bfloat16Conv2d"].replace("Conv2d", "Conv1d").replace("view(-1, 1, 1)", "view(-1, 1)")
)
FUSED = {
    "bfloat16_attention": '''
def bfloat16_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """F.scaled_dot_product_attention of bfloat16 values by its fused kernel; its scores stay float32."""
    q, k, v = to_bfloat16(q), to_bfloat16(k), to_bfloat16(v)
    return to_float32(F.scaled_dot_product_attention(q, k, v, is_causal=causal))
''',
}
"""Instead of those above, of the same names: of products the scores alone are left as they are, for they never leave the kernel."""
