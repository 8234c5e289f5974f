"""Make something again and again in child processes, and interrupt them: `interrupt.py FOLDER GGUF`.

Run as a process of its own by test_interruption.py: the children are forks, so that they need no time to start. Ends
with a traceback if anything was half there, else prints of each kind how often it was there whole, and of how many.
"""

import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from llama3_scratch.loading.files import finished_folder, write_whole
from llama3_scratch.loading.gguf import write_gguf
from llama3_scratch.loading.tiny import make_tiny


def convert(target):
    with finished_folder(target) as partial:
        if partial is not None:
            write_gguf(GGUF, partial)


FOLDER, GGUF = map(Path, sys.argv[1:])
KINDS = {
    "tiny": lambda target: make_tiny("tiny-ratio4", target),
    "gguf": convert,
    "file": lambda target: write_whole(target, "a line of a notebook\n" * 500_000),
    "pieces": lambda target: write_whole(target, (b"a row of a matrix\n" * 5_000 for _ in range(100))),
}


def start(target, before=lambda: None):
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        before()
        MAKE(target)
    except OSError:
        os._exit(2)
    except BaseException:
        os._exit(1)
    os._exit(0)


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(target):
    """Names and hashes; hidden files, in which something is being made, are not what was asked for."""
    files = [target] if KIND in ("file", "pieces") else target.glob("[!.]*")
    return {file.name.replace(target.name, ""): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def is_there(target):
    """Whether what a reader would open is there; it must then be whole."""
    if not (target if KIND in ("file", "pieces") else target / "params.json").exists():
        assert KIND == "gguf" or not target.exists(), "half of it is there"
        return False
    assert content(target) == WHOLE
    return True


def left_over(target):
    return [path.name for path in [*target.parent.glob(".*"), *target.glob(".*")]]


def killed_at_random_moments():
    rng, there = random.Random(0), []
    for i in range(20):
        target = HERE / f"killed{i}"
        child = start(target)
        # Later and later, for machines on which others are busy. 0.03: until a fork has begun.
        time.sleep(rng.uniform(0, (1 + i / 5) * SECONDS + 0.03))
        os.kill(child, signal.SIGKILL)
        end(child)
        there.append(is_there(target))
        MAKE(target)  # running it again succeeds,
        assert is_there(target)
        if KIND not in (
            "file",
            "pieces",
        ):  # and clears away what was left; but nothing is made, or cleared, where it was there
            assert left_over(target) in ([], [".lock"] if there[-1] else [])
    return sum(there), len(there)


def four_at_once():
    for i in range(5):
        target = HERE / f"together{i}"
        assert [end(child) for child in [start(target) for _ in range(4)]] == [0, 0, 0, 0]
        assert is_there(target)
    return 5, 5


def a_waiting_one_goes_on_when_the_first_is_killed():
    target = HERE / "waited for"
    first = start(target)
    time.sleep(SECONDS / 3)
    second = start(target)
    time.sleep(SECONDS / 3)
    os.kill(first, signal.SIGKILL)
    end(first)
    assert end(second) == 0 and is_there(target) and left_over(target) == []
    return 1, 1


def no_room_left():
    """Files may not grow beyond a limit, which writing notices as it notices a full disk."""
    largest = max(path.stat().st_size for path in [HERE / "whole", *(HERE / "whole").rglob("*")] if path.is_file())
    for limit in (0, 1000, largest // 2, largest - 1):

        def before(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        target = HERE / f"full{limit}"
        assert end(start(target, before)) == 2
        assert not is_there(target) and left_over(target) == []
        MAKE(target)
        assert is_there(target)
    return 4, 4


torch.set_num_threads(1)
tqdm.set_lock(threading.RLock())  # its own lock is shared with forks, and stays locked if one of them is killed
for KIND, MAKE in KINDS.items():
    HERE = FOLDER / KIND
    HERE.mkdir()
    started = time.perf_counter()
    MAKE(HERE / "whole")
    SECONDS = time.perf_counter() - started
    WHOLE = content(HERE / "whole")
    for check in (killed_at_random_moments, four_at_once, a_waiting_one_goes_on_when_the_first_is_killed, no_room_left):
        print(KIND, check.__name__, *check(), flush=True)
        for path in HERE.iterdir():
            if path.name != "whole":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
