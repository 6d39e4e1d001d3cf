"""Faults between gradients and new parameters: optimizer, schedule, clipping, order of updates."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from harness.check import changes, written
from harness.check.changes import Change
from harness.check.edits import Edit, Helper, Needs, Plan, Plans, alone, plans
from harness.check.mutant import Mutant, has, scheduled
from harness.check.places import EVERY, FIRST, Place
from harness.graph import Program
from harness.ops.linear import Embedding, Unembed
from harness.optimizers import Adam, AdamW, ClipValue, Cosine, GlobalNorm, Optimizer, Schedule, Sgd, Step


def _once(differ: Callable[[Schedule, int], bool]) -> Callable[[Program], int]:
    """The first step whose learning rate differs, by the program's schedules and t."""

    def step(program: Program) -> int:
        rules = [update.schedule for update in program.updates]
        found = (t for t in range(program.steps) if any(differ(rule, t) for rule in rules))
        return next(found, program.steps) + 1

    return step


def _other_rate(change: Change) -> Callable[[Program], int]:
    """The first step at which a changed schedule has another rate."""

    def step(program: Program) -> int:
        # Of several updates' schedules the one that shows it last: any one of them may have it alone.
        changed = change(program, EVERY) or program
        pairs = [(a.schedule, b.schedule) for a, b in zip(program.updates, changed.updates, strict=True) if a != b]
        found = [(t for t in range(program.steps) if a.factor(t) != b.factor(t)) for a, b in pairs]
        return max((next(steps, program.steps) for steps in found), default=program.steps) + 1

    return step


_turns = _once(lambda rule, t: t > 0 and rule.factor(t) != rule.factor(t - 1))


_turns_next = _once(lambda rule, t: rule.factor(t) != rule.factor(t + 1))


def _at_once(_program: Program) -> int:
    """At the first step, whatever its learning rate."""
    return 1


def _after_biases_move(program: Program) -> int:
    """One step after the first that moves a bias away from zero."""
    moving = (t for t in range(program.steps) if any(u.schedule.factor(t) for u in program.updates))
    return next(moving, program.steps) + 2


def _after_plain_momentum(program: Program) -> int:
    """Without Nesterov the first update is the gradient itself, whatever the momentum."""
    rules = [update.optimizer for update in program.updates]
    return 1 if any(isinstance(rule, Sgd) and rule.nesterov for rule in rules) else 2


def _reversed_updates(program: Program, _place: Place = FIRST) -> Program | None:
    return replace(program, updates=program.updates[::-1]) if len(program.updates) > 1 else None


def _moves_all(index: int) -> Change:
    """An update whose optimizer holds the parameters of every network."""

    def change(program: Program, _place: Place = FIRST) -> Program | None:
        if len(program.updates) < 2 or len(program.networks) < 2:  # noqa: PLR2004 - of players
            return None
        update = program.updates[index]
        calls = tuple(changes.call(site, moved=True) for site in update.calls)
        updates = list(program.updates)
        updates[index] = replace(update, calls=calls, over=tuple(program.networks))
        return replace(program, updates=tuple(updates))

    return change


def _rule(kind: type[Optimizer], change: Callable[[Optimizer], Mapping[str, object]]) -> Change:
    def of(rule: Optimizer) -> Optimizer | None:
        if not isinstance(rule, kind):
            return None
        values = change(rule)
        same = all(getattr(rule, name) == value for name, value in values.items())
        return None if same else rule.model_copy(update=dict(values))

    return changes.optimizers(of)


def _set(kind: type[Optimizer], **values: object) -> Change:
    return _rule(kind, lambda _rule: values)


def _momentum(rule: Optimizer) -> Mapping[str, object]:
    momentum = rule.momentum  # type: ignore[attr-defined]
    return {"momentum": round(1 - (1 - momentum) / 2, 6) if momentum else 0.0}


def _without_nesterov(rule: Optimizer) -> Mapping[str, object]:
    return {"nesterov": False} if rule.nesterov else {}  # type: ignore[attr-defined]


def _warmup(**values: Callable[[Schedule], object]) -> Change:
    def of(rule: Schedule) -> Schedule | None:
        if not rule.warmup:
            return None
        changed = {name: value(rule) for name, value in values.items()}
        same = all(getattr(rule, name) == value for name, value in changed.items())
        return None if same else rule.model_copy(update=changed)

    return changes.schedule(of)


