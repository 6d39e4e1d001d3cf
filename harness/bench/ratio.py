"""The ratio of two speeds from interleaved rounds, with a confidence interval.

A round times every contestant once, in an order drawn anew: what slows a round slows all of it, and the ratio of two times
of one round is free of it. The estimate is that of J. L. Hodges and E. L. Lehmann (Annals of Mathematical Statistics 34,
1963), the median of the means of all pairs of the rounds' log-ratios, and the interval a percentile bootstrap of it (B.
Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), no narrower than what the signed-rank test leaves
(F. Wilcoxon, Biometrics Bulletin 1, 1945): of few rounds the bootstrap alone is too narrow.

Of equal contestants that test is exact, on a busy machine as well: by the order that was drawn, each log-ratio would have
been its negative as likely, whatever else went on. It asks more of the noise than a median does, which it must not make one
contestant's times lopsided more than another's, and takes about six tenths of the rounds.

All that is of one process of each: where their memory happens to lie makes them faster or slower for good. Of several
processes each has its own estimate, and the interval is Student's of these, as it is of invocations of a virtual machine in
A. Georges, D. Buytaert, L. Eeckhout, Statistically Rigorous Java Performance Evaluation (OOPSLA 2007).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import stdtrit

Array = np.ndarray[Any, np.dtype[Any]]
CONFIDENCE = 0.99
"""Of an interval. Two equal contestants differ by it in at most 1 of 100 comparisons of so many independent rounds."""
RESAMPLES = 2000
LEAST = 8
"""Rounds below which there is no interval at this confidence: of seven all are slower, or all faster, in 1.6 of 100 samples."""
FEWEST = 4
"""Processes below which there is no interval: of three it would reach almost six of their standard deviations to each side."""
AT_ONCE = 4_000_000
"""Means of pairs that are held at once."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contestant takes as another."""

    value: float
    low: float
    high: float
    rounds: int
    processes: int = 1
    """Of each contestant, which share the rounds."""

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
        names = ("value", "low", "high", "rounds", "processes", "verdict")
        return {name: getattr(self, name) for name in names}


def ratio(
    times: Sequence[float],
    base: Sequence[float],
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Ratio:
    """The ratio of two contestants' times, round by round: estimate and interval; without resamples that of the test alone.

    Raises ValueError where the rounds are not the same or fewer than LEAST, or a time is not above 0.
    """
    logs, tail = _logs(times, base), (1 - confidence) / 2
    means, edge = np.sort(_means(logs[None])[0]), _edge(len(logs), tail)
    low, high = means[edge], means[-1 - edge]
    if resamples:
        draws = np.random.default_rng(seed).integers(0, len(logs), (resamples, len(logs)))
        parts = np.array_split(draws, -(-resamples * len(means) // AT_ONCE))
        centres = np.concatenate([np.median(_means(logs[part]), axis=1) for part in parts])
        least, most = np.quantile(centres, (tail, 1 - tail))
        low, high = min(low, least), max(high, most)
    return Ratio(float(np.exp(np.median(means))), float(np.exp(low)), float(np.exp(high)), len(logs))


def ratio_of_processes(
    times: Sequence[Sequence[float]], base: Sequence[Sequence[float]], confidence: float = CONFIDENCE
) -> Ratio:
    """The ratio of two contestants' times, of several processes of each, round by round of each.

    Raises ValueError where `ratio` does, or where there are fewer than FEWEST processes.
    """
    if len(times) < FEWEST:
        raise ValueError(f"{len(times)} processes are too few for an interval, {FEWEST} are the least")
    centres = [float(np.median(_means(_logs(*pair)[None])[0])) for pair in zip(times, base, strict=True)]
    middle, count = float(np.mean(centres)), len(centres)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * float(np.std(centres, ddof=1)) / math.sqrt(count)
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half), sum(map(len, times)), count)


def _logs(times: Sequence[float], base: Sequence[float]) -> Array:
    """The log-ratio of each round."""
    own, other = np.asarray(times, float), np.asarray(base, float)
    if own.shape != other.shape or own.ndim != 1:
        raise ValueError(f"rounds of {own.shape} and {other.shape} cannot be paired")
    if len(own) < LEAST:
        raise ValueError(f"{len(own)} rounds are too few for an interval, {LEAST} are the least")
    if not (np.all(own > 0) and np.all(other > 0)):
        raise ValueError("a time is not above 0")
    found: Array = np.log(own / other)
    return found


def _means(rows: Array) -> Array:
    """The mean of every two values of each row, a value and itself too (Walsh averages)."""
    one, other = np.triu_indices(rows.shape[1])
    found: Array = (rows[:, one] + rows[:, other]) / 2
    return found


@lru_cache
def _edge(count: int, tail: float) -> int:
    """How many means of pairs of `count` values may lie outside an interval at each side: with probability `tail` more do.

    So many means of pairs lie below a centre as the ranks of the values below it sum up to, and each value is there or not as
    a coin falls.

    >>> [_edge(count, 0.005) for count in (8, 9, 12, 20, 40)]  # as in tables of the signed-rank test
    [0, 1, 7, 37, 220]
    """
    sums = np.ones(1)  # the probability of each sum of the ranks so far
    for rank in range(1, count + 1):
        sums = (np.pad(sums, (0, rank)) + np.pad(sums, (rank, 0))) / 2
    return int(np.searchsorted(np.cumsum(sums), tail, side="right")) - 1


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
