"""Pictures of live tensors. Each function returns a Picture, which a notebook shows when it is a cell's last value.

Beside the image, a Picture carries words and numbers read back from what was drawn. Notebooks store both, and comparing
the text catches a wrong picture, which comparing images could not do across machines.
"""

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from .readback import fingerprint, text_of

# Okabe and Ito's palette: told apart by colour-blind readers, and of different brightness in grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#444444")
_MARKS = ("-", "--", "-.", ":")
_CMAP = "viridis"  # brightness rises evenly from end to end
_SIGNED_CMAP = "PuOr_r"  # purple below 0, orange above, white between: no red beside green
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a token may hold dollar signs
    "axes.unicode_minus": False,
}
_MORE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Noto Emoji")
_MAX_TICKS = 48


class Picture:
    """A finished figure. `figure` and `figure.axes` are matplotlib's, to read or to draw more on; `alt` is a text for
    those who cannot see it.
    """

    def __init__(self, figure: Figure, alt: str = "") -> None:
        self.figure, self.alt = figure, alt

    @property
    def axes(self) -> list[Axes]:
        return self.figure.axes

    def save(self, path: str | Path, dpi: int = 150) -> None:
        """Write the picture to a file; the ending says which format."""
        with rc_context(_STYLE | {"font.family": _families()}):
            self.figure.savefig(path, dpi=dpi, bbox_inches="tight")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        png = BytesIO()
        with rc_context(_STYLE | {"font.family": _families()}):
            told, alt = repr(self), self.alt or self._titles()
            # The image says which text it belongs to, and a test holds it to that.
            note = {"Software": None, "Comment": fingerprint(told, alt)}
            self.figure.savefig(png, format="png", dpi=100, bbox_inches="tight", metadata=note)
        return {"image/png": png.getvalue(), "text/plain": told}, {"image/png": {"alt": alt}}

    def _titles(self) -> str:
        """What a screen reader says where nobody wrote a text: the titles, and the names of the axes."""
        told = [text for ax in self.axes for text in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) if text]
        return "Picture: " + "; ".join(told) if told else "Picture"

    def __repr__(self) -> str:
        return text_of(self.figure, self.alt)


P = ParamSpec("P")
R = TypeVar("R")


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function under our style: matplotlib reads it when each text is made, long after the figure."""

    @wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with rc_context(_STYLE | {"font.family": _families()}):
            return function(*args, **kwargs)

    return styled


def label(token: str | bytes, limit: int = 14) -> str:
    """A token as one legible line: a space is shown as ␣, a line break as \\n, bytes that are not text as \\xNN.

    Characters that cannot be drawn (control characters, those without a glyph in the fonts at hand) become U+NNNN.
    """
    if isinstance(token, bytes):
        try:
            token = token.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"\\x{b:02x}" for b in token)[: limit * 2]
    shown = "".join(_drawable(c) for c in token)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def token_labels(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The label of each id."""
    return [label(tokenizer.token_bytes(i)) for i in ids]


def token_strip(labels: Sequence[str], ids: Sequence[int] | None = None, title: str = "") -> Picture:
    """Tokens in reading order, each in its own box, with its id below."""
    return token_rows([labels], below=None if ids is None else [[str(i) for i in ids]], title=title)


