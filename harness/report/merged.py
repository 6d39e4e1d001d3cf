"""Any number of runs and benchmarks on one page: first for whoever has to choose, then the times, then the conditions."""

import math
from collections.abc import Sequence
from pathlib import Path

from harness.bench.record import SCHEMA
from harness.bench.scaling import exponent
from harness.drawing import Artist, DrawingError
from harness.errors import CallError
from harness.files import error_text, make_folder, write_text
from harness.reading import bench_record, read_json, suite_record
from harness.report import charts, story
from harness.report.benches import SCALING, Merged, Record, Series, best_of, lanes_of, named, series, spoken, start
from harness.report.charts import Drawing, Figure
from harness.report.markdown import escape, table
from harness.report.page import Drawn, drawn_for_page, style, template
from harness.report.speed import operations, percent, size, spelled
from harness.report.speed_charts import figures_of
from harness.report.story import Table, title
from harness.results import RunResult


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
            found = read_json(path, "is neither a run directory nor a benchmark's JSON")
        except FileNotFoundError:
            raise CallError(f"{path} does not exist") from None
        own = found.get("benchmarks") if isinstance(found, dict) else None
        if isinstance(own, list) and found.get("schema") == SCHEMA:
            benches += [bench_record(path, one, number) for number, one in enumerate(own)]
        elif isinstance(own, list) and isinstance(found.get("machine_info"), dict):
            machine = _machine(found["machine_info"])
            suites += [
                {**suite_record(path, one, number), "machine": machine}
                for number, one in enumerate(own)
                if _of_ours(one)
            ]
        else:
            raise CallError(f"{path}: is neither of `harness bench --json` nor of pytest-benchmark")
    return Merged(tuple(benches), tuple(runs), tuple(suites))


def _machine(info: Record) -> str:
    """What pytest-benchmark says of the machine."""
    cpu = info.get("cpu")
    return str((cpu.get("brand_raw") if isinstance(cpu, dict) else None) or info.get("node", "?"))


def _of_ours(one: object) -> bool:
    """Whether a row of pytest-benchmark's is of this project's suites."""
    extra = one.get("extra_info") if isinstance(one, dict) else None
    return isinstance(extra, dict) and "spec" in extra


def write(merged: Merged, folder: Path) -> Path:
    """Write report.md, charts/ and report.html into a folder; returns the page's path.

    Raises CallError where that cannot be, and DrawingError where charts cannot be drawn: the report is then there without them.
    """
    figures = figures_of(merged)
    drawings: list[Drawing] = []
    undrawn: DrawingError | None = None
    with Artist() as artist:
        try:
            drawings = charts.render(figures, artist)
        except DrawingError as error:
            undrawn = error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        make_folder(folder / "charts")
        for drawing in drawings:
            write_text(folder / "charts" / f"{drawing.figure.name}.svg", charts.svg(drawing))
        write_text(folder / "report.md", markdown(merged, [drawing.figure for drawing in drawings]))
        path = folder / "report.html"
        write_text(path, page(merged, drawings))
    except OSError as error:
        raise CallError(f"the report cannot be written: {error_text(error)}") from None
    if undrawn is not None:
        raise DrawingError(f"the report {path} lacks charts: {undrawn}")
    return path


# What is said -------------------------------------------------------------------------------------------------


def exponents(all_series: Sequence[Series]) -> Table | None:
    """How a step's time grows with each setting."""
    rows = []
    for own in all_series:
        for backend, points in own.points.items():
            fitted = exponent(*zip(*points, strict=True))
            half = "" if fitted.half_width is None else f" ± {fitted.half_width:.2g}"
            rows.append((
                f"{own.spec}, {own.place}", title(backend), f"{fitted.value:.2f}{half}",
                ", ".join(f"{value:g}: {spelled(seconds)}" for value, seconds in points),
            ))  # fmt: skip
    return Table(("", "", "exponent", "steps"), tuple(rows)) if rows else None


def by_length(bench: Record) -> list[tuple[int, str]]:
    """Which way is the first to have trained so many steps, everything but the import counted: (from so many on, its name).

    >>> lane = lambda name, start, step: {"name": name, "median": step, "alone": {"phases": {"build": start}}}
    >>> by_length({"lanes": [lane("slow to start", 10, 0.001), lane("slow", 0, 0.101)]})
    [(1, 'slow'), (101, 'slow to start')]
    """
    lanes = lanes_of(bench)
    if not lanes or any(math.isnan(start(lane)) for lane in lanes):
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
        return f"{named(bench)}: not measured: {'; '.join(bench['failures'].values()) or 'see the notes'}."
    lanes = lanes_of(bench)
    if not lanes:
        why = (
            "nothing shows that the programs train identically"
            if bench["verdict"] == "void"
            else "the programs do not train identically"
        )
        return f"{named(bench)}: {why}, so none was timed."
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
    return f"{named(bench)}: {said}."


