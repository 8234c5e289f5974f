"""The modules against Hugging Face: logits, padding, the cache, gradients; and that weights are shared, not copied."""

import hashlib
import math
import mmap
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import HF_NAMES, distance, hf_logits, hf_model, naming, random_tokens, to_half_split

from llama3_scratch import CheckpointError, KVCache, Llama, load_checkpoint
from llama3_scratch.loading.tiny import TINY
from llama3_scratch.padding import pad

WEIGHTS = "consolidated.00.pth"
every_tiny = pytest.mark.parametrize("name", TINY)
FEW = ["tiny-ratio3", "tiny-ratio4", "tiny-scaled"]  # tied and not, three head ratios, scaled RoPE
a_few_tiny = pytest.mark.parametrize("name", FEW)


def both(tiny_folder, name, dtype=torch.float32):
    """The same weights as our modules and as Hugging Face's."""
    ckpt = load_checkpoint(tiny_folder(name), dtype=dtype)
    return Llama.from_checkpoint(ckpt), hf_model(ckpt.params, ckpt.weights)


def new_cache(model, batch_size, max_seq_len):
    return KVCache(model.params, batch_size, max_seq_len, model.norm.weight.dtype, model.device)


# Logits


@every_tiny
@pytest.mark.parametrize("shape", [(1,), (40,), (3, 17)], ids=["one", "text", "batch"])
@torch.no_grad()
def test_logits_equal_hugging_faces(tiny_folder, name, shape):
    ours, theirs = both(tiny_folder, name)
    tokens = random_tokens(ours.params, *shape)
    logits = ours(tokens)
    assert logits.dtype == torch.float32
    assert distance(logits, hf_logits(theirs, tokens)) < 1e-4


@a_few_tiny
@torch.no_grad()
def test_the_last_position_alone_has_the_same_logits(tiny_folder, name):
    ours, theirs = both(tiny_folder, name)
    tokens = random_tokens(ours.params, 2, 9)
    assert distance(ours(tokens, last_only=True), hf_logits(theirs, tokens)[:, -1:]) < 1e-4
    assert ours(tokens[0], last_only=True).shape == (1, ours.params.vocab_size)


@torch.no_grad()
def test_smollm2_equals_hugging_face(smollm2):
    tokens = torch.tensor(smollm2.tokenizer.encode("The capital of France is"))
    theirs = hf_logits(hf_model(smollm2.params, smollm2.weights), tokens)
    assert distance(Llama.from_checkpoint(smollm2)(tokens), theirs) < 1e-3


@torch.no_grad()
def test_float64_is_computed_in_float64(tiny_folder):
    ours = Llama.from_checkpoint(load_checkpoint(tiny_folder("tiny-ratio4")), dtype=torch.float64)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    _, theirs = both(tiny_folder, "tiny-ratio4", torch.float64)
    tokens = random_tokens(ours.params, 40)
    assert distance(ours(tokens).double(), hf_logits(theirs, tokens)) < 1e-5  # in float32 it is more, see test_referee


@torch.no_grad()
def test_bfloat16_strays_from_float32_no_further_than_hugging_faces(tiny_folder):
    ours, theirs = both(tiny_folder, "tiny-bfloat16", dtype=None)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    _, exact = both(tiny_folder, "tiny-bfloat16")
    tokens = random_tokens(ours.params, 60)
    cache = new_cache(ours, 1, 60)
    steps = torch.cat([ours(tokens[:50], cache), *(ours(tokens[i : i + 1], cache) for i in range(50, 60))])
    wide = hf_logits(exact, tokens)
    allowed = 1.1 * (hf_logits(theirs, tokens) - wide).norm()
    for logits in (ours(tokens), steps):
        assert logits.dtype == torch.float32
        assert (logits - wide).norm() < allowed


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ([], ValueError, "tokens one"),
        ([[], []], ValueError, "tokens one"),
        ([0, 277], ValueError, "ids 276 277"),
        ([[5, 6], [7, -1]], ValueError, "ids 276 -1"),
        ([1.0], TypeError, "ids integers"),
    ],
    ids=str,
)
def test_tokens_that_cannot_be_are_refused(tiny_folder, tokens, error, words):
    model = Llama.from_checkpoint(tiny_folder("tiny-ratio3"))
    with pytest.raises(error, match=naming(words)):
        model(tokens)


