"""Rules that a framework keeps inside, written out so that a fault can be planted in one of their lines.

Each text is a class that does what the framework's own does, to rounding (tests say so), until a line is changed.
"""

from collections.abc import Mapping

from harness.check.edits import Edit, Helper, Plans

TORCH_ADAM = '''
class WrittenAdam(torch.optim.{base}):
    """torch.optim.{base}, its rule written out."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            rate, (b1, b2), epsilon = group["lr"], group["betas"], group["eps"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                t = state["step"].item()
                m = state["exp_avg"].lerp_(p.grad, 1 - b1)
                v = state["exp_avg_sq"].lerp_(p.grad.square(), 1 - b2)
                p.mul_(1 - rate * group["weight_decay"])
                c1, c2 = 1 - b1**t, 1 - b2**t
                p.sub_(rate * m / c1 / ((v / c2).sqrt() + epsilon))
'''

LAYER_NORM = {
    "torch": '''
class WrittenLayerNorm(nn.LayerNorm):
    """nn.LayerNorm, its rule written out."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().sum(-1, keepdim=True) / x.shape[-1]
        return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias
''',
    "tensorflow": '''
class WrittenLayerNorm(keras.layers.LayerNormalization):
    """keras.layers.LayerNormalization, its rule written out."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_sum(tf.square(centred), -1, keepdims=True) / x.shape[-1]
        return centred / tf.sqrt(variance + self.epsilon) * self.gamma + self.beta
''',
    "jax": '''
class WrittenLayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm, its rule written out."""

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).sum(-1, keepdims=True) / x.shape[-1]
        return centred / jnp.sqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]
''',
}

BATCH_NORM = {
    "tensorflow": '''
class WrittenBatchNorm(keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization that may correct the variance that it keeps."""

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        kept = self.momentum * tf.identity(self.moving_variance)
        y = super().call(x, training=training)
        if training:
            count = tf.cast(tf.size(x) // x.shape[-1], x.dtype)
            new = tf.identity(self.moving_variance) - kept
            self.moving_variance.assign(kept + new * count / count)
        return y
''',
    "jax": '''
class WrittenBatchNorm(nnx.BatchNorm):
    """nnx.BatchNorm that may correct the variance that it keeps."""

    def __call__(self, x: Array) -> Array:
        if self.use_running_average:
            return super().__call__(x)
        kept = self.momentum * self.var[...]
        y = super().__call__(x)
        count = x.size // x.shape[-1]
        new = self.var[...] - kept
        self.var[...] = kept + new * count / count
        return y
''',
}

LSTM = {
    "torch": '''
class WrittenLSTM(nn.LSTM):
    """nn.LSTM, its steps written out."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = c = x.new_zeros(len(x), self.hidden_size)
        states = []
        for inputs in F.linear(x, self.weight_ih_l0, self.bias_ih_l0).unbind(1):
            i, f, g, o = (inputs + F.linear(h, self.weight_hh_l0)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1), (h, c)
''',
    "tensorflow": '''
class WrittenLSTM(keras.layers.LSTM):
    """keras.layers.LSTM, its steps written out."""

    def call(
        self, sequences: tf.Tensor, initial_state: None = None, mask: None = None, training: bool = False
    ) -> tf.Tensor:
        x = sequences
        h = c = tf.zeros((tf.shape(x)[0], self.units), dtype=x.dtype)
        states = []
        for inputs in tf.unstack(keras.ops.matmul(x, self.cell.kernel) + self.cell.bias, axis=1):
            gates = inputs + tf.matmul(h, self.cell.recurrent_kernel)
            i, f, g, o = tf.split(gates, 4, axis=-1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
            states.append(h)
        return tf.stack(states, axis=1) if self.return_sequences else h
''',
    "jax": '''
class WrittenLSTM(nnx.OptimizedLSTMCell):
    """nnx.OptimizedLSTMCell, its step written out."""

    def __call__(self, carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
        c, h = carry
        i, f, g, o = jnp.split(self.dense_i(inputs) + self.dense_h(h), 4, axis=-1)
        c = nnx.sigmoid(f) * c + nnx.sigmoid(i) * jnp.tanh(g)
        h = nnx.sigmoid(o) * jnp.tanh(c)
        return (c, h), h
''',
}

GRU = {
    "torch": '''
class WrittenGRU(nn.GRU):
    """nn.GRU, its steps written out."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(len(x), self.hidden_size)
        states = []
        for inputs in F.linear(x, self.weight_ih_l0, self.bias_ih_l0).unbind(1):
            xr, xz, xn = inputs.chunk(3, dim=1)
            hr, hz, hn = F.linear(h, self.weight_hh_l0).chunk(3, dim=1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
            h = (1 - z) * n + z * h
            states.append(h)
        return torch.stack(states, dim=1), h
''',
    "jax": '''
class WrittenGRU(nnx.GRUCell):
    """nnx.GRUCell, its step written out."""

    def __call__(self, h: Array, inputs: Array) -> tuple[Array, Array]:
        xr, xz, xn = jnp.split(self.dense_i(inputs), 3, axis=-1)
        hr, hz, hn = jnp.split(self.dense_h(h), 3, axis=-1)
        r, z = nnx.sigmoid(xr + hr), nnx.sigmoid(xz + hz)
        n = jnp.tanh(xn + r * hn)
        h = (1 - z) * n + z * h
        return h, h
''',
}


def changed(text: str, lines: Mapping[str, str]) -> str:
    """A text with pieces exchanged.

    >>> changed("a = b + c", {"b": "2 * b"})
    'a = 2 * b + c'
    """
    for old, new in lines.items():
        if old not in text:
            raise ValueError(f"the written-out rule has no '{old}':\n{text}")
        text = text.replace(old, new)
    return text


def exchanged(texts: Mapping[str, str], lines: Mapping[str, Mapping[str, str]], uses: Mapping[str, Edit]) -> Plans:
    """A class that is written out with some of its lines changed, and used in place of the framework's.

    Where a program has the same rule written out already, its own lines are changed.
    """
    return {
        b: (
            (Helper(changed(texts[b], lines[b])), uses[b]),
            *((tuple(Edit(old, new) for old, new in lines[b].items()),) if lines[b] else ()),
        )
        for b in texts
    }


def alike(texts: Mapping[str, str], lines: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """The same lines for every backend's text."""
    return dict.fromkeys(texts, lines)