@styled
def token_rows(
    rows: Sequence[Sequence[str]],
    names: Sequence[str] | None = None,
    below: Sequence[Sequence[str]] | None = None,
    strong: Sequence[int | None] | None = None,
    title: str = "",
) -> Picture:
    """Rows of boxes, one box a token: `names` stand before the rows, `below` under the boxes, and box number
    `strong[r]` of row r is drawn dark. Long rows are wrapped.
    """
    char, line, gap = 0.11, 0.30 if below is None else 0.50, 0.14  # inches
    margin = char * max([len(n) for n in names or [""]]) + (0.15 if names else 0)
    x_max, y = 0.0, 0.0
    boxes: list[tuple[float, float, float, str, str, int | str]] = []
    for r, row in enumerate(rows):
        x = margin
        if names:
            boxes.append((0, y, 0, names[r], "", "name"))
        for c, text in enumerate(row):
            under = below[r][c] if below else ""
            width = 0.12 + char * max(_columns(text), 0.75 * _columns(under), 1)
            if x + width > 9 and x > margin:
                x, y = margin, y + line + gap
            boxes.append((x, y, width, text, under, "strong" if strong and strong[r] == c else c))
            x += width + 0.04
            x_max = max(x_max, x)
        y += line + gap
    figure, ax = _figure(max(x_max, 3), y + (0.25 if title else 0))
    ax.set(xlim=(0, max(x_max, 3)), ylim=(y, -0.1), title=title)
    ax.axis("off")
    for x, top, width, text, under, kind in boxes:
        if kind == "name":
            ax.text(x, top + 0.14, text, va="center", color="#555555")
            continue
        face = COLORS[0] if isinstance(kind, str) else ("#DCE9F2", "#FBEFD5")[kind % 2]
        ax.add_patch(Rectangle((x, top), width, 0.28, facecolor=face, edgecolor="#777777", linewidth=0.6, gid="token"))
        color = ink(face)
        ax.text(
            x + width / 2,
            top + 0.14,
            text,
            ha="center",
            va="center",
            color=color,
            family=["DejaVu Sans Mono", *_families()],
        )
        if under:
            ax.text(x + width / 2, top + 0.38, under, ha="center", va="center", fontsize=7, color="#555555")
    return Picture(figure)


