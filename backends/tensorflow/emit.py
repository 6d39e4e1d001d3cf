"""Program -> one file of Keras on TensorFlow. Imports no framework: it runs, and is tested, without either."""

from backends.tensorflow import bfloat16, lanes, layers, training, tuned
from harness import emit as shared
from harness.emit import Code, Lowerings, Slot, graphs, indented, masked
from harness.graph import BlockOp, Graph, Program, Update
from harness.precision import PRECISIONS, Precision

FRAMEWORK = "Keras on TensorFlow"
HELPERS = layers.HELPERS | tuned.HELPERS | training.HELPERS
OBSERVED = ", and every node's value and gradient"


def emit(
    program: Program, precision: str = "float32", threads: int = 1, *, observe: bool = False, strategy: str = "function"
) -> str:
    """The program as a file that runs by itself.

    `observe`: one that also returns every node's value and gradient. `strategy`: how its steps are run, a name of
    harness.lanes.
    """
    classes, helpers = [], []
    models = {graph.class_name for graph in program.networks.values()}
    own = PRECISIONS[precision]
    # In mixed precision a tuned strategy has the plain layers.
    faster = strategy == "tuned" and own.factors != "bfloat16"
    for graph in graphs(program):
        base = "keras.Model" if graph.class_name in models else "keras.layers.Layer"
        text, used = module(graph, base, observe=observe, written=tuned.OPS if faster else {})
        classes.append(text)
        helpers += used
    functions, used = step(program, observe=observe)
    helpers += used
    if strategy in lanes.STEPS:
        *_, kind = lanes.held(program)
        functions += lanes.compiled_step(program, returned(kind, observe=observe), xla=strategy != "function")
    elif strategy in lanes.LOOPS:
        functions += lanes.train_steps(program, PRECISIONS[precision].dtype, xla=strategy != "loop")
    elif strategy == "fit":
        functions += lanes.trainer(program)
    own_rules = training.FORGETFUL if training.forgets(program) else lanes.IN_A_LOOP if strategy == "loop" else {}
    known = HELPERS | own_rules
    definitions = [*(known[name] for name in dict.fromkeys(helpers)), *classes]
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


ORDERED = """# By TensorFlow 2.21's dependency optimizer an update loses its place before the next one's reads,
# which then see the parameters before it, now and then.
tf.config.optimizer.set_experimental_options({"dependency_optimization": False})"""


def header(program: Program, precision: Precision) -> str:
    """Docstring, imports, and what changes numbers for the whole program."""
    double = 'keras.config.set_floatx("float64")\n' if precision.dtype == "float64" else ""
    about = "Full float32 products on GPUs too: TensorFlow uses TF32 unless told not to."
    about = "TF32 products and convolutions on GPUs that have them." if precision.factors == "tf32" else about
    ordered = f"{ORDERED}\n" if len(program.updates) > 1 else ""
    mixed = precision.factors == "bfloat16"
    flags = bfloat16.XLA_FLAGS if mixed else ""
    return f"""{shared.docstring(program, FRAMEWORK, "tensorflow")}

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras reads it when it is imported.
# By itself TensorFlow takes oneDNN's kernels only where a processor has AVX512_VNNI, AVX512_BF16 or AMX.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
{flags}
import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

{double}# {about}
tf.config.experimental.enable_tensor_float_32_execution({precision.factors == "tf32"})
{ordered}{bfloat16.HEADER if mixed else ""}"""


