"""What a spec may train on. Every data set is arrays by field name, whole in memory, float64 or int64.

`fields` tells shapes without reading more than it must, so that compiling needs no data.
"""

import csv
import gzip
import importlib.util
import io
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from array import array as packed
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.lib import format as npy
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, field_validator

from harness import limits
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


class Conversion(Record):
    """What is made of a field that a file, or the spec, holds in another form."""

    type: Literal["float", "int", "pixels"] | None = None
    """`float`: the same numbers; `int`: labels or ids, all of them whole; `pixels`: 0 to 255 as 0 to 1."""
    shape: tuple[Count, ...] | None = None
    """Of one example, the same values row-major: [28, 28, 1] for images without channels, [] for labels of shape [1]."""


def _conversion(value: object) -> object:
    """`pixels` means `{type: pixels}`."""
    return {"type": value} if isinstance(value, str) else value


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
    convert: dict[str, Annotated[Conversion, BeforeValidator(_conversion)]] = {}
    """Fields that are held in another form than the network needs, like `{image: pixels, target: float}`."""
    normalised: ClassVar[tuple[str, ...] | None] = None
    """The fields that `normalise` changes; None: every float field."""
    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def source(self) -> Path | None:
        """The file that it reads, if it reads one of the user's."""
        return None

    def look_in(self, folder: Path) -> None:
        """Where a relative path starts: the folder of the spec's file."""
        self._folder = folder

    def columns(self) -> dict[str, Column]:
        """The fields and their shapes, noise included."""
        own = self.fields()
        return own | {name: Column(n.shape, "float") for name, n in self.noise.items()}

    def fields(self) -> dict[str, Column]:
        """The data set's own fields, converted. Raises DataError."""
        if self.convert:
            return {name: _column(array) for name, array in self.read().items()}
        return self.held_fields()

    def read(self) -> dict[str, Array]:
        """Every example of every field, converted. Raises DataError."""
        arrays = self.held()
        for name in self.convert:
            if name not in arrays:
                raise DataError(f"convert: there is no field '{name}' (fields: {', '.join(arrays)})")
        found = {n: _converted(n, a, self.convert[n]) if n in self.convert else a for n, a in arrays.items()}
        for name, array in found.items():
            if array.dtype == np.uint8 and array.ndim > 3:  # noqa: PLR2004 - examples, height, width, channels
                raise DataError(
                    f"field '{name}' holds bytes of shape {list(array.shape[1:])}, as images are stored: say "
                    f"'convert: {{{name}: pixels}}' for values from 0 to 1, or '{{{name}: float}}' for 0 to 255"
                )
        return {n: a if a.dtype.kind == "f" else a.astype(np.int64, copy=False) for n, a in found.items()}

    def held_fields(self) -> dict[str, Column]:
        """The fields as they are held. Raises DataError."""
        return {name: _column(array) for name, array in self.read().items()}

    def held(self) -> dict[str, Array]:
        """Every example of every field as it is held: float64, or integers of any kind. Raises DataError."""
        raise TypeError(type(self).__name__)  # pragma: no cover


def _converted(name: str, array: Array, wanted: Conversion) -> Array:
    if wanted.shape is not None:
        if math.prod(wanted.shape) != math.prod(array.shape[1:]):
            raise DataError(
                f"convert: field '{name}' has examples of shape {list(array.shape[1:])}, which hold "
                f"{math.prod(array.shape[1:])} values; {list(wanted.shape)} holds {math.prod(wanted.shape)}"
            )
        array = array.reshape(len(array), *wanted.shape)
    if wanted.type in ("float", "pixels"):
        if wanted.type == "pixels" and (array.min() < 0 or array.max() > 255):  # noqa: PLR2004 - a byte
            raise DataError(
                f"convert: field '{name}' has values from {array.min():g} to {array.max():g}; pixels are 0 to 255"
            )
        return array.astype(np.float64) / (255 if wanted.type == "pixels" else 1)
    if wanted.type == "int" and array.dtype.kind == "f":
        if not (np.abs(array) <= limits.COUNT).all() or (array != np.rint(array)).any():
            raise DataError(f"convert: field '{name}' has values that are no whole numbers up to {limits.COUNT:,}")
        return array.astype(np.int64)
    return array


