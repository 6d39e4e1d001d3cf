"""Faults of the forward pass."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from harness.check import changes, written
from harness.check.edits import Edit, Helper, Needs, Plan, Plans, each, head, plans, same
from harness.check.mutant import Mutant, has, nodes
from harness.check.written import alike, exchanged
from harness.graph import Node, Program
from harness.ops.activation import Elu, Gelu, LeakyRelu, Relu, Selu, Sigmoid, Silu, Softmax, Softplus, Tanh
from harness.ops.attention import Attention
from harness.ops.base import Op
from harness.ops.convolution import Conv2d, Convolution, ConvTranspose2d
from harness.ops.linear import Add, Flatten, Reshape
from harness.ops.normalisation import BatchNorm, LayerNorm
from harness.ops.pooling import AvgPool, AvgPool2d, MaxPool, MaxPool2d


def _flattens_images(program: Program) -> bool:
    shapes = [node.input_shapes[0] for node in nodes(program) if isinstance(node.op, Flatten)]
    return any(len(shape) == 3 and shape[-1] > 1 and max(shape[:-1]) > 1 for shape in shapes)  # noqa: PLR2004 - H W C


def _padding_on_the_wrong_side(node: Node) -> Op | None:
    pads = node.op.padding  # type: ignore[attr-defined]
    turned = tuple((after, before) for before, after in pads)
    return None if turned == pads else node.op.model_copy(update={"padding": turned})


def _dilated(node: Node) -> Op | None:
    op = node.op
    assert isinstance(op, Convolution)  # noqa: S101 - tells the type checker which op it is
    spread = tuple((k - 1) * d for k, d in zip(op.kernel, op.dilation, strict=True))
    if set(op.stride) != {1} or not any(spread) or any(sum(p) != s for p, s in zip(op.pads, spread, strict=True)):
        return None
    dilation = tuple(2 * d for d in op.dilation)
    pads = tuple((2 * before, 2 * after) for before, after in op.pads)
    return op.model_copy(update={"dilation": dilation, "padding": pads})


def _identity(_node: Node) -> Op:
    # A leaky ReLU of slope 1 is nothing at all, and keeps the node and its name.
    return LeakyRelu(slope=1.0)


def _pool(into: type[Op], keep: tuple[str, ...] = ("window", "stride", "padding")) -> Callable[[Node], Op]:
    return lambda node: into(**{name: getattr(node.op, name) for name in keep})


def _without_shortcut(node: Node) -> Node | None:
    if not isinstance(node.op, Add) or len(node.inputs) != 2:  # noqa: PLR2004 - a residual's
        return None
    return replace(node, op=_identity(node), inputs=node.inputs[1:], input_shapes=node.input_shapes[1:])


def _pairs(torch: tuple[str, str], tensorflow: tuple[str, str], jax: tuple[str, str]) -> dict[str, tuple[Plan, ...]]:
    return each(Edit(*torch), Edit(*tensorflow), Edit(*jax))


LAYER_NORMS = {
    "torch": Edit("nn.LayerNorm($$given)", "WrittenLayerNorm($given)"),
    "tensorflow": Edit("keras.layers.LayerNormalization($$given)", "WrittenLayerNorm($given)"),
    "jax": Edit("nnx.LayerNorm($$given)", "WrittenLayerNorm($given)"),
}


LSTMS = {
    "torch": Edit("nn.LSTM($$given)", "WrittenLSTM($given)"),
    "tensorflow": Edit("keras.layers.LSTM($$given)", "WrittenLSTM($given)"),
    "jax": Edit("nnx.OptimizedLSTMCell($$given)", "WrittenLSTM($given)"),
}


GRUS = {
    "torch": Edit("nn.GRU($$given)", "WrittenGRU($given)"),
    "jax": Edit("nnx.GRUCell($$given)", "WrittenGRU($given)"),
}


def _lstm(lines: Mapping[str, str]) -> Plans:
    """The same line of an LSTM's step in every backend: `S` stands for its sigmoid and `T` for its tanh."""
    names = {
        "torch": ("torch.sigmoid", "torch.tanh"),
        "tensorflow": ("tf.sigmoid", "tf.tanh"),
        "jax": ("nnx.sigmoid", "jnp.tanh"),
    }
    spelled = {
        backend: {
            old.replace("S(", f"{s}(").replace("T(", f"{t}("): new.replace("S(", f"{s}(").replace("T(", f"{t}(")
            for old, new in lines.items()
        }
        for backend, (s, t) in names.items()
    }
    return exchanged(written.LSTM, spelled, LSTMS)


