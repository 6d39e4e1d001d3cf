"""A run's report as one HTML page that asks the network for nothing: styles, charts and images are inside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, YamlLexer

from harness.report import story
from harness.report.charts import Drawing, colour, inline
from harness.report.sources import Sources
from harness.results import RunResult

SECTIONS = {
    "backends": "Backends", "losses": "Losses", "drift": "Parameters", "exact": "In float64", "seconds": "Time", "metrics": "Metrics",
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


def page(result: RunResult, sources: Sources, drawings: Sequence[Drawing]) -> str:
    """The whole page."""
    drawn: dict[str, list[Drawn]] = {}
    for drawing in drawings:
        drawn.setdefault(drawing.figure.section, []).append(drawn_for_page(drawing))
    texts = story.texts(result)
    content = {
        "result": result,
        "verdict": story.verdict(result),
        "facts": story.facts(result),
        "conditions": story.conditions(result),
        "failed": [backend for backend in result.backends.values() if backend.status != "ok"],
        "outcomes": story.outcomes(result, timed=False),
        "phases": story.phases(result),
        "caveat": f"{story.CAVEAT} {story.REST}",
        "drawn": drawn,
        "apart": story.apart(result),
        "scores": story.scores(result),
        "predictions": story.predictions(result),
        "texts": texts,
        "texts_said": story.texts_said(texts) if texts else "",
        "images": {
            name: f"data:image/png;base64,{base64.b64encode(image).decode()}" for name, image in sources.images.items()
        },
        "images_said": sources.images_said,
        "rows": story.rows(result.comparisons),
        "rounding": story.ROUNDING if any(c.get("rounded") for c in result.comparisons) else "",
        "evidence": result.evidence,
        "evidence_rows": story.rows(result.evidence["comparisons"]) if result.evidence else [],
        "means": story.MEANS,
        "programs": [
            (
                name,
                file,
                len(text.splitlines()),
                Markup(highlight(story.printable(text), PythonLexer(), _formatter(f"{name}-L"))),  # noqa: S704 - Pygments escapes
            )
            for name, (file, text) in sources.programs.items()
        ],
        "spec": Markup(highlight(story.printable(sources.spec), YamlLexer(), _formatter(""))),  # noqa: S704
        "environment": story.environment(result, sources.harness),
        "digests": story.digests(result),
        "title": story.title,
        "colours": {name: colour(name, place) for place, name in enumerate(result.backends)},
        "style": style() + Markup(_code_colours()),  # noqa: S704 - ours
    }
    content["sections"] = {key: name for key, name in SECTIONS.items() if _present(key, content)}
    return template("page.html").render(content)


def template(name: str) -> Template:
    """One of the package's own pages; what a spec says reaches it escaped and printable."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_finalize, trim_blocks=True, lstrip_blocks=True,
        loader=FunctionLoader(_read),
    )  # fmt: skip
    return environment.get_template(name)


def style() -> Markup:
    """The style of every page."""
    return Markup(_read("page.css"))  # noqa: S704 - ours


def _present(section: str, content: dict[str, Any]) -> bool:
    """Whether the run has anything for a section; comparisons, programs, spec and environment are always there."""
    has = {
        "losses": content["drawn"].get("losses"),
        "drift": content["drawn"].get("drift") or content["apart"],
        "exact": content["drawn"].get("exact"),
        "metrics": content["scores"],
        "predictions": content["predictions"],
        "text": content["texts"],
        "images": content["images"],
    }
    return bool(has.get(section, True))


def drawn_for_page(drawing: Drawing) -> Drawn:
    """A chart as a page shows it."""
    wide, narrow = (Markup(text) for text in inline(drawing))  # noqa: S704 - Vega escapes its text
    return Drawn(drawing.figure.title, drawing.figure.caption, wide, narrow)


def _formatter(lines: str) -> Any:  # noqa: ANN401 - Pygments' methods have no types
    return HtmlFormatter(cssclass="code", linespans=lines, wrapcode=True)


def _code_colours() -> str:
    """The highlighting of a light page, and of a dark one."""
    styles: list[Any] = [HtmlFormatter(style=style, nobackground=True) for style in ("friendly", "github-dark")]
    light, dark = (style.get_style_defs(".code") for style in styles)
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _finalize(value: Any) -> Any:  # noqa: ANN401 - whatever a template shows
    return story.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read(name: str) -> str:
    return resources.files("harness.report").joinpath(name).read_text(encoding="utf-8")
