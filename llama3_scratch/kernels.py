"""How products with weights, and attention, are done fastest on this processor. The numbers are those of
`x @ weight.T` and of torch's attention, up to rounding; whoever reads for the model can skip this file.

With few rows of x, as when a token is written, time goes into fetching the weights, and torch's usual ways fetch them
at half of what memory gives, or less. The gains below were seen with torch 2.13 on AMD's Zen 4 and on Intel with AMX;
other processors were only imitated there, by telling torch and oneDNN to do without instructions. ARM, and Intel
without AMX, have not been seen: but for what is said beside a rule, they take torch's own way. Which way is taken
depends on the processor, the shapes and the environment alone, so the same call gives the same digits every time.
"""

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What the processor can do; x86 has a word on "avx2". Before torch 2.13 (2.9 is too old) nobody can be asked for it.
_capabilities: dict[str, bool | str] = getattr(torch.cpu, "get_capabilities", dict)()
_everything = "ONEDNN_MAX_CPU_ISA" not in os.environ  # nobody told oneDNN, which does the products, to do without some
_AMX = bool(_capabilities.get("amx_bf16")) and _everything  # Intel's matrix unit
_BF16 = bool(_capabilities.get("avx512_bf16")) and _everything
# Types of which x86 processors without instructions for them multiply many rows in a loop of scalars.
_SLOW = {
    dtype
    for dtype, names in {
        torch.bfloat16: ("amx_bf16", "avx512_bf16", "avx_ne_convert"),
        torch.float16: ("amx_fp16", "avx512_fp16", "avx_ne_convert"),
    }.items()
    if "avx2" in _capabilities and not (_everything and any(_capabilities.get(name) for name in names))
}
# MKL keeps its best float32 code for a single row to Intel's processors. Who sets MKL_CBWR asks for the same digits on
# every processor, so there all take the same way.
_MKL_ON_AMD = (
    "AMD" in str(_capabilities.get("cpu_name")) and torch.backends.mkl.is_available() and "MKL_CBWR" not in os.environ
)


_PLAIN = (Tensor, nn.Parameter)  # quantised and distributed weights bring products of their own


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T: [..., in] -> [..., out], for a weight of [out, in]."""
    return _way(x, weight)(x, weight)


def _way(x: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The fastest way to this product that is known of; `F.linear` unless there is another."""
    dtype = weight.dtype
    if type(weight) not in _PLAIN or not weight.is_cpu or weight.layout != torch.strided or x.dtype != dtype:
        return F.linear
    rows = x.numel() // x.shape[-1]
    if dtype == torch.bfloat16 and _AMX:
        return weight_on_the_left if rows <= 64 else F.linear
    if dtype == torch.bfloat16 and _BF16:
        return without_onednn if rows == 1 else F.linear
    if dtype in _SLOW:
        learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)  # would keep all the float32
        return F.linear if rows < 8 or learns or torch.is_autocast_enabled("cpu") else by_float32_blocks
    if dtype == torch.float32 and _MKL_ON_AMD and rows <= 3:
        length, width = weight.shape
        if width > 4096:  # at 8192, 0.6 times as fast
            return F.linear
        if rows > 1:
            return weight_on_the_left
        if length % 64 == 0 and length * width >= 1 << 16 and weight.is_contiguous():
            return by_blocks
    return F.linear


def weight_on_the_left(x: Tensor, weight: Tensor) -> Tensor:
    """For a few rows: up to 64 of bfloat16 with AMX, 1.3 to 3 times as fast; 2 or 3 of float32 where MKL meets AMD,
    1.45 times in the whole of the small model.

    A weight that is some columns of a larger one is slow with one row, and not with two: there the row goes twice.
    """
    if x.numel() == x.shape[-1]:
        if not weight.is_contiguous():
            return (weight @ x.flatten().expand(2, -1).T)[:, 0].reshape(*x.shape[:-1], -1)
        return (weight @ x.flatten()).view(*x.shape[:-1], -1)
    return (weight @ x.flatten(0, -2).T).T.view(*x.shape[:-1], -1)


def without_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """For one row of bfloat16: torch's own loop, twice as fast as oneDNN's on Zen 4; with long rows less, 1.2 times at
    8192.

    The switch belongs to the whole process: another thread's product may take its other way meanwhile, which is as
    right. Only who has turned it turns it back; code in another thread that saves and restores the switch meanwhile may
    leave it off, which is slower and not wrong. (torch's context manager for it costs thirty times as much.)
    """
    onednn = torch.backends.mkldnn
    if torch.compiler.is_compiling() or not onednn.enabled:
        return F.linear(x, weight)
    try:
        onednn.enabled = False  # type: ignore[assignment]
        return F.linear(x, weight)
    finally:
        onednn.enabled = True  # type: ignore[assignment]


def by_float32_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """For 8 rows and more of a type that the processor cannot multiply: 256 rows of the weight at a time in float32.

    Up to 4 times as fast as torch's loop at 512 rows, and never more than a block of the weight in float32.
    """
    wide = x.float()
    return torch.cat([F.linear(wide, block.float()).to(x.dtype) for block in weight.split(256)], -1)


def by_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """For one row of float32: 64 rows of the weight at a time, as a batch of small products. 1.1 to 2.3 times as fast
    on Zen 4 as MKL's product of a matrix and a vector.
    """
    blocks = weight.view(-1, 64, weight.shape[1])  # [out / 64, 64, in]
    column = x.reshape(1, -1).T.expand(len(blocks), -1, 1)  # [out / 64, in, 1]; with other strides it is slow
    return torch.bmm(blocks, column).view(*x.shape[:-1], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + mask) v, where groups of query heads share a KV head.

    q and the result are [batch, heads, seq, head_dim], k and v [batch, n_kv_heads, total, head_dim]. torch's kernel
    goes through keys and values for each query head anew. At a single position (seq = 1) a group's query heads can
    stand side by side as rows of one head, and it goes through them once: up to 8 times as fast.
    """
    same_for_all_heads = mask is None or mask.ndim < 3 or mask.shape[-3] == 1
    if q.shape[-2] > 1 or not same_for_all_heads:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    rows = q.squeeze(-2).unflatten(-2, (k.shape[-3], -1))  # [batch, n_kv_heads, heads / n_kv_heads, head_dim]
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).flatten(-3, -2).unsqueeze(-2)
