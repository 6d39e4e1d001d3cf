"""A run's result for people: on a terminal, as Markdown, and as one page that needs nothing beside it."""

from pathlib import Path

from harness.drawing import Artist
from harness.report import charts
from harness.report.markdown import markdown
from harness.report.page import page
from harness.report.sources import sources
from harness.report.terminal import print_result
from harness.results import RunResult

__all__ = ["print_result", "write"]


def write(directory: Path, artist: Artist | None = None) -> Path:
    """Write report.md, charts/ and report.html from the run directory alone; returns the page's path.

    `artist`: one that has been started already; left out, one of its own. Raises CallError where the directory is not a
    finished run.
    """
    if artist is None:
        with Artist() as own:
            return write(directory, own)
    artist.start()
    result = RunResult.read(directory)
    found = sources(directory, result)
    drawings = charts.render(charts.figures(result, found.exact), artist)
    folder = directory / "charts"
    folder.mkdir(exist_ok=True)
    texts = {drawing.figure.name: charts.svg(drawing) for drawing in drawings}
    pictures = {name: artist.png(text, scale=2) for name, text in texts.items()}  # of two pixels a point
    for name, text in texts.items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
    for name, image in found.images.items():
        (folder / f"images-{name}.png").write_bytes(image)
    (directory / "report.md").write_text(
        markdown(result, found, [drawing.figure for drawing in drawings]), encoding="utf-8"
    )
    path = directory / "report.html"
    path.write_text(page(result, found, drawings), encoding="utf-8")
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture.result())
    return path
