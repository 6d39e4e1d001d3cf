"""Carrying a change from one program to another: every planted fault of a spec, and what must be refused. Needs no framework."""

import ast
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import api, emit
from harness.backend import BACKENDS
from harness.carry import carried
from harness.check import mutants
from harness.check.mutants import MUTANTS, plant
from harness.programs import emitted, written


@pytest.fixture(autouse=True)
def unformatted() -> Iterator[None]:
    # Formatting takes most of the time, and layout is lost on the way anyway.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emit, "formatted", lambda text: text)
        patch.setattr(mutants, "formatted", lambda text: text)
        yield


def tree(text: str) -> str:
    return ast.dump(ast.parse(text))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_fault_of_the_plain_program_becomes_that_of_the_observed_one(backend: str) -> None:
    program = api.load("digits_mlp").compile()
    honest, observed = (emitted(program, backend, "float64", observe=observe) for observe in (False, True))
    carried_over = 0
    for mutant in MUTANTS[BACKENDS.index(backend) :: len(BACKENDS)]:
        text = plant(mutant, program, backend)
        if text is None:
            continue
        found = carried(honest, observed, text)
        expected = plant(mutant, program, backend, observe=True)
        assert found is not None, mutant.name
        assert expected is not None
        # What does nothing may be written down or not.
        assert tree(found.replace("        x = x\n", "")) == tree(expected.replace("        x = x\n", "")), mutant.name
        carried_over += 1
    assert carried_over >= 12


@pytest.mark.parametrize(
    ("base", "other", "given", "expected"),
    [
        # What touches: a note behind a changed statement.
        ("x = f(x)", "x = f(x)\nvalues['f'] = x", "x = g(x)", "x = g(x)\nvalues['f'] = x"),
        # Both changed one statement, in different places.
        ("def l(a):\n return f(a)", "def l(a):\n return f(a), seen", "def l(a):\n return f(a, 2)", "def l(a):\n return (f(a, 2), seen)"),
        ("def l(a):\n return f(a)", "def l(a):\n return f(a), seen", "def l(a):\n return 2 * f(a)", "def l(a):\n return (2 * f(a), seen)"),
        # Statements that changed places.
        ("a = f(1)\nb = g(2)\nc = 3", "a, s = f(1)\nb, t = g(2)\nc = 3", "b = g(2)\na = f(1)\nc = 3", "b, t = g(2)\na, s = f(1)\nc = 3"),
        # A variable of another name is the one that is noted.
        ("def c(x):\n y = f(x)\n z = g(y)\n return z", "def c(x):\n y = f(x)\n values['f'] = y\n z = g(y)\n return z",
         "def c(x):\n w = f(x)\n z = g(w)\n return z", "def c(x):\n w = f(x)\n values['f'] = w\n z = g(w)\n return z"),
        # A statement that is left out: what is noted is the value before it.
        ("def c(x):\n x = f(x)\n x = g(x)\n return x", "def c(x):\n x = f(x)\n values['f'] = x\n x = g(x)\n values['g'] = x\n return x",
         "def c(x):\n x = f(x)\n return x", "def c(x):\n x = f(x)\n values['f'] = x\n values['g'] = x\n return x"),
        # A statement that is new and sets what is noted counts to the one before; another one does not.
        ("def c(x):\n x = f(x)\n return x", "def c(x):\n x = f(x)\n values['f'] = x\n return x",
         "def c(x):\n x = f(x)\n x = round(x)\n return x", "def c(x):\n x = f(x)\n x = round(x)\n values['f'] = x\n return x"),
        ("def s():\n l.backward()\n o.step()", "def s():\n l.backward()\n g = grads()\n o.step()",
         "def s():\n l.backward()\n halve()\n o.step()", "def s():\n l.backward()\n g = grads()\n halve()\n o.step()"),
        # Functions are found by their names, wherever they are.
        ("def a(): return 1\ndef b(): return 2", "def a(): return 1, s\ndef b(): return 2, s",
         "def b(): return 3\ndef a(): return 1", "def b():\n return (3, s)\ndef a():\n return (1, s)"),
    ],
)  # fmt: skip
def test_both_changes_are_in_the_result(base: str, other: str, given: str, expected: str) -> None:
    found = carried(base, other, given)
    assert found is not None
    assert tree(found) == tree(expected)


@pytest.mark.parametrize(
    ("base", "other", "given"),
    [("x = f(1)", "x = f(2)", "x = f(3)"), ("x = f(1)\ny = 1", "y = 1", "x = f(2)\ny = 1")],
)
def test_two_changes_of_the_same_piece_are_refused(base: str, other: str, given: str) -> None:
    assert carried(base, other, given) is None


