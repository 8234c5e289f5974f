"""Drawings of notebook 10: they count what they show, say what the model's sizes are, and a planted fault shows."""

import pytest
import torch
from helpers import assert_words_stay_apart
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from llama3_scratch import diagrams, functional
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20)}
every_model = pytest.mark.parametrize("name", MODELS)


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def cells(picture, fill):
    """The rectangles of one colour."""
    patches = [p for p in picture.axes[0].patches if isinstance(p, Rectangle)]
    return [p for p in patches if to_hex(p.get_facecolor()).lower() == fill.lower()]


@pytest.mark.parametrize(("prompt", "new"), [(4, 8), (2, 8), (16, 8), (1, 1), (40, 30)])
def test_the_work_is_counted_as_it_is_drawn(prompt, new):
    picture = diagrams.work(prompt, new)
    scratch, cached = sum(range(prompt, prompt + new)), prompt + new - 1
    drawn = words(picture)
    assert f"from scratch: {scratch:,} positions computed" in drawn
    assert f"with a cache: {cached:,} positions computed" in drawn
    assert len(cells(picture, diagrams.LIT)) == scratch + cached
    assert len(cells(picture, diagrams.FLOWS)) == scratch - cached  # what is kept need not be computed
    assert f"{scratch:,} cells" in picture.alt and f"{cached:,} cells" in picture.alt


@pytest.mark.parametrize("cases", [[(0, 5), (5, 3), (8, 1)], [(0, 2), (7, 4)]])
def test_the_rows_of_the_mask_are_those_of_causal_mask(cases, monkeypatch):
    picture = diagrams.new_rows(cases)
    closed = sum(int(functional.causal_mask(new, start_pos=kept).isinf().sum()) for kept, new in cases)
    hatched = [p for p in cells(picture, "#ffffff") if p.get_hatch()]
    assert len(hatched) == closed + 1  # and one in the legend
    assert len(cells(picture, diagrams.FLOWS)) == sum(kept * new for kept, new in cases) + 1
    for kept, new in cases:
        assert f"{new} new behind {kept}: [{new}, {kept + new}]" in words(picture)
    monkeypatch.setattr(functional, "causal_mask", lambda n, start_pos: torch.zeros(n, start_pos + n))
    assert len([p for p in cells(diagrams.new_rows(cases), "#ffffff") if p.get_hatch()]) == 1


@every_model
def test_a_new_token_has_the_shapes_of_the_model(name):
    p = MODELS[name]
    for kept in (1, 4, 9, 10, 300):
        drawn = words(diagrams.new_token(p, kept))
        for shape in ((1, p.dim), (1, p.n_heads, p.head_dim), (1, p.n_kv_heads, p.head_dim)):
            assert diagrams.dims(shape) in drawn
        assert f"scores {diagrams.dims((1, kept + 1))}" in drawn and f"keys: {kept} kept, one new" in drawn


@every_model
def test_the_cache_fills_from_the_left(name):
    p, moments = MODELS[name], [0, 4, 5, 6]
    picture = diagrams.cache_filling(p, 12, moments)
    assert len(cells(picture, diagrams.LIT)) == 4 + 1 + 1
    assert len(cells(picture, diagrams.FLOWS)) == 4 + 5
    assert len(cells(picture, "#ffffff")) == 12 * 4 - sum(moments)
    lit = cells(picture, diagrams.LIT)
    assert min(c.get_x() for c in lit) == min(c.get_x() for c in cells(picture, "#ffffff"))
    assert diagrams.dims((p.n_layers, 1, p.n_kv_heads, 12, p.head_dim)) in " | ".join(words(picture))


def test_the_dart_board_is_as_wide_as_the_probabilities():
    probs = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04])
    cut = torch.tensor([0.625, 0.25, 0.125, 0.0, 0.0])
    picture = diagrams.dart_board({"all": probs, "cut": cut}, {0: "a", 2: "c"}, [0.1, 0.9])
    widths = [p.get_width() for p in picture.axes[0].patches]
    assert widths == pytest.approx([0.5, 0.2, 0.3, 0.625, 0.125, 0.25])
    starts = [p.get_x() for p in picture.axes[0].patches]
    assert starts == pytest.approx([0, 0.5, 0.7, 0, 0.625, 0.75])
    assert "3 others" in words(picture) and "1 others" in words(picture)
    assert list(picture.axes[0].lines[0].get_xdata()) == [0.1, 0.9]
    moved = diagrams.dart_board({"all": probs.flip(0), "cut": cut}, {0: "a", 2: "c"}, [0.1, 0.9])
    assert repr(moved) != repr(picture)


def test_a_conversation_says_which_tokens_are_control_tokens():
    tokens = ["<|begin_of_text|>", "<|start|>", "user", "<|end|>", "\n\n", "Hi", "<|eot_id|>"]
    control = [token.startswith("<|") for token in tokens]
    picture = diagrams.chat_tokens(tokens, control, [False] * 5 + [True] * 2)
    assert words(picture) == [token.replace("\n", "\\n") for token in tokens]
    assert len(cells(picture, "#1F4E79")) == 4 and len(cells(picture, diagrams.LEARNED)) == 2
    assert "7 tokens, 4 of them control tokens; 2 of them are trained on" in picture.alt


def test_turns_show_what_was_kept_read_and_written():
    picture = diagrams.turns([(0, 37, 7), (44, 15, 7)])
    drawn = words(picture)
    assert [word for word in drawn if word.isdigit()] == ["37", "7", "44", "15", "7"]
    assert "turn 2: 44 kept, 15 read, 7 written" in picture.alt


PICTURES = {
    "work": lambda: diagrams.work(16, 8),
    "new_rows": diagrams.new_rows,
    "new_token": lambda: diagrams.new_token(PUBLISHED["Llama 3.1 405B"], 300),
    "cache_filling": lambda: diagrams.cache_filling(PUBLISHED["Llama 3.1 405B"], 12, [0, 4, 5, 11]),
    "turns": lambda: diagrams.turns([(0, 37, 7), (44, 15, 7)]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_words_stay_on_the_board_and_do_not_cover_each_other(name):
    assert_words_stay_apart(PICTURES[name]())
