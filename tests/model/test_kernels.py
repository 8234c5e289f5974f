"""The ways in which a product is done: each pretended here, since the processor at hand has only one."""

import importlib.util

import pytest
import torch
from torch import nn

from llama3_scratch import kernels


@pytest.fixture
def ways(monkeypatch):
    """Which way `linear` takes: a list that gets "plain" for each of torch's own products."""
    taken, plain = [], torch.nn.functional.linear
    monkeypatch.setattr(kernels.F, "linear", lambda *args: taken.append("plain") or plain(*args))
    return taken


class Quantised(torch.Tensor):
    """Brings a product of its own, as torchao's tensors do."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def weight(dtype=torch.bfloat16):
    return torch.rand(40, 96, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(
    ("amx", "weight", "rows", "plain"),
    [
        (True, weight(), 1, False),
        (True, weight(), 2, False),
        (True, weight(), 64, False),
        (True, weight(), 65, True),
        (True, nn.Parameter(weight(), requires_grad=False), 3, False),
        (True, weight(torch.float32), 3, True),
        (True, weight(torch.float16), 3, True),
        (True, weight().as_subclass(Quantised), 3, True),
        (True, weight().to("meta"), 3, True),
        (False, weight(), 1, True),
        (False, weight(), 3, True),
    ],
    ids=["one", "two", "64", "65", "parameter", "float32", "float16", "quantised", "elsewhere", "no AMX", "no AMX, 3"],
)
def test_the_weight_stands_on_the_left_where_that_is_faster(monkeypatch, ways, amx, weight, rows, plain):
    monkeypatch.setattr(kernels, "_AMX", amx)
    x = torch.rand(rows, 96, generator=torch.Generator().manual_seed(1)).to(weight.device, weight.dtype)
    ours = kernels.linear(x, weight)
    assert (ways == ["plain"]) == plain and len(ways) <= 1
    assert ours.shape == (rows, 40)
    if weight.device.type == "cpu":
        torch.testing.assert_close(ours.float(), x.float() @ weight.float().T, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shape", [(1,), (4,), (1, 1), (2, 1), (2, 3), (2, 3, 4)], ids=str)
def test_the_other_way_keeps_every_leading_dimension(monkeypatch, ways, shape):
    monkeypatch.setattr(kernels, "_AMX", True)
    x = torch.rand(*shape, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours = kernels.linear(x, weight())
    assert ours.shape == (*shape, 40) and not ways
    torch.testing.assert_close(ours.float(), x.float() @ weight().float().T, rtol=0.02, atol=0.02)


def loaded_anew():
    """The module as a machine would have it on which torch says what it says now."""
    specification = importlib.util.find_spec(kernels.__name__)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("capabilities", "told_to_do_without", "amx"),
    [
        ({"amx_bf16": True}, False, True),
        ({"amx_bf16": True}, True, False),
        ({"amx_bf16": False, "avx2": True}, False, False),
        ({"avx2": True}, False, False),
        (None, False, False),  # a torch that cannot be asked
    ],
    ids=["AMX", "AMX switched off", "no AMX", "unknown", "an older torch"],
)
def test_whether_the_processor_has_amx(monkeypatch, capabilities, told_to_do_without, amx):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    if told_to_do_without:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    else:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert bool(loaded_anew()._AMX) == amx
