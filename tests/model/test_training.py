"""Training: the loss, its gradients, the schedule and the steps are those of transformers and of torch, on the same
weights; what it takes in memory is what autograd keeps; and what makes no sense is refused.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import HF_NAMES, hf_model, naming, random_tokens, to_half_split
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.trainer_pt_utils import get_parameter_names

from llama3_scratch import CheckpointError, Llama, ModelArgs, training
from llama3_scratch.loading import fetch
from llama3_scratch.training import Settings

PARAMS = ModelArgs(32, n_layers=2, n_heads=4, vocab_size=64, n_kv_heads=2, multiple_of=16, rope_theta=1e4)
SHORT = Settings(steps=6, batch_size=3, seq_len=9, warmup=2)
NAN, INF = float("nan"), float("inf")


def new(tied=False, params=PARAMS):
    torch.manual_seed(0)
    return Llama(params, tied)


def text(tokens=500, seed=0):
    """Ids with something to learn: half of them are the one before plus one."""
    ids = random_tokens(PARAMS, tokens, seed=seed)
    ids[1::2] = (ids[::2][: len(ids[1::2])] + 1) % PARAMS.vocab_size
    return ids


def theirs_of(model):
    """Hugging Face's model over copies of a model's weights."""
    weights = {key: weight.detach().clone() for key, weight in model.state_dict().items()}
    if model.output.weight is model.tok_embeddings.weight:
        del weights["output.weight"]
    theirs = hf_model(model.params, weights)
    theirs.tie_weights()
    return theirs.requires_grad_(True).train()


def in_their_order(model, of):
    """Their names -> `of` each parameter of ours, its rows in their order."""
    names = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    for i in range(model.params.n_layers):
        names |= {f"layers.{i}.{ours}": f"model.layers.{i}.{name}" for ours, name in HF_NAMES.items()}
    found = {}
    for name, p in model.named_parameters():
        value = of(p).detach()
        turned = name.endswith(("wq.weight", "wk.weight"))
        found[names[name.removesuffix(".weight")] + ".weight"] = (
            to_half_split(value, model.params.head_dim) if turned else value
        )
    return found


def decaying_in(theirs):
    """The parameters that transformers' Trainer has decay: all, embeddings too, but those of norms, and biases."""
    of_no_norm = get_parameter_names(theirs, [LlamaRMSNorm])
    return {name for name, _ in theirs.named_parameters() if name in of_no_norm}


# The loss


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_and_every_gradient_are_transformers(tied):
    model, tokens = new(tied), random_tokens(PARAMS, 3, 17)
    theirs = theirs_of(model)
    expected = theirs(tokens, labels=tokens).loss  # which shifts the labels itself
    found = training.loss(model, tokens)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    gradients = in_their_order(model, lambda p: p.grad)
    assert gradients.keys() == {name for name, _ in theirs.named_parameters()}
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_token_is_predicted_from_those_before_it_and_from_no_other():
    """The last one changes only what its own prediction costs."""
    model, tokens = new(), random_tokens(PARAMS, 1, 6)
    with torch.no_grad():
        row = F.log_softmax(model(tokens[0, :-1])[-1], -1)
        costs = []
        for last in range(PARAMS.vocab_size):
            tokens[0, -1] = last
            costs.append(training.loss(model, tokens) * 5)  # the sum over the five that are predicted
    costs = torch.stack(costs)
    torch.testing.assert_close(costs - costs[0], row[0] - row, rtol=1e-4, atol=1e-4)


def test_a_model_that_has_learned_nothing_loses_about_the_logarithm_of_its_vocabulary():
    assert training.loss(new(), random_tokens(PARAMS, 8, 33)).item() == pytest.approx(math.log(64), abs=0.05)


# Batches


