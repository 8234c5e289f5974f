"""The text to train on, and how well it is predicted in bits a byte."""

import math
import os
from pathlib import Path

from ..loading import fetch
from ..loading.files import open_file
from ..messages import CheckpointError

ENVIRONMENT_VARIABLE = "LLAMA3_TEXT"


def read_text(path: str | Path | None = None) -> str:
    """A text file in UTF-8: the one named, or that of the environment variable LLAMA3_TEXT, or Alice's Adventures in
    Wonderland, which is fetched on first use. Lines end in one character, whatever system they come from.

    Raises CheckpointError where it cannot be read, or is empty.
    """
    path = path or os.environ.get(ENVIRONMENT_VARIABLE) or None
    file = Path(path).expanduser() if path else _alice()
    if not file.exists():
        raise CheckpointError(f"{file}: no such file; name a text by --text, or by {ENVIRONMENT_VARIABLE}")
    try:
        with open_file(file) as f:  # of any size
            text = f.read().decode("utf-8")
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{file}: not a text in UTF-8 (byte {e.start}); save it as UTF-8") from e
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise CheckpointError(f"{file}: it is empty; a text of some ten thousand letters is needed")
    return text


def _alice() -> Path:
    return fetch.fetch(fetch.ALICE) / Path(fetch.SOURCES[fetch.ALICE].member).name


def split(text: str, share: float = 0.1) -> tuple[str, str]:
    """The text to train on, and its end, about this share of it, which is held out. The cut is the empty line nearest
    before the place, if there is one in the part before it that is as long; else the place itself.
    """
    place = len(text) - round(share * len(text))
    line = text.rfind("\n\n", max(0, place - round(share * len(text))), place)
    place = line + 2 if line >= 0 else place
    return text[:place], text[place:]


def bits_per_byte(nats: float, tokens: int, text: str) -> float:
    """A loss in nats a token, over so many tokens of a text, as bits for each of its bytes in UTF-8: what a program
    that packs files could reach with these predictions. Comparable between vocabularies, as losses are not.
    """
    return nats * tokens / math.log(2) / len(text.encode("utf-8"))
