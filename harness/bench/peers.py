"""Programs that somebody has written by hand for the same network, timed beside the emitted ones: the yardstick.

A folder has `<backend>_peers.py`, whose `PEERS[network][strategy]` is a function of a run directory (its `inputs/`) that
returns `train(steps) -> losses`; `train.chunk` is how many steps one call takes. The strategy `everyday` is the way of the
framework's own guide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bench.ratio import Ratio
from harness.bench.rounding import times_apart
from harness.bench.rounds import Contestant, between
from harness.check.live import LiveWorker
from harness.check.subject import Subject, open_program, part
from harness.errors import CallError, WorkerFailed
from harness.lanes import PLAIN
from harness.programs import emitted
from harness.twins import TIMES, moved

EVERYDAY = "everyday"
CLOSE = {EVERYDAY: 2e-3}
"""How far, relatively, a peer's first losses may lie from ours; Keras's own Adam has another epsilon."""
TIGHT = 5e-5
TWINS = 4
"""Of the emitted program, where a peer's losses part from its by more than that."""
COMPARED = 8
"""Losses that are compared: the batches of a peer repeat after that many."""


@dataclass(frozen=True)
class Peer:
    """One of them, timed in the same rounds."""

    backend: str
    strategy: str
    contestant: Contestant
    ratio: Ratio | None
    """How many times as long as its step the best emitted program's of the same backend takes."""

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object."""
        return {
            "backend": self.backend, "strategy": self.strategy,
            "best_against_it": None if self.ratio is None else self.ratio.to_json(), **self.contestant.to_json(),
        }  # fmt: skip


def files(folder: Path | None, backends: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder by backend. Raises CallError where there is none."""
    if folder is None:
        return {}
    found = {backend: folder / f"{backend}_peers.py" for backend in backends}
    found = {backend: path.resolve() for backend, path in found.items() if path.is_file()}
    if not found:
        raise CallError(f"--peers {folder}: has no {' or '.join(f'{b}_peers.py' for b in backends)}")
    return found


def named(backend: str, strategy: str) -> str:
    """What one of them goes by."""
    return f"{backend} peer {strategy}"


def opened(
    subject: Subject, live: LiveWorker, file: Path, losses: Mapping[str, list[float]], notes: list[str],
    only: str | None = None, emitted_by: LiveWorker | None = None,
) -> dict[str, Contestant]:  # fmt: skip
    """By strategy, those of a backend, or `only` one, that train as the emitted program does; `notes` says which do not.

    `emitted_by`: the worker that trains the emitted program's twins where the losses part by more than is close.
    """
    found: dict[str, Contestant] = {}
    network = subject.program.name
    (expected,) = [own[:COMPARED] for own in losses.values()] if len(losses) == 1 else [[]]
    try:
        written = live.ask("peers_of", file=str(file), network=network)["strategies"]
    except WorkerFailed as error:
        if live.process.poll() is None:
            raise  # whoever wrote the file has to mend it
        what = f"Nothing of {file.name} is" if only is None else f"{named(live.backend, only)} is not"
        notes.append(f"{what} timed: {str(error).splitlines()[0]}")
        return {}
    for strategy in written:
        if only is not None and strategy != only:
            continue
        name = named(live.backend, strategy)
        try:
            said = live.ask(
                "peer", file=str(file), network=network, strategy=strategy, name=name, run=str(subject.folder), steps=len(expected)
            )  # fmt: skip
        except WorkerFailed as error:
            notes.append(f"{name} is not timed: {str(error).splitlines()[0]}")
            continue
        close = CLOSE.get(strategy, TIGHT)
        if times_apart(said["losses"], expected, [], close) > 1:
            worst = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(said["losses"], expected, strict=True))
            away = f"its losses are {worst:.1g} from the emitted program's, relatively"
            twins = [] if emitted_by is None else twin_losses(subject, emitted_by, len(expected))
            base, twins = (twins[0], twins[1:]) if twins else (expected, [])
            carried = [[e + t - b for e, t, b in zip(expected, own, base, strict=True)] for own in twins]
            times = TIMES * times_apart(said["losses"], expected, carried, close)
            if not twins or times > TIMES:
                beside = f"; {times:.2g} times as far as its own twins part, {TIMES} are rounding" if twins else ""
                notes.append(f"{name} is not timed: {away}{beside}")
                continue
            notes.append(f"{name}: {away}, {times:.2g} times as far as its own twins part: that is rounding")

        def run(steps: int, name: str = name) -> tuple[float, float]:
            timed = live.ask("clock_peer", name=name, steps=steps)
            return timed["seconds"], timed["cpu"]

        found[strategy] = Contestant(name, run, said["chunk"])
    return found


def twin_losses(subject: Subject, live: LiveWorker, steps: int) -> list[list[float]]:
    """The first losses of a backend's emitted program, begun one unit in the last place away: TWINS times, found once.

    Each is held against the emitted program's own, so what parts from it by the way it is run is not counted.
    """

    def find() -> list[list[float]]:
        name, plain = "peers-twins", PLAIN[live.backend]
        source = emitted(subject.program, live.backend, subject.precision)
        open_program(subject, live, name, source, observe=False, strategy=plain)
        base, *twins = (_first_losses(subject, live, name, number, steps) for number in (None, *range(TWINS)))
        live.ask("close", name=name)
        return [base, *twins]

    return subject.known(f"losses of {live.backend}'s twins", find)


def _first_losses(subject: Subject, live: LiveWorker, name: str, number: int | None, steps: int) -> list[float]:
    """Of the training itself, or of its twin of that number."""
    own = part(subject.start, "state/")
    own = own if number is None else moved(subject.program, own, number)
    place = "start" if number is None else f"peers-twin-{number}"
    at = subject.position(place, subject.start | {f"state/{n}": array for n, array in own.items()})
    live.ask("load", name=name, arrays=at)
    (losses,) = live.ask("train", name=name, first=0, last=steps, at=(steps,))["losses"].values()
    return [float(loss) for loss in losses]


def judged(contestants: Mapping[tuple[str, str], Contestant], best: Mapping[str, Contestant]) -> tuple[Peer, ...]:
    """Each beside the best emitted program of its backend."""
    return tuple(
        Peer(backend, strategy, own, between(best[backend], own) if backend in best else None)
        for (backend, strategy), own in contestants.items()
    )
