"""Time to a target: how long a way of running a program trains until its loss, or a metric on held-out examples, is good enough."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.check.live import LiveWorker
from harness.check.subject import Subject
from harness.errors import CallError
from harness.graph import Program
from harness.judge import metric_names
from harness.metrics import Metric

WINDOW = 10
"""Losses whose mean is to reach a target, where there are as many."""
LOOKS = 50
"""How often a metric is looked at in a whole training: its steps are known as finely as that."""


@dataclass(frozen=True)
class Target:
    """What is to be reached."""

    value: float
    metric: str | None = None
    """As results call it; None: the loss of the first update, its mean over WINDOW steps."""

    def __str__(self) -> str:
        return f"{self.metric or 'loss'} {self.value:g}"


def parse(text: str) -> Target:
    """`0.1`, a loss, or `accuracy=0.97`. Raises CallError."""
    metric, _, value = text.rpartition("=")
    try:
        return Target(float(value), metric.strip() or None)
    except ValueError:
        raise CallError(f"--target takes a loss, like 0.1, or METRIC=VALUE, like accuracy=0.97; got '{text}'") from None


def metric(program: Program, target: Target) -> Metric | None:
    """The metric that a target names. Raises CallError where the spec has none of that name."""
    if target.metric is None:
        return None
    known = metric_names(program)
    if target.metric not in known:
        told = f"its metrics: {', '.join(known)}" if known else "it has no metrics"
        raise CallError(f"--target: {program.name} does not evaluate '{target.metric}' ({told})")
    return known[target.metric]


def reach(subject: Subject, live: LiveWorker, name: str, target: Target, stack: int | None) -> Mapping[str, Any]:
    """Train the program called `name` from the start until the target or the spec's steps are there.

    `stack`: steps of a call, where a call takes several. Returns what was `reached`, after how many `steps` and `seconds` of
    training, evaluation not counted, and the target. Raises WorkerFailed.
    """
    program = subject.program
    told = {"metric": target.metric, "value": target.value}
    request = {"name": name, "stack": stack, "arrays": subject.position("start", subject.start), "most": program.steps}
    own = metric(program, target)
    if own is None:
        said = live.ask("reach", **request, target=target.value, window=min(WINDOW, program.steps))
        return {**told, "reached": said["reached"], "steps": said["steps"], "seconds": said["seconds"]}
    question = subject.questions[str(getattr(own, own.roles[0]))]
    labels = subject.data[f"{question.part}.{getattr(own, own.roles[1])}"]
    unit = min(stack or 1, program.steps)
    every = unit * max(1, round(program.steps / LOOKS / unit))
    done, seconds = 0, 0.0
    while done + unit <= program.steps:
        steps = min(every, (program.steps - done) // unit * unit)
        said = live.ask("train_timed", **request, first=done, steps=steps)
        done, seconds = done + steps, seconds + said["seconds"]
        answer = live.arrays("answered", name=name, **question.request())["output"]
        value = own.compute(answer.astype(np.float64), labels)
        if value >= target.value if own.better == "higher" else value <= target.value:
            return {**told, "reached": True, "steps": done, "seconds": seconds}
    return {**told, "reached": False, "steps": done, "seconds": seconds}
