"""What a spec may train on. Every data set is arrays by field name, whole in memory, float64 or int64.

`fields` tells shapes without reading more than it must, so that compiling needs no data.
"""

import csv
import gzip
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field, field_validator

from harness.errors import DataError
from harness.ops.base import Array, Count, Flag, Fraction, Shape, Size
from harness.record import Record

ASCII = "\n" + "".join(map(chr, range(32, 127)))
"""The default alphabet of text: newline and the printable ASCII characters; any other becomes '?'."""


@dataclass(frozen=True)
class Column:
    """A field: the shape of one example, its type, and how many classes or ids it has where it is integer."""

    shape: Shape
    dtype: Literal["float", "int"]
    classes: int | None = None


class Noise(Record):
    """A field drawn afresh for every example of every step."""

    shape: tuple[Count, ...]
    distribution: Literal["normal", "uniform"] = "normal"
    """N(0, 1), or U(0, 1)."""


class DataSet(Record):
    """What every data set may say."""

    batch: Count
    """Examples a step."""
    test: Fraction = 0.0
    """The share held out, chosen by the seed; at 0 the metrics are those of the training data."""
    shuffle: Flag = True
    """A fresh order every epoch; false: the order of the file, again and again."""
    last_batch: Literal["drop", "keep"] = "drop"
    """What becomes of the examples at an epoch's end that do not fill a batch."""
    normalise: Literal["none", "standardise", "range"] = "none"
    """Float inputs by the training part's own statistics: to mean 0 and variance 1, or into [0, 1], per feature."""
    noise: dict[str, Noise] = {}
    normalised: ClassVar[tuple[str, ...] | None] = None
    """The fields that `normalise` changes; None: every float field."""

    def columns(self) -> dict[str, Column]:
        """The fields and their shapes, noise included."""
        own = self.fields()
        return own | {name: Column(n.shape, "float") for name, n in self.noise.items()}

    def fields(self) -> dict[str, Column]:
        """The data set's own fields. Raises DataError."""
        return {name: _column(array) for name, array in self.read().items()}

    def read(self) -> dict[str, Array]:
        """Every example of every field. Raises DataError."""
        raise TypeError(type(self).__name__)  # pragma: no cover


def _column(array: Array) -> Column:
    if array.dtype.kind in "iu":
        return Column(array.shape[1:], "int", int(array.max()) + 1)
    return Column(array.shape[1:], "float")


def _digits() -> Array:
    """64 pixels and the label of every digit, from scikit-learn's own file: to import its reader takes longer than a training."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            with gzip.open(file) as lines:
                return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits  # noqa: PLC0415 - a release that keeps it elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


class Digits(DataSet):
    """1,797 handwritten digits, 8 × 8 pixels in [0, 1] (scikit-learn; E. Alpaydin and C. Kaynak, UCI 1998).

    `image` [8, 8, 1], `label` 0 to 9.
    """

    dataset: Literal["digits"]
    normalised = ("image",)

    def fields(self) -> dict[str, Column]:
        return {"image": Column((8, 8, 1), "float"), "label": Column((), "int", 10)}

    def read(self) -> dict[str, Array]:
        rows = _digits()
        return {"image": rows[:, :-1].reshape(-1, 8, 8, 1) / 16, "label": rows[:, -1].astype(np.int64)}


class Table(DataSet):
    """One of scikit-learn's bundled tables: `features`, and a `label` (classes) or a `target` (diabetes)."""

    dataset: Literal["iris", "wine", "breast_cancer", "diabetes"]
    normalised = ("features",)
    shapes: ClassVar[dict[str, tuple[int, int | None]]] = {
        "iris": (4, 3), "wine": (13, 3), "breast_cancer": (30, 2), "diabetes": (10, None),
    }  # fmt: skip

    def fields(self) -> dict[str, Column]:
        features, classes = self.shapes[self.dataset]
        target = {"label": Column((), "int", classes)} if classes else {"target": Column((1,), "float")}
        return {"features": Column((features,), "float"), **target}

    def read(self) -> dict[str, Array]:
        from sklearn import datasets  # noqa: PLC0415

        table = getattr(datasets, f"load_{self.dataset}")()
        if "label" in self.fields():
            return {"features": table.data, "label": table.target.astype(np.int64)}
        return {"features": table.data, "target": table.target.astype(np.float64)[:, None]}


class Inline(DataSet):
    """Numbers written in the spec itself: each field a list of examples.

    A field is of integers where every number of it is written without a point.
    """

    dataset: Literal["inline"]
    values: Annotated[dict[str, Any], Field(min_length=1)]

    def read(self) -> dict[str, Array]:
        return _check_lengths({name: to_array(name, value) for name, value in self.values.items()}, "inline data")


class Drawn(Record):
    """A field of random numbers: N(0, 1), or with `classes` integers below that, each as likely."""

    shape: tuple[Count, ...] = ()
    classes: Count | None = None


class Random(DataSet):
    """Random numbers that there is nothing to learn from, for measuring speed: any shapes, the same every time."""

    dataset: Literal["random"]
    examples: Count
    fields_: Annotated[dict[str, Drawn], Field(alias="fields", min_length=1)]
    seed: Size = 0
    """Of these numbers alone: another seed of the spec leaves them as they are."""

    def fields(self) -> dict[str, Column]:
        return {n: Column(f.shape, "int" if f.classes else "float", f.classes) for n, f in self.fields_.items()}

    def read(self) -> dict[str, Array]:
        random = np.random.default_rng(self.seed)
        return {name: self._draw(random, field) for name, field in self.fields_.items()}

    def _draw(self, random: np.random.Generator, field: Drawn) -> Array:
        shape = (self.examples, *field.shape)
        return random.integers(field.classes, size=shape) if field.classes else random.standard_normal(shape)