def ink(background: Any) -> str:
    """Black or white, whichever is easier to read on this colour; one of them always has a contrast of 4.5 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # as WCAG defines it
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


@styled
def heatmap(
    values: torch.Tensor,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    title: str = "",
    row_name: str = "",
    column_name: str = "",
    value_name: str = "",
    vmin: float | None = None,
    vmax: float | None = None,
    hidden: torch.Tensor | None = None,
    numbers: bool = False,
    signed: bool = False,
) -> Picture:
    """A matrix [rows, columns] as colours. Cells that are -inf or NaN are hatched: masked, not small. So are those
    where `hidden`, a matrix of booleans, is True. With `numbers`, small matrices have their values written in, in
    hundredths, where there is room. `signed` gives each sign a colour of its own, with white for 0, and writes the
    sign into cells that are far from it.
    """
    if hidden is not None:
        values = values.masked_fill(hidden, -torch.inf)
    n_rows, n_columns = values.shape
    cell = min(0.26, 7 / max(n_rows, n_columns))
    width, height = (max(cell * n, 2.4) for n in (n_columns, n_rows))
    figure, ax = _figure(width + 1.9, height + 1.1)
    if signed:
        vmax = values[values.isfinite()].abs().max().item() if vmax is None else vmax
        vmin = -vmax
    image = _draw_matrix(ax, values, vmin, vmax, _SIGNED_CMAP if signed else _CMAP)
    if signed:
        for row, column in (values.abs() > image.norm.vmax / 4).nonzero().tolist():  # for readers in grey
            value = values[row, column].item()
            style: dict[str, Any] = {"color": ink(image.to_rgba(value)), "ha": "center", "va": "center", "fontsize": 7}
            ax.text(column, row, "+" if value > 0 else "\N{MINUS SIGN}", **style)
    if numbers and max(n_rows, n_columns) <= 26:
        _write_hundredths(ax, image)
    _name_ticks(ax, rows, columns)
    ax.set(title=title, xlabel=column_name, ylabel=row_name)
    figure.colorbar(image, ax=ax, label=value_name, shrink=0.8)
    return Picture(figure)


@styled
def heatmap_sheet(
    values: torch.Tensor,
    titles: Sequence[str],
    title: str = "",
    hidden: torch.Tensor | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    row_name: str = "",
    column_name: str = "",
    panel: tuple[float, float] = (2.1, 2.2),
) -> Picture:
    """A stack of matrices [n, rows, columns] as small heatmaps on one colour scale, 0 to the largest value. Cells
    where `hidden`, [rows, columns], is True are hatched. Names of rows and columns stand at the sheet's outer edges;
    a panel is `panel` inches wide and high.
    """
    if hidden is not None:
        values = values.masked_fill(hidden, -torch.inf)
    n = len(values)
    across = min(n, max(3, math.ceil(math.sqrt(n))))
    down = math.ceil(n / across)
    figure = Figure(figsize=(panel[0] * across + 0.6, panel[1] * down + 0.4), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    shown = values.detach().float()
    vmax = shown[shown.isfinite()].max().item()
    for i, (ax, matrix, name) in enumerate(zip(axes, values, titles, strict=False)):
        image = _draw_matrix(ax, matrix, 0, vmax)
        at_left, at_bottom = i % across == 0, i + across >= n
        _name_ticks(ax, rows if at_left else None, columns if at_bottom else None, most=32, size=5.5)
        ax.set(title=name, ylabel=row_name if at_left else "", xlabel=column_name if at_bottom else "")
    for ax in axes[n:]:
        ax.axis("off")
    figure.suptitle(title)
    figure.colorbar(image, ax=axes.tolist(), shrink=0.6)
    return Picture(figure)


@styled
def word_grids(
    grids: Mapping[str, tuple[Sequence[Sequence[str]], torch.Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    row_name: str = "",
    column_name: str = "",
    scales: Sequence[str] = (),
    framed: Mapping[str, torch.Tensor] | None = None,
) -> Picture:
    """Tables of words side by side, each cell coloured by a number: for each name the words and the numbers, both
    [rows, columns]. The tables named in `scales` get a scale of colours, from 0 to 1; `framed`, matrices of booleans
    by name, draws a frame around some cells.
    """
    longest = max(_columns(word) for words, _ in grids.values() for row in words for word in row)
    width, height = 0.2 + 0.075 * max(longest, 4), 0.2  # inches of a cell
    names_of_rows = 0.35 + 0.07 * max(_columns(name) for name in rows)
    wide = len(grids) * (width * len(columns) + names_of_rows) + 0.75 * len(scales)
    figure = Figure(figsize=(wide, height * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(grids), squeeze=False).flatten()
    for ax, (name, (words, values)) in zip(axes, grids.items(), strict=True):
        low, high = (0.0, 1.0) if name in scales else (None, None)
        image = ax.imshow(_array(values), cmap=_CMAP, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        for (row, column), value in np.ndenumerate(_array(values)):
            style: dict[str, Any] = {"color": ink(image.to_rgba(value)), "ha": "center", "va": "center", "fontsize": 7}
            ax.text(column, row, words[row][column], **style)
        marked = (framed or {}).get(name, torch.zeros(0, 2))
        for row, column in marked.nonzero().tolist():
            corner = (column - 0.48, row - 0.46)
            ax.add_patch(Rectangle(corner, 0.96, 0.92, fill=False, edgecolor=COLORS[5], linewidth=2))
        _name_ticks(ax, rows, columns)
        ax.set(title=name, xlabel=column_name, ylabel=row_name)
        if name in scales:
            figure.colorbar(image, ax=ax, shrink=0.5)
    figure.suptitle(title)
    return Picture(figure)


@styled
def complex_plane(row: torch.Tensor, title: str = "", name: str = "pair") -> Picture:
    """Complex numbers [n] as arrows from the origin, the unit circle behind them. Colour runs from first to last."""
    values = row.detach().cpu().resolve_conj().numpy()
    figure, ax = _figure(5.4, 4.6)
    turn = np.linspace(0, 2 * math.pi, 200)
    ax.plot(np.cos(turn), np.sin(turn), color="#BBBBBB", linewidth=0.8)
    n = len(values)
    origin, order = np.zeros(n), np.arange(n)
    scale: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006}
    arrows = ax.quiver(origin, origin, values.real, values.imag, order, cmap=_CMAP, **scale)
    ax.scatter(values.real, values.imag, c=order, cmap=_CMAP, s=18, zorder=3)
    reach = 1.2 * max(1.0, np.abs(values).max())
    named: list[complex] = []
    for i, value in enumerate(values):
        if all(abs(value - other) > 0.12 * reach for other in named):  # numbers must not cover each other
            ax.annotate(str(i), (1.1 * value.real, 1.1 * value.imag), ha="center", va="center", fontsize=7)
            named.append(value)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title, xlabel="real", ylabel="imaginary")
    figure.colorbar(arrows, ax=ax, label=name, shrink=0.8)
    return Picture(figure)


@styled
def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str = "",
    x_name: str = "",
    y_name: str = "",
    log_x: bool = False,
    log_y: bool = False,
    dots: bool | Sequence[str] = False,
    levels: Mapping[str, float] | None = None,
) -> Picture:
    """Curves by name, each (x values, y values), told apart by colour and by dashes. `dots` marks the points of all, or
    of those named. `levels` are horizontal lines, by name.
    """
    figure, ax = _figure(6.4, 3.4)
    _draw_lines(ax, curves, dots)
    if log_x:
        _log_scale(ax, "x")
    if log_y:
        _log_scale(ax, "y")
    ax.set(title=title, xlabel=x_name, ylabel=y_name)
    _draw_levels(ax, levels or {})
    return Picture(figure)


@styled
def scatter(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str = "",
    x_name: str = "",
    y_name: str = "",
    names: Mapping[str, tuple[float, float]] | None = None,
    equal: bool = False,
    log_x: bool = False,
) -> Picture:
    """Points by group, each (x values, y values), told apart by colour and by mark; `names` are written beside points,
    to the right of them, or where that would cover another name or leave the picture, elsewhere around them. `equal`
    draws the line on which both values are the same.
    """
    figure, ax = _figure(6.4, 3.8)
    for i, (name, (x, y)) in enumerate(groups.items()):
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "marker": "o^sDv"[i % 5], "alpha": 0.8}
        ax.plot(_array(x), _array(y), label=name, linestyle="", markersize=4, **style)
    if equal:
        both = [v for x, y in groups.values() for values in (x, y) for v in _array(values)]
        ax.plot([min(both), max(both)], [min(both), max(both)], color="#777777", linewidth=1, linestyle=(0, (6, 3)))
    ax.grid(color="#E5E5E5", linewidth=0.6)
    ax.margins(0.08)
    if log_x:
        _log_scale(ax, "x")
    ax.set(title=title, xlabel=x_name, ylabel=y_name)
    if len(groups) > 1:
        ax.legend(frameon=False)
    _name_points(ax, names or {})
    return Picture(figure)


@styled
def panels(
    parts: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    title: str = "",
    x_name: str = "",
    log_y: Sequence[str] = (),
) -> Picture:
    """Pictures of curves, one below the other over the same x: for each part its name, written above it, and its
    curves as `lines` takes them. The parts named in `log_y` have a log scale.
    """
    figure = Figure(figsize=(6.8, 1.75 * len(parts) + 0.7), layout="constrained")
    axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False).flatten()
    told: list[str] = []
    for ax, (name, curves) in zip(axes, parts.items(), strict=True):
        _draw_lines(ax, curves, dots=True, legend=list(curves) != told)  # the same names need no second legend
        told = list(curves)
        if name in log_y:
            _log_scale(ax, "y")
        ax.set_title(name, loc="left", fontsize=9)
    if all(isinstance(value, int) for curves in parts.values() for x, _ in curves.values() for value in x):
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))  # between two steps there is none
    axes[-1].set_xlabel(x_name)
    figure.suptitle(title)
    return Picture(figure)


@styled
def bars(
    labels: Sequence[str],
    groups: Mapping[str, Sequence[float]] | Sequence[float],
    title: str = "",
    value_name: str = "",
) -> Picture:
    """Horizontal bars, one label a row; several named groups stand side by side."""
    groups = groups if isinstance(groups, Mapping) else {"": groups}
    figure, ax = _figure(6.4, max(1.3, 0.26 * len(labels) * max(1, 0.7 * len(groups))) + 0.8)
    height = 0.8 / len(groups)
    for g, (name, values) in enumerate(groups.items()):
        at = np.arange(len(labels)) - 0.4 + height * (g + 0.5)
        hatch = ("", "///", "...")[g % 3]
        drawn = ax.barh(at, _array(values), height, label=name, color=COLORS[g], hatch=hatch, edgecolor="white")
        if len(groups) == 1:
            ax.bar_label(drawn, fmt=lambda v: f" {v:,.0f}" if v >= 1000 else f" {v:.3g}", fontsize=8)
    ax.set(title=title, xlabel=value_name)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    if len(groups) > 1:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars, not on them
    return Picture(figure)


@styled
def strip(groups: Mapping[str, Sequence[float]], title: str = "", x_name: str = "") -> Picture:
    """Every number of each group as a dot on a row of its own, with a mark at the median: small samples, shown whole.
    Dots stand at three heights in turn, so that those of one value can be told apart.
    """
    figure, ax = _figure(6.4, 0.55 * len(groups) + 1.0)
    for row, (name, values) in enumerate(groups.items()):
        x = _array(values)
        heights = row + 0.16 * (np.arange(len(x)) % 3 - 1)
        style: dict[str, Any] = {"color": COLORS[row % len(COLORS)], "markersize": 5, "alpha": 0.75}
        ax.plot(x, heights, "o", markeredgewidth=0, label=name, **style)
        ax.plot([np.median(x)] * 2, [row - 0.34, row + 0.34], color="#222222", linewidth=1.6)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set(ylim=(len(groups) - 0.5, -0.5), title=title, xlabel=x_name)
    ax.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    return Picture(figure)


@styled
def histogram(groups: Mapping[str, torch.Tensor], bins: int = 60, title: str = "", x_name: str = "") -> Picture:
    """How the numbers of each group are spread, as outlines on shared bins. Counts are on a log scale."""
    figure, ax = _figure(6.4, 3.2)
    arrays = {name: _array(values).ravel() for name, values in groups.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    for i, (name, values) in enumerate(arrays.items()):
        counts = np.histogram(values, edges)[0]
        ax.stairs(
            counts, edges, label=name, color=COLORS[i % len(COLORS)], linestyle=_MARKS[i % len(_MARKS)], linewidth=1.4
        )
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    ax.set(title=title, xlabel=x_name, ylabel="count")
    if len(groups) > 1:
        ax.legend(frameon=False)
    return Picture(figure)


@styled
def curves_at_work(
    curves: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    inputs: torch.Tensor,
    title: str = "",
    x_name: str = "",
) -> Picture:
    """Curves over the range of the numbers that really go into them, and below, how these numbers are spread. The
    grey band holds the middle 95 % of them.
    """
    values = _array(inputs).ravel()
    low, high = np.quantile(values, (0.025, 0.975))
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    x = torch.linspace(float(values.min()), float(values.max()), 121, dtype=torch.float64)
    for i, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "linestyle": _MARKS[i % len(_MARKS)]}
        top.plot(_array(x), _array(curve(x)), label=name, linewidth=2.2 if i == 0 else 1.4, **style)
    counts, edges = np.histogram(values, 60)
    bottom.stairs(counts / len(values), edges, fill=True, color=COLORS[0], alpha=0.7)
    for ax in (top, bottom):
        ax.axvspan(low, high, color="#EDEDED", zorder=0)
        ax.grid(color="#E5E5E5", linewidth=0.6)
    top.legend(frameon=False)
    top.set(title=title, ylabel="output")
    bottom.set(xlabel=x_name, ylabel="share of the inputs")
    return Picture(figure)


@styled
def blocks(sizes: Mapping[str, float], title: str = "", unit: str = "") -> Picture:
    """A whole cut into named parts: one long bar, each part as wide as its share, listed below with its size."""
    figure, ax = _figure(8.4, 1.1 + 0.24 * len(sizes))
    total, left = sum(sizes.values()), 0.0
    for i, (name, size) in enumerate(sizes.items()):
        share, color = size / total, COLORS[i % len(COLORS)]
        ax.add_patch(
            Rectangle((left, 0), share, 1, facecolor=color, edgecolor="white", hatch=("", "//")[i // len(COLORS) % 2])
        )
        if share > 0.04:
            style: dict[str, Any] = {"color": ink(color), "fontweight": "bold", "ha": "center", "va": "center"}
            ax.text(left + share / 2, 0.5, f"{share:.0%}", **style)
        y = -0.45 - 0.55 * i
        ax.add_patch(Rectangle((0, y - 0.2), 0.018, 0.4, facecolor=color, edgecolor="none"))
        ax.text(0.03, y, name, va="center")
        ax.text(0.62, y, f"{size:,.0f}{unit}   {share:.1%}", va="center", ha="right")
        left += share
    ax.set(xlim=(0, 1), ylim=(-0.45 - 0.55 * len(sizes), 1.05), title=title)
    ax.axis("off")
    return Picture(figure)


@styled
def predictions(
    labels: Sequence[str], guesses: Sequence[str], probs: Sequence[float], right: Sequence[bool], title: str = ""
) -> Picture:
    """What the model expects after each token: the token read, the guess, how sure; a filled bar where it was right."""
    n = len(labels)
    figure, ax = _figure(6.8, 0.27 * n + 0.9)
    for i, (guess, prob, hit) in enumerate(zip(guesses, _array(probs), right, strict=True)):
        face, hatch = (COLORS[0], "") if hit else ("#D9D9D9", "///")
        ax.barh(i, prob, 0.8, color=face, hatch=hatch, edgecolor="white")
        ax.text(prob + 0.015, i, f"{guess}  {prob:.2f}", va="center", fontsize=8)
    ax.set_yticks(range(n), labels)
    ax.set(xlim=(0, 1.25), ylim=(n - 0.5, -0.5), title=title, xlabel="probability of the guess", ylabel="after reading")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    return Picture(figure)


@styled
def turns(points: Mapping[str, torch.Tensor], title: str = "") -> Picture:
    """Paths of one pair of numbers as its position grows: each [positions] complex, numbered along the way."""
    figure, ax = _figure(5.2, 4.6)
    reach = 1.15 * max(_array(p.abs()).max() for p in points.values())
    for i, (name, path) in enumerate(points.items()):
        values, color = path.detach().cpu().resolve_conj().numpy(), COLORS[i % len(COLORS)]
        mark = "o^sDv"[i % 5]
        ax.plot(values.real, values.imag, marker=mark, markersize=4, color=color, linestyle="", label=name)
        ax.add_patch(Circle((0, 0), abs(values[0]), fill=False, edgecolor=color, linewidth=0.6))
        tip = (values[0].real, values[0].imag)
        ax.add_patch(FancyArrowPatch((0, 0), tip, arrowstyle="->", mutation_scale=10, color=color))
        labelled: list[complex] = []
        for m, value in enumerate(values):
            if all(abs(value - other) > 0.12 * reach for other in labelled):  # numbers must not cover each other
                out = 9 * value / (abs(value) or 1)  # points, away from the middle
                style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 7}
                ax.annotate(str(m), (value.real, value.imag), xytext=(out.real, out.imag), **style)
                labelled.append(value)
    ax.set(
        xlim=(-reach, reach),
        ylim=(-reach, reach),
        aspect="equal",
        title=title,
        xlabel="first of the pair",
        ylabel="second of the pair",
    )
    ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.axvline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Picture(figure)


@styled
def towers(sizes: Mapping[str, tuple[float, float]], notes: Sequence[Sequence[str]], title: str = "") -> Picture:
    """Rectangles side by side on one scale, each (width, height): its name below it, then its lines of notes."""
    widest, highest = (max(side) for side in zip(*sizes.values(), strict=True))
    x_unit, y_unit, line = 2.6 / widest, 3.2 / highest, 0.19  # inches
    column = 0.15 + 0.07 * max(_columns(text) for texts in [list(sizes), *notes] for text in texts)
    columns = [max(column, 0.3 + width * x_unit) for width, _ in sizes.values()]
    below = line * (1.5 + max(len(texts) for texts in notes))
    figure, ax = _figure(sum(columns), 3.6 + below)
    middle = 0.0
    for i, ((name, (width, height)), texts, room) in enumerate(zip(sizes.items(), notes, columns, strict=True)):
        middle += room / 2
        corner, w, h = (middle - width * x_unit / 2, 0), width * x_unit, height * y_unit
        color, hatch = COLORS[i % len(COLORS)], ("", "//")[i // len(COLORS) % 2]
        ax.add_patch(Rectangle(corner, w, h, facecolor=color, hatch=hatch, edgecolor="white"))
        ax.text(middle, -line, name, ha="center", va="center", fontweight="bold")
        for n, text in enumerate(texts):
            ax.text(middle, -line * (n + 2), text, ha="center", va="center", fontsize=8)
        middle += room / 2
    ax.axhline(0, color="#777777", linewidth=0.8)
    ax.set(xlim=(0, sum(columns)), ylim=(-below, 3.3), title=title)
    ax.axis("off")
    return Picture(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # A Figure of its own, not pyplot's: nothing global, nothing to close, shown once.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _draw_lines(
    ax: Axes,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    dots: bool | Sequence[str] = False,
    legend: bool = True,
) -> None:
    """Curves by name; one that has only two points, such as a level to compare with, gets no dots."""
    for i, (name, (x, y)) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "linestyle": _MARKS[i % len(_MARKS)]}
        dotted = len(x) > 2 and (name in dots if isinstance(dots, Sequence) else dots)
        alone = dotted and not isinstance(dots, bool)  # among curves without, points that must be found
        size = 9 if alone else None
        ax.plot(_array(x), _array(y), label=name, marker="." if dotted else "", ms=size, linewidth=1.6, **style)
    ax.grid(color="#E5E5E5", linewidth=0.6)
    if legend and len(curves) > 1:
        ax.legend(frameon=False)


def _draw_levels(ax: Axes, levels: Mapping[str, float]) -> None:
    """Dashed lines across, each with its name: on the left, or where a curve would go through that, elsewhere."""
    curves = list(ax.lines)
    for level in levels.values():
        ax.axhline(level, color="#777777", linewidth=1, linestyle=(0, (6, 3)))
    if levels:
        ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # now it is known where things will be
    paths = [line.get_path().transformed(line.get_transform()) for line in curves]
    for name, level in levels.items():
        style: dict[str, Any] = {"fontsize": 8, "color": "#555555", "transform": ax.get_yaxis_transform()}
        text = ax.text(0.01, level, name, va="bottom", **style)
        for x, ha in ((0.01, "left"), (0.99, "right"), (0.5, "center"), (0.01, "left")):  # none is free: the first
            text.set(x=x, ha=ha)
            if not any(path.intersects_bbox(text.get_window_extent(), filled=False) for path in paths):
                break


def _name_points(ax: Axes, names: Mapping[str, tuple[float, float]]) -> None:
    """Names beside points: at the first place around each where no other name or named point is in the way."""
    if not names:
        return
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # now it is known where things will be
    points = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in ax.transData.transform([*names.values()])]
    written: list[Bbox] = []
    for i, (name, (x_at, y_at)) in enumerate(names.items()):
        in_the_way = points[:i] + points[i + 1 :] + written
        for x, y, ha in ((5, 4, "left"), (-5, 4, "right"), (5, -10, "left"), (-5, -10, "right")):
            style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "ha": ha}
            text = ax.annotate(name, (float(x_at), float(y_at)), xytext=(x, y), **style)
            box = text.get_window_extent().padded(1)
            if ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and not box.count_overlaps(in_the_way):
                break
            text.remove()
        else:  # none is free: the first
            style["ha"] = "left"
            ax.annotate(name, (float(x_at), float(y_at)), xytext=(5, 4), **style)
        written.append(box)


def _log_scale(ax: Axes, which: str) -> None:
    """Powers of ten; where there are few, also their doubles and fives, so that numbers can be read off."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = sorted(axis.get_view_interval())
    if high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


