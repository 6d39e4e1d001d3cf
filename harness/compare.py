"""Are two trainings the same? Differences measured at every step, judged against a stated tolerance.

Measuring returns records; `Comparison.require` raises. Same names first, then shapes, then values; NaN never passes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.precision import PRECISIONS

Array = np.ndarray[Any, np.dtype[Any]]


class Mismatch(HarnessError):  # noqa: N818 - the name that its readers look for
    """Two trainings differ: what, where, by how much, and how much was allowed."""


@dataclass(frozen=True)
class Tolerance:
    """How far two values may lie apart: `relative` times the tensor's largest magnitude, or times `floor` where that is larger."""

    relative: float
    floor: float = 1.0

    def allowed(self, a: Array, b: Array) -> float:
        """The largest difference that passes for these tensors."""
        magnitude = max((float(np.max(np.abs(x))) for x in (a, b) if x.size), default=0.0)
        return self.relative * max(magnitude, self.floor)


@dataclass(frozen=True)
class Derived(Tolerance):
    """A tolerance that was derived for one tensor: so much and no more, whatever its values."""

    absolute: float = 0.0

    def allowed(self, a: Array, b: Array) -> float:  # noqa: ARG002 - as above
        """The derived bound."""
        return self.absolute


@dataclass(frozen=True)
class Measured(Tolerance):
    """A tight tolerance, or so many times what the worst twin parted by, where that is more (see harness.twins)."""

    twin: float = 0.0
    """How far the worst twin was from its training, at this step and tensor."""
    times: float = 1.0

    def tight(self, a: Array, b: Array) -> float:
        """What is allowed without asking twins."""
        return super().allowed(a, b)

    def allowed(self, a: Array, b: Array) -> float:
        """The larger of the two."""
        return max(self.tight(a, b), self.times * self.twin)


FLOAT64 = 1e-10
BFLOAT16, TF32 = PRECISIONS["bfloat16"].roundoff, PRECISIONS["tf32"].roundoff
TOLERANCES: dict[str, dict[str, Tolerance]] = {
    # The proof: nothing semantic hides below this; agreement near 1e-15 is what is measured.
    "float64": {what: Tolerance(FLOAT64) for what in ("forward", "gradients", "loss", "state", "outputs")},
    # The practice: losses at every step relative to themselves; tensors drift further than losses do.
    "float32": {
        "forward": Tolerance(1e-5),
        "gradients": Tolerance(1e-4),
        "loss": Tolerance(1e-5, floor=0.0),
        "state": Tolerance(1e-2),
        "outputs": Tolerance(1e-2),
    },
    # In units of bfloat16's roundoff. The reference rounds the same products, so what is left before training is values
    # that lay so near the middle between two bfloat16 numbers that the order of a sum decided: 2 units each at most. In
    # a loss, a mean over examples, most of it averages out.
    "bfloat16": {
        "forward": Tolerance(4 * BFLOAT16),
        "gradients": Tolerance(8 * BFLOAT16, floor=1e-2),
        "loss": Tolerance(BFLOAT16 / 2, floor=0.0),
        "state": Tolerance(32 * BFLOAT16),
        "outputs": Tolerance(32 * BFLOAT16),
    },
    # GPUs alone round to it, each in its own way, and the reference does not. Measured on the bundled specs, on one H200:
    # outputs up to 1.6 units apart before training, a first gradient up to 0.1 of its tensor's largest value, behind ReLUs and
    # a maximum that rounding puts on the other side.
    "tf32": {
        "forward": Tolerance(4 * TF32),
        "gradients": Tolerance(256 * TF32, floor=1e-2),
        "loss": Tolerance(4 * TF32, floor=0.0),
        "state": Tolerance(64 * TF32),
        "outputs": Tolerance(64 * TF32),
    },
}


