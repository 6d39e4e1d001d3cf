"""What a full disk, a link, a locale, a closed pipe or a silent worker costs: what it touches, and nothing else. Needs no framework."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, spec_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_checkpoint import made
from test_cli import call
from test_report import backend
from test_report import directory as run_directory
from test_report import run as run_result

from harness import environment, files, life, progress, report, runs
from harness.checkpoint import Checkpoint
from harness.environment import Interpreter, examine, interpreters, require_device
from harness.errors import CallError
from harness.files import write_arrays, write_bytes, write_last, write_named, write_text
from harness.life import Life
from harness.programs import emitted, written
from harness.results import RunResult
from harness.runs import Options

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


# ---- Files


def many(path: Path) -> list[Callable[[], None]]:
    return [
        lambda: write_text(path, "new"), lambda: write_bytes(path, b"new"), lambda: write_last(path, ["new"]),
        lambda: write_arrays(path, {"new": np.zeros(3)}),
    ]  # fmt: skip


@pytest.mark.parametrize("way", range(4))
def test_nothing_is_written_through_a_link(tmp_path: Path, way: int) -> None:
    secret, path = tmp_path / "secret", tmp_path / "result.json"
    secret.write_text("precious")
    path.symlink_to(secret)
    (tmp_path / "result.json.part").symlink_to(secret)
    many(path)[way]()
    assert secret.read_text() == "precious"
    assert path.is_file()
    assert not path.is_symlink()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("way", range(4))
def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, way: int) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    # A file of at most 2 bytes: what a full disk does, to this process alone.
    code = (
        "import resource, signal, sys; from pathlib import Path; import test_process\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2, 2))\n"
        f"try: test_process.many(Path({str(path)!r}))[{way}]()\n"
        "except OSError as error: sys.exit(0 if error.filename == sys.argv[1] and error.strerror else 4)\n"
        "sys.exit(5)"
    )
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(environment.ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, env=here
    )
    assert done.returncode == 0, done.stderr
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@needs_full
def test_a_file_that_the_user_names_may_be_a_device_or_a_link(tmp_path: Path) -> None:
    write_named(Path(os.devnull), "x")
    assert not Path(os.devnull).is_file()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_named(tmp_path / "link", "x")
    assert (tmp_path / "there").read_text() == "x"
    with pytest.raises(OSError, match="No space left") as caught:
        write_named(FULL, "x")
    assert files.error_text(caught.value) == "/dev/full: No space left on device"


@pytest.mark.parametrize("place", ["charts", "report.html", "report.md", "charts/seconds.svg", "charts/seconds.png"])
def test_a_report_is_not_written_through_a_link(tmp_path: Path, place: str) -> None:
    folder = run_directory(tmp_path / "run", run_result(backend("torch"), backend("jax", 1e-8)))
    outside = tmp_path / "outside"
    if place == "charts":
        outside.mkdir()
    else:
        outside.write_text("precious")
        (folder / "charts").mkdir()
    (folder / place).symlink_to(outside)
    if place == "charts":
        with pytest.raises(CallError, match="is a symbolic link, and nothing is written through one"):
            report.write(folder)
        assert not list(outside.iterdir())
    else:
        report.write(folder)
        assert outside.read_text() == "precious"
        assert not (folder / place).is_symlink()


# ---- The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_directory(tmp_path / "run", run_result(backend("torch"), backend("jax", 1e-8)))


def shell(command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    here = os.environ | {"H": f"{sys.executable} -m harness", "PYTHONPATH": str(environment.ROOT)} | variables
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=here, errors="replace")  # fmt: skip


def test_a_locale_without_the_characters_is_no_traceback(folder: Path) -> None:
    done = shell(f"$H report {folder}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "?" in done.stdout
    done = shell("$H emit digits_cnn --backend torch", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="POSIX")
    assert done.returncode == 0, done.stderr
    assert done.stdout == shell("$H emit digits_cnn --backend torch").stdout


def test_no_text_is_read_or_written_in_the_locale_s_encoding() -> None:
    code = "import harness; [harness.load('digits_cnn').emit(b) for b in ('torch', 'tensorflow', 'jax')]"
    done = shell(f'{sys.executable} -X warn_default_encoding -W error::EncodingWarning:harness -c "{code}"')
    assert done.returncode == 0, done.stderr


@needs_full
def test_a_full_standard_output_is_a_sentence(folder: Path) -> None:
    for command in (f"$H report {folder} > /dev/full", "$H emit digits_cnn --backend jax > /dev/full", "$H list ops > /dev/full"):  # fmt: skip
        done = shell(command)
        assert done.returncode == 2
        assert done.stderr == "error: cannot write standard output: No space left on device\n"
    assert shell("$H list ops 2>&- >&-").returncode == 0, "closed streams are no fault"


FAILING = "#!/bin/sh\necho it broke\nexit 1\n"


@pytest.fixture
def failing(tmp_path: Path) -> str:
    """A run whose worker fails at once: exit 3."""
    (tmp_path / "bad").write_text(FAILING)
    (tmp_path / "bad").chmod(0o755)
    (tmp_path / "case.yaml").write_text(json.dumps(spec_of(CASES["dense"])))
    return f"$H run {tmp_path}/case.yaml --backends torch --python torch={tmp_path}/bad --out {tmp_path}/out"


@needs_full
def test_a_run_s_exit_status_is_its_verdict_s_whoever_reads_it(failing: str, tmp_path: Path) -> None:
    done = shell(f"{failing} | head -1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("FAILED")
    assert done.stderr == ""
    (tmp_path / "out").rename(tmp_path / "first")
    done = shell(f"{failing} > /dev/full")
    assert done.returncode == 3
    assert done.stderr.startswith("error: cannot write standard output: No space left on device (")
    assert "failed)" in done.stderr
    (tmp_path / "out").rename(tmp_path / "second")
    done = shell(f"{failing} --json /dev/full")
    assert done.returncode == 3
    assert "FAILED" in done.stdout
    assert "error: cannot write /dev/full: No space left on device (" in done.stderr


def test_a_drawing_process_that_dies_costs_the_charts(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import drawing  # noqa: PLC0415

    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("import os; os.abort()")
    monkeypatch.setattr(drawing, "ROOT", tmp_path)
    done = call(*failing.split()[1:])
    assert done.returncode == 3
    assert done.stdout.startswith("FAILED")
    assert done.stderr == "error: the report lacks charts: the process that draws ended with SIGABRT\n"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "it broke" in page
    assert "<svg" not in page


def test_an_interrupt_in_the_first_second_is_no_traceback() -> None:
    for delay in (0.05, 0.1, 0.2, 0.4, 0.8):
        # Where this suite runs in the background of a shell, Ctrl-C is ignored, and children inherit that.
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from harness.command import main; print(flush=True); main()"
        command = [sys.executable, "-c", code, "list", "ops"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert process.returncode in (0, 130), errors


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        ("ValueError('a model could not be built') from None", 130),
        ("OSError('a file could not be read')", 130),
        ("kept = ValueError('field: KeyboardInterrupt: '); kept.__context__ = None; raise kept", 130),
        ("", 1),
    ],
)
def test_an_interrupt_of_which_a_library_makes_another_error_is_no_traceback(raised: str, status: int) -> None:
    # pydantic's core, interrupted while it builds a model, raises a SchemaError that only mentions KeyboardInterrupt.
    # A defect that comes after an interrupt that was heeded is told as a defect.
    code = f"""
