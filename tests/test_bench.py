"""Ratios and rounds: intervals hold what is true, differences are found, machines may be busy. Most of it needs no framework."""

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from build import INSTALLED, program_of
from cases import CASES, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, wilcoxon

from harness import flops, programs, run, spec
from harness.bench import bench as benches
from harness.bench import checks, energy, inference, peers, race, selftest, trial
from harness.bench.bench import bench
from harness.bench.options import BenchOptions
from harness.bench.race import Timed
from harness.bench.ratio import CONFIDENCE, FEWEST, LEAST, Ratio, ratio, ratio_of_processes, settled
from harness.bench.record import Ledger
from harness.bench.rounds import Block, Contestant, fastest, rounds, survived, table, warmed
from harness.bench.scaling import exponent
from harness.bench.selftest import SelfTest, self_test
from harness.bench.target import LOOKS, WINDOW, Target, reach
from harness.bench.target import parse as parse_target
from harness.bench.trial import Trial, _contenders, _entered, _near
from harness.bench.vote import PROVEN, outvoted
from harness.check.live import allowed_cores
from harness.compare import Comparison, Difference
from harness.errors import CallError, WorkerFailed
from harness.graph import Program
from harness.lanes import INFERENCE, PLAIN, Strategy, strategies
from harness.questions import questions
from harness.report.speed import spelled
from harness.vary import parse

FEW = st.lists(st.lists(st.floats(0.5, 2.0), min_size=LEAST, max_size=12), min_size=FEWEST, max_size=7)
TIMES = st.lists(st.floats(1e-6, 1e3), min_size=LEAST, max_size=30)


def noisy(rng: np.random.Generator, drift: np.ndarray, seconds: float, noise: float = 0.02) -> list[float]:
    """Times of a busy machine: never faster than alone, with a long tail, and all of a round slowed alike."""
    tail = np.abs(rng.standard_t(3, len(drift))) * noise
    return list(seconds * drift * np.exp(tail))


@pytest.mark.parametrize(("true", "least", "most"), [(1.0, 0, 8), (1.05, 90, 100)])
def test_equal_contestants_rarely_differ_and_five_per_cent_are_found(true: float, least: int, most: int) -> None:
    rng = np.random.default_rng(3)
    found = 0
    for seed in range(100):
        drift = np.exp(np.cumsum(rng.normal(0, 0.05, 20)))
        one, other = noisy(rng, drift, 1.0), noisy(rng, drift, true)
        r = ratio(other, one, seed)
        found += r.different and (true == 1 or r.value > 1)
    assert least <= found <= most


@settings(deadline=None)
@given(TIMES, st.floats(0.01, 100))
def test_a_factor_is_found_exactly_whatever_the_rounds(base: list[float], factor: float) -> None:
    found = ratio([factor * t for t in base], base, resamples=100)
    assert found.value == pytest.approx(factor, rel=1e-9)
    assert found.low == pytest.approx(factor, rel=1e-9)
    assert found.high == pytest.approx(factor, rel=1e-9)
    assert found.rounds == len(base)


@settings(deadline=None)
@given(TIMES, TIMES)
def test_the_ratio_the_other_way_round_is_the_reciprocal(a: list[float], b: list[float]) -> None:
    n = min(len(a), len(b))
    one, other = ratio(a[:n], b[:n], resamples=100), ratio(b[:n], a[:n], resamples=100)
    assert one.value == pytest.approx(1 / other.value, rel=1e-9)
    assert one.low <= one.value * (1 + 1e-12)
    assert one.value <= one.high * (1 + 1e-12)


@pytest.mark.parametrize("count", [LEAST, 13, 24])
def test_the_interval_ends_where_the_signed_rank_test_does(count: int) -> None:
    """By SciPy's test of log-ratios that are moved: just inside an end it does not reject, just outside it does."""
    logs = np.random.default_rng(count).normal(0.03, 0.05, count)
    found = ratio(np.exp(logs), np.ones(count), resamples=0)

    def rejected(moved: float) -> bool:
        return bool(wilcoxon(logs - moved, method="exact").pvalue <= 1 - CONFIDENCE)

    for end, outwards in ((np.log(found.low), -1), (np.log(found.high), 1)):
        assert rejected(end + outwards * 1e-9)
        assert not rejected(end - outwards * 1e-9)
    assert ratio(np.exp(logs), np.ones(count)).low <= found.low < found.high <= ratio(np.exp(logs), np.ones(count)).high


@settings(deadline=None)
@given(TIMES)
def test_the_estimate_is_the_median_of_the_means_of_pairs(times: list[float]) -> None:
    logs = [math.log(t) for t in times]
    pairs = [(a + b) / 2 for i, a in enumerate(logs) for b in logs[i:]]
    assert math.log(ratio(times, [1.0] * len(times), resamples=0).value) == pytest.approx(
        statistics.median(pairs), abs=1e-9
    )


def test_equal_contestants_rarely_differ_however_the_machine_is_loaded() -> None:
    """By the order that is drawn alone: here somebody takes half of the machine every second block, for stretches of rounds."""
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(2000):
        blocks = np.exp(rng.normal(0, 0.002, 40))
        start = rng.integers(0, 20)
        blocks[start : start + 20 : 2] *= 2
        first = blocks.reshape(20, 2)
        order = rng.integers(0, 2, 20)
        missed += ratio(first[range(20), order], first[range(20), 1 - order], resamples=0).different
    assert missed <= 38


@pytest.mark.parametrize("count", [LEAST, 10, 20, 33])
def test_the_interval_holds_the_centre_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    given = (np.exp(rng.normal(0, 0.02, count)) for _ in range(2000))
    missed = sum(ratio(times, np.ones(count), resamples=0).different for times in given)
    # One of a hundred, and chance: 20 of 2,000, four standard deviations of 4.4 more at most.
    assert missed <= 38


@settings(deadline=None)
@given(FEW)
def test_the_interval_of_several_processes_is_students(times: list[list[float]]) -> None:
    """SciPy's, of each process's median of means of pairs."""
    centres = []
    for own in times:
        logs = [math.log(t) for t in own]
        centres.append(statistics.median((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:]))
    found = ratio_of_processes(times, [[1.0] * len(own) for own in times])
    assert math.log(found.value) == pytest.approx(statistics.mean(centres), abs=1e-12)
    if statistics.stdev(centres) > 1e-9:
        wanted = ttest_1samp(centres, 0.0).confidence_interval(CONFIDENCE)
        assert (math.log(found.low), math.log(found.high)) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert (found.rounds, found.processes) == (sum(map(len, times)), len(times))


def test_processes_that_are_slower_for_good_are_no_difference() -> None:
    """Equal programs, each process of which is faster or slower by chance for as long as it lives."""
    rng = np.random.default_rng(5)
    missed = pooled = 0
    for _ in range(1000):
        times = np.exp(rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.02, (5, 12)))
        missed += ratio_of_processes(times.tolist(), np.ones((5, 12)).tolist()).different
        pooled += ratio(times.ravel(), np.ones(60), resamples=0).different
    assert missed <= 10 + 4 * math.sqrt(10), "one of a hundred, and chance"
    assert pooled > 50, "rounds of few processes are not independent"


