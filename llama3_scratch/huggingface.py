"""Folders in Hugging Face's layout, read where they lie: config.json, safetensors, tokenizer.json.

The model is the same. What differs: the names, the order of the rotary pairs in wq and wk, and how the vocabulary is
written down.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import MOST_TEXT_BYTES, CheckpointError, list_folder, open_file, read_json, what_it_is
from .messages import reason, short, short_name
from .params import ModelArgs
from .weights import LazyWeights, check_weights, map_file, numbers_at

CONFIG_NAME, TOKENIZER_NAME = "config.json", "tokenizer.json"
_WEIGHTS_NAME, _INDEX_NAME = "model.safetensors", "model.safetensors.index.json"

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
# Meta's sizes -> theirs, in messages.
_PARAMS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "max_seq_len": "max_position_embeddings",
    "rope_scale_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_old_context_len": "original_max_position_embeddings",
}
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def read_params(folder: Path) -> ModelArgs:
    """The sizes in config.json, under Meta's names. Raises CheckpointError for what this architecture does not have."""
    path = folder / CONFIG_NAME
    config = read_json(path)
    if config.get("model_type") != "llama":
        raise CheckpointError(f"{path}: model_type is {short(config.get('model_type'))}; only llama can be read here")
    for key, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if config.get(key, only) != only:
            raise CheckpointError(f"{path}: {key} is {short(config[key])}; Llama 3 has {only}")
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
    missing = [name for name in names if name not in config]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} missing")
    try:
        params = ModelArgs(
            *(config[name] for name in names[:-1]),
            n_kv_heads=config.get("num_key_value_heads"),
            **_hidden_size(config["hidden_size"], config["intermediate_size"]),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            **_rope(config),
        )
    except CheckpointError as e:
        words = str(e).removeprefix("params.json: ")
        raise CheckpointError(f"{path}: {re.sub(r'[a-z_]+', lambda m: _PARAMS.get(m[0], m[0]), words)}") from e
    if config.get("head_dim") not in (None, params.head_dim):
        raise CheckpointError(f"{path}: head_dim {short(config['head_dim'])} is not hidden_size / num_attention_heads")
    return params


def _hidden_size(dim: int, hidden_dim: int) -> dict:
    """Meta's params.json says how the hidden size follows from dim; config.json says what it is."""
    if any(type(size) is not int or not 1 <= size <= 2**31 for size in (dim, hidden_dim)):
        raise CheckpointError(
            f"hidden_size {short(dim)} and intermediate_size {short(hidden_dim)} must be positive whole numbers"
        )
    if hidden_dim == ModelArgs(dim, 1, 1, 1).hidden_dim:
        return {}
    return {"multiple_of": 1, "ffn_dim_multiplier": (hidden_dim + 0.5) / int(2 * (4 * dim) / 3)}


def _rope(config: dict) -> dict:
    """What config.json says about positions; before version 5 of transformers it said so in two places."""
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(told, dict):
        raise CheckpointError(f"rope_parameters or rope_scaling must be an object, not {short(told)}")
    rope = {"rope_theta": config.get("rope_theta", 10000.0)} | told
    values = {"rope_theta": rope["rope_theta"], "max_seq_len": config.get("max_position_embeddings")}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return values
    if kind != "llama3":
        raise CheckpointError(f"rope_type is {short(kind)}; only default and llama3 can be read here")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if name not in rope]
    if missing:
        raise CheckpointError(f"{', '.join(missing)} missing, for rope_type 'llama3'")
    factor, low, high, old_context_len = (rope[name] for name in names)
    both = values["max_seq_len"], old_context_len
    if all(type(value) is int for value in both) and both[0] <= both[1]:
        values["max_seq_len"] = None  # a default that nobody set: scaling is for longer texts
    return values | {
        "use_scaled_rope": True,
        "rope_scale_factor": factor,
        "rope_low_freq_factor": low,
        "rope_high_freq_factor": high,
        "rope_old_context_len": old_context_len,
    }