def test_a_batch_is_windows_of_the_text_and_every_window_can_come():
    ids, settings = torch.arange(100, 130), Settings(batch_size=50, seq_len=4)
    starts = set()
    for step in range(20):
        tokens = training.batch(ids, step, settings)
        assert tokens.shape == (50, 5) and tokens.dtype == torch.int64
        assert torch.equal(tokens, tokens[:, :1] + torch.arange(5))
        starts |= set((tokens[:, 0] - 100).tolist())
    assert starts == set(range(26))  # the last one ends with the text


def test_a_batch_follows_from_seed_and_step_alone():
    """The places are numpy's, which draws the same on every machine; these were drawn once."""
    ids, settings = torch.arange(10_000), Settings(batch_size=4, seq_len=3)
    torch.manual_seed(5)
    first = training.batch(ids, 7, settings)
    assert first[:, 0].tolist() == [7964, 388, 2254, 7768]
    assert torch.equal(training.batch(ids, 7, settings), first)
    others = [training.batch(ids, 8, settings), training.batch(ids, 7, Settings(batch_size=4, seq_len=3, seed=1))]
    assert all(not torch.equal(other, first) for other in others)
    swapped = training.batch(ids, 0, Settings(batch_size=4, seq_len=3, seed=7))  # seed and step are not added up
    assert not torch.equal(swapped, first)


def test_a_text_of_one_window_gives_that_one():
    ids = torch.arange(6)
    tokens = training.batch(ids, 3, Settings(batch_size=2, seq_len=5))
    assert torch.equal(tokens, ids.expand(2, -1))


@pytest.mark.parametrize(
    "ids", [torch.arange(5), torch.arange(0), torch.zeros(2, 50).long(), torch.zeros(50), [1] * 50]
)
def test_ids_of_which_no_window_can_be_cut_are_refused(ids):
    with pytest.raises(ValueError, match="text"):
        training.batch(ids, 0, Settings(seq_len=5))


# The schedule


