"""The catalogue of mutants: that each plants one fault, where it says, and runs. Mostly needs no framework."""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from build import EACH, Live, live, program_of

from harness import api, emit
from harness.backend import BACKENDS
from harness.check import mutants, power, written
from harness.check.edits import Edit, Helper, Inapplicable, Needs, planned
from harness.check.faults import forward, optimizer, state
from harness.check.mutant import Mutant, names
from harness.check.mutants import MUTANTS, NO_PLAN, PHASES, applicable, first_step, plant, plantings, untried
from harness.check.places import EVERY, FIRST, another, at, number
from harness.check.probes import PROBES
from harness.graph import Program

SPECS = ("linear_regression", "digits_mlp", "digits_cnn", "digits_lstm", "char_transformer", "digits_gan")
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
Planted = dict[tuple[str, str, str], str]
"""The program with the fault by mutant, spec and backend."""


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    return {name: api.load(name).compile() for name in SPECS} | {n: program_of(text) for n, text in PROBES.items()}


@pytest.fixture(scope="module")
def unformatted() -> Iterator[None]:
    # Formatting takes most of the time of a thousand programs, and what is looked for is found in any layout.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emit, "formatted", lambda text: text)
        patch.setattr(mutants, "formatted", lambda text: text)
        yield


@pytest.fixture(scope="module")
def honest(programs: dict[str, Program], unformatted: None) -> dict[tuple[str, str, str], str]:
    return {
        (name, backend, precision): importlib.import_module(f"backends.{backend}.emit").emit(program, precision)
        for name, program in programs.items()
        for backend in BACKENDS
        for precision in ("float64", "float32")
    }


@pytest.fixture(scope="module")
def planted(programs: dict[str, Program], honest: dict[tuple[str, str, str], str]) -> Planted:
    found = {}
    for mutant in MUTANTS:
        for name, program in programs.items():
            for backend in BACKENDS:
                precision = mutant.precisions[0]
                text = plant(mutant, program, backend, precision, honest=honest[name, backend, precision])
                if text is not None:
                    found[mutant.name, name, backend] = text
    return found


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) >= 75
    assert len(BY_NAME) == len(MUTANTS)
    assert {mutant.phase for mutant in MUTANTS} == set(PHASES)
    for mutant in MUTANTS:
        assert (mutant.change is None) != (not mutant.edits), f"{mutant.name} is planted in one way"
        assert not mutant.about.endswith("."), f"{mutant.name}: 'consistent with {mutant.about}'"


def test_what_cannot_show_everywhere_says_why() -> None:
    for mutant in MUTANTS:
        if mutant.precisions != ("float64", "float32"):
            assert mutant.note, mutant.name
        if isinstance(mutant.shows_at, int) and mutant.shows_at > 1:
            assert mutant.note, mutant.name


def test_every_fault_says_of_every_backend_how_it_is_planted_or_why_it_cannot_be() -> None:
    for mutant in MUTANTS:
        if mutant.change is None:
            assert set(mutant.edits) == set(BACKENDS), mutant.name
            left = {b: plans.why for b, plans in mutant.edits.items() if isinstance(plans, Inapplicable)}
            assert all(left.values()), mutant.name
            assert len(left) < len(BACKENDS), mutant.name


