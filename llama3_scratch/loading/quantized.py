"""`Llama.from_checkpoint(..., quantize=...)`: a model in 8 or 4 bits, made one matrix at a time, kept beside its file.

What is kept is a safetensors file of the quantised modules' buffers, in a folder of its own, `quantized/`. It says what
it was made from, and is left alone once that is another: names, sizes and times of the weights' files, the sizes of the
model, and the first row of every matrix.
"""

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checks import check_finite
from ..messages import CheckpointError, progress, reason
from ..params import ModelArgs
from ..quantized import (
    KINDS,
    LAYOUTS,
    ROWS,
    QuantizedAttention,
    QuantizedEmbedding,
    QuantizedFeedForward,
    QuantizedLinear,
)
from . import huggingface, meta
from .fetch import source_file
from .files import KEPT_FOLDER, KEPT_NAME, PARAMS_NAME, WEIGHTS_NAME, list_folder, write_whole
from .mapped import LazyWeights, check_finite_if_small, check_names_and_shapes, empty_model, is_tied

M = TypeVar("M", bound=nn.Module)
State = dict[str, Tensor]  # of norms, under Meta's names, and of the quantised modules, under those of their buffers

_ENDS = ("tok_embeddings.weight", "output.weight")  # these have 8 bits, also where the layers have 4
_JOINED = {
    "attention.wqkv": ("attention.wq", "attention.wk", "attention.wv"),
    "feed_forward.w1w3": ("feed_forward.w1", "feed_forward.w3"),
}
_NUMBERS_AT_ONCE = 2**18  # of a matrix, unpacked
_MADE_BY = "llama3_scratch 1"  # another number, once anything changes in what is kept
# The types of what is kept, and their names in safetensors.
_TYPES = {torch.int8: "I8", torch.uint8: "U8", torch.bfloat16: "BF16", torch.float32: "F32"}


def load_quantized(
    kind: Callable[[ModelArgs], M],
    params: ModelArgs,
    weights: Mapping[str, Tensor],
    path: Path,
    how: str,
    keep: bool,
    dtype: torch.dtype | None = None,
    edited: bool = False,
) -> M:
    """A model of these weights, whose folder or file is `path`, in "int8" or "int4". Norms stay as they are stored, or
    are in `dtype`, and so are the states between the layers.

    What is kept beside it is mapped, if it was made from them; else they are quantised, one matrix at a time, and the
    result is kept if `keep` says so. Weights that were `edited` in memory are not those of any file. Raises
    CheckpointError, naming the key, for a weight that is NaN or infinite, ValueError for weights that are not on the
    CPU. A kept file that does not fit, or cannot be written, is a warning.
    """
    if (device := weights["norm.weight"].device).type != "cpu":
        raise ValueError(f"weights on {device} cannot be quantised; open the checkpoint on the cpu")
    stored = _as_stored(path, weights) if how == "int4" and path.is_dir() and not edited else None
    files, weights = stored or (_weight_files(path), weights)
    kept, origin = _kept_file(path, how), _origin(params, weights, files)
    linears: dict[str, QuantizedLinear] = {}
    norms: State = {}
    if edited and keep:
        keep = False
        warnings.warn(f"{kept}: not kept, since the weights in memory are not those of the files", stacklevel=4)
    if kept.is_file() and not edited:
        try:
            linears, norms = _read_kept(kept, origin, params, _norm_dtype(weights), tied=_is_tied(weights))
        except CheckpointError as e:
            why = str(e).removesuffix("; download it again")
            what = "it is replaced" if keep else "it is not used, and keep=True (--keep) replaces it"
            warnings.warn(f"{why}; {what}", stacklevel=4)
    if not norms:
        keys = [key for key in weights if "norm" not in key and not (key == "output.weight" and _is_tied(weights))]
        kinds = {key: _kind(weights, key, how) for key in keys}
        linears, norms = _quantised(path, params, weights, kinds)
        if keep:
            _keep(kept, origin, kinds, linears, norms)
    return _model(kind, params, linears, {key: norm.to(dtype or norm.dtype) for key, norm in norms.items()})


