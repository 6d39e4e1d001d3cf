"""What befalls a command: signals in every phase, a full disk, no memory, nobody who reads. A table of what became of it.

    python tests/faults.py [--commands run,check,bench,places] [--phases …] [--signals …] [--whom worker,command] [--seed 0]

Each row is one command on a tiny spec with two backends, at whom something is thrown at a moment that the seed draws. It is
right where the other backend's results stand, the exit status means what the README's table says, no process is left, no
traceback is shown, and nothing half-written reads as complete. Ends with 1 where a row is wrong.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil
from safetensors import safe_open

from harness.errors import CallError
from harness.results import RunResult

BACKENDS = ("torch", "jax")
PHASES = ("import", "compile", "train", "evaluate")
SIGNALS = ("SIGKILL", "SIGSTOP", "SIGINT", "SIGTERM")
SPEC = """\
name: tiny
data: {dataset: random, examples: 16, batch: 4, fields: {x: {shape: [3]}, y: {shape: [1]}}}
networks: {net: {layers: [{dense: 4}, tanh, {dense: 1}]}}
training:
  steps: 30
  updates: [{loss: {mse: {predictions: net(x), targets: y}}, optimizer: {adam: {learning_rate: 0.01}}}]
evaluation: {metrics: [{mae: {predictions: net(x), targets: y}}]}
"""
COMMANDS = {
    "run": ["run", "tiny.yaml", "--out", "out"],
    "check": ["check", "tiny.yaml", "--precision", "float64", "--rungs", "1-4", "--out", "out", "--json", "found.json"],
    "bench": ["bench", "tiny.yaml", "--lanes", "default", "--rounds", "8", "--parts", "none", "--processes", "0", "--json", "found.json"],
}  # fmt: skip
QUESTIONS = {
    "import": ("",), "compile": ("open",), "train": ("train", "observe", "clock"),
    "evaluate": ("values", "clock", "peak", "evaluate"),
}  # fmt: skip
"""What a live worker is asked in each phase; that of importing is its start."""
LIMIT = 240.0
"""Seconds after which a command hangs."""
MARK = "HARNESS_FAULTS"


@dataclass(frozen=True)
class Row:
    """What befell a command, and what became of it."""

    command: str
    what: str
    where: str
    seconds: float
    status: int
    became: str
    wrong: tuple[str, ...] = ()


# What stands in for the command: itself, and a hand that throws ----------------------------------------------


def driven(plan: dict[str, str], arguments: Sequence[str]) -> None:
    """Run the command in this process; when the victim's phase begins, and a moment later, the signal is sent."""
    import threading  # noqa: PLC0415 - of the child alone

    from harness import cli, progress  # noqa: PLC0415
    from harness.check.live import LiveWorker  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
    thrown = threading.Event()

    def throw(pid: int | None) -> None:
        if thrown.is_set():
            return
        thrown.set()

        def later() -> None:
            time.sleep(float(plan["delay"]))
            victim = os.getpid() if plan["whom"] == "command" else pid or worker_of(plan["victim"])
            Path("thrown").write_text(str(victim))
            if victim is not None:
                try:
                    os.kill(victim, getattr(signal, plan["signal"]))
                except ProcessLookupError:
                    Path("thrown").write_text("None")

        threading.Thread(target=later, daemon=True).start()

    real, send = progress.trainings, LiveWorker._send

    @contextmanager
    def trainings(**options: bool) -> Iterator[progress.Listener]:
        with real(**options) as listen:

            def heard(name: str, event: dict[str, object]) -> None:
                if name == plan["victim"] and event.get("phase") == plan["phase"]:
                    throw(None)
                listen(name, event)

            yield heard  # type: ignore[misc]

    def asked(self: LiveWorker, question: dict[str, object]) -> dict[str, object]:
        if self.backend == plan["victim"] and question.get("do", "") in QUESTIONS[plan["phase"]]:
            throw(self.process.pid)
        return send(self, question)

    progress.trainings, LiveWorker._send = trainings, asked  # type: ignore[assignment,method-assign]
    sys.argv = ["harness", *arguments]
    cli.main()


