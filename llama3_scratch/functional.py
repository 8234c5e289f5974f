"""The arithmetic of Llama 3 as pure functions, in the order data flows. The math exists here once.

Shapes are written [batch, seq, dim]; every function also takes any other number of leading dimensions, none included.
The arithmetic runs in the type of the weights. As in Meta's code, three steps are done in float32 and cast back,
because they lose too much in sixteen bits: the norm, the rotation and the softmax.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .checks import check_length, check_logits, check_tokens
from .messages import progress
from .params import ModelArgs

Function = Callable[[Tensor], Tensor]
Weight = Tensor | Function  # a matrix, or a module that holds one
Cache = tuple[Tensor, Tensor]  # keys and values of one layer, each [batch, n_kv_heads, total, head_dim]


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x @ weight.T: [..., in] -> [..., out], for a weight of [out, in] or the module in its place."""
    return kernels.linear(x, weight) if isinstance(weight, Tensor) else weight(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each vector by its root mean square, then scale each dimension: [..., dim] -> [..., dim].

    x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4). Computed in float32.
    """
    wide = at_least_float32(x)
    mean_square = wide.pow(2).mean(-1, keepdim=True)  # [..., 1]
    return (wide * torch.rsqrt(mean_square + eps)).type_as(x) * weight


def precompute_freqs_cis(
    head_dim: int, seq_len: int | Tensor, theta: float = 5e5, scale_factor: float | None = None, *band: float
) -> Tensor:
    """Unit complex numbers that rotate each pair at each position: [seq_len, head_dim / 2], complex64.

    Pair i at position m turns by the angle m / theta^(2i / head_dim), in radians (RoFormer, arXiv:2104.09864,
    equation 15). Instead of a length, `seq_len` may give the positions themselves, [..., seq]. `scale_factor` and
    `band` stretch the slow pairs, as in `apply_scaling`.
    """
    freqs = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # [head_dim / 2], radians per position
    if scale_factor is not None:
        freqs = apply_scaling(freqs, scale_factor, *band)
    positions = torch.arange(seq_len) if isinstance(seq_len, int) else seq_len
    angles = positions[..., None].float() * freqs.to(positions.device)  # [..., seq, head_dim / 2]
    return torch.polar(torch.ones_like(angles), angles)


def rotations(params: ModelArgs, positions: int | Tensor) -> Tensor:
    """`precompute_freqs_cis` with all that params say about rotation."""
    band = params.rope_low_freq_factor, params.rope_high_freq_factor, params.rope_old_context_len
    return precompute_freqs_cis(params.head_dim, positions, params.rope_theta, params.rope_factor, *band)


def apply_scaling(
    freqs: Tensor,
    scale_factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: float = 8192,
) -> Tensor:
    """Slow rotations down for contexts longer than the model was first trained on (Llama 3.1 and later): [pairs].

    Pairs that turn more than `high_freq_factor` times within `old_context_len` positions keep their frequency; those
    that turn less than `low_freq_factor` times are slowed by `scale_factor`; between, a linear blend (llama-models).
    """
    turns = old_context_len * freqs / (2 * math.pi)
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return freqs * (keep + (1 - keep) / scale_factor)


def apply_rotary_emb(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotate queries or keys by their position: [batch, seq, heads, head_dim] -> the same shape.

    Neighbours (0, 1), (2, 3), ... are the real and imaginary parts of one complex number, as in Meta's files
    (Hugging Face pairs i with i + head_dim / 2 instead). `freqs_cis` is [seq, head_dim / 2], or [batch, seq,
    head_dim / 2] where every prompt has positions of its own. Computed in float32.
    """
    pairs = at_least_float32(x).unflatten(-1, (-1, 2))  # [batch, seq, heads, head_dim / 2, 2]
    rotated = torch.view_as_complex(pairs.contiguous()) * freqs_cis[..., None, :]  # the same angle in every head
    return torch.view_as_real(rotated).flatten(-2).type_as(x)


