"""The ladder's judgement: what passes, what fails, what says nothing; on numbers made by hand, then on real workers."""

import json
import math
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from build import INSTALLED, Arrays, program_of
from cases import CASES, spec_of
from safetensors.numpy import load_file, save_file
from test_cli import call

from harness import api, spec
from harness.check import climb
from harness.check import trajectory as long
from harness.check.climb import CheckOptions, rung_names
from harness.check.evidence import Slope, _slope, differentiable, gradient_of
from harness.check.live import LiveWorker
from harness.check.mutants import MUTANTS, plant
from harness.check.power import PowerResult
from harness.check.probes import PROBES
from harness.check.record import RUNGS, USUAL, CheckResult, Rung, judged
from harness.check.subject import Subject, moved_input, moved_parameters, prepare, twin, workers
from harness.check.trajectory import Training, compare_series, dead, drift, relay, trajectory, twins_rung
from harness.compare import Comparison, Difference, Tolerance
from harness.environment import interpreters
from harness.errors import CallError, HarnessError, WorkerFailed
from harness.graph import Program
from harness.resolve import compile_spec
from harness.runs import prepared
from harness.twins import TIMES

Text = dict[str, Any]


def text_of(*layers: object, rate: float = 0.05, case: str = "relu", steps: int = 12) -> Text:
    """Eight inline examples through these layers."""
    text: Text = json.loads(json.dumps(spec_of(CASES[case])))
    if layers:
        text["networks"]["net"]["layers"] = list(layers)
    text["training"]["steps"] = steps
    text["training"]["updates"][0]["optimizer"] = {"sgd": {"learning_rate": rate, "momentum": 0.9}}
    return text


def subject_of(folder: Path, text: Text, precision: str = "float64", steps: int = 12) -> Subject:
    """A subject without workers."""
    loaded, source = spec.loads(json.dumps(text))
    program = compile_spec(loaded, source, steps)
    return prepare(program, source, prepared(program, source), precision, folder / "case", {})


@pytest.fixture
def tiny(tmp_path: Path) -> Subject:
    return subject_of(tmp_path, text_of({"dense": 3}, "tanh", {"dense": {"units": 1, "name": "head"}}))


# ---- The record


def comparison(difference: float, allowed: float = 1.0, *, missing: tuple[str, ...] = ()) -> Comparison:
    return Comparison("forward", "reference", "torch", Difference("x", 1, difference, allowed), 1, missing)


@pytest.mark.parametrize(
    ("comparisons", "void", "status"),
    [
        ([comparison(0.5)], [], "passed"),
        ([comparison(1.0)], [], "passed"),
        ([comparison(1.01)], [], "failed"),
        ([comparison(0.1), comparison(math.nan)], [], "failed"),
        ([comparison(0.0, missing=("only torch has x",))], [], "failed"),
        ([Comparison("forward", "a", "b", None, 0)], [], "failed"),
        ([], [], "void"),
        ([comparison(0.5)], ["nothing moves"], "void"),
        ([comparison(2.0)], ["nothing moves"], "failed"),
    ],
)
def test_a_rung_passes_only_where_something_was_compared_and_could_move(
    comparisons: list[Comparison], void: list[str], status: str
) -> None:
    found = judged("forward", "float64", comparisons, void=void)
    assert found.status == status
    assert found.sentence
    assert (void == [] or status == "failed") or "nothing moves" in found.sentence


def test_the_worst_comparison_is_the_furthest_from_what_is_allowed() -> None:
    rung = judged("forward", "float64", [comparison(5.0, 10.0), comparison(3.0, 1.0), comparison(4.0, 2.0)])
    assert rung.worst is rung.comparisons[1]
    assert "3 apart, 1 allowed" in rung.sentence
    assert judged("forward", "float64", []).worst is None


def result_of(*statuses: str, failures: Mapping[str, str] | None = None) -> CheckResult:
    found = tuple(Rung(name, "float64", status, "") for name, status in zip(RUNGS, statuses, strict=False))
    return CheckResult("case", Path(), 12, 0, ("torch",), found, dict(failures or {}), {})


@pytest.mark.parametrize(
    ("statuses", "verdict", "status"),
    [
        (("passed", "passed"), "passed", 0), (("passed", "skipped"), "skipped", 1), (("passed", "void"), "void", 1),
        (("void", "skipped"), "void", 1), (("void", "failed", "skipped"), "failed", 1), ((), "failed", 1),
    ],
)  # fmt: skip
def test_skipped_and_void_are_never_passed(statuses: tuple[str, ...], verdict: str, status: int) -> None:
    found = result_of(*statuses)
    assert (found.verdict, found.exit) == (verdict, status)
    failed = result_of(*statuses, failures={"jax": "it died"})
    assert (failed.verdict, failed.exit) == ("failed", 3)


def test_a_result_is_strict_json_with_the_documented_fields() -> None:
    rung = judged("twins", "float32", [comparison(math.nan)], notes=["a note"], details={"worst": math.inf})
    found = replace(result_of(), rungs=(rung,)).to_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert set(again) == {
        "schema", "harness", "spec", "verdict", "exit", "directory", "steps", "seed", "backends", "rungs", "failures",
        "zero_gradient", "seconds", "diagnoses",
    }  # fmt: skip
    (said,) = again["rungs"]
    assert set(said) == {
        "name", "number", "precision", "status", "sentence", "notes", "comparisons", "details", "seconds",
    }  # fmt: skip
    assert (said["number"], said["status"], said["details"]) == (5, "failed", {"worst": "Infinity"})
    assert said["comparisons"][0]["worst"]["difference"] == "NaN"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, USUAL), ("1", ("forward",)), ("relay,1-2", ("forward", "gradients", "relay")), ("7", ("seeds",)),
        (" 1 , 1-7", RUNGS), ("3-3", ("optimizer",)),
    ],
)  # fmt: skip
def test_rungs_are_numbers_ranges_and_names(text: str | None, expected: tuple[str, ...]) -> None:
    assert rung_names(text) == expected


