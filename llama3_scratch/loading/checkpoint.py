"""A folder becomes params, weights and tokenizer. Nothing is copied: the weights stay on disk."""

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checks import DTYPES, check_dtype_and_device, check_quantize
from ..messages import CheckpointError, progress, reason, short, short_name
from ..params import ModelArgs
from ..tokenizer import Tokenizer
from . import fetch, huggingface, meta, quantized, tiny
from .files import (
    CONFIG_NAME,
    GGUF_SUFFIX,
    PARAMS_NAME,
    TOKENIZER_JSON_NAME,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    list_folder,
    where_to_look,
)
from .mapped import LazyWeights, empty_model, is_tied, mapped_parameter
from .other_formats import other_format

M = TypeVar("M", bound=nn.Module)

DEFAULT_NAME = "smollm2-135m"
ENVIRONMENT_VARIABLE, DTYPE_VARIABLE = "LLAMA3_CHECKPOINT", "LLAMA3_DTYPE"


@dataclass(frozen=True)
class Checkpoint:
    """A model, opened: its sizes, its weights under Meta's names, its tokenizer, and the folder (or the .gguf file)
    they came from.

    `tokenizer` is None where a Hugging Face folder has none. `read_only`: the weights lie in a file so large that they
    cannot be changed in place.
    """

    params: ModelArgs
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer | None
    path: Path
    read_only: bool = False

    def __repr__(self) -> str:
        # The folder's name, not its path: a repr ends up in notebooks, and those are shared.
        dtype = str(self.weights["norm.weight"].dtype).removeprefix("torch.")
        return f"Checkpoint({self.path.name!r}, {len(self.weights)} tensors, {dtype})"


