"""A standalone file per framework that shows one difference: the observed program with its inputs written into it.

It needs nothing but the framework and NumPy, prints what it got beside what it should have got, and exits with DIFFERS
where that is another: ready for an upstream bug report.
"""

import ast
import base64
import importlib
import re
import zlib
from textwrap import indent
from types import ModuleType

import numpy as np
from safetensors.numpy import load_file

import harness
from harness.backend import PACKAGES, Array, Arrays
from harness.check.dissect import Finding
from harness.check.subject import ROWS, Subject, part
from harness.emit import formatted
from harness.expressions import Call, Name
from harness.syntax import parse

DIFFERS = 2
"""The exit status of a file that gets another value; 1 is Python's own, of a program that does not run."""
FEW = 32
"""Numbers that are written out; more than these are packed."""


def standalone(subject: Subject, backend: str, observed: str, found: Finding, expected: Array) -> str:
    """One framework's file. `expected`: the tensor of the finding, in canonical axes. Raises ValueError where it cannot be shown.

    `observed`: the program that returns every value, of whoever wrote it.
    """
    observed = _titled(formatted(observed), found, subject, backend)
    words = importlib.import_module(f"backends.{subject.workers[backend].backend}.reproduce")
    got, axes, before = _got(subject, observed, found, words)
    head, _, main = observed.partition("def main(run: Path) -> None:\n")
    body = _body(main)
    if not main or "INPUTS" not in body or "START" not in body or "observed" not in body:
        raise ValueError("its main(run) is not the emitted one")
    steps = found.step if found.mode == "training" else 0
    when = "in evaluation mode" if not steps else f"{'after' if found.phase in ('optimizer', 'state') else 'of'} step {steps}"  # fmt: skip
    allowed = found.worst.allowed
    lines = [
        head.rstrip(), "", "",
        "INPUTS = {", *(f"    {name!r}: {_literal(a)}," for name, a in _used(subject, found).items()), "}",
        "START = {", *(f"    {name!r}: {_literal(a)}," for name, a in part(subject.start, "state/").items()), "}",
        f"EXPECTED = {_literal(np.asarray(expected))}", "", "",
        "def main() -> None:", body, indent(before, "    "),
        f"    got = {got}" + (f".transpose({axes})" if axes and len(axes) > 1 else "") + ".reshape(EXPECTED.shape)",
        "    apart = np.abs(got.astype(np.float64) - EXPECTED)",
        "    worst = np.unravel_index(np.argmax(apart), apart.shape)",
        f"    print({f'{found.tensor} {when}'!r}, list(map(int, worst)))",
        '    print("got     ", got[worst])',
        '    print("expected", EXPECTED[worst])',
        f'    print("apart   ", apart[worst], "where {allowed:.3g} would be rounding")',
        f"    sys.exit(0 if apart[worst] <= {allowed!r} else {DIFFERS})",
        "", "",
        'if __name__ == "__main__":', "    main()", "",
    ]  # fmt: skip
    return formatted(_with_unpacking("\n".join(lines)))


def runnable(subject: Subject, backend: str, program: str) -> str:
    """One framework's file of a program: it trains and prints its losses; they, or what it raises, are the report.

    Raises ValueError where the program's main is not the emitted one.
    """
    head, _, main = formatted(program).partition("def main(run: Path) -> None:\n")
    body = _body(main, prints=True)
    if not main or "INPUTS" not in body or "START" not in body:
        raise ValueError("its main(run) is not the emitted one")
    folder = subject.folder / "inputs"
    inputs = load_file(folder / "data.safetensors") | load_file(folder / "batches.safetensors")
    lines = [
        f"# {subject.program.name} in {PACKAGES[backend][0]}: the losses that it prints, or what it raises, are what is reported.",
        f"# Written by harness {harness.__version__}; needs the framework, NumPy and safetensors.",
        head.rstrip(), "", "",
        "INPUTS = {", *(f"    {name!r}: {_literal(a)}," for name, a in inputs.items()), "}",
        "START = {", *(f"    {name!r}: {_literal(a)}," for name, a in part(subject.start, "state/").items()), "}", "", "",
        "def main() -> None:", body, "", "",
        'if __name__ == "__main__":', "    main()", "",
    ]  # fmt: skip
    return formatted(_with_unpacking("\n".join(lines)))


def _with_unpacking(text: str) -> str:
    """The text with what unpacks its arrays, if any are packed."""
    if "_unpacked(" not in text:
        return text
    text = text.replace("\nINPUTS = {", f"\n{UNPACK}\n\nINPUTS = {{", 1)
    return text.replace("\nimport sys\n", "\nimport sys\nimport zlib\n", 1).replace(
        "\nimport ", "\nimport base64\nimport ", 1
    )


