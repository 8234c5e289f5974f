"""Everything that tokenizer.json and the files beside it can say: read as its own library reads it, or refused."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as TheirTokenizer
from transformers import AutoTokenizer

from llama3_scratch import CheckpointError, Tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = [("c", "o"), ("v", "i"), ("co", "vi"), ("covi", "d"), ("o", "n"), ("on", "e"), ("Ġ", "one"), ("1", "9")]


def vocabulary(merges=MERGES, steps=None, **model):
    """One token a byte, then the merges in their order."""
    vocab = {character: i for i, character in enumerate(ALPHABET)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = TheirTokenizer(models.BPE(vocab, merges, **model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        steps
        or [
            pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def written(tokenizer, folder, edit=lambda content: None, **files):
    """The folder of a tokenizer, its JSON edited, with other files beside it."""
    content = json.loads(tokenizer.to_str())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name, other in files.items():
        (folder / f"{name}.json").write_text(json.dumps(other))
    return folder / "tokenizer.json"


def refused(path, *words):
    with pytest.raises(CheckpointError) as raised:
        Tokenizer(path)
    message = str(raised.value)
    assert str(path.parent) in message and len(message) < 600 and "\n" not in message
    for word in words:
        assert word in message, message


# Added tokens

FLAGS = [dict(zip(("lstrip", "rstrip", "single_word"), on, strict=True)) for on in itertools.product([0, 1], repeat=3)]
CONTENTS = ["covid", "covid-19", "one", "on", "  ", "\n", "<tool>", "<tool", "é", "id"]


@st.composite
def added_tokens(draw):
    contents = draw(st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=5, unique=True))
    return [
        AddedToken(
            content, normalized=draw(st.booleans()), **{k: bool(v) for k, v in draw(st.sampled_from(FLAGS)).items()}
        )
        for content in contents
    ]


pieces = st.sampled_from(
    [*CONTENTS, "co", "vid", "-", "19", " ", "   ", "_", "ing", "\u0301", "½", "\u00a0", "\x1c", "a"]
)


@settings(max_examples=150)
@given(words=added_tokens(), texts=st.lists(st.lists(pieces, max_size=8).map("".join), min_size=1, max_size=4))
def test_words_are_cut_out_as_the_library_does(tmp_path_factory, words, texts):
    theirs = vocabulary()
    theirs.add_tokens(words)
    ours = Tokenizer(written(theirs, tmp_path_factory.mktemp("words")))
    for text in texts:
        assert ours.encode(text) == theirs.encode(text).ids, text


@settings(max_examples=100)
@given(tokens=added_tokens(), texts=st.lists(st.lists(pieces, max_size=8).map("".join), min_size=1, max_size=4))
def test_control_tokens_are_where_they_are_allowed_and_nowhere_else(tmp_path_factory, tokens, texts):
    theirs, plain = vocabulary(), vocabulary()
    theirs.add_special_tokens(tokens)
    ours = Tokenizer(written(theirs, tmp_path_factory.mktemp("special")))
    for text in texts:
        assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids, text
        assert ours.encode(text) == plain.encode(text).ids, text


def test_an_added_word_that_merges_make_as_well_is_one_token(tmp_path):
    theirs = vocabulary()
    theirs.add_tokens(["covid", "o"])
    ours = Tokenizer(written(theirs, tmp_path))
    for text in ("covid", "xcovid19", " covidone", "coo"):
        assert ours.encode(text) == theirs.encode(text).ids
    assert ours.decode(ours.encode("a covid one")) == "a covid one"
    assert ours.vocab_size == theirs.get_vocab_size()


def decoder(content, **flags):
    same = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    return {"content": content, **same, **flags}


NEXT = len(ALPHABET) + len(MERGES)  # the id of the first added token


@pytest.mark.parametrize(
    "beside",
    [
        {"tokenizer_config": {"added_tokens_decoder": {str(NEXT + 1): decoder("new")}}},
        {"tokenizer_config": {"added_tokens_decoder": {str(NEXT): decoder("word"), str(NEXT + 1): decoder("new")}}},
        {"tokenizer_config": {"added_tokens_decoder": {str(NEXT + 1): decoder("new", rstrip=True)}}},
        {"added_tokens": {"new": NEXT + 1, "word": NEXT}},
        {"added_tokens": {"covid": ALPHABET.__len__() + 3}},
    ],
    ids=["one more", "one again", "with a flag", "in the older file", "a token of the merges"],
)
def test_tokens_that_only_a_file_beside_it_adds_are_read_as_transformers_does(tmp_path, beside):
    theirs = vocabulary()
    theirs.add_tokens(["word"])
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    files = {"tokenizer_config": {}} | beside
    files["tokenizer_config"] = {"tokenizer_class": "PreTrainedTokenizerFast", **files["tokenizer_config"]}
    ours = Tokenizer(written(theirs, tmp_path, **files))
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a new word", "anew  words", "new  covid"):
        assert ours.encode(text) == reference(text)["input_ids"], text


@pytest.mark.parametrize(
    ("beside", "file"),
    [
        ({"tokenizer_config": {"added_tokens_decoder": {str(NEXT + 5): decoder("new")}}}, "tokenizer_config"),
        ({"tokenizer_config": {"added_tokens_decoder": {str(NEXT): decoder("new")}}}, "tokenizer_config"),
        ({"tokenizer_config": {"added_tokens_decoder": {str(NEXT + 1): decoder("word")}}}, "tokenizer_config"),
        ({"tokenizer_config": {"added_tokens_decoder": {str(NEXT): decoder("word", lstrip=True)}}}, "tokenizer_config"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {str(NEXT): decoder("word", special=True)}}},
            "tokenizer_config",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": decoder("word")}}}, "tokenizer_config"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "tokenizer_config"),
        ({"added_tokens": {"word": 3}}, "added_tokens"),
        ({"added_tokens": {"new": "3"}}, "added_tokens"),
    ],
)
def test_files_that_contradict_it_are_refused(tmp_path, beside, file):
    theirs = vocabulary()
    theirs.add_tokens(["word"])
    refused(written(theirs, tmp_path, **beside), f"{file}.json")


def test_the_closing_token_of_special_tokens_map_counts_as_in_transformers(tmp_path):
    theirs = vocabulary()
    theirs.add_special_tokens(["<a>", "<b>"])
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<a>", "bos_token": "<b>"}
    path = written(theirs, tmp_path, tokenizer_config=config, special_tokens_map={"eos_token": "<b>"})
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert (Tokenizer(path).eos_id, Tokenizer(path).bos_id) == (reference.eos_token_id, reference.bos_token_id)


# Merges


def random_merges(draw):
    """Merges of tokens that are there already, of two letters, in any order: most make what they say, some do not."""
    tokens, merges = ["a", "b"], []
    for _ in range(draw(st.integers(1, 7))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            tokens.append("".join(pair))
    return merges


@settings(max_examples=150)
@given(data=st.data(), ignore_merges=st.booleans(), texts=st.lists(st.text("ab", max_size=12), min_size=3, max_size=9))
def test_any_list_of_merges_is_followed_or_refused(tmp_path_factory, data, ignore_merges, texts):
    theirs = vocabulary(random_merges(data.draw), ignore_merges=ignore_merges)
    try:
        ours = Tokenizer(written(theirs, tmp_path_factory.mktemp("merges")))
    except CheckpointError as e:
        assert "merge" in str(e)
        return
    for text in [*texts, *theirs.get_vocab()]:
        assert ours.encode(text) == theirs.encode(text).ids, text


UNREACHABLE = [("a", "b"), ("b", "c"), ("a", "bc")]  # "abc" is never made: "ab" comes first


def test_a_token_that_its_merges_do_not_make_is_refused_by_name(tmp_path):
    assert vocabulary(UNREACHABLE).encode("abc").tokens == ["ab", "c"]
    refused(written(vocabulary(UNREACHABLE), tmp_path), "tokenizer.json", "'abc'")
    refused(written(vocabulary(UNREACHABLE, ignore_merges=True), tmp_path), "'abc'")  # "xabc" has it in parts


def test_where_whole_pieces_are_taken_as_they_are_all_halves_must_be_listed(tmp_path):
    # As in Llama 3: no merges lead to "abcd", but either of its halves makes it, and it is taken whole.
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    theirs = vocabulary(merges, ignore_merges=True)
    ours = Tokenizer(written(theirs, tmp_path))
    for text in ("abc", "xabc", "abcabc", "bcab"):
        assert ours.encode(text) == theirs.encode(text).ids


def test_merges_in_another_order_say_which(tmp_path):
    def edit(content):
        content["model"]["merges"][:2] = content["model"]["merges"][1::-1]

    refused(written(vocabulary(), tmp_path, edit), "'co'", "'vi'", "order of the merges")


# What else the file can say

SECTIONS = {
    "dropout": lambda c: c["model"].update(dropout=0.1),
    "a prefix of what goes on": lambda c: c["model"].update(continuing_subword_prefix="##"),
    "an ending of words": lambda c: c["model"].update(end_of_word_suffix="</w>"),
    "bytes that are missing": lambda c: (c["model"]["vocab"].pop("Ā"), c["model"].update(byte_fallback=True)),
    "a token for what is missing": lambda c: (c["model"]["vocab"].pop("Ā"), c["model"].update(unk_token="a")),
    "lower case": lambda c: c.update(normalizer={"type": "Lowercase"}),
    "a step in a sequence in a sequence": lambda c: c.update(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFC"}]}]}
    ),
    "another decoder": lambda c: c.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
    "a space before": lambda c: c.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
    "cut twice": lambda c: c["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True}),
    "merged with what is before": lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(
        behavior="MergedWithPrevious"
    ),
    "RoBERTa's opening and closing": lambda c: c.update(
        post_processor={"type": "RobertaProcessing", "sep": ["a", 1], "cls": ["b", 2]}
    ),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_not_followed_is_refused(tmp_path, section):
    refused(written(vocabulary(), tmp_path, SECTIONS[section]), "tokenizer.json")


def template(single, ids=("<a>", "<b>")):
    tokens = {name: {"id": name, "ids": [NEXT + i], "tokens": [name]} for i, name in enumerate(ids)}
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in single
    ]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens}


@pytest.mark.parametrize(
    ("single", "known"),
    [
        (["<a>", "A"], True),
        (["A"], True),
        (["A", "<b>"], False),
        (["<a>", "<b>", "A"], False),
        (["<a>", "A", "<b>"], 0),
    ],
)
def test_what_is_put_around_a_text_is_one_token_before_it_or_refused(tmp_path, single, known):
    theirs = vocabulary()
    theirs.add_special_tokens(["<a>", "<b>"])
    path = written(theirs, tmp_path, lambda content: content.update(post_processor=template(single)))
    if not known:
        refused(path, "post_processor")
        return
    ours = Tokenizer(path)
    assert ours.encode("one", bos=ours.add_bos) == TheirTokenizer.from_file(str(path)).encode("one").ids


def test_an_opening_token_with_another_id_is_refused(tmp_path):
    theirs = vocabulary()
    theirs.add_special_tokens(["<a>", "<b>"])
    told = template(["<b>", "A"], ids=("<b>", "<a>"))
    refused(written(theirs, tmp_path, lambda content: content.update(post_processor=told)), "post_processor", "<b>")


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(normalizer={"type": "Sequence", "normalizers": []}),
        lambda c: c.update(normalizer=None),
        lambda c: c["model"].update(dropout=0.0, byte_fallback=True, unk_token="a", end_of_word_suffix=""),
        lambda c: c.update(decoder={"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}),
        lambda c: c.update(post_processor={"type": "ByteLevel", "trim_offsets": False}),
        lambda c: c.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [c["pre_tokenizer"]]}),
    ],
    ids=["no steps", "null", "what never comes to pass", "a sequence of one", "offsets", "a sequence in a sequence"],
)
def test_what_says_nothing_is_taken(tmp_path, edit):
    path = written(vocabulary(), tmp_path, edit)
    for text in ("a covid-19 one", "é\x00\n\n 123"):
        assert Tokenizer(path).encode(text) == vocabulary().encode(text).ids


def test_an_empty_normalizer_of_the_library_is_taken(tmp_path):
    theirs = vocabulary()
    theirs.normalizer = normalizers.Sequence([])
    assert Tokenizer(written(theirs, tmp_path)).encode("covid") == theirs.encode("covid").ids


def test_texts_are_not_cut_off_or_filled_up_and_the_file_is_named(tmp_path):
    theirs = vocabulary()
    theirs.enable_truncation(2)
    theirs.enable_padding(length=20)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = written(theirs, tmp_path, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.warns(UserWarning, match=r"tokenizer\.json: truncation and padding"):
        ours = Tokenizer(path)
    assert ours.encode("abcdef") == AutoTokenizer.from_pretrained(tmp_path)("abcdef")["input_ids"]


texts = st.text(max_size=20) | st.text("a1 \n,é½", max_size=12)
PATTERNS = [r"\w+", r"\p{L}+|\p{N}", r"[a-z]+", r" ?\p{L}+|\s", r"\d{1,3}(?=(\d{3})*\b)", LLAMA3_REGEX]


@settings(max_examples=100)
@given(pattern=st.sampled_from(PATTERNS), text=texts)
def test_what_a_pattern_does_not_find_stays(tmp_path_factory, pattern, text):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    theirs = vocabulary([(",", ","), ("Ġ", "Ġ"), ("a", "Ġ"), ("1", "1"), ("11", "1")], steps)
    ours = Tokenizer(written(theirs, tmp_path_factory.mktemp("pattern")))
    assert ours.encode(text) == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


def test_template_of_bert_is_named(tmp_path):
    theirs = vocabulary()
    theirs.add_special_tokens(["<a>", "<b>"])
    theirs.post_processor = processors.BertProcessing(("<b>", NEXT + 1), ("<a>", NEXT))
    refused(written(theirs, tmp_path), "BertProcessing")