def module(graph: Graph, base: str, *, observe: bool, written: Lowerings) -> tuple[str, list[str]]:
    """A network or block as a class; `written`: the ops that are not those of `layers`."""
    inits: list[str] = []
    lines: list[str] = []
    helpers: list[str] = []
    for line, code, name in lower(graph, observe=observe, written=written):
        if code and code.init:
            inits += [f"self.{name} = {code.init}", *code.setup]
        helpers += code.helpers if code else []
        lines.append(line)
    given = ", ".join(f"{name}: tf.Tensor" for name in graph.inputs)
    given += ", masks: dict | None = None" if masked(graph) else ""
    given += ", training: bool = False" if layers.trains(graph) else ""
    construct = (
        f"def __init__(self, **kwargs) -> None:\n        super().__init__(**kwargs)\n{indented(inits)}\n\n    "
        if inits
        else ""
    )
    return f"""
class {graph.class_name}({base}):
    {construct}def call(self, {given}) -> {returned("tf.Tensor", observe=observe)}:
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
        args = [names[name] for name in node.inputs]
        lowering = layers.block if isinstance(node.op, BlockOp) else getattr(layers, node.op.kind)
        code: Code = written.get(node.op.kind, lowering)(node, *args)
        if observe:
            name = names[node.name]
            out.append(("\n".join(shared.observed(node, name, name, code.call)), code, node.name))
        elif node.name == graph.output:
            out.append((f"return {code.call}", code, node.name))
        else:
            out.append((f"{names[node.name]} = {code.call}", code, node.name))
    if observe:
        return [("values = {}", None, ""), *out, (f"return {names[graph.output]}, values", None, "")]
    if graph.nodes[-1].name != graph.output:
        out.append((f"return {names[graph.output]}", None, ""))
    return out


def networks(program: Program) -> str:
    """A class that holds several networks."""
    inits = [f'self.{name} = {graph.class_name}(name="{name}")' for name, graph in program.networks.items()]
    weights = " + ".join(f"self.{name}.weights" for name in program.networks)
    return f'''
class {shared.container(program)}:
    """The networks that are trained together."""

    def __init__(self) -> None:
{indented(inits)}

    @property
    def weights(self) -> list[keras.Variable]:
        return {weights}
'''


def step(program: Program, *, observe: bool = False) -> tuple[str, list[str]]:
    """Losses, learning rates, optimizers and the training step."""
    single = len(program.updates) == 1
    helpers: list[str] = []
    parts = [loss(program, update, observe=observe) for update in program.updates]
    for update in program.updates:
        if body := training.schedule(update.schedule, update.optimizer.learning_rate):
            parts.append(f"""
class {rate_name(program, update)}(keras.optimizers.schedules.LearningRateSchedule):
    {shared.schedule_summary(update)}

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float64)  # Keras's own schedules round to float32.
{indented(body)}
""")
    text, used = optimizers(program)
    parts.append(text)
    helpers += used
    cls = shared.container(program)
    lines: list[str] = []
    for update in program.updates:
        target, name = moved(program, update), shared.loss_name(program, update)
        variable = "optimizer" if single else f'optimizers["{update.name}"]'
        result = "loss" if single else f'losses["{update.name}"]'
        densify = ["# An embedding's gradient comes as rows: repeated ones are summed before anything reads them.",
                   "gradients = [tf.convert_to_tensor(g) for g in gradients]"]  # fmt: skip
        seen = [
            f"found = {{v.path: g for v, g in zip({target}, gradients, strict=True) if g is not None}}",
            f'observed["{update.name}"] = {{"values": values, "gradients": found}}',
        ]
        lines += [
            "with tf.GradientTape() as tape:",
            f"    {result}{', values' if observe else ''} = {name}(model, batch)",
            f"gradients = tape.gradient({result}, {target})",
            *(densify if training.sparse(program, update) else []),
            *(seen if observe else []),
            *training.clip(update),
            f"{variable}.apply(gradients, {target})",
        ]
    also = ", observed" if observe else ""
    lines = ["observed = {}", *lines] if observe else lines
    optimizer, own, kind = lanes.held(program)
    if single:
        doc, lines = (
            f"One update; returns the loss before it{OBSERVED if observe else ''}.",
            [*lines, f"return loss{also}"],
        )
    else:
        doc = f"One update after another; returns the loss before each{OBSERVED if observe else ''}."
        lines = ["losses = {}", *lines, f"return losses{also}"]
    parts.append(f'''
def train_step(model: {cls}, {optimizer}: {own}, batch: dict) -> {returned(kind, observe=observe)}:
    """{doc}"""
{indented(lines, 4)}
''')
    return "\n\n".join(parts), helpers


def loss(program: Program, update: Update, *, observe: bool = False) -> str:
    """The function of one update's loss."""
    lines: list[str] = ["values = {}"] if observe else []
    for site in update.calls:
        trains = layers.trains(program.networks[site.network])
        call = shared.call_site(program, site, "training=True" if trains else "")
        # Nothing that this update moves lies behind the value: no gradient goes there.
        if observe:
            lines.append(f"{shared.result(site, observe=True)} = {call}")
            lines += [] if site.moved else [f"{site.variable} = tf.stop_gradient({site.variable})"]
        else:
            lines.append(f"{site.variable} = {call if site.moved else f'tf.stop_gradient({call})'}")
    terms = [(term.loss.weight, training.LOSSES[term.loss.kind](term)) for term in update.terms]
    return f"""
def {shared.loss_name(program, update)}(model: {shared.container(program)}, batch: dict) -> {returned("tf.Tensor", observe=observe)}:
{indented(lines, 4)}
    return {shared.weighted(terms)}{", values" if observe else ""}
"""


