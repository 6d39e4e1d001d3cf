"""Program -> one JAX file: Flax NNX modules, Optax updates. Imports no framework: it runs, and is tested, without JAX."""

from backends.jax import bfloat16, cudnn, lanes, layers, training, tuned
from harness import emit as shared
from harness.emit import Code, Lowerings, Slot, graphs, indented, masked
from harness.graph import Graph, Program, Update
from harness.lanes import FUSED
from harness.precision import PRECISIONS, Precision

FRAMEWORK = "JAX (Flax NNX and Optax)"
HELPERS = layers.HELPERS | tuned.HELPERS | cudnn.HELPERS | training.HELPERS
OBSERVED = ", and every node's value and gradient"


def emit(
    program: Program, precision: str = "float32", threads: int = 1, *, observe: bool = False, strategy: str = "jit"
) -> str:
    """The program as a file that runs by itself.

    `observe`: one that also returns every node's value and gradient. `strategy`: how its steps are run, a name of
    harness.lanes.
    """
    classes, helpers = [], []
    own = PRECISIONS[precision]
    # In mixed precision a tuned strategy has the plain layers.
    faster = strategy in lanes.TUNED and own.factors != "bfloat16"
    written: Lowerings = tuned.OPS if faster else {}
    if strategy == lanes.CUDNN:
        written = {kind: cudnn.OPS[kind] for kind in FUSED["jax", strategy].get(own.factors, ())}
    for graph in graphs(program):
        text, used = module(graph, precision, observe=observe, written=written)
        # A beginner's normalisations are as Flax has them: faster, and less exact where a mean is large beside its deviation.
        classes.append(text.replace(f"{layers.EXACT}, ", "") if strategy == "nnx" else text)
        helpers += used
    functions, used = step(program, observe=observe, strategy=strategy)
    helpers += used
    definitions = [*(HELPERS[name] for name in dict.fromkeys(helpers)), *classes]
    if own.factors == "bfloat16":
        definitions = shared.in_mixed_precision(definitions, bfloat16.REPLACED, bfloat16.HELPERS)
    parts = [
        header(program, own),
        *definitions,
        *([networks(program)] if len(program.networks) > 1 else []),
        functions,
        tables(program, faster=faster),
        shared.masks_text(program, own.dtype) if program.masks else "",
        running(program, precision, threads, observe=observe, strategy=strategy),
    ]
    return shared.formatted("\n\n".join(parts))


def header(program: Program, precision: Precision) -> str:
    """Docstring, imports, and what changes numbers for the whole program."""
    double = 'jax.config.update("jax_enable_x64", True)\n' if precision.dtype == "float64" else ""
    about = "Full float32 products on GPUs and TPUs too: JAX uses TF32 or bfloat16 unless told not to."
    about = "TF32 products and convolutions on GPUs that have them." if precision.factors == "tf32" else about
    level = "tensorfloat32" if precision.factors == "tf32" else "highest"
    return f"""{shared.docstring(program, FRAMEWORK, "jax")}

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax import Array
from jax.experimental import rnn
from safetensors.numpy import load_file

{double}# {about}
jax.config.update("jax_default_matmul_precision", "{level}")
"""


def module(graph: Graph, precision: str, *, observe: bool, written: Lowerings) -> tuple[str, list[str]]:
    """A network or block as a class; `written`: the ops that are not those of `layers`."""
    inits: list[str] = []
    lines: list[str] = []
    helpers: list[str] = []
    for line, code, name in lower(graph, observe=observe, written=written):
        if code and code.init:
            inits += [f"self.{name} = {code.init}", *code.setup]
        helpers += code.helpers if code else []
        lines.append(line)
    body = indented(inits or ["pass"])
    if precision == "float64":
        # Flax's parameters are float32 unless told otherwise, x64 or not.
        body = body.replace("rngs=rngs)", "param_dtype=jnp.float64, rngs=rngs)")
    given = ", ".join(f"{name}: Array" for name in graph.inputs)
    given += ", masks: dict | None = None" if masked(graph) else ""
    return f"""
class {graph.class_name}(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
{body}

    def __call__(self, {given}) -> {returned("Array", observe=observe)}:
{indented(lines)}
""", helpers  # fmt: skip


