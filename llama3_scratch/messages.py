"""Words for what went wrong: values, names and errors in one short line each, and two checks of arguments."""

import reprlib
from numbers import Integral

_REPR = reprlib.Repr()  # never looks further into a value than it prints
_REPR.maxstring = _REPR.maxother = 80


def reason(error: Exception) -> str:
    """What went wrong, in one short line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200]


def short(value: object) -> str:
    """A value, for a message: one line of at most 100 characters."""
    text = " ".join(_REPR.repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def short_name(text: object, most: int = 100) -> str:
    """A name from a file, for a message: as it is, if a terminal can print it and it is not too long."""
    return text if isinstance(text, str) and text.isprintable() and len(text) <= most else short(text)


def expect(value: object, kind: type | tuple[type, ...], what: str):
    """Raise TypeError unless a value that somebody passed is of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{what}, not {short(value)}")


def is_whole(value: object) -> bool:
    """Whether it is an integer, numpy's among them; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)
