"""Prompts of several lengths side by side: the shorter ones are filled up, and nobody looks at what fills them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import functional
from .checks import check_prompts
from .messages import expect, short


def pad(prompts: Iterable[Sequence[int] | Tensor], side: str = "left") -> tuple[Tensor, Tensor]:
    """Token ids of several lengths -> tokens and attention_mask, both [batch, longest].

    Padding on the left puts the last tokens side by side, where writing goes on. Raises ValueError for no prompt, an
    empty one, or another side than "left" and "right"; TypeError for ids that are not integers.
    """
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", not {short(side)}')
    expect(prompts, Iterable, "prompts must be several lists of ids")
    rows = check_prompts(prompts, vocab_size=2**31)
    longest = max(map(len, rows))
    tokens, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for i, ids in enumerate(rows):
        used = slice(longest - len(ids), None) if side == "left" else slice(len(ids))
        tokens[i, used] = torch.tensor(ids)
        mask[i, used] = 1
    return tokens, mask


def positions_and_mask(start_pos: int, h: Tensor, is_token: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The position of each row of h, [batch, seq, dim], and what is added to its scores.

    Positions are [seq], or [batch, seq] with padding, which takes none; the mask is [seq, total], [batch, 1, seq,
    total] with padding, or None where there is nothing to close. `is_token` is [batch, total]: True for tokens.
    """
    positions = torch.arange(start_pos, start_pos + h.shape[1], device=h.device)
    if is_token is None and len(positions) == 1:
        return positions, None  # a single token looks at everything before it
    mask = functional.causal_mask(len(positions), h.dtype, h.device, start_pos)
    if is_token is None:
        return positions, mask
    # Padding may look at itself: with nothing to look at, its softmax would be 0 / 0.
    itself = positions[:, None] == torch.arange(is_token.shape[1], device=h.device)
    mask = mask.masked_fill(~is_token[:, None, :] & ~itself, -torch.inf)
    return (is_token.cumsum(-1) - 1).clamp(min=0)[:, start_pos:], mask[:, None]
