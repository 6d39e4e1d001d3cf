"""Rungs four to six: whole trainings, how fast they part beside a framework and its own twin, and handing one over."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, islice, permutations
from typing import TypeVar

import numpy as np
from safetensors.numpy import load_file

from harness.backend import Array, Arrays
from harness.check.live import LiveWorker, allowed_cores
from harness.check.record import Rung, judged
from harness.check.shaken import loaded_anew, shaken
from harness.check.subject import Subject, each, open_program, part, twin
from harness.compare import FLOAT64, TOLERANCES, Comparison, Derived, Difference, Tolerance, compare, compare_losses
from harness.errors import HarnessError
from harness.twins import ECHO, NEAR, SHAKES, TIMES

Losses = dict[str, list[float]]
T = TypeVar("T")
W = TypeVar("W")


@dataclass(frozen=True)
class Training:
    """A whole training of one backend."""

    losses: Losses
    states: Arrays
    """Parameters and statistics after every step, the steps along the first axis."""
    end: Arrays
    """The position after the last step."""
    at: tuple[int, ...] = ()
    """The steps, from 1, after which states were kept, where not after all."""


def train(subject: Subject, steps: int) -> dict[str, Training]:
    """The unbroken training of every backend; each worker keeps its states for its twins."""

    def work(live: LiveWorker) -> Training:
        open_program(subject, live, "plain", subject.sources[live.name, False], observe=False)
        path = live.fresh()
        said = live.ask("train", name="plain", first=0, last=steps, keep="plain/base", write="all", into=str(path))
        arrays = load_file(path)
        path.unlink()
        end = {n: a for n, a in arrays.items() if n.startswith(("state/", "optimizer/"))}
        return Training(said["losses"], part(arrays, "states/"), end)

    return each(subject, work)


def trajectory(subject: Subject, trainings: Mapping[str, Training], measured: "Callable[[], Drift | None]") -> Rung:
    """Losses, parameters and statistics at every step, pairwise; where they part by more than is tight, twins decide.

    `measured`: how far the trainings part beside twins, asked for only then; None where no worker answered.
    """
    comparisons = compared(subject, trainings)
    void = still(subject, trainings)
    found = judged("trajectory", subject.precision, comparisons, void=void)
    if found.status != "failed" or any(c.missing for c in comparisons):
        return found
    twins = measured()
    pairs = {f"{a}~{b}" for a, b in combinations(trainings, 2)}
    if twins is None or twins.overall.keys() != pairs or not excused(subject, comparisons, twins):
        return found if twins is None else replace(found, notes=(*found.notes, *twins.notes))
    if void:
        dead_run = judged("trajectory", subject.precision, (), void=void, details={"rounding": twins.worst})
        return replace(dead_run, comparisons=found.comparisons)
    why = f"within rounding: at most {twins.worst:.2g} times as far apart as twins of one framework"
    notes = (*found.notes, f"in {found.precision}: {found.sentence}")
    return Rung(found.name, found.precision, "passed", why, found.comparisons, notes, {"rounding": twins.worst})


def excused(subject: Subject, comparisons: Sequence[Comparison], twins: "Drift") -> bool:
    """Whether what parts by more than is tight has parted no further than twins do.

    In float64, the proof, no tensor may hide among the others, and losses are held beside no twin.
    """
    numbers = all(c.worst is None or np.isfinite(c.worst.difference) for c in comparisons)
    if any(c.missing for c in comparisons) or not numbers or not settled(subject, twins):
        return False
    return subject.precision != "float64" or not any(c.what == "loss" and not c.same for c in comparisons)


def compared(subject: Subject, trainings: Mapping[str, Training]) -> list[Comparison]:
    """Losses, parameters and statistics of every pair at every step, by the tight tolerance."""
    tolerances = TOLERANCES[subject.precision]

    def beside(pair: tuple[str, str]) -> tuple[Comparison, Comparison]:
        x, y = (trainings[name] for name in pair)
        left, right = ({n: s for n, s in t.states.items() if n not in subject.apart} for t in (x, y))
        states = compare_series("state", pair, left, right, tolerances["state"], x.at)
        return compare_losses(pair, x.losses, y.losses, tolerances["loss"]), states

    return [c for pair in _at_once(beside, list(combinations(trainings, 2))) for c in pair]


def still(subject: Subject, trainings: Mapping[str, Training]) -> list[str]:
    """What is dead in any of the trainings: how these go on says nothing."""
    return [f"{backend}: {why}" for backend, own in trainings.items() for why in dead(subject, own)]


def dead(subject: Subject, training: Training) -> list[str]:
    """Why a training would look the same whatever the network did: a loss that stays or is none, parameters that stay."""
    found = []
    for name, losses in training.losses.items():
        if not np.isfinite(losses).all():
            found.append(f"the loss of '{name}' is no number")
        elif len(set(losses)) == 1 and len(losses) > 1:
            found.append(f"the loss of '{name}' is the same at every step")
    minimised = training.losses if len(training.losses) == 1 else {}
    for name, losses in minimised.items():
        tenth = max(1, len(losses) // 10)
        if len(losses) >= 10 and not np.mean(losses[-tenth:]) < np.mean(losses[:tenth]):  # noqa: PLR2004
            found.append(f"the loss of '{name}' does not fall")
    for name, states in training.states.items():
        if name not in subject.apart and len(states) > 1 and np.array_equal(states[0], states[-1]):
            found.append(f"{name} never moves after the first step")
    return found


def compare_series(
    what: str, names: tuple[str, str], a: Mapping[str, Array], b: Mapping[str, Array], tolerance: Tolerance,
    at: Sequence[int] = (),
) -> Comparison:  # fmt: skip
    """Tensors at every step, or after those of `at`, the steps along the first axis: each step by its own magnitude."""
    missing = [f"only {names[0]} has {n}" for n in sorted(a.keys() - b.keys())]
    missing += [f"only {names[1]} has {n}" for n in sorted(b.keys() - a.keys())]
    worst: Difference | None = None
    compared = 0
    for name in sorted(a.keys() & b.keys()):
        if a[name].shape != b[name].shape:
            missing.append(f"{name} has shape {a[name].shape} and {b[name].shape}")
            continue
        steps = len(a[name])
        # In their own dtype: that of a large network's parameters is hundreds of megabytes, which float64 would double.
        x, y = (s[name].reshape(steps, -1) for s in (a, b))
        compared += steps
        with np.errstate(invalid="ignore"):
            apart = np.abs(x - y)
            gaps = apart.max(axis=1).astype(np.float64)
            gaps = np.where(np.isfinite(gaps), gaps, np.nan)
            sizes = np.max([*((s.max(axis=1), -s.min(axis=1)) for s in (x, y))], axis=(0, 1)).astype(np.float64)
        allowed = tolerance.relative * np.maximum(np.nan_to_num(sizes, posinf=0.0), tolerance.floor)
        ratios = np.where(np.isnan(gaps), np.inf, gaps / np.maximum(allowed, np.finfo(np.float64).tiny))
        step = int(np.argmax(ratios))
        place = int(np.argmax(apart[step]))  # the first NaN, where there is one
        index = tuple(int(i) for i in np.unravel_index(place, a[name].shape[1:]))
        found = Difference(
            name,
            at[step] if at else step + 1,
            float(gaps[step]),
            float(allowed[step]),
            index,
            float(x[step, place]),
            float(y[step, place]),
        )
        worst = found if worst is None or found.ratio > worst.ratio else worst
    return Comparison(what, *names, worst, compared, tuple(missing))


# Twins ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """How far frameworks part beside how far one parts from its own twins."""

    worst: float
    """The largest ratio of all tensors together at any step; infinite where one is no number."""
    overall: dict[str, list[float]]
    """By pair: the drift of all tensors together at every step over that of the worst twin."""
    tensors: dict[str, dict[str, float]]
    """By pair and tensor: the largest ratio at any step."""
    twins: list[float]
    """The worst twin's drift of all tensors together, at every step."""
    exact: bool
    restless: tuple[str, ...] = ()
    """Backends that do not train the same twice, and so have no twins."""
    count: int = 0
    """Twins of each of the others, shaken ones among them."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of those."""
        return tuple(f"{name} does not repeat its own training: it has no twins" for name in self.restless)

    @property
    def verdicts(self) -> dict[str, dict[str, str | float]]:
        """Each tensor by itself: `exact`, `within rounding` or `differs`, and the largest ratio of all pairs."""
        found: dict[str, dict[str, str | float]] = {}
        for name in dict.fromkeys(n for own in self.tensors.values() for n in own):
            ratios = [own[name] for own in self.tensors.values()]
            ratio = max(ratios, key=lambda r: r if np.isfinite(r) else np.inf)
            verdict = "exact" if ratio == 0 else "within rounding" if ratio <= TIMES else "differs"
            found[name] = {"verdict": verdict, "ratio": ratio}
        return found


