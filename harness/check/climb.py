"""Run the ladder: every rung that was asked for, on each spec, in each precision, with live workers."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from math import factorial
from pathlib import Path
from typing import Any

from harness import flops, spec
from harness.backend import BACKENDS
from harness.check import rungs
from harness.check import trajectory as long
from harness.check.diagnose import Diagnosis, diagnose
from harness.check.evidence import Evidence, allowances, gather, slopes
from harness.check.kept import Kept, given_to
from harness.check.live import LiveWorker, allowed_cores
from harness.check.mutants import MUTANTS, Mutant
from harness.check.power import Cell, PowerResult, Sensitivity, Untried, power
from harness.check.probes import PROBES
from harness.check.proof import Located, ProofResult, proof
from harness.check.record import RUNGS, SCHEMA, USUAL, CheckResult, Rung
from harness.check.seeds import run_seeds
from harness.check.shaken import closed
from harness.check.subject import Subject, each, prepare, workers
from harness.environment import interpreters
from harness.errors import CallError
from harness.files import error_text, new_folder, refusing, write_last
from harness.graph import Program
from harness.invariance import zero_gradient
from harness.precision import on_device, proving
from harness.programs import Written
from harness.resolve import compile_spec
from harness.runs import own_programs, prepared
from harness.source import Source

__all__ = ["SCHEMA", "CheckOptions", "check", "planted", "proved", "rung_names"]
Listener = Callable[[str, Mapping[str, Any]], None]
Found = dict[str, Any]
"""What planting faults into one spec has found, as JSON has it."""
STEPS = 200
"""Steps of whole trainings, where the spec has as many."""


@dataclass(frozen=True)
class CheckOptions:
    """What a call may change about a check."""

    rungs: tuple[str, ...] = USUAL
    backends: tuple[str, ...] = BACKENDS
    precisions: tuple[str, ...] = ("float64", "float32")
    steps: int | None = None
    """Of whole trainings; left out, the spec's, at most STEPS."""
    seed: int | None = None
    twins: int = 5
    seeds: int = 5
    pythons: tuple[str, ...] = ()
    timeout: float = 600.0
    out: Path | None = None
    """A new folder that keeps what the check worked with; left out, a temporary one. Of planted faults: what was found."""
    programs: tuple[str, ...] = ()
    """Programs of the user's own, like `torch=my_model.py`: the emitted ones of their backends, changed."""


def check(
    paths: Sequence[str | Path], options: CheckOptions | None = None, listen: Listener | None = None
) -> list[CheckResult]:
    """Climb the ladder with each spec. Raises SpecError, DataError or CallError before any worker starts."""
    options, listen = options or CheckOptions(), listen or (lambda _backend, _event: None)
    _validate(options)
    loaded = [spec.load(spec.find(str(path))) for path in paths]
    programs = [_program(own, text, options) for own, text in loaded]
    _distinct(programs)
    if options.programs and "seeds" in options.rungs:
        raise CallError(
            "--program does not go with rung 7, seeds: that trains the emitted programs; name the other rungs"
        )
    if options.programs and len(programs) > 1:
        raise CallError("--program is a version of one spec's program: check that spec alone")
    given = {
        backend: own
        for program, (own_spec, text) in zip(programs, loaded, strict=True)
        for backend, own in own_programs(own_spec, text, program, options.programs, options.backends).items()
    }
    for own in given.values():
        for precision in options.precisions:
            own.adapted(programs[0], precision, observe=True)  # raises before any work
    pythons = interpreters(options.pythons)
    folder = _folder(options)
    try:
        with workers(options.backends, options.precisions, pythons, folder, options.timeout) as (live, failures):
            effort = Effort(options, len(programs), listen)
            listen(programs[0].name, {"roughly": effort.guess(programs)})
            return [
                _climb(program, own, text, folder, live, dict(failures), options, effort, given)
                for program, (own, text) in zip(programs, loaded, strict=True)
            ]
    finally:
        if options.out is None:
            shutil.rmtree(folder, ignore_errors=True)


