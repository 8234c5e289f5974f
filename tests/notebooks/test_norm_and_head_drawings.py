"""The drawings of notebooks 3 and 4, checked by the numbers and words in them."""

import math

import numpy as np
import pytest
import torch
from matplotlib.quiver import Quiver

from llama3_scratch import diagrams, plots
from llama3_scratch.params import PUBLISHED

PARAMS = PUBLISHED["Llama 3.2 3B"]


def quivers(ax):
    """The arrows of an axis, each set as [n, 2]."""
    return [np.stack([c.U, c.V], -1) for c in ax.collections if isinstance(c, Quiver)]


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def test_the_norm_is_drawn_with_the_models_sizes():
    picture = diagrams.norm_step(PARAMS, tokens=7)
    assert {"[7, 3,072]", "one number a row [7, 1]", "gain [3,072]: one number a column"} <= {*words(picture)}
    assert "[7, 3,072]" in picture.alt


def test_vectors_end_on_a_circle_and_then_on_an_ellipse():
    vectors, gain = torch.tensor([[0.3, 0.4], [-2.0, 0.1], [0.0, -5.0]]), torch.tensor([0.5, -0.1])
    before, circle, ellipse = (quivers(ax)[0] for ax in diagrams.sphere(vectors, gain, ["a", "b", "$c$"]).axes)
    assert np.allclose(before, vectors)
    assert np.allclose((circle**2).mean(-1), 1)  # root mean square 1
    assert np.allclose(np.arctan2(*circle.T), np.arctan2(*before.T))  # in the old direction
    assert np.allclose(ellipse, circle * gain.numpy())


def test_a_vector_of_zeros_can_be_drawn():
    circle = quivers(diagrams.sphere(torch.zeros(1, 2), torch.ones(2), ["zero"]).axes[1])[0]
    assert np.allclose(circle, 0)


@pytest.mark.parametrize("angle", [1.0, -2.0, 0.0])
def test_a_turn_keeps_the_length(angle):
    before, after = quivers(diagrams.one_turn((-0.6, 0.8), angle).axes[0])[0]
    assert np.allclose(complex(*after), complex(*before) * complex(math.cos(angle), math.sin(angle)))


@pytest.mark.parametrize(("pairs", "most", "drawn"), [(32, 32, 32), (64, 32, 32), (3, 32, 3)])
def test_the_hands_of_the_clocks_show_position_times_frequency(pairs, most, drawn):
    freqs, positions = 0.5 ** torch.arange(pairs), (0, 1, 100)
    rows = quivers(diagrams.clock_hands(freqs, positions, most).axes[0])
    for position, hands in zip(positions, rows, strict=True):
        angles = (freqs.double() * position)[:: pairs // drawn].numpy()
        assert len(hands) == drawn
        assert np.allclose(hands / 0.43, np.stack([np.cos(angles), -np.sin(angles)], -1))  # the y axis points down


def test_the_steps_of_a_head_are_lit_one_by_one():
    plain, lit = diagrams.one_head(PARAMS, 7), diagrams.one_head(PARAMS, 7, here=("rotate", "scores"))
    assert words(plain) == words(lit)
    assert lit.alt == plain.alt + " Lit: rotate, scores."
    lit_words = {text.get_text() for ax in lit.axes for text in ax.texts if text.get_color() == "white"}
    assert lit_words == {"rotate"}  # a lit result has a thick border instead
    with pytest.raises(ValueError, match="not 'nothing'"):
        diagrams.one_head(PARAMS, here="nothing")


def test_levels_are_horizontal_lines_with_their_names():
    picture = plots.lines({"a": ([0, 1], [2, 3])}, levels={"8 tokens": 8})
    assert list(picture.axes[0].lines[-1].get_ydata()) == [8, 8]
    assert "8 tokens" in words(picture)
    assert repr(picture) != repr(plots.lines({"a": ([0, 1], [2, 3])}, levels={"8 tokens": 9}))


def test_numbers_in_a_heatmap_are_hundredths_of_what_may_be_seen():
    values = torch.tensor([[1.0, 0.5], [0.12, 0.04]])
    hidden = torch.tensor([[False, True], [False, False]])
    assert words(plots.heatmap(values, vmin=0, vmax=1, hidden=hidden, numbers=True)) == ["100", "12"]
    assert words(plots.heatmap(torch.ones(40, 40), numbers=True)) == []  # no room