def twin_distances(subject: Subject, steps: int, count: int) -> dict[str, list[dict[str, list[float]]]]:
    """By backend: how far each twin is from the unbroken training, by tensor, at every step.

    None of a backend that does not train the same twice: it keeps something that loading does not set, or draws numbers of its
    own, and parts from its twin for that.
    """

    def repeats(live: LiveWorker) -> bool:
        live.ask("load", name="plain", arrays=subject.position("start", subject.start))
        said = live.ask("train", name="plain", first=0, last=min(ECHO, steps), against="plain/base")
        return repeated(subject, said["distances"])

    def work(live: LiveWorker) -> list[dict[str, list[float]]]:
        found: list[dict[str, list[float]]] = []
        if not repeats(live):
            return found
        for number in range(count):
            start = subject.position(f"twin-{number}", twin(subject.program, subject.start, number, zeros=False))
            live.ask("load", name="plain", arrays=start)
            said = live.ask("train", name="plain", first=0, last=steps, against="plain/base")
            found.append(said["distances"])
        return found

    return each(subject, work)


def measured(subject: Subject, trainings: Mapping[str, Training], steps: int, count: int) -> "Drift | None":
    """How far trainings part beside so many twins of each, and where that explains it not, beside shaken ones."""
    distances = twin_distances(subject, steps, count)

    def beside() -> "Drift | None":
        own = {name: one for name, one in trainings.items() if name in distances and name in subject.backends}
        return drift(subject, own, distances) if own else None

    found = beside()
    for number in range(SHAKES):
        if found is None or settled(subject, found) or (number and farthest(subject, found) > NEAR):
            break
        if not number:
            steady = loads_anew(subject, steps, [name for name, own in distances.items() if own])
        if not steady:
            break
        try:
            further = shaken_distances(subject, steps, steady, number)
        except HarnessError:
            return beside()  # those who had twins have died since: their failures are told
        for name, more in further.items():
            distances[name] += more
        found = beside()
    return found


