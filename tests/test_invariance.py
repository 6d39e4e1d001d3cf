"""What ops say of shifts, held against their references; and the parameters of whole programs whose gradient is zero."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import pytest
from build import program_of, program_of_case
from cases import CASES, Case, spec_of

from harness import initial, reference
from harness.graph import BlockOp, Graph, Node, Program
from harness.invariance import deaf, invariance, zero_gradient
from harness.judge import first_batch, of_rounding
from harness.losses import LOSSES, Loss
from harness.ops import OPS
from harness.ops.activation import Relu
from harness.ops.base import Array, Mode, Op, Shape, Shift, everywhere
from harness.ops.normalisation import BatchNorm, Dropout
from harness.ops.pooling import AvgPool2d
from harness.precision import PRECISIONS
from harness.results import BackendResult

BATCH = 4
ROUNDING = 1e-11
"""References are float64, their values near 1, a batch norm's epsilon 1e-5."""

MORE: dict[str, Case] = {
    "windows at the edge": Case(({"avg_pool2d": {"window": 2, "stride": 1, "padding": 1, "count_padding": True}},), (4, 5, 3)),
    "one channel": Case(({"conv2d": {"channels": 1, "kernel": 1}}, "layer_norm", "softmax"), (4, 5, 3)),
    "dropout of images per channel": Case(({"dropout": {"rate": 0.5, "per": "channel"}},), (4, 5, 3)),
    "one step": Case(({"attention": 2}, {"lstm": 3}), (1, 4)),
    "one pixel": Case(({"conv2d": {"channels": 2, "kernel": 1}}, {"conv_transpose2d": {"channels": 3, "kernel": 1}}, "batch_norm", "global_max_pool"), (1, 1, 2)),
    "attention to a dropped memory": Case(
        ({"dense": {"units": 4, "name": "query", "inputs": "x"}}, {"attention": {"heads": 2, "dropout": 0.5, "inputs": ["query", "entry"]}}), (5, 3)),
}  # fmt: skip


