"""TransformerLens as referee of what looks inside: its hooks on Hugging Face's arithmetic over the same weights, and
its definitions of heads, attribution, patching and lenses.
"""

import os

import pytest
import torch
from helpers import hf_model

from llama3_scratch import circuits, lenses, load_checkpoint, trace

if os.environ.get("LLAMA3_NEED_REFEREE") != "1":  # with it, as in CI, one that is missing is a failure
    pytest.importorskip("transformer_lens")

import pandas as pd
from transformer_lens import head_detector, patching
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis import JacobianLens, logit_lens

TOKENS, OTHER, TOKEN, AGAINST = [3, 141, 59, 26, 5, 35], [3, 141, 60, 26, 7, 35], 7, 8
KINDS = ["tiny-ratio1", "tiny-ratio3", "tiny-scaled"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FAR = {"rtol": 1e-3, "atol": 1e-3}  # through the thirty layers of the real model

# Our names -> theirs. Heads stand behind the positions there, and queries and keys are in Hugging Face's order.
LAYER = {
    "attention_norm": "ln1.hook_out",
    "attention.q": "attn.hook_q",
    "attention.k": "attn.hook_k",
    "attention.v": "attn.hook_v",
    "attention.q_rotated": "attn.hook_rot_q",
    "attention.k_rotated": "attn.hook_rot_k",
    "attention.masked": "attn.hook_attn_scores",
    "attention.weights": "attn.hook_pattern",
    "attention.heads": "attn.hook_z",
    "attention.written": "attn.hook_result",
    "attention.output": "hook_attn_out",
    "attention.stream": "hook_resid_mid",
    "ffn_norm": "ln2.hook_out",
    "feed_forward.z": "mlp.hook_pre",
    "feed_forward.up": "mlp.hook_pre_linear",
    "feed_forward.hidden": "mlp.hook_post",
    "feed_forward.output": "hook_mlp_out",
    "stream": "hook_resid_post",
}
ENDS = {"embeddings": "hook_embed", "norm": "ln_final.hook_out", "logits": "unembed.hook_out"}
OURS_ALONE = {"attention.scores", "feed_forward.gate"}  # on the way to masked and hidden


def bridge(ckpt):
    """Their model over our tensors, without a tokenizer: where it wants a string, it takes a tuple of ids."""
    model = hf_model(ckpt.params, ckpt.weights)
    theirs = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
    theirs.to_tokens = lambda ids: torch.tensor([list(ids)])
    return theirs


def cached(theirs, tokens):
    """Their name -> tensor of a run, and what each head writes."""
    cache = theirs.run_with_cache(torch.tensor([tokens]))[1]
    cache.compute_head_results()
    return cache


def as_theirs(name, tensor):
    """Our tensor of that name, in the order of its dimensions and pairs that theirs has."""
    if name.split("_")[0] in ("attention.q", "attention.k"):
        tensor = tensor.unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)  # (0, d/2) for (0, 1)
    if name == "attention.masked":
        return tensor.clamp_min(torch.finfo(tensor.dtype).min)  # their infinity
    heads_first = name.startswith("attention.") and name != "attention.weights" and tensor.dim() == 3
    return tensor.transpose(0, 1) if heads_first else tensor


def assert_same_tensors(ckpt, theirs, tokens, close):
    run, cache = trace(ckpt, tokens), cached(theirs, tokens)
    for ours, theirs in ENDS.items():
        torch.testing.assert_close(run[ours], cache[theirs][0], **close)
    for n in range(ckpt.params.n_layers):
        for ours, theirs in LAYER.items():
            tensor = as_theirs(ours, run[f"layers.{n}.{ours}"])
            torch.testing.assert_close(tensor, cache[f"blocks.{n}.{theirs}"][0], **close)


@pytest.fixture(scope="module")
def theirs(smollm2):
    """Their form of the real model."""
    return bridge(smollm2)


