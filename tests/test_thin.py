"""A large network is checked on less: on few examples, along directions in several parameters, on states of two steps."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from build import INSTALLED, Arrays
from test_ladder import Text, subject_of, text_of

from harness import flops, reference, spec
from harness.bench import thin, timing
from harness.bench.thin import thinned
from harness.bench.timing import contestant, ledger
from harness.check import rungs
from harness.check.evidence import Evidence, Look, Slope, _dealt, slopes, unmoved
from harness.check.subject import Effort, Subject, part, wide
from harness.check.trajectory import Training, compare_series
from harness.compare import Derived, Tolerance
from harness.source import Source


@pytest.fixture
def text() -> Text:
    return text_of({"dense": 3}, "tanh", {"dense": {"units": 1, "name": "head"}})


@pytest.fixture
def tiny(tmp_path: Path, text: Text) -> Subject:
    return subject_of(tmp_path, text)


def source_of(text: Text) -> Source:
    return spec.loads(json.dumps(text))[1]


def test_a_small_network_is_checked_whole(tiny: Subject, text: Text, tmp_path: Path) -> None:
    found = thinned(tiny, source_of(text), tmp_path / "few")
    assert found.subject is tiny
    assert (found.at, found.said, tiny.effort) == ((), "", Effort())


def test_a_large_one_on_as_many_examples_as_the_reference_has_time_for(
    tiny: Subject, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = flops.forward(tiny.program) // tiny.program.batch
    limits = {"HEAVY": 1, "NUMBERS": 10, "FORWARD": 2.5 * one, "SLOPES": 3 * thin.EVALUATIONS * 2 * one, "NODES": 1}
    for name, value in limits.items():
        monkeypatch.setattr(thin, name, value)
    found = thinned(tiny, source_of(text), tmp_path / "few")
    few = found.subject
    assert few.program.batch == 2 < tiny.program.batch
    assert few.effort == Effort(rows=2, twins=1, directions=3, nodes=3)
    assert (found.steps, found.at) == (8, (8,))
    assert found.said.startswith(f"Forward pass and gradients were checked on 2 of a batch's {tiny.program.batch} ex")
    assert "3 directions" in found.said
    for name, value in part(tiny.start, "state/").items():
        assert np.array_equal(part(few.start, "state/")[name], value), "it is the same network"


def test_a_network_of_whose_slopes_there_are_too_many_is_checked_on_less_and_goes_on_from_where_it_began(
    tiny: Subject, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = flops.forward(tiny.program)
    learned = sum(p.learned for p in tiny.program.parameters.values())
    monkeypatch.setattr(thin, "SLOPES", thin.EVALUATIONS * learned * forward - 1)
    monkeypatch.setattr(thin, "VALUES", 3 * (3 + 3 + 1) + 1)
    found = thinned(tiny, source_of(text), tmp_path / "few")
    assert (found.subject.program.batch, found.at, found.restarts) == (3, (), True), "the values of three examples"
    monkeypatch.setattr(thin, "SLOW", flops.step(tiny.program) - 1)
    slow = thinned(tiny, source_of(text), tmp_path / "fewer")
    assert (slow.steps, slow.at, slow.restarts) == (8, (8,), True)
    monkeypatch.setattr(thin, "NUMBERS", 10)
    assert not thinned(tiny, source_of(text), tmp_path / "fewest").restarts
    monkeypatch.undo()
    assert thinned(tiny, source_of(text), tmp_path / "whole").subject is tiny


def test_what_ends_where_it_began_is_seen_in_one_state(tiny: Subject) -> None:
    start = part(tiny.start, "state/")
    moved = {name: value[None] + 1 for name, value in start.items()}
    still = moved | {"head.bias": start["head.bias"][None]}
    assert thin.unmoved(tiny, Training({}, moved, {}, (8,))) == []
    assert thin.unmoved(tiny, Training({}, still, {}, (8,))) == ["head.bias never moves"]


def test_hands_are_dealt_all_cards_once() -> None:
    assert sorted(n for hand in _dealt(list("abcdefg"), 3) for n in hand) == list("abcdefg")
    assert _dealt(list("ab"), 9) == _dealt(list("ab"), None) == [["a"], ["b"]]


def test_the_slope_in_several_parameters_is_the_sum_of_theirs(tiny: Subject) -> None:
    single = slopes(tiny)
    together = slopes(replace(tiny, effort=Effort(directions=1)))
    own = [name for name in single if "@" not in name]
    (label,) = [name for name in together if "@" not in name]
    assert label == f"{own[0]} and {len(own) - 1} more"
    assert set(together[label].directions) == set(own)
    assert together[label].slope == pytest.approx(sum(single[n].slope for n in own), rel=1e-6)


def evidence(subject: Subject, **wrong: float) -> Evidence:
    """A backend whose gradients are the reference's, by differences, but for factors by `update/parameter`."""
    batch, masks = subject.batch(0, subject.moved_data)
    (update,) = subject.program.updates
    parameters = wide(part(subject.start, "state/"))
    found: Arrays = {}
    for name in (*parameters, "@x"):
        value = batch["x"] if name == "@x" else parameters[name]
        gradient = np.zeros_like(value)
        for place in np.ndindex(value.shape):

            def at(h: float, name: str = name, value: np.ndarray = value, place: tuple[int, ...] = place) -> float:
                moved = value.copy()
                moved[place] += h
                given = (parameters, batch | {"x": moved}) if name == "@x" else (parameters | {name: moved}, batch)
                return reference.loss(subject.program, update, *given, masks)

            gradient[place] = (at(1e-6) - at(-1e-6)) / 2e-6
        found[f"{update.name}/{name}"] = gradient * wrong.get(name.replace(".", "_"), 1.0)
    look = Look({}, {}, found, {})
    return Evidence(look, (look,), {"an input": look})


