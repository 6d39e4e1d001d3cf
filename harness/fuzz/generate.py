"""Random specs: valid, small, alive, over everything that a spec can say.

A layer is drawn from its definition and tried: the resolver's own rules say whether it fits where it would stand, and one
that does not is drawn again, as is one that says the same whatever it is given. What is left loose at the end is joined, so that everything is read; losses, metrics and
samples are tried against the shapes that there are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin

import numpy as np
from pydantic import TypeAdapter, ValidationError

from harness import initial, reference, spec
from harness.backend import Array, Arrays
from harness.check.reduce import dumped
from harness.data.datasets import DATASETS, Column, DataSet, Noise
from harness.data.inputs import Inputs
from harness.errors import DataError, SpecError
from harness.fuzz import corpus
from harness.fuzz.draw import Context, Undrawable, kind, record, weighted
from harness.graph import BlockOp, Node, Program
from harness.initializers import INITIALIZERS
from harness.invariance import deaf
from harness.losses import LOSSES, Loss
from harness.metrics import METRICS, Metric
from harness.ops.base import Op, Shape, ShapeError
from harness.optimizers import CLIPS, OPTIMIZERS, SCHEDULES
from harness.resolve import _Builder, compile_spec
from harness.runs import prepared
from harness.source import Source
from harness.spec import LAYERS, Layer, LayerItem, Network, Spec

Plain = Any
"""A piece of a spec as YAML has it."""
NAMES = ("stem", "left", "right", "wide", "gate", "skip", "body", "core", "tower", "mixer", "branch", "merge")
NETWORKS = ("encoder", "decoder", "critic", "backbone", "policy", "actor")
FIELDS = ("signal", "other", "third")
TARGETS = ("truth", "answer", "goal")
NOISES = ("haze", "grain")
BATCHES = (2, 2, 3, 4, 4, 5, 6, 8)
STEPS = (4, 8)
DEEPEST = 2
"""Containers inside of one another, at most."""
INLINE = 150
"""Numbers of a field that are written out in a spec, at most."""
NODES, VALUES, PARAMETERS = 26, 800, 4_000
"""At most: nodes of a network, values of one example at a node, parameters of a node."""
FREE = 5
"""How much more often a data set is drawn whose fields are described, and not written out."""
TRIES = 60
"""Layers that are drawn for one place before the next one's turn comes."""
GIVEN, WRITTEN = 0.1, 60
"""How often initial values are written out, and how many at most."""
HUGE = 1e15
"""A value above this is drawn again: what squares it, as a normalisation does, may leave float32, and no convention says to what."""
LARGE = 1e3
"""A loss above this before training is drawn again: a few steps would take it out of the numbers."""
ROUGH, WORST = 2.0**-30, 1e5
"""A loss is not rounding where it moves less than WORST times as far as every node's value is moved: by a share of ROUGH."""
HALF = 0.5
"""And a number is rounding where it moves by half of itself."""
MOVED, FELT = 1e-3, 1e-9
"""A loss is alive where moving every parameter by a thousandth of its tensor's spread changes it by this share."""


class Redrawn(Exception):  # noqa: N818 - it is caught where another spec is drawn
    """A spec that is not tried: refused, dead, or too large. The reason is its text."""


@dataclass(frozen=True)
class Drawn:
    """One random spec, resolved."""

    number: int
    text: str
    spec: Spec
    source: Source
    program: Program
    inputs: Inputs
    redrawn: tuple[str, ...] = ()
    """Why specs that were drawn before it were not taken."""


def draw(seed: int, number: int, folder: Path, *, tries: int = 60) -> Drawn:
    """The spec of a seed and a number. `folder`: where the data files are that a spec may name.

    What raises anything but a refusal in words is raised: it is a fault.
    """
    redrawn: list[str] = []
    for attempt in range(tries):
        rng = initial.stream(seed, "fuzz", number, attempt)
        try:
            text = dumped(plain(rng, f"fuzz_{seed}_{number}", folder))
            return resolved(number, text, tuple(redrawn))
        except (Redrawn, Undrawable, SpecError) as error:
            redrawn.append(str(error))
    raise RuntimeError(f"no spec of {tries} is valid; the last reasons: {redrawn[-3:]}")


def resolved(number: int, text: str, redrawn: tuple[str, ...] = ()) -> Drawn:
    """A spec's text with everything that a training needs. Raises SpecError, and Redrawn where it is dead."""
    loaded, source = spec.loads(text)
    program = compile_spec(loaded, source)
    inputs = prepared(program, source)
    require_alive(program, inputs)
    return Drawn(number, text, loaded, source, program, inputs, redrawn)


