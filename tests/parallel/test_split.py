"""Who has what of a model, and how a process takes its part out of the files: no other process is needed for that."""

import itertools
import socket

import pytest
import torch
import torch.nn.functional as F
from helpers import lies_in, naming, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from llama3_scratch import CheckpointError, Llama, ModelArgs, parallel
from llama3_scratch.loading.parts import read_part
from llama3_scratch.loading.tiny import random_weights
from llama3_scratch.params import PUBLISHED

pytestmark = pytest.mark.filterwarnings("ignore:tokenizer.model. .* tokens, and the model has .* rows")

JSON = {"dim": 96, "n_layers": 5, "n_heads": 12, "n_kv_heads": 6, "vocab_size": 528, "multiple_of": 12}
PARAMS = ModelArgs(**JSON)
WHOLE = random_weights(PARAMS, torch.float32, tied=False, seed=4)


# Heads


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 24))
def test_every_query_head_finds_its_kv_head_in_its_part(n_kv, group, size):
    n_heads = n_kv * group
    params = ModelArgs(8 * n_heads, 1, n_heads, 50, n_kv_heads=n_kv)
    if n_heads % size:
        with pytest.raises(ValueError, match=naming(f"{n_heads} n_heads {size} processes")):
            parallel.part_of(params, "tensor", 0, size)
        return
    read = []
    for rank in range(size):
        part = parallel.part_of(params, "tensor", rank, size)
        assert part.n_heads * size == n_heads and part.n_heads % part.n_kv_heads == 0 and part.head_dim == 8
        assert len(part.kv_heads) == part.n_kv_heads
        read += [part.kv_heads[head // part.group_size] for head in range(part.n_heads)]
    assert read == [head // group for head in range(n_heads)]


@pytest.mark.parametrize(
    ("n_heads", "n_kv", "size", "rank", "kv_heads"),
    [
        (64, 8, 8, 3, [3]),  # the 70B on eight: one each
        (64, 8, 16, 5, [2]),  # on sixteen two processes have the same one
        (32, 8, 4, 1, [2, 3]),
        (12, 3, 2, 0, [0, 0, 1]),  # 6 query heads, of groups of 4: 4 + 2, which are three pairs
        (12, 3, 2, 1, [1, 2, 2]),
        (8, 1, 8, 7, [0]),
        (9, 3, 9, 4, [1]),
    ],
)
def test_kv_heads_are_repeated_as_far_as_is_needed(n_heads, n_kv, size, rank, kv_heads):
    params = ModelArgs(8 * n_heads, 1, n_heads, 50, n_kv_heads=n_kv)
    assert parallel.part_of(params, "tensor", rank, size).kv_heads == kv_heads


@given(st.integers(1, 200), st.integers(1, 20))
def test_layers_are_dealt_out_evenly_and_in_order(layers, size):
    params = ModelArgs(8, layers, 1, 50)
    if size > layers:
        with pytest.raises(ValueError, match=naming(f"{layers} {size} processes")):
            parallel.part_of(params, "pipeline", 0, size)
        return
    parts = [parallel.part_of(params, "pipeline", rank, size) for rank in range(size)]
    assert [layer for part in parts for layer in part.layers] == list(range(layers))
    assert max(p.n_layers for p in parts) - min(p.n_layers for p in parts) <= 1
    assert all(len(p.layers) == p.n_layers for p in parts)


@given(st.integers(1, 12), st.integers(1, 3000), st.integers(1, 3000))
def test_what_does_not_divide_is_cut_as_evenly_as_can_be(size, vocab, multiple):
    params = ModelArgs(8 * size, 1, size, vocab, multiple_of=multiple)
    parts = [parallel.part_of(params, "tensor", rank, size) for rank in range(size)]
    for all_of, shares in ((vocab, [p.tokens for p in parts]), (params.hidden_dim, [p.neurons for p in parts])):
        assert shares[0][0] == 0 and shares[-1][1] == all_of
        assert all(a[1] == b[0] for a, b in itertools.pairwise(shares))
        lengths = [end - first for first, end in shares]
        assert max(lengths) - min(lengths) <= 1


def test_parts_of_the_70b_on_eight_are_its_eight_files():
    params = PUBLISHED["Llama 3 70B"]
    shapes = params.weight_shapes()
    for rank in (0, 7):
        part = parallel.part_of(params, "tensor", rank, 8)
        own = part.weight_shapes()
        for key, (stored, dim, stretches) in parallel.cuts(part).items():
            assert stored == key
            if dim is not None:
                each = shapes[key][dim] // 8
                assert stretches == [(rank * each, (rank + 1) * each)]
                if key.split(".")[0] not in ("tok_embeddings", "output"):
                    assert own[key][dim] == each


# Files


def parts_of(how, size):
    return [parallel.part_of(PARAMS, how, rank, size) for rank in range(size)]


def by_hand(key, part):
    """What a part has of a weight, cut out of the whole one."""
    weight, d, group = WHOLE[key], PARAMS.head_dim, PARAMS.group_size
    name, rank, size = key.split(".")[-2], part.rank, part.size
    if "norm" in key:
        return weight
    if name in ("wk", "wv"):
        heads = range(PARAMS.n_heads)[rank * PARAMS.n_heads // size :][: PARAMS.n_heads // size]
        step = part.n_heads // part.n_kv_heads
        return torch.cat([weight[head // group * d :][:d] for head in heads[::step]])
    dim = 1 if name in ("wo", "w2") else 0
    return weight.tensor_split([weight.shape[dim] * r // size for r in range(1, size)], dim)[rank]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_slices_of_any_number_of_files_are_those_of_the_whole(tmp_path, shards, size):
    folder = write_checkpoint(tmp_path / "m", JSON, WHOLE, shards)
    for part in parts_of("tensor", size):
        taken = read_part(folder, PARAMS, parallel.cuts(part), shards)
        assert taken.weights.keys() == WHOLE.keys()
        for key, weight in taken.weights.items():
            assert torch.equal(weight, by_hand(key, part)), key
        first, last = (part.rank * shards // size, -(-(part.rank + 1) * shards // size))
        opened = [f"consolidated.{i:02}.pth" for i in range(first, last)]
        assert set(opened) <= set(taken.marks)  # what has KV heads of a neighbour needs that one's file, too
        if PARAMS.n_kv_heads % shards == PARAMS.n_kv_heads % size == 0:
            assert opened == sorted(taken.marks)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_stages_have_their_layers_and_the_ends_theirs(tmp_path, shards, size):
    folder = write_checkpoint(tmp_path / "m", JSON, WHOLE, shards)
    seen = []
    for part in parts_of("pipeline", size):
        for key, weight in read_part(folder, PARAMS, parallel.cuts(part), shards).weights.items():
            name = key.split(".")
            stored = key if name[0] != "layers" else ".".join(["layers", str(part.layers[int(name[1])]), *name[2:]])
            assert torch.equal(weight, WHOLE[stored]), key
            seen.append(stored)
    assert sorted(seen) == sorted(WHOLE)


def test_a_slice_of_one_file_is_a_window_of_it(tmp_path):
    for shards, size in ((1, 2), (2, 2), (3, 6), (6, 6)):
        folder = write_checkpoint(tmp_path / f"{shards}.{size}", JSON, WHOLE, shards)
        for part in parts_of("tensor", size):
            taken = read_part(folder, PARAMS, parallel.cuts(part), shards)
            file = folder / f"consolidated.{part.rank * shards // size:02}.pth"
            assert all(lies_in(weight[:, :1] if weight.ndim > 1 else weight, file) for weight in taken.weights.values())


def test_a_file_that_is_not_needed_is_not_opened(tmp_path):
    folder = write_checkpoint(tmp_path / "m", JSON, WHOLE, 3)
    for i in (0, 1):
        (folder / f"consolidated.{i:02}.pth").write_bytes(b"no weights at all")
    cuts = parallel.cuts(parallel.part_of(PARAMS, "tensor", 2, 3))
    assert list(read_part(folder, PARAMS, cuts, 3).marks) == ["consolidated.02.pth"]
    (folder / "consolidated.02.pth").unlink()
    with pytest.raises(CheckpointError, match=naming("consolidated.02.pth")):
        read_part(folder, PARAMS, cuts, 3)


# Alone


@pytest.fixture
def alone(monkeypatch):
    """A group of one process: this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    yield
    parallel.leave()


@pytest.mark.parametrize("name", ["tiny-ratio3", "tiny-bfloat16"])
@torch.no_grad()
def test_a_group_of_one_has_the_whole_model_and_sends_nothing(tiny_folder, alone, name):
    expected = Llama.from_checkpoint(tiny_folder(name))
    for how in parallel.WAYS:
        parallel.sent.clear()
        model = parallel.load(tiny_folder(name), how)
        assert torch.equal(model([5, 6, 7]), expected([5, 6, 7]))
        assert not any(parallel.sent.values())
        assert model.output.weight.data_ptr() == model.tok_embeddings.weight.data_ptr() or "16" in name


def test_what_is_mapped_read_only_stays_in_its_file(tiny_folder, alone, every_file_is_large):
    for how in parallel.WAYS:
        model = parallel.load(tiny_folder("tiny-ratio4"), how)
        model([5, 6, 7])
        file = tiny_folder("tiny-ratio4") / "consolidated.00.pth"
        for name, weight in model.named_parameters():
            assert weight.in_file and lies_in(weight, file) and not weight.requires_grad, name


def test_without_torchrun_it_says_how_to_start(tiny_folder):
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        parallel.load(tiny_folder("tiny-ratio3"))


def test_an_embedding_of_a_part_and_its_sum_by_hand(alone):
    """The sum of what the parts look up is what the whole looks up: zeros are added, nothing is rounded."""
    from llama3_scratch.parallel.modules import SplitEmbedding

    parallel.join()
    tokens, total = torch.tensor([[0, 175, 176, 527]]), 0
    for part in parts_of("tensor", 3):
        first, end = part.tokens
        module = SplitEmbedding(first, end - first, PARAMS.dim)
        module.weight.data = WHOLE["tok_embeddings.weight"][first:end]
        total = total + module(tokens)
    assert torch.equal(total, F.embedding(tokens, WHOLE["tok_embeddings.weight"]))
