"""A folder becomes params, weights and tokenizer. Nothing is copied: the weights stay on disk."""

import fnmatch
import itertools
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from . import huggingface
from .files import CheckpointError, list_folder
from .messages import reason, short, short_name
from .params import ModelArgs
from .pth import read_pth
from .tokenizer import Tokenizer
from .weights import LazyWeights, check_weights

DEFAULT_NAME = "smollm2-135m"
ENVIRONMENT_VARIABLE = "LLAMA3_CHECKPOINT"
WEIGHTS_NAME, PARAMS_NAME, TOKENIZER_NAME = "consolidated.00.pth", "params.json", "tokenizer.model"


@dataclass(frozen=True)
class Checkpoint:
    """A model, opened: its sizes, its weights under Meta's names, its tokenizer, and the folder they came from.

    `tokenizer` is None where a Hugging Face folder has none. `read_only`: the weights lie in a file so large that they
    cannot be changed in place.
    """

    params: ModelArgs
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer | None
    path: Path
    read_only: bool = False

    def __repr__(self):
        # The folder's name, not its path: a repr ends up in notebooks, and those are shared.
        dtype = str(self.weights["norm.weight"].dtype).removeprefix("torch.")
        return f"Checkpoint({self.path.name!r}, {len(self.weights)} tensors, {dtype})"