def require_alive(program: Program, inputs: Inputs) -> None:
    """Raise Redrawn where a loss is no number, is rounding, or moves with none of the parameters that its update moves."""
    parameters = initial.parameters(program)
    data = {name: inputs.train[name][rows] for rows in [inputs.order[0][inputs.order[0] >= 0]] for name in inputs.train}
    data |= {name: own[0][: len(next(iter(data.values())))] for name, own in inputs.noise.items()}
    masks = initial.masks(program, 0, len(next(iter(data.values()))))
    with np.errstate(all="ignore"):
        for update in program.updates:
            said: Arrays = {}
            before, _ = reference.train(program, update, parameters, data, masks, partial(_kept, said))
            if not abs(before) < LARGE:
                raise Redrawn(f"the loss is {before:.3g} before training")
            rng = initial.stream(program.seed, "rounded", update.name)
            roughly: Arrays = {}
            rounded, _ = reference.train(program, update, parameters, data, masks, partial(_rounded, rng, roughly))
            for name, value in said.items():
                if value.dtype.kind == "f" and not np.all(np.abs(value) < HUGE):
                    raise Redrawn(f"{name} is {np.abs(value).max():.3g} in the first step")
                # A kink behind such a number has the gradient of one side or of the other, by rounding.
                if value.dtype.kind == "f" and np.any(np.abs(roughly[name] - value) > HALF * np.abs(value)):
                    raise Redrawn(f"numbers of {name} are what rounding has left")
            if not abs(rounded - before) < WORST * ROUGH * max(abs(before), MOVED):
                raise Redrawn(
                    f"what is rounded is multiplied by {abs(rounded - before) / ROUGH:.1g} on its way to the loss"
                )
            moved = dict(parameters)
            for name in reference.moved(program, update):
                rng = initial.stream(program.seed, "alive", name)
                size = float(np.abs(parameters[name]).max(initial=0.0)) or 1.0
                moved[name] = parameters[name] + MOVED * size * rng.standard_normal(parameters[name].shape)
            after = reference.loss(program, update, moved, data, masks)
            if not abs(after - before) > FELT * max(abs(before), MOVED):
                raise Redrawn("no parameter that is moved changes the loss")


def _kept(said: Arrays, name: str, value: Array) -> None:
    said[name] = value


def _rounded(rng: np.random.Generator, said: Arrays, name: str, value: Array) -> Array | None:
    """A node's value, every number of it as far off as if it had been rounded roughly; what it was before that is kept."""
    said[name] = value
    if value.dtype.kind != "f":
        return None
    found: Array = value * (1 + ROUGH * rng.standard_normal(value.shape))
    return found


# The experiment -------------------------------------------------------------------------------------------


@dataclass
class Value:
    """An expression that can be written in a spec."""

    text: str
    shape: Shape
    dtype: str
    classes: int | None = None
    fields: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()


@dataclass
class _Experiment:
    """What has been drawn so far."""

    rng: np.random.Generator
    data: Plain
    columns: dict[str, Column]
    free: bool
    """Whether the data set takes any fields, so that targets are made to fit."""
    values: list[Value] = field(default_factory=list)
    networks: dict[str, Plain] = field(default_factory=dict)
    blocks: dict[str, Plain] = field(default_factory=dict)
    calls: list[Value] = field(default_factory=list)
    made: dict[str, Column] = field(default_factory=dict)
    """Target fields that were added to the data."""

    @property
    def noises(self) -> set[str]:
        return set(self.data.get("noise", ()))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)


def plain(rng: np.random.Generator, name: str, folder: Path) -> Plain:
    """A random spec as YAML has it. Raises Redrawn, Undrawable or SpecError where this draw leads nowhere."""
    here = _data(rng, folder)
    for number in range(weighted(rng, (1, 1, 1, 1, 2, 2, 3))):
        _network(here, f"{NETWORKS[int(rng.integers(2)) * 3 + number]}")
    updates = _updates(here)
    found: dict[str, Plain] = {"name": name}
    if here.chance(0.5):
        found["seed"] = int(rng.integers(1000))
    found["data"] = here.data
    if here.blocks:
        found["blocks"] = here.blocks
    found["networks"] = here.networks
    found["training"] = {"steps": int(rng.integers(STEPS[0], STEPS[1] + 1)), "updates": updates}
    if here.chance(0.6) and (evaluation := _evaluation(here)):
        found["evaluation"] = evaluation
    return found


