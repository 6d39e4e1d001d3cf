"""What every way of running a program must pass in the process that is timed: forward, gradients, its first steps."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from safetensors.numpy import load_file

from harness.bench.thin import Thinned, unmoved
from harness.bench.timing import Listener, host
from harness.bench.vote import STEP_BY_STEP, outvoted
from harness.check import rungs
from harness.check import trajectory as long
from harness.check.evidence import allowances, gather, slopes
from harness.check.live import LiveWorker
from harness.check.record import Rung
from harness.check.subject import Subject, each, open_program, part, twin
from harness.check.trajectory import Training
from harness.compare import TOLERANCES, Comparison, compare, compare_losses
from harness.errors import WorkerFailed
from harness.lanes import PLAIN, Strategy
from harness.programs import emitted

TWINS, FEW_TWINS = 5, 2
"""Trainings that start one unit in the last place away, where those of two ways part by more than is allowed; of a large
network, fewer."""


def checked(
    subject: Subject, thin: Thinned, runners: Mapping[str, Strategy], losses: dict[str, Mapping[str, list[float]]],
    notes: list[str], listen: Listener, *, anew: bool = True,
) -> tuple[dict[str, str], dict[str, str]]:  # fmt: skip
    """Forward, gradients and the first steps of every way of running them, by the processes that are timed.

    Who parts from the others, and how; and of whom the checks say nothing, and why. `anew`: each is opened anew, else the
    very one that is open begins its training again.
    """
    name = subject.program.name
    listen(name, {"phase": "forward and gradients"})
    few = thin.subject
    evidence = each(few, lambda live: gather(few, live, few.sources[live.name, True], support=True, steps=0))

    def judge() -> list[Rung]:
        allowed = allowances(few, evidence)
        return [rungs.forward(few, evidence, allowed), rungs.gradients(few, evidence, allowed, slopes(few))]

    # The reference takes as long as the frameworks do: it computes here while they train.
    with ThreadPoolExecutor(1) as pool:
        judged = pool.submit(judge)
        listen(name, {"phase": "trajectories", "total": len(runners)})
        trainings, stacked = _trainings(subject, runners, thin, listen, anew=anew)
        found = judged.result()
    comparisons = [c for rung in found for c in rung.comparisons]
    losses |= {runners[own].backend: training.losses for own, training in trainings.items()}
    comparisons += stacked
    if len(trainings) > 1:
        along = long.trajectory(subject, trainings, None, None).comparisons
        if not all(c.same for c in along) and subject.precision != "float64":
            # Rounding grows along a training: whoever parts no faster than a framework from its own twin is not wrong.
            beside = _twins(subject, runners, trainings, thin)
            along = tuple(c for c in along if c.same or not max(beside.overall[f"{c.a}~{c.b}"]) <= long.TIMES)
        comparisons += along
    void = {
        own: why
        for own, training in trainings.items()
        for why in (*long.dead(subject, training), *unmoved(subject, training))
    }
    for rung in found:
        notes += [f"{rung.name}: {note}" for note in rung.notes if "within rounding" in note]
        if rung.status == "void":
            void |= dict.fromkeys(runners, f"{rung.name}: {rung.sentence}")
    return outvoted(comparisons), void


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
    subject: Subject, runners: Mapping[str, Strategy], thin: Thinned, listen: Listener, *, anew: bool
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
                found[own], more = _trained(subject, live, own, strategy, thin, anew=anew)
                stacked.extend(more)
            except WorkerFailed as error:
                if live.process.poll() is not None:
                    raise
                # A program that cannot run here, for want of a C++ compiler say, is out of the race.
                subject.failures[own] = str(error).splitlines()[0]

    each(subject, work)
    return {own: found[own] for own in runners if own in found}, stacked


def _trained(
    subject: Subject, live: LiveWorker, own: str, strategy: Strategy, thin: Thinned, *, anew: bool
) -> tuple[Training, list[Comparison]]:
    """By one strategy."""
    steps, tolerances = thin.steps, TOLERANCES[subject.precision]
    if anew:
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
        said = live.ask("train_stacked", name=strategy.name, count=steps, into=str(path))
        names = (own, f"{own}{STEP_BY_STEP}")
        stacked.append(compare_losses(names, said["losses"], training.losses, tolerances["loss"]))
        ends = (part(load_file(path), "state/"), part(end, "state/"))
        left, right = ({n: a for n, a in e.items() if n not in subject.apart} for e in ends)
        stacked.append(compare("state", names, left, right, tolerances["state"]))
    path.unlink()
    return training, stacked
