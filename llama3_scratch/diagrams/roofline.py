"""How fast a machine can be: its roofline, what fits into its memory, and how fast each model would write on it."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, LEARNED, LIT, Board

Work = tuple[float, float]  # operations, and bytes that come from memory or go there
_MARKS = "os^Dvph*"
_FAST, _SLOW = 6.0, 1.0  # tokens a second: as fast as one reads, and one a second


@styled
def memory_bars(needs: Mapping[str, Mapping[str, float]], rooms: Mapping[str, float], title: str = "") -> Picture:
    """What a model takes, in GB: a bar for each way to store it, made of named parts. The dashed lines are the memory
    of some machines.
    """
    figure = Figure(figsize=(7.6, 0.46 * len(needs) + 1.2), layout="constrained")
    ax = figure.add_subplot()
    parts = list(next(iter(needs.values())))
    for row, sizes in enumerate(needs.values()):
        left = 0.0
        for p, part in enumerate(parts):
            style: dict[str, Any] = {"color": (LEARNED, FLOWS)[p % 2], "hatch": ("", "///")[p % 2], "edgecolor": INK}
            ax.barh(row, sizes[part], 0.62, left, linewidth=0.7, label=part if row == 0 else None, **style)
            left += sizes[part]
        words = f"{left:,.0f} GB" if left >= 10 else f"{left:.2g} GB"
        ax.annotate(words, (0, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5, weight="bold")
    for name, room in rooms.items():
        ax.axvline(room, color=INK, linestyle=(0, (5, 3)), linewidth=1, zorder=3)
        ax.text(room, -0.62, name, ha="center", va="bottom", fontsize=8)
    ax.set_yticks(range(len(needs)), list(needs))
    ax.set(ylim=(len(needs) - 0.5, -0.6), xlabel="GB (billions of bytes)")
    ax.set_title(title, pad=18)
    ax.margins(x=0.08)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    told = "; ".join(
        f"{name} {', '.join(f'{s:.3g} GB {p}' for p, s in sizes.items())}" for name, sizes in needs.items()
    )
    lines = ", ".join(f"{name} is {size:.1f} billion bytes" for name, size in rooms.items())
    return Picture(figure, f"What it takes: {told}. Lines: {lines}.")


@styled
def roofline(
    bandwidth: float,
    peak: float,
    steps: Mapping[str, Mapping[int, Work]],
    measured: Mapping[str, Mapping[int, float]] | None = None,
    title: str = "",
) -> Picture:
    """The roof of a machine that moves `bandwidth` bytes and does `peak` operations a second, and steps below it.

    steps: name -> number of rows -> operations and bytes. Above, where each stands on the roof, or, with `measured`
    (name -> rows -> seconds), how far below it was. Below, the same steps by name, each row of it over the same x.
    """
    figure = Figure(figsize=(7.6, 3.3 + 0.235 * len(steps)), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.1, 0.3 + 0.235 * len(steps)))
    places = {name: {n: work[0] / work[1] for n, work in rows.items()} for name, rows in steps.items()}
    every = [x for rows in places.values() for x in rows.values()]
    ridge = peak / bandwidth
    low, high = min([*every, ridge]) / 2, max([*every, ridge]) * 2.5
    speeds = [steps[name][n][0] / took for name, rows in (measured or {}).items() for n, took in rows.items()]
    _roof(top, bandwidth, peak, (low, high), (min([bandwidth * low, *speeds]) / 2, max([peak, *speeds]) * 4))
    counts = list(dict.fromkeys(n for rows in steps.values() for n in rows))
    for row, (name, rows) in enumerate(steps.items()):
        below.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
        for n, work in rows.items():
            x, reached = places[name][n], min(bandwidth * places[name][n], peak)
            if measured is not None:
                if n not in measured.get(name, {}):
                    continue
                top.plot([x, x], [reached, work[0] / measured[name][n]], color="#BBBBBB", linewidth=0.8, zorder=1)
                reached = work[0] / measured[name][n]
            c = counts.index(n)
            style: dict[str, Any] = {"color": COLORS[c % len(COLORS)], "marker": _MARKS[c % len(_MARKS)]}
            first = name == next(iter(steps))
            words = f"{n:,} row{'s' if n > 1 else ''}" if first else None
            top.plot(x, reached, markersize=6, alpha=0.85, linestyle="", label=words, zorder=3, **style)
            below.plot(x, row, markersize=5.5, linestyle="", zorder=3, **style)
    below.axvline(ridge, color=INK, linestyle=(0, (5, 3)), linewidth=1, zorder=1)
    below.set_yticks(range(len(steps)), list(steps), fontsize=8)
    below.set(ylim=(len(steps) - 0.5, -0.5), xlabel="operations for each byte")
    top.set(title=title, ylabel="operations a second")
    top.legend(frameon=False, loc="lower right", fontsize=8)
    far = {n: [places[name][n] for name in steps if n in places[name]] for n in counts}
    told = "; ".join(f"{n:,} rows {min(x):.2g} to {max(x):.2g}" for n, x in far.items())
    return Picture(
        figure,
        f"A roof that rises with {bandwidth / 1e9:.3g} GB a second and is flat at {_speed(peak)} operations a second; "
        f"they meet at {ridge:.3g} operations a byte. Steps, by operations a byte: {told}.",
    )


def _roof(ax: Axes, bandwidth: float, peak: float, x: tuple[float, float], y: tuple[float, float]) -> None:
    ridge, (low, high) = peak / bandwidth, x
    ax.fill_between([low, ridge], [bandwidth * low, peak], color=FLOWS, linewidth=0, zorder=0)
    ax.fill_between([ridge, high], [peak, peak], color=LEARNED, linewidth=0, zorder=0)
    ax.plot([low, ridge, high], [bandwidth * low, peak, peak], color=INK, linewidth=1.8, zorder=2)
    ax.plot([ridge, ridge], [y[0], peak], color=INK, linestyle=(0, (5, 3)), linewidth=1, zorder=1)
    ax.set(xscale="log", yscale="log", xlim=x, ylim=y)
    ax.annotate(
        f"ridge: {ridge:.3g}", (ridge, peak), (0, 9), textcoords="offset points", ha="center", fontsize=8, color=INK
    )
    ax.text(low * 1.15, y[1] / 1.5, f"it fetches: {bandwidth / 1e9:.3g} GB a second", fontsize=8, va="center")
    ax.text(high / 1.15, y[1] / 1.5, f"it computes: {_speed(peak)} a second", fontsize=8, ha="right", va="center")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator())
        axis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _speed(value)))


def _speed(value: float) -> str:
    """1,000,000,000 as "1 billion"."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:,.3g} {name}"
    return f"{value:,.3g}"


