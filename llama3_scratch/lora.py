"""LoRA: a few numbers beside a matrix learn, and the matrix stays as it is (Hu et al. 2021, arXiv:2106.09685).

W x becomes W x + alpha / rank * B A x. What was learned, A and B, is written in the layout of Hugging Face's peft.
"""

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_layers, check_lora
from .model import Llama

MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


class LoRA(nn.Module):
    """A linear layer that stays as it is, and a product of two thin matrices beside it: [..., in] -> [..., out].

    A, [rank, in], is random, in the spread that torch gives a linear layer's numbers, and follows torch.manual_seed; B,
    [out, rank], is zero. So at first nothing is added, and B has a gradient. alpha is `rank` unless it is said, which
    makes the factor 1.
    """

    def __init__(self, linear: nn.Module, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        weight: Any = getattr(linear, "weight", None)
        check_lora(rank, alpha, weight)
        out_features, in_features = weight.shape
        self.linear = linear
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        # In float32, also beside 16 bits, in which small steps would vanish. Drawn in float64: see Llama.init_weights.
        uniform = torch.rand(rank, in_features, dtype=torch.float64) * 2 - 1
        self.A = nn.Parameter((uniform / math.sqrt(in_features)).float().to(weight.device))
        self.B = nn.Parameter(torch.zeros(out_features, rank, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        added = F.linear(F.linear(x.to(self.A.dtype), self.A), self.B) * (self.alpha / self.rank)
        y: Tensor = self.linear(x)
        return y + added.to(y.dtype)

    def product(self) -> Tensor:
        """What is added to the matrix: alpha / rank * B A, [out, in]."""
        return self.B @ self.A * (self.alpha / self.rank)


def add(
    model: Llama,
    rank: int,
    names: Collection[str] = ("wq", "wv"),
    layers: Iterable[int] | None = None,
    alpha: float | None = None,
) -> list[nn.Parameter]:
    """Put a LoRA in the place of these matrices, in these layers or in all, and freeze everything else. Returns what
    learns. Raises ValueError for names that are none, and where there is one already.
    """
    places = _places(model, names, layers)
    if taken := [name for name, linear in places.items() if isinstance(linear, LoRA)]:
        raise ValueError(f"{taken[0]} has an adapter already: merge it or remove it first")
    new = {name: LoRA(linear, rank, alpha) for name, linear in places.items()}  # all, or none
    model.requires_grad_(False)
    for name, adapter in new.items():
        _put(model, name, adapter)
    return [p for adapter in new.values() for p in (adapter.A, adapter.B)]


def adapters(model: Llama) -> dict[str, LoRA]:
    """The adapters of a model, by the names of their places: layers.3.attention.wq, ..."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRA)}


@torch.no_grad()
def merge(model: Llama) -> None:
    """Add what was learned to the matrices themselves, and take the adapters away: from now on it costs nothing.

    The matrices change in place, and with them the checkpoint and every model that shares them. To undo it, subtract
    the products, which rounds, or keep what was there before.
    """
    for name, adapter in adapters(model).items():
        weight: Any = adapter.linear.weight
        weight.data.copy_(weight.float() + adapter.product())  # rounded once, where it has 16 bits
        _put(model, name, adapter.linear)


def remove(model: Llama) -> None:
    """Take the adapters away, and what they learned. Everything stays frozen."""
    for name, adapter in adapters(model).items():
        _put(model, name, adapter.linear)


def save(model: Llama, folder: str | Path) -> Path:
    """Write the adapters of a model into a folder that is not there yet, as peft does, and return it. It appears when
    it is complete. Raises ValueError for a model without adapters, CheckpointError where the folder is there already.
    """
    from .loading.adapter import write_adapter  # the door to files

    return write_adapter(adapters(model), model.params, Path(folder).expanduser())


def load(model: Llama, folder: str | Path) -> None:
    """Put the adapters in a folder of peft's layout into a model that has none, and freeze everything else.

    Raises CheckpointError, naming the file and the key, for what does not fit the model, and for what is not plain
    LoRA on the matrices of the layers.
    """
    from .loading.adapter import read_adapter  # the door to files

    if taken := list(adapters(model)):
        raise ValueError(f"{taken[0]} has an adapter already: merge it or remove it first")
    new = {}  # all, or none
    for name, (a, b, alpha) in read_adapter(Path(folder).expanduser(), model.params).items():
        new[name] = LoRA(model.get_submodule(name), len(a), alpha)
        new[name].A.data.copy_(a)
        new[name].B.data.copy_(b)
    model.requires_grad_(False)
    for name, adapter in new.items():
        _put(model, name, adapter)


def _places(model: Llama, names: Collection[str], layers: Iterable[int] | None) -> dict[str, nn.Module]:
    """The modules of the matrices that are named, by their full names."""
    if isinstance(names, str) or not names or not set(names) <= set(MATRICES):
        raise ValueError(f"names must be some of {', '.join(MATRICES)}")
    every = range(model.params.n_layers)
    numbers = list(every) if layers is None else check_layers(layers, model.params.n_layers)
    of = [f"{'attention' if matrix in MATRICES[:4] else 'feed_forward'}.{matrix}" for matrix in names]
    return {name: model.get_submodule(name) for name in (f"layers.{i}.{place}" for i in numbers for place in of)}


def _put(model: Llama, name: str, module: nn.Module) -> None:
    parent, _, matrix = name.rpartition(".")
    setattr(model.get_submodule(parent), matrix, module)