def optimizers(program: Program) -> tuple[str, list[str]]:
    """The function that makes the optimizer, or one for each update."""
    cls, single = shared.container(program), len(program.updates) == 1
    made: list[str] = []
    after: list[str] = []
    tables: list[str] = []
    helpers: list[str] = []
    for update in program.updates:
        changes = training.schedule(update.schedule, update.optimizer.learning_rate)
        rate = f"{rate_name(program, update)}()" if changes else repr(update.optimizer.learning_rate)
        before, text, used = training.optimizer(program, update, f"learning_rate={rate}")
        helpers += used
        target = moved(program, update)
        variable = "optimizer" if single else f'optimizers["{update.name}"]'
        if spared := training.no_decay(program, update):
            where = slots(program)
            names = ", ".join(f'"{where[name].path}"' for name in spared)
            table = "NO_DECAY" if single else f"NO_DECAY_{update.name.upper()}"
            tables.append(f"# Weight decay spares these.\n{table} = {{{names}}}\n")
            after.append(f"{variable}.exclude_from_weight_decay([v for v in {target} if v.path in {table}])")
        after.append(f"{variable}.build({target})")
        made += [*before, f"optimizer = {text}" if single else f'"{update.name}": {text},']
    if single:
        name, kind, lines = "make_optimizer", "keras.optimizers.Optimizer", [*made, *after, "return optimizer"]
    else:
        name, kind = "make_optimizers", "dict[str, keras.optimizers.Optimizer]"
        lines = ["optimizers = {", *made, "}", *after, "return optimizers"]
    head = "\n\n".join(tables)
    return f"{head}\n\ndef {name}(model: {cls}) -> {kind}:\n{indented(lines, 4)}\n", helpers


def moved(program: Program, update: Update) -> str:
    """The variables that an update moves."""
    if len(program.networks) == 1:
        return "model.trainable_weights"
    return " + ".join(f"model.{name}.trainable_weights" for name in update.over)


def rate_name(program: Program, update: Update) -> str:
    """The class of one update's learning rate."""
    stem = "" if len(program.updates) == 1 else "".join(part[:1].upper() + part[1:] for part in update.name.split("_"))
    return f"{stem}LearningRate"


def slots(program: Program, *, faster: bool = False) -> dict[str, Slot]:
    """Canonical name -> the variable's path; `faster`: with the ops of `tuned`.

    A network's own name comes first, also where there is one only.
    """
    found = shared.slots(program, tuned.parameters if faster else layers.parameters, "/")
    if len(program.networks) > 1:
        return found
    (network,) = program.networks
    return {name: Slot(f"{network}/{slot.path}", slot.axes) for name, slot in found.items()}


