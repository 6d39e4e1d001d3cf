"""The variant of a program whose every value is off by rounding: every layer's, once, in whatever way it is written. Needs no framework."""

import ast

import pytest
from build import program_of
from cases import CASES, spec_of

from harness import names, spec
from harness.backend import BACKENDS, OFF_BY_ROUNDING
from harness.emit import graphs
from harness.graph import BlockOp, Program
from harness.programs import emitted
from harness.resolve import compile_spec
from harness.rounded import rounded, with_moves


def calls(text: str) -> int:
    return sum(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == OFF_BY_ROUNDING
        for n in ast.walk(ast.parse(text))
    )


def nodes(program: Program) -> int:
    """Of all classes; a block's value is moved where it is made. What an op that subtracts a mean reads is moved as well."""
    own = [node.op for graph in graphs(program) for node in graph.nodes]
    return sum(not isinstance(op, BlockOp) for op in own) + sum(op.centres for op in own)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_layers_value_is_moved_once_in_every_case(backend: str) -> None:
    for name in CASES:
        program = program_of(spec_of(CASES[name]))
        text = rounded(program, emitted(program, backend, "float64", observe=True))
        assert calls(text) == nodes(program), name
        made = sum(node.op.gradient_by_value for graph in graphs(program) for node in graph.nodes)
        assert text.count(", read=") == made, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_and_in_every_bundled_spec(backend: str) -> None:
    for path in sorted(spec.directory().glob("*.yaml")):
        program = compile_spec(*spec.load(path))
        assert calls(rounded(program, emitted(program, backend, "float32", observe=True))) == nodes(program), path.name


def test_a_changed_program_is_moved_whatever_stands_before_an_entry() -> None:
    text = """
import tensorflow as tf
def forward(self, x, masks=None):
    values = {}
    x: Tensor = self.dense1(x)
    values["dense1"] = x
    if masks:
        x = x * masks["dropout1"]
    values["dropout1"] = x
    x, inner = self.block1(x)
    values |= inner
    values["block1"] = x
    x = self.conv1(x)
    values["conv1"] = tf.transpose(x, (0, 2, 3, 1))
    return x, values
"""
    found = with_moves(text)
    assert calls(found) == 3
    assert found.index(OFF_BY_ROUNDING) > found.index("self.dense1(x)")
    assert "x = off_by_rounding(x)\n    values['conv1'] = tf.transpose(x, (0, 2, 3, 1))" in found


def test_what_is_centred_is_moved_whatever_stands_around_the_call_and_only_in_its_class() -> None:
    text = """
class {name}:
    def forward(self, x):
        values = {{}}
        x = self.norm1(x.transpose(1, 2), training=True).transpose(1, 2)
        values["norm1"] = x
        return x, values
"""
    found = with_moves(text.format(name="Encoder") + text.format(name="Decoder"), {"Encoder": ["norm1"]})
    one = "x = self.norm1(off_by_rounding(x.transpose(1, 2), centred=True), training=True).transpose(1, 2)"
    assert found.count(one) == 1
    assert found.index(one) < found.index("class Decoder")
    assert calls(with_moves(text.format(name="A"))) == 1


def test_a_program_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps none"):
        with_moves("def forward(x):\n    return x")


def test_its_name_is_no_layers() -> None:
    assert names.variable(OFF_BY_ROUNDING) == f"{OFF_BY_ROUNDING}_"
