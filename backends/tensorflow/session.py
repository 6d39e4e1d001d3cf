"""Drive an emitted program of Keras on TensorFlow. Imported only inside a worker."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.backend import (
    OFF,
    SCRATCH,
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
    """What TensorFlow says about itself."""
    gpus = tf.config.list_physical_devices("GPU")
    devices = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    build = tf.sysconfig.get_build_info()
    return {
        "devices": devices or ["cpu"],
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "build": f"CUDA {build.get('cuda_version', '')}" if build["is_cuda_build"] else "CPU",
    }


def configure(request: Mapping[str, Any]) -> None:
    """Threads, memory and temporary files, before TensorFlow starts."""
    if SCRATCH in os.environ:
        # AutoGraph writes a file for each function that it traces, and removes them at an end that a worker that is killed does not come to.
        tempfile.tempdir = os.environ[SCRATCH]
    tf.config.threading.set_intra_op_parallelism_threads(request["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(request["threads"])
    for gpu in tf.config.list_physical_devices("GPU"):
        # TensorFlow takes a whole GPU otherwise, and other workers may be on it.
        tf.config.experimental.set_memory_growth(gpu, enable=True)


def off_by_rounding(value: tf.Tensor, *, centred: bool = False, read: tf.Tensor | None = None) -> tf.Tensor:
    """See harness.backend."""
    if value.dtype.name not in OFF:
        return value
    unit, factor = OFF[value.dtype.name]
    integer = tf.int64 if value.dtype == tf.float64 else tf.int32
    bits = tf.bitcast(tf.stop_gradient(value), integer)
    if centred:
        bits += factor * tf.reshape(tf.square(tf.range(tf.size(value, out_type=integer))), tf.shape(value))
    way = tf.where(bits * factor < 0, tf.constant(-1.0, value.dtype), tf.constant(1.0, value.dtype))
    off = (unit if centred else SHAKEN_UNITS * unit) * way
    if read is None:
        return value * (1 + off)
    return value * (1 + off) + (read - tf.stop_gradient(read)) * off * tf.stop_gradient(value)


def renew() -> None:
    """Make ready for another program. Keras keeps the dtype of the first layer of a process as its policy, whatever floatx becomes later."""
    keras.utils.clear_session()


LAYOUT = "NHWC"
"""Of images and convolutions, by TensorFlow's own convention."""


def multiply(a: Array, b: Array) -> Array:
    """A matrix product on the device that programs run on."""
    return np.array(tf.matmul(a, b))


def scale(a: Array, factor: float) -> Array:
    """An array by a number."""
    return np.array(tf.convert_to_tensor(a) * factor)


def products(a: Array, b: Array, *, bfloat16: bool = False) -> Callable[[int], None]:
    """A function that multiplies two matrices so many times over, and waits."""
    dtype = tf.bfloat16 if bfloat16 else tf.float32
    left, right = tf.cast(a, dtype), tf.cast(b, dtype)

    def run(count: int) -> None:
        for _ in range(count):
            found = tf.matmul(left, right)
        found[0, 0].numpy()

    return run


def copies(a: Array) -> Callable[[int], None]:
    """A function that reads an array and writes another so many times over, and waits."""
    read = tf.convert_to_tensor(a)

    def run(count: int) -> None:
        for _ in range(count):
            found = tf.negative(read)
        found[0].numpy()

    return run


def settings() -> dict[str, str]:
    """What of the ledger only TensorFlow can say."""
    return {
        "matrix products": "tf32" if tf.config.experimental.tensor_float_32_execution_enabled() else "highest",
        "parameters": "changed in place",
    }


def device_memory() -> int | None:
    """The most bytes that arrays have taken on the GPU so far; None without one."""
    gpus = tf.config.list_logical_devices("GPU")
    return int(tf.config.experimental.get_memory_info(gpus[0].name.removeprefix("/device:"))["peak"]) if gpus else None


def compilations(session: "Session") -> dict[str, int]:
    """How often the program's functions have been traced; of XLA's compilations, and of Keras's `fit`, nothing is told."""
    held = (*vars(session.module).values(), *vars(session).values())
    functions = [value for value in held if isinstance(value, tf.types.experimental.PolymorphicFunction)]
    return {"functions traced": sum(f.experimental_get_tracing_count() for f in functions)} if functions else {}