@pytest.mark.parametrize("name", ["dense1_kernel", "dense1_bias", "head_kernel", "head_bias"])
def test_one_wrong_gradient_of_a_group_is_seen(tiny: Subject, name: str) -> None:
    few = replace(tiny, effort=Effort(directions=1))
    found = slopes(few)
    assert rungs.along(few, "torch", evidence(few), found).same
    assert not rungs.along(few, "torch", evidence(few, **{name: 1.01}), found).same


def test_of_few_nodes_it_is_still_seen_that_they_are_silent(tmp_path: Path) -> None:
    silent = text_of(
        {"dense": {"units": 2, "name": "lost"}}, {"dense": {"units": 1, "name": "head", "kernel_init": "zeros"}}
    )
    subject = subject_of(tmp_path, silent)
    assert [n.rpartition(".")[2] for n in unmoved(subject)] == ["lost"]
    assert unmoved(replace(subject, effort=Effort(nodes=1))) == unmoved(subject)


def test_a_state_is_told_by_the_step_it_was_kept_after() -> None:
    a, b = {"x": np.zeros((2, 1))}, {"x": np.array([[0.0], [1.0]])}
    found = compare_series("state", ("torch", "jax"), a, b, Tolerance(1e-6), (1, 20))
    assert found.worst is not None
    assert found.worst.step == 20


class Mute:
    """A worker that trains for a second a step, to losses that are given."""

    backend = "torch"

    def __init__(self, *losses: float) -> None:
        self.losses, self.asked = list(losses), []

    def ask(self, do: str, **fields: object) -> Mapping[str, object]:
        if do == "ledger":
            return {"ledger": {}}
        self.asked.append(fields["arrays"])
        return {"seconds": fields["steps"], "cpu": 0.0, "losses": {"net": self.losses.pop(0)}}


@pytest.mark.parametrize(
    ("restarts", "steps", "begun"),
    [
        (False, 5, [True, False, False, True, False, False]),
        (True, 4, [True, False, False, True, False, False]),
        (True, 5, [True, False, True, True, False, True]),
        (True, 13, [True] * 6),
    ],
)
def test_blocks_go_on_until_the_trainings_end_or_a_loss_that_is_no_number(
    tiny: Subject,
    restarts: bool,
    steps: int,
    begun: list[bool],
) -> None:
    assert tiny.program.steps == 12
    live = Mute(2.0, 1.0, math.nan, 2.0, 2.0, 2.0)
    own = contestant(replace(tiny, restarts=restarts), live, "torch")  # type: ignore[arg-type]
    for _ in begun:
        own.run(steps)
    assert [arrays is not None for arrays in live.asked] == begun


def test_the_ledger_says_where_blocks_begin(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "each", lambda _subject, _ask: {})
    whole, large = (ledger(replace(tiny, restarts=r), {}, "cpu").entries["blocks"]["all"] for r in (True, False))
    assert "begin again" in whole
    assert "begin again" not in large


def test_drowned_gradients_are_counted_and_all_of_them_are_no_check(tiny: Subject) -> None:
    """Two gradients, of which rounding may move one as far as other inputs do; then both."""
    few = replace(tiny, effort=Effort(directions=1))
    name = few.program.updates[0].name

    def look(**values: float) -> Look:
        grown = {f"{name}/{n}": np.full(1, v) for n, v in values.items()}
        return Look({}, {f"gradients/{n}": a for n, a in grown.items()}, grown, {})

    base = {"dense1.bias": 1.0, "head.bias": 1.0}
    own = Evidence(look(**base), (look(**base),), {"an input": look(**{"dense1.bias": 1.5, "head.bias": 1.5})})

    label = f"{name}/head.bias"

    def judged(**bounds: float) -> SimpleNamespace:
        allowed = {f"{k}{name}/{n}": Derived(0.0, absolute=b) for n, b in bounds.items() for k in ("at:", "step:gradients/")}  # fmt: skip
        found = rungs.gradients(few, {"torch": own}, allowed, {label: Slope({label: np.ones(1)}, 1.5, 0.0)})
        return SimpleNamespace(status=found.status, notes=[n for n in found.notes if "rounding" in n])

    assert judged(**{"dense1.bias": 0.1, "head.bias": 0.1}).notes == []
    one = judged(**{"dense1.bias": 0.1, "head.bias": 0.9})
    assert one.notes == ["2 of 4 gradients lie within rounding: that they agree says nothing"]
    assert judged(**{"dense1.bias": 0.9, "head.bias": 0.9}).status == "void"


@pytest.mark.frameworks
@pytest.mark.skipif("torch" not in INSTALLED, reason="torch is not installed")
def test_a_bench_of_one_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.bench.bench import bench  # noqa: PLC0415
    from harness.bench.options import BenchOptions  # noqa: PLC0415

    for name, value in {"HEAVY": 1e5, "NUMBERS": 1e4, "FORWARD": 2e6, "SLOPES": 1e8, "NODES": 1e6}.items():
        monkeypatch.setattr(thin, name, value)
    (found,) = bench(["digits_mlp"], BenchOptions(backends=("torch",), lanes=("default",), parts=(), rounds=8))
    assert found.verdict == "same", found.notes
    assert any(note.endswith("compared after step 8.") for note in found.notes)
    assert [lane.strategy for lane in found.lanes] == ["eager"]
