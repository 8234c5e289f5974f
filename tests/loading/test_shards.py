"""Models in several files, one for each GPU that trained them: joined matrix by matrix, refused where they differ."""

import shutil
import sys
import weakref

import pytest
import torch
from helpers import assert_like_hugging_faces, hf_model, lies_in, naming, write_checkpoint

from llama3_scratch import CheckpointError, Llama, ModelArgs, functional, load_checkpoint
from llama3_scratch.loading.tiny import random_weights

# Vocabularies here are smaller than the models', which load_checkpoint remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:tokenizer.model. .* tokens, and the model has .* rows")

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
    "a gap": (lambda f: rename(f, "01", "02"), "consolidated.01.pth not found 2 shards"),
    "the first missing": (lambda f: (f / "consolidated.00.pth").unlink(), "consolidated.00.pth not found"),
    "the last missing": (lambda f: (f / "consolidated.01.pth").unlink(), "consolidated.00.pth [1024, 128]"),
    "one too many": (lambda f: shutil.copy(f / "consolidated.01.pth", f / "consolidated.02.pth"), "3 shards"),
    "a shard of another shape": (
        lambda f: change_shard(f, 1, lambda w: w | {W1: w[W1][:-1].clone()}),
        f"consolidated.01.pth {W1} [175, 128] [176, 128]",
    ),
    "cut along the other dimension": (
        lambda f: change_shard(f, 1, lambda w: w | {WO: w[WO].T.contiguous()}),
        f"consolidated.01.pth {WO} [64, 128] [128, 64]",
    ),
    "a whole model as a shard": (
        lambda f: torch.save(sharded_weights("untied"), f / "consolidated.01.pth"),
        "consolidated.01.pth 2 shards copy",
    ),
    "a key missing in one": (
        lambda f: change_shard(f, 1, lambda w: {k: t for k, t in w.items() if k != W1}),
        f"consolidated.01.pth {W1} missing",
    ),
    "output.weight missing in one": (
        lambda f: change_shard(f, 1, lambda w: {k: t for k, t in w.items() if k != "output.weight"}),
        "consolidated.01.pth consolidated.00.pth weights",
    ),
    "half a file": (
        lambda f: (f / "consolidated.01.pth").write_bytes((f / "consolidated.01.pth").read_bytes()[:-5000]),
        "consolidated.01.pth not readable",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_SHARDS)
def test_shards_that_do_not_fit_are_refused(tmp_path, fault):
    folder = write_shards(tmp_path / "m")
    spoil, words = BROKEN_SHARDS[fault]
    spoil(folder)
    with pytest.raises(CheckpointError, match=naming(words)) as raised:
        load_checkpoint(folder)
    assert str(folder) in str(raised.value)


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
