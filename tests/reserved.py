"""The names that emitted programs contain, read off the programs, into harness/reserved.py. `--write` writes it.

Every op, loss, rule and strategy is emitted, plain and observed, in every precision, and each helper's own text is
read; what a spec's names would shadow there is collected. What the frameworks' own classes call their attributes is
asked of them, where they are installed.
"""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from build import INSTALLED, program_of
from cases import CASES, spec_of

import backends
from harness import api, emit, reserved, spec
from harness.backend import BACKENDS
from harness.emit import container, graphs
from harness.graph import Program
from harness.lanes import PLAIN, STRATEGIES, why_not

FILE = Path(reserved.__file__)
PRECISIONS = ("float64", "float32", "bfloat16")
ASKED = {
    "torch": "import torch; own = [torch.nn.Module(), torch.nn.ModuleDict()]",
    "tensorflow": """
import keras

class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.only = keras.layers.Dense(1)
    def call(self, x):
        return self.only(x)

model = Own()
model(keras.ops.zeros((1, 1)))
own = [model, keras.Model(), keras.layers.Layer()]
""",
    "jax": "from flax import nnx; own = [nnx.Module()]",
}
"""What makes the objects that a layer's name becomes an attribute of, in each framework."""
NOT_THEIRS = {"only"}
"""Attributes of those objects that are our own."""

