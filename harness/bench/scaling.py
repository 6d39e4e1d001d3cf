"""How a time grows with a size: the exponent of the power that fits best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from harness.bench.ratio import CONFIDENCE


@dataclass(frozen=True)
class Exponent:
    """`time ~ size ** value`, by least squares of their logarithms."""

    value: float
    half_width: float | None
    """Of the interval at ratio.CONFIDENCE, by Student's t; None of two points, which every line fits."""


def exponent(sizes: Sequence[float], times: Sequence[float]) -> Exponent:
    """Raises ValueError where there are fewer than two different sizes, or one is not above 0.

    >>> exponent([1, 2, 4], [3.0, 12.0, 48.0]).value
    2.0
    """
    x, y = np.asarray(sizes, float), np.asarray(times, float)
    if len(np.unique(x)) < 2 or not ((x > 0).all() and (y > 0).all()):  # noqa: PLR2004 - a line has two points
        raise ValueError("an exponent needs two different sizes, and times, above 0")
    fitted = np.polynomial.Polynomial.fit(np.log(x), np.log(y), 1, domain=[0, 1], window=[0, 1])
    half = None
    if len(x) > 2:  # noqa: PLR2004
        # The standard error of a slope, from what the line leaves (G. Casella, R. Berger, Statistical Inference, 2002, 11.3).
        left = np.log(y) - fitted(np.log(x))
        error = np.sqrt((left**2).sum() / (len(x) - 2) / ((np.log(x) - np.log(x).mean()) ** 2).sum())
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * error)
    return Exponent(round(float(fitted.coef[1]), 6), half)
