"""Frozen records and the op-first way of writing them: `- conv2d: {channels: 8, kernel: 3}`, `- relu`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from harness import limits, words


class Record(BaseModel):
    """A frozen piece of a spec: unknown fields, NaN and silent conversions are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def out_of_range(value: object) -> str | None:
    """Why a number cannot be computed with in every precision; None where it can, or is no number.

    >>> out_of_range(1e-320), out_of_range(0.5), out_of_range("a")
    ('a number is 0, or between 1e-37 and 1e+30 in size (float32 holds no other); got 1e-320', None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value in (0, math.inf, -math.inf):
        return None
    if isinstance(value, int):
        fits, most = abs(value) <= limits.COUNT, f"a whole number is {limits.COUNT:,} at most"
        return None if fits else f"{most}; got {limits.shown(value)}"
    if limits.SMALLEST <= abs(value) <= limits.GREATEST or math.isnan(value):
        return None
    between = f"between {limits.SMALLEST:g} and {limits.GREATEST:g} in size (float32 holds no other)"
    return f"a number is 0, or {between}; got {value!r}"


def _real(value: object) -> object:
    if isinstance(value, (bool, str)):
        raise PydanticCustomError("number", "{message}", {"message": f"a number is needed, got {limits.shown(value)}"})
    if (message := out_of_range(value)) is not None:
        raise PydanticCustomError("number", "{message}", {"message": message})
    return value


Real = Annotated[float, BeforeValidator(_real)]
"""A number that every precision can hold; no word and no truth value becomes one."""


class Kind(Record):
    """A record that is written by its own name first, one of a family of alternatives."""

    kind: ClassVar[str]
    """Its name in a spec."""
    shorthand: ClassVar[str | None] = None
    """The field that a bare value sets: `dense: 10` means `dense: {units: 10}`."""


class OneOf:
    """Annotates a field that takes one kind of a family, written op first.

    `families` is called when a schema is built, so that a family may contain records that contain the family.
    """

    def __init__(self, what: str, family: Callable[[], Sequence[type[Kind]]]) -> None:
        self.what, self.family = what, family

    def split(self, value: object) -> tuple[str, object]:
        """`relu`, `{relu: null}`, `{dense: 10}` and `{dense: {units: 10}}` as (kind, arguments)."""
        if isinstance(value, Kind):
            return value.kind, value
        kinds = {cls.kind: cls for cls in self.family()}
        if isinstance(value, str):
            name, arguments = value, None
        elif isinstance(value, Mapping) and len(value) == 1:
            ((name, arguments),) = value.items()
        else:
            got = "the keys " + ", ".join(map(str, value)) if isinstance(value, Mapping) else limits.shown(value)
            got = limits.clipped(got)
            article = "an" if self.what[0] in "aeiou" else "a"
            message = f"{article} {self.what} is one key with its fields below it, like '{next(iter(kinds))}: {{...}}'; got {got}"
            raise PydanticCustomError("one_of", "{message}", {"message": message})
        if name not in kinds:
            raise unknown(self.what, str(name), list(kinds))
        cls = kinds[str(name)]
        if arguments is None:
            arguments = {}
        elif not isinstance(arguments, Mapping) and cls.shorthand:
            arguments = {cls.shorthand: arguments}
        return str(name), arguments

    def __get_pydantic_core_schema__(self, _source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, Any] = {
            cls.kind: core_schema.no_info_before_validator_function(_arguments, handler.generate_schema(cls))
            for cls in self.family()
        }
        union = core_schema.tagged_union_schema(choices, discriminator=_kind)
        return core_schema.no_info_before_validator_function(self.split, union)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        union = schema["schema"]
        alternatives: list[dict[str, Any]] = []
        bare = [cls.kind for cls in self.family() if not any(f.is_required() for f in cls.model_fields.values())]
        if bare:
            alternatives.append({"enum": bare})
        for cls in self.family():
            reference = handler(union["choices"][cls.kind])
            value: dict[str, Any] = reference
            if cls.shorthand:
                value = {"anyOf": [reference, {"not": {"type": "object"}}]}
            elif cls.kind in bare:
                value = {"anyOf": [reference, {"type": "null"}]}
            alternatives.append(
                {
                    "type": "object",
                    "properties": {cls.kind: value},
                    "required": [cls.kind],
                    "additionalProperties": False,
                }
            )
        return {"anyOf": alternatives}


class Also:
    """Annotates a field that may also be written in a shorter form: `convert` makes the long one of it."""

    def __init__(self, convert: Callable[[Any], Any], form: dict[str, Any]) -> None:
        self.convert, self.form = convert, form

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.convert, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        long = handler(schema)
        short = long.get("items", {}) if self.form == {"items": True} else self.form
        return {"anyOf": [long, short]}


def many(value: object) -> object:
    """One item as a list of one."""
    return value if isinstance(value, (list, tuple)) else (value,)


MANY = Also(many, {"items": True})
"""A list, or its only item."""


def _kind(value: tuple[str, object]) -> str:
    return value[0]


def _arguments(value: tuple[str, object]) -> object:
    return value[1]


def unknown(what: str, name: str, known: Sequence[str]) -> PydanticCustomError:
    """The error for a name that nobody declared, with the nearest one that somebody did."""
    message = f"unknown {what} '{limits.clipped(name)}'{words.hint(name, known)} (known: {', '.join(known)})"
    return PydanticCustomError("unknown", "{message}", {"message": message})


def plain(value: Any) -> Any:  # noqa: ANN401 - any record's field
    """A record as it would be written in YAML, every default spelled out."""
    if isinstance(value, Kind):
        return {value.kind: {k: plain(getattr(value, k)) for k in type(value).model_fields}}
    if isinstance(value, BaseModel):
        return {k: plain(getattr(value, k)) for k in type(value).model_fields}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
