"""What the harness writes: each file complete or not there, never through a symbolic link, and a reason where it cannot be.

Imports the standard library and safetensors alone: workers write with it. Every function raises OSError with the file's name.
"""

import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from harness.errors import CallError

P = ParamSpec("P")
R = TypeVar("R")
Array = np.ndarray[Any, np.dtype[Any]]
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def write_text(path: Path, text: str) -> None:
    """Text as UTF-8. Half of a surrogate pair, which UTF-8 cannot say, becomes a question mark."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, data: bytes) -> None:
    """A file with these bytes; what stood there before, a link too, is replaced."""
    with replacing(path) as temporary, os.fdopen(os.open(temporary, NEW, 0o666), "wb") as file:
        file.write(data)


def write_last(path: Path, value: Any) -> None:  # noqa: ANN401 - JSON
    """A value as JSON, as ASCII: what reads it may be in any locale."""
    write_bytes(path, json.dumps(value, indent=1, allow_nan=True).encode("ascii"))


def write_arrays(path: Path, arrays: Mapping[str, Array], metadata: dict[str, str] | None = None) -> None:
    """Arrays as one safetensors file."""
    with replacing(path) as temporary:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, temporary, metadata)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` for something new, which then takes its place at once; after an error it is gone."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)  # left by a process that was killed, or somebody's link
        yield temporary
        temporary.replace(path)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise _os_error(error, path) from None
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> Path:
    """A folder for files that are written, new or there already. A link to one elsewhere is refused."""
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, and nothing is written through one", str(path))
    return path


def new_folder(prefix: str) -> Path:
    """A temporary folder of nobody else's. Raises CallError where there is no room for one."""
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        raise CallError(f"cannot make a temporary folder: {error_text(error)} (TMPDIR names another place)") from None


def write_named(path: Path, text: str) -> None:
    """Text to a file that the user has named: a device or a pipe is written to, a link followed, as a shell would."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        try:
            with path.open("w", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
    else:
        write_text(target, text)


def error_text(error: OSError) -> str:
    """Why a file could not be written or read, in a sentence.

    >>> error_text(OSError(28, "No space left on device", "runs/a/result.json"))
    'runs/a/result.json: No space left on device'
    """
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what


def refusing(do: Callable[P, R]) -> Callable[P, R]:
    """What is done before anything is trained: where it cannot write, the call is refused (CallError)."""

    @wraps(do)
    def done(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return do(*args, **kwargs)
        except OSError as error:
            raise CallError(f"cannot write {error_text(error)}") from None

    return done


def _os_error(error: SafetensorError, path: Path) -> OSError:
    """What safetensors, which has errors of its own, was told by the operating system."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else " ".join(str(error).split()), str(path))
