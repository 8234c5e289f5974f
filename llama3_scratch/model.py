"""Llama 3 as modules, top to bottom. They hold the weights; the arithmetic is that of `functional`.

Every parameter has the name that it has in Meta's files, so `load_state_dict` is all it takes to load one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .cache import KVCache
from .checks import check_attention_mask, check_length, check_tokens
from .messages import expect
from .padding import positions_and_mask
from .params import ModelArgs


class Llama(nn.Module):
    """The whole model: token ids -> scores for the token that comes next, at every position.

    `Llama(params)` has random weights, to be trained; with `tied`, one matrix serves at both ends.
    """

    def __init__(self, params: ModelArgs, tied: bool = False) -> None:
        super().__init__()
        expect(params, ModelArgs, "params must be ModelArgs; Llama.from_checkpoint takes a checkpoint")
        self.params = params
        self.tok_embeddings = nn.Embedding(params.vocab_size, params.dim)
        self.layers = nn.ModuleList(TransformerBlock(params) for _ in range(params.n_layers))
        self.norm = RMSNorm(params.dim, params.norm_eps)
        self.output = Linear(params.dim, params.vocab_size, bias=False)
        if tied:
            self.output.weight = self.tok_embeddings.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal numbers of deviation 0.02, as in Hugging Face's Llama; in wo and w2, which write to the stream, less
        by 1 / sqrt(2 n_layers), so that it does not grow with the depth, as in GPT-2. They follow torch.manual_seed.
        """
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and not weight.is_meta:
                writes = name.endswith(("wo.weight", "w2.weight"))
                std = 0.02 * (2 * self.params.n_layers) ** -0.5 if writes else 0.02
                # Drawn in float64: torch's float32 ones differ between kinds of CPU.
                weight.copy_(torch.randn_like(weight, dtype=torch.float64) * std)

    def forward(
        self,
        tokens: Sequence[int] | Tensor,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Token ids [batch, seq] -> float32 logits [batch, seq, vocab]; a single prompt [seq] -> [seq, vocab].
        cache: the tokens continue what it holds, and are added to it.
        attention_mask: [batch, seq], 1 for tokens and 0 for the padding that fills up shorter prompts, on either side
            (`padding.pad` makes both). Nobody looks at padding, and it takes no position; its logits mean nothing.
        last_only: the logits of the last position alone, [batch, 1, vocab] or [1, vocab].

        Raises ValueError for no tokens, an id outside the vocabulary, a cache of other shapes, or more tokens than it
        or the model takes; TypeError for ids that are not integers.
        """
        expect(cache, KVCache | None, "cache must be a KVCache")
        tokens = check_tokens(tokens, self.params.vocab_size).to(self.device)
        is_token = check_attention_mask(attention_mask, tokens)
        *batch, seq = tokens.shape
        start_pos = 0 if cache is None else cache.length
        check_length(start_pos + seq, self.params.context_len)
        h = self.tok_embeddings(tokens.reshape(-1, seq))  # [batch, seq, dim]
        if cache is not None:
            is_token = cache.update_mask(self.params, h, is_token)
        positions, mask = positions_and_mask(start_pos, h, is_token)
        freqs_cis = functional.rotations(self.params, positions)  # [seq, head_dim / 2], or [batch, seq, head_dim / 2]
        for i, layer in enumerate(self.layers):
            h = layer(h, freqs_cis, mask, None if cache is None else cache.layer(i, start_pos + seq))
        if cache is not None:
            cache.length = start_pos + seq
        h = self.norm(h[:, -1:] if last_only else h)
        logits: Tensor = self.output(h).float().view(*batch, h.shape[1], -1)
        return logits

    @property
    def device(self) -> torch.device:
        return self.tok_embeddings.weight.device

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Any = None, dtype: Any = None, device: Any = None, quantize: Any = None, keep: bool = False
    ) -> "Llama":
        """The model of a `Checkpoint`, or of what `load_checkpoint` finds under that name, folder or nothing.

        Nothing is copied: the parameters are the tensors of the checkpoint, on the memory map. Another `dtype` or
        `device` makes copies, and so do parts that are stored in another order (shards, wq and wk of Hugging Face
        folders). All can be trained: the file never changes, but `checkpoint.weights`, the same memory, do. (Limits of
        files over 4 GiB: loading/README.md.)
        quantize: "int8", or "int4" (both ends in 8), packed one matrix at a time, to be used, not trained. keep: the
            result is written beside the file, and mapped by the next call.
        """
        from .loading.checkpoint import load_model  # the door to files

        return load_model(cls, checkpoint, dtype, device, quantize, keep)


class TransformerBlock(nn.Module):
    """One layer, [batch, seq, dim] -> the same."""

    def __init__(self, params: ModelArgs) -> None:
        super().__init__()
        self.attention = Attention(params)
        self.feed_forward = FeedForward(params)
        self.attention_norm = RMSNorm(params.dim, params.norm_eps)
        self.ffn_norm = RMSNorm(params.dim, params.norm_eps)

    def forward(
        self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None, cache: functional.Cache | None = None
    ) -> Tensor:
        attention = partial(self.attention, freqs_cis=freqs_cis, mask=mask, cache=cache)
        return functional.residual_block(x, self.attention_norm, attention, self.ffn_norm, self.feed_forward)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, [batch, seq, dim] -> the same."""

    def __init__(self, params: ModelArgs) -> None:
        super().__init__()
        self.head_dim = params.head_dim
        q_dim, kv_dim = params.n_heads * params.head_dim, params.n_kv_heads * params.head_dim
        self.wq = Linear(params.dim, q_dim, bias=False)
        self.wk = Linear(params.dim, kv_dim, bias=False)
        self.wv = Linear(params.dim, kv_dim, bias=False)
        self.wo = Linear(q_dim, params.dim, bias=False)

    def forward(
        self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None, cache: functional.Cache | None = None
    ) -> Tensor:
        matrices = self.wq, self.wk, self.wv, self.wo
        return functional.attention(x, *matrices, freqs_cis, mask, self.head_dim, cache)


class FeedForward(nn.Module):
    """SwiGLU, [batch, seq, dim] -> the same: a layer of `hidden_dim` neurons, each with a gate."""

    def __init__(self, params: ModelArgs) -> None:
        super().__init__()
        self.w1 = Linear(params.dim, params.hidden_dim, bias=False)
        self.w2 = Linear(params.hidden_dim, params.dim, bias=False)
        self.w3 = Linear(params.dim, params.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.feed_forward(x, self.w1, self.w2, self.w3)


class RMSNorm(nn.Module):
    """Each vector divided by its root mean square, then scaled in each dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight, self.eps)


class Linear(nn.Linear):
    """[..., in] -> [..., out], as torch's, but for the way to the product: kernels.py."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)
