"""Strings to token ids and back: byte-pair encoding, by tiktoken."""

from collections.abc import Collection, Iterable
from pathlib import Path

from .checks import check_allowed_special, check_bos_or_eos, check_ids, check_token_id
from .messages import expect


class Tokenizer:
    """Byte-pair encoding by Meta's tokenizer.model or Hugging Face's tokenizer.json.

    A tokenizer.model has Llama 3's pattern and special tokens, unless a tokenizer_params.json beside it says otherwise.

    Attributes: bos_id and eos_id (the ids that open and close a text), add_bos (whether the model was trained with
    every text opened by bos_id), stop_tokens (ids after which there is nothing more to write: the end of a text, or of
    a turn in a conversation), vocab_size, special_tokens (name -> id), pattern (cuts a string before any merge),
    words (special ones that stand for text, read as such), chat_template (of the folder, if it has one).
    """

    def __init__(self, path: str | Path) -> None:
        from .loading.vocabulary import read_vocabulary  # the door to files

        vocabulary = read_vocabulary(path)
        self.path, self.pattern, self.special_tokens = vocabulary.path, vocabulary.pattern, vocabulary.special_tokens
        self.bos_id, self.eos_id, self.add_bos = vocabulary.bos_id, vocabulary.eos_id, vocabulary.add_bos
        self.stop_tokens, self.vocab_size = vocabulary.stop_tokens, vocabulary.encoding.vocab_size
        self.chat_template = vocabulary.chat_template
        self.words, self._added, self._encoding = vocabulary.words, vocabulary.added, vocabulary.encoding

    def encode(
        self, text: str, bos: bool = False, eos: bool = False, allowed_special: str | Collection[str] = ()
    ) -> list[int]:
        """Token ids of the string `text`, with bos_id before and eos_id after it if asked.

        Special tokens written out in it, like "<|eot_id|>", are read as plain text: a user's words never turn into
        a control token. `allowed_special` ("all", or names) lifts this. Raises ValueError where a token is asked for
        that the vocabulary does not have.
        """
        expect(text, str, "a text to encode must be a str")
        names = check_allowed_special(allowed_special, self.special_tokens) | self.words
        ids = [check_bos_or_eos(self.bos_id)] if bos else []
        for piece in self._added.cut_out(names, text):
            ids += [piece] if isinstance(piece, int) else self._encoding.encode_ordinary(piece)
        return ids + ([check_bos_or_eos(self.eos_id)] if eos else [])

    def __contains__(self, id: int) -> bool:
        """Whether the vocabulary has a token of this id."""
        return id in self._encoding

    def decode(self, ids: Iterable[int]) -> str:
        """The string of the ids. Bytes that are not UTF-8 (half of an emoji, say) become U+FFFD."""
        check_ids(ids)
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token. Raises ValueError for an id without one, TypeError for an id that is no integer."""
        return self._encoding.token_bytes(check_token_id(id, self.vocab_size))
