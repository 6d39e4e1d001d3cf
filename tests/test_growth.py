"""What emitting costs grows with a spec's length, not with its square. Counted, not timed: calls of functions of the harness."""

import itertools
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from harness.backend import BACKENDS
from harness.programs import emitted
from harness.resolve import compile_spec
from harness.spec import loads


def text(layers: int) -> str:
    body = "\n".join(f"      - dense: {4 + i % 3}\n      - relu" for i in range(layers // 2))
    return f"""name: deep
data: {{dataset: random, examples: 8, fields: {{x: {{shape: [4]}}, y: {{classes: 10}}}}, batch: 4}}
networks:
  net:
    inputs: [x]
    layers:
{body}
      - dense: 10
training:
  steps: 2
  updates:
    - loss: {{softmax_cross_entropy: {{logits: net(x), labels: y}}}}
      optimizer: {{adam: {{learning_rate: 0.001}}}}
"""


def calls(do: Callable[[], object]) -> int:
    """How many Python functions it calls."""
    count = 0

    def seen(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        do()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("backend", BACKENDS)
def test_four_times_the_layers_cost_four_times_the_calls(backend: str) -> None:
    counted = []
    for layers in (50, 200, 800):
        written = text(layers)
        counted.append(calls(lambda written=written: emitted(compile_spec(*loads(written)), backend, "float32")))  # type: ignore[misc]
    first, second = (b - a for a, b in itertools.pairwise(counted))
    assert second < 5 * first, "the square would be sixteen times"