import os, signal
from harness import catalogue, cli

def listing(what):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("no interrupt came")
    except KeyboardInterrupt:
        {f"raise {raised}" if raised and "kept" not in raised else raised or "pass"}
    raise KeyError("a defect")

signal.signal(signal.SIGINT, signal.default_int_handler)
catalogue.listing = listing
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "ops"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status
    assert (done.stderr == "interrupted; no result was written\n") == (status == 130)
    assert ("KeyError: 'a defect'" in done.stderr) == (status == 1)


def test_an_interpreter_that_prints_anything_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (out, expected) in enumerate([
        (r"\377\376", "exited with status 3: oops"), ("[1]", "exited with status 3: oops"), ("{}", "exited with status 3: oops"),
        ('{"versions": {}, "devices": [1]}', "exited with status 3: oops"), ("[" * 9, "exited with status 3: oops"),
    ]):  # fmt: skip
        path = tmp_path / f"bad{number}"
        path.write_text(f"#!/bin/sh\nprintf '{out}\\n'; printf '\\377oops\\n' >&2; exit 3\n")
        path.chmod(0o755)
        python = interpreters((f"torch=bad{number}",))["torch"]
        assert examine("torch", python)["error"].replace("�", "") == expected


# ---- A GPU that is not there


def test_a_gpu_that_no_framework_finds_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: dict[str, dict[str, Any]] = {
        "torch": {"versions": {"torch": "2.13.0+cpu"}, "devices": ["cpu"], "build": "CPU"},
        "tensorflow": {"versions": {"tensorflow": "2.21"}, "devices": ["NVIDIA H200"]},
        "jax": {"error": "RuntimeError: Unknown backend cuda"},
    }
    monkeypatch.setattr(environment, "_examined", lambda name, _python, _device: facts[name])
    monkeypatch.setattr(environment, "_gpu_nodes", lambda: False)
    (tmp_path / "case.yaml").write_text(json.dumps(spec_of(CASES["dense"])))
    with pytest.raises(CallError) as caught:
        runs.run(tmp_path / "case.yaml", Options(device="gpu", out=tmp_path / "out"))
    said = str(caught.value)
    assert "no GPU is found here (torch: torch 2.13.0+cpu, built for CPU, sees cpu; jax: RuntimeError" in said
    assert "tensorflow" not in said
    assert not (tmp_path / "out").exists()
    facts["torch"] = facts["jax"] = facts["tensorflow"]
    python = dict.fromkeys(facts, Interpreter(sys.executable, "this environment"))
    require_device("gpu", tuple(facts), python)
    require_device("cpu", tuple(facts), {})
    # Where there is a GPU, what cannot be imported is a row of the run, not a reason to refuse it.
    facts["jax"] = {"error": "ModuleNotFoundError: jax"}
    monkeypatch.setattr(environment, "_gpu_nodes", lambda: True)
    require_device("gpu", tuple(facts), python)