# Texts of different lengths

LENGTHS = (7, 1, 12, 4)


def texts_of(params, lengths):
    return [random_tokens(params, n, seed=seed) for seed, n in enumerate(lengths)]


@a_few_tiny
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_text_has_the_logits_it_has_alone(tiny_folder, name, side):
    ours, theirs = both(tiny_folder, name)
    texts = texts_of(ours.params, LENGTHS)
    tokens, attention_mask = pad([text.tolist() for text in texts], side)
    assert tokens.shape == attention_mask.shape == (4, 12)
    logits = ours(tokens, attention_mask=attention_mask)
    assert logits.isfinite().all()
    for text, row, used in zip(texts, logits, attention_mask.bool(), strict=True):
        assert distance(row[used], hf_logits(theirs, text)) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_what_the_padding_is_does_not_matter(tiny_folder, side):
    model = Llama.from_checkpoint(tiny_folder("tiny-ratio4"))
    tokens, attention_mask = pad([text.tolist() for text in texts_of(model.params, LENGTHS)], side)
    other = torch.where(attention_mask.bool(), tokens, 99)
    used = attention_mask.bool()
    assert distance(*(model(t, attention_mask=attention_mask)[used] for t in (tokens, other))) < 1e-5


@pytest.mark.parametrize("chunks", [(14,), (1,) * 14, (6, 1, 1, 6), (3, 8, 3)], ids=str)
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@torch.no_grad()
def test_padding_anywhere_takes_no_position_and_is_not_looked_at(tiny_folder, chunks, cached):
    """Holes in the middle, as when texts of different lengths are continued by texts of different lengths."""
    ours, theirs = both(tiny_folder, "tiny-ratio3")
    tokens = random_tokens(ours.params, 6, 14)
    used = torch.rand(6, 14, generator=torch.Generator().manual_seed(1)) < 0.6
    used[0] = True
    if cached:
        cache = new_cache(ours, 6, 20)
        pieces = zip(tokens.split(chunks, 1), used.split(chunks, 1), strict=True)
        logits = torch.cat([ours(t, cache, attention_mask=m.long()) for t, m in pieces], dim=1)
    else:
        logits = ours(tokens, attention_mask=used)
    for row in range(6):
        assert distance(logits[row][used[row]], hf_logits(theirs, tokens[row][used[row]])) < 1e-4


@a_few_tiny
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_texts_can_be_continued(tiny_folder, name, side):
    ours, theirs = both(tiny_folder, name)
    texts = texts_of(ours.params, LENGTHS)
    more = random_tokens(ours.params, 4, 5, seed=9)
    cache = new_cache(ours, 4, 12 + 5)
    tokens, attention_mask = pad([text.tolist() for text in texts], side)
    ours(tokens, cache, attention_mask)
    logits = torch.cat([ours(more[:, :1], cache), ours(more[:, 1:4], cache), ours(more[:, 4:], cache)], dim=1)
    for text, new, row in zip(texts, more, logits, strict=True):
        assert distance(row, hf_logits(theirs, torch.cat([text, new]))[-5:]) < 1e-4


# The cache


@every_tiny
@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_the_whole_text_at_every_step(tiny_folder, name):
    ours, theirs = both(tiny_folder, name)
    tokens = random_tokens(ours.params, 2, 14)
    whole = hf_logits(theirs, tokens)
    cache = new_cache(ours, 2, 16)
    for i in range(14):
        assert distance(ours(tokens[:, i : i + 1], cache), whole[:, i : i + 1]) < 1e-4
        assert cache.length == i + 1


