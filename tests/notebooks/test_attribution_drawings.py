"""Drawings of notebook 13, second half: they count what they show, and one with other sizes is told apart."""

import pytest
from helpers import assert_words_stay_apart
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from llama3_scratch import diagrams
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20)}
FRANCE = ["The", "␣capital", "␣of", "␣France", "␣is"]
JAPAN = ["The", "␣capital", "␣of", "␣Japan", "␣is"]


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def cells(picture, fill):
    """The rectangles of one colour."""
    patches = [p for p in picture.axes[0].patches if isinstance(p, Rectangle)]
    return [p for p in patches if to_hex(p.get_facecolor()).lower() == fill.lower()]


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_a_logit_are_counted(name):
    p = MODELS[name]
    picture = diagrams.logit_parts(p, " Paris", " Tokyo")
    parts = 1 + p.n_layers + p.n_layers * p.n_heads
    assert f"1 + {p.n_layers} x ({p.n_heads} + 1) = {parts:,} vectors, added up" in words(picture)
    assert f"attention: {p.n_heads} heads" in words(picture) and diagrams.dims((p.dim,)) in words(picture)
    assert "row of ␣Paris\nless row of ␣Tokyo" in words(picture)
    assert f"{parts:,} vectors of {p.dim:,}" in picture.alt


@pytest.mark.parametrize(("row", "place"), [(0, 3), (23, 3), (30, 4), (1, 0)])
def test_a_vector_reaches_what_is_above_it_and_behind_it(row, place):
    picture = diagrams.patched_runs(FRANCE, JAPAN, 30, row, place)
    assert len(cells(picture, diagrams.LIT)) == 2  # where it is taken from, and where it is put
    above = len([word for word in words(picture) if word.startswith("after layer") and int(word.split()[-1]) >= row])
    assert len(cells(picture, "#8CBEDF")) == above * (len(FRANCE) - place)
    assert ("embeddings" if row == 0 else f"after layer {row - 1}") in words(picture)
    strong = [text.get_text() for text in picture.axes[0].texts if text.get_weight() == "bold"]
    assert strong == ["␣Japan", "␣France"]
    assert f"at position {place}" in picture.alt


@pytest.mark.parametrize(("seq", "window", "kept"), [(40, 16, [0]), (40, 16, []), (12, 3, [0, 1, 2, 3]), (5, 9, [0])])
def test_a_cache_forgets_what_is_neither_recent_nor_kept(seq, window, kept):
    picture = diagrams.forgetful_cache(seq, window, kept)
    recent = min(window, seq)
    both = len(set(kept) | set(range(seq - recent, seq)))
    counts = [word for word in words(picture) if word.endswith("keys and values")]
    assert counts == [f"{n:,} keys and values" for n in (seq, recent, both)]
    assert len(cells(picture, diagrams.LIT)) == 3
    assert len(cells(picture, "#ffffff")) == seq - recent + seq - both
    assert f"{both} in all" in picture.alt


PICTURES = {
    "logit_parts": lambda: diagrams.logit_parts(PUBLISHED["Llama 3.1 405B"], " Constantinople", " Washington"),
    "patched_runs": lambda: diagrams.patched_runs(FRANCE, JAPAN, 126, 23, 3),
    "patched_runs, at the top": lambda: diagrams.patched_runs(FRANCE, JAPAN, 2, 2, 4),
    "forgetful_cache": lambda: diagrams.forgetful_cache(40, 16, [0]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_words_stay_on_the_board_and_do_not_cover_each_other(name):
    assert_words_stay_apart(PICTURES[name]())


def test_another_place_is_another_picture():
    told = {repr(diagrams.patched_runs(FRANCE, JAPAN, 30, row, place)) for row in (0, 22, 23) for place in (3, 4)}
    assert len(told) == 6
