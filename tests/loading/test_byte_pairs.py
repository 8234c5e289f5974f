"""A vocabulary learned from a text: each token joins a most frequent pair, as counted anew every time, and as the
tokenizers library learns it.
"""

from collections import Counter
from itertools import pairwise

import pytest
import regex
from helpers import CORPUS, LLAMA3_STEPS, naming, printed, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as TheirTokenizer
from tokenizers import models, pre_tokenizers, trainers

from llama3_scratch import Tokenizer
from llama3_scratch.loading import byte_pairs
from llama3_scratch.loading.byte_pairs import SPECIAL_TOKENS, learn_merges, learn_vocabulary, write_vocabulary
from llama3_scratch.loading.vocabulary import LLAMA3_PATTERN
from llama3_scratch.training import read_text


def counted_anew(text, count, pattern=LLAMA3_PATTERN):
    """What is joined, and whether another pair was as frequent, each time with all pairs counted from the beginning."""
    times = Counter(regex.findall(pattern, text))
    pieces = [[bytes([byte]) for byte in piece.encode()] for piece in times]
    joins = []
    for _ in range(count):
        pairs = Counter()
        for piece, n in zip(pieces, times.values(), strict=True):
            for pair in pairwise(piece):
                pairs[pair] += n
        if not pairs:
            break
        (best, most), *others = pairs.most_common(2)  # of equally frequent ones, the one that was seen first
        joins.append((best, bool(others) and others[0][1] == most))
        pieces = [joined(piece, best) for piece in pieces]
    return joins


def joined(piece, pair):
    """As the notebook writes it, with the first of several that overlap."""
    text = []
    for part in piece:
        text.append(part)
        if len(text) > 1 and (text[-2], text[-1]) == pair and not isinstance(text[-2], bytearray):
            text[-2:] = [bytearray(text[-2] + text[-1])]  # marked, so that it is not joined again this time
    return [bytes(part) for part in text]


letters = st.text("ab", max_size=30) | st.text("aA 1\n'", max_size=40)


@settings(max_examples=60)
@given(text=st.lists(letters | texts, max_size=6).map(" ".join))
def test_each_token_joins_the_most_frequent_pair_and_of_several_the_first(text):
    expected = [left + right for (left, right), _ in counted_anew(text, 25)]
    learned = learn_merges(text, 25)
    assert learned == expected
    assert len(set(learned)) == len(learned)  # or a vocabulary would have fewer tokens than names


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, r"\w+|\W+", r"[\s\S]"])
def test_it_joins_within_the_pieces_of_a_pattern(pattern):
    text = " ".join(CORPUS)
    assert learn_merges(text, 40, pattern) == [left + right for (left, right), _ in counted_anew(text, 40, pattern)]


def test_the_merges_of_a_book_are_those_of_the_tokenizers_library_as_far_as_they_are_certain():
    """Until two pairs are equally frequent: then the library takes another one, and all that follows may differ."""
    text = read_text()
    joins = counted_anew(text, 50)
    certain = next((i for i, (_, tie) in enumerate(joins) if tie), len(joins))
    assert certain > 40
    theirs = TheirTokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(LLAMA3_STEPS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=256 + certain, initial_alphabet=alphabet, show_progress=False)
    )
    ids = theirs.get_vocab()
    assert [ids[printed(token)] for token in learn_merges(text, certain)] == list(range(256, 256 + certain))


def test_the_book_gives_the_words_of_the_book():
    learned = learn_merges(read_text(), 253)
    assert learned[:2] == [b" t", b"he"] and {b" Alice", b" said", b" the"} <= set(learned)


@pytest.mark.parametrize("text", ["", "a", "a b c d", "\n"])
def test_a_text_without_pairs_gives_nothing(text):
    assert learn_merges(text, 5, r"\w|\s") == []


def test_a_text_that_is_used_up_gives_what_it_has():
    assert learn_merges("abcd", 100) == [b"ab", b"abc", b"abcd"]
    assert learn_merges("😀", 100) == ["😀".encode()[:n] for n in (2, 3, 4)]


# Written and read


def test_a_learned_vocabulary_opens_as_a_tokenizer_with_its_sizes(tmp_path):
    text = " ".join(CORPUS)
    learn_vocabulary(text, 300, tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.vocab_size == 300
    assert tokenizer.special_tokens == {name: i for i, name in enumerate(SPECIAL_TOKENS)}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, False)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    learned = learn_merges(text, 300 - 259)
    assert [tokenizer.token_bytes(i) for i in range(3, 300)] == [bytes([b]) for b in range(256)] + learned


@settings(max_examples=150)
@given(text=texts)
def test_every_text_can_be_written_in_it(learned_tokenizer, text):
    ids = learned_tokenizer.encode(text)
    assert learned_tokenizer.decode(ids) == text
    assert len(ids) <= len(text.encode())


@pytest.fixture(scope="module")
def learned_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    learn_vocabulary(" ".join(CORPUS), 320, folder)
    return Tokenizer(folder / "tokenizer.model")


def test_its_ids_for_the_text_are_what_was_joined(learned_tokenizer):
    """Joining by rank gives the state that learning ended with."""
    text, joins = " ".join(CORPUS), counted_anew(" ".join(CORPUS), 320 - 259)
    for piece in regex.findall(LLAMA3_PATTERN, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        for pair, _ in joins:
            parts = joined(parts, pair)
        assert [learned_tokenizer.token_bytes(i) for i in learned_tokenizer.encode(piece)] == parts


def test_without_special_tokens_it_has_llama_3s(tmp_path):
    write_vocabulary(tmp_path, [b"ab"])
    tokenizer = Tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.vocab_size == 257 + 256 and "<|begin_of_text|>" in tokenizer.special_tokens
    assert tokenizer.encode("ab") == [256]


@pytest.mark.parametrize(
    ("text", "vocab_size", "words"),
    [
        ("abcd", 263, "262 263"),
        ("", 260, "259 260"),
        ("😀 😀", 300, "263 300"),
        ("hello", 258, "258 259"),
        ("hello", 0, "0 259"),
        ("hello", -5, "-5 259"),
    ],
)
def test_a_vocabulary_that_the_text_cannot_give_is_refused_and_nothing_is_written(tmp_path, text, vocab_size, words):
    with pytest.raises(ValueError, match=naming(words)):
        learn_vocabulary(text, vocab_size, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_vocabulary_is_bytes_alone(tmp_path):
    learn_vocabulary("hello", 259, tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.encode("hé") == [3 + byte for byte in "hé".encode()]


def test_a_book_is_learned_in_seconds_and_not_in_minutes(monkeypatch):
    """Pairs are counted once, and then only where something was joined."""
    counted = []
    real = byte_pairs._count
    monkeypatch.setattr(byte_pairs, "_count", lambda *arguments: (counted.append(1), real(*arguments)))
    text = read_text()[:30_000]
    learn_merges(text, 100)
    pieces = len(set(regex.findall(LLAMA3_PATTERN, text)))
    assert len(counted) < 12 * pieces < 100 * pieces