@every_tiny
@pytest.mark.parametrize("chunks", [(10, 1, 1), (5, 5, 2), (1, 11), (3, 1, 8)], ids=str)
@torch.no_grad()
def test_logits_of_a_text_read_in_chunks_equal_those_of_the_whole(tiny_folder, name, chunks):
    ours, theirs = both(tiny_folder, name)
    tokens = random_tokens(ours.params, 3, 12)
    cache = new_cache(ours, 3, 12)
    logits = torch.cat([ours(chunk, cache) for chunk in tokens.split(chunks, 1)], dim=1)
    assert distance(logits, hf_logits(theirs, tokens)) < 1e-4


@every_tiny
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_kv_heads_only(name, dtype):
    p = TINY[name].params
    cache = KVCache(p, batch_size=3, max_seq_len=50, dtype=dtype)
    assert cache.nbytes == 2 * p.n_layers * 3 * p.n_kv_heads * 50 * p.head_dim * dtype.itemsize
    tensors = [t for t in vars(cache).values() if isinstance(t, torch.Tensor)]
    assert sum(t.nbytes for t in tensors) == cache.nbytes


@torch.no_grad()
def test_a_cache_that_is_full_or_of_another_batch_is_refused_and_stays_usable(tiny_folder):
    ours, theirs = both(tiny_folder, "tiny-ratio3")
    tokens = random_tokens(ours.params, 2, 8)
    cache = new_cache(ours, 2, 8)
    ours(tokens[:, :6], cache)
    with pytest.raises(ValueError, match=naming("6 3 cache 8")):
        ours(tokens[:, :3], cache)
    with pytest.raises(ValueError, match=naming("1 prompts cache 2")):
        ours(tokens[:1, :1], cache)
    with pytest.raises(ValueError, match=naming("3 prompts cache 2")):
        ours(random_tokens(ours.params, 3, 1), cache)
    with pytest.raises(ValueError, match=naming("ids 276 277")):
        ours([[5], [277]], cache)
    assert distance(ours(tokens[:, 6:], cache), hf_logits(theirs, tokens)[:, 6:]) < 1e-4
    with pytest.raises(ValueError, match=naming("8 1 cache")):
        ours(tokens[:, :1], cache)


# Weights


@every_tiny
def test_parameters_have_metas_names_and_shapes(name):
    params = TINY[name].params
    with torch.device("meta"):
        state = Llama(params).state_dict()
    assert {key: tuple(t.shape) for key, t in state.items()} == params.weight_shapes()


@torch.no_grad()
def test_load_state_dict_is_the_whole_loader(tiny_folder):
    ckpt = load_checkpoint(tiny_folder("tiny-ratio4"))
    stored = torch.load(ckpt.path / WEIGHTS)
    model = Llama(ckpt.params)
    model.load_state_dict(stored)
    tokens = random_tokens(ckpt.params, 20)
    assert distance(model(tokens), hf_logits(hf_model(ckpt.params, stored), tokens)) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.1.attention.wk.weight"), r"Missing.*layers\.1\.attention\.wk\.weight"),
        (lambda w: w.update({"rope.freqs": torch.ones(8)}), r"Unexpected.*rope\.freqs"),
        (lambda w: w.update({"norm.weight": torch.ones(7)}), r"size mismatch for norm\.weight"),
    ],
    ids=["a key missing", "a key too many", "a wrong shape"],
)
def test_weights_that_do_not_fit_are_refused(tiny_folder, change, message):
    stored = torch.load(tiny_folder("tiny-ratio4") / WEIGHTS)
    change(stored)
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        Llama(TINY["tiny-ratio4"].params).load_state_dict(stored)


