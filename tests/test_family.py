"""Every Llama 3 there is: shards, tied embeddings, scaled RoPE, what params.json leaves out, Hugging Face's folders."""

import json
import math
import shutil
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import distance, hf_greedy, hf_logits, hf_model, random_tokens, rope_parameters
from safetensors.torch import load_file, save_file
from test_tokenizer import texts
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as TheirTokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_scratch import CheckpointError, Llama, ModelArgs, Tokenizer, functional, generate, load_checkpoint
from llama3_scratch.fetch import LLAMA3_TOKENIZER, fetch
from llama3_scratch.params import PUBLISHED
from llama3_scratch.tiny import random_weights, write_byte_tokenizer

# Vocabularies here are smaller than the models', which load_checkpoint remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:tokenizer.model. .* tokens, and the model has .* rows")

# The sizes of the family


@pytest.mark.parametrize(
    ("name", "hidden_dim"),
    [
        ("Llama 3 8B", 14336),
        ("Llama 3 70B", 28672),
        ("Llama 3.1 405B", 53248),
        ("Llama 3.2 1B", 8192),
        ("Llama 3.2 3B", 8192),
    ],
)
def test_hidden_sizes_of_the_published_models(name, hidden_dim):
    assert PUBLISHED[name].hidden_dim == hidden_dim


@pytest.mark.parametrize(
    ("name", "tied", "count"),
    [
        ("Llama 3 8B", False, 8_030_261_248),
        ("Llama 3.2 1B", True, 1_235_814_400),
        ("Llama 3.2 3B", True, 3_212_749_824),
    ],
)
def test_parameter_counts_of_the_published_models(name, tied, count):
    shapes = PUBLISHED[name].weight_shapes()
    assert sum(math.prod(shape) for key, shape in shapes.items() if not (tied and key == "output.weight")) == count
    with torch.device("meta"):
        model = Llama(PUBLISHED[name])
    if tied:
        model.output.weight = model.tok_embeddings.weight
    assert sum(p.numel() for p in model.parameters()) == count


# Scaled RoPE


@pytest.mark.parametrize(
    ("params", "factor"),
    [
        (PUBLISHED["Llama 3 8B"], None),
        (PUBLISHED["Llama 3 70B"], None),
        (ModelArgs(4096, 32, 32, 128256, 8, multiple_of=1024, ffn_dim_multiplier=1.3, use_scaled_rope=True), 8.0),
        (ModelArgs(8192, 80, 64, 128256, 8, multiple_of=4096, ffn_dim_multiplier=1.3, use_scaled_rope=True), 8.0),
        (PUBLISHED["Llama 3.1 405B"], 8.0),
        (PUBLISHED["Llama 3.2 1B"], 32.0),
        (PUBLISHED["Llama 3.2 3B"], 32.0),
        # One that says so itself.
        (ModelArgs(2048, 16, 32, 128256, 8, use_scaled_rope=True, rope_scale_factor=16.0), 16.0),
        (ModelArgs(64, 2, 4, 512, use_scaled_rope=True, rope_scale_factor=16.0), 16.0),
    ],
    ids=["3 8B", "3 70B", "3.1 8B", "3.1 70B", "3.1 405B", "3.2 1B", "3.2 3B", "explicit at 1B", "explicit"],
)
def test_positions_of_the_published_models_are_hugging_faces(params, factor):
    config = LlamaConfig(
        hidden_size=params.dim,
        num_attention_heads=params.n_heads,
        max_position_embeddings=131072,
        rope_parameters=rope_parameters(500000.0, factor),
    )
    positions = torch.tensor([0, 1, 100, 8191, 8192, 60001])
    cos, sin = (t[0, :, : params.head_dim // 2] for t in LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None]))
    # At position 60001 one unit in the last place of a float32 frequency is an angle of 0.004.
    torch.testing.assert_close(functional.rotations(params, positions), torch.complex(cos, sin), rtol=0, atol=0.01)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@torch.no_grad()
def test_logits_beyond_8192_positions_equal_hugging_faces(factor):
    sizes = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64, "n_kv_heads": 1, "multiple_of": 16}
    params = ModelArgs(**sizes, use_scaled_rope=True, rope_scale_factor=factor)
    weights = random_weights(params, torch.float32, tied=True, seed=0)
    tokens = random_tokens(params, 8300)
    theirs = hf_logits(hf_model(params, weights, "sdpa"), tokens)
    ours = functional.forward(tokens, weights, params)
    assert distance(ours[:8192], theirs[:8192]) < 1e-4
    assert distance(ours[8192:], theirs[8192:]) < 2e-3
    # Were the factor another one, it would show.
    other = ModelArgs(**sizes, use_scaled_rope=True, rope_scale_factor=16.0)
    assert distance(functional.forward(tokens[:300], weights, other), theirs[:300]) > 1e-3


# What params.json says and leaves out

BARE = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512}  # all that a file must have
SIZES = {"multiple_of": 48, "norm_eps": 1e-3, "rope_theta": 10000.0}


