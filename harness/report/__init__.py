"""A run's result for people: on a terminal, as Markdown, and as one page that needs nothing beside it."""

from pathlib import Path

from harness.drawing import Artist, DrawingError
from harness.errors import CallError
from harness.files import error_text, make_folder, write_bytes, write_text
from harness.report import charts
from harness.report.charts import Drawing
from harness.report.markdown import markdown
from harness.report.page import page
from harness.report.sources import sources
from harness.report.terminal import print_result
from harness.results import RunResult

__all__ = ["print_result", "write"]


def write(directory: Path, artist: Artist | None = None) -> Path:
    """Write report.md, charts/ and report.html from the run directory alone; returns the page's path.

    `artist`: one that has been started already; left out, one of its own. Raises CallError where the directory is not a
    finished run or cannot be written to, and DrawingError where charts cannot be drawn: the report is then there without them.
    """
    if artist is None:
        with Artist() as own:
            return write(directory, own)
    result = RunResult.read(directory)
    found = sources(directory, result)
    figures = charts.figures(result, found.exact)
    undrawn: DrawingError | None = None
    drawings: list[Drawing] = []
    try:
        artist.start()
        drawings = charts.render(figures, artist)
    except DrawingError as error:
        undrawn = error
    try:
        folder = make_folder(directory / "charts")
        texts = {drawing.figure.name: charts.svg(drawing) for drawing in drawings}
        pictures = {name: artist.png(text, scale=2) for name, text in texts.items()}  # of two pixels a point
        for name, text in texts.items():
            write_text(folder / f"{name}.svg", text)
        for name, image in found.images.items():
            write_bytes(folder / f"images-{name}.png", image)
        write_text(directory / "report.md", markdown(result, found, [drawing.figure for drawing in drawings]))
        path = directory / "report.html"
        write_text(path, page(result, found, drawings))
        for name, picture in pictures.items():
            write_bytes(folder / f"{name}.png", picture.result())
    except OSError as error:
        raise CallError(f"the report cannot be written: {error_text(error)}") from None
    except DrawingError as error:
        undrawn = error
    if undrawn is not None:
        raise DrawingError(f"the report lacks charts: {undrawn}")
    return path