RULES: list[dict[str, Any]] = [
    {"loss": {"mae": {"predictions": "net(x)", "targets": "y"}}, "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}}, "schedule": {"step": {"every": 2, "multiply_by": 0.5, "warmup": 3}}, "clip": {"value": 0.01}},
    {"loss": {"sigmoid_cross_entropy": {"logits": "net(x)", "targets": "y", "label_smoothing": 0.1}}, "optimizer": {"adam": {"learning_rate": 0.05}}, "schedule": {"cosine": {"warmup": 2, "final": 0.1}}, "clip": {"global_norm": 0.01}},
    {"loss": {"sigmoid_cross_entropy": {"logits": "net(x)", "targets": 1, "label_smoothing": 0.2}}, "optimizer": {"adamw": {"learning_rate": 0.05, "weight_decay": 0.3}}, "schedule": {"constant": {"warmup": 3}}},
    {"loss": {"mse": {"predictions": "net(x)", "targets": "y"}}, "optimizer": {"adamw": {"learning_rate": 0.05, "no_decay": []}}},
]  # fmt: skip
MARK = "qzupdate"
"""An update's name in the probes: what contains it is made of an update's name."""


def probes() -> Iterator[Program]:
    """Programs that together have everything that an emitter can write."""
    for case in CASES.values():
        yield program_of(spec_of(case))
    for path in sorted(spec.directory().glob("*.yaml")):
        yield api.load(path).compile()
    for rule in RULES:
        text: dict[str, Any] = json.loads(json.dumps(spec_of(CASES["dense"])))
        text["networks"]["net"]["layers"] = [{"dense": 4}, "tanh", {"dense": 1}]
        text["training"]["updates"] = [rule]
        yield program_of(text)
        text["training"]["updates"] = [rule | {"name": MARK}, rule | {"name": f"{MARK}2"}]
        yield program_of(text)
        if "clip" in rule:
            continue
        text["networks"]["other"] = text["networks"]["net"]
        elsewhere = json.loads(json.dumps(rule).replace("net(x)", "other(x)"))
        text["training"]["updates"] = [
            rule | {"name": MARK, "over": "net"},
            elsewhere | {"name": f"{MARK}2", "over": "other"},
        ]
        yield program_of(text)


def texts(program: Program) -> Iterator[str]:
    """A program in every backend, strategy, precision and form in which it can be emitted."""
    for backend in BACKENDS:
        emitter = importlib.import_module(f"backends.{backend}.emit")
        yield emitter.emit(program, "float32", observe=True)
        for (of, name), strategy in STRATEGIES.items():
            for precision in PRECISIONS:
                if of == backend and why_not(program, strategy, precision) is None:
                    yield (
                        emitter.emit(program, precision, strategy=name)
                        if name != PLAIN[of]
                        else emitter.emit(program, precision)
                    )


def found(program: Program, text: str) -> set[str]:
    """The names at the top of a program and in the functions that a spec's names are variables of; not the spec's own."""
    tree = ast.parse(text)
    classes = {graph.class_name for graph in graphs(program)} | {container(program)}
    names = top(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            names |= inside(node)
        if isinstance(node, ast.FunctionDef) and (node.name == "loss_fn" or node.name.endswith("_loss")):
            names |= inside(node)
    own = classes | {site.variable for update in program.updates for site in update.calls} | set(program.networks)
    own |= {name for graph in graphs(program) for name in (*graph.inputs, *(node.name for node in graph.nodes))}
    own |= {"x", "y", "z"}  # what `harness.emit.variables` itself gives out
    own |= {f"{update.name}_{what}" for update in program.updates for what in ("loss", "learning_rate")}
    own |= {f"NO_DECAY_{update.name.upper()}" for update in program.updates}
    camel = ["".join(part[:1].upper() + part[1:] for part in update.name.split("_")) for update in program.updates]
    return names - own - {f"{name}LearningRate" for name in camel}


def top(tree: ast.Module) -> set[str]:
    """What a module's own statements bind."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {
                item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)
            }
    return names


def inside(tree: ast.AST) -> set[str]:
    """Every name in a function or a class, and every parameter."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def helpers() -> set[str]:
    """What the texts bind that the backends' modules keep in tables: the helpers, of whichever strategy."""
    names: set[str] = set()
    for module in pkgutil.walk_packages(backends.__path__, "backends."):
        if module.name.rpartition(".")[2] in ("session", "export"):
            continue  # these import their framework
        for table in vars(importlib.import_module(module.name)).values():
            for text in table.values() if isinstance(table, dict) else ():
                if isinstance(text, str) and "\n" in text:
                    try:
                        names |= top(ast.parse(dedent(text)))
                    except SyntaxError:
                        continue  # a piece of a line
    return names


def programs() -> tuple[set[str], set[str]]:
    """The names that programs contain, and what they make of an update's name, `{}` in its place."""
    formatted, emit.formatted = emit.formatted, lambda text: text  # a process each, for the same names
    try:
        names, forms = helpers(), set()
        for program in probes():
            for text in texts(program):
                names |= found(program, text)
                every = inside(ast.parse(text)) | top(ast.parse(text)) if MARK in text else set()
                for name in every:
                    for said in (MARK, MARK.upper(), MARK.capitalize()):
                        if said in name and f"{said}2" not in name:
                            case = {MARK: "{}", MARK.upper(): "{upper}", MARK.capitalize(): "{camel}"}[said]
                            forms.add(name.replace(said, case))
    finally:
        emit.formatted = formatted
    return {name for name in names if MARK not in name.lower()}, forms


def attributes(backend: str) -> set[str]:
    """What a framework's own classes call their attributes, asked of it in a process of its own."""
    code = f"{dedent(ASKED[backend])}\nprint(*sorted({{n for o in own for n in dir(o) if not n.startswith('_')}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) - NOT_THEIRS


def written() -> str:
    """The file's text. Frameworks that are not installed keep the attributes that they have in it."""
    names, forms = programs()
    known = set(reserved.ATTRIBUTES) if set(INSTALLED) != set(BACKENDS) else set()
    known = known.union(*(attributes(backend) for backend in INSTALLED))

    def table(name: str, about: str, items: set[str]) -> str:
        rows = "".join(f'    "{item}",\n' for item in sorted(items))
        return f'{name} = frozenset(\n    [\n{rows}    ]\n)\n"""{about}"""\n'.replace('    "', '        "')

    return (
        '"""Names that emitted programs and the frameworks use. Written by `python tests/reserved.py --write`; not by hand."""\n\n'
        + table(
            "PROGRAMS",
            "What programs bind at their top, and in the functions where a spec's names are variables.",
            names,
        )
        + "\n"
        + table(
            "OF_UPDATES", "What programs make of an update's name: as it is, in capitals, and in camel case.", forms
        )
        + "\n"
        + table("ATTRIBUTES", "What the frameworks' own modules, layers and models call their attributes.", known)
    )


def main() -> int:
    """Compare or write. 1 where it differs."""
    text = written()
    same = FILE.read_text(encoding="utf-8") == text
    if "--write" in sys.argv:
        FILE.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{FILE.name} {'is what programs say' if same else 'differs from what programs say'}\n")
    return 0 if same or "--write" in sys.argv else 1


if __name__ == "__main__":
    sys.exit(main())
