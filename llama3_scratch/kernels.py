"""How a product with a weight is done fastest on this processor. The numbers are those of `x @ weight.T`, up to
rounding; whoever reads for the model can skip this file.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_ROWS = 64  # up to here, time goes into fetching the weight

# Intel's matrix unit, unless oneDNN, which does the products, is told to do without. Before torch 2.13 (2.9 is too
# old) nobody can be asked for it.
_capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
_AMX = _capabilities.get("amx_bf16", False) and "ONEDNN_MAX_CPU_ISA" not in os.environ


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T: [..., in] -> [..., out], for a weight of [out, in].

    With few rows of x, time goes into fetching the weight. Processors with AMX fetch bfloat16 weights 1.3 to 3 times
    faster when these stand on the left, weight @ x.
    """
    rows = x.numel() // x.shape[-1]
    kind = type(weight)  # quantised and distributed ones bring products of their own
    plain = kind is Tensor or (
        isinstance(weight, nn.Parameter) and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    )
    if not (_AMX and plain and weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and rows <= _FEW_ROWS):
        return F.linear(x, weight)
    if rows == 1:
        return (weight @ x.flatten()).view(*x.shape[:-1], -1)
    return (weight @ x.flatten(0, -2).T).T.view(*x.shape[:-1], -1)
