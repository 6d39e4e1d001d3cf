"""Who is wrong, where several that should agree do not."""

import math
from collections import Counter
from collections.abc import Sequence

from harness.compare import Comparison

STEP_BY_STEP = " step by step"
"""Of the name of a training whose calls could take many steps, made to take one each: it judges, and is not judged."""
PROVEN = " in the trial"
"""Of the name of the same way's training that has passed in another process: that one judges too."""


def outvoted(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Whom to leave out so that the others agree, and over what: whoever differs most often, until nobody does."""
    left = [c for c in comparisons if not c.same]
    found: dict[str, str] = {}
    while left:
        counts = Counter(
            n for c in left for n in {c.a, c.b} if n != "reference" and not n.endswith((STEP_BY_STEP, PROVEN))
        )
        (worst, most), *others = counts.most_common()
        tied = [name for name, count in others if count == most]
        judge = worst
        own = max((c for c in left if judge in (c.a, c.b)), key=lambda c: c.worst.ratio if c.worst else math.inf)
        if tied and {c.a for c in left} | {c.b for c in left} == {worst, *tied}:
            found |= dict.fromkeys((worst, *tied), f"nobody can tell which is wrong: {own}")
        else:
            found[worst] = str(own)
        left = [c for c in left if not {c.a, c.b} & found.keys()]
    return found
