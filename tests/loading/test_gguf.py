"""GGUF files, written here with its own library, converted and opened; and those that say what Llama 3 does not do."""

import warnings

import gguf
import numpy as np
import pytest
import torch
from helpers import (
    DIM,
    GGUF_HALVES,
    GGUF_MERGES,
    GGUF_SPECIALS,
    GGUF_TOKENS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    hf_logits,
    hf_model,
    printed,
    random_gguf_tensors,
    rope_parameters,
    write_gguf,
)
from tokenizers import Tokenizer as TheirTokenizer
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_scratch import CheckpointError, functional, load_checkpoint
from llama3_scratch.loading.gguf import write_gguf as convert_gguf


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    tensors = random_gguf_tensors()
    convert_gguf(write_gguf(folder / "tiny.gguf", tensors), folder)
    return tensors, load_checkpoint(folder)


def test_a_converted_gguf_opens_with_its_own_numbers(converted):
    params = converted[1].params
    assert (params.dim, params.n_layers, params.n_heads, params.n_kv_heads) == (DIM, LAYERS, HEADS, KV_HEADS)
    assert (params.hidden_dim, params.vocab_size) == (HIDDEN, len(GGUF_TOKENS))
    assert (params.norm_eps, params.rope_theta) == (1e-5, 100000.0)


# Meta's name -> GGUF's. The quantised ones may be off by half a step: of 255 over the block's largest value twice for
# Q8_0, of 15 over the block's range for Q4_1; the rest is float16's rounding of the step.
@pytest.mark.parametrize(
    ("key", "name", "error"),
    [
        ("tok_embeddings", "token_embd", 0),
        ("norm", "output_norm", 0),
        ("layers.1.attention.wq", "blk.1.attn_q", 1 / 254 + 1e-3),
        ("layers.1.attention.wk", "blk.1.attn_k", 0),
        ("layers.1.attention.wv", "blk.1.attn_v", 1e-3),
        ("layers.1.attention.wo", "blk.1.attn_output", 0),
        ("layers.1.feed_forward.w1", "blk.1.ffn_gate", 1 / 15 + 1e-3),
        ("layers.1.feed_forward.w2", "blk.1.ffn_down", 1 / 254 + 1e-3),
        ("layers.1.feed_forward.w3", "blk.1.ffn_up", 0),
        ("layers.1.attention_norm", "blk.1.attn_norm", 0),
        ("layers.1.ffn_norm", "blk.1.ffn_norm", 0),
    ],
)
def test_each_tensor_of_a_gguf_finds_its_place(converted, key, name, error):
    tensors, ckpt = converted
    ours, theirs = ckpt.weights[f"{key}.weight"], torch.from_numpy(tensors[f"{name}.weight"])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=error)


def test_no_tensor_of_a_gguf_is_left_out_or_invented(converted):
    tensors, ckpt = converted
    assert len(ckpt.weights) == len(tensors)
    assert "output.weight" not in ckpt.weights


def test_a_converted_model_runs_as_hugging_face_runs_it(converted):
    ckpt = converted[1]
    tokens = torch.arange(0, ckpt.params.vocab_size, 7)
    theirs = hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)
    assert (functional.forward(tokens, ckpt.weights, ckpt.params) - theirs).abs().max() < 1e-4


def test_the_tokenizer_of_a_gguf_is_converted(converted):
    tokenizer = converted[1].tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.vocab_size) == (
        1,
        2,
        False,
        len(GGUF_TOKENS),
    )
    assert tokenizer.special_tokens == {name: i for i, name in enumerate(GGUF_SPECIALS)}
    first = len(GGUF_SPECIALS) + 256
    # SmolLM2's pattern keeps "1" and "2" apart though "12" is a token, and two spaces before a digit together.
    assert tokenizer.encode(" the  12!") == [first + 2, first + 5, *(len(GGUF_SPECIALS) + ord(c) for c in "12!")]
    assert [tokenizer.token_bytes(i) for i in range(first, len(GGUF_TOKENS))] == GGUF_MERGES
    assert [tokenizer.token_bytes(len(GGUF_SPECIALS) + b) for b in range(256)] == [bytes([b]) for b in range(256)]


