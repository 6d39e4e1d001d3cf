"""Drive an emitted PyTorch program. Imported only inside a worker."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

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
    """What PyTorch says about itself."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "devices": devices or ["cpu"],
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "build": "CUDA " + str(torch.version.cuda) if torch.version.cuda else "CPU",
    }


def configure(request: Mapping[str, Any]) -> None:
    """Threads, before anything runs."""
    torch.set_num_threads(request["threads"])


def renew() -> None:
    """Make ready for another program. What a program sets for the whole process, the next one sets again."""


LAYOUT = "NCHW, channels last in memory"
"""Of images and convolutions, by PyTorch's own convention."""


def multiply(a: Array, b: Array) -> Array:
    """A matrix product on the device that programs run on."""
    return _numpy(torch.from_numpy(a).to(_device()) @ torch.from_numpy(b).to(_device()))


def scale(a: Array, factor: float) -> Array:
    """An array by a number."""
    return _numpy(torch.from_numpy(a).to(_device()) * factor)


def products(a: Array, b: Array, *, bfloat16: bool = False) -> Callable[[int], None]:
    """A function that multiplies two matrices so many times over, and waits."""
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    left, right = torch.from_numpy(a).to(_device(), dtype), torch.from_numpy(b).to(_device(), dtype)
    into = torch.empty_like(left)

    def run(count: int) -> None:
        for _ in range(count):
            torch.mm(left, right, out=into)
        _wait()

    return run


def copies(a: Array) -> Callable[[int], None]:
    """A function that reads an array and writes another so many times over, and waits."""
    read = torch.from_numpy(a).to(_device())
    into = torch.empty_like(read)

    def run(count: int) -> None:
        for _ in range(count):
            torch.neg(read, out=into)
        _wait()

    return run


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def settings() -> dict[str, str]:
    """What of the ledger only PyTorch can say."""
    return {
        "matrix products": torch.get_float32_matmul_precision(),
        "deterministic algorithms": "asked for" if torch.are_deterministic_algorithms_enabled() else "not asked for",
        # Of the whole process: a program that leaves it changed would change how the others run.
        "cuDNN's kernels": "timed" if torch.backends.cudnn.benchmark else "by its heuristics",
        "parameters": "changed in place",
    }


def off_by_rounding(value: torch.Tensor, *, centred: bool = False, read: torch.Tensor | None = None) -> torch.Tensor:
    """See harness.backend."""
    name = str(value.dtype).removeprefix("torch.")
    if name not in OFF:
        return value
    unit, factor = OFF[name]
    integer = torch.int64 if name == "float64" else torch.int32
    bits = value.detach().contiguous().view(integer)
    if centred:
        bits = bits + factor * torch.arange(value.numel(), dtype=integer, device=value.device).square().reshape(
            value.shape
        )
    way = torch.where(bits * factor < 0, -1.0, 1.0).to(value.dtype)
    off = (unit if centred else SHAKEN_UNITS * unit) * way
    if read is None:
        return value * (1 + off)
    return value * (1 + off) + (read - read.detach()) * off * value.detach()


