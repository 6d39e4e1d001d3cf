"""`python -m harness.atlas` writes backends/README.md; with `--measure [ROW ...]` it measures the sizes first."""

import sys

from harness.atlas import page
from harness.atlas.rows import BY_NAME
from harness.errors import CallError


def main(arguments: list[str]) -> None:
    """What the command line asks for."""
    if arguments and arguments[0] == "--measure":
        unknown = [name for name in arguments[1:] if name not in BY_NAME]
        if unknown:
            raise CallError(f"there is no row '{unknown[0]}' (rows: {', '.join(BY_NAME)})")
        page.write_measured(page.measure(lambda what: sys.stderr.write(f"{what}\n"), tuple(arguments[1:])))
    elif arguments:
        raise CallError(f"python -m harness.atlas [--measure [ROW ...]], got '{' '.join(arguments)}'")
    page.write()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CallError as error:
        sys.exit(f"error: {error}")
