"""Specs and files that mean harm, or are merely wrong: none may end in a traceback, run code, write elsewhere, or take long.

`python tests/hostile.py [--specs N] [--files N] [--seed S]` makes them from the seed, gives each to `harness emit` for every
backend and then has its data prepared, in a process of its own with bounds on memory and processor time, and prints a table
of what happened. Exit status 1 where anything did that must not; `--keep DIR` keeps those cases.

Arrays may take 200 MB here (`HARNESS_MEMORY`): what is within a budget is allowed, whatever it takes.
"""

import argparse
import ast
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from harness import cli, spec
from harness.backend import BACKENDS
from harness.data.inputs import prepare
from harness.errors import HarnessError
from harness.programs import emitted
from harness.resolve import compile_spec

SECONDS, BYTES = 5.0, 10**9
BAD = ("traceback", "code was run", "written elsewhere", "more than 5 s", "more than 1 GB")
CANARY = "canary_of_the_hostile_test"
Case = tuple[str, str, dict[str, bytes]]
"""Kind, the spec's text, and the files beside it."""


@dataclass
class Outcome:
    """What became of a case."""

    kind: str
    verdict: str
    """`refused`, `accepted`, or one of BAD."""
    seconds: float
    megabytes: float
    said: str = ""


BASE = """
name: hostile
about: A base that is right.
data: {dataset: inline, batch: 2, values: {x: [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]], y: [[1.0], [2.0], [3.0]], c: [0, 1, 2]}}
blocks:
  part:
    parameters: {units: ~, rate: 0.5}
    layers: [{dense: $units}, relu, {dropout: $rate}]
networks:
  first:
    inputs: [x]
    layers: [{dense: {units: 4, name: a, kernel_init: he_normal}}, {part: {units: 4}}, {residual: [{dense: 4}]}, {dense: 1}]
  second:
    inputs: [x]
    layers: [{repeat: {times: 2, layers: [{dense: 3}, tanh]}}, {dense: {units: 3, name: logit}}]
training:
  steps: 3
  updates:
    - name: one
      loss: {mse: {predictions: first(x), targets: y}}
      over: first
      optimizer: {adam: {learning_rate: 0.01}}
      schedule: {cosine: {warmup: 1}}
    - name: two
      loss: [{softmax_cross_entropy: {logits: second(x), labels: c}}]
      over: second
      optimizer: {adamw: {learning_rate: 0.01, weight_decay: 0.1}}
      clip: {global_norm: 1.0}
evaluation: {metrics: [{accuracy: {logits: second(x), labels: c}}]}
"""
PAYLOADS = [
    f"__import__('os').system('touch {CANARY}')", f"'''\\n__import__('os').system('touch {CANARY}')\\n'''", f'"""; open("{CANARY}", "w"); """',
    f"{{__import__('os').system('touch {CANARY}')}}", f'\\\\"; {CANARY}()', f"x); {CANARY}(", f"$({CANARY})", f"`touch {CANARY}`", f"x\n{CANARY}()", f"#\n{CANARY}()\n",
    f"\u2028{CANARY}()", f"\x0c{CANARY}()", f"\\N{{LINE FEED}}{CANARY}()", f"%({CANARY})s", f"{{0.__class__}}{CANARY}",
]  # fmt: skip
WORDS = [
    "none", "None", "true", "f", "F", "values", "DEVICE", "self", "class", "lambda", "__class__", "__init__", "forward", "call", "output", "é", "名", "a b", "a-b", "1a", "", " ",
    "a" * 300, "x", "torch", "masks", "order", "items", "..", "/", "\x00", "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "\U0010ffff", "net", "x y", "a.b", "a/b", "../../a", "~",
]  # fmt: skip
NUMBERS: list[object] = [
    0, -1, 1, 2, 3, 7, 10**3, 10**4, 10**5, 10**6, 10**7, 10**9, 2**31 - 1, 2**31, 2**63, 10**18, 10**30, 10**99, -(10**18), 0.0, -0.0, 0.5, 1.0, 1.5, 1e-320, 1e-40, 1e-10, 1e30, 1e39, 1e308,
    -1e308, float("inf"), float("-inf"), float("nan"), True, False, None, "1e400", "0x10", "1_000", "0o17", "9" * 5000, "1:30", ".5", "+.inf",
]  # fmt: skip
EXPRESSIONS = [
    "first(first(x))", "first(x, x)", "second(first(x))", "x", "y", "nobody", "first()", "first(x=1)", "first(*x)", "first(x)(y)", "x.y", "x[0]", "x + 1", "lambda: 0", "first(x) if x else y", "(x for x in x)",
    "first(" * 90 + "x" + ")" * 90, "(" * 400, "first(x" + ", x" * 300 + ")", "1e400", "-1", "None", "'a'", "first(1)", 'f"{x}"', "[x]", "await x", "x := 1", *PAYLOADS,
]  # fmt: skip
TEXTS = [
    "a: &a [*a]", "!!python/object/apply:os.system ['touch " + CANARY + "']", "!!python/name:os.system", "%YAML 9.9\n---\na: 1", "%TAG ! tag:x,1:\n---\n!a b", "--- a\n--- b", "a: 1\n...\nb: 2", "\ufeffa: 1", "a: |\n  x\n y", "? a\n: b", "a: b: c",
    '"\\U00110000"', '"\\ud800"', "\x00", "\x1b[31m", "a: !!binary ////", "a: !!float x", "a: !!int x", "a: !!timestamp 9999-99-99", "a: 2001-99-99", "<<: *x", "a: *nobody", "- - - - - a", "{" * 80, "[" * 3000, "a: " + "- " * 70 + "x", "#" * 1000, "a:\tb", "\ta: b", "'", '"', "a: 'x\n\n\n", "!", "&", "*", "|", ">", "@a", "`a`", "a: %b", "a: [1, 2", "{a: 1, a: 2}", "a: 1\na: 2", "? {a: b}\n: c", "!!set {a, b}", "!!omap [a: 1]",
]  # fmt: skip


