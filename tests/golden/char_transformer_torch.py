"""char_transformer in PyTorch, compiled from a spec by harness 0.1.0.

A causal pre-norm decoder that reads characters of Python's own help text and predicts the next.

    python char_transformer_torch.py RUN_DIRECTORY

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


class DroppedAttention(nn.Module):
    """Multi-head attention with a given dropout mask; F.scaled_dot_product_attention draws its own."""

    def __init__(self, channels: int, memory: int, *, heads: int, causal: bool, bias: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key = nn.Linear(memory, channels, bias=bias)
        self.value = nn.Linear(memory, channels, bias=bias)
        self.out = nn.Linear(channels, channels, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # N, heads, T, C / heads

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            self.split(self.query(x)),
            self.split(self.key(memory)),
            self.split(self.value(memory)),
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if self.causal:
            future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        weights = scores.softmax(dim=-1)
        if mask is not None:
            weights = weights * mask
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def clip_by_global_norm(parameters: Iterable[Tensor], limit: float) -> None:
    """Gradients times min(1, limit / norm); nn.utils.clip_grad_norm_ adds 1e-6 to the norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    scale = (limit / nn.utils.get_total_norm(gradients)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)


class DecoderBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(64, eps=1e-05)
        self.attention1 = DroppedAttention(64, 64, heads=4, causal=True, bias=True)
        self.norm2 = nn.LayerNorm(64, eps=1e-05)
        self.dense1 = nn.Linear(64, 256)
        self.dense2 = nn.Linear(256, 64)

    def forward(self, x: Tensor, masks: dict | None = None) -> Tensor:
        y = self.norm1(x)
        y = self.attention1(y, y, masks and masks["attention1"])
        y = y * masks["dropout1"] if masks else y
        x = x + y
        y = self.norm2(x)
        y = self.dense1(y)
        y = F.gelu(y)
        y = self.dense2(y)
        y = y * masks["dropout2"] if masks else y
        return x + y


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 64)
        self.positions1 = nn.Parameter(torch.zeros(64, 64))
        self.decoder_block1 = DecoderBlock()
        self.decoder_block2 = DecoderBlock()
        self.norm1 = nn.LayerNorm(64, eps=1e-05)

    def forward(self, tokens: Tensor, masks: dict | None = None) -> Tensor:
        x = self.embed(tokens)
        x = x + self.positions1
        x = self.decoder_block1(x, masks and masks["decoder_block1"])
        x = self.decoder_block2(x, masks and masks["decoder_block2"])
        x = self.norm1(x)
        return F.linear(x, self.embed.weight)


def loss_fn(model: Decoder, batch: dict) -> Tensor:
    logits = model(batch["tokens"], batch["masks"]["decoder"])
    return F.cross_entropy(logits.flatten(0, -2), batch["targets"].flatten())


def learning_rate(step: int) -> float:
    """Linear warm-up from 0 over 50 updates, then cosine decay from 0.003 to 0.0003 over 450 updates; `step` counts from 0."""
    if step < 50:
        return 0.003 * step / 50
    return 0.003 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(step - 50, 450) / 450)))


# Weight decay spares these.
NO_DECAY = {
    "embed.weight",
    "positions1",
    "decoder_block1.norm1.weight",
    "decoder_block1.norm1.bias",
    "decoder_block1.attention1.query.bias",
    "decoder_block1.attention1.key.bias",
    "decoder_block1.attention1.value.bias",
    "decoder_block1.attention1.out.bias",
    "decoder_block1.norm2.weight",
    "decoder_block1.norm2.bias",
    "decoder_block1.dense1.bias",
    "decoder_block1.dense2.bias",
    "decoder_block2.norm1.weight",
    "decoder_block2.norm1.bias",
    "decoder_block2.attention1.query.bias",
    "decoder_block2.attention1.key.bias",
    "decoder_block2.attention1.value.bias",
    "decoder_block2.attention1.out.bias",
    "decoder_block2.norm2.weight",
    "decoder_block2.norm2.bias",
    "decoder_block2.dense1.bias",
    "decoder_block2.dense2.bias",
    "norm1.weight",
    "norm1.bias",
}


def make_optimizer(model: Decoder) -> torch.optim.Optimizer:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {
            "params": [p for name, p in parameters.items() if name not in NO_DECAY],
            "weight_decay": 0.1,
        },
        {"params": [p for name, p in parameters.items() if name in NO_DECAY], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate(0), betas=(0.9, 0.99), eps=1e-08, fused=True)


