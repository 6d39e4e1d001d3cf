"""A spec with another value in one place. Needs no framework."""

import pytest

from harness import source, spec
from harness.bench.options import BenchOptions, validate
from harness.errors import CallError, SpecError
from harness.vary import Variation, parse, varied

SPEC = """\
name: small
data:
  dataset: random
  examples: 64
  fields:
    x: {shape: [4]}
    y: {shape: [1]}
  batch: 8
networks:
  mlp:
    layers:
      - dense: 16  # wide
      - relu
      - repeat: {times: 2, layers: [{dense: {units: 16}}]}
      - dense: 1
training:
  steps: 10
  updates:
    - loss: {mse: {predictions: mlp(x), targets: y}}
      optimizer: {sgd: {learning_rate: 0.01}}
"""


def changed(places: str, value: float) -> spec.Spec:
    own, _ = spec.validate(source.parse(varied(SPEC, tuple(places.split("+")), value)))
    return own


def test_one_place_is_set_and_the_rest_is_kept() -> None:
    assert changed("data.batch", 32).data.batch == 32
    assert changed("networks.mlp.layers.2.repeat.times", 5).networks["mlp"].layers[2].op.times == 5  # type: ignore[union-attr]
    (other, _), (before, _) = (spec.validate(source.parse(text)) for text in (varied(SPEC, ("data.batch",), 32), SPEC))
    assert other.data.model_copy(update={"batch": 8}) == before.data
    assert other.model_copy(update={"data": before.data}) == before


def test_several_places_take_the_same_value() -> None:
    own = changed("networks.mlp.layers.0.dense+networks.mlp.layers.2.repeat.layers.0.dense.units", 64)
    assert own.networks["mlp"].layers[0].op.units == 64  # type: ignore[union-attr]
    assert own.networks["mlp"].layers[2].op.layers[0].op.units == 64  # type: ignore[union-attr]


def test_values_are_read_as_yaml_has_them() -> None:
    assert parse("a.b=1,0.5, word,true") == Variation(("a.b",), (1, 0.5, "word", True))
    assert parse("a+b = 2").places == ("a", "b")


def test_a_series_has_the_name_it_is_given_or_that_of_its_places() -> None:
    assert parse("width: a.b+c=1,2") == Variation(("a.b", "c"), (1, 2), "width")
    assert [parse(text).name for text in ("width:a.b+c=1", "a.b+c=1")] == ["width", "a.b+c"]


@pytest.mark.parametrize(
    "text", ["data.batch", "data.batch=", "=1", "a+=1", "a=[1]", "a={b: 1}", ":a=1", "two words:a=1", "a:b:c=1"]
)
def test_a_wrong_variation_is_a_sentence(text: str) -> None:
    with pytest.raises(CallError, match=r"--vary takes \[NAME:\]PLACE=VALUE"):
        parse(text)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("data.bach", r"data has no 'bach' written in it \(dataset, examples, fields, batch\)"),
        ("dat.batch", "the spec has no 'dat' written in it"), ("networks.mlp.layers.9.dense", r"has no '9' written in it \(0 to 3\)"),
        ("data.batch.size", r"data.batch has no 'size' written in it \(only 8\)"), ("data.fields", "is no single value there but has x, y"),
    ],
)  # fmt: skip
def test_a_place_that_the_spec_does_not_have_is_a_sentence(place: str, expected: str) -> None:
    with pytest.raises(CallError, match=expected):
        varied(SPEC, (place,), 1)


def test_a_value_that_the_spec_does_not_allow_is_found() -> None:
    with pytest.raises(SpecError):
        changed("data.batch", -1)


def test_two_series_of_one_name_are_refused() -> None:
    with pytest.raises(CallError, match="two series are called 'w'"):
        validate(BenchOptions(vary=(parse("w:data.batch=1"), parse("w:training.steps=5"))))
    validate(BenchOptions(vary=(parse("data.batch=1"), parse("training.steps=5"))))
