"""Folders in Hugging Face's layout, read where they lie: config.json and safetensors.

The model is the same. What differs: the names, and the order of the rotary pairs in wq and wk. (And how the vocabulary
is written down: tokenizer_json.py.)
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checks import DTYPES, MOST
from ..messages import CheckpointError, reason, short, short_name
from ..params import ModelArgs
from .files import (
    CONFIG_NAME,
    INDEX_NAME,
    MOST_TEXT_BYTES,
    SAFETENSORS_NAME,
    list_folder,
    open_file,
    read_json,
    what_it_is,
)
from .mapped import (
    EXPECTED,
    STORED_DTYPES,
    LazyWeights,
    check_weights,
    equal_numbers,
    in_one_type,
    map_file,
    numbers_at,
)
from .other_formats import check_not_an_adapter, check_not_quantised, other_format

# Meta's names -> theirs. Layers are layers.N. here and model.layers.N. there.
_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "norm": "model.norm",
    "output": "lm_head",
}
# Their sizes -> Meta's. ModelArgs speaks of the second, and a message that quotes it tells which is which.
_SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "context_len",
    "factor": "rope_scale_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_old_context_len",
}
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_bias": (False,),
    "mlp_bias": (False,),
}
SAFETENSORS_DTYPES = {in_safetensors: dtype for dtype, in_safetensors, _ in STORED_DTYPES}


def read_params(folder: Path) -> ModelArgs:
    """The sizes in config.json, under Meta's names. Raises CheckpointError for what this architecture does not have,
    and for two keys that contradict each other.
    """
    path = folder / CONFIG_NAME
    config = read_json(path)
    if config.get("model_type") != "llama":
        kind = short(config.get("model_type"))
        raise CheckpointError(f"{path}: model_type is {kind}, another architecture; only llama can be read here")
    check_not_quantised(path, config)
    for key, known in _FIXED.items():
        if key in config and config[key] not in known:
            raise CheckpointError(f"{path}: {key} is {short(config[key])}; Llama 3 has {known[0]}")
    missing = [name for name in _REQUIRED if name not in config]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} missing")
    try:
        sizes = {_SIZES.get(name, name): config[name] for name in _REQUIRED[:-1]}
        sizes["n_kv_heads"] = config.get("num_key_value_heads")
        sizes["norm_eps"] = config.get("rms_norm_eps", 1e-6)
        sizes |= hidden_size(config["hidden_size"], config["intermediate_size"]) | _rope(config)
        params = ModelArgs(**sizes)
    except ValueError as e:
        words = set(re.findall(r"\w+", str(e)))
        names = ", ".join(f"{theirs} is {ours} here" for theirs, ours in _SIZES.items() if ours in words)
        raise CheckpointError(f"{path}: {e} ({names})" if names else f"{path}: {e}") from e
    if config.get("head_dim") not in (None, params.head_dim):
        raise CheckpointError(f"{path}: head_dim {short(config['head_dim'])} is not hidden_size / num_attention_heads")
    return params


def hidden_size(dim: Any, hidden_dim: Any) -> dict[str, Any]:
    """Meta's params.json says how the hidden size follows from dim; config.json says what it is."""
    for name, size in (("hidden_size", dim), ("intermediate_size", hidden_dim)):
        if type(size) is not int or not 1 <= size <= MOST:
            raise ValueError(f"{name} must be a positive integer, not {short(size)}")
    if hidden_dim == ModelArgs(dim, 1, 1, 1).hidden_dim:
        return {}
    return {"multiple_of": 1, "ffn_dim_multiplier": (hidden_dim + 0.5) / int(2 * (4 * dim) / 3)}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says about positions: in rope_parameters, or, before version 5 of transformers, in rope_theta
    and rope_scaling.
    """
    told = {key: _rope_of(key, config) for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    if len(told) == 2 and told["rope_parameters"] != told["rope_scaling"]:
        raise ValueError("rope_parameters and rope_scaling differ; take out the one that does not belong there")
    rope = next(iter(told.values()), None) or _rope_of("rope_parameters", {**config, "rope_parameters": {}})
    values = {"rope_theta": rope["rope_theta"], "context_len": config.get("max_position_embeddings")}
    kind = rope["rope_type"]
    if kind == "default":
        return values
    if kind != "llama3":
        raise ValueError(f"rope_type is {short(kind)}; only default and llama3 can be read here")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if name not in rope]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing, for rope_type 'llama3'")
    factor, low, high, old_context_len = (rope[name] for name in names)
    both = values["context_len"], old_context_len
    if all(type(value) is int for value in both) and both[0] <= both[1]:
        values["context_len"] = None  # a default that nobody set: scaling is for longer texts
    return values | {
        "use_scaled_rope": True,
        "rope_scale_factor": factor,
        "rope_low_freq_factor": low,
        "rope_high_freq_factor": high,
        "rope_old_context_len": old_context_len,
    }


def _rope_of(key: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """One of the two, complete, with one name for the type. Raises ValueError where it contradicts itself or the
    numbers beside it.
    """
    rope = config[key]
    if not isinstance(rope, dict):
        raise ValueError(f"{key} must be an object, not {short(rope)}")
    kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise ValueError(f"{key} has rope_type {short(kinds[0])} and type {short(kinds[1])}; take one of them out")
    if not kinds and rope.get("factor") is not None:
        raise ValueError(f"{key} has a factor and no rope_type; say which kind of scaling it is for")
    beside = {n: config[n] for n in ("rope_theta", "original_max_position_embeddings") if config.get(n) is not None}
    for name, value in beside.items():
        if rope.get(name, value) != value:
            raise ValueError(
                f"{name} is {short(rope[name])} in {key} and {short(value)} beside it; take one of them out"
            )
    others = {name: value for name, value in rope.items() if name not in ("type", "rope_type")}
    return {"rope_theta": 10000.0, **beside, **others, "rope_type": kinds[0] if kinds else "default"}


def read_weights(folder: Path, params: ModelArgs, dtype: torch.dtype | None = None) -> tuple[LazyWeights, bool]:
    """Map the tensors of the folder's .safetensors files into memory, under Meta's names. Also returns whether they
    are mapped read-only.

    Only wq and wk are copied, each time they are asked for: their rows go back to Meta's order. Tensors of several
    types become one: `dtype`, else the one in config.json, else the widest.
    """
    config = read_json(folder / CONFIG_NAME)
    paths = weight_files(folder)
    files, _, read_only = zip(*(map_safetensors(path, SAFETENSORS_DTYPES) for path in paths), strict=True)
    where = paths[0] if len(paths) == 1 else folder / INDEX_NAME
    stored = {key: tensor for file in files for key, tensor in file.items()}
    stored = {key: t for key, t in stored.items() if not key.endswith("rotary_emb.inv_freq")}  # computed, not learned
    stored = in_one_type(where, stored, dtype, _dtype_of(config))
    tied = config.get("tie_word_embeddings")
    if tied not in (None, True, False):
        raise CheckpointError(f"{folder / CONFIG_NAME}: tie_word_embeddings must be true or false, not {short(tied)}")
    tied = tied and _tie(stored, folder / CONFIG_NAME)
    shapes = {huggingface_name(key): shape for key, shape in params.weight_shapes().items()}
    check_weights(where, stored, shapes, may_lack=(_OUTPUT,) if tied else ())
    names = {key: huggingface_name(key) for key in params.weight_shapes()}
    parts = {key: [stored[name]] for key, name in names.items() if name in stored}

    def join(key: str, parts: Sequence[Tensor]) -> Tensor:
        turned = key.endswith(("wq.weight", "wk.weight"))
        return permute(parts[0], params.head_dim) if turned else parts[0]

    return LazyWeights(parts, join), any(read_only)


_EMBEDDINGS, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def _tie(stored: dict[str, Tensor], config: Path) -> bool:
    """Leave one of the two matrices that config.json calls one; both, where they are not, which transformers does,
    too. Returns whether one is left.
    """
    if _OUTPUT in stored and _EMBEDDINGS in stored and not equal_numbers(stored[_EMBEDDINGS], stored[_OUTPUT]):
        warnings.warn(
            f"{config.name}: tie_word_embeddings is true, and {_OUTPUT} is stored with other numbers than "
            f"{_EMBEDDINGS}: both are kept; set it to false",
            stacklevel=4,
        )
        return False
    if _OUTPUT in stored:
        output = stored.pop(_OUTPUT)
        stored.setdefault(_EMBEDDINGS, output)
    return True


def _dtype_of(config: Mapping[str, Any]) -> torch.dtype | None:
    """The type that config.json tells; before version 5 of transformers under another name."""
    name = config.get("dtype") or config.get("torch_dtype")
    return DTYPES.get(name.removeprefix("torch.")) if isinstance(name, str) else None


def huggingface_name(key: str) -> str:
    """layers.3.attention.wq.weight -> model.layers.3.self_attn.q_proj.weight"""
    name = key.removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, name = name.split(".", 2)
        return f"model.layers.{layer}.{_NAMES[name]}.weight"
    return f"{_NAMES[name]}.weight"


def permute(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of wq or wk, [heads * head_dim, dim], from Hugging Face's order of rotary pairs to Meta's.

    There row i of a head turns with row i + head_dim / 2, here row 2i with row 2i + 1.
    """
    unflatten: Any = weight.unflatten
    return unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)  # type: ignore[no-any-return]


