"""Speed and memory at full size, on random weights: ours beside Hugging Face. Linux only, not part of `make test`.

    python tests/benchmark.py                                   # Llama 3 8B's shape: 16 GB of disk, 20 GB of memory
    python tests/benchmark.py --shape 1b --rounds 15            # Llama 3.2 1B's: 2.5 GB
    python tests/benchmark.py --shape 8b --folder ../bench8b  # keep the file elsewhere than in checkpoints/

The file is made once, and stays: delete its folder when you are done. Rerun on a quiet machine, and look at `uptime`
first. What is measured, and the limits it is held to:

- opening: `load_checkpoint` in a fresh process, its seconds and the memory of its own (RssAnon: what the process holds
  beyond the mapped file) that it takes; under 0.5 s and 0.25 GB
- 17 tokens of `functional.forward` in a fresh process that may have 1 GiB of data (RLIMIT_DATA), the limit set before
  opening and, in another process, after opening; it must finish
  (a file of up to 4 GiB is mapped copy-on-write, which counts as data: with a limit set afterwards 1b does not)
- the same tokens, warm, beside Hugging Face's LlamaForCausalLM over the same weights, by turns in one process: median
  seconds of each, and the median of ours / theirs over the rounds; at most 1.1
"""

import argparse
import math
import mmap
import multiprocessing
import os
import re
import resource
import shutil
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from tqdm.auto import tqdm

from llama3_scratch import ModelArgs, functional, load_checkpoint
from llama3_scratch.checkpoint import PARAMS_NAME, WEIGHTS_NAME
from llama3_scratch.files import checkpoints_folder, finished_folder
from llama3_scratch.params import PUBLISHED
from llama3_scratch.tiny import TINY, write_byte_tokenizer

DTYPE = torch.bfloat16
DATA_LIMIT = 2**30
SHAPES = {  # params, and whether the token embeddings serve as output.weight too
    "8b": (PUBLISHED["Llama 3 8B"], False),
    "1b": (PUBLISHED["Llama 3.2 1B"], True),
    "tiny": (TINY["tiny-bfloat16"].params, False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--folder", type=Path, help="made if it is not there; default checkpoints/benchmark-SHAPE")
    parser.add_argument("--rounds", type=int, default=9, help="warm rounds, each one forward of either side")
    parser.add_argument("--tokens", type=int, default=17)
    args = parser.parse_args()
    folder = (args.folder or checkpoints_folder() / f"benchmark-{args.shape}").resolve()

    make_checkpoint(folder, *SHAPES[args.shape])
    seconds, own = in_fresh_process(measure_open, folder)
    rows = [("", "ours", "limit", "ours / limit")]
    rows.append(("open, seconds", *held_to(seconds, 0.5)))
    rows.append(("open, own memory in GB", *held_to(own / 1e9, 0.25)))
    for when in ("before opening", "after opening"):
        what = f"forward, data limit 1 GiB set {when}"
        try:
            seconds, own = in_fresh_process(measure_forward, folder, args.tokens, when)
            rows.append((f"{what}, own memory in GB", *held_to(own / 1e9, DATA_LIMIT / 1e9)))
            rows.append((f"{what}, seconds", f"{seconds:.3f}", "", ""))
        except Exception as e:  # out of memory has many faces
            rows.append((f"{what}: {type(e).__name__}: {e}", "", "", "MISSED"))
    ours, theirs, cosine, error = side_by_side(folder, args.tokens, args.rounds)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    rows.append(("warm forward, median seconds", f"{statistics.median(ours):.3f}", "", ""))
    rows.append(("the same, Hugging Face", f"{statistics.median(theirs):.3f}", "", ""))
    rows.append(("ours / Hugging Face, median of the rounds", *held_to(statistics.median(ratios), 1.1)))

    size = (folder / WEIGHTS_NAME).stat().st_size / 1e9
    print(f"\n{args.shape}: {size:.2f} GB of {DTYPE}, {args.tokens} tokens, {args.rounds} rounds, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for what, *numbers in rows:
        print(what.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)), sep="   ")
    print("ours / Hugging Face, each round:", " ".join(f"{r:.2f}" for r in ratios))
    print(f"Both compute the same: cosine of all logits {cosine:.6f}, rms of the difference {error:.1%} of their rms")
    print(f"python tests/benchmark.py --shape {args.shape} --folder {folder}", end=" ")
    print(f"--rounds {args.rounds} --tokens {args.tokens}")


def held_to(measured: float, limit: float) -> tuple[str, str, str]:
    return f"{measured:.3f}", f"{limit:.3f}", f"{measured / limit:.2f}" + (" MISSED" if measured > limit else "")


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


def measure_open(folder: Path) -> tuple[float, float]:
    with own_memory() as own:
        start = time.perf_counter()
        ckpt = load_checkpoint(folder)
        seconds = time.perf_counter() - start
    assert len(ckpt.weights) > 0  # still open when the memory is read
    return seconds, own["end"] - own["start"]


@torch.inference_mode()
def measure_forward(folder: Path, token_count: int, limit_set: str) -> tuple[float, float]:
    if limit_set == "before opening":
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))
    ckpt = load_checkpoint(folder)
    if limit_set == "after opening":
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))
    with own_memory() as own:
        start = time.perf_counter()
        logits = functional.forward(some_tokens(token_count, ckpt.params), ckpt.weights, ckpt.params)
        seconds = time.perf_counter() - start
    assert logits.shape == (token_count, ckpt.params.vocab_size) and logits.isfinite().all()
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


# Speed, side by side


@torch.inference_mode()
def side_by_side(folder: Path, token_count: int, rounds: int) -> tuple[list[float], list[float], float, float]:
    """Seconds of each round, ours and Hugging Face's, then the cosine of both logits and their relative difference."""
    from referee import hf_model  # here, because it imports transformers: not in the processes that are measured

    ckpt = load_checkpoint(folder)
    model = hf_model(ckpt.params, ckpt.weights, attention="sdpa")  # their default
    tokens = some_tokens(token_count, ckpt.params)
    sides = {
        "ours": lambda: functional.forward(tokens, ckpt.weights, ckpt.params),
        "theirs": lambda: model(tokens[None], use_cache=False).logits[0].float(),
    }
    a, b = (run() for run in sides.values())  # also brings every page into memory
    cosine = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
    error = ((a - b).square().mean().sqrt() / b.square().mean().sqrt()).item()
    del a, b
    seconds = {name: [] for name in sides}
    from_disk = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    for i in tqdm(range(rounds), desc="rounds"):
        for name in ("ours", "theirs") if i % 2 else ("theirs", "ours"):
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
    from_disk = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - from_disk
    if from_disk:
        print(f"Not warm: {from_disk} reads from disk in these rounds. The file must stay in memory while they run")
    return seconds["ours"], seconds["theirs"], cosine, error


if __name__ == "__main__":
    main()
