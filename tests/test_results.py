"""What float64 may excuse, and what it may not; a result survives its JSON. Needs no framework."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.results import BackendResult, RunResult, clean, numbers


def result(**changes: Any) -> RunResult:
    """A float32 run of two backends that part at the third step."""
    losses = {"torch": [2.0, 1.0, 0.5], "jax": [2.0, 1.0, 0.6]}
    made: dict[str, Any] = {
        "spec": "s", "about": "", "directory": Path("run"), "verdict": "differs", "steps": 3, "seed": 0,
        "precision": "float32", "threads": 1, "device": "cpu",
        "backends": {b: BackendResult(b, "ok", losses={"net": values}) for b, values in losses.items()},
        "comparisons": [], "series": {"torch~jax": {"loss": {"net": [0.0, 1e-9, 0.1]}, "state": []}}, "notes": [],
        "zero_gradient": {}, "drift": {}, "tolerances": {"loss": {"relative": 1e-5, "floor": 0.0}},
    }  # fmt: skip
    return RunResult(**{**made, **changes})


def comparison(*, same: bool) -> dict[str, Any]:
    return {"what": "loss", "a": "torch", "b": "jax", "same": same, "worst": None, "missing": [], "compared": 3}


def test_rounding_that_grew_is_the_same_and_the_first_step_that_parts_is_named() -> None:
    parted = result(verdict="same", comparisons=[comparison(same=True)])
    settled = parted.with_evidence(result(verdict="same", precision="float64"))
    assert (settled.verdict, settled.exit) == ("same", 0)
    assert "the losses of 'net' part by more than their tolerance from step 3 on (torch and jax first)" in settled.notes[0]  # fmt: skip
    assert "agree over the first 3 steps" in settled.notes[0]


@pytest.mark.parametrize(
    ("own", "exact", "verdict", "said"),
    [
        # What twins excuse in float32, float64 may still find; what they don't, float64 does not excuse.
        ("same", "differs", "differs", "this is not rounding"),
        ("differs", "differs", "differs", "this is not rounding"),
        ("differs", "same", "differs", "look for what only float32 does"),
        ("failed", "same", "failed", "look for what only float32 does"),
        ("failed", "differs", "failed", "this is not rounding"),
        ("same", "failed", "same", "could not be held against each other"),
        ("differs", "failed", "differs", "could not be held against each other"),
    ],
)
def test_float64_excuses_nothing_that_twins_do_not(own: str, exact: str, verdict: str, said: str) -> None:
    parted = result(verdict=own, comparisons=[comparison(same=own == "same")], twins={"count": 3, "worst": None})
    settled = parted.with_evidence(result(verdict=exact, precision="float64"))
    assert settled.verdict == verdict
    assert said in settled.notes[0]


def test_float64_that_differs_counts_though_another_backend_failed_there() -> None:
    parted = result(verdict="same", comparisons=[comparison(same=True)], twins={"count": 3, "worst": None})
    exact = result(verdict="failed", precision="float64", comparisons=[comparison(same=False)])
    assert parted.with_evidence(exact).verdict == "differs"


def test_without_a_twin_nothing_is_said_of_rounding() -> None:
    parted = result(verdict="differs", comparisons=[comparison(same=False)])
    (note,) = parted.with_evidence(result(verdict="same", precision="float64")).notes
    assert "no twin says whether rounding explains it" in note


def test_a_result_survives_strict_json() -> None:
    values = {"a": [float("nan"), float("inf"), -float("inf"), 1.5], "b": "NaN of a kind"}
    text = json.dumps(clean(values), allow_nan=False)
    again = numbers(json.loads(text))
    assert str(again) == str(values)
