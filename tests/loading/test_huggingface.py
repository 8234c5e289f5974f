"""Folders in Hugging Face's layout: the logits are those of its own library, whatever config.json says."""

import json
import sys
import warnings

import pytest
import torch
from helpers import (
    BASE,
    assert_like_hugging_faces,
    change_config,
    hf_logits,
    hf_model,
    lies_in,
    naming,
    random_tokens,
    rope_parameters,
    their_model,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llama3_scratch import CheckpointError, Llama, functional, load_checkpoint
from llama3_scratch.loading.huggingface import read_params
from llama3_scratch.loading.tiny import write_byte_tokenizer

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where files are mapped")

FOLDERS = {
    "as it is": {},
    "tied": {"tie_word_embeddings": True},
    "MHA": {"num_key_value_heads": 8},
    "MQA": {"num_key_value_heads": 1},
    "Meta's hidden size": {"intermediate_size": 256},
    "odd sizes": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 101},
    "eps": {"rms_norm_eps": 1e-2},
    "theta": {"rope_parameters": rope_parameters(10000.0, None)},
    "scaled by 8": {"rope_parameters": rope_parameters(500000.0, 8.0)},
    "scaled by 32, tied": {"rope_parameters": rope_parameters(500000.0, 32.0), "tie_word_embeddings": True},
    "another band": {"rope_parameters": rope_parameters(500000.0, 8.0, low=2.0, high=16.0)},
    "another old length": {"rope_parameters": rope_parameters(500000.0, 8.0, old_context_len=64)},
    "SmolLM2's head": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96, "head_dim": 16},
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_hugging_face_gives_its_logits(save, kind):
    theirs = their_model(**FOLDERS[kind])
    assert_like_hugging_faces(load_checkpoint(save(theirs)), theirs)


