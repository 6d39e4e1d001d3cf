"""The rung of seeds: on trainings that are made up, each fault must be found; then on real ones."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import INSTALLED, program_of
from cases import CASES, spec_of
from safetensors.numpy import save_file

from harness import report, runs, spec
from harness.check.seeds import SeedsResult, run_seeds
from harness.errors import CallError
from harness.judge import unmoved
from harness.results import BackendResult, RunResult
from harness.runs import Options

TWO = ("torch", "jax")
THREE = ("torch", "tensorflow", "jax")
HELD_OUT = 359
"""Examples: a fifth of the 1797 digits."""

Values = Callable[[str, str, int], dict[str, float]]
"""Backend, precision, seed -> metrics."""


def quality(_backend: str, _precision: str, seed: int) -> dict[str, float]:
    """What every backend ends with, by seed: accuracy in steps of one example, cross entropy continuous."""
    rng = np.random.default_rng(seed)
    return {"accuracy": (340 + int(rng.integers(0, 12))) / HELD_OUT, "cross_entropy": float(rng.normal(0.2, 0.02))}


class Fake:
    """Stands where `run_spec` would: results made up by a function, and what was asked for."""

    def __init__(
        self, values: Values = quality, change: Mapping[tuple[str, int], dict[str, Any]] | None = None
    ) -> None:
        self.values, self.change, self.asked, self.notes = values, change or {}, [], {}  # type: ignore[var-annotated]

    def __call__(self, loaded: spec.Spec, _text: Any, options: Options, _listen: Any) -> RunResult:
        self.asked.append(options)
        assert options.out is not None
        assert options.seed is not None
        (options.out / "inputs").mkdir(parents=True)
        save_file({"x": np.zeros(3)}, options.out / "inputs" / "data.safetensors")
        backends = {}
        for name in options.backends:
            said = self.values(name, options.precision, options.seed)
            losses = said.pop("losses", None) or {"classifier": [2.0, 1.0, 0.5]}
            record: dict[str, Any] = {
                "status": "ok", "metrics": said, "losses": losses,
                "digests": dict.fromkeys(("parameters", "batches", "masks"), f"{options.seed}"),
            }  # fmt: skip
            backends[name] = BackendResult(name, **(record | self.change.get((name, options.seed), {})))
        return RunResult(
            spec=loaded.name, about="", directory=options.out, verdict="same", steps=options.steps or 3,
            seed=options.seed, precision=options.precision, threads=1, device="cpu", backends=backends, comparisons=[],
            series={}, notes=self.notes.get(options.seed, []), zero_gradient={}, drift={},
        )  # fmt: skip


def check(folder: Path, runner: Any, name: str = "digits_mlp", **options: Any) -> SeedsResult:
    chosen = {"seeds": 5, "backends": THREE, "directory": folder, "steps": 3, "runner": runner, **options}
    result = run_seeds(*spec.load(spec.find(name)), **chosen)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["status"] == result.status
    assert all(line.strip() and "\n" not in line for line in result.sentences())
    return result


def test_backends_that_end_alike_pass(tmp_path: Path) -> None:
    result = check(tmp_path, Fake(), precisions=("float32", "float64"))
    assert result.status == "passed"
    assert [m.name for m in result.metrics] == ["accuracy", "cross_entropy"]
    assert all(len(m.pairs) == 3 * 2 for m in result.metrics), "every pair in both precisions"
    for metric in result.metrics:
        assert metric.components is not None
        assert metric.components["seed"].share == pytest.approx(1.0)
        assert metric.components["framework"].variance == 0
        expected = [quality("", "", seed)[metric.name] for seed in range(5)]
        assert metric.values["float64"]["jax"] == expected
        assert metric.margins["float32"].value == pytest.approx(np.std(expected, ddof=1) / 2)


def shifted(by: float, metric: str, backend: str = "jax") -> Values:
    def values(name: str, precision: str, seed: int) -> dict[str, float]:
        said = quality(name, precision, seed)
        rounding = np.random.default_rng([seed, len(name)]).normal(0, 1e-7)
        return said | {metric: said[metric] + rounding + (by if name == backend else 0.0)}

    return values


@pytest.mark.parametrize("metric", ["accuracy", "cross_entropy"])
def test_a_planted_difference_of_two_margins_fails(tmp_path: Path, metric: str) -> None:
    margin = 0.01
    result = check(tmp_path / "planted", Fake(shifted(2 * margin, metric)), margin={metric: margin})
    assert result.status == "failed"
    found = next(m for m in result.metrics if m.name == metric)
    assert found.status == "different"
    assert {(p.a, p.b): p.status for p in found.pairs} == {
        ("torch", "tensorflow"): "equivalent", ("torch", "jax"): "different", ("tensorflow", "jax"): "different",
    }  # fmt: skip
    assert found.components is not None
    assert found.components["framework"].variance == pytest.approx((2 * margin) ** 2 / 3, rel=1e-3)
    assert any("DIFFERENT" in line and "jax" in line for line in result.sentences())
    within = check(tmp_path / "within", Fake(shifted(margin / 2, metric)), margin={metric: margin})
    assert within.status == "passed", "half a margin apart, and sure of it"


def test_a_shift_of_twice_the_derived_margin_fails(tmp_path: Path) -> None:
    deviation = float(np.std([quality("", "", seed)["cross_entropy"] for seed in range(5)], ddof=1))
    assert check(tmp_path / "one", Fake(shifted(deviation, "cross_entropy"))).status == "failed"
    assert check(tmp_path / "two", Fake(shifted(deviation / 4, "cross_entropy"))).status == "passed"


def test_an_erratic_backend_does_not_pass_by_its_own_spread(tmp_path: Path) -> None:
    def values(name: str, precision: str, seed: int) -> dict[str, float]:
        said = quality(name, precision, seed)
        if name == "jax":
            said["accuracy"] = float(np.random.default_rng(seed + 100).uniform(0.1, 0.9))
        return said

    result = check(tmp_path, Fake(values))
    assert result.status == "failed"
    assert {p.status for p in result.metrics[0].pairs if "jax" in (p.a, p.b)} <= {"different", "undecided"}
    assert result.metrics[0].margins["float32"].value < 0.02


def test_one_example_more_or_less_is_within_the_margin_of_a_coarse_metric(tmp_path: Path) -> None:
    """Seeds hardly matter here, so half their deviation is less than one example's worth."""

    def values(name: str, precision: str, seed: int) -> dict[str, float]:
        right = 350 + (seed == 2) - (name == "jax" and seed == 4)
        return quality(name, precision, seed) | {"accuracy": right / HELD_OUT}

    result = check(tmp_path, Fake(values))
    assert result.metrics[0].margins["float32"].value == pytest.approx(1 / HELD_OUT)
    assert result.status == "passed"


