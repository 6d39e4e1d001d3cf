"""Draw specs, train each in live workers, judge it, and keep what parts, fails or is refused with a traceback."""

import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from harness import initial
from harness.backend import BACKENDS, Arrays
from harness.check.live import LiveWorker
from harness.check.mutants import MUTANTS, Mutant, first_step, plantings
from harness.check.shaken import Shaken, loaded_anew, shaken
from harness.check.subject import Subject, each, workers
from harness.environment import interpreters
from harness.errors import CallError, HarnessError
from harness.fuzz import corpus, keep, training
from harness.fuzz.draw import weighted
from harness.fuzz.generate import Drawn, draw
from harness.fuzz.judge import Verdict, alike, judge, without_effect
from harness.fuzz.record import WITHOUT_EFFECT, FuzzResult, Outcome
from harness.graph import Program
from harness.lanes import PLAIN, strategies
from harness.precision import proving
from harness.programs import emitted
from harness.twins import ROUNDS, moved

__all__ = ["FuzzOptions", "fuzz"]
RENEWED = 120
"""Specs after which workers are started anew: compiled programs stay in a worker's memory."""
OTHERWISE = 0.05
"""How often one backend's program is run in another way than the plain one."""
SHAKEN = 3
"""Shaken twins of the honest program that a fault is held beside that was not found, after its plain ones."""
GRADIENTS = 4
"""Of so many specs one is asked for its gradients too: what is wrong with one shows in the next parameters as well."""
COUNT = 100
Listener = Callable[[Outcome, int, float], None]
"""Hears each outcome, how many there are, and the seconds that have passed."""


@dataclass(frozen=True)
class FuzzOptions:
    """What a call may change."""

    count: int | None = None
    """How many specs; left out, as many as there are minutes for, or COUNT."""
    minutes: float | None = None
    seed: int = 0
    first: int = 0
    """The number of the first spec: a seed and a number are a spec."""
    backends: tuple[str, ...] = BACKENDS
    precision: str = "float64"
    plant: bool = False
    out: Path | None = None
    """A new folder for what is found."""
    pythons: tuple[str, ...] = ()
    timeout: float = 300.0


@dataclass(frozen=True)
class _Ready:
    """A spec with what is to be trained of it."""

    number: int
    drawn: Drawn | None
    sources: dict[str, str]
    strategies: dict[str, str | None]
    mutant: Mutant | None = None
    planted: str = ""
    where: str = ""
    """In which of its places: the first, another one, or every one."""
    error: str = ""
    """The traceback, where it did not come to this."""
    text: str = ""


def fuzz(options: FuzzOptions | None = None, listen: Listener = lambda _outcome, _done, _seconds: None) -> FuzzResult:
    """Train random specs and judge them; interrupted, what was done is the result. Raises CallError before any worker starts."""
    options = options or FuzzOptions()
    _validate(options)
    pythons = interpreters(options.pythons)
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="harness-fuzz-"))
    # Specs that are kept name these files: they stay with them.
    data = (options.out.resolve() if options.out else folder) / "data"
    corpus.write(data)
    outcomes: list[Outcome] = []
    failures: dict[str, str] = {}
    interrupted = False
    numbers = _numbers(options, began)
    try:
        with ThreadPoolExecutor(1) as ahead:
            following = _following(ahead, numbers, partial(_ready, options, data))
            ready = next(following, None)
            while ready is not None and not failures:
                place = folder / f"workers-{len(outcomes)}"
                with workers(options.backends, (options.precision,), pythons, place, options.timeout) as (live, failed):
                    failures |= failed
                    for _ in range(RENEWED):
                        if (
                            ready is None
                            or failures
                            or any(w.process.poll() is not None for w in live[options.precision].values())
                        ):
                            break
                        outcomes.append(
                            _outcome(options, ready, live[options.precision], folder / f"spec-{ready.number}")
                        )
                        listen(outcomes[-1], len(outcomes), time.perf_counter() - began)
                        ready = next(following, None)
                shutil.rmtree(place, ignore_errors=True)
    except KeyboardInterrupt:
        if not outcomes:
            raise
        interrupted = True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return FuzzResult(
        options.seed, options.precision, options.backends, options.plant, tuple(outcomes), failures,
        time.perf_counter() - began, interrupted,
    )  # fmt: skip