@pytest.mark.parametrize("kind", ["as it is", "tied"])
def test_a_folder_in_parts_gives_the_same_logits(save, kind):
    theirs = their_model(**FOLDERS[kind])
    folder = save(theirs, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 2 and not (folder / "model.safetensors").exists()
    assert_like_hugging_faces(load_checkpoint(folder), theirs, length=40)


@pytest.mark.parametrize("kind", ["as it is", "scaled by 32, tied"])
def test_a_folder_in_bfloat16_keeps_it_or_becomes_what_was_asked_for(save, kind):
    folder = save(their_model(**FOLDERS[kind]).bfloat16())
    stored = load_checkpoint(folder)
    assert {t.dtype for t in stored.weights.values()} == {torch.bfloat16}
    narrow, wide = (
        LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert_like_hugging_faces(load_checkpoint(folder, dtype=torch.float32), wide, length=40)
    tokens = random_tokens(stored.params, 40)
    exact = hf_logits(wide, tokens)
    ours, theirs = functional.forward(tokens, stored.weights, stored.params), hf_logits(narrow, tokens)
    assert 0 < (ours - exact).norm() < 1.1 * (theirs - exact).norm()


def test_a_folder_is_the_same_model_as_metas_file(tiny_folder, save):
    """The other way round: Meta's weights given to Hugging Face, saved by it, and read here."""
    ckpt = load_checkpoint(tiny_folder("tiny-scaled"))
    folder = save(hf_model(ckpt.params, ckpt.weights))
    ours = load_checkpoint(folder)
    assert ours.weights.keys() == ckpt.weights.keys()
    for key in ckpt.weights:
        torch.testing.assert_close(ours.weights[key], ckpt.weights[key], rtol=0, atol=0)
    for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim", "norm_eps", "rope_theta"):
        assert getattr(ours.params, name) == getattr(ckpt.params, name)
    assert (ours.params.rope_factor, ours.params.context_len) == (ckpt.params.rope_factor, 131072)


SCALING = {k: v for k, v in rope_parameters(500000.0, 8.0).items() if k != "rope_theta"}


@pytest.mark.parametrize(
    ("factor", "old_style"),
    [
        (None, {"rope_theta": 500000.0}),
        (None, {"rope_theta": 500000.0, "rope_scaling": None}),
        (8.0, {"rope_theta": 500000.0, "rope_scaling": SCALING}),
        (8.0, {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3"} | SCALING}),
        (8.0, {"rope_theta": 500000, "rope_scaling": SCALING | {"factor": 8}}),
    ],
    ids=["Llama 3", "null", "Llama 3.1", "two names for the type", "integers"],
)
def test_a_config_from_before_version_5_of_transformers(save, factor, old_style):
    theirs = their_model(rope_parameters=rope_parameters(500000.0, factor))
    folder = save(theirs)
    config = json.loads((folder / "config.json").read_text())
    for newer in ("rope_parameters", "dtype", "head_dim"):
        del config[newer]
    (folder / "config.json").write_text(json.dumps(config | old_style | {"torch_dtype": "float32"}))
    assert_like_hugging_faces(load_checkpoint(folder), theirs)


def read_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(BASE | {"model_type": "llama"} | config))
    return read_params(folder)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dim=st.integers(1, 4096).map(lambda n: 8 * n), hidden_dim=st.integers(1, 2**20))
def test_any_hidden_size_is_kept(tmp_path, dim, hidden_dim):
    # Meta's params.json has a factor in the place of the size; what is computed from it must be the size again.
    sizes = {"hidden_size": dim, "num_attention_heads": 4, "num_key_value_heads": 4}
    assert read_config(tmp_path, **sizes, intermediate_size=hidden_dim).hidden_dim == hidden_dim


@pytest.mark.parametrize(("trained_for", "context_len"), [(64, 131072), (8191, 131072), (8192, 131072), (8193, 8193)])
def test_with_scaled_rotations_a_length_that_nobody_scales_for_is_a_default_that_nobody_set(
    tmp_path, trained_for, context_len
):
    rope = rope_parameters(500000.0, 8.0)  # scales beyond 8192
    assert read_config(tmp_path, rope_parameters=rope, max_position_embeddings=trained_for).context_len == context_len


def test_a_config_that_says_only_what_it_must(save):
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    bare = {"model_type": "llama"} | {name: BASE[name] for name in sizes}
    theirs = LlamaForCausalLM(LlamaConfig(**bare)).eval()  # their defaults are older than Llama 3: theta 10000, ...
    folder = save(theirs)
    (folder / "config.json").write_text(json.dumps(bare))
    params = load_checkpoint(folder).params
    assert (params.n_kv_heads, params.norm_eps, params.rope_theta) == (8, 1e-6, 10000.0)
    assert_like_hugging_faces(load_checkpoint(folder), theirs)


@on_linux
def test_a_folders_weights_stay_in_their_file(save):
    folder = save(their_model())
    model = Llama.from_checkpoint(folder)
    for key, parameter in model.named_parameters():
        turned = key.endswith(("wq.weight", "wk.weight"))
        assert lies_in(parameter, folder / "model.safetensors") != turned, key


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("stored_too", [False, True])
def test_a_folders_tied_embeddings_are_one_parameter(save, dtype, stored_too):
    theirs = their_model(tie_word_embeddings=True)
    folder = save(theirs)
    if stored_too:
        stored = load_file(folder / "model.safetensors")
        save_file(
            stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, folder / "model.safetensors"
        )
    model = Llama.from_checkpoint(load_checkpoint(folder, dtype=dtype))
    assert model.output.weight is model.tok_embeddings.weight
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_frequencies_that_old_folders_store_are_ignored(save):
    theirs = their_model()
    folder = save(theirs)
    stored = load_file(folder / "model.safetensors")
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    save_file(stored | extra, folder / "model.safetensors")
    assert_like_hugging_faces(load_checkpoint(folder), theirs, length=10)


def test_tensors_in_any_order_at_any_offset_are_found(save):
    # Sorted by type, as safetensors does it, a few bytes of one type move all tensors of the next.
    theirs = their_model()
    folder = save(theirs)
    stored = load_file(folder / "model.safetensors")
    odd = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3, dtype=torch.float64)}
    save_file(dict(reversed(stored.items())) | odd, folder / "model.safetensors", {"format": "pt", "note": "x" * 99})
    assert_like_hugging_faces(load_checkpoint(folder), theirs, length=10)


def test_metas_files_inside_a_folder_do_not_disturb(save):
    theirs = their_model()
    folder = save(theirs)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").touch()
    assert_like_hugging_faces(load_checkpoint(folder), theirs, length=10)


def test_a_folder_without_a_tokenizer_opens_with_a_warning(save):
    theirs = their_model()
    folder = save(theirs)
    (folder / "tokenizer.json").unlink()
    with pytest.warns(UserWarning, match=naming("no tokenizer.json")):
        ckpt = load_checkpoint(folder)
    assert ckpt.tokenizer is None
    assert_like_hugging_faces(ckpt, theirs, length=10)


def test_a_folder_with_metas_vocabulary_in_it(save):
    folder = save(their_model(vocab_size=600))
    (folder / "tokenizer.json").unlink()
    (folder / "original").mkdir()
    write_byte_tokenizer(folder / "original")
    assert load_checkpoint(folder).tokenizer.bos_id == 256