def test_what_too_few_seeds_cannot_tell_is_undecided_and_not_passed(tmp_path: Path) -> None:
    def values(name: str, precision: str, seed: int) -> dict[str, float]:
        own = np.random.default_rng([seed, len(name)])  # nothing that the backends share
        return {"accuracy": float(own.normal(0.95, 0.01)), "cross_entropy": float(own.normal(0.2, 0.02))}

    result = check(tmp_path, Fake(values))
    undecided = [p for m in result.metrics for p in m.pairs if p.status == "undecided"]
    assert undecided
    assert all(p.needed is not None and p.needed > 5 for p in undecided)
    assert result.status == "failed"
    assert any("seeds would tell" in line for line in result.sentences())


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"status": "failed", "error": "exited with SIGKILL"}, "failed"),
        ({"status": "diverged", "error": "the loss became nan at step 2"}, "diverged"),
        ({"digests": {"parameters": "another", "batches": "3", "masks": "3"}}, "unpaired"),
        ({"metrics": {"accuracy": 0.9, "cross_entropy": float("nan")}}, "no number"),
        ({"metrics": {"accuracy": 0.9, "cross_entropy": float("inf")}}, "no number"),
    ],
)
def test_a_training_that_failed_is_named_and_fails_the_rung(
    tmp_path: Path, change: dict[str, Any], status: str
) -> None:
    result = check(tmp_path, Fake(change={("jax", 3): change}), precisions=("float32", "float64"))
    assert result.status == "failed"
    assert [(f.backend, f.precision, f.seed, f.status) for f in result.failures] == [
        ("jax", "float32", 3, status), ("jax", "float64", 3, status),
    ]  # fmt: skip
    assert result.tested == (0, 1, 2, 4), "the others' are still compared, seed by seed"
    assert all(m.status == "equivalent" for m in result.metrics)
    assert any(f"jax {status} with seed 3 in float32" in line for line in result.sentences())
    kept = sorted(p.parent.parent.name for p in tmp_path.glob("seeds/*/inputs/*.safetensors"))
    assert kept == ["float32-3", "float64-3"], "what a failure has to be looked at with stays, the rest does not"


