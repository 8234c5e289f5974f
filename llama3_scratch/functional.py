"""The arithmetic of Llama 3 as pure functions, in the order data flows. The math exists here once.

Shapes are written [batch, seq, dim]; every function also takes any other number of leading dimensions, none included.
The arithmetic runs in the type of the weights. As in Meta's code, three steps are done in float32 and cast back,
because they lose too much in sixteen bits: the norm, the rotation and the softmax.
"""

import math
import os
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .messages import short
from .params import ModelArgs
from .weights import check_numbers


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T: [..., in] -> [..., out], for a weight of [out, in].

    With few rows of x, time goes into fetching the weights. Processors with AMX fetch bfloat16 weights 1.3 to 3 times
    faster when these stand on the left, weight @ x; up to rounding, the numbers are the same.
    """
    rows = x.numel() // x.shape[-1]
    on_amx = _AMX and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if not on_amx or rows > 64:
        return F.linear(x, weight)
    if rows == 1:
        return (weight @ x.flatten()).view(*x.shape[:-1], -1)
    return (weight @ x.flatten(0, -2).T).T.unflatten(0, x.shape[:-1])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each vector by its root mean square, then scale each dimension: [..., dim] -> [..., dim].

    x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4). Computed in float32.
    """
    wide = _at_least_float32(x)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normed.type_as(x) * weight


def precompute_freqs_cis(
    head_dim: int,
    seq_len: int | Tensor,
    theta: float = 500000.0,
    scale_factor: float | None = None,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 8192,
) -> Tensor:
    """Unit complex numbers that rotate each pair at each position: [seq_len, head_dim / 2], complex64.

    Pair i at position m turns by the angle m / theta^(2i / head_dim), in radians (RoFormer, arXiv:2104.09864,
    equation 15). Instead of a length, `seq_len` may give the positions themselves, [..., seq]. `scale_factor`
    stretches the slow pairs; it and the numbers after it are those of `scale_freqs`.
    """
    freqs = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # radians per position
    if scale_factor is not None:
        freqs = scale_freqs(freqs, scale_factor, low_freq_factor, high_freq_factor, old_context_len)
    positions = torch.arange(seq_len) if isinstance(seq_len, int) else seq_len
    angles = positions[..., None].float() * freqs.to(positions.device)
    return torch.polar(torch.ones_like(angles), angles)


def rotations(params: ModelArgs, positions: int | Tensor) -> Tensor:
    """`precompute_freqs_cis` with all that params say about rotation."""
    band = params.rope_low_freq_factor, params.rope_high_freq_factor, params.rope_old_context_len
    return precompute_freqs_cis(params.head_dim, positions, params.rope_theta, params.rope_factor, *band)


def scale_freqs(
    freqs: Tensor,
    scale_factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 8192,
) -> Tensor:
    """Slow rotations down for contexts longer than the model was first trained on (Llama 3.1 and later).

    Pairs that turn more than `high_freq_factor` times within `old_context_len` positions keep their frequency; those
    that turn less than `low_freq_factor` times are slowed by `scale_factor`; between, a linear blend. The defaults
    are those of Meta's llama-models (apply_scaling).
    """
    turns = old_context_len * freqs / (2 * math.pi)
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return freqs * (keep + (1 - keep) / scale_factor)


def apply_rotary_emb(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotate queries or keys by their position: [batch, seq, heads, head_dim] -> the same shape.

    Neighbours (0, 1), (2, 3), ... are the real and imaginary parts of one complex number, as in Meta's files
    (Hugging Face pairs i with i + head_dim / 2 instead). `freqs_cis` is [seq, head_dim / 2], or [batch, seq,
    head_dim / 2] where every text has positions of its own. Computed in float32.
    """
    pairs = torch.view_as_complex(_at_least_float32(x).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * freqs_cis[..., None, :]).flatten(-2).type_as(x)


def causal_mask(
    seq_len: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", start_pos: int = 0
) -> Tensor:
    """[seq_len, start_pos + seq_len]: 0 where a position may look (itself and before), -inf above the diagonal.

    The rows are the `seq_len` positions from `start_pos` on, the columns all positions from 0.
    """
    later = torch.ones(seq_len, start_pos + seq_len, dtype=torch.bool, device=device).triu(start_pos + 1)
    return torch.zeros(later.shape, dtype=dtype, device=device).masked_fill(later, -torch.inf)


def attention(
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    freqs_cis: Tensor,
    mask: Tensor | None,
    head_dim: int,
    cache: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Grouped-query attention with rotary positions: [batch, seq, dim] -> [batch, seq, dim].

    softmax(q k^T / sqrt(head_dim) + mask) v for every head, then wo over all heads side by side (Vaswani et al. 2017,
    arXiv:1706.03762, equation 1; grouped heads: Ainslie et al. 2023, arXiv:2305.13245). wq is
    [n_heads * head_dim, dim], wk and wv [n_kv_heads * head_dim, dim], wo [dim, n_heads * head_dim]. `mask`,
    [seq, total] or anything that broadcasts to [batch, heads, seq, total], is added to the scores. The softmax is
    computed in float32.

    `cache` holds the keys and values of total positions, each [batch, n_kv_heads, total, head_dim]. The last seq of
    them are written here, and all are looked at; no gradient flows through them. Without a cache, total is seq.
    """
    q, k, v = (linear(x, w).unflatten(-1, (-1, head_dim)) for w in (wq, wk, wv))  # [batch, seq, heads, head_dim]
    q, k = apply_rotary_emb(q, freqs_cis), apply_rotary_emb(k, freqs_cis)
    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))  # [batch, heads, seq, head_dim]
    if cache is not None:
        keys, values = cache
        keys[..., -x.shape[-2] :, :], values[..., -x.shape[-2] :, :] = k.detach(), v.detach()
        k, v = keys, values
    # Equation 1 in one call, which never holds the scores of all positions at once and computes the softmax in
    # float32. enable_gqa: query head h reads KV head h // (n_heads / n_kv_heads).
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return linear(heads.transpose(-3, -2).flatten(-2), wo)


