"""Folders that contradict themselves, or are of another kind than they seem: transformers' answer, or a refusal."""

import json
import math
import shutil
import warnings

import pytest
import torch
from helpers import distance, hf_logits, random_tokens, rope_parameters
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_scratch import CheckpointError, Llama, ModelArgs, functional, load_checkpoint
from llama3_scratch.loading.tiny import random_weights, write_byte_tokenizer
from llama3_scratch.params import PUBLISHED

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": rope_parameters(500000.0, None),
}
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
pytestmark = pytest.mark.filterwarnings("ignore:.*no tokenizer")


@pytest.fixture
def folder(tmp_path):
    """A model of transformers, saved; its weights large enough for every one to matter."""
    model = LlamaForCausalLM(LlamaConfig(**BASE))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            uniform = torch.rand(p.shape, generator=generator) * 2 - 1
            p.copy_(1 + uniform / 2 if "norm" in name else uniform * math.sqrt(6 / p.shape[-1]))
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def change_tensors(folder, change):
    stored = load_file(folder / "model.safetensors")
    save_file(change(stored), folder / "model.safetensors", {"format": "pt"})


def in_parts(folder):
    """The same tensors in two files, and their index."""
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(stored)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: stored[n] for n in names if where[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def theirs(folder, **options):
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", **options).eval()


def assert_like_transformers(folder, tolerance=1e-4, **options):
    reference, ckpt = theirs(folder, **options), load_checkpoint(folder, **options)
    tokens = random_tokens(ckpt.params, 30)
    expected = hf_logits(reference, tokens)
    assert distance(functional.forward(tokens, ckpt.weights, ckpt.params), expected) < tolerance
    model = Llama.from_checkpoint(ckpt)
    with torch.no_grad():
        assert distance(model(tokens), expected) < tolerance
    return reference, model


def refused(folder, *words):
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(folder)
    message = str(raised.value)
    assert len(message) < 600 and "\n" not in message and str(folder) in message
    for word in words:
        assert word in message, message


# One matrix or two


@pytest.mark.parametrize("parts", [False, True], ids=["one file", "in parts"])
@pytest.mark.parametrize("tie", [True, False, "absent"])
@pytest.mark.parametrize("head", ["absent", "equal", "another", "alone"])
def test_tied_embeddings_are_those_of_transformers(folder, tie, head, parts):
    def change(stored):
        if head == "absent":
            del stored[HEAD]
        elif head == "equal":
            stored[HEAD] = stored[EMBEDDINGS].clone()
        elif head == "alone":
            del stored[EMBEDDINGS]
        return stored

    change_tensors(folder, change)
    change_config(folder, tie_word_embeddings=tie)
    if parts:
        in_parts(folder)
    if tie is not True and head in ("absent", "alone"):  # transformers takes random numbers
        refused(folder, HEAD if head == "absent" else EMBEDDINGS, "missing")
    elif tie is True and head == "another":
        with pytest.warns(UserWarning, match=r"config\.json: tie_word_embeddings.*lm_head\.weight"):
            reference, model = assert_like_transformers(folder)
        assert reference.lm_head.weight is not reference.model.embed_tokens.weight
        assert model.output.weight is not model.tok_embeddings.weight
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*tie_word")
            reference, model = assert_like_transformers(folder)
        same = reference.lm_head.weight is reference.model.embed_tokens.weight
        assert (model.output.weight is model.tok_embeddings.weight) == same == (tie is True)


def test_one_number_makes_two_matrices(folder):
    def change(stored):
        head = stored[EMBEDDINGS].clone()
        head[-1, -1] += 1
        return stored | {HEAD: head}

    change_tensors(folder, change)
    change_config(folder, tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        assert_like_transformers(folder)


def test_a_head_that_is_the_embeddings_once_both_have_one_type_is_tied(folder):
    change_tensors(folder, lambda s: {k: t.bfloat16() for k, t in s.items()} | {HEAD: s[EMBEDDINGS].float()})
    change_config(folder, tie_word_embeddings=True, dtype="bfloat16")
    with pytest.warns(UserWarning, match="several types"):
        model = Llama.from_checkpoint(folder)
    reference = theirs(folder)
    assert reference.lm_head.weight is reference.model.embed_tokens.weight
    assert model.output.weight is model.tok_embeddings.weight


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("output", ["equal", "another"])
def test_metas_output_matrix_is_what_is_stored(tmp_path, output, shards):
    # Meta's params.json does not speak of ties: what is there counts.
    params = ModelArgs(32, 1, 4, 512, multiple_of=16)
    weights = random_weights(params, torch.float32, tied=False, seed=0)
    if output == "equal":
        weights["output.weight"] = weights["tok_embeddings.weight"].clone()
    write_byte_tokenizer(tmp_path)
    (tmp_path / "params.json").write_text(params.to_json())
    for i in range(shards):
        cut = {
            k: t if "norm" in k else t.chunk(shards, 1 if k.endswith(("wo.weight", "w2.weight")) else 0)[i].clone()
            for k, t in weights.items()
        }
        torch.save(cut, tmp_path / f"consolidated.{i:02d}.pth")
    assert torch.equal(load_checkpoint(tmp_path).weights["output.weight"], weights["output.weight"])


# Two keys for one thing

LLAMA3 = rope_parameters(500000.0, 8.0, old_context_len=64)
SCALING = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
AGREE = {
    "both the same": {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3},
    "theta beside it": {"rope_parameters": LLAMA3, "rope_scaling": SCALING, "rope_theta": 500000.0},
    "8 and 8.0": {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"factor": 8}},
    "two names of the type": {"rope_parameters": LLAMA3 | {"type": "llama3"}, "rope_scaling": LLAMA3},
    "nothing said": {"rope_parameters": LLAMA3, "rope_scaling": None},
    "an empty one": {"rope_parameters": LLAMA3, "rope_scaling": {}},
    "the old length beside it": {
        "rope_parameters": {k: v for k, v in LLAMA3.items() if not k.startswith("orig")},
        "original_max_position_embeddings": 64,
    },
    "theta alone": {"rope_parameters": "absent", "rope_theta": 7000.0},
}
DIFFER = {
    "scaled and not": {"rope_parameters": rope_parameters(500000.0, None), "rope_scaling": LLAMA3},
    "two factors": {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"factor": 4.0}},
    "theta in one": {"rope_parameters": LLAMA3, "rope_scaling": SCALING},
    "two thetas": {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"rope_theta": 1e4}},
    "another theta beside it": {"rope_parameters": LLAMA3, "rope_theta": 1e4},
    "another theta beside rope_scaling": {"rope_parameters": "absent", "rope_scaling": LLAMA3, "rope_theta": 1e4},
    "two types": {"rope_parameters": LLAMA3 | {"type": "linear"}},
    "a factor for nothing": {"rope_parameters": {"rope_theta": 5e5, "factor": 8.0}},
    "two old lengths": {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("kind", AGREE)
def test_what_is_said_twice_alike_is_read_as_transformers_does(folder, kind):
    change_config(folder, **AGREE[kind])
    assert_like_transformers(folder)


@pytest.mark.parametrize("kind", DIFFER)
def test_what_is_said_twice_and_not_alike_is_refused(folder, kind):
    change_config(folder, **DIFFER[kind])
    refused(folder, "config.json", "rope")


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 3}, {"num_attention_heads": 0}, {"rms_norm_eps": None}])
def test_a_size_that_cannot_be_is_told_by_the_name_in_the_file(folder, changes):
    change_config(folder, **changes)
    refused(folder, "config.json", *changes)


