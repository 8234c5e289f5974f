"""A folder in Meta's layout becomes params, weights and tokenizer. Nothing is copied: the weights stay on disk."""

import mmap
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .params import CheckpointError, ModelArgs
from .tokenizer import Tokenizer

DEFAULT_NAME = "smollm2-135m"
ENVIRONMENT_VARIABLE = "LLAMA3_CHECKPOINT"
WEIGHTS_NAME, PARAMS_NAME, TOKENIZER_NAME = "consolidated.00.pth", "params.json", "tokenizer.model"

# Up to this size a file is mapped copy-on-write: tensors can be changed in place, and the file stays as it is.
# A larger one is mapped read-only, since systems reserve memory for every page that could be copied.
COPY_ON_WRITE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Checkpoint:
    """A model, opened: its sizes, its weights under Meta's names, its tokenizer, and the folder they came from."""

    params: ModelArgs
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    path: Path

    def __repr__(self):
        # The folder's name, not its path: a repr ends up in notebooks, and those are shared.
        dtype = str(self.weights["tok_embeddings.weight"].dtype).removeprefix("torch.")
        return f"Checkpoint({self.path.name!r}, {len(self.weights)} tensors, {dtype})"


def load_checkpoint(
    path_or_name: str | Path | None = None, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Open a checkpoint: a folder holding consolidated.00.pth, params.json and tokenizer.model, or a known name.

    Without an argument, the environment variable LLAMA3_CHECKPOINT says which (a folder or a name), else
    "smollm2-135m", fetched on first use. The weights are memory-mapped: opening reads names and shapes only, and the
    system reads pages as they are used. `dtype` (another than the stored one) and `device` (another than "cpu") make
    copies. Files over 4 GiB are mapped read-only: clone a tensor before changing it in place.

    Raises CheckpointError, naming the file, the key and what to do, if anything does not fit.
    """
    folder = find(path_or_name)
    if not any((folder / name).exists() for name in (PARAMS_NAME, WEIGHTS_NAME)):
        raise CheckpointError(f"{folder / PARAMS_NAME}: not found. {_where_to_look(folder)}")
    params = ModelArgs.from_json(folder / PARAMS_NAME)
    weights = read_weights(folder / WEIGHTS_NAME, params)
    tokenizer = Tokenizer(folder / TOKENIZER_NAME)
    if tokenizer.vocab_size > params.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER_NAME}: {tokenizer.vocab_size} tokens, but the model has vocab_size "
            f"{params.vocab_size}; this tokenizer belongs to another model"
        )
    stored = weights["tok_embeddings.weight"].dtype
    others = [f"{key} is {t.dtype}" for key, t in weights.items() if t.dtype != stored and key != "rope.freqs"]
    if dtype is None and others:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME}: {others[0]}, and tok_embeddings.weight is {stored}; say dtype=... for one"
        )
    if torch.device(device).type != "cpu" or others or dtype not in (None, stored):
        copies: dict[int, Tensor] = {}  # by address, so that two names for one tensor stay so
        for tensor in tqdm(weights.values(), desc="copying weights", delay=2, leave=False):
            if tensor.data_ptr() not in copies:
                copies[tensor.data_ptr()] = tensor.to(device=device, dtype=dtype)
        weights = {key: copies[tensor.data_ptr()] for key, tensor in weights.items()}
    return Checkpoint(params, weights, tokenizer, folder)


def find(path_or_name: str | Path | None = None) -> Path:
    """The folder of a checkpoint. A known name is fetched or made if it is not there yet."""
    from . import fetch, tiny  # here, because both build on this module's file names

    name = str(path_or_name or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_NAME)
    if name in tiny.TINY:
        return tiny.make_tiny(name)
    if name in fetch.CHECKPOINTS:
        return fetch.fetch(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    known = ", ".join([*fetch.CHECKPOINTS, *tiny.TINY])
    raise CheckpointError(f"{folder}: no such folder, and no checkpoint of that name; known names: {known}")


def read_weights(path: Path, params: ModelArgs) -> dict[str, Tensor]:
    """Map the tensors of a .pth file into memory, after checking every name, shape and type against params.

    A .pth file is an uncompressed zip: one pickle with the names and shapes, then each tensor's bytes. `torch.load`
    reads the pickle alone (`map_location="meta"`), as data: `weights_only=True` refuses pickles that would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: not found. {_where_to_look(path.parent)}")
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        if not stored:
            raise CheckpointError(f"{path}: compressed entries; save it again with torch.save")
        described = torch.load(path, map_location="meta", weights_only=True)
    except CheckpointError:
        raise
    except Exception as e:  # zip and pickle fail in many ways, all meaning the same to the reader
        raise CheckpointError(
            f"{path}: not a readable file of weights; the download may be incomplete, try again"
        ) from e
    if not isinstance(described, dict) or not all(isinstance(t, Tensor) for t in described.values()):
        raise CheckpointError(f"{path}: expected a dict of tensors, as in Meta's files")
    _check(path, described, params)
    file = _map_file(path)
    return {key: _tensor_at(file, meta, path, key) for key, meta in described.items()}


def _check(path: Path, described: Mapping[str, Tensor], params: ModelArgs):
    if params.n_layers > len(described):
        raise CheckpointError(
            f"{path}: {len(described)} tensors cannot be n_layers {params.n_layers}, as params.json says"
        )
    shapes = params.weight_shapes()
    for key, shape in shapes.items():
        if key not in described:
            if key == "output.weight":  # tied to the token embeddings
                continue
            raise CheckpointError(f"{path}: {key} is missing; params.json and weights may be of different models")
        if tuple(described[key].shape) != shape:
            raise CheckpointError(f"{path}: {key} is {list(described[key].shape)}, params.json makes it {list(shape)}")
        t = described[key]
        if not t.is_floating_point() or t.element_size() < 2 or t.layout != torch.strided:
            raise CheckpointError(f"{path}: {key} is {t.dtype}, {t.layout}; expected bfloat16, float16 or float32")
    extra = [key for key in described if key not in shapes and key != "rope.freqs"]  # Llama 1 stored its frequencies
    if extra:
        raise CheckpointError(f"{path}: unknown tensors {', '.join(map(str, extra[:3]))}, ... ({len(extra)} in all)")


def _map_file(path: Path) -> mmap.mmap:
    with open(path, "rb") as f:
        if path.stat().st_size <= COPY_ON_WRITE_BYTES:
            try:
                return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError:  # a memory limit that counts the whole file
                pass
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def _tensor_at(file: mmap.mmap, meta: Tensor, path: Path, key: str) -> Tensor:
    storage = meta.untyped_storage()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(
                file, dtype=meta.dtype, offset=storage._checkpoint_offset, count=storage.nbytes() // meta.element_size()
            )
        return flat.as_strided(meta.shape, meta.stride(), meta.storage_offset())
    except (ValueError, RuntimeError) as e:
        raise CheckpointError(f"{path}: {key} lies outside the file; the download may be incomplete, try again") from e


def _where_to_look(folder: Path) -> str:
    if (folder / "original" / WEIGHTS_NAME).is_file():
        return f"Point at {folder / 'original'}, where Meta's files are"
    if any(folder.glob("*.safetensors")):
        return "This folder is in Hugging Face's layout; Meta's own files are in the folder named original"
    return f"The folder must hold {WEIGHTS_NAME}, {PARAMS_NAME} and {TOKENIZER_NAME}"
