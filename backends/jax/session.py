"""Drive an emitted JAX program. Imported only inside a worker."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import unflatten_dict

from harness.backend import (
    OFF,
    SHAKEN_UNITS,
    Array,
    Arrays,
    StepByStep,
    check_optimizer,
    check_tables,
    flatten,
    spell,
    to_canonical,
)


def environment() -> dict[str, Any]:
    """What JAX says about itself."""
    return {
        "devices": [device.device_kind for device in jax.devices()],
        "platform": jax.default_backend(),
        "x64": jax.config.jax_enable_x64,
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }


def configure(request: Mapping[str, Any]) -> None:  # noqa: ARG001 - nothing of it can be set
    """XLA has no reliable setting for its threads on CPUs: it takes the cores that the worker is pinned to."""
    jax.monitoring.register_event_duration_secs_listener(_listen)


def off_by_rounding(value: jax.Array, *, centred: bool = False, read: jax.Array | None = None) -> jax.Array:
    """See harness.backend."""
    if value.dtype.name not in OFF:
        return value
    unit, factor = OFF[value.dtype.name]
    integer = jnp.int64 if value.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(value), integer)
    if centred:
        bits += factor * jnp.square(jnp.arange(value.size, dtype=integer)).reshape(value.shape)
    way = jnp.where(bits * factor < 0, -1.0, 1.0).astype(value.dtype)
    off = (unit if centred else SHAKEN_UNITS * unit) * way
    if read is None:
        return value * (1 + off)
    return value * (1 + off) + (read - jax.lax.stop_gradient(read)) * off * jax.lax.stop_gradient(value)


def renew() -> None:
    """Make ready for another program. What a program sets for the whole process, the next one sets again."""


def forget() -> None:
    """Drop every executable: JAX keeps those of programs that are gone, which fill memory. What is open compiles again."""
    jax.clear_caches()


LAYOUT = "NHWC"
"""Of images and convolutions, by Flax's own convention."""


def multiply(a: Array, b: Array) -> Array:
    """A matrix product on the device that programs run on."""
    return np.array(jnp.matmul(a, b))


def scale(a: Array, factor: float) -> Array:
    """An array by a number."""
    return np.array(jax.jit(jnp.multiply)(a, factor))


def products(a: Array, b: Array, *, bfloat16: bool = False) -> Callable[[int], None]:
    """A function that multiplies two matrices so many times over, and waits."""
    dtype = jnp.bfloat16 if bfloat16 else jnp.float32
    left, right = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    multiplied = jax.jit(jnp.matmul)

    def run(count: int) -> None:
        for _ in range(count):
            found = multiplied(left, right)
        found.block_until_ready()

    return run


def copies(a: Array) -> Callable[[int], None]:
    """A function that reads an array and writes another so many times over, and waits."""
    read = jax.device_put(a)
    negated = jax.jit(jnp.negative)

    def run(count: int) -> None:
        for _ in range(count):
            found = negated(read)
        found.block_until_ready()

    return run


def settings() -> dict[str, str]:
    """What of the ledger only JAX can say."""
    return {
        "matrix products": str(jax.config.jax_default_matmul_precision or "default"),
        "parameters": "donated; by strategy nnx, changed in place",
    }


def device_memory() -> int | None:
    """The most bytes that arrays have taken on the GPU so far; None without one."""
    told = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return None if told is None else int(told["peak_bytes_in_use"])


COMPILED = {"/jax/core/compile/jaxpr_trace_duration": "functions traced", "/jax/core/compile/backend_compile_duration": "functions compiled"}  # fmt: skip
"""What JAX tells its listeners of, and how it is called here."""
_told = dict.fromkeys(COMPILED.values(), 0)


def _listen(event: str, _seconds: float, **_more: Any) -> None:
    if event in COMPILED:
        _told[COMPILED[event]] += 1


def compilations(_session: "Session") -> dict[str, int]:
    """What JAX has traced and compiled in this process, the small functions of single operations too."""
    return dict(_told)


UNTUNED = {"xla_gpu_autotune_level": 0}
"""For what is compared and never timed: on a GPU, XLA else tries kernels for every product and convolution as it compiles.
The gradients of ResNet-50 and of GPT-2 took 70 s so, where PyTorch's took 3."""


AT_ONCE = 100


@jax.jit
def _stacked(*losses: Any) -> Any:
    return jnp.stack(losses)


def fetched(losses: Sequence[Any]) -> Array:
    """Scalars on the device as one array on the host, AT_ONCE by one copy: one by one each takes as long as a small step."""
    whole = len(losses) - len(losses) % AT_ONCE
    stacks = [_stacked(*losses[i : i + AT_ONCE]) for i in range(0, whole, AT_ONCE)]
    return np.concatenate([*map(np.asarray, stacks), np.array([*map(np.asarray, losses[whole:])], losses[0].dtype)])