def device_memory() -> int | None:
    """The most bytes that arrays have taken on the GPU so far; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def compilations(session: "Session") -> dict[str, int]:
    """What was compiled: functions by Dynamo in this process, recompilations among them, and where a graph broke.

    Those that the program gives to Inductor itself are not among what Dynamo counts.
    """
    own = session.functions()
    if "torch._dynamo" not in sys.modules:  # whose import takes a second
        return {"functions compiled": own, "graph breaks": 0}
    counters = sys.modules["torch._dynamo"].utils.counters
    return {"functions compiled": own + counters["frames"]["ok"], "graph breaks": sum(counters["graph_break"].values())}


class Session(StepByStep):
    """See harness.backend.Session."""

    def __init__(self, module: ModuleType, request: Mapping[str, Any]) -> None:
        self.module, self.updates, self.networks = module, request["updates"], request["networks"]
        self.model = getattr(module, request["model"])().to(module.DEVICE)
        self.single = len(self.updates) == 1
        self.observes = bool(request.get("observe"))
        make = module.make_optimizer if self.single else module.make_optimizers
        self.optimizers = make(self.model)
        self.count = 0  # PyTorch's SGD does not count.
        self.shapes: dict[str, tuple[int, ...]] = {}
        learned = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        statistics = {name: b for name, b in self.model.named_buffers() if not name.endswith("num_batches_tracked")}
        check_tables(module, learned, statistics)

    def load(self, arrays: Arrays) -> None:
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self.module.load_parameters(self.model, arrays)
        for parameter in self.model.parameters():
            parameter.grad = None  # of the training before

    def batch(self, inputs: Arrays, step: int) -> Any:
        return self.module.load_batch(inputs, step)

    def arrays(self, batch: Any) -> Arrays:
        return {name: value.numpy(force=True) for name, value in flatten(batch).items()}

    def compile(self, batch: Any) -> None:
        """PyTorch runs eagerly: there is nothing to compile."""

    def step(self, step: int, batch: Any) -> Any:
        self.count += 1
        return self.module.train_step(self.model, self.optimizers, step, batch)

    def wait(self, result: Any) -> dict[str, float]:
        result = result[0] if self.observes else result
        if self.single:
            return {self.updates[0]["name"]: result.item()}
        return {name: loss.item() for name, loss in result.items()}

    def losses(self, result: Any) -> Arrays:
        if self.single:
            return {self.updates[0]["name"]: _numpy(torch.stack(result))}
        return {name: _numpy(torch.stack([losses[name] for losses in result])) for name in result[0]}

    def observed(self, result: Any) -> Arrays:
        found = {}
        for update in self.updates:
            seen = result[1][update["name"]]
            for call, values in seen["values"].items():
                found |= {f"values/{update['name']}/{call}.{node}": _numpy(value) for node, value in values.items()}
            gradients = self._canonical(update, seen["gradients"])
            found |= {f"gradients/{name}": gradient for name, gradient in gradients.items()}
        return found

    def gradients(self, batch: Any, *, inputs: bool = False) -> Arrays:
        found: Arrays = {}
        for update in self.updates:
            model = copy.deepcopy(self.model)
            given = {n: v.detach().requires_grad_() for n, v in batch.items() if n != "masks" and v.is_floating_point()}
            loss = getattr(self.module, update["loss"])(model, batch | given if inputs else batch)
            (loss[0] if self.observes else loss).backward()
            found |= self._canonical(update, {name: p.grad for name, p in model.named_parameters()})
            if inputs:
                found |= {f"{update['name']}/@{n}": _gradient(v) for n, v in given.items()}
        return found

    def _canonical(self, update: Mapping[str, Any], gradients: Mapping[str, torch.Tensor | None]) -> Arrays:
        """Gradients by PyTorch's names -> `update/parameter`, those that the update moves."""
        found = {}
        live = dict(self.model.named_parameters())
        for name, (path, axes) in self.module.PARAMETERS.items():
            if self._moves(update, name):
                # A parameter that the loss does not reach has no gradient at all here; it is zero.
                gradient = gradients.get(path)
                array = np.zeros(live[path].shape) if gradient is None else _numpy(gradient)
                found[f"{update['name']}/{name}"] = to_canonical(array, axes, self.shapes[name])
        return found

    def _moves(self, update: Mapping[str, Any], name: str) -> bool:
        return update["networks"] is None or name.partition(".")[0] in update["networks"]

    def functions(self) -> int:
        """How many compiled functions the program has made itself, without torch.compile."""
        return 0

    def state(self) -> Arrays:
        state = self.model.state_dict()
        table = self.module.PARAMETERS | self.module.STATISTICS
        return {
            name: to_canonical(state[path].numpy(force=True).copy(), axes, self.shapes[name])
            for name, (path, axes) in table.items()
        }

    def optimizer_state(self) -> Arrays:
        found: Arrays = {}
        for update, optimizer in self._optimizers():
            for name, parameter, axes in self._held(optimizer):
                for slot, own in _slots(optimizer).items():
                    # PyTorch makes a slot in the first step; until then it is zero.
                    value = optimizer.state.get(parameter, {}).get(own)
                    array = np.zeros_like(parameter.numpy(force=True)) if value is None else value.numpy(force=True)
                    found[f"{update}/{slot}/{name}"] = to_canonical(array.copy(), axes, self.shapes[name])
            found[f"{update}/count"] = np.array(self.count, np.int64)
        return found

    def load_optimizer(self, arrays: Arrays) -> None:
        check_optimizer(self.optimizer_state(), arrays)
        for update, optimizer in self._optimizers():
            self.count = int(arrays[f"{update}/count"])
            optimizer.state.clear()
            for name, parameter, axes in self._held(optimizer) if self.count else ():
                state = optimizer.state[parameter]
                for slot, own in _slots(optimizer).items():
                    array = np.ascontiguousarray(arrays[f"{update}/{slot}/{name}"].transpose(axes))
                    state[own] = torch.empty_like(parameter, requires_grad=False)
                    state[own].copy_(torch.from_numpy(array).reshape(parameter.shape))
                if isinstance(optimizer, torch.optim.Adam):
                    # The fused rule keeps its count in float32, whatever the parameters are.
                    state["step"] = torch.tensor(float(self.count), dtype=torch.float32, device=parameter.device)

    def _optimizers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        if self.single:
            return [(self.updates[0]["name"], self.optimizers)]
        return [(update["name"], self.optimizers[update["name"]]) for update in self.updates]

    def _held(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter, tuple[int, ...]]]:
        """The parameters that an optimizer moves: canonical name, PyTorch's own, axes."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        own = dict(self.model.named_parameters())
        table = self.module.PARAMETERS.items()
        return [(name, own[path], axes) for name, (path, axes) in table if id(own[path]) in held]

    def evaluate(self, expression: Any, fields: Arrays) -> Array:
        return _numpy(self._evaluated(expression, fields, {}))

    def values(self, expression: Any, fields: Arrays) -> Arrays:
        seen: dict[str, torch.Tensor] = {}
        self._evaluated(expression, fields, seen)
        return {name: _numpy(value) for name, value in seen.items()}

    def _evaluated(self, expression: Any, fields: Arrays, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        self.model.eval()
        with torch.inference_mode():
            value = self._value(expression, self._tensors(fields), seen)
        self.model.train()
        return value

    def _tensors(self, fields: Arrays) -> dict[str, torch.Tensor]:
        given = {name: torch.from_numpy(array).to(self.module.DEVICE) for name, array in fields.items()}
        return {name: value.long() if value.dtype == torch.int32 else value for name, value in given.items()}

    def predictor(self, way: str, expression: Any, fields: Arrays) -> Callable[[], Array]:
        model, given = copy.deepcopy(self.model).eval(), self._tensors(fields)
        networks = {name: model if len(self.networks) == 1 else getattr(model, name) for name in self.networks}
        if way == "compiled":
            networks = {name: torch.compile(network) for name, network in networks.items()}

        def value(expression: Any) -> torch.Tensor:
            if expression[0] == "field":
                return given[expression[1]]
            return networks[expression[1]](*map(value, expression[2]))

        @torch.inference_mode()
        def predict() -> Array:
            found: Array = value(expression).numpy(force=True)
            return found

        return predict

    def _value(
        self, expression: Any, fields: Mapping[str, torch.Tensor], seen: dict[str, torch.Tensor]
    ) -> torch.Tensor:
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


class Whole(Session):
    """A program whose whole step is one compiled function, which holds what the optimizer keeps."""

    compiled: Any = None

    def step(self, step: int, batch: Any) -> Any:
        if self.compiled is None:
            self.compiled = self.module.compile_step(self.model, self.optimizers, batch)
        self.count += 1
        return self.compiled(step, batch)

    def functions(self) -> int:
        return int(self.compiled is not None)

    def load_optimizer(self, arrays: Arrays) -> None:
        kept = {
            (update, id(p)): dict(optimizer.state[p])
            for update, optimizer in self._optimizers()
            for p in optimizer.state
        }
        super().load_optimizer(arrays)
        for update, optimizer in self._optimizers() if self.compiled else ():
            for name, parameter, axes in self._held(optimizer):
                if (update, id(parameter)) in kept:
                    # The compiled function holds these very tensors.
                    state = optimizer.state[parameter] = kept[update, id(parameter)]
                    for slot, own in _slots(optimizer).items():
                        array = np.ascontiguousarray(arrays[f"{update}/{slot}/{name}"].transpose(axes))
                        state[own].copy_(torch.from_numpy(array).reshape(parameter.shape))
                    if "step" in state:
                        state["step"].fill_(self.count)


class Unrolled(Whole):
    """A program whose compiled functions take a stack of batches each, by how many there are."""

    def stack(self, batches: Sequence[Any]) -> Any:
        size = self.module.UNROLLED
        stacks = [self.module.stack(batches[i : i + size]) for i in range(0, len(batches), size)]
        return [(stack, len(self.module.leaves(stack)[0])) for stack in stacks]

    def step(self, step: int, batch: Any) -> Any:
        return self.steps(step, self.stack([batch]), 1)[0]

    def steps(self, first: int, stack: Any, count: int) -> Any:
        self.compiled = self.compiled or {}
        results, step, end = [], first, first + count
        while step < end:
            for batches, size in stack:
                if size not in self.compiled:
                    self.compiled[size] = self.module.compile_steps(self.model, self.optimizers, batches)
                results.append(self.compiled[size](step, batches))
                step += size
        self.count += count
        return results

    def functions(self) -> int:
        return len(self.compiled or {})

    def wait(self, result: Any) -> dict[str, float]:
        return {name: float(losses[0]) for name, losses in self.losses([result]).items()}

    def losses(self, result: Any) -> Arrays:
        found = torch.cat(result)  # steps, and updates where there are several
        if self.single:
            return {self.updates[0]["name"]: _numpy(found)}
        return {update["name"]: _numpy(found[:, i]) for i, update in enumerate(self.updates)}


class Graphed(Whole):
    """A program whose whole step is captured as a CUDA graph."""

    def step(self, step: int, batch: Any) -> Any:
        if self.compiled is None:
            self.compiled = self.module.capture_step(self.model, self.optimizers, batch)
        self.count += 1
        return self.compiled(step, batch)

    def functions(self) -> int:
        return 0  # Dynamo counts those of the loss.


SESSIONS = {"whole": Whole, "unrolled": Unrolled, "graph": Graphed, "autotuned": Graphed, "flash": Graphed}
"""By strategy, where it is not the session above."""


def _numpy(value: torch.Tensor) -> Array:
    return np.array(value.numpy(force=True))


def _gradient(value: torch.Tensor) -> Array:
    """A leaf's gradient; one that the loss does not reach has none at all, and it is zero."""
    return _numpy(torch.zeros_like(value) if value.grad is None else value.grad)


def _slots(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """What an optimizer remembers of each parameter: canonical name -> PyTorch's."""
    if isinstance(optimizer, torch.optim.SGD):
        return {"velocity": "momentum_buffer"} if optimizer.defaults["momentum"] else {}
    return {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
