"""A session -> an Orbax checkpoint. Imported only inside a worker.

>>> with orbax.checkpoint.StandardCheckpointer() as checkpointer:  # doctest: +SKIP
...     saved = checkpointer.restore(Path("digits").absolute())
>>> model = nnx.merge(GRAPHDEF, saved["parameters"], saved["statistics"])  # doctest: +SKIP
"""

from collections.abc import Mapping
from pathlib import Path

import orbax.checkpoint

from backends.jax.session import Session


def export(session: Session, files: Mapping[str, Path], step: int) -> None:
    """The fields of the program's `State`, and `step`."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(files[""], {**session.state_now._asdict(), "step": step})
