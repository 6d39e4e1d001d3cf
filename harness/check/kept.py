"""What planted faults have come to so far, a file a spec and precision: an interruption does not cost hours of work."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.backend import PACKAGES
from harness.errors import CallError
from harness.files import make_folder, refusing, write_last

CODE = ("harness", "backends")
"""The packages whose code decides what is found."""


@dataclass(frozen=True)
class Kept:
    """A folder with what a call has found; without one nothing is kept."""

    folder: Path | None
    call: tuple[str, ...]
    """What was asked, and the code that answers: what another call or another version has found is none of ours."""

    @classmethod
    @refusing
    def open(cls, folder: Path | None, call: Sequence[str]) -> "Kept":
        """The folder of a call, new or with what the same call has found. Raises CallError where it holds something else."""
        if folder is not None:
            if folder.exists() and not folder.is_dir():
                raise CallError(f"--out {folder}: is not a directory")
            for file in sorted(make_folder(folder).iterdir()):
                if _read(file) is None:
                    raise CallError(f"--out {folder}: {file.name} in it is not of planted faults; name another folder")
        return cls(folder, (*call, *_code()))

    def read(self, spec: str, text: str, precision: str) -> dict[str, Any] | None:
        """What the same call has found in a spec of this text before, or None."""
        known = None if self.folder is None else _read(self.folder / _name(spec, precision))
        return known["found"] if known is not None and known["asked"] == self._asked(text) else None

    def write(self, spec: str, text: str, precision: str, found: dict[str, Any]) -> None:
        """Keep what was found. Raises OSError where it cannot be written."""
        if self.folder is not None:
            write_last(self.folder / _name(spec, precision), {"asked": self._asked(text), "found": found})

    def _asked(self, text: str) -> str:
        return hashlib.sha256("\n".join([*self.call, text]).encode()).hexdigest()


def _name(spec: str, precision: str) -> str:
    return f"{spec}-{precision}.json"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and known.keys() == {"asked", "found"} else None


def _code() -> list[str]:
    root = Path(__file__).parent.parent.parent
    installed = {own.name.lower(): own.version for own in importlib.metadata.distributions() if own.name}
    versions = [f"{name} {installed.get(name, '')}" for packages in PACKAGES.values() for name in packages]
    return versions + [
        f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for package in CODE
        for file in sorted((root / package).rglob("*.py"))
    ]
