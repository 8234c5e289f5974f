"""Modules are modules: they can be replaced, hooked, adapted, rewound, trained and started from nothing."""

import contextlib
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llama3_scratch import KVCache, Llama, ModelArgs, functional, generate, load_checkpoint

PARAMS = ModelArgs(64, n_layers=3, n_heads=4, vocab_size=256, n_kv_heads=2, multiple_of=32)


@pytest.fixture
def model(tiny_folder):
    return Llama.from_checkpoint(load_checkpoint(tiny_folder("tiny-ratio4")))


# The four steps of attention


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)], ids=str)
@pytest.mark.parametrize("start_pos", [0, 5])
def test_attention_in_four_steps_is_torchs_fused_call(heads, start_pos):
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(2, heads[0], 7, 16, generator=generator) * 4 - 2
    k, v = torch.rand(2, 2, heads[1], 7 + start_pos, 16, generator=generator) * 4 - 2
    for mask in (functional.causal_mask(7, start_pos=start_pos), None):
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        torch.testing.assert_close(functional.scaled_dot_product_attention(q, k, v, mask), fused)


def test_attention_in_four_steps_computes_the_softmax_in_float32():
    q = torch.tensor([[[[40.0, 1.0]]]], dtype=torch.bfloat16)
    k = torch.tensor([[[[4.0, 0.0], [4.0, 0.0], [4.0, 1.0]]]], dtype=torch.bfloat16)
    v = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]]], dtype=torch.bfloat16)
    ours = functional.scaled_dot_product_attention(q, k, v)
    scores = (q.float() @ k.float().mT / math.sqrt(2)).bfloat16().float()  # rounded where the product is stored
    torch.testing.assert_close(ours, (scores.softmax(-1).bfloat16() @ v), rtol=0.01, atol=0)


# What one does with modules


@pytest.mark.parametrize("name", ["wq", "wk", "wv", "wo", "w1", "w2", "w3"])
def test_every_matrix_can_be_replaced_by_a_module_with_a_forward_of_its_own(model, name):
    half = "attention" if name in ("wq", "wk", "wv", "wo") else "feed_forward"
    expected, tokens = model([1, 2, 3]), [1, 2, 3]

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    part = getattr(model.layers[1], half)
    setattr(part, name, Doubled(getattr(part, name)))
    replaced = model(tokens)
    setattr(part, name, getattr(part, name).inner)
    matrix = getattr(part, name).weight
    with torch.no_grad():
        matrix.mul_(2)
    torch.testing.assert_close(replaced, model(tokens))
    assert not torch.allclose(replaced, expected, atol=1e-3)


def test_a_replaced_output_and_embedding_are_used(model):
    output, embeddings = model.output, model.tok_embeddings
    model.output = nn.Sequential(output, nn.Hardtanh(-0.5, 0.5))
    assert model([1, 2]).abs().max() == 0.5
    model.output = output
    model.tok_embeddings = nn.Embedding.from_pretrained(embeddings.weight.flip(0))
    top = len(embeddings.weight) - 1
    flipped = model([top - 1, top - 2])
    model.tok_embeddings = embeddings
    torch.testing.assert_close(flipped, model([1, 2]))


def test_forward_hooks_fire_on_every_module_once_a_call(model):
    fired = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.append(name))
    model([1, 2, 3])
    assert sorted(fired) == sorted(name for name, m in model.named_modules() if not isinstance(m, nn.ModuleList))


def test_a_hook_changes_what_flows_on(model):
    without = model([1, 2, 3])
    hook = model.layers[0].attention.wv.register_forward_hook(lambda *_: torch.zeros(1, 3, 32))
    changed = model([1, 2, 3])
    hook.remove()
    assert not torch.allclose(changed, without, atol=1e-3)
    torch.testing.assert_close(model([1, 2, 3]), without)


