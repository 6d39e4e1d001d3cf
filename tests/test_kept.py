"""Planting faults takes hours: what was found is kept, spec by spec, and a call goes on from it. Needs no framework."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness import spec
from harness.check import climb, kept
from harness.check.climb import CheckOptions
from harness.check.power import Cell, Sensitivity, Untried
from harness.check.proof import Located
from harness.errors import CallError
from harness.resolve import compile_spec
from harness.runs import prepared

SPECS = ["digits_mlp", "digits_cnn"]


class Planter:
    """Stands for `power` and `proof`: a cell a subject, until the one at which somebody presses Ctrl-C."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.stop: tuple[str, str] | None = None

    def power(self, subject: Any, *_: Any, **__: Any) -> tuple[list[Cell], list[Sensitivity], list[Untried]]:
        name, precision = self._ask(subject)
        cell = Cell("half the loss", "loss", name, "torch", precision, {"forward": "killed"}, where="every")
        small = Sensitivity(name, precision, "the learning rate", {"forward": 1e-14, "gradients": None})
        return [cell], [small], [Untried("swapped gates", "forward", name, "jax", precision, "no plan")]

    def proof(self, subject: Any, *_: Any) -> tuple[list[Located], list[Untried]]:
        name, precision = self._ask(subject)
        return [
            Located(
                "half the loss",
                "loss",
                name,
                "torch",
                precision,
                {"step": 1, "phase": "loss", "backend": "torch"},
                True,
                True,
                ("half the loss",),
            )
        ], []

    def _ask(self, subject: Any) -> tuple[str, str]:
        asked = (subject.name, subject.precision)
        self.asked.append(asked)
        if asked == self.stop:
            raise KeyboardInterrupt
        return asked


@pytest.fixture
def planter(monkeypatch: pytest.MonkeyPatch) -> Planter:
    @contextmanager
    def workers(
        _backends: object, precisions: Sequence[str], *_: object
    ) -> Iterator[tuple[Mapping[str, Any], Mapping[str, str]]]:
        yield {precision: {"torch": None} for precision in precisions}, {}

    found = Planter()
    monkeypatch.setattr(climb, "workers", workers)
    monkeypatch.setattr(climb, "prepare", lambda program, _t, _i, precision, *_: SimpleNamespace(name=program.name, precision=precision, failures={}))  # fmt: skip
    monkeypatch.setattr(climb, "power", found.power)
    monkeypatch.setattr(climb, "proof", found.proof)
    return found


@pytest.mark.parametrize("ask", [climb.planted, climb.proved])
def test_an_interrupted_call_goes_on_where_it_was(planter: Planter, tmp_path: Path, ask: Any) -> None:
    options = CheckOptions(out=tmp_path / "kept")
    whole = ask(SPECS, CheckOptions())
    planter.asked.clear()
    planter.stop = ("digits_cnn", "float64")
    with pytest.raises(KeyboardInterrupt):
        ask(SPECS, options)
    assert planter.asked == [("digits_mlp", "float64"), ("digits_mlp", "float32"), ("digits_cnn", "float64")]
    planter.asked.clear()
    planter.stop = None
    found = ask(SPECS, options)
    assert planter.asked == [("digits_cnn", "float64"), ("digits_cnn", "float32")]
    assert found.to_json() | {"seconds": 0} == whole.to_json() | {"seconds": 0}
    assert found.cells == whole.cells, "types, too"


def test_one_spec_first_and_then_all_is_the_same_as_all(planter: Planter, tmp_path: Path) -> None:
    options = CheckOptions(out=tmp_path / "kept", precisions=("float64",))
    climb.planted(SPECS[:1], options)
    found = climb.planted(SPECS, options)
    assert planter.asked == [("digits_mlp", "float64"), ("digits_cnn", "float64")]
    assert [cell.spec for cell in found.cells] == SPECS


