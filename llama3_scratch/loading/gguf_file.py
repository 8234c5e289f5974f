"""The bytes of a GGUF file, llama.cpp's format: what it says of its model, and the tensors as they are stored in it.

First come the fields, names and values, then a list of the tensors, then their bytes. The gguf package reads that as
well, but makes two arrays of each of 150,000 tokens and merges, which took 3 s and 160 MB for the small model's file.
What the numbers in a block mean is its own: `dequantize`.

Imported where it is needed: that library is.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize
from torch import Tensor

from ..messages import CheckpointError, reason, short, short_name
from .files import MOST_TEXT_BYTES
from .mapped import LazyWeights, map_file, numbers_at

# Numbers in GGUF's list of types, as `struct` writes them: uint8, int8, ... bool; 8 is a string, 9 an array.
_NUMBERS, _STRING, _ARRAY = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}, 8, 9
_MOST_DIMENSIONS, _MOST_TENSORS = 4, 1_000_000


@dataclass(frozen=True)
class Blocks:
    """A tensor as it is stored: rows of bytes, [out, bytes of a row] in uint8, for numbers of `shape`. `kind` is what
    the format calls them, such as "Q4_1" or "F32".
    """

    kind: str
    shape: tuple[int, ...]  # [out, in], or [in], as a single row; the file lists sizes from the innermost out
    data: Tensor

    def rows(self, which: slice) -> "Blocks":
        """Some rows of a matrix."""
        data = self.data[which]
        return Blocks(self.kind, (len(data), *self.shape[1:]), data)

    def numbers(self) -> Tensor:
        """The numbers in float32, [out, in]."""
        values = dequantize(self.data.numpy(), GGMLQuantizationType[self.kind])
        return torch.from_numpy(values.astype("float32")).reshape(self.shape)

    @property
    def bits(self) -> float:
        """For each number, scales and all: 5.0 for Q4_1."""
        count, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return 8 * size / count

    @property
    def has_4_bits(self) -> bool:
        """Whether `q4` can read them."""
        return self.kind in ("Q4_0", "Q4_1", "Q4_K")

    @property
    def has_8_bits(self) -> bool:
        """Whether `q8` can read them."""
        return self.kind == "Q8_0"

    def q4(self) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks of four bits with a scale d, and perhaps a minimum m, for each 32 numbers of a row, as what they come
        to: w = d * nibble + m. Nibbles 0..15 in uint8 [out, in], d and m in float32 [out, in / 32].
        """
        if self.kind == "Q4_1":  # d, m, 16 bytes: the lower four bits are the first 16 numbers
            d, m, bytes_ = self.data.unflatten(-1, (-1, 20)).split([2, 2, 16], -1)
            return _nibbles(bytes_), _float16(d), _float16(m)
        if self.kind == "Q4_0":  # d, 16 bytes: w = d * (nibble - 8)
            d, bytes_ = self.data.unflatten(-1, (-1, 18)).split([2, 16], -1)
            return _nibbles(bytes_), _float16(d), -8 * _float16(d)
        # Q4_K, eight groups: d and -m of all, what both are multiplied by in each, then 4 times 32 bytes, whose lower
        # four bits are one group and whose upper four bits are the next.
        d, m, six_bits, bytes_ = self.data.unflatten(-1, (-1, 144)).split([2, 2, 12, 128], -1)
        scale, minimum = (
            torch.from_numpy(t.copy()).view(*six_bits.shape[:-1], 8)
            for t in Q4_K.get_scale_min(six_bits.reshape(-1, 12).numpy())
        )
        d, m = _float16(d)[..., None] * scale, -_float16(m)[..., None] * minimum
        bytes_ = bytes_.unflatten(-1, (4, 32))
        return torch.stack((bytes_ & 15, bytes_ >> 4), -2).flatten(1), d.flatten(1), m.flatten(1)

    def q8(self) -> tuple[Tensor, Tensor]:
        """Blocks Q8_0, w = d * value: values in int8 [out, in], d in float32 [out, in / 32]."""
        d, values = self.data.unflatten(-1, (-1, 34)).split([2, 32], -1)
        return values.view(torch.int8).flatten(-2), _float16(d)


def _nibbles(bytes_: Tensor) -> Tensor:
    """[out, groups, 16] bytes -> [out, 32 * groups] numbers of four bits."""
    return torch.cat((bytes_ & 15, bytes_ >> 4), -1).flatten(-2)