def worker_of(backend: str) -> int | None:
    """The process that trains a backend."""
    for process in psutil.Process().children(recursive=True):
        line = process.cmdline()
        if "harness.worker" in line and any(part.endswith(f"/{backend}") for part in line):
            return process.pid
    return None


# The rows -----------------------------------------------------------------------------------------------------


def befallen(command: str, whom: str, phase: str, name: str, rng: random.Random) -> Row:
    """One command at whom a signal is thrown."""
    victim = rng.choice(BACKENDS)
    plan = {"victim": victim, "phase": phase, "signal": name, "whom": whom, "delay": f"{rng.uniform(0, 0.2):.3f}"}
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import faults; faults.driven({plan!r}, sys.argv[1:])"
    with tempfile.TemporaryDirectory(prefix="harness-faults-") as place:
        folder = Path(place)
        timeout = "6" if name == "SIGSTOP" and whom == "worker" else "120"
        arguments = [*COMMANDS[command], "--backends", ",".join(BACKENDS), "--timeout", timeout]
        status, seconds, errors, left = finished(folder, [sys.executable, "-c", code, *arguments])
        wrong = [*shared(errors, left, status), *halves(folder)]
        thrown = folder / "thrown"
        late = not thrown.exists() or thrown.read_text() == "None"
        if late and status == 0:
            became = "done before it was thrown"
        elif whom == "command":
            became, more = ended(name, status, folder)
            wrong += more
        else:
            became, more = stood(command, victim, status, folder)
            wrong += more
    whose = f"{name} to {'the command' if whom == 'command' else victim}"
    return Row(command, whose, phase, seconds, status, became, tuple(wrong))


def finished(
    folder: Path, command: Sequence[str], limit: float = LIMIT, **variables: str
) -> tuple[int, float, str, list[str]]:
    """Run a command in a folder to its end. Status, seconds, standard error, and the processes that it left."""
    (folder / "tiny.yaml").write_text(SPEC)
    mark = uuid.uuid4().hex
    here = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"} | variables
    began = time.monotonic()
    with (
        (folder / "errors").open("wb") as errors,
        subprocess.Popen(
            command, cwd=folder, env=here, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        ) as process,
    ):
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
    seconds = time.monotonic() - began
    return process.returncode, seconds, (folder / "errors").read_text(errors="replace"), leftover(mark)


def leftover(mark: str) -> list[str]:
    """Processes of a command that outlive it, given some seconds to die; then they are killed."""
    until = time.monotonic() + 8
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        if not found or time.monotonic() > until:
            break
        time.sleep(0.2)
    lines = []
    for process in found:
        try:
            lines.append(" ".join(process.cmdline()[:5]))
            process.kill()
        except psutil.Error:
            continue
    return lines


def shared(errors: str, left: Sequence[str], status: int) -> list[str]:
    """What is wrong whatever was thrown."""
    wrong = [f"a process is left: {line}" for line in left]
    if "Traceback" in errors:
        wrong.append(f"a traceback: {errors.strip().splitlines()[-1]}")
    if status == -signal.SIGKILL and not errors and left:
        wrong.append("it hung")
    return wrong


def halves(folder: Path) -> list[str]:
    """What reads as complete and is not."""
    wrong = []
    for path in folder.rglob("result.json"):
        if path.parent.name in BACKENDS:
            try:
                json.loads(path.read_text())
                with safe_open(path.parent / "outputs.safetensors", framework="numpy"):
                    pass
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                wrong.append(f"{path.parent.name}/result.json is there, and {error}")
        else:
            try:
                RunResult.read(path.parent)
            except CallError as error:
                wrong.append(str(error))
    for path in (*folder.rglob("check.json"), *folder.rglob("found.json")):
        try:
            json.loads(path.read_text())
        except ValueError as error:
            wrong.append(f"{path.name}: {error}")
    return wrong


