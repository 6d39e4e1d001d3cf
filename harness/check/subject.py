"""What is checked: one program in one precision, open in a live worker of each backend, and what it is given.

`each` asks all backends at once, as many as there are cores; the functions below it are the questions.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors.numpy import load_file

from harness import initial, reference
from harness.backend import Array, Arrays
from harness.check.live import LiveWorker, allowed_cores, worker
from harness.check.memory import Memory
from harness.data.inputs import Inputs
from harness.environment import Interpreter
from harness.errors import WorkerFailed
from harness.files import error_text, write_arrays
from harness.graph import Program
from harness.invariance import zero_gradient
from harness.precision import PRECISIONS
from harness.programs import Written, sources
from harness.questions import Question, questions
from harness.runs import Options, describe, write_inputs
from harness.side_by_side import ending_as_interrupted, first_ended
from harness.source import Source
from harness.supervise import kill
from harness.twins import nudged

FLIPS = 4  # roundoffs of a product's factors: two values that fell on the other side of a middle
AVERAGED = 1 / 16  # of them is left in a loss; measured on the bundled specs: 1/2000
ROWS = 64  # examples of the comparison in evaluation mode
T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """How much is asked for the rungs of one step; less of a large network than all."""

    rows: int = ROWS
    """Examples of the comparison in evaluation mode."""
    twins: int = 3
    """From which tolerances are derived."""
    directions: int | None = None
    """Along which gradients are held against slopes, by update; None: one in each parameter."""
    nodes: int | None = None
    """Of which it is seen whether they reach the output; None: all."""


@dataclass
class Subject:
    """One program in one precision, and the workers that hold it."""

    program: Program
    precision: str
    folder: Path
    held_out: bool
    workers: dict[str, LiveWorker]
    sources: dict[tuple[str, bool], str] = field(default_factory=dict)
    """By backend and whether it is observed: the program that is checked."""
    honest: dict[tuple[str, bool], str] = field(default_factory=dict)
    """The same as emitted: what a fault is planted into, and what trains the positions at which steps are compared."""
    rewritten: frozenset[str] = frozenset()
    """Backends whose program somebody has changed: what it returns is judged, not how it comes to that."""
    failures: dict[str, str] = field(default_factory=dict)
    remembered: dict[str, object] = field(default_factory=dict, repr=False)
    memory: Memory = field(default_factory=Memory, repr=False)
    first: int = 0
    """The step, from 0, that training begins with: later than the first where it goes on from a checkpoint."""
    device: str = "cpu"
    """What the workers compute on."""
    effort: Effort = Effort()
    restarts: bool = True
    """Whether what is timed begins training again at its end: a large network's start takes long to load."""

    def known(self, what: str, find: Callable[[], T]) -> T:
        """Something that the reference says, found once."""
        if what not in self.remembered:
            self.remembered[what] = find()
        return self.remembered[what]  # type: ignore[return-value]

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that still answer."""
        return tuple(name for name in self.workers if name not in self.failures)

    @property
    def unit(self) -> float:
        """The distance from 1 to the next number: the unit in the last place of a value near 1."""
        return float(np.finfo(PRECISIONS[self.precision].dtype).eps)

    @property
    def mixed(self) -> bool:
        """Whether the reference rounds products as the programs do."""
        return PRECISIONS[self.precision].factors == "bfloat16"

    def rounding(self, name: str) -> float:
        """How far products that round otherwise put a tensor, as a share of its largest value; 0 where all is one dtype.

        Not what an optimizer leaves: its rule is float32. In a loss, a mean over examples, most of it averages out.
        """
        own = PRECISIONS[self.precision]
        kind, _, rest = name.partition(":")[2].partition("/") if ":" in name else name.partition("/")
        ruled = kind == "optimizer" or (kind == "state" and self.program.parameters[rest].learned)
        if ruled or not own.mixed:
            return 0.0
        return FLIPS * own.roundoff * (AVERAGED if kind == "loss" else 1)

    @cached_property
    def apart(self) -> dict[str, str]:
        """Parameters whose true gradient is zero, and why."""
        return zero_gradient(self.program)

    @cached_property
    def start(self) -> Arrays:
        """The position before training as the workers load it: parameters, statistics, an optimizer that did nothing."""
        own = load_file(self.folder / "inputs" / "parameters.safetensors")
        slots = self.folder / "inputs" / "optimizer.safetensors"
        if slots.exists():
            done = {f"optimizer/{name}": value for name, value in load_file(slots).items()}
        else:
            done = fresh_optimizer(self.program, self.precision)
        return {f"state/{name}": value for name, value in own.items()} | done

    @cached_property
    def data(self) -> Arrays:
        """The inputs as the workers read them, widened to float64."""
        folder = self.folder / "inputs"
        return wide(load_file(folder / "data.safetensors") | load_file(folder / "batches.safetensors"))

    @cached_property
    def moved_data(self) -> Arrays:
        """The inputs of the vacuity check, widened to float64."""
        folder = self.folder / "moved"
        return wide(load_file(folder / "data.safetensors") | load_file(folder / "batches.safetensors"))

    @property
    def questions(self) -> dict[str, Question]:
        """What is asked of the program in evaluation mode, calls of networks alone."""
        asked = questions(self.program, held_out=self.held_out)
        return {str(q.expression): q for q in asked.values() if q.request()["expression"][0] == "call"}

    def position(self, name: str, arrays: Arrays) -> str:
        """A file with a position, for workers to load."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            # Several threads may want the same one: none reads what another has half written.
            own = path.with_suffix(f".{threading.get_ident()}")
            write_arrays(own, arrays)
            own.replace(path)
        return str(path)

    def nudged(self, number: int) -> str:
        """A folder with the inputs of a shaken twin, the numbers of their float fields moved (see harness.twins)."""
        folder = self.folder / f"nudged-{number}"
        if not folder.exists():
            # As in `position`: none reads what another has half written.
            own = self.folder / f"nudged-{number}-{threading.get_ident()}"
            own.mkdir()
            for file in ("data", "batches"):
                given = load_file(self.folder / "inputs" / f"{file}.safetensors")
                write_arrays(own / f"{file}.safetensors", nudged(given, number))
            with suppress(OSError):  # another was first
                own.rename(folder)
        return str(folder)

    def batch(self, step: int, data: Arrays | None = None) -> tuple[Arrays, dict[str, Arrays]]:
        """The batch of a step and its masks as the reference reads them."""
        data = self.data if data is None else data
        rows = data["order"][step].astype(int)
        rows = rows[rows >= 0]
        batch = {key.removeprefix("train."): a[rows] for key, a in data.items() if key.startswith("train.")}
        batch |= {name: data[name][step][: len(rows)] for name in self.program.spec.data.noise}
        return batch, initial.masks(self.program, step, len(rows))