def test_a_smaller_program_may_lack_what_was_changed() -> None:
    base, smaller = "x = f(x)\nx = g(x)\nx = h(x)", "x = f(x)"
    both = base.replace("f(", "e(").replace("h(", "e(")
    assert carried(base, smaller, both, lenient=True) == "x = e(x)"
    assert carried(base, smaller, base.replace("h(", "e("), lenient=True) == smaller
    assert carried(base, smaller, both) is None


NET = """
def forward(self, image: Tensor, masks: dict | None = None) -> Tensor:
    x = self.dense1(image)
    x = relu(x)
    x = x * masks["dropout1"] if masks else x
    return self.logits(x)


def loss_fn(model, batch) -> Tensor:
    \"\"\"What falls.\"\"\"
    return cross_entropy(model(batch["image"]), batch["label"])
"""
SEEN = """
def forward(self, image: Tensor, masks: dict | None = None) -> tuple[Tensor, dict]:
    values = {}
    x = self.dense1(image)
    values["dense1"] = x
    x = relu(x)
    values["relu1"] = x
    x = x * masks["dropout1"] if masks else x
    values["dropout1"] = x
    x = self.logits(x)
    values["logits"] = x
    return x, values


def loss_fn(model, batch) -> tuple[Tensor, dict]:
    \"\"\"What falls, and what is seen.\"\"\"
    values = {}
    logits, values["logits"] = model(batch["image"])
    return cross_entropy(logits, batch["label"]), values
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("image: Tensor, masks: dict | None = None) -> Tensor", "image, masks=None)", 'values["dense1"] = x'),
        ("What falls.", "Cross-entropy.", "values"),
        ("    return cross_entropy(", "    found = cross_entropy(", None),
        ('    x = x * masks["dropout1"] if masks else x\n', '    if masks:\n        x = x * masks["dropout1"]\n', None),
        ("    x = relu(x)\n", "    x: Tensor = relu(x)\n", None),
        ("    x = self.dense1(image)\n", "    returned_h = self.dense1(image)\n    x = returned_h + 0 * returned_h\n", "returned_h + 0 * returned_h"),
    ],
)  # fmt: skip
def test_the_same_in_other_words_is_carried(old: str, new: str, expected: str | None) -> None:
    assert old in NET
    text = NET.replace(old, new)
    if "found = " in text:
        text = text.rstrip() + "\n    return found\n"
    found = carried(NET, SEEN, text)
    assert found is not None
    tree(found)
    assert expected is None or expected.replace('"', "'") in found
    if "if masks:" in new:
        assert found.index("if masks:") < found.index("values['dropout1'] = x")
    if "x: Tensor = relu" in new:
        assert found.index("x: Tensor = relu(x)") < found.index("values['relu1'] = x")


STATEMENTS = st.lists(st.sampled_from([f"{v} = {f}({w}, {n})" for v in "xy" for f in "fg" for w in "xy" for n in (1, 2)]), max_size=7)  # fmt: skip


@settings(deadline=None)
@given(STATEMENTS, STATEMENTS)
def test_a_change_of_one_side_alone_is_taken_whole(base: list[str], changed: list[str]) -> None:
    before, after = "\n".join(base), "\n".join(changed)
    for found in (carried(before, after, before), carried(before, before, after), carried(before, after, after)):
        assert found is not None
        assert tree(found) == tree(after)


def test_the_lines_that_somebody_changed_are_numbered() -> None:
    program = api.load("linear_regression").compile()
    text = emitted(program, "torch", "float64")
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if "mse_loss" in line)
    changed = "\n".join([*lines[:at], lines[at].replace("mse_loss", "l1_loss"), *lines[at + 1 :]]) + "\n"
    own = written("torch", changed, "mine.py", [program])
    assert own.base == text, "of all emitted programs, the one in its precision is most like it"
    assert own.changed == [(at + 1, lines[at].strip().replace("mse_loss", "l1_loss"))]
    assert own.adapted(program, "float64") == changed
    single = own.adapted(program, "float32")
    assert "l1_loss" in single
    assert tree(single) == tree(emitted(program, "torch", "float32").replace("mse_loss", "l1_loss"))
    gone = written("torch", "\n".join([*lines[:at], *lines[at + 1 :]]) + "\n", "mine.py", [program])
    ((line, said),) = gone.changed
    assert said == "(left out before this line)"
    assert line == at + 1 + 3, "the next statement is behind two empty lines and a comment or a definition's head"
