"""Other ways of running the same steps in JAX: many in one call, and as Flax's own guide does. Imports no framework."""

from harness import emit as shared
from harness.emit import indented
from harness.graph import Program, Update
from harness.lanes import steps_a_call

TUNED = ("tuned", "tuned_scan")
"""The strategies whose layers are those of `tuned`, where it has them."""
CUDNN = "cudnn"
"""The strategy whose LSTMs, or attention, are cuDNN's."""
SCANS = ("scan", "tuned_scan", CUDNN)
"""The strategies that take many steps in one call."""
SCAN = '''
@partial(jax.jit, donate_argnames="state")
def train_steps(state: State, batches: dict) -> tuple[State, Array]:
    """`train_step` for each batch of a stack, in one call; returns the new state and every loss."""
    return jax.lax.scan(train_step, state, batches)
'''
STACK = '''

def stack(batches: list[dict]) -> dict:
    """Batches as one, along a new first axis."""
    # jnp.stack would compile for each number of batches: half a minute for thousands.
    return jax.device_put(jax.tree.map(lambda *arrays: np.stack(arrays), *batches))
'''


def blocks(program: Program, precision: str) -> list[str]:
    """The loop of `main` over calls of many steps."""
    size = steps_a_call(program, precision)
    show = "losses[i]" if len(program.updates) == 1 else "*(loss[i] for loss in losses.values())"
    return [
        'count = len(inputs["order"])',
        f"for first in range(0, count, {size}):",
        f"    steps = range(first, min(first + {size}, count))",
        "    batches = stack([load_batch(inputs, step) for step in steps])",
        "    state, losses = train_steps(state, batches)",
        "    losses = jax.tree.map(lambda loss: loss.tolist(), losses)",
        "    for i, step in enumerate(steps):",
        f"        print(step + 1, {show})",
    ]


def nnx_step(program: Program) -> str:
    """The training step on Flax's own objects."""
    cls = shared.container(program)
    if len(program.updates) == 1:
        (update,) = program.updates
        body = [
            *minimisation(program, update, "loss", "optimizer"),
            "return loss",
        ]
        return f'''
@nnx.jit
def train_step(model: {cls}, optimizer: nnx.Optimizer, batch: dict) -> Array:
    """One update; returns the loss before it."""
{indented(body, 4)}
'''
    body = ["losses = {}"]
    for update in program.updates:
        body += minimisation(program, update, f'losses["{update.name}"]', f'optimizers["{update.name}"]')
    return f'''
@nnx.jit
def train_step(model: {cls}, optimizers: dict[str, nnx.Optimizer], batch: dict) -> dict[str, Array]:
    """One update after another; returns the loss before each."""
{indented([*body, "return losses"], 4)}
'''


def minimisation(program: Program, update: Update, result: str, optimizer: str) -> list[str]:
    """One update's statements."""
    of = wrt(program, update)
    grad = f"nnx.value_and_grad({shared.loss_name(program, update)}"
    grad += ")" if of == "nnx.Param" else f", argnums=nnx.DiffState(0, {of}))"
    return [f"{result}, gradients = {grad}(model, batch)", f"{optimizer}.update(model, gradients)"]


def wrt(program: Program, update: Update) -> str:
    """The filter of what an update moves."""
    if set(update.over) == set(program.networks):
        return "nnx.Param"
    paths = ", ".join(f'nnx.PathContains("{name}")' for name in update.over)
    return f"nnx.All(nnx.Param, {paths if len(update.over) == 1 else f'nnx.Any({paths})'})"


def nnx_loading(program: Program, dtype: str) -> str:
    """Making the optimizers and loading parameters, of `dtype`."""
    cls, single = shared.container(program), len(program.updates) == 1
    if single:
        (update,) = program.updates
        name, kind, made = "optimizer", "nnx.Optimizer", f"nnx.Optimizer(model, tx, wrt={wrt(program, update)})"
    else:
        name, kind = "optimizers", "dict[str, nnx.Optimizer]"
        each = [f'"{u.name}": nnx.Optimizer(model, txs["{u.name}"], wrt={wrt(program, u)})' for u in program.updates]
        made = f"{{{', '.join(each)}}}"
    return f'''
def make_{name}(model: {cls}) -> {kind}:
    return {made}


def load_parameters(model: {cls}, arrays: dict[str, np.ndarray]) -> None:
    """Set every parameter and statistic from its canonical array."""
    table, found = PARAMETERS | STATISTICS, {{}}
    if arrays.keys() != table.keys():
        raise ValueError(f"names that only the model or the arrays have: {{sorted(arrays.keys() ^ table.keys())}}")
    shapes = {{".".join(map(str, path)): variable.shape for path, variable in nnx.to_flat_state(nnx.state(model))}}
    for name, (path, axes) in table.items():
        array, shape = arrays[name], tuple(shapes[path][i] for i in np.argsort(axes))
        if (array.shape, array.dtype) != (shape, "{dtype}"):
            raise ValueError(
                f"{{name}}: the model has {{shape}} of {dtype}, "
                f"the array is {{array.shape}} of {{array.dtype}}"
            )
        found[path] = jnp.array(array.transpose(axes), jnp.{dtype})
    nnx.update(model, unflatten_dict(found, sep="."))
'''


def nnx_main(program: Program, load: str) -> list[str]:
    """What `main` does with Flax's own objects; `load`: the expression of the parameters' arrays."""
    single = len(program.updates) == 1
    name, losses = ("optimizer", "loss") if single else ("optimizers", "losses")
    return [
        f"model = {shared.container(program)}(nnx.Rngs(0))",
        f"load_parameters(model, {load})",
        f"{name} = make_{name}(model)",
        'for step in range(len(inputs["order"])):',
        f"    {losses} = train_step(model, {name}, load_batch(inputs, step))",
        f"    print(step + 1, {'float(loss)' if single else '*map(float, losses.values())'})",
    ]