def read_weights(folder: Path, params: ModelArgs) -> tuple[LazyWeights, bool]:
    """Map the tensors of the folder's .safetensors files into memory, under Meta's names. Also returns whether they
    are mapped read-only.

    Only wq and wk are copied, each time they are asked for: their rows go back to Meta's order.
    """
    paths = _weight_files(folder)
    files, read_only = zip(*(_map_safetensors(path) for path in paths), strict=True)
    stored = {key: tensor for file in files for key, tensor in file.items()}
    shapes = {huggingface_name(key): shape for key, shape in params.weight_shapes().items()}
    tied = read_json(folder / CONFIG_NAME).get("tie_word_embeddings", False)
    if tied not in (None, True, False):
        raise CheckpointError(f"{folder / CONFIG_NAME}: tie_word_embeddings must be true or false, not {short(tied)}")
    if tied:
        stored.pop("lm_head.weight", None)
    stored = {key: t for key, t in stored.items() if not key.endswith("rotary_emb.inv_freq")}  # computed, not learned
    where = paths[0] if len(paths) == 1 else folder / _INDEX_NAME
    check_weights(where, stored, shapes, may_lack=("lm_head.weight",) if tied else ())
    names = {key: huggingface_name(key) for key in params.weight_shapes()}
    parts = {key: [stored[name]] for key, name in names.items() if name in stored}

    def join(key: str, parts: Sequence[Tensor]) -> Tensor:
        turned = key.endswith(("wq.weight", "wk.weight"))
        return to_interleaved(parts[0], params.head_dim) if turned else parts[0]

    return LazyWeights(parts, join), any(read_only)


def huggingface_name(key: str) -> str:
    """layers.3.attention.wq.weight -> model.layers.3.self_attn.q_proj.weight"""
    name = key.removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, name = name.split(".", 2)
        return f"model.layers.{layer}.{_NAMES[name]}.weight"
    return f"{_NAMES[name]}.weight"


