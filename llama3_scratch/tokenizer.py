"""Text to token ids and back: tiktoken over Meta's tokenizer.model, or Hugging Face's tokenizer.json."""

import base64
import binascii
import itertools
import math
import operator
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import regex
import tiktoken

from . import huggingface
from .files import CheckpointError, read_bytes, read_json, what_it_is
from .messages import expect, reason, short

# The pattern that cuts text into pieces before byte-pair encoding; no token crosses a cut.
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
_LLAMA3_SPECIAL_COUNT = 256
# What models of this architecture close a text, a turn or a call of a tool with.
_ENDINGS = {LLAMA3_EOS, "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>"}

# As in Meta's tokenizer.py, longer runs of letters or of spaces are cut, which keeps the time for a text in bounds.
_LONGEST_RUN = 25_000

_LARGEST_ID, _LONGEST_PATTERN, _MOST_REPEATS = 2**30, 2000, 10_000
_SAMPLE = "An example, with 1234 things:\n\n  it's the élan of 東京 😀! \t"

# Optional file beside tokenizer.model, for vocabularies that are not Llama 3's.
CONFIG_NAME = "tokenizer_params.json"
_CONFIG_KEYS = ("pattern", "special_tokens", "bos", "eos", "add_bos")


def llama3_special_tokens(first_id: int) -> dict[str, int]:
    """Llama 3's 256 special tokens: five with a meaning, the others reserved. Ids follow the ranks."""
    tokens, reserved = {}, 0
    for i in range(_LLAMA3_SPECIAL_COUNT):
        name = _LLAMA3_NAMED.get(i)
        if name is None:
            name, reserved = f"<|reserved_special_token_{reserved}|>", reserved + 1
        tokens[name] = first_id + i
    return tokens


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


