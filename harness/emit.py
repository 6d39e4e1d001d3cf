"""What the emitters share: nodes become lines, values get short names, masks and tables are written out.

Emitted text is built from small functions, one per op; what depends on the spec is decided here, never by a
condition in the emitted program. Text from a spec reaches it only as a checked identifier or as the `repr` of a literal.
"""

import ast
import hashlib
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from textwrap import indent, wrap

from ruff import find_ruff_bin

import harness
from harness import names as reserved
from harness.graph import BlockOp, CallSite, Graph, Node, Program, Ref, Term, Update
from harness.losses import SigmoidCrossEntropy
from harness.optimizers import Cosine, Step
from harness.syntax import parse, parse_expression

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Code:
    """One node in a backend's language."""

    call: str
    """The expression of its value."""
    init: str | None = None
    """The module that is constructed for it, assigned to the node's name."""
    setup: tuple[str, ...] = ()
    """Statements after that construction."""
    helpers: tuple[str, ...] = ()
    """The module-level helpers that it uses, by name."""


Lowering = Callable[..., Code]
Lowerings = Mapping[str, Lowering]
"""By kind of op."""


@dataclass(frozen=True)
class Slot:
    """Where a canonical parameter lives in a framework's model: path, and the axes that take it there."""

    path: str
    axes: Axes


def variables(graph: Graph) -> dict[str, str]:
    """The local variable of every value: x along a chain, y beside it where x is still needed, as a person writes.

    A variable is taken again as soon as nothing reads its old value any more; a fourth value alive at once
    is called by its node's name.
    """
    last: dict[str, int] = {graph.output: len(graph.nodes)}
    for i, node in enumerate(graph.nodes):
        for name in node.inputs:
            last[name] = max(last.get(name, -1), i)
    held = {name: name for name in graph.inputs}
    names = dict(held)
    for i, node in enumerate(graph.nodes):
        live = {held[name] for name in held if last.get(name, -1) > i}
        ending = [names[name] for name in node.inputs if last[name] == i and names[name] in ("x", "y", "z")]
        free = [v for v in (*ending, "x", "y", "z") if v not in live]
        names[node.name] = free[0] if free else reserved.variable(node.name, live)
        held = {name: v for name, v in held.items() if last.get(name, -1) > i and v != names[node.name]}
        held[node.name] = names[node.name]
    return names


def observed(node: Node, variable: str, value: str, call: str) -> list[str]:
    """A node's line in a program that returns every node's value: what it computes, and its entry in `values`.

    `value` is the variable's expression in the axes of a spec. A block returns its own nodes' values beside its own.
    """
    if isinstance(node.op, BlockOp):
        inner = f"{{f'{node.name}.{{name}}': value for name, value in inner.items()}}"
        return [f"{variable}, inner = {call}", f"values |= {inner}", f'values["{node.name}"] = {value}']
    return [f"{variable} = {call}", f'values["{node.name}"] = {value}']


def in_mixed_precision(texts: Iterable[str], replaced: Mapping[str, str], helpers: Mapping[str, str]) -> list[str]:
    """Classes and helpers with their products said as in mixed precision, behind the helpers that these need.

    `replaced`: by what a text says, what it says instead; `helpers` by name, in an order in which they can stand.
    """
    found = []
    for text in texts:
        said = text
        for plain, mixed in replaced.items():
            said = said.replace(plain, mixed)
        found.append(said)
    needed: set[str] = set()
    wanted = set().union(*(_names(text) for text in found))
    while new := wanted & helpers.keys() - needed:
        needed |= new
        wanted = set().union(*(_names(helpers[name]) for name in new))
    return [*(text for name, text in helpers.items() if name in needed), *found]


def _names(text: str) -> set[str]:
    """The names that a text of module-level statements reads by themselves, not as attributes."""
    return {node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name)}


def masked(graph: Graph) -> bool:
    """Whether a graph's forward pass takes dropout masks."""
    return bool(graph.masks)


def mask_of(node: Node) -> str:
    """The expression of a node's mask, None in evaluation."""
    return f'masks and masks["{node.name}"]'


def block(node: Node, *args: str) -> Code:
    """A node that is a module of its own: the same in every framework but for construction."""
    graph = node.op.graph if isinstance(node.op, BlockOp) else None
    if graph is None:
        raise TypeError(node.name)  # pragma: no cover
    given = (*args, mask_of(node)) if masked(graph) else args
    return Code(call=f"self.{node.name}({', '.join(given)})", init=f"{graph.class_name}()")