def _draw_matrix(ax: Axes, values: torch.Tensor, vmin: float | None, vmax: float | None, cmap: str = _CMAP) -> Any:
    shown = np.ma.masked_invalid(_array(values))
    ax.patch.set(facecolor="white", hatch="////", edgecolor="#AAAAAA", linewidth=0)
    return ax.imshow(shown, cmap=cmap, vmin=vmin, vmax=vmax, aspect="equal", interpolation="nearest")


def _write_hundredths(ax: Axes, image: Any) -> None:
    shown = image.get_array()
    for (row, column), value in np.ndenumerate(shown.filled(0.0)):
        if not np.ma.getmaskarray(shown)[row, column] and abs(value) >= 0.1:
            color = ink(image.to_rgba(value))
            ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=color)


def _name_ticks(
    ax: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None, most: int = _MAX_TICKS, size: float = 8
) -> None:
    for names, axis, turn in ((rows, ax.yaxis, 0), (columns, ax.xaxis, 90)):
        if names is None:
            axis.set_ticks([])
            continue
        step = math.ceil(len(names) / most)  # more labels than that would overlap
        small = size if step == 1 else min(size, 6)
        axis.set_ticks(range(0, len(names), step), names[::step], rotation=turn, fontsize=small)
        for shown in axis.get_ticklabels():
            if not any(c.isalnum() or c == "␣" for c in shown.get_text()):
                shown.set_fontsize(small + 3)  # a comma must not look like a full stop


def _plain(value: float, _position: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _array(values: Any) -> np.ndarray[Any, Any]:
    return torch.as_tensor(values).detach().cpu().double().numpy()


@cache
def _families() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]


@cache
def _drawable(char: str) -> str:
    named = {" ": "␣", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    if char in named:
        return named[char]
    fonts = (font_manager.get_font(font_manager.findfont(family)) for family in _families())
    if unicodedata.category(char)[0] not in "CZ" and any(font.get_char_index(ord(char)) for font in fonts):
        return char
    return f"U+{ord(char):04X}"


def _columns(text: str) -> int:
    # East Asian characters are two columns wide.
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
