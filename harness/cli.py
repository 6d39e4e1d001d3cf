"""The `harness` command: thin. Results go to standard output, progress and errors to standard error."""

import atexit
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import harness
from harness.command import INTERRUPTED
from harness.errors import CallError, HarnessError, WorkerFailed
from harness.files import error_text, write_named

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="One network spec, compiled to PyTorch, TensorFlow/Keras and JAX, trained identically and compared.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A spec's file, or the name of one that comes with it.")
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is standard output.")
]
PythonOption = Annotated[
    list[str] | None,
    typer.Option(
        "--python", metavar="BACKEND=PATH", help="The interpreter of a backend, like torch=/opt/t/bin/python."
    ),
]
ProgramOption = Annotated[
    list[str] | None,
    typer.Option(
        "--program", metavar="BACKEND=FILE", help="Your own version of an emitted program, like torch=my_model.py."
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Instead of the spec's seed.")]
StepsOption = Annotated[
    int | None,
    typer.Option(help="Steps of the whole training, those before a checkpoint included; left out, the spec's."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No word of progress on standard error.")]
PrecisionOption = Annotated[str, typer.Option(help="float64, float32, tf32 (on GPUs) or bfloat16.")]


BOTH = "float64,float32"


def main() -> None:
    """The entry point: errors become sentences and exit statuses (2: the spec or the call is wrong)."""
    # Imports make 75,000 objects that stay: looking for garbage among them after every 700, and once more at the end, takes
    # a fifth of a short command's time.
    gc.set_threshold(20_000)
    atexit.register(gc.freeze)
    _speak_in_any_locale()
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except HarnessError as error:
        _complain(str(error))
        sys.exit(3 if isinstance(error, WorkerFailed) else 2)
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; no result was written")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _fall_silent()
        sys.exit(141)
    except OSError as error:
        if _from_interrupt(error):
            _complain("interrupted; no result was written")
            sys.exit(INTERRUPTED)
        _fall_silent()
        _complain(_unwritten(error))
        sys.exit(2)
    except MemoryError:
        _complain("there is not enough memory")
        sys.exit(3)
    except Exception as error:
        # Compiled code that Ctrl-C stops may make an error of its own of it: pydantic does, in the middle of an import.
        if _from_interrupt(error):
            _complain("interrupted; no result was written")
            sys.exit(INTERRUPTED)
        # Usage errors of the command-line library know how to show themselves.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()
        sys.exit(error.exit_code)
    if status == INTERRUPTED:
        _complain("interrupted; no result was written")
    sys.exit(status if isinstance(status, int) else 0)


def _from_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C, or a termination, is what an error was made of: by its chain, or by what it says."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, KeyboardInterrupt) or "KeyboardInterrupt" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _kept(record: str) -> bool:
    if record not in ("some", "all"):
        raise CallError(f"--record is some or all, got '{record}'")
    return record == "all"


@app.command()
def run(
    spec: SpecArgument,
    backends: Annotated[str | None, typer.Option(help="Which ones, like torch,jax; left out, all.")] = None,
    steps: StepsOption = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="CHECKPOINT",
            help="Go on from a checkpoint, of whichever backend, with the step after its last.",
        ),
    ] = None,
    until: Annotated[
        int | None, typer.Option(help="Stop when this many of the steps are done; schedules still span --steps.")
    ] = None,
    seed: SeedOption = None,
    precision: PrecisionOption = "float32",
    threads: Annotated[int, typer.Option(help="Threads, and cores, of each worker.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    python: PythonOption = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; it must be empty or new.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a worker is stopped.")] = 600.0,
    program: ProgramOption = None,
    record: Annotated[
        str, typer.Option(help="What is kept of parameters and gradients by step: some (8 MB a backend) or all.")
    ] = "some",
    json_file: JsonOption = None,
    quiet: QuietOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Train on every backend, compare, and report. Exit: 0 the same, 1 they differ, 2 a wrong spec or call, 3 a backend failed."""
    from harness import runs  # noqa: PLC0415 - seconds of imports that other commands do without
    from harness.drawing import Artist  # noqa: PLC0415
    from harness.environment import backends as chosen  # noqa: PLC0415

    artist = Artist()

    def prepare() -> None:
        with suppress(
            OSError, ImportError, MemoryError
        ):  # all of it is tried again, and said, when the report is written
            artist.start()
            from harness import report  # noqa: F401, PLC0415 - seconds of imports too, while workers train

    options = runs.Options(
        chosen(backends), steps, seed, precision, threads, device, tuple(python or ()), out, timeout, start, until,
        programs=tuple(program or ()), keep_all=_kept(record),
    )  # fmt: skip
    _check_json(json_file)
    with artist, _trainings(quiet=quiet) as listen:
        result = runs.run(spec, options, listen, prepare)
        listen("report", {"phase": "report"})
        try:
            unreported = _reported(result.directory, artist)
        except KeyboardInterrupt:
            _complain(f"interrupted; the result is in {_short(result.directory)}, and there is no report of it")
            sys.exit(INTERRUPTED)
    with _showing(f"{result.spec}: {result.verdict}"):
        if json_file != "-":
            from harness.report.terminal import print_result  # noqa: PLC0415 - as above

            print_result(result, _console())
            if result.verdict == "differs":
                _console().print(f"Where and why: harness diff {_short(result.directory)}", markup=False)
        _write_json(json_file, result.to_json())
    if unreported is not None:
        _complain(str(unreported))
    raise typer.Exit(result.exit)


@app.command()
def diff(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER", help="Another run of the same training, of other backends or programs."),
    ] = None,
    backends: Annotated[str | None, typer.Option(help="Which ones, like torch,jax; left out, all.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many of the run's steps to look at; left out, all.")] = None,
    reduce: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the smallest spec that still shows it there, and a standalone file per framework.",
        ),
    ] = None,
    python: PythonOption = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a worker is stopped.")] = 600.0,
    json_file: JsonOption = None,
    quiet: QuietOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Say where the trainings of a run part first, and why. Exit: 0 they do not, 1 they do, 2 a wrong call, 3 a backend failed."""
    from harness.check import diff as diffs  # noqa: PLC0415 - seconds of imports that other commands do without
    from harness.environment import backends as chosen  # noqa: PLC0415
    from harness.report.ladder import print_diff  # noqa: PLC0415

    _check_json(json_file)
    options = diffs.DiffOptions(chosen(backends), steps, tuple(python or ()), timeout, reduce)
    with _trainings(quiet=quiet) as listen:
        found = diffs.diff([run] if other is None else [run, other], options, listen)
    with _showing(f"{found.spec}: {found.verdict}"):
        if json_file != "-":
            print_diff(found, _console())
        _write_json(json_file, found.to_json())
    raise typer.Exit(found.exit)


@app.command()
def explain(
    spec: SpecArgument,
    backends: Annotated[str | None, typer.Option(help="Which ones, like torch,jax; left out, all.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of each training; left out, the spec's own, 100 at most.")] = None,
    seed: SeedOption = None,
    precision: PrecisionOption = "float64",
    python: PythonOption = None,
    out: Annotated[Path | None, typer.Option(help="Keep each program and its run in this new directory.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a worker is stopped.")] = 600.0,
    json_file: JsonOption = None,
    quiet: QuietOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Say which defaults of the frameworks would bite this spec: each left to its framework alone, and measured."""
    from harness.atlas import terminal  # noqa: PLC0415 - seconds of imports that other commands do without
    from harness.environment import backends as chosen  # noqa: PLC0415

    _check_json(json_file)
    with _jobs(quiet=quiet) as progress:
        found = harness.explain(
            spec, progress=progress, backends=chosen(backends), steps=steps, seed=seed, precision=precision,
            pythons=tuple(python or ()), out=out, timeout=timeout,
        )  # fmt: skip
    with _showing(f"{found.spec}: {len(found.findings)} defaults were looked at"):
        if json_file != "-":
            terminal.show(found, _console())
        _write_json(json_file, found.to_json())
    raise typer.Exit(found.exit)


@app.command()
def emit(
    spec: SpecArgument,
    backend: Annotated[str, typer.Option(help="torch, tensorflow or jax.")],
    out: Annotated[Path | None, typer.Option(help="A file; left out, standard output.")] = None,
    precision: PrecisionOption = "float32",
    threads: Annotated[int, typer.Option(help="Threads that the program's main asks for.")] = 1,
    steps: StepsOption = None,
    seed: SeedOption = None,
    observe: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--observe", help="The variant that also returns every node's value and gradient.")
    ] = False,
    strategy: Annotated[
        str | None, typer.Option(help="How its steps are run, like scan; `harness list strategies` names them.")
    ] = None,
) -> None:
    """Write the program of one backend."""
    text = harness.load(spec).emit(backend, precision, threads, steps, seed, observe=observe, strategy=strategy)
    if out is None:
        _write_source(text)
        return
    write_named(out, text)


@app.command()
def check(
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="SPEC...", help="Specs' files, or names of bundled ones.")
    ] = None,
    rungs: Annotated[
        str | None, typer.Option(help="Numbers or names, like 1-4,relay; left out, 1 to 6.", metavar="RUNGS")
    ] = None,
    backends: Annotated[str | None, typer.Option(help="Which ones, like torch,jax; left out, all.")] = None,
    precision: Annotated[str, typer.Option(help="float64, float32, bfloat16, or several with commas.")] = BOTH,
    steps: Annotated[
        int | None, typer.Option(help="Steps of whole trainings; left out, the spec's, at most 200.")
    ] = None,
    seed: SeedOption = None,
    twins: Annotated[int, typer.Option(help="Twins a backend, of rung 5.")] = 5,
    seeds: Annotated[int, typer.Option(help="Seeds a backend, of rung 7.")] = 5,
    python: PythonOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder that keeps what the check worked with. With --power, what was found: the same call with the same folder goes on where it was interrupted."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a worker is stopped.")] = 600.0,
    power: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--power", help="Plant faults, and show which rung finds which; no SPEC: all there are.")
    ] = False,
    diff: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--diff", help="With --power: have `diff` find each fault, and say how often it is right.")
    ] = False,
    mutant: Annotated[list[str] | None, typer.Option(help="With --power: only this fault; may be repeated.")] = None,
    table: Annotated[Path | None, typer.Option(help="With --power: write the matrix as Markdown.")] = None,
    program: ProgramOption = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Climb the ladder of equivalence. Exit: 0 every rung passed, 1 one did not, 2 a wrong spec or call, 3 a backend failed."""
    from harness.check import climb  # noqa: PLC0415
    from harness.environment import backends as chosen  # noqa: PLC0415
    from harness.report.ladder import print_check, print_planted, write_table  # noqa: PLC0415

    options = climb.CheckOptions(
        climb.rung_names(rungs), chosen(backends), tuple(dict.fromkeys(precision.split(","))), steps, seed, twins, seeds,
        tuple(python or ()), timeout, out, tuple(program or ()),
    )  # fmt: skip
    _check_json(json_file)
    if diff and not power:
        raise CallError("--diff goes with --power; where a run parts: harness diff RUN")
    if power and program:
        raise CallError("--power plants faults into the emitted programs; --program does not go with it")
    if power:
        _check_json(None if table is None else str(table))
        given = [
            *(["--diff"] if diff else []),
            *(["--precision", precision] if precision != BOTH else []),
            *(specs or []),
        ]
        command = " ".join(["harness check --power", *given, *(f"--mutant '{name}'" for name in mutant or [])])
        with _trainings(quiet=quiet) as listen:
            planted = climb.proved if diff else partial(climb.planted, bisect=not mutant)
            found = planted(specs or [], options, listen, mutant or [])
        with _showing("the faults are planted"):
            if json_file != "-":
                print_planted(found, _console())
            _write_json(json_file, found.to_json())
            if table is not None:
                write_table(found, table, f"{command} --table {table}")
        raise typer.Exit(found.exit)
    if not specs:
        raise CallError("check needs a SPEC (`harness list specs` lists those that come with it), or --power")
    with _trainings(quiet=quiet) as listen:
        results = climb.check(specs, options, listen)
    with _showing("; ".join(f"{result.spec}: {result.verdict}" for result in results)):
        if json_file != "-":
            print_check(results, _console())
        _write_json(json_file, {"schema": climb.SCHEMA, "checks": [result.to_json() for result in results]})
    raise typer.Exit(max(result.exit for result in results))


@app.command()
def fuzz(
    count: Annotated[
        int | None, typer.Option(help="How many specs; left out, as many as --minutes allow, or 100.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Draw no further spec after this long.")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawing: a seed and a number are a spec.")] = 0,
    first: Annotated[int, typer.Option(help="The number of the first spec.")] = 0,
    backends: Annotated[str | None, typer.Option(help="Which ones, like torch,jax; left out, all.")] = None,
    precision: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    plant: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--plant", help="Plant a random fault in each spec, and say how many were found.")
    ] = False,
    python: PythonOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder for what is found: specs, and standalone files per framework."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a worker is stopped.")] = 300.0,
    json_file: JsonOption = None,
) -> None:
    """Train random specs on every backend and compare. Exit: 0 all the same (every planted fault found), 1 not, 2 a wrong call, 3 a failure."""
    from harness.environment import backends as chosen  # noqa: PLC0415 - seconds of imports that other commands do without
    from harness.fuzz import fuzz as fuzzing  # noqa: PLC0415
    from harness.fuzz.report import print_fuzz, progress  # noqa: PLC0415

    _check_json(json_file)
    options = fuzzing.FuzzOptions(
        count, minutes, seed, first, chosen(backends), precision, plant, out, tuple(python or ()), timeout
    )
    found = fuzzing.fuzz(options, progress(options))
    if json_file != "-":
        print_fuzz(found, _console())
    _write_json(json_file, found.to_json())
    if found.interrupted:
        _complain(f"interrupted; the result is of the {len(found.outcomes)} specs before")
        sys.exit(INTERRUPTED)
    raise typer.Exit(found.exit)


@app.command()
def bench(
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="SPEC...", help="Specs' files, or names of bundled ones.")
    ] = None,
    backends: Annotated[str | None, typer.Option(help="Which ones, like torch,jax; left out, all.")] = None,
    lanes: Annotated[
        str | None,
        typer.Option(help="default, step, best: which ways of running it, like default,best; left out, all."),
    ] = None,
    precision: PrecisionOption = "float32",
    device: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    batch: Annotated[
        str | None, typer.Option(help="Examples a step, instead of the spec's, or several: 16,64,256.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME:]PLACE=VALUE,VALUE: the spec with each, like width:networks.mlp.layers.1.dense=64,256; may be repeated."
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(help="start, inference: what to measure beside the training step; none; left out, all."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="What each way is to train to, and be timed: a loss, or METRIC=VALUE.")
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            help="At most; fewer where the ratios are known to 1 % before, unless several processes share them."
        ),
    ] = 80,
    processes: Annotated[
        int | None,
        typer.Option(
            help="That each timed way has, one after the other, sharing the rounds; 0: all of a backend in one. Left out, 1; large networks and GPUs, 0."
        ),
    ] = None,
    peers: Annotated[
        Path | None, typer.Option(help="A folder of hand-written programs to time beside, like benchmarks/peers.")
    ] = None,
    core: Annotated[int | None, typer.Option(help="That every worker is pinned to; left out, the last one.")] = None,
    python: PythonOption = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a worker is stopped.")] = 600.0,
    self_test: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--self-test", help="Measure the measuring: a backend against itself, and made 5 % slower.")
    ] = False,
    json_file: JsonOption = None,
    quiet: QuietOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Check, then time the training step of every backend, in interleaved rounds. Exit: 0 timed, 1 they differ, 2 a wrong call, 3 a backend failed."""
    from harness.bench import bench as benches  # noqa: PLC0415 - seconds of imports that other commands do without
    from harness.bench.options import BenchOptions, chosen_lanes, chosen_parts  # noqa: PLC0415
    from harness.bench.record import SCHEMA  # noqa: PLC0415
    from harness.bench.target import parse as parse_target  # noqa: PLC0415
    from harness.environment import backends as chosen  # noqa: PLC0415
    from harness.report.speed import print_bench  # noqa: PLC0415
    from harness.vary import parse  # noqa: PLC0415

    _check_json(json_file)
    changes = [*([f"data.batch={batch}"] if batch else []), *(vary or [])]
    options = BenchOptions(
        chosen(backends), precision, device, tuple(parse(change) for change in changes), chosen_lanes(lanes), rounds, processes,
        tuple(python or ()), timeout, peers, chosen_parts(parts), None if target is None else parse_target(target),
        core,
    )  # fmt: skip
    if self_test:
        own = options if backends else replace(options, backends=("torch",))
        _self_tested(specs or ["digits_mlp"], own, json_file, quiet=quiet)
    if not specs:
        raise CallError("bench needs a SPEC (`harness list specs` lists those that come with it), or --self-test")

    def told(results: Sequence[Any]) -> dict[str, Any]:
        return {"schema": SCHEMA, "benchmarks": [result.to_json() for result in results]}

    kept = 0

    def keep(results: Sequence[Any]) -> None:
        nonlocal kept
        if json_file not in (None, "-"):  # a file has what is done whenever it is cut short
            try:
                _write_json(json_file, told(results))
            except OSError as error:
                _complain(_unwritten(error))
            else:
                kept = len(results)

    try:
        with _trainings(quiet=quiet) as listen:
            results = benches.bench(specs, options, listen, keep)
    except KeyboardInterrupt:
        if not kept:
            raise
        _complain(f"interrupted; {json_file} has what was done before: {kept} of the benchmarks")
        sys.exit(INTERRUPTED)
    with _showing("; ".join(f"{result.spec}: {result.verdict}" for result in results)):
        if json_file == "-":
            _write_json(json_file, told(results))
        else:
            print_bench(results, _console())
    raise typer.Exit(max(result.exit for result in results))


def _self_tested(specs: list[str], options: Any, json_file: str | None, *, quiet: bool) -> NoReturn:  # noqa: ANN401 - its module is imported late
    from harness.bench.selftest import self_test  # noqa: PLC0415

    if len(specs) > 1:
        raise CallError("--self-test is of one spec")
    with _trainings(quiet=quiet) as listen:
        found = self_test(specs[0], options, listen=listen)
    with _showing("the measuring is measured"):
        _write_json(json_file, found.to_json())
        if json_file != "-":
            for sentence in found.sentences():
                _console().print(sentence, markup=False, highlight=False)
    raise typer.Exit(found.exit)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A run's checkpoint.safetensors.")],
    backend: Annotated[str, typer.Option(help="torch, tensorflow or jax, whichever wrote the checkpoint.")],
    out: Annotated[
        Path,
        typer.Option(
            help="A new file: NAME.pt for torch, NAME.weights.h5 or NAME.keras for tensorflow; for jax a new directory."
        ),
    ],
    python: PythonOption = None,
) -> None:
    """Write a checkpoint in a framework's own format, with the program that reads it; neither needs the harness."""
    from harness import export as exports  # noqa: PLC0415

    for path in exports.export(checkpoint, backend, out, tuple(python or ())):
        sys.stdout.write(f"{path}\n")