def write_checkpoint(folder, params_json, weights, shards=1):
    """A folder in Meta's layout, each line of it written here."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params_json))
    write_byte_tokenizer(folder)
    for i, part in enumerate(split(weights, shards)):
        torch.save(part, folder / f"consolidated.{i:02d}.pth")
    return folder


def split(weights, shards):
    """As Meta cut its models: matrices by rows, wo and w2 by columns, norms not at all."""
    parts = []
    for i in range(shards):
        part = {}
        for key, weight in weights.items():
            if "norm" in key or shards == 1:
                part[key] = weight
            else:
                part[key] = weight.chunk(shards, dim=1 if ".wo." in key or ".w2." in key else 0)[i].clone()
        parts.append(part)
    return parts


def assert_like_hugging_faces(checkpoint, theirs, tolerance=1e-4, length=256):
    """Logits of both our forms, and 16 greedy tokens."""
    tokens = random_tokens(checkpoint.params, length)
    expected = hf_logits(theirs, tokens)
    model = Llama.from_checkpoint(checkpoint)
    assert distance(functional.forward(tokens, checkpoint.weights, checkpoint.params), expected) < tolerance
    with torch.no_grad():
        assert distance(model(tokens), expected) < tolerance
    prompt = tokens[:20].tolist()
    assert list(generate(model, prompt)) == hf_greedy(theirs, prompt, 16)


@pytest.mark.parametrize(
    ("params_json", "expected"),
    [
        (BARE, ModelArgs(**BARE, n_kv_heads=4, multiple_of=256, norm_eps=1e-5, rope_theta=500000.0)),
        (BARE | SIZES, ModelArgs(**BARE, **SIZES, n_kv_heads=4)),
        (BARE | SIZES | {"n_kv_heads": None, "ffn_dim_multiplier": None}, ModelArgs(**BARE, **SIZES, n_kv_heads=4)),
        (BARE | SIZES | {"n_kv_heads": 1}, ModelArgs(**BARE, **SIZES, n_kv_heads=1)),
        (BARE | SIZES | {"n_kv_heads": 2, "ffn_dim_multiplier": 1.3}, None),
        (BARE | {"use_scaled_rope": False}, ModelArgs(**BARE)),
        (BARE | {"use_scaled_rope": True}, ModelArgs(**BARE, use_scaled_rope=True, rope_scale_factor=8.0)),
        (BARE | {"use_scaled_rope": True, "rope_scale_factor": 32}, None),
        (BARE | {"max_seq_len": 100, "max_batch_size": 4}, ModelArgs(**BARE)),
    ],
    ids=["bare", "MHA", "null", "MQA", "GQA", "RoPE as it is", "scaled RoPE", "scaled by 32", "Meta's own settings"],
)
@pytest.mark.filterwarnings("ignore:params.json. ignoring unknown keys")
def test_whatever_params_json_leaves_out(tmp_path, params_json, expected):
    expected = expected or ModelArgs(**params_json)
    weights = random_weights(expected, torch.float32, tied=False, seed=1)
    ckpt = load_checkpoint(write_checkpoint(tmp_path / "m", params_json, weights))
    assert_like_hugging_faces(ckpt, hf_model(expected, weights), length=60)


def test_unknown_numbers_in_params_json_are_named_and_ignored(tmp_path):
    params = ModelArgs(**BARE)
    weights = random_weights(params, torch.float32, tied=True, seed=1)
    folder = write_checkpoint(tmp_path / "m", BARE | {"vision_chunk_size": 448, "quantization_args": {}}, weights)
    with pytest.warns(UserWarning, match="unknown keys quantization_args, vision_chunk_size"):
        ckpt = load_checkpoint(folder)
    assert ckpt.params == params


def test_the_positions_a_model_has_unless_it_says_otherwise():
    assert ModelArgs(**BARE).max_seq_len == 8192
    assert ModelArgs(**BARE, use_scaled_rope=True).max_seq_len == 131072
    assert ModelArgs(**BARE, max_seq_len=100).max_seq_len == 100


# Shards

SHARDED = ModelArgs(128, 2, 8, 2048, n_kv_heads=4, multiple_of=32, norm_eps=1e-3)
SHARDED_JSON = {"dim": 128, "n_layers": 2, "n_heads": 8, "vocab_size": 2048, "n_kv_heads": 4, "multiple_of": 32}
SHARDED_JSON |= {"norm_eps": 1e-3}
KINDS = ["untied", "tied", "second name"]


def sharded_weights(kind, dtype=torch.float32):
    weights = random_weights(SHARDED, dtype, tied=kind != "untied", seed=2)
    return weights | ({"output.weight": weights["tok_embeddings.weight"]} if kind == "second name" else {})


def write_shards(folder, kind="untied", shards=2, dtype=torch.float32):
    """What torch.save is given for a second name: the same tensor twice, in every shard."""
    write_checkpoint(folder, SHARDED_JSON, sharded_weights(kind, dtype), shards)
    if kind == "second name":
        for path in folder.glob("*.pth"):
            part = torch.load(path)
            torch.save(part | {"output.weight": part["tok_embeddings.weight"]}, path)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [2, 4])
def test_shards_are_joined(tmp_path, kind, shards):
    ckpt = load_checkpoint(write_shards(tmp_path / "m", kind, shards))
    whole = sharded_weights(kind)
    for key in ckpt.weights:
        torch.testing.assert_close(ckpt.weights[key], whole[key], rtol=0, atol=0)
    assert ckpt.weights.keys() | {"output.weight"} == SHARDED.weight_shapes().keys()
    assert_like_hugging_faces(ckpt, hf_model(SHARDED, whole), length=60)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_tied_embeddings_are_one_storage_and_the_others_two(tmp_path, kind, shards, dtype):
    folder = write_shards(tmp_path / "m", kind, shards)
    whole = sharded_weights(kind)
    count = sum(t.numel() for key, t in whole.items() if kind == "untied" or key != "output.weight")
    for model in (
        Llama.from_checkpoint(load_checkpoint(folder, dtype=dtype)),
        Llama.from_checkpoint(folder, dtype=dtype),
    ):
        assert sum(p.numel() for p in model.parameters()) == count
        assert {p.dtype for p in model.parameters()} == {dtype or torch.float32}
        storages = {p.untyped_storage().data_ptr() for p in (model.tok_embeddings.weight, model.output.weight)}
        same = model.tok_embeddings.weight.data_ptr() == model.output.weight.data_ptr()
        assert same == (kind != "untied")
        assert len(storages) == 1 if same else True
        output = whole.get("output.weight", whole["tok_embeddings.weight"]).to(dtype or torch.float32)
        assert torch.equal(model.output.weight, output)


@pytest.mark.parametrize("shards", [1, 2])
def test_an_output_matrix_of_its_own_is_not_lost_in_conversion(tmp_path, shards):
    # Matrices of over 32 MB, which the system puts where the last one of that size was: an address says little then.
    params_json = {"dim": 128, "n_layers": 1, "n_heads": 4, "vocab_size": 70000, "multiple_of": 32}
    whole = random_weights(ModelArgs(**params_json), torch.float32, tied=False, seed=0)
    folder = write_checkpoint(tmp_path / "m", params_json, whole, shards)
    weights = load_checkpoint(folder, dtype=torch.bfloat16).weights
    assert weights.keys() == whole.keys()
    assert torch.equal(weights["output.weight"], whole["output.weight"].bfloat16())
    assert not torch.equal(Llama.from_checkpoint(folder).output.weight, whole["tok_embeddings.weight"])


def test_the_norms_of_the_first_shard_count(tmp_path):
    folder = write_shards(tmp_path / "m", shards=4)
    for i in (1, 2, 3):
        part = torch.load(folder / f"consolidated.{i:02d}.pth")
        torch.save({k: t + i if "norm" in k else t for k, t in part.items()}, folder / f"consolidated.{i:02d}.pth")
    assert_like_hugging_faces(load_checkpoint(folder), hf_model(SHARDED, sharded_weights("untied")), length=20)


def rename(folder, old, new):
    (folder / f"consolidated.{old}.pth").rename(folder / f"consolidated.{new}.pth")


def change_shard(folder, number, change):
    path = folder / f"consolidated.{number:02d}.pth"
    torch.save(change(torch.load(path)), path)


WO, W1 = "layers.0.attention.wo.weight", "layers.1.feed_forward.w1.weight"
BROKEN_SHARDS = {
    "a gap": (lambda f: rename(f, "01", "02"), r"consolidated\.01\.pth: not found.*2 shards.*no gap"),
    "the first missing": (lambda f: (f / "consolidated.00.pth").unlink(), r"consolidated\.00\.pth: not found"),
    "the last missing": (lambda f: (f / "consolidated.01.pth").unlink(), r"consolidated\.00\.pth: .* is \[1024, 128\]"),
    "one too many": (lambda f: shutil.copy(f / "consolidated.01.pth", f / "consolidated.02.pth"), "3 shards"),
    "a shard of another shape": (
        lambda f: change_shard(f, 1, lambda w: w | {W1: w[W1][:-1].clone()}),
        rf"consolidated\.01\.pth: {W1} is \[175, 128\], .* \[176, 128\]",
    ),
    "cut along the other dimension": (
        lambda f: change_shard(f, 1, lambda w: w | {WO: w[WO].T.contiguous()}),
        rf"consolidated\.01\.pth: {WO} is \[64, 128\], .* \[128, 64\]",
    ),
    "a whole model as a shard": (
        lambda f: torch.save(sharded_weights("untied"), f / "consolidated.01.pth"),
        r"consolidated\.01\.pth: all of a model, not one of 2 shards",
    ),
    "a key missing in one": (
        lambda f: change_shard(f, 1, lambda w: {k: t for k, t in w.items() if k != W1}),
        rf"consolidated\.01\.pth: {W1} is missing",
    ),
    "output.weight missing in one": (
        lambda f: change_shard(f, 1, lambda w: {k: t for k, t in w.items() if k != "output.weight"}),
        r"consolidated\.01\.pth: not the same weights",
    ),
    "another type in one": (
        lambda f: change_shard(f, 1, lambda w: {k: t.bfloat16() for k, t in w.items()}),
        "bfloat16.*float32|float32.*bfloat16",
    ),
    "half a file": (
        lambda f: (f / "consolidated.01.pth").write_bytes((f / "consolidated.01.pth").read_bytes()[:-5000]),
        r"consolidated\.01\.pth: not a readable file",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_SHARDS)
def test_shards_that_do_not_fit_are_refused(tmp_path, fault):
    folder = write_shards(tmp_path / "m")
    spoil, message = BROKEN_SHARDS[fault]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(folder)
    assert str(folder) in str(raised.value)


def mapped_bytes(path):
    """The addresses at which a file is mapped into this process, as Linux tells."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name == str(path):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield range(start, end)


