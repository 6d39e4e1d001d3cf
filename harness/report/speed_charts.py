"""The charts of benchmarks: ratios with their intervals, what starting costs, loss against time, growth and roofs."""

from collections.abc import Callable
from typing import Any

import altair as alt
import numpy as np

from harness.report import charts
from harness.report.benches import (
    SCALING,
    Merged,
    Record,
    Series,
    best_of,
    done_first,
    lanes_of,
    named,
    series,
    spoken,
    start,
)
from harness.report.charts import INK, PHONE, Figure, Spec, colour
from harness.report.speed import spelled, times
from harness.report.story import title
from harness.results import RunResult

STARTS = {
    "import": "import of the framework", "build": "building the model", "first_call": "first call",
    "second_call": "second call",
}  # fmt: skip
START_COLOURS = ("#4477aa", "#66ccee", "#ee6677", "#ccbb44")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")


def figures_of(merged: Merged) -> list[Figure]:
    """Every chart that there is data for."""
    found: list[Figure] = [_growth(own, number) for number, own in enumerate(series(merged))]
    found += _roofs(merged)
    for number, bench in enumerate(merged.benches):
        if bench["lanes"]:
            found.append(_ratios(bench, number))
            if all(lane["alone"] for lane in bench["lanes"]):
                found.append(_starts(bench, number))
                runs = [run for run in merged.runs if run.spec == bench["spec"] and not bench["setting"]]
                found += [_loss_by_time(bench, run, number) for run in runs[:1]]
            if bench["inference"]:
                found.append(_answers(bench, number))
    return found


def _figure(bench: Record, number: int, name: str, what: str, caption: str, draw: Callable[[int], Spec]) -> Figure:
    own = "".join(c if c.isalnum() or c in "_=" else "-" for c in named(bench))
    return Figure(f"{name}-{number}-{own}", f"{number}", f"{named(bench)}: {what}", caption, draw)


def _colours(backends: list[str]) -> alt.Scale:
    return alt.Scale(domain=[title(b) for b in backends], range=[colour(b) for b in backends])


def _by_name(rows: list[dict[str, Any]]) -> alt.Y:
    order = [str(row["name"]) for row in rows]
    return alt.Y("name:N", title=None, sort=order, axis=alt.Axis(labelFontSize=12, labelLimit=220))


def _ratios(bench: Record, number: int) -> Figure:
    """How many times as long as the fastest a step takes, with its interval, a row a way of running it."""
    rows = []
    for lane in lanes_of(bench):
        r = lane["against_fastest"] or {"value": 1.0, "low": 1.0, "high": 1.0}
        rows.append({
            "name": spoken(lane["name"]), "backend": lane["backend"], "value": r["value"], "low": r["low"],
            "high": r["high"], "label": f"{times(r['value'])} · {spelled(lane['median'])}",
        })  # fmt: skip
    several = max((lane["against_fastest"] or {}).get("processes", 1) for lane in lanes_of(bench))
    what = "The dot is the ratio over the rounds by Hodges' and Lehmann's estimate, the bar its 99 % interval"
    if several > 1:
        what = f"The dot is the mean of {several} processes' ratios, each over its rounds by Hodges' and Lehmann's estimate, the bar Student's 99 % interval"
    caption = f"{what}; every way was timed once in each round. Beside it the median step."
    draw = _intervals(rows, "times as long as the fastest, log scale", 0.9)
    return _figure(bench, number, "ratios", "a training step", caption, draw)


def _intervals(rows: list[dict[str, Any]], what: str, least: float, tick: str | None = None) -> Callable[[int], Spec]:
    """A dot at `value` on a bar from `low` to `high`, a row each, on a log scale from `least`; `tick`: a mark between them."""
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    shown = [row | {"backend": title(row["backend"])} for row in rows]
    highest = max(row["high"] for row in rows)
    middle = (least * highest) ** 0.5

    def draw(width: int) -> Spec:
        x = alt.Scale(type="log", nice=False, domain=[least, 1.2 * highest])
        tint = alt.Color("backend:N", legend=None, scale=_colours(backends))
        base = alt.Chart(alt.NamedData(name="rows"))
        low = alt.X("low:Q", scale=x, title=what, axis=alt.Axis(tickCount=5))
        bars = base.mark_rule(strokeWidth=5, opacity=0.35).encode(x=low, x2="high:Q", y=_by_name(shown), color=tint)
        value = alt.X("value:Q", scale=x)
        layers = [
            bars,
            base.mark_point(filled=True, size=70, opacity=1).encode(x=value, y=_by_name(shown), color=tint),
            *(
                [base.mark_tick(thickness=2).encode(x=alt.X(f"{tick}:Q", scale=x), y=_by_name(shown), color=tint)]
                if tick
                else []
            ),
        ]
        # A label stands on the side where there is room.
        for side, align, dx in (("near", "left", 8), ("far", "right", -8)):
            text = alt.Chart(alt.NamedData(name=side)).mark_text(align=align, dx=dx, dy=-9, color=INK)  # type: ignore[arg-type]
            layers.append(text.encode(x=value, y=_by_name(shown), text="label:N"))
        data = {
            "rows": shown,
            "near": [row for row in shown if row["value"] <= middle],
            "far": [row for row in shown if row["value"] > middle],
        }
        return charts.styled(alt.layer(*layers), data, width, 32 * len(rows))

    return draw


