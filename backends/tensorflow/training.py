"""Losses, optimizers, schedules and clipping as Keras on TensorFlow. Imports no framework."""

from harness.emit import ref, smoothed_number
from harness.graph import Graph, Program, Term, Update
from harness.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from harness.ops.linear import Embedding
from harness.optimizers import Adam, AdamW, ClipValue, Constant, Cosine, Schedule, Sgd, Step


def mse(term: Term) -> str:
    return f"tf.reduce_mean(tf.square({ref(term.outputs)} - {ref(term.targets)}))"


def mae(term: Term) -> str:
    return f"tf.reduce_mean(tf.abs({ref(term.outputs)} - {ref(term.targets)}))"


# keras.losses would look through an activation that ends a network, and take what goes into it for the logits:
# https://github.com/keras-team/keras/blob/v3.15.0/keras/src/backend/tensorflow/nn.py (_get_logits)


def softmax_cross_entropy(term: Term) -> str:
    loss = term.loss
    assert isinstance(loss, SoftmaxCrossEntropy)
    logits, labels = ref(term.outputs), ref(term.targets)
    if not loss.label_smoothing:
        return f"tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels={labels}, logits={logits}))"
    classes = term.outputs_shape[-1]
    smoothed = f"{1 - loss.label_smoothing!r} * tf.one_hot({labels}, {classes}, dtype={logits}.dtype)"
    smoothed += f" + {loss.label_smoothing / classes!r}"
    return f"tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels={smoothed}, logits={logits}))"


def sigmoid_cross_entropy(term: Term) -> str:
    loss = term.loss
    assert isinstance(loss, SigmoidCrossEntropy)
    targets = _targets(term)
    if term.targets.kind != "number" and loss.label_smoothing:
        targets = f"{1 - loss.label_smoothing!r} * {targets} + {loss.label_smoothing / 2!r}"
    return f"tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels={targets}, logits={ref(term.outputs)}))"


LOSSES = {
    "mse": mse,
    "mae": mae,
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
}


def optimizer(program: Program, update: Update, rate: str) -> tuple[list[str], str, tuple[str, ...]]:
    """Comments before it, the optimizer's construction, and the helpers it uses."""
    rule = update.optimizer
    if isinstance(rule, Sgd):
        if not rule.momentum:
            return [], f"keras.optimizers.SGD({rate})", ()
        helper = "NesterovSGD" if rule.nesterov else "SGD"
        return [], f"{helper}({rate}, momentum={rule.momentum!r})", (helper,)
    assert isinstance(rule, Adam)
    settings = f"{rate}, beta_1={rule.beta1!r}, beta_2={rule.beta2!r}, epsilon={rule.epsilon!r}"
    if not isinstance(rule, AdamW) or not rule.weight_decay or not _decayed(program, update):
        return [], f"Adam({settings})", ("Adam",)
    before = ["# Keras would round a decay that is a Python float to float32."]
    return before, f"AdamW({settings}, weight_decay=np.float64({rule.weight_decay!r}))", ("AdamW",)


def _moved(program: Program, update: Update) -> list[str]:
    if len(program.networks) == 1:
        return list(program.parameters)
    return [name for name in program.parameters if name.partition(".")[0] in update.over]


def _decayed(program: Program, update: Update) -> list[str]:
    rule = update.optimizer
    names = [name for name in _moved(program, update) if program.parameters[name].learned]
    return [name for name in names if isinstance(rule, AdamW) and rule.decays(name)]


def no_decay(program: Program, update: Update) -> list[str]:
    """The canonical names that weight decay spares, where it spares some and not all."""
    rule = update.optimizer
    if not isinstance(rule, AdamW) or not rule.weight_decay:
        return []
    names = [name for name in _moved(program, update) if program.parameters[name].learned]
    spared = [name for name in names if not rule.decays(name)]
    return spared if len(spared) < len(names) else []


def sparse(program: Program, update: Update) -> bool:
    """Whether an embedding is among what an update moves: TensorFlow gives its gradient as rows."""

    def embeds(graph: Graph) -> bool:
        return any(isinstance(node.op, Embedding) for g in (graph, *graph.blocks) for node in g.nodes)

    return any(embeds(graph) for name, graph in program.networks.items() if name in update.over)


def clip(update: Update) -> list[str]:
    """Statements between gradient and apply."""
    if update.clip is None:
        return []
    limit = update.clip.limit
    if isinstance(update.clip, ClipValue):
        return [f"gradients = [tf.clip_by_value(g, {-limit!r}, {limit!r}) for g in gradients]"]
    return [f"gradients, _ = tf.clip_by_global_norm(gradients, {limit!r})"]