def _data(rng: np.random.Generator, folder: Path) -> _Experiment:
    cls = weighted(rng, (*DATASETS, *[c for c in DATASETS if _described(c)] * FREE))
    batch = weighted(rng, BATCHES)
    examples = batch * int(rng.integers(1, 4)) + int(rng.integers(0, batch))
    context = Context(
        words=corpus.words(folder), keys=corpus.KEYS if not _free(cls) else FIELDS,
        array=lambda: _numbers(rng, examples, (3, 2, 1)[: int(rng.integers(0, 4))]),
    )  # fmt: skip
    given: dict[str, Any] = {"batch": batch}
    if "examples" in cls.model_fields:
        given["examples"] = examples
    # What an option says of fields by their names seldom fits them: it is left out most of the time.
    options = [n for n, i in cls.model_fields.items() if get_origin(i.annotation) is dict and not i.is_required()]
    left = [n for n in options if n == "noise" or rng.random() < 0.9]  # noqa: PLR2004
    data = record(rng, cls, context, **{n: {} for n in left}, **{n: v for n, v in given.items() if n not in left})
    for n in left:
        del data[cls.model_fields[n].alias or n]
    if rng.random() < 0.25:  # noqa: PLR2004 - a share, as below
        data["noise"] = {n: record(rng, Noise) for n in NOISES[: int(rng.integers(1, 3))]}
    try:
        columns = cls.model_validate(data).columns()
    except (DataError, ValidationError, OSError) as error:
        raise Redrawn(f"data: {error}") from None
    if any(math.prod(c.shape) > VALUES for c in columns.values()):
        raise Redrawn("data: an example is too large")
    here = _Experiment(rng, data, columns, _free(cls))
    for name, column in columns.items():
        here.values.append(Value(name, column.shape, column.dtype, column.classes, frozenset({name})))
    return here


def _mapping(cls: type[DataSet]) -> str | None:
    """The field of a data set that takes any fields of the data."""
    names = ("fields", "values")
    return next((n for n, i in cls.model_fields.items() if (i.alias or n) in names and i.is_required()), None)


def _free(cls: type[DataSet]) -> bool:
    return _mapping(cls) is not None


def _described(cls: type[DataSet]) -> bool:
    """Whether a field is a record of what is wanted, and not the numbers themselves."""
    found = _mapping(cls)
    return found is not None and get_args(cls.model_fields[found].annotation)[1] is not Any


def _numbers(rng: np.random.Generator, examples: int, shape: Shape, classes: int | None = None) -> Plain:
    """Numbers in nested lists, with few digits: half of them whole where they are ids."""
    if classes or rng.random() < 0.3:  # noqa: PLR2004
        return rng.integers(classes or 4, size=(examples, *shape)).tolist()
    return np.round(rng.standard_normal((examples, *shape)), 2).tolist()


# Networks -------------------------------------------------------------------------------------------------


def _network(here: _Experiment, name: str) -> None:
    """Draw a network for values that there are, and what it says of them."""
    rng = here.rng
    usable = [v for v in here.values if v.text not in here.made]
    targets = [] if here.free else [v for v in usable if v.text not in here.noises]
    target = weighted(rng, targets) if targets and not here.chance(0.3) else None
    pool = [v for v in usable if v is not target] or usable
    if here.calls and here.chance(0.7):
        pool = [v for v in pool if v.networks] or pool
    count = 1 if len(pool) < 2 or not here.chance(0.25) else 2  # noqa: PLR2004
    given = [pool[i] for i in rng.permutation(len(pool))[:count]]
    formal = (
        ["x"]
        if count == 1 and here.chance(0.7)
        else ["a", "b"][:count]
        if here.chance(0.5)
        else ["first", "second"][:count]
    )
    sketch = Sketch(
        rng, {n: (v.shape, v.dtype, v.classes) for n, v in zip(formal, given, strict=True)}, here.data["batch"]
    )
    many = int(rng.integers(1, 7)) if not here.chance(0.1) else int(rng.integers(8, 22))
    sketch.grow(many)
    sketch.join()
    if target is not None:
        wanted = target.shape if target.dtype == "float" else (*target.shape, target.classes or 2)
        sketch.towards(wanted)
    layers, output = sketch.finished(here.blocks)
    network: dict[str, Plain] = {} if formal == ["x"] and here.chance(0.7) else {"inputs": formal}
    network["layers"] = layers
    if output:
        network["output"] = output
    here.networks[name] = network
    shape = sketch.scope.shapes[sketch.last]
    _called(here, name, given, shape)
    if here.chance(0.3):
        alike = [
            [v for v in usable if (v.shape, v.dtype) == (g.shape, g.dtype) and (v.classes or 0) <= (g.classes or 0)]
            for g in given
        ]
        others = [weighted(rng, options) for options in alike]
        if others != given:
            _called(here, name, others, shape)


def _called(here: _Experiment, name: str, given: Sequence[Value], shape: Shape) -> None:
    text = f"{name}({', '.join(v.text for v in given)})"
    used = frozenset().union(*(v.fields for v in given)), frozenset({name}).union(*(v.networks for v in given))
    call = Value(text, shape, "float", None, *used)
    here.calls.append(call)
    here.values.append(call)


