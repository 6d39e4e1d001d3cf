"""One report of any number of runs and benchmarks: what it says is what the numbers say. Needs no framework."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.bench.alone import Alone
from harness.bench.inference import Evaluation, Inference
from harness.bench.ratio import Ratio
from harness.bench.record import SCHEMA, BenchResult, Lane, Ledger, Roof
from harness.bench.rounds import Block, Contestant
from harness.cli import app
from harness.report import merged
from harness.report.benches import Merged
from harness.report.benches import series as series_of


def contestant(name: str, seconds: float) -> Contestant:
    own = Contestant(name, lambda _steps: (0.0, 0.0), steps=10)
    own.blocks += [Block(seconds * (1 + 0.01 * i), seconds) for i in range(6)]
    return own


def lane(backend: str, kind: str, strategy: str, seconds: float, first: float, ratio: Ratio | None) -> Lane:
    own = contestant(f"{backend} {strategy}", seconds)
    phases = {"import": 1.0, "build": 0.1, "first_call": first - 0.001, "second_call": 0.001}
    memory = {"imported": 100_000_000, "peak": 107_000_000, "device_peak": None}
    target = {"metric": "accuracy", "value": 0.9, "reached": True, "steps": 30, "seconds": 30 * seconds}
    alone = Alone(phases, memory, {"functions compiled": 3}, {"functions compiled": 0}, target)
    trial = {own.name: seconds} if kind == "best" else {}
    return Lane("small", backend, kind, strategy, own, ratio, alone, trial, 0.5, 77)


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
    latency = {"p50": 1e-4, "p95": 2e-4, "p99": 4e-4}
    asked = (
        Inference("torch", "eager", latency, 500, 1000.0, Ratio(2.0, 1.9, 2.1, 10)),
        Inference("jax", "jit", latency, 500, 2000.0, None),
    )
    own = BenchResult(
        "small", "float32", 8, "same", lanes, ledger, machine, ("a <note>",), {}, 3.0, 2_000_000, (), "cpu", asked,
        (Evaluation("jax", (0.3, 0.1, 0.2), 640),), Roof(1e11, 1e10), 1_000_000,
    )  # fmt: skip
    return json.loads(json.dumps(own.to_json() | changed))  # type: ignore[no-any-return]


def written(folder: Path, *benches: dict[str, Any], name: str = "bench.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"schema": SCHEMA, "benchmarks": benches}))
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
        {"name": f"w{i}", "median": step / 8, "alone": {"phases": {"import": 9.0, "build": start / 8}}}
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
        assert "denormals" in shown
    assert html.count("<svg") == (1 + 3 * 2) * 2, "a roof, and three charts a timed spec, for two widths"
    assert "<note>" not in html
    assert "<b>Some</b> CPU" not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert sorted(p.name for p in (tmp_path / "out" / "charts").iterdir()) == [
        "answers-0-small.svg", "answers-1-tied.svg", "ratios-0-small.svg", "ratios-1-tied.svg", "roof-0.svg",
        "start-0-small.svg", "start-1-tied.svg",
    ]  # fmt: skip


def test_what_is_written_by_hand_stands_beside(tmp_path: Path) -> None:
    ratio = {"value": 1.01, "low": 0.98, "high": 1.04, "rounds": 20, "verdict": "no difference"}
    peer = {"backend": "jax", "strategy": "scan", "best_against_it": ratio, "seconds": [2e-3, 1e-3, 3e-3]}
    alone = {**peer, "strategy": "everyday", "best_against_it": None}
    (bench,) = merged.read([written(tmp_path, result(peers=[peer, alone]))]).benches
    found = merged.by_hand(bench)
    assert found is not None
    assert found.rows == (("JAX (scan)", "2 ms", "1.01 (0.98–1.04)"), ("JAX (everyday)", "2 ms", ""))
    assert merged.by_hand(result()) is None


def test_the_ledger_says_once_what_is_alike(tmp_path: Path) -> None:
    own = result()
    own["ledger"]["entries"]["torch version"] = {"torch": "2.13.0"}
    (bench,) = merged.read([written(tmp_path, own)]).benches
    differs = merged.ledger(bench)
    assert differs is not None
    assert (differs.head, differs.rows) == (("differs", "PyTorch", "JAX"), (("denormals", "kept", "flushed"),))
    assert merged.alike(bench).rows == (("threads", "1"), ("data", "ready"), ("torch version", "2.13.0 (PyTorch)"))


def test_only_the_columns_that_are_there_are_explained(tmp_path: Path) -> None:
    own = result()
    there = merged.page(merged.read([written(tmp_path, own)]), [])
    assert "Memory: at most" in there
    assert "Pays after: the steps" in there
    for lane in own["lanes"]:
        lane["alone"] = None
    bare = merged.page(merged.read([written(tmp_path, own)]), [])
    assert "Lines: of the program." in bare
    assert not re.search("Memory: at most|To start:|Pays after:", bare)


def test_the_tables_have_what_was_measured_beside_the_step(tmp_path: Path) -> None:
    (bench,) = merged.read([written(tmp_path, result())]).benches
    choosing = merged.choosing(Merged((bench,)))
    best = dict(zip(choosing.head, choosing.rows[0], strict=True))
    assert (best["to start"], best["memory"], best["lines"]) == ("2.1 s", "7 MB", "77")
    asked = merged.asked(bench)
    assert asked is not None
    assert asked.rows[0] == ("JAX (jit)", "100 µs", "200 µs", "400 µs", "2,000", "1", "200 ms for 640")
    assert asked.rows[1][-2:] == ("2 (1.9–2.1)", "")
    reached = merged.reached(bench)
    assert reached is not None
    assert reached.rows[0] == ("JAX (scan)", "accuracy 0.9", "yes", "30", "3 ms", "2.1 s")


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    bare = result(inference=[], evaluation=[], roof=None)
    for own in bare["lanes"]:
        own["alone"] = None
    found = merged.read([written(tmp_path, bare)])
    merged.write(found, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "charts").iterdir()] == ["ratios-0-small.svg"]
    assert "the time to start" not in (tmp_path / "out" / "report.md").read_text()
    assert merged.asked(bare) is merged.reached(bare) is None
    assert "to start" not in merged.everything(bare).head


def test_a_series_has_its_exponent(tmp_path: Path) -> None:
    benches = []
    for batch in (10, 20, 40):
        own = result(setting={"data.batch": batch})
        for lane in own["lanes"]:
            lane["median"] *= (batch / 10) ** (2 if lane["backend"] == "jax" else 0.5)
        benches.append(own)
    found = merged.read([written(tmp_path, *benches, result(), result(setting={"seed": True}))])
    (series,) = series_of(found)
    assert (series.spec, series.place) == ("small", "data.batch")
    table = merged.exponents([series])
    assert table is not None
    assert {row[1]: row[2].split(" ")[0] for row in table.rows} == {"JAX": "2.00", "PyTorch": "0.50"}
    merged.write(found, tmp_path / "out")
    assert (tmp_path / "out" / "charts" / "growth-0.svg").is_file()
    assert "small, data.batch=20: " in (tmp_path / "out" / "report.html").read_text()


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
