"""The model in one file, by the standard library alone: against the package, transformers, and gguf's own numbers."""

import ast
import re
import runpy
import subprocess
import sys
import tokenize
from pathlib import Path

import gguf
import numpy as np
import pytest
import regex
import torch
from helpers import (
    GGUF_SHAPES,
    GGUF_TOKENS,
    KINDS,
    hf_logits,
    hf_model,
    random_gguf_tensors,
    write_gguf,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llama3_scratch import functional, load_checkpoint, onefile
from llama3_scratch.loading.fetch import SOURCES, fetch
from llama3_scratch.loading.gguf import write_gguf as convert_gguf
from llama3_scratch.loading.tokenizer_json import DIGITS_PATTERN

FILE = Path(onefile.__file__)
MATRICES = [name for name, shape in GGUF_SHAPES.items() if len(shape) == 2] + ["token_embd", "output"]
PROMPT = "The capital of France is"


def read(path):
    with open(path, "rb") as file:
        return onefile.read_gguf(file)


def logits(model, tokens):
    """[seq, vocab]"""
    cache = [([], []) for _ in range(model["llama.block_count"])]
    return torch.tensor([onefile.forward(token, cache, model) for token in tokens])


@pytest.fixture(scope="module")
def real_file():
    return fetch("smollm2-135m") / Path(SOURCES["smollm2-135m"].member).name


@pytest.fixture(scope="module")
def vocabulary(real_file):
    """What it says beside its matrices, which take a gigabyte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onefile, "Matrix", lambda *parts: None)
        return read(real_file)


# What it may be


def test_it_has_at_most_150_lines_of_at_most_120_letters():
    lines = FILE.read_text("utf-8").splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
    with open(FILE, "rb") as file:
        assert ";" not in [token.string for token in tokenize.tokenize(file.readline)]


def test_it_imports_nothing_but_the_standard_library():
    found = [node for node in ast.walk(ast.parse(FILE.read_text("utf-8"))) if isinstance(node, ast.Import)]
    names = {alias.name for node in found for alias in node.names}
    froms = [node for node in ast.walk(ast.parse(FILE.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in froms)
    assert {name.split(".")[0] for name in names | {node.module for node in froms}} <= sys.stdlib_module_names


# The real model


@pytest.mark.slow
def test_alone_it_says_paris(real_file):
    """-I and -S: no other file of this folder, and no installed package, can be imported."""
    command = [sys.executable, "-I", "-S", str(FILE), str(real_file), PROMPT]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "The capital of France is Paris\n"
    assert "reading 272 of 272" in result.stderr


@pytest.mark.slow
def test_its_logits_are_those_of_the_package(real_file, smollm2):
    """At every position. Measured: 0.0001, of logits up to 27."""
    real = read(real_file)
    tokens = onefile.encode(PROMPT, real)
    theirs = functional.forward(tokens, smollm2.weights, smollm2.params)
    assert (logits(real, tokens) - theirs).abs().max() < 5e-4


# Tokens

TEXTS = [
    "",
    "Hello, world!",
    "  two spaces   and three\n\n\ttabs \r\n and an end  ",
    "In 2024, 3.14159 and 1,000,000; v2.0b17",
    "I'm, you're, he'll, they've, it's, don't, I'd; I'M, IT'S",
    "Zürich, naïve café, Ærøskøbing, İstanbul, ﬁ, ǅ",
    "नमस्ते दुनिया, สวัสดี, こんにちは 世界, Привет, שלום, مرحبا",
    "½ ² Ⅷ ٣٤ 四 ①",
    "😀👩‍👩‍👧 🇫🇷 a\u0301 \u200d\ufeff\u00ad",
    "\u00a0\u3000\u2028 x \u00a0\u3000y",
    "def f(_x, __y):\n    return _x**2 # __init__\n",
    "<|im_start|>user\n<|endoftext|>",
    "\x00\x01\x7f",
]


@pytest.mark.parametrize("text", TEXTS)
def test_its_tokens_are_those_of_the_package(vocabulary, smollm2, text):
    assert onefile.encode(text, vocabulary) == smollm2.tokenizer.encode(text)


# Letters that came into Unicode later than into this Python's tables are nothing yet to `re`.
KNOWN = st.characters(exclude_categories=("Cn", "Cs"), exclude_characters="\x1c\x1d\x1e\x1f")


@settings(max_examples=30)
@given(st.text(KNOWN | st.sampled_from(" \n'0½aé"), max_size=60))
def test_its_tokens_are_those_of_the_package_on_any_string(vocabulary, smollm2, text):
    assert onefile.encode(text, vocabulary) == smollm2.tokenizer.encode(text)


@given(st.text(KNOWN | st.sampled_from(" \n\t'0½aé_sl!"), max_size=200))
def test_its_pieces_are_those_of_the_pattern_with_classes_of_unicode(text):
    assert re.findall(onefile.PIECES, text) == regex.findall(DIGITS_PATTERN, text)


def test_its_letters_for_bytes_are_those_of_gpt_2():
    assert dict(enumerate(onefile.LETTERS)) == bytes_to_unicode()


# Random models


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kinds", [[KINDS.Q4_1], [KINDS.Q8_0], [KINDS.Q4_1, KINDS.Q8_0]], ids=["4", "8", "both"])
def test_logits_of_a_random_model_are_those_of_transformers(tmp_path, kinds, tied):
    tensors = random_gguf_tensors()
    if not tied:
        shape = tensors["token_embd.weight"].shape
        tensors["output.weight"] = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    stored = {name: kinds[i % len(kinds)] for i, name in enumerate(MATRICES)}
    path = write_gguf(tmp_path / "tiny.gguf", tensors, kinds=stored)
    convert_gguf(path, tmp_path)
    ckpt = load_checkpoint(tmp_path)
    tokens = torch.randint(len(GGUF_TOKENS), (12,), generator=torch.Generator().manual_seed(0))
    theirs = hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)
    assert (logits(read(path), tokens.tolist()) - theirs).abs().max() < 2e-4 * theirs.abs().max()


def test_gates_may_be_closed_as_far_as_they_will(tmp_path):
    """exp of the gate's number would be too large for a float."""
    tensors = random_gguf_tensors()
    tensors["blk.0.ffn_gate.weight"] *= 1000
    path = write_gguf(tmp_path / "tiny.gguf", tensors, kinds=dict.fromkeys(MATRICES, KINDS.Q8_0))
    convert_gguf(path, tmp_path)
    ckpt = load_checkpoint(tmp_path)
    tokens = torch.arange(4)
    theirs = hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)
    assert (logits(read(path), tokens.tolist()) - theirs).abs().max() < 2e-4 * theirs.abs().max()


