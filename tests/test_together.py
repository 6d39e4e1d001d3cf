"""Several benchmarks at once: prepared side by side, timed one after the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from build import INSTALLED

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "together.py"


def called(out: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(out), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_a_wrong_call_starts_nothing(tmp_path: Path) -> None:
    done = called(tmp_path / "out.json", "linear_regression:tf32", "--", "backends=torch")
    assert done.returncode == 2
    assert done.stderr.startswith("--precision tf32: TF32 products exist on GPUs alone")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.frameworks
@pytest.mark.skipif("torch" not in INSTALLED, reason="torch is not installed")
def test_each_is_timed_alone_and_one_that_fails_is_left_out(tmp_path: Path) -> None:
    wanted = ["linear_regression", "no_such_spec", "digits_mlp:float64"]
    done = called(tmp_path / "out.json", *wanted, "--", "backends=torch", "lanes=default", "parts=", "rounds=8")
    assert done.returncode == 1, "one of them failed"
    assert "no_such_spec: " in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert [(own["spec"], own["precision"], own["verdict"]) for own in found] == [
        ("linear_regression", "float32", "same"),
        ("digits_mlp", "float64", "same"),
    ]
    assert all(any("suspended" in note for note in own["notes"]) for own in found)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    turns = [line for line in done.stderr.splitlines() if line.endswith(("warm-up", "rounds"))]
    specs = [line.split()[2] for line in turns]
    assert specs == sorted(specs, key=specs.index), "nobody is timed while another is"
