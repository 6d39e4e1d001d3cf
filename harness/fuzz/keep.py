"""What is found, kept: the smallest spec that still shows it, and a standalone file per framework."""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from harness.backend import BACKENDS
from harness.check import dissect
from harness.check.live import LiveWorker
from harness.check.reduce import Reduced, dumped, reduce, smaller, written_to
from harness.check.reproduce import runnable
from harness.check.subject import prepare
from harness.errors import HarnessError, WorkerFailed
from harness.fuzz import shrink, training
from harness.fuzz.generate import Drawn, Redrawn, resolved
from harness.fuzz.record import Outcome
from harness.programs import emitted

BUDGET, LEAST = 60.0, 30.0
"""Seconds after which the smallest spec so far is kept; by training there are at least so many."""
Plain = dict[str, Any]


def sentence(why: str) -> str:
    """What a worker said, in one line: the last line of a traceback that names what was raised."""
    lines = [line.strip() for line in why.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"([a-z_]+\.)*[A-Z]\w*(Error|Exception|Warning|Interrupt)\b", line)]
    return raised[-1] if raised else lines[0] if lines else ""


def kind(why: str) -> str:
    """What tells one failure from another: what was raised, without its numbers."""
    return re.sub(r"\d+", "#", sentence(why))[:60]


def traceback_of(number: int, text: str, error: str, out: Path | None) -> tuple[str, ...]:
    """A spec that a traceback was the answer to, and the traceback."""
    if out is None:
        return ()
    folder = out / f"{number}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in ((f"fuzz_{number}.yaml", text), ("traceback.txt", error)):
        if content:
            (folder / name).write_text(content, encoding="utf-8")
            paths.append(str(folder / name))
    return tuple(paths)


def keep(
    drawn: Drawn, found: Outcome, failures: Mapping[str, str], precision: str, live: Mapping[str, LiveWorker], folder: Path, out: Path,
    differs: Callable[[Drawn, Path], bool],
) -> tuple[str, ...]:  # fmt: skip
    """Write what shows an outcome into a folder of its own: the spec as drawn, the smallest one, a file per framework.

    `differs`: whether trainings of a spec differ, which may write into a new folder.
    """
    into = out / str(drawn.number)
    into.mkdir(parents=True)
    name = drawn.program.name
    (into / f"{name}.yaml").write_text(drawn.text, encoding="utf-8")
    how = "".join(f" ({backend}: {way})" for backend, way in found.strategies.items())
    (into / "found.txt").write_text(
        f"{found.status}{how}: {found.said}\n" + "\n".join(failures.values()), encoding="utf-8"
    )
    paths = [into / f"{name}.yaml", into / "found.txt"]
    if any(worker.process.poll() is not None for worker in live.values()):
        return tuple(map(str, paths))  # nobody left to ask
    if failures:
        backend, why = next(iter(failures.items()))
        small = fails_smaller(drawn, backend, why, precision, live[backend], folder, ways=found.strategies)
        paths += written(small, found.strategies, precision, folder, into)
    else:
        paths += _differing(drawn, found.strategies, precision, live, folder, into, differs)
    shutil.rmtree(folder, ignore_errors=True)
    return tuple(map(str, paths))


def _differing(
    drawn: Drawn, ways: Mapping[str, str | None], precision: str, live: Mapping[str, LiveWorker], folder: Path, into: Path,
    differs: Callable[[Drawn, Path], bool],
) -> list[Path]:  # fmt: skip
    """The smallest spec by taking a step apart, which is quick; where its whole training does not differ, by training."""

    def shows(text: str, place: Path) -> Drawn | None:
        if any(worker.process.poll() is not None for worker in live.values()):
            return None  # nobody left to ask
        try:
            own = resolved(drawn.number, text)
            return own if differs(own, place) else None
        except (HarnessError, Redrawn, ValueError):
            return None
        finally:
            shutil.rmtree(place, ignore_errors=True)

    until = time.monotonic() + BUDGET
    why = "It differs by another way of running it than the plain one, in which a step is taken apart."
    if not ways:
        try:
            small = _dissected(drawn, precision, live, folder)
        except (WorkerFailed, HarnessError) as error:
            small = str(error)
        if isinstance(small, Reduced) and shows(small.text, folder / "reduced") is not None:
            return written_to(small, f"{drawn.program.name}_small", into)
        why = (
            small
            if isinstance(small, str)
            else "The whole training of the smallest spec that one step shows it in does not."
        )
    (into / "diff.txt").write_text(why + "\n", encoding="utf-8")
    least = smallest(drawn, shows, folder, max(LEAST, until - time.monotonic()))
    if least is drawn:
        return [into / "diff.txt"]
    return [into / "diff.txt", *written(least, ways, precision, folder, into)]


def _dissected(drawn: Drawn, precision: str, live: Mapping[str, LiveWorker], folder: Path) -> Reduced | str:
    """The smallest spec of which one step, taken apart from the same position, shows it; or why there is none."""
    subject = prepare(drawn.program, drawn.source, drawn.inputs, precision, folder / "whole", dict(live))
    sources = {name: subject.sources[name, True] for name in subject.workers}
    at = dissect.find(subject, sources, drawn.program.steps)
    dissect.closed(subject)
    if at is None:
        return "From the same position no step shows more than rounding."
    return reduce(
        drawn.text, at, drawn.program, precision, {}, live, folder / "smaller", budget=BUDGET, more=shrink.smaller
    )


def fails_smaller(
    drawn: Drawn, backend: str, why: str, precision: str, live: LiveWorker, folder: Path, budget: float = BUDGET,
    ways: Mapping[str, str | None] | None = None,
) -> Drawn:  # fmt: skip
    """The smallest spec in whose program a backend still fails in the same way."""

    def shows(text: str, place: Path) -> Drawn | None:
        try:
            own = resolved(drawn.number, text)
            subject = training.opened(own, precision, place, {backend: live})
            found = training.train(subject, training.programs(subject, ways or {}), ways or {})
            training.closed(subject)
        except (HarnessError, Redrawn, ValueError):
            return None
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return own if backend in found.failures and kind(found.failures[backend]) == kind(why) else None

    return smallest(drawn, shows, folder, budget)


def smallest(drawn: Drawn, shows: Callable[[str, Path], Drawn | None], folder: Path, budget: float) -> Drawn:
    """One thing less at a time, as long as it shows."""
    data: Plain = YAML(typ="safe").load(drawn.text)
    until, number, progress = time.monotonic() + budget, 0, True
    while progress and time.monotonic() < until:
        progress = False
        for other in chain(shrink.smaller(data), smaller(data, 1, keep_evaluation=False)):
            if time.monotonic() > until:
                break
            number += 1
            if (own := shows(dumped(other), folder / f"smaller-{number}")) is not None:
                data, drawn, progress = other, own, True
                break
    return drawn


def written(small: Drawn, ways: Mapping[str, str | None], precision: str, folder: Path, into: Path) -> list[Path]:
    """The smallest spec, and a file of every framework that trains it, in these ways; of the others in the plain one."""
    name = f"{small.program.name}_small"
    paths = [into / f"{name}.yaml"]
    paths[0].write_text(small.text, encoding="utf-8")
    subject = training.opened(small, precision, folder / "smallest", {})
    for backend in BACKENDS:
        paths.append(into / f"{name}_{backend}.py")
        paths[-1].write_text(
            runnable(subject, backend, emitted(small.program, backend, precision, strategy=ways.get(backend))),
            encoding="utf-8",
        )
    return paths
