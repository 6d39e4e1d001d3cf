"""What a report says, in words and rows, before any format: terminal, Markdown and page take it from here.

Everything comes from a RunResult; nothing here reads a file, and no text is escaped yet.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.results import BackendResult, RunResult

TITLES = {"torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX", "reference": "the float64 reference"}
WHAT = {
    "forward": "outputs before training",
    "gradients": "gradients",
    "loss": "loss",
    "state": "parameters and statistics",
    "outputs": "outputs after training",
    "carriers": "statistics that carry parameters without gradient",
}
"""What is compared, in the order in which a difference would show."""
MEANS = {
    "forward": "outputs before training",
    "gradients": "of every update at every recorded step, unclipped",
    "loss": "of every update at every step; with the reference, the first",
    "state": "parameters and statistics at every recorded step",
    "outputs": "outputs after training: predictions, and on the held-out examples",
    "carriers": "running means that move with parameters without gradient: no further apart than these explain",
}
PHASES = {
    "import": "import",
    "build": "build",
    "compile": "compile",
    "forward": "outputs before",
    "first_step": "first step",
    "steady": "steady steps",
    "data": "batches",
    "checks": "checks",
    "evaluate": "evaluate",
    "rest": "rest",
}
"""The parts of a worker's time, in order; `rest` is what the clock saw beside them."""
CAVEAT = "One run of each, beside the others where there are cores for it: these times say where the time went, they are no benchmark."
REST = (
    "Checks are what only a comparison needs: gradients, digests and recorded states; "
    "the rest is starting the interpreter and reading the inputs."
)

OVERRIDES = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Characters that turn the writing's direction: text that shows another order than it has."""
ROUNDING = (
    "Rounding: they part by more than the tight tolerance, and no further than three times as far as the worst twin: the same "
    "framework's own training with every parameter moved by one unit in the last place before it, or, where that does not explain "
    "it, with data, first gradients and every step's parameters moved by rounding."
)


@dataclass(frozen=True)
class Verdict:
    """The run in one sentence."""

    word: str
    kind: str
    """`same`, `differs` or `failed`: what it is coloured by."""
    sentence: str


@dataclass(frozen=True)
class Fact:
    """One of the numbers that stand right below the verdict."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Row:
    """One comparison, spelled."""

    what: str
    pair: str
    compared: str
    tensor: str
    step: str
    index: str
    a: str
    b: str
    difference: str
    allowed: str
    verdict: str
    """`agree`, `differ`, or `rounding`: it differs by more than is allowed, and agrees in float64."""
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def title(name: str) -> str:
    """A backend as its makers spell it."""
    return TITLES.get(name, name)


def listed(names: Iterable[str]) -> str:
    """Names as a sentence lists them.

    >>> listed(["torch"]), listed(["torch", "jax"]), listed(["torch", "tensorflow", "jax"])
    ('PyTorch', 'PyTorch and JAX', 'PyTorch, TensorFlow and JAX')
    """
    *most, last = [title(name) for name in names]
    return f"{', '.join(most)} and {last}" if most else last


def printable(text: str) -> str:
    r"""Text that can be shown anywhere: no terminal colours, control characters, reversed writing or half characters.

    >>> printable("a\x07b\x1b[31m\u202ec")
    'ab\ufffdc'
    """
    return "".join(map(_shown, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)))


def _shown(character: str) -> str:
    if unicodedata.category(character) == "Cs" or unicodedata.bidirectional(character) in OVERRIDES:
        return "\ufffd"
    return "" if unicodedata.category(character) == "Cc" and character not in "\n\t" else character


def small(value: float) -> str:
    """A difference, at two digits.

    >>> small(3.14159e-5), small(1e-10), small(0.0123), small(0.0), small(float("nan"))
    ('3.1e-5', '1e-10', '0.012', '0', 'nan')
    """
    if value == 0 or not math.isfinite(value) or 0.01 <= abs(value) < 1e4:  # noqa: PLR2004
        return f"{value:.2g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def number(value: float) -> str:
    """A loss, a metric or a prediction, at six digits.

    >>> number(0.0333896908), number(12345678.0), number(float("nan"))
    ('0.0333897', '1.23457e+07', 'nan')
    """
    return f"{value:.6g}"


def brief(value: float | None) -> str:
    """Seconds and rates, at three digits.

    >>> brief(0.000393), brief(15.384), brief(1234.5), brief(None)
    ('0.000393', '15.4', '1,234', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"  # noqa: PLR2004


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "step"), counted(300, "step")
    ('1 step', '300 steps')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def finished(result: RunResult) -> list[BackendResult]:
    """The backends that trained to the end."""
    return [backend for backend in result.backends.values() if backend.status == "ok"]


