"""Faults of the loss."""

from collections.abc import Callable
from dataclasses import replace

from harness.check import changes
from harness.check.changes import Change
from harness.check.edits import Edit, plans
from harness.check.mutant import Mutant, keeps_last_batch
from harness.check.places import FIRST, Place
from harness.graph import Program, Term, Update
from harness.losses import MeanAbsoluteError, MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy


def _smoothing(rule: Callable[[float, int], float]) -> Change:
    def change(_program: Program, term: Term) -> Term | None:
        loss = term.loss
        if not isinstance(loss, (SoftmaxCrossEntropy, SigmoidCrossEntropy)) or not loss.label_smoothing:
            return None
        classes = term.outputs_shape[-1] if isinstance(loss, SoftmaxCrossEntropy) else 2
        smoothing = rule(loss.label_smoothing, classes)
        return replace(term, loss=loss.model_copy(update={"label_smoothing": smoothing}))

    return changes.terms(change)


def _weighted(factor: Callable[[Program, Term], float]) -> Change:
    def change(program: Program, term: Term) -> Term | None:
        times = factor(program, term)
        if times == 1:
            return None
        return replace(term, loss=term.loss.model_copy(update={"weight": term.loss.weight * times}))

    return changes.terms(change)


def _positions(program: Program, term: Term) -> float:
    return changes.elements(program, term) / program.batch


def _absolute_error(_program: Program, term: Term) -> Term | None:
    loss = term.loss
    if not isinstance(loss, MeanSquaredError):
        return None
    other = MeanAbsoluteError.model_construct(weight=loss.weight, predictions=loss.predictions, targets=loss.targets)
    return replace(term, loss=other)


def _second_term_lighter(update: Update) -> Update | None:
    if len(update.terms) < 2:  # noqa: PLR2004 - a second one
        return None
    first, second, *rest = update.terms
    lighter = second.loss.model_copy(update={"weight": second.loss.weight / 2})
    return replace(update, terms=(first, replace(second, loss=lighter), *rest))


def _other_labels(update: Update) -> Update | None:
    """The numbers that an update's terms aim at, turned around."""
    if len(update.terms) < 2 or any(t.targets.kind != "number" for t in update.terms):  # noqa: PLR2004
        return None
    terms = [replace(t, targets=replace(t.targets, number=1 - t.targets.number)) for t in update.terms]
    return replace(update, terms=tuple(terms))


def _opposed(program: Program, _place: Place = FIRST) -> Program | None:
    """The single number that the last update's loss aims at, turned around: its players help each other."""
    (*before, update) = program.updates
    if not before or len(update.terms) != 1 or update.terms[0].targets.kind != "number":
        return None
    (term,) = update.terms
    other = replace(term, targets=replace(term.targets, number=1 - term.targets.number))
    return replace(program, updates=(*before, replace(update, terms=(other,))))


MUTANTS = (
    Mutant(
        "label smoothing dropped", "labels that are not smoothed", "loss", _smoothing(lambda _smoothing, _classes: 0.0)
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
        changes.terms(_absolute_error),
    ),
    Mutant(
        "sum for mean",
        "a loss summed over the batch, not averaged",
        "loss",
        _weighted(lambda program, term: float(changes.elements(program, term))),
    ),
    Mutant(
        "positions summed",
        "a loss averaged over examples but summed over positions, as reduction='batchmean' does",
        "loss",
        _weighted(_positions),
    ),
    Mutant(
        "averaged over the classes too",
        "a cross-entropy averaged over the classes too, as reduction='mean' of terms by class does",
        "loss",
        _weighted(lambda _program, term: 1 / term.outputs_shape[-1] if term.loss.integer_targets else 1.0),
    ),
    Mutant("half the loss", "a loss with a factor of a half", "loss", _weighted(lambda _program, _term: 0.5)),
    Mutant(
        "second term at half weight",
        "the second term of a loss at half its weight",
        "loss",
        changes.updates(_second_term_lighter),
    ),
    Mutant(
        "softmax twice",
        "probabilities given to a loss that wants logits",
        "loss",
        edits={
            "torch": plans(
                Edit("F.cross_entropy(logits.flatten(0, -2), ", "F.cross_entropy(logits.softmax(-1).flatten(0, -2), "),
                Edit("F.cross_entropy(logits, ", "F.cross_entropy(logits.softmax(-1), "),
                Edit(
                    "F.binary_cross_entropy_with_logits(logits, ",
                    "F.binary_cross_entropy_with_logits(logits.sigmoid(), ",
                ),
            ),
            "tensorflow": plans(
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
            "jax": plans(
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
        changes.updates(_other_labels),
    ),
    Mutant("generator's label of the other side", "a generator rewarded for being found out", "loss", _opposed),
    Mutant(
        "smaller last batch divided by the full size",
        "the loss of a smaller last batch divided by the size of a full one",
        "loss",
        edits={
            "torch": plans(Edit("F.mse_loss(", 'len(batch["<target>"]) / <batch_size> * F.mse_loss(')),
            "tensorflow": plans(
                Edit(
                    "tf.reduce_mean(tf.square(",
                    'tf.cast(tf.shape(batch["<target>"])[0], keras.config.floatx()) / <batch_size> * tf.reduce_mean(tf.square(',
                )
            ),
            "jax": plans(Edit("optax.squared_error(", 'len(batch["<target>"]) / <batch_size> * optax.squared_error(')),
        },
        where=keeps_last_batch,
        shows_at=3,
        note="Only the last batch of a pass over the data is smaller: the third of the probe's.",
    ),
)