class Session(StepByStep):
    """See harness.backend.Session."""

    def __init__(self, module: ModuleType, request: Mapping[str, Any]) -> None:
        self.module, self.updates, self.networks = module, request["updates"], request["networks"]
        self.single = len(self.updates) == 1
        self.observes = bool(request.get("observe"))
        self.model = getattr(module, request["model"])
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.state_now: Any = None
        self.count = 0  # Optax's plain SGD at a constant rate does not count.
        self.evaluations: dict[str, Callable[..., Any]] = {}
        self.losses_gradients = {
            inputs: jax.jit(partial(self._gradients, inputs=inputs), compiler_options=UNTUNED)
            for inputs in (False, True)
        }
        self.train_step = getattr(module, "train_step", None)
        if self.observes and hasattr(self.train_step, "lower"):  # asked for values, never timed
            self.train_step = jax.jit(self.train_step, compiler_options=UNTUNED)
        self.graph, learned, statistics = nnx.split(nnx.eval_shape(lambda: self.model(nnx.Rngs(0))), nnx.Param, ...)
        self.live = _by_path(learned) | _by_path(statistics)
        check_tables(module, _by_path(learned), _by_path(statistics))

    def load(self, arrays: Arrays) -> None:
        self.shapes = {name: array.shape for name, array in arrays.items()}
        for name, (path, axes) in (self.module.PARAMETERS | self.module.STATISTICS).items():
            if arrays[name].transpose(axes).shape != self.live[path]:
                raise RuntimeError(f"{name} {arrays[name].shape} does not fit the model's {path} {self.live[path]}")
        self.state_now = self.module.load_parameters(arrays)
        self.count = 0

    def batch(self, inputs: Arrays, step: int) -> Any:
        return self.module.load_batch(inputs, step)

    def arrays(self, batch: Any) -> Arrays:
        return {name: np.asarray(value) for name, value in flatten(batch).items()}

    def compile(self, batch: Any) -> None:
        # JAX keeps the executable: a call with such arguments finds it.
        self.train_step.lower(self.state_now, batch).compile()

    def step(self, step: int, batch: Any) -> Any:  # noqa: ARG002 - Optax counts steps itself
        self.count += 1
        self.state_now, result = self.train_step(self.state_now, batch)
        return result

    def wait(self, result: Any) -> dict[str, float]:
        result = result[0] if self.observes else result
        if self.single:
            return {self.updates[0]["name"]: float(result)}
        return {name: float(loss) for name, loss in result.items()}

    def losses(self, result: Any) -> Arrays:
        if self.single:
            return {self.updates[0]["name"]: fetched(result)}
        return {name: fetched([losses[name] for losses in result]) for name in result[0]}

    def observed(self, result: Any) -> Arrays:
        found = {}
        for update in self.updates:
            seen = result[1][update["name"]]
            for call, values in seen["values"].items():
                found |= {f"values/{update['name']}/{call}.{node}": np.array(value) for node, value in values.items()}
            gradients = self._canonical(update, seen["gradients"])
            found |= {f"gradients/{name}": gradient for name, gradient in gradients.items()}
        return found

    def gradients(self, batch: Any, *, inputs: bool = False) -> Arrays:
        found: Arrays = {}
        gradients = self.losses_gradients[inputs](*self._present(), batch)
        for update in self.updates:
            own, fields = gradients[update["name"]]
            found |= self._canonical(update, own)
            found |= {f"{update['name']}/@{name}": np.array(value) for name, value in fields.items()}
        return found

    def _present(self) -> tuple[Any, Any]:
        """Parameters and statistics as they are now."""
        return self.state_now.parameters, self.state_now.statistics

    def _canonical(self, update: Mapping[str, Any], gradients: Any) -> Arrays:
        """Gradients by Flax's paths -> `update/parameter`, those that the update moves."""
        own, found = flatten(gradients), {}
        for name, (path, axes) in self.module.PARAMETERS.items():
            if self._moves(update, name):
                array = np.array(own[path.replace(".", "/")])
                found[f"{update['name']}/{name}"] = to_canonical(array, axes, self.shapes[name])
        return found

    def _gradients(self, parameters: Any, statistics: Any, batch: Any, *, inputs: bool) -> dict[str, Any]:
        fields = {name: v for name, v in batch.items() if inputs and name != "masks" and v.dtype.kind == "f"}

        def objective(parameters: Any, fields: Any, loss: str) -> Any:
            model = nnx.merge(self.graph, parameters, statistics)
            value = getattr(self.module, loss)(model, batch | fields)
            return value[0] if self.observes else value

        gradients = jax.grad(objective, argnums=(0, 1))
        return {update["name"]: gradients(parameters, fields, update["loss"]) for update in self.updates}

    def _moves(self, update: Mapping[str, Any], name: str) -> bool:
        return update["networks"] is None or name.partition(".")[0] in update["networks"]

    def state(self) -> Arrays:
        # Copies: the next step takes the buffers over.
        own = flatten(self.state_now.parameters) | flatten(self.state_now.statistics)
        table = self.module.PARAMETERS | self.module.STATISTICS
        return {
            name: to_canonical(np.array(own[path.replace(".", "/")]), axes, self.shapes[name])
            for name, (path, axes) in table.items()
        }

    def optimizer_state(self) -> Arrays:
        found: Arrays = {}
        for update, state in self._optimizer_states().items():
            slots: dict[str, Any] = {}
            _walk(state, lambda part, slots=slots: slots.update(_slots(part)) or part)
            for slot, tree in slots.items():
                own = flatten(tree)
                for name, (path, axes) in self.module.PARAMETERS.items():
                    if (key := path.replace(".", "/")) in own:
                        # Copies: the next step takes the buffers over.
                        value = to_canonical(np.array(own[key]), axes, self.shapes[name])
                        found[f"{update}/{slot}/{name}"] = value
            found[f"{update}/count"] = np.array(self.count, np.int64)
        return found

    def load_optimizer(self, arrays: Arrays) -> None:
        check_optimizer(self.optimizer_state(), arrays)
        self.count = int(arrays[f"{self.updates[0]['name']}/count"])
        states = {
            update: _walk(state, lambda part, update=update: self._loaded(part, update, arrays))
            for update, state in self._optimizer_states().items()
        }
        name = self.updates[0]["name"]
        changed = {"optimizer_state": states[name]} if self.single else {"optimizer_states": states}
        self.state_now = self.state_now._replace(**changed)

    def _optimizer_states(self) -> dict[str, Any]:
        if self.single:
            return {self.updates[0]["name"]: self.state_now.optimizer_state}
        return dict(self.state_now.optimizer_states)

    def _loaded(self, part: Any, update: str, arrays: Arrays) -> Any:
        """One transformation's state with an update's slots and count in it."""
        changed: dict[str, Any] = {}
        for slot in _slots(part):
            named = {
                path: jnp.array(arrays[key].transpose(axes).reshape(self.live[path]))
                for name, (path, axes) in self.module.PARAMETERS.items()
                if (key := f"{update}/{slot}/{name}") in arrays
            }
            changed[SLOTS[slot]] = unflatten_dict(named, sep=".")
        if "count" in part._fields:
            changed["count"] = jnp.array(self.count, part.count.dtype)
        return part._replace(**changed)

    def evaluate(self, expression: Any, fields: Arrays) -> Array:
        return np.array(self._evaluation(expression, fields)[0])

    def values(self, expression: Any, fields: Arrays) -> Arrays:
        return {name: np.array(value) for name, value in self._evaluation(expression, fields)[1].items()}

    def predictor(self, way: str, expression: Any, fields: Arrays) -> Callable[[], Array]:
        given = jax.device_put(fields)
        # Copies: a step takes the buffers over.
        parameters, statistics = jax.tree.map(jnp.copy, self._present())
        if way == "jit":
            function: Any = jax.jit(lambda *args: self._evaluated(expression, *args)[0])
            return lambda: np.asarray(function(parameters, statistics, given))
        model = nnx.merge(self.graph, parameters, statistics)
        model.eval()
        function = nnx.jit(lambda model, fields: self._value(model, expression, fields, {}))
        return lambda: np.asarray(function(model, given))

    def _evaluation(self, expression: Any, fields: Arrays) -> Any:
        key = json.dumps(expression)
        if key not in self.evaluations:
            options = UNTUNED if self.observes else None
            self.evaluations[key] = jax.jit(
                lambda *given: self._evaluated(expression, *given), compiler_options=options
            )
        return self.evaluations[key](*self._present(), fields)

    def _evaluated(self, expression: Any, parameters: Any, statistics: Any, fields: Mapping[str, Any]) -> Any:
        model = nnx.merge(self.graph, parameters, statistics)
        model.eval()
        seen: dict[str, Any] = {}
        return self._value(model, expression, fields, seen), seen

    def _value(self, model: Any, expression: Any, fields: Mapping[str, Any], seen: dict[str, Any]) -> Any:
        if expression[0] == "field":
            return fields[expression[1]]
        _, network, arguments = expression
        target = model if len(self.networks) == 1 else getattr(model, network)
        value = target(*(self._value(model, argument, fields, seen) for argument in arguments))
        if not self.observes:
            return value
        value, inner = value
        seen |= {f"{spell(expression)}.{node}": each for node, each in inner.items()}
        return value


