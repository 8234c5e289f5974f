"""A model written as a folder: in Hugging Face's layout transformers reads it, with the same ids, logits and text; in
both it opens here as it was.
"""

import json
import os

import pytest
import torch
from helpers import (
    CORPUS,
    SMOLLM2_STEPS,
    SPECIALS_FIRST,
    distance,
    hf_greedy,
    hf_logits,
    naming,
    random_tokens,
    texts,
    trained,
    write_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import AddedToken
from tokenizers import Tokenizer as TheirTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama3_scratch import CheckpointError, Llama, ModelArgs, Tokenizer, generate, load_checkpoint
from llama3_scratch.loading import export as export_module
from llama3_scratch.loading.byte_pairs import learn_vocabulary
from llama3_scratch.loading.export import export, tokenizer_json

TINY = ["tiny-ratio1", "tiny-ratio3", "tiny-ratio4", "tiny-scaled", "tiny-bfloat16"]
LAYOUTS = ["meta", "huggingface"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    learn_vocabulary(" ".join(CORPUS), 320, folder)
    return Tokenizer(folder / "tokenizer.model")


def new(vocabulary, tied=False, **sizes):
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "rope_theta": 1e4} | sizes
    model = Llama(ModelArgs(vocab_size=vocabulary.vocab_size, **sizes), tied)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.ndim == 2 else p.add_(torch.linspace(-0.5, 0.5, len(p)))
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens)


