"""SciPy's special functions, imported with the first that is asked for: SciPy takes half of what a command needs to start."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a function of scipy.special
    return getattr(importlib.import_module("scipy.special"), name)