def tables(program: Program, *, faster: bool = False) -> str:
    """PARAMETERS and STATISTICS."""
    learned, running = shared.split_tables(program, slots(program, faster=faster))
    axes = "the axes that take the canonical array to Keras's"
    text = shared.table("PARAMETERS", learned, f"canonical name -> (the Keras variable's path, {axes})")
    return text + shared.table("STATISTICS", running, "the same for running statistics")


def running(
    program: Program, precision: str, threads: int, *, observe: bool = False, strategy: str = "function"
) -> str:
    """Making the model, loading parameters and batches, and `main`."""
    cls, single = shared.container(program), len(program.updates) == 1
    rows_of, sources = shared.batch_sources(program)
    rows = [f'"{name}": {source},' for name, source in sources.items()]
    optimizer = "optimizer" if single else "optimizers"
    show = "float(loss)" if single else "*map(float, losses.values())"
    if strategy == "fit":
        loop = lanes.fitting(program)
    elif strategy in lanes.LOOPS:
        loop = lanes.blocks(program, precision)
    else:
        losses = f"{'loss' if single else 'losses'}{', _' if observe else ''}"
        loop = [
            f"compiled_step = make_compiled_step(model, {optimizer})",
            'for step in range(len(inputs["order"])):',
            f"    {losses} = compiled_step(load_batch(inputs, step))",
            f"    print(step + 1, {show})",
        ]
    stack = lanes.STACK if strategy in ("fit", *lanes.LOOPS) else ""
    if len(program.networks) == 1:
        ((network, graph),) = program.networks.items()
        made = [f'model = {cls}(name="{network}")', "# Keras makes a layer's variables when it first sees an input.",
                f"model({_zeros(graph)})"]  # fmt: skip
    else:
        made = [f"model = {cls}()", "# Keras makes a layer's variables when it first sees an input."]
        made += [f"model.{network}({_zeros(graph)})" for network, graph in program.networks.items()]
    return f'''
def make_model() -> {cls}:
{indented(made, 4)}
    return model


def load_parameters(model: {cls}, arrays: dict[str, np.ndarray]) -> None:
    """Set every parameter and statistic from its canonical array."""
    table, variables = PARAMETERS | STATISTICS, {{v.path: v for v in model.weights}}
    if arrays.keys() != table.keys():
        raise ValueError(f"names that only the model or the arrays have: {{sorted(arrays.keys() ^ table.keys())}}")
    for name, (path, axes) in table.items():
        variable, array = variables[path], arrays[name]
        shape = tuple(variable.shape[i] for i in np.argsort(axes))
        if (array.shape, array.dtype) != (shape, variable.dtype):
            raise ValueError(
                f"{{name}}: the model has {{shape}} of {{variable.dtype}}, "
                f"the array is {{array.shape}} of {{array.dtype}}"
            )
        variable.assign(array.transpose(axes))


def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = {rows_of}
    batch = {{
{indented(rows)}
    }}
    return tf.nest.map_structure(tf.convert_to_tensor, batch)

{stack}
def main(run: Path) -> None:
    tf.config.threading.set_intra_op_parallelism_threads({threads})
    tf.config.threading.set_inter_op_parallelism_threads({threads})
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(run / "inputs" / "batches.safetensors")
    model = make_model()
    load_parameters(model, load_file(run / "inputs" / "parameters.safetensors"))
    {optimizer} = make_{optimizer}(model)
{indented(loop, 4)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
'''


def _zeros(graph: Graph) -> str:
    """A batch of one for each of a network's inputs."""
    given = []
    for shape, dtype in zip(graph.input_shapes, graph.input_dtypes, strict=True):
        kind = ', dtype="int32"' if dtype == "int" else ""
        given.append(f"keras.ops.zeros({(1, *shape)!r}{kind})")
    return ", ".join(given)
