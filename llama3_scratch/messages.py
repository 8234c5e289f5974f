"""Words for what went wrong: values, names and errors in one short line each. And the progress bar."""

import reprlib
import sys
from collections.abc import Iterable
from numbers import Integral
from typing import Any, TypeVar

from tqdm import tqdm

_REPR = reprlib.Repr()  # never looks further into a value than it prints
_REPR.maxstring = _REPR.maxother = 80

T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the file, the key and what to do."""


def reason(error: BaseException) -> str:
    """What went wrong, in one short line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200]


def sentence(error: BaseException) -> str:
    """What went wrong, as it is told to whoever gave the command, with the name of the file if the error has one."""
    filename = getattr(error, "filename", None)
    return f"{filename}: {reason(error)}" if filename else str(error)


def short(value: object) -> str:
    """A value, for a message: one line of at most 100 characters."""
    text = " ".join(_REPR.repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def short_name(text: object, most: int = 100) -> str:
    """A name from a file, for a message: as it is, if a terminal can print it and it is not too long."""
    return text if isinstance(text, str) and text.isprintable() and len(text) <= most else short(text)


def expect(value: object, kind: Any, what: str) -> None:
    """Raise TypeError unless a value that somebody passed is of this kind, as isinstance takes it."""
    if not isinstance(value, kind):
        raise TypeError(f"{what}, not {short(value)}")


def is_integer(value: object) -> bool:
    """Whether it is an integer, numpy's among them; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def progress(items: Iterable[T], what: str, unit: str = "it", delay: float = 2.0) -> Iterable[T]:
    """The items, with a progress bar if they take longer than `delay` seconds."""
    bar: Iterable[T] = tqdm(items, desc=what, unit=unit, delay=delay, leave=False)
    return bar


def say(line: str) -> None:
    """Print a line at once, above a progress bar if there is one in the same terminal."""
    if sys.stdout.isatty():
        tqdm.write(line)
    else:
        print(line, flush=True)