@pytest.mark.parametrize("act", ["silu", "swish"])
def test_both_names_of_the_activation_are_known(folder, act):
    change_config(folder, hidden_act=act)
    assert_like_transformers(folder)


# Several types


def typed(**dtypes):
    """Tensors whose names hold a word in one type, the others in that of "rest"."""

    def change(stored):
        named = {k: next((w for w in dtypes if w in k), "rest") for k in stored}
        return {k: t.to(dtypes[named[k]]) for k, t in stored.items()}

    return change


F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
MIXED = {
    "norms in float32": typed(norm=F32, rest=BF16),
    "a head in float32": typed(lm_head=F32, rest=F16),
    "one matrix in float16": typed(up_proj=F16, rest=F32),
    "queries in the other half": typed(q_proj=F16, rest=BF16),
    "embeddings in float64": typed(embed=F64, rest=F32),
}


@pytest.mark.parametrize("told", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MIXED)
def test_several_types_open_in_the_one_that_transformers_takes(folder, kind, told):
    change_tensors(folder, MIXED[kind])
    change_config(folder, dtype=told)
    with pytest.warns(UserWarning, match=rf"model\.safetensors: weights of several types .* open as {told}") as warned:
        ckpt = load_checkpoint(folder)
    assert len([w for w in warned if "several types" in str(w.message)]) == 1
    reference = theirs(folder)
    assert {p.dtype for p in reference.parameters()} == {t.dtype for t in ckpt.weights.values()}
    ours = dict(Llama.from_checkpoint(ckpt).named_parameters())
    for name, mine in (
        ("lm_head", "output"),
        ("model.norm", "norm"),
        ("model.layers.1.mlp.up_proj", "layers.1.feed_forward.w3"),
    ):
        assert torch.equal(reference.get_parameter(f"{name}.weight"), ours[f"{mine}.weight"])


