"""Smaller specs by the shape of their graphs: a layer whose readers read what it read, a network cut short, an update less.

`harness.check.reduce` takes layers from lists and makes numbers smaller; it never changes who reads what, which is what
specs of branches and of several networks need.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.spec import LAYERS

Spec = dict[str, Any]
Plain = Any
UNNAMED = {"repeat"}
"""Containers whose value no layer can name: the next one reads it."""


@dataclass(frozen=True)
class Link:
    """A layer with its name and what it reads, both written out; what a repetition leaves has no name."""

    kind: str
    fields: dict[str, Plain]
    name: str
    inputs: tuple[str, ...]


def smaller(data: Spec) -> Iterator[Spec]:
    """Specs with one thing less, those that save the most first."""
    for less in _smaller(data):
        yield pruned(less)


def _smaller(data: Spec) -> Iterator[Spec]:
    updates = data["training"]["updates"]
    for i in range(len(updates)) if len(updates) > 1 else ():
        yield _changed(data, updates=[*updates[:i], *updates[i + 1 :]])
    for i, update in enumerate(updates):
        terms = update["loss"] if isinstance(update["loss"], list) else [update["loss"]]
        for j in range(len(terms)) if len(terms) > 1 else ():
            fewer = update | {"loss": [*terms[:j], *terms[j + 1 :]]}
            yield _changed(data, updates=[*updates[:i], fewer, *updates[i + 1 :]])
        # Any shape can be held against a number: then what leads to it may be cut.
        for j, term in enumerate(terms):
            (fields,) = term.values()
            said = next(v for k, v in fields.items() if k in ("predictions", "logits"))
            plain = {"mse": {"predictions": said, "targets": 0.5}}
            if term != plain:
                loss = [*terms[:j], plain, *terms[j + 1 :]]
                yield _changed(data, updates=[*updates[:i], update | {"loss": loss}, *updates[i + 1 :]])
    for name, network in data["networks"].items():
        for layers in fewer_layers(network["layers"], tuple(network.get("inputs", ("x",))), network.get("output")):
            own = {k: v for k, v in network.items() if k != "output"} | {"layers": layers}
            yield _changed(data, networks=data["networks"] | {name: own})


def _changed(data: Spec, updates: list[Plain] | None = None, networks: Mapping[str, Plain] | None = None) -> Spec:
    found = copy.deepcopy(data)
    if updates is not None:
        found["training"]["updates"] = copy.deepcopy(updates)
    if networks is not None:
        found["networks"] = copy.deepcopy(dict(networks))
    return found


def fewer_layers(layers: Sequence[Plain], inputs: tuple[str, ...], output: str | None = None) -> Iterator[list[Plain]]:
    """The layers cut short after each, then without each of them, then with one input less where there are several."""
    links = linked(layers, inputs)
    if output is not None and links[-1].name != output:
        return
    for i in range(len(links) - 1):
        yield written(_read(links[: i + 1]), inputs)
    for i, link in enumerate(links):
        if len(links) == 1:
            return
        if i == len(links) - 1:
            continue  # that is the network cut short by one
        for instead in dict.fromkeys(link.inputs):
            rest = [
                replace(other, inputs=tuple(instead if n == link.name else n for n in other.inputs))
                for other in (*links[:i], *links[i + 1 :])
            ]
            yield written(_read(rest), inputs)
    for i, link in enumerate(links):
        for n in range(len(link.inputs)) if len(link.inputs) > 1 else ():
            own = replace(link, inputs=(*link.inputs[:n], *link.inputs[n + 1 :]))
            yield written(_read([*links[:i], own, *links[i + 1 :]]), inputs)


def linked(layers: Sequence[Plain], inputs: tuple[str, ...]) -> list[Link]:
    """Layers with everything written out."""
    found: list[Link] = []
    for i, layer in enumerate(layers):
        ((kind, arguments),) = layer.items() if isinstance(layer, dict) else ((layer, None),)
        shorthand = next((str(c.shorthand) for c in LAYERS if c.kind == kind), "")
        fields = dict(arguments) if isinstance(arguments, dict) else {} if arguments is None else {shorthand: arguments}
        before = found[-1].name if found else inputs[0]
        read = fields.pop("inputs", None)
        own = (read,) if isinstance(read, str) else tuple(read) if read else (before,)
        named = None if kind in UNNAMED else fields.pop("name", None)
        found.append(Link(str(kind), fields, named or f"link{i}", own))
    return found


def _read(links: Sequence[Link]) -> list[Link]:
    """Those that the last one depends on."""
    used = {links[-1].name}
    kept: list[Link] = []
    for link in reversed(links):
        if link.name in used:
            kept.append(link)
            used |= {*link.inputs, *(v for v in link.fields.values() if isinstance(v, str))}
    return kept[::-1]


def written(links: Sequence[Link], inputs: tuple[str, ...]) -> list[Plain]:
    """Layers as a spec has them: names where somebody needs them, inputs where they are not the layer before."""
    found: list[Plain] = []
    before = inputs[0]
    needed: set[str] = set()
    for link in links:
        if link.inputs != (before,):
            needed |= set(link.inputs)
        needed |= {v for v in link.fields.values() if isinstance(v, str)}
        before = link.name
    before = inputs[0]
    for link in links:
        fields = dict(link.fields)
        if link.name in needed and link.kind not in UNNAMED:
            fields["name"] = link.name
        if link.inputs != (before,):
            fields["inputs"] = list(link.inputs)
        found.append({link.kind: fields} if fields else link.kind)
        before = link.name
    return found


def pruned(data: Spec) -> Spec:
    """A spec without the networks, fields, noise, blocks and questions that nothing asks for any more."""
    found = copy.deepcopy(data)
    for update in found["training"]["updates"]:
        while unread := [n for n in update.get("values", {}) if not _asked(n, [update["loss"], [v for k, v in update["values"].items() if k != n]])]:  # fmt: skip
            del update["values"][unread[0]]
        if not update.get("values", True):
            del update["values"]
        if isinstance(over := update.get("over"), list):
            called = [update["loss"], update.get("values", {})]
            update["over"] = [n for n in over if _asked(rf"{n}\(", called, end="")] or over
    for name in [n for n in found["networks"] if not _asked(rf"{n}\(", found["training"], end="")]:
        del found["networks"][name]
    if "evaluation" in found and any(
        call not in found["networks"] for call in re.findall(r"\b(\w+)\(", str(found["evaluation"]))
    ):
        del found["evaluation"]
    used = [found["training"], found.get("evaluation", {})]
    for place in ("fields", "values", "noise"):
        own = found["data"].get(place)
        if isinstance(own, dict):
            for name in [n for n in own if not _asked(n, used)]:
                if len(own) > 1 or place == "noise":
                    del own[name]
            if place == "noise" and not own:
                del found["data"]["noise"]
    for name in [n for n in found.get("blocks", {}) if not _asked(n, found["networks"])]:
        del found["blocks"][name]
    if not found.get("blocks", True):
        del found["blocks"]
    return found


def _asked(pattern: str, value: Plain, end: str = r"\b") -> bool:
    """Whether a word stands anywhere in a piece of a spec."""
    return re.search(rf"\b{pattern}{end}", str(value)) is not None
