"""What was found once about a subject and may be asked for again: answers of workers, values of the reference."""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from threading import RLock
from typing import Any

import numpy as np

ROOM = 3 << 30
"""Bytes of arrays that are kept; what was not asked for the longest goes first."""


@dataclass
class Memory:
    """Keeps values by key; threads may share it."""

    room: int = ROOM
    kept: "OrderedDict[tuple[Hashable, ...], tuple[Any, int]]" = field(default_factory=OrderedDict, repr=False)
    size: int = 0
    lock: Any = field(default_factory=RLock, repr=False)

    def get(self, *key: Hashable) -> Any:  # noqa: ANN401 - whatever was kept
        """What was kept under a key; None where nothing was, or where it had to go."""
        with self.lock:
            if key not in self.kept:
                return None
            self.kept.move_to_end(key)
            return self.kept[key][0]

    def keep(self, value: object, *key: Hashable) -> None:
        """Keep a value."""
        with self.lock:
            self.forget(*key)
            self.kept[key] = (value, bytes_of(value))
            self.size += self.kept[key][1]
            while self.size > self.room and len(self.kept) > 1:
                _, (_, own) = self.kept.popitem(last=False)
                self.size -= own

    def forget(self, *key: Hashable) -> None:
        """Drop what is kept under a key, if anything is."""
        with self.lock:
            if key in self.kept:
                self.size -= self.kept.pop(key)[1]


def bytes_of(value: object) -> int:
    """The bytes of all arrays in a value.

    >>> bytes_of({"a": np.zeros(3), "b": [np.zeros(2, np.float32)]})
    32
    """
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return sum(map(bytes_of, value))
    return 0


def digest(value: str | Mapping[str, Any]) -> str:
    """A fingerprint of a text or of arrays by name."""
    made = hashlib.blake2b(digest_size=16)
    if isinstance(value, str):
        made.update(value.encode())
    else:
        for name, array in value.items():
            made.update(name.encode())
            made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()
