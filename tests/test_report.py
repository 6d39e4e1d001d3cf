"""The report, from run directories that no framework made: what is in it, that it stands alone, that nothing escapes."""

import json
import math
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from harness import report
from harness.errors import CallError
from harness.report import charts, story
from harness.report.markdown import escape, fenced
from harness.report.sources import png, tiled
from harness.results import BackendResult, RunResult

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)> | `x` **b** \x07\x1b[31m \u202e"
STEPS = 4


def backend(name: str, shift: float = 0.0, **changes: Any) -> BackendResult:
    losses = {"discriminator": [2.0 + shift, 1.5, 1.25, 1.0 - shift], "generator": [0.5, 0.75 + shift, 0.625, 0.5]}
    seconds = {
        "import": 1.0,
        "build": 0.5,
        "compile": 0.25,
        "first_step": 0.01,
        "steady": 0.03,
        "data": 0.1,
        "evaluate": 0.2,
        "wall": 3.0,
    }
    whole = BackendResult(
        name, "ok", losses=losses, metrics={"accuracy": 0.97, "top_3": 1.0}, predictions={"five": [[9.5, 1.0 / 3]]}, text=f"hello {HOSTILE}",
        seconds=seconds, step_seconds=[0.01, 0.004, 0.005, 0.006], digests={"parameters": "a" * 64, "batches": "b" * 64, "masks": "c" * 64},
        versions={name: "1.2.3", "python": "3.11.7"},
        environment={"devices": ["cpu"], "threads": 1, "cores": [1], "peak_memory_bytes": 3.2e8, "flags": {"OMP_NUM_THREADS": "1"}},
        recorded=list(range(STEPS)),
    )  # fmt: skip
    return replace(whole, **changes)


def comparison(what: str, a: str, b: str, difference: float, allowed: float, **changes: Any) -> dict[str, Any]:
    worst = {
        "name": "generator" if what == "loss" else "conv1.kernel",
        "step": 2,
        "index": [0, 1],
        "difference": difference,
        "allowed": allowed,
        "a": 0.75,
        "b": 0.75 + difference,
    }
    return {
        "what": what,
        "a": a,
        "b": b,
        "same": difference <= allowed,
        "compared": 8,
        "missing": [],
        "worst": worst,
    } | changes


def run(*backends: BackendResult, **changes: Any) -> RunResult:
    ok = [b.backend for b in backends if b.status == "ok"]
    pairs = [(a, b) for i, a in enumerate(ok) for b in ok[i + 1 :]]
    comparisons = [comparison("forward", "reference", name, 2e-7, 1e-5) for name in ok]
    comparisons += [comparison(what, a, b, 1e-8, 1e-6) for a, b in pairs for what in ("loss", "state")]
    gaps = {"discriminator": [1e-8, 0.0, 0.0, 2e-8], "generator": [0.0, 0.0, 0.0, 0.0]}
    whole = RunResult(
        spec="little_gan", about="Two networks.", directory=Path("elsewhere"), verdict="same" if len(ok) == len(backends) else "failed",
        steps=STEPS, seed=7, precision="float32", threads=1, device="cpu", backends={b.backend: b for b in backends},
        comparisons=comparisons, series={f"{a}~{b}": {"loss": gaps, "state": [[1, 0.0], [2, 1e-9], [4, 3e-7]]} for a, b in pairs},
        notes=[], zero_gradient={"conv1.bias": "batch normalisation (norm1) subtracts it again"}, drift={"conv1.bias": 4e-6},
        better={"accuracy": "higher", "top_k": "higher"},
    )  # fmt: skip
    return replace(whole, **changes)


def directory(path: Path, result: RunResult) -> Path:
    """The run directory that such a run would leave."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "result.json").write_text(json.dumps(result.to_json(), allow_nan=False))
    (path / "spec.yaml").write_text(f"name: {result.spec}\nabout: '{HOSTILE}'\n", encoding="utf-8")
    images = np.linspace(-0.5, 1.5, 6 * 2 * 2).reshape(6, 2, 2, 1).astype(np.float32)
    for name, of in result.backends.items():
        (path / name).mkdir(exist_ok=True)
        (path / name / f"{result.spec}_{name}.py").write_text(
            f'"""{HOSTILE}"""\n\nimport {name}\n\nSTEPS = 4\n', encoding="utf-8"
        )
        if of.status == "ok":
            save_file({"final/images": images}, path / name / "outputs.safetensors")
    return path


def failed_run() -> RunResult:
    trouble = backend("tensorflow", status="failed", error=f"exited with SIGKILL (out of memory?) {HOSTILE}", log=f"line 1\n{HOSTILE}\nlast line",
                      losses={}, metrics={}, predictions={}, text=None, seconds={"wall": 1.5}, step_seconds=[], digests={}, versions={}, environment={}, recorded=[])  # fmt: skip
    return run(backend("torch"), trouble, backend("jax", 1e-8), about=HOSTILE, notes=[f"A note. {HOSTILE}"])


class Page(HTMLParser):
    """What a browser would find: elements, attributes, text by the id of the section around it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section, self.text, self.styles = "", {"": ""}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)
        if tag in ("section", "header"):
            self.section = found["id"] or ""
            self.text[self.section] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.text[self.section] += data