def lies_in(tensor, path):
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes - 1
    return any(first in addresses and last in addresses for addresses in mapped_bytes(path))


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where files are mapped")


@on_linux
def test_shards_stay_in_their_files_and_are_joined_one_by_one(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "m")
    cat, joined = torch.cat, []
    monkeypatch.setattr(torch, "cat", lambda *a, **k: joined.append(cat(*a, **k)) or joined[-1])
    ckpt = load_checkpoint(folder)
    assert not joined  # opening copies nothing
    assert "layers.0.attention.wq.weight" in ckpt.weights and list(ckpt.weights) and not joined
    assert lies_in(ckpt.weights["norm.weight"], folder / "consolidated.00.pth")
    for parts in ckpt.weights.parts.values():
        assert [lies_in(part, folder / f"consolidated.{i:02d}.pth") for i, part in enumerate(parts)] == [True, True]

    whole = ckpt.weights["layers.0.attention.wq.weight"]
    assert len(joined) == 1 and joined.pop() is whole
    gone = weakref.ref(whole)
    del whole
    assert gone() is None  # nobody keeps what was joined


def test_only_one_layer_of_shards_is_held_at_a_time(tmp_path, monkeypatch):
    ckpt = load_checkpoint(write_shards(tmp_path / "m"))
    cat, joined, most = torch.cat, [], 0

    def counted(*args):
        nonlocal most
        joined.append(weakref.ref(whole := cat(*args)))
        most = max(most, sum(ref() is not None for ref in joined))
        return whole

    monkeypatch.setattr(torch, "cat", counted)
    functional.forward([1, 2, 3], ckpt.weights, ckpt.params)
    assert len(joined) == 2 * 7 + 2
    assert most <= 7 + 1  # the matrices of a layer, and the embeddings


