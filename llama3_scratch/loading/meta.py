"""Meta's layout: params.json, and weights in one .pth file or in shards, one for each GPU that trained it."""

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from ..messages import CheckpointError, short_name
from ..params import ModelArgs
from .files import SHARD_NAME, SHARD_PATTERN, list_folder, read_json, where_to_look
from .mapped import LazyWeights, check_weights, in_one_type, is_tied
from .pth import read_pth

# The article's ModelArgs has these two, and its readers' files may. Nothing depends on them here.
_WITHOUT_EFFECT = {"max_batch_size", "max_seq_len"}


def read_params(path: Path) -> ModelArgs:
    """Read params.json. Unknown keys are ignored, with a warning that names them."""
    values = read_json(path)
    known = {f.name for f in fields(ModelArgs)}
    unknown = sorted(set(values) - known - _WITHOUT_EFFECT)
    if unknown:
        warnings.warn(f"{path.name}: ignoring unknown keys {short_name(', '.join(unknown))}", stacklevel=2)
    missing = [f for f in ("dim", "n_layers", "n_heads", "vocab_size") if f not in values]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} missing")
    try:
        return ModelArgs(**{key: value for key, value in values.items() if key in known})
    except ValueError as e:
        raise CheckpointError(f"{path}: {e}") from e


def read_weights(
    folder: Path, params: ModelArgs, dtype: torch.dtype | None = None
) -> tuple[Mapping[str, Tensor], bool]:
    """Map the tensors of Meta's .pth files into memory, after checking every name, shape and type against params.
    Also returns whether they are mapped read-only.

    The larger models come in shards, one for each of the GPUs that they were trained on: consolidated.00.pth has the
    first rows (or columns, see `shard_dim`) of every matrix, consolidated.01.pth the next ones, and so on. Tensors of
    several types become one: `dtype`, or the widest.
    """
    paths = shard_paths(folder)
    stored, read_only = zip(*(read_shard(path, params, len(paths)) for path in paths), strict=True)
    tensors = {(i, key): tensor for i, shard in enumerate(stored) for key, tensor in shard.items()}
    tensors = in_one_type(paths[0], tensors, dtype)
    shards = [{key: tensors[i, key] for key in shard} for i, shard in enumerate(stored)]
    if len(shards) == 1:
        return shards[0], read_only[0]
    seen: dict[tuple[float, ...], str] = {}
    for path, shard in zip(paths, shards, strict=True):
        if shard.keys() != shards[0].keys():
            raise CheckpointError(f"{path}: not the same weights as in {paths[0].name}; is it of another model?")
        first_row = tuple(shard["layers.0.attention.wq.weight"][0].tolist())
        if first_row in seen and any(first_row):
            raise CheckpointError(f"{path}: the same numbers as in {seen[first_row]}; download it again")
        seen[first_row] = path.name

    def join(key: str, parts: Sequence[Tensor]) -> Tensor:
        dim = shard_dim(key)
        return parts[0] if dim is None else torch.cat(list(parts), dim)

    # One that is only another name for the embeddings is left out: joined, it would become a second matrix.
    tied = [key for key in shards[0] if key == "output.weight" and is_tied(shards[0])]
    parts = {key: [shard[key] for shard in shards] for key in shards[0] if key not in tied}
    return LazyWeights(parts, join), any(read_only)


def shard_dim(key: str) -> int | None:
    """The dimension along which a weight is cut into shards; None if every shard holds all of it.

    Matrices are cut by output, wo and w2 by input, so that what one shard computes is all that it needs next
    (Megatron-LM, arXiv:1909.08053, section 3). Every shard has all the norms. Those of the 70B model differ a little
    from shard to shard; as in Meta's own conversion, the first counts.
    """
    if "norm" in key:
        return None
    return 1 if key.endswith(("wo.weight", "w2.weight")) else 0


def shard_shape(key: str, shape: tuple[int, ...], shards: int) -> tuple[int, ...]:
    """The shape of one shard's part of a weight."""
    dim = shard_dim(key)
    if dim is None or shards == 1:
        return shape
    if shape[dim] % shards:
        raise CheckpointError(f"{key} {list(shape)} does not divide into {shards} shards; some may be of another model")
    return tuple(n // shards if i == dim else n for i, n in enumerate(shape))


def shards_in(folder: Path) -> list[str]:
    """The names of the files of the weights, one or more, that are in a folder."""
    return fnmatch.filter(list_folder(folder), SHARD_PATTERN)


def shard_paths(folder: Path) -> list[Path]:
    """The files of the weights, in order. Raises CheckpointError where one is missing."""
    found = shards_in(folder)
    expected = [SHARD_NAME.format(i) for i in range(len(found) or 1)]
    for name in expected:
        if name not in found:
            raise CheckpointError(f"{folder / name}: not found. {where_to_look(folder, len(found))}")
    return [folder / name for name in expected]


def read_shard(path: Path, params: ModelArgs, shards: int) -> tuple[dict[str, Tensor], bool]:
    """One of so many files, checked by itself: its tensors, and whether they are mapped read-only."""
    weights, read_only = read_pth(path)
    weights.pop("rope.freqs", None)  # Llama 1 stored its frequencies
    whole = params.weight_shapes()
    key = "tok_embeddings.weight"  # a part of it is in every shard
    if shards > 1 and key in weights and weights[key].shape == whole[key]:
        raise CheckpointError(f"{path}: all of a model, not one of {shards} shards; is it a copy? Keep one file of it")
    try:
        shapes = {key: shard_shape(key, shape, shards) for key, shape in whole.items()}
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from e
    check_weights(path, weights, shapes, may_lack=("output.weight",))
    return weights, read_only
