"""A wrong spec is told where it is wrong, what is allowed, and the nearest right spelling; several errors at once."""

import json
import re
from pathlib import Path

import pytest
from build import program_of

from harness import catalogue, errors, precision, spec, words
from harness.backend import BACKENDS
from harness.errors import SpecError
from harness.invariance import zero_gradient
from harness.resolve import compile_spec

GOOD = """
name: good
data: {dataset: digits, batch: 64}
networks:
  net:
    inputs: [image]
    layers:
      - flatten
      - dense: 10
training:
  steps: 3
  updates:
    - loss: {softmax_cross_entropy: {logits: net(image), labels: label}}
      optimizer: {sgd: {learning_rate: 0.1}}
"""


def problems(text: str) -> list[str]:
    """Every problem of a spec, a line each; none raises anything but SpecError."""
    try:
        loaded, source = spec.loads(text, "x.yaml")
        compile_spec(loaded, source)
    except SpecError as error:
        return str(error).splitlines()
    return []


def test_the_good_spec_is_good() -> None:
    assert problems(GOOD) == []


WRONG = [
    ("- dense: 10", "- dnse: 10", r"x.yaml:9:9: networks.net.layers\[1\]: unknown op 'dnse'; did you mean 'dense'\? \(known: dense, relu"),
    ("- dense: 10", "- dense: {units: 10, unit: 3}", r"x.yaml:9:34: .*dense.unit: unknown field 'unit'; did you mean 'units'\? \(fields: units, bias"),
    ("- dense: 10", "- dense: {}", r"x.yaml:9:9: .*: needs 'units'"),
    ("- dense: 10", "- dense: -1", r"x.yaml:9:16: .*greater than 0, got -1"),
    ("- dense: 10", "- dense: 1.5", r"x.yaml:9:16: .*valid integer, got 1.5"),
    ("- dense: 10", "- dense: true", r"x.yaml:9:16: .*valid integer, got True"),
    ("- dense: 10", "- dense: 9", r"labels: 'label' has 10 classes, the logits only 9"),
    ("- dense: 10", "- dense: {units: 10, kernel_init: he}", r"unknown initializer 'he'"),
    ("- dense: 10", "- dense: {units: 10, name: 'a b'}", r"a name has letters, digits and underscores.*got 'a b'"),
    ("- dense: 10", "- dense: {units: 10, kernel_init: kaiming_normal}", r"unknown initializer 'kaiming_normal'; here that is 'he_normal' \(known: zeros"),
    ("- dense: 10", "- dense: {units: 10, kernel_init: xavier_uniform}", r"unknown initializer 'xavier_uniform'; here that is 'glorot_uniform'"),
    ("- dense: 10", "- Linear: 10", r"unknown op 'Linear'; here that is 'dense'"),
    ("- dense: 10", "- group_norm\n      - dense: 10", r"unknown op 'group_norm'; there is no such rule here \(known"),
    ("- dense: 10", "- dense: {out_features: 10}", r"unknown field 'out_features'; here that is 'units'"),
    ("- dense: 10", "- dense: {units: 10, quux: 1}", r"unknown field 'quux' \(fields: units"),
    ("- flatten", "- conv2d: {channels: 4, kernel_size: 3}\n      - flatten", r"unknown field 'kernel_size'; here that is 'kernel'"),
    ("- flatten", "- conv2d: {channels: 4, kernel: 3, padding: causal}\n      - flatten", r"padding: 'same', 'valid', a number of zeros for every side, or a list of two: \[vertical, horizontal\].*; got 'causal'"),
    ("- flatten", "- conv2d: {channels: 4, kernel: big}\n      - flatten", r"kernel: a number, or a list of two: \[vertical, horizontal\]; got 'big'"),
    ("- flatten", "- reshape: [8, 8]\n      - conv1d: {channels: 4, kernel: 3, padding: causal}\n      - flatten", r"or a list of two: \[before, after\]; causal is \[dilation \* \(kernel - 1\), 0\]"),
    ("sgd: {learning_rate: 0.1}", "adam: 0.001", r"takes its fields by name: write 'adam: \{learning_rate: 0.001\}'"),
    ("- flatten", "- flatten\n      - repeat: {times: 2, layers: []}", r"repeat.layers: list should have at least 1 item"),
    ("- flatten", "- flatten\n      - residual: []", r"residual.*: list should have at least 1 item"),
    ("- flatten", "- flatten\n      - block: {layers: []}", r"block.layers: list should have at least 1 item"),
    ("- flatten", "- flatten: 3", r"'flatten' has no fields: write it alone"),
    ("sgd: {learning_rate: 0.1}", "sgd: [1]", r"sgd: takes its fields by name: 'sgd: \{learning_rate: ...\}' \(fields: learning_rate, momentum"),
    ("sgd: {learning_rate: 0.1}", "adam: {lr: 0.001}", r"unknown field 'lr'; here that is 'learning_rate'"),
    ("sgd: {learning_rate: 0.1}", "nadam: {learning_rate: 0.001}", r"unknown optimizer 'nadam'; there is no such rule here \(known: sgd"),
    ("sgd: {learning_rate: 0.1}", "sgd: {learning_rate: '0.1'}", r"learning_rate: a number is needed, got '0.1'"),
    ("sgd: {learning_rate: 0.1}", "sgd: {learning_rate: true}", r"learning_rate: a number is needed, got True"),
    ("sgd: {learning_rate: 0.1}", "sgd: {learning_rate: 1e-320}", r"between 1e-37 and 1e\+30 in size"),
    ("- dense: 10", "- dense: {units: 10, kernel_init: {uniform: {low: 1, high: -1}}}", r"'low' is above 'high': 1 and -1"),
    ("- dense: 10", "- dense: {units: 10, kernel_init: {normal: -1}}", r"greater than or equal to 0, got -1"),
    ("labels: label}", "labels: label, class_weights: [1]}", r"unknown field 'class_weights'; there are no weights of classes here"),
    ("softmax_cross_entropy", "cross_entropy", r"unknown loss 'cross_entropy'; here that is 'softmax_cross_entropy'"),
    ("dataset: digits, batch: 64", "dataset: npz, path: a.npz, batch: 64", r"unknown field 'path'; here that is 'file' \(fields: batch, .*file, fields\)"),
    ("dataset: digits", "dataset: mnist", r"unknown data set 'mnist'; 'digits' is a small one"),
    ("batch: 64", "batch_size: 64", r"unknown field 'batch_size'; here that is 'batch'"),
    ("steps: 3", "epochs: 3", r"unknown field 'epochs'; there are steps here"),
    ("- dense: 10", "- dense: {units: 10, name: class}", r"no Python keyword; got 'class'"),
    ("- dense: 10", "- dense: {units: 10, inputs: [nobody]}", r"no layer or input 'nobody' before this one \(known: image, flatten1\)"),
    ("- dense: 10", "- dense: {units: 10, name: a, inputs: b}\n      - dense: {units: 10, name: b}", r"reads 'b', which comes later: a cycle"),
    ("- dense: 10", "- dense: {units: 10, name: a}\n      - dense: {units: 10, name: a}", r"the name 'a' is taken already"),
    ("- dense: 10", "- dense: 10\n      - add: {inputs: [dense1]}", r"needs at least 2 inputs, got 1"),
    ("- dense: 10", "- dense: 10\n      - dense: {units: 10, inputs: flatten1}", r"value of layer 'dense1' is read by nothing"),
    ("- dense: 10", "- conv2d: {channels: 3, kernel: 3}", r"needs an input of shape \[height, width, channels\], got \[64\]"),
    ("- dense: 10", "- reshape: [5, 5]", r"\[64\] holds 64 values, \[5, 5\] holds 25"),
    ("- dense: 10", "- residual: [{dense: 3}]", r"needs inputs of one shape, got \[64\] and \[3\]"),
    ("- dense: 10", "- embedding: {features: 3}", r"needs int values, 'flatten1' is float"),
    ("- dense: 10", "- dropout: 1.0\n      - dense: 10", r"at least 0 and below 1"),
    ("- dense: 10", "- dense: {units: 10, kernel_init: {values: [[1, 2], [3]]}}", r"nested lists of equal lengths"),
    ("- dense: 10", "- dense: {units: 10, kernel_init: {values: [[1.0]]}}", r"initial values of shape \[1, 1\] for a parameter of shape \[64, 10\]"),
    ("- flatten", "- conv2d: {channels: 4, kernel: 9}\n      - flatten", r"a window of 9 does not fit into 8 \+ 0"),
    ("- flatten", "- conv2d: {channels: 4, kernel: 3, groups: 3}\n      - flatten", r"1 input channels cannot be split into 3 groups"),
    ("- flatten", "- unembed: embed\n      - flatten", r"no embedding layer 'embed' before this one \(known: none\)"),
    ("dataset: digits", "dataset: digit", r"x.yaml:3:17: data.dataset: unknown data set 'digit'; did you mean 'digits'\? \(known: digits, iris"),
    ("batch: 64", "batch: 0", r"batch: input should be greater than 0, got 0"),
    ("batch: 64", "batch: 64, test: 1.5", r"test: input should be less than 1, got 1.5"),
    ("batch: 64", "batch: 64, noise: {image: {shape: [3]}}", r"the field 'image' is the data set's own"),
    ("batch: 64", "batch: 64, noise: {masks: {shape: [3]}}", r"a field cannot be called 'masks'"),
    ("steps: 3", "steps: 0", r"steps: input should be greater than 0, got 0"),
    ("steps: 3", "steps: many", r"valid integer.*got 'many'"),
    ("net(image)", "nett(image)", r"there is no network 'nett' \(known: net\)"),
    ("net(image)", "net(imag)", r"there is no field or value 'imag' \(known: image, label\)"),
    ("net(image)", "net(image, image)", r"a call with a comma needs quotes"),
    ("net(image)", "'net(image, image)'", r"takes 1 inputs \(image\), got 2"),
    ("net(image)", "net(label)", r"needs an input|needs float values, 'image' is int"),
    ("net(image)", "image", r"depends on no network"),
    ("net(image)", "'().__class__'", r"an expression is a field or a network's call, like 'classifier\(image\)', not '\(\).__class__'"),
    ("labels: label", "labels: image", r"need integer labels of shape \[\], got \[8, 8, 1\]"),
    ("sgd: {learning_rate: 0.1}", "sgd: {}", r"needs 'learning_rate'"),
    ("sgd: {learning_rate: 0.1}", "sgd: {learning_rate: -1}", r"greater than or equal to 0, got -1"),
    ("sgd: {learning_rate: 0.1}", "sgd: {learning_rate: .inf}", r"finite number, got inf"),
    ("sgd: {learning_rate: 0.1}", "sgd: {learning_rate: 0.1, nesterov: true}", r"nesterov needs a momentum above 0"),
    ("sgd: {learning_rate: 0.1}", "sdg: {learning_rate: 0.1}", r"unknown optimizer 'sdg'; did you mean 'sgd'\?"),
    ("name: good", "name: a-b", r"x.yaml:2:7: name: a name has letters"),
    ("name: good", "name: good\nname: twice", r"x.yaml:3:1: the key 'name' is given twice"),
    ("name: good", "name: good\ntraning: 3", r"unknown field 'traning'; did you mean 'training'\?"),
    ("name: good", 'name: good\n"\\ud83d\\ude00": 1', r"unknown field '\U0001f600'"),
    ("name: good", 'name: good\n"\\ud83d": 1', r"half of a surrogate pair is not a character"),
    ("name: good", "nam: good", r"unknown field 'nam'; did you mean 'name'\?"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), WRONG, ids=[w[1][:50] for w in WRONG])