def _titled(observed: str, found: Finding, subject: Subject, backend: str) -> str:
    """The program with another docstring."""
    tree = parse(observed)
    end = tree.body[0].end_lineno if ast.get_docstring(tree) else 0
    title = (
        f"{subject.program.name} in {PACKAGES[subject.workers[backend].backend][0]}: {found.tensor}, and what it should be.\n\n"
        f"Written by harness {harness.__version__}; needs the framework and NumPy. Exits with {DIFFERS} where they differ.\n"
    )
    return f'"""{title}"""\n' + "\n".join(observed.splitlines()[end or 0 :]) + "\n"


def _body(main: str, *, prints: bool = False) -> str:
    """The main of an emitted program, with what the file has in it instead of a run's files, and its `prints` or none."""
    body = main.partition("\n\nif __name__")[0].rstrip()
    body = re.sub(r"inputs = load_file\(.*?\) \| load_file\(.*?batches\.safetensors.\s*\)\n", "inputs = INPUTS\n", body, flags=re.DOTALL)  # fmt: skip
    body = re.sub(r"load_file\(run / .inputs. / .parameters\.safetensors.\)", "START", body)
    body = re.sub(r"(loss(?:es)?), _(\)*) = (train|compiled)_step", r"\1, observed\2 = \3_step", body)
    return body if prints else re.sub(r"\n {8}print\(step \+ 1.*", "", body)


UNPACK = """
def _unpacked(text: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    raw = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(raw, dtype).reshape(shape).copy()
"""


def _used(subject: Subject, found: Finding) -> Arrays:
    """The examples that are read, and nothing else."""
    folder = subject.folder / "inputs"
    data, batches = load_file(folder / "data.safetensors"), load_file(folder / "batches.safetensors")
    order = batches.pop("order")
    if found.mode == "evaluation":
        (question,) = [q for name, q in subject.questions.items() if found.tensor.startswith(f"{name}.")]
        return {"order": order[:0]} | {key: data[key][:ROWS] for key in question.fields.values()}
    order = order[: found.step]
    rows = sorted({int(row) for row in order.ravel() if row >= 0})
    place = {row: i for i, row in enumerate(rows)}
    own = {"order": np.array([[place.get(int(row), -1) for row in one] for one in order], order.dtype)}
    own |= {name: a[: found.step] for name, a in batches.items()}
    return own | {name: a[rows] for name, a in data.items() if name.startswith("train.")}


def _got(subject: Subject, observed: str, found: Finding, words: ModuleType) -> tuple[str, tuple[int, ...] | None, str]:
    """The expression of the tensor, the axes that take it to the canonical ones, and what is done before it."""
    program, tensor = subject.program, found.tensor
    if found.mode == "evaluation":
        (question,) = [q for name, q in subject.questions.items() if tensor.startswith(f"{name}.")]
        call = question.expression
        if not isinstance(call, Call) or not all(isinstance(a, Name) for a in call.arguments):
            raise ValueError(f"a file of its own cannot call {call}")
        mode, model, given = words.MODEL
        target = model if len(program.networks) == 1 else f"{model}.{call.network}"
        inputs = ", ".join(given.format(f"INPUTS[{question.fields[str(a)]!r}]") for a in call.arguments)
        return words.evaluated(tensor.removeprefix(f"{call}.")), None, f"{mode}\n_, values = {target}({inputs})".strip()
    if found.phase == "forward":
        update, rest = tensor.split("/", 1)
        return words.value(update, *rest.split(".", 1)), None, ""
    if found.phase == "data":
        return words.batch(found.step - 1, "".join(f"[{key!r}]" for key in tensor.split("/"))), None, ""
    if found.phase == "loss":
        return words.loss(None if len(program.updates) == 1 else tensor.removeprefix("loss/")), None, ""
    if found.phase == "backward":
        update, name = tensor.split("/", 1)
        path, axes = _place(observed, name)
        return words.gradient(update, path), axes, ""
    if tensor in program.parameters:
        path, axes = _place(observed, tensor)
        return words.state(path, learned=program.parameters[tensor].learned), axes, ""
    raise ValueError(f"a file of its own cannot show {tensor}")


def _place(observed: str, name: str) -> tuple[str, tuple[int, ...]]:
    """A canonical parameter's path, and the axes that take the framework's array to the canonical one."""
    for node in ast.walk(parse(observed)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("PARAMETERS", "STATISTICS"):
            table = ast.literal_eval(node.value)
            if name in table:
                path, axes = table[name]
                return path, tuple(int(axis) for axis in np.argsort(axes))
    raise ValueError(f"the program's tables do not have {name}")


def _literal(array: Array) -> str:
    if array.size <= FEW:
        return f"np.array({array.tolist()!r}, {str(array.dtype)!r})"
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return f"_unpacked({packed!r}, {array.dtype.str!r}, {array.shape!r})"
