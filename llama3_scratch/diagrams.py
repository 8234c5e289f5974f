"""Drawings of the machine, made from the sizes of the loaded model. One visual language for all of them:

a vector is a strip, a matrix a rectangle with its shape written below, a head a colour. What flows is blue, what was
learned is yellow, an operation is a white pill, and the step that a notebook is about is lit. Like the pictures of
`plots`, each is a Picture, carries what it shows in numbers and words, and has a text for those who cannot see it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle, Wedge

from .params import ModelArgs
from .plots import COLORS, Picture, _families, styled

FLOWS, LEARNED, LIT, INK, GREY = "#CFE3F1", "#FBE7BC", "#0072B2", "#222222", "#8A8A8A"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")  # with the colours of heads, for readers in grey


class Board:
    """A drawing surface, measured in inches from the upper left corner."""

    def __init__(self, width: float, height: float, title: str = "") -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.ax: Axes = self.figure.add_subplot()
        self.ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        self.ax.axis("off")
        self.ax.set_gid("drawing")
        if title:
            self.ax.set_title(title)

    def picture(self, alt: str) -> Picture:
        return Picture(self.figure, alt)

    def text(self, x: float, y: float, words: str, size: float = 8.5, **style: Any) -> None:
        settings: dict[str, Any] = {"ha": "center", "va": "center", "color": INK} | style
        self.ax.text(x, y, words, fontsize=size, **settings)

    def rectangle(self, x: float, y: float, w: float, h: float, fill: str, **style: Any) -> None:
        settings: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.8} | style
        self.ax.add_patch(Rectangle((x, y), w, h, facecolor=fill, **settings))

    def vector(self, x: float, y: float, w: float, name: str = "", fill: str = FLOWS, cells: int = 12) -> None:
        """A strip of numbers; the cells only say that there are many."""
        self.rectangle(x, y, w, 0.16, fill)
        for i in range(1, cells):
            self.ax.plot([x + w * i / cells] * 2, [y, y + 0.16], color="white", linewidth=0.6)
        if name:
            self.text(x + w / 2, y + 0.32, name)

    def matrix(
        self, x: float, y: float, w: float, h: float, name: str, shape: Sequence[int | str], fill: str = LEARNED
    ) -> None:
        """A rectangle, its name inside and its shape below."""
        self.rectangle(x, y, w, h, fill)
        self.text(x + w / 2, y + h / 2, name)
        self.text(x + w / 2, y + h + 0.14, dims(shape), size=7.5, color="#444444")

    def pill(self, x: float, y: float, w: float, h: float, words: str, lit: bool = False, size: float = 8.5) -> None:
        """An operation."""
        box = FancyBboxPatch(
            (x, y),
            w,
            h,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=LIT if lit else "white",
            edgecolor=LIT if lit else INK,
            linewidth=1.0,
        )
        self.ax.add_patch(box)
        self.text(x + w / 2, y + h / 2, words, size=size, color="white" if lit else INK)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
        settings: dict[str, Any] = {"color": INK, "linewidth": 1.0, "arrowstyle": "-|>", "mutation_scale": 9} | style
        self.ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **settings))

    def line(self, *points: tuple[float, float], **style: Any) -> None:
        settings: dict[str, Any] = {"color": INK, "linewidth": 1.0} | style
        self.ax.plot([x for x, _ in points], [y for _, y in points], **settings)

    def plus(self, x: float, y: float) -> None:
        """An addition to the stream."""
        self.ax.add_patch(
            FancyBboxPatch(
                (x - 0.1, y - 0.1),
                0.2,
                0.2,
                boxstyle="round,pad=0,rounding_size=0.1",
                facecolor="white",
                edgecolor=INK,
                zorder=4,
            )
        )
        self.text(x, y - 0.005, "+", size=10, zorder=5)


def dims(shape: Sequence[int | str]) -> str:
    """[16, 576], with commas in large numbers."""
    return "[" + ", ".join(f"{n:,}" if isinstance(n, int) else n for n in shape) + "]"


STEPS = ("tokenizer", "embedding", "norm", "attention", "heads", "feed_forward", "layers", "logits")


@styled
def model_map(params: ModelArgs, here: str | Sequence[str] = (), tokens: int | str = "seq") -> Picture:
    """The whole model as boxes with its real sizes, the steps in `here` lit ("you are here").

    `here` holds names of STEPS; `tokens` is the number of tokens in the prompt, or a word for it.
    """
    lit = {here} if isinstance(here, str) else set(here)
    unknown = lit - set(STEPS)
    if unknown:
        raise ValueError(f"here must be among {', '.join(STEPS)}, not {sorted(unknown)[0]!r}")
    p, board = params, Board(9.2, 2.3)
    y = 1.42  # of the stream
    board.pill(0.1, y - 0.2, 0.95, 0.4, "tokenizer", "tokenizer" in lit)
    board.text(0.57, y - 0.38, "text", color=GREY)
    board.text(0.57, y + 0.36, f"ids [{tokens}]", size=7.5, color="#444444")
    board.pill(1.3, y - 0.2, 0.95, 0.4, "embedding", "embedding" in lit)
    board.text(1.77, y - 0.38, dims((p.vocab_size, p.dim)), size=7.5, color="#7A5C00")
    board.line((2.25, y), (7.0, y), linewidth=3.2, color=LIT if "layers" in lit else "#7FB2D6")
    board.text(2.62, y + 0.2, f"[{tokens}, {p.dim:,}]", size=7.5, color="#444444")
    frame = FancyBboxPatch(
        (2.92, 0.22),
        3.92,
        1.68,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor="none",
        edgecolor=LIT if "layers" in lit else GREY,
        linewidth=2.2 if "layers" in lit else 1.0,
        linestyle="-" if "layers" in lit else (0, (4, 2)),
    )
    board.ax.add_patch(frame)
    times = f"layer, {p.n_layers} times"
    board.text(4.88, 2.06, times, color=LIT if "layers" in lit else INK, weight="bold" if "layers" in lit else "normal")
    halves = (
        (3.05, "attention", f"{p.n_heads} heads over {p.n_kv_heads}", {"attention", "heads"}),
        (4.98, "feed-forward", f"{p.hidden_dim:,} neurons", {"feed_forward"}),
    )
    for x, name, size, names in halves:
        board.line((x + 0.12, y), (x + 0.12, 0.72))
        board.arrow((x + 0.12, 0.72), (x + 0.25, 0.72))
        board.pill(x + 0.25, 0.56, 0.5, 0.32, "norm", "norm" in lit, size=7.5)
        board.arrow((x + 0.75, 0.72), (x + 0.85, 0.72))
        board.pill(x + 0.85, 0.49, 0.88, 0.46, name, bool(names & lit))
        board.text(x + 1.29, 0.36, size, size=7.5, color="#7A5C00")
        board.line((x + 1.29, 0.95), (x + 1.29, y - 0.1))
        board.arrow((x + 1.29, 1.0), (x + 1.29, y - 0.1))
        board.plus(x + 1.29, y)
    board.pill(7.0, y - 0.16, 0.5, 0.32, "norm", "norm" in lit or "logits" in lit, size=7.5)
    board.arrow((7.5, y), (7.68, y))
    board.pill(7.68, y - 0.2, 0.75, 0.4, "output", "logits" in lit)
    board.text(8.05, y - 0.38, dims((p.vocab_size, p.dim)), size=7.5, color="#7A5C00")
    board.arrow((8.43, y), (8.62, y))
    board.text(8.9, y, "next\ntoken", color=GREY)
    board.text(8.05, y + 0.36, "logits", size=7.5, color="#444444")
    board.arrow((1.05, y), (1.3, y))
    alt = (
        f"The whole model: text, tokenizer, embedding of {p.vocab_size:,} rows of {p.dim:,}; {p.n_layers} layers, each "
        f"with norm and attention ({p.n_heads} query heads over {p.n_kv_heads} key and value heads), added to the "
        f"stream, then norm and feed-forward ({p.hidden_dim:,} neurons), added to the stream; last norm, output, next "
        f"token. Lit, for this notebook: {', '.join(sorted(lit)) or 'nothing'}."
    )
    return board.picture(alt)


@styled
def text_to_rows(labels: Sequence[str], ids: Sequence[int], params: ModelArgs, most: int = 6) -> Picture:
    """Text, cut into tokens, becomes ids, and each id a row of the table: [seq] -> [seq, dim].

    `labels` and `ids` are those of a prompt; the first `most` are drawn.
    """
    n = min(len(ids), most)
    board = Board(1.25 * n + 2.5, 2.65)
    table_x, table_y, height = 1.25 * n + 0.5, 0.45, 1.75
    distinct = sorted(set(ids[:n]))
    style: dict[int, dict[str, Any]] = {
        id: {"alpha": 0.5, "hatch": HATCHES[i % len(HATCHES)]} for i, id in enumerate(distinct)
    }
    colors = {id: COLORS[i % len(COLORS)] for i, id in enumerate(distinct)}
    board.matrix(table_x, table_y, 1.2, height, "", (params.vocab_size, params.dim))
    gap = min(0.22, height / len(distinct))
    places = [table_y + (height - 0.13) * id / params.vocab_size for id in distinct]
    for i in range(1, len(places)):  # in order, and never so close that they hide each other
        places[i] = max(places[i], places[i - 1] + gap)
    for i, y in enumerate(places):
        places[i] = min(y, table_y + height - 0.13 - gap * (len(places) - 1 - i))
    for id, y in zip(distinct, places, strict=True):
        board.rectangle(table_x, y, 1.2, 0.13, colors[id], **style[id])
        board.text(table_x + 1.25, y + 0.065, f"{id:,}", size=7.5, ha="left")
    for i in range(n):
        x = 0.2 + 1.25 * i
        board.rectangle(x, 0.12, 1.1, 0.3, ("#DCE9F2", "#FBEFD5")[i % 2], edgecolor="#777777", linewidth=0.6)
        board.text(x + 0.55, 0.27, labels[i])
        board.arrow((x + 0.55, 0.42), (x + 0.55, 0.72))
        board.text(x + 0.55, 0.84, f"{ids[i]:,}", weight="bold")
        board.arrow((x + 0.55, 0.98), (x + 0.55, 1.6))
        board.rectangle(x, 1.65, 1.1, 0.18, colors[ids[i]], **style[ids[i]])
    if len(ids) > n:
        board.text(1.25 * n + 0.3, 0.27, "...")
    board.text(0.2 + 0.625 * n, 2.02, f"one row of the table for each token: {dims((len(ids), params.dim))}")
    board.text(table_x + 0.6, 0.3, "tok_embeddings")
    board.text(table_x + 0.6, 2.5, "one row for each id", size=7.5, color="#444444")
    shown = ", ".join(f"{label} is {id:,}" for label, id in zip(labels[:n], ids[:n], strict=True))
    alt = f"Tokens become ids, and each id picks one row of {params.dim:,} numbers from a table of "
    return board.picture(f"{alt}{params.vocab_size:,} rows: {shown}.")


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
        board.text(x + step * 0.41, 0.36, f"q{h}", weight="bold", bbox=_PAPER)
        board.line((x + step * 0.41, 0.52), (kv + step * 0.41, 1.02), color=color)
    for g in range(-(-shown // group)):
        kv = 0.9 + (g * group + (min(group, shown - g * group) - 1) / 2) * step
        color, hatch = COLORS[g % len(COLORS)], HATCHES[g % len(HATCHES)]
        board.rectangle(kv, 1.02, step * 0.82, 0.32, color, alpha=0.85, hatch=hatch)
        board.text(kv + step * 0.41, 1.18, f"kv{g}", weight="bold", bbox=_PAPER)
    board.text(0.8, 0.36, "queries", ha="right")
    board.text(0.8, 1.18, "keys,\nvalues", ha="right")
    rest = f"; the first {shown} are drawn" if shown < n else ""
    words = f"{n} query heads over {params.n_kv_heads} key and value heads: {group} share one"
    board.text(4.9, 1.6, words + rest, size=8)
    return board.picture(f"Grouped-query attention: {words}{rest}. Neighbouring query heads form a group.")


_PAPER: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}


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
        board.text(0.2 + (h + 0.5) * width, 1.2, name, bbox=_PAPER)
        board.rectangle(4.35, 0.35 + h * height, 1.8, height, color, **style | {"alpha": 0.4})
        board.text(4.55, 0.35 + (h + 0.5) * height, name, size=6.5, bbox=_PAPER | {"pad": 0.6})
    board.text(2.0, 0.72, f"out of {p.n_heads} heads, {dims((tokens, p.head_dim))} each, side by side", size=8)
    board.text(2.0, 1.66, dims((tokens, p.n_heads * p.head_dim)), size=7.5, color="#444444")
    board.text(4.08, 1.2, "@", size=11)
    board.text(5.25, 1.25, "wo.T", bbox=_PAPER)
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


@styled
def tower(params: ModelArgs, tokens: int | str = "seq", most: int = 6) -> Picture:
    """All layers, one upon the other, and beside them one layer unfolded with the names and shapes of its weights."""
    p, n = params, min(params.n_layers, most)
    names: list[str] = [str(i) for i in range(n)]
    if p.n_layers > n:
        names = [*map(str, range(n - 3)), "...", str(p.n_layers - 2), str(p.n_layers - 1)]
    step = 0.5
    board = Board(9.2, 4.5)
    bottom, stream = 4.1, "#7FB2D6"
    top = bottom - 0.25 - step * len(names)
    board.line((1.35, bottom), (1.35, top - 0.05), linewidth=3.2, color=stream, zorder=0)
    board.arrow((1.35, top), (1.35, top - 0.25), color="#5B93BB", linewidth=3)
    board.text(1.35, bottom + 0.18, f"embeddings {dims((tokens, p.dim))}")
    board.text(1.35, top - 0.42, f"to the last norm {dims((tokens, p.dim))}")
    opened = bottom
    for i, name in enumerate(names):
        y = bottom - 0.2 - step * (i + 1) + 0.1
        if name == "...":
            board.text(1.35, y + 0.17, "...", size=12, bbox=_PAPER)
            continue
        unfold = i == min(1, len(names) - 1)
        board.pill(0.5, y, 1.7, 0.36, f"layer {name}", lit=unfold)
        opened = y + 0.18 if unfold else opened
    for corner in (0.35, 4.1):
        board.line((2.2, opened), (3.2, corner), color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    board.ax.add_patch(
        FancyBboxPatch(
            (3.2, 0.35), 5.9, 3.75, boxstyle="round,pad=0,rounding_size=0.08", facecolor="white", edgecolor=LIT
        )
    )
    board.text(3.35, 0.55, f"one layer: {_numbers_of_a_layer(p)} numbers", ha="left", weight="bold", color=LIT)
    board.line((3.75, 4.02), (3.75, 0.85), linewidth=3.2, color=stream)
    board.arrow((3.75, 0.95), (3.75, 0.7), color="#5B93BB", linewidth=3)
    q, kv = p.n_heads * p.head_dim, p.n_kv_heads * p.head_dim
    halves: tuple[tuple[float, str, list[tuple[str, tuple[int, ...]]]], ...] = (
        (
            3.7,
            "attention",
            [("attention_norm", (p.dim,)), ("wq", (q, p.dim)), ("wk, wv", (kv, p.dim)), ("wo", (p.dim, q))],
        ),
        (
            2.1,
            "feed-forward",
            [("ffn_norm", (p.dim,)), ("w1, w3", (p.hidden_dim, p.dim)), ("w2", (p.dim, p.hidden_dim))],
        ),
    )
    for y, name, matrices in halves:
        board.line((3.75, y), (4.1, y))
        board.arrow((4.1, y), (4.3, y))
        board.pill(4.3, y - 0.18, 0.65, 0.36, "norm")
        board.arrow((4.95, y), (5.2, y))
        board.pill(5.2, y - 0.25, 1.2, 0.5, name)
        board.line((5.8, y - 0.25), (5.8, y - 0.8))
        board.arrow((5.8, y - 0.8), (3.85, y - 0.8))
        board.plus(3.75, y - 0.8)
        for row, (matrix, shape) in enumerate(matrices):
            at = y + 0.24 - 0.24 * len(matrices) + 0.24 * row
            size = dims(shape)
            board.rectangle(6.65, at - 0.07, 0.18, 0.14, LEARNED, linewidth=0.6)
            board.text(6.95, at, f"{matrix} {size}", size=8, ha="left", color="#5F4700")
    return board.picture(
        f"{p.n_layers} layers of the same form and with weights of their own, from the embeddings at the bottom to the "
        f"last norm at the top. The stream that runs through them stays {dims((tokens, p.dim))}. One layer is "
        "unfolded: the stream runs straight through; norm and attention read it and add to it, then norm and "
        f"feed-forward do. Its weights: attention_norm and ffn_norm {dims((p.dim,))}, wq {dims((q, p.dim))}, wk and "
        f"wv {dims((kv, p.dim))}, wo {dims((p.dim, q))}, w1 and w3 {dims((p.hidden_dim, p.dim))}, w2 "
        f"{dims((p.dim, p.hidden_dim))}."
    )


def _numbers_of_a_layer(params: ModelArgs) -> str:
    shapes = {key: shape for key, shape in params.weight_shapes().items() if key.startswith("layers.0.")}
    count = sum(math.prod(shape) for shape in shapes.values())
    return f"{count / 1e6:,.1f} million" if count > 1e6 else f"{count:,}"


@styled
def last_vector(params: ModelArgs, tokens: int | str = "seq") -> Picture:
    """The last token's vector against every row of the output matrix: one logit for each token of the vocabulary."""
    p, board = params, Board(9.2, 2.75)
    board.rectangle(0.2, 0.55, 1.5, 1.2, FLOWS)
    for i in range(1, 8):
        board.line((0.2, 0.55 + 0.15 * i), (1.7, 0.55 + 0.15 * i), color="white", linewidth=0.6)
    board.text(0.95, 0.4, "stream after all layers")
    board.rectangle(0.2, 1.6, 1.5, 0.15, LIT, linewidth=0)
    board.text(0.95, 1.9, dims((tokens, p.dim)), size=7.5, color="#444444")
    board.arrow((1.7, 1.67), (1.95, 1.67))
    board.pill(1.95, 1.5, 0.6, 0.34, "norm")
    board.arrow((2.55, 1.67), (2.8, 1.67))
    board.vector(2.8, 1.59, 1.5, "", LIT)
    board.text(3.55, 1.9, dims((p.dim,)), size=7.5, color="#444444")
    board.text(3.55, 1.4, "the last token's vector")
    board.text(4.55, 1.67, "·", size=18)
    height, best, rows = 1.8, 4, 9
    row = height / rows
    board.rectangle(4.85, 0.45, 1.6, height, LEARNED)
    for i in range(1, rows):
        board.line((4.85, 0.45 + row * i), (6.45, 0.45 + row * i), color="#C9A94F", linewidth=0.6)
    board.text(5.65, 0.3, "output: a row for each token")
    board.text(5.65, 0.6 + height, dims((p.vocab_size, p.dim)), size=7.5, color="#444444")
    board.text(6.68, 0.45 + height / 2, "=", size=11)
    lengths = (0.35, 0.2, 0.62, 0.15, 0.95, 0.4, 0.28, 0.5, 0.22)
    for i, length in enumerate(lengths):
        y = 0.45 + row * i
        board.rectangle(6.95, y + 0.03, length, row - 0.06, LIT if i == best else FLOWS, linewidth=0.4)
    board.rectangle(4.85, 0.45 + row * best, 1.6, row, "none", edgecolor=LIT, linewidth=1.8)
    board.text(7.3, 0.3, "logits")
    board.text(7.3, 0.6 + height, dims((p.vocab_size,)), size=7.5, color="#444444")
    board.text(8.0, 0.45 + row * (best + 0.5), "the largest is\nthe next token", size=8, ha="left")
    return board.picture(
        f"The stream after all layers, {dims((tokens, p.dim))}. Its last row, {dims((p.dim,))} after the last norm, is "
        f"multiplied with every row of the output matrix {dims((p.vocab_size, p.dim))}, one row for each token of the "
        "vocabulary. The products are the logits; the largest names the next token."
    )


