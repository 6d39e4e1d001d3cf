"""Where an observed JAX program has what a report is about, as NumPy arrays in Flax's own axes."""

MODEL = (
    "model = nnx.merge(GRAPHDEF, state.parameters, state.statistics)\nmodel.eval()",
    "model",
    "jnp.asarray({})",
)
"""What is done before a call in evaluation mode, what is called, and an input."""


def value(update: str, call: str, node: str) -> str:
    """A node's value in the last step."""
    return f'np.asarray(observed["{update}"]["values"]["{call}"]["{node}"])'


def evaluated(node: str) -> str:
    """A node's value where `values` are those of a call in evaluation mode."""
    return f'np.asarray(values["{node}"])'


def batch(step: int, keys: str) -> str:
    """A field of a step's batch."""
    return f"np.asarray(load_batch(inputs, {step}){keys})"


def loss(update: str | None) -> str:
    """The loss of the last step; of an update, where there are several."""
    return "np.asarray(loss)" if update is None else f'np.asarray(losses["{update}"])'


def gradient(update: str, path: str) -> str:
    """A parameter's gradient in the last step."""
    return f'np.asarray(observed["{update}"]["gradients"]{_keys(path)})'


def state(path: str, *, learned: bool) -> str:
    """A parameter or statistic after the last step."""
    return f"np.asarray(state.{'parameters' if learned else 'statistics'}{_keys(path)})"


def _keys(path: str) -> str:
    return "".join(f'["{key}"]' for key in path.split("."))
