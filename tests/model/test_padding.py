"""Padding and positions, number by number. What becomes of them in the model is in test_model.py."""

import pytest
import torch
from helpers import naming

from llama3_scratch.padding import pad, positions_and_mask

INF = torch.inf


def test_padding_fills_up_on_the_side_that_was_asked_for():
    tokens, mask = pad([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    tokens, mask = pad([[5, 6, 7], [8]], "right")
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokens.dtype == torch.int64


@pytest.mark.parametrize(("nothing", "what"), [([], "prompts"), ([[], []], "tokens"), ([[1], []], "tokens")], ids=str)
def test_nothing_cannot_be_padded(nothing, what):
    with pytest.raises(ValueError, match=naming(what)):
        pad(nothing)


def test_ids_of_any_vocabulary_that_there_can_be_are_padded():
    assert pad([[0, 2**31 - 1]])[0].tolist() == [[0, 2**31 - 1]]
    with pytest.raises(ValueError, match=naming("ids 2147483648")):
        pad([[2**31]])


def h(batch, seq, **where):
    return torch.zeros(batch, seq, 4, **where)


def test_a_single_token_looks_at_everything_and_needs_no_mask():
    positions, mask = positions_and_mask(7, h(2, 1), None)
    assert positions.tolist() == [7] and mask is None


def test_tokens_without_padding_count_on_and_look_back():
    positions, mask = positions_and_mask(2, h(1, 2), None)
    assert positions.tolist() == [2, 3]
    assert mask.tolist() == [[0, 0, 0, -INF], [0, 0, 0, 0]]


def test_padding_takes_no_position_and_is_looked_at_by_itself_alone():
    is_token = torch.tensor([[False, True, False, True], [True, True, True, True]])
    positions, mask = positions_and_mask(0, h(2, 4), is_token)
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].tolist() == [
        [0, -INF, -INF, -INF],  # itself
        [-INF, 0, -INF, -INF],
        [-INF, 0, 0, -INF],  # itself, and what came before
        [-INF, 0, -INF, 0],
    ]
    assert mask[1, 0].tolist() == [[0, *[-INF] * 3], [0, 0, -INF, -INF], [0, 0, 0, -INF], [0] * 4]


def test_what_continues_padded_texts_counts_their_tokens():
    is_token = torch.tensor([[False, True, True, True], [True, True, True, False]])
    positions, mask = positions_and_mask(3, h(2, 1), is_token)
    assert positions.tolist() == [[2], [2]]
    assert mask.tolist() == [[[[-INF, 0, 0, 0]]], [[[0, 0, 0, 0]]]]  # the last may look at itself, though it is padding


@pytest.mark.parametrize("padded", [False, True])
def test_positions_and_mask_lie_where_the_model_computes_and_in_its_type(padded):
    where = {"device": "meta", "dtype": torch.bfloat16}
    is_token = torch.ones(2, 5, dtype=torch.bool, device="meta") if padded else None
    positions, mask = positions_and_mask(2, h(2, 3, **where), is_token)
    assert (positions.device.type, mask.device.type, mask.dtype) == ("meta", "meta", torch.bfloat16)