def is_pair(comparison: Mapping[str, Any]) -> bool:
    """Whether two backends are compared, and not one with the reference."""
    return bool(comparison["a"] != "reference")


def ratio(comparison: Mapping[str, Any]) -> float:
    """The worst difference as a share of what is allowed; infinite where it is no number."""
    worst = comparison["worst"]
    if worst is None or not math.isfinite(worst["difference"]):
        return math.inf
    if worst["difference"] == 0:
        return 0.0
    return float(worst["difference"] / worst["allowed"]) if worst["allowed"] else math.inf


def rounded(result: RunResult) -> bool:
    """Whether a run parts by more than the tight tolerance, and no further than twins of one framework do."""
    comparisons = result.comparisons
    return all(c["same"] for c in comparisons) and any(c.get("rounded") for c in comparisons)


def said(comparison: Mapping[str, Any]) -> str:
    """A comparison in a word."""
    if not comparison["same"]:
        return "differ"
    return "rounding" if comparison.get("rounded") else "agree"


def beside_twins(result: RunResult) -> str:
    """How far two part beside the worst twin; empty where twins were not asked."""
    if result.twins is None or result.twins["worst"] is None or not math.isfinite(result.twins["times"]):
        return ""
    found = result.twins["worst"]
    at = "" if found["worst"]["step"] is None else f" at step {found['worst']['step']}"
    return (
        f"{times(result.twins['times'])} times as far as the worst of {counted(result.twins['count'], 'twin')} of one framework "
        f"({WHAT.get(found['what'], found['what'])}, {found['worst']['name']}{at}; {times(result.twins['allowed'])} allowed)"
    )


