"""What training takes in memory, by arithmetic."""

import math

import torch

from ..params import ModelArgs

_WIDE = torch.float32.itemsize


def memory(
    params: ModelArgs,
    tokens: int,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    trained: int | None = None,
) -> dict[str, int]:
    """Bytes of training a model with AdamW on batches of so many tokens, by name: the weights, their gradients, Adam's
    two averages, the copy of 16-bit weights in float32 in which small steps add up, and the activations of a batch.

    `trained` says how many numbers learn, if not all do; the activations are still those of training all. The two
    averages and the copy are in float32, as is usual; torch's AdamW by itself makes the averages in the type of the
    weights, and no copy.
    """
    shapes = {key: shape for key, shape in params.weight_shapes().items() if not (tied and key == "output.weight")}
    numbers = sum(math.prod(shape) for shape in shapes.values())
    learning = numbers if trained is None else trained
    return {
        "weights": numbers * dtype.itemsize,
        "gradients": learning * dtype.itemsize,
        "Adam's averages": 2 * learning * _WIDE,
        "float32 copy": learning * _WIDE if dtype.itemsize < _WIDE else 0,
        "activations": tokens * activations(params, dtype),
    }


def activations(params: ModelArgs, dtype: torch.dtype = torch.float32) -> int:
    """Bytes for each token of a batch that this package's model keeps for the way back, while all of it learns.

    Of attention it keeps no square of scores: torch's kernel works them out again (Dao et al. 2022, arXiv:2205.14135).
    Not counted: the mask and the rotations, which all texts of a batch share.
    """
    dim, size = params.dim, dtype.itemsize
    q_dim, kv_dim = params.n_heads * params.head_dim, params.n_kv_heads * params.head_dim
    norm = dim * _WIDE + _WIDE + 2 * dim * size  # its input and 1 / root mean square in float32; normed; scaled
    attention = (2 * q_dim + 2 * kv_dim) * size + params.n_heads * _WIDE  # q, k, v, result; a number a softmax
    feed_forward = 4 * params.hidden_dim * size  # w1's result, silu of it, w3's result, their product
    ends = norm + params.vocab_size * _WIDE + 2 * torch.int64.itemsize  # log-probabilities; the ids, and the targets
    return params.n_layers * (2 * norm + attention + feed_forward) + ends
