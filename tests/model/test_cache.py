"""The KV cache by itself: its room, its views, and what it remembers of padding."""

import pytest
import torch
from helpers import naming

from llama3_scratch import KVCache, ModelArgs

PARAMS = ModelArgs(48, n_layers=3, n_heads=4, vocab_size=100, n_kv_heads=2)  # head_dim 12


@pytest.mark.parametrize(("dtype", "device"), [(torch.float32, "cpu"), (torch.bfloat16, "meta")])
def test_a_cache_has_a_key_and_a_value_for_every_position_of_every_kv_head(dtype, device):
    cache = KVCache(PARAMS, 5, 7, dtype, device)
    for t in (cache.keys, cache.values):
        assert (t.shape, t.dtype, t.device.type) == ((3, 5, 2, 7, 12), dtype, device)
    assert cache.keys.data_ptr() != cache.values.data_ptr() or device == "meta"
    assert cache.nbytes == 2 * 3 * 5 * 2 * 7 * 12 * dtype.itemsize
    assert cache.length == 0


def test_a_cache_is_float32_on_the_cpu_unless_it_is_told_otherwise():
    cache = KVCache(PARAMS, 1, 2)
    assert (cache.keys.dtype, cache.values.device.type) == (torch.float32, "cpu")


def test_a_layers_keys_and_values_are_views_up_to_an_end():
    cache = KVCache(PARAMS, 2, 5)
    keys, values = cache.layer(1, 3)
    assert keys.shape == values.shape == (2, 2, 3, 12)
    keys.fill_(1.0)
    values.fill_(2.0)
    assert (cache.keys != 0).sum() == (cache.values != 0).sum() == keys.numel()
    assert torch.equal(cache.keys[1, :, :, :3], keys) and torch.equal(cache.values[1, :, :, :3], values)


def h(seq, batch=2):
    return torch.zeros(batch, seq, PARAMS.dim)


def test_without_padding_a_cache_remembers_nothing_of_it():
    cache = KVCache(PARAMS, 2, 6)
    assert cache.update_mask(PARAMS, h(3), None) is None


def test_padding_is_remembered_and_what_came_before_or_comes_after_is_none():
    cache = KVCache(PARAMS, 2, 6)
    cache.length = 2
    new = torch.tensor([[False, True], [True, True]])
    assert cache.update_mask(PARAMS, h(2), new).tolist() == [[True, True, False, True], [True] * 4]
    cache.length = 4
    assert cache.update_mask(PARAMS, h(1), None).tolist() == [[True, True, False, True, True], [True] * 5]
    cache.length = 3  # one that was real, and the new one, are taken back
    assert cache.update_mask(PARAMS, h(1), None).tolist() == [[True, True, False, True], [True] * 4]


def test_more_than_there_is_room_for_is_refused():
    cache = KVCache(PARAMS, 2, 4)
    cache.length = 2
    cache.update_mask(PARAMS, h(2), None)
    with pytest.raises(ValueError, match=naming("2 3 cache 4")):
        cache.update_mask(PARAMS, h(3), None)


def test_what_a_cache_remembers_lies_where_the_model_computes():
    cache = KVCache(PARAMS, 2, 6, device="meta")
    is_token = torch.ones(2, 3, dtype=torch.bool, device="meta")
    remembered = cache.update_mask(PARAMS, torch.zeros(2, 3, PARAMS.dim, device="meta"), is_token)
    assert (remembered.device.type, remembered.shape) == ("meta", (2, 3))
