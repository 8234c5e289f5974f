"""One layer: its heads, its bypasses, its feed-forward."""

from collections.abc import Sequence
from typing import Any

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, HATCHES, INK, LIT, PAPER, Board, dims


@styled
def grouped_heads(params: ModelArgs, most: int = 12) -> Picture:
    """Which query head reads which key and value head: groups side by side, one colour a KV head.

    Models with more than `most` query heads are drawn with their first groups.
    """
    group, n = params.group_size, params.n_heads
    groups = max(1, min(params.n_kv_heads, most // group)) if n > most else params.n_kv_heads
    shown = min(groups * group, max(most, group))
    step = 8.2 / max(shown, 6)
    board = Board(9.2, 1.75)
    for h in range(shown):
        g = h // group
        x, kv = 0.9 + h * step, 0.9 + (g * group + (min(group, shown - g * group) - 1) / 2) * step
        color, hatch = COLORS[g % len(COLORS)], HATCHES[g % len(HATCHES)]
        board.rectangle(x, 0.2, step * 0.82, 0.32, color, alpha=0.85, hatch=hatch)
        board.text(x + step * 0.41, 0.36, f"q{h}", weight="bold", bbox=PAPER)
        board.line((x + step * 0.41, 0.52), (kv + step * 0.41, 1.02), color=color)
    for g in range(-(-shown // group)):
        kv = 0.9 + (g * group + (min(group, shown - g * group) - 1) / 2) * step
        color, hatch = COLORS[g % len(COLORS)], HATCHES[g % len(HATCHES)]
        board.rectangle(kv, 1.02, step * 0.82, 0.32, color, alpha=0.85, hatch=hatch)
        board.text(kv + step * 0.41, 1.18, f"kv{g}", weight="bold", bbox=PAPER)
    board.text(0.8, 0.36, "queries", ha="right")
    board.text(0.8, 1.18, "keys,\nvalues", ha="right")
    rest = f"; the first {shown} are drawn" if shown < n else ""
    words = f"{n} query heads over {params.n_kv_heads} key and value heads: {group} share one"
    board.text(4.9, 1.6, words + rest, size=8)
    return board.picture(f"Grouped-query attention: {words}{rest}. Neighbouring query heads form a group.")


HEAD_STEPS = ("q", "k", "v", "rotate", "scores", "mask", "softmax", "out")


@styled
def one_head(params: ModelArgs, tokens: int | str = "seq", here: str | Sequence[str] = ()) -> Picture:
    """The way through one attention head, from x to what it found, with the shape of everything.

    The steps in `here`, names of HEAD_STEPS, are lit; `tokens` is the number of tokens, or a word for it.
    """
    lit = {here} if isinstance(here, str) else set(here)
    if unknown := lit - set(HEAD_STEPS):
        raise ValueError(f"here must be among {', '.join(HEAD_STEPS)}, not {sorted(unknown)[0]!r}")
    p, board = params, Board(9.2, 3.0)

    def matrix(x: float, y: float, w: float, h: float, name: str, shape: Sequence[int | str], step: str) -> None:
        board.matrix(x, y, w, h, name, shape, FLOWS)
        if step in lit:
            board.rectangle(x, y, w, h, "none", edgecolor=LIT, linewidth=3)

    board.matrix(0.1, 1.1, 0.8, 0.6, "x", (tokens, p.dim), FLOWS)
    for i, (name, y) in enumerate((("q", 0.25), ("k", 1.2), ("v", 2.15))):
        board.arrow((0.9, 1.4), (1.25, y + 0.21), color=GREY)
        board.matrix(1.25, y, 0.75, 0.42, f"w{name}", (p.head_dim, p.dim))
        board.arrow((2.0, y + 0.21), (2.35, y + 0.21))
        matrix(2.35, y, 0.6, 0.42, name, (tokens, p.head_dim), name)
        if i < 2:
            board.arrow((2.95, y + 0.21), (3.2, y + 0.21))
            board.pill(3.2, y + 0.03, 0.62, 0.36, "rotate", "rotate" in lit, size=7.5)
            board.arrow((3.82, y + 0.21), (4.3, 0.85 + 0.12 * (i * 2 - 1)))
    matrix(4.3, 0.5, 0.75, 0.7, "scores", (tokens, tokens), "scores")
    board.text(4.67, 0.32, "q @ k.T / √head_dim", size=7.5)
    board.arrow((5.05, 0.85), (5.25, 0.85))
    board.pill(5.25, 0.68, 0.55, 0.34, "mask", "mask" in lit, size=7.5)
    board.arrow((5.8, 0.85), (5.95, 0.85))
    board.pill(5.95, 0.68, 0.68, 0.34, "softmax", "softmax" in lit, size=7.5)
    board.arrow((6.63, 0.85), (6.8, 0.85))
    matrix(6.8, 0.5, 0.75, 0.7, "weights", (tokens, tokens), "softmax")
    board.arrow((7.55, 0.85), (8.05, 1.45))
    board.line((2.95, 2.36), (7.4, 2.36), color=INK)
    board.arrow((7.4, 2.36), (8.05, 1.75))
    matrix(8.05, 1.3, 0.75, 0.6, "out", (tokens, p.head_dim), "out")
    board.text(7.75, 2.55, "weights @ v", size=7.5)
    now = f" Lit: {', '.join(step for step in HEAD_STEPS if step in lit)}." if lit else ""
    return board.picture(
        f"One head: x {dims((tokens, p.dim))} is multiplied by wq, wk and wv, {dims((p.head_dim, p.dim))} each, to q, "
        f"k and v {dims((tokens, p.head_dim))}; q and k are rotated; their products, divided by the square root of "
        f"head_dim, are the scores {dims((tokens, tokens))}; mask and softmax make weights of them; weights times v is "
        f"the output {dims((tokens, p.head_dim))}.{now}"
    )


@styled
def heads_to_stream(params: ModelArgs, tokens: int | str = "seq", most: int = 9) -> Picture:
    """The outputs of all heads side by side, then wo back to the width of the stream. Each head meets its own rows of
    wo.T, which have its colour.
    """
    p, board = params, Board(9.2, 2.55)
    n = min(p.n_heads, most)
    width, height = 3.6 / n, 1.8 / n
    for h in range(n):
        g = h // p.group_size
        name = f"{h}" if h < n - 1 or n == p.n_heads else "..."
        style: dict[str, Any] = {"alpha": 0.85, "hatch": HATCHES[g % len(HATCHES)]}
        color = COLORS[g % len(COLORS)]
        board.rectangle(0.2 + h * width, 0.9, width, 0.6, color, **style)
        board.text(0.2 + (h + 0.5) * width, 1.2, name, bbox=PAPER)
        board.rectangle(4.35, 0.35 + h * height, 1.8, height, color, **style | {"alpha": 0.4})
        board.text(4.55, 0.35 + (h + 0.5) * height, name, size=6.5, bbox=PAPER | {"pad": 0.6})
    board.text(2.0, 0.72, f"out of {p.n_heads} heads, {dims((tokens, p.head_dim))} each, side by side", size=8)
    board.text(2.0, 1.66, dims((tokens, p.n_heads * p.head_dim)), size=7.5, color="#444444")
    board.text(4.08, 1.2, "@", size=11)
    board.text(5.25, 1.25, "wo.T", bbox=PAPER)
    board.text(5.25, 0.2, "each head meets its own rows", size=8)
    board.text(5.25, 2.3, dims((p.n_heads * p.head_dim, p.dim)), size=7.5, color="#444444")
    board.text(6.42, 1.2, "=", size=11)
    board.matrix(6.7, 0.9, 1.8, 0.6, "delta", (tokens, p.dim), FLOWS)
    board.text(7.6, 0.72, "the sum of what the heads write", size=8)
    return board.picture(
        f"The outputs of {p.n_heads} heads, {dims((tokens, p.head_dim))} each, stand side by side as "
        f"{dims((tokens, p.n_heads * p.head_dim))}. Times wo.T, of which each head meets its own rows, this is delta, "
        f"{dims((tokens, p.dim))}: the sum of what the heads write."
    )


@styled
def bypasses(params: ModelArgs, tokens: int | str = "seq") -> Picture:
    """A layer's two additions, as they are, and beside them the arrow that is often drawn wrong."""
    board, y, wrong = Board(9.2, 2.5), 1.55, "#D55E00"
    for left, right in ((0.1, True), (4.75, False)):
        board.text(left, 0.15, "right" if right else "wrong", ha="left", weight="bold", color=INK if right else wrong)
        words = "both bypasses start from the stream" if right else "the second starts behind the norm"
        board.text(left + 0.55, 0.15, words, ha="left", size=8)
        board.line((left, y), (left + (4.1 if right else 2.25), y), linewidth=3.2, color="#7FB2D6")
        for half, name in enumerate(("attention", "feed-forward")):
            x = left + 0.3 + 1.95 * half
            board.line((x, y), (x, 0.75))
            board.arrow((x, 0.75), (x + 0.15, 0.75))
            board.pill(x + 0.15, 0.59, 0.46, 0.32, "norm", size=7.5)
            board.arrow((x + 0.61, 0.75), (x + 0.82, 0.75))
            board.pill(x + 0.82, 0.55, 0.85, 0.4, name, size=7.5)
            board.arrow((x + 1.25, 0.95), (x + 1.25, y - 0.1))
            board.plus(x + 1.25, y)
        if not right:
            at = left + 2.95  # between the second norm and feed-forward
            ends: dict[str, Any] = {"linewidth": 3.2, "color": wrong, "linestyle": (0, (2.2, 1.1))}
            board.line((at, 0.78), (at, y), (left + 4.1, y), **ends)
        end = left + 4.1
        board.arrow((end, y), (end + 0.16, y), linewidth=2.4, color="#5B93BB" if right else wrong)
        board.text(left + 0.65, y + 0.2, f"stream {dims((tokens, params.dim))}", size=7.5, color="#444444")
        result = "what was there, and what is new" if right else "what was there, cut to one length, and what is new"
        board.text(left + 2.1, y + 0.55, result, size=8, color=INK if right else "#B44A00")
    board.line((4.5, 0.1), (4.5, 2.35), color="#DDDDDD")
    return board.picture(
        "A layer, drawn twice. Right: the stream runs straight through; attention and feed-forward each read a "
        "normalised copy of it, and what they find is added to the stream itself. Wrong: the second bypass starts "
        "behind the second norm, so that the stream is replaced by its normalised copy."
    )


@styled
def swiglu(params: ModelArgs, tokens: int | str = "seq") -> Picture:
    """The feed-forward step: two matrices up, a gate, one matrix down."""
    p, board = params, Board(9.2, 2.5)
    board.matrix(0.1, 0.95, 0.75, 0.55, "x", (tokens, p.dim), FLOWS)
    for name, other, y, result in (("w1", "gate_proj", 0.25, "gate"), ("w3", "up_proj", 1.6, "up")):
        board.arrow((0.85, 1.22), (1.25, y + 0.25), color=GREY)
        board.matrix(1.25, y, 1.15, 0.5, name, (p.hidden_dim, p.dim))
        board.text(1.82, y - 0.11, other, size=7, color=GREY)
        board.arrow((2.4, y + 0.25), (2.7 if name == "w1" else 3.5, y + 0.25))
        if name == "w1":
            board.pill(2.7, y + 0.08, 0.5, 0.34, "SiLU", size=7.5)
            board.arrow((3.2, y + 0.25), (3.5, y + 0.25))
            board.matrix(3.5, y + 0.02, 1.1, 0.46, result, (tokens, p.hidden_dim), FLOWS)
            board.arrow((4.6, y + 0.25), (5.0, 1.12))
        else:
            board.matrix(3.5, y + 0.02, 1.1, 0.46, result, (tokens, p.hidden_dim), FLOWS)
            board.arrow((4.6, y + 0.25), (5.0, 1.34))
    board.pill(5.0, 1.06, 0.36, 0.34, "×")
    board.arrow((5.36, 1.23), (5.6, 1.23))
    board.matrix(5.6, 1.0, 1.1, 0.46, "hidden", (tokens, p.hidden_dim), FLOWS)
    board.arrow((6.7, 1.23), (6.9, 1.23))
    board.matrix(6.9, 0.75, 0.7, 0.95, "w2", (p.dim, p.hidden_dim))
    board.text(7.25, 0.62, "down_proj", size=7, color=GREY)
    board.arrow((7.6, 1.23), (7.9, 1.23))
    board.matrix(7.9, 0.95, 0.8, 0.55, "delta", (tokens, p.dim), FLOWS)
    board.text(6.15, 0.86, f"{p.hidden_dim:,} neurons", size=7.5, color="#7A5C00")
    board.text(5.18, 1.58, "number\nby number", size=7, color="#444444")
    return board.picture(
        f"SwiGLU: x {dims((tokens, p.dim))} goes through w1 and SiLU to the gate, and through w3 to up, both "
        f"{dims((tokens, p.hidden_dim))}; their product, number by number, goes through w2 back to "
        f"{dims((tokens, p.dim))}."
    )
