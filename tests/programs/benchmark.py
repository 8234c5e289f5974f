"""Speed and memory at full size, on random weights: ours beside Hugging Face. Linux only, not part of `make test`.

    python tests/programs/benchmark.py                                 # Llama 3 8B's shape: 16 GB of disk, 20 of memory
    python tests/programs/benchmark.py --shape 1b --rounds 15          # Llama 3.2 1B's: 2.5 GB
    python tests/programs/benchmark.py --shape 8b --folder ../bench8b  # keep the file elsewhere than in checkpoints/

The file is made once, and stays: delete its folder when you are done. Rerun on a quiet machine, and look at `uptime`
first. What is measured, and the limits it is held to:

- opening in a fresh process, its seconds and the memory of its own (RssAnon: what the process holds beyond the mapped
  file) that it takes: `load_checkpoint`, under 0.5 s and 0.25 GB; with `Llama.from_checkpoint`, under 2 s and 0.5 GB
- 17 tokens of `functional.forward` in a fresh process that may have 1 GiB of data (RLIMIT_DATA), the limit set before
  opening and, in another process, after opening; it must finish
  (a file of up to 4 GiB is mapped copy-on-write, which counts as data: with a limit set afterwards 1b does not)
- `generate` after 17 and after 512 tokens in the same way, with 1 GiB of data and what the KV cache takes
- beside Hugging Face's LlamaForCausalLM over the same weights with its default attention, warm, by turns in one
  process: median seconds of each, the median of ours / theirs over the rounds, and how much memory of its own one more
  run takes beyond what was there before it, never more than theirs. `functional.forward`, at most 1.1 of their time;
  the modules, with the logits of every position, and prefill, which fills a new KV cache and has the logits of the
  last position alone, at most 1.0; one decoded token, each round one position further, at most 0.65
  (prefill comes twice: their logits_to_keep=1 hands torch a slice that it multiplies by a copy of lm_head, 1 GB at 8b;
  "a copy of the last row" spares them that)
"""

import argparse
import ctypes
import math
import mmap
import multiprocessing
import os
import re
import resource
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from tqdm.auto import tqdm

from llama3_scratch import Llama, ModelArgs, functional, generate, load_checkpoint
from llama3_scratch.cache import KVCache
from llama3_scratch.loading.files import PARAMS_NAME, WEIGHTS_NAME, checkpoints_folder, finished_folder
from llama3_scratch.loading.meta import read_params
from llama3_scratch.loading.tiny import TINY, write_byte_tokenizer
from llama3_scratch.params import PUBLISHED

