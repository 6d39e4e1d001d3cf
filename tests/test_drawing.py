"""The process that draws: what it gives, and how it fails. Needs no framework."""

import time
from pathlib import Path

import psutil
import pytest
import vl_convert

from harness import drawing
from harness.drawing import Artist, DrawingError

SPEC = {"data": {"values": [{"x": 1, "y": 2}, {"x": 2, "y": 1}]}, "mark": "line", "encoding": {"x": {"field": "x"}, "y": {"field": "y"}}}  # fmt: skip
SQUARE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"><rect width="4" height="4" fill="#ff0000"/></svg>'
)


def test_a_chart_is_what_the_engine_draws_in_this_process() -> None:
    with Artist() as artist:
        first, second = artist.svg(SPEC, "no such version"), artist.png(SQUARE, scale=2)
        assert first.result(timeout=60) == vl_convert.vegalite_to_svg(SPEC)
        assert second.result(timeout=60) == vl_convert.svg_to_png(SQUARE, scale=2)


def test_nothing_is_fetched_and_what_cannot_be_drawn_costs_no_other_chart() -> None:
    with Artist() as artist:
        wrong = artist.png("no svg", scale=1)
        elsewhere = artist.svg({**SPEC, "data": {"url": "https://example.org/data.json"}}, "")
        right = artist.svg(SPEC, "")
        with pytest.raises(DrawingError, match="a chart cannot be drawn: "):
            wrong.result(timeout=60)
        with pytest.raises(DrawingError, match=r"(?s)a chart cannot be drawn: .*not allowed"):
            elsewhere.result(timeout=60)
        assert right.result(timeout=60).startswith("<svg")


def engine() -> psutil.Process:
    """The only child that draws; another test's may have ended, and be no process any more but for its status."""
    alive = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    (found,) = (p for p in alive if "harness.drawing" in p.cmdline())
    return found


def test_an_engine_that_ends_is_an_error_and_no_hang_and_the_next_chart_starts_another() -> None:
    with Artist() as artist:
        artist.start()
        engine().suspend()
        lost = artist.svg(SPEC, "")
        time.sleep(1)  # it is asked, and does not answer
        engine().kill()
        with pytest.raises(DrawingError, match="the process that draws ended with SIGKILL"):
            lost.result(timeout=60)
        assert artist.svg(SPEC, "").result(timeout=60).startswith("<svg")


def test_an_engine_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drawing, "ROOT", tmp_path)
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("raise ImportError('no engine here')")
    with Artist() as artist, pytest.raises(DrawingError, match=r"(?s)ended with status 1: .*no engine here"):
        artist.svg(SPEC, "").result(timeout=60)


def test_an_artist_leaves_no_process_behind() -> None:
    with Artist() as artist:
        waiting = [artist.svg(SPEC, "") for _ in range(3)]
        waiting[0].result(timeout=60)
        process = engine()
    assert not process.is_running()
    assert waiting[-1].done()
