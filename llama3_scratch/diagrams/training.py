"""Training: the lessons in a row of text, a batch out of a long text, one step all the way round, and its memory."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..params import ModelArgs
from ..plots import COLORS, Picture, _families, ink, styled
from .board import FLOWS, GREY, HATCHES, INK, LEARNED, LIT, PAPER, Board, dims


@styled
def lessons(labels: Sequence[str], shown: int = 3, most: int = 9) -> Picture:
    """A row of tokens and, below it, the same row shifted by one: what each position has to predict. What the
    mask hides from position `shown` is hatched. The first `most` tokens are drawn.
    """
    n = min(len(labels), most) - 1  # lessons drawn
    shown = min(shown, n - 1)
    widths = [0.16 + 0.1 * max(len(a), len(b), 3) for a, b in pairwise(labels[: n + 1])]
    left, gap = 1.3, 0.08
    board = Board(max(9.2, left + sum(widths) + gap * n + 0.6), 2.5)
    mono: dict[str, Any] = {"family": ["DejaVu Sans Mono", *_families()]}
    end = left + sum(widths) + gap * (n - 1)
    for y, words in ((0.42, "read"), (1.12, "the model"), (1.97, "to be said")):
        board.text(0.1, y, words, ha="left", color="#555555")
    layers = "all layers, once"
    layers += ": no position sees what stands to its right" if end - left > 3.6 else ""
    board.pill(left - 0.06, 0.95, end - left + 0.12, 0.34, layers)
    x = left
    for i, width in enumerate(widths):
        middle, seen = x + width / 2, i <= shown
        style: dict[str, Any] = {} if seen else {"hatch": "////", "edgecolor": "#AAAAAA"}
        fill = LIT if i == shown else FLOWS if seen else "white"
        board.rectangle(x, 0.26, width, 0.32, fill, **style)
        box: dict[str, Any] = {} if seen else {"bbox": PAPER}
        board.text(middle, 0.42, labels[i], color=ink(fill), **box, **mono)
        board.arrow((middle, 0.6), (middle, 0.93), color=GREY)
        board.arrow((middle, 1.31), (middle, 1.79), color=INK if i == shown else GREY)
        style = {"linewidth": 1.8} if i == shown else {"edgecolor": "#999999"}
        board.rectangle(x, 1.81, width, 0.32, LEARNED if i == shown else "white", **style)
        board.text(middle, 1.97, labels[i + 1], **mono)
        x += width + gap
    if len(labels) > n + 1:
        for y in (0.42, 1.97):
            board.text(x + 0.12, y, "...")
    words = f"{len(labels)} tokens, read once, are {len(labels) - 1} lessons"
    board.text(left, 2.36, words, ha="left", weight="bold")
    board.text(left, 0.1, f"hatched: hidden where {labels[shown + 1]} is to be said", size=8, ha="left")
    pairs = ", ".join(f"after {a} comes {b}" for a, b in pairwise(labels[: n + 1]))
    return board.picture(
        f"A row of {len(labels)} tokens, and below it the same row shifted by one, which is to be predicted: {pairs}. "
        f"Where {labels[shown + 1]} is to be said, the first {shown + 1} tokens can be seen, and none after them."
    )


@styled
def windows(tokens: int, held_out: int, starts: Sequence[int], seq_len: int, begins: Sequence[str] = ()) -> Picture:
    """A batch, cut out of a long text at the places `starts`: rows of seq_len + 1 tokens, of which all but the last are
    read, and all but the first are to be predicted. The end of the text is held out. `begins` are the labels of the
    tokens with which the first row begins.
    """
    board, left, width = Board(9.2, 3.35 if begins else 3.05), 0.15, 8.9
    scale = width / (tokens + held_out)
    board.rectangle(left, 0.35, scale * tokens, 0.26, FLOWS)
    board.rectangle(left + scale * tokens, 0.35, scale * held_out, 0.26, "white", hatch="////", edgecolor="#999999")
    board.text(left, 0.18, f"the text: {tokens:,} tokens to learn from", ha="left", size=8)
    board.text(left + width, 0.18, f"{held_out:,} held out", ha="right", size=8)
    for start in starts:
        board.rectangle(left + scale * start, 0.29, max(scale * seq_len, 0.03), 0.38, LIT, linewidth=0)
    cell = min(0.11, 1.5 / len(starts))
    height, wide = cell * len(starts), 3.2
    top, at = 1.25, (0.9, 5.2)
    for row, start in enumerate(sorted(starts)):
        from_x = left + scale * (start + seq_len / 2)
        to_x = at[0] + 0.3 + (wide - 0.3) * (row + 0.5) / len(starts)
        board.line((from_x, 0.69), (to_x, top - 0.07), color="#9BBBD0", linewidth=0.5)
    step = wide / (seq_len + 1)
    for x, name, first in ((at[0], "read", 0), (at[1], "to be said", 1)):
        for row in range(len(starts)):
            board.rectangle(x, top + cell * row, wide, cell, "white", edgecolor="#BBBBBB", linewidth=0.5)
            fill = FLOWS if first == 0 else LEARNED
            board.rectangle(
                x + step * first, top + cell * row, step * seq_len, cell, fill, edgecolor="white", linewidth=0.5
            )
        board.text(x + wide / 2, top + height + 0.17, f"{name}: {dims((len(starts), seq_len))}", size=8.5)
        if begins:
            shown = begins[first : len(begins) - 1 + first]
            mono: dict[str, Any] = {"family": ["DejaVu Sans Mono", *_families()], "size": 7}
            board.text(x + wide / 2, top + height + 0.43, " ".join(shown) + " ...", **mono)
    board.arrow((at[0] + wide + 0.15, top + height / 2), (at[1] - 0.15, top + height / 2), color=GREY)
    words = f"one batch {dims((len(starts), seq_len + 1))} is {len(starts) * seq_len:,} lessons"
    board.text(4.6, top + height + (0.72 if begins else 0.42), words, size=8.5, weight="bold")
    return board.picture(
        f"A text of {tokens:,} tokens, and {held_out:,} more that are held out. {len(starts)} windows of "
        f"{seq_len + 1} tokens at random places make one batch. Of each, all but the last token are read and all but "
        f"the first are to be predicted, {dims((len(starts), seq_len))} both: {len(starts) * seq_len:,} lessons."
    )


@styled
def training_step(params: ModelArgs, batch_size: int, seq_len: int, numbers: int) -> Picture:
    """One step of training, all the way round: batch, model, logits, loss; back to a gradient for each weight, its
    length, AdamW's two averages; and the weights have moved. `numbers` is how many weights there are.
    """
    board, shape = Board(9.2, 2.75), (batch_size, seq_len)
    board.matrix(0.15, 0.42, 1.15, 0.4, "batch", (batch_size, seq_len + 1), FLOWS)
    board.arrow((1.3, 0.62), (1.85, 0.62))
    board.rectangle(1.85, 0.32, 1.9, 0.6, LEARNED)
    board.text(2.8, 0.62, "the model")
    board.text(2.8, 1.06, f"{numbers:,} weights", size=7.5, color="#444444")
    board.arrow((3.75, 0.62), (4.3, 0.62))
    board.matrix(4.3, 0.42, 1.5, 0.4, "logits", (*shape, params.vocab_size), FLOWS)
    board.arrow((5.8, 0.62), (6.35, 0.62))
    board.pill(6.35, 0.44, 1.45, 0.36, "cross-entropy", lit=True)
    board.arrow((7.8, 0.62), (8.25, 0.62))
    board.text(8.6, 0.62, "loss", weight="bold")
    board.text(8.6, 0.86, "one number", size=7.5, color="#444444")
    board.text(0.15, 0.14, "forward: what is expected, and how wrong was that?", ha="left", size=8, color="#555555")
    board.line((8.6, 1.0), (8.6, 1.95), color=LIT)
    board.arrow((8.6, 1.95), (7.8, 1.95), color=LIT)
    board.pill(6.35, 1.77, 1.45, 0.36, "backward", lit=True)
    board.arrow((6.35, 1.95), (5.8, 1.95), color=LIT)
    board.rectangle(4.3, 1.75, 1.5, 0.4, FLOWS)
    board.text(5.05, 1.95, "gradient")
    board.text(5.05, 2.29, "as many numbers as weights", size=7.5, color="#444444")
    board.arrow((4.3, 1.95), (3.95, 1.95), color=LIT)
    board.pill(3.25, 1.77, 0.7, 0.36, "clip", lit=True)
    board.arrow((3.25, 1.95), (2.9, 1.95), color=LIT)
    board.pill(1.45, 1.77, 1.45, 0.36, "AdamW", lit=True)
    board.text(2.17, 2.3, "m and v, for each weight", size=7.5, color="#444444")
    board.line((1.45, 1.95), (0.9, 1.95), (0.9, 1.35), (2.8, 1.35), color=LIT)
    board.arrow((2.8, 1.35), (2.8, 1.18), color=LIT)
    board.text(0.98, 1.5, "every weight moves a little", size=8, ha="left")
    board.text(9.05, 2.6, "backward: which way would the loss fall?", ha="right", size=8, color="#555555")
    return board.picture(
        f"One step of training. A batch {dims((batch_size, seq_len + 1))} goes through the model, {numbers:,} weights, "
        f"which gives logits {dims((*shape, params.vocab_size))}; cross-entropy makes one number of them, the loss. "
        "Backward finds a gradient for every weight; it is clipped, AdamW keeps two averages of it, and every weight "
        "moves a little. Then the next batch comes."
    )


@styled
def training_memory(needs: Mapping[str, Mapping[str, int]], card: float = 0.0, name: str = "") -> Picture:
    """What training takes, model by model: bars of one length, each cut into its parts, with the sum beside it and how
    many cards of `card` bytes hold that. A part that is missing in one model takes nothing there.
    """
    parts = list(dict.fromkeys(part for sizes in needs.values() for part in sizes))
    line, wide, right = 0.62, 5.9, 8.0
    board = Board(9.2, line * len(needs) + 0.5 + 0.26 * -(-len(parts) // 3))
    looks = {part: (COLORS[i % len(COLORS)], HATCHES[i % len(HATCHES)]) for i, part in enumerate(parts)}
    told = []
    for row, (model, sizes) in enumerate(needs.items()):
        y, x, total = 0.3 + line * row, 1.75, sum(sizes.values())
        board.text(1.62, y + 0.17, model, ha="right", weight="bold")
        for part, (color, hatch) in looks.items():
            width = wide * sizes.get(part, 0) / total
            if width:
                board.rectangle(x, y, width, 0.34, color, hatch=hatch, edgecolor="white", alpha=0.75)
            if width > 0.55:
                board.text(x + width / 2, y + 0.17, _bytes(sizes[part]), size=8, bbox=PAPER)
            x += width
        board.text(right - 0.22, y + 0.17, _bytes(total), ha="left", weight="bold")
        cards = f", {math.ceil(total / card):,} × {name}" if card and total > card else ""
        if cards:
            board.text(right - 0.22, y + 0.37, cards[2:], ha="left", size=7.5, color="#444444")
        told.append(f"{model} {_bytes(total)}{cards}: " + ", ".join(f"{p} {_bytes(s)}" for p, s in sizes.items() if s))
    for i, (part, (color, hatch)) in enumerate(looks.items()):
        x, y = 1.75 + 2.3 * (i % 3), 0.3 + line * len(needs) + 0.1 + 0.26 * (i // 3)
        board.rectangle(x, y, 0.34, 0.17, color, hatch=hatch, edgecolor="white", alpha=0.75)
        board.text(x + 0.42, y + 0.085, part, size=8, ha="left")
    board.text(1.75, 0.12, "bars are equally long: the shares of each sum", size=8, ha="left", color="#555555")
    return board.picture(f"What training takes. {'; '.join(told)}.")


def _bytes(size: float) -> str:
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= 0.9995 * one:
            return f"{size / one:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