def test_what_was_not_planted_is_counted_and_says_why(programs: dict[str, Program], planted: Planted) -> None:
    for name in programs:
        for mutant in MUTANTS:
            tried = {backend for backend in BACKENDS if (mutant.name, name, backend) in planted}
            for backend in set(BACKENDS) - tried if tried else ():
                why = untried(mutant, backend)
                assert why != NO_PLAN, f"{mutant.name}: {name} in {backend}: {why}"
    relu, only = BY_NAME["activation without its gradient"], BY_NAME["embedding's gradient averaged"]
    gappy = replace(relu, edits=relu.edits | {"jax": ()})
    every = {b: b for b in BACKENDS}
    why = "scale_grad_by_freq is a switch that PyTorch alone has"
    for fault, name, backends, expected in (
        (only, "untied_embedding", every, [("tensorflow", why), ("jax", why)]),
        (only, "untied_embedding", {"one": "jax"}, [("one", why)]),
        (only, "digits_cnn", every, []),
        (relu, "digits_cnn", every, []),
        (gappy, "digits_cnn", every, [("jax", NO_PLAN)]),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(power, "MUTANTS", (fault,))
            plans = {n: power.plan(programs[name], b, "float64", lambda _: True) for n, b in backends.items()}
            left = power.not_tried(programs[name], backends, "float64", plans, lambda _: True)
        assert [(one.mutant, one.spec, one.backend, one.why) for one in left] == [
            (fault.name, name, *pair) for pair in expected
        ]


@pytest.mark.slow
def test_every_mutant_applies_somewhere(planted: Planted) -> None:
    for mutant in MUTANTS:
        where = {backend for name, _, backend in planted if name == mutant.name}
        expected = {b for b in BACKENDS if mutant.change or not isinstance(mutant.edits[b], Inapplicable)}
        assert where == expected, f"{mutant.name} is planted in {sorted(where)}, not in {sorted(expected)}"


def test_every_spec_has_mutants_of_many_phases(planted: Planted) -> None:
    for spec in SPECS:
        for backend in BACKENDS:
            found = [BY_NAME[name] for name, where, b in planted if (where, b) == (spec, backend)]
            assert len(found) >= 9, f"{spec} in {backend} has {len(found)} mutants"
            assert len({mutant.phase for mutant in found}) >= 3


def test_planted_programs_are_python_and_a_few_lines_differ(
    planted: Planted, honest: dict[tuple[str, str, str], str]
) -> None:
    for (name, spec, backend), text in planted.items():
        ast.parse(text)
        base = honest[spec, backend, BY_NAME[name].precisions[0]]
        assert text != base, f"{name} changes nothing of {spec} in {backend}"
        before, after = Counter(base.splitlines()), Counter(text.splitlines())
        lines = (before - after).total() + (after - before).total()
        assert lines <= 60, f"{name} changes {lines} lines of {spec} in {backend}"
        assert lines < 0.4 * before.total()


def test_no_mutant_changes_what_parameters_there_are(programs: dict[str, Program]) -> None:
    for mutant in MUTANTS:
        for spec, program in programs.items():
            changed = mutant.change(program) if mutant.change and mutant.where(program) else None
            if changed is not None:
                before = {name: (p.shape, p.learned) for name, p in program.parameters.items()}
                assert {name: (p.shape, p.learned) for name, p in changed.parameters.items()} == before, (
                    f"{mutant.name} on {spec}"
                )


def test_planted_programs_are_laid_out_as_emitted_ones(programs: dict[str, Program]) -> None:
    for name, spec in (("LSTM gates swapped", "digits_lstm"), ("decay on biases", "digits_mlp")):
        for backend in BACKENDS:
            text = plant(BY_NAME[name], programs[spec], backend, "float32", threads=2)
            assert text is not None
            assert emit.formatted(text) == text
            assert "[:2])" in text or "threads(2)" in text


def test_deep_programs_are_told_by_their_ops(programs: dict[str, Program]) -> None:
    depths = {name: power.depth(program) for name, program in programs.items()}
    # Nodes outside of blocks, and each block's as often as it is used.
    assert depths["char_transformer"] == 2 + 2 * 10 + 2
    assert depths["resnet18"] == 3 + 5 * 7 + 3 * 9 + 2
    assert {name for name, count in depths.items() if count >= power.DEEP} == {"small_vit", "resnet18"}


def test_a_fault_that_has_nothing_to_change_is_not_planted(programs: dict[str, Program]) -> None:
    program = programs["linear_regression"]
    names = {mutant.name for mutant in applicable(program, "torch")}
    assert {"learning rate one per cent off", "absolute error", "sum for mean"} <= names
    for name in ("mask not scaled", "clipping dropped", "schedule one update early", "batch of the step before"):
        assert name not in names
        assert plant(BY_NAME[name], program, "torch") is None
    assert plant(BY_NAME["flattened channels first"], programs["digits_mlp"], "jax") is None, "one channel only"
    assert plant(BY_NAME["flattened channels first"], programs["digits_cnn"], "jax") is None, "one pixel only"
    assert plant(BY_NAME["rounded as in TF32"], programs["digits_mlp"], "jax", "float64") is None
    assert plant(BY_NAME["rounded as in TF32"], programs["digits_mlp"], "jax", "float32") is not None


def test_other_names_in_a_spec_are_found(programs: dict[str, Program]) -> None:
    text = (PROBES["digits_gru"]).replace("units: 16,", "units: 16, name: memory,").replace("logits}", "answer}")
    program = program_of(text)
    assert names(program)["recurrent"] == "memory"
    assert names(program)["head"] == "answer"
    for backend in BACKENDS:
        found = {mutant.name for mutant in applicable(program, backend)}
        assert {"bias left out", "sequence read backwards", "mean of states for the last"} <= found


def test_when_a_fault_shows_follows_from_the_schedule(programs: dict[str, Program]) -> None:
    # Behind a warm-up of 50 updates, the descent's first rate is the same: update 51, counted from 0, is another.
    assert first_step(BY_NAME["another final rate"], programs["char_transformer"]) == 52
    assert first_step(BY_NAME["a longer descent"], programs["digits_mlp"]) == 42
    assert first_step(BY_NAME["a longer descent"], programs["digits_cnn"]) == 2
    assert first_step(BY_NAME["staircase one update longer"], programs["padded_pools"]) == 3
    assert first_step(BY_NAME["schedule one update early"], programs["padded_pools"]) == 2
    assert first_step(BY_NAME["schedule one update late"], programs["padded_pools"]) == 3
    # A warm-up from 0 leaves every parameter where it is at the first update.
    assert first_step(BY_NAME["epsilon inside the root"], programs["char_transformer"]) == 2
    assert first_step(BY_NAME["epsilon inside the root"], programs["digits_mlp"]) == 1
    assert first_step(BY_NAME["beta1 of 0.8"], programs["char_transformer"]) == 2
    assert first_step(BY_NAME["decay on biases"], programs["char_transformer"]) == 3
    assert first_step(BY_NAME["warm-up dropped"], programs["char_transformer"]) == 1
    assert first_step(BY_NAME["GELU by tanh"], programs["char_transformer"]) == 1


def unnamed(wanted: set[str]) -> list[dict[str, str]]:
    """A program without names of its own."""
    return [] if wanted else [{}]


def test_a_plan_is_made_at_the_places_that_are_chosen() -> None:
    text = "import a\n\n\ndef f(x):\n    y = g(x) + h(x)\n    return g(y) * g(1)\n"
    changed = {
        place.name: planned(text, ((Edit("g($x)", "k($x)"),),), unnamed, place)
        for place in (FIRST, number(1), number(2), number(3), EVERY)
    }
    body = {name: found and found.partition("):\n    ")[2] for name, found in changed.items()}
    assert body == {
        "first": "y = k(x) + h(x)\n    return g(y) * g(1)\n",
        "number 1": "y = g(x) + h(x)\n    return k(y) * g(1)\n",
        "number 2": "y = g(x) + h(x)\n    return g(y) * k(1)\n",
        "number 3": None,
        "every": "y = k(x) + h(x)\n    return k(y) * k(1)\n",
    }
    # A part with one place goes with every place of the first part; one with as many goes with each.
    both = ((Edit("g($x)", "k($x)"), Edit("import a", "import b"), Helper("def k(x): ...")),)
    found = planned(text, both, unnamed, EVERY)
    assert found is not None
    assert (found.count("k("), found.count("import b"), found.count("def k(x): ...")) == (4, 1, 1)
    unequal = ((Edit("h($x)", "$x"), Edit("g($x)", "$x")),)
    assert planned(text.replace(" * g(1)", ""), unequal, unnamed) is None, "which of the two goes with the one?"
    # Alternatives are places of one fault.
    either = ((Edit("h($x)", "0"),), (Edit("g($x)", "0"),))
    assert planned(text, either, unnamed, EVERY) == "import a\n\n\ndef f(x):\n    y = 0 + 0\n    return 0 * 0\n"
    assert planned(text, either, unnamed, number(1)) == text.replace("g(x)", "0")
    assert planned(text, ((Needs("no such code"), Edit("g($x)", "$x")),), unnamed) is None


def test_a_part_that_is_needed_once_is_made_once_for_every_layer() -> None:
    layers = """      - gru: {units: 16, returns: sequence}
      - lstm: {units: 8, returns: sequence}
      - gru: {units: 16, returns: last}
"""
    program = program_of(PROBES["digits_gru"].replace("      - gru: {units: 16, returns: last}\n", layers))
    found = plantings(BY_NAME["two biases learning"], program, "torch")
    assert {where: re.findall(r"model\.(\w+)\.bias_hh_l0\.requires_grad_\(\)", text) for where, text in found.items()} == {
        "first": ["gru1"], "another": [found["another"].split("model.state_dict()\n    model.")[1][:4].rstrip(".")],
        "every": ["gru2", "lstm1", "gru1"],
    }  # fmt: skip
    assert all(text.count("list(model.parameters())") == 1 for text in found.values())


def test_what_is_planted_in_another_place_is_planted_in_every_one(
    programs: dict[str, Program], unformatted: None
) -> None:
    read_twice = PROBES["digits_gru"].replace(
        "      - gru: {units: 16, returns: last}\n",
        "      - gru: {units: 8, returns: sequence}\n      - lstm: {units: 8, returns: sequence}\n      - dense: 8\n"
        "      - lstm: {units: 4, recurrent_dropout: 0.2, returns: sequence}\n      - layer_norm\n      - gru: 16\n",
    )
    for program in (programs["digits_gan"], programs["char_transformer"], program_of(read_twice)):
        for mutant in MUTANTS:
            for backend in BACKENDS:
                found = plantings(mutant, program, backend, mutant.precisions[0])
                assert list(found) in ([], ["first"], ["first", "another", "every"], ["first", "every"]), (
                    mutant.name, program.name, backend, list(found),
                )  # fmt: skip


def test_another_place_is_drawn_and_is_not_the_first() -> None:
    sites = [("A", f"norm{i}") for i in range(4)]
    drawn = [another(f"a fault in {i}").of(sites) for i in range(64)]
    assert {tuple(d) for d in drawn} == {(1,), (2,), (3,)}
    assert drawn == [another(f"a fault in {i}").of(sites) for i in range(64)], "it is the same each time"
    assert (another("x").of(sites[:1]), another("x").of([])) == ([0], [])


def test_a_fault_is_planted_in_one_place_in_another_and_in_every_one(programs: dict[str, Program]) -> None:
    swapped, program = BY_NAME["momentum convention swapped"], programs["digits_cnn"]
    momenta = {
        where: re.findall(r"self\.norm\d = BatchNorm2d\(.*momentum=([\d.]+)\)", text)
        for where, text in plantings(swapped, program, "torch").items()
    }
    assert momenta == {"first": ["0.9", "0.1"], "another": ["0.1", "0.9"], "every": ["0.9", "0.9"]}
    node = plant(swapped, program, "torch", place=at("Classifier", "norm2"))
    assert node == plantings(swapped, program, "torch")["another"]
    assert plant(swapped, program, "torch", place=at("Classifier", "conv1")) is None
    # Text: the place of a layer is where it is made, called, or its value noted.
    relu = BY_NAME["activation without its gradient"]
    for backend in BACKENDS:
        observed = plantings(relu, program, backend, observe=True)
        assert list(observed) == ["first", "another", "every"]
        assert plant(relu, program, backend, place=at("Classifier", "relu2"), observe=True) == observed["another"]
    # Where there is one place, all three are one.
    assert list(plantings(swapped, programs["digits_mlp"], "torch")) == []
    assert list(plantings(BY_NAME["GELU by tanh"], programs["char_transformer"], "jax")) == ["first"], "a block is one"
    names = {where: text.count("- self.") for where, text in plantings(BY_NAME["bias left out"], programs["digits_gan"], "torch").items()}  # fmt: skip
    assert names == {"first": 1}


def test_code_is_found_in_any_layout_and_nowhere_else() -> None:
    edit = Edit("f($x, g($$given))", "$x[$given]")
    assert edit.applied("y = f(a.b, g(1, (2, 3)))", {}) == "y = a.b[1, (2, 3)]"
    assert edit.applied("y = f(\n    a.b,\n    g(\n        1, (2, 3),\n    ),\n)", {}) == "y = a.b[1, (2, 3)]"
    assert edit.applied("y = of(a.b, g(1))", {}) is None
    assert edit.applied("y = f(a + b, g(1))", {}) is None
    assert Edit("f($x, $x)", "$x").applied("f(a, b)", {}) is None
    assert Edit("f($x, $x)", "$x").applied("f(a, a)", {}) == "a"
    assert Edit("self.<head>($x)", "$x").applied("self.last(y)", {"head": "last"}) == "y"
    assert Edit("self.<head>($x)", "$x").applied("self.last(y)", {}) is None
    text = "import a\n\n\ndef f(): ...\n"
    assert Helper("class A: ...").applied(text, {}) == "import a\n\n\nclass A: ...\n\n\ndef f(): ...\n"
    assert planned(text, ((Edit("import a", "import b"), Edit("absent", "")),), unnamed) is None


def test_a_written_rule_refuses_a_line_that_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="has no 'tanh'"):
        written.changed("h = sigmoid(x)", {"tanh": "x"})


