"""The lenses, held against transformers: its hidden states, and the derivatives that autograd takes through it."""

import pytest
import torch
from helpers import hf_model, naming

from llama3_scratch import Llama, kernels, lenses, load_checkpoint, trace

TOKENS = [3, 141, 59, 26, 5, 35, 141, 59]
TEXTS = [[7, 9, 200, 31, 8], [5, 77, 6, 4, 90, 12, 33]]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(tiny_folder):
    return load_checkpoint(tiny_folder("tiny-ratio3"))


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return hf_model(checkpoint.params, checkpoint.weights)


def last_stream(theirs, text, layer, change=lambda stream: stream):
    """Transformers' stream before the last norm, [seq, dim], where `change` was done to the one after `layer`."""
    seen = {}
    hooks = [
        theirs.model.layers[layer].register_forward_hook(lambda _, __, out: change(out)),
        theirs.model.norm.register_forward_pre_hook(lambda _, inputs: seen.update(last=inputs[0][0])),
    ]
    try:
        theirs(torch.tensor([text]))
    finally:
        for hook in hooks:
            hook.remove()
    return seen["last"]


def mean_jacobian(theirs, text, layer, skip):
    """[dim, dim]: mean over places t of the sum over places t' of d last[t'] / d stream[t], by autograd."""
    inside = slice(skip, len(text) - 1)

    def moved(push):
        return last_stream(theirs, text, layer, lambda stream: stream + push)[inside].sum(0)

    pushes = torch.zeros(1, len(text), theirs.config.hidden_size)
    jacobian = torch.autograd.functional.jacobian(moved, pushes)  # [dim, 1, seq, dim]
    return jacobian[:, 0, inside].mean(1)


def test_logit_lens_reads_transformers_hidden_states(checkpoint, theirs):
    with torch.no_grad():
        *earlier, _ = theirs(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
        expected = [theirs.lm_head(theirs.model.norm(state[0])) for state in earlier]
        expected.append(theirs(torch.tensor([TOKENS])).logits[0])
    read = lenses.logit_lens(checkpoint, TOKENS)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_push_is_the_mean_jacobian_that_autograd_finds_in_transformers(skip, layer, checkpoint, theirs):
    directions = torch.randn(3, checkpoint.params.dim, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([directions @ mean_jacobian(theirs, text, layer, skip).T for text in TEXTS]).mean(0)
    torch.testing.assert_close(lenses.push(checkpoint, directions, layer, TEXTS, skip), expected, **CLOSE)


def test_jacobian_lens_reads_the_pushed_states_in_the_order_of_the_layers(checkpoint, theirs):
    read = lenses.jacobian_lens(checkpoint, TOKENS, [1, 0], TEXTS)
    with torch.no_grad():
        for row, layer in zip(read, [1, 0], strict=True):
            state = trace(checkpoint, TOKENS)[f"layers.{layer}.stream"]
            jacobian = torch.stack([mean_jacobian(theirs, text, layer, 1) for text in TEXTS]).mean(0)
            expected = theirs.lm_head(theirs.model.norm(state @ jacobian.T))
            torch.testing.assert_close(row, expected, **CLOSE)


def test_after_the_last_layer_there_is_nothing_to_push_through(checkpoint):
    last = checkpoint.params.n_layers - 1
    (read,) = lenses.jacobian_lens(checkpoint, TOKENS, [last], TEXTS)
    torch.testing.assert_close(read, trace(checkpoint, TOKENS)["logits"], **CLOSE)


def test_many_states_are_pushed_in_parts(checkpoint, monkeypatch):
    whole = lenses.jacobian_lens(checkpoint, TOKENS, [0], TEXTS)
    monkeypatch.setattr(lenses, "_ROWS", 30)  # three directions in two texts at a time
    torch.testing.assert_close(lenses.jacobian_lens(checkpoint, TOKENS, [0], TEXTS), whole, **CLOSE)


def test_modules_and_a_processor_with_amx_read_the_same(checkpoint, monkeypatch):
    read = lenses.jacobian_lens(checkpoint, TOKENS, [0], TEXTS)
    torch.testing.assert_close(lenses.jacobian_lens(Llama.from_checkpoint(checkpoint), TOKENS, [0], TEXTS), read)
    torch.testing.assert_close(
        lenses.logit_lens(Llama.from_checkpoint(checkpoint), TOKENS), lenses.logit_lens(checkpoint, TOKENS)
    )


def test_bfloat16_reads_nearly_the_same(tiny_folder, monkeypatch):
    half = load_checkpoint(tiny_folder("tiny-ratio3"), dtype=torch.bfloat16)
    full = load_checkpoint(tiny_folder("tiny-ratio3"))
    expected = lenses.jacobian_lens(full, TOKENS, [0], TEXTS)
    for amx in (False, True):
        monkeypatch.setattr(kernels, "_AMX", amx)
        read = lenses.jacobian_lens(half, TOKENS, [0], TEXTS)
        assert read.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(read, expected).min() > 0.99


def test_texts_are_given_as_strings_where_there_is_a_tokenizer(checkpoint):
    tokenizer = checkpoint.tokenizer
    texts = ["The sun was up.", "Nobody spoke."]
    ids = [tokenizer.encode(text, bos=tokenizer.add_bos) for text in texts]
    read = lenses.jacobian_lens(checkpoint, TOKENS, [0], texts)
    assert torch.equal(read, lenses.jacobian_lens(checkpoint, TOKENS, [0], ids))
    assert not torch.allclose(read, lenses.jacobian_lens(checkpoint, TOKENS, [0]))  # other texts, other numbers


@pytest.mark.parametrize(
    ("layers", "texts", "error", "says"),
    [
        ([3], TEXTS, ValueError, "layer 3 0 2"),
        ([-1], TEXTS, ValueError, "layer -1"),
        ([0.5], TEXTS, TypeError, "0.5"),
        ([0], [[1, 2]], ValueError, "2 3"),
        ([0], [], ValueError, "context"),
        ([0], [[1, 2, 99999]], ValueError, "99999"),
    ],
)
def test_what_cannot_be_read_is_told(layers, texts, error, says, checkpoint):
    with pytest.raises(error, match=naming(says)):
        lenses.jacobian_lens(checkpoint, TOKENS, layers, texts)


def test_strings_need_a_tokenizer(checkpoint):
    with pytest.raises(TypeError, match=naming("tokenizer")):
        lenses.jacobian_lens(Llama.from_checkpoint(checkpoint), TOKENS, [0])
