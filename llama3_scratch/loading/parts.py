"""A part of a checkpoint, for one of several processes: only the files that it needs are opened, and what can stay in
them stays there.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..messages import CheckpointError
from ..params import ModelArgs
from . import huggingface, meta
from .checkpoint import layout
from .files import SHARD_NAME
from .gguf_file import Blocks
from .mapped import in_one_type
from .pth import read_pth

Cut = tuple[str, int | None, list[tuple[int, int]]]  # name in the files, dimension (None: all of it), from and to
Piece = Tensor | Blocks

_HEAD = 16  # numbers of each tensor that tell one model from another


@dataclass
class Part:
    """What a process takes: its weights, by the names in its own model; whether one of their files is mapped read-only;
    and marks of the files they are from, by name, which must be the same wherever they are opened.
    """

    weights: dict[str, Tensor]
    read_only: bool
    marks: dict[str, str] = field(default_factory=dict)


def shard_names(path: Path) -> list[str]:
    """The files of Meta's layout that are on this machine; with several machines, others may be on others."""
    return sorted(meta.shards_in(path)) if path.is_dir() and layout(path) == "meta" else []


def count_shards(path: Path, params: ModelArgs) -> int:
    """How many files of Meta's layout there must be, by the shape of what is in the first of this machine; 0 if none
    is here, or it does not tell.
    """
    names = shard_names(path)
    if not names:
        return 0
    found = read_pth(path / names[0])[0].get("tok_embeddings.weight", torch.empty(0))
    return params.vocab_size // len(found) if len(found) and params.vocab_size % len(found) == 0 else 0


def read_part(
    path: Path, params: ModelArgs, cuts: Mapping[str, Cut], shards: int, dtype: torch.dtype | None = None
) -> Part:
    """The weights of a part. params: those of the whole model; cuts: what is taken, as `parallel.split.cuts` says it;
    shards: how many files of Meta's layout there are, on all machines together.

    Raises CheckpointError, naming the file, for one that is missing or does not fit.
    """
    kind = layout(path)
    read_only, marks = False, {}
    join: Any = None
    pieces: Any  # name -> what lies side by side, one or more of `Piece`
    if kind == "meta":
        opened = {}
        for i in _needed(params, cuts, shards):
            file = path / SHARD_NAME.format(i)
            if not os.path.lexists(file):
                raise CheckpointError(f"{file}: not found, and this process needs it; download it")
            tensors, is_read_only = meta.read_shard(file, params, shards)
            opened[i] = in_one_type(file, tensors, dtype)
            read_only = read_only or is_read_only
            marks[file.name] = _mark(opened[i])
        first = next(iter(opened.values()))
        pieces = {key: [opened[i][key] if i in opened else None for i in range(shards)] for key in first}
    elif kind == "huggingface":
        weights, read_only = huggingface.read_weights(path, params, dtype)
        pieces, join = weights.parts, weights.join
        marks = {path.name: _mark({key: parts[0] for key, parts in weights.parts.items()})}
    else:
        from .gguf import read_model

        blocks = read_model(path)[1].blocks
        pieces = {key: [block] for key, block in blocks.items()}
        marks = {path.name: _mark({key: block.data for key, block in blocks.items()})}
    taken = {}
    for key, (stored, dim, stretches) in cuts.items():
        if stored not in pieces and stored == "output.weight":
            stored = "tok_embeddings.weight"
        weight = _take(pieces[stored], dim, stretches, params.weight_shapes()[stored])
        taken[key] = join(stored, [weight]) if join else weight
    return Part(taken, read_only, marks)


def _needed(params: ModelArgs, cuts: Mapping[str, Cut], shards: int) -> list[int]:
    """The numbers of the shards that these stretches lie in."""
    if shards == 1:
        return [0]
    shapes = params.weight_shapes()
    needed = set()
    for stored, dim, stretches in cuts.values():
        along = meta.shard_dim(stored)
        if along is None:
            continue
        each = shapes[stored][along] // shards
        if dim != along:  # cut in the other direction, or not at all
            stretches = [(0, shapes[stored][along])]
        for first, end in stretches:
            needed |= set(range(first // each, (end - 1) // each + 1))
    return sorted(needed)


def _take(pieces: Sequence[Piece], dim: int | None, stretches: list[tuple[int, int]], shape: tuple[int, ...]) -> Tensor:
    """Stretches of a weight of this shape, which lies in pieces side by side: a window, where one piece has it all."""
    if dim is None:
        piece = next(piece for piece in pieces if piece is not None)
        return piece if isinstance(piece, Tensor) else piece.numbers()
    each = shape[dim] // len(pieces)
    found = []
    for first, end in stretches:
        for i in range(first // each, (end - 1) // each + 1):
            found.append(_window(pieces[i], dim, max(first, i * each) - i * each, min(end, (i + 1) * each) - i * each))
    return found[0] if len(found) == 1 else torch.cat(found, dim)


def _window(piece: Piece, dim: int, first: int, end: int) -> Tensor:
    if isinstance(piece, Tensor):
        return piece.narrow(dim, first, end - first)
    if dim == 0:
        return piece.rows(slice(first, end)).numbers()
    # Columns of what is stored by rows: some rows at a time, so that the whole never has to be unpacked.
    rows = (piece.rows(slice(i, i + 256)).numbers()[:, first:end].clone() for i in range(0, piece.shape[0], 256))
    return torch.cat(list(rows))


def _mark(tensors: Mapping[str, Tensor]) -> str:
    """A few letters that differ between models: from names, shapes, types, and the first numbers of every tensor."""
    mark = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        mark.update(f"{key} {list(tensor.shape)} {tensor.dtype}".encode())
        mark.update(tensor[(0,) * (tensor.ndim - 1)][:_HEAD].contiguous().view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()[:16]