def _model(
    kind: Callable[[ModelArgs], M], params: ModelArgs, linears: Mapping[str, QuantizedLinear], norms: State
) -> M:
    """A model with these in the places of its matrices."""
    model: Any = empty_model(kind, params)
    model.load_state_dict(norms, strict=False, assign=True)
    for i, layer in enumerate(model.layers):
        if wqkv := linears.get(f"layers.{i}.attention.wqkv"):
            layer.attention = QuantizedAttention(wqkv, linears[f"layers.{i}.attention.wo"], params.head_dim)
        if w1w3 := linears.get(f"layers.{i}.feed_forward.w1w3"):
            layer.feed_forward = QuantizedFeedForward(w1w3, linears[f"layers.{i}.feed_forward.w2"])
    for name, linear in linears.items():
        around, _, last = name.rpartition(".")
        setattr(model.get_submodule(around), last, linear)
    model.tok_embeddings = QuantizedEmbedding(linears["tok_embeddings"], norms["norm.weight"].dtype)
    model.output = linears.get("output", linears["tok_embeddings"])
    quantised: M = model.requires_grad_(False)
    return quantised


# From weights to few bits


def _quantised(
    path: Path, params: ModelArgs, weights: Mapping[str, Tensor], kinds: Mapping[str, str]
) -> tuple[dict[str, QuantizedLinear], State]:
    """The modules that hold the matrices, by their names, and the norms. Never is more than one matrix unpacked."""
    shapes = params.weight_shapes()
    groups = _groups(kinds, shapes)
    # What stays is laid out first: later, it would come to lie between what is unpacked and given back, and hold it.
    linears = _modules(groups, kinds, shapes)
    places = {
        key: (linears[name], sum(shapes[k][0] for k in keys[:i]))
        for name, keys in groups.items()
        for i, key in enumerate(keys)
    }
    norms, norm_dtype = {}, _norm_dtype(weights)
    for key in progress([key for key in weights if key in kinds or "norm" in key], "quantizing", "tensor"):
        if key in kinds:
            _fill(*places[key], _blocks(weights).get(key) or weights[key], f"{path}: {key}")
        else:
            norms[key] = weights[key].to(norm_dtype, copy=True)
            check_finite({key: norms[key]}, f"{path}: ")
    return linears, norms


