"""The same from Python: load a spec, read its programs, run it, look at the result in a notebook."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import lanes, spec, words
from harness.backend import BACKENDS
from harness.errors import CallError
from harness.graph import Program
from harness.precision import named
from harness.programs import emitted
from harness.resolve import compile_spec
from harness.source import Source

if TYPE_CHECKING:
    from harness.atlas.measure import Explanation
    from harness.results import RunResult
    from harness.runs import Options
    from harness.supervise import Listener


@dataclass(frozen=True)
class Experiment:
    """A spec, validated, with the text it came from."""

    spec: spec.Spec
    source: Source

    def compile(self, steps: int | None = None, seed: int | None = None) -> Program:
        """The resolved program: shapes, pads, names. Raises SpecError."""
        return compile_spec(self.spec, self.source, steps, seed)

    def emit(
        self,
        backend: str,
        precision: str = "float32",
        threads: int = 1,
        steps: int | None = None,
        seed: int | None = None,
        *,
        observe: bool = False,
        strategy: str | None = None,
    ) -> str:
        """The program of one backend as text; `observe`: the variant that also returns every node's value and gradient.

        `strategy`: how its steps are run, a name of `harness.lanes`; left out, plainly. Raises SpecError, CallError.
        """
        if backend not in BACKENDS:
            raise CallError(
                f"unknown backend '{backend}'{words.hint(backend, BACKENDS)} (backends: {', '.join(BACKENDS)})"
            )
        named(precision)
        program = self.compile(steps, seed)
        lanes.require(program, backend, strategy, observe=observe, precision=precision)
        return emitted(program, backend, precision, threads, observe=observe, strategy=strategy)

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.spec.name)}</b>: {html.escape(self.spec.about)}</p><pre>{html.escape(self.source.text)}</pre>"


def load(path: str | Path) -> Experiment:
    """A spec by path, or by the bare name of one that comes with the harness. Raises SpecError."""
    return Experiment(*spec.load(spec.find(str(path))))


def run(experiment: Experiment | str | Path, *, listen: "Listener | None" = None, **options: Any) -> "RunResult":  # noqa: ANN401
    """Train on every backend and compare; options are the fields of `harness.runs.Options`.

    Raises SpecError, DataError or CallError before any worker starts. A backend that fails is a row of the result.
    """
    from harness import runs  # noqa: PLC0415 - what emission does without

    if not isinstance(experiment, Experiment):
        experiment = load(experiment)
    return runs.run_spec(
        experiment.spec, experiment.source, _options("run", options), listen or (lambda _backend, _event: None)
    )


def explain(
    experiment: Experiment | str | Path,
    *,
    progress: Callable[[int, int, str], object] | None = None,
    **options: Any,  # noqa: ANN401
) -> "Explanation":
    """Measure which defaults of the frameworks would bite this spec, each left to its framework alone.

    Options are the fields of `harness.runs.Options`; in float64 and with 100 steps at most unless they say otherwise.
    `progress` is told how many trainings there are, how many are done, and which one is under way.
    Raises SpecError, DataError or CallError before any training.
    """
    from harness.atlas import measure  # noqa: PLC0415 - the table of differences, which a run does without

    if not isinstance(experiment, Experiment):
        experiment = load(experiment)
    chosen = _options("explain", {"precision": "float64", **options})
    return measure.explain(experiment.spec, experiment.source, chosen, progress or (lambda _total, _done, _what: None))


def _options(what: str, options: dict[str, Any]) -> "Options":
    from harness.runs import Options  # noqa: PLC0415 - what emission does without

    if isinstance(names := options.get("backends"), str):
        options["backends"] = tuple(names.split(","))
    known = Options.__dataclass_fields__
    for name in options:
        if name not in known:
            raise CallError(f"{what} has no option '{name}' (options: {', '.join(known)})")
    for name in options.get("backends", ()):
        if name not in BACKENDS:
            raise CallError(f"unknown backend '{name}'{words.hint(name, BACKENDS)} (backends: {', '.join(BACKENDS)})")
    for name in ("out", "start"):
        if isinstance(path := options.get(name), str):
            options[name] = Path(path)
    return Options(**options)
