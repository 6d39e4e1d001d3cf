"""One random spec in live workers: what each backend says before, while and after it trains, and what its twins say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file

from harness.backend import Arrays
from harness.check.live import LiveWorker
from harness.check.shaken import Shaken
from harness.check.shaken import closed as closed_rounded
from harness.check.subject import Subject, each, open_program, part
from harness.fuzz.generate import Drawn
from harness.lanes import STRATEGIES
from harness.programs import emitted
from harness.questions import Question, questions
from harness.runs import Options, write_inputs

NAME = "fuzzed"
ROWS = 32
"""Examples that outputs are compared on."""


@dataclass(frozen=True)
class Answer:
    """What one backend said."""

    forward: Arrays
    """Outputs before training, by question."""
    gradients: Arrays
    """At the first step, as `update/parameter`, where they were asked for."""
    losses: dict[str, list[float]]
    """At every step, by update."""
    states: Arrays
    """Parameters and statistics after every step, the steps along the first axis; where a call takes many, after the last."""
    slots: Arrays
    """What the optimizers remember at the end."""
    outputs: Arrays
    """After training."""

    def tensors(self) -> dict[str, Arrays]:
        """All but the losses, by kind."""
        return {
            "forward": self.forward, "gradients": self.gradients, "state": self.states, "optimizer": self.slots,
            "outputs": self.outputs,
        }  # fmt: skip


@dataclass
class Trained:
    """A spec and what was said of it."""

    subject: Subject
    strategies: dict[str, str | None]
    answers: dict[str, Answer] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def opened(drawn: Drawn, precision: str, folder: Path, workers: Mapping[str, LiveWorker]) -> Subject:
    """What a spec's programs train on, written for the workers; no program yet."""
    folder.mkdir(parents=True)
    write_inputs(folder, drawn.program, drawn.inputs, drawn.source, Options(precision=precision), None)
    return Subject(drawn.program, precision, folder, drawn.inputs.held_out, dict(workers))


def train(
    subject: Subject, sources: Mapping[str, str], strategies: Mapping[str, str | None], *, gradients: bool = True
) -> Trained:
    """Train a spec in every worker. A program that raises is a failure of its backend.

    `gradients`: those of the first step by themselves, too: a compilation more in most backends.
    """
    found = Trained(subject, dict(strategies))

    def work(live: LiveWorker) -> Answer:
        strategy = strategies.get(live.name)
        open_program(subject, live, NAME, sources[live.name], observe=False, strategy=strategy)
        return answer(subject, live, strategy, subject.position("start", subject.start), gradients=gradients)

    found.answers = each(subject, work)
    found.failures = dict(subject.failures)
    return found


def answer(
    subject: Subject, live: LiveWorker, strategy: str | None, position: str, *, gradients: bool, shaken: Shaken | None = None
) -> Answer:  # fmt: skip
    """What an opened program says from a position on. `shaken`: how it is shaken there, from a position of its own."""
    steps = subject.program.steps
    given = shaken.inputs if shaken else {}
    name = shaken.names[live.name] if shaken else NAME
    live.ask("load", name=name, arrays=shaken.position if shaken else position)
    forward = _outputs(subject, live, name, given)
    found = live.arrays("gradients", name=name, step=0, **given) if gradients else {}
    path = live.fresh()
    if strategy is not None and STRATEGIES[live.backend, strategy].many:
        said = live.ask("train_stacked", name=NAME, count=steps, into=str(path))
        last = load_file(path)
        states, slots = {n: a[None] for n, a in part(last, "state/").items()}, {}
    else:
        said = live.ask(
            "train", name=name, first=0, last=steps, write="all", into=str(path), **(shaken.train if shaken else {})
        )
        arrays = load_file(path)
        states, slots = part(arrays, "states/"), part(arrays, "optimizer/")
    path.unlink()
    return Answer(forward, found, said["losses"], states, slots, _outputs(subject, live, name, given))


def asked(subject: Subject) -> dict[str, Question]:
    """What is asked of a program before and after training: as `harness run` does, and the logits that texts are made of."""
    program = subject.program
    found = questions(program, held_out=subject.held_out)
    if (text := program.spec.evaluation.text) is not None:
        found[str(text.logits)] = Question(text.logits, "test" if subject.held_out else "train")
    return found


def _outputs(subject: Subject, live: LiveWorker, name: str, given: Mapping[str, str]) -> Arrays:
    return {
        what: live.arrays("answered", name=name, rows=ROWS, **question.request(), **given)["output"]
        for what, question in asked(subject).items()
    }


def programs(subject: Subject, strategies: Mapping[str, str | None]) -> dict[str, str]:
    """The text that each backend's emitter writes."""
    return {
        name: emitted(subject.program, live.backend, subject.precision, strategy=strategies.get(name))
        for name, live in subject.workers.items()
    }


def closed(subject: Subject) -> None:
    """Forget the programs."""
    each(subject, lambda live: live.ask("close", name=NAME))
    closed_rounded(subject)
