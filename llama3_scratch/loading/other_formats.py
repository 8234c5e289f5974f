"""What people have in place of a model in one of the two layouts, known by its files, and what to do with it."""

import fnmatch
from collections.abc import Collection, Mapping
from pathlib import Path

from ..messages import CheckpointError, short_name
from .files import ADAPTER_CONFIG_NAME, ADAPTER_PATTERN, GGUF_SUFFIX, OTHER_FORMATS, read_json


def other_format(folder: Path, names: Collection[str]) -> tuple[str, str] | None:
    """What is in a folder where no model is that can be read here: the name of a file, and a sentence on it."""
    if adapter := found(names, ADAPTER_CONFIG_NAME) or found(names, ADAPTER_PATTERN):
        return adapter, _adapter(folder)
    for pattern, what in OTHER_FORMATS.items():
        if name := found(names, pattern):
            name = short_name(name)
            if pattern.endswith(GGUF_SUFFIX):
                return name, f"{what}, a whole model by itself: point at the file, {folder / name}"
            advice = "get the same model as safetensors, or open it with transformers and save it with save_pretrained"
            return name, f"{what}, not read here; {advice}"
    return None


def found(names: Collection[str], pattern: str) -> str:
    """The first of the names that fits a pattern, or ""."""
    return min(fnmatch.filter(names, pattern), default="")


def check_not_an_adapter(folder: Path, names: Collection[str]) -> None:
    """Refuse weights with an adapter beside them: transformers would add it to a model from elsewhere."""
    if ADAPTER_CONFIG_NAME in names:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG_NAME}: {_adapter(folder)}")


def _adapter(folder: Path) -> str:
    try:
        base = read_json(folder / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    base = f" ({short_name(base)})" if base else ""
    return (
        f"an adapter such as LoRA's, not a whole model; open its base model{base} and add it (generate --adapter, "
        "lora.load), or merge it with peft's merge_and_unload, save that with save_pretrained, and point at the result"
    )


def check_not_quantised(path: Path, config: Mapping[str, object]) -> None:
    """Refuse a config.json that tells of weights in four or eight bits."""
    for key in ("quantization_config", "compression_config", "quantization"):  # the last one is MLX's
        told = config.get(key)
        if told in (None, {}, False):
            continue
        told = told if isinstance(told, dict) else {}
        method = told.get("quant_method") or told.get("quant_algo") or ("MLX" if key == "quantization" else None)
        if not method and any(str(k).startswith(("load_in_", "bnb_")) for k in told):
            method = "bitsandbytes"
        how = f" ({short_name(method)})" if method else ""
        raise CheckpointError(
            f"{path}: {key} tells of quantised weights{how}, which are not read here; get the same model in bfloat16, "
            "or open it with transformers, dequantize() it, and save it with save_pretrained"
        )