@styled
def cut_by_rule(pieces: Sequence[str], rules: Sequence[int], names: Sequence[str]) -> Picture:
    """A text cut into pieces, each box coloured and hatched by the rule that made it; the rules are listed below."""
    used = sorted(set(rules))
    widths = [0.16 + 0.105 * max(len(piece), 1) for piece in pieces]
    places: list[tuple[float, float]] = []
    x, y = 0.1, 0.12
    for width in widths:
        if x + width > 9.1 and x > 0.1:
            x, y = 0.1, y + 0.5
        places.append((x, y))
        x += width + 0.06
    board = Board(9.2, y + 0.75 + 0.27 * -(-len(used) // 3))
    for piece, rule, width, (x, top) in zip(pieces, rules, widths, places, strict=True):
        board.rectangle(x, top, width, 0.34, COLORS[rule % len(COLORS)], alpha=0.32, hatch=_RULES[rule % len(_RULES)])
        board.text(x + width / 2, top + 0.17, piece, bbox=_PAPER, family=["DejaVu Sans Mono", *_families()])
    for n, rule in enumerate(used):
        x, top = 0.1 + 3.05 * (n % 3), y + 0.62 + 0.27 * (n // 3)
        board.rectangle(x, top, 0.34, 0.18, COLORS[rule % len(COLORS)], alpha=0.32, hatch=_RULES[rule % len(_RULES)])
        board.text(x + 0.42, top + 0.09, f"{rule + 1}. {names[rule]}", size=8, ha="left")
    told = ", ".join(f"{piece} ({names[rule]})" for piece, rule in zip(pieces, rules, strict=True))
    return board.picture(f"The pieces of a text and the rule that cut each of them: {told}.")


_RULES = ("xxx", "", "...", "///", "\\\\\\", "+++", "ooo")


@styled
def tokenizer_steps(pieces: Sequence[str], tokens: Sequence[Sequence[str]], ids: Sequence[Sequence[int]]) -> Picture:
    """The whole tokenizer: a text is cut into pieces, the bytes of each are merged to tokens, each token has an id.

    `tokens` and `ids` are lists for each piece.
    """
    wide = [
        [0.14 + 0.095 * max(len(t), len(str(i))) for t, i in zip(parts, numbers, strict=True)]
        for parts, numbers in zip(tokens, ids, strict=True)
    ]
    room = [max(sum(row) + 0.04 * (len(row) - 1), 0.14 + 0.095 * len(p)) for row, p in zip(wide, pieces, strict=True)]
    board = Board(max(9.2, 1.55 + sum(room) + 0.16 * len(room)), 2.62)
    rows = {"text": 0.1, "pieces": 0.78, "tokens": 1.46, "ids": 2.2}
    for name, y in rows.items():
        board.text(0.1, y + 0.16, name, ha="left", color="#555555")
    for name, y in (("cut", 0.47), ("merge", 1.15), ("look up", 1.83)):
        board.pill(0.68, y, 0.66, 0.24, name, lit=True, size=7.5)
        board.line((1.4, y + 0.12), (1.55 + sum(room) + 0.16 * len(room), y + 0.12), color="#DDDDDD", linewidth=0.6)
    mono: dict[str, Any] = {"family": ["DejaVu Sans Mono", *_families()]}
    board.text(1.55, rows["text"] + 0.16, "".join(pieces), ha="left", **mono)
    x = 1.55
    for piece, width, parts, numbers, widths in zip(pieces, room, tokens, ids, wide, strict=True):
        board.rectangle(x, rows["pieces"], width, 0.3, FLOWS)
        board.text(x + width / 2, rows["pieces"] + 0.15, piece, **mono)
        left = x + (width - sum(widths) - 0.04 * (len(widths) - 1)) / 2
        for part, number, w in zip(parts, numbers, widths, strict=True):
            board.line((left + w / 2, 1.08), (left + w / 2, rows["tokens"]), color=GREY, linewidth=0.7)
            board.rectangle(left, rows["tokens"], w, 0.3, FLOWS)
            board.text(left + w / 2, rows["tokens"] + 0.15, part, **mono)
            board.arrow((left + w / 2, 1.76), (left + w / 2, 2.24), linewidth=0.7, color=GREY)
            board.text(left + w / 2, rows["ids"] + 0.16, str(number), weight="bold", size=8)
            left += w + 0.04
        x += width + 0.16
    told = "; ".join(
        f"{piece} becomes {', '.join(f'{t} {i}' for t, i in zip(parts, numbers, strict=True))}"
        for piece, parts, numbers in zip(pieces, tokens, ids, strict=True)
    )
    return board.picture(f"A text is cut into pieces, the bytes of each piece are merged to tokens with ids: {told}.")


@styled
def parameter_bars(models: Mapping[str, Mapping[str, int]]) -> Picture:
    """Where the parameters of some models sit: one bar a model, all equally long, and the numbers below.

    A part of size 0 is shared with another one (tied embeddings).
    """
    kinds = list(next(iter(models.values())))
    looks: list[dict[str, Any]] = [
        {"alpha": 0.75, "hatch": _KINDS[k % len(_KINDS)], "edgecolor": "white"} for k in range(len(kinds))
    ]
    board = Board(9.2, 0.75 * len(models) + 0.45 + 0.24 * len(kinds))
    for m, (name, sizes) in enumerate(models.items()):
        total, x, y = sum(sizes.values()), 0.1, 0.75 * m + 0.1
        board.text(0.1, y + 0.06, f"{name}: {total:,} parameters", ha="left", weight="bold")
        for k, kind in enumerate(kinds):
            width, look = 9.0 * sizes[kind] / total, looks[k]
            board.rectangle(x, y + 0.2, width, 0.36, COLORS[k % len(COLORS)], **look)
            if width > 0.45:
                board.text(x + width / 2, y + 0.38, f"{sizes[kind] / total:.0%}", weight="bold", bbox=_PAPER)
            x += width
    top = 0.75 * len(models) + 0.3
    for m, name in enumerate(models):
        board.text(4.6 + 2.4 * m, top - 0.06, name, size=8, ha="right", color="#555555")
    for k, kind in enumerate(kinds):
        y = top + 0.1 + 0.24 * k
        board.rectangle(0.1, y, 0.34, 0.17, COLORS[k % len(COLORS)], **looks[k])
        board.text(0.55, y + 0.085, kind, size=8, ha="left")
        for m, sizes in enumerate(models.values()):
            number = f"{sizes[kind]:,}" if sizes[kind] else "shared"
            board.text(4.6 + 2.4 * m, y + 0.085, number, size=8, ha="right")
    told = "; ".join(
        f"{name}: " + ", ".join(f"{kind} {size / sum(sizes.values()):.1%}" for kind, size in sizes.items())
        for name, sizes in models.items()
    )
    return board.picture(f"Where the parameters sit. {told}.")


_KINDS = ("", "///", "...", "xxx", "\\\\\\")


@styled
def along(
    pairs: Sequence[tuple[str, str]], places: Sequence[tuple[float, float]], title: str = "", x_name: str = ""
) -> Picture:
    """Pairs of words on a line, one pair a row: an arrow from the place of the first to that of the second."""
    figure = Figure(figsize=(6.8, 0.34 * len(pairs) + 0.9), layout="constrained")
    ax = figure.add_subplot()
    ax.axvline(0, color="#CCCCCC", linewidth=0.8)
    for mark, side in (("o", 0), ("s", 1)):
        xs = [place[side] for place in places]
        ax.plot(xs, range(len(pairs)), linestyle="", marker=mark, markersize=5, color=(GREY, LIT)[side])
    for i, (words, (start, end)) in enumerate(zip(pairs, places, strict=True)):
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": LIT, "shrinkA": 3, "shrinkB": 3}
        ax.annotate("", (end, i), (start, i), arrowprops=arrow)
        for word, x, other in ((words[0], start, end), (words[1], end, start)):
            shift, anchor = ((-7, 0), "right") if x < other else ((7, 0), "left")
            ax.annotate(word, (x, i), shift, textcoords="offset points", ha=anchor, va="center", fontsize=8.5)
    ax.set(title=title, xlabel=x_name, yticks=[], ylim=(len(pairs) - 0.4, -0.6))
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.2)
    told = ", ".join(f"{a} {x:.2f} to {b} {y:.2f}" for (a, b), (x, y) in zip(pairs, places, strict=True))
    return Picture(figure, f"Pairs of words along a line ({x_name}): {told}.")


@styled
def norm_step(params: ModelArgs, tokens: int | str = "seq") -> Picture:
    """RMSNorm: one number a row divides the row, then one number a column, the gain, weighs the entries."""
    p, board = params, Board(9.2, 2.2)
    board.matrix(0.1, 0.75, 1.15, 0.6, "x", (tokens, p.dim), FLOWS)
    board.line((1.25, 0.9), (1.5, 0.9), (1.5, 0.4))
    board.arrow((1.5, 0.4), (1.75, 0.4))
    board.pill(1.75, 0.22, 2.0, 0.36, "square, mean, + ε, root")
    board.arrow((3.75, 0.4), (3.95, 0.4))
    board.rectangle(3.95, 0.12, 0.12, 0.56, FLOWS)
    board.text(4.15, 0.4, f"one number a row {dims((tokens, 1))}", size=7.5, color="#444444", ha="left")
    board.arrow((4.01, 0.68), (4.01, 0.99))
    board.arrow((1.25, 1.17), (3.83, 1.17))
    board.pill(3.83, 0.99, 0.36, 0.36, "÷", size=11)
    board.arrow((4.19, 1.17), (4.65, 1.17))
    board.matrix(4.65, 0.87, 1.15, 0.6, "normed", (tokens, p.dim), FLOWS)
    board.text(5.22, 1.8, "every row has RMS 1", size=7.5, color="#444444")
    board.arrow((5.8, 1.17), (6.6, 1.17))
    board.pill(6.6, 0.99, 0.36, 0.36, "×", size=11)
    board.rectangle(6.2, 0.42, 1.15, 0.12, LEARNED)
    board.text(6.78, 0.27, f"gain {dims((p.dim,))}: one number a column", size=7.5, color="#7A5C00")
    board.arrow((6.78, 0.54), (6.78, 0.99))
    board.arrow((6.96, 1.17), (7.5, 1.17))
    board.matrix(7.5, 0.87, 1.15, 0.6, "y", (tokens, p.dim), FLOWS)
    board.text(8.07, 1.8, "what the layer reads", size=7.5, color="#444444")
    return board.picture(
        f"RMSNorm: from each row of x {dims((tokens, p.dim))} one number is made, the root of the mean square plus "
        f"epsilon, {dims((tokens, 1))}. Each row is divided by its number, so that it has RMS 1, and then multiplied "
        f"entry by entry by the gain {dims((p.dim,))}, which is the same for all rows."
    )


@styled
def sphere(
    vectors: torch.Tensor, gain: torch.Tensor, labels: Sequence[str], names: Sequence[str] = ("first", "second")
) -> Picture:
    """RMSNorm on vectors of two numbers, [n, 2], as arrows: as they are; divided by their RMS, on a circle; times the
    gain [2], on an ellipse. `names` are those of the two entries.
    """
    before = vectors.detach().double().cpu().numpy()
    weigh = gain.detach().double().cpu().numpy()
    size = np.sqrt((before**2).mean(-1, keepdims=True))
    normed = before / np.where(size > 0, size, 1)
    turn = np.linspace(0, 2 * math.pi, 200)
    circle = math.sqrt(2) * np.stack([np.cos(turn), np.sin(turn)], -1)
    stages = (
        ("as they are: any length", before, None),
        ("divided by their RMS: on a circle", normed, circle),
        ("times the gain: on an ellipse", normed * weigh, circle * weigh),
    )
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    for ax, (title, points, curve) in zip(figure.subplots(1, 3), stages, strict=True):
        reach = 1.3 * max(np.abs(points).max(), 0 if curve is None else np.abs(curve).max(), 1e-30)
        ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
        ax.axvline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
        if curve is not None:
            ax.plot(curve[:, 0], curve[:, 1], color=GREY, linewidth=0.9)
        zero = np.zeros(len(points))
        style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011}
        colors = [COLORS[i % len(COLORS)] for i in range(len(points))]
        ax.quiver(zero, zero, points[:, 0], points[:, 1], color=colors, **style)
        placed: list[tuple[float, float]] = []
        for (x, y), name, color in zip(points, labels, colors, strict=True):
            far, step = 1 + 0.13 * reach / max(math.hypot(x, y), 1e-30), 0.12 * reach / max(math.hypot(x, y), 1e-30)
            while any(abs(x * far - u) < 0.5 * reach and abs(y * far - v) < 0.1 * reach for u, v in placed):
                far += step  # names must not cover each other
            placed.append((x * far, y * far))
            ax.text(x * far, y * far, name, color=color, ha="center", va="center", fontsize=7.5, weight="bold")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=names[0], ylabel=names[1])
        ax.set_title(title, fontsize=9)
        ax.locator_params(nbins=5)
    return Picture(
        figure,
        f"Three panels with {len(before)} arrows from the origin, one for each token. As they are, any length. "
        "Divided by their RMS they all end on one circle, each in its old direction. Times the gain the circle is an "
        f"ellipse: the first entry is multiplied by {weigh[0]:.3g}, the second by {weigh[1]:.3g}.",
    )