@pytest.mark.parametrize("kind", [KINDS.Q4_1, KINDS.Q8_0])
def test_a_product_is_that_of_the_unpacked_matrix(kind):
    """Numbers of x of very different sizes, a block of x and one of the matrix that are nothing, one row only."""
    rng = np.random.default_rng(0)
    for rows in (1, 3, 64):
        weight = rng.normal(0, 1, (rows, 96)).astype(np.float32)
        weight[0, 32:64] = 0
        data = gguf.quantize(weight, kind)
        unpacked = gguf.dequantize(data, kind).astype(np.float64)
        matrix = onefile.Matrix(data.tobytes(), rows, kind)
        x = rng.normal(0, 1, 96) * np.repeat([1e3, 1e-3, 0.0], 32)
        size = np.abs(unpacked) @ np.abs(x)
        assert (np.abs(np.array(matrix @ x.tolist()) - unpacked @ x) <= 1e-5 * size).all()


@pytest.mark.parametrize("kind", [KINDS.Q4_1, KINDS.Q8_0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_fit_into_their_lanes(kind, sign):
    """Rows of all 0, all the largest, all -128, between rows of others: nothing leaks into a neighbour."""
    if kind == KINDS.Q4_1:
        nibbles = [bytes([q] * 16) for q in (0x00, 0xFF, 0x0F, 0xFF, 0x00, 0xF0)]
        data = b"".join(np.array([1.0, 0.5], np.float16).tobytes() + q for q in nibbles)
    else:
        numbers = [np.full(32, q, np.int8).tobytes() for q in (-128, 127, -128, 127, 0, -1)]
        data = b"".join(np.array([1.0], np.float16).tobytes() + q for q in numbers)
    unpacked = gguf.dequantize(np.frombuffer(data, np.uint8).reshape(6, -1), kind)
    for x in (np.full(32, sign), sign * np.where(np.arange(32) < 16, 1, -1), sign * np.eye(32)[31]):
        product = onefile.Matrix(data, 6, kind) @ x.astype(float).tolist()
        assert np.allclose(product, unpacked @ x, rtol=1e-6, atol=1e-6)


# Its command


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(FILE), *map(str, arguments)])
    runpy.run_path(str(FILE), run_name="__main__")


