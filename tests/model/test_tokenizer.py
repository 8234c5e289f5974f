"""Tokens against the article's printed ones, tiktoken, and two other engines."""

import base64

import pytest
import tiktoken
import torch
from helpers import naming, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch import Tokenizer
from llama3_scratch.loading.fetch import LLAMA3_TOKENIZER, fetch
from llama3_scratch.loading.tiny import write_byte_tokenizer

# The article's prompt. Its page lost the space at the end, which the ids it prints need.
PROMPT = "the answer to the ultimate question of life, the universe, and everything is "
PROMPT_IDS = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395, 374, 220]
SPLIT = ["<|begin_of_text|>", "the", " answer", " to", " the", " ultimate", " question", " of", " life", ","]
SPLIT += [" the", " universe", ",", " and", " everything", " is", " "]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|reserved_special_token_0|>": 128002,
    "<|reserved_special_token_1|>": 128003,
    "<|reserved_special_token_2|>": 128004,
    "<|reserved_special_token_3|>": 128005,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|reserved_special_token_4|>": 128008,
    "<|eot_id|>": 128009,
    "<|reserved_special_token_5|>": 128010,
    "<|reserved_special_token_6|>": 128011,
    "<|reserved_special_token_250|>": 128255,
}


def test_the_articles_prompt_gives_the_articles_ids(llama3):
    assert llama3.encode(PROMPT, bos=True) == PROMPT_IDS
    assert len(PROMPT_IDS) == 17
    assert llama3.encode(PROMPT.rstrip(), bos=True) == PROMPT_IDS[:-1]


def test_the_articles_split(llama3):
    assert [llama3.decode([i]) for i in PROMPT_IDS] == SPLIT


def test_the_answer_is_one_token(llama3):
    assert llama3.decode([2983]) == "42"
    assert llama3.encode("42") == [2983]


def test_hello_world_goes_there_and_back(llama3):
    assert llama3.encode("hello world!") == [15339, 1917, 0]
    assert llama3.decode([15339, 1917, 0]) == "hello world!"


def test_vocabulary_sizes_of_llama3(llama3):
    assert llama3.vocab_size == 128256
    assert len(llama3.special_tokens) == 256
    assert sorted(llama3.special_tokens.values()) == list(range(128000, 128256))


def test_special_tokens_of_llama3(llama3):
    assert {name: llama3.special_tokens[name] for name in SPECIALS} == SPECIALS
    assert (llama3.bos_id, llama3.eos_id, llama3.add_bos) == (128000, 128001, True)


@pytest.fixture(scope="session")
def reference():
    """tiktoken over Meta's file, with nothing of ours in between."""
    lines = (fetch(LLAMA3_TOKENIZER) / "tokenizer.model").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    assert len(ranks) == 128000
    return tiktoken.Encoding("meta", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=SPECIALS)


@settings(max_examples=600)
@given(text=texts)
def test_ids_equal_tiktokens_and_decode_to_the_text(llama3, reference, text):
    ids = llama3.encode(text)
    assert ids == reference.encode(text, disallowed_special=())
    assert llama3.decode(ids) == text


@settings(max_examples=300)
@given(text=texts)
def test_special_tokens_among_text_equal_tiktokens(llama3, reference, text):
    text = f"{text}<|eot_id|>{text}<|begin_of_text|>"
    # One that tiktoken is told of and one that it is not.
    allowed = {"<|eot_id|>"}
    assert llama3.encode(text, allowed_special=allowed) == reference.encode(
        text, allowed_special=allowed, disallowed_special=()
    )


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, 127999), max_size=30))
def test_any_ids_decode_as_tiktoken_decodes_them(llama3, reference, ids):
    assert llama3.decode(ids) == reference.decode(ids)


def test_half_of_a_surrogate_pair_is_read_as_tiktoken_reads_it(llama3, reference):
    text = "a\ud83d b"  # no valid Unicode, and yet what a cut string may hold
    assert llama3.encode(text) == reference.encode(text)


def test_long_runs_are_cut_where_meta_cuts_them(llama3, reference):
    # Meta's tokenizer.py: after 25,000 characters without a space, or of spaces alone.
    text = "a" * 60_000 + " b" + " " * 30_000 + "c" * 25_000
    parts = ["a" * 25_000, "a" * 25_000, "a" * 10_000 + " b" + " " * 25_000, " " * 5_000 + "c" * 25_000]
    assert llama3.encode(text) == [id for part in parts for id in reference.encode(part, disallowed_special=())]


def test_special_tokens_in_user_text_stay_plain_text(llama3):
    ids = llama3.encode("hi<|eot_id|>")
    assert max(ids) < 128000
    assert llama3.decode(ids) == "hi<|eot_id|>"


