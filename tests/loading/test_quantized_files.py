"""Checkpoints opened in 8 and 4 bits: from every layout, one matrix at a time, kept beside the file and mapped from
there; and what is kept and does not fit is not used.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from helpers import (
    GGUF_TYPES,
    hf_model,
    lies_in,
    naming,
    random_gguf_tensors,
    random_tokens,
    split,
    write_gguf,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llama3_scratch import Checkpoint, CheckpointError, Llama, functional, generate, load_checkpoint
from llama3_scratch import quantized as modules
from llama3_scratch.loading import gguf as our_gguf
from llama3_scratch.loading import mapped, quantized
from llama3_scratch.loading.fetch import SOURCES
from llama3_scratch.loading.gguf_file import Blocks
from llama3_scratch.quantized import QuantizedAttention, QuantizedFeedForward, QuantizedLinear

LAYOUTS = ["Meta's", "tied", "bfloat16", "shards", "Hugging Face's"]


@pytest.fixture
def open_layout(tiny_folder, tmp_path, save):
    """What a layout is called -> a folder of one's own in it."""

    def make(layout):
        if layout == "Hugging Face's":
            ckpt = load_checkpoint(tiny_folder("tiny-ratio4"))
            return save(hf_model(ckpt.params, dict(ckpt.weights)))
        names = {"Meta's": "tiny-ratio1", "tied": "tiny-ratio3", "bfloat16": "tiny-bfloat16", "shards": "tiny-ratio4"}
        folder = shutil.copytree(tiny_folder(names[layout]), tmp_path / "m")
        if layout == "shards":
            weights = torch.load(folder / "consolidated.00.pth")
            for i, part in enumerate(split(weights, 2)):
                torch.save(part, folder / f"consolidated.{i:02d}.pth")
        return folder

    return make


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder("tiny-ratio1"), tmp_path / "own")


def linears(model):
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    for name, module in model.named_modules():  # wqkv and w1w3 hold several
        if isinstance(module, QuantizedAttention | QuantizedFeedForward):
            del found[f"{name}.wqkv" if isinstance(module, QuantizedAttention) else f"{name}.w1w3"]
            found |= {f"{name}.{part}": linear for part, linear in module.parts().items()}
    return {name.removesuffix(".linear"): module for name, module in found.items()}


def same_bits(one, other):
    one, other = linears(one), linears(other)
    return one.keys() == other.keys() and all(
        torch.equal(a, b)
        for name in one
        for (_, a), (_, b) in zip(one[name].named_buffers(), other[name].named_buffers(), strict=True)
    )


