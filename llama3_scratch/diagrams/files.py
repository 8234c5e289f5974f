"""What is in a file of weights, in which order rows stand there, and how matrices are cut for several machines."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import FancyBboxPatch

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, HATCHES, INK, LEARNED, LIT, PAPER, Board, dims

Place = tuple[str, int, Sequence[int], Sequence[int]]  # storage, offset, shape, stride

_MUTED, _MONO = "#444444", "monospace"


def extent(offset: int, shape: Sequence[int], stride: Sequence[int]) -> tuple[int, int]:
    """The first number of a storage that a tensor reads, and the one after its last."""
    return offset, offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


@styled
def pth_contents(places: Mapping[str, Place], storages: Mapping[str, int], title: str = "") -> Picture:
    """A .pth file: names on the left, each pointing to its part of a storage on the right.

    `places` has for each name the storage, the first number, the shape and the steps; `storages` how many numbers each
    storage holds.
    """
    readers = {number: [name for name, place in places.items() if place[0] == number] for number in storages}
    tall = [0.52 + 0.15 * len(names) for names in readers.values()]
    height = max(0.98 + 0.44 * len(places), 0.68 + sum(tall))
    board = Board(9.2, height)
    frame: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": "none", "edgecolor": GREY}
    board.ax.add_patch(FancyBboxPatch((0.08, 0.3), 9.04, height - 0.4, **frame))
    board.text(0.2, 0.14, title or "a .pth file is a zip file", ha="left", weight="bold")
    if len(set(storages.values())) > 1:
        board.text(8.95, 0.14, "strips are not to scale", ha="right", size=7.5, color=GREY)
    board.rectangle(0.2, 0.42, 4.4, 0.34 + 0.44 * len(places), "white", edgecolor=INK)
    board.text(0.32, 0.58, "data.pkl: names and places", ha="left", color=LIT, weight="bold")
    rows = {}
    for i, (name, (number, offset, shape, stride)) in enumerate(places.items()):
        y = 0.87 + 0.44 * i
        rows[name] = y
        where = f"data/{number}, from {offset:,}, shape {dims(list(shape))}, steps {dims(list(stride))}"
        board.text(0.32, y - 0.04, name, ha="left", weight="bold")
        board.text(0.32, y + 0.14, where, ha="left", size=7.5, color=_MUTED)
    left, wide, y = 5.75, 3.2, 0.62
    for (number, count), tall_one in zip(storages.items(), tall, strict=True):
        cells = count if count <= 16 else 12
        board.text(left, y - 0.11, f"data/{number}: {count:,} numbers", ha="left", size=7.5, color=_MUTED)
        board.vector(left, y, wide, fill=LEARNED, cells=cells)
        if count <= 16:
            for i in range(count):
                board.text(left + wide * (i + 0.5) / count, y + 0.08, str(i), size=7)
        for k, name in enumerate(readers[number]):
            first, end = (wide * n / count for n in extent(*places[name][1:]))
            at, color = y + 0.27 + 0.13 * k, COLORS[(list(places).index(name)) % len(COLORS)]
            board.line((left + first, at), (left + end, at), color=color, linewidth=3, solid_capstyle="butt")
            board.arrow((4.6, rows[name] + 0.05), (left + first, at), color=color, linewidth=0.9)
        y += tall_one
    told = "; ".join(
        f"{name} is storage {number} from number {offset:,} on, shape {dims(list(shape))}, steps {dims(list(stride))}"
        for name, (number, offset, shape, stride) in places.items()
    )
    return board.picture(f"A .pth file, as a zip with data.pkl and {len(storages)} storages. {told}.")


@styled
def safetensors_contents(length: int, header: Mapping[str, Mapping[str, Any]], most: int = 3) -> Picture:
    """A safetensors file from its first byte to its last: a length, a list in JSON, the numbers. Not to scale."""
    names = sorted((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    board, shown = Board(9.2, 2.1), names[:most]
    board.rectangle(0.1, 0.6, 0.95, 0.42, FLOWS)
    board.text(0.57, 0.81, "8 bytes")
    board.text(0.57, 0.44, "length of the list", size=7.5, color=_MUTED, ha="center")
    board.rectangle(1.05, 0.6, 2.6, 0.42, "white")
    board.text(2.35, 0.81, f"{length:,} bytes of JSON")
    board.text(2.35, 0.44, "the list of tensors", size=7.5, color=_MUTED)
    rest = [*shown, "..."] if len(names) > most else shown
    wide = 5.4 / max(len(rest) - 0.6 * (len(names) > most), 1)
    x, board_x = 3.65, {}
    for name in rest:
        w = wide * (0.4 if name == "..." else 1)
        board.rectangle(x, 0.6, w, 0.42, LEARNED)
        words = name.removesuffix(".weight").split(".")
        board.text(x + w / 2, 0.81, name if name == "..." else words[-1], size=8)
        board_x[name] = x
        x += w
    board.text(3.65 + 2.7, 0.44, "the numbers, tensor after tensor, nothing between", size=7.5, color=_MUTED)
    first = header[shown[0]]
    start, end = first["data_offsets"]
    said = f'"{shown[0]}": {{"dtype": "{first["dtype"]}", "shape": {list(first["shape"])},'
    board.text(0.3, 1.55, said, ha="left", size=7.5, family=_MONO)
    offsets = f'"data_offsets": [{start}, {end}]}}'
    board.text(0.62, 1.8, offsets, ha="left", size=7.5, family=_MONO)
    board.rectangle(0.2, 1.38, 6.4, 0.58, "none", edgecolor=GREY)
    board.line((1.05, 1.02), (0.2, 1.38), color=GREY, linewidth=0.8, linestyle="--")
    board.line((3.65, 1.02), (6.6, 1.38), color=GREY, linewidth=0.8, linestyle="--")
    at = board_x[shown[0]] + 0.12
    board.line((0.75 + 0.071 * len(offsets), 1.8), (6.85, 1.8), (6.85, 1.2), (at, 1.2), color=LIT)
    board.arrow((at, 1.2), (at, 1.03), color=LIT)
    board.text(6.98, 1.66, f"offsets count from there:\nbyte {8 + length:,} of the file", ha="left", size=8, color=LIT)
    return board.picture(
        f"A safetensors file: 8 bytes that say how long the list is, {length:,} bytes of JSON, and then the numbers of "
        f"{len(names)} tensors, one after the other. In the list, {shown[0]} has type {first['dtype']}, shape "
        f"{dims(list(first['shape']))}, and its bytes go from {start:,} to {end:,}, counted from the end of the list."
    )


def bits_of(value: float) -> str:
    """The 32 bits of a float32, the most significant first."""
    return f"{int.from_bytes(struct.pack('>f', value), 'big'):032b}"


@styled
def float_bits(value: float) -> Picture:
    """A float32 bit by bit, and which of its bits a bfloat16 keeps."""
    bits, board, cell = bits_of(value), Board(9.2, 1.75), 0.274
    parts = [("sign", 0, 1, FLOWS), ("exponent: 8 bits", 1, 9, LEARNED), ("fraction: 7 bits", 9, 16, "#DDEFE3")]
    parts += [("16 more bits of the fraction", 16, 32, "#F2F2F2")]
    for name, first, end, fill in parts:
        for i in range(first, end):
            board.rectangle(0.2 + cell * i, 0.62, cell, 0.32, fill)
            board.text(0.2 + cell * (i + 0.5), 0.78, bits[i], size=8.5)
        x = 0.2 + cell * first, 0.2 + cell * end
        board.line((x[0] + 0.03, 1.03), (x[1] - 0.03, 1.03), color=GREY)
        board.text(sum(x) / 2, 1.17, name, size=7.5, color=_MUTED)
    middle, right = 0.2 + cell * 16, 0.2 + cell * 32
    board.rectangle(0.2, 0.62, cell * 16, 0.32, "none", edgecolor=LIT, linewidth=2.2)
    board.text((0.2 + middle) / 2, 0.46, "bfloat16: the upper half, 2 bytes", color=LIT, weight="bold")
    board.text((middle + right) / 2, 0.46, "cut off", color=GREY)
    board.text(4.6, 0.18, f"{value:.9g} as float32, 4 bytes")
    kept = struct.unpack(">f", struct.pack(">I", int(bits[:16] + "0" * 16, 2)))[0]
    board.text(4.6, 1.5, f"with zeros in the lower half: {kept:.9g}", size=8)
    return board.picture(
        f"The 32 bits of {value:.9g}: {bits[0]} for the sign, {bits[1:9]} for the exponent, {bits[9:]} for the "
        f"fraction. The first 16 of them are a bfloat16; with zeros in place of the others the number is {kept:.9g}."
    )


@styled
def rope_orders(head_dim: int = 8) -> Picture:
    """The rows of a head in Meta's order and in Hugging Face's. Rows of one pair have one colour and an arc."""
    n = head_dim
    orders = (("Meta", [*range(n)]), ("Hugging Face", [*range(0, n, 2), *range(1, n, 2)]))
    board, step, left, tops = Board(9.2, 3.0), 6.2 / n, 1.65, (0.75, 2.0)
    places = [{row: place for place, row in enumerate(order)} for _, order in orders]
    for row in range(n):
        ends = [(left + step * (places[k][row] + 0.44), tops[k] + (0.36, 0)[k]) for k in (0, 1)]
        board.arrow(ends[0], ends[1], color=GREY, linewidth=0.9)
    for k, (name, order) in enumerate(orders):
        y = tops[k]
        board.text(left - 0.2, y + 0.18, name, ha="right", weight="bold")
        for place, row in enumerate(order):
            pair = row // 2
            x, color = left + step * place, COLORS[pair % len(COLORS)]
            board.rectangle(x, y, step * 0.88, 0.36, color, alpha=0.4, hatch=HATCHES[pair % len(HATCHES)])
            board.text(x + step * 0.44, y + 0.18, str(row), bbox=PAPER | {"alpha": 1})
            if row % 2 == 0:
                far = left + step * (places[k][row + 1] + 0.44)
                edge, bend = (y, -0.32) if k == 0 else (y + 0.36, 0.3)
                style: dict[str, Any] = {"arrowstyle": "-", "connectionstyle": f"arc3,rad={bend}", "linewidth": 1.6}
                board.arrow((x + step * 0.44, edge), (far, edge), color=INK, **style)
    right = left + step * n + 0.05
    board.text(right, tops[0] + 0.18, "neighbours\nturn together", ha="left", size=8)
    board.text(right, tops[1] + 0.18, f"row i turns\nwith i + {n // 2}", ha="left", size=8)
    return board.picture(
        f"The {n} rows of a head, twice. In Meta's order 0 to {n - 1}, rows 0 and 1 are a pair, 2 and 3, and so on. In "
        f"Hugging Face's order {', '.join(map(str, orders[1][1]))}; there the place i is a pair with the place "
        f"i + {n // 2}. Lines show where each row goes."
    )


def machine_style(m: int, alpha: float = 0.4) -> dict[str, Any]:
    darker = alpha + 0.3 * (m // len(COLORS) % 2)
    return {"fill": COLORS[m % len(COLORS)], "alpha": darker, "hatch": HATCHES[m % len(HATCHES)]}


def _cut(board: Board, x: float, y: float, w: float, h: float, machines: int, by_rows: bool) -> None:
    """A matrix in as many parts as there are machines."""
    for m in range(machines):
        if by_rows:
            board.rectangle(x, y + h * m / machines, w, h / machines, **machine_style(m))
        else:
            board.rectangle(x + w * m / machines, y, w / machines, h, **machine_style(m))


def _named(board: Board, x: float, y: float, name: str, shape: Sequence[int | str], below: float) -> None:
    board.text(x, y - 0.12, name, weight="bold")
    board.text(x, below + 0.14, dims(shape), size=7, color=_MUTED)


def _machines(board: Board, machines: int, x: float, y: float) -> None:
    for m in range(machines):
        board.rectangle(x + 1.08 * m, y, 0.28, 0.17, **machine_style(m))
        board.text(x + 1.08 * m + 0.36, y + 0.085, f"machine {m}", ha="left", size=8)


@styled
def cut_layer(params: ModelArgs, machines: int, tokens: int | str = "seq") -> Picture:
    """How the matrices of a layer are cut for several machines, and the sums that join what these have computed."""
    p, board = params, Board(9.2, 4.5)
    q, kv = p.n_heads * p.head_dim, p.n_kv_heads * p.head_dim
    low = 0.5 + 0.5 * kv / q
    rows: tuple[tuple[float, str, list[tuple[str, tuple[int, int], float]], str, tuple[int, int], str], ...] = (
        (
            0.55,
            "attention",
            [("wq", (q, p.dim), 1.0), ("wk", (kv, p.dim), low), ("wv", (kv, p.dim), low)],
            "wo",
            (p.dim, q),
            f"{p.n_heads // machines} heads each",
        ),
        (
            2.55,
            "feed-forward",
            [("w1", (p.hidden_dim, p.dim), 1.0), ("w3", (p.hidden_dim, p.dim), 1.0)],
            "w2",
            (p.dim, p.hidden_dim),
            f"{p.hidden_dim // machines:,} neurons each",
        ),
    )
    for y, name, firsts, second, shape, share in rows:
        board.text(0.1, y - 0.35, name, ha="left", weight="bold", color=LIT)
        board.matrix(0.1, y + 0.2, 0.75, 0.5, "x", (tokens, p.dim), FLOWS)
        board.arrow((0.85, y + 0.45), (1.1, y + 0.45))
        x = 1.18
        for matrix, sizes, tall in firsts:
            _cut(board, x, y, 0.72, 0.95 * tall, machines, by_rows=True)
            _named(board, x + 0.36, y, matrix, sizes, y + 0.95 * tall)
            x += 1.02 if len(firsts) > 2 else 1.3
        board.text(1.2, y + 1.34, "cut by rows", ha="left", size=8)
        board.arrow((3.45 if len(firsts) < 3 else 4.15, y + 0.45), (4.4, y + 0.45))
        if len(firsts) < 3:
            board.text(3.9, y + 0.3, "silu(gate) × up", size=8)
        for m in range(machines):
            board.rectangle(4.5, y + 0.95 * m / machines, 0.55, 0.8 / machines, **machine_style(m))
        board.text(4.78, y + 1.09, share, size=7.5, color=_MUTED)
        board.arrow((5.15, y + 0.45), (5.4, y + 0.45))
        _cut(board, 5.5, y + 0.07, 0.95, 0.75, machines, by_rows=False)
        _named(board, 5.97, y + 0.07, second, shape, y + 0.82)
        board.text(5.97, y + 1.34, "cut by columns", size=8)
        board.arrow((6.5, y + 0.45), (6.7, y + 0.45))
        for m in range(machines):
            at = y + 0.95 * (m + 0.4) / machines
            board.rectangle(6.8, y + 0.95 * m / machines, 0.6, 0.8 / machines, **machine_style(m))
            board.arrow((7.4, at), (7.85, y + 0.45), color=GREY)
        board.text(7.1, y + 1.09, dims((tokens, p.dim)), size=7.5, color=_MUTED)
        board.text(7.1, y + 1.34, "a term each", size=8)
        board.plus(7.95, y + 0.45)
        board.arrow((8.05, y + 0.45), (8.28, y + 0.45))
        board.matrix(8.3, y + 0.2, 0.75, 0.5, "delta", (tokens, p.dim), FLOWS)
        board.text(7.95, y + 0.12, "sum", size=8, color=LIT, weight="bold")
    _machines(board, machines, 0.3, 4.2)
    return board.picture(
        f"A layer cut for {machines} machines. Attention: wq {dims((q, p.dim))}, wk and wv {dims((kv, p.dim))} are cut "
        f"by rows, so that each machine has {p.n_heads // machines} heads; wo {dims((p.dim, q))} is cut by columns, "
        f"and each machine has a term {dims((tokens, p.dim))}; their sum is what attention adds. Feed-forward: w1 and "
        f"w3 {dims((p.hidden_dim, p.dim))} by rows, w2 {dims((p.dim, p.hidden_dim))} by columns, and again a sum."
    )


@styled
def cut_ends(params: ModelArgs, machines: int, tokens: int | str = "seq") -> Picture:
    """How the table of embeddings and the output matrix are cut: a sum at one end, a gather at the other."""
    p, board = params, Board(9.2, 2.6)
    board.text(0.1, 0.16, "at the beginning: a sum", ha="left", weight="bold", color=LIT)
    board.text(0.42, 0.98, f"ids\n[{tokens}]", size=8)
    board.arrow((0.7, 0.98), (0.9, 0.98))
    _cut(board, 1.0, 0.6, 0.75, 0.95, machines, by_rows=True)
    _named(board, 1.37, 0.6, "tok_embeddings", (p.vocab_size, p.dim), 1.55)
    board.arrow((1.85, 0.98), (2.05, 0.98))
    for m in range(machines):
        y = 0.6 + 0.95 * m / machines
        board.rectangle(2.15, y, 0.85, 0.8 / machines, "white")
        rows = 5
        for r in range(rows):  # the rows of the tokens that it knows; zeros elsewhere
            if (r * 2 + 1) % machines == m:
                tall = 0.8 / machines / rows
                board.rectangle(2.15, y + tall * r, 0.85, tall, **machine_style(m), linewidth=0.3)
        board.arrow((3.0, y + 0.4 / machines), (3.38, 0.98), color=GREY)
    board.text(2.57, 1.69, "its rows, else zeros", size=7.5, color=_MUTED)
    board.plus(3.48, 0.98)
    board.arrow((3.58, 0.98), (3.68, 0.98))
    board.matrix(3.7, 0.73, 0.7, 0.5, "x", (tokens, p.dim), FLOWS)
    board.line((4.6, 0.1), (4.6, 2.15), color="#DDDDDD")
    board.text(4.75, 0.16, "at the end: a gather", ha="left", weight="bold", color=LIT)
    board.matrix(4.8, 0.73, 0.7, 0.5, "x", (tokens, p.dim), FLOWS)
    board.arrow((5.5, 0.98), (5.7, 0.98))
    _cut(board, 5.8, 0.6, 0.75, 0.95, machines, by_rows=True)
    _named(board, 6.17, 0.6, "output", (p.vocab_size, p.dim), 1.55)
    wide = 1.7 / machines
    for m in range(machines):
        x, y = 7.3 + wide * m, 0.5 + 0.95 * m / machines
        board.arrow((6.58, 0.6 + 0.95 * (m + 0.5) / machines), (x, y + 0.4 / machines), color=GREY)
        board.rectangle(x, y, wide, 0.8 / machines, **machine_style(m))
        board.arrow((x + wide / 2, y + 0.8 / machines), (x + wide / 2, 1.6), color=GREY)
        board.rectangle(x, 1.6, wide, 0.3, **machine_style(m))
    board.text(8.15, 0.32, f"each [{tokens}, vocab / {machines}]", size=7.5, color=_MUTED)
    board.text(8.15, 2.04, f"logits {dims((tokens, p.vocab_size))}, side by side", size=7.5, color=_MUTED)
    _machines(board, machines, 0.3, 2.25)
    return board.picture(
        f"Both ends cut by rows for {machines} machines. At the beginning each machine gives the rows of the tokens "
        f"whose vectors it has, and zeros for the others; their sum is x, {dims((tokens, p.dim))}. At the end each "
        "machine has the logits of its part of the vocabulary; laid side by side they are "
        f"{dims((tokens, p.vocab_size))}."
    )