class Sketch:
    """A list of layers under way, tried layer by layer with the resolver's own rules."""

    adapter: TypeAdapter[Layer] = TypeAdapter(LayerItem)

    def __init__(
        self, rng: np.random.Generator, inputs: Mapping[str, tuple[Shape, str, int | None]], batch: int, depth: int = 0,
        named: Iterator[str] | None = None,
    ) -> None:  # fmt: skip
        self.rng, self.depth, self.batch = rng, depth, batch
        self.names = named or _fresh()
        self.inputs = tuple(inputs)
        network = Network(inputs=self.inputs, layers=("relu",))  # type: ignore[arg-type] # validated from YAML's form
        # What the resolver's rules ask of the whole spec; how small a layer is to be is judged here.
        self.shim = SimpleNamespace(
            note=lambda _path, why: self.refused.append(why), spec=SimpleNamespace(data=SimpleNamespace(batch=batch)),
            nodes=0, fits=lambda _size, _what, _path: True, conversion=lambda _field, _dtype: "",
        )  # fmt: skip
        self.refused: list[str] = []
        signature = tuple((shape, dtype) for shape, dtype, _ in inputs.values())
        compiler: Any = self.shim
        self.builder = _Builder(compiler, network, signature, {n: c for n, (_, _, c) in inputs.items()})
        self.builder.explicit = set()
        self.layers: list[Plain] = []
        self.last = self.inputs[0]
        self.read: set[str] = set()
        self.unnamed: set[str] = set()
        """Values that no layer can name: what a repetition leaves."""

    @property
    def scope(self) -> Any:  # noqa: ANN401 - the resolver's own
        """Shapes and types by name."""
        return self.builder.scope

    def shape(self) -> Shape:
        """That of the last value."""
        found: Shape = self.scope.shapes[self.last]
        return found

    def grow(self, count: int) -> None:
        """Draw so many layers, as far as any fit."""
        for _ in range(count):
            for _ in range(TRIES):
                if self.another():
                    break

    def another(self) -> bool:
        """Draw a layer, and add it if it fits."""
        cls = self._kind()
        if any(info.annotation is str and info.is_required() for info in cls.model_fields.values()):
            return self._referring(cls)
        inputs = self._inputs(cls)
        shapes = [self.scope.shapes[n] for n in inputs or (self.last,)]
        words = {"": [*self.scope.shapes], "class_name": NAMES[:4]}
        context = Context(words=words, size=math.prod(shapes[0]), layers=lambda: self._inside(inputs or (self.last,)))
        try:
            drawn = kind(self.rng, cls, context)
        except Undrawable:
            return False
        return self.add(drawn, inputs)

    def _referring(self, cls: type[Any]) -> bool:
        """Add a layer that names another one, whichever of all it may be: most are of the wrong kind, or have another width."""
        known = [n for n in self.scope.shapes if self.scope.dtypes[n] == "float" and n not in self.unnamed]
        pairs = [(n, read) for n in self.scope.shapes for read in known]
        for i in self.rng.permutation(len(pairs)):
            name, read = pairs[int(i)]
            if self.add(kind(self.rng, cls, Context(words={"": [name]})), (read,)):
                return True
        return False

    def _kind(self) -> type[Any]:
        """A kind of layer: first the module that it is defined in, so that the many activations are not most of all."""
        wanted = self.scope.dtypes[self.last]
        fitting = [
            c
            for c in LAYERS
            if (getattr(c, "dtype", "float") == wanted or wanted == "float")
            and (self.depth < DEEPEST or issubclass(c, Op))
        ]
        families = sorted({c.__module__ for c in fitting})
        family = weighted(self.rng, families)
        return weighted(self.rng, [c for c in fitting if c.__module__ == family])  # type: ignore[no-any-return]

    def _inputs(self, cls: type[Any]) -> tuple[str, ...] | None:
        """What a layer reads: the last value, an earlier one now and then, several where it takes several."""
        wanted = getattr(cls, "dtype", "float")
        known = [n for n in self.scope.shapes if self.scope.dtypes[n] == wanted and n not in self.unnamed]
        least, most = getattr(cls, "arity", (1, 1))
        if not known or self.last in self.unnamed:
            return None
        if most == 1:
            branch = (len(known) > 1 and self.rng.random() < 0.15) or self.last not in known  # noqa: PLR2004
            return (weighted(self.rng, known),) if branch else None
        count = max(least, int(self.rng.integers(1, min(most or 3, 3) + 1)))
        shape = self.shape()
        alike = [n for n in known if self.scope.shapes[n] == shape] or known
        pool = alike if self.rng.random() < 0.7 else known  # noqa: PLR2004
        others = [weighted(self.rng, pool) for _ in range(count - 1)]
        mine = [self.last if self.last in known else weighted(self.rng, known)]
        both = [*mine, *others] if self.rng.random() < 0.5 else [*others, *mine]  # noqa: PLR2004
        return tuple(both)

    def _inside(self, inputs: Sequence[str]) -> list[Plain]:
        """The layers of a container that reads such a value."""
        shape, dtype = self.scope.shapes[inputs[0]], self.scope.dtypes[inputs[0]]
        inner = Sketch(self.rng, {"x": (shape, dtype, None)}, self.batch, self.depth + 1, self.names)
        inner.grow(int(self.rng.integers(1, 4)))
        inner.join()
        if self.rng.random() < 0.6:  # noqa: PLR2004 - around a residual the shapes must be one
            inner.towards(shape)
        return inner.layers or ["relu"]

    def add(self, drawn: Plain, inputs: tuple[str, ...] | None = None) -> bool:
        """Add a layer, if the resolver takes it and nothing becomes too large."""
        ((name, arguments),) = drawn.items() if isinstance(drawn, dict) else ((drawn, None),)
        own = next(self.names)
        shorthand = next((c.shorthand for c in LAYERS if c.kind == name), None)
        fields = dict(arguments) if isinstance(arguments, dict) else {} if arguments is None else {shorthand: arguments}
        fields |= {"name": own} | ({"inputs": list(inputs)} if inputs else {})
        known = set(self.scope.shapes)
        before = self._saved()
        if (new := self._tried({name: fields}, before)) is None:
            return False
        if self.rng.random() < GIVEN and (given := _given(self.rng, new)):
            self._restored(before)
            plain, fields = fields, fields | given
            if (new := self._tried({name: fields}, before)) is None:
                fields = plain
                new = self._tried({name: fields}, before) or []
        # What stands inside of a residual is read inside of it.
        for node in new[:-1]:
            del self.scope.shapes[node.name], self.scope.dtypes[node.name]
        self.read |= set(inputs or (self.last,))
        self.read |= {v for v in fields.values() if isinstance(v, str) and v in known}
        self.layers.append({name: fields})
        self.last = new[-1].name
        if self.last != own:
            self.unnamed.add(self.last)
        return True

    def _tried(self, layer: Plain, before: tuple[Any, ...]) -> list[Node] | None:
        """The nodes of a layer, if the resolver takes it."""
        builder, self.shim.nodes = self.builder, 0
        try:
            builder.layer(self.adapter.validate_python(layer), self.last, ())
        except ValidationError:
            return None
        new: list[Node] = builder.nodes[before[0] :]
        if builder.failed or not new or not _small(builder.nodes, new) or any(map(deaf, new)):
            self._restored(before)
            return None
        return new

    def _saved(self) -> tuple[Any, ...]:
        return len(self.builder.nodes), dict(self.scope.shapes), dict(self.scope.dtypes), self.builder.counts.copy()

    def _restored(self, before: tuple[Any, ...]) -> None:
        count, shapes, dtypes, counts = before
        self.builder.failed = False
        del self.builder.nodes[count:]
        for mine, was in ((self.scope.shapes, shapes), (self.scope.dtypes, dtypes)):
            mine.clear()
            mine.update(was)
        self.builder.counts = counts.copy()

    def join(self) -> None:
        """Let everything be read: what is loose is brought into one shape and put together."""
        joining = [c for c in LAYERS if getattr(c, "arity", (1, 1))[1] is None]
        for _ in range(8):
            loose = [n for n in self.scope.shapes if n not in self.read and n != self.last]
            if not loose and self.scope.dtypes[self.last] == "float":
                return
            if self.scope.dtypes[self.last] != "float" or (loose and self.scope.dtypes[loose[0]] != "float"):
                wanted = self.last if self.scope.dtypes[self.last] != "float" else loose[0]
                for _ in range(TRIES):
                    cls = weighted(self.rng, [c for c in LAYERS if getattr(c, "dtype", "float") != "float"])
                    if self.add(kind(self.rng, cls), (wanted,)):
                        break
                continue
            other = loose[0]
            if self.last in self.unnamed:
                self.add({"flatten": None})
            for _ in range(6):
                if self.add({weighted(self.rng, joining).kind: None}, (other, self.last)):
                    break
            else:
                for n in (other, self.last):
                    if len(self.scope.shapes[n]) != 1:
                        self.add({"flatten": None}, (n,))
        raise Redrawn("what is loose cannot be joined")

    def towards(self, wanted: Shape) -> None:
        """Add the layers that lead to a shape."""
        have = self.shape()
        if have == wanted:
            return
        if have[:-1] == wanted[:-1] and wanted and have:
            done = self.add({"dense": {"units": wanted[-1]}})
        else:
            done = len(have) == 1 or self.add({"flatten": None})
            done = done and self.add({"dense": {"units": math.prod(wanted)}})
            done = done and (len(wanted) == 1 or self.add({"reshape": {"shape": list(wanted)}}))
        if not done:
            raise Redrawn(f"no layers lead from {have} to {wanted}")

    def finished(self, blocks: dict[str, Plain]) -> tuple[list[Plain], str | None]:
        """The layers as a spec has them, and the network's output where it is named."""
        if not self.layers and not self.add(
            "relu" if self.scope.dtypes[self.last] == "float" else {"embedding": {"features": 2}}
        ):
            raise Redrawn("there is no layer")
        named = self.last not in self.unnamed and self.rng.random() < 0.15  # noqa: PLR2004
        kept = _referred(self.layers) | ({self.last} if named else set())
        layers = [_bare(layer, kept, self.rng) for layer in self.layers]
        return _hoisted(layers, blocks, self.rng), self.last if named else None


