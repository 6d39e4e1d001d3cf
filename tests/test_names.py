"""A name is refused with a sentence, or the program of every backend works: nothing in it is shadowed."""

import ast
import builtins
import importlib
import json
import keyword
import re
import symtable
from pathlib import Path
from typing import Any

import pytest
from build import EACH, live, program_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import emit, initial, names, reference
from harness.backend import BACKENDS
from harness.errors import SpecError
from harness.graph import Program
from harness.lanes import STRATEGIES, why_not
from harness.reserved import ATTRIBUTES, OF_UPDATES, PROGRAMS

WORDS = [
    "f", "F", "none", "true", "false", "None", "x", "y", "z", "values", "value", "inner", "name", "DEVICE", "device", "PARAMETERS",
    "parameters", "statistics", "STATISTICS", "norm", "activation", "input", "output", "loss", "losses", "state", "step", "batch",
    "masks", "order", "model", "self", "training", "torch", "keras", "jax", "layers", "weights", "items", "update", "groups", "net",
    "transposed_dense", "trainer", "path", "conv", "conv1", "dense", "dense1", "logits", "logits2", "predictions", "list", "len",
    "dict", "observed", "gradients", "a_", "output_", "values_", "match", "type", "class", "no_decay", "learning_rate", "loss_fn",
]  # fmt: skip
POOL = sorted({*WORDS, *keyword.kwlist, *dir(builtins), *PROGRAMS, *ATTRIBUTES, *(w.lower() for w in PROGRAMS)} - {""})
NAME = st.one_of(st.sampled_from(WORDS), st.sampled_from(POOL))


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """A spec of two networks, or one, with a block, five values alive at once, and names from the pool everywhere."""
    one = draw(st.booleans())
    first, second = draw(NAME), draw(NAME)
    inputs = [draw(NAME), draw(NAME)]
    a, b, c, d, e = (draw(NAME) for _ in range(5))
    field, target, value, block = draw(NAME), draw(NAME), draw(NAME), draw(NAME)
    layers = [
        {"dense": {"units": 3, "name": a, "inputs": inputs[0]}}, {"dense": {"units": 3, "name": b, "inputs": inputs[1]}},
        {"tanh": {"name": c, "inputs": a}}, {"sigmoid": {"name": d, "inputs": a}}, {block: {"name": e, "inputs": b}},
        {"add": {"inputs": [a, b, c, d, e]}}, {"dropout": 0.5}, {"dense": 1},
    ]  # fmt: skip
    adamw = {"adamw": {"learning_rate": 0.01}}
    updates = [{"name": draw(NAME), "values": {value: f"'{first}({field}, {field})'"}, "loss": {"mse": {"predictions": value, "targets": target}}, "over": first, "optimizer": adamw}]  # fmt: skip
    updates[0]["values"] = {value: f"{first}({field}, {field})"}
    networks = {first: {"inputs": inputs, "layers": layers}}
    if not one:
        networks[second] = {"inputs": [inputs[1]], "layers": [{"dense": 2}, "relu", {"dense": 1}]}
        updates.append({"name": draw(NAME), "loss": {"mse": {"predictions": f"{second}({field})", "targets": f"{first}({field}, {field})"}}, "over": second, "optimizer": adamw})  # fmt: skip
    return {
        "name": draw(NAME), "data": {"dataset": "inline", "batch": 2, "values": {field: [[0.5, 1.5], [2.5, 0.25]], target: [[1.5], [0.5]]}},
        "blocks": {block: {"layers": [{"dense": {"units": 3, "name": draw(NAME)}}, "tanh"]}},
        "networks": networks, "training": {"steps": 2, "updates": updates},
    }  # fmt: skip


def accepted(text: dict[str, Any]) -> Program | None:
    try:
        return program_of(text)
    except SpecError as error:
        assert all(problem.message for problem in error.problems)  # noqa: PT017 - the other way is an accepted spec
        return None


FORMS = [(backend, None) for backend in BACKENDS] + list(STRATEGIES)
"""Every backend's observed program, and every strategy."""


def text_of(program: Program, form: tuple[str, str | None]) -> str | None:
    """A program in one form; None where it cannot be run so."""
    backend, name = form
    emitter = importlib.import_module(f"backends.{backend}.emit")
    if name is None:
        return str(emitter.emit(program, "float64", observe=True))
    return str(emitter.emit(program, strategy=name)) if why_not(program, STRATEGIES[form]) is None else None


