"""How far something is and how long it will still take: bars on standard error where that is a terminal, else a line now and then.

Whatever takes long tells a `Listener` of it: a name (a backend, a spec) and an event, any of
`{"phase": what, "total": steps}` (a phase begins; left out, the total stays), `{"step": n, "losses": {...}}` (n of them are done),
`{"whole": [done, all]}` (how much of everything, in units of about the same length), `{"roughly": seconds}` (how long all will
take, before anything was timed), `{"exit": status}` (it has ended) and
`{"warning": sentence}` (to be shown in any case). An empty event is a sign of life. `counting` tells the first two.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Listener = Callable[[str, Mapping[str, Any]], None]

FIRST = 10.0
"""Seconds after which the first line is written; what is done before needs none."""
LONGEST = 60.0
"""Seconds between two lines at most: they begin FIRST apart and come ever more seldom."""
SLOWER = 1.5
KNOWN = 2.0
"""Seconds of steps from which their speed is known."""
LONG = 60.0
"""Seconds: what takes longer is announced with an estimate."""


def counting(listen: Listener, name: str, phase: str, total: int) -> Callable[[], None]:
    """Tell of a phase of so many pieces; the function that is returned is called after each.

    >>> done = counting(lambda name, event: print(name, event), "fuzz", "specs", 2)
    fuzz {'phase': 'specs', 'total': 2}
    >>> done()
    fuzz {'step': 1, 'losses': {}}
    """
    listen(name, {"phase": phase, "total": total})
    count = 0

    def done() -> None:
        nonlocal count
        count += 1
        listen(name, {"step": count, "losses": {}})

    return done


@dataclass
class Pace:
    """One thing under way: its phase, how much of that is done, and since when."""

    name: str
    phase: str = ""
    total: int | None = None
    done: int | None = None
    first: tuple[float, int] | None = None
    """When the first step of the phase was done, and its number: it costs more than the others."""
    last: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)
    ended: str = ""
    announced: bool = False

    def left(self, now: float) -> float | None:
        """Seconds until the end of its phase, at the speed of the steps so far; None while that is not known."""
        if self.first is None or self.done is None or not self.total:
            return None
        began, number = self.first
        if self.done <= number or self.last - began < KNOWN:
            return None
        return max(0.0, (self.last - began) / (self.done - number) * (self.total - self.done) - (now - self.last))

    def said(self, now: float) -> str:
        """As a line has it."""
        parts = [": ".join(filter(None, (self.name, self.ended or self.phase)))]
        if not self.ended and self.done is not None and self.total:
            parts.append(f"{self.done:,} of {self.total:,}")
            parts += [f"{left} left"] if (left := about(self.left(now))) else []
        return ", ".join(parts)


@dataclass
class Tracker:
    """All that is under way, from what a listener is told. Its clock is given, so that it can be tested."""

    began: float
    paces: dict[str, Pace] = field(default_factory=dict)
    whole: tuple[float, float] | None = None
    counted: tuple[float, float] | None = None
    """When the first of the whole's units were done, and how many of them."""
    announced: bool = False
    guessed: float | None = None
    """When all would be done by the guess that was made before anything was timed."""

    def tell(self, name: str, event: Mapping[str, Any], now: float) -> list[str]:
        """Take an event in. Returns what is to be said at once: how long something takes that takes long."""
        if not event.keys() - {"warning"}:
            return []
        said = []
        if "roughly" in event:
            self.guessed = now + float(event["roughly"])
            if float(event["roughly"]) > LONG:
                said.append(f"all of it will take {about(event['roughly'])}, by a count of its operations")
        pace = self.paces.setdefault(name, Pace(name))
        if "phase" in event:
            pace.phase, pace.done, pace.first, pace.ended = str(event["phase"]), None, None, ""
        if "total" in event:
            pace.total = int(event["total"]) or None
        if "step" in event:
            pace.done, pace.losses, pace.last = int(event["step"]), event.get("losses", {}), now
            pace.first = pace.first or (now, pace.done)
        if "exit" in event:
            pace.ended = "done" if event["exit"] == 0 else "failed"
        if "whole" in event:
            done, every = event["whole"]
            self.whole = float(done), float(every)
            if done and self.counted is None:
                self.counted = now, float(done)
        return said + self._news(pace, now)

    def _news(self, pace: Pace, now: float) -> list[str]:
        found = []
        left = pace.left(now)
        if left is not None and not pace.announced and pace.first is not None:
            pace.announced = True
            if now - pace.first[0] + left > LONG:
                found.append(
                    f"{pace.name}: {pace.phase}: {pace.total:,} steps will take {about(now - pace.first[0] + left)}"
                )
        rest = self.left(now)
        if rest is not None and not self.announced and self.whole is not None and self.whole[0]:
            self.announced = True
            if now - self.began + rest > LONG:
                found.append(f"all of it will take {about(now - self.began + rest)}")
        return found

    def left(self, now: float) -> float | None:
        """Seconds until all is done, by the units so far, or by the guess; None where there is neither."""
        if self.whole is None or not self.whole[0]:
            return None if self.guessed is None or self.guessed <= now else self.guessed - now
        done, every = self.whole
        return (now - self.began) / done * (every - done)

    def line(self, now: float) -> str:
        """What is under way, in one line: the time, each thing's phase, what is left."""
        spent = f"{int(now - self.began) // 60}:{int(now - self.began) % 60:02}"
        going = [pace for pace in self.paces.values() if not pace.ended] or list(self.paces.values())
        parts = [pace.said(now) for pace in going]
        if self.whole is not None:
            share = f"{100 * self.whole[0] / max(self.whole[1], 1):.0f} % of all"
            rest = about(self.left(now))
            parts.append(f"{share}, {rest} left" if rest else share)
        elif rest := about(self.left(now)):
            parts.append(f"{rest} left")
        return f"{spent}  {'; '.join(parts) or 'starting'}"


