"""Answer questions about emitted programs: `python -P -m harness.serve READ_FD WRITE_FD`, one framework, many programs.

Each line on READ_FD is a question, a JSON object with `do`; each on WRITE_FD its answer, `{"ok": true, ...}`, or
`{"ok": false, "error": traceback}`, after which the worker goes on. Arrays cross as safetensors files that the question
names. The process imports its framework once and keeps sessions by name, so that hundreds of programs and trainings
cost no start-up. Imports NumPy, safetensors and one framework, nothing else.
"""

import gc
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from harness.backend import PACKAGES, Array, Arrays, Session, StepByStep, moves_after, shake
from harness.worker import CHUNK, _die_with_parent, _installed, _process, load_program

Question = Mapping[str, Any]
MANY = 50
"""Programs after which a framework is asked to forget what it compiled."""


FULL = 1e-5
"""The relative error of a float32 product above which its inputs were rounded."""
TELLING = ("OMP_", "MKL_", "KMP_", "XLA_", "JAX_", "TF_", "CUDA_", "NVIDIA_TF32", "TORCH", "PYTORCH_", "GLIBC_", "MALLOC_", "LD_PRELOAD")  # fmt: skip
"""How the names of environment variables begin that change how fast a framework is."""
OWN = ("TORCHINDUCTOR_CACHE_DIR", "TF_CLI_CONFIG_FILE")
"""Those that do not: a folder of each worker's own, and another tool's."""


@dataclass
class Opened:
    """An emitted program, live, with the inputs that it trains on."""

    session: Session
    inputs: Arrays


class _Idle(StepByStep):
    """A session that does nothing."""

    def step(self, step: int, batch: object) -> None:
        """Nothing."""


