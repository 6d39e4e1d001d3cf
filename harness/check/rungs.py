"""Rungs one to three, judged from evidence alone: the same judgement whether the programs are honest or not."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from harness.backend import Array, Arrays
from harness.check import evidence as said
from harness.check.evidence import Evidence, Look, Slope, gradient_of
from harness.check.record import Rung, judged
from harness.check.subject import Subject, outputs, part
from harness.compare import Comparison, Derived, compare

RULE_ROOM = 64
"""Units in the last place of a tensor's largest value that five updates may be off: roots, quotients, a norm."""

KINKS, CANCELLED = 5, 3e-8
"""How much of the disagreement between widths a slope may be off, and what the difference of two losses loses."""
NULL_ROOM = 1000
"""Units in the last place of its update's largest gradient that a gradient may be whose true value is zero."""


def forward(
    subject: Subject, evidence: Mapping[str, Evidence], allowed: Mapping[str, Derived], focus: str | None = None
) -> Rung:
    """The batch, every node's value, in evaluation and in training, losses and new statistics.

    Against the reference and pairwise; `focus`: only what concerns that backend.
    """
    evaluated = subject.known("evaluated", lambda: said.evaluated(subject))
    batch = subject.known("batched", lambda: said.batched(subject))
    comparisons = []
    both = _twice(allowed)
    for backend, own in evidence.items():
        if focus not in (None, backend):
            continue
        names = ("reference", backend)
        exact = Derived(
            0.0, absolute=2 * subject.unit * max(float(np.max(np.abs(a), initial=0.0)) for a in batch.values())
        )
        comparisons.append(compare("data", names, batch, own.look.batch, exact, step=1))
        wanted, found = _judged(subject, backend, evaluated), _judged(subject, backend, own.look.evaluated)
        comparisons.append(compare("forward", names, wanted, found, _below(allowed, "evaluation:", wanted)))
        expected = _judged(subject, backend, said.stepped(subject, own.look.seen))
        mine = {n: own.look.seen[n] for n in own.look.seen if _is_forward(subject, n)}
        mine = _judged(subject, backend, mine)
        comparisons.append(compare("forward", names, expected, mine, _below(allowed, "step:", expected), step=1))
    for a, b in combinations(evidence, 2):
        if focus in (None, a, b):
            x, y = (_forward(subject, evidence[name].look) for name in (a, b))
            for name in (a, b):
                x, y = _judged(subject, name, x), _judged(subject, name, y)
            comparisons.append(compare("forward", (a, b), x, y, both))
    if focus:
        return judged("forward", subject.precision, comparisons)
    notes = [f"{name}'s program is not as emitted: of its nodes the outputs alone are held against the others'" for name in sorted(subject.rewritten)]  # fmt: skip
    void = _still(
        evidence, allowed, lambda n: n.startswith("evaluation:") or _is_forward(subject, n.removeprefix("step:"))
    )
    void += [f"{name} can be anything without a trace in the output" for name in said.unmoved(subject)]
    return judged("forward", subject.precision, comparisons, void=void, notes=notes)


def gradients(
    subject: Subject, evidence: Mapping[str, Evidence], allowed: Mapping[str, Derived], slopes: Mapping[str, Slope],
    focus: str | None = None,
) -> Rung:  # fmt: skip
    """Every gradient, of parameters and inputs: pairwise, and against central differences of the reference.

    `focus`: only the training step's own gradients, of the pairs that concern that backend.
    """
    comparisons = []
    for a, b in combinations(evidence, 2):
        if focus in (None, a, b):
            x, y = (_gradients(subject, evidence[name].look, whole=focus is None) for name in (a, b))
            comparisons.append(compare("gradients", (a, b), x, y, _twice(allowed), step=1))
    if focus:
        return judged("gradients", subject.precision, comparisons)
    for backend, own in evidence.items():
        if own.moved:
            comparisons.append(along(subject, backend, own, slopes))
        # The training step's own gradients of its first update are those at the start.
        first = subject.program.updates[0].name
        taken = {n: a for n, a in part(own.look.seen, "gradients/").items() if n.startswith(f"{first}/")}
        at = {n: own.look.gradients[n] for n in taken if n in own.look.gradients}
        bounds = {n: allowed[f"at:{n}"] for n in at if f"at:{n}" in allowed}
        comparisons.append(compare("gradients", (f"{backend}'s step", backend), taken, at, bounds, step=1))
    void, notes = _still(evidence, allowed, lambda n: _flows(subject, n)), []
    if subject.effort.directions is not None:
        # Each ReLU of a deep network that rounding puts on the other side of 0 has all of its gradient to give or to take.
        wanted = sum(_flows(subject, n) for own in evidence.values() for n in own.look.every())
        drowned, void = void, [] if len(void) < wanted else void
        notes += [f"{len(drowned)} of {wanted} gradients lie within rounding: that they agree says nothing"] if drowned and not void else []  # fmt: skip
    void += [
        f"the gradient {n} of {backend} is zero everywhere"
        for backend, own in evidence.items()
        for n, gradient in own.look.gradients.items()
        if _flows(subject, f"at:{n}") and not np.any(gradient)
    ]
    comparisons += _null(subject, evidence)
    notes += [f"true gradient zero: {name} ({why})" for name, why in _apart(subject).items()]
    return judged("gradients", subject.precision, comparisons, void=void, notes=notes)