def causal_mask(
    seq_len: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", start_pos: int = 0
) -> Tensor:
    """0 where a position may look (itself and before), -inf above the diagonal: [seq_len, start_pos + seq_len].

    The rows are the `seq_len` positions from `start_pos` on, the columns all positions from 0.
    """
    later = torch.ones(seq_len, start_pos + seq_len, dtype=torch.bool, device=device).triu(start_pos + 1)
    return torch.zeros(later.shape, dtype=dtype, device=device).masked_fill(later, -torch.inf)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + mask) v, step by step (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    q and the result are [batch, heads, seq, head_dim], k and v [batch, n_kv_heads, total, head_dim]. For reading:
    `attention` has torch's call of the same name take these four steps at once, without ever holding all scores.
    """
    k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], dim=-3) for t in (k, v))  # a KV head for each query head
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [batch, heads, seq, total]
    masked = scores if mask is None else scores + mask
    weights = at_least_float32(masked).softmax(-1).type_as(q)  # each row sums to 1
    return weights @ v


def attention(
    x: Tensor,
    wq: Weight,
    wk: Weight,
    wv: Weight,
    wo: Weight,
    freqs_cis: Tensor,
    mask: Tensor | None,
    head_dim: int,
    cache: Cache | None = None,
) -> Tensor:
    """Grouped-query attention with rotary positions: [batch, seq, dim] -> [batch, seq, dim].

    Query head h reads KV head h // (n_heads / n_kv_heads) (Ainslie et al. 2023, arXiv:2305.13245). wq is
    [n_heads * head_dim, dim], wk and wv [n_kv_heads * head_dim, dim], wo [dim, n_heads * head_dim]. `mask`, [seq,
    total] or what broadcasts to [batch, heads, seq, total], is added to the scores. `cache` holds keys and values of
    total positions, each [batch, n_kv_heads, total, head_dim], the last seq of which are written here; or total is seq.
    """
    q, k, v = (linear(x, w).unflatten(-1, (-1, head_dim)) for w in (wq, wk, wv))  # [batch, seq, heads, head_dim]
    q, k = apply_rotary_emb(q, freqs_cis), apply_rotary_emb(k, freqs_cis)
    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))  # [batch, heads, seq, head_dim]
    if cache is not None:
        k, v = update(cache[0], k), update(cache[1], v)  # [batch, n_kv_heads, total, head_dim]
    heads = kernels.attention(q, k, v, mask)  # the four steps above: [batch, heads, seq, head_dim]
    return linear(heads.transpose(-3, -2).flatten(-2), wo)  # all heads side by side, then wo


def update(cached: Tensor, new: Tensor) -> Tensor:
    """Write keys or values [..., seq, head_dim] to the end of `cached`, [..., total, head_dim]; returns all of them.
    Gradients flow through the new ones, not into what was cached before.
    """
    seq = new.shape[-2]
    cached[..., -seq:, :] = new.detach()
    if torch.is_grad_enabled() and new.requires_grad:
        return torch.cat([cached[..., :-seq, :], new], dim=-2)
    return cached


def feed_forward(x: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
    """SwiGLU: w2(silu(w1 x) * w3 x), [batch, seq, dim] -> [batch, seq, dim] (Shazeer 2020, arXiv:2002.05202).

    w1 and w3 are [hidden_dim, dim], w2 is [dim, hidden_dim].
    """
    return linear(F.silu(linear(x, w1)) * linear(x, w3), w2)


def residual_block(
    x: Tensor, attention_norm: Function, attention: Function, ffn_norm: Function, feed_forward: Function
) -> Tensor:
    """One layer of four parts, [batch, seq, dim] -> the same: each half reads a normalised copy of the residual stream,
    and adds its result to the stream.
    """
    x = x + attention(attention_norm(x))
    return x + feed_forward(ffn_norm(x))


def transformer_block(
    x: Tensor, weights: Mapping[str, Tensor], layer: int, params: ModelArgs, freqs_cis: Tensor, mask: Tensor | None
) -> Tensor:
    """Layer number `layer` with its weights, [batch, seq, dim] -> the same."""

    def w(name: str) -> Tensor:
        return weights[f"layers.{layer}.{name}.weight"]

    wq, wk, wv, wo = (w(f"attention.{name}") for name in ("wq", "wk", "wv", "wo"))
    w1, w2, w3 = (w(f"feed_forward.{name}") for name in ("w1", "w2", "w3"))
    return residual_block(
        x,
        attention_norm=lambda x: rms_norm(x, w("attention_norm"), params.norm_eps),
        attention=lambda x: attention(x, wq, wk, wv, wo, freqs_cis, mask, params.head_dim),
        ffn_norm=lambda x: rms_norm(x, w("ffn_norm"), params.norm_eps),
        feed_forward=lambda x: feed_forward(x, w1, w2, w3),
    )


def forward(tokens: Sequence[int] | Tensor, weights: Mapping[str, Tensor], params: ModelArgs) -> Tensor:
    """The whole model: token ids [seq] or [batch, seq] -> float32 logits [..., seq, vocab].

    Works straight on memory-mapped weights, one layer at a time. Raises ValueError for an empty sequence, an id outside
    the vocabulary, or more tokens than the model was trained for; TypeError for ids that are not integers;
    CheckpointError, with its key, for a weight that is NaN or infinite.
    """
    tokens = check_tokens(tokens, params.vocab_size)
    seq_len = check_length(tokens.shape[-1], params.context_len)
    embeddings = weights["tok_embeddings.weight"]
    x = embeddings[tokens.to(embeddings.device).reshape(-1, seq_len)]  # [batch, seq, dim]
    freqs_cis = rotations(params, seq_len).to(x.device)  # [seq, head_dim / 2]
    mask = causal_mask(seq_len, x.dtype, x.device)  # [seq, seq]
    for layer in progress(range(params.n_layers), "layers"):
        x = transformer_block(x, weights, layer, params, freqs_cis, mask)
    x = rms_norm(x, weights["norm.weight"], params.norm_eps)
    logits = linear(x, output_weight(weights)).float().view(*tokens.shape, -1)
    return check_logits(logits, weights)


def output_weight(weights: Mapping[str, Tensor]) -> Tensor:
    """[vocab, dim]: output.weight, or the token embeddings where a model uses one matrix for both ends."""
    return weights["output.weight"] if "output.weight" in weights else weights["tok_embeddings.weight"]


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
