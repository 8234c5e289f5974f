"""What notebook 18 trains: the answer at the end of a lesson, and few numbers beside a frozen matrix."""

from collections.abc import Sequence

from ..params import ModelArgs
from ..plots import Picture, styled
from .board import FLOWS, GREY, INK, LEARNED, LIT, Board, dims


@styled
def lesson(labels: Sequence[str], n_answer: int, most: int = 8) -> Picture:
    """The end of a lesson: what the model reads, and what it shall say there. Only the answer, lit, is taught."""
    if not 0 < n_answer < len(labels):
        raise ValueError(f"n_answer must be between 1 and {len(labels) - 1}, not {n_answer}")
    read, wanted = labels[:-1][-most:], labels[1:][-most:]
    board = Board(9.2, 1.75)
    w, gap, left = 0.82, 0.12, 1.45
    board.text(0.1, 0.36, "it reads", ha="left", color=GREY)
    board.text(0.1, 1.16, "what follows", ha="left", color=GREY)
    if len(read) < len(labels) - 1:
        board.text(left - 0.18, 0.36, "...")
    for i, (word, follows) in enumerate(zip(read, wanted, strict=True)):
        x, taught = left + i * (w + gap), i >= len(read) - n_answer
        board.rectangle(x, 0.2, w, 0.32, FLOWS)
        board.text(x + w / 2, 0.36, word, size=7, family="DejaVu Sans Mono")
        board.arrow((x + w / 2, 0.56), (x + w / 2, 0.98), color=LIT if taught else "#BBBBBB")
        board.rectangle(x, 1.0, w, 0.32, LIT if taught else "white", edgecolor=LIT if taught else "#BBBBBB")
        color = "white" if taught else "#8A8A8A"
        board.text(x + w / 2, 1.16, follows, size=7, color=color, family="DejaVu Sans Mono")
    middle = left + (len(read) - n_answer / 2) * (w + gap) - gap / 2
    board.text(middle, 1.52, "counts", size=8, color=LIT, weight="bold")
    if n_answer < len(read):
        board.text(left + (len(read) - n_answer) * (w + gap) / 2, 1.52, "is left out of the loss", size=8, color=GREY)
    told = ", ".join(f"after {a} comes {b}" for a, b in list(zip(read, wanted, strict=True))[-n_answer:])
    return board.picture(f"The last {len(read)} tokens of a lesson. Taught is the answer only: {told}.")


@styled
def low_rank(params: ModelArgs, name: str, rank: int, tokens: int, fixed: bool = False) -> Picture:
    """A frozen matrix of a layer, such as "attention.wq", and beside it two thin ones that learn, B and A. With `fixed`
    the first of the two stays as it is, too: a key k, which meets a value v.
    """
    shapes = params.weight_shapes()
    if f"layers.0.{name}.weight" not in shapes:
        raise ValueError(f'name must be one of a layer\'s matrices, such as "attention.wq", not {name!r}')
    out_size, in_size = shapes[f"layers.0.{name}.weight"]
    first, second = ("k", "v") if fixed else ("A", "B")
    short = name.split(".")[-1]
    board = Board(9.2, 3.5)
    scale = 1.3 / max(out_size, in_size)
    w, h, thin, middle = in_size * scale, out_size * scale, 0.2, 1.75
    board.vector(0.15, middle - 0.08, 1.1, f"x {dims([tokens, in_size])}")
    board.line((1.35, middle), (1.6, middle))
    for y in (0.9, 2.75):
        board.line((1.6, middle), (1.6, y))
    board.arrow((1.6, 0.9), (3.6 - w / 2, 0.9))
    board.matrix(3.6 - w / 2, 0.9 - h / 2, w, h, short, [out_size, in_size])
    board.arrow((1.6, 2.75), (2.6 - w / 2, 2.75))
    board.rectangle(2.6 - w / 2, 2.75 - thin / 2, w, thin, LEARNED if fixed else LIT)
    board.text(2.6, 2.75, first, color=INK if fixed else "white")
    board.text(2.6, 2.75 + thin / 2 + 0.14, dims([rank, in_size]), size=7.5, color="#444444")
    board.arrow((2.6 + w / 2, 2.75), (3.75, 2.75))
    board.rectangle(3.75, 2.67, 0.35, 0.16, FLOWS)
    board.text(3.92, 2.97, dims([tokens, rank]), size=7.5, color="#444444")
    board.arrow((4.1, 2.75), (4.7, 2.75))
    board.rectangle(4.7, 2.75 - h / 2, thin, h, LIT)
    board.text(4.7 + thin / 2, 2.75, second, color="white")
    board.text(4.7 + thin / 2, 2.75 + h / 2 + 0.14, dims([out_size, rank]), size=7.5, color="#444444")
    join = 5.6
    board.line((3.6 + w / 2, 0.9), (join, 0.9))
    board.arrow((join, 0.9), (join, middle - 0.1))
    board.line((4.7 + thin, 2.75), (join, 2.75))
    board.arrow((join, 2.75), (join, middle + 0.1))
    board.plus(join, middle)
    board.arrow((join + 0.1, middle), (6.0, middle))
    board.vector(6.0, middle - 0.08, 1.1, dims([tokens, out_size]))
    learning = rank * out_size + (0 if fixed else rank * in_size)
    for i, (fill, words) in enumerate(
        [(LEARNED, f"stays: {out_size * in_size:,} numbers"), (LIT, f"learns: {learning:,}")]
    ):
        board.rectangle(6.5, 0.55 + 0.32 * i, 0.2, 0.2, fill)
        board.text(6.78, 0.65 + 0.32 * i, words, size=8, ha="left", color=INK)
    stays = f"{first} of {dims([rank, in_size])}, which stays, too," if fixed else f"{first} of {dims([rank, in_size])}"
    return board.picture(
        f"{short} of {dims([out_size, in_size])} stays as it is. Beside it, x goes through {stays} and through "
        f"{second} of {dims([out_size, rank])}, and both results are added: {learning:,} numbers learn beside "
        f"{out_size * in_size:,}."
    )
