"""Train one backend's program: `python -P -m harness.worker RUN/BACKEND EVENTS_FD`, in that backend's environment.

The directory holds request.json and the emitted program; beside it lie the run's inputs. This writes
outputs.safetensors, checkpoint.safetensors and trajectory/, and result.json last: a directory without it is a run that did not finish.
Then each line of standard input names another such directory, for the same framework: the same again in another precision, say.
A twin (see harness.twins) is such a training too, of a program that is there already; of it only its distances are written.
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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from harness.backend import MOVES, PACKAGES, Array, Arrays, Session, digest, moves_after, shake, to_bytes
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

    given = directory.parent / "inputs"
    parameters, inputs = _given(given, request, "parameters"), _given(given, request, "data", "batches")
    # A shaken twin that is not the first has nothing to show before.
    only = bool(request.get("rounded")) and not request["echo"]
    ready, opened = _opened(directory, request, parameters, tell, seconds, again=again, rounded=only)
    backend, program, session = ready.backend, ready.program, ready.session
    digests = {"parameters": digest(session.state()), "optimizer": digest(ready.optimizer)}

    beside = _Beside((directory / request["twin_of"]).resolve()) if "twin_of" in request else None
    echo: dict[str, list[float]] = {}
    if beside is not None and request["echo"] and (not opened or request["shaken"] is not None):
        echo = _echo(ready, request, beside.base.parent / "inputs", inputs, parameters, tell)
    if request.get("rounded") and not only:
        del ready, program, session  # a large network's memory, before its variant takes its own
        ready, opened = _opened(directory, request, parameters, tell, seconds, again=True, rounded=True)
        backend, program, session = ready.backend, ready.program, ready.session
    run = _Run(session, request, inputs, directory, tell, beside)
    start = tell.phase("forward")
    outputs = {f"initial/{name}": value for name, value in run.evaluate(request["rows"] or CHUNK).items()}
    seconds["forward"] = time.perf_counter() - start
    start = tell.phase("compile")
    if opened:
        session.compile(session.batch(inputs, request["start"]))
    seconds["compile"] = time.perf_counter() - start
    tell.phase("train")
    run.train()
    seconds |= run.seconds()
    digests |= run.digests()
    if run.stopped_at is not None and beside is None:
        # The parameters just before the loss left the numbers, found again: training is reproducible.
        outputs |= {
            f"before/{name}": value
            for name, value in _replay(backend, program, request, inputs, directory, run.stopped_at, tell).items()
        }
    start = tell.phase("evaluate")
    if run.stopped_at is None:
        outputs |= {f"final/{name}": value for name, value in run.evaluate(request["rows"]).items()}
        if request["text"] and beside is None:
            outputs["text"] = run.generate(request["text"])
    outputs |= {f"state/{name}": value for name, value in session.state().items()}
    if run.stopped_at is None and request["checkpoint"]:
        origin = Origin.from_json(request["origin"])
        kept = Checkpoint(origin, request["stop"], session.state(), session.optimizer_state())
        kept.write(directory / "checkpoint.safetensors")
    seconds["evaluate"] = time.perf_counter() - start

    if beside is None:
        own = {name: np.ascontiguousarray(value) for name, value in outputs.items()}
        write_arrays(directory / "outputs.safetensors", own)
    else:
        beside.write(outputs, run.losses, request["start"], directory / "distances.safetensors")
    result = {
        "request": request["digest"],
        "losses": run.losses,
        "stopped_at": run.stopped_at,
        "echo": echo,
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


def _opened(
    directory: Path, request: Mapping[str, Any], parameters: Arrays, tell: "_Teller", seconds: dict[str, float], *, again: bool,
    rounded: bool = False,
) -> tuple["_Ready", bool]:  # fmt: skip
    """The program with its parameters, and whether it was opened anew, as it is unless it was the last one to train.

    `rounded`: the variant whose every value is off by rounding (see harness.rounded).
    """
    path = (directory / request["rounded" if rounded else "program"]).resolve()
    start = tell.phase("import")
    last = READY.pop() if READY else None
    if last is not None and last.path == path:
        last.session.load(parameters)
        last.session.load_optimizer(last.optimizer)
        seconds["import"] = seconds["build"] = time.perf_counter() - start
        READY.append(last)
        return last, False
    del last  # a large network's memory, before the next one takes its own
    backend = _imported(request, again=again)
    program = load_program(path)
    seconds["import"] = time.perf_counter() - start
    start = tell.phase("build")
    if rounded:
        program.off_by_rounding = backend.off_by_rounding  # type: ignore[attr-defined]
    session: Session = backend.Session(program, {**request, "observe": rounded})
    session.load(parameters)
    if request["start"]:
        session.load_optimizer(_given(directory.parent / "inputs", request, "optimizer"))
    seconds["build"] = time.perf_counter() - start
    READY.append(_Ready(path, backend, program, session, session.optimizer_state()))
    return READY[0], True


def _echo(
    ready: "_Ready", request: Mapping[str, Any], given: Path, inputs: Arrays, parameters: Arrays, tell: "_Teller"
) -> dict[str, list[float]]:
    """The first losses of the training itself, of its own parameters, once more in the session that is to train its twin.

    Where they are others than the first time, the program keeps something that loading does not set, or draws numbers of its
    own: then its twin would part from it for that reason, and say nothing of rounding. Before a shaken twin it is loaded anew
    after every step, as that is: who keeps something from step to step, gradients that nobody clears, trains otherwise then.
    """
    session = ready.session

    def load(own: Arrays) -> None:
        session.load(own)
        session.load_optimizer(ready.optimizer)

    # A shaken twin has other data, too.
    inputs = _given(given, request, "data", "batches") if request["shaken"] is not None else inputs
    load(_given(given, request, "parameters"))
    found: dict[str, list[float]] = {update["name"]: [] for update in request["updates"]}
    for step in range(request["start"], min(request["stop"], request["start"] + request["echo"])):
        for name, loss in session.wait(session.step(step, session.batch(inputs, step))).items():
            found[name].append(loss)
        if request["shaken"] is not None:
            shake(session, {}, 0, step, units=0)
        tell.beat()
    load(parameters)
    return found


def _given(folder: Path, request: Mapping[str, Any], *names: str) -> Arrays:
    """Arrays of a run's inputs, floats in the precision that is asked for: in float64 it may be given those of float32."""
    dtype = np.float64 if request["precision"] == "float64" else np.float32
    found = {name: array for file in names for name, array in load_file(folder / f"{file}.safetensors").items()}
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in found.items()}


