"""Read back what the harness wrote, however somebody has changed it since: every field has its type, or one sentence says which has not.

Fields that are not known are kept: a later version may have added them.
"""

import json
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11, and brings it

from harness.errors import CallError

LARGEST = 1_000_000_000  # bytes: a million steps of ten backends
DEEPEST = 40
NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
OPEN = ConfigDict(extra="allow", strict=True)


def _named(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """The numbers that strict JSON has no sign for stand in a file by their names."""
    return NAMES.get(value, value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_named)]
Size = Annotated[float, Field(ge=0, le=1e300), BeforeValidator(_named)]
Positive = Annotated[float, Field(ge=1e-300, le=1e300), BeforeValidator(_named)]
"""What is divided by, or stands on a log scale."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_@\[\]. -]{0,99}$")]
"""What is also the name of a file or folder."""


PAIR = Field(strict=False)  # JSON has lists alone


class Worst(TypedDict):
    """The tensor of a comparison that is furthest from what is allowed."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    name: str
    step: Count | None
    index: list[Count]
    difference: Number
    allowed: Number
    a: Number
    b: Number
    twin: NotRequired[Number | None]
    times: NotRequired[Number | None]


class ComparisonRecord(TypedDict):
    """Two backends, or one and the reference."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    what: str
    a: str
    b: str
    same: bool
    rounded: NotRequired[bool]
    compared: Count
    missing: list[str]
    worst: Worst | None


class EvidenceRecord(TypedDict):
    """The same run in float64."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    verdict: Literal["same", "differs", "failed"]
    directory: Name
    comparisons: list[ComparisonRecord]
    steps: NotRequired[Count]


class TwinsRecord(TypedDict):
    """How far backends part beside twins."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    count: Count
    allowed: Number
    times: Number
    worst: ComparisonRecord | None


class SeriesRecord(TypedDict):
    """How far two backends part, step by step."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    loss: dict[str, list[Number]]
    state: list[Annotated[tuple[Count, Number], PAIR]]


class ToleranceRecord(TypedDict):
    """What was allowed."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    relative: Size
    floor: Size


class BackendRecord(TypedDict):
    """One backend's training."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    status: Literal["ok", "diverged", "failed"]
    error: NotRequired[str]
    log: NotRequired[str]
    losses: NotRequired[dict[str, list[Number]]]
    metrics: NotRequired[dict[str, Number]]
    predictions: NotRequired[dict[str, Any]]
    text: NotRequired[str | None]
    seconds: NotRequired[dict[str, Size]]
    step_seconds: NotRequired[list[Size]]
    digests: NotRequired[dict[str, str]]
    versions: NotRequired[dict[str, str]]
    environment: NotRequired[dict[str, Any]]
    recorded: NotRequired[list[Count]]
    stopped_at: NotRequired[Count | None]


class RunRecord(TypedDict):
    """A run's result.json."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    spec: str
    about: str
    verdict: Literal["same", "differs", "failed"]
    steps: Count
    seed: Count
    precision: str
    threads: Count
    device: str
    backends: dict[Name, BackendRecord]
    comparisons: list[ComparisonRecord]
    series: dict[str, SeriesRecord]
    notes: list[str]
    zero_gradient: dict[str, str]
    drift: dict[str, Number]
    evidence: EvidenceRecord | None
    better: dict[str, str]
    tolerances: dict[str, ToleranceRecord]
    machine: dict[str, Any]
    twins: NotRequired[TwinsRecord | None]
    reasons: NotRequired[list[str]]
    started: str
    start: NotRequired[Count]


class RatioRecord(TypedDict):
    """A ratio with its interval."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    value: Positive
    low: Positive
    high: Positive
    verdict: str
    processes: NotRequired[Count]


class MemoryRecord(TypedDict):
    """Bytes of a process."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    imported: Size
    peak: Size
    device_peak: Size | None


PHASES = TypedDict(  # `import` is no name that a class can have
    "PHASES", {"import": Size, "build": Size, "first_call": Size, "second_call": Size}
)


class TargetRecord(TypedDict, total=False):
    """What was trained to; empty where nothing was."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    metric: str | None
    value: Number
    reached: bool
    steps: Count
    seconds: Size


TARGET = {"metric", "value", "reached", "steps", "seconds"}


class AloneRecord(TypedDict):
    """What a way of running costs in a process of its own."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    phases: PHASES
    memory: MemoryRecord
    compilations: dict[str, Count]
    target: TargetRecord


class LaneRecord(TypedDict):
    """One way of running one backend's program."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    backend: str
    lane: str
    strategy: str
    name: str
    trial: dict[str, Positive]
    share_of_peak: NotRequired[Size | None]
    lines: Count
    alone: AloneRecord | None
    against_fastest: RatioRecord | None
    median: Positive
    quartiles: Annotated[tuple[Size, Size], PAIR]
    joules: dict[str, Number]


class LedgerRecord(TypedDict):
    """How each backend was set."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    entries: dict[str, Annotated[dict[str, Any], Field(min_length=1)]]
    differing: list[str]


class MachineRecord(TypedDict):
    """What was measured on."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    processor: str
    cores: Count


class LatencyRecord(TypedDict):
    """Seconds of one answer."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    p50: Positive
    p95: Positive
    p99: Positive


class InferenceRecord(TypedDict):
    """How a trained network answers."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    backend: str
    way: str
    latency: LatencyRecord
    examples_a_second: Size
    against_fastest: RatioRecord | None


