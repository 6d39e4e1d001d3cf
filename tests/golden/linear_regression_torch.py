"""linear_regression in PyTorch, compiled from a spec by harness 0.1.0.

Two inputs, one output, two points. The first network of the tutorial that this project grew from,
started from what torch.manual_seed(0); nn.Linear(2, 1) gives.

    python linear_regression_torch.py RUN_DIRECTORY

trains it from the arrays in that directory: initial parameters, data, and which rows make each
batch.
"""

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


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def loss_fn(model: Model, batch: dict) -> Tensor:
    predictions = model(batch["x"])
    return F.mse_loss(predictions, batch["y"])


def learning_rate(step: int) -> float:
    """0.01 throughout; `step` counts from 0."""
    return 0.01


def make_optimizer(model: Model) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=learning_rate(0), fused=True)


def train_step(model: Model, optimizer: torch.optim.Optimizer, step: int, batch: dict) -> Tensor:
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
    "linear.kernel": ("linear.weight", (1, 0)),
    "linear.bias": ("linear.bias", (0,)),
}
# the same for running statistics
STATISTICS = {}


def load_parameters(model: Model, arrays: dict[str, np.ndarray]) -> None:
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


def load_batch(inputs: dict[str, np.ndarray], step: int) -> dict:
    """The batch of a step, counted from 0."""
    rows = inputs["order"][step]
    return {
        "x": torch.from_numpy(inputs["train.x"][rows]).to(DEVICE),
        "y": torch.from_numpy(inputs["train.y"][rows]).to(DEVICE),
    }


def main(run: Path) -> None:
    torch.set_num_threads(1)
    inputs = load_file(run / "inputs" / "data.safetensors") | load_file(
        run / "inputs" / "batches.safetensors"
    )
    model = Model().to(DEVICE)
    load_parameters(model, load_file(run / "inputs" / "parameters.safetensors"))
    optimizer = make_optimizer(model)
    for step in range(len(inputs["order"])):
        loss = train_step(model, optimizer, step, load_batch(inputs, step))
        print(step + 1, loss.item())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
