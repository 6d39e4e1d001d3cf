"""Benchmarks of several specs in several precisions on one machine of many cores: prepared at once, timed in turn.

    python benchmarks/together.py JSON SPEC[:PRECISION[:OPTION=VALUE...]]... [-- OPTION=VALUE...]

Compiling and checking are most of a benchmark of a large network and take few cores each, so all of them do that at the
same time (what has processes of its own, as small networks on CPUs have, does it again alone). Whoever is ready has the machine alone while it is timed: the others, and all their processes, are suspended. What
is done is in a file of its own beside JSON as soon as it is, if the rest should be cut short. What workers answer of a large
network is gigabytes, in files: with memory to spare, TMPDIR=/dev/shm keeps them off the disk. Options are those
of `harness.bench.options.BenchOptions`, like `device=gpu rounds=20 lanes=default,best backends=torch,jax`.
"""

import json
import multiprocessing as mp
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil

from harness.bench.bench import bench
from harness.bench.options import BenchOptions, validate
from harness.bench.record import SCHEMA
from harness.errors import HarnessError

SUSPENDED = (
    "Compiled, tuned and checked while other benchmarks did the same on this machine; their processes were suspended while this "
    "one was timed."
)
LISTS = ("backends", "lanes", "parts")
NUMBERS = ("rounds", "processes", "timeout")


def parsed(wanted: str, common: Mapping[str, str]) -> tuple[str, BenchOptions]:
    """A spec's path and its options. Raises CallError."""
    path, *more = wanted.split(":")
    given = dict(common) | ({"precision": more[0]} if more else {}) | dict(option.split("=") for option in more[1:])
    found: dict[str, Any] = dict(given)
    found |= {name: tuple(filter(None, given[name].split(","))) for name in LISTS if name in given}
    found |= {name: int(given[name]) for name in NUMBERS if name in given}
    options = BenchOptions(**found)
    validate(options)
    return path, options


def one(wanted: str, common: Mapping[str, str], out: Path, ready: Event, go: Event) -> None:
    """One benchmark in this process, its result in a file of its own."""
    path, own = parsed(wanted, common)
    began = time.perf_counter()

    def listen(name: str, event: Mapping[str, Any]) -> None:
        phase = event.get("phase", "")
        if phase.endswith("warm-up"):
            ready.set()
            go.wait()  # its turn; what is said before it would be said while another is timed
        if phase:
            sys.stderr.write(f"{time.perf_counter() - began:6.1f} s  {name} {own.precision}: {phase}\n")

    try:
        results = bench([path], own, listen)
    except HarnessError as error:
        sys.exit(f"{wanted}: {error}")
    told = [replace(result, notes=(*result.notes, SUSPENDED)).to_json() for result in results]
    out.write_text(json.dumps(told), encoding="utf-8")


def tree(process: SpawnProcess) -> list[psutil.Process]:
    """A process and all that it has started."""
    try:
        own = psutil.Process(process.pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def main(out: Path, wanted: list[str], common: Mapping[str, str]) -> int:
    """All of them; one that fails is left out. Returns the exit status: 0, 1 where one failed, 2 of a wrong call."""
    try:
        for text in wanted:
            parsed(text, common)
    except (HarnessError, TypeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    context = mp.get_context("spawn")
    parts = [out.with_suffix(f".{i}.json") for i in range(len(wanted))]
    signs = [(context.Event(), context.Event()) for _ in wanted]
    given = zip(wanted, parts, signs, strict=True)
    started = [context.Process(target=one, args=(text, common, part, *sign)) for text, part, sign in given]
    for process in started:
        process.start()
    waiting = dict(zip(started, signs, strict=True))
    while waiting:
        time.sleep(0.2)
        for process in [p for p in waiting if not p.is_alive()]:
            del waiting[process]
        ready = [process for process, (sign, _) in waiting.items() if sign.is_set()]
        for process in ready[:1]:
            others = [own for other in waiting if other is not process for own in tree(other)]
            for own in others:
                with suppress(psutil.NoSuchProcess):
                    own.suspend()
            waiting.pop(process)[1].set()
            process.join()
            for own in others:
                with suppress(psutil.NoSuchProcess):
                    own.resume()
    done = [part for part in parts if part.exists()]
    results = [result for part in done for result in json.loads(part.read_text(encoding="utf-8"))]
    out.write_text(json.dumps({"schema": SCHEMA, "benchmarks": results}, indent=1), encoding="utf-8")
    for part in done:
        part.unlink()
    return int(len(done) < len(wanted))


if __name__ == "__main__":
    _, target, *arguments = sys.argv
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    sys.exit(main(Path(target), arguments[:cut], dict(option.split("=") for option in arguments[cut + 1 :])))
