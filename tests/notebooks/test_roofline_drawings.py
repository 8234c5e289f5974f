"""Drawings of notebook 15: places under a roof, bars beside lines, and a table of what fits and how fast it is."""

import pytest
from helpers import assert_words_stay_apart

from llama3_scratch import diagrams

STEPS = {"wq": {1: (2.0, 2.0), 8: (16.0, 2.0), 64: (128.0, 2.0)}, "attention": {1: (6.0, 2.0)}}


def lines_of(ax, marker):
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == marker]


def test_steps_stand_on_the_roof():
    top, below = diagrams.roofline(10.0, 200.0, STEPS).axes
    assert lines_of(top, "o") == [(1.0, 10.0), (3.0, 30.0)]  # on the slope: bandwidth times operations a byte
    assert lines_of(top, "s") == [(8.0, 80.0)]
    assert lines_of(top, "^") == [(64.0, 200.0)]  # on the flat part
    assert [x for x, _ in lines_of(below, "o")] == [1.0, 3.0]
    assert [label.get_text() for label in below.get_yticklabels()] == ["wq", "attention"]


def test_the_ridge_is_where_both_take_as_long():
    picture = diagrams.roofline(50e9, 1e12, STEPS)
    assert "ridge: 20" in [text.get_text() for text in picture.axes[0].texts]
    assert "50 GB a second and is flat at 1 trillion operations a second; they meet at 20 operations" in picture.alt


def test_measured_steps_stand_where_they_were_measured():
    picture = diagrams.roofline(10.0, 200.0, STEPS, {"wq": {1: 0.5, 64: 0.1}})
    top = picture.axes[0]
    assert lines_of(top, "o") == [(1.0, 4.0)] and lines_of(top, "s") == []
    [(x, y)] = lines_of(top, "^")
    assert (x, y) == pytest.approx((64.0, 1280.0)) and top.get_ylim()[1] > y  # above the roof, and still in the picture


def test_bars_are_as_long_as_their_parts():
    needs = {"16 bits": {"weights": 16.0, "cache": 1.0}, "4 bits": {"weights": 5.0, "cache": 1.0}}
    picture = diagrams.memory_bars(needs, {"8 GB": 8.6})
    [ax] = picture.axes
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 16), (16, 1), (0, 5), (5, 1)]
    assert [line.get_xdata()[0] for line in ax.lines] == [8.6]
    assert "4 bits 5 GB weights, 1 GB cache" in picture.alt
    assert_words_stay_apart(picture)


TABLE = {"8B": {"16 bits": (17.1, 15.0), "4 bits": (6.5, 4.9)}, "70B": {"4 bits": (47.6, 44.0)}}


def test_the_table_says_what_fits_and_how_fast_it_is():
    picture = diagrams.will_it_run(TABLE, {"8 GB": 8.6, "16 GB": 17.2}, [20, 50, 400])
    assert "8B in 16 bits: 17.1 GB, fits into 16 GB, 1.3, 3.3, 27 tokens a second" in picture.alt
    assert "8B in 4 bits: 6.5 GB, fits into 8 GB, 4.1, 10, 82 tokens a second" in picture.alt
    assert "70B in 4 bits: 47.6 GB, fits into none of these, 0.45, 1.1, 9.1 tokens a second" in picture.alt
    words = [(text.get_text(), text.get_color()) for text in picture.axes[0].texts]
    assert [word for word, _ in words].count("yes") == 3
    assert ("27", "white") in words and ("3.3", diagrams.INK) in words and ("0.45", diagrams.GREY) in words
    assert_words_stay_apart(picture)