def _starts(bench: Record, number: int) -> Figure:
    """Seconds before training is under way, a piece a phase."""
    lanes = sorted(lanes_of(bench), key=lambda lane: sum(lane["alone"]["phases"].values()))
    rows = [
        {"name": spoken(lane["name"]), "phase": STARTS[phase], "seconds": lane["alone"]["phases"][phase], "place": place}
        for lane in lanes
        for place, phase in enumerate(STARTS)
    ]  # fmt: skip
    order = list(dict.fromkeys(str(row["name"]) for row in rows))

    def draw(width: int) -> Spec:
        legend = alt.Legend(
            orient="top", direction="horizontal", title=None, columns=1 if width < PHONE else 0, labelLimit=0
        )
        chart = (
            alt.Chart(alt.NamedData(name="rows"))
            .mark_bar(height=16)
            .encode(
                x=alt.X("seconds:Q", title="seconds", axis=alt.Axis(tickCount=6)),
                y=alt.Y("name:N", title=None, sort=order, axis=alt.Axis(labelFontSize=12, labelLimit=220)),
                color=alt.Color("phase:N", sort=list(STARTS.values()), legend=legend,
                                scale=alt.Scale(domain=list(STARTS.values()), range=list(START_COLOURS))),
                order=alt.Order("place:Q"),
            )
        )  # fmt: skip
        return charts.styled(alt.layer(chart), {"rows": rows}, width, 26 * len(order))

    caption = "Once, each in a process of its own and without any cache: what a training pays before its third call."
    return _figure(bench, number, "start", "before training is under way", caption, draw)


def _answers(bench: Record, number: int) -> Figure:
    """How long one example takes: the median, and how far the slowest hundredth goes."""
    rows = []
    for own in sorted(bench["inference"], key=lambda own: float(own["latency"]["p50"])):
        p50, p95, p99 = (1e6 * own["latency"][p] for p in ("p50", "p95", "p99"))
        rows.append({
            "name": spoken(f"{own['backend']} {own['way']}"), "backend": own["backend"], "value": p50, "low": p50, "p95": p95,
            "high": p99, "label": spelled(own["latency"]["p50"]),
        })  # fmt: skip
    caption = "The dot is the median, the tick the 95th percentile, the bar's end the 99th."
    draw = _intervals(rows, "microseconds an answer, log scale", 0.8 * rows[0]["value"], "p95")
    return _figure(bench, number, "answers", "one example's answer", caption, draw)


def _loss_by_time(bench: Record, run: RunResult, number: int) -> Figure:
    """The losses of a run over the time that each framework takes for those steps, by the way that is done first."""
    best = done_first(
        bench, max((len(losses) for own in run.backends.values() for losses in own.losses.values()), default=1)
    )
    rows: list[dict[str, Any]] = []
    for name, own in run.backends.items():
        if name in best and own.losses:
            points = charts.thin(list(enumerate(next(iter(own.losses.values())))), 600)
            rows += [
                {
                    "backend": spoken(best[name]["name"]),
                    "seconds": start(best[name]) + step * best[name]["median"],
                    "loss": loss,
                }
                for step, loss in points
            ]
    backends = [name for name in run.backends if name in best]

    def draw(width: int) -> Spec:
        legend = alt.Legend(orient="top", direction="horizontal", title=None)
        chart = (
            alt.Chart(alt.NamedData(name="rows"))
            .mark_line(strokeWidth=1.6)
            .encode(
                x=alt.X("seconds:Q", title="seconds since the framework was imported"),
                y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
                color=alt.Color("backend:N", legend=legend,
                                scale=alt.Scale(domain=[spoken(best[b]["name"]) for b in backends], range=[colour(b) for b in backends])),
            )
        )  # fmt: skip
        return charts.styled(alt.layer(chart), {"rows": rows}, width, 260)

    caption = "Each framework by the way of running it that is done first, the time to start included. The losses are the run's."
    return _figure(bench, number, "loss-by-time", "loss against time", caption, draw)


