"""A model in several processes: which heads each of them has, how they add up, and what that costs in time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, HATCHES, INK, LEARNED, LIT, PAPER, Board, dims
from .files import machine_style

_MUTED = "#444444"
_MOST_HEADS = 32  # that can be told apart side by side


def hatch_of(number: int) -> str:
    """Where the colours begin anew, each comes with another hatch."""
    return HATCHES[(number + number // len(COLORS)) % len(HATCHES)]


@styled
def heads_dealt(params: ModelArgs, processes: int, most: int = _MOST_HEADS) -> Picture:
    """Which query heads each process has, and below them the KV heads that these read: one colour a KV head.

    A KV head that more than one process keeps, or one process twice, has a thick frame. Where there are more than
    `most` query heads, the first processes are drawn. Raises ValueError for heads that cannot be dealt evenly.
    """
    each, left_over = divmod(params.n_heads, processes)
    if left_over:
        raise ValueError(f"{params.n_heads} heads cannot be dealt evenly to {processes} processes")
    share = math.gcd(each, params.group_size)  # neighbours that read the same KV head, in every process
    kept = [h // params.group_size for h in range(0, params.n_heads, share)]
    shown = min(processes, max(1, most // each))
    gap = min(0.3, 2.4 / shown)
    board, step = Board(9.2, 1.75), (7.85 - gap * (shown - 1)) / (each * shown)
    size = 8 if step > 0.3 else 6.5
    for rank in range(shown):
        left = 1.25 + rank * (each * step + gap)
        board.rectangle(left - gap * 0.2, 0.12, each * step + gap * 0.4, 1.0, "#F2F2F2", linewidth=0)
        for h in range(rank * each, (rank + 1) * each):
            x, kv = left + (h - rank * each) * step, h // params.group_size
            style: dict[str, Any] = {"alpha": 0.85, "hatch": hatch_of(kv)}
            board.rectangle(x, 0.2, step * 0.92, 0.32, COLORS[kv % len(COLORS)], **style)
            if step > 0.15:
                board.text(x + step * 0.46, 0.36, str(h), size=size, weight="bold", bbox=PAPER | {"pad": 0.6})
        for i, kv in enumerate(kept[rank * each // share : (rank + 1) * each // share]):
            x, wide = left + i * share * step, share * step - step * 0.08
            style = {"alpha": 0.85, "hatch": hatch_of(kv)}
            board.rectangle(x, 0.7, wide, 0.32, COLORS[kv % len(COLORS)], **style)
            if kept.count(kv) > 1:
                board.rectangle(x, 0.7, wide, 0.32, "none", linewidth=2.2)
            board.text(x + wide / 2, 0.86, str(kv), size=size, weight="bold", bbox=PAPER | {"pad": 0.6})
        board.text(left + each * step / 2, 1.26, str(rank), size=8)
    board.text(1.1, 0.36, "query heads", ha="right", size=8)
    board.text(1.1, 0.86, "KV heads", ha="right", size=8)
    board.text(1.1, 1.26, "process", ha="right", size=8)
    rest = f" (the first {shown} are drawn)" if shown < processes else ""
    reads = f"{each // share} KV head{'s' if each > share else ''}"
    count = f"{processes} process{'es' if processes > 1 else ''}{rest}"
    words = f"{count}: {each} of {params.n_heads} query heads each, and {reads}"
    twice = sorted({kv for kv in kept if kept.count(kv) > 1})
    words += ", thick where one is kept more than once" if twice else ", each kept once"
    board.text(4.6, 1.58, words, size=8)
    told = f"KV heads kept more than once: {', '.join(map(str, twice))}" if twice else "No KV head is kept twice"
    return board.picture(f"{words}. {told}.")


@styled
def layer_in_processes(params: ModelArgs, processes: int, tokens: int | str = "seq") -> Picture:
    """One layer, a row for each process: what it computes alone, and the two places where all of them add up."""
    lane, top = 0.62, 0.55
    board = Board(9.2, top + lane * processes + 0.62)
    heads = f"{params.n_heads // processes} heads"
    neurons = f"{params.hidden_dim // processes:,} neurons"
    if params.hidden_dim % processes:
        neurons = f"~ {neurons}"
    for rank in range(processes):
        y = top + lane * rank
        middle = y + 0.2
        board.text(0.1, middle, f"process {rank}", ha="left", size=8)
        for x, step, part in ((0.95, "attention", heads), (5.05, "feed-forward", neurons)):
            board.vector(x, middle - 0.08, 0.5, cells=6)
            board.arrow((x + 0.5, middle), (x + 0.68, middle))
            board.pill(x + 0.68, y + 0.05, 0.5, 0.3, "norm", size=7.5)
            board.arrow((x + 1.18, middle), (x + 1.36, middle))
            board.rectangle(x + 1.36, y, 1.1, 0.42, **machine_style(rank))
            board.text(x + 1.91, middle, f"{step}\n{part}", size=7.5, bbox=PAPER)
            board.arrow((x + 2.46, middle), (x + 2.64, middle))
            board.rectangle(x + 2.64, middle - 0.08, 0.5, 0.16, **machine_style(rank))
            board.arrow((x + 3.14, middle), (x + 3.32, middle))
            board.arrow((x + 3.56, middle), (x + 3.74, middle))
            board.plus(x + 3.84, middle)
            board.line((x + 0.06, middle - 0.08), (x + 0.06, y - 0.06), (x + 3.84, y - 0.06), color=_MUTED, zorder=0.5)
            board.arrow((x + 3.84, y - 0.06), (x + 3.84, middle - 0.1), color=_MUTED)
            board.arrow((x + 3.94, middle), (x + 4.1, middle))
    bottom = top + lane * processes - 0.12
    for x in (0.95, 5.05):
        board.rectangle(x + 3.32, top - 0.08, 0.24, bottom - top + 0.08, INK, linewidth=0)
        board.text(x + 3.44, (top + bottom) / 2, "sum over all", rotation=90, color="white", size=8, weight="bold")
        board.text(x + 0.25, 0.3, "x", size=8.5)
        board.text(x + 2.89, 0.3, "term", size=8.5)
        board.text(x + 0.25, bottom + 0.15, "the same everywhere", size=7, color=_MUTED)
        board.text(x + 2.89, bottom + 0.15, dims((tokens, params.dim)), size=7, color=_MUTED)
    board.text(4.6, bottom + 0.45, "colour: of this process alone; palest blue: everybody has the same", size=8)
    return board.picture(
        f"One layer in {processes} processes. Each has x, takes the norm, computes attention with {heads}, which gives "
        f"a term {dims((tokens, params.dim))}; the terms are summed over all processes and added to x. The same again "
        f"with feed-forward and {neurons}. Two sums in a layer."
    )


@styled
def ring_sum(states: Sequence[Sequence[Sequence[float]]]) -> Picture:
    """The states of an all-reduce in a ring: states[step][rank][chunk]. White: its own; blue: a partial sum; dark: the
    whole sum. A thick frame: it has just come in.
    """
    n, whole = len(states[0]), [sum(column) for column in zip(*states[0], strict=True)]
    step, cell, tall, top = 9.1 / n, (9.1 / n - 0.45) / n, 0.27, 0.52
    block = top + tall * n + 0.22
    board = Board(9.2, 2 * block + 0.35)
    for s, state in enumerate(states):
        row, place = divmod(s, n)
        left, y = 0.3 + step * (place + 0.5 * row), block * row + top  # one grid less in the lower row
        doing = "at the start" if s == 0 else f"step {s}: {'add' if s < n else 'pass on'}"
        board.text(left + cell * n / 2, y - 0.32, doing, size=8.5, weight="bold")
        for chunk in range(n):
            board.text(left + cell * (chunk + 0.5), y - 0.11, str(chunk), size=7.5, color=_MUTED)
        for rank in range(n):
            board.text(left - 0.1, y + tall * (rank + 0.5), str(rank), size=7.5, color=_MUTED)
            for chunk in range(n):
                value, came = state[rank][chunk], s > 0 and state[rank][chunk] != states[s - 1][rank][chunk]
                own = value == states[0][rank][chunk]
                fill = LIT if value == whole[chunk] else "white" if own else FLOWS
                x = left + cell * chunk
                board.rectangle(x, y + tall * rank, cell, tall, fill, linewidth=0.5)
                if came:
                    board.rectangle(x + 0.015, y + tall * rank + 0.015, cell - 0.03, tall - 0.03, "none", linewidth=1.8)
                ink = "white" if fill == LIT else INK
                board.text(x + cell / 2, y + tall * (rank + 0.5), f"{value:g}", size=7.5, color=ink)
    words = (
        "rows: ranks; columns: chunks; white: its own; blue: partial sum; dark: whole sum; thick frame: just came in"
    )
    board.text(4.6, 2 * block + 0.15, words, size=8)
    done = [sum(state[r][c] == whole[c] for r in range(n) for c in range(n)) for state in states]
    return board.picture(
        f"A sum in a ring of {n}, in {len(states) - 1} steps; in each, every rank sends one chunk to the next rank. In "
        f"the first {n - 1} steps it is added there, in the others it replaces what was there. Chunks that hold the "
        f"whole sum, of {n * n}, from the start on: {', '.join(map(str, done))}."
    )


@styled
def token_times(times: Mapping[str, Mapping[str, float]], title: str = "") -> Picture:
    """How long one token takes, in milliseconds: a bar for each way to run, made of named parts."""
    figure = Figure(figsize=(7.6, 0.46 * len(times) + 1.1), layout="constrained")
    ax = figure.add_subplot()
    looks = ((LEARNED, ""), (FLOWS, "///"), (GREY, ""))
    parts, longest = list(next(iter(times.values()))), max(sum(taken.values()) for taken in times.values())
    for row, taken in enumerate(times.values()):
        left = 0.0
        for part, (color, hatch) in zip(parts, looks, strict=False):
            label = part if row == 0 else None
            style: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": INK, "linewidth": 0.7, "label": label}
            ax.barh(row, taken[part], 0.62, left, **style)
            left += taken[part]
        words = f"{left:,.3g} ms, {1000 / left:,.3g} tokens a second"
        ax.text(left + longest / 100, row, words, va="center", fontsize=8.5)
    ax.set_yticks(range(len(times)), list(times))
    ax.set(ylim=(len(times) - 0.5, -0.5), xlim=(0, longest * 1.45), xlabel="milliseconds for one token", title=title)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=len(parts))
    told = "; ".join(
        f"{name} {', '.join(f'{t:.3g} ms {p}' for p, t in taken.items())}" for name, taken in times.items()
    )
    return Picture(figure, f"One token takes: {told}.")
