"""Workers that fail: each is a row with its reason, the others finish, nothing is left behind. Needs no framework.

The interpreters here are shell scripts that misbehave; a run starts them where a Python would be.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from build import program_of
from cases import CASES, spec_of

from harness import runs, spec, supervise
from harness import side_by_side as beside
from harness.environment import backends, interpreters
from harness.errors import CallError
from harness.judge import Judging
from harness.results import BackendResult, RunResult
from harness.runs import Options
from harness.twins import TIMES, Yardstick

NAP = f"1000.{os.getpid()}"
"""Seconds, and how this suite's own sleepers are told from another's."""


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["dense"])))
    return path


def script(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("kill -9 $$", "exited with SIGKILL"),
        ("kill -11 $$", "exited with SIGSEGV"),
        ("echo one; echo two >&2; exit 7", "exited with status 7 before writing result.json"),
        ("exit 0", "exited with status 0 before writing result.json"),
        (f"sleep {NAP}", "gave no sign of life for 1 seconds"),
        (f"sleep {NAP} & exit 3", "exited with status 3"),
        ('echo \'{"request": "stale"}\' > "$4/result.json"', "its result belongs to another request"),
        ('echo "half a res" > "$4/result.json"; exit 1', "its result.json cannot be read"),
    ],
    ids=lambda value: value.replace(NAP, "long"),  # a process's number is in it
)
def test_a_worker_that_fails_is_a_row_with_its_reason(
    spec_file: Path, tmp_path: Path, body: str, expected: str
) -> None:
    bad = script(tmp_path, "bad", body)
    pythons = tuple(f"{name}={bad}" for name in ("torch", "jax"))
    started = time.monotonic()
    result = runs.run(spec_file, Options(backends=("torch", "jax"), pythons=pythons, out=tmp_path / "out", timeout=1))
    assert time.monotonic() - started < 30
    assert result.verdict == "failed"
    assert result.exit == 3
    assert set(result.backends) == {"torch", "jax"}, "one failure does not keep the other from running"
    for record in result.backends.values():
        assert record.status == "failed"
        assert expected in record.error
    if "echo two" in body:
        assert result.backends["torch"].log == "one\ntwo"
    assert RunResult.read(tmp_path / "out").to_json() == result.to_json()
    assert gone(f"sleep {NAP}"), "a stray child outlived its worker"


def gone(command: str) -> bool:
    """Whether no process has this command line, given a moment to die."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not [p for p in psutil.process_iter(["cmdline"]) if command in " ".join(p.info["cmdline"] or [])]:
            return True
        time.sleep(0.05)
    return False


def test_a_framework_that_is_not_installed_says_what_to_install(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "importable", lambda backend, _python: backend != "jax")
    bad = script(tmp_path, "bad", "exit 1")
    result = runs.run(spec_file, Options(backends=("jax", "torch"), pythons=(f"torch={bad}",), out=tmp_path / "out"))
    assert "jax is not installed here; pip install 'framework-harness[jax]'" in result.backends["jax"].error
    assert "status 1" in result.backends["torch"].error


