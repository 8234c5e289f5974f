"""Reading a state early: the short way to the output matrix, and a push through the layers above another text."""

from ..params import ModelArgs
from ..plots import Picture, styled
from .board import FLOWS, GREY, INK, LIT, PAPER, Board, dims

_STREAM = "#7FB2D6"


@styled
def early_reading(params: ModelArgs, layer: int, tokens: int | str = "seq", through: bool = False) -> Picture:
    """A state after `layer` read before the layers above have run: straight through the last norm and the output
    matrix (the logit lens), or, with `through`, first by J, the mean of what the layers above make of a small push.
    """
    p, board = params, Board(9.2, 3.2 if through else 2.5)
    above = p.n_layers - 1 - layer
    board.text(0.1, 0.32, "the model", ha="left", weight="bold")
    board.line((1.0, 0.8), (6.05, 0.8), linewidth=3.2, color=_STREAM, zorder=0)
    board.pill(1.2, 0.6, 1.45, 0.4, f"{layer + 1} layers" if layer else "layer 0")
    board.pill(4.0, 0.6, 1.45, 0.4, f"{above} more" if above else "no more")
    for x, words in ((6.05, "norm"), (6.95, "output")):
        board.pill(x, 0.6, 0.75, 0.4, words)
    board.arrow((6.8, 0.8), (6.95, 0.8))
    board.arrow((7.7, 0.8), (7.9, 0.8))
    board.text(7.95, 0.8, "logits", ha="left")
    board.text(0.5, 0.8, dims((tokens, p.dim)), size=7.5, color="#444444")
    board.rectangle(3.25, 0.72, 0.16, 0.16, LIT, linewidth=0)
    board.text(3.33, 0.45, f"state after layer {layer}", size=8, bbox=PAPER)
    ways = [("logit lens", 1.75, False), ("Jacobian lens", 2.5, True)] if through else [("logit lens", 1.75, False)]
    for i, (name, y, by_mean) in enumerate(ways):
        board.line((3.33, 0.88), (3.33, y), color=LIT, linewidth=1.4)
        board.arrow((3.33, y), (4.0 if by_mean else 6.05, y), color=LIT, linewidth=1.4)
        board.text(0.1, y, name, ha="left", weight="bold", color=INK)
        board.text(0.1, y + 0.22, "as if the rest did nothing" if not i else "what the rest does on average", size=7.5,
                   ha="left", color="#444444")  # fmt: skip
        if by_mean:
            board.pill(4.0, y - 0.2, 1.45, 0.4, f"J {dims((p.dim, p.dim))}", lit=True)
            board.arrow((5.45, y), (6.05, y), color=LIT, linewidth=1.4)
        for x, words in ((6.05, "norm"), (6.95, "output")):
            board.pill(x, y - 0.2, 0.75, 0.4, words)
        board.arrow((6.8, y), (6.95, y))
        board.arrow((7.7, y), (7.9, y))
        board.text(7.95, y, dims((tokens, p.vocab_size)), size=7.5, ha="left")
    told = f" The Jacobian lens first multiplies it by J, {dims((p.dim, p.dim))}." if through else ""
    return board.picture(
        f"The model: {layer + 1} of {p.n_layers} layers, then {above} more, then norm and output give the logits. The "
        f"logit lens takes the state after layer {layer}, {dims((tokens, p.dim))}, past the {above} layers above it "
        f"straight to norm and output: {dims((tokens, p.vocab_size))}.{told}"
    )


@styled
def push_through(params: ModelArgs, layer: int, labels: list[str], inside: slice = slice(1, None)) -> Picture:
    """A push at the state after `layer` of a text, the same at the positions `inside`, and its effect on the last
    stream: each position's effect reaches itself and those after it.
    """
    p, count = params, len(labels)
    at = list(range(count)) if count <= 7 else [*range(5), None, count - 1]
    shown = ["..." if i is None else labels[i] for i in at]
    positions = range(*inside.indices(count))
    pushed = [i is not None and i in positions for i in at]
    board = Board(9.2, 4.0)
    step, left, low, high = 1.0, 1.9, 3.0, 1.15
    end = left + step * (len(shown) - 1)
    for i, (name, lit) in enumerate(zip(shown, pushed, strict=True)):
        x = left + step * i
        if name == "..." and at[i] is None:
            board.text(x, low, name, size=12)
            board.text(x, high, name, size=12)
            continue
        board.line((x, low - 0.1), (x, high + 0.1), linewidth=3.2, color=_STREAM, zorder=0)
        for later in (j for j in range(i + 1, len(shown)) if lit and pushed[j]):
            away = 0.28 + 0.12 * (later - i)
            start, stop = (x, low - 0.15), (left + step * later, high + 0.15)
            board.line(start, stop, color=LIT, linewidth=0.7, alpha=max(0.2, 0.9 - away), zorder=1)
        board.rectangle(x - 0.32, low - 0.1, 0.64, 0.2, FLOWS)
        board.rectangle(x - 0.32, high - 0.1, 0.64, 0.2, LIT if lit else FLOWS)
        if lit:
            board.text(x, low, "+ push", size=7.5)
        board.text(x, low + 0.33, name, size=8)
    board.pill(left - 0.55, 1.75, end - left + 1.1, 0.55, f"the {p.n_layers - 1 - layer} layers above layer {layer}")
    board.text(0.1, low, f"after layer {layer}", ha="left", size=8)
    board.text(0.1, high, "last stream", ha="left", size=8)
    board.text(0.1, low + 0.33, "another text", ha="left", size=8)
    board.line((left - 0.32, high - 0.2), (end + 0.32, high - 0.2), color=GREY)
    board.arrow(((left + end) / 2, high - 0.2), ((left + end) / 2, high - 0.45), color=GREY)
    board.pill((left + end) / 2 - 1.35, 0.25, 2.7, 0.42, f"mean over positions and texts {dims((p.dim,))}", size=8)
    board.text(4.6, 3.75, "dark blue: where the effect is counted", size=8, color="#444444")
    return board.picture(
        f"Another text of {count} tokens, after layer {layer}. The same push {dims((p.dim,))} is added at "
        f"{len(positions)} of its positions and goes through the "
        f"{p.n_layers - 1 - layer} layers above, upward and to later positions. What it changes there in the last "
        "stream is averaged over positions, and over several texts."
    )
