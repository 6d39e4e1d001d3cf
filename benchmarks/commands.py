"""What whole commands take: `harness run` beside the bare programs that it trains, `harness emit`, a thousand layers.

    python benchmarks/commands.py [ROUNDS]

In each round every command once, in an order drawn anew, each in a process of its own. Printed are medians and quartiles:
seconds, and how many times as long a run takes as the three emitted programs by themselves, one after the other. Python's
compiled files are kept, as they are for whoever has run a command before.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import spec
from harness.backend import BACKENDS

SPECS = sorted(path.stem for path in spec.directory().glob("*.yaml"))
SPEC = "digits_mlp"
LAYERS = (250, 500, 1000)
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


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
