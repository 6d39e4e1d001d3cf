"""The catalogue of mutants: semantic faults, each planted alone into the program of one backend.

A fault changes the resolved program where that can say it, so that it is the same fault in every backend; otherwise
the emitted text of the backends that can have it. What parameters there are and their shapes never change: a mutant
loads, runs and trains.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from harness.check import changes, written
from harness.check.changes import Change
from harness.check.edits import Edit, Helper, Plan, planned
from harness.emit import formatted
from harness.graph import BlockOp, Graph, Node, Program, Term, Update
from harness.initializers import Zeros
from harness.losses import MeanAbsoluteError, MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy
from harness.ops.activation import Elu, Gelu, LeakyRelu, Relu, Selu, Sigmoid, Silu, Softplus, Tanh
from harness.ops.attention import Attention
from harness.ops.base import Op
from harness.ops.convolution import Conv2d, Convolution
from harness.ops.linear import Add, Dense, Embedding, Flatten, Reshape
from harness.ops.normalisation import BatchNorm, Dropout, LayerNorm
from harness.ops.pooling import AvgPool, AvgPool2d, MaxPool, MaxPool2d
from harness.optimizers import Adam, AdamW, ClipValue, Constant, Cosine, GlobalNorm, Optimizer, Schedule, Sgd, Step

PHASES = ("data", "forward", "loss", "backward", "optimizer", "state")
BOTH = ("float64", "float32")


@dataclass(frozen=True)
class Mutant:
    """One semantic fault."""

    name: str
    about: str
    """Completes "consistent with ..."."""
    phase: str
    """Where it first shows: data, forward, loss, backward, optimizer, or state (running statistics)."""
    change: Change | None = None
    """How it changes the resolved program."""
    edits: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict)
    """Or, by backend, how it changes the emitted text: the first plan that applies."""
    where: Callable[[Program], bool] = lambda _program: True
    """The programs that it changes the meaning of."""
    precisions: tuple[str, ...] = BOTH
    """In which it can show."""
    shows_at: int = 1
    """The step, from 1, from which it can show; one later where a warm-up starts from a rate of 0."""
    note: str = ""
    """Why it is hard or impossible to see somewhere."""


def plant(
    mutant: Mutant,
    program: Program,
    backend: str,
    precision: str = "float64",
    threads: int = 1,
    **options: object,
) -> str | None:
    """A backend's program with the fault in it, or None where the fault has nothing to change.

    `options` go to the emitter.
    """
    emit = importlib.import_module(f"backends.{backend}.emit").emit
    if precision not in mutant.precisions or not mutant.where(program):
        return None
    honest: str = emit(program, precision, threads, **options)
    if mutant.change is not None:
        changed = mutant.change(program)
        text = None if changed is None else str(emit(changed, precision, threads, **options))
    else:
        text = planned(honest, mutant.edits.get(backend, ()), {"batch_size": str(program.batch)})
        text = None if text is None else formatted(text)
    return None if text == honest else text


def applicable(program: Program, backend: str, precision: str = "float64") -> list[Mutant]:
    """The mutants that change this program in this backend."""
    return [mutant for mutant in MUTANTS if plant(mutant, program, backend, precision) is not None]


def first_step(mutant: Mutant, program: Program) -> int:
    """The step, from 1, from which a mutant can show in this program's parameters."""
    idle = all(update.schedule.factor(0) == 0 for update in program.updates)
    return mutant.shows_at + (1 if idle and mutant.phase == "optimizer" else 0)


# ---- What programs have


def _graphs(program: Program) -> list[Graph]:
    return [g for network in program.networks.values() for g in (*network.blocks, network)]


def _nodes(program: Program) -> list[Node]:
    return [node for graph in _graphs(program) for node in graph.nodes if not isinstance(node.op, BlockOp)]


def _has(*kinds: type[Op]) -> Callable[[Program], bool]:
    return lambda program: any(isinstance(node.op, kinds) for node in _nodes(program))


def _has_masks(program: Program) -> bool:
    return bool(program.masks)


def _flattens_images(program: Program) -> bool:
    shapes = [node.input_shapes[0] for node in _nodes(program) if isinstance(node.op, Flatten)]
    return any(shape[-1] > 1 and max(shape[:-1]) > 1 for shape in shapes)


def _scheduled(program: Program) -> bool:
    return any(not isinstance(u.schedule, Constant) or u.schedule.warmup for u in program.updates)


def _keeps_last_batch(program: Program) -> bool:
    return program.spec.data.last_batch == "keep"


def _ends_with_zero_bias(program: Program) -> bool:
    last = [graph.nodes[-1].op for graph in program.networks.values()]
    return any(isinstance(op, Dense) and op.bias and isinstance(op.bias_init, Zeros) for op in last)


def _unequal_examples(program: Program) -> bool:
    return program.spec.data.shuffle


# ---- Faults of the resolved program


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


def _dropout(**values: object) -> Change:
    def change(node: Node) -> Op | None:
        same = all(getattr(node.op, name) == value for name, value in values.items())
        mask = node.op.mask(*node.input_shapes)
        return None if mask is None or same else node.op.model_copy(update=values)

    return changes.first_op(Dropout)(change)


def _denser_dropout(node: Node) -> Op | None:
    rate = node.op.rate  # type: ignore[attr-defined]
    return node.op.model_copy(update={"rate": round(1.1 * rate, 6)}) if rate else None


def _per_value(node: Node) -> Op | None:
    per = node.op.per  # type: ignore[attr-defined]
    return node.op.model_copy(update={"per": "value"}) if per == "channel" else None


def _smoothing(rule: Callable[[float, int], float]) -> Change:
    def change(_program: Program, term: Term) -> Term | None:
        loss = term.loss
        if not isinstance(loss, (SoftmaxCrossEntropy, SigmoidCrossEntropy)) or not loss.label_smoothing:
            return None
        classes = term.outputs_shape[-1] if isinstance(loss, SoftmaxCrossEntropy) else 2
        smoothing = rule(loss.label_smoothing, classes)
        return replace(term, loss=loss.model_copy(update={"label_smoothing": smoothing}))

    return changes.first_term(change)


def _weighted(factor: Callable[[Program, Term], float]) -> Change:
    def change(program: Program, term: Term) -> Term | None:
        times = factor(program, term)
        if times == 1:
            return None
        return replace(term, loss=term.loss.model_copy(update={"weight": term.loss.weight * times}))

    return changes.first_term(change)


def _positions(program: Program, term: Term) -> float:
    return changes.elements(program, term) / program.batch


def _absolute_error(_program: Program, term: Term) -> Term | None:
    loss = term.loss
    if not isinstance(loss, MeanSquaredError):
        return None
    other = MeanAbsoluteError.model_construct(weight=loss.weight, predictions=loss.predictions, targets=loss.targets)
    return replace(term, loss=other)


def _second_term_lighter(program: Program) -> Program | None:
    def of(update: Update) -> Update | None:
        if len(update.terms) < 2:  # noqa: PLR2004 - a second one
            return None
        first, second, *rest = update.terms
        lighter = second.loss.model_copy(update={"weight": second.loss.weight / 2})
        return replace(update, terms=(first, replace(second, loss=lighter), *rest))

    return changes.first_update(program, of)


def _other_labels(program: Program) -> Program | None:
    """The numbers that an update's terms aim at, turned around."""

    def of(update: Update) -> Update | None:
        if len(update.terms) < 2 or any(t.targets.kind != "number" for t in update.terms):  # noqa: PLR2004
            return None
        terms = [replace(t, targets=replace(t.targets, number=1 - t.targets.number)) for t in update.terms]
        return replace(update, terms=tuple(terms))

    return changes.first_update(program, of)


def _opposed(program: Program) -> Program | None:
    """The single number that the last update's loss aims at, turned around: its players help each other."""
    (*before, update) = program.updates
    if not before or len(update.terms) != 1 or update.terms[0].targets.kind != "number":
        return None
    (term,) = update.terms
    other = replace(term, targets=replace(term.targets, number=1 - term.targets.number))
    return replace(program, updates=(*before, replace(update, terms=(other,))))


