"""Habits of heads, parts of a logit, patched places: each against runs of `trace`, or numbers made by hand."""

import math

import pytest
import torch

from llama3_scratch import Llama, circuits, functional, load_checkpoint, trace

TOKENS, OTHER = [3, 141, 59, 26, 5, 35], [3, 141, 60, 26, 7, 35]
ANOTHER = [4, 141, 59, 26, 5, 36]  # different from its first token on
KINDS = ["tiny-ratio1", "tiny-ratio3", "tiny-ratio4", "tiny-scaled"]


@pytest.fixture(scope="module")
def checkpoint(tiny_folder):
    return load_checkpoint(tiny_folder("tiny-ratio3"))


def looks_at(*places):
    """A head's weights, all on one place for each position."""
    return torch.nn.functional.one_hot(torch.tensor(places), len(places)).float()


@pytest.mark.parametrize(
    ("habit", "weights"),
    [
        ("previous", looks_at(0, 0, 1, 2, 3, 4)),
        ("induction", looks_at(0, 0, 0, 1, 2, 3)),
        ("duplicate", looks_at(0, 1, 2, 0, 1, 2)),
        ("first", looks_at(0, 0, 0, 0, 0, 0)),
        ("itself", looks_at(0, 1, 2, 3, 4, 5)),
        ("uniform", torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]),
    ],
)
def test_a_head_that_does_nothing_else_scores_one(habit, weights):
    found = circuits.habits_of(weights, [7, 8, 9, 7, 8, 9])
    assert found[habit].item() == pytest.approx(1)
    for name in {"previous", "induction", "duplicate", "first", "itself", "uniform"} - {habit}:
        assert found[name] < 0.5, name


def test_each_habit_is_a_mean_over_the_positions_that_have_such_a_place():
    weights = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.2, 0.7, 0], [0.4, 0.3, 0.2, 0.1]])
    entropies = [-sum(p * math.log(p) for p in row if p) for row in weights.tolist()]
    expected = {
        "previous": (0.5 + 0.2 + 0.2) / 3,
        "induction": 0.3,  # the last token came first; after it stands the second
        "duplicate": 0.4,
        "first": (0.5 + 0.1 + 0.4) / 3,
        "itself": (0.5 + 0.7 + 0.1) / 3,
        "uniform": sum(entropies[i] / math.log(i + 1) for i in (1, 2, 3)) / 3,
    }
    found = circuits.habits_of(weights.expand(2, 3, 4, 4), [7, 8, 9, 7])
    assert list(found) == list(expected)
    for habit, value in expected.items():
        torch.testing.assert_close(found[habit], torch.full((2, 3), value))


def test_several_copies_of_a_token_count_together():
    weights = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.2, 0.7, 0], [0.4, 0.3, 0.2, 0.1]])
    found = circuits.habits_of(weights, [7, 7, 8, 7])
    assert found["duplicate"].item() == pytest.approx((0.5 + 0.4 + 0.3) / 2)  # 8 has no copy
    assert found["induction"].item() == pytest.approx((0.5 + 0.3 + 0.2) / 2)


def test_random_tokens_come_twice_and_are_the_same_for_a_seed():
    tokens = circuits.repeated(1000, 20, seed=3)
    assert tokens[:20] == tokens[20:] and len(set(tokens)) == 20 and all(0 <= token < 1000 for token in tokens)
    assert tokens == circuits.repeated(1000, 20, seed=3) != circuits.repeated(1000, 20, seed=4)
    assert len(circuits.repeated(5, 20)) == 40
    assert circuits.repeated(1000) == circuits.repeated(1000, length=50, seed=0)


def test_habits_are_means_over_texts_of_what_trace_shows(checkpoint):
    found = circuits.habits(checkpoint, seed=5, length=9, texts=2, start=[1])
    previous, induction = [], []
    for seed in (5, 6):
        run = trace(checkpoint, [1, *circuits.repeated(checkpoint.params.vocab_size, 9, seed)])
        weights = torch.stack([run[f"layers.{n}.attention.weights"] for n in range(checkpoint.params.n_layers)])
        previous.append(weights.diagonal(-1, -2, -1).mean(-1))
        induction.append(weights[..., 10:, 1:].diagonal(1, -2, -1).mean(-1))
    torch.testing.assert_close(found["previous"], torch.stack(previous).mean(0))
    torch.testing.assert_close(found["induction"], torch.stack(induction).mean(0))


