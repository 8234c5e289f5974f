"""Drawings of training: the lessons in a row, a batch out of a text, one step all the way round, and its memory."""

import pytest
from helpers import assert_words_stay_apart

from llama3_scratch import diagrams, training
from llama3_scratch.diagrams import FLOWS, LEARNED, LIT
from llama3_scratch.params import ModelArgs

LABELS = ["the", "␣answer", "␣to", "␣the", "␣ultimate", "␣question"]
SMALL = ModelArgs(64, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=300, multiple_of=32)


def filled(ax, colour):
    from matplotlib.colors import to_rgba

    return [patch for patch in ax.patches if hasattr(patch, "get_width") and patch.get_facecolor() == to_rgba(colour)]


def words(picture):
    return [text.get_text() for text in picture.axes[0].texts]


def test_what_is_to_be_said_is_the_row_shifted_by_one():
    picture = diagrams.lessons(LABELS, shown=2)
    at = {(round(text.get_position()[0], 3), text.get_position()[1]): text.get_text() for text in picture.axes[0].texts}
    columns = sorted({x for x, y in at if y == 0.42 and x > 1})
    assert [at[x, 0.42] for x in columns] == LABELS[:-1]
    assert [at[x, 1.97] for x in columns] == LABELS[1:]
    assert "6 tokens, read once, are 5 lessons" in words(picture)
    assert_words_stay_apart(picture)


def test_only_what_stands_to_the_left_can_be_seen():
    picture = diagrams.lessons(LABELS, shown=2)
    [ax] = picture.axes
    [now], before = filled(ax, LIT), filled(ax, FLOWS)
    hidden = [patch for patch in ax.patches if patch.get_hatch()]
    assert len(before) == 2 and all(box.get_x() < now.get_x() for box in before)
    assert len(hidden) == 2 and all(box.get_x() > now.get_x() for box in hidden)
    [said] = filled(ax, LEARNED)
    assert said.get_x() == now.get_x()
    assert "Where ␣the is to be said, the first 3 tokens can be seen, and none after them" in picture.alt


@pytest.mark.parametrize("labels", [LABELS[:2], LABELS * 5, ["a-very-long-token"] * 9])
def test_lessons_of_any_row_fit(labels):
    picture = diagrams.lessons(labels)
    assert f"{len(labels)} tokens, read once, are {len(labels) - 1} lessons" in words(picture)
    assert_words_stay_apart(picture)


def test_each_window_is_cut_where_it_starts():
    starts, tokens, held_out = [700, 0, 300], 900, 100
    picture = diagrams.windows(tokens, held_out, starts, seq_len=20, begins=["a", "b", "c", "d"])
    [ax] = picture.axes
    cut = sorted(box.get_x() for box in filled(ax, LIT))
    assert cut == pytest.approx([0.15 + 8.9 * start / 1000 for start in sorted(starts)])
    read, said = ([box for box in filled(ax, colour) if box.get_y() > 1] for colour in (FLOWS, LEARNED))
    assert len(read) == len(said) == len(starts)
    assert {"a b c ...", "b c d ..."} <= set(words(picture))  # the same, shifted by one
    assert {"read: [3, 20]", "to be said: [3, 20]", "one batch [3, 21] is 60 lessons"} <= set(words(picture))
    assert_words_stay_apart(picture)


def test_a_step_carries_the_shapes_of_the_model():
    picture = diagrams.training_step(SMALL, 8, 32, 12345)
    assert {"[8, 33]", "[8, 32, 300]", "12,345 weights", "as many numbers as weights"} <= set(words(picture))
    assert "8, 32, 300" in picture.alt and "12,345 weights" in picture.alt
    assert_words_stay_apart(picture)


def test_memory_is_cut_by_what_each_part_takes():
    needs = {"small": training.memory(SMALL, 256), "other": {"weights": 30, "gradients": 10}}
    picture = diagrams.training_memory(needs, card=15.0, name="card")
    [ax] = picture.axes
    bars = [box for box in ax.patches if box.get_height() == 0.34 and box.get_y() > 0.6]
    assert [box.get_width() for box in bars] == pytest.approx([5.9 * 0.75, 5.9 * 0.25])
    first = [box for box in ax.patches if box.get_height() == 0.34 and box.get_y() < 0.6]
    parts = [size for size in needs["small"].values() if size]
    assert [box.get_width() for box in first] == pytest.approx([5.9 * size / sum(parts) for size in parts])
    assert "3 × card" in words(picture)
    assert len({box.get_hatch() for box in first}) == len(first)  # for readers in grey
    assert_words_stay_apart(picture)


@pytest.mark.parametrize(
    ("size", "said"),
    [(4_096, "4.1 kB"), (1.05e6, "1.05 MB"), (16.06e9, "16.1 GB"), (999.8e9, "1 TB"), (1.39e12, "1.39 TB")],
)
def test_sizes_are_written_with_three_digits(size, said):
    picture = diagrams.training_memory({"one": {"weights": int(size)}})
    assert words(picture).count(said) == 2
