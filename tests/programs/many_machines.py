"""One model on 1, 2 and 4 processes: seconds, memory and bytes of each. Linux only, not part of `make test`.

    python tests/programs/many_machines.py                       # Llama 3.2 1B's shape: 8 GB of disk
    python tests/programs/many_machines.py --shape 8b --opening  # how 16 GB of Llama 3 8B's shape open
    python tests/programs/many_machines.py --wire 0.001 1e8      # messages take 1 ms, and a second for 100 MB

All processes are on this machine, under torchrun: they share its cores and its memory's speed, so this shows what a
process holds and what it sends, and what the messages cost where they are quick. It cannot show how much faster several
machines are; with more processes than cores, times say little. Rerun on a quiet machine: look at `uptime` first, and
let nothing else use the loopback network, whose counter is read.

- opening: `parallel.load`, from when the processes have met; each waits for the slowest
- a token: the median over `--tokens` after 17; a prompt of 128, with the logits of its last position, the median of 3
- own memory: what a process holds beyond mapped files (Anonymous), less what importing took; after opening, and after
  all of that. mapped: its share of the files' pages (Pss_File), of which pages that several have count in parts
- sent: bytes that all processes together send for one token and for the prompt, as `parallel.sent` counts; those of the
  formula; and what went through the loopback network, with headers, acknowledgments and small talk
"""

import argparse
import json
import mmap
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmark import DTYPE, SHAPES, make_checkpoint, print_table, some_tokens
from torch._subclasses import FakeTensorMode

from llama3_scratch import ModelArgs, load_checkpoint, parallel
from llama3_scratch.cache import KVCache
from llama3_scratch.loading.files import (
    PARAMS_NAME,
    SHARD_NAME,
    checkpoints_folder,
    finished_folder,
)
from llama3_scratch.loading.meta import shard_dim, shard_shape
from llama3_scratch.loading.tiny import make_tiny, write_byte_tokenizer
from llama3_scratch.messages import progress

LENGTH, PROMPT = 17, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ways", nargs="+", choices=parallel.WAYS, default=list(parallel.WAYS))
    parser.add_argument("--opening", action="store_true", help="only open shards, each by a process of its own")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--wire", type=float, nargs=2, default=(0.0, float("inf")), metavar=("SECONDS", "BYTES"))
    parser.add_argument("--folder", type=Path, help="for what is made; default checkpoints/benchmark-SHAPE, and -N")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="tensor", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = (args.folder or checkpoints_folder() / f"benchmark-{args.shape}").resolve()
    if args.measure:
        measure(args, folder)
        return
    params, tied = SHAPES[args.shape]
    rows = []
    if args.opening:
        for count in args.processes:
            make_shards(shards := folder.with_name(f"{folder.name}-{count}"), params, tied, count)
            rows.append(row(args, count, "tensor", count, run(args, shards, count, "tensor", 1)))
    else:
        if args.shape == "tiny":
            make_tiny("tiny-bfloat16", folder)
        else:
            make_checkpoint(folder, params, tied)
        for count in args.processes:
            for how in args.ways if count > 1 else args.ways[:1]:
                for files in [1, count] if how == "tensor" and count > 1 else [1]:
                    where = folder if files == 1 else folder.with_name(f"{folder.name}-{files}")
                    if files > 1:
                        cut_into_shards(folder, where, files)
                    for threads in [1, 2] if count == 1 else [1]:
                        found = run(args, where, count, how, threads)
                        rows.append(row(args, count, how, files, found, threads))
    print(f"\n{args.shape}, {DTYPE}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}: {' '.join(sys.argv)}")
    header = ("processes", "files", "threads", "opening, s", "own, opened")
    if not args.opening:
        header += ("a token, ms", f"prompt of {PROMPT}, s", "own, after", "mapped")
        header += ("sent: token", "formula", "loopback", "sent: prompt", "formula", "loopback")
    print_table([header, *rows])


def row(args, count: int, how: str, files: int, found: list[dict], threads: int = 1) -> tuple[str, ...]:
    """The most of any process."""

    def most(key: str) -> float:
        return max(mine[key] for mine in found)

    cells = (f"{count} {how if count > 1 else ''}", str(files), str(threads), f"{most('opening'):.2f}")
    cells += (f"{most('own opened') / 1e6:.0f} MB",)
    if not args.opening:
        cells += (f"{1000 * most('token'):.1f}", f"{most('prompt'):.2f}", f"{most('own') / 1e6:.0f} MB")
        cells += (f"{most('mapped') / 1e6:.0f} MB",)
        for what in ("token", "prompt"):
            counted = sum(mine[f"sent {what}"] for mine in found)
            cells += (f"{counted:,}", f"{found[0][f'formula {what}']:,}", f"{found[0][f'lo {what}']:,}")
    return cells