@pytest.mark.parametrize(
    ("kind", "widest"),
    [("norms in float32", F32), ("queries in the other half", F32), ("embeddings in float64", F64)],
)
def test_where_nothing_tells_the_widest_type_is_taken(folder, kind, widest):
    change_tensors(folder, MIXED[kind])
    change_config(folder, dtype="absent", torch_dtype="absent")
    with pytest.warns(UserWarning, match="several types"):
        ckpt = load_checkpoint(folder)
    assert {t.dtype for t in ckpt.weights.values()} == {widest}


@pytest.mark.parametrize("by", ["argument", "environment", "from_checkpoint"])
@pytest.mark.parametrize("kind", ["norms in float32", "nothing mixed"])
def test_one_type_can_be_asked_for(folder, kind, by, monkeypatch):
    change_tensors(folder, MIXED.get(kind, lambda stored: stored))
    if by == "environment":
        monkeypatch.setenv("LLAMA3_DTYPE", "float64")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*several types")
        if by == "from_checkpoint":
            found = {p.dtype for p in Llama.from_checkpoint(folder, dtype=F64).parameters()}
        else:
            found = {t.dtype for t in load_checkpoint(folder, F64 if by == "argument" else None).weights.values()}
    assert found == {F64}
    monkeypatch.delenv("LLAMA3_DTYPE", raising=False)
    assert_like_transformers(folder, dtype=F64)


def test_an_argument_counts_more_than_the_environment(folder, monkeypatch):
    monkeypatch.setenv("LLAMA3_DTYPE", "bfloat16")
    assert load_checkpoint(folder, dtype=F64).weights["norm.weight"].dtype == F64


@pytest.mark.parametrize("name", ["int8", "torch.float32", "fp16", "none"])
def test_a_type_that_the_environment_cannot_mean_is_named(folder, name, monkeypatch):
    monkeypatch.setenv("LLAMA3_DTYPE", name)
    with pytest.raises(CheckpointError, match=rf"LLAMA3_DTYPE.*'{name}'.*bfloat16, float16, float32, float64"):
        load_checkpoint(folder)


def test_what_has_the_type_already_stays_in_its_file(folder):
    change_tensors(folder, MIXED["norms in float32"])
    change_config(folder, dtype="bfloat16")
    with pytest.warns(UserWarning, match="several types"):
        ckpt = load_checkpoint(folder)
    first, second = ckpt.weights["tok_embeddings.weight"], ckpt.weights["tok_embeddings.weight"]
    assert first.data_ptr() == second.data_ptr()


@pytest.mark.parametrize("shards", [1, 2])
def test_metas_files_of_several_types_open_in_the_widest(tmp_path, shards):
    params = ModelArgs(32, 1, 4, 512, multiple_of=16)
    weights = random_weights(params, torch.float32, tied=True, seed=0)
    weights = {k: t if "norm" in k else t.bfloat16() for k, t in weights.items()}
    weights["output.weight"] = weights["tok_embeddings.weight"]  # a second name, which it stays
    write_byte_tokenizer(tmp_path)
    (tmp_path / "params.json").write_text(params.to_json())
    for i in range(shards):
        cut = {
            k: t if "norm" in k else t.chunk(shards, 1 if k.endswith(("wo.weight", "w2.weight")) else 0)[i].clone()
            for k, t in weights.items()
        }
        torch.save(cut | {"output.weight": cut["tok_embeddings.weight"]}, tmp_path / f"consolidated.{i:02d}.pth")
    with pytest.warns(UserWarning, match="several types"):
        model = Llama.from_checkpoint(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.output.weight is model.tok_embeddings.weight
    assert torch.equal(model.layers[0].attention.wo.weight, weights["layers.0.attention.wo.weight"].float())


# A vocabulary with more tokens than rows


def with_tokens(folder, count, added):
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:count]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(added))
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("added", [["[PAD]"], ["<a>", "<b>", "[PAD]"]])
def test_added_tokens_without_a_row_open_with_a_warning(folder, added):
    with_tokens(folder, 64, added)
    with pytest.warns(UserWarning, match=r"tokenizer\.json: .*\[PAD\] added.*no row"):
        ckpt = load_checkpoint(folder)
    assert_like_transformers(folder)
    pad = ckpt.tokenizer.special_tokens["[PAD]"]
    for run in (
        lambda: functional.forward([1, pad], ckpt.weights, ckpt.params),
        lambda: Llama.from_checkpoint(ckpt)([pad]),
    ):
        with pytest.raises(ValueError, match=f"token ids must be 0 to 63, found .*{pad}"):
            run()


def test_tokens_of_the_vocabulary_itself_without_a_row_are_refused(folder):
    with_tokens(folder, 65, ["[PAD]"])
    refused(folder, "tokenizer.json", "66 tokens", "vocab_size 64")


