"""Random specs: what is drawn covers the vocabulary and is valid; what is judged is judged right; what is found is kept."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from build import INSTALLED
from typer.testing import CliRunner

from harness import initial, source, spec
from harness.check.reduce import Reduced, dumped
from harness.check.subject import Subject
from harness.cli import app
from harness.data.datasets import DATASETS
from harness.errors import CallError, HarnessError, SpecError
from harness.fuzz import corpus, keep, shrink
from harness.fuzz import fuzz as fuzzing
from harness.fuzz.draw import Context, Undrawable, bounds, factors, kind, record
from harness.fuzz.fuzz import FuzzOptions, _Twins, fuzz
from harness.fuzz.generate import Drawn, Redrawn, draw, plain, resolved
from harness.fuzz.judge import alike, judge, without_effect
from harness.fuzz.record import WITHOUT_EFFECT, FuzzResult, Outcome
from harness.fuzz.report import sentence
from harness.fuzz.training import Answer, Trained, opened
from harness.initializers import INITIALIZERS
from harness.losses import LOSSES
from harness.metrics import METRICS
from harness.ops import OPS
from harness.ops.activation import Relu
from harness.optimizers import CLIPS, OPTIMIZERS, SCHEDULES
from harness.programs import emitted
from harness.spec import LAYERS

DRAWS = 500
"""Within which everything is to be seen."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    corpus.write(folder)
    return folder