class Mine(random.Random):
    """Random choices, with the ones that are wanted often."""

    def scalar(self) -> object:
        """Any hostile value."""
        kind = self.randrange(6)
        if kind == 0:
            return self.choice(PAYLOADS)
        if kind == 1:
            return self.choice(WORDS)
        if kind == 2:
            return self.choice(EXPRESSIONS)
        if kind == 3:
            return self.choice(
                [
                    [],
                    {},
                    [[]],
                    [1, [2]],
                    {"a": 1},
                    [None],
                    ["relu"] * 3,
                    {"relu": None},
                    [[1.0] * 5] * 5,
                    {"x": {"y": {"z": {}}}},
                ]
            )
        return self.choice(NUMBERS)


def loaded(text: str) -> Any:
    """A spec's text as plain data."""
    from harness.source import _composed, _Reader  # noqa: PLC0415 - without expanding blocks

    return _Reader([]).read(_composed(text, "base"), ()).plain()


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path of nested data."""
    yield path
    if isinstance(data, (dict, list)):
        for key, item in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(item, (*path, key))


def changed(rng: Mine, data: Any) -> Any:
    """Data with one place changed."""
    data = json.loads(json.dumps(data))
    path = rng.choice([path for path in places(data) if path])
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    key, what = path[-1], rng.randrange(7)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[str(rng.choice([*WORDS, *PAYLOADS]))] = holder.pop(key)
    elif what == 2 and isinstance(holder, dict):
        holder[
            str(rng.choice([*WORDS, "name", "inputs", "layers", "times", "dropout", "convert", "noise", "test"]))
        ] = rng.scalar()
    elif what == 3:
        holder[key] = [holder[key]] * rng.choice([0, 1, 2, 50])
    elif what == 4 and isinstance(holder, list):
        holder.insert(
            key,
            rng.choice(
                [rng.scalar(), holder[key], "flatten", {"dense": rng.choice(NUMBERS)}, {"reshape": rng.scalar()}]
            ),
        )
    else:
        holder[key] = rng.scalar()
    return data


def dumped(data: Any) -> str:
    """As YAML, which JSON is but for its infinities and its largest numbers."""
    return json.dumps(data).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def structures(rng: Mine, bases: list[Any]) -> Case:
    """A right spec with some places changed."""
    data = rng.choice(bases)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        data = changed(rng, data) if isinstance(data, dict) and data else {"a": rng.scalar()}
    return "structure", dumped(data), {}


def numbers(rng: Mine, bases: list[Any]) -> Case:
    """A right spec with hostile numbers where numbers are."""
    data = json.loads(json.dumps(rng.choice(bases)))
    found = [path for path in places(data) if path]
    for path in rng.sample(found, len(found)):
        holder = data
        for step in path[:-1]:
            holder = holder[step]
        if isinstance(holder[path[-1]], (int, float)):
            holder[path[-1]] = rng.choice(NUMBERS)
            if rng.random() < 0.6:
                break
    return "number", dumped(data), {}


def texts(rng: Mine, bases: list[Any]) -> Case:
    """A right spec's text with characters changed, or text that is YAML's own trouble."""
    text = rng.choice([BASE, *(json.dumps(base) for base in bases[1:3])])
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at, what = rng.randrange(len(text)), rng.randrange(5)
        if what == 0:
            text = text[:at] + rng.choice(TEXTS) + text[at:]
        elif what == 1:
            text = text[:at]
        elif what == 2:
            text = (
                text[:at]
                + chr(
                    rng.choice(
                        [
                            0,
                            9,
                            10,
                            13,
                            27,
                            34,
                            39,
                            58,
                            91,
                            123,
                            0x85,
                            0x2028,
                            0xFEFF,
                            0xFFFE,
                            rng.randrange(0x20, 0x2FF),
                        ]
                    )
                )
                + text[at + 1 :]
            )
        elif what == 3:
            text = text[:at] + text[rng.randrange(len(text)) :]
        else:
            text = rng.choice(TEXTS) + "\n" + text
        text = text or "a"
    return "text", text, {}


def large(rng: Mine, _bases: list[Any]) -> Case:
    """What would take no end, or memory without bound."""
    n = 10 ** rng.randrange(2, 10)
    deep = rng.randrange(5, 300)
    layer = rng.choice([
        f"repeat: {{times: {n}, layers: [relu]}}", f"dense: {n}", f"repeat: {{times: {min(n, 9999)}, layers: [{{repeat: {{times: {min(n, 9999)}, layers: [{{dense: 3}}]}}}}]}}",
        "residual: [{" * deep + "relu: ~" + "}]" * deep, f"reshape: {[1] * deep}", f"reshape: [{n}, {n}]", f"dropout: {{rate: 0.5, per: {'channel' if n % 2 else 'value'}}}",
    ])  # fmt: skip
    text = BASE.replace("[{repeat: {times: 2, layers: [{dense: 3}, tanh]}}", f"[{{{layer}}}")
    what = rng.randrange(10)
    if what == 0:
        text = BASE.replace("steps: 3", f"steps: {n}").replace("batch: 2", f"batch: {rng.choice([1, 2, 3])}")
    elif what == 1:
        blocks = "".join(
            f"  b{i}: {{layers: [{', '.join([f'b{i + 1}'] * rng.choice([1, 2, 3]))}]}}\n" for i in range(deep)
        )
        text = BASE.replace("blocks:\n", f"blocks:\n{blocks}  b{deep}: {{layers: [relu]}}\n").replace(
            "[{repeat: {times: 2,", "[b0, {repeat: {times: 2,"
        )
    elif what == 2:
        values = ", ".join(["v0: first(x)"] + [f"v{i + 1}: 'second(v{i}, v{i})'" for i in range(deep)])
        text = BASE.replace("      loss: {mse", f"      values: {{{values}}}\n      loss: {{mse")
    elif what == 3:
        text = BASE.replace("batch: 2", f"batch: 2, noise: {{z: {{shape: [{n}, {rng.choice([1, n])}]}}}}")
    elif what == 4:
        rows = [[0.5, 1.0]] * min(n, 10**5)
        text = BASE.replace("[[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]]", json.dumps(rows))
    elif what == 5:
        field = rng.choice(["name: ", "about: ", "# "])
        text = BASE.replace(
            "name: hostile\n",
            f"{field}{'a' * min(n, 3 * 10**6)}\nname: hostile\n"
            if field != "name: "
            else f"name: {'a' * min(n, 3 * 10**6)}\n",
        )
    elif what == 6:
        levels = "".join(
            f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10)}]\n" if i else "k0: &k0 [1]\n"
            for i in range(rng.randrange(2, 12))
        )
        text = levels + BASE
    elif what == 7:
        data = f"{{dataset: random, examples: {n}, batch: 2, fields: {{x: {{shape: [{rng.choice([2, n])}]}}, y: {{shape: [1]}}, c: {{classes: {rng.choice([3, n])}}}}}}}"
        text = BASE.replace(BASE[BASE.index("{dataset") : BASE.index("\nblocks")], data)
    return "large", text, {}


def header(shape: str, kind: str = "<f8") -> bytes:
    """The beginning of an .npy file."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def array(value: Any, *, pickled: bool = False) -> bytes:
    """An .npy file."""
    file = io.BytesIO()
    npy.write_array(file, np.asanyarray(value), allow_pickle=pickled)
    return file.getvalue()