def test_a_dead_training_fails_the_rung(tmp_path: Path) -> None:
    runner = Fake()
    runner.notes = {1: ["Dead: in torch update 'classifier' moved no parameter.", "A note on something else."]}
    result = check(tmp_path, runner)
    assert [(f.backend, f.seed, f.status) for f in result.failures] == [("torch", 1, "dead")]
    assert result.status == "failed"


def test_backends_that_all_fail_leave_nothing_tested(tmp_path: Path) -> None:
    gone = {(b, s): {"status": "failed", "error": "no"} for b in THREE for s in range(5)}
    result = check(tmp_path, Fake(change=gone))
    assert result.status == "failed"
    assert {m.status for m in result.metrics} == {"untested"}
    assert len(result.failures) == 15
    one = {key: value for key, value in gone.items() if key[1] != 2}
    assert check(tmp_path / "one", Fake(change=one)).status == "failed", "one seed has no spread"


def constant(name: str, precision: str, seed: int) -> dict[str, float]:
    return quality(name, precision, seed) | {"accuracy": 1.0}


def always(**metrics: float) -> Values:
    return lambda _backend, _precision, _seed: dict(metrics)


def test_a_metric_that_no_seed_moves_is_void_and_not_passed(tmp_path: Path) -> None:
    result = check(tmp_path / "one", Fake(constant))
    assert result.void == ("accuracy",)
    assert {p.status for p in result.metrics[0].pairs} == {"void"}
    assert result.status == "passed", "by the other metric"
    assert any("VOID" in line and "accuracy" in line for line in result.sentences())
    both = check(tmp_path / "all", Fake(always(accuracy=1.0, cross_entropy=0.0)))
    assert both.status == "void"
    given = check(tmp_path / "given", Fake(constant), margin={"accuracy": 0.1})
    assert given.void == ("accuracy",), "a margin does not make a dead metric live"


def test_rounding_is_not_what_moves_a_metric(tmp_path: Path) -> None:
    def values(name: str, precision: str, seed: int) -> dict[str, float]:
        return constant(name, precision, seed) | {"accuracy": 0.9 + 1e-8 * seed * len(name)}

    assert check(tmp_path, Fake(values)).void == ("accuracy",)


@pytest.mark.parametrize("margin", [None, {"accuracy": 0.05}])
def test_a_metric_that_no_seed_moves_and_that_differs_is_a_difference(tmp_path: Path, margin: Any) -> None:
    def values(name: str, precision: str, seed: int) -> dict[str, float]:
        return constant(name, precision, seed) | {"accuracy": 0.1 if name == "jax" else 1.0}

    result = check(tmp_path, Fake(values), margin=margin)
    assert result.metrics[0].status == "different"
    assert result.status == "failed"


def test_a_backend_stuck_where_others_move_is_not_void(tmp_path: Path) -> None:
    def values(name: str, precision: str, seed: int) -> dict[str, float]:
        return quality(name, precision, seed) | ({"accuracy": 0.95} if name == "jax" else {})

    result = check(tmp_path, Fake(values))
    assert result.void == ()
    assert result.status == "failed"


