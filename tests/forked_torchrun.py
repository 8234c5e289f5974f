"""torchrun without its start: the processes that a notebook asks for are forks of the one that runs its cells, which
has imported everything. Each would take three seconds for that, and a notebook starts some twenty. What they do with
each other is the same. For a reader, torchrun itself starts them; under nbval, the first ones of a notebook
(`ForkedElsewhere`).
"""

import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from multiprocessing import Pipe
from pathlib import Path

_RUN = subprocess.run


def run(command, *arguments, **options):
    """subprocess.run, but for `python -m torch.distributed.run ... --nproc-per-node N SCRIPT ARGUMENTS`."""
    if not _is_torchrun(command):
        return _RUN(command, *arguments, **options)
    at = command.index("--nproc-per-node")
    size, script, *given = command[at + 1 :]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**options.get("env", os.environ), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{kind}{rank}" for kind in ("out", "err") for rank in range(int(size))]
        out, err = files[: int(size)], files[int(size) :]
        children = [
            _fork(script, given, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, out[rank], err[rank])
            for rank in range(int(size))
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said, complained = ("".join(file.read_text("utf-8") for file in each) for each in (out, err))
    return subprocess.CompletedProcess(command, 1 if any(codes) else 0, said, complained)


class ForkedElsewhere:
    """`run` for a notebook's kernel, which has threads and so cannot well be forked: a process that was set aside
    before makes the forks. The first torchrun of a notebook is torchrun itself; all of them have one command line, but
    for the script and the number.
    """

    def __init__(self):
        self.first = True
        self.asks, asked = Pipe()
        if os.fork():
            asked.close()
            return
        try:
            self.asks.close()  # or this process never learns that all others have ended
            while True:
                command, options = asked.recv()
                asked.send(run(command, **options))
        except EOFError:
            os._exit(0)
        finally:
            os._exit(1)

    def __call__(self, command, *arguments, **options):
        if self.first or not _is_torchrun(command):
            self.first = self.first and not _is_torchrun(command)
            return _RUN(command, *arguments, **options)
        self.asks.send((command, options))
        return self.asks.recv()


def _is_torchrun(command: object) -> bool:
    return isinstance(command, list) and "torch.distributed.run" in command


def _fork(script: str, given: list[str], environment: dict[str, str], out: Path, err: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for file, number in ((out, 1), (err, 2)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        if script == "-m":
            script, *given = given
        sys.argv = [script, *given]
        if Path(script).suffix == ".py":
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