def graphs(program: Program) -> list[Graph]:
    """Every class that a program needs, blocks before what contains them, each once."""
    found: dict[str, Graph] = {}
    for network in program.networks.values():
        for graph in (*network.blocks, network):
            found.setdefault(graph.class_name, graph)
    return list(found.values())


def container(program: Program) -> str:
    """The name of the class of the whole model: the network's, or one that holds all networks."""
    if len(program.networks) == 1:
        return next(iter(program.networks.values())).class_name
    name = "".join(part.title() for part in program.name.split("_"))
    taken = {graph.class_name for graph in graphs(program)} | reserved.TAKEN
    taken |= {made for update in program.updates for made in reserved.of_update(update.name)}
    while name in taken or not name:
        name += "Networks"
    return name


def docstring(program: Program, framework: str, backend: str) -> str:
    """The head of an emitted program."""
    about = f"{program.about}\n\n" if program.about else ""
    about = "".join(c if c.isprintable() or c == "\n" else " " for c in about)
    about = about.replace("\\", "\\\\").replace('"', '\\"')
    return wrap_docstring(
        f"{program.name} in {framework}, compiled from a spec by harness {harness.__version__}.\n\n{about}"
        f"    python {program.name}_{backend}.py RUN_DIRECTORY\n\n"
        "trains it from the arrays in that directory: initial parameters, data, and which rows make each batch."
    )


def wrap_docstring(text: str, width: int = 100) -> str:
    """A docstring with its prose wrapped; indented lines stay as they are."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += [line] if line.startswith(" ") or not line else wrap(line, width, break_long_words=False)
    return '"""' + "\n".join(lines) + '\n"""'


def mask_key(seed: int, scope: str, layer: str) -> int:
    """The key of a layer's dropout masks: from the seed and the names, never from the order of calls."""
    return int.from_bytes(hashlib.sha256(f"{seed}/mask/{scope}/{layer}".encode()).digest()[:8], "little")


def masks_text(program: Program, dtype: str) -> str:
    """The table of dropout layers and the function that draws their masks: NumPy, the same in every program."""
    rows = []
    for scope, layers in program.masks.items():
        inner = ", ".join(
            f'"{layer}": ({mask_key(program.seed, scope, layer):#018x}, {shape!r}, {rate!r})'
            for layer, (shape, rate) in layers.items()
        )
        rows.append(f'    "{scope}": {{{inner}}},')
    table = "\n".join(rows)
    return f'''
# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {{
{table}
}}


def dropout_masks(step: int, batch: int) -> dict:
    """What dropout multiplies by at a step: 0, or 1 / (1 - rate). Shape: batch, then the layer's.

    Philox with the step as its counter, 16 bits a value: the same numbers in every framework.
    """
    masks: dict = {{}}
    for call, layers in DROPOUT.items():
        for path, (key, shape, rate) in layers.items():
            count = batch * math.prod(shape)
            words = np.random.Philox(key=key, counter=step << 64).random_raw(-(-count // 4))
            keep = words.view(np.uint16)[:count] >= round(rate * 2**16)
            *blocks, layer = path.split(".")
            inner = masks.setdefault(call, {{}})
            for name in blocks:
                inner = inner.setdefault(name, {{}})
            inner[layer] = (keep / (1 - rate)).astype(np.{dtype}).reshape(batch, *shape)
    return masks
'''


def table(name: str, rows: Mapping[str, Slot], comment: str) -> str:
    """A literal table canonical name -> (framework's path, axes)."""
    body = "\n".join(f'    "{canonical}": ("{slot.path}", {slot.axes!r}),' for canonical, slot in rows.items())
    return f"# {comment}\n{name} = {{\n{body}\n}}\n"


def split_tables(program: Program, slots: Mapping[str, Slot]) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """Learned parameters and running statistics apart."""
    parameters = program.parameters
    learned = {name: slot for name, slot in slots.items() if parameters[name].learned}
    return learned, {name: slot for name, slot in slots.items() if name not in learned}


def slots(program: Program, local: Callable[[Node], Mapping[str, Slot]], joint: str) -> dict[str, Slot]:
    """Canonical name -> where it lives, through blocks and networks. `joint` joins the steps of a path."""
    found: dict[str, Slot] = {}

    def visit(graph: Graph, canonical: str, path: str) -> None:
        for node in graph.nodes:
            if isinstance(node.op, BlockOp):
                visit(node.op.graph, f"{canonical}{node.name}.", f"{path}{node.name}{joint}")
                continue
            for name, slot in local(node).items():
                where = f"{path}{node.name}{joint}{slot.path}" if slot.path else f"{path}{node.name}"
                found[f"{canonical}{node.name}.{name}"] = Slot(where, slot.axes)

    for network, graph in program.networks.items():
        prefix = "" if len(program.networks) == 1 else network
        visit(graph, f"{prefix}." if prefix else "", f"{prefix}{joint}" if prefix else "")
    return {name: found[name] for name in program.parameters}


