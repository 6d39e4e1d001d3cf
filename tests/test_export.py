"""Exports: each is loaded by its framework and the emitted program alone, and computes what the run did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import EACH, INSTALLED
from safetensors.numpy import load_file
from test_checkpoint import made, text
from test_checkpoint import written as written_by_hand
from test_cli import call

from harness import export, runs
from harness.results import RunResult
from harness.runs import Options

LOADERS = {
    "torch": """
import torch
saved = torch.load(files[0], weights_only=True)
model = getattr(program, model_class)().to(program.DEVICE)
model.load_state_dict(saved["model"])
model.eval()
optimizers = [program.make_optimizers(model), saved["optimizer"]] if network else [{"": program.make_optimizer(model)}, {"": saved["optimizer"]}]
for name, optimizer in optimizers[0].items():
    optimizer.load_state_dict(optimizers[1][name])
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    moment = state["momentum_buffer"] if "momentum_buffer" in state else state["exp_avg"]
    assert moment.abs().sum() > 0
assert saved["step"] == steps
with torch.no_grad():
    outputs = (getattr(model, network) if network else model)(torch.from_numpy(inputs)).numpy()
""",
    "tensorflow .weights.h5": """
model = program.make_model()
for path in files:
    one = getattr(model, path.name.split(".")[1]) if network else model
    if not network:
        optimizer = program.make_optimizer(model)
        model.compile(optimizer=optimizer)
    one.load_weights(path)
if not network:
    assert optimizer.iterations.numpy() == steps
    assert abs(optimizer.momentums[0].numpy()).sum() > 0
outputs = program.tf.function(getattr(model, network) if network else model)(inputs).numpy()
""",
    "tensorflow .keras": """
import keras
path = next(path for path in files if network in path.name)
classes = {name: value for name, value in vars(program).items() if isinstance(value, type)}
model = keras.models.load_model(path, custom_objects=classes)
outputs = program.tf.function(model)(inputs).numpy()
""",
    "jax": """
import jax
import orbax.checkpoint
from flax import nnx
with orbax.checkpoint.StandardCheckpointer() as checkpointer:
    saved = checkpointer.restore(files[0].absolute())
    optimizers = getattr(program, "optimizers", None) or {"": program.optimizer}
    if network:
        states = {name: o.init({name: saved["parameters"][name]}) for name, o in optimizers.items()}
        target = {**saved, "optimizer_states": states}
    else:
        target = {**saved, "optimizer_state": program.optimizer.init(saved["parameters"])}
    again = checkpointer.restore(files[0].absolute(), target)
