"""A worker that stays: one framework in a process of its own, asked about many programs (see harness.serve)."""

import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from harness.backend import PACKAGES, SCRATCH, Arrays
from harness.environment import Interpreter, importable, scratch, worker_environment
from harness.errors import WorkerFailed
from harness.files import error_text
from harness.life import Life
from harness.supervise import kill, spell_status, tail

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
ENDING = 2.0
"""Seconds that a worker which has closed its pipe may take to end by itself."""


@dataclass
class LiveWorker:
    """A running server of one backend. `ask` raises WorkerFailed with the reason and the end of the log."""

    backend: str
    name: str
    """What it goes by: its backend, unless there are two of that."""
    folder: Path
    """Where its log lies, and the arrays of its answers."""
    process: "subprocess.Popen[bytes]"
    questions: int
    answers: int
    timeout: float
    core: int
    seconds: float = 0.0
    """Until it had started and imported its framework."""
    count: int = 0
    rest: bytes = b""
    asked: str = field(default="start", repr=False)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Ask and wait for the answer."""
        self.asked = do
        return self._send({"do": do, **fields})

    def arrays(self, do: str, **fields: Any) -> Arrays:  # noqa: ANN401 - JSON
        """Ask for arrays, which come by way of a file that is gone afterwards."""
        path = self.fresh()
        try:
            self.ask(do, into=str(path), **fields)
            return load_file(path)
        finally:
            path.unlink(missing_ok=True)

    def fresh(self) -> Path:
        """A file's path that nothing has used yet."""
        self.count += 1
        return self.folder / f"answer-{self.count:05}.safetensors"

    def _send(self, question: Mapping[str, Any]) -> dict[str, Any]:
        try:
            os.write(self.questions, (json.dumps(question) + "\n").encode())
        except OSError:
            self._died()
        answer: dict[str, Any] = json.loads(self._line())
        if not answer.pop("ok"):
            raise WorkerFailed(f"{self.backend} could not '{self.asked}': {_last(answer['error'])}\n{answer['error']}")
        return answer

    def _line(self) -> bytes:
        life = Life(self.process.pid, self.timeout, word=f"answer to '{self.asked}'")
        with selectors.DefaultSelector() as selector:
            selector.register(self.answers, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                if selector.select(timeout=0.2):
                    chunk = os.read(self.answers, 65536)
                    if not chunk:
                        self._died()
                    self.rest += chunk
                elif self.process.poll() is not None:
                    self._died()
                if why := life.over():
                    kill(self.process)
                    self.process.wait()  # whoever asks next whether it is alive is not told yes
                    raise WorkerFailed(
                        f"worker {self.backend} {why} and was stopped; last lines of {self.folder / 'log.txt'}:\n{tail(self.folder / 'log.txt')}"
                    )
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def _died(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=ENDING)  # killed at once, it would seem to have run out of memory
        kill(self.process)
        how = spell_status(self.process.wait())
        log = tail(self.folder / "log.txt")
        raise WorkerFailed(
            f"worker {self.backend} ended with {how} when asked to '{self.asked}'; last lines of "
            f"{self.folder / 'log.txt'}:\n{log}"
        )


@contextmanager
def worker(
    backend: str, python: Interpreter, folder: Path, *, core: int, timeout: float = 600.0, name: str | None = None,
    settings: Mapping[str, str] | None = None, device: str = "cpu",
) -> Iterator[LiveWorker]:  # fmt: skip
    """A live worker, pinned to one core (where the device is a GPU, to none); killed on the way out, whatever happened. Raises WorkerFailed.

    `settings`: more environment variables, where this process has not set them; Inductor's cache is always its own, but where
    they name another.
    """
    if not importable(backend, python):
        raise WorkerFailed(
            f"{PACKAGES[backend][0]} is not installed here; pip install 'framework-harness[{backend}]', or name an "
            f"interpreter that has it: --python {backend}=PATH"
        )
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = (folder / "log.txt").open("wb")
        except OSError as error:
            raise WorkerFailed(f"the log of worker {backend} cannot be written: {error_text(error)}") from None
        try:
            own = scratch()
        except OSError as error:
            log.close()
            raise WorkerFailed(f"worker {backend} has no place for temporary files: {error_text(error)}") from None
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        with ExitStack() as given:  # the ends that the worker has
            given.enter_context(log)
            try:
                ask_read, ask_write = os.pipe()
                given.callback(os.close, ask_read)
                stack.callback(os.close, ask_write)
                answer_read, answer_write = os.pipe()
                given.callback(os.close, answer_write)
                stack.callback(os.close, answer_read)
            except OSError as error:
                raise WorkerFailed(f"worker {backend} has no pipe to be asked by: {error_text(error)}") from None
            try:
                process = subprocess.Popen(  # noqa: S603 - our own module, the user's own interpreter
                    [python.path, "-P", "-m", "harness.serve", str(ask_read), str(answer_write)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(ask_read, answer_write),
                    start_new_session=True, cwd=folder,
                    # Inductor would find what it compiled last time, and a first call would cost nothing.
                    env={**(settings or {}), **worker_environment(device, 1), SCRATCH: str(own)}
                    | {INDUCTOR: (settings or {}).get(INDUCTOR, str(folder / "inductor"))},
                )  # fmt: skip
            except OSError as error:
                raise WorkerFailed(f"{python.path} cannot be run: {error.strerror}") from None
        stack.callback(process.wait)
        stack.callback(kill, process)
        live = LiveWorker(backend, name or backend, folder, process, ask_write, answer_read, timeout, core)
        began = time.perf_counter()
        live._send({"backend": backend, "threads": 1, "cores": [core] if device == "cpu" else []})  # noqa: SLF001 - the first line is the request
        live.seconds = time.perf_counter() - began
        yield live


def allowed_cores() -> Sequence[int]:
    """The cores that this process may use: a worker each."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _last(error: str) -> str:
    return error.strip().splitlines()[-1]
