"""Weights in few bits: a row and the grid that it is rounded to, the bytes of a block of four bits, what is lost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, LEARNED, LIT, Board

_MUTED, _MONO, _GRID = "#444444", "monospace", "#999999"


@styled
def rounded_row(row: Tensor, scale: float, shown: int = 40) -> Picture:
    """A row of weights [in] and the grid of whole multiples of `scale`: the row as it lies on it, a few numbers moving
    to the next line of the grid, and how far all of them move.
    """
    numbers = row.detach().double().cpu().numpy()
    steps = numbers / scale
    figure = Figure(figsize=(8.2, 4.6), layout="constrained")
    whole, near, errors = figure.subplots(3, 1, height_ratios=(2, 1.5, 2))
    largest = float(np.abs(steps).max())
    whole.hist(steps, bins=np.linspace(-largest, largest, 62), color=COLORS[0])
    for edge in (-largest, largest):
        whole.axvline(edge, color=COLORS[5], linewidth=1.2, linestyle="--")
    whole.set(title=f"a row of {len(numbers):,} weights, in steps of the grid", ylabel="weights")
    some = np.sort(steps[np.argsort(np.abs(steps), kind="stable")[:shown]])
    low, high = np.floor(some.min()) - 0.5, np.ceil(some.max()) + 0.5
    for line in range(int(np.ceil(low)), int(np.floor(high)) + 1):
        near.axvline(line, color=_GRID, linewidth=0.5)
    for value in some:
        style: dict[str, Any] = {"arrowstyle": "-|>", "color": COLORS[1], "linewidth": 0.9}
        near.annotate("", xy=(float(np.round(value)), 0), xytext=(float(value), 1), arrowprops=style)
    near.plot(some, np.ones(len(some)), "o", color=COLORS[0], markersize=4)
    near.plot(np.round(some), np.zeros(len(some)), "s", color=COLORS[2], markersize=4)
    near.set(title=f"the {len(some)} that are nearest to 0, and their lines", xlim=(low, high), ylim=(-0.3, 1.3))
    near.set_yticks([0, 1], ["rounded", "weight"])
    off = np.round(steps) - steps
    errors.hist(off, bins=np.linspace(-0.5, 0.5, 41), color=COLORS[2])
    for edge in (-0.5, 0.5):
        errors.axvline(edge, color=COLORS[5], linewidth=1.2, linestyle="--")
    errors.set(title="how far they go: never more than half a step", ylabel="weights", xlim=(-0.56, 0.56))
    errors.set(xlabel="steps of the grid")
    return Picture(
        figure,
        f"{len(numbers):,} weights on a grid of steps of {scale:.3g}: they lie between {steps.min():.0f} and "
        f"{steps.max():.0f} steps, most of them near 0. Below, the {len(some)} nearest to 0 move to the next line, and "
        f"at the bottom the histogram of all moves, from {off.min():.2f} to {off.max():.2f} steps, about even.",
    )


@styled
def levels(numbers: Tensor, bits: Sequence[int]) -> Picture:
    """A histogram of weights, and over it the levels that so many bits leave, symmetric around 0 up to the largest."""
    values = numbers.detach().double().cpu().flatten().numpy()
    largest = float(np.abs(values).max())
    figure = Figure(figsize=(7.6, 1.5 * len(bits) + 0.6), layout="constrained")
    axes = figure.subplots(len(bits), 1, sharex=True, squeeze=False).flatten()
    told = []
    for ax, n in zip(axes, bits, strict=True):
        scale = largest / (2 ** (n - 1) - 1)
        zeros = float((np.abs(values) <= scale / 2).mean())
        ax.hist(values, bins=np.linspace(-largest, largest, 62), color=COLORS[4])
        for level in range(-(2 ** (n - 1) - 1), 2 ** (n - 1)):
            ax.axvline(level * scale, color=COLORS[0], linewidth=1.1)
        ax.axvspan(-scale / 2, scale / 2, color=COLORS[1], alpha=0.35, zorder=0)
        ax.set_title(f"{n} bits, {2**n - 1} levels: {zeros:.0%} become 0", loc="left", fontsize=9)
        ax.set(ylabel="weights")
        told.append(f"with {n} bits {2**n - 1} levels, and {zeros:.0%} of the weights become 0")
    axes[-1].set_xlabel("weight")
    return Picture(figure, f"A histogram of {len(values):,} weights, most of them near 0; {'; '.join(told)}.")


@styled
def block_of_nibbles(
    raw: Sequence[int], scale: float, minimum: float, nibbles: Sequence[int], most: int = 3
) -> Picture:
    """The bytes of one block of GGUF's Q4_1: two of a scale, two of a minimum, and then two numbers of four bits in
    each. The first few are followed to the weights that they stand for.
    """
    half, board = len(raw) - 4, Board(9.2, 3.5)
    cell = 8.8 / len(raw)
    for i, byte in enumerate(raw):
        fill = "#DDEFE3" if i < 2 else FLOWS if i < 4 else LEARNED
        board.rectangle(0.2 + cell * i, 0.5, cell, 0.36, fill)
        board.text(0.2 + cell * (i + 0.5), 0.68, f"{byte:02x}", size=8.5, family=_MONO)
    parts = (("scale", 0, 2), ("minimum", 2, 4), (f"{half} bytes, two numbers of four bits in each", 4, len(raw)))
    for name, first, end in parts:
        left, right = 0.2 + cell * first, 0.2 + cell * end
        board.line((left + 0.04, 0.38), (right - 0.04, 0.38), color=GREY)
        board.text((left + right) / 2, 0.2, name, size=8)
    board.text(0.2 + cell, 1.06, f"d = {scale:.5f}", size=8, color=_MUTED)
    board.text(0.2 + 3 * cell, 1.26, f"m = {minimum:.5f}", size=8, color=_MUTED)
    wide, told = 2.3, []
    for k in range(most):
        start, x = 0.2 + cell * (4.5 + k), 1.55 + 2.55 * k
        board.arrow((start, 0.86), (x + wide / 2, 1.62), color=GREY, linewidth=0.9)
        upper, lower = raw[4 + k] >> 4, raw[4 + k] & 15
        for j, (part, place) in enumerate(((upper, half + k), (lower, k))):
            left = x + j * wide / 2
            board.rectangle(left, 1.65, wide / 2 - 0.06, 0.34, LEARNED)
            board.text(left + wide / 4 - 0.03, 1.82, f"{part:04b}", size=9, family=_MONO)
            board.text(left + wide / 4 - 0.03, 2.14, f"number {place}: {nibbles[place]}", size=8)
            board.arrow((left + wide / 4 - 0.03, 2.26), (left + wide / 4 - 0.03, 2.56))
            weight = scale * nibbles[place] + minimum
            board.rectangle(left, 2.58, wide / 2 - 0.06, 0.34, FLOWS)
            board.text(left + wide / 4 - 0.03, 2.75, f"{weight:.5f}", size=8.5)
            told.append(f"number {place} is {nibbles[place]} and stands for {weight:.5f}")
    board.text(0.75, 1.82, "upper four bits,\nlower four bits", size=8, color=_MUTED)
    board.text(0.75, 2.75, "d × number + m", size=8.5, color=LIT, weight="bold")
    board.text(4.6, 3.25, f"so {len(raw)} bytes hold {len(nibbles)} weights", color=INK)
    return board.picture(
        f"A block of {len(raw)} bytes: two for the scale {scale:.5f}, two for the minimum {minimum:.5f}, and {half} "
        f"with two numbers of four bits in each, {len(nibbles)} weights in all: {'; '.join(told)}; and so on."
    )


@styled
def lost_by_bits(
    kinds: Mapping[str, Mapping[int, float]],
    artefacts: Mapping[int, str],
    factor: float,
    title: str = "",
    y_name: str = "",
) -> Picture:
    """For each kind of grid what is lost with so many bits, on a log scale, and a line that grows by `factor` with
    each bit less. Where nothing real was measured, `artefacts` has the bits and a word: a star at the bottom instead.
    """
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    ax = figure.subplots()
    bits = sorted({n for lost in kinds.values() for n in lost} | set(artefacts), reverse=True)
    first = next(iter(kinds.values()))
    most, start = max(first), first[max(first)]
    guide = [start / 2 * factor ** (most - n) for n in (most, bits[-1])]  # below the first curve, not under it
    ax.plot([most, bits[-1]], guide, color="#777777", linewidth=1, linestyle=(0, (6, 3)))
    words = f"slope: {factor:g} times for each bit less"
    ax.text(most - 2, start * factor**2 / 3, words, va="top", fontsize=8, color="#555555")
    for i, (kind, lost) in enumerate(kinds.items()):
        style: dict[str, Any] = {
            "color": COLORS[i],
            "marker": "o^sD"[i % 4],
            "linestyle": ("-", "--", "-.", ":")[i % 4],
        }
        ax.plot(list(lost), list(lost.values()), label=kind, linewidth=1.6, markersize=5, **style)
    bottom = min(value for lost in kinds.values() for value in lost.values()) / 4
    for n, word in artefacts.items():
        ax.plot([n], [bottom], marker="*", color=COLORS[5], markersize=15, linestyle="")
        ax.annotate(word, (n, bottom), xytext=(11, -3), textcoords="offset points", fontsize=8)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xticks(bits, [f"{n} bits" for n in bits])
    ax.set(title=title, ylabel=y_name, xlim=(max(bits) + 0.4, min(bits) - 0.4), ylim=(bottom / 2, None))
    ax.grid(color="#E5E5E5", linewidth=0.6)
    ax.legend(frameon=False)
    told = [f"{kind}: " + ", ".join(f"{n} bits {kl:.2g}" for n, kl in lost.items()) for kind, lost in kinds.items()]
    stars = "; ".join(f"a star at {n} bits: {word}" for n, word in artefacts.items())
    return Picture(figure, f"{y_name} by the bits of a weight. {'; '.join(told)}. {stars}.")
