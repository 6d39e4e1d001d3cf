"""Real trainings by real workers: short runs of the six specs, their mutants, and what a worker promises."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import reserved
from build import EACH, INSTALLED, live, program_of
from cases import CASES, spec_of
from safetensors.numpy import load_file

from harness import api, names, report, runs, spec
from harness.backend import BACKENDS, PACKAGES
from harness.data.inputs import prepare
from harness.errors import CallError
from harness.graph import Program
from harness.judge import Judging
from harness.programs import emitted
from harness.results import RunResult
from harness.runs import Options

pytestmark = pytest.mark.frameworks
SPECS = ["linear_regression", "digits_mlp", "digits_cnn", "digits_lstm", "char_transformer", "digits_gan"]
SHORT = {"char_transformer": 6, "digits_gan": 10}


def run(name: str, folder: Path, **options: object) -> RunResult:
    chosen: dict[str, object] = {
        "backends": INSTALLED,
        "precision": "float64",
        "steps": SHORT.get(name, 12),
        "out": folder / "run",
    }
    return runs.run(name, Options(**{**chosen, **options}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SPECS)
def test_every_spec_trains_alike_in_float64(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path)
    assert result.verdict == "same", (
        [r.error or r.log for r in result.backends.values()]
        + result.notes
        + [c for c in result.comparisons if not c["same"]]
    )
    kinds = {c["what"] for c in result.comparisons}
    assert kinds >= ({"forward", "loss", "gradients", "state"} if len(INSTALLED) > 1 else {"forward", "loss"})
    for comparison in result.comparisons:
        assert comparison["compared"] > 0
        # The bar is 1e-10; a few steps leave no room for more than rounding.
        assert comparison["worst"]["difference"] <= max(1e-3 * comparison["worst"]["allowed"], 1e-13)
    for what in ("parameters", "batches", "masks"):
        assert len({record.digests[what] for record in result.backends.values()}) == 1
    page = report.write(result.directory)
    assert "same" in page.read_text().lower() or "identical" in page.read_text().lower()


def test_the_tutorials_numbers_come_out(tmp_path: Path) -> None:
    result = run("linear_regression", tmp_path, steps=None)
    for record in result.backends.values():
        losses = record.losses["model"]
        assert len(losses) == 100
        assert losses[9] == pytest.approx(0.131688, abs=5e-7)
        assert losses[99] == pytest.approx(0.058635, abs=5e-7)
        assert record.predictions["five_six"] == [[pytest.approx(9.40166, abs=5e-6)]]


@pytest.mark.parametrize(("name", "bar"), [
    ("digits_mlp", 0.95), pytest.param("digits_cnn", 0.97, marks=pytest.mark.slow), pytest.param("digits_lstm", 0.93, marks=pytest.mark.slow),
])  # fmt: skip
def test_accuracy_on_held_out_digits(name: str, bar: float, tmp_path: Path) -> None:
    result = run(name, tmp_path, steps=None, precision="float32", evidence=False)
    for record in result.backends.values():
        assert record.status == "ok", record.error
        assert record.metrics["accuracy"] >= bar


def test_gru_is_one_word_away(tmp_path: Path) -> None:
    path = tmp_path / "digits_gru.yaml"
    path.write_text((spec.directory() / "digits_lstm.yaml").read_text().replace("- lstm:", "- gru:"))
    assert run(str(path), tmp_path).verdict == "same"


@pytest.mark.parametrize("name", ["digits_gan", pytest.param("digits_cnn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", EACH)
def test_the_emitted_program_alone_repeats_the_recorded_losses_exactly(backend: str, name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path / name, backends=(backend,), precision="float32", steps=8)
    folder = result.directory
    program = folder / backend / f"{name}_{backend}.py"
    alone = tmp_path / name / "alone"
    alone.mkdir()
    shutil.copy(program, alone)
    code = f"import sys; sys.modules['harness'] = sys.modules['backends'] = None; sys.argv = ['p', {str(folder)!r}]; import runpy; runpy.run_path({program.name!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=alone, env=_one_core()
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"^\d+ ", line)]
    recorded = list(zip(*result.backends[backend].losses.values(), strict=True))
    assert [tuple(map(float, row[1:])) for row in rows] == recorded


def _one_core() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


@pytest.mark.parametrize("backend", EACH)
def test_the_same_run_twice_is_bit_identical(backend: str, tmp_path: Path) -> None:
    first, second = (
        run("digits_cnn", tmp_path / str(i), backends=(backend,), precision="float32", steps=5).directory / backend
        for i in (1, 2)
    )
    files = sorted(p.relative_to(first) for p in first.rglob("*.safetensors"))
    assert len(files) > 5
    for file in files:
        a, b = load_file(first / file), load_file(second / file)
        assert a.keys() == b.keys()
        for name, array in a.items():
            assert array.tobytes() == b[name].tobytes(), f"{file} {name}"


MUTANTS = {
    "dropped activation": ("digits_mlp", "torch", "x = F.relu(x)", "x = x"),
    "other epsilon": ("digits_mlp", "torch", "eps=1e-08", "eps=1e-07"),
    "decay on biases": ("digits_mlp", "torch", 'in NO_DECAY], "weight_decay": 0.0', 'in NO_DECAY], "weight_decay": 0.05'),
    "no Nesterov": ("digits_cnn", "torch", ", nesterov=True", ""),
    "padding on the other side": ("digits_cnn", "torch", "(0, 1, 0, 1)", "(1, 0, 1, 0)"),
    "unbiased running variance": ("digits_cnn", "torch", "lerp_(variance, ", "lerp_(variance * 1.001, "),
    "schedule a step late": ("digits_cnn", "torch", 'group["lr"] = learning_rate(step)', 'group["lr"] = learning_rate(step + 1)'),
    "a second bias that is not zero": ("digits_lstm", "torch", "nn.init.zeros_(self.lstm1.bias_hh_l0)", "nn.init.constant_(self.lstm1.bias_hh_l0, 0.01)"),
    "no label smoothing": ("digits_lstm", "torch", ", label_smoothing=0.05", ""),
    "mask of another step": ("digits_mlp", "jax", "counter=step << 64", "counter=(step + 1) << 64"),
    "mean for last state": ("digits_lstm", "jax", "[:, -1]", ".mean(axis=1)"),
    "no clipping": ("digits_mlp", "jax", "optax.clip_by_global_norm(1.0)", "optax.identity()"),
    "tanh for erf": ("char_transformer", "jax", "approximate=False", "approximate=True"),
    "velocity with the rate inside": ("digits_cnn", "tensorflow", "rate * (gradient + self.momentum * velocity)", "rate * velocity"),
    "running mean's momentum": ("digits_cnn", "tensorflow", "momentum=0.9, epsilon", "momentum=0.8, epsilon"),
    "channels flattened otherwise": ("digits_mlp", "tensorflow", "x = tf.reshape(image, (-1, 64))", "x = tf.reshape(tf.transpose(image, (0, 2, 1, 3)), (-1, 64))"),
    "no scale in attention": ("char_transformer", "tensorflow", " / math.sqrt(q.shape[-1])", ""),
    "generator's and discriminator's order": ("digits_gan", "tensorflow", 'fake = tf.stop_gradient(model.generator(batch["noise"]))', 'fake = 0.5 * tf.stop_gradient(model.generator(batch["noise"]))'),
}  # fmt: skip


FIRST = (
    "no Nesterov",
    "padding on the other side",
    "mask of another step",
    "running mean's momentum",
    "generator's and discriminator's order",
)
"""Some of every backend and kind. The ladder's tests plant those of the catalogue."""


