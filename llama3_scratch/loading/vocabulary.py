"""A vocabulary's files as what a tokenizer is made of: Meta's tokenizer.model, or Hugging Face's tokenizer.json."""

import base64
import binascii
import itertools
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import tiktoken

from ..checks import check_token_id
from ..messages import CheckpointError, expect, reason, short
from . import tokenizer_json
from .added_tokens import AddedToken, AddedTokens
from .chat_template import ChatTemplate, read_chat_template
from .files import (
    GGUF_SUFFIX,
    PARAMS_NAME,
    TOKENIZER_JSON_NAME,
    VOCABULARY_CONFIG_NAME,
    read_bytes,
    read_json,
    what_it_is,
)

# The pattern that cuts a string into pieces before byte-pair encoding; no token crosses a cut.
# From Meta's llama3/tokenizer.py (it is GPT-4's, with runs of up to three digits).
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_BOS, LLAMA3_EOS = "<|begin_of_text|>", "<|end_of_text|>"
_LLAMA3_NAMED = {
    0: LLAMA3_BOS,
    1: LLAMA3_EOS,
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
# Llama 3.1 and later gave names to some that were reserved before (llama-models, llama3/tokenizer.py).
_LLAMA31_NAMED = _LLAMA3_NAMED | {
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    8: "<|eom_id|>",  # the end of a message after which the turn goes on: a call of a tool
    10: "<|python_tag|>",
    11: "<|image|>",
}
_LLAMA3_SPECIAL_COUNT = 256
# What SmolLM2-Instruct's own template writes, for folders that were converted before templates were kept.
_SMOLLM2_VOCABULARY = (49152, {"<|im_start|>": 1, "<|im_end|>": 2, "<empty_output>": 16})
_SMOLLM2_TEMPLATE = """\
{%- if messages[0].role != "system" -%}
{{- "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif -%}
"""
# What models of this architecture close a text, a turn or a call of a tool with.
_ENDINGS = {LLAMA3_EOS, "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>"}

_LARGEST_ID, _LONGEST_PATTERN, _MOST_REPEATS = 2**30, 2000, 10_000
_SAMPLE = "An example, with 1234 things:\n\n  it's the élan of 東京 😀! \t"
_CONFIG_KEYS = ("pattern", "special_tokens", "bos", "eos", "add_bos", "chat_template")


# As in Meta's tokenizer.py, longer runs of letters or of spaces are cut, which keeps the time for a string in bounds.
_LONGEST_RUN = 25_000


class Encoding:
    """tiktoken, for strings of any length and vocabularies without some bytes."""

    def __init__(self, path: Path, ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int]) -> None:
        self.vocab_size = 1 + max(*ranks.values(), *special_tokens.values())
        # tiktoken stops at a byte it has no token for. Some vocabularies lack a few rare ones: those get ids past the
        # end, and are left out, as other engines do.
        missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
        spare = {byte: self.vocab_size + i for i, byte in enumerate(missing)}
        try:
            self._tiktoken = tiktoken.Encoding(
                path.parent.name, pat_str=pattern, mergeable_ranks=ranks | spare, special_tokens=special_tokens
            )
        except Exception as e:
            raise CheckpointError(f"{path}: not usable as a vocabulary ({reason(e)})") from e

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a string, in which nothing is a special token."""
        try:
            ids = [i for part in _cut_long_runs(text) for i in self._tiktoken.encode_ordinary(part)]
        except ValueError as e:
            raise ValueError(f"the pattern of this vocabulary cannot cut this string ({reason(e)})") from e
        return [i for i in ids if i < self.vocab_size]

    def __contains__(self, id: object) -> bool:
        """Whether there is a token of this id."""
        try:
            self.token_bytes(check_token_id(id, self.vocab_size))
        except (TypeError, ValueError):
            return False
        return True

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token. Raises ValueError for an id without one."""
        try:
            return self._tiktoken.decode_single_token_bytes(id)
        except KeyError as e:
            raise ValueError(f"token id {id} has no token in the vocabulary") from e


