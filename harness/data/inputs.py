"""Data set -> the arrays that a run trains on: checked, split, normalised, and put in order by the seed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import initial, limits
from harness.data.datasets import DataSet
from harness.errors import DataError
from harness.graph import Program
from harness.precision import PRECISIONS

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
SAMPLE = 10_000  # examples: what evaluation is limited to


@dataclass(frozen=True)
class Inputs:
    """Arrays by field, float64 and int64, before they are cast to a run's precision."""

    train: Arrays
    test: Arrays
    """The held-out examples; where nothing is held out, the training examples."""
    held_out: bool
    order: Array
    """Rows of `train` for each step: int32 [steps, batch]."""
    noise: Arrays
    """Fields drawn for each step: [steps, batch, ...]."""


def prepare(program: Program) -> Inputs:
    """Read, check, split and order a program's data. Raises DataError."""
    spec = program.spec.data
    arrays = spec.read()
    check(program, arrays)
    examples = len(next(iter(arrays.values())))
    train, test = split(program.seed, spec, arrays, examples)
    count = len(next(iter(train.values())))
    if spec.batch > count:
        raise DataError(f"a batch of {spec.batch} is larger than the {count} examples to train on")
    epochs = -(-program.steps // max(count // spec.batch, 1))
    if spec.shuffle and epochs > limits.EPOCHS:
        raise DataError(
            f"{program.steps:,} steps are {epochs:,} passes through the {count} examples, each in an order of its own; "
            f"{limits.EPOCHS:,} at most (or 'shuffle: false')"
        )
    train, test = normalise(spec, train, test)
    rows = initial.order(
        program.seed, count, spec.batch, program.steps, shuffle=spec.shuffle, keep_last=spec.last_batch == "keep"
    )
    drawn = initial.noise(program, "training", count=program.steps * spec.batch)
    noise = {name: a.reshape(program.steps, spec.batch, *a.shape[1:]) for name, a in drawn.items()}
    held_out = len(next(iter(test.values()))) > 0
    return Inputs(train, test if held_out else train, held_out, rows, noise)


def check(program: Program, arrays: Arrays) -> None:
    """Raise DataError where values cannot be trained on: NaN, infinities, negative or too large ids."""
    for name, array in arrays.items():
        column = program.columns.get(name)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))
            first = tuple(int(i) for i in where[0])
            raise DataError(
                f"field '{name}' has {len(where)} values that are NaN or infinite; the first is example {first[0]}"
                + (f", index {list(first[1:])}" if first[1:] else "")
            )
        if (
            array.dtype.kind == "f"
            and name in program.fields
            and (largest := float(np.abs(array).max())) > limits.GREATEST
        ):
            raise DataError(
                f"field '{name}' has values of size {largest:g}; float32 squares {limits.GREATEST:g} at most"
            )
        if array.dtype.kind == "i" and column is not None and column.dtype == "int" and name in program.fields:
            low, high, classes = int(array.min()), int(array.max()), column.classes
            if high > limits.COUNT:
                raise DataError(f"field '{name}' has ids up to {high}; they are {limits.COUNT:,} at most")
            if low < 0 or (classes is not None and high >= classes):
                raise DataError(
                    f"field '{name}' has ids from {low} to {high}; they must lie in 0 to {(classes or 1) - 1}"
                )


def split(seed: int, spec: DataSet, arrays: Arrays, examples: int) -> tuple[Arrays, Arrays]:
    """Training and held-out examples, chosen by the seed (and by nothing else), each in the file's order."""
    held = round(spec.test * examples)
    if spec.test and not 0 < held < examples:
        raise DataError(f"holding out {spec.test:g} of {examples} examples leaves {examples - held} and {held}")
    chosen = np.zeros(examples, dtype=bool)
    chosen[initial.stream(seed, "split").permutation(examples)[:held]] = True
    return {n: a[~chosen] for n, a in arrays.items()}, {n: a[chosen] for n, a in arrays.items()}


def normalise(spec: DataSet, train: Arrays, test: Arrays) -> tuple[Arrays, Arrays]:
    """Float inputs shifted and scaled by the training part's statistics, a feature at a time."""
    if spec.normalise == "none":
        return train, test
    names = [n for n, a in train.items() if a.dtype.kind == "f" and (spec.normalised is None or n in spec.normalised)]
    train, test = dict(train), dict(test)
    for name in names:
        array = train[name]
        axes = tuple(range(array.ndim - 1)) if array.ndim > 1 else (0,)
        if spec.normalise == "standardise":
            shift, scale = array.mean(axes), array.std(axes)
        else:
            shift, scale = array.min(axes), array.max(axes) - array.min(axes)
        scale = np.where(scale > 0, scale, 1.0)  # a constant feature stays constant
        train[name], test[name] = (array - shift) / scale, (test[name] - shift) / scale
    return train, test


def cast(arrays: Arrays, precision: str) -> Arrays:
    """Floats in the dtype of a run's precision, integers as int32."""
    dtype = PRECISIONS[precision].dtype
    return {n: a.astype(dtype if a.dtype.kind == "f" else np.int32, order="C") for n, a in arrays.items()}
