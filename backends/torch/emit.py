"""Program -> one PyTorch file. Imports no framework: it runs, and is tested, without torch."""

import re
from collections.abc import Callable

from backends.torch import bfloat16, lanes, layers, training, tuned
from backends.torch.layers import ANY, FIRST, LAST
from harness import emit as shared
from harness.emit import Code, Lowerings, Slot, graphs, indented, masked
from harness.graph import BlockOp, Graph, Program, Update
from harness.lanes import GRAPHS
from harness.precision import PRECISIONS, Precision

FRAMEWORK = "PyTorch"
HELPERS = layers.HELPERS | tuned.HELPERS | training.HELPERS | lanes.HELPERS
OBSERVED = ", and every node's value and gradient"


def emit(
    program: Program, precision: str = "float32", threads: int = 1, *, observe: bool = False, strategy: str = "fused"
) -> str:
    """The program as a file that runs by itself.

    `observe`: one that also returns every node's value and gradient. `strategy`: how its steps are run, a name of
    harness.lanes.
    """
    own = PRECISIONS[precision]
    # In mixed precision a strategy has the plain layers.
    faster = strategy in lanes.COMPILED and own.factors != "bfloat16"
    classes, helpers = [], []
    models = {graph.class_name for graph in program.networks.values()}
    for graph in graphs(program):
        graph = tuned.late_relu(graph) if strategy == "late_relu" else graph  # noqa: PLW2901
        double = own.dtype == "float64" and graph.class_name in models
        text, used = module(graph, observe=observe, written=tuned.OPS if faster else {}, double=double)
        classes.append(text)
        helpers += used
    functions, used = step(program, own, observe=observe, strategy=strategy)
    helpers += used
    written = HELPERS | (tuned.NATIVE if strategy in lanes.NATIVE else {})
    definitions = [*(written[name] for name in dict.fromkeys(helpers)), *classes]
    if own.factors == "bfloat16":
        definitions = shared.in_mixed_precision(definitions, bfloat16.REPLACED, bfloat16.helpers(strategy))
    parts = [
        header(program, own, strategy),
        *definitions,
        *([networks(program)] if len(program.networks) > 1 else []),
        functions,
        tables(program),
        shared.masks_text(program, own.dtype) if program.masks else "",
        running(program, threads, observe=observe, strategy=strategy),
    ]
    return shared.formatted("\n\n".join(parts))


def header(program: Program, precision: Precision, strategy: str) -> str:
    """Docstring, imports, and what changes numbers for the whole program."""
    imports = lanes.IMPORTS if strategy in lanes.COMPILED else ""
    about = "Full float32 products on GPUs too: cuDNN's convolutions use TF32 unless told not to."
    about = "TF32 products and convolutions on GPUs that have them." if precision.factors == "tf32" else about
    mixed = bfloat16.header(strategy) if precision.factors == "bfloat16" else ""
    return f"""{shared.docstring(program, FRAMEWORK, "torch")}

{"import copy" if strategy in GRAPHS else ""}
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor, nn
{imports}

# {about}
torch.backends.cudnn.allow_tf32 = {precision.factors == "tf32"}
torch.backends.cuda.matmul.allow_tf32 = {precision.factors == "tf32"}
{mixed}DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""


def module(graph: Graph, *, observe: bool, written: Lowerings, double: bool = False) -> tuple[str, list[str]]:
    """A network or block as a class; `written`: the ops that are not those of `layers`; `double`: of float64 numbers."""
    inits: list[str] = []
    lines: list[str] = []
    helpers: list[str] = []
    for line, code, name in lower(graph, observe=observe, written=written):
        if code and code.init:
            inits += [f"self.{name} = {code.init}", *code.setup]
        helpers += code.helpers if code else []
        lines.append(line)
    inits += ["self.double()  # PyTorch's layers are float32 unless told otherwise."] if double and inits else []
    given = ", ".join(f"{name}: Tensor" for name in graph.inputs)
    given += ", masks: dict | None = None" if masked(graph) else ""
    construct = f"def __init__(self) -> None:\n        super().__init__()\n{indented(inits)}\n\n    " if inits else ""
    return f"""
