"""One model on two and on four processes: what Hugging Face's model on one says, from every way to cut and to store.

All models are opened by one group of two processes and one of four, which programs/parallel_group.py starts: a process
costs seconds, a model in it none.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from filelock import FileLock
from helpers import (
    distance,
    hf_greedy,
    hf_logits,
    hf_model,
    naming,
    random_gguf_tensors,
    random_tokens,
    their_model,
    write_checkpoint,
    write_gguf,
)

import llama3_scratch
from llama3_scratch import Llama, ModelArgs, generate, load_checkpoint
from llama3_scratch.loading.tiny import random_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:tokenizer.model. .* tokens, and the model has .* rows"),
    pytest.mark.filterwarnings("ignore:hf. no tokenizer.json"),
]

PROGRAM = Path(__file__).parents[1] / "programs" / "parallel_group.py"
COUNTS, WAYS = [2, 4], ["tensor", "pipeline"]
LENGTH, WRITE = 40, 4
SCALED = {"use_scaled_rope": True, "rope_theta": 1e4}
# Sizes, shards, and whether tied. In those without shards hidden sizes and vocabularies do not divide, either.
MODELS = {  # dim, n_layers, n_heads, n_kv_heads, vocab_size
    "ratio 3 in two shards": ((48, 4, 12, 4, 520), SCALED, 2, False),
    "ratio 4 in four shards": ((96, 5, 16, 4, 512), {}, 4, False),
    "one KV head, tied, in two shards": ((64, 4, 4, 1, 514), SCALED, 2, True),
    "tied, in four shards": ((64, 4, 8, 8, 516), {}, 4, True),
    "nothing divides": ((40, 5, 4, 1, 523), {"norm_eps": 1e-3}, 1, True),
    "groups cut in the middle": ((72, 4, 12, 3, 515), {}, 1, False),
    "fewer KV heads than processes": ((72, 4, 12, 2, 519), {}, 1, False),
}
FITTING = {2: "ratio 3 in two shards", 4: "ratio 4 in four shards"}  # each process has a file of its own
OTHERS = ("a GGUF file", "Hugging Face's folder")
WRITTEN_BY_FOUR = ("ratio 4 in four shards", "nothing divides", "groups cut in the middle")
# n_heads, n_kv_heads of each process in tensor parallel
HEADS = {
    "ratio 3 in two shards": {2: (6, 2), 4: (3, 1)},
    "ratio 4 in four shards": {2: (8, 2), 4: (4, 1)},
    "one KV head, tied, in two shards": {2: (2, 1), 4: (1, 1)},
    "tied, in four shards": {2: (4, 4), 4: (2, 2)},
    "nothing divides": {2: (2, 1), 4: (1, 1)},
    "groups cut in the middle": {2: (6, 3), 4: (3, 3)},  # groups of 4: 6 heads are 4 + 2 or 2 + 4, so three pairs
    "fewer KV heads than processes": {2: (6, 1), 4: (3, 1)},
}


def params_json(name):
    sizes, more, shards, _ = MODELS[name]
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")
    return dict(zip(names, sizes, strict=True)) | {"multiple_of": shards} | more


def weights_of(name, seed=1):
    return random_weights(ModelArgs(**params_json(name)), torch.float32, MODELS[name][3], seed)


def write_models(home):
    """Name -> where it is."""
    places = {}
    for number, (name, (_, _, shards, _)) in enumerate(MODELS.items()):
        places[name] = write_checkpoint(home / f"m{number}", params_json(name), weights_of(name), shards)
    write_gguf(home / "model.gguf", random_gguf_tensors(), kinds={"attn_q": gguf.GGMLQuantizationType.Q8_0})
    places["a GGUF file"] = home / "model.gguf"
    theirs = their_model(num_hidden_layers=4, tie_word_embeddings=True)
    theirs.save_pretrained(home / "hf", max_shard_size="60KB")
    places["Hugging Face's folder"] = home / "hf"
    return {name: str(path) for name, path in places.items()}


@cache
def referee(name, home):
    """Hugging Face's model on one process, over weights as they were before they were written."""
    if name == "Hugging Face's folder":
        return their_model(num_hidden_layers=4, tie_word_embeddings=True)
    if name == "a GGUF file":
        ckpt = load_checkpoint(home / "model.gguf")
        return hf_model(ckpt.params, {key: ckpt.weights[key].clone() for key in ckpt.weights})
    return hf_model(ModelArgs(**params_json(name)), weights_of(name))


