"""Tokens that are cut out of a string before anything else: control tokens, and words added to a vocabulary."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import regex

# What the tokenizers library, which is written in Rust, takes for a space and for part of a word. Python's differ.
_SPACE = regex.compile(r"\p{White_Space}")
_WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


@dataclass(frozen=True)
class AddedToken:
    """A token with its flags, as tokenizer.json has them.

    special: a control token, else a word. lstrip and rstrip: spaces before and behind it belong to it. single_word:
    it counts only where no word goes on at its ends. normalized: looked for after all that are not.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class AddedTokens:
    """Cuts them out. Where one begins with another, the longer one counts."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.tokens = list(tokens)

    def cut_out(self, names: Collection[str], text: str) -> list[int | str]:
        """The string, in pieces, with the id of a token in the place of each of these names."""
        pieces: list[int | str] = [text]
        for normalized in (False, True):
            tokens = {t.content: t for t in self.tokens if t.content in names and t.normalized == normalized}
            if tokens:
                old, pieces = pieces, []
                for piece in old:
                    pieces += _cut_out(tokens, piece) if isinstance(piece, str) else [piece]
        return pieces


def _cut_out(tokens: dict[str, AddedToken], text: str) -> Iterable[int | str]:
    end = 0  # of what is done
    for match in _any_of(tuple(tokens)).finditer(text):
        token, (start, stop) = tokens[match[0]], match.span()
        if token.single_word and (_WORD.match(text, stop) or (start > 0 and _WORD.match(text, start - 1))):
            continue
        while token.lstrip and start > end and _SPACE.match(text, start - 1):
            start -= 1
        start = max(start, end) if token.lstrip else start  # all of it may be space that the last one took
        while token.rstrip and _SPACE.match(text, stop):
            stop += 1
        if start < stop:
            yield from (text[end:start], token.id)
            end = stop
    yield text[end:]


@lru_cache(maxsize=16)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
