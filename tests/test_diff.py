"""Where and why trainings part: planted faults that `harness diff` knows nothing of, honest runs, and damaged ones."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import INSTALLED
from cases import CASES, spec_of
from safetensors.numpy import load_file, save_file

from harness import runs
from harness.check import climb, proof
from harness.check import diff as diffs
from harness.check import reduce as reducing
from harness.check.diff import DiffOptions, diff
from harness.check.live import LiveWorker
from harness.check.memory import Memory, bytes_of, digest
from harness.check.mutants import MUTANTS, plant
from harness.check.subject import workers
from harness.environment import interpreters
from harness.errors import CallError
from harness.graph import Program
from harness.runs import Options
from harness.spec import load

several = pytest.mark.skipif(len(INSTALLED) < 2, reason="needs two frameworks")
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
STEPS = 4


def text_of(**changes: object) -> str:
    """Two dense layers, a dropout, an activation and momentum: something of every phase but running statistics."""
    text: dict[str, Any] = json.loads(json.dumps(spec_of(CASES["relu"], "parted")))
    text["networks"]["net"]["layers"] = [
        {"dense": 5},
        "tanh",
        {"dropout": 0.25},
        {"dense": {"units": 1, "name": "head"}},
    ]
    text["training"]["steps"] = STEPS
    text["training"]["updates"][0]["optimizer"] = {"sgd": {"learning_rate": 0.05, "momentum": 0.9}}
    return json.dumps(text | changes)


def trained(folder: Path, faults: dict[str, str] | None = None, **options: object) -> Path:
    """A run's directory; `faults`: by backend what is planted."""

    def planted(backend: str, program: Program) -> str:
        fault = BY_NAME[(faults or {})[backend]] if backend in (faults or {}) else None
        if fault is None:
            from harness.programs import emitted  # noqa: PLC0415

            return emitted(program, backend, "float64")
        text = plant(fault, program, backend)
        assert text is not None, (fault.name, backend)
        return text

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parted.yaml").write_text(str(options.pop("text", text_of())))
    chosen: dict[str, Any] = {"backends": INSTALLED, "precision": "float64", "plant": planted, **options}
    found = runs.run(folder / "parted.yaml", Options(out=folder / "run", **chosen))
    assert all(record.status == "ok" for record in found.backends.values()), found.to_json()
    return found.directory


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("honest"))


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "copy"))


