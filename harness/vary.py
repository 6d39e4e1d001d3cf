"""The same spec with another value in one place, or in several at once: `data.batch=16,64,256`."""

import io
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from harness.errors import CallError

Scalar = int | float | str | bool


@dataclass(frozen=True)
class Variation:
    """Places of a spec and the values that all of them take, one after the other."""

    places: tuple[str, ...]
    """Like `networks.classifier.layers.1.dense`: keys, and positions in lists counted from 0."""
    values: tuple[Scalar, ...]
    called: str = ""
    """What the series is called, like `width`; empty: its places."""

    @property
    def name(self) -> str:
        """What results call it."""
        return self.called or "+".join(self.places)


def parse(text: str) -> Variation:
    """`[NAME:]PLACE[+PLACE...]=VALUE,VALUE...`. Raises CallError.

    >>> parse("width:networks.mlp.layers.1.dense+networks.mlp.layers.3.dense=64,128")
    Variation(places=('networks.mlp.layers.1.dense', 'networks.mlp.layers.3.dense'), values=(64, 128), called='width')
    """
    left, equals, right = text.partition("=")
    called, named, left = left.rpartition(":")
    places = tuple(place.strip() for place in left.split("+"))
    values = tuple(YAML(typ="safe", pure=True).load(value) for value in right.split(",") if value.strip())
    wrong = not equals or not all(places) or not values or not all(isinstance(v, Scalar) for v in values)
    if wrong or bool(named) != called.strip().isidentifier():
        raise CallError(
            f"--vary takes [NAME:]PLACE=VALUE,VALUE, like data.batch=16,64,256 or width:networks.mlp.layers.1.dense=64,256; got '{text}'"
        )
    return Variation(places, values, called.strip())


def varied(text: str, places: tuple[str, ...], value: Scalar) -> str:
    """A spec's text with the value in those places. Raises CallError where it has none of them."""
    yaml = YAML(typ="rt", pure=True)
    yaml.indent(mapping=2, sequence=4, offset=2)  # as the bundled specs are written
    root = yaml.load(text)
    for place in places:
        *above, last = place.split(".")
        holder = root
        for number, step in enumerate(above):
            holder = _inside(holder, step, ".".join(above[:number]), place)
        key = _key(holder, last, ".".join(above), place)
        if isinstance(holder[key], (dict, list)):
            raise CallError(f"--vary {place}: is no single value there but has {_known(holder[key])}")
        holder[key] = value
    stream = io.StringIO()
    yaml.dump(root, stream)
    return stream.getvalue()


def _inside(holder: Any, step: str, where: str, place: str) -> Any:  # noqa: ANN401 - a piece of YAML
    return holder[_key(holder, step, where, place)]


def _key(holder: Any, step: str, where: str, place: str) -> Any:  # noqa: ANN401
    if isinstance(holder, dict) and step in holder:
        return step
    if isinstance(holder, list) and step.isdecimal() and int(step) < len(holder):
        return int(step)
    raise CallError(f"--vary {place}: {where or 'the spec'} has no '{step}' written in it ({_known(holder)})")


def _known(holder: Any) -> str:  # noqa: ANN401
    if isinstance(holder, dict):
        return ", ".join(map(str, holder))
    return f"0 to {len(holder) - 1}" if isinstance(holder, list) else f"only {holder!r}"
