"""Tensors that stay in their file: the system brings in pages as they are used, and takes them back when it must."""

import mmap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .params import CheckpointError

# Up to this size a file is mapped copy-on-write: tensors can be changed in place, and the file stays as it is.
# A larger one is mapped read-only, since systems reserve memory for every page that could be copied.
COPY_ON_WRITE_BYTES = 4 * 2**30


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file. `memoryview(...).readonly` tells which of the two ways it was mapped."""
    with open(path, "rb") as f:
        if path.stat().st_size <= COPY_ON_WRITE_BYTES:
            try:
                return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError:  # a memory limit that counts the whole file
                pass
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def numbers_at(file: mmap.mmap, dtype: torch.dtype, offset: int, count: int) -> Tensor:
    """`count` numbers from byte `offset` on, [count]. Raises ValueError if they reach beyond the end of the file."""
    with warnings.catch_warnings(), torch.inference_mode(False):  # to train later, whoever opened it
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(file, dtype=dtype, offset=offset, count=count)


def check_weights(
    path: Path, found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], may_lack: Collection[str] = ()
):
    """Raise CheckpointError unless the tensors found are those of `shapes`, in types to compute with."""
    for key, shape in shapes.items():
        if key not in found:
            if key in may_lack:
                continue
            raise CheckpointError(f"{path}: {key} is missing; the sizes and the weights may be of different models")
        t = found[key]
        if tuple(t.shape) != shape:
            raise CheckpointError(f"{path}: {key} is {list(t.shape)}, the model's sizes make it {list(shape)}")
        if not t.is_floating_point() or t.element_size() < 2 or t.layout != torch.strided:
            raise CheckpointError(f"{path}: {key} is {t.dtype}, {t.layout}; expected bfloat16, float16 or float32")
    extra = [key for key in found if key not in shapes]
    if extra:
        raise CheckpointError(f"{path}: unknown tensors {', '.join(map(str, extra[:3]))}, ... ({len(extra)} in all)")


class LazyWeights(Mapping[str, Tensor]):
    """Weights that are put together from what is stored each time they are asked for, and kept by nobody.

    `parts` are the stored tensors of each weight, `join(key, parts)` makes one weight of them.
    """

    def __init__(self, parts: Mapping[str, Sequence[Tensor]], join: Callable[[str, Sequence[Tensor]], Tensor]):
        self.parts, self.join = parts, join

    def __getitem__(self, key: str) -> Tensor:
        return self.join(key, self.parts[key])

    def __contains__(self, key: object) -> bool:
        return key in self.parts  # without joining them

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
