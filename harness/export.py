"""Checkpoint -> a framework's own format, with the emitted program that reads it: neither needs the harness.

PyTorch's `state_dict`, Keras's `.weights.h5` or `.keras`, an Orbax checkpoint. Each is written by the framework itself,
in a process of its own.
"""

import importlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness import runs, spec
from harness.backend import BACKENDS, PACKAGES
from harness.checkpoint import Checkpoint
from harness.data.datasets import Column
from harness.environment import importable, interpreters, worker_environment
from harness.errors import CallError, WorkerFailed
from harness.graph import Program
from harness.resolve import compile_spec

TIMEOUT = 600
KERAS = (".weights.h5", ".keras")


def export(path: Path, backend: str, out: Path, pythons: tuple[str, ...] = ()) -> list[Path]:
    """Write a checkpoint as `backend` keeps its own; returns the files, the program last.

    `out` is a file for torch and tensorflow, a directory for jax; nothing that exists is overwritten. Raises CallError
    where the call is wrong, WorkerFailed where the framework cannot.
    """
    if backend not in BACKENDS:
        raise CallError(f"unknown backend '{backend}' (backends: {', '.join(BACKENDS)})")
    checkpoint = Checkpoint.read(path)
    program = program_of(checkpoint)
    checkpoint.require(path, runs.parameter_table(program), runs.optimizer_table(program))
    wanted = files(backend, out, program)
    for file in wanted.values():
        if file.exists():
            raise CallError(f"--out {file}: exists; an export never overwrites")
    if not out.absolute().parent.is_dir():
        raise CallError(f"--out {out}: there is no directory {out.parent}")
    emitter = importlib.import_module(f"backends.{backend}.emit")
    source = str(emitter.emit(program, checkpoint.origin.precision, 1))
    beside = out.parent / f"{program.name}_{backend}.py"
    if beside.exists() and beside.read_text(encoding="utf-8", errors="replace") != source:
        raise CallError(f"--out {out}: {beside} lies beside it and is another program; export into another directory")
    python = interpreters(pythons)[backend]
    if not importable(backend, python):
        raise CallError(
            f"{PACKAGES[backend][0]} is not installed here; pip install 'framework-harness[{backend}]', or name an "
            f"interpreter that has it: --python {backend}=PATH"
        )
    # Beside the target, so that what is complete can be moved into place at once.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.absolute().parent) as name:
        folder = Path(name)
        (folder / beside.name).write_text(source, encoding="utf-8")
        shutil.copyfile(path, folder / "checkpoint.safetensors")
        request = {"backend": backend, "program": beside.name, **runs.describe(program), "threads": 1}
        request["files"] = {network: file.name for network, file in wanted.items()}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        _work(folder, backend, python.path)
        for file in wanted.values():
            (folder / file.name).replace(file)
        (folder / beside.name).replace(beside)
    return [*wanted.values(), beside]


def program_of(checkpoint: Checkpoint) -> Program:
    """The program that a checkpoint is of, from the file alone: its data need not be there."""
    origin = checkpoint.origin
    loaded, source = spec.loads(origin.text, origin.source)
    columns = {n: Column(tuple(c["shape"]), c["dtype"], c["classes"]) for n, c in origin.columns.items()}
    return compile_spec(loaded, source, origin.steps, origin.seed, columns)


def files(backend: str, out: Path, program: Program) -> dict[str, Path]:
    """What is written, by network: Keras keeps each model in a file of its own, the others keep all in one."""
    if backend != "tensorflow":
        if backend == "torch" and out.is_dir():
            raise CallError(f"--out {out}: is a directory; a state_dict is a file, like {out / program.name}.pt")
        return {"": out}
    suffix = next((suffix for suffix in KERAS if out.name.endswith(suffix) and out.name != suffix), None)
    if suffix is None:
        raise CallError(f"--out {out}: Keras's files end in {' or '.join(KERAS)}, like {program.name}{KERAS[0]}")
    if len(program.networks) == 1:
        return {"": out}
    stem = out.name.removesuffix(suffix)
    return {network: out.with_name(f"{stem}.{network}{suffix}") for network in program.networks}


def _work(folder: Path, backend: str, python: str) -> None:
    """Run the worker; what it says is shown where it fails."""
    command = [python, "-P", "-m", "harness.export_worker", str(folder)]
    try:
        done = subprocess.run(  # noqa: S603 - our own module, the user's own interpreter
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
            cwd=folder, env=worker_environment("cpu", 1), timeout=TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise WorkerFailed(f"worker {backend} did not write the export within {TIMEOUT} seconds") from None
    except OSError as error:
        raise CallError(f"{python} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it printed nothing"]
        raise WorkerFailed(f"worker {backend} exited with status {done.returncode}; its last line: {lines[-1].strip()}")