@dataclass(frozen=True)
class _Ready:
    """A program that has trained, compiled and all, and what its optimizers remembered before that."""

    path: Path
    backend: ModuleType
    program: ModuleType
    session: Session
    optimizer: Arrays


READY: list[_Ready] = []
"""The last program, if there was one: its twins need not be built and compiled again."""


class _Beside:
    """How far a twin is from the training that it is a twin of: of each tensor the largest |difference|, step by step."""

    def __init__(self, base: Path) -> None:
        """`base`: the folder of that training's worker."""
        self.base = base
        self.found: dict[str, list[float]] = {}
        self.steps: dict[str, list[int]] = {}

    def measure(self, kind: str, step: int, arrays: Arrays) -> None:
        """Hold arrays beside those that the training has recorded after a step, counted from 1, where it has."""
        file = self.base / "trajectory" / f"{kind}-{step:08}.safetensors"
        if file.exists():
            self._hold(kind, step, arrays, load_file(file))

    def _hold(self, kind: str, step: int, arrays: Arrays, others: Arrays) -> None:
        self.steps.setdefault(kind, []).append(step)
        for name, array in arrays.items():
            far = np.max(np.abs(array.astype(np.float64) - others[name]), initial=0.0)
            self.found.setdefault(f"{kind}/{name}", []).append(float(far))

    def write(self, outputs: Arrays, losses: Mapping[str, list[float]], start: int, path: Path) -> None:
        """All of it, that of outputs and losses too, as `kind/name` beside `steps/kind`."""
        others = load_file(self.base / "outputs.safetensors")
        for kind, prefix in (("forward", "initial/"), ("outputs", "final/")):
            own = {n.removeprefix(prefix): a for n, a in outputs.items() if n.startswith(prefix)}
            self._hold(kind, 0, own, {n.removeprefix(prefix): a for n, a in others.items() if n.startswith(prefix)})
        of_base = json.loads((self.base / "result.json").read_text())["losses"]
        for name, own_losses in losses.items():
            self.found[f"loss/{name}"] = [abs(a - b) for a, b in zip(own_losses, of_base[name], strict=False)]
            self.steps["loss"] = list(range(start + 1, start + 1 + len(self.found[f"loss/{name}"])))
        arrays = {name: np.array(values) for name, values in self.found.items()}
        write_arrays(path, arrays | {f"steps/{kind}": np.array(steps, np.int64) for kind, steps in self.steps.items()})


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
        self, session: Session, request: Mapping[str, Any], inputs: Arrays, directory: Path, tell: "_Teller",
        beside: _Beside | None = None,
    ) -> None:  # fmt: skip
        self.beside = beside
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
        number = self.request.get("shaken")
        moves = {} if number is None else load_file(self.directory.parent / "inputs" / MOVES)
        if self.beside is None:
            make_folder(self.directory / "trajectory")
        for step in range(self.request["start"], self.request["stop"]):
            start = time.perf_counter()
            batch = self.session.batch(self.inputs, step)
            self.data_seconds += time.perf_counter() - start
            start = time.perf_counter()
            self.note(batch, step)
            if step in gradients:
                self.keep("gradients", step, self.session.gradients(batch))
            self.check_seconds += time.perf_counter() - start
            start = time.perf_counter()
            losses = self.session.wait(self.session.step(step, batch))
            self.step_seconds.append(time.perf_counter() - start)
            for name, loss in losses.items():
                self.losses[name].append(loss)
            if not all(math.isfinite(loss) for loss in losses.values()):
                self.stopped_at = step
                break
            if number is not None:
                shake(self.session, moves_after(moves, step - self.request["start"]), number, step)
            start = time.perf_counter()
            if step in states:
                self.keep("state", step, self.session.state())
                self.recorded.append(step)
            self.check_seconds += time.perf_counter() - start
            self.tell.step(step + 1, losses, last=step + 1 == self.request["stop"])

    def keep(self, kind: str, step: int, arrays: Arrays) -> None:
        """Record arrays of a step, or how far they are from those of the training whose twin this is."""
        if self.beside is None:
            write_arrays(self.directory / "trajectory" / f"{kind}-{step + 1:08}.safetensors", arrays)
        else:
            self.beside.measure(kind, step + 1, arrays)

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
    given = directory.parent / "inputs"
    session.load(_given(given, request, "parameters"))
    if request["start"]:
        session.load_optimizer(_given(given, request, "optimizer"))
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
