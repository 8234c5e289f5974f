"""A model written as a folder, in Meta's layout or in Hugging Face's, for whoever reads those."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..messages import CheckpointError, short
from ..model import Llama
from ..params import ModelArgs
from ..tokenizer import Tokenizer
from .files import (
    CHAT_TEMPLATE_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    PARAMS_NAME,
    SAFETENSORS_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_JSON_NAME,
    WEIGHTS_NAME,
    finished_folder,
    write_ranks,
    write_whole,
)
from .huggingface import huggingface_name, unpermute, write_safetensors
from .pth import write_pth
from .tokenizer_json import gpt2_bytes

LAYOUTS = ("meta", "huggingface")


def export(model: Llama, tokenizer: Tokenizer, folder: str | Path, layout: str = "meta") -> Path:
    """Write a `Llama` and its tokenizer into a folder that is not there yet, and return it. In both layouts it opens by
    `load_checkpoint`; in Hugging Face's by transformers, too, with the same logits and the same text.

    The folder appears when it is complete, and not before. Raises CheckpointError where it is there already, ValueError
    for a model with other weights than Meta's (an adapter that was not merged, or weights in 8 and 4 bits) and for a
    tokenizer that the layout cannot hold.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {short(layout)}")
    folder = Path(folder).expanduser()
    weights = _weights(model)
    config = _config(tokenizer)
    write = _write_meta if layout == "meta" else _write_huggingface
    with finished_folder(folder) as partial:
        if partial is None:
            raise CheckpointError(f"{folder}: is there already; name a folder that is not")
        write(partial, model.params, weights, tokenizer, config)
    return folder


def _weights(model: Llama) -> dict[str, Tensor]:
    """Under Meta's names; what is tied comes once."""
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    expected = model.params.weight_shapes()
    if {key: tuple(tensor.shape) for key, tensor in weights.items()} != expected:
        other = sorted(weights.keys() ^ expected.keys())
        what = f"other weights than Meta's, {short(', '.join(other))}" if other else "weights of other shapes"
        raise ValueError(f"a Llama is needed, and this has {what}: merge an adapter first, and do not quantize")
    if model.output.weight is model.tok_embeddings.weight:
        del weights["output.weight"]
    return weights


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer_params.json says."""
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise ValueError(f"{tokenizer.path.name}: no token that opens or closes a text, which both layouts need")
    if tokenizer.words:
        raise ValueError(f"{tokenizer.path.name}: it has added words, which are not written; copy its own files")
    config = {
        "pattern": tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "bos": names[tokenizer.bos_id],
        "eos": names[tokenizer.eos_id],
        "add_bos": tokenizer.add_bos,
    }
    template = tokenizer.chat_template and tokenizer.chat_template.sources.get("default")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def _ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    special = set(tokenizer.special_tokens.values())
    return {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i not in special and i in tokenizer}


def _write_meta(
    folder: Path, params: ModelArgs, weights: Mapping[str, Tensor], tokenizer: Tokenizer, config: dict[str, Any]
) -> None:
    write_ranks(folder, _ranks(tokenizer), config)
    write_whole(folder / PARAMS_NAME, params.to_json())
    write_pth(folder / WEIGHTS_NAME, weights)


def _write_huggingface(
    folder: Path, params: ModelArgs, weights: Mapping[str, Tensor], tokenizer: Tokenizer, config: dict[str, Any]
) -> None:
    theirs = {}
    for key, tensor in weights.items():
        turned = key.endswith(("wq.weight", "wk.weight"))
        theirs[huggingface_name(key)] = unpermute(tensor, params.head_dim).contiguous() if turned else tensor
    stop = sorted(tokenizer.stop_tokens)  # eos_id is one of them
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stop if len(stop) > 1 else stop[0]}
    dtype = weights["norm.weight"].dtype
    contents: dict[str, Any] = {
        CONFIG_NAME: _huggingface_config(params, dtype, tied="output.weight" not in weights) | ends,
        GENERATION_CONFIG_NAME: ends,
        TOKENIZER_JSON_NAME: tokenizer_json(tokenizer),
        TOKENIZER_CONFIG_NAME: {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": config["bos"],
            "eos_token": config["eos"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": params.context_len,
        },
    }
    for name, content in contents.items():
        write_whole(folder / name, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    if "chat_template" in config:
        write_whole(folder / CHAT_TEMPLATE_NAME, config["chat_template"])
    write_safetensors(folder / SAFETENSORS_NAME, theirs)


def _huggingface_config(params: ModelArgs, dtype: torch.dtype, tied: bool) -> dict[str, Any]:
    """config.json, in the words that transformers 4 and 5 both read."""
    scaling = None
    if params.use_scaled_rope:
        scaling = {
            "rope_type": "llama3",
            "factor": params.rope_factor,
            "low_freq_factor": params.rope_low_freq_factor,
            "high_freq_factor": params.rope_high_freq_factor,
            "original_max_position_embeddings": params.rope_old_context_len,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params.dim,
        "intermediate_size": params.hidden_dim,
        "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads,
        "num_key_value_heads": params.n_kv_heads,
        "head_dim": params.head_dim,
        "vocab_size": params.vocab_size,
        "max_position_embeddings": params.context_len,
        "rms_norm_eps": params.norm_eps,
        "rope_theta": params.rope_theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "dtype": str(dtype).removeprefix("torch."),
    }


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """A byte-level vocabulary as the tokenizers library writes it.

    tiktoken joins any two tokens that make a third, the lowest rank first, and takes a piece that is a token as it is.
    In their words: every such pair is a merge, in the order of the ranks, and merges are ignored for whole pieces.
    """
    ranks = _ranks(tokenizer)
    letter = {byte: char for char, byte in gpt2_bytes().items()}
    words = {token: "".join(letter[byte] for byte in token) for token in ranks}
    merges = [
        [words[token[:i]], words[token[i:]]]
        for token in sorted(ranks, key=lambda token: ranks[token])
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    added = [
        {"id": id, "content": name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for name, id in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    ]
    cut = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
        "post_processor": _opening(tokenizer) if tokenizer.add_bos else None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            # Special tokens are in it as well: those outside get new ids, behind all others.
            "vocab": {words[token]: id for token, id in ranks.items()} | tokenizer.special_tokens,
            "merges": merges,
        },
    }


def _opening(tokenizer: Tokenizer) -> dict[str, Any]:
    """Every text is opened by bos, every second one of a pair as well."""
    name = next(name for name, id in tokenizer.special_tokens.items() if id == tokenizer.bos_id)

    def sequence(which: str, type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name, "type_id": type_id}}, {"Sequence": {"id": which, "type_id": type_id}}]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
    }
