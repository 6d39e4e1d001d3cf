"""One training by one worker, whatever end it takes; and workers that wait for another training by their framework."""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.backend import PACKAGES
from harness.environment import Interpreter, importable, worker_environment
from harness.results import BackendResult

if TYPE_CHECKING:
    from harness.runs import Options

Listener = Callable[[str, Mapping[str, Any]], None]
"""Told of a backend's events: {"phase": ...}, {"step": n, "losses": {...}}, {"exit": status}."""


@dataclass
class Worker:
    """A process that trains what it is told to, and the pipe of its events."""

    process: "subprocess.Popen[bytes]"
    events: IO[bytes]
    more: int | None
    """The pipe by which it is told what to train next; None: it ends after its training."""
    rest: bytes = b""
    """The beginning of a line whose end has not come yet."""

    def ask(self, folder: Path) -> None:
        """Train what lies in this folder too. Raises OSError where the worker has ended."""
        if self.more is None:
            raise ValueError("this worker was started for one training")
        os.write(self.more, f"{folder}\n".encode())

    def end(self) -> None:
        """End it and everything that it has started, at once."""
        kill(self.process)
        self.process.wait()
        self.events.close()
        if self.more is not None:
            os.close(self.more)


@dataclass
class Waiting:
    """Workers that have trained and wait, by backend: importing a framework takes longer than many a training."""

    pool: ThreadPoolExecutor
    """Whose threads start them: Linux ends a worker with the thread that has started it (see harness.worker)."""
    workers: dict[str, Worker] = field(default_factory=dict)


@contextmanager
def waiting(threads: int) -> Iterator[Waiting]:
    """A place for workers to wait in; whoever is still there at the end is ended: no error and no Ctrl-C leaves one behind."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = Waiting(pool)
        try:
            yield found
        finally:
            for worker in found.workers.values():
                worker.end()


def train(
    directory: Path, backend: str, request: Mapping[str, Any], python: Interpreter, options: "Options", listen: Listener,
    room: Waiting | None = None,
) -> BackendResult:  # fmt: skip
    """Have one worker train. `room`: where its like may wait from before, and where it waits for more afterwards."""
    folder = directory / backend
    if not importable(backend, python):
        extra = (
            f"pip install 'framework-harness[{backend}]', or name an interpreter that has it: --python {backend}=PATH"
        )
        return BackendResult(backend, "failed", error=f"{PACKAGES[backend][0]} is not installed here; {extra}")
    listen(backend, {"phase": "start", "total": request["stop"]})
    started = time.perf_counter()
    try:
        status, why = _supervised(folder, backend, python, options, listen, room)
    except OSError as error:
        return BackendResult(backend, "failed", error=f"{python.path} cannot be run: {error.strerror}")
    wall = time.perf_counter() - started
    listen(backend, {"exit": status})
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        reason = why or f"exited with {spell_status(status)} before writing result.json"
        log = tail(folder / "log.txt")
        if "ModuleNotFoundError" in log:
            reason += f"; {python.path} needs numpy, safetensors and {', '.join(PACKAGES[backend])}"
        return BackendResult(backend, "failed", error=reason, log=log, seconds={"wall": wall})
    except ValueError as error:
        error_text = f"its result.json cannot be read: {error}"
        return BackendResult(backend, "failed", error=error_text, log=tail(folder / "log.txt"), seconds={"wall": wall})
    if result.get("request") != request["digest"]:
        return BackendResult(
            backend, "failed", error="its result belongs to another request", log=tail(folder / "log.txt")
        )
    result["seconds"]["wall"] = wall
    result["environment"]["interpreter"] = f"{python.path} ({python.origin})"
    return BackendResult.from_worker(backend, result, folder)


def _supervised(
    folder: Path, backend: str, python: Interpreter, options: "Options", listen: Listener, room: Waiting | None
) -> tuple[int, str | None]:
    """Have a worker train, pass its events on, and stop it when it is silent for too long. Its status, and why it was stopped."""
    waited = room.workers.pop(backend, None) if room else None
    if waited is not None and waited.process.poll() is not None:
        waited.end()  # it has not outlived the wait, for want of memory, say
        waited = None
    worker = waited or _started(folder, python, options, stays=room is not None)
    done = False
    try:
        if waited is not None:
            waited.ask(folder)
        heard = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(worker.events, selectors.EVENT_READ)
            while not done:
                if selector.select(timeout=0.2):
                    chunk = worker.events.read(65536)
                    if not chunk:
                        break  # every copy of the pipe is closed: the worker has ended
                    heard = time.monotonic()
                    *lines, worker.rest = (worker.rest + chunk).split(b"\n")
                    for event in map(json.loads, lines):
                        done = done or "done" in event
                        if "done" not in event:
                            listen(backend, event)
                elif worker.process.poll() is not None:
                    break  # the worker has ended; a stray child of it may hold the pipe
                else:
                    listen(backend, {})  # which is told where all are to stop
                if time.monotonic() - heard > options.timeout:
                    kill(worker.process)
                    why = f"gave no sign of life for {options.timeout:g} seconds and was stopped"
                    return worker.process.wait(), why
        if done and room is not None:
            room.workers[backend] = worker
            return 0, None
        try:
            return worker.process.wait(timeout=max(options.timeout, 10)), None
        except subprocess.TimeoutExpired:
            kill(worker.process)
            return worker.process.wait(), "did not end after its work and was stopped"
    finally:
        if room is None or room.workers.get(backend) is not worker:
            worker.end()


def _started(folder: Path, python: Interpreter, options: "Options", *, stays: bool) -> Worker:
    """A worker that trains what lies in a folder; `stays`: and then waits to be asked for more."""
    reader, writer = os.pipe()
    asked, more = os.pipe() if stays else (subprocess.DEVNULL, None)
    try:
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module, the user's own interpreter
                [python.path, "-P", "-m", "harness.worker", str(folder), str(writer)],
                stdin=asked, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True, cwd=folder,
                env=worker_environment(options.device, options.threads),
            )  # fmt: skip
    except OSError:
        for pipe in (reader, more):
            if pipe is not None:
                os.close(pipe)
        raise
    finally:
        os.close(writer)
        if stays:
            os.close(asked)
    return Worker(process, os.fdopen(reader, "rb", buffering=0), more)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and everything that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.poll()  # it is gone already


def spell_status(status: int) -> str:
    """How a process ended, in words."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"{name}{hint}"
    return f"status {status}"


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