@pytest.mark.parametrize(
    ("processes", "rounds", "expected"),
    [(3, LEAST, "3 processes are too few"), (4, LEAST - 1, "7 rounds are too few for an interval, 8 are the least")],
)
def test_of_few_processes_or_rounds_there_is_no_interval(processes: int, rounds: int, expected: str) -> None:
    times = [[1.0] * rounds] * processes
    with pytest.raises(ValueError, match=expected):
        ratio_of_processes(times, times)


def test_blocks_are_kept_apart_by_process() -> None:
    def own(*seconds: float, warm: int | None = 1) -> Contestant:
        return Contestant("a", lambda _steps: (1.0, 1.0), blocks=[Block(s, s) for s in seconds], warm=warm)

    alone = own(1.0, 2.0)
    assert alone.apart == [[1.0, 2.0]]
    first, second, third = own(1.0, 2.0), own(3.0, warm=4), own(5.0, 6.0, 7.0, warm=2)
    for earlier, later in ((None, first), (first, second), (second, third)):
        later.follow(earlier)
    assert third.apart == [[1.0, 2.0], [3.0], [5.0, 6.0, 7.0]]
    assert third.seconds == [1.0, 2.0, 3.0, 5.0, 6.0, 7.0]
    assert third.warm == 2, "its own"
    assert third.to_json()["processes"] == [2, 1, 3]
    never = own(1.0, warm=None)
    never.follow(third)
    assert never.warm is None


def test_stopping_where_the_interval_is_narrow_does_not_make_equal_contestants_differ() -> None:
    rng = np.random.default_rng(5)
    missed, stopped = 0, 0
    for _ in range(400):
        one, other = (Contestant(name, lambda _steps: (float(np.exp(rng.normal(0, 0.007))), 0.0)) for name in "ab")
        rounds([one, other], most=40, width=0.01)
        missed += ratio(one.seconds, other.seconds, resamples=0).different
        stopped += len(one.blocks) < 40
    assert stopped > 200, "most of them are stopped"
    assert missed <= 12