@dataclass(frozen=True)
class Difference:
    """The largest difference between two tensors of one name."""

    name: str
    step: int | None
    """Counted from 1; None outside training."""
    difference: float
    """The largest |a - b|; NaN where a value is NaN or infinite in either."""
    allowed: float
    index: tuple[int, ...] = ()
    a: float = 0.0
    b: float = 0.0
    twin: float | None = None
    """The worst twin's distance, where more than the tight tolerance was needed and twins were asked."""

    @property
    def times(self) -> float | None:
        """How many times as far as the worst twin; None where that was not the question."""
        if self.twin is None or not np.isfinite(self.difference):
            return None
        return self.difference / self.twin if self.twin else float("inf")

    @property
    def ratio(self) -> float:
        """The difference as a share of what is allowed; infinite where it is no number."""
        if not np.isfinite(self.difference):
            return float("inf")
        return self.difference / self.allowed if self.allowed else (0.0 if self.difference == 0 else float("inf"))


@dataclass(frozen=True)
class Comparison:
    """One kind of value of two trainings, judged."""

    what: str
    """`forward`, `gradients`, `loss`, `state` or `outputs`."""
    a: str
    b: str
    worst: Difference | None
    """The tensor that lies furthest from what is allowed; None where there was nothing to compare."""
    compared: int
    """How many tensors."""
    missing: tuple[str, ...] = ()
    """Names or shapes that only one of them has."""

    @property
    def same(self) -> bool:
        """Whether everything is there and within its tolerance; nothing compared is not the same."""
        return not self.missing and self.compared > 0 and self.worst is not None and self.worst.ratio <= 1

    @property
    def rounded(self) -> bool:
        """Whether they are the same up to rounding alone: further apart than the tight tolerance, and no further than twins."""
        return self.same and self.worst is not None and self.worst.twin is not None

    def require(self) -> None:
        """Raise Mismatch unless they are the same."""
        if not self.same:
            raise Mismatch(str(self))

    def __str__(self) -> str:
        head = f"{self.what}: {self.a} and {self.b}"
        if self.missing:
            return f"{head} do not have the same tensors: {', '.join(self.missing[:5])}"
        if self.worst is None:
            return f"{head}: there was nothing to compare"
        w = self.worst
        where = f"step {w.step}, " if w.step is not None else ""
        at = f"{list(w.index)}" if w.index else ""
        verdict = "agree" if self.same else "differ"
        beside = "" if w.times is None else f", {w.times:.2g} times the worst twin"
        return f"{head} {verdict}: {where}{w.name}{at}: {w.a!r} and {w.b!r}, {w.difference:.3g} apart{beside}, {w.allowed:.3g} allowed"

    def record(self) -> dict[str, Any]:
        """The comparison as JSON."""
        w = self.worst
        return {
            "what": self.what, "a": self.a, "b": self.b, "same": self.same, "rounded": self.rounded, "compared": self.compared,
            "missing": list(self.missing),
            "worst": None if w is None else {
                "name": w.name, "step": w.step, "index": list(w.index), "difference": w.difference,
                "allowed": w.allowed, "a": w.a, "b": w.b, "twin": w.twin, "times": w.times,
            },
        }  # fmt: skip


def measure(name: str, a: Array, b: Array, tolerance: Tolerance, step: int | None = None) -> Difference:
    """The largest difference of two tensors of one shape."""
    if a.shape != b.shape:
        raise ValueError(f"{name}: shapes {a.shape} and {b.shape}")
    if a.size == 0:
        return Difference(name, step, 0.0, tolerance.allowed(a, b))
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        return Difference(name, step, float("nan"), tolerance.relative, index, float(x[index]), float(y[index]))
    gap = np.abs(x - y)
    index = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
    apart = float(gap[index])
    asked = isinstance(tolerance, Measured) and apart > tolerance.tight(x, y)
    twin = tolerance.twin if asked and isinstance(tolerance, Measured) else None
    return Difference(name, step, apart, tolerance.allowed(x, y), index, float(x[index]), float(y[index]), twin)


Pair = tuple[str, Array, Array, Tolerance, int | None]
"""What `measure` takes."""
AT_ONCE = 2**20
"""Elements: so many are looked at as one array. Of small tensors NumPy's calls take longer than what they do."""


def _worst_of(pairs: Sequence[Pair]) -> Difference | None:
    """The one that lies furthest from what is allowed, the first of several."""
    at = _furthest(pairs)
    return _worst([measure(*pair) for pair in (pairs if at is None else [pairs[at]])])