class Evil:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def npz(rng: Mine) -> bytes:
    """An npz file that is wrong somehow, or is right and then changed."""
    file = io.BytesIO()
    members: dict[str, bytes] = {
        "x.npy": array(np.ones((4, 2))),
        "y.npy": array(np.ones((4, 1))),
        "c.npy": array([0, 1, 2, 0]),
    }
    which = rng.choice(list(members))
    members[which] = rng.choice([
        lambda: members[which], lambda: header(rng.choice(["(3, 2)", "(-1,)", "(10**9,)", "(1000000000000, 8)", f"({CANARY}(),)", "()", "(0,)", "[4]", "None", "(4.5,)", "(1,)*99"])),
        lambda: header("(4, 2)", rng.choice(["O", "<M8", "|S5", "<U9999999", "|V8", "<c16", ">f8", "<f2", "junk", "<i1000"])) + bytes(64), lambda: array(np.array([Evil()], dtype=object), pickled=True),
        lambda: header("(27000000,)", "|u1") + bytes(4_000_000), lambda: header("(300000000,)", "|u1") + bytes(300), lambda: array(np.array(rng.choice([[1e308], [float("nan")], [2**63], [True], ["a"], [1j]]))),
        lambda: array(np.zeros((4, *[1] * rng.randrange(9)))), lambda: array(np.zeros((4, 5, 5, 3), np.uint8)), lambda: rng.randbytes(200), lambda: b"", lambda: b"\x93NUMPY\x09\x09" + bytes(50),
        lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(50), lambda: header("(4, 2)")[:30],
    ])()  # fmt: skip
    with zipfile.ZipFile(
        file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    ) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if rng.random() < 0.1:
            archive.writestr(
                rng.choice(
                    [
                        "../../evil.npy",
                        "/evil.npy",
                        "a\nb.npy",
                        "é.npy",
                        "x" * 300 + ".npy",
                        f"{CANARY}().npy",
                        "class.npy",
                    ]
                ),
                array([1.0] * 4),
            )
    return broken(rng, file.getvalue()) if rng.random() < 0.5 else file.getvalue()


