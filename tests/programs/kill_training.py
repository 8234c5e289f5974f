"""Train in child processes, and interrupt them again and again: `kill_training.py FOLDER [RUNS]`.

Each run is killed at random moments and taken up again until it is through; it must then have written the same bytes as
one that was left alone, and in between, whatever state it had saved is the one that the other had after as many steps.
Run as a process of its own by test_interruption.py: the children are forks, so that they need no time to start. Ends
with a traceback if anything differs, else prints what was tried, and how often a run was killed.
"""

import hashlib
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from llama3_scratch import CheckpointError, ModelArgs
from llama3_scratch.loading.pth import read_pth
from llama3_scratch.training import Settings
from llama3_scratch.training.runs import Run

HERE, RUNS = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
TEXT = "\n\n".join(
    f"{i} The cat sat on mat number {i * i % 97}, and said {i % 7} words to dog {i % 11}." for i in range(150)
)
PARAMS = ModelArgs(32, n_layers=2, n_heads=2, vocab_size=280, n_kv_heads=1, multiple_of=32, rope_theta=1e4)
SETTINGS = Settings(steps=30, batch_size=4, seq_len=24, warmup=5)
REFUSED, NO_ROOM, CTRL_C = 3, 2, 130  # a child's exit status


def train(folder, settings=SETTINGS, told=lambda report: None):
    for report in Run(TEXT, folder, PARAMS, settings).run(save_every=1):
        told(report)


def start(folder, before=lambda: None, settings=SETTINGS):
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        before()
        train(folder, settings)
    except CheckpointError:
        os._exit(REFUSED)
    except OSError:
        os._exit(NO_ROOM)
    except KeyboardInterrupt:
        os._exit(CTRL_C)
    except BaseException:
        os._exit(1)
    os._exit(0)


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def written(folder):
    """The bytes of both layouts, and of the vocabulary."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    of = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert {"meta", "huggingface", "training"} == {Path(name).parts[0] for name in of}
    return {name: digest for name, digest in of.items() if name != "training/state.pth"}


def state(folder):
    """Steps done, and the sum of everything that was saved; 0 before anything was."""
    path = folder / "training" / "state.pth"
    if not path.exists():
        return 0, None
    tensors, _ = read_pth(path)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].numpy().tobytes())
    return len(tensors["history"]), digest.hexdigest()


def assert_as_it_should_be(folder):
    steps, digest = state(folder)
    assert digest == STATES.get(steps), f"after {steps} steps"
    return steps


def steps_of(folder, at_least):
    while state(folder)[0] < at_least:
        time.sleep(0.005)


def killed_at_random_moments():
    rng, kills, places = random.Random(0), 0, set()
    for i in range(RUNS):
        folder = HERE / f"killed{i}"
        while True:
            child = start(folder)
            time.sleep(rng.uniform(0.02, 0.6 * SECONDS))
            os.kill(child, signal.SIGKILL)
            code = end(child)
            places.add(assert_as_it_should_be(folder))
            if code == 0:
                break
            kills += 1
            assert code == -signal.SIGKILL and kills < 40 * RUNS
        assert written(folder) == WHOLE, "another model"
    assert len(places) > 3  # it was taken up in several places
    return kills


def interrupted_by_a_key():
    folder = HERE / "key"
    child = start(folder, lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    steps_of(folder, 3)
    os.kill(child, signal.SIGINT)
    assert end(child) == CTRL_C and 3 <= assert_as_it_should_be(folder) < SETTINGS.steps
    train(folder)
    assert written(folder) == WHOLE
    return 1


def two_at_once():
    """The second is refused as long as the first one runs, and goes on when that was killed."""
    folder = HERE / "two"
    first = start(folder)
    steps_of(folder, 2)
    os.kill(first, signal.SIGSTOP)
    assert end(start(folder)) == REFUSED
    os.kill(first, signal.SIGKILL)
    end(first)
    assert end(start(folder)) == 0 and written(folder) == WHOLE
    assert end(start(folder)) == 0 and written(folder) == WHOLE  # there is nothing left to do
    return 1


def begun_by_four_at_once():
    """One of them trains. The others wait for its vocabulary and are refused, or come when it is through."""
    folder = HERE / "four"
    codes = sorted(end(child) for child in [start(folder) for _ in range(4)])
    assert 0 in codes and set(codes) <= {0, REFUSED} and written(folder) == WHOLE
    return codes.count(REFUSED)


def other_settings():
    folder = HERE / "whole"
    assert end(start(folder, settings=Settings(**vars(SETTINGS) | {"seed": 1}))) == REFUSED
    assert written(folder) == WHOLE
    return 1


def no_room_left():
    """Files may not grow beyond a limit, which writing notices as it notices a full disk."""
    folder, largest = HERE / "full", (HERE / "whole" / "training" / "state.pth").stat().st_size
    child = start(folder)
    steps_of(folder, 3)
    os.kill(child, signal.SIGKILL)
    end(child)
    for limit in (1000, largest // 2, largest - 1):

        def before(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        assert end(start(folder, before)) == NO_ROOM
        assert 3 <= assert_as_it_should_be(folder) < SETTINGS.steps
    assert not (folder / "meta").exists()
    assert end(start(folder)) == 0 and written(folder) == WHOLE
    return 3


torch.set_num_threads(1)
tqdm.set_lock(threading.RLock())  # its own lock is shared with forks, and stays locked if one of them is killed
torch.optim.AdamW([torch.ones(1, requires_grad=True)])  # what torch imports at first takes a second
STATES = {0: None}
train(HERE / "whole", told=lambda report: STATES.update([state(HERE / "whole")]))
WHOLE = written(HERE / "whole")
assert sorted(STATES) == list(range(SETTINGS.steps + 1))
started = time.perf_counter()
train(HERE / "again")
SECONDS = time.perf_counter() - started
assert written(HERE / "again") == WHOLE
CHECKS = (
    killed_at_random_moments,
    interrupted_by_a_key,
    two_at_once,
    begun_by_four_at_once,
    other_settings,
    no_room_left,
)
for check in CHECKS:
    print(check.__name__, check(), flush=True)
