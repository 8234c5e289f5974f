"""What notebook 17 leaves out of the model before it trains it again, and what a model without a mask can see."""

from collections.abc import Sequence
from typing import Any

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, PAPER, Board, dims

PARTS = ("residual", "norms", "attention", "rotation", "mask", "feed-forward")
_GONE = COLORS[5]


@styled
def left_out(params: ModelArgs, out: str | Sequence[str] = (), tokens: int | str = "seq") -> Picture:
    """One layer, with the parts named in `out`, of PARTS, crossed out: what comes in passes them by.

    Without "residual" the stream is broken: what attention and feed-forward make takes its place.
    """
    gone = {out} if isinstance(out, str) else set(out)
    if unknown := gone - set(PARTS):
        raise ValueError(f"out must be among {', '.join(PARTS)}, not {sorted(unknown)[0]!r}")
    p, board, stream, y = params, Board(9.2, 2.35), 1.75, 0.75
    heads = f"{p.n_heads} heads over {p.n_kv_heads}"
    neurons = f"{p.hidden_dim:,} neurons"

    def cross(x: float, top: float, w: float, h: float) -> None:
        style: dict[str, Any] = {"color": _GONE, "linewidth": 1.6, "zorder": 6}
        board.rectangle(x, top, w, h, "none", edgecolor=_GONE, linewidth=1.6, linestyle=(0, (4, 2)), zorder=6)
        board.line((x, top), (x + w, top + h), **style)
        board.line((x, top + h), (x + w, top), **style)

    def half(x: float, w: float, name: str) -> None:
        """From the stream through norm and `name` back to the stream: x to x + w."""
        end, box, nothing = x + w, x + 1.05, name in gone
        color = GREY if nothing else INK
        if "residual" in gone and not nothing:
            board.line((x, stream), (end, stream), color=_GONE, linewidth=2.2, linestyle=(0, (1.2, 2.2)))
        else:
            board.line((x, stream), (end, stream), linewidth=3.2, color="#7FB2D6")
        board.line((x, stream), (x, y), color=color)
        board.arrow((x, y), (x + 0.17, y), color=color)
        board.pill(x + 0.17, y - 0.17, 0.58, 0.34, "norm")
        if "norms" in gone:
            cross(x + 0.17, y - 0.17, 0.58, 0.34)
        board.arrow((x + 0.75, y), (box, y), color=color)
        board.line((end - 0.3, y), (end, y), color=color)
        if nothing:
            board.text(end - 0.06, 1.47, "adds nothing", size=8, ha="right", color="#A34700")
            board.line((end, y), (end, 1.6), color=GREY, linestyle=(0, (2, 2)))
            return
        board.arrow((end, y), (end, stream - (0.0 if "residual" in gone else 0.1)))
        if "residual" not in gone:
            board.plus(end, stream)

    board.line((0.15, stream), (0.6, stream), linewidth=3.2, color="#7FB2D6")
    half(0.6, 3.75, "attention")
    board.line((4.35, stream), (5.0, stream), linewidth=3.2, color="#7FB2D6")
    half(5.0, 3.1, "feed-forward")
    board.line((8.1, stream), (8.85, stream), linewidth=3.2, color="#7FB2D6")
    board.arrow((8.8, stream), (9.05, stream), color="#5B93BB", linewidth=2.4)
    board.rectangle(1.65, 0.2, 2.4, 1.1, FLOWS)
    board.text(1.75, 0.36, "attention", ha="left", weight="bold")
    board.text(3.95, 0.36, heads, ha="right", size=7.5, color="#444444")
    for x, name in ((1.8, "rotation"), (2.95, "mask")):
        board.pill(x, y - 0.1, 0.95, 0.34, name)
        if name in gone:
            cross(x, y - 0.1, 0.95, 0.34)
    board.rectangle(6.05, 0.35, 1.75, 0.8, FLOWS)
    board.text(6.92, 0.6, "feed-forward", weight="bold")
    board.text(6.92, 0.88, neurons, size=7.5, color="#444444")
    if "attention" in gone:
        cross(1.65, 0.2, 2.4, 1.1)
    if "feed-forward" in gone:
        cross(6.05, 0.35, 1.75, 0.8)
    if "residual" in gone:
        board.text(2.45, stream + 0.2, "no way past", size=8, color="#A34700", bbox=PAPER)
        board.text(6.55, stream + 0.2, "no way past", size=8, color="#A34700", bbox=PAPER)
    board.text(0.15, stream + 0.45, f"the stream {dims((tokens, p.dim))}", size=7.5, ha="left", color="#444444")
    board.text(9.05, stream + 0.45, f"one of {p.n_layers} layers", size=7.5, ha="right", color="#444444")
    said = [name for name in PARTS if name in gone]
    told = f"Left out: {', '.join(said)}." if said else "Nothing is left out."
    return board.picture(
        f"One of {p.n_layers} layers. The stream {dims((tokens, p.dim))} passes attention ({heads}, with rotation and "
        f"mask) and feed-forward ({neurons}); each reads a normed copy of it, and adds its result. {told}"
    )


@styled
def one_to_the_right(labels: Sequence[str], most: int = 6) -> Picture:
    """A piece of text as it is learned: what each place reads, and above it what it is asked for. Twice: with the mask,
    a place sees what it has read; without, it also sees its neighbour on the right, which is the answer.
    """
    shown = list(labels)[: most + 1]
    reads, asked = shown[:-1], shown[1:]
    n = len(reads)
    board, step = Board(9.2, 2.75), 4.1 / max(n, 3)
    size = min(8.0, 92 * step / max(len(label) for label in shown))  # the longest fits its box
    style: dict[str, Any] = {"size": size, "family": "DejaVu Sans Mono"}
    for left, masked in ((0.25, True), (4.95, False)):
        words = "with the mask" if masked else "without: the answer stands one to the right"
        board.text(left, 0.15, words, ha="left", weight="bold", color=INK if masked else "#A34700")
        for i, (read, answer) in enumerate(zip(reads, asked, strict=True)):
            x, middle = left + i * step, left + (i + 0.46) * step
            board.rectangle(x, 0.45, step * 0.92, 0.34, "white", edgecolor=GREY, linestyle=(0, (3, 2)))
            board.text(middle, 0.62, answer, color="#444444", **style)
            board.rectangle(x, 1.85, step * 0.92, 0.34, FLOWS)
            board.text(middle, 2.02, read, **style)
            if masked:
                board.arrow((middle, 1.85), (middle, 0.79), color=COLORS[0])
                if i:
                    board.arrow((middle - step * 0.9, 1.85), (middle - step * 0.08, 0.9), color="#9CC3DD")
            elif i + 1 < n:
                board.arrow((middle + step, 1.85), (middle + step * 0.08, 0.79), color=_GONE, linewidth=1.6)
            else:
                board.text(middle, 1.3, "?", size=13, weight="bold", color="#A34700")
        board.text(left, 2.4, "reads", ha="left", size=7.5, color="#444444")
        board.text(left + n * step - 0.08 * step, 0.32, "is asked for", ha="right", size=7.5, color="#444444")
    board.line((4.65, 0.1), (4.65, 2.6), color="#DDDDDD")
    end = f"the last, {reads[-1]}, has no neighbour on the right"
    board.text(4.95 + 2.0, 2.62, end, size=7.5, color="#444444")
    return board.picture(
        f"The text {' '.join(shown)}, learned by {n} places. Each is asked for its neighbour on the right. With the "
        f"mask it sees only what stands before and itself. Without, it sees that neighbour, and can copy it; {end}."
    )