def _groups(kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """The matrices that each module holds, by its name and their keys: one, or those of `_JOINED`, which multiply the
    same numbers, where they are of one kind and fill whole blocks of rows.
    """
    groups = {key.removesuffix(".weight"): [key] for key in kinds}
    for name in list(groups):
        for joined, parts in _JOINED.items():
            layer = name.removesuffix(parts[0])
            keys = [f"{layer}{part}.weight" for part in parts]
            if name == layer or len({kinds[key] for key in keys}) > 1 or any(shapes[key][0] % ROWS for key in keys):
                continue
            for part in parts:
                del groups[layer + part]
            groups[layer + joined] = keys
    return groups


def _modules(
    groups: Mapping[str, list[str]], kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, QuantizedLinear]:
    return {
        name: QuantizedLinear(shapes[keys[0]][1], sum(shapes[key][0] for key in keys), kinds[keys[0]])
        for name, keys in groups.items()
    }


def _fill(linear: QuantizedLinear, first: int, weight: Any, where: str) -> None:
    """Quantise a matrix, of numbers or of a GGUF file's blocks, some rows at a time, into rows from `first` on."""
    # Bytes are packed 64 rows at a time, so all pieces but the last are of such.
    step = max(1, _NUMBERS_AT_ONCE // linear.in_features // ROWS) * ROWS
    for start in range(0, weight.shape[0], step):
        for name, buffer in _piece(weight, slice(start, start + step), linear.kind).named_buffers():
            if name == "scales":
                check_finite({where: buffer}, "")
            along = 1 if buffer.ndim == 3 else 0  # scales of groups are [groups, out, 2]
            linear.get_buffer(name).narrow(along, first + start, buffer.shape[along]).copy_(buffer)


def _kind(weights: Mapping[str, Tensor], key: str, how: str) -> str:
    """How a matrix is packed, of `quantized.KINDS`. Blocks of a GGUF file in four or eight bits stay what they are."""
    eight = how == "int8" or key in _ENDS
    if blocks := _blocks(weights).get(key):
        if blocks.has_8_bits:
            return "q8_0"
        if how == "int4" and blocks.has_4_bits:
            return "int4"
        eight = eight or 4.5 < blocks.bits < 9  # whoever made the file kept more of this matrix
    return "int8" if eight else "int4"


def _piece(weight: Any, rows: slice, kind: str) -> QuantizedLinear:
    """Some rows of a matrix, of numbers or of a GGUF file's blocks."""
    if isinstance(weight, Tensor):
        return QuantizedLinear.from_weight(weight[rows], 8 if kind == "int8" else 4)
    blocks = weight.rows(rows)
    if kind == "q8_0":
        return QuantizedLinear.from_q8_0(*blocks.q8())
    if kind == "int4" and weight.has_4_bits:
        return QuantizedLinear.from_q4_1(*blocks.q4())
    return QuantizedLinear.from_weight(blocks.numbers(), 8 if kind == "int8" else 4)


def _blocks(weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What is stored of each weight, where they come from a GGUF file."""
    blocks: Mapping[str, Any] = getattr(weights, "blocks", {})
    return blocks


def _norm_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """bfloat16, where that is how they are stored; else float32, which holds float16 and all but float64."""
    return torch.bfloat16 if weights["norm.weight"].dtype == torch.bfloat16 else torch.float32


def _is_tied(weights: Mapping[str, Tensor]) -> bool:
    """As `is_tied`, which would put parts together that are known to be two matrices."""
    return "output.weight" not in weights if isinstance(weights, LazyWeights) else is_tied(weights)


# What they are made from


def _as_stored(folder: Path, weights: Mapping[str, Tensor]) -> tuple[list[Path], Mapping[str, Tensor]] | None:
    """The blocks of the GGUF file that the weights in a folder were converted from, if they still are what it holds."""
    try:
        file = source_file(folder)
        if file is None:
            return None
        from .gguf import read_model  # and with it a library that nothing else here needs

        params, stored = read_model(file)
    except (CheckpointError, OSError) as e:
        what = "the 4 bits are found again from what was made of them, some not to the last digit"
        warnings.warn(f"{e}: {what}", stacklevel=5)
        return None
    if set(stored) != set(weights):
        return None
    for key in stored:
        ours, theirs = (_first_row(w, key, params) for w in (weights, stored))
        if not torch.equal(ours, theirs.to(ours.dtype)):
            return None  # trained, or replaced, since
    return [file], stored


def _first_row(weights: Mapping[str, Tensor], key: str, params: ModelArgs) -> Tensor:
    """The first row of a matrix, or all of a norm, without putting together what is stored in parts."""
    if blocks := _blocks(weights).get(key):
        return (blocks.rows(slice(1)) if len(blocks.shape) == 2 else blocks).numbers().flatten()  # type: ignore[no-any-return]
    parts = weights.parts[key] if isinstance(weights, LazyWeights) else [weights[key]]
    if parts[0].ndim == 1:
        return parts[0]
    first = parts[0][0]
    whole = len(first) == params.weight_shapes()[key][1]  # else it is cut by columns
    return first if whole else torch.cat([part[0] for part in parts])


def _weight_files(path: Path) -> list[Path]:
    """Where the weights lie; nowhere, for a checkpoint that somebody put together."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    try:
        is_meta = list_folder(path) & {PARAMS_NAME, WEIGHTS_NAME}
        return meta.shard_paths(path) if is_meta else huggingface.weight_files(path)
    except CheckpointError:
        return []


def _origin(params: ModelArgs, weights: Mapping[str, Tensor], files: list[Path]) -> str:
    """What tells these weights from others, as one SHA-256."""
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps([told, vars(params)], sort_keys=True).encode())
    for key in weights:
        digest.update(f"\n{key} ".encode())
        digest.update(_first_row(weights, key, params).float().numpy().tobytes())
    return digest.hexdigest()


# What is kept


def _kept_file(path: Path, how: str) -> Path:
    folder, name = (path, how) if path.is_dir() else (path.parent, f"{path.stem}.{how}")
    return folder / KEPT_FOLDER / KEPT_NAME.format(name)


def _keep(
    kept: Path, origin: str, kinds: Mapping[str, str], linears: Mapping[str, QuantizedLinear], norms: State
) -> None:
    """Write a safetensors file, whole or not at all, from where the tensors lie: the library would copy all of them."""
    state = {f"{name}.{buffer}": t for name, linear in linears.items() for buffer, t in linear.named_buffers()} | norms
    layout = next(iter(linears.values())).layout
    told = {"made_by": _MADE_BY, "origin": origin, "layout": layout, "kinds": json.dumps(dict(kinds))}
    header: dict[str, Any] = {"__metadata__": told}
    end = 0
    for key, tensor in state.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)  # so that the tensors begin where processors like to read
    pieces: Any = (tensor.contiguous().view(torch.uint8).numpy() for tensor in progress(state.values(), "keeping"))
    try:
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, itertools.chain([len(text).to_bytes(8, "little"), text], pieces))
    except OSError as e:
        warnings.warn(f"{kept}: cannot be kept ({reason(e)}); the model runs all the same", stacklevel=5)


