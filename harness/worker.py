"""Train one backend's program: `python -P -m harness.worker RUN/BACKEND EVENTS_FD`, in that backend's environment.

The directory holds request.json and the emitted program; beside it lie the run's inputs. This writes
outputs.safetensors, checkpoint.safetensors and trajectory/, and result.json last: a directory without it is a run that did not finish.
Then each line of standard input names another such directory, for the same framework: the same again in another precision, say.
Imports NumPy, safetensors and one framework, nothing else.
"""

import ctypes
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from harness.backend import PACKAGES, Array, Arrays, Session, digest, to_bytes
from harness.checkpoint import Checkpoint, Origin
from harness.files import make_folder, write_arrays, write_last

CHUNK = 256  # examples evaluated at once
LONGEST = 300  # characters of an error that is told; all of it is in the log


def main(directory: Path, events: int, *, again: bool = False) -> None:
    """Do what request.json asks; `again`: after another."""
    _die_with_parent()
    tell = _Teller(events)
    try:
        _train(directory, tell, again=again)
    except BaseException as error:
        # The log may be on the disk that is full.
        tell.write({"error": " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]})
        raise


def _train(directory: Path, tell: "_Teller", *, again: bool) -> None:
    request = json.loads((directory / "request.json").read_bytes())
    _pin(request["cores"])
    seconds: dict[str, float] = {}

    start = tell.phase("import")
    backend = _imported(request, again=again)
    program = load_program(directory / request["program"])
    seconds["import"] = time.perf_counter() - start

    inputs = load_file(directory.parent / "inputs" / "data.safetensors")
    inputs |= load_file(directory.parent / "inputs" / "batches.safetensors")
    parameters = load_file(directory.parent / "inputs" / "parameters.safetensors")
    start = tell.phase("build")
    session: Session = backend.Session(program, request)
    session.load(parameters)
    if request["start"]:
        session.load_optimizer(load_file(directory.parent / "inputs" / "optimizer.safetensors"))
    seconds["build"] = time.perf_counter() - start
    digests = {"parameters": digest(session.state()), "optimizer": digest(session.optimizer_state())}

    run = _Run(session, request, inputs, directory, tell)
    start = tell.phase("forward")
    outputs = {f"initial/{name}": value for name, value in run.evaluate(limit=CHUNK).items()}
    seconds["forward"] = time.perf_counter() - start
    start = tell.phase("compile")
    session.compile(session.batch(inputs, 0))
    seconds["compile"] = time.perf_counter() - start
    tell.phase("train")
    run.train()
    seconds |= run.seconds()
    digests |= run.digests()
    if run.stopped_at is not None:
        # The parameters just before the loss left the numbers, found again: training is reproducible.
        outputs |= {
            f"before/{name}": value
            for name, value in _replay(backend, program, request, inputs, directory, run.stopped_at, tell).items()
        }
    start = tell.phase("evaluate")
    if run.stopped_at is None:
        outputs |= {f"final/{name}": value for name, value in run.evaluate().items()}
        if request["text"]:
            outputs["text"] = run.generate(request["text"])
    outputs |= {f"state/{name}": value for name, value in session.state().items()}
    if run.stopped_at is None:
        origin = Origin.from_json(request["origin"])
        kept = Checkpoint(origin, request["stop"], session.state(), session.optimizer_state())
        kept.write(directory / "checkpoint.safetensors")
    seconds["evaluate"] = time.perf_counter() - start

    write_arrays(directory / "outputs.safetensors", {name: np.ascontiguousarray(own) for name, own in outputs.items()})
    result = {
        "request": request["digest"],
        "losses": run.losses,
        "stopped_at": run.stopped_at,
        "recorded": run.recorded,
        "seconds": seconds,
        "step_seconds": run.step_seconds,
        "digests": digests,
        "versions": {name: importlib.metadata.version(name) for name in _installed(request["backend"])}
        | {"python": sys.version.split()[0], "numpy": np.__version__},
        "environment": backend.environment() | _process(),
    }
    write_last(directory / "result.json", result)
    tell.write({"done": True})


def _imported(request: Mapping[str, Any], *, again: bool) -> ModuleType:
    """The framework's half of a backend, ready for a program; `again`: after another."""
    importlib.import_module(PACKAGES[request["backend"]][0])
    backend = importlib.import_module(f"backends.{request['backend']}.session")
    if again:
        backend.renew()
    else:
        backend.configure(request)
    return backend


def more(directory: Path, events: int) -> None:
    """`main` after another: what was to be found in one directory is in this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(directory / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(directory)
    main(directory, events, again=True)


class _Run:
    """A training under way: what is recorded, how long it takes."""

    def __init__(
        self, session: Session, request: Mapping[str, Any], inputs: Arrays, directory: Path, tell: "_Teller"
    ) -> None:
        self.session, self.request, self.inputs, self.directory, self.tell = session, request, inputs, directory, tell
        self.losses: dict[str, list[float]] = {update["name"]: [] for update in request["updates"]}
        self.recorded: list[int] = []
        self.step_seconds: list[float] = []
        self.data_seconds = 0.0
        self.check_seconds = 0.0
        self.stopped_at: int | None = None
        self.batches, self.masks = hashlib.sha256(), hashlib.sha256()

    def train(self) -> None:
        states, gradients = set(self.request["record_states"]), set(self.request["record_gradients"])
        make_folder(self.directory / "trajectory")
        for step in range(self.request["start"], self.request["stop"]):
            start = time.perf_counter()
            batch = self.session.batch(self.inputs, step)
            self.data_seconds += time.perf_counter() - start
            start = time.perf_counter()
            self.note(batch, step)
            if step in gradients:
                found = self.session.gradients(batch)
                write_arrays(self.directory / "trajectory" / f"gradients-{step + 1:08}.safetensors", found)
            self.check_seconds += time.perf_counter() - start
            start = time.perf_counter()
            losses = self.session.wait(self.session.step(step, batch))
            self.step_seconds.append(time.perf_counter() - start)
            for name, loss in losses.items():
                self.losses[name].append(loss)
            if not all(math.isfinite(loss) for loss in losses.values()):
                self.stopped_at = step
                break
            start = time.perf_counter()
            if step in states:
                write_arrays(self.directory / "trajectory" / f"state-{step + 1:08}.safetensors", self.session.state())
                self.recorded.append(step)
            self.check_seconds += time.perf_counter() - start
            self.tell.step(step + 1, losses, last=step + 1 == self.request["stop"])

    def note(self, batch: Any, step: int) -> None:  # noqa: ANN401 - the framework's own
        """Digest what the framework was given: fields whole, masks by what they keep (whole at the first step)."""
        for name, array in sorted(self.session.arrays(batch).items()):
            mask = name.startswith("masks/")
            if mask and step > self.request["start"]:
                array = np.packbits(array != 0)  # noqa: PLW2901
            into = self.masks if mask else self.batches
            into.update(name.encode())
            into.update(to_bytes(array))

    def digests(self) -> dict[str, str]:
        return {"batches": self.batches.hexdigest(), "masks": self.masks.hexdigest()}

    def seconds(self) -> dict[str, float]:
        steady = self.step_seconds[1:]
        return {
            "first_step": self.step_seconds[0],
            "steady": float(np.sum(steady)),
            "data": self.data_seconds,
            "checks": self.check_seconds,
        }

    def evaluate(self, limit: int | None = None) -> Arrays:
        """Every expression that the request names, on its fields, a chunk of examples at a time."""
        found = {}
        for name, wanted in self.request["evaluate"].items():
            fields = {field: self.inputs[key][:limit] for field, key in wanted["fields"].items()}
            count = len(next(iter(fields.values())))
            chunks = []
            for at in range(0, count, CHUNK):
                chunk = {field: array[at : at + CHUNK] for field, array in fields.items()}
                have = len(next(iter(chunk.values())))
                if at and have < CHUNK:  # one shape, so one compilation
                    chunk = {f: np.concatenate([a, np.repeat(a[-1:], CHUNK - have, axis=0)]) for f, a in chunk.items()}
                chunks.append(self.session.evaluate(wanted["expression"], chunk)[:have])
                self.tell.beat()
            found[name] = np.concatenate(chunks)
        return found

    def generate(self, wanted: Mapping[str, Any]) -> Array:
        """Ids by greedy decoding: the likeliest next one, its first at a tie, over a window of the last `window`."""
        ids, window = list(wanted["prompt"]), wanted["window"]
        for _ in range(wanted["length"]):
            seen = ids[-window:]
            # What comes after a causal position cannot reach it: the padding does not matter.
            tokens = np.array([seen + [0] * (window - len(seen))], dtype=np.int32)
            logits = self.session.evaluate(wanted["expression"], {"tokens": tokens})
            ids.append(int(np.argmax(logits[0, len(seen) - 1])))
            self.tell.beat()
        return np.array(ids, dtype=np.int32)


class _Teller:
    """JSON lines to the parent, at most twenty a second; the pipe is its own, not standard output."""

    def __init__(self, fd: int) -> None:
        self.fd, self.last = fd, 0.0

    def phase(self, name: str) -> float:
        self.write({"phase": name})
        return time.perf_counter()

    def step(self, step: int, losses: Mapping[str, float], *, last: bool) -> None:
        if last or time.monotonic() - self.last > 0.05:  # noqa: PLR2004
            self.write({"step": step, "losses": dict(losses)})

    def beat(self) -> None:
        if time.monotonic() - self.last > 1:
            self.write({})

    def write(self, event: Mapping[str, Any]) -> None:
        self.last = time.monotonic()
        os.write(self.fd, (json.dumps(event) + "\n").encode())


def _replay(
    backend: ModuleType, program: ModuleType, request: Mapping[str, Any], inputs: Arrays, directory: Path, stop: int,
    tell: "_Teller",
) -> Arrays:  # fmt: skip
    session: Session = backend.Session(program, request)
    session.load(load_file(directory.parent / "inputs" / "parameters.safetensors"))
    if request["start"]:
        session.load_optimizer(load_file(directory.parent / "inputs" / "optimizer.safetensors"))
    for step in range(request["start"], stop):
        session.wait(session.step(step, session.batch(inputs, step)))
        tell.beat()
    return session.state()


def load_program(path: Path) -> ModuleType:
    """An emitted program, imported from its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _installed(backend: str) -> list[str]:
    names = {"tensorflow": ("tensorflow", "tensorflow-cpu", "keras")}.get(backend, PACKAGES[backend])
    return [name for name in (*names, "safetensors") if importlib.util.find_spec(name.partition("-")[0]) and _has(name)]


def _has(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _process() -> dict[str, Any]:
    import resource  # noqa: PLC0415 - POSIX only

    names = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "OMP_NUM_THREADS", "TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS")
    return {
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "flags": {name: os.environ[name] for name in names if name in os.environ},
    }


def _pin(cores: list[int]) -> None:
    """Keep the process on these cores, and whatever threads a framework has in it from before."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    threads = Path("/proc/self/task")
    for thread in threads.iterdir() if threads.exists() else [Path("0")]:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def _die_with_parent() -> None:
    """Linux: be killed when the parent's thread that started this is gone, whatever ended it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
    for line in sys.stdin:
        more(Path(line.rstrip("\n")), int(sys.argv[2]))
    # A framework's own clean-up at exit can hang; everything is on disk.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