def ended(name: str, status: int, folder: Path) -> tuple[str, list[str]]:
    """What became of a command that was ended."""
    if name == "SIGKILL":
        wanted, became = (-signal.SIGKILL,), "killed, and its workers with it"
    else:
        # Before anything is started a termination is the operating system's own.
        wanted, became = (130, -signal.SIGTERM) if name == "SIGTERM" else (130,), "interrupted"
    wrong = [] if status in wanted else [f"status {status}"]
    result, found = folder / "out" / "result.json", folder / "found.json"
    if result.exists() and all(own.status == "ok" for own in RunResult.read(result.parent).backends.values()):
        return "too late: all results were there", wrong  # it was writing the report
    wrong += [f"{path.name} was written" for path in (result, found) if path.exists()]
    return became, wrong


def stood(command: str, victim: str, status: int, folder: Path) -> tuple[str, list[str]]:
    """Whether the other backend's results stand."""
    (other,) = set(BACKENDS) - {victim}
    wrong = [] if status == 3 else [f"status {status}"]
    if command == "run":
        try:
            found = RunResult.read(folder / "out")
        except CallError as error:
            return "no result", [*wrong, str(error)]
        said, ok = found.backends[victim].error, found.backends[other].status == "ok"
        if found.backends[victim].status == "ok":
            return "too late: it had trained", wrong if status else []
        return f"{other} stands; {victim}: {said[:60]}", [
            *wrong,
            *([] if ok else [f"{other}: {found.backends[other].error[:80]}"]),
        ]
    try:
        data = json.loads((folder / "found.json").read_text())
    except (OSError, ValueError) as error:
        return "no result", [*wrong, str(error)]
    (found,) = data["checks" if command == "check" else "benchmarks"]
    failures = {name.partition(" ")[0]: why for name, why in found["failures"].items()}
    if victim not in failures:
        return "too late: it was done", wrong if status else []
    wrong += [f"{other}: {failures[other][:80]}"] if other in failures else []
    if command == "bench" and other not in {lane["backend"] for lane in found["lanes"]}:
        wrong.append(f"{other} has no times")
    if command == "check" and not found["rungs"] and failures[victim] and "start" not in failures[victim]:
        wrong.append("no rung was climbed")
    return f"{other} stands; {victim}: {failures[victim][:60]}", wrong


# Places: disks that are full, memory that is short, readers that go -------------------------------------------