def _read_kept(
    kept: Path, origin: str, params: ModelArgs, norm_dtype: torch.dtype, tied: bool
) -> tuple[dict[str, QuantizedLinear], State]:
    """What `_keep` wrote, mapped. Raises CheckpointError unless all of it is there, in the sizes of params, and made
    from what is there now.
    """
    tensors, told, _ = huggingface.map_safetensors(kept, {name: dtype for dtype, name in _TYPES.items()})
    if told.get("made_by") != _MADE_BY:
        raise CheckpointError(f"{kept}: not a model that was kept here, or by another version")
    if told.get("origin") != origin:
        raise CheckpointError(f"{kept}: made from other weights than those beside it, or from a copy of them")
    layout, kinds = told.get("layout", ""), _kinds(kept, told)
    shapes = {key: shape for key, shape in params.weight_shapes().items() if not (tied and key == "output.weight")}
    matrices = [key for key in shapes if "norm" not in key]
    for key in matrices:
        if kinds.get(key) not in KINDS or layout not in LAYOUTS:
            raise CheckpointError(f"{kept}: {key} is not packed in a way that is known here")
    kinds = {key: kinds[key] for key in matrices}
    with torch.device("meta"):
        linears = _modules(_groups(kinds, shapes), kinds, shapes)
        expected = {key: torch.empty(shape, dtype=norm_dtype) for key, shape in shapes.items() if "norm" in key}
    expected |= {f"{name}.{buffer}": t for name, linear in linears.items() for buffer, t in linear.named_buffers()}
    check_names_and_shapes(kept, *({key: tuple(t.shape) for key, t in ts.items()} for ts in (tensors, expected)))
    for key, tensor in tensors.items():
        if tensor.dtype != expected[key].dtype:
            raise CheckpointError(f"{kept}: {key} is of type {tensor.dtype}, expected {expected[key].dtype}")
    check_finite_if_small(kept, {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()})
    for name, linear in linears.items():
        for buffer, _ in linear.named_buffers():
            setattr(linear, buffer, tensors[f"{name}.{buffer}"])
        linear.pack_for_here(layout)
    return linears, {key: tensors[key] for key in shapes if "norm" in key}


def _kinds(kept: Path, told: Mapping[str, str]) -> dict[str, Any]:
    try:
        kinds = json.loads(told["kinds"])
        if isinstance(kinds, dict):
            return kinds
    except (LookupError, RecursionError, ValueError):
        pass
    raise CheckpointError(f"{kept}: does not say how its matrices are packed")
