"""Faults of what a step is given: rows, labels, noise, dropout masks."""

from harness.check import changes
from harness.check.changes import Change
from harness.check.edits import Edit, Plans, same
from harness.check.mutant import Mutant, has_masks, keeps_last_batch, names
from harness.graph import Node, Program
from harness.ops.base import Op
from harness.ops.normalisation import Dropout


def _unequal_examples(program: Program) -> bool:
    return program.spec.data.shuffle


def _predicts_ids(program: Program) -> bool:
    """Whether the targets are ids in a sequence of the input's length."""
    known = names(program)
    if not {"tokens", "target"} <= set(known):
        return False
    tokens, target = (program.columns[known[name]] for name in ("tokens", "target"))
    return (tokens.shape, tokens.dtype) == (target.shape, target.dtype)


def _dropout(**values: object) -> Change:
    def change(node: Node) -> Op | None:
        same = all(getattr(node.op, name) == value for name, value in values.items())
        mask = node.op.mask(*node.input_shapes)
        return None if mask is None or same else node.op.model_copy(update=values)

    return changes.ops(Dropout)(change)


def _denser_dropout(node: Node) -> Op | None:
    rate = node.op.rate  # type: ignore[attr-defined]
    return node.op.model_copy(update={"rate": round(1.1 * rate, 6)}) if rate else None


def _complement(node: Node) -> Op | None:
    rate = node.op.rate  # type: ignore[attr-defined]
    return node.op.model_copy(update={"rate": round(1 - rate, 9)}) if rate else None


def _per_value(node: Node) -> Op | None:
    per = node.op.per  # type: ignore[attr-defined]
    return node.op.model_copy(update={"per": "value"}) if per == "channel" else None


def _rows(field: str, new: str) -> Plans:
    """Another array where a field of the data is read."""
    return same(Edit(f'inputs["train.<{field}>"][rows]', new))


MUTANTS = (
    Mutant(
        "labels of the next row",
        "labels shifted by one row against their examples",
        "data",
        edits=_rows("target", 'np.roll(inputs["train.<target>"][rows], 1, axis=0)'),
    ),
    Mutant(
        "batch of the step before",
        "each step given the batch of the step before it",
        "data",
        edits=same(Edit('inputs["order"][step]', 'inputs["order"][step - 1]')),
        where=_unequal_examples,
    ),
    Mutant(
        "rows of a batch reversed",
        "the rows of each batch in reverse order, so that dropout masks and noise meet other examples",
        "data",
        edits=same(Edit('inputs["order"][step]', 'inputs["order"][step][::-1].copy()')),
        where=has_masks,
    ),
    Mutant(
        "last example of a batch dropped",
        "the last example of each batch left out",
        "data",
        edits=same(Edit('inputs["order"][step]', 'inputs["order"][step][:-1]')),
        where=lambda program: not keeps_last_batch(program),
    ),
    Mutant(
        "input scaled twice",
        "the input divided by its range a second time",
        "data",
        edits=_rows("input", '(inputs["train.<input>"][rows] / 16)'),
    ),
    Mutant(
        "input shifted",
        "a constant of 0.1 added to the input, as another normalisation would",
        "data",
        edits=_rows("input", '(inputs["train.<input>"][rows] + inputs["train.<input>"].dtype.type(0.1))'),
    ),
    Mutant(
        "colours reversed",
        "the colours of an image in reverse order, blue first, as OpenCV reads them",
        "data",
        edits=_rows("coloured", 'inputs["train.<coloured>"][rows][..., ::-1].copy()'),
    ),
    Mutant(
        "targets not shifted",
        "the sequence itself as its own target, not the next character",
        "data",
        edits=_rows("target", 'inputs["train.<tokens>"][rows]'),
        where=_predicts_ids,
    ),
    Mutant(
        "noise of the step before",
        "each step given the noise of the step before it",
        "data",
        edits=same(Edit('inputs["<noise>"][step]', 'inputs["<noise>"][step - 1]')),
    ),
    Mutant(
        "mask of the next step",
        "dropout masks of the next step",
        "data",
        edits=same(Edit("dropout_masks(step, $$count)", "dropout_masks(step + 1, $count)")),
        where=has_masks,
    ),
    Mutant(
        "same mask at every step",
        "the first step's dropout masks at every step",
        "data",
        edits=same(Edit("dropout_masks(step, len(rows))", "dropout_masks(0, len(rows))")),
        where=has_masks,
        shows_at=2,
        note="At the first step the masks are the right ones.",
    ),
    Mutant(
        "mask not scaled",
        "dropout that does not divide what it keeps by 1 - rate",
        "data",
        edits=same(Edit("(keep / (1 - rate)).astype(", "keep.astype(")),
        where=has_masks,
    ),
    Mutant(
        "mask inverted",
        "dropout that keeps what it should drop",
        "data",
        edits=same(Edit(">= round(rate * 2**16)", "< round(rate * 2**16)")),
        where=has_masks,
    ),
    Mutant("a tenth more dropout", "a dropout rate a tenth higher", "data", changes.ops(Dropout)(_denser_dropout)),
    Mutant(
        "share kept for share dropped",
        "a dropout rate taken for the share that is kept, as TensorFlow 1's keep_prob",
        "data",
        changes.ops(Dropout)(_complement),
    ),
    Mutant(
        "dropout value by value",
        "dropout of single values where whole channels should drop",
        "data",
        changes.ops(Dropout)(_per_value),
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
        edits=same(Edit("rows[rows >= 0]", "np.maximum(rows, 0)")),
        where=keeps_last_batch,
        shows_at=3,
        note="Only the last batch of a pass over the data is smaller: the third of the probe's.",
    ),
)