def words(value: Any) -> Iterator[str]:
    """Every key and every word of a spec."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from words(item)
    elif isinstance(value, list):
        for item in value:
            yield from words(item)
    elif isinstance(value, str):
        yield value


# Drawing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_that_a_spec_can_say_is_drawn(files: Path) -> None:
    """In the first draws, those that lead nowhere left out."""
    seen: Counter[str] = Counter()
    sections: dict[str, Counter[str]] = {n: Counter() for n in ("networks", "training", "evaluation", "data")}
    for number in range(DRAWS):
        try:
            found = plain(initial.stream(0, "coverage", number), "fuzzed", files)
        except (Redrawn, Undrawable, SpecError):
            continue
        for name, own in sections.items():
            own.update(set(words(found.get(name, {}))))
        seen.update(words({"blocks": found.get("blocks", {})}))
    layers = sections["networks"] + seen
    assert [c.kind for c in LAYERS if not layers[c.kind]] == []
    assert [c.kind for c in INITIALIZERS if not layers[c.kind]] == []
    for section, family in (("training", (*LOSSES, *OPTIMIZERS, *SCHEDULES, *CLIPS)), ("evaluation", METRICS)):
        assert [c.kind for c in family if not sections[section][c.kind]] == []
    kinds = {name for c in DATASETS for name in c.model_fields["dataset"].annotation.__args__}
    assert kinds - set(sections["data"]) == set()
    assert seen["size"], "no block has a parameter"


def test_a_new_op_is_drawn_without_a_word_about_it(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    class Halved(Relu):
        """Half of what ReLU makes."""

        kind = "halved"

    monkeypatch.setitem(OPS, "halved", Halved)
    monkeypatch.setattr("harness.fuzz.generate.LAYERS", (*LAYERS, Halved))
    monkeypatch.setattr("harness.spec.LAYERS", (*LAYERS, Halved))
    tried = [kind(np.random.default_rng(i), Halved) for i in range(8)]
    assert {str(t) for t in tried} == {"halved", "{'halved': None}"}


def test_a_seed_and_a_number_are_a_spec(files: Path) -> None:
    first, second, other = draw(3, 4, files), draw(3, 4, files), draw(3, 5, files)
    assert first.text == second.text != other.text


def test_specs_that_are_drawn_resolve_and_are_alive(files: Path) -> None:
    drawn = [draw(11, number, files) for number in range(15)]
    assert all(2 <= d.program.steps <= 8 and d.program.batch <= 8 for d in drawn)
    # Half of what is drawn and more is taken: the drawing knows what fits.
    assert sum(len(d.redrawn) for d in drawn) < 45
    shapes = {len(graph.nodes) for d in drawn for graph in d.program.networks.values()}
    assert max(shapes) > 6
    assert any(len(d.program.networks) > 1 for d in drawn)
    assert any(len(d.program.updates) > 1 for d in drawn)
    for d in drawn:
        assert spec.loads(d.text)[0] == d.spec


def test_every_field_of_every_kind_is_drawn_within_its_bounds() -> None:
    context = Context(words={"": ("a", "b")}, size=12, layers=lambda: ["relu"], array=lambda: [[1.0]])
    for cls in (*LAYERS, *OPTIMIZERS, *SCHEDULES, *CLIPS, *INITIALIZERS):
        drawn: set[str] = set()
        for seed in range(60):
            fields = record(np.random.default_rng(seed), cls, context)
            cls.model_validate(fields)
            drawn |= set(fields)
        assert drawn == {i.alias or n for n, i in cls.model_fields.items()}, cls.kind


def test_factors_multiply_to_the_size() -> None:
    rng = np.random.default_rng(0)
    assert all(np.prod(factors(rng, size)) == size for size in range(1, 60) for _ in range(4))


def test_bounds_are_those_of_the_field() -> None:
    momentum = OPTIMIZERS[0].model_fields["momentum"]
    assert bounds(momentum.metadata) == (0, 1)


def test_a_dead_spec_is_drawn_again(files: Path) -> None:
    text = dumped(
        {
            "name": "dead",
            "data": {"dataset": "random", "examples": 4, "batch": 2, "fields": {"a": {"shape": [3]}}},
            "networks": {"net": {"layers": [{"dense": {"units": 1, "kernel_init": "zeros"}}, {"layer_norm": {"scale": False, "bias": False}}]}},
            "training": {"steps": 2, "updates": [{"loss": {"mse": {"predictions": "net(a)", "targets": 0}}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
        }
    )  # fmt: skip
    with pytest.raises(Redrawn, match="no parameter that is moved changes the loss"):
        resolved(0, text)


def test_a_loss_that_is_rounding_is_drawn_again(files: Path) -> None:
    """The normalisation of values that are alike: what is left of them is rounding, of which a second one makes numbers."""

    def spec_of(*layers: object) -> str:
        return dumped(
            {
                "name": "rounding",
                "data": {"dataset": "random", "examples": 4, "batch": 2, "fields": {"a": {"shape": [1]}}},
                "networks": {"net": {"layers": [{"tanh": {"name": "h"}}, {"concatenate": {"inputs": ["h", "h", "h"]}}, *layers]}},
                "training": {"steps": 2, "updates": [{"loss": {"mse": {"predictions": "net(a)", "targets": 0}}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
            }
        )  # fmt: skip

    norm = {"layer_norm": {"epsilon": 1e-6}}
    assert resolved(0, spec_of({"dense": {"units": 2}}, norm))
    with pytest.raises(Redrawn, match="what rounding has left"):
        resolved(0, spec_of(norm, norm))


def test_a_value_whose_square_leaves_float32_is_drawn_again(files: Path) -> None:
    """A recurrent state that dropout scales at each of 64 steps, and a normalisation after it: infinite in one, 0 in another."""

    def spec_of(length: int) -> str:
        return dumped(
            {
                "name": "growing",
                "data": {"dataset": "random", "examples": 4, "batch": 2, "fields": {"a": {"shape": [length, 2]}}},
                "networks": {"net": {"layers": [{"gru": {"units": 4, "recurrent_dropout": 0.556}}, "layer_norm"]}},
                "training": {"steps": 2, "updates": [{"loss": {"mse": {"predictions": "net(a)", "targets": 0.5}}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
            }
        )  # fmt: skip

    assert resolved(0, spec_of(4))
    with pytest.raises(Redrawn, match="in the first step"):
        resolved(0, spec_of(96))


def test_a_spec_that_is_made_smaller_may_be_dead(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(21, 0, files)
    monkeypatch.setattr(keep, "resolved", Mock(side_effect=Redrawn("no parameter that is moved changes the loss")))
    live: Any = SimpleNamespace(name="torch")
    assert keep.fails_smaller(drawn, "torch", "ValueError: x", "float64", live, tmp_path) is drawn


@pytest.mark.parametrize("text", ["?xyz", "? a", "a: b", "- a", "{", "1", "~", "", " a", "#", "'"])
def test_a_word_is_written_as_it_is_read(text: str) -> None:
    for data in ({"a": {"b": text, "c": 1}}, {"a": [text, 1]}, {"a": [{"b": [text]}]}):
        assert source.parse(dumped(data)).root.plain() == data


# Making smaller --------------------------------------------------------------------------------------------

BRANCHED = [
    {"dense": {"units": 3, "name": "a"}},
    "relu",
    {"dense": {"units": 3, "name": "b", "inputs": ["a"]}},
    {"tanh": {"name": "c", "inputs": ["x"]}},
    {"concatenate": {"inputs": ["b", "c"]}},
]


def test_a_layer_is_taken_out_by_letting_its_readers_read_what_it_read() -> None:
    found = list(shrink.fewer_layers(BRANCHED, ("x",)))
    assert [{"dense": 3}] not in found
    assert [{"dense": {"units": 3}}] in found, "cut short after the first"
    without_a = [
        {"dense": {"units": 3, "name": "b"}},
        {"tanh": {"name": "c", "inputs": ["x"]}},
        {"concatenate": {"inputs": ["b", "c"]}},
    ]
    assert without_a in found
    assert all(len(layers) < len(BRANCHED) or layers[-1] != BRANCHED[-1] for layers in found)


def test_what_nothing_asks_for_any_more_is_taken_out() -> None:
    data = {
        "data": {"fields": {"a": {}, "b": {}}, "noise": {"haze": {"shape": [2]}}},
        "networks": {"one": {"layers": ["relu"]}, "two": {"layers": [{"part1": None}]}},
        "blocks": {"part1": {"layers": ["relu"]}},
        "training": {"updates": [{"values": {"made": "two(b)"}, "loss": {"mse": {"predictions": "one(a)", "targets": 0}}, "over": ["one", "two"]}]},
        "evaluation": {"images": {"images": "two(b)"}},
    }  # fmt: skip
    assert shrink.pruned(data) == {
        "data": {"fields": {"a": {}}},
        "networks": {"one": {"layers": ["relu"]}},
        "training": {"updates": [{"loss": {"mse": {"predictions": "one(a)", "targets": 0}}, "over": ["one"]}]},
    }


def test_a_spec_is_made_as_small_as_what_it_shows(files: Path, tmp_path: Path) -> None:
    """What is to be shown: a layer of some kind, in one network or another."""
    drawn = draw(21, 0, files)
    kinds = [n.op.kind for g in drawn.program.networks.values() for n in g.nodes]

    def shows(text: str, _place: Path) -> Drawn | None:
        try:
            own = resolved(0, text)
        except (SpecError, Redrawn):
            return None
        return own if any(n.op.kind == "dense" for g in own.program.networks.values() for n in g.nodes) else None

    assert kinds.count("dense")
    small = keep.smallest(drawn, shows, tmp_path, 60.0)
    assert sum(len(g.nodes) for g in small.program.networks.values()) <= 3 < len(kinds)


@pytest.mark.parametrize("holds", [True, False])
def test_a_small_spec_of_one_step_is_kept_where_its_training_differs_and_one_by_training_where_not(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, holds: bool
) -> None:
    drawn = draw(21, 0, files)
    by_step = Reduced(drawn.text.replace("training:", "training: # by step"), None, {"torch": "pass"}, 1, {})  # type: ignore[arg-type]
    monkeypatch.setattr(keep, "_dissected", lambda *_: by_step)
    tried: list[Path] = []

    def differs(_spec: Drawn, place: Path) -> bool:
        tried.append(place)
        return holds if len(tried) == 1 else len(tried) == 2

    found = Outcome(0, "differs", "loss")
    paths = keep.keep(drawn, found, {}, "float64", {}, tmp_path / "work", tmp_path, differs)
    small = next(Path(p).read_text() for p in paths if p.endswith("_small.yaml"))
    assert ("# by step" in small) is holds
    assert holds or len(small) < len(drawn.text)
    said = [Path(p).read_text() for p in paths if p.endswith("diff.txt")]
    assert said == ([] if holds else ["The whole training of the smallest spec that one step shows it in does not.\n"])
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("torch could not 'train'\nTraceback (most recent call last):\n  x\nRuntimeError: bad 3\n", "RuntimeError: bad 3"),
        ("tensorflow could not 'answered': • training=False\nTraceback\nInvalidArgumentError: shape [2] and [3]\n\nArguments received:\n  • training=False", "InvalidArgumentError: shape [2] and [3]"),
        ("worker jax ended with signal 11", "worker jax ended with signal 11"),
    ],
)  # fmt: skip
def test_a_failure_is_said_in_the_line_that_names_it(said: str, line: str) -> None:
    assert keep.sentence(said) == line
    assert keep.kind(said.replace("3", "7")) == keep.kind(said)


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", INSTALLED)
def test_the_file_of_a_program_that_fails_trains_by_itself(backend: str, files: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    paths = keep.written(draw(21, 3, files), {}, "float64", tmp_path, into)
    own = next(p for p in paths if p.stem.endswith(backend))
    done = subprocess.run([sys.executable, "-P", str(own)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


# Judging --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(files: Path) -> Drawn:
    return draw(2, 0, files)


def answer(value: float, steps: int, *, shift: float = 0.0, at: int = 2) -> Answer:
    """What a backend may say; `shift` is added to its state at a step."""
    states = np.arange(steps, dtype=float)[:, None] * np.ones(3) + value
    states[at:] += shift
    losses = [value + i for i in range(steps)]
    return Answer({}, {}, {"u": losses}, {"w": states}, {}, {})


@dataclass
class Said:
    """Twins that say what a test wants."""

    moved: Callable[[int], Mapping[str, Answer]]
    shaken: Callable[[int], Mapping[str, Answer]]


def nobody(_number: int) -> dict[str, Answer]:
    pytest.fail("asked for twins")


def judged(drawn: Drawn, tmp_path: Path, answers: dict[str, Answer], twin: float) -> Any:
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    subject.remembered["fuzz"] = {}

    def twins(_number: int) -> dict[str, Answer]:
        return {n: replace(a, states={"w": a.states["w"] + twin}) for n, a in answers.items()}

    return judge(subject, answers, Said(twins, lambda _number: answers))


def test_what_agrees_pays_for_no_twins(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    subject.remembered["fuzz"] = {}
    found = judge(subject, {"a": answer(1.0, steps), "b": answer(1.0, steps)}, Said(nobody, nobody))
    assert (found.status, found.notes) == ("same", ())


@pytest.mark.parametrize(("twin", "status"), [(1e-6, "rounding"), (3e-7, "differs"), (0.0, "differs")])
def test_what_parts_is_held_beside_twins(drawn: Drawn, tmp_path: Path, twin: float, status: str) -> None:
    steps = drawn.program.steps
    answers = {"a": answer(1.0, steps), "b": answer(1.0, steps, shift=1e-6), "c": answer(1.0, steps)}
    found = judged(drawn, tmp_path, answers, twin)
    assert found.status == status
    if status == "differs":
        assert found.odd == "b"
        assert found.said.startswith("state w, step 3: ")


def shifted(answers: dict[str, Answer], far: float) -> dict[str, Answer]:
    return {n: replace(a, states={"w": a.states["w"] + far}) for n, a in answers.items()}


def test_shaken_twins_are_asked_where_the_others_explain_nothing(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    answers = {"a": answer(1.0, steps), "b": answer(1.0, steps, shift=1e-6)}
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    subject.remembered["fuzz"] = {}
    asked: list[int] = []

    def shaken(far: list[float]) -> Callable[[int], Mapping[str, Answer]]:
        return lambda number: (asked.append(number), shifted(answers, far[number]))[1]

    found = judge(subject, answers, Said(lambda _n: answers, shaken([1e-6])))
    assert (found.status, asked) == ("rounding", [0])
    asked.clear()
    # Near to what is allowed, more of them are asked; far from it, none.
    assert judge(subject, answers, Said(lambda _n: answers, shaken([2e-7] * 3 + [5e-7]))).status == "rounding"
    assert asked == [0, 1, 2, 3]
    asked.clear()
    assert judge(subject, answers, Said(lambda _n: answers, shaken([1e-8]))).status == "differs"
    assert asked == [0]


def test_what_is_no_number_in_all_alike_is_no_difference(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    full = {"v": np.array([1.0, np.inf])}
    answers = {name: replace(answer(1.0, steps), slots=full) for name in ("a", "b")}
    assert judged(drawn, tmp_path, answers, 0.0).status == "same"
    answers["b"] = replace(answers["b"], slots={"v": np.array([1.0, 2.0])})
    shutil.rmtree(tmp_path / "subject")
    assert judged(drawn, tmp_path, answers, 0.0).status == "differs"


def test_a_program_that_does_not_say_the_same_twice_has_no_twins(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    once = answer(1.0, steps)
    assert alike(subject, once, once)
    assert alike(
        subject, replace(once, slots={"v": np.array([np.nan])}), replace(once, slots={"v": np.array([np.nan])})
    )
    assert not alike(subject, once, answer(1.0, steps, shift=1e-6))
    assert not alike(subject, once, replace(once, slots={"v": np.ones(1)}))

    class Asked(_Twins):
        def _answers(self, name: str, arrays: object) -> dict[str, Answer]:
            again = answer(1.0, steps, shift=1e-3)
            return {"a": once, "b": again if name == "start" else once}

    twins = Asked(subject, {"a": once, "b": once}, {}, {}, gradients=False)
    assert twins.moved(0).keys() == twins.moved(1).keys() == {"a"}


def test_the_reference_is_one_of_those_that_are_compared(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    subject.remembered["fuzz"] = {("loss", "u", 1): np.array(1.5)}
    answers = {"a": answer(1.0, steps), "b": answer(1.0, steps)}
    found = judge(subject, answers, Said(lambda _n: answers, lambda _n: answers))
    assert found.status == "differs"
    assert "reference" in found.said


def test_the_reference_is_not_asked_for_a_step_that_leaves_the_numbers_in_all(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    subject.remembered["fuzz"] = {("loss", "u", 1): np.array(1.5)}
    wild = answer(1.5, steps)
    wild.losses["u"][0] = np.nan
    answers = {"a": wild, "b": replace(wild, losses={"u": [*wild.losses["u"]]})}
    found = judge(subject, answers, Said(lambda _n: answers, lambda _n: answers))
    assert (found.status, found.notes) == ("same", ("diverged",))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_losses_that_leave_the_numbers_in_all_alike_are_no_difference(
    drawn: Drawn, tmp_path: Path, number: float
) -> None:
    steps = drawn.program.steps
    wild = answer(1.0, steps)
    wild.losses["u"][-1] = number
    found = judged(drawn, tmp_path, {"a": wild, "b": replace(wild, losses={"u": [*wild.losses["u"]]})}, 0.0)
    assert (found.status, found.notes) == ("same", ("diverged",))


def test_what_differs_before_it_diverges_differs(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    wild, other = answer(1.0, steps), answer(1.0, steps, shift=1e-3, at=1)
    wild.losses["u"][-1] = other.losses["u"][-1] = np.nan
    assert judged(drawn, tmp_path, {"a": wild, "b": other}, 0.0).status == "differs"


def test_beyond_the_numbers_whose_unit_is_1_nothing_is_compared(drawn: Drawn, tmp_path: Path) -> None:
    """2^52 in float64. What it did before that is compared, and the step at which one alone goes beyond."""
    steps = drawn.program.steps
    wild, other = answer(1.0, steps), answer(1.0, steps, shift=1e-3, at=steps - 1)
    wild.losses["u"][-1] = other.losses["u"][-1] = 5e15
    found = judged(drawn, tmp_path, {"a": wild, "b": other}, 0.0)
    assert (found.status, found.notes) == ("same", ("diverged",))
    wild.states["norm.variance"] = other.states["norm.variance"] = np.full((steps, 1), 1e20)
    wild.losses["u"][-1] = 1.0
    shutil.rmtree(tmp_path / "subject")
    assert judged(drawn, tmp_path, {"a": wild, "b": other}, 0.0).status == "differs", "a variance is a square"
    for own in (wild, other):
        del own.states["norm.variance"]
    wild.losses["u"][-1] = 5e15
    for loss in (4e15, other.losses["u"][0]):
        other.losses["u"][-1] = loss
        shutil.rmtree(tmp_path / "subject")
        assert judged(drawn, tmp_path, {"a": wild, "b": other}, 0.0).status == "differs", (
            "one of them alone is that large"
        )


@pytest.mark.parametrize(
    ("far", "twin", "without"),
    [(0.0, 0.0, True), (2e-17, 1e-17, True), (5e-17, 1e-17, False), (1e-12, 1e-17, False), (0.1, 0.4, False), (np.nan, 1.0, False)],
)  # fmt: skip
def test_a_fault_is_without_effect_where_neither_a_tolerance_nor_rounding_tells_it_from_the_honest_program(
    drawn: Drawn, tmp_path: Path, far: float, twin: float, *, without: bool
) -> None:
    """1e-12 is small, and an effect: the honest program's own twins are 1e-17 away. 0.1 is one where they are 0.4 away, too."""
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    own, changed = answer(0.0, 4), answer(0.0, 4)
    own.states["w"][:] = changed.states["w"][:] = 0.0
    changed.states["w"][2:] += far
    near = replace(own, states={"w": own.states["w"] + twin})
    assert without_effect(subject, own, changed, [near, own]) is without


