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


def test_rounding_that_grew_is_the_same_and_the_first_step_that_parts_is_named() -> None:
    settled = result().with_evidence(result(verdict="same", precision="float64"))
    assert (settled.verdict, settled.exit) == ("same", 0)
    assert (
        "the losses of 'net' part by more than their tolerance from step 3 on (torch and jax first)" in settled.notes[0]
    )


@pytest.mark.parametrize(
    ("changes", "exact", "verdict"),
    [
        ({"began": False}, "same", "differs"),
        ({}, "differs", "differs"),
        ({}, "failed", "differs"),
        ({"verdict": "failed"}, "same", "failed"),
    ],
)
def test_float64_excuses_nothing_else(changes: dict[str, Any], exact: str, verdict: str) -> None:
    settled = result(**changes).with_evidence(result(verdict=exact, precision="float64"))
    assert settled.verdict == verdict
    assert settled.exit != 0
    assert settled.notes


def test_a_result_survives_strict_json() -> None:
    values = {"a": [float("nan"), float("inf"), -float("inf"), 1.5], "b": "NaN of a kind"}
    text = json.dumps(clean(values), allow_nan=False)
    again = numbers(json.loads(text))
    assert str(again) == str(values)