@app.command(name="report")
def report_(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run directory; or several, and benchmarks' JSON files.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where a report of several goes; left out, the folder `report`.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Write a run's report again, from its directory alone; or one report of any number of runs and benchmarks."""
    from harness import report  # noqa: PLC0415
    from harness.results import RunResult  # noqa: PLC0415

    _check_json(json_file)
    if len(paths) > 1 or not paths[0].is_dir() or out is not None:
        _merged(paths, out or Path("report"), json_file)
        return
    (directory,) = paths
    result = RunResult.read(directory)
    unreported = _reported(directory)
    if json_file != "-":
        report.print_result(result, _console())
    _write_json(json_file, result.to_json())
    if unreported is not None:
        raise unreported


def _merged(paths: Sequence[Path], out: Path, json_file: str | None) -> None:
    """One report of runs and benchmarks."""
    from harness.report import merged  # noqa: PLC0415

    for path in paths:
        if not path.exists():
            raise CallError(f"{path} does not exist")
    found = merged.read(paths)
    page = merged.write(found, out)
    sentences = [merged.conclusion(bench) for bench in found.benches]
    _write_json(json_file, {"report": str(page), "conclusions": sentences})
    if json_file != "-":
        for sentence in sentences:
            _console().print(sentence, markup=False, highlight=False)
        sys.stdout.write(f"{page}\n")


@app.command(name="list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="specs, ops, backends, datasets, losses, optimizers, ...")
    ],
    json_file: JsonOption = None,
) -> None:
    """List what there is, a line each."""
    from harness import catalogue  # noqa: PLC0415

    rows = catalogue.listing(what)
    if json_file != "-" and sys.stdout.isatty():
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, show_header=False, pad_edge=False)
        for name, about in rows.items():
            table.add_row(Text(name), Text(about))
        _console().print(table)
    elif json_file != "-":
        width = max(map(len, rows))
        sys.stdout.writelines(f"{name:<{width}}  {about}\n" for name, about in rows.items())
    _write_json(json_file, rows)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from harness import catalogue  # noqa: PLC0415

    json.dump(catalogue.json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")


@app.command()
def doctor(python: PythonOption = None, device: str = "cpu", json_file: JsonOption = None) -> None:
    """Look at each backend: interpreter, versions, devices, or why it cannot be imported. Exit 3 if one cannot."""
    from harness.environment import examine, interpreters  # noqa: PLC0415

    _check_json(json_file)
    found: dict[str, Any] = {}
    with _trainings(quiet=False) as listen:
        for name, interpreter in interpreters(tuple(python or ())).items():
            listen(name, {"phase": "import"})
            found[name] = examine(name, interpreter, device)
    if json_file != "-":
        console = _console()
        console.print(
            f"harness {harness.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores", markup=False
        )
        for name, facts in found.items():
            versions = ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items())
            state = (
                f"cannot be imported: {facts['error']}"
                if "error" in facts
                else f"{versions}; {', '.join(facts['devices'])}"
            )
            console.print(f"{name}: {state}", markup=False)
            console.print(
                f"    {facts['interpreter']} ({facts['origin']}), Python {facts.get('python', '?')}", markup=False
            )
    _write_json(json_file, found)
    raise typer.Exit(3 if any("error" in facts for facts in found.values()) else 0)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:  # noqa: FBT002
    if version:
        print(harness.__version__)  # noqa: T201
        raise typer.Exit


def _console() -> "Console":
    """Standard output, as wide as the terminal; its import takes longer than a small spec's emission."""
    from rich.console import Console  # noqa: PLC0415

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """As everywhere else: rich's own would end the process with 1, which means that they differ."""
            raise BrokenPipeError

    return Output()


@contextmanager
def _trainings(*, quiet: bool) -> Iterator[Any]:
    """Progress; what cannot be written meanwhile is no fault of the call."""
    from harness import progress  # noqa: PLC0415

    with _working(), progress.trainings(quiet=quiet) as listen:
        yield listen


@contextmanager
def _jobs(*, quiet: bool) -> Iterator[Any]:
    from harness import progress  # noqa: PLC0415

    with _working(), progress.jobs(quiet=quiet) as listen:
        yield listen


@contextmanager
def _working() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkerFailed(f"it cannot go on: {error_text(error)}") from error


@contextmanager
def _showing(said: str) -> Iterator[None]:
    """Print what was found. Where it cannot be written, the exit status stands, and standard error has the verdict, `said`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _fall_silent()
    except OSError as error:
        if not error.filename:
            _fall_silent()
        _complain(f"{_unwritten(error)} ({said})")


def _reported(directory: Path, artist: Any = None) -> Exception | None:  # noqa: ANN401 - its module is imported late
    """Write a run's report. Returns what stood in the way: it costs the report, and not what was found."""
    try:
        from harness import report  # noqa: PLC0415 - seconds of imports

        report.write(directory, artist)
    except (HarnessError, OSError) as error:
        return error
    except (ImportError, MemoryError) as error:
        return WorkerFailed(f"there is no report: {type(error).__name__}: {' '.join(str(error).split())}")
    return None


def _unwritten(error: OSError) -> str:
    return (
        f"cannot write {error_text(error)}" if error.filename else f"cannot write standard output: {error_text(error)}"
    )


def _fall_silent() -> None:
    """Standard output takes nothing more: what is still in its buffer goes nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _speak_in_any_locale() -> None:
    """A character that a stream's encoding lacks becomes a question mark; a stream that is closed is none."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - until the process ends
        elif hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _write_source(text: str) -> None:
    """A program to standard output: UTF-8, which Python's sources are, in every locale."""
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
    else:
        sys.stdout.write(text)


def _check_json(path: str | None) -> None:
    """Refuse a file that cannot be written before an hour of work, not after it."""
    if path in (None, "-"):
        return
    if not Path(str(path)).absolute().parent.is_dir():
        raise CallError(f"--json {path}: there is no directory {Path(str(path)).parent}")


def _write_json(path: str | None, value: Any) -> None:  # noqa: ANN401 - JSON
    if path is None:
        return
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    write_named(Path(path), text)


def _complain(message: str) -> None:
    prefix = "" if message.startswith(("interrupted",)) else "error: "
    with suppress(OSError, ValueError):  # there is nobody to hear it
        sys.stderr.write("\n".join(f"{prefix}{line}" for line in message.splitlines()) + "\n")
        sys.stderr.flush()


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
