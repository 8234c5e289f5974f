"""The Llama 3 family: what changed from model to model, what fits where, and how far rotations have turned."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, Wedge

from ..params import ModelArgs
from ..plots import COLORS, Picture, styled
from .board import FLOWS, GREY, INK, LIT, PAPER, Board

_NEW = "#D55E00"


def _rows(params: ModelArgs, tied: bool) -> dict[str, str]:
    p = params
    return {
        "dim": f"{p.dim:,}",
        "n_layers": f"{p.n_layers}",
        "n_heads": f"{p.n_heads}",
        "n_kv_heads": f"{p.n_kv_heads}",
        "hidden_dim": f"{p.hidden_dim:,}",
        "vocab_size": f"{p.vocab_size:,}",
        "rope_theta": f"{p.rope_theta:,.0f}",
        "slow pairs": "as they are" if p.rope_factor is None else f"{p.rope_factor:.0f} times slower",
        "context": f"{p.context_len:,}",
        "tied": "yes" if tied else "no",
    }


@styled
def family_table(
    models: Mapping[str, ModelArgs], against: Mapping[str, str], tied: Collection[str], dates: Mapping[str, str]
) -> Picture:
    """Models side by side, a column each, in the order of their release: "Llama 3 8B" is the 8B of release Llama 3,
    which came out at `dates["Llama 3"]`. A number is marked where it is not that of the model named in `against`.
    """
    shown = {name: _rows(params, name in tied) for name, params in models.items()}
    labels, left, line = list(next(iter(shown.values()))), 1.05, 0.29
    width = 8.1 / len(models)
    board = Board(9.2, 1.15 + line * len(labels))
    told, releases = [], [name.rsplit(" ", 1)[0] for name in models]
    for r, label in enumerate(labels):
        board.text(left - 0.08, 0.8 + line * r, label, size=8, ha="right", color="#444444")
    for c, (name, numbers) in enumerate(shown.items()):
        x, before = left + width * (c + 0.5), shown.get(against.get(name, ""), numbers)
        board.text(x, 0.5, name.rsplit(" ", 1)[1], size=10.5, weight="bold")
        changed = [label for label in labels if numbers[label] != before[label]]
        for r, label in enumerate(labels):
            y, new = 0.8 + line * r, label in changed
            if new:
                board.rectangle(x - width * 0.47, y - line * 0.43, width * 0.94, line * 0.86, LIT, linewidth=0)
            style: dict[str, Any] = {"color": "white", "weight": "bold"} if new else {}
            board.text(x, y, numbers[label], size=7.5, **style)
        foot = f"held against\n{against[name]}" if name in against else "where we start"
        board.text(x, 0.92 + line * len(labels), foot, size=7, color="#444444")
        told.append(f"{name}: {', '.join(f'{label} {numbers[label]}' for label in changed) or 'no number'} changed")
    for release in dict.fromkeys(releases):
        columns = [c for c, other in enumerate(releases) if other == release]
        start, end = left + width * columns[0], left + width * (columns[-1] + 1)
        board.line((start + 0.06, 0.32), (end - 0.06, 0.32), color=GREY)
        words = f"{release}, {dates[release]}" if len(columns) > 1 else f"{release}\n{dates[release]}"
        board.text((start + end) / 2, 0.16, words, size=7.5, linespacing=0.95)
    return board.picture(f"The family side by side; what changed is marked. {'; '.join(told)}.")


@styled
def clock_faces(speeds: Mapping[str, torch.Tensor], seen: int, longest: int, pairs: Sequence[int]) -> Picture:
    """Some pairs as clock faces, a row of them for each of `speeds`, which are radians per token; the first are those
    of training.

    Filled, with a thick rim: the angles that the pair met in training, in texts of `seen` tokens. Hatched, with a thin
    rim: those that it meets for the first time in a text of `longest` tokens.
    """
    trained = next(iter(speeds.values()))
    figure = Figure(figsize=(2.1 * len(pairs) + 0.8, 2.55 * len(speeds) + 0.35), layout="constrained")
    axes = figure.subplots(len(speeds), len(pairs), squeeze=False)
    told = []
    for row, (name, freqs) in enumerate(speeds.items()):
        for column, pair in enumerate(pairs):
            old, new = (float(f[pair]) * n / (2 * math.pi) for f, n in ((trained, seen), (freqs, longest)))
            _face(axes[row][column], min(1.0, old), min(1.0, new))
            share = max(0.0, min(1.0, new) - min(1.0, old))
            words = "nothing new" if share < 0.005 else f"{share:.0%} of the circle new"
            axes[row][column].set_xlabel(f"{longest:,} tokens: {_turns(new)}\n{words}", fontsize=8.5)
            told.append(f"pair {pair}, {name}: {_turns(old)} in {seen:,} tokens, {_turns(new)} in {longest:,}, {words}")
            if row == 0:
                axes[row][column].set_title(f"pair {pair}\n{seen:,} tokens: {_turns(old)}", fontsize=9)
        axes[row][0].set_ylabel(name, fontsize=9.5, labelpad=8)
    return Picture(figure, f"Clock faces. {'; '.join(told)}.")


def _turns(turns: float) -> str:
    if turns >= 10:
        return f"{turns:,.0f} turns"
    return f"{turns:.2g} turns" if turns < 0.01 or turns >= 1 else f"{turns:.2f} turns"


def _face(ax: Axes, seen: float, met: float) -> None:
    """Shares of a turn, counted from the right against the clock."""
    ax.add_patch(Circle((0, 0), 1, facecolor="white", edgecolor=GREY, linewidth=0.8))
    ax.add_patch(Wedge((0, 0), 1, 0, 360 * seen, facecolor=FLOWS, edgecolor="none"))
    if met > seen:
        style: dict[str, Any] = {"facecolor": "white", "edgecolor": _NEW, "hatch": "///", "linewidth": 0.8}
        ax.add_patch(Wedge((0, 0), 1, 360 * seen, 360 * met, **style))
        ax.add_patch(Arc((0, 0), 2.2, 2.2, theta1=360 * seen, theta2=360 * met, color=_NEW, linewidth=1.4))
    ax.add_patch(Arc((0, 0), 2.0, 2.0, theta1=0, theta2=360 * seen, color=LIT, linewidth=5))
    ax.plot([0, 1], [0, 0], color=INK, linewidth=1.2)
    ax.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal", xticks=[], yticks=[])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


@styled
def will_it_fit(needs: Mapping[str, Mapping[str, float]], machines: Mapping[str, float]) -> Picture:
    """What each model needs, in GB on a log scale: a row for each model, a mark for each way to store it. The dashed
    lines are what some machines have.
    """
    kinds = list(next(iter(needs.values())))
    figure = Figure(figsize=(8.6, 0.36 * len(needs) + 1.5), layout="constrained")
    ax = figure.add_subplot()
    for k, kind in enumerate(kinds):
        marks = [sizes[kind] for sizes in needs.values()]
        ax.plot(marks, range(len(needs)), "os^D"[k % 4], color=COLORS[k % len(COLORS)], markersize=7, label=kind)
    for row, sizes in enumerate(needs.values()):
        ax.plot([min(sizes.values()), max(sizes.values())], [row, row], color="#BBBBBB", linewidth=1.2, zorder=0)
        for size in sizes.values():
            words = f"{size:,.0f}" if size >= 10 else f"{size:.1f}"
            ax.annotate(words, (size, row), (0, 7), textcoords="offset points", ha="center", fontsize=7.5, bbox=PAPER)
    for name, room in machines.items():
        ax.axvline(room, color=INK, linestyle=(0, (5, 3)), linewidth=1)
        ax.text(room, -0.9, f"{name}\n{room:,.0f} GB", ha="center", va="bottom", fontsize=8)
    ax.set_xscale("log")
    ticks = [1, 10, 100, 1000]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(needs)), list(needs))
    ax.set(ylim=(len(needs) - 0.5, -0.8), xlabel="GB (billions of bytes)")
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.6)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    told = "; ".join(
        f"{name} {', '.join(f'{s:.3g} GB {k}' for k, s in sizes.items())}" for name, sizes in needs.items()
    )
    rooms = ", ".join(f"{name} {size:.0f} GB" for name, size in machines.items())
    return Picture(figure, f"What each model needs: {told}. What machines have: {rooms}.")