def load_checkpoint(
    path_or_name: str | Path | None = None, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Open a checkpoint: a folder, or a known name.

    A folder holds Meta's files (consolidated.00.pth, and 01, 02, ... of the larger models; params.json;
    tokenizer.model) or Hugging Face's (config.json, *.safetensors, tokenizer.json). Without an argument, the
    environment variable LLAMA3_CHECKPOINT says which (a folder or a name), else "smollm2-135m", fetched on first use.

    The weights are memory-mapped: opening reads names and shapes only, and the system reads pages as they are used.
    What is stored in parts or in another order is put together each time it is asked for. `dtype` (another than the
    stored one) and `device` (another than "cpu") make copies. Files over 4 GiB are mapped read-only: clone a tensor
    before changing it in place.

    Nothing in the files is ever run, and nothing in the folder changes. Raises CheckpointError, naming the file, the
    key and what to do, if anything does not fit; weights that are NaN or infinite among it, in files of up to 256 MiB.
    (In larger ones, where looking takes long, `functional.forward` and `generate` name them once they show.) Raises
    ValueError for a dtype or device that cannot be used.
    """
    check_dtype_and_device(dtype, device)
    folder = find(path_or_name)
    names = list_folder(folder)
    if names & {PARAMS_NAME, WEIGHTS_NAME}:
        params = ModelArgs.from_json(folder / PARAMS_NAME)
        weights, read_only = read_weights(folder, params)
        tokenizer = Tokenizer(folder / TOKENIZER_NAME)
    elif huggingface.CONFIG_NAME in names:
        params = huggingface.read_params(folder)
        weights, read_only = huggingface.read_weights(folder, params)
        tokenizer = _huggingface_tokenizer(folder, names)
    else:
        raise CheckpointError(f"{folder / PARAMS_NAME}: not found. {_where_to_look(folder)}")
    if tokenizer and tokenizer.vocab_size > params.vocab_size:
        raise CheckpointError(
            f"{tokenizer.path}: {tokenizer.vocab_size} tokens, but the model has vocab_size "
            f"{params.vocab_size}; this tokenizer belongs to another model"
        )
    if tokenizer and tokenizer.vocab_size < params.vocab_size and tokenizer.path.name == TOKENIZER_NAME:
        rows = f"{tokenizer.vocab_size} tokens, and the model has {params.vocab_size} rows"
        warnings.warn(f"{TOKENIZER_NAME}: {rows}; if the file was cut off, download it again", stacklevel=2)
    stored = _dtypes(weights)
    if dtype is None and len(stored) > 1:
        (a, key_a), (b, key_b) = list(stored.items())[:2]
        raise CheckpointError(f"{folder}: {key_b} is {b}, and {key_a} is {a}; say dtype=... for one")
    elsewhere = device is not None and torch.device(device).type != "cpu"
    if elsewhere or (dtype is not None and set(stored) != {dtype}):
        weights, read_only = _copies(weights, dtype, device), False
    return Checkpoint(params, weights, tokenizer, folder, read_only)


def check_dtype_and_device(dtype: torch.dtype | None, device: torch.device | str | None):
    """Raise ValueError for a type that weights cannot have, or a device that this machine does not have."""
    if dtype not in (None, torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.bfloat16, float16, float32 or float64, not {short(dtype)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as e:
        raise ValueError(f"device {short(device)} cannot be used on this machine; take 'cpu'") from e


def find(path_or_name: str | Path | None = None) -> Path:
    """The folder of a checkpoint. A known name is fetched or made if it is not there yet."""
    from . import fetch, tiny  # here, because both build on this module's file names

    if path_or_name in (None, ""):
        path_or_name = os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_NAME
    if not isinstance(path_or_name, str | os.PathLike):
        raise TypeError(f"a checkpoint is a folder or a name, not {short(path_or_name)}")
    name = os.fspath(path_or_name)
    try:
        if name in tiny.TINY:
            return tiny.make_tiny(name)
        if name in fetch.CHECKPOINTS:
            return fetch.fetch(name)
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
        if folder.exists():
            raise CheckpointError(f"{folder}: not a folder; point at the one it is in, {folder.parent}")
    except (OSError, RuntimeError) as e:  # RuntimeError: ~somebody without a home
        where = short_name(str(getattr(e, "filename", None) or name), 400)
        raise CheckpointError(f"{where}: cannot be opened or written ({reason(e)})") from e
    known = ", ".join([*fetch.CHECKPOINTS, *tiny.TINY])
    raise CheckpointError(
        f"{short_name(name, 400)}: no such folder, and no checkpoint of that name; known names: {known}"
    )


def read_weights(folder: Path, params: ModelArgs) -> tuple[Mapping[str, Tensor], bool]:
    """Map the tensors of Meta's .pth files into memory, after checking every name, shape and type against params.
    Also returns whether they are mapped read-only.

    The larger models come in shards, one for each of the GPUs that they were trained on: consolidated.00.pth has the
    first rows (or columns, see `shard_dim`) of every matrix, consolidated.01.pth the next ones, and so on.
    """
    paths = _shard_paths(folder)
    shards, read_only = zip(*(_read_shard(path, params, len(paths)) for path in paths), strict=True)
    if len(shards) == 1:
        return shards[0], read_only[0]
    seen = {}
    for path, shard in zip(paths, shards, strict=True):
        if shard.keys() != shards[0].keys():
            raise CheckpointError(f"{path}: not the same weights as in {paths[0].name}; is it of another model?")
        first_row = tuple(shard["layers.0.attention.wq.weight"][0].tolist())
        if first_row in seen and any(first_row):
            raise CheckpointError(f"{path}: the same numbers as in {seen[first_row]}; download it again")
        seen[first_row] = path.name

    def join(key: str, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if shard_dim(key) is None else torch.cat(list(parts), shard_dim(key))

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


def is_tied(weights: Mapping[str, Tensor]) -> bool:
    """Whether one matrix serves as token embeddings and as output: the second is absent, or another name for it."""
    if "output.weight" not in weights:
        return True
    ends = weights["tok_embeddings.weight"], weights["output.weight"]  # both held, or one could take the other's place
    return ends[0].data_ptr() == ends[1].data_ptr()


def _shard_paths(folder: Path) -> list[Path]:
    found = fnmatch.filter(list_folder(folder), "consolidated.*.pth")
    expected = [f"consolidated.{i:02d}.pth" for i in range(len(found) or 1)]
    for name in expected:
        if name not in found:
            raise CheckpointError(f"{folder / name}: not found. {_where_to_look(folder, len(found))}")
    return [folder / name for name in expected]


def _read_shard(path: Path, params: ModelArgs, shards: int) -> tuple[dict[str, Tensor], bool]:
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


def _huggingface_tokenizer(folder: Path, names: Collection[str]) -> Tokenizer | None:
    for name in (huggingface.TOKENIZER_NAME, TOKENIZER_NAME, f"original/{TOKENIZER_NAME}"):
        if name in names or os.path.isfile(folder / name):  # in names: also a link that leads nowhere, to be reported
            return Tokenizer(folder / name)
    warnings.warn(f"{folder.name}: no {huggingface.TOKENIZER_NAME}, so no tokenizer: ids only", stacklevel=3)
    return None


def _dtypes(weights: Mapping[str, Tensor]) -> dict[torch.dtype, str]:
    """Every type that is stored, with a key that has it."""
    parts = weights.parts if isinstance(weights, LazyWeights) else {key: [t] for key, t in weights.items()}
    return {t.dtype: key for key, tensors in reversed(parts.items()) for t in tensors}


def _copies(weights: Mapping[str, Tensor], dtype: torch.dtype | None, device: torch.device | str) -> dict[str, Tensor]:
    tied = is_tied(weights)
    copies = {}
    for key in tqdm(weights, desc="copying weights", delay=2, leave=False):
        if not (key == "output.weight" and tied):
            copies[key] = weights[key].to(device=device, dtype=dtype)
    return copies


def _where_to_look(folder: Path, shards: int = 0) -> str:
    if shards:
        return f"{shards} shards are here, and their numbers must have no gap: download the missing one"
    below = itertools.islice(itertools.chain(folder.glob("[!.]*/"), folder.glob("snapshots/*/")), 1000)
    for inner in sorted(below):
        if any((inner / name).is_file() for name in (PARAMS_NAME, huggingface.CONFIG_NAME)):
            return f"Point at {inner}, where a model is"
    return (
        f"The folder must hold {WEIGHTS_NAME}, {PARAMS_NAME} and {TOKENIZER_NAME}, or Hugging Face's "
        f"{huggingface.CONFIG_NAME}, model.safetensors and {huggingface.TOKENIZER_NAME}"
    )
