"""What notebook 13 looks at: the names of a trace, the places a head can look at, and two heads that work together."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import tracing
from ..params import ModelArgs
from ..plots import COLORS, Picture, ink, styled
from .board import FLOWS, GREY, INK, PAPER, Board, dims

KINDS = {  # habit -> colour and letter; the same in every picture
    "previous": (COLORS[0], "P"),
    "induction": (COLORS[5], "I"),
    "duplicate": (COLORS[3], "D"),
    "itself": (COLORS[2], "S"),
    "uniform": (COLORS[1], "U"),
    "first": ("#DDDDDD", ""),
    "none of these": ("white", ""),
}


@styled
def trace_names(params: ModelArgs, tokens: int) -> Picture:
    """One layer with the name and the shape of each tensor that `trace` keeps of it."""
    shapes = tracing.shapes(params, tokens)
    board = Board(9.2, 4.3)
    w, step, start = 0.86, 8.6 / 9, 0.4

    def half(title: str, y: float, stream: float, ends: tuple[str, str], beside: int, columns: list[list[str]]) -> None:
        """One half of the layer, left to right, over its piece of the stream; one column is made at once."""
        board.text(0.1, y - 0.63, title, ha="left", weight="bold")
        board.line((0.1, stream), (9.05, stream), linewidth=3.2, color="#7FB2D6")
        board.arrow((9.0, stream), (9.15, stream), color="#5B93BB", linewidth=2.4)
        for name, at, side in ((ends[0], 0.1, "left"), (ends[1], 9.1, "right")):
            board.text(at, stream + 0.19, f"{name} {dims(shapes[name])}", size=7.5, ha=side, color="#444444")
        board.line((0.2, stream), (0.2, y + 0.15))
        board.arrow((0.2, y + 0.15), (start, y + 0.15), mutation_scale=6)
        for i, column in enumerate(columns):
            x, top = start + i * step, y - 0.26 * (len(column) - 1)
            for row, name in enumerate(column):
                board.rectangle(x, top + 0.54 * row, w, 0.3, FLOWS)
                board.text(x + w / 2, top + 0.54 * row + 0.15, name.split(".")[-1], size=7)
                board.text(x + w / 2, top + 0.54 * row + 0.41, dims(shapes[f"layers.0.{name}"]), size=6)
            if i:
                board.arrow((x - step + w, y + 0.15), (x, y + 0.15), mutation_scale=6)
        by, until = start + step + w, start + beside * step + w / 2  # values, and w3's, wait for their partner
        low = y + 0.04 + 0.27 * len(columns[1])
        board.line((by, low), (until, low))
        board.arrow((until, low), (until, y + 0.47), mutation_scale=6)
        out = start + (len(columns) - 1) * step + w / 2
        board.arrow((out, y + 0.5), (out, stream - 0.1), mutation_scale=7)
        board.plus(out, stream)

    attention = [["q", "k", "v"], ["q_rotated", "k_rotated"], *[[n] for n in ("scores", "masked", "weights", "heads")]]
    ends = "embeddings", "layers.0.attention.stream", "layers.0.stream"
    columns = [[f"attention.{name}" for name in column] for column in [*attention, ["written"], ["output"]]]
    half("layers.0.attention", 0.8, 1.85, ends[:2], 6, [["attention_norm"], *columns])
    feed_forward = ["z", "up"], ["gate"], ["hidden"], ["output"]
    columns = [[f"feed_forward.{name}" for name in column] for column in feed_forward]
    half("layers.0.feed_forward", 3.0, 3.9, ends[1:], 3, [["ffn_norm"], *columns])
    names = ", ".join(f"{name} {dims(shape)}" for name, shape in shapes.items() if name.startswith("layers.0."))
    return board.picture(f"The tensors of layer 0 for {tokens} tokens, in the order of the run: {names}.")


@styled
def habit_places(letters: str = "ABCDE") -> Picture:
    """Five places that a head can look at, on a text that is repeated once: small squares, rows look at columns."""
    text = letters * 2
    n, half = len(text), len(letters)
    board = Board(9.2, 2.45)
    rules = {
        "previous": [(i, i - 1) for i in range(1, n)],
        "induction": [(i, i - half + 1) for i in range(half, n)],
        "duplicate": [(i, i - half) for i in range(half, n)],
        "first": [(i, 0) for i in range(1, n)],
        "itself": [(i, i) for i in range(1, n)],
    }
    cell = 1.5 / n
    for p, (name, places) in enumerate(rules.items()):
        left, top = 0.3 + 1.8 * p, 0.6
        board.text(left + 0.75, 0.15, name, weight="bold")
        for i, letter in enumerate(text):
            board.text(left + (i + 0.5) * cell, top - 0.1, letter, size=6.5, color="#444444")
            board.text(left - 0.09, top + (i + 0.5) * cell, letter, size=6.5, color="#444444")
            for j in range(i + 1):
                fill = KINDS[name][0] if (i, j) in places else "white"
                if name == "first" and (i, j) in places:
                    fill = "#999999"
                board.rectangle(left + j * cell, top + i * cell, cell, cell, fill, edgecolor="#BBBBBB", linewidth=0.5)
    board.text(4.6, 2.3, "rows look, columns are looked at", size=8, color="#444444")
    told = "; ".join(f"{name}: {len(places)} cells" for name, places in rules.items())
    return board.picture(f"The places that belong to five habits, on the text {' '.join(text)}. {told}.")


@styled
def head_kinds(kinds: Tensor, names: Sequence[str], title: str = "") -> Picture:
    """Every head of the model as a cell, [n_layers, n_heads] of numbers into `names`, coloured by its habit."""
    n_layers, n_heads = kinds.shape
    cell = min(0.27, 8.3 / n_layers)
    board = Board(9.2, 0.85 + cell * n_heads, title)
    left, top = 0.6, 0.3
    every = max(1, round(0.2 / cell))
    for layer in range(n_layers):
        if layer % every == 0:
            board.text(left + (layer + 0.5) * cell, top - 0.1, str(layer), size=6.5, color="#444444")
        for head in range(n_heads):
            fill, letter = KINDS[names[int(kinds[layer, head])]]
            x, y = left + layer * cell, top + head * cell
            board.rectangle(x, y, cell, cell, fill, edgecolor="#BBBBBB", linewidth=0.6)
            if letter and cell > 0.15:
                board.text(x + cell / 2, y + cell / 2, letter, size=7, color=ink(fill))
    for head in range(0, n_heads, every):
        board.text(left - 0.1, top + (head + 0.5) * cell, str(head), size=6.5, color="#444444")
    board.text(left + n_layers * cell / 2, 0.05, "layer", size=8)
    board.text(0.2, top + n_heads * cell / 2, "head", size=8, rotation=90)
    counts = {name: int((kinds == i).sum()) for i, name in enumerate(names)}
    x, y = left, top + n_heads * cell + 0.22
    for name, count in counts.items():
        fill, letter = KINDS[name]
        board.rectangle(x, y, 0.18, 0.18, fill, edgecolor="#888888", linewidth=0.6)
        if letter:
            board.text(x + 0.09, y + 0.09, letter, size=7, color=ink(fill))
        board.text(x + 0.25, y + 0.09, f"{name}: {count}", size=8, ha="left")
        x += 0.4 + 0.063 * len(f"{name}: {count}")
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return board.picture(f"All {n_layers} x {n_heads} heads by habit: {told}.")


@styled
def induction_circuit(early: tuple[int, int], late: tuple[int, int], words: Sequence[str], back: int = 1) -> Picture:
    """Two heads, one circuit: the earlier writes into each place what stands `back` places before, the later one looks
    for its own token among these notes. `words` are two tokens, A and B, of the text ... A B ... A.
    """
    a, b = words
    others = ("...", "...", "...")
    shown = [others[0], a, b, others[1], others[2], a]
    board = Board(9.2, 3.3)
    w, gap, left = 1.0, 0.36, 1.05
    xs = [left + i * (w + gap) for i in range(len(shown))]
    blue, red = KINDS["previous"][0], KINDS["induction"][0]
    paper: dict[str, Any] = PAPER
    for x, word in zip(xs, shown, strict=True):
        board.rectangle(x, 2.6, w, 0.32, FLOWS)
        board.text(x + w / 2, 2.76, word, family="DejaVu Sans Mono")
        board.line((x + w / 2, 2.6), (x + w / 2, 0.5), linewidth=2.4, color="#7FB2D6", zorder=0)
    source, target = 1, 1 + back
    board.text(0.5, 2.76, "tokens", color=GREY)
    board.text(0.5, 1.95, f"head\n{early[0]}.{early[1]}", color=blue, weight="bold")
    board.text(0.5, 0.95, f"head\n{late[0]}.{late[1]}", color=red, weight="bold")
    board.arrow((xs[source] + w / 2, 2.3), (xs[target] + w / 2, 1.95), color=blue, linewidth=1.8)
    board.text((xs[source] + xs[target] + w) / 2, 2.4, "1. copies", size=8, color=blue, bbox=paper)
    board.rectangle(xs[target] - 0.14, 1.42, w + 0.28, 0.42, "white", edgecolor=blue, linewidth=1.6)
    place = "before me" if back == 1 else f"{back} before me"
    board.text(xs[target] + w / 2, 1.63, f"key: {place}\nstood {a}", size=7.5, color=INK)
    board.rectangle(xs[-1] - 0.14, 1.42, w + 0.28, 0.42, "white", edgecolor=red, linewidth=1.6)
    board.text(xs[-1] + w / 2, 1.63, f"query: where is\n{a} before you?", size=7.5, color=INK)
    board.arrow((xs[-1] - 0.14, 1.63), (xs[target] + w + 0.14, 1.63), color=red, linewidth=1.8, linestyle="--")
    board.text((xs[target] + xs[-1] + w) / 2, 1.5, "2. fits", size=8, color=red, bbox=paper)
    board.arrow((xs[target] + w / 2, 1.0), (xs[-1] + w / 2, 0.75), color=red, linewidth=1.8)
    board.text((xs[target] + xs[-1] + w) / 2, 0.7, f"3. brings {shown[target]}", size=8, color=red, bbox=paper)
    board.text(xs[-1] + w / 2, 0.3, f"next: {shown[target]}", weight="bold")
    return board.picture(
        f"An induction head in two steps, on a text with {a} {b} in it and {a} again at its end. Head {early[0]}."
        f"{early[1]} copies into each place what stood before it, so that the key at {shown[target]} says {a}. Head "
        f"{late[0]}.{late[1]} asks at the second {a} for a place with {a} before it, finds {shown[target]}, and brings "
        f"it along."
    )