def _cut_long_runs(text: str) -> Iterable[str]:
    """The string, cut where more than _LONGEST_RUN characters follow each other that are all spaces, or all not."""
    if len(text) <= _LONGEST_RUN:
        return [text]
    cuts = [0, len(text)]
    for run in re.finditer(rf"(?<!\S)\S{{{_LONGEST_RUN},}}|(?<!\s)\s{{{_LONGEST_RUN},}}", text):
        cuts += range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN)
    return (text[start:end] for start, end in itertools.pairwise(sorted(cuts)))


@dataclass
class Vocabulary:
    """What a tokenizer is made of."""

    path: Path
    pattern: str
    special_tokens: dict[str, int]
    added: AddedTokens  # the same, with how each is cut out of a string
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    stop_tokens: set[int]
    words: set[str]  # special tokens that stand for text, and are always read as such
    encoding: Encoding
    chat_template: ChatTemplate | None = None


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read tokenizer.model (with tokenizer_params.json beside it, if that is there) or tokenizer.json.

    A .gguf file has a vocabulary in it. Raises CheckpointError, naming the file, for anything that is not a vocabulary
    of byte-pair encoding.
    """
    expect(path, str | os.PathLike, "the path of a tokenizer must be a string or a Path")
    path = Path(path)
    if path.name == TOKENIZER_JSON_NAME:
        ranks, config = tokenizer_json.read_tokenizer(path)
        where = path
    elif path.suffix.lower() == GGUF_SUFFIX:
        from . import gguf  # and with it a library that nothing else here needs

        ranks, config = gguf.read_tokenizer(path)
        where = path
    else:
        ranks, config = load_ranks(path), _read_config(path.parent / VOCABULARY_CONFIG_NAME)
        where = path.parent / VOCABULARY_CONFIG_NAME if config else path
    pattern = config.get("pattern", LLAMA3_PATTERN)
    special_tokens = config.get("special_tokens")
    if special_tokens is None:
        special_tokens = llama3_special_tokens(max(ranks.values()) + 1, _is_llama31(path.parent))
    first = min(ranks.values(), default=0)
    if first > sum(id < first for id in special_tokens.values()):
        raise CheckpointError(f"{path}: the first rank is {first}; the lines before it are missing")
    _check_vocabulary(where, ranks, special_tokens, config.get("merged", ()), pattern)
    bos_id, eos_id = (
        _special_id(config.get(key, name), special_tokens, where)
        for key, name in (("bos", LLAMA3_BOS), ("eos", LLAMA3_EOS))
    )
    endings = _ENDINGS | set(config.get("stop", ()))
    words = set(config.get("words", ()))
    encoding = Encoding(path, ranks, pattern, special_tokens)
    return Vocabulary(
        path=path,
        pattern=pattern,
        special_tokens=special_tokens,
        added=AddedTokens(config.get("added") or [AddedToken(name, id) for name, id in special_tokens.items()]),
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=config.get("add_bos", True),
        stop_tokens={i for name, i in special_tokens.items() if name in endings or i == eos_id},
        words=words,
        encoding=encoding,
        chat_template=_chat_template(where, config, special_tokens.keys() - words, special_tokens, encoding.vocab_size),
    )


def _chat_template(
    where: Path, config: Mapping[str, Any], control: set[str], special_tokens: dict[str, int], vocab_size: int
) -> ChatTemplate | None:
    """tokenizer_params.json's chat_template, or that of the folder, or SmolLM2's for its vocabulary."""
    source = config.get("chat_template")
    if source is None and where.suffix.lower() == GGUF_SUFFIX:  # what lies beside it may be of another model
        return None
    if source is None:
        size, some = _SMOLLM2_VOCABULARY
        is_smollm2 = where.name == VOCABULARY_CONFIG_NAME and vocab_size == size
        template = read_chat_template(where.parent, control)
        if template or not is_smollm2 or not some.items() <= special_tokens.items():
            return template
        source = _SMOLLM2_TEMPLATE
    tokens = {f"{which}_token": config[which] for which in ("bos", "eos") if which in config}
    return ChatTemplate(where, {"default": source}, tokens, control)


def _special_id(name: str | None, special_tokens: dict[str, int], where: Path) -> int | None:
    if name is None:
        return None
    if name not in special_tokens:
        raise CheckpointError(f"{where}: {short(name)} is not among its special_tokens")
    return special_tokens[name]


def llama3_special_tokens(first_id: int, llama31: bool = False) -> dict[str, int]:
    """Llama 3's 256 special tokens, or those of 3.1 and later: some with a meaning, the others reserved. Ids follow the
    ranks.
    """
    named = _LLAMA31_NAMED if llama31 else _LLAMA3_NAMED
    tokens: dict[str, int] = {}
    reserved = 0
    for i in range(_LLAMA3_SPECIAL_COUNT):
        name = named.get(i)
        if name is None:
            name, reserved = f"<|reserved_special_token_{reserved}|>", reserved + 1
        tokens[name] = first_id + i
    return tokens


def _is_llama31(folder: Path) -> bool:
    """Llama 3 and 3.1 share one tokenizer.model; what tells them apart is in params.json."""
    path = folder / PARAMS_NAME
    return (path.is_symlink() or path.exists()) and read_json(path).get("use_scaled_rope") is True


def load_ranks(path: str | Path) -> dict[bytes, int]:
    """Read tokenizer.model: one token a line, base64 bytes, a space, its rank (which is also its id).

    Raises CheckpointError, naming file and line, if the file is anything else.
    """
    path = Path(path)
    data = read_bytes(path)
    ranks: dict[bytes, int] = {}
    repeated = False
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            if not token or not rank.isdigit():
                raise ValueError("an empty token, or a rank that is not a number")
            repeated |= token in ranks
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as e:
            what = what_it_is(data) or (
                "Llama 3's tokenizer.model is such a text file; Llama 2's is a SentencePiece file, and tokenizer.json "
                "is Hugging Face's own format"
            )
            raise CheckpointError(f"{path}: line {number} is not 'base64 rank': {what}") from e
    if not ranks:
        raise CheckpointError(f"{path}: empty; download it again")
    first = min(ranks.values())
    if repeated or sorted(ranks.values()) != list(range(first, first + len(ranks))):
        raise CheckpointError(f"{path}: tokens or ranks repeat or skip; download it again")
    return ranks


def _check_vocabulary(
    path: Path, ranks: dict[bytes, int], special_tokens: dict[str, int], merged: Collection[str], pattern: str
) -> None:
    """Refuse what tiktoken, which is written in Rust, would end or never end with. `merged`: special tokens that are
    tokens of the merges, too.
    """
    ids = [*ranks.values(), *(id for name, id in special_tokens.items() if name not in merged)]
    if not ranks or not all(isinstance(name, str) and name and _is_text(name) for name in special_tokens):
        raise CheckpointError(f"{path}: no tokens, or a special token without a name; download it again")
    if len(set(ids)) < len(ids):
        raise CheckpointError(f"{path}: an id stands for two tokens, among those of special_tokens; download it again")
    if max(ids) > _LARGEST_ID:
        raise CheckpointError(f"{path}: an id above {_LARGEST_ID}; download it again")
    # A pattern can take any time and memory just to be read: long ones, and repeats of repeats, as in (a{99}){99}.
    counts = re.findall(r"[{,]\s*([0-9]+)", pattern[:_LONGEST_PATTERN])
    too_large = len(pattern) > _LONGEST_PATTERN or math.prod(int(n) or 1 for n in counts) > _MOST_REPEATS
    if too_large or not _is_text(pattern):
        raise CheckpointError(f"{path}: the pattern {short(pattern)} is larger than any model's")
    try:
        pieces = [match[0] for match in regex.finditer(pattern, _SAMPLE, timeout=1)]
    except (regex.error, TimeoutError, RecursionError) as e:
        raise CheckpointError(f"{path}: the pattern {short(pattern)} cannot be used ({reason(e)})") from e
    if "" in pieces:
        raise CheckpointError(f"{path}: the pattern {short(pattern)} cuts out pieces without a character")


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON may hold halves of characters."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_symlink() and not path.exists():
        return {}
    config = read_json(path)
    special = config.get("special_tokens", {})
    if not isinstance(special, dict) or not all(type(i) is int and i >= 0 for i in special.values()):
        raise CheckpointError(f"{path}: special_tokens must be an object of names and ids")
    for key, kind in (("pattern", str), ("bos", str), ("eos", str), ("add_bos", bool)):
        if key in config and type(config[key]) is not kind:
            raise CheckpointError(f"{path}: {key} must be of type {kind.__name__}, not {short(config[key])}")
    return {key: value for key, value in config.items() if key in _CONFIG_KEYS}
