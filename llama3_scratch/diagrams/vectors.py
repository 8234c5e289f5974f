"""Vectors, lengths and turns: the norm and the rotation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Wedge

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, LEARNED, LIT, Board, dims


@styled
def along(
    pairs: Sequence[tuple[str, str]], places: Sequence[tuple[float, float]], title: str = "", x_name: str = ""
) -> Picture:
    """Pairs of words on a line, one pair a row: an arrow from the place of the first to that of the second."""
    figure = Figure(figsize=(6.8, 0.34 * len(pairs) + 0.9), layout="constrained")
    ax = figure.add_subplot()
    ax.axvline(0, color="#CCCCCC", linewidth=0.8)
    for mark, side in (("o", 0), ("s", 1)):
        xs = [place[side] for place in places]
        ax.plot(xs, range(len(pairs)), linestyle="", marker=mark, markersize=5, color=(GREY, LIT)[side])
    for i, (words, (start, end)) in enumerate(zip(pairs, places, strict=True)):
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": LIT, "shrinkA": 3, "shrinkB": 3}
        ax.annotate("", (end, i), (start, i), arrowprops=arrow)
        for word, x, other in ((words[0], start, end), (words[1], end, start)):
            shift, anchor = ((-7, 0), "right") if x < other else ((7, 0), "left")
            ax.annotate(word, (x, i), shift, textcoords="offset points", ha=anchor, va="center", fontsize=8.5)
    ax.set(title=title, xlabel=x_name, yticks=[], ylim=(len(pairs) - 0.4, -0.6))
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.2)
    told = ", ".join(f"{a} {x:.2f} to {b} {y:.2f}" for (a, b), (x, y) in zip(pairs, places, strict=True))
    return Picture(figure, f"Pairs of words along a line ({x_name}): {told}.")


@styled
def norm_step(params: ModelArgs, tokens: int | str = "seq") -> Picture:
    """RMSNorm: one number a row divides the row, then one number a column, the gain, weighs the entries."""
    p, board = params, Board(9.2, 2.2)
    board.matrix(0.1, 0.75, 1.15, 0.6, "x", (tokens, p.dim), FLOWS)
    board.line((1.25, 0.9), (1.5, 0.9), (1.5, 0.4))
    board.arrow((1.5, 0.4), (1.75, 0.4))
    board.pill(1.75, 0.22, 2.0, 0.36, "square, mean, + ε, root")
    board.arrow((3.75, 0.4), (3.95, 0.4))
    board.rectangle(3.95, 0.12, 0.12, 0.56, FLOWS)
    board.text(4.15, 0.4, f"one number a row {dims((tokens, 1))}", size=7.5, color="#444444", ha="left")
    board.arrow((4.01, 0.68), (4.01, 0.99))
    board.arrow((1.25, 1.17), (3.83, 1.17))
    board.pill(3.83, 0.99, 0.36, 0.36, "÷", size=11)
    board.arrow((4.19, 1.17), (4.65, 1.17))
    board.matrix(4.65, 0.87, 1.15, 0.6, "normed", (tokens, p.dim), FLOWS)
    board.text(5.22, 1.8, "every row has RMS 1", size=7.5, color="#444444")
    board.arrow((5.8, 1.17), (6.6, 1.17))
    board.pill(6.6, 0.99, 0.36, 0.36, "×", size=11)
    board.rectangle(6.2, 0.42, 1.15, 0.12, LEARNED)
    board.text(6.78, 0.27, f"gain {dims((p.dim,))}: one number a column", size=7.5, color="#7A5C00")
    board.arrow((6.78, 0.54), (6.78, 0.99))
    board.arrow((6.96, 1.17), (7.5, 1.17))
    board.matrix(7.5, 0.87, 1.15, 0.6, "y", (tokens, p.dim), FLOWS)
    board.text(8.07, 1.8, "what the layer reads", size=7.5, color="#444444")
    return board.picture(
        f"RMSNorm: from each row of x {dims((tokens, p.dim))} one number is made, the root of the mean square plus "
        f"epsilon, {dims((tokens, 1))}. Each row is divided by its number, so that it has RMS 1, and then multiplied "
        f"entry by entry by the gain {dims((p.dim,))}, which is the same for all rows."
    )


@styled
def sphere(
    vectors: torch.Tensor, gain: torch.Tensor, labels: Sequence[str], names: Sequence[str] = ("first", "second")
) -> Picture:
    """RMSNorm on vectors of two numbers, [n, 2], as arrows: as they are; divided by their RMS, on a circle; times the
    gain [2], on an ellipse. `names` are those of the two entries.
    """
    before = vectors.detach().double().cpu().numpy()
    weigh = gain.detach().double().cpu().numpy()
    size = np.sqrt((before**2).mean(-1, keepdims=True))
    normed = before / np.where(size > 0, size, 1)
    turn = np.linspace(0, 2 * math.pi, 200)
    circle = math.sqrt(2) * np.stack([np.cos(turn), np.sin(turn)], -1)
    stages = (
        ("as they are: any length", before, None),
        ("divided by their RMS: on a circle", normed, circle),
        ("times the gain: on an ellipse", normed * weigh, circle * weigh),
    )
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    for ax, (title, points, curve) in zip(figure.subplots(1, 3), stages, strict=True):
        reach = 1.3 * max(np.abs(points).max(), 0 if curve is None else np.abs(curve).max(), 1e-30)
        ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
        ax.axvline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
        if curve is not None:
            ax.plot(curve[:, 0], curve[:, 1], color=GREY, linewidth=0.9)
        zero = np.zeros(len(points))
        style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011}
        colors = [COLORS[i % len(COLORS)] for i in range(len(points))]
        ax.quiver(zero, zero, points[:, 0], points[:, 1], color=colors, **style)
        placed: list[tuple[float, float]] = []
        for (x, y), name, color in zip(points, labels, colors, strict=True):
            far, step = 1 + 0.13 * reach / max(math.hypot(x, y), 1e-30), 0.12 * reach / max(math.hypot(x, y), 1e-30)
            while any(abs(x * far - u) < 0.5 * reach and abs(y * far - v) < 0.1 * reach for u, v in placed):
                far += step  # names must not cover each other
            placed.append((x * far, y * far))
            ax.text(x * far, y * far, name, color=color, ha="center", va="center", fontsize=7.5, weight="bold")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=names[0], ylabel=names[1])
        ax.set_title(title, fontsize=9)
        ax.locator_params(nbins=5)
    return Picture(
        figure,
        f"Three panels with {len(before)} arrows from the origin, one for each token. As they are, any length. "
        "Divided by their RMS they all end on one circle, each in its old direction. Times the gain the circle is an "
        f"ellipse: the first entry is multiplied by {weigh[0]:.3g}, the second by {weigh[1]:.3g}.",
    )


@styled
def one_turn(before: Sequence[float], angle: float) -> Picture:
    """One pair of numbers as an arrow, and the same arrow turned by `angle` radians."""
    a, b = (float(n) for n in before)
    start, length = math.atan2(b, a), math.hypot(a, b)
    tips = np.array([[a, b], [length * math.cos(start + angle), length * math.sin(start + angle)]])
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    ax: Axes = figure.add_subplot()
    ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.axvline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.add_patch(Circle((0, 0), length, fill=False, edgecolor="#BBBBBB", linewidth=0.8))
    ends = sorted((math.degrees(start), math.degrees(start + angle)))
    ax.add_patch(Wedge((0, 0), 0.45 * length, *ends, facecolor=FLOWS, edgecolor=LIT, linewidth=0.8))
    style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011}
    ax.quiver([0, 0], [0, 0], tips[:, 0], tips[:, 1], color=[GREY, LIT], **style)
    for (x, y), words in zip(tips, ("before", "after"), strict=True):
        ax.text(1.14 * x, 1.14 * y, words, ha="center", va="center", weight="bold")
    middle = start + angle / 2
    words = f"{math.degrees(angle):.0f}°"
    ax.text(0.62 * length * math.cos(middle), 0.62 * length * math.sin(middle), words, ha="center", va="center")
    reach = 1.35 * max(length, 1e-30)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(xlabel="first number of the pair", ylabel="second number of the pair")
    return Picture(
        figure, f"An arrow, and the same arrow turned by {math.degrees(angle):.0f} degrees, as long as before."
    )


@styled
def clock_hands(freqs: torch.Tensor, positions: Sequence[int] = (0, 1, 2, 5, 100), most: int = 32) -> Picture:
    """Every pair as a clock, a row of clocks for each position: pair i has turned by position * freqs[i] radians.

    What a hand has swept is shaded (all of it after a full turn). Of more than `most` pairs, some are drawn.
    """
    every = -(-len(freqs) // most)
    pairs, speeds = range(0, len(freqs), every), freqs.detach().double().cpu().numpy()[::every]
    columns, rows = len(pairs), len(positions)
    cell = 8.3 / max(columns, 16)
    figure = Figure(figsize=(cell * columns + 0.9, cell * 1.12 * rows + 0.75), layout="constrained")
    ax: Axes = figure.add_subplot()
    for r, position in enumerate(positions):
        angles, y = speeds * position, np.full(columns, 1.12 * r)
        for c, angle in enumerate(angles):
            ax.add_patch(Circle((c, y[c]), 0.43, facecolor="white", edgecolor=GREY, linewidth=0.7))
            ends = (-math.degrees(min(angle, 2 * math.pi)), 0)  # the y axis points down
            ax.add_patch(Wedge((c, y[c]), 0.43, *ends, facecolor=FLOWS, edgecolor="none"))
        hands = np.cos(angles) * 0.43, np.sin(angles) * 0.43
        style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.0025}
        style |= {"headwidth": 1, "headlength": 0, "headaxislength": 0}  # a hand, not an arrow
        ax.quiver(np.arange(columns), y, hands[0], -hands[1], color=LIT, zorder=3, **style)
        ax.scatter(np.arange(columns), y, s=4, color=LIT, zorder=4)
    step = max(1, columns // 8)
    ax.set_xticks(range(0, columns, step), [str(pair) for pair in pairs[::step]])
    ax.set_yticks([1.12 * r for r in range(rows)], [f"position {position}" for position in positions])
    ax.set(xlim=(-0.6, columns - 0.4), ylim=(1.12 * rows - 0.5, -0.6), aspect="equal")
    ax.set_xlabel("pair: fast hands on the left, slow ones on the right")
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    last, farthest = len(freqs) - 1, max(positions)
    return Picture(
        figure,
        f"Rows of clocks, one for each pair of numbers, at positions {', '.join(map(str, positions))}. At position 0 "
        f"all hands point right. The first pair turns by {math.degrees(speeds[0]):.0f} degrees a token; pair {last} "
        f"has turned by {math.degrees(float(freqs[-1]) * farthest):.2g} degrees at position {farthest}.",
    )