def test_what_another_call_or_other_code_has_found_is_found_anew(
    planter: Planter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CheckOptions(out=tmp_path / "kept", precisions=("float64",))
    for ask in (
        lambda: climb.planted(SPECS[:1], options),
        lambda: climb.planted(SPECS[:1], options, bisect=False),
        lambda: climb.planted(SPECS[:1], options, mutants=["half the loss"]),
        lambda: climb.proved(SPECS[:1], options),
        lambda: climb.proved(SPECS[:1], CheckOptions(out=tmp_path / "kept", precisions=("float64",), seed=3)),
    ):
        planter.asked.clear()
        ask()
        assert len(planter.asked) == 1
    planter.asked.clear()
    climb.planted(SPECS[:1], options)
    assert not planter.asked, "what the first call has found is still there"
    for what, changed in (("_code", ["harness/twins.py other"]), ("_versions", ["torch 9"])):
        planter.asked.clear()
        with monkeypatch.context() as other:
            other.setattr(kept, what, lambda changed=changed: changed)
            climb.planted(SPECS[:1], options)
        assert len(planter.asked) == 1


def test_other_data_beside_the_same_text_are_another_question(planter: Planter, tmp_path: Path) -> None:
    text = (
        "name: beside\ndata: {dataset: npz, file: own.npz, batch: 2, test: 0.25, normalise: none}\nnetworks: {net: {layers: [{dense: 1}]}}\n"
        "training: {steps: 2, updates: [{loss: {mse: {predictions: net(x), targets: y}}, optimizer: {sgd: {learning_rate: 0.1}}}]}\n"
    )
    (tmp_path / "beside.yaml").write_text(text, encoding="utf-8")
    np.savez(tmp_path / "own.npz", x=np.arange(24.0).reshape(8, 3), y=np.ones((8, 1)))
    loaded, source = spec.load(tmp_path / "beside.yaml")
    train = int(prepared(compile_spec(loaded, source), source).train["x"][0, 0]) // 3  # a row that is not held out
    options = CheckOptions(out=tmp_path / "kept", precisions=("float64",))
    for number in (1.0, 2.0, 2.0):
        x = np.ones((8, 3))
        x[train] = number
        np.savez(tmp_path / "own.npz", x=x, y=np.ones((8, 1)))
        climb.planted([tmp_path / "beside.yaml"], options)
    assert len(planter.asked) == 2


def test_what_was_cut_short_is_found_anew_and_a_full_disk_costs_the_keeping_alone(
    planter: Planter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CheckOptions(out=tmp_path / "kept", precisions=("float64",))
    climb.planted(SPECS[:1], options)
    (file,) = (tmp_path / "kept").iterdir()
    file.with_name(f"{file.name}.part").write_text("{", encoding="utf-8")
    file.write_text('{"asked": "', encoding="utf-8")
    climb.planted(SPECS[:1], options)
    assert len(planter.asked) == 2
    said: list[Mapping[str, Any]] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_last", full)
    found = climb.planted(SPECS[1:], options, lambda _name, event: said.append(event))
    assert found.cells
    assert any("is not kept" in event.get("warning", "") for event in said)


def test_a_subject_with_a_worker_that_failed_is_asked_again(
    planter: Planter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CheckOptions(out=tmp_path / "kept", precisions=("float64",))
    monkeypatch.setattr(climb, "prepare", lambda program, *_: SimpleNamespace(name=program.name, precision="float64", failures={"jax": "died"}))  # fmt: skip
    assert climb.planted(SPECS[:1], options).exit == 3
    assert climb.planted(SPECS[:1], options).exit == 3
    assert len(planter.asked) == 2


def test_a_folder_of_something_else_is_refused(planter: Planter, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CallError, match=r"notes\.json in it is not of planted faults"):
        climb.planted(SPECS, CheckOptions(out=tmp_path))
    with pytest.raises(CallError, match="is not a directory"):
        climb.planted(SPECS, CheckOptions(out=tmp_path / "notes.json"))
    assert not planter.asked


def test_what_planting_faults_imports_decides_what_was_found() -> None:
    """Whatever else changes, hours of work stand; the workers' half is in `harness.serve`, which imports even less."""
    text = "import sys, harness.check.climb, harness.serve; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split()
    ours = [name.split(".") for name in said if name.startswith(("harness.", "backends."))]
    counted = " ".join(kept._code())
    assert not {name[1] for name in ours if name[0] == "harness"} & {other.removesuffix(".py") for other in kept.OTHERS}
    assert all("/".join(name) in counted for name in ours)
    assert "harness/fuzz/" not in counted
    assert all((Path(kept.__file__).parents[1] / other).exists() for other in kept.OTHERS)
    root, others = Path(kept.__file__).parents[2], tuple(f"harness.{o.removesuffix('.py')}" for o in kept.OTHERS)
    for name in ours:  # what is imported inside of a function, too
        file = root.joinpath(*name).with_suffix(".py")
        for node in ast.walk(ast.parse(file.read_text())) if file.exists() else ():
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(m == o or m.startswith(f"{o}.") for m in modules for o in others), (name, modules)
