"""Any number of runs and benchmarks on one page: first for whoever has to choose, then the times, then the conditions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

from harness.errors import CallError
from harness.report import charts, story
from harness.report.charts import INK, PHONE, Drawing, Figure, Spec, colour
from harness.report.markdown import escape, table
from harness.report.page import Drawn, drawn_for_page, style, template
from harness.report.speed import spelled
from harness.report.story import Table, title
from harness.results import RunResult

Record = Mapping[str, Any]
STARTS = {"import": "import of the framework", "build": "building the model", "first_calls": "first two calls"}
START_COLOURS = ("#4477aa", "#66ccee", "#ee6677")


@dataclass(frozen=True)
class Merged:
    """What was given."""

    benches: tuple[Record, ...] = ()
    """`harness bench --json`: one object a spec."""
    runs: tuple[RunResult, ...] = ()
    suites: tuple[Record, ...] = ()
    """Rows of pytest-benchmark's JSON files, with the machine that each is of."""


def read(paths: Sequence[Path]) -> Merged:
    """Run directories and JSON files. Raises CallError."""
    benches: list[Record] = []
    runs: list[RunResult] = []
    suites: list[Record] = []
    for path in paths:
        if path.is_dir():
            runs.append(RunResult.read(path))
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CallError(f"{path}: cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CallError(f"{path}: is neither a run directory nor a benchmark's JSON: {error}") from None
        if isinstance(found, dict) and _is_bench(found):
            benches += found["benchmarks"]
        elif isinstance(found, dict) and "machine_info" in found and isinstance(found.get("benchmarks"), list):
            machine = found["machine_info"].get("cpu", {}).get("brand_raw") or found["machine_info"].get("node", "?")
            suites += [
                {**one, "machine": machine} for one in found["benchmarks"] if "spec" in one.get("extra_info", {})
            ]
        else:
            raise CallError(f"{path}: is neither of `harness bench --json` nor of pytest-benchmark")
    return Merged(tuple(benches), tuple(runs), tuple(suites))


def _is_bench(found: Record) -> bool:
    own = found.get("benchmarks")
    return "schema" in found and isinstance(own, list) and all(isinstance(b, dict) and "lanes" in b for b in own)


def write(merged: Merged, folder: Path) -> Path:
    """Write report.md, charts/ and report.html into a folder; returns the page's path."""
    figures = figures_of(merged)
    drawings = [charts.render(figure) for figure in figures]
    try:
        (folder / "charts").mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            text = charts.svg(drawing)
            (folder / "charts" / f"{drawing.figure.name}.svg").write_text(text, encoding="utf-8")
        (folder / "report.md").write_text(markdown(merged, figures), encoding="utf-8")
        path = folder / "report.html"
        path.write_text(page(merged, drawings), encoding="utf-8")
    except OSError as error:
        raise CallError(f"cannot write into {folder}: {error.strerror}") from None
    return path


# What is said -------------------------------------------------------------------------------------------------


def lanes_of(bench: Record) -> list[Record]:
    """The lanes of a benchmark, the fastest first; a strategy that fills two lanes once, in the first of them."""
    found: dict[str, Record] = {}
    for lane in bench["lanes"]:
        found.setdefault(lane["name"], lane)
    return sorted(found.values(), key=lambda lane: float(lane["median"]))


def best_of(bench: Record) -> dict[str, Record]:
    """By backend, its fastest lane."""
    found: dict[str, Record] = {}
    for lane in lanes_of(bench):
        found.setdefault(lane["backend"], lane)
    return found


def done_first(bench: Record, steps: int) -> dict[str, Record]:
    """By backend, the lane that is the first to have trained so many steps."""
    found: dict[str, Record] = {}
    for lane in sorted(lanes_of(bench), key=lambda lane: start(lane) + steps * lane["median"]):
        found.setdefault(lane["backend"], lane)
    return found


def start(lane: Record) -> float:
    """Seconds until a lane's third step, the framework's import apart."""
    return float(lane["phases"]["build"] + lane["phases"]["first_calls"])


def by_length(bench: Record) -> list[tuple[int, str]]:
    """Which way is the first to have trained so many steps, everything but the import counted: (from so many on, its name).

    >>> lane = lambda name, start, step: {"name": name, "median": step, "phases": {"build": 0, "first_calls": start}}
    >>> by_length({"lanes": [lane("slow to start", 10, 0.001), lane("slow", 0, 0.101)]})
    [(1, 'slow'), (101, 'slow to start')]
    """
    lanes = lanes_of(bench)
    if not lanes:
        return []
    found: list[tuple[int, str]] = []
    length = 1
    while True:
        now = min(lanes, key=lambda lane: (start(lane) + length * lane["median"], lane["median"]))
        found.append((length, str(now["name"])))
        later = [
            math.floor((start(lane) - start(now)) / (now["median"] - lane["median"])) + 1
            for lane in lanes
            if lane["median"] < now["median"]
        ]
        if not later:
            return found
        length = max(length + 1, min(later))


def conclusion(bench: Record) -> str:
    """What holds, and what would change it."""
    if bench["verdict"] == "failed":
        return f"{bench['spec']}: not measured: {'; '.join(bench['failures'].values()) or 'see the notes'}."
    lanes = lanes_of(bench)
    if not lanes:
        why = (
            "nothing shows that the programs train identically"
            if bench["verdict"] == "void"
            else "the programs do not train identically"
        )
        return f"{bench['spec']}: {why}, so none was timed."
    first = lanes[0]
    ties = [
        lane["name"]
        for lane in lanes[1:]
        if lane["against_fastest"] and lane["against_fastest"]["verdict"] == "no difference"
    ]
    said = f"{spoken(first['name'])} is the fastest"
    said += f" (a tie with {', '.join(map(spoken, ties))})" if ties else ""
    lengths = by_length(bench)
    if len(lengths) > 1:
        parts = []
        for (low, name), (high, _) in zip(lengths, [*lengths[1:], (0, "")], strict=True):
            parts.append(
                f"{spoken(name)} from {low:,} steps on" if not high else f"{spoken(name)} up to {high - 1:,} steps"
            )
        said += f"; the time to start counted: {', '.join(parts)}"
    return f"{bench['spec']}: {said}."


def spoken(name: str) -> str:
    """`jax scan` as `JAX (scan)`."""
    backend, _, strategy = name.partition(" ")
    return f"{title(backend)} ({strategy})" if strategy else title(backend)


def choosing(merged: Merged) -> Table:
    """Per benchmark and framework: whether it trains identically, its fastest way, and what that costs."""
    rows = []
    for bench in merged.benches:
        for backend, lane in best_of(bench).items():
            r = lane["against_fastest"]
            even = bench["break_even"].get(lane["name"])
            rows.append((
                f"{bench['spec']}, {title(backend)}",
                "yes" if bench["verdict"] == "same" else bench["verdict"],
                lane["strategy"],
                spelled(lane["median"]),
                "fastest" if r is None else f"{r['value']:.3g} ({r['low']:.3g}–{r['high']:.3g}){'' if r['verdict'] != 'no difference' else ', a tie'}",
                f"{lane['share_of_peak']:.0%}" if lane.get("share_of_peak") is not None else "",
                spelled(start(lane)),
                "at once" if even == 0 else f"{even:,} steps" if even else "never",
            ))  # fmt: skip
    head = (
        "",
        "trains identically",
        "fastest way",
        "step",
        "times the fastest (99 %)",
        "of the peak",
        "to start",
        "pays after",
    )
    return Table(head, tuple(rows))


def everything(bench: Record) -> Table:
    """Every way of running one spec."""
    rows = []
    for lane in lanes_of(bench):
        r = lane["against_fastest"]
        low, high = lane["quartiles"]
        lanes = ", ".join(own["lane"] for own in bench["lanes"] if own["name"] == lane["name"])
        even = bench["break_even"].get(lane["name"])
        rows.append((
            spoken(lane["name"]), lanes, spelled(lane["median"]), f"{spelled(low)} to {spelled(high)}",
            "1" if r is None else f"{r['value']:.3g}", "" if r is None else f"{r['low']:.3g} to {r['high']:.3g}",
            spelled(lane["phases"]["import"]), spelled(start(lane)),
            "" if lane["lane"] == "default" else "never" if even is None else f"{even:,}",
        ))  # fmt: skip
    head = ("", "lanes", "step", "quartiles", "ratio", "99 % interval", "import", "to start", "pays after steps")
    return Table(head, tuple(rows))


def rivals(bench: Record) -> Table | None:
    """What the lane `best` was chosen from, by the times of a short trial."""
    rows = [
        (spoken(name), spelled(seconds), "chosen" if name == lane["name"] else "")
        for lane in bench["lanes"]
        for name, seconds in sorted(lane["trial"].items(), key=lambda item: item[1])
    ]
    return Table(("", "step in the trial", ""), tuple(rows)) if rows else None


def ledger(bench: Record) -> Table:
    """How each process computed; what differs first, marked."""
    entries, differing = bench["ledger"]["entries"], set(bench["ledger"]["differing"])
    backends = list(dict.fromkeys(n for own in entries.values() for n in own if n != "all"))
    rows = []
    for name in sorted(entries, key=lambda n: n not in differing):
        own = entries[name]
        values = [str(own.get(backend, own.get("all", "—"))) for backend in backends]
        rows.append((f"{name} (differs)" if name in differing else name, *values))
    return Table(("", *map(title, backends)), tuple(rows))


def suite(merged: Merged) -> Table | None:
    """pytest-benchmark's rows, a step or a call each."""
    rows = []
    for one in sorted(
        merged.suites, key=lambda o: (o["extra_info"]["spec"], o["extra_info"]["phase"], o["stats"]["median"])
    ):
        extra, stats = one["extra_info"], one["stats"]
        steps = extra.get("steps_a_round", 1)
        rows.append((
            f"{extra['spec']}, {extra['phase']}", spoken(f"{extra['backend']} {extra['strategy']}"),
            spelled(stats["median"] / steps), spelled(stats["min"] / steps), f"{stats['rounds']}", str(one["machine"]),
        ))  # fmt: skip
    return Table(("", "", "median", "least", "rounds", "machine"), tuple(rows)) if rows else None


def trained(merged: Merged) -> Table | None:
    """The runs: verdicts and last losses."""
    rows = [
        (run.spec, run.verdict, title(name), "; ".join(f"{u} {loss}" for u, loss in story.last_losses(own).items()))
        for run in merged.runs
        for name, own in run.backends.items()
    ]
    return Table(("", "verdict", "", "last loss"), tuple(rows)) if rows else None


# Charts -------------------------------------------------------------------------------------------------------


def figures_of(merged: Merged) -> list[Figure]:
    """Every chart that there is data for."""
    found: list[Figure] = []
    for number, bench in enumerate(merged.benches):
        if bench["lanes"]:
            found += [_steps(bench, number), _starts(bench, number)]
            found += [_loss_by_time(bench, run, number) for run in merged.runs if run.spec == bench["spec"]][:1]
    return found


def _steps(bench: Record, number: int) -> Figure:
    """Median and quartiles of a step, a row a way of running it, on a log scale."""
    lanes = lanes_of(bench)
    rows = [
        {"name": spoken(lane["name"]), "backend": title(lane["backend"]), "median": lane["median"] * 1e6,
         "low": lane["quartiles"][0] * 1e6, "high": lane["quartiles"][1] * 1e6, "label": spelled(lane["median"])}
        for lane in lanes
    ]  # fmt: skip
    backends = list(dict.fromkeys(lane["backend"] for lane in lanes))

    def draw(width: int) -> Spec:
        y = alt.Y(
            "name:N",
            title=None,
            sort=[str(row["name"]) for row in rows],
            axis=alt.Axis(labelFontSize=12, labelLimit=220),
        )
        x = alt.Scale(type="log", nice=width > PHONE)
        colours = alt.Color(
            "backend:N",
            legend=None,
            scale=alt.Scale(domain=[title(b) for b in backends], range=[colour(b) for b in backends]),
        )
        base = alt.Chart(alt.NamedData(name="rows"))
        bars = base.mark_rule(strokeWidth=5, opacity=0.35).encode(
            x=alt.X("low:Q", scale=x, title="microseconds a step, log scale"), x2="high:Q", y=y, color=colours
        )
        dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("median:Q", scale=x), y=y, color=colours)
        labels = base.mark_text(align="left", dx=8, dy=-8, color=INK).encode(
            x=alt.X("median:Q", scale=x), y=y, text="label:N"
        )
        return charts.styled(alt.layer(bars, dots, labels), {"rows": rows}, width, 30 * len(rows))

    caption = "The dot is the median step, the bar its quartiles, over rounds in which every way was timed once."
    return Figure(f"steps-{number}-{bench['spec']}", f"{number}", f"{bench['spec']}: a training step", caption, draw)