DTYPE = torch.bfloat16
DATA_LIMIT = 2**30
NEW_TOKENS = 3
SHAPES = {  # params, and whether the token embeddings serve as output.weight too
    "8b": (PUBLISHED["Llama 3 8B"], False),
    "1b": (PUBLISHED["Llama 3.2 1B"], True),
    "tiny": (TINY["tiny-bfloat16"].params, False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--folder", type=Path, help="made if it is not there; default checkpoints/benchmark-SHAPE")
    parser.add_argument("--rounds", type=int, default=9, help="warm rounds, each one run of either side")
    parser.add_argument("--tokens", type=int, default=17)
    parser.add_argument("--many-rounds", type=int, default=5, help="rounds over many tokens, which take longer")
    parser.add_argument("--many-tokens", type=int, default=512)
    args = parser.parse_args()
    folder = (args.folder or checkpoints_folder() / f"benchmark-{args.shape}").resolve()

    make_checkpoint(folder, *SHAPES[args.shape])
    rows = [("alone, each in a fresh process", "ours", "limit", "ours / limit")]
    rows += opening_rows(folder)
    rows += limited_rows(folder, (args.tokens, args.many_tokens))
    compared = side_by_side(folder, args.tokens, args.rounds, args.many_tokens, args.many_rounds)

    size = (folder / WEIGHTS_NAME).stat().st_size / 1e9
    print(f"\n{args.shape}: {size:.2f} GB of {DTYPE}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print_table(rows)
    print()
    print_table([COMPARED_HEADER, *(c.row() for c in compared)])
    print("\nours / Hugging Face, each round, and how far apart their logits are:")
    print_table([(c.what, " ".join(f"{r:.2f}" for r in c.ratios), c.difference) for c in compared])
    print(
        f"\npython tests/programs/benchmark.py --shape {args.shape} --folder {folder} --rounds {args.rounds} ", end=""
    )
    print(f"--tokens {args.tokens} --many-rounds {args.many_rounds} --many-tokens {args.many_tokens}")


def opening_rows(folder: Path) -> Iterator[tuple[str, ...]]:
    for what, function, seconds_limit, gb_limit in (
        ("load_checkpoint", load_checkpoint, 0.5, 0.25),
        ("Llama.from_checkpoint(load_checkpoint)", open_model, 2.0, 0.5),
    ):
        seconds, own = in_fresh_process(measure_open, function, folder)
        yield f"{what}, seconds", *held_to(seconds, seconds_limit)
        yield f"{what}, own memory in GB", *held_to(own / 1e9, gb_limit)


def limited_rows(folder: Path, lengths: tuple[int, int]) -> Iterator[tuple[str, ...]]:
    params = read_params(folder / PARAMS_NAME)
    runs = [("forward", measure_forward, lengths[0], DATA_LIMIT)]
    for length in lengths:
        cache = KVCache(params, 1, length + NEW_TOKENS - 1, DTYPE, device="meta").nbytes
        runs.append(("generate", measure_generate, length, DATA_LIMIT + cache))
    for name, function, length, limit in runs:
        for when in ("before opening", "after opening"):
            what = f"{name}, {length} tokens, data limit set {when}"
            try:
                seconds, own = in_fresh_process(function, folder, length, limit, when)
                yield f"{what}, own memory in GB", *held_to(own / 1e9, limit / 1e9)
                yield f"{what}, seconds", f"{seconds:.3f}", "", ""
            except Exception as e:  # out of memory has many faces
                yield f"{what}: {type(e).__name__}: {e}", "", "", "MISSED"


def held_to(measured: float, limit: float) -> tuple[str, str, str]:
    return f"{measured:.3f}", f"{limit:.3f}", f"{measured / limit:.2f}" + (" MISSED" if measured > limit else "")


def print_table(rows: list[tuple[str, ...]]):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for what, *numbers in rows:
        print(what.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)), sep="   ")


# The file


def make_checkpoint(folder: Path, params: ModelArgs, tied: bool):
    """Write random weights in Meta's layout, unless the folder is there. They go through the page cache, not through
    memory of our own: the file is laid out first, empty, and its tensors are then filled where they lie.
    """
    shapes = params.weight_shapes()
    if tied:
        del shapes["output.weight"]
    size = sum(map(math.prod, shapes.values())) * DTYPE.itemsize
    with finished_folder(folder) as partial:
        if partial is None:
            return
        if shutil.disk_usage(partial).free < 1.05 * size:  # a full disk would kill us in the middle, without a word
            raise SystemExit(f"{folder} needs {size / 1e9:.1f} GB of disk")
        (partial / PARAMS_NAME).write_text(params.to_json())
        write_byte_tokenizer(partial)
        with FakeTensorMode():  # tensors with a shape and no memory
            weights = {key: torch.empty(shape, dtype=DTYPE) for key, shape in shapes.items()}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(weights, partial / WEIGHTS_NAME)
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):  # what is written goes to the file
            weights = torch.load(partial / WEIGHTS_NAME, mmap=True)
        random = torch.Generator().manual_seed(0)
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"making {folder.name}") as bar:
            for key, tensor in weights.items():
                if "norm" in key:
                    tensor.uniform_(0.5, 1.5, generator=random)
                else:
                    tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=random)
                bar.update(tensor.nbytes)


def some_tokens(count: int, params: ModelArgs) -> Tensor:
    return torch.randint(params.vocab_size, (count,), generator=torch.Generator().manual_seed(1))


# Memory, each measurement in a process of its own