def ends(seed: int) -> float:
    return float(np.random.default_rng(seed).normal(1, 0.1))


def no_metrics(name: str, _precision: str, seed: int) -> Any:
    worse = 0.5 if name == "jax" else 0.0
    return {"losses": {"discriminator": [9.0] * 18 + [ends(seed), ends(seed) + 0.2],
                       "generator": [9.0] * 18 + [ends(seed) + worse, ends(seed) + worse]}}  # fmt: skip


def test_a_spec_without_metrics_is_judged_by_the_end_of_each_updates_training_loss(tmp_path: Path) -> None:
    result = check(tmp_path, Fake(no_metrics), "digits_gan", steps=20)
    assert [m.name for m in result.metrics] == [
        "final training loss of discriminator", "final training loss of generator",
    ]  # fmt: skip
    last = [ends(seed) + 0.1 for seed in range(5)]
    assert result.metrics[0].values["float32"]["torch"] == pytest.approx(last), "the mean of the last two of 20 steps"
    assert [m.status for m in result.metrics] == ["equivalent", "different"]


def test_what_is_asked_of_each_training(tmp_path: Path) -> None:
    runner, heard = Fake(), []
    result = check(
        tmp_path, runner, precisions=("float32", "float64"), backends=TWO, first=7, steps=9,
        pythons=("torch=/bin/sh",), listen=lambda who, event: heard.append((who, event)),
    )  # fmt: skip
    assert result.seeds == (7, 8, 9, 10, 11)
    assert [(o.precision, o.seed) for o in runner.asked[:4]] == [
        ("float32", 7), ("float64", 7), ("float32", 8), ("float64", 8),
    ]  # fmt: skip
    for options in runner.asked:
        assert options.out == tmp_path / "seeds" / f"{options.precision}-{options.seed}"
        assert (options.record, options.evidence, options.steps, options.backends) == (False, False, 9, TWO)
        assert options.pythons == ("torch=/bin/sh",)
    assert heard[0] == ("seeds", {"phase": "seed 7", "total": 10})
    assert heard[-1] == ("seeds", {"step": 10, "losses": {}})


