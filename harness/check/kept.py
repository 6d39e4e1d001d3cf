"""What planted faults have come to so far, a file a spec and precision: an interruption does not cost hours of work."""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.backend import PACKAGES, Array, digest
from harness.errors import CallError
from harness.files import make_folder, refusing, write_last

CODE = ("harness", "backends")
"""The packages whose code decides what is found."""
OTHERS = ("atlas", "bench", "cli.py", "fuzz", "report")
"""Of `harness`, what planting faults does not import: a change of it leaves what was found as it is."""
NAME = re.compile(r".+-[0-9a-f]{12}\.json(\.part)?")


@dataclass(frozen=True)
class Kept:
    """A folder with what calls have found; without one nothing is kept."""

    folder: Path | None
    call: tuple[str, ...]
    """What was asked, and the code that answers: what another call or another version has found is none of ours."""

    @classmethod
    @refusing
    def open(cls, folder: Path | None, call: Sequence[str]) -> "Kept":
        """The folder of a call, new or with what calls have found. Raises CallError where it holds something else."""
        if folder is not None:
            if folder.exists() and not folder.is_dir():
                raise CallError(f"--out {folder}: is not a directory")
            for file in sorted(make_folder(folder).iterdir()):
                if not NAME.fullmatch(file.name):
                    raise CallError(f"--out {folder}: {file.name} in it is not of planted faults; name another folder")
        return cls(folder, (*call, *_versions(), *_code()))

    def read(self, spec: str, precision: str, given: Iterable[str]) -> dict[str, Any] | None:
        """What the same call has found before in a spec that was given the same (its text, its data), or None."""
        if self.folder is None:
            return None
        asked = self._asked(given)
        try:
            known = json.loads(self._file(self.folder, spec, precision, asked).read_bytes())
        except (OSError, ValueError):  # none, or one that was cut short
            return None
        return known["found"] if isinstance(known, dict) and known.get("asked") == asked else None

    def write(self, spec: str, precision: str, given: Iterable[str], found: dict[str, Any]) -> None:
        """Keep what was found. Raises OSError where it cannot be written."""
        if self.folder is not None:
            asked = self._asked(given)
            write_last(self._file(self.folder, spec, precision, asked), {"asked": asked, "found": found})

    @staticmethod
    def _file(folder: Path, spec: str, precision: str, asked: str) -> Path:
        return folder / f"{spec}-{precision}-{asked[:12]}.json"

    def _asked(self, given: Iterable[str]) -> str:
        return hashlib.sha256("\n".join([*self.call, *given]).encode()).hexdigest()


def given_to(text: str, data: Mapping[str, Array]) -> tuple[str, str]:
    """What a spec is given: its text, and a digest of its data, which a file beside it may hold."""
    return text, digest(data)


def _versions() -> list[str]:
    # By their beginnings: a framework's build for CPUs has a longer name than its package.
    packages = ("numpy", *(name for names in PACKAGES.values() for name in names))
    installed = {f"{own.name} {own.version}" for own in importlib.metadata.distributions() if own.name}
    return [
        f"python {platform.python_version()}",
        *sorted(own for own in installed if own.lower().startswith(packages)),
    ]


def _code() -> list[str]:
    root = Path(__file__).parent.parent.parent
    return [
        f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for package in CODE
        for file in sorted((root / package).rglob("*.py"))
        if file.relative_to(root).parts[1] not in OTHERS
    ]
