"""Opening checkpoints: what must work, and what must be refused by name."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from llama3_scratch import CheckpointError, ModelArgs, load_checkpoint
from llama3_scratch import weights as weights_module
from llama3_scratch.params import PUBLISHED
from llama3_scratch.tiny import TINY

WEIGHTS, PARAMS, TOKENIZER = "consolidated.00.pth", "params.json", "tokenizer.model"
W1 = "layers.0.feed_forward.w1.weight"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A checkpoint of one's own, to break."""
    return shutil.copytree(tiny_folder("tiny-ratio3"), tmp_path / "broken")


def change_weights(folder, change):
    weights = torch.load(folder / WEIGHTS)
    torch.save(change(weights), folder / WEIGHTS)


def change_params(folder, **changes):
    params = json.loads((folder / PARAMS).read_text())
    (folder / PARAMS).write_text(json.dumps(params | changes))


@pytest.mark.parametrize("name", TINY)
def test_tensors_are_those_torch_load_reads(tiny_folder, name):
    ckpt = load_checkpoint(tiny_folder(name))
    stored = torch.load(tiny_folder(name) / WEIGHTS)
    assert list(ckpt.weights) == list(stored)
    for key, tensor in stored.items():
        assert ckpt.weights[key].dtype == tensor.dtype == TINY[name].dtype
        torch.testing.assert_close(ckpt.weights[key], tensor, rtol=0, atol=0)
    assert ckpt.path == tiny_folder(name)


def test_params_are_those_of_the_file(folder):
    params = load_checkpoint(folder).params
    assert (params.dim, params.n_layers, params.n_heads, params.n_kv_heads) == (36, 3, 6, 2)
    assert (params.head_dim, params.group_size, params.hidden_dim) == (6, 3, 100)


def test_dtype_converts_every_tensor(tiny_folder):
    stored = torch.load(tiny_folder("tiny-bfloat16") / WEIGHTS)
    for key, tensor in load_checkpoint(tiny_folder("tiny-bfloat16"), dtype=torch.float32).weights.items():
        torch.testing.assert_close(tensor, stored[key].float(), rtol=0, atol=0)


def test_a_name_from_the_environment_is_opened_when_none_is_given(folder, monkeypatch):
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(folder))
    assert load_checkpoint().path == folder


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda w: torch.cat([torch.zeros_like(w), w])[len(w) :],
        lambda w: w.T.contiguous().T,
        lambda w: torch.nn.Parameter(w),
    ],
    ids=["part of a larger tensor", "stored by columns", "a parameter"],
)
def test_tensors_stored_in_unusual_ways_are_read_right(folder, rearranged):
    expected = torch.load(folder / WEIGHTS)[W1]
    change_weights(folder, lambda w: w | {W1: rearranged(w[W1])})
    torch.testing.assert_close(load_checkpoint(folder).weights[W1], expected, rtol=0, atol=0)


def test_two_names_for_one_tensor_share_their_memory(folder):
    change_weights(folder, lambda w: w | {"output.weight": w["tok_embeddings.weight"]})
    weights = load_checkpoint(folder).weights
    assert weights["output.weight"].data_ptr() == weights["tok_embeddings.weight"].data_ptr()


def test_llama_1s_stored_frequencies_are_allowed(folder):
    change_weights(folder, lambda w: w | {"rope.freqs": torch.ones(3)})
    load_checkpoint(folder)


def test_changing_a_tensor_in_place_leaves_the_file_as_it_is(folder):
    before = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    weight = load_checkpoint(folder).weights[W1]
    kept = weight.clone()
    weight.zero_()
    assert weight.abs().max() == 0
    assert hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() == before
    torch.testing.assert_close(load_checkpoint(folder).weights[W1], kept, rtol=0, atol=0)