@pytest.mark.parametrize(("steps", "warmup"), [(300, 20), (50, 0), (7, 1), (10, 10), (1, 0)])
@pytest.mark.parametrize("final_rate", [0.1, 0, 1])
def test_the_learning_rate_is_transformers_schedule_one_step_ahead(steps, warmup, final_rate):
    settings = Settings(steps=steps, warmup=warmup, learning_rate=3e-3, final_rate=final_rate)
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(opt, warmup, steps, min_lr_rate=final_rate)
    for step in range(steps):
        opt.step()
        schedule.step()
        assert training.learning_rate(step, settings) == pytest.approx(opt.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
    if steps > warmup:
        assert training.learning_rate(steps - 1, settings) == pytest.approx(3e-3 * final_rate)


def test_beyond_the_last_step_the_rate_stays_at_its_end():
    settings = Settings(steps=30)
    assert training.learning_rate(500, settings) == pytest.approx(settings.learning_rate * settings.final_rate)


# What decays


def test_matrices_decay_and_norms_do_not_as_in_transformers_trainer():
    model = new()
    theirs = theirs_of(model)
    names = in_their_order(model, lambda p: p).keys()
    name_of = dict(zip(map(id, model.parameters()), names, strict=True))
    decaying, others = training.parameter_groups(model, 0.3)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {name_of[id(p)] for p in decaying["params"]} == decaying_in(theirs)
    assert {name_of[id(p)] for p in others["params"]} == {name for name in names if "norm" in name}


def test_a_tied_matrix_comes_once_and_a_frozen_one_not_at_all():
    model = new(tied=True)
    model.layers[0].requires_grad_(False)
    parameters = [p for group in training.parameter_groups(model, 0.1) for p in group["params"]]
    assert len(parameters) == len(set(map(id, parameters))) == 1 + 9 + 1
    model.requires_grad_(False)
    model.layers[0].feed_forward.w1.requires_grad_(True)
    assert [len(group["params"]) for group in training.parameter_groups(model, 0.1)] == [1]


def test_the_optimizer_is_torchs_with_these_settings():
    opt = training.optimizer(new(), Settings(learning_rate=1e-3, betas=(0.8, 0.99), weight_decay=0.2))
    assert type(opt) is torch.optim.AdamW
    assert {group["lr"] for group in opt.param_groups} == {1e-3}
    assert {group["betas"] for group in opt.param_groups} == {(0.8, 0.99)}
    assert [group["weight_decay"] for group in opt.param_groups] == [0.2, 0.0]


# Steps


@pytest.mark.parametrize("tied", [False, True])
def test_six_steps_are_those_of_transformers_model_in_a_loop_of_torchs_parts(tied):
    model, ids = new(tied), text()
    theirs = theirs_of(model)
    decaying = decaying_in(theirs)
    sorts = [[p for name, p in theirs.named_parameters() if (name in decaying) == flag] for flag in (True, False)]
    groups = [{"params": sorts[0], "weight_decay": SHORT.weight_decay}, {"params": sorts[1], "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=SHORT.learning_rate, betas=SHORT.betas)
    least = SHORT.final_rate
    schedule = get_cosine_with_min_lr_schedule_with_warmup(opt, SHORT.warmup, SHORT.steps, min_lr_rate=least)
    opt.step()  # with no gradients there is nothing to do
    steps = list(training.train(model, ids, SHORT))
    assert [step.step for step in steps] == list(range(SHORT.steps))
    for step in steps:
        schedule.step()
        tokens = training.batch(ids, step.step, SHORT)
        opt.zero_grad()
        found = theirs(tokens, labels=tokens).loss
        found.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), SHORT.clip)
        assert step.loss == pytest.approx(found.item(), rel=1e-4)
        assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
        assert step.rate == pytest.approx(opt.param_groups[0]["lr"])
        opt.step()
    assert any(step.gradient_norm > SHORT.clip for step in steps)  # so it was clipped
    state = theirs.state_dict()
    for name, weight in in_their_order(model, lambda p: p).items():
        torch.testing.assert_close(weight, state[name], rtol=1e-3, atol=1e-4, msg=name)


def test_it_learns_what_there_is_to_learn():
    """Half of the text is certain, the other half is noise: ln 64 / 2."""
    model, ids = new(), text(4000)
    before = training.held_out(model, text(500, seed=1), 16)
    steps = list(training.train(model, ids, Settings(steps=150, batch_size=8, seq_len=16, learning_rate=1e-2)))
    after = training.held_out(model, text(500, seed=1), 16)
    assert before == pytest.approx(math.log(64), abs=0.1) and steps[0].loss == pytest.approx(math.log(64), abs=0.1)
    assert after < 0.75 * before


def test_a_run_taken_up_in_the_middle_ends_as_one_that_was_not_interrupted():
    whole, ids = new(), text()
    expected = list(training.train(whole, ids, SHORT))
    first, later = new(), Llama(PARAMS)
    opt = training.optimizer(first, SHORT)
    run = training.train(first, ids, SHORT, opt)
    head = [next(run) for _ in range(3)]
    later.load_state_dict(first.state_dict())
    again = training.optimizer(later, SHORT)
    again.load_state_dict(opt.state_dict())
    tail = list(training.train(later, ids, SHORT, again, first=3))
    assert head + tail == expected
    assert all(torch.equal(a, b) for a, b in zip(later.parameters(), whole.parameters(), strict=True))


def test_a_step_has_been_made_when_it_is_told_and_the_next_one_has_not():
    told, by_hand, ids = new(), new(), text()
    next(iter(training.train(told, ids, SHORT)))
    tokens, rate = training.batch(ids, 0, SHORT), training.learning_rate(0, SHORT)
    training.update(by_hand, training.optimizer(by_hand, SHORT), tokens, rate, SHORT.clip)
    assert all(torch.equal(a, b) for a, b in zip(told.parameters(), by_hand.parameters(), strict=True))


def test_gradients_that_lay_there_do_not_count():
    ids, (clean, dirty) = text(), (new(), new())
    list(training.train(clean, ids, SHORT))
    for p in dirty.parameters():
        p.grad = torch.ones_like(p)
    list(training.train(dirty, ids, SHORT))
    assert all(torch.equal(a, b) for a, b in zip(clean.parameters(), dirty.parameters(), strict=True))


def test_what_is_frozen_stays_as_it_is():
    model = new()
    model.requires_grad_(False)
    model.layers[1].feed_forward.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    list(training.train(model, text(), SHORT))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"layers.1.feed_forward.{name}.weight" for name in ("w1", "w2", "w3")}


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_loss_that_is_no_number_ends_the_training_and_spoils_nothing(value):
    model = new()
    with torch.no_grad():
        model.norm.weight[3] = value
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=naming("step 0 loss learning rate")):
        list(training.train(model, text(), SHORT))
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p, old, rtol=0, atol=0, equal_nan=True)


