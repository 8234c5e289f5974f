"""The model as modules: five boxes in one another, the names they give, and what becomes of a tie, a batch, a step."""

from collections.abc import Sequence
from typing import Any

from matplotlib.patches import FancyBboxPatch

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, LEARNED, LIT, Board, dims

MODULES = ("Llama", "TransformerBlock", "Attention", "FeedForward", "RMSNorm")


@styled
def nested_modules(params: ModelArgs, here: str | Sequence[str] = ()) -> Picture:
    """The five modules, each inside the one that holds it, with the name and shape of every weight.

    The kinds in `here`, names of MODULES, are lit.
    """
    lit = {here} if isinstance(here, str) else set(here)
    if unknown := lit - set(MODULES):
        raise ValueError(f"here must be among {', '.join(MODULES)}, not {sorted(unknown)[0]!r}")
    p, board = params, Board(9.2, 4.3)
    q, kv = p.n_heads * p.head_dim, p.n_kv_heads * p.head_dim

    def frame(x: float, y: float, w: float, h: float, name: str, kind: str, fill: str = "white") -> None:
        on = kind in lit
        style: dict[str, Any] = {"edgecolor": LIT, "linewidth": 2.6} if on else {"edgecolor": INK, "linewidth": 1.0}
        board.ax.add_patch(
            FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.07", facecolor=fill, **style)
        )
        words = f"{name}: {kind}" if name else kind
        board.text(x + 0.1, y + 0.15, words, ha="left", weight="bold" if on else "normal", color=LIT if on else INK)

    def norm(x: float, y: float, name: str) -> None:
        frame(x, y, 1.28, 0.82, "", "RMSNorm")
        board.text(x + 0.64, y + 0.34, name, size=8)
        board.rectangle(x + 0.2, y + 0.46, 0.88, 0.12, LEARNED, linewidth=0.6)
        board.text(x + 0.64, y + 0.69, dims((p.dim,)), size=7.5, color="#444444")

    frame(0.08, 0.08, 9.04, 3.8, "", "Llama")
    board.matrix(0.22, 1.45, 1.28, 0.75, "tok_embeddings", (p.vocab_size, p.dim))
    board.ax.add_patch(
        FancyBboxPatch(
            (1.66, 0.38),
            5.84,
            3.36,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor="#F6F6F6",
            edgecolor=GREY,
            linestyle=(0, (4, 2)),
        )
    )
    last = f"0 to {p.n_layers - 1}" if p.n_layers > 1 else "0"
    board.text(1.76, 0.53, f"layers: {last}, all alike; this is 0", ha="left", color="#444444")
    frame(1.78, 0.7, 5.6, 2.92, "0", "TransformerBlock")
    norm(1.9, 1.28, "attention_norm")
    frame(3.28, 1.0, 3.98, 1.16, "attention", "Attention")
    for i, (name, shape) in enumerate(
        (("wq", (q, p.dim)), ("wk", (kv, p.dim)), ("wv", (kv, p.dim)), ("wo", (p.dim, q)))
    ):
        tall = 0.5 if shape[0] == max(q, p.dim) or q == kv else 0.34
        board.matrix(3.34 + 1.01 * i, 1.3 + (0.5 - tall) / 2, 0.84, tall, name, shape)
    norm(1.9, 2.6, "ffn_norm")
    frame(3.28, 2.32, 3.98, 1.16, "feed_forward", "FeedForward")
    for i, (name, shape) in enumerate(
        (("w1", (p.hidden_dim, p.dim)), ("w2", (p.dim, p.hidden_dim)), ("w3", (p.hidden_dim, p.dim)))
    ):
        board.matrix(3.45 + 1.3 * i, 2.62, 1.08, 0.5, name, shape)
    norm(7.66, 0.75, "norm")
    board.matrix(7.66, 2.1, 1.28, 0.75, "output", (p.vocab_size, p.dim))
    path = ("layers", "0", "attention", "wq", "weight")
    board.text(4.5, 4.1, "from box to box, the way to the first matrix:", size=8, ha="right", color="#444444")
    board.text(4.65, 4.1, ".".join(path), ha="left", weight="bold", color=LIT)
    now = f" Lit: {', '.join(kind for kind in MODULES if kind in lit)}." if lit else ""
    return board.picture(
        f"Boxes in boxes. Llama holds tok_embeddings {dims((p.vocab_size, p.dim))}, layers, norm {dims((p.dim,))} and "
        f"output {dims((p.vocab_size, p.dim))}. Layers are numbered {last}; each is a TransformerBlock and holds "
        f"attention_norm and ffn_norm {dims((p.dim,))}, attention with wq {dims((q, p.dim))}, wk and wv "
        f"{dims((kv, p.dim))} and wo {dims((p.dim, q))}, and feed_forward with w1 and w3 "
        f"{dims((p.hidden_dim, p.dim))} and w2 {dims((p.dim, p.hidden_dim))}. The way through the boxes is a weight's "
        f"name: {'.'.join(path)}.{now}"
    )


