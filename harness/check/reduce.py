"""The smallest spec that still shows a difference: fewer steps, examples, layers and units, one change at a time."""

import copy
import io
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from harness import spec
from harness.backend import Array
from harness.check import dissect
from harness.check.dissect import Finding
from harness.check.evidence import batched, evaluated, followed
from harness.check.live import LiveWorker
from harness.check.reproduce import standalone
from harness.check.subject import Subject, prepare
from harness.errors import CallError, HarnessError, WorkerFailed
from harness.graph import BlockOp, Program
from harness.programs import Written
from harness.resolve import compile_spec
from harness.runs import prepared

BUDGET = 240.0
"""Seconds after which the smallest spec so far is taken."""
STEPS = 60
"""A difference that shows later than this is left in the spec that it was found in."""
Spec = dict[str, Any]


@dataclass(frozen=True)
class Reduced:
    """A small spec that shows what the large one does."""

    text: str
    """YAML."""
    finding: Finding
    files: dict[str, str]
    """By backend: a standalone program."""
    tried: int
    """Smaller specs that were tried."""
    missing: dict[str, str]
    """By backend: why it has no file."""


def reduce(
    text: str, found: Finding, program: Program, precision: str, given: Mapping[str, Written], workers: Mapping[str, LiveWorker],
    folder: Path, listen: Callable[[int], None] = lambda _tried: None, budget: float = BUDGET,
    more: Callable[[Spec], Iterator[Spec]] = lambda _data: iter(()),
) -> Reduced | str:  # fmt: skip
    """Make a spec smaller as long as a backend's program still parts in the same phase; or why that cannot be done.

    `given`: programs that are not as emitted; their changes are made to the smaller programs too, as far as these have
    what was changed, and those of the odd backend must. `more`: other smaller specs, which are tried first.
    """
    if found.gone:
        return "The spec was not made smaller: this program cannot be set to a position, whatever the spec."
    odd = found.backend.split(" or ")
    given = {name: replace(own, essential=name in odd) for name, own in given.items()}
    trial = _Trial(found, precision, given, workers, folder, kind(program, found.tensor))
    data = YAML(typ="safe").load(text)
    until = time.monotonic() + budget
    if (at := trial.shows(data)) is None:
        return f"The spec was not made smaller: from its own first step, it does not show this within {STEPS} steps."
    trial.tried = 0
    progress = True
    while progress and time.monotonic() < until:
        progress = False
        for less in chain(more(data), smaller(data, at.step, keep_evaluation=found.mode == "evaluation")):
            if time.monotonic() > until:
                break
            other = trial.shows(less)
            listen(trial.tried)
            if other is not None:
                # From the beginning: what was too much before may do now.
                data, at, progress = less, other, True
                break
    small = trial.finished(data)
    return small or "The smallest spec shows it in one backend alone, and not beside the others: nothing was written."


@dataclass
class _Trial:
    """Tries specs, each in a folder of its own with the same workers."""

    wanted: Finding
    precision: str
    given: Mapping[str, Written]
    workers: Mapping[str, LiveWorker]
    folder: Path
    kind: str | None
    """The op that is at fault, where a node is."""
    tried: int = 0
    made: int = 0

    def shows(self, data: Spec) -> Finding | None:
        """What a spec's programs show, if it is the difference that is wanted."""
        self.tried += 1
        self.made += 1
        place = self.folder / f"smaller-{self.made:04}"
        names = self._names()
        try:
            subject = self._subject(data, place, names)
            if subject is None:
                return None
            sources = {name: subject.sources[name, True] for name in subject.workers}
            if dissect.refusal(subject, sources) is not None:
                return None
            at = dissect.find(subject, sources, min(STEPS, subject.program.steps))
        except (WorkerFailed, ValueError):
            return None
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return at if at is not None and self._same(at, subject.program) else None

    def _names(self) -> list[str]:
        """The odd backend; where the reference cannot judge, another one too."""
        odd = [name for name in self.workers if name in self.wanted.backend.split(" or ")]
        others = [name for name in self.workers if name not in odd]
        quick = sorted(others, key=lambda name: self.workers[name].backend != "torch")
        return odd + (quick[: 3 - len(odd)] if self.wanted.phase == "backward" else [])

    def _subject(self, data: Spec, place: Path, names: Sequence[str]) -> Subject | None:
        try:
            loaded, source = spec.loads(dumped(data))
            program = compile_spec(loaded, source)
            inputs = prepared(program, source)
            live = {name: self.workers[name] for name in names}
            return prepare(program, source, inputs, self.precision, place, live, self.given)
        except (HarnessError, ValueError):
            return None

    def _same(self, at: Finding, program: Program) -> bool:
        if at.phase != self.wanted.phase or at.backend != self.wanted.backend:
            return False
        return at.mode == self.wanted.mode and (at.phase != "forward" or kind(program, at.tensor) == self.kind)

    def finished(self, data: Spec) -> Reduced | None:
        """The spec, its finding with all backends, and their files."""
        subject = self._subject(data, self.folder / "smallest", list(self.workers))
        if subject is None:
            return None
        sources = {name: subject.sources[name, True] for name in subject.workers}
        at = dissect.find(subject, sources, min(STEPS, subject.program.steps))
        if at is None:
            return None
        taken = dissect.take(subject, sources, at.step - 1)
        files, without = {}, {}
        for name in subject.workers:
            try:
                files[name] = standalone(subject, name, sources[name], at, _expected(subject, taken, at))
            except ValueError as error:
                without[name] = str(error)
        return Reduced(dumped(data), at, files, self.tried, without)


