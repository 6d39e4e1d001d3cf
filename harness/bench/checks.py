"""What every way of running a program must pass: forward, gradients, its first steps; in the trial, and where it is timed."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from safetensors.numpy import load_file

from harness.bench.thin import Thinned, unmoved
from harness.bench.timing import Listener, host, unit
from harness.bench.vote import PROVEN, STEP_BY_STEP, outvoted
from harness.check import rungs
from harness.check import trajectory as long
from harness.check.evidence import Evidence, allowances, gather, slopes
from harness.check.live import LiveWorker
from harness.check.record import Rung
from harness.check.subject import Subject, each, open_program, part, twin
from harness.check.trajectory import Training
from harness.compare import TOLERANCES, Comparison, compare, compare_losses
from harness.errors import WorkerFailed
from harness.lanes import PLAIN, Strategy
from harness.programs import emitted
from harness.twins import TIMES

TWINS, FEW_TWINS = 5, 2
"""Trainings that start one unit in the last place away, where those of two ways part by more than is allowed; of a large
network, fewer."""


def checked(
    subject: Subject, thin: Thinned, runners: Mapping[str, Strategy], trainings: dict[str, Training], notes: list[str],
    listen: Listener,
) -> tuple[dict[str, str], dict[str, str]]:  # fmt: skip
    """Forward, gradients and the first steps of every way of running them, in a process of each backend.

    Who parts from the others, and how; and of whom the checks say nothing, and why. `trainings`: is given the first steps.
    """
    name = subject.program.name
    listen(name, {"phase": "forward and gradients"})
    few = thin.subject
    evidence = each(few, lambda live: gather(few, live, few.sources[live.name, True], support=True, steps=0))

    # The reference takes as long as the frameworks do: it computes here while they train.
    with ThreadPoolExecutor(1) as pool:
        judged = pool.submit(_judged, few, evidence)
        listen(name, {"phase": "trajectories", "total": len(runners)})
        own_trainings, stacked = _trainings(subject, runners, thin, listen)
        found = judged.result()
    comparisons = [c for rung in found for c in rung.comparisons]
    trainings |= own_trainings
    comparisons += stacked
    if len(own_trainings) > 1:
        along = tuple(long.compared(subject, own_trainings))
        if not all(c.same for c in along) and subject.precision != "float64":
            # Rounding grows along a training: whoever parts no faster than a framework from its own twin is not wrong.
            beside = _twins(subject, runners, own_trainings, thin)
            along = tuple(c for c in along if c.same or not max(beside.overall[f"{c.a}~{c.b}"]) <= TIMES)
        comparisons += along
    notes += [f"{rung.name}: {note}" for rung in found for note in rung.notes if "within rounding" in note]
    return outvoted(comparisons), _void(subject, own_trainings, found)


def passed(
    subject: Subject, thin: Thinned, own: str, strategy: Strategy, proven: Training, size: int
) -> tuple[dict[str, str], dict[str, str]]:
    """The same of one way, open in a process of its own where it was timed: its session begins its training again.

    `proven`: its first steps in the trial, which passed. `size`: steps of a call that was timed; such a call is checked
    too. Raises WorkerFailed.
    """
    few, live = thin.subject, subject.workers[own]
    evidence = {own: gather(few, live, few.sources[own, True], support=True, steps=0)}
    found = _judged(few, evidence)
    training, comparisons = _trained(subject, live, own, strategy, thin, size=size)
    comparisons += [comparison for rung in found for comparison in rung.comparisons]
    comparisons += long.compared(subject, {own: training, own + PROVEN: proven})
    return outvoted(comparisons), _void(subject, {own: training}, found)


def _judged(few: Subject, evidence: Mapping[str, Evidence]) -> list[Rung]:
    allowed = allowances(few, evidence)
    known = few.known("slopes", lambda: slopes(few))
    return [rungs.forward(few, evidence, allowed), rungs.gradients(few, evidence, allowed, known)]


def _void(subject: Subject, trainings: Mapping[str, Training], found: Sequence[Rung]) -> dict[str, str]:
    """Of whom the checks say nothing, and why."""
    void = {
        own: why
        for own, training in trainings.items()
        for why in (*long.dead(subject, training), *unmoved(subject, training))
    }
    for rung in found:
        if rung.status == "void":
            void |= dict.fromkeys(trainings, f"{rung.name}: {rung.sentence}")
    return void


def _twins(
    subject: Subject, runners: Mapping[str, Strategy], trainings: Mapping[str, Training], thin: Thinned
) -> long.Drift:
    """How far the trainings part beside how far each backend's plain one parts from its own twins."""
    steps = thin.steps
    found: dict[str, list[dict[str, list[float]]]] = {}
    for name in subject.backends:
        live = subject.workers[name]
        source, plain = emitted(subject.program, live.backend, subject.precision), PLAIN[live.backend]
        open_program(subject, live, "twins", source, observe=False, strategy=plain)
        live.ask("train", name="twins", first=0, last=steps, keep="twins/base", at=thin.at)
        found[name] = []
        for number in range(FEW_TWINS if thin.said else TWINS):
            start = subject.position(f"twin-{number}", twin(subject.program, subject.start, number))
            live.ask("load", name="twins", arrays=start)
            said = live.ask("train", name="twins", first=0, last=steps, against="twins/base", at=thin.at)
            found[name].append(said["distances"])
        live.ask("close", name="twins")
    return long.drift(subject, trainings, {own: found[host(subject, own, runners[own]).name] for own in trainings})