def run(args: argparse.Namespace, folder: Path, count: int, how: str, threads: int) -> list[dict]:
    """What each of so many processes has measured."""
    with tempfile.TemporaryDirectory() as found:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command += [__file__, "--measure", found, "--folder", str(folder), "--how", how, "--tokens", str(args.tokens)]
        command += ["--wire", *map(str, args.wire), *(["--opening"] if args.opening else [])]
        print(f"{count} processes, {how}, {folder.name}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        return [json.loads((Path(found) / f"{rank}.json").read_text()) for rank in range(count)]


# In a process


@torch.inference_mode()
def measure(args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    parallel.join()
    parallel.from_first(lambda: None)  # all are there
    before = memory()["Anonymous"]
    start = time.perf_counter()
    model = parallel.load(folder, args.how)
    found = {"opening": time.perf_counter() - start, "own opened": memory()["Anonymous"] - before}
    if not args.opening:
        with parallel.slow_wire(*args.wire):
            found |= measure_use(model, args.tokens)
        held = memory()
        found |= {"own": held["Anonymous"] - before, "mapped": held["Pss_File"]}
    (args.measure / f"{parallel.rank()}.json").write_text(json.dumps(found))
    parallel.leave()


def measure_use(model, count: int) -> dict[str, float]:
    whole, dtype = model.params.whole, model.tok_embeddings.weight.dtype
    cache = KVCache(model.params, 1, LENGTH + count + 2, dtype)
    prompt = some_tokens(PROMPT, whole)[None]

    def read_prompt() -> None:
        model(prompt, KVCache(model.params, 1, PROMPT, dtype), last_only=True)

    model(some_tokens(LENGTH, whole)[None], cache, last_only=True)
    token = torch.tensor([[1]])

    def write() -> None:
        nonlocal token
        token = model(token, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)

    write()  # warm
    read_prompt()
    found = {"token": statistics.median(timed(write) for _ in range(count))}
    found["prompt"] = statistics.median(timed(read_prompt) for _ in range(3))
    for what, work, length in (("token", write, 1), ("prompt", read_prompt, PROMPT)):
        through = from_all_to_all()
        parallel.sent.clear()
        work()
        found[f"sent {what}"] = sum(parallel.sent.values())
        found[f"lo {what}"] = from_all_to_all() - through
        found[f"formula {what}"] = formula(model.params, length, dtype.itemsize)
    return found


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def from_all_to_all() -> int:
    """Bytes that have gone through the loopback network, when nothing of ours is on its way."""
    meet()
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    seen = int(line.split()[9])
    meet()
    return seen


def meet() -> None:
    torch.distributed.barrier()
    time.sleep(0.2)


def formula(part, length: int, width: int) -> int:
    """Bytes that N processes send while `length` tokens are read and the last one's logits are made. In tensor parallel
    2 (N - 1) b for a ring's sum of b bytes, of which there are two a layer and the embeddings; then each has a share of
    the logits, which goes to N - 1 others. In a pipeline N - 1 hand on the stream, and N - 1 the logits. Before that
    all compare their tokens: 8 bytes to each other.
    """
    whole, others = part.whole, part.size - 1
    compared = part.size * others * 8
    stream, logits = length * whole.dim * width, whole.vocab_size * width
    if part.how == "tensor":
        return others * ((2 * whole.n_layers + 1) * 2 * stream + logits) + compared
    return others * (stream + logits) + compared


def memory() -> dict[str, int]:
    """Bytes, by the names that Linux gives them."""
    lines = re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return {name: 1024 * int(kilobytes) for name, kilobytes in lines}


def processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown processor"


# Files


def cut_into_shards(whole: Path, folder: Path, count: int) -> None:
    """The same weights in Meta's way, in several files."""
    ckpt = load_checkpoint(whole)
    with finished_folder(folder) as partial:
        if partial is None:
            return
        shutil.copytree(whole, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pth", ".*"))
        for i in progress(range(count), f"making {folder.name}", "file"):
            part = {}
            for key, weight in ckpt.weights.items():
                dim = shard_dim(key)
                part[key] = weight if dim is None else weight.chunk(count, dim)[i].clone()
            torch.save(part, partial / SHARD_NAME.format(i))


def make_shards(folder: Path, params: ModelArgs, tied: bool, count: int) -> None:
    """Files of a large model, all zeros but for the norms: they take no room on the disk until they are filled."""
    shapes = {key: shard_shape(key, shape, count) for key, shape in params.weight_shapes().items()}
    if tied:
        del shapes["output.weight"]
    with finished_folder(folder) as partial:
        if partial is None:
            return
        (partial / PARAMS_NAME).write_text(params.to_json())
        write_byte_tokenizer(partial)
        for i in progress(range(count), f"making {folder.name}", "file"):
            with FakeTensorMode():
                weights = {key: torch.empty(shape, dtype=DTYPE) for key, shape in shapes.items()}
            path = partial / SHARD_NAME.format(i)
            with torch.serialization.skip_data(materialize_fake_tensors=True):
                torch.save(weights, path)
            with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):  # what is written goes to the file
                weights = torch.load(path, mmap=True)
            for key, tensor in weights.items():
                if "norm" in key:
                    tensor.fill_(1)
            del weights


if __name__ == "__main__":
    main()
