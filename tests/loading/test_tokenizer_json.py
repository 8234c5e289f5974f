"""tokenizer.json, judged by the library that wrote it."""

import json

import pytest
from helpers import (
    CORPUS,
    FORMS,
    LLAMA3_STEPS,
    naming,
    texts,
    their_model,
    trained,
    write_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as TheirTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from llama3_scratch import CheckpointError, Tokenizer, load_checkpoint
from llama3_scratch.loading.fetch import LLAMA3_TOKENIZER, fetch


def read_by_both(theirs, folder):
    return Tokenizer(write_tokenizer(theirs, folder)), theirs


@pytest.fixture(scope="module", params=FORMS)
def pair(request, tmp_path_factory):
    """One vocabulary, read by us and by its own library."""
    return read_by_both(FORMS[request.param](), tmp_path_factory.mktemp("pair"))


words = st.sampled_from([*" ".join(CORPUS[:4]).split(), " ", "  ", "\n", "'ſ", "'S", "\x1c", "7"])
phrases = st.lists(words, max_size=12)


@settings(max_examples=300)
@given(text=texts | phrases.map(" ".join) | phrases.map("".join))
def test_ids_equal_those_of_the_library_that_made_the_vocabulary(pair, text):
    ours, theirs = pair
    if any(name in text for name in ours.special_tokens):
        return  # there text would become control tokens; see below
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text


def test_control_tokens_in_text_equal_the_librarys_where_they_are_allowed(pair):
    ours, theirs = pair
    names = list(ours.special_tokens)
    text = f"{names[0]} the cat{names[1]}\n\n{names[2]}12345"
    assert ours.encode(text, allowed_special="all") == theirs.encode(text, add_special_tokens=False).ids
    assert not set(ours.encode(text)) & set(ours.special_tokens.values())
    assert (ours.vocab_size, ours.special_tokens) == (
        theirs.get_vocab_size(),
        {name: theirs.token_to_id(name) for name in names},
    )


def test_what_llama_3s_folder_says_of_its_tokens(tmp_path):
    theirs = FORMS["Llama 3's"]()
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizer"}
    ours = Tokenizer(write_tokenizer(theirs, tmp_path, **config))
    assert ours.add_bos is True
    assert ours.encode("The cat", bos=True) == theirs.encode("The cat").ids
    assert ours.bos_id == theirs.token_to_id("<|begin_of_text|>")
    assert ours.eos_id == theirs.token_to_id("<|eot_id|>")
    assert ours.stop_tokens == {theirs.token_to_id("<|eot_id|>"), theirs.token_to_id("<|end_of_text|>")}


def test_a_call_of_a_tool_ends_a_turn_as_well(tmp_path):
    theirs = FORMS["Llama 3's"]()
    theirs.add_special_tokens(["<|eom_id|>", "<|python_tag|>"])  # of Llama 3.1
    ours = Tokenizer(write_tokenizer(theirs, tmp_path, eos_token="<|eot_id|>"))
    assert theirs.token_to_id("<|eom_id|>") in ours.stop_tokens
    assert theirs.token_to_id("<|python_tag|>") not in ours.stop_tokens


def test_what_smollm2s_folder_says_of_its_tokens(tmp_path):
    bos = {"__type": "AddedToken", "content": "<|im_start|>", "special": True}
    ours = Tokenizer(
        write_tokenizer(FORMS["SmolLM2's"](), tmp_path, bos_token=bos, eos_token="<|im_end|>", pad_token="<|im_end|>")
    )
    assert (ours.add_bos, ours.bos_id, ours.eos_id) == (False, 1, 2)
    assert ours.stop_tokens == {0, 2}


def test_a_folder_says_which_tokens_open_and_close_in_config_json_too(save):
    folder = save(their_model(bos_token_id=1, eos_token_id=[2, 0]))
    tokenizer = load_checkpoint(folder).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, False)