def times(value: float) -> str:
    """A ratio, at two digits.

    >>> times(0.8312), times(2.0), times(1234.5)
    ('0.83', '2', '1,234')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"  # noqa: PLR2004


def worst(comparisons: Iterable[Mapping[str, Any]], what: str) -> Mapping[str, Any] | None:
    """Of one kind, the comparison that lies furthest from what is allowed."""
    return max((c for c in comparisons if c["what"] == what and c["worst"]), key=ratio, default=None)


def verdict(result: RunResult) -> Verdict:
    """The run in one sentence that a stranger understands."""
    ok = [backend.backend for backend in finished(result)]
    trouble = [_trouble(backend) for backend in result.backends.values() if backend.status != "ok"]
    dead = [note for note in result.notes if note.startswith("Dead")]
    if result.verdict == "failed":
        parts = trouble or dead or ["Not every backend finished."]
        if trouble and ok:
            parts = [*trouble, _agreement(result, ok)]
        return Verdict("FAILED", "failed", " ".join(parts))
    if result.verdict == "differs":
        return Verdict("DIFFERENT", "differs", _agreement(result, ok))
    word = "AGREES" if len(ok) < 2 else "IDENTICAL UP TO ROUNDING" if rounded(result) else "IDENTICAL"  # noqa: PLR2004
    return Verdict(word, "same", _agreement(result, ok))


def _trouble(backend: BackendResult) -> str:
    if backend.status == "diverged":
        at = "" if backend.stopped_at is None else f" at step {backend.stopped_at + 1}"
        return f"{title(backend.backend)} diverged: its loss stopped being a number{at}."
    why = (printable(backend.error).strip().splitlines() or ["it left no result"])[0]
    return f"{title(backend.backend)} failed: {why[:160].rstrip('.')}{'…' if len(why) > 160 else ''}."  # noqa: PLR2004


def _agreement(result: RunResult, ok: Sequence[str]) -> str:
    """What the comparisons say of the backends that finished."""
    if len(ok) < 2:  # noqa: PLR2004
        return _alone(result, ok[0]) if ok else "No backend finished."
    wrong = [c for c in result.comparisons if not c["same"]]
    # A result of an earlier version has no reasons.
    refuted = bool(result.reasons) or result.verdict == "differs"
    if rounded(result) and not refuted:
        return f"{listed(ok)} train this network identically, up to rounding: in {result.precision} they part {beside_twins(result)}."
    if not wrong and not refuted:
        return f"{listed(ok)} train this network identically: {_sizes(result)}."
    if not wrong and result.evidence is not None and result.evidence["verdict"] != "same":
        exact = next((c for c in result.evidence["comparisons"] if not c["same"]), None)
        if exact is not None:
            return (
                f"{listed(ok)} do not train this network identically. In {result.precision} rounding could explain what parts; in "
                f"float64 {listed((exact['a'], exact['b']))} differ: {_clash(exact)}."
            )
    if not wrong:
        why = (result.reasons or result.notes[-1:] or ["see the report."])[0]
        return f"{listed(ok)} do not train this network identically, though every value that was compared agrees: {why}"
    first = min(wrong, key=lambda c: list(WHAT).index(c["what"]) if c["what"] in WHAT else len(WHAT))
    return f"{listed((first['a'], first['b']))} do not train this network identically: {_clash(first)}.{_others(result, wrong)}"


def _others(result: RunResult, wrong: Sequence[Mapping[str, Any]]) -> str:
    """Who agrees where not all do: a pair of which every comparison is the same, each with the reference too."""
    against = {c["b"] for c in wrong if not is_pair(c)}
    apart = {(c["a"], c["b"]) for c in wrong if is_pair(c)}
    pairs = {(c["a"], c["b"]) for c in result.comparisons if is_pair(c)} - apart
    agreeing = [pair for pair in sorted(pairs) if not against & set(pair)]
    return "".join(f" {listed(pair)} agree." for pair in agreeing[:1])


def _alone(result: RunResult, name: str) -> str:
    wrong = next((c for c in result.comparisons if not c["same"]), None)
    if wrong is not None:
        return f"{title(name)} does not compute what the spec means: {_clash(wrong)}."
    if result.reasons:
        return f"{title(name)} does not compute what the spec means: {result.reasons[0]}"
    return (
        f"{title(name)} computes what the spec means, as far as one backend can show it: before training its outputs "
        "and its loss agree with the float64 reference."
    )


def _clash(comparison: Mapping[str, Any]) -> str:
    """The sentence's second half for a comparison that failed."""
    what, found = WHAT.get(comparison["what"], comparison["what"]), comparison["worst"]
    if comparison["missing"]:
        return f"their {what} do not have the same names and shapes ({comparison['missing'][0]})"
    if found is None:
        return f"there was nothing to compare as {what}"
    at = "" if found["step"] is None else f" at step {found['step']}"
    if not math.isfinite(found["difference"]):
        return f"{what}, {found['name']}{at}: {number(found['a'])} and {number(found['b'])}"
    beside = (
        f", {times(found['times'])} times the worst twin"
        if found.get("times") and math.isfinite(found["times"])
        else ""
    )
    return f"{what}, {found['name']}{at}, {small(found['difference'])} apart{beside} where {small(found['allowed'])} is allowed"


