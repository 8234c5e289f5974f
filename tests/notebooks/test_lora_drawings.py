"""Drawings of notebook 18: what counts of a lesson, and thin matrices with the shapes that a LoRA has."""

from itertools import pairwise

import pytest
from helpers import assert_words_stay_apart
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from llama3_scratch import Llama, diagrams, lora
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20)}
every_model = pytest.mark.parametrize("name", MODELS)
QUESTION = ["the", "answer", "to", "everything", "is", "of", "course", "easy", "it", "is", "␣"]


def words(picture):
    return [text.get_text() for text in picture.axes[0].texts]


def boxes(picture):
    return [patch for patch in picture.axes[0].patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("answer", [["42"], ["4", "2"], ["f", "o", "r", "t", "y"]])
@pytest.mark.parametrize("question", [QUESTION, QUESTION[-1:]])
def test_what_counts_of_a_lesson_is_its_answer(question, answer):
    picture = diagrams.lesson(question + answer, len(answer))
    read, wanted = boxes(picture)[::2], boxes(picture)[1::2]
    lit = [to_hex(box.get_facecolor()) == diagrams.LIT.lower() for box in wanted]
    assert lit == [False] * (len(lit) - len(answer)) + [True] * len(answer)
    assert len(read) == len(wanted) == min(8, len(question + answer) - 1)
    assert words(picture).count("...") == (len(question + answer) > 9)
    assert_words_stay_apart(picture)


def test_each_token_stands_above_the_one_that_follows():
    tokens = ["a", "b", "c", "d", "e"]
    picture = diagrams.lesson(tokens, 2)
    at = {text.get_text(): [] for text in picture.axes[0].texts}
    for text in picture.axes[0].texts:
        at[text.get_text()].append(text.get_position())
    for word, follows in pairwise(tokens):
        assert min(at[word], key=lambda p: p[1])[0] == pytest.approx(max(at[follows], key=lambda p: p[1])[0])


@pytest.mark.parametrize("n_answer", [0, 3, -1])
def test_a_lesson_is_a_question_and_an_answer(n_answer):
    with pytest.raises(ValueError, match="n_answer"):
        diagrams.lesson(["a", "b", "c"], n_answer)


@every_model
@pytest.mark.parametrize("matrix", ["attention.wq", "attention.wv", "feed_forward.w2", "feed_forward.w1"])
def test_thin_matrices_have_their_shapes(name, matrix):
    params, rank = MODELS[name], 4
    picture = diagrams.low_rank(params, matrix, rank, 16)
    out_size, in_size = params.weight_shapes()[f"layers.0.{matrix}.weight"]
    for shape in ([out_size, in_size], [rank, in_size], [16, rank], [out_size, rank], [16, out_size]):
        assert diagrams.dims(shape) in words(picture)
    assert f"x {diagrams.dims([16, in_size])}" in words(picture)
    assert_words_stay_apart(picture)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("matrix", ["wq", "wv", "w2"])
def test_what_learns_is_counted_as_the_module_counts_it(matrix, fixed):
    params = MODELS["one layer"]
    model = Llama(params)
    a, b = lora.add(model, 1, names=[matrix])
    learns = b.numel() if fixed else a.numel() + b.numel()
    where = "feed_forward" if matrix == "w2" else "attention"
    picture = diagrams.low_rank(params, f"{where}.{matrix}", 1, 16, fixed)
    assert f"learns: {learns:,}" in words(picture)
    stays = getattr(getattr(model.layers[0], where), matrix).linear.weight.numel()
    assert f"stays: {stays:,} numbers" in words(picture)
    assert ("k" in words(picture), "A" in words(picture)) == (fixed, not fixed)
    assert_words_stay_apart(picture)


def test_only_matrices_of_a_layer_can_be_drawn():
    with pytest.raises(ValueError, match="name must be"):
        diagrams.low_rank(MODELS["one layer"], "attention", 1, 16)
