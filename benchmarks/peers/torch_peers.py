"""Five networks in PyTorch as its specialists would write them for one CPU core, and the everyday way.

`PEERS[network][strategy](run)` reads the arrays of a run directory and returns `train(steps)`, which trains that many
more steps and returns their losses. `train.chunk` is how many steps one call of the compiled function takes; other
numbers of steps are finished one by one. Batches cycle through the run's first eight and are prepared beforehand.
"""
# ruff: noqa: D101, D102 - networks are named after what they are

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader, TensorDataset

Arrays = dict[str, np.ndarray]
Train = Callable[[int], np.ndarray]
Batch = tuple[Tensor, Tensor]

FIELDS = {
    "linear_regression": ("x", "y"),
    "mlp": ("image", "label"),
    "cnn": ("image", "label"),
    "lstm": ("sequence", "label"),
    "transformer": ("tokens", "targets"),
}
HEADS, LAYERS = 4, 4


class LinearRegression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class PointwiseRegression(LinearRegression):
    """Without BLAS, which costs more than its four products, and which Inductor cannot fuse."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.linear.weight).sum(1, keepdim=True) + self.linear.bias


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense1 = nn.Linear(784, 256)
        self.dense2 = nn.Linear(256, 128)
        self.logits = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.dense1(image.flatten(1)))
        x = F.relu(self.dense2(x))
        return self.logits(x)


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense1 = nn.Linear(3136, 128)
        self.logits = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(image)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.dense1(x.flatten(1)))
        return self.logits(x)


class LateReluCNN(CNN):
    """The ReLU after the maximum: the same, of a quarter of the values."""

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(image), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.dense1(x.flatten(1)))
        return self.logits(x)


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm1 = nn.LSTM(128, 128, batch_first=True)
        # PyTorch has two biases that are added: only one of them may learn.
        nn.init.zeros_(self.lstm1.bias_hh_l0).requires_grad_(requires_grad=False)
        self.logits = nn.Linear(128, 10)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.logits(self.lstm1(sequence)[0][:, -1])


class Recurrence(torch.autograd.Function):
    """An LSTM's last state, written out step by step so that Inductor fuses what lies between the products.

    The gradients of the kernels are one product each over all steps; oneDNN's also computes the input's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
        n, steps, _ = x.shape
        x = x.transpose(0, 1).flatten(0, 1)
        inputs = torch.addmm(bias, x, kernel.T).view(steps, n, -1)
        h = c = x.new_zeros(n, 128)
        states, saved = [], []
        for z in inputs:
            states.append(h)
            i, f, g, o = (z + h @ recurrent.T).chunk(4, 1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            before, c = c, f * c + i * g
            squashed = c.tanh()
            saved += [i, f, g, o, before, squashed]
            h = o * squashed
        ctx.save_for_backward(x, recurrent, torch.cat(states), *saved)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, recurrent, states, *saved = ctx.saved_tensors
        dc, rows = torch.zeros_like(dh), []
        while saved:
            i, f, g, o, before, squashed = saved[-6:]
            del saved[-6:]
            dc = dc + dh * o * (1 - squashed * squashed)
            gates = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dh * squashed * o * (1 - o)
            rows.append(torch.cat(gates, 1))
            dh, dc = rows[-1] @ recurrent, dc * f
        dz = torch.cat(rows[::-1])
        return None, dz.T @ x, dz.T @ states, dz.sum(0)


class UnrolledLSTM(LSTM):
    def forward(self, sequence: Tensor) -> Tensor:
        cell = self.lstm1
        return self.logits(Recurrence.apply(sequence, cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(128)
        self.qkv = nn.Linear(128, 3 * 128)
        self.out = nn.Linear(128, 128)
        self.norm2 = nn.LayerNorm(128)
        self.dense1 = nn.Linear(128, 512)
        self.dense2 = nn.Linear(512, 128)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # N, heads, T, C / heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.dense2(F.gelu(self.dense1(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 128)
        self.positions1 = nn.Parameter(torch.zeros(64, 128))
        for i in range(1, LAYERS + 1):
            self.add_module(f"decoder_block{i}", Block())
        self.norm1 = nn.LayerNorm(128)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions1
        for i in range(1, LAYERS + 1):
            x = self.get_submodule(f"decoder_block{i}")(x)
        return F.linear(self.norm1(x), self.embed.weight)


MODELS = {"linear_regression": LinearRegression, "mlp": MLP, "cnn": CNN, "lstm": LSTM, "transformer": Transformer}


def loss_of(network: str, outputs: Tensor, y: Tensor) -> Tensor:
    if network == "linear_regression":
        return F.mse_loss(outputs, y)
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


def to_torch(name: str, arrays: Arrays) -> np.ndarray:
    """A parameter by PyTorch's name, from the canonical arrays."""
    layer, _, kind = name.rpartition(".")
    if name.endswith("bias_hh_l0"):
        return np.zeros(512, np.float32)
    if "_l0" in name:
        canonical = {"weight_ih_l0": "kernel", "weight_hh_l0": "recurrent", "bias_ih_l0": "bias"}[kind]
        return arrays[f"{layer}.{canonical}"].T
    if name == "positions1":
        return arrays["positions1.embedding"]
    if layer == "embed":
        return arrays["embed.embedding"]
    kind = {"weight": "kernel"}.get(kind, kind)
    block, _, leaf = layer.rpartition(".")
    if leaf == "qkv":
        return np.concatenate([arrays[f"{block}.attention1.{part}_{kind}"].T for part in ("query", "key", "value")])
    if leaf == "out":
        return arrays[f"{block}.attention1.out_{kind}"].T
    if f"{layer}.{kind}" not in arrays:
        kind = "scale"
    array = arrays[f"{layer}.{kind}"]
    if array.ndim == 4:  # noqa: PLR2004 - HWIO to OIHW
        return array.transpose(3, 2, 0, 1)
    if len(array) == 3136:  # noqa: PLR2004 - flattened as HWC in the spec, as CHW here
        return array.reshape(7, 7, 64, 128).transpose(3, 2, 0, 1).reshape(128, 3136)
    return array.T


def build(network: str, run: Path, cls: type[nn.Module] | None = None) -> tuple[nn.Module, list[Batch]]:
    """The model with the run's initial parameters, and its first batches."""
    inputs = run / "inputs"
    data, order = load_file(inputs / "data.safetensors"), load_file(inputs / "batches.safetensors")["order"][:8]
    arrays = load_file(inputs / "parameters.safetensors")
    model = (cls or MODELS[network])()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(to_torch(name, arrays).copy()))
    x, y = (torch.from_numpy(data[f"train.{field}"]) for field in FIELDS[network])
    x = x.reshape(-1, 1, 28, 28) if network == "cnn" else x
    x, y = (t if t.is_floating_point() else t.long() for t in (x, y))
    return model, [(x[rows], y[rows]) for rows in order]


# Strategies


def everyday(network: str, run: Path) -> Train:
    """As in PyTorch's quickstart."""
    torch.set_num_threads(1)
    model, batches = build(network, run)
    x, y = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=len(batches[0][0]), shuffle=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.SGD(parameters, lr=0.01)
        if network == "linear_regression"
        else torch.optim.Adam(parameters, lr=0.001)
    )

    def epochs() -> Iterator[Batch]:
        while True:
            yield from loader

    stream = epochs()

    def train(steps: int) -> np.ndarray:
        losses = []
        for _ in range(steps):
            x, y = next(stream)
            loss = loss_of(network, model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses, np.float32)

    return chunked(train, 1)


def eager(network: str, run: Path, cls: type[nn.Module] | None = None) -> Train:
    """The fused update called directly, gradients without `.grad`, losses fetched once."""
    settle()
    model, batches = build(network, run, cls)
    if network == "cnn":
        model = model.to(memory_format=torch.channels_last)
        batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    weights = [p for p in model.parameters() if p.requires_grad]
    plain = [w.detach() for w in weights]
    first, second = ([torch.zeros_like(w) for w in plain] for _ in range(2))
    counts = [torch.zeros(()) for _ in plain]

    def update(gradients: tuple[Tensor, ...]) -> None:
        if network == "linear_regression":
            torch._foreach_add_(plain, gradients, alpha=-0.01)
            return
        torch._foreach_add_(counts, 1)
        # It takes each array's memory as it lies: a gradient's strides must be its parameter's, as they are here.
        torch._fused_adam_(
            plain, gradients, first, second, [], counts, lr=0.001, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    done = 0

    def train(steps: int) -> np.ndarray:
        nonlocal done
        losses = []
        for step in range(done, done + steps):
            x, y = batches[step % len(batches)]
            loss = loss_of(network, model(x), y)
            update(torch.autograd.grad(loss, weights))
            losses.append(loss.detach())
        done += steps
        return torch.stack(losses).numpy()

    return chunked(train, 1)


def whole(network: str, run: Path, cls: type[nn.Module] | None = None) -> Train:
    """The whole step, gradient and Adam in place, as one graph without autograd."""
    settle()
    model, batches = build(network, run, cls)
    names, weights = named_weights(model)
    count = len(names)
    state = [*weights, *(torch.zeros_like(w) for _ in range(2) for w in weights)]

    def step(x: Tensor, y: Tensor, rate: Tensor, correction: Tensor, *state: Tensor) -> tuple[Tensor]:
        weights, first, second = state[:count], state[count : 2 * count], state[2 * count :]
        loss, gradients = differentiate(network, model, names, weights, x, y)
        for w, m, v, g in zip(weights, first, second, gradients, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            w.sub_(rate * m / (v.sqrt() / correction + 1e-8))
        return (loss,)

    call = compiled(step, [*batches[0], torch.ones(()), torch.ones(()), *state])
    done = 0

    def train(steps: int) -> np.ndarray:
        nonlocal done
        t = np.arange(done + 1, done + steps + 1, dtype=np.float64)
        rates, corrections = (
            torch.from_numpy(a.astype(np.float32)).unbind() for a in (0.001 / (1 - 0.9**t), np.sqrt(1 - 0.999**t))
        )
        losses = []
        for i in range(steps):
            losses += call([*batches[(done + i) % len(batches)], rates[i], corrections[i], *state])
        done += steps
        return torch.stack(losses).numpy()

    return chunked(train, 1)


def regression(run: Path, chunk: int) -> Train:
    """Linear regression by SGD as one graph, of several steps where a call costs more than its step."""
    settle()
    model, batches = build("linear_regression", run, PointwiseRegression)
    names, state = named_weights(model)
    chunk = max(1, chunk // len(batches)) * len(batches) if chunk > 1 else 1

    def steps_of(x: Tensor, y: Tensor, *state: Tensor) -> tuple[Tensor]:
        weights, losses = list(state), []
        for i in range(len(x)):
            loss, gradients = differentiate("linear_regression", model, names, weights, x[i], y[i])
            # Not add(alpha=): Inductor of PyTorch 2.13 loses the alpha where the gradient is a product of matrices.
            weights = [w - 0.01 * g for w, g in zip(weights, gradients, strict=True)]
            losses.append(loss)
        for old, new in zip(state, weights, strict=True):
            old.copy_(new)
        return (torch.stack(losses),)

    xs, ys = (torch.stack(tensors) for tensors in zip(*batches, strict=True))
    ones = list(zip(xs.split(1), ys.split(1), strict=True))
    many = [tensor.repeat(-(-chunk // len(batches)), 1, 1)[:chunk] for tensor in (xs, ys)]
    one, several = (compiled(steps_of, [*batch, *state], cpp_wrapper=True) for batch in (ones[0], many))
    done = 0

    def train(steps: int) -> np.ndarray:
        nonlocal done
        losses, end = [], done + steps
        while done < end:
            if chunk > 1 and done % len(batches) == 0 and end - done >= chunk:
                losses += several([*many, *state])
                done += chunk
            else:
                losses += one([*ones[done % len(ones)], *state])
                done += 1
        return torch.cat(losses).numpy()

    return chunked(train, chunk)


def named_weights(model: nn.Module) -> tuple[list[str], list[Tensor]]:
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return list(learned), list(learned.values())


def differentiate(
    network: str, model: nn.Module, names: list[str], weights: Sequence[Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss and its gradient by those weights."""
    leaves = [w.detach().requires_grad_() for w in weights]
    outputs = torch.func.functional_call(model, dict(zip(names, leaves, strict=True)), (x,))
    loss = loss_of(network, outputs, y)
    return loss.detach(), torch.autograd.grad(loss, leaves)


def compiled(
    step: Callable[..., tuple[Tensor]], arguments: list[Tensor], *, cpp_wrapper: bool = False
) -> Callable[[list[Tensor]], tuple[Tensor]]:
    """By Inductor's inner entry: what torch.compile puts around it costs more than linear regression does.

    `cpp_wrapper`: what allocates between the kernels is C++ too.
    """
    arguments = [a.clone() for a in arguments]
    graph = make_fx(step)(*arguments)
    graph = make_fx(torch.func.functionalize(graph, remove="mutations"), select_decomp_table())(*arguments)
    return compile_fx_inner(graph, arguments, cpp_wrapper=cpp_wrapper)


def settle() -> None:
    """One thread, and memory kept: glibc gives large arrays back, and their pages cost a fault each the next time."""
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def chunked(train: Train, chunk: int) -> Train:
    train.chunk = chunk  # type: ignore[attr-defined]
    return train


PEERS: dict[str, dict[str, Callable[[Path], Train]]] = {
    network: {
        "everyday": partial(everyday, network),
        "eager": partial(eager, network),
        "whole": partial(whole, network),
    }
    for network in MODELS
}
PEERS["linear_regression"] |= {"whole": partial(regression, chunk=1), "unrolled": partial(regression, chunk=48)}
# Inductor is slower here: it writes the gradient of a maximum as a scatter, one value at a time.
PEERS["cnn"] = {"everyday": partial(everyday, "cnn"), "eager": partial(eager, "cnn", cls=LateReluCNN)}
PEERS["lstm"]["whole"] = partial(whole, "lstm", cls=UnrolledLSTM)
