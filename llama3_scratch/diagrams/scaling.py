"""How far it goes: the products of a training step, what trainings cost, and sums on a clock."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, LEARNED, LIT, PAPER, Board

_TIMES = {"a second": 1, "a day": 86_400, "a year": 3.156e7, "a thousand years": 3.156e10}


@styled
def three_products(tokens: int, n_in: int, n_out: int, title: str = "") -> Picture:
    """What a matrix [out, in] costs in a step of training: one product on the way there, two on the way back."""
    board = Board(9.2, 4.3, title)
    rows, ins, outs = f"{tokens:,}", f"{n_in:,}", f"{n_out:,}"
    x, dx, w, dw, y, dy = (
        ("x", rows, ins, FLOWS),
        ("dx", rows, ins, FLOWS),
        ("W", outs, ins, LEARNED),
        ("dW", outs, ins, LEARNED),
        ("y", rows, outs, FLOWS),
        ("dy", rows, outs, FLOWS),
    )
    products = [
        ("forward", "the output", x, ("W, transposed", *w[1:]), y),
        ("backward", "for the layer below", dy, w, dx),
        ("backward", "for the weights", ("dy, transposed", *dy[1:]), x, dw),
    ]
    operations = 2 * tokens * n_in * n_out
    for row, (way, use, left, right, result) in enumerate(products):
        top = 0.25 + 1.35 * row
        board.text(0.1, top + 0.3, way, size=9, ha="left", weight="bold")
        board.text(0.1, top + 0.52, use, size=8, ha="left", color="#444444")
        for at, (name, down, across, fill) in zip((1.75, 3.55, 5.35), (left, right, result), strict=True):
            turned = "transposed" in name
            board.matrix(at, top, 1.3, 0.72, name, [across, down] if turned else [down, across], fill)
        board.text(3.3, top + 0.36, "@", size=11)
        board.text(5.1, top + 0.36, "=", size=11)
        board.text(7.0, top + 0.3, f"2 x {rows} x {ins} x {outs}", size=8.5, ha="left")
        board.text(7.0, top + 0.52, f"{operations:,} operations", size=8, ha="left", color="#444444")
    board.text(8.9, 4.12, f"together 6 for each weight and token: {3 * operations:,}", ha="right", weight="bold")
    return board.picture(
        f"A matrix W of {n_out:,} by {n_in:,} and {tokens:,} tokens. Forward, y is x times W. Backward, dx is dy times "
        f"W, and dW is dy times x. Each of the three products takes {operations:,} operations."
    )


@styled
def training_costs(operations: Mapping[str, float], speed: float, title: str = "", machine: str = "") -> Picture:
    """Operations that trainings took, on a log scale; dashed, how long `machine`, at `speed` a second, would take."""
    figure = Figure(figsize=(7.6, 0.42 * len(operations) + 1.5), layout="constrained")
    ax = figure.add_subplot()
    low, high = min(operations.values()) / 30, max(operations.values()) * 3e3
    for row, count in enumerate(operations.values()):
        ax.plot([low, count], [row, row], color=FLOWS, linewidth=7, solid_capstyle="butt", zorder=1)
        ax.plot(count, row, "o", color=LIT, markersize=6, zorder=3)
        place: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{count:.1e}", (count, row), fontsize=8, bbox=PAPER, **place)
    shown = {name: seconds for name, seconds in _TIMES.items() if low < speed * seconds < high}
    for name, seconds in shown.items():
        ax.axvline(speed * seconds, color=GREY, linestyle=(0, (5, 3)), linewidth=1, zorder=0)
        ax.text(speed * seconds, -0.72, name, ha="center", va="bottom", fontsize=8)
    ax.set(xscale="log", xlim=(low, high), ylim=(len(operations) - 0.4, -0.7), xlabel="operations")
    ax.set_yticks(range(len(operations)), list(operations))
    ax.xaxis.set_major_locator(LogLocator(numticks=8))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    ax.set_title(title, pad=20)
    told = "; ".join(f"{name} {count:.1e}, {_time(count / speed)}" for name, count in operations.items())
    return Picture(figure, f"Operations of a training, and how long {machine or 'the machine'} would take: {told}.")


def _time(seconds: float) -> str:
    """The largest unit that fits: 7200 is "2 hours"."""
    for name, size in (("years", 3.156e7), ("days", 86_400), ("hours", 3600)):
        if seconds >= size:
            return f"{seconds / size:,.3g} {name}"
    return f"{seconds:.2g} seconds"


@styled
def modular_clocks(p: int, a: int, b: int, speeds: Sequence[int], title: str = "") -> Picture:
    """a + b modulo p as angles: clocks with p marks, on which a number is so many marks from the top, times a speed.
    From the top by a (solid), then by b (dashed), and one stands on the sum.
    """
    figure = Figure(figsize=(3.0 * len(speeds), 3.3), layout="constrained")
    axes = figure.subplots(1, len(speeds), squeeze=False).flatten()
    for ax, speed in zip(axes, speeds, strict=True):
        ax.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", title=f"{speed} mark{'s' * (speed > 1)} for each 1")
        ax.axis("off")
        ax.set_gid("drawing")
        ax.add_patch(Circle((0, 0), 1, facecolor="white", edgecolor=INK, linewidth=1))
        for n in range(p):
            x, y = _on_clock(n, p)
            ax.plot([0.96 * x, x], [0.96 * y, y], color=GREY, linewidth=0.6)
        for radius, start, length, color, style in ((0.62, 0, a, COLORS[0], "-"), (0.78, a, b, COLORS[5], "--")):
            turn = 360 * (speed * length % p) / p
            begin = 90 - 360 * (speed * start % p) / p
            arc = Arc((0, 0), 2 * radius, 2 * radius, theta1=begin - turn, theta2=begin, color=color, linestyle=style)
            arc.set_linewidth(2)
            ax.add_patch(arc)
        marks = {0: INK, a: COLORS[0], (a + b) % p: COLORS[2]}
        for n, color in marks.items():
            x, y = _on_clock(speed * n, p)
            ax.plot([0, x], [0, y], color=color, linewidth=1.4 if n else 0.8)
            ax.text(1.17 * x, 1.17 * y, str(n), ha="center", va="center", fontsize=9, color=color, weight="bold")
    figure.suptitle(title)
    return Picture(
        figure,
        f"Clocks with {p} marks, {', '.join(map(str, speeds))} marks for each 1. From 0 by {a}, then by {b}, and the "
        f"hand is at {(a + b) % p}, on each of them.",
    )


def _on_clock(marks: float, p: int) -> tuple[float, float]:
    angle = 2 * math.pi * (marks % p) / p
    return math.sin(angle), math.cos(angle)


@styled
def spectra(groups: Mapping[str, Sequence[float]], title: str = "", x_name: str = "", y_name: str = "") -> Picture:
    """Shares by frequency, from 1: a panel of upright bars for each group, all on one scale. The five largest of each
    are dark.
    """
    figure = Figure(figsize=(7.2, 1.55 * len(groups) + 0.7), layout="constrained")
    axes = figure.subplots(len(groups), 1, sharex=True, sharey=True, squeeze=False).flatten()
    told = []
    for ax, (name, shares) in zip(axes, groups.items(), strict=True):
        values = [float(share) for share in shares]
        largest = sorted(range(len(values)), key=values.__getitem__)[-5:]
        for i, value in enumerate(values):
            ax.bar(i + 1, value, 0.75, color=LIT if i in largest else FLOWS, edgecolor=INK, linewidth=0.5)
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_ylabel(y_name)
        five = sum(values[i] for i in largest)
        told.append(f"{name}: {five:.0%} in the five largest, at {', '.join(str(i + 1) for i in sorted(largest))}")
    most = max(len(shares) for shares in groups.values())
    axes[-1].set(xlabel=x_name, xlim=(0.3, most + 0.7), xticks=range(1, most + 1, 2))
    figure.suptitle(title)
    return Picture(figure, f"Shares of frequencies. {'; '.join(told)}.")
