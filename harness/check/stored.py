"""A run as its directory has it: what was trained on, and the programs as they ran."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from harness import spec
from harness.backend import Arrays
from harness.checkpoint import Origin
from harness.data.datasets import Column
from harness.errors import CallError, SpecError
from harness.graph import Program
from harness.resolve import compile_spec
from harness.results import RunResult


@dataclass(frozen=True)
class Stored:
    """A finished run, read and found whole."""

    directory: Path
    program: Program
    text: str
    """Its spec."""
    result: RunResult
    first: int
    """Steps done before it, where it goes on from a checkpoint."""
    inputs: dict[str, Arrays]
    """By file: parameters, data, batches, and from a checkpoint optimizer."""
    texts: dict[str, str]
    """By backend that finished: its program."""
    threads: int

    @property
    def held_out(self) -> bool:
        """Whether there are examples that are not trained on."""
        return any(name.startswith("test.") for name in self.inputs["data"])


def read(directory: Path) -> Stored:
    """A run directory. Raises CallError where it is none, is cut short, or has been changed since."""
    result = RunResult.read(directory)
    requests: dict[str, dict[str, Any]] = {}
    for name, own in result.backends.items():
        if own.status != "failed":
            requests[name] = _json(directory, directory / name / "request.json")
    if not requests:
        raise CallError(f"run directory {directory}: none of its backends finished; there is nothing to compare")
    texts = {}
    for name, request in requests.items():
        _whole(directory, name, request)
        texts[name] = (directory / name / str(request["program"])).read_text(encoding="utf-8")
    request = next(iter(requests.values()))
    try:
        origin = Origin.from_json(request["origin"])
        columns = {n: Column(tuple(c["shape"]), c["dtype"], c["classes"]) for n, c in origin.columns.items()}
        loaded, source = spec.loads(origin.text, origin.source, Path(origin.source).parent)
        program = compile_spec(loaded, source, origin.steps, origin.seed, columns)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CallError(f"run directory {directory}: its request.json is not complete: {error!r}") from None
    except SpecError as error:
        raise CallError(f"run directory {directory}: its spec is none that this version reads: {error}") from None
    inputs = {file.stem: _arrays(directory, file) for file in sorted((directory / "inputs").glob("*.safetensors"))}
    for name in ("parameters", "data", "batches"):
        if name not in inputs:
            raise CallError(f"run directory {directory}: inputs/{name}.safetensors is missing")
    if (have := set(inputs["parameters"])) != set(program.parameters):
        other = sorted(have ^ set(program.parameters))
        raise CallError(f"run directory {directory}: its parameters are not the spec's: {', '.join(other[:5])}")
    return Stored(
        directory, program, origin.text, result, int(request["start"]), inputs, texts, int(request["threads"])
    )


def _whole(directory: Path, backend: str, request: Mapping[str, Any]) -> None:
    """Raise CallError unless program and inputs are those that the backend was given."""
    asked = {name: value for name, value in request.items() if name != "digest"}
    try:
        files = [directory / backend / str(request["program"]), *sorted((directory / "inputs").iterdir())]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    except (OSError, KeyError, ValueError) as error:  # the last: a NUL in a path
        what = (
            f"{error.filename}: {error.strerror}"
            if isinstance(error, OSError)
            else f"no {error}"
            if isinstance(error, KeyError)
            else str(error)
        )
        raise CallError(f"run directory {directory}: is cut short: {what}") from None
    if request.get("digest") != hashlib.sha256(json.dumps([asked, digests], sort_keys=True).encode()).hexdigest():
        raise CallError(
            f"run directory {directory}: {backend}'s program, request or inputs are not those that ran: they were "
            "changed or corrupted since; run it again (a changed program runs with `harness run --program`)"
        )


def _json(directory: Path, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CallError(f"run directory {directory}: is cut short: {file.relative_to(directory)} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CallError(f"run directory {directory}: {file.relative_to(directory)} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CallError(f"run directory {directory}: {file.relative_to(directory)} is no request")
    return found


def _arrays(directory: Path, file: Path) -> Arrays:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise CallError(f"run directory {directory}: inputs/{file.name} was cut short or corrupted: {said}") from None