def test_files_too_large_for_copy_on_write_give_the_same_values(folder, monkeypatch):
    monkeypatch.setattr(weights_module, "COPY_ON_WRITE_BYTES", 0)
    weights = load_checkpoint(folder).weights
    for key, tensor in torch.load(folder / WEIGHTS).items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_the_model_runs_with_less_memory_than_its_file_has():
    # The file has 538 MB. A fresh process, so that the limit is this test's alone.
    code = """
import re, resource
from pathlib import Path
from llama3_scratch import functional, load_checkpoint
used = int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 250 * 2**20,) * 2)
ckpt = load_checkpoint("smollm2-135m")
logits = functional.forward(ckpt.tokenizer.encode("The capital of France is"), ckpt.weights, ckpt.params)
print(ckpt.tokenizer.decode([logits[-1].argmax()]))
"""
    load_checkpoint("smollm2-135m")  # fetched, if this machine does not have it yet
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == " Paris\n", done.stderr


# Every one of these leaves a checkpoint that must be refused, with a message that names the file or the key.
BROKEN_WEIGHTS = {
    "a key missing": (lambda w: {k: t for k, t in w.items() if k != W1}, rf"{WEIGHTS}: {W1} is missing"),
    "a key too many": (lambda w: w | {"layers.9.attention.wq.weight": w[W1]}, r"unknown tensors layers\.9\.attention"),
    "a key that is no text": (lambda w: w | {7: w[W1]}, rf"{WEIGHTS}: unknown tensors 7"),
    "a wrong shape": (lambda w: w | {W1: w[W1][:-1]}, rf"{W1} is \[99, 36\], the model's sizes make it \[100, 36\]"),
    "a transposed tensor": (lambda w: w | {W1: w[W1].T}, rf"{W1} is \[36, 100\]"),
    "whole numbers": (lambda w: w | {W1: w[W1].int()}, rf"{W1} is of type IntStorage"),
    "eight bits": (lambda w: w | {W1: w[W1].to(torch.float8_e4m3fn)}, rf"{W1} is of type float8"),
    "a sparse tensor": (lambda w: w | {W1: w[W1].to_sparse()}, W1),
    "a type of its own": (lambda w: w | {W1: w[W1].half()}, W1),
    "something that is no tensor": (lambda w: w | {W1: "text"}, f"{WEIGHTS}: expected a dict of tensors"),
    "a dict inside": (lambda w: {"model": w}, f"{WEIGHTS}: expected a dict of tensors"),
    "no dict": (lambda w: list(w.values()), f"{WEIGHTS}: expected a dict of tensors"),
    "nothing": (lambda w: {}, rf"{WEIGHTS}: tok_embeddings\.weight is missing"),
}


@pytest.mark.parametrize("fault", BROKEN_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(folder, fault):
    change, message = BROKEN_WEIGHTS[fault]
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_tensors_of_several_types_open_as_one_when_told_which(folder):
    change_weights(folder, lambda w: w | {W1: w[W1].half()})
    ckpt = load_checkpoint(folder, dtype=torch.float64)
    assert {w.dtype for w in ckpt.weights.values()} == {torch.float64}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def cut_out_the_middle(path):
    data = path.read_bytes()
    path.write_bytes(data[:10000] + data[20000:])


def compress(path):
    with zipfile.ZipFile(path) as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "not a readable file of weights"),
        (cut_out_the_middle, "not a readable file of weights"),
        (lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>"), "not a readable file"),
        (lambda path: path.write_bytes(b""), "not a readable file of weights"),
        (compress, "compressed entries"),
    ],
    ids=["truncated", "a hole", "an HTML page", "empty", "compressed"],
)
def test_a_damaged_file_of_weights_is_refused(folder, spoil, message):
    spoil(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"consolidated\.00\.pth: {message}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [WEIGHTS, PARAMS, TOKENIZER])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: (not found|cannot be read)"):
        load_checkpoint(folder)