def dequantised(model):
    """The weights that its bits stand for, under Meta's names."""
    weights = {f"{name}.weight": linear.dequantize() for name, linear in linears(model).items()}
    return weights | {name: p.float() for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:tokenizer.json")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["int8", "int4"])
def test_each_matrix_of_each_layout_is_quantised_as_a_whole_one_is(open_layout, layout, how, monkeypatch):
    monkeypatch.setattr(quantized, "_NUMBERS_AT_ONCE", 64 * 64)  # some rows at a time
    folder = open_layout(layout)
    weights = load_checkpoint(folder).weights
    model = Llama.from_checkpoint(folder, quantize=how)
    for name, linear in linears(model).items():
        bits = 8 if how == "int8" or name in ("tok_embeddings", "output") else 4
        whole = QuantizedLinear.from_weight(weights[f"{name}.weight"], bits)
        assert (linear.kind, linear.out_features) == (whole.kind, whole.out_features)
        for (_, ours), (_, theirs) in zip(linear.named_buffers(), whole.named_buffers(), strict=True):
            assert torch.equal(ours, theirs), name
    for key, norm in model.named_parameters():
        assert torch.equal(norm, weights[key]) and not norm.requires_grad
    assert (model.output is model.tok_embeddings.linear) == ("output.weight" not in weights)


@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.parametrize("name", ["tiny-ratio3", "tiny-ratio8", "tiny-bfloat16"])
def test_its_logits_are_those_of_the_numbers_that_it_stands_for(tiny_folder, name, how):
    model = Llama.from_checkpoint(tiny_folder(name), quantize=how)
    tokens = random_tokens(model.params, 2, 20)
    with torch.inference_mode():
        expected = functional.forward(tokens, dequantised(model), model.params)
        error = (model(tokens) - expected).square().mean().sqrt()
    assert error < 0.03 * expected.square().mean().sqrt()  # bfloat16's


def test_a_checkpoint_or_its_folder_gives_the_same(folder):
    same = [Llama.from_checkpoint(c, quantize="int4") for c in (folder, str(folder), load_checkpoint(folder))]
    assert same_bits(same[0], same[1]) and same_bits(same[0], same[2])


def test_the_type_of_the_environment_is_not_asked(folder, monkeypatch):
    expected = Llama.from_checkpoint(folder, quantize="int8")
    monkeypatch.setenv("LLAMA3_DTYPE", "float16")
    assert same_bits(Llama.from_checkpoint(folder, quantize="int8"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["tiny-ratio1", "tiny-bfloat16"])
def test_a_dtype_is_that_of_the_norms_and_of_what_runs_between_them(tiny_folder, name, dtype):
    model = Llama.from_checkpoint(tiny_folder(name), dtype=dtype, quantize="int4")
    assert {norm.dtype for norm in model.parameters()} == {dtype} == {model.tok_embeddings(torch.tensor([1])).dtype}


def test_weights_that_somebody_put_together_are_quantised_as_they_are(folder):
    ckpt = load_checkpoint(folder)
    weights = {key: weight * 2 for key, weight in ckpt.weights.items()}
    model = Llama.from_checkpoint(Checkpoint(ckpt.params, weights, None, folder / "nowhere"), quantize="int8")
    whole = QuantizedLinear.from_weight(weights["layers.0.attention.wq.weight"], 8)
    assert torch.equal(linears(model)["layers.0.attention.wq"].scales, whole.scales)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, "quantize int8 int4 int3"),
        ({"quantize": True}, "quantize int8 int4 True"),
        ({"quantize": "int4", "dtype": torch.float16}, "bfloat16 float16 dtype"),
        ({"quantize": "int4", "device": "meta"}, "cpu meta device"),
        ({"keep": True}, "keep quantize"),
    ],
)
def test_what_makes_no_sense_together_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=naming(message)):
        Llama.from_checkpoint(folder, **options)


@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["layers.1.feed_forward.w2.weight", "tok_embeddings.weight", "norm.weight"])
def test_a_weight_that_is_not_finite_is_named(folder, monkeypatch, how, number, key):
    monkeypatch.setattr(mapped, "CHECKED_BYTES", 0)  # as in a file in which opening does not look
    path = folder / "consolidated.00.pth"
    weights = torch.load(path)
    weights[key].view(-1)[-1] = number
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=naming(key) + r"[\s\S]*NaN"):
        Llama.from_checkpoint(folder, quantize=how)


# Memory


@pytest.mark.filterwarnings("ignore:tokenizer.json")
@pytest.mark.parametrize("layout", ["shards", "Hugging Face's"])
def test_of_what_is_put_together_one_matrix_is_there_at_a_time(open_layout, layout, monkeypatch):
    checkpoint, alive, most = load_checkpoint(open_layout(layout)), [], []
    join = checkpoint.weights.join

    def noted(key, parts):
        joined = join(key, parts).clone()
        if joined.ndim == 2:
            alive.append(weakref.ref(joined))
            most.append(sum(ref() is not None for ref in alive))
        return joined

    monkeypatch.setattr(checkpoint.weights, "join", noted)
    Llama.from_checkpoint(checkpoint, quantize="int4")
    gc.collect()
    assert max(most) == 1
    assert not any(ref() is not None for ref in alive)


