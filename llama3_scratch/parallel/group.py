"""The processes that torchrun has started, and everything that passes between them: sums, gathers, and vectors handed
on. torch.distributed does the work, over gloo, or over nccl where every process of a machine has a GPU of its own.
"""

import contextlib
import os
import pickle
import re
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoResult
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..messages import CheckpointError, reason, sentence

T = TypeVar("T")

_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_CONNECT = timedelta(seconds=60)  # for process 0 to answer; what comes later has torch's half an hour

_LOST = re.compile("connect|closed|timed out|socket|broken pipe|peer|nccl", re.IGNORECASE)  # in what gloo says

sent: Counter[str] = Counter()
"""Bytes that this process has sent, by kind, as the usual ways send them (a ring, for sums and gathers)."""


@dataclass(frozen=True)
class _Wire:
    latency: float = 0.0
    bytes_per_second: float = float("inf")


_wire = _Wire()
_board: Any = None  # texts under names, which torchrun keeps for all


def launched() -> bool:
    """Whether this process was started as one of several, by torchrun or in its way."""
    return all(name in os.environ for name in _SET_BY_TORCHRUN)


def join() -> None:
    """Meet the other processes, unless that is done. Raises ValueError if torchrun did not start this one,
    ConnectionError if the others cannot be met.
    """
    global _board
    if dist.is_initialized():
        return
    if not launched():
        raise ValueError(
            "this process is alone: start it with torchrun, as in 'torchrun --nproc-per-node 2 -m llama3_scratch "
            "generate ...', or 'torchrun --nproc-per-node 2 my_program.py'"
        )
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]

    def meet() -> tuple[Any, ...]:
        # The board has a line of its own: on the other, one thread may be waiting while another has something to say.
        met = next(iter(rendezvous("env://", timeout=_CONNECT)))
        return *met, dist.TCPStore(address, int(port), timeout=_CONNECT)  # type: ignore[attr-defined]

    try:
        store, rank, size, board = _in_time(meet)
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun may try again, on the same board
        _board = dist.distributed_c10d.PrefixStore(f"llama3_scratch {start}", board)
        if has_gpus():
            torch.cuda.set_device(device())
        dist.init_process_group(_backend(), store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError, OSError) as e:  # torch's DistError is a RuntimeError
        if "EADDRINUSE" in str(e) or "address already in use" in str(e):
            raise ConnectionError(
                f"port {port} of this machine is taken by another program: choose another "
                "(torchrun --master-port, or MASTER_PORT)"
            ) from e
        raise ConnectionError(
            f"the processes cannot meet at {address}, port {port} ({_first_line(e)}): is process 0 running, and can "
            "this machine reach it?"
        ) from e


def _in_time(work: Callable[[], T]) -> T:
    """What `work` gives. torch waits for ever for an answer of a program that took the port and is no process 0."""
    with_result: Future[T] = Future()

    def run() -> None:
        try:
            with_result.set_result(work())
        except BaseException as e:
            with_result.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    try:
        return with_result.result((_CONNECT + timedelta(seconds=5)).total_seconds())
    except NoResult as e:
        raise RuntimeError("what answers there is not process 0") from e


def _backend() -> str:
    """nccl for what lies on GPUs, where there is one for each process of this machine."""
    return "cpu:gloo,cuda:nccl" if has_gpus() else "gloo"


def has_gpus() -> bool:
    """Whether there is a GPU for each process of this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    return torch.cuda.is_available() and torch.cuda.device_count() >= here


def device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpus() else torch.device("cpu")


def leave() -> None:
    """Part from the others, at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0 on."""
    return dist.get_rank()


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size()


@contextmanager
def _together() -> Iterator[None]:
    """Around everything that waits for others: if one of them has ended, so must this one."""
    try:
        yield
    except RuntimeError as e:
        if not isinstance(e, dist.DistError) and not _LOST.search(str(e)):
            raise
        raise ConnectionError(
            f"one of the other processes ({size()} in all) has ended, or cannot be reached any more, so this one ends, "
            f"too: was it stopped, or was there not enough memory? ({_first_line(e)})"
        ) from e


def _first_line(error: BaseException) -> str:
    """What torch says, without the place in its source and what it guesses."""
    return re.sub(r"^\[[^]]*/[^]]*\] ", "", reason(error)).partition(". This is")[0][:120]


# What passes between the processes


def add_up(x: Tensor) -> Tensor:
    """The sum of every process's x, in the type of x: all-reduce. It may take the place of x."""
    x = x.contiguous()
    with _together():
        _send("sum", 2 * (size() - 1), 2 * (size() - 1) * x.nbytes / size())
        dist.all_reduce(x)
    return x


def gather(x: Tensor, lengths: list[int]) -> Tensor:
    """Every process's x, [..., its own of the lengths], side by side in the last dimension: all-gather."""
    if size() == 1:
        return x
    longest = max(lengths)
    mine = torch.nn.functional.pad(x, (0, longest - x.shape[-1])).contiguous()
    everyone = [torch.empty_like(mine) for _ in lengths]
    with _together():
        _send("gather", size() - 1, (size() - 1) * mine.nbytes)
        dist.all_gather(everyone, mine)
    return torch.cat([other[..., :length] for other, length in zip(everyone, lengths, strict=True)], -1)