def unpermute(weight: Tensor, head_dim: int) -> Tensor:
    """The same backwards, from Meta's order to Hugging Face's; also of a vector, or of LoRA's matrix for these rows."""
    unflatten: Any = weight.unflatten
    return unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)  # type: ignore[no-any-return]


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights. Raises CheckpointError where one is missing."""
    names = list_folder(folder)
    check_not_an_adapter(folder, names)
    if SAFETENSORS_NAME in names:
        return [folder / SAFETENSORS_NAME]
    if INDEX_NAME not in names:
        other = other_format(folder, names)
        what = f", only {other[0]}: {other[1]}" if other else "; download it, or save the model with save_pretrained"
        raise CheckpointError(f"{folder / SAFETENSORS_NAME}: not found, nor {INDEX_NAME}{what}")
    parts = read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(type(name) is str for name in parts.values()):
        raise CheckpointError(f"{folder / INDEX_NAME}: weight_map must be an object of keys and file names")
    strange = [name for name in parts.values() if name not in names]
    if strange:
        raise CheckpointError(f"{folder / INDEX_NAME}: {short_name(strange[0])} not found beside it; download it")
    return [folder / name for name in sorted(set(parts.values()))]


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file for whoever may read the folder: the library alone makes it for its owner. Each tensor has a memory of its
    own.
    """
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(0o644)


