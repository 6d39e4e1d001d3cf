"""Train a spec on every backend, each in a process of its own, and compare: the main job.

A run directory is self-contained: request, inputs, emitted programs, logs, outputs, result.json (written last).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from harness import initial, questions, spec, words
from harness.backend import BACKENDS, MOVES, SHAKEN_UNITS, Arrays
from harness.checkpoint import Checkpoint, Origin, Table
from harness.compare import TOLERANCES
from harness.data.datasets import Text
from harness.data.inputs import Inputs, cast, prepare
from harness.emit import container, loss_name
from harness.environment import Interpreter, cores, interpreters, require_device
from harness.errors import CallError, DataError, SpecError
from harness.files import error_text, make_folder, refusing, write_arrays, write_last, write_text
from harness.graph import Program
from harness.judge import Judging
from harness.optimizers import Cosine
from harness.precision import PRECISIONS, on_device
from harness.programs import Written, emitted
from harness.programs import read as read_programs
from harness.record import plain
from harness.reference import initial_slots
from harness.resolve import compile_spec
from harness.results import BackendResult, RunResult
from harness.rounded import rounded
from harness.side_by_side import Job, Meanwhile, side_by_side
from harness.source import Source
from harness.supervise import Listener, Waiting, train, waiting
from harness.twins import ECHO, HOPELESS, NEAR, ROUNDS, SHAKES, moved, moved_steps, nudged, rounding_moves

Array = np.ndarray[Any, np.dtype[Any]]

BUDGET = 150_000_000  # bytes of recorded states a backend: beyond it they are recorded at fewer steps
KEPT = 8_000_000  # bytes of recorded states and gradients a backend that a run directory keeps
PROOF = 200  # steps at which gradients are recorded in float64; in less, at nine of them
EVIDENCE = "float64-evidence"
PROOF_SECONDS, PROOF_SHARE, PROOF_LEAST = 5.0, 0.1, 4
"""How long the float64 evidence trains: seconds, or a share of the training's own time where that is more, and steps at least."""
PROOF_ROWS = 32  # examples on which it is evaluated
TWINS = "twins"
REPEATS = 1000
"""How many times the tight tolerance the first loss of a twin may be from its training's."""


@dataclass(frozen=True)
class Options:
    """What a call may change about a run."""

    backends: tuple[str, ...] = BACKENDS
    steps: int | None = None
    seed: int | None = None
    precision: str = "float32"
    threads: int = 1
    device: str = "cpu"
    pythons: tuple[str, ...] = ()
    out: Path | None = None
    timeout: float = 600.0
    """Seconds without a sign of life after which a worker is stopped."""
    start: Path | None = None
    """A checkpoint to go on from: the training's steps after the checkpoint's are run."""
    until: int | None = None
    """How many of the training's steps are done when it stops; None: all."""
    evidence: bool = True
    """Whether a run that parts is settled: by its twins, and in less than float64 by a run in that too."""
    record: bool = True
    """Whether states and gradients are recorded at steps; without them losses and outputs alone are compared."""
    plant: Callable[[str, Program], str] | None = None
    """The text of a backend's program instead of its emitter's: how a changed program is run."""
    keep_all: bool = False
    """Whether everything that was recorded is kept; otherwise KEPT bytes of it a backend, once it has been judged."""
    rows: int | None = None
    """How many examples programs are evaluated on, of each question; None: ROWS before training, all of them after it."""
    programs: tuple[str, ...] = ()
    """Programs of the user's own, like `torch=my_model.py`: the emitted ones of their backends, changed."""


def run(
    path: str | Path, options: Options | None = None, listen: Listener | None = None, meanwhile: Meanwhile | None = None
) -> RunResult:
    """Train and compare. Raises SpecError, DataError or CallError before any worker starts.

    `meanwhile` is called in a thread of its own when a core has nothing to do, with the last training at the latest. What it
    raises is raised when the result has been written.
    """
    loaded, text = spec.load(spec.find(str(path)))
    return run_spec(loaded, text, options or Options(), listen or (lambda _backend, _event: None), meanwhile)


def run_spec(
    loaded: spec.Spec, text: Source, options: Options, listen: Listener, meanwhile: Meanwhile | None = None
) -> RunResult:
    """See `run`."""
    with waiting(len(options.backends) + 1) as room:
        training = Training.begin(loaded, text, options, room)
        beside = side_by_side(training.jobs(options.backends), options, listen, room.pool, meanwhile)
        result = training.result()
        if beside is not None:
            beside.result()
        return result


