"""The errors that a user meets, one per audience. Each says where, what, and what instead."""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class HarnessError(Exception):
    """Anything that the command line prints as a sentence, without a traceback."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec, and where."""

    message: str
    where: str = ""
    """A path through the spec: `networks.classifier.layers[3] conv2d`."""
    line: int | None = None
    column: int | None = None


class SpecError(HarnessError):
    """A spec that cannot be run: every problem that was found, with file, line and column. Fix your YAML."""

    def __init__(self, source: Path | str, problems: list[Problem]) -> None:
        # What is wrong with a block is so wherever it is used: it is said where it is first.
        first: dict[tuple[object, ...], Problem] = {}
        for p in problems:
            first.setdefault((p.message, p.where if p.line is None else p.line, p.column), p)
        self.source, self.problems = str(source), list(first.values())
        super().__init__("\n".join(self._line(problem) for problem in self.problems))

    def _line(self, problem: Problem) -> str:
        place = self.source
        if problem.line is not None:
            place += f":{problem.line}:{problem.column}"
        text = ": ".join(part for part in (place, problem.where, problem.message) if part)
        # A terminal acts on some characters of a name or a file.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class CallError(HarnessError):
    """The call itself is wrong: an unknown backend, a missing directory. Fix the command."""


class WorkerFailed(HarnessError):  # noqa: N818 - the name that its readers look for
    """A worker that ended, hung or raised where an answer was expected. Read its log."""


class DataError(HarnessError):
    """Data that cannot be trained on: a missing file, NaN, labels out of range. Fix the data."""


@cache  # a spec is compiled more than once in a command
def warn(message: str) -> None:
    """Say what is allowed and surely not meant: once, on standard error, whatever else happens."""
    logging.getLogger("harness").warning("warning: %s", message)
