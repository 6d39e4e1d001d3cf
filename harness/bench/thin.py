"""A large network is checked on few examples and along few directions: the reference, in float64, would take hours for all."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import flops, source, spec
from harness.check.subject import Effort, Subject, prepare
from harness.check.trajectory import Training
from harness.graph import BlockOp, Graph, Program
from harness.lanes import FEW
from harness.resolve import compile_spec
from harness.runs import prepared
from harness.source import Source
from harness.vary import varied

HEAVY = 1e11
"""Floating-point operations of a step from which on a network is large."""
SLOW = 5e9
"""Of a step from which on a trajectory is a few steps long: twenty, by fifteen ways, would take minutes."""
FORWARD, SLOPES, NODES = 2e10, 2e11, 5e10
"""Floating-point operations of the reference that are allowed for one forward pass, for all slopes, and for seeing which
nodes reach the output; one pass for one example is always made. A network whose slopes, one in each parameter, would take
more is large too."""
VALUES = 5_000_000
"""Numbers that all nodes' values may hold in one forward pass of a large network: each backend says them eight times."""
EVALUATIONS = 6
"""Forward passes that a slope takes."""
NUMBERS = 10**8
"""Of all states that are kept of a training's first steps; of more, only those after the last of fewer steps are."""


@dataclass(frozen=True)
class Thinned:
    """What the rungs of one step are asked of."""

    subject: Subject
    """The same network, parameters and workers, and perhaps fewer examples in a batch."""
    steps: int
    """Of the trajectories: of a large network FEW, as many as one call that takes several, which then compiles but once."""
    at: tuple[int, ...]
    """The steps after which states are compared; none: all."""
    said: str
    """What was left out; empty: nothing."""
    restarts: bool = True
    """Whether the start is loaded in no time, so that what is timed may begin training again at its end."""


def thinned(subject: Subject, text: Source, folder: Path, steps: int = 20) -> Thinned:
    """A subject as its rungs of one step are to see it, and `steps` of a trajectory: a small one as it is."""
    program = subject.program
    steps = min(steps, program.steps)
    numbers = sum(int(np.prod(p.shape)) for p in program.parameters.values())
    at: tuple[int, ...] = ()
    restarts = numbers * steps <= NUMBERS
    if not restarts or flops.step(program) > SLOW:
        steps = min(FEW, steps)
        at = (steps,)
    states = f" Parameters were compared after step {steps}." if at else ""
    learned = sum(parameter.learned for parameter in program.parameters.values())
    if flops.step(program) <= HEAVY and EVALUATIONS * learned * flops.forward(program) <= SLOPES:
        return Thinned(subject, steps, at, states.strip(), restarts)
    one = max(1, flops.forward(program) // program.batch)
    values = sum(_values(graph) for graph in program.networks.values())
    examples = max(1, min(program.batch, int(FORWARD // one), VALUES // values))
    effort = Effort(
        rows=examples,
        twins=1,
        directions=max(1, int(SLOPES // (EVALUATIONS * examples * one))),
        nodes=max(3, int(NODES // one)),
    )
    own, less = spec.validate(source.parse(varied(text.text, ("data.batch",), examples), text.name))
    few = prepare(
        (small := compile_spec(own, less)), less, prepared(small, less), subject.precision, folder, subject.workers
    )
    few.failures, few.device, few.effort = subject.failures, subject.device, effort
    return Thinned(few, steps, at, _said(program, effort, examples) + states, restarts)


def _values(graph: Graph) -> int:
    """Numbers that a network's nodes hold of one example."""
    return sum(_values(n.op.graph) if isinstance(n.op, BlockOp) else math.prod(n.shape) for n in graph.nodes)


def unmoved(subject: Subject, training: Training) -> list[str]:
    """Parameters and statistics that end where they began, where states are kept after one step alone."""
    states = {n: s for n, s in training.states.items() if training.at and n not in subject.apart}
    return [f"{n} never moves" for n, s in states.items() if np.array_equal(s[-1], subject.start[f"state/{n}"])]


def _said(program: Program, effort: Effort, examples: int) -> str:
    slopes = f"{effort.directions} directions" if (effort.directions or 0) > 1 else "one direction"
    return (
        f"Forward pass and gradients were checked on {examples} of a batch's {program.batch} examples, gradients against "
        f"the reference's slopes along {slopes} in groups of parameters."
    )