def _given(rng: np.random.Generator, nodes: Sequence[Node]) -> dict[str, Plain]:
    """Initial values that are written out, for one of a layer's parameters: by the name of the field that has its rule."""
    rules = [
        c.kind for c in INITIALIZERS if any(i.annotation is Any and i.is_required() for i in c.model_fields.values())
    ]
    op = nodes[-1].op
    options = [
        (field, parameter.shape)
        for parameter in ([] if isinstance(op, BlockOp) or len(nodes) > 1 else nodes[-1].parameters)
        for field in type(op).model_fields
        if getattr(op, field) is parameter.init and math.prod(parameter.shape) <= WRITTEN
    ]
    if not options or not rules:
        return {}
    chosen, shape = weighted(rng, options)
    return {chosen: {weighted(rng, rules): np.round(rng.standard_normal(shape), 2).tolist()}}


def _small(nodes: Sequence[Any], new: Sequence[Any]) -> bool:
    """Whether what is new is small, and all of it not too much."""
    if sum(_count(node) for node in nodes) > NODES:
        return False
    for node in new:
        graphs = [node.op.graph, *node.op.graph.blocks] if isinstance(node.op, BlockOp) else []
        for one in (node, *(inner for graph in graphs for inner in graph.nodes)):
            owned = [] if isinstance(one.op, BlockOp) else one.parameters
            if math.prod(one.shape) > VALUES or sum(math.prod(p.shape) for p in owned) > PARAMETERS:
                return False
    return True