def choosing(merged: Merged) -> Table:
    """Per benchmark and framework: whether it trains identically, its fastest way, and what that costs."""
    rows = []
    for bench in merged.benches:
        for backend, lane in best_of(bench).items():
            r = lane["against_fastest"]
            even = bench["break_even"].get(lane["name"])
            rows.append((
                f"{named(bench)}, {title(backend)}",
                "yes" if bench["verdict"] == "same" else bench["verdict"],
                lane["strategy"],
                spelled(lane["median"]),
                "fastest" if r is None else f"{r['value']:.3g} ({r['low']:.3g}–{r['high']:.3g}){'' if r['verdict'] != 'no difference' else ', a tie'}",
                percent(lane.get("share_of_peak")),
                *(("", "", "") if not lane["alone"] else (
                    spelled(start(lane)),
                    "at once" if even == 0 else f"{even:,} steps" if even else "never",
                    size(lane["alone"]["memory"]),
                )),
                str(lane["lines"]),
            ))  # fmt: skip
    head = (
        "",
        "equal",
        "fastest way",
        "step",
        "ratio (99 %)",
        "of the peak",
        "to start",
        "pays after",
        "memory",
        "lines",
    )
    return without_empty(Table(head, tuple(rows)))


COLUMNS = {
    "to start": "To start: building the model and the first two calls, in a process of its own, without any cache.",
    "pays after": "Pays after: the steps after which that is ahead of the framework's own beginner's way.",
    "memory": "Memory: at most, beyond what the framework takes by itself.",
    "lines": "Lines: of the program.",
}
"""What heads of `choosing` mean."""


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
            *(("", "", "", "") if not lane["alone"] else (
                spelled(lane["alone"]["phases"]["import"]), spelled(start(lane)),
                "" if lane["lane"] == "default" else "never" if even is None else f"{even:,}", size(lane["alone"]["memory"]),
            )),
            ", ".join(f"{joules:.3g} J ({meter})" for meter, joules in lane["joules"].items()),
            "" if not lane["alone"] else ", ".join(f"{n} {what}" for what, n in lane["alone"]["compilations"].items() if n),
        ))  # fmt: skip
    head = (
        "", "lanes", "step", "quartiles", "ratio", "99 % interval", "import", "to start", "pays after steps", "memory", "energy",
        "compiled",
    )  # fmt: skip
    return without_empty(Table(head, tuple(rows)))


def without_empty(own: Table) -> Table:
    """A table without the columns that have nothing in any row."""
    keep = [i for i in range(len(own.head)) if i == 0 or any(row[i] for row in own.rows)]
    return Table(tuple(own.head[i] for i in keep), tuple(tuple(row[i] for i in keep) for row in own.rows))


def asked(bench: Record) -> Table | None:
    """How the trained networks answer."""
    evaluated = {own["backend"]: own for own in bench["evaluation"]}
    rows = []
    for own in sorted(bench["inference"], key=lambda one: -one["examples_a_second"]):
        r, whole = own["against_fastest"], evaluated.pop(own["backend"], None)
        rows.append((
            spoken(f"{own['backend']} {own['way']}"), *(spelled(own["latency"][p]) for p in ("p50", "p95", "p99")),
            f"{own['examples_a_second']:,.0f}", "1" if r is None else f"{r['value']:.3g} ({r['low']:.3g}–{r['high']:.3g})",
            "" if whole is None else f"{spelled(sorted(whole['seconds'])[len(whole['seconds']) // 2])} for {whole['examples']:,}",
        ))  # fmt: skip
    head = ("", "p50 of one example", "p95", "p99", "examples a second", "ratio (99 %)", "evaluation")
    return Table(head, tuple(rows)) if rows else None


def reached(bench: Record) -> Table | None:
    """Time to the target, where there was one."""
    rows = [
        (spoken(lane["name"]), f"{own['metric'] or 'loss'} {own['value']:g}", "yes" if own["reached"] else "no", f"{own['steps']:,}", spelled(own["seconds"]),
         spelled(start(lane) + own["seconds"]))
        for lane in lanes_of(bench)
        if lane["alone"] and (own := lane["alone"]["target"])
    ]  # fmt: skip
    return Table(("", "target", "reached", "steps", "training", "with its start"), tuple(rows)) if rows else None


def rivals(bench: Record) -> Table | None:
    """What the lane `best` was chosen from, by the times of a short trial."""
    rows = [
        (spoken(name), spelled(seconds), "chosen" if name == lane["name"] else "")
        for lane in bench["lanes"]
        for name, seconds in sorted(lane["trial"].items(), key=lambda item: item[1])
    ]
    return Table(("", "step in the trial", ""), tuple(rows)) if rows else None