# ---- With frameworks

UNCHANGED: dict[str, dict[str, str]] = {backend: {} for backend in BACKENDS}
WRITTEN = {
    "Adam": Mutant("", "", "optimizer", edits=optimizer._adam({}, (), ())),
    "LSTM": Mutant("", "", "forward", edits=written.exchanged(written.LSTM, UNCHANGED, forward.LSTMS)),
    "GRU": Mutant("", "", "forward", edits=written.exchanged(written.GRU, UNCHANGED, forward.GRUS)),
    "LayerNorm": Mutant(
        "", "", "forward", edits=written.exchanged(written.LAYER_NORM, UNCHANGED, forward.LAYER_NORMS)
    ),
    "BatchNorm": Mutant(
        "", "", "state", edits=written.exchanged(written.BATCH_NORM, UNCHANGED, state.BATCH_NORMS)
    ),
}  # fmt: skip


def trained(run: Live, steps: int = 2) -> dict[str, np.ndarray]:
    """Losses of some steps, and what they leave behind."""
    losses = {}
    for step in range(steps):
        result = run.session.wait(run.session.step(step, run.session.batch(run.inputs, step)))
        losses |= {f"{name} {step}": np.array(loss) for name, loss in result.items()}
    return losses | run.session.state()


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the size of each array."""
    assert one.keys() == other.keys()
    sizes = {name: float(np.abs(array).max()) or 1.0 for name, array in one.items()}
    return max(float(np.abs(one[name] - other[name]).max()) / sizes[name] for name in one)


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize(
    ("rule", "spec"),
    [("Adam", "digits_mlp"), ("LSTM", "digits_lstm"), ("GRU", "digits_gru"), ("BatchNorm", "digits_cnn"), ("LayerNorm", "normed")],
)  # fmt: skip
def test_rules_that_are_written_out_are_the_frameworks_own(backend: str, rule: str, spec: str, tmp_path: Path) -> None:
    normed = (
        PROBES["digits_gru"]
        .replace("digits_gru", "normed")
        .replace("gru: {units: 16, returns: last}", "layer_norm: {}\n      - flatten")
    )
    program = (
        program_of(normed if spec == "normed" else PROBES[spec])
        if spec in {*PROBES, "normed"}
        else api.load(spec).compile()
    )
    text = plant(WRITTEN[rule], program, backend)
    if text is None:
        pytest.skip(f"{backend}'s program has the rule written out already")
    paths = [tmp_path / name for name in ("own", "written")]
    for path in paths:
        path.mkdir()
    own, other = (trained(live(backend, program, p, text=t)) for p, t in zip(paths, (None, text), strict=True))
    assert distance(own, other) < 1e-10


RUNNING = {
    "digits_cnn": ["padding on the wrong side", "dropped activation", "momentum convention swapped", "learning rate inside the momentum", "statistics frozen", "unbiased running variance", "mask of the next step"],
    "digits_mlp": ["epsilon inside the root", "coupled weight decay", "bias left out", "dropout without its gradient", "clipping tensor by tensor", "softmax twice", "share kept for share dropped", "warm-up from a third"],
    "digits_gan": ["updates in the wrong order", "reshaped channels first", "first update moves both networks", "noise of the step before"],
    "digits_lstm": ["LSTM gates swapped", "label smoothing dropped", "LSTM gates of TensorFlow 1", "LSTM gates of ONNX", "recurrence along the batch", "two biases learning", "read column by column"],
    "padded_pools": ["padding counted", "maximum with zeros", "flattened channels first"],
    "linear_regression": ["absolute error", "learning rate one per cent off", "bias counted twice"],
    "digits_gru": ["GRU gates in Keras' order", "recurrence along the batch", "reset before the product"],
    "upsampler": ["transposed convolution one pixel off", "transposed kernel flipped", "softmax over the batch", "padding left out of the mean", "velocity as a running mean", "dampened momentum", "slope of PyTorch", "a shorter descent"],
    "untied_embedding": ["embedding's first row never learns"],
    "small_vit": ["colours reversed", "layer normalisation over all axes", "attention scale missing", "attention scaled by all channels", "softmax over the queries", "queries for keys", "heads interleaved", "square kernel transposed", "decay on scales", "averaged over the classes too", "clipping with an epsilon"],
}  # fmt: skip


@pytest.mark.frameworks
@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("spec", [pytest.param(s, marks=pytest.mark.slow if s == "small_vit" else ()) for s in RUNNING])
def test_mutants_run_train_and_differ(backend: str, spec: str, programs: dict[str, Program], tmp_path: Path) -> None:
    program = programs[spec]

    def run(name: str, text: str | None = None) -> dict[str, np.ndarray]:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        return trained(live(backend, program, folder, text=text))

    honest = run("honest")
    assert distance(honest, run("honest again")) == 0
    for name in RUNNING[spec]:
        text = plant(BY_NAME[name], program, backend)
        if text is None:
            assert isinstance(BY_NAME[name].edits[backend], Inapplicable), (name, backend)
            continue
        other = run(name, text)
        assert all(np.isfinite(array).all() for array in other.values()), name
        assert distance(honest, other) > 1e-9, name
