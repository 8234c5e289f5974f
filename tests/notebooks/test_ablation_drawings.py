"""Drawings of notebook 17's middle part: sizes are the model's, what is crossed out is what was asked for, and without
a mask the arrows lead to the answers."""

import pytest
from helpers import assert_words_stay_apart
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle

from llama3_scratch import diagrams
from llama3_scratch.diagrams.ablation import PARTS
from llama3_scratch.params import PUBLISHED, ModelArgs
from llama3_scratch.plots import COLORS

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20)}
LABELS = ["␣Alice", "␣was", "␣beginning", "␣to", "␣get", "␣very", "␣tired", "␣of"]
CROSSED = {"residual": 0, "norms": 2, "attention": 1, "rotation": 1, "mask": 1, "feed-forward": 1}


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def crosses(picture):
    """The frames of what is crossed out: (x, y, width, height)."""
    boxes = [patch for patch in picture.axes[0].patches if type(patch) is Rectangle]
    return [box.get_bbox().bounds for box in boxes if to_hex(box.get_edgecolor()) == COLORS[5].lower()]


def arrows(picture):
    """Start and end of each arrow, and its colour."""
    found = [patch for patch in picture.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    return [(*patch._posA_posB, to_hex(patch.get_edgecolor())) for patch in found]


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_says_the_models_sizes(name):
    params = MODELS[name]
    picture = diagrams.left_out(params)
    said = " ".join(words(picture)) + picture.alt
    for piece in (
        f"{params.n_heads} heads over {params.n_kv_heads}",
        f"{params.hidden_dim:,} neurons",
        f"one of {params.n_layers} layers",
        f"the stream {diagrams.dims(('seq', params.dim))}",
    ):
        assert piece in said
    assert not crosses(picture) and "Nothing is left out" in picture.alt
    assert words(picture).count("+") == 2 and words(picture).count("norm") == 2


@pytest.mark.parametrize("part", PARTS)
def test_what_is_left_out_is_crossed_out_and_nothing_else(part):
    picture = diagrams.left_out(PUBLISHED["Llama 3 8B"], part)
    assert len(crosses(picture)) == CROSSED[part]
    assert picture.alt.endswith(f"Left out: {part}.")
    names = {"norms": "norm"}.get(part, part)
    for x, y, w, h in crosses(picture):  # the name stands inside
        inside = [t.get_text() for t in picture.axes[0].texts if x <= t.get_position()[0] <= x + w]
        assert names in inside and w > 0 and h > 0 and y > 0


def test_without_the_bypass_there_is_nothing_to_add_to():
    whole, broken = (words(diagrams.left_out(PUBLISHED["Llama 3 8B"], out)) for out in ((), "residual"))
    assert whole.count("+") == 2 and "no way past" not in whole
    assert broken.count("+") == 0 and broken.count("no way past") == 2


@pytest.mark.parametrize("part", ["attention", "feed-forward"])
def test_a_half_that_is_left_out_adds_nothing(part):
    drawn = words(diagrams.left_out(PUBLISHED["Llama 3 8B"], part))
    assert drawn.count("+") == 1 and drawn.count("adds nothing") == 1


def test_a_part_that_no_layer_has_is_refused():
    with pytest.raises(ValueError, match="out must be among residual"):
        diagrams.left_out(PUBLISHED["Llama 3 8B"], "embedding")


def test_without_a_mask_each_arrow_comes_from_the_place_of_the_answer():
    picture = diagrams.one_to_the_right(LABELS)
    at = {(round(t.get_position()[0], 3), t.get_position()[1]): t.get_text() for t in picture.axes[0].texts}
    reads = {x: word for (x, y), word in at.items() if y > 1.5 and word in LABELS}
    asked = {x: word for (x, y), word in at.items() if y < 1.5 and word in LABELS}
    assert list(asked.values()) == LABELS[1:7] * 2 and list(reads.values()) == LABELS[:6] * 2
    cheats = [(start, end) for start, end, color in arrows(picture) if color == COLORS[5].lower()]
    assert len(cheats) == 5 and "?" in words(picture)
    for (start, _), (end, _) in cheats:
        source, target = (
            min(row, key=lambda x, at=place: abs(x - at)) for row, place in ((reads, start), (asked, end))
        )
        assert reads[source] == asked[target]
    honest = [(start[0], end[0]) for start, end, color in arrows(picture) if color != COLORS[5].lower()]
    assert all(start <= end for start, end in honest)  # what it sees stands before, or is itself


@pytest.mark.parametrize("labels", [LABELS, LABELS[:3], [f"a-longer-token-{i}" for i in range(8)]])
def test_the_words_of_the_cheaters_text_stay_apart(labels):
    assert_words_stay_apart(diagrams.one_to_the_right(labels))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", [(), *PARTS])
def test_the_words_of_a_layer_stay_apart(name, part):
    assert_words_stay_apart(diagrams.left_out(MODELS[name], part))
