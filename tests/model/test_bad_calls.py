"""Calls that cannot be: each is refused before any work, in one sentence of our own."""

import numpy as np
import pytest
import torch
from helpers import naming

from llama3_scratch import (
    KVCache,
    Llama,
    ModelArgs,
    Tokenizer,
    encode_chat,
    functional,
    generate,
    generate_batch,
    generate_text,
    load_checkpoint,
)
from llama3_scratch.generation import sample
from llama3_scratch.padding import pad

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def ckpt(tiny_folder):
    return load_checkpoint(tiny_folder("tiny-ratio1"))


@pytest.fixture(scope="module")
def model(ckpt):
    return Llama.from_checkpoint(ckpt)


def refused(call, kind, words):
    with pytest.raises(kind, match=naming(words)) as raised:
        call()
    assert type(raised.value) is kind
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


IDS = {
    "none": ([], ValueError, "tokens one"),
    "none in a batch": ([[], []], ValueError, "tokens one"),
    "negative": ([1, -1], ValueError, "ids 0 511 -1"),
    "one too large": ([1, 512], ValueError, "ids 0 511 512"),
    "larger than any integer": ([2**70], ValueError, "ids integers 511"),
    "beyond 2^63": (torch.tensor([2**63 + 1], dtype=torch.uint64), ValueError, "ids 511"),
    "floats": ([1.0, 2.0], TypeError, "ids integers torch.float32"),
    "truths": ([True, False], TypeError, "ids integers torch.bool"),
    "complex": (torch.tensor([1j]), TypeError, "ids integers torch.complex64"),
    "lists of unequal length": ([[1, 2], [3]], ValueError, "lists equal length padding.pad"),
    "a list and a number": ([[1, 2], 3], TypeError, "lists equal length"),
    "a text": ("abc", TypeError, "ids integers"),
    "texts": (["a"], ValueError, "ids integers"),
    "nothing": (None, TypeError, "ids integers"),
    "a single number": (5, ValueError, "list ids 5"),
    "a sparse tensor": (torch.tensor([1]).to_sparse(), TypeError, "plain tensor"),
    "longer than the model takes": ([1] * 8193, ValueError, "8193 8192 params.context_len"),
}


@pytest.mark.parametrize("ids", IDS)
def test_ids_that_cannot_be_are_refused(ckpt, model, ids):
    tokens, kind, words = IDS[ids]
    refused(lambda: functional.forward(tokens, ckpt.weights, ckpt.params), kind, words)
    refused(lambda: model(tokens), kind, words)


@pytest.mark.parametrize("ids", [ids for ids in IDS if "unequal" not in ids])
def test_so_they_are_as_a_prompt(model, ids):
    with pytest.raises((ValueError, TypeError), match=r"token|list"):
        generate(model, IDS[ids][0])


def test_ids_of_any_integer_kind_are_taken(ckpt):
    expected = functional.forward([1, 2, 3], ckpt.weights, ckpt.params)
    kinds = (np.array([1, 2, 3]), range(1, 4), (1, 2, 3), [torch.tensor(1), torch.tensor(2), torch.tensor(3)])
    for tokens in (*kinds, torch.tensor([1, 2, 3], dtype=torch.uint8)):
        torch.testing.assert_close(functional.forward(tokens, ckpt.weights, ckpt.params), expected, rtol=0, atol=0)


SETTINGS = {
    "temperature": (-1, NAN, INF, "1", None, True, 10**400),
    "top_p": (0, -0.5, 1.5, NAN, "1", None),
    "top_k": (0, -1, 1.5, "1", True, NAN),
    "max_new_tokens": (-1, 1.5, None, "1", NAN, True),
    "seed": (-1, 1.5, "1", 2**63, True),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SETTINGS.items() for value in values])
def test_settings_that_cannot_be_are_refused(model, name, value):
    refused(lambda: generate(model, [1], **{name: value}), ValueError, name)


@pytest.mark.parametrize("value", [None, 5, "stop", [1.5], [None], [[1]], [NAN]])
def test_stop_tokens_that_cannot_be_are_refused(model, value):
    refused(lambda: generate(model, [1], stop_tokens=value), TypeError, "stop_tokens")


def test_settings_of_numpy_are_taken(model):
    settings = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "top_k": np.int32(9)}
    expected = list(generate(model, [1], 3, temperature=0.5, top_k=9, seed=1))
    assert list(generate(model, [1], seed=np.int64(1), **settings)) == expected


def test_something_else_in_the_place_of_an_argument_is_refused(ckpt, model):
    refused(lambda: generate(ckpt, [1]), TypeError, "model Llama")
    refused(lambda: Llama(ckpt), TypeError, "params ModelArgs Llama.from_checkpoint")
    refused(lambda: KVCache(ckpt, 1, 8), TypeError, "params ModelArgs")
    refused(lambda: generate_text(model, None, "hi"), TypeError, "tokenizer checkpoint")
    refused(lambda: encode_chat(ckpt, [{"role": "user", "content": "hi"}]), TypeError, "tokenizer checkpoint")
    refused(lambda: model([1], cache=(1, 2)), TypeError, "cache KVCache")
    refused(lambda: load_checkpoint(5), TypeError, "folder name 5")
    refused(lambda: Tokenizer(None), TypeError, "path tokenizer")
    refused(lambda: sample([1.0, 2.0]), TypeError, "logits tensor")


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.complex64, "bfloat16", float])
def test_a_type_that_weights_cannot_have_is_refused(ckpt, dtype):
    refused(lambda: load_checkpoint(ckpt.path, dtype=dtype), ValueError, "dtype torch.bfloat16 float16 float32 float64")
    refused(
        lambda: Llama.from_checkpoint(ckpt, dtype=dtype), ValueError, "dtype torch.bfloat16 float16 float32 float64"
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 1.5, "meta:x"])
def test_a_device_that_is_not_here_is_refused(ckpt, device):
    refused(lambda: load_checkpoint(ckpt.path, device=device), ValueError, "device machine cpu")