def _reversed_updates(program: Program) -> Program | None:
    return replace(program, updates=program.updates[::-1]) if len(program.updates) > 1 else None


def _moves_all(index: int) -> Change:
    """An update whose optimizer holds the parameters of every network."""

    def change(program: Program) -> Program | None:
        if len(program.updates) < 2 or len(program.networks) < 2:  # noqa: PLR2004 - of players
            return None
        update = program.updates[index]
        calls = tuple(changes.call(site, moved=True) for site in update.calls)
        updates = list(program.updates)
        updates[index] = replace(update, calls=calls, over=tuple(program.networks))
        return replace(program, updates=tuple(updates))

    return change


def _rule(kind: type[Optimizer], change: Callable[[Optimizer], Mapping[str, object]]) -> Change:
    def of(rule: Optimizer) -> Optimizer | None:
        if not isinstance(rule, kind):
            return None
        values = change(rule)
        same = all(getattr(rule, name) == value for name, value in values.items())
        return None if same else rule.model_copy(update=dict(values))

    return changes.optimizers(of)


def _set(kind: type[Optimizer], **values: object) -> Change:
    return _rule(kind, lambda _rule: values)


def _momentum(rule: Optimizer) -> Mapping[str, object]:
    momentum = rule.momentum  # type: ignore[attr-defined]
    return {"momentum": round(1 - (1 - momentum) / 2, 6) if momentum else 0.0}


def _without_nesterov(rule: Optimizer) -> Mapping[str, object]:
    return {"nesterov": False} if rule.nesterov else {}  # type: ignore[attr-defined]


def _warmup(**values: Callable[[Schedule], object]) -> Change:
    def of(rule: Schedule) -> Schedule | None:
        if not rule.warmup:
            return None
        changed = {name: value(rule) for name, value in values.items()}
        same = all(getattr(rule, name) == value for name, value in changed.items())
        return None if same else rule.model_copy(update=changed)

    return changes.schedule(of)


def _cosine(change: Callable[[Cosine], Mapping[str, object]]) -> Change:
    return changes.schedule(
        lambda rule: rule.model_copy(update=dict(change(rule))) if isinstance(rule, Cosine) else None
    )


def _step(change: Callable[[Step], Mapping[str, object]]) -> Change:
    return changes.schedule(lambda rule: rule.model_copy(update=dict(change(rule))) if isinstance(rule, Step) else None)


# ---- Faults of the emitted text


def _plans(*plans: Edit | Helper | Plan) -> tuple[Plan, ...]:
    return tuple(plan if isinstance(plan, tuple) else (plan,) for plan in plans)


def _same(*plans: Edit | Helper | Plan) -> dict[str, tuple[Plan, ...]]:
    """The same changes in every backend: their programs say it in the same words."""
    return dict.fromkeys(("torch", "tensorflow", "jax"), _plans(*plans))


def _rows(*names: str, old: str = 'inputs["train.$name"][rows]', new: str) -> dict[str, tuple[Plan, ...]]:
    return _same(*(Edit(old.replace("$name", name), new.replace("$name", name)) for name in names))


def _activation(new_torch: str, new_tensorflow: str, new_jax: str) -> dict[str, tuple[Plan, ...]]:
    return {
        "torch": _plans(Edit("F.relu($x)", new_torch)),
        "tensorflow": _plans(Edit("tf.nn.relu($x)", new_tensorflow)),
        "jax": _plans(Edit("nnx.relu($x)", new_jax)),
    }


HEADS = ("logits", "logit", "linear")


def _head(torch: str, tensorflow: str, jax: str) -> dict[str, tuple[Plan, ...]]:
    """The call of the last dense layer; `$head` is the layer and `$x` what goes in."""
    made = {"torch": torch, "tensorflow": tensorflow, "jax": jax}
    return {
        backend: _plans(*(Edit(f"self.{head}($x)", new.replace("$head", f"self.{head}")) for head in HEADS))
        for backend, new in made.items()
    }


def _attention(
    torch: tuple[str, str], tensorflow: tuple[str, str], jax: tuple[str, str]
) -> dict[str, tuple[Plan, ...]]:
    return {"torch": _plans(Edit(*torch)), "tensorflow": _plans(Edit(*tensorflow)), "jax": _plans(Edit(*jax))}


def _adam(
    torch: Mapping[str, str], tensorflow: Plan, jax: Plan, bases: tuple[str, ...] = ("Adam", "AdamW")
) -> dict[str, tuple[Plan, ...]]:
    """A line of Adam's rule. PyTorch's own is fused: it is written out first."""
    return {
        "torch": tuple(
            (
                Helper(written.changed(written.TORCH_ADAM, {"{base}": base, **torch})),
                Edit(f"torch.optim.{base}($$given)", "WrittenAdam($given)", everywhere=True),
            )
            for base in bases
        ),
        "tensorflow": (tensorflow,),
        "jax": (jax,),
    }


def _written(
    texts: Mapping[str, str], lines: Mapping[str, Mapping[str, str]], uses: Mapping[str, Edit]
) -> dict[str, tuple[Plan, ...]]:
    """A class that is written out with some of its lines changed, and used in place of the framework's."""
    return {b: ((Helper(written.changed(texts[b], lines[b])), uses[b]),) for b in texts if b in lines}


