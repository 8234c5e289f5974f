"""GGUF, the single file of llama.cpp, read where it lies, or written again in Meta's layout. Imported where it is
needed: the library is.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf.constants import MODEL_ARCH, TokenType
from gguf.tensor_mapping import get_tensor_name_map
from torch import Tensor

from ..functional import rotations
from ..messages import CheckpointError, progress, short, short_name
from ..params import ModelArgs
from .files import PARAMS_NAME, WEIGHTS_NAME, write_ranks
from .gguf_file import Blocks, GGUFWeights, naming, read_gguf
from .huggingface import hidden_size
from .mapped import check_finite_if_small, check_names_and_shapes
from .pth import write_pth
from .tokenizer_json import DIGITS_PATTERN, read_ranks

# GGUF names the split pattern instead of giving it: name -> pattern (none: Llama 3's own), and whether llama.cpp opens
# a text with bos and takes pieces that are tokens as they are, where the file does not say.
_PATTERNS: dict[str, tuple[dict[str, str], bool]] = {
    "smollm": ({"pattern": DIGITS_PATTERN}, False),
    "llama-bpe": ({}, True),
}
_ROPE_FREQS = "rope_freqs.weight"  # what the frequencies are divided by, in Llama 3.1 and later
_SIZES = (
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
# Those that are read, and those that say nothing of the model. Others get a warning.
_KNOWN = {f"llama.{name}" for name in _SIZES} | {
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.context_length",
    "llama.expert_count",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.rope.scale_linear",
    "llama.rope.scaling.attn_factor",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.finetuned",
    "llama.rope.scaling.original_context_length",
    "llama.rope.scaling.type",
    "llama.vocab_size",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",  # of SentencePiece's vocabularies
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.model",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.unknown_token_id",
}


def read_model(path: Path) -> tuple[ModelArgs, GGUFWeights]:
    """The sizes and the weights of a GGUF file, under Meta's names; the weights stay as they are stored, in the file.

    GGUF keeps wq and wk in Meta's order of rotary pairs, so nothing is permuted. Raises CheckpointError for another
    architecture, for positions that turn in another way than Llama 3's, or numbers of a kind that is not known.
    """
    fields, tensors = read_gguf(path)
    with naming(path):
        if fields.get("general.architecture") != "llama":
            raise CheckpointError(f"architecture {short(fields.get('general.architecture'))}, not llama")
        params = _params(fields, tensors)
        weights = _weights(path, tensors, params)
    unknown = sorted(k for k in fields.keys() - _KNOWN if k.startswith(("llama.", "tokenizer.ggml.")))
    if unknown:
        warnings.warn(f"{path.name}: ignoring unknown keys {short_name(', '.join(unknown))}", stacklevel=2)
    return params, weights


def read_tokenizer(path: Path) -> tuple[dict[bytes, int], dict[str, Any]]:
    """The vocabulary of a GGUF file as the ranks of tokenizer.model, and what tokenizer_params.json says beside it."""
    fields, _ = read_gguf(path)
    with naming(path):
        return _tokenizer(fields, path)


def write_gguf(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder` in Meta's layout, dequantised to float32. Raises CheckpointError for
    what `read_model` does not read, and for a tokenizer that is not known here.
    """
    params, stored = read_model(path)
    ranks, config = read_tokenizer(path)
    with naming(path):
        weights = {key: stored[key] for key in progress(stored, "converting", "tensor", 0.5)}
        check_finite_if_small(path, weights)
    write_ranks(folder, ranks, config)
    write_pth(folder / WEIGHTS_NAME, weights)
    (folder / PARAMS_NAME).write_text(params.to_json())


def _weights(path: Path, tensors: Mapping[str, Blocks], params: ModelArgs) -> GGUFWeights:
    """All tensors under Meta's names, in the order of Meta's file."""
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, params.n_layers)
    keys = {str(names.get_name(key, try_suffixes=(".weight",))): key for key in params.weight_shapes()}
    strange = [name for name in tensors if name not in keys and name != _ROPE_FREQS]
    if strange:
        raise CheckpointError(f"tensor {short_name(strange[0])} has no place in Meta's layout")
    blocks = {key: tensors[name] for name, key in keys.items() if name in tensors}
    shapes = {key: stored.shape for key, stored in blocks.items()}
    check_names_and_shapes(path, shapes, params.weight_shapes(), may_lack=("output.weight",))
    for stored in {stored.kind: stored for stored in blocks.values() if len(stored.shape) == 2}.values():
        stored.rows(slice(1)).numbers()  # NotImplementedError, if its numbers are of a kind that the library only lists
    return GGUFWeights(blocks)


