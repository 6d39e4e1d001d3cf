"""A run's result for people: on a terminal, as Markdown, and as one page that needs nothing beside it."""

from pathlib import Path

from harness.report import charts
from harness.report.markdown import markdown
from harness.report.page import page
from harness.report.sources import sources
from harness.report.terminal import print_result
from harness.results import RunResult

__all__ = ["prepare", "print_result", "write"]


def prepare() -> None:
    """Have everything loaded that writes a report: most of what the first one takes, and it can be done before there is a result."""
    charts.start()


def write(directory: Path) -> Path:
    """Write report.md, charts/ and report.html from the run directory alone; returns the page's path.

    Raises CallError where the directory is not a finished run.
    """
    result = RunResult.read(directory)
    found = sources(directory, result)
    drawings = [charts.render(figure) for figure in charts.figures(result, found.exact)]
    folder = directory / "charts"
    folder.mkdir(exist_ok=True)
    for drawing in drawings:
        text, name = charts.svg(drawing), drawing.figure.name
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
        (folder / f"{name}.png").write_bytes(charts.png(text))
    for name, image in found.images.items():
        (folder / f"images-{name}.png").write_bytes(image)
    (directory / "report.md").write_text(
        markdown(result, found, [drawing.figure for drawing in drawings]), encoding="utf-8"
    )
    path = directory / "report.html"
    path.write_text(page(result, found, drawings), encoding="utf-8")
    return path