@styled
def one_turn(before: Sequence[float], angle: float) -> Picture:
    """One pair of numbers as an arrow, and the same arrow turned by `angle` radians."""
    a, b = (float(n) for n in before)
    start, length = math.atan2(b, a), math.hypot(a, b)
    tips = np.array([[a, b], [length * math.cos(start + angle), length * math.sin(start + angle)]])
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    ax: Axes = figure.add_subplot()
    ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.axvline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.add_patch(Circle((0, 0), length, fill=False, edgecolor="#BBBBBB", linewidth=0.8))
    ends = sorted((math.degrees(start), math.degrees(start + angle)))
    ax.add_patch(Wedge((0, 0), 0.45 * length, *ends, facecolor=FLOWS, edgecolor=LIT, linewidth=0.8))
    style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011}
    ax.quiver([0, 0], [0, 0], tips[:, 0], tips[:, 1], color=[GREY, LIT], **style)
    for (x, y), words in zip(tips, ("before", "after"), strict=True):
        ax.text(1.14 * x, 1.14 * y, words, ha="center", va="center", weight="bold")
    middle = start + angle / 2
    words = f"{math.degrees(angle):.0f}°"
    ax.text(0.62 * length * math.cos(middle), 0.62 * length * math.sin(middle), words, ha="center", va="center")
    reach = 1.35 * max(length, 1e-30)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(xlabel="first number of the pair", ylabel="second number of the pair")
    return Picture(
        figure, f"An arrow, and the same arrow turned by {math.degrees(angle):.0f} degrees, as long as before."
    )