def kind(program: Program, tensor: str) -> str | None:
    """The op of the node that a tensor's name ends in."""
    path = tensor.rpartition(")")[2] if "(" in tensor else tensor.rpartition("/")[2].partition(".")[2]
    names = path.strip(".").split(".")
    for graph in program.networks.values():
        here = graph
        for name in names:
            node = next((n for n in here.nodes if n.name == name), None)
            if node is None:
                break
            if not isinstance(node.op, BlockOp):
                return node.op.kind
            here = node.op.graph
    return None


def _expected(subject: Subject, taken: dissect.Taken, at: Finding) -> Array:
    """What a tensor should be: the reference's, and where it has none, that of a backend that agrees."""
    if at.mode == "evaluation":
        return evaluated(subject)[at.tensor]
    if at.phase == "data":
        return batched(subject, at.step - 1)[at.tensor]
    agree = next(b for b in taken.said if at.votes.get(b) == "agrees") if "agrees" in at.votes.values() else None
    if at.phase == "backward":
        if agree is None:
            raise ValueError("no backend agrees with another")
        update, name = at.tensor.split("/", 1)
        return np.asarray(taken.said[agree][f"gradients/{update}/{name}"])
    expected = followed(subject, taken.said[agree or at.backend], taken.position, taken.step)
    names = {"forward": f"values/{at.tensor}", "loss": at.tensor}
    slot = at.tensor.startswith("optimizer/")
    return np.asarray(expected[at.tensor if slot else names.get(at.phase, f"state/{at.tensor}")])


# Smaller specs --------------------------------------------------------------------------------------------


def dumped(data: Spec) -> str:
    """A spec as YAML, as people write it: short lists and mappings in one line."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 110
    yaml.Representer = _Representer
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


class _Representer(RoundTripRepresenter):
    """In one line, ruamel writes a word that begins with '?' without quotes, and reads a key."""


def _text(representer: _Representer, text: str) -> ScalarNode:
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style='"' if text.startswith("?") else None)


_Representer.add_representer(str, _text)


def smaller(data: Spec, step: int, *, keep_evaluation: bool) -> Iterator[Spec]:
    """Specs with one thing less, those that save the most first."""
    if data["training"]["steps"] > step:
        yield _with(data, ("training", "steps"), step)
    if "evaluation" in data and not keep_evaluation:
        yield _without(data, ("evaluation",))
    for name in ("test", "normalise", "shuffle"):
        if name in data["data"]:
            yield _without(data, ("data", name))
    for size in (1, 2, 4, 8, 16):
        if size < data["data"]["batch"]:
            yield _with(data, ("data", "batch"), size)
    for i, update in enumerate(data["training"]["updates"]):
        plain = {"sgd": {"learning_rate": 0.1}}
        if update["optimizer"] != plain:
            yield _with(data, ("training", "updates", i, "optimizer"), plain)
        for name in ("clip", "schedule"):
            if name in update:
                yield _without(data, ("training", "updates", i, name))
    yield from _fewer_layers(data)
    for path, value in _integers({k: data[k] for k in ("blocks", "networks") if k in data}):
        for size in (1, 2, 3, 4, value // 2, value * 3 // 4):
            if size < value:
                yield _with(data, path, size)


def _fewer_layers(data: Spec) -> Iterator[Spec]:
    for path, layers in _lists(data, ("blocks",)) if "blocks" in data else ():
        yield from _shorter(data, path, layers)
    for path, layers in _lists(data, ("networks",)):
        yield from _shorter(data, path, layers)


def _shorter(data: Spec, path: tuple[Any, ...], layers: list[Any]) -> Iterator[Spec]:
    size = len(layers) // 2
    while size >= 1:
        for start in range(0, len(layers) - size + 1, size):
            yield _with(data, path, layers[:start] + layers[start + size :])
        size //= 2
    for i, layer in enumerate(layers):
        if isinstance(layer, dict) and isinstance(inner := layer.get("residual"), list):
            yield _with(data, path, [*layers[:i], *inner, *layers[i + 1 :]])
        if isinstance(layer, dict) and isinstance(inner := layer.get("repeat"), dict):
            yield _with(data, path, [*layers[:i], *inner["layers"], *layers[i + 1 :]])


def _lists(data: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:  # noqa: ANN401 - YAML
    """Every list of layers below a path, inner ones last."""
    value = data
    for key in path:
        value = value[key]
    if isinstance(value, list):
        if path[-1] in ("layers", "residual"):
            yield path, value
        for i in range(len(value)):
            yield from _lists(data, (*path, i))
    elif isinstance(value, dict):
        for key in value:
            yield from _lists(data, (*path, key))


def _integers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:  # noqa: ANN401 - YAML
    """Every number above 1: units, channels, heads, kernels."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _integers(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _integers(inner, (*path, i))
    elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
        yield path, value


def _with(data: Spec, path: Sequence[Any], value: object) -> Spec:
    found = copy.deepcopy(data)
    here: Any = found
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = copy.deepcopy(value)
    return found


def _without(data: Spec, path: Sequence[Any]) -> Spec:
    found = copy.deepcopy(data)
    here: Any = found
    for key in path[:-1]:
        here = here[key]
    del here[path[-1]]
    return found


def require_empty(folder: Path) -> None:
    """Raise CallError unless a folder is new or empty, before an hour of work and not after it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CallError(f"--reduce {folder}: exists and is not an empty directory")


def written_to(reduced: Reduced, name: str, folder: Path) -> list[Path]:
    """The spec and the files. Raises CallError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.yaml"]
        paths[0].write_text(reduced.text, encoding="utf-8")
        for backend, text in reduced.files.items():
            paths.append(folder / f"{name}_{backend.replace('-', '_')}.py")
            paths[-1].write_text(text, encoding="utf-8")
    except OSError as error:
        raise CallError(f"cannot write into {folder}: {error.strerror}") from None
    return paths
