"""The sizes of the published models and their rotations, held against what Meta and Hugging Face state."""

import dataclasses
import json
import math

import pytest
import torch
from helpers import distance, hf_logits, hf_model, random_tokens, rope_parameters
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_scratch import Llama, ModelArgs, functional
from llama3_scratch.loading.tiny import random_weights
from llama3_scratch.params import PUBLISHED


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


# As Meta states them on its model cards, exactly; the tied models count their embeddings once.
COUNTS = {
    "Llama 3 8B": 8_030_261_248,
    "Llama 3 70B": 70_553_706_496,
    "Llama 3.1 405B": 405_853_388_800,
    "Llama 3.2 1B": 1_235_814_400,
    "Llama 3.2 3B": 3_212_749_824,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_the_published_models(name):
    tied = "3.2" in name
    shapes = PUBLISHED[name].weight_shapes()
    count = sum(math.prod(shape) for key, shape in shapes.items() if not (tied and key == "output.weight"))
    assert count == COUNTS[name]
    with torch.device("meta"):
        model = Llama(PUBLISHED[name], tied=tied)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


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


def test_the_positions_a_model_has_unless_it_says_otherwise():
    assert ModelArgs(64, 2, 4, 512).context_len == 8192
    assert ModelArgs(64, 2, 4, 512, use_scaled_rope=True).context_len == 131072
    assert ModelArgs(64, 2, 4, 512, context_len=100).context_len == 100


def test_keys_and_shapes_of_llama_3_8b():
    shapes = PUBLISHED["Llama 3 8B"].weight_shapes()
    of_a_layer = "attention.wq attention.wk attention.wv attention.wo feed_forward.w1 feed_forward.w3 feed_forward.w2 "
    of_a_layer = (of_a_layer + "attention_norm ffn_norm").split()
    printed = ["tok_embeddings", *(f"layers.{i}.{name}" for i in range(3) for name in of_a_layer)][:20]
    assert list(shapes)[:20] == [f"{name}.weight" for name in printed]  # as the article prints them
    assert len(shapes) == 291
    assert list(shapes)[-2:] == ["norm.weight", "output.weight"]
    assert shapes["tok_embeddings.weight"] == shapes["output.weight"] == (128256, 4096)
    assert shapes["layers.31.attention.wk.weight"] == shapes["layers.31.attention.wv.weight"] == (1024, 4096)
    assert shapes["layers.31.feed_forward.w2.weight"] == (4096, 14336)


def test_what_params_leave_out_is_as_in_metas_code():
    # ModelArgs and FeedForward of Meta's llama3/model.py; the scaling's numbers are those of its llama-models.
    expected = {"n_kv_heads": 4, "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5}
    expected |= {"rope_theta": 500000.0, "use_scaled_rope": False, "rope_scale_factor": None}
    expected |= {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_old_context_len": 8192}
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512}
    assert dataclasses.asdict(ModelArgs(**sizes)) == sizes | expected | {"context_len": 8192}


def test_rotations_scale_as_llama_3_1_does_unless_told_otherwise():
    frequencies = torch.logspace(-6, 0, 64)
    told = functional.apply_scaling(frequencies, 8.0, low_freq_factor=1.0, high_freq_factor=4.0, old_context_len=8192)
    assert torch.equal(functional.apply_scaling(frequencies, 8.0), told)
    assert torch.equal(functional.precompute_freqs_cis(16, 5), functional.precompute_freqs_cis(16, 5, 500000.0, None))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "Llama 3 8B",
            """{"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024,
            "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0}""",
        ),
        (
            "Llama 3.2 1B",
            """{"dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "n_heads": 32, "n_kv_heads": 8,
            "n_layers": 16, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": true,
            "vocab_size": 128256}""",
        ),
    ],
)
def test_params_are_written_with_the_keys_of_metas_own_file(name, text):
    assert json.loads(PUBLISHED[name].to_json()) == json.loads(text)


def test_only_what_is_in_use_is_written():
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512}
    of_every_file = {"n_kv_heads": 4, "multiple_of": 256, "norm_eps": 1e-5, "rope_theta": 500000.0}
    assert json.loads(ModelArgs(**sizes).to_json()) == sizes | of_every_file
    for more in ({"context_len": 100}, {"use_scaled_rope": True, "context_len": 8192}, {"rope_scale_factor": 4.0}):
        assert json.loads(ModelArgs(**sizes, **more).to_json()) == sizes | of_every_file | more


def test_sizes_that_follow_from_others():
    params = ModelArgs(48, 1, 12, 10, n_kv_heads=3, multiple_of=1)
    assert (params.head_dim, params.group_size, params.hidden_dim) == (4, 4, 128)
    assert dataclasses.replace(params, multiple_of=100).hidden_dim == 200
    assert dataclasses.replace(params, multiple_of=128).hidden_dim == 128
    assert dataclasses.replace(params, ffn_dim_multiplier=1.3).hidden_dim == 166  # 166.4
