"""Drawings and tables of notebook 14: they show the model's sizes and what they were given, and a fault shows."""

import pytest
import torch
from helpers import assert_words_stay_apart
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from llama3_scratch import diagrams, plots
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20)}
every_model = pytest.mark.parametrize("name", MODELS)
TEXT = ["In", "␣the", "␣beginning", "␣there", "␣was", "␣nothing", "␣but", "."]


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def boxes(picture, fill):
    patches = [p for p in picture.axes[0].patches if isinstance(p, Rectangle)]
    return [p for p in patches if to_hex(p.get_facecolor()).lower() == fill.lower()]


@every_model
@pytest.mark.parametrize("through", [False, True])
def test_a_state_is_read_past_the_layers_that_are_left(name, through):
    p = MODELS[name]
    layer = p.n_layers // 2
    drawn = words(diagrams.early_reading(p, layer, 16, through))
    above = p.n_layers - 1 - layer
    assert f"state after layer {layer}" in drawn and (f"{above} more" if above else "no more") in drawn
    assert drawn.count(diagrams.dims((16, p.vocab_size))) == 1 + through
    assert (f"J {diagrams.dims((p.dim, p.dim))}" in drawn) == through


@every_model
@pytest.mark.parametrize("count", [2, 7, 8])
def test_a_push_goes_in_where_it_is_counted(name, count):
    p, text = MODELS[name], TEXT[:count]
    picture = diagrams.push_through(p, p.n_layers // 2, text, slice(1, -1))
    shown = count - 2 if count < 8 else 4  # of a long text, the beginning and the end
    assert words(picture).count("+ push") == len(boxes(picture, diagrams.LIT)) == max(0, shown)
    assert f"added at {count - 2} of its positions" in picture.alt
    assert f"the {p.n_layers - 1 - p.n_layers // 2} layers above" in picture.alt
    all_but_the_first = diagrams.push_through(p, p.n_layers // 2, text)
    assert words(all_but_the_first).count("+ push") == words(picture).count("+ push") + 1


def test_a_table_shows_words_numbers_and_frames():
    values = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.2, 0.1]])
    table = [["a", "␣the", "spider"], ["b", "c", "$x$"]]
    frames = torch.tensor([[False, False, True], [False, False, False]])
    made = {"here": (table, values), "there": (table, 3 * values)}
    picture = plots.word_grids(made, ["up", "down"], ["1", "2", "3"], scales=["here"], framed={"here": frames})
    assert words(picture)[:6] == [word for row in table for word in row]
    assert [len(ax.patches) for ax in picture.axes] == [1, 0, 0]  # a frame, none, and the scale
    assert torch.equal(torch.tensor(picture.axes[1].images[0].get_array().tolist()), 3 * values)
    moved = {"here": (table, values), "there": (table, 3 * values.flip(1))}
    assert repr(plots.word_grids(moved, ["up", "down"], ["1", "2", "3"])) != repr(picture)


@every_model
def test_words_stay_on_the_board_and_do_not_cover_each_other(name):
    p = MODELS[name]
    assert_words_stay_apart(diagrams.early_reading(p, p.n_layers // 2, 8192))
    assert_words_stay_apart(diagrams.early_reading(p, p.n_layers // 2, 8192, through=True))
    assert_words_stay_apart(diagrams.push_through(p, p.n_layers // 2, TEXT, slice(1, -1)))