def test_a_fault_that_takes_a_tensor_away_has_an_effect(drawn: Drawn, tmp_path: Path) -> None:
    subject = opened(drawn, "float64", tmp_path / "subject", {})
    slots = {"u/velocity/w": np.ones(3)}
    assert not without_effect(subject, replace(answer(1.0, 4), slots=slots), answer(1.0, 4), [answer(1.0, 4)])


@pytest.mark.parametrize(
    ("shift", "twin", "note"),
    [
        (0.0, 0.0, WITHOUT_EFFECT),
        (2e-15, 1e-16, WITHOUT_EFFECT),
        (1e-11, 0.0, ""),
        (1e-11, 1e-16, ""),
        (0.0, None, "its effect is not known: a twin failed"),
    ],
)
def test_a_fault_that_was_not_found_is_held_against_its_honest_program(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float, twin: float | None, note: str
) -> None:
    """A worker that fails on the way costs the note, not the fuzzing: the fault counts as missed."""
    steps = drawn.program.steps
    honest, faulty = answer(1.0, steps), answer(1.0, steps, shift=shift)

    class Twins:
        def __init__(self, subject: Subject, *_: object) -> None:
            assert list(subject.workers) == ["jax"]

        def moved(self, _number: int) -> dict[str, Answer]:
            if twin is None:
                raise HarnessError("a twin failed")
            return {"jax": replace(honest, states={"w": honest.states["w"] + twin})}

        def shaken(self, _number: int) -> dict[str, Answer]:
            return {"jax": replace(honest, states={"w": honest.states["w"] + 8 * twin})} if twin else {}

    def train(subject: Subject, sources: Mapping[str, str], ways: Mapping[str, str | None], **_: object) -> Trained:
        assert sources == {"jax": emitted(drawn.program, "jax", "float64")}
        return Trained(subject, dict(ways), {"jax": honest})

    monkeypatch.setattr(fuzzing, "_Twins", Twins)
    monkeypatch.setattr(fuzzing.training, "train", train)
    monkeypatch.setattr(fuzzing.training, "closed", lambda _subject: None)
    ready = fuzzing._Ready(drawn.number, drawn, {}, {}, planted="jax")
    trained = Trained(opened(drawn, "float64", tmp_path / "whole", {}), {}, {"jax": faulty, "torch": honest})
    live: Any = {"jax": None, "torch": None}
    assert fuzzing._effect(FuzzOptions(), ready, live, trained, tmp_path / "honest") == ((note,) if note else ())