@styled
def clock_hands(freqs: torch.Tensor, positions: Sequence[int] = (0, 1, 2, 5, 100), most: int = 32) -> Picture:
    """Every pair as a clock, a row of clocks for each position: pair i has turned by position * freqs[i] radians.

    What a hand has swept is shaded (all of it after a full turn). Of more than `most` pairs, some are drawn.
    """
    every = -(-len(freqs) // most)
    pairs, speeds = range(0, len(freqs), every), freqs.detach().double().cpu().numpy()[::every]
    columns, rows = len(pairs), len(positions)
    cell = 8.3 / max(columns, 16)
    figure = Figure(figsize=(cell * columns + 0.9, cell * 1.12 * rows + 0.75), layout="constrained")
    ax: Axes = figure.add_subplot()
    for r, position in enumerate(positions):
        angles, y = speeds * position, np.full(columns, 1.12 * r)
        for c, angle in enumerate(angles):
            ax.add_patch(Circle((c, y[c]), 0.43, facecolor="white", edgecolor=GREY, linewidth=0.7))
            ends = (-math.degrees(min(angle, 2 * math.pi)), 0)  # the y axis points down
            ax.add_patch(Wedge((c, y[c]), 0.43, *ends, facecolor=FLOWS, edgecolor="none"))
        hands = np.cos(angles) * 0.43, np.sin(angles) * 0.43
        style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.0025}
        style |= {"headwidth": 1, "headlength": 0, "headaxislength": 0}  # a hand, not an arrow
        ax.quiver(np.arange(columns), y, hands[0], -hands[1], color=LIT, zorder=3, **style)
        ax.scatter(np.arange(columns), y, s=4, color=LIT, zorder=4)
    step = max(1, columns // 8)
    ax.set_xticks(range(0, columns, step), [str(pair) for pair in pairs[::step]])
    ax.set_yticks([1.12 * r for r in range(rows)], [f"position {position}" for position in positions])
    ax.set(xlim=(-0.6, columns - 0.4), ylim=(1.12 * rows - 0.5, -0.6), aspect="equal")
    ax.set_xlabel("pair: fast hands on the left, slow ones on the right")
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    last, farthest = len(freqs) - 1, max(positions)
    return Picture(
        figure,
        f"Rows of clocks, one for each pair of numbers, at positions {', '.join(map(str, positions))}. At position 0 "
        f"all hands point right. The first pair turns by {math.degrees(speeds[0]):.0f} degrees a token; pair {last} "
        f"has turned by {math.degrees(float(freqs[-1]) * farthest):.2g} degrees at position {farthest}.",
    )