@pytest.mark.parametrize("text", ["the hehe 12", ""])
def test_it_adds_as_many_tokens_as_asked_each_the_likeliest(tmp_path, monkeypatch, capfdbinary, text):
    """An empty text begins with the token that opens one, which is not said."""
    path = write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors(), kinds=dict.fromkeys(MATRICES, KINDS.Q8_0))
    convert_gguf(path, tmp_path)
    ckpt = load_checkpoint(tmp_path)
    tokens = ckpt.tokenizer.encode(text, bos=not text)
    for _ in range(4):
        tokens.append(functional.forward(tokens, ckpt.weights, ckpt.params)[-1].argmax().item())
    run(monkeypatch, path, text, 4)
    said = capfdbinary.readouterr().out.replace(b"\r\n", b"\n")
    assert said == b"".join(ckpt.tokenizer.token_bytes(token) for token in tokens[not text :]) + b"\n"


def test_without_a_text_it_says_how_it_is_called(monkeypatch):
    with pytest.raises(SystemExit, match=r"onefile\.py MODEL\.gguf"):
        run(monkeypatch, "model.gguf")


BAD = {
    "no GGUF file": ({}, lambda data: b"<html>404</html>", "not a GGUF file"),
    "an empty file": ({}, lambda data: b"", "not a GGUF file"),
    "another architecture": ({"architecture": "gpt2"}, bytes, "'gpt2'.*not llama"),
    "another vocabulary": ({"pre": "llama-bpe"}, bytes, "'llama-bpe'.*not llama and smollm"),
    "other blocks": ({"kinds": {"attn_q": KINDS.Q4_0, "token_embd": KINDS.Q8_0}}, bytes, r"attn_q.*type 2.*Q4_1"),
    "a matrix of float32": ({"kinds": {}}, bytes, r"token_embd\.weight is stored as GGUF's type 0"),
    "half of what it says": ({}, lambda data: data[:300], "buffer"),
    "half of a tensor": ({"kinds": dict.fromkeys(MATRICES, KINDS.Q8_0)}, lambda data: data[:-1000], "buffer"),
    "a length beyond all": ({}, lambda data: data[:24] + b"\xff" * 8 + data[32:], ""),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_it_cannot_read_is_refused_in_one_line(tmp_path, monkeypatch, what):
    changes, damage, message = BAD[what]
    path = write_gguf(tmp_path / "bad.gguf", random_gguf_tensors(), **changes)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SystemExit, match=rf"bad\.gguf cannot be used: .*{message}") as e:
        run(monkeypatch, path, "the")
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"none\.gguf cannot be used: .*No such file"):
        run(monkeypatch, tmp_path / "none.gguf", "the")