def page(path: Path, result: RunResult) -> Page:
    return Page(report.write(directory(path, result)).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which one backend failed, full of a stranger's text; its report is written."""
    path = directory(tmp_path_factory.mktemp("failed"), failed_run())
    report.write(path)
    return path


def read(path: Path) -> Page:
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_the_page_fetches_nothing(failed: Path) -> None:
    found = read(failed)
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}>"
        for value in attributes.values():
            assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", value or ""))
    assert "url(" not in found.styles
    assert "@import" not in found.styles
    assert not {tag for tag, _ in found.elements} & {"script", "iframe", "object", "embed", "base", "form"}


def test_the_only_addresses_are_names_of_xml_vocabularies(failed: Path) -> None:
    text = (failed / "report.html").read_text(encoding="utf-8")
    found = {address for address in re.findall(r"https?://[^\s\"'<>&)]*", text) if "evil.example" not in address}
    assert found <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_what_a_stranger_wrote_stays_text(failed: Path) -> None:
    found = read(failed)
    assert not [tag for tag, attributes in found.elements if any(name.startswith("on") for name in attributes)]
    shown = "<script>alert(1)</script>"
    for section in ("verdict", "problems", "text", "spec", "programs"):
        assert shown in found.text[section], section
    assert "[31m" not in "".join(found.text.values())
    assert "\u202e" not in "".join(found.text.values())


def test_every_element_is_closed_and_every_id_is_its_own(failed: Path) -> None:
    found = read(failed)
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_verdict_is_first_and_failures_follow(failed: Path) -> None:
    found = read(failed)
    sections = [section for section in found.text if section]
    assert sections[:3] == ["verdict", "problems", "backends"]
    assert found.text["verdict"].split()[0] == "FAILED"
    assert "TensorFlow failed: exited with SIGKILL" in found.text["verdict"]
    assert "PyTorch and JAX train this network identically" in found.text["verdict"]
    assert "last line" in found.text["problems"]


def test_all_sections_are_there_in_order(tmp_path: Path) -> None:
    found = page(tmp_path, run(backend("torch"), backend("tensorflow"), backend("jax")))
    sections = [section for section in found.text if section]
    assert sections == ["verdict", "backends", "losses", "drift", "seconds", "metrics", "predictions", "text", "images",
                        "comparisons", "programs", "spec", "environment"]  # fmt: skip
    assert "PyTorch, TensorFlow and JAX train this network identically" in found.text["verdict"]
    assert "4 steps · float32 · 1 thread · cpu · seed 7" in found.text["verdict"]
    assert "1e-8" in found.text["verdict"]
    assert "1e-6 allowed" in found.text["verdict"]
    assert "no benchmark" in found.text["backends"]
    assert "conv1.bias" in found.text["drift"]
    assert "higher is better" in found.text["metrics"]
    assert "write the same" in found.text["text"]
    assert found.text["environment"].count("equal") >= 3


def test_what_a_run_has_not_is_left_out(tmp_path: Path) -> None:
    alone = backend(
        "torch", metrics={}, predictions={}, text=None, losses={"model": [1.0]}, step_seconds=[0.01], recorded=[0]
    )
    result = run(alone, steps=1, zero_gradient={}, notes=["Only one backend was asked for."])
    path = directory(tmp_path, result)
    (path / "torch" / "outputs.safetensors").unlink()
    found = Page(report.write(path).read_text(encoding="utf-8"))
    assert not {"drift", "metrics", "predictions", "text", "images"} & set(found.text)
    assert "PyTorch computes what the spec means" in found.text["verdict"]