def _sizes(result: RunResult) -> str:
    """How far losses and parameters lie apart at worst."""
    pairs = [c for c in result.comparisons if is_pair(c)]
    parts = []
    for what, name in (("loss", "losses nearest to their limit are"), ("state", "parameters")):
        found = worst(pairs, what)
        if found is not None:
            parts.append(
                f"their {name} {small(found['worst']['difference'])} apart ({small(found['worst']['allowed'])} allowed)"
            )
    over = f"over {counted(result.steps - result.start, 'step')} in {result.precision}"
    return f"{over} {' and '.join(parts)}" if parts else over


def conditions(result: RunResult) -> str:
    """Under what the run ran, in one line."""
    before = f" from a checkpoint at {result.start:,}" if result.start else ""
    return " · ".join((
        counted(result.steps - result.start, "step") + before, result.precision, counted(result.threads, "thread"), result.device, f"seed {result.seed}",
    ))  # fmt: skip


def facts(result: RunResult) -> list[Fact]:
    """The sizes below the verdict: worst differences, each with what is allowed."""
    found = []
    wanted = [
        ("loss", "worst loss difference"),
        ("state", "worst parameter difference"),
        ("gradients", "worst gradient difference"),
    ]
    runs = [(result.comparisons, "")]
    if result.evidence is not None and rounded(result):
        runs = [(result.comparisons, f" in {result.precision}"), (result.evidence["comparisons"], " in float64")]
        wanted = wanted[:2]
    for comparisons, where in runs:
        pairs = [c for c in comparisons if is_pair(c)]
        records = [(name, worst(pairs, what)) for what, name in wanted]
        found += [_fact(name + where, record) for name, record in records if record is not None]
    against = [c for c in result.comparisons if not is_pair(c) and c["worst"]]
    if against:
        found.append(_fact("worst against the float64 reference", max(against, key=ratio)))
    return found


def _fact(name: str, record: Mapping[str, Any]) -> Fact:
    found = record["worst"]
    who = listed((record["a"], record["b"])) if is_pair(record) else title(record["b"])
    at = "" if found["step"] is None else f", step {found['step']}"
    return Fact(name, small(found["difference"]), f"{small(found['allowed'])} allowed; {who}, {found['name']}{at}")


def last_losses(backend: BackendResult) -> dict[str, str]:
    """The last loss of each update."""
    return {update: number(losses[-1]) for update, losses in backend.losses.items() if losses}


def updates(result: RunResult) -> list[str]:
    """Every update that some backend has losses of, in the order of the spec."""
    return list(dict.fromkeys(update for backend in result.backends.values() for update in backend.losses))


def metrics(result: RunResult) -> list[str]:
    """Every metric that some backend has."""
    return list(dict.fromkeys(name for backend in result.backends.values() for name in backend.metrics))


def better(result: RunResult, metric: str) -> str:
    """`higher is better`, or nothing where it is not known."""
    way = result.better.get(metric)
    return f"{way} is better" if way else ""


def seconds(backend: BackendResult) -> dict[str, float]:
    """Its seconds by phase, `rest` for what the clock saw beside them."""
    spent = {phase: backend.seconds[phase] for phase in PHASES if phase in backend.seconds}
    rest = backend.seconds.get("wall", 0.0) - sum(spent.values())
    return spent | ({"rest": rest} if rest > 0 else {})


def outcomes(result: RunResult, *, timed: bool = True) -> Table:
    """A row a backend: what became of it and, if asked for, what it took."""
    losses, names = updates(result), metrics(result)
    head = ("backend", "status", *(_loss_title(update, losses) for update in losses), *names)
    head += ("compile s", "first step s", "steps/s", "wall s") if timed else ()
    rows = []
    for name, backend in result.backends.items():
        last, spent = last_losses(backend), backend.seconds
        row = [title(name), backend.status, *(last.get(update, "") for update in losses)]
        row += [number(backend.metrics[metric]) if metric in backend.metrics else "" for metric in names]
        if timed:
            row += [
                brief(spent.get("compile")),
                brief(spent.get("first_step")),
                brief(backend.steps_per_second),
                brief(spent.get("wall")),
            ]
        rows.append(tuple(row))
    return Table(head, tuple(rows))