class Tokenizer:
    """Byte-pair encoding by Meta's tokenizer.model or Hugging Face's tokenizer.json.

    A tokenizer.model has Llama 3's pattern and special tokens, unless a tokenizer_params.json beside it says otherwise.

    Attributes: bos_id and eos_id (the ids that open and close a text), add_bos (whether the model was trained with
    every text opened by bos_id), stop_tokens (ids after which there is nothing more to write: the end of a text, or of
    a turn in a conversation), vocab_size, special_tokens (name -> id).
    """

    def __init__(self, path: str | Path):
        expect(path, str | os.PathLike, "the path of a tokenizer must be a text or a Path")
        self.path = path = Path(path)
        if path.name == huggingface.TOKENIZER_NAME:
            ranks, config = huggingface.read_tokenizer(path)
        else:
            ranks, config = load_ranks(path), _read_config(path.parent / CONFIG_NAME)
        self.pattern = config.get("pattern", LLAMA3_PATTERN)
        self.special_tokens = config.get("special_tokens")
        if self.special_tokens is None:
            self.special_tokens = llama3_special_tokens(first_id=max(ranks.values()) + 1)
        first = min(ranks.values(), default=0)
        if first > sum(id < first for id in self.special_tokens.values()):
            raise CheckpointError(f"{path}: the first rank is {first}; the lines before it are missing")
        where = path.parent / CONFIG_NAME if config and path.name != huggingface.TOKENIZER_NAME else path
        _check_vocabulary(where, ranks, self.special_tokens, self.pattern)
        self.bos_id = self._special_id(config.get("bos", LLAMA3_BOS), path)
        self.eos_id = self._special_id(config.get("eos", LLAMA3_EOS), path)
        self.add_bos = config.get("add_bos", True)
        endings = _ENDINGS | set(config.get("stop", ()))
        self.stop_tokens = {i for name, i in self.special_tokens.items() if name in endings or i == self.eos_id}
        self._words = set(config.get("words", ()))  # added tokens that stand for text, and are always read as such
        self.vocab_size = 1 + max(*ranks.values(), *self.special_tokens.values())
        # tiktoken stops at a byte it has no token for. Some vocabularies lack a few rare ones: those get ids past
        # the end, and encode() leaves them out, as other engines do.
        missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
        spare = {byte: self.vocab_size + i for i, byte in enumerate(missing)}
        try:
            self._encoding = tiktoken.Encoding(
                name=path.parent.name,
                pat_str=self.pattern,
                mergeable_ranks=ranks | spare,
                special_tokens=self.special_tokens,
            )
        except Exception as e:
            raise CheckpointError(f"{path}: not usable as a vocabulary ({reason(e)})") from e

    def _special_id(self, name: str | None, path: Path) -> int | None:
        if name is None:
            return None
        if name not in self.special_tokens:
            raise CheckpointError(f"{path.parent / CONFIG_NAME}: {short(name)} is not among its special_tokens")
        return self.special_tokens[name]

    def encode(
        self, text: str, bos: bool = False, eos: bool = False, allowed_special: str | Collection[str] = ()
    ) -> list[int]:
        """Token ids of `text`, with bos_id before and eos_id after it if asked.

        Special tokens written out in the text, like "<|eot_id|>", are read as plain text: user text never turns into
        a control token. `allowed_special` ("all", or names) lifts this. Raises ValueError where a token is asked for
        that the vocabulary does not have.
        """
        expect(text, str, "a text to encode must be a str")
        expect(allowed_special, Collection, 'allowed_special must be "all" or names of special tokens')
        if (bos and self.bos_id is None) or (eos and self.eos_id is None):
            raise ValueError("this vocabulary has no token to open or to close a text with")
        if isinstance(allowed_special, str) and allowed_special != "all":
            allowed_special = {allowed_special}  # one name, not a collection of letters
        for name in allowed_special:
            expect(name, str, "names of special tokens must be texts")
        allowed = allowed_special if allowed_special == "all" else {*allowed_special, *self._words}
        ids = []
        for part in _cut_long_runs(text):
            try:
                ids += self._encoding.encode(part, allowed_special=allowed, disallowed_special=())
            except ValueError as e:
                raise ValueError(f"the pattern of this vocabulary cannot cut this text ({reason(e)})") from e
        ids = [i for i in ids if i < self.vocab_size]
        return ([self.bos_id] if bos else []) + ids + ([self.eos_id] if eos else [])

    def __contains__(self, id: int) -> bool:
        """Whether the vocabulary has a token of this id."""
        try:
            self.token_bytes(id)
        except (TypeError, ValueError):
            return False
        return True

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Bytes that are not UTF-8 (half of an emoji, say) become U+FFFD."""
        if not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:
            raise TypeError(f"decode takes a list of ids, not {short(ids)}")
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token. Raises ValueError for an id without one, TypeError for an id that is no integer."""
        try:
            id = operator.index(id)
        except TypeError as e:
            raise TypeError(f"a token id must be an integer, not {short(id)}") from e
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {short(id)} is outside the vocabulary, 0 to {self.vocab_size - 1}")
        try:
            return self._encoding.decode_single_token_bytes(id)
        except KeyError as e:
            raise ValueError(f"token id {id} has no token in the vocabulary") from e


def _cut_long_runs(text: str) -> Iterable[str]:
    """The text, cut where more than _LONGEST_RUN characters follow each other that are all spaces, or all not."""
    if len(text) <= _LONGEST_RUN:
        return [text]
    cuts = [0, len(text)]
    for run in re.finditer(rf"(?<!\S)\S{{{_LONGEST_RUN},}}|(?<!\s)\s{{{_LONGEST_RUN},}}", text):
        cuts += range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN)
    return (text[start:end] for start, end in itertools.pairwise(sorted(cuts)))


def _check_vocabulary(path: Path, ranks: dict[bytes, int], special_tokens: dict[str, int], pattern: str):
    """Refuse what tiktoken, which is written in Rust, would end or never end with."""
    ids = [*ranks.values(), *special_tokens.values()]
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


def _read_config(path: Path) -> dict:
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