def _file(data: DataSet, what: str, given: str) -> Path:
    """Where a file of the user's is. Raises DataError with where it was looked for."""
    path = _place(data, given)
    try:
        limits.regular(path)
    except OSError as error:
        where = (
            ""
            if Path(given).is_absolute()
            else f" (looked for {limits.clipped(str(path.absolute()), 300)}: beside the spec)"
        )
        here = ""
        if not Path(given).is_absolute() and os.path.exists(given) and not os.path.exists(path):  # noqa: PTH110 - False for what is no path
            here = f"; there is one in the working directory: write 'file: {Path(given).absolute()}'"
        raise DataError(f"{what} {limits.clipped(given, 300)!s}: {error.strerror or error}{where}{here}") from None
    return path


def _place(data: DataSet, given: str) -> Path:
    try:
        return data._folder / Path(given).expanduser()  # noqa: SLF001 - a record's own
    except RuntimeError as error:  # ~nobody
        raise DataError(f"file {limits.clipped(given, 300)}: {error}") from None


def _bounded(what: str, count: int) -> None:
    """Raise DataError where so many values, as float64 or int64, are more than data may be."""
    if count * 8 > limits.memory():
        raise DataError(
            f"{what} takes {limits.spell_bytes(count * 8)} in 64 bits a value; data take {limits.spell_bytes(limits.memory())} "
            f"at most ({limits.more()})"
        )


def _column(array: Array) -> Column:
    if array.ndim - 1 > limits.AXES:
        raise DataError(f"examples of {array.ndim - 1} axes; they have {limits.AXES} at most")
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

    def held_fields(self) -> dict[str, Column]:
        return {"image": Column((8, 8, 1), "float"), "label": Column((), "int", 10)}

    def held(self) -> dict[str, Array]:
        rows = _digits()
        return {"image": rows[:, :-1].reshape(-1, 8, 8, 1) / 16, "label": rows[:, -1].astype(np.int64)}


class Table(DataSet):
    """One of scikit-learn's bundled tables: `features`, and a `label` (classes) or a `target` (diabetes)."""

    dataset: Literal["iris", "wine", "breast_cancer", "diabetes"]
    normalised = ("features",)
    shapes: ClassVar[dict[str, tuple[int, int | None]]] = {
        "iris": (4, 3), "wine": (13, 3), "breast_cancer": (30, 2), "diabetes": (10, None),
    }  # fmt: skip

    def held_fields(self) -> dict[str, Column]:
        features, classes = self.shapes[self.dataset]
        target = {"label": Column((), "int", classes)} if classes else {"target": Column((1,), "float")}
        return {"features": Column((features,), "float"), **target}

    def held(self) -> dict[str, Array]:
        from sklearn import datasets  # noqa: PLC0415

        table = getattr(datasets, f"load_{self.dataset}")()
        if "label" in self.held_fields():
            return {"features": table.data, "label": table.target.astype(np.int64)}
        return {"features": table.data, "target": table.target.astype(np.float64)[:, None]}


class Inline(DataSet):
    """Numbers written in the spec itself: each field a list of examples.

    A field is of integers where every number of it is written without a point.
    """

    dataset: Literal["inline"]
    values: Annotated[dict[str, Any], Field(min_length=1)]

    def held(self) -> dict[str, Array]:
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

    def held_fields(self) -> dict[str, Column]:
        self._check_size()
        return {n: Column(f.shape, "int" if f.classes else "float", f.classes) for n, f in self.fields_.items()}

    def _check_size(self) -> None:
        for name, field in self.fields_.items():
            _bounded(f"{self.examples:,} examples of field '{name}'", self.examples * limits.values(field.shape))
        _bounded("random data", self.examples * sum(limits.values(field.shape) for field in self.fields_.values()))

    def held(self) -> dict[str, Array]:
        self._check_size()
        random = np.random.default_rng(self.seed)
        return {name: self._draw(random, field) for name, field in self.fields_.items()}

    def _draw(self, random: np.random.Generator, field: Drawn) -> Array:
        shape = (self.examples, *field.shape)
        return random.integers(field.classes, size=shape) if field.classes else random.standard_normal(shape)


TOPICS = "pydoc_topics"