RESTLESS = {
    "keeps count in its module": (
        "    optimizer.step()",
        "    SEEN.append(0)\n    for p in model.parameters():\n        p.grad.mul_(1 + 0.01 * len(SEEN))\n    optimizer.step()",
        "\nSEEN = []\n\n\ndef loss_fn(",
    ),
    "draws numbers of its own": (
        "    optimizer.step()",
        "    for p in model.parameters():\n        p.grad.mul_(1 + 0.1 * torch.randn(()).item())\n    optimizer.step()",
        "\ndef loss_fn(",
    ),
}
"""Programs that part from their twins for another reason than rounding."""


@pytest.mark.skipif(not {"torch", "jax"} <= set(INSTALLED), reason="needs torch and jax")
@pytest.mark.parametrize("what", RESTLESS)
def test_a_program_that_does_not_repeat_itself_has_no_twins_to_be_excused_by(what: str, tmp_path: Path) -> None:
    old, new, head = RESTLESS[what]

    def plant(backend: str, program: Program) -> str:
        text = emitted(program, backend, "float64")
        if backend != "torch":
            return text
        assert text.count(old) == 1
        return text.replace(old, new).replace("\ndef loss_fn(", head)

    result = run("linear_regression", tmp_path, backends=("torch", "jax"), steps=30, plant=plant)
    assert result.verdict == "differs"
    assert any(note.startswith("torch does not repeat its own training") for note in result.notes), result.notes