def test_a_matrix_is_unpacked_some_rows_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(quantized, "_NUMBERS_AT_ONCE", 64 * 64)
    real, sizes = QuantizedLinear.from_weight, []

    def noted(weight, bits):
        sizes.append(weight.numel())
        return real(weight, bits)

    monkeypatch.setattr(QuantizedLinear, "from_weight", noted)
    Llama.from_checkpoint(folder, quantize="int8")
    assert max(sizes) <= 64 * 256  # 64 rows are the least


# What is kept


def kept_in(folder, how="int4"):
    return folder / "quantized" / f"{how}.safetensors"


@pytest.fixture
def never_again(monkeypatch):
    """After a call of it, nothing may be quantised."""

    def forbid():
        for name in ("from_weight", "from_q4_1", "from_q8_0"):
            monkeypatch.setattr(QuantizedLinear, name, lambda *_: pytest.fail("quantised once more"))

    return forbid


@pytest.mark.filterwarnings("ignore:tokenizer.json")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["int8", "int4"])
def test_what_is_kept_is_mapped_by_the_next_call(open_layout, layout, how, never_again):
    folder = open_layout(layout)
    first = Llama.from_checkpoint(folder, quantize=how, keep=True)
    never_again()
    for options in ({}, {"keep": True}):
        again = Llama.from_checkpoint(folder, quantize=how, **options)
        assert same_bits(first, again)
        tokens = random_tokens(first.params, 9).tolist()
        assert list(generate(first, tokens, 5)) == list(generate(again, tokens, 5))
    assert [path.name for path in kept_in(folder).parent.iterdir()] == [f"{how}.safetensors"]
    if sys.platform == "linux":
        modules = [module for module in again.modules() if isinstance(module, QuantizedLinear)]
        tensors = [buffer for module in modules for buffer in module.buffers()]
        assert all(lies_in(tensor, kept_in(folder, how)) for tensor in tensors)


def test_it_is_a_file_that_the_safetensors_library_reads(folder):
    model = Llama.from_checkpoint(folder, quantize="int4", keep=True)
    stored = load_file(kept_in(folder))
    assert torch.equal(stored["layers.1.feed_forward.w2.packed"], model.layers[1].feed_forward.w2.packed)
    assert torch.equal(stored["output.scales"], model.output.scales)
    assert torch.equal(stored["norm.weight"], model.norm.weight)
    with safe_open(kept_in(folder), "pt") as f:
        assert "llama3_scratch" in f.metadata()["made_by"]


def test_the_folder_still_opens_as_it_is(folder):
    before = dict(load_checkpoint(folder).weights)
    Llama.from_checkpoint(folder, quantize="int4", keep=True)
    after = load_checkpoint(folder).weights
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_kept_file_that_is_large_is_used_read_only(folder, every_file_is_large, never_again):
    first = Llama.from_checkpoint(folder, quantize="int4", keep=True)
    never_again()
    again = Llama.from_checkpoint(folder, quantize="int4")
    assert list(generate(first, [1, 2, 3], 5)) == list(generate(again, [1, 2, 3], 5))


@pytest.mark.parametrize("layout", modules.LAYOUTS)
@pytest.mark.parametrize("how", ["int4", "int8"])
def test_one_from_another_processor_writes_the_same_text(folder, monkeypatch, layout, how, never_again):
    here = Llama.from_checkpoint(folder, quantize=how)
    with monkeypatch.context() as there:
        there.setattr(modules, "LAYOUT", layout)
        Llama.from_checkpoint(folder, quantize=how, keep=True)
    never_again()
    again = Llama.from_checkpoint(folder, quantize=how)
    assert list(generate(here, [1, 2, 3], 8)) == list(generate(again, [1, 2, 3], 8))


def in_a_copy(checkpoint):
    weights = dict(checkpoint.weights)
    weights["layers.1.attention.wq.weight"] = weights["layers.1.attention.wq.weight"].clone()
    weights["layers.1.attention.wq.weight"][1:] *= -3
    return replace(checkpoint, weights=weights)


