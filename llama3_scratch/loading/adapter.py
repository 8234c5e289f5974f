"""Adapters in the layout of Hugging Face's peft: adapter_config.json and adapter_model.safetensors."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..messages import CheckpointError, short, short_name
from ..params import ModelArgs
from .files import ADAPTER_CONFIG_NAME, ADAPTER_NAME, finished_folder, read_json, write_whole
from .huggingface import SAFETENSORS_DTYPES, huggingface_name, map_safetensors, permute, unpermute, write_safetensors

_PREFIX = "base_model.model."
# What peft can do and is not done here: keys that must be off,
_OFF = (
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# and keys with the values that can be read. Other ways to begin (PiSSA, OLoRA, ...) change the matrices beside which
# they start, and go on to mean a difference from these.
_PLAIN: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}


def write_adapter(adapters: Mapping[str, Any], params: ModelArgs, folder: Path) -> Path:
    """`adapters`: name of the place -> a module with A, B, rank and alpha, the same two numbers for all."""
    if not adapters:
        raise ValueError("this model has no adapter to be saved")
    settings = {(adapter.rank, adapter.alpha) for adapter in adapters.values()}
    if len(settings) > 1:
        raise ValueError("adapters of several ranks cannot be saved in one folder")
    rank, alpha = settings.pop()
    tensors, targets = {}, []
    for name, adapter in adapters.items():
        theirs = huggingface_name(name).removesuffix(".weight")
        b = adapter.B.detach().cpu()
        b = unpermute(b, params.head_dim) if _is_turned(name) else b
        tensors[f"{_PREFIX}{theirs}.lora_A.weight"] = adapter.A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{theirs}.lora_B.weight"] = b.contiguous()
        targets.append(theirs)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
    with finished_folder(folder) as partial:
        if partial is None:
            raise CheckpointError(f"{folder}: is there already; name a folder that is not")
        write_whole(partial / ADAPTER_CONFIG_NAME, json.dumps(config, indent=2) + "\n")
        write_safetensors(partial / ADAPTER_NAME, tensors)
    return folder


def read_adapter(folder: Path, params: ModelArgs) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Name of the place -> A [rank, in], B [out, rank], both float32 copies, and alpha."""
    path = folder / ADAPTER_CONFIG_NAME
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {short(config.get('peft_type'))}; only LORA can be read here")
    for key, value in config.items():  # every use_...: a later version can do more
        off = key in _OFF or key.startswith("use_")
        if value and (off or (key in _PLAIN and value not in _PLAIN[key])):
            raise CheckpointError(f"{path}: {short_name(key)} is {short(value)}, which is not read here")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < 1e30:
        raise CheckpointError(f"{path}: lora_alpha must be a number, not {short(alpha)}")
    file = folder / ADAPTER_NAME
    stored, _, _ = map_safetensors(file, SAFETENSORS_DTYPES)
    shapes = params.weight_shapes()
    places = {f"{_PREFIX}{huggingface_name(key).removesuffix('.weight')}": key for key in shapes if _is_matrix(key)}
    read = {}
    for key in [key for key in stored if key.endswith(".lora_A.weight")]:
        stem = key.removesuffix(".lora_A.weight")
        if stem not in places or f"{stem}.lora_B.weight" not in stored:
            why = "has no lora_B beside it" if stem in places else "has no place in this model's layers"
            raise CheckpointError(f"{file}: {short_name(key)} {why}")
        a, b = stored.pop(key), stored.pop(f"{stem}.lora_B.weight")
        read[places[stem].removesuffix(".weight")] = _pair(file, key, a, b, shapes[places[stem]], config, params)
    if stored or not read:
        what = f"{short_name(next(iter(stored)))} is no part of a plain LoRA" if stored else "no adapters in it"
        raise CheckpointError(f"{file}: {what}")
    return {name: (a, b, float(alpha)) for name, (a, b) in read.items()}


def _pair(
    file: Path, key: str, a: Tensor, b: Tensor, shape: tuple[int, ...], config: Mapping[str, Any], params: ModelArgs
) -> tuple[Tensor, Tensor]:
    out_features, in_features = shape
    rank = config.get("r")
    if a.shape != (rank, in_features) or b.shape != (out_features, rank):
        raise CheckpointError(
            f"{file}: {short_name(key)} is {list(a.shape)}, with {list(b.shape)}; this model and r {short(rank)} need "
            f"[r, {in_features}] and [{out_features}, r]; is it an adapter for another model?"
        )
    a, b = a.float().clone(), b.float().clone()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise CheckpointError(f"{file}: {short_name(key)}, or lora_B beside it, has NaN or infinity")
    return a, permute(b, params.head_dim) if _is_turned(key) else b


def _is_turned(name: str) -> bool:
    """Whether the rows of a place stand in another order in Hugging Face's layout."""
    return bool(re.search(r"\.(wq|wk|q_proj|k_proj)\b", name))


def _is_matrix(key: str) -> bool:
    """Whether it is one of the seven matrices of a layer."""
    return key.startswith("layers.") and not key.endswith("norm.weight")
