"""How far rounding may carry losses: as far as a program's own twins, which start one unit in the last place away."""

from collections.abc import Sequence

import numpy as np

from harness.twins import TIMES


def times_apart(
    losses: Sequence[float], base: Sequence[float], twins: Sequence[Sequence[float]], tight: float
) -> float:
    """How far losses lie from a program's, at the worst step, as a multiple of what is allowed; above 1 is too far.

    Allowed is at each step the share `tight` of the program's loss, or TIMES as far as the worst of its twins has been by
    then. What is no number is infinitely far.

    >>> times_apart([1.0, 2.75], [1.0, 2.0], twins=[[1.0, 2.25], [1.0, 1.875]], tight=1e-5)
    1.0
    >>> times_apart([1.0, 2.75], [1.0, 2.0], twins=[], tight=0.125)
    3.0
    """
    a, b = np.asarray(losses, float), np.asarray(base, float)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} losses cannot be held against {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    allowed = tight * np.maximum(np.abs(b), 1e-9)
    if len(twins):
        apart = np.abs(np.asarray(twins, float) - b).max(axis=0)
        # Once twins have been so far apart, they count as that far: what has converged again was no nearer on the way.
        allowed = np.maximum(allowed, TIMES * np.maximum.accumulate(np.where(np.isfinite(apart), apart, 0.0)))
    return float(np.max(np.abs(a - b) / allowed, initial=0.0))