def _validate(options: FuzzOptions) -> None:
    proving((options.precision,), "fuzz compares")
    for name, value, least in (
        ("--count", options.count, 1), ("--minutes", options.minutes, 0), ("--seed", options.seed, 0), ("--first", options.first, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            raise CallError(f"{name} is at least {least}, got {value:g}")
    if options.timeout <= 0:
        raise CallError(f"--timeout is above 0 seconds, got {options.timeout:g}")
    if len(options.backends) < 2:  # noqa: PLR2004
        raise CallError("fuzz compares backends: name at least two")
    if options.out is not None and options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise CallError(f"--out {options.out}: exists and is not an empty directory")


def _numbers(options: FuzzOptions, began: float) -> Iterator[int]:
    """Numbers of specs until there are enough, or the time is over."""
    most = options.count or (COUNT if options.minutes is None else None)
    for number in count(options.first):
        over = options.minutes is not None and time.perf_counter() - began > 60 * options.minutes
        if over or (most is not None and number >= options.first + most):
            return
        yield number


def _following(pool: ThreadPoolExecutor, numbers: Iterator[int], make: Callable[[int], _Ready]) -> Iterator[_Ready]:
    """What is made of each number, one ahead of the one that is asked for."""
    waiting: Future[_Ready] | None = None
    for number in numbers:
        made = pool.submit(make, number)
        if waiting is not None:
            yield waiting.result()
        waiting = made
    if waiting is not None:
        yield waiting.result()


def _ready(options: FuzzOptions, data: Path, number: int) -> _Ready:
    """Draw a spec and emit its programs. What raises is kept: no honest spec ends in a traceback."""
    drawn: Drawn | None = None
    try:
        drawn = draw(options.seed, number, data)
        rng = initial.stream(options.seed, "way", number)
        ways: dict[str, str | None] = dict.fromkeys(options.backends)
        mutant, planted, where, faulty = None, "", "", ""
        if options.plant:
            mutant, planted, where, faulty = _planted(drawn.program, options, number)
        elif rng.random() < OTHERWISE:
            backend = weighted(rng, options.backends)
            own = [
                s.name for s in strategies(drawn.program, backend, precision=options.precision) if "cpu" in s.devices
            ]
            ways[backend] = weighted(rng, [s for s in own if s != PLAIN[backend]] or [None])
        sources = {
            b: faulty if b == planted else emitted(drawn.program, b, options.precision, strategy=ways[b])
            for b in options.backends
        }
        return _Ready(number, drawn, sources, ways, mutant, planted, where)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        text = drawn.text if drawn else str(getattr(error, "spec", ""))
        return _Ready(number, None, {}, {}, error=traceback.format_exc(), text=text)


def _planted(program: Program, options: FuzzOptions, number: int) -> tuple[Mutant | None, str, str, str]:
    """A random fault that applies, the backend that has it, in which of its places, and its program."""
    rng = initial.stream(options.seed, "fault", number)
    backend = weighted(rng, options.backends)
    for i in rng.permutation(len(MUTANTS)):
        mutant = MUTANTS[int(i)]
        if first_step(mutant, program) <= program.steps:
            texts = plantings(mutant, program, backend, options.precision)
            if texts:
                where = weighted(rng, list(texts))
                return mutant, backend, where, texts[where]
    return None, "", "", ""


def _outcome(options: FuzzOptions, ready: _Ready, live: Mapping[str, LiveWorker], folder: Path) -> Outcome:
    """Train and judge one spec, and keep it where it is to be kept."""
    began = time.perf_counter()
    if ready.drawn is None:
        kept = keep.traceback_of(ready.number, ready.text, ready.error, options.out)
        return Outcome(ready.number, "failed", _last(ready.error), failures={"harness": _last(ready.error)}, kept=kept)
    if options.plant and ready.mutant is None:
        return Outcome(ready.number, "same", "no fault of the catalogue applies")
    subject = training.opened(ready.drawn, options.precision, folder, live)
    gradients = ready.number % GRADIENTS == 0
    trained = training.train(subject, ready.sources, ready.strategies, gradients=gradients)
    empty = Outcome(
        ready.number, "failed", strategies={b: s for b, s in ready.strategies.items() if s},
        fault=ready.mutant.name if ready.mutant else "", planted=ready.planted, where=ready.where, why=ready.mutant.note if ready.mutant else "",
    )  # fmt: skip
    found = empty
    if not trained.failures:
        try:
            said = _said(subject, trained, ready.sources, gradients=gradients)
            found = replace(empty, status=said.status, said=said.said, ratio=said.ratio, notes=said.notes)
        except (HarnessError, OSError) as error:
            trained.failures |= subject.failures or {"harness": str(error)}
    if trained.failures:
        failures = {name: keep.sentence(why) for name, why in trained.failures.items()}
        found = replace(empty, said="; ".join(f"{n}: {w}" for n, w in failures.items()), failures=failures)
    training.closed(subject)
    if options.plant and not found.found:
        found = replace(found, notes=(*found.notes, *_effect(options, ready, live, trained, folder / "honest")))
    if found.found and not options.plant and options.out is not None:
        try:
            kept = keep.keep(
                ready.drawn, found, trained.failures, options.precision, live, folder / "kept", options.out,
                partial(_differs, ready.strategies, options.precision, live),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - what was found stands, whatever became of the smaller one
            kept = keep.traceback_of(ready.number, "", traceback.format_exc(), options.out)
            why = f"it could not be made smaller: {_last(str(error) or repr(error))}"
            found = replace(found, notes=(*found.notes, why))
        found = replace(found, kept=kept)
    shutil.rmtree(folder, ignore_errors=True)
    return replace(found, seconds=time.perf_counter() - began)


def _differs(
    ways: dict[str, str | None], precision: str, live: Mapping[str, LiveWorker], drawn: Drawn, folder: Path
) -> bool:
    """Whether trainings of a smaller spec differ, in the same ways. Raises HarnessError where it cannot be trained in them."""
    subject = training.opened(drawn, precision, folder, live)
    sources = training.programs(subject, ways)
    gradients = drawn.number % GRADIENTS == 0  # what differs in these alone is seen in these alone
    trained = training.train(subject, sources, ways, gradients=gradients)
    try:
        return not trained.failures and _said(subject, trained, sources, gradients=gradients).status == "differs"
    finally:
        training.closed(subject)


def _said(subject: Subject, trained: training.Trained, sources: Mapping[str, str], *, gradients: bool) -> Verdict:
    """The verdict on a trained spec. Raises HarnessError where a twin fails."""
    return judge(subject, trained.answers, _Twins(subject, trained.answers, trained.strategies, sources, gradients))


def _effect(
    options: FuzzOptions, ready: _Ready, live: Mapping[str, LiveWorker], trained: training.Trained, folder: Path
) -> tuple[str, ...]:
    """WITHOUT_EFFECT where a planted fault that was not found changes nothing in this spec: its backend's honest program says the same.

    A last batch that the training does not come to, rows of an embedding of which each is looked up once.
    """
    if ready.drawn is None or trained.failures:
        return ()
    name = ready.planted
    sources = {name: emitted(ready.drawn.program, name, options.precision)}
    gradients = ready.number % GRADIENTS == 0
    try:
        subject = training.opened(ready.drawn, options.precision, folder, {name: live[name]})
        honest = training.train(subject, sources, {}, gradients=gradients)
        if honest.failures:
            return (f"its effect is not known: {keep.sentence(honest.failures[name])}",)
        twins = _Twins(subject, honest.answers, {}, sources, gradients)
        asked = [*(partial(twins.moved, n) for n in range(ROUNDS)), *(partial(twins.shaken, n) for n in range(SHAKEN))]
        those = (own for ask in asked for own in ask().values())
        none = without_effect(subject, honest.answers[name], trained.answers[name], those)
        training.closed(subject)
        return (WITHOUT_EFFECT,) if none else ()
    except (HarnessError, OSError) as error:
        return (f"its effect is not known: {keep.sentence(str(error))}",)


@dataclass
class _Twins:
    """Asks for the answers of twins; only of backends that repeat themselves."""

    subject: Subject
    base: Mapping[str, training.Answer]
    ways: Mapping[str, str | None]
    sources: Mapping[str, str]
    gradients: bool
    repeating: frozenset[str] | None = None
    steady: frozenset[str] | None = None

    def moved(self, number: int) -> dict[str, training.Answer]:
        """A twin of each. Raises HarnessError where a worker fails."""
        subject = self.subject
        if self.repeating is None:
            # The same once more: a program that keeps something, or draws numbers of its own, parts from its twin for that.
            again = self._answers("start", subject.start)
            self.repeating = frozenset(name for name, own in again.items() if alike(subject, self.base[name], own))
        start = {n.removeprefix("state/"): a for n, a in subject.start.items() if n.startswith("state/")}
        near = {f"state/{n}": a for n, a in moved(subject.program, start, number).items()}
        found = self._answers(f"twin-{number}", subject.start | near)
        return {name: own for name, own in found.items() if name in self.repeating}

    def shaken(self, number: int) -> dict[str, training.Answer]:
        """Of those that are trained step by step, as a run does it, and go on as they would where they are loaded anew."""
        if self.steady is None:
            plainly = {n for n in self.repeating or () if not self.ways.get(n)}
            again = self._answers("start", self.subject.start, loaded_anew(self.subject, training.NAME), plainly)
            self.steady = frozenset(n for n, own in again.items() if alike(self.subject, self.base[n], own))
        if not self.steady:
            return {}
        program, precision = self.subject.program, self.subject.precision
        # One with a planted fault has no variant: it need not be the same program.
        honest = [b for b in sorted(self.steady) if self.sources[b] == emitted(program, b, precision)]
        seen = {b: emitted(program, b, precision, observe=True) for b in honest}
        how = shaken(self.subject, training.NAME, self.steady, number, seen)
        return self._answers("start", self.subject.start, how, self.steady)

    def _answers(
        self, name: str, arrays: Arrays, how: Shaken | None = None, those: Collection[str] | None = None
    ) -> dict[str, training.Answer]:
        position = self.subject.position(name, arrays)

        def work(live: LiveWorker) -> training.Answer | None:
            if those is not None and live.name not in those:
                return None
            way = self.ways.get(live.name)
            return training.answer(self.subject, live, way, position, gradients=self.gradients, shaken=how)

        found = {name: own for name, own in each(self.subject, work).items() if own is not None}
        if self.subject.failures:
            raise HarnessError(f"a twin failed: {self.subject.failures}")
        return found


def _last(error: str) -> str:
    return error.strip().splitlines()[-1]