def in_fresh_process(function, *args) -> tuple[float, float]:
    """What function(*args), seconds and bytes, returns in a new Python."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure_open(function: Callable, folder: Path) -> tuple[float, float]:
    with own_memory() as own:
        start = time.perf_counter()
        opened = function(folder)
        seconds = time.perf_counter() - start
    assert opened is not None  # still open when the memory is read
    return seconds, own["end"] - own["start"]


def open_model(folder: Path) -> Llama:
    return Llama.from_checkpoint(load_checkpoint(folder))


def limited(function: Callable, folder: Path, limit: int, limit_set: str):
    """What function(folder) opens, and from before or after opening on at most `limit` bytes of data."""
    if limit_set == "before opening":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    opened = function(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return opened


@torch.inference_mode()
def measure_forward(folder: Path, token_count: int, limit: int, limit_set: str) -> tuple[float, float]:
    ckpt = limited(load_checkpoint, folder, limit, limit_set)
    with own_memory() as own:
        start = time.perf_counter()
        logits = functional.forward(some_tokens(token_count, ckpt.params), ckpt.weights, ckpt.params)
        seconds = time.perf_counter() - start
    assert logits.shape == (token_count, ckpt.params.vocab_size) and logits.isfinite().all()
    return seconds, own["peak"]


def measure_generate(folder: Path, token_count: int, limit: int, limit_set: str) -> tuple[float, float]:
    model = limited(open_model, folder, limit, limit_set)
    with own_memory() as own:
        start = time.perf_counter()
        ids = list(generate(model, some_tokens(token_count, model.params), max_new_tokens=NEW_TOKENS))
        seconds = time.perf_counter() - start
    assert len(ids) == NEW_TOKENS
    return seconds, own["peak"]


@contextmanager
def own_memory():
    """A dict that fills with bytes of RssAnon: "start" on entry, "end" and "peak" once the block is left."""
    own = {"start": rss_anon()}
    seen, done = [], threading.Event()

    def watch():
        while not done.wait(0.005):
            seen.append(rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield own
    finally:
        own["end"] = rss_anon()
        done.set()
        watcher.join()
        own["peak"] = max([*seen, *own.values()])


def rss_anon() -> int:
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


# Side by side


COMPARED_HEADER = ("beside Hugging Face", "ours, s", "theirs, s", "ours / theirs", "limit", "")
COMPARED_HEADER += ("ours, own GB", "theirs, own GB", "")


class Compared(NamedTuple):
    what: str
    ours: list[float]  # seconds of each round
    theirs: list[float]
    own: dict[str, float]  # bytes of either side
    limit: float
    difference: str

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    def row(self) -> tuple[str, ...]:
        ratio = statistics.median(self.ratios)
        seconds = f"{statistics.median(self.ours):.3f}", f"{statistics.median(self.theirs):.3f}", f"{ratio:.3f}"
        missed = "MISSED" if ratio > self.limit else ""
        ours, theirs = (round(self.own[name] / 1e9, 3) for name in ("ours", "theirs"))
        memory = f"{ours:.3f}", f"{theirs:.3f}", "MISSED" if ours > theirs else ""
        return self.what, *seconds, f"{self.limit:.2f}", missed, *memory


@torch.inference_mode()
def side_by_side(folder: Path, few: int, rounds: int, many: int, many_rounds: int) -> list[Compared]:
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/
    from helpers import hf_model  # here, because it imports transformers: not in the processes that are measured
    from transformers import DynamicCache

    ckpt = load_checkpoint(folder)
    model = Llama.from_checkpoint(ckpt)
    theirs = hf_model(ckpt.params, ckpt.weights, attention="sdpa")  # their default
    token = some_tokens(1, ckpt.params)[None]

    def all_logits(tokens: Tensor) -> Tensor:
        return theirs(tokens, use_cache=False).logits

    def prefill(tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        return model(tokens, cache or KVCache(ckpt.params, 1, tokens.shape[-1], DTYPE), last_only=True)

    def their_prefill(tokens: Tensor) -> Tensor:
        return their_step(tokens, DynamicCache(config=theirs.config))

    def their_best_prefill(tokens: Tensor) -> Tensor:
        hidden = theirs.model(tokens, past_key_values=DynamicCache(config=theirs.config)).last_hidden_state
        return theirs.lm_head(hidden[:, -1])[:, None]

    def their_step(tokens: Tensor, cache: DynamicCache) -> Tensor:
        return theirs(tokens, past_key_values=cache, logits_to_keep=1).logits

    tokens = some_tokens(few, ckpt.params)[None]
    what = f"functional.forward, {few} tokens"
    forward = partial(functional.forward, tokens, ckpt.weights, ckpt.params)
    compared = [compare(what, forward, lambda: all_logits(tokens).float(), 1.1, rounds)]
    for length, times in ((few, rounds), (many, many_rounds)):
        tokens = some_tokens(length, ckpt.params)[None]
        what = f"model, {length} tokens, all logits"
        compared.append(compare(what, partial(model, tokens), partial(all_logits, tokens), 1.0, times))
        what = f"prefill, {length} tokens"
        compared.append(compare(what, partial(prefill, tokens), partial(their_prefill, tokens), 1.0, times))
        what = f"prefill, {length} tokens, a copy of the last row"
        compared.append(compare(what, partial(prefill, tokens), partial(their_best_prefill, tokens), 1.0, times))
        cache = KVCache(ckpt.params, 1, length + rounds + 2, DTYPE)  # one before the rounds, one after them
        their_cache = DynamicCache(config=theirs.config)
        prefill(tokens, cache)
        their_step(tokens, their_cache)
        steps = partial(model, token, cache), partial(their_step, token, their_cache)
        compared.append(compare(f"one token after {length}", *steps, 0.65, rounds))
    return compared


def compare(what: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], limit: float, rounds: int) -> Compared:
    """Run both once for their logits (which also brings every page into memory), then by turns for the seconds, then
    once more for the memory.
    """
    sides = {"ours": ours, "theirs": theirs}
    difference = distance(ours(), theirs())
    seconds, own = {"ours": [], "theirs": []}, {}
    from_disk = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    for i in tqdm(range(rounds), desc=what):
        for name in ("ours", "theirs") if i % 2 else ("theirs", "ours"):
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
    from_disk = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - from_disk
    if from_disk:
        print(f"Not warm: {from_disk} reads from disk in these rounds. The file must stay in memory while they run")
    for name, run in sides.items():
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed, and the C library kept, would hide what this takes
        with own_memory() as memory:
            run()
        own[name] = memory["peak"] - memory["start"]
    return Compared(what, seconds["ours"], seconds["theirs"], own, limit, difference)


def distance(ours: Tensor, theirs: Tensor) -> str:
    cosine = torch.cosine_similarity(ours, theirs.float(), dim=-1).min().item()  # at the worst position
    error = ((ours - theirs).square().mean().sqrt() / theirs.float().square().mean().sqrt()).item()
    return f"cosine {cosine:.6f} or more, rms of the difference {error:.1%} of their rms"


if __name__ == "__main__":
    main()