# Folders that hold something else

ADAPTER = {
    "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "a/base"}',
    "adapter_model.safetensors": "",
}
OTHERS = {
    "LoRA": (ADAPTER, ["adapter_config.json", "a/base", "merge_and_unload"]),
    "LoRA without its config": ({"adapter_model.bin": ""}, ["adapter_model.bin", "merge_and_unload"]),
    "GGUF": ({"m-Q4_K_M.gguf": "GGUF"}, ["m-Q4_K_M.gguf", "llama.cpp", "point"]),
    "TensorFlow": ({"config.json": "{}", "tf_model.h5": ""}, ["config.json"]),
    "ONNX": ({"model.onnx": ""}, ["model.onnx", "ONNX"]),
    "MLX": ({"weights.npz": ""}, ["weights.npz", "MLX"]),
    "pickles alone": (
        {"pytorch_model-00001-of-00002.bin": ""},
        ["pytorch_model-00001-of-00002.bin", "save_pretrained"],
    ),
    "Flax": ({"flax_model.msgpack": ""}, ["flax_model.msgpack", "Flax"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_named_with_what_to_do(tmp_path, kind):
    files, words = OTHERS[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    refused(tmp_path, *words)


@pytest.mark.parametrize("kind", ["pickles alone", "TensorFlow", "ONNX", "GGUF", "LoRA"])
def test_other_weights_beside_a_config_are_named(folder, kind):
    (folder / "model.safetensors").unlink()
    files, words = OTHERS[kind]
    for name, content in files.items():
        if name != "config.json":
            (folder / name).write_text(content)
    refused(
        folder, *([n for n in files if n != "config.json"][:1]), *(words if kind != "TensorFlow" else ["TensorFlow"])
    )


def test_an_adapter_beside_the_weights_is_not_left_out_in_silence(folder):
    (folder / "adapter_config.json").write_text(ADAPTER["adapter_config.json"])
    refused(folder, "adapter_config.json", "merge_and_unload")


QUANTISED = {
    "bitsandbytes": {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "fp8": {"quantization_config": {"quant_method": "fp8"}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
    "MLX": {"quantization": {"group_size": 64, "bits": 4}},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_folders_are_named_by_their_method(folder, method):
    change_config(folder, **QUANTISED[method])
    refused(folder, "config.json", "quantised", method, "bfloat16")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_that_nothing_tells_of_are_named(folder, dtype):
    change_tensors(folder, lambda s: {k: t.to(dtype) if "up_proj" in k else t for k, t in s.items()})
    refused(folder, "up_proj", "quantised")


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "gpt2", "mllama", None])
def test_another_architecture_is_named(folder, architecture):
    change_config(folder, model_type=architecture)
    refused(folder, "config.json", "model_type", repr(architecture), "llama")


# Meta's layout


@pytest.mark.parametrize("n_layers", [1, 4, 16])
@pytest.mark.parametrize(("name", "factor"), [("Llama 3.2 1B", 32.0), ("Llama 3.2 3B", 32.0), ("Llama 3 8B", 8.0)])
def test_the_first_layers_of_a_model_turn_as_all_of_it_does(name, factor, n_layers):
    whole = PUBLISHED[name]
    params = ModelArgs(**{**vars(whole), "n_layers": n_layers, "use_scaled_rope": True})
    config = LlamaConfig(
        hidden_size=params.dim,
        num_attention_heads=params.n_heads,
        max_position_embeddings=131072,
        rope_parameters=rope_parameters(500000.0, factor),
    )
    positions = torch.tensor([1, 1000])
    cos, sin = (t[0, :, : params.head_dim // 2] for t in LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None]))
    torch.testing.assert_close(functional.rotations(params, positions), torch.complex(cos, sin), rtol=0, atol=1e-3)


def test_quantised_weights_of_meta_are_named(tmp_path):
    params = ModelArgs(32, 1, 4, 512, multiple_of=16)
    weights = random_weights(params, torch.bfloat16, tied=False, seed=0)
    key = "layers.0.feed_forward.w1.weight"
    write_byte_tokenizer(tmp_path)
    (tmp_path / "params.json").write_text(params.to_json())
    scales = torch.ones(len(weights[key]))
    torch.save(
        weights | {key: weights[key].to(torch.int8), f"{key[:-6]}scales": scales}, tmp_path / "consolidated.00.pth"
    )
    refused(tmp_path, "consolidated.00.pth", key, "quantised")


def test_the_folder_of_the_fixture_is_right(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?!.*no tokenizer)")
        assert_like_transformers(folder)
    in_parts(shutil.copytree(folder, tmp_path / "parts"))
    assert_like_transformers(tmp_path / "parts")
