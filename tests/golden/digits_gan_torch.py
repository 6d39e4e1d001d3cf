"""digits_gan in PyTorch, compiled from a spec by harness 0.1.0.

A generator and a discriminator on handwritten digits (Goodfellow et al. 2014; the generator
minimises the non-saturating loss). Two updates a step, the discriminator's first.

    python digits_gan_torch.py RUN_DIRECTORY

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


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense1 = nn.Linear(16, 256)
        self.deconv1 = nn.ConvTranspose2d(16, 32, (4, 4), stride=(2, 2), padding=(1, 1))
        self.conv1 = nn.Conv2d(32, 1, (3, 3), padding=(1, 1))

    def forward(self, noise: Tensor) -> Tensor:
        x = self.dense1(noise)
        x = F.relu(x)
        x = x.reshape(-1, 4, 4, 16)
        x = self.deconv1(x.permute(0, 3, 1, 2))
        x = F.relu(x)
        x = self.conv1(x)
        return torch.sigmoid(x).permute(0, 2, 3, 1)


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, (3, 3), stride=(2, 2))
        self.conv2 = nn.Conv2d(16, 32, (3, 3), stride=(2, 2))
        self.logit = nn.Linear(128, 1)

    def forward(self, image: Tensor, masks: dict | None = None) -> Tensor:
        x = self.conv1(F.pad(image.permute(0, 3, 1, 2), (0, 1, 0, 1)))
        x = F.leaky_relu(x, 0.2)
        x = self.conv2(F.pad(x, (0, 1, 0, 1)))
        x = F.leaky_relu(x, 0.2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = x * masks["dropout1"] if masks else x
        return self.logit(x)


class DigitsGan(nn.Module):
    """The networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()
        self.discriminator = Discriminator()


def discriminator_loss(model: DigitsGan, batch: dict) -> Tensor:
    logits = model.discriminator(batch["image"], batch["masks"]["discriminator_logits"])
    with torch.no_grad():
        fake = model.generator(batch["noise"])
    logits2 = model.discriminator(fake, batch["masks"]["discriminator_logits2"])
    return F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, 0.95)
    ) + F.binary_cross_entropy_with_logits(logits2, torch.full_like(logits2, 0.0))


def generator_loss(model: DigitsGan, batch: dict) -> Tensor:
    fake = model.generator(batch["noise"])
    logits = model.discriminator(fake, batch["masks"]["generator_logits"])
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 1.0))


def discriminator_learning_rate(step: int) -> float:
    """0.0005 throughout; `step` counts from 0."""
    return 0.0005


def generator_learning_rate(step: int) -> float:
    """0.0005 throughout; `step` counts from 0."""
    return 0.0005


def make_optimizers(model: DigitsGan) -> dict[str, torch.optim.Optimizer]:
    return {
        "discriminator": torch.optim.Adam(
            model.discriminator.parameters(),
            lr=discriminator_learning_rate(0),
            betas=(0.5, 0.999),
            eps=1e-08,
            fused=True,
        ),
        "generator": torch.optim.Adam(
            model.generator.parameters(),
            lr=generator_learning_rate(0),
            betas=(0.5, 0.999),
            eps=1e-08,
            fused=True,
        ),
    }


def train_step(
    model: DigitsGan, optimizers: dict[str, torch.optim.Optimizer], step: int, batch: dict
) -> dict[str, Tensor]:
    """One update after another; returns the loss before each."""
    losses = {}
    for group in optimizers["discriminator"].param_groups:
        group["lr"] = discriminator_learning_rate(step)
    optimizers["discriminator"].zero_grad()
    loss = discriminator_loss(model, batch)
    loss.backward()
    optimizers["discriminator"].step()
    losses["discriminator"] = loss.detach()
    for group in optimizers["generator"].param_groups:
        group["lr"] = generator_learning_rate(step)
    optimizers["generator"].zero_grad()
    loss = generator_loss(model, batch)
    loss.backward()
    optimizers["generator"].step()
    losses["generator"] = loss.detach()
    return losses


# canonical name -> (PyTorch's name, the axes that take the canonical array to PyTorch's)
PARAMETERS = {
    "generator.dense1.kernel": ("generator.dense1.weight", (1, 0)),
    "generator.dense1.bias": ("generator.dense1.bias", (0,)),
    "generator.deconv1.kernel": ("generator.deconv1.weight", (3, 2, 0, 1)),
    "generator.deconv1.bias": ("generator.deconv1.bias", (0,)),
    "generator.conv1.kernel": ("generator.conv1.weight", (3, 2, 0, 1)),
    "generator.conv1.bias": ("generator.conv1.bias", (0,)),
    "discriminator.conv1.kernel": ("discriminator.conv1.weight", (3, 2, 0, 1)),
    "discriminator.conv1.bias": ("discriminator.conv1.bias", (0,)),
    "discriminator.conv2.kernel": ("discriminator.conv2.weight", (3, 2, 0, 1)),
    "discriminator.conv2.bias": ("discriminator.conv2.bias", (0,)),
    "discriminator.logit.kernel": ("discriminator.logit.weight", (1, 0)),
    "discriminator.logit.bias": ("discriminator.logit.bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "discriminator_logits": {"dropout1": (0x1B8F0BBA84EF81C3, (128,), 0.2)},
    "discriminator_logits2": {"dropout1": (0x07081A619FA3BAB8, (128,), 0.2)},
    "generator_logits": {"dropout1": (0x2B8261BF6CC29546, (128,), 0.2)},
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


def load_parameters(model: DigitsGan, arrays: dict[str, np.ndarray]) -> None:
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
        "noise": torch.from_numpy(inputs["noise"][step][: len(rows)]).to(DEVICE),
        "masks": to_tensors(dropout_masks(step, len(rows))),
    }


def main(run: Path) -> None:
    torch.set_num_threads(1)
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(
        run / "inputs" / "batches.safetensors"
    )
    model = DigitsGan().to(DEVICE)
    load_parameters(model, load_file(run / "inputs" / "parameters.safetensors"))
    optimizers = make_optimizers(model)
    for step in range(len(inputs["order"])):
        losses = train_step(model, optimizers, step, load_batch(inputs, step))
        print(step + 1, *(loss.item() for loss in losses.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
