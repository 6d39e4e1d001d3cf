"""Emitted programs: golden, formatted, standalone, and deaf to hostile specs. Needs no framework."""

import ast
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import golden
import pytest
import reserved
from build import program_of
from cases import CASES, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from ruff import find_ruff_bin

from harness import api, emit, names, spec, syntax
from harness.backend import BACKENDS
from harness.errors import SpecError
from harness.graph import Program

SPECS = sorted(path.stem for path in spec.directory().glob("*.yaml"))
ALLOWED = {
    "torch": {"torch"}, "tensorflow": {"tensorflow", "keras"}, "jax": {"jax", "flax", "optax"},
}  # fmt: skip


@pytest.fixture(scope="module")
def emitted() -> dict[str, str]:
    return golden.programs()


def test_programs_are_the_golden_ones(emitted: dict[str, str]) -> None:
    for name, text in emitted.items():
        path = golden.FOLDER / name
        assert path.exists(), f"{name} is not in tests/golden: nox -s golden -- --write, and review it"
        assert path.read_text(encoding="utf-8") == text, f"{name} changed: nox -s golden -- --write, and review it"
    assert {path.name for path in golden.FOLDER.glob("*.py")} == set(emitted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_pass_ruff(backend: str, emitted: dict[str, str], tmp_path: Path) -> None:
    for name, text in emitted.items():
        if name.endswith(f"_{backend}.py"):
            (tmp_path / name).write_text(text)
    for arguments in (["check"], ["format", "--check", "--line-length", "100"]):
        done = subprocess.run(
            [find_ruff_bin(), *arguments, "--isolated", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_programs_import_their_framework_numpy_and_safetensors_alone(emitted: dict[str, str]) -> None:
    import sys  # noqa: PLC0415

    for name, text in emitted.items():
        imported = {
            alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names
        }
        imported |= {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
        roots = {module.partition(".")[0] for module in imported} - sys.stdlib_module_names
        backend = name.removesuffix(".py").rpartition("_")[2]
        assert roots <= ALLOWED[backend] | {"numpy", "safetensors"}, name


@cache
def program_of_case(case: str) -> Program:
    """Reading YAML takes longer than emitting, and the program is the same for every backend."""
    return program_of(spec_of(CASES[case]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_every_case_is_emitted_as_valid_python(backend: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib  # noqa: PLC0415

    monkeypatch.setattr(emit, "formatted", lambda text: text)  # tested by the golden programs; slow in hundreds
    program = program_of_case(case)
    text = importlib.import_module(f"backends.{backend}.emit").emit(program)
    classes = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    assert "Net" in classes
    assert reserved.found(program, text) <= names.TAKEN, "python tests/reserved.py --write"


def test_every_op_has_a_case_and_a_lowering_in_every_backend() -> None:
    import importlib  # noqa: PLC0415

    from harness.ops import OPS  # noqa: PLC0415

    cased = {kind for case in CASES.values() for kind in _kinds(case.layers)}
    assert set(OPS) <= cased, f"no case in tests/cases.py for: {set(OPS) - cased}"
    for backend in BACKENDS:
        layers = importlib.import_module(f"backends.{backend}.layers")
        missing = [kind for kind in OPS if not callable(getattr(layers, kind, None))]
        assert not missing, f"backends/{backend}/layers.py has no lowering for: {missing}"


def _kinds(layers: object) -> set[str]:
    found: set[str] = set()
    for layer in layers if isinstance(layers, (list, tuple)) else ():
        if isinstance(layer, str):
            found.add(layer)
            continue
        if not isinstance(layer, dict):
            continue  # `reshape: [2, 2, 6]`
        ((kind, arguments),) = layer.items()
        found.add(kind)
        inner = (
            arguments
            if isinstance(arguments, list)
            else [*arguments.get("layers", ()), *arguments.get("shortcut", ())]
            if isinstance(arguments, dict)
            else ()
        )
        found |= _kinds(inner)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_the_names_that_programs_contain_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "formatted", lambda text: text)
    program = api.load(name).compile()
    for text in reserved.texts(program):
        assert reserved.found(program, text) <= names.TAKEN, "python tests/reserved.py --write"


def test_helpers_of_every_strategy_are_taken() -> None:
    own = reserved.helpers()
    assert {"TransposedDense", "Attention", "clip_by_global_norm"} <= own
    assert own <= names.TAKEN, "python tests/reserved.py --write"


HOSTILE = [
    "x; import os",
    "x\nimport os",
    "__import__('os')",
    'a"b',
    "a'b",
    "a\\b",
    "é",
    "",
    "1a",
    "lambda",
    "self.x",
    "a b",
    "x)",
    "{x}",
    "%s",
    "None",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["spec", "layer", "network", "input", "update", "value", "field"])
def test_hostile_names_are_refused_wherever_they_stand(name: str, place: str) -> None:
    text = json.loads(json.dumps(spec_of(CASES["dense"])))
    (update,) = text["training"]["updates"]
    if place == "spec":
        text["name"] = name
    elif place == "layer":
        text["networks"]["net"]["layers"][0]["dense"]["name"] = name
    elif place == "network":
        text["networks"] = {name: text["networks"]["net"]}
    elif place == "input":
        text["networks"]["net"]["inputs"] = [name]
    elif place == "update":
        update["name"] = name
    elif place == "value":
        update["values"] = {name: "net(x)"}
    else:
        text["data"]["values"][name] = text["data"]["values"].pop("y")
    with pytest.raises(SpecError):
        program_of(text)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_prose_from_a_spec_stays_in_the_docstring(about: str) -> None:
    text = spec_of(CASES["dense"]) | {"about": about + '""" + __import__("os").getcwd() + """'}
    try:
        program = program_of(text)
    except SpecError:
        return  # text that YAML itself cannot hold
    for backend in BACKENDS:
        module = __import__(f"backends.{backend}.emit", fromlist=["emit"])
        tree = ast.parse(module.emit(program))
        assert ast.get_docstring(tree) is not None
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not any("__import__" in call or "getcwd" in call for call in calls)


def test_layer_names_that_would_clash_with_the_chain_are_kept_apart() -> None:
    text = spec_of(CASES["dense"])
    layers = [
        {"dense": {"units": 3, "name": "y"}},
        {"tanh": {"name": "z"}},
        {"sigmoid": {"inputs": "y", "name": "entry2"}},
        {"add": {"inputs": ["y", "z", "entry2"]}},
    ]
    text["networks"] = {"net": {"inputs": ["x"], "layers": layers}}
    graph = program_of(text).networks["net"]
    used = emit.variables(graph)
    alive = [used[name] for name in ("y", "z", "entry2")]
    assert len(set(alive)) == 3


def test_the_same_spec_is_emitted_to_the_same_text() -> None:
    experiment = api.load("digits_cnn")
    assert experiment.emit("torch") == experiment.emit("torch")
    assert experiment.emit("torch") != experiment.emit("torch", precision="float64")


def test_seeds_change_masks_and_nothing_else() -> None:
    experiment = api.load("digits_cnn")
    one, two = (experiment.emit("torch", seed=seed).splitlines() for seed in (1, 2))
    differing = [a for a, b in zip(one, two, strict=True) if a != b]
    assert len(differing) == 1
    assert "dropout1" in differing[0]


@pytest.fixture
def eager_to_switch() -> Iterator[None]:
    """Garbage is collected while trees are built, and a collection runs Python, where threads may switch."""

    def collected(_phase: str, _info: dict[str, int]) -> None:
        sum(range(200))

    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(collected)
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.callbacks.remove(collected)


@pytest.mark.usefixtures("eager_to_switch")
def test_threads_may_build_trees_at_once() -> None:
    # With ast.parse itself, Python 3.11 raises a SystemError in most runs of this.
    text = Path(emit.__file__).read_text(encoding="utf-8")
    wanted = ast.dump(ast.parse(text))
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(syntax.parse, [text] * 40))
    assert {ast.dump(tree) for tree in trees} == {wanted}


def test_no_other_module_builds_trees() -> None:
    root = Path(syntax.__file__).parents[1]
    files = [*(root / "harness").rglob("*.py"), *(root / "backends").rglob("*.py")]
    assert len(files) > 100
    assert [path.name for path in files if "ast.parse(" in path.read_text(encoding="utf-8")] == ["syntax.py"]
