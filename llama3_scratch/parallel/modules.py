"""The modules that stand in the places of others where a model is one of several parts.

Tensor parallel (Shoeybi et al. 2019, arXiv:1909.08053, section 3): `wo` and `w2` add up, both ends split the
vocabulary, and all other matrices are only smaller. Pipeline: the first module of a part takes over what the part
before it has made, the last block hands its own on.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..model import Linear, Llama, TransformerBlock
from . import group
from .split import PartArgs, share


class SummedLinear(Linear):
    """`wo` or `w2`: [..., own share of in] -> [..., out]. Here partial results are added."""

    def forward(self, x: Tensor) -> Tensor:
        return group.add_up(super().forward(x))


class SplitEmbedding(nn.Module):
    """`tok_embeddings`: ids [batch, seq] -> [batch, seq, dim]. Each process looks up the rows that it has and has zeros
    for the others; the sum is exact.
    """

    def __init__(self, first: int, count: int, dim: int) -> None:
        super().__init__()
        self.first = first
        self.weight = nn.Parameter(torch.empty(count, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        group.check_same(tokens)
        here = tokens - self.first
        known = (here >= 0) & (here < len(self.weight))
        return group.add_up(F.embedding(here.where(known, 0), self.weight) * known[..., None])


class GatheredLinear(Linear):
    """`output`: [..., dim] -> [..., vocab]. Each process has the logits of its share of the vocabulary, and all get
    all.
    """

    lengths: list[int]  # each process's share

    def forward(self, x: Tensor) -> Tensor:
        return group.gather(super().forward(x), self.lengths)


class TakenOver(nn.Module):
    """In the place of `tok_embeddings`, in every part of a pipeline but the first: what the part before has made,
    [batch, seq, dim].
    """

    weight: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dim), persistent=False)  # for its type and device

    def forward(self, tokens: Tensor) -> Tensor:
        group.check_same(tokens)
        return group.take_over((*tokens.shape, self.weight.shape[1]), self.weight)


class FirstEmbedding(nn.Embedding):
    """`tok_embeddings` in the first part of a pipeline."""

    def forward(self, tokens: Tensor) -> Tensor:
        group.check_same(tokens)
        return super().forward(tokens)


class HandsOn(TransformerBlock):
    """A part's last block, after which the stream goes to the next process."""

    def forward(
        self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None, cache: functional.Cache | None = None
    ) -> Tensor:
        x = super().forward(x, freqs_cis, mask, cache)
        group.pass_on(x)
        return x


class SharedLinear(Linear):
    """`output` in a pipeline: the last process computes the logits, [..., vocab], and everybody gets them."""

    def forward(self, x: Tensor) -> Tensor:
        return group.share_out(super().forward(x).contiguous(), group.size() - 1)


class AwaitedLogits(nn.Module):
    """The same in the other processes, which wait for them."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, x: Tensor) -> Tensor:
        return group.share_out(x.new_empty(*x.shape[:-1], self.vocab_size), group.size() - 1)


def empty_part(part: PartArgs) -> Llama:
    """A `Llama` of the part's sizes, with these modules in their places, and weights that are not there yet."""
    model: Any = Llama(part)
    layers, dim, vocab = model.layers, part.dim, part.vocab_size
    if part.how == "tensor":
        first, end = part.tokens
        model.tok_embeddings = SplitEmbedding(first, end - first, dim)
        for layer in layers:
            layer.attention.wo = SummedLinear(layer.attention.wo.in_features, dim, bias=False)
            layer.feed_forward.w2 = SummedLinear(layer.feed_forward.w2.in_features, dim, bias=False)
        model.output = GatheredLinear(dim, end - first, bias=False)
        shares = (share(vocab, rank, part.size) for rank in range(part.size))
        model.output.lengths = [end - first for first, end in shares]
        return model  # type: ignore[no-any-return]
    is_first, is_last = part.rank == 0, part.rank == part.size - 1
    model.tok_embeddings = FirstEmbedding(vocab, dim) if is_first else TakenOver(dim)
    model.output = SharedLinear(dim, vocab, bias=False) if is_last else AwaitedLogits(vocab)
    if not is_last:
        layers[-1] = HandsOn(part)
        model.norm = nn.Identity()
    return model  # type: ignore[no-any-return]