def where_it_lies(checkpoint):
    checkpoint.weights["layers.1.attention.wq.weight"][1:] *= -3
    return checkpoint


@pytest.mark.parametrize("edit", [in_a_copy, where_it_lies])
def test_weights_that_were_changed_in_memory_are_not_taken_for_those_of_the_file(folder, edit):
    before = Llama.from_checkpoint(folder, quantize="int8", keep=True)
    edited = edit(load_checkpoint(folder))
    with pytest.warns(UserWarning, match="not kept"):
        after = Llama.from_checkpoint(edited, quantize="int8", keep=True)
    whole = QuantizedLinear.from_weight(edited.weights["layers.1.attention.wq.weight"], 8)
    assert torch.equal(linears(after)["layers.1.attention.wq"].values, whole.values)
    assert same_bits(before, Llama.from_checkpoint(folder, quantize="int8"))  # still there


def one_number_more(folder):
    path = folder / "consolidated.00.pth"
    weights = torch.load(path)
    weights["layers.1.attention.wo.weight"][3, 3] += 1
    torch.save(weights, path)


def other_eps(folder):
    path = folder / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_eps": 0.25}))


def other_numbers_in_the_same_file(folder):
    """Where somebody sets the clock back."""
    path = folder / "consolidated.00.pth"
    time = path.stat().st_mtime_ns
    weights = torch.load(path)
    torch.save({key: weight * 2 for key, weight in weights.items()}, path)
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("change", [one_number_more, other_eps, other_numbers_in_the_same_file])
def test_one_made_from_other_weights_is_not_used(folder, change):
    Llama.from_checkpoint(folder, quantize="int4", keep=True)
    change(folder)
    before = kept_in(folder).read_bytes()
    with pytest.warns(UserWarning, match=r"int4\.safetensors: made from other weights.*keep=True"):
        model = Llama.from_checkpoint(folder, quantize="int4")
    assert kept_in(folder).read_bytes() == before
    with pytest.warns(UserWarning, match="is replaced"):
        replaced = Llama.from_checkpoint(folder, quantize="int4", keep=True)
    assert kept_in(folder).read_bytes() != before
    assert same_bits(model, replaced) and same_bits(model, Llama.from_checkpoint(folder, quantize="int4"))


def rewritten(change_tensors=lambda tensors: None, **told):
    def rewrite(path):
        with safe_open(path, "pt") as f:
            metadata = f.metadata() | told
        tensors = load_file(path)
        change_tensors(tensors)
        save_file(tensors, path, {name: value for name, value in metadata.items() if value is not None})

    return rewrite


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def not_finite(tensors):
    tensors["layers.0.attention.wo.scales"][0, 0, 0] = torch.nan


WRONG = {
    "cut off": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a page": lambda path: path.write_text("<html>404</html>"),
    "somebody else's": lambda path: save_file({"x": torch.ones(3)}, path),
    "by another version": rewritten(made_by="llama3_scratch 0"),
    "without kinds": rewritten(kinds=None),
    "kinds that are no JSON": rewritten(kinds="{"),
    "kinds deep inside": rewritten(kinds="[" * 100_000),
    "kinds of another kind": rewritten(kinds='["int4"]'),
    "a kind that is not known": rewritten(kinds='{"output": "int2"}'),
    "a layout that is not known": rewritten(layout="avx1024"),
    "a tensor less": rewritten(lambda tensors: tensors.pop("norm.weight")),
    "a tensor more": rewritten(lambda tensors: tensors.update(more=torch.ones(2).bfloat16())),
    "another shape": rewritten(lambda t: t.update({"norm.weight": t["norm.weight"][:-1].clone()})),
    "another type": rewritten(lambda t: t.update({"output.values": t["output.values"].view(torch.uint8)})),
    "a type that is not kept": rewritten(lambda t: t.update({"norm.weight": t["norm.weight"].half()})),
    "norms of another type": rewritten(lambda t: t.update({"norm.weight": t["norm.weight"].bfloat16()})),
    "NaN": rewritten(not_finite),
}