def train_step(model: Decoder, optimizer: torch.optim.Optimizer, step: int, batch: dict) -> Tensor:
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
    "embed.embedding": ("embed.weight", (0, 1)),
    "positions1.embedding": ("positions1", (0, 1)),
    "decoder_block1.norm1.scale": ("decoder_block1.norm1.weight", (0,)),
    "decoder_block1.norm1.bias": ("decoder_block1.norm1.bias", (0,)),
    "decoder_block1.attention1.query_kernel": ("decoder_block1.attention1.query.weight", (1, 0)),
    "decoder_block1.attention1.query_bias": ("decoder_block1.attention1.query.bias", (0,)),
    "decoder_block1.attention1.key_kernel": ("decoder_block1.attention1.key.weight", (1, 0)),
    "decoder_block1.attention1.key_bias": ("decoder_block1.attention1.key.bias", (0,)),
    "decoder_block1.attention1.value_kernel": ("decoder_block1.attention1.value.weight", (1, 0)),
    "decoder_block1.attention1.value_bias": ("decoder_block1.attention1.value.bias", (0,)),
    "decoder_block1.attention1.out_kernel": ("decoder_block1.attention1.out.weight", (1, 0)),
    "decoder_block1.attention1.out_bias": ("decoder_block1.attention1.out.bias", (0,)),
    "decoder_block1.norm2.scale": ("decoder_block1.norm2.weight", (0,)),
    "decoder_block1.norm2.bias": ("decoder_block1.norm2.bias", (0,)),
    "decoder_block1.dense1.kernel": ("decoder_block1.dense1.weight", (1, 0)),
    "decoder_block1.dense1.bias": ("decoder_block1.dense1.bias", (0,)),
    "decoder_block1.dense2.kernel": ("decoder_block1.dense2.weight", (1, 0)),
    "decoder_block1.dense2.bias": ("decoder_block1.dense2.bias", (0,)),
    "decoder_block2.norm1.scale": ("decoder_block2.norm1.weight", (0,)),
    "decoder_block2.norm1.bias": ("decoder_block2.norm1.bias", (0,)),
    "decoder_block2.attention1.query_kernel": ("decoder_block2.attention1.query.weight", (1, 0)),
    "decoder_block2.attention1.query_bias": ("decoder_block2.attention1.query.bias", (0,)),
    "decoder_block2.attention1.key_kernel": ("decoder_block2.attention1.key.weight", (1, 0)),
    "decoder_block2.attention1.key_bias": ("decoder_block2.attention1.key.bias", (0,)),
    "decoder_block2.attention1.value_kernel": ("decoder_block2.attention1.value.weight", (1, 0)),
    "decoder_block2.attention1.value_bias": ("decoder_block2.attention1.value.bias", (0,)),
    "decoder_block2.attention1.out_kernel": ("decoder_block2.attention1.out.weight", (1, 0)),
    "decoder_block2.attention1.out_bias": ("decoder_block2.attention1.out.bias", (0,)),
    "decoder_block2.norm2.scale": ("decoder_block2.norm2.weight", (0,)),
    "decoder_block2.norm2.bias": ("decoder_block2.norm2.bias", (0,)),
    "decoder_block2.dense1.kernel": ("decoder_block2.dense1.weight", (1, 0)),
    "decoder_block2.dense1.bias": ("decoder_block2.dense1.bias", (0,)),
    "decoder_block2.dense2.kernel": ("decoder_block2.dense2.weight", (1, 0)),
    "decoder_block2.dense2.bias": ("decoder_block2.dense2.bias", (0,)),
    "norm1.scale": ("norm1.weight", (0,)),
    "norm1.bias": ("norm1.bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


# call -> layer -> (key, shape of one example's mask, share dropped)
DROPOUT = {
    "decoder": {
        "decoder_block1.attention1": (0xCCB82560F1B1496A, (4, 64, 64), 0.1),
        "decoder_block1.dropout1": (0x9A48A863C752E587, (64, 64), 0.1),
        "decoder_block1.dropout2": (0xA44DF77EEA573CC4, (64, 64), 0.1),
        "decoder_block2.attention1": (0xA93150FE458C84F9, (4, 64, 64), 0.1),
        "decoder_block2.dropout1": (0xFDF28B41BFFE996A, (64, 64), 0.1),
        "decoder_block2.dropout2": (0x09D2CE7051968D08, (64, 64), 0.1),
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


def load_parameters(model: Decoder, arrays: dict[str, np.ndarray]) -> None:
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
        "tokens": torch.from_numpy(inputs["train.tokens"][rows]).long().to(DEVICE),
        "targets": torch.from_numpy(inputs["train.targets"][rows]).long().to(DEVICE),
        "masks": to_tensors(dropout_masks(step, len(rows))),
    }


def main(run: Path) -> None:
    torch.set_num_threads(1)
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(
        run / "inputs" / "batches.safetensors"
    )
    model = Decoder().to(DEVICE)
    load_parameters(model, load_file(run / "inputs" / "parameters.safetensors"))
    optimizer = make_optimizer(model)
    for step in range(len(inputs["order"])):
        loss = train_step(model, optimizer, step, load_batch(inputs, step))
        print(step + 1, loss.item())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