@every_tiny
def test_parameters_are_the_checkpoints_tensors_on_the_memory_map(tiny_folder, name):
    ckpt = load_checkpoint(tiny_folder(name))
    model = Llama.from_checkpoint(ckpt)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == ckpt.weights.keys()  # tied or not
    for key, parameter in parameters.items():
        assert parameter.data_ptr() == ckpt.weights[key].data_ptr(), key
    assert all(p.requires_grad for p in parameters.values())
    assert not list(model.buffers())


@pytest.mark.parametrize("second_name", [False, True], ids=["output.weight absent", "a second name"])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_tied_embeddings_are_one_parameter_counted_once(folder, second_name, dtype):
    stored = torch.load(folder / WEIGHTS)
    count = sum(t.numel() for t in stored.values())
    if second_name:
        torch.save(stored | {"output.weight": stored["tok_embeddings.weight"]}, folder / WEIGHTS)
    for model in (
        Llama.from_checkpoint(folder, dtype=dtype),
        Llama.from_checkpoint(load_checkpoint(folder, dtype=dtype)),
    ):
        assert model.output.weight is model.tok_embeddings.weight
        assert sum(p.numel() for p in model.parameters()) == count
        assert model.output.weight.dtype == (dtype or torch.float32)


@pytest.mark.parametrize("name", ["tiny-ratio3", "tiny-ratio4"])  # tied and not
def test_everything_moves_to_the_device_that_was_asked_for(tiny_folder, name):
    # "meta" computes shapes only, and refuses to mix with tensors that were left on the CPU. It is always at hand.
    model = Llama.from_checkpoint(tiny_folder(name), device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    logits = model(torch.zeros(2, 5, dtype=torch.long))
    assert (logits.device.type, logits.shape) == ("meta", (2, 5, model.params.vocab_size))


def test_a_name_a_folder_or_the_default_will_do(folder, monkeypatch):
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(folder))
    by_path, by_default = Llama.from_checkpoint(folder), Llama.from_checkpoint()
    assert by_path.params == by_default.params == TINY["tiny-ratio3"].params
    with pytest.raises(CheckpointError, match="llama-4"):
        Llama.from_checkpoint("llama-4")


# Training


def loss_of(logits, tokens):
    return F.cross_entropy(logits[..., :-1, :].flatten(0, -2), tokens[..., 1:].flatten())


@pytest.mark.parametrize("name", [*FEW, "tiny-ratio1"])
def test_gradients_equal_hugging_faces_in_every_parameter(tiny_folder, name):
    ours, theirs = both(tiny_folder, name)
    tokens = random_tokens(ours.params, 2, 20)
    our_loss, their_loss = loss_of(ours(tokens), tokens), loss_of(theirs(tokens, use_cache=False).logits, tokens)
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    our_loss.backward()
    their_loss.backward()

    grads = {key: p.grad for key, p in theirs.named_parameters(remove_duplicate=False)}
    expected = {"tok_embeddings.weight": grads["model.embed_tokens.weight"], "norm.weight": grads["model.norm.weight"]}
    if ours.output.weight is not ours.tok_embeddings.weight:
        expected["output.weight"] = grads["lm_head.weight"]
    elif theirs.lm_head.weight is not theirs.model.embed_tokens.weight:  # theirs share memory, but not the gradient
        expected["tok_embeddings.weight"] = expected["tok_embeddings.weight"] + grads["lm_head.weight"]
    for layer in range(ours.params.n_layers):
        for meta_name, name in HF_NAMES.items():
            expected[f"layers.{layer}.{meta_name}.weight"] = grads[f"model.layers.{layer}.{name}.weight"]

    parameters = dict(ours.named_parameters())
    assert parameters.keys() == expected.keys()
    for key, parameter in parameters.items():
        grad = parameter.grad
        if key.endswith(("wq.weight", "wk.weight")):
            grad = to_half_split(grad, ours.params.head_dim)
        assert expected[key].abs().max() > 1e-5, key  # or the comparison would say nothing
        assert distance(grad, expected[key]) < 1e-4 * expected[key].abs().max() + 1e-6, key


