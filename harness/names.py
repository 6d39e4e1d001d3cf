"""Names of a spec in emitted programs: which become others there, and which are refused.

A layer, an input or a value may be called whatever its author likes: where a program or a framework has that name for
something else, the program says `name_`. `harness.reserved` has those names, read off the programs themselves.
"""

import builtins
import keyword
from collections.abc import Collection

from harness.backend import OFF_BY_ROUNDING
from harness.reserved import ATTRIBUTES, OF_UPDATES, PROGRAMS

TAKEN = PROGRAMS | {OFF_BY_ROUNDING} | set(dir(builtins)) | set(keyword.kwlist)
"""What no variable and no class of a spec's own is called in a program."""
FIELDS = frozenset({"masks", "order"})
"""What a batch and the run's inputs hold beside the data."""


def variable(name: str, others: Collection[str] = ()) -> str:
    """What a value or an input is called in a program: `name_` where that means something else there, or is another's.

    >>> variable("image"), variable("values"), variable("values", {"values_"})
    ('image', 'values_', 'values__')
    """
    while name in TAKEN or name in others:
        name += "_"
    return name


def attribute(name: str, others: Collection[str] = ()) -> str:
    """What a layer is called: `name_` where a framework's own modules have that attribute.

    >>> attribute("norm"), attribute("output"), attribute("output", {"output_"})
    ('norm', 'output_', 'output__')
    """
    while name in ATTRIBUTES or name in others:
        name += "_"
    return name


def class_name(name: str) -> str:
    """What the class of a network or block is called: `NameNetwork` where that means something else in programs.

    >>> class_name("decoder_block"), class_name("none"), class_name("lstm"), class_name("f"), class_name("_")
    ('DecoderBlock', 'NoneNetwork', 'Lstm', 'FNetwork', 'Network')
    """
    text = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    while text in TAKEN or not text:
        text += "Network"
    return text


def of_update(name: str) -> set[str]:
    """What programs make of an update's name.

    >>> sorted(of_update("actor"))[:3]
    ['ActorLearningRate', 'NO_DECAY_ACTOR', 'actor_groups']
    """
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return {form.replace("{upper}", name.upper()).replace("{camel}", camel).replace("{}", name) for form in OF_UPDATES}


def refused_network(name: str) -> str | None:
    """Why no network can be called so, where several are attributes of one model; None where one can."""
    if name in ATTRIBUTES:
        return f"the frameworks' own models have '{name}' for something else; choose another name, like '{name}_net'"
    return None


def refused_update(name: str) -> str | None:
    """Why no update can be called so: what programs make of its name means something else there."""
    if clash := sorted(of_update(name) & TAKEN):
        return f"programs have '{clash[0]}' for something else; choose another name"
    return None