def tokens_of(name):
    return random_tokens(ModelArgs(8, 1, 1, 512 if name in MODELS else 260), LENGTH)


def jobs(home, places, count):
    """By name: what the processes do."""
    found = {}
    for name, path in places.items():
        job = {"path": path, "tokens": tokens_of(name).tolist()}
        if name == "a GGUF file" and count == 4:  # of 6 heads and 2 layers
            continue
        for how in WAYS:
            write = WRITE if count == 2 or (how == "tensor" and name in WRITTEN_BY_FOUR) else 0
            found[name, how] = job | {"how": how, "write": write}
    sharded = FITTING[count]
    job = {"path": places[sharded], "tokens": tokens_of(sharded).tolist(), "how": "tensor"}
    alone = [cut_out(Path(places[sharded]), home / f"machine{count}.{i}", [i]) for i in range(count)]
    found["own files"] = job | {"paths": alone}
    for dtype in ("bfloat16", "float16", "float64") if count == 2 else ("bfloat16",):
        found[dtype] = job | {"dtype": dtype}
    found["norms that differ a little"] = job | {"path": changed(Path(places[sharded]), home / f"norms{count}", 1e-3)}
    for how in ("tensor", "pipeline"):
        found["called badly", how] = job | {"do": "call badly", "how": how}
        found["wire", how] = job | {"do": "wire", "how": how, "latency": 0.01, "speed": 1e6}
    # What is refused, by all in the same words
    empty = home / f"empty{count}"
    found["a missing shard"] = job | {"paths": [*alone[:-1], cut_out(Path(places[sharded]), empty, [])]}
    found["two have the same shard"] = job | {"paths": [*alone[:-1], alone[0]]}
    found["other numbers"] = job | {"paths": [*alone[:-1], other(sharded, home / f"other{count}", count - 1)]}
    whole = places["groups cut in the middle"]
    other_whole = home / f"whole{count}"
    write_checkpoint(
        other_whole, params_json("groups cut in the middle"), weights_of("groups cut in the middle", seed=2)
    )
    found["another whole file"] = job | {"paths": [whole] * (count - 1) + [str(other_whole)]}
    found["other sizes"] = job | {"paths": [whole] * (count - 1) + [places["nothing divides"]]}
    found["another layout"] = job | {"paths": [whole] * (count - 1) + [places["Hugging Face's folder"]]}
    found["nowhere on one"] = job | {"paths": [whole] * (count - 1) + [str(home / "nowhere")]}
    found["nowhere"] = job | {"path": str(home / "nowhere")}
    garbage = write_checkpoint(home / f"garbage{count}", params_json("nothing divides") | {"n_heads": 5}, {})
    (garbage / "consolidated.00.pth").write_bytes(b"no weights at all")
    found["heads that do not divide"] = job | {"path": str(garbage)}
    few = write_checkpoint(home / f"few{count}", params_json("nothing divides") | {"n_layers": count - 1}, {})
    (few / "consolidated.00.pth").write_bytes(b"no weights at all")
    found["too few layers"] = job | {"path": str(few), "how": "pipeline"}
    found["not the same way"] = job | {"how": "neither"}
    return found


