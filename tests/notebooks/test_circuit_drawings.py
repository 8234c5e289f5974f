"""Drawings of notebook 13: names and shapes are those of a trace, places those that `habits_of` counts."""

import pytest
import torch
from helpers import assert_words_stay_apart
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from llama3_scratch import circuits, diagrams, plots, tracing
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20)}
every_model = pytest.mark.parametrize("name", MODELS)


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def boxes(picture):
    return [patch for patch in picture.axes[0].patches if isinstance(patch, Rectangle)]


@every_model
def test_each_tensor_of_a_layer_is_drawn_with_its_shape(name):
    picture, shapes = diagrams.trace_names(MODELS[name], 16), tracing.shapes(MODELS[name], 16)
    drawn = words(picture)
    for full, shape in shapes.items():
        if full == "embeddings" or (full.startswith("layers.0.") and full.endswith("stream")):
            assert f"{full} {diagrams.dims(shape)}" in drawn
        elif full.startswith("layers.0."):
            at = drawn.index(full.split(".")[-1])
            assert drawn[at + 1] == diagrams.dims(shape)
    inner = [full for full in shapes if full.startswith("layers.0.") and not full.endswith("stream")]
    assert len(boxes(picture)) == len(inner)


def test_the_places_drawn_are_those_that_are_counted():
    letters = "ABCDE"
    picture = diagrams.habit_places(letters)
    n = 2 * len(letters)
    per_panel = n * (n + 1) // 2
    tokens = [ord(letter) for letter in letters * 2]
    cells = boxes(picture)
    assert len(cells) == 5 * per_panel
    lower = [(i, j) for i in range(n) for j in range(i + 1)]
    for p, habit in enumerate(("previous", "induction", "duplicate", "first", "itself")):
        drawn = cells[p * per_panel : (p + 1) * per_panel]
        weights = torch.zeros(n, n)
        for (i, j), cell in zip(lower, drawn, strict=True):
            if to_hex(cell.get_facecolor()) != "#ffffff":
                weights[i, j] = 1.0
        assert weights.any()
        assert circuits.habits_of(weights, tokens)[habit] == 1  # each row that has such a place looks there
        assert (weights.sum(1) <= 1).all()


@pytest.mark.parametrize("shape", [(30, 9), (2, 4), (40, 40), (1, 1)])
def test_every_head_has_the_colour_of_its_kind(shape):
    names = list(diagrams.KINDS)
    kinds = torch.randint(len(names), shape, generator=torch.Generator().manual_seed(0))
    picture = diagrams.head_kinds(kinds, names)
    cells = boxes(picture)
    assert len(cells) == kinds.numel() + len(names)
    colours = [to_hex(diagrams.KINDS[names[kind]][0]) for kind in kinds.flatten().tolist()]
    assert [to_hex(cell.get_facecolor()) for cell in cells[: kinds.numel()]] == colours
    for i, name in enumerate(names):
        assert f"{name}: {int((kinds == i).sum())}" in words(picture)
    assert repr(diagrams.head_kinds(kinds.flip(0, 1), names)) != repr(picture) or kinds.numel() == 1


def test_the_circuit_names_its_heads_and_what_comes_next():
    picture = diagrams.induction_circuit((16, 0), (18, 6), ("␣Anna", "␣lives"))
    drawn = words(picture)
    assert {"head\n16.0", "head\n18.6", "3. brings ␣lives", "next: ␣lives"} <= set(drawn)
    assert "finds ␣lives" in picture.alt


def test_a_strip_shows_every_number_and_the_median():
    groups = {"a": [3.0, 1.0, 2.0], "b": [0.5, 0.5, 4.0, 9.0]}
    ax = plots.strip(groups).axes[0]
    dots, medians = ax.lines[::2], ax.lines[1::2]
    assert [list(line.get_xdata()) for line in dots] == list(groups.values())
    assert [line.get_xdata()[0] for line in medians] == [2.0, 2.25]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(groups)


PICTURES = {
    "trace_names": lambda: diagrams.trace_names(PUBLISHED["Llama 3.1 405B"], 300),
    "small trace_names": lambda: diagrams.trace_names(MODELS["one layer"], 2),
    "habit_places": diagrams.habit_places,
    "head_kinds": lambda: diagrams.head_kinds(torch.arange(270).view(30, 9) % 7, list(diagrams.KINDS)),
    "induction_circuit": lambda: diagrams.induction_circuit((101, 120), (118, 111), ("␣Anna", "␣lives")),
}


@pytest.mark.parametrize("name", PICTURES)
def test_words_stay_on_the_board_and_do_not_cover_each_other(name):
    assert_words_stay_apart(PICTURES[name]())
