"""Checkpoints: written and read whole, refused where they do not fit, and gone on from in every backend."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import EACH, INSTALLED, program_of
from cases import CASES, spec_of
from safetensors.numpy import load_file, save_file
from test_cli import call
from test_optimizer_state import RULES

from harness import initial, runs
from harness.checkpoint import Checkpoint
from harness.errors import CallError
from harness.graph import Program
from harness.results import RunResult
from harness.runs import Options
from harness.source import parse
from harness.spec import directory

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def text(rule: str = "adamw, clipped", **network: Any) -> str:
    """A small spec with dropout and batch normalisation, trained by a rule."""
    made = json.loads(json.dumps(spec_of(CASES["dense"])))
    layers: list[Any] = [{"dense": 4}, "batch_norm", "tanh", {"dropout": 0.3}, {"dense": 1}]
    made["networks"]["net"]["layers"] = network.get("layers", layers)
    made["data"]["values"]["y"] = [[float(i % 2)] for i in range(8)]
    made["data"]["batch"] = 3
    made["training"]["updates"] = [{"loss": {"mse": {"predictions": "net(x)", "targets": "y"}}, **RULES[rule]}]
    return json.dumps(made)


def made(
    step: int = 5, steps: int = 9, rule: str = "adamw, clipped", spec: str | None = None, **network: Any
) -> tuple[Checkpoint, Program]:
    """A checkpoint made by hand, and its program."""
    spec = spec or text(rule, **network)
    program = program_of(spec, steps=steps)
    shapes = runs.optimizer_table(program)
    optimizer = {name: np.full(shape, 0.25) for name, shape in shapes.items()}
    optimizer |= {name: np.array(step, np.int64) for name in shapes if name.endswith("/count")}
    origin = runs.origin(program, parse(spec, "small.yaml"), "float64")
    return Checkpoint(origin, step, initial.parameters(program), optimizer), program


def written(folder: Path, *arguments: Any, **options: Any) -> Path:
    path = folder / "checkpoint.safetensors"
    made(*arguments, **options)[0].write(path)
    return path


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    checkpoint, program = made()
    path = tmp_path / "c.safetensors"
    checkpoint.write(path)
    again = Checkpoint.read(path)
    assert (again.origin, again.step, again.version) == (checkpoint.origin, 5, checkpoint.version)
    for mine, theirs in ((checkpoint.state, again.state), (checkpoint.optimizer, again.optimizer)):
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            assert (array.dtype, array.shape, array.tobytes()) == (
                theirs[name].dtype,
                theirs[name].shape,
                theirs[name].tobytes(),
            )
    again.require(path, runs.parameter_table(program), runs.optimizer_table(program))
    assert not list(tmp_path.glob("*.part"))


def test_its_arrays_have_the_documented_names(tmp_path: Path) -> None:
    names = set(load_file(written(tmp_path)))
    learned = {f"{layer}.{kind}" for layer in ("dense1", "dense2") for kind in ("kernel", "bias")}
    learned |= {"norm1.scale", "norm1.bias"}
    assert names == (
        {f"state/{name}" for name in learned | {"norm1.mean", "norm1.variance"}}
        | {f"optimizer/net/{slot}/{name}" for name in learned for slot in ("first_moment", "second_moment")}
        | {"optimizer/net/count"}
    )


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "cut in its header":
        path.write_bytes(data[:50])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a value changed":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 0x10]) + data[-2:])
    elif how == "other bytes":
        path.write_bytes(b"PK\x03\x04 this is a zip, or so it says" * 20)
    elif how == "no checkpoint":
        save_file({"a": np.zeros(3)}, path)
    elif how == "another schema":
        path.write_bytes(data.replace(b'"schema":"1"', b'"schema":"7"'))
        assert path.read_bytes() != data
    elif how == "metadata missing":
        path.write_bytes(data.replace(b'"seed"', b'"feed"'))
        assert path.read_bytes() != data


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cut short", "is no safetensors file, or was cut short or corrupted"),
        ("cut in its header", "is no safetensors file, or was cut short or corrupted"),
        ("empty", "is no safetensors file, or was cut short or corrupted"),
        ("other bytes", "is no safetensors file, or was cut short or corrupted"),
        ("a value changed", "is corrupted: its arrays are not those that were written"),
        ("no checkpoint", "is a safetensors file, but no checkpoint of a run"),
        ("another schema", "has schema '7' (harness '0.1.0'), this version reads 1"),
        ("metadata missing", "its metadata are not complete: KeyError('seed')"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, how: str, expected: str) -> None:
    path = written(tmp_path)
    damaged(path, how)
    with pytest.raises(CallError) as caught:
        Checkpoint.read(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"checkpoint {path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="does not exist"):
        Checkpoint.read(tmp_path / "none")
    with pytest.raises(CallError, match="is not a file"):
        Checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": [{"dense": 5}, {"dense": 1}]}, "'dense1.kernel' is [4, 5] (IO) in it and [4, 4] (IO) in the spec"),
        ({"layers": ["tanh", {"dense": {"units": 1, "name": "last"}}]}, "'last.kernel' is [4, 1] (IO) in it and missing in the spec"),
        ({"rule": "momentum"}, "is of other optimizers: 'net/first_moment/dense1.bias' is missing in it and [4] in the spec"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_network_names_what_differs(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(text())
    path = written(tmp_path, **options)
    done = call("run", str(spec), "--from", str(path), "--steps", "9", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--steps", "5"), "has done 5 steps, and the training has 5; --steps is the number of the whole training: at least 6"),
        (("--steps", "9", "--seed", "4"), "--seed 4: the checkpoint is of seed 3"),
        (("--steps", "9", "--until", "5"), "--until 5: lies in 6 to 9, the steps of this training"),
        (("--steps", "9", "--until", "10"), "--until 10: lies in 6 to 9"),
        (("--until", "0"), "--until is at least 1, got 0"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_run_are_refused(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(text())
    done = call("run", str(spec), "--from", str(written(tmp_path)), *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert expected in done.stderr
    assert not (tmp_path / "out").exists()


def run(spec: Path | str, folder: Path, **options: Any) -> RunResult:
    return runs.run(spec, Options(**{"out": folder, "precision": "float64", **options}))


def final(result: RunResult, backend: str) -> Checkpoint:
    return Checkpoint.read(result.directory / backend / "checkpoint.safetensors")


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
def test_a_run_from_a_checkpoint_is_the_unbroken_run_bit_for_bit(backend: str, tmp_path: Path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(text())
    common: dict[str, Any] = {"backends": (backend,), "precision": "float32", "steps": 9}
    whole = run(spec, tmp_path / "whole", **common)
    half = run(spec, tmp_path / "half", until=4, **common)
    rest = run(
        spec, tmp_path / "rest", start=tmp_path / "half" / backend / "checkpoint.safetensors", seed=None, **common
    )
    for result in (whole, half, rest):
        assert result.backends[backend].status == "ok", result.backends[backend].log
        assert result.verdict == "same", result.comparisons
    assert (rest.start, rest.steps, half.steps) == (4, 9, 4)
    first, second, all_losses = (r.backends[backend].losses["net"] for r in (half, rest, whole))
    assert first + second == all_losses
    assert rest.backends[backend].recorded == [4, 5, 6, 7, 8]
    for step in range(4, 9):
        mine, theirs = rest.backends[backend].state(step), whole.backends[backend].state(step)
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in theirs), step
    mine, theirs = final(rest, backend), final(whole, backend)
    assert mine.step == theirs.step == 9
    assert mine.origin == theirs.origin
    assert all(mine.arrays()[name].tobytes() == a.tobytes() for name, a in theirs.arrays().items())
    losses = [c for c in rest.comparisons if c["what"] == "loss"]
    assert [c["worst"]["step"] for c in losses] == [5], "the reference's loss is that of the first step of this run"
    # The fault that this must catch: a schedule that spans the steps that were run, not those of the training.
    short = run(spec, tmp_path / "short", **{**common, "steps": 4})
    assert any(np.any(a != half.backends[backend].state(3)[n]) for n, a in short.backends[backend].state(3).items())


@pytest.mark.frameworks
@pytest.mark.parametrize("name", [pytest.param("digits_cnn", marks=pytest.mark.slow), "digits_gan"])
def test_a_run_handed_from_framework_to_framework_lands_where_each_unbroken_one_does(name: str, tmp_path: Path) -> None:
    if len(INSTALLED) < 2:
        pytest.skip("needs two frameworks")
    steps, order = 9, INSTALLED
    whole = run(name, tmp_path / "whole", steps=steps)
    assert whole.verdict == "same"
    stops = [round(steps * (i + 1) / len(order)) for i in range(len(order))]
    start: Path | None = None
    for backend, until in zip(order, stops, strict=True):
        part = run(name, tmp_path / backend, steps=steps, until=until, start=start, backends=(backend,))
        assert part.verdict == "same", part.backends[backend].log
        start = part.directory / backend / "checkpoint.safetensors"
    assert all(a < b for a, b in pairwise(stops))
    assert start is not None
    landed = Checkpoint.read(start).arrays()
    for backend in order:
        unbroken = final(whole, backend).arrays()
        assert unbroken.keys() == landed.keys()
        worst = max(float(np.max(np.abs(landed[n] - a))) for n, a in unbroken.items())
        assert worst < 1e-10, f"{backend}: {worst}"


@pytest.mark.frameworks
def test_another_length_of_a_cosine_is_noted(tmp_path: Path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(text())
    backend = INSTALLED[0]
    run(spec, tmp_path / "first", steps=4, backends=(backend,))
    start = tmp_path / "first" / backend / "checkpoint.safetensors"
    rest = run(spec, tmp_path / "rest", steps=6, start=start, backends=(backend,))
    assert any("its cosine schedule spans another length" in note for note in rest.notes)
    assert RunResult.read(rest.directory).start == 4


@pytest.mark.frameworks
def test_the_inputs_digest_covers_the_checkpoint(tmp_path: Path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(text())
    checkpoint, _ = made()
    other = replace(checkpoint, optimizer={n: a + (a.ndim > 0) * 0.5 for n, a in checkpoint.optimizer.items()})
    digests = []
    for i, one in enumerate((checkpoint, other)):
        one.write(tmp_path / f"{i}.safetensors")
        result = run(spec, tmp_path / str(i), steps=9, start=tmp_path / f"{i}.safetensors", backends=INSTALLED)
        digests.append(json.loads((result.directory / INSTALLED[0] / "request.json").read_text())["digest"])
        assert len({r.digests["optimizer"] for r in result.backends.values()}) == 1
    assert digests[0] != digests[1]


@pytest.mark.frameworks
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("digits_mlp", "digits_gan") else pytest.mark.slow)
        for name in sorted(path.stem for path in directory().glob("*.yaml"))
    ],
)
def test_every_bundled_spec_goes_on_bit_for_bit_in_every_backend(name: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"precision": "float32", "steps": 6, "record": False, "evidence": False}
    whole = run(name, tmp_path / "whole", backends=INSTALLED, **common)
    half = run(name, tmp_path / "half", backends=INSTALLED, until=3, **common)
    for backend in INSTALLED:
        assert whole.backends[backend].status == half.backends[backend].status == "ok"
        start = half.directory / backend / "checkpoint.safetensors"
        rest = run(name, tmp_path / backend, backends=(backend,), start=start, **common)
        losses = {update: own[3:] for update, own in whole.backends[backend].losses.items()}
        assert rest.backends[backend].losses == losses
        assert all(len(own) == 3 for own in losses.values())
        mine, theirs = final(rest, backend).arrays(), final(whole, backend).arrays()
        assert mine.keys() == theirs.keys()
        assert all(mine[n].tobytes() == array.tobytes() for n, array in theirs.items()), backend
        # What it must catch: a checkpoint that says nothing, because training stands still.
        before = final(half, backend).arrays()
        assert any(before[n].tobytes() != array.tobytes() for n, array in theirs.items() if n.startswith("state/"))