def to_interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of wq or wk, [heads * head_dim, dim], from Hugging Face's order of rotary pairs to Meta's.

    There row i of a head turns with row i + head_dim / 2, here row 2i with row 2i + 1.
    """
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _weight_files(folder: Path) -> list[Path]:
    names = list_folder(folder)
    if _WEIGHTS_NAME in names:
        return [folder / _WEIGHTS_NAME]
    if _INDEX_NAME not in names:
        found = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".pt", ".gguf")))
        instead = f", only {short_name(', '.join(found))}" if found else ""
        raise CheckpointError(
            f"{folder / _WEIGHTS_NAME}: not found, nor {_INDEX_NAME}{instead}; download it, or save the model with "
            "save_pretrained"
        )
    parts = read_json(folder / _INDEX_NAME).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(type(name) is str for name in parts.values()):
        raise CheckpointError(f"{folder / _INDEX_NAME}: weight_map must be an object of keys and file names")
    strange = [name for name in parts.values() if name not in names]
    if strange:
        raise CheckpointError(f"{folder / _INDEX_NAME}: {short_name(strange[0])} not found beside it; download it")
    return [folder / name for name in sorted(set(parts.values()))]


def _map_safetensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The library reads and checks the list of tensors. Their bytes follow it, one tensor after the other."""
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
    except (SafetensorError, MemoryError, OSError, OverflowError, RuntimeError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file ({reason(e)}); download it again") from e
    file, tensors = map_file(path), {}
    offset = 8 + length
    for key, (name, shape) in described.items():
        if name not in _DTYPES:
            raise CheckpointError(f"{path}: {short_name(key)} is {name}; expected bfloat16, float16 or float32")
        if shape.numel() == 0:
            raise CheckpointError(f"{path}: {short_name(key)} is empty, {list(shape)}; save the model again")
        tensors[key] = numbers_at(file, _DTYPES[name], offset, shape.numel()).view(shape)
        offset += tensors[key].nbytes
    return tensors, memoryview(file).readonly


def read_tokenizer(path: Path) -> tuple[dict[bytes, int], dict]:
    """tokenizer.json as the ranks of tokenizer.model, and what tokenizer_params.json says beside it.

    A token's id is its rank as long as ids follow the order of the merges, which is checked. Raises CheckpointError
    for anything but byte-level byte-pair encoding.
    """
    try:
        return _read_tokenizer(path, read_json(path))
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:  # of another kind than it should be
        raise CheckpointError(f"{path}: not as the tokenizers library writes it; download it again") from e


def _read_tokenizer(path: Path, content: dict) -> tuple[dict[bytes, int], dict]:
    ranks, special_tokens = _vocabulary(path, content)
    names = {id: token for token, id in special_tokens.items()}
    opening = _opening(content.get("post_processor"))
    bos = _special_token(path.parent, "bos", names) or (opening if opening in special_tokens else None)
    return ranks, {
        "pattern": _pattern(path, content.get("pre_tokenizer")),
        "special_tokens": special_tokens,
        "words": [token["content"] for token in content["added_tokens"] if not token.get("special", True)],
        "bos": bos,
        "eos": _special_token(path.parent, "eos", names),
        "add_bos": bos is not None and bos == opening,
        "stop": [names[id] for id in _stop_ids(path.parent) if id in names],
    }


def _vocabulary(path: Path, content: dict) -> tuple[dict[bytes, int], dict[str, int]]:
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or content.get("normalizer"):
        raise CheckpointError(f"{path}: only byte-pair encoding without a normalizer can be read here")
    special_tokens = {token["content"]: token["id"] for token in content["added_tokens"]}
    byte_of = gpt2_bytes()
    ranks = {}
    for token, id in model["vocab"].items():
        if token not in special_tokens:
            if not set(token) <= byte_of.keys():
                raise CheckpointError(
                    f"{path}: {short(token)} is not made of bytes; is this a SentencePiece vocabulary?"
                )
            ranks[bytes(byte_of[c] for c in token)] = id
    ids = [*ranks.values(), *special_tokens.values()]
    if not all(type(id) is int and id >= 0 for id in ids) or len(set(ids)) < len(ids):
        raise CheckpointError(f"{path}: an id repeats or is not a whole number; download it again")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merged = [model["vocab"]["".join(pair)] for pair in merges]
    if merged != sorted(merged) or set(merged) != {id for token, id in ranks.items() if len(token) > 1}:
        raise CheckpointError(f"{path}: merges are not in the order of the ids; such a vocabulary cannot be read here")
    return ranks, special_tokens


def _pattern(path: Path, pre_tokenizer: dict | None) -> str:
    """The regular expression that cuts text into pieces, as Llama 3 (a Split) or SmolLM2 (Digits) write it down."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    *before, last = steps
    kinds = [step.get("type") for step in steps]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space", False):
        if kinds[:-1] == ["Split"] and not last.get("use_regex", True):
            pattern = before[0]["pattern"].get("Regex")
            if before[0]["behavior"] == "Isolated" and not before[0]["invert"] and isinstance(pattern, str):
                return pattern
        elif kinds[:-1] == [] and last.get("use_regex", True):  # GPT-2's
            return r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        elif kinds[:-1] == ["Digits"] and last.get("use_regex", True):  # the same, after numbers were cut out
            digits = r"\p{N}" if before[0].get("individual_digits") else r"\p{N}+"
            return digits + r"|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
    raise CheckpointError(
        f"{path}: pre_tokenizer {short_name(' + '.join(map(str, kinds)))} is of a form that is not known here"
    )


def _special_token(folder: Path, which: str, names: dict[int, str]) -> str | None:
    """The token that opens or closes a text: tokenizer_config.json has its text, config.json its id. None without."""
    token = None
    if (folder / "tokenizer_config.json").is_file():
        token = read_json(folder / "tokenizer_config.json").get(f"{which}_token")
        token = token.get("content") if isinstance(token, dict) else token
    if token not in names.values() and (folder / CONFIG_NAME).is_file():
        id = read_json(folder / CONFIG_NAME).get(f"{which}_token_id")
        id = id[0] if isinstance(id, list) and id else id
        token = names.get(id) if type(id) is int else None
    return token if token in names.values() else None


def _stop_ids(folder: Path) -> list[int]:
    """All ids that end a text or a turn: config.json and generation_config.json may each name one or several."""
    ids = []
    for name in (CONFIG_NAME, "generation_config.json"):
        if (folder / name).is_file():
            told = read_json(folder / name).get("eos_token_id")
            ids += told if isinstance(told, list) else [told]
    return [id for id in ids if type(id) is int]


def _opening(post_processor: dict | None) -> str | None:
    """The special token that the library puts before every text, if it does."""
    steps = (post_processor or {}).get("processors", [post_processor or {}])
    templates = [step.get("single") for step in steps if step.get("type") == "TemplateProcessing"]
    return next((template[0].get("SpecialToken", {}).get("id") for template in templates if template), None)


def gpt2_bytes() -> dict[str, int]:
    """GPT-2's printable character for each byte, the other way round.

    Bytes that print in Latin-1 stand for themselves; the others, in order, are the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