@dataclass
class Training:
    """One training by every backend, in a run directory, and its verdict; with its twins and that in float64, once they part."""

    loaded: spec.Spec
    text: Source
    options: Options
    checkpoint: Checkpoint | None
    program: Program
    inputs: Inputs
    given: dict[str, Written]
    pythons: dict[str, Interpreter]
    directory: Path
    judging: Judging
    room: Waiting
    started: str
    exact: "Training | None" = None
    """The same in float64, which tells rounding from meaning."""
    asked: set[str] = field(default_factory=set)
    """The backends whose twins are training."""
    rounds: int = 0
    """How many twins each backend has been asked for."""
    shaking: int | None = None
    """The round with which shaken twins began; None before that."""
    restless: set[str] = field(default_factory=set)
    """The backends that do not repeat their own training: their twins are not asked again."""
    unrounded: set[str] = field(default_factory=set)
    """The backends whose program has no variant whose values are off by rounding."""
    unsettled: list[str] = field(default_factory=list)
    """Why twins or float64 could not be asked: a full disk, say. The verdict stands without them."""

    @classmethod
    def begin(cls, loaded: spec.Spec, text: Source, options: Options, room: Waiting) -> "Training":
        """Check the call and write what the workers are given. Raises what `run` does."""
        check(options)
        started = _now()
        checkpoint = None if options.start is None else Checkpoint.read(options.start)
        program = compile_spec(loaded, text, options.steps, _seed(options, checkpoint))
        require(program, options, checkpoint)
        given = own_programs(loaded, text, program, options.programs, options.backends, options.threads)
        for own in given.values():
            own.adapted(program, options.precision, options.threads)  # raises before any work
        pythons = interpreters(options.pythons)
        require_device(options.device, options.backends, pythons)
        inputs = prepared(program, text)
        directory = make_directory(program, options)
        write_inputs(directory, program, inputs, text, options, checkpoint)
        judging = Judging(program, inputs, directory, options, 0 if checkpoint is None else checkpoint.step)
        return cls(
            loaded, text, options, checkpoint, program, inputs, given, pythons, directory, judging, room, started
        )

    @property
    def proves(self) -> bool:
        """Whether it is trained in float64 too, should it part."""
        return self.options.evidence and self.options.precision != "float64"

    def jobs(self, backends: Iterable[str]) -> Iterator[Job]:
        """Train these backends."""
        for backend in backends:
            yield Job(backend, partial(self.work, backend), self.done)

    def work(self, backend: str, own: Sequence[int], tell: Listener) -> BackendResult:
        """Have one backend train, on the cores that are its own."""
        request = write_request(
            self.directory, self.program, self.inputs, self.text, backend, self.options, self.checkpoint, self.given, own
        )  # fmt: skip
        return self._trained(self.directory, backend, request, tell)

    def _trained(self, directory: Path, backend: str, request: Mapping[str, Any], tell: Listener) -> BackendResult:
        # On a GPU a worker that waits would keep its memory from the others.
        stays = self.options.evidence and self.options.device == "cpu"
        room = self.room if stays or backend in self.room.workers else None
        return train(directory, backend, request, self.pythons[backend], self.options, tell, room)

    def done(self, result: BackendResult) -> Iterator[Job]:
        """Take a worker's result; with the last one, ask what parting means, where they part."""
        self.judging.add(result)
        if len(self.judging.results) < len(self.options.backends) or not self.options.evidence:
            return
        if self.judging.parted():
            yield from self.twins()

    def twins(self) -> Iterator[Job]:
        """Train another twin of every backend that trained to its end."""
        first = None if self.shaking is None else self._gradients()
        try:
            write_twins(self.directory, self.program, self.rounds, self.judging.start, first)
        except (OSError, ValueError, SafetensorError) as error:
            why = error_text(error) if isinstance(error, OSError) else str(error)
            self.unsettled.append(f"No {'more ' if self.rounds else ''}twins were trained: {why}.")
            if self.proves:
                yield from self.again()
            return
        backends = [backend for backend in self.judging.ok() if backend not in self.restless]
        self.asked = set(backends)
        for backend in backends:
            yield Job(backend, partial(self.twin, backend), self.measured)

    def twin(self, backend: str, own: Sequence[int], tell: Listener) -> BackendResult:
        """Have one backend train a twin."""
        folder = self.directory / TWINS / str(self.rounds)
        request = twin_request(
            self.directory, folder, backend, own,
            first=self.rounds in (0, self.shaking), shaken=None if self.shaking is None else self.rounds,
            variant=self._rounded(backend),
        )  # fmt: skip
        return self._trained(folder, backend, request, tell)

    def _rounded(self, backend: str) -> Path | None:
        """The variant of a backend's program whose every value is off by rounding, where shaken twins train it.

        Of a program as emitted: a variant of a changed one need not be the same program, and would excuse what it is not.
        """
        if self.shaking is None or backend in self.unrounded:
            return None
        path = self.directory / TWINS / f"{self.program.name}_{backend}_rounded.py"
        if path.exists():
            return path
        own = next((self.directory / backend).glob("*.py"))
        asked = (self.program, backend, self.options.precision, self.options.threads)
        why = "it is not as emitted"
        try:
            if own.read_text(encoding="utf-8") == emitted(*asked):
                write_text(path, rounded(self.program, emitted(*asked, observe=True)))
                return path
        except (CallError, ValueError, OSError) as error:
            why = str(error)
        self.unrounded.add(backend)
        self.unsettled.append(f"Shaken twins of {backend}'s program leave its layers' values as they are: {why}.")
        return None

    def measured(self, result: BackendResult) -> Iterator[Job]:
        """Take how far a twin parted; with the last one of a round, ask for another where two backends part further."""
        if (self.shaking is not None and self.rounds > self.shaking) or self.repeats(result):
            folder = self.directory / TWINS / str(self.rounds) / result.backend
            done = self.judging.yardstick.read(folder, shaken=self.shaking is not None)
            if not done:
                why = result.error or "it left the numbers"
                self.unsettled.append(f"A twin of {result.backend} did not come to its end: {why}.")
        else:
            self.restless.add(result.backend)
            why = (
                "does not repeat its own training: it keeps something that loading does not set, or draws numbers of its own"
                if self.shaking is None
                else "trains otherwise where its parameters are loaded anew after every step: it keeps something more"
            )
            self.unsettled.append(f"{result.backend} {why}. Its twins excuse nothing{' more' if self.shaking else ''}.")
        self.asked.discard(result.backend)
        if self.asked:
            return
        # The run's own but for some units in the last place; of a large data set, all of it.
        shutil.rmtree(self.directory / TWINS / str(self.rounds) / "inputs", ignore_errors=True)
        self.rounds += 1
        left = self.judging.ok().keys() - self.restless
        if self.judging.parted() and left and self._more():
            yield from self.twins()
        elif self.proves:
            yield from self.again()

    def _more(self) -> bool:
        """Whether another round of twins may explain what parts: plain ones first, then shaken ones."""
        times = self.judging.times()
        if self.shaking is not None:
            return times <= NEAR and self.rounds < self.shaking + SHAKES
        if self.rounds < ROUNDS and not (self.rounds > 1 and times > HOPELESS):
            return True
        if self._gradients():
            self.shaking = self.rounds
        return self.shaking is not None

    def _gradients(self) -> list[list[Arrays]]:
        """The gradients of every backend that has twins, by step: of the steps that were recorded from the first one on."""
        first = self.judging.start
        found = []
        unit = float(np.finfo(PRECISIONS[self.options.precision].dtype).eps)
        for step in range(first, first + moved_steps(self.program, unit)):
            said = [own.gradients(step) for name, own in self.judging.ok().items() if name not in self.restless]
            if not said or not all(said):
                break
            found.append(said)
        return found

    def repeats(self, twin: BackendResult) -> bool:
        """Whether a program trains the same twice: only then a twin parts from its training for the sake of rounding alone."""
        base = self.judging.results[twin.backend].losses
        # The same kernels on the same numbers: no precision of products makes them part.
        exact = TOLERANCES["float64" if self.options.precision == "float64" else "float32"]["loss"]
        if twin.echo:
            return all(
                abs(one - two) <= exact.allowed(np.array(one), np.array(two))
                for name, own in twin.echo.items()
                for one, two in zip(own, base[name], strict=False)
            )
        # In a process of its own, which repeats the training but for its parameters.
        tight = TOLERANCES[self.options.precision]["loss"]
        return all(
            abs(own[0] - base[name][0]) <= REPEATS * tight.allowed(np.array(own[0]), np.array(base[name][0]))
            for name, own in list(twin.losses.items())[:1]
            if own and base[name]
        )

    def again(self) -> Iterator[Job]:
        """Train in float64 those that trained to their end, for as many steps as the question needs."""
        backends = tuple(self.judging.ok())
        until = min(self.judging.stop, self.judging.start + self.proof_steps())
        options = replace(
            self.options, precision="float64", out=self.directory / EVIDENCE, backends=backends, until=until, rows=PROOF_ROWS,
            keep_all=False,
        )  # fmt: skip
        try:
            for own in self.given.values():
                own.adapted(self.program, "float64", options.threads)
            directory = make_directory(self.program, options)
            link_inputs(self.directory, directory)
        except (OSError, CallError) as error:
            why = error_text(error) if isinstance(error, OSError) else str(error)
            self.unsettled.append(f"Float64 was not trained: {why}.")
            return
        self.exact = replace(
            self,
            options=options,
            directory=directory,
            exact=None,
            asked=set(),
            rounds=0,
            shaking=None,
            restless=set(),
            unrounded=set(),
            unsettled=[],
            started=_now(),
        )
        self.exact.judging = Judging(self.program, self.inputs, self.exact.directory, options, self.judging.start)
        yield from self.exact.jobs(backends)

    def proof_steps(self) -> int:
        """How many steps float64 is trained: twice as long each, and the first ones tell meaning from rounding."""
        each = max(float(np.median(result.step_seconds)) for result in self.judging.ok().values())
        steps = self.judging.stop - self.judging.start
        return max(PROOF_LEAST, int(max(PROOF_SECONDS, PROOF_SHARE * each * steps) / (2 * each)))

    def result(self) -> RunResult:
        """The verdict, written to the run directory, once every job is done."""
        result = replace(self.judging.verdict(), started=self.started)
        result = replace(result, notes=[*result.notes, *self.unsettled])
        if self.checkpoint is not None and self.checkpoint.origin.steps != self.program.steps and _spans(self.program):
            note = (
                f"The checkpoint is of a training of {self.checkpoint.origin.steps} steps, this one has "
                f"{self.program.steps}: its cosine schedule spans another length."
            )
            result = replace(result, notes=[*result.notes, note])
        if self.exact is not None:
            result = result.with_evidence(self.exact.result())
        if not self.options.keep_all:
            try:
                for name, own in self.judging.results.items():
                    # One that failed has no result to be read from its folder; what it recorded lies there all the same.
                    found = thinned(
                        replace(own, folder=self.directory / name), KEPT if self.options.rows is None else 0
                    )
                    result.backends[name] = replace(found, folder=own.folder)
            except OSError as error:
                result = replace(
                    result, notes=[*result.notes, f"What was recorded could not be thinned: {error_text(error)}."]
                )
        return written(self.directory, result)


