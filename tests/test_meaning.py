"""What differs in meaning between two programs: the lines that do, and none where only the writing differs. No framework."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from harness import api, emit
from harness.check.diff import DiffResult
from harness.check.mutants import MUTANTS, plant
from harness.check.places import EVERY
from harness.graph import Program
from harness.meaning import hunks, unified
from harness.programs import emitted, written
from harness.report.ladder import print_diff

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@pytest.fixture(scope="module")
def lstm() -> Program:
    return api.load("digits_lstm").compile()


def number_of(text: str, part: str) -> int:
    """The line, from 1, that a part of a text is in."""
    return text[: text.index(part)].count("\n") + 1


def test_a_word_that_was_left_out_is_one_line_of_each(lstm: Program) -> None:
    honest = emitted(lstm, "torch", "float32")
    own = honest.replace(", batch_first=True", "").replace("import math\n", "import math\n\n# by hand\n")
    line = "        self.lstm1 = nn.LSTM(8, 64"
    found = written("torch", own, "mine.py", [lstm]).hunks
    (hunk,) = found
    assert hunk.where == "Classifier.__init__"
    assert hunk.before == ((number_of(honest, "self.lstm1 = "), f"{line}, batch_first=True)"),)
    assert hunk.after == ((number_of(own, "self.lstm1 = "), f"{line})"),)
    assert unified(found, "torch, as emitted", "mine.py") == [
        "--- torch, as emitted", "+++ mine.py", "@@ Classifier.__init__",
        f"-{hunk.before[0][0]} {line}, batch_first=True)", f"+{hunk.after[0][0]} {line})",
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "tensorflow", "jax"])
def test_a_convention_that_is_wrong_everywhere_is_shown_everywhere(backend: str) -> None:
    program = api.load("digits_cnn").compile()
    text = plant(BY_NAME["momentum convention swapped"], program, backend, "float32", place=EVERY)
    assert text is not None
    found = written(backend, text, "mine.py", [program]).hunks
    lines = [line for hunk in found for line in hunk.after]
    assert [re.findall(r"momentum=([\d.]+)", line) for _, line in lines] == [
        ["0.9" if backend == "torch" else "0.1"]
    ] * 2
    assert [number for number, _ in lines] == [
        n for n, line in enumerate(text.splitlines(), start=1) if "momentum=" in line and "Norm" in "".join(text.splitlines()[n - 2 : n])
    ]  # fmt: skip
    assert all(hunk.where == "Classifier.__init__" for hunk in found)


def rewritten(text: str) -> str:
    """The same program as another hand would lay it out."""
    text = re.sub(r'^"""[\s\S]*?"""\n', '"""My own."""\n', text)
    text = re.sub(r'( +)"""[^"]*"""\n', "", text)
    text = re.sub(r"^ +#.*\n", "", text, flags=re.MULTILINE)
    text = text.replace(") -> Tensor:", "):").replace("image: Tensor", "image").replace("import math\nimport sys\n", "import sys\nimport math\n")  # fmt: skip
    text = text.replace("from torch import Tensor, nn", "from torch import nn\nfrom torch import Tensor")
    text = text.replace("betas=(0.9, 0.999),\n        eps=1e-08,", "eps=1e-8, betas=(.9, .999),")
    return text.replace("        x = ", "        # a step\n\n        x = (\n            ").replace("[:, -1]\n", "[:, -1])\n").replace("8, 8)\n", "8, 8))\n").replace("if masks else x\n", "if masks else x)\n")  # fmt: skip


def test_another_layout_has_nothing_to_show(lstm: Program) -> None:
    honest = emitted(lstm, "torch", "float32")
    own = rewritten(honest)
    assert sum(a != b for a, b in zip(honest.splitlines(), own.splitlines(), strict=False)) > 50
    assert "betas=(.9" in own
    assert written("torch", own, "mine.py", [lstm]).hunks == []
    assert unified([], "a", "b") == []
    changed = own.replace("eps=1e-8", "eps=1e-7")
    (hunk,) = written("torch", changed, "mine.py", [lstm]).hunks
    assert [line.strip() for _, line in hunk.after] == ["eps=1e-7, betas=(.9, .999),"]
    assert "        eps=1e-08," in [line for _, line in hunk.before]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("import a\nimport b\n", "import b\nimport a\n", []),
        ("import a\n", "import a as b\n", [("import a", "import a as b")]),
        ("from a import b, c\n", "from a import c\nfrom a import b\n", []),
        ("x = 'a'\n", 'x = ("a")\n', []),
        ("f(a=1, b=2)\n", "f(b=2, a=1)\n", []),
        ("f(1, 2)\n", "f(2, 1)\n", [("f(1, 2)", "f(2, 1)")]),
        ("x = 1\ny = 2\n", "y = 2\nx = 1\n", [("", "y = 2"), ("y = 2", "")]),
        ("if a:\n    b()\n", "if a:\n    pass\nelse:\n    b()\n", [("    b()", "    pass|    b()")]),
        ("if a:\n    b()\n", "if not a:\n    b()\n", [("if a:", "if not a:")]),
        ("@f\ndef g(x: int) -> int:\n    return x\n", "@f\ndef g(x):\n    'it'\n    return x\n", []),
        ("@f\ndef g(x):\n    return x\n", "def g(x):\n    return x\n", [("@f", "")]),
        ("def g(x):\n    return x\n", "def g(x):\n    return x\n\n\ng(1)\n", [("", "g(1)")]),
    ],
)
def test_what_counts_is_what_python_reads(before: str, after: str, expected: list[tuple[str, str]]) -> None:
    found = hunks(before, after)
    assert [tuple("|".join(text for _, text in side) for side in (h.before, h.after)) for h in found] == expected


def test_hunks_are_printed_and_are_json(lstm: Program) -> None:
    own = emitted(lstm, "torch", "float32").replace(", batch_first=True", "")
    found = tuple(written("torch", own, "mine.py", [lstm]).hunks)
    result = DiffResult("digits_lstm", (Path("run"),), ("torch",), "float64", 1, None, changes={"torch": found})
    number = number_of(own, "self.lstm1 = ")
    out = io.StringIO()
    print_diff(result, Console(file=out, width=120))
    assert f"+{number}         self.lstm1 = nn.LSTM(8, 64)\n" in out.getvalue()
    assert "+++ torch's program\n@@ Classifier.__init__\n" in out.getvalue()
    ((hunk,),) = json.loads(json.dumps(result.to_json()))["changes"].values()
    assert hunk == {
        "where": "Classifier.__init__",
        "before": [{"line": number, "text": "        self.lstm1 = nn.LSTM(8, 64, batch_first=True)"}],
        "after": [{"line": number, "text": "        self.lstm1 = nn.LSTM(8, 64)"}],
    }


def test_the_emitted_program_has_nothing_to_show(lstm: Program) -> None:
    for backend in ("torch", "tensorflow", "jax"):
        text = emitted(lstm, backend, "float64")
        assert hunks(text, emit.formatted(text)) == []
