"""From text to ids to rows of the table."""

from collections.abc import Sequence
from typing import Any

from ..params import ModelArgs
from ..plots import COLORS, Picture, _families, styled
from .board import FLOWS, GREY, HATCHES, PAPER, Board, dims


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
        board.text(x + width / 2, top + 0.17, piece, bbox=PAPER, family=["DejaVu Sans Mono", *_families()])
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