def test_nothing_but_result_json_is_enough(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(failed_run().to_json()))
    found = Page(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "no programs" in found.text["programs"]


def test_no_backend_finished(tmp_path: Path) -> None:
    result = run(
        backend(
            "torch",
            status="failed",
            error="",
            losses={},
            metrics={},
            predictions={},
            text=None,
            seconds={},
            step_seconds=[],
        )
    )
    assert "PyTorch failed: it left no result." in page(tmp_path, result).text["verdict"]


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"no result\.json"):
        report.write(tmp_path)


def test_a_diverged_run_keeps_its_nan(tmp_path: Path) -> None:
    gone = backend("jax", status="diverged", stopped_at=2, error="the loss became nan at step 3",
                   losses={"discriminator": [2.0, 1.5, math.nan], "generator": [0.5, math.inf, math.nan]})  # fmt: skip
    found = page(tmp_path, run(backend("torch"), gone, drift={"conv1.bias": math.nan}))
    assert "JAX diverged: its loss stopped being a number at step 3." in found.text["verdict"]
    assert "nan" in found.text["backends"]
    assert "stopped being a number; its curve ends before that" in found.text["losses"]
    assert "nan" in found.text["drift"]


def test_nan_in_a_comparison_is_shown(tmp_path: Path) -> None:
    worst = comparison("state", "torch", "jax", math.nan, 1e-6, same=False)
    result = run(backend("torch"), backend("jax"), verdict="differs", comparisons=[worst])
    found = page(tmp_path, result)
    assert found.text["verdict"].split()[0] == "DIFFERENT"
    assert "conv1.kernel at step 2: 0.75 and nan" in found.text["verdict"]
    assert "differ" in found.text["comparisons"]


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    lost = comparison(
        "state", "torch", "jax", 0.0, 1e-6, same=False, missing=["only torch has dense9.kernel"], worst=None, compared=0
    )
    found = page(tmp_path, run(backend("torch"), backend("jax"), verdict="differs", comparisons=[lost]))
    assert "only torch has dense9.kernel" in found.text["verdict"]
    assert "only torch has dense9.kernel" in found.text["comparisons"]


def test_digests_that_differ_are_not_called_equal(tmp_path: Path) -> None:
    other = backend("jax", digests={"parameters": "d" * 64, "batches": "b" * 64, "masks": "c" * 64})
    found = page(tmp_path, run(backend("torch"), other, verdict="differs", notes=["Their digests differ."]))
    assert "NOT EQUAL" in found.text["environment"]
    assert "do not train this network identically, though every value that was compared agrees" in found.text["verdict"]


def test_rounding_that_float64_explains_is_told_apart_from_a_difference(tmp_path: Path) -> None:
    parted = comparison("loss", "torch", "jax", 0.5, 0.6, rounded=True)
    parted["worst"] |= {"twin": 0.2, "times": 2.5}
    exact = [comparison("loss", "torch", "jax", 3e-15, 1e-10)]
    evidence = {"verdict": "same", "directory": "float64-evidence", "comparisons": exact, "steps": 4}
    twins = {"count": 3, "allowed": 3, "times": 2.5, "worst": parted}
    result = run(backend("torch"), backend("jax"), comparisons=[parted], evidence=evidence, twins=twins)
    directory(tmp_path / "float64-evidence", run(backend("torch"), backend("jax"), precision="float64"))
    found = page(tmp_path, result)
    assert found.text["verdict"].startswith("\nIDENTICAL UP TO ROUNDING")
    assert "2.5 times as far as the worst of 3 twins of one framework (loss" in found.text["verdict"]
    assert "3 allowed" in found.text["verdict"]
    assert "rounding" in found.text["comparisons"]
    assert "in float64" in found.text["exact"]
    assert (tmp_path / "charts" / "float64-drift.svg").exists()


def test_who_agrees_is_said_where_another_differs(tmp_path: Path) -> None:
    apart = [comparison("loss", "torch", name, 0.5, 1e-6) for name in ("tensorflow", "jax")]
    agree = comparison("loss", "tensorflow", "jax", 1e-9, 1e-6)
    three = [backend(name) for name in ("torch", "tensorflow", "jax")]
    found = page(tmp_path, run(*three, verdict="differs", comparisons=[*apart, agree]))
    assert "PyTorch and TensorFlow do not train this network identically" in found.text["verdict"]
    assert "TensorFlow and JAX agree." in found.text["verdict"]


