"""Observed programs: every node's value and every gradient are the reference's, and training is not disturbed."""

import ast
import importlib
from functools import partial
from pathlib import Path

import golden
import numpy as np
import pytest
from build import EACH, Arrays, Live, drawn, live, program_of
from cases import CASES, CORNERS, ONE_A_WORD, spec_of

from harness import api, emit, initial, reference, spec
from harness.backend import BACKENDS
from harness.expressions import Call, Name
from harness.graph import BlockOp, Graph, Program
from harness.judge import first_batch
from harness.questions import to_json

CLOSE = 1e-11
"""Of a tensor's largest magnitude, or of 1: rounding in float64, with room for long sums."""
SAME = 1e-12
"""As far as an observed program may lie from the plain one: a compiler may fuse them differently."""
SPECS = sorted(path.stem for path in spec.directory().glob("*.yaml"))


def note(found: Arrays, name: str, value: np.ndarray) -> None:
    found[name] = value


def assert_near(got: Arrays, expected: Arrays, close: float) -> None:
    """The same names and shapes; every value near."""
    assert got.keys() == expected.keys(), sorted(got.keys() ^ expected.keys())
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        assert np.isfinite(got[name]).all(), name
        gap = np.max(np.abs(got[name] - value), initial=0.0) / max(1.0, np.max(np.abs(value), initial=0.0))
        assert gap <= close, f"{name}: {gap:.3g} apart"


def evaluated(case: Live, observe: reference.Observer) -> None:
    reference.evaluate(case.program, Call("net", (Name("x"),)), case.parameters, {"x": case.inputs["train.x"]}, observe)


# ---- Without a framework


def node_names(graph: Graph) -> list[str]:
    """Every node's name, those inside blocks by `block.node`, in the order of evaluation."""
    found = []
    for node in graph.nodes:
        if isinstance(node.op, BlockOp):
            found += [f"{node.name}.{name}" for name in node_names(node.op.graph)]
        found.append(node.name)
    return found


def written_names(source: str) -> dict[str, list[str]]:
    """By class of an observed program, the names that it writes into `values`; a block's own stand for all below it."""
    found: dict[str, list[str]] = {}
    for cls in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        for node in ast.walk(cls):
            match node:
                case ast.Assign(targets=[ast.Subscript(value=ast.Name("values"), slice=ast.Constant(str(name)))]):
                    found.setdefault(cls.name, []).append(name)
                case ast.AugAssign(
                    target=ast.Name("values"), value=ast.DictComp(key=ast.JoinedStr(values=[first, *_]))
                ):
                    assert isinstance(first, ast.Constant)
                    found.setdefault(cls.name, []).append(f"{first.value}*")
    return found


@pytest.fixture
def unformatted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Formatting takes most of the time, and what is looked for is found in any layout.
    monkeypatch.setattr(emit, "formatted", lambda text: text)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECS)
def test_an_observed_program_writes_the_value_of_every_node_once(name: str, backend: str, unformatted: None) -> None:
    program = api.load(name).compile()
    text = importlib.import_module(f"backends.{backend}.emit").emit(program, observe=True)
    expected = {}
    for graph in emit.graphs(program):
        rows = []
        for node in graph.nodes:
            rows += [f"{node.name}.*"] if isinstance(node.op, BlockOp) else []
            rows.append(node.name)
        expected[graph.class_name] = sorted(rows)
    assert {cls: sorted(names) for cls, names in written_names(text).items()} == expected


def test_the_reference_sees_the_same_names() -> None:
    program = program_of(spec_of(CASES["block of images"]))
    found: Arrays = {}
    x = np.array(program.spec.data.values["x"])
    reference.evaluate(program, Call("net", (Name("x"),)), initial.parameters(program), {"x": x}, partial(note, found))
    assert list(found) == [f"net(x).{name}" for name in node_names(program.networks["net"])]
    assert sum("." in name.partition(").")[2] for name in found) > 4, "the case has no block"


def test_a_program_that_is_not_observed_is_the_golden_one() -> None:
    experiment = api.load("digits_cnn")
    for backend in BACKENDS:
        kept = (golden.FOLDER / f"digits_cnn_{backend}.py").read_text(encoding="utf-8")
        assert experiment.emit(backend, observe=False) == experiment.emit(backend) == kept
        observed = experiment.emit(backend, observe=True)
        assert 'values["' not in kept
        assert emit.formatted(observed) == observed, "an observed program is laid out like any other"
        compile(observed, "program", "exec")


# ---- With frameworks


