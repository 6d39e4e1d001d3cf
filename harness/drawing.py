"""Charts become pictures in a process of its own: Vega's engine takes a second to start and lets no Python run beside it.

`python -P -m harness.drawing` draws what it reads, a line of JSON each, and answers with a line.
"""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

import vl_convert

from harness.errors import WorkerFailed
from harness.files import error_text
from harness.supervise import spell_status

Spec = Mapping[str, Any]
ROOT = Path(__file__).parents[1]
FIRST: dict[str, Any] = {"data": {"values": []}, "mark": "point"}
"""A chart of nothing: what the engine draws first takes ten times as long as what follows."""


class DrawingError(WorkerFailed):
    """A chart that cannot be drawn, or an engine that has ended."""


class Artist:
    """Draws one picture after the other, in the order in which they are asked for, while whoever asks goes on."""

    def __init__(self) -> None:
        self._asking = ThreadPoolExecutor(1)
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the engine, unless it runs. Raises DrawingError. A first picture starts it too; earlier it costs nobody a wait."""
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the artist
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.drawing"], env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            )  # fmt: skip
        except OSError as error:
            raise DrawingError(f"the process that draws cannot be started: {error_text(error)}") from None

    def svg(self, spec: Spec, version: str) -> Future[str]:
        """A Vega-Lite spec as SVG; `version` of the language, or the engine's own where it does not know it."""
        return self._asking.submit(lambda: str(self._asked({"spec": spec, "version": version})))

    def png(self, svg: str, scale: float) -> Future[bytes]:
        """An SVG as a picture of so many times its size."""
        return self._asking.submit(lambda: base64.b64decode(self._asked({"svg": svg, "scale": scale})))

    def close(self) -> None:
        """End the process; what was asked for and is not drawn yet is given up."""
        self._asking.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.kill()
        self._asking.shutdown(wait=True)
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.communicate()
        if self._log is not None:
            self._log.close()

    def _asked(self, wanted: Mapping[str, Any]) -> str:
        """Raises DrawingError with what the engine said where it cannot draw."""
        self.start()
        process, log = self._process, self._log
        if process is None or process.stdin is None or process.stdout is None or log is None:
            raise DrawingError("the process that draws has no pipes")
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer either
            process.stdin.write(json.dumps(wanted).encode() + b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line and not line.endswith(b"\n"):
            line = b""  # it ended in the middle of its answer
        if not line:
            status = process.wait()
            log.seek(0)
            said = _gist(log.read().decode(errors="replace"))
            raise DrawingError(f"the process that draws ended with {spell_status(status)}{said and ': '}{said}")
        answer = json.loads(line)
        if "error" in answer:
            raise DrawingError(f"a chart cannot be drawn: {answer['error']}")
        return str(answer["drawn"])


def _gist(said: str) -> str:
    r"""Of what a process said before it died, the line that says why: addresses of its stack help nobody.

    >>> _gist("thread 'main' panicked at src/lib.rs:3\nout of memory\n   0: 0x55d1\n   1: 0x55d2")
    "thread 'main' panicked at src/lib.rs:3 out of memory"
    >>> _gist("Traceback (most recent call last):\n  File a.py, line 1\nImportError: no engine here")
    'ImportError: no engine here'
    """
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    if lines and lines[0].startswith("Traceback"):
        lines = lines[-1:]
    told = [line for line in lines if "0x" not in line and not re.match(r"\d+:", line)]
    return " ".join(told[:3])[:300]


def drawn(wanted: Mapping[str, Any]) -> str:
    """What was asked for: SVG, or a picture in base 64. Nothing is fetched, whatever a spec says."""
    if "svg" in wanted:
        return base64.b64encode(vl_convert.svg_to_png(wanted["svg"], scale=wanted["scale"])).decode()
    version = wanted["version"] if wanted["version"] in vl_convert.get_vegalite_versions() else None
    return str(vl_convert.vegalite_to_svg(wanted["spec"], vl_version=version, allowed_base_urls=[]))


def main() -> None:
    """Draw until there is nothing more to read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's business
    drawn({"spec": FIRST, "version": ""})
    for line in sys.stdin.buffer:
        try:
            answer = {"drawn": drawn(json.loads(line))}
        except (RuntimeError, ValueError) as error:
            answer = {"error": str(error).partition("\n\nStack backtrace")[0]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
