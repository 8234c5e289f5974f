"""What goes wrong on several processes, each under a torchrun of its own: python tests/programs/parallel_faults.py

    python tests/programs/parallel_faults.py                    # all, in some four minutes on two cores
    python tests/programs/parallel_faults.py "a file" killed    # those whose names begin so
    python tests/programs/parallel_faults.py --kill 20          # the small real model, one of 3 killed at any moment

For each: what torchrun ended with, what each process did, the seconds, and what our processes said. It is as it should
be if all of ours ended within seconds, with a status, without a traceback, with one sentence among them, and none is
left.
"""

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve()
MARK = "LLAMA3_FAULT"  # in the environment of all that is started here, to find what is left of it
COUNT, WRITTEN = 2, 200


@dataclass
class Fault:
    """says: words of the one sentence. machine: what a process does before it begins, given its number."""

    says: str
    options: list[str] = field(default_factory=list)
    machine: Callable[[int], None] | None = None
    count: int = COUNT
    most: float = 30  # seconds, of which starting takes most
    status: int = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="N times, at random moments")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        make_models(Path(home))
        wrong = 0
        if args.kill:
            wrong = kill_at_random_moments(Path(home), args.kill, args.seed)
        else:
            for name, fault in FAULTS.items():
                if not args.names or name.startswith(tuple(args.names)):
                    ran = run(name, fault, Path(home))
                    wrong += report(name, ran, problems(fault, ran))
    print(f"{wrong} not as they should be")
    return int(wrong > 0)


@dataclass
class Ran:
    status: int
    codes: dict[int, int]  # of the processes that torchrun's report names
    texts: list[str]  # stdout of each process
    said: list[str]  # stderr of each
    seconds: float
    left: list[int]  # processes that are still there

    @property
    def sentences(self) -> list[str]:
        """What our processes say, a line each, but for figures and how a command is used."""
        lines = [line for said in self.said for line in said.splitlines() if line.strip()]
        return [line for line in lines if not line.startswith(("read ", "weights:", "usage:", "    "))]


