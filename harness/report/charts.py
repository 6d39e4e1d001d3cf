"""The charts of a run: losses, how far they part, how far the parameters part, and where the time went.

Drawn by Altair and vl-convert from inline data alone: nothing is fetched, no browser is started.
"""

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from harness.drawing import Artist
from harness.report.story import (
    CAVEAT,
    PHASES,
    counted,
    listed,
    printable,
    seconds,
    small,
    title,
    updates,
)
from harness.results import RunResult

# Okabe and Ito's colours, which the colour-blind can tell apart; each stands out from white and from near-black.
COLOURS = {"torch": "#d55e00", "tensorflow": "#0072b2", "jax": "#1fae7a"}
OTHERS = ("#cc79a7", "#a6761d", "#7570b3")
PAIRS = ("#a35bb5", "#a8860b", "#6f7a86")
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3])
PHASE_COLOURS = {
    "import": "#4477aa", "build": "#66ccee", "compile": "#ee6677", "first_step": "#ccbb44", "steady": "#228833",
    "forward": "#332288", "data": "#aa3377", "checks": "#ddcc77", "evaluate": "#bbaa99", "rest": "#8a8f98",
}  # fmt: skip
INK, GRID = "#30343b", "#dadde2"
"""Of the files; on the page they become the text's colour."""
PHONE = 500  # pixels: below it legends stand in columns
LONG = 2000  # points: a longer series is thinned
WIDE, NARROW = 1120, 360  # pixels of a chart on a desk, on a phone
TITLE = 30  # pixels above it, in a file
FONT = "Helvetica, Arial, DejaVu Sans, sans-serif"
Point = tuple[int, float]
Spec = dict[str, Any]
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The language that this Altair writes."""


@dataclass(frozen=True)
class Figure:
    """A chart that can be drawn at any width, and what a reader is told about it."""

    name: str
    """Its file's name, without an ending."""
    section: str
    """`losses`, `drift`, `exact` (the same run in float64) or `seconds`."""
    title: str
    caption: str
    draw: Callable[[int], Spec]
    """Its Vega-Lite spec at a width in pixels."""


@dataclass(frozen=True)
class Drawing:
    """A chart as SVG at two widths, as Vega writes it."""

    figure: Figure
    wide: str
    narrow: str


def figures(result: RunResult, exact: RunResult | None = None) -> list[Figure]:
    """Every chart that the run has data for, in the report's order; `exact` is the same run in float64."""
    found = _of_steps(result)
    if exact is not None:
        parting = [figure for figure in _of_steps(exact) if not figure.name.startswith("loss-of")]
        found += [
            replace(f, name=f"float64-{f.name}", section="exact", title=f"{f.title}, in float64") for f in parting
        ]
    return [*found, *_seconds(result)]


def _of_steps(result: RunResult) -> list[Figure]:
    losses = [figure for update in updates(result) for figure in _losses(result, update)]
    return [*losses, *_drift(result)]


def render(figures: Sequence[Figure], artist: Artist) -> list[Drawing]:
    """Draw charts, for desks and for phones: the text of a chart that is scaled down cannot be read."""
    with debug_mode(False):  # noqa: FBT003 - Altair's checks cost more than drawing; tests make them
        asked = [[artist.svg(figure.draw(width), VEGA_LITE) for width in (WIDE, NARROW)] for figure in figures]
    return [
        Drawing(figure, *(picture.result() for picture in pictures))
        for figure, pictures in zip(figures, asked, strict=True)
    ]


def svg(drawing: Drawing) -> str:
    """The chart as a file: dark on white, its title above it."""
    figure, drawn = drawing.figure, _tidy(drawing.wide)
    width, height = (float(size) for size in re.findall(r'(?:width|height)="([\d.]+)"', drawn)[:2])
    frame = f'width="{width:g}" height="{height + TITLE:g}" viewBox="0 {-TITLE} {width:g} {height + TITLE:g}">'
    heading = f'<text x="8" y="-8" font-family="{FONT}" font-size="14px" font-weight="bold" fill="{INK}">{_escaped(figure.title)}</text>'
    paper = f'<rect y="{-TITLE}" width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r'width="[^"]*" height="[^"]*" viewBox="[^"]*">', lambda _: frame + paper + heading, drawn, count=1)


def inline(drawing: Drawing) -> tuple[str, str]:
    """The chart as part of a page, wide and narrow: its text has the page's colour, its background is the page's."""
    figure = drawing.figure
    label = f'<svg role="img" aria-label="{_escaped(f"{figure.title}. {figure.caption}".strip())}" '
    found = []
    for drawn in (drawing.wide, drawing.narrow):
        text = _tidy(drawn).replace(f'"{INK}"', '"currentColor"')
        found.append(text.replace(f'"{GRID}"', '"currentColor" stroke-opacity="0.14"').replace("<svg ", label, 1))
    return found[0], found[1]