class Server:
    """What a worker keeps between questions. Its public methods are the questions."""

    def __init__(self, backend: str, request: Question) -> None:
        self.backend = backend
        importlib.import_module(PACKAGES[backend][0])
        self.module: ModuleType = importlib.import_module(f"backends.{backend}.session")
        self.module.configure(request)
        self.opened: dict[str, Opened] = {}
        self.inputs: dict[str, Arrays] = {}
        self.series: dict[str, list[Arrays]] = {}
        self.ready: dict[tuple[str, int, int | None, int], Any] = {}
        self.closed = 0
        self.frozen = False
        self.peers: dict[str, Callable[[int], Any]] = {}
        self.products: dict[int, Callable[[int], None]] = {}
        self.copies: dict[int, Callable[[int], None]] = {}
        self.predictors: dict[tuple[str, str, int], Callable[[], Array]] = {}

    def open(self, asked: Question) -> dict[str, Any]:
        """Import a program and build its session: `name`, `program` (a file), `inputs` (a run's folder), `request`.

        `rounded` in the request: a program of harness.rounded.
        """
        program = load_program(Path(asked["program"]))
        if asked["request"].get("rounded"):
            program.off_by_rounding = self.module.off_by_rounding  # type: ignore[attr-defined]
        made = self.module.SESSIONS.get(asked["request"].get("strategy"), self.module.Session)
        session: Session = made(program, asked["request"])
        self.opened[asked["name"]] = Opened(session, self._inputs(asked["inputs"]))
        return {}

    def _inputs(self, where: str) -> Arrays:
        """A folder's data and batches, read once; those of the last two folders are kept."""
        if where not in self.inputs:
            folder = Path(where)
            last = dict(list(self.inputs.items())[-1:])
            self.inputs = last | {
                where: load_file(folder / "data.safetensors") | load_file(folder / "batches.safetensors")
            }
        return self.inputs[where]

    def _given(self, asked: Question) -> Arrays:
        """The inputs that a question is about: those that the program was opened with, or others."""
        return self._inputs(asked["inputs"]) if asked.get("inputs") else self.opened[asked["name"]].inputs

    def close(self, asked: Question) -> dict[str, Any]:
        """Forget a session and the series kept under its name; of many, what the framework kept of them too."""
        self.opened.pop(asked["name"], None)
        self.ready = {key: batches for key, batches in self.ready.items() if key[0] != asked["name"]}
        self.predictors = {key: own for key, own in self.predictors.items() if key[0] != asked["name"]}
        self.closed += 1
        if self.closed % MANY == 0 and hasattr(self.module, "forget"):
            self.module.forget()
        for key in [key for key in self.series if key.split("/")[0] == asked["name"]]:
            del self.series[key]
        return {}

    def load(self, asked: Question) -> dict[str, Any]:
        """Set parameters and statistics (`state/...`) and, where the file has it, the optimizer's state (`optimizer/...`)."""
        session = self.opened[asked["name"]].session
        arrays = load_file(asked["arrays"])
        session.load(_below(arrays, "state/"))
        if slots := _below(arrays, "optimizer/"):
            session.load_optimizer(slots)
        return {}

    def observe(self, asked: Question) -> dict[str, Any]:
        """A training step of an observed program: values (unless `values` is false), gradients, losses, and what it left.

        `left`: which of that alone.
        """
        here = self.opened[asked["name"]]
        result = here.session.step(asked["step"], here.session.batch(self._given(asked), asked["step"]))
        losses = here.session.wait(result)
        found = here.session.observed(result)
        if not asked.get("values", True):
            found = {name: value for name, value in found.items() if not name.startswith("values/")}
        found |= {f"loss/{name}": np.array(loss) for name, loss in losses.items()}
        position = self._position(here.session)
        wanted = asked.get("left", position)
        _save(found | {name: position[name] for name in wanted}, asked["into"])
        return {"losses": losses}

    def _position(self, session: Session) -> Arrays:
        found = {f"state/{name}": value for name, value in session.state().items()}
        return found | {f"optimizer/{name}": value for name, value in session.optimizer_state().items()}

    def position(self, asked: Question) -> dict[str, Any]:
        """Parameters, statistics and the optimizer's state: what training goes on from."""
        _save(self._position(self.opened[asked["name"]].session), asked["into"])
        return {}

    def values(self, asked: Question) -> dict[str, Any]:
        """Every node's value in evaluation mode: `expression`, `fields` (field -> input's name), `rows` at most."""
        here = self.opened[asked["name"]]
        given = self._given(asked)
        fields = {name: given[key][: asked["rows"]] for name, key in asked["fields"].items()}
        _save(here.session.values(asked["expression"], fields), asked["into"])
        return {}

    def gradients(self, asked: Question) -> dict[str, Any]:
        """Gradients at the present state, those of inputs too; nothing is moved."""
        here = self.opened[asked["name"]]
        batch = here.session.batch(self._given(asked), asked["step"])
        _save(here.session.gradients(batch, inputs=True), asked["into"])
        return {}

    def batch(self, asked: Question) -> dict[str, Any]:
        """The batch of a step as the framework holds it, masks included."""
        here = self.opened[asked["name"]]
        _save(here.session.arrays(here.session.batch(here.inputs, asked["step"])), asked["into"])
        return {}

    def train(self, asked: Question) -> dict[str, Any]:
        """Steps `first` to `last` - 1 from the present state.

        `keep`: remember every state under this name. `against`: the distance of every tensor at every step from the
        states that were kept under that name. `units`: how far all is moved after every step, by the coins of
        `number`, and `shake`: a file of what is added after the first ones (see harness.backend.shake). `at`: the steps, from 1, whose
        states these are; left out, all. `into`: a file for all states (`all`) or for the end (`last`).
        """
        here = self.opened[asked["name"]]
        session, first, last, given = here.session, asked["first"], asked["last"], self._given(asked)
        losses: dict[str, list[float]] = {}
        states: list[Arrays] = []
        distances: dict[str, list[float]] = {}
        base = self.series[asked["against"]] if asked.get("against") else None
        moves = load_file(asked["shake"]) if asked.get("shake") else {}
        began = time.perf_counter()
        for step in range(first, last):
            for name, loss in session.wait(session.step(step, session.batch(given, step))).items():
                losses.setdefault(name, []).append(loss)
            if asked.get("units") is not None:
                shake(session, moves_after(moves, step - first), asked["number"], step, asked["units"])
            if asked.get("at") and step + 1 not in asked["at"]:
                continue
            if asked.get("keep") or base is not None or asked.get("write") == "all":
                state = session.state()
                if base is not None:
                    past = len(next(iter(distances.values()), []))
                    for name, value in state.items():
                        distances.setdefault(name, []).append(distance(value, base[past][name]))
                else:
                    states.append(state)
        seconds = time.perf_counter() - began
        if asked.get("keep"):
            self.series[asked["keep"]] = states
        if asked.get("write") == "all":
            stacked = {f"states/{name}": np.stack([state[name] for state in states]) for name in states[0]}
            # Of a large network, whose states are kept after few steps, nothing more is written.
            _save(stacked if asked.get("at") else stacked | self._position(session), asked["into"])
        elif asked.get("write") == "last":
            _save(self._position(session), asked["into"])
        return {"losses": losses, "distances": distances, "seconds": seconds}

    def train_stacked(self, asked: Question) -> dict[str, Any]:
        """The first `count` steps, on one stack of their batches, from the present state; `into`: a file for the last state."""
        here = self.opened[asked["name"]]
        session, count = here.session, asked["count"]
        stack = session.stack([session.batch(here.inputs, step) for step in range(count)])
        losses = session.losses(session.steps(0, stack, count))
        _save({f"state/{name}": value for name, value in session.state().items()}, asked["into"])
        return {"losses": {name: own.tolist() for name, own in losses.items()}}

    def clock(self, asked: Question) -> dict[str, Any]:
        """The time of `steps` training steps, the losses of every one of them fetched, on batches that are ready.

        `batches`: how many different ones there are; `stack`: how many a call takes, where one takes several (`steps` is
        a multiple of it); `at`: the step that the first of them is of. `arrays`: a position to start from, loaded before the clock starts. `slower`: seconds that each
        step is made to last longer, busily, which is how the measuring itself is measured. Returns wall and processor
        seconds, and the losses of the last step.
        """
        here = self.opened[asked["name"]]
        session, steps, slower = here.session, asked["steps"], asked.get("slower", 0.0)
        ready = self._ready(asked["name"], asked["batches"], asked.get("stack"), asked.get("at", 0))
        if asked.get("arrays"):
            self.load(asked)
        self._collected()
        gc.disable()
        try:
            cpu, began = time.process_time(), time.perf_counter()
            result = _slowed(session, ready, steps, slower) if slower else session.steps(0, ready, steps)
            losses = session.losses(result)
            wall, used = time.perf_counter() - began, time.process_time() - cpu
        finally:
            gc.enable()
        return {"seconds": wall, "cpu": used, "losses": {name: float(own[-1]) for name, own in losses.items()}}

    def _collected(self) -> None:
        """Garbage is collected, of everybody alike."""
        if not self.frozen:
            # What a framework's import leaves behind takes a third of a second to look through: once, then never again.
            gc.collect()
            gc.freeze()
            self.frozen = True
        gc.collect()

    def ledger(self, _asked: Question) -> dict[str, Any]:
        """How this process computes, as far as speed depends on it: what it says, and what a computation shows."""
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
        exact = a.astype(np.float64) @ b
        error = float(np.abs(self.module.multiply(a, b) - exact).max() / np.abs(exact).max())
        small = self.module.scale(np.full(64, 1e-39, np.float32), 0.5)
        own = _process()
        return {
            "ledger": {
                "cores": own["cores"],
                "threads": self.module.environment().get("threads", len(own["cores"])),
                # TF32 has 10 bits of mantissa, bfloat16 7: products of such inputs are 1e-4 off and more.
                "float32 products": "full" if error < FULL else f"reduced: {error:.1g} off",
                "denormals": "kept" if small.all() else "flushed to zero",
                "layout of images": self.module.LAYOUT,
                "device": ", ".join(self.module.environment()["devices"]),
                **self.module.settings(),
                **{f"${n}": v for n, v in sorted(os.environ.items()) if n.startswith(TELLING) and n not in OWN},
                "python": sys.version.split()[0],
                "numpy": np.__version__,
                **{f"{name} version": version for name, version in _versions(self.backend).items()},
            }
        }

    def peak(self, asked: Question) -> dict[str, Any]:
        """The time of `steps` products of square matrices of `size`, of float32 as programs have it set or `bfloat16` values."""
        size = asked["size"]
        if size not in self.products:
            rng = np.random.default_rng(0)
            a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
            self.products[size] = self.module.products(a, b, bfloat16=asked["bfloat16"])
        cpu, began = time.process_time(), time.perf_counter()
        self.products[size](asked["steps"])
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}

    def peer(self, asked: Question) -> dict[str, Any]:
        """Build a strategy of somebody's own program: `file`, whose PEERS has by `network` and `strategy` a function of a run.

        Returns how many steps it takes in one call, and the losses of the first `steps`.
        """
        build = load_program(Path(asked["file"])).PEERS[asked["network"]][asked["strategy"]]
        train = self.peers[asked["name"]] = build(Path(asked["run"]))
        chunk = int(getattr(train, "chunk", 1))
        losses = train(asked["steps"]) if asked["steps"] else []
        return {"chunk": chunk, "losses": [float(loss) for loss in losses]}

    def peers_of(self, asked: Question) -> dict[str, Any]:
        """The strategies that a `file` has for a `network`."""
        return {"strategies": list(load_program(Path(asked["file"])).PEERS.get(asked["network"], {}))}

    def clock_peer(self, asked: Question) -> dict[str, Any]:
        """The time of `steps` more steps of a peer, which returns the loss of every one of them."""
        train = self.peers[asked["name"]]
        self._collected()
        gc.disable()
        try:
            cpu, began = time.process_time(), time.perf_counter()
            losses = train(asked["steps"])
            wall, used = time.perf_counter() - began, time.process_time() - cpu
        finally:
            gc.enable()
        if len(losses) != asked["steps"]:
            raise RuntimeError(f"asked for {asked['steps']} steps, it returned {len(losses)} losses")
        return {"seconds": wall, "cpu": used}

    def overhead(self, asked: Question) -> dict[str, Any]:
        """What `clock` adds to a step: the time of its loop around a session whose step does nothing."""
        session, ready = _Idle(), [None] * 8
        began = time.perf_counter()
        session.steps(0, ready, asked["steps"])
        return {"seconds": (time.perf_counter() - began) / asked["steps"]}

    def _ready(self, name: str, count: int, size: int | None, at: int = 0) -> Any:  # noqa: ANN401 - the framework's own
        """A stack of batches of training from a step on, made once and kept on the device; longer than they are many: in turn."""
        key = (name, count, size, at)
        if key not in self.ready:
            here = self.opened[name]
            batches = [here.session.batch(here.inputs, step) for step in range(at, at + count)]
            self.ready[key] = here.session.stack([batches[i % count] for i in range(size or count)])
        return self.ready[key]

    def bandwidth(self, asked: Question) -> dict[str, Any]:
        """The time to read an array of `size` bytes and write another, `steps` times over: what the memory can do."""
        size = asked["size"]
        if size not in self.copies:
            self.copies[size] = self.module.copies(np.ones(size // 4, np.float32))
        cpu, began = time.process_time(), time.perf_counter()
        self.copies[size](asked["steps"])
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}

    def predict(self, asked: Question) -> dict[str, Any]:
        """The seconds of each of `calls` evaluations of an `expression` over `rows` examples, `way`: how they are run.

        `fields`: field -> input's name. From fields on the device to a result on the host.
        """
        key = (asked["name"], asked["way"], asked["rows"])
        if key not in self.predictors:
            here = self.opened[asked["name"]]
            fields = {name: _rows(here.inputs[own], asked["rows"]) for name, own in asked["fields"].items()}
            self.predictors[key] = here.session.predictor(asked["way"], asked["expression"], fields)
        predict, taken = self.predictors[key], []
        gc.collect()
        gc.disable()
        try:
            cpu, last = time.process_time(), time.perf_counter()
            for _ in range(asked["calls"]):
                predict()
                now = time.perf_counter()
                taken.append(now - last)
                last = now
            used = time.process_time() - cpu
        finally:
            gc.enable()
        return {"seconds": taken, "cpu": used}

    def predicted(self, asked: Question) -> dict[str, Any]:
        """What a predictor that `predict` has made returns."""
        _save({"output": self.predictors[asked["name"], asked["way"], asked["rows"]]()}, asked["into"])
        return {}

    def evaluate(self, asked: Question) -> dict[str, Any]:
        """The seconds of an evaluation of an `expression` over all examples of `fields`, as `harness run` does it."""
        began = time.perf_counter()
        found = self._evaluated(asked)
        return {"seconds": time.perf_counter() - began, "examples": len(found)}

    def answered(self, asked: Question) -> dict[str, Any]:
        """What such an evaluation returns; `rows`: of so many examples at most."""
        _save({"output": self._evaluated(asked)}, asked["into"])
        return {}

    def _evaluated(self, asked: Question) -> Array:
        here, given = self.opened[asked["name"]], self._given(asked)
        fields = {name: given[own][: asked.get("rows")] for name, own in asked["fields"].items()}
        parts = [
            here.session.evaluate(asked["expression"], {n: a[start : start + CHUNK] for n, a in fields.items()})
            for start in range(0, len(next(iter(fields.values()))), CHUNK)
        ]
        return np.concatenate(parts)

    def memory(self, asked: Question) -> dict[str, Any]:
        """Bytes: `resident` now, `peak` so far, and what arrays took at most on a GPU. `reset`: the peak begins anew."""
        found = {**_memory(), "device_peak": self.module.device_memory()}
        if asked.get("reset") and (path := Path("/proc/self/clear_refs")).exists():
            path.write_text("5")
        return found

    def compilations(self, asked: Question) -> dict[str, Any]:
        """How much the framework has traced and compiled, by what it counts."""
        return {"compilations": self.module.compilations(self.opened[asked["name"]].session)}

    def train_timed(self, asked: Question) -> dict[str, Any]:
        """Train `steps` steps from step `first`, the first time from a position, `arrays`. Returns `seconds` and `losses`.

        `stack`: how many steps a call takes, where one takes several; `most`: steps of the whole training. Batches are made on
        the way, and losses fetched. At step 0 a call that is not timed comes first: its shapes may be new.
        """
        here, many = self.opened[asked["name"]], asked.get("stack")
        session, size = here.session, min(many or 1, asked["most"])

        def call(first: int) -> list[float]:
            batches = [session.batch(here.inputs, first + i) for i in range(size)]
            if many:
                found = session.losses(session.steps(first, session.stack(batches), size))
                return [float(loss) for loss in next(iter(found.values()))]
            return [next(iter(session.wait(session.step(first, batches[0])).values()))]

        if asked["first"] == 0:
            call(0)
            self.load(asked)
        began = time.perf_counter()
        losses = [loss for i in range(0, asked["steps"], size) for loss in call(asked["first"] + i)]
        return {"seconds": time.perf_counter() - began, "losses": losses}

    def reach(self, asked: Question) -> dict[str, Any]:
        """As `train_timed`, until the mean of the last `window` losses of the first update is `target` or less.

        Returns whether the target was `reached`, after how many `steps`, and the `seconds` until the call ended in which it
        was.
        """
        window, size = asked["window"], min(asked.get("stack") or 1, asked["most"])
        losses: list[float] = []
        seconds = 0.0
        while len(losses) + size <= asked["most"]:
            said = self.train_timed({**asked, "first": len(losses), "steps": size})
            losses += said["losses"]
            seconds += said["seconds"]
            ends = range(max(window, len(losses) - size + 1), len(losses) + 1)
            if end := next((end for end in ends if sum(losses[end - window : end]) / window <= asked["target"]), None):
                return {"reached": True, "steps": end, "seconds": seconds}
        return {"reached": False, "steps": len(losses), "seconds": seconds}

    def pin(self, asked: Question) -> dict[str, Any]:
        """Run on other `cores` from now on, all threads that there are. Pools keep the size that they had."""
        for task in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(task.name), asked["cores"])
        return {}

    def environment(self, _asked: Question) -> dict[str, Any]:
        """What the framework and the process say of themselves."""
        return {"environment": self.module.environment() | _process()}