def test_a_backend_that_alone_diverges_at_the_first_step_differs(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    wild = answer(1.0, steps)
    wild.losses["u"][0] = np.nan
    assert judged(drawn, tmp_path, {"a": wild, "b": answer(1.0, steps)}, 0.0).status == "differs"


def test_a_tensor_that_is_missing_differs(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    lacks = replace(answer(1.0, steps), slots={})
    has = replace(answer(1.0, steps), slots={"u/velocity/w": np.ones(3)})
    assert judged(drawn, tmp_path, {"a": has, "b": lacks}, 0.0).status == "differs"


def test_a_training_in_which_nothing_moves_is_said_to_be_no_evidence(drawn: Drawn, tmp_path: Path) -> None:
    steps = drawn.program.steps
    still = Answer({}, {}, {"u": [1.0] * steps}, {"w": np.ones((steps, 3))}, {}, {})
    assert judged(drawn, tmp_path, {"a": still, "b": still}, 0.0).notes == ("still",)


# The command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FuzzOptions(count=0), "--count is at least 1, got 0"),
        (FuzzOptions(minutes=-1), "--minutes is at least 0, got -1"),
        (FuzzOptions(precision="bfloat16"), "--precision bfloat16: fuzz compares"),
        (FuzzOptions(backends=("jax",)), "name at least two"),
        (FuzzOptions(timeout=0), "--timeout is above 0 seconds"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_starts(options: FuzzOptions, said: str) -> None:
    with pytest.raises(CallError, match=said):
        fuzz(options)


def result(*outcomes: Outcome, plant: bool = False) -> FuzzResult:
    return FuzzResult(0, "float64", ("torch", "jax"), plant, outcomes, {}, 60.0)


def test_exit_statuses_and_the_sum_say_what_was_found() -> None:
    same, differs, failed = (Outcome(i, s) for i, s in enumerate(("same", "differs", "failed")))
    assert [result(*own).exit for own in ((same,), (same, differs), (same, failed), ())] == [0, 1, 3, 3]
    assert "3 specs: 1 the same, 0 the same up to rounding, 1 differ, 1 failed" in sentence(
        result(same, differs, failed)
    )
    planted = [replace(o, fault="f", planted="jax") for o in (same, differs, failed)]
    assert result(*planted, plant=True).exit == 1
    assert "2 of 3 planted faults found" in sentence(result(*planted, plant=True))
    assert result(*planted[1:], plant=True).exit == 0
    without = replace(planted[0], notes=(WITHOUT_EFFECT,))
    assert "2 of 2 planted faults found; 1 more change nothing in their spec" in sentence(
        result(without, *planted[1:], plant=True)
    )
    assert result(without, *planted[1:], plant=True).exit == 0
    assert result(without, plant=True).exit == 1, "no fault was found"
    full = replace(planted[2], failures={"harness": "No space left on device"})
    assert result(full, plant=True).missed == (full,), "the harness failed: that finds no fault"
    assert result(full, plant=True).exit == 3
    undrawn = Outcome(3, "failed", failures={"harness": "IndexError"})
    assert result(planted[1], undrawn, plant=True).exit == 3, "before a fault was drawn, too"


@pytest.mark.frameworks
@pytest.mark.skipif(len(INSTALLED) < 2, reason="one backend has nobody to be compared with")
@pytest.mark.parametrize("plant", [False, True])
def test_a_short_fuzzing_finds_nothing_in_honest_programs_and_the_faults_in_others(
    tmp_path: Path, *, plant: bool
) -> None:
    arguments = [
        "fuzz",
        "--count",
        "3",
        "--seed",
        "1",
        "--backends",
        ",".join(INSTALLED),
        "--json",
        str(tmp_path / "found.json"),
    ]
    done = CliRunner().invoke(app, [*arguments, *(["--plant"] if plant else ["--out", str(tmp_path / "kept")])])
    found = json.loads((tmp_path / "found.json").read_text())
    assert done.exit_code == 0, done.output
    assert len(found["outcomes"]) == 3
    if plant:
        tried = [o for o in found["outcomes"] if o["fault"] and WITHOUT_EFFECT not in o["notes"]]
        assert len(tried) > 1
        assert all(o["status"] in ("differs", "failed") for o in tried)
    else:
        assert {o["status"] for o in found["outcomes"]} <= {"same", "rounding"}
