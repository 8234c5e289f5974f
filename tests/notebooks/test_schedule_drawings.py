"""Drawings of many machines: who has what, who works when, where two ways cross, how many it takes, and pages."""

import pytest
from helpers import assert_words_stay_apart

from llama3_scratch import diagrams
from llama3_scratch.params import ModelArgs

ONE = {"stage 1": [(0.0, 0.5, 0), (1.0, 1.5, 0)], "stage 2": [(0.5, 1.0, 0), (1.5, 2.0, 0)]}
TWO = {"stage 1": [(0.0, 0.5, 0), (0.5, 1.0, 1)], "stage 2": [(0.5, 1.0, 0), (1.0, 1.5, 1)]}


def boxes(ax):
    return [(round(bar.get_y() + 0.4), bar.get_x(), bar.get_width()) for bar in ax.patches]


def test_a_box_stands_where_its_work_is_done():
    picture = diagrams.schedule({"one text": ONE, "two texts": TWO}, "passes", "Who works when")
    first, second = picture.axes
    assert boxes(first) == [(0, 0.0, 0.5), (0, 1.0, 0.5), (1, 0.5, 0.5), (1, 1.5, 0.5)]
    assert boxes(second) == [(0, 0.0, 0.5), (0, 0.5, 0.5), (1, 0.5, 0.5), (1, 1.0, 0.5)]
    assert first.get_xlim() == second.get_xlim()
    assert [label.get_text() for label in first.get_yticklabels()] == ["stage 1", "stage 2"]
    assert second.get_xlabel() == "passes" and first.get_title(loc="left") == "one text"


def test_a_text_has_one_colour_and_its_number():
    ax = diagrams.schedule({"two texts": TWO}).axes[0]
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert [text.get_text() for text in ax.texts] == ["1", "2", "1", "2"]
    assert len({bar.get_hatch() for bar in ax.patches}) == 2  # for readers in grey


def test_the_words_for_those_who_cannot_see_it_say_who_waits():
    alt = diagrams.schedule({"one text": ONE, "two texts": TWO}).alt
    assert "one text: until 2, at work 50% of the time" in alt
    assert "two texts: until 1.5, at work 67% of the time" in alt


def test_every_layer_stands_in_its_stage():
    params = ModelArgs(24, n_layers=5, n_heads=2, vocab_size=50)
    picture = diagrams.stages(params, [range(2), range(2, 5)], tokens=7)
    [ax] = picture.axes
    first, second = [patch for patch in ax.patches if patch.get_facecolor()[:3] == (1, 1, 1)]  # the stages' frames
    yellow = [patch for patch in ax.patches if hasattr(patch, "get_width") and patch.get_height() == 0.96]
    inside = [[p for p in yellow if f.get_x() <= p.get_x() < f.get_x() + f.get_width()] for f in (first, second)]
    assert [sum(not p.get_hatch() for p in own) for own in inside] == [2, 3]
    assert [sum(bool(p.get_hatch()) for p in own) for own in inside] == [1, 1]  # the ends
    words = [text.get_text() for text in ax.texts]
    assert "layers 2 to 4" in words and words.count("[7, 24]") == 1
    assert "stage 1 layers 0 to 1; stage 2 layers 2 to 4" in picture.alt
    assert_words_stay_apart(picture)


def test_two_ways_cross_where_they_are_told_to():
    x = [1e-6, 1e-5, 1e-4]
    curves = {"tensor": (x, [100.0, 10.0, 1.0]), "pipeline": (x, [10.0, 10.0, 10.0])}
    picture = diagrams.crossing(curves, {"Ethernet": 5e-5}, "Both", cross=1e-5)
    [ax] = picture.axes
    curve, level, wire, dot = ax.lines
    assert list(curve.get_ydata()) == [100, 10, 1] and list(level.get_ydata()) == [10, 10, 10]
    assert set(wire.get_xdata()) == {5e-5}
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (1e-5, 10.0)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert "They cross at 10 µs. Marked: Ethernet 50 µs" in picture.alt
    assert "tensor from 100 to 1; pipeline from 10 to 10" in picture.alt


def test_no_dot_stands_where_nothing_crosses():
    picture = diagrams.crossing({"tensor": ([1e-3, 1.0], [3.0, 2.0])}, {"far": 0.02})
    assert len(picture.axes[0].lines) == 2 and "cross" not in picture.alt


FLEET = {
    "70B": {"16 bits": {"H100": (2, 37.2), "Mac": (1, 5.9)}, "4 bits": {"H100": (1, 96.0), "Mac": (1, 23.6)}},
    "405B": {"16 bits": {"H100": None, "Mac": (2, 0.55)}},
}


def test_the_table_says_how_many_and_how_fast():
    picture = diagrams.fleet(FLEET, "How many")
    assert "70B in 16 bits: H100 2 at 37.2, Mac 1 at 5.9" in picture.alt
    assert "405B in 16 bits: H100 none, Mac 2 at 0.55" in picture.alt
    words = [(text.get_text(), text.get_color()) for text in picture.axes[0].texts]
    assert ("37", "white") in words and ("2 ×", "white") in words  # faster than one reads
    assert ("5.9", diagrams.INK) in words and ("0.55", diagrams.GREY) in words
    assert [word for word, _ in words].count("–") == 1
    assert words[-1][0].endswith("white: less than one a second; –: more are needed")
    assert_words_stay_apart(picture)


def test_the_table_explains_only_what_it_shows():
    picture = diagrams.fleet({"70B": {"16 bits": {"H100": (2, 37.2)}}})
    assert picture.axes[0].texts[-1].get_text() == "how many, and tokens a second; pale: slower than one reads"


def widths(picture, y, hatched):
    """Of the boxes in a row of the drawing."""
    return [
        patch.get_width()
        for patch in picture.axes[0].patches
        if patch.get_y() == y and bool(patch.get_hatch()) == hatched
    ]


def test_pages_waste_less_than_the_longest_for_each():
    picture = diagrams.cache_pages([20, 33], 64, 16)
    scale = 8.9 / 128  # inches for a position
    assert widths(picture, 0.5, False) == pytest.approx([20 * scale, 33 * scale])
    assert widths(picture, 0.5, True) == pytest.approx([44 * scale, 31 * scale])
    # in the order in which they are needed: 16 and 16, 4 and 16, and 1
    assert widths(picture, 1.35, False) == pytest.approx([n * scale for n in (16, 16, 4, 16, 1)])
    assert widths(picture, 1.35, True) == pytest.approx([12 * scale, 15 * scale])
    assert "With room for 64 each, 53 of 128 positions are used; in 5 pages of 16, 53 of 80" in picture.alt
    assert_words_stay_apart(picture)


def test_no_number_of_a_text_stands_on_a_hatch():
    picture = diagrams.cache_pages([20, 33], 40, 4)
    [ax] = picture.axes
    hatched = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches if p.get_hatch() and p.get_y() == 1.35]
    numbers = [text.get_position()[0] for text in ax.texts if text.get_text() in ("1", "2")]
    assert hatched and numbers
    assert not [x for x in numbers for left, right in hatched if left < x < right]