def pass_on(x: Tensor) -> None:
    """Hand x to the next process."""
    with _together():
        _send("pass", 1, x.nbytes)
        dist.send(x.contiguous(), rank() + 1)


def take_over(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What the process before this one hands on."""
    x = torch.empty(shape, dtype=like.dtype, device=like.device)
    with _together():
        dist.recv(x, rank() - 1)
    return x


def share_out(x: Tensor, source: int) -> Tensor:
    """What process `source` has, for everybody; x has its shape everywhere, and is replaced elsewhere: broadcast.
    Handed from one to the next around the ring: all but the last send it on.
    """
    is_last = (rank() - source) % size() == size() - 1
    with _together():
        _send("share", size() - 1, 0 if is_last else x.nbytes)
        dist.broadcast(x, source)
    return x


def check_same(tokens: Tensor) -> None:
    """Raise ValueError, everywhere, unless all processes read the same tokens. Else sums would mix several texts."""
    if size() == 1:
        return
    mark = torch.tensor([zlib.crc32(repr(tuple(tokens.shape)).encode() + tokens.cpu().numpy().tobytes())])
    marks = [torch.empty_like(mark) for _ in range(size())]
    with _together():
        _send("check", size() - 1, (size() - 1) * mark.nbytes)
        dist.all_gather(marks, mark)
    if any(not torch.equal(other, mark) for other in marks):
        raise ValueError(
            "the processes read different tokens: give all the same prompt, and `generate` a seed where it draws"
        )


def exchange(value: Any) -> list[Any]:
    """Every process's value, in the order of their numbers."""
    everyone: list[Any] = [None] * size()
    with _together():
        try:
            dist.all_gather_object(everyone, value)
        except pickle.PickleError as e:
            raise ConnectionError(f"what the processes tell each other cannot be read ({reason(e)})") from e
    return everyone


def all_or_none(work: Callable[[], T]) -> list[T]:
    """What `work` gives in every process; if it fails in one, all raise that one's error, with its name before it.

    Of several that fail the first is told. SystemExit, as of a command that was called wrongly, ends all.
    """
    mine: Any = None
    failure: tuple[str, str] | None = None
    try:
        mine = work()
    except (ValueError, OSError, TypeError) as e:
        failure = (type(e).__name__, sentence(e))
    except SystemExit as e:
        failure = ("SystemExit", str(e.code))
    told = exchange((mine, failure, socket.gethostname()))
    failures = [(number, *failed, host) for number, (_, failed, host) in enumerate(told) if failed]
    if failures:
        number, kind, text, host = failures[0]
        if kind == "SystemExit":
            raise SystemExit(2)
        everywhere = len(failures) == size() and len({text for _, _, text, _ in failures}) == 1
        raise CheckpointError(text if everywhere else f"process {number} of {size()} on {host}: {text}")
    return [value for value, _, _ in told]


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in process 0, which alone does it, for all; if it fails there, all raise that."""
    given: T = all_or_none(lambda: work() if rank() == 0 else None)[0]  # type: ignore[assignment]
    return given


def first_to_say(what: str) -> bool:
    """Whether no other process of this machine has said it. Where they have not met, or nobody can be asked any more,
    it is the machine's first process that speaks.
    """
    machine = os.environ.get("GROUP_RANK") or socket.gethostname()
    try:
        return int(_board.add(f"{machine}/{what}", 1)) == 1
    except (AttributeError, RuntimeError):
        return os.environ.get("LOCAL_RANK", "0") == "0"


def note(what: str) -> None:
    """Tell all, now or later, without their having to listen."""
    with contextlib.suppress(AttributeError, RuntimeError):
        _board.set(what, "noted")


def noted(what: str) -> bool:
    """Whether somebody has noted that."""
    try:
        return bool(_board.check([what]))
    except (AttributeError, RuntimeError):
        return False


# A slow wire, for trying things out


@contextmanager
def slow_wire(latency: float = 0.0, bytes_per_second: float = float("inf")) -> Iterator[None]:
    """Between processes of one machine, wait as long as messages would take on such a wire: a sleep stands for it.

    Each of the 2 (N - 1) steps in which a ring of N processes adds up takes `latency` seconds, and what it carries.
    Vectors that are handed on wait in the process that sends them.
    """
    global _wire
    before, _wire = _wire, _Wire(latency, bytes_per_second)
    try:
        yield
    finally:
        _wire = before


def _send(kind: str, steps: int, count: float) -> None:
    """Note that `count` bytes go out in so many steps, one after the other, and wait as long as the wire takes."""
    sent[kind] += round(count)
    if _wire != _Wire():
        time.sleep(steps * _wire.latency + count / _wire.bytes_per_second)
