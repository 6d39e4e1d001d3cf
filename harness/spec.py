"""The spec: one YAML file that says what is trained, on what, how, and how it is judged."""

import keyword
import os
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from harness import limits, names, source, words
from harness.data.datasets import DATASETS, Data
from harness.errors import Problem, SpecError
from harness.expressions import Value
from harness.losses import LossTerm
from harness.metrics import MetricChoice
from harness.ops import OPS
from harness.ops.base import Count, Size
from harness.optimizers import ClipChoice, Constant, OptimizerChoice, ScheduleChoice
from harness.record import MANY, Kind, OneOf, Record, unknown


def _identifier(why_not: Callable[[str], str | None]) -> AfterValidator:
    """A Python identifier that is no keyword; `why_not` says what else may be wrong with it."""

    def check(name: str) -> str:
        message = None
        if len(name) > limits.NAME:
            message = f"a name has {limits.NAME} characters at most, got {len(name)}: '{limits.clipped(name, 20)}'"
        elif not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name.startswith("_"):
            message = f"a name has letters, digits and underscores, starts with a letter and is no Python keyword; got {name!r}"
        if message := message or why_not(name):
            raise PydanticCustomError("identifier", "{message}", {"message": message})
        return name

    return AfterValidator(check)


PlainName = Annotated[str, _identifier(lambda _name: None)]
NetworkName = Annotated[str, _identifier(names.refused_network)]
UpdateName = Annotated[str, _identifier(names.refused_update)]


class Residual(Kind):
    """Adds its input to what its layers make of it (He et al. 2016, arXiv:1512.03385)."""

    kind = "residual"
    shorthand = "layers"
    layers: "Annotated[tuple[LayerItem, ...], Field(min_length=1)]"
    shortcut: "tuple[LayerItem, ...]" = ()
    """Layers on the way around, where the shapes differ."""


class Repeat(Kind):
    """The same layers several times over, each time with parameters of their own."""

    kind = "repeat"
    times: Count
    layers: "Annotated[tuple[LayerItem, ...], Field(min_length=1)]"


class Block(Kind):
    """Layers that are a module of their own. The spec's own `blocks:` become this."""

    kind = "block"
    layers: "Annotated[tuple[LayerItem, ...], Field(min_length=1)]"
    class_name: PlainName = "block"


LAYERS: tuple[type[Kind], ...] = (*OPS.values(), Residual, Repeat, Block)


class Layer(Record):
    """An op or a container, with its optional name and inputs."""

    op: Annotated[Kind, OneOf("op", lambda: LAYERS)]
    name: PlainName | None = None
    inputs: tuple[str, ...] | None = None

    known: ClassVar[tuple[str, ...]] = tuple(cls.kind for cls in LAYERS)


def _layer(value: object) -> object:
    """`conv2d: {channels: 8, name: conv1}` -> op, name and inputs apart."""
    if isinstance(value, dict) and len(value) == 1:
        ((kind, arguments),) = value.items()
        if isinstance(arguments, dict):
            own = {key: arguments[key] for key in ("name", "inputs") if key in arguments}
            if isinstance(own.get("inputs"), str):
                own["inputs"] = (own["inputs"],)
            rest = {key: item for key, item in arguments.items() if key not in own}
            return {"op": {kind: rest or None}, **own}
        return {"op": value}
    return value if isinstance(value, Layer) else {"op": value}


LayerItem = Annotated[Layer, BeforeValidator(_layer)]
for _cls in (Residual, Repeat, Block):
    _cls.model_rebuild()


class Network(Record):
    """Layers, sequential unless they say otherwise."""

    inputs: tuple[PlainName, ...] = ("x",)
    layers: Annotated[tuple[LayerItem, ...], Field(min_length=1)]
    output: str | None = None
    """The layer whose value is the network's; left out, the last."""