def _count(node: Any) -> int:  # noqa: ANN401 - a node
    return 1 + sum(_count(inner) for inner in node.op.graph.nodes) if isinstance(node.op, BlockOp) else 1


def _fresh() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{NAMES[number % len(NAMES)]}{number}"


def _parts(layer: Plain) -> tuple[str, dict[str, Plain]]:
    ((name, fields),) = layer.items()
    return name, fields


def _below(layer: Plain) -> list[list[Plain]]:
    """The lists of layers inside a layer."""
    if not isinstance(layer, dict):
        return []
    found = []
    for fields in layer.values():
        if isinstance(fields, dict):
            found += [
                v
                for k, v in fields.items()
                if isinstance(v, list) and v and all(isinstance(i, (dict, str)) for i in v) and k != "inputs"
            ]
    return found


def _referred(layers: Sequence[Plain]) -> set[str]:
    """Names that any layer reads."""
    found: set[str] = set()
    for layer in layers:
        if isinstance(layer, dict):
            for fields in layer.values():
                if isinstance(fields, dict):
                    found |= set(fields.get("inputs", ()))
                    found |= {v for k, v in fields.items() if isinstance(v, str) and k not in ("name", "class_name")}
        for inner in _below(layer):
            found |= _referred(inner)
    return found


def _bare(layer: Plain, kept: set[str], rng: np.random.Generator) -> Plain:
    """A layer without its name where nobody needs it, in its short form where it has one, most of the time."""
    if not isinstance(layer, dict):
        return layer
    name, fields = _parts(layer)
    if not isinstance(fields, dict):
        return layer
    fields = {
        k: [_bare(item, kept, rng) for item in v] if any(v is inner for inner in _below(layer)) else v
        for k, v in fields.items()
    }
    if fields.get("name") not in kept and rng.random() < 0.85:  # noqa: PLR2004
        fields.pop("name", None)
    shorthand = next((c.shorthand for c in LAYERS if c.kind == name), None)
    if not fields:
        return name
    if shorthand and set(fields) == {shorthand} and rng.random() < 0.7:  # noqa: PLR2004
        return {name: fields[shorthand]}
    return {name: fields}


