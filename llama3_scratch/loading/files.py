"""Files: every one of a checkpoint's is looked at here before anything reads it, and what is written appears only when
it is complete.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, Timeout

from ..messages import CheckpointError, reason, short

# The names of files, which stand here and nowhere else.
PARAMS_NAME, WEIGHTS_NAME, VOCABULARY_NAME = "params.json", "consolidated.00.pth", "tokenizer.model"  # Meta's
SHARD_NAME, SHARD_PATTERN = "consolidated.{:02d}.pth", "consolidated.*.pth"
VOCABULARY_CONFIG_NAME = "tokenizer_params.json"  # ours, beside a tokenizer.model that is not Llama 3's
CONFIG_NAME, SAFETENSORS_NAME, TOKENIZER_JSON_NAME = "config.json", "model.safetensors", "tokenizer.json"  # HF's
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_CONFIG_NAME, GENERATION_CONFIG_NAME = "tokenizer_config.json", "generation_config.json"
ADDED_TOKENS_NAME, SPECIAL_TOKENS_NAME = "added_tokens.json", "special_tokens_map.json"
GGUF_SUFFIX = ".gguf"  # of llama.cpp's files, one of which is a whole model
SOURCE_NAME = "SOURCE.txt"  # ours, in what was fetched: where it is from
KEPT_FOLDER, KEPT_NAME = "quantized", "{}.safetensors"  # ours: what `quantize` made, where no other program looks

ADAPTER_NAME = "adapter_model.safetensors"  # peft's
RUN_NAME, STATE_NAME, RUNNING_NAME = "run.json", "state.pth", ".running"  # ours, of a run of training

# Files of other formats, which are named to whoever has only those.
ADAPTER_CONFIG_NAME, ADAPTER_PATTERN = "adapter_config.json", "adapter_model.*"
OTHER_FORMATS = {
    "*.gguf": "GGUF, the format of llama.cpp",
    "pytorch_model*.bin": "weights as PyTorch pickles them",
    "model*.bin": "weights as PyTorch pickles them",
    "*.ckpt": "a training checkpoint",
    "*.pt": "weights as PyTorch pickles them",
    "*.distcp": "a checkpoint of distributed training",
    "tf_model*.h5": "weights of TensorFlow",
    "saved_model.pb": "a model of TensorFlow",
    "flax_model*.msgpack": "weights of Flax",
    "*.onnx": "an ONNX model",
    "*.npz": "weights of MLX or numpy",
    "*.nemo": "a model of NeMo",
    "*.engine": "an engine of TensorRT",
}
CHAT_TEMPLATE_NAME, CHAT_TEMPLATES_FOLDER = "chat_template.jinja", "additional_chat_templates"
_LOCK_NAME = ".lock"  # in a folder while somebody writes to it

# No params.json, vocabulary or list of tensors comes near this; what is larger is something else, and is not read.
MOST_TEXT_BYTES = 32 * 2**20


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


def read_json(path: Path) -> dict[str, Any]:
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


def where_to_look(folder: Path, shards: int = 0) -> str:
    """What to do where a folder holds no model: perhaps one below it does."""
    if shards:
        return f"{shards} shards are here, and their numbers must have no gap: download the missing one"
    below = itertools.islice(itertools.chain(folder.glob("[!.]*/"), folder.glob("snapshots/*/")), 1000)
    for inner in sorted(below):
        if any((inner / name).is_file() for name in (PARAMS_NAME, CONFIG_NAME)):
            return f"Point at {inner}, where a model is"
    return (
        f"The folder must hold {WEIGHTS_NAME}, {PARAMS_NAME} and {VOCABULARY_NAME}, or Hugging Face's "
        f"{CONFIG_NAME}, {SAFETENSORS_NAME} and {TOKENIZER_JSON_NAME}"
    )


def checkpoints_folder() -> Path:
    """LLAMA3_HOME if set; in a checkout of the repository its checkpoints/; else ~/.cache/llama3_scratch."""
    if os.environ.get("LLAMA3_HOME"):
        return Path(os.environ["LLAMA3_HOME"]).expanduser()
    root = Path(__file__).resolve().parents[2]
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


def write_whole(path: Path, content: str | bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file in one step, so that nobody ever sees half of it. What is large can come in pieces."""
    if isinstance(content, str):
        content = content.encode("utf-8")  # the same bytes on Windows
    with locked(path.parent) as is_locked:
        # Without a lock two may write at once. With one, what a killed process left behind is written over.
        partial = path.with_name(f".{path.name}.partial" if is_locked else f".{path.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as f:
                for piece in [content] if isinstance(content, bytes) else content:
                    f.write(piece)
                f.flush()
                os.fsync(f.fileno())  # or a power cut might leave the name without the content
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_ranks(folder: Path, ranks: Mapping[bytes, int], config: Mapping[str, object] | None) -> None:
    """Write tokenizer.model, and tokenizer_params.json beside it where it is not Llama 3's."""
    lines = [f"{base64.b64encode(token).decode()} {id}" for token, id in ranks.items()]
    write_whole(folder / VOCABULARY_NAME, "\n".join(lines) + "\n")
    if config is not None:
        write_whole(folder / VOCABULARY_CONFIG_NAME, json.dumps(config))


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
    """Hold a lock on a folder, which the system takes back however this process ends. Yields whether there is one: some
    network drives have none. While it is held, the folder has a hidden file; whoever holds it last removes that.
    """
    lock = FileLock(folder / _LOCK_NAME)
    try:
        with contextlib.suppress(NotImplementedError, OSError):
            _acquire(lock, folder)
        yield lock.is_locked
    except OSError as e:
        if e.errno and not e.filename:  # a full disk does not say which file
            e.filename = str(folder)
        raise
    finally:
        if lock.is_locked:
            if os.name == "posix":  # on Windows the lock itself does. Whoever waits notices, and makes a new one
                with contextlib.suppress(OSError):
                    os.unlink(lock.lock_file)
            lock.release()


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that writes to {folder.name}", file=sys.stderr)
        lock.acquire()
