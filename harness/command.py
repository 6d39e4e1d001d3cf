"""The entry point of the `harness` command: what must stand before a second of imports, which Ctrl-C may interrupt."""

import os
import signal
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Import the command and run it."""
    # An interrupt in the middle of an import would be a traceback, or whatever a library makes of it.
    heard = signal.getsignal(signal.SIGINT)
    if heard is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    from harness.cli import main as command  # noqa: PLC0415 - this is the second

    signal.signal(signal.SIGINT, heard)
    command()


def _stop(_signal: int, _frame: object) -> None:
    if sys.stderr is not None:
        os.write(sys.stderr.fileno(), b"interrupted; no result was written\n")
    os._exit(INTERRUPTED)
