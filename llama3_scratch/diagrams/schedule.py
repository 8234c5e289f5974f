"""Many machines at work: who has which layers, who works when, where two ways cross over a slower wire, which machines
hold which model, and what texts of unequal length take of the memory for caches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, LEARNED, LIT, Board, dims
from .parallel import hatch_of

Piece = tuple[float, float, int]  # from, to, and the number of the text, or of the piece of one
Work = Mapping[str, Sequence[Piece]]  # worker -> what it does
_FAST, _SLOW = 6.0, 1.0  # tokens a second: as fast as one reads, and one a second
_MARKS = ("-", "--", "-.", ":")


@styled
def stages(params: ModelArgs, layers: Sequence[range], tokens: int) -> Picture:
    """A pipeline: which layers each stage has, the two ends, and the stream that is passed on, once at each border."""
    board, gap = Board(9.2, 2.05), 0.95
    width = (9.0 - gap * (len(layers) - 1)) / len(layers)
    for s, own in enumerate(layers):
        left, right = 0.1 + (width + gap) * s, 0.1 + (width + gap) * s + width
        board.rectangle(left, 0.3, width, 1.2, "white", edgecolor=GREY, linestyle=(0, (4, 3)))
        board.text((left + right) / 2, 0.14, f"stage {s + 1}", weight="bold")
        words = f"layers {own.start} to {own.stop - 1}" if len(own) > 1 else f"layer {own.start}"
        board.text((left + right) / 2, 1.68, words, size=8)
        at, end = left + 0.08, right - 0.08
        if s == 0:
            at = _end(board, at, "embeddings")
        if s == len(layers) - 1:
            end -= 0.3
            _end(board, end + 0.04, "output")
        step = min(0.4, (end - at) / max(len(own), 1))
        for i in range(len(own)):
            board.rectangle(at + step * (i + 0.12), 0.42, step * 0.76, 0.96, LEARNED)
        if s < len(layers) - 1:
            board.arrow((right + 0.04, 0.9), (right + gap - 0.04, 0.9), color=LIT, linewidth=2.0, mutation_scale=14)
            board.text(right + gap / 2, 0.7, dims((tokens, params.dim)), size=8)
    board.text(0.1, 1.92, "yellow: what each holds", size=7.5, ha="left", color="#444444")
    board.text(9.1, 1.92, "arrow: what crosses the wire", size=7.5, ha="right", color="#444444")
    told = "; ".join(f"stage {s + 1} layers {own.start} to {own.stop - 1}" for s, own in enumerate(layers))
    return board.picture(
        f"A pipeline of {len(layers)} stages: {told}. The first has the embeddings as well, the last one the output. "
        f"At each border the stream is passed on, {dims((tokens, params.dim))}."
    )


def _end(board: Board, left: float, name: str) -> float:
    """A table of vocabulary at one end of the model; returns where the next thing may stand."""
    board.rectangle(left, 0.42, 0.22, 0.96, LEARNED, hatch="///")
    board.text(left + 0.11, 0.9, name, size=7, rotation=90, bbox={"facecolor": LEARNED, "edgecolor": "none", "pad": 1})
    return left + 0.3


@styled
def schedule(charts: Mapping[str, Work], unit: str = "time", title: str = "") -> Picture:
    """Who works when: a chart for each way, a row for each worker, a box for each piece of work, with its number.
    All charts have the same scale of time; a row without a box is a worker that waits.
    """
    rows = [len(work) for work in charts.values()]
    figure = Figure(figsize=(8.2, 0.27 * sum(rows) + 0.5 * len(charts) + 0.45), layout="constrained")
    axes = figure.subplots(len(charts), 1, sharex=True, squeeze=False, height_ratios=[n + 0.4 for n in rows])[:, 0]
    end = max(to for work in charts.values() for pieces in work.values() for _, to, _ in pieces)
    told = []
    for ax, (way, work) in zip(axes, charts.items(), strict=True):
        busy = sum(to - start for pieces in work.values() for start, to, _ in pieces)
        last = max(to for pieces in work.values() for _, to, _ in pieces)
        for row, pieces in enumerate(work.values()):
            for start, to, number in pieces:
                style: dict[str, Any] = {"color": _pale(number), "hatch": hatch_of(number)}
                ax.barh(row, to - start, 0.8, start, edgecolor=INK, linewidth=0.6, **style)
                if to - start > 0.024 * end:
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                    ax.text((start + to) / 2, row, str(number + 1), ha="center", va="center", fontsize=7, bbox=box)
        ax.set_title(way, loc="left", fontsize=9)
        ax.set_yticks(range(len(work)), list(work), fontsize=8)
        ax.set(ylim=(len(work) - 0.5, -0.5), xlim=(0, end * 1.01))
        ax.tick_params(left=False)
        ax.spines["left"].set_visible(False)
        told.append(f"{way}: until {last:.3g}, at work {busy / (last * len(work)):.0%} of the time")
    axes[-1].set_xlabel(unit)
    if title:
        figure.suptitle(title, fontsize=10)
    return Picture(figure, f"Who works when. {'; '.join(told)}.")


def _pale(number: int) -> str:
    """The colour of a text, mixed with white, so that a number can be read on it."""
    channels = [int(COLORS[number % len(COLORS)][i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - 0.45 * (255 - c)):02X}" for c in channels)


@styled
def crossing(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    wires: Mapping[str, float],
    title: str = "",
    cross: float | None = None,
) -> Picture:
    """Tokens a second over the latency of the wire in seconds, a curve for each way, both scales logarithmic. `wires`
    are marked by their names; a dot stands where two ways cross.
    """
    figure = Figure(figsize=(7.4, 3.7), layout="constrained")
    ax = figure.add_subplot()
    for i, (name, (x, y)) in enumerate(curves.items()):
        ax.plot(list(x), list(y), label=name, color=COLORS[i], linestyle=_MARKS[i % len(_MARKS)], linewidth=1.8)
    ax.set(xscale="log", yscale="log", title=title, xlabel="latency of the wire", ylabel="tokens a second")
    for name, latency in wires.items():
        ax.axvline(latency, color=GREY, linestyle=(0, (5, 3)), linewidth=1, zorder=0)
        place: dict[str, Any] = {"textcoords": "offset points", "xycoords": ax.get_xaxis_transform()}
        ax.annotate(name, (latency, 0.03), (3, 0), rotation=90, ha="left", va="bottom", fontsize=8, **place)
    told = ""
    if cross is not None:
        (x, y) = next(iter(curves.values()))
        at = min(range(len(x)), key=lambda i: abs(x[i] / cross - 1))
        ax.plot(cross, y[at], marker="o", color=INK, markersize=6, zorder=4)
        told = f" They cross at {_duration(cross)}."
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator())
        axis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.legend(frameon=False, loc="upper right")
    ends = "; ".join(f"{name} from {y[0]:.3g} to {y[-1]:.3g}" for name, (_, y) in curves.items())
    marks = ", ".join(f"{name} {_duration(latency)}" for name, latency in wires.items())
    return Picture(figure, f"Tokens a second over the latency of the wire: {ends}.{told} Marked: {marks}.")


def _duration(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.999 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


@styled
def fleet(models: Mapping[str, Mapping[str, Mapping[str, tuple[int, float] | None]]], title: str = "") -> Picture:
    """Every model in every way to store it, a line each: how many of each card hold it, and how fast they write.

    models: name -> format -> machine -> how many, and tokens a second; None where no number of them is offered.
    Dark: faster than one reads; pale: slower than that; white, with a grey number: under a token a second.
    """
    lines, line = sum(len(ways) for ways in models.values()), 0.27
    machines = list(next(iter(next(iter(models.values())).values())))
    board = Board(9.2, 0.85 + line * lines + 0.14 * len(models), title)
    start, step = 2.3, 6.8 / len(machines)
    at = [start + step * (i + 0.5) for i in range(len(machines))]
    for x, name in zip(at, machines, strict=True):
        board.text(x, 0.2, name, size=8, weight="bold")
    y, told = 0.6, []
    for model, ways in models.items():
        board.line((0.1, y - 0.18), (9.1, y - 0.18), color="#DDDDDD", linewidth=0.8)
        board.text(0.12, y, model, size=9, ha="left", weight="bold")
        for way, offers in ways.items():
            board.text(1.95, y, way, size=8, color="#444444")
            for x, offer in zip(at, offers.values(), strict=True):
                _offer(board, x, y, step, offer)
            held = ", ".join(
                f"{name} " + ("none" if offer is None else f"{offer[0]} at {offer[1]:.3g}")
                for name, offer in offers.items()
            )
            told.append(f"{model} in {way}: {held}")
            y += line
        y += 0.14
    shown = [offer for ways in models.values() for row in ways.values() for offer in row.values()]
    words = "how many, and tokens a second; pale: slower than one reads"
    words += "; white: less than one a second" if any(offer and offer[1] < _SLOW for offer in shown) else ""
    words += "; –: more are needed" if None in shown else ""
    board.text(4.6, y, words, size=8)
    return board.picture(f"How many machines, and how many tokens a second: {'; '.join(told)}.")


def _offer(board: Board, x: float, y: float, step: float, offer: tuple[int, float] | None) -> None:
    if offer is None:
        board.text(x, y, "–", size=8, color=GREY)
        return
    count, speed = offer
    fill = LIT if speed >= _FAST else FLOWS if speed >= _SLOW else "white"
    ink = "white" if speed >= _FAST else INK if speed >= _SLOW else GREY
    board.rectangle(x - step * 0.44, y - 0.115, step * 0.88, 0.23, fill, linewidth=0)
    board.text(x - step * 0.36, y, f"{count} ×", size=8, ha="left", color=ink)
    words = f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}" if speed >= _SLOW else f"{speed:.2f}"
    board.text(x + step * 0.36, y, words, size=8, ha="right", color=ink)


@styled
def cache_pages(lengths: Sequence[int], longest: int, page: int, title: str = "") -> Picture:
    """The memory that the caches of some texts take, position by position: each the room of the longest text, and in
    pages that are given out one at a time. Hatched: taken, and never used. `lengths` in the order in which texts came.
    """
    # As they grow: whoever needs a new page gets the next one that is free.
    order = [text for start in range(0, longest, page) for text, length in enumerate(lengths) if start < length]
    board = Board(9.2, 1.9, title)
    scale = 8.9 / (longest * len(lengths))
    used = sum(lengths)
    for text, length in enumerate(lengths):
        left = 0.15 + scale * longest * text
        board.rectangle(left, 0.5, scale * length, 0.3, _pale(text))
        board.rectangle(left + scale * length, 0.5, scale * (longest - length), 0.3, "white", hatch="////")
        board.text(left + scale * longest / 2, 0.95, f"text {text + 1}", size=7.5, color="#444444")
    given = [0] * len(lengths)
    for i, text in enumerate(order):
        left, given[text] = 0.15 + scale * page * i, given[text] + page
        unused = max(0, given[text] - lengths[text])
        board.rectangle(left, 1.35, scale * (page - unused), 0.3, _pale(text))
        if unused:
            board.rectangle(left + scale * (page - unused), 1.35, scale * unused, 0.3, "white", hatch="////")
        if scale * (page - unused) > 0.09:
            board.text(left + scale * (page - unused) / 2, 1.5, str(text + 1), size=6.5)
    whole, paged = longest * len(lengths), page * len(order)
    for y, words in (
        (0.3, f"the longest for each: {used / whole:.0%} of {whole:,} positions used"),
        (1.17, f"pages of {page}: {used / paged:.0%} of {paged:,} positions used"),
    ):
        board.text(0.15, y, words, size=8.5, ha="left")
    return board.picture(
        f"Caches of {len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens. With room for {longest} each, "
        f"{used:,} of {whole:,} positions are used; in {len(order)} pages of {page}, {used:,} of {paged:,}."
    )
