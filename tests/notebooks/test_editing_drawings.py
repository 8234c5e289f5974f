"""The drawing of the second half of notebook 18: what is computed once, and what in every step."""

import pytest
from helpers import assert_words_stay_apart

from llama3_scratch import diagrams
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one layer": ModelArgs(36, 1, 6, 300, 2, 20)}


def words(picture):
    return [text.get_text() for text in picture.axes[0].texts]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_every_layer_stands_on_one_side_of_the_changed_one(name, place):
    p = MODELS[name]
    layer = {"first": 0, "middle": p.n_layers // 2, "last": p.n_layers - 1}[place]
    picture = diagrams.below_once(p, layer, 18)
    drawn, above = words(picture), p.n_layers - 1 - layer
    assert (f"{layer} below" if layer else "none below") in drawn
    assert (f"{above} above" if above else "none above") in drawn
    assert f"layer {layer}" in drawn
    assert f"kept {diagrams.dims((18, p.dim))}" in drawn
    assert f"{p.dim + p.hidden_dim:,} numbers" in picture.alt
    assert_words_stay_apart(picture)


def test_a_changed_size_shows():
    p = PUBLISHED["Llama 3 8B"]
    told = {repr(diagrams.below_once(p, layer, tokens)) for layer in (3, 4) for tokens in (16, 17)}
    assert len(told) == 4