kept = again["optimizer_states" if network else "optimizer_state"]
assert jax.tree.structure(kept) == jax.tree.structure(target["optimizer_states" if network else "optimizer_state"])
assert {int(leaf) for leaf in jax.tree.leaves(kept) if leaf.ndim == 0} == {steps}
assert saved["step"] == steps
model = nnx.merge(program.GRAPHDEF, saved["parameters"], saved["statistics"])
model.eval()
outputs = nnx.jit(getattr(model, network) if network else model)(inputs)
""",
}
"""How each format is opened: `program` is the emitted file, `files` what was exported, `network` one of several."""

ALONE = """
import importlib, json, sys
from pathlib import Path
sys.modules["harness"] = sys.modules["backends"] = None
sys.path.insert(0, ".")
import numpy as np
name, model_class, network, steps, *files = json.loads(sys.argv[1])
files = [Path(file) for file in files]
program = importlib.import_module(name)
inputs = np.load(sys.argv[2])
{load}
np.save(sys.argv[3], np.asarray(outputs))
"""

STEPS = 3
ASKED = {  # one of several networks, what goes into it, and what the run calls what comes out
    "digits_cnn": ("", "test.image", "classifier(image)"),
    "digits_gan": ("generator", "sample.noise", "images"),
}
FORMATS = [pytest.param(*b.values, suffix, marks=b.marks) for b in EACH for suffix in
           ((".weights.h5", ".keras") if b.values[0] == "tensorflow" else (".pt",) if b.values[0] == "torch" else ("",))]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """Each spec trained for some steps on every backend."""
    folder = tmp_path_factory.mktemp("trained")
    options: dict[str, Any] = {"backends": INSTALLED, "precision": "float64", "steps": STEPS}
    return {name: runs.run(name, Options(out=folder / name, **options)) for name in ASKED}


@pytest.mark.frameworks
@pytest.mark.parametrize("name", [pytest.param("digits_cnn", marks=pytest.mark.slow), "digits_gan"])
@pytest.mark.parametrize(("backend", "suffix"), FORMATS)
def test_an_export_is_loaded_by_its_framework_alone(
    backend: str, suffix: str, name: str, trained: dict[str, RunResult], tmp_path: Path
) -> None:
    result = trained[name]
    assert result.verdict == "same", result.notes
    network, key, answer = ASKED[name]
    # From the checkpoint of another framework, where there is one.
    other = INSTALLED[(INSTALLED.index(backend) + 1) % len(INSTALLED)]
    written = export.export(result.directory / other / "checkpoint.safetensors", backend, tmp_path / f"out{suffix}")
    *files, program = written
    assert all(path.exists() for path in written)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    assert program.read_text() == (result.directory / backend / program.name).read_text()
    inputs = load_file(result.directory / "inputs" / "data.safetensors")[key][:7]
    np.save(tmp_path / "inputs.npy", inputs)
    request = json.loads((result.directory / backend / "request.json").read_text())
    told = json.dumps([program.stem, request["model"], network, STEPS, *(path.name for path in files)])
    code = ALONE.replace("{load}", LOADERS[f"{backend} {suffix}" if backend == "tensorflow" else backend])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, told, "inputs.npy", "outputs.npy"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npy")
    expected = result.backends[backend].outputs()[f"final/{answer}"][:7]
    before = result.backends[backend].outputs()[f"initial/{answer}"][:7]
    assert outputs.shape == expected.shape
    assert outputs.dtype == np.float64
    assert np.max(np.abs(outputs - expected)) < 1e-13
    assert np.max(np.abs(outputs - before)) > 1e-6, "an untrained model would pass"


@pytest.mark.parametrize(
    ("backend", "out", "expected"),
    [
        ("mxnet", "x", "unknown backend 'mxnet'"),
        ("tensorflow", "x.h5", "Keras's files end in .weights.h5 or .keras, like case.weights.h5"),
        ("tensorflow", ".keras", "Keras's files end in"),
        ("torch", "there", "exists; an export never overwrites"),
        ("torch", ".", "is a directory; a state_dict is a file, like case.pt"),
        ("jax", "no/such/x", "there is no directory"),
    ],
)
def test_a_wrong_export_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, out: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written_by_hand(tmp_path)
    (tmp_path / "there").write_text("mine")
    done = call("export", str(path), "--backend", backend, "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "there"]
    assert (tmp_path / "there").read_text() == "mine"


def test_another_program_beside_an_export_is_not_overwritten(tmp_path: Path) -> None:
    path = written_by_hand(tmp_path)
    (tmp_path / "case_torch.py").write_text("# mine\n")
    done = call("export", str(path), "--backend", "torch", "--out", str(tmp_path / "x.pt"))
    assert done.returncode == 2
    assert "lies beside it and is another program" in done.stderr
    assert (tmp_path / "case_torch.py").read_text() == "# mine\n"


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    path = written_by_hand(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    done = call("export", str(path), "--backend", "torch", "--out", str(tmp_path / "x.pt"))
    assert done.returncode == 2
    assert "was cut short or corrupted" in done.stderr


def test_a_worker_that_fails_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    path = written_by_hand(tmp_path)
    bad = tmp_path / "bad"
    bad.write_text("#!/bin/sh\necho one >&2\necho it broke >&2\nexit 7\n")
    bad.chmod(0o755)
    done = call("export", str(path), "--backend", "jax", "--out", str(tmp_path / "x"), "--python", f"jax={bad}")
    assert done.returncode == 3
    assert done.stderr == "error: worker jax exited with status 7; its last line: it broke\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "checkpoint.safetensors"]


def test_the_program_comes_from_the_checkpoint_alone(tmp_path: Path) -> None:
    """Its data need not be there: the file says what fields there are."""
    table = tmp_path / "table.csv"
    table.write_text("a,b,kind\n1,2,x\n3,4,y\n5,6,x\n")
    spec = json.loads(text())
    spec["data"] = {"dataset": "csv", "file": str(table), "target": "kind", "batch": 2, "noise": {"z": {"shape": [2]}}}
    spec["networks"]["net"] = {"inputs": ["x"], "layers": [{"dense": 3}]}
    spec["training"]["updates"][0]["loss"] = {"softmax_cross_entropy": {"logits": "net(features)", "labels": "label"}}
    checkpoint, _ = made(spec=json.dumps(spec))
    checkpoint.write(tmp_path / "c.safetensors")
    table.unlink()
    from harness.checkpoint import Checkpoint  # noqa: PLC0415

    program = export.program_of(Checkpoint.read(tmp_path / "c.safetensors"))
    assert program.columns["label"].classes == 2
    assert program.parameters["dense1.kernel"].shape == (2, 3)