def schedule(rule: Schedule, rate: float) -> list[str]:
    """The body of the learning-rate function of `step`, a float64 tensor; none where it never changes."""
    if isinstance(rule, Constant) and not rule.warmup:
        return []
    t = f"step - {rule.warmup}" if rule.warmup else "step"
    if isinstance(rule, Cosine):
        wave = f"(1 + tf.cos(math.pi * tf.minimum({t}, {rule.steps}) / {rule.steps}))"
        after = f"{rate!r} * 0.5 * {wave}"
        if rule.final:
            after = f"{rate!r} * ({rule.final!r} + {1 - rule.final!r} * 0.5 * {wave})"
    elif isinstance(rule, Step):
        after = f"{rate!r} * {rule.multiply_by!r} ** ({f'({t})' if rule.warmup else t} // {rule.every})"
    else:
        after = repr(rate)
    if not rule.warmup:
        return [f"return {after}"]
    start = rule.warmup_start
    factor = f"({start!r} + {1 - start!r} * step / {rule.warmup})" if start else f"step / {rule.warmup}"
    return [
        f"warmup = {rate!r} * {factor}",
        f"after = {after}",
        f"return tf.where(step < {rule.warmup}, warmup, after)",
    ]


def _targets(term: Term) -> str:
    if term.targets.kind == "number":
        return f"keras.ops.full_like({ref(term.outputs)}, {smoothed_number(term)!r})"
    return ref(term.targets)


HELPERS = {
    "SGD": '''
class SGD(keras.optimizers.SGD):
    """SGD whose velocity holds no learning rate, so that a schedule acts at once; Keras's own does."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        velocity = self.momentums[self._get_variable_index(variable)]
        self.assign(velocity, self.momentum * velocity + gradient)
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * velocity)
''',
}


def _adam(name: str, moments: str) -> str:
    return f'''
class {name}(keras.optimizers.{name}):
    """{name} with epsilon added after the bias correction; Keras's own adds it before."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
{moments}
        # Scalars in float64: 1 - 0.999 in float32 is wrong in the fifth digit. Both sides of the quotient are
        # multiplied by the correction, which saves a division of every number.
        t = tf.cast(self.iterations + 1, tf.float64)
        rate = tf.cast(learning_rate, tf.float64) / (1 - self.beta_1**t)
        correction = tf.sqrt(1 - self.beta_2**t)
        rate = tf.cast(rate * correction, variable.dtype)
        epsilon = tf.cast(self.epsilon * correction, variable.dtype)
        self.assign_sub(variable, rate * m / (tf.sqrt(v) + epsilon))
'''


MOMENTS = """\
        self.assign_add(m, (1 - self.beta_1) * (gradient - m))
        self.assign_add(v, (1 - self.beta_2) * (tf.square(gradient) - v))"""
FORGOTTEN = """\
        # Not m + (1 - beta) * (g - m), a pass less: with a beta near 0 it leaves the rounding of a moment that was larger.
        self.assign(m, self.beta_1 * m + (1 - self.beta_1) * gradient)
        self.assign(v, self.beta_2 * v + (1 - self.beta_2) * tf.square(gradient))"""
HELPERS |= {name: _adam(name, MOMENTS) for name in ("Adam", "AdamW")}
FORGETFUL = {name: _adam(name, FORGOTTEN) for name in ("Adam", "AdamW")}
"""What stands for these where a beta is below LEAST_BETA."""
LEAST_BETA = 0.1


def forgets(program: Program) -> bool:
    """Whether a moment may be far smaller than the one before, which m + (1 - beta) * (g - m) then leaves the rounding of."""
    rules = (update.optimizer for update in program.updates if isinstance(update.optimizer, Adam))
    return any(min(rule.beta1, rule.beta2) < LEAST_BETA for rule in rules)


HELPERS["NesterovSGD"] = (
    HELPERS["SGD"]
    .replace("class SGD", "class NesterovSGD")
    .replace('"""SGD whose', '"""Nesterov\'s SGD whose')
    .replace("tf.cast(learning_rate, variable.dtype) * velocity)", "rate * (gradient + self.momentum * velocity))")
    .replace(
        "        self.assign_sub(", "        rate = tf.cast(learning_rate, variable.dtype)\n        self.assign_sub("
    )
)
