"""Other ways of running the same steps in PyTorch: whole steps compiled as one function. Imports no framework."""

import re

from backends.torch import training
from harness import emit as shared
from harness.emit import indented
from harness.graph import Program, Update
from harness.lanes import GRAPHS
from harness.optimizers import Adam, AdamW, ClipValue, Cosine, Sgd, Step

COMPILED = ("whole", "unrolled")
"""The strategies that compile the optimizer with the rest."""
AUTOTUNED, FLASH = "autotuned", "flash"
"""Those of harness.lanes.GRAPHS that differ from `graph`: in cuDNN's kernels, in attention."""
NATIVE = ("eager", "native", "late_relu")
"""Those with PyTorch's own batch normalisation, which is less exact on CPUs."""
UNROLLED = 100
"""Steps times parameters in one compiled function of `unrolled`: more steps take longer to compile than they save."""
IMPORTS = """
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
"""


def unrolled(program: Program) -> int:
    """Steps in one compiled function, among which the 6 µs of a call are shared.

    Compiling 50 steps took 21 s with 2 parameters (5 steps: 7 s), and 58 s with 4, where 25 steps were as fast a step.
    """
    return max(10, UNROLLED // len(program.parameters))


def rule_name(update: Update) -> str:
    """The helper that applies an update's optimizer."""
    if isinstance(update.optimizer, Sgd):
        return "momentum_sgd" if update.optimizer.momentum else "sgd"
    return "adamw" if isinstance(update.optimizer, AdamW) else "adam"


def numbers(program: Program, update: Update, rate: str) -> dict[str, str]:
    """What of an update changes from step to step: its name in `train_step`, and its value at a `step`."""
    prefix = "" if len(program.updates) == 1 else f"{update.name}_"
    rule = update.optimizer
    if isinstance(rule, Sgd):
        return {f"{prefix}rate": f"{rate}(step)"} if varies(update) else {}
    assert isinstance(rule, Adam)
    found = {
        f"{prefix}rate": f"{rate}(step) / (1 - {rule.beta1!r} ** (step + 1))",
        f"{prefix}root": f"math.sqrt(1 - {rule.beta2!r} ** (step + 1))",
    }
    if isinstance(rule, AdamW):
        found[f"{prefix}kept"] = f"1 - {rate}(step) * {rule.weight_decay!r}"
    return found


def step(
    program: Program, losses: dict[str, str], rates: dict[str, str], strategy: str, dtype: str
) -> tuple[str, list[str]]:
    """The training step and what compiles it, and the helpers they use. By update: its loss and learning rate functions."""
    cls, single = shared.container(program), len(program.updates) == 1
    name, kind = _optimizers(program)
    helpers = [
        "gradients_of",
        *(["pointwise", "compiled_tiny"] if strategy == "unrolled" else ["decompositions", "compiled"]),
    ]
    helpers += ["remember"] if remembered(program) else []
    varying: dict[str, str] = {}
    body: list[str] = [] if single else ["losses = []"]
    for update in program.updates:
        own = "optimizer" if single else f'optimizers["{update.name}"]'
        changing = numbers(program, update, rates[update.name])
        varying |= changing
        helpers.append(rule_name(update))
        clipping = []
        if isinstance(update.clip, ClipValue):
            limit = update.clip.limit
            clipping = [f"gradients = {{p: g.clamp({-limit!r}, {limit!r}) for p, g in gradients.items()}}"]
        elif update.clip:
            helpers.append("scaled_to_norm")
            clipping = [f"gradients = scaled_to_norm(gradients, {update.clip.limit!r})"]
        given = ", ".join(changing) or f"{rates[update.name]}(0)"
        body += [
            f"loss = {losses[update.name]}(model, batch)",
            f"gradients = gradients_of(loss, {own})",
            *clipping,
            f"{rule_name(update)}({own}, gradients, {given})",
            *([] if single else ["losses.append(loss.detach())"]),
        ]
    body.append("return loss.detach()" if single else "return torch.stack(losses)")
    if varying:
        body.insert(0, f"{', '.join(varying)}{',' if len(varying) == 1 else ''} = numbers.unbind()")
    parts = [
        f'''
def step_numbers(step: int) -> list[float]:
    """What changes from step to step."""
    return [{", ".join(varying.values())}]
'''
        if varying
        else "",
        f'''
def train_step(model: {cls}, {name}: {kind}, {"numbers: Tensor, " if varying else ""}batch: dict) -> Tensor:
    """{"One update; returns the loss before it." if single else "One update after another; returns the losses before each."}"""
{indented(body, 4)}
''',
        compile_step(program, dtype, varying=bool(varying)) if strategy == "whole" else compile_steps(program, dtype, varying=bool(varying)),
    ]  # fmt: skip
    return "\n\n".join(parts), helpers


def _optimizers(program: Program) -> tuple[str, str]:
    """The argument that has the optimizer, or one for each update, and its type."""
    if len(program.updates) == 1:
        return "optimizer", "torch.optim.Optimizer"
    return "optimizers", "dict[str, torch.optim.Optimizer]"


def remembered(program: Program) -> list[str]:
    """Lines that make what the optimizers keep."""
    single, lines = len(program.updates) == 1, []
    for update in program.updates:
        own = "optimizer" if single else f'optimizers["{update.name}"]'
        if isinstance(update.optimizer, Adam):
            lines.append(f'remember({own}, "exp_avg", "exp_avg_sq", count="step")')
        elif isinstance(update.optimizer, Sgd) and update.optimizer.momentum:
            lines.append(f'remember({own}, "momentum_buffer")')
    return lines


def held(program: Program) -> list[str]:
    """Lines that list every tensor which steps read and change."""
    states = "optimizer.state.values()" if len(program.updates) == 1 else "o.state.values()"
    through = "" if len(program.updates) == 1 else "for o in optimizers.values() "
    return [
        "held = [",
        "    *model.parameters(),",
        "    *model.buffers(),",
        *([f"    *(value {through}for state in {states} for value in state.values()),"] if remembered(program) else []),
        "]",
    ]


def compile_step(program: Program, dtype: str, *, varying: bool) -> str:
    """The function that compiles a training step."""
    cls, single = shared.container(program), len(program.updates) == 1
    name, kind = _optimizers(program)
    result, losses = ("Tensor", "loss") if single else ("dict[str, Tensor]", "losses")
    given = "numbers, " if varying else ""
    lines = [
        *remembered(program),
        *([f"numbers = torch.zeros(len(step_numbers(0)), dtype=torch.{dtype}, device=DEVICE)"] if varying else []),
        *held(program),
        "",
        "def one_step() -> Tensor:",
        f"    return train_step(model, {name}, {given}batch)",
        "",
        f"call = compiled(one_step, [{given}*leaves(batch), *held])",
        "held = [tensor.detach() for tensor in held]",
        "",
        f"def step_fn(step: int, batch: dict) -> {result}:",
        *([f"    numbers = torch.tensor(step_numbers(step), dtype=torch.{dtype}, device=DEVICE)"] if varying else []),
        f"    ({losses},) = call([{given}*leaves(batch), *held])",
        f"    return {losses if single else 'dict(zip(optimizers, losses, strict=True))'}",
        "",
        "return step_fn",
    ]
    return f'''{leaves_function(program)}

def compile_step(model: {cls}, {name}: {kind}, batch: dict) -> Callable[[int, dict], {result}]:
    """`train_step`, optimizer included, as one compiled function of a step and its batch."""
{indented(lines, 4)}
'''


def compile_steps(program: Program, dtype: str, *, varying: bool) -> str:
    """The functions that stack batches and compile as many training steps."""
    cls = shared.container(program)
    name, kind = _optimizers(program)
    given = "numbers, " if varying else ""
    lines = [
        *remembered(program),
        "count = len(leaves(stacked)[0])",
        *(
            [f"numbers = torch.zeros(count, len(step_numbers(0)), dtype=torch.{dtype}, device=DEVICE)"]
            if varying
            else []
        ),
        *held(program),
        "",
        "def steps() -> Tensor:",
        f"    losses = [train_step(model, {name}, {'numbers[i], ' if varying else ''}row(stacked, i)) for i in range(count)]",
        "    return torch.stack(losses)",
        "",
        f"call = compiled(steps, [{given}*leaves(stacked), *held])",
        "held = [tensor.detach() for tensor in held]",
        "",
        "def steps_fn(first: int, stacked: dict) -> Tensor:",
        *(
            [
                "    numbers = [step_numbers(first + i) for i in range(count)]",
                f"    numbers = torch.tensor(numbers, dtype=torch.{dtype}, device=DEVICE)",
            ]
            if varying
            else []
        ),
        f"    (losses,) = call([{given}*leaves(stacked), *held])",
        "    return losses",
        "",
        "return steps_fn",
    ]
    return f'''{leaves_function(program)}

UNROLLED = {unrolled(program)}  # steps of one compiled function


def stack(batches: list[dict]) -> dict:
    """Batches as one, whose tensors have an axis for them in front."""
    found = {{}}
    for name, value in batches[0].items():
        join = stack if isinstance(value, dict) else torch.stack
        found[name] = join([batch[name] for batch in batches])
    return found


def row(stacked: dict, i: int) -> dict:
    """One batch of a stack."""
    return {{
        name: row(value, i) if isinstance(value, dict) else value[i] for name, value in stacked.items()
    }}


def compile_steps(model: {cls}, {name}: {kind}, stacked: dict) -> Callable[[int, dict], Tensor]:
    """As many steps as a stack has batches as one compiled function.

    Of the first step's number and such a stack; it returns all losses.
    """
{indented(lines, 4)}
'''


def leaves_function(program: Program) -> str:
    """The function that lists a batch's tensors."""
    return f'''
def leaves(batch: dict) -> list[Tensor]:
    """Every tensor of a batch, always in the same order."""
    return [
{indented([f"{leaf}," for leaf in leaves(program)])}
    ]

'''


def leaves(program: Program) -> list[str]:
    """The tensors of a batch, as expressions."""
    found = [f'batch["{name}"]' for name in program.fields]
    for call, masks in program.masks.items():
        for path in masks:
            steps = "".join(f'["{step}"]' for step in path.split("."))
            found.append(f'batch["masks"]["{call}"]{steps}')
    return found


def varies(update: Update) -> bool:
    """Whether the learning rate changes from step to step."""
    return bool(update.schedule.warmup or isinstance(update.schedule, (Cosine, Step)))


def on_device(program: Program, made: str, rates: dict[str, str]) -> str:
    """The functions that make optimizers, for ones whose steps a CUDA graph holds: all that changes lies on the device."""
    for update in program.updates:
        if varies(update):
            rate = f"{rates[update.name]}(0)"
            # The fused kernels read a rate that is a tensor as float32, whatever the parameters are.
            made = made.replace(f"lr={rate}", f"lr=torch.tensor({rate}, dtype=torch.float32, device=DEVICE)")
    # SGD counts nothing, so it has no such argument.
    return re.sub(r"(optim\.AdamW?\(.*, fused=True)", r"\1, capturable=True", made)


def capture_step(
    program: Program, losses: dict[str, str], rates: dict[str, str], *, timed: bool
) -> tuple[str, list[str]]:
    """The training step, the function that captures it, and the helpers they use; `timed`: of kernels that cuDNN has timed."""
    cls, single = shared.container(program), len(program.updates) == 1
    name, kind = _optimizers(program)
    result = "Tensor" if single else "dict[str, Tensor]"
    helpers = ["remember"] if remembered(program) else []
    body: list[str] = [] if single else ["losses = {}"]
    rating: list[str] = []
    for update in program.updates:
        own = "optimizer" if single else f'optimizers["{update.name}"]'
        given, used = training.clip(update, training.moved(program, update) + ".parameters()")
        helpers += used
        body += [
            f"{own}.zero_grad()",
            f"loss = {losses[update.name]}(model, batch)",
            "loss.backward()",
            *given,
            f"{own}.step()",
            *([] if single else [f'losses["{update.name}"] = loss.detach()']),
        ]
        if varies(update):
            rating += [
                f"    for group in {own}.param_groups:",
                f'        group["lr"].fill_({rates[update.name]}(step))',
            ]
    found = "loss" if single else "losses"
    lines = [
        *remembered(program),
        *held(program),
        "before = [tensor.detach().clone() for tensor in held]",
        "batch = copy.deepcopy(batch)",
        *(
            [
                "# cuDNN times its kernels for each convolution, and the graph holds the fastest.",
                "torch.backends.cudnn.benchmark = True",
            ]
            if timed
            else []
        ),
        "stream = torch.cuda.Stream()",
        "stream.wait_stream(torch.cuda.current_stream())",
        "with torch.cuda.stream(stream):",
        "    # What first steps compile, choose and allocate cannot be captured.",
        "    for _ in range(3):",
        f"        train_step(model, {name}, batch)",
        "torch.cuda.current_stream().wait_stream(stream)",
        "graph = torch.cuda.CUDAGraph()",
        "with torch.cuda.graph(graph):",
        f"    {found} = train_step(model, {name}, batch)",
        *(["torch.backends.cudnn.benchmark = False"] if timed else []),
        "with torch.no_grad():",
        "    for tensor, value in zip(held, before, strict=True):",
        "        tensor.copy_(value)",
        "",
        f"def step_fn(step: int, given: dict) -> {result}:",
        "    for tensor, value in zip(leaves(batch), leaves(given), strict=True):",
        "        tensor.copy_(value)",
        *rating,
        "    graph.replay()",
        f"    return {'loss.clone()' if single else '{name: loss.clone() for name, loss in losses.items()}'}",
        "",
        "return step_fn",
    ]
    return (
        f'''
def train_step(model: {cls}, {name}: {kind}, batch: dict) -> {result}:
    """{"One update; returns the loss before it." if single else "One update after another; returns the loss before each."}"""
{indented(body, 4)}
    return {"loss.detach()" if single else "losses"}


{leaves_function(program)}

def capture_step(model: {cls}, {name}: {kind}, batch: dict) -> Callable[[int, dict], {result}]:
    """`train_step` as a CUDA graph: all its kernels by one launch, on tensors that stay where they are."""
{indented(lines, 4)}
''',
        helpers,
    )


def running(program: Program, strategy: str) -> list[str]:
    """The loop of `main`."""
    single = len(program.updates) == 1
    name, losses = ("optimizer", "loss") if single else ("optimizers", "losses")
    if strategy == "unrolled":
        show = "loss" if single else "*losses"
        return [
            'count = len(inputs["order"])',
            "calls = {}  # by how many steps they take",
            "for first in range(0, count, UNROLLED):",
            "    batches = stack([load_batch(inputs, i) for i in range(first, min(first + UNROLLED, count))])",
            "    size = len(leaves(batches)[0])",
            "    if size not in calls:",
            f"        calls[size] = compile_steps(model, {name}, batches)",
            f"    for step, {losses} in enumerate(calls[size](first, batches).tolist(), first + 1):",
            f"        print(step, {show})",
        ]
    show = "loss.item()" if single else "*(loss.item() for loss in losses.values())"
    return [
        f"step_fn = {'capture' if strategy in GRAPHS else 'compile'}_step(model, {name}, load_batch(inputs, 0))",
        'for step in range(len(inputs["order"])):',
        f"    {losses} = step_fn(step, load_batch(inputs, step))",
        f"    print(step + 1, {show})",
    ]


# Products of a number and a tensor, never `add_(x, alpha=number)`: Inductor 2.13 loses an alpha where it fuses a matrix
# product into the addition, and trains something else.
HELPERS = {
    "gradients_of": '''
def gradients_of(loss: Tensor, optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """By parameter that the optimizer moves and that the loss reaches, the gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}
''',
    "scaled_to_norm": '''
def scaled_to_norm(gradients: dict[Tensor, Tensor], limit: float) -> dict[Tensor, Tensor]:
    """Gradients times min(1, limit / norm); nn.utils.clip_grad_norm_ adds 1e-6 to the norm."""
    scale = (limit / nn.utils.get_total_norm(gradients.values())).clamp(max=1.0)
    return {p: g * scale for p, g in gradients.items()}
''',
    "remember": '''
def remember(optimizer: torch.optim.Optimizer, *slots: str, count: str = "") -> None:
    """Make what the optimizer keeps of each parameter; by itself it does so in its first step."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            for slot in slots:
                optimizer.state[p].setdefault(slot, torch.zeros_like(p))
            if count:
                optimizer.state[p].setdefault(count, torch.zeros((), dtype=torch.float32, device=p.device))
''',
    "compiled": '''
def compiled(function: Callable[[], Tensor], tensors: list[Tensor]) -> Callable:
    """A function of those tensors, which it may change, as one compiled graph.

    torch.compile would leave autograd outside of it, and its guards cost more than a small step.
    """
    before = [tensor.detach().clone() for tensor in tensors]
    graph = make_fx(lambda *_: [function()])(*tensors)
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)  # Tracing has run it.
    # Inductor takes graphs of its own set of operations, whose only changes are copies at the end.
    graph = torch.func.functionalize(graph, remove="mutations")
    graph = make_fx(graph, DECOMPOSITIONS)(*before)
    return compile_fx_inner(graph, before)
''',
    "sgd": '''
@torch.no_grad()
def sgd(
    optimizer: torch.optim.Optimizer, gradients: dict[Tensor, Tensor], rate: Tensor | float
) -> None:
    """`optimizer.step()` in operations that a compiler can see into; its fused kernel is none."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p in gradients:
                p.sub_(rate * gradients[p])
''',
    "momentum_sgd": '''
@torch.no_grad()
def momentum_sgd(
    optimizer: torch.optim.Optimizer, gradients: dict[Tensor, Tensor], rate: Tensor | float
) -> None:
    """`optimizer.step()` in operations that a compiler can see into; its fused kernel is none."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p in gradients:
                velocity = optimizer.state[p]["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(gradients[p])
                nesterov = gradients[p] + group["momentum"] * velocity
                p.sub_(rate * (nesterov if group["nesterov"] else velocity))
''',
    "adam": '''
@torch.no_grad()
def adam(
    optimizer: torch.optim.Optimizer, gradients: dict[Tensor, Tensor], rate: Tensor, root: Tensor
) -> None:
    """`optimizer.step()` in operations that a compiler can see into; its fused kernel is none.

    `rate`: the learning rate over the first bias correction; `root`: of the second.
    """
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            if p in gradients:
                g, state = gradients[p], optimizer.state[p]
                m, v = state["exp_avg"], state["exp_avg_sq"]
                state["step"] += 1
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                p.sub_(rate * m / (v.sqrt() / root + group["eps"]))
''',
    "pointwise": '''
def mm(a: Tensor, b: Tensor) -> Tensor:
    """A product of tiny matrices without BLAS, which costs more, and which Inductor cannot fuse."""
    return (a[:, :, None] * b).sum(1)


DECOMPOSITIONS = select_decomp_table() | {
    torch.ops.aten.mm.default: mm,
    torch.ops.aten.addmm.default: lambda c, a, b: c + mm(a, b),
}
''',
    "decompositions": "DECOMPOSITIONS = select_decomp_table()\n",
}
HELPERS["compiled_tiny"] = HELPERS["compiled"].replace(
    "    return compile_fx_inner(graph, before)",
    """    # What lies between the kernels is allocated in C++: in Python that doubles the time of a step.
    return compile_fx_inner(graph, before, cpp_wrapper=True)""",
)
HELPERS["adamw"] = (
    HELPERS["adam"]
    .replace("def adam(", "def adamw(")
    .replace("root: Tensor\n", "root: Tensor, kept: Tensor\n")
    .replace("of the second.\n", "of the second;\n    `kept`: what weight decay leaves of a parameter.\n")
    .replace(
        "                m.lerp_",
        '                if group["weight_decay"]:\n                    p.mul_(kept)\n                m.lerp_',
    )
)