LAYER_NORMS = {
    "torch": Edit("nn.LayerNorm($$given)", "WrittenLayerNorm($given)"),
    "tensorflow": Edit("keras.layers.LayerNormalization($$given)", "WrittenLayerNorm($given)"),
    "jax": Edit("nnx.LayerNorm($$given)", "WrittenLayerNorm($given)"),
}
BATCH_NORMS = {
    "tensorflow": Edit("keras.layers.BatchNormalization($$given)", "WrittenBatchNorm($given)", everywhere=True),
    "jax": Edit("nnx.BatchNorm($$given)", "WrittenBatchNorm($given)", everywhere=True),
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


def _lstm(lines: Mapping[str, str]) -> dict[str, tuple[Plan, ...]]:
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
    return _written(written.LSTM, spelled, LSTMS)


STRAIGHT = {
    "torch": "($x + ($new - $x).detach())",
    "tensorflow": "($x + tf.stop_gradient($new - $x))",
    "jax": "($x + jax.lax.stop_gradient($new - $x))",
}


MASKED = '$x * masks["dropout1"]'


def _straight(backend: str, new: str) -> str:
    return STRAIGHT[backend].replace("$new", new)


def _bfloat16_backend(torch: str, tensorflow: str, jax: str) -> dict[str, tuple[Plan, ...]]:
    return _head(f"$head({torch})", f"$head({tensorflow})", f"$head({jax})")


DATA = (
    Mutant(
        "labels of the next row",
        "labels shifted by one row against their examples",
        "data",
        edits=_rows("label", "targets", "y", new='np.roll(inputs["train.$name"][rows], 1, axis=0)'),
    ),
    Mutant(
        "batch of the step before",
        "each step given the batch of the step before it",
        "data",
        edits=_same(Edit('inputs["order"][step]', 'inputs["order"][step - 1]')),
        where=_unequal_examples,
    ),
    Mutant(
        "rows of a batch reversed",
        "the rows of each batch in reverse order, so that dropout masks and noise meet other examples",
        "data",
        edits=_same(Edit('inputs["order"][step]', 'inputs["order"][step][::-1].copy()')),
        where=_has_masks,
    ),
    Mutant(
        "last example of a batch dropped",
        "the last example of each batch left out",
        "data",
        edits=_same(Edit('inputs["order"][step]', 'inputs["order"][step][:-1]')),
        where=lambda program: not _keeps_last_batch(program),
    ),
    Mutant(
        "input scaled twice",
        "the input divided by its range a second time",
        "data",
        edits=_rows("image", "x", new='(inputs["train.$name"][rows] / 16)'),
    ),
    Mutant(
        "input shifted",
        "a constant of 0.1 added to the input, as another normalisation would",
        "data",
        edits=_rows("image", "x", new='(inputs["train.$name"][rows] + inputs["train.$name"].dtype.type(0.1))'),
    ),
    Mutant(
        "targets not shifted",
        "the sequence itself as its own target, not the next character",
        "data",
        edits=_rows("targets", new='inputs["train.tokens"][rows]'),
    ),
    Mutant(
        "noise of the step before",
        "each step given the noise of the step before it",
        "data",
        edits=_same(Edit('inputs["noise"][step]', 'inputs["noise"][step - 1]')),
    ),
    Mutant(
        "mask of the next step",
        "dropout masks of the next step",
        "data",
        edits=_same(Edit("dropout_masks(step, $$count)", "dropout_masks(step + 1, $count)")),
        where=_has_masks,
    ),
    Mutant(
        "same mask at every step",
        "the first step's dropout masks at every step",
        "data",
        edits=_same(Edit("dropout_masks(step, len(rows))", "dropout_masks(0, len(rows))")),
        where=_has_masks,
        shows_at=2,
        note="At the first step the masks are the right ones.",
    ),
    Mutant(
        "mask not scaled",
        "dropout that does not divide what it keeps by 1 - rate",
        "data",
        edits=_same(Edit("(keep / (1 - rate)).astype(", "keep.astype(")),
        where=_has_masks,
    ),
    Mutant(
        "mask inverted",
        "dropout that keeps what it should drop",
        "data",
        edits=_same(Edit(">= round(rate * 2**16)", "< round(rate * 2**16)")),
        where=_has_masks,
    ),
    Mutant(
        "a tenth more dropout",
        "a dropout rate a tenth higher",
        "data",
        changes.first_op(Dropout)(_denser_dropout),
    ),
    Mutant(
        "dropout value by value",
        "dropout of single values where whole channels should drop",
        "data",
        changes.first_op(Dropout)(_per_value),
    ),
    Mutant(
        "dropout left out",
        "one dropout layer left out",
        "data",
        _dropout(rate=0.0),
        note="The layer's mask is missing from the batch as well.",
    ),
    Mutant(
        "smaller last batch filled up",
        "a smaller last batch filled up with other examples",
        "data",
        edits=_same(Edit("rows[rows >= 0]", "np.maximum(rows, 0)")),
        where=_keeps_last_batch,
        shows_at=3,
        note="Only the last batch of a pass over the data is smaller: the third of the probe's.",
    ),
)

FORWARD = (
    Mutant(
        "padding on the wrong side",
        "the zeros of an uneven padding before the image where they belong after it",
        "forward",
        changes.first_op(Convolution)(_padding_on_the_wrong_side),
    ),
    Mutant(
        "pool padding on the wrong side",
        "a pool's uneven padding after the image where it belongs before it",
        "forward",
        changes.first_op(MaxPool, AvgPool)(_padding_on_the_wrong_side),
    ),
    Mutant(
        "image turned on its side",
        "height and width of the image swapped",
        "forward",
        edits={
            "torch": _plans(Edit("image.permute(0, 3, 1, 2)", "image.permute(0, 3, 2, 1)")),
            "tensorflow": _plans(Edit("self.conv1(image)", "self.conv1(tf.transpose(image, (0, 2, 1, 3)))")),
            "jax": _plans(Edit("self.conv1(image)", "self.conv1(image.swapaxes(1, 2))")),
        },
    ),
    Mutant(
        "kernel turned on its side",
        "height and width of a convolution's kernel swapped",
        "forward",
        edits={
            "torch": _plans(Edit('conv1.weight", (3, 2, 0, 1)', 'conv1.weight", (3, 2, 1, 0)')),
            "tensorflow": _plans(Edit('conv1/kernel", (0, 1, 2, 3)', 'conv1/kernel", (1, 0, 2, 3)')),
            "jax": _plans(Edit('conv1.kernel", (0, 1, 2, 3)', 'conv1.kernel", (1, 0, 2, 3)')),
        },
    ),
    Mutant(
        "kernel flipped",
        "a convolution's kernel flipped, as mathematics and not as networks define convolution",
        "forward",
        edits={
            "torch": _plans(
                Edit("self.conv1(x)", "self.conv1(x.flip(2, 3)).flip(2, 3)"),
                Edit(
                    "self.conv1(image.permute(0, 3, 1, 2))",
                    "self.conv1(image.permute(0, 3, 1, 2).flip(2, 3)).flip(2, 3)",
                ),
            ),
            "tensorflow": _plans(
                Edit("self.conv1(x)", "self.conv1(x[:, ::-1, ::-1])[:, ::-1, ::-1]"),
                Edit("self.conv1(image)", "self.conv1(image[:, ::-1, ::-1])[:, ::-1, ::-1]"),
            ),
            "jax": _plans(
                Edit("self.conv1(x)", "self.conv1(x[:, ::-1, ::-1])[:, ::-1, ::-1]"),
                Edit("self.conv1(image)", "self.conv1(image[:, ::-1, ::-1])[:, ::-1, ::-1]"),
            ),
        },
    ),
    Mutant(
        "square kernel transposed",
        "a square kernel loaded without the transpose that its framework needs",
        "forward",
        edits={
            "torch": _plans(Edit('query.weight", (1, 0)', 'query.weight", (0, 1)')),
            "tensorflow": _plans(Edit('query/kernel", (0, 1)', 'query/kernel", (1, 0)')),
            "jax": _plans(Edit('query.kernel", (0, 1)', 'query.kernel", (1, 0)')),
        },
    ),
    Mutant(
        "dilated convolution",
        "a convolution whose taps are two pixels apart",
        "forward",
        changes.first_op(Conv2d)(_dilated),
    ),
    Mutant(
        "dropped activation",
        "an activation left out",
        "forward",
        changes.first_op(Relu, LeakyRelu, Elu, Selu, Gelu, Silu, Sigmoid, Tanh, Softplus)(_identity),
    ),
    Mutant(
        "leaking activation",
        "a leak of 0.01 in a ReLU that has none",
        "forward",
        changes.first_op(Relu)(lambda _node: LeakyRelu(slope=0.01)),
    ),
    Mutant(
        "slope of another framework",
        "a leaky ReLU with Keras' default slope of 0.3",
        "forward",
        changes.fields(LeakyRelu, slope=0.3),
    ),
    Mutant(
        "GELU by tanh",
        "GELU's approximation by tanh in place of the error function",
        "forward",
        changes.fields(Gelu, form="tanh"),
    ),
    Mutant(
        "SiLU for GELU",
        "SiLU where GELU belongs",
        "forward",
        changes.first_op(Gelu)(lambda _node: Silu()),
    ),
    Mutant(
        "tanh for sigmoid",
        "a network that ends in tanh in place of a sigmoid",
        "forward",
        changes.first_op(Sigmoid)(lambda _node: Tanh()),
    ),
    Mutant(
        "average for maximum",
        "average pooling in place of max pooling",
        "forward",
        changes.first_op(MaxPool2d)(_pool(AvgPool2d)),
    ),
    Mutant(
        "maximum for average",
        "max pooling in place of average pooling",
        "forward",
        changes.first_op(AvgPool2d)(_pool(MaxPool2d)),
        where=lambda program: any(
            isinstance(n.op, AvgPool2d) and not any(map(any, n.op.pads)) for n in _nodes(program)
        ),
    ),
    Mutant(
        "padding counted",
        "an average pool that counts the zeros of its padding",
        "forward",
        changes.first_op(AvgPool2d)(
            lambda node: (
                node.op.model_copy(update={"count_padding": True})
                if any(map(any, node.op.pads)) and not node.op.count_padding  # type: ignore[attr-defined]
                else None
            )
        ),
    ),
    Mutant(
        "maximum with zeros",
        "a max pool whose padding is zeros, which win over negative values",
        "forward",
        edits={
            "torch": _plans(Edit('value=float("-inf")', "value=0.0")),
            "tensorflow": _plans(
                Edit(
                    "tf.nn.max_pool2d($x, ($$window), ($$stride), [[0, 0], $$pads])",
                    'tf.nn.max_pool2d(tf.pad($x, [[0, 0], $pads]), ($window), ($stride), "VALID")',
                )
            ),
            "jax": _plans(
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
            "torch": _plans(Edit("$x.permute(0, 2, 3, 1).flatten(1)", "$x.flatten(1)")),
            "tensorflow": _plans(
                Edit("x = tf.reshape(x, (-1, $size))", "x = tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (-1, $size))")
            ),
            "jax": _plans(Edit("x.reshape(len(x), -1)", "x.transpose(0, 3, 1, 2).reshape(len(x), -1)")),
        },
        where=_flattens_images,
    ),
    Mutant(
        "reshaped channels first",
        "a vector folded into an image with its channels slowest",
        "forward",
        edits={
            "torch": _plans(Edit("$x.reshape(-1, $h, $w, $c)", "$x.reshape(-1, $c, $h, $w).permute(0, 2, 3, 1)")),
            "tensorflow": _plans(
                Edit("tf.reshape($x, (-1, $h, $w, $c))", "tf.transpose(tf.reshape($x, (-1, $c, $h, $w)), (0, 2, 3, 1))")
            ),
            "jax": _plans(Edit("$x.reshape(-1, $h, $w, $c)", "$x.reshape(-1, $c, $h, $w).transpose(0, 2, 3, 1)")),
        },
    ),
    Mutant(
        "read column by column",
        "an image read column by column where rows are the time steps",
        "forward",
        edits={
            "torch": _plans(Edit("image.reshape(-1, $t, $c)", "image.reshape(-1, $t, $c).transpose(1, 2)")),
            "tensorflow": _plans(
                Edit("tf.reshape(image, (-1, $t, $c))", "tf.transpose(tf.reshape(image, (-1, $t, $c)), (0, 2, 1))")
            ),
            "jax": _plans(Edit("image.reshape(-1, $t, $c)", "image.reshape(-1, $t, $c).swapaxes(1, 2)")),
        },
        where=_has(Reshape),
    ),
    Mutant(
        "normalisation epsilon of Keras",
        "Keras' default of 1e-3 as the epsilon of a normalisation",
        "forward",
        changes.first_op(BatchNorm, LayerNorm)(lambda node: node.op.model_copy(update={"epsilon": 1e-3})),
    ),
    Mutant(
        "normalisation epsilon of Flax",
        "Flax's default of 1e-6 as the epsilon of a normalisation",
        "forward",
        changes.first_op(BatchNorm, LayerNorm)(lambda node: node.op.model_copy(update={"epsilon": 1e-6})),
        note="A difference of 9e-6 against a variance near 1: a few units in float32's last places.",
    ),
    Mutant(
        "epsilon outside the norm's root",
        "layer normalisation's epsilon added to the standard deviation in place of the variance",
        "forward",
        edits=_written(
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
        edits=_written(
            written.LAYER_NORM,
            dict.fromkeys(("torch", "tensorflow", "jax"), {"/ x.shape[-1]": "/ (x.shape[-1] - 1)"}),
            LAYER_NORMS,
        ),
    ),
    Mutant(
        "running statistics in training",
        "batch normalisation by its running statistics in training",
        "forward",
        edits={
            "torch": _plans(
                Edit(
                    "return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)",
                    "return F.batch_norm(x, self.running_mean.clone(), self.running_var.clone(), self.weight, self.bias, eps=self.eps)",
                )
            ),
            "tensorflow": _plans(Edit("training=training)", "training=False)", everywhere=True)),
            "jax": _plans(
                Edit("nnx.BatchNorm($$given)", "nnx.BatchNorm($given, use_running_average=True)", everywhere=True)
            ),
        },
        where=_has(BatchNorm),
    ),
    Mutant(
        "batch statistics in evaluation",
        "batch normalisation by the batch's own statistics in evaluation too",
        "forward",
        edits={
            "torch": _plans(
                Edit(
                    "return super().forward(x)",
                    "return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)",
                )
            ),
            "tensorflow": _plans(Edit("(x, training=training)", "(x, training=True)", everywhere=True)),
            "jax": _plans(
                Edit("x = self.norm1(x)", "x = self.norm1(x, use_running_average=False)"),
            ),
        },
        where=_has(BatchNorm),
        note="Training is as it should be: only a forward pass in evaluation mode shows it.",
    ),
    Mutant(
        "LSTM gates swapped",
        "an LSTM's input and forget gates swapped",
        "forward",
        edits=_lstm({"i, f, g, o = ": "f, i, g, o = "}),
    ),
    Mutant(
        "LSTM gates in another order",
        "an LSTM's cell and output gates swapped",
        "forward",
        edits=_lstm({"i, f, g, o = ": "i, f, o, g = "}),
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
                (
                    Helper(written.changed(written.LSTM["torch"], {"torch.sigmoid(": "F.hardsigmoid("})),
                    LSTMS["torch"],
                ),
            ),
            "tensorflow": _plans(
                Edit("keras.layers.LSTM($$given)", 'keras.layers.LSTM($given, recurrent_activation="hard_sigmoid")')
            ),
            "jax": _plans(
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
            **_written(
                written.GRU,
                dict.fromkeys(("torch", "jax"), {"(1 - z) * n + z * h": "z * n + (1 - z) * h"}),
                GRUS,
            ),
            "tensorflow": _plans(
                Edit("(1 - z) * tf.tanh($$new) + z * h", "z * tf.tanh($new) + (1 - z) * h"),
            ),
        },
    ),
    Mutant(
        "reset before the product",
        "a GRU whose reset gate acts before the product with the state",
        "forward",
        edits={
            **_written(
                written.GRU,
                {
                    "torch": {"r * hn": "F.linear(r * h, self.weight_hh_l0).chunk(3, dim=1)[2]"},
                    "jax": {"r * hn": "jnp.split(self.dense_h(r * h), 3, axis=-1)[2]"},
                },
                GRUS,
            ),
            "tensorflow": _plans(
                Edit(
                    "tf.sigmoid(xr + hr) * hn",
                    "tf.split(tf.matmul(tf.sigmoid(xr + hr) * h, self.recurrent_kernel), 3, axis=-1)[2]",
                ),
            ),
        },
    ),
    Mutant(
        "mean of states for the last",
        "the mean of a recurrent layer's states in place of the last",
        "forward",
        edits={
            "torch": _plans(Edit("$layer($x)[0][:, -1]", "$layer($x)[0].mean(1)")),
            "tensorflow": _plans(
                (
                    Edit("return_sequences=False", "return_sequences=True"),
                    Edit("self.lstm1(x)", "tf.reduce_mean(self.lstm1(x), axis=1)"),
                ),
                (
                    Edit("return_sequences=False", "return_sequences=True"),
                    Edit("self.gru1(x)", "tf.reduce_mean(self.gru1(x), axis=1)"),
                ),
            ),
            "jax": _plans(Edit("rngs=nnx.Rngs(0))[:, -1]", "rngs=nnx.Rngs(0)).mean(axis=1)")),
        },
    ),
    Mutant(
        "sequence read backwards",
        "a sequence read from its end",
        "forward",
        edits={
            "torch": _plans(
                Edit("self.lstm1($x)", "self.lstm1($x.flip(1))"), Edit("self.gru1($x)", "self.gru1($x.flip(1))")
            ),
            "tensorflow": _plans(
                Edit("self.lstm1(x)", "self.lstm1(x[:, ::-1])"), Edit("self.gru1(x)", "self.gru1(x[:, ::-1])")
            ),
            "jax": _plans(
                Edit("self.lstm1(x, $$given)", "self.lstm1(x[:, ::-1], $given)"),
                Edit("self.gru1(x, $$given)", "self.gru1(x[:, ::-1], $given)"),
            ),
        },
    ),
    Mutant(
        "attention scale missing",
        "attention scores that are not divided by the root of the head's size",
        "forward",
        edits=_same(Edit(" / math.sqrt(q.shape[-1])", "")),
    ),
    Mutant(
        "attention scaled by all channels",
        "attention scores divided by the root of all channels, not of one head's",
        "forward",
        edits=_same(Edit("math.sqrt(q.shape[-1])", "math.sqrt(q.shape[-1] * self.heads)")),
    ),
    Mutant(
        "attention mask inverted",
        "attention that sees the future and not the past",
        "forward",
        edits=_attention(
            (".triu(1)", ".tril(-1)"),
            ("tf.linalg.band_part($$ones, -1, 0)", "tf.linalg.band_part($ones, 0, -1)"),
            ("jnp.tri(scores.shape[-1], dtype=bool)", "jnp.tri(scores.shape[-1], dtype=bool).T"),
        ),
    ),
    Mutant(
        "attention one step ahead",
        "a causal mask that lets each position see the next one",
        "forward",
        edits=_attention(
            (".triu(1)", ".triu(2)"),
            ("tf.linalg.band_part($$ones, -1, 0)", "tf.linalg.band_part($ones, -1, 1)"),
            ("jnp.tri(scores.shape[-1], dtype=bool)", "jnp.tri(scores.shape[-1], k=1, dtype=bool)"),
        ),
    ),
    Mutant(
        "causal mask dropped",
        "attention without its causal mask",
        "forward",
        changes.first_op(Attention)(
            lambda node: node.op.model_copy(update={"causal": False}) if node.op.causal else None  # type: ignore[attr-defined]
        ),
    ),
    Mutant(
        "softmax over the queries",
        "attention weights that sum to 1 over the queries, not the keys",
        "forward",
        edits={
            "torch": _plans(Edit("scores.softmax(dim=-1)", "scores.softmax(dim=-2)")),
            "tensorflow": _plans(Edit("tf.nn.softmax(scores, axis=-1)", "tf.nn.softmax(scores, axis=-2)")),
            "jax": _plans(Edit("nnx.softmax(scores, axis=-1)", "nnx.softmax(scores, axis=-2)")),
        },
    ),
    Mutant(
        "queries for keys",
        "queries and keys swapped",
        "forward",
        edits=_attention(
            ("q @ k.mT", "k @ q.mT"),
            ("tf.matmul(q, k, transpose_b=True)", "tf.matmul(k, q, transpose_b=True)"),
            ('jnp.einsum("nqhd,nkhd->nhqk", q, k)', 'jnp.einsum("nqhd,nkhd->nhqk", k, q)'),
        ),
    ),
    Mutant(
        "heads interleaved",
        "attention heads that take every so many-th channel, not neighbouring ones",
        "forward",
        edits=_attention(
            (
                "x.unflatten(-1, (self.heads, -1)).transpose(1, 2)",
                "x.unflatten(-1, (-1, self.heads)).permute(0, 3, 1, 2)",
            ),
            (
                "tf.reshape(x, (-1, x.shape[1], self.heads, x.shape[2] // self.heads))",
                "tf.einsum('ntch->nthc', tf.reshape(x, (-1, x.shape[1], x.shape[2] // self.heads, self.heads)))",
            ),
            (
                "x.reshape(*x.shape[:2], self.heads, -1)",
                "x.reshape(*x.shape[:2], -1, self.heads).swapaxes(2, 3)",
            ),
        ),
    ),
    Mutant(
        "attention weights not dropped",
        "attention whose weights see no dropout",
        "forward",
        edits=_same(Edit("weights * mask", "weights * 1"), Edit("weights * dropout_mask", "weights * 1")),
    ),
    Mutant(
        "mask of another layer",
        "dropout by the mask of another layer or call",
        "forward",
        edits=_same(
            (Edit('masks["dropout2"]', 'masks["dropout1"]'), Edit('y * masks["dropout1"]', 'y * masks["dropout2"]')),
            Edit('["masks"]["discriminator_logits2"]', '["masks"]["discriminator_logits"]'),
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
            "torch": _plans(Edit("$x + self.positions1", "$x + self.positions1.roll(1, 0)")),
            "tensorflow": _plans(Edit("x + self.embedding", "x + tf.roll(self.embedding, 1, axis=0)")),
            "jax": _plans(Edit("$x + self.positions1[...]", "$x + jnp.roll(self.positions1[...], 1, axis=0)")),
        },
    ),
    Mutant(
        "embedding scaled",
        "an embedding multiplied by the root of its width",
        "forward",
        edits=_same(Edit("self.embed(tokens)", "self.embed(tokens) * 64**0.5")),
    ),
    Mutant(
        "shortcut dropped",
        "a residual connection left out",
        "forward",
        lambda program: changes.first_node(program, _without_shortcut),
    ),
    Mutant(
        "rounded to bfloat16",
        "the input of a matrix product rounded to bfloat16",
        "forward",
        edits=_head(
            "$head($x.bfloat16().to($x.dtype))",
            "$head(tf.cast(tf.cast($x, tf.bfloat16), $x.dtype))",
            "$head($x.astype(jnp.bfloat16).astype($x.dtype))",
        ),
    ),
    Mutant(
        "rounded as in TF32",
        "the input of a matrix product rounded to TF32's eleven bits",
        "forward",
        # Veltkamp's splitting: in float32 what is left has 24 - 13 bits.
        edits=_head(
            "$head(8193 * $x - (8193 * $x - $x))",
            "$head(8193 * $x - (8193 * $x - $x))",
            "$head(8193 * $x - (8193 * $x - $x))",
        ),
        precisions=("float32",),
        note="In float64 the same arithmetic keeps 40 bits, which is no TF32.",
    ),
    Mutant(
        "float32 inside float64",
        "a value rounded to float32 in the middle of a float64 program",
        "forward",
        edits=_head(
            "$head($x.float().double())",
            "$head(tf.cast(tf.cast($x, tf.float32), tf.float64))",
            "$head($x.astype(jnp.float32).astype(jnp.float64))",
        ),
        precisions=("float64",),
        note="In a float32 program every value is rounded to float32.",
    ),
)

LOSS = (
    Mutant(
        "label smoothing dropped",
        "labels that are not smoothed",
        "loss",
        _smoothing(lambda _smoothing, _classes: 0.0),
    ),
    Mutant(
        "label smoothing over the others",
        "label smoothing shared among the other classes only",
        "loss",
        _smoothing(lambda smoothing, classes: round(smoothing * classes / (classes - 1), 12)),
    ),
    Mutant(
        "absolute error",
        "the mean absolute error in place of the squared one",
        "loss",
        changes.first_term(_absolute_error),
    ),
    Mutant(
        "sum for mean",
        "a loss summed over the batch, not averaged",
        "loss",
        _weighted(lambda program, term: float(changes.elements(program, term))),
    ),
    Mutant(
        "positions summed",
        "a loss averaged over examples but summed over positions",
        "loss",
        _weighted(lambda program, term: _positions(program, term)),
    ),
    Mutant(
        "half the loss",
        "a loss with a factor of a half",
        "loss",
        _weighted(lambda _program, _term: 0.5),
    ),
    Mutant(
        "second term at half weight",
        "the second term of a loss at half its weight",
        "loss",
        _second_term_lighter,
    ),
    Mutant(
        "softmax twice",
        "probabilities given to a loss that wants logits",
        "loss",
        edits={
            "torch": _plans(
                Edit("F.cross_entropy(logits.flatten(0, -2), ", "F.cross_entropy(logits.softmax(-1).flatten(0, -2), "),
                Edit("F.cross_entropy(logits, ", "F.cross_entropy(logits.softmax(-1), "),
                Edit(
                    "F.binary_cross_entropy_with_logits(logits, ",
                    "F.binary_cross_entropy_with_logits(logits.sigmoid(), ",
                ),
            ),
            "tensorflow": _plans(
                Edit(
                    "tf.nn.sparse_softmax_cross_entropy_with_logits(labels=$$labels, logits=logits)",
                    "tf.nn.sparse_softmax_cross_entropy_with_logits(labels=$labels, logits=tf.nn.softmax(logits))",
                ),
                Edit(
                    "tf.nn.softmax_cross_entropy_with_logits(labels=$$labels, logits=logits)",
                    "tf.nn.softmax_cross_entropy_with_logits(labels=$labels, logits=tf.nn.softmax(logits))",
                ),
                Edit(
                    "tf.nn.sigmoid_cross_entropy_with_logits(labels=$$labels, logits=logits)",
                    "tf.nn.sigmoid_cross_entropy_with_logits(labels=$labels, logits=tf.sigmoid(logits))",
                ),
            ),
            "jax": _plans(
                Edit(
                    "optax.softmax_cross_entropy_with_integer_labels(logits, ",
                    "optax.softmax_cross_entropy_with_integer_labels(nnx.softmax(logits), ",
                ),
                Edit("optax.softmax_cross_entropy(logits, ", "optax.softmax_cross_entropy(nnx.softmax(logits), "),
                Edit(
                    "optax.sigmoid_binary_cross_entropy(logits, ",
                    "optax.sigmoid_binary_cross_entropy(nnx.sigmoid(logits), ",
                ),
            ),
        },
    ),
    Mutant(
        "real and fake swapped",
        "a discriminator told that the real images are the made ones",
        "loss",
        _other_labels,
    ),
    Mutant(
        "generator's label of the other side",
        "a generator rewarded for being found out",
        "loss",
        _opposed,
    ),
    Mutant(
        "smaller last batch divided by the full size",
        "the loss of a smaller last batch divided by the size of a full one",
        "loss",
        edits={
            "torch": _plans(Edit("F.mse_loss(", 'len(batch["y"]) / $batch_size * F.mse_loss(')),
            "tensorflow": _plans(
                Edit(
                    "tf.reduce_mean(tf.square(",
                    'tf.cast(tf.shape(batch["y"])[0], keras.config.floatx()) / $batch_size * tf.reduce_mean(tf.square(',
                )
            ),
            "jax": _plans(Edit("optax.squared_error(", 'len(batch["y"]) / $batch_size * optax.squared_error(')),
        },
        where=_keeps_last_batch,
        shows_at=3,
        note="Only the last batch of a pass over the data is smaller: the third of the probe's.",
    ),
)

BACKWARD = (
    Mutant(
        "activation without its gradient",
        "a ReLU whose gradient is passed straight through",
        "backward",
        edits=_activation(
            _straight("torch", "F.relu($x)"),
            _straight("tensorflow", "tf.nn.relu($x)"),
            _straight("jax", "nnx.relu($x)"),
        ),
    ),
    Mutant(
        "dropout without its gradient",
        "dropout that is left out of the backward pass",
        "backward",
        edits={
            backend: _plans(Edit(f"{MASKED} if masks", f"{_straight(backend, MASKED)} if masks"))
            for backend in STRAIGHT
        },
        where=lambda program: _has_masks(program) and not isinstance(_first_masked(program), Reshape),
    ),
    Mutant(
        "shortcut without its gradient",
        "a residual connection that stops the gradient",
        "backward",
        edits={
            "torch": _plans(Edit("x = x + y", "x = x.detach() + y")),
            "tensorflow": _plans(Edit("x = x + y", "x = tf.stop_gradient(x) + y")),
            "jax": _plans(Edit("x = x + y", "x = jax.lax.stop_gradient(x) + y")),
        },
        where=_has(Add),
    ),
    Mutant(
        "embedding's gradient summed twice",
        "an embedding's gradient counted twice where it is looked up",
        "backward",
        edits={
            "torch": _plans(Edit("self.embed(tokens)", "2 * self.embed(tokens) - self.embed(tokens).detach()")),
            "tensorflow": _plans(
                Edit("self.embed(tokens)", "2 * self.embed(tokens) - tf.stop_gradient(self.embed(tokens))")
            ),
            "jax": _plans(
                Edit("self.embed(tokens)", "2 * self.embed(tokens) - jax.lax.stop_gradient(self.embed(tokens))")
            ),
        },
    ),
    Mutant(
        "embedding's gradient averaged",
        "an embedding's gradient divided by how often a row is looked up",
        "backward",
        edits={"torch": _plans(Edit("nn.Embedding($$given)", "nn.Embedding($given, scale_grad_by_freq=True)"))},
        where=_has(Embedding),
        note="A switch that PyTorch alone has.",
    ),
    Mutant(
        "tied embedding untied",
        "an output that uses the embedding without teaching it",
        "backward",
        edits={
            "torch": _plans(Edit("F.linear($x, self.embed.weight)", "F.linear($x, self.embed.weight.detach())")),
            "tensorflow": _plans(
                Edit("tf.transpose(self.embed.embeddings)", "tf.stop_gradient(tf.transpose(self.embed.embeddings))")
            ),
            "jax": _plans(Edit("self.embed.attend($x)", "$x @ jax.lax.stop_gradient(self.embed.embedding[...]).T")),
        },
    ),
    Mutant(
        "bias left out",
        "the last layer's bias left out",
        "backward",
        edits=_head("$head($x) - $head.bias", "$head($x) - $head.bias", "$head($x) - $head.bias[...]"),
        where=_ends_with_zero_bias,
        note="The bias starts at zero, so that the first forward pass is right and its gradient, which vanishes, is not.",
    ),
)


def _first_masked(program: Program) -> Op | None:
    """What feeds the first dropout layer: with a plain input behind it, no gradient reaches a parameter."""
    for graph in _graphs(program):
        ops = {node.name: node.op for node in graph.nodes}
        for node in graph.nodes:
            if isinstance(node.op, Dropout) and node.op.rate:
                return ops.get(node.inputs[0])
    return None


SGD_CHAIN = "optax.sgd($rate, momentum=$m, nesterov=True)"

OPTIMIZER = (
    Mutant(
        "gradients accumulated",
        "gradients that are never set back to zero",
        "optimizer",
        edits={"torch": _plans(Edit("$optimizer.zero_grad()", "pass"))},
        shows_at=2,
        note="The first gradient is added to nothing; a fault of PyTorch, where gradients are kept.",
    ),
    Mutant(
        "epsilon inside the root",
        "Adam's epsilon added inside the square root instead of outside",
        "optimizer",
        edits=_adam(
            {"((v / c2).sqrt() + epsilon)": "(v / c2 + epsilon).sqrt()"},
            (Edit("(tf.sqrt(v) / correction + self.epsilon)", "tf.sqrt(v / tf.square(correction) + self.epsilon)"),),
            (Edit("(jnp.sqrt(v / c2) + eps)", "jnp.sqrt(v / c2 + eps)"),),
        ),
    ),
    Mutant(
        "epsilon before the bias correction",
        "Adam's epsilon added before the bias correction, as Keras does",
        "optimizer",
        edits=_adam(
            {"((v / c2).sqrt() + epsilon)": "((v.sqrt() + epsilon) / c2**0.5)"},
            (Edit("(tf.sqrt(v) / correction + self.epsilon)", "((tf.sqrt(v) + self.epsilon) / correction)"),),
            (Edit("(jnp.sqrt(v / c2) + eps)", "((jnp.sqrt(v) + eps) / jnp.sqrt(c2))"),),
        ),
        note="An epsilon of 1e-8 that counts 30 times: in float32 it needs gradients near 1e-4 to show.",
    ),
    Mutant(
        "bias correction missing",
        "Adam without its bias correction",
        "optimizer",
        edits=_adam(
            {"c1, c2 = 1 - b1**t, 1 - b2**t": "c1, c2 = 1.0, 1.0"},
            (
                Edit("tf.cast(learning_rate, tf.float64) / (1 - self.beta_1**t)", "tf.cast(learning_rate, tf.float64)"),
                Edit("tf.sqrt(1 - self.beta_2**t)", "tf.ones_like(t)"),
            ),
            (Edit("-jnp.expm1(t * math.log(b)) if b else 1.0", "1.0"),),
        ),
    ),
    Mutant(
        "bias correction one update late",
        "Adam's bias correction of the update before",
        "optimizer",
        edits=_adam(
            {'t = state["step"].item()': 't = max(state["step"].item() - 1, 1)'},
            (Edit("tf.cast(self.iterations + 1, tf.float64)", "tf.maximum(tf.cast(self.iterations, tf.float64), 1)"),),
            (Edit("-jnp.expm1(t * math.log(b))", "-jnp.expm1(jnp.maximum(t - 1, 1) * math.log(b))"),),
        ),
        shows_at=2,
        note="The first update has no update before it.",
    ),
    Mutant(
        "bias correction one update early",
        "Adam's bias correction of the update after",
        "optimizer",
        edits=_adam(
            {'t = state["step"].item()': 't = state["step"].item() + 1'},
            (Edit("tf.cast(self.iterations + 1, tf.float64)", "tf.cast(self.iterations + 2, tf.float64)"),),
            (Edit("-jnp.expm1(t * math.log(b))", "-jnp.expm1((t + 1) * math.log(b))"),),
        ),
    ),
    Mutant(
        "Adam's epsilon of Keras",
        "Keras' default of 1e-7 as Adam's epsilon",
        "optimizer",
        _set(Adam, epsilon=1e-7),
        note="In float32 it needs gradients below 1e-2 to show.",
    ),
    Mutant(
        "Adam's epsilon of 1e-3",
        "an epsilon of 1e-3 in Adam",
        "optimizer",
        _set(Adam, epsilon=1e-3),
    ),
    Mutant(
        "beta1 of 0.8",
        "a beta1 of 0.8 in Adam",
        "optimizer",
        _set(Adam, beta1=0.8),
        shows_at=2,
        note="The bias correction makes the first update the gradient itself, whatever beta1; the first moment shows it.",
    ),
    Mutant(
        "beta2 of 0.95",
        "a beta2 of 0.95 in Adam",
        "optimizer",
        _set(Adam, beta2=0.95),
        shows_at=2,
        note="The bias correction makes the first update the gradient's sign, whatever beta2; the second moment shows it.",
    ),
    Mutant(
        "coupled weight decay",
        "weight decay added to the gradient, where Adam's moments see it",
        "optimizer",
        edits={
            "torch": _plans(Edit("torch.optim.AdamW(", "torch.optim.Adam(")),
            "tensorflow": _plans(
                (
                    Edit(
                        "index = self._get_variable_index(variable)",
                        "index = self._get_variable_index(variable)\n"
                        "        if self._use_weight_decay(variable):\n"
                        "            gradient += tf.cast(self.weight_decay, variable.dtype) * variable",
                    ),
                    Edit(
                        "def update_step(",
                        "def _apply_weight_decay(self, variables: list) -> None:\n        pass\n\n    def update_step(",
                    ),
                    Edit("class AdamW(", "class AdamW("),
                )
            ),
            "jax": _plans(
                Edit(
                    "scale_by_adam($$adam), optax.add_decayed_weights($$decay)",
                    "optax.add_decayed_weights($decay), scale_by_adam($adam)",
                )
            ),
        },
        where=lambda program: any(isinstance(u.optimizer, AdamW) for u in program.updates),
    ),
    Mutant(
        "decay without the learning rate",
        "weight decay that is not multiplied by the learning rate",
        "optimizer",
        edits=_adam(
            {'1 - rate * group["weight_decay"]': '1 - group["weight_decay"]'},
            (
                Edit(
                    "def update_step(",
                    "def _apply_weight_decay(self, variables: list) -> None:\n"
                    "        for variable in filter(self._use_weight_decay, variables):\n"
                    "            variable.assign_sub(variable * tf.cast(self.weight_decay, variable.dtype))\n\n"
                    "    def update_step(",
                ),
                Edit("class AdamW(", "class AdamW("),
            ),
            (
                Edit(
                    "optax.add_decayed_weights($$decay), optax.scale_by_learning_rate($$rate)",
                    "optax.scale_by_learning_rate($rate), optax.add_decayed_weights(-$decay)",
                ),
            ),
            bases=("AdamW",),
        ),
    ),
    Mutant(
        "decay on biases",
        "weight decay on biases",
        "optimizer",
        _rule(AdamW, lambda rule: {"no_decay": tuple(n for n in rule.no_decay if n != "bias")}),  # type: ignore[attr-defined]
        shows_at=2,
        note="Biases start at zero, where decay does nothing.",
    ),
    Mutant(
        "no weight decay",
        "weight decay left out",
        "optimizer",
        _set(AdamW, weight_decay=0.0),
    ),
    Mutant(
        "ten times the weight decay",
        "weight decay with its decimal point one place off",
        "optimizer",
        _rule(AdamW, lambda rule: {"weight_decay": round(10 * rule.weight_decay, 9)}),  # type: ignore[attr-defined]
    ),
    Mutant(
        "learning rate one per cent off",
        "a learning rate one per cent too high",
        "optimizer",
        _rule(Optimizer, lambda rule: {"learning_rate": round(1.01 * rule.learning_rate, 12)}),
    ),
    Mutant(
        "schedule one update early",
        "the learning rate of the update after",
        "optimizer",
        edits={
            "torch": _plans(Edit('group["lr"] = $rate(step)', 'group["lr"] = $rate(step + 1)')),
            "tensorflow": _plans(Edit("tf.cast(step, tf.float64)", "tf.cast(step, tf.float64) + 1")),
            "jax": _plans(
                Edit(
                    "optax.scale_by_learning_rate(learning_rate)",
                    "optax.scale_by_learning_rate(lambda step: learning_rate(step + 1))",
                ),
                Edit("optax.sgd(learning_rate, ", "optax.sgd(lambda step: learning_rate(step + 1), "),
            ),
        },
        where=_scheduled,
        note="A staircase shows it at the update before its first step down.",
    ),
    Mutant(
        "schedule one update late",
        "the learning rate of the update before",
        "optimizer",
        edits={
            "torch": _plans(Edit('group["lr"] = $rate(step)', 'group["lr"] = $rate(max(step - 1, 0))')),
            "tensorflow": _plans(Edit("tf.cast(step, tf.float64)", "tf.maximum(tf.cast(step, tf.float64) - 1, 0)")),
            "jax": _plans(
                Edit(
                    "optax.scale_by_learning_rate(learning_rate)",
                    "optax.scale_by_learning_rate(lambda step: learning_rate(jnp.maximum(step - 1, 0)))",
                ),
                Edit("optax.sgd(learning_rate, ", "optax.sgd(lambda step: learning_rate(jnp.maximum(step - 1, 0)), "),
            ),
        },
        where=_scheduled,
        shows_at=2,
        note="The first update has no update before it.",
    ),
    Mutant(
        "warm-up one update longer",
        "a warm-up that is one update longer",
        "optimizer",
        _warmup(warmup=lambda rule: rule.warmup + 1),
        shows_at=2,
        note="The warm-up's first rate is the same.",
    ),
    Mutant(
        "warm-up from zero",
        "a warm-up that starts from a learning rate of 0",
        "optimizer",
        _warmup(warmup_start=lambda _rule: 0.0),
    ),
    Mutant(
        "warm-up dropped",
        "no warm-up",
        "optimizer",
        _warmup(warmup=lambda _rule: 0),
    ),
    Mutant(
        "another final rate",
        "a cosine descent to another final rate",
        "optimizer",
        _cosine(lambda rule: {"final": 0.0 if rule.final else 0.1}),
        shows_at=2,
        note="The descent starts from the same rate: in float32 it shows after some updates, behind a warm-up after that.",
    ),
    Mutant(
        "a longer descent",
        "a cosine descent that counts the warm-up too, or one update more",
        "optimizer",
        _cosine(lambda rule: {"steps": (rule.steps or 0) + (rule.warmup or 1)}),
        shows_at=2,
        note="The descent starts from the same rate: in float32 it shows after some updates, behind a warm-up after that.",
    ),
    Mutant(
        "staircase one update longer",
        "a staircase whose steps are one update longer",
        "optimizer",
        _step(lambda rule: {"every": rule.every + 1}),
        shows_at=3,
        note="The first step down of the probe comes with its third update.",
    ),
    Mutant(
        "clipping dropped",
        "gradients that are not clipped",
        "optimizer",
        changes.clip(lambda _rule: None),
        note="Shows at steps whose gradient is above the limit.",
    ),
    Mutant(
        "clipping at nine tenths",
        "gradients clipped at nine tenths of the limit",
        "optimizer",
        changes.clip(lambda rule: rule.model_copy(update={"limit": round(0.9 * rule.limit, 9)})),
        note="Shows at steps whose gradient is above nine tenths of the limit.",
    ),
    Mutant(
        "clipping value by value",
        "each value of a gradient clipped, not their common norm",
        "optimizer",
        changes.clip(
            lambda rule: (
                ClipValue(limit=0.05 * rule.limit) if isinstance(rule, GlobalNorm) else GlobalNorm(limit=rule.limit)
            )
        ),
        note="Where values are to be clipped, their common norm is clipped instead.",
    ),
    Mutant(
        "clipping tensor by tensor",
        "each gradient clipped by its own norm, not by that of all together",
        "optimizer",
        edits={
            "torch": _plans(Edit("gradient.mul_(scale)", "gradient.mul_((limit / gradient.norm()).clamp(max=1.0))")),
            "tensorflow": _plans(
                Edit(
                    "gradients, _ = tf.clip_by_global_norm(gradients, $limit)",
                    "gradients = [tf.clip_by_norm(g, $limit) for g in gradients]",
                )
            ),
            "jax": _plans(
                Edit(
                    "optax.clip_by_global_norm($limit)",
                    "optax.stateless(lambda gradients, _: jax.tree.map(lambda g: g * jnp.minimum(1.0, $limit / jnp.linalg.norm(g.ravel())), gradients))",
                )
            ),
        },
        note="Shows at steps whose gradients together are above the limit.",
    ),
    Mutant(
        "clipping with an epsilon",
        "1e-6 added to the norm that gradients are clipped by, as PyTorch's own function does",
        "optimizer",
        edits={
            "torch": _plans(
                Edit(
                    "limit / nn.utils.get_total_norm(gradients)", "limit / (nn.utils.get_total_norm(gradients) + 1e-6)"
                )
            )
        },
        note="A relative 1e-6 or less of the gradient, most of which Adam divides out again: below float32's rounding.",
        precisions=("float64",),
    ),
    Mutant(
        "rows of an embedding not summed",
        "the norm of an embedding's gradient taken before its repeated rows are summed",
        "optimizer",
        edits={
            "tensorflow": _plans(Edit("gradients = [tf.convert_to_tensor(g) for g in gradients]", "pass")),
        },
        where=_has(Embedding),
        note="TensorFlow alone gives such a gradient as rows.",
    ),
    Mutant(
        "momentum half as forgetful",
        "a momentum whose memory is twice as long",
        "optimizer",
        _rule(Sgd, _momentum),
        shows_at=1,
        note="Without Nesterov the first update is the gradient itself, whatever the momentum: it shows at the second.",
    ),
    Mutant(
        "Nesterov left out",
        "plain momentum in place of Nesterov's",
        "optimizer",
        _rule(Sgd, _without_nesterov),
    ),
    Mutant(
        "learning rate inside the momentum",
        "a velocity that holds the learning rate, so that a schedule acts late",
        "optimizer",
        edits={
            "torch": _plans(
                (
                    Edit('group["lr"] = learning_rate(step)', 'group["lr"] = 1.0'),
                    Edit(
                        "optimizer.step()",
                        "for p in model.parameters():\n        p.grad.mul_(learning_rate(step))\n    optimizer.step()",
                    ),
                    Edit("momentum=$m", "momentum=$m"),
                )
            ),
            "tensorflow": _plans(
                Edit(
                    "= NesterovSGD(learning_rate=$$rate, momentum=$m)",
                    "= keras.optimizers.SGD(learning_rate=$rate, momentum=$m, nesterov=True)",
                ),
                Edit(
                    "= SGD(learning_rate=$$rate, momentum=$m)",
                    "= keras.optimizers.SGD(learning_rate=$rate, momentum=$m)",
                ),
            ),
            "jax": _plans(
                Edit(
                    "optax.sgd($rate, momentum=$m, nesterov=True)",
                    "optax.chain(optax.scale_by_learning_rate($rate), optax.trace($m, nesterov=True))",
                ),
                Edit(
                    "optax.sgd($rate, momentum=$m)",
                    "optax.chain(optax.scale_by_learning_rate($rate), optax.trace($m))",
                ),
            ),
        },
        where=_scheduled,
        shows_at=2,
        note="While the learning rate stays the same, both rules do: in the parameters it shows once the rate has changed.",
    ),
    Mutant(
        "two biases learning",
        "a second bias that learns beside the first",
        "optimizer",
        edits={
            "torch": _plans(
                (
                    Edit("[p for p in model.parameters() if p.requires_grad]", "list(model.parameters())"),
                    Edit(
                        "state = model.state_dict()",
                        "state = model.state_dict()\n    model.lstm1.bias_hh_l0.requires_grad_()",
                    ),
                    Edit("self.lstm1.bias_hh_l0", "self.lstm1.bias_hh_l0"),
                ),
                (
                    Edit("[p for p in model.parameters() if p.requires_grad]", "list(model.parameters())"),
                    Edit(
                        "state = model.state_dict()",
                        "state = model.state_dict()\n    model.gru1.bias_hh_l0.requires_grad_()",
                    ),
                    Edit("self.gru1.bias_hh_l0", "self.gru1.bias_hh_l0"),
                ),
            )
        },
        shows_at=2,
        note="PyTorch alone has a second bias; it starts at zero, and from the second step on the layer's output feels it.",
    ),
    Mutant(
        "updates in the wrong order",
        "the second update made before the first",
        "optimizer",
        _reversed_updates,
    ),
    Mutant(
        "first update moves both networks",
        "a discriminator's update that moves the generator too, its images not detached",
        "optimizer",
        _moves_all(0),
    ),
    Mutant(
        "second update moves both networks",
        "a generator's update that moves the discriminator too",
        "optimizer",
        _moves_all(1),
    ),
)

STATE = (
    Mutant(
        "momentum convention swapped",
        "batch normalisation's momentum taken for its complement",
        "state",
        changes.first_op(BatchNorm)(
            lambda node: node.op.model_copy(update={"momentum": round(1 - node.op.momentum, 9)})  # type: ignore[attr-defined]
        ),
    ),
    Mutant(
        "normalisation momentum of Keras",
        "Keras' default of 0.99 as batch normalisation's momentum",
        "state",
        changes.fields(BatchNorm, momentum=0.99),
    ),
    Mutant(
        "statistics frozen",
        "running statistics that are never updated",
        "state",
        changes.fields(BatchNorm, momentum=1.0),
    ),
    Mutant(
        "statistics updated twice",
        "running statistics that are updated twice in each step",
        "state",
        changes.first_op(BatchNorm)(
            lambda node: node.op.model_copy(update={"momentum": round(node.op.momentum**2, 9)})  # type: ignore[attr-defined]
        ),
    ),
    Mutant(
        "unbiased running variance",
        "a running variance that is the unbiased one, as PyTorch keeps it",
        "state",
        edits={
            "torch": _plans(
                Edit("correction=0)", "correction=1)"),
            ),
            **_written(
                written.BATCH_NORM,
                dict.fromkeys(("tensorflow", "jax"), {"new * count / count": "new * count / (count - 1)"}),
                BATCH_NORMS,
            ),
        },
        where=_has(BatchNorm),
        note="One part in the number of values of each channel: a few in ten thousand for images.",
    ),
)

MUTANTS: tuple[Mutant, ...] = (*DATA, *FORWARD, *LOSS, *BACKWARD, *OPTIMIZER, *STATE)
