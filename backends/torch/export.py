"""A session -> PyTorch's own file. Imported only inside a worker.

>>> saved = torch.load("digits.pt", weights_only=True)  # doctest: +SKIP
>>> model.load_state_dict(saved["model"])  # doctest: +SKIP
>>> make_optimizer(model).load_state_dict(saved["optimizer"])  # doctest: +SKIP
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from backends.torch.session import Session


def export(session: Session, files: Mapping[str, Path], step: int) -> None:
    """`model` and `optimizer` (by update, where there are several) as `state_dict` gives them, and `step`."""
    if session.single:
        optimizer = session.optimizers.state_dict()
    else:
        optimizer = {name: one.state_dict() for name, one in session.optimizers.items()}
    torch.save({"model": session.model.state_dict(), "optimizer": optimizer, "step": step}, files[""])