class Text(DataSet):
    """Characters of a text in windows: `tokens` [length] and `targets` [length], the same one character on."""

    dataset: Literal["text"]
    file: str = TOPICS
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

    @property
    def source(self) -> Path | None:
        return None if self.file == TOPICS else _place(self, self.file)

    def held_fields(self) -> dict[str, Column]:
        column = Column((self.length,), "int", len(self.alphabet))
        return {"tokens": column, "targets": column}

    def encode(self, text: str) -> Array:
        """Ids of characters."""
        unknown = self.alphabet.index("?" if "?" in self.alphabet else " ")
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        known = np.array([ord(character) for character in self.alphabet], dtype=np.uint32)
        order = np.argsort(known)
        places = np.searchsorted(known[order], points).clip(max=len(known) - 1)
        return np.where(known[order][places] == points, order[places], unknown)

    def decode(self, ids: Array) -> str:
        """Characters of ids."""
        return "".join(self.alphabet[int(i)] for i in ids)

    def held(self) -> dict[str, Array]:
        ids = self.encode(self._text())
        windows = (len(ids) - 1) // self.length
        if windows < 1:
            raise DataError(f"{self.file}: {len(ids)} characters are too few for windows of {self.length} and the next")
        count = windows * self.length
        shape = (windows, self.length)
        return {"tokens": ids[:count].reshape(shape), "targets": ids[1 : count + 1].reshape(shape)}

    def _text(self) -> str:
        if self.file == TOPICS:
            from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte

            return "\n\n".join(topics[key] for key in sorted(topics))
        path = _file(self, "text file", self.file)
        try:
            read = limits.read_bytes(path, limits.text_bytes(), "a text to train on", f" ({limits.more()})")
            return read.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"text file {self.file}: {error}") from None