def map_safetensors(path: Path, dtypes: Mapping[str, torch.dtype]) -> tuple[dict[str, Tensor], Mapping[str, str], bool]:
    """The tensors of a file, mapped; what it says of itself; whether it is mapped read-only. `dtypes` are those that it
    may have, by their names there.

    The library reads and checks the list of tensors. Their bytes follow it, one tensor after the other.
    """
    with open_file(path) as f:
        start = f.read(64)
    length = int.from_bytes(start[:8], "little")  # of the list
    what = what_it_is(start) or ("its list of tensors is larger than any model's" if length > MOST_TEXT_BYTES else "")
    if what:
        raise CheckpointError(f"{path}: not a readable safetensors file ({what}); download it again")
    try:
        with safe_open(path, framework="numpy") as f:
            slices = {key: f.get_slice(key) for key in f.offset_keys()}
            described = {key: (s.get_dtype(), torch.Size(s.get_shape())) for key, s in slices.items()}
            metadata = f.metadata() or {}
    except (SafetensorError, MemoryError, OSError, OverflowError, RuntimeError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file ({reason(e)}); download it again") from e
    file, tensors = map_file(path), {}
    offset = 8 + length
    for key, (name, shape) in described.items():
        if name not in dtypes:
            raise CheckpointError(f"{path}: {short_name(key)} is {name}; {EXPECTED}")
        if shape.numel() == 0:
            raise CheckpointError(f"{path}: {short_name(key)} is empty, {list(shape)}; save the model again")
        tensors[key] = numbers_at(file, dtypes[name], offset, shape.numel()).view(shape)
        offset += tensors[key].nbytes
    return tensors, metadata, memoryview(file).readonly
