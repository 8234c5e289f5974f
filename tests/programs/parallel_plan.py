"""Torch's own plan for tensor parallelism, over our modules, in two processes: python tests/programs/parallel_plan.py

Prints, for each process, how many rows of wq it holds, and how far its logits are from those of one process.
"""

import os
import socket
import sys

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from llama3_scratch import Llama


def main(rank: int, folder: str, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo")
    model = Llama.from_checkpoint(folder)
    expected = model([1, 2, 3]).detach()
    columns = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")
    layers = range(model.params.n_layers)
    plan = {f"layers.{i}.{name}": ColwiseParallel() for i in layers for name in columns}
    plan |= {f"layers.{i}.{name}": RowwiseParallel() for i in layers for name in ("attention.wo", "feed_forward.w2")}
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    rows = model.layers[0].attention.wq.weight.to_local().shape[0]
    with torch.no_grad():
        difference = (model([1, 2, 3]) - expected).abs().max().item()
    sys.stdout.write(f"{rows} {difference}\n")  # in one piece: the two processes share a pipe
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "fork" if hasattr(os, "fork") else "spawn"  # forks need not import torch anew
    multiprocessing.start_processes(main, (sys.argv[1], port), nprocs=2, start_method=start)
