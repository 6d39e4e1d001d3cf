"""Random values for the fields of a spec's records, read off the records themselves: types, bounds, choices, defaults.

Nothing here knows an op, a loss or a rule by name. A field that a record gains tomorrow is drawn tomorrow.
"""

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as field_
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from harness.expressions import Value
from harness.record import Also, Kind, OneOf

COUNTS = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 6, 8)
"""Units, channels, kernels, heads: small numbers, so that networks are small."""
LENGTHS = (1, 1, 2, 2, 2, 3, 3, 3, 4)
"""Of lists of numbers: axes of a shape."""
SPREAD = 0.5
"""Decades to both sides of a default within which a number is drawn."""
TRIES = 24
LEFT_OUT = 0.5
"""How often a field that has a default is left out,"""
RULE_LEFT_OUT = 0.8
"""and one whose value is a record of a kind: initial values other than the default ones soon make a dead network."""


class Undrawable(Exception):  # noqa: N818 - it is caught where another is drawn
    """No value of a type was found that its validators take; whoever asked draws something else."""


@dataclass(frozen=True)
class Context:
    """What a value may refer to, and what it must fit."""

    words: Mapping[str, Sequence[str]] = field_(default_factory=dict)
    """What a text can be, by the field's name, or under "" for every other: names of layers, say."""
    keys: Sequence[str] = ()
    """Names for the entries of a mapping."""
    array: Callable[[], Any] | None = None
    """Draws numbers in nested lists, where a field takes anything."""
    size: int | None = None
    """Values of one example: what a list of counts of any length multiplies to."""
    layers: Callable[[], list[Any]] | None = None
    """Draws the layers inside a container."""