def _starts(bench: Record, number: int) -> Figure:
    """Seconds before training is under way, a piece a phase."""
    lanes = sorted(lanes_of(bench), key=lambda lane: sum(lane["phases"].values()))
    rows = [
        {"name": spoken(lane["name"]), "phase": STARTS[phase], "seconds": lane["phases"][phase], "place": place}
        for lane in lanes
        for place, phase in enumerate(STARTS)
    ]
    order = [spoken(lane["name"]) for lane in lanes]

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

    caption = "Once, without any cache: what a training pays before its third step."
    return Figure(
        f"start-{number}-{bench['spec']}", f"{number}", f"{bench['spec']}: before training is under way", caption, draw
    )


def _loss_by_time(bench: Record, run: RunResult, number: int) -> Figure:
    """The losses of a run over the time that each framework takes for those steps, by the way that is done first."""
    best = done_first(
        bench, max((len(series) for own in run.backends.values() for series in own.losses.values()), default=1)
    )
    rows: list[dict[str, Any]] = []
    for name, own in run.backends.items():
        if name in best and own.losses:
            series = next(iter(own.losses.values()))
            points = charts.thin(list(enumerate(series)), 600)
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
    return Figure(
        f"loss-by-time-{number}-{bench['spec']}", f"{number}", f"{bench['spec']}: loss against time", caption, draw
    )


