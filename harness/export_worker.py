"""Write one checkpoint in a framework's own format: `python -P -m harness.export_worker DIRECTORY`.

The directory holds request.json, the emitted program and the checkpoint; the files that the request names are written.
Imports NumPy, safetensors and one framework, nothing else.
"""

import importlib
import json
import sys
from pathlib import Path

from harness.backend import PACKAGES
from harness.checkpoint import Checkpoint
from harness.worker import load_program


def main(directory: Path) -> None:
    """Do what request.json asks."""
    request = json.loads((directory / "request.json").read_bytes())
    backend = request["backend"]
    importlib.import_module(PACKAGES[backend][0])
    sessions = importlib.import_module(f"backends.{backend}.session")
    sessions.configure(request)
    checkpoint = Checkpoint.read(directory / "checkpoint.safetensors")
    session = sessions.Session(load_program(directory / request["program"]), request)
    session.load(checkpoint.state)
    session.load_optimizer(checkpoint.optimizer)
    files = {network: directory / name for network, name in request["files"].items()}
    importlib.import_module(f"backends.{backend}.export").export(session, files, checkpoint.step)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
