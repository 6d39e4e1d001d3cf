"""One report of any number of runs and benchmarks: what it says is what the numbers say. Needs no framework."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.bench.ratio import Ratio
from harness.bench.record import BenchResult, Lane, Ledger
from harness.bench.rounds import Block, Contestant
from harness.cli import app
from harness.report import merged


def contestant(name: str, seconds: float) -> Contestant:
    own = Contestant(name, lambda _steps: (0.0, 0.0), steps=10)
    own.blocks += [Block(seconds * (1 + 0.01 * i), seconds) for i in range(6)]
    return own


def lane(backend: str, kind: str, strategy: str, seconds: float, first: float, ratio: Ratio | None) -> Lane:
    own = contestant(f"{backend} {strategy}", seconds)
    phases = {"import": 1.0, "build": 0.1, "first_calls": first}
    return Lane(
        "small", backend, kind, strategy, own, ratio, phases, {own.name: seconds} if kind == "best" else {}, 0.5
    )


def result(**changed: Any) -> dict[str, Any]:
    lanes = (
        lane("torch", "default", "eager", 1e-3, 0.01, Ratio(10.0, 9.0, 11.0, 6)),
        lane("torch", "best", "whole", 2e-4, 8.01, Ratio(2.0, 1.9, 2.1, 6)),
        lane("jax", "default", "nnx", 2e-3, 1.0, Ratio(20.0, 19.0, 21.0, 6)),
        lane("jax", "best", "scan", 1e-4, 2.0, None),
    )
    ledger = Ledger(
        {"threads": {"torch": 1, "jax": 1}, "denormals": {"torch": "kept", "jax": "flushed"}, "data": {"all": "ready"}}
    )
    machine = {"processor": "<b>Some</b> CPU", "cores": 2}
    own = BenchResult("small", "float32", 8, "same", lanes, ledger, machine, ("a <note>",), {}, 3.0, 2_000_000)
    return json.loads(json.dumps(own.to_json() | changed))  # type: ignore[no-any-return]


def written(folder: Path, *benches: dict[str, Any], name: str = "bench.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"schema": 1, "benchmarks": benches}))
    return path


def test_break_even_is_where_the_later_start_is_paid_for() -> None:
    even = result()["break_even"]
    # 8 seconds later, 0.8 ms a step (less 2.5 % that the medians are above the least).
    assert even["torch whole"] == pytest.approx(8 / 0.82e-3, rel=0.01)
    assert even["torch eager"] == 0
    assert even["jax scan"] == pytest.approx(1 / 1.9475e-3, rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), min_size=1, max_size=6))
def test_the_first_to_be_done_is_found_for_every_length(ways: list[tuple[int, int]]) -> None:
    lanes = [
        {"name": f"w{i}", "median": step / 8, "phases": {"build": 0.0, "first_calls": start / 8}}
        for i, (start, step) in enumerate(ways)
    ]
    found = merged.by_length({"lanes": lanes})
    lengths = [low for low, _ in found]
    assert lengths == sorted(set(lengths))
    assert lengths[0] == 1
    by_name = {str(own["name"]): (start, step) for own, (start, step) in zip(lanes, ways, strict=True)}
    for length in range(1, 450):
        name = [n for low, n in found if low <= length][-1]
        start, step = by_name[name]
        assert start + length * step == min(s + length * t for s, t in ways)


def test_the_page_says_what_the_numbers_say(tmp_path: Path) -> None:
    tied = result(spec="tied")
    tied["lanes"][1]["against_fastest"]["verdict"] = "no difference"
    path = written(tmp_path, result(), tied, result(spec="apart", verdict="differs", lanes=[]))
    found = merged.read([path])
    page = merged.write(found, tmp_path / "out")
    html, text = page.read_text(), (tmp_path / "out" / "report.md").read_text()
    for shown in (html, text):
        assert "JAX (scan) is the fastest; the time to start counted: PyTorch (eager) up to " in shown
        assert "(a tie with PyTorch (whole))" in shown
        assert "apart: the programs do not train identically, so none was timed." in shown
        assert "2 (1.9–2.1)" in shown
        assert "denormals (differs)" in shown
    assert html.count("<svg") == 2 * 2 * 2, "two charts a timed spec, for two widths"
    assert "<note>" not in html
    assert "<b>Some</b> CPU" not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert sorted(p.name for p in (tmp_path / "out" / "charts").iterdir()) == [
        "start-0-small.svg", "start-1-tied.svg", "steps-0-small.svg", "steps-1-tied.svg",
    ]  # fmt: skip


def test_rows_of_pytest_benchmark_are_a_step_each(tmp_path: Path) -> None:
    extra = {"spec": "small", "backend": "jax", "strategy": "scan", "phase": "training", "steps_a_round": 100}
    stats = {"median": 0.02, "min": 0.01, "rounds": 7}
    path = tmp_path / "suite.json"
    path.write_text(
        json.dumps(
            {"machine_info": {"cpu": {"brand_raw": "X1"}}, "benchmarks": [{"extra_info": extra, "stats": stats}]}
        )
    )
    table = merged.suite(merged.read([path]))
    assert table is not None
    assert table.rows == (("small, training", "JAX (scan)", "200 µs", "100 µs", "7", "X1"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is neither a run directory nor a benchmark's JSON"), ("[1]", "is neither of"),
        ('{"schema": 1, "benchmarks": [1]}', "is neither of"), ('{"benchmarks": []}', "is neither of"),
    ],
)  # fmt: skip
def test_what_is_no_result_is_a_sentence(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    done = CliRunner().invoke(app, ["report", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert expected in str(done.exception) + done.output
    assert not (tmp_path / "out").exists()


def test_the_command_writes_one_report_of_several(tmp_path: Path) -> None:
    path, other = written(tmp_path, result()), written(tmp_path, result(spec="other"), name="other.json")
    told = tmp_path / "told.json"
    done = CliRunner().invoke(
        app, ["report", str(path), str(other), "--out", str(tmp_path / "out"), "--json", str(told)]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "report.html").is_file()
    assert [sentence.split(":")[0] for sentence in json.loads(told.read_text())["conclusions"]] == ["small", "other"]
