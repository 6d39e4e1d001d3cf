"""A session -> Keras's own files. Imported only inside a worker.

>>> model = make_model()  # doctest: +SKIP
>>> model.compile(optimizer=make_optimizer(model))  # doctest: +SKIP
>>> model.load_weights("digits.weights.h5")  # doctest: +SKIP
"""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from backends.tensorflow.session import Session


def export(session: Session, files: Mapping[str, Path], step: int) -> None:  # noqa: ARG001 - the optimizer counts
    """`.weights.h5`, with the optimizer where one update moves one network, or `.keras`, without; a file a network."""
    for network, path in files.items():
        model = getattr(session.model, network) if network else session.model
        if path.suffix == ".keras":
            model.save(path)
            _check(session, model, path)
            continue
        if not network and session.single:
            model.compile(optimizer=session.optimizers)
        model.save_weights(path)


def _check(session: Session, model: keras.Model, path: Path) -> None:
    """Raise unless the file gives the same model again: Keras calls subclasses of Model with what it thinks they take."""
    classes = {name: value for name, value in vars(session.module).items() if isinstance(value, type)}
    again = keras.models.load_model(path, custom_objects=classes)
    pairs = zip(model.weights, again.weights, strict=True)
    # The model's own name leads each path while it lives, and not in what is loaded.
    if not all(a.path.endswith(b.path) and np.array_equal(a.numpy(), b.numpy()) for a, b in pairs):
        raise RuntimeError("Keras does not read this model back from a .keras file; export .weights.h5 instead")
