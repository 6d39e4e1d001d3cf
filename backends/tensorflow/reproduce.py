"""Where an observed TensorFlow program has what a report is about, as NumPy arrays in Keras's own axes."""

MODEL = ("", "model", "tf.convert_to_tensor({})")
"""What is done before a call in evaluation mode, what is called, and an input."""


def value(update: str, call: str, node: str) -> str:
    """A node's value in the last step."""
    return f'observed["{update}"]["values"]["{call}"]["{node}"].numpy()'


def evaluated(node: str) -> str:
    """A node's value where `values` are those of a call in evaluation mode."""
    return f'values["{node}"].numpy()'


def batch(step: int, keys: str) -> str:
    """A field of a step's batch."""
    return f"load_batch(inputs, {step}){keys}.numpy()"


def loss(update: str | None) -> str:
    """The loss of the last step; of an update, where there are several."""
    return "loss.numpy()" if update is None else f'losses["{update}"].numpy()'


def gradient(update: str, path: str) -> str:
    """A parameter's gradient in the last step."""
    return f'observed["{update}"]["gradients"]["{path}"].numpy()'


def state(path: str, *, learned: bool) -> str:  # noqa: ARG001 - Keras keeps statistics beside parameters
    """A parameter or statistic after the last step."""
    return f'{{v.path: v for v in model.weights}}["{path}"].numpy()'
