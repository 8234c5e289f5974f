"""The KV cache: keys and values of earlier tokens, kept, so that a new token is all that has to be computed."""

from typing import Any

import torch
from torch import Tensor

from .checks import check_cache_fits, check_cache_size
from .messages import expect
from .params import ModelArgs


class KVCache:
    """The keys and values of all positions so far, in every layer, so that each is computed once.

    keys, values: [n_layers, batch, n_kv_heads, max_seq_len, head_dim]; only KV heads are kept, which is what grouped
    heads are for; dtype and device are the model's. `length` positions are in use; set it back to take tokens back:
    what lies behind it is written anew before anybody looks. `nbytes` is the size of both.
    """

    def __init__(
        self, params: ModelArgs, batch_size: int, max_seq_len: int, dtype: Any = torch.float32, device: Any = "cpu"
    ) -> None:
        expect(params, ModelArgs, "params must be ModelArgs, those of the model")
        shape = (params.n_layers, batch_size, params.n_kv_heads, max_seq_len, params.head_dim)
        check_cache_size(shape, dtype, device)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.nbytes = self.keys.nbytes + self.values.nbytes
        self.length = 0
        self._is_token: Tensor | None = None  # [batch, max_seq_len], once there is padding

    def layer(self, i: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of layer i up to position `end`, [batch, n_kv_heads, end, head_dim]: views, to be filled."""
        return self.keys[i, :, :, :end], self.values[i, :, :, :end]

    def update_mask(self, params: ModelArgs, h: Tensor, is_token: Tensor | None) -> Tensor | None:
        """Which positions are no padding, [batch, length + seq], given those of h, [batch, seq, dim], for which there
        must be room: `is_token`, [batch, seq]. None: all are.
        """
        check_cache_fits(self.keys, self.length, params, h)
        if self._is_token is None and is_token is None:
            return None
        if self._is_token is None:
            self._is_token = torch.ones(self.keys.shape[1], self.keys.shape[3], dtype=torch.bool, device=h.device)
        end = self.length + h.shape[1]
        self._is_token[:, self.length : end] = True if is_token is None else is_token
        return self._is_token[:, :end]
