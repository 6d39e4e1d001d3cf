"""Whether the peers train what the emitted programs train, and how fast each is.

    python benchmarks/peers/check.py [--time] RUN...

RUN is a directory that `harness run benchmarks/specs/mlp.yaml --steps 8 --out RUN` wrote. Every peer of the network
trains from its arrays, one framework a process, and its first losses are compared with the recorded ones. With
--time, each then trains on and the least processor time of a step is shown. Exit status 1: one is beyond tolerance.
"""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

FRAMEWORKS = ("torch", "tensorflow", "jax")
TOLERANCE, EVERYDAY = 2e-5, 5e-4
"""Relative. The everyday ways have their framework's own Adam: Keras's parts in the fifth digit, and the CNN widens it."""
ROUNDS, ROUND_SECONDS = 5, 0.4


def measure(framework: str, run: Path, seconds: float) -> None:
    """The child: one JSON line for each peer of a framework."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    peers = importlib.import_module(f"{framework}_peers").PEERS[result["spec"]]
    recorded = [np.array(row["losses"][name]) for row in result["backends"].values() for name in row["losses"]]
    expected = np.mean(recorded, axis=0)[:8]
    for strategy, build in peers.items():
        start = time.perf_counter()
        train = build(run)
        losses = train(max(train.chunk, len(expected)))
        row = {"network": result["spec"], "strategy": strategy, "ready_seconds": time.perf_counter() - start}
        row["worst"] = float(np.max(np.abs(losses[: len(expected)] / expected - 1)))
        if losses.dtype != np.float32 or losses.shape != (max(train.chunk, len(expected)),):
            row["worst"] = float("inf")
        if seconds:  # at once: the fast ways change how the process keeps memory, the everyday way comes before them
            row["microseconds"] = 1e6 * least_seconds(train, seconds)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def least_seconds(train: Callable[[int], np.ndarray], seconds: float) -> float:
    """The least processor time of a step, of rounds that take about `seconds`."""
    count, passed = train.chunk, 0.0  # type: ignore[attr-defined]
    while passed < seconds / 8:
        count, start = count * (4 if passed else 1), time.perf_counter()
        train(count)
        passed = time.perf_counter() - start
    chunk = train.chunk  # type: ignore[attr-defined]
    count = max(1, round(count * seconds / passed / chunk)) * chunk
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        train(count)
        taken.append((time.process_time() - start) / count)
    return min(taken)


def main() -> int:
    """Check every peer of the frameworks that are installed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--time", action="store_true", help="time every peer as well")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    arguments = parser.parse_args()
    failed = False
    sys.stdout.write(f"{'network':<18} {'framework':<11} {'strategy':<12} {'worst':>9}  {'ready s':>7}  us/step\n")
    for run in arguments.runs:
        for framework in filter(importlib.util.find_spec, FRAMEWORKS):
            seconds = ROUND_SECONDS if arguments.time else 0
            command = [sys.executable, __file__, "--child", framework, str(run), str(seconds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            for row in rows:
                close = row["worst"] <= (EVERYDAY if row["strategy"] == "everyday" else TOLERANCE)
                failed |= not close
                taken = f"{row['microseconds']:10.2f}" if "microseconds" in row else ""
                sys.stdout.write(
                    f"{row['network']:<18} {framework:<11} {row['strategy']:<12} {row['worst']:9.1e}  "
                    f"{row['ready_seconds']:7.1f}  {taken}{'' if close else '  beyond tolerance'}\n"
                )
            if done.returncode:
                failed = True
                sys.stdout.write(f"{run}: {framework} ended with status {done.returncode}\n")
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        measure(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))
    else:
        sys.exit(main())