def broken(rng: Mine, content: bytes) -> bytes:
    """Bytes changed, or cut off."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 2, 8, 40])):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found[: rng.randrange(1, len(found))]) if rng.random() < 0.3 else bytes(found)


def table(rng: Mine) -> bytes:
    """A csv file."""
    cells = [
        "1",
        "2.5",
        "a",
        "",
        "nan",
        "inf",
        "1e400",
        "-",
        '"',
        "'",
        "é",
        "\x00",
        "1,5",
        "1 000",
        f"={CANARY}()",
        *PAYLOADS,
        "9" * 400,
        "x" * 200_000,
    ]
    columns = rng.choice([1, 2, 3, 3, 3, 50])
    rows = [["x", "y", "c", *map(str, range(50))][:columns]]
    rows += [[rng.choice(["1", "2.5", "0"]) for _ in range(columns)] for _ in range(rng.choice([0, 1, 5, 500]))]
    for _ in range(rng.choice([0, 1, 3])):
        rng.choice(rows)[rng.randrange(columns)] = rng.choice(cells)
    if rng.random() < 0.2:
        rng.choice(rows).append("1")
    comma = rng.choice([",", ",", ",", ",", ",", ";", "\t"])
    text = rng.choice(["\n", "\r\n", "\r"]).join(comma.join(row) for row in rows)
    content = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace")
    return broken(rng, content) if rng.random() < 0.2 else content


def prose(rng: Mine) -> bytes:
    """A text."""
    return rng.choice([
        lambda: b"", lambda: b"a", lambda: "hello, wörld! ".encode() * rng.randrange(1, 5000), lambda: rng.randbytes(5000), lambda: bytes(2_000_000), lambda: "\U0001f600".encode() * 1000,
        lambda: "\r\n".join(PAYLOADS).encode() * 30, lambda: "text".encode("utf-16") * 100, lambda: bytes(4_000_000),
    ])()  # fmt: skip


def files(rng: Mine) -> Case:
    """A right spec of a file that is not."""
    data: dict[str, Any] = loaded(BASE)
    kind = rng.choice(["npz", "npz", "npz", "csv", "csv", "text", "path"])
    content: dict[str, bytes] = {}
    own: dict[str, Any] = {"dataset": kind, "file": "data.bin", "batch": 1}
    if kind == "path":
        own["dataset"] = rng.choice(["npz", "csv", "text"])
        own["file"] = rng.choice(["/dev/zero", "/dev/stdin", "/dev/random", "/proc/self/mem", "/proc/kcore", "/proc/self/environ", ".", "..", "/", "", "~", "~root", "~nobody9/x", "a\x00b", "x" * 5000, "\n", "pipe", "loop", "huge", "-", "http://localhost/x.npz", *PAYLOADS[:3]])  # fmt: skip
    elif kind == "npz":
        content["data.bin"] = npz(rng)
        own["convert"] = rng.choice([{}, {}, {"x": "pixels"}, {"x": {"shape": [2]}}, {"c": "int"}, {"y": "float"}])
    elif kind == "csv":
        content["data.bin"] = table(rng)
    else:
        content["data.bin"] = prose(rng)
    second = {"inputs": ["x"], "layers": [{"dense": 60}]}
    data["networks"]["second"] = second
    if own["dataset"] == "csv":
        own |= {"target": rng.choice(["x", "x", "x", "c", "y", "nobody", ""]), "regression": rng.random() < 0.3}
        text = (
            dumped(data)
            .replace("first(x)", "first(features)")
            .replace("second(x)", "second(features)")
            .replace('"targets": "y"', '"targets": 0.5')
            .replace('"labels": "c"', '"labels": "label"')
        )
        data = json.loads(text)
    elif own["dataset"] == "text":
        own |= {"length": rng.choice([1, 8, 64, 10**6])}
        data["networks"] = {
            "second": {"inputs": ["tokens"], "layers": [{"embedding": {"features": 2, "name": "e"}}, {"unembed": "e"}]}
        }
        data["training"]["updates"] = data["training"]["updates"][1:]
        data = json.loads(
            dumped(data).replace("second(x)", "second(tokens)").replace('"labels": "c"', '"labels": "targets"')
        )
        del data["evaluation"]
    data["data"] = own
    return f"file: {kind}", dumped(data), content


@cache
def bases() -> list[Any]:
    """Specs that are right."""
    return [loaded(BASE), *(loaded(path.read_text()) for path in sorted(spec.directory().glob("*.yaml")))]


MAKERS: list[Callable[[Mine, list[Any]], Case]] = [structures, structures, structures, numbers, texts, large]


def hostile_spec(seed: int, number: int) -> Case:
    """One of the specs."""
    return MAKERS[number % len(MAKERS)](Mine(f"{seed}/{number}"), bases())


def hostile_file(seed: int, number: int) -> Case:
    """One of the files, with a spec that reads it."""
    return files(Mine(f"{seed}/file/{number}"))


def guard(folder: Path, events: list[str]) -> None:
    """Note what only a spec's own code would do, and every write outside the folder."""
    inside = str(folder.resolve())
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "pickle.find_class",
            "socket.connect",
            "os.startfile",
            "ctypes.dlopen",
        ) or (event == "subprocess.Popen" and not str(arguments[0]).endswith("ruff")):
            events.append(f"code was run: {event} {arguments!r:.200}")
        elif (
            event == "open"
            and isinstance(arguments[0], (str, bytes))
            and isinstance(arguments[2], int)
            and arguments[2] & writing
        ) or event in (
            "os.mkdir",
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.symlink",
            "os.link",
            "os.truncate",
            "shutil.rmtree",
            "os.chmod",
        ):
            elsewhere(arguments[0])

    def elsewhere(path: Any) -> None:
        where = os.path.realpath(os.fsdecode(path))
        if not where.startswith((inside, "/dev/null")):
            events.append(f"written elsewhere: {where:.200}")

    sys.addaudithook(hook)


