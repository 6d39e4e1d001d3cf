"""The two halves of a backend: an emitter, which needs no framework, and a session, which runs in a worker.

`backends/<name>/emit.py` has `emit(program, precision, threads) -> str`; `backends/<name>/session.py` has the
class `Session` below, `environment()`, and `off_by_rounding(value, *, centred=False, read=None)`: a node's value, each
number of it SHAKEN_UNITS up or down by its own bits, and gradients alike; what is `centred`, one unit, by its place as well.
`read` is what an op made the value of, of the same shape: its gradient is further off, by as much of what arrives at the value,
times the value. A worker imports NumPy, safetensors, the framework and these; nothing else.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

BACKENDS = ("torch", "tensorflow", "jax")
PACKAGES = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow", "keras"),
    "jax": ("jax", "jaxlib", "flax", "optax"),
}
"""The packages whose versions a result records; the first is what is imported."""

MOVES = "moves.safetensors"
"""What is added to a shaken twin's position after each of its first steps, among a run's inputs (see harness.twins)."""
SHAKEN_UNITS = 8
"""Units in the last place that its numbers are moved by: as far as one op of a framework is off (tanh, erf: measured)."""


SCRATCH = "HARNESS_SCRATCH"
"""The environment variable with a worker's own folder for temporary files, which is removed however the worker ends."""
OFF_BY_ROUNDING = "off_by_rounding"
"""A session's function by this name is what a variant calls (see harness.rounded): no program has one of its own."""
OFF = {
    "float64": (2.0**-52, -0x61C8864680B583EB),
    "float32": (2.0**-23, -0x61C8864F),
}
"""By the name of a dtype: a unit in the last place, relative to a value; and what its bits are multiplied by as an integer of their
width, the golden ratio's (Knuth, 6.4): the product's sign says up or down. Before that, places add multiples of their squares: of
the places themselves, whole rows would go the same way. In bfloat16, too, values between layers are float32."""


class Session(Protocol):
    """One emitted program, live. Arrays cross in canonical names and axes."""

    def __init__(self, module: ModuleType, request: Mapping[str, Any]) -> None:
        """Build the model and its optimizers. `request` has `updates` (name, loss function, networks of each), `networks`, `model`."""

    def load(self, arrays: Arrays) -> None:
        """Set every parameter and statistic. Raises where the program's tables and the live model disagree."""

    def batch(self, inputs: Arrays, step: int) -> Any:  # noqa: ANN401 - the framework's own
        """The emitted program's batch of a step, counted from 0, on the device."""

    def arrays(self, batch: Any) -> Arrays:  # noqa: ANN401
        """A batch back on the host, flat: `image`, `masks/classifier/dropout1`."""

    def compile(self, batch: Any) -> None:  # noqa: ANN401
        """Trace and compile the training step for such batches, where the framework does, without running it."""

    def step(self, step: int, batch: Any) -> Any:  # noqa: ANN401
        """One training step; does not wait for it."""

    def wait(self, result: Any) -> dict[str, float]:  # noqa: ANN401
        """The losses of a step by update, once they are there."""

    def stack(self, batches: Sequence[Any]) -> Any:  # noqa: ANN401
        """Batches as `steps` takes them."""

    def steps(self, first: int, stack: Any, count: int) -> Any:  # noqa: ANN401
        """So many training steps on the batches of a stack, in turn, the first step's number being `first`.

        A program whose calls take a whole stack is given a multiple of its batches. Does not wait for them.
        """

    def losses(self, result: Any) -> Arrays:  # noqa: ANN401
        """The losses of every one of those steps by update, once they are there: on the host, a vector each."""

    def observed(self, result: Any) -> Arrays:  # noqa: ANN401
        """What a step of an observed program saw: `values/update/call.node` and `gradients/update/parameter`."""

    def gradients(self, batch: Any, *, inputs: bool = False) -> Arrays:  # noqa: ANN401
        """The gradient of each update's loss at the present state, unclipped, as `update/parameter`; changes nothing.

        `inputs`: those of the batch's float fields beside them, as `update/@field`.
        """

    def state(self) -> Arrays:
        """Copies of all parameters and statistics."""

    def optimizer_state(self) -> Arrays:
        """Copies of what the optimizers remember, in canonical axes: `update/slot/parameter`, and `update/count`.

        Slots are `velocity` (SGD with momentum; no learning rate inside), `first_moment` and `second_moment` (Adam,
        AdamW); plain SGD has none. Before the first step all are zero. `count` is the updates done so far, int64.
        """

    def load_optimizer(self, arrays: Arrays) -> None:
        """The inverse, after `load`: the next step goes on where they were taken. Raises where names or shapes differ."""

    def evaluate(self, expression: Any, fields: Arrays) -> Array:  # noqa: ANN401
        """An expression in evaluation mode: ["field", name] or ["call", network, [arguments]]."""

    def predictor(self, way: str, expression: Any, fields: Arrays) -> Callable[[], Array]:  # noqa: ANN401
        """A function that evaluates the same, each time anew, from fields on the device to a result on the host.

        `way` is one of harness.lanes.INFERENCE. Parameters are those of now; training goes on without a trace of it.
        """

    def values(self, expression: Any, fields: Arrays) -> Arrays:  # noqa: ANN401
        """Every node's value of an observed program in evaluation mode, as `call.node`."""