@pytest.mark.parametrize("text", ["0", "8", "1-8", "4-1", "1,4-2", "forwards", "1-", "-3", "1-2-3", "²", "1.5"])
def test_a_wrong_rung_is_named(text: str) -> None:
    wrong = text.rsplit(",", maxsplit=1)[-1]
    with pytest.raises(CallError, match=rf"there is no rung '{wrong}' \(rungs: 1 forward, 2 gradients, .*7 seeds; 1-4"):
        rung_names(text)


@pytest.mark.parametrize("text", ["", " ", ",,"])
def test_no_rung_is_no_check(text: str) -> None:
    with pytest.raises(CallError, match="names no rung"):
        rung_names(text)


# ---- Series


def by_loops(a: Arrays, b: Arrays, relative: float, floor: float) -> tuple[str, int, float, float]:
    """The tensor and step furthest from what is allowed, its difference and what was allowed."""
    worst: tuple[float, str, int, float, float] | None = None
    for name in sorted(a):
        for step, (x, y) in enumerate(zip(a[name], b[name], strict=True), start=1):
            gap = max(abs(float(p) - float(q)) for p, q in zip(x.flat, y.flat, strict=True))
            size = max(max(abs(float(v)) for v in s.flat) for s in (x, y))
            allowed = relative * max(size, floor)
            if worst is None or gap / allowed > worst[0]:
                worst = (gap / allowed, name, step, gap, allowed)
    assert worst is not None
    return worst[1:]


def test_series_are_compared_by_the_magnitude_of_each_step() -> None:
    rng = np.random.default_rng(0)
    for trial in range(20):
        sizes = 10.0 ** rng.integers(-3, 4, size=(5, 1, 1))
        a = {"x": sizes * rng.normal(size=(5, 2, 3)), "y": rng.normal(size=(5, 4)), "z": rng.normal(size=5)}
        b = {n: v * (1 + 1e-6 * rng.normal(size=v.shape)) for n, v in a.items()}
        for relative, floor in ((1e-6, 1.0), (3e-6, 0.01)):
            found = compare_series("state", ("torch", "jax"), a, b, Tolerance(relative, floor))
            name, step, gap, allowed = by_loops(a, b, relative, floor)
            assert found.worst is not None
            assert (found.worst.name, found.worst.step) == (name, step), trial
            assert found.worst.difference == pytest.approx(gap, rel=1e-12)
            assert found.worst.allowed == pytest.approx(allowed, rel=1e-12)
            at = (step - 1, *found.worst.index)
            assert (found.worst.a, found.worst.b) == (a[name][at], b[name][at])
            assert found.same == (gap <= allowed)
            assert found.compared == 15