def _params(fields: Mapping[str, Any], tensors: Mapping[str, Blocks]) -> ModelArgs:
    n_layers, dim, hidden_dim, n_heads, eps = (fields[f"llama.{name}"] for name in _SIZES)
    if fields.get("llama.expert_count"):
        raise CheckpointError("llama.expert_count: a mixture of experts, which Llama 3 is not")
    _check_scaling(fields)
    sizes: dict[str, Any] = {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": fields.get("llama.attention.head_count_kv"),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        # GGUF keeps these two in float32: seven digits are all there is of 1e-05.
        "norm_eps": float(f"{eps:.7g}"),
        "rope_theta": float(f"{fields.get('llama.rope.freq_base', 10000.0):.7g}"),
        "context_len": fields.get("llama.context_length"),
    }
    params = ModelArgs(**sizes, **hidden_size(dim, hidden_dim))
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if fields.get(f"llama.{name}", params.head_dim) != params.head_dim:
            raise CheckpointError(f"llama.{name} is {short(fields[f'llama.{name}'])}, not the head's {params.head_dim}")
    if _ROPE_FREQS in tensors:
        return _with_rope_freqs(params, fields, tensors[_ROPE_FREQS].numbers())
    return params


def _check_scaling(fields: Mapping[str, Any]) -> None:
    """llama.cpp takes a factor without a type for linear scaling; the first files had another key for it."""
    kind = fields.get("llama.rope.scaling.type", "linear")
    keys = [f"llama.rope.{name}" for name in ("scaling.factor", "scale_linear", "scaling.attn_factor")]
    scaled = [key for key in keys if fields.get(key) not in (None, 0, 1)]
    if kind not in ("none", "linear"):
        raise CheckpointError(f"llama.rope.scaling.type is {short(kind)}, which Llama 3 does not have")
    if scaled and kind == "linear":
        raise CheckpointError(f"{scaled[0]} is {short(fields[scaled[0]])}: linear scaling, which Llama 3 does not have")


def _with_rope_freqs(params: ModelArgs, fields: Mapping[str, Any], divisors: Tensor) -> ModelArgs:
    """Scaled RoPE is not described in a GGUF file; what it comes to is stored. It must be Llama 3's, by some factor."""
    old_context_len = fields.get("llama.rope.scaling.original_context_length", 8192)
    factor = float(divisors.max()) if divisors.numel() else 0.0
    if divisors.shape == (params.head_dim // 2,) and factor >= 1:
        scaled = {**vars(params), "use_scaled_rope": True, "rope_scale_factor": float(f"{factor:.7g}")}
        scaled["rope_old_context_len"] = old_context_len
        candidates = [params] if factor == 1 else [ModelArgs(**scaled)]
        for candidate in candidates:
            # At position 1 the rotations are the frequencies themselves.
            plain, turned = (rotations(p, torch.tensor([1])).angle()[0] for p in (params, candidate))
            if torch.allclose(plain / turned, divisors, rtol=1e-3):
                return candidate
    raise CheckpointError(f"{_ROPE_FREQS}: not the scaling of Llama 3.1 and later; such positions cannot be read here")


def _tokenizer(fields: Mapping[str, Any], path: Path) -> tuple[dict[bytes, int], dict[str, Any]]:
    """GGUF holds GPT-2's printable stand-ins for bytes, one character each, and the merges; tokenizer.model the bytes,
    and our JSON beside it the pattern and special tokens.
    """
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _PATTERNS:
        raise CheckpointError(f"no split pattern known for tokenizer {short(pre)} of {short(kind)}")
    pattern, as_llama3 = _PATTERNS[pre]
    if fields.get("tokenizer.ggml.add_eos_token"):
        raise CheckpointError("tokenizer.ggml.add_eos_token: texts that are closed by a token cannot be read here")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special_tokens: dict[str, int] = {}
    vocab: dict[str, int] = {}
    for i, (token, of) in enumerate(zip(tokens, types, strict=True)):
        if of not in (TokenType.NORMAL, TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED):
            raise CheckpointError(f"token {short(token)} is of type {TokenType(of).name}, which cannot be read here")
        (vocab if of == TokenType.NORMAL else special_tokens)[token] = i
    model = {"vocab": vocab, "merges": fields["tokenizer.ggml.merges"], "ignore_merges": as_llama3}
    ranks, _ = read_ranks(path, model, special_tokens)
    config: dict[str, Any] = {
        **pattern,
        "special_tokens": special_tokens,
        "bos": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "add_bos": bool(fields.get("tokenizer.ggml.add_bos_token", as_llama3)),
    }
    if isinstance(fields.get("tokenizer.chat_template"), str):
        config["chat_template"] = fields["tokenizer.chat_template"]
    return ranks, config
