"""Results that somebody has changed: each is read, and reported, or refused in one sentence. Needs no framework."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_merged import result as bench_result
from test_report import backend, comparison, failed_run, run

from harness.errors import CallError
from harness.reading import read_json
from harness.report import charts, merged, story
from harness.report.markdown import markdown
from harness.report.page import page
from harness.report.sources import Sources
from harness.report.speed_charts import figures_of
from harness.results import SCHEMA, RunResult

Path_ = tuple[str | int, ...]
ANYTHING: list[Any] = [
    None, True, False, 0, 1, -1, 2**70, -(10**400), 0.5, -0.0, 1e308, 5e-324, "NaN", "-Infinity", "", "x", "../../etc", "\x00", "\ud800", "a~b",
    [], [[]], [1], ["a"], {}, {"a": 1}, {"": None}, [None] * 3,
]  # fmt: skip
GONE = object()


def result() -> dict[str, Any]:
    """A run's record that has something in every field."""
    odd = backend("jax", 1e-8, status="diverged", stopped_at=3, losses={"discriminator": [1.0, float("nan")]})
    whole = run(backend("torch"), backend("tensorflow"), odd, tolerances={"loss": {"relative": 1e-5, "floor": 0.0}},
                machine={"cores": 2, "flags": ["avx"]}, started="2026-11-30T21:05:02+00:00")  # fmt: skip
    whole = replace(
        whole,
        evidence={
            "verdict": "same",
            "directory": "float64-evidence",
            "comparisons": [comparison("loss", "torch", "tensorflow", 1e-12, 1e-10)],
        },
    )
    return json.loads(json.dumps(whole.to_json(), allow_nan=False))  # type: ignore[no-any-return]


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Every place of a record; of a list the first and the last item."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list) and value:
        for i in sorted({0, len(value) - 1}):
            yield from places(value[i], (*at, i))


def edited(record: dict[str, Any], at: Path_, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(record)
    here: Any = found
    for step in at[:-1]:
        here = here[step]
    if value is GONE:
        del here[at[-1]]
    else:
        here[at[-1]] = value
    return found


class Pencil:
    """Draws nothing, and shows that every chart has a spec at both widths."""

    def svg(self, spec: Any, _version: str) -> Any:
        text = json.dumps(spec, default=str)

        class Done:
            def result(self) -> str:
                return f'<svg width="1" height="1" viewBox="0 0 1 1"><text>{len(text)}</text></svg>'

        return Done()


def one_sentence(error: CallError) -> str:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 600
    return str(error)


SOURCES = Sources("0.1.0", "", {}, {}, "", None)


def reported(folder: Path, record: Any, *, draws: bool = False) -> str:
    """Read a record and make every form of a report of it (`draws`: its charts too, which takes a second). Returns why it was refused, or nothing."""
    (folder / "result.json").write_text(json.dumps(record))
    try:
        found = RunResult.read(folder)
    except CallError as error:
        return one_sentence(error)
    figures = charts.figures(found, found)
    page(found, SOURCES, charts.render(figures if draws else [], Pencil()))  # type: ignore[arg-type]
    markdown(found, SOURCES, figures)
    story.rows(found.comparisons)
    from io import StringIO  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from harness.report.terminal import print_result  # noqa: PLC0415

    print_result(found, Console(file=StringIO(), width=80))
    json.dumps(found.to_json(), allow_nan=False)
    found._repr_html_()
    return ""


def test_what_was_written_is_read(tmp_path: Path) -> None:
    for record in (result(), json.loads(json.dumps(failed_run().to_json(), allow_nan=False))):
        assert reported(tmp_path, record, draws=True) == ""
        again = json.loads(json.dumps(RunResult.read(tmp_path).to_json(), allow_nan=False))
        assert again == {**record, "directory": str(tmp_path)}


def test_what_a_later_version_adds_is_no_error(tmp_path: Path) -> None:
    record = result() | {"colour": "blue"}
    record["backends"]["torch"]["shade"] = [1]
    record["comparisons"][0]["worst"]["tint"] = {"a": None}
    assert reported(tmp_path, record) == ""


def test_every_edit_of_every_field_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    record = result()
    refused = accepted = 0
    for number, at in enumerate(places(record)):
        # Each place gets some of the values, each value some of the places: all pairs take minutes.
        for value in [GONE, ANYTHING[number % len(ANYTHING)]]:
            said = reported(tmp_path, edited(record, at, value))
            refused, accepted = refused + bool(said), accepted + (not said)
    assert refused > 200
    assert accepted > 20, "text may be any text, and numbers any number"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_two_edits_are_read_or_refused_in_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    )
    record = result()
    for _ in range(2):
        at = data.draw(st.sampled_from(list(places(record))))
        record = edited(record, at, data.draw(json_value))
    reported(tmp_path, record, draws=True)