def thin(points: Sequence[Point], most: int = LONG) -> list[Point]:
    """A long series with fewer points: the least and the greatest of every stretch, the first and the last.

    >>> thin([(step, 1.0 if step == 4321 else 0.0) for step in range(10_000)], most=8)
    [(0, 0.0), (2500, 0.0), (4321, 1.0), (5000, 0.0), (7500, 0.0), (9999, 0.0)]
    """
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    kept = {0, len(points) - 1}
    for at in range(stretches):
        stretch = range(at * len(points) // stretches, (at + 1) * len(points) // stretches)
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def colour(name: str, place: int = 0) -> str:
    """A backend's colour, the same in every chart and table."""
    return COLOURS.get(name, OTHERS[place % len(OTHERS)])


@dataclass(frozen=True)
class _Line:
    name: str
    points: Sequence[Point]
    colour: str
    width: float
    dash: Sequence[int]
    zeros: Sequence[int] = ()
    """Steps that a log scale has no place for: marked at its lower edge."""


def _losses(result: RunResult, update: str) -> list[Figure]:
    """An update's loss, and below it how far each two backends part."""
    lines, gone = [], []
    for place, (name, backend) in enumerate(result.backends.items()):
        losses = backend.losses.get(update, [])
        points = [(step, loss) for step, loss in enumerate(losses, start=result.start + 1) if math.isfinite(loss)]
        if len(points) < len(losses):
            gone.append(name)
        if points:
            lines.append(_Line(title(name), points, colour(name, place), 1.6, DASHES[0]))
    # Widest first, so that a curve shows on both sides of the one that covers it.
    lines = [_Line(x.name, x.points, x.colour, 1.4 + 2.0 * (len(lines) - 1 - i), x.dash) for i, x in enumerate(lines)]
    one = len(updates(result)) == 1
    of = "" if one else f" of '{update}'"
    found = []
    if lines:
        values = [value for line in lines for _, value in line.points]
        log = min(values) > 0 and max(values) / min(values) > 1000  # noqa: PLR2004
        caption = (
            "Curves that coincide show as bands: the first backend's is drawn widest, the last one's thinnest, on top."
        )
        caption = caption if len(lines) > 1 else ""
        if gone:
            caption += f" The loss of {listed(gone)} stopped being a number; its curve ends before that."
        scale = "loss (log scale)" if log else "loss"
        draw = _drawer(lines, scale, height=260, log=log, span=(result.start + 1, result.steps))
        found.append(Figure(f"loss-of-{_file(update)}", "losses", f"Loss{of} at every step", caption.strip(), draw))
    gaps = {
        pair: [
            (step, gap)
            for step, gap in enumerate(series.get("loss", {}).get(update, []), start=result.start + 1)
            if math.isfinite(gap)
        ]
        for pair, series in result.series.items()
    }
    tolerance = result.tolerances.get("loss")
    if any(gaps.values()):
        allowed: list[Point] = []
        if tolerance is not None:
            ok = [backend.losses.get(update, []) for backend in result.backends.values() if backend.status == "ok"]
            for step, at in enumerate(zip(*ok, strict=False), start=result.start + 1):
                allowed.append((step, tolerance["relative"] * max(tolerance["floor"], *(abs(value) for value in at))))
        allowed = [(step, value) for step, value in allowed if math.isfinite(value) and value > 0]
        found.append(_parting(
            result, gaps, allowed, f"loss-difference-{_file(update)}", "losses",
            f"How far the losses{of} part", "|difference of losses| (log scale)",
        ))  # fmt: skip
    return found


def _drift(result: RunResult) -> list[Figure]:
    """How far the parameters and statistics of each two backends part."""
    drift = {
        pair: [(int(step), float(gap)) for step, gap in series.get("state", []) if math.isfinite(gap)]
        for pair, series in result.series.items()
    }
    if not any(drift.values()):
        return []
    tolerance = result.tolerances.get("state")
    steps = sorted({step for points in drift.values() for step, _ in points})
    allowed = [] if tolerance is None else [(step, tolerance["relative"]) for step in steps]
    figure = _parting(
        result, drift, allowed, "drift", "drift", "How far the parameters and statistics part", "worst relative difference (log scale)",
    )  # fmt: skip
    what = "Of all tensors the worst at each recorded step: the largest difference, relative to the tensor's largest value or to 1."
    return [replace(figure, caption=f"{what} {figure.caption}".strip())]


def _parting(
    result: RunResult, series: Mapping[str, Sequence[Point]], allowed: Sequence[Point], name: str, section: str, heading: str, axis: str
) -> Figure:  # fmt: skip
    """Differences of pairs on a log scale, zeros at its lower edge, with what is allowed."""
    present = [value for points in series.values() for _, value in points if value > 0]
    zeros = sum(value == 0 for points in series.values() for _, value in points)
    total = sum(len(points) for points in series.values())
    edge = min(present, default=1e-9 if result.precision == "float32" else 1e-17)
    floor = _power(math.floor(math.log10(edge)) - (1 if present and zeros else 0))
    lines = []
    for place, (pair, points) in enumerate(series.items()):
        above = [(step, value) for step, value in points if value > 0]
        none = [step for step, value in points if value == 0]
        if points:
            look = (PAIRS[place % len(PAIRS)], 1.6, DASHES[place % len(DASHES)])
            lines.append(
                _Line(
                    " / ".join(title(name) for name in pair.split("~")),
                    above or [(step, floor) for step in none],
                    *look,
                    none,
                )
            )
    if allowed:
        lines.append(_Line("allowed", allowed, INK, 1.0, [4, 4]))
    caption = ""
    if zeros:
        caption = f"{zeros:,} of {counted(total, 'difference')} {'is' if zeros == 1 else 'are'} exactly zero: marked at the lower edge, {small(floor)}, and passed over by the lines."
    return Figure(
        name,
        section,
        heading,
        caption,
        _drawer(lines, axis, height=200, log=True, span=(result.start + 1, result.steps), low=floor),
    )


def _power(exponent: int) -> float:
    """A power of ten, or the nearest one that a float64 holds in full."""
    return 10.0 ** min(max(exponent, -307), 308)


def _drawer(
    lines: Sequence[_Line], axis: str, *, height: int, log: bool, span: tuple[int, int], low: float | None = None
) -> Callable[[int], Spec]:
    """A chart of lines over the steps, drawn when its width is known."""
    names = [line.name for line in lines]
    few = max(len(line.points) for line in lines) <= 40  # noqa: PLR2004
    values = [value for line in lines for _, value in line.points]
    domain: list[float] | None = None
    if log:
        low = low if low is not None else _power(math.floor(math.log10(min(values))))
        domain = [low, _power(math.ceil(math.log10(max(*values, low * 10))))]
    decades = round(math.log10(domain[1]) - math.log10(domain[0])) if domain else 0
    every = max(1, -(-decades // 8))
    ticks = (
        [_power(power) for power in range(round(math.log10(domain[0])), round(math.log10(domain[1])) + 1, every)]
        if domain
        else None
    )

    data = {
        f"line{i}": [{"step": step, "value": value, "series": line.name} for step, value in thin(line.points)]
        for i, line in enumerate(lines)
    }  # fmt: skip
    data |= {
        f"zeros{i}": [{"step": step} for step, _ in thin([(step, 0.0) for step in line.zeros])]
        for i, line in enumerate(lines)
    }

    def draw(width: int) -> Spec:
        x = alt.X("step:Q", title="step", scale=alt.Scale(domain=[span[0], max(span[1], span[0] + 1)], nice=False),
                  axis=alt.Axis(tickMinStep=1, format=",d", tickCount=6))  # fmt: skip
        y_axis = alt.Axis(values=ticks, format="~e", minExtent=38) if ticks else alt.Axis(tickCount=6, minExtent=38)
        y_scale = alt.Scale(type="log", domain=domain, nice=False, clamp=True) if domain else alt.Scale(zero=False)
        legend = alt.Legend(orient="top", direction="horizontal", title=None, symbolType="stroke", symbolSize=500 if width > PHONE else 200,
                            columns=2 if width < PHONE else 0, labelLimit=0)  # fmt: skip
        encoding = {
            "x": x,
            "y": alt.Y("value:Q", title=axis, scale=y_scale, axis=y_axis),
            "color": alt.Color(
                "series:N", legend=legend, scale=alt.Scale(domain=names, range=[line.colour for line in lines])
            ),
        }
        layers = []
        for i, line in enumerate(lines):
            mark = alt.Chart(alt.NamedData(name=f"line{i}")).mark_line(
                strokeWidth=line.width, strokeDash=list(line.dash), strokeJoin="round",
                point=alt.OverlayMarkDef(size=20 + 14 * line.width, filled=True) if few and line.name != "allowed" else False,
            )  # fmt: skip
            layers.append(mark)
        widths = alt.StrokeWidth(
            "series:N", legend=legend, scale=alt.Scale(domain=names, range=[line.width for line in lines])
        )
        dashes = alt.StrokeDash(
            "series:N", legend=legend, scale=alt.Scale(domain=names, range=[list(line.dash) for line in lines])
        )
        layers = [layer.encode(**encoding, strokeWidth=widths, strokeDash=dashes) for layer in layers]
        for i, line in enumerate(lines):
            if line.zeros:
                marks = alt.Chart(alt.NamedData(name=f"zeros{i}")).mark_tick(
                    orient="vertical", thickness=1, size=5, color=line.colour
                )
                layers.append(marks.encode(x=x, y=alt.value(height - 4 - 6 * i)))
        return styled(alt.layer(*layers), data, width, height)

    return draw


def _seconds(result: RunResult) -> list[Figure]:
    """A bar a backend, a piece a phase."""
    spent = {name: seconds(backend) for name, backend in result.backends.items()}
    present = [phase for phase in PHASES if any(phase in of for of in spent.values())]
    if not present:
        return []
    rows = [
        {"backend": title(name), "phase": PHASES[phase], "seconds": value, "place": list(PHASES).index(phase)}
        for name, of in spent.items() for phase, value in of.items()
    ]  # fmt: skip
    totals = [
        {"backend": title(name), "seconds": sum(of.values()), "label": f"{sum(of.values()):.1f} s"}
        for name, of in spent.items()
        if of
    ]
    order = [title(name) for name in spent]

    def draw(width: int) -> Spec:
        y = alt.Y("backend:N", title=None, sort=order, axis=alt.Axis(labelFontSize=12))
        longest = max(float(str(total["seconds"])) for total in totals)
        scale = alt.Scale(domain=[0, longest * (1.12 if width > PHONE else 1.2)], nice=False)
        legend = alt.Legend(
            orient="top", direction="horizontal", title=None, columns=3 if width < PHONE else 0, labelLimit=0
        )
        colours = alt.Scale(domain=[PHASES[p] for p in present], range=[PHASE_COLOURS[p] for p in present])
        bars = alt.Chart(alt.NamedData(name="rows")).mark_bar(height=22).encode(
            x=alt.X("seconds:Q", title="seconds (one run, no benchmark)", scale=scale, axis=alt.Axis(tickCount=6)),
            y=y,
            color=alt.Color("phase:N", sort=[PHASES[p] for p in present], scale=colours, legend=legend),
            order=alt.Order("place:Q"),
        )  # fmt: skip
        labels = (
            alt.Chart(alt.NamedData(name="totals"))
            .mark_text(align="left", dx=5, color=INK)
            .encode(x=alt.X("seconds:Q", scale=scale), y=y, text="label:N")
        )
        return styled(alt.layer(bars, labels), {"rows": rows, "totals": totals}, width, 36 * len(order))

    return [Figure("seconds", "seconds", "Where the time went", CAVEAT, draw)]


def styled(
    chart: alt.LayerChart | alt.FacetChart, data: Mapping[str, Sequence[Mapping[str, Any]]], width: int, height: int
) -> Spec:
    """The chart in the report's style, as wide as it says, with its data. Altair would check and copy it point by point."""
    return {
        **chart.to_dict(validate=False),
        "width": width,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _style(),
        "datasets": {name: list(rows) for name, rows in data.items()},
    }


@cache
def _style() -> Spec:
    axis = alt.AxisConfig(
        labelColor=INK, titleColor=INK, domainColor=INK, tickColor=INK, gridColor=GRID, labelFontSize=11, titleFontSize=12,
        titleFontWeight="normal", titlePadding=8,
    )  # fmt: skip
    legend = alt.LegendConfig(labelColor=INK, titleColor=INK, labelFontSize=12, symbolStrokeWidth=2)
    view = alt.ViewConfig(stroke="transparent")
    style = alt.Config(font=FONT, background="transparent", padding=6, aria=False, axis=axis, legend=legend, view=view)
    return dict(style.to_dict())


def _tidy(drawn: str) -> str:
    """Without what only Vega's own styles and scripts read; coordinates at a hundredth of a pixel."""
    drawn = re.sub(r' (?:class|pointer-events|aria-hidden|aria-roledescription|role)="[^"]*"', "", drawn)
    return re.sub(
        r' (?:d|transform)="[^"]*"', lambda attribute: re.sub(r"\d+\.\d{3,}", _hundredth, attribute[0]), drawn
    )


def _hundredth(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", printable(name)).strip("-") or "update"
