"""Rounding, measured: how far a program parts from its own twin, which differs from it by one unit in the last place.

Two backends add in another order, so they part. How far rounding may carry them no constant says: a deeper network, a maximum
that ties, an optimizer that divides by something small carry it further. But a framework also parts from *itself*, when every
parameter is moved by one unit in the last place before training. Two backends train the same while they part no further than
TIMES the worst twin has. That is asked only where two part by more than the tight tolerance (`harness.compare.TOLERANCES`).

What no parameter moves is the same in every such twin, rounding in one framework and 0 in another: the difference of pixels
that are alike, which a normalisation divides by their spread; the gradient of a bias by the mean absolute error, where as many
examples lie above as below, of which an optimizer that divides by the gradient's own size makes a step. So where twins do not
explain what parts, the last ones are *shaken*. By SHAKEN_UNITS each, their data and every layer's value (harness.rounded) are moved
too, the gradients of their first steps are off, and their parameters are moved again after every step, as every step of another
framework is rounded anew. Rounding that an optimizer multiplies (Adam with beta2 0) is now and then far larger than it mostly is: of such more are asked.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from harness import initial, reference
from harness.backend import BACKENDS, SHAKEN_UNITS, beside
from harness.graph import Program

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

TIMES = 3
"""How many times as far as the worst twin two backends may part."""
ECHO = 5
"""Steps of a training that are repeated before its first twin: a program that does not repeat them has no twins."""
ROUNDS = 5
"""Twins of each backend, at most; the coins that say up or down are tossed anew in each."""
SHAKES, NEAR = 10, 10
"""Shaken twins of each backend after these, at most, while two backends part up to NEAR times as far as the worst of all."""
FIRST_STEPS, MOST_STEPS = 5, 20
"""Steps of a shaken twin, at most, whose gradients are off by rounding; in float64, of a small network."""
ROOM, LEAST_STEPS = 100_000_000, 2
"""Bytes that these moves and gradients may take: of a large network fewer steps are moved, but not fewer than so many."""
ZERO_ROOM, ZERO_SHARE = 1000, 1e-5
"""Units in the last place of its update's largest gradient that a gradient may be whose true value is zero, and the share of it."""
LEAST_SHARE = 1e-12
"""A gradient of this share of the largest is rounding. In float32 as many units are a share that may be a signal."""
HOPELESS = 100
"""Where two part so many times as far as the worst twin of two rounds, no further plain ones are asked."""