def weighted(rng: np.random.Generator, options: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever the options are
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


def kind(rng: np.random.Generator, cls: type[Kind], context: Context | None = None, **given: object) -> Any:  # noqa: ANN401 - YAML
    """A record of a kind as a spec writes it: `relu`, `dense: 4`, `conv2d: {channels: 3, kernel: 2}`. Raises Undrawable."""
    fields = record(rng, cls, context, **given)
    if not fields:
        return cls.kind if rng.random() < 0.5 else {cls.kind: None}  # noqa: PLR2004 - either way of writing it
    if cls.shorthand and set(fields) == {cls.shorthand} and not isinstance(fields[cls.shorthand], dict):
        return {cls.kind: fields[cls.shorthand]}
    return {cls.kind: fields}


def record(
    rng: np.random.Generator, cls: type[BaseModel], context: Context | None = None, **given: object
) -> dict[str, Any]:
    """Fields of a record that its validators take; `given`: those that are not drawn. Raises Undrawable."""
    context = context or Context()
    for _ in range(TRIES):
        fields: dict[str, Any] = {}
        for name, info in cls.model_fields.items():
            written = info.alias or name
            if name in given:
                fields[written] = given[name]
            elif info.is_required() or rng.random() >= (RULE_LEFT_OUT if _is_kind(info) else LEFT_OUT):
                fields[written] = _field(rng, name, info, context)
        try:
            cls.model_validate(fields)
        except ValidationError:
            continue
        return fields
    raise Undrawable(cls.__name__)


def _is_kind(info: FieldInfo) -> bool:
    return any(isinstance(item, OneOf) for item in info.metadata)


def _field(rng: np.random.Generator, name: str, info: FieldInfo, context: Context) -> Any:  # noqa: ANN401 - YAML
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    whole = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    own = context.words.get(name, context.words.get("", ()))
    return _draw(rng, whole, (), replace(context, words={"": own}), default)


def _draw(rng: np.random.Generator, annotation: Any, metadata: tuple[Any, ...], context: Context, default: Any) -> Any:  # noqa: ANN401
    if annotation == Value:
        raise Undrawable("an expression is the caller's to draw")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _draw(rng, arguments[0], (*metadata, *arguments[1:]), context, default)
    if own := [item for item in metadata if isinstance(item, OneOf)]:
        return kind(rng, weighted(rng, list(own[0].family())), context)
    short = [item for item in metadata if isinstance(item, Also)]
    if short and short[0].form.get("items") is not True and rng.random() < 0.5:  # noqa: PLR2004 - the shorter form or the longer
        return int(rng.integers(0, 4))  # where that is none of its short forms, the next is tried
    if origin in (Union, types.UnionType):
        return _draw(rng, weighted(rng, arguments), (), context, default)
    if origin is Literal:
        return weighted(rng, arguments)
    if origin is tuple:
        return _items(rng, arguments, context)
    if origin is dict:
        return {key: _draw(rng, arguments[1], (), context, None) for key in _some(rng, context.keys)}
    if annotation is Any:
        if context.array is None:
            raise Undrawable("there is no shape to draw numbers for")
        return context.array()
    return _scalar(rng, annotation, metadata, context, default)


def _scalar(
    rng: np.random.Generator,
    annotation: Any,  # noqa: ANN401
    metadata: tuple[Any, ...],
    context: Context,
    default: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    if annotation is type(None):
        return None
    if annotation is bool:
        return bool(rng.random() < 0.5)  # noqa: PLR2004
    if annotation is int:
        return _whole(rng, metadata)
    if annotation is float:
        return number(rng, metadata, default)
    if annotation is str:
        words = context.words.get("", ())
        if not words:
            raise Undrawable("there is no word to refer to")
        return weighted(rng, words)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return record(rng, annotation, context)
    raise Undrawable(str(annotation))


def _whole(rng: np.random.Generator, metadata: Sequence[Any]) -> int:
    least = max((getattr(item, "gt", -1) + 1 for item in _constraints(metadata)), default=0)
    high = bounds(metadata)[1]
    fitting = [n for n in (COUNTS if least else (0, 0, *COUNTS)) if least <= n <= high] or [least]
    return int(weighted(rng, fitting))


def _items(rng: np.random.Generator, arguments: tuple[Any, ...], context: Context) -> list[Any]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        if context.layers is not None and not _plain(arguments[0]):
            return context.layers()
        if context.size is not None and _counts(arguments[0]):
            return factors(rng, context.size)
        return [_draw(rng, arguments[0], (), context, None) for _ in range(weighted(rng, LENGTHS))]
    return [_draw(rng, item, (), context, None) for item in arguments]


def _counts(annotation: Any) -> bool:  # noqa: ANN401
    """Whether a type is of numbers from 1 on."""
    whole = get_args(annotation)
    return get_origin(annotation) is Annotated and whole[0] is int and bounds(whole[1:])[0] == 0


def _some(rng: np.random.Generator, keys: Sequence[str]) -> list[str]:
    count = int(rng.integers(1, 4))
    return [keys[i] for i in rng.permutation(len(keys))[:count]]


def _plain(annotation: Any) -> bool:  # noqa: ANN401
    """Whether a type is of numbers or words: what is not is a layer."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return inner in (int, float, str, bool)


def factors(rng: np.random.Generator, size: int) -> list[int]:
    """Up to four numbers that multiply to a size, in any order."""
    found: list[int] = []
    for _ in range(int(rng.integers(0, 4))):
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        found.append(weighted(rng, divisors))
        size //= found[-1]
    found.append(size)
    return [found[i] for i in rng.permutation(len(found))]


def bounds(metadata: Sequence[Any]) -> tuple[float, float]:
    """What a number lies above, or is at least, and at most: the bounds of its field."""
    low, high = -math.inf, math.inf
    for item in _constraints(metadata):
        low = max(low, getattr(item, "gt", low), getattr(item, "ge", low))
        high = min(high, getattr(item, "lt", high), getattr(item, "le", high))
    return low, high


def _constraints(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        elif hasattr(item, "__is_annotated_types_grouped_metadata__"):  # a protocol: isinstance takes a while
            yield from item
        else:
            yield item


def number(rng: np.random.Generator, metadata: Sequence[Any], default: Any = None) -> float:  # noqa: ANN401
    """A number within its bounds: around its default where there is one, now and then a bound that it may reach."""
    low, high = bounds(metadata)
    closed = [item.ge for item in _constraints(metadata) if isinstance(item, annotated_types.Ge)]
    if closed and default is not None and rng.random() < 0.1:  # noqa: PLR2004
        return float(closed[0])  # type: ignore[arg-type] # of a field that is a float
    if math.isfinite(low) and math.isfinite(high):
        return rounded(rng.uniform(low, high))
    if default:
        return rounded(float(default) * 10 ** rng.uniform(-SPREAD, SPREAD))
    if math.isfinite(low):
        return rounded(low + 10 ** rng.uniform(-3, -0.5))
    return rounded(rng.normal(0, 0.3))


def rounded(number: float) -> float:
    """Three digits, as people write numbers."""
    return float(f"{number:.3g}")