@pytest.mark.parametrize("kind", WRONG)
def test_one_that_is_damaged_or_another_s_is_not_used(folder, kind):
    expected = Llama.from_checkpoint(folder, quantize="int4", keep=True)
    WRONG[kind](kept_in(folder))
    with pytest.warns(UserWarning, match=r"quantized.int4\.safetensors: .*keep=True") as warned:
        model = Llama.from_checkpoint(folder, quantize="int4")
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert same_bits(model, expected)


def test_where_nothing_can_be_kept_the_model_runs(folder):
    (folder / "quantized").write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match=r"int4\.safetensors: cannot be kept"):
        model = Llama.from_checkpoint(folder, quantize="int4", keep=True)
    assert list(generate(model, [1, 2], 3))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a file's size")
def test_on_a_full_disk_nothing_is_left_and_the_model_runs(folder):
    code = """
import resource, signal, sys, warnings
from llama3_scratch import Llama, generate
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with warnings.catch_warnings(record=True) as warned:
    model = Llama.from_checkpoint(sys.argv[1], quantize="int4", keep=True)
print("cannot be kept" in str(warned[-1].message), len(list(generate(model, [1, 2], 3))))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout == "True 3\n", done.stderr
    assert list((folder / "quantized").iterdir()) == []


# GGUF


@pytest.fixture
def gguf_file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors())


KEYS = {
    "attn_q": "attention.wq",
    "attn_v": "attention.wv",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
}


def test_the_blocks_of_a_gguf_are_used_as_they_are_stored(gguf_file, monkeypatch):
    expected = dict(load_checkpoint(gguf_file).weights)
    stored, real = {"Q4_1", "Q8_0"}, Blocks.numbers

    def numbers(self):
        assert self.kind not in stored or len(self.data) == 1, f"{self.kind} became float32"
        return real(self)

    monkeypatch.setattr(Blocks, "numbers", numbers)
    model = Llama.from_checkpoint(gguf_file, quantize="int4")
    kinds = {"Q4_1": "int4", "Q8_0": "q8_0", "F16": "int4"}
    for name, kind in GGUF_TYPES.items():
        linear = linears(model)[f"layers.1.{KEYS[name]}"]
        assert linear.kind == kinds[kind.name]
        if kind.name in stored:  # all but for the scales, which have bfloat16's eight bits, of numbers up to 1
            theirs = expected[f"layers.1.{KEYS[name]}.weight"]
            torch.testing.assert_close(linear.dequantize(), theirs, rtol=0, atol=2 * 2**-8)


def test_one_in_six_bits_gets_eight(gguf_file, monkeypatch):
    monkeypatch.setattr(Blocks, "bits", property(lambda self: 6.5625 if self.kind == "F16" else 32))
    model = Llama.from_checkpoint(gguf_file, quantize="int4")
    assert linears(model)["layers.0.attention.wv"].kind == "int8"
    assert linears(model)["layers.0.attention.wk"].kind == "int4"


def test_what_a_gguf_gave_is_kept_beside_it(gguf_file, never_again):
    first = Llama.from_checkpoint(gguf_file, quantize="int4", keep=True)
    assert [path.name for path in (gguf_file.parent / "quantized").iterdir()] == ["tiny.int4.safetensors"]
    never_again()
    assert same_bits(first, Llama.from_checkpoint(gguf_file, quantize="int4"))


@pytest.fixture
def converted(gguf_file, monkeypatch, tmp_path):
    """A folder that was converted from a GGUF file, which lies beside the weights, as `fetch` makes it."""
    source = SOURCES["smollm2-135m"]
    monkeypatch.setitem(SOURCES, "smollm2-135m", type(source)(**vars(source) | {"member": "a/tiny.gguf"}))
    folder = tmp_path / "converted"
    folder.mkdir()
    our_gguf.write_gguf(gguf_file, folder)
    shutil.copy(gguf_file, folder)
    (folder / "SOURCE.txt").write_text(f"by somebody\n{SOURCES['smollm2-135m'].told}\n")
    return folder


def uses_blocks(model):
    return linears(model)["layers.0.attention.wq"].kind == "q8_0"


def test_a_converted_folder_s_four_bits_are_those_of_its_file(converted, gguf_file):
    model = Llama.from_checkpoint(converted, quantize="int4")
    assert uses_blocks(model) and same_bits(model, Llama.from_checkpoint(gguf_file, quantize="int4"))
    assert not uses_blocks(Llama.from_checkpoint(converted, quantize="int8"))


def test_a_gguf_of_another_model_is_not_used(converted, tmp_path):
    other = {name: values * 2 for name, values in random_gguf_tensors().items()}
    write_gguf(converted / "tiny.gguf", other)
    assert not uses_blocks(Llama.from_checkpoint(converted, quantize="int4"))


def test_a_gguf_whose_weights_were_trained_since_is_not_used(converted):
    path = converted / "consolidated.00.pth"
    weights = torch.load(path)
    weights["layers.1.attention.wo.weight"] *= 1.01
    torch.save(weights, path)
    assert not uses_blocks(Llama.from_checkpoint(converted, quantize="int4"))


def test_a_stray_gguf_is_not_used(converted):
    (converted / "SOURCE.txt").unlink()
    assert not uses_blocks(Llama.from_checkpoint(converted, quantize="int4"))


@pytest.mark.parametrize("content", [b"GGUF", b""])
def test_where_its_file_is_damaged_the_four_bits_are_found_again(converted, content):
    (converted / "tiny.gguf").write_bytes(content)
    with pytest.warns(UserWarning, match=r"tiny\.gguf"):
        model = Llama.from_checkpoint(converted, quantize="int4")
    assert not uses_blocks(model) and list(generate(model, [1, 2], 3))


# The small real model

MEASURE = """
import re, sys
from pathlib import Path
import torch
import llama3_scratch
from llama3_scratch import Llama, generate, load_checkpoint