def test_several_texts_are_refused_where_one_is_continued(ckpt, model):
    refused(lambda: generate_text(model, ckpt.tokenizer, [[1, 2], [3]]), ValueError, "one prompt generate_batch")


def test_a_single_id_is_no_list_of_prompts(model):
    refused(lambda: generate_batch(model, 5), ValueError, "list of ids single 5")


@pytest.mark.parametrize("write", [generate_batch, lambda model, prompts: pad(prompts)], ids=["generate_batch", "pad"])
def test_prompts_in_lists_of_lists_are_refused(model, write):
    refused(lambda: write(model, [[[1, 2]]]), ValueError, "nested deeper")
    refused(lambda: write(model, [[1, 2], [[3, 4]]]), ValueError, "nested deeper")


@pytest.mark.parametrize("several", [[(1, 2), (3,)], ([1, 2], (3,)), [[1], [2, 3]]], ids=str)
def test_several_prompts_of_several_lengths_are_told_where_to_go(model, several):
    refused(lambda: generate(model, several), ValueError, "one prompt generate_batch")


SIZES = {"batch_size": [(0, 8), (-1, 8), (1.5, 8), (True, 8)], "max_seq_len": [(1, 0), (1, None), (1, 2**70)]}
SIZES["max_seq_len"].append((2**30, 2**30))  # no memory for so much


@pytest.mark.parametrize(("name", "sizes"), [(name, sizes) for name, many in SIZES.items() for sizes in many])
def test_a_cache_that_cannot_be_is_refused(ckpt, name, sizes):
    refused(lambda: KVCache(ckpt.params, *sizes), ValueError, name)


def test_a_cache_of_another_model_type_or_size_is_refused(ckpt, model):
    other = ModelArgs(64, n_layers=3, n_heads=4, vocab_size=512)
    refused(lambda: model([1], cache=KVCache(other, 1, 8)), ValueError, "cache another model")
    half = KVCache(ckpt.params, 1, 8, torch.bfloat16)
    refused(lambda: model([1], cache=half), ValueError, "cache torch.bfloat16 torch.float32")
    refused(lambda: model([[1], [2]], cache=KVCache(ckpt.params, 1, 8)), ValueError, "2 prompts cache 1")
    refused(lambda: model([1] * 9, cache=KVCache(ckpt.params, 1, 8)), ValueError, "9 cache 8")


MASKS = [torch.ones(1, 2), torch.ones(3), [1, 1], torch.tensor([0.5, 1]), torch.tensor([0, -INF])]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_an_attention_mask_that_cannot_be_is_refused(model, mask):
    refused(lambda: model([1, 2], attention_mask=mask), ValueError, "attention_mask")


@pytest.mark.parametrize(
    ("texts", "side", "kind", "words"),
    [
        ([[1]], "middle", ValueError, 'side "left" "right" middle'),
        ([], "left", ValueError, "prompts one"),
        ([[1], []], "left", ValueError, "tokens one"),
        ([[1.5]], "left", TypeError, "integers"),
        (5, "left", TypeError, "lists ids"),
    ],
    ids=str,
)
def test_texts_that_cannot_be_padded_are_refused(texts, side, kind, words):
    refused(lambda: pad(texts, side), kind, words)


# Text and ids


def test_half_a_character_becomes_the_replacement_character(ckpt):
    # As tiktoken and Python's own errors="replace" have it.
    assert ckpt.tokenizer.decode(ckpt.tokenizer.encode("a\ud83db")) == "a\ufffdb"


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["a"]])
def test_what_is_no_text_is_refused(ckpt, text):
    refused(lambda: ckpt.tokenizer.encode(text), TypeError, "encode str")


@pytest.mark.parametrize("names", [None, 5, [5]])
def test_names_of_special_tokens_that_cannot_be_are_refused(ckpt, names):
    refused(lambda: ckpt.tokenizer.encode("a", allowed_special=names), TypeError, "special")


@pytest.mark.parametrize("character", [" ", "\n", "a", "!", "é", "あ", "1"])
def test_a_million_times_the_same_character_is_encoded(llama3, character):
    ids = llama3.encode(character * 1_000_000)
    assert llama3.decode(ids) == character * 1_000_000


UNKNOWN_IDS = [([-1], ValueError), ([512], ValueError), ([2**70], ValueError), ([1.0], TypeError), (["1"], TypeError)]
UNKNOWN_IDS += [([None], TypeError), (None, TypeError), (5, TypeError), (torch.tensor([1.0]), TypeError)]


@pytest.mark.parametrize(("ids", "kind"), UNKNOWN_IDS, ids=str)
def test_ids_without_a_token_are_refused(ckpt, ids, kind):
    refused(lambda: ckpt.tokenizer.decode(ids), kind, "list ids" if ids is None or ids == 5 else "token id")


def test_ids_of_tensors_are_decoded(ckpt):
    ids = ckpt.tokenizer.encode("the question")
    assert ckpt.tokenizer.decode(torch.tensor(ids)) == ckpt.tokenizer.decode(np.array(ids)) == "the question"


def test_a_prompt_may_be_read_once_only(ckpt, model):
    ids = ckpt.tokenizer.encode("the question", bos=True)
    expected = list(generate_text(model, ckpt.tokenizer, ids, max_new_tokens=4))
    assert list(generate_text(model, ckpt.tokenizer, iter(ids), max_new_tokens=4)) == expected