def nodes_of(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if isinstance(node.op, BlockOp):
            yield from nodes_of(node.op.graph)
        else:
            yield node


def nodes_in(name: str) -> list[Node]:
    made = program_of_case(name) if name in CASES else program_of(spec_of(MORE[name]))
    return [node for graph in made.networks.values() for node in nodes_of(graph)]


def subsets(axes: frozenset[int]) -> Iterator[frozenset[int]]:
    for count in range(len(axes) + 1):
        yield from map(frozenset, combinations(sorted(axes), count))


def drawn(rng: np.random.Generator, axes: frozenset[int], shape: Shape) -> Array:
    """A change of a batch of this shape that varies along these axes."""
    full = (BATCH, *shape)
    return np.broadcast_to(rng.normal(size=[n if i in axes else 1 for i, n in enumerate(full)]), full)


def exceeds(change: Array, claimed: Shift) -> bool:
    """Whether a change varies along more axes than is claimed."""
    if claimed is None:
        return bool(np.max(np.abs(change), initial=0.0) > ROUNDING)
    others = tuple(axis for axis in range(change.ndim) if axis not in claimed)
    return bool(np.max(np.ptp(change, axis=others), initial=0.0) > ROUNDING) if others else False


class Asked:
    """An op's reference in training, with inputs, parameters and a mask that stay."""

    def __init__(self, op: Op, shapes: tuple[Shape, ...], rng: np.random.Generator) -> None:
        self.op, self.shapes, self.rng = op, shapes, rng
        ids = op.dtype == "int"
        self.inputs = [
            rng.integers(0, min(2, getattr(op, "vocabulary", 2)), (BATCH, *s)) if ids else rng.normal(size=(BATCH, *s))
            for s in shapes
        ]
        self.parameters = {p.name: rng.normal(size=p.shape) + (p.name == "scale") for p in op.parameters(*shapes)}
        if op.kind == "unembed":
            self.parameters["embedding"] = rng.normal(size=(op.vocabulary, shapes[0][-1]))  # type: ignore[attr-defined]
        mask = op.mask(*shapes)
        self.mask = None if mask is None else rng.integers(0, 2, (BATCH, *mask[0])) / (1 - mask[1])

    def value(self, inputs: list[Array] | None = None, parameters: Mapping[str, Array] | None = None) -> Array:
        mode = Mode(training=True, mask=self.mask)
        return self.op.reference(tuple(inputs or self.inputs), parameters or self.parameters, mode)

    def real(self, shape: Shape) -> frozenset[int]:
        return frozenset({0}) | {i for i, size in enumerate(shape, start=1) if size > 1}

    def broken(self) -> list[str]:
        """Claims that do not hold: of inputs one by one and all together, and of parameters."""
        found, before = [], self.value()
        places = (
            [] if self.op.dtype == "int" else [(i,) for i in range(len(self.shapes))] + [tuple(range(len(self.shapes)))]
        )
        for at in places:
            for axes in subsets(frozenset().union(*(self.real(self.shapes[i]) for i in at))):
                shifts = tuple(axes & self.real(shape) if i in at else None for i, shape in enumerate(self.shapes))
                moved = [
                    x if s is None else x + drawn(self.rng, s, shape)
                    for x, s, shape in zip(self.inputs, shifts, self.shapes, strict=True)
                ]
                if exceeds(self.value(inputs=moved) - before, claimed := self.op.passes(shifts, *self.shapes)):
                    found.append(f"inputs {at} changed along {sorted(axes)}: more than {claimed}")
        for name in self.parameters:
            moved_one = self.parameters | {
                name: self.parameters[name] + self.rng.normal(size=self.parameters[name].shape)
            }
            known = any(p.name == name and p.learned for p in self.op.parameters(*self.shapes))
            if known and exceeds(
                self.value(parameters=moved_one) - before, claimed := self.op.shifted_by(name, *self.shapes)
            ):
                found.append(f"{name} changed: more than {claimed}")
        return found


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_no_op_changes_more_than_it_says(name: str) -> None:
    rng = np.random.default_rng(0)
    for node in nodes_in(name):
        assert not Asked(node.op, node.input_shapes, rng).broken(), node


def test_the_claims_of_every_op_are_asked() -> None:
    assert {node.op.kind for name in CASES for node in nodes_in(name)} >= OPS.keys()


class SeesNothing(Relu):
    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return None


class PassesOn(Dropout):
    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return shifts[0]


class IgnoresExamples(BatchNorm):
    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return None if shifts[0] is None or len(inputs[0]) not in shifts[0] else everywhere(inputs[0])


class ForgetsEdges(AvgPool2d):
    def passes(self, shifts: tuple[Shift, ...], *inputs: Shape) -> Shift:
        return shifts[0]


class SilentScale(BatchNorm):
    def shifted_by(self, parameter: str, *inputs: Shape) -> Shift:
        return frozenset({len(inputs[0])})


@pytest.mark.parametrize(
    "op",
    [
        SeesNothing(), PassesOn(rate=0.5), IgnoresExamples(), SilentScale(),
        ForgetsEdges(window=(2, 2), stride=(1, 1), padding=((1, 1), (1, 1)), count_padding=True),
    ],
    ids=lambda op: type(op).__name__,
)  # fmt: skip
def test_a_wrong_claim_is_caught(op: Op) -> None:
    assert Asked(op, ((4, 5, 3),), np.random.default_rng(0)).broken()


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.kind)
def test_a_loss_ignores_what_it_says_and_nothing_more(cls: type[Loss]) -> None:
    rng, shape = np.random.default_rng(0), (3, 5)
    loss = cls.model_validate(dict.fromkeys(cls.roles, "x"))
    outputs = rng.normal(size=(BATCH, *shape))
    targets = rng.integers(0, 5, (BATCH, 3)) if cls.integer_targets else rng.uniform(size=outputs.shape)
    before = loss.reference(outputs, targets)
    for axes in subsets(everywhere(shape)):
        moved = loss.reference(outputs + drawn(rng, axes, shape), targets)
        assert loss.ignores(axes, None, shape) == (abs(moved - before) < ROUNDING), sorted(axes)
        assert not loss.ignores(None, axes, shape)


def program(*networks: str, over: str = "", loss: str = "net(image)", rule: str = "adam", extra: str = "") -> Program:
    moved = f", over: {over}" if over else ""
    lines = "\n".join(f"  {network}" for network in networks)
    return program_of(f"""
name: invariant
data: {{dataset: digits, batch: 16}}
networks:
{lines}
{extra}
training:
  steps: 3
  updates:
    - {{loss: {{softmax_cross_entropy: {{logits: {loss}, labels: label}}}}, optimizer: {{{rule}: {{learning_rate: 0.01}}}}{moved}}}
""")


CONV = "conv2d: {channels: 4, kernel: 3}"
SAME = "conv2d: {channels: 4, kernel: 3, padding: same}"
END = "relu, flatten, {dense: 10}"


def net(*layers: str) -> str:
    return f"net: {{inputs: [image], layers: [{', '.join(layers)}]}}"