def cut_out(folder, target, shards):
    """A machine that has only some of the files."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".pth" or int(path.suffixes[0][1:]) in shards:
            (target / path.name).write_bytes(path.read_bytes())
    return str(target)


def changed(folder, target, by):
    """The same model, with norms in its shards that differ a little, as in the 70B."""
    cut_out(folder, target, range(4))
    for i, path in enumerate(sorted(target.glob("*.pth"))):
        torch.save({k: t * (1 + i * by) if "norm" in k else t for k, t in torch.load(path).items()}, path)
    return str(target)


def other(name, target, shard):
    """One shard of a model of the same sizes, with other numbers, norms too."""
    folder = write_checkpoint(target, params_json(name), weights_of(name, seed=2), MODELS[name][2])
    for path in folder.glob("*.pth"):
        if int(path.suffixes[0][1:]) != shard:
            path.unlink()
    return str(folder)


@pytest.fixture(scope="session")
def group(tmp_path_factory):
    """Number of processes -> what each has found, by job. Started once, whoever asks first."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "popen" in shared.name else shared  # pytest-xdist's workers have one above theirs

    @cache
    def run(count):
        home = shared / f"parallel{count}"
        with FileLock(shared / f"parallel{count}.lock"):
            if not (home / "done").exists():
                home.mkdir()
                work = jobs(home, write_models(home), count)
                (home / "jobs.json").write_text(json.dumps(list(work.values())))
                (home / "names.json").write_text(json.dumps([n if isinstance(n, str) else list(n) for n in work]))
                command = [sys.executable, PROGRAM, str(count), home]
                environment = os.environ | {"PYTHONPATH": str(Path(llama3_scratch.__file__).parents[1])}
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
                assert done.returncode == 0, done.stderr
                (home / "done").write_text(done.stderr)
        names = [n if isinstance(n, str) else tuple(n) for n in json.loads((home / "names.json").read_text())]
        every = [torch.load(home / f"found.{i}.pt", weights_only=False) for i in range(count)]
        return home, {name: [found[i] for found in every] for i, name in enumerate(names)}

    return run


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_every_process_has_hugging_faces_logits_and_text(group, name, how, count):
    home, found = group(count)
    if name == "a GGUF file" and count == 4:
        pytest.skip("6 heads, 2 layers")
    theirs, tokens = referee(name, home), tokens_of(name)
    expected = hf_logits(theirs, tokens)
    for mine in found[name, how]:
        assert "error" not in mine, mine
        assert distance(mine["logits"], expected) < 1e-4
        assert distance(mine["last"][0], expected[-1:]) < 1e-4
        assert distance(mine["cached"], expected) < 1e-4
        # To the last bit what the others have: each chooses the next token by itself.
        assert torch.equal(mine["logits"], found[name, how][0]["logits"])
        assert mine["types"] == {torch.float32} and not mine["learns"]
    if "greedy" not in found[name, how][0]:
        return
    prompt = tokens[:7].tolist()
    prompts = [prompt, prompt[:2], tokens[3:8].tolist()]
    greedy = hf_greedy(theirs, prompt, WRITE)
    batch = hf_greedy(theirs, prompts, WRITE)
    model = Llama.from_checkpoint(home_of(name, home))
    drawn = list(generate(model, prompt, WRITE, temperature=1.0, top_p=0.9, seed=3))
    for mine in found[name, how]:
        assert mine["greedy"] == greedy
        assert [list(column) for column in zip(*mine["batch"], strict=True)] == batch
        assert mine["drawn"] == drawn


def home_of(name, home):
    return {"a GGUF file": home / "model.gguf", "Hugging Face's folder": home / "hf"}.get(
        name, home / f"m{[*MODELS].index(name) if name in MODELS else 0}"
    )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", MODELS)
def test_parts_have_the_sizes_of_their_share(group, name, count):
    found, whole = group(count)[1], ModelArgs(**params_json(name))
    parts = [mine["sizes"] for mine in found[name, "tensor"]]
    assert {part[:2] for part in parts} == {HEADS[name][count]}
    assert sum(part[2] for part in parts) == whole.hidden_dim
    assert {part[3] for part in parts} == {whole.n_layers}
    layers = [mine["sizes"][3] for mine in found[name, "pipeline"]]
    assert sum(layers) == whole.n_layers and max(layers) - min(layers) <= 1
    assert {mine["sizes"][:3] for mine in found[name, "pipeline"]} == {
        (whole.n_heads, whole.n_kv_heads, whole.hidden_dim)
    }


@pytest.mark.parametrize("count", COUNTS)
def test_as_many_shards_as_processes_each_opens_its_own_file_alone(group, count):
    _, found = group(count)
    sharded = FITTING[count]
    for mine, same in zip(found["own files"], found[sharded, "tensor"], strict=True):  # no others are on its machine
        assert torch.equal(mine["logits"], same["logits"])


@pytest.mark.parametrize("count", COUNTS)
def test_norms_that_differ_a_little_are_those_of_the_first_shard(group, count):
    _, found = group(count)
    sharded = FITTING[count]
    for mine, same in zip(found["norms that differ a little"], found[sharded, "tensor"], strict=True):
        assert torch.equal(mine["logits"], same["logits"])


