"""The emitted programs of the six specs, kept in tests/golden and reviewed like code. `--write` writes them."""

import sys
from difflib import unified_diff
from pathlib import Path

from harness import api, spec
from harness.backend import BACKENDS

FOLDER = Path(__file__).parent / "golden"


def programs() -> dict[str, str]:
    """File name -> program, of every bundled spec and backend."""
    found = {}
    for path in sorted(spec.directory().glob("*.yaml")):
        experiment = api.load(path)
        for backend in BACKENDS:
            found[f"{path.stem}_{backend}.py"] = experiment.emit(backend)
    return found


def main() -> int:
    """Compare or write. 1 where they differ."""
    FOLDER.mkdir(exist_ok=True)
    changed = 0
    for name, text in programs().items():
        path = FOLDER / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old != text:
            changed += 1
            if "--write" in sys.argv:
                path.write_text(text, encoding="utf-8")
            else:
                sys.stdout.writelines(unified_diff(old.splitlines(True), text.splitlines(True), name, f"{name} now"))
    sys.stdout.write(f"{changed} of {len(programs())} programs differ from tests/golden\n")
    return 0 if "--write" in sys.argv else int(changed > 0)


if __name__ == "__main__":
    sys.exit(main())