def _float16(bytes_: Tensor) -> Tensor:
    """[out, groups, 2] bytes -> [out, groups]."""
    return bytes_.contiguous().view(torch.float16).squeeze(-1).float()


class GGUFWeights(LazyWeights):
    """The weights of a GGUF file under Meta's names: each becomes float32 when it is asked for, and is kept by nobody.
    `blocks` are the same as they are stored.
    """

    def __init__(self, blocks: Mapping[str, Blocks]):
        self.blocks = blocks
        super().__init__({key: [stored.data] for key, stored in blocks.items()}, lambda key, _: blocks[key].numbers())


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Blocks]]:
    """The fields and the tensors of a GGUF file, by name; the tensors are mapped, not read.

    Raises CheckpointError for anything that is not such a file, or not all of one.
    """
    file = map_file(path)
    with naming(path):
        with memoryview(file) as whole, whole[:MOST_TEXT_BYTES] as start:
            header = _Header(start)
            fields, listed = header.fields(), header.tensors()
        alignment = fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {short(alignment)}")
        if fields.get("split.count", 0) not in (0, 1):
            raise CheckpointError(f"one of {short(fields['split.count'])} parts; join them with llama.cpp's gguf-split")
        data, tensors = -(-header.at // alignment) * alignment, {}
        for name, (shape, kind, offset) in listed.items():
            count, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if offset % alignment or shape[-1] % count:
                raise ValueError(f"{short_name(name)} is not where a tensor can begin, or not made of whole blocks")
            width = shape[-1] // count * size
            rows = numbers_at(file, torch.uint8, data + offset, math.prod(shape[:-1]) * width).view(-1, width)
            tensors[name] = Blocks(GGMLQuantizationType(kind).name, shape, rows)
        return fields, tensors


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What goes wrong in the block, as a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError as e:
        raise CheckpointError(str(e) if str(e).startswith(str(path)) else f"{path}: {e}") from e
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, struct.error) as e:
        raise CheckpointError(f"{path}: not a GGUF file of a model, or damaged ({reason(e)}); download it again") from e


class _Header:
    """Fields and tensors are read from byte 0 on; `at` is the byte that comes next. Raises struct.error or ValueError
    where it cannot go on.
    """

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0
        magic, version = bytes(self.data[:4]), self._skip(4)._number("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        self._tensors, self._fields = self._number("Q"), self._number("Q")
        if max(self._tensors, self._fields) > _MOST_TENSORS:
            raise ValueError(f"{self._tensors} tensors and {self._fields} fields")

    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._fields):
            self._add(found, self._text(), self._value(self._number("I")))
        return found

    def tensors(self) -> dict[str, tuple[tuple[int, ...], int, int]]:
        """Name -> shape, from the outermost size in; kind; offset among the bytes of all tensors."""
        found: dict[str, Any] = {}
        for _ in range(self._tensors):
            name, dimensions = self._text(), self._number("I")
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise ValueError(f"{short_name(name)} has {dimensions} dimensions")
            sizes = [self._number("Q") for _ in range(dimensions)]
            if not all(1 <= size < 2**40 for size in sizes):
                raise ValueError(f"{short_name(name)} is {short(sizes)}")
            self._add(found, name, (tuple(reversed(sizes)), self._number("I"), self._number("Q")))
        return found

    def _add(self, found: dict[str, Any], name: str, value: Any) -> None:
        if name in found:
            raise ValueError(f"{short_name(name)} is there twice")
        found[name] = value

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(_NUMBERS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner == _ARRAY or count > len(self.data) - self.at:
            raise ValueError(f"an array of {count} values of kind {inner}")
        if inner == _STRING:
            return self._texts(count)
        return list(self._numbers(f"<{count}{_NUMBERS[inner]}"))

    def _number(self, code: str) -> Any:
        return self._numbers(f"<{code}")[0]

    def _numbers(self, codes: str) -> tuple[Any, ...]:
        values = struct.unpack_from(codes, self.data, self.at)
        self._skip(struct.calcsize(codes))
        return values

    def _text(self) -> str:
        return self._texts(1)[0]

    def _texts(self, count: int) -> list[str]:
        texts, at, length_at = [], self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):  # a hundred thousand, of a vocabulary
            (length,) = length_at(self.data, at)
            at += 8 + length
            if at > len(self.data):
                raise ValueError("it ends in the middle of a text")
            texts.append(str(self.data[at - length : at], "utf-8"))
        self.at = at
        return texts

    def _skip(self, count: int) -> "_Header":
        self.at += count
        return self