def own():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

imported = own()
checkpoint = load_checkpoint("smollm2-135m")
model = Llama.from_checkpoint(checkpoint, quantize="int4")
tokens = checkpoint.tokenizer.encode("The capital of France is")
most = own()
for id in generate(model, tokens, 16):
    most = max(most, own())
    tokens.append(id)
print(most - imported, repr(checkpoint.tokenizer.decode(tokens)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what memory is a process's own")
def test_the_small_model_in_its_four_bits_takes_at_most_150_mb(smollm2):
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    used, text = done.stdout.split(" ", 1)
    assert int(used) <= 150e6
    assert "The capital of France is Paris" in text


TEXTS = [
    "The capital of France is Paris, and the capital of Italy is",
    "def add(a, b):\n    return a +",
    "Once upon a time there was a king who had three daughters. The youngest of them was",
]


@pytest.mark.slow
def test_the_small_model_in_its_four_bits_is_the_one_in_float32(smollm2):
    model = Llama.from_checkpoint(smollm2, quantize="int4")
    kinds = [linear.kind for linear in linears(model).values()]
    assert (kinds.count("int4"), kinds.count("q8_0")) == (210, 1)
    for text in TEXTS:
        tokens = smollm2.tokenizer.encode(text)
        with torch.inference_mode():
            ours, theirs = model(tokens), functional.forward(tokens, smollm2.weights, smollm2.params)
        # 0.63 in ten texts, on logits whose deviation is 6: activations and scales are rounded to bfloat16
        assert (ours - theirs).abs().max() < 1
        assert (ours - theirs).square().mean().sqrt() < 0.03 * theirs.std()
        assert torch.equal(ours[-1].argmax(), theirs[-1].argmax())
