"""Weights in 8 and 4 bits: torch's products beside plain ones, GGUF's blocks beside the library that reads them."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import nn

from llama3_scratch import functional, quantized
from llama3_scratch.quantized import (
    GROUP,
    KINDS,
    LAYOUTS,
    QuantizedAttention,
    QuantizedEmbedding,
    QuantizedFeedForward,
    QuantizedLinear,
    pack,
    quantize_int4,
    quantize_int8,
    unpack,
)

SHAPES = [(64, 32), (192, 576), (2112, 64), (40, 48), (7, 5), (1, 1), (130, 33)]  # [out, in]
EXACT = 2.0**-6  # a scale that every type has


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def linear(kind, out=128, width=96):
    if kind == "q8_0":
        width += -width % GROUP  # GGUF has whole blocks only
        return QuantizedLinear.from_q8_0(
            torch.randint(-128, 128, (out, width), dtype=torch.int8), torch.rand(out, width // GROUP).half() / 64
        )
    return QuantizedLinear.from_weight(torch.randn(out, width), int(kind[-1]))


def assert_is_product(y, x, weight):
    """As exact as bfloat16 is: each of the numbers that went in and came out is off by 1 / 256 at most."""
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    assert (y.double() - exact).abs().le(size / 128).all()
    assert (y.double() - exact).norm() <= 0.006 * exact.norm()


def test_eight_bits_are_off_by_half_a_step_at_most():
    weight = torch.randn(50, 70)
    weight[3] = 0
    values, scale = quantize_int8(weight)
    assert values.dtype == torch.int8 and values.shape == (50, 70) and scale.shape == (50,)
    assert (values * scale[:, None] - weight).abs().le(scale[:, None] * 0.5001).all()
    assert values.abs().amax(-1).tolist() == [0 if row == 3 else 127 for row in range(50)]


@pytest.mark.parametrize("group", [32, 64])
def test_four_bits_are_off_by_half_a_step_at_most(group):
    weight = torch.randn(50, 128) + 0.5
    weight[3] = 0.25
    nibbles, scale, minimum = quantize_int4(weight, group)
    assert nibbles.dtype == torch.uint8 and nibbles.max() == 15 and nibbles.min() == 0
    assert scale.shape == minimum.shape == (50, 128 // group)
    again = nibbles.unflatten(-1, (-1, group)) * scale[..., None] + minimum[..., None]
    assert (again.flatten(-2) - weight).abs().le(scale.repeat_interleave(group, 1) * 0.5001 + 1e-6).all()
    torch.testing.assert_close(minimum, weight.unflatten(-1, (-1, group)).amin(-1))


def test_rounded_scales_are_those_that_the_values_were_chosen_for():
    weight = torch.randn(40, 64)
    weight[0, 0] = 5
    values, scale = quantize_int8(weight, torch.bfloat16)
    assert (values * scale[:, None].float() - weight).abs().le(scale[:, None].float() * 0.76).all()
    nibbles, scale, minimum = quantize_int4(weight, dtype=torch.bfloat16)
    error = (nibbles.unflatten(-1, (-1, GROUP)) * scale[..., None] + minimum[..., None]).flatten(-2) - weight
    assert error.abs().le(scale.repeat_interleave(GROUP, 1) * 0.56).all()


def test_rows_that_groups_do_not_fill_are_refused():
    with pytest.raises(ValueError, match="48 numbers"):
        quantize_int4(torch.randn(4, 48))
    with pytest.raises(ValueError, match="8 or 4, not 3"):
        QuantizedLinear.from_weight(torch.randn(4, 32), 3)


def blocks(kind, out, width, exact):
    """Random bytes of a GGUF matrix, and what is in them."""
    groups = width // GROUP
    d = torch.full((out, groups), EXACT) if exact else torch.rand(out, groups) / 100
    d = d.half()
    if kind == "q8_0":
        values = torch.randint(-128, 128, (out, width), dtype=torch.int8)
        stored = values.view(out, groups, GROUP).view(torch.uint8)
        return [d.unsqueeze(-1).view(torch.uint8), stored], (values, d)
    m = (-torch.randint(0, 16, (out, groups)) * EXACT if exact else -torch.rand(out, groups)).half()
    nibbles = torch.randint(0, 16, (out, width), dtype=torch.uint8)
    low, high = nibbles.view(out, groups, 2, 16).unbind(-2)  # GGUF's order: number i with i + 16
    return [torch.stack((d, m), -1).view(torch.uint8), low | high << 4], (nibbles, d, m)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("kind", "type"), [("q4_1", GGMLQuantizationType.Q4_1), ("q8_0", GGMLQuantizationType.Q8_0)])
@pytest.mark.parametrize("out", [64, 50])
def test_blocks_are_what_ggufs_own_reader_makes_of_them(kind, type, out, exact):
    stored, parts = blocks(kind, out, 96, exact)
    theirs = torch.from_numpy(dequantize(torch.cat(stored, -1).reshape(out, -1).numpy(), type).astype(np.float32))
    ours = getattr(QuantizedLinear, f"from_{kind}")(*parts)
    if exact:
        assert torch.equal(ours.dequantize(), theirs)
    # bfloat16 has 8 bits of a scale.
    torch.testing.assert_close(ours.dequantize(), theirs, rtol=2**-8, atol=2**-8 * (1 if kind == "q4_1" else 0.01))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 60])
@pytest.mark.parametrize("kernels", [True, False], ids=["torch's", "plain"])
def test_a_product_is_that_with_the_matrix_unpacked(monkeypatch, kind, shape, rows, kernels):
    if not kernels:
        monkeypatch.setattr(quantized, "_HAS", dict.fromkeys(KINDS, False))
    ours = linear(kind, *shape)
    x = torch.randn(rows, ours.in_features).bfloat16()
    assert ours.dequantize().shape == (ours.out_features, ours.in_features)
    assert_is_product(ours(x), x, ours.dequantize())


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_go_through_torchs_product_and_many_do_not(monkeypatch, kind):
    if not quantized._HAS[kind]:
        pytest.skip("torch has no such product on this processor")
    ours, few = linear(kind), quantized._FEW_ROWS[kind]
    monkeypatch.setattr(quantized.kernels, "linear", lambda x, weight: pytest.fail("unpacked"))
    ours(torch.randn(few, 96).bfloat16())
    with pytest.raises(pytest.fail.Exception, match="unpacked"):
        ours(torch.randn(few + 1, 96).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 3, 96), (2, 50, 96), (0, 96)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_shape_and_type_of_the_activations_are_kept(kind, shape, dtype):
    ours, x = linear(kind), torch.randn(shape).to(dtype)
    y = ours(x)
    assert y.shape == (*shape[:-1], 128) and y.dtype == dtype
    torch.testing.assert_close(y.float(), (x.bfloat16().float() @ ours.dequantize().T), rtol=0.02, atol=0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out", [64, 192])
def test_what_was_packed_is_unpacked(layout, out):
    nibbles = torch.randint(0, 16, (out, 96), dtype=torch.uint8)
    packed = pack(nibbles, layout)
    assert packed.shape == (out, 48) and packed.is_contiguous()
    assert torch.equal(unpack(packed, layout), nibbles)


@pytest.mark.parametrize("kind", ["int4", "q8_0"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_from_another_kind_of_processor_give_the_same(monkeypatch, kind, layout):
    x, ids = torch.randn(1, 96).bfloat16(), torch.tensor([0, 127, 65, 31, 32, 17])
    monkeypatch.setattr(quantized, "LAYOUT", layout)
    there = linear(kind)
    weight, state = there.dequantize(), copy.deepcopy(there.state_dict())
    monkeypatch.undo()
    here = QuantizedLinear(96, 128, kind)
    here.load_state_dict(state)
    assert here.layout == quantized.LAYOUT
    assert torch.equal(here.dequantize(), weight) and torch.equal(here.rows(ids, torch.float32), weight[ids])
    assert_is_product(here(x.repeat(50, 1)), x.repeat(50, 1), weight)
    assert_is_product(here(x), x, weight)


ELSEWHERE = """
import sys, torch
from llama3_scratch import quantized as q
assert all(q._HAS.values()) and q.LAYOUT == sys.argv[1], q.LAYOUT
torch.manual_seed(0)
nibbles = torch.randint(0, 16, (192, 96), dtype=torch.uint8)
assert torch.equal(torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int(), 2), q.pack(nibbles, q.LAYOUT))
weight = torch.randn(192, 96)
for linear in (q.QuantizedLinear.from_weight(weight, 8), q.QuantizedLinear.from_weight(weight, 4),
               q.QuantizedLinear.from_q8_0(torch.randint(-128, 128, (192, 96)).to(torch.int8), torch.rand(192, 3))):
    for rows in (1, 5, 60):
        x = torch.randn(rows, 96).bfloat16()
        exact = x.float() @ linear.dequantize().T
        assert (linear(x).float() - exact).norm() <= 0.004 * exact.norm(), (linear, rows)
