"""The trained network asked: how long one example takes, how many examples a second, how long all held-out ones take.

Every way of asking answers in its backend's live worker, in interleaved rounds like training's steps. An answer is
on the host before the clock stops; what is asked is on the device before it starts, except in an evaluation, which is what
`harness run` does at its end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from harness.bench.ratio import Ratio, ratio
from harness.bench.rounds import Contestant, rounds, warmed
from harness.bench.vote import outvoted
from harness.check.live import LiveWorker
from harness.check.subject import Subject, open_program
from harness.compare import TOLERANCES, compare
from harness.errors import WorkerFailed
from harness.lanes import INFERENCE, PLAIN
from harness.programs import emitted
from harness.questions import Question

ONE, MANY = 1, 256
"""Examples of a call whose latency is timed, and of one whose throughput is."""
ROUNDS = 10
BLOCK = 0.1
"""Seconds of a block of calls with one example: a hundred calls of a millisecond, a thousand in all rounds."""
PERCENTILES = (50, 95, 99)
NAME = "inference"
"""What the program is called in its worker."""


@dataclass(frozen=True)
class Inference:
    """One way of asking one backend's network."""

    backend: str
    way: str
    """Of harness.lanes.INFERENCE."""
    latency: Mapping[str, float]
    """Seconds of a call with one example by percentile: `p50`, `p95`, `p99`."""
    calls: int
    """That these are of."""
    examples: float
    """A second, MANY in a call."""
    ratio: Ratio | None
    """How many times as long as the fastest way a call with many examples takes; None of that one itself."""

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "backend": self.backend, "way": self.way, "latency": dict(self.latency), "calls": self.calls,
            "examples_a_second": self.examples, "examples_a_call": MANY,
            "against_fastest": None if self.ratio is None else self.ratio.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """Seconds that a backend takes to evaluate all held-out examples, input on the host."""

    backend: str
    seconds: tuple[float, ...]
    examples: int

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {"backend": self.backend, "seconds": list(self.seconds), "examples": self.examples}


@dataclass
class _Asked(Contestant):
    """One whose every call is kept."""

    taken: tuple[float, ...] = ()


def inference(
    subject: Subject, listen: Callable[[int], None] = lambda _done: None
) -> tuple[tuple[Inference, ...], tuple[Evaluation, ...]]:
    """Check and time every way of every backend that still answers; who fails goes into `subject.failures`."""
    question = next(iter(subject.questions.values()))
    asked: dict[tuple[str, str], tuple[_Asked, _Asked]] = {}
    whole: dict[str, Contestant] = {}
    counts: dict[str, int] = {}
    for backend in subject.backends:
        live = subject.workers[backend]
        try:
            source = emitted(subject.program, backend, subject.precision)
            open_program(subject, live, NAME, source, observe=False, strategy=PLAIN[backend])
            counts[backend] = int(_evaluate(live, question)["examples"])
            whole[backend] = Contestant(f"{backend} evaluation", _evaluations(live, question))
            for way in INFERENCE[backend]:
                one, many = (_asker(live, way, question, rows) for rows in (ONE, MANY))
                for each in (one, many):
                    warmed(each, block=BLOCK, budget=3.0)
                asked[backend, way] = (one, many)
        except WorkerFailed as error:
            subject.failures[f"{backend} {NAME}"] = str(error).splitlines()[0]
            asked = {key: own for key, own in asked.items() if key[0] != backend}
            whole.pop(backend, None)
    _require_same(subject, asked)
    everybody = [one for pair in asked.values() for one in pair]
    for one in everybody:
        one.taken = ()
    if not everybody:
        return (), ()
    rounds([*everybody, *whole.values()], most=ROUNDS, listen=listen)
    fastest = min((many for _, many in asked.values()), key=lambda own: float(np.median(own.seconds)))
    found = tuple(
        Inference(
            backend, way, {f"p{p}": float(np.percentile(one.taken, p)) for p in PERCENTILES}, len(one.taken),
            MANY / float(np.median(many.seconds)), None if many is fastest else ratio(many.seconds, fastest.seconds),
        )
        for (backend, way), (one, many) in asked.items()
    )  # fmt: skip
    return found, tuple(Evaluation(b, tuple(own.seconds), counts[b]) for b, own in whole.items())


def _asker(live: LiveWorker, way: str, question: Question, rows: int) -> _Asked:
    def run(calls: int) -> tuple[float, float]:
        said = live.ask("predict", name=NAME, way=way, rows=rows, calls=calls, **question.request())
        own.taken += tuple(said["seconds"])
        return sum(said["seconds"]), said["cpu"]

    own = _Asked(f"{live.name} {way} {rows}", run)
    return own


def _evaluate(live: LiveWorker, question: Question) -> dict[str, Any]:
    return live.ask("evaluate", name=NAME, **question.request())


def _evaluations(live: LiveWorker, question: Question) -> Callable[[int], tuple[float, float]]:
    def run(times: int) -> tuple[float, float]:
        wall = sum(float(_evaluate(live, question)["seconds"]) for _ in range(times))
        return wall, wall

    return run


def _require_same(subject: Subject, asked: dict[tuple[str, str], tuple[_Asked, _Asked]]) -> None:
    """Leave out whose answer is not the others', and say so in `subject.failures`."""
    answers = {
        f"{backend} {way}": subject.workers[backend].arrays("predicted", name=NAME, way=way, rows=MANY)
        for backend, way in asked
    }
    tolerance = TOLERANCES[subject.precision]["forward"]
    pairs = [compare("output", (a, b), answers[a], answers[b], tolerance) for a, b in combinations(answers, 2)]
    for name, why in outvoted(pairs).items():
        subject.failures[f"{name} {NAME}"] = why
        backend, way = name.split(" ")
        del asked[backend, way]