def test_a_wrong_spec_says_where_what_and_what_instead(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(re.search(expected, line) for line in found), "\n".join(found)
    assert all(line.startswith("x.yaml") for line in found)


def test_a_prediction_has_as_many_examples_of_every_input() -> None:
    two = TWO.replace("b: [[1.0], [2.0]]}}", "b: [[1.0]]}}")
    assert problems(TWO) == []
    (found,) = problems(two)
    assert found.endswith("every input needs as many examples as the others, got 2 of 'a', 1 of 'b'")


TWO = """
name: two
data: {dataset: random, examples: 4, batch: 2, fields: {a: {shape: [2]}, b: {shape: [1]}}}
networks:
  net:
    inputs: [a, b]
    layers:
      - concatenate: {inputs: [a, b]}
      - dense: 1
training:
  steps: 1
  updates:
    - loss: {mse: {predictions: 'net(a, b)', targets: b}}
      optimizer: {sgd: {learning_rate: 0.1}}
evaluation:
  predictions:
    - {value: 'net(a, b)', inputs: {a: [[1.0, 2.0], [3.0, 4.0]], b: [[1.0], [2.0]]}}
"""


def test_several_errors_are_reported_at_once() -> None:
    found = problems(GOOD.replace("flatten", "flaten").replace("sgd", "sdg").replace("steps: 3", "steps: -3"))
    assert len(found) == 3
    assert [line.split(":")[1] for line in found] == ["8", "11", "14"]


@pytest.mark.parametrize(
    "text",
    ["", "- 1", "a: [1", "a: &x [*x]", "{", "a: !!python/object/apply:os.system [x]", "\t", "a: {b: &c {d: *c}}",
     "a: 1\n<<: {b: 2}", "? [1, 2]\n: 3", "a" * 100_000, "[" * 5000, "a: " + "{b: " * 200],
)  # fmt: skip
def test_no_text_is_a_traceback(text: str) -> None:
    assert problems(text)


def test_an_alias_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert any("too deep or too large" in line for line in problems("\n".join(lines)))


def test_yaml_is_read_as_version_1_2() -> None:
    loaded, _ = spec.loads(GOOD.replace("learning_rate: 0.1", "learning_rate: 1e-1"))
    assert loaded.training.updates[0].optimizer.learning_rate == 0.1


def test_quoted_numbers_stay_text() -> None:
    assert any("steps" in line for line in problems(GOOD.replace("steps: 3", "steps: '3'")))


def test_no_problem_is_said_twice() -> None:
    found = problems(
        BLOCKS.replace("- dense: 10", "- wide: {units: 7}\n      - wide: {units: 8}\n      - dense: 10").replace(
            "$drop", "$dropp"
        )
    )
    assert len(found) == len(set(found)) == 1
    found = problems(
        BLOCKS.replace("relu", "rlu").replace(
            "- dense: 10", "- wide: {units: 7}\n      - wide: {units: 8}\n      - dense: 10"
        )
    )
    assert len(found) == 1
    assert "unknown op 'rlu'" in found[0]
    found = problems(
        GOOD.replace("net(image)", "nett(image)")
        + "evaluation: {metrics: [{accuracy: {logits: nett(image), labels: label}}]}"
    )
    assert len(found) == len(set(found))


@pytest.mark.parametrize(("last", "loss", "said"), [
    ("- dense: 10\n      - softmax", "softmax_cross_entropy: {logits: net(image), labels: label}", "'net' ends with 'softmax', and softmax_cross_entropy applies it once more"),
    ("- dense: 10\n      - sigmoid", "sigmoid_cross_entropy: {logits: net(image), targets: 1}", "'net' ends with 'sigmoid'"),
    ("- end", "softmax_cross_entropy: {logits: net(image), labels: label}", "'net' ends with 'softmax'"),
    ("- softmax\n      - dense: 10", "softmax_cross_entropy: {logits: net(image), labels: label}", None),
    ("- dense: 10\n      - sigmoid", "mse: {predictions: net(image), targets: 1}", None),
])  # fmt: skip
def test_logits_that_are_none_are_warned_of_and_nothing_else(
    last: str, loss: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    errors.warn.cache_clear()
    text = GOOD.replace("- dense: 10", last).replace("softmax_cross_entropy: {logits: net(image), labels: label}", loss)
    text = text.replace("networks:", "blocks: {end: {layers: [{dense: 10}, softmax]}}\nnetworks:")
    for _ in range(2):
        assert program_of(text)
    assert [said in record.message if said else "" for record in caplog.records] == ([True] if said else [])


def test_words_of_others_mean_what_there_is() -> None:
    own = {
        *catalogue.listing("ops"),
        *catalogue.listing("losses"),
        *catalogue.listing("optimizers"),
        *catalogue.listing("schedules"),
        *catalogue.listing("clips"),
    }
    own |= {
        *catalogue.listing("initializers"),
        *catalogue.listing("metrics"),
        *catalogue.listing("datasets"),
        *BACKENDS,
        *precision.NAMES,
        "gpu",
        "cpu",
    }
    schema = catalogue.json_schema()
    own |= {name for definition in [schema, *schema["$defs"].values()] for name in definition.get("properties", {})}
    for word, meant in words.SHARED.items():
        assert meant in own or " " in meant, f"{word} means {meant}, which there is not"
        assert word == words._plain(word)
    assert {meant for several in words.BY_FIELD.values() for meant in several} <= own
    assert words.hint("keras", BACKENDS) == "; here that is 'tensorflow'"
    assert words.hint("cuda", ["cpu", "gpu"]) == "; here that is 'gpu'"
    assert words.hint("bf16", precision.NAMES) == "; here that is 'bfloat16'"


@pytest.mark.parametrize(
    "name", ["kaiming_normal", "xavier_normal", "nadam", "rmsprop", "class_weights", "huber", "mish"]
)
def test_no_suggestion_names_another_rule(name: str) -> None:
    for listed in ("initializers", "optimizers", "losses", "ops"):
        hint = words.hint(name, catalogue.listing(listed))
        assert "did you mean" not in hint


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(GOOD)
    with pytest.raises(SpecError, match=r"digts.yaml: cannot be read: .*; did you mean .*digits.yaml\?"):
        spec.load(tmp_path / "digts.yaml")


def test_a_bundled_spec_is_found_by_name_and_its_nearest_is_suggested() -> None:
    assert spec.find("digits_cnn").name == "digits_cnn.yaml"
    with pytest.raises(SpecError, match="no such spec; did you mean 'digits_cnn'"):
        spec.find("digits_cn")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0b", "a\0b.yaml", "x" * 5000 + ".yaml", "/dev/zero", ".", "", "\ud800"]
)
def test_what_is_no_path_is_no_spec(name: str) -> None:
    with pytest.raises(SpecError, match=r"no such spec|cannot be read: "):
        spec.load(spec.find(name))


BLOCKS = GOOD.replace(
    "networks:",
    "blocks:\n  wide:\n    parameters: {units: ~, drop: 0.5}\n    layers: [{dense: $units}, relu, {dropout: $drop}]\nnetworks:",
)


def test_blocks_are_expanded_with_their_parameters() -> None:
    program = program_of(
        BLOCKS.replace(
            "- dense: 10", "- wide: {units: 7}\n      - wide: {units: 8, drop: 0.1, name: second}\n      - dense: 10"
        )
    )
    graph = program.networks["net"]
    assert [node.name for node in graph.nodes] == ["flatten1", "wide1", "second", "dense1"]
    assert graph.parameters["wide1.dense1.kernel"].shape == (64, 7)
    assert graph.masks == {"wide1.dropout1": ((7,), 0.5), "second.dropout1": ((8,), 0.1)}
    assert {b.class_name for b in graph.blocks} == {"Wide", "Wide2"}


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("- wide: {unit: 3}", "block 'wide' has no parameter 'unit'; did you mean 'units'"),
        ("- wide: {}", "block 'wide' needs its parameter 'units'"),
        ("- wide: 3", "takes its parameters by name"),
        ("- wide: {units: -3}", "greater than 0, got -3"),
    ],
)
def test_a_block_used_wrongly_says_so(use: str, expected: str) -> None:
    found = problems(BLOCKS.replace("- dense: 10", f"{use}\n      - dense: 10"))
    assert any(expected in line for line in found), found