# ---- Programs that are none


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it has no Net, PARAMETERS"), ("import nowhere\n", "it has no Net, PARAMETERS"), ("PARAMETERS = {}", "it has no Net, STATISTICS"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_version_of_the_program_is_refused(text: str, expected: str) -> None:
    from build import program_of  # noqa: PLC0415

    program = program_of(spec_of(CASES["dense"]))
    for name in ("torch", "tensorflow", "jax"):
        with pytest.raises(CallError, match=r"own.py: is no version of the program that is emitted for 'case'"):
            written(name, text, "own.py", [program])
        own = emitted(program, name, "float32")
        assert written(name, own + "\nEXTRA = 1\n", "own.py", [program]).text.endswith("EXTRA = 1\n")
    with pytest.raises(CallError) as caught:
        written("torch", text, "own.py", [program])
    assert expected.replace("it has no ", "")[:3] in str(caught.value)
    written("torch", "from elsewhere import *\n", "own.py", [program])


# ---- Signs of life


def process_of(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)


def given_up(code: str, *, patient: bool, seconds: float, timeout: float = 1.5) -> str:
    """Why a process that says nothing is given up within some seconds; nothing where it is not."""
    with process_of(code) as process:
        try:
            own = Life(process.pid, timeout, patient=patient)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if why := own.over():
                    return why
                time.sleep(0.1)
            return ""
        finally:
            process.kill()


def test_what_imports_or_compiles_is_alive_while_it_works() -> None:
    busy, idle = "while True: pass", "import time; time.sleep(100)"
    assert given_up(idle, patient=True, seconds=20) == "gave no sign of life for 1.5 seconds"
    assert given_up(busy, patient=False, seconds=20) == "gave no sign of life for 1.5 seconds", "a training that hangs in a circle"  # fmt: skip
    assert given_up(busy, patient=True, seconds=4) == ""


def test_a_compiler_in_a_process_of_its_own_is_a_sign_of_life() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    # The grandchild ends with its parent's end of the pipe; here it is found and killed.
    with process_of(child) as process:
        try:
            time.sleep(1.5)
            first = life.processor_seconds(process.pid)
            time.sleep(1.5)
            assert life.processor_seconds(process.pid) > first + 0.05
        finally:
            import psutil  # noqa: PLC0415

            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()


def test_whoever_turns_in_a_circle_is_given_up_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "PATIENCE", 2)
    assert "worked for 3 seconds and gave no sign of life" in given_up("while True: pass", patient=True, seconds=20)


