"""A run's report as one HTML page that asks the network for nothing: styles, charts and images are inside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, YamlLexer

from harness.report import story
from harness.report.charts import WIDE, Figure, colour, inline_svg
from harness.report.sources import Sources
from harness.results import RunResult

NARROW = 360  # pixels of a chart on a phone: the text of one that is scaled down cannot be read
SECTIONS = {
    "backends": "Backends", "losses": "Losses", "drift": "Parameters", "seconds": "Time", "metrics": "Metrics",
    "predictions": "Predictions", "text": "Text samples", "images": "Images", "comparisons": "Comparisons",
    "programs": "Programs", "spec": "Spec", "environment": "Environment",
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A chart, for wide screens and for narrow ones."""

    title: str
    caption: str
    wide: Markup
    narrow: Markup


def page(result: RunResult, sources: Sources, figures: Sequence[Figure]) -> str:
    """The whole page."""
    drawn: dict[str, list[Drawn]] = {}
    for figure in figures:
        drawn.setdefault(figure.section, []).append(_drawn(figure))
    texts = story.texts(result)
    content = {
        "result": result,
        "verdict": story.verdict(result),
        "facts": story.facts(result),
        "conditions": story.conditions(result),
        "failed": [backend for backend in result.backends.values() if backend.status != "ok"],
        "outcomes": story.outcomes(result),
        "phases": story.phases(result),
        "caveat": f"{story.CAVEAT} {story.REST}",
        "drawn": drawn,
        "apart": story.apart(result),
        "scores": story.scores(result),
        "predictions": story.predictions(result),
        "texts": texts,
        "texts_said": story.texts_said(texts) if texts else "",
        "images": {name: f"data:image/png;base64,{base64.b64encode(image).decode()}" for name, image in sources.images.items()},
        "images_said": sources.images_said,
        "rows": story.rows(result.comparisons),
        "evidence": result.evidence,
        "evidence_rows": story.rows(result.evidence["comparisons"]) if result.evidence else [],
        "what": story.WHAT,
        "programs": [
            (name, file, len(text.splitlines()), Markup(highlight(text, PythonLexer(), _formatter(f"{name}-L"))))  # noqa: S704 - Pygments escapes
            for name, (file, text) in sources.programs.items()
        ],
        "spec": Markup(highlight(story.printable(sources.spec), YamlLexer(), _formatter(""))),  # noqa: S704
        "environment": story.environment(result, sources.harness),
        "digests": story.digests(result),
        "title": story.title,
        "colours": {name: colour(name, place) for place, name in enumerate(result.backends)},
        "style": Markup(_read("page.css") + _code_colours()),  # noqa: S704 - ours
    }
    content["sections"] = {key: name for key, name in SECTIONS.items() if _present(key, content)}
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_finalize, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("page.html")).render(content)


def _present(section: str, content: dict[str, Any]) -> bool:
    """Whether the run has anything for a section; comparisons, programs, spec and environment are always there."""
    has = {
        "losses": content["drawn"].get("losses"),
        "drift": content["drawn"].get("drift") or content["apart"],
        "metrics": content["scores"],
        "predictions": content["predictions"],
        "text": content["texts"],
        "images": content["images"],
    }
    return bool(has.get(section, True))


def _drawn(figure: Figure) -> Drawn:
    wide, narrow = (Markup(inline_svg(figure, width)) for width in (WIDE, NARROW))  # noqa: S704 - Vega escapes its text
    return Drawn(figure.title, figure.caption, wide, narrow)


def _formatter(lines: str) -> HtmlFormatter[str]:
    return HtmlFormatter(cssclass="code", linespans=lines, wrapcode=True)


def _code_colours() -> str:
    """The highlighting of a light page, and of a dark one."""
    light = HtmlFormatter(style="friendly", nobackground=True).get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark", nobackground=True).get_style_defs(".code")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _finalize(value: Any) -> Any:  # noqa: ANN401 - whatever a template shows
    return story.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read(name: str) -> str:
    return resources.files("harness.report").joinpath(name).read_text(encoding="utf-8")