def fresh_optimizer(program: Program, precision: str) -> Arrays:
    """The state of optimizers before the first step."""
    found: Arrays = {}
    for update in program.updates:
        slots = reference.initial_slots(program, update)
        found |= {
            f"optimizer/{update.name}/{name}": value.astype(PRECISIONS[precision].dtype)
            for name, value in slots.items()
        }
        found[f"optimizer/{update.name}/count"] = np.array(0, np.int64)
    return found


def prepare(
    program: Program, text: Source, inputs: Inputs, precision: str, folder: Path, workers: dict[str, LiveWorker],
    given: Mapping[str, Written] | None = None,
) -> Subject:  # fmt: skip
    """Write what the program trains on, and its programs: those that are given, and for the others what is emitted."""
    folder.mkdir(parents=True)
    options = Options(precision=precision)
    write_inputs(folder, program, inputs, text, options, None)
    subject = Subject(program, precision, folder, inputs.held_out, workers)
    (folder / "moved").mkdir()
    for file in ("data", "batches"):
        own = load_file(folder / "inputs" / f"{file}.safetensors")
        write_arrays(folder / "moved" / f"{file}.safetensors", {name: moved_input(name, a) for name, a in own.items()})
    names = {name: live.backend for name, live in workers.items()}
    subject.honest = sources(program, names, precision, {})
    subject.sources = sources(program, names, precision, given) if given else dict(subject.honest)
    subject.rewritten = frozenset(name for name, own in (given or {}).items() if own.changed)
    return subject


def moved_input(name: str, array: Array) -> Array:
    """Other inputs of the same kind: numbers shifted by a tenth of their spread, ids dealt to other examples."""
    if name == "order":
        return array
    rng = initial.stream(0, "moved", name)
    if array.dtype.kind == "f":
        spread = float(array.std()) or 1.0
        return (array + 0.1 * spread * rng.standard_normal(array.shape)).astype(array.dtype)
    return np.ascontiguousarray(rng.permuted(array, axis=0))


def moved_parameters(start: Arrays) -> Arrays:
    """Other parameters: each value shifted by a tenth of its tensor's spread (of 0.1, where it has none)."""
    found = dict(start)
    for name, value in start.items():
        if name.startswith("state/"):
            spread = float(value.std()) or 1.0
            noise = np.abs(initial.stream(0, "moved", name).standard_normal(value.shape))
            found[name] = (value + 0.1 * spread * noise).astype(value.dtype)
    return found