@styled
def tied_ends(params: ModelArgs, tied: bool) -> Picture:
    """The two ends of the model: one matrix under two names, or two matrices. The loaded model's case is lit."""
    p, board = params, Board(9.2, 2.2)
    for x, case, name in ((0.2, True, "tied"), (4.85, False, "not tied")):
        on = case == tied
        note = f"{name}: this model" if on else name
        board.text(x + 2.05, 0.14, note, weight="bold" if on else "normal", color=LIT if on else INK)
        board.pill(x, 0.4, 1.75, 0.34, "tok_embeddings.weight", size=8)
        board.pill(x, 1.35, 1.75, 0.34, "output.weight", size=8)
        size = p.vocab_size * p.dim
        if case:
            board.matrix(x + 2.5, 0.65, 1.3, 0.75, "one storage", (p.vocab_size, p.dim))
            board.arrow((x + 1.75, 0.57), (x + 2.5, 0.9))
            board.arrow((x + 1.75, 1.52), (x + 2.5, 1.15))
            total = size
        else:
            for y, word in ((0.32, "one storage"), (1.27, "another")):
                board.matrix(x + 2.5, y, 1.3, 0.5, word, (p.vocab_size, p.dim))
                board.arrow((x + 1.75, y + 0.25), (x + 2.5, y + 0.25))
            total = 2 * size
        board.text(x + 2.05, 2.08, f"{total:,} numbers to learn", size=8, color="#444444")
    board.line((4.6, 0.1), (4.6, 2.15), color="#DDDDDD")
    return board.picture(
        f"Two names, tok_embeddings.weight and output.weight, both {dims((p.vocab_size, p.dim))}. Tied: both lead "
        f"to one storage, {p.vocab_size * p.dim:,} numbers. Not tied: two storages, {2 * p.vocab_size * p.dim:,}. The "
        f"loaded model is {'tied' if tied else 'not tied'}."
    )


@styled
def padded_batch(rows: Sequence[Sequence[str]], attention_mask: Any, most: int = 16) -> Picture:
    """A batch of texts, a row each: its tokens in boxes with their positions below, padding hatched.

    `rows` are the labels of all places, padding included; of long rows the last `most` places are drawn.
    """
    length = len(rows[0])
    shown = min(length, most)
    step = 8.6 / max(shown, 8)
    board = Board(9.2, 0.95 * len(rows) + 0.3)
    cut = length > shown
    for r, row in enumerate(rows):
        y = 0.32 + 0.95 * r
        is_token = [bool(n) for n in attention_mask[r]]
        for c in range(length - shown, length):
            x = 0.3 + (c - length + shown) * step
            fill: dict[str, Any] = {} if is_token[c] else {"hatch": "////", "edgecolor": GREY}
            board.rectangle(x, y, step * 0.92, 0.4, FLOWS if is_token[c] else "white", **fill)
            if is_token[c]:
                most_signs = int(14 * step)  # what fits
                label = row[c] if len(row[c]) <= most_signs else row[c][: most_signs - 1] + "…"
                board.text(x + step * 0.46, y + 0.2, label, size=7.5)
                board.text(x + step * 0.46, y + 0.53, str(sum(is_token[:c])), size=7.5, color="#444444")
        padding = length - sum(is_token)
        words = f"text {r}: {length - padding} tokens, {padding} of padding" + (
            f"; the last {shown} places" if cut else ""
        )
        board.text(0.3, y - 0.14, words, size=8, ha="left", color="#444444")
    told = "; ".join(f"text {r}: {sum(map(bool, m))} tokens after {length - sum(map(bool, m))} of padding"
                     for r, m in enumerate(attention_mask))  # fmt: skip
    return board.picture(
        f"A batch of {len(rows)} texts, {length} places each, padding on the left and hatched. {told}. Positions are "
        "counted from each text's first token, so padding has none."
    )


@styled
def gradient_ways(params: ModelArgs) -> Picture:
    """The way of the gradient back from the loss, with the skip connections and without them."""
    board, orange = Board(9.2, 2.55), COLORS[5]
    shown = [*range(min(params.n_layers, 3))]
    names = [f"layer {i}" for i in shown]
    if params.n_layers > 3:
        names = ["layer 0", "...", f"layer {params.n_layers - 1}"]
    for y, bypass in ((0.75, True), (1.95, False)):
        words = (
            "with skip connections: one way leads straight through"
            if bypass
            else "without: every way leads through every layer"
        )
        board.text(0.15, y - 0.6, words, ha="left", weight="bold")
        board.pill(0.15, y - 0.2, 1.05, 0.4, "embeddings")
        x = 1.2
        for name in names:
            if bypass:
                board.line((x, y + 0.1), (x + 2.0, y + 0.1), linewidth=3.2, color="#7FB2D6")
                board.pill(x + 0.45, y - 0.45, 1.0, 0.34, name)
                board.line((x + 0.25, y + 0.1), (x + 0.25, y - 0.28), (x + 0.45, y - 0.28))
                board.line((x + 1.45, y - 0.28), (x + 1.7, y - 0.28))
                board.arrow((x + 1.7, y - 0.28), (x + 1.7, y))
                board.plus(x + 1.7, y + 0.1)
            else:
                board.line((x, y), (x + 0.45, y))
                board.pill(x + 0.45, y - 0.17, 1.0, 0.34, name)
                board.line((x + 1.45, y), (x + 2.0, y))
            x += 2.0
        board.pill(x, y - 0.2, 0.7, 0.4, "loss")
        low = y + 0.32
        style: dict[str, Any] = {"color": orange, "linewidth": 2.2, "linestyle": "-" if bypass else (0, (3, 1.6))}
        board.arrow((x + 0.1, low), (1.2, low), **style)
        board.text(x + 0.75, low - 0.02, "gradient", size=8, ha="left", color="#A34700")
    return board.picture(
        f"The gradient's way from the loss back to the embeddings through {params.n_layers} layers. With skip "
        "connections one way leads along the stream, past every layer. Without them all lead through every layer."
    )
