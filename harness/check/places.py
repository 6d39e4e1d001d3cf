"""Which of the places where a fault applies it is planted in: the first, another one, every one, or one that is named.

People leave a convention out once, or have it wrong wherever it occurs: both are planted.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Site = tuple[str, str]
"""Where a fault can be: the class and the node, or nothing and an update's name; empty where neither is known."""


@dataclass(frozen=True)
class Place:
    """A choice among the sites of a fault, in the order of the program."""

    name: str
    choose: Callable[[Sequence[Site]], Sequence[int]]

    def of(self, sites: Sequence[Site]) -> list[int]:
        """The numbers of the chosen sites; none where there are none.

        >>> FIRST.of([("A", "norm1"), ("A", "norm2")]), EVERY.of([("A", "norm1"), ("A", "norm2")]), FIRST.of([])
        ([0], [0, 1], [])
        >>> at("A", "norm2").of([("A", "norm1"), ("A", "norm2")]), number(2).of([("A", "norm1"), ("A", "norm2")])
        ([1], [])
        """
        return list(self.choose(sites)) if sites else []


FIRST = Place("first", lambda _sites: [0])
EVERY = Place("every", lambda sites: range(len(sites)))


def another(seed: str) -> Place:
    """One that is drawn from a seed, and is not the first where there are several."""
    drawn = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8])
    return Place("another", lambda sites: [1 + drawn % (len(sites) - 1)] if len(sites) > 1 else [0])


def number(n: int) -> Place:
    """The n-th, from 0; none where there are fewer."""
    return Place(f"number {n}", lambda sites: [n] if n < len(sites) else [])


def at(class_name: str, node: str) -> Place:
    """Those of one node of a class."""
    return Place(
        f"{class_name}.{node}", lambda sites: [i for i, site in enumerate(sites) if site == (class_name, node)]
    )