def test_a_block_that_contains_itself_is_refused() -> None:
    text = GOOD.replace("networks:", "blocks:\n  me: {layers: [me]}\nnetworks:").replace(
        "- dense: 10", "- me\n      - dense: 10"
    )
    assert any("contains itself" in line for line in problems(text))


def test_several_networks_need_to_say_which_one_moves() -> None:
    text = GOOD.replace("training:", "  other: {inputs: [image], layers: [flatten, {dense: 10}]}\ntraining:")
    found = problems(text.replace("net(image)", "other(image)"))
    assert any("several networks are declared: say 'over:'" in line for line in found), found


def test_a_network_that_has_nothing_to_learn_is_moved_by_nobody() -> None:
    """An optimizer of nothing raises in PyTorch, and Optax is asked for parameters that are not there."""
    two = GOOD.replace("networks:", "networks:\n  same: {inputs: [x], layers: [relu]}").replace(
        "net(image)", "same(net(image))"
    )
    moved = compile_spec(*spec.loads(two.replace("- loss:", "- over: [net, same]\n      loss:")))
    assert [update.over for update in moved.updates] == [("net",)]
    assert [update.name for update in moved.updates] == ["net_same"], "called as the spec has it"
    found = problems(two.replace("- loss:", "- over: [same]\n      loss:"))
    assert any("there is nothing to learn: no parameter in 'same'" in line for line in found), found