def moved(
    program: Program, parameters: Mapping[str, Array], number: int, after: Mapping[str, Array] | None = None, units: int = 1
) -> Arrays:  # fmt: skip
    """The same parameters, every learned one so many units in the last place up or down, by a seeded coin.

    Zeros stay: the unit there is 5e-324, which no rounding makes, and it would put a value that is exactly 0 in every
    framework on the other side of a kink. Odd numbers go the way that the even number before them did not.

    Where all of them are 0, that would move nothing: then each is moved by a unit of what it is `after` the first step.
    """
    found = dict(parameters)
    still = not any(np.any(parameters[name]) for name, parameter in program.parameters.items() if parameter.learned)
    for name, parameter in program.parameters.items():
        if parameter.learned:
            value = parameters[name]
            coin = _coin(program.seed, "twin", number // 2, name, value.shape)
            up = coin if number % 2 == 0 else ~coin
            found[name] = beside(value, up, units)
            if still and after is not None:
                found[name] = (np.where(up, 1, -1) * np.spacing(np.abs(after[name]))).astype(value.dtype)
    return found


def nudged(inputs: Mapping[str, Array], number: int) -> Arrays:
    """The same data, every number of a float field SHAKEN_UNITS up or down; zeros stay, as in `moved`.

    Equal numbers are moved alike: a tie stays a tie, whose winner is a convention and no rounding.
    """
    return {
        name: beside(value, _alike(value, number), SHAKEN_UNITS) if value.dtype.kind == "f" else value
        for name, value in inputs.items()
    }


def _alike(value: Array, number: int) -> Array:
    """A coin for each value, by its bits: those of a SplitMix64 generator (Steele, Lea and Flood 2014) that starts there."""
    wide = np.ascontiguousarray(value)
    bits = wide.view(np.dtype(f"u{value.dtype.itemsize}")).astype(np.uint64) + np.uint64(number)
    bits = bits * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(bits >> np.uint64(63) == 1)


def _coin(seed: int, purpose: str, number: int, name: str, shape: tuple[int, ...]) -> Array:
    return np.asarray(initial.stream(seed, purpose, number, name).random(shape) < 0.5)  # noqa: PLR2004 - a fair coin


def rounding_moves(
    program: Program, slots: Mapping[str, Array], gradients: Sequence[Sequence[Mapping[str, Array]]],
    start: int, unit: float, number: int,
) -> Arrays:  # fmt: skip
    """How far the updates of each of these steps move otherwise where their gradients are off by rounding, away from zero.

    A gradient is off by SHAKEN_UNITS of the largest of its tensor; in the first step, before which all backends are in the same
    position, also as far as their own lie apart, where that is ZERO_ROOM units of the update's largest or less (ZERO_SHARE of it,
    if that is less). What lies further apart is a difference, and no rounding. A tensor of which all is as small as that is off
    by units of the update's largest. What is exactly 0 stays: nothing reaches it. But where it is not 0 in another backend or in
    the next step, and as small as rounding, it is a sum that cancels, and is off as well.

    In float64, where ZERO_ROOM units are a share that is no signal (LEAST_SHARE), every gradient is off by units of the update's
    largest so far (of the backend in which that is least): what a saturated gate lets through is made of what its value lacks of
    1, whose rounding does not shrink with it. And a tensor that is ZERO_ROOM units of the largest or less in every backend is, in
    later steps, too, as far off as they lie apart.

    By the rules, in float64: `0/state/name` and `0/optimizer/update/slot/name` of the step `start`, then those of the next.
    `gradients`: by step, from `start` on, those of every backend, as `update/name`, all where the step begins: what a later
    update of the step finds, the earlier ones have moved, but what is rounding in one place is in the other. `slots` before the
    first step, as `update/slot/name`.
    """
    found: Arrays = {}
    for update in program.updates:
        names = list(reference.moved(program, update))
        # Where parameters are does not matter to how far they are moved otherwise.
        here = {n: np.zeros(program.parameters[n].shape) for n in names}
        kept = {
            f"{s}/{n}": slots[f"{update.name}/{s}/{n}"].astype(np.float64)
            for s in update.optimizer.remembers
            for n in names
        }
        said = [{n: [g[f"{update.name}/{n}"] for g in own] for n in names} for own in gradients]
        largest = 0.0
        for i, own in enumerate(said):
            if not all(np.isfinite(g).all() for values in own.values() for g in values):
                break
            # The least of the backends': a faulty one makes no room for itself.
            each = [
                max((float(np.abs(g).max(initial=0.0)) for g in one), default=0.0)
                for one in zip(*own.values(), strict=True)
            ]
            largest = max(min(each, default=0.0), largest) if _fine(unit) else 0.0
            base, off = _off_by_rounding(program, own, said[i + 1 : i + 2], unit, largest, (number, i))
            exact, exact_slots = reference.apply_update(update, here, base, kept, start + i)
            other, other_slots = reference.apply_update(update, here, off, kept, start + i)
            for name in names:
                key, move = f"{i}/state/{name}", other[name] - exact[name]
                # Where several updates move one, by both, the way of the first: they are rounded each by itself.
                before = found.get(key, np.zeros_like(move))
                found[key] = np.where(before == 0, np.sign(move), np.sign(before)) * (np.abs(before) + np.abs(move))
            found |= {f"{i}/optimizer/{update.name}/{n}": other_slots[n] - value for n, value in exact_slots.items()}
            kept = exact_slots
    return found


def _off_by_rounding(
    program: Program, said: Mapping[str, Sequence[Array]], later: Sequence[Mapping[str, Sequence[Array]]], unit: float,
    so_far: float, which: tuple[int, int],
) -> tuple[Arrays, Arrays]:  # fmt: skip
    """One backend's gradients of a step, and the same off by rounding. `which`: the twin's number and the step's.

    `so_far`: the update's largest up to now, where gradients are off by units of that.
    """
    largest = max((float(np.abs(g).max(initial=0.0)) for values in said.values() for g in values), default=0.0)
    rounding = min(ZERO_ROOM * unit, ZERO_SHARE) * largest
    base, off = {}, {}
    for name, each in said.items():
        values = np.stack(each).astype(np.float64)
        base[name] = values[0]
        size = float(np.abs(values).max(initial=0.0))
        far = SHAKEN_UNITS * unit * max(size if size > rounding else largest, so_far)
        # Later, they lie apart for the sake of what the steps before have moved otherwise, unless all of it is rounding.
        noise = size <= rounding and _fine(unit)
        apart = np.ptp(values, axis=0) if which[1] == 0 or noise else np.zeros(values.shape[1:])
        apart = np.where(apart <= rounding, apart, 0.0)
        # 0 in one backend, and more than rounding in another: that is a difference, too.
        reached = np.all(values != 0, axis=0) | (np.any(values != 0, axis=0) & (np.abs(values).max(axis=0) <= rounding))
        for next_one in later:
            after = np.abs(np.stack(next_one[name])).max(axis=0)
            reached |= (after != 0) & (after <= rounding)
        coin = np.where(_coin(program.seed, "moves", which[0], f"{name}/{which[1]}", values.shape[1:]), 1, -1)
        away = np.where(values[0] == 0, coin, np.sign(values[0]))
        off[name] = values[0] + np.where(reached, np.maximum(far, apart), 0.0) * away
    return base, off


def _fine(unit: float) -> bool:
    """Whether ZERO_ROOM units are rounding whatever they are of, as in float64."""
    return ZERO_ROOM * unit <= LEAST_SHARE


def moved_steps(program: Program, unit: float) -> int:
    """Steps of a program's shaken twin, at most, whose gradients are off by rounding."""
    # In float64: how far parameters and slots move, and the gradients of all backends that this is made of.
    size = sum(
        8 * int(np.prod(program.parameters[name].shape)) * (1 + len(update.optimizer.remembers) + len(BACKENDS))
        for update in program.updates
        for name in reference.moved(program, update)
    )
    return max(LEAST_STEPS, min(MOST_STEPS if _fine(unit) else FIRST_STEPS, ROOM // max(size, 1)))


@dataclass
class Yardstick:
    """How far twins have parted from their training, the worst of all, by kind of value and tensor, step by step.

    A distance is the largest |difference| of a tensor's elements. Once twins have been so far apart they count as that far
    for the rest of the training: what has converged again was no nearer on the way.
    """

    count: int = 0
    """Twins whose distances are in it."""
    shaken: int = 0
    """How many of these are shaken ones."""
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

    def read(self, folder: Path, *, shaken: bool = False) -> bool:
        """Add what the twin in a worker's folder wrote; whether it had come to its end, and that can be read."""
        try:
            if json.loads((folder / "result.json").read_text(encoding="utf-8")).get("stopped_at") is not None:
                return False
            distances = load_file(folder / "distances.safetensors")
        except (OSError, ValueError, SafetensorError):
            return False
        self.add(distances)
        self.shaken += shaken
        return True

    def at(self, kind: str, name: str, step: int | None) -> float:
        """The worst twin's distance at a step, counted from 1, or at the last one before it that is known; 0 without any."""
        own = self.worst.get((kind, name), [])
        last = bisect_right(own, (step or 0, math.inf))
        return own[last - 1][1] if last else 0.0