def _loss_title(update: str, all_of_them: Sequence[str]) -> str:
    return "last loss" if len(all_of_them) == 1 else f"last loss, {update}"


def phases(result: RunResult) -> Table:
    """A row a backend: seconds by phase."""
    have = [phase for phase in PHASES if any(phase in seconds(backend) for backend in result.backends.values())]
    rows = []
    for name, backend in result.backends.items():
        spent = seconds(backend)
        rate = backend.steps_per_second
        step = "" if rate is None else brief(1000 / rate)
        rows.append(
            (
                title(name),
                *(brief(spent.get(phase)) for phase in have),
                brief(backend.seconds.get("wall")),
                step,
                brief(rate),
            )
        )
    return Table(
        ("backend", *(f"{PHASES[phase]} s" for phase in have), "wall s", "median step ms", "steps/s"), tuple(rows)
    )


def scores(result: RunResult) -> Table | None:
    """A row a metric, a column a backend; None where nothing was measured."""
    have = [backend for backend in result.backends.values() if backend.metrics]
    if not have:
        return None
    rows = []
    for metric in metrics(result):
        values = [backend.metrics.get(metric) for backend in have]
        known = [value for value in values if value is not None]
        apart = max(known) - min(known) if len(known) > 1 else None
        rows.append(
            (
                metric,
                better(result, metric),
                *("" if v is None else number(v) for v in values),
                "" if apart is None else small(apart),
            )
        )
    return Table(("metric", "", *(title(backend.backend) for backend in have), "largest difference"), tuple(rows))