# The two forms ------------------------------------------------------------------------------------------------


def markdown(merged: Merged, figures: Sequence[Figure]) -> str:
    """The report as Markdown."""
    parts = ["# Speed"]
    parts += [f"- {escape(conclusion(bench))}" for bench in merged.benches]
    if merged.benches:
        parts.append(table(choosing(merged)))
    for number, bench in enumerate(merged.benches):
        parts += [f"## {escape(bench['spec'])}", escape(_about(bench))]
        parts += [f"![{escape(f.title)}](charts/{f.name}.svg)" for f in figures if f.section == str(number)]
        parts += [
            table(own) for own in (everything(bench), rivals(bench), ledger(bench)) if own is not None and own.rows
        ]
        parts += [f"- {escape(note)}" for note in bench["notes"]]
    for heading, own in (("Runs", trained(merged)), ("Suites", suite(merged))):
        if own is not None:
            parts += [f"## {heading}", table(own)]
    return "\n\n".join(parts) + "\n"


def _about(bench: Record) -> str:
    machine = bench["machine"]
    return (
        f"{bench['precision']}, batch {bench['batch']}, {bench['flops'] / 1e6:.3g} million floating-point operations in the matrix "
        f"products of a step; {machine['processor']}, one core of {machine['cores']}."
    )


def page(merged: Merged, drawings: Sequence[Drawing]) -> str:
    """The report as one page that needs nothing beside it."""
    drawn: dict[str, list[Drawn]] = {}
    for drawing in drawings:
        drawn.setdefault(drawing.figure.section, []).append(drawn_for_page(drawing))
    benches = [
        {"spec": bench["spec"], "about": _about(bench), "drawn": drawn.get(str(number), []), "notes": bench["notes"],
         "everything": everything(bench), "rivals": rivals(bench), "ledger": ledger(bench)}
        for number, bench in enumerate(merged.benches)
    ]  # fmt: skip
    return template("merged.html").render(
        conclusions=[conclusion(bench) for bench in merged.benches],
        choosing=choosing(merged) if merged.benches else None,
        benches=benches, runs=trained(merged), suites=suite(merged),
        style=style(),
    )  # fmt: skip
