"""The tiny checkpoints: which shapes there are, and that they are the same everywhere."""

import hashlib

import pytest
import torch

from llama3_scratch import load_checkpoint
from llama3_scratch.loading import tiny
from llama3_scratch.loading.tiny import TINY, make_tiny

FILES = ["consolidated.00.pth", "params.json", "tokenizer.model"]


def test_every_shape_that_must_be_tried_is_there():
    all_params = [t.params for t in TINY.values()]
    assert {p.n_heads // p.n_kv_heads for p in all_params} >= {1, 3, 4, 8}
    assert {p.dim // p.n_heads for p in all_params} >= {6, 16, 128}
    assert {t.dtype for t in TINY.values()} == {torch.float32, torch.bfloat16}
    assert {t.tied for t in TINY.values()} == {True, False}
    assert {p.use_scaled_rope for p in all_params} == {True, False}
    assert len({p.vocab_size for p in all_params}) >= 3
    assert len({p.norm_eps for p in all_params}) >= 2
    assert len({p.rope_theta for p in all_params}) >= 2


@pytest.mark.parametrize("name", TINY)
def test_rounding_changes_the_hidden_size(name):
    p = TINY[name].params
    unrounded = int((p.ffn_dim_multiplier or 1.0) * int(8 * p.dim / 3))
    assert p.hidden_dim > unrounded
    assert p.hidden_dim % p.multiple_of == 0


@pytest.mark.parametrize("name", TINY)
def test_a_tied_checkpoint_has_no_output_matrix(tiny_folder, name):
    assert ("output.weight" in load_checkpoint(tiny_folder(name)).weights) != TINY[name].tied


@pytest.mark.parametrize("name", TINY)
def test_every_id_of_the_model_has_a_token(tiny_folder, name):
    ckpt = load_checkpoint(tiny_folder(name))
    assert ckpt.tokenizer.vocab_size == ckpt.params.vocab_size
    assert all(ckpt.tokenizer.token_bytes(i) for i in range(ckpt.params.vocab_size))
    text = "the question is in 中文 and 😀\n\t\x00"
    assert ckpt.tokenizer.decode(ckpt.tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", TINY)
def test_made_twice_the_files_are_the_same_bytes(tmp_path, name):
    first, second = make_tiny(name, tmp_path / "a"), make_tiny(name, tmp_path / "b")
    found = sorted(path.name for path in first.iterdir())
    assert [name for name in found if name != "tokenizer_params.json"] == FILES
    assert found == sorted(path.name for path in second.iterdir())
    for file in found:
        assert (first / file).read_bytes() == (second / file).read_bytes()


# So that another machine, which made its own, has the same weights. After a change to tiny.py that is meant to change
# them, run the test and copy what it found.
SHA256 = {
    "tiny-ratio1": "8d1537b4c70b50be85a9ce708e6787588f3e003b891b59a9d56258b5f91e7d44",
    "tiny-ratio3": "c1c3494eea7ed6ef89fb7fdc54aa67ec02de337ccdbb0db0057fbafa14c59fec",
    "tiny-ratio4": "80bc0033e2b81723611d0d1dbd70bbf184ca844f9f716c892bc10b9a1c39c254",
    "tiny-ratio8": "9d5b251aead35d3207e6e369f32221b8cc1337881ce767e7aa96ae0b19da6308",
    "tiny-bfloat16": "1d4a6570e199c1f021625fd2a62d49cdb198d74da22086c8be90b9d805807272",
    "tiny-scaled": "bf2865ecb49648f783a35ff13694f3431e1e12a54e92272be0236173dfa7c90d",
}


@pytest.mark.parametrize("name", TINY)
def test_the_weights_are_those_of_every_other_machine(tiny_folder, name):
    digest = hashlib.sha256()
    for key, tensor in torch.load(tiny_folder(name) / "consolidated.00.pth").items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest() == SHA256[name]


def test_a_finished_checkpoint_is_not_made_again(tmp_path, monkeypatch):
    make_tiny("tiny-ratio3", tmp_path / "tiny")
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("made again"))
    assert make_tiny("tiny-ratio3", tmp_path / "tiny") == tmp_path / "tiny"


def test_checkpoints_are_kept_where_llama3_home_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA3_HOME", str(tmp_path / "home"))
    assert load_checkpoint("tiny-ratio3").path == tmp_path / "home" / "tiny-ratio3"
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["tiny-ratio3"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def save(weights, path):
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(tiny.torch, "save", save)
    with pytest.raises(error):
        make_tiny("tiny-ratio3", tmp_path / "tiny-ratio3")
    assert list(tmp_path.iterdir()) == []
