"""Other ways of running the same steps in TensorFlow: many in one call, and Keras's own `fit`. Imports no framework."""

from harness import emit as shared
from harness.graph import Program
from harness.lanes import steps_a_call

STEPS = ("function", "function_xla")
"""The strategies of one call a step; the last is compiled by XLA."""
LOOPS = ("loop", "loop_xla", "tuned")
"""The strategies that take many steps in one call; those after the first are compiled by XLA."""
IN_A_LOOP = {
    "Adam": '''
class Adam(keras.optimizers.Adam):
    """Adam with epsilon added after the bias correction, by TensorFlow's kernel: one pass over a variable."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        # The kernel rounds its betas to the variable's precision, and the bias corrections are of what it takes. By
        # itself it makes them with powers that are rounded at each step, and adds epsilon before them.
        number = variable.dtype.as_numpy_dtype
        beta_1, beta_2 = number(self.beta_1), number(self.beta_2)
        t = tf.cast(self.iterations + 1, tf.float64)
        correction = tf.sqrt(1 - float(beta_2) ** t)
        rate = tf.cast(learning_rate, tf.float64) / (1 - float(beta_1) ** t)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=m.handle,
            v=v.handle,
            beta1_power=number(0),
            beta2_power=number(0),
            lr=tf.cast(rate * correction, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.cast(self.epsilon * correction, variable.dtype),
            grad=gradient,
        )
''',
}
IN_A_LOOP["AdamW"] = (
    IN_A_LOOP["Adam"]
    .replace("class Adam(keras.optimizers.Adam)", "class AdamW(keras.optimizers.AdamW)")
    .replace('"""Adam with', '"""AdamW with')
)
"""What the strategy `loop` has instead of other helpers: where XLA does not fuse an update, it is a dozen passes."""
STACK = '''

def stack(batches: list[dict]) -> dict:
    """Batches as one, along a new first axis."""
    return tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *batches)
'''


def held(program: Program) -> tuple[str, str, str]:
    """The optimizer's name, its type, and that of what a step returns."""
    if len(program.updates) == 1:
        return "optimizer", "keras.optimizers.Optimizer", "tf.Tensor"
    return "optimizers", "dict[str, keras.optimizers.Optimizer]", "dict[str, tf.Tensor]"


def compiled_step(program: Program, kind: str, *, xla: bool) -> str:
    """The function that takes one step in one call; `kind`: the type of what it returns."""
    name, optimizer, _ = held(program)
    return f'''

def make_compiled_step(model: {shared.container(program)}, {name}: {optimizer}) -> Callable[[dict], {kind}]:
    """`train_step` as a graph, of tensors alone: TensorFlow looks through objects anew at each call."""
    return tf.function(lambda batch: train_step(model, {name}, batch){", jit_compile=True" if xla else ""})
'''


def train_steps(program: Program, precision: str, *, xla: bool) -> str:
    """The function that takes many steps in one call."""
    name, optimizer, kind = held(program)
    each = f"tf.{precision}"
    if len(program.updates) > 1:
        each = "{" + ", ".join(f'"{update.name}": {each}' for update in program.updates) + "}"
    return f'''
def make_train_steps(model: {shared.container(program)}, {name}: {optimizer}) -> Callable[[dict], {kind}]:
    """A function of a stack of batches: `train_step` for each, in one call; it returns every loss."""

    # Of tensors alone: TensorFlow looks through objects among the arguments anew at each call.
    @tf.function{"(jit_compile=True)" if xla else ""}
    def train_steps(batches: dict) -> {kind}:
        return tf.map_fn(
            lambda batch: train_step(model, {name}, batch),
            batches,
            fn_output_signature={each},
            parallel_iterations=1,
        )

    return train_steps
'''


def blocks(program: Program, precision: str) -> list[str]:
    """The loop of `main` over calls of many steps."""
    single = len(program.updates) == 1
    size = steps_a_call(program, precision)
    name, *_ = held(program)
    show = "float(losses[i])" if single else "*(float(loss[i]) for loss in losses.values())"
    return [
        f"train_steps = make_train_steps(model, {name})",
        'count = len(inputs["order"])',
        f"for first in range(0, count, {size}):",
        f"    steps = range(first, min(first + {size}, count))",
        "    batches = stack([load_batch(inputs, step) for step in steps])",
        "    losses = tf.nest.map_structure(lambda loss: loss.numpy(), train_steps(batches))",
        "    for i, step in enumerate(steps):",
        f"        print(step + 1, {show})",
    ]


def trainer(program: Program) -> str:
    """The class whose `fit` trains, and what keeps the losses."""
    cls, single = shared.container(program), len(program.updates) == 1
    name, kind, _ = held(program)
    own = "own_optimizer" if single else "own_optimizers"
    result = f"train_step(self.network, self.{own}, batch)"
    return f'''
class Trainer(keras.Model):
    """`train_step` as what Keras's `fit` calls."""

    def __init__(self, network: {cls}, {name}: {kind}) -> None:
        super().__init__()
        self.network = network
        self.{own} = {name}

    def train_step(self, batch: dict) -> dict[str, tf.Tensor]:
        return {f'{{"loss": {result}}}' if single else result}


class Losses(keras.callbacks.Callback):
    """The losses of every step: the history that `fit` returns has those of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, _batch: int, logs: dict[str, float]) -> None:
        self.steps.append(logs)


def make_trainer(model: {cls}, {name}: {kind}) -> Trainer:
    trainer = Trainer(model, {name})
    trainer.compile()  # for `fit`; its optimizer is not used
    return trainer


def fit(trainer: Trainer, batches: dict, times: int = 1) -> list[dict[str, float]]:
    """Train on a stack of batches, in order, so many times over; returns the losses of every step."""
    losses = Losses()
    data = tf.data.Dataset.from_tensor_slices(batches).repeat(times)
    trainer.fit(data, shuffle=False, verbose=0, callbacks=[losses])
    return losses.steps
'''


def fitting(program: Program) -> list[str]:
    """The body of `main` that trains by `fit`."""
    name, *_ = held(program)
    return [
        f"trainer = make_trainer(model, {name})",
        'batches = stack([load_batch(inputs, step) for step in range(len(inputs["order"]))])',
        "for step, losses in enumerate(fit(trainer, batches)):",
        "    print(step + 1, *map(float, losses.values()))",
    ]
