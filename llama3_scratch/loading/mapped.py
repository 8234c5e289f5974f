"""Tensors that stay in their file: the system brings in pages as they are used, and takes them back when it must."""

import contextlib
import functools
import mmap
import os
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..checks import DTYPES, check_finite
from ..messages import CheckpointError, reason, short, short_name
from ..params import ModelArgs
from .files import open_file

# Up to this size a file is mapped copy-on-write: tensors can be changed in place, and the file stays as it is.
# A larger one is mapped read-only, since systems reserve memory for every page that could be copied.
COPY_ON_WRITE_BYTES = 4 * 2**30

# Up to this size all numbers are looked at when a file is opened, in a fraction of a second. In a larger one,
# NaN and infinity are looked for once they show in the result: `checks.check_logits`.
CHECKED_BYTES = 256 * 2**20

# The types that weights can have, their names in safetensors, and the classes that torch once had for storage.
STORED_DTYPES = tuple(
    (DTYPES[name], in_safetensors, storage)
    for name, in_safetensors, storage in (
        ("bfloat16", "BF16", "BFloat16Storage"),
        ("float16", "F16", "HalfStorage"),
        ("float32", "F32", "FloatStorage"),
        ("float64", "F64", "DoubleStorage"),
    )
)
EXPECTED = "expected bfloat16, float16, float32 or float64; where it is quantised, get the same model in bfloat16"

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=nn.Module)


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
) -> None:
    """Raise CheckpointError unless the tensors found are those of `shapes`, and no number is NaN or infinite as far as
    that is cheap to know.
    """
    check_names_and_shapes(path, {key: tuple(tensor.shape) for key, tensor in found.items()}, shapes, may_lack)
    check_finite_if_small(path, found)


def check_names_and_shapes(
    path: Path,
    found: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    may_lack: Collection[str] = (),
) -> None:
    """Raise CheckpointError unless the shapes found, by key, are those of `shapes`."""
    extra = [key for key in found if key not in shapes]
    for key, shape in shapes.items():
        if key not in found and key not in may_lack:
            instead = f"found {_some(extra)}" if extra else "the sizes and the weights may be of different models"
            raise CheckpointError(f"{path}: {key} is missing; {instead}")
        if key in found and found[key] != shape:
            found_shape = short(list(found[key]))
            raise CheckpointError(f"{path}: {key} is {found_shape}, the model's sizes make it {list(shape)}")
    if extra:
        raise CheckpointError(f"{path}: unknown tensors {_some(extra)}; the weights may be of another model")


def check_finite_if_small(path: Path, found: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a number is NaN or infinite, where looking at all of them takes no time."""
    if sum(t.nbytes for t in found.values()) <= CHECKED_BYTES:
        check_finite(found, f"{path}: ")


def _some(keys: Sequence[str]) -> str:
    listed = f"{', '.join(map(short_name, keys[:3]))} ({len(keys)} in all)"
    if "model.norm.weight" in keys:
        listed += ", Hugging Face's names: point at a folder with config.json and .safetensors"
    return listed


class _WithoutFirstNumbers(TorchFunctionMode):
    """torch.nn.init leaves tensors as they are: to fill those without memory, torch imports 800 modules in 1.3 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def empty_model(kind: Callable[[ModelArgs], M], params: ModelArgs) -> M:
    """A model of these sizes, without memory, until the weights take their places."""
    with _WithoutFirstNumbers(), torch.device("meta"):
        return kind(params)


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


def is_tied(weights: Mapping[str, Tensor]) -> bool:
    """Whether one matrix serves as token embeddings and as output: the second is absent, or another name for it."""
    if "output.weight" not in weights:
        return True
    ends = weights["tok_embeddings.weight"], weights["output.weight"]  # both held, or one could take the other's place
    return ends[0].data_ptr() == ends[1].data_ptr()


def equal_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices hold the same numbers. They are read a piece at a time, up to the first that differs."""
    return a.shape == b.shape and all(
        map(torch.equal, torch.split(a.flatten(), 2**22), torch.split(b.flatten(), 2**22))
    )


def in_one_type(
    where: Path, stored: dict[K, Tensor], dtype: torch.dtype | None, told: torch.dtype | None = None
) -> dict[K, Tensor]:
    """Tensors of several types, all in one: `dtype`, else what the folder says itself, else the widest, with a warning.

    What has that type already stays where it is, and what has two names goes on having them.
    """
    found = {t.dtype for t in stored.values()}
    if len(found) < 2:
        return stored
    one = dtype or told or functools.reduce(torch.promote_types, found)
    if dtype is None:
        names = ", ".join(sorted(str(t).removeprefix("torch.") for t in found))
        warnings.warn(
            f"{where.name}: weights of several types ({names}) open as {str(one).removeprefix('torch.')}; say "
            "dtype=..., --dtype or LLAMA3_DTYPE for another",
            stacklevel=4,
        )
    copies: dict[Hashable, Tensor] = {}
    for t in stored.values():
        if t.dtype != one:
            copies.setdefault((t.data_ptr(), t.shape, t.stride()), t.to(one))
    return {
        key: copies.get((t.data_ptr(), t.shape, t.stride()), t) if t.dtype != one else t for key, t in stored.items()
    }


class MappedParameter(nn.Parameter):
    """A parameter in a file that is mapped read-only, where writing would end the process.

    It moves into memory of its own the first time that somebody asks for what can be written to: when it is to be
    trained, by `.data`, and before torch's methods that change a tensor in place. Until then it costs nothing.
    """

    in_file = False  # set by `mapped_parameter`: copies that torch makes are made of memory

    def move_to_memory(self) -> None:
        if self.in_file:
            self.in_file = False
            _DATA.__set__(self, _DATA.__get__(self).clone())

    @property
    def data(self) -> Tensor:
        self.move_to_memory()
        tensor: Tensor = _DATA.__get__(self)
        return tensor

    @data.setter
    def data(self, value: Tensor) -> None:
        self.in_file = self.in_file and value.data_ptr() == self.data_ptr()
        _DATA.__set__(self, value)

    @property
    def requires_grad(self) -> bool:
        return bool(_REQUIRES_GRAD.__get__(self))

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value:
            self.move_to_memory()
        _REQUIRES_GRAD.__set__(self, value)

    def requires_grad_(self, requires_grad: bool = True) -> "MappedParameter":
        self.requires_grad = requires_grad
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        memo[id(self)] = copy = nn.Parameter(self.detach().clone(), self.requires_grad)
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain: Any = nn.Parameter(self.detach(), self.requires_grad)
        return plain.__reduce_ex__(protocol)


def mapped_parameter(tensor: Tensor) -> MappedParameter:
    """A frozen parameter on a tensor that lies in a read-only map."""
    parameter = MappedParameter(tensor, requires_grad=False)
    parameter.in_file = True
    return parameter


_DATA: Any = torch._C.TensorBase.data
_REQUIRES_GRAD: Any = torch._C.TensorBase.requires_grad


def _in_memory_first(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    @functools.wraps(method)
    def change(self: MappedParameter, *args: Any, **kwargs: Any) -> Any:
        self.move_to_memory()
        return method(self, *args, **kwargs)

    return change


for _name in dir(Tensor):
    in_place = _name.endswith("_") and not _name.endswith("__") and _name != "requires_grad_"
    if in_place or (_name.startswith("__i") and hasattr(Tensor, "__" + _name[3:])) or _name == "__setitem__":
        setattr(MappedParameter, _name, _in_memory_first(_name))
