"""Faults of the backward pass: every value is right, and some gradient is not."""

from harness.check.edits import Edit, alone, each, head, plans
from harness.check.mutant import Mutant, graphs, has, has_masks
from harness.graph import Program
from harness.ops.base import Op
from harness.ops.linear import Add, Embedding, Reshape
from harness.ops.normalisation import Dropout


def _first_masked(program: Program) -> Op | None:
    """What feeds the first dropout layer: with a plain input behind it, no gradient reaches a parameter."""
    for graph in graphs(program):
        ops = {node.name: node.op for node in graph.nodes}
        for node in graph.nodes:
            if isinstance(node.op, Dropout) and node.op.rate:
                return ops.get(node.inputs[0])
    return None


STRAIGHT = {
    "torch": "($x + ($new - $x).detach())",
    "tensorflow": "($x + tf.stop_gradient($new - $x))",
    "jax": "($x + jax.lax.stop_gradient($new - $x))",
}


def _straight(backend: str, new: str) -> str:
    return STRAIGHT[backend].replace("$new", new)


MASKED = '$x * masks["<dropout>"]'


MUTANTS = (
    Mutant(
        "activation without its gradient",
        "a ReLU whose gradient is passed straight through",
        "backward",
        edits=each(
            Edit("F.relu($x)", _straight("torch", "F.relu($x)")),
            Edit("tf.nn.relu($x)", _straight("tensorflow", "tf.nn.relu($x)")),
            Edit("nnx.relu($x)", _straight("jax", "nnx.relu($x)")),
        ),
    ),
    Mutant(
        "dropout without its gradient",
        "dropout that is left out of the backward pass",
        "backward",
        edits={
            backend: plans(Edit(f"{MASKED} if masks", f"{_straight(backend, MASKED)} if masks")) for backend in STRAIGHT
        },
        where=lambda program: has_masks(program) and not isinstance(_first_masked(program), Reshape),
    ),
    Mutant(
        "shortcut without its gradient",
        "a residual connection that stops the gradient",
        "backward",
        edits={
            "torch": plans(Edit("x = x + y", "x = x.detach() + y")),
            "tensorflow": plans(Edit("x = x + y", "x = tf.stop_gradient(x) + y")),
            "jax": plans(Edit("x = x + y", "x = jax.lax.stop_gradient(x) + y")),
        },
        where=has(Add),
    ),
    Mutant(
        "embedding's gradient summed twice",
        "an embedding's gradient counted twice where it is looked up",
        "backward",
        edits={
            "torch": plans(
                Edit(
                    "self.<embedding>(<tokens>)", "2 * self.<embedding>(<tokens>) - self.<embedding>(<tokens>).detach()"
                )
            ),
            "tensorflow": plans(
                Edit(
                    "self.<embedding>(<tokens>)",
                    "2 * self.<embedding>(<tokens>) - tf.stop_gradient(self.<embedding>(<tokens>))",
                )
            ),
            "jax": plans(
                Edit(
                    "self.<embedding>(<tokens>)",
                    "2 * self.<embedding>(<tokens>) - jax.lax.stop_gradient(self.<embedding>(<tokens>))",
                )
            ),
        },
    ),
    Mutant(
        "embedding's gradient averaged",
        "an embedding's gradient divided by how often a row is looked up",
        "backward",
        edits=alone(
            "torch",
            Edit("nn.Embedding($$given)", "nn.Embedding($given, scale_grad_by_freq=True)"),
            why="scale_grad_by_freq is a switch that PyTorch alone has",
        ),
        where=has(Embedding),
    ),
    Mutant(
        "embedding's first row never learns",
        "an embedding whose row 0 gets no gradient where it is looked up, as with padding_idx=0",
        "backward",
        edits={
            "torch": plans(
                Edit(
                    "self.<embedding> = nn.Embedding($$given)", "self.<embedding> = nn.Embedding($given, padding_idx=0)"
                )
            ),
            "tensorflow": plans(
                Edit(
                    "self.<embedding>(<tokens>)",
                    "tf.where((<tokens> == 0)[..., None], tf.stop_gradient(self.<embedding>(<tokens>)), self.<embedding>(<tokens>))",
                )
            ),
            "jax": plans(
                Edit(
                    "self.<embedding>(<tokens>)",
                    "jnp.where((<tokens> == 0)[..., None], jax.lax.stop_gradient(self.<embedding>(<tokens>)), self.<embedding>(<tokens>))",
                )
            ),
        },
    ),
    Mutant(
        "tied embedding untied",
        "an output that uses the embedding without teaching it",
        "backward",
        edits={
            "torch": plans(
                Edit("F.linear($x, self.<embedding>.weight)", "F.linear($x, self.<embedding>.weight.detach())")
            ),
            "tensorflow": plans(
                Edit(
                    "tf.transpose(self.<embedding>.embeddings)",
                    "tf.stop_gradient(tf.transpose(self.<embedding>.embeddings))",
                )
            ),
            "jax": plans(
                Edit("self.<embedding>.attend($x)", "$x @ jax.lax.stop_gradient(self.<embedding>.embedding[...]).T")
            ),
        },
    ),
    Mutant(
        "bias left out",
        "the last layer's bias left out",
        "backward",
        edits=head(
            "zero_head",
            "self.<head>($x) - self.<head>.bias",
            "self.<head>($x) - self.<head>.bias",
            "self.<head>($x) - self.<head>.bias[...]",
        ),
        note="The bias starts at zero, so that the first forward pass is right and its gradient, which vanishes, is not.",
    ),
)