def run(name: str, fault: Fault, home: Path, kill: Callable[[Path, subprocess.Popen], None] | None = None) -> Ran:
    """One torchrun, whose processes write to files of their own."""
    logs = Path(tempfile.mkdtemp(dir=home))
    options = fault.options or ["--checkpoint", str(home / "sharded"), *WRITE]
    options = [option.replace("HOME", str(home)) for option in options]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(fault.count)]
    command += ["--master-port", str(free_port()), "--redirects", "3", "--log-dir", str(logs)]
    environment = os.environ | {MARK: str(logs), "FAULT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (HERE.parents[2], HERE.parents[1])))
    start = time.perf_counter()
    started = subprocess.Popen(
        [*command, str(HERE), "--as", name, *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    if kill:
        kill(logs, started)
    try:
        err = started.communicate(timeout=fault.most + 60)[1]
    except subprocess.TimeoutExpired:
        started.kill()
        err = started.communicate()[1]
    seconds = time.perf_counter() - start
    left = still_there(logs)
    for process in left:
        os.kill(process, signal.SIGKILL)
    codes = {int(rank): int(code) for rank, code in re.findall(r"rank\s*: (\d+).*\n\s*exitcode\s*: (-?\d+)", err)}
    texts, said = (
        [p.read_bytes().decode() for p in sorted(logs.rglob(name), key=lambda p: int(p.parent.name))]
        for name in ("stdout.log", "stderr.log")
    )
    return Ran(started.returncode, codes, texts, said, seconds, left)


def problems(fault: Fault, ran: Ran) -> list[str]:
    found = []
    if (ran.status == 0) != (fault.status == 0):
        found.append(f"torchrun ended with {ran.status}")
    if fault.status == 2 and not any(code == 2 for code in ran.codes.values()):
        found.append("no process ended with 2")
    if any("Traceback" in said for said in ran.said):
        found.append("a traceback")
    wanted = 1 if fault.says else 0
    if len(ran.sentences) != wanted:
        found.append(f"{len(ran.sentences)} sentences")
    if not all(word in " ".join(ran.sentences) for word in fault.says.split()):
        found.append(f"not said: {fault.says}")
    if ran.left:
        found.append(f"{len(ran.left)} processes left")
    if ran.seconds > fault.most:
        found.append("too late")
    return found


def report(name: str, ran: Ran, wrong: list[str]) -> bool:
    print(f"{'WRONG' if wrong else 'ok':5} {name}: {ran.seconds:.0f} s, torchrun {ran.status}, {ran.codes}", flush=True)
    for sentence in ran.sentences[:40] if wrong else ran.sentences:
        print(f"      {sentence[:300]}")
    if wrong:
        print(f"      -> {'; '.join(wrong)}", flush=True)
    return bool(wrong)


def still_there(logs: Path) -> list[int]:
    mark, found = f"{MARK}={logs}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if mark in (process / "environ").read_bytes() and state != "Z":
                found.append(int(process.name))
        except OSError:
            continue
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def kill_at_random_moments(home: Path, times: int, seed: int) -> int:
    """One of three processes with the small real model, from its start until it has written."""
    rng, wrong = random.Random(seed), 0
    options = ["--checkpoint", "smollm2-135m", "--prompt", "The capital of France is", "--max-new-tokens", "40"]
    fault = Fault("", options, count=3, most=90, status=1)
    whole = run("nothing", Fault("", options, count=3, most=120, status=0), home)
    print(f"undisturbed: {whole.seconds:.1f} s, torchrun {whole.status}: {whole.texts[0]!r}", flush=True)
    for i in range(times):
        rank, after = rng.randrange(3), rng.uniform(0, whole.seconds)
        killed_at: list[float] = []

        def kill(logs: Path, started: subprocess.Popen, rank=rank, after=after, killed_at=killed_at) -> None:
            """Moments are counted from when the processes are there."""
            while started.poll() is None and len(ours := children(started.pid)) < 3:
                time.sleep(0.05)
            until = time.perf_counter() + after
            while started.poll() is None and time.perf_counter() < until:
                time.sleep(0.02)
            if started.poll() is None and len(ours) == 3:
                try:
                    os.kill(ours[rank], signal.SIGKILL)
                    killed_at.append(time.perf_counter())
                except ProcessLookupError:
                    pass

        ran = run("nothing", fault, home, kill)
        took = time.perf_counter() - killed_at[0] if killed_at else 0.0
        killed = -9 in ran.codes.values()
        found = [p for p in problems(fault, ran) if "sentences" not in p] if killed else []
        # Before the processes run Python of ours, nobody can say anything; torchrun does.
        if killed and len(ran.sentences) > 1:
            found.append(f"{len(ran.sentences)} sentences")
        if took > 10:
            found.append("others went on too long")
        told = f"{i}: process {rank} after {after:.1f} s"
        told += f", all gone {took:.1f} s later" if killed else ": too late"
        wrong += report(told, ran, found)
    return wrong


def children(parent: int) -> list[int]:
    """In the order of their numbers."""
    try:
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        ranked = {}
        for child in found:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            numbers = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
            if numbers:
                ranked[numbers[0]] = int(child)
        return [ranked[rank] for rank in sorted(ranked)]
    except OSError:
        return []


# What each process does, in the processes


def home() -> Path:
    return Path(os.environ["FAULT_HOME"])


def elsewhere(*folders: str) -> Callable[[int], None]:
    """Process R is on a machine where the checkpoint is another folder."""

    def machine(rank: int) -> None:
        sys.argv[sys.argv.index("--checkpoint") + 1] = str(home() / folders[rank])

    return machine


def ends(where: str, number: int, rank: int, how: Callable[[], None] | None = None) -> Callable[[int], None]:
    """Process `rank` is killed the n-th time that it comes through a function."""

    def machine(mine: int) -> None:
        if mine != rank:
            return
        import importlib

        module, name = where.rsplit(".", 1)
        module = importlib.import_module(module)
        real, times = getattr(module, name), [0]

        def counted(*args, **kwargs):
            times[0] += 1
            if times[0] == number:
                (how or (lambda: os.kill(os.getpid(), signal.SIGKILL)))()
            return real(*args, **kwargs)

        setattr(module, name, counted)

    return machine


def another_version(rank: int) -> None:
    if rank == 1:
        sys.path.insert(0, str(home() / "copy"))


def late() -> None:
    """Killed when the others wait already."""
    time.sleep(5)
    os.kill(os.getpid(), signal.SIGKILL)


def files_are_large(rank: int) -> None:
    from llama3_scratch.loading import mapped

    mapped.CHECKED_BYTES = mapped.COPY_ON_WRITE_BYTES = 0


def no_memory() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")


def as_if_without_torchrun(rank: int) -> None:
    """Started by hand, with a port that another program has: process 0 opens it itself."""
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ["MASTER_PORT"] = (home() / "port").read_text()


def reader_has_enough(rank: int) -> None:
    if rank == 0:
        reading, writing = os.pipe()
        sys.stdout = os.fdopen(writing, "w")
        os.dup2(writing, 1)
        import threading

        def head() -> None:
            os.read(reading, 20)
            os.close(reading)

        threading.Thread(target=head, daemon=True).start()


WRITE = ["--prompt", "the question is", "--max-new-tokens", str(WRITTEN)]
ON = ["--checkpoint", "HOME/whole", *WRITE]
SHARDED = ["--checkpoint", "HOME/sharded", *WRITE]


def on(folder: str, *more: str) -> list[str]:
    return ["--checkpoint", f"HOME/{folder}", *WRITE, *more]


FAULTS = {
    "nothing": Fault("", status=0),
    "a file is missing on one machine": Fault("consolidated.01.pth not found", machine=elsewhere("only0", "none")),
    "no checkpoint on one machine": Fault("process 1 no such folder", machine=elsewhere("sharded", "nowhere")),
    "another model's shard on one machine": Fault("process 1 another model", machine=elsewhere("only0", "other1")),
    "another model's file on one machine": Fault(
        "process 1 another model", on("whole"), machine=elsewhere("whole", "other")
    ),
    "another model of other sizes on one machine": Fault(
        "process 1 another model n_heads", on("whole"), machine=elsewhere("whole", "sharded")
    ),
    "another params.json on one machine": Fault(
        "process 1 another model rope_theta", on("whole"), machine=elsewhere("whole", "other_params")
    ),
    "a damaged file on one machine": Fault("process 1 consolidated.01.pth", machine=elsewhere("sharded", "damaged")),
    "a port that is taken": Fault("port taken", machine=as_if_without_torchrun),
    "killed before it meets the others": Fault(
        "another process has ended", machine=ends("llama3_scratch.parallel.join", 1, 1, late), status=1, most=90
    ),
    "killed while it reads": Fault("process ended", machine=ends("llama3_scratch.loading.parts._take", 5, 1), status=1),
    "killed while it writes": Fault(
        "process ended", machine=ends("llama3_scratch.parallel.group.add_up", 300, 1), status=1
    ),
    "process 0 killed while it writes": Fault(
        "process ended", machine=ends("llama3_scratch.parallel.group.add_up", 300, 0), status=1
    ),
    "killed in a pipeline": Fault(
        "process ended",
        on("whole", "--parallel", "pipeline"),
        machine=ends("llama3_scratch.parallel.group.share_out", 60, 1),
        status=1,
    ),
    "one of four killed while it writes": Fault(
        "process ended", on("whole"), ends("llama3_scratch.parallel.group.add_up", 100, 2), count=4, status=1, most=60
    ),
    "no memory while it writes": Fault(
        "process 1 memory", machine=ends("llama3_scratch.parallel.group.add_up", 300, 1, no_memory)
    ),
    "no memory while it opens": Fault("memory", machine=ends("llama3_scratch.loading.parts._take", 5, 1, no_memory)),
    "unequal versions": Fault("process 1 another version", machine=another_version),
    "heads that do not divide": Fault("5 query heads --parallel pipeline", on("five_heads")),
    "more stages than layers": Fault("2 layers pipeline 3", on("whole", "--parallel", "pipeline"), count=3),
    "quantize": Fault("--quantize one process", on("whole", "--quantize", "int8")),
    "an empty prompt": Fault(
        "", ["--checkpoint", "HOME/whole", "--prompt", "", "--max-new-tokens", "3"], status=0
    ),  # a text that begins with <|begin_of_text|>, as on one process
    "no prompt, and nothing comes": Fault("stdin", ["--checkpoint", "HOME/whole"]),
    "a prompt that is too long": Fault("tokens", ["--checkpoint", "HOME/sharded", "--prompt", "x" * 9000]),
    "no tokenizer": Fault("tokenizer.model", on("no_tokenizer")),
    "a weight that is NaN": Fault("w1.weight", on("nan")),
    "a weight that is NaN, in a file too large to look through": Fault(
        "layers.1.feed_forward.w1.weight holds NaN", on("nan"), files_are_large
    ),
    "a weight that is NaN, in a stage of a pipeline": Fault(
        "layers.1.feed_forward.w1.weight holds NaN", on("nan", "--parallel", "pipeline"), files_are_large
    ),
    "an unknown option": Fault("--colour", on("whole", "--colour")),
    "a wrong temperature": Fault("temperature", on("whole", "--temperature", "-1")),
    "a reader that has seen enough": Fault("", machine=reader_has_enough, status=0),
}


def one_process() -> None:
    """In a process that torchrun started."""
    name = sys.argv[2]
    sys.argv = ["python -m llama3_scratch", "generate", *sys.argv[3:]]
    machine = FAULTS[name].machine
    sys.path = [path for path in sys.path if Path(path or ".").resolve() != HERE.parent]
    if machine:
        machine(int(os.environ["RANK"]))
    from llama3_scratch.__main__ import command_line

    command_line()


def make_models(home: Path) -> None:
    import torch
    from helpers import split

    from llama3_scratch import ModelArgs
    from llama3_scratch.loading.tiny import make_tiny, random_weights

    make_tiny("tiny-scaled", home / "whole")
    whole = torch.load(home / "whole" / "consolidated.00.pth")
    sizes = ModelArgs(64, 2, 8, 512, n_kv_heads=2, multiple_of=32)

    def folder(name: str, params: ModelArgs, weights: dict, shards: int = 1, which: tuple | None = None) -> Path:
        shutil.copytree(home / "whole", home / name, ignore=shutil.ignore_patterns("consolidated.*"))
        (home / name / "params.json").write_text(params.to_json())
        if params.vocab_size == 512:
            from llama3_scratch.loading.tiny import write_byte_tokenizer

            write_byte_tokenizer(home / name)
        for i, part in enumerate(split(weights, shards)):
            if which is None or i in which:
                torch.save(part, home / name / f"consolidated.{i:02}.pth")
        return home / name

    weights, others = (random_weights(sizes, torch.float32, False, seed) for seed in (1, 2))
    folder("sharded", sizes, weights, 2)
    folder("only0", sizes, weights, 2, (0,))
    folder("none", sizes, weights, 2, ())
    folder("other1", sizes, others, 2, (1,))
    damaged = folder("damaged", sizes, weights, 2) / "consolidated.01.pth"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    params = make_params(home / "whole")
    folder("other", params, random_weights(params, torch.float32, True, 5))
    folder("other_params", ModelArgs(**{**vars(params), "rope_theta": 10000.0}), whole)
    five = folder("five_heads", ModelArgs(80, 2, 5, 512), {})
    (five / "consolidated.00.pth").write_bytes(b"no weights at all")
    (folder("no_tokenizer", params, whole) / "tokenizer.model").unlink()
    bad = {key: weight.clone() for key, weight in weights.items()}
    bad["layers.1.feed_forward.w1.weight"][-1, -1] = torch.nan
    folder("nan", sizes, bad)
    package = HERE.parents[2] / "llama3_scratch"
    shutil.copytree(package, home / "copy" / "llama3_scratch", ignore=shutil.ignore_patterns("__pycache__"))
    with open(home / "copy" / "llama3_scratch" / "functional.py", "a") as f:
        f.write("\n# a later version\n")
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    KEPT.append(taken)
    (home / "port").write_text(str(taken.getsockname()[1]))


def make_params(folder: Path):
    from llama3_scratch.loading.meta import read_params

    return read_params(folder / "params.json")


KEPT: list[socket.socket] = []

if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        one_process()
    else:
        sys.path.append(str(HERE.parents[1]))  # tests/
        sys.exit(main())