def test_an_output_matrix_of_its_own_is_kept(tmp_path):
    tensors = random_gguf_tensors()
    tensors["output.weight"] = tensors["token_embd.weight"][::-1].copy()
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", tensors), tmp_path)
    output = load_checkpoint(tmp_path).weights["output.weight"]
    torch.testing.assert_close(output, torch.from_numpy(tensors["output.weight"]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2', not llama"),
        ({"pre": "gpt-2"}, "no split pattern known for tokenizer 'gpt-2' of 'gpt2'"),
        ({"hidden": 200}, r"layers\.0\.feed_forward\.w1\.weight is \[256, 96\], .* \[200, 96\]"),
    ],
    ids=["architecture", "pattern", "hidden size"],
)
def test_a_gguf_of_another_kind_is_refused(tmp_path, changes, message):
    path = write_gguf(tmp_path / "other.gguf", random_gguf_tensors(), **changes)
    with pytest.raises(CheckpointError, match=rf"other\.gguf: {message}"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias"])
def test_a_gguf_with_a_tensor_that_has_no_place_is_refused(tmp_path, name):
    tensors = random_gguf_tensors() | {name: np.ones(96, np.float32)}
    with pytest.raises(CheckpointError, match=name):
        convert_gguf(write_gguf(tmp_path / "other.gguf", tensors), tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>404</html>" * 100)
    with pytest.raises(CheckpointError, match=r"page\.gguf"):
        convert_gguf(tmp_path / "page.gguf", tmp_path)


# Positions


def with_freqs(divisors):
    return random_gguf_tensors() | {"rope_freqs.weight": np.asarray(divisors, np.float32)}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_1_is_read_from_its_divisors(tmp_path, factor):
    plain, scaled = (
        LlamaRotaryEmbedding(
            LlamaConfig(hidden_size=DIM, num_attention_heads=HEADS, rope_parameters=rope_parameters(100000.0, told))
        ).inv_freq
        for told in (None, factor)
    )
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", with_freqs(plain / scaled)), tmp_path)
    ckpt = load_checkpoint(tmp_path)
    assert ckpt.params.rope_factor == factor
    tokens = torch.arange(0, ckpt.params.vocab_size, 7)
    theirs = hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)
    assert (functional.forward(tokens, ckpt.weights, ckpt.params) - theirs).abs().max() < 1e-4


def test_divisors_of_one_are_no_scaling(tmp_path):
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", with_freqs([1.0] * 8)), tmp_path)
    assert load_checkpoint(tmp_path).params.use_scaled_rope is False


@pytest.mark.parametrize("divisors", [[2.0] * 8, [1.0] * 7, [1.0] * 7 + [0.5], [float("nan")] * 8])
def test_divisors_of_another_kind_are_refused(tmp_path, divisors):
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", with_freqs(divisors)), tmp_path)


def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


UNREADABLE = {
    "linear scaling": (linear, r"llama\.rope\.scaling\.factor is 4\.0"),
    "a factor alone": (lambda w: w.add_rope_scaling_factor(2.0), r"llama\.rope\.scaling\.factor"),
    "the first key for it": (lambda w: w.add_float32("llama.rope.scale_linear", 2.0), r"llama\.rope\.scale_linear"),
    "yarn": (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"llama\.rope\.scaling\.type is 'yarn'"),
    "half of a head turned": (lambda w: w.add_rope_dimension_count(8), r"llama\.rope\.dimension_count is 8"),
    "heads of another size": (lambda w: w.add_key_length(32), r"llama\.attention\.key_length is 32"),
    "experts": (lambda w: w.add_expert_count(8), r"llama\.expert_count"),
    "texts that are closed": (lambda w: w.add_add_eos_token(True), r"tokenizer\.ggml\.add_eos_token"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_a_gguf_says_and_llama_3_does_not_do_is_refused(tmp_path, kind):
    more, message = UNREADABLE[kind]
    with pytest.raises(CheckpointError, match=rf"tiny\.gguf: {message}"):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors(), more=more), tmp_path)


@pytest.mark.parametrize("more", [lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE), lambda w: None])
def test_no_scaling_by_any_name_is_taken(tmp_path, more):
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors(), more=more), tmp_path)
    assert load_checkpoint(tmp_path).params.use_scaled_rope is False


def test_the_length_that_it_was_trained_for_is_read(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors(), more=lambda w: w.add_context_length(2048))
    convert_gguf(path, tmp_path)
    assert load_checkpoint(tmp_path).params.context_len == 2048


def test_keys_that_are_not_known_are_named(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors(), more=lambda w: w.add_logit_scale(2.0))
    with pytest.warns(UserWarning, match=r"unknown keys llama\.logit_scale"):
        convert_gguf(path, tmp_path)


# The vocabulary


@pytest.mark.parametrize(("pre", "said", "expected"), [("smollm", None, False), ("llama-bpe", None, True)])
@pytest.mark.parametrize("say", [None, True, False])
def test_bos_is_added_where_the_file_or_else_llama_cpp_says_so(tmp_path, pre, said, expected, say):
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors(), pre=pre, add_bos=say), tmp_path)
    assert load_checkpoint(tmp_path).tokenizer.add_bos == (expected if say is None else say)


def test_ids_are_those_of_its_merges(converted):
    ranks = {token: i for i, token in enumerate(GGUF_TOKENS)}
    theirs = TheirTokenizer(models.BPE(ranks, [(printed(left), printed(right)) for left, right in GGUF_HALVES]))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in ("the  12 heights of the   hills", " the\x00ÿ 12", "hehe  he"):
        assert converted[1].tokenizer.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize(
    "changes",
    [
        {"merges": [f"{printed(left)} {printed(right)}" for left, right in GGUF_HALVES[1:]]},
        {"merges": [f"{printed(left)} {printed(right)}" for left, right in reversed(GGUF_HALVES)]},
        {"types": [4] * len(GGUF_SPECIALS) + [1] * (len(GGUF_TOKENS) - len(GGUF_SPECIALS))},
    ],
    ids=["a token without its merge", "another order", "words that were added"],
)
def test_a_vocabulary_that_would_be_read_wrong_is_refused(tmp_path, changes):
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: "):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors(), **changes), tmp_path)


def test_a_whole_one_converts_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors()), tmp_path)
