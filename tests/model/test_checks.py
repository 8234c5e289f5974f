"""Where the guards draw their lines: the last value that is taken, and the first that is not."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import naming

from llama3_scratch import KVCache, Llama, ModelArgs, functional, generate, load_checkpoint
from llama3_scratch.checks import (
    check_finite,
    check_logits,
    check_prompt,
    check_sampling,
    check_to_sample,
    check_tokens,
)
from llama3_scratch.messages import CheckpointError

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512, "n_kv_heads": 2, "multiple_of": 32}


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("n_layers", 1, 0),
        ("n_layers", 10_000, 10_001),
        ("vocab_size", 1, 0),
        ("vocab_size", 2**31, 2**31 + 1),
        ("dim", 2**16, 2**31 + 8),
        ("context_len", 1, 0),
        ("multiple_of", 2**31, 2**31 + 1),
        ("rope_old_context_len", 1, 0),
        ("norm_eps", 5e-324, 0.0),
        ("norm_eps", 9.9e29, 1e30),
        ("norm_eps", 1, -1),
        ("rope_theta", 1, math.nan),
        ("rope_scale_factor", None, 0),
        ("ffn_dim_multiplier", None, 0.0),
        ("rope_low_freq_factor", 3.999, 4.0),
        ("rope_high_freq_factor", 1.001, 1.0),
        ("n_kv_heads", 4, 3),
        ("n_heads", 2, 3),
        ("n_heads", 32, 64),  # heads of two numbers, and of one
        ("use_scaled_rope", True, 1),
        ("ffn_dim_multiplier", 1e6, 1e9),
    ],
)
def test_a_models_sizes_have_limits(name, taken, refused):
    sizes = SIZES | {name: taken}
    if name == "n_heads":
        sizes["n_kv_heads"] = 1
    params = ModelArgs(**sizes)
    assert getattr(params, name) == taken
    with pytest.raises(ValueError, match=naming("hidden size" if refused == 1e9 else name)):
        ModelArgs(**sizes | {name: refused})


@pytest.mark.parametrize("name", ["norm_eps", "rope_theta", "rope_low_freq_factor", "rope_high_freq_factor"])
@pytest.mark.parametrize("value", [None, True, "1"])
def test_a_number_that_must_be_there_is_no_other_thing(name, value):
    with pytest.raises(ValueError, match=naming(name)):
        ModelArgs(**SIZES | {name: value})


def test_sizes_do_not_change_after_they_were_looked_at():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelArgs(**SIZES).dim = 0


@pytest.fixture
def short_model(tiny_folder):
    """A model of two layers that was trained for texts of five tokens."""
    ckpt = load_checkpoint(tiny_folder("tiny-ratio1"))
    model = Llama.from_checkpoint(ckpt)
    model.params = dataclasses.replace(ckpt.params, context_len=5)
    return model


def test_as_many_tokens_as_the_model_was_trained_for_are_taken_and_not_one_more(short_model):
    weights = dict(short_model.named_parameters())
    assert len(functional.forward([1] * 5, weights, short_model.params)) == 5
    assert len(short_model([1] * 5)) == 5
    cache = KVCache(short_model.params, 1, 9)
    with torch.no_grad():
        short_model([1] * 4, cache)
        short_model([1], cache)
    for call, words in (
        (lambda: functional.forward([1] * 6, weights, short_model.params), "6 5 params.context_len"),
        (lambda: short_model([1] * 6), "6 5 params.context_len"),
        (lambda: short_model([1], cache), "6 5 params.context_len"),
        (lambda: generate(short_model, [1] * 4, max_new_tokens=2), "4 2 5 params.context_len"),
    ):
        with pytest.raises(ValueError, match=naming(words)):
            call()
    assert len(list(generate(short_model, [1] * 4, max_new_tokens=1))) == 1


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"temperature": 0}, True),
        ({"temperature": -5e-324}, False),
        ({"temperature": 1.7976931348623157e308}, True),
        ({"temperature": 10**309}, False),
        ({"top_p": 5e-324}, True),
        ({"top_p": 0.0}, False),
        ({"top_p": 1}, True),
        ({"top_p": 1.0000000000000002}, False),
        ({"top_k": 1}, True),
        ({"top_k": 0}, False),
        ({"top_k": np.int64(1)}, True),
        ({"temperature": np.bool_(True)}, False),
    ],
    ids=str,
)
def test_settings_of_sampling_have_limits(settings, taken):
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": None} | settings
    if taken:
        check_sampling(**settings)
    else:
        with pytest.raises(ValueError):
            check_sampling(**settings)


@pytest.mark.parametrize("options", [{"seed": 0}, {"seed": 2**63 - 1}, {"max_new_tokens": 0}], ids=str)
def test_settings_of_writing_at_their_limits_are_taken(short_model, options):
    assert len(list(generate(short_model, [1], temperature=1.0, **({"max_new_tokens": 1} | options)))) <= 1


def test_a_stop_token_may_be_a_tensor(short_model):
    [first] = generate(short_model, [1], max_new_tokens=1)
    assert list(generate(short_model, [1], max_new_tokens=1, stop_tokens=[torch.tensor(first)])) == []


@pytest.mark.parametrize("length", [-1, 9, 1.0, True, None])
def test_a_length_that_a_cache_cannot_have_is_refused(short_model, length):
    cache = KVCache(short_model.params, 1, 8)
    cache.length = length
    with pytest.raises(ValueError, match=naming("cache.length 8")):
        cache.update_mask(short_model.params, torch.zeros(1, 1, 64), None)


@pytest.mark.parametrize("other", [{"n_layers": 3}, {"n_kv_heads": 2}, {"dim": 128}])
def test_a_cache_of_a_model_of_other_sizes_is_refused(short_model, other):
    params = dataclasses.replace(short_model.params, **other)
    with pytest.raises(ValueError, match=naming("cache another model")):
        KVCache(short_model.params, 1, 8).update_mask(params, torch.zeros(1, 1, params.dim), None)


def test_a_cache_elsewhere_than_the_model_is_refused(short_model):
    cache = KVCache(short_model.params, 1, 8, device="meta")
    with pytest.raises(ValueError, match=naming("cache meta cpu")):
        cache.update_mask(short_model.params, torch.zeros(1, 1, 64), None)


@pytest.mark.parametrize(
    ("logits", "problem"),
    [
        ([1.0, 2.0], None),
        ([3e38, 3e38, 3e38], None),  # their sum is not finite, and they are
        ([1.0, math.inf], "overflowed"),
        ([1.0, math.nan], "overflowed"),
    ],
    ids=str,
)
def test_logits_are_looked_at_and_weights_only_where_they_are_wrong(logits, problem):
    logits, fine, wrong = torch.tensor(logits), {"w": torch.ones(2)}, {"v": torch.ones(2), "w": torch.tensor(math.nan)}
    if problem is None:
        assert check_logits(logits, wrong) is logits
        return
    with pytest.raises(ValueError, match=naming(f"logits {problem}")) as raised:
        check_logits(logits, fine)
    assert type(raised.value) is ValueError
    with pytest.raises(CheckpointError, match=naming("w NaN")):
        check_logits(logits, wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found_among_many(value):
    weight = torch.arange(100.0)
    check_finite({"w": weight})
    weight[50] = value
    with pytest.raises(CheckpointError, match=naming("file.pth: w NaN infinity download")):
        check_finite({"w": weight}, "file.pth: ")


@pytest.mark.parametrize("logits", [torch.ones(0), torch.ones(3).long(), torch.tensor([0.0, math.nan])], ids=str)
def test_logits_that_nobody_can_draw_from_are_refused(logits):
    with pytest.raises(ValueError, match=naming("logits")):
        check_to_sample(logits)


def test_ids_at_both_ends_of_the_vocabulary_are_taken():
    assert check_tokens([0, 511], 512).dtype == torch.int64
    for ids in ([0, 512], [-1, 0]):
        with pytest.raises(ValueError, match=naming("ids 511")):
            check_tokens(ids, 512)


@pytest.mark.parametrize("tokens", [[5, 6], (5, 6), [[5, 6]], torch.tensor([5, 6]), torch.tensor([[5, 6]])], ids=str)
def test_a_prompt_is_one_list_of_ids(tokens):
    assert check_prompt(tokens, 10) == [5, 6]


def test_a_prompt_may_be_read_once_only():
    assert check_prompt(iter([5, 6]), 10) == [5, 6]


@pytest.mark.parametrize("tokens", [[[5], [6]], [[5], [6, 7]], torch.tensor([[5], [6]]), torch.ones(1, 1, 2).long()])
def test_several_prompts_are_not_one(tokens):
    with pytest.raises(ValueError, match=naming("one prompt generate_batch")):
        check_prompt(tokens, 10)
