"""The table of semantic differences: a row for each default in which the frameworks part, and what is done about it.

`backends/README.md` is written from it, and `harness explain` measures its rows on a spec. A row that no number can be
put to (an error, a device that is not here) says why in `unmeasured`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.atlas import defaults
from harness.atlas.defaults import Says, said, said_by_optimizer
from harness.atlas.plants import Plant

AS = "as the spec"


@dataclass(frozen=True, eq=False)
class Row:
    """One difference. The texts are Markdown."""

    name: str
    section: str
    rule: str
    """The op or rule, as the table's first column has it."""
    means: str
    """What the spec means; `—`: the spec's own meaning, nothing to do."""
    torch: str
    tensorflow: str
    jax: str
    remedy: str
    """What stands in the emitted programs."""
    cases: tuple[str, ...] = ()
    """Rows of tests/cases.py that cover it."""
    faults: tuple[str, ...] = ()
    """Planted faults of tests/test_frameworks.py that a comparison must catch."""
    tests: tuple[str, ...] = ()
    """Tests by node id, without the file's directory: `test_backends.py::test_...`."""
    note: str = ""
    """What else is to be said about its tests."""
    plants: Mapping[str, Plant] = field(default_factory=dict)
    """Backend -> its default, left to it."""
    unmeasured: str = ""
    """Why there is no number, where there is no plant."""
    probes: tuple[str, ...] = ()
    """What its sizes are measured on, each plant on the first that has a place for it: bundled specs, or those of
    harness.atlas.probes."""
    precision: str = "float64"
    """In which its sizes are measured."""
    says: Says | None = None
    """What a spec says here, in a few words; left out, `means`."""


LAYOUTS = "Layouts and shapes"
ACTIVATIONS = "Activations"
NORMALISATION = "Normalisation, dropout"
RECURRENT = "Recurrent layers, attention, embeddings"
INITIAL = "Initial values"
LOSSES = "Losses"
OPTIMIZERS = "Optimizers, schedules, clipping"
PRECISION = "Precision"

KINK = "test_backends.py::test_the_gradient_at_a_kink_is_the_documented_one"
SPECS = "test_frameworks.py::test_every_spec_trains_alike_in_float64"
OTHERS = "test_frameworks.py::test_other_losses_and_rules_train_alike"
STATISTICS = "test_backends.py::test_training_loss_and_statistics_equal_the_reference"

