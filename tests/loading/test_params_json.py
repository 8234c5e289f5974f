"""Meta's params.json: whatever it leaves out, the model is the one that Hugging Face computes."""

import pytest
import torch
from helpers import assert_like_hugging_faces, hf_model, naming, write_checkpoint

from llama3_scratch import ModelArgs, load_checkpoint
from llama3_scratch.loading.tiny import random_weights

# Vocabularies here are smaller than the models', which load_checkpoint remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:tokenizer.model. .* tokens, and the model has .* rows")

BARE = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512}  # all that a file must have
SIZES = {"multiple_of": 48, "norm_eps": 1e-3, "rope_theta": 10000.0}


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
    with pytest.warns(UserWarning, match=naming("params.json quantization_args vision_chunk_size")):
        ckpt = load_checkpoint(folder)
    assert ckpt.params == params