def by_hand(bench: Record) -> Table | None:
    """The programs written by hand, and how many times as long the emitted one of lane `best` takes."""
    rows = []
    for peer in bench["peers"]:
        r = peer["best_against_it"]
        step = spelled(sorted(peer["seconds"])[len(peer["seconds"]) // 2])
        beside = "" if r is None else f"{r['value']:.3g} ({r['low']:.3g}–{r['high']:.3g})"
        rows.append((f"{title(peer['backend'])} ({peer['strategy']})", step, beside))
    return Table(("", "step", "lane best takes, times as long (99 %)"), tuple(rows)) if rows else None


def ledger(bench: Record) -> Table | None:
    """How each process computed, where they differ."""
    backends = _computed(bench)
    rows = [
        (name, *(str(own.get(backend, "—")) for backend in backends))
        for name, own in bench["ledger"]["entries"].items()
        if name in bench["ledger"]["differing"]
    ]
    return Table(("differs", *map(title, backends)), tuple(rows)) if rows else None


def alike(bench: Record) -> Table:
    """How all processes computed, or those that say so."""
    backends = set(_computed(bench))
    rows = []
    for name, own in bench["ledger"]["entries"].items():
        if name not in bench["ledger"]["differing"]:
            of = "" if "all" in own or set(own) == backends else f" ({', '.join(map(title, own))})"
            rows.append((name, f"{next(iter(own.values()))}{of}"))
    return Table(("", "alike in all"), tuple(rows))


def _computed(bench: Record) -> list[str]:
    """The backends of the ledger."""
    return list(dict.fromkeys(n for own in bench["ledger"]["entries"].values() for n in own if n != "all"))


def suite(merged: Merged) -> Table | None:
    """pytest-benchmark's rows, a step or a call each."""
    rows = []
    for one in sorted(
        merged.suites, key=lambda o: (o["extra_info"]["spec"], o["extra_info"]["phase"], o["stats"]["median"])
    ):
        extra, stats = one["extra_info"], one["stats"]
        steps = extra.get("steps_a_round", 1)
        rows.append((
            f"{extra['spec']}, {extra['phase']}", spoken(f"{extra['backend']} {extra.get('way', extra['strategy'])}"),
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


# The two forms ------------------------------------------------------------------------------------------------


def markdown(merged: Merged, figures: Sequence[Figure]) -> str:
    """The report as Markdown."""
    parts = ["# Speed"]
    parts += [f"- {escape(conclusion(bench))}" for bench in merged.benches]
    if merged.benches:
        parts.append(table(choosing(merged)))
    parts += [f"![{escape(f.title)}](charts/{f.name}.svg)" for f in figures if f.section == SCALING]
    if (grown := exponents(series(merged))) is not None:
        parts.append(table(grown))
    for number, bench in enumerate(merged.benches):
        parts += [f"## {escape(named(bench))}", escape(_about(bench))]
        parts += [f"![{escape(f.title)}](charts/{f.name}.svg)" for f in figures if f.section == str(number)]
        parts += [
            table(own)
            for own in (
                everything(bench),
                asked(bench),
                reached(bench),
                rivals(bench),
                by_hand(bench),
                ledger(bench),
                alike(bench),
            )
            if own is not None and own.rows
        ]
        parts += [f"- {escape(note)}" for note in bench["notes"]]
    for heading, own in (("Runs", trained(merged)), ("Suites", suite(merged))):
        if own is not None:
            parts += [f"## {heading}", table(own)]
    return "\n\n".join(parts) + "\n"


def _about(bench: Record) -> str:
    machine = bench["machine"]
    cpu = f"{machine['processor']}, one core of {machine['cores']}"
    devices = set(map(str, bench["ledger"]["entries"].get("device", {}).values()))
    where = cpu if bench["device"] == "cpu" else f"{', '.join(sorted(devices))}; {machine['processor']}"
    return (
        f"{bench['precision']}, batch {bench['batch']}, {operations(bench['flops'])} in the matrix products of a step (FLOP: "
        f"floating-point operations); {where}."
    )


def page(merged: Merged, drawings: Sequence[Drawing]) -> str:
    """The report as one page that needs nothing beside it."""
    drawn: dict[str, list[Drawn]] = {}
    for drawing in drawings:
        drawn.setdefault(drawing.figure.section, []).append(drawn_for_page(drawing))
    benches = [
        {"spec": named(bench), "about": _about(bench), "drawn": drawn.get(str(number), []), "notes": bench["notes"],
         "everything": everything(bench), "asked": asked(bench), "reached": reached(bench), "rivals": rivals(bench),
         "by_hand": by_hand(bench), "ledger": ledger(bench), "alike": alike(bench)}
        for number, bench in enumerate(merged.benches)
    ]  # fmt: skip
    first = choosing(merged) if merged.benches else None
    return template("merged.html").render(
        conclusions=[conclusion(bench) for bench in merged.benches],
        choosing=first,
        columns=" ".join(COLUMNS[head] for head in first.head if head in COLUMNS) if first else "",
        scaling=drawn.get(SCALING, []), exponents=exponents(series(merged)),
        benches=benches, runs=trained(merged), suites=suite(merged),
        style=style(),
    )  # fmt: skip
