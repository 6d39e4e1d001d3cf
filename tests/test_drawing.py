"""The process that draws: what it gives, and how it fails. Needs no framework."""

import psutil
import pytest
import vl_convert

from harness.drawing import Artist

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
        with pytest.raises(RuntimeError, match="a chart cannot be drawn: "):
            wrong.result(timeout=60)
        with pytest.raises(RuntimeError, match=r"(?s)a chart cannot be drawn: .*not allowed"):
            elsewhere.result(timeout=60)
        assert right.result(timeout=60).startswith("<svg")


def test_an_engine_that_ends_is_an_error_and_no_hang() -> None:
    with Artist() as artist:
        artist.start()
        (engine,) = (p for p in psutil.Process().children() if "harness.drawing" in p.cmdline())
        engine.kill()
        with pytest.raises(RuntimeError, match="the process that draws ended with status -9"):
            artist.svg(SPEC, "").result(timeout=60)


def test_an_artist_leaves_no_process_behind() -> None:
    with Artist() as artist:
        waiting = [artist.svg(SPEC, "") for _ in range(3)]
        waiting[0].result(timeout=60)
        (engine,) = (p for p in psutil.Process().children() if "harness.drawing" in p.cmdline())
    assert not engine.is_running()
    assert waiting[-1].done()