def returned(kind: str, *, observe: bool) -> str:
    """The type that a function returns: in an observed program a dictionary beside what it returns otherwise."""
    return f"tuple[{kind}, dict]" if observe else kind


def lower(graph: Graph, *, observe: bool, written: Lowerings) -> list[tuple[str, Code | None, str]]:
    """The forward pass, a line a node; `written`: the ops that are not those of `layers`."""
    names = shared.variables(graph)
    out: list[tuple[str, Code | None, str]] = []
    for node in graph.nodes:
        lowering = written.get(node.op.kind) or getattr(layers, node.op.kind)
        code: Code = lowering(node, *(names[name] for name in node.inputs))
        if observe:
            name = names[node.name]
            out.append(("\n".join(shared.observed(node, name, name, code.call)), code, node.name))
            continue
        if code.call == names[node.name] and node.name != graph.output:
            continue  # dropout at rate 0
        line = f"return {code.call}" if node.name == graph.output else f"{names[node.name]} = {code.call}"
        out.append((line, code, node.name))
    if observe:
        return [("values = {}", None, ""), *out, (f"return {names[graph.output]}, values", None, "")]
    if graph.nodes[-1].name != graph.output:
        out.append((f"return {names[graph.output]}", None, ""))
    return out


def networks(program: Program) -> str:
    """A class that holds several networks."""
    inits = [f"self.{name} = {graph.class_name}(rngs)" for name, graph in program.networks.items()]
    return f'''
class {shared.container(program)}(nnx.Module):
    """The networks that are trained together."""

    def __init__(self, rngs: nnx.Rngs) -> None:
{indented(inits)}
'''


def step(program: Program, *, observe: bool = False, strategy: str = "jit") -> tuple[str, list[str]]:
    """Losses, learning rates, optimizers, state and the training step."""
    helpers = [name for u in program.updates for t in u.terms for name in training.LOSS_HELPERS.get(t.loss.kind, ())]
    parts = [loss(program, update, observe=observe) for update in program.updates]
    for update in program.updates:
        if not training.constant(update):
            parts.append(f"""
def {rate_name(program, update)}(step: Array) -> Array:
    {shared.schedule_summary(update)}
{indented(training.schedule(update.schedule, update.optimizer.learning_rate), 4)}
""")
    # Flax's optimizer is an object that holds Optax's, which its own guides call tx.
    text, used = optimizers(program, "tx" if strategy == "nnx" else "optimizer")
    helpers += used
    if strategy == "nnx":
        return "\n\n".join([*parts, text, lanes.nnx_step(program)]), helpers
    parts += [text, state(program)]
    after = [lanes.SCAN] if strategy in lanes.SCANS else []
    if len(program.updates) == 1:
        (update,) = program.updates
        kind = returned("Array", observe=observe)
        body = minimisation(
            shared.loss_name(program, update),
            "optimizer",
            "state.optimizer_state",
            moved(program, update),
            observe=observe,
        )
        parts.append(f'''
@partial(jax.jit, donate_argnames="state")
def train_step(state: State, batch: dict) -> tuple[State, {kind}]:
    """One update; returns the new state and the loss before it{OBSERVED if observe else ""}."""
{body}
    return State(parameters, statistics, optimizer_state), {f'(loss, {{"{update.name}": observed}})' if observe else "loss"}
''')
        return "\n\n".join(parts + after), helpers
    several = len(program.networks) > 1
    also = ", observed" if observe else ""
    lines = [
        (f'state, (losses["{u.name}"], observed["{u.name}"])' if observe else f'state, losses["{u.name}"]')
        + f' = minimise(state, "{u.name}", {shared.loss_name(program, u)}, '
        + (f"{tuple(u.over)}, batch)" if several else "batch)")
        for u in program.updates
    ]
    parts.append(f'''
def minimise(
    state: State, name: str, loss_fn: Callable, {"networks: tuple[str, ...], " if several else ""}batch: dict
) -> tuple[State, {returned("Array", observe=observe)}]:
    """One update{" of these networks' parameters" if several else ""}; returns the new state and the loss before it."""
{minimisation("loss_fn", "optimizers[name]", "state.optimizer_states[name]", "networks" if several else None, observe=observe)}
    optimizer_states = state.optimizer_states | {{name: optimizer_state}}
    return State(parameters, statistics, optimizer_states), {"(loss, observed)" if observe else "loss"}


@partial(jax.jit, donate_argnames="state")
def train_step(state: State, batch: dict) -> tuple[State, {returned("dict[str, Array]", observe=observe)}]:
    """One update after another; returns the new state and the loss before each{OBSERVED if observe else ""}."""
    losses{also} = {"{}, {}" if observe else "{}"}
{indented(lines, 4)}
    return state, {"(losses, observed)" if observe else "losses"}
''')
    return "\n\n".join(parts + after), helpers