def _hoisted(layers: list[Plain], blocks: dict[str, Plain], rng: np.random.Generator) -> list[Plain]:
    """The layers, now and then with a block declared in the spec's own `blocks:`, one of its numbers a parameter."""
    found = []
    for layer in layers:
        fields = layer.get("block") if isinstance(layer, dict) else None
        if not isinstance(fields, dict) or rng.random() < 0.4:  # noqa: PLR2004
            found.append(layer)
            continue
        name = f"part{len(blocks) + 1}"
        use: dict[str, Plain] = {k: fields[k] for k in ("name", "inputs") if k in fields}
        inner: list[Plain] = list(fields["layers"])
        parameters: dict[str, Plain] = {}
        for i, item in enumerate(inner):
            if isinstance(item, dict) and len(item) == 1:
                op, arguments = _parts(item)
                if isinstance(arguments, int) and not isinstance(arguments, bool):
                    inner[i] = {op: "$size"}
                    parameters, use = {"size": None if rng.random() < 0.5 else arguments}, {"size": arguments, **use}  # noqa: PLR2004
                    break
        blocks[name] = ({"parameters": parameters} if parameters else {}) | {"layers": inner}
        found.append({name: use} if use else name)
    return found


# Training and evaluation ----------------------------------------------------------------------------------


def _updates(here: _Experiment) -> list[Plain]:
    """One update or several, so that every network is in one of them."""
    rng = here.rng
    left = set(here.networks)
    found: list[Plain] = []
    while left or (len(found) < 3 and here.chance(0.15)):  # noqa: PLR2004
        pool = [c for c in here.calls if c.networks & left] or here.calls
        # The last calls are the deepest: those that depend on most.
        said = [weighted(rng, pool[-2:] if here.chance(0.7) else pool)]
        if here.chance(0.3):
            said.append(weighted(rng, here.calls))
        terms, touched = [], set()
        for one in said:
            term, other = _term(here, one)
            terms.append(term)
            touched |= one.networks | (other.networks if other else set())
        left -= touched
        found.append(_update(here, terms, sorted(touched), len(found)))
    if len(found) > 1:
        for number, update in enumerate(found):
            update["name"] = f"part_{number}" if here.chance(0.7) else f"phase{number}"
    return [dict(sorted(update.items(), key=lambda item: ORDER.index(item[0]))) for update in found]


ORDER = ("name", "values", "loss", "over", "optimizer", "schedule", "clip")


def _update(here: _Experiment, terms: list[Plain], touched: list[str], number: int) -> Plain:
    rng = here.rng
    update: dict[str, Plain] = {}
    if len(here.networks) > 1 or here.chance(0.2):
        count = int(rng.integers(1, len(touched) + 1))
        over = [touched[i] for i in sorted(rng.permutation(len(touched))[:count])]
        update["over"] = over[0] if len(over) == 1 and here.chance(0.5) else over
    values, terms = _named(here, terms, number)
    if values:
        update["values"] = values
    update["loss"] = terms[0] if len(terms) == 1 and here.chance(0.6) else terms
    context = Context(words={"": ("bias", "scale", "kernel", "embedding", "*.bias", "*1.*")})
    update["optimizer"] = kind(rng, weighted(rng, OPTIMIZERS), context)
    if here.chance(0.5):
        update["schedule"] = kind(rng, weighted(rng, SCHEDULES))
    if here.chance(0.35):
        update["clip"] = kind(rng, weighted(rng, CLIPS))
    return update


def _named(here: _Experiment, terms: list[Plain], number: int) -> tuple[dict[str, str], list[Plain]]:
    """Inner calls given a name of their own, now and then."""
    text = str(terms)
    inner = [c.text for c in here.calls if text.count(c.text) and here.chance(0.4)]
    if not inner:
        return {}, terms
    chosen, name = inner[0], ("made", "kept", "seen")[number % 3]

    def put(item: Plain) -> Plain:
        if isinstance(item, dict):
            return {k: put(v) for k, v in item.items()}
        return item.replace(chosen, name) if isinstance(item, str) else item

    return {name: chosen}, [put(term) for term in terms]


def _term(here: _Experiment, said: Value) -> tuple[Plain, Value | None]:
    """A term of a loss on what a network says, and what it is held against."""
    for _ in range(TRIES):
        cls = weighted(here.rng, LOSSES)
        found = _target(here, cls, said)
        if found is not None:
            text, value = found
            given = dict(zip(cls.roles, (said.text, text), strict=True))
            return kind(here.rng, cls, **given), value
    raise Redrawn(f"no loss fits a value of shape {list(said.shape)}")


