"""Damaged checkpoints by the thousand. Each opens as something whole, or is refused with a CheckpointError.

    python tests/programs/fuzz.py --count 5000 --seed 1

damages every file of three small checkpoints (Meta's layout, two shards, Hugging Face's layout), so many times each,
opens the result and, if it opens, computes with it. Anything else that happens is a failure, and its files are kept.
Weights in .pth files have checksums: what opens there must be equal to the original, to the last bit.
"""

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer as TheirTokenizer
from tokenizers import decoders, models, pre_tokenizers

sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/, where helpers.py lies
from helpers import hf_model

from llama3_scratch import CheckpointError, ModelArgs, functional, load_checkpoint
from llama3_scratch.loading.meta import shard_dim
from llama3_scratch.loading.tiny import random_weights, write_byte_tokenizer
from llama3_scratch.loading.tokenizer_json import gpt2_bytes

MOST_SECONDS, MOST_MEGABYTES = 10, 1000
PARAMS = ModelArgs(16, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=262, multiple_of=8)
WORDS = [b"-1", b"0", b"null", b"NaN", b"Infinity", b"1e400", b"9" * 5000, b'"', b"{", b"[" * 3000, b"\xff\xfe", b"\0"]
WORDS += [b"\xff" * 8, b"\x00\x00\x00\x80", b"PK\x05\x06", b"cos\nsystem\n", b"R", b"q\xff", b"r\xff\xff\xff\x7f", b"."]


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """Three whole checkpoints: the same model in Meta's layout, in two shards, and in Hugging Face's layout."""
    weights = random_weights(PARAMS, torch.float32, tied=False, seed=0)
    folders = {name: folder / name for name in ("meta", "shards", "hf")}
    for name, parts in (("meta", 1), ("shards", 2)):
        folders[name].mkdir()
        (folders[name] / "params.json").write_text(PARAMS.to_json())
        write_byte_tokenizer(folders[name], merges=(" t", "he", " the"), own_specials=("<|a|>", "<|b|>", "<|c|>"))
        for i in range(parts):
            shard = {k: t if shard_dim(k) is None else t.chunk(parts, shard_dim(k))[i] for k, t in weights.items()}
            torch.save({k: t.clone() for k, t in shard.items()}, folders[name] / f"consolidated.{i:02d}.pth")
    hf_model(PARAMS, weights).save_pretrained(folders["hf"])
    vocab = {character: i for i, character in enumerate(sorted(gpt2_bytes()))} | {"he": 256, "Ġt": 257, "Ġthe": 258}
    tokenizer = TheirTokenizer(models.BPE(vocab, [("h", "e"), ("Ġ", "t"), ("Ġt", "he")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|a|>", "<|b|>"])
    tokenizer.save(str(folders["hf"] / "tokenizer.json"))
    return folders


def damage(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with one to three things wrong."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        # Half of it near the ends, where the directory of a zip and the list of a safetensors file are.
        edge = rng.choice((rng.randrange(600), max(0, len(data) - rng.randrange(3000)), rng.randrange(len(data) + 1)))
        at, length = min(edge, len(data)), rng.choice((1, 1, 2, 4, 8, 100))
        match rng.randrange(7):
            case 0:  # a bit
                data = data[:at] + bytes(b ^ 1 << rng.randrange(8) for b in data[at : at + 1]) + data[at + 1 :]
            case 1:  # some bytes
                data = data[:at] + rng.randbytes(length) + data[at + length :]
            case 2:  # lost
                data = data[:at] + data[at + length :]
            case 3:  # put in
                data = data[:at] + rng.choice((rng.randbytes(length), rng.choice(WORDS))) + data[at:]
            case 4:  # cut off
                data = data[:at]
            case 5:  # a piece of it elsewhere
                start = rng.randrange(len(data) + 1)
                data = data[:at] + data[start : start + length] + data[at + length :]
            case 6:  # a word in the place of a number or a word
                data = data[:at] + rng.choice(WORDS) + data[at + rng.randrange(6) :]
    return data


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """The same JSON with something else in one place."""
    content = json.loads(data)
    values = [
        0,
        -1,
        1,
        3,
        2**31,
        10**400,
        0.5,
        1e300,
        float("nan"),
        None,
        True,
        "",
        "x",
        [],
        {},
        [1],
        {"a": 1},
        "\ud800",
    ]
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = rng.choice(list(keys))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice([*values, place[key] + 1 if type(place[key]) is int else ""])
    return json.dumps(content).encode()


def outcome(folder: Path, original) -> str:
    """Open a folder and use it. "refused", "equal" or "different"; whatever else goes wrong is raised."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ckpt = load_checkpoint(folder)
            logits = functional.forward([1, 2, 3], ckpt.weights, ckpt.params)
        assert logits.isfinite().all()
    except CheckpointError as e:
        assert len(str(e)) < 600 and "\n" not in str(e) and folder.name in str(e), f"message: {e}"
        return "refused"
    except ValueError as e:  # numbers of params.json that only show in the result
        assert "overflow" in str(e) or "more than the" in str(e), e
        return "refused"
    if ckpt.tokenizer:
        assert all(ckpt.tokenizer.decode([id]) is not None for id in ckpt.tokenizer.encode("the cat, 12 of them"))
    same = ckpt.weights.keys() == original.weights.keys() and all(
        torch.equal(ckpt.weights[key], original.weights[key]) for key in original.weights
    )
    return "equal" if same else "different"


def run(count: int, seed: int, keep: Path, progress: bool = False) -> tuple[Counter, float, float, list[str]]:
    """Damage each file `count` times. What came out, the slowest in seconds, the memory in MB, and the failures."""
    outcomes, slowest, failures = Counter(), 0.0, []
    with tempfile.TemporaryDirectory() as temporary:
        checkpoints = write_checkpoints(Path(temporary))
        for layout, whole in checkpoints.items():
            original = load_checkpoint(whole)
            files = sorted(path for path in whole.iterdir() if path.name != "generation_config.json")
            for path in files:
                data = path.read_bytes()
                broken = shutil.copytree(whole, Path(temporary) / "broken", dirs_exist_ok=False)
                for i in range(count):
                    rng = random.Random(f"{seed} {layout} {path.name} {i}")
                    is_json = path.suffix == ".json" and rng.random() < 0.5
                    (broken / path.name).write_bytes((damage_json if is_json else damage)(data, rng))
                    started = time.perf_counter()
                    try:
                        result = outcome(broken, original)
                        if path.suffix == ".pth" and result == "different":
                            raise AssertionError("opens with other numbers")
                    except BaseException as e:
                        if isinstance(e, KeyboardInterrupt):
                            raise
                        result = "FAILED"
                        failures.append(f"{layout} {path.name} {i}: {type(e).__name__}: {str(e)[:300]}")
                        shutil.copytree(broken, keep / f"{layout}-{path.name}-{i}", dirs_exist_ok=True)
                    slowest = max(slowest, time.perf_counter() - started)
                    outcomes[layout, path.name, result] += 1
                shutil.rmtree(broken)
                if progress:
                    print(f"{layout:7} {path.name:28}", dict_of(outcomes, layout, path.name), flush=True)
    return outcomes, slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, failures


def dict_of(outcomes: Counter, layout: str, name: str) -> str:
    return "  ".join(f"{r} {n}" for (a, b, r), n in sorted(outcomes.items()) if (a, b) == (layout, name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="damaged copies of each file (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for what failed")
    options = parser.parse_args()
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outcomes, slowest, megabytes, failures = run(options.count, options.seed, options.keep, progress=True)
    totals = Counter()
    for (_, _, result), n in outcomes.items():
        totals[result] += n
    print(f"\n{sum(totals.values())} damaged checkpoints: {dict(totals)}")
    print(f"slowest {slowest:.2f} s, memory at most {megabytes:.0f} MB ({started:.0f} before the first)")
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    return 1 if failures or slowest > MOST_SECONDS or megabytes - started > MOST_MEGABYTES else 0


if __name__ == "__main__":
    sys.exit(main())
