"""One declarative network spec, compiled to PyTorch, TensorFlow/Keras and JAX, trained identically and compared.

>>> import harness
>>> experiment = harness.load("specs/digits_cnn.yaml")  # doctest: +SKIP
>>> harness.run(experiment, backends=("torch", "jax"), steps=50)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Experiment, explain, load, run

__version__ = "0.1.0"
__all__ = ["Experiment", "__version__", "explain", "load", "run"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module has
    """Loaded when first asked for: a worker imports this package with NumPy and its framework alone."""
    if name in {"Experiment", "explain", "load", "run"}:
        from harness import api  # noqa: PLC0415

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