BROKEN = (
    OSError, ValueError, TypeError, OverflowError, EOFError, KeyError, RuntimeError, SyntaxError, tokenize.TokenError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What the readers of zip files, and of the Python in an array's header, raise: RuntimeError where one is locked."""


class Npz(DataSet):
    """Arrays of a NumPy `.npz` file, the first axis the examples."""

    dataset: Literal["npz"]
    file: str
    fields_: Annotated[dict[str, str], Field(alias="fields")] = {}
    """Field name -> the array's name in the file; left out, every array under its own name."""

    @property
    def source(self) -> Path | None:
        return _place(self, self.file)

    def held(self) -> dict[str, Array]:
        path = _file(self, "npz file", self.file)
        try:
            with path.open("rb") as file:
                if file.read(6) == b"\x93NUMPY":
                    raise DataError(
                        f"npz file {self.file}: is an .npy file, one array without a name; an npz file has several: "
                        "np.savez('data.npz', x=..., y=...)"
                    )
            with zipfile.ZipFile(path) as archive:
                found = self._arrays(archive)
        except BROKEN as error:
            said = "is cut short, or no npz file" if str(error) == "File is not a zip file" else error
            raise DataError(f"npz file {self.file}: {said}") from None
        if not found:
            raise DataError(f"npz file {self.file} holds no array")
        return _check_lengths(found, self.file)

    def _arrays(self, archive: zipfile.ZipFile) -> dict[str, Array]:
        """The arrays that are wanted, none of them read before all their sizes are known."""
        held = {
            entry.filename.removesuffix(".npy"): entry
            for entry in archive.infolist()
            if entry.filename.endswith(".npy")
        }
        if len(archive.infolist()) > limits.MEMBERS:
            raise DataError(
                f"npz file {self.file} holds {len(archive.infolist()):,} arrays; {limits.MEMBERS:,} at most"
            )
        names = self.fields_ or {name: name for name in held}
        missing = set(names.values()) - set(held)
        if missing:
            raise DataError(f"{self.file} has no array '{min(missing)}' (it has: {', '.join(held)})")
        if not self.fields_:
            for name in names:
                if len(name) > limits.NAME:
                    raise DataError(
                        f"npz file {self.file}: an array's name of {len(name):,} characters; {limits.NAME} at most"
                    )
        count = 0
        for name in names.values():
            with archive.open(held[name]) as file:
                shape, dtype = _header(file)
            if dtype.hasobject:
                raise DataError(
                    f"npz file {self.file}: array '{name}' holds Python objects, which only allow_pickle=True reads"
                )
            count += math.prod(shape)
            # What a header says may be less than what is packed behind it.
            _bounded(f"npz file {self.file}", max(count, held[name].file_size // 8))
        found = {}
        for field, name in names.items():
            with archive.open(held[name]) as file:
                found[field] = to_array(field, npy.read_array(file, allow_pickle=False), keep=True)
        return found


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:  # noqa: ANN401 - an open file
    """Shape and dtype at the beginning of an .npy file. Raises ValueError where it is none."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"arrays of version {version} of NumPy's format are not known")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"an array of shape {list(shape)}")
    return shape, dtype


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

    @property
    def source(self) -> Path | None:
        return _place(self, self.file)

    def held(self) -> dict[str, Array]:
        rows = self._rows()
        header = next(rows, None)
        if header is None:
            raise DataError(f"csv file {self.file} is empty; its first line names the columns")
        names = self.features or tuple(name for name in header if name != self.target)
        places = {name: i for i, name in reversed(list(enumerate(header)))}
        for name in (*names, self.target):
            if name not in places:
                raise DataError(
                    f"{self.file} has no column '{name}' (it has: {limits.clipped(', '.join(header), 300)})"
                )
        wanted, column = [(places[name], name) for name in names], places[self.target]
        numbers, labels, targets, number = packed("d"), [], packed("d"), 1
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise DataError(f"csv file {self.file}: row {number} has {len(row)} values for {len(header)} columns")
            numbers.extend([self._number(row[place], name, number) for place, name in wanted])
            if self.regression:
                targets.append(self._number(row[column], self.target, number))
            else:
                labels.append(row[column].strip())
        if number == 1:
            raise DataError(f"csv file {self.file} has a header and no rows")
        if not names:
            raise DataError(f"csv file {self.file} has no column beside the target '{self.target}'")
        features = np.frombuffer(numbers, dtype=np.float64).reshape(-1, len(names))
        if self.regression:
            return {"features": features, "target": np.frombuffer(targets, dtype=np.float64)[:, None]}
        classes = {value: i for i, value in enumerate(sorted(set(labels), key=_numbers_first))}
        return {"features": features, "label": np.array([classes[value] for value in labels], dtype=np.int64)}

    def _rows(self) -> Iterator[list[str]]:
        """The header without spaces around it, then every row that is not empty. Raises DataError."""
        path = _file(self, "csv file", self.file)
        try:
            read = limits.read_bytes(
                path, limits.text_bytes(), "a csv file", f"; an npz file may be larger ({limits.more()})"
            )
            rows = (row for row in csv.reader(io.StringIO(read.decode("utf-8-sig"), newline="")) if row)
            if (header := next(rows, None)) is not None:
                yield [name.strip() for name in header]
            yield from rows
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"csv file {self.file}: {error}") from None

    def _number(self, value: str, name: str, number: int) -> float:
        try:
            return float(value)
        except ValueError:
            where = f"csv file {self.file}: row {number}, column '{name}'"
            said = limits.shown(value.strip())
            raise DataError(f"{where}: {said} is not a number; list the numeric 'features'") from None


def _numbers_first(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, math.inf, value)


def to_array(name: str, value: Any, *, keep: bool = False) -> Array:  # noqa: ANN401 - numbers in nested lists, or an array
    """Numbers as float64 or int64; with `keep` integers as they are. Raises DataError where they are not numbers, or ragged."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise DataError(f"field '{name}': its lists have different lengths, or are nested too deeply") from None
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iuf" or array.ndim == 0 or array.size == 0:
        kind = "integers of more than 64 bits, or of other kinds" if array.dtype.kind == "O" else array.dtype
        raise DataError(
            f"field '{name}' must hold numbers, the first axis the examples; got {kind}, shape {list(array.shape)}"
        )
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and int(array.max()) > limits.COUNT:  # noqa: PLR2004 - bytes
        raise DataError(
            f"field '{name}' holds integers up to {array.max()}; ids and labels are {limits.COUNT:,} at most"
        )
    return array if keep else array.astype(np.int64)


def _check_lengths(arrays: dict[str, Array], what: str) -> dict[str, Array]:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{what}: fields have different numbers of examples: {lengths}")
    return arrays


DATASETS: tuple[type[DataSet], ...] = (Digits, Table, Inline, Random, Text, Npz, Csv)
Data = Annotated[Digits | Table | Inline | Random | Text | Npz | Csv, Field(discriminator="dataset")]