def planted(
    paths: Sequence[str | Path], options: CheckOptions | None = None, listen: Listener | None = None,
    mutants: Sequence[str] = (), *, bisect: bool = True,
) -> PowerResult:  # fmt: skip
    """Plant every fault that applies (or only `mutants`) and see which rung finds it. No specs: the bundled and the probes.

    `options.out` keeps what was found: a call with the same folder goes on where this one was interrupted.
    Raises SpecError, DataError or CallError before any worker starts.
    """

    def work(subject: Subject, wanted: Callable[[Mutant], bool], said: Listener) -> Found:
        cells, smallest, left = power(subject, wanted, said, bisect=bisect)
        return {
            "cells": [asdict(cell) for cell in cells],
            "smallest": [asdict(one) for one in smallest],
            "left": [asdict(one) for one in left],
        }

    every, failed, seconds = _planted(paths, options, listen, mutants, work, f"power {bisect}")
    return PowerResult(
        tuple(Cell(**cell) for found in every for cell in found["cells"]),
        tuple(Sensitivity(**one) for found in every for one in found["smallest"]),
        failed,
        seconds,
        tuple(Untried(**one) for found in every for one in found["left"]),
    )


def proved(
    paths: Sequence[str | Path], options: CheckOptions | None = None, listen: Listener | None = None,
    mutants: Sequence[str] = (),
) -> ProofResult:  # fmt: skip
    """Plant every fault that applies and have `diff` find it. As `planted`."""

    def work(subject: Subject, wanted: Callable[[Mutant], bool], said: Listener) -> Found:
        cells, left = proof(subject, wanted, said)
        return {"cells": [asdict(cell) for cell in cells], "left": [asdict(one) for one in left]}

    every, failed, seconds = _planted(paths, options, listen, mutants, work, "proof")
    return ProofResult(
        tuple(Located(**cell | {"causes": tuple(cell["causes"])}) for found in every for cell in found["cells"]),
        failed,
        seconds,
        tuple(Untried(**one) for found in every for one in found["left"]),
    )


def _planted(
    paths: Sequence[str | Path], options: CheckOptions | None, listen: Listener | None, mutants: Sequence[str],
    work: Callable[[Subject, Callable[[Mutant], bool], Listener], Found], what: str,
) -> tuple[list[Found], dict[str, str], float]:  # fmt: skip
    """Do something with every subject there is, each with workers of its own. Returns what was found, failures and seconds.

    `what`: the name of what is done, by which it is kept.
    """
    options, listen = options or CheckOptions(), listen or (lambda _backend, _event: None)
    _validate(options)
    proving(options.precisions, "--power plants its faults")
    _known(mutants)
    loaded = [spec.load(spec.find(str(path))) for path in paths or sorted(spec.directory().glob("*.yaml"))]
    if not paths:
        loaded += [spec.loads(text, name) for name, text in PROBES.items()]
    programs = [_program(own, text, options) for own, text in loaded]
    _distinct(programs)
    pythons = interpreters(options.pythons)
    call = [
        what,
        str(replace(options, out=None, precisions=(), timeout=0.0)),
        str(pythons),
        *mutants,
    ]
    kept = Kept.open(options.out, call)
    folder = new_folder("harness-check-")
    seconds = 0.0
    try:
        failed: dict[str, str] = {}
        every: list[Found] = []
        wanted = (lambda m: m.name in mutants) if mutants else (lambda _m: True)
        subjects, count = 0, len(programs) * len(options.precisions)
        for program, (_, text) in zip(programs, loaded, strict=True):
            inputs = prepared(program, text)
            data = {f"train.{n}": a for n, a in inputs.train.items()} | {f"test.{n}": a for n, a in inputs.test.items()}
            given = given_to(text.text, data)
            for precision in options.precisions:
                subjects += 1
                if (before := kept.read(program.name, precision, given)) is not None:
                    every.append(before["found"])
                    seconds += before["seconds"]
                    listen(program.name, {"whole": [subjects, count], "exit": 0})
                    continue
                began = time.perf_counter()
                place = folder / program.name / precision
                listen(program.name, {"whole": [subjects - 1, count]})
                backends = [name for name in options.backends if name not in failed]
                # Compiled programs stay in a worker's memory: hundreds of them fill it, so each subject has its own.
                with workers(backends, (precision,), pythons, place / "workers", options.timeout) as (live, failures):
                    failed |= failures
                    if live[precision]:
                        subject = prepare(program, text, inputs, precision, place / "subject", live[precision])
                        every.append(work(subject, wanted, listen))
                        failed |= subject.failures
                        own = time.perf_counter() - began
                        seconds += own
                        if not failures and not subject.failures:
                            _keep(kept, program.name, precision, given, {"found": every[-1], "seconds": own}, listen)
                shutil.rmtree(place, ignore_errors=True)
                listen(program.name, {"whole": [subjects, count], "exit": 0})
        return every, failed, seconds
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(kept: Kept, name: str, precision: str, given: tuple[str, str], found: Found, listen: Listener) -> None:
    """Keep what was found; a full disk costs the keeping alone."""
    try:
        kept.write(name, precision, given, found)
    except OSError as error:
        listen(name, {"warning": f"what was found is not kept: {error_text(error)}"})


