"""Drawings of notebook 9: they say what the model's sizes are; and its own loader ties what is tied."""

import shutil

import pytest
import torch
from helpers import NOTEBOOKS, assert_words_stay_apart, failed_cells

from llama3_scratch import diagrams
from llama3_scratch.loading.tiny import make_tiny
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20), "no groups": ModelArgs(64, 4, 4, 300, 4, 48)}
every_model = pytest.mark.parametrize("name", MODELS)


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def padded():
    mask = torch.tensor([[1] * 20, [0] * 17 + [1] * 3])
    return [[f"word{i}" for i in range(20)] for _ in range(2)], mask


DRAWINGS = {
    "modules": lambda params: diagrams.nested_modules(params, here=diagrams.MODULES),
    "tied": lambda params: diagrams.tied_ends(params, True),
    "not tied": lambda params: diagrams.tied_ends(params, False),
    "gradient": diagrams.gradient_ways,
    "padding": lambda params: diagrams.padded_batch(*padded()),
}


@every_model
def test_the_boxes_name_every_weight_of_a_layer_with_its_shape(name):
    params = MODELS[name]
    drawn = words(diagrams.nested_modules(params))
    for key, shape in params.weight_shapes().items():
        parts = key.split(".")
        if parts[0] != "layers" or parts[1] == "0":
            places = [i for i, word in enumerate(drawn) if word == parts[-2]]
            assert any(diagrams.dims(shape) in drawn[i : i + 3] for i in places), key
    assert drawn.count("RMSNorm") == 3
    assert any(word.endswith("layers.0.attention.wq.weight") for word in drawn)


def test_the_box_that_is_lit_is_the_one_asked_for():
    picture = diagrams.nested_modules(PUBLISHED["Llama 3 8B"], here="Attention")
    lit = [t.get_text() for t in picture.axes[0].texts if t.get_color() == diagrams.LIT]
    assert lit[0] == "attention: Attention" and "Lit: Attention" in picture.alt
    with pytest.raises(ValueError, match="here must be among"):
        diagrams.nested_modules(PUBLISHED["Llama 3 8B"], here="Embedding")


@pytest.mark.parametrize("tied", [True, False])
def test_a_tie_says_which_of_the_two_the_model_is(tied):
    params = MODELS["one layer"]
    picture = diagrams.tied_ends(params, tied)
    lit = [t.get_text() for t in picture.axes[0].texts if t.get_color() == diagrams.LIT]
    assert lit == ["tied: this model" if tied else "not tied: this model"]
    assert f"{params.vocab_size * params.dim:,} numbers to learn" in words(picture)
    assert f"{2 * params.vocab_size * params.dim:,} numbers to learn" in words(picture)


def test_positions_count_tokens_and_padding_is_hatched():
    picture = diagrams.padded_batch([["a", "b", "c"], ["?", "?", "d"]], torch.tensor([[1, 1, 1], [0, 0, 1]]))
    assert [word for word in words(picture) if len(word) == 1] == ["a", "0", "b", "1", "c", "2", "d", "0"]
    assert [bool(box.get_hatch()) for box in picture.axes[0].patches] == [False, False, False, True, True, False]


@pytest.mark.parametrize("drawing", DRAWINGS)
@every_model
def test_words_stay_on_the_board_and_do_not_cover_each_other(drawing, name):
    assert_words_stay_apart(DRAWINGS[drawing](MODELS[name]))


def test_notebook_9_ties_an_output_matrix_that_is_a_second_name(tmp_path):
    folder = shutil.copytree(make_tiny("tiny-ratio3"), tmp_path / "second-name")
    weights = torch.load(folder / "consolidated.00.pth", weights_only=True)
    weights["output.weight"] = weights["tok_embeddings.weight"]
    torch.save(weights, folder / "consolidated.00.pth")
    assert not failed_cells([path for path in NOTEBOOKS if path.stem.startswith("09")], folder)