def test_a_text_shorter_than_a_window_is_refused_before_any_step():
    model = new()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="short"):
        list(training.train(model, text(9), SHORT))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


# What is held out


@pytest.mark.parametrize(("tokens", "seq_len"), [(41, 10), (40, 10), (47, 10), (7, 10), (2, 1), (130, 2)])
def test_the_held_out_loss_counts_every_token_after_the_first_once(tokens, seq_len):
    """Beside it, transformers' logits, one window at a time."""
    model, ids = new(), text(tokens)
    theirs, costs = theirs_of(model).eval(), []
    for start in range(0, tokens - 1, seq_len):
        window = ids[start : start + seq_len + 1]
        with torch.no_grad():
            rows = theirs(window[None, :-1]).logits[0].log_softmax(-1)
        costs += [-row[id].item() for row, id in zip(rows, window[1:], strict=True)]
    assert len(costs) == tokens - 1
    for batch_size in (64, 3):
        found = training.held_out(model, ids, seq_len, batch_size)
        assert found == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    assert training.held_out(model, ids.tolist(), seq_len) == pytest.approx(found)


def test_the_held_out_loss_leaves_no_gradients():
    model = new()
    training.held_out(model, text(50), 10)
    assert all(p.grad is None for p in model.parameters())


def test_bits_per_byte_are_those_of_the_text_in_utf8():
    """Guessing bytes blindly takes eight bits for each, however the text is cut."""
    for words in ("abcd", "ein Größenwahn", "日本"):
        count = len(words.encode())
        assert training.bits_per_byte(math.log(256), count, words) == pytest.approx(8)
    assert training.bits_per_byte(math.log(2), 1, "abcd") == pytest.approx(0.25)


# The text


def test_the_end_of_a_text_is_held_out_from_an_empty_line_on():
    paragraphs = [f"{i} " + "word " * 10 for i in range(40)]
    whole = "\n\n".join(paragraphs)
    first, last = training.split(whole)
    assert first + last == whole and first.endswith("\n\n") and last.startswith(("36 ", "35 "))
    assert 0.1 <= len(last) / len(whole) < 0.2


def test_a_text_without_empty_lines_is_cut_where_it_is():
    first, last = training.split("abcdefghij" * 10, 0.25)
    assert first + last == "abcdefghij" * 10 and len(last) == 25
    first, last = training.split("a\n\n" + "b" * 97, 0.1)  # an empty line, but far from there
    assert len(last) == 10