def _known(mutants: Sequence[str]) -> None:
    """Raise CallError unless there are such faults."""
    known = [mutant.name for mutant in MUTANTS]
    for name in mutants:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise CallError(f"there is no fault '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))


def _close(subject: Subject) -> None:
    each(subject, lambda live: live.ask("close", name="plain"))
    closed(subject)


def rung_names(text: str | None) -> tuple[str, ...]:
    """`1,2,relay` or `1-4` as names of rungs. Raises CallError.

    >>> rung_names("1-3,relay")
    ('forward', 'gradients', 'optimizer', 'relay')
    """
    if text is None:
        return USUAL
    chosen: set[str] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        low, dash, high = item.partition("-")
        numbers = range(1, len(RUNGS) + 1)
        ends = [int(end) for end in ((low, high) if dash else (low,)) if end.isdecimal()]
        if len(ends) == 1 + bool(dash) and all(end in numbers for end in ends) and ends == sorted(ends):
            chosen.update(RUNGS[ends[0] - 1 : ends[-1]])
        elif item in RUNGS:
            chosen.add(item)
        else:
            known = ", ".join(f"{i} {name}" for i, name in enumerate(RUNGS, start=1))
            raise CallError(f"--rungs: there is no rung '{item}' (rungs: {known}; 1-4 is a range)")
    if not chosen:
        raise CallError("--rungs names no rung")
    return tuple(name for name in RUNGS if name in chosen)


def _validate(options: CheckOptions) -> None:
    for name, value, least in (
        ("--steps", options.steps, 2),
        ("--seed", options.seed, 0),
        ("--twins", options.twins, 5),
        ("--seeds", options.seeds, 5),
    ):
        if value is not None and value < least:
            raise CallError(f"{name} is at least {least}, got {value}")
    for precision in options.precisions:
        on_device(precision, "cpu")
    if options.timeout <= 0:
        raise CallError(f"--timeout is above 0 seconds, got {options.timeout:g}")


def _program(loaded: spec.Spec, text: Source, options: CheckOptions) -> Program:
    """The program of whole trainings: its schedules and batches are those of so many steps."""
    steps = options.steps or min(loaded.training.steps, STEPS)
    return compile_spec(loaded, text, steps, options.seed)


def _distinct(programs: Sequence[Program]) -> None:
    names = [program.name for program in programs]
    for name in names:
        if names.count(name) > 1:
            raise CallError(f"two specs are called '{name}': what is found is kept by name; give each spec once")


@refusing
def _folder(options: CheckOptions) -> Path:
    if options.out is None:
        return new_folder("harness-check-")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise CallError(f"--out {options.out}: exists and is not an empty directory")
    options.out.mkdir(parents=True, exist_ok=True)
    return options.out.resolve()


def _climb(
    program: Program, loaded: spec.Spec, text: Source, folder: Path, live: Mapping[str, dict[str, LiveWorker]], failures: dict[str, str],
    options: CheckOptions, effort: "Effort", given: Mapping[str, Written],
) -> CheckResult:  # fmt: skip
    began, listen = time.perf_counter(), effort.listen
    inputs = prepared(program, text)
    own = folder / program.name
    found: list[Rung] = []
    diagnoses: dict[str, Diagnosis | None] = {}
    for precision in options.precisions:
        holders = {name: one for name, one in live[precision].items() if name not in failures}
        if not holders:
            break
        subject = prepare(program, text, inputs, precision, own / precision, holders, given)
        rungs_of = _rungs(subject, options, effort)
        found += rungs_of
        if any(rung.status == "failed" for rung in rungs_of) and not subject.failures:
            diagnoses[precision] = _diagnosed(subject, given, listen)
        failures |= subject.failures
        _close(subject)
        if options.out is None:
            shutil.rmtree(own / precision, ignore_errors=True)
    if "seeds" in options.rungs:
        found.append(
            _seeds(loaded, text, own, options, tuple(b for b in options.backends if b not in failures), listen)
        )
    result = CheckResult(
        program.name, own, program.steps, program.seed, options.backends, tuple(found), failures,
        zero_gradient(program), time.perf_counter() - began, diagnoses,
    )  # fmt: skip
    if options.out is not None:
        try:
            own.mkdir(parents=True, exist_ok=True)
            write_last(own / "check.json", result.to_json())
        except OSError as error:
            listen(program.name, {"warning": f"what was found is not kept: {error_text(error)}"})
    return result


def _diagnosed(subject: Subject, given: Mapping[str, Written], listen: Listener) -> Diagnosis | None:
    """Where and why the programs of a failed check part."""
    observed = {name: subject.sources[name, True] for name in subject.workers}
    read = {name: given[name].text if name in given else subject.sources[name, False] for name in subject.workers}
    return diagnose(subject, observed, read, subject.program.steps, listen)


def _seeds(
    loaded: spec.Spec, text: Source, folder: Path, options: CheckOptions, backends: tuple[str, ...], listen: Listener
) -> Rung:
    """The rung of seeds: whole trainings at the spec's own length, in processes of their own."""
    precision = options.precisions[-1]
    if len(backends) < 2:  # noqa: PLR2004
        return Rung("seeds", precision, "skipped", "there is one backend: nobody to compare with")
    start = time.perf_counter()
    found = run_seeds(
        loaded, text, seeds=options.seeds, backends=backends, directory=folder, precisions=options.precisions,
        pythons=options.pythons, steps=options.steps, first=options.seed, listen=listen, timeout=options.timeout,
    )  # fmt: skip
    first, *rest = found.sentences()
    seconds = time.perf_counter() - start
    return Rung("seeds", precision, found.status, first, (), tuple(rest), found.to_json(), seconds)


START = 10.0
"""Seconds that a spec takes in a precision before it trains: compilations, mostly."""


@dataclass
class Effort:
    """How much of a check is done, in trainings of one spec by every backend: what else there is takes about as long as one."""

    options: CheckOptions
    specs: int
    listen: Listener
    done: float = 0.0

    @property
    def every(self) -> float:
        """All of it but the rung of seeds, which has processes of its own and tells of them."""
        own = [units for name, units in self.units().items() if name in self.options.rungs]
        return (
            self.specs
            * len(self.options.precisions)
            * (len({"forward", "gradients", "optimizer"} & set(self.options.rungs)) / 3 + sum(own))
        )

    def units(self) -> dict[str, float]:
        """What each rung that trains costs: the twins are trainings, the relay is one in each order of the backends."""
        count = len(self.options.backends)
        return {"trajectory": 1.0, "twins": float(self.options.twins), "relay": float(factorial(count)) / max(count, 1)}

    def guess(self, programs: Sequence[Program]) -> float:
        """Seconds for all of it but the rung of seeds, before anything was timed."""
        units = self.every / (self.specs * len(self.options.precisions))
        each = [flops.guess(p, precision, p.steps) for p in programs for precision in self.options.precisions]
        rounds = -(-len(self.options.backends) // len(allowed_cores()))
        return units * rounds * sum(each) + START * len(each)

    def spent(self, name: str, units: float) -> None:
        """So many more are done."""
        self.done = min(self.done + units, self.every)
        self.listen(name, {"whole": [self.done, self.every]})


def _rungs(subject: Subject, options: CheckOptions, effort: Effort) -> list[Rung]:
    found: list[Rung] = []
    asked, listen, name_of = options.rungs, effort.listen, subject.program.name

    def add(name: str, judge: Callable[[], Rung]) -> None:
        if name in asked:
            start = time.perf_counter()
            listen(subject.program.name, {"phase": f"{subject.precision} {name}"})
            rung = judge()
            found.append(replace(rung, seconds=time.perf_counter() - start))

    start = time.perf_counter()
    if {"forward", "gradients", "optimizer"} & set(asked):
        listen(subject.program.name, {"phase": f"{subject.precision} asking"})
        evidence: dict[str, Evidence] = each(
            subject, lambda live: gather(subject, live, subject.sources[live.name, True], support=True)
        )
        allowed = allowances(subject, evidence)
        gathered = time.perf_counter() - start
        if not evidence:
            return found
        add("forward", lambda: rungs.forward(subject, evidence, allowed))
        add("gradients", lambda: rungs.gradients(subject, evidence, allowed, slopes(subject)))
        add("optimizer", lambda: rungs.optimizer(subject, evidence))
        found[0] = replace(found[0], seconds=found[0].seconds + gathered)
        effort.spent(name_of, len({"forward", "gradients", "optimizer"} & set(asked)) / 3)
    if {"trajectory", "twins", "relay"} & set(asked):
        found += _trained(subject, options, effort)
    return found


def _trained(subject: Subject, options: CheckOptions, effort: Effort) -> list[Rung]:
    """The rungs of whole trainings."""
    asked, listen, name_of, steps = options.rungs, effort.listen, subject.program.name, subject.program.steps
    start = time.perf_counter()
    listen(name_of, {"phase": f"{subject.precision} training"})
    whole = long.train(subject, steps)
    effort.spent(name_of, 1.0 if "trajectory" in asked else 0.0)
    if not whole:
        return []
    spent = {"training": time.perf_counter() - start, "twins": 0.0}
    drifts: list[long.Drift | None] = []

    def measured() -> long.Drift | None:
        """How far the trainings part beside twins, found once."""
        if not drifts:
            began = time.perf_counter()
            listen(name_of, {"phase": f"{subject.precision} twins"})
            drifts.append(long.measured(subject, whole, steps, options.twins))
            spent["twins"] = time.perf_counter() - began
        return drifts[0]

    def timed(judge: Callable[[], Rung], name: str) -> Rung:
        listen(name_of, {"phase": f"{subject.precision} {name}"})
        began = time.perf_counter()
        return replace(judge(), seconds=time.perf_counter() - began)

    known = measured() if "twins" in asked else None
    if "twins" in asked:
        if known is None:
            return []
        effort.spent(name_of, effort.units()["twins"])
    trainings = {name: own for name, own in whole.items() if name in subject.backends}
    along = timed(lambda: long.trajectory(subject, trainings, measured), "trajectory") if {"trajectory", "relay"} & set(asked) else None  # fmt: skip
    found = [along] if along is not None and "trajectory" in asked else []
    if known is not None:
        rung = timed(lambda: long.twins_rung(subject, known, long.still(subject, trainings)), "twins")
        found.append(replace(rung, seconds=rung.seconds + spent["twins"]))
    if "relay" in asked:
        rounding = along is not None and "rounding" in along.details
        found.append(timed(lambda: long.relay(subject, trainings, steps, rounding=rounding), "relay"))
        effort.spent(name_of, effort.units()["relay"])
    found[0] = replace(found[0], seconds=found[0].seconds + spent["training"])
    return found