# Hugging Face's folders

BASE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": rope_parameters(500000.0, None),
    "bos_token_id": 1,
    "eos_token_id": 2,
}
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


def their_model(**config):
    """Hugging Face's model with weights of a size that makes every step of it matter."""
    model = LlamaForCausalLM(LlamaConfig(**(BASE | config), attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            uniform = torch.rand(p.shape, generator=generator) * 2 - 1
            if "norm" in name:
                p.copy_(1 + uniform / 2)
            else:
                p.copy_(uniform / 8 if "embed" in name else uniform * math.sqrt(6 / p.shape[-1]))
    return model


@pytest.fixture(scope="session")
def their_tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained(SMOLLM2_STEPS, SPECIALS_FIRST, vocab_size=400).save(str(path))
    return path


@pytest.fixture
def save(tmp_path, their_tokenizer_file):
    """Model -> folder, as `save_pretrained` writes it, with a tokenizer."""

    def save_model(model, **options):
        folder = tmp_path / "hf"
        model.save_pretrained(folder, **options)
        shutil.copy(their_tokenizer_file, folder)
        return folder

    return save_model


def change_config(folder, **changes):
    """Change entries of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


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
    assert (ours.params.rope_factor, ours.params.max_seq_len) == (ckpt.params.rope_factor, 131072)


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
    ids=["Llama 3", "null", "Llama 3.1", "two names for the type", "whole numbers"],
)
def test_a_config_from_before_version_5_of_transformers(save, factor, old_style):
    theirs = their_model(rope_parameters=rope_parameters(500000.0, factor))
    folder = save(theirs)
    config = json.loads((folder / "config.json").read_text())
    for newer in ("rope_parameters", "dtype", "head_dim"):
        del config[newer]
    (folder / "config.json").write_text(json.dumps(config | old_style | {"torch_dtype": "float32"}))
    assert_like_hugging_faces(load_checkpoint(folder), theirs)


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
    with pytest.warns(UserWarning, match=r"no tokenizer\.json"):
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
    "another architecture": (lambda f: change_config(f, model_type="mistral"), "model_type is 'mistral'"),
    "biases": (lambda f: change_config(f, attention_bias=True), "attention_bias is True"),
    "another activation": (lambda f: change_config(f, hidden_act="gelu"), "hidden_act is 'gelu'"),
    "another scaling": (
        lambda f: change_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        "rope_type is 'yarn'",
    ),
    "a scaling without its numbers": (
        lambda f: change_config(f, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        "low_freq_factor",
    ),
    "a scaling that is text": (lambda f: change_config(f, rope_parameters=None, rope_scaling="llama3"), "rope"),
    "heads of another size": (lambda f: change_config(f, head_dim=16), "head_dim 16"),
    "no hidden size": (lambda f: change_config(f, intermediate_size=None), "intermediate_size missing"),
    "sizes that do not fit": (lambda f: change_config(f, intermediate_size=97), r"is \[96, 64\], .* \[97, 64\]"),
    "too few layers": (lambda f: change_config(f, num_hidden_layers=1), r"unknown tensors model\.layers\.1\."),
    "too many layers": (lambda f: change_config(f, num_hidden_layers=3), r"model\.layers\.2\..* is missing"),
    "heads that do not divide": (lambda f: change_config(f, num_key_value_heads=3), "n_heads 8 does not divide"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
    "a config that is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        r"config\.json: expected a JSON object",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: not found"),
    "half a file": (lambda f: truncate(f / "model.safetensors"), r"model\.safetensors: not a readable"),
    "an HTML page": (
        lambda f: (f / "model.safetensors").write_text("<html>" * 99),
        r"model\.safetensors: not a readable",
    ),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors: not a readable"),
    "a tensor missing": (
        lambda f: change_tensors(f, lambda w: {k: t for k, t in w.items() if k != UP}),
        rf"{UP} is missing",
    ),
    "no output matrix": (
        lambda f: change_tensors(f, lambda w: {k: t for k, t in w.items() if k != "lm_head.weight"}),
        r"lm_head\.weight is missing",
    ),
    "a tensor too many": (lambda f: change_tensors(f, lambda w: w | {"x": torch.ones(2)}), "unknown tensors x"),
    "a bias": (
        lambda f: change_tensors(f, lambda w: w | {Q.replace("weight", "bias"): torch.ones(64)}),
        r"unknown tensors .*q_proj\.bias",
    ),
    "a wrong shape": (lambda f: change_tensors(f, lambda w: w | {Q: w[Q][:-1].clone()}), rf"{Q} is \[63, 64\]"),
    "eight bits": (lambda f: change_tensors(f, lambda w: w | {Q: w[Q].to(torch.float8_e4m3fn)}), rf"{Q} is F8_E4M3"),
    "whole numbers": (lambda f: change_tensors(f, lambda w: w | {Q: w[Q].to(torch.int8)}), rf"{Q} is I8"),
    "two types": (lambda f: change_tensors(f, lambda w: w | {Q: w[Q].half()}), "float16.*float32|float32.*float16"),
}


@pytest.mark.parametrize("fault", BROKEN_FOLDERS)
def test_a_broken_folder_is_refused(save, fault):
    folder = save(their_model())
    spoil, message = BROKEN_FOLDERS[fault]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(folder)
    assert str(folder) in str(raised.value)


BROKEN_INDICES = {
    "a part missing": (lambda f: min(f.glob("model-*")).unlink(), "model-00001-of-.*not found"),
    "a part that is half": (lambda f: truncate(max(f.glob("model-*"))), "model-.*not a readable"),
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
    spoil, message = BROKEN_INDICES[fault]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


# tokenizer.json, judged by the library that wrote it

CORPUS = [
    "The cat sat on the mat, and the dog didn't. It's 12345 o'clock; WE'LL see!",
    "def f(x):\n    return x ** 2  # 3.14\n\n\nprint(f(2))\t\r\n",
    "naïve café 中文 日本語 한국어 العربية हिन्दी 😀 👩\u200d👧 ½ ٣ Ǆ ß",
    "the the the there then than that this these those    spaces  \n\n  and more",
] * 5
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_STEPS = [
    pre_tokenizers.Split(Regex(LLAMA3_REGEX), behavior="isolated", invert=False),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
]
SMOLLM2_STEPS = [
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
]
GROUPED_STEPS = [pre_tokenizers.Digits(individual_digits=False), *SMOLLM2_STEPS[1:]]
SPECIALS_FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIALS_LAST = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def trained(steps, specials_first=(), specials_last=(), vocab_size=450):
    tokenizer = TheirTokenizer(models.BPE(ignore_merges=bool(specials_last)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials_first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(specials_last))
    if specials_last:  # as Llama 3's: every text is opened
        bos = specials_last[0]
        opening = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), opening])
    return tokenizer


FORMS = {
    "Llama 3's": lambda: trained(LLAMA3_STEPS, specials_last=SPECIALS_LAST),
    "SmolLM2's": lambda: trained(SMOLLM2_STEPS, SPECIALS_FIRST),
    "numbers together": lambda: trained(GROUPED_STEPS, SPECIALS_FIRST),
    "GPT-2's": lambda: trained(SMOLLM2_STEPS[1:], SPECIALS_FIRST),
}


def write_tokenizer(tokenizer, folder, **config):
    tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def read_by_both(theirs, folder):
    return Tokenizer(write_tokenizer(theirs, folder)), theirs


@pytest.fixture(scope="module", params=FORMS)
def pair(request, tmp_path_factory):
    """One vocabulary, read by us and by its own library."""
    return read_by_both(FORMS[request.param](), tmp_path_factory.mktemp("pair"))


words = st.sampled_from([*" ".join(CORPUS[:4]).split(), " ", "  ", "\n", "'ſ", "'S", "\x1c", "7"])
phrases = st.lists(words, max_size=12)


@settings(max_examples=300)
@given(text=texts | phrases.map(" ".join) | phrases.map("".join))
def test_ids_equal_those_of_the_library_that_made_the_vocabulary(pair, text):
    ours, theirs = pair
    if any(name in text for name in ours.special_tokens):
        return  # there text would become control tokens; see below
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text


def test_control_tokens_in_text_equal_the_librarys_where_they_are_allowed(pair):
    ours, theirs = pair
    names = list(ours.special_tokens)
    text = f"{names[0]} the cat{names[1]}\n\n{names[2]}12345"
    assert ours.encode(text, allowed_special="all") == theirs.encode(text, add_special_tokens=False).ids
    assert not set(ours.encode(text)) & set(ours.special_tokens.values())
    assert (ours.vocab_size, ours.special_tokens) == (
        theirs.get_vocab_size(),
        {name: theirs.token_to_id(name) for name in names},
    )


def test_what_llama_3s_folder_says_of_its_tokens(tmp_path):
    theirs = FORMS["Llama 3's"]()
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizer"}
    ours = Tokenizer(write_tokenizer(theirs, tmp_path, **config))
    assert ours.add_bos is True
    assert ours.encode("The cat", bos=True) == theirs.encode("The cat").ids
    assert ours.bos_id == theirs.token_to_id("<|begin_of_text|>")
    assert ours.eos_id == theirs.token_to_id("<|eot_id|>")
    assert ours.stop_tokens == {theirs.token_to_id("<|eot_id|>"), theirs.token_to_id("<|end_of_text|>")}


def test_what_smollm2s_folder_says_of_its_tokens(tmp_path):
    bos = {"__type": "AddedToken", "content": "<|im_start|>", "special": True}
    ours = Tokenizer(
        write_tokenizer(FORMS["SmolLM2's"](), tmp_path, bos_token=bos, eos_token="<|im_end|>", pad_token="<|im_end|>")
    )
    assert (ours.add_bos, ours.bos_id, ours.eos_id) == (False, 1, 2)
    assert ours.stop_tokens == {0, 2}


def test_a_folder_says_which_tokens_open_and_close_in_config_json_too(save):
    folder = save(their_model(bos_token_id=1, eos_token_id=[2, 0]))
    tokenizer = load_checkpoint(folder).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, False)


def test_a_folder_that_names_no_token_to_open_with(save):
    folder = save(their_model(bos_token_id=None, eos_token_id=None))
    tokenizer = load_checkpoint(folder).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (None, None, False)
    with pytest.raises(ValueError, match="no token to open"):
        tokenizer.encode("hi", bos=True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The first 20,000 of Meta's own ranks: Meta's file, and the tokenizer.json that transformers makes of it."""
    folder = tmp_path_factory.mktemp("converted")
    lines = (fetch(LLAMA3_TOKENIZER) / "tokenizer.model").read_text().splitlines()[:20000]
    (folder / "tokenizer.model").write_text("\n".join(lines))
    meta = Tokenizer(folder / "tokenizer.model")
    converter = TikTokenConverter(str(folder / "tokenizer.model"), extra_special_tokens=list(meta.special_tokens))
    theirs = converter.converted()
    write_tokenizer(theirs, folder, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    return meta, theirs, Tokenizer(folder / "tokenizer.json")


@settings(max_examples=200)
@given(text=texts)
def test_llama_3s_vocabulary_is_the_same_in_both_files(converted, text):
    meta, theirs, ours = converted
    assert ours.encode(text) == meta.encode(text)
    if not any(name in text for name in ours.special_tokens):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_llama_3s_control_tokens_are_the_same_in_both_files(converted):
    meta, _, ours = converted
    for name in ("special_tokens", "bos_id", "eos_id", "vocab_size", "stop_tokens"):
        assert getattr(ours, name) == getattr(meta, name)


def test_merges_written_as_in_older_files(tmp_path, their_tokenizer_file):
    content = json.loads(their_tokenizer_file.read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    new, old = Tokenizer(their_tokenizer_file), Tokenizer(tmp_path / "tokenizer.json")
    assert all(old.encode(text) == new.encode(text) for text in CORPUS)
    assert len(new.encode(CORPUS[0])) < len(CORPUS[0]) * 0.8  # some were merged


def word_piece():
    return TheirTokenizer(models.WordPiece({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))


def sentence_piece():
    tokenizer = TheirTokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    return tokenizer


def with_step(step, normalizer=None):
    tokenizer = trained([*step, LLAMA3_STEPS[1]])
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def spaced():
    return trained([pre_tokenizers.ByteLevel(add_prefix_space=True)])


REFUSED = {
    "WordPiece": word_piece,
    "Unigram": lambda: TheirTokenizer(models.Unigram([("a", 0.0)])),
    "SentencePiece": sentence_piece,
    "a space put before the text": spaced,
    "cut at white space": lambda: trained([pre_tokenizers.Whitespace()]),
    # These change or drop text before it is cut, or cut it elsewhere than the pattern says.
    "text in another form first": lambda: with_step(LLAMA3_STEPS[:1], normalizers.NFC()),
    "lower case first": lambda: with_step(LLAMA3_STEPS[:1], normalizers.Lowercase()),
    "matches removed": lambda: with_step([pre_tokenizers.Split(Regex(r"\s+"), "removed")]),
    "cut where the pattern does not match": lambda: with_step(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed", invert=True)]
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_vocabularies_of_another_kind_are_refused(tmp_path, kind):
    path = write_tokenizer(REFUSED[kind](), tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("model"),
        lambda content: content["model"].update(vocab={}),
        lambda content: content["model"].update(vocab=["a", "b"]),
        lambda content: content["model"]["vocab"].update(a="5"),
        lambda content: content["model"]["vocab"].update(a=5),
        lambda content: content["model"]["merges"].reverse(),
        lambda content: content["model"].update(merges=[]),
        lambda content: content["model"]["merges"].append(["q", "q"]),
        lambda content: content.update(added_tokens=None),
        lambda content: content.update(added_tokens=["<s>"]),
        lambda content: content.update(pre_tokenizer=None),
        lambda content: content.update(pre_tokenizer="ByteLevel"),
    ],
    ids=[
        "no model",
        "no tokens",
        "tokens without ids",
        "an id that is text",
        "an id twice",
        "merges in another order",
        "no merges",
        "a merge of nothing",
        "no added tokens",
        "added tokens without ids",
        "no pattern",
        "a pattern that is text",
    ],
)
def test_a_broken_tokenizer_json_is_refused(tmp_path, their_tokenizer_file, change):
    content = json.loads(their_tokenizer_file.read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udc80"], ids=ascii)
def test_a_tokenizer_json_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_vocabulary_larger_than_the_model_is_refused(save):
    with pytest.raises(CheckpointError, match="400 tokens, but the model has vocab_size 300"):
        load_checkpoint(save(their_model(vocab_size=300)))


def test_no_folder_warns_of_anything(save):
    folder = save(their_model(tie_word_embeddings=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama.from_checkpoint(folder)


def test_added_tokens_that_are_words_are_always_read_as_tokens(tmp_path):
    theirs = FORMS["SmolLM2's"]()
    theirs.add_tokens(["<tool>"])  # not special: the library reads it in any text
    ours, _ = read_by_both(theirs, tmp_path)
    assert ours.encode("a <tool>b") == theirs.encode("a <tool>b").ids
    assert theirs.token_to_id("<tool>") in ours.encode("<tool>")


def test_every_id_that_ends_a_text_stops(tmp_path):
    theirs = FORMS["SmolLM2's"]()
    theirs.add_special_tokens(["<stop>", "<done>", "<other>"])
    stop, done = theirs.token_to_id("<stop>"), theirs.token_to_id("<done>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, done]}))
    ours, _ = read_by_both(theirs, tmp_path)
    assert {stop, done} <= ours.stop_tokens and theirs.token_to_id("<other>") not in ours.stop_tokens


def test_the_opening_token_is_known_from_the_template_alone(tmp_path):
    ours, theirs = read_by_both(FORMS["Llama 3's"](), tmp_path)
    assert ours.encode("a", bos=ours.add_bos) == theirs.encode("a").ids
    assert len(theirs.encode("a").ids) == 2