def about(seconds: float | None) -> str:
    """A time that is estimated, to what an estimate is good for.

    >>> about(3.2), about(44), about(100), about(1500), about(9000), about(None)
    ('a few seconds', 'about 40 s', 'about 2 min', 'about 25 min', 'about 2.5 h', '')
    """
    if seconds is None:
        return ""
    if seconds < 10:  # noqa: PLR2004
        return "a few seconds"
    if seconds < 90:  # noqa: PLR2004
        return f"about {10 * round(seconds / 10)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


@contextmanager
def trainings(*, quiet: bool = False) -> Iterator[Listener]:
    """A listener that shows what it is told on standard error; `quiet`: warnings alone."""
    if quiet or sys.stderr is None:
        yield _silent
    elif sys.stderr.isatty():
        with _bars() as listen:
            yield listen
    else:
        with _lines() as listen:
            yield listen


@contextmanager
def jobs(*, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """The same for one row of jobs: told how many there are, how many are done, and which one is under way."""
    with trainings(quiet=quiet) as listen:
        yield lambda total, done, what: listen("trainings", {"phase": what, "total": total, "step": done})


def _silent(_name: str, event: Mapping[str, Any]) -> None:
    if "warning" in event:
        _write(f"warning: {event['warning']}")


def _write(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it, or it is closed: that stops no training
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@contextmanager
def _lines() -> Iterator[Listener]:
    """A plain line now and then: the first after FIRST seconds, the others ever more seldom."""
    tracker, lock, over = Tracker(time.monotonic()), threading.Lock(), threading.Event()

    def listen(name: str, event: Mapping[str, Any]) -> None:
        with lock:
            news = tracker.tell(name, event, time.monotonic())
        _silent(name, event)
        for sentence in news:
            _write(sentence)

    def now_and_then() -> None:
        wait = FIRST
        while not over.wait(wait):
            with lock:
                line = tracker.line(time.monotonic())
            _write(line)
            wait = min(LONGEST, SLOWER * wait)

    thread = threading.Thread(target=now_and_then, name="progress", daemon=True)
    thread.start()
    try:
        yield listen
    finally:
        over.set()
        thread.join()


@contextmanager
def _bars() -> Iterator[Listener]:
    """A bar for each thing that is under way, and below them what is left of all."""
    from rich.console import Console  # noqa: PLC0415 - where there is no terminal it is not needed
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    tracker, lock = Tracker(time.monotonic()), threading.Lock()
    words = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False, table_column=words), BarColumn(bar_width=10),
        TimeElapsedColumn(), TextColumn("{task.fields[rest]}", markup=False, table_column=Column(no_wrap=True)),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as progress:
        tasks: dict[str, Any] = {}

        def listen(name: str, event: Mapping[str, Any]) -> None:
            now = time.monotonic()
            with lock:
                tracker.tell(name, event, now)
                if "warning" in event:
                    progress.console.print(f"warning: {event['warning']}", markup=False)
                for pace in tracker.paces.values():
                    if pace.name not in tasks:
                        tasks[pace.name] = progress.add_task("", total=None, rest="")
                    count = f"{pace.done:,} of {pace.total:,}" if pace.total and pace.done is not None else ""
                    rest = about(pace.left(now)).removeprefix("about ")
                    loss = " ".join(f"loss {loss:.3g}" for loss in list(pace.losses.values())[:1])
                    progress.update(
                        tasks[pace.name], description=f"{pace.name}: {pace.ended or pace.phase}", total=pace.total,
                        completed=pace.done or 0, rest=", ".join(filter(None, (count, f"{rest} left" if rest else loss))),
                    )  # fmt: skip
                    if pace.ended:
                        progress.stop_task(tasks[pace.name])
                if tracker.whole is not None:
                    if "" not in tasks:
                        tasks[""] = progress.add_task("all", total=tracker.whole[1], rest="")
                    rest = about(tracker.left(now)).removeprefix("about ")
                    progress.update(
                        tasks[""],
                        total=tracker.whole[1],
                        completed=tracker.whole[0],
                        rest=f"{rest} left" if rest else "",
                    )

        yield listen