ROWS: tuple[Row, ...] = (
    Row("images", LAYOUTS, "images, sequences", "channels last",
        "channels first", "channels last", "channels last",
        "PyTorch: `permute` once on the way in and out, a view (`LAYOUTS` in `torch/layers.py`)",
        cases=("concatenate images",),
        unmeasured="channels in the wrong place are refused, unless an image is as wide as it has channels"),
    Row("kernels", LAYOUTS, "kernels", "`IO`, `HWIO`, gates side by side",
        "`OI`, `OIHW`", AS, AS,
        "the axes stand in the table `PARAMETERS` at the end of each program",
        tests=("test_backends.py::test_loading_a_table_that_the_model_does_not_have_is_refused",), note="every case",
        plants=defaults.KERNELS, probes=("char_transformer",)),
    Row("flatten", LAYOUTS, "flatten", "channels fastest",
        "channels slowest (of its own layout)", "—", "—",
        "PyTorch: `permute(0, 2, 3, 1)` before `flatten`",
        cases=("flatten after convolution",), faults=("channels flattened otherwise",),
        plants=defaults.FLATTEN, probes=("digits_gan",)),
    Row("same_padding", LAYOUTS, "`padding: same`", "the odd zero goes after",
        '`padding="same"` with a stride is refused; `padding=1` pads both sides: the same shape, the grid one pixel off '
        "(15 apart on normal data, 3 × 3, stride 2)", AS, AS,
        "numbers, resolved before a backend sees them; PyTorch: `F.pad` where the sides differ",
        cases=("conv2d same stride 2, even", "conv2d same stride 2, odd"), faults=("padding on the other side",),
        plants=defaults.SAME, probes=("digits_cnn",), says=defaults.said_padding),
    Row("default_padding", LAYOUTS, "convolution's default padding", "`valid`",
        "none", "`valid`", "`SAME`", "always written", cases=("conv2d",),
        plants=defaults.DEFAULT_PADDING, probes=("valid", "padded"), says=defaults.said_padding),
    Row("stride_with_dilation", LAYOUTS, "stride with dilation", "both",
        "yes", "refused", "yes", "Keras: dilation in the layer, then every n-th row and column",
        cases=("conv2d stride and dilation",), unmeasured="Keras refuses it"),
    Row("group_gradients", LAYOUTS, "groups, dilation: gradients on CPU", "—",
        "yes", "`tf.nn.conv2d` has none for groups; Keras's layers have them, because they compile themselves with XLA", "yes",
        "`keras.layers.Conv2D(groups=, dilation_rate=)`",
        cases=("conv2d groups", "conv2d dilation", "conv2d depthwise"), unmeasured="TensorFlow refuses it"),
    Row("transposed_crop", LAYOUTS, "transposed convolution: crop", "the gradient of a convolution, `padding` crops it; the odd one after",
        "crops both sides alike, `output_padding` gives back on the far side: the odd one before", "`valid` or `same` alone",
        "pads what is spread out",
        "PyTorch: a negative `F.pad`; Keras: a slice; Flax: pads of k - 1 less the crop",
        cases=("conv_transpose2d", "conv_transpose2d same", "conv_transpose2d odd crop", "conv_transpose2d explicit"),
        plants=defaults.CROP, probes=("transposed",)),
    Row("transposed_kernel", LAYOUTS, "transposed convolution: kernel", "the gradient of a convolution",
        AS, AS, "correlates unless `transpose_kernel=True`", "Flax: `transpose_kernel=True`",
        cases=("conv_transpose2d", "conv_transpose2d same"), plants=defaults.CORRELATES, probes=("digits_gan",)),
    Row("max_pool_padding", LAYOUTS, "max pooling, padded", "padding never wins; `same`: the odd one after",
        "pads both sides alike, by half a window at most", "`SAME`, or explicit", "explicit",
        "PyTorch: `F.pad(…, value=-inf)` where it cannot",
        cases=("max_pool2d same", "max_pool2d explicit", "max_pool2d ties"), plants=defaults.PADDED_MAX, probes=("pools",)),
    Row("pool_stride", LAYOUTS, "pooling's default stride", "the window",
        AS, AS, "1", "Flax: `strides=` always written", cases=("max_pool2d", "avg_pool2d"),
        plants=defaults.POOL_STRIDE, probes=("valid",)),
    Row("avg_pool_padding", LAYOUTS, "average pooling, padded", "padding is left out of the mean; `count_padding: true` counts it",
        "counts it", "leaves it out", "counts it", "`count_include_pad=` written; else a pool of ones divides",
        cases=("avg_pool2d same", "avg_pool2d counts padding", "avg_pool2d leaves padding out"),
        plants=defaults.COUNT_PADDING, probes=("pools", "counted"), says=said(defaults.AVG_POOLS, "count_padding")),

    Row("gelu_form", ACTIVATIONS, "`gelu`", "`erf`; `tanh` if asked for",
        "`erf`", "`erf` in `keras.activations` and `tf.nn`, `tanh` in `keras.ops`", "`tanh`", "the form always written",
        cases=("gelu", "gelu tanh"), faults=("tanh for erf",), plants=defaults.GELU_FORM, probes=("char_transformer", "gelu_tanh"),
        says=said(("gelu",), "form")),
    Row("gelu_constants", ACTIVATIONS, "`gelu`: constants", "in the run's precision",
        AS, "`tf.nn.gelu` keeps them in float32: 5e-9 off in float64", AS, "TensorFlow: written out",
        cases=("gelu", "gelu tanh"), plants=defaults.GELU_CONSTANTS, probes=("char_transformer",)),
    Row("leaky_slope", ACTIVATIONS, "`leaky_relu`: slope", "0.01",
        "0.01", "layer 0.3, functions 0.2", "0.01", "always written",
        cases=("leaky_relu",), plants=defaults.LEAKY_SLOPE, probes=("digits_gan",), says=said(("leaky_relu",), "slope")),
    Row("leaky_kink", ACTIVATIONS, "`leaky_relu`: its own function", "gradient at 0 is the slope",
        AS, "`tf.nn.leaky_relu` keeps the slope in float32: 4e-9 off at 0.1", "gradient 1 at 0",
        "TensorFlow and Flax: `where(x > 0, x, slope * x)`",
        cases=("leaky_relu at the kink",), tests=(KINK,), plants=defaults.LEAKY_OWN, probes=("leaky",)),
    Row("selu_kink", ACTIVATIONS, "`selu`", "gradient at 0 is scale · alpha, 1.758",
        "1.758", "1.051, the other side's", "1.758", "TensorFlow: a scaled `elu` of its own",
        cases=("selu at the kink",), tests=(KINK,), plants=defaults.SELU, probes=("selu",)),
    Row("relu_elu", ACTIVATIONS, "`relu`, `elu`", "gradient at 0: 0, alpha",
        AS, "as the spec; `tf.nn.elu` is exp(x) - 1, which near 0 loses digits", AS, "own functions; TensorFlow's ELU by `tf.math.expm1`",
        cases=("relu at the kink", "elu at the kink"), tests=(KINK,), unmeasured="they agree"),
    Row("softplus", ACTIVATIONS, "`softplus`", "log(1 + exp x) everywhere",
        "`F.softplus` is linear above 20: 8e-10 off at 21", AS, AS, "PyTorch: `torch.logaddexp(x, 0)`",
        cases=("softplus",), plants=defaults.SOFTPLUS, probes=("softplus",)),
    Row("global_max_pool", ACTIVATIONS, "`global_max_pool`", "ties share the gradient",
        "`max` gives it to one, `amax` shares", "shares", "shares", "PyTorch: `amax`",
        cases=("global_max_pool",), plants=defaults.GLOBAL_MAX, probes=("ties",)),

    Row("batch_norm_epsilon", NORMALISATION, "`batch_norm`: epsilon", "1e-5",
        "1e-5", "1e-3", "1e-5", "written", cases=("batch_norm", "batch_norm of a sequence", "batch_norm of an image"),
        plants=defaults.BATCH_EPSILON, probes=("digits_cnn", "normalised"), says=said(("batch_norm",), "epsilon")),
    Row("batch_norm_momentum", NORMALISATION, "`batch_norm`: momentum", "0.9 is the weight of the old value",
        "0.1, the weight of the new", "0.99 of the old", "0.99 of the old", "written; PyTorch: 1 - momentum",
        cases=("batch_norm", "batch_norm of a sequence"), faults=("running mean's momentum",),
        plants=defaults.BATCH_MOMENTUM, probes=("digits_cnn", "normalised"), says=said(("batch_norm",), "momentum", "old value's weight")),
    Row("running_variance", NORMALISATION, "`batch_norm`: running variance", "the biased one",
        "unbiased: 8/7 of it for 8 values", "biased", "biased",
        "PyTorch: a subclass of `nn.BatchNorm2d` that keeps its own statistics",
        faults=("unbiased running variance",), tests=(STATISTICS,), plants=defaults.RUNNING_VARIANCE, probes=("digits_cnn",)),
    Row("fast_variance", NORMALISATION, "`batch_norm`, `layer_norm`: variance", "mean of squared deviations",
        "`F.batch_norm` adds channels-last values one by one on CPUs: 42 units in the last place off for 50,000 of them", AS,
        "E[x²] - E[x]²: 0.07 off in float32 at mean 1000, deviation 2; 3e-5 the other way",
        "PyTorch: `torch.var_mean` and the rule written out; Flax: `use_fast_variance=False`", cases=("batch_norm", "layer_norm"), note="float64: the fault shows in float32 alone",
        plants=defaults.FAST_VARIANCE, probes=("offset",), precision="float32"),
    Row("one_value", NORMALISATION, "`batch_norm` of one value per channel", "—",
        "refused in training", "its bias", "its bias", "own rules; PyTorch's row then says so", note="not covered",
        unmeasured="PyTorch refuses it"),
    Row("layer_norm_epsilon", NORMALISATION, "`layer_norm`: epsilon", "1e-5",
        "1e-5", "1e-3", "1e-6", "written", cases=("layer_norm", "layer_norm of an image"),
        plants=defaults.LAYER_EPSILON, probes=("char_transformer", "normalised"), says=said(("layer_norm",), "epsilon")),
    Row("half_affine", NORMALISATION, "scale without bias, bias without scale", "either",
        "both or neither", "either", "either", "PyTorch: the other stays, `requires_grad_(False)`",
        cases=("batch_norm without scale", "batch_norm without bias"),
        unmeasured="the model would have a parameter that the spec has not"),
    Row("dropout_masks", NORMALISATION, "dropout masks", "Philox of seed, layer's name and step; x · 0 or x · 1 / (1 - rate)",
        "own generator", "own generator", "own generator",
        "masks are inputs of a batch, drawn by NumPy in the program",
        cases=("dropout", "dropout of an image", "dropout per channel"), faults=("mask of another step",),
        plants=defaults.MASKS, probes=("digits_mlp",), note="measured with the masks of another key"),

    Row("lstm_bias", RECURRENT, "`lstm`: bias", "one",
        "two, added: their sum learns twice as fast (2.0 × after one SGD step)", "one", "one, on the state's side",
        "PyTorch: `bias_hh_l0` is zero and does not learn", cases=("lstm sequence",),
        faults=("a second bias that is not zero",), plants=defaults.LSTM_BIAS, probes=("digits_lstm",)),
    Row("forget_bias", RECURRENT, "`lstm`: forget gate's first bias", "1",
        "0", "1 (`unit_forget_bias`)", "0", "initial values are data", cases=("lstm",),
        plants=defaults.FORGET_BIAS, probes=("digits_lstm", "forgetful"), says=said(("lstm",), "forget_bias", "forget gate's first bias")),
    Row("gru_bias", RECURRENT, "`gru`: bias", "one, outside the product with r",
        "two, one inside", "two, one inside (`reset_after=True`)", "one",
        "PyTorch: `bias_hh_l0` is zero and does not learn; Keras: a cell written out in `keras.layers.RNN`",
        cases=("gru", "gru sequence"), tests=("test_frameworks.py::test_gru_is_one_word_away",),
        plants=defaults.GRU_BIAS, probes=("gru",)),
    Row("recurrent_dropout", RECURRENT, "recurrent dropout", "one given mask for a sequence",
        "none", "its own masks", "none", "a loop (PyTorch, TensorFlow) or a scan (JAX) written out",
        cases=("lstm with dropout", "gru with dropout"),
        unmeasured="only Keras has it; that its masks are its own is measured as dropout masks are"),
    Row("rnn_key", RECURRENT, "`nnx.RNN`'s key", "no randomness",
        "—", "—", "`rngs=` makes two more states, `rngs.key` and `rngs.count`", "`rngs=False`, and a key at the call",
        cases=("lstm",), unmeasured="states, not numbers"),
    Row("attention_precision", RECURRENT, "attention", "scale and softmax in the run's precision",
        AS, "`MultiHeadAttention` scales in float32: 1e-8 off in float64",
        "`jax.nn.dot_product_attention` takes its softmax in float32: 1e-7 off in float64",
        "PyTorch: `F.scaled_dot_product_attention`; TensorFlow and Flax: written out",
        cases=("attention", "attention causal", "attention without bias", "attention to a memory"),
        faults=("no scale in attention",), plants=defaults.ATTENTION, probes=("attention",)),
    Row("attention_dropout", RECURRENT, "attention dropout", "a given mask",
        "its own", "its own", "its own", "written out in all three", cases=("attention with dropout",),
        unmeasured="measured together with dropout masks"),
    Row("embedding_gradient", RECURRENT, "embedding's gradient", "an array",
        "an array", "`IndexedSlices`: four equal ids give a norm of 2 where the gradient's is 4", "an array",
        "TensorFlow: `tf.convert_to_tensor` before anything reads it", tests=(f"{SPECS}[char_transformer]",),
        plants=defaults.EMBEDDING_GRADIENT, probes=("clipped_embedding",)),

    Row("initial_values", INITIAL, "initial values", "as the spec's initialisers, drawn by NumPy from seed and name",
        "U(±1/sqrt(fan_in)), biases too; embeddings N(0, 1)", "Glorot uniform, biases 0; embeddings U(±0.05)",
        "LeCun normal, biases 0; embeddings N(0, 1/features)", "initial values are data, never a framework's",
        tests=("test_atlas.py::test_default_initial_values_spread_as_the_frameworks_own",),
        note="measured with each framework's rule, drawn by NumPy from the spec's seed",
        plants=defaults.INITIAL, probes=("digits_mlp",), says=defaults.said_initial),

    Row("from_logits", LOSSES, "cross-entropy: inputs", "logits",
        "logits", "probabilities unless `from_logits=True`", "logits", "TensorFlow: `tf.nn.…_with_logits`", note="every spec",
        tests=(SPECS,), plants=defaults.PROBABILITIES, probes=("digits_mlp",)),
    Row("looks_through", LOSSES, "cross-entropy: what made its input", "nothing is looked at",
        AS, "even with `from_logits=True`, `keras.losses` looks through a sigmoid or softmax that made its input: "
        "0.127 where log(1 + exp(-sigmoid 2)) is 0.347", AS, "TensorFlow: `tf.nn.…_with_logits`", note="every spec",
        tests=(SPECS,), plants=defaults.LOOKS_THROUGH, probes=("sigmoid_end",)),
    Row("class_axis", LOSSES, "softmax cross-entropy: classes' axis", "the last",
        "axis 1", "the last", "the last", "PyTorch: `flatten(0, -2)`", tests=(f"{SPECS}[char_transformer]",),
        plants=defaults.CLASS_AXIS, probes=("as_long_as_classes",)),
    Row("integer_labels", LOSSES, "integer labels", "int32",
        "`long`", "any", "any", "PyTorch: `.long()` when a batch is loaded", note="every spec of classes",
        tests=(f"{SPECS}[digits_mlp]",), unmeasured="PyTorch refuses int32"),
    Row("label_smoothing", LOSSES, "label smoothing", "(1 - s) q + s / classes",
        AS, "`keras.losses` has it for one-hot labels alone", AS, "TensorFlow: one-hot labels smoothed by hand",
        faults=("no label smoothing",), tests=(f"{SPECS}[digits_lstm]",), plants=defaults.SMOOTHING, probes=("digits_lstm",),
        says=defaults.said_smoothing),
    Row("mae_kink", LOSSES, "`mae`: gradient of equal values", "0",
        "0", "0", "`jnp.abs` has 1", "JAX: `errors * sign(errors)`", tests=(OTHERS,), plants=defaults.MAE, probes=("equal",)),

    Row("sgd_velocity", OPTIMIZERS, "SGD's momentum", "the velocity holds no learning rate",
        AS, "holds it: after a step at rate 1, one at rate 0 still moves by 0.9", AS, "Keras: `update_step` written out",
        faults=("velocity with the rate inside",), plants=defaults.SGD, probes=("digits_cnn",)),
    Row("adam_epsilon", OPTIMIZERS, "Adam's epsilon: value", "1e-8",
        "1e-8", "1e-7", "1e-8", "written", faults=("other epsilon",), plants=defaults.ADAM_EPSILON, probes=("digits_lstm", "wide_epsilon"),
        says=said_by_optimizer("epsilon")),
    Row("adam_epsilon_place", OPTIMIZERS, "Adam's epsilon: place", "after the bias correction",
        AS, "before: a first step of 0.24 where the paper has 0.91 (epsilon 1e-4, gradient 1e-3)", AS,
        "Keras: `update_step` written out", faults=("other epsilon",), tests=(f"{SPECS}[digits_lstm]",),
        plants=defaults.EPSILON_PLACE, probes=("wide_epsilon",)),
    Row("adam_correction", OPTIMIZERS, "Adam's 1 - b2^t", "exact",
        "as the spec: 2e-7 in float32", "in float32: 8e-6 of an early update",
        "in float32, unless x64 is on: 1e-5 of an early update",
        "Keras: its scalars in float64. JAX: `scale_by_adam` written out, by `expm1(t · log b)`",
        tests=(SPECS,), note="measured in the README", plants=defaults.BIAS_CORRECTION, probes=("digits_mlp",), precision="float32"),
    Row("adamw_decay", OPTIMIZERS, "AdamW's decay: value", "lr · decay · p; 0.01",
        "0.01", "0.004", "1e-4", "written", tests=(f"{SPECS}[digits_mlp]",), plants=defaults.DECAY, probes=("decayed",),
        says=said_by_optimizer("weight_decay")),
    Row("adamw_spared", OPTIMIZERS, "AdamW's decay: of what", "not the parameters that `no_decay` spares",
        "every parameter", "every parameter", "every parameter",
        "PyTorch: two groups; Keras: `exclude_from_weight_decay`; Optax: a mask", faults=("decay on biases",),
        plants=defaults.SPARED, probes=("decayed",), says=defaults.said_spared),
    Row("adamw_precision", OPTIMIZERS, "AdamW's decay: precision", "the run's",
        AS, "a decay that is a Python float goes through float32: 1.5e-9 off at 0.1", AS, "Keras: `np.float64(…)`",
        tests=(f"{SPECS}[digits_mlp]",), plants=defaults.DECAY_PRECISION, probes=("decayed",)),
    Row("schedules", OPTIMIZERS, "schedules", "a function of the update, from 0, in float64",
        "a scheduler object, stepped after",
        'rounded to float32: 1e-8 off at 0.1; `keras.ops.cast(0.1, "float64")` is 1.5e-9 off',
        "warm-ups are float32 even under x64: 3e-7 of the rate; under jit `exponential_decay(staircase=True)` falls an "
        "update late for some periods (41, 47, 55, 61, 82 …)",
        "a function of `step` written out", faults=("schedule a step late",), tests=(OTHERS,),
        plants=defaults.SCHEDULES, probes=("decayed",), says=defaults.said_schedule),
    Row("warmup_counted", OPTIMIZERS, "a cosine after a warm-up: its length", "counted from the warm-up's end",
        "two schedulers joined by hand", "counted from the warm-up's end",
        "`decay_steps` of `warmup_cosine_decay_schedule` counts the warm-up", "a function of `step` written out",
        tests=(f"{SPECS}[digits_mlp]",), plants=defaults.WARMUP_COUNTED, probes=("decayed",)),
    Row("clip_epsilon", OPTIMIZERS, "`global_norm` clipping", "times min(1, limit / norm)",
        "`clip_grad_norm_` adds 1e-6 to the norm: 2e-7 off at norm 5", AS, AS,
        "PyTorch: written out; TensorFlow: `tf.clip_by_global_norm`", faults=("no clipping",),
        tests=(f"{SPECS}[digits_lstm]",), plants=defaults.CLIP_EPSILON, probes=("decayed",)),
    Row("clip_each", OPTIMIZERS, "`global_norm` clipping: which norm", "of all gradients together",
        AS, "`clipnorm=` is per variable", AS, "TensorFlow: `tf.clip_by_global_norm`", faults=("no clipping",),
        tests=(f"{SPECS}[digits_lstm]",), plants=defaults.CLIP_EACH, probes=("decayed",)),

    Row("float64", PRECISION, "float64", "every value",
        "dtype of the arrays", "`floatx` is float32", "x64 is off, and with it on Flax's parameters are float32",
        'PyTorch: `double()` of each network; TensorFlow: `set_floatx("float64")`; JAX: `jax_enable_x64` and `param_dtype=jnp.float64`',
        tests=(SPECS,), note="every test in float64", plants=defaults.FLOAT64, probes=("digits_mlp",)),
    Row("tf32", PRECISION, "float32 products on GPUs", "full float32",
        "TF32 in cuDNN's convolutions", "TF32", "TF32", "switched off in each program's head",
        note="not measured: no GPU", unmeasured="shows on a GPU alone"),
    Row("bfloat16", PRECISION, "mixed precision in bfloat16",
        "products take bfloat16 values and round their results to it, adding up in float32; all else is float32",
        "`torch.autocast`: what follows a product is bfloat16 too, losses are not",
        "`mixed_bfloat16`: every layer's output is bfloat16; kernels for CPUs add up in it",
        "`dtype=jnp.bfloat16`: every layer's output is bfloat16",
        "written out around each product; on CPUs float32 kernels multiply the rounded values in PyTorch and TensorFlow",
        tests=("test_precision.py::test_every_product_rounds_its_factors_and_its_result",),
        unmeasured="another precision, not a default"),
    Row("excess_precision", PRECISION, "a rounding to bfloat16 and back", "happens",
        "`torch.compile` leaves it out where it fuses", "XLA leaves it out where it can", "XLA leaves it out where it can",
        "PyTorch: `emulate_precision_casts`; TensorFlow: `XLA_FLAGS`; JAX: `jax.lax.reduce_precision`",
        tests=("test_precision.py::test_inductor_leaves_out_roundings_unless_it_is_told_not_to",
               "test_precision.py::test_xla_leaves_out_a_rounding_unless_it_is_told_not_to"),
        unmeasured="another precision, not a default"),
    Row("threads", PRECISION, "threads", "as `--threads` says",
        "`set_num_threads`", "`config.threading`", "—",
        "set in each program and worker; workers are pinned to so many cores", note="recorded in `environment`",
        unmeasured="a speed, and the order of sums"),
    Row("processor_kernels", PRECISION, "kernels on CPUs", "the same on every processor of a kind",
        "oneDNN's", "oneDNN's where the processor has AVX512_VNNI, AVX512_BF16 or AMX; else Eigen's, slower in convolutions",
        "XLA's", "TensorFlow: `TF_ENABLE_ONEDNN_OPTS=1` before the import, unless the environment says otherwise",
        note="recorded in `environment`", unmeasured="a speed, and the order of sums"),
)  # fmt: skip
"""In the order of backends/README.md: by section."""

SECTIONS = tuple(dict.fromkeys(row.section for row in ROWS))
BY_NAME = {row.name: row for row in ROWS}