def test_pefts_lora_adapts_learns_and_merges(model):
    peft = pytest.importorskip("peft")
    tokens = torch.tensor([[5, 6, 7, 8]])
    before = model(tokens).detach()
    config = peft.LoraConfig(r=4, target_modules=["wq", "wv", "w2"], lora_alpha=8)
    adapted = peft.get_peft_model(model, config)
    torch.testing.assert_close(adapted(tokens), before)  # B starts at zero
    learning = [p for p in adapted.parameters() if p.requires_grad]
    assert len(learning) == 2 * 3 * len(model.layers)
    optimizer = torch.optim.SGD(learning, lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(adapted(tokens)[0, :-1], tokens[0, 1:]).backward()
        assert all(p.grad is not None for p in learning)
        optimizer.step()
    after = adapted(tokens).detach()
    assert not torch.allclose(after, before, atol=1e-3)
    assert list(generate(adapted, tokens[0], 4)) != [] and adapted.params is model.params
    torch.testing.assert_close(adapted.merge_and_unload()(tokens), after, rtol=1e-4, atol=1e-4)


def test_torchs_plans_for_several_processes_work(tiny_folder):
    program = Path(__file__).parents[1] / "programs" / "parallel_plan.py"
    command = [sys.executable, program, tiny_folder("tiny-ratio4")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [int(rows) for rows, _ in lines] == [64, 64]  # half of wq each
    assert max(float(difference) for _, difference in lines) < 1e-5


# Gradients through a cache


@pytest.mark.parametrize("layers", [1, 3])
def test_the_gradients_of_a_cached_call_are_those_of_an_uncached_one(layers):
    torch.manual_seed(0)
    model = Llama(ModelArgs(64, n_layers=layers, n_heads=4, vocab_size=256, n_kv_heads=2, multiple_of=32))
    tokens, gradients = torch.tensor([[5, 6, 7, 8]]), []
    for cache in (None, KVCache(model.params, 1, 8)):
        model.zero_grad()
        F.cross_entropy(model(tokens, cache)[0, :-1], tokens[0, 1:]).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_what_was_cached_before_gets_no_gradient_and_the_new_tokens_do():
    torch.manual_seed(0)
    model = Llama(PARAMS)
    cache = KVCache(PARAMS, 1, 8)
    with torch.no_grad():
        model([[5, 6]], cache)
    model([[7, 8]], cache).sum().backward()
    model([[9]], cache).sum().backward()  # and again: the second call does not reach into the first one's graph
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model([5, 6, 7, 8, 9]), model_in_pieces(model, [[5, 6], [7, 8], [9]]))


def model_in_pieces(model, pieces):
    cache = KVCache(model.params, 1, 16)
    return torch.cat([model([piece], cache)[0] for piece in pieces])


# A cache that is set back


def test_a_cache_set_back_forgets_the_padding_of_what_was_taken_back(model):
    """faults.md, F1: the mask of earlier padding stayed where other tokens had come to stand."""
    cache = KVCache(model.params, 1, 4)
    model([[0, 1]], cache, torch.tensor([[0, 1]]))
    cache.length = 0
    torch.testing.assert_close(model([[1, 2]], cache), model([[1, 2]]))


def test_a_cache_set_back_into_the_middle_keeps_the_padding_that_is_left(model):
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    tokens = torch.tensor([[0, 5, 6], [7, 8, 9]])
    cache = KVCache(model.params, 2, 8)
    model(tokens, cache, mask)
    cache.length = 2
    written = model(torch.tensor([[3], [4]]), cache)[:, -1]
    for row, prompt in enumerate(([5, 3], [7, 8, 4])):
        torch.testing.assert_close(written[row], model(prompt)[-1], rtol=1e-4, atol=1e-4)


def test_an_interrupted_call_with_padding_leaves_no_trace_in_the_cache(model):
    cache = KVCache(model.params, 1, 4)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model([[0, 1]], cache, torch.tensor([[0, 1]]))
    hook.remove()
    assert cache.length == 0
    torch.testing.assert_close(model([[1, 2, 3]], cache), model([[1, 2, 3]]))


@pytest.mark.parametrize("length", [-1, 5, 1.5, None])
def test_a_length_that_a_cache_cannot_have_is_refused(model, length):
    cache = KVCache(model.params, 1, 4)
    cache.length = length
    with pytest.raises((ValueError, TypeError)):
        model([[1]], cache)


# From nothing


@pytest.mark.parametrize("tied", [False, True])
def test_an_untrained_model_expects_everything_equally(tied):
    """faults.md, F15: tied models started at a loss of 61.8, where ln(vocab) is 5.5."""
    torch.manual_seed(0)
    model = Llama(PARAMS, tied=tied)
    tokens = torch.randint(PARAMS.vocab_size, (8, 32), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(PARAMS.vocab_size)) < 0.05
    assert (model.output.weight is model.tok_embeddings.weight) == tied
    count = sum(math.prod(shape) for shape in PARAMS.weight_shapes().values())
    assert sum(p.numel() for p in model.parameters()) == count - tied * PARAMS.vocab_size * PARAMS.dim


def test_the_first_weights_have_the_deviations_of_llama_and_follow_the_seed():
    torch.manual_seed(0)
    model = Llama(PARAMS)
    torch.manual_seed(0)
    again = Llama(PARAMS)
    for (name, weight), same in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same)
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            scale = math.sqrt(2 * PARAMS.n_layers) if name.endswith(("wo.weight", "w2.weight")) else 1
            assert weight.std().item() * scale == pytest.approx(0.02, rel=0.05), name


def test_the_first_weights_are_the_same_on_every_kind_of_cpu():
    """Torch's kernels of older processors, pretended by ATEN_CPU_CAPABILITY, give the same bits."""
    program = (
        "import torch, zlib; from llama3_scratch import Llama, ModelArgs; torch.manual_seed(0); "
        "m = Llama(ModelArgs(64, n_layers=2, n_heads=4, vocab_size=256)); "
        "print(zlib.crc32(b''.join(p.detach().numpy().tobytes() for p in m.parameters())))"
    )
    with contextlib.redirect_stdout(io.StringIO()) as here:  # with avx2, as conftest.py says
        exec(program, {})
    sums = {here.getvalue()} | {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"ATEN_CPU_CAPABILITY": kind},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for kind in ("default", "avx512")
    }
    assert len(sums) == 1


def test_a_model_from_nothing_can_be_trained_on_anything():
    torch.manual_seed(0)
    model, tokens = Llama(PARAMS, tied=True), torch.tensor([[5, 6, 7, 8, 9, 10]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert list(generate(model, [5], 5)) == [6, 7, 8, 9, 10]
