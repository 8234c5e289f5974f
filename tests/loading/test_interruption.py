"""Killed at any moment, on a full disk, four at once: what is made is there whole, or not at all, and what is
trained goes on as if nothing had been. See interrupt.py and kill_training.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import random_gguf_tensors, write_gguf


@pytest.mark.skipif(sys.platform == "win32", reason="its processes are forks")
def test_what_is_made_is_there_whole_or_not_at_all(tmp_path):
    gguf = write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors())
    (tmp_path / "made").mkdir()
    command = [sys.executable, Path(__file__).parents[1] / "programs" / "interrupt.py", tmp_path / "made", gguf]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = map(str.split, done.stdout.splitlines())
    counts = {(kind, check): tuple(map(int, counted)) for kind, check, *counted in lines}
    for kind in ("tiny", "gguf", "file", "pieces"):
        there, of = counts[kind, "killed_at_random_moments"]
        assert 0 < there < of, kind  # it was killed early enough, and late enough
    assert len(counts) == 16


@pytest.mark.skipif(sys.platform == "win32", reason="its processes are forks")
def test_a_training_that_is_killed_again_and_again_ends_as_one_that_was_left_alone(tmp_path):
    command = [sys.executable, Path(__file__).parents[1] / "programs" / "kill_training.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}
    assert counts["killed_at_random_moments"] > 3 and len(counts) == 6
