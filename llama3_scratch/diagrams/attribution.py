"""Drawings of notebook 13, second half: the parts of a logit, a vector carried over from another run, a cache that
forgets.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from ..params import ModelArgs
from ..plots import Picture, label, styled
from .board import FLOWS, GREY, LEARNED, LIT, Board, dims

_REACHED = "#8CBEDF"


@styled
def logit_parts(params: ModelArgs, token: str, against: str) -> Picture:
    """How a difference of two logits comes to be a sum: all that was written to the last token's stream, the last norm
    as one number and a gain, and one direction.
    """
    p, board = params, Board(9.2, 2.15)
    parts = 1 + p.n_layers * (p.n_heads + 1)
    y = 1.45
    board.line((0.95, y), (4.8, y), linewidth=3.2, color="#7FB2D6")
    board.pill(0.1, y - 0.17, 0.85, 0.34, "embedding", size=7.5)
    board.rectangle(1.35, 0.3, 3.2, 0.88, "none", edgecolor=GREY, linestyle=(0, (4, 2)))
    for x, name, count in ((1.5, "attention", f"{p.n_heads} heads"), (3.1, "feed-forward", "1 part")):
        board.pill(x, 0.42, 1.3, 0.34, f"{name}: {count}", size=7.5)
        board.arrow((x + 0.65, 0.76), (x + 0.65, y - 0.1))
        board.plus(x + 0.65, y)
    board.text(2.95, 0.14, f"{p.n_layers} layers", size=8)
    board.text(2.95, y + 0.32, f"1 + {p.n_layers} x ({p.n_heads} + 1) = {parts:,} vectors, added up", weight="bold")
    board.text(2.95, y + 0.56, "each has its product with the direction: its share", size=7.5, color="#444444")
    board.arrow((4.8, y), (5.05, y))
    board.vector(5.05, y - 0.08, 0.8)
    board.text(5.45, y - 0.26, "last token", size=7.5, color="#444444")
    board.text(5.45, y + 0.24, dims((p.dim,)), size=7.5, color="#444444")
    board.arrow((5.85, y), (6.05, y))
    board.pill(6.05, y - 0.27, 0.9, 0.54, "÷ its size\nx gain", lit=True, size=7.5)
    board.text(6.5, y + 0.43, "one number for all parts", size=7.5, color="#444444")
    board.text(7.1, y, "·", size=14)
    board.vector(7.25, y - 0.08, 0.75, fill=LEARNED)
    words = f"row of {label(token, 10)}\nless row of {label(against, 10)}"
    board.text(7.62, y - 0.36, words, size=7.5, color="#7A5C00")
    board.text(8.15, y, "=", size=11)
    board.text(8.65, y, "logit\ndifference", size=7.5)
    return board.picture(
        f"The last token's stream is a sum of {parts:,} vectors of {p.dim:,}: the embedding, and from each of "
        f"{p.n_layers} layers what {p.n_heads} heads and the feed-forward step wrote. Divided by its size, times the "
        f"gain of the last norm, and multiplied with the difference of two rows of the output matrix, it gives the "
        f"difference of two logits; so does each part its share."
    )


@styled
def patched_runs(ours: Sequence[str], theirs: Sequence[str], n_layers: int, row: int, place: int) -> Picture:
    """Two runs side by side, a column for each token and a row for each state of the stream, the embeddings below. The
    vector of `theirs` at state `row` and position `place` is put into `ours`: what it can reach is lit.
    """
    states = n_layers + 1
    rows = sorted({0, n_layers} | set(range(max(0, row - 1), min(states, row + 2))))
    heights = {rows[0]: 0.0}
    for below, above in pairwise(rows):
        heights[above] = heights[below] + (0.26 if above == below + 1 else 0.42)
    top, step = max(heights.values()), min(0.62, 3.6 / len(ours))
    board = Board(9.2, top + 1.25)
    ys = {state: 0.45 + top - height for state, height in heights.items()}
    left = {"theirs": 1.1, "ours": 9.1 - step * len(ours)}
    for side, tokens, words in (("theirs", theirs, "taken from this run"), ("ours", ours, "put into this run")):
        x0 = left[side]
        board.text(x0 + step * len(tokens) / 2, 0.15, words, size=8)
        for i, token in enumerate(tokens):
            style: dict[str, Any] = {"rotation": 35, "ha": "right", "va": "top", "rotation_mode": "anchor"}
            strong = "bold" if ours[i] != theirs[i] else "normal"
            board.text(x0 + step * (i + 0.6), 0.62 + top, label(token, 10), size=7.5, weight=strong, **style)
            for state in rows:
                reached = side == "ours" and i >= place and state > row
                fill = LIT if i == place and state == row else _REACHED if reached else FLOWS
                box = (x0 + step * i + 0.05, ys[state] - 0.085, step - 0.1, 0.17)
                board.rectangle(*box, fill, edgecolor="white")
    start = left["theirs"] + step * (place + 1) - 0.05
    board.arrow((start, ys[row]), (left["ours"] + step * place + 0.03, ys[row]), linewidth=1.4)
    for state in rows:
        board.text(1.05, ys[state], _state(state), size=7.5, ha="right")
    for below, above in pairwise(rows):
        if above > below + 1:
            board.text(0.5, (ys[below] + ys[above]) / 2, "...", size=8, color=GREY)
    return board.picture(
        f"Two runs on {len(ours)} tokens each, the stream of each token as a column. The vector at position {place} of "
        f"the one run, {_state(row)}, is put in the same place of "
        f"the other; from there on it can reach position {place} and those behind it, which are lit."
    )


def _state(row: int) -> str:
    return "embeddings" if row == 0 else f"after layer {row - 1}"


@styled
def forgetful_cache(seq: int, window: int, kept: Collection[int] = (), name: str = "the token that looks") -> Picture:
    """What the last of `seq` tokens finds in the cache: all, only the last `window`, and these with `kept` as well."""
    cases = {
        "all of them": set(range(seq)),
        f"the last {window}": set(range(max(0, seq - window), seq)),
    }
    cases[f"the last {window}, and {len(kept)} kept"] = cases[f"the last {window}"] | set(kept)
    board = Board(9.2, 0.62 * len(cases) + 0.3)
    cell = min(0.3, 6.8 / seq)
    x0 = 9.0 - cell * seq
    for n, (words, here) in enumerate(cases.items()):
        y = 0.25 + 0.62 * n
        board.text(x0 - 0.15, y + 0.15, words, ha="right")
        for i in range(seq):
            fill = LIT if i == seq - 1 else FLOWS if i in here else "white"
            board.rectangle(
                x0 + cell * i, y, cell, 0.3, fill, edgecolor="#9BBBD0" if i in here else "#DDDDDD", linewidth=0.6
            )
        board.text(x0, y + 0.42, f"{len(here):,} keys and values", size=7, ha="left", color="#444444")
    board.text(x0 + cell * seq, 0.12, name, size=7.5, ha="right", color="#444444")
    return board.picture(
        f"The cache as {seq} cells. The last token sees all of them; or only the last {window}; or the last {window} "
        f"and {len(kept)} that are kept for good: {len(cases[f'the last {window}, and {len(kept)} kept'])} in all."
    )