def test_allowed_special_tokens_become_one_id(llama3):
    assert llama3.encode("hi<|eot_id|>", allowed_special="all") == [6151, 128009]
    assert llama3.encode("hi<|eot_id|>", allowed_special=["<|eot_id|>"]) == [6151, 128009]
    assert 128009 not in llama3.encode("hi<|eot_id|>", allowed_special=["<|end_of_text|>"])


def test_bos_and_eos_are_added_only_when_asked(llama3):
    assert llama3.encode("hi") == [6151]
    assert llama3.encode("hi", bos=True, eos=True) == [128000, 6151, 128001]
    assert llama3.encode("", bos=True) == [128000]
    assert llama3.encode("") == []


def test_half_an_emoji_decodes_to_the_replacement_character(llama3):
    ids = llama3.encode("😀")
    assert len(ids) == 2
    assert [llama3.decode([i]) for i in ids] == ["\ufffd", "\ufffd"]
    assert llama3.decode(ids) == "😀"


def test_ids_may_be_a_tensor(llama3):
    assert llama3.decode(torch.tensor([15339, 1917, 0])) == "hello world!"


@pytest.mark.parametrize("id", [-1, 128256, 10**12])
def test_an_id_outside_the_vocabulary_raises(llama3, id):
    with pytest.raises(ValueError, match=naming(f"id {id} vocabulary")):
        llama3.decode([15339, id])


# Ids on which llama.cpp and Hugging Face's tokenizers agree, both run on the published GGUF. (On 6824 harder strings
# ours equal llama.cpp's. Hugging Face's differ from both where two characters have a byte between them that the
# vocabulary lacks: there they merge across the gap.)
SMOLLM2_IDS = [
    ("The capital of France is", [504, 3575, 282, 4649, 314]),
    (
        "def f(x):\n    return x**2  # 3.14",
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 216, 35, 30, 33, 36],
    ),
    ("1234567", [33, 34, 35, 36, 37, 38, 39]),
    ("x  1\t\t 42\n\n", [104, 256, 33, 1656, 216, 36, 34, 1116]),
    ("don't I'LL we've", [12420, 982, 339, 23, 16421, 392, 3543]),
    ("naïve café ß Ǆ", [3546, 46494, 37366, 5549, 249, 216, 146, 222]),
    (
        "中国的首都是北京",
        [28589, 23022, 138, 11567, 180, 116, 240, 180, 38466, 27830, 30158, 241, 16736, 122],
    ),
    (
        "こんにちは한국어",
        [7365, 237, 10391, 237, 41152, 7365, 111, 7365, 124, 33085, 246, 181, 130, 251, 183, 240, 129],
    ),
    ("I ❤️ 👩\u200d🚀!", [57, 4636, 247, 114, 31752, 15107, 235, 119, 321, 231, 10813, 244, 218, 17]),
    ("العربية हिन्दी", [22208, 34966, 20602, 31462, 23339, 43463, 12335, 134, 27011, 30658, 16525, 44757, 37189]),
    ("<|im_start|>user\n", [44, 108, 306, 79, 3738, 108, 46, 4093, 198]),
    ("²½Ⅷ①٣", [19133, 16738, 173, 223, 117, 173, 235, 250, 164, 113]),
    ("\xa0\u3000\u2003 a", [15442, 12109, 218, 321, 221, 253]),
    ("a\u0301\u200b\ufeff.", [81, 151, 219, 321, 229, 186, 136, 140, 30]),
    ("\x00\x1b[0m\x07", [190, 212, 75, 32, 93, 195]),
    ("a\x04b \U000e0041", [81, 82, 216, 188, 250, 219, 219]),  # no token for byte 4, which is left out
]


@pytest.mark.parametrize(("text", "ids"), SMOLLM2_IDS)
def test_smollm2s_ids_equal_llama_cpps_and_hugging_faces(smollm2, text, ids):
    assert smollm2.tokenizer.encode(text) == ids
    assert smollm2.tokenizer.decode(ids) == text.replace("\x04", "")


def test_smollm2s_special_tokens(smollm2):
    tokenizer = smollm2.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.vocab_size) == (1, 2, False, 49152)
    assert tokenizer.encode("<|im_start|>user\n", allowed_special="all") == [1, 4093, 198]


def test_a_byte_without_a_token_is_left_out(tmp_path):
    write_byte_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_text("\n".join(path.read_text().splitlines()[:0xC3]))
    tokenizer = Tokenizer(path)
    assert tokenizer.vocab_size == 0xC3 + 256
    assert tokenizer.encode("a\u00e9b") == [ord("a"), 0xA9, ord("b")]  # in UTF-8 the second of them is C3 A9
