"""Spec -> Program: layers become nodes, calls become values, and everything that is left open is filled in."""

import keyword
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from harness import limits, names
from harness.data.datasets import Column, Text, to_array
from harness.errors import DataError, Problem, SpecError, warn
from harness.expressions import Call, Expression, Name, Number, walk
from harness.graph import BlockOp, CallSite, Graph, Node, Program, Ref, Term, Update
from harness.initializers import Values
from harness.losses import Loss, arguments
from harness.metrics import Metric
from harness.ops.base import Op, Shape, ShapeError, spell
from harness.ops.linear import Add, Embedding, Unembed
from harness.ops.normalisation import BatchNorm
from harness.optimizers import Cosine, Step
from harness.reserved import ATTRIBUTES
from harness.source import Source
from harness.spec import Block, Layer, Network, Prediction, Repeat, Residual, Spec

Path = tuple[str | int, ...]
SQUASHED = {"softmax_cross_entropy": "softmax", "sigmoid_cross_entropy": "sigmoid"}
"""What a loss of logits applies itself."""


def compile_spec(
    spec: Spec, text: Source, steps: int | None = None, seed: int | None = None,
    columns: dict[str, Column] | None = None,
) -> Program:  # fmt: skip
    """Resolve a spec. Raises SpecError with every problem that can be seen, or with what is wrong with the data.

    `columns` are the data's fields where they are known already: no data is read then.
    """
    return _Compiler(spec, text, steps or spec.training.steps, spec.seed if seed is None else seed, columns).program()


