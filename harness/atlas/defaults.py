"""The frameworks' defaults that can be planted, each as a table: backend -> how it is left to it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from harness.atlas.plants import (
    Change,
    Draft,
    Edit,
    Make,
    Plant,
    Refused,
    both,
    changed,
    definition,
    edited,
    learns,
    nodes,
    ops,
    optimizers,
    own,
    slots,
    updates,
)
from harness.graph import Node, Program, Update
from harness.initializers import GlorotUniform, InitializerKind, LecunNormal, Normal, Orthogonal, Uniform, Zeros
from harness.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from harness.ops.activation import Gelu
from harness.ops.base import Pads, Shape, explicit_pads
from harness.ops.convolution import Convolution, ConvTranspose2d
from harness.ops.pooling import Pool
from harness.ops.recurrent import Recurrent
from harness.optimizers import AdamW, Constant, Cosine, Schedule, Step

Plants = dict[str, Plant]
Array = np.ndarray[Any, np.dtype[Any]]

CONVOLUTIONS = ("conv1d", "conv2d")
MAX_POOLS = ("max_pool1d", "max_pool2d")
AVG_POOLS = ("avg_pool1d", "avg_pool2d")


def everywhere(default: str, make: Make) -> Plants:
    """The same default in all three."""
    return {backend: Plant(default, make) for backend in ("torch", "tensorflow", "jax")}


def by_value(what: str, kinds: tuple[str, ...], name: str, values: Mapping[str, object]) -> Plants:
    """A field of some ops, each framework with its own value."""

    def to(value: object) -> Change:
        return ops(kinds, lambda _node: {name: value})

    return {backend: Plant(f"{what} {value}", changed(to(value))) for backend, value in values.items()}


# Layouts and shapes


def square_kernels(given: Draft) -> Draft:
    """PyTorch's weight is outputs × inputs: a square kernel can be copied untransposed, and nothing says so."""
    source = given.source
    for name, parameter in given.program.parameters.items():
        if parameter.axes == "IO" and parameter.shape == parameter.shape[::-1]:
            path = slots(given)[name].path
            source = edited(Edit(rf'("{name}": \(\s*"{path}",\s*)\(1, 0\)', r"\1(0, 1)"))(
                replace(given, source=source)
            ).source
    return replace(given, source=source)


KERNELS = {"torch": Plant("outputs × inputs: a square kernel copied as it is", square_kernels)}

FLATTEN = {
    "torch": Plant(
        "channels slowest",
        edited(
            Edit(r"\.permute\(0, 2, 3, 1\)(\s*)\.flatten\(1\)", r"\1.flatten(1)"),
            Edit(r"\.transpose\(1, 2\)(\s*)\.flatten\(1\)", r"\1.flatten(1)"),
        ),
    )
}