@pytest.mark.skipif(not {"torch", "jax"} <= set(INSTALLED), reason="needs torch and jax")
def test_gradients_that_are_not_zeroed_are_not_those_of_the_twin_before(tmp_path: Path) -> None:
    def plant(backend: str, program: Program) -> str:
        text = emitted(program, backend, "float64")
        if backend != "torch":
            return text
        assert "optimizer.zero_grad()" in text
        return text.replace("optimizer.zero_grad()", "pass")

    result = run("linear_regression", tmp_path, backends=("torch", "jax"), steps=100, plant=plant)
    assert result.verdict == "differs"


@pytest.mark.parametrize("mutant", [pytest.param(m, marks=() if m in FIRST else pytest.mark.slow) for m in MUTANTS])
def test_a_planted_fault_is_caught(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, backend, old, new = MUTANTS[mutant]
    other = "torch" if backend != "torch" else "jax"
    if not {backend, other} <= set(INSTALLED):
        pytest.skip(f"needs {backend} and {other}")
    import importlib  # noqa: PLC0415

    emitter = importlib.import_module(f"backends.{backend}.emit")
    emit = emitter.emit

    def faulty(*arguments: object, **options: object) -> str:
        text = str(emit(*arguments, **options))
        if options.get("observe"):
            raise CallError("a changed program has no variant")
        assert old in text, f"the program no longer says {old!r}: plant the fault elsewhere"
        return text.replace(old, new)

    monkeypatch.setattr(emitter, "emit", faulty)
    result = run(name, tmp_path, backends=(other, backend), steps=4)
    assert result.verdict == "differs", [r.error for r in result.backends.values()]
    assert result.exit == 1


@pytest.mark.parametrize("backend", EACH)
def test_a_loss_that_is_no_number_names_step_and_node(backend: str, tmp_path: Path) -> None:
    text = json.loads(json.dumps(spec_of(CASES["dense"])))
    text["networks"]["net"]["layers"] = [
        {"dense": {"units": 3, "name": "first"}},
        {"dense": {"units": 1, "name": "second"}},
    ]
    text["training"]["steps"] = 60
    text["training"]["updates"][0]["optimizer"] = {"sgd": {"learning_rate": 1000.0}}
    path = tmp_path / "explodes.yaml"
    path.write_text(json.dumps(text))
    result = run(str(path), tmp_path, backends=(backend,), steps=None, precision="float32")
    record = result.backends[backend]
    assert (result.verdict, result.exit, record.status) == ("failed", 3, "diverged")
    assert re.search(r"the loss of 'net' became (nan|inf) at step \d+; ", record.error)
    assert re.search(r"logits|predictions|parameter|the loss itself", record.error)
    report.write(result.directory)


@pytest.mark.parametrize("backend", EACH)
def test_an_exception_in_a_program_is_a_row_with_the_end_of_its_log(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib  # noqa: PLC0415

    emitter = importlib.import_module(f"backends.{backend}.emit")
    emit = emitter.emit
    monkeypatch.setattr(
        emitter,
        "emit",
        lambda *a, **options: emit(*a, **options).replace(
            "def load_batch(", "def load_batch(*_):\n    raise RuntimeError('planted')\n\n\ndef unused("
        ),
    )
    result = run("linear_regression", tmp_path, backends=(backend,))
    record = result.backends[backend]
    assert (result.exit, record.status) == (3, "failed")
    assert "exited with status 1" in record.error
    assert "RuntimeError: planted" in record.log


def test_a_float32_run_that_parts_is_settled_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(INSTALLED) < 2:
        pytest.skip("needs two frameworks")
    from harness.compare import TOLERANCES, Tolerance  # noqa: PLC0415

    monkeypatch.setitem(TOLERANCES["float32"], "state", Tolerance(1e-12))
    result = run("digits_mlp", tmp_path, precision="float32")
    assert result.verdict == "same"
    assert result.evidence is not None
    assert result.evidence["verdict"] == "same"
    assert any("the same programs in float64 agree over the first" in note for note in result.notes)
    assert result.twins is not None
    assert 0 < result.twins["times"] <= result.twins["allowed"] == 3


def test_in_whatever_order_workers_end_the_verdict_is_the_same(tmp_path: Path) -> None:
    result = run("digits_mlp", tmp_path, precision="float32", evidence=False)
    program = api.load("digits_mlp").compile(steps=12)
    inputs, options = prepare(program), Options(backends=INSTALLED, steps=12)
    assert len(result.comparisons) == 2 * len(INSTALLED) + 5 * (len(INSTALLED) * (len(INSTALLED) - 1) // 2)
    for order in permutations(INSTALLED):
        judging = Judging(program, inputs, result.directory, options)
        for name in order:
            judging.add(result.backends[name])
        said = replace(judging.verdict(), started=result.started).to_json()
        assert said == result.to_json()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_those_that_trained_are_settled_in_float64_without_the_one_that_failed(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(INSTALLED) < len(BACKENDS):
        pytest.skip("needs three frameworks")
    import importlib  # noqa: PLC0415

    from harness.compare import TOLERANCES, Tolerance  # noqa: PLC0415

    emitter = importlib.import_module("backends.tensorflow.emit")
    emit, fault = emitter.emit, "def load_batch(*_):\n    raise RuntimeError('planted')\n\n\ndef unused("
    monkeypatch.setattr(emitter, "emit", lambda *a, **o: emit(*a, **o).replace("def load_batch(", fault))
    # In float32 losses part at once, in bfloat16 nothing does before all have ended.
    what = "loss" if precision == "float32" else "gradients"
    monkeypatch.setitem(TOLERANCES[precision], what, Tolerance(1e-12))
    result = run("digits_mlp", tmp_path, precision=precision, steps=4)
    assert (result.verdict, result.backends["tensorflow"].status) == ("failed", "failed")
    assert result.evidence is not None
    assert result.evidence["verdict"] == "same"
    exact = RunResult.read(tmp_path / "run" / "float64-evidence")
    assert list(exact.backends) == ["torch", "jax"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float64_and_twins_in_a_worker_that_waited_are_those_of_a_fresh_one(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the program before has set for its process, the next one's numbers are its own, to the last bit."""
    if len(INSTALLED) < 2:
        pytest.skip("needs two frameworks to part")
    from harness import runs, supervise  # noqa: PLC0415
    from harness.compare import TOLERANCES, Tolerance  # noqa: PLC0415

    begun: list[supervise.Worker] = []
    start = supervise._started
    monkeypatch.setattr(supervise, "_started", lambda *a, **o: begun.append(start(*a, **o)) or begun[-1])
    monkeypatch.setitem(TOLERANCES[precision], "gradients", Tolerance(1e-12))
    monkeypatch.setattr(runs, "PROOF_SECONDS", 0.0)
    monkeypatch.setattr(runs, "ROUNDS", 1)
    parted = run("digits_cnn", tmp_path / "both", precision=precision, steps=8)
    assert parted.evidence is not None, parted.notes
    assert parted.evidence["steps"] == runs.PROOF_LEAST
    assert len(begun) == len(INSTALLED)
    assert all(worker.process.poll() is not None for worker in begun), "who waited is gone with the run"
    trained = runs.train
    monkeypatch.setattr(runs, "train", lambda *a: trained(*a[:-1], None))
    fresh = run("digits_cnn", tmp_path / "fresh", precision=precision, steps=8)
    assert len(begun) == 5 * len(INSTALLED), "each in a process of its own: the training, two twins, float64"
    for name in INSTALLED:
        for folder in ("", "float64-evidence/", "twins/0/", "twins/1/"):
            own, other = (
                json.loads((r.directory / folder / name / "result.json").read_text()) for r in (fresh, parted)
            )
            assert all(own[what] == other[what] for what in ("losses", "digests", "recorded")), (folder, name)
        for number in ("0", "1"):  # a plain one and a shaken one
            files = [r.directory / "twins" / number / name / "distances.safetensors" for r in (fresh, parted)]
            assert files[0].read_bytes() == files[1].read_bytes()


def test_a_fault_in_float32_alone_is_not_excused_by_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 product in disguise, which a float64 run does not have."""
    if not {"torch", "jax"} <= set(INSTALLED):
        pytest.skip("needs torch and jax")
    import importlib  # noqa: PLC0415

    emitter = importlib.import_module("backends.torch.emit")
    emit = emitter.emit
    rounded = "x = F.relu(x.bfloat16().to(x.dtype) if x.dtype == torch.float32 else x)"
    monkeypatch.setattr(emitter, "emit", lambda *a, **o: emit(*a, **o).replace("x = F.relu(x)", rounded))
    result = run("digits_mlp", tmp_path, backends=("torch", "jax"), precision="float32", steps=4)
    assert result.evidence is not None
    assert result.evidence["verdict"] == "same", "the fault is not to be in the float64 program"
    assert (result.verdict, result.exit) == ("differs", 1)
    assert any("look for what only float32 does" in note for note in result.notes)
    assert RunResult.read(result.directory).verdict == "differs"


def test_a_bias_that_batch_normalisation_hides_trains_alike_under_adam(tmp_path: Path) -> None:
    text = json.loads(json.dumps(spec_of(CASES["batch_norm of an image"])))
    layers = [{"conv2d": {"channels": 3, "kernel": 2}}, "batch_norm", "relu", "flatten", {"dense": 1}]
    text["networks"]["net"]["layers"] = layers
    text["training"]["updates"][0]["optimizer"] = {"adam": {"learning_rate": 0.01}}
    path = tmp_path / "hidden.yaml"
    path.write_text(json.dumps(text))
    result = run(str(path), tmp_path, steps=60)
    assert result.verdict == "same", [c for c in result.comparisons if not c["same"]]
    assert set(result.zero_gradient) == {"conv1.bias", "norm1.mean"}
    carried = [c for c in result.comparisons if c["what"] == "carriers"]
    assert len(carried) == len(result.backends) * (len(result.backends) - 1) // 2


def test_images_may_be_made_from_data(tmp_path: Path) -> None:
    path = tmp_path / "autoencoder.yaml"
    path.write_text(json.dumps({
        "name": "autoencoder", "data": {"dataset": "digits", "batch": 16},
        "networks": {"net": {"inputs": ["image"], "layers": [{"conv2d": {"channels": 1, "kernel": 3, "padding": "same"}}, "sigmoid"]}},
        "training": {"steps": 3, "updates": [{"loss": {"mse": {"predictions": "net(image)", "targets": "image"}}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
        "evaluation": {"images": {"images": "net(image)", "count": 5}},
    }))  # fmt: skip
    result = run(str(path), tmp_path, steps=3)
    assert result.verdict == "same", [r.error or r.log for r in result.backends.values()]
    for backend in result.backends:
        assert load_file(result.directory / backend / "outputs.safetensors")["final/images"].shape == (5, 8, 8, 1)


def test_a_spec_that_asks_nothing_is_compared_before_training_all_the_same(tmp_path: Path) -> None:
    text = spec_of(CASES["dense"])
    assert "evaluation" not in text
    path = tmp_path / "silent.yaml"
    path.write_text(json.dumps(text))
    forward = [c for c in run(str(path), tmp_path, steps=2).comparisons if c["what"] == "forward"]
    assert forward
    assert all(c["compared"] == 1 for c in forward)


def test_a_dead_run_is_no_agreement(tmp_path: Path) -> None:
    text = json.loads(json.dumps(spec_of(CASES["relu"])))
    text["networks"]["net"]["layers"] = [
        {"dense": {"units": 3, "bias_init": {"constant": -1e6}}},
        "relu",
        {"dense": {"units": 1, "bias": False}},
    ]
    path = tmp_path / "dead.yaml"
    path.write_text(json.dumps(text))
    result = run(str(path), tmp_path, steps=3)
    assert result.verdict == "failed"
    assert any(note.startswith("Dead") for note in result.notes)


def test_smaller_last_batches_train_alike(tmp_path: Path) -> None:
    text = json.loads(json.dumps(spec_of(CASES["dropout"])))
    text["data"] |= {"batch": 3, "last_batch": "keep"}
    path = tmp_path / "ragged.yaml"
    path.write_text(json.dumps(text))
    assert run(str(path), tmp_path, steps=7).verdict == "same"


OTHER = {
    "momentum, steps and warm-up, clipped values": {
        "loss": {"mae": {"predictions": "net(x)", "targets": "y", "weight": 0.7}}, "clip": {"value": 0.05},
        "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.8}}, "schedule": {"step": {"every": 3, "multiply_by": 0.5, "warmup": 2, "warmup_start": 0.5}},
    },
    "adamw that spares everything": {
        "loss": {"sigmoid_cross_entropy": {"logits": "net(x)", "targets": "y", "label_smoothing": 0.1}},
        "optimizer": {"adamw": {"learning_rate": 0.05, "weight_decay": 0.3, "no_decay": ["kernel", "bias"]}},
    },
    "adamw that spares nothing, constant with warm-up": {
        "loss": [{"mse": {"predictions": "net(x)", "targets": 0}}, {"mse": {"predictions": "net(x)", "targets": "y", "weight": 2}}],
        "optimizer": {"adamw": {"learning_rate": 0.05, "weight_decay": 0.3, "no_decay": []}}, "schedule": {"constant": {"warmup": 3}},
    },
    "plain sgd, cosine": {"loss": {"mse": {"predictions": "net(x)", "targets": "y"}}, "optimizer": {"sgd": {"learning_rate": 0.1}}, "schedule": {"cosine": {"steps": 4, "final": 0.2}}},
}  # fmt: skip


@pytest.mark.parametrize("rule", OTHER)
def test_other_losses_and_rules_train_alike(rule: str, tmp_path: Path) -> None:
    text = json.loads(json.dumps(spec_of(CASES["dense"])))
    text["networks"]["net"]["layers"] = [{"dense": 4}, "tanh", {"dense": 1}]
    text["data"]["values"]["y"] = [[float(i % 2)] for i in range(8)]
    text["training"]["updates"] = [OTHER[rule]]
    path = tmp_path / "rule.yaml"
    path.write_text(json.dumps(text))
    result = run(str(path), tmp_path, steps=9)
    assert result.verdict == "same", [c for c in result.comparisons if not c["same"]]
    assert max(c["worst"]["difference"] for c in result.comparisons) < 1e-13


@pytest.mark.parametrize("backend", EACH)
def test_reserved_names_are_those_of_the_installed_framework(backend: str, tmp_path: Path) -> None:
    case = live(backend, program_of(spec_of(CASES["dense"])), tmp_path)
    model = getattr(case.session, "model", None)
    if model is None:  # JAX: the class, since the state is apart
        model = getattr(case.session.module, "Net")  # type: ignore[attr-defined]  # noqa: B009
    own = {n for n in dir(model) if not n.startswith("_")} - {"entry", "dense1", "net"}
    own |= reserved.attributes(backend)
    assert own <= names.ATTRIBUTES, f"python tests/reserved.py --write: {sorted(own - names.ATTRIBUTES)}"


@pytest.mark.parametrize("backend", EACH)
def test_a_worker_imports_its_own_framework_alone(backend: str, tmp_path: Path) -> None:
    result = run("linear_regression", tmp_path, backends=(backend,), steps=2)
    others = {package for name, packages in PACKAGES.items() if name != backend for package in packages}
    assert not others & set(result.backends[backend].versions)


def test_greedy_text_is_the_same_everywhere(tmp_path: Path) -> None:
    result = run("char_transformer", tmp_path, steps=3)
    texts = {record.text for record in result.backends.values()}
    assert len(texts) == 1
    assert len(next(iter(texts)) or "") == len("The ") + api.load("char_transformer").spec.evaluation.text.length  # type: ignore[union-attr]


def test_images_of_the_gan_are_written_by_every_backend(tmp_path: Path) -> None:
    result = run("digits_gan", tmp_path, steps=2)
    for backend in result.backends:
        images = load_file(result.directory / backend / "outputs.safetensors")["final/images"]
        assert images.shape == (32, 8, 8, 1)
        assert np.isfinite(images).all()