def test_gradients_of_padded_texts_are_those_of_the_texts(tiny_folder):
    model = Llama.from_checkpoint(load_checkpoint(tiny_folder("tiny-ratio4")))
    texts = texts_of(model.params, (7, 2, 12))

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {key: p.grad.clone() for key, p in model.named_parameters()}

    alone = gradients(sum(loss_of(model(text), text) for text in texts))
    for side in ("left", "right"):
        tokens, attention_mask = pad([text.tolist() for text in texts], side)
        logits = model(tokens, attention_mask=attention_mask)
        rows = zip(logits, texts, attention_mask.bool(), strict=True)
        padded = gradients(sum(loss_of(row[used], text) for row, text, used in rows))
        for key, grad in alone.items():
            assert distance(padded[key], grad) < 1e-4 * grad.abs().max() + 1e-6, key


def test_training_lowers_the_loss_and_leaves_the_file_as_it_is(folder):
    before = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    ckpt = load_checkpoint(folder)
    model = Llama.from_checkpoint(ckpt)
    tokens = random_tokens(model.params, 2, 16)
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = loss_of(model(tokens), tokens)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 1
    assert all((p != start[key]).any() for key, p in model.named_parameters())
    assert model.output.weight is model.tok_embeddings.weight
    assert hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() == before
    for key, tensor in load_checkpoint(folder).weights.items():
        assert torch.equal(tensor, start[key])


@pytest.mark.parametrize("name", ["tiny-ratio3", "tiny-ratio4"])  # tied and not
@torch.no_grad()
def test_a_changed_model_is_saved_as_metas_file_and_opened_again(tiny_folder, tmp_path, name):
    model = Llama.from_checkpoint(tiny_folder(name))
    for p in model.parameters():
        p.mul_(0.9)
    folder = shutil.copytree(tiny_folder(name), tmp_path / "saved")
    torch.save(model.state_dict(), folder / WEIGHTS)  # where tied, with a second name for the same storage
    again = Llama.from_checkpoint(folder)
    assert (again.output.weight is again.tok_embeddings.weight) == TINY[name].tied
    tokens = random_tokens(model.params, 12)
    assert torch.equal(again(tokens), model(tokens))


def test_a_model_made_from_nothing_can_be_trained():
    torch.manual_seed(0)
    model = Llama(TINY["tiny-ratio4"].params)
    tokens = random_tokens(model.params, 2, 16)
    loss = loss_of(model(tokens), tokens)
    assert abs(loss.item() - math.log(model.params.vocab_size)) < 1.5  # it knows nothing yet
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


@torch.no_grad()
def test_parameters_in_a_file_that_is_mapped_read_only_are_frozen(folder, every_file_is_large):
    # Changing them would end the process, so no optimizer may get them.
    ckpt = load_checkpoint(folder)
    model = Llama.from_checkpoint(ckpt)
    assert not any(p.requires_grad for p in model.parameters())
    tokens = random_tokens(model.params, 9)
    assert distance(model(tokens), hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)) < 1e-4


def test_parameters_are_frozen_where_a_memory_limit_forbids_copies_of_pages(folder, monkeypatch):
    real = mmap.mmap

    def limited(*args, access):
        if access == mmap.ACCESS_COPY:
            raise OSError("cannot allocate memory")
        return real(*args, access=access)

    monkeypatch.setattr(mmap, "mmap", limited)  # as RLIMIT_DATA has it
    assert not any(p.requires_grad for p in Llama.from_checkpoint(folder).parameters())


def test_copies_of_what_is_mapped_read_only_can_be_trained(folder, every_file_is_large):
    for model in (
        Llama.from_checkpoint(load_checkpoint(folder, dtype=torch.float64)),
        Llama.from_checkpoint(folder, dtype=torch.float64),
    ):
        assert all(p.requires_grad for p in model.parameters())