def injected(text: str) -> bool:
    """Whether a program has a spec's payload anywhere but in text."""
    tree = ast.parse(text)
    words = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)] + [
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    ]
    return any(CANARY in word for word in words)


def attempt(case: Case, folder: Path) -> tuple[str, str]:
    """What a case comes to, in this process: emitted for every backend, its data prepared."""
    events: list[str] = []
    guard(folder, events)
    said, verdict = "", "accepted"
    try:
        for backend in BACKENDS:
            sys.argv = ["harness", "emit", "spec.yaml", "--backend", backend, "--out", f"{backend}.py"]
            try:
                cli.main()
            except SystemExit as end:
                if end.code == 2:
                    verdict = "refused"
                    break
                if end.code:
                    return "traceback", f"exit status {end.code}"
            if injected((folder / f"{backend}.py").read_text(encoding="utf-8")):
                events.append("code was run: a program has it")
        if verdict == "accepted":
            loaded_spec, source = spec.load("spec.yaml")
            try:
                prepare(compile_spec(loaded_spec, source))
            except HarnessError as error:
                verdict, said = "refused", str(error)
    except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
        verdict, said = "traceback", traceback.format_exc()
    if (folder / CANARY).exists():
        events.append("code was run: the canary is there")
    if events and verdict != "traceback":
        return events[0].partition(":")[0], "; ".join(events)
    return verdict, said


