"""Parameters whose true gradient is zero, found from the graph.

Adding a constant to them changes nothing that a loss can see, so what a framework computes as their gradient is
rounding noise; an optimizer that divides a gradient by its own size (Adam) then moves them by that noise.
They are named and judged apart, so that they neither fail a comparison nor hide anything else.
"""

from harness.graph import BlockOp, Graph, Program
from harness.ops.attention import Attention
from harness.ops.convolution import Convolution, ConvTranspose2d
from harness.ops.linear import Dense
from harness.ops.normalisation import BatchNorm
from harness.optimizers import Adam


def zero_gradient(program: Program) -> dict[str, str]:
    """Canonical name -> why its gradient is zero."""
    found: dict[str, str] = {}
    for name, graph in program.networks.items():
        prefix = "" if len(program.networks) == 1 else f"{name}."
        # Only a rule that divides a gradient by its own size moves them far enough to show in what carries them.
        adam = any(isinstance(u.optimizer, Adam) for u in program.updates if name in u.over)
        found |= {f"{prefix}{parameter}": why for parameter, why in _in(graph, carriers=adam).items()}
    return found


def _in(graph: Graph, *, carriers: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in graph.nodes:
        op = node.op
        if isinstance(op, BlockOp):
            found |= {f"{node.name}.{name}": why for name, why in _in(op.graph, carriers=carriers).items()}
        elif isinstance(op, Attention) and op.bias:
            found[f"{node.name}.key_bias"] = (
                "a key bias adds the same to all scores of a query: softmax does not see it"
            )
        elif isinstance(op, (Convolution, ConvTranspose2d, Dense)) and op.bias and node.name != graph.output:
            users = graph.users(node.name)
            if users and all(isinstance(user.op, BatchNorm) for user in users):
                found[f"{node.name}.bias"] = f"batch normalisation ({users[0].name}) subtracts it again"
                if carriers:
                    why = f"a statistic that carries {node.name}.bias, whose gradient is zero"
                    found |= {f"{user.name}.mean": why for user in users}
    return found