class Session(StepByStep):
    """See harness.backend.Session."""

    def __init__(self, module: ModuleType, request: Mapping[str, Any]) -> None:
        self.module, self.updates, self.networks = module, request["updates"], request["networks"]
        self.model = module.make_model()
        self.single = len(self.updates) == 1
        if self.single:
            # A program of several updates that was here before has switched it off.
            tf.config.optimizer.set_experimental_options({"dependency_optimization": True})
        self.observes = bool(request.get("observe"))
        make = module.make_optimizer if self.single else module.make_optimizers
        self.optimizers = make(self.model)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.variables = {v.path: v for v in self.model.weights}
        learned = {path: v for path, v in self.variables.items() if v.trainable}
        statistics = {path: v for path, v in self.variables.items() if not v.trainable}
        check_tables(module, learned, statistics)
        self.compiled: dict[str, Callable[..., Any]] = {}

    @cached_property
    def compiled_step(self) -> Any:
        """One call a step; programs that take many in one have none."""
        return self.module.make_compiled_step(self.model, self.optimizers)

    def load(self, arrays: Arrays) -> None:
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self.module.load_parameters(self.model, arrays)

    def batch(self, inputs: Arrays, step: int) -> Any:
        return self.module.load_batch(inputs, step)

    def arrays(self, batch: Any) -> Arrays:
        return {name: value.numpy() for name, value in flatten(batch).items()}

    def compile(self, batch: Any) -> None:
        self.compiled_step.get_concrete_function(batch)

    def step(self, step: int, batch: Any) -> Any:  # noqa: ARG002 - the optimizers count
        return self.compiled_step(batch)

    def wait(self, result: Any) -> dict[str, float]:
        result = result[0] if self.observes else result
        if self.single:
            return {self.updates[0]["name"]: float(result)}
        return {name: float(loss) for name, loss in result.items()}

    def losses(self, result: Any) -> Arrays:
        if self.single:
            return {self.updates[0]["name"]: tf.stack(result).numpy()}
        return {name: tf.stack([losses[name] for losses in result]).numpy() for name in result[0]}

    def observed(self, result: Any) -> Arrays:
        found = {}
        for update in self.updates:
            seen = result[1][update["name"]]
            for call, values in seen["values"].items():
                found |= {f"values/{update['name']}/{call}.{node}": value.numpy() for node, value in values.items()}
            for name, (path, axes) in self.module.PARAMETERS.items():
                if self._moves(update, name):
                    # A parameter that the loss does not reach has no gradient at all here; it is zero.
                    gradient = seen["gradients"].get(path)
                    array = np.zeros(self.variables[path].shape) if gradient is None else gradient.numpy()
                    found[f"gradients/{update['name']}/{name}"] = to_canonical(array, axes, self.shapes[name])
        return found

    def gradients(self, batch: Any, *, inputs: bool = False) -> Arrays:
        found = {}
        for update in self.updates:
            # In training, batch normalisation assigns its statistics on the way.
            statistics = [(v, v.numpy().copy()) for v in self.variables.values() if not v.trainable]
            for name, gradient in self._gradient(update, inputs=inputs)(batch).items():
                array = gradient.numpy()
                if not name.startswith("@"):
                    array = to_canonical(array, self.module.PARAMETERS[name][1], self.shapes[name])
                found[f"{update['name']}/{name}"] = array
            for variable, value in statistics:
                variable.assign(value)
        return found

    def _gradient(self, update: Mapping[str, Any], *, inputs: bool) -> Callable[..., Any]:
        names = [name for name in self.module.PARAMETERS if self._moves(update, name)]
        moved = [self.variables[self.module.PARAMETERS[name][0]] for name in names]

        def gradient(batch: Any) -> Any:
            fields = {name: v for name, v in batch.items() if inputs and name != "masks" and v.dtype.is_floating}
            with tf.GradientTape() as tape:
                tape.watch(fields)
                loss = getattr(self.module, update["loss"])(self.model, batch)
                loss = loss[0] if self.observes else loss
            # Rows for an embedding, and nothing for a parameter that the loss does not reach.
            sources = [*moved, *fields.values()]
            gradients = tape.gradient(loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            labels = [*names, *(f"@{name}" for name in fields)]
            return dict(zip(labels, map(tf.convert_to_tensor, gradients), strict=True))

        return self._compiled(f"gradient {update['name']} {inputs}", gradient)

    def _moves(self, update: Mapping[str, Any], name: str) -> bool:
        return update["networks"] is None or name.partition(".")[0] in update["networks"]

    def state(self) -> Arrays:
        table = self.module.PARAMETERS | self.module.STATISTICS
        return {
            name: to_canonical(self.variables[path].numpy().copy(), axes, self.shapes[name])
            for name, (path, axes) in table.items()
        }

    def optimizer_state(self) -> Arrays:
        found: Arrays = {}
        for update, optimizer in self._optimizers():
            for name, path, axes in self._held(optimizer):
                for slot, variables in _slots(optimizer).items():
                    array = variables[path].numpy().copy()
                    found[f"{update}/{slot}/{name}"] = to_canonical(array, axes, self.shapes[name])
            found[f"{update}/count"] = np.array(optimizer.iterations.numpy(), np.int64)
        return found

    def load_optimizer(self, arrays: Arrays) -> None:
        check_optimizer(self.optimizer_state(), arrays)
        for update, optimizer in self._optimizers():
            for name, path, axes in self._held(optimizer):
                for slot, variables in _slots(optimizer).items():
                    variable = variables[path]
                    variable.assign(arrays[f"{update}/{slot}/{name}"].transpose(axes).reshape(variable.shape))
            optimizer.iterations.assign(arrays[f"{update}/count"])

    def _optimizers(self) -> list[tuple[str, keras.optimizers.Optimizer]]:
        if self.single:
            return [(self.updates[0]["name"], self.optimizers)]
        return [(update["name"], self.optimizers[update["name"]]) for update in self.updates]

    def _held(self, optimizer: keras.optimizers.Optimizer) -> list[tuple[str, str, tuple[int, ...]]]:
        """The parameters that an optimizer moves: canonical name, Keras's path, axes."""
        held = {variable.path for variable in optimizer._trainable_variables}  # noqa: SLF001 - nothing public names them
        return [(name, path, axes) for name, (path, axes) in self.module.PARAMETERS.items() if path in held]

    def evaluate(self, expression: Any, fields: Arrays) -> Array:
        value: Array = self._evaluated(expression, fields)[0].numpy()
        return value

    def values(self, expression: Any, fields: Arrays) -> Arrays:
        return {name: value.numpy() for name, value in self._evaluated(expression, fields)[1].items()}

    def predictor(self, way: str, expression: Any, fields: Arrays) -> Callable[[], Array]:
        given = {name: tf.convert_to_tensor(array) for name, array in fields.items()}

        def predict(fields: Mapping[str, Any]) -> Any:
            return self._value(expression, fields, {})

        function = predict if way == "eager" else tf.function(predict, jit_compile=way == "function_xla")
        return lambda: np.asarray(function(given))

    def _evaluated(self, expression: Any, fields: Arrays) -> Any:
        def evaluate(fields: Mapping[str, Any]) -> Any:
            seen: dict[str, Any] = {}
            return self._value(expression, fields, seen), seen

        given = {name: tf.convert_to_tensor(array) for name, array in fields.items()}
        return self._compiled(f"evaluate {json.dumps(expression)}", evaluate)(given)

    def _value(self, expression: Any, fields: Mapping[str, Any], seen: dict[str, Any]) -> Any:
        if expression[0] == "field":
            return fields[expression[1]]
        _, network, arguments = expression
        target = self.model if len(self.networks) == 1 else getattr(self.model, network)
        value = target(*(self._value(argument, fields, seen) for argument in arguments))
        if not self.observes:
            return value
        value, inner = value
        seen |= {f"{spell(expression)}.{node}": each for node, each in inner.items()}
        return value

    def _compiled(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """One tf.function for each purpose; a new shape traces it again."""
        if name not in self.compiled:
            self.compiled[name] = tf.function(function)
        return self.compiled[name]


class Loop(Session):
    """A program whose calls take a stack of batches."""

    def __init__(self, module: ModuleType, request: Mapping[str, Any]) -> None:
        super().__init__(module, request)
        self.train_steps = module.make_train_steps(self.model, self.optimizers)

    def stack(self, batches: Sequence[Any]) -> Any:
        return self.module.stack(batches)

    def step(self, step: int, batch: Any) -> Any:
        return self.steps(step, self.stack([batch]), 1)[0]

    def steps(self, first: int, stack: Any, count: int) -> Any:  # noqa: ARG002 - the optimizers count
        calls = count // len(tf.nest.flatten(stack)[0])
        return [self.train_steps(stack) for _ in range(calls)]

    def wait(self, result: Any) -> dict[str, float]:
        return {name: float(losses[0]) for name, losses in self.losses([result]).items()}

    def losses(self, result: Any) -> Arrays:
        if self.single:
            return {self.updates[0]["name"]: tf.concat(result, 0).numpy()}
        return {name: tf.concat([losses[name] for losses in result], 0).numpy() for name in result[0]}


class Fit(Session):
    """A program that Keras's `fit` trains."""

    trainer: Any = None

    def stack(self, batches: Sequence[Any]) -> Any:
        return self.module.stack(batches)

    def step(self, step: int, batch: Any) -> Any:
        return self.steps(step, self.stack([batch]), 1)[0]

    def steps(self, first: int, stack: Any, count: int) -> Any:  # noqa: ARG002
        self.trainer = self.trainer or self.module.make_trainer(self.model, self.optimizers)
        return self.module.fit(self.trainer, stack, count // len(tf.nest.flatten(stack)[0]))

    def wait(self, result: Any) -> dict[str, float]:
        return {name: float(losses[0]) for name, losses in self.losses([result]).items()}

    def losses(self, result: Any) -> Arrays:
        keys = {"loss": self.updates[0]["name"]} if self.single else {u["name"]: u["name"] for u in self.updates}
        return {name: np.array([losses[key] for losses in result]) for key, name in keys.items()}


SESSIONS = {"loop": Loop, "loop_xla": Loop, "tuned": Loop, "fit": Fit}
"""By strategy, where it is not the session above."""


def _slots(optimizer: keras.optimizers.Optimizer) -> dict[str, dict[str, keras.Variable]]:
    """What an optimizer remembers: canonical slot -> the parameter's path -> Keras's variable."""
    if isinstance(optimizer, keras.optimizers.SGD):
        slots = {"velocity": optimizer.momentums} if optimizer.momentum else {}
    else:
        slots = {"first_moment": optimizer._momentums, "second_moment": optimizer._velocities}  # noqa: SLF001
    paths = [variable.path for variable in optimizer._trainable_variables]  # noqa: SLF001
    return {slot: dict(zip(paths, variables, strict=True)) for slot, variables in slots.items()}
