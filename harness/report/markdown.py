"""A run's report in Markdown, its charts as files beside it. The same run gives the same text."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from harness.report import story
from harness.report.charts import Figure
from harness.report.sources import Sources
from harness.results import RunResult


def markdown(result: RunResult, sources: Sources, figures: Sequence[Figure]) -> str:
    """The whole report."""
    verdict = story.verdict(result)
    parts = [f"# {escape(result.spec)}: {verdict.word}", f"**{escape(verdict.sentence)}**"]
    if result.about:
        parts.append(escape(result.about))
    parts.append(escape(story.conditions(result)))
    facts = story.facts(result)
    if facts:
        parts.append(
            "\n".join(f"- {escape(fact.name)}: **{escape(fact.value)}** ({escape(fact.detail)})" for fact in facts)
        )
    parts += _problems(result)
    parts += [
        "## Backends",
        table(story.outcomes(result, timed=False)),
        table(story.phases(result)),
        f"{story.CAVEAT} {story.REST}",
    ]
    for section, heading in (
        ("losses", "## Losses"),
        ("drift", "## Parameters"),
        ("exact", "## The same in float64"),
        ("seconds", "## Time"),
    ):
        drawn = [figure for figure in figures if figure.section == section]
        if drawn:
            parts.append(heading)
        for figure in drawn:
            parts += [f"![{escape(figure.title)}](charts/{quote(figure.name)}.svg)", escape(figure.caption)]
        apart = story.apart(result) if section == "drift" else None
        if apart is not None:
            parts += [
                "Judged apart, so that rounding noise in them neither fails a comparison nor hides anything:",
                table(apart),
            ]
    scores, predictions = story.scores(result), story.predictions(result)
    if scores is not None:
        parts += ["## Metrics", table(scores)]
    if predictions is not None:
        parts += ["## Predictions", table(predictions)]
    parts += _texts(result)
    if sources.images:
        parts.append("## Images")
        parts += [
            f"{escape(story.title(name))}:\n\n![samples of {escape(name)}](charts/images-{quote(name)}.png)"
            for name in sources.images
        ]
        parts.append(escape(sources.images_said))
    parts += ["## Comparisons", *_comparisons(result)]
    parts += [
        "## Programs",
        "\n".join(f"- [{escape(file)}]({quote(name)}/{quote(file)})" for name, (file, _) in sources.programs.items())
        or "None.",
    ]
    parts += ["## Spec", fenced(sources.spec, "yaml")]
    parts += ["## Environment", table(story.environment(result, sources.harness)), table(story.digests(result))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _problems(result: RunResult) -> list[str]:
    parts = []
    failed = [backend for backend in result.backends.values() if backend.status != "ok"]
    if failed or result.notes:
        parts.append("## Failures and notes" if failed else "## Notes")
    for backend in failed:
        parts.append(f"**{escape(story.title(backend.backend))} {escape(backend.status)}**: {escape(backend.error)}")
        if backend.log.strip():
            parts.append(fenced(backend.log.rstrip(), "text"))
    if result.notes:
        parts.append("\n".join(f"- {escape(note)}" for note in result.notes))
    return parts


def _texts(result: RunResult) -> list[str]:
    found = story.texts(result)
    if not found:
        return []
    parts = ["## Text samples", escape(story.texts_said(found))]
    return parts + [
        f"{escape(story.title(name))}:\n\n{fenced(same + rest, 'text')}" for name, (same, rest) in found.items()
    ]


def _comparisons(result: RunResult) -> list[str]:
    rounding = any(comparison.get("rounded") for comparison in result.comparisons)
    parts = [_rows(story.rows(result.comparisons)), story.ROUNDING if rounding else ""]
    if result.evidence is not None:
        said = f"The same run in float64 ({result.evidence['verdict']}, in {result.evidence['directory']}):"
        parts += [escape(said), _rows(story.rows(result.evidence["comparisons"]))]
    return parts


def _rows(rows: Sequence[story.Row]) -> str:
    head = ("what", "pair", "tensors", "worst tensor", "step", "index", "a", "b", "difference", "allowed", "")
    cells = tuple(
        (r.what, r.pair, r.compared, "; ".join((r.tensor, *r.missing)).strip("; "), r.step, r.index, r.a, r.b, r.difference, r.allowed,
         r.verdict.upper() if r.verdict == "differ" else r.verdict)
        for r in rows
    )  # fmt: skip
    return table(story.Table(head, cells)) if cells else "Nothing was compared."


def table(content: story.Table) -> str:
    """A table with its numbers to the right."""
    if not content.rows:
        return ""
    numeric = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?|nan|-?inf|")
    rule = [
        "---:" if i and all(numeric.fullmatch(row[i]) for row in content.rows) else "---"
        for i in range(len(content.head))
    ]
    lines = [content.head, tuple(rule), *content.rows]
    return "\n".join(
        "| " + " | ".join(cell if line is lines[1] else escape(cell) for cell in line) + " |" for line in lines
    )


def escape(text: str) -> str:
    r"""Text on one line in which nothing is markup.

    >>> print(escape("<b>conv_1|*x*</b>"))
    &lt;b&gt;conv\_1\|\*x\*&lt;/b&gt;
    """
    line = " ".join(story.printable(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!$])", r"\\\1", line)


def fenced(text: str, language: str) -> str:
    """Text as it is, in a fence that is longer than any in it."""
    shown = story.printable(text).rstrip("\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    return f"{fence}{language}\n{shown}\n{fence}"