@contextmanager
def disk(folder: Path, size: int) -> Iterator[tuple[Path, list[str]]]:
    """A disk of so many bytes, and what a command is started by; where none can be mounted, a limit on each file's size."""
    place = folder / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        yield place, ["sh", "-c", f'ulimit -f {max(1, size // 4 // 512)}; exec "$@"', "sh"]
        return
    try:
        yield place, []
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def places() -> Iterator[Row]:
    """Commands where something is full, short or gone."""
    harness = [sys.executable, "-m", "harness"]
    both = ["--backends", ",".join(BACKENDS)]
    for size in (16_384, 49_152, 98_304, 196_608, 393_216):
        with tempfile.TemporaryDirectory(prefix="harness-faults-") as name:
            folder = Path(name)
            with disk(folder, size) as (place, before):
                arguments = [
                    *before,
                    *harness,
                    "run",
                    "tiny.yaml",
                    *both,
                    "--out",
                    str(place / "out"),
                    "--json",
                    "found.json",
                ]
                status, seconds, errors, left = finished(folder, arguments)
                wrong = [*shared(errors, left, status), *halves(folder), *halves(place)]
                told = verdict_of(folder / "found.json")
                if status == 2:
                    became = f"refused: {errors.strip().splitlines()[-1].rpartition(': ')[2][:50]}"
                else:
                    became = f"verdict {told}"
                    wrong += [] if {"same": 0, "differs": 1, "failed": 3}.get(told) == status else [f"status {status}"]
            yield Row("run", f"a disk of {size // 1024} kB", "run directory", seconds, status, became, tuple(wrong))
    for command in ("check", "bench"):
        for size in (32_768, 196_608):
            with tempfile.TemporaryDirectory(prefix="harness-faults-") as name:
                folder = Path(name)
                with disk(folder, size) as (place, before):
                    arguments = [word for word in COMMANDS[command] if word not in ("--out", "out")]
                    status, seconds, errors, left = finished(
                        folder, [*before, *harness, *arguments, *both], TMPDIR=str(place)
                    )
                    wrong = [*shared(errors, left, status), *halves(folder)]
                    wrong += [] if status in (0, 1, 2, 3) else [f"status {status}"]
                    last = (errors.strip().splitlines() or ["done"])[-1]
                    if status == 1 and verdict_of(folder / "found.json") == "none":
                        wrong.append("status 1 means that they differ, and nothing says so")
                yield Row(
                    command,
                    f"a disk of {size // 1024} kB",
                    "temporary folder",
                    seconds,
                    status,
                    last[-70:],
                    tuple(wrong),
                )
    for command in ("run", "check", "bench"):
        with tempfile.TemporaryDirectory(prefix="harness-faults-") as name:
            folder = Path(name)
            short = folder / "short"
            short.write_text(f'#!/bin/sh\nulimit -v 900000\nexec {sys.executable} "$@"\n')
            short.chmod(0o755)
            arguments = [*harness, *COMMANDS[command], *both, "--python", f"jax={short}"]
            status, seconds, errors, left = finished(folder, arguments)
            became, more = stood(command, "jax", status, folder)
            wrong = [*shared(errors, left, status), *halves(folder), *more]
            yield Row(command, "0.9 GB of memory for jax", "import", seconds, status, became, tuple(wrong))
    for what, redirected in (
        ("standard output on a full disk", "> /dev/full"),
        ("a reader that goes", "| head -1; exit ${PIPESTATUS[0]}"),
    ):
        with tempfile.TemporaryDirectory(prefix="harness-faults-") as name:
            folder = Path(name)
            line = f"{' '.join(harness)} run tiny.yaml --backends torch --out out {redirected}"
            status, seconds, errors, left = finished(folder, ["bash", "-c", line])
            wrong = [*shared(errors, left, status), *halves(folder), *([] if status == 0 else [f"status {status}"])]
            wrong += [] if (folder / "out" / "report.html").exists() else ["no report"]
            yield Row("run", what, "report", seconds, status, (errors.strip() or "silent")[:70], tuple(wrong))


def verdict_of(path: Path) -> str:
    """Of a result in JSON; `none` where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return "none"
    for several in ("checks", "benchmarks"):
        found = found[several][0] if several in found else found
    return str(found["verdict"])


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Every row that was asked for."""
    for command in options.commands.split(","):
        if command == "places":
            yield from places()
            continue
        for whom, phase, name in product(
            options.whom.split(","), options.phases.split(","), options.signals.split(",")
        ):
            if whom == "command" and name == "SIGSTOP":
                continue  # who stops a command goes on with it when it likes
            rng = random.Random(f"{options.seed} {command} {whom} {phase} {name}")  # noqa: S311 - no secret
            yield befallen(command, whom, phase, name, rng)


def main() -> None:
    """Print the table, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default="run,check,bench,places")
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--signals", default=",".join(SIGNALS))
    parser.add_argument("--whom", default="worker,command")
    parser.add_argument("--seed", type=int, default=0)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for row in rows(parser.parse_args()):
        verdict = "WRONG" if row.wrong else "right"
        counts[verdict] += 1
        said = "; ".join((row.became, *row.wrong))
        print(
            f"{verdict}  {row.command:5}  {row.what:28} {row.where:16} {row.seconds:5.0f} s  {row.status:4}  {said}",
            flush=True,
        )
    total = sum(counts.values())
    print(f"{counts['right']} of {total} right, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if counts["WRONG"] else 0)


if __name__ == "__main__":
    main()