def loads_anew(subject: Subject, steps: int, backends: Sequence[str]) -> list[str]:
    """Those that train on as they did where they are loaded anew after every step, as a shaken twin is."""
    same = loaded_anew(subject, "plain")

    def ask(live: LiveWorker) -> bool:
        if live.name not in backends:
            return False
        live.ask("load", name="plain", arrays=same.position)
        said = live.ask("train", name="plain", first=0, last=steps, against="plain/base", **same.train)
        return repeated(subject, said["distances"])

    return [name for name, steady in each(subject, ask).items() if steady]


def shaken_distances(
    subject: Subject, steps: int, backends: Sequence[str], number: int
) -> dict[str, list[dict[str, list[float]]]]:
    """As `twin_distances`, of one shaken twin of each of these."""
    # As emitted, it is of one emitter with its observed variant.
    same = [name for name in backends if subject.sources[name, False] == subject.honest[name, False]]
    observed = {name: subject.sources[name, True] for name in same}
    how = shaken(subject, "plain", backends, number, observed)

    def work(live: LiveWorker) -> list[dict[str, list[float]]]:
        if live.name not in backends:
            return []
        live.ask("load", name=how.names[live.name], arrays=how.position)
        return [
            live.ask("train", name=how.names[live.name], first=0, last=steps, against="plain/base", **how.train)[
                "distances"
            ]
        ]

    return {name: own for name, own in each(subject, work).items() if own}