def test_the_text_is_the_one_that_is_named_or_that_of_the_environment_or_alice(tmp_path, monkeypatch):
    for name in ("one", "two", "alice/alice29.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(f"\ufeff{name}\r\nline\rä\n".encode())
    monkeypatch.setattr(fetch, "fetch", lambda name: tmp_path / name)
    monkeypatch.delenv("LLAMA3_TEXT", raising=False)
    assert training.read_text() == "alice/alice29.txt\nline\nä\n"
    monkeypatch.setenv("LLAMA3_TEXT", "")
    assert training.read_text() == "alice/alice29.txt\nline\nä\n"
    monkeypatch.setenv("LLAMA3_TEXT", str(tmp_path / "two"))
    assert training.read_text() == "two\nline\nä\n"
    assert training.read_text(tmp_path / "one") == training.read_text(str(tmp_path / "one")) == "one\nline\nä\n"


BAD_TEXTS = {
    "latin-1": ("Größe".encode("latin-1") * 100, "UTF-8 byte 2"),
    "utf-16": ("Alice".encode("utf-16"), "UTF-8 byte 0"),
    "empty": (b"", "empty"),
    "blank": (b" \r\n\n\t", "empty"),
    "a mark alone": ("\ufeff".encode(), "empty"),
    "a lone surrogate": (b"abc\xed\xa0\x80", "UTF-8 byte 3"),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_what_is_no_text_is_refused_by_its_name(tmp_path, kind):
    content, words = BAD_TEXTS[kind]
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=naming(f"book.txt {words}")) as raised:
        training.read_text(path)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", [".", "nowhere.txt"])
def test_a_text_that_is_a_folder_or_not_there_is_refused(tmp_path, name):
    with pytest.raises((CheckpointError, OSError)) as raised:
        training.read_text(tmp_path / name)
    assert (tmp_path / name).name in f"{raised.value} {raised.value!r}"


# Settings

REFUSED = {
    "steps": (0, -1, 1.5, "1", None, True, 2**40),
    "batch_size": (0, -1, 1.5, True),
    "seq_len": (0, -1, 1.5, None),
    "warmup": (-1, 1.5, None, True),
    "seed": (-1, 0.5, None, "0"),
    "learning_rate": (0, -1e-3, NAN, INF, "1e-3", None, True, 10**400),
    "final_rate": (-0.1, 1.1, NAN, None),
    "weight_decay": (-0.1, NAN, INF, None),
    "clip": (0, -1, NAN, None, True),
    "betas": (0.9, (0.9,), (0.9, 1), (-0.1, 0.9), (0.9, NAN), (0.9, None), [0.9, 0.95], "ab"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_settings_that_make_no_sense_are_refused_by_their_name(name, value):
    with pytest.raises(ValueError, match=naming(name)) as raised:
        Settings(**{name: value})
    assert len(str(raised.value)) < 300


# Memory


def kept(model, tokens, loss=training.loss):
    """Bytes of what autograd keeps for the way back, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model, tokens).backward()
    return sum(nbytes for nbytes, _ in found.values())


SHAPES = {
    "ratio 2": PARAMS,
    "ratio 1, wide": ModelArgs(48, n_layers=3, n_heads=4, vocab_size=100, multiple_of=64),
    "ratio 8": ModelArgs(64, n_layers=1, n_heads=8, vocab_size=512, n_kv_heads=1, multiple_of=32),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_memory_of_training_is_what_it_takes(shape, tied, dtype):
    params, batch, seq = SHAPES[shape], 4, 64
    model = new(tied, params).to(dtype)
    said = training.memory(params, batch * seq, dtype, tied)
    activations = kept(model, random_tokens(params, batch, seq + 1))
    shared = seq * seq * dtype.itemsize + seq * params.head_dim * 4  # the mask, and the rotations
    assert 0 <= activations - shared - said["activations"] < 64  # a few single numbers
    opt = training.optimizer(model, SHORT)
    opt.step()
    parameters = list(model.parameters())
    assert said["weights"] == sum(p.nbytes for p in parameters)
    assert said["gradients"] == sum(p.grad.nbytes for p in parameters)
    averages = sum(state[key].nbytes for state in opt.state.values() for key in ("exp_avg", "exp_avg_sq"))
    assert said["Adam's averages"] == averages * 4 // dtype.itemsize
    assert said["float32 copy"] == (0 if dtype == torch.float32 else sum(4 * p.numel() for p in parameters))
