"""The drawings of notebooks 1 and 2: what was given is what is drawn, and told to those who cannot see it."""

from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from llama3_scratch import diagrams
from llama3_scratch.params import PUBLISHED, ModelArgs

NAMES = ["contraction", "word", "number"]
AWKWARD = ["$x$", "\\n", "_a", "你", "%{}", "U+200B", "a" * 40]
PARAMS = ModelArgs(dim=8, n_layers=2, n_heads=2, vocab_size=1000)


def words(picture):
    return [text.get_text() for text in picture.axes[0].texts]


def boxes(picture):
    return [patch for patch in picture.axes[0].patches if isinstance(patch, Rectangle)]


def test_a_piece_has_the_colour_and_hatch_of_its_rule():
    picture = diagrams.cut_by_rule(["I", "'ve", "␣2"], [1, 0, 1], NAMES)
    looks = [(to_hex(box.get_facecolor()), box.get_hatch()) for box in boxes(picture)]
    assert looks[0] == looks[2] != looks[1]
    assert looks[3:] == [looks[1], looks[0]]  # the list of rules below, in their order
    assert words(picture) == ["I", "'ve", "␣2", "1. contraction", "2. word"]  # rules that made no piece are left out
    assert picture.alt.endswith("I (word), 've (contraction), ␣2 (word).")


def test_another_rule_changes_what_is_stored():
    one, other = (diagrams.cut_by_rule(["a", "b"], rules, NAMES) for rules in ([0, 1], [0, 2]))
    assert repr(one) != repr(other)


def test_long_texts_wrap():
    picture = diagrams.cut_by_rule(["word"] * 60, [1] * 60, NAMES)
    assert max(box.get_x() + box.get_width() for box in boxes(picture)) < 9.2
    assert len({box.get_y() for box in boxes(picture)[:60]}) > 2


def test_the_steps_of_the_tokenizer_show_text_pieces_tokens_and_ids():
    picture = diagrams.tokenizer_steps(["Such", "␣joy"], [["Such"], ["␣j", "oy"]], [[21365], [503, 2303]])
    assert {"Such␣joy", "Such", "␣joy", "␣j", "oy", "21365", "503", "2303", "cut", "merge"} <= set(words(picture))
    assert "␣joy becomes ␣j 503, oy 2303" in picture.alt


def test_the_steps_of_the_tokenizer_must_fit_each_other():
    with pytest.raises(ValueError, match="zip"):
        diagrams.tokenizer_steps(["a"], [["a"]], [[1, 2]])


def test_equal_ids_have_the_look_of_one_row_of_the_table():
    picture = diagrams.text_to_rows(["a", "b", "a"], [7, 900, 7], PARAMS)
    strips = [box for box in boxes(picture) if box.get_height() == pytest.approx(0.18)]
    rows = [box for box in boxes(picture) if box.get_height() == pytest.approx(0.13)]
    looks = [(to_hex(box.get_facecolor()), box.get_hatch()) for box in strips]
    assert looks[0] == looks[2] != looks[1]
    assert [(to_hex(row.get_facecolor()), row.get_hatch()) for row in rows] == looks[:2]
    assert rows[0].get_y() < rows[1].get_y()
    assert "[3, 8]" in " ".join(words(picture))


@pytest.mark.parametrize("ids", [[0], [999] * 6, [0, 1, 2, 3, 4, 5], [994, 995, 996, 997, 998, 999]])
def test_rows_stay_in_the_table_and_apart(ids):
    picture = diagrams.text_to_rows(["x"] * len(ids), ids, PARAMS)
    rows = sorted(box.get_y() for box in boxes(picture) if box.get_height() == pytest.approx(0.13))
    assert len(rows) == len(set(ids))
    assert rows[0] >= 0.45 and rows[-1] + 0.13 <= 0.45 + 1.75 + 1e-9
    assert all(after - before >= 0.13 for before, after in pairwise(rows))


def test_parameters_are_drawn_in_proportion_and_a_shared_part_is_named():
    models = {"tied": {"a": 30, "b": 70, "c": 0}, "not tied": {"a": 20, "b": 60, "c": 20}}
    picture = diagrams.parameter_bars(models)
    widths = [box.get_width() / 9 for box in boxes(picture)[:6]]
    assert widths == pytest.approx([0.3, 0.7, 0, 0.2, 0.6, 0.2])
    assert words(picture).count("shared") == 1
    assert "tied: 100 parameters" in words(picture) and "c 20.0%" in picture.alt


def test_arrows_lie_where_the_numbers_say():
    picture = diagrams.along([("man", "woman"), ("dog", "dog")], [(-0.8, -0.1), (0.2, 0.2)], "title", "way")
    before, after = picture.axes[0].lines[1:3]
    assert list(before.get_xdata()) == [-0.8, 0.2] and list(after.get_xdata()) == [-0.1, 0.2]
    assert "man -0.80 to woman -0.10" in picture.alt


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_awkward_labels_are_drawn_as_they_are():
    n = len(AWKWARD)
    for picture in (
        diagrams.cut_by_rule(AWKWARD, [0] * n, NAMES),
        diagrams.tokenizer_steps(AWKWARD, [[label] for label in AWKWARD], [[i] for i in range(n)]),
        diagrams.text_to_rows(AWKWARD, list(range(n)), PUBLISHED["Llama 3 8B"]),
        diagrams.along([(label, label) for label in AWKWARD], [(0.0, 1.0)] * n),
    ):
        data, metadata = picture._repr_mimebundle_()
        assert data["image/png"] and metadata["image/png"]["alt"] == picture.alt
        assert "$x$" in " ".join(words(picture))