class UpdateSpec(Record):
    """One minimisation of a training step."""

    name: UpdateName | None = None
    values: dict[PlainName, Value] = {}
    """Names for values that several terms use."""
    loss: Annotated[tuple[LossTerm, ...], Field(min_length=1), MANY]
    over: Annotated[tuple[str, ...], MANY] | None = None
    """The networks whose parameters it moves; needed where there is more than one network."""
    optimizer: OptimizerChoice
    schedule: ScheduleChoice = Constant()
    clip: ClipChoice | None = None


class Training(Record):
    """How long, and by which updates, in order, each step."""

    steps: Annotated[int, Field(gt=0, le=limits.STEPS, strict=True)]
    updates: Annotated[tuple[UpdateSpec, ...], Field(min_length=1)]


class Prediction(Record):
    """What the trained network says about given inputs."""

    name: PlainName = "prediction"
    value: Value
    inputs: dict[str, Any] = {}


class TextSample(Record):
    """Text written by greedy decoding: the likeliest next character, again and again."""

    logits: Value
    prompt: Annotated[str, Field(min_length=1)]
    length: Annotated[int, Field(gt=0, le=limits.TEXT, strict=True)] = 200


class ImageSample(Record):
    """Images made from fresh noise, for the report."""

    images: Value
    count: Annotated[int, Field(gt=0, le=400)] = 32