@pytest.mark.parametrize("count", COUNTS)
def test_sixteen_bits_stray_no_further_than_on_one_process(group, count):
    home, found = group(count)
    sharded = FITTING[count]
    exact = hf_logits(referee(sharded, home), tokens_of(sharded))
    for dtype in (torch.bfloat16, torch.float16) if count == 2 else (torch.bfloat16,):
        alone = Llama.from_checkpoint(home_of(sharded, home), dtype)
        with torch.no_grad():
            ours = (alone(tokens_of(sharded)) - exact).norm()
        for mine in found[str(dtype).removeprefix("torch.")]:
            assert mine["types"] == {dtype}
            assert (mine["logits"] - exact).norm() < 1.3 * ours
    for mine in found.get("float64", ()):
        assert mine["types"] == {torch.float64} and distance(mine["logits"], exact) < 1e-4


@pytest.mark.parametrize("count", COUNTS)
def test_bytes_sent_are_those_of_the_formula(group, count):
    _, found = group(count)
    sharded = FITTING[count]
    params = ModelArgs(**params_json(sharded))
    stream = 4 * LENGTH * params.dim  # float32
    for mine in found[sharded, "tensor"]:
        sums = 2 * params.n_layers + 1  # two a layer, and the embeddings
        assert mine["sent"]["sum"] == pytest.approx(sums * stream * 2 * (count - 1) / count)
        assert mine["sent"]["gather"] == (count - 1) * 4 * LENGTH * params.vocab_size / count
    passed = [mine["sent"].get("pass", 0) for mine in found[sharded, "pipeline"]]
    assert passed == [stream] * (count - 1) + [0]
    # The last has the logits, and the others hand them on, from the first to the last but one.
    shared = [mine["sent"]["share"] for mine in found[sharded, "pipeline"]]
    logits = 4 * LENGTH * params.vocab_size
    assert shared == [*[logits] * (count - 2), 0, logits]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", WAYS)
def test_a_slow_wire_takes_the_time_of_its_formula(group, count, how):
    for mine in group(count)[1]["wire", how]:
        _, slow, narrow = mine["seconds"]
        layers, steps = 5 if count == 4 else 4, 2 * (count - 1)
        wait = 0.01 * ((2 * layers + 1) * steps + count - 1 if how == "tensor" else 1 + count - 1)
        assert slow > wait, "the latency of every step"
        assert narrow > max(mine["sent"].values()) / 1e6, "the bytes, one after the other"


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", WAYS)
def test_what_differs_between_processes_is_refused_by_all(group, count, how):
    found = group(count)[1]["called badly", how]
    for said in found:
        longer, shape, seed, first, load, right = said
        assert "the processes read different tokens" in longer
        assert "the processes read different tokens" in shape
        assert "the processes read different tokens" in seed and "seed" in seed
        assert f"process 0 of {count}" in first and "invalid literal" in first
        assert "was told" in load
        assert right == ""
    assert all(said == found[0] for said in found)


REFUSED = {
    "a missing shard": "CheckpointError consolidated.{last}.pth not found on any machine",
    "two have the same shard": "CheckpointError consolidated.{last}.pth not found on any machine",
    "other numbers": "CheckpointError process {last_process} another model process 0",
    "another whole file": "CheckpointError consolidated.00.pth of process {last_process} another model",
    "other sizes": "CheckpointError process {last_process} another model than process 0 dim",
    "another layout": "CheckpointError process {last_process}",
    "nowhere on one": "CheckpointError process {last_process} of {count} nowhere no such folder",
    "nowhere": "CheckpointError nowhere no such folder",
    "heads that do not divide": "ValueError 5 query heads n_heads {count} processes pipeline",
    "too few layers": "ValueError {layers} layers pipeline of {count} processes",
    "not the same way": "ValueError how tensor pipeline neither",
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_opened_is_refused_by_all_in_the_same_words(group, count, what):
    found = group(count)[1][what]
    words = {"last": f"{count - 1:02}", "last_process": count - 1, "count": count, "layers": count - 1}
    for mine in found:
        assert "error" in mine, "opened"
        said = f"{mine['error']}: {mine['text']}"
        assert re.match(naming(REFUSED[what].format(**words)), said), said
        assert "\n" not in said and said.count("process 0 of") <= 1
        assert said == f"{found[0]['error']}: {found[0]['text']}"