def feed_forward(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    """SwiGLU: w2(silu(w1 x) * w3 x), [batch, seq, dim] -> [batch, seq, dim] (Shazeer 2020, arXiv:2002.05202).

    w1 and w3 are [hidden_dim, dim], w2 is [dim, hidden_dim].
    """
    return linear(F.silu(linear(x, w1)) * linear(x, w3), w2)


def transformer_block(
    x: Tensor,
    weights: Mapping[str, Tensor],
    layer: int,
    params: ModelArgs,
    freqs_cis: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """One layer: [batch, seq, dim] -> [batch, seq, dim].

    Each half reads a normalised copy of the residual stream and adds its result to the stream.
    """
    w = {name: weights[f"layers.{layer}.{name}.weight"] for name in _LAYER_WEIGHTS}
    attention_weights = (w[f"attention.{name}"] for name in ("wq", "wk", "wv", "wo"))
    feed_forward_weights = (w[f"feed_forward.{name}"] for name in ("w1", "w2", "w3"))
    h = rms_norm(x, w["attention_norm"], params.norm_eps)
    x = x + attention(h, *attention_weights, freqs_cis, mask, params.head_dim)
    return x + feed_forward(rms_norm(x, w["ffn_norm"], params.norm_eps), *feed_forward_weights)


def forward(tokens: Sequence[int] | Tensor, weights: Mapping[str, Tensor], params: ModelArgs) -> Tensor:
    """The whole model: token ids [seq] or [batch, seq] -> float32 logits [..., seq, vocab].

    Works straight on memory-mapped weights, one layer at a time. Shows a progress bar if it takes
    over two seconds. Raises ValueError for an empty sequence, an id outside the vocabulary, or more
    tokens than the model takes; TypeError for ids that are not integers; CheckpointError, with its
    key, for a weight that is NaN or infinite.
    """
    embeddings = weights["tok_embeddings.weight"]
    tokens = check_tokens(tokens, params.vocab_size).to(embeddings.device)
    seq_len = tokens.shape[-1]
    check_length(seq_len, params)
    freqs_cis = rotations(params, seq_len).to(embeddings.device)
    x = embeddings[tokens.reshape(-1, seq_len)]  # [batch, seq, dim]
    mask = causal_mask(seq_len, x.dtype, x.device)
    for layer in tqdm(range(params.n_layers), desc="layers", delay=2, leave=False):
        x = transformer_block(x, weights, layer, params, freqs_cis, mask)
    x = rms_norm(x, weights["norm.weight"], params.norm_eps)
    logits = linear(x, output_weight(weights)).float().view(*tokens.shape, -1)
    check_logits(logits, weights)
    return logits


def output_weight(weights: Mapping[str, Tensor]) -> Tensor:
    """[vocab, dim]: output.weight, or the token embeddings where a model uses one matrix for both ends."""
    return weights["output.weight"] if "output.weight" in weights else weights["tok_embeddings.weight"]


def check_tokens(tokens: Sequence[int] | Tensor, vocab_size: int) -> Tensor:
    """The ids as a tensor of int64, [seq] or [batch, seq].

    Raises ValueError for none at all, lists of unequal length or of texts, or an id outside the vocabulary, TypeError
    for anything else that is not integers.
    """
    try:
        tokens = torch.as_tensor(tokens)
    except (RuntimeError, TypeError, ValueError) as e:
        raise (ValueError if isinstance(e, ValueError) else TypeError)(
            f"token ids must be integers from 0 to {vocab_size - 1}, in a list or in lists of equal length (model.pad "
            f"makes them so), not {short(tokens)}"
        ) from e
    if tokens.numel() == 0:
        raise ValueError("no tokens: the model needs at least one to predict the next")
    if tokens.ndim == 0:
        raise ValueError(f"tokens must be a list of ids, not a single {tokens.item()}")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"token ids must be integers, not {tokens.dtype}")
    if tokens.layout != torch.strided or tokens.is_meta:
        raise TypeError("token ids must be a plain tensor, with its numbers")
    tokens = tokens.long()
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"token ids must be 0 to {vocab_size - 1}, found {tokens.min()} to {tokens.max()}")
    return tokens


def check_length(length: int, params: ModelArgs):
    """Raise ValueError for a text that is longer than the model was trained for."""
    if length > params.max_seq_len:
        raise ValueError(
            f"{length} tokens are more than the {params.max_seq_len} that this model takes (max_seq_len in params)"
        )


def check_logits(logits: Tensor, weights: Mapping[str, Tensor]):
    """Raise if the logits are not numbers: CheckpointError for the weight that is NaN or infinite, else ValueError.

    One such weight spoils them all, so nothing has to be searched as long as they are fine.
    """
    if logits.sum().isfinite() or logits.isfinite().all():  # the first is quick, and may overflow
        return
    check_numbers(weights)
    raise ValueError("the logits are not finite, though all weights are: a number overflowed; try dtype=torch.float32")


# Intel's matrix unit, unless oneDNN, which does the products, is told to do without.
_AMX = torch.cpu.get_capabilities().get("amx_bf16", False) and "ONEDNN_MAX_CPU_ISA" not in os.environ

_LAYER_WEIGHTS = (
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
    "attention_norm",
    "ffn_norm",
)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