@pytest.fixture(scope="module")
def sentences(smollm2):
    """Two texts that differ in a word, and the two words that follow them, as ids."""
    texts = ("The capital of France is", "The capital of Italy is")
    return *(smollm2.tokenizer.encode(text) for text in texts), *(smollm2.tokenizer.encode(" Paris Rome"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_run_is_theirs(kind, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    names = {name.removeprefix("layers.0.") for name in trace(ckpt, TOKENS) if not name.startswith("layers.1")}
    assert {name for name in names if "layers" not in name} == {*ENDS, *LAYER} | OURS_ALONE
    assert_same_tensors(ckpt, bridge(ckpt), TOKENS, CLOSE)


@pytest.mark.slow
def test_every_tensor_of_a_run_of_the_real_model_is_theirs(smollm2, theirs, sentences):
    assert_same_tensors(smollm2, theirs, sentences[0], FAR)


def their_habits(theirs, tokens):
    """Their three kinds of head. They divide by all positions, we by those that have such a place."""
    cache = theirs.run_with_cache(torch.tensor([tokens]), remove_batch_dim=True)[1]
    rows = {"previous": len(tokens) - 1, "duplicate": len(tokens) // 2, "induction": len(tokens) // 2}
    for habit, count in rows.items():
        kind = f"{habit}_token_head" if habit != "induction" else "induction_head"
        found = head_detector.detect_head(theirs, tuple(tokens), kind, cache=cache)
        yield habit, found * len(tokens) / count


@pytest.mark.parametrize("kind", KINDS)
def test_habits_are_those_of_their_detector(kind, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    ours, theirs = circuits.habits(ckpt, seed=1, length=9), bridge(ckpt)
    for habit, expected in their_habits(theirs, circuits.repeated(ckpt.params.vocab_size, 9, seed=1)):
        torch.testing.assert_close(ours[habit], expected, **CLOSE)


@pytest.mark.slow
def test_habits_of_all_heads_of_the_real_model_are_those_of_their_detector(smollm2, theirs):
    ours = circuits.habits(smollm2, seed=1, length=20)
    for habit, expected in their_habits(theirs, circuits.repeated(smollm2.params.vocab_size, 20, seed=1)):
        torch.testing.assert_close(ours[habit], expected, **FAR)
        assert ours[habit].max() > 0.5


def their_attribution(ckpt, tokens, token, against):
    """Parts of the logit, by their three functions. Norms are folded into the weights first, as theirs want it."""
    theirs = bridge(ckpt)
    theirs.enable_compatibility_mode(disable_warnings=True, center_writing_weights=False, center_unembed=False)
    cache = cached(theirs, tokens)

    def parts(stack):
        return cache.logit_attrs(stack, token, against, pos_slice=-1)[..., 0]

    added, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
    logits = dict(zip(labels, parts(added), strict=True))
    heads = parts(cache.stack_head_results(pos_slice=-1)).view(ckpt.params.n_layers, ckpt.params.n_heads)
    feed_forward = torch.stack([logits[f"{n}_mlp_out"] for n in range(ckpt.params.n_layers)])
    return {"embeddings": logits["embed"], "heads": heads, "feed_forward": feed_forward}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("against", [None, AGAINST])
def test_attribution_is_theirs(kind, against, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    ours, theirs = (how(ckpt, TOKENS, TOKEN, against) for how in (circuits.attribution, their_attribution))
    assert ours.keys() == theirs.keys()
    for part in ours:
        torch.testing.assert_close(ours[part], theirs[part], **CLOSE)


@pytest.mark.slow
def test_attribution_in_the_real_model_is_theirs(smollm2, sentences):
    tokens, _, token, against = sentences
    ours, theirs = (how(smollm2, tokens, token, against) for how in (circuits.attribution, their_attribution))
    for part in ours:
        torch.testing.assert_close(ours[part], theirs[part], **FAR)


def their_patching(theirs, tokens, other, token, against, **places):
    """Theirs, before each layer and after each, [n_layers, seq] both, or at `places` alone."""
    clean = theirs.run_with_cache(torch.tensor([other]))[1]
    places = places or {"index_axis_names": ("layer", "pos")}
    for where in ("resid_pre", "resid_post"):
        yield patching.generic_activation_patch(
            theirs,
            torch.tensor([tokens]),
            clean,
            lambda logits: logits[0, -1, token] - logits[0, -1, against],
            patching.layer_pos_patch_setter,
            where,
            **places,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_patching_is_theirs(kind, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    ours = circuits.patching(ckpt, TOKENS, OTHER, TOKEN, AGAINST)
    before, after = their_patching(bridge(ckpt), TOKENS, OTHER, TOKEN, AGAINST)
    torch.testing.assert_close(ours[:-1], before, **CLOSE)
    torch.testing.assert_close(ours[1:], after, **CLOSE)


@pytest.mark.slow
def test_patching_the_real_model_is_theirs(smollm2, theirs, sentences):
    tokens, other, token, against = sentences
    ours = circuits.patching(smollm2, tokens, other, token, against)
    different = next(i for i, (a, b) in enumerate(zip(tokens, other, strict=True)) if a != b)
    last = smollm2.params.n_layers - 1
    places = [(layer, position) for layer in (0, last * 4 // 5, last) for position in (different, len(tokens) - 1)]
    table = pd.DataFrame(places, columns=["layer", "pos"])
    before = next(their_patching(theirs, tokens, other, token, against, index_df=table))
    layers, positions = zip(*places, strict=True)
    torch.testing.assert_close(ours[list(layers), list(positions)], before, **FAR)
    assert before.max() > 1 > -1 > before.min()  # from one answer to the other


@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_lens_is_theirs(kind, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    theirs = logit_lens(bridge(ckpt), torch.tensor([TOKENS]), positions=None).readout.values[:, 0]
    torch.testing.assert_close(lenses.logit_lens(ckpt, TOKENS), theirs, **CLOSE)


def fitted(theirs, contexts, layers, skip=1):
    """Their lens, from 16 rows of the Jacobian at once, set to average as ours does."""
    settings = {"skip_first_positions": skip, "dim_batch": 16, "show_progress": False}
    return JacobianLens.fit(theirs, contexts, corpus="ours", source_layers=layers, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [1, 3])
def test_the_jacobian_that_is_never_held_is_theirs(kind, skip, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    contexts = [circuits.repeated(ckpt.params.vocab_size, length, seed=length) for length in (4, 6, 9)]
    layers = list(range(ckpt.params.n_layers - 1))
    lens = fitted(bridge(ckpt), contexts, layers, skip)
    for layer in layers:
        columns = lenses.push(ckpt, torch.eye(ckpt.params.dim), layer, contexts, skip)  # of each direction by itself
        torch.testing.assert_close(columns.T, lens.jacobians[layer], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_j_lens_reads_what_theirs_reads(kind, tiny_folder):
    ckpt = load_checkpoint(tiny_folder(kind))
    theirs, layers = bridge(ckpt), list(range(ckpt.params.n_layers))  # the last is read as it is
    lens = fitted(theirs, [OTHER, TOKENS[::-1]], layers[:-1])
    read = lens.readout(theirs, torch.tensor([TOKENS]), return_full_logits=True).lens_logits
    ours = lenses.jacobian_lens(ckpt, TOKENS, layers, [OTHER, TOKENS[::-1]])
    torch.testing.assert_close(ours, torch.stack([read[layer] for layer in layers]), **CLOSE)


@pytest.mark.slow
def test_the_j_lens_of_the_real_model_is_theirs(smollm2, theirs):
    """Two layers before the end, where a fit of all rows of the Jacobian takes seconds."""
    tokens, context = (
        smollm2.tokenizer.encode(text) for text in ("The animal that spins webs has", "She painted the door green.")
    )
    layer = smollm2.params.n_layers - 3
    read = fitted(theirs, [context], [layer]).readout(
        theirs, torch.tensor([tokens]), layers=[layer], return_full_logits=True
    )
    ours = lenses.jacobian_lens(smollm2, tokens, [layer], [context])[0]
    torch.testing.assert_close(ours, read.lens_logits[layer], **FAR)