def test_a_folder_that_names_no_token_to_open_with(save):
    folder = save(their_model(bos_token_id=None, eos_token_id=None))
    tokenizer = load_checkpoint(folder).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (None, None, False)
    with pytest.raises(ValueError, match=naming("no token open")):
        tokenizer.encode("hi", bos=True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The first 20,000 of Meta's own ranks: Meta's file, and the tokenizer.json that transformers makes of it."""
    folder = tmp_path_factory.mktemp("converted")
    lines = (fetch(LLAMA3_TOKENIZER) / "tokenizer.model").read_text().splitlines()[:20000]
    (folder / "tokenizer.model").write_text("\n".join(lines))
    meta = Tokenizer(folder / "tokenizer.model")
    converter = TikTokenConverter(str(folder / "tokenizer.model"), extra_special_tokens=list(meta.special_tokens))
    theirs = converter.converted()
    write_tokenizer(theirs, folder, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    return meta, theirs, Tokenizer(folder / "tokenizer.json")


@settings(max_examples=200)
@given(text=texts)
def test_llama_3s_vocabulary_is_the_same_in_both_files(converted, text):
    meta, theirs, ours = converted
    assert ours.encode(text) == meta.encode(text)
    if not any(name in text for name in ours.special_tokens):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_llama_3s_control_tokens_are_the_same_in_both_files(converted):
    meta, _, ours = converted
    for name in ("special_tokens", "bos_id", "eos_id", "vocab_size", "stop_tokens"):
        assert getattr(ours, name) == getattr(meta, name)


def test_merges_written_as_in_older_files(tmp_path, their_tokenizer_file):
    content = json.loads(their_tokenizer_file.read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    new, old = Tokenizer(their_tokenizer_file), Tokenizer(tmp_path / "tokenizer.json")
    assert all(old.encode(text) == new.encode(text) for text in CORPUS)
    assert len(new.encode(CORPUS[0])) < len(CORPUS[0]) * 0.8  # some were merged


def word_piece():
    return TheirTokenizer(models.WordPiece({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))


def sentence_piece():
    tokenizer = TheirTokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    return tokenizer


def with_step(step, normalizer=None):
    tokenizer = trained([*step, LLAMA3_STEPS[1]])
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def spaced():
    return trained([pre_tokenizers.ByteLevel(add_prefix_space=True)])


REFUSED = {
    "WordPiece": word_piece,
    "Unigram": lambda: TheirTokenizer(models.Unigram([("a", 0.0)])),
    "SentencePiece": sentence_piece,
    "a space put before the text": spaced,
    "cut at white space": lambda: trained([pre_tokenizers.Whitespace()]),
    # These change or drop text before it is cut, or cut it elsewhere than the pattern says.
    "text in another form first": lambda: with_step(LLAMA3_STEPS[:1], normalizers.NFC()),
    "lower case first": lambda: with_step(LLAMA3_STEPS[:1], normalizers.Lowercase()),
    "matches removed": lambda: with_step([pre_tokenizers.Split(Regex(r"\s+"), "removed")]),
    "cut where the pattern does not match": lambda: with_step(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed", invert=True)]
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_vocabularies_of_another_kind_are_refused(tmp_path, kind):
    path = write_tokenizer(REFUSED[kind](), tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("model"),
        lambda content: content["model"].update(vocab={}),
        lambda content: content["model"].update(vocab=["a", "b"]),
        lambda content: content["model"]["vocab"].update(a="5"),
        lambda content: content["model"]["vocab"].update(a=5),
        lambda content: content["model"]["merges"].reverse(),
        lambda content: content["model"].update(merges=[]),
        lambda content: content["model"]["merges"].append(["q", "q"]),
        lambda content: content.update(added_tokens=None),
        lambda content: content.update(added_tokens=["<s>"]),
        lambda content: content.update(pre_tokenizer=None),
        lambda content: content.update(pre_tokenizer="ByteLevel"),
    ],
    ids=[
        "no model",
        "no tokens",
        "tokens without ids",
        "an id that is text",
        "an id twice",
        "merges in another order",
        "no merges",
        "a merge of nothing",
        "no added tokens",
        "added tokens without ids",
        "no pattern",
        "a pattern that is text",
    ],
)
def test_a_broken_tokenizer_json_is_refused(tmp_path, their_tokenizer_file, change):
    content = json.loads(their_tokenizer_file.read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udc80"], ids=ascii)
def test_a_tokenizer_json_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_added_tokens_that_are_words_are_always_read_as_tokens(tmp_path):
    theirs = FORMS["SmolLM2's"]()
    theirs.add_tokens(["<tool>"])  # not special: the library reads it in any text
    ours, _ = read_by_both(theirs, tmp_path)
    assert ours.encode("a <tool>b") == theirs.encode("a <tool>b").ids
    assert theirs.token_to_id("<tool>") in ours.encode("<tool>")


def test_every_id_that_ends_a_text_stops(tmp_path):
    theirs = FORMS["SmolLM2's"]()
    theirs.add_special_tokens(["<stop>", "<done>", "<other>"])
    stop, done = theirs.token_to_id("<stop>"), theirs.token_to_id("<done>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, done]}))
    ours, _ = read_by_both(theirs, tmp_path)
    assert {stop, done} <= ours.stop_tokens and theirs.token_to_id("<other>") not in ours.stop_tokens


def test_the_opening_token_is_known_from_the_template_alone(tmp_path):
    ours, theirs = read_by_both(FORMS["Llama 3's"](), tmp_path)
    assert ours.encode("a", bos=ours.add_bos) == theirs.encode("a").ids
    assert len(theirs.encode("a").ids) == 2
