"""The ratio of two speeds from interleaved rounds, with a confidence interval. NumPy alone.

A round times every contestant once, in an order drawn anew: what slows a round slows all of it, and the ratio of two
times of one round is free of it. The interval is a percentile bootstrap of the median of the rounds' log-ratios (B.
Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), and no narrower than the two order statistics
that hold a median in 99 of 100 samples whatever the distribution (W. R. Thompson, Annals of Mathematical Statistics 7,
1936): of few rounds the bootstrap alone is too narrow; of ten of equal contestants it left 1 out in 2 to 3 of 100.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
CONFIDENCE = 0.99
"""Of an interval. Two equal contestants differ by it in at most 1 of 100 comparisons of so many independent rounds."""
RESAMPLES = 2000
LEAST = 8
"""Rounds below which there is no interval at this confidence: a median lies outside seven values in 1.6 of 100 samples."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contestant takes as another."""

    value: float
    low: float
    high: float
    rounds: int

    @property
    def different(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high

    @property
    def width(self) -> float:
        """The interval's half-width, relative to the ratio."""
        return (self.high - self.low) / (2 * self.value)

    @property
    def verdict(self) -> str:
        """`slower`, `faster` or `no difference`."""
        return ("slower" if self.value > 1 else "faster") if self.different else "no difference"

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        names = ("value", "low", "high", "rounds", "verdict")
        return {name: getattr(self, name) for name in names}


def ratio(times: Sequence[float], base: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE) -> Ratio:
    """The ratio of two contestants' times, round by round: median and interval.

    Raises ValueError where the rounds are not the same or fewer than LEAST, or a time is not above 0.
    """
    own, other = np.asarray(times, float), np.asarray(base, float)
    if own.shape != other.shape or own.ndim != 1:
        raise ValueError(f"rounds of {own.shape} and {other.shape} cannot be paired")
    if len(own) < LEAST:
        raise ValueError(f"{len(own)} rounds are too few for an interval, {LEAST} are the least")
    if not (np.all(own > 0) and np.all(other > 0)):
        raise ValueError("a time is not above 0")
    logs = np.log(own / other)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(logs), (RESAMPLES, len(logs)))
    medians = np.median(logs[draws], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    ordered, edge = np.sort(logs), _edge(len(logs), tail)
    low, high = min(low, ordered[edge]), max(high, ordered[-1 - edge])
    return Ratio(float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high)), len(logs))


def _edge(count: int, tail: float) -> int:
    """How many of `count` values may lie outside an interval at each side: the median leaves the rest in `tail` of samples.

    >>> [_edge(count, 0.005) for count in (8, 11, 12, 20, 40)]
    [0, 0, 1, 3, 11]
    """
    found, below = 0, 1 / 2**count
    while below + comb(count, found + 1) / 2**count <= tail:
        found += 1
        below += comb(count, found) / 2**count
    return found


def settled(times: Sequence[float], window: int = 5, share: float = 0.1) -> int | None:
    """After how many blocks a contestant is warm: the first whose time, and each of the next, are near the later ones.

    None where it never is: the last `window` blocks still differ from their median by more than `share`.

    >>> settled([9.0, 3.0, 1.0, 1.02, 0.99, 1.01, 1.0])
    2
    >>> settled([9.0, 8.0, 7.0, 6.0, 5.0, 4.0]) is None
    True
    """
    values = np.asarray(times, float)
    if len(values) < window:
        return None
    steady = float(np.median(values[-window:]))
    near = np.abs(values - steady) <= share * steady
    # A busy machine: all of the last blocks but one will do, if none is below.
    most = near[-window:].sum() >= window - 1 and near[-1] and not (values[-window:] < (1 - share) * steady).any()
    if not most:
        return None
    first = len(values) - window
    while first > 0 and near[first - 1]:
        first -= 1
    return first
