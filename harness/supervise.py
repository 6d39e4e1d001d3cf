"""One training by one worker, whatever end it takes; and workers that wait for another training by their framework."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from harness.backend import PACKAGES, SCRATCH
from harness.environment import Interpreter, importable, scratch, worker_environment
from harness.files import error_text
from harness.life import Life
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
    scratch: Path
    """Its temporary files, which go with it."""
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
        shutil.rmtree(self.scratch, ignore_errors=True)


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
        status, why, said = _supervised(folder, backend, python, options, listen, room)
    except NotStarted as error:
        return BackendResult(backend, "failed", error=str(error))
    wall = time.perf_counter() - started
    listen(backend, {"exit": status})
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except FileNotFoundError:
        reason = why or f"exited with {spell_status(status)} before writing result.json"
        if not why and said:
            reason += f": {said}"
        log = tail(folder / "log.txt")
        if "ModuleNotFoundError" in log:
            reason += f"; {python.path} needs numpy, safetensors and {', '.join(PACKAGES[backend])}"
        return BackendResult(backend, "failed", error=reason, log=log, seconds={"wall": wall})
    except ValueError as error:
        error_text = f"its result.json cannot be read: {error}"
        return BackendResult(backend, "failed", error=error_text, log=tail(folder / "log.txt"), seconds={"wall": wall})
    if not isinstance(result, dict) or result.get("request") != request["digest"]:
        return BackendResult(
            backend, "failed", error="its result belongs to another request", log=tail(folder / "log.txt")
        )
    if "twin_of" not in request and (damage := _damage(folder, result)):  # a twin leaves distances alone
        return BackendResult(backend, "failed", error=damage, log=tail(folder / "log.txt"), seconds={"wall": wall})
    result["seconds"]["wall"] = wall
    result["environment"]["interpreter"] = f"{python.path} ({python.origin})"
    return BackendResult.from_worker(backend, result, folder)


def _damage(folder: Path, result: Mapping[str, Any]) -> str:
    """What of a worker's files is missing or cut short though it ended well: somebody removed it. Nothing, if all is well."""
    states = [folder / "trajectory" / f"state-{step + 1:08}.safetensors" for step in result.get("recorded", ())]
    for file in (folder / "outputs.safetensors", *states):
        try:
            with safe_open(file, framework="numpy"):
                pass  # its header says how long it is, and that is checked
        except (OSError, SafetensorError) as error:
            return f"{file.relative_to(folder.parent)} cannot be read any more: {' '.join(str(error).split())}"
    return ""


class NotStarted(Exception):  # noqa: N818 - the worker is what failed
    """No process to train with, and why."""


def _supervised(
    folder: Path, backend: str, python: Interpreter, options: "Options", listen: Listener, room: Waiting | None
) -> tuple[int, str | None, str]:
    """Have a worker train, pass its events on, and stop it when it is silent for too long.

    Returns its status, why it was stopped, and what error it told of. Raises NotStarted.
    """
    waited = room.workers.pop(backend, None) if room else None
    if waited is not None and waited.process.poll() is not None:
        waited.end()  # it has not outlived the wait, for want of memory, say
        waited = None
    worker = waited or _started(folder, python, options, stays=room is not None)
    done, said = False, ""
    try:
        if waited is not None:
            waited.ask(folder)
        life = Life(worker.process.pid, options.timeout)
        with selectors.DefaultSelector() as selector:
            selector.register(worker.events, selectors.EVENT_READ)
            while not done:
                if selector.select(timeout=0.2):
                    chunk = worker.events.read(65536)
                    if not chunk:
                        break  # every copy of the pipe is closed: the worker has ended
                    *lines, worker.rest = (worker.rest + chunk).split(b"\n")
                    for event in map(json.loads, lines):
                        life.heard(patient=_prepares(event, life))
                        done, said = done or "done" in event, event.get("error", said)
                        if not event.keys() & {"done", "error"}:
                            listen(backend, event)
                elif worker.process.poll() is not None:
                    break  # the worker has ended; a stray child of it may hold the pipe
                else:
                    listen(backend, {})  # which is told where all are to stop
                if why := life.over():
                    kill(worker.process)
                    return worker.process.wait(), f"{why} and was stopped", said
        if done and room is not None:
            room.workers[backend] = worker
            return 0, None, said
        try:
            return worker.process.wait(timeout=max(options.timeout, 10)), None, said
        except subprocess.TimeoutExpired:
            kill(worker.process)
            return worker.process.wait(), "did not end after its work and was stopped", said
    finally:
        if room is None or room.workers.get(backend) is not worker:
            worker.end()


def _prepares(event: Mapping[str, Any], life: Life) -> bool:
    """Whether what follows an event of a worker is importing or compiling: so is the first step of training, and of evaluating.

    A step, and the sign of life that evaluating gives after each chunk, end that.
    """
    if "phase" in event:
        return True
    return life.patient and not event.keys() & {"step"} and bool(event)


def _started(folder: Path, python: Interpreter, options: "Options", *, stays: bool) -> Worker:
    """A worker that trains what lies in a folder; `stays`: and then waits to be asked for more."""
    with ExitStack() as failed:
        try:
            log = failed.enter_context((folder / "log.txt").open("wb"))
        except OSError as error:
            raise NotStarted(f"its log cannot be written: {error_text(error)}") from None
        try:
            own = scratch()
            failed.callback(shutil.rmtree, own, ignore_errors=True)
            reader, writer = _pipe(failed)
            asked, more = _pipe(failed) if stays else (subprocess.DEVNULL, None)
        except OSError as error:
            raise NotStarted(f"it has no place for temporary files, or no pipe: {error_text(error)}") from None
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module, the user's own interpreter
                [python.path, "-P", "-m", "harness.worker", str(folder), str(writer)],
                stdin=asked, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True, cwd=folder,
                env=worker_environment(options.device, options.threads) | {SCRATCH: str(own)},
            )  # fmt: skip
        except OSError as error:
            raise NotStarted(f"{python.path} cannot be run: {error.strerror}") from None
        failed.pop_all()
    log.close()
    os.close(writer)
    if stays:
        os.close(asked)
    return Worker(process, os.fdopen(reader, "rb", buffering=0), more, own)


def _pipe(failed: ExitStack) -> tuple[int, int]:
    """A pipe's two ends, which are closed if what follows fails. Raises OSError."""
    ends = os.pipe()
    for end in ends:
        failed.callback(os.close, end)
    return ends


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
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