class _Compiler:
    def __init__(
        self, spec: Spec, text: Source, steps: int, seed: int, columns: dict[str, Column] | None = None
    ) -> None:
        self.spec, self.text, self.steps, self.seed = spec, text, steps, seed
        self.problems: list[Problem] = []
        try:
            self.columns = spec.data.columns() if columns is None else columns
            self.own_fields = set(spec.data.fields()) if spec.data.noise and columns is None else set()
        except DataError as error:
            raise SpecError(text.name, [text.problem(("data",), str(error))]) from None
        self.nodes = 0
        self.networks: dict[str, Graph] = {}
        self.signatures: dict[str, tuple[tuple[Shape, str], ...]] = {}

    def note(self, path: Path, message: str) -> None:
        self.problems.append(self.text.problem(path, message))

    def stop(self) -> None:
        if self.problems:
            raise SpecError(self.text.name, self.problems)

    def program(self) -> Program:
        for name in self.spec.networks:
            if name in self.columns:
                self.note(("networks", name), f"the name '{name}' is a field of the data too; choose another")
        for name in self.spec.data.noise:
            if name in self.own_fields:
                self.note(("data", "noise", name), f"the field '{name}' is the data set's own; choose another name")
        for name in self.columns:
            if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
                self.note(("data",), f"the field {name!r} needs a name of letters, digits and underscores")
            if name in names.FIELDS:
                self.note(("data",), f"a field cannot be called '{name}': batches use that name for something else")
        self.stop()
        self.sizes()
        self.stop()
        updates = [self.update(i) for i in range(len(self.spec.training.updates))]
        self.stop()
        self.evaluation()
        unused = [name for name in self.spec.networks if name not in self.networks]
        for name in unused:
            self.note(("networks", name), f"network '{name}' is called by no update")
        made_of: dict[str, str] = {}
        for name, count in Counter(update.name for update in updates if update).items():
            if count > 1:
                self.note(("training", "updates"), f"{count} updates are called '{name}'; give each a 'name'")
            for form in sorted(names.of_update(name)):
                if (other := made_of.setdefault(form, name)) != name:
                    message = f"'{other}' and '{name}' are both '{form}' in programs; choose another name for one"
                    self.note(("training", "updates"), message)
                    break
        self.stop()
        self.fits(
            sum(8 * limits.values(p.shape) for graph in self.networks.values() for p in graph.parameters.values()),
            "every parameter, in float64,", ("networks",),
        )  # fmt: skip
        self.stop()
        made = self.scopes([update for update in updates if update is not None])
        ordered = {name: self.networks[name] for name in self.spec.networks}
        ordered = _distinct_classes(ordered, {name for update in made for name in names.of_update(update.name)})
        return Program(self.spec.name, " ".join(self.spec.about.split()), self.seed, self.text.name, self.columns,
                       self.spec.data.batch, ordered, tuple(made), self.steps, self.spec)  # fmt: skip

    # Limits -----------------------------------------------------------------------------------------------

    def sizes(self) -> None:
        """Note what is too large before anything is made of it: networks written out, the order of batches, noise."""
        for name, network in self.spec.networks.items():
            count, deep = _written_out(network.layers)
            if count > limits.NODES:
                message = f"has {count:,} layers, repetitions written out; {limits.NODES:,} at most"
                self.note(("networks", name, "layers"), message)
            if deep > limits.NESTING:
                message = f"blocks, residuals and repetitions within one another, {deep} deep; {limits.NESTING} at most"
                self.note(("networks", name, "layers"), message)
        if self.steps > limits.STEPS:
            self.note(("training", "steps"), f"{self.steps:,} steps; {limits.STEPS:,} at most")
        data = self.spec.data
        what = f"the rows of {self.steps:,} batches of {data.batch:,}"
        self.fits(self.steps * data.batch * 4, what, ("data", "batch"))
        for name, noise in data.noise.items():
            if len(noise.shape) > limits.AXES:
                self.note(("data", "noise", name), f"{len(noise.shape)} axes; {limits.AXES} at most")
            what = f"'{name}' for {self.steps:,} batches of {data.batch:,}"
            self.fits(self.steps * data.batch * limits.values(noise.shape) * 8, what, ("data", "noise", name))

    def fits(self, size: int, what: str, path: Path, most: int | None = None) -> bool:
        """Whether so many bytes are within the budget; noted where they are not."""
        most = limits.memory() if most is None else most
        if size > most:
            have, want = limits.spell_bytes(size), limits.spell_bytes(most)
            self.note(path, f"{what} takes {have}; {want} at most ({limits.more()})")
        return size <= most

    # Values -----------------------------------------------------------------------------------------------

    def shape_of(
        self, expression: Expression, values: Mapping[str, Expression], path: Path
    ) -> tuple[Shape, str] | None:
        """Shape and dtype of a value; a network is compiled at its first call."""
        if isinstance(expression, Number):
            return (), "number"
        if isinstance(expression, Name):
            if expression.name in values:
                return self.shape_of(values[expression.name], values, path)
            if expression.name in self.columns:
                column = self.columns[expression.name]
                return column.shape, column.dtype
            known = ", ".join((*self.columns, *values))
            self.note(path, f"there is no field or value '{expression.name}' (known: {known})")
            return None
        if expression.network not in self.spec.networks:
            known = ", ".join(self.spec.networks)
            self.note(path, f"there is no network '{expression.network}' (known: {known})")
            return None
        inputs = [self.shape_of(argument, values, path) for argument in expression.arguments]
        if any(shape is None for shape in inputs):
            return None
        signature = tuple(shape for shape in inputs if shape is not None)
        name = expression.network
        formal = self.spec.networks[name].inputs
        if len(formal) != len(signature):
            self.note(path, f"network '{name}' takes {len(formal)} inputs ({', '.join(formal)}), got {len(signature)}")
            return None
        if name not in self.networks:
            graph = self.network(name, signature, expression, values)
            if graph is None:
                return None
            self.networks[name], self.signatures[name] = graph, signature
        elif self.signatures[name] != signature:
            had = ", ".join(spell(shape) for shape, _ in self.signatures[name])
            has = ", ".join(spell(shape) for shape, _ in signature)
            self.note(path, f"network '{name}' is called with inputs {had} and here with {has}; its weights fit one")
            return None
        elif not self.looked_up(expression, values, path):
            return None
        return self.networks[name].shape, "float"

    def looked_up(self, call: Call, values: Mapping[str, Expression], path: Path) -> bool:
        """Whether the ids of a network's later call are in its embeddings, which were made for those of the first one."""
        graph = self.networks[call.network]
        known = dict(zip(graph.inputs, call.arguments, strict=True))
        for variable, (embedding, vocabulary) in _vocabularies(graph).items():
            argument = _expand(known[variable], values)
            if isinstance(argument, Name) and argument.name in self.columns:
                have = self.columns[argument.name].classes or 0
                if have > vocabulary:
                    self.note(
                        path,
                        f"embedding '{embedding}' of network '{call.network}' has a vocabulary of {vocabulary}, '{argument.name}' has {have} ids: give it 'vocabulary: {have}'",
                    )
                    return False
        return True

    def network(
        self, name: str, signature: tuple[tuple[Shape, str], ...], call: Call, values: Mapping[str, Expression]
    ) -> Graph | None:
        spec = self.spec.networks[name]
        if any(dtype == "number" for _, dtype in signature):
            self.note(("networks", name), "a network's input is a field or a value, not a number")
            return None
        given = {f: _expand(arg, values) for f, arg in zip(spec.inputs, call.arguments, strict=True)}
        vocabularies = {
            formal: self.columns[arg.name].classes
            for formal, arg in given.items()
            if isinstance(arg, Name) and arg.name in self.columns
        }
        before = len(self.problems)
        path: Path = ("networks", name)
        builder = _Builder(self, spec, signature, vocabularies)
        builder.fields = {builder.called[f]: str(a) for f, a in given.items() if f in vocabularies}
        graph = builder.graph(spec, path, names.class_name(name))
        return graph if len(self.problems) == before else None

    # Updates ----------------------------------------------------------------------------------------------

    def update(self, index: int) -> Update | None:
        spec = self.spec.training.updates[index]
        path: Path = ("training", "updates", index)
        before = len(self.problems)
        values: dict[str, Expression] = {}
        parts = 0
        for name, expression in spec.values.items():
            if name in self.columns or name in self.spec.networks:
                self.note((*path, "values", name), f"'{name}' is a field or a network already; choose another name")
            if any(part == Name(name) for part in walk(expression)):
                self.note((*path, "values", name), f"'{name}' is made of itself: '{limits.clipped(str(expression))}'")
                return None
            count, deep = _size(expression, values)
            parts += count
            if self.too_many(parts, deep, (*path, "values", name)):
                return None
            if self.shape_of(expression, values, (*path, "values", name)) is None:
                return None
            values[name] = expression
        for i, term in enumerate(spec.loss):
            for role, expression in arguments(term).items():
                count, deep = _size(expression, values)
                parts += count
                if self.too_many(parts, deep, (*path, "loss", i, term.kind, role)):
                    return None
        touched = _networks((*values.values(), *(v for t in spec.loss for v in arguments(t).values())))
        over = spec.over or (tuple(self.spec.networks) if len(self.spec.networks) == 1 else ())
        if not over:
            self.note(
                path, f"several networks are declared: say 'over:' which ones this update moves ({', '.join(touched)})"
            )
        calls = _Calls(values, over)
        listed = isinstance(self.text.root.at((*path, "loss")).value, list)
        terms = [
            self.term(term, calls, values, (*path, "loss", i) if listed else (*path, "loss"))
            for i, term in enumerate(spec.loss)
        ]
        if len(self.problems) > before:
            return None
        for name in over:
            if name not in touched:
                self.note(
                    (*path, "over"), f"the loss does not depend on '{name}' (it depends on: {', '.join(touched)})"
                )
        for name in values:
            if name not in {
                n.name for t in spec.loss for v in arguments(t).values() for n in walk(v) if isinstance(n, Name)
            } | {n.name for v in values.values() for n in walk(v) if isinstance(n, Name)}:
                self.note((*path, "values", name), f"the value '{name}' is used by no term of the loss")
        if len(self.problems) > before:
            return None
        schedule = spec.schedule
        if isinstance(schedule, Cosine) and schedule.steps is None:
            schedule = schedule.model_copy(update={"steps": max(self.steps - schedule.warmup, 1)})
        if isinstance(schedule, Step) and (times := self.steps // schedule.every) and schedule.multiply_by != 1:
            size = times * math.log10(schedule.multiply_by) + math.log10(spec.optimizer.learning_rate or 1)
            if size > math.log10(limits.GREATEST):
                message = (
                    f"the learning rate is multiplied by {schedule.multiply_by:g} {times:,} times, to 1e{size:.0f}"
                )
                self.note((*path, "schedule"), f"{message}; {limits.GREATEST:g} at most")
                return None
        # What has nothing to learn is moved by nobody: an optimizer is not asked for it.
        learning = tuple(n for n in over if any(p.learned for p in self.networks[n].parameters.values()))
        if not learning:
            where = (*path, "over") if spec.over else path
            self.note(where, "there is nothing to learn: no parameter in " + ", ".join(f"'{n}'" for n in over))
            return None
        name = spec.name or "_".join(over)
        kept = tuple(term for term in terms if term is not None)
        return Update(name, tuple(calls.sites), kept, learning, spec.optimizer, schedule, spec.clip)

    def too_many(self, parts: int, deep: int, path: Path) -> bool:
        """Whether an update's expressions, named values written out, are too large; noted where they are."""
        if parts > limits.CALLS:
            self.note(path, f"expressions of more than {limits.CALLS:,} names and calls, named values written out")
        elif deep > limits.NESTING:
            self.note(
                path, f"calls within one another, named values written out, {deep} deep; {limits.NESTING} at most"
            )
        return parts > limits.CALLS or deep > limits.NESTING

    def term(self, loss: Loss, calls: "_Calls", values: Mapping[str, Expression], path: Path) -> Term | None:
        path = (*path, loss.kind)
        outputs_role, targets_role = loss.roles
        parts = arguments(loss)
        outputs = self.shape_of(parts[outputs_role], values, (*path, outputs_role))
        targets = self.shape_of(parts[targets_role], values, (*path, targets_role))
        if outputs is None or targets is None:
            return None
        if not _networks((parts[outputs_role],), values):
            self.note(
                (*path, outputs_role), f"'{parts[outputs_role]}' depends on no network: there is nothing to minimise"
            )
            return None
        try:
            loss.check(outputs[0], None if targets[1] == "number" else targets[0])
        except ShapeError as error:
            wanted = outputs[0][:-1] if loss.integer_targets else outputs[0]
            self.note(path, f"{error}{self.reshaping(parts[targets_role], wanted)}")
            return None
        if loss.integer_targets != (targets[1] == "int") and targets[1] != "number":
            have, want = targets[1], "int" if loss.integer_targets else "float"
            self.note(
                (*path, targets_role),
                f"{loss.kind} needs {targets_role} of type {want}, '{parts[targets_role]}' is {have}"
                f"{self.conversion(parts[targets_role], want)}",
            )
            return None
        target = parts[targets_role]
        self.squashed(loss, parts[outputs_role], values, (*path, outputs_role))
        self.classes(loss, outputs[0], target, (*path, targets_role))
        return Term(loss, calls.ref(parts[outputs_role], outputs_role), calls.ref(target, targets_role), outputs[0])

    def squashed(self, loss: Loss, outputs: Expression, values: Mapping[str, Expression], path: Path) -> None:
        """Warn where a network ends with the very function that its loss applies to logits."""
        last = SQUASHED.get(loss.kind)
        call = _expand(outputs, values)
        if last is None or not isinstance(call, Call) or call.network not in self.networks:
            return
        graph = self.networks[call.network]
        while (node := next((node for node in graph.nodes if node.name == graph.output), None)) is not None:
            if not isinstance(node.op, BlockOp):
                break
            graph = node.op.graph
        if node is not None and node.op.kind == last:
            message = f"'{call.network}' ends with '{last}', and {loss.kind} applies it once more: it takes logits; leave the layer out"
            warn(str(SpecError(self.text.name, [self.text.problem(path, message)])))

    def conversion(self, value: Expression | str, wanted: str) -> str:
        """How a field of the data becomes of another type, for the end of a message."""
        name = value.name if isinstance(value, Name) else value
        if name not in self.columns or name in self.spec.data.noise:
            return ""
        pixels = (
            f", or '{{{name}: pixels}}' for bytes as 0 to 1" if wanted == "float" and self.columns[name].shape else ""
        )
        return f"; under data, 'convert: {{{name}: {wanted}}}' makes it {wanted}{pixels}"

    def reshaping(self, value: Expression, wanted: Shape) -> str:
        """How a field of the data becomes of another shape, for the end of a message."""
        if not isinstance(value, Name) or value.name not in self.columns or value.name in self.spec.data.noise:
            return ""
        have = self.columns[value.name].shape
        if have == wanted or math.prod(have) != math.prod(wanted):
            return ""
        return f"; under data, 'convert: {{{value.name}: {{shape: {spell(wanted)}}}}}' gives '{value.name}' that shape"

    def classes(self, user: Loss | Metric, outputs: Shape, target: Expression, path: Path) -> None:
        if user.integer_targets and isinstance(target, Name) and target.name in self.columns:
            have = self.columns[target.name].classes or 0
            if have > outputs[-1]:
                self.note(path, f"'{target.name}' has {have} classes, the logits only {outputs[-1]}")

    def scopes(self, updates: list[Update]) -> list[Update]:
        """Name each call's masks: the network's name where it is called once, else update and value."""
        counts = Counter(site.network for update in updates for site in update.calls)
        return [
            replace(update, calls=tuple(
                replace(site, scope=site.network if counts[site.network] == 1 else f"{update.name}_{site.variable}")
                for site in update.calls))
            for update in updates
        ]  # fmt: skip

    # Evaluation -------------------------------------------------------------------------------------------

    def evaluation(self) -> None:
        spec = self.spec.evaluation
        for i, metric in enumerate(spec.metrics):
            path: Path = ("evaluation", "metrics", i, metric.kind)
            outputs_role, targets_role = metric.roles
            for role in metric.roles:
                for part in walk(getattr(metric, role)):
                    if isinstance(part, Name) and part.name in self.spec.data.noise:
                        self.note((*path, role), f"'{part.name}' is noise, which held-out examples do not have")
            if not isinstance(getattr(metric, targets_role), Name):
                self.note((*path, targets_role), "what is true is a field of the data")
            outputs = self.shape_of(getattr(metric, outputs_role), {}, (*path, outputs_role))
            targets = self.shape_of(getattr(metric, targets_role), {}, (*path, targets_role))
            if outputs and targets:
                try:
                    metric.check(outputs[0], targets[0])
                except ShapeError as error:
                    self.note(path, str(error))
                self.classes(metric, outputs[0], getattr(metric, targets_role), (*path, targets_role))
        for name, count in Counter(p.name for p in spec.predictions).items():
            if count > 1:
                self.note(("evaluation", "predictions"), f"{count} predictions are called '{name}'; give each a 'name'")
        for i, prediction in enumerate(spec.predictions):
            self.prediction(prediction, ("evaluation", "predictions", i))
        if spec.text:
            self.text_sample(("evaluation", "text"))
        if spec.images:
            shape = self.shape_of(spec.images.images, {}, ("evaluation", "images", "images"))
            if shape and not (len(shape[0]) == 3 and shape[0][2] in (1, 3)):  # noqa: PLR2004
                self.note(("evaluation", "images"), f"images are [height, width, 1 or 3], got {spell(shape[0])}")

    def prediction(self, prediction: Prediction, path: Path) -> None:
        self.shape_of(prediction.value, {}, (*path, "value"))
        needed = {e.name for e in walk(prediction.value) if isinstance(e, Name)}
        for name in needed - set(prediction.inputs):
            self.note(path, f"needs 'inputs: {{{name}: ...}}'")
        for name in set(prediction.inputs) - needed:
            self.note((*path, "inputs", name), f"'{prediction.value}' does not read '{name}'")
        counts: dict[str, int] = {}
        for name in sorted(needed & set(prediction.inputs) & set(self.columns)):
            try:
                array = to_array(name, prediction.inputs[name])
            except DataError as error:
                self.note((*path, "inputs", name), str(error))
                continue
            counts[name] = len(array)
            classes = self.columns[name].classes
            if (
                classes is not None
                and array.dtype.kind in "iu"
                and array.size
                and not 0 <= array.min() <= array.max() < classes
            ):
                self.note(
                    (*path, "inputs", name),
                    f"ids from {array.min()} to {array.max()}; those of '{name}' are 0 to {classes - 1}",
                )
            if array.shape[1:] != self.columns[name].shape:
                want = spell(self.columns[name].shape)
                self.note((*path, "inputs", name), f"a list of examples of shape {want}, got shape {list(array.shape)}")
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
            self.note((*path, "inputs"), f"every input needs as many examples as the others, got {said}")

    def text_sample(self, path: Path) -> None:
        sample, data = self.spec.evaluation.text, self.spec.data
        if sample is None:
            return
        if not isinstance(data, Text):
            self.note(path, f"needs a text data set, this one is '{data.dataset}'")
            return
        shape = self.shape_of(sample.logits, {}, (*path, "logits"))
        read = [e.name for e in walk(sample.logits) if isinstance(e, Name)]
        if read != ["tokens"] or (shape and shape[0] != (data.length, len(data.alphabet))):
            self.note((*path, "logits"), "logits of every character after 'tokens' are needed, like 'decoder(tokens)'")


class _Calls:
    """The calls of one update in order of evaluation, each expression once."""

    def __init__(self, values: Mapping[str, Expression], over: tuple[str, ...]) -> None:
        self.values, self.over = values, over
        self.sites: list[CallSite] = []
        self.known: dict[str, Ref] = {}
        self.moved: set[str] = set()

    def ref(self, expression: Expression, role: str) -> Ref:
        if isinstance(expression, Number):
            return Ref("number", number=expression.value)
        if isinstance(expression, Name):
            if expression.name in self.values:
                return self.ref(self.values[expression.name], expression.name)
            return Ref("field", expression.name)
        key = str(_expand(expression, self.values))
        if key not in self.known:
            inner = tuple(
                self.ref(a, f"{a.network}_output" if isinstance(a, Call) else role) for a in expression.arguments
            )
            variable = self.fresh(role)
            moved = expression.network in self.over or any(r.name in self.moved for r in inner if r.kind == "value")
            if moved:
                self.moved.add(variable)
            self.sites.append(CallSite(variable, expression.network, inner, "", moved))
            self.known[key] = Ref("value", variable)
        return self.known[key]

    def fresh(self, role: str) -> str:
        taken = {site.variable for site in self.sites}
        name, number = names.variable(role), 1
        while name in taken:
            number += 1
            name = names.variable(f"{role}{number}")
        return name


def _expand(expression: Expression, values: Mapping[str, Expression]) -> Expression:
    if isinstance(expression, Name) and expression.name in values:
        return _expand(values[expression.name], values)
    if isinstance(expression, Call):
        return Call(expression.network, tuple(_expand(a, values) for a in expression.arguments))
    return expression


def _size(expression: Expression, values: Mapping[str, Expression]) -> tuple[int, int]:
    """How many names, numbers and calls an expression has once named values are written out, and how many calls deep it is.

    Stops counting soon after there are too many.
    """
    if isinstance(expression, Name) and expression.name in values:
        return _size(values[expression.name], values)
    if not isinstance(expression, Call):
        return 1, 0
    count, deep = 1, 0
    for argument in expression.arguments:
        more, below = _size(argument, values)
        count, deep = count + more, max(deep, below)
        if count > limits.CALLS:
            break
    return count, deep + 1


def _written_out(layers: tuple[Layer, ...]) -> tuple[int, int]:
    """How many layers there are once repetitions are written out, and how many containers are within one another."""
    count, deep = 0, 0
    for layer in layers:
        op = layer.op
        if not isinstance(op, (Residual, Repeat, Block)):
            count += 1
            continue
        inner, below = _written_out((*op.layers, *op.shortcut) if isinstance(op, Residual) else op.layers)
        count += inner * op.times if isinstance(op, Repeat) else inner + isinstance(op, Residual)
        deep = max(deep, below + 1)
    return count, deep


def _networks(expressions: tuple[Expression, ...], values: Mapping[str, Expression] | None = None) -> tuple[str, ...]:
    found = (part.network for e in expressions for part in walk(_expand(e, values or {})) if isinstance(part, Call))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class _Scope:
    """What a layer may read: shape and dtype by name."""

    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    vocabularies: dict[str, int | None]


class _Builder:
    """The layers of one network or block -> nodes."""

    def __init__(
        self, compiler: _Compiler, network: Network | Block, signature: tuple[tuple[Shape, str], ...],
        vocabularies: Mapping[str, int | None],
    ) -> None:  # fmt: skip
        self.compiler = compiler
        given = network.inputs if isinstance(network, Network) else ("x",)
        inputs: tuple[str, ...] = ()
        for name in given:
            inputs = (*inputs, names.variable(name, inputs))
        self.inputs = inputs
        self.called = dict(zip(given, inputs, strict=True))
        """What each layer and input of the spec is called in programs."""
        self.signature = signature
        self.scope = _Scope(
            dict(zip(inputs, (shape for shape, _ in signature), strict=True)),
            dict(zip(inputs, (dtype for _, dtype in signature), strict=True)),
            {self.called[name]: size for name, size in vocabularies.items()},
        )
        self.fields: dict[str, str] = {}
        """The field of the data that is an input, where one is."""
        self.nodes: list[Node] = []
        self.counts: Counter[str] = Counter()
        self.failed = False

    def graph(self, network: Network | Block, path: Path, class_name: str) -> Graph | None:
        self.reserve(network.layers, (*path, "layers"))
        output = self.sequence(network.layers, self.inputs[0], (*path, "layers"))
        if isinstance(network, Network) and network.output is not None:
            output = self.called.get(network.output, network.output)
            if output not in self.scope.shapes:
                self.fail((*path, "output"), f"there is no layer '{output}' (known: {', '.join(self.scope.shapes)})")
        if self.failed:
            return None
        used = _reachable(self.nodes, output)
        for node in self.nodes:
            if node.name not in used:
                self.fail(path, f"the value of layer '{node.name}' is read by nothing")
        for name in self.inputs:
            if name not in used:
                self.fail(path, f"the input '{name}' is read by no layer")
        if self.failed:
            return None
        shapes, dtypes = zip(*self.signature, strict=True)
        return Graph(class_name, self.inputs, shapes, dtypes, tuple(self.nodes), output)

    def fail(self, path: Path, message: str) -> None:
        self.failed = True
        self.compiler.note(path, message)

    def reserve(self, layers: tuple[Layer, ...], path: Path) -> None:
        """Explicit names first, so that an automatic one never takes theirs."""
        self.explicit: set[str] = {layer.name for layer in _flat(layers) if layer.name}
        given = set(self.called)
        for name in sorted(self.explicit):
            self.alias(name)
        for i, layer in enumerate(layers):
            for name in set(layer.inputs or ()) - given:
                later = {item.name for item in layers[i:] if item.name}
                if name in later and name not in {item.name for item in layers[:i]}:
                    self.fail((*path, i), f"reads '{name}', which comes later: a cycle, or layers out of order")

    def alias(self, name: str) -> str:
        """What a layer of this name is called in programs."""
        others = (self.explicit | set(self.called.values())) - {name}
        return self.called.setdefault(name, names.attribute(name, others))

    def sequence(self, layers: tuple[Layer, ...], x: str, path: Path) -> str:
        for i, layer in enumerate(layers):
            if self.failed:
                break
            x = self.layer(layer, x, (*path, i))
        return x

    def layer(self, layer: Layer, x: str, path: Path) -> str:
        op = layer.op
        inner = (*path, op.kind)
        read = tuple(self.called.get(name, name) for name in layer.inputs or ())
        unknown = [name for name in read if name not in self.scope.shapes]
        if unknown:
            known = ", ".join(self.scope.shapes)
            self.fail((*inner, "inputs"), f"there is no layer or input '{unknown[0]}' before this one (known: {known})")
            return x
        inputs = read or (x,)
        if isinstance(op, (Residual, Repeat, Block)):
            if len(inputs) != 1:
                self.fail((*inner, "inputs"), f"'{op.kind}' takes one input, got {len(inputs)}")
                return x
            return self.container(op, layer.name, inputs[0], inner)
        assert isinstance(op, Op)  # noqa: S101 - the only other kind of layer
        return self.node(op, layer.name, inputs, inner)

    def container(self, op: Residual | Repeat | Block, name: str | None, x: str, path: Path) -> str:
        if isinstance(op, Residual):
            y = self.sequence(op.layers, x, (*path, "layers"))
            around = self.sequence(op.shortcut, x, (*path, "shortcut"))
            return y if self.failed else self.node(Add(), name, (around, y), path)
        if isinstance(op, Repeat):
            single = len(op.layers) == 1 and isinstance(op.layers[0].op, Block)
            for _ in range(op.times):
                if self.failed:
                    break
                if single:
                    x = self.layer(op.layers[0], x, (*path, "layers", 0))
                else:
                    x = self.container(Block(layers=op.layers, class_name=name or "block"), None, x, path)
            return x
        vocabularies = {"x": self.scope.vocabularies.get(x)}
        builder = _Builder(self.compiler, op, ((self.scope.shapes[x], self.scope.dtypes[x]),), vocabularies)
        graph = builder.graph(op, path, names.class_name(op.class_name))
        if graph is None:
            self.failed = True
            return x
        return self.node(BlockOp(graph=graph), name, (x,), path, stem=op.class_name)

    def node(self, op: Op, name: str | None, inputs: tuple[str, ...], path: Path, stem: str | None = None) -> str:
        name = self.name(name, stem or op.label or op.kind, path)
        least, most = op.arity
        if len(inputs) < least or (most is not None and len(inputs) > most):
            many = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            self.fail(path, f"needs {many} inputs, got {len(inputs)}: say 'inputs: [...]'")
            return name
        for source in inputs:
            if not isinstance(op, BlockOp) and self.scope.dtypes[source] != op.dtype:
                hint = self.compiler.conversion(self.fields[source], op.dtype) if source in self.fields else ""
                self.fail(path, f"needs {op.dtype} values, '{source}' is {self.scope.dtypes[source]}{hint}")
                return name
        shapes = tuple(self.scope.shapes[source] for source in inputs)
        op = self.linked(op, inputs, path)
        if self.failed:
            return name
        try:
            op = op.resolve(*shapes)
            shape = op.output(*shapes)
            for parameter in op.parameters(*shapes):
                if isinstance(parameter.init, Values):
                    parameter.init.check(parameter.shape)
        except ValueError as error:  # a ShapeError, or given values that do not fit
            self.fail(path, str(error))
            return name
        if not self.affordable(op, shapes, shape, path):
            return name
        self.nodes.append(Node(name, op, inputs, shapes, shape))
        self.scope.shapes[name], self.scope.dtypes[name] = shape, "float"
        return name

    def affordable(self, op: Op, shapes: tuple[Shape, ...], shape: Shape, path: Path) -> bool:
        """Whether there is room for a layer's parameters and its value for one batch; noted where there is not."""
        if isinstance(op, BlockOp):
            return True  # its own layers were looked at
        compiler, batch = self.compiler, self.compiler.spec.data.batch
        compiler.nodes += 1
        if compiler.nodes > limits.NODES:
            self.fail(path, f"more than {limits.NODES:,} layers in all networks together")
        if len(shape) > limits.AXES:
            self.fail(path, f"a value of {len(shape)} axes; {limits.AXES} at most")
        what = f"a layer's value, {spell(shape)} for a batch of {batch:,},"
        held = max(limits.values(shape), op.values(*shapes))
        fits = compiler.fits(8 * batch * held, what, path)
        size = sum(8 * limits.values(parameter.shape) for parameter in op.parameters(*shapes))
        fits = compiler.fits(size, "its parameters, in float64,", path) and fits
        self.failed = self.failed or not fits
        return not self.failed

    def linked(self, op: Op, inputs: tuple[str, ...], path: Path) -> Op:
        """Embedding and unembed take their vocabulary from the data or from one another."""
        if isinstance(op, Embedding):
            have = self.scope.vocabularies.get(inputs[0])
            if op.vocabulary is None:
                return op.model_copy(update={"vocabulary": have})
            if have is not None and op.vocabulary < have:
                self.fail(path, f"a vocabulary of {op.vocabulary} is too small: '{inputs[0]}' has {have} ids")
        if (
            isinstance(op, BatchNorm)
            and math.prod(self.scope.shapes[inputs[0]][:-1]) * self.compiler.spec.data.batch == 1
        ):
            self.fail(path, "a batch of 1 has one value a channel: its variance is 0; use a larger batch")
        if isinstance(op, Unembed):
            op = op.model_copy(update={"embedding": self.called.get(op.embedding, op.embedding)})
            table = next((n for n in self.nodes if n.name == op.embedding), None)
            if table is None or not isinstance(table.op, Embedding):
                known = ", ".join(n.name for n in self.nodes if isinstance(n.op, Embedding)) or "none"
                self.fail(path, f"there is no embedding layer '{op.embedding}' before this one (known: {known})")
                return op
            features = self.scope.shapes[inputs[0]][-1:]
            if features != (table.op.features,):
                self.fail(
                    path,
                    f"needs {table.op.features} features on the last axis, got {spell(self.scope.shapes[inputs[0]])}",
                )
            return op.model_copy(update={"vocabulary": table.op.vocabulary})
        return op

    def name(self, name: str | None, stem: str, path: Path) -> str:
        if name is not None:
            if (alias := self.alias(name)) in self.scope.shapes:
                self.fail((*path, "name"), f"the name '{name}' is taken already")
            return alias
        while True:
            self.counts[stem] += 1
            name = f"{stem}{self.counts[stem]}"
            # A block called `conv` with a 1 after it may be what a framework calls something else.
            if name not in {*self.explicit, *self.called.values(), *self.scope.shapes, *ATTRIBUTES}:
                return name


def _flat(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    for layer in layers:
        yield layer
        if isinstance(layer.op, Residual):
            yield from _flat((*layer.op.layers, *layer.op.shortcut))


def _reachable(nodes: list[Node], output: str) -> set[str]:
    used = {output}
    for node in reversed(nodes):
        if node.name in used:
            used.update(node.inputs)
            if isinstance(node.op, Unembed):
                used.add(node.op.embedding)
    return used


def _vocabularies(graph: Graph) -> dict[str, tuple[str, int]]:
    """By input, the embedding with the smallest vocabulary that looks its ids up, in blocks too, and that vocabulary."""
    found: dict[str, tuple[str, int]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Embedding):
            own = {node.inputs[0]: (node.name, node.op.vocabulary or 0)}
        elif isinstance(node.op, BlockOp):
            inner = _vocabularies(node.op.graph)
            own = {i: inner[v] for v, i in zip(node.op.graph.inputs, node.inputs, strict=True) if v in inner}
        else:
            own = {}
        for name, (embedding, size) in own.items():
            if name in graph.inputs and (name not in found or size < found[name][1]):
                found[name] = (embedding, size)
    return found


def _distinct_classes(networks: dict[str, Graph], others: Collection[str]) -> dict[str, Graph]:
    """Class names such that equal graphs share one and different graphs do not; none is among the `others`."""
    taken: dict[str, Graph] = {}

    def rename(graph: Graph) -> Graph:
        nodes = tuple(
            replace(node, op=BlockOp(graph=rename(node.op.graph))) if isinstance(node.op, BlockOp) else node
            for node in graph.nodes
        )
        graph = replace(graph, nodes=nodes)
        stem, number = graph.class_name, 1
        while True:
            name = stem if number == 1 else f"{stem}{number}"
            candidate = replace(graph, class_name=name)
            if name not in others and taken.setdefault(name, candidate) == candidate:
                return candidate
            number += 1

    return {name: rename(graph) for name, graph in networks.items()}
