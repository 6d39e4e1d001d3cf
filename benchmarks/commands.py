"""What whole commands take: `harness run` beside the bare programs that it trains, `harness emit`, a thousand layers.

    python benchmarks/commands.py [ROUNDS]
    python benchmarks/commands.py large [COMMAND...]

In each round every command once, in an order drawn anew, each in a process of its own. Printed are medians and quartiles:
seconds, and how many times as long a run takes as the three emitted programs by themselves, one after the other. Python's
compiled files are kept, as they are for whoever has run a command before.

`large`: once each, of networks that take minutes, LARGE: `run` and the bare programs, `diff`, `check`, `bench` (or those that are
named). Printed are seconds by the wall clock and of the processor, the most memory that all processes and the command's own
have held at once, and what the run directory holds.
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness import spec
from harness.backend import BACKENDS

SPECS = sorted(path.stem for path in spec.directory().glob("*.yaml"))
SPEC = "digits_mlp"
LAYERS = (250, 500, 1000)
LARGE = ("resnet18", "vit")
LOOK = 0.2
DEEP = """\
name: deep
data: {{dataset: random, examples: 64, batch: 8, fields: {{x: {{shape: [8]}}, y: {{shape: [1]}}}}}}
networks:
  deep:
    layers:
{layers}
      - dense: 1
training:
  steps: 10
  updates:
    - loss: {{mse: {{predictions: deep(x), targets: y}}}}
      optimizer: {{sgd: {{learning_rate: 0.01}}}}
"""
HARNESS = [sys.executable, "-c", "from harness.cli import main; main()"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: Sequence[str], where: Path) -> float:
    """How long a command takes; SystemExit with what it said where it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=where, env=ENVIRONMENT, capture_output=True, text=True, check=False)  # noqa: S603
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return took


@dataclass(frozen=True)
class Cost:
    """What a command took, with all processes that it started."""

    status: int
    seconds: float
    cpu: float
    """Seconds of the processor."""
    peak: int
    """Bytes in memory at most, all processes together; looked at every LOOK seconds."""
    own: int
    """The same of the command's own process."""

    def __str__(self) -> str:
        memory = f"{self.peak / 2**30:.2f} GiB at most, {self.own / 2**30:.2f} in its own process"
        return f"{self.seconds:.0f} s, {self.cpu:.0f} s of processor time, {memory}, status {self.status}"


def cost(command: Sequence[str], where: Path, fine: Sequence[int] = (0,)) -> Cost:
    """What a command takes; SystemExit with what it said where its status is not `fine`."""
    before, began = _processor(), time.perf_counter()
    peak = own = 0
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen(command, cwd=where, env=ENVIRONMENT, stdout=said, stderr=said)
        while process.poll() is None:
            held = _held(process)
            peak, own = max(peak, sum(held)), max(own, *held[:1], 0)
            time.sleep(LOOK)
        took = time.perf_counter() - began
        if process.returncode not in fine:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: status {process.returncode}\n{said.read()}")
    return Cost(process.returncode, took, _processor() - before, peak, own)