def test_the_folder_above_metas_files_points_to_them(folder, tmp_path):
    # As Hugging Face serves Llama 3: safetensors on top, Meta's three files in original/.
    (tmp_path / "Meta-Llama-3-8B").mkdir()
    (tmp_path / "Meta-Llama-3-8B" / "model-00001-of-00004.safetensors").touch()
    folder.rename(tmp_path / "Meta-Llama-3-8B" / "original")
    with pytest.raises(CheckpointError, match="original"):
        load_checkpoint(tmp_path / "Meta-Llama-3-8B")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match=r"llama-4.*smollm2-135m.*tiny-ratio1"):
        load_checkpoint("llama-4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": -36}, "dim must be a positive whole number, not -36"),
        ({"dim": 36.0}, "dim must be a positive whole number"),
        ({"n_layers": 0}, "n_layers must be a positive whole number"),
        ({"n_layers": 4}, r"layers\.3\.attention\.wq\.weight is missing"),
        ({"n_layers": 2}, r"unknown tensors layers\.2\.attention\.wq\.weight"),
        ({"n_layers": 10**9}, "n_layers 1000000000 is more than any model has"),
        ({"max_seq_len": 0}, "max_seq_len must be a positive whole number"),
        ({"rope_scale_factor": 0}, "rope_scale_factor must be a positive number"),
        ({"rope_low_freq_factor": 4}, "rope_low_freq_factor must be smaller than rope_high_freq_factor"),
        ({"rope_old_context_len": 8192.0}, "rope_old_context_len must be a positive whole number"),
        ({"n_heads": True}, "n_heads must be a positive whole number"),
        ({"vocab_size": -1}, "vocab_size must be a positive whole number"),  # as in Llama 2's file
        ({"vocab_size": None}, "vocab_size must be a positive whole number"),
        ({"norm_eps": 0}, "norm_eps must be a positive number"),
        ({"norm_eps": math.nan}, "norm_eps must be a positive number"),
        ({"norm_eps": 10**400}, "norm_eps must be"),
        ({"rope_theta": "500000"}, "rope_theta must be a positive number"),
        ({"ffn_dim_multiplier": math.inf}, "ffn_dim_multiplier must be a positive number"),
        ({"ffn_dim_multiplier": 1e308}, "ffn_dim_multiplier"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope must be true or false"),
        ({"n_heads": 7}, "dim 36 does not divide into n_heads 7"),
        ({"n_kv_heads": 4}, "n_heads 6 does not divide into groups over n_kv_heads 4"),
        ({"n_heads": 12, "n_kv_heads": 2}, "dim / n_heads is 3; .* must be even"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_params_that_cannot_be_are_refused(folder, changes, message):
    change_params(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "<html>", "[" * 100000], ids=lambda t: t[:6] or "empty")
def test_a_params_file_that_is_no_json_object_is_refused(folder, text):
    (folder / PARAMS).write_text(text)
    with pytest.raises(CheckpointError, match=r"params\.json: (not readable as JSON|expected a JSON object)"):
        load_checkpoint(folder)


def test_a_missing_number_in_params_is_named(folder):
    (folder / PARAMS).write_text('{"n_layers": 3, "n_heads": 6}')
    with pytest.raises(CheckpointError, match=r"params\.json: dim, vocab_size missing"):
        load_checkpoint(folder)


def test_an_unknown_number_in_params_is_warned_of(folder):
    change_params(folder, moe_experts=8)
    with pytest.warns(UserWarning, match="unknown keys moe_experts"):
        load_checkpoint(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(folder, tiny_folder):
    (folder / "tokenizer_params.json").unlink()
    shutil.copy(tiny_folder("tiny-ratio4") / TOKENIZER, folder)
    with pytest.raises(CheckpointError, match=rf"{TOKENIZER}: 530 tokens, but the model has vocab_size 277"):
        load_checkpoint(folder)


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


def test_params_read_back_as_they_were_written(tmp_path):
    for params in PUBLISHED.values():
        (tmp_path / PARAMS).write_text(params.to_json())
        assert ModelArgs.from_json(tmp_path / PARAMS) == params