def compared(backend: str, program: Program, folder: Path) -> tuple[Live, Live]:
    """The same program plain and observed."""
    return live(backend, program, folder), live(backend, program, folder, observe=True)


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ONE_A_WORD else pytest.mark.slow) for name in sorted(CASES.keys() - CORNERS)
])  # fmt: skip
def test_values_gradients_and_training_of_every_op(backend: str, name: str, tmp_path: Path) -> None:
    program = program_of(spec_of(CASES[name]))
    plain, case = compared(backend, program, tmp_path)
    session, update = case.session, program.updates[0]

    expected: Arrays = {}
    evaluated(case, partial(note, expected))
    question = to_json(Call("net", (Name("x"),)))
    assert_near(session.values(question, {"x": case.inputs["train.x"]}), expected, CLOSE)

    expected = {}
    batch, masks = first_batch(program, case.inputs, drawn(case.inputs), 0)
    reference.train(program, update, case.parameters, batch, masks, partial(note, expected))
    given = session.batch(case.inputs, 0)
    before = session.gradients(given, inputs=True)
    result = session.step(0, given)
    seen = session.observed(result)
    values = {n.removeprefix(f"values/{update.name}/"): a for n, a in seen.items() if n.startswith("values/")}
    assert_near(values, expected, CLOSE)

    gradients = {n.removeprefix("gradients/"): a for n, a in seen.items() if n.startswith("gradients/")}
    assert len(values) + len(gradients) == len(seen)
    assert set(gradients) == {f"net/{n}" for n, p in program.parameters.items() if p.learned}
    assert_near(gradients, {n: a for n, a in before.items() if not n.startswith("net/@")}, CLOSE)
    fields = ["x"] if CASES[name].ids is None else []
    assert set(before) - set(gradients) == {f"net/@{field}" for field in fields}
    if fields and not CASES[name].rounded:
        assert_slope(case, before["net/@x"], batch, masks)

    other = plain.session.step(0, plain.session.batch(plain.inputs, 0))
    losses = {n: np.array(v) for n, v in session.wait(result).items()}
    assert_near(losses, {n: np.array(v) for n, v in plain.session.wait(other).items()}, SAME)
    assert_near(session.state(), plain.session.state(), SAME)


def assert_slope(case: Live, gradient: np.ndarray, batch: Arrays, masks: dict[str, Arrays]) -> None:
    """An input's gradient along a random direction is the reference's slope there."""
    assert gradient.shape == batch["x"].shape
    direction = initial.stream(1, "x").standard_normal(gradient.shape)

    def loss(shift: float) -> float:
        moved = batch | {"x": batch["x"] + shift * direction}
        return reference.loss(case.program, case.program.updates[0], case.parameters, moved, masks)

    expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
    slope = float(np.sum(gradient * direction))
    assert abs(slope - expected) <= 2e-7 * max(1.0, abs(expected)), f"{slope} and {expected}"
    assert np.any(gradient), "a gradient that is zero everywhere checks nothing"


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
def test_a_step_of_several_updates_observes_each(backend: str, tmp_path: Path) -> None:
    program = api.load("digits_gan").compile(steps=4)
    plain, case = compared(backend, program, tmp_path)
    for step in range(2):
        result = case.session.step(step, case.session.batch(case.inputs, step))
        other = plain.session.step(step, plain.session.batch(plain.inputs, step))
        losses = {n: np.array(v) for n, v in case.session.wait(result).items()}
        assert_near(losses, {n: np.array(v) for n, v in plain.session.wait(other).items()}, SAME)
        seen = case.session.observed(result)
        for update in program.updates:
            calls = {f"values/{update.name}/{site.variable}" for site in update.calls}
            found = {n.rpartition(".")[0] for n in seen if n.startswith(f"values/{update.name}/")}
            assert found == calls
            own = {
                n.removeprefix(f"gradients/{update.name}/") for n in seen if n.startswith(f"gradients/{update.name}/")
            }
            assert own == set(reference.moved(program, update))
    assert_near(case.session.state(), plain.session.state(), SAME)
    assert_near(case.session.optimizer_state(), plain.session.optimizer_state(), SAME)


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
def test_observed_gradients_are_those_before_clipping(backend: str, tmp_path: Path) -> None:
    program = api.load("digits_mlp").compile(steps=4)
    assert program.updates[0].clip is not None
    plain, case = compared(backend, program, tmp_path)
    big = {n: 30 * a for n, a in case.parameters.items()}
    for own in (plain, case):
        own.session.load(big)
    raw = plain.session.gradients(plain.session.batch(plain.inputs, 0))
    seen = case.session.observed(case.session.step(0, case.session.batch(case.inputs, 0)))
    found = {n.removeprefix("gradients/"): a for n, a in seen.items() if n.startswith("gradients/")}
    assert np.sqrt(sum(np.sum(a**2) for a in raw.values())) > 2, "nothing is clipped"
    assert_near(found, raw, CLOSE)


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
def test_one_node_that_is_off_is_seen_in_that_node(backend: str, tmp_path: Path) -> None:
    program = program_of(spec_of(CASES["residual"]))
    case = live(backend, program, tmp_path, observe=True)
    got = case.session.values(to_json(Call("net", (Name("x"),))), {"x": case.inputs["train.x"]})
    names = list(got)
    assert len(names) >= 6
    for target in names:
        expected: Arrays = {}
        evaluated(case, partial(note, expected))
        expected[target] = expected[target] + 1e-9
        with pytest.raises(AssertionError, match=target.replace("(", r"\(").replace(")", r"\)")):
            assert_near(got, expected, CLOSE)