def ordered(comparisons: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Comparisons in the order in which a difference would show, the reference's first."""
    order = {what: place for place, what in enumerate(WHAT)}
    return sorted(comparisons, key=lambda c: (order.get(c["what"], len(order)), is_pair(c)))


def rows(comparisons: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Every comparison, spelled."""
    return [_row(c, said(c)) for c in ordered(comparisons)]


def _row(record: Mapping[str, Any], verdict: str) -> Row:
    found = record["worst"]
    missing = tuple(record["missing"])
    pair = listed((record["a"], record["b"])) if is_pair(record) else f"{title(record['b'])} and reference"
    if found is None:
        return Row(record["what"], pair, str(record["compared"]), "", "", "", "", "", "", "", verdict, missing)
    # Enough to tell the two apart, and at most what a float64 holds.
    apart = abs(found["a"] - found["b"])
    digits = (
        17
        if not math.isfinite(apart) or apart == 0
        else min(17, 4 + math.ceil(math.log10(max(abs(found["a"]), abs(found["b"])) / apart)))
    )
    # The pair is spelled backend first where the reference is the other one, so are its values.
    a, b = (found["a"], found["b"]) if is_pair(record) else (found["b"], found["a"])
    step = "" if found["step"] is None else str(found["step"])
    index = "[" + ", ".join(map(str, found["index"])) + "]" if found["index"] else ""
    return Row(
        record["what"], pair, f"{record['compared']:,}", found["name"], step, index, f"{a:.{digits}g}", f"{b:.{digits}g}",
        small(found["difference"]), small(found["allowed"]), verdict, missing,
    )  # fmt: skip


def predictions(result: RunResult, most: int = 12) -> Table | None:
    """A row a prediction, a column a backend: the first values; None where none were asked for."""
    have = [backend for backend in result.backends.values() if backend.predictions]
    if not have:
        return None
    names = dict.fromkeys(name for backend in have for name in backend.predictions)
    found = tuple((name, *(_values(backend.predictions.get(name), most) for backend in have)) for name in names)
    return Table(("prediction", *(title(backend.backend) for backend in have)), found)


def _values(value: Any, most: int) -> str:  # noqa: ANN401 - nested lists of numbers
    flat = list(_flat(value))
    text = ", ".join(number(item) for item in flat[:most])
    return f"{text}, … ({len(flat):,} values)" if len(flat) > most else text


def _flat(value: Any) -> Iterable[float]:  # noqa: ANN401
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, (int, float)):
        yield float(value)


def texts(result: RunResult) -> dict[str, tuple[str, str]]:
    """By backend: the text up to where they part, and from there on."""
    have = {name: printable(backend.text) for name, backend in result.backends.items() if backend.text is not None}
    if not have:
        return {}
    same = 0
    if len(set(have.values())) == 1:
        return {name: (text, "") for name, text in have.items()}
    for characters in zip(*have.values(), strict=False):
        if len(set(characters)) > 1:
            break
        same += 1
    return {name: (text[:same], text[same:]) for name, text in have.items()}


def apart(result: RunResult) -> Table | None:
    """The parameters that are judged apart, why, and how far they drifted; None where there are none."""
    if not result.zero_gradient:
        return None
    drifted = {name: small(result.drift[name]) if name in result.drift else "" for name in result.zero_gradient}
    found = tuple((name, why, drifted[name]) for name, why in result.zero_gradient.items())
    return Table(("parameter", "why its true gradient is zero", "largest difference"), found)


def environment(result: RunResult, harness_version: str) -> Table:
    """A row a fact, a column a backend."""
    backends = list(result.backends.values())
    facts: dict[str, list[str]] = {"harness": [harness_version] * len(backends)}
    packages = dict.fromkeys(name for backend in backends for name in backend.versions)
    for name in packages:
        facts[name] = [backend.versions.get(name, "") for backend in backends]
    for key in dict.fromkeys(key for backend in backends for key in backend.environment):
        if key not in packages:
            facts[key.replace("_", " ")] = [_spell(key, backend.environment.get(key)) for backend in backends]
    return Table(
        ("", *(title(backend.backend) for backend in backends)),
        tuple((name, *values) for name, values in facts.items()),
    )


def _spell(key: str, value: Any) -> str:  # noqa: ANN401 - JSON
    if value is None:
        return ""
    if key.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{value / 1e6:,.0f} MB"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name}={_spell('', item)!s}" if item != "" else f"{name} is empty" for name, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(_spell("", item) for item in value)
    return str(value)


def digests(result: RunResult) -> Table:
    """A row for what the backends were given, a column a backend, and whether all were given the same."""
    backends = [backend for backend in result.backends.values() if backend.digests]
    found = []
    for what in dict.fromkeys(name for backend in backends for name in backend.digests):
        values = [backend.digests.get(what, "") for backend in backends]
        found.append((what, *(value[:16] for value in values), _equal(values)))
    return Table(("SHA-256 of", *(title(backend.backend) for backend in backends), ""), tuple(found))


def _equal(values: Sequence[str]) -> str:
    if len(values) < 2:  # noqa: PLR2004
        return "only one"
    return "equal" if len(set(values)) == 1 else "NOT EQUAL"


def texts_said(found: Mapping[str, tuple[str, str]]) -> str:
    """Whether the texts are the same, and for how long.

    >>> texts_said({"torch": ("abc", ""), "jax": ("abc", "")})
    'Written by greedy decoding after training: PyTorch and JAX write the same 3 characters.'
    """
    head = "Written by greedy decoding after training"
    if len(found) < 2:  # noqa: PLR2004
        return f"{head}."
    same = len(next(iter(found.values()))[0])
    if any(rest for _, rest in found.values()):
        return f"{head}: the same for {counted(same, 'character')}, then they part (marked)."
    return f"{head}: {listed(found)} write the same {counted(same, 'character')}."