def _target(here: _Experiment, cls: type[Loss], said: Value) -> tuple[str | float, Value | None] | None:
    """Something that a loss can be held against: a field, a new field, a number, or what a network says."""
    rng = here.rng
    loss = cls.model_construct()

    def fits(shape: Shape | None) -> bool:
        try:
            loss.check(said.shape, shape)
        except ShapeError:
            return False
        return True

    if not cls.integer_targets and here.chance(0.12) and fits(None):
        return weighted(rng, (0, 1, 0.5)), None
    wanted = "int" if cls.integer_targets else "float"
    options = [
        v
        for v in here.values
        if v.dtype == wanted
        and v is not said
        and fits(v.shape)
        and (v.classes or 0) <= (said.shape or (0,))[-1] + (0 if v.classes else 1)
    ]
    fields = [v for v in options if not v.networks]
    calls = [v for v in options if v.networks]
    if here.free and (not fields or here.chance(0.6)):
        for shape in (said.shape, said.shape[:-1], ()):
            if fits(shape) and (said.shape or not cls.integer_targets):
                return _made(here, shape, said.shape[-1] if cls.integer_targets else None), None
    if calls and (not fields or here.chance(0.25)):
        other = weighted(rng, calls)
        return other.text, other
    return (weighted(rng, fields).text, None) if fields else None


def _made(here: _Experiment, shape: Shape, classes: int | None) -> str:
    """A new field of the data, made to fit."""
    for name, column in here.made.items():
        if column.shape == shape and column.classes == classes:
            return name
    if len(here.made) == len(TARGETS):
        raise Redrawn("enough targets")
    name = TARGETS[len(here.made)]
    cls = next(c for c in DATASETS if here.data["dataset"] in get_args(c.model_fields["dataset"].annotation))
    key = cls.model_fields[str(_mapping(cls))].alias or str(_mapping(cls))
    if _described(cls):
        here.data[key][name] = ({"shape": list(shape)} if shape else {}) | ({"classes": classes} if classes else {})
    else:
        examples = len(next(iter(here.data[key].values())))
        if examples * math.prod(shape) > INLINE:
            raise Redrawn("too many numbers to write out")
        numbers = (
            _numbers(here.rng, examples, shape, classes)
            if classes
            else np.round(here.rng.random((examples, *shape)), 2).tolist()
        )
        here.data[key][name] = numbers
    column = Column(shape, "int" if classes else "float", classes)
    here.made[name] = here.columns[name] = column
    here.values.append(Value(name, shape, column.dtype, classes, frozenset({name})))
    return name


def _evaluation(here: _Experiment) -> Plain:
    """Metrics, predictions and samples that fit."""
    rng = here.rng
    fields = [v for v in here.values if not v.networks and v.text not in here.noises]
    found: dict[str, Plain] = {}
    metrics = []
    for cls in METRICS:
        pairs = [(c, f) for c in here.calls for f in fields if not c.fields & here.noises and _measures(cls, c, f)]
        if pairs and here.chance(0.5):
            call, true = weighted(rng, pairs)
            metrics.append(kind(rng, cls, **dict(zip(cls.roles, (call.text, true.text), strict=True))))
    if metrics:
        found["metrics"] = metrics
    call = weighted(rng, here.calls)
    if here.chance(0.4) and all(math.prod(here.columns[n].shape) <= 64 for n in call.fields):  # noqa: PLR2004
        count = int(rng.integers(1, 4))
        given = {n: _examples(rng, here.columns[n], count) for n in sorted(call.fields)}
        found["predictions"] = [{"name": "guess", "value": call.text, "inputs": given}]
    shown = [c for c in here.calls if len(c.shape) == 3 and c.shape[2] in (1, 3)]  # noqa: PLR2004
    if shown:
        found["images"] = {"images": weighted(rng, shown).text, "count": int(rng.integers(1, 5))}
    written = [
        c
        for c in here.calls
        if c.text.endswith("(tokens)") and c.text.count("(") == 1 and here.data["dataset"] == "text"
    ]
    written = [c for c in written if c.shape == (*here.columns["tokens"].shape, here.columns["tokens"].classes)]
    if written and here.chance(0.7):
        found["text"] = {
            "logits": weighted(rng, written).text,
            "prompt": weighted(rng, ("The", "a b", "?")),
            "length": int(rng.integers(1, 6)),
        }
    return found


def _measures(cls: type[Metric], call: Value, true: Value) -> bool:
    metric = cls.model_construct()
    try:
        metric.check(call.shape, true.shape)
    except ShapeError:
        return False
    return cls.integer_targets == (true.dtype == "int") and (
        not cls.integer_targets or (true.classes or 0) <= call.shape[-1]
    )


def _examples(rng: np.random.Generator, column: Column, count: int) -> Plain:
    if column.dtype == "int":
        return rng.integers(column.classes or 1, size=(count, *column.shape)).tolist()
    return np.round(rng.standard_normal((count, *column.shape)), 2).tolist()
