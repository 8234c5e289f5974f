"""Llama 3 as modules, top to bottom. They hold the weights; the arithmetic is that of `functional`.

Every parameter has the name that it has in Meta's files, so `load_state_dict` is all it takes to load one.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import functional
from .checkpoint import Checkpoint, check_dtype_and_device, is_tied, load_checkpoint
from .messages import expect, is_whole, short
from .params import ModelArgs


class Llama(nn.Module):
    """The whole model: token ids -> scores for the token that comes next, at every position."""

    def __init__(self, params: ModelArgs):
        super().__init__()
        expect(params, ModelArgs, "params must be ModelArgs; Llama.from_checkpoint takes a checkpoint")
        self.params = params
        self.tok_embeddings = nn.Embedding(params.vocab_size, params.dim)
        self.layers = nn.ModuleList(TransformerBlock(params) for _ in range(params.n_layers))
        self.norm = RMSNorm(params.dim, params.norm_eps)
        self.output = nn.Linear(params.dim, params.vocab_size, bias=False)

    def forward(
        self,
        tokens: Sequence[int] | Tensor,
        cache: "KVCache | None" = None,
        attention_mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Token ids [batch, seq] -> float32 logits [batch, seq, vocab]; a single text [seq] -> [seq, vocab].

        cache: the tokens continue what it holds, and are added to it.
        attention_mask: [batch, seq], 1 for tokens and 0 for the padding that fills up shorter texts, on either side
            (`pad` makes both). Nobody looks at padding, and it takes no position; its own logits mean nothing.
        last_only: the logits of the last position alone, [batch, 1, vocab] or [1, vocab].

        Raises ValueError for an empty sequence, lists of unequal length (see `pad`), an id outside the vocabulary, a
        cache that was made for other shapes, or more tokens than it or the model takes; TypeError for ids that are not
        integers. Weights that are not numbers give logits that are not.
        """
        tokens = functional.check_tokens(tokens, self.params.vocab_size).to(self.device)
        if attention_mask is not None:
            _check_attention_mask(attention_mask, tokens)
        expect(cache, KVCache | None, "cache must be a KVCache")
        *batch, seq = tokens.shape
        functional.check_length(seq + (0 if cache is None else cache.length), self.params)
        h = self.tok_embeddings(tokens.reshape(-1, seq))  # [batch, seq, dim]
        start_pos = 0 if cache is None else cache.length
        if attention_mask is not None:
            attention_mask = attention_mask.reshape(-1, seq)
        if cache is not None:
            attention_mask = cache.make_room(self.params, h, attention_mask)
        positions, mask = _positions_and_mask(start_pos, h, attention_mask)
        freqs_cis = functional.rotations(self.params, positions)
        for i, layer in enumerate(self.layers):
            h = layer(h, freqs_cis, mask, None if cache is None else cache.layer(i, start_pos + seq))
        if cache is not None:
            cache.length = start_pos + seq
        h = self.norm(h[:, -1:] if last_only else h)
        return functional.linear(h, self.output.weight).float().view(*batch, h.shape[1], -1)

    @property
    def device(self) -> torch.device:
        return self.tok_embeddings.weight.device

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint | str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "Llama":
        """The model of a checkpoint, or of what `load_checkpoint` finds under that name, folder or nothing.

        Nothing is copied: the parameters are the tensors of the checkpoint, on the memory map. Another `dtype` or
        `device` makes copies, and so do the parts that are stored in another order (shards, and wq and wk of Hugging
        Face folders). Where input and output embeddings are one matrix, they are one parameter.

        All parameters can be trained, unless they lie in a file that is mapped read-only (over 4 GiB). The file never
        changes; `checkpoint.weights`, being the same memory, do: load it again for the original.
        """
        check_dtype_and_device(dtype, device)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(checkpoint)
        with torch.device("meta"):  # shapes without memory, until the weights take their places
            model = cls(checkpoint.params)
        names = [key for key in model.state_dict() if key in checkpoint.weights]
        weights = {key: checkpoint.weights[key] for key in tqdm(names, desc="weights", delay=2, leave=False)}
        tied = is_tied(weights)
        weights.setdefault("output.weight", weights["tok_embeddings.weight"])
        model.load_state_dict(weights, assign=True)
        if tied:
            model.output.weight = model.tok_embeddings.weight
        model.to(dtype=dtype, device=device)
        copied = model.norm.weight.data_ptr() != weights["norm.weight"].data_ptr()
        return model.requires_grad_(copied or not checkpoint.read_only)