def texts(program: Program) -> list[str]:
    return [text for form in FORMS if (text := text_of(program, form)) is not None]


def shadowed(text: str) -> set[str]:
    """Module-level names, and builtins that the module uses, that are bound anew in a function or class, or twice at the top."""
    tree = ast.parse(text)
    tops = [
        bound
        for node in tree.body
        for bound in (
            [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            else [(alias.asname or alias.name).partition(".")[0] for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom))
            else [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []
        )
    ]  # fmt: skip
    twice = {name for name in tops if tops.count(name) > 1}
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    known = set(tops) | (read & set(dir(builtins)))
    anew: set[str] = set()

    def visit(table: symtable.SymbolTable) -> None:
        if table.get_type() == "function":
            anew.update(s.get_name() for s in table.get_symbols() if s.is_local() and s.get_name() in known)
        for child in table.get_children():
            visit(child)

    visit(symtable.symtable(text, "program.py", "exec"))
    return twice | anew


def twins(text: str) -> set[str]:
    """Attributes that one `__init__` sets twice, and parameters that one function has twice."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            targets = [ast.unparse(t) for s in node.body if isinstance(s, ast.Assign) for t in s.targets]
            found |= {t for t in targets if targets.count(t) > 1}
    return found


ORDINARY = {
    "name": "ordinary", "data": {"dataset": "inline", "batch": 2, "values": {"q": [[0.5, 1.5], [2.5, 0.25]], "r": [[1.5], [0.5]]}},
    "blocks": {"part": {"layers": [{"dense": 3}, "tanh"]}},
    "networks": {
        "first": {"inputs": ["q1", "q2"], "layers": [
            {"dense": {"units": 3, "name": "l1", "inputs": "q1"}}, {"dense": {"units": 3, "name": "l2", "inputs": "q2"}},
            {"tanh": {"name": "l3", "inputs": "l1"}}, {"sigmoid": {"name": "l4", "inputs": "l1"}}, {"part": {"name": "l5", "inputs": "l2"}},
            {"add": {"inputs": ["l1", "l2", "l3", "l4", "l5"]}}, {"dropout": 0.5}, {"dense": 1}]},
        "second": {"inputs": ["q1"], "layers": [{"dense": 2}, "relu", {"dense": 1}]},
    },
    "training": {"steps": 2, "updates": [
        {"name": "u1", "loss": {"mse": {"predictions": "first(q, q)", "targets": "r"}}, "over": "first", "optimizer": {"adamw": {"learning_rate": 0.01}}},
        {"name": "u2", "loss": {"mse": {"predictions": "second(q)", "targets": "first(q, q)"}}, "over": "second", "optimizer": {"adamw": {"learning_rate": 0.01}}}]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _unformatted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "formatted", lambda text: text)  # tested by the golden programs


def test_programs_shadow_nothing_by_themselves() -> None:
    for text in texts(program_of(ORDINARY)):
        assert not shadowed(text)
    assert shadowed("import math\ndef f(math): return math\n") == {"math"}
    assert shadowed("def f(): return len(x)\ndef g(len): return len\n") == {"len"}
    assert shadowed("def f(): pass\nf = 1\n") == {"f"}
    assert twins("class A:\n    def __init__(self):\n        self.a = 1\n        self.a = 2\n") == {"self.a"}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(specs(), st.sampled_from(FORMS))
def test_a_name_is_refused_or_shadows_nothing(text: dict[str, Any], form: tuple[str, str | None]) -> None:
    program = accepted(text)
    if program is None or (source := text_of(program, form)) is None:
        return
    assert not shadowed(source)
    assert not twins(source)


def put(place: str, name: str) -> dict[str, Any]:
    """The ordinary spec with one name changed everywhere."""
    found: dict[str, Any] = json.loads(re.sub(rf"\b{PLACES[place]}\b", name, json.dumps(ORDINARY)))
    return found


PLACES = {
    "network": "first", "other network": "second", "input": "q1", "layer": "l1", "layer in the open": "l4", "block": "part",
    "field": "q", "update": "u1", "spec": "ordinary", "block's layer": "l5",
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_names_of_the_pool_in_every_place(place: str) -> None:
    turn = list(PLACES).index(place)
    tried, kept = [*WORDS, *POOL[::8]][turn % 4 :: 4], 0
    for i, name in enumerate(tried):
        program = accepted(put(place, name))
        if program is None:
            continue
        kept += 1
        form = FORMS[(i + 3 * turn) % len(FORMS)]
        if (source := text_of(program, form)) is not None:
            assert not shadowed(source), (form, name)
            assert not twins(source), (form, name)
    assert kept > len(tried) / 3, "most words are names like others"


@pytest.mark.parametrize("word", ["norm", "activation", "input", "output", "values", "state", "loss", "step", "parameters", "layers", "f"])  # fmt: skip
def test_ordinary_words_are_names_of_layers_inputs_and_values(word: str) -> None:
    assert accepted(put("layer", word)) is not None
    assert accepted(put("input", word)) is not None


@pytest.mark.parametrize(
    ("place", "name", "expected"),
    [
        ("network", "forward", "the frameworks' own models have 'forward' for something else; choose another name, like 'forward_net'"),
        ("network", "values", "the frameworks' own models have 'values' for something else"),
        ("update", "U2", "'U2' and 'u2' are both 'NO_DECAY_U2' in programs; choose another name for one"),
        ("field", "masks", "a field cannot be called 'masks'"),
        ("layer", "class", "is no Python keyword; got 'class'"),
        ("layer", "_a", "starts with a letter"),
        ("layer", "a" * 81, "a name has 80 characters at most, got 81"),
        ("layer", "l2", "the name 'l2' is taken already"),
        ("layer", "q1", "the name 'q1' is taken already"),
        ("block", "dense", "block 'dense' has the name of an op; choose another"),
    ],
)  # fmt: skip
def test_a_refused_name_says_why(place: str, name: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        program_of(put(place, name))
    assert expected in str(caught.value)


def test_a_block_is_used_where_a_layer_can_stand_and_nowhere_else() -> None:
    text = put("block", "q1")
    program = program_of(text)
    assert program.networks["first"].inputs == ("q1", "q2")
    assert program.networks["first"].nodes[0].inputs == ("q1",)
    text = put("block", "l3")
    assert program_of(text).networks["first"].nodes[-3].inputs == ("l1", "l2", "l3", "l4", "l5")


def test_two_networks_and_blocks_may_be_of_one_name_but_for_its_case() -> None:
    for place in ("block", "other network"):
        program = program_of(put(place, "First"))
        classes = [graph.class_name for graph in emit.graphs(program)]
        assert len(set(classes)) == len(classes) == 3


def test_programs_make_of_an_updates_name_what_is_known() -> None:
    assert {"{}_loss", "{}_learning_rate", "NO_DECAY_{upper}", "{camel}LearningRate"} <= OF_UPDATES
    clash = put("block", "u1_learning_rate")
    program = program_of(clash)
    assert names.of_update("u1").isdisjoint(graph.class_name for graph in emit.graphs(program))


SEVERAL = [
    {"input": "values", "layer": "output", "block": "none", "spec": "f", "network": "groups", "layer in the open": "name"},
    {"input": "f", "layer": "training", "block": "lstms", "layer in the open": "torch", "update": "x", "network": "model", "block's layer": "input"},
]  # fmt: skip


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("several", SEVERAL)
def test_programs_with_such_names_train_as_the_reference_does(
    backend: str, several: dict[str, str], tmp_path: Path
) -> None:
    text = json.dumps(ORDINARY)
    for place, name in several.items():
        text = re.sub(rf"\b{PLACES[place]}\b", name, text)
    program = program_of(text)
    for observe in (False, True):
        found = live(backend, program, tmp_path, observe=observe)
        batch = {n: found.inputs[f"train.{n}"][found.inputs["order"][0]] for n in program.fields}
        expected = reference.loss(program, program.updates[0], found.parameters, batch, initial.masks(program, 0, 2))
        told = found.session.wait(found.session.step(0, found.session.batch(found.inputs, 0)))
        assert set(told) == {update.name for update in program.updates}
        assert abs(told[program.updates[0].name] - expected) < 1e-12, observe