def along(subject: Subject, backend: str, own: Evidence, slopes: Mapping[str, Slope]) -> Comparison:
    """A backend's gradients on moved inputs along random directions against the reference's slopes there."""
    expected, found, bounds = {}, {}, {}
    gradients = own.moved["an input"].gradients

    def slope_of(gradients: Arrays, directions: Arrays) -> float:
        return sum(float(np.sum(gradients[name].astype(np.float64) * d)) for name, d in directions.items())

    def norm(arrays: Iterable[Array]) -> float:
        return math.hypot(*(float(np.linalg.norm(array.astype(np.float64))) for array in arrays))

    for name, slope in slopes.items():
        directions = dict(slope.directions)
        expected[name] = np.array(slope.slope)
        found[name] = np.array(slope_of(gradients, directions))
        at = slope_of(own.look.gradients, directions)
        moves = [abs(slope_of(t.gradients, directions) - at) for t in own.twins]
        size = norm(gradients[n] for n in directions) * norm(directions.values())
        numbers = sum(d.size for d in directions.values())
        bound = said.FLOOR * subject.unit * size + said.ROOM * max(moves, default=0.0)
        # Roundings to bfloat16 fall anywhere: their sum along a direction is that of a random walk.
        bound += said.FLOOR * subject.rounding("gradients/") * size / math.sqrt(numbers)
        bounds[name] = Derived(0.0, absolute=bound + KINKS * slope.error + CANCELLED * max(1.0, abs(slope.slope)))
    return compare("gradients", ("reference", backend), expected, found, bounds, step=1)


def optimizer(subject: Subject, evidence: Mapping[str, Evidence], focus: str | None = None) -> Rung:
    """Parameters and optimizer state after the first and the fifth step, against the rules fed with the same gradients."""
    comparisons = []
    void: list[str] = []
    for backend, own in evidence.items():
        if focus not in (None, backend):
            continue
        expected = said.optimized(subject, own.steps)
        for t in sorted({0, len(expected) - 1}):
            mine = {n: own.steps[t][n] for n in own.steps[t] if n in expected[t] or n.startswith("optimizer/")}
            bounds = {
                n: Derived(0.0, absolute=RULE_ROOM * subject.unit * float(np.max(np.abs(a), initial=0.0)))
                if not n.endswith("/count")
                else Derived(0.0)
                for n, a in expected[t].items()
            }
            comparisons.append(compare("optimizer", ("reference", backend), expected[t], mine, bounds, step=t + 1))
        last = own.steps[-1]
        void += [
            f"in {backend} {len(own.steps)} steps did not move {n}"
            for n, p in subject.program.parameters.items()
            if p.learned and n not in subject.apart and np.array_equal(last[f"state/{n}"], subject.start[f"state/{n}"])
        ]
    return judged("optimizer", subject.precision, comparisons, void=void)


def _twice(allowed: Mapping[str, Derived]) -> dict[str, Derived]:
    """What two backends may lie apart that may each be so far from the truth."""
    return {n: Derived(0.0, absolute=2 * bound.absolute) for n, bound in allowed.items()}


