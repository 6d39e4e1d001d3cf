"""What is too large is refused at once, with the limit in the message; what is wrong with a file says what and where."""

import io
import json
import os
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build import program_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import initial, limits, spec
from harness.data.inputs import prepare
from harness.errors import CallError, DataError, HarnessError, SpecError
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
CALLS = 3_000_000
"""Of Python functions: about two seconds."""
MEGABYTES = 200
"""More than the process had: far below the gigabyte that a refusal may take."""


@contextmanager
def few_calls() -> Iterator[None]:
    """Fail at once where Python calls more functions than CALLS: what time would say, whatever the machine does besides."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"
        if count > CALLS:
            sys.setprofile(None)
            pytest.fail(f"more than {CALLS:,} calls")

    sys.setprofile(counted)
    try:
        yield
    finally:
        sys.setprofile(None)


def refused(text: str, folder: Path | None = None) -> str:
    """What a spec is refused with, its data prepared if it comes so far; by few calls and in little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HarnessError) as caught, few_calls():
        prepare(compile_spec(*spec.loads(text, "x.yaml", folder)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    return str(caught.value)


def put(new: str, old: str = "- dense: 10") -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def doubling(depth: int) -> str:
    blocks = "".join(f"  b{i}: {{layers: [b{i + 1}, b{i + 1}]}}\n" for i in range(depth))
    return put(f"blocks:\n{blocks}  b{depth}: {{layers: [relu]}}\nnetworks:", "networks:").replace(
        "- dense: 10", "- b0\n      - dense: 10"
    )


def nested(depth: int) -> str:
    blocks = "".join(f"  b{i}: {{layers: [b{i + 1}]}}\n" for i in range(depth))
    return put(f"blocks:\n{blocks}  b{depth}: {{layers: [relu]}}\nnetworks:", "networks:").replace(
        "- dense: 10", "- b0\n      - dense: 10"
    )


def handed_down(depth: int) -> str:
    """Blocks whose parameter is handed to the next one twice."""
    blocks = "".join(
        f"  b{i}: {{parameters: {{v: ~}}, layers: [{{b{i + 1}: {{v: [$v, $v]}}}}]}}\n" for i in range(depth)
    )
    last = f"  b{depth}: {{parameters: {{v: ~}}, layers: [{{reshape: $v}}]}}\n"
    return put(f"blocks:\n{blocks}{last}networks:", "networks:").replace(
        "- dense: 10", "- b0: {v: [1]}\n      - dense: 10"
    )


def values(text: str) -> str:
    return put(f"    - values: {{{text}}}\n      loss:", "    - loss:")


TOO_LARGE: dict[str, tuple[str, str]] = {
    "a billion repetitions": (put("- repeat: {times: 1000000000, layers: [relu]}\n      - dense: 10"), "has 1,000,000,002 layers, repetitions written out; 5,000 at most"),
    "repetitions of repetitions": (put("- repeat: {times: 1000, layers: [{repeat: {times: 1000, layers: [relu]}}]}\n      - dense: 10"), "5,000 at most"),
    "blocks that double": (doubling(40), "20 deep at most"),
    "blocks that double, not so deep": (doubling(18), "more than 50,000 values"),
    "400 blocks nested": (nested(400), "blocks are nested 20 deep at most"),
    "a parameter that doubles": (handed_down(19), "more than 50,000 values"),
    "residuals nested": (put("- " + "residual: [{" * 25 + "relu: ~" + "}]" * 25 + "\n      - dense: 10"), "25 deep; 20 at most"),
    "a value made of itself": (values("v: net(v)"), "'v' is made of itself"),
    "values that double": (values(", ".join([f"a{i + 1}: 'net(a{i}, a{i})'" for i in range(40)])), "there is no field or value 'a0'"),
    "calls within calls": (put("n(" * 100 + "image" + ")" * 100, "net(image)"), "100 deep; 20 at most"),
    "a long expression": (put("n" * 2000, "net(image)"), "an expression of 2,000 characters; it has 1,000 at most"),
    "ten million steps": (put("steps: 10000000", "steps: 3"), "less than or equal to 1000000, got 10000000"),
    "a million steps of large batches": (put("steps: 1000000", "steps: 3").replace("batch: 64", "batch: 1000"), "the rows of 1,000,000 batches of 1,000 takes 4 GB; 2 GB at most (set HARNESS_MEMORY"),
    "a million passes": (put("steps: 1000000", "steps: 3").replace("batch: 64", "batch: 100").replace("batch: 100", "batch: 100, test: 0.9"), "1,000,000 steps are 1,000,000 passes through the 180 examples, each in an order of its own; 50,000 at most"),
    "noise": (put("batch: 64, noise: {z: {shape: [1000000, 1000]}}", "batch: 64"), "'z' for 3 batches of 64 takes"),
    "a billion units": (put("- dense: 1000000000\n      - dense: 10"), "a layer's value, [1000000000] for a batch of 64, takes 512 GB; 2 GB at most"),
    "an lstm of a billion": (put("- lstm: 1e9", "- flatten"), "valid integer, got 1000000000.0"),
    "an lstm of a billion, written out": (put("- reshape: [8, 8]\n      - lstm: 1000000000", "- flatten"), "2 GB at most"),
    "a trillion trillion": (put("- dense: 1000000000000000000"), "less than or equal to 2147483647, got 1000000000000000000"),
    "parameters": (put("- dense: 60000\n      - dense: 60000\n      - dense: 10"), "its parameters, in float64, takes 28.8 GB"),
    "many axes": (put("- reshape: [1, 1, 1, 1, 1, 1, 1, 64]"), "8 axes; 7 at most"),
    "upsampling": (put("- upsample2d: 1000000\n      - flatten", "- flatten"), "2 GB at most"),
    "attention": (put("- flatten\n      - reshape: [64, 1]\n      - repeat: {times: 9, layers: [{conv1d: {channels: 1, kernel: 1, padding: 1000000}}]}\n      - attention: 1\n      - flatten", "- flatten"), "2 GB at most"),
    "examples": (put("{dataset: random, examples: 1000000000, fields: {image: {shape: [8, 8, 1]}, label: {classes: 10}}, batch: 64}", "{dataset: digits, batch: 64}"), "1,000,000,000 examples of field 'image' takes 512 GB in 64 bits a value; data take 2 GB"),
    "a name of ten megabytes": (put(f"name: {'a' * 10_000_000}", "name: good"), "characters; a spec has 500,000 at most"),
    "a name of 300 letters": (put(f"name: {'a' * 300}", "name: good"), "a name has 80 characters at most"),
    "a key of 300 letters": (put(f"{'a' * 300}: 1\nname: good", "name: good"), "a key of 300 characters; a name has 80 at most"),
    "prose": (put(f"name: good\nabout: '{'a' * 30_000}'", "name: good"), "text of 30,000 characters; a piece of text has 20,000 at most"),
    "an integer of 5,000 digits": (put(f"- dense: {'9' * 5000}"), "a number of 5,000 characters; it has 100 at most"),
    "a hexadecimal one": (put(f"- dense: 0x{'f' * 5000}"), "a number of 5,002 characters; it has 100 at most"),
    "a character that there is not": (put('name: good\nabout: "\\U00110000"', "name: good"), "is not YAML: "),
    "100,000 rows": (put(f"{{dataset: inline, batch: 1, values: {{image: {[[1.0, 2.0]] * 100_000}}}}}", "{dataset: digits, batch: 64}"), "characters; a spec has 500,000 at most; what a network trains on belongs into a file"),
    "20,000 rows": (put(f"{{dataset: inline, batch: 1, values: {{image: {[[1, 2]] * 20_000}}}}}", "{dataset: digits, batch: 64}"), "words and numbers; a spec has 20,000 at most"),
    "a schedule": (put("sgd: {learning_rate: 0.1}}\n      schedule: {step: {every: 1, multiply_by: 1e20}}", "sgd: {learning_rate: 0.1}}"), "multiplied by 1e+20 3 times, to 1e59; 1e+30 at most"),
    "a long sample": (GOOD + "evaluation: {text: {logits: net(image), prompt: a, length: 1000000000}}", "less than or equal to 20000"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_is_too_large_is_refused_at_once_and_the_limit_said(case: str) -> None:
    text, expected = TOO_LARGE[case]
    found = refused(text)
    assert expected in found
    assert len(found) < 2000, "a message is for reading"


def npz_spec(name: str, **options: Any) -> str:
    data = json.dumps({"dataset": "npz", "file": name, "batch": 1, **options})
    return put(data, "{dataset: digits, batch: 64}")


def stored(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def one_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 2)))
    return file.getvalue()


def with_header(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def bomb() -> bytes:
    """30 MB of zeros in 30 kB."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("image.npy", "w", force_zip64=True) as member,
    ):
        member.write(with_header("(3000, 1250)"))
        member.write(bytes(30_000_000))
    return file.getvalue()


WHOLE = stored(image=np.zeros((3, 8, 8, 1)), label=np.array([0, 1, 9]))
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is cut short, or no npz file"),
    "text": (lambda: b"image,label", "is cut short, or no npz file"),
    "cut short": (lambda: WHOLE[: len(WHOLE) // 2], "is cut short, or no npz file"),
    "changed": (lambda: WHOLE[:200] + b"\xff" * 300 + WHOLE[500:], "Bad CRC-32"),
    "one array": (one_array, "is an .npy file, one array without a name; an npz file has several"),
    "no array": (lambda: zipped("a.txt", b"x"), "holds no array"),
    "an array that is none": (lambda: zipped("image.npy", b"x"), "npz file data.npz: "),
    "an array of less than it says": (lambda: zipped("image.npy", with_header("(3, 8, 8, 1)")), "npz file data.npz: "),
    "an array of more than there may be": (lambda: zipped("image.npy", with_header("(1000000000, 1000000000)")), "data take 2 GB at most"),
    "a shape below zero": (lambda: zipped("image.npy", with_header("(-1, 8)")), "npz file data.npz: "),
    "a shape of code": (lambda: zipped("image.npy", with_header("(__import__('os'),)")), "npz file data.npz: "),
    "objects": (lambda: stored(image=np.array([{"a": 1}], dtype=object)), "Python objects"),
    "words": (lambda: stored(image=np.array(["a", "b"])), "field 'image' must hold numbers"),
    "complex numbers": (lambda: stored(image=np.array([1j])), "field 'image' must hold numbers"),
    "one number": (lambda: stored(image=np.float64(1.0)), "field 'image' must hold numbers"),
    "no examples": (lambda: stored(image=np.zeros((0, 8))), "field 'image' must hold numbers"),
    "different lengths": (lambda: stored(image=np.zeros((3, 8, 8, 1)), label=np.array([0])), "different numbers of examples"),
    "huge numbers": (lambda: stored(image=np.full((3, 8, 8, 1), 1e39), label=np.array([0, 1, 9])), "values of size 1e+39; float32 squares 1e+30 at most"),
    "integers of 64 bits": (lambda: stored(image=np.zeros((3, 8, 8, 1)), label=np.array([0, 1, 2**63], dtype=np.uint64)), "integers up to 9223372036854775808; ids and labels are 2,147,483,647 at most"),
    "labels of 33 bits": (lambda: stored(image=np.zeros((3, 8, 8, 1)), label=np.array([0, 1, 2**32])), "'label' has 4294967297 classes, the logits only 10"),
    "many axes": (lambda: stored(image=np.zeros((3,) + (1,) * 9)), "examples of 9 axes; they have 7 at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_trained_on_says_so(case: str, tmp_path: Path) -> None:
    make, expected = FILES[case]
    (tmp_path / "data.npz").write_bytes(make())
    assert expected in refused(npz_spec("data.npz"), tmp_path)


def test_what_an_npz_file_unpacks_to_is_known_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_MEMORY", "20MB")
    packed = bomb()
    assert len(packed) < 100_000
    (tmp_path / "data.npz").write_bytes(packed)
    found = refused(npz_spec("data.npz"), tmp_path)
    assert "npz file data.npz takes 30 MB in 64 bits a value; data take 20 MB at most (set HARNESS_MEMORY" in found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_to_an_npz_file_is_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "data.npz").write_bytes(bytes(changed[: data.draw(st.integers(0, len(changed)))]) or bytes(changed))
    try:
        prepare(compile_spec(*spec.loads(npz_spec("data.npz"), "x.yaml", tmp_path)))
    except HarnessError:
        return


@pytest.mark.parametrize("kind", ["npz", "csv", "text"])
def test_only_files_are_read(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    own = ", target: a" if kind == "csv" else ""
    for name, expected in (
        ("/dev/zero", "is a device, not a file"), ("pipe", "is a pipe, not a file"), (".", "is a directory, not a file"),
        ('"a\\0b"', "null byte"), ("missing", "No such file or directory"), ("x" * 300, "File name too long"),
        ("~nobody-of-that-name/a", "Could not determine home directory|No such file"),
    ):  # fmt: skip
        text = put(f"{{dataset: {kind}, file: {name}, batch: 1{own}}}", "{dataset: digits, batch: 64}")
        if kind == "text":
            text = (
                text.replace("net(image)", "net(tokens)")
                .replace("label}", "targets}")
                .replace("- flatten", "- embedding: {features: 3}\n      - flatten")
                .replace("inputs: [image]", "inputs: [tokens]")
                .replace("labels: label", "labels: targets")
            )
            text = text.replace("      - flatten\n", "")
            text = text.replace("- dense: 10", "- dense: 96")
        found = refused(text, tmp_path)
        assert any(part in found for part in expected.split("|")), (kind, name, found)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    for name in ("data.csv", "data.txt", "spec.yaml"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(3 * 10**9)
    with pytest.raises(SpecError, match=r"cannot be read: holds 3 GB; a spec holds 500 kB at most"):
        spec.load(tmp_path / "spec.yaml")
    csv = put("{dataset: csv, file: data.csv, target: a, batch: 1}", "{dataset: digits, batch: 64}")
    assert "csv file data.csv: holds 3 GB; a csv file holds 31.2 MB at most; an npz file may be larger" in refused(
        csv, tmp_path
    )


def test_memory_has_a_budget_that_a_variable_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = TOO_LARGE["examples"]
    monkeypatch.setenv("HARNESS_MEMORY", "600GB")
    program_of(text)
    monkeypatch.setenv("HARNESS_MEMORY", "1.5 kb")
    assert limits.memory() == 1500
    for wrong in ("", "much", "1e9", "-1", "9" * 400):
        monkeypatch.setenv("HARNESS_MEMORY", wrong)
        with pytest.raises(CallError, match="is no size; write it like 8GB"):
            limits.memory()


@pytest.mark.parametrize("where", ["beside", "in the working directory", "nowhere", "absolute"])
def test_a_data_file_is_looked_for_beside_the_spec(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "specs" if where in ("beside", "absolute") else tmp_path / "elsewhere"
    if where != "nowhere":
        (folder / "data.npz").write_bytes(WHOLE)
    path = tmp_path / "specs" / "x.yaml"
    path.write_text(npz_spec(str(folder / "data.npz") if where == "absolute" else "data.npz"))
    if where in ("beside", "absolute"):
        assert len(prepare(compile_spec(*spec.load(path))).train["image"]) == 3
        return
    with pytest.raises(SpecError) as caught:
        compile_spec(*spec.load(path))
    assert f"looked for {tmp_path / 'specs' / 'data.npz'}: beside the spec" in str(caught.value)
    assert (f"'file: {tmp_path / 'elsewhere' / 'data.npz'}'" in str(caught.value)) == (where != "nowhere")


CONVERTED: list[tuple[dict[str, Any], str, Any]] = [
    ({"image": "pixels"}, "image", [0.0, 0.2, 1.0]),
    ({"image": "float"}, "image", [0.0, 51.0, 255.0]),
    ({"image": {"type": "pixels", "shape": [8, 8, 1]}}, "image", [0.0, 0.2, 1.0]),
    ({"image": "pixels", "label": {"shape": []}}, "label", [0, 1, 9]),
    ({"image": "pixels", "label": "float"}, "label", [0.0, 1.0, 9.0]),
]


@pytest.mark.parametrize(("convert", "field", "expected"), CONVERTED)
def test_a_field_is_converted_as_the_spec_says(
    convert: dict[str, Any], field: str, expected: Any, tmp_path: Path
) -> None:
    images = np.array([0, 51, 255], dtype=np.uint8).reshape(3, 1, 1, 1).repeat(64, axis=1).reshape(3, 8, 8, 1)
    np.savez(tmp_path / "data.npz", image=images, label=np.array([[0], [1], [9]]))
    (tmp_path / "x.yaml").write_text(npz_spec("data.npz", convert=convert))
    array = spec.load(tmp_path / "x.yaml")[0].data.read()[field]
    assert array.reshape(3, -1)[:, 0].tolist() == expected
    assert array.dtype == (np.int64 if isinstance(expected[0], int) else np.float64)
    assert array.shape[1:] == ((8, 8, 1) if field == "image" else () if "shape" in str(convert) else (1,))


@pytest.mark.parametrize(
    ("convert", "expected"),
    [
        ({"image": {"shape": [9]}}, "hold 64 values; [9] holds 9"),
        ({"image": "int"}, "holds bytes of shape"),
        ({"imag": "float"}, "convert: there is no field 'imag' (fields: image, label)"),
        ({"image": "bytes"}, "'float', 'int' or 'pixels'"),
        ({"image": "pixels", "label": "pixels"}, "field 'label' has values from -1 to 9; pixels are 0 to 255"),
        ({}, "field 'image' holds bytes of shape [8, 8, 1], as images are stored: say 'convert: {image: pixels}'"),
        ({"image": "float"}, "got [1]; under data, 'convert: {label: {shape: []}}' gives 'label' that shape"),
    ],
)
def test_a_conversion_that_does_not_fit_says_so(convert: dict[str, Any], expected: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros((3, 8, 8, 1), np.uint8), label=np.array([[-1], [1], [9]]))
    found = refused(npz_spec("data.npz", convert=convert), tmp_path)
    assert expected in found


INTEGERS = """
name: integers
data: {dataset: inline, batch: 1, values: {x: [[1, 2], [3, 4]], y: [0, 1]}}
networks: {net: {layers: [{dense: 1}]}}
training:
  steps: 1
  updates: [{loss: {sigmoid_cross_entropy: {logits: net(x), targets: y}}, optimizer: {sgd: {learning_rate: 0.1}}}]
"""


def test_integers_are_told_how_to_become_what_is_needed() -> None:
    found = refused(INTEGERS)
    assert "needs float values, 'x' is int; under data, 'convert: {x: float}' makes it float" in found
    text = INTEGERS.replace("batch: 1", "batch: 1, convert: {x: float}")
    assert "predictions" not in refused(text)
    assert "under data, 'convert: {y: {shape: [1]}}' gives 'y' that shape" in refused(text)
    text = text.replace("x: float}", "x: float, y: {shape: [1]}}")
    assert "needs targets of type float, 'y' is int; under data, 'convert: {y: float}' makes it float" in refused(text)
    text = text.replace("shape: [1]}", "shape: [1], type: float}")
    assert prepare(program_of(text)).train["y"].tolist() == [[0.0], [1.0]]


def test_rows_are_ordered_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for shuffle in (True, False):
        for keep in (True, False):
            rows = initial.order(3, 10, 4, 7, shuffle=shuffle, keep_last=keep)
            per_epoch = 3 if keep else 2
            for step, row in enumerate(rows):
                epoch, i = divmod(step, per_epoch)
                order = initial.stream(3, "epoch", epoch).permutation(10) if shuffle else np.arange(10)
                wanted = order[i * 4 : (i + 1) * 4].tolist()
                assert row.tolist() == wanted + [-1] * (4 - len(wanted))
            assert rows.dtype == np.int32
    assert DataError.__mro__[1] is HarnessError
