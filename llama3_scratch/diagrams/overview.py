"""The whole model: the map at the head of each notebook, the tower of layers, what is done with the last vector."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import FancyBboxPatch

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, LEARNED, LIT, PAPER, Board, dims

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
            board.text(1.35, y + 0.17, "...", size=12, bbox=PAPER)
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
                board.text(x + width / 2, y + 0.38, f"{sizes[kind] / total:.0%}", weight="bold", bbox=PAPER)
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
