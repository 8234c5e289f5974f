"""Byte-pair encoding, learned: the vocabulary of a model that starts from nothing. Notebook 1 builds it by hand."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import regex

from ..messages import progress
from .files import write_ranks
from .vocabulary import LLAMA3_PATTERN

BYTES = 256
# Those of a vocabulary that is learned here. The second and third open and close a text.
SPECIAL_TOKENS = ("<|pad|>", "<|start|>", "<|stop|>")

Pair = tuple[bytes, bytes]


def learn_merges(text: str, count: int, pattern: str = LLAMA3_PATTERN) -> list[bytes]:
    """The tokens that byte-pair encoding learns from a text, in order: `count` of them, or fewer where every piece has
    become one token.

    The text is cut into pieces by the pattern. Then, again and again, the most frequent pair of neighbours becomes a
    token (Sennrich et al. 2016, arXiv:1508.07909); of equally frequent ones, the pair that the text has first.
    """
    counts = Counter(regex.findall(pattern, text))
    words = [[bytes([byte]) for byte in piece.encode("utf-8")] for piece in counts]
    times = list(counts.values())
    pairs: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # the words that have, or had, a pair
    for i, word in enumerate(words):
        _count(pairs, where, word, i, times[i])
    learned: list[bytes] = []
    for _ in progress(range(count), "learning tokens", "token"):
        most = max(pairs.values(), default=0)
        if not most:
            break
        best = _first(words, where, {pair for pair, n in pairs.items() if n == most})
        learned.append(b"".join(best))
        for i in sorted(where.pop(best)):
            for pair in pairwise(words[i]):
                pairs[pair] -= times[i]
            words[i] = _joined(words[i], best)
            _count(pairs, where, words[i], i, times[i])
    return learned


def _count(pairs: Counter[Pair], where: defaultdict[Pair, set[int]], word: list[bytes], i: int, times: int) -> None:
    for pair in pairwise(word):
        pairs[pair] += times
        where[pair].add(i)


def _first(words: Sequence[Sequence[bytes]], where: Mapping[Pair, set[int]], best: set[Pair]) -> Pair:
    """The one of these pairs that the words have first."""
    if len(best) == 1:
        return next(iter(best))
    candidates = sorted(set().union(*(where[pair] for pair in best)))  # some had one, and have no longer
    return next(pair for i in candidates for pair in pairwise(words[i]) if pair in best)


def _joined(word: list[bytes], pair: Pair) -> list[bytes]:
    """A word with the two made one wherever they follow each other, from the left."""
    joined: list[bytes] = []
    i = 0
    while i < len(word):
        two = tuple(word[i : i + 2]) == pair
        joined.append(b"".join(pair) if two else word[i])
        i += 1 + two
    return joined


def learn_vocabulary(text: str, vocab_size: int, folder: Path) -> None:
    """Write a vocabulary of so many tokens into a folder: three special ones, the 256 bytes, and what `learn_merges`
    learns from the text. Raises ValueError where the text has too few pairs for that, or bytes alone are more.
    """
    fixed = BYTES + len(SPECIAL_TOKENS)
    if vocab_size < fixed:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for {fixed} bytes and special tokens")
    learned = learn_merges(text, vocab_size - fixed)
    if fixed + len(learned) < vocab_size:
        raise ValueError(f"this text gives {fixed + len(learned)} tokens at most, and not {vocab_size}")
    write_vocabulary(folder, learned, SPECIAL_TOKENS)


def write_vocabulary(folder: Path, learned: Sequence[bytes], special_tokens: Sequence[str] = ()) -> None:
    """Write a tokenizer.model with one token for each byte, then those that were learned.

    With `special_tokens`, these come first and the ranks after them, as in SmolLM2; the second and third of them open
    and close a text. Without, they are Llama 3's.
    """
    tokens = [bytes([b]) for b in range(BYTES)] + list(learned)
    ranks = {token: id for id, token in enumerate(tokens, start=len(special_tokens))}
    config = None
    if special_tokens:
        config = {
            "pattern": LLAMA3_PATTERN,
            "special_tokens": {name: i for i, name in enumerate(special_tokens)},
            "bos": special_tokens[1],
            "eos": special_tokens[2],
            "add_bos": False,
        }
    write_ranks(folder, ranks, config)
