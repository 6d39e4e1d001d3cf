"""What a program is asked before and after training: expressions, and the examples that they are evaluated on.

The parent writes the questions into a worker's request and asks the reference the same: this is the one place
that knows them. Parts of the inputs: `train` and `test`, `prediction0`, ... (a spec's own examples), and `sample`
(a few held-out examples with noise drawn for them, for images and for networks that read noise).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import initial
from harness.data.datasets import to_array
from harness.data.inputs import Inputs
from harness.expressions import Call, Expression, Name, walk
from harness.graph import Program

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLE = 32  # examples, where the spec does not say how many images it wants


@dataclass(frozen=True)
class Question:
    """An expression and the part of the inputs that its fields come from."""

    expression: Expression
    part: str

    @property
    def fields(self) -> dict[str, str]:
        """Field -> its array's name in the inputs."""
        names = {e.name for e in walk(self.expression) if isinstance(e, Name)}
        return {name: f"{self.part}.{name}" for name in sorted(names)}

    def request(self) -> dict[str, Any]:
        """As a worker reads it."""
        return {"expression": to_json(self.expression), "fields": self.fields}


def questions(program: Program, *, held_out: bool) -> dict[str, Question]:
    """Every question by the name under which its answer is written. There is always one."""
    part = "test" if held_out else "train"
    evaluation = program.spec.evaluation
    asked = {}
    for metric in evaluation.metrics:
        expression = getattr(metric, metric.roles[0])
        asked[str(expression)] = Question(expression, part)
    for i, prediction in enumerate(evaluation.predictions):
        asked[f"prediction/{prediction.name}"] = Question(prediction.value, f"prediction{i}")
    if evaluation.images:
        asked["images"] = Question(evaluation.images.images, "sample")
    if not asked:
        # A network that nobody asks is still compared before training: at its first call on fields alone.
        site = next(s for u in program.updates for s in u.calls if all(a.kind == "field" for a in s.arguments))
        call = Call(site.network, tuple(Name(a.name) for a in site.arguments))
        asked[str(call)] = Question(call, "sample")
    return asked


def arrays(program: Program, inputs: Inputs) -> dict[str, Array]:
    """The arrays that questions need beside the training and held-out examples."""
    evaluation = program.spec.evaluation
    found = {
        f"prediction{i}.{name}": to_array(name, value)
        for i, prediction in enumerate(evaluation.predictions)
        for name, value in prediction.inputs.items()
    }
    asked = questions(program, held_out=inputs.held_out).values()
    wanted = {name for question in asked if question.part == "sample" for name in question.fields}
    if wanted:
        held = len(next(iter(inputs.test.values())))
        count = evaluation.images.count if evaluation.images else SAMPLE
        if wanted & set(inputs.test):
            count = min(count, held)
        sample = initial.noise(program, "evaluation", count=count)
        sample |= {name: array[:count] for name, array in inputs.test.items()}
        found |= {f"sample.{name}": sample[name] for name in sorted(wanted)}
    return found


def to_json(expression: Expression) -> list[Any]:
    """An expression as a worker reads it: ["field", name] or ["call", network, [arguments]]."""
    if isinstance(expression, Call):
        return ["call", expression.network, [to_json(argument) for argument in expression.arguments]]
    return ["field", str(expression)]
