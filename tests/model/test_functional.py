"""The arithmetic against figures the article prints, and what it refuses."""

import math

import pytest
import torch
from helpers import naming

from llama3_scratch import Llama, functional, kernels, load_checkpoint

# The article's 64 frequencies for head_dim 128 and theta 500000, every digit of their float32.
PRINTED = """
1.0 0.8146172165870667 0.663601279258728 0.5405809879302979 0.44036662578582764 0.3587302267551422
0.2922278344631195 0.2380538135766983 0.193922758102417 0.1579728126525879 0.12868738174438477 0.10483095049858093
0.08539710193872452 0.06956595182418823 0.05666961893439293 0.046164050698280334 0.03760603070259094
0.030634520575404167 0.02495540864765644 0.020329104736447334 0.016560440883040428 0.013490419834852219
0.010989529080688953 0.008952259086072445 0.00729266507551074 0.005940730683505535 0.00483942124992609
0.003942275885492563 0.0032114461064338684 0.0026160990819334984 0.002131119603291154 0.0017360467463731766
0.001414213445968926 0.001152042648755014 0.0009384738514199853 0.0007644969737157226 0.0006227724370546639
0.0005073211505077779 0.0004132725589442998 0.00033665893715806305 0.00027424818836152554 0.00022340727446135134
0.00018199143232777715 0.00014825335529167205 0.00012076974235242233 9.838111145654693e-05 8.014294871827587e-05
6.528582161990926e-05 5.3182957344688475e-05 4.332375465310179e-05 3.529227615217678e-05 2.8749695047736168e-05
2.3419997887685895e-05 1.907833393488545e-05 1.5541540051344782e-05 1.2660406355280429e-05 1.0313385246263351e-05
8.401460945606232e-06 6.843975370429689e-06 5.575220257014735e-06 4.541670477919979e-06 3.6997230381530244e-06
3.01385807688348e-06 2.4551407022954663e-06
"""
FREQS = torch.tensor([float(number) for number in PRINTED.split()])


def test_frequencies_are_the_articles_bit_for_bit():
    ours = functional.precompute_freqs_cis(head_dim=128, seq_len=17, theta=500000.0)
    assert ours.shape == (17, 64)
    assert ours.dtype == torch.complex64
    assert torch.equal(ours[1], torch.polar(torch.ones(64), FREQS))
    assert torch.equal(ours[16], torch.polar(torch.ones(64), 16 * FREQS))


def test_row_3_of_the_rotations_is_the_articles():
    ours = torch.view_as_real(functional.precompute_freqs_cis(128, 17))[3, :5]
    printed = [
        [-0.9899924993515015, 0.14112000167369843],
        [-0.7662955522537231, 0.6424882411956787],
        [-0.40776732563972473, 0.9130858778953552],
        [-0.050924599170684814, 0.9987025260925293],
        [0.24710983037948608, 0.9689874649047852],
    ]
    torch.testing.assert_close(ours, torch.tensor(printed), rtol=0, atol=1e-7)


def test_rotations_are_the_same_whatever_torchs_default_type_is():
    expected = functional.precompute_freqs_cis(128, 17)
    torch.set_default_dtype(torch.float64)
    try:
        ours = functional.precompute_freqs_cis(128, 17)
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours.dtype == torch.complex64 and torch.equal(ours, expected)


def test_the_mask_has_the_articles_counts():
    mask = functional.causal_mask(17)
    assert (mask == 0).sum() == 153
    assert (mask == -math.inf).sum() == 136
    assert mask[0].tolist() == [0.0] + [-math.inf] * 16


def test_the_mask_of_a_text_that_is_continued_is_the_end_of_the_whole_mask():
    assert torch.equal(functional.causal_mask(5, start_pos=12), functional.causal_mask(17)[12:])


def test_rotations_at_given_positions_are_those_rows_of_the_table():
    positions = torch.tensor([[0, 3, 3], [16, 1, 2]])
    table = functional.precompute_freqs_cis(128, 17)
    torch.testing.assert_close(functional.precompute_freqs_cis(128, positions), table[positions], rtol=0, atol=0)


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (5, 96), (2, 3, 96), (1, 1, 96), (64, 96), (5, 13, 96)], ids=str)
def test_a_linear_layer_is_x_times_the_transposed_weight(monkeypatch, amx, dtype, shape):
    monkeypatch.setattr(kernels, "_AMX", amx)  # weights on the left; any CPU can compute that
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(shape, generator=generator).to(dtype), torch.rand(40, 96, generator=generator).to(dtype)
    ours = functional.linear(x, weight)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), x.double() @ weight.double().T, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("shape", [(1,), (7,), (64,), (65,), (2, 1), (3, 5), (3, 40)], ids=str)