def test_a_small_step_is_not_judged_by_a_large_one() -> None:
    a = {"x": np.array([[1.0], [1e6]])}
    b = {"x": np.array([[1.001], [1e6]])}
    found = compare_series("state", ("torch", "jax"), a, b, Tolerance(1e-6))
    assert found.worst is not None
    assert (found.same, found.worst.step) == (False, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("both", [False, True])
def test_what_is_no_number_never_passes(value: float, both: bool) -> None:
    a = {"x": np.zeros((4, 2, 2)), "y": np.ones((4, 2))}
    a["x"][2, 1, 0] = value
    b = {"x": a["x"].copy() if both else np.zeros((4, 2, 2)), "y": a["y"]}
    found = compare_series("state", ("torch", "jax"), a, b, Tolerance(1.0))
    assert not found.same
    assert found.worst is not None
    assert (found.worst.name, found.worst.step, found.worst.index) == ("x", 3, (1, 0))


def test_missing_names_shapes_and_steps_are_no_agreement() -> None:
    one = {"x": np.zeros((4, 2)), "y": np.zeros((4, 2))}
    for other, said in (
        ({"x": one["x"]}, "only torch has y"),
        ({**one, "z": one["x"]}, "only jax has z"),
        ({**one, "y": np.zeros((4, 3))}, "y has shape (4, 2) and (4, 3)"),
        ({**one, "y": np.zeros((3, 2))}, "y has shape (4, 2) and (3, 2)"),
    ):
        found = compare_series("state", ("torch", "jax"), one, other, Tolerance(1.0))
        assert found.missing == (said,)
        assert not found.same
    assert not compare_series("state", ("torch", "jax"), {}, {}, Tolerance(1.0)).same


# ---- Drift


def fake(apart: Mapping[str, str] | None = None, precision: str = "float64") -> Any:
    """What the judgement of trainings asks of a subject."""
    return SimpleNamespace(precision=precision, unit=float(np.finfo(precision).eps), apart=dict(apart or {}))


def trained(states: Arrays, losses: Sequence[float] = (3.0, 2.0, 1.0)) -> Training:
    return Training({"net": list(losses)}, states, {})


STEP = np.array([1.0, 2.0, 4.0])
"""How the twins of these tests part: step by step, twice as far."""
BASE = {"a": np.ones((3, 2)), "b": np.full((3, 1), 5.0), "null": np.zeros((3, 1))}
TWINS = {
    "torch": [{"a": list(1e-10 * STEP), "b": list(2e-10 * STEP), "null": [0.0] * 3}, {"a": list(3e-10 * STEP), "b": list(4e-10 * STEP), "null": [0.0] * 3}],
    "jax": [{"a": list(2e-10 * STEP), "b": list(1e-10 * STEP), "null": [0.0] * 3}] * 2,
}  # fmt: skip
"""The worst twin lies 5e-10 (a 3-4-5 triangle) from the training at the first step, tensors taken together."""


def shifted(**by: float) -> Arrays:
    """The base with the first element of tensors moved, at each step as the twins move."""
    found = {name: value.copy() for name, value in BASE.items()}
    for name, shift in by.items():
        found[name][:, 0] += shift * STEP
    return found


def drifted(subject: Any, other: Arrays) -> long.Drift:
    return drift(subject, {"torch": trained(BASE), "jax": trained(other)}, TWINS)


@pytest.mark.parametrize(
    ("shift", "ratio", "status"), [(1e-9, 2.0, "passed"), (5e-9, 10.0, "failed"), (1.6e-9, 3.2, "failed")]
)
def test_frameworks_may_part_as_twins_do(shift: float, ratio: float, status: str) -> None:
    subject = fake({"null": "why"})
    found = drifted(subject, shifted(a=shift))
    assert found.worst == pytest.approx(ratio, rel=1e-4)
    assert found.overall["torch~jax"] == pytest.approx([ratio] * 3, rel=1e-4)
    assert found.tensors["torch~jax"] == {"a": pytest.approx(shift / 3e-10, rel=1e-4), "b": 0.0}
    assert found.twins == pytest.approx(list(5e-10 * STEP))
    rung = twins_rung(subject, found)
    assert rung.status == status
    assert f"{ratio:.2g} times the worst of 2 twins" in rung.sentence
    assert rung.sentence.startswith("within rounding" if status == "passed" else "differs")


def test_one_step_beyond_is_beyond() -> None:
    other = shifted(a=1e-10)
    other["b"][1] += 1e-7
    found = drifted(fake({"null": "why"}), other)
    assert found.overall["torch~jax"][1] == pytest.approx(100, rel=1e-3)
    rung = twins_rung(fake(), found)
    assert rung.status == "failed"
    assert "step 2" in rung.sentence


def test_a_parameter_with_no_gradient_hides_nothing_else() -> None:
    subject = fake({"null": "why"})
    assert drifted(subject, shifted(null=1e3)).worst == 0
    assert drifted(subject, shifted(null=1e3, a=5e-9)).worst == pytest.approx(10, rel=1e-4)
    # Nor is it excused where nothing says that its gradient is zero.
    assert drifted(fake(), shifted(null=1e3)).worst > TIMES


def test_the_same_bits_are_exact_and_only_those() -> None:
    subject = fake({"null": "why"})
    assert twins_rung(subject, drifted(subject, shifted())).sentence == "exact: the same bits at every step"
    assert not drifted(subject, shifted(a=1e-15)).exact


def test_each_tensor_has_a_verdict_of_its_own() -> None:
    subject = fake({"null": "why"})
    found = drifted(subject, shifted(a=1.5e-9))  # five times its own worst twin, three times all together
    assert found.verdicts == {
        "a": {"verdict": "differs", "ratio": pytest.approx(5, rel=1e-4)}, "b": {"verdict": "exact", "ratio": 0.0},
    }  # fmt: skip
    near = drifted(subject, shifted(a=1e-10, b=1e-10))
    assert {one["verdict"] for one in near.verdicts.values()} == {"within rounding"}
    rung = twins_rung(subject, drifted(subject, shifted(a=1.4e-9)))
    assert rung.status == "passed"
    assert "each tensor by itself: 1 exact, 1 beyond" in rung.sentence
    assert rung.notes == ("beyond their own twins' drift, each by itself (times): a 4.7",)
    assert rung.details["verdicts"]["b"]["verdict"] == "exact"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_drift_that_is_no_number_is_no_small_drift(value: float, step: int) -> None:
    for other in (shifted(a=1e-10), shifted()):
        other["a"][step:] = value
        found = drifted(fake({"null": "why"}), other)
        assert found.worst == math.inf
        assert found.verdicts["a"]["verdict"] == "differs"
        assert twins_rung(fake(), found).status == "failed"


def test_no_yardstick_is_shorter_than_a_unit_in_the_last_place() -> None:
    still = {name: [{n: [0.0] * 3 for n in own} for own in all_twins] for name, all_twins in TWINS.items()}
    unit = float(np.finfo("float64").eps)
    least = unit * np.sqrt(2 + 25)  # the norms of the two tensors
    subject = fake({"null": "why"})
    found = drift(subject, {"torch": trained(BASE), "jax": trained(shifted(a=1e-14))}, still)
    assert found.worst == pytest.approx(4e-14 / least, rel=0.05)
    assert found.twins == pytest.approx([least] * 3)


def test_a_mean_is_as_exact_as_the_values_that_it_is_of() -> None:
    states = {"norm.mean": np.zeros((3, 4)), "norm.variance": np.full((3, 4), 9.0)}
    twins = {name: [{n: [0.0] * 3 for n in states}] for name in ("torch", "jax")}
    found = drift(fake(), {"torch": trained(states), "jax": trained(states)}, twins)
    unit = float(np.finfo("float64").eps)
    assert found.twins == pytest.approx([unit * np.sqrt(36 + 324)] * 3)


def test_one_backend_has_nobody_to_drift_from() -> None:
    found = drift(fake(), {"torch": trained(BASE)}, TWINS)
    assert twins_rung(fake(), found).status == "skipped"


def test_dead_trainings_drift_nowhere_and_that_says_nothing() -> None:
    subject = fake({"null": "why"})
    for other in (shifted(), shifted(a=1e-10)):
        rung = twins_rung(subject, drifted(subject, other), ["torch: the loss is the same"])
        assert rung.status == "void"
        assert "torch: the loss is the same" in rung.sentence
    assert twins_rung(subject, drifted(subject, shifted(a=1.0)), ["dead"]).status == "failed"


# ---- Trajectories


def moving(*losses: float, still: bool = False) -> Training:
    steps = len(losses)
    states = {"x": np.arange(steps * 2.0).reshape(steps, 2), "null": np.zeros((steps, 1))}
    if still:
        states["x"][:] = 1.0
    return trained(states, losses)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (moving(3.0, 2.0, 1.0), []),
        (moving(1.0, 1.0, 1.0), ["the loss of 'net' is the same at every step"]),
        (moving(3.0, math.nan), ["the loss of 'net' is no number"]),
        (moving(3.0, math.inf, 1.0), ["the loss of 'net' is no number"]),
        (moving(3.0, 2.0, 1.0, still=True), ["x never moves after the first step"]),
        (moving(*np.linspace(1, 2, 10)), ["the loss of 'net' does not fall"]),
        (moving(*np.linspace(1, 2, 9)), []),
        (moving(*np.linspace(2, 1, 10)), []),
        (moving(2.0), []),
    ],
)
def test_a_dead_training_is_told_from_a_live_one(training: Training, expected: list[str]) -> None:
    assert dead(fake({"null": "why"}), training) == expected


def test_two_losses_need_not_fall() -> None:
    losses = {"one": list(np.linspace(1, 2, 10)), "other": list(np.linspace(1, 2, 10))}
    assert dead(fake(), replace(moving(*np.linspace(1, 2, 10)), losses=losses)) == [
        "null never moves after the first step"
    ]


