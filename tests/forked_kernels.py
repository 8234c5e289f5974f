"""nbval in forks of a process that has imported everything already: for each notebook one of nbval and one of its
kernel, which is a reader's kernel but for its start. That saves six seconds a notebook. What a notebook starts with
torchrun are forks as well, but for the first (forked_torchrun.py). `run_cells.py` calls `run`.

The plugin also knows the tags `last-digits` and `second-digits`, of cells whose stored numbers depend on the kind of
processor in these digits. Where a processor may use its own kernels, such numbers need only be near.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import forked_torchrun
import pytest
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.provisioning import local_provisioner
from nbval import plugin

NUMBER = re.compile(r"(?<![\w#.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?%?(?![\w.])")
NEAR = {"last-digits": 0.02, "second-digits": 0.1}  # the second for trainings that go wrong on purpose


class Near(str):
    """A text that equals another one if only its numbers differ, and these by a small share at most. Whole numbers
    count something and stay the same, but for percents, and beside broken ones: 33 is near 32.9.
    """

    __hash__ = str.__hash__

    def __new__(cls, text: str, share: float = NEAR["last-digits"]):
        near = super().__new__(cls, text)
        near.share = share
        return near

    def __eq__(self, other: object) -> bool:
        if str.__eq__(self, other):
            return True
        if not isinstance(other, str) or NUMBER.sub("", self) != NUMBER.sub("", other):
            return False
        ours, theirs = NUMBER.findall(self), NUMBER.findall(other)
        return len(ours) == len(theirs) and all(close(*pair, self.share) for pair in zip(ours, theirs, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other


def close(ours: str, theirs: str, share: float) -> bool:
    if not re.search(r"[.e%]", ours + theirs):
        return ours == theirs
    a, b = (float(number.replace(",", "").rstrip("%")) for number in (ours, theirs))
    return abs(a - b) <= 2e-4 + share * max(abs(a), abs(b))


def sanitize(cell: plugin.IPyNbCell, said: object) -> object:
    """What nbval compares; it would cut out here what differs on every run."""
    shares = [share for tag, share in NEAR.items() if tag in cell.cell.metadata.get("tags", ())]
    return Near(said, max(shares)) if shares and isinstance(said, str) else said


class Kernel:
    """A fork that runs a kernel, with the parts of a Popen that jupyter_client uses."""

    stdin = stdout = stderr = returncode = None
    torchrun = None

    def __init__(self, command, env, cwd=None, **_):
        self.pid = os.fork()
        if self.pid == 0:
            self.become(command[command.index("-f") :], env, cwd)
        os.setpgid(self.pid, self.pid)  # here as well, since we may be the first: signals go to its whole group

    def become(self, arguments, env, cwd):
        try:
            os.setpgid(0, 0)
            parent = os.getppid()
            os.environ.clear()
            os.environ.update(env, JPY_PARENT_PID=str(parent))  # with which it ends
            os.chdir(cwd or ".")
            nowhere = os.open(os.devnull, os.O_RDWR)
            for file in range(3):
                os.dup2(nowhere, file)
            asyncio.set_event_loop(asyncio.new_event_loop())  # the other one is in the middle of starting us
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv[:] = ["ipykernel_launcher.py", *arguments]
            subprocess.run = self.torchrun
            IPKernelApp.launch_instance(arguments)
        finally:
            os._exit(0)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        while self.poll() is None:
            signal.sigtimedwait((), 0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(which: str, report: str, notebooks: list[str]) -> None:
    """nbval on the notebooks, in this process; `report` is junit's. "near" ends at the first cell that differs."""
    local_provisioner.launch_kernel = Kernel
    if which == "near":
        plugin.IPyNbCell.sanitize = sanitize
    options = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", f"--junitxml={report}"]
    options += ["-p", "no:cacheprovider", "-s", "-q"] + (["-x"] if which == "near" else [])
    os.chdir(Path(notebooks[0]).parent)
    Kernel.torchrun = forked_torchrun.ForkedElsewhere()  # before there are threads
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # all is in the report
    try:
        pytest.main([*options, *notebooks], plugins=[plugin])
    except BaseException:
        traceback.print_exc()