def _furthest(pairs: Sequence[Pair]) -> int | None:
    """Where it is, found by looking at all of them as one array; None where they have to be looked at one by one."""
    plain = all(
        type(p[3]) is Tolerance and p[1].size and {p[1].dtype.char, p[2].dtype.char} <= {"f", "d"} for p in pairs
    )
    if not plain or len(pairs) < 2 or sum(p[1].size for p in pairs) > AT_ONCE:  # noqa: PLR2004
        return None
    sides = ([p[1] for p in pairs], [p[2] for p in pairs])
    x, y = (np.concatenate([np.ravel(array) for array in side]).astype(np.float64) for side in sides)
    starts = np.cumsum([0, *(p[1].size for p in pairs[:-1])])
    with np.errstate(all="ignore"):
        gaps = np.maximum.reduceat(np.abs(x - y), starts)
        if not np.isfinite(gaps).all():
            return None
        sizes = np.maximum(*(np.maximum.reduceat(np.abs(side), starts) for side in (x, y)))
        allowed = np.array([p[3].relative for p in pairs]) * np.maximum(sizes, [p[3].floor for p in pairs])
        return int(np.argmax(np.where(gaps == 0, 0.0, gaps / allowed)))


def compare(
    what: str, names: tuple[str, str], a: Mapping[str, Array], b: Mapping[str, Array],
    tolerance: Tolerance | Mapping[str, Tolerance], step: int | None = None,
) -> Comparison:  # fmt: skip
    """Two sets of tensors: the same names and shapes first, then values; one tolerance, or one a name."""
    missing = [f"only {names[0]} has {name}" for name in sorted(a.keys() - b.keys())]
    missing += [f"only {names[1]} has {name}" for name in sorted(b.keys() - a.keys())]
    pairs: list[Pair] = []
    for name in sorted(a.keys() & b.keys()):
        if a[name].shape != b[name].shape:
            missing.append(f"{name} has shape {a[name].shape} and {b[name].shape}")
        else:
            own = tolerance if isinstance(tolerance, Tolerance) else tolerance[name]
            pairs.append((name, a[name], b[name], own, step))
    return Comparison(what, *names, _worst_of(pairs), len(pairs), tuple(missing))


def compare_losses(
    names: tuple[str, str], a: Mapping[str, list[float]], b: Mapping[str, list[float]], tolerance: "Tolerance | Callable[[str, int], Tolerance]",
    start: int = 0,
) -> Comparison:  # fmt: skip
    """The losses of every update at every step after `start`; different numbers of steps are a mismatch.

    `tolerance`: one for all, or that of an update at a step, counted from 1.
    """
    missing = [f"only one has losses of '{name}'" for name in sorted(a.keys() ^ b.keys())]
    pairs: list[Pair] = []
    for name in sorted(a.keys() & b.keys()):
        if len(a[name]) != len(b[name]):
            missing.append(f"'{name}' has {len(a[name])} and {len(b[name])} steps")
        for step, (x, y) in enumerate(zip(a[name], b[name], strict=False), start=start + 1):
            own = tolerance if isinstance(tolerance, Tolerance) else tolerance(name, step)
            pairs.append((name, np.array(x), np.array(y), own, step))
    return Comparison("loss", *names, _worst_of(pairs), len(pairs), tuple(missing))


def join(comparisons: Iterable[Comparison]) -> Comparison:
    """The same comparison over several steps as one."""
    parts = list(comparisons)
    first = parts[0]
    worst = _worst([part.worst for part in parts if part.worst is not None])
    missing = tuple(dict.fromkeys(m for part in parts for m in part.missing))
    return Comparison(first.what, first.a, first.b, worst, sum(part.compared for part in parts), missing)


def _worst(differences: list[Difference]) -> Difference | None:
    """Those for which twins were asked come first: they are what a reader wants to know of, and all that differs is among them."""
    return max(differences, key=lambda d: (d.twin is not None or d.ratio > 1, d.ratio), default=None)