class EvaluationRecord(TypedDict):
    """How long an evaluation takes."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    backend: str
    seconds: Annotated[list[Size], Field(min_length=1)]
    examples: Count


class PeerRecord(TypedDict):
    """A program written by hand."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    backend: str
    strategy: str
    seconds: Annotated[list[Size], Field(min_length=1)]
    best_against_it: RatioRecord | None


class RoofRecord(TypedDict):
    """What the device did."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    flops_a_second: Positive
    bytes_a_second: Positive


class BenchRecord(TypedDict):
    """One benchmark of `harness bench --json`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    spec: str
    precision: str
    batch: Count
    verdict: Literal["same", "differs", "void", "failed"]
    lanes: list[LaneRecord]
    ledger: LedgerRecord
    machine: MachineRecord
    notes: list[str]
    failures: dict[str, str]
    flops: Count
    traffic: Count
    peers: list[PeerRecord]
    break_even: dict[str, Count | None]
    device: str
    inference: list[InferenceRecord]
    evaluation: list[EvaluationRecord]
    roof: RoofRecord | None
    setting: dict[str, str | Whole | Number | bool | None]


class ExtraRecord(TypedDict):
    """What the suites add to pytest-benchmark's own."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    spec: str
    phase: str
    backend: str
    strategy: str
    way: NotRequired[str]
    steps_a_round: NotRequired[Annotated[int, Field(ge=1, le=2**53)]]


class StatsRecord(TypedDict):
    """pytest-benchmark's statistics."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    median: Positive
    min: Positive
    rounds: Count


class SuiteRecord(TypedDict):
    """A row of pytest-benchmark's JSON."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    extra_info: ExtraRecord
    stats: StatsRecord


def read_json(path: Path, wrong: str = "is no JSON") -> Any:  # noqa: ANN401 - JSON
    """A file's JSON. Raises CallError (`wrong`: what it says of a file that has none), FileNotFoundError where there is no file."""
    try:
        if not path.is_file() and path.exists():
            raise CallError(f"{path}: is not a file")
        if (size := path.stat().st_size) > LARGEST:
            raise CallError(f"{path}: has {size:,} bytes; at most {LARGEST:,} are read")
        data = json.loads(path.read_bytes(), parse_int=_whole)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CallError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CallError(f"{path}: {wrong}: {' '.join(str(error).split())}") from None
    if _deeper(data, DEEPEST):
        raise CallError(f"{path}: is nested more than {DEEPEST} deep")
    return data


def _whole(text: str) -> int:
    """A whole number, unless it is larger than any that is written."""
    if len(text) > 20:  # noqa: PLR2004 - the digits of 64 bits
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def _deeper(value: Any, most: int) -> bool:  # noqa: ANN401 - JSON
    level = [value]
    for _ in range(most):
        level = [item for one in level for item in _inside(one) if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:  # noqa: ANN401 - JSON
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def run_record(path: Path, data: Any) -> RunRecord:  # noqa: ANN401 - JSON
    """A run's record, every field as it has to be, and names that fit together. Raises CallError."""
    found: RunRecord = _checked(RunRecord, path, data, "")
    known = {"reference", *found["backends"]}
    for number, comparison in enumerate(found["comparisons"]):
        for side in ("a", "b"):
            if comparison[side] not in known:
                raise CallError(f"{path}: comparisons[{number}].{side}: there is no backend {comparison[side]!r:.60}")
    for pair in found["series"]:
        left, tilde, right = pair.partition("~")
        if not (tilde and {left, right} <= found["backends"].keys()):
            raise CallError(f"{path}: series: {pair!r:.60} is no pair of backends")
    if found.get("start", 0) > found["steps"]:
        raise CallError(f"{path}: start: {found.get('start')} steps were done before, which is more than all {found['steps']}")  # fmt: skip
    for name, backend in found["backends"].items():
        for what, value in backend.get("predictions", {}).items():
            if not _numbers(value):
                raise CallError(f"{path}: backends.{name}.predictions.{what}: should be numbers, or lists of them")
    return found


def _numbers(value: Any) -> bool:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return all(map(_numbers, value))
    value = _named(value)
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**53)


def bench_record(path: Path, data: Any, number: int) -> BenchRecord:  # noqa: ANN401 - JSON
    """A benchmark's record. Raises CallError."""
    found: BenchRecord = _checked(BenchRecord, path, data, f"benchmarks[{number}]")
    for lane in found["lanes"]:
        if lane["alone"] and lane["alone"]["target"] and not lane["alone"]["target"].keys() >= TARGET:
            raise CallError(f"{path}: benchmarks[{number}]: the target of {lane['name']!r:.60} is not complete")
    return found


def suite_record(path: Path, data: Any, number: int) -> SuiteRecord:  # noqa: ANN401 - JSON
    """A row of pytest-benchmark's. Raises CallError."""
    found: SuiteRecord = _checked(SuiteRecord, path, data, f"benchmarks[{number}]")
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a type
    return TypeAdapter(kind)


def _checked(kind: Any, path: Path, data: Any, where: str) -> Any:  # noqa: ANN401 - a type, JSON
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        first, count = error.errors(include_url=False)[0], error.error_count()
        place = where
        for step in first["loc"]:
            place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
        message = re.sub(r"^Input should", "should", first["msg"].removeprefix("Value error, "))
        more = f" (and {count - 1} more)" if count > 1 else ""
        text = f"{path}: {place or 'all of it'}: {message}{more}"
        raise CallError(" ".join("".join(c if c.isprintable() else " " for c in text).split())) from None
