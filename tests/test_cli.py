"""The command as it is typed: exit statuses, standard output, JSON. Needs no framework."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from unittest import mock

import pytest
from cases import CASES, spec_of

import harness
from harness import cli
from harness.backend import BACKENDS
from harness.bench import bench as benches
from harness.errors import CallError, SpecError


@dataclass
class Done:
    """What a command left: exit status, standard output, standard error."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str) -> Done:
    """The command in this process, as `harness ARGUMENTS` would run it; neither stream is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", ["harness", *arguments]):
        try:
            cli.main()
            status: object = 0
        except SystemExit as stop:
            status = stop.code
    assert isinstance(status, int)
    return Done(status, out.getvalue(), err.getvalue())


def test_the_command_is_also_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "harness", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, harness.__version__)


@pytest.fixture
def bad_python(tmp_path: Path) -> str:
    path = tmp_path / "bad"
    path.write_text("#!/bin/sh\necho it broke\nexit 1\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def spec_file(tmp_path: Path) -> str:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["dense"])))
    return str(path)


def test_no_arguments_is_help_and_help_is_help() -> None:
    assert "run" in call("--help").stdout
    assert call("--help").returncode == 0
    assert call("--version").stdout.strip() == harness.__version__


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run",), "Missing argument"), (("run", "nope"), "no such spec"), (("run", "nope.yaml"), "cannot be read"),
        (("run", "digits_cnn", "--backends", "pytorch"), "unknown backend 'pytorch'; here that is 'torch' (backends: torch, tensorflow, jax)"),
        (("run", "digits_cnn", "--precision", "half"), "--precision is float64, float32, tf32 or bfloat16"),
        (("run", "digits_cnn", "--stpes", "3"), "No such option"), (("run", "digits_cnn", "--steps", "x"), "Invalid value"),
        (("run", "digits_cnn", "--json", "/no/such/dir/x.json"), "there is no directory"),
        (("emit", "digits_cnn", "--backend", "mxnet"), "unknown backend 'mxnet'"),
        (("emit", "digits_cnn", "--backend", "jax", "--out", "/no/such/dir/x.py"), "cannot write"),
        (("report", "/no/such/run"), "does not exist"), (("list", "fish"), "there is no list of 'fish' (lists: specs, ops"),
        (("fly",), "No such command"),
    ],
)  # fmt: skip
def test_a_wrong_call_exits_with_2_and_one_sentence(arguments: tuple[str, ...], expected: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert expected in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_emit_writes_the_program_to_standard_output_or_a_file(tmp_path: Path) -> None:
    done = call("emit", "linear_regression", "--backend", "torch")
    assert done.returncode == 0
    compile(done.stdout, "program", "exec")
    call("emit", "linear_regression", "--backend", "torch", "--out", str(tmp_path / "p.py"))
    assert (tmp_path / "p.py").read_text() == done.stdout
    double = call("emit", "linear_regression", "--backend", "torch", "--precision", "float64").stdout
    assert "self.double()" in double


def test_a_failed_backend_exits_with_3_and_json_is_alone_on_standard_output(
    spec_file: str, bad_python: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    done = call("run", spec_file, "--backends", "torch", "--python", f"torch={bad_python}", "--out", out, "--json", "-")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["exit"], found["schema"]) == ("failed", 3, 1)
    assert found["backends"]["torch"]["log"] == "it broke"
    assert set(found) >= {
        "verdict",
        "exit",
        "backends",
        "comparisons",
        "precision",
        "steps",
        "seed",
        "threads",
        "notes",
    }
    assert set(found["backends"]["torch"]) >= {"losses", "metrics", "predictions", "seconds", "digests", "versions"}
    again = call("report", out, "--json", "-")
    assert again.returncode == 0
    assert json.loads(again.stdout) == found
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "report.md").exists()


def test_a_failed_backend_is_shown_with_its_log(spec_file: str, bad_python: str, tmp_path: Path) -> None:
    done = call(
        "run", spec_file, "--backends", "torch", "--python", f"torch={bad_python}", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 3
    assert "failed" in done.stdout
    assert "it broke" in done.stdout
    assert "report.html" in done.stdout
    assert "\x1b" not in done.stdout, "no colours where standard output is no terminal"
    assert done.stderr == "", "no progress where standard error is no terminal"


@pytest.mark.parametrize(
    "what", ["specs", "ops", "backends", "datasets", "losses", "optimizers", "schedules", "metrics", "initializers"]
)
def test_lists_are_the_same_as_text_and_as_json(what: str) -> None:
    rows = json.loads(call("list", what, "--json", "-").stdout)
    text = call("list", what).stdout
    assert rows
    assert all(name in text for name in rows)
    assert len(text.splitlines()) == len(rows), "a line each"


def test_the_schema_is_json() -> None:
    schema = json.loads(call("schema").stdout)
    assert schema["properties"].keys() >= {"name", "data", "networks", "training", "evaluation", "seed"}


def test_doctor_says_why_a_backend_cannot_be_imported(bad_python: str) -> None:
    done = call("doctor", *(f"--python={b}={bad_python}" for b in BACKENDS), "--json", "-")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert set(found) == set(BACKENDS)
    assert all("status 1" in facts["error"] and facts["origin"] == "--python" for facts in found.values())


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m harness emit digits_cnn --backend jax | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith('"""digits_cnn in JAX')


def test_the_same_from_python(spec_file: str, bad_python: str, tmp_path: Path) -> None:
    experiment = harness.load(spec_file)
    assert "<pre>" in experiment._repr_html_()
    assert "class Net" in experiment.emit("jax")
    result = harness.run(experiment, backends="torch", pythons=(f"torch={bad_python}",), out=str(tmp_path / "out"))
    assert result.verdict == "failed"
    assert "failed" in result._repr_html_()
    with pytest.raises(CallError, match="run has no option 'step'"):
        harness.run(experiment, step=3)
    with pytest.raises(CallError, match="unknown backend"):
        experiment.emit("mxnet")
    with pytest.raises(SpecError):
        harness.load("digits_cn")


def test_the_harness_and_the_emitters_import_no_framework() -> None:
    code = (
        "import sys, harness, harness.cli, harness.api, harness.runs, harness.report, harness.catalogue\n"
        "from harness.backend import BACKENDS\n"
        "for name in ('digits_cnn', 'char_transformer', 'digits_gan'):\n"
        "    for backend in BACKENDS: harness.load(name).emit(backend)\n"
        "found = {'torch', 'tensorflow', 'keras', 'jax', 'flax', 'optax'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_worker_needs_numpy_and_safetensors_alone() -> None:
    code = (
        "import sys, harness.worker, harness.backend\n"
        "heavy = {'pydantic', 'scipy', 'typer', 'rich', 'sklearn', 'pandas', 'altair', 'ruamel', 'jinja2'} & {m.partition('.')[0] for m in sys.modules}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupted_bench_says_what_its_file_has(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bench(specs: list[str], options: object, listen: object, keep: Callable[[list[object]], None]) -> NoReturn:
        for count in range(1, done + 1):
            keep([SimpleNamespace(to_json=dict) for _ in range(count)])
        raise KeyboardInterrupt

    monkeypatch.setattr(benches, "bench", bench)
    path = tmp_path / "b.json"
    said = call("bench", "linear_regression", "--backends", "jax", "--json", str(path))
    assert said.returncode == cli.INTERRUPTED
    if done:
        assert said.stderr.splitlines()[-1] == f"interrupted; {path} has what was done before: {done} of the benchmarks"
        assert len(json.loads(path.read_text())["benchmarks"]) == done
    else:
        assert "no result was written" in said.stderr
        assert not path.exists()