def _trainings(
    subject: Subject, runners: Mapping[str, Strategy], thin: Thinned, listen: Listener
) -> tuple[dict[str, Training], list[Comparison]]:
    """The first steps by every strategy; and those whose calls take many steps, in one call beside the same step by step."""
    found: dict[str, Training] = {}
    stacked: list[Comparison] = []
    done = count()

    def work(live: LiveWorker) -> None:
        for own, strategy in runners.items():
            if host(subject, own, strategy) is not live:
                continue
            listen(subject.program.name, {"step": next(done), "losses": {}})
            try:
                found[own], more = _trained(subject, live, own, strategy, thin)
                stacked.extend(more)
            except WorkerFailed as error:
                if live.process.poll() is not None:
                    raise
                # A program that cannot run here, for want of a C++ compiler say, is out of the race.
                subject.failures[own] = str(error).splitlines()[0]

    each(subject, work)
    return {own: found[own] for own in runners if own in found}, stacked


def _trained(
    subject: Subject, live: LiveWorker, own: str, strategy: Strategy, thin: Thinned, size: int = 0
) -> tuple[Training, list[Comparison]]:
    """By one strategy, opened anew; with the `size` of a call that was timed, as it is open."""
    steps, tolerances = thin.steps, TOLERANCES[subject.precision]
    if not size:
        text = emitted(subject.program, strategy.backend, subject.precision, strategy=strategy.name)
        open_program(subject, live, strategy.name, text, observe=False, strategy=strategy.name)
    else:
        live.ask("load", name=strategy.name, arrays=subject.position("start", subject.start))
    path = live.fresh()
    if strategy.many and thin.at:
        # What takes many steps is compiled for their number: of a large network once, not for one step too.
        said = live.ask("train_stacked", name=strategy.name, count=steps, into=str(path))
        end = load_file(path)
        path.unlink()
        return Training(said["losses"], {n: a[None] for n, a in part(end, "state/").items()}, end, thin.at), []
    said = live.ask("train", name=strategy.name, first=0, last=steps, write="all", into=str(path), at=thin.at)
    states = part(load_file(path), "states/")
    end = {f"state/{name}": kept[-1] for name, kept in states.items()}
    training = Training(said["losses"], states, end, thin.at)
    stacked: list[Comparison] = []
    if strategy.many:
        live.ask("load", name=strategy.name, arrays=subject.position("start", subject.start))
        # A call as it is or was timed, unless the training, or the trajectory that it is held against, has fewer steps.
        timed = size or unit(subject, strategy)
        count = timed if timed <= (subject.program.steps if size else steps) else steps
        said = live.ask("train_stacked", name=strategy.name, count=count, into=str(path))
        names, both = (own, f"{own}{STEP_BY_STEP}"), min(count, steps)
        one, other = ({n: losses[:both] for n, losses in found.items()} for found in (said["losses"], training.losses))
        stacked.append(compare_losses(names, one, other, tolerances["loss"]))
    if strategy.many and count <= steps:
        ends = (part(load_file(path), "state/"), {name: kept[count - 1] for name, kept in states.items()})
        left, right = ({n: a for n, a in e.items() if n not in subject.apart} for e in ends)
        stacked.append(compare("state", names, left, right, tolerances["state"]))
    path.unlink()
    return training, stacked