class TransformerBlock(nn.Module):
    """One layer, [batch, seq, dim] -> the same. Each half reads a normalised copy of the residual stream and adds its
    result to the stream.
    """

    def __init__(self, params: ModelArgs):
        super().__init__()
        self.attention = Attention(params)
        self.feed_forward = FeedForward(params)
        self.attention_norm = RMSNorm(params.dim, params.norm_eps)
        self.ffn_norm = RMSNorm(params.dim, params.norm_eps)

    def forward(
        self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None, cache: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        h = x + self.attention(self.attention_norm(x), freqs_cis, mask, cache)
        return h + self.feed_forward(self.ffn_norm(h))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, [batch, seq, dim] -> the same: every group of query heads shares
    one key and value head.
    """

    def __init__(self, params: ModelArgs):
        super().__init__()
        self.head_dim = params.head_dim
        q_dim, kv_dim = params.n_heads * params.head_dim, params.n_kv_heads * params.head_dim
        self.wq = nn.Linear(params.dim, q_dim, bias=False)
        self.wk = nn.Linear(params.dim, kv_dim, bias=False)
        self.wv = nn.Linear(params.dim, kv_dim, bias=False)
        self.wo = nn.Linear(q_dim, params.dim, bias=False)

    def forward(
        self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None, cache: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        weights = (self.wq.weight, self.wk.weight, self.wv.weight, self.wo.weight)
        return functional.attention(x, *weights, freqs_cis, mask, self.head_dim, cache)


class FeedForward(nn.Module):
    """SwiGLU, [batch, seq, dim] -> the same: a layer of `hidden_dim` neurons, each with a gate."""

    def __init__(self, params: ModelArgs):
        super().__init__()
        self.w1 = nn.Linear(params.dim, params.hidden_dim, bias=False)
        self.w2 = nn.Linear(params.hidden_dim, params.dim, bias=False)
        self.w3 = nn.Linear(params.dim, params.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.feed_forward(x, self.w1.weight, self.w2.weight, self.w3.weight)


class RMSNorm(nn.Module):
    """Each vector divided by its root mean square, then scaled in each dimension."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight, self.eps)


class KVCache:
    """The keys and values of all positions so far, in every layer, so that each is computed once.

    keys, values: [n_layers, batch, n_kv_heads, max_seq_len, head_dim]; only KV heads are kept, which is what grouped
    heads are for. `length` positions are in use. `nbytes` is the size of both.
    """

    def __init__(
        self,
        params: ModelArgs,
        batch_size: int,
        max_seq_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        expect(params, ModelArgs, "params must be ModelArgs, those of the model")
        for name, size in (("batch_size", batch_size), ("max_seq_len", max_seq_len)):
            if not is_whole(size) or not 1 <= size < 2**31:
                raise ValueError(f"{name} must be a whole number from 1 on, not {short(size)}")
        check_dtype_and_device(dtype, device)
        shape = (params.n_layers, batch_size, params.n_kv_heads, max_seq_len, params.head_dim)
        try:
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        except RuntimeError as e:  # out of memory
            gigabytes = 2 * math.prod(shape) * torch.empty(0, dtype=dtype).element_size() / 1e9
            raise ValueError(f"there is no room for a cache of {gigabytes:.3g} GB; make max_seq_len smaller") from e
        self.nbytes = self.keys.nbytes + self.values.nbytes
        self.length = 0
        self._attention_mask: Tensor | None = None  # [batch, max_seq_len], once there is padding

    def layer(self, i: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of layer i up to position `end`, [batch, n_kv_heads, end, head_dim]: views, to be filled."""
        return self.keys[i, :, :, :end], self.values[i, :, :, :end]

    def make_room(self, params: ModelArgs, h: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Check that the positions of h, [batch, seq, dim], fit behind those that are here, and return the attention
        mask of all of them, [batch, length + seq].
        """
        batch_size, seq, _ = h.shape
        n_layers, room_for, n_kv_heads, max_seq_len, head_dim = self.keys.shape
        if (n_layers, n_kv_heads, head_dim) != (params.n_layers, params.n_kv_heads, params.head_dim):
            raise ValueError("the cache was made for another model")
        if (self.keys.dtype, self.keys.device) != (h.dtype, h.device):
            made = f"{self.keys.dtype} on {self.keys.device}"
            raise ValueError(f"the cache was made for {made}, the model computes in {h.dtype} on {h.device}")
        if batch_size != room_for:
            raise ValueError(f"{batch_size} texts, but the cache was made for {room_for}")
        if self.length + seq > max_seq_len:
            raise ValueError(f"{self.length} + {seq} tokens, but the cache has room for {max_seq_len}")
        if attention_mask is None and self._attention_mask is None:
            return None
        if self._attention_mask is None:
            self._attention_mask = torch.ones(room_for, max_seq_len, dtype=torch.bool, device=self.keys.device)
        if attention_mask is not None:
            self._attention_mask[:, self.length : self.length + seq] = attention_mask
        return self._attention_mask[:, : self.length + seq]


def pad(texts: Sequence[Sequence[int]], side: str = "left") -> tuple[Tensor, Tensor]:
    """Token ids of several lengths -> tokens and attention_mask, both [batch, longest].

    Padding on the left puts the last tokens side by side, where writing goes on. Raises ValueError for no text, an
    empty one, or another side than "left" and "right"; TypeError for ids that are not integers.
    """
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", not {short(side)}')
    expect(texts, Iterable, "texts must be several lists of ids")
    texts = [functional.check_tokens(ids, vocab_size=2**31) for ids in texts]
    if not texts:
        raise ValueError("no tokens to pad")
    longest = max(map(len, texts))
    tokens, mask = torch.zeros(2, len(texts), longest, dtype=torch.long)
    for row, ids in enumerate(texts):
        used = slice(longest - len(ids), None) if side == "left" else slice(len(ids))
        tokens[row, used] = ids
        mask[row, used] = 1
    return tokens, mask


def _check_attention_mask(attention_mask: Tensor, tokens: Tensor):
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != tokens.shape:
        raise ValueError(f"attention_mask must be a tensor in the shape of the tokens, {list(tokens.shape)}")
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise ValueError("attention_mask must be 1 for tokens and 0 for padding; something else is in it")


def _positions_and_mask(start_pos: int, h: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The position of each token, [seq] or [batch, seq], and what is added to its scores, [..., seq, total] or None."""
    seq = h.shape[1]
    positions = torch.arange(start_pos, start_pos + seq, device=h.device)
    if attention_mask is None and seq == 1:
        return positions, None  # a single token looks at everything before it
    mask = functional.causal_mask(seq, h.dtype, h.device, start_pos)
    if attention_mask is None:
        return positions, mask
    is_token = attention_mask.to(h.device, torch.bool)
    # Padding may look at itself: with nothing to look at, its softmax would be 0 / 0.
    itself = positions[:, None] == torch.arange(start_pos + seq, device=h.device)
    mask = mask.masked_fill(~is_token[:, None, :] & ~itself, -torch.inf)
    return (is_token.cumsum(-1) - 1).clamp(min=0)[:, start_pos:], mask[:, None]