def repeated(subject: Subject, distances: Mapping[str, Sequence[float]]) -> bool:
    """Whether a training has gone the way of the unbroken one, by how far its tensors were from it."""
    exact = TOLERANCES[subject.precision if subject.precision == "float64" else "float32"]["loss"].relative
    sizes = {n.removeprefix("state/"): float(np.linalg.norm(a)) for n, a in subject.start.items()}
    return all(max(gaps) <= exact * max(sizes.get(name, 0.0), 1.0) for name, gaps in distances.items())


def farthest(subject: Subject, found: Drift) -> float:
    """The largest ratio of those that `settled` looks at; infinite where one is no number."""
    alone = (
        [ratio for own in found.tensors.values() for ratio in own.values()] if subject.precision == "float64" else []
    )
    return max(ratio if np.isfinite(ratio) else np.inf for ratio in (found.worst, *alone))


def settled(subject: Subject, found: Drift) -> bool:
    """Whether the drift of twins explains all of it; in float64, the proof, tensor by tensor."""
    alone = subject.precision == "float64" and any(one["verdict"] == "differs" for one in found.verdicts.values())
    return found.worst <= TIMES and not alone


def drift(
    subject: Subject, trainings: Mapping[str, Training], twins: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]
) -> Drift:
    """Cross-framework drift over the worst twin's, by tensor and overall, at every step."""
    names = [n for n in next(iter(trainings.values())).states if n not in subject.apart]
    states = next(iter(trainings.values())).states
    sizes = dict(zip(names, _at_once(lambda n: _norm(states[n]), names), strict=True))
    for n in names:
        if (spread := f"{n.removesuffix('.mean')}.variance") in states and n.endswith(".mean"):
            # A mean is as exact as the values that it is of, however near to zero it is itself.
            sizes[n] = np.maximum(sizes[n], _norm(np.sqrt(np.abs(states[spread]))))
    # A twin starts one unit in the last place away: no yardstick is shorter than that.
    least = {n: subject.unit * np.maximum(sizes[n], subject.unit) for n in names}
    every = [own for backend in trainings for own in twins[backend]]
    worst = {n: np.max([least[n], *(np.array(own[n]) for own in every)], axis=0) for n in names}
    together = np.max(
        [_together([least[n] for n in names]), *(_together([np.array(own[n]) for n in names]) for own in every)], axis=0
    )
    overall: dict[str, list[float]] = {}
    tensors: dict[str, dict[str, float]] = {}
    exact = True
    pairs = list(combinations(trainings, 2))

    def gap(wanted: tuple[str, str, str]) -> Array:
        a, b, n = wanted
        return _norm(trainings[a].states[n].astype(np.float64) - trainings[b].states[n])

    gaps = iter(_at_once(gap, [(a, b, n) for a, b in pairs for n in names]))
    for a, b in pairs:
        cross = dict(zip(names, islice(gaps, len(names)), strict=True))
        exact = exact and not any(np.any(apart) for apart in cross.values())
        overall[f"{a}~{b}"] = (_together(list(cross.values())) / together).tolist()
        tensors[f"{a}~{b}"] = {n: float(np.max(cross[n] / worst[n])) for n in names}
    # What is no number is no small drift: Python's max would pass over it.
    largest = max((float(np.max(np.nan_to_num(r, nan=np.inf, posinf=np.inf))) for r in overall.values()), default=0.0)
    restless = tuple(backend for backend in trainings if not twins[backend])
    return Drift(
        largest, overall, tensors, together.tolist(), exact, restless, max(map(len, twins.values()), default=0)
    )


