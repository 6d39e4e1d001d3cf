"""Faults of running statistics."""

from harness.check import changes, written
from harness.check.edits import Edit, plans
from harness.check.mutant import Mutant, has
from harness.check.written import alike, exchanged
from harness.ops.normalisation import BatchNorm

BATCH_NORMS = {
    "tensorflow": Edit("keras.layers.BatchNormalization($$given)", "WrittenBatchNorm($given)", everywhere=True),
    "jax": Edit("nnx.BatchNorm($$given)", "WrittenBatchNorm($given)", everywhere=True),
}


MUTANTS = (
    Mutant(
        "momentum convention swapped",
        "batch normalisation's momentum taken for its complement",
        "state",
        changes.ops(BatchNorm)(
            lambda node: node.op.model_copy(update={"momentum": round(1 - node.op.momentum, 9)})  # type: ignore[attr-defined]
        ),
    ),
    Mutant(
        "normalisation momentum of Keras",
        "Keras' default of 0.99 as batch normalisation's momentum",
        "state",
        changes.fields(BatchNorm, momentum=0.99),
    ),
    Mutant(
        "statistics frozen",
        "running statistics that are never updated",
        "state",
        changes.fields(BatchNorm, momentum=1.0),
    ),
    Mutant(
        "statistics updated twice",
        "running statistics that are updated twice in each step",
        "state",
        changes.ops(BatchNorm)(
            lambda node: node.op.model_copy(update={"momentum": round(node.op.momentum**2, 9)})  # type: ignore[attr-defined]
        ),
    ),
    Mutant(
        "unbiased running variance",
        "a running variance that is the unbiased one, as PyTorch keeps it",
        "state",
        edits={
            "torch": plans(
                Edit(
                    "lerp_(variance, self.momentum)",
                    "lerp_(variance * x.numel() / (x.numel() - x.shape[1]), self.momentum)",
                )
            ),
            **exchanged(
                written.BATCH_NORM,
                alike(written.BATCH_NORM, {"new * count / count": "new * count / (count - 1)"}),
                BATCH_NORMS,
            ),
        },
        where=has(BatchNorm),
        note="One part in the number of values of each channel: a few in ten thousand for images.",
    ),
)
