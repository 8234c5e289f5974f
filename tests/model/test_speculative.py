"""Writing by looking up: the text is the one that greedy decoding writes, here and in transformers, in fewer steps."""

from itertools import chain

import pytest
import torch
from helpers import hf_greedy, hf_model, random_tokens

from llama3_scratch import Llama, generate, load_checkpoint
from llama3_scratch.loading.tiny import TINY, make_tiny
from llama3_scratch.speculative import generate_by_lookup, look_up

COUNT = 30


@pytest.fixture(scope="module", params=[name for name, tiny in TINY.items() if tiny.dtype == torch.float32])
def checkpoint(request):
    return load_checkpoint(make_tiny(request.param))


def flat(steps):
    return list(chain.from_iterable(steps))


def prompt(checkpoint, length=12, seed=1):
    return random_tokens(checkpoint.params, length, seed=seed).tolist()


@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_the_text_is_that_of_greedy_decoding(checkpoint, k):
    model, ids = Llama.from_checkpoint(checkpoint), prompt(checkpoint)
    steps = list(generate_by_lookup(model, ids, COUNT, k))
    assert flat(steps) == list(generate(model, ids, COUNT))
    assert flat(steps) == hf_greedy(hf_model(checkpoint.params, checkpoint.weights), ids, COUNT)
    assert all(1 <= len(step) <= k + 1 for step in steps)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_prompts_and_counts(checkpoint, length):
    model, ids = Llama.from_checkpoint(checkpoint), prompt(checkpoint, length)
    for count in (0, 1, 2):
        assert flat(generate_by_lookup(model, ids, count)) == list(generate(model, ids, count))


class Counts(torch.nn.Module):
    """Says after each token the next number of a circle of five, and how often it was asked."""

    def __init__(self, model):
        super().__init__()
        self.tok_embeddings, self.params, self.asked = model.tok_embeddings, model.params, []

    def forward(self, tokens, cache, attention_mask=None, last_only=False):
        self.asked.append(tokens.shape[1])
        cache.length += tokens.shape[1]
        logits = torch.nn.functional.one_hot((tokens + 1) % 5, self.params.vocab_size).float()
        return logits[:, -1:] if last_only else logits


def test_what_repeats_takes_few_steps():
    model = Counts(Llama.from_checkpoint(load_checkpoint(make_tiny("tiny-ratio1"))))
    steps = list(generate_by_lookup(model, [0, 1, 2, 3, 4, 0], 20, k=4))
    assert flat(steps) == [(i + 1) % 5 for i in range(20)]
    assert len(steps) == 4 and model.asked == [5, 5, 5, 5, 5]  # the prompt but its last token, then one token and four


def test_a_stop_token_within_a_guess_ends_the_text():
    model = Counts(Llama.from_checkpoint(load_checkpoint(make_tiny("tiny-ratio1"))))
    circle = [0, 1, 2, 3, 4, 0]
    assert list(generate_by_lookup(model, circle, 20, k=4, stop_tokens=[3])) == [[1, 2]]
    assert list(generate_by_lookup(model, circle, 20, k=4, stop_tokens=[1])) == []


@pytest.mark.parametrize(
    ("ids", "k", "guess"),
    [
        ([1, 2, 3, 1, 2], 8, [3, 1, 2]),
        ([1, 2, 3, 1, 2], 1, [3]),
        ([1, 2, 3, 1, 2], 0, []),
        ([1, 2, 3], 4, []),
        ([7], 4, []),
        ([7, 7], 4, [7]),
        ([1, 5, 2, 5, 3, 5], 1, [3]),  # the latest
        ([9, 1, 5, 6, 2, 1, 5, 7, 3, 9, 1, 5], 1, [6]),  # the longest, though another one came later
    ],
)
def test_looking_up(ids, k, guess):
    assert look_up(ids, k) == guess


def test_bad_calls_are_refused_before_any_work(checkpoint):
    model = Llama.from_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="k is how many"):
        generate_by_lookup(model, [1], 3, k=-1)
    with pytest.raises(ValueError, match=str(model.params.context_len)):
        generate_by_lookup(model, [1], model.params.context_len)