def _cosine(change: Callable[[Cosine], Mapping[str, object]]) -> Change:
    return changes.schedule(
        lambda rule: rule.model_copy(update=dict(change(rule))) if isinstance(rule, Cosine) else None
    )


def _step(change: Callable[[Step], Mapping[str, object]]) -> Change:
    return changes.schedule(lambda rule: rule.model_copy(update=dict(change(rule))) if isinstance(rule, Step) else None)


def _adam(torch: Mapping[str, str], tensorflow: Plan, jax: Plan, bases: tuple[str, ...] = ("Adam", "AdamW")) -> Plans:
    """A line of Adam's rule. PyTorch's own is fused: it is written out first."""
    return {
        "torch": tuple(
            (
                Helper(written.changed(written.TORCH_ADAM, {"{base}": base, **torch})),
                Edit(f"torch.optim.{base}($$given)", "WrittenAdam($given)", everywhere=True),
            )
            for base in bases
        ),
        "tensorflow": (tensorflow,),
        "jax": (jax,),
    }


WARM_UP_FROM_ZERO = _warmup(warmup_start=lambda _rule: 0.0)
WARM_UP_DROPPED = _warmup(warmup=lambda _rule: 0)
WARM_UP_ONE_UPDATE_LONGER = _warmup(warmup=lambda rule: rule.warmup + 1)


WARM_UP_FROM_A_THIRD = _warmup(warmup_start=lambda _rule: round(1 / 3, 9))


ANOTHER_FINAL_RATE = _cosine(lambda rule: {"final": 0.0 if rule.final else 0.1})


A_SHORTER_DESCENT = _cosine(lambda rule: {"steps": max((rule.steps or 2) - 1, 1)})


A_LONGER_DESCENT = _cosine(lambda rule: {"steps": (rule.steps or 0) + (rule.warmup or 1)})


STAIRCASE_ONE_UPDATE_LONGER = _step(lambda rule: {"every": rule.every + 1})


