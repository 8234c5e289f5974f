"""Every tensor of a run, held against transformers, and what changing one of them does."""

from dataclasses import replace

import pytest
import torch
from helpers import hf_model

from llama3_scratch import Llama, functional, load_checkpoint, trace
from llama3_scratch.tracing import shapes

TOKENS = [3, 141, 59, 26, 5, 35, 141, 59]
KINDS = ["tiny-ratio1", "tiny-ratio3", "tiny-ratio4", "tiny-scaled", "tiny-bfloat16"]


@pytest.fixture(scope="module")
def checkpoint(tiny_folder):
    return load_checkpoint(tiny_folder("tiny-ratio3"))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_forward_and_shapes_are_told_beforehand(kind, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    run = trace(ckpt, TOKENS)
    tolerance = torch.finfo(ckpt.weights["norm.weight"].dtype).eps ** 0.5
    expected = functional.forward(TOKENS, ckpt.weights, ckpt.params)
    torch.testing.assert_close(run["logits"], expected, rtol=tolerance, atol=tolerance)
    told = shapes(ckpt.params, len(TOKENS))
    assert [(name, tuple(t.shape)) for name, t in run.items()] == list(told.items())
    assert run.nbytes == sum(t.nbytes for t in run.values()) > 0


@pytest.mark.parametrize("kind", KINDS[:4])
def test_stream_weights_and_last_norm_are_those_of_transformers(kind, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    theirs = hf_model(ckpt.params, ckpt.weights)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        said = theirs(torch.tensor([TOKENS]), output_hidden_states=True, output_attentions=True)
    run, close = trace(ckpt, TOKENS), {"rtol": 1e-4, "atol": 1e-5}
    streams = [run["embeddings"], *(run[f"layers.{n}.stream"] for n in range(ckpt.params.n_layers - 1)), run["norm"]]
    for ours, hidden in zip(streams, said.hidden_states, strict=True):
        torch.testing.assert_close(ours, hidden[0], **close)
    for n, weights in enumerate(said.attentions):
        torch.testing.assert_close(run[f"layers.{n}.attention.weights"], weights[0], **close)
    torch.testing.assert_close(run["logits"], said.logits[0], **close)


def test_inner_tensors_are_those_of_transformers_modules(checkpoint):
    theirs, seen = hf_model(checkpoint.params, checkpoint.weights), {}
    layer = theirs.model.layers[1]
    parts = {"gate_proj": "z", "up_proj": "up", "act_fn": "gate", "down_proj": "output"}
    for part in parts:
        getattr(layer.mlp, part).register_forward_hook(lambda _, __, out, part=part: seen.update({part: out[0]}))
    layer.self_attn.o_proj.register_forward_hook(lambda _, x, out: seen.update(heads=x[0][0], output=out[0]))
    layer.self_attn.v_proj.register_forward_hook(lambda _, __, out: seen.update(v=out[0]))
    layer.post_attention_layernorm.register_forward_hook(
        lambda _, x, out: seen.update(between=x[0][0], ffn_norm=out[0])
    )
    with torch.no_grad():
        theirs(torch.tensor([TOKENS]))
    run, close = trace(checkpoint, TOKENS), {"rtol": 1e-4, "atol": 1e-5}
    for part, name in parts.items():
        torch.testing.assert_close(run[f"layers.1.feed_forward.{name}"], seen[part], **close)
    at = "layers.1.attention."
    torch.testing.assert_close(run[at + "heads"].transpose(0, 1).flatten(1), seen["heads"], **close)
    torch.testing.assert_close(run[at + "v"].transpose(0, 1).flatten(1), seen["v"], **close)
    torch.testing.assert_close(run[at + "output"], seen["output"], **close)
    torch.testing.assert_close(run[at + "stream"], seen["between"], **close)
    torch.testing.assert_close(run["layers.1.ffn_norm"], seen["ffn_norm"], **close)


def test_the_stream_is_the_sum_of_the_embeddings_and_all_that_was_added(checkpoint):
    run, total = trace(checkpoint, TOKENS), 0
    for name, tensor in run.items():
        if name == "embeddings" or name.endswith(".output"):
            total = total + tensor
        elif name.endswith(".stream"):
            torch.testing.assert_close(total, tensor)
    for n in range(checkpoint.params.n_layers):
        at = f"layers.{n}.attention."
        torch.testing.assert_close(run[at + "written"].sum(0), run[at + "output"])
        torch.testing.assert_close(run[at + "weights"].sum(-1), torch.ones(checkpoint.params.n_heads, len(TOKENS)))


def test_a_module_and_its_checkpoint_give_the_same(checkpoint):
    theirs, ours = trace(Llama.from_checkpoint(checkpoint), TOKENS), trace(checkpoint, TOKENS)
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_change_shows_in_all_that_comes_after_and_in_nothing_before(checkpoint):
    plain = trace(checkpoint, TOKENS)
    names = list(plain)
    for at, name in enumerate(names):
        run = trace(checkpoint, TOKENS, replace={name: lambda t: t * 1.5})
        assert all(torch.equal(plain[n], run[n]) for n in names[:at]), name
        torch.testing.assert_close(run[name], plain[name] * 1.5)
        assert not torch.allclose(plain["logits"], run["logits"]), name


def test_nothing_replaced_changes_nothing(checkpoint):
    plain = trace(checkpoint, TOKENS)
    for name in ("layers.0.attention.heads", "layers.1.attention.written", "layers.0.stream"):
        run = trace(checkpoint, TOKENS, replace={name: plain[name]})
        torch.testing.assert_close(run["logits"], plain["logits"])


def test_a_head_is_off_as_if_wo_had_no_columns_for_it(checkpoint):
    head, dim = 2, checkpoint.params.head_dim
    without = {name: weight.clone() for name, weight in checkpoint.weights.items()}
    without["layers.1.attention.wo.weight"][:, head * dim : (head + 1) * dim] = 0
    expected = functional.forward(TOKENS, without, checkpoint.params)

    def off(heads):
        return heads.index_fill(0, torch.tensor([head]), 0)

    for name in ("heads", "written"):
        run = trace(checkpoint, TOKENS, replace={f"layers.1.attention.{name}": off}, keep=["logits"])
        torch.testing.assert_close(run["logits"], expected)


def test_a_stream_patched_from_another_prompt_gives_that_prompts_logits(checkpoint):
    other = trace(checkpoint, TOKENS[::-1])
    run = trace(checkpoint, TOKENS, replace={"layers.0.stream": other["layers.0.stream"]})
    torch.testing.assert_close(run["logits"], other["logits"])


def test_what_is_not_asked_for_is_not_kept(checkpoint):
    whole = trace(checkpoint, TOKENS)
    run = trace(checkpoint, TOKENS, keep=["*.stream", "logits"])
    assert list(run) == [name for name in whole if name.endswith(".stream") or name == "logits"]
    assert all(torch.equal(run[name], whole[name]) for name in run)


@pytest.mark.parametrize(
    ("last", "later"),
    [("embeddings", "layers."), ("layers.0.attention.k", "layers.0.feed_forward"), ("layers.0.stream", "layers.1.")],
)
def test_a_run_goes_no_further_than_what_is_asked_for(last, later, checkpoint):
    """Here the weights of what comes later are missing."""
    weights = {name: weight for name, weight in checkpoint.weights.items() if not name.startswith(later)}
    run = trace(replace(checkpoint, weights=weights), TOKENS, keep=[last])
    assert list(run) == [last] and torch.equal(run[last], trace(checkpoint, TOKENS)[last])


def test_a_change_that_comes_after_all_that_is_kept_is_held_to_its_shape_too(checkpoint):
    with pytest.raises(ValueError, match=r"layers\.1\.stream is"):
        trace(checkpoint, TOKENS, replace={"layers.1.stream": torch.zeros(1)}, keep=["layers.0.stream"])


def test_gradients_reach_what_was_put_in(checkpoint):
    push = torch.zeros(len(TOKENS), checkpoint.params.dim, requires_grad=True)
    trace(checkpoint, TOKENS, replace={"layers.0.stream": lambda x: x + push}, keep=["logits"])[
        "logits"
    ].sum().backward()
    assert push.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"replace": {"layers.0.attention.head": 1.0}}, KeyError, "layers.0.attention.heads"),
        ({"replace": {"layers.*.stream": lambda x: x * 0}}, KeyError, r"layers\.\*\.stream"),
        ({"keep": ["layers.9.stream"]}, KeyError, "layers.9.stream"),
        ({"replace": {"layers.0.stream": torch.zeros(1)}}, ValueError, "layers.0.stream is"),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_told(options, error, says, checkpoint):
    with pytest.raises(error, match=says):
        trace(checkpoint, TOKENS, **options)


@pytest.mark.parametrize(
    ("tokens", "says"), [([[1, 2]], "one text"), ([], "no tokens|empty|at least"), ([-1], "id|-1")]
)
def test_tokens_that_are_no_text_are_told(tokens, says, checkpoint):
    with pytest.raises(ValueError, match=says):
        trace(checkpoint, tokens)
