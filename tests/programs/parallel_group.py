"""Open models on several processes and say what came of it: python tests/programs/parallel_group.py COUNT FOLDER

FOLDER has jobs.json, a list of what each process does, one after the other; what process R found stands in
FOLDER/found.R.pt. The processes are forks, which need no time to start, with the environment that torchrun sets.
"""

import itertools
import json
import os
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

from llama3_scratch import generate, generate_batch, parallel
from llama3_scratch.cache import KVCache
from llama3_scratch.checks import DTYPES


def main(count: int, folder: Path) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in where.items()})
            status = 1
            try:
                work(rank, folder)
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return int(any(codes))


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    for job in json.loads((folder / "jobs.json").read_text()):
        found.append(DO[job.get("do", "open")](rank, job))
    parallel.leave()
    torch.save(found, folder / f"found.{rank}.pt")


def load(rank: int, job: dict):
    path = job["paths"][rank] if "paths" in job else job["path"]
    os.environ.pop("LLAMA3_DTYPE", None)
    return parallel.load(path, job["how"], DTYPES.get(job.get("dtype")))


@torch.no_grad()
def open_and_write(rank: int, job: dict) -> dict:
    """Logits in every way that there is to get them, and texts; or the error, which all must raise."""
    try:
        model = load(rank, job)
    except (ValueError, OSError) as e:
        return {"error": type(e).__name__, "text": str(e)}
    params, tokens = model.params, torch.tensor(job["tokens"])
    found = {
        "sizes": (params.n_heads, params.n_kv_heads, params.hidden_dim, params.n_layers),
        "types": {p.dtype for p in model.parameters()},
        "learns": any(p.requires_grad for p in model.parameters()),
        "bytes": sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values()),
    }
    parallel.sent.clear()
    found["logits"] = model(tokens)
    found["sent"] = dict(parallel.sent)
    found["last"] = model(tokens[None], last_only=True)
    cache = KVCache(params, 1, len(tokens), model.tok_embeddings.weight.dtype)
    cuts = (0, len(tokens) - 3, len(tokens) - 2, len(tokens))
    found["cached"] = torch.cat([model(tokens[None, a:b], cache)[0] for a, b in itertools.pairwise(cuts)])
    if job.get("write"):
        prompt = tokens[:7].tolist()
        found["greedy"] = list(generate(model, prompt, job["write"]))
        found["drawn"] = list(generate(model, prompt, job["write"], temperature=1.0, top_p=0.9, seed=3))
        found["batch"] = list(generate_batch(model, [prompt, prompt[:2], tokens[3:8].tolist()], job["write"]))
    return found


def call_badly(rank: int, job: dict) -> list[str]:
    """What each of these raises, in every process, and that they go on together afterwards."""
    model, said = load(rank, job), []
    tokens = job["tokens"]
    another = {"tensor": "pipeline", "pipeline": "tensor"}[job["how"]]
    for call in (
        lambda: model([*tokens, rank]),
        lambda: model(tokens if rank else tokens[:-1]),
        lambda: list(generate(model, tokens, 4, temperature=1.0, seed=rank)),
        lambda: parallel.from_first(lambda: int("one")),
        lambda: parallel.load(job["path"], job["how"] if rank else another),
        lambda: model(tokens),
    ):
        try:
            call()
            said.append("")
        except ValueError as e:
            said.append(str(e))
    return said


@torch.no_grad()
def time_a_slow_wire(rank: int, job: dict) -> dict:
    """Seconds of a call, with and without a wire, and what it sent."""
    model, tokens = load(rank, job), job["tokens"]
    model(tokens)
    seconds = []
    for latency, speed in ((0.0, float("inf")), (job["latency"], float("inf")), (0.0, job["speed"])):
        parallel.sent.clear()
        with parallel.slow_wire(latency, speed):
            start = time.perf_counter()
            model(tokens)
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "sent": dict(parallel.sent)}


DO = {"open": open_and_write, "call badly": call_badly, "wire": time_a_slow_wire}

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
