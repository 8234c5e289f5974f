"""Writing: what is computed and what is kept, the rows of the mask, the dart board of sampling, a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .. import functional
from ..params import ModelArgs
from ..plots import COLORS, Picture, label, styled
from .board import FLOWS, GREY, HATCHES, INK, LEARNED, LIT, PAPER, Board, dims

_KEPT: dict[str, Any] = {"edgecolor": "#9BBBD0", "linewidth": 0.6}
_NEW: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6}


@styled
def work(prompt: int, new: int) -> Picture:
    """Which positions go through the layers at each step, to write `new` tokens behind `prompt`: all of them anew, and
    with a cache. A row is a step, a column a position.
    """
    columns = prompt + new - 1  # the last token is written, and not read any more
    cell = min(0.3, 3.7 / columns, 2.9 / new)
    width = cell * columns
    board = Board(9.2, cell * new + 1.15)
    told = []
    gap = (9.0 - 2 * width - 1.5) / 2  # to the right of each grid
    for left, cached in ((0.75, False), (1.5 + width + gap, True)):
        computed = 0
        for step in range(new):
            for position in range(prompt + step):
                kept = cached and step > 0 and position < prompt + step - 1
                computed += not kept
                place = (left + cell * position, 0.5 + cell * step, cell, cell)
                board.rectangle(*place, FLOWS if kept else LIT, **(_KEPT if kept else _NEW))
        title = "with a cache" if cached else "from scratch"
        board.text(left, 0.15, f"{title}: {computed:,} positions computed", ha="left", weight="bold")
        board.text(left + width / 2, 0.5 + cell * new + 0.42, "position")
        for position in (0, prompt - 1, columns - 1):
            board.text(left + cell * (position + 0.5), 0.5 + cell * new + 0.18, str(position), size=7.5)
        for step in range(new) if cell > 0.16 else (0, new - 1):
            board.text(left - 0.1, 0.5 + cell * (step + 0.5), f"step {step + 1}", size=7.5, ha="right")
        if cached:
            board.text(left + width, 0.36, "dark: computed   pale: kept", size=7.5, ha="right", color="#444444")
        told.append(computed)
    return board.picture(
        f"Two grids, a row for each of {new} steps and a column for each of {columns} positions. From scratch, every "
        f"step computes all positions so far, a slanted block of {told[0]:,} cells. With a cache, the first step "
        f"computes the {prompt} positions of the prompt and every later step one: a staircase of {told[1]:,} cells."
    )


@styled
def new_token(params: ModelArgs, kept: int) -> Picture:
    """One new token in one layer: its query meets the kept keys and its own, and gathers the values."""
    p, board = params, Board(9.2, 2.75)
    cells = min(kept, 9) + 1
    step = 0.26
    board.matrix(0.1, 1.05, 0.85, 0.3, "x", (1, p.dim), FLOWS)
    board.text(0.52, 0.85, "the new token", size=7.5, color="#444444")
    shapes = {"q": p.n_heads, "k": p.n_kv_heads, "v": p.n_kv_heads}
    for name, y in (("q", 0.2), ("k", 1.05), ("v", 1.9)):
        board.arrow((0.95, 1.2), (1.45, y + 0.15), color=GREY)
        board.pill(1.45, y, 0.5, 0.3, f"w{name}", size=7.5)
        board.arrow((1.95, y + 0.15), (2.25, y + 0.15))
        board.matrix(2.25, y, 0.6, 0.3, name, (1, shapes[name], p.head_dim), FLOWS)
    for name, y in (("keys", 1.05), ("values", 1.9)):
        end = 3.75 + step * cells
        board.line((2.85, y + 0.15), (3.3, y + 0.15), (3.3, y + 0.42), (end - step / 2, y + 0.42), color=GREY)
        board.arrow((end - step / 2, y + 0.42), (end - step / 2, y + 0.3), color=GREY)
        for i in range(cells):
            last = i == cells - 1
            board.rectangle(3.75 + step * i, y, step, 0.3, LIT if last else FLOWS)
            words = str(kept) if last else "…" if kept > 9 and i == cells - 2 else str(i)
            board.text(3.75 + step * (i + 0.5), y + 0.15, words, size=7, color="white" if last else INK)
        board.text(3.75, y - 0.13, f"{name}: {kept} kept, one new", size=7.5, ha="left", color="#444444")
    end = 3.75 + step * cells
    board.line((2.85, 0.35), (end + 0.3, 0.35))
    board.arrow((end + 0.3, 0.35), (end + 0.55, 0.76))
    board.arrow((end, 1.2), (end + 0.55, 0.98))
    board.pill(end + 0.55, 0.66, 1.15, 0.4, f"scores {dims((1, kept + 1))}", lit=True, size=7.5)
    board.text(end + 1.12, 0.52, f"in each of {p.n_heads} heads", size=7.5, color="#444444")
    board.arrow((end + 1.12, 1.06), (end + 1.12, 1.3))
    board.pill(end + 0.75, 1.3, 0.75, 0.3, "softmax", size=7.5)
    board.arrow((end + 1.12, 1.6), (end + 1.12, 1.9))
    board.arrow((end, 2.05), (end + 0.75, 2.05))
    board.pill(end + 0.75, 1.9, 0.75, 0.3, "sum", size=7.5)
    board.arrow((end + 1.5, 2.05), (end + 1.7, 2.05))
    board.text(end + 1.75, 2.05, "to wo", size=8, ha="left")
    return board.picture(
        f"One new token in one layer. Its row {dims((1, p.dim))} becomes a query {dims((1, p.n_heads, p.head_dim))}, a "
        f"key and a value {dims((1, p.n_kv_heads, p.head_dim))}. Key and value are added to the {kept} that are kept. "
        f"The query meets all {kept + 1} keys; the {kept + 1} scores become weights for the values."
    )


@styled
def new_rows(cases: Sequence[tuple[int, int]] = ((0, 5), (5, 3), (8, 1))) -> Picture:
    """The mask of new tokens behind kept ones, for each (kept, new): rows are the new tokens, columns all positions."""
    cell = min(0.27, 7.0 / sum(kept + new for kept, new in cases))
    names = ("prefill", "a piece", "one token")
    widths = [cell * (kept + new) for kept, new in cases]
    gap = (9.2 - sum(widths)) / (len(cases) + 1)
    board, x = Board(9.2, cell * max(new for _, new in cases) + 1.3), gap
    told = []
    for i, ((kept, new), width) in enumerate(zip(cases, widths, strict=True)):
        mask = functional.causal_mask(new, start_pos=kept)
        for row in range(new):
            for column in range(kept + new):
                hidden = bool(mask[row, column].isinf())
                style = {"hatch": "////", "edgecolor": "#AAAAAA"} if hidden else _KEPT if column < kept else _NEW
                fill = "white" if hidden else FLOWS if column < kept else LIT
                board.rectangle(x + cell * column, 0.72 + cell * row, cell, cell, fill, **style)
            board.text(x - 0.06, 0.72 + cell * (row + 0.5), str(kept + row), size=7.5, ha="right")
        shape = dims((new, kept + new))
        name = names[i] if len(cases) == len(names) else f"{new} new"
        board.text(x + width / 2, 0.15, name, weight="bold")
        board.text(x + width / 2, 0.38, f"{new} new behind {kept}: {shape}", size=8)
        for column in (0, kept + new - 1):
            board.text(x + cell * (column + 0.5), 0.6, str(column), size=7.5)
        told.append(f"{name}, {new} new tokens behind {kept}: {shape}, {int(mask.isinf().sum())} of them closed")
        x += width + gap
    low = 0.72 + cell * max(new for _, new in cases) + 0.3
    signs: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("kept, open", FLOWS, _KEPT),
        ("new, open", LIT, _NEW),
        ("in the future: minus infinity", "white", {"hatch": "////", "edgecolor": "#AAAAAA"}),
    )
    for at, (words, fill, style) in zip((2.0, 3.7, 5.2), signs, strict=True):
        board.rectangle(at, low - 0.07, 0.16, 0.14, fill, **style)
        board.text(at + 0.24, low, words, size=8, ha="left")
    return board.picture(
        "Masks of new tokens behind kept ones; rows are the new tokens, columns all positions. "
        + "; ".join(told)
        + ". Every new token may look at all that is kept, at itself, and at the new ones before it."
    )


@styled
def cache_filling(params: ModelArgs, room: int, lengths: Sequence[int]) -> Picture:
    """The cache at several moments: `room` positions, of which the first `lengths[i]` are in use."""
    cell = min(0.36, 5.2 / room)
    board = Board(9.2, 0.36 * len(lengths) + 1.35)
    left, before = 2.45, 0
    for i, length in enumerate(lengths):
        y = 0.5 + 0.36 * i
        for position in range(room):
            new = before <= position < length
            fill = LIT if new else FLOWS if position < length else "white"
            board.rectangle(left + cell * position, y, cell, 0.26, fill, edgecolor="#9BBBD0", linewidth=0.6)
        board.text(left - 0.12, y + 0.13, "empty" if not length else f"length {length}", ha="right")
        words = "" if length == before else f"{length - before} written" + (", the prompt" if before == 0 else "")
        board.text(left + cell * room + 0.12, y + 0.13, words, ha="left", size=8)
        before = length
    for position in (0, room - 1):
        board.text(left + cell * (position + 0.5), 0.36, str(position), size=7.5)
    board.text(left + cell * room / 2, 0.14, f"room for {room} positions (max_seq_len)")
    shape = (params.n_layers, 1, params.n_kv_heads, room, params.head_dim)
    y = 0.5 + 0.36 * len(lengths) + 0.25
    words = f"keys {dims(shape)}, values {dims(shape)}"
    board.text(4.6, y, words + ":  [n_layers, batch, n_kv_heads, max_seq_len, head_dim]", size=7.5, color="#444444")
    board.text(4.6, y + 0.24, "dark: written now   pale: kept   white: reserved", size=8)
    return board.picture(
        f"A cache with room for {room} positions, filled from the left; in use at each moment: "
        f"{', '.join(map(str, lengths))}. Keys and values are {dims(shape)} each."
    )


@styled
def dart_board(
    boards: Mapping[str, torch.Tensor], names: Mapping[int, str], darts: Sequence[float] = (), title: str = ""
) -> Picture:
    """Distributions [vocab] as bars from 0 to 1, each token as wide as its probability, the tokens of `names` (id ->
    label) in their order and all others together behind them. `darts` are numbers in that interval.
    """
    figure = Figure(figsize=(9.2, 0.72 * len(boards) + (1.05 if title else 0.8)), layout="constrained")
    ax = figure.add_subplot()
    told = []
    for row, (name, probs) in enumerate(boards.items()):
        shares = {id: float(probs[id]) for id in names}
        others = int((probs > 0).sum()) - sum(share > 0 for share in shares.values())
        parts = [(names[id], share) for id, share in shares.items()]
        parts.append((f"{others:,} others", max(0.0, 1 - sum(shares.values())) if others else 0.0))
        x = 0.0
        for i, (words, share) in enumerate(parts):
            last = i == len(parts) - 1
            fill = "#DDDDDD" if last else COLORS[i % len(COLORS)]
            hatch = "" if last else HATCHES[i % len(HATCHES)]
            style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.8, "hatch": hatch, "alpha": 0.85}
            ax.add_patch(Rectangle((x, row - 0.24), share, 0.48, facecolor=fill, **style))
            if share > 0.013 * (len(words) + 1):
                box = PAPER | {"pad": 0.8}
                ax.text(x + share / 2, row, words, ha="center", va="center", fontsize=8, bbox=box)
            x += share
        if darts:
            ax.plot(darts, [row - 0.33] * len(darts), linestyle="", marker="v", markersize=6, color=INK)
            ax.vlines(darts, row - 0.33, row + 0.24, color=INK, linewidth=0.7)
        told.append(f"{name}: " + ", ".join(f"{words} {share:.2f}" for words, share in parts if share))
    ax.set_yticks(range(len(boards)), list(boards))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set(xlim=(0, 1), ylim=(len(boards) - 0.6, -0.6), title=title)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return Picture(figure, "Probabilities side by side on the interval from 0 to 1. " + "; ".join(told) + ".")


@styled
def chat_tokens(
    tokens: Sequence[str], control: Sequence[bool], trained: Sequence[bool] | None = None, title: str = ""
) -> Picture:
    """The tokens of a conversation as boxes: control tokens dark, and a bar under those that the model is trained to
    write. A token that ends in a line break ends the row.
    """
    char, line, x, y = 0.088, 0.47, 0.1, 0.4 if title else 0.12
    board_boxes, widest = [], 0.0
    for i, token in enumerate(tokens):
        words = token if control[i] else label(token, 22)
        width = 0.12 + char * max(len(words), 1)
        if x + width > 9.1:
            x, y = 0.1, y + line
        board_boxes.append((x, y, width, words, bool(control[i]), bool(trained and trained[i])))
        x += width + 0.05
        widest = max(widest, x)
        if token.endswith("\n") or (control[i] and i + 1 < len(tokens) and control[i + 1]):
            x, y = 0.1, y + line
    board = Board(9.2, y + line + 0.05)
    if title:
        board.text(0.1, 0.16, title, ha="left", weight="bold")
    for x, y, width, words, dark, learned in board_boxes:
        fill = "#1F4E79" if dark else FLOWS
        board.rectangle(x, y, width, 0.28, fill, linewidth=0.6)
        board.text(x + width / 2, y + 0.14, words, size=8, color="white" if dark else INK, family="DejaVu Sans Mono")
        if learned:
            board.rectangle(x, y + 0.31, width, 0.06, LEARNED, linewidth=0.6)
    dark_ones = sum(map(bool, control))
    learned_ones = f"; {sum(trained)} of them are trained on" if trained else ""
    words = " ".join(tokens).replace("\n", "\\n")
    return board.picture(f"{len(tokens)} tokens, {dark_ones} of them control tokens{learned_ones}: {words}")


@styled
def turns(parts: Sequence[tuple[int, int, int]]) -> Picture:
    """A conversation that keeps its cache, a row for each turn: positions that were kept, read now, and written."""
    longest = max(sum(part) for part in parts)
    board = Board(9.2, 0.46 * len(parts) + 0.75)
    left, unit = 0.85, 6.6 / longest
    for row, (kept, read, written) in enumerate(parts):
        x, y = left, 0.15 + 0.46 * row
        board.text(left - 0.12, y + 0.15, f"turn {row + 1}", ha="right")
        for count, fill, hatch in ((kept, FLOWS, ""), (read, LIT, ""), (written, COLORS[1], "///")):
            if count:
                board.rectangle(x, y, count * unit, 0.3, fill, hatch=hatch, linewidth=0.6)
                board.text(x + count * unit / 2, y + 0.15, str(count), size=8, bbox=PAPER)
            x += count * unit
    y = 0.15 + 0.46 * len(parts) + 0.18
    for at, words, fill, hatch in (
        (left, "kept in the cache", FLOWS, ""),
        (left + 1.8, "read in this turn", LIT, ""),
        (left + 3.6, "written by the model", COLORS[1], "///"),
    ):
        board.rectangle(at, y, 0.2, 0.14, fill, hatch=hatch, linewidth=0.6)
        board.text(at + 0.28, y + 0.07, words, size=8, ha="left")
    said = "; ".join(f"turn {i + 1}: {k} kept, {r} read, {w} written" for i, (k, r, w) in enumerate(parts))
    return board.picture(f"Positions of a conversation by turn. {said}.")
