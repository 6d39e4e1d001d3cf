"""Other ways of running the same steps in PyTorch: the whole step compiled as one function. Imports no framework."""

from collections.abc import Mapping

from harness import emit as shared
from harness.emit import indented
from harness.graph import Program, Update
from harness.optimizers import AdamW, Sgd

IMPORTS = """
from torch._inductor.compile_fx import compile_fx
from torch.fx.experimental.proxy_tensor import make_fx
"""


def rule_name(update: Update) -> str:
    """The helper that applies an update's optimizer."""
    if isinstance(update.optimizer, Sgd):
        return "momentum_sgd" if update.optimizer.momentum else "sgd"
    return "adamw" if isinstance(update.optimizer, AdamW) else "adam"


def compile_step(
    program: Program, losses: Mapping[str, str], clips: Mapping[str, list[str]], rates: Mapping[str, str]
) -> str:
    """The function that compiles a whole training step. By update: its loss, clipping and learning-rate functions."""
    cls, single = shared.container(program), len(program.updates) == 1
    if single:
        name, kind, result = "optimizer", "torch.optim.Optimizer", "Tensor"
        held = "*(value for state in optimizer.state.values() for value in state.values())"
        clear = ["optimizer.zero_grad()"]
        (update,) = program.updates
        fill = [f"rate.fill_({rates[update.name]}(step))"]
        made, have = "rate = torch.zeros([], dtype=torch.float64, device=DEVICE)", "rate"
    else:
        name, kind, result = "optimizers", "dict[str, torch.optim.Optimizer]", "dict[str, Tensor]"
        held = "*(value for o in optimizers.values() for state in o.state.values() for value in state.values())"
        clear = ["for optimizer in optimizers.values():", "    optimizer.zero_grad()"]
        fill = [f'rates["{u.name}"].fill_({rates[u.name]}(step))' for u in program.updates]
        made = "rates = {name: torch.zeros([], dtype=torch.float64, device=DEVICE) for name in optimizers}"
        have = "*rates.values()"
    body: list[str] = [] if single else ["losses = {}"]
    for update in program.updates:
        own, rate = ("optimizer", "rate") if single else (f'optimizers["{update.name}"]', f'rates["{update.name}"]')
        counted = "" if isinstance(update.optimizer, Sgd) else ", count"
        body += [
            f"{own}.zero_grad()",
            f"loss = {losses[update.name]}(model, batch)",
            "loss.backward()",
            *clips[update.name],
            f"{rule_name(update)}({own}, {rate}{counted})",
            *([] if single else [f'losses["{update.name}"] = loss.detach()']),
        ]
    body.append("return [loss.detach()]" if single else "return list(losses.values())")
    counts = any(not isinstance(update.optimizer, Sgd) for update in program.updates)
    count = ["count = torch.zeros([], dtype=torch.float64, device=DEVICE)"] if counts else []
    fill += ["count.fill_(step + 1)"] if counts else []
    told = "result[0]" if single else f"dict(zip({[u.name for u in program.updates]!r}, result, strict=True))"
    tensors = indented([f"{leaf}," for leaf in leaves(program)])
    return f'''
def leaves(batch: dict) -> list[Tensor]:
    """Every tensor of a batch, always in the same order."""
    return [
{tensors}
    ]


def compile_step(model: {cls}, {name}: {kind}, batch: dict) -> Callable[[int, dict], {result}]:
    """The whole of `train_step`, optimizer included, as one compiled function of a step and its batch.

    What it reads and changes must exist: `train_step` has been called before.
    """
{indented([made, *count], 4)}
    held = [
        {have},
        {"count," if counts else ""}
        *model.parameters(),
        *model.buffers(),
        {held},
    ]

    def update(*_: Tensor) -> list[Tensor]:
{indented(body)}

    before = [tensor.detach().clone() for tensor in held]
    graph = make_fx(update)(*held, *leaves(batch))
{indented(clear, 4)}
    held = [tensor.detach() for tensor in held]
    for tensor, value in zip(held, before, strict=True):
        tensor.copy_(value)  # Tracing has taken a step.
    with torch.no_grad():
        compiled = compile_fx(graph, [*held, *leaves(batch)])

    def step_fn(step: int, batch: dict) -> {result}:
{indented(fill)}
        result = compiled(*held, *leaves(batch))
        return {told}

    return step_fn
'''


def leaves(program: Program) -> list[str]:
    """The tensors of a batch, as expressions."""
    found = [f'batch["{name}"]' for name in program.fields]
    for call, layers in program.masks.items():
        for path in layers:
            steps = "".join(f'["{step}"]' for step in path.split("."))
            found.append(f'batch["masks"]["{call}"]{steps}')
    return found


def running(program: Program) -> list[str]:
    """The loop of `main`."""
    single = len(program.updates) == 1
    name, losses = ("optimizer", "loss") if single else ("optimizers", "losses")
    show = "loss.item()" if single else "*(loss.item() for loss in losses.values())"
    return [
        f"{losses} = train_step(model, {name}, 0, load_batch(inputs, 0))",
        f"print(1, {show})",
        'if len(inputs["order"]) > 1:',
        f"    step_fn = compile_step(model, {name}, load_batch(inputs, 1))",
        'for step in range(1, len(inputs["order"])):',
        f"    {losses} = step_fn(step, load_batch(inputs, step))",
        f"    print(step + 1, {show})",
    ]


# Products of a number and a tensor, never `add_(x, alpha=number)`: Inductor 2.13 loses an alpha where it fuses a matrix
# product into the addition, and trains something else.
HELPERS = {
    "sgd": '''
@torch.no_grad()
def sgd(optimizer: torch.optim.Optimizer, rate: Tensor) -> None:
    """`optimizer.step()` in operations that a compiler can see into; its fused kernel is none."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.sub_(rate * p.grad)
''',
    "momentum_sgd": '''
@torch.no_grad()
def momentum_sgd(optimizer: torch.optim.Optimizer, rate: Tensor) -> None:
    """`optimizer.step()` in operations that a compiler can see into; its fused kernel is none."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                velocity = optimizer.state[p]["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(p.grad)
                nesterov = p.grad + group["momentum"] * velocity
                p.sub_(rate * (nesterov if group["nesterov"] else velocity))
''',
    "adam": '''
@torch.no_grad()
def adam(optimizer: torch.optim.Optimizer, rate: Tensor, count: Tensor) -> None:
    """`optimizer.step()` in operations that a compiler can see into; its fused kernel is none."""
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        rate1, root2 = rate / (1 - beta1**count), (1 - beta2**count).sqrt()
        for p in group["params"]:
            if p.grad is not None:
                state = optimizer.state[p]
                m, v = state["exp_avg"], state["exp_avg_sq"]
                state["step"] += 1
                m.lerp_(p.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                p.sub_(rate1 * m / (v.sqrt() / root2 + group["eps"]))
''',
}
HELPERS["adamw"] = (
    HELPERS["adam"]
    .replace("def adam(", "def adamw(")
    .replace(
        "                m.lerp_", '                p.mul_(1 - rate * group["weight_decay"])\n                m.lerp_'
    )
)