SDPA = "F.scaled_dot_product_attention(q, k, v, is_causal=self.causal"
SQUARE = "torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device)"


def _sdpa(old: str, new: str, given: str) -> tuple[Plan, ...]:
    """PyTorch's attention: a line of the rule where it is written out, an argument where it is fused."""
    own = SDPA.rpartition(",")[0] if "is_causal" in given else SDPA
    return plans(Edit(old, new), Edit(f"{SDPA})", f"{own}, {given})"))


def _causal(program: Program) -> bool:
    """Whether any attention has a causal mask."""
    return any(isinstance(node.op, Attention) and node.op.causal for node in nodes(program))


MUTANTS = (
    Mutant(
        "padding on the wrong side",
        "the zeros of an uneven padding before the image, as padding=1 with a stride has them, where they belong after it",
        "forward",
        changes.ops(Convolution)(_padding_on_the_wrong_side),
    ),
    Mutant(
        "transposed convolution one pixel off",
        "a transposed convolution's odd row cropped before the image, as with padding=1 and output_padding=1, where it belongs "
        "after it",
        "forward",
        changes.ops(ConvTranspose2d)(_padding_on_the_wrong_side),
    ),
    Mutant(
        "transposed kernel flipped",
        "a transposed convolution whose kernel is flipped, as nnx.ConvTranspose has it without transpose_kernel=True",
        "forward",
        # With an even crop that is the image flipped before and after.
        edits={
            "torch": plans(
                Edit("self.<plain_deconv>(x)", "self.<plain_deconv>(x.flip(2, 3)).flip(2, 3)"),
                Edit(
                    "self.<plain_deconv>($x.permute(0, 3, 1, 2))",
                    "self.<plain_deconv>($x.permute(0, 3, 1, 2).flip(2, 3)).flip(2, 3)",
                ),
            ),
            "tensorflow": plans(
                Edit("self.<plain_deconv>($x)", "self.<plain_deconv>($x[:, ::-1, ::-1])[:, ::-1, ::-1]")
            ),
            "jax": plans(Edit("self.<plain_deconv>($x)", "self.<plain_deconv>($x[:, ::-1, ::-1])[:, ::-1, ::-1]")),
        },
    ),
    Mutant(
        "pool padding on the wrong side",
        "a pool's uneven padding after the image where it belongs before it",
        "forward",
        changes.ops(MaxPool, AvgPool)(_padding_on_the_wrong_side),
    ),
    Mutant(
        "image turned on its side",
        "height and width of the image swapped",
        "forward",
        edits={
            "torch": plans(Edit("<image>.permute(0, 3, 1, 2)", "<image>.permute(0, 3, 2, 1)")),
            "tensorflow": plans(
                Edit("self.<image_conv>(<image>)", "self.<image_conv>(tf.transpose(<image>, (0, 2, 1, 3)))")
            ),
            "jax": plans(Edit("self.<image_conv>(<image>)", "self.<image_conv>(<image>.swapaxes(1, 2))")),
        },
    ),
    Mutant(
        "kernel turned on its side",
        "height and width of a convolution's kernel swapped",
        "forward",
        edits={
            "torch": plans(Edit('<square_conv>.weight", (3, 2, 0, 1)', '<square_conv>.weight", (3, 2, 1, 0)')),
            "tensorflow": plans(Edit('<square_conv>/kernel", (0, 1, 2, 3)', '<square_conv>/kernel", (1, 0, 2, 3)')),
            "jax": plans(Edit('<square_conv>.kernel", (0, 1, 2, 3)', '<square_conv>.kernel", (1, 0, 2, 3)')),
        },
    ),
    Mutant(
        "kernel flipped",
        "a convolution's kernel flipped, as mathematics and not as networks define convolution",
        "forward",
        # With even padding and stride 1 that is the image flipped before and after.
        edits={
            "torch": plans(
                Edit("self.<plain_conv>(x)", "self.<plain_conv>(x.flip(2, 3)).flip(2, 3)"),
                Edit(
                    "self.<plain_conv>($x.permute(0, 3, 1, 2))",
                    "self.<plain_conv>($x.permute(0, 3, 1, 2).flip(2, 3)).flip(2, 3)",
                ),
            ),
            "tensorflow": plans(Edit("self.<plain_conv>($x)", "self.<plain_conv>($x[:, ::-1, ::-1])[:, ::-1, ::-1]")),
            "jax": plans(Edit("self.<plain_conv>($x)", "self.<plain_conv>($x[:, ::-1, ::-1])[:, ::-1, ::-1]")),
        },
    ),
    Mutant(
        "square kernel transposed",
        "a square kernel loaded without the transpose that its framework needs",
        "forward",
        edits={
            "torch": plans(
                Edit('query.weight", (1, 0)', 'query.weight", (0, 1)'),
                Edit('<square>.weight", (1, 0)', '<square>.weight", (0, 1)'),
            ),
            "tensorflow": plans(
                Edit('query/kernel", (0, 1)', 'query/kernel", (1, 0)'),
                Edit('<square>/kernel", (0, 1)', '<square>/kernel", (1, 0)'),
            ),
            "jax": plans(
                Edit('query.kernel", (0, 1)', 'query.kernel", (1, 0)'),
                Edit('<square>.kernel", (0, 1)', '<square>.kernel", (1, 0)'),
            ),
        },
    ),
    Mutant(
        "dilated convolution",
        "a convolution whose taps are two pixels apart",
        "forward",
        changes.ops(Conv2d)(_dilated),
    ),
    Mutant(
        "dropped activation",
        "an activation left out",
        "forward",
        changes.ops(Relu, LeakyRelu, Elu, Selu, Gelu, Silu, Sigmoid, Tanh, Softplus)(_identity),
    ),
    Mutant(
        "leaking activation",
        "a leak of 0.01 in a ReLU that has none",
        "forward",
        changes.ops(Relu)(lambda _node: LeakyRelu(slope=0.01)),
    ),
    Mutant(
        "slope of another framework",
        "a leaky ReLU with Keras' default slope of 0.3",
        "forward",
        changes.fields(LeakyRelu, slope=0.3),
    ),
    Mutant(
        "slope of PyTorch",
        "a leaky ReLU with the default slope of PyTorch and JAX, 0.01",
        "forward",
        changes.fields(LeakyRelu, slope=0.01),
    ),
    Mutant(
        "GELU by tanh",
        "GELU's approximation by tanh in place of the error function",
        "forward",
        changes.fields(Gelu, form="tanh"),
    ),
    Mutant("SiLU for GELU", "SiLU where GELU belongs", "forward", changes.ops(Gelu)(lambda _node: Silu())),
    Mutant(
        "tanh for sigmoid",
        "a network that ends in tanh in place of a sigmoid",
        "forward",
        changes.ops(Sigmoid)(lambda _node: Tanh()),
    ),
    Mutant(
        "average for maximum",
        "average pooling in place of max pooling",
        "forward",
        changes.ops(MaxPool2d)(_pool(AvgPool2d)),
    ),
    Mutant(
        "maximum for average",
        "max pooling in place of average pooling",
        "forward",
        changes.ops(AvgPool2d)(_pool(MaxPool2d)),
        where=lambda program: any(isinstance(n.op, AvgPool2d) and not any(map(any, n.op.pads)) for n in nodes(program)),
    ),
    Mutant(
        "padding counted",
        "an average pool that counts the zeros of its padding",
        "forward",
        changes.ops(AvgPool2d)(
            lambda node: (
                node.op.model_copy(update={"count_padding": True})
                if any(map(any, node.op.pads)) and not node.op.count_padding  # type: ignore[attr-defined]
                else None
            )
        ),
    ),
    Mutant(
        "padding left out of the mean",
        "an average pool that leaves the zeros of its padding out of the mean, as Keras does",
        "forward",
        changes.ops(AvgPool2d)(
            lambda node: (
                node.op.model_copy(update={"count_padding": False})
                if any(map(any, node.op.pads)) and node.op.count_padding  # type: ignore[attr-defined]
                else None
            )
        ),
    ),
    Mutant(
        "maximum with zeros",
        "a max pool whose padding is zeros, which win over negative values",
        "forward",
        edits={
            "torch": plans(Edit('value=float("-inf")', "value=0.0")),
            "tensorflow": plans(
                Edit(
                    "tf.nn.max_pool2d($x, ($$window), ($$stride), [[0, 0], $$pads])",
                    'tf.nn.max_pool2d(tf.pad($x, [[0, 0], $pads]), ($window), ($stride), "VALID")',
                )
            ),
            "jax": plans(
                Edit(
                    "nnx.max_pool($x, ($$window), strides=($$stride), padding=($$pads))",
                    "nnx.max_pool(jnp.pad($x, ((0, 0), $pads, (0, 0))), ($window), strides=($stride))",
                )
            ),
        },
    ),
    Mutant(
        "flattened channels first",
        "an image flattened with its channels slowest",
        "forward",
        edits={
            "torch": plans(Edit("$x.permute(0, 2, 3, 1).flatten(1)", "$x.flatten(1)")),
            "tensorflow": plans(
                Edit("x = tf.reshape(x, (-1, $size))", "x = tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (-1, $size))")
            ),
            "jax": plans(Edit("x.reshape(len(x), -1)", "x.transpose(0, 3, 1, 2).reshape(len(x), -1)")),
        },
        where=_flattens_images,
    ),
    Mutant(
        "reshaped channels first",
        "a vector folded into an image with its channels slowest",
        "forward",
        edits={
            "torch": plans(Edit("$x.reshape(-1, $h, $w, $c)", "$x.reshape(-1, $c, $h, $w).permute(0, 2, 3, 1)")),
            "tensorflow": plans(
                Edit("tf.reshape($x, (-1, $h, $w, $c))", "tf.transpose(tf.reshape($x, (-1, $c, $h, $w)), (0, 2, 3, 1))")
            ),
            "jax": plans(Edit("$x.reshape(-1, $h, $w, $c)", "$x.reshape(-1, $c, $h, $w).transpose(0, 2, 3, 1)")),
        },
    ),
    Mutant(
        "read column by column",
        "an image read column by column where rows are the time steps",
        "forward",
        edits={
            "torch": plans(Edit("<sequence>.reshape(-1, $t, $c)", "<sequence>.reshape(-1, $t, $c).transpose(1, 2)")),
            "tensorflow": plans(
                Edit(
                    "tf.reshape(<sequence>, (-1, $t, $c))",
                    "tf.transpose(tf.reshape(<sequence>, (-1, $t, $c)), (0, 2, 1))",
                )
            ),
            "jax": plans(Edit("<sequence>.reshape(-1, $t, $c)", "<sequence>.reshape(-1, $t, $c).swapaxes(1, 2)")),
        },
        where=has(Reshape),
    ),
    Mutant(
        "normalisation epsilon of Keras",
        "Keras' default of 1e-3 as the epsilon of a normalisation",
        "forward",
        changes.fields(epsilon=1e-3),
    ),
    Mutant(
        "normalisation epsilon of Flax",
        "Flax's default of 1e-6 as the epsilon of a normalisation",
        "forward",
        changes.fields(epsilon=1e-6),
        note="A difference of 9e-6 against a variance near 1: a few units in float32's last places.",
    ),
    Mutant(
        "epsilon outside the norm's root",
        "layer normalisation's epsilon added to the standard deviation in place of the variance",
        "forward",
        edits=exchanged(
            written.LAYER_NORM,
            {
                "torch": {"torch.sqrt(variance + self.eps)": "(torch.sqrt(variance) + self.eps)"},
                "tensorflow": {"tf.sqrt(variance + self.epsilon)": "(tf.sqrt(variance) + self.epsilon)"},
                "jax": {"jnp.sqrt(variance + self.epsilon)": "(jnp.sqrt(variance) + self.epsilon)"},
            },
            LAYER_NORMS,
        ),
    ),
    Mutant(
        "unbiased layer normalisation",
        "layer normalisation by the unbiased variance",
        "forward",
        edits=exchanged(
            written.LAYER_NORM, alike(written.LAYER_NORM, {"/ x.shape[-1]": "/ (x.shape[-1] - 1)"}), LAYER_NORMS
        ),
    ),
    Mutant(
        "layer normalisation over all axes",
        "layer normalisation over the positions too, not over the channels alone",
        "forward",
        edits=exchanged(
            written.LAYER_NORM,
            {
                "torch": {
                    "x.mean(-1, ": "x.mean(tuple(range(1, x.ndim)), ",
                    ".sum(-1, ": ".sum(tuple(range(1, x.ndim)), ",
                    "/ x.shape[-1]": "/ x[0].numel()",
                },
                "tensorflow": {
                    "tf.reduce_mean(x, -1, ": "tf.reduce_mean(x, list(range(1, len(x.shape))), ",
                    "tf.square(centred), -1, ": "tf.square(centred), list(range(1, len(x.shape))), ",
                    "/ x.shape[-1]": "/ float(np.prod(x.shape[1:]))",
                },
                "jax": {
                    "x.mean(-1, ": "x.mean(tuple(range(1, x.ndim)), ",
                    ".sum(-1, ": ".sum(tuple(range(1, x.ndim)), ",
                    "/ x.shape[-1]": "/ x[0].size",
                },
            },
            LAYER_NORMS,
        ),
        where=lambda program: any(isinstance(n.op, LayerNorm) and len(n.shape) > 1 for n in nodes(program)),
    ),
    Mutant(
        "running statistics in training",
        "batch normalisation by its running statistics in training",
        "forward",
        edits={
            "torch": plans(
                Edit(
                    "scale = torch.rsqrt(variance + self.eps)",
                    "mean, scale = self.running_mean.clone(), torch.rsqrt(self.running_var + self.eps)",
                )
            ),
            "tensorflow": plans(Edit("training=training)", "training=False)", everywhere=True)),
            "jax": plans(
                Edit("nnx.BatchNorm($$given)", "nnx.BatchNorm($given, use_running_average=True)", everywhere=True)
            ),
        },
        where=has(BatchNorm),
    ),
    Mutant(
        "batch statistics in evaluation",
        "batch normalisation by the batch's own statistics in evaluation too",
        "forward",
        edits={
            "torch": plans(
                Edit(
                    "return super().forward(x)",
                    "return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)",
                )
            ),
            "tensorflow": plans(Edit("(x, training=training)", "(x, training=True)", everywhere=True)),
            "jax": plans(Edit("self.<norm>($x)", "self.<norm>($x, use_running_average=False)")),
        },
        where=has(BatchNorm),
        note="Training is as it should be: only a forward pass in evaluation mode shows it.",
    ),
    Mutant(
        "LSTM gates swapped",
        "an LSTM's input and forget gates swapped, f i g o for i f g o",
        "forward",
        edits=_lstm({"i, f, g, o = ": "f, i, g, o = "}),
    ),
    Mutant(
        "LSTM gates in another order",
        "an LSTM's cell and output gates swapped, i f o g for i f g o",
        "forward",
        edits=_lstm({"i, f, g, o = ": "i, f, o, g = "}),
    ),
    Mutant(
        "LSTM gates of TensorFlow 1",
        "an LSTM's gates in the order of TensorFlow 1's BasicLSTMCell, i g f o for i f g o",
        "forward",
        edits=_lstm({"i, f, g, o = ": "i, g, f, o = "}),
    ),
    Mutant(
        "LSTM gates of ONNX",
        "an LSTM's gates in the order of ONNX, i o f g for i f g o",
        "forward",
        edits=_lstm({"i, f, g, o = ": "i, o, f, g = "}),
    ),
    Mutant(
        "GRU gates in Keras' order",
        "a GRU's gates in the order of Keras, z r n for PyTorch's r z n",
        "forward",
        edits={
            **exchanged(
                written.GRU,
                alike(written.GRU, {"xr, xz, xn = ": "xz, xr, xn = ", "hr, hz, hn = ": "hz, hr, hn = "}),
                GRUS,
            ),
            "tensorflow": plans((Edit("xr, xz, xn = ", "xz, xr, xn = "), Edit("hr, hz, hn = ", "hz, hr, hn = "))),
        },
    ),
    Mutant(
        "recurrence along the batch",
        "a recurrent layer that runs along the batch, as nn.LSTM and nn.GRU do without batch_first=True",
        "forward",
        edits={
            "torch": plans(
                Edit("self.<recurrent> = nn.$kind($$given, batch_first=True)", "self.<recurrent> = nn.$kind($given)")
            ),
            "tensorflow": plans(
                (
                    Edit(
                        "self.<recurrent>($x)",
                        "tf.transpose(self.<recurrent>(tf.transpose($x, (1, 0, 2))), (1, 0, 2))[:, -1]",
                    ),
                    Edit('return_sequences=False, name="<recurrent>"', 'return_sequences=True, name="<recurrent>"'),
                ),
                (
                    Edit(
                        "self.<recurrent>($x)", "tf.transpose(self.<recurrent>(tf.transpose($x, (1, 0, 2))), (1, 0, 2))"
                    ),
                    Needs('return_sequences=True, name="<recurrent>"'),
                ),
            ),
            "jax": plans(
                Edit(
                    "self.<recurrent> = nnx.RNN($$given, rngs=False)",
                    "self.<recurrent> = nnx.RNN($given, rngs=False, time_major=True)",
                )
            ),
        },
    ),
    Mutant(
        "forget bias added again",
        "1 added to the forget gate in every step, besides the initial bias that has it",
        "forward",
        edits=_lstm({"S(f)": "S(f + 1)"}),
    ),
    Mutant(
        "hard sigmoid",
        "a piecewise linear sigmoid in an LSTM's gates, as in early Keras",
        "forward",
        edits={
            "torch": (
                (Helper(written.changed(written.LSTM["torch"], {"torch.sigmoid(": "F.hardsigmoid("})), LSTMS["torch"]),
            ),
            "tensorflow": plans(
                Edit("keras.layers.LSTM($$given)", 'keras.layers.LSTM($given, recurrent_activation="hard_sigmoid")')
            ),
            "jax": plans(
                Edit("nnx.OptimizedLSTMCell($$given)", "nnx.OptimizedLSTMCell($given, gate_fn=nnx.hard_sigmoid)")
            ),
        },
    ),
    Mutant(
        "cell without its tanh",
        "an LSTM whose output is not squashed",
        "forward",
        edits=_lstm({"S(o) * T(c)": "S(o) * c"}),
    ),
    Mutant(
        "update gate inverted",
        "a GRU whose update gate keeps what it should replace",
        "forward",
        edits={
            **exchanged(written.GRU, alike(written.GRU, {"(1 - z) * n + z * h": "z * n + (1 - z) * h"}), GRUS),
            "tensorflow": plans(Edit("(1 - z) * tf.tanh($$new) + z * h", "z * tf.tanh($new) + (1 - z) * h")),
        },
    ),
    Mutant(
        "reset before the product",
        "a GRU whose reset gate acts before the product with the state, as in Keras' reset_after=False",
        "forward",
        edits={
            **exchanged(
                written.GRU,
                {
                    "torch": {"r * hn": "F.linear(r * h, self.weight_hh_l0).chunk(3, dim=1)[2]"},
                    "jax": {"r * hn": "jnp.split(self.dense_h(r * h), 3, axis=-1)[2]"},
                },
                GRUS,
            ),
            "tensorflow": plans(
                Edit(
                    "tf.sigmoid(xr + hr) * hn",
                    "tf.split(tf.matmul(tf.sigmoid(xr + hr) * h, self.recurrent_kernel), 3, axis=-1)[2]",
                )
            ),
        },
    ),
    Mutant(
        "mean of states for the last",
        "the mean of a recurrent layer's states in place of the last",
        "forward",
        edits={
            "torch": plans(Edit("self.<recurrent>($x)[0][:, -1]", "self.<recurrent>($x)[0].mean(1)")),
            "tensorflow": plans(
                (
                    Edit("self.<recurrent>($x)", "tf.reduce_mean(self.<recurrent>($x), axis=1)"),
                    Edit('return_sequences=False, name="<recurrent>"', 'return_sequences=True, name="<recurrent>"'),
                )
            ),
            "jax": plans(Edit("self.<recurrent>($$given)[:, -1]", "self.<recurrent>($given).mean(axis=1)")),
        },
    ),
    Mutant(
        "sequence read backwards",
        "a sequence read from its end",
        "forward",
        edits=each(
            Edit("self.<recurrent>($x)", "self.<recurrent>($x.flip(1))"),
            Edit("self.<recurrent>($x)", "self.<recurrent>($x[:, ::-1])"),
            Edit("self.<recurrent>($x, $$given)", "self.<recurrent>($x[:, ::-1], $given)"),
        ),
    ),
    Mutant(
        "attention scale missing",
        "attention scores that are not divided by the root of the head's size",
        "forward",
        edits=same(Edit(" / math.sqrt(q.shape[-1])", ""))
        | {"torch": _sdpa(" / math.sqrt(q.shape[-1])", "", "scale=1.0")},
    ),
    Mutant(
        "attention scaled by all channels",
        "attention scores divided by the root of all channels, not of one head's",
        "forward",
        edits=same(Edit("math.sqrt(q.shape[-1])", "math.sqrt(q.shape[-1] * self.heads)"))
        | {
            "torch": _sdpa(
                "math.sqrt(q.shape[-1])",
                "math.sqrt(q.shape[-1] * self.heads)",
                "scale=(q.shape[-1] * self.heads) ** -0.5",
            )
        },
    ),
    Mutant(
        "attention mask inverted",
        "attention that sees the future and not the past",
        "forward",
        edits=_pairs(
            (".triu(1)", ".tril(-1)"),
            ("tf.linalg.band_part($$ones, -1, 0)", "tf.linalg.band_part($ones, 0, -1)"),
            ("jnp.tri(scores.shape[-1], dtype=bool)", "jnp.tri(scores.shape[-1], dtype=bool).T"),
        )
        | {"torch": _sdpa(".triu(1)", ".tril(-1)", f"attn_mask={SQUARE}.triu(), is_causal=False")},
        where=_causal,
    ),
    Mutant(
        "attention one step ahead",
        "a causal mask that lets each position see the next one",
        "forward",
        edits=_pairs(
            (".triu(1)", ".triu(2)"),
            ("tf.linalg.band_part($$ones, -1, 0)", "tf.linalg.band_part($ones, -1, 1)"),
            ("jnp.tri(scores.shape[-1], dtype=bool)", "jnp.tri(scores.shape[-1], k=1, dtype=bool)"),
        )
        | {"torch": _sdpa(".triu(1)", ".triu(2)", f"attn_mask={SQUARE}.tril(1), is_causal=False")},
        where=_causal,
    ),
    Mutant(
        "causal mask dropped",
        "attention without its causal mask",
        "forward",
        changes.ops(Attention)(
            lambda node: node.op.model_copy(update={"causal": False}) if node.op.causal else None  # type: ignore[attr-defined]
        ),
    ),
    Mutant(
        "softmax over the queries",
        "attention weights that sum to 1 over the queries, not the keys",
        "forward",
        edits={
            "torch": plans(
                Edit("scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),
                Edit(
                    f"{SDPA})",
                    "(q @ k.mT / q.shape[-1] ** 0.5).masked_fill("
                    f"~{SQUARE.replace('q.shape[-2], q.shape[-2]', 'q.shape[-2], k.shape[-2]')}.tril() & self.causal,"
                    ' float("-inf")).softmax(dim=-2) @ v',
                ),
            ),
            "tensorflow": plans(Edit("tf.nn.softmax(scores, axis=-1)", "tf.nn.softmax(scores, axis=-2)")),
            "jax": plans(Edit("nnx.softmax(scores, axis=-1)", "nnx.softmax(scores, axis=-2)")),
        },
    ),
    Mutant(
        "softmax over the batch",
        "a softmax over the batch, dim=0, where it belongs over the channels",
        "forward",
        edits={
            "torch": plans(Edit("F.softmax($$x, dim=-1)", "F.softmax($x, dim=0)")),
            "tensorflow": plans(Edit("tf.nn.softmax($$x, axis=-1)", "tf.nn.softmax($x, axis=0)")),
            "jax": plans(Edit("nnx.softmax($$x, axis=-1)", "nnx.softmax($x, axis=0)")),
        },
        # Attention has a softmax of its own.
        where=lambda program: has(Softmax)(program) and not has(Attention)(program),
    ),
    Mutant(
        "queries for keys",
        "queries and keys swapped",
        "forward",
        edits=_pairs(
            ("q @ k.mT", "k @ q.mT"),
            ("tf.matmul(q, k, transpose_b=True)", "tf.matmul(k, q, transpose_b=True)"),
            ('jnp.einsum("nqhd,nkhd->nhqk", q, k)', 'jnp.einsum("nqhd,nkhd->nhqk", k, q)'),
        )
        | {"torch": plans(Edit("q @ k.mT", "k @ q.mT"), Edit(f"{SDPA})", f"{SDPA.replace('q, k, v', 'k, q, v')})"))},
    ),
    Mutant(
        "heads interleaved",
        "attention heads that take every so many-th channel, not neighbouring ones",
        "forward",
        edits=_pairs(
            (
                "x.unflatten(-1, (self.heads, -1)).transpose(1, 2)",
                "x.unflatten(-1, (-1, self.heads)).permute(0, 3, 1, 2)",
            ),
            (
                "tf.reshape(x, (-1, x.shape[1], self.heads, x.shape[2] // self.heads))",
                "tf.einsum('ntch->nthc', tf.reshape(x, (-1, x.shape[1], x.shape[2] // self.heads, self.heads)))",
            ),
            ("x.reshape(*x.shape[:2], self.heads, -1)", "x.reshape(*x.shape[:2], -1, self.heads).swapaxes(2, 3)"),
        ),
    ),
    Mutant(
        "attention weights not dropped",
        "attention whose weights see no dropout",
        "forward",
        edits=same(Edit("weights * mask", "weights * 1"), Edit("weights * dropout_mask", "weights * 1")),
    ),
    Mutant(
        "mask of another layer",
        "dropout by the mask of another layer or call",
        "forward",
        edits=same(
            (
                Edit('$x * masks["<twin>"]', '$x * masks["_"]'),
                Edit('$x * masks["<other_twin>"]', '$x * masks["<twin>"]'),
                Edit('masks["_"]', 'masks["<other_twin>"]'),
            ),
            Edit('["masks"]["<other_scope>"]', '["masks"]["<scope>"]'),
        ),
        where=lambda program: (
            any(
                list(shapes.values()).count(shape) > 1
                for shapes in ({name: shape for name, (shape, _) in m.items()} for m in program.masks.values())
                for shape in shapes.values()
            )
            or len(program.masks) > 1
        ),
    ),
    Mutant(
        "positions shifted by one",
        "position vectors one place late",
        "forward",
        edits={
            "torch": plans(Edit("$x + self.<positions>", "$x + self.<positions>.roll(1, 0)")),
            "tensorflow": plans(Edit("x + self.embedding", "x + tf.roll(self.embedding, 1, axis=0)")),
            "jax": plans(Edit("$x + self.<positions>[...]", "$x + jnp.roll(self.<positions>[...], 1, axis=0)")),
        },
    ),
    Mutant(
        "embedding scaled",
        "an embedding multiplied by the root of its width",
        "forward",
        edits=same(Edit("self.<embedding>(<tokens>)", "self.<embedding>(<tokens>) * <width>**0.5")),
    ),
    Mutant(
        "shortcut dropped",
        "a residual connection left out",
        "forward",
        changes.nodes(_without_shortcut),
    ),
    Mutant(
        "bias counted twice",
        "the last layer's bias added twice",
        "forward",
        edits=head(
            "offset_head",
            "self.<head>($x) + self.<head>.bias",
            "self.<head>($x) + self.<head>.bias",
            "self.<head>($x) + self.<head>.bias[...]",
        ),
    ),
    Mutant(
        "rounded to bfloat16",
        "the input of a matrix product rounded to bfloat16",
        "forward",
        edits=head(
            "fed_head",
            "self.<head>($x.bfloat16().to($x.dtype))",
            "self.<head>(tf.cast(tf.cast($x, tf.bfloat16), $x.dtype))",
            "self.<head>($x.astype(jnp.bfloat16).astype($x.dtype))",
        ),
    ),
    Mutant(
        "rounded as in TF32",
        "the input of a matrix product rounded to TF32's eleven bits",
        "forward",
        # Veltkamp's splitting: in float32 what is left has 24 - 13 bits.
        edits=head(
            "fed_head",
            "self.<head>(8193 * $x - (8193 * $x - $x))",
            "self.<head>(8193 * $x - (8193 * $x - $x))",
            "self.<head>(8193 * $x - (8193 * $x - $x))",
        ),
        precisions=("float32",),
        note="In float64 the same arithmetic keeps 40 bits, which is no TF32.",
    ),
    Mutant(
        "float32 inside float64",
        "a value rounded to float32 in the middle of a float64 program",
        "forward",
        edits=head(
            "fed_head",
            "self.<head>($x.float().double())",
            "self.<head>(tf.cast(tf.cast($x, tf.float32), tf.float64))",
            "self.<head>($x.astype(jnp.float32).astype(jnp.float64))",
        ),
        precisions=("float64",),
        note="In a float32 program every value is rounded to float32.",
    ),
)