NULL: dict[str, tuple[Program, dict[str, set[str]]]] = {
    name: (made, wanted)
    for name, made, wanted in (
        ("at once", program(net(f"{{{CONV}}}", "batch_norm", END)), {"conv1.bias": {"norm1.mean"}}),
        ("average pooling", program(net(f"{{{CONV}}}", "{avg_pool2d: 2}", "batch_norm", END)), {"conv1.bias": {"norm1.mean"}}),
        ("maximum pooling", program(net(f"{{{CONV}}}", "{max_pool2d: {window: 3, padding: 1}}", "batch_norm", END)), {"conv1.bias": {"norm1.mean"}}),
        ("global pooling", program(net(f"{{{CONV}}}", "global_max_pool", "batch_norm", "relu", "{dense: 10}")), {"conv1.bias": {"norm1.mean"}}),
        ("flattened", program(net(f"{{{CONV}}}", "flatten", "batch_norm", "relu", "{dense: 10}")), {"conv1.bias": {"norm1.mean"}}),
        ("reshaped", program(net(f"{{{CONV}}}", "{reshape: [36, 4]}", "batch_norm", END)), {"conv1.bias": {"norm1.mean"}}),
        ("through a convolution without padding", program(net(f"{{{CONV}}}", "{conv2d: {channels: 3, kernel: 2}}", "batch_norm", END)),
            {"conv1.bias": {"norm1.mean"}, "conv2.bias": {"norm1.mean"}}),
        ("two dense layers", program(net("flatten", "{dense: 6}", "{dense: 5}", "batch_norm", "relu", "{dense: 10}")),
            {"dense1.bias": {"norm1.mean"}, "dense2.bias": {"norm1.mean"}}),
        ("residual sum", program(net(f"{{{SAME}}}", "relu", f"{{residual: [{{{SAME}}}]}}", "batch_norm", END)), {"conv2.bias": {"norm1.mean"}}),
        ("of a normalisation itself", program(net(f"{{{CONV}}}", "batch_norm", "{avg_pool2d: 2}", "batch_norm", END)),
            {"conv1.bias": {"norm1.mean"}, "norm1.bias": {"norm2.mean"}}),
        ("a block", program(net("body", "batch_norm", END), extra=f"blocks:\n  body: {{layers: [{{{CONV}}}]}}"), {"body1.conv1.bias": {"norm1.mean"}}),
        ("two networks", program(
            "encoder: {inputs: [image], layers: [flatten, {dense: 8}]}", "head: {inputs: [code], layers: [batch_norm, relu, {dense: 10}]}",
            over="[encoder, head]", loss="head(encoder(image))"), {"encoder.dense1.bias": {"head.norm1.mean"}}),
        ("layer normalisation of one channel", program(net("{conv2d: {channels: 1, kernel: 3}}", "layer_norm", END)),
            {"conv1.kernel": set(), "conv1.bias": set(), "norm1.scale": set()}),
        ("keys, and values behind them", program(net("{reshape: [8, 8]}", "{attention: 2}", "{dense: 6}", "batch_norm", "relu", "flatten", "{dense: 10}")),
            {"attention1.key_bias": set(), "attention1.value_bias": {"norm1.mean"}, "attention1.out_bias": {"norm1.mean"}, "dense1.bias": {"norm1.mean"}}),
        ("zeros beside it", program(net(f"{{{CONV}}}", f"{{{SAME}}}", "batch_norm", END)), {"conv2.bias": {"norm1.mean"}}),
        ("counted zeros beside it", program(net(f"{{{CONV}}}", "{avg_pool2d: {window: 2, padding: 1, count_padding: true}}", "batch_norm", END)), {}),
        ("an activation between", program(net(f"{{{CONV}}}", "relu", "batch_norm", END)), {}),
        ("dropout between", program(net(f"{{{CONV}}}", "{dropout: 0.5}", "batch_norm", END)), {}),
        ("seen elsewhere", program(net(f"{{{CONV}}}", "batch_norm", "{add: {inputs: [conv1, norm1]}}", END)), {}),
        ("layer normalisation of several channels", program(net(f"{{{CONV}}}", "layer_norm", END)), {}),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", NULL)
def test_parameters_with_zero_gradient_are_found_whatever_lies_between(name: str) -> None:
    made, wanted = NULL[name]
    found = invariance(made)
    assert found.parameters.keys() == wanted.keys()
    carried: dict[str, set[str]] = {parameter: set() for parameter in wanted}
    for statistic, those in found.carriers.items():
        for parameter in those:
            carried[parameter].add(statistic)
    assert carried == wanted


@pytest.mark.parametrize("name", NULL)
def test_they_are_those_that_do_not_move_the_reference(name: str) -> None:
    made, wanted = NULL[name]
    rng = np.random.default_rng(0)
    # Not where they begin: a bias of zeros hides what is behind it.
    parameters = {
        n: a + rng.normal(size=a.shape) * made.parameters[n].learned for n, a in initial.parameters(made).items()
    }
    data = {"train.image": rng.normal(size=(16, 8, 8, 1)), "train.label": rng.integers(0, 10, 16)}
    batch, masks = first_batch(made, data, {"order": np.arange(16)[None]}, 0)
    (update,) = made.updates

    def loss(moved: Mapping[str, Array]) -> float:
        return reference.loss(made, update, {**parameters, **moved}, batch, masks)

    still = {n for n, p in made.parameters.items() if p.learned and abs(loss({n: parameters[n] + rng.normal(size=p.shape)}) - loss({})) < ROUNDING}  # fmt: skip
    assert still == wanted.keys()


def test_a_rule_without_division_moves_nothing_that_shows() -> None:
    made = program(net(f"{{{CONV}}}", "batch_norm", END), rule="sgd")
    assert zero_gradient(made).keys() == {"conv1.bias"}


def test_a_parameter_that_one_of_two_updates_sees_is_none() -> None:
    text = """
name: two
data: {dataset: digits, batch: 16}
networks: {net: {inputs: [image], layers: [flatten, {dense: {units: 10, name: code}}]}, head: {inputs: [code], layers: [batch_norm, relu, {dense: 10}]}}
training:
  steps: 3
  updates:
    - {name: one, loss: {softmax_cross_entropy: {logits: head(net(image)), labels: label}}, over: [net], optimizer: {adam: {learning_rate: 0.01}}}
"""
    assert invariance(program_of(text)).parameters.keys() == {"net.code.bias"}
    more = text + "    - {name: two, loss: {softmax_cross_entropy: {logits: net(image), labels: label}}, over: [net], optimizer: {adam: {learning_rate: 0.01}}}\n"  # fmt: skip
    assert not invariance(program_of(more)).parameters


def test_the_reason_names_who_takes_it_away() -> None:
    made, _ = NULL["a block"]
    why = zero_gradient(made)
    assert why["body1.conv1.bias"] == "norm1 (batch_norm) takes away again what it adds"
    assert why["norm1.mean"] == "a statistic that carries body1.conv1.bias, whose gradient is zero"


@pytest.mark.parametrize(
    ("precision", "gradient", "expected"),
    [
        ("float64", 1e-13, True), ("float64", 1e-12, False), ("float32", 1e-4, True), ("float32", 1e-3, False),
        # A sum of values that were rounded to three digits is zero to two.
        ("bfloat16", 0.05, True), ("bfloat16", 0.2, False),
    ],
)  # fmt: skip
def test_a_gradient_is_of_roundings_size_by_the_precision_of_its_products(
    precision: str, gradient: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = BackendResult("torch", "ok")
    said = {"net/conv.bias": np.array([gradient, 0.0]), "net/conv.kernel": np.array([[1.0, -0.5]])}
    monkeypatch.setattr(BackendResult, "gradient_steps", [0])
    monkeypatch.setattr(BackendResult, "gradients", lambda _self, _step: said)
    assert of_rounding(result, "conv.bias", 2 * PRECISIONS[precision].roundoff) is expected


@pytest.mark.parametrize(
    ("layers", "shape", "found"),
    [
        (({"dense": {"units": 1}}, "layer_norm"), (3,), True),
        (({"dense": {"units": 2}}, "layer_norm"), (3,), False),
        (({"dense": {"units": 1}}, "softmax"), (3,), True),
        (({"dense": {"units": 1}}, "batch_norm", "relu"), (3,), False),
        (({"residual": [{"dense": {"units": 3}}, {"repeat": {"times": 2, "layers": ["layer_norm"]}}]},), (3,), False),
        (({"dense": {"units": 1}}, {"repeat": {"times": 2, "layers": ["layer_norm"]}}), (3,), True),
    ],
)  # fmt: skip
def test_what_says_the_same_whatever_it_is_given_is_deaf(layers: tuple[object, ...], shape: Shape, found: bool) -> None:
    made = program_of(spec_of(Case(layers, shape)))
    assert any(deaf(node) for graph in made.networks.values() for node in graph.nodes) is found
