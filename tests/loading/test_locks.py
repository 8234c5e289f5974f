"""Locks on folders: one writer at a time, whoever waits says so, and nothing is left lying about."""

import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from llama3_scratch.loading import files
from llama3_scratch.loading.files import finished_folder, locked, write_whole


def test_the_lock_is_one_that_filelock_itself_respects(tmp_path):
    with locked(tmp_path) as held:
        assert held
        assert not acquired(FileLock(tmp_path / files._LOCK_NAME))
    assert acquired(FileLock(tmp_path / files._LOCK_NAME))


def acquired(lock):
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return False
    lock.release()
    return True


def test_nothing_is_left_where_somebody_wrote(tmp_path):
    write_whole(tmp_path / "page.html", "text")
    with finished_folder(tmp_path / "made") as partial:
        (partial / "file").write_text("text")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "made", "page.html"]


def test_one_writes_at_a_time_and_who_waits_says_so(tmp_path, capsys):
    order = []

    def second():
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert f"waiting for another process that writes to {tmp_path.name}" in capsys.readouterr().err


def test_many_processes_never_meet(tmp_path):
    """Each adds one to a number that it reads and writes in two steps; the lock's file comes and goes between them."""
    (tmp_path / "number").write_text("0")
    program = f"""
import os
from pathlib import Path
from llama3_scratch.loading.files import locked
folder = Path({str(tmp_path)!r})
for _ in range(40):
    with locked(folder):
        number = int((folder / "number").read_text())
        os.sched_yield() if hasattr(os, "sched_yield") else None
        (folder / "number").write_text(str(number + 1))
"""
    children = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [child.wait(timeout=240) for child in children] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "120"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError()])
def test_a_drive_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch, error):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refused)
    with locked(tmp_path) as held:
        assert not held
    write_whole(tmp_path / "page.html", "text")
    assert (tmp_path / "page.html").read_text() == "text"
