"""Bars on standard error, while something takes long."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def trainings() -> Iterator[Any]:
    """A line a backend on standard error, where that is a terminal; else a listener that says nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _backend, _event: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.fields[backend]:<11}{task.fields[phase]:<9}"), BarColumn(),
               MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[loss]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def listen(backend: str, event: Mapping[str, Any]) -> None:
            if backend not in tasks:
                tasks[backend] = progress.add_task("", total=None, backend=backend, phase="", loss="")
            if "phase" in event:
                progress.update(tasks[backend], phase=event["phase"])
            if "total" in event:
                progress.update(tasks[backend], total=event["total"])
            if "step" in event:
                losses = " ".join(f"{loss:.4g}" for loss in event["losses"].values())
                progress.update(tasks[backend], completed=event["step"], loss=f"loss {losses}")
            if "exit" in event:
                progress.update(tasks[backend], phase="done" if event["exit"] == 0 else "failed")
                progress.stop_task(tasks[backend])

        yield listen


@contextmanager
def jobs() -> Iterator[Any]:
    """One bar over all trainings on standard error, where that is a terminal; else a listener that says nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _total, _done, _what: None
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda total, done, what: progress.update(task, total=total, completed=done, description=what)