def test_one_network_cannot_be_called_with_two_shapes() -> None:
    text = GOOD.replace("batch: 64", "batch: 64, noise: {z: {shape: [3, 3, 1]}}")
    text = text.replace("    - loss: {soft", "    - values: {a: net(z), b: net(image)}\n      loss: {soft")
    assert any("its weights fit one" in line for line in problems(text))


TWICE = """name: twice
data: {dataset: random, examples: 6, batch: 2, fields: {few: {classes: 2}, many: {classes: 8}, truth: {shape: [2]}}}
networks: {net: {layers: [LAYERS]}}
training: {steps: 2, updates: [{loss: {mse: {predictions: net(FIRST), targets: truth}}, optimizer: {sgd: {learning_rate: 0.1}}}]}
evaluation: {metrics: [{mse: {predictions: net(SECOND), targets: truth}}]}
"""


@pytest.mark.parametrize(
    "layers",
    [
        "{embedding: {features: 2}}",
        "{block: {layers: [{embedding: {features: 2}}]}}",
    ],
)
def test_a_later_call_has_no_more_ids_than_the_embedding_was_made_for(layers: str) -> None:
    text = TWICE.replace("LAYERS", layers)
    (line,) = problems(text.replace("FIRST", "few").replace("SECOND", "many"))
    assert "has a vocabulary of 2, 'many' has 8 ids: give it 'vocabulary: 8'" in line
    assert not problems(text.replace("FIRST", "many").replace("SECOND", "few"))
    assert not problems(
        text.replace("FIRST", "few").replace("SECOND", "many").replace("features: 2", "vocabulary: 8, features: 2")
    )
    predicted = (
        text.replace("FIRST", "few")
        .replace("SECOND", "few")
        .replace("evaluation: {", "evaluation: {predictions: [{name: guess, value: net(few), inputs: {few: [9]}}], ")
    )
    (given,) = problems(predicted)
    assert "ids from 9 to 9; those of 'few' are 0 to 1" in given
    updates = text.replace("FIRST", "few").replace("SECOND", "few").replace("{loss: {", "{values: {ids: many}, loss: {")
    own = updates.replace(
        "updates: [",
        "updates: [{name: first, loss: {mse: {predictions: net(few), targets: truth}}, optimizer: {sgd: {learning_rate: 0.1}}}, ",
    )
    (named,) = problems(
        own.replace(
            "{values: {ids: many}, loss: {mse: {predictions: net(few)",
            "{name: second, values: {ids: many}, loss: {mse: {predictions: net(ids)",
        )
    )
    assert "has a vocabulary of 2, 'many' has 8 ids" in named
    (small,) = problems(
        text.replace("FIRST", "many").replace("SECOND", "many").replace("features: 2", "vocabulary: 3, features: 2")
    )
    assert "a vocabulary of 3 is too small" in small


