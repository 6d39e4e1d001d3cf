"""A checkpoint: one safetensors file from which any backend goes on, and from which `harness export` makes native ones.

Arrays are in canonical names and axes: `state/<name>` (parameters and statistics), `optimizer/<update>/<slot>/<name>`
and `optimizer/<update>/count`. The metadata hold the spec's text, so that the file needs nothing beside it.
Imports NumPy and safetensors alone: workers write checkpoints.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

import harness
from harness.backend import Arrays, digest
from harness.errors import CallError
from harness.files import write_arrays

NO_FILE = "is no safetensors file, or was cut short or corrupted"
SCHEMA = 1
Table = Mapping[str, tuple[tuple[int, ...], str]]
"""Every parameter and statistic: its shape, and what its axes are (`HWIO`)."""


@dataclass(frozen=True)
class Origin:
    """What a training is of: all that a checkpoint says beside its arrays and how far it is."""

    spec: str
    """The spec's name."""
    source: str
    """The file that the spec was read from."""
    text: str
    """The spec as written."""
    columns: Mapping[str, Any]
    """The data's fields: `shape`, `dtype`, `classes`."""
    table: Table
    seed: int
    precision: str
    steps: int
    """Of the whole training: what a schedule without a length of its own, like cosine's, spans."""

    def to_json(self) -> dict[str, Any]:
        """As a worker's request has it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Origin":
        """The inverse. Raises KeyError, ValueError or TypeError where something is missing, or is no size."""
        table = {name: (sizes(shape), str(axes)) for name, (shape, axes) in value["table"].items()}
        columns = {
            name: {
                "shape": list(sizes(c["shape"])),
                "dtype": str(c["dtype"]),
                "classes": None if c["classes"] is None else int(c["classes"]),
            }
            for name, c in value["columns"].items()
        }
        return cls(**{**value, "table": table, "columns": columns})


@dataclass(frozen=True)
class Checkpoint:
    """A training after some of its steps: everything that the next one depends on."""

    origin: Origin
    step: int
    """Steps done so far: the position of schedules, batches, noise and masks."""
    state: Arrays
    """Parameters and statistics by canonical name."""
    optimizer: Arrays
    """As `Session.optimizer_state` gives it."""
    version: str = field(default=harness.__version__)
    """Of the harness that wrote it."""

    def arrays(self) -> Arrays:
        """All of them by their names in the file."""
        state = {f"state/{name}": np.asarray(array, order="C") for name, array in self.state.items()}
        return state | {f"optimizer/{n}": np.asarray(array, order="C") for n, array in self.optimizer.items()}

    def write(self, path: Path) -> None:
        """The file, complete or not at all."""
        arrays = self.arrays()
        origin = self.origin.to_json()
        metadata = {name: origin[name] for name in ("spec", "source", "text", "precision")}
        metadata |= {name: str(origin[name]) for name in ("seed", "steps")}
        metadata |= {name: json.dumps(origin[name]) for name in ("columns", "table")}
        metadata |= {"schema": str(SCHEMA), "harness": self.version, "step": str(self.step), "digest": digest(arrays)}
        write_arrays(path, arrays, metadata)

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """A checkpoint's file. Raises CallError where it is none, is damaged, or is of another version."""
        if not path.is_file():
            raise CallError(f"checkpoint {path}: {'is not a file' if path.exists() else 'does not exist'}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = dict(file.metadata() or {})
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (
            SafetensorError,
            OSError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:  # the last two: a dtype that NumPy has not
            raise CallError(f"checkpoint {path}: {NO_FILE}: {' '.join(str(error).split())}") from None
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":  # of a library that gives NumPy more types, where one is loaded
                raise CallError(f"checkpoint {path}: {NO_FILE}: {name} is of {array.dtype}")
        if "schema" not in metadata:
            raise CallError(f"checkpoint {path}: is a safetensors file, but no checkpoint of a run")
        if metadata["schema"] != str(SCHEMA):
            have = f"has schema {metadata['schema']!r:.40} (harness {metadata.get('harness', '?')!r:.40})"
            raise CallError(f"checkpoint {path}: {have}, this version reads {SCHEMA}")
        try:
            if metadata["digest"] != digest(arrays):
                raise CallError(f"checkpoint {path}: is corrupted: its arrays are not those that were written")
            origin = {name: metadata[name] for name in ("spec", "source", "text", "precision")}
            numbers = {name: natural(metadata[name]) for name in ("seed", "steps", "step")}
            tables = {name: json.loads(metadata[name]) for name in ("columns", "table")}
            made = Origin.from_json({**origin, **tables, "seed": numbers["seed"], "steps": numbers["steps"]})
            return cls(made, numbers["step"], _below(arrays, "state/"), _below(arrays, "optimizer/"), metadata["harness"])  # fmt: skip
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CallError(f"checkpoint {path}: its metadata are not complete: {error!r:.200}") from None

    def require(self, path: Path, table: Table, optimizer: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CallError unless it is of this network and these optimizers: names, shapes and axes."""
        mine = self.origin.table
        for name in dict.fromkeys((*mine, *table)):
            if mine.get(name) != table.get(name):
                have, want = _spell(mine.get(name)), _spell(table.get(name))
                raise CallError(
                    f"checkpoint {path}: is of another network: '{name}' is {have} in it and {want} in the spec"
                )
        for name in sorted({*mine, *self.state}):
            shape = self.state[name].shape if name in self.state else None
            if name not in mine or shape != mine[name][0]:
                have = _spell(shape if shape is None else (shape, ""))
                raise CallError(f"checkpoint {path}: does not fit together: '{name}' is {have}, and {_spell(mine.get(name))} by its own table")  # fmt: skip
        for name, array in {**self.state, **self.optimizer}.items():
            if array.dtype.kind not in "fiu":
                raise CallError(f"checkpoint {path}: '{name}' holds {array.dtype} values; parameters are numbers")
        held = {name: array.shape for name, array in self.optimizer.items()}
        for name in sorted({*held, *optimizer}):
            if held.get(name) != optimizer.get(name):
                have, want = (_spell(x if x is None else (x, "")) for x in (held.get(name), optimizer.get(name)))
                raise CallError(
                    f"checkpoint {path}: is of other optimizers: '{name}' is {have} in it and {want} in the spec"
                )


def natural(text: str) -> int:
    """A number from 0 on. Raises ValueError."""
    if (number := int(text)) < 0:
        raise ValueError(f"{number} is below 0")
    return number


def sizes(shape: Any) -> tuple[int, ...]:  # noqa: ANN401 - JSON
    """A shape as JSON has it. Raises ValueError where it is none."""
    if not isinstance(shape, (list, tuple)) or not all(type(size) is int and 0 <= size < 2**53 for size in shape):
        raise ValueError(f"{shape!r:.60} is no shape")
    return tuple(shape)


def _spell(entry: tuple[tuple[int, ...], str] | None) -> str:
    if entry is None:
        return "missing"
    shape, axes = entry
    return f"[{', '.join(map(str, shape))}]" + (f" ({axes})" if axes else "")


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