def run(case: Case, root: Path, number: int) -> Outcome:
    """One case in a process of its own."""
    kind, text, beside = case
    folder = root / f"case{number}"
    folder.mkdir()
    (folder / "spec.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    for name, content in beside.items():
        (folder / name).write_bytes(content)
    if kind == "file: path":
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
        with (folder / "huge").open("wb") as file:
            file.truncate(10**11)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.environ["HARNESS_MEMORY"] = "200MB"
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + BYTES, virtual + BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (int(3 * SECONDS), int(3 * SECONDS) + 1))
        signal.alarm(int(60 * SECONDS))
        verdict, said = attempt(case, folder)
        os.write(writer, json.dumps([verdict, said[-3000:]]).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status, usage = os.wait4(pid, 0)
    seconds, size = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    verdict, said = json.loads(answer) if answer else ("traceback", f"ended with status {status}, said nothing")
    if verdict in ("accepted", "refused") or not answer:
        if seconds > SECONDS:
            verdict, said = "more than 5 s", f"{seconds:.1f} s, {verdict}"
        elif size > BYTES:
            verdict, said = "more than 1 GB", f"{size / 1e9:.2f} GB, {verdict}"
    if "MemoryError" in said and verdict == "traceback":
        verdict = "more than 1 GB"
    if verdict not in BAD:
        shutil.rmtree(folder)
    return Outcome(kind, verdict, seconds, size / 1e6, said)


TRIED: dict[str, Any] = {}
"""What the processes of the pool were forked with: the seed, how many specs there are, and the folder for their cases."""


def tried(number: int) -> Outcome:
    """A case by its number."""
    seed, count = TRIED["seed"], TRIED["specs"]
    case = hostile_spec(seed, number) if number < count else hostile_file(seed, number - count)
    return run(case, TRIED["root"], number)


def main(arguments: list[str] | None = None) -> int:
    """Make them, try them, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--specs", type=int, default=1000)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cases at a time")
    parser.add_argument("--keep", type=Path, help="a new folder for the cases that must not be")
    given = parser.parse_args(arguments)
    bases()
    warmed = compile_spec(*spec.loads(BASE))
    for backend in BACKENDS:
        emitted(warmed, backend, "float32")  # every import is done before the first fork
    prepare(warmed)
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        TRIED.update(seed=given.seed, specs=given.specs, root=Path(name))
        with multiprocessing.get_context("fork").Pool(given.workers) as pool:
            for number, outcome in enumerate(pool.imap(tried, range(given.specs + given.files))):
                found.append(outcome)
                if outcome.verdict in BAD:
                    sys.stdout.write(f"case {number} ({outcome.kind}): {outcome.verdict}: {outcome.said[-1500:]}\n")
                    sys.stdout.flush()
        if given.keep and any(outcome.verdict in BAD for outcome in found):
            shutil.copytree(name, given.keep, symlinks=True, ignore=shutil.ignore_patterns("pipe", "huge"))
    verdicts = ("accepted", "refused", *BAD)
    width = max(len(outcome.kind) for outcome in found) + 2
    lines = ["".join(["kind".ljust(width), *(v.rjust(19) for v in verdicts), "most s".rjust(8), "most MB".rjust(9)])]
    for kind in dict.fromkeys(outcome.kind for outcome in found):
        own = [outcome for outcome in found if outcome.kind == kind]
        counts = Counter(outcome.verdict for outcome in own)
        most = f"{max(o.seconds for o in own):.1f}".rjust(8) + f"{max(o.megabytes for o in own):.0f}".rjust(9)
        lines.append(kind.ljust(width) + "".join(str(counts[v]).rjust(19) for v in verdicts) + most)
    counts = Counter(outcome.verdict for outcome in found)
    lines.append("all".ljust(width) + "".join(str(counts[v]).rjust(19) for v in verdicts))
    bad = sum(counts[v] for v in BAD)
    lines.append(
        f"{given.specs} specs and {given.files} files of seed {given.seed} in {time.monotonic() - began:.0f} s: {bad} that must not be"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