def minimisation(loss: str, optimizer: str, optimizer_state: str, networks: str | None, *, observe: bool) -> str:
    """The statements from a state and a batch to new parameters, statistics and optimizer state."""
    whole = networks is None
    statistics = "nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))"
    minimised = [f"    return {loss}(model, batch), {statistics}"]
    if observe:
        minimised = [f"    loss, values = {loss}(model, batch)", f"    return loss, ({statistics}, values)"]
    lines = [
        "",
        f"def objective(parameters: dict) -> tuple[Array, {'tuple' if observe else 'dict'}]:",
        f"    model = nnx.merge(GRAPHDEF, {'parameters' if whole else 'state.parameters | parameters'}, state.statistics)",
        *minimised,
        "",
        "parameters = state.parameters"
        if whole
        else f"parameters = {{network: state.parameters[network] for network in {networks}}}",
        f"(loss, {'(statistics, values)' if observe else 'statistics'}), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)",
        *(['observed = {"values": values, "gradients": gradients}'] if observe else []),
        f"updates, optimizer_state = {optimizer}.update(gradients, {optimizer_state}, parameters)",
        f"parameters = {'' if whole else 'state.parameters | '}optax.apply_updates(parameters, updates)",
    ]
    return indented(lines, 4)


def loss(program: Program, update: Update, *, observe: bool = False) -> str:
    """The function of one update's loss."""
    lines: list[str] = ["values = {}"] if observe else []
    for site in update.calls:
        call = shared.call_site(program, site)
        # Nothing that this update moves lies behind the value: no gradient goes there.
        lines.append(
            f"{shared.result(site, observe=observe)} = {call if site.moved else f'jax.lax.stop_gradient({call})'}"
        )
    terms = [(term.loss.weight, training.LOSSES[term.loss.kind](term)) for term in update.terms]
    return f"""
def {shared.loss_name(program, update)}(model: {shared.container(program)}, batch: dict) -> {returned("Array", observe=observe)}:
{indented(lines, 4)}
    return {shared.weighted(terms)}{", values" if observe else ""}
"""


def optimizers(program: Program, name: str = "optimizer") -> tuple[str, list[str]]:
    """The optimizer, or one for each update, and the helpers they use; `name` is its variable."""
    single = len(program.updates) == 1
    made: list[str] = []
    tables: list[str] = []
    helpers: list[str] = []
    for update in program.updates:
        rate = repr(update.optimizer.learning_rate) if training.constant(update) else rate_name(program, update)
        table = "NO_DECAY" if single else f"NO_DECAY_{update.name.upper()}"
        text, used = training.optimizer(program, update, rate, table)
        helpers += used
        if spared := training.no_decay(program, update):
            where = slots(program)
            names = ", ".join(f'"{where[name].path}"' for name in spared)
            tables.append(f"# Weight decay spares these.\n{table} = {{{names}}}\n")
        made.append(f"{name} = {text}" if single else f'"{update.name}": {text},')
    if not single:
        made = [f"{name}s = {{", *made, "}"]
    return "\n".join([*tables, *made]) + "\n", helpers


def state(program: Program) -> str:
    """What a training step changes, and the constant that makes a model of it."""
    single = len(program.updates) == 1
    field = "optimizer_state: optax.OptState" if single else "optimizer_states: dict[str, optax.OptState]"
    return f'''
# The model without its arrays, and their shapes: nothing is allocated.
GRAPHDEF, SHAPES = nnx.split(nnx.eval_shape(lambda: {shared.container(program)}(nnx.Rngs(0))))


class State(NamedTuple):
    """What a training step changes."""

    parameters: dict
    statistics: dict
    {field}
'''


def moved(program: Program, update: Update) -> str | None:
    """The networks whose parameters an update moves; None for all there is."""
    return None if set(update.over) == set(program.networks) else repr(tuple(update.over))