def ref(value: Ref) -> str:
    """What a call or a loss reads, as an expression."""
    match value.kind:
        case "field":
            return f'batch["{value.name}"]'
        case "number":
            return repr(value.number)
        case _:
            return value.name


def batch_sources(program: Program) -> tuple[str, dict[str, str]]:
    """In `load_batch`: the expression of a batch's rows, and of each of its entries on the host."""
    found = {}
    for name in program.fields:
        per_step = name in program.spec.data.noise
        found[name] = f'inputs["{name}"][step][: len(rows)]' if per_step else f'inputs["train.{name}"][rows]'
    if program.masks:
        found["masks"] = "dropout_masks(step, len(rows))"
    rows = 'inputs["order"][step]'
    if program.spec.data.last_batch == "keep":
        rows += "\n    rows = rows[rows >= 0]  # an epoch's last batch may be smaller"
    return rows, found


def call_site(program: Program, site: CallSite, extra: str = "") -> str:
    """`model(batch["image"], batch["masks"]["classifier"])`, or `model.generator(...)` where there are several."""
    given = [ref(argument) for argument in site.arguments]
    if masked(program.networks[site.network]):
        given.append(f'batch["masks"]["{site.scope}"]')
    given += [extra] if extra else []
    target = "model" if len(program.networks) == 1 else f"model.{site.network}"
    return f"{target}({', '.join(given)})"


def result(site: CallSite, *, observe: bool) -> str:
    """What a call's result is assigned to: its variable, and in an observed program every node's value beside it."""
    return f'{site.variable}, values["{site.variable}"]' if observe else site.variable


def smoothed_number(term: Term) -> float:
    """A constant sigmoid target after label smoothing."""
    smoothing = term.loss.label_smoothing if isinstance(term.loss, SigmoidCrossEntropy) else 0.0
    return float(f"{(1 - smoothing) * term.targets.number + smoothing / 2:.15g}")


def weighted(terms: Sequence[tuple[float, str]]) -> str:
    """The sum of an update's terms.

    >>> weighted([(1.0, "a"), (0.5, "b")])
    'a + 0.5 * b'
    """
    return " + ".join(text if weight == 1 else f"{weight!r} * {text}" for weight, text in terms)


def loss_name(program: Program, update: Update) -> str:
    """The function of an update's loss."""
    return "loss_fn" if len(program.updates) == 1 else f"{update.name}_loss"


def schedule_summary(update: Update) -> str:
    """The docstring of a learning-rate function."""
    schedule, rate = update.schedule, update.optimizer.learning_rate
    if isinstance(schedule, Cosine):
        text = f"cosine decay from {rate:g} to {rate * schedule.final:g} over {schedule.steps} updates"
    elif isinstance(schedule, Step):
        text = f"{rate:g}, times {schedule.multiply_by:g} every {schedule.every} updates"
    else:
        text = f"{rate:g} throughout"
    if schedule.warmup:
        text = f"linear warm-up from {rate * schedule.warmup_start:g} over {schedule.warmup} updates, then {text}"
    return f'"""{text[0].upper()}{text[1:]}; `step` counts from 0."""'


def primary(text: str) -> str:
    """An expression that a method can be called on, in parentheses where it needs them.

    >>> primary("F.relu(x)"), primary("x + y")
    ('F.relu(x)', '(x + y)')
    """
    body = parse_expression(text)
    return text if isinstance(body, (ast.Name, ast.Call, ast.Attribute, ast.Subscript)) else f"({text})"


def indented(lines: Iterable[str], by: int = 8) -> str:
    """Lines as the body of a function."""
    return "\n".join(indent(line, " " * by) for line in lines)


@lru_cache(maxsize=256)  # two processes a text, and a check asks for the same texts again and again
def formatted(text: str) -> str:
    """Text as `ruff format` writes it, unused imports removed and the rest sorted."""
    for arguments in (["check", "--fix", "--select", "F401,I", "--quiet"], ["format", "--quiet"]):
        done = subprocess.run(  # noqa: S603 - our own dependency, fixed arguments
            [find_ruff_bin(), *arguments, "--isolated", "--line-length", "100", "--stdin-filename", "program.py", "-"],
            input=text, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        if done.returncode:
            raise SyntaxError(f"the emitted program is not Python:\n{done.stdout}{done.stderr}")
        text = done.stdout
    return text
