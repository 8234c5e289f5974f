"""GGUF files opened as they lie, beside the reader and the arithmetic of the format's own library."""

import struct

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from helpers import (
    GGUF_TOKENS,
    assert_like_hugging_faces,
    hf_model,
    naming,
    random_gguf_tensors,
    write_gguf,
)

from llama3_scratch import CheckpointError, Llama, Tokenizer, functional, load_checkpoint
from llama3_scratch.loading import gguf as our_gguf
from llama3_scratch.loading.gguf_file import Blocks, read_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", random_gguf_tensors())


def test_fields_and_tensors_are_those_that_the_format_s_own_library_reads(file):
    fields, tensors = read_gguf(file)
    theirs = gguf.GGUFReader(file)
    assert fields == {name: f.contents() for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(tensors[tensor.name].numbers().numpy(), expected), tensor.name


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K"])
def test_blocks_come_to_the_library_s_numbers_bit_for_bit(kind):
    rng = np.random.default_rng(0)
    if kind == "Q4_K":  # which the library reads and does not write: any bytes are blocks, but for NaN and infinity
        data = rng.integers(0, 256, (6, 2, 144), dtype=np.uint8)
        data[..., [1, 3]] &= 0b10111011
        data = data.reshape(6, 288)
    else:
        data = quantize(rng.normal(size=(6, 512)).astype(np.float32), gguf.GGMLQuantizationType[kind])
    blocks = Blocks(kind, (6, 512), torch.from_numpy(data))
    if kind != "Q8_0":
        numbers, d, m = blocks.q4()
        assert numbers.dtype == torch.uint8 and numbers.max() == 15 and numbers.min() == 0
    else:
        (numbers, d), m = blocks.q8(), torch.zeros(6, 16)
    groups = numbers.float().unflatten(-1, (-1, 32))
    ours = (groups * d[..., None] + m[..., None]).flatten(-2)
    assert torch.equal(ours, torch.from_numpy(dequantize(data, gguf.GGMLQuantizationType[kind])))


def test_a_gguf_runs_as_hugging_face_runs_its_numbers(file):
    ckpt = load_checkpoint(file)
    assert ckpt.path == file and repr(ckpt).startswith("Checkpoint('tiny.gguf', ")
    assert_like_hugging_faces(ckpt, hf_model(ckpt.params, dict(ckpt.weights)))


def test_opened_or_converted_it_is_the_same_model(file, tmp_path):
    our_gguf.write_gguf(file, tmp_path)
    opened, converted = load_checkpoint(file), load_checkpoint(tmp_path)
    assert opened.params == converted.params
    assert list(opened.weights) == list(converted.weights)
    assert all(torch.equal(opened.weights[key], converted.weights[key]) for key in converted.weights)
    for name in ("pattern", "special_tokens", "bos_id", "eos_id", "add_bos", "stop_tokens", "vocab_size"):
        assert getattr(opened.tokenizer, name) == getattr(converted.tokenizer, name), name
    text = " the  12 heights of the   hills ÿ"
    assert opened.tokenizer.encode(text) == converted.tokenizer.encode(text)


def test_a_tokenizer_opens_from_the_file_alone(file, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("of another model")
    copied = tmp_path / "tiny.gguf"
    copied.write_bytes(file.read_bytes())
    tokenizer = Tokenizer(copied)
    assert tokenizer.vocab_size == len(GGUF_TOKENS) and tokenizer.chat_template is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_type_is_a_copy_in_it(file, dtype):
    weights = load_checkpoint(file, dtype=dtype).weights
    assert {tensor.dtype for tensor in weights.values()} == {dtype}


def test_a_gguf_can_be_trained_and_the_file_stays_as_it_is(file):
    before = file.read_bytes()
    model = Llama.from_checkpoint(file)
    model(torch.arange(1, 9)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert file.read_bytes() == before


def test_opening_reads_no_weights(file, monkeypatch):
    monkeypatch.setattr(Blocks, "numbers", lambda self: pytest.fail("read") if len(self.data) > 1 else torch.ones(96))
    load_checkpoint(file)


def changed(tmp_path, file, offset, data):
    path = tmp_path / "bad.gguf"
    content = bytearray(file.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"GGML"),
        (4, struct.pack("<I", 1)),
        (4, struct.pack(">I", 3)),
        (8, struct.pack("<Q", 2**60)),
        (16, struct.pack("<Q", 2**60)),
        (24, struct.pack("<Q", 2**63)),
    ],
    ids=["magic", "version", "byte order", "tensors", "fields", "length of a text"],
)
def test_a_header_that_lies_is_refused_by_the_file_s_name(tmp_path, file, offset, data):
    with pytest.raises(CheckpointError, match=r"bad\.gguf: "):
        load_checkpoint(changed(tmp_path, file, offset, data))


def test_a_file_cut_off_anywhere_is_refused(tmp_path, file):
    content = file.read_bytes()
    path = tmp_path / "cut.gguf"
    for end in [*range(0, 200, 7), *range(200, len(content) - 1, len(content) // 60), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            load_checkpoint(path)


def test_any_byte_of_the_header_may_be_wrong_and_it_opens_or_is_refused(tmp_path, file):
    """Nothing hangs, fills the memory or ends in another error."""
    content, rng, outcomes = file.read_bytes(), np.random.default_rng(0), set()
    header = content.index(b"blk.1.ffn_norm.weight") + 100
    path = tmp_path / "changed.gguf"
    for place in rng.integers(0, header, 150):
        data = bytearray(content)
        data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            ckpt = load_checkpoint(path)
            functional.forward([1, 2], ckpt.weights, ckpt.params)
            outcomes.add("opened")
        except (CheckpointError, ValueError):
            outcomes.add("refused")
    assert outcomes == {"opened", "refused"}


def test_numbers_of_a_kind_that_cannot_be_read_are_refused(tmp_path, file, monkeypatch):
    def refused(data, kind):
        raise NotImplementedError(f"Dequantization for {kind.name} is not yet implemented")

    monkeypatch.setattr("llama3_scratch.loading.gguf_file.dequantize", refused)
    with pytest.raises(CheckpointError, match=naming("tiny.gguf Dequantization")):
        load_checkpoint(file)


def test_one_part_of_several_is_named(tmp_path):
    more = lambda writer: writer.add_uint16("split.count", 3)  # noqa: E731
    path = write_gguf(tmp_path / "m-00001-of-00003.gguf", random_gguf_tensors(), more=more)
    with pytest.raises(CheckpointError, match=r"m-00001-of-00003\.gguf: one of 3 parts; join them"):
        load_checkpoint(path)


def test_a_folder_with_a_gguf_alone_says_to_point_at_it(tmp_path, file):
    (tmp_path / "m.gguf").write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"point at the file, .*m\.gguf"):
        load_checkpoint(tmp_path)