class {graph.class_name}(nn.Module):
    {construct}def forward(self, {given}) -> {returned("Tensor", observe=observe)}:
{indented(lines)}
""", helpers  # fmt: skip


def returned(kind: str, *, observe: bool) -> str:
    """The type that a function returns: in an observed program a dictionary beside what it returns otherwise."""
    return f"tuple[{kind}, dict]" if observe else kind


def lower(graph: Graph, *, observe: bool, written: Lowerings) -> list[tuple[str, Code | None, str]]:
    """The forward pass, a line a node, with each value's memory layout followed through; `written`: the ops not of `layers`."""
    names = shared.variables(graph)
    layout = dict.fromkeys(graph.inputs, LAST)
    shapes = dict(zip(graph.inputs, graph.input_shapes, strict=True))
    out: list[tuple[str, Code | None, str]] = []
    for node in graph.nodes:
        wanted = layers.LAYOUTS.get(node.op.kind, LAST)
        if wanted == ANY:
            have = {layout[name] for name in node.inputs if len(shapes[name]) > 1}
            wanted = have.pop() if len(have) == 1 else LAST
        args = [convert(names[name], len(shapes[name]), layout[name], wanted) for name in node.inputs]
        kind = node.op.kind
        lowering: Callable[..., Code] = shared.block if isinstance(node.op, BlockOp) else getattr(layers, kind)
        code = written.get(kind, lowering)(node, *args)
        shapes[node.name] = node.shape
        layout[node.name] = wanted if len(node.shape) > 1 else LAST
        if observe:
            value = convert(names[node.name], len(node.shape), layout[node.name], LAST)
            out.append(("\n".join(shared.observed(node, names[node.name], value, code.call)), code, node.name))
            continue
        if code.call == names[node.name] and node.name != graph.output:
            continue  # dropout at rate 0
        if node.name == graph.output:
            out.append((f"return {convert(code.call, len(node.shape), layout[node.name], LAST)}", code, node.name))
        else:
            out.append((f"{names[node.name]} = {code.call}", code, node.name))
    last = graph.output
    whole = convert(names[last], len(shapes[last]), layout[last], LAST)
    if observe:
        return [("values = {}", None, ""), *out, (f"return {whole}, values", None, "")]
    if graph.nodes[-1].name != last:
        out.append((f"return {whole}", None, ""))
    return out


def convert(x: str, rank: int, have: str, want: str) -> str:
    """An expression in another layout; a vector has only one, and a number none."""
    if have == want or rank <= 1 or want == ANY:
        return x
    x = shared.primary(x)
    if rank == 2:
        return f"{x}.transpose(1, 2)"
    axes = (rank, *range(1, rank)) if want == FIRST else (*range(2, rank + 1), 1)
    return f"{x}.permute(0, {', '.join(map(str, axes))})"


def networks(program: Program) -> str:
    """A class that holds several networks."""
    inits = [f"self.{name} = {graph.class_name}()" for name, graph in program.networks.items()]
    return f'''
class {shared.container(program)}(nn.Module):
    """The networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
{indented(inits)}
'''