def apart_by(gap: float, *losses: float, still: bool = False) -> dict[str, Training]:
    one, other = (moving(*losses, still=still) for _ in range(2))
    other = replace(other, states={n: s + gap for n, s in one.states.items()})
    return {"torch": one, "jax": other}


def nobody() -> None:
    """No twin answers."""


def test_a_trajectory_is_judged_at_every_step() -> None:
    subject = fake({"null": "why"})
    assert trajectory(subject, apart_by(1e-11, 3.0, 2.0, 1.0), nobody).status == "passed"
    assert trajectory(subject, apart_by(1e-7, 3.0, 2.0, 1.0), nobody).status == "failed"
    assert trajectory(subject, apart_by(0.0, 1.0, 1.0, 1.0), nobody).status == "void"
    other = apart_by(0.0, 3.0, 2.0, 1.0)
    other["jax"].losses["net"] = [3.0, 2.0001, 1.0]
    found = trajectory(subject, other, nobody)
    assert found.status == "failed"
    assert "step 2" in found.sentence
    other["jax"].losses["net"] = [3.0, 2.0]
    assert trajectory(subject, other, nobody).status == "failed"


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_what_parts_is_excused_by_twins_but_a_dead_run_by_nothing(precision: str) -> None:
    subject = fake({"null": "why"}, precision)
    parted = apart_by(5.0, 3.0, 2.0, 1.0)
    pair = "torch~jax"
    near, far = (long.Drift(w, {pair: [w]}, {pair: {"conv1.kernel": w}}, [], exact=False) for w in (2.9, 3.1))
    assert trajectory(subject, parted, nobody).status == "failed"
    alone = replace(near, overall={})
    assert trajectory(subject, parted, lambda: alone).status == "failed", "a worker died: the pair was not measured"
    hidden = replace(near, tensors={pair: {"conv1.kernel": 2.9, "conv1.bias": 1e6}})
    excusing = "failed" if precision == "float64" else "passed"
    assert trajectory(subject, parted, lambda: hidden).status == excusing, "one tensor among the others"
    lossy = apart_by(5.0, 3.0, 2.0, 1.0)
    lossy["jax"].losses["net"] = [3.0, 2.1, 1.0]
    assert trajectory(subject, lossy, lambda: near).status == excusing, "no twin is held beside losses here"
    excused = trajectory(subject, parted, lambda: near)
    assert (excused.status, excused.details) == ("passed", {"rounding": 2.9})
    assert f"in {precision}: state: torch and jax differ" in excused.notes[-1]
    assert trajectory(subject, parted, lambda: far).status == "failed"
    for losses in ((1.0, 1.0, 1.0), (3.0, math.nan, 1.0)):
        assert trajectory(subject, apart_by(5.0, *losses), lambda: near).status != "passed"
    # What does not fall and parts by rounding is no evidence, and no difference either.
    rising = apart_by(5.0, *np.linspace(1.0, 2.0, 12))
    dead_run = trajectory(subject, rising, lambda: near)
    assert dead_run.status == "void"
    assert any(not c.same for c in dead_run.comparisons), "what parted is kept"
    assert trajectory(subject, rising, lambda: far).status == "failed"
    one_is_none = apart_by(5.0, 3.0, 2.0, 1.0)
    one_is_none["jax"].losses["net"] = [3.0, math.nan, 1.0]
    assert trajectory(subject, one_is_none, lambda: near).status == "failed", "a loss that is none in one alone"
    restless = replace(far, restless=("torch",))
    assert "torch does not repeat its own training" in trajectory(subject, parted, lambda: restless).notes[-1]
    lost = replace(near, worst=math.inf)
    assert trajectory(subject, apart_by(math.nan, 3.0, 2.0, 1.0), lambda: lost).status == "failed"
    short = apart_by(5.0, 3.0, 2.0, 1.0)
    short["jax"].losses["net"] = [3.0, 2.0]
    assert trajectory(subject, short, lambda: near).status == "failed", "twins say nothing of what is not there"


def test_twins_are_asked_only_where_something_parts() -> None:
    def asked() -> None:
        raise AssertionError("nothing parts")

    assert trajectory(fake({"null": "why"}), apart_by(1e-11, 3.0, 2.0, 1.0), asked).status == "passed"


# ---- Twins and moved selves


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_twin_is_one_unit_in_the_last_place_away_everywhere(precision: str, tmp_path: Path) -> None:
    subject = subject_of(tmp_path, text_of({"dense": 3}, "batch_norm", {"dense": 1}), precision)
    width = np.int64 if precision == "float64" else np.int32
    statistics = {n for n, p in subject.program.parameters.items() if not p.learned}
    assert statistics
    coins: list[int] = []
    for number in range(3):
        made = twin(subject.program, subject.start, number)
        assert made.keys() == subject.start.keys()
        for name, value in made.items():
            before = subject.start[name]
            assert (value.shape, value.dtype) == (before.shape, before.dtype)
            if not name.startswith("state/") or name.removeprefix("state/") in statistics:
                assert np.array_equal(value, before), name
                continue
            # Of a number other than zero, the neighbours are the neighbouring integers of its bits.
            bits = (value.view(width) - before.view(width))[before != 0]
            assert np.isin(bits, (-1, 1)).all()
            coins += [int(up) for up in (value > before).flat]
            assert (np.abs(value[before == 0]) == np.finfo(precision).smallest_subnormal).all()
        again = twin(subject.program, subject.start, number)
        assert all(np.array_equal(again[n], made[n]) for n in made)
    assert 0.3 < np.mean(coins) < 0.7, "up and down by a fair coin"
    one, two = (twin(subject.program, subject.start, number)["state/dense1.kernel"] for number in (0, 1))
    assert not np.array_equal(one, two), "every twin is another"


def test_moved_inputs_are_of_the_same_kind_and_elsewhere() -> None:
    order = np.arange(6).reshape(2, 3)
    assert moved_input("order", order) is order
    for name, array in (
        ("train.x", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)),
        ("train.flat", np.zeros((50, 2))),
    ):
        moved = moved_input(name, array)
        assert (moved.dtype, moved.shape) == (array.dtype, array.shape)
        shift = moved - array
        assert 0.05 < shift.std() / (array.std() or 1.0) < 0.2
    ids = np.arange(40, dtype=np.int32).reshape(20, 2)
    dealt = moved_input("train.ids", ids)
    assert dealt.dtype == ids.dtype
    assert not np.array_equal(dealt, ids)
    assert np.array_equal(np.sort(dealt, axis=0), ids), "the same ids, of other examples"


