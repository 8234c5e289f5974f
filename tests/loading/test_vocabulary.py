"""tokenizer.model and the file beside it: what is no vocabulary is refused by name."""

import base64
import json

import pytest
from helpers import naming

from llama3_scratch import CheckpointError, Tokenizer
from llama3_scratch.loading.tiny import write_byte_tokenizer

BYTES = [f"{base64.b64encode(bytes([b])).decode()} {b}" for b in range(256)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty download"),
        (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "line 2 SentencePiece"),
        ("\n".join([*BYTES, "!!!! 256"]).encode(), "line 257"),
        ("\n".join([*BYTES, "IHQ="]).encode(), "line 257"),
        ("\n".join([*BYTES, "IHQ= 300"]).encode(), "ranks repeat skip download"),
        ("\n".join([*BYTES, "AA== 256"]).encode(), "ranks repeat skip download"),
    ],
    ids=["empty", "sentencepiece", "not base64", "no rank", "a rank skipped", "a token twice"],
)
def test_a_broken_tokenizer_file_is_named(tmp_path, content, words):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=naming(f"tokenizer.model {words}")):
        Tokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    "change",
    [
        {"bos": "<|nobody|>"},
        {"pattern": "(unclosed"},
        {"pattern": 7},
        {"special_tokens": {"<|a|>": 5}},
        {"special_tokens": {"<|start|>": -1, "<|stop|>": 300}},
        {"special_tokens": {"<|start|>": "1", "<|stop|>": 2}},
        {"special_tokens": ["<|start|>", "<|stop|>"]},
        {"eos": ["<|stop|>"]},
    ],
    ids=str,
)
def test_a_broken_tokenizer_configuration_is_named(tmp_path, change):
    write_byte_tokenizer(tmp_path, (), ("<|pad|>", "<|start|>", "<|stop|>"))
    path = tmp_path / "tokenizer_params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"/tokenizer(_params\.json|\.model): "):
        Tokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", ["{", "[]", "\udc80"])
def test_a_tokenizer_configuration_that_is_no_json_object_is_named(tmp_path, content):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "tokenizer_params.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=naming("tokenizer_params.json")):
        Tokenizer(tmp_path / "tokenizer.model")
