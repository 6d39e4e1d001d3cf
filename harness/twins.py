"""Rounding, measured: how far a program parts from its own twin, which differs from it by one unit in the last place.

Two backends add in another order, so they part. How far rounding may carry them no constant says: a deeper network, a maximum
that ties, an optimizer that divides by something small carry it further. But a framework also parts from *itself*, when every
parameter is moved by one unit in the last place before training. Two backends train the same while they part no further than
TIMES the worst twin has. That is asked only where two part by more than the tight tolerance (`harness.compare.TOLERANCES`).
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from harness import initial
from harness.graph import Program

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

TIMES = 3
"""How many times as far as the worst twin two backends may part."""
ECHO = 5
"""Steps of a training that are repeated before its first twin: a program that does not repeat them has no twins."""
ROUNDS = 5
"""Twins of each backend, at most; the coins that say up or down are tossed anew in each."""
HOPELESS = 100
"""Where two part so many times as far as the worst twin of two rounds, further twins are not asked."""


def moved(
    program: Program, parameters: Mapping[str, Array], number: int, after: Mapping[str, Array] | None = None
) -> Arrays:
    """The same parameters, every learned one a unit in the last place up or down, by a seeded coin.

    Zeros stay: the unit there is 5e-324, which no rounding makes, and it would put a value that is exactly 0 in every
    framework on the other side of a kink. Odd numbers go the way that the even number before them did not.

    Where all of them are 0, that would move nothing: then each is moved by a unit of what it is `after` the first step.
    """
    found = dict(parameters)
    still = not any(np.any(parameters[name]) for name, parameter in program.parameters.items() if parameter.learned)
    for name, parameter in program.parameters.items():
        if parameter.learned:
            value = parameters[name]
            coin = initial.stream(program.seed, "twin", number // 2, name).random(value.shape) < 0.5  # noqa: PLR2004 - a fair coin
            up = coin if number % 2 == 0 else ~coin
            far = np.asarray(np.inf, value.dtype)
            near = np.where(up, np.nextafter(value, far), np.nextafter(value, -far))
            found[name] = np.where(value == 0, value, near)
            if still and after is not None:
                found[name] = (np.where(up, 1, -1) * np.spacing(np.abs(after[name]))).astype(value.dtype)
    return found


@dataclass
class Yardstick:
    """How far twins have parted from their training, the worst of all, by kind of value and tensor, step by step.

    A distance is the largest |difference| of a tensor's elements. Once twins have been so far apart they count as that far
    for the rest of the training: what has converged again was no nearer on the way.
    """

    count: int = 0
    """Twins whose distances are in it."""
    worst: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)
    """By kind and name: (step from 1, or 0 outside training; the largest distance up to it), in the order of the steps."""

    def add(self, distances: Mapping[str, Array]) -> None:
        """A twin's own distances, as its worker writes them: `kind/name`, and for each kind that has any its `steps/kind`."""
        self.count += 1
        for full, values in distances.items():
            kind, _, name = full.partition("/")
            if kind == "steps":
                continue
            steps = distances[f"steps/{kind}"]
            own = dict(
                zip(
                    steps.tolist(),
                    np.maximum.accumulate(np.where(np.isfinite(values), values, 0.0)).tolist(),
                    strict=True,
                )
            )
            have = dict(self.worst.get((kind, name), []))
            merged = sorted(own.keys() | have.keys())
            together = np.maximum.accumulate([max(own.get(step, 0.0), have.get(step, 0.0)) for step in merged])
            self.worst[kind, name] = list(zip(merged, together.tolist(), strict=True))

    def read(self, folder: Path) -> bool:
        """Add what the twin in a worker's folder wrote; whether it had come to its end, and that can be read."""
        try:
            if json.loads((folder / "result.json").read_text(encoding="utf-8")).get("stopped_at") is not None:
                return False
            distances = load_file(folder / "distances.safetensors")
        except (OSError, ValueError, SafetensorError):
            return False
        self.add(distances)
        return True

    def at(self, kind: str, name: str, step: int | None) -> float:
        """The worst twin's distance at a step, counted from 1, or at the last one before it that is known; 0 without any."""
        own = self.worst.get((kind, name), [])
        last = bisect_right(own, (step or 0, math.inf))
        return own[last - 1][1] if last else 0.0