@pytest.mark.parametrize(
    ("at", "value", "expected"),
    [
        (("steps",), "3", "steps: should be a valid integer"),
        (("backends", "torch", "losses", "generator", 1), None, "backends.torch.losses.generator[1]: should be a valid number"),
        (("comparisons", 0, "worst", "a"), [], "comparisons[0].worst.a: should be a valid number"),
        (("comparisons", 0, "a"), "mxnet", "comparisons[0].a: there is no backend 'mxnet'"),
        (("verdict",), "fine", "verdict: should be 'same', 'differs' or 'failed'"),
        (("precision",), GONE, "precision: Field required"),
        (("start",), 99, "start: 99 steps were done before, which is more than all 4"),
    ],
)  # fmt: skip
def test_the_sentence_says_which_field_has_what(tmp_path: Path, at: Path_, value: Any, expected: str) -> None:
    assert reported(tmp_path, edited(result(), at, value)) == f"{tmp_path / 'result.json'}: {expected}"


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "..", "", "a\nb"])
def test_a_backend_is_no_path(tmp_path: Path, name: str) -> None:
    record = result()
    record["backends"][name] = record["backends"]["torch"]
    assert "backends" in reported(tmp_path, record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "is no JSON"), (b"\xff\xfe\x00", "is no JSON"), (b"[" * 100_000, "is no JSON"), (b"1" * 5_000, "is no JSON"),
        (b"[" * 45 + b"]" * 45, "is nested more than 40 deep"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(tmp_path: Path, text: bytes, expected: str) -> None:
    (tmp_path / "result.json").write_bytes(text)
    with pytest.raises(CallError, match=expected):
        RunResult.read(tmp_path)


def test_a_device_and_a_folder_are_no_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").symlink_to("/dev/zero")
    with pytest.raises(CallError, match="is not a file"):
        RunResult.read(tmp_path)
    with pytest.raises(CallError, match="is not a file"):
        read_json(tmp_path)
    (tmp_path / "model.py").write_text("")
    with pytest.raises(CallError, match=r"model.py: is a file; a run directory is the folder"):
        RunResult.read(tmp_path / "model.py")


# ---- Benchmarks


def merged_of(folder: Path, benchmarks: Any, *, draws: bool = False, **more: Any) -> str:
    path = folder / "bench.json"
    path.write_text(json.dumps({"schema": merged.SCHEMA, "benchmarks": benchmarks, **more}))
    try:
        found = merged.read([path])
    except CallError as error:
        return one_sentence(error)
    figures = figures_of(found)
    merged.page(found, charts.render(figures if draws else [], Pencil()))  # type: ignore[arg-type]
    merged.markdown(found, figures)
    [merged.conclusion(own) for own in found.benches]
    return ""


def test_every_edit_of_a_benchmark_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    record = bench_result()
    assert merged_of(tmp_path, [record]) == ""
    refused = 0
    for number, at in enumerate(places(record)):
        for value in [GONE, *ANYTHING[number % 9 :: 9]]:
            refused += bool(merged_of(tmp_path, [edited(record, at, value)], draws=number % 20 == 0))
    assert refused > 200


def test_every_edit_of_a_suite_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    row = {
        "extra_info": {"spec": "a", "phase": "step", "backend": "jax", "strategy": "scan", "steps_a_round": 4},
        "stats": {"median": 1e-3, "min": 9e-4, "rounds": 12},
    }
    whole = {"schema": None, "machine_info": {"cpu": {"brand_raw": "CPU"}}, "benchmarks": [row]}
    assert merged_of(tmp_path, whole["benchmarks"], **{k: v for k, v in whole.items() if k != "benchmarks"}) == ""
    for at in places(whole):
        for value in [GONE, *ANYTHING]:
            own = edited(whole, at, value)
            if isinstance(own, dict):
                merged_of(tmp_path, own.pop("benchmarks", None), **own)


def test_the_schema_of_a_result_is_its_own(tmp_path: Path) -> None:
    assert f"this version reads {SCHEMA}" in reported(tmp_path, {**result(), "schema": [1]})