def assert_read_alike(model, tokenizer, folder):
    """By transformers, from the folder alone: type, ties, ids, logits and greedy text."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert theirs.dtype == model.norm.weight.dtype
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == (
        model.output.weight is model.tok_embeddings.weight
    )
    tokens = random_tokens(model.params, 2, 40)
    close = 1e-4 if theirs.dtype == torch.float32 else 0.3
    assert distance(logits(model, tokens), hf_logits(theirs, tokens).float()) < close
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.encode(CORPUS[0], bos=tokenizer.add_bos)
    assert their_tokenizer(CORPUS[0])["input_ids"] == prompt
    assert their_tokenizer.decode(prompt, skip_special_tokens=True) == CORPUS[0]
    assert theirs.config.max_position_embeddings == model.params.context_len
    for name, id in tokenizer.special_tokens.items():
        assert their_tokenizer.convert_tokens_to_ids(name) == id
    assert (their_tokenizer.bos_token_id, their_tokenizer.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    ends = theirs.generation_config.eos_token_id
    assert set(ends if isinstance(ends, list) else [ends]) == set(tokenizer.stop_tokens)
    assert theirs.generation_config.bos_token_id == tokenizer.bos_id
    if theirs.dtype == torch.float32:
        assert list(generate(model, prompt, 16)) == hf_greedy(theirs, prompt, 16)


@pytest.mark.parametrize("name", TINY)
def test_transformers_reads_what_was_exported_of_a_checkpoint(name, tiny_folder, tmp_path):
    checkpoint = load_checkpoint(tiny_folder(name))
    model = Llama.from_checkpoint(checkpoint)
    assert export(model, checkpoint.tokenizer, tmp_path / "hf", "huggingface") == tmp_path / "hf"
    assert_read_alike(model, checkpoint.tokenizer, tmp_path / "hf")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_kv_heads": 4, "context_len": 100},
        {"dim": 48, "n_heads": 8, "n_kv_heads": 1, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-6},
        {"use_scaled_rope": True, "rope_scale_factor": 4.0, "rope_old_context_len": 64, "context_len": 256},
        {"use_scaled_rope": True},
    ],
    ids=str,
)
def test_transformers_reads_what_was_made_here(sizes, tied, vocabulary, tmp_path):
    model = new(vocabulary, tied, **sizes)
    export(model, vocabulary, tmp_path / "hf", "huggingface")
    assert_read_alike(model, vocabulary, tmp_path / "hf")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_exported_opens_here_as_it_was(layout, tied, dtype, vocabulary, tmp_path):
    model = new(vocabulary, tied, ffn_dim_multiplier=1.3, context_len=77).to(dtype)
    checkpoint = load_checkpoint(export(model, vocabulary, tmp_path / "m", layout))
    again = Llama.from_checkpoint(checkpoint)
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert (again.output.weight is again.tok_embeddings.weight) == tied
    tokens = random_tokens(model.params, 30)
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    assert checkpoint.params.context_len == 77 and checkpoint.params.hidden_dim == model.params.hidden_dim
    assert checkpoint.params == model.params or layout == "huggingface"  # which tells the hidden size in another way
    ours = checkpoint.tokenizer
    for name in ("vocab_size", "special_tokens", "bos_id", "eos_id", "add_bos", "stop_tokens"):
        assert getattr(ours, name) == getattr(vocabulary, name), name
    text = " ".join([*CORPUS, *vocabulary.special_tokens])
    for allowed in ((), "all"):
        assert ours.encode(text, allowed_special=allowed) == vocabulary.encode(text, allowed_special=allowed)


def test_from_one_layout_to_the_other_and_back_nothing_is_lost(tiny_folder, tmp_path):
    first = load_checkpoint(tiny_folder("tiny-scaled"))
    export(Llama.from_checkpoint(first), first.tokenizer, tmp_path / "hf", "huggingface")
    second = load_checkpoint(tmp_path / "hf")
    export(Llama.from_checkpoint(second), second.tokenizer, tmp_path / "meta")
    third = load_checkpoint(tmp_path / "meta")
    for key in first.weights:
        assert torch.equal(third.weights[key], first.weights[key]), key
    text = " ".join(CORPUS)
    assert third.tokenizer.encode(text) == first.tokenizer.encode(text)


def test_a_tied_matrix_is_stored_once(vocabulary, tmp_path):
    export(new(vocabulary, tied=True), vocabulary, tmp_path / "hf", "huggingface")
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    export(new(vocabulary, tied=True), vocabulary, tmp_path / "meta")
    assert "output.weight" not in torch.load(tmp_path / "meta" / "consolidated.00.pth")


def test_files_can_be_read_by_whoever_may_read_the_folder(vocabulary, tmp_path):
    for layout in LAYOUTS:
        folder = export(new(vocabulary), vocabulary, tmp_path / layout, layout)
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
        assert len(set(modes.values())) == 1, modes


# The vocabulary, judged by the library whose form it has


words = st.sampled_from([*" ".join(CORPUS[:4]).split(), " ", "  ", "\n", "'S", "7", "<|start|>", "<|stop|>"])
phrases = st.lists(words, max_size=12)


@pytest.fixture(scope="module")
def pair(vocabulary):
    return vocabulary, TheirTokenizer.from_str(json.dumps(tokenizer_json(vocabulary)))


@settings(max_examples=300)
@given(text=texts | phrases.map(" ".join) | phrases.map("".join))
def test_the_tokenizers_library_finds_the_same_ids(pair, text):
    ours, theirs = pair
    ids = ours.encode(text, allowed_special="all")  # theirs takes special tokens for what they are
    assert theirs.encode(text, add_special_tokens=False).ids == ids
    assert theirs.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", TINY)
def test_so_it_does_in_the_vocabularies_of_other_checkpoints(name, tiny_folder):
    tokenizer = load_checkpoint(tiny_folder(name)).tokenizer
    theirs = TheirTokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    for text in [*CORPUS, *tokenizer.special_tokens]:
        assert theirs.encode(text).ids == tokenizer.encode(text, bos=tokenizer.add_bos, allowed_special="all")
    opened = [tokenizer.bos_id] * tokenizer.add_bos
    assert theirs.encode("a", "b").ids == [*opened, *tokenizer.encode("a"), *opened, *tokenizer.encode("b")]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["smollm2", "llama3"])
def test_so_it_does_in_those_of_real_models(which, request):
    found = request.getfixturevalue(which)
    tokenizer = getattr(found, "tokenizer", found)
    theirs = TheirTokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    for text in [*CORPUS, "supercalifragilistic 1234567 \n\n  \t x'LL don't 😀😀", "ſ's ǅ \u2028\x85"]:
        assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


# What cannot be written


def test_a_folder_that_is_there_is_not_touched(vocabulary, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    for layout in LAYOUTS:
        with pytest.raises(CheckpointError, match=naming("mine there")):
            export(new(vocabulary), vocabulary, tmp_path / "mine", layout)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


@pytest.mark.parametrize("layout", ["onnx", "Meta", None, 5])
def test_a_layout_that_is_none_is_refused(layout, vocabulary, tmp_path):
    with pytest.raises(ValueError, match=naming("layout meta huggingface")):
        export(new(vocabulary), vocabulary, tmp_path / "m", layout)
    assert not list(tmp_path.iterdir())


def test_a_model_in_8_bits_or_with_a_matrix_of_another_shape_is_refused(tiny_folder, vocabulary, tmp_path):
    checkpoint = load_checkpoint(tiny_folder("tiny-ratio3"))
    cut = new(vocabulary)
    cut.layers[0].feed_forward.w2 = torch.nn.Linear(cut.params.hidden_dim, 31, bias=False)
    with_bias = new(vocabulary)
    with_bias.output = torch.nn.Linear(32, vocabulary.vocab_size)
    for model in (Llama.from_checkpoint(checkpoint, quantize="int8"), cut, with_bias):
        for layout in LAYOUTS:
            with pytest.raises(ValueError, match="weights") as raised:
                export(model, checkpoint.tokenizer, tmp_path / "m", layout)
            assert len(str(raised.value)) < 300
    assert not list(tmp_path.iterdir())


def test_words_that_were_added_to_a_vocabulary_are_not_dropped_in_silence(tmp_path):
    theirs = trained(SMOLLM2_STEPS, SPECIALS_FIRST)
    theirs.add_tokens([AddedToken("mouse", normalized=False)])
    ends = {"bos_token": SPECIALS_FIRST[1], "eos_token": SPECIALS_FIRST[2]}
    tokenizer = Tokenizer(write_tokenizer(theirs, tmp_path, **ends))
    with pytest.raises(ValueError, match=naming("tokenizer.json words")):
        export(new(tokenizer), tokenizer, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_leaves_nothing(layout, vocabulary, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    name = "write_pth" if layout == "meta" else "write_safetensors"
    monkeypatch.setattr(export_module, name, full)
    with pytest.raises(OSError):
        export(new(vocabulary), vocabulary, tmp_path / "m", layout)
    assert not list(tmp_path.iterdir())