UP = "model.layers.1.mlp.up_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


def change_tensors(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


BROKEN_FOLDERS = {
    "another architecture": (lambda f: change_config(f, model_type="mistral"), "config.json model_type mistral"),
    "biases": (lambda f: change_config(f, attention_bias=True), "config.json attention_bias True"),
    "another activation": (lambda f: change_config(f, hidden_act="gelu"), "config.json hidden_act gelu"),
    "another scaling": (
        lambda f: change_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        "rope_type yarn",
    ),
    "a scaling without its numbers": (
        lambda f: change_config(f, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        "low_freq_factor",
    ),
    "a scaling that is text": (
        lambda f: change_config(f, rope_parameters=None, rope_scaling="llama3"),
        "config.json rope_scaling object",
    ),
    "heads of another size": (lambda f: change_config(f, head_dim=16), "config.json head_dim 16"),
    "no hidden size": (lambda f: change_config(f, intermediate_size=None), "config.json intermediate_size missing"),
    "sizes that do not fit": (lambda f: change_config(f, intermediate_size=97), "[96, 64] [97, 64]"),
    "too few layers": (
        lambda f: change_config(f, num_hidden_layers=1),
        "unknown model.layers.1.input_layernorm.weight",
    ),
    "too many layers": (
        lambda f: change_config(f, num_hidden_layers=3),
        "model.layers.2.self_attn.q_proj.weight missing",
    ),
    "heads that do not divide": (lambda f: change_config(f, num_key_value_heads=3), "config.json 8 3"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json JSON"),
    "a config that is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json JSON object",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors not found"),
    "half a file": (lambda f: truncate(f / "model.safetensors"), "model.safetensors not readable"),
    "an HTML page": (
        lambda f: (f / "model.safetensors").write_text("<html>" * 99),
        "model.safetensors not readable",
    ),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors not readable"),
    "a tensor missing": (
        lambda f: change_tensors(f, lambda w: {k: t for k, t in w.items() if k != UP}),
        f"{UP} missing",
    ),
    "no output matrix": (
        lambda f: change_tensors(f, lambda w: {k: t for k, t in w.items() if k != "lm_head.weight"}),
        "lm_head.weight missing",
    ),
    "a tensor too many": (lambda f: change_tensors(f, lambda w: w | {"x": torch.ones(2)}), "unknown x"),
    "a bias": (
        lambda f: change_tensors(f, lambda w: w | {Q.replace("weight", "bias"): torch.ones(64)}),
        f"unknown {Q.replace('weight', 'bias')}",
    ),
    "a wrong shape": (lambda f: change_tensors(f, lambda w: w | {Q: w[Q][:-1].clone()}), f"{Q} [63, 64] [64, 64]"),
    "eight bits": (lambda f: change_tensors(f, lambda w: w | {Q: w[Q].to(torch.float8_e4m3fn)}), f"{Q} F8_E4M3"),
    "integers": (lambda f: change_tensors(f, lambda w: w | {Q: w[Q].to(torch.int8)}), f"{Q} I8"),
}


@pytest.mark.parametrize("fault", BROKEN_FOLDERS)
def test_a_broken_folder_is_refused(save, fault):
    folder = save(their_model())
    spoil, words = BROKEN_FOLDERS[fault]
    spoil(folder)
    with pytest.raises(CheckpointError, match=naming(words)) as raised:
        load_checkpoint(folder)
    assert str(folder) in str(raised.value)


BROKEN_INDICES = {
    "a part missing": (lambda f: min(f.glob("model-*")).unlink(), "not found"),
    "a part that is half": (lambda f: truncate(max(f.glob("model-*"))), "not readable"),
    "no list": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "weight_map"),
    "a list of numbers": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'),
        "weight_map",
    ),
    "a file elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "not found",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_INDICES)
def test_a_broken_folder_in_parts_is_refused(save, fault):
    folder = save(their_model(), max_shard_size="100KB")
    spoil, words = BROKEN_INDICES[fault]
    spoil(folder)
    with pytest.raises(CheckpointError, match=naming(words)):
        load_checkpoint(folder)


def test_a_vocabulary_larger_than_the_model_is_refused(save):
    with pytest.raises(CheckpointError, match=naming("tokenizer.json 400 tokens vocab_size 300")):
        load_checkpoint(save(their_model(vocab_size=300)))


def test_no_folder_warns_of_anything(save):
    folder = save(their_model(tie_word_embeddings=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama.from_checkpoint(folder)