class StepByStep:
    """`stack`, `steps` and `losses` of a program that is called once a step."""

    def stack(self, batches: Sequence[Any]) -> Any:  # noqa: ANN401
        """See Session."""
        return list(batches)

    def steps(self, first: int, stack: Any, count: int) -> Any:  # noqa: ANN401
        """See Session."""
        step, size = self.step, len(stack)  # type: ignore[attr-defined]
        return [step(first + i, stack[i % size]) for i in range(count)]

    def losses(self, result: Any) -> Arrays:  # noqa: ANN401
        """See Session."""
        each = [self.wait(one) for one in result]  # type: ignore[attr-defined]
        return {name: np.array([losses[name] for losses in each]) for name in each[0]}


def spell(expression: Any) -> str:  # noqa: ANN401
    """An expression as a spec writes it: the name of a call's values.

    >>> spell(["call", "discriminator", [["call", "generator", [["field", "noise"]]]]])
    'discriminator(generator(noise))'
    """
    if expression[0] == "field":
        return str(expression[1])
    return f"{expression[1]}({', '.join(spell(argument) for argument in expression[2])})"


def digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].shape}".encode())
        total.update(to_bytes(arrays[name]))
    return total.hexdigest()


def to_bytes(array: Array) -> bytes:
    """Values as bytes, integers of whatever width as int64."""
    wide = array.astype(np.int64) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array
    return np.ascontiguousarray(wide).tobytes()


def shake(session: Session, moves: Mapping[str, Array], number: int, step: int, units: int = SHAKEN_UNITS) -> None:
    """Move every parameter and statistic so many units, up or down by coins of this twin and step; zeros stay.

    `moves`: what is added before that, `state/name`, and to what optimizers remember, `optimizer/update/slot/name`. Without
    moves and units the training goes on where it was, loaded anew.
    """
    state, slots = session.state(), session.optimizer_state()
    rng = np.random.default_rng([number, step])

    def added(prefix: str, arrays: Arrays) -> Arrays:
        return {n: (a + moves.get(f"{prefix}{n}", 0)).astype(a.dtype) for n, a in arrays.items()}

    coins = {n: np.asarray(rng.random(a.shape) < 0.5) for n, a in state.items()}  # noqa: PLR2004 - fair ones
    session.load({n: beside(a, coins[n], units) for n, a in added("state/", state).items()})
    session.load_optimizer(added("optimizer/", slots))


def moves_after(steps: Mapping[str, Array], step: int) -> Arrays:
    """What is added after a step, counted from the first that is shaken, out of `0/state/name` and the like."""
    prefix = f"{step}/"
    return {name.removeprefix(prefix): array for name, array in steps.items() if name.startswith(prefix)}


def beside(value: Array, up: Array, units: int = 1) -> Array:
    """So many units in the last place up or down; 0 stays 0: the unit there is one that no rounding makes."""
    moved: Array = (value + np.where(up, units, -units) * np.spacing(np.abs(value))).astype(value.dtype)
    return np.where(value == 0, value, moved)


def flatten(batch: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by slashes."""
    flat: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_tables(module: ModuleType, parameters: Mapping[str, Any], statistics: Mapping[str, Any]) -> None:
    """Raise unless PARAMETERS and STATISTICS name exactly what the live model has."""
    for table, live in ((module.PARAMETERS, parameters), (module.STATISTICS, statistics)):
        named = {path for path, _ in table.values()}
        if named != set(live):
            raise RuntimeError(
                f"the program's tables and its model disagree: only in the tables {sorted(named - set(live))}, "
                f"only in the model {sorted(set(live) - named)}"
            )


def check_optimizer(live: Arrays, given: Arrays) -> None:
    """Raise unless an optimizer state has exactly the arrays that the live optimizers have, in their shapes."""
    have, want = ({name: array.shape for name, array in arrays.items()} for arrays in (given, live))
    if have != want:
        differ = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        name = differ[0]
        raise RuntimeError(
            f"this optimizer state is another program's: {name} is {have.get(name, 'missing')} in it "
            f"and {want.get(name, 'missing')} in the program"
        )


def to_canonical(array: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """A framework's array in canonical axes; `shape` is the canonical one, where the framework splits an axis."""
    moved = tuple(shape[axis] for axis in axes)
    return np.ascontiguousarray(array.reshape(moved).transpose(np.argsort(axes)))
