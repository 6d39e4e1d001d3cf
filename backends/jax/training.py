"""Losses, optimizers, schedules and clipping as Optax. Imports no framework."""

from harness.emit import ref, smoothed_number
from harness.graph import Program, Term, Update
from harness.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from harness.optimizers import Adam, AdamW, ClipValue, Constant, Cosine, Schedule, Sgd, Step


def mse(term: Term) -> str:
    return f"optax.squared_error({ref(term.outputs)}, {_targets(term)}).mean()"


def mae(term: Term) -> str:
    return f"absolute_error({ref(term.outputs)}, {_targets(term)}).mean()"


def softmax_cross_entropy(term: Term) -> str:
    loss = term.loss
    assert isinstance(loss, SoftmaxCrossEntropy)
    logits, labels = ref(term.outputs), ref(term.targets)
    if not loss.label_smoothing:
        return f"optax.softmax_cross_entropy_with_integer_labels({logits}, {labels}).mean()"
    one_hot = f"nnx.one_hot({labels}, {term.outputs_shape[-1]})"
    return f"optax.softmax_cross_entropy({logits}, optax.smooth_labels({one_hot}, {loss.label_smoothing!r})).mean()"


def sigmoid_cross_entropy(term: Term) -> str:
    loss = term.loss
    assert isinstance(loss, SigmoidCrossEntropy)
    targets = _targets(term)
    if term.targets.kind != "number" and loss.label_smoothing:
        targets = f"{1 - loss.label_smoothing!r} * {targets} + {loss.label_smoothing / 2!r}"
    return f"optax.sigmoid_binary_cross_entropy({ref(term.outputs)}, {targets}).mean()"


LOSSES = {
    "mse": mse,
    "mae": mae,
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
}
LOSS_HELPERS = {"mae": ("absolute_error",)}


def optimizer(program: Program, update: Update, rate: str, spared: str) -> tuple[str, tuple[str, ...]]:
    """The optimizer's construction, clipping included, and the helpers it uses."""
    rule = update.optimizer
    helpers: tuple[str, ...] = ()
    if isinstance(rule, Sgd):
        momentum = f", momentum={rule.momentum!r}" if rule.momentum else ""
        nesterov = ", nesterov=True" if rule.nesterov else ""
        text = f"optax.sgd({rate}{momentum}{nesterov})"
    else:
        assert isinstance(rule, Adam)
        helpers = ("scale_by_adam",)
        parts = [f"scale_by_adam(b1={rule.beta1!r}, b2={rule.beta2!r}, eps={rule.epsilon!r})"]
        if isinstance(rule, AdamW):
            names = [name for name in _moved(program, update) if program.parameters[name].learned]
            decay = rule.weight_decay if any(map(rule.decays, names)) else 0.0
            mask = ""
            if no_decay(program, update):
                mask, helpers = f", mask=all_but({spared})", (*helpers, "all_but")
            parts.append(f"optax.add_decayed_weights({decay!r}{mask})")
        text = ", ".join([*parts, f"optax.scale_by_learning_rate({rate})"])
    clipping = clip(update)
    if clipping or isinstance(rule, Adam):
        return f"optax.chain({clipping + ', ' if clipping else ''}{text})", helpers
    return text, helpers


def _moved(program: Program, update: Update) -> list[str]:
    if len(program.networks) == 1:
        return list(program.parameters)
    return [name for name in program.parameters if name.partition(".")[0] in update.over]


def no_decay(program: Program, update: Update) -> list[str]:
    """The canonical names that weight decay spares, where it spares some and not all."""
    rule = update.optimizer
    if not isinstance(rule, AdamW):
        return []
    names = [name for name in _moved(program, update) if program.parameters[name].learned]
    spared = [name for name in names if not rule.decays(name)]
    return spared if len(spared) < len(names) else []


def clip(update: Update) -> str:
    """The transformation of gradients before the optimizer's, if any."""
    if update.clip is None:
        return ""
    if isinstance(update.clip, ClipValue):
        return f"optax.clip({update.clip.limit!r})"
    return f"optax.clip_by_global_norm({update.clip.limit!r})"


def constant(update: Update) -> bool:
    """Whether the learning rate never changes: Optax takes a number or a function of the updates so far."""
    return isinstance(update.schedule, Constant) and not update.schedule.warmup


def schedule(rule: Schedule, rate: float) -> list[str]:
    """The body of the learning-rate function of `step`."""
    # Not Optax's own: in float64 its linear warm-up is float32, and under jit its staircase can fall a step late,
    # because XLA divides by a constant as a product with the reciprocal and 41 * (1 / 41) is below 1.
    t = f"(step - {rule.warmup})" if rule.warmup else "step"
    if isinstance(rule, Cosine):
        wave = f"(1 + jnp.cos(jnp.pi * jnp.minimum({t.strip('()')}, {rule.steps}) / {rule.steps}))"
        factor = f"({rule.final!r} + {1 - rule.final!r} * 0.5 * {wave})" if rule.final else f"0.5 * {wave}"
        after = f"{rate!r} * {factor}"
    elif isinstance(rule, Step):
        after = f"{rate!r} * {rule.multiply_by!r} ** ({t} // {rule.every})"
    else:
        after = repr(rate)
    if not rule.warmup:
        return [f"return {after}"]
    start = rule.warmup_start
    factor = f"({start!r} + {1 - start!r} * step / {rule.warmup})" if start else f"step / {rule.warmup}"
    return [
        f"warm_up = {rate!r} * {factor}",
        f"after = {after}",
        f"return jnp.where(step < {rule.warmup}, warm_up, after)",
    ]


def _targets(term: Term) -> str:
    if term.targets.kind == "number":
        return f"jnp.full_like({ref(term.outputs)}, {smoothed_number(term)!r})"
    return ref(term.targets)


HELPERS = {
    "absolute_error": '''
def absolute_error(predictions: Array, targets: Array) -> Array:
    """|predictions - targets|, with gradient 0 where they are equal; that of jnp.abs is 1."""
    errors = predictions - targets
    return errors * jnp.sign(errors)
''',
    "scale_by_adam": '''
def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """optax.scale_by_adam whose bias corrections are exact: its 1 - b2**t is 1e-5 off in float32."""

    def init(parameters: dict) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

    def update(
        gradients: dict, state: optax.ScaleByAdamState, _parameters: dict | None = None
    ) -> tuple[dict, optax.ScaleByAdamState]:
        t = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, gradients)
        # 1 - b**t by way of log(b) in Python's float64: b itself loses digits in float32.
        c1, c2 = (-jnp.expm1(t * math.log(b)) if b else 1.0 for b in (b1, b2))
        # m / c1 / (sqrt(v / c2) + eps) with one division of every number.
        root = jnp.sqrt(c2)
        scale = root / c1
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps * root), mu, nu)
        return updates, optax.ScaleByAdamState(t, mu, nu)

    return optax.GradientTransformation(init, update)
''',
    "all_but": '''
def all_but(spared: set[str]) -> Callable[[dict], dict]:
    """A mask that is true for every parameter except those."""
    return partial(
        jax.tree.map_with_path,
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator=".") not in spared,
    )
''',
}