def step(
    program: Program, precision: Precision, *, observe: bool = False, strategy: str = "fused"
) -> tuple[str, list[str]]:
    """Losses, learning rates, optimizers and the training step."""
    single = len(program.updates) == 1
    helpers: list[str] = []
    decorator = "\n@torch.compile" if strategy in ("compiled", *GRAPHS) else ""
    parts = [decorator + loss(program, update, observe=observe) for update in program.updates]
    for update in program.updates:
        parts.append(f"""
def {rate_name(program, update)}(step: int) -> float:
    {shared.schedule_summary(update)}
{indented(training.schedule(update.schedule, update.optimizer.learning_rate), 4)}
""")
    made = optimizers(program)
    rates = {u.name: rate_name(program, u) for u in program.updates}
    losses = {u.name: shared.loss_name(program, u) for u in program.updates}
    if strategy in GRAPHS:
        text, helpers = lanes.capture_step(program, losses, rates, timed=strategy == lanes.AUTOTUNED)
        return "\n\n".join([*parts, lanes.on_device(program, made, rates), text]), helpers
    parts.append(made.replace(", fused=True", "") if strategy == "eager" else made)
    if strategy in lanes.COMPILED:
        text, helpers = lanes.step(program, losses, rates, strategy, precision.dtype)
        return "\n\n".join([*parts, text]), helpers
    cls = shared.container(program)
    lines: list[str] = []
    for update in program.updates:
        target, name = training.moved(program, update), shared.loss_name(program, update)
        variable = "optimizer" if single else f'optimizers["{update.name}"]'
        result = "loss" if single else f'losses["{update.name}"]'
        clipping, used = training.clip(update, f"{target}.parameters()")
        helpers += used
        seen = []
        if observe:
            # Copies: clipping changes gradients in place.
            seen = [
                "gradients = {",
                "    name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None",
                "}",
                f'observed["{update.name}"] = {{"values": values, "gradients": gradients}}',
            ]
        lines += [
            f"for group in {variable}.param_groups:",
            f'    group["lr"] = {rate_name(program, update)}(step)',
            f"{variable}.zero_grad()",
            f"loss{', values' if observe else ''} = {name}(model, batch)",
            "loss.backward()",
            *seen,
            *clipping,
            f"{variable}.step()",
            *([] if single else [f"{result} = loss.detach()"]),
        ]
    also = ", observed" if observe else ""
    lines = ["observed = {}", *lines] if observe else lines
    if single:
        kind = returned("Tensor", observe=observe)
        signature = f"model: {cls}, optimizer: torch.optim.Optimizer, step: int, batch: dict) -> {kind}"
        doc, lines = (
            f"One update; returns the loss before it{OBSERVED if observe else ''}.",
            [
                *lines,
                f"return loss.detach(){also}",
            ],
        )
    else:
        kind = returned("dict[str, Tensor]", observe=observe)
        signature = f"model: {cls}, optimizers: dict[str, torch.optim.Optimizer], step: int, batch: dict) -> {kind}"
        doc = f"One update after another; returns the loss before each{OBSERVED if observe else ''}."
        lines = ["losses = {}", *lines, f"return losses{also}"]
    parts.append(f'''
def train_step({signature}:
    """{doc}"""
{indented(lines, 4)}
''')
    return "\n\n".join(parts), helpers


def loss(program: Program, update: Update, *, observe: bool = False) -> str:
    """The function of one update's loss."""
    lines: list[str] = ["values = {}"] if observe else []
    for site in update.calls:
        line = f"{shared.result(site, observe=observe)} = {shared.call_site(program, site)}"
        # Nothing that this update moves lies behind the value: no graph is kept for it.
        lines += [line] if site.moved else ["with torch.no_grad():", f"    {line}"]
    terms = [(term.loss.weight, training.LOSSES[term.loss.kind](term)) for term in update.terms]
    return f"""
def {shared.loss_name(program, update)}(model: {shared.container(program)}, batch: dict) -> {returned("Tensor", observe=observe)}:
{indented(lines, 4)}
    return {shared.weighted(terms)}{", values" if observe else ""}
"""


def optimizers(program: Program) -> str:
    """The function that makes the optimizer, or one for each update."""
    cls, single = shared.container(program), len(program.updates) == 1
    lines: list[str] = []
    made: list[str] = []
    tables: list[str] = []
    for update in program.updates:
        before, text = training.optimizer(
            program, update, training.moved(program, update), f"{rate_name(program, update)}(0)"
        )
        if spared := training.no_decay(program, update):
            prefix = f"{update.over[0]}." if len(program.networks) > 1 and len(update.over) == 1 else ""
            where = slots(program)
            names = ", ".join(f'"{where[name].path.removeprefix(prefix)}"' for name in spared)
            table = "NO_DECAY" if single else f"NO_DECAY_{update.name.upper()}"
            before = [line.replace("NO_DECAY", table) for line in before]
            tables.append(f"# Weight decay spares these.\n{table} = {{{names}}}\n")
            before = (
                [re.sub(r"(?<!\.)\b(parameters|groups)\b(?!\()", rf"{update.name}_\1", line) for line in before]
                if not single
                else before
            )
            text = text if single else text.replace("(groups,", f"({update.name}_groups,")
        lines += before
        made.append(f"return {text}" if single else f'"{update.name}": {text},')
    if single:
        name, kind, lines = "make_optimizer", "torch.optim.Optimizer", [*lines, *made]
    else:
        name, kind = "make_optimizers", "dict[str, torch.optim.Optimizer]"
        lines = [*lines, "return {", *made, "}"]
    head = "\n\n".join(tables)
    return f"{head}\n\ndef {name}(model: {cls}) -> {kind}:\n{indented(lines, 4)}\n"