def test_moved_parameters_move_everywhere_and_variances_stay_positive(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, text_of({"dense": 3}, "batch_norm", {"dense": 1}))
    moved = moved_parameters(subject.start)
    for name, value in subject.start.items():
        assert np.array_equal(moved[name], value) != name.startswith("state/"), name
        assert not name.endswith("variance") or (moved[name] > 0).all()


def test_a_position_is_written_whole_whoever_asks(tiny: Subject) -> None:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    big = {"state/x": np.zeros(2_000_000)}
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: load_file(tiny.position("big", big))["state/x"].size, range(16)))
    assert sizes == [2_000_000] * 16
    assert [p.name for p in tiny.folder.glob("big*")] == ["big.safetensors"]


# ---- Slopes


def test_a_slope_is_the_derivative() -> None:
    directions = {"x": np.ones(1)}
    for at in (0.3, 1.0, 2.0):
        found = _slope(lambda h, at=at: math.sin(at + h), directions)  # type: ignore[misc]
        assert found.slope == pytest.approx(math.cos(at), abs=1e-8)
        assert found.error < 1e-8
    assert isinstance(found, Slope)
    assert found.directions is directions


def test_a_kink_between_the_widths_shows_as_error() -> None:
    def kinked(h: float) -> float:
        return 2.0 * h + 10.0 * max(0.0, h - 3e-7)  # slope 2 here, 12 beyond the kink

    found = _slope(kinked, {"x": np.ones(1)})
    # Beyond the kink only the widest differences reach: (8e-7 * 2 * 2 + 10 * (8e-7 - 3e-7)) / (2 * 8e-7) and less.
    assert found.slope == pytest.approx(2.0, rel=1e-6)
    assert found.error == pytest.approx(10 * (8e-7 - 3e-7) / (2 * 8e-7), rel=1e-6)


def test_what_is_behind_a_stopped_call_is_a_constant() -> None:
    program = api.load("digits_gan").compile()
    subject: Any = SimpleNamespace(program=program)
    found = {update.name: differentiable(subject, update) for update in program.updates}
    assert found == {"discriminator": ["image"], "generator": ["noise"]}


def test_ids_and_labels_have_no_slope() -> None:
    for name, expected in (("digits_cnn", ["image"]), ("char_transformer", []), ("linear_regression", ["x", "y"])):
        subject: Any = SimpleNamespace(program=api.load(name).compile())
        assert differentiable(subject, subject.program.updates[0]) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("at:net/dense1.kernel", "dense1.kernel"), ("at:net/@x", "@x"), ("step:gradients/net/a.b.kernel", "a.b.kernel"),
        ("step:values/net/x.dense1", None), ("step:state/dense1.kernel", None), ("evaluation:net(x).dense1", None),
        ("step:loss/net", None),
    ],
)  # fmt: skip
def test_gradients_are_told_from_values_by_name(name: str, expected: str | None) -> None:
    assert gradient_of(name) == expected


# ---- Relay, among frameworks made by hand


@dataclass
class HandMade:
    """A framework of one parameter: gradient descent with momentum on half a square, which a relay hands over."""

    backend: str
    folder: Path
    core: int = 0
    forgets: bool = False
    dies_at: int | None = None
    x: float = 0.0
    velocity: float = 0.0
    asked: int = 0
    count: int = field(default=0, repr=False)

    @property
    def name(self) -> str:
        return self.backend

    def fresh(self) -> Path:
        self.count += 1
        return self.folder / f"{self.backend}-{self.count}.safetensors"

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        self.asked += 1
        if self.dies_at is not None and self.asked >= self.dies_at:
            raise WorkerFailed(f"worker {self.backend} ended with SIGKILL")
        if do == "load":
            found = load_file(fields["arrays"])
            self.x = float(found["state/x"][0])
            self.velocity = 0.0 if self.forgets else float(found["optimizer/net/velocity/x"][0])
            return {}
        assert do == "train"
        losses, _ = self.train(fields["first"], fields["last"])
        save_file(self.end(), fields["into"])
        return {"losses": {"net": losses}}

    def train(self, first: int, last: int) -> tuple[list[float], list[float]]:
        losses, states = [], []
        for _ in range(first, last):
            losses.append(self.x**2 / 2)
            self.velocity = 0.9 * self.velocity + self.x
            self.x -= 0.02 * self.velocity
            states.append(self.x)
        return losses, states

    def end(self) -> Arrays:
        return {"state/x": np.array([self.x]), "optimizer/net/velocity/x": np.array([self.velocity])}


START: Arrays = {"state/x": np.array([1.0]), "optimizer/net/velocity/x": np.array([0.0])}


def relayed(tiny: Subject, *frameworks: HandMade, steps: int = 12) -> Rung:
    """The rung on frameworks made by hand; each has trained by itself before."""
    trainings = {}
    for one in frameworks:
        alone = HandMade(one.backend, one.folder, x=1.0)
        losses, states = alone.train(0, steps)
        trainings[one.backend] = Training({"net": losses}, {"x": np.array(states)[:, None]}, alone.end())
    tiny.workers = {one.backend: one for one in frameworks}  # type: ignore[misc]
    tiny.__dict__["start"] = START
    return relay(tiny, trainings, steps)


def test_a_relay_lands_where_the_unbroken_trainings_do(tiny: Subject) -> None:
    frameworks = [HandMade(name, tiny.folder, core) for core, name in enumerate(("torch", "tensorflow", "jax"))]
    found = relayed(tiny, *frameworks)
    assert found.status == "passed", found.sentence
    assert found.details == {"orders": 6, "hand_overs": [4, 8]}
    routes = {" then ".join(route) for route in permutations(("torch", "tensorflow", "jax"))}
    assert {(c.what, c.a, c.b) for c in found.comparisons} == {
        (what, route, f"{one.backend} alone")
        for what in ("relay", "loss") for route in routes for one in frameworks
    }  # fmt: skip