def _growth(own: Series, number: int) -> Figure:
    """A step's time over a setting, both on log scales: a power is a straight line, its exponent the slope."""
    rows = [
        {"backend": title(backend), "value": value, "ms": 1e3 * seconds}
        for backend, points in own.points.items()
        for value, seconds in points
    ]
    values = sorted({value for points in own.points.values() for value, _ in points})

    def draw(width: int) -> Spec:
        x = alt.X(
            "value:Q", title=own.place, scale=alt.Scale(type="log", nice=False, padding=12), axis=alt.Axis(values=values, labelOverlap=True)
        )  # fmt: skip
        y = alt.Y("ms:Q", title="milliseconds a step, log scale", scale=alt.Scale(type="log"))
        legend = alt.Legend(orient="top", direction="horizontal", title=None)
        tint = alt.Color("backend:N", legend=legend, scale=_colours(list(own.points)))
        base = alt.Chart(alt.NamedData(name="rows")).encode(x=x, y=y, color=tint)
        lines = alt.layer(base.mark_line(strokeWidth=1.6), base.mark_point(filled=True, size=60, opacity=1))
        return charts.styled(lines, {"rows": rows}, width, 280)

    caption = "Each framework by its fastest way of running it, medians."
    return Figure(f"growth-{number}", SCALING, f"{own.spec}: a step over {own.place}", caption, draw)


def _roofs(merged: Merged) -> list[Figure]:
    """A roofline a machine, device and precision: what each step reaches of what its arithmetic intensity allows."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for bench in merged.benches:
        if bench["roof"] and bench["traffic"] and bench["lanes"]:
            devices = ", ".join(sorted(set(map(str, bench["ledger"]["entries"].get("device", {}).values()))))
            chip = bench["machine"]["processor"] if bench["device"] == "cpu" else devices
            groups.setdefault((str(chip), bench["device"], bench["precision"]), []).append(bench)
    return [_roof(chip, precision, benches, number) for number, ((chip, _, precision), benches) in enumerate(groups.items())]  # fmt: skip


def _roof(chip: str, precision: str, benches: list[Record], number: int) -> Figure:
    peak = float(np.median([bench["roof"]["flops_a_second"] for bench in benches]))
    bandwidth = float(np.median([bench["roof"]["bytes_a_second"] for bench in benches]))
    rows = [
        {"backend": title(backend), "spec": named(bench), "intensity": bench["flops"] / bench["traffic"],
         "gflops": bench["flops"] / lane["median"] / 1e9}
        for bench in benches
        for backend, lane in best_of(bench).items()
        if bench["flops"]
    ]  # fmt: skip
    backends = list(dict.fromkeys(backend for bench in benches for backend in best_of(bench)))
    reach = [row["intensity"] for row in rows]
    xs = sorted({min(*reach, peak / bandwidth) / 2, peak / bandwidth, 2 * max(*reach, peak / bandwidth)})
    roof = [{"intensity": x, "gflops": min(peak, bandwidth * x) / 1e9} for x in xs]
    specs = list(dict.fromkeys(row["spec"] for row in rows))

    def draw(width: int) -> Spec:
        x = alt.X("intensity:Q", title="floating-point operations a byte, log scale", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(tickCount=5))  # fmt: skip
        y = alt.Y("gflops:Q", title="billions a second, log scale", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=5))  # fmt: skip
        line = alt.Chart(alt.NamedData(name="roof")).mark_line(strokeWidth=2, color="#8a8f98").encode(x=x, y=y)
        narrow = width < PHONE
        shapes = alt.Legend(
            orient="bottom", title=None, direction="vertical" if narrow else "horizontal", labelLimit=0,  # apart from the colours
            columns=1 if narrow else 0, symbolFillColor=INK, symbolStrokeColor=INK,
        )  # fmt: skip
        dots = (
            alt.Chart(alt.NamedData(name="rows"))
            .mark_point(filled=True, size=80, opacity=0.9)
            .encode(
                x=x, y=y,
                color=alt.Color("backend:N", scale=_colours(backends), legend=alt.Legend(orient="top", title=None, direction="horizontal")),
                shape=alt.Shape("spec:N", sort=specs, scale=alt.Scale(domain=specs, range=[SHAPES[i % len(SHAPES)] for i in range(len(specs))]),
                                legend=shapes),
            )
        )  # fmt: skip
        return charts.styled(alt.layer(line, dots), {"rows": rows, "roof": roof}, width, 300)

    caption = (
        f"The roof is the fastest framework's plain product ({peak / 1e9:,.0f} billion operations a second) and copy "
        f"({bandwidth / 1e9:,.1f} GB a second), measured in the same rounds. Bytes are counted from the graph, nothing fused and nothing "
        "kept in caches: a program that does either may stand above the slope."
        + (
            " Values between operations count 4 bytes each, those of bfloat16 products too."
            if precision == "bfloat16"
            else ""
        )
    )
    return Figure(f"roof-{number}", SCALING, f"Steps under the roof: {chip}, {precision}", caption, draw)
