"""What a report shows beside the result: the spec, the programs, image samples; read from the run directory."""

import json
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from harness.errors import CallError
from harness.report.story import small
from harness.results import RunResult

Array = np.ndarray[Any, np.dtype[Any]]
MOST_IMAGES = 64
LONGEST = 5_000_000
"""Characters of a text that is shown."""


@dataclass(frozen=True)
class Sources:
    """The files of a run directory, as a report shows them; what is missing is empty."""

    harness: str
    """The version that made the run."""
    spec: str
    programs: dict[str, tuple[str, str]]
    """By backend: the emitted program's file name, and its text."""
    images: dict[str, bytes]
    """By backend: its image samples as one PNG, a pixel a pixel."""
    images_said: str
    """What they are, and how far they lie apart."""
    exact: RunResult | None
    """The same run in float64, where there was need of it."""


def sources(directory: Path, result: RunResult) -> Sources:
    """Everything but result.json's record."""
    try:
        version = str(json.loads((directory / "result.json").read_text(encoding="utf-8")).get("harness", ""))
    except (OSError, ValueError):
        version = ""
    programs = {}
    for name in result.backends:
        found = sorted((directory / name).glob(f"*_{name}.py"))
        if found:
            programs[name] = (found[0].name, _text(found[0]))
    samples = {
        name: array
        for name in result.backends
        if (array := _images(directory / name / "outputs.safetensors")) is not None
    }
    return Sources(
        version, _text(directory / "spec.yaml"), programs, {name: png(tiled(array)) for name, array in samples.items()},
        _said(samples), _exact(directory, result),
    )  # fmt: skip


def _exact(directory: Path, result: RunResult) -> RunResult | None:
    if result.evidence is None:
        return None
    try:
        return RunResult.read(directory / Path(result.evidence["directory"]).name)
    except CallError:
        return None  # it was deleted; its comparisons are in result.json


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # a link to a device would be read without end
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(LONGEST + 1)
    except OSError:
        return ""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n… (cut here: it is longer than {LONGEST:,} characters)"


def _images(path: Path) -> Array | None:
    """The samples after training, NHWC with one or three channels; None where there are none."""
    try:
        with safe_open(path, framework="numpy") as file:
            if "final/images" not in file.keys():  # noqa: SIM118 - not a dictionary
                return None
            images: Array = file.get_tensor("final/images")
    except (OSError, SafetensorError, TypeError, AttributeError):  # the last two: a dtype that NumPy has not
        return None
    if images.dtype.kind not in "fiu":
        return None
    if images.ndim == 3:  # noqa: PLR2004
        images = images[..., None]
    if images.ndim != 4 or not images.size:  # noqa: PLR2004
        return None
    return images if images.shape[-1] == 3 else images[..., :1]  # noqa: PLR2004


def _said(samples: dict[str, Array]) -> str:
    if not samples:
        return ""
    first, *others = samples.values()
    shown = min(len(first), MOST_IMAGES)
    what = f"The first {shown} of {len(first)}" if shown < len(first) else f"{shown}"
    text = f"{what} images after training, {first.shape[1]} x {first.shape[2]} pixels, from the same noise, values clipped to [0, 1]."
    same = [other for other in others if other.shape == first.shape]
    if same:
        worst = max(float(np.max(np.abs(first.astype(np.float64) - other))) for other in same)
        text += f" The largest difference of a value from the first backend's is {small(worst)}."
    return text


def grid_columns(images: Array) -> int:
    """How many images stand beside one another: about twice as many as below one another."""
    return max(1, min(len(images), math.ceil(math.sqrt(2 * min(len(images), MOST_IMAGES)))))


def tiled(images: Array) -> Array:
    """NHWC as one image of bytes, a pixel of mid-grey between two."""
    images = images[:MOST_IMAGES]
    count, height, width, channels = images.shape
    columns = grid_columns(images)
    rows = -(-count // columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128, dtype=np.uint8)
    shown = np.nan_to_num(images.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    values = np.rint(shown * 255).astype(np.uint8)
    for i, image in enumerate(values):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    return grid


def png(image: Array) -> bytes:
    r"""HWC bytes, one or three channels, as a PNG file.

    >>> png(np.zeros((2, 2, 1), np.uint8))[:4]
    b'\x89PNG'
    """
    height, width, channels = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in np.ascontiguousarray(image))
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