def rate_name(program: Program, update: Update) -> str:
    """The function of one update's learning rate."""
    return "learning_rate" if len(program.updates) == 1 else f"{update.name}_learning_rate"


def slots(program: Program, *, faster: bool = False) -> dict[str, Slot]:
    """Canonical name -> the path in the model's state, its keys joined by dots; `faster`: with the ops of `tuned`."""
    return shared.slots(program, tuned.parameters if faster else layers.parameters, ".")


def tables(program: Program, *, faster: bool = False) -> str:
    """PARAMETERS and STATISTICS."""
    learned, running = shared.split_tables(program, slots(program, faster=faster))
    axes = "the axes that take the canonical array to Flax's"
    text = shared.table("PARAMETERS", learned, f"canonical name -> (Flax's path, {axes})")
    return text + shared.table("STATISTICS", running, "the same for running statistics")


def running(program: Program, precision: str, threads: int, *, observe: bool = False, strategy: str = "jit") -> str:
    """Loading parameters and batches, and `main`."""
    load = 'load_file(run / "inputs" / "parameters.safetensors")'
    if strategy == "nnx":
        loading, body = lanes.nnx_loading(program, PRECISIONS[precision].dtype), lanes.nnx_main(program, load)
    else:
        loading, body = load_parameters(program, PRECISIONS[precision].dtype), [f"state = load_parameters({load})"]
        body += lanes.blocks(program, precision) if strategy in lanes.SCANS else each_step(program, observe=observe)
    return f"""
{loading}
{batches(program)}
{lanes.STACK if strategy in lanes.SCANS else ""}

def main(run: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        # XLA:CPU splits sums by the cores that it may use: as many as in the recorded run.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{threads}])
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(run / "inputs" / "batches.safetensors")
{indented(body, 4)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
"""


def load_parameters(program: Program, dtype: str) -> str:
    """The function that makes the state before training."""
    single = len(program.updates) == 1
    made = {u.name: f".init({_own(program, u)})" for u in program.updates}
    each = ", ".join(f'"{name}": optimizers["{name}"]{init}' for name, init in made.items())
    optimizer_state = f"optimizer{next(iter(made.values()))}" if single else f"{{{each}}}"
    return f'''
def load_parameters(arrays: dict[str, np.ndarray]) -> State:
    """The state before training, from the canonical array of every parameter and statistic."""
    names = (PARAMETERS | STATISTICS).keys()
    if arrays.keys() != names:
        raise ValueError(f"names that only the model or the arrays have: {{sorted(arrays.keys() ^ names)}}")
    shapes = {{".".join(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(SHAPES)}}

    def load(table: dict) -> dict:
        found = {{}}
        for name, (path, axes) in table.items():
            array, shape = arrays[name], tuple(shapes[path][i] for i in np.argsort(axes))
            if (array.shape, array.dtype) != (shape, "{dtype}"):
                raise ValueError(
                    f"{{name}}: the model has {{shape}} of {dtype}, "
                    f"the array is {{array.shape}} of {{array.dtype}}"
                )
            found[path] = jnp.array(array.transpose(axes), jnp.{dtype})
        return unflatten_dict(found, sep=".")

    parameters = load(PARAMETERS)
    return State(parameters, load(STATISTICS), {optimizer_state})
'''


def each_step(program: Program, *, observe: bool) -> list[str]:
    """The loop of `main`."""
    single = len(program.updates) == 1
    losses = "loss" if single else "losses"
    return [
        'for step in range(len(inputs["order"])):',
        f"    state, {f'({losses}, _)' if observe else losses} = train_step(state, load_batch(inputs, step))",
        f"    print(step + 1, {'float(loss)' if single else '*map(float, losses.values())'})",
    ]


def batches(program: Program) -> str:
    """The function that loads a batch."""
    rows_of, sources = shared.batch_sources(program)
    rows = [f'"{name}": {source},' for name, source in sources.items()]
    return f'''
def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = {rows_of}
    return jax.device_put(
        {{
{indented(rows, 12)}
        }}
    )
'''


def _own(program: Program, update: Update) -> str:
    """The parameters that an update moves, as its optimizer sees them."""
    if len(program.networks) == 1 or (len(program.updates) == 1 and moved(program, update) is None):
        return "parameters"
    return "{" + ", ".join(f'"{name}": parameters["{name}"]' for name in update.over) + "}"