def test_the_result_says_what_a_seed_moves(tmp_path: Path) -> None:
    result = check(tmp_path / "a", Fake())
    assert result.moved == ("initial parameters", "the split into training and held-out examples",
                            "the order of batches", "dropout masks")  # fmt: skip
    assert "a seed moves initial parameters, the split" in result.sentences()[0]
    gan = check(tmp_path / "b", Fake(no_metrics), "digits_gan", steps=2)
    assert gan.moved == ("initial parameters", "the order of batches", "noise", "dropout masks")
    nothing = check(tmp_path / "c", Fake(always(mae=0.1)), "linear_regression")
    assert nothing.moved == ()
    assert nothing.status == "void"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seeds": 4}, "needs at least 5 seeds, got 4"), ({"seeds": 1, "least": 1}, "needs at least 2 seeds"),
        ({"backends": ("jax",)}, "compares backends and needs two, got jax"),
        ({"precisions": ("float16",)}, "precisions are bfloat16 and float32 and float64 and tf32"), ({"precisions": ()}, "got none"),
        ({"margin": {"acuracy": 0.1}}, "'acuracy', which is no metric here: accuracy, cross_entropy"),
        ({"margin": {"accuracy": 0.0}}, "a number above 0, got 0"),
        ({"margin": {"accuracy": float("nan")}}, "a number above 0, got nan"),
        ({"pythons": ("tf=/bin/sh",)}, "unknown backend 'tf'"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused_before_anything_is_trained(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    runner = Fake()
    with pytest.raises(CallError, match=expected):
        check(tmp_path, runner, **options)
    assert not runner.asked


# Runs without a record


def test_a_run_without_a_record_asks_for_no_states_and_no_gradients() -> None:
    program = program_of(spec_of(CASES["dense"]), steps=100)
    for precision in ("float32", "float64"):
        assert runs.recorded_steps(program, Options(precision=precision, record=False)) == ([], [])
        assert all(runs.recorded_steps(program, Options(precision=precision))), "an ordinary run records both"


@pytest.mark.parametrize("moves", [True, False])
def test_a_run_without_a_record_is_dead_where_no_parameter_moved(tmp_path: Path, moves: bool) -> None:
    program = program_of(spec_of(CASES["batch_norm"]))
    learned = [name for name, parameter in program.parameters.items() if parameter.learned]
    statistics = [name for name, parameter in program.parameters.items() if not parameter.learned]
    assert statistics, "what moves without being learned proves nothing"
    before = {name: np.ones(p.shape) for name, p in program.parameters.items()}
    after = {name: array + (name in statistics) for name, array in before.items()}
    if moves:
        after[learned[-1]] = after[learned[-1]] + 1e-6
    for folder, file, arrays in (
        ("inputs", "parameters", before), ("torch", "outputs", {f"state/{n}": a for n, a in after.items()}),
    ):  # fmt: skip
        (tmp_path / folder).mkdir()
        save_file(arrays, tmp_path / folder / f"{file}.safetensors")
    record = BackendResult(
        "torch", "ok", losses={u.name: [1.0, 2.0] for u in program.updates}, folder=tmp_path / "torch"
    )
    notes = unmoved(program, tmp_path, {"torch": record})
    assert bool(notes) != moves
    assert moves or notes[0].startswith("Dead: in torch update ")


# Real trainings


def real(name: str, folder: Path, **options: Any) -> SeedsResult:
    if len(INSTALLED) < 2:
        pytest.skip("needs two frameworks")
    return check(
        folder, runs.run_spec, name, **({"backends": INSTALLED[:2], "seeds": 2, "least": 2, "steps": 8} | options)
    )


@pytest.mark.frameworks
def test_a_run_without_a_record_is_judged_by_what_there_is(tmp_path: Path) -> None:
    if len(INSTALLED) < 2:
        pytest.skip("needs two frameworks")
    options = {"backends": INSTALLED[:2], "steps": 4, "evidence": False}
    light = runs.run("digits_cnn", Options(record=False, out=tmp_path / "light", **options))  # type: ignore[arg-type]
    whole = runs.run("digits_cnn", Options(out=tmp_path / "whole", **options))  # type: ignore[arg-type]
    assert light.verdict == whole.verdict == "same", light.notes
    assert {c["what"] for c in light.comparisons} == {"forward", "loss", "outputs"}
    assert {c["what"] for c in whole.comparisons} == {"forward", "loss", "outputs", "gradients", "state"}
    assert not list(light.directory.glob("*/trajectory/*"))
    assert light.notes == whole.notes
    for name in options["backends"]:  # type: ignore[attr-defined]
        assert light.backends[name].losses == whole.backends[name].losses, "recording changes no number"
    assert report.write(light.directory).exists()


@pytest.mark.frameworks
def test_real_trainings_end_alike_and_a_fault_in_one_program_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = real("digits_mlp", tmp_path / "right")
    assert right.status == "passed", right.sentences()
    assert not list(tmp_path.glob("right/seeds/*/inputs/*.safetensors"))
    assert not list(tmp_path.glob("right/seeds/*/*/trajectory/*"))
    assert len(list(tmp_path.glob("right/seeds/*/*/outputs.safetensors"))) == 2 * 2
    emitter = importlib.import_module(f"backends.{INSTALLED[1]}.emit")
    emit = emitter.emit

    def slower(*arguments: Any, **options: Any) -> str:
        text: str = emit(*arguments, **options)
        assert "0.003" in text
        return text.replace("0.003", "0.0003")

    monkeypatch.setattr(emitter, "emit", slower)
    wrong = real("digits_mlp", tmp_path / "wrong")
    assert wrong.status == "failed"
    assert not wrong.failures, "it trains, only worse"


@pytest.mark.frameworks
def test_a_spec_that_no_seed_moves_is_void(tmp_path: Path) -> None:
    result = real("linear_regression", tmp_path)
    assert (result.status, result.void) == ("void", ("mae",))
