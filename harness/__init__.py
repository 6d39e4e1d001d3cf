"""One declarative network spec, compiled to PyTorch, TensorFlow/Keras and JAX, trained identically and compared."""

__version__ = "0.1.0"
