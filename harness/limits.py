"""How large anything may be that comes from outside: a spec's text, its network, its data. One number each, and why.

Each limit is checked before the work that it bounds is done, and the message says it. What takes memory has one
budget, 2 GB for each kind of array; the environment variable `HARNESS_MEMORY`, like `8GB`, sets another.
"""

import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from harness.errors import CallError

SPEC_BYTES = 500_000
"""A spec's file. The longest that comes with the harness has 2,000; a million empty lines take the YAML reader 3 s."""
SPEC_WORDS = 20_000
"""Words and numbers in a spec's text. The YAML reader makes 6,000 values a second; data of that size belongs into a file."""
SPEC_VALUES = 50_000
"""Values of a spec, what `*alias` and `$parameter` stand for counted each time."""
SPEC_DEPTH = 60
"""Values within values, as written. Readers and validators call themselves for each."""
NAME = 80
"""Characters of a name. It becomes part of file names, which have 255 at most."""
TEXT = 20_000
"""Characters of a piece of text, like `about`: some ten pages."""
DIGITS = 100
"""Characters of a number. A float64 that is written out exactly may need some tens; Python itself stops at 4,300."""
SMALLEST, GREATEST = 1e-37, 1e30
"""The size of a number that is not 0. float32 ends at 1.2e-38 and 3.4e38, and squares are taken."""
COUNT = 2**31 - 1
"""A number of units, examples, steps or the like: frameworks index by 32 bits."""
AXES = 7
"""Axes of one example. TensorFlow's kernels end at eight, the batch's included."""
NODES = 5_000
"""Layers of all networks, with every repetition and block written out: ResNet-152 has 520. A program has a line for each."""
NESTING = 20
"""Blocks, residuals and repetitions within one another. A program has a class, and calls, for each."""
EXPRESSION = 1_000
"""Characters of an expression like `discriminator(generator(noise))`."""
CALLS = 1_000
"""Names, numbers and calls of all expressions of one update, those behind named values counted wherever these are used."""
STEPS = 1_000_000
"""Steps of a training: every loss of each is kept, and the rows of each batch."""
EPOCHS = 50_000
"""Passes through the data, where they are shuffled: the order of each is drawn before the first step, in 70 µs each."""
MEMBERS = 1_000
"""Arrays of an npz file."""
MEMORY = "HARNESS_MEMORY"


def memory() -> int:
    """Bytes that one kind of array may take: the data, the order of batches, noise, parameters. 2 GB, or HARNESS_MEMORY.

    CIFAR-10 in float64 takes 1.5. Raises CallError where the variable says no size.
    """
    given = os.environ.get(MEMORY, "2GB")
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(B|KB|MB|GB|TB)?", given.strip(), re.IGNORECASE)
    if found is None:
        raise CallError(f"{MEMORY}={given[:40]!r} is no size; write it like 8GB")
    unit = (found[2] or "B").upper()
    return int(float(found[1]) * 1000 ** ("B", "KB", "MB", "GB", "TB").index(unit))


def activations() -> int:
    """Bytes of every layer's value for one batch: eight budgets, for they are kept as float32 and freed as training goes on."""
    return 8 * memory()


def text_bytes() -> int:
    """Bytes of a text to train on, or of a table (csv), which take up to sixty times as much while they are read."""
    return memory() // 64


def more() -> str:
    """How a larger budget is had, for the end of a message."""
    return f"set {MEMORY}, like {MEMORY}={max(2, math.ceil(4 * memory() / 1e9))}GB, to allow more"


def spell_bytes(count: float) -> str:
    """A number of bytes as people say it.

    >>> spell_bytes(999), spell_bytes(1_500_000), spell_bytes(2e9), spell_bytes(1e30)
    ('999 bytes', '1.5 MB', '2 GB', '1e+15 PB')
    """
    if count < 1000:  # noqa: PLR2004 - a kilobyte
        return f"{count:g} bytes"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        count /= 1000
        if count < 999.5 or unit == "PB":  # noqa: PLR2004 - what is rounded to 1,000 has the next unit
            break
    return f"{count:.3g} {unit}"


def values(shape: Iterable[int]) -> int:
    """How many values an array of a shape has, in whole numbers of any size."""
    return math.prod(int(size) for size in shape)


def clipped(text: str, length: int = 80) -> str:
    """A piece of a spec for a message, its middle left out where it is long.

    >>> clipped("a" * 100, 11)
    'aaaaa…aaaaa'
    """
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length // 2) :]}"


def shown(value: object) -> str:
    """The `repr` of a value for a message: a number of many digits has its first ones."""
    try:
        return clipped(repr(value))
    except (ValueError, RecursionError):  # Python writes out no integer of more than 4,300 digits
        return "a number of thousands of digits" if isinstance(value, int) else f"a {type(value).__name__}"


def read_bytes(path: Path, limit: int, what: str, way_out: str = "") -> bytes:
    """A file's bytes. Raises OSError where it is no file that can be read, or holds more than `limit`."""
    size = regular(path).st_size
    if size <= limit:
        with path.open("rb") as file:
            found = file.read(limit + 1)  # a file of /proc has no size before it is read
        size = len(found)
    if size > limit:
        raise OSError(f"holds {spell_bytes(size)}; {what} holds {spell_bytes(limit)} at most{way_out}")
    return found


def regular(path: Path) -> os.stat_result:
    """What is known of a file. Raises OSError where there is none, or where it is a directory, a device or a pipe."""
    try:
        found = path.stat()
    except ValueError as error:  # NUL, or half a surrogate pair
        raise OSError(f"is no path: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "directory", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFIFO: "pipe"}
        raise OSError(f"is a {kinds.get(stat.S_IFMT(found.st_mode), 'special file')}, not a file")
    return found