def _rows(array: Array, count: int) -> Array:
    """So many examples: the first ones, over again where there are fewer."""
    return array[np.arange(count) % len(array)]


def _memory() -> dict[str, int]:
    """Bytes of this process in memory, now and at most."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return {name: 1024 * int(lines[key].split()[0]) for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    return {"resident": peak, "peak": peak}


def _slowed(session: Session, ready: Any, steps: int, slower: float) -> list[Any]:  # noqa: ANN401
    """`session.steps` of a program that is called once a step, each step made longer."""
    results = []
    for step in range(steps):
        results.append(session.step(step, ready[step % len(ready)]))
        until = time.perf_counter() + slower
        while time.perf_counter() < until:
            pass
    return results


def _question(server: Server, name: str) -> Callable[[Question], dict[str, Any]]:
    if name.startswith("_") or not callable(found := getattr(server, name, None)):
        raise ValueError(f"there is no question '{name}'")
    return found  # type: ignore[no-any-return]


def _versions(backend: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _installed(backend)}


def distance(a: Array, b: Array) -> float:
    """The root of the sum of squared differences, in float64."""
    return float(np.linalg.norm(a.astype(np.float64).ravel() - b.astype(np.float64).ravel()))


def _below(arrays: Mapping[str, Array], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _save(arrays: Mapping[str, Array], path: str) -> None:
    # np.ascontiguousarray would make a vector of a scalar.
    save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, path)


def main(read: int, write: int) -> None:
    """Answer until the questions end. The first is the request: backend, threads, cores."""
    _die_with_parent()
    with os.fdopen(read, encoding="utf-8") as questions, os.fdopen(write, "w", encoding="utf-8") as answers:

        def answer(do: Callable[[], dict[str, Any]]) -> None:
            try:
                said = json.dumps({"ok": True, **do()})
            except Exception:  # noqa: BLE001 - whatever a program raises is its answer
                said = json.dumps({"ok": False, "error": traceback.format_exc()})
            answers.write(said + "\n")
            answers.flush()

        request = json.loads(questions.readline())
        if request["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, request["cores"])
        server: list[Server] = []
        answer(lambda: server.append(Server(request["backend"], request)) or {})  # type: ignore[func-returns-value]
        for line in questions:
            asked = json.loads(line)
            answer(lambda asked=asked: _question(server[0], asked["do"])(asked))  # type: ignore[misc]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    # A framework's own clean-up at exit can hang; everything is on disk.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