def test_weights_are_shared_by_calling_a_network_twice() -> None:
    program = program_of(GOOD.replace(
        "- loss: {softmax_cross_entropy: {logits: net(image), labels: label}}",
        "- loss:\n        - mse: {predictions: net(image), targets: 0}\n        - softmax_cross_entropy: {logits: net(image), labels: label, weight: 0.5}",
    ))  # fmt: skip
    (update,) = program.updates
    assert len(update.calls) == 1
    assert len(program.parameters) == 2


def test_the_schema_accepts_every_bundled_spec_and_refuses_a_wrong_one() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = catalogue.json_schema()
    json.dumps(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    for path in spec.directory().glob("*.yaml"):
        _, source = spec.load(path)
        data = source.root.plain()
        if "blocks" not in data:  # a spec's own blocks are words that no general schema knows
            checker.validate(data)
    with pytest.raises(jsonschema.ValidationError):
        checker.validate({"name": "x"})


EVALUATED = GOOD.replace("batch: 64", "batch: 64, noise: {z: {shape: [8, 8, 1]}}") + "evaluation:\n"


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        ("  metrics: [{accuracy: {logits: net(z), labels: label}}]", "'z' is noise, which held-out examples do not have"),
        ("  metrics: [{accuracy: {logits: net(image), labels: net(image)}}]", "what is true is a field of the data"),
        ("  predictions: [{value: net(image), inputs: {image: []}}, {value: net(image), inputs: {}}]", "2 predictions are called 'prediction'"),
        ("  predictions: [{value: net(image)}]", "needs 'inputs: {image: ...}'"),
        ("  images: {images: net(image)}", "images are [height, width, 1 or 3], got [10]"),
        ("  text: {logits: net(image), prompt: a}", "needs a text data set"),
    ],
)  # fmt: skip
def test_a_wrong_evaluation_says_so(evaluation: str, expected: str) -> None:
    found = problems(EVALUATED + evaluation)
    assert any(expected in line for line in found), found


def test_parameters_with_zero_gradient_are_found_from_the_graph() -> None:
    layers = "- conv2d: {channels: 2, kernel: 3}\n      - batch_norm\n      - conv2d: {channels: 2, kernel: 3, bias: false}\n      - batch_norm\n      - conv2d: {channels: 2, kernel: 3}\n      - relu\n      - flatten"
    text = GOOD.replace("- flatten", layers)
    # Between the two normalisations is a convolution without zeros at its edges: it passes norm1's bias on as one.
    assert set(zero_gradient(program_of(text))) == {"conv1.bias", "norm1.bias"}
    adam = text.replace("sgd: {learning_rate: 0.1}", "adam: {learning_rate: 0.1}")
    assert set(zero_gradient(program_of(adam))) == {"conv1.bias", "norm1.mean", "norm1.bias", "norm2.mean"}
    # A bias that something else reads as well has a gradient.
    shared = text.replace("- batch_norm\n", "- batch_norm\n      - add: {inputs: [conv1, norm1]}\n      - relu\n", 1)
    assert "conv1.bias" not in zero_gradient(program_of(shared))