def test_a_process_that_is_stopped_gives_no_sign_of_life() -> None:
    with process_of("while True: pass") as process:
        process.send_signal(signal.SIGSTOP)
        own, until = Life(process.pid, 1.0), time.monotonic() + 20
        while not (why := own.over()) and time.monotonic() < until:
            time.sleep(0.1)
        process.kill()
    assert why == "gave no sign of life for 1 seconds"


# ---- Checkpoints


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Arrays of a checkpoint changed, with the digest that these have: as somebody who knows the format would."""
    from safetensors import safe_open  # noqa: PLC0415

    from harness.backend import digest  # noqa: PLC0415

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path, {**metadata, "digest": digest(arrays)})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a.update({"state/dense1.kernel": np.zeros((2, 2))}), "'dense1.kernel' is [2, 2], and [4, 4] (IO) by its own table"),
        (lambda a: a.pop("state/dense1.bias"), "'dense1.bias' is missing, and [4] (O) by its own table"),
        (lambda a: a.update({"state/more": np.zeros(3)}), "'more' is [3], and missing by its own table"),
        (lambda a: a.update({"state/dense1.bias": np.zeros(4, bool)}), "'dense1.bias' holds bool values"),
        (lambda a: a.update({"optimizer/net/count": np.zeros(2)}), "'net/count' is [2] in it and [] in the spec"),
    ],
)  # fmt: skip
def test_a_checkpoint_s_arrays_have_the_shapes_of_its_table(tmp_path: Path, change: Any, expected: str) -> None:
    checkpoint, program = made()
    path = tmp_path / "c.safetensors"
    checkpoint.write(path)
    edited(path, change)
    with pytest.raises(CallError) as caught:
        Checkpoint.read(path).require(path, runs.parameter_table(program), runs.optimizer_table(program))
    assert expected in str(caught.value)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E8M0"])
def test_a_checkpoint_of_values_that_numpy_has_not_is_refused(tmp_path: Path, dtype: str) -> None:
    """Whether or not a library is loaded that gives NumPy such types, as JAX does."""
    header = json.dumps(
        {"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 4 if dtype == "BF16" else 2]}}
    ).encode()
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 if dtype == "BF16" else 2))
    with pytest.raises(CallError, match="is no safetensors file, or was cut short"):
        Checkpoint.read(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_checkpoint_with_any_bytes_changed_is_the_same_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    checkpoint, program = made()
    path = tmp_path / "c.safetensors"
    checkpoint.write(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    path.write_bytes(raw[:cut])
    try:
        read = Checkpoint.read(path)
        read.require(path, runs.parameter_table(program), runs.optimizer_table(program))
    except CallError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is right
        return
    assert {n: a.tobytes() for n, a in read.arrays().items()} == {
        n: a.tobytes() for n, a in checkpoint.arrays().items()
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["table", "columns", "seed", "steps", "step", "schema", "digest", "text", "spec", "harness", "precision"]),
    value=st.text(max_size=12) | st.sampled_from(["-1", "1e400", "[]", "{}", "null", "[" * 3000, '{"x": 1}', '{"x": {"shape": [1], "dtype": "float32"}}', '{"dense1.bias": ["ab", "O"]}', '{"a": 1}', '{"a": [[1], 2]}', "9" * 5000]),
)  # fmt: skip
def test_a_checkpoint_with_other_metadata_is_read_or_refused(tmp_path: Path, name: str, value: str) -> None:
    from safetensors import safe_open  # noqa: PLC0415

    checkpoint, program = made()
    path = tmp_path / "c.safetensors"
    checkpoint.write(path)
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    try:
        save_file(load_file(path), path, metadata | {name: value})
    except UnicodeEncodeError:
        return  # half of a surrogate pair is in no file
    try:
        read = Checkpoint.read(path)
        read.require(path, runs.parameter_table(program), runs.optimizer_table(program))
        assert read.step >= 0
        assert all(len(own["shape"]) >= 0 for own in read.origin.columns.values())
    except CallError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is right


# ---- Progress


def test_a_line_says_what_how_far_and_how_long_still() -> None:
    tracker = progress.Tracker(began=100.0)
    tracker.tell("torch", {"phase": "start", "total": 600}, 100.0)
    tracker.tell("torch", {"phase": "train"}, 110.0)
    assert tracker.line(111.0) == "0:11  torch: train"
    # The first step takes 5 s and compiles; the others half a second each.
    assert tracker.tell("torch", {"step": 1, "losses": {"net": 2.0}}, 115.0) == []
    news = [
        line for n in range(2, 21) for line in tracker.tell("torch", {"step": n, "losses": {}}, 115.0 + 0.5 * (n - 1))
    ]
    assert news == ["torch: train: 600 steps will take about 5 min"]
    assert tracker.line(125.0) == "0:25  torch: train, 20 of 600, about 5 min left"
    assert tracker.paces["torch"].left(124.5) == pytest.approx(0.5 * 580)
    tracker.tell("torch", {"exit": 0}, 500.0)
    assert tracker.line(500.0) == "6:40  torch: done"


def test_what_is_short_is_not_announced_and_a_phase_without_steps_has_no_estimate() -> None:
    tracker = progress.Tracker(began=0.0)
    tracker.tell("jax", {"phase": "train", "total": 100}, 0.0)
    assert [line for n in range(1, 50) for line in tracker.tell("jax", {"step": n, "losses": {}}, 0.1 * n)] == []
    tracker.tell("jax", {"phase": "evaluate"}, 11.0)
    assert tracker.line(12.0) == "0:12  jax: evaluate"
    assert tracker.tell("jax", {}, 13.0) == tracker.tell("jax", {"warning": "a disk is full"}, 13.0) == []


def test_the_whole_has_an_estimate_of_its_own() -> None:
    tracker = progress.Tracker(began=0.0)
    assert tracker.tell("digits", {"phase": "twins", "whole": [0, 8]}, 1.0) == []
    assert tracker.tell("digits", {"phase": "relay", "whole": [2, 8]}, 60.0) == ["all of it will take about 4 min"]
    assert tracker.line(60.0) == "1:00  digits: relay; 25 % of all, about 3 min left"


def test_a_guess_stands_until_something_was_timed() -> None:
    tracker = progress.Tracker(began=0.0)
    said = tracker.tell("resnet", {"phase": "asking", "roughly": 600.0}, 1.0)
    assert said == ["all of it will take about 10 min, by a count of its operations"]
    assert tracker.line(61.0) == "1:01  resnet: asking; about 9 min left"
    tracker.tell("resnet", {"whole": [1, 4]}, 101.0)
    assert tracker.line(101.0) == "1:41  resnet: asking; 25 % of all, about 5 min left"
    short = progress.Tracker(began=0.0)
    assert short.tell("digits", {"roughly": 20.0}, 0.0) == [], "what is short is not announced"
    assert short.line(30.0) == "0:30  digits", "a guess that was wrong is not repeated"


def test_lines_come_now_and_then_and_quiet_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.2)
    with progress.trainings() as listen:
        done = progress.counting(listen, "fuzz", "specs", 10)
        done()
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["0:00  fuzz: specs, 1 of 10"]
    with progress.trainings(quiet=True) as listen:
        progress.counting(listen, "fuzz", "specs", 10)()
        time.sleep(0.35)
        listen("fuzz", {"warning": "a disk is full"})
    assert capsys.readouterr().err == "warning: a disk is full\n"


# ---- A run whose folder goes, or fills


def python_script(folder: Path, body: str) -> str:
    path = folder / "worker"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, pathlib, shutil, sys\nfolder = pathlib.Path(sys.argv[4])\n{body}\n"
    )
    path.chmod(0o755)
    return str(path)


def test_a_run_directory_that_is_removed_costs_the_report_and_not_the_verdict(tmp_path: Path) -> None:
    bad = python_script(tmp_path, "shutil.rmtree(folder.parent)")
    (tmp_path / "case.yaml").write_text(json.dumps(spec_of(CASES["dense"])))
    out = tmp_path / "out"
    done = call(
        "run", str(tmp_path / "case.yaml"), "--backends", "torch", "--python", f"torch={bad}", "--out", str(out)
    )
    assert done.returncode == 3
    assert done.stdout.startswith("FAILED")
    assert "The result is not kept" in " ".join(done.stdout.split())
    assert done.stderr == f"error: run directory {out} does not exist\n"


def test_a_worker_says_by_its_pipe_what_its_log_cannot_take(tmp_path: Path) -> None:
    bad = python_script(
        tmp_path,
        'os.write(int(sys.argv[5]), b\'{"error": "OSError: [Errno 28] No space left on device"}\\n\'); sys.exit(1)',
    )
    (tmp_path / "case.yaml").write_text(json.dumps(spec_of(CASES["dense"])))
    result = runs.run(
        tmp_path / "case.yaml", Options(backends=("torch",), pythons=(f"torch={bad}",), out=tmp_path / "out")
    )
    assert result.backends["torch"].error == (
        "exited with status 1 before writing result.json: OSError: [Errno 28] No space left on device"
    )


def test_a_result_whose_arrays_are_gone_is_a_failed_row(tmp_path: Path) -> None:
    body = (
        "request = json.loads((folder / 'request.json').read_text())\n"
        "(folder / 'result.json').write_text(json.dumps({'request': request['digest'], 'stopped_at': None, 'recorded': []}))"
    )
    (tmp_path / "case.yaml").write_text(json.dumps(spec_of(CASES["dense"])))
    options = Options(backends=("torch",), pythons=(f"torch={python_script(tmp_path, body)}",), out=tmp_path / "out")
    result = runs.run(tmp_path / "case.yaml", options)
    assert result.backends["torch"].error.startswith("torch/outputs.safetensors cannot be read any more: ")
    assert RunResult.read(tmp_path / "out").verdict == "failed"


def test_inputs_that_cannot_be_written_are_a_refused_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(runs, "write_arrays", full)
    (tmp_path / "case.yaml").write_text(json.dumps(spec_of(CASES["dense"])))
    done = call("run", str(tmp_path / "case.yaml"), "--backends", "torch", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ")
    assert done.stderr.endswith("inputs/parameters.safetensors: No space left on device\n")


# ---- What is shown


def test_markdown_has_no_markup_of_a_result_s() -> None:
    from dataclasses import replace  # noqa: PLC0415

    from harness.report.markdown import markdown  # noqa: PLC0415
    from harness.report.sources import Sources  # noqa: PLC0415

    bad = '<img src=x onerror="alert(1)">](http://evil.example) `'
    trouble = backend("jax", status="failed", error=bad, log=f"{bad}\n```\n{bad}", text=bad)
    result = replace(
        run_result(backend("torch", text=bad), trouble), spec=bad, about=bad, precision=bad, notes=[bad], device=bad
    )
    sources = Sources(bad, f"```\n{bad}", {"torch": (f"a)<b>{bad}_torch.py", "")}, {"torch": b""}, bad, None)
    text = markdown(result, sources, [])
    outside, fence = [], ""
    for line in text.splitlines():
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line.rstrip("abcdefghijklmnopqrstuvwxyz")
        else:
            outside.append(line)
    assert not fence
    assert len(outside) > 40
    for line in outside:
        assert "<" not in line.replace("\\<", ""), line
        assert "](http" not in line.replace("\\]", ""), line


def test_an_explanation_fits_a_narrow_terminal() -> None:
    from io import StringIO  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from harness.atlas import terminal  # noqa: PLC0415
    from harness.atlas.measure import Effect, Explanation, Finding  # noqa: PLC0415
    from harness.atlas.rows import ROWS  # noqa: PLC0415

    effect = Effect("net", 1.2e-5, 0.034, 77, -0.0121, 0.051, 0.2, {"accuracy": (0.9712, 0.9433)})
    findings = (
        Finding(ROWS[0], "tensorflow", "epsilon 0.001", "epsilon 1e-5", effect),
        Finding(ROWS[1], "torch", "a half-pixel grid", "corners aligned", None, "the network cannot be built with it"),
    )
    found = Explanation("digits", 100, 0, "float64", findings, (), {}, {}, {}, 3.0)
    shown = {}
    for width in (80, 160):
        out = StringIO()
        terminal.show(found, Console(file=out, width=width))
        shown[width] = out.getvalue()
        assert all(len(line) <= width for line in shown[width].splitlines())
    narrow = " ".join(shown[80].split())
    assert "its default epsilon 0.001; the spec says epsilon 1e-5" in narrow
    assert "the loss is 1.2e-05 off at step 1, 0.034 at step 77, -0.012 at the last: 0.051 of the loss" in narrow
    assert "accuracy 0.971 → 0.943" in narrow
    assert "┃" in shown[160] or "│" in shown[160]
