"""Files of strangers: whatever lies in a folder, it opens right or is refused at once, and nothing in it is run."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path

import fuzz
import pytest
import torch
from helpers import naming
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama3_scratch import CheckpointError, Llama, ModelArgs, Tokenizer, functional, generate, load_checkpoint
from llama3_scratch.loading import mapped
from llama3_scratch.loading import pth as pth_module

WEIGHTS = "consolidated.00.pth"
KEY = "layers.0.attention.wq.weight"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Three small whole checkpoints: meta, shards, hf."""
    return fuzz.write_checkpoints(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def broken(whole, tmp_path):
    return shutil.copytree(whole["meta"], tmp_path / "broken")


def refusal(broken, words=""):
    """The message with which a folder is refused, after checking what every such message must be."""
    with pytest.raises(CheckpointError, match=naming(words)) as raised:
        load_checkpoint(broken)
    message = str(raised.value)
    assert len(message) < 600 and message.isprintable()
    assert "weights_only" not in message and "safe_globals" not in message
    return message


def change(broken, edit, name=WEIGHTS):
    weights = torch.load(broken / name)
    weights = edit(weights) or weights
    torch.save(weights, broken / name)


# Files that are not what their names say


REPLACEMENTS = {
    "nothing": lambda path: path.unlink(),
    "an empty file": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "an endless device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a web page": lambda path: path.write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>"),
    "a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}
FILES = [("meta", WEIGHTS), ("meta", "params.json"), ("meta", "tokenizer.model"), ("shards", "consolidated.01.pth")]
FILES += [("hf", "config.json"), ("hf", "model.safetensors"), ("hf", "tokenizer.json")]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links")
@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize(("layout", "name"), FILES)
def test_something_else_in_the_place_of_a_file_is_refused_by_name(whole, tmp_path, layout, name, replacement):
    broken = shutil.copytree(whole[layout], tmp_path / "broken")
    REPLACEMENTS[replacement](broken / name)
    if (name, replacement) == ("tokenizer.json", "nothing"):
        with pytest.warns(UserWarning, match=naming("no tokenizer")):
            assert load_checkpoint(broken).tokenizer is None
        return
    message = refusal(broken)
    assert (name in message) or (name, replacement) in (("config.json", "nothing"), ("consolidated.01.pth", "nothing"))
    if "Git LFS" in replacement or "web page" in replacement:
        assert replacement in message or "git lfs pull" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_refused_by_name(whole, request):
    place = tempfile.TemporaryDirectory()  # not pytest's, which every other pytest closes to others when it starts
    request.addfinalizer(place.cleanup)
    Path(place.name).chmod(0o755)
    closed = [
        Path(place.name) / f"broken{i}" / name
        for i, name in enumerate([WEIGHTS, "params.json", "tokenizer.model", "."])
    ]
    for i, path in enumerate(closed):
        shutil.copytree(whole["meta"], Path(place.name) / f"broken{i}")
        path.chmod(0)
    code = f"""
import os
from llama3_scratch import CheckpointError, load_checkpoint
os.setuid(65534)
for i in range({len(closed)}):
    try: load_checkpoint({place.name!r} + f"/broken{{i}}")
    except CheckpointError as e: print(e)
    else: print("opened")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said) == len(closed), done.stdout + done.stderr
    for path, line in zip(closed, said, strict=True):
        assert f"{path}: " in line and "Permission denied" in line


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-of-this-name/model", "llama-4"])
def test_a_name_that_cannot_be_a_folder_is_refused(name):
    refusal(name)


def test_a_file_in_the_place_of_the_folder_is_refused_with_its_folder(broken):
    assert refusal(broken / WEIGHTS, "point at").endswith(str(broken))


@pytest.mark.parametrize("below", ["original", "Llama-3-8B", "snapshots/0e9e39f249a16976918f6564b8830bc894c89659"])
@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_the_folder_above_a_model_points_to_it(whole, tmp_path, below, layout):
    shutil.copytree(whole[layout], tmp_path / below)
    assert f"Point at {tmp_path / below}" in refusal(tmp_path)


def test_a_folder_with_an_older_kind_of_weights_says_what_it_found(whole, tmp_path):
    broken = shutil.copytree(whole["hf"], tmp_path / "old")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    refusal(broken, "model.safetensors not found pytorch_model.bin")


def test_what_is_in_the_place_of_a_file_is_said(broken):
    (broken / WEIGHTS).unlink()
    (broken / WEIGHTS).symlink_to("nowhere")
    assert refusal(broken, "link nowhere download").startswith(f"{broken / WEIGHTS}: ")
    (broken / WEIGHTS).unlink()
    (broken / WEIGHTS).mkdir()
    assert refusal(broken, "not a file").startswith(f"{broken / WEIGHTS}: ")


# Weights


def test_a_flipped_bit_is_found_by_its_checksum(broken):
    data = bytearray((broken / WEIGHTS).read_bytes())
    weight = torch.load(broken / WEIGHTS)[KEY]
    data[data.index(weight.numpy().tobytes()) + 5] ^= 1
    (broken / WEIGHTS).write_bytes(data)
    assert re.search(r"data/\d+", refusal(broken, f"{WEIGHTS} checksum"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["tok_embeddings.weight", KEY, "norm.weight", "output.weight"])
@pytest.mark.parametrize("layout", ["meta", "shards", "hf"])
def test_a_number_that_is_none_is_refused_by_the_name_of_its_tensor(whole, tmp_path, layout, key, value):
    broken = shutil.copytree(whole[layout], tmp_path / "broken")
    if layout == "hf":
        from safetensors.torch import load_file, save_file

        from llama3_scratch.loading.huggingface import huggingface_name

        key = huggingface_name(key)
        tensors = load_file(broken / "model.safetensors")
        tensors[key].view(-1)[-1] = value
        save_file(tensors, broken / "model.safetensors")
    else:
        name = sorted(path.name for path in broken.glob("*.pth"))[-1]
        change(broken, lambda w: w[key].view(-1)[-1].fill_(value) and None, name)
    refusal(broken, f"{key} NaN infinity")


@pytest.mark.parametrize("key", [KEY, "norm.weight", "layers.0.feed_forward.w2.weight"])
def test_in_a_large_file_it_is_named_once_it_shows(broken, monkeypatch, key):
    change(broken, lambda w: w[key].view(-1)[3].fill_(torch.nan) and None)
    monkeypatch.setattr(mapped, "CHECKED_BYTES", 0)
    monkeypatch.setattr(pth_module, "CHECKED_BYTES", 0)
    ckpt = load_checkpoint(broken)
    with pytest.raises(CheckpointError, match=naming(f"{key} NaN infinity")):
        functional.forward([1, 2], ckpt.weights, ckpt.params)
    with pytest.raises(CheckpointError, match=naming(f"{key} NaN infinity")):
        list(generate(Llama.from_checkpoint(ckpt), [1, 2]))


def test_an_overflow_is_not_blamed_on_the_weights(whole):
    ckpt = load_checkpoint(whole["meta"], dtype=torch.float16)
    large = {key: t * 3e4 if key == "output.weight" else t for key, t in ckpt.weights.items()}
    with pytest.raises(ValueError, match=naming("logits finite overflowed dtype")) as raised:
        functional.forward([1, 2], {k: t.clamp(-6e4, 6e4) for k, t in large.items()}, ckpt.params)
    assert not isinstance(raised.value, CheckpointError)


OTHER_CONTENT = {
    "a training checkpoint": (
        lambda w: {"model": w, "optimizer": {"state": {0: 1.5}}, "epoch": 3},
        "save model",
    ),
    "a list": (lambda w: list(w.values()), "list"),
    "a single tensor": (lambda w: w[KEY], "single tensor"),
    "nothing": (lambda w: None, "None"),
    "a module": (lambda w: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear called"),
    "Hugging Face's names": (
        lambda w: {"model.norm.weight": w["norm.weight"], "model.embed_tokens.weight": w["tok_embeddings.weight"]},
        "Hugging Face config.json",
    ),
    "a quantised tensor": (
        lambda w: w | {KEY: torch.quantize_per_tensor(w[KEY], 0.1, 0, torch.qint8)},
        f"{KEY} plain tensor",
    ),
    "a complex tensor": (lambda w: w | {KEY: w[KEY].to(torch.complex64)}, f"{KEY} ComplexFloatStorage"),
    "a view with its sign turned": (lambda w: w | {KEY: torch._neg_view(w[KEY])}, f"{KEY} view"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # quantised tensors are going out of use
@pytest.mark.parametrize("content", OTHER_CONTENT)
def test_something_else_than_a_dict_of_plain_tensors_is_refused(broken, content):
    edit, words = OTHER_CONTENT[content]
    torch.save(edit(torch.load(broken / WEIGHTS)), broken / WEIGHTS)
    refusal(broken, words)


def test_full_copies_are_not_taken_for_shards(broken):
    shutil.copy(broken / WEIGHTS, broken / "consolidated.01.pth")
    refusal(broken, f"{WEIGHTS} 2 shards copy")


def test_one_shard_twice_is_not_taken_for_two(whole, tmp_path):
    broken = shutil.copytree(whole["shards"], tmp_path / "broken")
    shutil.copy(broken / WEIGHTS, broken / "consolidated.01.pth")
    refusal(broken, f"consolidated.01.pth same {WEIGHTS} download")


def entries_of(path):
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def test_a_list_of_tensors_that_is_far_too_long_is_refused_unread(broken):
    path = broken / WEIGHTS
    program = next(data for name, data in entries_of(path).items() if name.endswith("data.pkl"))
    with_pickle(path, program + bytes(2**20))
    refusal(broken, f"{WEIGHTS} list tensors larger")


def test_another_zip_file_is_refused(broken):
    with zipfile.ZipFile(broken / WEIGHTS, "w") as archive:
        archive.writestr("photographs/cat.jpg", b"a cat")
    refusal(broken, f"{WEIGHTS} zip torch.save")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_is_refused(broken):
    entries = entries_of(broken / WEIGHTS)
    with zipfile.ZipFile(broken / WEIGHTS, "a") as archive:
        name = next(name for name in entries if name.endswith("/data/1"))
        archive.writestr(name, bytes(len(entries[name])))
    refusal(broken, f"{WEIGHTS} zip torch.save")


# Files that were made to do harm


class Hook:
    """Asks whoever opens it to call Path.touch(mark)."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def with_entry(path, ending, content):
    """Put another content into an entry of a .pth file."""
    entries = entries_of(path)
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            new.writestr(name, content if name.endswith(ending) else data)


def with_pickle(path, program):
    with_entry(path, "data.pkl", program)


def hidden_in_metadata(weights, hook):
    weights = OrderedDict(weights)
    weights._metadata = hook
    return weights


def call(function, argument):
    """A pickle, written by hand, that calls function(argument) with the older instructions."""
    return {
        "INST": b"(S" + repr(argument).encode() + b"\ni" + function + b"\n.",
        "OBJ": b"(c" + function + b"\nS" + repr(argument).encode() + b"\no.",
        "REDUCE": b"c" + function + b"\n(S" + repr(argument).encode() + b"\ntR.",
        "dropped": b"c" + function + b"\n(S" + repr(argument).encode() + b"\ntR0}.",
    }


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize(
    "place", ["a tensor", "a dict inside", "metadata", "protocol 4", "INST", "OBJ", "REDUCE", "dropped"]
)
def test_a_pickle_that_would_run_code_is_refused_in_any_shard(whole, tmp_path, place, shard):
    broken, mark = shutil.copytree(whole["shards"], tmp_path / "broken"), tmp_path / "it ran"
    path = broken / f"consolidated.{shard:02d}.pth"
    weights, hook = torch.load(path), Hook(mark)
    if place in ("a tensor", "protocol 4"):
        torch.save(weights | {KEY: hook}, path, pickle_protocol=4 if place == "protocol 4" else 2)
    elif place == "a dict inside":
        torch.save(weights | {KEY: {"deeper": [hook]}}, path)
    elif place == "metadata":
        torch.save(hidden_in_metadata(weights, hook), path)
    else:
        with_pickle(path, call(b"os\nmkdir", str(mark))[place])
    refusal(broken, path.name)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so it would have run


def test_a_tensor_with_attributes_is_a_tensor(broken):
    expected = torch.load(broken / WEIGHTS)[KEY]
    weights = torch.load(broken / WEIGHTS)
    weights[KEY].note = "kept by whoever saved it"
    torch.save(weights, broken / WEIGHTS)
    assert torch.equal(load_checkpoint(broken).weights[KEY], expected)


def test_a_file_without_checksums_says_so(broken):
    torch.serialization.set_crc32_options(False)
    try:
        change(broken, lambda w: w)
    finally:
        torch.serialization.set_crc32_options(True)
    refusal(broken, f"{WEIGHTS} no checksums")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript
@pytest.mark.parametrize("kind", ["legacy", "bare pickle", "tar", "TorchScript", "zip behind something else"])
def test_the_other_formats_that_torch_reads_are_refused_unread(broken, tmp_path, kind):
    mark, path = tmp_path / "it ran", broken / WEIGHTS
    if kind == "legacy":
        torch.save({KEY: Hook(mark)}, path, _use_new_zipfile_serialization=False)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps({KEY: Hook(mark)}))
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            data = pickle.dumps(Hook(mark))
            info = tarfile.TarInfo("pickle")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    elif kind == "TorchScript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    else:
        path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    refusal(broken, WEIGHTS if kind == "TorchScript" else f"{WEIGHTS} version 1.6")
    assert not mark.exists()


def test_a_pickle_with_instructions_that_torch_does_not_write_is_refused(broken):
    path = broken / WEIGHTS
    program = next(data for name, data in entries_of(path).items() if name.endswith("data.pkl"))
    with_pickle(path, program[:-1] + b"N0.")  # push None, and drop it
    refusal(broken, f"{WEIGHTS} POP torch.save")


class Described:
    """A tensor as torch.save describes it, with any numbers."""

    def __init__(self, storage, *numbers):
        self.arguments = (Storage(*storage), *numbers, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Storage:
    def __init__(self, *description):
        self.description = description


class Pickler(pickle._Pickler):
    def persistent_id(self, thing):
        return thing.description if isinstance(thing, Storage) else None


def described(**tensors):
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({key.replace("__", "."): tensor for key, tensor in tensors.items()})
    return buffer.getvalue()


F, N = torch.FloatStorage, 256  # layers.0.attention.wq.weight is [16, 16], in data/1
LIES = {
    "more numbers than bytes": Described(("storage", F, "1", "cpu", N * 4), 0, (64, 16), (16, 1)),
    "fewer numbers than bytes": Described(("storage", F, "1", "cpu", N // 2), 0, (16, 8), (8, 1)),
    "a storage that is not there": Described(("storage", F, "99", "cpu", N), 0, (16, 16), (16, 1)),
    "a place outside": Described(("storage", F, "../params.json", "cpu", N), 0, (16, 16), (16, 1)),
    "a start behind its end": Described(("storage", F, "1", "cpu", N), N, (16, 16), (16, 1)),
    "a start before its beginning": Described(("storage", F, "1", "cpu", N), -16, (16, 16), (16, 1)),
    "steps beyond its end": Described(("storage", F, "1", "cpu", N), 0, (16, 16), (17, 1)),
    "steps backwards": Described(("storage", F, "1", "cpu", N), 255, (16, 16), (-16, -1)),
    "one number as very many": Described(("storage", F, "1", "cpu", N), 0, (2**40, 2**20), (0, 0)),
    "a size that overflows": Described(("storage", F, "1", "cpu", 2**64), 0, (2**62, 4), (4, 1)),
    "a size that is a text": Described(("storage", F, "1", "cpu", "256"), 0, (16, 16), (16, 1)),
    "a type without a name": Described(("storage", "", "1", "cpu", N), 0, (16, 16), (16, 1)),
    "a shape that is a number": Described(("storage", F, "1", "cpu", N), 0, 256, (16, 1)),
    "a text as very many": Described(("storage", F, "1", "cpu", N), 0, (2**59, "ab"), (0, 0)),
    "half a description": Described(("storage", F)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies_about_its_storage_is_refused_by_name(broken, lie):
    with_pickle(broken / WEIGHTS, described(layers__0__attention__wq__weight=LIES[lie]))
    refusal(broken, f"{WEIGHTS} {KEY}")


def test_a_file_written_on_another_kind_of_machine_is_refused(broken):
    with_entry(broken / WEIGHTS, "byteorder", b"big")
    refusal(broken, f"{WEIGHTS} byte order")


def nested_tuples(levels):
    """Each holds the one before twice: a few bytes a level, and 2^levels things to look at."""
    program = b"K\x01\x85q\x00"
    for i in range(levels):
        program += b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    return program


STORAGE = b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
BOMBS = {
    "ten gigabytes asked for": b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\n\x8a\x05\0\xe4\x0bT\x02\x85Rs.",
    "a place in memory far away": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a text longer than the file": b"\x80\x02X\xff\xff\xff\xff.",
    "a key that takes for ever to hash": b"\x80\x02}" + nested_tuples(60) + b"K\x01s.",
    "a storage that does": STORAGE + nested_tuples(60) + b"X\x03\0\0\0cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89}tRs.",
    "very deep": b"\x80\x02" + b"(" * 500_000 + b".",
    "very many": b"\x80\x02" + b"]" * 1_000_000 + b".",
}


VOCABULARIES = {  # tokenizer_params.json -> what is named
    "an id beyond any": ({"special_tokens": {"<|x|>": 2**30 + 1}}, "id 1073741824"),
    "an id twice": ({"special_tokens": {"<|x|>": 300, "<|y|>": 300}}, "id two tokens"),
    "a token without a name": ({"special_tokens": {"": 300}}, "special token without name"),
    "half a character": ({"special_tokens": {"\ud800": 300}}, "special token without name"),
    "half a character in the pattern": ({"pattern": "\ud800"}, "pattern"),
    "a pattern that is too long": ({"pattern": "a|" * 1500 + r"\s+|\S+"}, "pattern"),
    "repeats of repeats": ({"pattern": r"(?:(?:a{999}){999}){999}|\s+|\S+"}, "pattern"),
    "repeats of none": ({"pattern": r"(?:(?:(?:a{999}){999}){999}){0}|\s+|\S+"}, "pattern"),
    "pieces of nothing": ({"pattern": r"\s*"}, "pattern"),
    "a pattern that takes for ever": ({"pattern": r"(.|\s)*" * 10 + "(?<=Z)(?!.)"}, "pattern timed out"),
    "a bracket too many": ({"pattern": ")"}, r"pattern"),
    "very deep": ({"pattern": "(" * 900 + "a" + ")" * 900}, "pattern"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_vocabulary_that_tiktoken_would_end_or_never_end_with_is_refused(broken, kind):
    change, words = VOCABULARIES[kind]
    path = broken / "tokenizer_params.json"
    config = json.loads(path.read_text())
    special = config["special_tokens"] | change.get("special_tokens", {})
    path.write_text(json.dumps(config | change | {"special_tokens": special}))
    with pytest.raises(CheckpointError, match=naming(f"tokenizer_params.json {words}")):
        Tokenizer(broken / "tokenizer.model")


def test_a_vocabulary_that_was_cut_off_is_warned_of(broken):
    path = broken / "tokenizer.model"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.warns(UserWarning, match=naming("tokenizer.model cut off download")):
        load_checkpoint(broken)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "x*",
        r"\b",
        "(",
        "a{1000000000}",
        "a{99999999999}",
        "((a{99}){99}){99}",
        "a|" * 2000,
        "\ud800",
        "(" * 999 + ")" * 999,
    ],
    ids=lambda pattern: ascii(pattern[:20]),
)
def test_a_pattern_that_would_hang_or_fill_the_memory_is_refused(whole, tmp_path, pattern):
    broken = shutil.copytree(whole["meta"], tmp_path / "broken")
    content = json.loads((broken / "tokenizer_params.json").read_text())
    (broken / "tokenizer_params.json").write_text(json.dumps(content | {"pattern": pattern}))
    refusal(broken, "tokenizer_params.json pattern")


def test_a_pattern_with_other_alphabets_is_taken(broken):
    content = json.loads((broken / "tokenizer_params.json").read_text())
    content["pattern"] = r"[\u4e00-\u9fff\u3040-\u309f\u30a0-\u30ff]+|" + content["pattern"]
    (broken / "tokenizer_params.json").write_text(json.dumps(content))
    tokenizer = load_checkpoint(broken).tokenizer
    assert tokenizer.decode(tokenizer.encode("東京 the")) == "東京 the"


def test_bombs_are_refused_before_memory_or_time_grow(broken, tmp_path):
    folders = []
    for i, program in enumerate(BOMBS.values()):
        folders.append(shutil.copytree(broken, tmp_path / f"bomb{i}"))
        with_pickle(folders[-1] / WEIGHTS, program)
    for name in (WEIGHTS, "params.json", "tokenizer.model"):  # ten gigabytes of zeros, in a file that takes no room
        folders.append(shutil.copytree(broken, tmp_path / f"sparse {name}"))
        with open(folders[-1] / name, "r+b") as f:
            f.truncate(10**10)
    squeezed = shutil.copytree(broken, tmp_path / "squeezed")
    with zipfile.ZipFile(squeezed / WEIGHTS, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    code = f"""
import re, resource, time
from pathlib import Path
from llama3_scratch import CheckpointError, load_checkpoint
def used(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10
before = used()
for folder in {[str(f) for f in [*folders, squeezed]]!r}:
    started = time.perf_counter()
    try: load_checkpoint(folder)
    except CheckpointError as e: assert len(str(e)) < 600
    else: print(folder, "opened")
    if time.perf_counter() - started > 10 or used() - before > 500: print(folder, used() - before, "MB")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# Thousands of damaged files: a short run of tests/programs/fuzz.py


def test_damaged_files_open_as_they_were_or_are_refused(tmp_path):
    outcomes, _, _, failures = fuzz.run(count=100, seed=0, keep=tmp_path)
    assert not failures
    results = {result for _, _, result in outcomes}
    assert results == {"refused", "equal", "different"}  # and none of them alone


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(1, 64) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
PARAMS_KEYS = [field.name for field in fields(ModelArgs)]
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(changes=st.dictionaries(st.sampled_from(PARAMS_KEYS) | st.text(max_size=5), anything, max_size=4))
@pytest.mark.filterwarnings("ignore:params.json. ignoring unknown keys", "ignore:tokenizer.model.")
def test_any_params_json_is_usable_or_refused(broken, whole, changes):
    content = json.loads((whole["meta"] / "params.json").read_text()) | changes
    (broken / "params.json").write_text(json.dumps(content))
    fuzz.outcome(broken, load_checkpoint(whole["meta"]))


tokens = st.sampled_from(["IQ==", "Ig==", "", "=", "QUI=", "é"]) | st.text(max_size=4)
lines = st.lists(st.tuples(tokens, st.integers() | st.text(max_size=3)), max_size=4)


@quick
@given(lines=lines, end=st.sampled_from(["\n", "\r\n", ""]), at=st.integers(0, 260), data=st.binary(max_size=30))
def test_any_tokenizer_model_is_usable_or_refused(broken, whole, lines, end, at, data):
    content = (whole["meta"] / "tokenizer.model").read_bytes().splitlines()
    content[at:at] = [f"{token} {rank}".encode("utf-8", "replace") for token, rank in lines]
    (broken / "tokenizer.model").write_bytes(end.encode().join(content) + data)
    try:
        tokenizer = Tokenizer(broken / "tokenizer.model")
    except CheckpointError as e:
        assert "tokenizer" in str(e) and len(str(e)) < 600
    else:
        assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