def rate_name(program: Program, update: Update) -> str:
    """The function of one update's learning rate."""
    return "learning_rate" if len(program.updates) == 1 else f"{update.name}_learning_rate"


def slots(program: Program) -> dict[str, Slot]:
    """Canonical name -> the name in the model's `state_dict`."""
    return shared.slots(program, layers.parameters, ".")


def tables(program: Program) -> str:
    """PARAMETERS and STATISTICS."""
    learned, running = shared.split_tables(program, slots(program))
    axes = "the axes that take the canonical array to PyTorch's"
    text = shared.table("PARAMETERS", learned, f"canonical name -> (PyTorch's name, {axes})")
    return text + shared.table("STATISTICS", running, "the same for running statistics")


def running(program: Program, threads: int, *, observe: bool = False, strategy: str = "fused") -> str:
    """Loading parameters and batches, and `main`."""
    cls, single = shared.container(program), len(program.updates) == 1
    rows_of, sources = shared.batch_sources(program)
    rows = []
    for name, column in program.fields.items():
        long = ".long()" if column.dtype == "int" else ""
        rows.append(f'"{name}": torch.from_numpy({sources[name]}){long}.to(DEVICE),')
    if program.masks:
        rows.append(f'"masks": to_tensors({sources["masks"]}),')
        to_tensors = """
def to_tensors(masks: dict) -> dict:
    return {
        name: to_tensors(mask) if isinstance(mask, dict) else torch.from_numpy(mask).to(DEVICE)
        for name, mask in masks.items()
    }
"""
    else:
        to_tensors = ""
    optimizer = "optimizer" if single else "optimizers"
    show = "loss.item()" if single else "*(loss.item() for loss in losses.values())"
    losses = f"{'loss' if single else 'losses'}{', _' if observe else ''}"
    loop = [
        'for step in range(len(inputs["order"])):',
        f"    {losses} = train_step(model, {optimizer}, step, load_batch(inputs, step))",
        f"    print(step + 1, {show})",
    ]
    return f'''
def load_parameters(model: {cls}, arrays: dict[str, np.ndarray]) -> None:
    """Set every parameter and statistic from its canonical array."""
    table, state = PARAMETERS | STATISTICS, model.state_dict()
    if arrays.keys() != table.keys():
        raise ValueError(f"names that only the model or the arrays have: {{sorted(arrays.keys() ^ table.keys())}}")
    for name, (path, axes) in table.items():
        tensor = state[path].permute(np.argsort(axes).tolist())
        array = torch.from_numpy(arrays[name])
        if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"{{name}}: the model has {{tuple(tensor.shape)}} of {{tensor.dtype}}, "
                f"the array is {{tuple(array.shape)}} of {{array.dtype}}"
            )
        tensor.copy_(array)

{to_tensors}

def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = {rows_of}
    return {{
{indented(rows)}
    }}


def main(run: Path) -> None:
    torch.set_num_threads({threads})
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(run / "inputs" / "batches.safetensors")
    model = {cls}().to(DEVICE)
    load_parameters(model, load_file(run / "inputs" / "parameters.safetensors"))
    {optimizer} = make_{optimizer}(model)
{indented(lanes.running(program, strategy) if strategy in (*lanes.COMPILED, *GRAPHS) else loop, 4)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
'''
