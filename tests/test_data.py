"""Data is checked before any worker starts, split and normalised by the training part alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import program_of

from harness.data.datasets import Column, Random
from harness.data.inputs import prepare
from harness.errors import DataError, HarnessError


def spec(data: dict[str, Any], network: str = "net(x)", target: str = "y", loss: str = "mse") -> str:
    roles = {"mse": ("predictions", "targets"), "softmax_cross_entropy": ("logits", "labels")}[loss]
    argument = network.partition("(")[2].rstrip(")")
    return json.dumps({
        "name": "data", "data": data,
        "networks": {"net": {"inputs": [argument], "layers": [{"dense": 3 if loss != "mse" else 1}]}},
        "training": {"steps": 4, "updates": [{"loss": {loss: dict(zip(roles, (network, target), strict=True))}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
    })  # fmt: skip


def inline(**options: Any) -> dict[str, Any]:
    values = {"x": [[float(i), 1.0] for i in range(10)], "y": [[float(i)] for i in range(10)]}
    return {"dataset": "inline", "values": values, "batch": 2, **options}


def test_the_held_out_part_is_chosen_by_the_seed_and_shares_nothing_with_the_rest() -> None:
    data = prepare(program_of(spec(inline(test=0.3))))
    assert len(data.test["x"]) == 3
    assert data.held_out
    assert sorted([*data.train["x"][:, 0], *data.test["x"][:, 0]]) == list(range(10))
    other = prepare(program_of(spec(inline(test=0.3)), seed=5))
    assert not np.array_equal(other.test["x"], data.test["x"])


def test_with_nothing_held_out_metrics_are_those_of_the_training_data() -> None:
    data = prepare(program_of(spec(inline())))
    assert not data.held_out
    assert np.array_equal(data.test["x"], data.train["x"])


def test_standardising_uses_the_training_part_alone() -> None:
    raw = prepare(program_of(spec(inline(test=0.3))))
    data = prepare(program_of(spec(inline(test=0.3, normalise="standardise"))))
    assert np.allclose(data.train["x"][:, 0].mean(), 0)
    assert np.allclose(data.train["x"][:, 0].std(), 1)
    mean, std = raw.train["x"][:, 0].mean(), raw.train["x"][:, 0].std()
    assert np.allclose(data.test["x"][:, 0], (raw.test["x"][:, 0] - mean) / std)
    assert np.allclose(data.train["x"][:, 1], 0), "a constant feature stays finite"


def test_range_maps_the_training_part_onto_zero_to_one() -> None:
    data = prepare(program_of(spec(inline(normalise="range"))))
    assert (data.train["x"][:, 0].min(), data.train["x"][:, 0].max()) == (0.0, 1.0)


def message(text: str) -> str:
    with pytest.raises(HarnessError) as caught:
        prepare(program_of(text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (inline(batch=11), "a batch of 11 is larger than the 10 examples"),
        (inline(batch=8, test=0.3), "a batch of 8 is larger than the 7 examples"),
        (inline(test=0.01), "holding out 0.01 of 10 examples leaves 10 and 0"),
        (inline(values={"x": [[1.0, 2.0], [3.0]], "y": [[1.0], [2.0]]}), "its lists have different lengths"),
        (inline(values={"x": [[1.0], [2.0]], "y": [[1.0]]}), "different numbers of examples"),
        (inline(values={"x": [["a"]], "y": [[1.0]]}), "must hold numbers"),
        (inline(values={"x": [], "y": []}), "must hold numbers"),
        ({"dataset": "npz", "file": "missing.npz", "batch": 1}, "No such file"),
        ({"dataset": "csv", "file": "missing.csv", "target": "y", "batch": 1}, "No such file"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(data: dict[str, Any], expected: str) -> None:
    assert expected in message(spec(data))


def test_nan_is_found_and_located(tmp_path: Path) -> None:
    x = np.ones((5, 2))
    x[3, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.ones((5, 1)))
    data = {"dataset": "npz", "file": str(tmp_path / "a.npz"), "batch": 2}
    assert "field 'x' has 1 values that are NaN or infinite; the first is example 3, index [1]" in message(spec(data))


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((5, 2)), y=np.array([0, 1, 2, -1, 0]))
    data = {"dataset": "npz", "file": str(tmp_path / "a.npz"), "batch": 2}
    assert "ids from -1 to 2" in message(spec(data, loss="softmax_cross_entropy"))
    np.savez(tmp_path / "a.npz", x=np.ones((5, 2)), y=np.array([0, 1, 2, 3, 0]))
    assert "'y' has 4 classes, the logits only 3" in message(spec(data, loss="softmax_cross_entropy"))


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object), y=np.ones((1, 1)))
    assert "allow_pickle" in message(spec({"dataset": "npz", "file": str(tmp_path / "a.npz"), "batch": 1}))


def test_a_csv_file_is_read_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("height,kind,width\n1,cat,2\n3,dog,4.5\n5,cat,6\n")
    data = {"dataset": "csv", "file": str(file), "target": "kind", "batch": 2}
    found = prepare(program_of(spec(data, "net(features)", "label", "softmax_cross_entropy")))
    assert found.train["features"].tolist() == [[1, 2], [3, 4.5], [5, 6]]
    assert found.train["label"].tolist() == [0, 1, 0]
    regression = {**data, "target": "width", "features": ["height"], "regression": True}
    found = prepare(program_of(spec(regression, "net(features)", "target")))
    assert found.train["target"].tolist() == [[2], [4.5], [6]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"), ("a,b\n", "a header and no rows"), ("a,b\n1,2\n3\n", "row 3 has 1 values for 2 columns"),
        ("a,b\n1,2\nx,3\n", "row 3, column 'a': 'x' is not a number"), ("a,c\n1,2\n", "no column 'b' (it has: a, c)"),
    ],
)  # fmt: skip
def test_a_wrong_csv_file_says_where(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text)
    data = {"dataset": "csv", "file": str(file), "target": "b", "batch": 1}
    assert expected in message(spec(data, "net(features)", "label", "softmax_cross_entropy"))


def text_spec(file: Path, **options: Any) -> str:
    return json.dumps({
        "name": "t", "data": {"dataset": "text", "file": str(file), "length": 4, "batch": 1, **options},
        "networks": {"net": {"inputs": ["tokens"], "layers": [{"embedding": {"features": 3, "name": "e"}}, {"unembed": "e"}]}},
        "training": {"steps": 1, "updates": [{"loss": {"softmax_cross_entropy": {"logits": "net(tokens)", "labels": "targets"}}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
    })  # fmt: skip


def test_targets_are_the_tokens_one_character_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello, wörld!")
    program = program_of(text_spec(tmp_path / "a.txt"))
    arrays = program.spec.data.read()
    decode = program.spec.data.decode  # type: ignore[union-attr]
    assert decode(arrays["tokens"].ravel()) == "hello, w?rld"
    assert decode(arrays["targets"].ravel()) == "ello, w?rld!"


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    assert "3 characters are too few for windows of 4" in message(text_spec(tmp_path / "a.txt"))


def test_the_bundled_sets_are_what_they_say() -> None:
    from harness.data.datasets import Digits, Table  # noqa: PLC0415

    for made in (
        Digits(dataset="digits", batch=1),
        *(Table(dataset=n, batch=1) for n in ("iris", "wine", "breast_cancer", "diabetes")),
    ):
        arrays = made.read()
        assert set(arrays) == set(made.fields())
        for name, column in made.fields().items():
            assert arrays[name].shape[1:] == column.shape
            assert (column.classes is None) == (column.dtype == "float")
            if column.classes:
                assert set(np.unique(arrays[name])) == set(range(column.classes))


def test_the_digits_are_those_that_scikit_learn_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util  # noqa: PLC0415

    from sklearn.datasets import load_digits  # noqa: PLC0415

    from harness.data.datasets import Digits  # noqa: PLC0415

    theirs = load_digits()
    ours = Digits(dataset="digits", batch=1).read()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    elsewhere = Digits(dataset="digits", batch=1).read()
    for found in (ours, elsewhere):
        assert np.array_equal(found["image"], theirs.images[..., None] / 16)
        assert np.array_equal(found["label"], theirs.target)
        assert [found[name].dtype for name in ("image", "label")] == [np.float64, np.int64]


def random(**options: Any) -> dict[str, Any]:
    fields = {"x": {"shape": [2, 3]}, "label": {"classes": 3}, "tokens": {"shape": [7], "classes": 96}}
    return {"dataset": "random", "examples": 500, "fields": fields, "batch": 5, **options}


def test_random_numbers_are_what_their_fields_say(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Random.model_validate(random())
    arrays = made.read()
    assert {n: (a.shape, a.dtype.kind) for n, a in arrays.items()} == {
        "x": ((500, 2, 3), "f"), "label": ((500,), "i"), "tokens": ((500, 7), "i"),
    }  # fmt: skip
    assert abs(arrays["x"].mean()) < 0.1
    assert abs(arrays["x"].std() - 1) < 0.1
    assert set(arrays["label"]) == {0, 1, 2}
    assert (arrays["tokens"].min(), arrays["tokens"].max()) == (0, 95)
    monkeypatch.setattr(Random, "read", None)  # compiling draws nothing
    assert made.fields() == {
        "x": Column((2, 3), "float"), "label": Column((), "int", 3), "tokens": Column((7,), "int", 96),
    }  # fmt: skip


def test_random_numbers_follow_their_own_seed_and_no_other() -> None:
    def x(spec_seed: int, **own: int) -> Any:
        data = random(fields={"x": {"shape": [2]}, "y": {"shape": [1]}}, **own)
        return prepare(program_of(spec(data), seed=spec_seed)).train["x"]

    assert np.array_equal(x(0), x(1))
    assert np.array_equal(x(0), x(0, seed=0))
    assert not np.array_equal(x(0), x(0, seed=1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"examples": 0}, "data.examples: input should be greater than 0, got 0"),
        ({"examples": 4}, "a batch of 5 is larger than the 4 examples"),
        ({"fields": {}}, "data.fields: Dictionary should have at least 1 item"),
        ({"fields": {"x": {"shape": [0]}}}, "data.fields.x.shape[0]: input should be greater than 0, got 0"),
        ({"fields": {"x": {"classes": 0}}}, "data.fields.x.classes: input should be greater than 0, got 0"),
        ({"fields": {"x": {"shap": [2]}}}, "data.fields.x.shap: unknown field 'shap'"),
        ({"seed": -1}, "data.seed: input should be greater than or equal to 0, got -1"),
    ],
)
def test_random_numbers_that_cannot_be_drawn_are_refused(options: dict[str, Any], expected: str) -> None:
    fields = {"x": {"shape": [2]}, "y": {"shape": [1]}}
    assert expected in message(spec(random(**{"fields": fields, **options})))


def test_data_errors_come_before_any_directory_is_made(tmp_path: Path) -> None:
    from harness.runs import Options, run  # noqa: PLC0415

    path = tmp_path / "x.yaml"
    path.write_text(spec(inline(batch=11)))
    with pytest.raises(HarnessError):
        run(path, Options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert DataError.__mro__[1] is HarnessError