def test_a_relay_finds_a_framework_that_forgets_its_optimizer(tiny: Subject) -> None:
    frameworks = [HandMade(name, tiny.folder, forgets=name == "jax") for name in ("torch", "jax")]
    found = relayed(tiny, *frameworks)
    assert found.status == "failed"
    parted = {c.a for c in found.comparisons if not c.same}
    assert parted == {"torch then jax"}, "the other order never hands a velocity to the forgetful one"


def test_a_framework_that_dies_in_a_relay_leaves_the_others_to_it(tiny: Subject) -> None:
    for dies_at in (1, 2, 3, 4, 7):
        tiny.failures.clear()
        frameworks = [
            HandMade(name, tiny.folder, core, dies_at=dies_at if name == "jax" else None)
            for core, name in enumerate(("torch", "jax", "tensorflow"))
        ]
        found = relayed(tiny, *frameworks)
        assert tiny.failures == {"jax": "worker jax ended with SIGKILL"}
        assert found.status == "passed", found.sentence
        assert found.details["orders"] == 2
        assert {c.a for c in found.comparisons} == {"torch then tensorflow", "tensorflow then torch"}


def test_a_relay_of_one_is_skipped(tiny: Subject) -> None:
    assert relayed(tiny, HandMade("torch", tiny.folder)).status == "skipped"
    tiny.failures.clear()
    assert relayed(tiny, HandMade("torch", tiny.folder), HandMade("jax", tiny.folder, dies_at=1)).status == "skipped"
    tiny.failures.clear()
    pair = [HandMade(name, tiny.folder) for name in ("torch", "jax")]
    assert relayed(tiny, *pair, steps=1).status == "skipped"


# ---- The command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("check",), "check needs a SPEC"), (("check", "nope"), "no such spec"),
        (("check", "digits_cnn", "--rungs", "9"), "there is no rung '9' (rungs: 1 forward, 2 gradients"),
        (("check", "digits_cnn", "--rungs", "3-1"), "there is no rung '3-1'"),
        (("check", "digits_cnn", "--precision", "float16"), "--precision is float64, float32, tf32 or bfloat16, got 'float16'"),
        (("check", "digits_cnn", "--precision", ""), "--precision is float64, float32, tf32 or bfloat16, got ''"),
        (("check", "digits_cnn", "--precision", "tf32"), "--precision tf32: TF32 products exist on GPUs alone"),
        (("check", "--power", "--precision", "bfloat16"), "--precision bfloat16: --power plants its faults in float64 or float32"),
        (("check", "digits_cnn", "--backends", "mxnet"), "unknown backend 'mxnet'"),
        (("check", "digits_cnn", "--steps", "1"), "--steps is at least 2, got 1"),
        (("check", "digits_cnn", "--twins", "4"), "--twins is at least 5, got 4"),
        (("check", "digits_cnn", "--timeout", "0"), "--timeout is above 0"),
        (("check", "digits_cnn", "digits_cnn"), "two specs are called 'digits_cnn'"),
        (("check", "digits_cnn", "--json", "/no/such/dir/x.json"), "there is no directory"),
        (("check", "digits_cnn", "--python", "torch=/no/such"), "does not exist"),
        (("check", "digits_cnn", "--power", "--mutant", "padding on the wrong sides"), "there is no fault 'padding on the wrong sides'; did you mean 'padding on the wrong side'?"),
        (("check", "--power", "--mutant", "fish"), "there is no fault 'fish'"),
        (("check", "--power", "--table", "/no/such/dir/x.md"), "there is no directory"),
    ],
)  # fmt: skip
def test_a_wrong_check_exits_with_2_and_one_sentence(arguments: tuple[str, ...], expected: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert expected in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture
def spec_file(tmp_path: Path) -> str:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(text_of({"dense": 3}, "tanh", {"dense": 1})))
    return str(path)


def test_a_folder_with_something_in_it_is_refused(spec_file: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    done = call("check", spec_file, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "exists and is not an empty directory" in done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]
    assert call("check", spec_file, "--out", spec_file).returncode == 2


@pytest.fixture
def bad_python(tmp_path: Path) -> str:
    path = tmp_path / "bad"
    path.write_text("#!/bin/sh\necho it broke\nexit 1\n")
    path.chmod(0o755)
    return str(path)


def test_backends_that_cannot_start_exit_with_3_and_json_is_alone(spec_file: str, bad_python: str) -> None:
    pythons = [f"--python={name}={bad_python}" for name in ("torch", "tensorflow", "jax")]
    done = call("check", spec_file, *pythons, "--json", "-")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"schema", "checks"}
    (said,) = found["checks"]
    assert (said["verdict"], said["exit"], said["rungs"], said["spec"]) == ("failed", 3, [], "case")
    assert set(said["failures"]) == {"torch", "tensorflow", "jax"}
    assert all("ended with status 1" in why and "it broke" in why for why in said["failures"].values())
    shown = call("check", spec_file, *pythons)
    assert shown.returncode == 3
    assert "FAILED" in shown.stdout
    assert "it broke" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_emit_writes_the_observed_variant() -> None:
    plain, observed = (call("emit", "digits_mlp", "--backend", "jax", *extra) for extra in ((), ("--observe",)))
    assert (plain.returncode, observed.returncode) == (0, 0)
    assert 'values["logits"]' in observed.stdout
    assert 'values["logits"]' not in plain.stdout
    compile(observed.stdout, "program", "exec")
    assert "also returns every node's value and gradient" in " ".join(call("emit", "--help").stdout.split())


# ---- With frameworks


Shared = dict[str, dict[str, LiveWorker]]
several = pytest.mark.skipif(len(INSTALLED) < 2, reason="needs two frameworks")
PAIR = tuple(name for name in ("torch", "jax") if name in INSTALLED) if len(INSTALLED) > 2 else INSTALLED
"""Two backends, those that start soonest where there is a choice."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A live worker for each backend and precision, for every test below."""
    folder = tmp_path_factory.mktemp("shared")
    with workers(INSTALLED, ("float64", "float32"), interpreters(), folder, 300) as (found, failures):
        assert not failures
        yield found