def load_checkpoint(
    path_or_name: str | Path | None = None, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Open a checkpoint: a folder, a .gguf file, or a known name.

    A folder holds Meta's files (consolidated.00.pth, and 01, 02, ... of the larger models; params.json;
    tokenizer.model) or Hugging Face's (config.json, *.safetensors, tokenizer.json). A GGUF file has all in it; its
    numbers become float32 each time that they are asked for. Without an argument, the environment variable
    LLAMA3_CHECKPOINT says which (a folder, a file or a name), else "smollm2-135m", fetched on first use.

    The weights are memory-mapped: opening reads names and shapes only, and the system reads pages as they are used.
    What is stored in parts or in another order is put together each time it is asked for. `dtype` (another than the
    stored one; without it the environment variable LLAMA3_DTYPE, such as "bfloat16") and `device` (another than "cpu")
    make copies. Weights of several types open in one, with a warning: `dtype`, what config.json says, or the widest.

    Files over 4 GiB are mapped read-only: clone a tensor before changing it in place, or the process ends. (Parameters
    of `Llama` take care of themselves.) Smaller ones are mapped so that they can be changed, which counts as data: set
    a limit on that (`ulimit -d`) before opening, and they are mapped read-only as well; set afterwards, it leaves
    nothing for computing.

    Nothing in the files is ever run, and nothing in the folder changes. Raises CheckpointError, naming the file, the
    key and what to do, if anything does not fit; weights that are NaN or infinite among it, in files of up to 256 MiB.
    (In larger ones, where looking takes long, `functional.forward` and `generate` name them once they show.) Raises
    ValueError for a dtype or device that cannot be used.
    """
    dtype = dtype_of_the_environment() if dtype is None else dtype
    check_dtype_and_device(dtype, device)
    checkpoint = open_as_stored(path_or_name, dtype)
    elsewhere = device is not None and torch.device(device).type != "cpu"
    if elsewhere or (dtype is not None and checkpoint.weights["norm.weight"].dtype != dtype):
        return replace(checkpoint, weights=_copies(checkpoint.weights, dtype, device), read_only=False)
    return checkpoint


def open_as_stored(path_or_name: str | Path | None = None, dtype: torch.dtype | None = None) -> Checkpoint:
    """The same, in the type of the file, whatever LLAMA3_DTYPE says; `dtype` decides where there are several types."""
    folder = find(path_or_name)
    kind = layout(folder)
    if kind == "gguf":
        from .gguf import read_model  # and with it a library that nothing else here needs

        params, weights = read_model(folder)
        return Checkpoint(params, weights, read_tokenizer(folder, params), folder)
    params = read_sizes(folder)
    stored = (meta if kind == "meta" else huggingface).read_weights(folder, params, dtype)
    return Checkpoint(params, stored[0], read_tokenizer(folder, params), folder, read_only=stored[1])


def layout(path: Path) -> str:
    """How a checkpoint is laid out: "meta", "huggingface", or "gguf" for a file. Raises CheckpointError for others."""
    if not path.is_dir():
        return "gguf"
    names = list_folder(path)
    if names & {PARAMS_NAME, WEIGHTS_NAME}:
        return "meta"
    if CONFIG_NAME in names:
        return "huggingface"
    if other := other_format(path, names):
        raise CheckpointError(f"{path / other[0]}: {other[1]}")
    raise CheckpointError(f"{path / PARAMS_NAME}: not found. {where_to_look(path)}")


def read_sizes(path: Path) -> ModelArgs:
    """The sizes of a checkpoint, of whose weights nothing is opened."""
    kind = layout(path)
    if kind == "gguf":
        from .gguf import read_model

        return read_model(path)[0]
    return meta.read_params(path / PARAMS_NAME) if kind == "meta" else huggingface.read_params(path)


def read_tokenizer(path: Path, params: ModelArgs) -> Tokenizer | None:
    """The tokenizer of a checkpoint, if it has one."""
    kind = layout(path)
    if kind == "huggingface":
        tokenizer = _huggingface_tokenizer(path, list_folder(path))
    else:
        tokenizer = Tokenizer(path / VOCABULARY_NAME if kind == "meta" else path)
    if tokenizer:
        _check_rows(tokenizer, params)
    return tokenizer


def load_model(
    kind: Callable[[ModelArgs], M],
    checkpoint: Any,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    quantize: str | None = None,
    keep: bool = False,
) -> M:
    """What `Llama.from_checkpoint` does."""
    check_dtype_and_device(dtype, device)
    check_quantize(quantize, keep, dtype, device)
    if quantize is not None:
        edited = isinstance(checkpoint, Checkpoint) and _is_edited(checkpoint)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = open_as_stored(checkpoint, dtype)
        parts = checkpoint.params, checkpoint.weights, checkpoint.path
        return quantized.load_quantized(kind, *parts, quantize, keep, dtype, edited)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint, dtype, "cpu" if device is None else device)
    model: Any = empty_model(kind, checkpoint.params)
    names = [key for key in model.state_dict() if key in checkpoint.weights]
    weights = {key: checkpoint.weights[key] for key in progress(names, "weights")}
    tied = is_tied(weights)
    if checkpoint.read_only:
        model.requires_grad_(False)
        weights = {key: mapped_parameter(tensor) for key, tensor in weights.items()}
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    model.load_state_dict(weights, assign=True)
    if tied:
        model.output.weight = model.tok_embeddings.weight
    model.to(dtype=dtype, device=device)
    if not any(getattr(parameter, "in_file", False) for parameter in model.parameters()):
        model.requires_grad_(True)  # copied, all of it
    loaded: M = model
    return loaded


def _is_edited(checkpoint: Checkpoint) -> bool:
    """Whether weights in memory are others than those in the files that they came from, but for their type."""
    ours = checkpoint.weights
    if hasattr(ours, "blocks"):  # of a GGUF file, which are made anew each time they are asked for
        return False
    try:
        theirs = open_as_stored(checkpoint.path).weights
    except CheckpointError:
        return True
    return set(ours) != set(theirs) or not all(_same(ours, theirs, key) for key in ours)


def _same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], key: str) -> bool:
    # Parts as they lie in the files, if they are in parts: putting them together takes memory.
    ones, others = (w.parts[key] if isinstance(w, LazyWeights) else [w[key]] for w in (ours, theirs))
    if len(ones) != len(others):
        ones, others = [ours[key]], [theirs[key]]
    return all(a.shape == b.shape and torch.equal(a, b.to(a)) for a, b in zip(ones, others, strict=True))


def find(path_or_name: str | Path | None = None) -> Path:
    """The folder of a checkpoint, or its .gguf file. A known name is fetched or made if it is not there yet."""
    if path_or_name in (None, ""):
        path_or_name = os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_NAME
    if not isinstance(path_or_name, str | os.PathLike):
        raise TypeError(f"a checkpoint is a folder, a .gguf file or a name, not {short(path_or_name)}")
    name = os.fspath(path_or_name)
    try:
        if name in tiny.TINY:
            return tiny.make_tiny(name)
        if name in fetch.CHECKPOINTS:
            return fetch.fetch(name)
        folder = Path(name).expanduser()
        if folder.is_dir() or (folder.suffix.lower() == GGUF_SUFFIX and folder.exists()):
            return folder
        if folder.exists() and (other := other_format(folder.parent, {folder.name})):
            raise CheckpointError(f"{folder}: {other[1]}")
        if folder.exists():
            raise CheckpointError(
                f"{folder}: neither a folder nor a .gguf file; point at the one it is in, {folder.parent}"
            )
    except (OSError, RuntimeError) as e:  # RuntimeError: ~somebody without a home
        where = short_name(str(getattr(e, "filename", None) or name), 400)
        raise CheckpointError(f"{where}: cannot be opened or written ({reason(e)})") from e
    known = ", ".join([*fetch.CHECKPOINTS, *tiny.TINY])
    raise CheckpointError(
        f"{short_name(name, 400)}: no such folder, and no checkpoint of that name; known names: {known}"
    )


def _huggingface_tokenizer(folder: Path, names: Collection[str]) -> Tokenizer | None:
    """The tokenizer of a folder in their layout, with these files in it; None, with a warning, if there is none."""
    for name in (TOKENIZER_JSON_NAME, VOCABULARY_NAME, f"original/{VOCABULARY_NAME}"):
        if name in names or os.path.isfile(folder / name):  # in names: also a link that leads nowhere, to be reported
            return Tokenizer(folder / name)
    warnings.warn(f"{folder.name}: no {TOKENIZER_JSON_NAME}, so no tokenizer: ids only", stacklevel=4)
    return None


def _check_rows(tokenizer: Tokenizer, params: ModelArgs) -> None:
    """Compare the size of the vocabulary with the rows of the embeddings."""
    count, rows, name = tokenizer.vocab_size, params.vocab_size, tokenizer.path.name
    beyond = [token for token, id in tokenizer.special_tokens.items() if id >= rows]
    if count > rows and (name == VOCABULARY_NAME or len(beyond) < count - rows):
        raise CheckpointError(
            f"{tokenizer.path}: {count} tokens, but the model has vocab_size {rows}; this tokenizer belongs to another "
            "model"
        )
    if count > rows:  # a [PAD], say, which nobody feeds to a model
        warnings.warn(f"{name}: {short_name(', '.join(beyond))} added, for which the model has no row", stacklevel=4)
    if count < rows and name == VOCABULARY_NAME:
        told = f"{count} tokens, and the model has {rows} rows"
        warnings.warn(f"{name}: {told}; if the file was cut off, download it again", stacklevel=4)


def dtype_of_the_environment() -> torch.dtype | None:
    """The type that LLAMA3_DTYPE asks for, if it does."""
    name = os.environ.get(DTYPE_VARIABLE)
    if name and name not in DTYPES:
        raise CheckpointError(f"{DTYPE_VARIABLE} is {short(name)}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[name] if name else None


def _copies(weights: Mapping[str, Tensor], dtype: torch.dtype | None, device: torch.device | str) -> dict[str, Tensor]:
    tied = is_tied(weights)
    copies = {}
    for key in progress(weights, "copying weights"):
        if not (key == "output.weight" and tied):
            copies[key] = weights[key].to(device=device, dtype=dtype)
    return copies
