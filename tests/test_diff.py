"""Where and why trainings part: planted faults that `harness diff` knows nothing of, honest runs, and damaged ones."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import EACH, INSTALLED
from cases import CASES, spec_of
from safetensors.numpy import load_file, save_file

from harness import runs
from harness.backend import BACKENDS
from harness.check import climb, proof
from harness.check import diff as diffs
from harness.check import reduce as reducing
from harness.check.diagnose import Diagnosis, diagnose
from harness.check.diff import DiffOptions, diff
from harness.check.live import LiveWorker
from harness.check.memory import Memory, bytes_of, digest
from harness.check.mutants import MUTANTS, plant
from harness.check.reproduce import DIFFERS
from harness.check.subject import Subject, prepare, workers
from harness.environment import interpreters
from harness.errors import CallError
from harness.graph import Program
from harness.programs import emitted, written
from harness.resolve import compile_spec
from harness.runs import Options
from harness.spec import load, loads

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
    "input shifted", "mask inverted", "same mask at every step", "rounded to bfloat16", "dropped activation",
    "half the loss", "dropout without its gradient", "learning rate one per cent off", "momentum half as forgetful",
]  # fmt: skip


@pytest.mark.frameworks
def test_planted_faults_are_found_where_they_are_and_named(tmp_path: Path, borrowed: None) -> None:
    (tmp_path / "parted.yaml").write_text(text_of())
    options = climb.CheckOptions(backends=INSTALLED, precisions=("float64",))
    found = climb.proved([tmp_path / "parted.yaml"], options, mutants=FAULTS)
    assert not found.failures
    for cell in found.cells:
        if len(INSTALLED) == 1 and cell.phase == "backward":
            continue  # the reference has no gradients: it takes another backend to see one that is wrong
        assert cell.located, (cell, proof.spelled(cell))
        assert cell.explained, cell
        assert cell.found is not None
        assert cell.found["confirmed"]
    assert {(cell.mutant, cell.backend) for cell in found.cells} == {(f, b) for f in FAULTS for b in INSTALLED}
    assert len(INSTALLED) == 1 or (found.located, found.explained, found.exit) == (1.0, 1.0, 0)
    json.dumps(found.to_json(), allow_nan=False)
    text = proof.markdown(found, "a command")
    assert f"Places right: {sum(c.located for c in found.cells)} of {len(found.cells)}" in text
    assert "| loss | half the loss |" in text


def with_layers(*layers: object, name: str = "parted") -> str:
    text = json.loads(text_of(name=name))
    text["networks"]["net"]["layers"] = [*layers, {"dense": {"units": 1, "name": "head"}}]
    return json.dumps(text)


SEVERAL = {
    "normed": (
        with_layers({"dense": 5}, "batch_norm", "tanh", {"dense": 4}, "batch_norm", "tanh", {"dense": 3}, "batch_norm", name="normed"),
        ["momentum convention swapped"],
    ),
    "read_twice": (
        with_layers(
            {"reshape": [3, 2]}, {"lstm": {"units": 3, "returns": "sequence"}}, {"lstm": 4}, name="read_twice",
        ),
        ["recurrence along the batch"],
    ),
}  # fmt: skip


@pytest.mark.frameworks
@several
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "read_twice" else ()) for name in SEVERAL]
)
def test_a_fault_is_named_wherever_it_is_and_where_it_is_everywhere(name: str, tmp_path: Path, borrowed: None) -> None:
    text, faults = SEVERAL[name]
    (tmp_path / f"{name}.yaml").write_text(text)
    # Keras' recurrent layers take the longest to compile.
    backends = tuple(b for b in INSTALLED if name != "read_twice" or b != "tensorflow")
    options = climb.CheckOptions(backends=backends, precisions=("float64",))
    found = climb.proved([tmp_path / f"{name}.yaml"], options, mutants=faults)
    assert not found.failures
    for cell in found.cells:
        assert cell.located, (cell, proof.spelled(cell))
        assert cell.explained, cell
    planted = {(cell.mutant, cell.backend, cell.where) for cell in found.cells}
    assert planted == {(f, b, w) for f in faults for b in backends for w in ("first", "another", "every")}
    assert found.untried == ()
    text = proof.markdown(found, "a command")
    count = len(faults) * len(backends)
    assert f"Causes right, by where it was planted: first {count} of {count}, another {count} of {count}, every {count} of {count}." in text  # fmt: skip


@pytest.mark.frameworks
def test_a_program_without_batch_first_is_shown_and_its_cause_is_named(tmp_path: Path, borrowed: None) -> None:
    if "torch" not in INSTALLED:
        pytest.skip("it is PyTorch's argument")
    text = with_layers({"reshape": [3, 2]}, {"lstm": 4})
    program = compile_spec(*loads(text))
    honest = emitted(program, "torch", "float64")
    (tmp_path / "mine.py").write_text(honest.replace(", batch_first=True", "") + "# mine\n")
    run = trained(tmp_path, text=text, plant=None, programs=(f"torch={tmp_path / 'mine.py'}",))
    found = diff([run])
    assert (found.verdict, found.exit) == ("differs", 1)
    assert found.diagnosis is not None
    assert found.diagnosis.finding.backend == "torch"
    assert found.diagnosis.causes[0].name == "recurrence along the batch"
    assert any("without batch_first=True" in sentence for sentence in found.diagnosis.sentences())
    ((hunk,),) = found.changes.values()
    assert [line for _, line in hunk.after] == ["        self.lstm1 = nn.LSTM(2, 4)"]


@pytest.mark.frameworks
def test_a_program_in_another_layout_has_nothing_to_show(tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[0]
    honest = emitted(compile_spec(*loads(text_of())), backend, "float64")
    own = "# mine\n" + honest.replace("import math\nimport sys\n", "import sys\nimport math\n").replace("\n\n\ndef ", "\n\n\n\n# next\ndef ")  # fmt: skip
    (tmp_path / "mine.py").write_text(own)
    run = trained(tmp_path, plant=None, programs=(f"{backend}={tmp_path / 'mine.py'}",))
    found = diff([run])
    assert (found.verdict, found.changes) == ("same", {})
    assert not any("not as this version" in note for note in found.notes)


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
        "notes", "failures", "seconds", "changes",
    }  # fmt: skip


def in_float32_alone(text: str, backend: str) -> str:
    """A program that does something else where its numbers are float32."""
    kind = {"torch": "torch", "tensorflow": "tf", "jax": "jnp"}[backend]
    first, line = next((m[0], m[1]) for m in re.finditer(r"\n( +)x = .*", text[text.index("class Net") :]))
    found = text.replace(first, f"{first}\n{line}x = x * 1.001 if x.dtype == {kind}.float32 else x", 1)
    assert found != text
    return found


@pytest.mark.frameworks
def test_a_difference_of_float32_alone_is_one_of_precision(tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[0]

    def planted(name: str, program: Program) -> str:
        text = emitted(program, name, "float32")
        return in_float32_alone(text, name) if name == backend else text

    found = diff([trained(tmp_path, backends=(backend,), precision="float32", plant=planted, evidence=False)])
    assert found.precision == "float32"
    assert found.diagnosis is not None
    assert (found.diagnosis.finding.phase, found.diagnosis.finding.tensor) == ("forward", "net/predictions.dense1")
    assert found.notes[-1] == "In float64 no step shows more than rounding: the difference is one of precision."


def two_lines(text: str) -> tuple[str, str, str]:
    """The statements of the dense layer and of its activation, and the indentation."""
    found = re.search(r"( +)x = (.*dense1.*)\n +x = (.*tanh)\(x\)\n", text)
    assert found is not None, text
    return found[0], found[2], found[3]


REWRITTEN: dict[str, Callable[[str, str], str]] = {
    "in one line": lambda dense, tanh: f"        x = {tanh}({dense})\n",
    "other names": lambda dense, tanh: f"        h = {dense}\n        x = {tanh}(h)\n",
    "names of our own": lambda dense, tanh: (
        f"        returned_h = {dense}\n        x = {tanh}(returned_h) + 0 * returned_h\n"
    ),
    "a loop": lambda dense, tanh: f"        for f in (lambda x: {dense}, {tanh}):\n            x = f(x)\n",
    "an annotation": lambda dense, tanh: f"        x = {dense}\n        x: object = {tanh}(x)\n",
}


def subject_with(shared: Shared, folder: Path, given: dict[str, str]) -> tuple[Subject, dict[str, str]]:
    """The workers with these programs, and what is read of them."""
    loaded, source = loads(text_of())
    program = compile_spec(loaded, source)
    own = {name: written(name, text, f"{name}.py", [program]) for name, text in given.items()}
    subject = prepare(program, source, runs.prepared(program, source), "float64", folder / "s", shared["float64"], own)
    return subject, {name: given.get(name, subject.sources[name, False]) for name in INSTALLED}


def taken_apart(shared: Shared, folder: Path, given: dict[str, str]) -> Diagnosis | None:
    subject, read = subject_with(shared, folder, given)
    found = diagnose(subject, {name: subject.sources[name, True] for name in INSTALLED}, read, STEPS)
    assert not subject.failures
    return found


@pytest.mark.frameworks
@pytest.mark.parametrize("how", REWRITTEN)
@pytest.mark.parametrize("backend", EACH)
def test_the_same_network_in_other_words_is_the_same(shared: Shared, tmp_path: Path, backend: str, how: str) -> None:
    text = emitted(compile_spec(*loads(text_of())), backend, "float64")
    both, dense, tanh = two_lines(text)
    mine = text.replace(both, REWRITTEN[how](dense, tanh))
    assert mine != text
    assert taken_apart(shared, tmp_path, {backend: mine}) is None
    # And what differs beside it is found.
    wrong = mine.replace("0.25)", "0.5)") if backend != "tensorflow" else mine.replace("0.25", "0.5", 1)
    found = taken_apart(shared, tmp_path / "wrong", {backend: wrong})
    assert found is not None
    assert found.finding.backend == backend


@pytest.mark.frameworks
def test_a_rewritten_program_passes_its_check(tmp_path: Path, borrowed: None) -> None:
    backend = INSTALLED[0]
    text = emitted(compile_spec(*loads(text_of())), backend, "float64")
    both, dense, tanh = two_lines(text)
    (tmp_path / "mine.py").write_text(text.replace(both, REWRITTEN["in one line"](dense, tanh)))
    (tmp_path / "parted.yaml").write_text(text_of())
    options = climb.CheckOptions(
        rungs=("forward",), precisions=("float64",), backends=INSTALLED, programs=(f"{backend}={tmp_path / 'mine.py'}",)
    )
    (found,) = climb.check([tmp_path / "parted.yaml"], options)
    assert found.verdict == "passed", found.rungs
    assert f"{backend}'s program is not as emitted" in found.rungs[0].notes[0]
    (tmp_path / "mine.py").write_text(text.replace(both, REWRITTEN["in one line"](dense, tanh).replace(tanh, f"2 * {tanh}")))  # fmt: skip
    (found,) = climb.check([tmp_path / "parted.yaml"], options)
    assert found.verdict == "failed"


@pytest.mark.frameworks
def test_an_optimizer_that_remembers_other_things_is_named(shared: Shared, tmp_path: Path) -> None:
    if "torch" not in INSTALLED:
        pytest.skip("PyTorch's program alone says its momentum in one word")
    text = emitted(compile_spec(*loads(text_of())), "torch", "float64")
    found = taken_apart(shared, tmp_path, {"torch": text.replace(", momentum=0.9", "")})
    assert found is not None
    assert (found.finding.phase, found.finding.tensor) == ("optimizer", "optimizer/net/velocity/dense1.bias")
    assert found.line is None
    said = " ".join(found.sentences())
    assert "nan" not in said
    assert "cannot be compared: it is (5,) by the rule and missing in the program" in said


@pytest.mark.frameworks
@several
def test_a_run_of_which_a_backend_failed_is_not_the_same(tmp_path: Path, borrowed: None) -> None:
    broken, *whole = INSTALLED

    def planted(name: str, program: Program) -> str:
        return "raise RuntimeError('planted')" if name == broken else emitted(program, name, "float64")

    (tmp_path / "parted.yaml").write_text(text_of())
    run = runs.run(
        tmp_path / "parted.yaml",
        Options(backends=INSTALLED, precision="float64", plant=planted, out=tmp_path / "run"),
    )
    found = diff([run.directory])
    assert (found.verdict, found.exit, found.backends) == ("failed", 3, tuple(whole))
    assert list(found.failures) == [broken]
    assert found.failures[broken].startswith("in the run itself: ")


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
@pytest.mark.parametrize(
    "fault",
    [
        "dropped activation",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("rows of a batch reversed", "half the loss", "learning rate one per cent off")),
    ],
)  # fmt: skip
def test_the_smallest_spec_and_files_that_need_no_harness(tmp_path: Path, borrowed: None, fault: str) -> None:
    backend = INSTALLED[0]
    run = trained(tmp_path / "a", {backend: fault})
    found = diff([run], DiffOptions(reduce=tmp_path / "small"))
    assert found.diagnosis is not None
    assert any("smaller specs tried" in note for note in found.notes), found.notes
    loaded, _ = load(tmp_path / "small" / "parted_small.yaml")
    assert loaded.training.steps == 1
    assert len(loaded.networks["net"].layers) < 5
    # Rows in reverse order are the same rows where there is one.
    assert loaded.data.batch == (2 if "rows" in fault else 1)
    # A rate that is changed in the program is not carried to another rule.
    assert "rate" in fault or not loaded.training.updates[0].optimizer.remembers
    for name in INSTALLED if fault == "dropped activation" else INSTALLED[:1]:
        file = tmp_path / "small" / f"parted_small_{name}.py"
        assert "harness" not in "".join(line for line in file.read_text().splitlines() if "import" in line)
        done = subprocess.run(
            [sys.executable, "-P", str(file)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == (DIFFERS if name == backend else 0), done.stdout + done.stderr
        assert "expected" in done.stdout


@pytest.mark.frameworks
def test_a_program_of_ones_own_fails_its_check_and_is_explained(tmp_path: Path, borrowed: None) -> None:
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


@pytest.mark.frameworks
def test_a_program_that_nothing_would_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "parted.yaml").write_text(text_of())
    given = (f"{INSTALLED[0]}={tmp_path / 'mine.py'}",)
    others = tuple(b for b in BACKENDS if b != INSTALLED[0])
    with pytest.raises(CallError, match=f"--program: {INSTALLED[0]} is not among the backends of this call"):
        runs.run(tmp_path / "parted.yaml", Options(backends=others, programs=given, out=tmp_path / "run"))
    with pytest.raises(CallError, match="does not go with rung 7"):
        climb.check([tmp_path / "parted.yaml"], climb.CheckOptions(rungs=("seeds",), programs=given))
    for text, expected in (
        ("torch", "takes BACKEND=FILE"), ("torhc=x.py", "unknown backend 'torhc'"), ("torch=none.py", "cannot be read"),
        (f"torch={tmp_path}", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(CallError, match=expected):
            runs.run(tmp_path / "parted.yaml", Options(programs=(text,), out=tmp_path / "run"))
    (tmp_path / "mine.py").write_text("def f(:\n")
    with pytest.raises(CallError, match=r"mine.py:1: is not Python"):
        runs.run(tmp_path / "parted.yaml", Options(programs=given, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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
    found = list(reducing.smaller(data, 1, keep_evaluation=False))
    assert data == json.loads(text_of()), "the spec itself is not touched"
    assert found[0]["training"]["steps"] == 1
    assert any(len(one["networks"]["net"]["layers"]) == 2 for one in found)
    assert {one["data"]["batch"] for one in found} >= {1, 2, 4}
    assert all(one != data for one in found)
    block = {"residual": ["relu", "tanh"]}
    data["networks"]["net"]["layers"] = [block, {"repeat": {"times": 3, "layers": ["relu"]}}]
    layers = [one["networks"]["net"]["layers"] for one in reducing.smaller(data, 9, keep_evaluation=False)]
    assert ["relu", "tanh", data["networks"]["net"]["layers"][1]] in layers
    assert [block, "relu"] in layers