def test_two_that_agree_up_to_rounding_are_said_to_beside_one_that_failed(tmp_path: Path) -> None:
    parted = comparison("loss", "torch", "jax", 0.5, 0.6, rounded=True)
    parted["worst"] |= {"twin": 0.2, "times": 2.5}
    twins = {"count": 2, "allowed": 3, "times": 2.5, "worst": parted}
    lost = backend("tensorflow", status="failed", error="out of memory", losses={})
    found = page(
        tmp_path, run(backend("torch"), lost, backend("jax"), comparisons=[parted], twins=twins, verdict="failed")
    )
    assert "TensorFlow failed: out of memory." in found.text["verdict"]
    assert "PyTorch and JAX train this network identically, up to rounding" in found.text["verdict"]


def test_no_headline_says_that_they_agree_where_float64_or_a_digest_says_that_they_do_not() -> None:
    parted = comparison("loss", "torch", "jax", 0.5, 0.6, rounded=True)
    parted["worst"] |= {"twin": 0.2, "times": 2.5}
    twins = {"count": 2, "allowed": 3, "times": 2.5, "worst": parted}
    lost = backend("tensorflow", status="failed", error="out of memory", losses={})
    exact = {
        "verdict": "differs",
        "directory": "float64-evidence",
        "comparisons": [comparison("loss", "torch", "jax", 0.1, 1e-10)],
    }
    two = (backend("torch"), backend("jax"))
    why = "In float64 the same programs do not agree over the first 4 steps either: this is not rounding."
    refuted = run(
        *two, lost, comparisons=[parted], twins=twins, verdict="failed", evidence=exact | {"steps": 4}, reasons=[why]
    )
    said = story.verdict(refuted).sentence
    assert "do not train this network identically" in said
    assert "up to rounding" not in said

    digests = "The backends did not start from the same masks: their digests differ."
    other = "The checkpoint is of a training of 9 steps, this one has 4: its cosine schedule spans another length."
    tight = comparison("loss", "torch", "jax", 1e-9, 1e-6)
    found = story.verdict(
        run(*two, comparisons=[tight], verdict="differs", notes=[digests, other], reasons=[digests])
    ).sentence
    assert found.endswith(digests), "not the last note, whatever that is of"

    products = (
        "The products of torch are not of bfloat16 values: its outputs before training are 1e-9 from the exact ones."
    )
    alone = comparison("forward", "reference", "torch", 1e-9, 1e-6)
    found = story.verdict(
        run(two[0], comparisons=[alone], verdict="differs", notes=[products], reasons=[products])
    ).sentence
    assert "does not compute what the spec means" in found


def test_texts_are_marked_where_they_part() -> None:
    result = run(backend("torch", text="the cat"), backend("jax", text="the car"))
    assert story.texts(result) == {"torch": ("the ca", "t"), "jax": ("the ca", "r")}


def test_the_same_run_gives_the_same_markdown_and_charts(failed: Path, tmp_path: Path) -> None:
    report.write(directory(tmp_path, failed_run()))
    assert (tmp_path / "report.md").read_bytes() == (failed / "report.md").read_bytes()
    names = sorted(file.name for file in (failed / "charts").glob("*.svg"))
    assert names == ["drift.svg", "loss-difference-discriminator.svg", "loss-difference-generator.svg",
                     "loss-of-discriminator.svg", "loss-of-generator.svg", "seconds.svg"]  # fmt: skip
    for name in names:
        assert (tmp_path / "charts" / name).read_bytes() == (failed / "charts" / name).read_bytes()


