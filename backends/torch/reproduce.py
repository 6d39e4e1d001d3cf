"""Where an observed PyTorch program has what a report is about, as NumPy arrays in PyTorch's own axes."""

MODEL = ("model.eval()", "model", "torch.from_numpy({}).to(DEVICE)")
"""What is done before a call in evaluation mode, what is called, and an input."""


def value(update: str, call: str, node: str) -> str:
    """A node's value in the last step."""
    return f'observed["{update}"]["values"]["{call}"]["{node}"].numpy(force=True)'


def evaluated(node: str) -> str:
    """A node's value where `values` are those of a call in evaluation mode."""
    return f'values["{node}"].numpy(force=True)'


def batch(step: int, keys: str) -> str:
    """A field of a step's batch."""
    return f"load_batch(inputs, {step}){keys}.numpy(force=True)"


def loss(update: str | None) -> str:
    """The loss of the last step; of an update, where there are several."""
    return "loss.numpy(force=True)" if update is None else f'losses["{update}"].numpy(force=True)'


def gradient(update: str, path: str) -> str:
    """A parameter's gradient in the last step."""
    return f'observed["{update}"]["gradients"]["{path}"].numpy(force=True)'


def state(path: str, *, learned: bool) -> str:  # noqa: ARG001 - PyTorch keeps statistics beside parameters
    """A parameter or statistic after the last step."""
    return f'model.state_dict()["{path}"].numpy(force=True)'