class Scan(Session):
    """A program whose calls take a stack of batches."""

    def stack(self, batches: Sequence[Any]) -> Any:
        return self.module.stack(batches)

    def step(self, step: int, batch: Any) -> Any:
        return self.steps(step, self.stack([batch]), 1)[0]

    def steps(self, first: int, stack: Any, count: int) -> Any:  # noqa: ARG002 - Optax counts steps itself
        results = []
        for _ in range(count // len(jax.tree.leaves(stack)[0])):
            self.state_now, losses = self.module.train_steps(self.state_now, stack)
            results.append(losses)
        self.count += count
        return results

    def wait(self, result: Any) -> dict[str, float]:
        return {name: float(losses[0]) for name, losses in self.losses([result]).items()}

    def losses(self, result: Any) -> Arrays:
        # Not by `jax.device_get`, which takes twice as long: of the calls of a tiny step 4 %.
        if self.single:
            return {self.updates[0]["name"]: np.concatenate([*map(np.asarray, result)])}
        return {name: np.concatenate([np.asarray(losses[name]) for losses in result]) for name in result[0]}


class Nnx(Session):
    """A program on Flax's own objects, which change in place."""

    live_model: Any = None
    live_optimizers: Any = None

    def load(self, arrays: Arrays) -> None:
        self.shapes = {name: array.shape for name, array in arrays.items()}
        if self.live_model is None:
            self.live_model = self.model(nnx.Rngs(0))
        self.module.load_parameters(self.live_model, arrays)
        make = self.module.make_optimizer if self.single else self.module.make_optimizers
        self.live_optimizers = make(self.live_model)
        self.count = 0

    def step(self, step: int, batch: Any) -> Any:  # noqa: ARG002
        self.count += 1
        return self.module.train_step(self.live_model, self.live_optimizers, batch)

    def state(self) -> Arrays:
        own = flatten(nnx.to_pure_dict(nnx.state(self.live_model)))
        table = self.module.PARAMETERS | self.module.STATISTICS
        return {
            name: to_canonical(np.array(own[path.replace(".", "/")]), axes, self.shapes[name])
            for name, (path, axes) in table.items()
        }

    def _present(self) -> tuple[Any, Any]:
        _, learned, statistics = nnx.split(self.live_model, nnx.Param, ...)
        return nnx.to_pure_dict(learned), nnx.to_pure_dict(statistics)

    def _optimizer_states(self) -> dict[str, Any]:
        own = {self.updates[0]["name"]: self.live_optimizers} if self.single else self.live_optimizers
        return {name: _plain(optimizer.opt_state) for name, optimizer in own.items()}

    def load_optimizer(self, arrays: Arrays) -> None:
        """Only the state before the first step, which `load` has made: this strategy is for measuring speed."""
        check_optimizer(self.optimizer_state(), arrays)
        if int(arrays[f"{self.updates[0]['name']}/count"]):
            raise RuntimeError("the program of strategy nnx cannot go on from the middle of a training")


def _plain(part: Any) -> Any:
    """An optimizer's state without Flax's variables around its arrays."""
    if hasattr(part, "_fields"):
        return type(part)(*(_plain(value) for value in part))
    if isinstance(part, tuple):
        return tuple(_plain(value) for value in part)
    if isinstance(part, (nnx.State, Mapping)):
        return {str(key): _plain(value) for key, value in part.items()}
    return part[...] if isinstance(part, nnx.Variable) else part


SESSIONS = {"scan": Scan, "tuned_scan": Scan, "cudnn": Scan, "nnx": Nnx}
"""By strategy, where it is not the session above."""


def _by_path(state: nnx.State) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its path."""
    return {".".join(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(state)}


SLOTS = {"velocity": "trace", "first_moment": "mu", "second_moment": "nu"}
"""What an optimizer remembers of each parameter: canonical name -> Optax's."""


def _slots(part: Any) -> dict[str, Any]:
    """The slots that one transformation's state holds: canonical name -> tree of arrays."""
    return {slot: getattr(part, own) for slot, own in SLOTS.items() if own in part._fields}


def _walk(state: optax.OptState, change: Callable[[Any], Any]) -> Any:
    """A chain's state with each transformation's own, a named tuple, changed; inner states (a mask's) first."""
    if hasattr(state, "_fields"):
        if "inner_state" in state._fields:
            state = state._replace(inner_state=_walk(state.inner_state, change))
        return change(state)
    return tuple(_walk(part, change) for part in state)