@styled
def will_it_run(
    models: Mapping[str, Mapping[str, tuple[float, float]]],
    rooms: Mapping[str, float],
    bandwidths: Sequence[float],
    title: str = "",
) -> Picture:
    """Every model in every way to store it, a line each: what it takes, whether it fits, and how fast it can write.

    models: name -> format -> GB that it takes, and GB that it reads for a token. rooms: GB, by name. bandwidths: GB a
    second. Dark: faster than one reads; pale: slower than that; white, with a grey number: under a token a second.
    """
    lines, line = sum(len(ways) for ways in models.values()), 0.25
    board = Board(9.2, 0.6 + line * lines + 0.14 * len(models), title)
    at_rooms = [3.0 + 0.62 * i for i in range(len(rooms))]
    start = at_rooms[-1] + 0.85
    step = (9.1 - start) / len(bandwidths)
    at_speeds = [start + step * (i + 0.5) - 0.1 for i in range(len(bandwidths))]
    board.text(2.28, 0.42, "GB", size=8, color="#444444")
    board.text(sum(at_rooms) / len(rooms), 0.14, "fits into", size=8, color="#444444")
    board.text(sum(at_speeds) / len(bandwidths), 0.14, "tokens a second, at most, at", size=8, color="#444444")
    for x, name in zip(at_rooms, rooms, strict=True):
        board.text(x, 0.42, name, size=8, weight="bold")
    for x, bandwidth in zip(at_speeds, bandwidths, strict=True):
        board.text(x, 0.42, f"{bandwidth:,g} GB/s", size=8, weight="bold")
    y, told = 0.75, []
    for model, ways in models.items():
        board.line((0.1, y - 0.17), (9.1, y - 0.17), color="#DDDDDD", linewidth=0.8)
        board.text(0.12, y, model, size=9, ha="left", weight="bold")
        for way, (takes, reads) in ways.items():
            speeds = [bandwidth / reads for bandwidth in bandwidths]
            board.text(1.62, y, way, size=8, color="#444444")
            board.text(2.45, y, f"{takes:,.1f}", size=8, ha="right")
            for x, room in zip(at_rooms, rooms.values(), strict=True):
                fits = takes <= room
                board.rectangle(x - 0.13, y - 0.08, 0.26, 0.16, LIT if fits else "white", edgecolor=GREY, linewidth=0.6)
                if fits:
                    board.text(x, y, "yes", size=6.5, color="white")
            for x, speed in zip(at_speeds, speeds, strict=True):
                fill = LIT if speed >= _FAST else FLOWS if speed >= _SLOW else "white"
                board.rectangle(x - step * 0.42, y - 0.105, step * 0.84, 0.21, fill, linewidth=0)
                ink = "white" if speed >= _FAST else INK if speed >= _SLOW else GREY
                words = f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}" if speed >= _SLOW else f"{speed:.2f}"
                board.text(x, y, words, size=8, color=ink)
            smallest = next((name for name, room in rooms.items() if takes <= room), "none of these")
            rates = ", ".join(f"{speed:.2g}" for speed in speeds)
            told.append(f"{model} in {way}: {takes:.3g} GB, fits into {smallest}, {rates} tokens a second")
            y += line
        y += 0.14
    named = ", ".join(f"{bandwidth:g}" for bandwidth in bandwidths)
    return board.picture(f"Will it run, and how fast at {named} GB a second: {'; '.join(told)}.")
