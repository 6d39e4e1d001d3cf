"""pytest-benchmark suites: specs × strategies × phases of one backend, in this process.

    nox -s "bench(backend='jax', device='cpu')"

Which backend: HARNESS_BENCH_BACKEND; for which device: HARNESS_BENCH_DEVICE. Each program trains its first steps beside the plain one, and that begins with
the reference's loss, before anything is timed: no verdict, no number. One thread, one core; a spec's batches lie on
the device before the clock starts, and the losses of every step are fetched before it stops.
"""

import gc
import importlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from harness import flops, initial, reference, spec
from harness.backend import BACKENDS, Arrays, Session
from harness.bench.inference import MANY, ONE
from harness.bench.timing import BATCHES
from harness.data.inputs import cast, prepare
from harness.graph import Program
from harness.lanes import INFERENCE, PLAIN, STRATEGIES, Strategy, applies, room
from harness.programs import emitted
from harness.questions import arrays as asked_of
from harness.questions import questions
from harness.resolve import compile_spec
from harness.runs import describe
from harness.worker import CHUNK, load_program

BACKEND, DEVICE = os.environ.get("HARNESS_BENCH_BACKEND", ""), os.environ.get("HARNESS_BENCH_DEVICE", "cpu")
SPECS = [
    *sorted(p.stem for p in spec.directory().glob("*.yaml")),
    *sorted(map(str, Path(__file__).parent.glob("specs/*.yaml"))),
]
CHECKED = 10
"""Steps of the check."""
CLOSE = {"loss": 1e-4, "first": 1e-5}
"""Relative: of losses of two strategies in float32 after that many steps; of the first loss and the reference's."""
pytestmark = pytest.mark.skipif(
    BACKEND not in BACKENDS, reason=f"HARNESS_BENCH_BACKEND is none of {', '.join(BACKENDS)}"
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    own = [s for s in STRATEGIES.values() if s.backend == BACKEND and DEVICE in s.devices]
    metafunc.parametrize("name", SPECS, ids=[Path(name).stem for name in SPECS])
    if "strategy" in metafunc.fixturenames:
        metafunc.parametrize("strategy", own, ids=[s.name for s in own])
    if "way" in metafunc.fixturenames:
        metafunc.parametrize("way", INFERENCE.get(BACKEND, ()))
        metafunc.parametrize("rows", [ONE, MANY])


@dataclass
class Ready:
    """A spec's program and what it trains on."""

    program: Program
    inputs: Arrays
    parameters: Arrays
    held_out: bool

    def open(self, strategy: Strategy) -> Session:
        """A session of its program under a strategy, at the start of training."""
        folder = Path(mkdtemp())
        name = f"{self.program.name}_{strategy.backend}_{strategy.name}"
        path = folder / f"{name}.py"
        path.write_text(emitted(self.program, strategy.backend, "float32", strategy=strategy.name))
        module = load_program(path)
        sessions = importlib.import_module(f"backends.{strategy.backend}.session")
        made = sessions.SESSIONS.get(strategy.name, sessions.Session)
        session: Session = made(module, describe(self.program) | {"strategy": strategy.name})
        session.load(self.parameters)
        return session

    def losses(self, session: Session, count: int) -> list[float]:
        """Of the first steps, one after the other."""
        done = (session.wait(session.step(i, session.batch(self.inputs, i))) for i in range(count))
        return [loss for losses in done for loss in losses.values()]


@lru_cache(maxsize=1)
def ready(name: str) -> Ready:
    """A spec, its data and its parameters in float32; and one thread, before the framework starts."""
    if hasattr(os, "sched_setaffinity"):  # XLA has no other reliable setting for its threads on CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    importlib.import_module(f"backends.{BACKEND}.session").configure({"threads": 1})
    program = compile_spec(*spec.load(spec.find(name)))
    data = prepare(program)
    inputs = cast({f"train.{n}": a for n, a in data.train.items()}, "float32")
    inputs |= cast({"order": data.order, **data.noise}, "float32")
    inputs |= cast({f"test.{n}": a for n, a in data.test.items()} | asked_of(program, data), "float32")
    return Ready(program, inputs, cast(initial.parameters(program), "float32"), data.held_out)


@lru_cache(maxsize=1)
def plainly(name: str) -> list[float]:
    """The first losses of the plain program; the very first is the reference's."""
    own = ready(name)
    found = own.losses(own.open(STRATEGIES[BACKEND, PLAIN[BACKEND]]), min(CHECKED, own.program.steps))
    rows = own.inputs["order"][0].astype(int)
    batch = {
        key.removeprefix("train."): a[rows].astype(np.float64)
        for key, a in own.inputs.items()
        if key.startswith("train.")
    }
    batch |= {n: own.inputs[n][0].astype(np.float64) for n in own.program.spec.data.noise}
    parameters = {n: a.astype(np.float64) for n, a in own.parameters.items()}
    first = reference.loss(
        own.program, own.program.updates[0], parameters, batch, initial.masks(own.program, 0, len(rows))
    )
    assert found[0] == pytest.approx(first, rel=CLOSE["first"])
    return found


def checked(name: str, strategy: Strategy) -> tuple[Ready, Session]:
    """A session that trains as the plain one does, at the start of training again."""
    own = ready(name)
    if not applies(own.program, strategy):
        pytest.skip("needs batches of one size")
    expected = plainly(name)
    found = own.losses(own.open(strategy), min(CHECKED, own.program.steps))
    assert found == pytest.approx(expected, rel=CLOSE["loss"])
    return own, own.open(strategy)


def told(benchmark: Any, own: Ready, strategy: Strategy, phase: str, **more: object) -> None:  # noqa: ANN401 - a fixture
    """What a reader of the JSON needs to make a table of it."""
    benchmark.group = f"{own.program.name} {phase}"
    benchmark.extra_info |= {
        "spec": own.program.name, "backend": strategy.backend, "strategy": strategy.name, "lanes": list(strategy.lanes),
        "phase": phase, "precision": "float32", "batch": own.program.batch, **more,
    }  # fmt: skip


def test_training(benchmark: Any, name: str, strategy: Strategy) -> None:  # noqa: ANN401
    """Steps of training: in a round as many as a call of many steps takes, whatever the strategy."""
    own, session = checked(name, strategy)
    count, steps = min(BATCHES, own.program.steps), room(own.program, "float32", DEVICE)
    batches = [session.batch(own.inputs, i) for i in range(count)]
    stack = session.stack([batches[i % count] for i in range(steps)])
    session.losses(session.steps(0, stack, steps))
    told(benchmark, own, strategy, "training", steps_a_round=steps, flops_a_step=flops.step(own.program))
    gc.collect()
    benchmark(lambda: session.losses(session.steps(0, stack, steps)))


def test_first_calls(benchmark: Any, name: str, strategy: Strategy) -> None:  # noqa: ANN401
    """Building the model, and two calls of the training step with all that they compile; once."""
    own, _ = checked(name, strategy)

    def start() -> None:
        # Inductor would find what it compiled for the check.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = mkdtemp()
        session = own.open(strategy)
        own.losses(session, min(2, own.program.steps))

    told(benchmark, own, strategy, "start")
    benchmark.pedantic(start, rounds=1, iterations=1)


def asked(own: Ready) -> tuple[list[Any], dict[str, np.ndarray[Any, Any]]]:
    """A network in evaluation mode, and all the examples that it is asked about."""
    every = [q.request() for q in questions(own.program, held_out=own.held_out).values()]
    wanted = next(request for request in every if request["expression"][0] == "call")
    return wanted["expression"], {field: own.inputs[key] for field, key in wanted["fields"].items()}


def test_inference(benchmark: Any, name: str, way: str, rows: int) -> None:  # noqa: ANN401
    """Examples through the network in evaluation mode, from the device to the host; checked beside the plain evaluation."""
    plain = STRATEGIES[BACKEND, PLAIN[BACKEND]]
    own, session = checked(name, plain)
    expression, every = asked(own)
    fields = {field: array[np.arange(rows) % len(array)] for field, array in every.items()}
    predict = session.predictor(way, expression, fields)
    np.testing.assert_allclose(
        predict(), session.evaluate(expression, fields), rtol=CLOSE["first"], atol=CLOSE["first"]
    )
    told(benchmark, own, STRATEGIES.get((BACKEND, way), plain), f"inference of {rows}", examples=rows, way=way)
    benchmark(predict)


def test_evaluation(benchmark: Any, name: str) -> None:  # noqa: ANN401
    """All examples through the network in evaluation mode, from the host and back, as `harness run` does it at its end."""
    plain = STRATEGIES[BACKEND, PLAIN[BACKEND]]
    own, session = checked(name, plain)
    expression, every = asked(own)
    count = len(next(iter(every.values())))

    def evaluate() -> None:
        for start in range(0, count, CHUNK):
            session.evaluate(expression, {n: a[start : start + CHUNK] for n, a in every.items()})

    evaluate()
    told(benchmark, own, plain, "evaluation", examples=count)
    benchmark(evaluate)