def _processor() -> float:
    """Seconds of the processor of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _held(process: psutil.Process) -> list[int]:
    """Bytes in memory: of a process, and of those that it has started. What ends meanwhile holds none."""
    held = []
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            held.append(one.memory_info().rss)
    return held


def large(wanted: Sequence[str]) -> None:
    """What commands take on networks that take minutes, printed as each is done."""
    with tempfile.TemporaryDirectory(prefix="harness-commands-") as folder:
        for name in LARGE:
            spec_file, run = Path(__file__).parent / "specs" / f"{name}.yaml", Path(folder) / name
            rows = {
                "run": ["run", str(spec_file), "--steps", "60", "--out", str(run)],
                "diff": ["diff", str(run)],
                "check": ["check", str(spec_file), "--rungs", "1-4"],
                "bench": ["bench", str(spec_file), "--lanes", "default,best"],
            }
            if unknown := set(wanted) - set(rows):
                raise SystemExit(f"unknown: {', '.join(sorted(unknown))} (commands: {', '.join(rows)})")
            # `diff` is of a run.
            for command in [one for one in rows if not wanted or one in wanted or (one == "run" and "diff" in wanted)]:
                found = cost([*HARNESS, *rows[command]], Path(folder), fine=(0, 1))
                sys.stdout.write(f"harness {command} {name}: {found}\n")
                sys.stdout.flush()
                if command == "run":
                    kept = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
                    bare = [cost([sys.executable, f"{name}_{b}.py", str(run)], run / b) for b in BACKENDS]
                    used, asked = sum(one.cpu for one in bare), twins(run)
                    sys.stdout.write(
                        f"  the bare programs in turn: {sum(one.seconds for one in bare):.0f} s, {used:.0f} s of processor time; "
                        f"the run {found.cpu / used:.2f} times as much of it, {(found.cpu - asked) / used:.2f} without its twins' "
                        f"{asked:.0f} s; its directory holds {kept / 1e6:.0f} MB\n"
                    )


def twins(run: Path) -> float:
    """Seconds that a run's twins took in their workers, one thread each: by the wall clock, so on a busy machine too many."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in run.glob("twins/*/*/result.json")]
    return float(sum(sum(own["seconds"].values()) for own in found))


def spelled(values: Sequence[float], unit: str = " s") -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3g}{unit} ({low:.3g} to {high:.3g})"


def deep(layers: int) -> str:
    """A spec of so many layers, an even number, and its output's."""
    return DEEP.format(layers="\n".join(["      - dense: 8", "      - relu"] * (layers // 2)))


def main(rounds: int) -> None:
    """Time all of it, and print what was found."""
    if rounds < 2:  # noqa: PLR2004
        raise SystemExit(f"ROUNDS is at least 2, got {rounds}")
    with tempfile.TemporaryDirectory(prefix="harness-commands-") as folder:
        timed_in(Path(folder), rounds)


def timed_in(folder: Path, rounds: int) -> None:
    """The same, in a folder that is there."""
    run = folder / "run"
    seconds([*HARNESS, "run", SPEC, "--out", str(run)], folder)  # what bare programs train on; and files are warm
    timed: dict[str, Callable[[int], float]] = {}
    for backend in BACKENDS:
        bare = [sys.executable, f"{SPEC}_{backend}.py", str(run)]
        timed[f"bare {backend}"] = lambda _n, bare=bare, where=run / backend: seconds(bare, where)
    timed["run"] = lambda n: seconds([*HARNESS, "run", SPEC, "--out", str(folder / f"run-{n}")], folder)
    for own in SPECS:
        for backend in BACKENDS:
            emit = [*HARNESS, "emit", own, "--backend", backend]
            timed[f"emit {own} {backend}"] = lambda _n, emit=emit: seconds(emit, folder)
    for layers in LAYERS:
        path = folder / f"deep-{layers}.yaml"
        path.write_text(deep(layers))
        for backend in BACKENDS:
            emit = [*HARNESS, "emit", str(path), "--backend", backend]
            timed[f"{layers} layers {backend}"] = lambda _n, emit=emit: seconds(emit, folder)
    found: dict[str, list[float]] = {name: [] for name in timed}
    order = list(timed)
    for number in range(rounds):
        random.shuffle(order)
        for name in order:
            found[name].append(timed[name](number))
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    bare = [sum(of) for of in zip(*(found[f"bare {backend}"] for backend in BACKENDS), strict=True)]
    ratios = [whole / of for whole, of in zip(found["run"], bare, strict=True)]
    lines = [
        f"harness run {SPEC}: {spelled(found['run'])}; the bare programs in turn: {spelled(bare)}",
        f"ratio {spelled(ratios, '')}, by round {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
    ]
    for name in [*(f"emit {own}" for own in SPECS), *(f"{layers} layers" for layers in LAYERS)]:
        lines.append(
            f"{name}: " + ", ".join(f"{backend} {spelled(found[f'{name} {backend}'])}" for backend in BACKENDS)
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__" and sys.argv[1:2] == ["large"]:
    large(sys.argv[2:])
elif __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
