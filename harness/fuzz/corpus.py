"""The files that random specs train on: a table, arrays, a text. The same every time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

KEYS = ("signal", "image", "sequence", "label", "target")
"""Names of the arrays in the file."""
COLUMNS = ("height", "width", "weight", "kind", "price")
EXAMPLES = 24


def write(folder: Path) -> None:
    """Write the files, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(17)
    arrays = {
        "signal": rng.standard_normal((EXAMPLES, 6)), "image": rng.standard_normal((EXAMPLES, 5, 4, 2)),
        "sequence": rng.standard_normal((EXAMPLES, 5, 3)), "label": rng.integers(4, size=EXAMPLES),
        "target": rng.standard_normal((EXAMPLES, 2)),
    }  # fmt: skip
    np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type] # NumPy takes the first for a flag
    rows = [",".join(COLUMNS)]
    for _ in range(EXAMPLES):
        numbers = [f"{n:.2f}" for n in rng.standard_normal(len(COLUMNS) - 2)]
        rows.append(",".join([*numbers, str(rng.choice(["1", "2", "10"])), f"{rng.random():.2f}"]))
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "some"]
    text = " ".join(str(rng.choice(words)) for _ in range(200))
    (folder / "text.txt").write_text(text + "\n", encoding="utf-8")


def words(folder: Path) -> Mapping[str, Sequence[str]]:
    """What the fields of data sets that take a text may say, by the field's name."""
    files = [str(folder / name) for name in ("arrays.npz", "table.csv", "text.txt")]
    return {
        "file": [*files, *files, "pydoc_topics"], "target": COLUMNS, "features": COLUMNS, "": KEYS,
        "alphabet": ("abcdefgh ijklmnop", " etaoin", "?xyz"),
    }  # fmt: skip
