"""Files: every one of a checkpoint's is looked at here before anything reads it, and what is written appears only when
it is complete.
"""

import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .messages import reason, short

# No params.json, vocabulary or list of tensors comes near this; what is larger is something else, and is not read.
MOST_TEXT_BYTES = 32 * 2**20


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the file, the key and what to do."""


def open_file(path: Path) -> BinaryIO:
    """A file, open for reading. Raises CheckpointError where there is none, or something else, such as a pipe."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a file; put the file itself there")
        return open(path, "rb")
    except FileNotFoundError as e:
        why = "a link that leads nowhere" if path.is_symlink() else "not found"
        raise CheckpointError(f"{path}: {why}; download it, or point at another folder") from e
    except CheckpointError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a name that no file can have
        raise CheckpointError(f"{path}: cannot be read ({reason(e)})") from e


def read_bytes(path: Path) -> bytes:
    """All of a small file: JSON or a vocabulary."""
    with open_file(path) as f:
        data = f.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise CheckpointError(f"{path}: over {MOST_TEXT_BYTES >> 20} MiB, larger than any model's; download it again")
    return data


def read_json(path: Path) -> dict:
    """A JSON object. Raises CheckpointError for anything else."""
    data = read_bytes(path)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        what = what_it_is(data) or ("not UTF-8" if isinstance(e, UnicodeDecodeError) else reason(e))
        raise CheckpointError(f"{path}: not readable as JSON ({what}); download it again") from e
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {short(content)}; download it again")
    return content


def what_it_is(data: bytes) -> str:
    """What people often have in place of a file, known by its first bytes; "" for anything else."""
    start = data[:64].lstrip().lower()
    if not data:
        return "it is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page: the download needs you to log in, or the address is wrong"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file: run 'git lfs pull'"
    return ""


def list_folder(folder: Path) -> set[str]:
    """The names in a folder. Raises CheckpointError if it cannot be listed."""
    try:
        return {path.name for path in folder.iterdir()}
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{folder}: cannot be read ({reason(e)})") from e


def checkpoints_folder() -> Path:
    """LLAMA3_HOME if set; in a checkout of the repository its checkpoints/; else ~/.cache/llama3_scratch."""
    if os.environ.get("LLAMA3_HOME"):
        return Path(os.environ["LLAMA3_HOME"]).expanduser()
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():
        return root / "checkpoints"
    return Path.home() / ".cache" / "llama3_scratch"


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path | None]:
    """Yield an empty folder to fill, and move it to `folder` once the block ends well; None if that is there already.

    Whatever interrupts the block, `folder` is either complete or absent. A second process that makes anything beside
    it waits until the first is done. What a killed one left behind is removed by the next.
    """
    if folder.is_dir():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _partial_folder(folder.parent) as partial:
        if folder.is_dir():  # another process made it while we waited
            yield None
            return
        yield partial
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # else a process that we could not wait for was quicker, which is as good
                raise


@contextmanager
def finished_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder to fill, and move its files into `folder` once the block ends well. The one that makes a
    whole of them, `last`, is not there until all others are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _partial_folder(folder) as partial:
        yield partial
        (folder / last).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
            os.replace(path, folder / path.name)


def write_whole(path: Path, text: str):
    """Replace a file in one step, so that nobody ever sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    with locked(path.parent):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _partial_folder(parent: Path) -> Iterator[Path]:
    with locked(parent) as is_locked:
        for left in parent.glob(".partial-*") if is_locked else ():  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
        try:
            partial.chmod(0o755)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder, which the system takes back however this process ends. Yields whether there is one:
    Windows and some network drives have no such locks.
    """
    handle = None
    try:
        with contextlib.suppress(ImportError, OSError):
            handle = _lock(folder)
        yield handle is not None
    except OSError as e:
        if e.errno and not e.filename:  # a full disk does not say which file
            e.filename = str(folder)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        os.set_inheritable(handle, True)  # for pip, which may go on writing when we are killed
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that writes to {folder.name}", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException:  # no locks here, or Ctrl-C while waiting
        os.close(handle)
        raise
    return handle
