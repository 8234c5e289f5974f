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
from helpers import naming

from llama3_scratch import CheckpointError, load_checkpoint
from llama3_scratch.loading.meta import read_params
from llama3_scratch.loading.tiny import TINY
from llama3_scratch.params import PUBLISHED

WEIGHTS, PARAMS, TOKENIZER = "consolidated.00.pth", "params.json", "tokenizer.model"
W1 = "layers.0.feed_forward.w1.weight"


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


def test_files_too_large_for_copy_on_write_give_the_same_values(folder, every_file_is_large):
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
    "a key missing": (lambda w: {k: t for k, t in w.items() if k != W1}, f"{WEIGHTS} {W1} missing"),
    "a key too many": (
        lambda w: w | {"layers.9.attention.wq.weight": w[W1]},
        f"{WEIGHTS} unknown layers.9.attention.wq.weight",
    ),
    "a key that is no text": (lambda w: w | {7: w[W1]}, f"{WEIGHTS} unknown 7"),
    "a wrong shape": (lambda w: w | {W1: w[W1][:-1]}, f"{W1} [99, 36] [100, 36]"),
    "a transposed tensor": (lambda w: w | {W1: w[W1].T}, f"{W1} [36, 100] [100, 36]"),
    "integers": (lambda w: w | {W1: w[W1].int()}, f"{W1} IntStorage"),
    "eight bits": (lambda w: w | {W1: w[W1].to(torch.float8_e4m3fn)}, f"{W1} type"),
    "a sparse tensor": (lambda w: w | {W1: w[W1].to_sparse()}, W1),
    "something that is no tensor": (lambda w: w | {W1: "text"}, f"{WEIGHTS} dict tensors"),
    "a dict inside": (lambda w: {"model": w}, f"{WEIGHTS} dict tensors"),
    "no dict": (lambda w: list(w.values()), f"{WEIGHTS} dict tensors"),
    "nothing": (lambda w: {}, f"{WEIGHTS} tok_embeddings.weight missing"),
}


@pytest.mark.parametrize("fault", BROKEN_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(folder, fault):
    change, words = BROKEN_WEIGHTS[fault]
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=naming(words)):
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
    ("spoil", "words"),
    [
        (truncate, "not readable"),
        (cut_out_the_middle, "not readable"),
        (lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>"), "not readable"),
        (lambda path: path.write_bytes(b""), "not readable"),
        (compress, "compressed"),
    ],
    ids=["truncated", "a hole", "an HTML page", "empty", "compressed"],
)
def test_a_damaged_file_of_weights_is_refused(folder, spoil, words):
    spoil(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=naming(f"{WEIGHTS} {words}")):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [WEIGHTS, PARAMS, TOKENIZER])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=naming(name)):
        load_checkpoint(folder)


def test_the_folder_above_metas_files_points_to_them(folder, tmp_path):
    # As Hugging Face serves Llama 3: safetensors on top, Meta's three files in original/.
    (tmp_path / "Meta-Llama-3-8B").mkdir()
    (tmp_path / "Meta-Llama-3-8B" / "model-00001-of-00004.safetensors").touch()
    folder.rename(tmp_path / "Meta-Llama-3-8B" / "original")
    with pytest.raises(CheckpointError, match=naming("original")):
        load_checkpoint(tmp_path / "Meta-Llama-3-8B")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match=naming("llama-4 smollm2-135m tiny-ratio1")):
        load_checkpoint("llama-4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": -36}, "dim positive integer -36"),
        ({"dim": 36.0}, "dim integer 36.0"),
        ({"n_layers": 0}, "n_layers positive integer 0"),
        ({"n_layers": 4}, "layers.3.attention.wq.weight missing"),
        ({"n_layers": 2}, "unknown layers.2.attention.wq.weight"),
        ({"n_layers": 10**9}, "n_layers 1000000000"),
        ({"context_len": 0}, "context_len positive integer 0"),
        ({"rope_scale_factor": 0}, "rope_scale_factor positive number 0"),
        ({"rope_low_freq_factor": 4}, "rope_low_freq_factor rope_high_freq_factor"),
        ({"rope_old_context_len": 8192.0}, "rope_old_context_len integer 8192.0"),
        ({"n_heads": True}, "n_heads integer True"),
        ({"vocab_size": -1}, "vocab_size positive integer -1"),  # as in Llama 2's file
        ({"vocab_size": None}, "vocab_size integer None"),
        ({"norm_eps": 0}, "norm_eps positive number 0"),
        ({"norm_eps": math.nan}, "norm_eps number nan"),
        ({"norm_eps": 10**400}, "norm_eps"),
        ({"rope_theta": "500000"}, "rope_theta number '500000'"),
        ({"ffn_dim_multiplier": math.inf}, "ffn_dim_multiplier number inf"),
        ({"ffn_dim_multiplier": 1e308}, "ffn_dim_multiplier"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope true false yes"),
        ({"n_heads": 7}, "dim 36 n_heads 7"),
        ({"n_kv_heads": 4}, "n_heads 6 n_kv_heads 4"),
        ({"n_heads": 12, "n_kv_heads": 2}, "dim n_heads 3 even"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_params_that_cannot_be_are_refused(folder, changes, words):
    change_params(folder, **changes)
    with pytest.raises(CheckpointError, match=naming(words)) as raised:
        load_checkpoint(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "<html>", "[" * 100000], ids=lambda t: t[:6] or "empty")
def test_a_params_file_that_is_no_json_object_is_refused(folder, text):
    (folder / PARAMS).write_text(text)
    with pytest.raises(CheckpointError, match=naming("params.json JSON")):
        load_checkpoint(folder)


def test_a_missing_number_in_params_is_named(folder):
    (folder / PARAMS).write_text('{"n_layers": 3, "n_heads": 6}')
    with pytest.raises(CheckpointError, match=naming("params.json dim vocab_size missing")):
        load_checkpoint(folder)


def test_an_unknown_number_in_params_is_warned_of(folder):
    change_params(folder, moe_experts=8)
    with pytest.warns(UserWarning, match=naming("params.json moe_experts")):
        load_checkpoint(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(folder, tiny_folder):
    (folder / "tokenizer_params.json").unlink()
    shutil.copy(tiny_folder("tiny-ratio4") / TOKENIZER, folder)
    with pytest.raises(CheckpointError, match=naming(f"{TOKENIZER} 530 tokens vocab_size 277")):
        load_checkpoint(folder)


def test_params_read_back_as_they_were_written(tmp_path):
    for params in PUBLISHED.values():
        (tmp_path / PARAMS).write_text(params.to_json())
        assert read_params(tmp_path / PARAMS) == params