def twins_rung(subject: Subject, found: Drift, void: Sequence[str] = ()) -> Rung:
    """The verdict on drift: exact, within rounding, or different; `void`: why the trainings say nothing."""
    details = {
        "twins": found.count, "worst": found.worst, "overall": found.overall, "tensors": found.tensors,
        "drift": found.twins, "allowed": TIMES, "verdicts": found.verdicts,
    }  # fmt: skip
    pair, at = max(
        ((p, int(np.argmax(r))) for p, r in found.overall.items()),
        key=lambda w: found.overall[w[0]][w[1]],
        default=("", 0),
    )
    tensor, ratio = max(
        ((f"{n} ({p})", r) for p, own in found.tensors.items() for n, r in own.items()),
        key=lambda w: w[1],
        default=("", 0.0),
    )
    if not found.overall:
        return Rung("twins", subject.precision, "skipped", "there is one backend: nothing to hold beside its twins")
    if void and (found.exact or found.worst <= TIMES):
        return judged("twins", subject.precision, (), void=void, details=details)
    if found.exact:
        return Rung("twins", subject.precision, "passed", "exact: the same bits at every step", details=details)
    said = f"{found.worst:.2g} times the worst of {found.count} twins a backend ({pair}, step {at + 1}); {_counted(found)}, up to {ratio:.2g} ({tensor})"
    if not np.isfinite(found.worst) or found.worst > TIMES:
        why = f"differs: {said}, {TIMES} allowed"
        return Rung("twins", subject.precision, "failed", why, (), found.notes, details)
    alone = {n: v["ratio"] for n, v in found.verdicts.items() if v["verdict"] == "differs"}
    spelled = ", ".join(f"{n} {r:.2g}" for n, r in sorted(alone.items(), key=lambda v: -float(v[1])))
    notes = (f"beyond their own twins' drift, each by itself (times): {spelled}",) if alone else ()
    return Rung("twins", subject.precision, "passed", f"within rounding: {said}", (), (*notes, *found.notes), details)


def _counted(found: Drift) -> str:
    """How many tensors by themselves are what."""
    verdicts = [one["verdict"] for one in found.verdicts.values()]
    kinds = ("exact", "within rounding", "differs")
    said = [f"{verdicts.count(kind)} {kind}" for kind in kinds if kind in verdicts]
    return f"each tensor by itself: {', '.join(said)}".replace("differs", "beyond")


def _at_once(work: Callable[[W], T], items: Sequence[W]) -> list[T]:
    """Each item's answer, on as many threads as there are cores: those of a large network take minutes one by one."""
    with ThreadPoolExecutor(len(allowed_cores())) as pool:
        return list(pool.map(work, items))


def _norm(states: Array) -> Array:
    """The norm at every step."""
    found: Array = np.linalg.norm(states.reshape(len(states), -1).astype(np.float64), axis=1)
    return found


def _together(parts: Sequence[Array]) -> Array:
    found: Array = np.sqrt(np.sum(np.square(parts), axis=0))
    return found


# Relay ----------------------------------------------------------------------------------------------------


