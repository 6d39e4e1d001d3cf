"""Values of a training step: `label`, `classifier(image)`, `discriminator(generator(noise))`."""

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from harness import limits
from harness.record import out_of_range
from harness.syntax import parse_expression


@dataclass(frozen=True)
class Name:
    """A field of the data, or a named value."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Call:
    """A network applied to values."""

    network: str
    arguments: tuple["Expression", ...]

    def __str__(self) -> str:
        return f"{self.network}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True)
class Number:
    """The same number for every example."""

    value: float

    def __str__(self) -> str:
        return repr(self.value)


Expression = Name | Call | Number


def parse(text: object) -> Expression:
    """An expression from a spec. Raises ValueError where it is anything but names, calls and numbers."""
    if isinstance(text, (Name, Call, Number)):
        return text
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if (message := out_of_range(text)) is not None or not math.isfinite(text):
            raise ValueError(message or f"a number must be finite, got {text!r}")
        return Number(float(text))
    if not isinstance(text, str):
        raise ValueError(f"an expression is {LIKE}, not {limits.shown(text)}")
    if len(text) > limits.EXPRESSION:
        raise ValueError(f"an expression of {len(text):,} characters; it has {limits.EXPRESSION:,} at most")
    try:
        found = _expression(parse_expression(text.strip()))
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        comma = "; inside {...} a call with a comma needs quotes" if text.count("(") > text.count(")") else ""
        raise ValueError(f"an expression is {LIKE}, not {limits.shown(text)}{comma}") from None
    if depth(found) > limits.NESTING:
        raise ValueError(f"calls within one another, {depth(found)} deep; {limits.NESTING} at most")
    return found


LIKE = "a field or a network's call, like 'classifier(image)'"


def depth(expression: Expression) -> int:
    """How many calls are within one another."""
    return 1 + max(map(depth, expression.arguments)) if isinstance(expression, Call) else 0


def _expression(node: ast.expr) -> Expression:
    match node:
        case ast.Name(id=name):
            return Name(name)
        case ast.Call(func=ast.Name(id=network), args=[_, *_] as arguments, keywords=[]):
            return Call(network, tuple(_expression(argument) for argument in arguments))
        case _:
            raise ValueError


def walk(expression: Expression) -> Iterator[Expression]:
    """The expression's parts, arguments before the calls that use them."""
    if isinstance(expression, Call):
        for argument in expression.arguments:
            yield from walk(argument)
    yield expression


class _AsExpression:
    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: object) -> Expression:
            try:
                return parse(value)
            except ValueError as error:
                raise PydanticCustomError("expression", "{message}", {"message": str(error)}) from None

        return core_schema.no_info_plain_validator_function(validate)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["string", "number"], "description": "A field, a number or a network's call."}


Value = Annotated[Expression, _AsExpression()]
