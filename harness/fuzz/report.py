"""A fuzzing for people: a line on standard error now and then, and what was found at the end."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from harness.fuzz.fuzz import COUNT, FuzzOptions
from harness.fuzz.record import FuzzResult, Outcome

EVERY = 10.0
"""Seconds between two lines."""


def progress(options: FuzzOptions) -> Callable[[Outcome, int, float], None]:
    """A listener that says how far it is, and at once what was found."""
    total = options.count or (COUNT if options.minutes is None else None)
    last = 0.0
    counts: dict[str, int] = {}

    def listen(outcome: Outcome, done: int, seconds: float) -> None:
        nonlocal last
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        if outcome.found != options.plant:
            sys.stderr.write(f"spec {outcome.number}: {spoken(outcome)}\n")
        if seconds - last >= EVERY or done == total:
            last = seconds
            ends = [60 * options.minutes - seconds] if options.minutes is not None else []
            ends += [seconds / done * (total - done)] if total else []
            said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
            sys.stderr.write(
                f"{done}{f' of {total}' if total else ''} specs in {seconds:.0f} s ({said}); about {max(0.0, min(ends)):.0f} s left\n"
            )
        sys.stderr.flush()

    return listen


def spoken(outcome: Outcome) -> str:
    """An outcome in a line."""
    planted = f"{outcome.fault}, in {outcome.planted} ({outcome.where} place): " if outcome.fault else ""
    ways = "".join(f" ({name}: {way})" for name, way in outcome.strategies.items())
    notes = f" [{', '.join(outcome.notes)}]" if outcome.notes else ""
    why = f" ({outcome.why})" if outcome.why else ""
    return f"{planted}{outcome.status}{ways}{notes}{f': {outcome.said}' if outcome.said else ''}{why}"


def print_fuzz(result: FuzzResult, console: Console) -> None:
    """What was found, and the sum."""
    for outcome in result.missed if result.plant else [o for o in result.outcomes if o.found]:
        console.print(Text(f"spec {outcome.number}: {spoken(outcome)}"))
        for path in outcome.kept:
            console.print(Text(f"    {path}", style="dim"))
    for backend, why in result.failures.items():
        console.print(Text(f"{backend} failed: {why}", style="red"))
    console.print(Text(sentence(result)))


def sentence(result: FuzzResult) -> str:
    """The sum."""
    done, counts = len(result.outcomes), result.counts
    rate = f"{result.seconds:.0f} s, {60 * done / max(result.seconds, 1e-9):.1f} a minute"
    head = f"seed {result.seed}, {result.precision}, {' · '.join(result.backends)}"
    if result.plant:
        tried, planted = len(result.tried), sum(bool(o.fault) for o in result.outcomes)
        without = f"; {planted - tried} more change nothing in their spec" if planted > tried else ""
        none = f"; in {done - planted} specs there was nothing to plant" if done > planted else ""
        return f"{tried - len(result.missed)} of {tried} planted faults found{without}{none} ({head}; {rate})"
    still = sum("still" in o.notes for o in result.outcomes)
    diverged = sum("diverged" in o.notes for o in result.outcomes)
    notes = [
        f"{n} {what}" for n, what in ((still, "in which nothing moves"), (diverged, "that diverge, all alike")) if n
    ]
    said = f"{done} specs: {counts['same']} the same, {counts['rounding']} the same up to rounding, {counts['differs']} differ, {counts['failed']} failed"
    return f"{said}{f' ({chr(44).join(notes)})' if notes else ''} ({head}; {rate})"
