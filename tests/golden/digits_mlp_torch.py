"""digits_mlp in PyTorch, compiled from a spec by harness 0.1.0.

Dense layers with dropout on scikit-learn's handwritten digits, trained by AdamW.

    python digits_mlp_torch.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor, nn

# Full float32 products on GPUs too: cuDNN's convolutions use TF32 unless told not to.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clip_by_global_norm(parameters: Iterable[Tensor], limit: float) -> None:
    """Gradients times min(1, limit / norm); nn.utils.clip_grad_norm_ adds 1e-6 to the norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    scale = (limit / nn.utils.get_total_norm(gradients)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense1 = nn.Linear(64, 128)
        self.dense2 = nn.Linear(128, 64)
        self.logits = nn.Linear(64, 10)

    def forward(self, image: Tensor, masks: dict | None = None) -> Tensor:
        x = image.flatten(1)
        x = self.dense1(x)
        x = F.relu(x)
        x = x * masks["dropout1"] if masks else x
        x = self.dense2(x)
        x = F.relu(x)
        x = x * masks["dropout2"] if masks else x
        return self.logits(x)


def loss_fn(model: Classifier, batch: dict) -> Tensor:
    logits = model(batch["image"], batch["masks"]["classifier"])
    return F.cross_entropy(logits, batch["label"])


def learning_rate(step: int) -> float:
    """Linear warm-up from 0.0003 over 40 updates, then cosine decay from 0.003 to 3e-05 over 360 updates; `step` counts from 0."""
    if step < 40:
        return 0.003 * (0.1 + 0.9 * step / 40)
    return 0.003 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step - 40, 360) / 360)))


# Weight decay spares these.
NO_DECAY = {"dense1.bias", "dense2.bias", "logits.bias"}


def make_optimizer(model: Classifier) -> torch.optim.Optimizer:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {
            "params": [p for name, p in parameters.items() if name not in NO_DECAY],
            "weight_decay": 0.05,
        },
        {"params": [p for name, p in parameters.items() if name in NO_DECAY], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate(0), betas=(0.9, 0.999), eps=1e-08, fused=True)


def train_step(
    model: Classifier, optimizer: torch.optim.Optimizer, step: int, batch: dict
) -> Tensor:
    """One update; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    optimizer.zero_grad()
    loss = loss_fn(model, batch)
    loss.backward()
    clip_by_global_norm(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


# canonical name -> (PyTorch's name, the axes that take the canonical array to PyTorch's)
PARAMETERS = {
    "dense1.kernel": ("dense1.weight", (1, 0)),
    "dense1.bias": ("dense1.bias", (0,)),
    "dense2.kernel": ("dense2.weight", (1, 0)),
    "dense2.bias": ("dense2.bias", (0,)),
    "logits.kernel": ("logits.weight", (1, 0)),
    "logits.bias": ("logits.bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "classifier": {
        "dropout1": (0x4EBC7AB1B297901E, (128,), 0.2),
        "dropout2": (0xA51CC1B7E0E21BBF, (64,), 0.1),
    },
}


def dropout_masks(step: int, batch: int) -> dict:
    """What dropout multiplies by at a step: 0, or 1 / (1 - rate). Shape: batch, then the layer's.

    Philox with the step as its counter, 16 bits a value: the same numbers in every framework.
    """
    masks: dict = {}
    for call, layers in DROPOUT.items():
        for path, (key, shape, rate) in layers.items():
            count = batch * math.prod(shape)
            words = np.random.Philox(key=key, counter=step << 64).random_raw(-(-count // 4))
            keep = words.view(np.uint16)[:count] >= round(rate * 2**16)
            *blocks, layer = path.split(".")
            inner = masks.setdefault(call, {})
            for name in blocks:
                inner = inner.setdefault(name, {})
            inner[layer] = (keep / (1 - rate)).astype(np.float32).reshape(batch, *shape)
    return masks


def load_parameters(model: Classifier, arrays: dict[str, np.ndarray]) -> None:
    """Set every parameter and statistic from its canonical array."""
    table, state = PARAMETERS | STATISTICS, model.state_dict()
    if arrays.keys() != table.keys():
        raise ValueError(
            f"names that only the model or the arrays have: {sorted(arrays.keys() ^ table.keys())}"
        )
    for name, (path, axes) in table.items():
        tensor = state[path].permute(np.argsort(axes).tolist())
        array = torch.from_numpy(arrays[name])
        if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"{name}: the model has {tuple(tensor.shape)} of {tensor.dtype}, "
                f"the array is {tuple(array.shape)} of {array.dtype}"
            )
        tensor.copy_(array)


def to_tensors(masks: dict) -> dict:
    return {
        name: to_tensors(mask) if isinstance(mask, dict) else torch.from_numpy(mask).to(DEVICE)
        for name, mask in masks.items()
    }


def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = inputs["order"][step]
    return {
        "image": torch.from_numpy(inputs["train.image"][rows]).to(DEVICE),
        "label": torch.from_numpy(inputs["train.label"][rows]).long().to(DEVICE),
        "masks": to_tensors(dropout_masks(step, len(rows))),
    }


def main(run: Path) -> None:
    torch.set_num_threads(1)
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(
        run / "inputs" / "batches.safetensors"
    )
    model = Classifier().to(DEVICE)
    load_parameters(model, load_file(run / "inputs" / "parameters.safetensors"))
    optimizer = make_optimizer(model)
    for step in range(len(inputs["order"])):
        loss = train_step(model, optimizer, step, load_batch(inputs, step))
        print(step + 1, loss.item())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