def test_markdown_tells_the_same_story_without_markup_of_a_stranger(failed: Path) -> None:
    text = (failed / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "<img" not in outside
    headings = ["Failures and notes", "Backends", "Losses", "Parameters", "Time", "Metrics", "Predictions", "Text samples", "Images",
                "Comparisons", "Programs", "Spec", "Environment"]  # fmt: skip
    assert re.findall(r"^## (.*)$", outside, flags=re.MULTILINE) == headings
    assert text.startswith("# little\\_gan: FAILED")
    for file in re.findall(r"\]\(([^)]+)\)", outside):
        assert (failed / file).exists(), file
    for table in re.findall(r"(?:^\|.*\n)+", outside, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_fence_is_longer_than_any_inside_it() -> None:
    assert fenced("a\n````\nb", "text").splitlines()[0] == "`````text"
    assert "\n" not in escape("two\nlines")


def test_charts_pass_the_checks_that_drawing_leaves_out() -> None:
    for figure in charts.figures(run(backend("torch"), backend("jax", 1e-8), backend("tensorflow"))):
        for width in (charts.WIDE, charts.NARROW):
            alt.Chart.from_dict(figure.draw(width))


def test_a_long_series_keeps_its_extremes() -> None:
    points = [(step, math.sin(step / 50)) for step in range(1, 20_001)]
    points[12_344] = (12_345, 99.0)
    points[777] = (778, -99.0)
    kept = charts.thin(points)
    assert len(kept) <= charts.LONG + 2
    assert (12_345, 99.0) in kept
    assert (778, -99.0) in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)


def test_zeros_have_a_place_on_a_log_scale() -> None:
    figure = next(
        f for f in charts.figures(run(backend("torch"), backend("jax"))) if f.name == "loss-difference-generator"
    )
    assert "4 of 4 differences are exactly zero" in figure.caption
    drawn = [
        row["value"] for name, rows in figure.draw(800)["datasets"].items() if name.startswith("line") for row in rows
    ]
    assert min(drawn) > 0


def test_colours_are_fixed_and_differ() -> None:
    assert len({charts.colour(name) for name in ("torch", "tensorflow", "jax")}) == 3
    assert charts.colour("torch", 2) == charts.colour("torch", 0)


def test_images_are_clipped_and_tiled() -> None:
    images = np.array([[[[-1.0]]], [[[0.5]]], [[[2.0]]], [[[math.nan]]]], dtype=np.float32)
    grid = tiled(images)
    assert grid.shape == (5, 7, 1)
    assert [int(grid[y, x, 0]) for y, x in ((1, 1), (1, 3), (1, 5), (3, 1))] == [0, 128, 255, 0]
    file = png(grid)
    assert struct.unpack(">II", file[16:24]) == (7, 5)
    data = file[file.index(b"IDAT") + 4 : file.index(b"IEND") - 8]
    assert len(zlib.decompress(data)) == 5 * (7 + 1)


def printed(result: RunResult, width: int = 80) -> str:
    into = StringIO()
    report.print_result(result, Console(file=into, width=width))
    return into.getvalue()


def test_the_terminal_says_the_verdict_first_and_fits_80_columns(failed: Path) -> None:
    lines = printed(RunResult.read(failed)).splitlines()
    assert lines[0].startswith("FAILED  little_gan")
    assert [line for line in lines if len(line) > 80 and not line.startswith(("report: ", "  | "))] == []
    text = "\n".join(lines)
    assert "\x1b" not in text
    for word in ("PyTorch", "TensorFlow", "failed", "last loss, discriminator", "accuracy", "compile s", "steps/s", "wall s", "torch, jax", "1e-8",
                 "conv1.kernel at 2", "agree", "note: A note.", "  | last line", "Judged apart"):  # fmt: skip
        assert word in text, word
    assert lines[-1] == f"report: {failed / 'report.html'}"


def test_a_long_name_gives_way_at_its_front() -> None:
    long = comparison("state", "torch", "tensorflow", 1e-8, 1e-6)
    long["worst"]["name"] = "decoder_block1.attention1." * 4 + "key_bias"
    text = printed(run(backend("torch"), backend("tensorflow"), comparisons=[long]))
    assert max(map(len, text.splitlines())) <= 80
    assert "key_bias at 2" in text
    assert "decoder_block1.attention1.decoder" not in text


def test_the_terminal_marks_what_differs() -> None:
    result = run(
        backend("torch"), backend("jax"), verdict="differs", comparisons=[comparison("loss", "torch", "jax", 0.5, 1e-6)]
    )
    text = printed(result)
    assert text.startswith("DIFFERENT")
    assert "DIFFER" in text
    assert "report:" not in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_without_a_network_shows_the_page(failed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (failed / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    tags = re.findall(r"<([a-z]+)[\s>]", done.stdout)
    assert tags.count("svg") == 12  # six charts, each wide and narrow
    assert "script" not in tags
    assert tags.count("img") == 2  # the samples of two backends
    assert "<title>FAILED: little_gan</title>" in done.stdout
