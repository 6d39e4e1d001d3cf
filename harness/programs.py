"""Programs that somebody has written or changed, in the place of those that the harness emits for a spec."""

import ast
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from merge3 import Merge3

from harness.backend import BACKENDS
from harness.carry import carried
from harness.emit import container, formatted
from harness.errors import CallError
from harness.graph import Program
from harness.lanes import PLAIN
from harness.meaning import Hunk, hunks
from harness.precision import NAMES
from harness.syntax import parse


@dataclass(frozen=True)
class Written:
    """A program's text, and the emitted one that it is a version of."""

    backend: str
    text: str
    origin: str
    """Where it is from: a file's path."""
    base: str
    """What the emitter wrote, of all precisions the one that is most like it."""
    program: Program = field(repr=False)
    """Whose base that is."""

    essential: bool = True
    """Whether a smaller program without anything of the change is of no use."""

    @property
    def changed(self) -> list[tuple[int, str]]:
        """Its statements that the emitted program does not have, with their lines; comments and layout do not count."""
        before, after = statements(self.base), statements(self.text)
        matcher = SequenceMatcher(None, [t for _, t in before], [t for _, t in after], autojunk=False)
        found: list[tuple[int, str]] = []
        lines = self.text.splitlines()
        for what, _, _, low, high in matcher.get_opcodes():
            if what != "equal":
                line = after[min(low, len(after) - 1)][0]
                found += [(n, lines[n - 1].strip()) for n, _ in after[low:high]] or [
                    (line, "(left out before this line)")
                ]
        return found

    @property
    def hunks(self) -> list[Hunk]:
        """Where it differs in meaning from the emitted program."""
        return hunks(self.base, self.text)

    def adapted(self, program: Program, precision: str, threads: int = 1, *, observe: bool = False) -> str:
        """The same change made to what is emitted for a program: in another precision, or returning every value.

        Raises CallError where the two cannot be brought together.
        """
        wanted = emitted(program, self.backend, precision, threads, observe=observe)
        if not observe and wanted == self.base:
            return self.text
        if self.text == self.base:
            return wanted
        if not observe and (text := _merged_lines(self.base, wanted, self.text)) is not None:
            return text
        # A smaller program may lack a part of what was changed; the same program may not.
        smaller = program.networks != self.program.networks
        found = carried(self.base, wanted, self.text, lenient=smaller)
        if found is None or (smaller and self.essential and statements(found) == statements(wanted)):
            what = "the variant that returns every value" if observe else f"the program in {precision}"
            raise CallError(
                f"{self.origin}: its changes cannot be carried over to {what}: it has other statements in the same places"
            )
        return found if observe else formatted(found)


def statements(text: str) -> list[tuple[int, str]]:
    """Line and text of every statement, of those with others in them the head."""
    found = [(node.lineno, ast.unparse(node).splitlines()[0]) for node in ast.walk(parse(text)) if isinstance(node, ast.stmt) and not _is_docstring(node)]  # fmt: skip
    return sorted(found)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _merged_lines(base: str, wanted: str, given: str) -> str | None:
    """Both changes by lines, which keeps comments and layout; None where they touch one another."""
    found: list[str] = []
    old, new, own = (text.splitlines(keepends=True) for text in (base, wanted, given))
    for group in Merge3(old, new, own).merge_groups():
        if group[0] == "conflict":
            return None
        found += group[1]
    text = "".join(found)
    try:
        parse(text)
    except SyntaxError:
        return None
    return text


def emitted(
    program: Program,
    backend: str,
    precision: str,
    threads: int = 1,
    *,
    observe: bool = False,
    strategy: str | None = None,
) -> str:
    """The text that a backend's emitter writes; `strategy`: how its steps are run, where not plainly."""
    emitter = importlib.import_module(f"backends.{backend}.emit")
    more = {} if strategy in (None, PLAIN[backend]) else {"strategy": strategy}
    return str(emitter.emit(program, precision, threads, observe=observe, **more))


def written(
    backend: str, text: str, origin: str, programs: Sequence[Program], threads: Sequence[int] = (1,)
) -> Written:
    """A text as a version of what is emitted for one of these programs. Raises CallError where it is none, or no Python."""
    try:
        parse(text)
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else error
        raise CallError(f"{origin}{line}: is not Python: {said}") from None
    bases = [
        (emitted(program, backend, precision, number), program)
        for program in programs
        for precision in NAMES
        for number in threads
    ]
    lines = text.splitlines()
    base, own = max(bases, key=lambda base: _alike(base[0].splitlines(), lines))
    have = _names(parse(text).body)
    lacking = sorted(_wanted(backend, own) & _names(parse(base).body) - have) if "*" not in have else []
    if lacking:
        raise CallError(
            f"{origin}: is no version of the program that is emitted for '{own.name}': it has no {', '.join(lacking)}; "
            f"`harness emit SPEC --backend {backend} --out FILE` writes one to change"
        )
    return Written(backend, text, origin, base, own)


def _wanted(backend: str, program: Program) -> set[str]:
    """What a backend's session asks of a program, read off the session; and the model's class."""
    file = Path(__file__).resolve().parents[1] / "backends" / backend / "session.py"
    text = file.read_text(encoding="utf-8")
    asked = {
        node.attr
        for node in ast.walk(parse(text))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in ("module", "program")
    }
    return asked | ({container(program)} if 'request["model"]' in text else set())


def _names(body: Sequence[ast.stmt]) -> set[str]:
    """The names that statements of a module define; `*` where another module's names are taken over."""
    found: set[str] = set()
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {each.asname or each.name.partition(".")[0] for each in names}
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                found |= {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
            case _:
                for part in ("body", "orelse", "finalbody"):
                    found |= _names(getattr(statement, part, []))
                for handler in getattr(statement, "handlers", []):
                    found |= _names(handler.body)
    return found


def _alike(a: Sequence[str], b: Sequence[str]) -> float:
    return SequenceMatcher(None, a, b, autojunk=False).ratio()


def read(given: Sequence[str], programs: Sequence[Program], threads: Sequence[int] = (1,)) -> dict[str, Written]:
    """`torch=FILE` as programs by backend. Raises CallError."""
    found: dict[str, Written] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise CallError(f"--program takes BACKEND=FILE, like torch=my_model.py; got '{text}'")
        if name not in BACKENDS:
            raise CallError(f"--program: unknown backend '{name}' (backends: {', '.join(BACKENDS)})")
        if name in found:
            raise CallError(f"--program: {name} is given twice")
        try:
            source = Path(path).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise CallError(f"--program {path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise CallError(f"--program {path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
        found[name] = written(name, source, path, programs, threads)
    return found


def sources(
    program: Program, names: Mapping[str, str], precision: str, given: Mapping[str, Written]
) -> dict[tuple[str, bool], str]:
    """By name and whether it is observed, each program's text: what was given, or what the name's backend emits."""
    return {
        (name, observe): given[name].adapted(program, precision, observe=observe)
        if name in given
        else emitted(program, backend, precision, observe=observe)
        for name, backend in names.items()
        for observe in (False, True)
    }
