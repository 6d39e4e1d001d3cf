"""Whatever numbers, shapes and text a spec has: it is refused with a sentence, or means what its definitions say."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from build import program_of
from cases import CASES, spec_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import limits, spec
from harness.errors import SpecError
from harness.graph import BlockOp, Graph, Node
from harness.initializers import INITIALIZERS
from harness.losses import LOSSES
from harness.metrics import METRICS
from harness.ops import OPS
from harness.ops.base import Mode, Op, ShapeError
from harness.optimizers import CLIPS, OPTIMIZERS, SCHEDULES
from harness.record import Kind
from harness.resolve import compile_spec

FAMILIES: tuple[type[Kind], ...] = (*OPS.values(), *INITIALIZERS, *LOSSES, *METRICS, *OPTIMIZERS, *SCHEDULES, *CLIPS)
NUMERIC = [
    (cls, name) for cls in FAMILIES for name, field in cls.model_fields.items() if field.annotation in (int, float)
]
NUMBERS = st.one_of(
    st.floats(), st.integers(), st.integers(-3, 40), st.booleans(), st.text(max_size=3), st.none(),
    st.sampled_from([1e-320, 1e-38, 1e-37, 1e30, 1.1e30, 1e308, 2**31 - 1, 2**31, 2**63, 10**400, 0.0, -0.0, 1.0, 0.999]),
)  # fmt: skip
NEEDED = {
    "units": 3, "channels": 4, "kernel": 2, "window": 2, "heads": 2, "features": 3, "rate": 0.5, "factor": 2, "shape": [4], "embedding": "e", "value": 1.0, "values": [1.0],
    "logits": "n(x)", "labels": "y", "predictions": "n(x)", "targets": "y", "learning_rate": 0.1, "every": 3, "limit": 1.0, "k": 2,
}  # fmt: skip


def made(cls: type[Kind], **given: Any) -> Kind:
    """A kind with what it needs, and what is given."""
    return cls.model_validate(
        {name: NEEDED[name] for name, field in cls.model_fields.items() if field.is_required()} | given
    )


def test_every_field_with_a_number_is_tried() -> None:
    assert {("adam", "epsilon"), ("uniform", "low"), ("dense", "units"), ("step", "every"), ("mse", "weight")} <= {
        (cls.kind, name) for cls, name in NUMERIC
    }
    assert all(made(cls) for cls in FAMILIES)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(NUMERIC), NUMBERS)
def test_a_number_is_refused_or_can_be_computed_with(where: tuple[type[Kind], str], number: Any) -> None:
    cls, name = where
    try:
        kind = made(cls, **{name: number})
    except ValidationError:
        return
    value = getattr(kind, name)
    assert value is None or (math.isfinite(value) and abs(value) <= max(limits.GREATEST, limits.COUNT))
    assert not isinstance(number, (bool, str))
    assert np.isfinite(np.float32(value or 0))
    assert value is None or (np.float32(value) == 0) == (value == 0)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([cls for cls in INITIALIZERS if cls.kind != "values"]),
    st.dictionaries(st.sampled_from(["low", "high", "std", "mean", "value", "gain"]), NUMBERS, max_size=2),
)
def test_an_initializer_is_refused_or_draws_finite_values(cls: type[Any], fields: dict[str, Any]) -> None:
    try:
        rule = made(cls, **fields)
    except ValidationError:
        return
    values = rule.draw(np.random.default_rng(0), (3, 4), 3, 4)  # type: ignore[attr-defined]
    assert values.shape == (3, 4)
    assert np.isfinite(values).all()


def nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if isinstance(node.op, BlockOp):
            yield from nodes(node.op.graph)
        else:
            yield node


def ops() -> list[tuple[str, Op]]:
    """Every op as the cases have it, before its pads were made explicit."""
    found = []
    for name, case in CASES.items():
        for layer in spec.Network.model_validate({"layers": case.layers}).layers:
            if isinstance(layer.op, Op) and layer.op.kind not in ("embedding", "unembed"):
                found.append((f"{name}: {layer.op.kind}", layer.op))
    return found


ALL_OPS = ops()
SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(ALL_OPS), st.lists(SHAPES, min_size=1, max_size=3), st.data())
def test_a_shape_is_refused_or_is_that_of_what_the_reference_computes(
    named: tuple[str, Op], shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    name, op = named
    least, most = op.arity
    count = data.draw(st.integers(least, most or least + 1))
    same = data.draw(st.booleans())
    given_shapes = [shapes[0] if same else shapes[i % len(shapes)] for i in range(count)]
    try:
        resolved = op.resolve(*given_shapes)
        shape = resolved.output(*given_shapes)
        parameters = resolved.parameters(*given_shapes)
        for parameter in parameters:
            if hasattr(parameter.init, "check"):
                parameter.init.check(parameter.shape)
    except ShapeError:
        return
    except ValueError as error:
        given_values = str(error)
    else:
        given_values = ""
    if given_values:
        assert "initial values" in given_values, name
        return
    rng = np.random.default_rng(0)
    arrays = {p.name: p.init.draw(rng, p.shape, p.fan_in, p.fan_out) for p in parameters}
    inputs = tuple(rng.standard_normal((2, *shape)) for shape in given_shapes)
    assert resolved.reference(inputs, arrays, Mode()).shape == (2, *shape), name
    assert resolved.values(*given_shapes) >= 1


GOOD = json.dumps(spec_of(CASES["dense"]), indent=1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, len(GOOD)),
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["\x00", "\u2028", "\ufeff", "&a ", "*a", "!!int ", "- ", ": ", "{", "]", "'", "%", "\t", "\\U00110000"]
        ),
    ),
    st.integers(0, 5),
)
def test_no_text_is_a_traceback_and_no_message_has_control_characters(at: int, inserted: str, left_out: int) -> None:
    said = "accepted"
    try:
        compile_spec(*spec.loads(GOOD[:at] + inserted + GOOD[at + left_out :]))
    except SpecError as error:
        said = str(error)
    assert said
    assert all(line.isprintable() and len(line) < 2000 for line in said.splitlines())


@pytest.mark.parametrize("shape", [[], [1], [7] * 7])
def test_shapes_at_the_limits_are_accepted(shape: list[int]) -> None:
    size = 2 if len(shape) > 3 else 1
    shape = [size for _ in shape]
    text = {
        "name": "edge", "data": {"dataset": "random", "examples": 4, "batch": 2, "fields": {"x": {"shape": shape}}},
        "networks": {"net": {"layers": [{"reshape": [max(1, size ** len(shape))]}, {"dense": 1}]}},
        "training": {"steps": 1, "updates": [{"loss": {"mse": {"predictions": "net(x)", "targets": 0}}, "optimizer": {"sgd": {"learning_rate": 0.1}}}]},
    }  # fmt: skip
    assert program_of(text).networks["net"].shape == (1,)
