"""Small random checkpoints in Meta's layout: awkward shapes, made on the spot, the same bytes on any machine."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..params import ModelArgs
from .byte_pairs import BYTES, SPECIAL_TOKENS, write_vocabulary
from .files import PARAMS_NAME, WEIGHTS_NAME, checkpoints_folder, finished_folder
from .pth import write_pth

# Pairs that are merged, in this order, so that texts become tokens of one, two and more bytes.
_MERGES = (
    " t",
    "he",
    " the",
    " a",
    "in",
    "er",
    "on",
    "re",
    " s",
    "st",
    "or",
    "es",
    " o",
    "qu",
    "ti",
    "en",
    "is",
    " is",
)


_SPECIALS = 256
_PLAIN = BYTES + _SPECIALS  # one token a byte, and Llama 3's special tokens
_MERGED = _PLAIN + len(_MERGES)
_OWN = BYTES + len(_MERGES) + len(SPECIAL_TOKENS)


@dataclass(frozen=True)
class Tiny:
    params: ModelArgs
    dtype: torch.dtype = torch.float32
    tied: bool = False  # no output.weight: the token embeddings serve at both ends


# Head ratios 1, 3, 4 and 8; head_dim 6, 16 and 128; hidden sizes that rounding really changes; an eps that shows.
TINY = {
    "tiny-ratio1": Tiny(
        ModelArgs(64, n_layers=2, n_heads=4, n_kv_heads=4, vocab_size=_PLAIN, multiple_of=48, norm_eps=1e-3)
    ),
    "tiny-ratio3": Tiny(
        ModelArgs(36, n_layers=3, n_heads=6, n_kv_heads=2, vocab_size=_OWN, multiple_of=20, rope_theta=1e4), tied=True
    ),
    "tiny-ratio4": Tiny(
        ModelArgs(
            128,
            n_layers=2,
            n_heads=8,
            n_kv_heads=2,
            vocab_size=_MERGED,
            multiple_of=64,
            ffn_dim_multiplier=1.3,
            norm_eps=0.01,
        )
    ),
    "tiny-ratio8": Tiny(
        ModelArgs(
            1024, n_layers=2, n_heads=8, n_kv_heads=1, vocab_size=_MERGED, multiple_of=96, ffn_dim_multiplier=0.25
        ),
        tied=True,
    ),
    "tiny-bfloat16": Tiny(
        ModelArgs(96, n_layers=2, n_heads=8, n_kv_heads=2, vocab_size=_MERGED, multiple_of=100), torch.bfloat16
    ),
    "tiny-scaled": Tiny(
        ModelArgs(64, n_layers=2, n_heads=4, n_kv_heads=1, vocab_size=_MERGED, multiple_of=32, use_scaled_rope=True),
        tied=True,
    ),
}


def make_tiny(name: str, folder: Path | None = None) -> Path:
    """Write the tiny checkpoint `name` (a key of TINY) unless it is there, and return its folder."""
    tiny = TINY[name]
    folder = folder or checkpoints_folder() / name
    with finished_folder(folder) as partial:
        if partial is not None:
            weights = random_weights(tiny.params, tiny.dtype, tiny.tied, seed=zlib.crc32(name.encode()))
            write_pth(partial / WEIGHTS_NAME, weights)
            (partial / PARAMS_NAME).write_text(tiny.params.to_json())
            vocab_size = tiny.params.vocab_size
            write_byte_tokenizer(
                partial, () if vocab_size == _PLAIN else _MERGES, SPECIAL_TOKENS if vocab_size == _OWN else ()
            )
    return folder


def random_weights(params: ModelArgs, dtype: torch.dtype, tied: bool, seed: int) -> dict[str, torch.Tensor]:
    """Random weights of the right shapes, sized so that every step of the model matters.

    Uniform numbers from numpy's generator: torch's normal ones differ between kinds of CPU.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    values: Any
    for key, shape in params.weight_shapes().items():
        if key == "output.weight" and tied:
            continue
        uniform = rng.random(shape, dtype=np.float32) * 2 - 1  # -1 to 1, a variance of 1/3
        if "norm" in key:
            values = 1 + uniform / 2
        elif key == "tok_embeddings.weight":
            values = uniform / 8  # small enough for norm_eps to show
        else:
            values = uniform * np.float32(math.sqrt(6 / shape[-1]))
        weights[key] = torch.from_numpy(values).to(dtype)
    return weights


def write_byte_tokenizer(folder: Path, merges: Sequence[str] = (), own_specials: Sequence[str] = ()) -> None:
    """Write a vocabulary of bytes and these merges: byte_pairs.write_vocabulary."""
    write_vocabulary(folder, [merge.encode() for merge in merges], own_specials)
