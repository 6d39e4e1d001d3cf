"""Live workers: many questions, failures that are one sentence, and nothing left behind.

The interpreters of the first half are shell scripts that misbehave; a worker starts them where a Python would be.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from build import EACH, INSTALLED, program_of
from cases import CASES, spec_of
from safetensors.numpy import load_file, save_file

from harness import initial, serve, spec
from harness.check import live
from harness.check.live import LiveWorker, allowed_cores, worker
from harness.check.subject import Subject, each, open_program, prepare
from harness.environment import Interpreter
from harness.errors import WorkerFailed
from harness.graph import Program
from harness.resolve import compile_spec
from harness.runs import prepared
from harness.serve import Server, _question, distance

NAP = f"1000.5{os.getpid()}"
"""Seconds, and how this suite's own sleepers are told from another's."""


def script(folder: Path, body: str) -> Interpreter:
    path = folder / "bad"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Interpreter(str(path), "--python")


def within(seconds: float, wanted: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := wanted()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def ended(pid: int) -> bool:
    return within(5, lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def gone(command: str) -> bool:
    """Whether no process has this command line, given a moment to die."""
    return within(
        5, lambda: not [p for p in psutil.process_iter(["cmdline"]) if command in " ".join(p.info["cmdline"] or [])]
    )


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0


# ---- Without a framework


def test_what_a_worker_leaves_in_its_own_folder_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    messy = script(tmp_path, 'touch "$HARNESS_SCRATCH/left" && echo "$HARNESS_SCRATCH" && kill -9 $$')
    with pytest.raises(WorkerFailed), worker("torch", messy, tmp_path / "work", core=0):
        pass
    assert (tmp_path / "work" / "log.txt").read_text().startswith(f"{place}/")
    assert list(place.iterdir()) == []
    place.rmdir()
    before = descriptors()
    with pytest.raises(WorkerFailed, match="no place for temporary files"), worker("torch", messy, tmp_path / "more", core=0):  # fmt: skip
        pass
    assert descriptors() == before


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("kill -9 $$", r"worker torch ended with SIGKILL \(out of memory\?\) when asked to 'start'"),
        ("echo one; echo two >&2; exit 7", r"(?s)ended with status 7 when asked to 'start'; last lines of .*log.txt:\none\ntwo$"),
        ("exit 0", r"ended with status 0 when asked to 'start'"),
        (f"sleep {NAP}", r"gave no answer to 'start' for 1 seconds and was stopped"),
        (f"sleep {NAP} & exit 3", r"ended with status 3"),
        # The last two arguments are the numbers of its pipes.
        ("printf half >/dev/fd/$5; exit 1", r"ended with status 1"),
        (f"printf half >/dev/fd/$5; sleep {NAP}", r"gave no answer to 'start' for 1 seconds"),
    ],
    ids=lambda value: value.replace(NAP, "long"),  # a process's number is in it
)  # fmt: skip
def test_a_worker_that_fails_is_one_reason_and_leaves_nothing(tmp_path: Path, body: str, expected: str) -> None:
    open_before = descriptors()
    with (
        pytest.raises(WorkerFailed, match=expected),
        worker("torch", script(tmp_path, body), tmp_path / "w", core=allowed_cores()[0], timeout=1),
    ):
        pytest.fail("it never answered")
    assert gone(f"sleep {NAP}"), "a stray child outlived its worker"
    assert descriptors() == open_before, "pipes stay open"


def test_an_interpreter_that_cannot_be_run_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "no_python"
    path.write_text("not a program")
    open_before = descriptors()
    with (
        pytest.raises(WorkerFailed, match="no_python cannot be run: Permission denied"),
        worker("jax", Interpreter(str(path), "--python"), tmp_path / "w", core=0),
    ):
        pytest.fail("it never started")
    assert descriptors() == open_before


def test_a_framework_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "importable", lambda _backend, _python: False)
    with (
        pytest.raises(
            WorkerFailed, match=r"jax is not installed here; pip install 'framework-harness\[jax\]', or name"
        ),
        worker("jax", Interpreter(sys.executable, "this environment"), tmp_path / "w", core=0),
    ):
        pytest.fail("it never started")


def test_questions_are_public_methods_alone() -> None:
    server = Server.__new__(Server)
    server.opened, server.series, server.inputs, server.ready, server.predictors = {}, {}, {}, {}, {}
    server.backend, server.closed = "torch", 0
    assert _question(server, "close")({"name": "nobody"}) == {}
    for name in ("_inputs", "_given", "__init__", "__class__", "opened", "backend", "fish", ""):
        with pytest.raises(ValueError, match=f"there is no question '{name}'"):
            _question(server, name)


def test_an_answer_that_is_no_json_is_an_error_and_the_worker_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        def __init__(self, *_: object) -> None:
            pass

        def number(self, _asked: object) -> dict[str, Any]:
            return {"loss": np.float32(1)}

        def word(self, _asked: object) -> dict[str, Any]:
            return {"said": "hello"}

    monkeypatch.setattr(serve, "Server", Odd)
    monkeypatch.setattr(serve, "_die_with_parent", lambda: None)
    (ask_read, ask_write), (answer_read, answer_write) = os.pipe(), os.pipe()
    lines = [{"backend": "torch", "cores": []}, {"do": "number"}, {"do": "word"}]
    os.write(ask_write, "".join(json.dumps(line) + "\n" for line in lines).encode())
    os.close(ask_write)
    serve.main(ask_read, answer_write)
    with os.fdopen(answer_read) as answers:
        opened, number, word = map(json.loads, answers)
    assert opened == {"ok": True}
    assert not number["ok"]
    assert "float32 is not JSON serializable" in number["error"]
    assert word == {"ok": True, "said": "hello"}


def test_a_worker_that_closes_its_pipe_first_is_not_said_to_be_killed(tmp_path: Path) -> None:
    code = "import os, sys, time; os.close(int(sys.argv[1])); time.sleep(0.5); os._exit(6)"
    body = f'exec {sys.executable} -c "{code}" $5'
    with (
        pytest.raises(WorkerFailed, match="ended with status 6"),
        worker("torch", script(tmp_path, body), tmp_path / "w", core=allowed_cores()[0], timeout=5),
    ):
        pass


def test_distance_is_the_norm_of_the_difference() -> None:
    assert distance(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 5.0], [3.0, 0.0]])) == 5.0
    assert distance(np.float32([1e30]), np.float32([-1e30])) == pytest.approx(2e30)
    assert distance(np.array(3), np.array(1)) == 2.0


@dataclass
class Mute:
    """A stand-in for a worker: `each` needs only where it runs and who it is."""

    backend: str
    core: int

    @property
    def name(self) -> str:
        return self.backend


def subject_of(*mutes: Mute) -> Subject:
    program = program_of(spec_of(CASES["dense"]))
    return Subject(program, "float64", Path(), held_out=False, workers={m.backend: m for m in mutes})  # type: ignore[misc]


def test_each_asks_all_notes_failures_and_asks_those_no_more() -> None:
    subject = subject_of(Mute("torch", 0), Mute("tensorflow", 0), Mute("jax", 1))

    def ask(mute: LiveWorker) -> str:
        if mute.backend == "torch":
            raise WorkerFailed("it is ill")
        return mute.backend.upper()

    assert each(subject, ask) == {"tensorflow": "TENSORFLOW", "jax": "JAX"}
    assert subject.failures == {"torch": "it is ill"}
    assert subject.backends == ("tensorflow", "jax")
    asked: list[str] = []
    each(subject, lambda mute: asked.append(mute.backend))
    assert sorted(asked) == ["jax", "tensorflow"]


def test_workers_of_one_core_are_asked_one_after_the_other() -> None:
    subject = subject_of(Mute("torch", 0), Mute("tensorflow", 0))
    busy: list[str] = []

    def ask(mute: LiveWorker) -> None:
        assert not busy
        busy.append(mute.backend)
        time.sleep(0.05)
        busy.clear()

    each(subject, ask)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_a_check_leaves_no_process(tmp_path: Path, stop: signal.Signals) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["dense"])))
    marker = tmp_path / "started"
    bad = script(tmp_path, f"touch {marker}\nsleep {NAP}")
    # Where this suite runs in the background of a shell, Ctrl-C is ignored, and children inherit that.
    code = (
        "import signal; from harness.cli import main; signal.signal(signal.SIGINT, signal.default_int_handler); main()"
    )
    options = ["--backends", "torch", "--python", f"torch={bad.path}", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, "check", str(path), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert within(60, marker.exists)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").rglob("check.json"))
    assert gone(f"sleep {NAP}")


# ---- With frameworks


@dataclass
class Held:
    """A worker with one program open in it, and what it was given."""

    live: LiveWorker
    subject: Subject
    program: Program


@contextmanager
def held(backend: str, folder: Path, timeout: float = 120) -> Iterator[Held]:
    loaded, text = spec.loads(json.dumps(spec_of(CASES["batch_norm"])))
    program = compile_spec(loaded, text, 6)
    python = Interpreter(sys.executable, "this environment")
    with worker(backend, python, folder / "w", core=allowed_cores()[0], timeout=timeout) as one:
        subject = prepare(program, text, prepared(program, text), "float64", folder / "case", {backend: one})
        open_program(subject, one, "plain", subject.sources[backend, False], observe=False)
        yield Held(one, subject, program)


@pytest.mark.frameworks
@pytest.mark.skipif("tensorflow" not in INSTALLED, reason="TensorFlow is not installed")
def test_files_of_traced_functions_lie_in_the_workers_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    with held("tensorflow", tmp_path) as one:
        one.live.ask("load", name="plain", arrays=one.subject.position("start", one.subject.start))
        one.live.ask("train", name="plain", first=0, last=1)
        (own,) = place.glob("harness-worker-*")
        assert list(own.iterdir()), "AutoGraph writes none any more: then TensorFlow needs no folder of its own"
        assert list(place.iterdir()) == [own]
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module", params=EACH)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    with held(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.mark.frameworks
def test_a_worker_answers_many_questions_and_is_one_process(own: Held) -> None:
    start = own.subject.position("start", own.subject.start)
    pid = own.live.process.pid
    for _ in range(30):
        own.live.ask("load", name="plain", arrays=start)
        found = own.live.arrays("position", name="plain")
        assert {n for n in found if n.startswith("state/")} == {n for n in own.subject.start if n.startswith("state/")}
        for name, value in own.subject.start.items():
            assert np.array_equal(found[name], value), name
    assert own.live.process.pid == pid
    assert own.live.process.poll() is None
    assert not list(own.live.folder.glob("answer-*")), "answers are gone once they are read"


@pytest.mark.frameworks
def test_training_in_pieces_is_training_at_once(own: Held) -> None:
    live = own.live
    start = own.subject.position("start", own.subject.start)
    path = own.live.fresh()
    live.ask("load", name="plain", arrays=start)
    said = live.ask("train", name="plain", first=0, last=6, keep="plain/base", write="all", into=str(path))
    whole = load_file(path)
    assert len(said["losses"]["net"]) == 6
    live.ask("load", name="plain", arrays=start)
    first = live.ask("train", name="plain", first=0, last=4, write="last", into=str(path))
    middle = load_file(path)
    assert middle["optimizer/net/count"] == 4
    for name in own.program.parameters:
        assert np.array_equal(middle[f"state/{name}"], whole[f"states/{name}"][3]), name
    live.ask("load", name="plain", arrays=start)
    live.ask("load", name="plain", arrays=str(path))
    rest = live.ask("train", name="plain", first=4, last=6, write="last", into=str(path))
    assert first["losses"]["net"] + rest["losses"]["net"] == said["losses"]["net"]
    # The distance to itself is zero, and from elsewhere it is what it is.
    live.ask("load", name="plain", arrays=start)
    again = live.ask("train", name="plain", first=0, last=6, against="plain/base")
    assert all(gaps == [0.0] * 6 for gaps in again["distances"].values())
    far = {n: a + 0.5 if n == "state/entry.kernel" else a for n, a in own.subject.start.items()}
    live.ask("load", name="plain", arrays=own.subject.position("far", far))
    states = load_file(path)
    other = live.ask("train", name="plain", first=0, last=6, against="plain/base", write="last", into=str(path))
    end = load_file(path)["state/entry.kernel"]
    expected = np.sqrt(np.sum((end - whole["states/entry.kernel"][-1]) ** 2))
    assert expected > 0.1
    assert other["distances"]["entry.kernel"][-1] == pytest.approx(expected, rel=1e-12)
    assert set(other["distances"]) == set(own.program.parameters)
    assert states.keys() >= {"state/entry.kernel"}


@pytest.mark.frameworks
def test_an_exception_in_a_program_is_its_last_line_and_the_worker_goes_on(own: Held) -> None:
    source = own.subject.sources[own.live.backend, False]
    faulty = source.replace(
        "def load_batch(", "def load_batch(*_):\n    raise RuntimeError('planted')\n\n\ndef unused("
    )
    assert faulty != source
    open_program(own.subject, own.live, "faulty", faulty, observe=False)
    with pytest.raises(WorkerFailed, match=rf"^{own.live.backend} could not 'train': RuntimeError: planted\nTraceback"):
        own.live.ask("train", name="faulty", first=0, last=1)
    with pytest.raises(WorkerFailed, match="could not 'open': SyntaxError: "):
        open_program(own.subject, own.live, "broken", "def", observe=False)
    own.live.ask("close", name="faulty")
    with pytest.raises(WorkerFailed, match="could not 'train': KeyError: 'faulty'"):
        own.live.ask("train", name="faulty", first=0, last=1)
    assert own.live.ask("environment")["environment"]["devices"]
    assert own.live.arrays("position", name="plain")


@pytest.mark.frameworks
def test_a_question_that_does_not_exist_is_refused(own: Held) -> None:
    for name in ("_inputs", "__init__", "fish", "module"):
        with pytest.raises(WorkerFailed, match=f"ValueError: there is no question '{name}'"):
            own.live.ask(name)
    assert own.live.ask("environment")


@pytest.mark.frameworks
def test_a_position_of_another_program_is_refused(own: Held, tmp_path: Path) -> None:
    shapes = {n: np.zeros((9, *a.shape)) for n, a in initial.parameters(own.program).items()}
    save_file({f"state/{n}": a for n, a in shapes.items()}, tmp_path / "other.safetensors")
    with pytest.raises(WorkerFailed, match="could not 'load'"):
        own.live.ask("load", name="plain", arrays=str(tmp_path / "other.safetensors"))
    own.live.ask("load", name="plain", arrays=own.subject.position("start", own.subject.start))


needs_one = pytest.mark.skipif(not INSTALLED, reason="needs a framework")


@pytest.mark.frameworks
@needs_one
def test_a_killed_worker_is_one_reason(tmp_path: Path) -> None:
    with held(INSTALLED[0], tmp_path) as own:
        pid = own.live.process.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            WorkerFailed, match=r"ended with SIGKILL \(out of memory\?\) when asked to 'position'; last"
        ):
            own.live.arrays("position", name="plain")
        with pytest.raises(WorkerFailed, match="ended with SIGKILL"):
            own.live.ask("environment")
    assert ended(pid)


@pytest.mark.frameworks
@needs_one
def test_a_program_that_hangs_or_leaves_is_stopped_with_its_children(tmp_path: Path) -> None:
    for body, expected in (
        (f"import subprocess; print('sleeping', flush=True); subprocess.run(['sleep', '{NAP}'])", r"(?s)gave no answer to 'train' for 5 seconds and was stopped; last lines of .*sleeping"),
        (f"import os, subprocess; subprocess.Popen(['sleep', '{NAP}']); os._exit(4)", "ended with status 4 when asked to 'train'"),
    ):  # fmt: skip
        folder = tmp_path / expected[-9:].strip("'").replace(" ", "_").replace(".", "").replace("*", "")
        folder.mkdir()
        with held(INSTALLED[0], folder) as own:
            own.live.timeout = 5
            source = own.subject.sources[own.live.backend, False]
            faulty = source.replace("def load_batch(", f"def load_batch(*_):\n    {body}\n\n\ndef unused(")
            open_program(own.subject, own.live, "faulty", faulty, observe=False)
            pid = own.live.process.pid
            with pytest.raises(WorkerFailed, match=expected):
                own.live.ask("train", name="faulty", first=0, last=1)
            assert ended(pid)
            assert gone(f"sleep {NAP}")


@pytest.mark.frameworks
@needs_one
def test_an_error_in_the_harness_itself_leaves_no_worker(tmp_path: Path) -> None:
    pid = 0
    with pytest.raises(ZeroDivisionError), held(INSTALLED[0], tmp_path) as own:  # noqa: PT012 - raised inside
        pid = own.live.process.pid
        raise ZeroDivisionError
    assert pid
    assert ended(pid)


@pytest.mark.frameworks
@needs_one
def test_an_interrupt_during_a_long_question_does_not_wait_for_its_answer(tmp_path: Path) -> None:
    with held(INSTALLED[0], tmp_path) as own:
        source = own.subject.sources[own.live.backend, False]
        faulty = source.replace(
            "def load_batch(", "def load_batch(*_):\n    import time; time.sleep(1000)\n\n\ndef unused("
        )
        open_program(own.subject, own.live, "faulty", faulty, observe=False)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT))
        began = time.monotonic()
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                each(own.subject, lambda live: live.ask("train", name="faulty", first=0, last=1))
        finally:
            timer.cancel()
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - began < 20
        assert ended(own.live.process.pid)
