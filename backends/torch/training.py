"""Losses, optimizers, schedules and clipping as PyTorch. Imports no framework."""

from harness.emit import ref, smoothed_number
from harness.graph import Program, Term, Update
from harness.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from harness.optimizers import Adam, AdamW, ClipValue, Cosine, Schedule, Sgd, Step


def mse(term: Term) -> str:
    return f"F.mse_loss({ref(term.outputs)}, {_targets(term)})"


def mae(term: Term) -> str:
    return f"F.l1_loss({ref(term.outputs)}, {_targets(term)})"


def softmax_cross_entropy(term: Term) -> str:
    loss = term.loss
    assert isinstance(loss, SoftmaxCrossEntropy)
    logits, labels = ref(term.outputs), ref(term.targets)
    if len(term.outputs_shape) > 1:
        # F.cross_entropy wants the classes on axis 1: positions join the batch.
        logits, labels = f"{logits}.flatten(0, -2)", f"{labels}.flatten()"
    smoothing = f", label_smoothing={loss.label_smoothing!r}" if loss.label_smoothing else ""
    return f"F.cross_entropy({logits}, {labels}{smoothing})"


def sigmoid_cross_entropy(term: Term) -> str:
    loss = term.loss
    assert isinstance(loss, SigmoidCrossEntropy)
    targets = _targets(term)
    if term.targets.kind != "number" and loss.label_smoothing:
        targets = f"{1 - loss.label_smoothing!r} * {targets} + {loss.label_smoothing / 2!r}"
    return f"F.binary_cross_entropy_with_logits({ref(term.outputs)}, {targets})"


LOSSES = {
    "mse": mse,
    "mae": mae,
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
}


def optimizer(program: Program, update: Update, model: str, rate: str) -> tuple[list[str], str]:
    """Statements before it, and the optimizer's construction."""
    rule = update.optimizer
    learned = f"{model}.parameters()"
    trained = f"[p for p in {learned} if p.requires_grad]" if frozen(program, update) else learned
    if isinstance(rule, Sgd):
        momentum = f", momentum={rule.momentum!r}" if rule.momentum else ""
        nesterov = ", nesterov=True" if rule.nesterov else ""
        return [], f"torch.optim.SGD({trained}, lr={rate}{momentum}{nesterov}, fused=True)"
    assert isinstance(rule, Adam)
    settings = f"lr={rate}, betas=({rule.beta1!r}, {rule.beta2!r}), eps={rule.epsilon!r}"
    if not isinstance(rule, AdamW):
        return [], f"torch.optim.Adam({trained}, {settings}, fused=True)"
    names = [name for name in _moved(program, update) if program.parameters[name].learned]
    spared = [name for name in names if not rule.decays(name)]
    if not spared or len(spared) == len(names):
        decay = rule.weight_decay if not spared else 0.0
        return [], f"torch.optim.AdamW({trained}, {settings}, weight_decay={decay!r}, fused=True)"
    before = [
        f"parameters = {{name: p for name, p in {model}.named_parameters() if p.requires_grad}}",
        "groups = [",
        f'    {{"params": [p for name, p in parameters.items() if name not in NO_DECAY], "weight_decay": {rule.weight_decay!r}}},',
        '    {"params": [p for name, p in parameters.items() if name in NO_DECAY], "weight_decay": 0.0},',
        "]",
    ]
    return before, f"torch.optim.AdamW(groups, {settings}, fused=True)"


def moved(program: Program, update: Update) -> str:
    """The module whose parameters an update moves."""
    if len(program.networks) == 1 or set(update.over) == set(program.networks):
        return "model"
    if len(update.over) == 1:
        return f"model.{update.over[0]}"
    return f"nn.ModuleDict({{{', '.join(f'{name!r}: model.{name}' for name in update.over)}}})"


def frozen(program: Program, update: Update) -> bool:
    """Whether a network that is moved has parameters that stay: PyTorch's second bias, half an affine pair."""
    from harness.emit import graphs  # noqa: PLC0415

    del update
    for graph in graphs(program):
        for node in graph.nodes:
            kind = node.op.kind
            if kind in ("lstm", "gru") and node.op.mask(*node.input_shapes) is None:
                return True
            if kind in ("batch_norm", "layer_norm") and node.op.scale != node.op.bias:  # type: ignore[attr-defined]
                return True
    return False


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


def clip(update: Update, parameters: str) -> tuple[list[str], tuple[str, ...]]:
    """Statements between backward and step, and the helpers they use."""
    if update.clip is None:
        return [], ()
    if isinstance(update.clip, ClipValue):
        return [f"nn.utils.clip_grad_value_({parameters}, {update.clip.limit!r})"], ()
    return [f"clip_by_global_norm({parameters}, {update.clip.limit!r})"], ("clip_by_global_norm",)


def schedule(rule: Schedule, rate: float) -> list[str]:
    """The body of the learning-rate function of `step`."""
    lines = []
    t = "step"
    if rule.warmup:
        start = rule.warmup_start
        factor = f"({start!r} + {1 - start!r} * step / {rule.warmup})" if start else f"step / {rule.warmup}"
        lines += [f"if step < {rule.warmup}:", f"    return {rate!r} * {factor}"]
        t = f"(step - {rule.warmup})"
    if isinstance(rule, Cosine):
        wave = f"(1 + math.cos(math.pi * min({t.strip('()')}, {rule.steps}) / {rule.steps}))"
        if rule.final:
            return [*lines, f"return {rate!r} * ({rule.final!r} + {1 - rule.final!r} * 0.5 * {wave})"]
        return [*lines, f"return {rate!r} * 0.5 * {wave}"]
    if isinstance(rule, Step):
        return [*lines, f"return {rate!r} * {rule.multiply_by!r} ** ({t} // {rule.every})"]
    return [*lines, f"return {rate!r}"]


def _targets(term: Term) -> str:
    if term.targets.kind == "number":
        return f"torch.full_like({ref(term.outputs)}, {smoothed_number(term)!r})"
    return ref(term.targets)


HELPERS = {
    "clip_by_global_norm": '''
def clip_by_global_norm(parameters: Iterable[Tensor], limit: float) -> None:
    """Gradients times min(1, limit / norm); nn.utils.clip_grad_norm_ adds 1e-6 to the norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    scale = (limit / nn.utils.get_total_norm(gradients)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
''',
}