def test_weights_on_the_left_give_the_same_logits(tiny_folder, monkeypatch, shape):
    ckpt = load_checkpoint(tiny_folder("tiny-bfloat16"))
    model = Llama.from_checkpoint(ckpt)
    tokens = torch.randint(ckpt.params.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for forward in (model, lambda t: functional.forward(t, ckpt.weights, ckpt.params)):
            logits = []
            for amx in (True, False):
                monkeypatch.setattr(kernels, "_AMX", amx)
                logits.append(forward(tokens))
            assert logits[0].shape == (*shape, ckpt.params.vocab_size)
            assert (logits[0] - logits[1]).norm() < 0.03 * logits[1].norm()  # bfloat16 keeps three digits


def test_rms_norm_of_a_hand_computed_vector():
    # Mean square (9 + 16) / 2 = 12.5; with eps 3.5 the root is exactly 4.
    ours = functional.rms_norm(torch.tensor([3.0, -4.0]), torch.tensor([2.0, 10.0]), eps=3.5)
    assert ours.tolist() == [1.5, -10.0]


def test_rms_norm_of_float64_keeps_its_digits():
    ours = functional.rms_norm(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.ones(2).double(), eps=0.5)
    assert ours.tolist() == pytest.approx([1 / math.sqrt(3), 2 / math.sqrt(3)], rel=1e-15)


def test_rms_norm_of_small_float16_numbers_does_not_underflow():
    x = torch.tensor([1e-4, -1e-4], dtype=torch.float16)  # their squares are below what float16 can hold
    assert functional.rms_norm(x, torch.ones(2, dtype=torch.float16), 1e-12).tolist() == pytest.approx(
        [1, -1], abs=0.01
    )


def test_rotation_turns_neighbours_by_the_angle():
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 4)  # [seq, heads, head_dim]: pairs (1, 0) and (0, 2)
    quarter, half = torch.polar(torch.ones(2), torch.tensor([math.pi / 2, math.pi]))
    turned = functional.apply_rotary_emb(x, torch.stack([quarter, half])[None])
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 1.0, 0.0, -2.0]), rtol=0, atol=1e-6)


def test_logits_do_not_depend_on_later_tokens(tiny_folder):
    ckpt = load_checkpoint(tiny_folder("tiny-ratio3"))
    whole, start = (functional.forward(t, ckpt.weights, ckpt.params) for t in ([5, 9, 200, 31], [5, 9]))
    torch.testing.assert_close(whole[:2], start, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ([], ValueError, "tokens one"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, "tokens one"),
        ([0, 277], ValueError, "ids 276 277"),
        ([-1], ValueError, "ids 276 -1"),
        ([1.0], TypeError, "ids integers torch.float32"),
        ([True], TypeError, "ids integers torch.bool"),
    ],
    ids=["none", "none in a batch", "too large", "negative", "float", "bool"],
)
def test_tokens_that_cannot_be_are_refused(tiny_folder, tokens, error, words):
    ckpt = load_checkpoint(tiny_folder("tiny-ratio3"))
    with pytest.raises(error, match=naming(words)):
        functional.forward(tokens, ckpt.weights, ckpt.params)


# A cache, and texts without a batch


@pytest.mark.parametrize("cached", [False, True])
def test_attention_takes_a_text_without_a_batch(cached):
    generator = torch.Generator().manual_seed(0)
    x, wq, wo = torch.rand(5, 24, generator=generator), *torch.rand(2, 24, 24, generator=generator)
    wk, wv = torch.rand(2, 8, 24, generator=generator)
    cis, mask = functional.precompute_freqs_cis(4, 5), functional.causal_mask(5)
    caches = [tuple(torch.zeros(*batch, 2, 5, 4) for _ in range(2)) if cached else None for batch in ((), (1,))]
    alone = functional.attention(x, wq, wk, wv, wo, cis, mask, 4, caches[0])
    batched = functional.attention(x[None], wq, wk, wv, wo, cis, mask, 4, caches[1])
    torch.testing.assert_close(alone, batched[0])
    if cached:
        torch.testing.assert_close(caches[0][0], caches[1][0][0])


@pytest.mark.parametrize("shape", [(2, 5, 4), (1, 2, 5, 4)], ids=str)
def test_nothing_is_copied_out_of_a_cache_where_no_gradient_flows(shape):
    cached, new = torch.zeros(shape), torch.ones(*shape[:-2], 2, 4)
    with torch.no_grad():
        assert functional.update(cached, new.clone().requires_grad_()).data_ptr() == cached.data_ptr()
    assert functional.update(cached, new).data_ptr() == cached.data_ptr()
    grown = functional.update(cached, new.clone().requires_grad_())
    assert grown.data_ptr() != cached.data_ptr() and grown.requires_grad
    torch.testing.assert_close(grown.detach(), cached)
    assert cached[..., -2:, :].sum() == cached.sum() == new.numel()