class Text(DataSet):
    """Characters of a text in windows: `tokens` [length] and `targets` [length], the same one character on."""

    dataset: Literal["text"]
    file: str = "pydoc_topics"
    """A UTF-8 file, or `pydoc_topics`: the text of Python's own help, from `pydoc_data.topics`."""
    length: Count = 64
    alphabet: Annotated[str, AfterValidator(lambda v: "".join(dict.fromkeys(v)))] = ASCII
    """The characters that have an id, in order; any other becomes the first of '?', ' ' that is among them."""

    @field_validator("alphabet")
    @classmethod
    def _has_a_stand_in(cls, value: str) -> str:
        if not ({"?", " "} & set(value)):
            raise ValueError("the alphabet needs '?' or ' ' to stand for characters that it lacks")
        return value

    def fields(self) -> dict[str, Column]:
        column = Column((self.length,), "int", len(self.alphabet))
        return {"tokens": column, "targets": column}

    def encode(self, text: str) -> Array:
        """Ids of characters."""
        ids = {character: i for i, character in enumerate(self.alphabet)}
        unknown = ids["?" if "?" in ids else " "]
        return np.array([ids.get(character, unknown) for character in text], dtype=np.int64)

    def decode(self, ids: Array) -> str:
        """Characters of ids."""
        return "".join(self.alphabet[int(i)] for i in ids)

    def read(self) -> dict[str, Array]:
        ids = self.encode(self._text())
        windows = (len(ids) - 1) // self.length
        if windows < 1:
            raise DataError(f"{self.file}: {len(ids)} characters are too few for windows of {self.length} and the next")
        count = windows * self.length
        shape = (windows, self.length)
        return {"tokens": ids[:count].reshape(shape), "targets": ids[1 : count + 1].reshape(shape)}

    def _text(self) -> str:
        if self.file == "pydoc_topics":
            from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte

            return "\n\n".join(topics[key] for key in sorted(topics))
        try:
            return Path(self.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"text file {self.file}: {error}") from None


class Npz(DataSet):
    """Arrays of a NumPy `.npz` file, the first axis the examples."""

    dataset: Literal["npz"]
    file: str
    fields_: Annotated[dict[str, str], Field(alias="fields")] = {}
    """Field name -> the array's name in the file; left out, every array under its own name."""

    def read(self) -> dict[str, Array]:
        try:
            with np.load(self.file, allow_pickle=False) as arrays:
                names = self.fields_ or {name: name for name in arrays.files}
                missing = set(names.values()) - set(arrays.files)
                if missing:
                    raise DataError(f"{self.file} has no array '{min(missing)}' (it has: {', '.join(arrays.files)})")
                found = {field: to_array(field, arrays[name]) for field, name in names.items()}
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise DataError(f"npz file {self.file}: {error}") from None
        if not found:
            raise DataError(f"npz file {self.file} holds no array")
        return _check_lengths(found, self.file)


class Csv(DataSet):
    """A table with a header: `features`, and the target column as `label` or, with `regression`, as `target` [1].

    The features are every other column, or those named; the label's classes are its distinct values, sorted.
    """

    dataset: Literal["csv"]
    file: str
    target: str
    features: tuple[str, ...] | None = None
    regression: Flag = False
    normalised = ("features",)

    def read(self) -> dict[str, Array]:
        header, rows = self._rows()
        names = self.features or tuple(name for name in header if name != self.target)
        for name in (*names, self.target):
            if name not in header:
                raise DataError(f"{self.file} has no column '{name}' (it has: {', '.join(header)})")
        features = np.array([[self._number(row, header.index(n), n, i) for n in names] for i, row in enumerate(rows)])
        column = header.index(self.target)
        if self.regression:
            target = np.array([[self._number(row, column, self.target, i)] for i, row in enumerate(rows)])
            return {"features": features, "target": target}
        classes = {value: i for i, value in enumerate(sorted({row[column] for row in rows}, key=_numbers_first))}
        return {"features": features, "label": np.array([classes[row[column]] for row in rows], dtype=np.int64)}

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        try:
            with Path(self.file).open(newline="", encoding="utf-8-sig") as file:
                header, *rows = [row for row in csv.reader(file) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"csv file {self.file}: {error}") from None
        except ValueError:
            raise DataError(f"csv file {self.file} is empty; its first line names the columns") from None
        if not rows:
            raise DataError(f"csv file {self.file} has a header and no rows")
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise DataError(f"csv file {self.file}: row {number} has {len(row)} values for {len(header)} columns")
        return [name.strip() for name in header], [[value.strip() for value in row] for row in rows]

    def _number(self, row: list[str], column: int, name: str, index: int) -> float:
        try:
            return float(row[column])
        except ValueError:
            where = f"csv file {self.file}: row {index + 2}, column '{name}'"
            raise DataError(f"{where}: {row[column]!r} is not a number; list the numeric 'features'") from None


def _numbers_first(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, math.inf, value)


def to_array(name: str, value: Any) -> Array:  # noqa: ANN401 - numbers in nested lists, or an array
    """Numbers as float64 or int64. Raises DataError where they are not numbers, or ragged."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"field '{name}': its lists have different lengths") from None
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iuf" or array.ndim == 0 or array.size == 0:
        raise DataError(
            f"field '{name}' must hold numbers, the first axis the examples; got {array.dtype}, shape {list(array.shape)}"
        )
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _check_lengths(arrays: dict[str, Array], what: str) -> dict[str, Array]:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{what}: fields have different numbers of examples: {lengths}")
    return arrays


DATASETS: tuple[type[DataSet], ...] = (Digits, Table, Inline, Random, Text, Npz, Csv)
Data = Annotated[Digits | Table | Inline | Random | Text | Npz | Csv, Field(discriminator="dataset")]
