"""digits_cnn in PyTorch, compiled from a spec by harness 0.1.0.

A small convolutional network on scikit-learn's handwritten digits, trained by SGD with Nesterov
momentum.

    python digits_cnn_torch.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

import math
import sys
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


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose running variance is the biased one, as in Keras and Flax.

    On CPUs F.batch_norm adds up channels-last values one by one: 42 units in the last place off
    for 50,000 of them, where torch.var_mean is 1 off.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x, dim=(0, *range(2, x.ndim)), correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        shape = (-1,) + (1,) * (x.ndim - 2)
        return x * scale.view(shape) + shift.view(shape)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, (3, 3), padding=(1, 1))
        self.norm1 = BatchNorm2d(16, eps=1e-05, momentum=0.1)
        self.conv2 = nn.Conv2d(16, 32, (3, 3), stride=(2, 2), bias=False)
        self.norm2 = BatchNorm2d(32, eps=1e-05, momentum=0.1)
        self.logits = nn.Linear(32, 10)

    def forward(self, image: Tensor, masks: dict | None = None) -> Tensor:
        x = self.conv1(image.permute(0, 3, 1, 2))
        x = self.norm1(x)
        x = F.relu(x)
        x = F.max_pool2d(x, (2, 2), (2, 2))
        x = self.conv2(F.pad(x, (0, 1, 0, 1)))
        x = self.norm2(x)
        x = F.relu(x)
        x = F.avg_pool2d(x, (2, 2), (2, 2))
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = x * masks["dropout1"] if masks else x
        return self.logits(x)


def loss_fn(model: Classifier, batch: dict) -> Tensor:
    logits = model(batch["image"], batch["masks"]["classifier"])
    return F.cross_entropy(logits, batch["label"])


def learning_rate(step: int) -> float:
    """Cosine decay from 0.1 to 0 over 300 updates; `step` counts from 0."""
    return 0.1 * 0.5 * (1 + math.cos(math.pi * min(step, 300) / 300))


def make_optimizer(model: Classifier) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), lr=learning_rate(0), momentum=0.9, nesterov=True, fused=True
    )


def train_step(
    model: Classifier, optimizer: torch.optim.Optimizer, step: int, batch: dict
) -> Tensor:
    """One update; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    optimizer.zero_grad()
    loss = loss_fn(model, batch)
    loss.backward()
    optimizer.step()
    return loss.detach()


# canonical name -> (PyTorch's name, the axes that take the canonical array to PyTorch's)
PARAMETERS = {
    "conv1.kernel": ("conv1.weight", (3, 2, 0, 1)),
    "conv1.bias": ("conv1.bias", (0,)),
    "norm1.scale": ("norm1.weight", (0,)),
    "norm1.bias": ("norm1.bias", (0,)),
    "conv2.kernel": ("conv2.weight", (3, 2, 0, 1)),
    "norm2.scale": ("norm2.weight", (0,)),
    "norm2.bias": ("norm2.bias", (0,)),
    "logits.kernel": ("logits.weight", (1, 0)),
    "logits.bias": ("logits.bias", (0,)),
}
# the same for running statistics
STATISTICS = {
    "norm1.mean": ("norm1.running_mean", (0,)),
    "norm1.variance": ("norm1.running_var", (0,)),
    "norm2.mean": ("norm2.running_mean", (0,)),
    "norm2.variance": ("norm2.running_var", (0,)),
}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "classifier": {"dropout1": (0x4EBC7AB1B297901E, (32,), 0.2)},
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
