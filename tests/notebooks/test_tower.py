"""Drawings and pictures of notebooks 7 and 8: they say what the model's sizes are, and show the numbers given."""

import numpy as np
import pytest
from helpers import assert_words_stay_apart

from llama3_scratch import diagrams, plots
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20), "two layers": ModelArgs(64, 2, 4, 300, 4, 48)}
every_model = pytest.mark.parametrize("name", MODELS)


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


@every_model
def test_a_tower_names_every_weight_of_a_layer_with_its_shape(name):
    params = MODELS[name]
    drawn = " | ".join(words(diagrams.tower(params, tokens=17)))
    for key, shape in params.weight_shapes().items():
        if key.startswith("layers.0."):
            weight = key.split(".")[-2]
            assert any(weight in text and diagrams.dims(shape) in text for text in drawn.split(" | ")), key
    assert f"[17, {params.dim:,}]" in drawn


@every_model
def test_a_tower_has_the_first_and_the_last_layer(name):
    params = MODELS[name]
    drawn = words(diagrams.tower(params))
    assert "layer 0" in drawn and f"layer {params.n_layers - 1}" in drawn and f"layer {params.n_layers}" not in drawn
    assert ("..." in drawn) == (params.n_layers > 6)


@every_model
def test_the_last_vector_meets_every_row_of_the_output_matrix(name):
    params = MODELS[name]
    drawn = words(diagrams.last_vector(params, tokens=17))
    for shape in ((17, params.dim), (params.dim,), (params.vocab_size, params.dim), (params.vocab_size,)):
        assert diagrams.dims(shape) in drawn


@pytest.mark.parametrize("draw", [diagrams.tower, diagrams.last_vector])
@every_model
def test_words_stay_on_the_board_and_do_not_cover_each_other(draw, name):
    assert_words_stay_apart(draw(MODELS[name], tokens=512))


@pytest.mark.parametrize("draw", [diagrams.tower, diagrams.last_vector])
def test_the_alternative_text_has_the_sizes(draw):
    alt = draw(PUBLISHED["Llama 3 8B"], tokens=17).alt
    assert "[17, 4,096]" in alt and ("[14,336, 4,096]" in alt or "[128,256, 4,096]" in alt)


def test_panels_show_the_numbers_given_and_say_once_whose_they_are():
    parts = {"a": {"one": ([0, 1, 2], [3, 4, 5]), "level": ([0, 2], [1, 1])}}
    parts["b"] = {"one": ([0, 1, 2], [1, 10, 90]), "level": ([0, 2], [2, 2])}
    axes = plots.panels(parts, "title", "x", log_y=["b"]).axes
    for ax, (name, curves) in zip(axes, parts.items(), strict=True):
        assert ax.get_title(loc="left") == name
        for line, (x, y) in zip(ax.lines, curves.values(), strict=True):
            assert np.array_equal(line.get_xdata(), x) and np.array_equal(line.get_ydata(), y)
    assert [ax.get_yscale() for ax in axes] == ["linear", "log"]
    assert [ax.get_legend() is not None for ax in axes] == [True, False]


def test_another_number_in_a_panel_changes_the_repr():
    def drawn(y):
        return repr(plots.panels({"a": {"one": ([0, 1, 2], [0.1, y, 0.3])}}))

    assert drawn(0.2) != drawn(0.21)


def test_numbers_can_be_read_off_a_log_scale_of_two_decades():
    ax = plots.lines({"a": ([0, 1, 2], [0.1, 1, 9])}, log_y=True).axes[0]
    ax.figure.canvas.draw()
    assert {"0.1", "0.2", "0.5", "1", "2", "5"} <= {label.get_text() for label in ax.get_yticklabels()}