def test_one_text_of_a_hundred_tokens_unless_something_else_is_asked_for(checkpoint):
    whole = circuits.habits(checkpoint, seed=0, length=50, texts=1, start=())
    assert all(torch.equal(habit, whole[name]) for name, habit in circuits.habits(checkpoint).items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("against", [None, 8])
def test_what_all_parts_add_is_the_logit(kind, against, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    logits = functional.forward(TOKENS, ckpt.weights, ckpt.params)[-1]
    parts = circuits.attribution(ckpt, TOKENS, 7, against)
    assert parts["heads"].shape == (ckpt.params.n_layers, ckpt.params.n_heads)
    assert parts["feed_forward"].shape == (ckpt.params.n_layers,) and parts["embeddings"].shape == ()
    expected = logits[7] - (0 if against is None else logits[against])
    torch.testing.assert_close(sum(part.sum() for part in parts.values()), expected)


def test_what_a_head_adds_is_what_goes_with_it_if_nothing_reads_it(checkpoint):
    """In the last layer, all that still reads a head is feed-forward, which is held to what it was."""
    last, heads = checkpoint.params.n_layers - 1, checkpoint.params.n_heads
    whole, parts = trace(checkpoint, TOKENS), circuits.attribution(checkpoint, TOKENS, 7)
    scale = (whole[f"layers.{last}.stream"][-1].pow(2).mean() + checkpoint.params.norm_eps).sqrt()
    for head in range(heads):
        off = {
            f"layers.{last}.attention.heads": lambda x, head=head: x.index_fill(0, torch.tensor([head]), 0),
            f"layers.{last}.feed_forward.output": whole[f"layers.{last}.feed_forward.output"],
        }
        run = trace(checkpoint, TOKENS, replace=off)
        own = (run[f"layers.{last}.stream"][-1].pow(2).mean() + checkpoint.params.norm_eps).sqrt()
        gone = whole["logits"][-1, 7] - run["logits"][-1, 7] * own / scale
        torch.testing.assert_close(parts["heads"][last, head], gone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("text", "against"), [(OTHER, None), (OTHER, 8), (ANOTHER, 8)])
def test_a_patched_place_gives_what_a_run_gives_into_which_it_was_put(kind, text, against, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    found, other = circuits.patching(ckpt, TOKENS, text, 7, against), trace(ckpt, text)
    names = ["embeddings", *(f"layers.{n}.stream" for n in range(ckpt.params.n_layers))]
    assert found.shape == (len(names), len(TOKENS))
    for row, name in enumerate(names):
        for position in range(len(TOKENS)):

            def put(stream, name=name, position=position):
                return torch.cat([stream[:position], other[name][position : position + 1], stream[position + 1 :]])

            logits = trace(ckpt, TOKENS, replace={name: put}, keep=["logits"])["logits"][-1]
            expected = logits[7] - (0 if against is None else logits[against])
            torch.testing.assert_close(found[row, position], expected, rtol=1e-4, atol=1e-5)


def test_texts_that_are_equal_are_patched_with_themselves(checkpoint):
    found = circuits.patching(checkpoint, TOKENS, TOKENS, 7)
    logit = functional.forward(TOKENS, checkpoint.weights, checkpoint.params)[-1, 7]
    torch.testing.assert_close(found, logit.expand_as(found), rtol=1e-4, atol=1e-5)


def test_a_module_and_its_checkpoint_give_the_same(checkpoint):
    model = Llama.from_checkpoint(checkpoint)
    for name, ours in circuits.habits(checkpoint, length=9).items():
        assert torch.equal(ours, circuits.habits(model, length=9)[name])
    for name, ours in circuits.attribution(checkpoint, TOKENS, 7).items():
        assert torch.equal(ours, circuits.attribution(model, TOKENS, 7)[name])
    assert torch.equal(circuits.patching(checkpoint, TOKENS, OTHER, 7), circuits.patching(model, TOKENS, OTHER, 7))


def test_sixteen_bit_weights_give_nearly_the_same(tiny_folder):
    ckpt = load_checkpoint(tiny_folder("tiny-bfloat16"))
    logits = functional.forward(TOKENS, ckpt.weights, ckpt.params)[-1]
    parts = circuits.attribution(ckpt, TOKENS, 7, 8)
    total = sum(part.sum() for part in parts.values())
    torch.testing.assert_close(total, logits[7] - logits[8], rtol=0.05, atol=0.05)
    found = circuits.patching(ckpt, TOKENS, OTHER, 7, 8)
    torch.testing.assert_close(found[0, 0], logits[7] - logits[8], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda ckpt: circuits.patching(ckpt, TOKENS, TOKENS[1:], 7), "one length"),
        (lambda ckpt: circuits.patching(ckpt, TOKENS, OTHER, -1), "-1"),
        (lambda ckpt: circuits.attribution(ckpt, TOKENS, 10**6), "1000000"),
    ],
)
def test_what_cannot_be_is_told(call, says, checkpoint):
    with pytest.raises(ValueError, match=says):
        call(checkpoint)
