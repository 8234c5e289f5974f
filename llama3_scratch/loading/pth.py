"""Meta's .pth files, read as data: nothing in one is ever run, whoever made it.

A .pth file is an uncompressed zip. `data.pkl` is a pickle with the names, types, shapes and places of all tensors, and
`data/0`, `data/1`, ... hold their bytes. A pickle is a program: "push this text, make a tuple, call that function", and
the function may be any. `torch.load(weights_only=True)` allows some and calls them; here none is called. (It also
believes what a file says of its sizes and of the order of its bytes: with `map_location="meta"`, which is how names and
shapes could be read without the numbers, a wrong word there ends the process.)
"""

import errno
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..messages import CheckpointError, short, short_name
from .files import open_file, what_it_is
from .mapped import CHECKED_BYTES, EXPECTED, STORED_DTYPES, map_file, numbers_at

_DTYPES = {f"torch {storage}": dtype for dtype, _, storage in STORED_DTYPES}
_MOST_PICKLE_BYTES = 2**20  # that of the 405B model has a quarter of it
_MOST_NUMBER = 2**60  # far more bytes than any file has


@dataclass(frozen=True)
class Call:
    """A call that a pickle asks for: noted, not made."""

    function: str
    arguments: tuple[Any, ...]


def read_pth(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a .pth file, mapped into memory; also whether they are mapped read-only.

    Raises CheckpointError for anything that is not a dict of names and plain tensors, each with bytes of its own in
    the file. Files up to CHECKED_BYTES are compared with their checksums.
    """
    with open_file(path) as f:
        try:
            program, places = _read_zip(f)
            described = unpickle(program)
        except CheckpointError as e:
            raise CheckpointError(f"{path}: {e}") from e
        except Exception as e:  # zip and pickle fail in many ways, all meaning the same to the reader
            raise CheckpointError(
                f"{path}: not a readable file of weights (damaged, or the download is incomplete); download it again"
            ) from e
    if not isinstance(described, dict) or not all(isinstance(call, Call) for call in described.values()):
        raise CheckpointError(f"{path}: expected a dict of tensors, as in Meta's files, {_found(described)}")
    file = map_file(path)
    tensors = {}
    for key, call in described.items():
        try:
            tensors[key] = _tensor(file, places, call)
        except CheckpointError as e:
            raise CheckpointError(f"{path}: {short_name(key)} {e}") from e
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
            raise CheckpointError(f"{path}: {short_name(key)} has no bytes of its own; download it again") from e
    return tensors, memoryview(file).readonly


def write_pth(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write such a file. Raises OSError if there is no room for it."""
    try:
        torch.save(dict(weights), path)
    except RuntimeError as e:  # all that torch says of a full disk is that a position was not expected
        raise OSError(errno.EIO, "cannot be written; is there room on the disk?", str(path)) from e


def _read_zip(f: BinaryIO) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The pickle, and where the numbers are: the offset and the size, in bytes, of each `data/...`."""
    start = f.read(64)
    if not start.startswith(b"PK\3\4"):
        what = what_it_is(start) or "it is not the zip file that torch.save writes since version 1.6"
        raise CheckpointError(f"not a readable file of weights ({what}); download it, or save it, again")
    with zipfile.ZipFile(f) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()) or "data.pkl" not in entries:
            raise CheckpointError("a zip file, but not one that torch.save wrote; are these weights?")
        if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries.values()):
            raise CheckpointError("compressed entries; save it again with torch.save")
        if not any(e.CRC for e in entries.values()):
            raise CheckpointError("no checksums (torch.serialization.set_crc32_options); save it again with them")
        if any(e.file_size > _MOST_PICKLE_BYTES for name, e in entries.items() if not name.startswith("data/")):
            raise CheckpointError("its list of tensors is larger than any model's")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise CheckpointError("numbers in the byte order of another kind of machine; save it again on this one")
        if os.fstat(f.fileno()).st_size <= CHECKED_BYTES and (damaged := archive.testzip()):
            raise CheckpointError(f"{short_name(damaged)} does not agree with its checksum; download it again")
        places = {}
        for name, entry in entries.items():
            # The directory of the archive says where an entry begins: with 30 bytes, a name and a comment.
            f.seek(entry.header_offset + 26)
            lengths = struct.unpack("<HH", f.read(4))
            places[name] = (entry.header_offset + 30 + sum(lengths), entry.file_size)
        return archive.read(entries["data.pkl"]), places


def unpickle(program: bytes) -> Any:
    """What a pickle describes, as dicts, lists, texts and numbers, with a `Call` in place of each tensor.

    This is the machine that pickles are programs for, with a stack and a memory, and with those of its instructions
    that torch.save uses for tensors. Raises CheckpointError for a call of anything that does not make a tensor.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    instruction: Any
    argument: Any
    for instruction, argument, _ in pickletools.genops(program):
        match instruction.name:
            case "MARK":
                marks.append(len(stack))
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "GLOBAL":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWFALSE" | "NEWTRUE":
                stack.append(instruction.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(instruction.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if instruction.name == "SETITEM" else since_mark()
                # Optimizers number their states. Other keys, and larger numbers, can take for ever to be stored.
                if not all(type(key) is str or (type(key) is int and abs(key) < 2**31) for key in items[::2]):
                    raise CheckpointError("names of tensors that are not texts; save a dict of names and tensors")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memory[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[argument])
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":  # attributes of the object below; torch keeps versions in those of an OrderedDict
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise CheckpointError("objects with a state of their own; save the model's state_dict() alone")
            case "PROTO" | "BINPERSID":  # a storage is described by a tuple, which stays as it is
                pass
            case "STOP":
                return stack.pop()
            case other:
                raise CheckpointError(f"pickled with {other}; save it again with torch.save, without pickle_protocol")


def _call(function: str, arguments: tuple[Any, ...]) -> Any:
    if function == "collections OrderedDict" and arguments == ():
        return {}
    if function in ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"):
        return arguments[0]  # the tensor in a parameter
    if function == "torch._tensor _rebuild_from_type_v2" and arguments[1] == "torch Tensor":
        return _call(arguments[0], arguments[2])  # a tensor with attributes of its own, which stay behind
    # Those of other kinds of tensors are noted, too, so that these can be refused by their names.
    if function.startswith("torch._utils _rebuild_") or function in ("torch.serialization _get_layout", "torch Size"):
        return Call(function, arguments)
    name = short_name(function.replace(" ", "."))
    raise CheckpointError(
        f"not tensors alone: to open it, {name} would have to be called, and nothing in a file of weights is run here. "
        "From a model of your own, save its state_dict(); do not open a file of others that asks for this"
    )


def _tensor(file: mmap, places: Mapping[str, tuple[int, int]], call: Call) -> Tensor:
    """A window on the bytes that a call of torch._utils._rebuild_tensor_v2 describes."""
    if call.function not in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"):
        raise CheckpointError(f"is not a plain tensor ({short_name(call.function.split()[1])})")
    (_, kind, number, _, count), start, shape, stride, _, _, *others = call.arguments
    if call.function.endswith("v3"):  # of newer types: the type stands apart
        kind, *others = others
    if type(kind) is not str or type(number) is not str:
        raise ValueError("a storage is described by texts")
    if any(others):
        raise CheckpointError("is a view of other numbers, conjugated or negated; save a clone of it")
    if kind not in _DTYPES:
        raise CheckpointError(f"is of type {short_name(kind.split()[-1])}; {EXPECTED}")
    if not all(type(n) is int and 0 <= n < _MOST_NUMBER for n in (count, start, *shape, *stride)):
        raise CheckpointError("has a size that no file can hold; download it again")
    dtype = _DTYPES[kind]
    offset, size = places.get(f"data/{number}", (0, 0))
    if count * dtype.itemsize != size or math.prod(shape) > count:
        raise CheckpointError(f"says it has {short(list(shape))} numbers, but its part of the file has {size} bytes")
    return numbers_at(file, dtype, offset, count).as_strided(shape, stride, start)


def _found(described: object) -> str:
    if not isinstance(described, dict):
        what = "a single tensor" if isinstance(described, Call) else f"a {type(described).__name__}"
        return f"found {'None' if described is None else what}; save the model's state_dict()"
    inner = next((key for key, value in described.items() if isinstance(value, dict)), None)
    keys = short(", ".join(map(str, described)))
    hint = "the tensors alone" if inner is None else f"what is under {short_name(inner)} alone"
    return f"found {keys}; from a training checkpoint, save {hint}"
