"""Tensors that stay in their file: the system brings in pages as they are used, and takes them back when it must."""

import contextlib
import mmap
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .files import CheckpointError, open_file
from .messages import reason, short, short_name

# Up to this size a file is mapped copy-on-write: tensors can be changed in place, and the file stays as it is.
# A larger one is mapped read-only, since systems reserve memory for every page that could be copied.
COPY_ON_WRITE_BYTES = 4 * 2**30

# Up to this size all numbers are looked at when a file is opened, in a fraction of a second. In a larger one,
# NaN and infinity are looked for once they show in the result: `functional.check_logits`.
CHECKED_BYTES = 256 * 2**20


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file. `memoryview(...).readonly` tells which of the two ways it was mapped."""
    with open_file(path) as f:
        size = os.fstat(f.fileno()).st_size
        try:
            if size <= COPY_ON_WRITE_BYTES:
                with contextlib.suppress(OSError):  # a memory limit that counts the whole file
                    return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # empty, or memory is short
            raise CheckpointError(f"{path}: cannot be mapped into memory ({reason(e)})") from e


def numbers_at(file: mmap.mmap, dtype: torch.dtype, offset: int, count: int) -> Tensor:
    """`count` numbers from byte `offset` on, [count]. Raises ValueError if they reach beyond the end of the file."""
    with warnings.catch_warnings(), torch.inference_mode(False):  # to train later, whoever opened it
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(file, dtype=dtype, offset=offset, count=count)


def check_weights(
    path: Path, found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], may_lack: Collection[str] = ()
):
    """Raise CheckpointError unless the tensors found are those of `shapes`, and no number is NaN or infinite as far as
    that is cheap to know.
    """
    extra = [key for key in found if key not in shapes]
    for key, shape in shapes.items():
        if key not in found and key not in may_lack:
            instead = f"found {_some(extra)}" if extra else "the sizes and the weights may be of different models"
            raise CheckpointError(f"{path}: {key} is missing; {instead}")
        if key in found and tuple(found[key].shape) != shape:
            found_shape = short(list(found[key].shape))
            raise CheckpointError(f"{path}: {key} is {found_shape}, the model's sizes make it {list(shape)}")
    if extra:
        raise CheckpointError(f"{path}: unknown tensors {_some(extra)}; the weights may be of another model")
    if sum(t.nbytes for t in found.values()) <= CHECKED_BYTES:
        check_numbers(found, f"{path}: ")


def check_numbers(weights: Mapping[str, Tensor], where: str = ""):
    """Raise CheckpointError, naming the key, if a weight holds NaN or infinity."""
    for key, weight in weights.items():
        if not all(end.isfinite() for end in weight.aminmax()):  # NaN is both ends
            raise CheckpointError(f"{where}{key} holds NaN or infinity; download or save it again")


def _some(keys: Sequence[str]) -> str:
    listed = f"{', '.join(map(short_name, keys[:3]))} ({len(keys)} in all)"
    if "model.norm.weight" in keys:
        listed += ", Hugging Face's names: point at a folder with config.json and .safetensors"
    return listed


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
