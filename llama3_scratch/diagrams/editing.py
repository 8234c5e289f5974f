"""Changing a small part of a model: what need not be computed again."""

from ..params import ModelArgs
from ..plots import Picture, styled
from .board import GREY, INK, LEARNED, LIT, Board, dims

_STREAM = "#7FB2D6"


@styled
def below_once(params: ModelArgs, layer: int, tokens: int | str = "seq") -> Picture:
    """A lesson in w2 of one layer: the layers below it are computed once, those from it on in every step."""
    p, board = params, Board(9.2, 2.45)
    above, numbers = p.n_layers - 1 - layer, p.hidden_dim + p.dim
    board.line((0.2, 0.85), (8.0, 0.85), linewidth=3.2, color=_STREAM, zorder=0)
    board.pill(0.15, 0.62, 1.0, 0.46, "embedding")
    board.pill(1.3, 0.62, 1.2, 0.46, f"{layer} below" if layer else "none below")
    board.rectangle(3.0, 0.77, 0.16, 0.16, INK, linewidth=0)
    board.text(3.08, 0.45, f"kept {dims((tokens, p.dim))}", size=8)
    board.pill(3.8, 0.3, 1.75, 1.1, "")
    board.text(4.675, 0.48, f"layer {layer}")
    board.rectangle(3.95, 0.8, 0.6, 0.4, LEARNED)
    board.text(4.25, 1.0, "w2")
    board.text(4.7, 1.0, "+", size=10)
    board.rectangle(4.85, 0.8, 0.08, 0.4, LIT, linewidth=0)
    board.rectangle(4.99, 0.96, 0.42, 0.08, LIT, linewidth=0)
    board.text(4.89, 0.7, "B", size=7)
    board.text(5.2, 0.84, "A", size=7)
    board.pill(5.85, 0.62, 1.2, 0.46, f"{above} above" if above else "none above")
    board.pill(7.2, 0.62, 0.85, 0.46, "output")
    board.arrow((8.05, 0.85), (8.35, 0.85))
    board.text(8.4, 0.85, "loss", ha="left")
    for start, end, words in ((0.15, 3.16, "once"), (3.3, 8.75, "in every step, there and back")):
        board.line((start, 1.58), (start, 1.66), (end, 1.66), (end, 1.58), color=GREY)
        board.text((start + end) / 2, 1.85, words, weight="bold", color=INK)
    learns = f"dark blue: {numbers:,} numbers that learn, beside {p.dim * p.hidden_dim:,} that stay"
    board.text(6.0, 2.15, learns, size=8, color="#444444")
    return board.picture(
        f"The stream passes the embedding and {layer} layers, once, and is kept: {dims((tokens, p.dim))}. In every "
        f"step it goes on through layer {layer}, where w2 has B A added to it, {numbers:,} numbers, and through "
        f"{above} layers above and output to the loss, and the gradient comes back as far as that."
    )
