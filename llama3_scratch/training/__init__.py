"""Training: from random numbers to a model that predicts. The loss, the batches, the schedule, the steps.

All of it is plain torch; AdamW and the clipping of gradients are torch's own. Notebook 17 builds each by hand.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_settings, check_training_ids
from ..messages import progress
from .memory import memory
from .text import bits_per_byte, read_text, split

__all__ = [
    "Settings",
    "Step",
    "batch",
    "bits_per_byte",
    "held_out",
    "learning_rate",
    "loss",
    "memory",
    "optimizer",
    "parameter_groups",
    "read_text",
    "split",
    "train",
    "update",
]


@dataclass(frozen=True)
class Settings:
    """How to train. The defaults suit a model of a few hundred thousand numbers and a book.

    Raises ValueError, naming the field, for a value that makes no sense.
    """

    steps: int = 300
    batch_size: int = 16  # texts side by side
    seq_len: int = 64  # tokens that each of them predicts
    learning_rate: float = 4e-3  # at its height, after the warm-up
    warmup: int = 20  # steps
    final_rate: float = 0.1  # the last step's, as a part of learning_rate
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's two averages: of gradients, and of their squares
    weight_decay: float = 0.1
    clip: float = 1.0  # the longest gradient, all parameters together
    seed: int = 0  # of the batches

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Step:
    """What one step was: its number, from 0, the loss of its batch in nats a token before it, the length of the
    gradient before clipping, and the learning rate.
    """

    step: int
    loss: float
    gradient_norm: float
    rate: float


def batch(ids: Tensor, step: int, settings: Settings) -> Tensor:
    """The batch of one step: windows of a text's ids [tokens], at random places -> [batch_size, seq_len + 1].

    The places follow from the seed and the number of the step alone, on every machine (with the same numpy). So a run
    that was interrupted has nothing to remember of them.
    """
    check_training_ids(ids, settings.seq_len)
    rng = np.random.default_rng([settings.seed, step])
    starts = torch.from_numpy(rng.integers(len(ids) - settings.seq_len, size=settings.batch_size))
    return ids[starts[:, None] + torch.arange(settings.seq_len + 1)]


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of every token but the first, predicted from those before it: [batch, seq] -> []."""
    logits = model(tokens[:, :-1])  # [batch, seq - 1, vocab]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def learning_rate(step: int, settings: Settings) -> float:
    """The rate of a step, from 0: up in a straight line, then down along half a cosine to its last part.

    The shape is that of SGDR's half period (Loshchilov & Hutter 2016, arXiv:1608.03983), with a warm-up before it. The
    first step has a rate already, 1 / warmup of the highest, and the last one has the lowest of the way down.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    way = (step + 1 - settings.warmup) / max(1, settings.steps - settings.warmup)  # 0 at the top, 1 at the last step
    height = (1 + math.cos(math.pi * min(way, 1.0))) / 2  # from 1 to 0
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * height)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """For an optimizer: matrices are pulled towards zero by weight decay, vectors, the gains of the norms, are not.

    A matrix that serves twice comes once; what is frozen does not come.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """torch's AdamW over the parameters that can be trained (Loshchilov & Hutter 2017, arXiv:1711.05101).

    Fused: one kernel moves a whole group of parameters, where torch would else call a dozen.
    """
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def update(
    model: nn.Module, opt: torch.optim.Optimizer, tokens: Tensor, rate: float, clip: float
) -> tuple[float, float]:
    """One step on tokens [batch, seq]: the loss before it, and the length of the gradient before clipping.

    Raises ValueError, and leaves the model as it was, where one of the two is no longer a number.
    """
    opt.zero_grad()
    found = loss(model, tokens)
    found.backward()
    trained = [p for group in opt.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(trained, clip)
    if not (found.isfinite() and norm.isfinite()):
        raise ValueError(f"the loss is {found.item()}, its gradient {norm.item()}: try a lower learning rate")
    for group in opt.param_groups:
        group["lr"] = rate
    opt.step()
    return found.item(), norm.item()


def train(
    model: nn.Module,
    ids: Tensor | Sequence[int],
    settings: Settings,
    opt: torch.optim.Optimizer | None = None,
    first: int = 0,
) -> Iterator[Step]:
    """Train a model on a text's ids, step by step; each is told when it is done.

    To go on in the middle, give the optimizer with its state, and the number of the first step. Raises ValueError
    where the loss stops being a number.
    """
    text = torch.as_tensor(ids)
    opt = optimizer(model, settings) if opt is None else opt
    for step in progress(range(first, settings.steps), "training", "step"):
        rate = learning_rate(step, settings)
        try:
            found, norm = update(model, opt, batch(text, step, settings), rate, settings.clip)
        except ValueError as e:
            raise ValueError(f"step {step}: {e}") from e
        yield Step(step, found, norm, rate)


@torch.no_grad()
def held_out(model: nn.Module, ids: Tensor | Sequence[int], seq_len: int, batch_size: int = 64) -> float:
    """Mean loss, in nats a token, on a text that was not trained on: windows of seq_len, one beside the other.

    Each token after the text's first is predicted once, from those before it in its window.
    """
    text = torch.as_tensor(ids)
    check_training_ids(text, 1)
    total, count = 0.0, len(text) - 1
    whole = count // seq_len
    windows = text[: whole * seq_len + 1].unfold(0, seq_len + 1, seq_len) if whole else text[:0].view(0, seq_len + 1)
    parts = [*windows.split(batch_size), text[None, whole * seq_len :]]  # what is left over is a shorter one
    for part in parts:
        if part.shape[0] and part.shape[1] > 1:
            total += loss(model, part).item() * part[:, 1:].numel()
    return total / count