def relay(subject: Subject, trainings: Mapping[str, Training], steps: int, *, rounding: bool = False) -> Rung:
    """A third of the training in each framework, in every order: where it ends beside each unbroken training.

    `rounding`: the unbroken trainings part by more than is tight, and no further than twins do.

    The orders of a backend that stops answering are not run to their end: the others hand over among themselves.
    """
    trainings = {name: own for name, own in trainings.items() if name in subject.backends}
    backends = tuple(trainings)
    if len(backends) < 2:  # noqa: PLR2004
        return Rung("relay", subject.precision, "skipped", "there is one backend: nobody to hand over to")
    legs = len(backends)
    ends = [steps * (i + 1) // legs for i in range(legs)]
    if ends[0] == 0:
        return Rung("relay", subject.precision, "skipped", f"{steps} steps cannot be split among {legs} backends")
    positions: dict[tuple[str, ...], str] = {}
    losses: dict[tuple[str, ...], Losses] = {}
    arrived: dict[tuple[str, ...], Arrays] = {}
    for leg in range(legs):
        routes = list(permutations(backends, leg + 1))

        def work(live: LiveWorker, leg: int = leg, routes: Sequence[tuple[str, ...]] = routes) -> None:
            for route in routes:
                if route[-1] != live.name or (leg and route[:-1] not in positions):
                    continue
                before = positions[route[:-1]] if leg else subject.position("start", subject.start)
                live.ask("load", name="plain", arrays=before)
                path = live.fresh()
                first, last = ends[leg - 1] if leg else 0, ends[leg]
                said = live.ask("train", name="plain", first=first, last=last, write="last", into=str(path))
                positions[route] = str(path)
                had = losses.get(route[:-1], {})
                losses[route] = {u: [*had.get(u, []), *own] for u, own in said["losses"].items()}
                if leg == legs - 1:
                    arrived[route] = load_file(path)

        each(subject, work)
    if any(name not in subject.backends for name in backends):
        return relay(subject, trainings, steps, rounding=rounding)
    comparisons = []
    for route, end in sorted(arrived.items()):
        for backend, own in trainings.items():
            names = (" then ".join(route), f"{backend} alone")
            exact = subject.precision == "float64" and not rounding
            comparisons.append(_arrival(subject, trainings, names, end, own.end, exact=exact))
            tolerance = TOLERANCES[subject.precision]["loss"]
            if exact:
                comparisons.append(compare_losses(names, losses[route], own.losses, tolerance))
    void = still(subject, trainings)
    return judged(
        "relay", subject.precision, comparisons, void=void, details={"orders": len(arrived), "hand_overs": ends[:-1]}
    )


def _arrival(
    subject: Subject,
    trainings: Mapping[str, Training],
    names: tuple[str, str],
    end: Arrays,
    own: Arrays,
    *,
    exact: bool,
) -> Comparison:
    """The end of a relay beside an unbroken end: `exact`, to 1e-10; else as far as unbroken trainings part."""
    left, right = ({n: a for n, a in arrays.items() if not _judged_apart(subject, n)} for arrays in (end, own))
    if exact:
        return compare("relay", names, left, right, Tolerance(FLOAT64))
    bounds: dict[str, Tolerance] = {}
    for n, a in right.items():
        # At any step: two ends of a tensor of one element may lie near each other by chance.
        spread = max(
            (
                float(np.max(np.abs(one.astype(np.float64) - two), initial=0.0))
                for x, y in combinations(trainings.values(), 2)
                for one, two in ((x.end[n], y.end[n]), *_states(n, x, y))
            ),
            default=0.0,
        )
        bounds[n] = Derived(0.0, absolute=TIMES * spread + 64 * subject.unit * float(np.max(np.abs(a), initial=0.0)))
    return compare("relay", names, left, right, bounds)


def _states(name: str, x: Training, y: Training) -> list[tuple[Array, Array]]:
    """A tensor at every step, where it was kept: of what optimizers remember the end alone is."""
    plain = name.removeprefix("state/")
    return [(x.states[plain], y.states[plain])] if name.startswith("state/") and plain in x.states else []


def _judged_apart(subject: Subject, name: str) -> bool:
    parameter = name.removeprefix("state/")
    if name.startswith("optimizer/"):
        parameter = name.split("/", 3)[-1]
    return parameter in subject.apart
