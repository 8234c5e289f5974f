"""Weights in 8 and 4 bits: a quarter and a sixth of float32's bytes, scales for each row or group of 32 and all.

Three ways to keep a matrix [out, in]; w is the number that the stored ones stand for:

    "int8"   w = scale * value,            a scale for each row; values -127..127
    "int4"   w = scale * nibble + minimum, both for each group of 32 numbers of a row; nibbles 0..15 (GGUF's Q4_1)
    "q8_0"   w = scale * value,            a scale for each group of 32; values -128..127 (GGUF's Q8_0)

torch's own products take them as they are, with activations in bfloat16, to which others are rounded on the way in.
Where there is no such product, and for many rows, matrices are unpacked some rows at a time.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional, kernels

DTYPE = torch.bfloat16  # of activations and scales: with others torch's products are loops 20 times slower
GROUP = 32
KINDS = ("int8", "int4", "q8_0")
ROWS = 64  # of a matrix, packed together
_FEW_ROWS = {"int8": 24, "int4": 48, "q8_0": 48}  # of x: beyond, unpacking the matrix once is faster
_BLOCK = 1024  # rows of a matrix unpacked at a time


def quantize_int8(weight: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """[out, in] -> int8 values -127..127 [out, in] and a scale for each row [out] in `dtype`: w ~ scale * value.

    The largest number of a row becomes 127 or -127, so that no number is off by more than scale / 2.
    """
    scale = (weight.float().abs().amax(-1) / 127).to(dtype)
    values = (weight.float() / _not_0(scale)[:, None]).round().clamp(-127, 127)
    return values.to(torch.int8), scale


def quantize_int4(
    weight: Tensor, group: int = GROUP, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """[out, in] -> nibbles 0..15 in uint8 [out, in], scale and minimum [out, in / group]: w ~ scale * nibble + minimum.

    The smallest number of each group of a row becomes 0, the largest 15, so that no number is off by more than
    scale / 2. What the module keeps in `dtype`, scale and minimum + 8 * scale, is rounded before nibbles are chosen.
    Raises ValueError if groups do not fill the rows.
    """
    if weight.shape[-1] % group:
        raise ValueError(f"rows of {weight.shape[-1]} numbers do not fall into groups of {group}")
    groups = weight.float().unflatten(-1, (-1, group))  # [out, in / group, group]
    minimum, maximum = groups.aminmax(dim=-1)
    scale = ((maximum - minimum) / 15).to(dtype).float()
    at_8 = (minimum + 8 * scale).to(dtype).float()
    nibbles = ((groups - at_8[..., None]) / _not_0(scale)[..., None] + 8).round().clamp(0, 15)
    return nibbles.to(torch.uint8).flatten(-2), scale, at_8 - 8 * scale


def _not_0(scale: Tensor) -> Tensor:
    """Of rows and groups in which all numbers are equal, the scale is 0."""
    return torch.where(scale == 0, 1.0, scale.float())


# How torch's product wants nibbles, by processor: 64 or 32 rows side by side for each column, and which two share a
# byte, the first half of the rows with the second, or neighbours.
LAYOUTS = {
    "avx512": (64, "halves"),
    "avx2": (32, "halves"),
    "plain": (32, "neighbours"),
    "neon": (16, "neighbours"),  # this and the next as torch's source has them; nobody has tried them here
    "plain64": (64, "neighbours"),
}


def pack(nibbles: Tensor, layout: str) -> Tensor:
    """Nibbles 0..15 [out, in] -> bytes [out, in / 2], two in each, laid out for a kind of processor."""
    side_by_side, which = LAYOUTS[layout]
    columns = nibbles.to(torch.uint8).view(-1, side_by_side, nibbles.shape[1]).mT  # [blocks, in, rows]
    low, high = columns.chunk(2, -1) if which == "halves" else (columns[..., 0::2], columns[..., 1::2])
    return (low | high << 4).reshape(nibbles.shape[0], -1).contiguous()


def unpack(packed: Tensor, layout: str) -> Tensor:
    """What was packed: bytes [out, in / 2] -> nibbles 0..15 in uint8 [out, in]."""
    return _columns(packed, layout).T.contiguous()


def _columns(packed: Tensor, layout: str) -> Tensor:
    """What was packed, its columns as rows, since a column's numbers lie side by side: [out, in / 2] -> [in, out]."""
    side_by_side, which = LAYOUTS[layout]
    pairs = packed.view(-1, 2 * packed.shape[1], side_by_side // 2).transpose(0, 1)  # [in, blocks, pairs]
    low, high = pairs & 15, pairs >> 4
    return (torch.cat((low, high), -1) if which == "halves" else torch.stack((low, high), -1)).flatten(1)


def _rows(packed: Tensor, ids: Tensor, layout: str) -> Tensor:
    """Some rows of what was packed: [out, in / 2], ids [rows] -> nibbles [rows, in]."""
    side_by_side, which = LAYOUTS[layout]
    block, row = ids // side_by_side, ids % side_by_side
    column, high = (row % (side_by_side // 2), row // (side_by_side // 2)) if which == "halves" else (row // 2, row % 2)
    pairs = packed.view(-1, 2 * packed.shape[1], side_by_side // 2)[block, :, column]  # [rows, in]
    return pairs >> (4 * high.to(torch.uint8))[:, None] & 15


def _layout_here() -> tuple[str, bool]:
    """The layout of this processor, and whether torch has a product for it: a small matrix is packed both ways."""
    nibbles = torch.arange(ROWS * GROUP, dtype=torch.int32).view(ROWS, GROUP) * 7 // 3 % 16
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 2)
    except (AttributeError, RuntimeError):  # an older torch, or one for a processor of another kind
        return "plain", False
    same = [name for name in LAYOUTS if torch.equal(pack(nibbles, name), packed)]
    return (same[0], True) if same else ("plain", False)


LAYOUT, _INT4 = _layout_here()
_int4_product: Callable[..., Tensor] = torch.ops.aten._weight_int4pack_mm_for_cpu.default if _INT4 else F.linear
_HAS = {"int8": hasattr(torch, "_weight_int8pack_mm"), "int4": _INT4, "q8_0": _INT4}


class QuantizedLinear(nn.Module):
    """[..., in] -> [..., out], in the place of model.Linear: x @ weight.T with a weight that is kept in few bits.

    Everything is in buffers, so that a state_dict can be kept in a file and opened by mapping:

        "int8"   values [out, in] int8,        scales [out]
        "int4"   packed [out, in / 2] bytes,   scales [in / 32, out, 2]: scale, and what a nibble of 8 stands for
        "q8_0"   packed [out, in] bytes,       scales [2 in / 32, out, 2]: the upper four bits of all values, and then
                 the lower four bits of all, as if twice as many numbers: value = 16 * upper + lower

    Bytes are packed for the processor (`layout`); those from another kind are packed anew when they are loaded. Results
    have the 8 bits of bfloat16, whatever type they come in. Matrices of awkward sizes are filled up with zeros, in to a
    multiple of 32 and out to one of 64.
    """

    values: Tensor
    packed: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, kind: str = "int4") -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = in_features, out_features, kind
        self.layout = LAYOUT
        self.awkward = bool(in_features % GROUP or out_features % ROWS)
        width, height = in_features + -in_features % GROUP, out_features + -out_features % ROWS
        if kind == "int8":
            self.register_buffer("values", torch.empty(out_features, width, dtype=torch.int8))
            self.register_buffer("scales", torch.empty(out_features, dtype=DTYPE))
        else:
            numbers = width if kind == "int4" else 2 * width
            self.register_buffer("packed", torch.empty(height, numbers // 2, dtype=torch.uint8))
            self.register_buffer("scales", torch.empty(numbers // GROUP, height, 2, dtype=DTYPE))

    @classmethod
    def from_weight(cls, weight: Tensor, bits: int) -> "QuantizedLinear":
        """8: a scale for each row; 4: groups of 32, a scale and a minimum for each."""
        if bits not in (8, 4):
            raise ValueError(f"bits must be 8 or 4, not {bits}")
        out, width = weight.shape
        linear = cls(width, out, f"int{bits}")
        if bits == 8:
            linear.values, linear.scales = quantize_int8(F.pad(weight.detach(), (0, -width % GROUP)), DTYPE)
        else:
            linear._keep(*quantize_int4(_filled_up(weight.detach()), dtype=DTYPE))
        return linear

    @classmethod
    def from_q4_1(cls, nibbles: Tensor, d: Tensor, m: Tensor) -> "QuantizedLinear":
        """GGUF's blocks Q4_1: nibbles 0..15 [out, in], scale d and minimum m [out, in / 32]."""
        linear = cls(nibbles.shape[1], nibbles.shape[0], "int4")
        linear._keep(_filled_up(nibbles), _filled_up(d, 1), _filled_up(m, 1))
        return linear

    @classmethod
    def from_q8_0(cls, values: Tensor, d: Tensor) -> "QuantizedLinear":
        """GGUF's blocks Q8_0: values int8 [out, in], scale d [out, in / 32]."""
        linear = cls(values.shape[1], values.shape[0], "q8_0")
        values, d = _filled_up(values), _filled_up(d, 1).float()
        upper, lower = (values >> 4) + 8, values & 15  # 0..15 both: value = 16 * (upper - 8) + lower
        linear._keep(torch.cat((upper, lower), 1), torch.cat((16 * d, d), 1), torch.cat((-128 * d, 0 * d), 1))
        return linear

    def _keep(self, nibbles: Tensor, scale: Tensor, minimum: Tensor) -> None:
        self.packed = pack(nibbles, self.layout)
        at_8 = minimum.float() + 8 * scale.float()
        self.scales = torch.stack((scale.float(), at_8), -1).transpose(0, 1).contiguous().to(DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.in_features).to(DTYPE)
        if self.awkward:
            flat = F.pad(flat, (0, -self.in_features % GROUP))
        # torch's products with few bits are not differentiable.
        few = len(flat) <= _FEW_ROWS[self.kind] and _HAS[self.kind] and x.is_cpu and self.layout == LAYOUT
        few = few and not (x.requires_grad and torch.is_grad_enabled())
        y = self._few_rows(flat) if few else self._many_rows(flat)
        if self.awkward:
            y = y[:, : self.out_features]
        return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def _few_rows(self, x: Tensor) -> Tensor:
        """torch's product with the weight as it is: [rows, in] -> [rows, out]."""
        if self.kind == "int8":
            return torch._weight_int8pack_mm(x, self.values, self.scales)
        if self.kind == "q8_0":
            x = torch.cat((x, x), 1)
        return _int4_product(x, self.packed, GROUP, self.scales)

    def _many_rows(self, x: Tensor) -> Tensor:
        """The weight unpacked, some rows of it at a time: [rows, in] -> [rows, out]."""
        blocks = [slice(i, i + _BLOCK) for i in range(0, self.out_features, _BLOCK)]
        if self.kind == "int8":  # the values are exact in bfloat16
            return torch.cat([kernels.linear(x, self.values[rows].to(DTYPE)) for rows in blocks], 1).mul(self.scales)
        return torch.cat([kernels.linear(x, self._unpacked(rows).T) for rows in blocks], 1)

    def _unpacked(self, rows: slice) -> Tensor:
        """Some rows of the matrix as columns, [in, rows] in bfloat16."""
        nibbles = _columns(self.packed[rows], self.layout)
        scale, at_8 = (t.contiguous().unsqueeze(1) for t in self.scales[:, rows].unbind(-1))  # [groups, 1, rows]
        if self.kind == "int4":
            values = nibbles.view(torch.int8) - 8
        else:
            upper, lower = nibbles.chunk(2)
            values, scale = ((upper - 8 << 4) + lower).view(torch.int8), scale.chunk(2)[1]
        groups: Tensor = values.to(DTYPE).unflatten(0, (-1, GROUP))  # [groups, 32, rows], exact there
        return (torch.addcmul(at_8, groups, scale) if self.kind == "int4" else groups * scale).flatten(0, 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that the bytes stand for, [out, in]."""
        return self.rows(torch.arange(self.out_features, device=self.scales.device), dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype = DTYPE) -> Tensor:
        """Rows number `ids` [...] of the matrix, [..., in], computed in float32; nothing else is unpacked."""
        flat = ids.flatten()
        if self.kind == "int8":
            numbers = self.values[flat] * self.scales[flat, None].float()
        else:
            nibbles = _rows(self.packed, flat, self.layout)
            scale, at_8 = self.scales[:, flat].float().transpose(0, 1).unbind(-1)  # [rows, groups] each
            groups = (nibbles.float() - 8).unflatten(1, (-1, GROUP)) * scale[..., None] + at_8[..., None]
            numbers = groups.flatten(1)
            if self.kind == "q8_0":
                upper, lower = numbers.chunk(2, 1)
                numbers = upper + lower
        return numbers[:, : self.in_features].to(dtype).view(*ids.shape, self.in_features)

    def parts(self, sizes: Sequence[int]) -> "list[QuantizedLinear]":
        """Matrices whose rows lie one after the other in this one, so many in each (a multiple of 64)."""
        parts, start = [], 0
        for size in sizes:
            with torch.device("meta"):
                part = QuantizedLinear(self.in_features, size, self.kind)
            part.layout = self.layout
            for name, buffer in self.named_buffers():
                along = 1 if buffer.ndim == 3 else 0  # scales of groups are [groups, out, 2]
                setattr(part, name, buffer.narrow(along, start, size).contiguous())
            parts.append(part)
            start += size
        return parts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """Of `model.to(...)`, `.half()`, `.float()`: it moves to the device; bytes and scales stay what they are."""
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != DTYPE:
            self.scales = scales.to(self.scales.device)
        return self

    def pack_for_here(self, layout: str) -> None:
        """What was packed for a processor of another kind is packed anew, in memory of its own."""
        if self.kind != "int8" and layout != LAYOUT:
            self.packed = pack(unpack(self.packed, layout), LAYOUT)
        self.layout = LAYOUT

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self.layout.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.pack_for_here(bytes(state.tolist()).decode())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind!r}"


def _filled_up(matrix: Tensor, group: int = GROUP) -> Tensor:
    """With zeros, to a multiple of 64 rows and of `group` columns."""
    out, width = matrix.shape
    return F.pad(matrix, (0, -width % group, 0, -out % ROWS)) if out % ROWS or width % group else matrix


class QuantizedEmbedding(nn.Module):
    """Look-ups, token ids [...] -> [..., dim], in a matrix that may be the output's as well.

    `weight` holds nothing: its dtype is that of the rows that come out, and so of the residual stream.
    """

    weight: Tensor

    def __init__(self, linear: QuantizedLinear, dtype: torch.dtype = DTYPE) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("weight", torch.empty(0, dtype=dtype, device=linear.scales.device), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear.rows(tokens, self.weight.dtype)


class QuantizedAttention(nn.Module):
    """model.Attention with the rows of wq, wk and wv as one matrix: one product in the place of three small ones."""

    def __init__(self, wqkv: QuantizedLinear, wo: QuantizedLinear, head_dim: int) -> None:
        super().__init__()
        self.wqkv, self.wo, self.head_dim = wqkv, wo, head_dim
        kv_dim = (wqkv.out_features - wo.in_features) // 2
        self.sizes = wo.in_features, kv_dim, kv_dim

    def forward(
        self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None, cache: functional.Cache | None = None
    ) -> Tensor:
        q, k, v = self.wqkv(x).split(self.sizes, -1)
        products = (lambda _: q), (lambda _: k), (lambda _: v)  # in the places of wq, wk and wv
        return functional.attention(x, *products, self.wo, freqs_cis, mask, self.head_dim, cache)

    def parts(self) -> dict[str, QuantizedLinear]:
        """wq, wk and wv by themselves."""
        return dict(zip(("wq", "wk", "wv"), self.wqkv.parts(self.sizes), strict=True))


class QuantizedFeedForward(nn.Module):
    """model.FeedForward with w1 and w3 as one matrix."""

    def __init__(self, w1w3: QuantizedLinear, w2: QuantizedLinear) -> None:
        super().__init__()
        self.w1w3, self.w2 = w1w3, w2

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w1w3(x).chunk(2, -1)
        return functional.feed_forward(x, lambda _: gate, self.w2, lambda _: up)

    def parts(self) -> dict[str, QuantizedLinear]:
        """w1 and w3 by themselves."""
        return dict(zip(("w1", "w3"), self.w1w3.parts([self.w2.in_features] * 2), strict=True))