@pytest.fixture
def borrowed(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks take the shared workers, and leave them running."""

    @contextmanager
    def lend(backends: Sequence[str], precisions: Sequence[str], *_: object) -> Iterator[tuple[Shared, dict[str, str]]]:
        yield {p: {b: shared[p][b] for b in backends} for p in precisions}, {}

    monkeypatch.setattr(climb, "workers", lend)


def check(target: Text | str, folder: Path, **options: object) -> CheckResult:
    """One spec's check, of all installed backends in both precisions unless told otherwise."""
    if isinstance(target, dict):
        path = folder / "case.yaml"
        path.write_text(json.dumps(target))
        target = str(path)
    chosen: dict[str, Any] = {"backends": INSTALLED, "steps": 12, **options}
    (found,) = climb.check([target], CheckOptions(**chosen))
    return found


def why(found: CheckResult) -> list[str]:
    return [f"{r.name} {r.precision}: {r.status}: {r.sentence}" for r in found.rungs] + [*found.failures.values()]


@pytest.mark.frameworks
@several
@pytest.mark.parametrize("name", ["linear_regression", pytest.param("digits_mlp", marks=pytest.mark.slow)])
def test_honest_programs_pass_every_rung_in_both_precisions(name: str, tmp_path: Path, borrowed: None) -> None:
    found = check(name, tmp_path, out=tmp_path / "out")
    assert (found.verdict, found.exit) == ("passed", 0), why(found)
    assert [(r.name, r.precision) for r in found.rungs] == [(r, p) for p in ("float64", "float32") for r in USUAL]
    for rung in found.rungs:
        if rung.name != "twins":
            assert rung.worst is not None
            assert rung.worst.worst is not None
            assert sum(c.compared for c in rung.comparisons) >= 3 * len(INSTALLED)
    written = json.loads((tmp_path / "out" / name / "check.json").read_text())
    assert written == json.loads(json.dumps(found.to_json()))
    assert (tmp_path / "out" / name / "float64" / "inputs" / "data.safetensors").exists(), "--out keeps what was used"


SILENT = {
    "a head that starts at zero": (
        text_of({"dense": 3}, "tanh", {"dense": {"units": 1, "kernel_init": "zeros"}}),
        {"forward": "can be anything without a trace in the output", "gradients": "is zero everywhere"},
    ),
    "a rate of zero": (
        text_of({"dense": 3}, "tanh", {"dense": 1}, rate=0.0),
        {"optimizer": "did not move", "trajectory": "never moves after the first step", "twins": "never moves", "relay": "never moves"},
    ),
    "units that are dead": (
        text_of({"dense": {"units": 3, "bias_init": {"constant": -1e6}}}, "relu", {"dense": {"units": 1, "bias": False}}),
        {"forward": "does not move when", "gradients": "does not move when", "optimizer": "did not move", "trajectory": "never moves after the first step", "twins": "never moves", "relay": "never moves"},
    ),
}  # fmt: skip


@pytest.mark.frameworks
@several
@pytest.mark.parametrize("case", SILENT)
def test_what_would_pass_whatever_the_network_did_is_void(case: str, tmp_path: Path, borrowed: None) -> None:
    text, expected = SILENT[case]
    found = check(text, tmp_path, backends=PAIR, precisions=("float64",))
    assert (found.verdict, found.exit) == ("void", 1), why(found)
    said = {rung.name: rung for rung in found.rungs}
    for name, part in expected.items():
        assert said[name].status == "void", why(found)
        assert part in said[name].sentence, said[name].sentence
        assert said[name].sentence.endswith("it would pass whatever they did")


FAULTS = {
    "padding on the wrong side": ("digits_cnn", "forward"),
    "activation without its gradient": ("digits_mlp", "gradients"),
    "Adam's epsilon of Keras": ("digits_mlp", "optimizer"),
    "same mask at every step": ("digits_mlp", "trajectory"),
}


def planted(name: str, faults: Sequence[str], **options: object) -> PowerResult:
    chosen: dict[str, Any] = {"backends": PAIR, "precisions": ("float64",), "steps": 12, **options}
    return climb.planted([name], CheckOptions(**chosen), mutants=faults, bisect=False)


@pytest.mark.frameworks
@several
@pytest.mark.parametrize("name", sorted({name for name, _ in FAULTS.values()}))
def test_a_canary_is_killed_by_the_rung_it_belongs_to(name: str, borrowed: None) -> None:
    faults = [fault for fault, (where, _) in FAULTS.items() if where == name]
    found = planted(name, faults)
    assert not found.failures
    assert {(cell.mutant, cell.backend) for cell in found.cells} == {(f, b) for f in faults for b in PAIR}
    for cell in found.cells:
        assert not cell.error
        rungs = [rung for rung, outcome in cell.outcomes.items() if outcome == "killed"]
        assert rungs[:1] == [FAULTS[cell.mutant][1]], (cell.mutant, cell.backend, cell.outcomes)
    assert found.exit == 0
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.frameworks
@several
@pytest.mark.parametrize("name", ["untied_embedding", pytest.param("smaller_last_batch", marks=pytest.mark.slow)])
def test_a_seeded_sample_of_the_catalogue_is_found(name: str, tmp_path: Path, borrowed: None) -> None:
    """The whole of it takes hours: `nox -s power`."""
    program = program_of(PROBES[name])
    path = tmp_path / f"{name}.yaml"
    path.write_text(PROBES[name])
    known = [m.name for m in MUTANTS if any(plant(m, program, b) is not None for b in PAIR)]
    faults = random.Random(17).sample(known, 6)  # noqa: S311 - no secret
    found = planted(str(path), faults)
    assert not found.failures
    assert {cell.mutant for cell in found.cells} == set(faults)
    assert [(c.mutant, c.backend, c.where) for c in found.cells if not c.killed] == []
    tried = {(c.mutant, c.backend) for c in found.cells} | {(u.mutant, u.backend) for u in found.untried}
    assert tried == {(fault, backend) for fault in faults for backend in PAIR}, "found, or not tried, and said"
    assert all(one.why for one in found.untried)


@pytest.mark.frameworks
@several
def test_an_honest_program_survives_where_faults_are_planted(monkeypatch: pytest.MonkeyPatch, borrowed: None) -> None:
    from harness.check import power  # noqa: PLC0415
    from harness.check.mutants import Mutant  # noqa: PLC0415

    def plan(
        program: Program, backend: str, precision: str, only: Callable[[Mutant], bool], *, observe: bool
    ) -> list[power.Planting]:
        import importlib  # noqa: PLC0415

        emitter = importlib.import_module(f"backends.{backend}.emit")
        return [power.Planting(MUTANTS[0], "first", emitter.emit(program, precision, 1, observe=observe))]

    monkeypatch.setattr(power, "plan", plan)
    found = planted("linear_regression", [MUTANTS[0].name])
    assert len(found.cells) == len(PAIR)
    assert all(set(cell.outcomes.values()) == {"survived"} for cell in found.cells), found.cells
    assert found.exit == 1


@pytest.mark.frameworks
@several
def test_a_relay_catches_a_session_that_loses_its_optimizer(
    tmp_path: Path, borrowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of({"dense": 3}, "tanh", {"dense": 1})
    honest = check(text, tmp_path, backends=PAIR, precisions=("float64",), rungs=("relay",))
    assert honest.verdict == "passed", why(honest)
    ask = LiveWorker.ask

    def forgetful(self: LiveWorker, do: str, **fields: Any) -> dict[str, Any]:
        if do == "load" and self.backend == PAIR[-1]:
            arrays = load_file(fields["arrays"])
            kept = {n: np.zeros_like(a) if "/velocity/" in n else a for n, a in arrays.items()}
            fields["arrays"] = str(tmp_path / f"forgotten-{len(list(tmp_path.iterdir()))}.safetensors")
            save_file(kept, fields["arrays"])
        return ask(self, do, **fields)

    monkeypatch.setattr(LiveWorker, "ask", forgetful)
    found = check(text, tmp_path, backends=PAIR, precisions=("float64",), rungs=("trajectory", "relay"))
    said = {rung.name: rung for rung in found.rungs}
    assert said["trajectory"].status == "passed", "nothing is lost where nothing is handed over"
    assert said["relay"].status == "failed", why(found)
    assert {c.a for c in said["relay"].comparisons if not c.same} == {f"{PAIR[0]} then {PAIR[-1]}"}


def victim(folder: Path, backend: str) -> psutil.Process:
    """The worker of a backend: the child of this process that was started in its folder."""
    place = folder / "workers" / f"{backend}-float64"
    (found,) = [p for p in psutil.Process().children() if p.is_running() and Path(p.cwd()) == place]
    return found


@pytest.mark.frameworks
@several
def test_a_backend_that_is_killed_leaves_the_others_and_their_rungs(tmp_path: Path) -> None:
    text = text_of({"dense": 3}, "tanh", {"dense": 1})
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(text))
    folder = tmp_path / "out"
    lost = PAIR[-1]

    def listen(_spec: str, event: Mapping[str, Any]) -> None:
        if event.get("phase") == "float64 optimizer":
            os.kill(victim(folder.resolve(), lost).pid, signal.SIGKILL)

    options = CheckOptions(backends=PAIR, precisions=("float64",), steps=12, out=folder)
    (found,) = climb.check([path], options, listen)
    assert (found.verdict, found.exit) == ("failed", 3)
    assert set(found.failures) == {lost}
    assert "ended with SIGKILL" in found.failures[lost]
    statuses = {rung.name: rung.status for rung in found.rungs}
    assert set(statuses) == set(USUAL), why(found)
    assert all(statuses[name] == "passed" for name in ("forward", "gradients", "optimizer"))
    assert statuses["twins"] == statuses["relay"] == "skipped", "nobody is left to compare with"
    assert statuses["trajectory"] != "passed"
    assert not psutil.Process().children() or not any(
        folder.name in str(p.cwd()) for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE
    )


def measured(
    monkeypatch: pytest.MonkeyPatch,
    shift: float,
    shaken: Callable[[int], Any],
    steady: Sequence[str] = ("torch", "jax"),
) -> tuple[long.Drift | None, list[int]]:
    """The drift of two trainings whose first elements are `shift` apart, and the shaken twins that were asked for."""
    asked: list[int] = []
    subject = fake({"null": "why"})
    subject.backends = ("torch", "jax")

    def further(_subject: Any, _steps: int, _names: Sequence[str], number: int) -> Any:
        asked.append(number)
        return shaken(number)

    monkeypatch.setattr(long, "twin_distances", lambda *_: {name: list(own) for name, own in TWINS.items()})
    monkeypatch.setattr(long, "loads_anew", lambda *_: list(steady))
    monkeypatch.setattr(long, "shaken_distances", further)
    trainings = {"torch": trained(BASE), "jax": trained(shifted(a=shift))}
    return long.measured(subject, trainings, 3, 2), asked


def far(by: float) -> dict[str, list[dict[str, list[float]]]]:
    """What one shaken twin of each says: so far from its training in the tensor that parts."""
    return {name: [{"a": list(by * STEP), "b": [0.0] * 3, "null": [0.0] * 3}] for name in ("torch", "jax")}


def test_shaken_twins_are_asked_for_what_plain_ones_do_not_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tensor alone, plain twins part by 3e-10: 5e-10 is 1.7 times that, 2.4e-9 eight times, 1e-7 three hundred times."""
    assert measured(monkeypatch, 5e-10, lambda _n: far(1.0))[1] == []
    found, asked = measured(monkeypatch, 2.4e-9, lambda n: far((3e-10, 4e-10, 1e-9)[n]))
    assert found is not None
    assert (found.count, asked) == (5, [0, 1, 2]), "two plain ones, and shaken ones as long as it is near"
    assert found.worst < TIMES
    found, asked = measured(monkeypatch, 1e-7, lambda _n: far(1e-10))
    assert found is not None
    assert asked == [0], "one, where it is far"
    assert found.worst > TIMES


def test_what_is_loaded_otherwise_has_no_shaken_twins_and_who_dies_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = measured(monkeypatch, 2.4e-9, lambda _n: far(1.0), steady=())
    assert found is not None
    assert (found.count, asked) == (2, [])
    assert found.worst > TIMES, "nothing excuses it"

    def dies(_number: int) -> Any:
        raise HarnessError("no worker said its first gradients")

    found, asked = measured(monkeypatch, 2.4e-9, dies)
    assert found is not None
    assert (found.count, asked) == (2, [0])
