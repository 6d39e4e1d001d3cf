"""The specs that fill a GPU have the sizes that are published, or that a sum over their layers gives."""

import ast
import math
from pathlib import Path

import pytest
from build import program_of

from harness import flops
from harness.backend import BACKENDS
from harness.programs import emitted

FOLDER = Path(__file__).parents[1] / "benchmarks" / "specs" / "gpu"


def dense(inputs: int, units: int) -> int:
    return (inputs + 1) * units


def lstm(inputs: int, units: int) -> int:
    return 4 * units * (inputs + units + 1)


LEARNED = {
    "resnet50": 25_557_032,  # torchvision's documentation of resnet50, num_params
    "gpt2_small": 50_257 * 768 + 1024 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768,
    "mlp": dense(4096, 8192) + dense(8192, 8192) + dense(8192, 1000),
    "lstm": lstm(512, 1024) + lstm(1024, 1024) + dense(1024, 1000),
}
FORWARD = {
    "resnet50": 4.089e9,  # torchvision's documentation of resnet50, _ops: multiplications of an image
    "mlp": 4096 * 8192 + 8192**2 + 8192 * 1000,
}


def test_each_spec_has_a_size_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(LEARNED)


@pytest.mark.parametrize("name", LEARNED)
def test_a_network_has_as_many_parameters_as_it_should(name: str) -> None:
    program = program_of((FOLDER / f"{name}.yaml").read_text())
    assert sum(math.prod(p.shape) for p in program.parameters.values() if p.learned) == LEARNED[name]


@pytest.mark.parametrize("name", FORWARD)
def test_a_step_has_three_times_the_products_of_a_forward_pass_but_for_the_first_layer(name: str) -> None:
    program = program_of((FOLDER / f"{name}.yaml").read_text())
    first = {"resnet50": 112**2 * 7 * 7 * 3 * 64, "mlp": 4096 * 8192}[name]  # inputs need no gradient
    assert flops.step(program) == pytest.approx(2 * program.batch * (3 * FORWARD[name] - first), rel=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LEARNED)
def test_each_is_written_for_every_framework(name: str, backend: str) -> None:
    text = emitted(program_of((FOLDER / f"{name}.yaml").read_text()), backend, "bfloat16")
    classes = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    assert {"resnet50": "Classifier", "gpt2_small": "Decoder", "mlp": "Classifier", "lstm": "Classifier"}[
        name
    ] in classes