def test_one_outlier_is_one_round() -> None:
    base = [1.0] * 20
    found = ratio([*base[:-1], 1000.0], base)
    assert (found.value, found.low, found.verdict) == (1.0, 1.0, "no difference")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0] * 8, [1.0] * 9, "cannot be paired"), ([1.0] * 7, [1.0] * 7, "too few for an interval"),
        ([1.0] * 7 + [0.0], [1.0] * 8, "not above 0"), ([1.0] * 8, [1.0] * 7 + [float("nan")], "not above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(a: list[float], b: list[float], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ratio(a, b)


@pytest.mark.parametrize(
    ("times", "expected"),
    [([5.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2), ([1.0] * 5, 0), ([1.0] * 4, None), ([6.0, 5.0, 4.0, 3.0, 2.0], None), ([9.0, 1.0, 1.0, 1.0, 1.6, 1.0], 1)],
)  # fmt: skip
def test_warm_is_where_times_stay(times: list[float], expected: int | None) -> None:
    assert settled(times) == expected


def fake(seconds: Callable[[int], float], overhead: float = 0.0) -> Callable[[int], tuple[float, float]]:
    """A contestant's clock: the n-th step takes so many seconds."""
    done = [0]

    def run(steps: int) -> tuple[float, float]:
        total = overhead + sum(seconds(done[0] + i) for i in range(min(steps, 2000))) * max(1, steps / 2000)
        done[0] += steps
        return total, total / 2

    return run


def test_a_block_is_as_long_as_it_must_be_and_begins_warm() -> None:
    own = Contestant("a", fake(lambda step: 1e-3 if step < 15 else 1e-4))
    warmed(own, block=0.01)
    assert own.steps >= 10
    assert own.block().seconds * own.steps >= 0.009
    assert own.warm is not None
    assert own.warm_up[0] > 5 * own.block().seconds
    slow = Contestant("b", fake(lambda _step: 1.0))
    warmed(slow, block=0.05)
    assert slow.steps == 1


def test_rounds_take_everybody_once_and_stop_when_it_is_known() -> None:
    order: list[str] = []

    def named(name: str, seconds: float) -> Contestant:
        run = fake(lambda _step: seconds)
        return Contestant(name, lambda steps: (order.append(name), run(steps))[1], steps=10)

    field = [named("a", 1e-3), named("b", 2e-3), named("c", 4e-3)]
    rounds(field, most=50, width=0.01)
    count = len(field[0].blocks)
    assert count == LEAST, "there is no noise: the first interval is narrow enough"
    turns = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1, "in an order drawn anew"
    assert fastest(field).name == "a"
    assert ratio(field[1].seconds, field[2].seconds).value == pytest.approx(0.5)
    against = table(field)
    assert against["a"] is None
    assert against["c"] is not None
    assert against["c"].value == pytest.approx(4)
    rounds(field, most=3)
    assert len(field[0].blocks) == count + 3
    assert field[0].to_json()["median"] == pytest.approx(1e-3)
    json.dumps([c.to_json() for c in field], allow_nan=False)


def test_the_ledger_names_what_differs() -> None:
    found = Ledger({"threads": {"torch": 1, "jax": 1}, "precision": {"torch": "highest", "jax": "default"}})
    assert found.differing == ["precision"]
    assert found.to_json()["differing"] == ["precision"]


@pytest.mark.parametrize(("seconds", "said"), [(0.0123, "12.3 ms"), (1.0, "1 s"), (3e-8, "0.03 µs")])
def test_times_have_the_unit_that_suits_them(seconds: float, said: str) -> None:
    assert spelled(seconds) == said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (BenchOptions(processes=2), "--processes is 0, 1, or at least 4, got 2"), (BenchOptions(processes=-1), "got -1"),
        (BenchOptions(rounds=39, processes=5), "--rounds 39: each of 5 processes needs 8 at least"),
        (BenchOptions(rounds=5), "--rounds is at least 8"), (BenchOptions(device="tpu"), "--device is cpu or gpu"),
        (BenchOptions(precision="float16"), "--precision is float64, float32, tf32 or bfloat16"),
        (BenchOptions(precision="tf32"), "TF32 products exist on GPUs alone"), (BenchOptions(core=4096), "--core 4096"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_a_sentence(options: BenchOptions, expected: str) -> None:
    with pytest.raises(CallError, match=expected):
        bench(["linear_regression"], options)


KEPT = """
name: kept
data: {dataset: random, examples: 10, batch: 4, last_batch: keep, fields: {x: {shape: [3]}, y: {shape: [1]}}}
networks: {net: {layers: [{dense: 2}, tanh, {dense: 1}]}}
training: {steps: 6, updates: [{loss: {mse: {predictions: net(x), targets: y}}, optimizer: {sgd: {learning_rate: 0.1}}}]}
"""


def test_a_lane_that_has_nothing_for_the_spec_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept.yaml").write_text(KEPT)

    def never(*_given: object, **_more: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(benches, "workers", never)
    said = r"kept: nothing can be timed: tensorflow has nothing in lane default: 'fit' needs batches of one size; .* they differ\."
    with pytest.raises(CallError, match=said):
        bench([tmp_path / "kept.yaml"], BenchOptions(backends=("tensorflow",), lanes=("default",)))
    with pytest.raises(AssertionError, match="started"):
        bench([tmp_path / "kept.yaml"], BenchOptions(backends=("tensorflow",), lanes=("default", "step")))
    program = program_of(KEPT)
    both = BenchOptions(lanes=("default", "best"))
    assert [why.partition(":")[0] for b in PLAIN for why in benches._without(program, b, both)] == ["tensorflow has nothing in lane default"]  # fmt: skip


def test_ways_that_are_known_to_be_slow_are_named_with_the_reason() -> None:
    program = program_of(spec_of(CASES["conv2d"]))
    found = [why for b in PLAIN for why in benches._without(program, b, BenchOptions(lanes=("default", "best")))]
    assert [why.partition(" is not tried: it ")[0] for why in found] == ["tensorflow function_xla", "tensorflow loop_xla", "jax scan"]  # fmt: skip
    assert all(why.endswith((" on CPUs.", "TensorFlow's own.")) for why in found)


@pytest.mark.frameworks
@pytest.mark.skipif("tensorflow" not in INSTALLED, reason="tensorflow is not installed")
@pytest.mark.slow
def test_what_the_first_short_batch_traces_again_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept.yaml").write_text(KEPT)
    monkeypatch.setattr(benches, "strategies", lambda *given: [s for s in strategies(*given) if s.name == "function"])
    options = BenchOptions(backends=("tensorflow",), lanes=("step",), parts=("start",), rounds=8)
    (found,) = bench([tmp_path / "kept.yaml"], options)
    (lane,) = found.lanes
    assert lane.alone is not None
    assert (lane.alone.short["step"], lane.alone.short["examples"]) == (3, 2)
    assert sum(lane.alone.short["compilations"].values()) == 1, "tf.function traces a new shape"
    assert lane.alone.short["seconds"] > lane.alone.short["again"] > 0
    assert lane.to_json()["alone"]["short_batch"]["step"] == 3
    assert any("first batch of fewer examples (2, step 3) took" in note for note in found.notes)


@pytest.mark.frameworks
@pytest.mark.slow
def test_a_spec_is_checked_and_timed_on_every_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.yaml"
    monkeypatch.setattr(benches, "strategies", quick)
    path.write_text(json.dumps(spec_of(CASES["conv2d"])))
    steps = program_of(path.read_text()).steps
    (found,) = bench([path], BenchOptions(backends=INSTALLED, lanes=("best",), rounds=8, target=Target(1e9)))
    assert (found.verdict, found.exit) == ("same", 0), found
    assert {lane.backend for lane in found.lanes} == set(INSTALLED)
    assert sum(lane.ratio is None for lane in found.lanes) == 1, "the fastest is what the others are held against"
    for lane in found.lanes:
        assert len(lane.contestant.blocks) == LEAST
        assert all(block.seconds > 0 for block in lane.contestant.blocks)
        assert lane.alone is not None
        assert all(seconds > 0 for seconds in lane.alone.phases.values())
        assert lane.alone.start < sum(lane.alone.phases.values()), "the import is not part of it"
        assert (lane.alone.memory["peak"] or 0) > (lane.alone.memory["imported"] or 0) > 20_000_000
        assert lane.lines > 20
        assert not any(lane.alone.later.values()), "nothing is compiled any more in the third call"
        assert (
            lane.strategy in ("eager", "fused", "native", "late_relu", "fit")
            or sum(lane.alone.compilations.values()) > 0
        )
        assert (lane.alone.target["reached"], lane.alone.target["steps"]) == (True, min(WINDOW, steps))
        assert lane.strategy in [s.name for s in strategies(program_of(path.read_text()), lane.backend, (lane.lane,))]
        assert lane.ratio is None or lane.ratio.value > 0.5
    assert {(own.backend, own.way) for own in found.inference} == {(b, way) for b in INSTALLED for way in INFERENCE[b]}
    assert sum(own.ratio is None for own in found.inference) == 1
    for own in found.inference:
        assert 0 < own.latency["p50"] <= own.latency["p95"] <= own.latency["p99"]
        assert own.examples > 1 / own.latency["p50"], "many at once are faster than one after the other"
    assert [own.backend for own in found.evaluation] == list(INSTALLED)
    assert found.roof is not None
    assert found.roof.bandwidth > 1e8
    for backend in INSTALLED:
        (best,) = [lane for lane in found.lanes if lane.backend == backend and lane.lane == "best"]
        assert f"{backend} {best.strategy}" == min(best.trial, key=best.trial.__getitem__)
        assert len(best.trial) > 1, "the rivals' times are kept"
    assert found.flops == flops.step(program_of(path.read_text()))
    assert set(found.ledger.entries["cores"]) == set(INSTALLED)
    assert "cores" not in found.ledger.differing, "every worker is pinned to the same one"
    assert found.ledger.entries["$MALLOC_MMAP_MAX_"] == dict.fromkeys(INSTALLED, "0"), "all keep their memory"
    assert str(found.ledger.entries["processes"]["all"]).startswith("one for each way that is timed")
    assert found.ledger.entries["$GLIBC_TUNABLES"] == dict.fromkeys(INSTALLED, "glibc.malloc.hugetlb=1")
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.frameworks
def test_what_does_not_train_identically_has_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    backend = INSTALLED[0]
    plain = PLAIN[backend]
    emit = programs.emitted

    def faulty(
        program: Program, name: str, precision: str, *rest: object, strategy: str | None = None, **more: object
    ) -> str:
        text = emit(program, name, precision, *rest, strategy=strategy, **more)  # type: ignore[arg-type]
        return text if strategy != plain else text.replace("0.01", "0.013")

    monkeypatch.setattr(checks, "emitted", faulty)
    # Three at least, so that there is a majority.
    slow = ("whole", "unrolled")
    monkeypatch.setattr(benches, "strategies", lambda *given: [s for s in strategies(*given) if s.name not in slow])
    (found,) = bench([path], BenchOptions(backends=(backend,), parts=(), rounds=8))
    assert (found.verdict, found.exit) == ("differs", 1)
    assert found.lanes, "the others are timed"
    assert not [lane for lane in found.lanes if lane.strategy == plain]
    assert any(note.startswith(f"{backend} {plain} is not timed: ") for note in found.notes)


QUICK = ("eager", "fused", "fit", "function", "nnx", "jit")


def quick(*given: Any) -> tuple[Strategy, ...]:
    """Two strategies of each framework that compile quickly: the others would take most of a test's time."""
    return tuple(s for s in strategies(*given) if s.name in QUICK)


@pytest.mark.frameworks
@pytest.mark.slow
def test_rounds_are_shared_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    monkeypatch.setattr(benches, "strategies", quick)
    phases: list[str] = []
    options = BenchOptions(INSTALLED[:1], lanes=("default", "step"), rounds=36, parts=(), processes=4)
    (found,) = bench([path], options, listen=lambda _name, event: phases.append(event.get("phase", "")))
    assert (found.verdict, found.exit) == ("same", 0), found
    assert [phase for phase in phases if phase.endswith("rounds")] == [f"{i} of 4: rounds" for i in range(1, 5)]
    for lane in found.lanes:
        assert lane.contestant.processes == [9] * 4
        assert len(lane.contestant.blocks) == 36
        assert lane.ratio is None or lane.ratio.processes == 4
    assert "36 rounds, by 4 processes of each, one after the other." in found.notes


@pytest.mark.frameworks
@pytest.mark.parametrize("lanes", [("default", "step"), pytest.param(("best",), marks=pytest.mark.slow)])
def test_what_goes_wrong_in_the_process_that_is_timed_has_no_times(
    lanes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among others or alone: it is held against what it did in the trial."""
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    backend = INSTALLED[0]
    wrong = f"{backend} {PLAIN[backend]}"
    emit = programs.emitted

    def faulty(program: Program, name: str, *rest: object, strategy: str | None = None, **more: object) -> str:
        text = emit(program, name, *rest, strategy=strategy, **more)  # type: ignore[arg-type]
        return text if strategy != PLAIN[backend] else text.replace("0.01", "0.013")

    monkeypatch.setattr(trial, "emitted", faulty)
    # Alone in the lane best: which of two is faster, and so is timed there, no test can say.
    offered = {PLAIN[backend]} if lanes == ("best",) else {"eager", PLAIN[backend]}
    monkeypatch.setattr(benches, "strategies", lambda *given: [s for s in quick(*given) if s.name in offered])
    (found,) = bench([path], BenchOptions((backend,), lanes=lanes, parts=(), rounds=8))
    assert (found.verdict, found.exit) == ("differs", 1)
    left = [f"{lane.backend} {lane.strategy}" for lane in found.lanes]
    assert wrong not in left
    assert len(left) == len(lanes) - 1, "the other one has its times"
    assert any(note.startswith(f"{wrong} is not timed: ") and PROVEN in note for note in found.notes), found.notes


@pytest.mark.frameworks
@pytest.mark.slow
@pytest.mark.parametrize("how", ["parts", "dies"])
def test_who_fails_in_one_process_has_no_times_and_the_others_do(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    backend = INSTALLED[0]
    bad = f"{backend} {PLAIN[backend]}"
    monkeypatch.setattr(benches, "strategies", quick)
    really, opened, seen = race.passed, race.opened, count()

    def parting(subject: Any, few: Any, own: str, *rest: Any) -> Any:
        parted, void = really(subject, few, own, *rest)
        return ({bad: "planted"} if own == bad and next(seen) == 1 else parted), void

    def dying(subject: Any, *rest: Any) -> Any:
        found = opened(subject, *rest)
        if bad in found and next(seen) == 1:
            subject.workers[bad].process.kill()
        return found

    monkeypatch.setattr(race, *(("passed", parting) if how == "parts" else ("opened", dying)))
    options = BenchOptions((backend,), lanes=("default", "step"), parts=(), rounds=32, processes=4)
    (found,) = bench([path], options)
    assert found.verdict == ("differs" if how == "parts" else "failed")
    assert (bad in found.failures) == (how == "dies")
    assert found.lanes
    assert bad not in [lane.name for lane in found.lanes]
    for lane in found.lanes:
        assert lane.contestant.processes == [8] * 4
    assert not any(note.startswith("Refused") for note in found.notes)


BY_HAND = """
import time

def build(run):
    def train(steps):
        time.sleep(1e-4 * steps)
        return [0.0] * steps
    return train

PEERS = {"case": {"by hand": build}}
"""


@pytest.mark.frameworks
@pytest.mark.parametrize("processes", [None, 0])
@pytest.mark.parametrize("what", ["way", "peer"])
@pytest.mark.slow
def test_a_worker_that_dies_in_the_trial_takes_its_own_times_and_no_others(
    what: str, processes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    backends = INSTALLED[:2]
    backend = backends[0]
    for name in backends:
        (tmp_path / f"{name}_peers.py").write_text(BY_HAND)
    monkeypatch.setattr(benches, "strategies", quick)
    monkeypatch.setattr(peers, "TIGHT", math.inf)
    rivals = trial._rivals

    def and_dies(subject: Any, losses: Any, started: Any, *rest: Any) -> Any:
        found = rivals(subject, losses, started, *rest)
        dying = started[backend if what == "way" else trial.beside(backend)]
        dying.process.kill()
        dying.process.wait()
        return found

    monkeypatch.setattr(trial, "_rivals", and_dies)
    options = BenchOptions(backends, lanes=("default", "step"), parts=(), rounds=8, processes=processes, peers=tmp_path)
    (found,) = bench([path], options)
    left, beside = {lane.backend for lane in found.lanes}, {peer.backend for peer in found.peers}
    others = {*backends} - {backend}
    if what == "way":
        assert left == beside == others
        assert backend in found.failures
        assert {name.partition(" ")[0] for name in found.failures} == {backend}
        assert (found.verdict, found.exit) == ("failed", 3)
    else:
        assert left == {*backends}
        assert beside == others
        assert any(note.startswith(f"{backend} peer by hand is not timed: worker") for note in found.notes)
        assert found.verdict == "same"


@pytest.mark.frameworks
@pytest.mark.skipif(not INSTALLED[1:], reason="one backend's death leaves none")
@pytest.mark.parametrize(("when", "processes"), [
    ("shown", 0), *(pytest.param("asked", count, marks=pytest.mark.slow) for count in (0, 1)),
])  # fmt: skip
def test_a_worker_that_dies_after_the_trial_takes_its_product_of_matrices_along_and_no_others(
    when: str, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    monkeypatch.setattr(benches, "strategies", quick)
    dying, other, machine = *INSTALLED[:2], race._machine

    def and_dies(subject: Any, *rest: Any) -> Any:
        shown = machine(subject, *rest) if when == "shown" else []
        subject.workers[dying].process.kill()
        subject.workers[dying].process.wait()
        return shown or machine(subject, *rest)

    monkeypatch.setattr(race, "_machine", and_dies)
    (found,) = bench([path], BenchOptions((dying, other), lanes=("default",), parts=(), rounds=8, processes=processes))
    assert [lane.backend for lane in found.lanes] == [other]
    assert {name.partition(" ")[0] for name in found.failures} == {dying}
    assert found.roof is not None
    assert (found.verdict, found.exit) == ("failed", 3)


def test_whose_process_ended_after_the_trial_is_not_in_the_race_nor_what_was_beside_it() -> None:
    runners = {f"{backend} {name}": Strategy(backend, name, ("step",), "") for backend, name in
               (("torch", "fused"), ("torch", "whole"), ("jax", "jit"), ("tensorflow", "loop"))}  # fmt: skip
    ended = {
        "torch": None,
        "torch-peers": 1,
        "jax": None,
        "jax-peers": None,
        "tensorflow": -9,
        "tensorflow-peers": None,
    }
    started = {
        name: SimpleNamespace(process=SimpleNamespace(poll=lambda code=code: code)) for name, code in ended.items()
    }
    subject: Any = SimpleNamespace(failures={})
    rivals = {(backend, "by hand"): None for backend in ("torch", "jax", "tensorflow")}
    out_of_it: Any = SimpleNamespace(contestants=dict.fromkeys(runners), rivals=rivals)
    place: Any = SimpleNamespace(started=started)
    notes: list[str] = []
    wanted, beside_them = race._living(subject, runners, out_of_it, place, notes)
    assert [*wanted] == ["torch fused", "torch whole", "jax jit"]
    assert [*subject.failures] == ["tensorflow loop"]
    assert beside_them == [("jax", "by hand")]
    assert notes == ["torch peer by hand is not timed: its worker ended after the trial"]


def test_who_fails_in_a_round_is_out_and_the_others_have_as_many_blocks_each() -> None:
    def dying(name: str, after: int) -> Contestant:
        calls = count()

        def run(steps: int) -> tuple[float, float]:
            if next(calls) >= after:
                raise WorkerFailed(f"{name} is no more")
            return float(steps), 0.0

        return Contestant(name, run)

    everybody = {name: dying(name, after) for name, after in {"a": 2, "b": 10**6, "c": 5, "d": 10**6}.items()}
    for one in everybody.values():
        one.blocks.append(Block(7.0, 7.0))
    running = dict(everybody)
    failed = survived(running, most=9)
    assert {name: str(error) for name, error in failed.items()} == {"a": "a is no more", "c": "c is no more"}
    assert running.keys() == {"b", "d"}
    for one in running.values():
        assert one.seconds == [7.0] + 9 * [1.0]
    assert survived(running, most=1) == {}
    alone = {"a": everybody["a"]}
    assert survived(alone, most=3).keys() == {"a"}
    assert not alone


@pytest.mark.frameworks
def test_where_memory_is_short_the_trials_processes_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    monkeypatch.setattr(race, "free_memory", lambda: 1000)
    (found,) = bench([path], BenchOptions(INSTALLED[:1], lanes=("default",), parts=(), rounds=8))
    assert (found.verdict, len(found.lanes)) == ("same", 1)
    assert any(
        note.startswith("Timed in the processes of the trial instead of 1 of its own for each: 1 at once may need")
        for note in found.notes
    )
    assert (
        found.ledger.entries["processes"]["all"] == "one a backend, in which all its ways were checked, tried and timed"
    )


@pytest.mark.frameworks
@pytest.mark.slow
def test_a_spec_is_timed_with_every_value_of_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.yaml"
    monkeypatch.setattr(benches, "strategies", quick)
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    kept: list[list[int]] = []
    options = BenchOptions(
        INSTALLED[:1], vary=(parse("data.batch=2,4"),), lanes=("step",), rounds=8, parts=(), target=None
    )
    found = bench([path], options, keep=lambda results: kept.append([result.batch for result in results]))
    assert [(own.batch, own.setting) for own in found] == [(2, {"data.batch": 2}), (4, {"data.batch": 4})]
    assert kept == [[2], [2, 4]], "what is done is handed over before the next begins"
    assert found[1].title == f"{found[1].spec}, data.batch=4"
    assert 0 < found[0].flops == found[1].flops // 2
    assert found[0].lanes[0].alone is None
    assert found[0].inference == ()


def test_the_trial_is_between_those_that_are_near_each_other() -> None:
    warm = {"torch eager": 3e-3, "torch whole": 1e-3, "torch late": 3.1e-3, "jax scan": 0.6, "jax jit": 0.3}
    assert _contenders(warm, {own: own.split()[0] for own in warm}) == [
        "torch eager",
        "torch whole",
        "jax scan",
        "jax jit",
    ]


def test_who_the_trial_leaves_open_is_contenders_again() -> None:
    def tried(name: str, *seconds: float) -> Contestant:
        return Contestant(name, lambda _steps: (0.0, 0.0), blocks=[Block(s, s) for s in seconds])

    whole, fused, eager = tried("whole", 1.00, 1.2, 1.1), tried("fused", 1.0, 1.2, 1.2), tried("eager", 1.3, 1.3, 1.3)
    assert _near({"whole": whole, "fused": fused, "eager": eager}) == {"whole", "fused"}
    assert _near({"whole": whole, "eager": eager}) == set()
    assert _near({}) == set()


def test_who_was_not_contenders_again_is_not_chosen_because_the_machine_slowed_down_since() -> None:
    names = ("fused", "whole", "native")
    runners = {n: Strategy("torch", n, ("best",), "") for n in names}
    contestants = {n: Contestant(n, lambda _steps: (0.0, 0.0)) for n in names}
    trial = {"fused": 1.2, "whole": 1.15, "native": 1.12}  # the last one in the fast rounds alone
    options = BenchOptions(backends=("torch",), lanes=("best",))
    assert _entered(contestants, runners, trial, options, {"fused", "whole"}) == [("best", "whole")]
    assert _entered(contestants, runners, trial, options) == [("best", "native")]


def test_a_way_that_is_far_slower_once_compiled_is_dropped_unless_its_lane_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = {"torch fused": 1.0, "torch eager": 9.0, "torch native": 2.9, "torch compiled": 3.1}
    calls: list[str] = []

    class Live:
        backend = name = "torch"

        def ask(self, do: str, **asked: object) -> None:
            calls.append(f"{do} {asked['name']}")

    def timed(_subject: object, _live: object, own: str, _strategy: object) -> Contestant:
        first = count()
        return Contestant(own, lambda _steps: (100.0 if next(first) == 0 else steps[own], 0.0))

    live = Live()
    subject = SimpleNamespace(
        workers={"torch": live}, failures={}, program=SimpleNamespace(name="x"), precision="float32"
    )
    monkeypatch.setattr(trial, "each", lambda _subject, do: do(live))
    monkeypatch.setattr(trial, "contestant", timed)
    runners = {own: Strategy("torch", own.split()[1], ("best",), "") for own in steps}
    hopeless: dict[str, float] = {}
    spare = frozenset(steps) - {"torch eager"}
    found = trial.opened(subject, runners, lambda _n, _e: None, anew=False, spare=spare, hopeless=hopeless)  # type: ignore[arg-type]
    assert set(found) == {"torch fused", "torch eager", "torch native"}
    assert hopeless == {"torch compiled": 3.1}
    assert calls == ["close compiled"], "what it held is given back"


class Learner:
    """A worker that trains a second a step, and then knows as many of ten examples as it has done tens of steps."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.done = labels, 0

    def ask(self, do: str, *, first: int, steps: int, **_more: object) -> dict[str, Any]:
        assert (do, first) == ("train_timed", self.done)
        self.done += steps
        return {"seconds": float(steps), "losses": [0.0] * steps}

    def arrays(self, _do: str, **_more: object) -> dict[str, Any]:
        right = np.arange(10) < self.done / 10
        return {"output": np.eye(10)[np.where(right, self.labels, self.labels - 9)].astype(np.float32)}


def test_a_metric_is_reached_at_the_first_look_that_finds_it() -> None:
    program = program_of(spec.find("digits_mlp").read_text(), steps=100)
    labels = np.arange(10) % 9
    question = questions(program, held_out=True)["classifier(image)"]
    subject: Any = SimpleNamespace(
        program=program, questions={"classifier(image)": question}, data={"test.label": labels}, start={},
        position=lambda *_: "",
    )  # fmt: skip
    live: Any = Learner(labels)
    found = reach(subject, live, "way", Target(0.65, "accuracy"), None)
    # Seven of ten are known once more than 60 steps are done; every second step is looked at.
    assert 100 // LOOKS == 2
    assert found == {"metric": "accuracy", "value": 0.65, "reached": True, "steps": 62, "seconds": 62.0}
    live.done = 0
    assert reach(subject, live, "way", Target(0.65, "accuracy"), 16)["steps"] == 64, "calls of 16 steps"
    live.done = 0
    found = reach(subject, live, "way", Target(1.1, "accuracy"), None)
    assert (found["reached"], found["steps"]) == (False, 100)


@pytest.mark.parametrize(
    ("text", "expected"), [("0.1", Target(0.1)), ("accuracy=0.97", Target(0.97, "accuracy")), ("1e-3", Target(1e-3))]
)
def test_a_target_is_a_loss_or_a_metric(text: str, expected: Target) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["fast", "accuracy=high", "accuracy=", ""])
def test_a_target_that_is_no_number_is_a_sentence(text: str) -> None:
    with pytest.raises(CallError, match="--target takes a loss, like"):
        parse_target(text)


def test_a_metric_that_the_spec_lacks_is_a_sentence() -> None:
    with pytest.raises(CallError, match="digits_mlp does not evaluate 'acuracy'"):
        bench(["digits_mlp"], BenchOptions(target=Target(0.9, "acuracy")))


@pytest.mark.slow
@pytest.mark.frameworks
def test_the_time_to_a_metric_ends_where_a_run_of_as_many_steps_has_it(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(re.sub(r"steps: \d+", "steps: 50", spec.find("digits_mlp").read_text()))
    options = BenchOptions(INSTALLED[:1], lanes=("step",), rounds=8, parts=("start",), target=Target(0.6, "accuracy"))
    (found,) = bench([path], options)
    alone = found.lanes[0].alone
    assert alone is not None, found
    assert alone.target["reached"]
    assert alone.target["seconds"] > 0
    steps = alone.target["steps"]
    after, before = (
        run(path, backends=INSTALLED[:1], until=until, out=tmp_path / f"{until}") for until in (steps, steps - 1)
    )
    known = [next(iter(one.backends.values())).metrics["accuracy"] for one in (before, after)]
    assert known[0] < 0.6 <= known[1]


class Answers:
    """A worker whose program answers so."""

    def __init__(self, **ways: float) -> None:
        self.ways = ways

    def arrays(self, _do: str, *, way: str, **_more: object) -> dict[str, Any]:
        return {"output": np.array([1.0, self.ways[way]])}


def test_who_answers_otherwise_is_not_timed() -> None:
    workers = {"torch": Answers(eager=2.0, compiled=2.0), "jax": Answers(nnx=2.0, jit=2.01)}
    asked: dict[tuple[str, str], Any] = {(b, way): None for b, own in workers.items() for way in own.ways}
    subject: Any = SimpleNamespace(workers=workers, precision="float32", failures={})
    inference._require_same(subject, asked)
    assert list(asked) == [("torch", "eager"), ("torch", "compiled"), ("jax", "nnx")]
    assert list(subject.failures) == ["jax jit inference"]


def disagree(a: str, b: str, ratio: float = 2.0) -> Comparison:
    return Comparison("state", a, b, Difference("w", 1, ratio, 1.0, (0,), 0.0, ratio), 1)


def test_whoever_differs_from_the_others_is_left_out() -> None:
    agree = disagree("a", "b", 0.5)
    assert outvoted([agree]) == {}
    assert list(outvoted([agree, disagree("a", "c"), disagree("b", "c")])) == ["c"]
    assert list(outvoted([agree, disagree("c", "reference")])) == ["c"]
    two = outvoted([disagree("a", "b")])
    assert sorted(two) == ["a", "b"]
    assert all(why.startswith("nobody can tell which is wrong") for why in two.values())
    four = [disagree(x, y) for x, y in (("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"))]
    assert sorted(outvoted([agree, *four])) == ["c", "d"]


# ---- The measurer


def self_tested(equal: int, slowed: int, overhead: float = 1e-6, count: int = 100) -> SelfTest:
    same, slower = Ratio(1.0, 0.99, 1.01, 20), Ratio(1.05, 1.03, 1.07, 20)
    one = (same,) * equal + (slower,) * (count - equal)
    other = (slower,) * slowed + (same,) * (count - slowed)
    return SelfTest("torch", "digits_mlp", 1e-3, one, other, overhead, 0.5)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (self_tested(95, 90), 0), (self_tested(94, 100), 1), (self_tested(100, 89), 1), (self_tested(100, 100, 2e-5), 1),
        (SelfTest("torch", "x", 1e-3, (), (), 0.0, 0.0), 1),
    ],
)  # fmt: skip
def test_the_measuring_is_held_to_its_bars(found: SelfTest, status: int) -> None:
    assert found.exit == status
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["exit"] == status
    assert len(found.sentences()) == 4


def test_a_speed_up_is_no_slowdown_that_was_found() -> None:
    faster = Ratio(0.9, 0.85, 0.95, 20)
    assert SelfTest("torch", "x", 1e-3, (faster,), (faster,), 0.0, 0.0).found == 0
    assert SelfTest("torch", "x", 1e-3, (faster,), (faster,), 0.0, 0.0).no_difference == 0


@pytest.mark.frameworks
def test_a_backend_is_measured_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    found = self_test(str(path), BenchOptions(backends=INSTALLED[:1]), comparisons=2)
    assert len(found.equal) == len(found.slowed) == 2
    assert found.step > 0
    assert 0 < found.overhead < 1e-3
    with pytest.raises(CallError, match="--self-test is of one backend"):
        self_test(str(path), BenchOptions(backends=("torch", "jax")))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_measuring_is_measured_on_the_device_that_is_asked_for(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    @contextmanager
    def none_start(*_: object, **given: object) -> Iterator[tuple[dict[str, object], dict[str, str]]]:
        asked.update(given)
        yield {}, {"torch": "no such machine"}

    monkeypatch.setattr(selftest, "workers", none_start)
    with pytest.raises(WorkerFailed, match="no such machine"):
        self_test("digits_mlp", BenchOptions(backends=("torch",), device=device, core=allowed_cores()[0]))
    assert asked["device"] == device
    assert asked["core"] == (allowed_cores()[0] if device == "cpu" else None)


# ---- Beside programs written by hand


PEER = """
import numpy as np

def build(slower, wrong=0.0):
    def made(run):
        assert (run / "inputs" / "parameters.safetensors").is_file()
        losses = iter({losses})
        def train(steps):
            return np.array([next(losses, 0.0) + wrong for _ in range(steps)])
        train.chunk = 3
        return train
    return made

def broken(run):
    raise RuntimeError("planted")

PEERS = {{"case": {{"fast": build(0), "everyday": build(0), "wrong": build(0, 0.5), "broken": broken}}}}
"""


@pytest.mark.slow
@pytest.mark.frameworks
def test_what_is_written_by_hand_is_checked_and_timed_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "strategies", quick)
    path = tmp_path / "case.yaml"
    text = spec_of(CASES["relu"])
    path.write_text(json.dumps(text))
    backend = INSTALLED[0]
    (plain,) = bench([path], BenchOptions(backends=(backend,), parts=(), lanes=("step",), rounds=8))
    assert plain.peers == ()
    from harness import runs  # noqa: PLC0415

    trained = runs.run(str(path), runs.Options(backends=(backend,), out=tmp_path / "run"))
    losses = next(iter(trained.backends[backend].losses.values()))
    (tmp_path / f"{backend}_peers.py").write_text(PEER.format(losses=losses))
    (found,) = bench([path], BenchOptions(backends=(backend,), parts=(), rounds=8, peers=tmp_path))
    assert {peer.strategy for peer in found.peers} == {"fast", "everyday"}
    for peer in found.peers:
        assert peer.contestant.unit == 3
        assert peer.ratio is not None
        assert peer.ratio.value > 1, "it computes nothing"
    assert any("peer wrong is not timed: its losses are" in note for note in found.notes)
    assert any("peer broken is not timed" in note and "planted" in note for note in found.notes)
    assert {row["strategy"] for row in found.to_json()["peers"]} == {"fast", "everyday"}
    with pytest.raises(CallError, match="has no "):
        bench([path], BenchOptions(backends=(backend,), peers=tmp_path / "none"))


class ByHand:
    """The worker of a program written by hand whose losses are given, and of an emitted one with twins."""

    backend = name = "torch"

    def __init__(self, *losses: float, twins: float = 0.0) -> None:
        self.losses, self.twins, self.trained = list(losses), twins, 0

    def ask(self, do: str, **asked: Any) -> dict[str, Any]:
        if do == "peers_of":
            return {"strategies": ["fast"]}
        if do == "train":
            self.trained += 1  # the first one is no twin
            away = 0.0 if self.trained == 1 else self.twins * (-1) ** self.trained
            return {"losses": {"net": [2.0 + away * step for step in range(asked["last"])]}}
        return {"losses": self.losses, "chunk": 1}


@pytest.mark.parametrize(
    ("off", "twins", "timed", "said"),
    [
        (0.0, 0.0, True, ""),
        (0.29, 0.1, True, "2.9 times as far as its own twins part: that is rounding"),
        (0.31, 0.1, False, "3.1 times as far as its own twins part, 3 are rounding"),
        (0.01, 0.0, False, "is not timed"),
        (math.nan, 0.1, False, "is not timed"),
        (math.inf, math.inf, False, "is not timed"),
    ],
)
def test_twins_decide_how_far_a_program_written_by_hand_may_part(
    off: float, twins: float, timed: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "open_program", lambda *_given, **_more: None)
    monkeypatch.setattr(peers, "emitted", lambda *_given: "")
    monkeypatch.setattr(
        peers, "_first_losses", lambda _s, live, _name, _number, steps: live.ask("train", last=steps)["losses"]["net"]
    )
    known: dict[str, Any] = {}
    subject = SimpleNamespace(
        program=SimpleNamespace(name="net"), folder=Path(), precision="float32",
        known=lambda what, find: known.setdefault(what, known.get(what) or find()),
    )  # fmt: skip
    losses = [2.0, 2.0 + off, 2.0 + 2 * off, 2.0 + 3 * off]
    live, notes = ByHand(*losses, twins=twins), []
    given = (subject, live, Path("torch_peers.py"), {"torch": [2.0] * 4}, notes)
    found = peers.opened(*given, emitted_by=live)  # type: ignore[arg-type]
    assert (set(found) == {"fast"}) is timed, notes
    assert said in "".join(notes)
    assert bool(notes) is bool(said)
    if off:
        assert not peers.opened(*given), "without a worker that has twins nothing is excused"  # type: ignore[arg-type]
    else:
        assert not live.trained, "twins cost nothing where nothing parts"


@pytest.mark.frameworks
@pytest.mark.parametrize(("twins", "expected"), [(0.5, "same"), (3.5, "differs"), (float("nan"), "differs")])
def test_in_float32_twins_decide_how_far_two_ways_may_part(
    twins: float, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    backend = INSTALLED[0]
    real, emit = checks._twins, programs.emitted
    seen = []

    def drift(*arguments: object) -> object:
        seen.append(real(*arguments))  # type: ignore[arg-type]
        return replace(seen[0], overall={pair: [twins] for pair in seen[0].overall})

    def faulty(program: Program, name: str, *rest: object, strategy: str | None = None, **more: object) -> str:
        text = emit(program, name, *rest, strategy=strategy, **more)  # type: ignore[arg-type]
        return text.replace("0.01", "0.0105") if strategy == PLAIN[backend] else text

    monkeypatch.setattr(benches, "strategies", quick)
    monkeypatch.setattr(checks, "_twins", drift)
    monkeypatch.setattr(checks, "emitted", faulty)
    monkeypatch.setattr(trial, "emitted", faulty)
    (found,) = bench([path], BenchOptions(backends=(backend,), parts=(), lanes=("default", "step"), rounds=8))
    assert seen, "they part by more than is allowed"
    assert max(max(own) for own in seen[0].overall.values()) > 3, "what twins say of that fault by themselves"
    assert found.verdict == expected


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("backend", "strategy", "old", "new"),
    [
        ("jax", "scan", "lax.scan(train_step, state, batches)", "lax.scan(train_step, state, batches, reverse=True)"),
        (
            "tensorflow",
            "loop",
            "        batches,\n",
            "        tf.nest.map_structure(lambda t: tf.reverse(t, [0]), batches),\n",
        ),
    ],
)
def test_a_call_of_many_steps_that_takes_them_otherwise_is_caught(
    backend: str, strategy: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step at a time it is right: only a whole stack shows it."""
    if backend not in INSTALLED:
        pytest.skip(f"{backend} is not installed")
    text = spec_of(CASES["relu"])
    text["training"]["steps"] = 6
    text["data"]["batch"] = 2
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(text))
    emit = programs.emitted

    def faulty(*arguments: object, **more: object) -> str:
        own = emit(*arguments, **more)  # type: ignore[arg-type]
        if more.get("strategy") != strategy:
            return own
        assert old in own
        return own.replace(old, new)

    monkeypatch.setattr(checks, "emitted", faulty)
    offered = {strategy, PLAIN[backend]}
    monkeypatch.setattr(benches, "strategies", lambda *given: [s for s in strategies(*given) if s.name in offered])
    (found,) = bench([path], BenchOptions(backends=(backend,), parts=(), lanes=("best",), rounds=8))
    assert found.verdict == "differs"
    assert [note.split(" is not timed")[0] for note in found.notes if " is not timed" in note] == [
        f"{backend} {strategy}"
    ]
    assert found.lanes, "the others are timed"
    assert f"{backend} {strategy}" not in found.lanes[0].trial


@pytest.mark.frameworks
def test_what_the_checks_say_nothing_of_has_no_times(tmp_path: Path) -> None:
    text = spec_of(CASES["relu"])
    text["training"]["updates"][0]["optimizer"] = {"sgd": {"learning_rate": 1e-30}}
    path = tmp_path / "dead.yaml"
    path.write_text(json.dumps(text))
    (found,) = bench([path], BenchOptions(backends=INSTALLED[:1], parts=(), lanes=("step",), rounds=8))
    assert (found.verdict, found.exit, found.lanes) == ("void", 1, ())
    assert any("is not timed" in note for note in found.notes)


@pytest.mark.frameworks
def test_a_ledger_that_changes_voids_the_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(json.dumps(spec_of(CASES["relu"])))
    threads = count()
    monkeypatch.setattr(race, "told", lambda _subject: {INSTALLED[0]: {"threads": next(threads)}})
    (found,) = bench([path], BenchOptions(backends=INSTALLED[:1], parts=(), lanes=("default",), rounds=8))
    assert (found.verdict, found.exit, found.lanes) == ("failed", 3, ())
    assert "Refused: while it was timed, this changed: threads" in found.notes


# ---- Energy and growth


def test_a_counter_of_energy_goes_on_where_it_starts_anew(tmp_path: Path) -> None:
    for name, files in {
        "intel-rapl:0": {"name": "package-0", "max_energy_range_uj": "9999999", "energy_uj": "9000000"},
        "intel-rapl:0:1": {"name": "dram", "max_energy_range_uj": "9999999", "energy_uj": "0"},
        "intel-rapl:1": {"name": "package-1", "max_energy_range_uj": "9999999", "energy_uj": "not for you"},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    (meter,) = energy.meters("cpu", tmp_path)
    assert (meter.name, meter.read()) == ("package-0", 0.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1500000")
    assert meter.read() == pytest.approx(2.5)
    assert energy.meters("cpu", tmp_path / "none") == []


def test_without_nvidias_library_there_is_no_meter_and_no_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "NVML", "libno-such-library.so.1")
    assert energy.driver() is None
    assert energy.meters("gpu", tmp_path) == []


class Counted:
    """A chip whose counter of energy is moved every 80 ms, and a clock that goes on when it is read or something runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: float = 0.08) -> None:
        self.now, self.used, self.every, self.shown, self.next = 0.0, 0.0, every, 0.0, every
        clock = SimpleNamespace(perf_counter=lambda: self.goes_on(0.001, watts=50.0))
        monkeypatch.setattr(energy, "time", clock)

    def goes_on(self, seconds: float, watts: float) -> float:
        until = self.now + seconds
        while self.next <= until:
            self.used += watts * (self.next - self.now)
            self.now, self.shown = self.next, self.used
            self.next += self.every
        self.used += watts * (until - self.now)
        self.now = until
        return self.now

    def runs(self, name: str, step: float, watts: float) -> Contestant:
        def run(steps: int) -> tuple[float, float]:
            self.goes_on(step * steps, watts)
            return step * steps, step * steps

        return Contestant(name, run, unit=4, blocks=[Block(step, step)])


def test_energy_is_counted_over_many_moves_of_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of blocks of four steps, 60 ms, the counter would say now nothing and now what ran before.
    chip = Counted(monkeypatch)
    thrifty, hungry = chip.runs("thrifty", 0.015, 100.0), chip.runs("hungry", 0.015, 600.0)
    said = energy.metered([thrifty, hungry], [energy.Meter("gpu", lambda: chip.shown)])
    assert thrifty.joules["gpu"] == pytest.approx(100 * 0.015, rel=0.1)
    assert hungry.joules["gpu"] == pytest.approx(600 * 0.015, rel=0.1)
    assert re.search(r"one block of at least 1\.6 s of each.*gpu's every 80 ms", said)
    assert thrifty.blocks == [Block(0.015, 0.015)], "what is timed has no such block in it"


def test_what_is_compiled_while_energy_is_counted_is_not_said_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = {"jax scan": 3, "torch graph": 1}

    def counted(_competing: object, _meters: object) -> str:
        compiled["jax scan"] += 1
        return "Energy is of one block"

    def timed(*_: object, **_given: object) -> None:
        compiled["torch graph"] += 2

    monkeypatch.setattr(race, "metered", counted)
    monkeypatch.setattr(race, "rounds", timed)
    monkeypatch.setattr(race, "told", lambda _subject: {})
    monkeypatch.setattr(
        race, "_compilations", lambda *_: {own: {"functions compiled": n} for own, n in compiled.items()}
    )
    subject: Any = SimpleNamespace(program=SimpleNamespace(name="x"))
    contestants = {own: Contestant(own, lambda _steps: (1.0, 1.0)) for own in compiled}
    found = Timed()
    chosen = Trial([], {}, contestants, {})
    race._run(race.Running(subject, contestants, {}), [], {}, chosen, BenchOptions(), 0, 1, found, lambda *_: None)
    assert found.notes == [
        "While torch graph was timed: 2 more functions compiled.",
        "Energy is of one block",
        "While jax scan had its energy counted: 1 more functions compiled.",
    ]


def test_a_counter_that_stays_still_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = Counted(monkeypatch, every=1e9)
    own = chip.runs("a", 0.01, 100.0)
    assert energy.metered([own], [energy.Meter("gpu", lambda: chip.shown)]) == ""
    assert own.joules == {}
    assert energy.metered([own], []) == ""


@given(st.floats(-2, 3), st.lists(st.integers(1, 10**6), min_size=3, max_size=8, unique=True))
def test_an_exponent_is_found(power: float, sizes: list[int]) -> None:
    found = exponent(sizes, [3e-3 * size**power for size in sizes])
    assert found.value == pytest.approx(power, abs=1e-5)
    assert found.half_width == pytest.approx(0, abs=1e-3)


def test_two_points_have_no_interval_and_one_has_no_exponent() -> None:
    assert exponent([1, 2], [1.0, 2.0]).half_width is None
    with pytest.raises(ValueError, match="two different sizes"):
        exponent([2, 2], [1.0, 2.0])


def test_workers_are_pinned_to_the_core_that_is_timed_and_one_that_does_not_answer_is_out() -> None:
    class Live:
        def __init__(self, *, dead: bool = False) -> None:
            self.core, self.dead, self.asked = 0, dead, []

        def ask(self, do: str, **given: object) -> None:
            if self.dead:
                raise WorkerFailed("ended\nlog")
            self.asked.append((do, given))

    torch, jax, by_hand = Live(), Live(dead=True), Live(dead=True)
    subject = SimpleNamespace(workers={"torch": torch, "jax": jax}, failures={})
    benches.pin(subject, {"torch": torch, "jax": jax, "torch-peers": by_hand}, 3)  # type: ignore[arg-type,dict-item]
    assert (torch.asked, torch.core) == ([("pin", {"cores": [3]})], 3)
    assert subject.failures == {"jax": "ended"}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there are no threads to pin")
def test_a_pinned_worker_is_so_with_all_its_threads() -> None:
    script = (
        "import os, threading, json\n"
        "from harness.serve import Server\n"
        "stop = threading.Event()\n"
        "threads = [threading.Thread(target=stop.wait) for _ in range(3)]\n"
        "[t.start() for t in threads]\n"
        "core = max(os.sched_getaffinity(0))\n"
        "Server.pin(None, {'cores': [core]})\n"
        "found = [sorted(os.sched_getaffinity(int(t))) for t in os.listdir('/proc/self/task')]\n"
        "stop.set()\n"
        "print(json.dumps([core, found]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    core, found = json.loads(done.stdout)
    assert len(found) >= 4
    assert all(own == [core] for own in found)
