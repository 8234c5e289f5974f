"""What every drawing is made of: a board in inches, and the few signs on it."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from ..plots import Picture

FLOWS, LEARNED, LIT, INK, GREY = "#CFE3F1", "#FBE7BC", "#0072B2", "#222222", "#707070"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")  # with the colours of heads, for readers in grey
PAPER: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}


class Board:
    """A drawing surface, measured in inches from the upper left corner."""

    def __init__(self, width: float, height: float, title: str = "") -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.ax: Axes = self.figure.add_subplot()
        self.ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        self.ax.axis("off")
        self.ax.set_gid("drawing")
        if title:
            self.ax.set_title(title)

    def picture(self, alt: str) -> Picture:
        return Picture(self.figure, alt)

    def text(self, x: float, y: float, words: str, size: float = 8.5, **style: Any) -> None:
        settings: dict[str, Any] = {"ha": "center", "va": "center", "color": INK} | style
        self.ax.text(x, y, words, fontsize=size, **settings)

    def rectangle(self, x: float, y: float, w: float, h: float, fill: str, **style: Any) -> None:
        settings: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.8} | style
        self.ax.add_patch(Rectangle((x, y), w, h, facecolor=fill, **settings))

    def vector(self, x: float, y: float, w: float, name: str = "", fill: str = FLOWS, cells: int = 12) -> None:
        """A strip of numbers; the cells only say that there are many."""
        self.rectangle(x, y, w, 0.16, fill)
        for i in range(1, cells):
            self.ax.plot([x + w * i / cells] * 2, [y, y + 0.16], color="white", linewidth=0.6)
        if name:
            self.text(x + w / 2, y + 0.32, name)

    def matrix(
        self, x: float, y: float, w: float, h: float, name: str, shape: Sequence[int | str], fill: str = LEARNED
    ) -> None:
        """A rectangle, its name inside and its shape below."""
        self.rectangle(x, y, w, h, fill)
        self.text(x + w / 2, y + h / 2, name)
        self.text(x + w / 2, y + h + 0.14, dims(shape), size=7.5, color="#444444")

    def pill(self, x: float, y: float, w: float, h: float, words: str, lit: bool = False, size: float = 8.5) -> None:
        """An operation."""
        box = FancyBboxPatch(
            (x, y),
            w,
            h,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=LIT if lit else "white",
            edgecolor=LIT if lit else INK,
            linewidth=1.0,
        )
        self.ax.add_patch(box)
        self.text(x + w / 2, y + h / 2, words, size=size, color="white" if lit else INK)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
        settings: dict[str, Any] = {"color": INK, "linewidth": 1.0, "arrowstyle": "-|>", "mutation_scale": 9} | style
        self.ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **settings))

    def line(self, *points: tuple[float, float], **style: Any) -> None:
        settings: dict[str, Any] = {"color": INK, "linewidth": 1.0} | style
        self.ax.plot([x for x, _ in points], [y for _, y in points], **settings)

    def plus(self, x: float, y: float) -> None:
        """An addition to the stream."""
        self.ax.add_patch(
            FancyBboxPatch(
                (x - 0.1, y - 0.1),
                0.2,
                0.2,
                boxstyle="round,pad=0,rounding_size=0.1",
                facecolor="white",
                edgecolor=INK,
                zorder=4,
            )
        )
        self.text(x, y - 0.005, "+", size=10, zorder=5)


def dims(shape: Sequence[int | str]) -> str:
    """[16, 576], with commas in large numbers."""
    return "[" + ", ".join(f"{n:,}" if isinstance(n, int) else n for n in shape) + "]"