def written(directory: Path, result: RunResult) -> RunResult:
    """The result, with its result.json; where that cannot be written, a note says that what was trained is not kept."""
    try:
        write_last(directory / "result.json", result.to_json())
    except OSError as error:
        note = f"The result is not kept, and no report can be made of it: {error_text(error)}."
        return replace(result, notes=[*result.notes, note])
    return result


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def thinned(result: BackendResult, kept: int) -> BackendResult:
    """A result of whose recorded arrays the first and the last and some between are kept, so many bytes at most."""
    folder = None if result.folder is None else result.folder / "trajectory"
    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) <= kept:
        return result
    gradients = [file for file in files if file.name.startswith("gradients-")]
    states = [file for file in files if file.name.startswith("state-")]
    # The first gradients and the last and first states say most; then states, evenly spread.
    count = kept // max(1, max((file.stat().st_size for file in files), default=1))
    spread = states[:: -(-len(states) // (count - 3))] if count > 3 else []  # noqa: PLR2004 - those named first
    wanted = set([*dict.fromkeys([*gradients[:1], *states[-1:], *states[:1], *spread])][:count])
    for file in files:
        if file not in wanted:
            file.unlink()
    steps = {int(file.stem.rpartition("-")[2]) - 1 for file in wanted if file in states}
    return replace(result, recorded=[step for step in result.recorded if step in steps])


def link_inputs(run: Path, other: Path, *, without: Sequence[str] = ()) -> None:
    """A run's inputs for another training of the same program: the same files, without copies where that can be."""
    other.mkdir(parents=True, exist_ok=True)
    make_folder(other / "inputs")
    for file in sorted((run / "inputs").iterdir()):
        if file.name in without:
            continue
        try:
            os.link(file, other / "inputs" / file.name)
        except OSError:  # a file system without links
            shutil.copyfile(file, other / "inputs" / file.name)
    if (run / "spec.yaml").exists() and not without:
        shutil.copyfile(run / "spec.yaml", other / "spec.yaml")


def write_twins(
    run: Path, program: Program, number: int, start: int = 0, gradients: Sequence[Sequence[Arrays]] | None = None
) -> None:  # fmt: skip
    """The inputs of a run's twins of this number: the same but for the parameters.

    `gradients`: of the first steps, those of every backend, for shaken twins, whose data are other, too.
    """
    folder = run / TWINS / str(number)
    given = ("data.safetensors", "batches.safetensors") if gradients else ()
    link_inputs(run, folder, without=("parameters.safetensors", *given))
    parameters = load_file(run / "inputs" / "parameters.safetensors")
    request = next(run.glob("*/request.json"), None)
    if request is None:
        raise ValueError(f"{run} has no backend's request any more")
    precision = json.loads(request.read_text(encoding="utf-8"))["precision"]
    wide = cast(parameters, precision)  # a run in float64 may have been given the numbers of one in float32
    # Any backend's will do: only the size of the first step is read off it.
    first = next(run.glob(f"*/trajectory/state-{start + 1:08}.safetensors"), None)
    after = None if first is None else load_file(first)
    write_arrays(
        folder / "inputs" / "parameters.safetensors",
        moved(program, wide, number, after, SHAKEN_UNITS if gradients else 1),
    )
    for file in given:
        write_arrays(folder / "inputs" / file, nudged(cast(load_file(run / "inputs" / file), precision), number))
    if gradients:
        before = run / "inputs" / "optimizer.safetensors"
        fresh = {f"{u.name}/{n}": a for u in program.updates for n, a in initial_slots(program, u).items()}
        unit = float(np.finfo(PRECISIONS[precision].dtype).eps)
        slots = load_file(before) if before.exists() else fresh
        moves = rounding_moves(program, slots, gradients, start, unit, number)
        write_arrays(folder / "inputs" / MOVES, cast(moves, precision))


def twin_request(
    run: Path, folder: Path, backend: str, own: Sequence[int], *, first: bool = True, shaken: int | None = None,
    variant: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a worker is asked for a twin of the training that lies in the run directory; `own`: its cores.

    `first`: it is to show before that it repeats the training. `shaken`: its number, where its inputs hold what is added after
    its first step; it is to show then that it trains on as it would where it is loaded anew after every step. `variant`:
    of its program, with every value off by rounding, which is trained then.
    """
    asked = json.loads((run / backend / "request.json").read_text(encoding="utf-8"))
    base = os.path.relpath(run / backend, folder / backend)
    request: dict[str, Any] = asked | {
        "program": f"{base}/{asked['program']}",
        "twin_of": base,
        "echo": 0 if not first else ECHO if shaken is None else asked["stop"] - asked["start"],
        "shaken": shaken,
        "rounded": None if variant is None else os.path.relpath(variant, folder / backend),
        "checkpoint": False,
    }
    request["cores"] = list(own) if own else asked["cores"]
    make_folder(folder / backend)
    request["digest"] = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    write_last(folder / backend / "request.json", request)
    return request


def own_programs(
    loaded: spec.Spec, text: Source, program: Program, given: Sequence[str], backends: Sequence[str], threads: int = 1
) -> dict[str, Written]:
    """The user's own programs by backend. They may have been emitted for the spec's own steps and seed."""
    if not given:
        return {}
    for backend in (one.partition("=")[0] for one in given):
        if backend in BACKENDS and backend not in backends:
            raise CallError(f"--program: {backend} is not among the backends of this call ({', '.join(backends)})")
    return read_programs(given, [program, compile_spec(loaded, text)], sorted({1, threads}))


def check(options: Options) -> None:
    """Raise CallError where an option is out of its range."""
    for name, value, least in (
        ("--threads", options.threads, 1),
        ("--steps", options.steps, 1),
        ("--until", options.until, 1),
        ("--seed", options.seed, 0),
    ):
        if value is not None and value < least:
            raise CallError(f"{name} is at least {least}, got {value}")
    if options.device not in ("cpu", "gpu"):
        raise CallError(f"--device is cpu or gpu, got '{options.device}'{words.hint(options.device, ('cpu', 'gpu'))}")
    on_device(options.precision, options.device)
    if options.timeout <= 0:
        raise CallError(f"--timeout is above 0 seconds, got {options.timeout:g}")
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.threads > have:
        raise CallError(f"--threads {options.threads}: this machine gives {have} cores")


def _seed(options: Options, checkpoint: Checkpoint | None) -> int | None:
    """The seed of a training that goes on is the one that it began with."""
    if checkpoint is None:
        return options.seed
    if options.seed not in (None, checkpoint.origin.seed):
        raise CallError(
            f"--seed {options.seed}: the checkpoint is of seed {checkpoint.origin.seed}, which gives the order of its "
            "batches and its masks; leave --seed out"
        )
    return checkpoint.origin.seed


def require(program: Program, options: Options, checkpoint: Checkpoint | None) -> None:
    """Raise CallError unless there are steps to run, and the checkpoint is of this program."""
    if checkpoint is not None and options.start is not None:
        checkpoint.require(options.start, parameter_table(program), optimizer_table(program))
    done = 0 if checkpoint is None else checkpoint.step
    if program.steps <= done:
        raise CallError(
            f"checkpoint {options.start}: has done {done} steps, and the training has {program.steps}; --steps is the "
            f"number of the whole training: at least {done + 1}"
        )
    if options.until is not None and not done < options.until <= program.steps:
        raise CallError(f"--until {options.until}: lies in {done + 1} to {program.steps}, the steps of this training")


def parameter_table(program: Program) -> Table:
    """Shape and axes of every parameter and statistic."""
    return {name: (tuple(p.shape), p.axes) for name, p in program.parameters.items()}


def optimizer_table(program: Program) -> dict[str, tuple[int, ...]]:
    """Shapes of what the program's optimizers remember, by the names of `Session.optimizer_state`."""
    found: dict[str, tuple[int, ...]] = {}
    for update in program.updates:
        found |= {f"{update.name}/{name}": a.shape for name, a in initial_slots(program, update).items()}
        found[f"{update.name}/count"] = ()
    return found


def origin(program: Program, text: Source, precision: str) -> Origin:
    """What a checkpoint of this program says of it."""
    columns = {
        name: {"shape": list(c.shape), "dtype": c.dtype, "classes": c.classes} for name, c in program.columns.items()
    }
    table = parameter_table(program)
    return Origin(program.name, text.name, text.text, columns, table, program.seed, precision, program.steps)


def _spans(program: Program) -> bool:
    """Whether a schedule's length is that of the training."""
    return any(
        isinstance(update.schedule, Cosine) and update.schedule.steps is None
        for update in program.spec.training.updates
    )


def prepared(program: Program, text: Source) -> Inputs:
    """The run's data; what is wrong with it is reported at the spec's `data`."""
    try:
        return prepare(program)
    except DataError as error:
        raise SpecError(text.name, [text.problem(("data",), str(error))]) from None


def make_directory(program: Program, options: Options) -> Path:
    """A new, empty directory. Raises CallError where it would overwrite something."""
    if options.out is not None:
        directory = options.out
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise CallError(f"--out {directory}: exists and is not an empty directory; a run never overwrites another")
    else:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        directory, number = Path("runs") / f"{program.name}-{stamp}", 1
        while directory.exists():
            number += 1
            directory = Path("runs") / f"{program.name}-{stamp}-{number}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallError(f"cannot make the run directory {directory}: {error.strerror}") from None
    return directory.resolve()


@refusing
def write_inputs(
    directory: Path, program: Program, inputs: Inputs, text: Source, options: Options, checkpoint: Checkpoint | None
) -> None:
    """Everything that the programs train on, and the spec, as written and as resolved."""
    write_text(directory / "spec.yaml", text.text)
    resolved = {"name": program.name, "seed": program.seed, "steps": program.steps, "spec": plain(program.spec)}
    resolved["updates"] = [
        {
            "name": u.name,
            "over": list(u.over),
            "optimizer": plain(u.optimizer),
            "schedule": plain(u.schedule),
            "clip": plain(u.clip),
        }
        for u in program.updates
    ]
    resolved["nodes"] = {
        network: [{"name": n.name, "op": "block" if n.op.kind == "block" else plain(n.op), "inputs": list(n.inputs), "shape": list(n.shape)} for n in graph.nodes]
        for network, graph in program.networks.items()
    }  # fmt: skip
    write_last(directory / "resolved.json", resolved)
    folder = directory / "inputs"
    make_folder(folder)
    parameters = initial.parameters(program) if checkpoint is None else checkpoint.state
    write_arrays(folder / "parameters.safetensors", cast(parameters, options.precision))
    if checkpoint is not None:
        write_arrays(folder / "optimizer.safetensors", cast(checkpoint.optimizer, options.precision))
    data = {f"train.{name}": array for name, array in inputs.train.items()}
    if inputs.held_out:
        data |= {f"test.{name}": array for name, array in inputs.test.items()}
    data |= questions.arrays(program, inputs)
    write_arrays(folder / "data.safetensors", cast(data, options.precision))
    write_arrays(folder / "batches.safetensors", cast({"order": inputs.order, **inputs.noise}, options.precision))


def write_request(
    directory: Path, program: Program, inputs: Inputs, text: Source, backend: str, options: Options,
    checkpoint: Checkpoint | None = None, given: Mapping[str, Written] | None = None, own: Sequence[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """A backend's folder: the emitted program and what the worker is asked. `own`: its cores; left out, the idlest."""
    folder = directory / backend
    make_folder(folder)
    name = f"{program.name}_{backend}.py"
    if options.plant is not None:
        source = options.plant(backend, program)
    elif given and backend in given:
        source = given[backend].adapted(program, options.precision, options.threads)
    else:
        source = emitted(program, backend, options.precision, options.threads)
    write_text(folder / name, source)
    start, stop = 0 if checkpoint is None else checkpoint.step, options.until or program.steps
    states, gradients = recorded_steps(program, options, start)
    asked = questions.questions(program, held_out=inputs.held_out)
    request = {
        "backend": backend,
        "program": name,
        **describe(program),
        "start": start,
        "stop": stop,
        "precision": options.precision,
        "threads": options.threads,
        "device": options.device,
        "cores": list(own or cores(options.threads)) if options.device == "cpu" else [],
        "checkpoint": options.rows is None,
        "rows": options.rows,
        "record_states": states,
        "record_gradients": gradients,
        "evaluate": {name: q.request() for name, q in asked.items()},
        "text": _text_request(program),
        "origin": origin(program, text, options.precision).to_json(),
    }
    files = [folder / name, *sorted((directory / "inputs").iterdir())]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    request["digest"] = hashlib.sha256(json.dumps([request, digests], sort_keys=True).encode()).hexdigest()
    write_last(folder / "request.json", request)
    return request


def describe(program: Program) -> dict[str, Any]:
    """What a session needs to know of a program: the model's class, its networks, the updates and their losses."""
    single = len(program.networks) == 1
    return {
        "model": container(program),
        "networks": list(program.networks),
        "updates": [
            {"name": u.name, "loss": loss_name(program, u), "networks": None if single else list(u.over)}
            for u in program.updates
        ],
    }


def recorded_steps(program: Program, options: Options, start: int = 0) -> tuple[list[int], list[int]]:
    """The steps (from 0) whose state is recorded, every one where that fits BUDGET, and whose gradients are."""
    if not options.record:
        return [], []
    width = 8 if options.precision == "float64" else 4
    size = width * sum(int(np.prod(p.shape)) for p in program.parameters.values())
    stop = options.until or program.steps
    every = max(1, -(-size * (stop - start) // BUDGET))
    states = sorted({*range(start, stop, every), stop - 1})
    proof = range(start, min(stop, start + PROOF), max(1, -(-size * PROOF // BUDGET)))
    # Of the first ones shaken twins are made.
    first = moved_steps(program, float(np.finfo(PRECISIONS[options.precision].dtype).eps))
    some = [start + step for step in (*range(first), 9, 49, 99, 199)]
    whole = options.precision == "float64" and options.rows is None
    gradients = sorted({step for step in (*some, *(proof if whole else ())) if step < stop})
    return states, gradients


def _text_request(program: Program) -> dict[str, Any] | None:
    sample, data = program.spec.evaluation.text, program.spec.data
    if sample is None or not isinstance(data, Text):
        return None
    return {
        "expression": questions.to_json(sample.logits),
        "prompt": data.encode(sample.prompt).tolist(),
        "length": sample.length,
        "window": data.length,
    }