def test_an_interpreter_that_cannot_be_run_is_a_row(spec_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "no_python"
    path.write_text("not a program")
    result = runs.run(spec_file, Options(backends=("torch",), pythons=(f"torch={path}",), out=tmp_path / "out"))
    assert "cannot be run" in result.backends["torch"].error


def test_a_run_directory_is_never_overwritten(spec_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    with pytest.raises(CallError, match="never overwrites another"):
        runs.run(spec_file, Options(out=tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(threads=0), "--threads is at least 1"), (Options(threads=10_000), "this machine gives"),
        (Options(steps=0), "--steps is at least 1"), (Options(seed=-1), "--seed is at least 0"),
        (Options(precision="float16"), "--precision is float64, float32, tf32 or bfloat16"), (Options(device="tpu"), "--device is cpu or gpu"),
        (Options(timeout=0), "--timeout is above 0"), (Options(pythons=("torch",)), "--python takes BACKEND=PATH"),
        (Options(pythons=("tf=/bin/sh",)), "unknown backend 'tf'"), (Options(pythons=("torch=/no/such",)), "does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused_before_anything_is_written(
    spec_file: Path, tmp_path: Path, options: Options, expected: str
) -> None:
    from dataclasses import replace  # noqa: PLC0415

    with pytest.raises(CallError, match=expected):
        runs.run(spec_file, replace(options, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_backends_are_named_and_checked() -> None:
    assert backends("jax,torch,jax") == ("jax", "torch")
    assert backends(None) == ("torch", "tensorflow", "jax")
    with pytest.raises(CallError, match="unknown backend 'pytorch'"):
        backends("pytorch")


def test_an_interpreter_comes_from_the_call_then_the_environment_then_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two, three = (script(tmp_path, name, "exit 0") for name in ("one", "two", "three"))
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.harness.python]\ntorch = "{one}"\njax = "{one}"\ntensorflow = "{one}"\n'
    )
    monkeypatch.setenv("HARNESS_PYTHON_JAX", two)
    monkeypatch.setenv("HARNESS_PYTHON_TENSORFLOW", two)
    found = interpreters((f"tensorflow={three}",))
    assert [found[b].path for b in ("torch", "jax", "tensorflow")] == [one, two, three]
    (tmp_path / "pyproject.toml").write_text("[tool.harness.python]\nmxnet = '/bin/sh'")
    with pytest.raises(CallError, match="unknown backend 'mxnet'"):
        interpreters()


def test_a_worker_that_has_not_outlived_the_wait_is_replaced(tmp_path: Path) -> None:
    loud = interpreters((f"torch={script(tmp_path, 'loud', 'echo the new one; exit 7')}",))["torch"]
    folder = tmp_path / "torch"
    folder.mkdir()
    options = Options(backends=("torch",))
    with supervise.waiting(1) as room:
        reader, writer = os.pipe()
        os.close(writer)
        dead = subprocess.Popen(["true"], start_new_session=True)
        dead.wait()
        room.workers["torch"] = supervise.Worker(
            dead, os.fdopen(reader, "rb", buffering=0), more=os.dup(0), scratch=tmp_path / "none"
        )
        result = supervise.train(tmp_path, "torch", {"stop": 1, "digest": ""}, loud, options, told, room)
        assert room.workers == {}
    assert (result.status, result.log) == ("failed", "the new one")
    assert "status 7" in result.error


def test_what_a_worker_leaves_in_its_temporary_folder_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow writes a file for each function that it traces, and removes them at an end that a killed worker does not come to."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    messy = interpreters(
        (f"torch={script(tmp_path, 'messy', 'touch $HARNESS_SCRATCH/left && echo $HARNESS_SCRATCH && kill -9 $$')}",)
    )
    (tmp_path / "torch").mkdir()
    result = supervise.train(
        tmp_path, "torch", {"stop": 1, "digest": ""}, messy["torch"], Options(backends=("torch",)), told
    )
    assert result.log.startswith(f"{place}/")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_no_process_and_no_result(spec_file: Path, tmp_path: Path, stop: signal.Signals) -> None:
    marker = tmp_path / "started"
    bad = script(tmp_path, "bad", f"touch {marker}\nsleep {NAP}")
    # Where this suite runs in the background of a shell, Ctrl-C is ignored, and children inherit that.
    code = (
        "import signal; from harness.cli import main; signal.signal(signal.SIGINT, signal.default_int_handler); main()"
    )
    options = ["--backends", "torch", "--python", f"torch={bad}", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, "run", str(spec_file), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not marker.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert marker.exists(), "no worker has started"
            process.send_signal(stop)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "result.json").exists()
    with pytest.raises(CallError, match="did not finish"):
        RunResult.read(tmp_path / "out")
    assert gone(f"sleep {NAP}")


def test_a_signal_that_does_not_wake_the_main_thread_is_heard_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given to another thread, or just before the main thread falls asleep, a signal interrupts nothing that sleeps."""
    monkeypatch.setattr(beside, "cores", lambda _count: [0, 1])
    deadline = time.monotonic() + 20

    def work(backend: str, _own: Sequence[int], tell: runs.Listener) -> BackendResult:
        time.sleep(0.3)  # the main thread waits by now
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        while time.monotonic() < deadline:
            tell(backend, {})
            time.sleep(0.01)
        return BackendResult(backend, "ok")

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, Options(backends=("torch",)), told)
    assert time.monotonic() < deadline, "it was heard when the work had ended"


def test_a_killed_parent_leaves_no_worker(spec_file: Path, tmp_path: Path) -> None:
    """The worker asks the kernel to die with its parent; here it is asked in the same way."""
    if sys.platform != "linux":
        pytest.skip("Linux only")
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'from harness.worker import _die_with_parent; import time; _die_with_parent(); print(1, flush=True); time.sleep(500)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(spec.__file__).parent.parent)},
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while (
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_large_models_are_recorded_at_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(spec_of(CASES["dense"]), steps=100)
    size = 8 * sum(int(p.shape[0] * (p.shape[1] if len(p.shape) > 1 else 1)) for p in program.parameters.values())
    assert runs.recorded_steps(program, Options(precision="float64"))[0] == list(range(100))
    monkeypatch.setattr(runs, "BUDGET", size * 20)
    states, gradients = runs.recorded_steps(program, Options(precision="float64"))
    assert states == [*range(0, 100, 5), 99]
    assert gradients == sorted({*range(20), *range(0, 100, 10), 49, 99}), "those that twins are made of in any case"
    assert runs.recorded_steps(program, Options(precision="float32"))[1] == [0, 1, 2, 3, 4, 9, 49, 99]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "backends": 3}'])
def test_a_broken_result_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CallError):
        RunResult.read(tmp_path)


# ---- Side by side


def told(_backend: str, _event: object) -> None:
    """A listener that says nothing."""


def side_by_side(
    work: Callable[[str, Sequence[int], runs.Listener], BackendResult], options: Options, listen: runs.Listener
) -> dict[str, BackendResult]:
    found = {}

    def done(result: BackendResult) -> tuple[()]:
        found[result.backend] = result
        return ()

    jobs = [beside.Job(backend, partial(work, backend), done) for backend in options.backends]
    with ThreadPoolExecutor(3) as pool:
        beside.side_by_side(jobs, options, listen, pool)
    return found


def test_workers_run_side_by_side_on_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [2, 5])
    both, seen = threading.Barrier(2), {}

    def work(backend: str, own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        if backend != "jax":
            both.wait(timeout=20)  # one after the other would never meet
        seen[backend] = tuple(own)
        return BackendResult(backend, "ok")

    found = side_by_side(work, Options(), told)
    assert set(found) == {"torch", "tensorflow", "jax"}
    assert {seen["torch"], seen["tensorflow"]} == {(2,), (5,)}
    assert seen["jax"] in {(2,), (5,)}


@pytest.mark.parametrize("options", [Options(device="gpu"), Options(threads=2)])
def test_without_room_they_run_one_after_the_other(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [0, 1])
    at_once, most = 0, 0

    def work(backend: str, _own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return BackendResult(backend, "ok")

    side_by_side(work, options, told)
    assert most == 1


def test_what_follows_from_a_result_is_done_without_waiting_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [2, 5])
    followed, ended = threading.Event(), []

    def first(_own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        return BackendResult("torch", "ok")

    def long(_own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        assert followed.wait(timeout=20), "what followed waited for this one"
        return BackendResult("jax", "ok")

    def second(_own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        followed.set()
        return BackendResult("torch", "ok", error="second")

    def done(result: BackendResult) -> list[beside.Job]:
        ended.append((result.backend, result.error))
        return [beside.Job("torch", second, done)] if (result.backend, result.error) == ("torch", "") else []

    with ThreadPoolExecutor(3) as pool:
        beside.side_by_side([beside.Job("torch", first, done), beside.Job("jax", long, done)], Options(), told, pool)
    assert sorted(ended) == [("jax", ""), ("torch", ""), ("torch", "second")]


def test_meanwhile_begins_once_a_core_is_idle_and_its_error_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [0, 1])
    begun = threading.Event()
    ends: list[str] = []

    def work(backend: str, _own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        if backend == "jax":  # the last of three on two cores
            assert begun.wait(timeout=20)
        else:
            assert not begun.is_set()
        ends.append(backend)
        return BackendResult(backend, "ok")

    def meanwhile() -> None:
        begun.set()
        raise ImportError("no altair")

    jobs = [beside.Job(backend, partial(work, backend), lambda _result: ()) for backend in Options().backends]
    with ThreadPoolExecutor(4) as pool:
        failed = beside.side_by_side(jobs, Options(), told, pool, meanwhile)
    assert ends[-1] == "jax"
    assert failed is not None
    with pytest.raises(ImportError, match="no altair"):
        failed.result()


def test_meanwhile_begins_with_the_last_job_where_no_core_is_ever_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [0])
    begun = threading.Event()

    def work(backend: str, _own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        assert begun.wait(timeout=20) if backend == "jax" else not begun.is_set()
        return BackendResult(backend, "ok")

    jobs = [beside.Job(backend, partial(work, backend), lambda _result: ()) for backend in ("torch", "jax")]
    with ThreadPoolExecutor(3) as pool:
        assert beside.side_by_side(jobs, Options(), told, pool, begun.set) is not None


def test_what_meanwhile_raises_loses_no_result(spec_file: Path, tmp_path: Path) -> None:
    def meanwhile() -> None:
        raise OSError("no memory")

    bad = script(tmp_path, "bad", "exit 1")
    options = Options(backends=("torch",), pythons=(f"torch={bad}",), out=tmp_path / "out")
    with pytest.raises(OSError, match="no memory"):
        runs.run(spec_file, options, None, meanwhile)
    assert RunResult.read(tmp_path / "out").backends["torch"].status == "failed"


def parting(monkeypatch: pytest.MonkeyPatch, times: Sequence[float]) -> None:
    """Judging that finds two to part, and after each round of twins so many times as far as the worst of them."""
    rounds: list[int] = []

    def far(_self: Judging) -> float:
        return times[rounds[-1]] if rounds else math.inf

    monkeypatch.setattr(Judging, "add", lambda self, result: self.results.update({result.backend: result}))
    monkeypatch.setattr(Judging, "parted", lambda self: far(self) > TIMES)
    monkeypatch.setattr(Judging, "times", far)
    monkeypatch.setattr(runs, "write_twins", lambda _run, _program, number, *_: rounds.append(number))


PLAIN = (9.0, 8.0, 7.0, 6.0, 5.0)


@pytest.mark.parametrize(
    ("times", "rounds", "recorded"),
    [
        ((2.9,), 1, True), ((3.1, 3.0), 2, True), (PLAIN, 5, False), ((500.0, 400.0), 2, False), ((500.0, 2.0), 2, True),
        # Shaken ones, where first gradients are recorded: one at least, and more while it is near.
        ((*PLAIN, 2.0), 6, True), ((*PLAIN, 5.0, 4.0, 3.0), 8, True), ((500.0, 400.0, 11.0), 3, True), ((500.0, 400.0, 9.0, 2.0), 4, True),
        ((*PLAIN, *(4.0,) * 10), 15, True), ((500.0, 400.0, *(4.0,) * 10), 12, True),
    ],
)  # fmt: skip
def test_twins_are_asked_round_by_round_until_they_explain_it_or_never_will_and_then_float64(
    times: tuple[float, ...],
    rounds: int,
    recorded: bool,
    spec_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parting(monkeypatch, times)
    first = {"model/w": np.ones(1)} if recorded else {}
    monkeypatch.setattr(BackendResult, "gradients", lambda _self, _step: first)
    loaded, text = spec.load(spec_file)

    def ended(backend: str) -> BackendResult:
        return BackendResult(backend, "ok", losses={"model": [1.0, 0.5]}, step_seconds=[1.0, 1.0])

    with supervise.waiting(1) as room:
        training = runs.Training.begin(loaded, text, Options(out=tmp_path / "out"), room)
        assert not list(training.done(ended("torch")))
        assert not list(training.done(BackendResult("tensorflow", "failed")))
        jobs = list(training.done(ended("jax")))
        for number in range(rounds):
            assert [job.backend for job in jobs] == ["torch", "jax"], "those that trained to their end"
            assert [job.done for job in jobs] == [training.measured] * 2
            assert training.rounds == number
            assert not list(jobs[1].done(ended("jax"))), "each has its twin first"
            jobs = list(jobs[0].done(ended("torch")))
        assert training.exact is not None
        assert [job.done for job in jobs] == [training.exact.done] * 2
        assert (training.exact.options.precision, training.exact.options.backends) == ("float64", ("torch", "jax"))
        assert not training.exact.proves


def test_a_disk_without_room_for_twins_or_float64_costs_these_and_not_the_verdict(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parting(monkeypatch, (2.0,))
    loaded, text = spec.load(spec_file)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "inputs")

    with supervise.waiting(1) as room:
        options = Options(backends=("torch",), out=tmp_path / "out")
        training = runs.Training.begin(loaded, text, options, room)
        (twin,) = training.done(BackendResult("torch", "ok", step_seconds=[1.0]))
        monkeypatch.setattr(runs, "link_inputs", full)
        assert not list(twin.done(BackendResult("torch", "ok", step_seconds=[1.0])))
        assert training.exact is None
        monkeypatch.setattr(runs, "write_twins", full)
        assert not list(training.twins())
    said = [note.partition(":")[0] for note in training.unsettled if "No space left" in note]
    assert said == ["Float64 was not trained", "No more twins were trained", "Float64 was not trained"]
    assert any("A twin of torch did not come to its end" in note for note in training.unsettled)


@pytest.mark.parametrize(
    ("echo", "first", "counts"),
    [
        # In the process that trained: the training once more, and what the twin itself says is not the question.
        ({"model": [1.0, 0.5]}, 1.5, True), ({"model": [1.0, 0.5 + 1e-9]}, 1.0, False),
        # In a process of its own.
        ({}, 1.0 + 1e-9, True), ({}, 1.0 + 1e-6, False),
    ],
)  # fmt: skip
def test_a_program_that_does_not_repeat_its_own_training_has_no_twin(
    echo: dict[str, list[float]], first: float, counts: bool, spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    parting(monkeypatch, (2.0, 2.0))
    loaded, text = spec.load(spec_file)

    def read(_self: Yardstick, folder: Path, *, shaken: bool = False) -> bool:
        asked.append(folder.name)
        return True

    asked: list[str] = []
    monkeypatch.setattr(Yardstick, "read", read)
    options = Options(backends=("torch",), precision="float64", out=tmp_path / "out")
    with supervise.waiting(1) as room:
        training = runs.Training.begin(loaded, text, options, room)
        (twin,) = training.done(BackendResult("torch", "ok", losses={"model": [1.0, 0.5]}))
        list(twin.done(BackendResult("torch", "ok", losses={"model": [first, 0.5]}, echo=echo)))
        assert asked == ["torch"] * counts
        assert any("does not repeat its own training" in said for said in training.unsettled) is not counts
        assert len(list(training.twins())) == counts, "nobody asks for such a twin again"


def test_float64_is_its_own_proof(spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parting(monkeypatch, (2.0,))
    loaded, text = spec.load(spec_file)
    options = Options(backends=("torch",), precision="float64", out=tmp_path / "out")
    with supervise.waiting(1) as room:
        training = runs.Training.begin(loaded, text, options, room)
        (twin,) = training.done(BackendResult("torch", "ok"))
        assert not list(twin.done(BackendResult("torch", "ok")))
        assert training.exact is None


@pytest.mark.parametrize(("each", "steps", "proof"), [(1.0, 60, 4), (0.001, 60, 2500), (0.1, 600, 30), (10.0, 8, 4)])
def test_float64_is_trained_for_some_seconds_or_a_share_of_the_run(
    each: float, steps: int, proof: int, spec_file: Path, tmp_path: Path
) -> None:
    loaded, text = spec.load(spec_file)
    with supervise.waiting(1) as room:
        training = runs.Training.begin(loaded, text, Options(steps=steps, out=tmp_path / "out"), room)
        training.judging.results["torch"] = BackendResult("torch", "ok", step_seconds=[each] * 3)
        assert training.proof_steps() == proof


def test_what_is_kept_of_a_run_is_its_first_and_last_and_some_between(tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "trajectory"
    folder.mkdir(parents=True)
    for step in range(1, 21):
        (folder / f"state-{step:08}.safetensors").write_bytes(bytes(100))
    for step in (1, 2, 10):
        (folder / f"gradients-{step:08}.safetensors").write_bytes(bytes(100))
    whole = BackendResult("torch", "ok", folder=tmp_path / "torch", recorded=list(range(20)))
    assert runs.thinned(whole, 2300) is whole, "there is room for all of it"
    some = runs.thinned(whole, 800)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 800
    assert some.gradient_steps == [0]
    assert {0, 19} <= set(some.recorded) < set(range(20))
    assert len(some.recorded) > 2
    assert some.recorded == sorted(int(file.stem[-8:]) - 1 for file in folder.glob("state-*"))


def test_an_error_in_a_verdict_ends_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [0, 1])
    begun, ended = threading.Event(), threading.Event()

    def work(backend: str, _own: Sequence[int], tell: runs.Listener) -> BackendResult:
        if backend == "torch":
            assert begun.wait(timeout=20)
            return BackendResult(backend, "ok")
        begun.set()
        try:
            while True:
                tell(backend, {})
                time.sleep(0.01)
        finally:
            ended.set()

    def done(_result: BackendResult) -> tuple[()]:
        raise OSError("no space left")

    jobs = [beside.Job(backend, partial(work, backend), done) for backend in ("torch", "tensorflow")]
    with ThreadPoolExecutor(3) as pool, pytest.raises(OSError, match="no space left"):
        beside.side_by_side(jobs, Options(), told, pool)
    assert ended.is_set()


def test_an_error_in_one_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [0, 1])
    begun: list[str] = []
    ended: list[str] = []

    def work(backend: str, _own: Sequence[int], tell: runs.Listener) -> BackendResult:
        if backend == "tensorflow":
            raise ValueError("nobody expected this")
        begun.append(backend)
        try:
            while True:
                tell(backend, {})
                time.sleep(0.01)
        finally:
            ended.append(backend)

    with pytest.raises(ValueError, match="nobody expected"):
        side_by_side(work, Options(), told)
    assert sorted(ended) == sorted(begun)
    assert "torch" in ended


def test_a_job_that_cannot_write_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "cores", lambda _count: [0, 1])

    def work(backend: str, _own: Sequence[int], _tell: runs.Listener) -> BackendResult:
        if backend == "tensorflow":
            raise OSError(28, "No space left on device", "runs/a/tensorflow/request.json")
        return BackendResult(backend, "ok")

    found = side_by_side(work, Options(), told)
    assert {name: own.status for name, own in found.items()} == {"torch": "ok", "tensorflow": "failed", "jax": "ok"}
    assert found["tensorflow"].error.endswith("runs/a/tensorflow/request.json: No space left on device")