def _even(pads: Pads) -> Pads:
    """The pads of a framework that pads both sides alike, where that gives as many windows."""
    return tuple((-(-sum(side) // 2), -(-sum(side) // 2)) for side in pads)


def _even_convolution(node: Node) -> Mapping[str, object]:
    assert isinstance(node.op, Convolution)
    return {"padding": _even(node.op.pads)}


def _even_pool(node: Node) -> Mapping[str, object]:
    assert isinstance(node.op, Pool)
    return {"padding": _even(node.op.pads)}


SAME = {"torch": Plant("padding on both sides alike", changed(ops(CONVOLUTIONS, _even_convolution)))}
PADDED_MAX = {"torch": Plant("padding on both sides alike", changed(ops(MAX_POOLS, _even_pool)))}


def _padding(padding: str) -> Change:
    def fields(node: Node) -> Mapping[str, object]:
        op = node.op
        assert isinstance(op, Convolution)
        return {"padding": explicit_pads(padding, node.input_shapes[0][:-1], op.kernel, op.stride, op.dilation)}

    return ops(CONVOLUTIONS, fields)


DEFAULT_PADDING = {
    "torch": Plant("none", changed(_padding("valid"))),
    "tensorflow": Plant('"valid"', changed(_padding("valid"))),
    "jax": Plant('"SAME"', changed(_padding("same"))),
}


def _crop_as_torch(node: Node) -> Mapping[str, object]:
    op = node.op
    assert isinstance(op, ConvTranspose2d)
    # padding=p crops p on both sides, output_padding gives some of the far side back.
    return {"padding": tuple((-(-(a + b) // 2), (a + b) // 2) for a, b in op.crop)}


CROP = {
    "torch": Plant(
        "`padding` and `output_padding`: the odd one before", changed(ops(("conv_transpose2d",), _crop_as_torch))
    )
}


def correlating(given: Draft) -> Draft:
    """Flax's transposed convolution with its own default, its kernel's axes as it then has them."""
    source = given.source.replace("transpose_kernel=True, ", "")
    for name, node in nodes(given.program):
        if node.op.kind == "conv_transpose2d":
            pattern = rf'("{name}\.kernel": \(\s*"[\w.]+",\s*)\(0, 1, 2, 3\)'
            source = edited(Edit(pattern, r"\1(0, 1, 3, 2)"))(replace(given, source=source)).source
    return replace(given, source=source)


CORRELATES = {
    "jax": Plant(
        "correlates: `transpose_kernel=False`",
        both(edited(Edit(r"transpose_kernel=True,(\s*)", r"transpose_kernel=True, ")), correlating),
    )
}

POOL_STRIDE = {
    "jax": Plant("stride 1", changed(ops(MAX_POOLS + AVG_POOLS, lambda node: {"stride": (1,) * len(node.op.window)})))  # type: ignore[attr-defined]
}


def _counting(count: bool) -> Change:  # noqa: FBT001 - the field's own value
    return ops(AVG_POOLS, lambda node: {"count_padding": count} if any(map(any, node.op.pads)) else {})  # type: ignore[attr-defined]


COUNT_PADDING = {
    "torch": Plant("counts the padding", changed(_counting(count=True))),
    "tensorflow": Plant("leaves the padding out", changed(_counting(count=False))),
    "jax": Plant("counts the padding", changed(_counting(count=True))),
}

# Activations


def _form(form: str) -> Change:
    return ops(("gelu",), lambda _node: {"form": form})


def _other_form(node: Node) -> Mapping[str, object]:
    assert isinstance(node.op, Gelu)
    return {"form": "erf" if node.op.form == "tanh" else "tanh"}


GELU_FORM = {
    "torch": Plant("erf", changed(_form("erf"))),
    "tensorflow": Plant("erf in keras.activations, tanh in keras.ops", changed(ops(("gelu",), _other_form))),
    "jax": Plant("tanh", changed(_form("tanh"))),
}
GELU_CONSTANTS = {
    "tensorflow": Plant(
        "tf.nn.gelu: constants in float32",
        edited(
            Edit(r"return 0\.5 \* x \* \(1 \+ tf\.math\.erf\(x \* math\.sqrt\(0\.5\)\)\)", "return tf.nn.gelu(x, approximate=False)"),
            Edit(r"return 0\.5 \* x \* \(1 \+ tf\.tanh\([^\n]*\)\)$", "return tf.nn.gelu(x, approximate=True)"),
        ),
    )
}  # fmt: skip
LEAKY_SLOPE = by_value("slope", ("leaky_relu",), "slope", {"torch": 0.01, "tensorflow": 0.3, "jax": 0.01})
LEAKY_OWN = {
    "tensorflow": Plant(
        "tf.nn.leaky_relu: slope in float32",
        edited(Edit(r"return tf\.where\(x > 0, x, slope \* x\)", "return tf.nn.leaky_relu(x, slope)")),
    ),
    "jax": Plant(
        "nnx.leaky_relu: gradient 1 at 0",
        edited(Edit(r"return jnp\.where\(x > 0, x, slope \* x\)", "return nnx.leaky_relu(x, slope)")),
    ),
}
SELU = {
    "tensorflow": Plant(
        "tf.nn.selu: at 0 the other side's gradient",
        edited(Edit(r"return 1\.05\d+ \* elu\(x, 1\.67\d+\)", "return tf.nn.selu(x)")),
    )
}
SOFTPLUS = {
    "torch": Plant(
        "F.softplus: linear above 20",
        edited(Edit(r"torch\.logaddexp\(([\w.()]+), torch\.zeros_like\(\1\)\)", r"F.softplus(\1)")),
    )
}
GLOBAL_MAX = {
    "torch": Plant(
        "max: one of them takes the gradient",
        edited(Edit(r"\.amax\(dim=\((?:2, 3|2,)\)\)", ".flatten(2).max(dim=2).values")),
    )
}

# Normalisation, dropout

BATCH_EPSILON = by_value("epsilon", ("batch_norm",), "epsilon", {"torch": 1e-5, "tensorflow": 1e-3, "jax": 1e-5})
BATCH_MOMENTUM = by_value(
    "old value's weight", ("batch_norm",), "momentum", {"torch": 0.9, "tensorflow": 0.99, "jax": 0.99}
)
RUNNING_VARIANCE = {
    "torch": Plant("unbiased", both(own("BatchNorm1d", "nn.BatchNorm1d("), own("BatchNorm2d", "nn.BatchNorm2d(")))
}
FAST_VARIANCE = {"jax": Plant("E[x²] - E[x]²", edited(Edit(r"use_fast_variance=False,\s*", "")))}
LAYER_EPSILON = by_value("epsilon", ("layer_norm",), "epsilon", {"torch": 1e-5, "tensorflow": 1e-3, "jax": 1e-6})
MASKS = everywhere("masks from its own generator", edited(Edit(r"Philox\(key=key,", "Philox(key=key ^ 1,")))

# Recurrent layers, attention, embeddings


def second_bias(kind: str) -> Make:
    """PyTorch's LSTM or GRU with both biases learning, from the same sum."""

    def make(given: Draft) -> Draft:
        planted = given
        where = slots(given)
        for name, node in nodes(given.program):
            if node.op.kind != kind or node.op.mask(*node.input_shapes) is not None:
                continue
            slot = where[f"{name}.bias"]
            path = slot.path.replace("bias_ih_l0", "bias_hh_l0")
            planted = edited(
                Edit(rf"(nn\.init\.zeros_\(self\.{node.name}\.bias_hh_l0\))\.requires_grad_\(False\)", r"\1"),
                Edit(rf'(?<!\()"([\w.]*{node.name}\.)bias_ih_l0"', r'"\1bias_ih_l0", "\1bias_hh_l0"'),
            )(planted)
            planted = learns(f"{name}.bias2", path, given.program.parameters[f"{name}.bias"].shape)(planted)
        if planted is given:
            return given
        return edited(Edit(r"\n[^\n]*# PyTorch has two biases that are added: only one of them may learn\.", ""))(
            planted
        )

    return make


def inner_bias(given: Draft) -> Draft:
    """A GRU as Keras has it: a second bias inside the product with r."""
    if definition(given.source, "GRUCell") is None:
        return given
    planted = edited(
        Edit(
            r'(        self\.bias = self\.add_weight\(name=)"bias"([^\n]*)\n',
            r'\1"bias"\2\n        self.recurrent_bias = self.add_weight(name="recurrent_bias", shape=(gates,), initializer="zeros")\n',
        ),
        Edit(r"tf\.split\(tf\.matmul\(h, self\.recurrent_kernel\),", "tf.split(tf.matmul(h, self.recurrent_kernel) + self.recurrent_bias,"),
    )(given)  # fmt: skip
    for name, slot in slots(given).items():
        if slot.path.endswith("/cell/bias"):
            path = slot.path.removesuffix("bias") + "recurrent_bias"
            planted = learns(f"{name}2", path, given.program.parameters[name].shape)(planted)
    return planted


LSTM_BIAS = {"torch": Plant("two biases, both learn", second_bias("lstm"))}
GRU_BIAS = {
    "torch": Plant("a second bias inside the product with r", second_bias("gru")),
    "tensorflow": Plant("a second bias inside the product with r", inner_bias),
}
FORGET_BIAS = by_value(
    "forget gate's first bias", ("lstm",), "forget_bias", {"torch": 0.0, "tensorflow": 1.0, "jax": 0.0}
)
ATTENTION = {
    "tensorflow": Plant(
        "the scale through float32",
        edited(
            Edit(
                r"tf\.matmul\(q, k, transpose_b=True\) / math\.sqrt\(q\.shape\[-1\]\)",
                "tf.matmul(q * keras.ops.cast(1 / math.sqrt(q.shape[-1]), q.dtype), k, transpose_b=True)",
            )
        ),
    ),
    "jax": Plant(
        "softmax in float32",
        edited(
            Edit(
                r"nnx\.softmax\(scores, axis=-1\)",
                "nnx.softmax(scores.astype(jnp.float32), axis=-1).astype(scores.dtype)",
            )
        ),
    ),
}
EMBEDDING_GRADIENT = {
    "tensorflow": Plant(
        "IndexedSlices: repeated ids apart",
        edited(
            Edit(r"\n[^\n]*# An embedding's gradient comes as rows[^\n]*", ""),
            Edit(r"\n\s*\w*gradients = \[tf\.convert_to_tensor\(g\) for g in \w*gradients\]", ""),
        ),
    )
}

# Initial values


class FanInUniform(InitializerKind):
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): PyTorch's default for dense and convolution layers, biases too."""

    kind = "fan_in_uniform"

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:  # noqa: ARG002
        """See harness.initializers."""
        return rng.uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), shape)


class TwoUniforms(InitializerKind):
    """The sum of two draws of U(-bound, bound): what PyTorch's two recurrent biases amount to."""

    kind = "two_uniforms"
    bound: float

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int, fan_out: int) -> Array:  # noqa: ARG002
        """See harness.initializers."""
        return rng.uniform(-self.bound, self.bound, shape) + rng.uniform(-self.bound, self.bound, shape)


def torch_initial(node: Node) -> Mapping[str, object]:
    """The initial values of PyTorch's layers."""
    op = node.op
    if isinstance(op, Recurrent):
        bound = 1 / math.sqrt(op.units)
        uniform = Uniform(low=-bound, high=bound)
        found = {"kernel_init": uniform, "recurrent_init": uniform, "bias_init": TwoUniforms(bound=bound)}
        return {**found, "forget_bias": 0.0} if op.kind == "lstm" else found
    if isinstance(op, ConvTranspose2d):
        # PyTorch takes the fan from the kernel's second axis, which is the outputs here.
        bound = 1 / math.sqrt(math.prod(op.kernel) * op.channels)
        return {"kernel_init": Uniform(low=-bound, high=bound), "bias_init": Uniform(low=-bound, high=bound)}
    if op.kind == "embedding":
        return {"embedding_init": Normal(std=1.0)}
    return {"kernel_init": FanInUniform(), "bias_init": FanInUniform()}


def keras_initial(node: Node) -> Mapping[str, object]:
    """The initial values of Keras's layers."""
    if node.op.kind == "embedding":
        return {"embedding_init": Uniform(low=-0.05, high=0.05)}
    found: dict[str, object] = {"kernel_init": GlorotUniform(), "bias_init": Zeros()}
    if isinstance(node.op, Recurrent):
        found["recurrent_init"] = Orthogonal()
    return {**found, "forget_bias": 1.0} if node.op.kind == "lstm" else found


def flax_initial(node: Node) -> Mapping[str, object]:
    """The initial values of Flax's modules."""
    if node.op.kind == "embedding":
        return {"embedding_init": Normal(std=1 / math.sqrt(node.op.features))}  # type: ignore[attr-defined]
    found: dict[str, object] = {"kernel_init": LecunNormal(), "bias_init": Zeros()}
    if isinstance(node.op, Recurrent):
        found["recurrent_init"] = Orthogonal()
    return {**found, "forget_bias": 0.0} if node.op.kind == "lstm" else found


DRAWN = ("dense", "conv1d", "conv2d", "conv_transpose2d", "lstm", "gru", "attention", "embedding")
INITIAL = {
    "torch": Plant("U(±1/sqrt(fan_in)), biases too; embeddings N(0, 1)", changed(ops(DRAWN, torch_initial))),
    "tensorflow": Plant("Glorot uniform, biases 0; embeddings U(±0.05)", changed(ops(DRAWN, keras_initial))),
    "jax": Plant("LeCun normal, biases 0; embeddings N(0, 1/features)", changed(ops(DRAWN, flax_initial))),
}

# Losses

KERAS_LOSSES = (
    ("sparse_softmax_cross_entropy_with_logits", "sparse_categorical_crossentropy"),
    ("softmax_cross_entropy_with_logits", "categorical_crossentropy"),
    ("sigmoid_cross_entropy_with_logits", "binary_crossentropy"),
)


def _keras_loss(extra: str = "") -> Make:
    return edited(
        *(
            Edit(rf"tf\.nn\.{old}\(\s*labels=(.*?),\s*logits=", rf"keras.losses.{new}({extra}y_true=\1, y_pred=")
            for old, new in KERAS_LOSSES
        )
    )


PROBABILITIES = {"tensorflow": Plant("takes logits for probabilities", _keras_loss())}


def looking_through(given: Draft) -> Draft:
    """keras.losses with from_logits=True, on what a sigmoid or softmax made."""
    if not ends_in_probabilities(given.program):
        return given
    return _keras_loss("from_logits=True, ")(given)


def ends_in_probabilities(program: Program) -> bool:
    """Whether a cross-entropy reads a network that ends in a sigmoid or softmax."""
    for update in program.updates:
        for term in update.terms:
            made = {site.variable: site.network for site in update.calls}.get(term.outputs.name)
            if isinstance(term.loss, (SigmoidCrossEntropy, SoftmaxCrossEntropy)) and made is not None:
                graph = program.networks[made]
                if any(n.name == graph.output and n.op.kind in ("sigmoid", "softmax") for n in graph.nodes):
                    return True
    return False


LOOKS_THROUGH = {"tensorflow": Plant("takes what goes into the sigmoid or softmax for the logits", looking_through)}
CLASS_AXIS = {
    "torch": Plant(
        "classes on axis 1",
        edited(
            Edit(r"F\.cross_entropy\(\s*([\w.]+)\.flatten\(0, -2\),\s*([\w.\[\]\"]+)\.flatten\(\)", r"F.cross_entropy(\1, \2")
        ),
    )
}  # fmt: skip


def _unsmoothed(update: Update) -> Update:
    def bare(loss: Loss) -> Loss:
        return loss.model_copy(update={"label_smoothing": 0.0}) if isinstance(loss, SoftmaxCrossEntropy) else loss

    return replace(update, terms=tuple(replace(term, loss=bare(term.loss)) for term in update.terms))


SMOOTHING = {"tensorflow": Plant("none for integer labels", changed(updates(_unsmoothed)))}
MAE = {
    "jax": Plant(
        "gradient 1 of equal values",
        edited(
            Edit(
                r"errors = predictions - targets\n\s*return errors \* jnp\.sign\(errors\)",
                "return jnp.abs(predictions - targets)",
            )
        ),
    )
}

# Optimizers, schedules, clipping

SGD = {
    "tensorflow": Plant(
        "the velocity holds the rate",
        both(own("SGD", "keras.optimizers.SGD("), own("NesterovSGD", "keras.optimizers.SGD(nesterov=True, ")),
    )
}
ADAM_EPSILON = {
    backend: Plant(f"epsilon {value:g}", changed(optimizers("adam", epsilon=value)))
    for backend, value in {"torch": 1e-8, "tensorflow": 1e-7, "jax": 1e-8}.items()
}
EPSILON_PLACE = {
    "tensorflow": Plant(
        "before the bias correction",
        edited(Edit(r"self\.epsilon \* correction", "self.epsilon")),
    )
}
BIAS_CORRECTION = {
    "tensorflow": Plant(
        "in the parameters' precision, betas through float32",
        edited(
            Edit(r"t = tf\.cast\(self\.iterations \+ 1, tf\.float64\)", "t = tf.cast(self.iterations + 1, variable.dtype)"),
            Edit(r"rate = tf\.cast\(learning_rate, tf\.float64\) / \(1 - self\.beta_1\*\*t\)",
                 "rate = tf.cast(learning_rate, variable.dtype) / (1 - keras.ops.cast(self.beta_1, variable.dtype) ** t)"),
            Edit(r"tf\.sqrt\(1 - self\.beta_2\*\*t\)", "tf.sqrt(1 - keras.ops.cast(self.beta_2, variable.dtype) ** t)"),
        ),
    ),
    "jax": Plant("optax.scale_by_adam: in the parameters' precision", own("scale_by_adam", "optax.scale_by_adam(")),
}  # fmt: skip
DECAY = {
    backend: Plant(f"weight_decay {value}", changed(optimizers("adamw", weight_decay=value)))
    for backend, value in {"torch": 0.01, "tensorflow": 0.004, "jax": 0.0001}.items()
}
SPARED = everywhere("decays every parameter", changed(optimizers("adamw", no_decay=())))
DECAY_PRECISION = {
    "tensorflow": Plant(
        "a decay that is a Python float through float32",
        edited(
            Edit(r"\n[^\n]*# Keras would round a decay that is a Python float to float32\.", ""),
            Edit(r"weight_decay=np\.float64\(([\d.e-]+)\)", r"weight_decay=\1"),
        ),
    )
}


def optax_schedules(given: Draft) -> Draft:
    """Optax's own schedules in the place of the functions that are written out."""
    source = given.source
    single = len(given.program.updates) == 1
    for update in given.program.updates:
        name = "learning_rate" if single else f"{update.name}_learning_rate"
        found = definition(source, name)
        if found is not None:
            lines = source.splitlines(keepends=True)
            text = f"{name} = {_optax(update.schedule, update.optimizer.learning_rate)}\n"
            source = "".join([*lines[: found[0]], text, *lines[found[1] :]])
    return replace(given, source=source)


def _optax(rule: Schedule, rate: float) -> str:
    if isinstance(rule, Cosine):
        after = f"optax.cosine_decay_schedule({rate!r}, {rule.steps}, alpha={rule.final!r})"
    elif isinstance(rule, Step):
        after = f"optax.exponential_decay({rate!r}, {rule.every}, {rule.multiply_by!r}, staircase=True)"
    else:
        after = f"optax.constant_schedule({rate!r})"
    if not rule.warmup:
        return after
    start = rate * rule.warmup_start
    return (
        f"optax.join_schedules([optax.linear_schedule({start!r}, {rate!r}, {rule.warmup}), {after}], [{rule.warmup}])"
    )


SCHEDULES = {
    "tensorflow": Plant(
        "the rate in float32",
        edited(Edit(r"step = tf\.cast\(step, tf\.float64\)  # Keras's own schedules round to float32\.", "step = tf.cast(step, tf.float32)")),
    ),
    "jax": Plant("warm-up in float32; a staircase that can fall late", optax_schedules),
}  # fmt: skip


def _warmup_counted(update: Update) -> Update:
    rule = update.schedule
    if not isinstance(rule, Cosine) or not rule.warmup or rule.steps is None:
        return update
    if rule.steps <= rule.warmup:
        raise Refused(f"decay_steps of {rule.steps} is not more than the warm-up's {rule.warmup}")
    return replace(update, schedule=rule.model_copy(update={"steps": rule.steps - rule.warmup}))


WARMUP_COUNTED = {"jax": Plant("decay_steps counts the warm-up", changed(updates(_warmup_counted)))}
CLIP_EPSILON = {
    "torch": Plant("1e-6 added to the norm", own("clip_by_global_norm", "nn.utils.clip_grad_norm_(")),
}
CLIP_EACH = {
    "tensorflow": Plant(
        "clipnorm: each variable by itself",
        edited(
            Edit(
                r"(\w*gradients), _ = tf\.clip_by_global_norm\(\w*gradients, ([\d.e-]+)\)",
                r"\1 = [tf.clip_by_norm(g, \2) for g in \1]",
            )
        ),
    )
}

# Precision

IN_FLOAT32 = Edit(r"\barrays\[name\]", 'arrays[name].astype("float32")')
"""Parameters as a model takes them that was not told to be float64."""
FLOAT64 = {
    "tensorflow": Plant("floatx is float32", edited(Edit(r'^keras\.config\.set_floatx\("float64"\)\n', ""), IN_FLOAT32)),
    "jax": Plant(
        "x64 is off",
        edited(Edit(r'^jax\.config\.update\("jax_enable_x64", True\)\n', ""), Edit(r"param_dtype=jnp\.float64,\s*", ""), Edit(r"\bjnp\.float64\b", "jnp.float32"), Edit('"float64"', '"float32"'), IN_FLOAT32),
    ),
}  # fmt: skip

# What a spec says, for the tables that `harness explain` prints

Says = Callable[[Program], str]


def said(kinds: tuple[str, ...], name: str, what: str = "") -> Says:
    """The values of a field of some ops, each once: `epsilon 1e-05`."""

    def says(program: Program) -> str:
        values = dict.fromkeys(
            repr(getattr(node.op, name)).strip("'") for _, node in nodes(program) if node.op.kind in kinds
        )
        return f"{what or name} {', '.join(values)}" if values else ""

    return says


def said_by_optimizer(name: str, what: str = "") -> Says:
    """The values of a field of the optimizers."""

    def says(program: Program) -> str:
        rules = [update.optimizer for update in program.updates]
        values = dict.fromkeys(f"{getattr(rule, name)}" for rule in rules if hasattr(rule, name))
        return f"{what or name} {', '.join(values)}" if values else ""

    return says


def said_spared(program: Program) -> str:
    """What AdamW's decay spares."""
    rules = [update.optimizer for update in program.updates]
    return "; ".join(f"spares {', '.join(r.no_decay) or 'nothing'}" for r in rules if isinstance(r, AdamW))


def said_padding(program: Program) -> str:
    """The pads of convolutions, resolved."""
    values = dict.fromkeys(str(node.op.pads) for _, node in nodes(program) if isinstance(node.op, Convolution))
    return f"pads {', '.join(values)}" if values else ""


def said_smoothing(program: Program) -> str:
    """The label smoothing of softmax cross-entropies."""
    losses = [term.loss for update in program.updates for term in update.terms]
    values = dict.fromkeys(str(loss.label_smoothing) for loss in losses if isinstance(loss, SoftmaxCrossEntropy))
    return f"label_smoothing {', '.join(values)}" if values else ""


def said_initial(program: Program) -> str:
    """The initialisers that the spec writes or leaves to the harness."""
    names = ("kernel_init", "embedding_init", "bias_init")
    found = [getattr(node.op, name) for _, node in nodes(program) for name in names if hasattr(node.op, name)]
    return ", ".join(dict.fromkeys(init.kind for init in found))


def said_schedule(program: Program) -> str:
    """The schedules, in float64."""
    kinds = dict.fromkeys(
        u.schedule.kind for u in program.updates if not isinstance(u.schedule, Constant) or u.schedule.warmup
    )
    return f"{', '.join(kinds)}, in float64" if kinds else ""
