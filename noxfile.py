"""One session per purpose. `nox -s compare` runs the default comparison, `nox -s tests` the whole suite.

Arguments after `--` go to what the session runs: `nox -s tests -- -k lstm`, `nox -s compare -- digits_lstm --steps 50`.
"""

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests_host", "lint", "types"]

BACKENDS = ["torch", "tensorflow", "jax"]
SPECS = ["linear_regression", "digits_mlp", "digits_cnn", "digits_lstm", "char_transformer", "digits_gan"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def install(session: nox.Session, *extras: str) -> None:
    """This project with some of its extras, editable."""
    session.install("-e", f".[{','.join(extras)}]")


def two_at_once(session: nox.Session, *arguments: str) -> None:
    """The tests in two processes, a file in one of them."""
    session.install("pytest-xdist>=3.6")
    # Both must number the tests alike, and pytest-benchmark would warn that it is idle then.
    session.run(
        "pytest", *arguments, "-n", "2", "--dist", "loadfile", "-p", "no:benchmark", *session.posargs,
        env=ONE_THREAD | {"PYTHONHASHSEED": "0"},
    )  # fmt: skip


@nox.session
def compare(session: nox.Session) -> None:
    """Train the default spec on all three backends and report (or: -- SPEC [OPTIONS])."""
    install(session, "all")
    arguments = session.posargs or ["specs/digits_cnn.yaml"]
    session.run("harness", "run", *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """The suite, with all three frameworks; more cases of what takes minutes to compile are in `tests_slow`."""
    install(session, "all", "test")
    two_at_once(session, "-m", "not slow")


@nox.session
def tests_slow(session: nox.Session) -> None:
    """What `tests` leaves out: every case where that has one a word, every program where that has one a strategy."""
    install(session, "all", "test")
    two_at_once(session, "-m", "slow")


@nox.session
def tests_host(session: nox.Session) -> None:
    """The part of the suite that needs no framework, in an environment without one."""
    install(session, "test")
    two_at_once(session, "-m", "not frameworks and not slow")


@nox.session
@nox.parametrize("backend", BACKENDS)
def tests_backend(session: nox.Session, backend: str) -> None:
    """One backend's part of the suite, in an environment with that framework alone."""
    install(session, backend, "test")
    session.run("pytest", "-m", "frameworks", *session.posargs, env=ONE_THREAD | {"HARNESS_TEST_BACKENDS": backend})


@nox.session
def equivalence(session: nox.Session) -> None:
    """All six specs on all backends, 200 steps, float64 and float32 (or: -- SPEC ...). Takes some minutes."""
    install(session, "all")
    out = session.create_tmp()
    for spec in session.posargs or SPECS:
        for precision in ("float64", "float32"):
            folder = f"{out}/{spec}-{precision}"
            session.run("python", "-c", f"import shutil; shutil.rmtree({folder!r}, ignore_errors=True)", silent=True)
            session.run("harness", "run", spec, "--precision", precision, "--steps", "200", "--out", folder)


@nox.session
def check(session: nox.Session) -> None:
    """The ladder of equivalence, all six specs, float64 and float32 (or: -- SPEC [OPTIONS])."""
    install(session, "all")
    session.run("harness", "check", *(session.posargs or SPECS))


@nox.session
def power(session: nox.Session) -> None:
    """Plant every fault, in one place and in every place, and write the matrix to backends/POWER.md. Takes some hours."""
    install(session, "all")
    session.run("harness", "check", "--power", "--table", "backends/POWER.md", *session.posargs)


@nox.session
def proof(session: nox.Session) -> None:
    """Plant every fault of the catalogue into a program that `harness diff` is then handed; hours, and backends/DIFF.md."""
    install(session, "all")
    session.run("harness", "check", "--power", "--diff", "--precision", "float64", "--table", "backends/DIFF.md", *session.posargs)  # fmt: skip


@nox.session
def faults(session: nox.Session) -> None:
    """Signals in every phase, a full disk, no memory: a table of what became of run, check and bench (or: -- --commands run)."""
    install(session, "all", "test")
    session.run("python", "tests/faults.py", *session.posargs, env=ONE_THREAD)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random specs: 1,000 in float64, 300 in float32, 300 with a planted fault; hours (or: -- [OPTIONS] of one `harness fuzz`)."""
    install(session, "all")
    out = session.create_tmp()
    runs = (
        [session.posargs]
        if session.posargs
        else [
            ["--count", "1000", "--seed", "1"],
            ["--count", "300", "--seed", "2", "--precision", "float32"],
            ["--count", "300", "--seed", "3", "--plant"],
        ]
    )
    for number, arguments in enumerate(runs):
        folder = f"{out}/{number}"
        session.run("python", "-c", f"import shutil; shutil.rmtree({folder!r}, ignore_errors=True)", silent=True)
        own = [] if "--out" in arguments else ["--out", folder]
        session.run("harness", "fuzz", *arguments, *own, env=ONE_THREAD)


@nox.session
@nox.parametrize("device", ["cpu", "gpu"])
@nox.parametrize("backend", BACKENDS)
def bench(session: nox.Session, backend: str, device: str) -> None:
    """pytest-benchmark suites of one backend, into benchmarks/results/<machine>/ (or: -- -k digits_mlp). Cut short, they keep what they have."""
    install(session, backend if device == "cpu" else f"{backend}-gpu", "test")
    code = "from harness.environment import machine_name; print(machine_name())"
    machine = session.run("python", "-c", code, silent=True).strip()
    folder = f"benchmarks/results/{machine}"
    session.run("python", "-c", f"import pathlib; pathlib.Path({folder!r}).mkdir(parents=True, exist_ok=True)")
    hidden = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"} if device == "cpu" else {}
    session.run(
        "pytest", "benchmarks/test_speed.py", "--benchmark-only", "-v", f"--benchmark-json={folder}/{backend}-{device}.json",
        "--benchmark-min-rounds=10", "--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=min",
        *session.posargs, env=ONE_THREAD | hidden | {"HARNESS_BENCH_BACKEND": backend, "HARNESS_BENCH_DEVICE": device},
    )  # fmt: skip


@nox.session
def golden(session: nox.Session) -> None:
    """Compare the emitted programs with tests/golden (or: -- --write, and review the difference like code), and their names with harness/reserved.py."""
    install(session, "test")
    session.run("python", "tests/golden.py", *session.posargs)
    session.run("python", "tests/reserved.py", *session.posargs)


@nox.session
def atlas(session: nox.Session) -> None:
    """Write backends/README.md from the table of differences (or: -- --measure, which trains for ten minutes first)."""
    install(session, "all" if session.posargs else "test")
    session.run("python", "-m", "harness.atlas", *session.posargs, env=ONE_THREAD)


@nox.session
def hostile(session: nox.Session) -> None:
    """A thousand hostile specs and three hundred hostile files: none may end in a traceback, run code, or take long (or: -- --seed 1)."""
    install(session, "test")
    session.run("python", "tests/hostile.py", *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    install(session, "lint")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on harness/ and the emitters."""
    install(session, "types")
    session.run("mypy", *session.posargs)
