"""Other layouts into Meta's: GGUF, the single file of llama.cpp."""

import base64
import json
from pathlib import Path

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tqdm import tqdm

from .checkpoint import PARAMS_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from .files import CheckpointError, finished_files, open_file
from .huggingface import gpt2_bytes
from .messages import reason
from .params import ModelArgs
from .pth import write_pth
from .tokenizer import CONFIG_NAME

# GGUF's names -> Meta's. Layers are blk.N. there and layers.N. here.
_NAMES = {
    "token_embd": "tok_embeddings",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "attn_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "output_norm": "norm",
    "output": "output",
}

# GGUF names the split pattern instead of giving it. SmolLM2's: every digit alone, and space before a digit split off.
_PATTERNS = {
    "smollm": r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
}
_CONTROL_TOKEN = 3  # GGUF's token type for special tokens


def convert_gguf(path: str | Path, folder: str | Path):
    """Write the model of a GGUF file into `folder` in Meta's layout, dequantised to float32. params.json comes last, so
    that the folder is a checkpoint once all is there.

    GGUF keeps wq and wk in Meta's order of rotary pairs, so nothing is permuted. Raises CheckpointError for another
    architecture, or a tokenizer whose split pattern is not known here.
    """
    with finished_files(Path(folder), last=PARAMS_NAME) as partial:
        write_gguf(Path(path), partial)


def write_gguf(path: Path, folder: Path):
    """What `convert_gguf` does, straight into a folder."""
    open_file(path).close()
    try:
        _write_gguf(path, folder)
    except CheckpointError:
        raise
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as e:  # a list or a number is wrong
        raise CheckpointError(f"{path}: not a GGUF file of a model, or damaged ({reason(e)}); download it again") from e


def _write_gguf(path: Path, folder: Path):
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise CheckpointError(f"{path}: architecture {fields.get('general.architecture')!r}, not llama")
    if fields.get("tokenizer.ggml.pre") not in _PATTERNS:
        raise CheckpointError(f"{path}: no split pattern known for tokenizer {fields.get('tokenizer.ggml.pre')!r}")
    weights = {}
    for tensor in tqdm(reader.tensors, desc="converting", unit="tensor", delay=0.5):
        # GGUF lists sizes from the innermost out: [in, out] there is [out, in] here.
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(n) for n in reversed(tensor.shape)))
        key = _meta_name(tensor.name)
        if key is None:
            raise CheckpointError(f"{path}: tensor {tensor.name} has no place in Meta's layout")
        weights[key] = torch.from_numpy(values.copy())
    params = _params(fields, weights, path)
    order = [key for key in params.weight_shapes() if key in weights]
    write_pth(folder / WEIGHTS_NAME, {key: weights[key] for key in order})
    (folder / PARAMS_NAME).write_text(params.to_json())
    _write_tokenizer(fields, folder)


def _meta_name(name: str) -> str | None:
    parts = name.removesuffix(".weight").split(".")
    if parts[-1] not in _NAMES:
        return None
    prefix = f"layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"{prefix}{_NAMES[parts[-1]]}.weight"


def _params(fields: dict, weights: dict[str, torch.Tensor], path: Path) -> ModelArgs:
    vocab_size, dim = weights["tok_embeddings.weight"].shape
    params = ModelArgs(
        dim=dim,
        n_layers=fields["llama.block_count"],
        n_heads=fields["llama.attention.head_count"],
        n_kv_heads=fields["llama.attention.head_count_kv"],
        vocab_size=vocab_size,
        # GGUF keeps these two in float32: seven digits are all there is of 1e-05.
        norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        rope_theta=float(f"{fields['llama.rope.freq_base']:.7g}"),
    )
    if params.hidden_dim != fields["llama.feed_forward_length"]:
        raise CheckpointError(
            f"{path}: hidden size {fields['llama.feed_forward_length']} does not follow from dim {dim}"
        )
    return params


def _write_tokenizer(fields: dict, folder: Path):
    """tokenizer.model, and the pattern and special tokens in a small JSON beside it.

    GGUF holds GPT-2's printable stand-ins for bytes, one character each; tokenizer.model holds the bytes.
    """
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    byte_of = gpt2_bytes()
    lines, special_tokens = [], {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == _CONTROL_TOKEN:
            special_tokens[token] = i
        else:
            lines.append(f"{base64.b64encode(bytes(byte_of[c] for c in token)).decode()} {i}")
    config = {
        "pattern": _PATTERNS[fields["tokenizer.ggml.pre"]],
        "special_tokens": special_tokens,
        "bos": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "add_bos": bool(fields.get("tokenizer.ggml.add_bos_token", True)),
    }
    (folder / TOKENIZER_NAME).write_text("\n".join(lines) + "\n")
    (folder / CONFIG_NAME).write_text(json.dumps(config))