MUTANTS = (
    Mutant(
        "gradients accumulated",
        "gradients that are never set back to zero",
        "backward",
        edits=alone(
            "torch",
            Edit("$optimizer.zero_grad()", "pass"),
            why="only PyTorch keeps gradients from one step to the next",
        ),
        shows_at=2,
        note="The first gradient is added to nothing.",
    ),
    Mutant(
        "epsilon inside the root",
        "Adam's epsilon added inside the square root instead of outside",
        "optimizer",
        edits=_adam(
            {"((v / c2).sqrt() + epsilon)": "(v / c2 + epsilon).sqrt()"},
            (
                Edit("self.epsilon * correction", "self.epsilon * correction**2"),
                Edit("(tf.sqrt(v) + epsilon)", "tf.sqrt(v + epsilon)"),
            ),
            (Edit("(jnp.sqrt(v) + eps * root)", "jnp.sqrt(v + eps * c2)"),),
        ),
        note="In float32 it needs gradients well below 1e-1: the probe of a smaller last batch has none so small.",
    ),
    Mutant(
        "epsilon before the bias correction",
        "Adam's epsilon added before the bias correction, as Keras does",
        "optimizer",
        edits=_adam(
            {"((v / c2).sqrt() + epsilon)": "((v.sqrt() + epsilon) / c2**0.5)"},
            (Edit("self.epsilon * correction", "self.epsilon"),),
            (Edit("eps * root", "eps"),),
        ),
        note="An epsilon of 1e-8 that counts 30 times: in float32 it needs gradients near 1e-4 to show.",
    ),
    Mutant(
        "bias correction missing",
        "Adam without its bias correction",
        "optimizer",
        edits=_adam(
            {"c1, c2 = 1 - b1**t, 1 - b2**t": "c1, c2 = 1.0, 1.0"},
            (
                Edit("tf.cast(learning_rate, tf.float64) / (1 - self.beta_1**t)", "tf.cast(learning_rate, tf.float64)"),
                Edit("tf.sqrt(1 - self.beta_2**t)", "tf.ones_like(t)"),
            ),
            (Edit("-jnp.expm1(t * math.log(b)) if b else 1.0", "1.0"),),
        ),
    ),
    Mutant(
        "bias correction one update late",
        "Adam's bias correction of the update before",
        "optimizer",
        edits=_adam(
            {'t = state["step"].item()': 't = max(state["step"].item() - 1, 1)'},
            (Edit("tf.cast(self.iterations + 1, tf.float64)", "tf.maximum(tf.cast(self.iterations, tf.float64), 1)"),),
            (Edit("-jnp.expm1(t * math.log(b))", "-jnp.expm1(jnp.maximum(t - 1, 1) * math.log(b))"),),
        ),
        shows_at=2,
        note="The first update has no update before it.",
    ),
    Mutant(
        "bias correction one update early",
        "Adam's bias correction of the update after",
        "optimizer",
        edits=_adam(
            {'t = state["step"].item()': 't = state["step"].item() + 1'},
            (Edit("tf.cast(self.iterations + 1, tf.float64)", "tf.cast(self.iterations + 2, tf.float64)"),),
            (Edit("-jnp.expm1(t * math.log(b))", "-jnp.expm1((t + 1) * math.log(b))"),),
        ),
    ),
    Mutant(
        "Adam's epsilon of Keras",
        "Keras' default of 1e-7 as Adam's epsilon",
        "optimizer",
        _set(Adam, epsilon=1e-7),
        note="In float32 it needs gradients below 1e-2 to show.",
    ),
    Mutant("Adam's epsilon of 1e-3", "an epsilon of 1e-3 in Adam", "optimizer", _set(Adam, epsilon=1e-3)),
    Mutant(
        "beta1 of 0.8",
        "a beta1 of 0.8 in Adam",
        "optimizer",
        _set(Adam, beta1=0.8),
        shows_at=2,
        note="The bias correction makes the first update the gradient itself, whatever beta1; the first moment shows it.",
    ),
    Mutant(
        "beta2 of 0.95",
        "a beta2 of 0.95 in Adam",
        "optimizer",
        _set(Adam, beta2=0.95),
        shows_at=2,
        note="The bias correction makes the first update the gradient's sign, whatever beta2; the second moment shows it.",
    ),
    Mutant(
        "coupled weight decay",
        "weight decay added to the gradient, where Adam's moments see it",
        "optimizer",
        edits={
            "torch": plans(Edit("torch.optim.AdamW(", "torch.optim.Adam(")),
            "tensorflow": plans(
                (
                    Edit(
                        "index = self._get_variable_index(variable)",
                        "index = self._get_variable_index(variable)\n"
                        "        if self._use_weight_decay(variable):\n"
                        "            gradient += tf.cast(self.weight_decay, variable.dtype) * variable",
                    ),
                    Edit(
                        "def update_step(",
                        "def _apply_weight_decay(self, variables: list) -> None:\n        pass\n\n    def update_step(",
                    ),
                    Needs("class AdamW("),
                )
            ),
            "jax": plans(
                Edit(
                    "scale_by_adam($$adam), optax.add_decayed_weights($$decay)",
                    "optax.add_decayed_weights($decay), scale_by_adam($adam)",
                )
            ),
        },
        where=lambda program: any(isinstance(u.optimizer, AdamW) for u in program.updates),
    ),
    Mutant(
        "decay without the learning rate",
        "weight decay that is not multiplied by the learning rate",
        "optimizer",
        edits=_adam(
            {'1 - rate * group["weight_decay"]': '1 - group["weight_decay"]'},
            (
                Edit(
                    "def update_step(",
                    "def _apply_weight_decay(self, variables: list) -> None:\n"
                    "        for variable in filter(self._use_weight_decay, variables):\n"
                    "            variable.assign_sub(variable * tf.cast(self.weight_decay, variable.dtype))\n\n"
                    "    def update_step(",
                ),
                Needs("class AdamW("),
            ),
            (
                Edit(
                    "optax.add_decayed_weights($$decay), optax.scale_by_learning_rate($$rate)",
                    "optax.scale_by_learning_rate($rate), optax.add_decayed_weights(-$decay)",
                ),
            ),
            bases=("AdamW",),
        ),
        shows_at=_at_once,
    ),
    Mutant(
        "decay on biases",
        "weight decay on biases",
        "optimizer",
        _rule(AdamW, lambda rule: {"no_decay": tuple(n for n in rule.no_decay if n != "bias")}),  # type: ignore[attr-defined]
        shows_at=_after_biases_move,
        note="Biases start at zero, where decay does nothing.",
    ),
    Mutant(
        "decay on scales",
        "weight decay on the scales of normalisations",
        "optimizer",
        _rule(AdamW, lambda rule: {"no_decay": tuple(n for n in rule.no_decay if n != "scale")}),  # type: ignore[attr-defined]
    ),
    Mutant("no weight decay", "weight decay left out", "optimizer", _set(AdamW, weight_decay=0.0)),
    Mutant(
        "ten times the weight decay",
        "weight decay with its decimal point one place off",
        "optimizer",
        _rule(AdamW, lambda rule: {"weight_decay": round(10 * rule.weight_decay, 9)}),  # type: ignore[attr-defined]
    ),
    Mutant(
        "learning rate one per cent off",
        "a learning rate one per cent too high",
        "optimizer",
        _rule(Optimizer, lambda rule: {"learning_rate": round(1.01 * rule.learning_rate, 12)}),
    ),
    Mutant(
        "schedule one update early",
        "the learning rate of the update after",
        "optimizer",
        edits={
            "torch": plans(Edit('group["lr"] = $rate(step)', 'group["lr"] = $rate(step + 1)')),
            "tensorflow": plans(Edit("tf.cast(step, tf.float64)", "tf.cast(step, tf.float64) + 1")),
            "jax": plans(
                Edit(
                    "optax.scale_by_learning_rate(learning_rate)",
                    "optax.scale_by_learning_rate(lambda step: learning_rate(step + 1))",
                ),
                Edit("optax.sgd(learning_rate, ", "optax.sgd(lambda step: learning_rate(step + 1), "),
            ),
        },
        where=scheduled,
        shows_at=_turns_next,
        note="A staircase shows it at the update before its first step down.",
    ),
    Mutant(
        "schedule one update late",
        "the learning rate of the update before",
        "optimizer",
        edits={
            "torch": plans(Edit('group["lr"] = $rate(step)', 'group["lr"] = $rate(max(step - 1, 0))')),
            "tensorflow": plans(Edit("tf.cast(step, tf.float64)", "tf.maximum(tf.cast(step, tf.float64) - 1, 0)")),
            "jax": plans(
                Edit(
                    "optax.scale_by_learning_rate(learning_rate)",
                    "optax.scale_by_learning_rate(lambda step: learning_rate(jnp.maximum(step - 1, 0)))",
                ),
                Edit("optax.sgd(learning_rate, ", "optax.sgd(lambda step: learning_rate(jnp.maximum(step - 1, 0)), "),
            ),
        },
        where=scheduled,
        shows_at=_turns,
        note="The first update has no update before it.",
    ),
    Mutant(
        "warm-up one update longer",
        "a warm-up that is one update longer",
        "optimizer",
        WARM_UP_ONE_UPDATE_LONGER,
        shows_at=_other_rate(WARM_UP_ONE_UPDATE_LONGER),
        note="The warm-up's first rate is the same.",
    ),
    Mutant(
        "warm-up from zero",
        "a warm-up that starts from a learning rate of 0",
        "optimizer",
        WARM_UP_FROM_ZERO,
        shows_at=_other_rate(WARM_UP_FROM_ZERO),
    ),
    Mutant(
        "warm-up from a third",
        "a warm-up from a third of the learning rate, as LinearLR has it by default",
        "optimizer",
        WARM_UP_FROM_A_THIRD,
        shows_at=_other_rate(WARM_UP_FROM_A_THIRD),
    ),
    Mutant(
        "warm-up dropped",
        "no warm-up",
        "optimizer",
        WARM_UP_DROPPED,
        shows_at=_other_rate(WARM_UP_DROPPED),
    ),
    Mutant(
        "another final rate",
        "a cosine descent to another final rate",
        "optimizer",
        ANOTHER_FINAL_RATE,
        shows_at=_other_rate(ANOTHER_FINAL_RATE),
        note="The descent starts from the same rate: in float32 it shows after some updates, behind a warm-up after that.",
    ),
    Mutant(
        "a longer descent",
        "a cosine descent that counts the warm-up too, or one update more",
        "optimizer",
        A_LONGER_DESCENT,
        shows_at=_other_rate(A_LONGER_DESCENT),
        note="The descent starts from the same rate: in float32 it shows after some updates, behind a warm-up after that.",
    ),
    Mutant(
        "a shorter descent",
        "a cosine descent that is at its end with the last update, one before it should be",
        "optimizer",
        A_SHORTER_DESCENT,
        shows_at=_other_rate(A_SHORTER_DESCENT),
        note="The descent starts from the same rate: in float32 it shows after some updates, behind a warm-up after that.",
    ),
    Mutant(
        "staircase one update longer",
        "a staircase whose steps are one update longer",
        "optimizer",
        STAIRCASE_ONE_UPDATE_LONGER,
        shows_at=_other_rate(STAIRCASE_ONE_UPDATE_LONGER),
        note="The first step down of the probe comes with its third update.",
    ),
    Mutant(
        "clipping dropped",
        "gradients that are not clipped",
        "optimizer",
        changes.clip(lambda _rule: None),
        note="Shows at steps whose gradient is above the limit: in digits_lstm from the nineteenth.",
    ),
    Mutant(
        "clipping at nine tenths",
        "gradients clipped at nine tenths of the limit",
        "optimizer",
        changes.clip(lambda rule: rule.model_copy(update={"limit": round(0.9 * rule.limit, 9)})),
        note="Shows at steps whose gradient is above nine tenths of the limit: in digits_lstm from about the nineteenth.",
    ),
    Mutant(
        "clipping value by value",
        "each value of a gradient clipped, not their common norm",
        "optimizer",
        changes.clip(
            lambda rule: (
                ClipValue(limit=0.05 * rule.limit) if isinstance(rule, GlobalNorm) else GlobalNorm(limit=rule.limit)
            )
        ),
        note="Where values are to be clipped, their common norm is clipped instead.",
    ),
    Mutant(
        "clipping tensor by tensor",
        "each gradient clipped by its own norm, not by that of all together",
        "optimizer",
        edits={
            "torch": plans(Edit("gradient.mul_(scale)", "gradient.mul_((limit / gradient.norm()).clamp(max=1.0))")),
            "tensorflow": plans(
                Edit(
                    "gradients, _ = tf.clip_by_global_norm(gradients, $limit)",
                    "gradients = [tf.clip_by_norm(g, $limit) for g in gradients]",
                )
            ),
            "jax": plans(
                Edit(
                    "optax.clip_by_global_norm($limit)",
                    "optax.stateless(lambda gradients, _: jax.tree.map(lambda g: g * jnp.minimum(1.0, $limit / jnp.linalg.norm(g.ravel())), gradients))",
                )
            ),
        },
        note="Shows at steps whose gradients together are above the limit: in digits_lstm from the nineteenth.",
    ),
    Mutant(
        "clipping with an epsilon",
        "1e-6 added to the norm that gradients are clipped by, as PyTorch's own function does",
        "optimizer",
        edits={
            "torch": plans(
                Edit(
                    "limit / nn.utils.get_total_norm(gradients)", "limit / (nn.utils.get_total_norm(gradients) + 1e-6)"
                )
            ),
            "tensorflow": plans(
                Edit(
                    "gradients, _ = tf.clip_by_global_norm(gradients, $limit)",
                    "norm = tf.linalg.global_norm(gradients)\n"
                    "    gradients = [g * tf.minimum($limit / (norm + 1e-6), 1) for g in gradients]",
                )
            ),
            "jax": plans(
                Edit(
                    "optax.clip_by_global_norm($limit)",
                    "optax.stateless(lambda gradients, _: jax.tree.map(lambda g: g * jnp.minimum(1.0, $limit / (optax.tree.norm(gradients) + 1e-6)), gradients))",
                )
            ),
        },
        note="A relative 1e-6 or less of the gradient, most of which Adam divides out again: below float32's rounding.",
        precisions=("float64",),
    ),
    Mutant(
        "rows of an embedding not summed",
        "the norm of an embedding's gradient taken before its repeated rows are summed",
        "optimizer",
        edits=alone(
            "tensorflow",
            Edit("gradients = [tf.convert_to_tensor(g) for g in gradients]", "pass"),
            why="only TensorFlow gives an embedding's gradient as rows",
        ),
        where=lambda program: has(Embedding)(program) and not has(Unembed)(program),
        note="Where an output shares the embedding, the rows are summed on the way.",
    ),
    Mutant(
        "momentum half as forgetful",
        "a momentum whose memory is twice as long",
        "optimizer",
        _rule(Sgd, _momentum),
        shows_at=_after_plain_momentum,
    ),
    Mutant(
        "velocity as a running mean",
        "a velocity that is a running mean, momentum · v + (1 - momentum) · g, as a dampened momentum is",
        "optimizer",
        edits={
            "torch": plans(
                (
                    Edit(
                        "optimizer.step()",
                        "for p in model.parameters():\n        p.grad.mul_(1 - <momentum>)\n    optimizer.step()",
                    ),
                    Needs("torch.optim.SGD($$parameters, momentum=<momentum>$$more)"),
                )
            ),
            "tensorflow": plans(
                Edit(
                    "self.momentum * velocity + gradient)", "self.momentum * velocity + (1 - self.momentum) * gradient)"
                )
            ),
            "jax": plans(
                Edit(
                    "optax.sgd($$rate, momentum=<momentum>$$more)",
                    "optax.chain(optax.scale(1 - <momentum>), optax.sgd($rate, momentum=<momentum>$more))",
                )
            ),
        },
    ),
    Mutant(
        "dampened momentum",
        "PyTorch's dampening, which spares the first update",
        "optimizer",
        edits=alone(
            "torch",
            Edit(
                "torch.optim.SGD($$parameters, momentum=<momentum>$$more)",
                "torch.optim.SGD($parameters, momentum=<momentum>, dampening=<momentum>$more)",
            ),
            why="only PyTorch has a dampening that spares the first update",
        ),
        where=lambda program: all(isinstance(u.optimizer, Sgd) and not u.optimizer.nesterov for u in program.updates),
        shows_at=2,
        note="The first velocity is the gradient.",
    ),
    Mutant("Nesterov left out", "plain momentum in place of Nesterov's", "optimizer", _rule(Sgd, _without_nesterov)),
    Mutant(
        "learning rate inside the momentum",
        "a velocity that holds the learning rate, so that a schedule acts late",
        "optimizer",
        edits={
            "torch": plans(
                (
                    Edit('group["lr"] = learning_rate(step)', 'group["lr"] = 1.0'),
                    Edit(
                        "optimizer.step()",
                        "for p in model.parameters():\n        p.grad.mul_(learning_rate(step))\n    optimizer.step()",
                    ),
                    Needs("torch.optim.SGD($$parameters, momentum=$m$$more)"),
                )
            ),
            # Not Keras' own rule, which has the fault and rounds the rate to float32 besides.
            "tensorflow": plans(
                (
                    Edit("velocity + gradient)", "velocity + tf.cast(learning_rate, variable.dtype) * gradient)"),
                    Edit(
                        "rate * (gradient + self.momentum * velocity)",
                        "rate * gradient + self.momentum * velocity",
                    ),
                ),
                (
                    Edit("velocity + gradient)", "velocity + tf.cast(learning_rate, variable.dtype) * gradient)"),
                    Edit("variable, tf.cast(learning_rate, variable.dtype) * velocity)", "variable, velocity)"),
                ),
            ),
            "jax": plans(
                Edit(
                    "optax.sgd($rate, momentum=$m, nesterov=True)",
                    "optax.chain(optax.scale_by_learning_rate($rate), optax.trace($m, nesterov=True))",
                ),
                Edit(
                    "optax.sgd($rate, momentum=$m)", "optax.chain(optax.scale_by_learning_rate($rate), optax.trace($m))"
                ),
            ),
        },
        where=scheduled,
        shows_at=_turns,
        note="While the learning rate stays the same, both rules do: in the parameters it shows once the rate has changed.",
    ),
    Mutant(
        "two biases learning",
        "a second bias that learns beside the first",
        "forward",
        edits=alone(
            "torch",
            (
                Edit("[p for p in model.parameters() if p.requires_grad]", "list(model.parameters())", once=True),
                Edit(
                    "table, state = PARAMETERS | STATISTICS, model.state_dict()",
                    "table, state = PARAMETERS | STATISTICS, model.state_dict()\n    model.<recurrent>.bias_hh_l0.requires_grad_()",
                ),
            ),
            why="only PyTorch's recurrent layers have two biases that are added",
        ),
        shows_at=2,
        note="It starts at zero and is no parameter of the spec: the layer's next output shows it.",
    ),
    Mutant("updates in the wrong order", "the second update made before the first", "optimizer", _reversed_updates),
    Mutant(
        "first update moves both networks",
        "a discriminator's update that moves the generator too, its images not detached",
        "optimizer",
        _moves_all(0),
    ),
    Mutant(
        "second update moves both networks",
        "a generator's update that moves the discriminator too",
        "optimizer",
        _moves_all(1),
    ),
)