class Evaluation(Record):
    """What is measured on the held-out data (or on the training data, where nothing is held out)."""

    metrics: tuple[MetricChoice, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    text: TextSample | None = None
    images: ImageSample | None = None


class Spec(Record):
    """A whole experiment."""

    name: PlainName
    about: str = ""
    seed: Size = 0
    data: Data
    blocks: dict[PlainName, Any] = {}
    networks: Annotated[dict[NetworkName, Network], Field(min_length=1)]
    training: Training
    evaluation: Evaluation = Evaluation()


def load(path: str | Path) -> tuple[Spec, source.Source]:
    """A spec and its text. Raises SpecError with every problem found."""
    return validate(source.read(Path(path)))


def loads(text: str, name: str = "spec", folder: Path | None = None) -> tuple[Spec, source.Source]:
    """A spec from text; `folder`: where the files are that it names. Raises SpecError with every problem found."""
    return validate(source.parse(text, name, folder))


def validate(text: source.Source) -> tuple[Spec, source.Source]:
    """Located YAML -> Spec. Raises SpecError with every problem found."""
    try:
        found = Spec.model_validate(text.root.plain())
        found.data.look_in(text.folder)
        return found, text
    except ValidationError as error:
        raise SpecError(text.name, [_problem(text, e) for e in _distinct(error.errors())]) from None


def _distinct(errors: Sequence[Any]) -> list[Any]:
    """One error a place: a union reports each of its alternatives."""
    first: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        place = tuple(step for step in error["loc"] if not str(step).startswith(("tuple[", "literal[", "function-")))
        if place in first:
            first[place].setdefault("others", []).append(error)
        first.setdefault(place, {**error, "loc": place})
    # A list whose items are wrong counts as too short as well.
    return [e for place, e in first.items() if e["type"] != "too_short" or not _beneath(place, first)]


def _beneath(place: tuple[Any, ...], places: Iterable[tuple[Any, ...]]) -> bool:
    return any(other != place and other[: len(place)] == place for other in places)


def _problem(text: source.Source, error: Any) -> Problem:  # noqa: ANN401 - pydantic's error record
    path, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        *above, name = path
        known = _fields(above)
        message = f"unknown field '{limits.clipped(str(name))}'{words.hint(str(name), known)}"
        message += f" (fields: {', '.join(known)})" if known else ""
        return text.problem(path, message)
    if kind == "union_tag_invalid":
        known = re.findall(r"'(\w+)'", error["ctx"]["expected_tags"])
        wrong = unknown("data set", str(error["ctx"]["tag"]), known)
        return text.problem((*path, "dataset"), wrong.message())
    if kind == "union_tag_not_found":
        return text.problem(path, "needs 'dataset' (`harness list datasets` lists them)")
    if kind == "missing":
        message = f"needs '{path[-1]}'"
        return text.problem(path[:-1], message)
    if kind == "model_type" and (found := _class_at(path)) is not None:
        return text.problem(path, _by_name(path, found, error.get("input")))
    message = " or ".join(dict.fromkeys([_said(error), *map(_said, error.get("others", ()))]))
    if kind not in OWN:
        got = error.get("input")
        message += f", got {limits.shown(got)}" if isinstance(got, (str, int, float, bool, type(None))) else ""
    return text.problem(path, message)


OWN = {"unknown", "one_of", "expression", "identifier", "value_error", "number", "form"}
"""Errors whose messages say what was given."""


def _said(error: Any) -> str:  # noqa: ANN401 - pydantic's error record
    message = (
        str(error["msg"])
        .removeprefix("Value error, ")
        .replace("tuple", "list")
        .replace("Tuple", "List")
        .replace("dictionary", "mapping")
    )
    return message[0].lower() + message[1:] if message.startswith(("Input", "Field", "List")) else message


def _by_name(path: Sequence[str | int], cls: Any, given: object) -> str:  # noqa: ANN401 - a record's class
    """What to write where a record is given as a bare value."""
    fields = [field.alias or name for name, field in cls.model_fields.items()]
    needed = [field.alias or name for name, field in cls.model_fields.items() if field.is_required()]
    name = path[-1] if isinstance(path[-1], str) else cls.__name__.lower()
    if isinstance(given, (int, float, str)) and len(needed) == 1:
        return f"takes its fields by name: write '{name}: {{{needed[0]}: {limits.clipped(str(given))}}}'"
    if not fields:
        return f"'{name}' has no fields: write it alone"
    return f"takes its fields by name: '{name}: {{{fields[0]}: ...}}' (fields: {', '.join(fields)})"


def _fields(path: Sequence[str | int]) -> list[str]:
    """The fields of the record at a path, for a hint."""
    cls = _class_at(path) or Spec
    own = [field.alias or name for name, field in cls.model_fields.items()]
    return [*own, "name", "inputs"] if cls in LAYERS else own


def _class_at(path: Sequence[str | int]) -> Any:  # noqa: ANN401 - a record's class
    """The class of the record at a path; None where there is none."""
    cls: Any = Spec
    families: dict[str, Any] = {c.kind: c for c in LAYERS}
    families |= {name: c for c in DATASETS for name in get_args(c.model_fields["dataset"].annotation)}
    for step in path:
        if isinstance(step, int):
            continue
        field = cls.model_fields.get(step) if hasattr(cls, "model_fields") else None
        found = families.get(step) if field is None else _record(field.annotation, field.metadata, families)
        if found is not None:
            cls = found
    return cls


def _record(annotation: Any, metadata: Sequence[Any], families: dict[str, Any]) -> Any:  # noqa: ANN401
    """The record inside an annotation: a tuple's, a dict's, an optional's; a family's kinds are noted."""
    for item in metadata:
        if isinstance(item, OneOf):
            families.update({c.kind: c for c in item.family()})
            return None
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _record(argument, getattr(argument, "__metadata__", ()), families)
        if found is not None:
            return found
    origin = getattr(annotation, "__origin__", None)
    return _record(origin, (), families) if isinstance(origin, type) and issubclass(origin, Record) else None


def find(name: str) -> Path:
    """A spec by path or by the bare name of one that comes with the harness."""
    path = Path(name)
    if os.path.exists(name) or path.suffix in {".yaml", ".yml"} or "/" in name:  # noqa: PTH110 - False for what is no path
        return path
    bundled = directory() / f"{name}.yaml"
    if os.path.exists(bundled):  # noqa: PTH110
        return bundled
    near = get_close_matches(name, [p.stem for p in directory().glob("*.yaml")], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else " (`harness list specs` lists those that come with it)"
    raise SpecError(limits.clipped(name), [Problem(f"no such spec{hint}")])


def directory() -> Path:
    """Where the specs that come with the harness are."""
    here = Path(__file__).parent
    beside = here.parent / "specs"
    return beside if beside.is_dir() else here / "specs"


_ = Literal  # used by pydantic's forward references
