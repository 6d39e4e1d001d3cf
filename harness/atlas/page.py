"""The table as `backends/README.md`, with the sizes of `measured.json`; and those sizes, measured."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.atlas.measure import NOTHING, Progress, explain
from harness.atlas.probes import STEPS, loaded
from harness.atlas.rows import ROWS, SECTIONS, Row
from harness.environment import ROOT
from harness.files import write_last
from harness.runs import Options

README = ROOT / "backends" / "README.md"
MEASURED = Path(__file__).with_name("measured.json")
SCHEMA = 1
TITLES = {"torch": "PyTorch", "tensorflow": "Keras", "jax": "Flax / Optax"}

PACKAGES = {
    "torch": "PyTorch", "tensorflow": "TensorFlow", "tensorflow-cpu": "TensorFlow", "keras": "Keras",
    "jax": "JAX", "flax": "Flax", "optax": "Optax",
}  # fmt: skip
"""The packages whose versions a size is said to hold for."""

HEAD = """# Where the frameworks differ, and what the emitted programs do about it

Each row: what the spec means, what each framework does when it is left to itself, what an emitted program says
instead, the test that covers it, and how much it matters. Where a framework's own layer, loss or optimizer agrees with
the definition to rounding, the emitted program uses it with every argument written out; where it does not, the rule is
written once in the emitted file, with the reason beside it.

The definition of an op is `harness/ops/`: a NumPy reference in float64. Numbers here were measured on a CPU with
{versions}. No GPU was measured.

Tests: *case* is a row of `tests/cases.py`, which `tests/test_backends.py` runs on every backend (outputs, loss,
statistics, gradients against finite differences); *fault* is a planted fault of `tests/test_frameworks.py`, which a
comparison must catch; other names are test functions. — is: the spec's own meaning, nothing to do.

Measured size: a network is trained for {steps} steps with that one default left to that framework, beside the same
program without it. The number is the largest difference of the loss, in units of the loss. In brackets is the
network: a bundled spec, or a small one of `harness/atlas/probes.py`. Where a framework's default is also the spec's, it is a
network that says otherwise. *Outputs*: the losses are the same, and what the
trained network then says differs by so much. *0*: below {nothing:g}. *Refused*: an error, which cannot go unnoticed.
`harness explain SPEC` measures the same on a spec of yours.

This page is written by `python -m harness.atlas` from `harness/atlas/rows.py` and `harness/atlas/measured.json`.
"""


def page(measured: Mapping[str, Any]) -> str:
    """The whole page. The same table and sizes give the same text."""
    parts = [HEAD.format(versions=_versions(measured), steps=measured["steps"], nothing=NOTHING)]
    for section in SECTIONS:
        lines = [
            f"## {section}",
            "",
            "| op or rule | what the spec means | PyTorch | Keras on TensorFlow | Flax / Optax | in the emitted program | covered by | measured size |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in ROWS:
            if row.section == section:
                cells = (
                    row.rule,
                    row.means,
                    row.torch,
                    row.tensorflow,
                    row.jax,
                    row.remedy,
                    covered(row),
                    size(row, measured),
                )
                lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def covered(row: Row) -> str:
    """The tests of a row."""
    parts = []
    for what, names in (("case", row.cases), ("fault", row.faults)):
        if names:
            parts.append(f"{what}{'s' if len(names) > 1 else ''} {', '.join(f'`{name}`' for name in names)}")
    parts += [f"`{test.partition('::')[2]}`" for test in row.tests]
    return "; ".join([*parts, *([row.note] if row.note else [])])


def size(row: Row, measured: Mapping[str, Any]) -> str:
    """The measured sizes of a row, or why there is none."""
    if not row.plants:
        return f"none: {row.unmeasured}"
    found = measured["sizes"].get(row.name, {})
    texts = []
    for backend in row.plants:
        if backend not in found:
            texts.append(f"{TITLES[backend]}: not measured")
            continue
        one = found[backend]
        if one["error"]:
            text = "refused"
        elif one["loss"] == "Infinity":
            text = "no number any more"
        elif one["loss"] >= NOTHING:
            text = f"{one['loss']:.1g}"
        else:
            text = f"outputs {one['outputs']:.1g}" if one["outputs"] >= NOTHING else "0"
        texts.append(f"{TITLES[backend]}: {text} ({one['probe']})")
    precision = "" if row.precision == "float64" else f", in {row.precision}"
    return "; ".join(texts) + precision


def _versions(measured: Mapping[str, Any]) -> str:
    """The frameworks of all sizes; a row that was measured again later may have brought another version."""
    seen: dict[str, set[str]] = {}
    for found in measured["sizes"].values():
        for one in found.values():
            for name, version in one["versions"].items():
                seen.setdefault(PACKAGES[name], set()).add(version)
    return ", ".join(
        f"{title} {' and '.join(sorted(seen[title]))}" for title in dict.fromkeys(PACKAGES.values()) if title in seen
    )


def read() -> dict[str, Any]:
    """The committed sizes."""
    data: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return data


def measure(tell: Callable[[str], object], only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Measure the size of every plant (or of some rows') on its probe; rows that are not asked for stay as they are."""
    sizes: dict[str, dict[str, Any]] = dict(read()["sizes"]) if only and MEASURED.exists() else {}
    open_plants = {(row.name, backend) for row in ROWS for backend in row.plants if not only or row.name in only}
    for depth in range(max(len(row.probes) for row in ROWS)):
        jobs: dict[tuple[str, str, str], list[Row]] = {}
        for row in ROWS:
            for backend in row.plants:
                if (row.name, backend) in open_plants and depth < len(row.probes):
                    jobs.setdefault((row.probes[depth], row.precision, backend), []).append(row)
        for (probe, precision, backend), rows in jobs.items():
            options = Options(backends=(backend,), steps=STEPS, precision=precision)
            found = explain(*loaded(probe), options, _telling(tell, probe), rows)
            if found.failures:
                raise RuntimeError(f"{probe} does not train on {backend}: {found.failures[backend]}")
            seen = found.versions.get(backend, {})
            versions = {name: version.partition("+")[0] for name, version in seen.items() if name in PACKAGES}
            for finding in found.findings:
                open_plants.discard((finding.row.name, backend))
                record: dict[str, Any] = {
                    "probe": probe,
                    "loss": None,
                    "outputs": None,
                    "error": finding.error,
                    "versions": versions,
                }
                if finding.effect:
                    effect = finding.effect
                    record |= {"loss": _short(effect.relative), "outputs": _short(effect.outputs)}
                sizes.setdefault(finding.row.name, {})[backend] = record
    order = [row.name for row in ROWS]
    return {
        "schema": SCHEMA, "steps": STEPS,
        "sizes": {name: dict(sorted(sizes[name].items())) for name in order if name in sizes},
    }  # fmt: skip


def _telling(tell: Callable[[str], object], probe: str) -> Progress:
    return lambda _total, _done, what: tell(f"{probe} {what}")


def _short(value: float) -> float | str:
    """Two digits: what another machine would find too."""
    return float(f"{value:.2g}") if value < float("inf") else "Infinity"


def write() -> None:
    """backends/README.md, from the table and the committed sizes."""
    README.write_text(page(read()), encoding="utf-8")


def write_measured(measured: Mapping[str, Any]) -> None:
    """measured.json."""
    write_last(MEASURED, measured)
