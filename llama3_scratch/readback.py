"""What a figure shows, read back from it as text: its words, and its colours and numbers folded into sums.

Notebooks store this text beside each image and compare it; images could not be compared across machines. Nothing that
depends on the fonts at hand enters: no sizes of texts, and no ticks but those that were set by name.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Patch, Rectangle, StepPatch
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator

_MANY_WORDS = 26  # ticks and texts of one part of a figure that are written out
_SIDES: tuple[Literal["center", "left", "right"], ...] = ("center", "left", "right")


def text_of(figure: Figure, alt: str = "") -> str:
    """One line for each thing drawn, readable words first."""
    axes: list[Any] = [part for ax in figure.axes for part in (ax, *ax.child_axes)]
    parts = [_legible(figure.get_suptitle())] if figure.get_suptitle() else []
    parts += [line for ax in axes for line in (_colour_bar(ax) if ax.get_label() == "<colorbar>" else _axes(ax))]
    parts += [f"alt {_mark([alt])}"] if alt else []
    long = {line for line in parts if "ticks from" in line and len(line) > 80}
    seen: set[str] = set()
    for i, line in enumerate(parts):
        if line in seen & long:  # panels of a sheet
            parts[i] = f"{line[0]} as above ({_mark([line])})"
        seen.add(line)
    return "\n".join(["Picture", *(f"  {line}" for line in parts)])


def fingerprint(*texts: str) -> str:
    """A few letters that change with any of the texts."""
    return hashlib.blake2s("\0".join(texts).encode(), digest_size=8).hexdigest()


def summary(values: Any) -> str:
    """Shape, extremes, and two sums, fine enough to show one changed cell and coarse enough for any CPU.

    The second sum weighs the values by their place, so that two that change places are noticed.
    """
    array: Any = np.ma.masked_invalid(np.ma.asarray(values, dtype=float))
    kept = array.filled(0.0).ravel()
    scale = np.abs(kept).max(initial=0.0) or 1.0
    digits = 3 - math.floor(math.log10(scale))
    weighted = (kept * np.linspace(0, 1, kept.size)).sum()
    extremes = (array.min(), array.max()) if array.count() else (0.0, 0.0)
    low, high, total, placed = (
        f"{round(float(v), digits) + 0.0:.{max(digits, 0)}f}" for v in (*extremes, kept.sum(), weighted)
    )
    masked = int(np.ma.count_masked(array))
    shape = "x".join(str(n) for n in array.shape)
    return f"{shape}: {low} to {high}, sum {total}, by place {placed}" + (f", masked {masked}" if masked else "")


def _axes(ax: Axes) -> list[str]:
    lines = [f"title {_legible(title)}" for side in _SIDES if (title := ax.get_title(loc=side))]
    # Tokens' boxes are as wide as their labels, and which characters labels can show depends on the fonts at hand.
    tokens = [patch for patch in ax.patches if patch.get_gid() == "token"]
    if ax.axison and not _bare_matrix(ax):
        lines += [_axis(ax.xaxis, "x"), _axis(ax.yaxis, "y")]
    elif not tokens and (ax.patches or ax.texts):
        lines.append(f"from {_span(ax.get_xlim())}, {_span(ax.get_ylim())}")
    if legend := ax.get_legend():
        entries = zip(legend.legend_handles, legend.get_texts(), strict=True)
        lines.append("legend " + ", ".join(f"{_legible(text.get_text())}: {_look(handle)}" for handle, text in entries))
    if tokens:
        lines.append(f"{len(tokens)} tokens: {_census(tokens)}")
    lines += _words(ax.texts, places=not tokens)
    lines += [_image(image, ax) for image in ax.images]
    lines += _by_look(ax.lines)
    for collection in ax.collections:
        lines += _collection(collection)
    lines += _patches([patch for patch in ax.patches if patch not in tokens])
    return lines


def _bare_matrix(ax: Axes) -> bool:
    """One as imshow shows it, first row on top, with nothing written beside it: a panel of a sheet."""
    if len(ax.images) != 1 or ax.get_xlabel() or ax.get_ylabel() or ax.get_xticks().size or ax.get_yticks().size:
        return False
    array: Any = ax.images[0].get_array()
    rows, columns = array.shape[:2]
    return ax.get_xlim() == (-0.5, columns - 0.5) and ax.get_ylim() == (rows - 0.5, -0.5)


def _axis(axis: Axis, letter: str) -> str:
    """Name, scale, range, and the ticks that were given names."""
    scale = "" if axis.get_scale() == "linear" else f", {axis.get_scale()}"
    told = f"{letter} {_legible(axis.get_label_text())!r} {_span(axis.get_view_interval())}{scale}"
    if axis.get_inverted():
        told += ", inverted"
    if not isinstance(axis.get_major_locator(), FixedLocator):  # others depend on the room that texts leave
        return told
    places = [float(place) for place in axis.get_majorticklocs()]
    names = [text.get_text() for text in axis.get_ticklabels()] if places else []
    if not places:
        return f"{told}, no ticks"
    steps = {round(b - a, 6) for a, b in pairwise(places)}
    where = f"from {places[0]:g}" + (
        f" by {steps.pop():g}" if len(steps) == 1 else f", {_few(places)}" if steps else ""
    )
    return f"{told}, ticks {where}: {_listed(names)}"


def _few(places: Sequence[float]) -> str:
    return summary(places) if len(places) > 6 else " ".join(f"{place:.3g}" for place in places)


def _span(interval: Sequence[float]) -> str:
    return " to ".join(f"{float(end) + 0.0:.3g}" for end in interval)


def _legible(text: str) -> str:
    """A text in one line, as far as any machine can draw it: `plots.label` writes U+NNNN for what it cannot."""
    text = text.replace("\n", " ")
    drawable = _characters()
    end = next((i for i, c in enumerate(text) if ord(c) not in drawable), len(text))
    cut = re.search(r"U\+[0-9A-F]{4}|U\+?[0-9A-F]{0,3}…", text)
    end = min(end, cut.start() if cut else end)
    return text if end == len(text) else text[:end] + "…"


@cache
def _characters() -> frozenset[int]:
    """Those of the font that comes with matplotlib."""
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _mark(words: Iterable[str]) -> str:
    return fingerprint(*map(_legible, words))[:6]


def _listed(words: Sequence[str]) -> str:
    """Words one after the other; of many, the first and the last, and a mark that changes with any of them."""
    shown = [_legible(word) for word in words]
    if len(shown) <= _MANY_WORDS and sum(map(len, shown)) < 600:
        return " | ".join(shown)
    kept = [*shown[:8], "...", *shown[-2:]]
    return f"{' | '.join(kept)} ({len(shown)}, {_mark(shown)})"


def _words(texts: Sequence[Text], places: bool) -> list[str]:
    if not texts:
        return []
    lines = ["words " + _listed([text.get_text() for text in texts])]
    if places:
        at = [
            (*text.get_position(), *(text.xy if isinstance(text, Annotation) else (0, 0)))
            for text in texts  # where an annotation points to
        ]
        lines.append("words at " + summary(np.array(at, dtype=float)))
    colors = [to_hex(text.get_color()) for text in texts]
    if len(set(colors)) > 1:
        lines.append("words in " + _counted(colors))
    arrows = [text.arrow_patch for text in texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    return [*lines, *(["word arrows " + _census(arrows)] if arrows else [])]


def _counted(looks: Sequence[str]) -> str:
    """How often each look occurs, and a mark of their order."""
    found = dict.fromkeys(looks)
    if len(found) == 1:
        return looks[0]
    most = sorted(found, key=lambda look: -looks.count(look))[:6]
    told = ", ".join(f"{looks.count(look)} {look}" for look in most)
    return f"{told}{', ...' if len(found) > 6 else ''} ({_mark(looks)})"


def _census(patches: Sequence[Patch]) -> str:
    return _counted([_look(patch) for patch in patches])


def _color(color: Any) -> str:
    return to_hex(color, keep_alpha=False) if to_hex(color, keep_alpha=True)[-2:] != "00" else "none"


def _look(artist: Any) -> str:
    """Colour, dashes, hatch, mark: by what a reader tells one thing from another."""
    if isinstance(artist, Line2D):
        signs = [_color(artist.get_color()), str(artist.get_linestyle()), str(artist.get_marker())]
        return " ".join([*(sign for sign in signs if sign not in ("", "None")), f"{artist.get_linewidth():g}"])
    if isinstance(artist, Patch):
        face, edge = _color(artist.get_facecolor()), _color(artist.get_edgecolor())
        dash = "" if artist.get_linestyle() in ("solid", "-") else str(artist.get_linestyle())
        arrow = type(artist.get_arrowstyle()).__name__ if isinstance(artist, FancyArrowPatch) else ""
        filled = face if artist.get_fill() and face != "none" else "hollow"
        look = [filled, artist.get_hatch() or "", dash, arrow, f"edge {edge}" if edge != face else ""]
        return " ".join(filter(None, look))
    if isinstance(artist, Collection):
        return (
            _counted([_color(color) for color in artist.get_facecolor()]) if len(artist.get_facecolor()) else "hollow"
        )
    return ""


def _scale(drawn: ScalarMappable) -> str:
    name = type(drawn.norm).__name__
    return f"{drawn.get_cmap().name} {_span(drawn.get_clim())}" + ("" if name == "Normalize" else f" {name}")


def _image(image: Any, ax: Axes) -> str:
    hatch = ax.patch.get_hatch() if np.ma.is_masked(image.get_array()) else None
    return f"image {summary(image.get_array())}, {_scale(image)}" + (f", hatch {hatch}" if hatch else "")


def _colour_bar(ax: Axes) -> list[str]:
    name, interval = (ax.get_ylabel() or ax.get_xlabel()), (ax.get_ylim() if ax.get_ylabel() else ax.get_xlim())
    return [f"colours {_legible(name)!r} {_span(interval)}"] if name else []


def _by_look(drawn: Sequence[Line2D]) -> list[str]:
    """Curves; those that look the same, such as the cells of a strip, are summed up together."""
    groups: dict[str, list[Line2D]] = {}
    for line in drawn:
        groups.setdefault(_look(line), []).append(line)
    if len(groups) > 7:
        groups = {_counted([_look(line) for line in drawn]): list(drawn)}
    lines = []
    for look, members in groups.items():
        x, y = (np.concatenate([np.asarray(line.get_data()[i], dtype=float) for line in members]) for i in (0, 1))
        count = f"{len(members)} lines" if len(members) > 1 else "line"
        lines.append(f"{count} {look} x {summary(x)}; y {summary(y)}")
    return lines


def _collection(drawn: Collection) -> list[str]:
    colors = f"{_scale(drawn)}, {summary(drawn.get_array())}" if drawn.get_array() is not None else _look(drawn)
    if isinstance(drawn, Quiver):
        tails = summary(np.asarray(drawn.get_offsets()))
        return [f"arrows x {summary(drawn.U)}; y {summary(drawn.V)}; from {tails}; {colors}"]
    if isinstance(drawn, PathCollection):
        return [f"dots {summary(np.asarray(drawn.get_offsets()))}; sizes {summary(drawn.get_sizes())}; {colors}"]
    corners = [np.asarray(path.vertices) for path in drawn.get_paths()]
    return [f"areas {summary(np.concatenate(corners))}; {colors}"] if corners else []


def _patches(patches: Sequence[Patch]) -> list[str]:
    """Boxes, arrows and the rest, each kind with its looks and its places."""
    kinds: dict[str, list[tuple[Patch, Any]]] = {}
    for patch in patches:
        if isinstance(patch, StepPatch):
            kinds.setdefault("steps", []).append((patch, None))
        elif isinstance(patch, (Rectangle, FancyBboxPatch)):
            at = (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height())
            kinds.setdefault("boxes", []).append((patch, at))
        elif isinstance(patch, FancyArrowPatch):
            ends: Any = patch._posA_posB  # type: ignore[attr-defined]  # matplotlib has no public way to ask
            kinds.setdefault("arrows", []).append((patch, np.ravel(ends)))
        elif isinstance(patch, Ellipse):
            kinds.setdefault("circles", []).append((patch, np.ravel([patch.get_center(), (patch.width, patch.height)])))
        else:
            corners = patch.get_patch_transform().transform(patch.get_path().vertices)
            kinds.setdefault("shapes", []).append((patch, np.ravel([corners.mean(axis=0), corners[0]])))
    lines = []
    for kind, found in kinds.items():
        if kind == "steps":
            for patch, _ in found:
                data: Any = patch.get_data()  # type: ignore[attr-defined]
                lines.append(f"steps {_look(patch)} {summary(data.values)}; edges {summary(data.edges)}")
        else:
            looks = _census([patch for patch, _ in found])
            lines.append(f"{len(found)} {kind}: {looks}; at {summary(np.array([at for _, at in found], dtype=float))}")
    return lines