def _judged(subject: Subject, backend: str, values: Arrays) -> Arrays:
    """What is held against others: every node, and of a program that somebody has changed, what networks return."""
    if backend not in subject.rewritten:
        return values
    nodes = {n for n in values if n.removeprefix("step:").startswith("values/") or ")." in n}
    kept = set(outputs(subject, nodes))
    return {n: a for n, a in values.items() if n not in nodes or n in kept}


def _is_forward(subject: Subject, name: str) -> bool:
    if name.startswith(("values/", "loss/")):
        return True
    statistic = name.removeprefix("state/")
    return name.startswith("state/") and not subject.program.parameters[statistic].learned


def _forward(subject: Subject, look: Look) -> Arrays:
    """What pairs compare: a later update sees parameters that each backend moved by itself, so its values come later."""
    first = subject.program.updates[0].name
    kept = {n: a for n, a in look.seen.items() if _is_forward(subject, n)}
    kept = {n: a for n, a in kept.items() if not n.startswith("values/") or n.startswith(f"values/{first}/")}
    return {f"evaluation:{n}": a for n, a in look.evaluated.items()} | {f"step:{n}": a for n, a in kept.items()}


def _gradients(subject: Subject, look: Look, *, whole: bool) -> Arrays:
    """The first update's, which alone are taken where all backends still stand at the start; `whole`: the others there too."""
    first = subject.program.updates[0].name
    own = {n: a for n, a in look.seen.items() if n.startswith(f"gradients/{first}/")}
    found = {f"step:{n}": a for n, a in own.items()}
    return found | {f"at:{n}": a for n, a in look.gradients.items()} if whole else found


def _below(allowed: Mapping[str, Derived], prefix: str, names: Mapping[str, object]) -> dict[str, Derived]:
    return {n: allowed.get(f"{prefix}{n}", Derived(0.0)) for n in names}


def _still(evidence: Mapping[str, Evidence], allowed: Mapping[str, Derived], wanted: object) -> list[str]:
    """Tensors that stay where they are whatever parameters and inputs do: comparing them says nothing."""
    assert callable(wanted)  # noqa: S101
    found: list[str] = []
    for backend, own in evidence.items():
        if not own.moved:
            continue
        base = own.look.every()
        for n, value in base.items():
            if not wanted(n):
                continue
            moves = [
                np.max(np.abs(other.every()[n].astype(np.float64) - value), initial=0.0) for other in own.moved.values()
            ]
            if not max(moves) > allowed[n].absolute:
                found.append(f"{n.partition(':')[2]} of {backend} does not move when parameters and inputs do")
    return found


def _flows(subject: Subject, name: str) -> bool:
    """Whether a tensor is a gradient that is not zero in truth: of a parameter, or of a field that reaches the loss."""
    wanted = gradient_of(name)
    if wanted is None or not wanted.startswith("@"):
        return wanted is not None and wanted not in subject.apart
    update = next(u for u in subject.program.updates if u.name == name.partition(":")[2].partition("/")[0])
    return wanted.removeprefix("@") in said.differentiable(subject, update)


def _apart(subject: Subject) -> dict[str, str]:
    return {n: why for n, why in subject.apart.items() if subject.program.parameters[n].learned}


def _null(subject: Subject, evidence: Mapping[str, Evidence]) -> list[Comparison]:
    """Gradients that are zero in truth must be as small as rounding beside their layer's others: that hides nothing."""
    found = []
    for backend, own in evidence.items() if _apart(subject) else ():
        zero: Arrays = {}
        mine: Arrays = {}
        bounds: dict[str, Derived] = {}
        for full, gradient in own.look.gradients.items():
            if (name := full.partition("/")[2]) in subject.apart:
                update = full.partition("/")[0]
                beside = [
                    a
                    for n, a in own.look.gradients.items()
                    if n.partition("/")[0] == update and n != full and "@" not in n
                ]
                size = max((float(np.max(np.abs(a), initial=0.0)) for a in beside), default=0.0)
                zero[name], mine[name] = np.zeros_like(gradient), gradient
                bounds[name] = Derived(0.0, absolute=(NULL_ROOM * subject.unit + subject.rounding("gradients/")) * size)
        found.append(compare("gradients", ("zero", backend), zero, mine, bounds, step=1))
    return found