def twin(program: Program, start: Arrays, number: int, *, zeros: bool = True) -> Arrays:
    """The same start with every parameter moved by one unit in the last place, up or down by a seeded coin.

    `zeros`: also those that are 0. The unit there is 5e-324, which no rounding makes, and it is enough to put a value
    that is exactly 0 in every framework on the other side of a kink: derived tolerances leave zeros alone.
    """
    found = dict(start)
    for name, parameter in program.parameters.items():
        if parameter.learned:
            value = start[f"state/{name}"]
            up = initial.stream(program.seed, "twin", number, name).random(value.shape) < 0.5  # noqa: PLR2004 - a fair coin
            far = np.asarray(math.inf, value.dtype)
            moved = np.where(up, np.nextafter(value, far), np.nextafter(value, -far))
            found[f"state/{name}"] = moved if zeros else np.where(value == 0, value, moved)
    return found


@contextmanager
def workers(
    backends: Sequence[str] | Mapping[str, str],
    precisions: Sequence[str],
    pythons: Mapping[str, Interpreter],
    folder: Path,
    timeout: float,
    *,
    core: int | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Iterator[tuple[dict[str, dict[str, LiveWorker]], dict[str, str]]]:
    """A live worker for each precision and backend, and the reasons of those that could not be started.

    `backends`: their names, or by the name that each goes by here, its backend. `core`: that all of them share, where
    one is asked after the other; left out, they are spread over all there are. `settings`, `device`: see `worker`.
    """
    named = backends if isinstance(backends, Mapping) else dict.fromkeys(backends)
    cores = allowed_cores()
    found: dict[str, dict[str, LiveWorker]] = {precision: {} for precision in precisions}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(ending_as_interrupted())
        number = 0
        for precision in precisions:
            for name, known in named.items():
                if name in failures:
                    continue
                backend = known or name
                # No space: it is in the path of what a compiler is given.
                place = folder / "workers" / f"{name}-{precision}".replace(" ", "-")
                own = cores[number % len(cores)] if core is None else core
                number += 1
                try:
                    made = worker(
                        backend,
                        pythons[backend],
                        place,
                        core=own,
                        timeout=timeout,
                        name=name,
                        settings=settings,
                        device=device,
                    )
                    found[precision][name] = stack.enter_context(made)
                except WorkerFailed as error:
                    failures[name] = str(error)
        yield found, failures


def each(subject: Subject, ask: Callable[[LiveWorker], T]) -> dict[str, T]:
    """Ask every backend, those on different cores at once. One that fails is noted and asked no more."""
    queues: dict[int, list[LiveWorker]] = {}
    for name in subject.backends:
        queues.setdefault(subject.workers[name].core, []).append(subject.workers[name])
    answers: dict[str, T] = {}

    def work(queue: Sequence[LiveWorker]) -> None:
        for live in queue:
            try:
                answers[live.name] = ask(live)
            except WorkerFailed as error:
                subject.failures[live.name] = str(error)
            except OSError as error:
                subject.failures[live.name] = (
                    f"what worker {live.name} is asked by way of cannot be kept: {error_text(error)}"
                )

    with ThreadPoolExecutor(max(1, len(queues))) as pool:
        try:
            asked = {pool.submit(work, queue) for queue in queues.values()}
            while asked:
                for future in first_ended(asked):
                    asked.remove(future)
                    future.result()
        except BaseException:
            # The pool waits for its threads, and they for answers, which may take minutes: there will be none.
            for live in subject.workers.values():
                kill(live.process)
            raise
    return {name: answers[name] for name in subject.workers if name in answers}


def open_program(
    subject: Subject, live: LiveWorker, name: str, source: str, *, observe: bool, strategy: str | None = None,
    rounded: bool = False,
) -> None:  # fmt: skip
    """Have a worker import a program under a name, at the start of training; `strategy`: how its steps are run.

    `rounded`: a program of harness.rounded.
    """
    path = live.folder / f"{subject.program.name}_{live.name}_{name}_{live.count:05}.py".replace(" ", "_")
    live.count += 1
    path.write_text(source, encoding="utf-8")
    request = describe(subject.program) | {"observe": observe, "strategy": strategy, "rounded": rounded}
    live.ask("open", name=name, program=str(path), inputs=str(subject.folder / "inputs"), request=request)
    live.ask("load", name=name, arrays=subject.position("start", subject.start))


def outputs(subject: Subject, names: Iterable[str]) -> list[str]:
    """Those of the names of nodes' values that are what a network returns."""
    ends = {(network, graph.output) for network, graph in subject.program.networks.items()}
    found = []
    for name in names:
        call, _, node = name.rpartition(").") if ")." in name else name.rpartition("/")[2].partition(".")
        network = call.partition("(")[0].removeprefix("evaluation:")
        sites = [s.network for u in subject.program.updates for s in u.calls if s.variable == call]
        if any((n, node) in ends for n in (network, *sites)):
            found.append(name)
    return found


def wide(arrays: Mapping[str, Array]) -> Arrays:
    """Floats as float64."""
    return {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def part(arrays: Mapping[str, Array], prefix: str) -> Arrays:
    """The arrays below a prefix, without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