Shared = dict[str, dict[str, LiveWorker]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A live worker of each backend, for every test below."""
    with workers(INSTALLED, ("float64",), interpreters(), tmp_path_factory.mktemp("shared"), 300) as (found, failures):
        assert not failures
        yield found


@pytest.fixture
def borrowed(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for by one name a backend takes the shared workers, and leaves them running."""

    @contextmanager
    def lend(
        names: Sequence[str] | dict[str, str], precisions: Sequence[str], *rest: Any
    ) -> Iterator[tuple[Shared, dict[str, str]]]:
        if precisions == ("float64",) and set(names) <= set(INSTALLED):
            yield {"float64": {name: shared["float64"][name] for name in names}}, {}
        else:
            with workers(names, precisions, *rest) as found:
                yield found

    monkeypatch.setattr(diffs, "workers", lend)
    monkeypatch.setattr(climb, "workers", lend)


# ---- What is found

FAULTS = [
    "labels of the next row", "input shifted", "mask inverted", "rounded to bfloat16", "half the loss",
    "activation without its gradient", "learning rate one per cent off", "dampened momentum",
]  # fmt: skip


@pytest.mark.frameworks
def test_planted_faults_are_found_where_they_are_and_named(tmp_path: Path, borrowed: None) -> None:
    (tmp_path / "parted.yaml").write_text(text_of())
    known = [name for name in FAULTS if name in BY_NAME]
    options = climb.CheckOptions(backends=INSTALLED, precisions=("float64",))
    found = climb.proved([tmp_path / "parted.yaml"], options, mutants=known)
    assert not found.failures
    for cell in found.cells:
        if len(INSTALLED) == 1 and cell.phase == "backward":
            continue  # the reference has no gradients: it takes another backend to see one that is wrong
        assert cell.located, (cell, proof.spelled(cell))
        assert cell.explained, cell
        assert cell.found is not None
        assert cell.found["confirmed"]
    assert len(found.cells) >= 4 * len(INSTALLED)
    assert len(INSTALLED) == 1 or (found.located, found.explained, found.exit) == (1.0, 1.0, 0)
    json.dumps(found.to_json(), allow_nan=False)
    text = proof.markdown(found, "a command")
    assert f"Places right: {sum(c.located for c in found.cells)} of {len(found.cells)}" in text
    assert "| loss | half the loss |" in text


@pytest.mark.frameworks
def test_a_proof_is_not_passed_by_saying_nothing(
    tmp_path: Path, borrowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parted.yaml").write_text(text_of())
    monkeypatch.setattr(proof, "diagnose", lambda *_: None)
    options = climb.CheckOptions(backends=INSTALLED[:1], precisions=("float64",))
    found = climb.proved([tmp_path / "parted.yaml"], options, mutants=["half the loss"])
    assert [(cell.located, cell.explained) for cell in found.cells] == [(False, False)]
    assert found.exit == 1
    assert "nothing was found" in proof.markdown(found, "a command")


@pytest.mark.frameworks
def test_a_run_is_taken_apart(tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[-1]
    found = diff([trained(tmp_path, {backend: "half the loss"})])
    assert (found.verdict, found.exit) == ("differs", 1)
    assert found.diagnosis is not None
    finding = found.diagnosis.finding
    assert (finding.phase, finding.step, finding.tensor, finding.backend) == ("loss", 1, "loss/net", backend)
    assert finding.worst.b == pytest.approx(finding.worst.a / 2, rel=1e-12)
    assert found.diagnosis.line is not None
    assert found.diagnosis.line.text.startswith("return")
    assert [cause.name for cause in found.diagnosis.causes] == ["half the loss"]
    first, *_, last = found.diagnosis.sentences()
    assert first.startswith("They part at step 1, in phase loss, at loss/net: ")
    assert last.startswith("Consistent with ")
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.frameworks
def test_an_honest_run_has_nothing_to_find(honest: Path, borrowed: None) -> None:
    found = diff([honest])
    assert (found.verdict, found.exit, found.diagnosis) == ("same", 0, None), found
    assert f"none of {STEPS} steps shows more than rounding" in found.notes[-1]
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(said) == {
        "schema", "harness", "spec", "verdict", "exit", "runs", "backends", "precision", "steps", "finding", "sentences",
        "notes", "failures", "seconds",
    }  # fmt: skip


@pytest.mark.frameworks
def test_a_difference_of_float32_alone_is_one_of_precision(tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[0]

    def planted(name: str, program: Program) -> str:
        from harness.programs import emitted  # noqa: PLC0415

        text = emitted(program, name, "float32")
        # A part in a thousand, of float32's numbers alone.
        return text.replace("0.05", "0.05005") if name == backend else text

    run = trained(tmp_path, precision="float32", plant=planted, evidence=False)
    found = diff([run])
    assert found.diagnosis is not None
    assert found.diagnosis.finding.phase == "optimizer"
    assert found.precision == "float64", "the rate is carried over to the program in float64"


@pytest.mark.frameworks
@several
def test_two_runs_of_one_training_are_compared(honest: Path, tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[0]
    other = trained(tmp_path, {backend: "half the loss"}, backends=(backend,))
    found = diff([honest, other], DiffOptions(backends=(backend,)))
    assert found.backends == (backend, f"{backend}-2")
    assert found.diagnosis is not None
    assert (found.diagnosis.finding.phase, found.diagnosis.finding.backend) == ("loss", f"{backend}-2")
    assert any(f"{backend}-2: 1 line not as this version emits" in note for note in found.notes), found.notes


@pytest.mark.frameworks
def test_a_run_from_a_checkpoint_is_taken_apart_from_there(tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[0]
    first = trained(tmp_path / "first", backends=(backend,), until=2)
    later = trained(
        tmp_path / "later",
        {backend: "half the loss"},
        backends=(backend,),
        start=first / backend / "checkpoint.safetensors",
    )
    found = diff([later])
    assert found.diagnosis is not None
    assert (found.diagnosis.finding.step, found.diagnosis.finding.phase) == (3, "loss")


@pytest.mark.frameworks
def test_the_smallest_spec_and_files_that_need_no_harness(tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[0]
    run = trained(tmp_path / "a", {backend: "dropped activation"})
    found = diff([run], DiffOptions(reduce=tmp_path / "small"))
    assert found.diagnosis is not None
    assert any("smaller specs tried" in note for note in found.notes), found.notes
    loaded, _ = load(tmp_path / "small" / "parted_small.yaml")
    assert loaded.training.steps == 1
    assert len(loaded.networks["net"].layers) < 5
    assert loaded.data.batch == 1
    assert not loaded.training.updates[0].optimizer.remembers
    for name in INSTALLED:
        file = tmp_path / "small" / f"parted_small_{name}.py"
        assert "harness" not in "".join(line for line in file.read_text().splitlines() if "import" in line)
        done = subprocess.run(
            [sys.executable, "-P", str(file)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == int(name == backend), done.stdout + done.stderr
        assert "expected" in done.stdout


@pytest.mark.frameworks
def test_a_program_of_ones_own_fails_its_check_and_is_explained(tmp_path: Path, borrowed: None) -> None:
    from harness.programs import emitted  # noqa: PLC0415
    from harness.resolve import compile_spec  # noqa: PLC0415
    from harness.spec import loads  # noqa: PLC0415

    backend = INSTALLED[0]
    own = plant(BY_NAME["half the loss"], compile_spec(*loads(text_of())), backend, "float32")
    assert own is not None
    (tmp_path / "mine.py").write_text(own)
    (tmp_path / "parted.yaml").write_text(text_of())
    options = climb.CheckOptions(
        rungs=("forward", "trajectory"), precisions=("float64",), backends=INSTALLED,
        programs=(f"{backend}={tmp_path / 'mine.py'}",),
    )  # fmt: skip
    (found,) = climb.check([tmp_path / "parted.yaml"], options)
    assert found.verdict == "failed"
    diagnosis = found.diagnoses["float64"]
    assert diagnosis is not None
    assert (diagnosis.finding.phase, diagnosis.finding.backend) == ("loss", backend)
    assert diagnosis.line is not None
    assert diagnosis.line.text in own, "the line is the file's own, not one of the carried program"
    assert emitted(compile_spec(*loads(text_of())), backend, "float32") != own
    json.dumps(found.to_json(), allow_nan=False)


# ---- What is refused


def cut(run: Path) -> None:
    (run / "result.json").unlink()


def without_request(run: Path) -> None:
    (run / INSTALLED[0] / "request.json").unlink()


def half_a_request(run: Path) -> None:
    path = run / INSTALLED[0] / "request.json"
    path.write_text(path.read_text()[:100])


def without_inputs(run: Path) -> None:
    shutil.rmtree(run / "inputs")


def half_an_input(run: Path) -> None:
    path = run / "inputs" / "data.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def other_parameters(run: Path) -> None:
    path = run / "inputs" / "parameters.safetensors"
    save_file({n: a + 1 for n, a in load_file(path).items()}, path)


def edited(run: Path) -> None:
    (path,) = (run / INSTALLED[0]).glob("*.py")
    path.write_text(path.read_text() + "# by hand\n")


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut, "has no result.json: it did not finish"), (without_request, "is cut short: .*request.json is missing"),
        (half_a_request, "request.json cannot be read"), (without_inputs, "is cut short: .*inputs"),
        (half_an_input, "changed or corrupted since"), (other_parameters, "changed or corrupted since"),
        (edited, "changed or corrupted since; run it again .a changed program runs with `harness run --program`"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_one_sentence(copy: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(copy)
    with pytest.raises(CallError, match=expected) as caught:
        diff([copy])
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.frameworks
def test_runs_of_different_trainings_are_one_sentence(honest: Path, tmp_path: Path) -> None:
    one = (INSTALLED[0],)
    longer = trained(tmp_path / "longer", backends=one, steps=STEPS + 1)
    with pytest.raises(CallError, match=f"are not of the same training: steps {STEPS} and {STEPS + 1}"):
        diff([honest, longer])
    named = trained(tmp_path / "named", backends=one, text=text_of(name="another"))
    with pytest.raises(CallError, match="one is of spec 'parted', the other of 'another'"):
        diff([honest, named])
    seeded = trained(tmp_path / "seeded", backends=one, seed=8)
    with pytest.raises(CallError, match="seed 3 and 8"):
        diff([honest, seeded])


@pytest.mark.frameworks
def test_a_call_that_cannot_be_met_is_refused_first(honest: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(CallError, match="is not an empty directory"):
        diff([honest], DiffOptions(reduce=tmp_path / "full"))
    with pytest.raises(CallError, match="--steps is at least 1"):
        diff([honest], DiffOptions(steps=0))


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="does not exist"):
        diff([tmp_path / "nothing"])


# ---- The parts


def test_memory_keeps_what_was_asked_for_last() -> None:
    memory = Memory(room=40)
    memory.keep(np.zeros(2), "a")
    memory.keep({"x": np.zeros(2)}, "b", 1)
    assert memory.get("a") is not None
    memory.keep([np.zeros(2)], "c")
    assert memory.get("b", 1) is None
    assert memory.get("a") is not None
    assert memory.get("c") is not None
    assert memory.size == 32
    memory.forget("a")
    assert memory.get("a") is None
    assert memory.size == bytes_of([np.zeros(2)])


def test_a_digest_is_of_names_and_values() -> None:
    arrays = {"a": np.arange(3.0), "b": np.arange(2)}
    same = {"a": np.arange(3.0), "b": np.arange(2)}
    assert digest(arrays) == digest(same)
    assert digest(arrays) != digest(same | {"b": np.array([0, 2])})
    assert digest({"a": np.arange(3.0)}) != digest({"c": np.arange(3.0)})
    assert digest("a") != digest("b")


def test_a_smaller_spec_has_less_in_one_place() -> None:
    data = json.loads(text_of())
    found = list(reducing._smaller(data, 1, keep_evaluation=False))
    assert data == json.loads(text_of()), "the spec itself is not touched"
    assert found[0]["training"]["steps"] == 1
    assert any(len(one["networks"]["net"]["layers"]) == 2 for one in found)
    assert {one["data"]["batch"] for one in found} >= {1, 2, 4}
    assert all(one != data for one in found)
    block = {"residual": ["relu", "tanh"]}
    data["networks"]["net"]["layers"] = [block, {"repeat": {"times": 3, "layers": ["relu"]}}]
    layers = [one["networks"]["net"]["layers"] for one in reducing._smaller(data, 9, keep_evaluation=False)]
    assert ["relu", "tanh", data["networks"]["net"]["layers"][1]] in layers
    assert [block, "relu"] in layers