print("the same")
"""


@pytest.mark.skipif(not all(quantized._HAS.values()), reason="torch has no such products on this processor")
@pytest.mark.parametrize(("capability", "layout"), [("avx2", "avx2"), ("default", "plain")])
def test_torchs_products_agree_on_other_processors(capability, layout):
    isa = {"avx2": "AVX2", "default": "SSE41"}[capability]
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": isa}
    run = subprocess.run([sys.executable, "-c", ELSEWHERE, layout], env=env, capture_output=True, text=True)
    assert run.stdout == "the same\n", run.stderr


@pytest.mark.skipif(not quantized._HAS["int4"], reason="torch has no such product on this processor")
@pytest.mark.parametrize("out", [64, 128, 576])
def test_bytes_lie_as_torch_packs_them(out):
    nibbles = torch.randint(0, 16, (out, 96), dtype=torch.uint8)
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int(), 2)
    assert torch.equal(pack(nibbles, quantized.LAYOUT), theirs)


@pytest.mark.parametrize("answer", ["missing", "another"])
def test_without_torchs_packing_nothing_is_taken_for_granted(monkeypatch, answer):
    def packing(nibbles, _):
        if answer == "missing":
            raise RuntimeError("no such thing here")
        return nibbles[:, :16].to(torch.uint8)

    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", packing)
    assert quantized._layout_here() == ("plain", False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(128, 96), (40, 48)], ids=str)
def test_all_state_is_in_the_state_dict(kind, shape):
    ours = linear(kind, *shape)
    x = torch.randn(2, ours.in_features).bfloat16()
    with torch.device("meta"):
        empty = QuantizedLinear(ours.in_features, ours.out_features, kind)
    state = ours.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    empty.load_state_dict(state, assign=True)
    name = "values" if kind == "int8" else "packed"
    assert getattr(empty, name).data_ptr() == getattr(ours, name).data_ptr()  # nothing was copied
    for other in (empty, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), ours(x)) and torch.equal(other.dequantize(), ours.dequantize())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.float, nn.Module.double], ids=lambda f: f.__name__)
def test_other_types_change_the_stream_and_not_the_weights(kind, cast):
    ours = linear(kind)
    weight, model = ours.dequantize(), nn.ModuleList([QuantizedEmbedding(ours), ours])
    dtype = cast(nn.Linear(1, 1)).weight.dtype
    cast(model)
    assert torch.equal(ours.dequantize(), weight) and ours.scales.dtype == torch.bfloat16
    assert model[0](torch.tensor([3])).dtype == dtype and ours(torch.ones(1, 96, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_went_in_and_weights_have_none(kind):
    ours = linear(kind)
    assert not list(ours.parameters())
    x = torch.randn(2, 96, requires_grad=True)
    ours(x).sum().backward()
    torch.testing.assert_close(x.grad, ours.dequantize().sum(0).expand(2, -1), rtol=0.02, atol=0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(128, 96), (40, 48)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_are_looked_up_in_the_matrix(kind, shape, dtype):
    ours = linear(kind, *shape)
    embedding = QuantizedEmbedding(ours, dtype)
    ids = torch.tensor([[0, 3, 39], [3, 31, 32]])
    assert torch.equal(embedding(ids), ours.dequantize()[ids].to(dtype))
    assert embedding.weight.dtype == dtype and embedding.weight.numel() == 0


def joined(parts):
    """One matrix that holds the rows of all."""
    one = QuantizedLinear(parts[0].in_features, sum(part.out_features for part in parts), parts[0].kind)
    for name, buffer in one.named_buffers():
        along = 1 if buffer.ndim == 3 else 0  # scales of groups are [groups, out, 2]
        buffer.copy_(torch.cat([part.get_buffer(name) for part in parts], along))
    return one


@pytest.mark.parametrize("kind", KINDS)
def test_joined_matrices_are_all_their_rows(kind):
    parts = [linear(kind, 64), linear(kind, 128), linear(kind, 64)]
    one = joined(parts)
    assert torch.equal(one.dequantize(), torch.cat([part.dequantize() for part in parts]))
    x = torch.randn(1, 96).bfloat16()
    torch.testing.assert_close(one(x), torch.cat([part(x) for part in parts], -1))
    for part, again in zip(parts, one.parts([64, 128, 64]), strict=True):
        assert torch.equal(again(x), part(x)) and torch.equal(again.dequantize(), part.dequantize())


@pytest.mark.parametrize("kind", KINDS)
def test_halves_of_a_layer_are_the_same_with_matrices_joined(kind):
    wq, wk, wv, wo = linear(kind, 256, 128), linear(kind, 64, 128), linear(kind, 64, 128), linear(kind, 128, 256)
    w1, w2, w3 = linear(kind, 192, 128), linear(kind, 128, 192), linear(kind, 192, 128)
    x, freqs_cis, mask = torch.randn(2, 3, 128), functional.precompute_freqs_cis(64, 3), functional.causal_mask(3)
    attention = QuantizedAttention(joined([wq, wk, wv]), wo, 64)
    plain = functional.attention(x, wq, wk, wv, wo, freqs_cis, mask, 64)
    torch.testing.assert_close(attention(x, freqs_cis, mask), plain)
    feed_forward = QuantizedFeedForward(joined([w1, w3]), w2)
    torch.testing.assert_close(feed_forward(x), functional.feed_forward(x, w1, w2, w3))
    parts = attention.parts() | feed_forward.parts()
    for name, part in {"wq": wq, "wk": wk, "wv": wv, "w1": w1, "w3": w3}.items():
        assert torch.equal(parts[name].dequantize(), part.dequantize())
