"""One model on several processes, on one machine or many, under torchrun.

    torchrun --nproc-per-node 2 -m llama3_scratch generate --checkpoint path/to/model --prompt "..."

or in a program of one's own, `torchrun --nproc-per-node 2 program.py`:

    from llama3_scratch import parallel
    model = parallel.load("path/to/model")

Every process opens its part of the checkpoint and holds nothing else. split.py says who has what, modules.py has the
four or five modules in which a part differs from a whole model, group.py all that passes between the processes.
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checks import check_dtype_and_device
from ..loading import parts
from ..loading.checkpoint import dtype_of_the_environment, find, read_sizes
from ..loading.files import SHARD_NAME
from ..loading.mapped import empty_model, mapped_parameter
from ..messages import CheckpointError, progress
from ..model import Llama
from ..params import ModelArgs
from .group import (
    all_or_none,
    device,
    exchange,
    from_first,
    has_gpus,
    join,
    launched,
    leave,
    rank,
    sent,
    share_out,
    size,
    slow_wire,
)
from .modules import TakenOver, empty_part
from .split import WAYS, PartArgs, cuts, part_of

__all__ = [
    "WAYS",
    "PartArgs",
    "cuts",
    "from_first",
    "in_the_same_words",
    "join",
    "launched",
    "leave",
    "load",
    "part_of",
    "rank",
    "sent",
    "size",
    "slow_wire",
]

# Of their length. It tells models apart, but not one from what a little training has made of it.
_NORMS_DIFFER = 0.1


def load(path_or_name: str | Path | None = None, how: str = "tensor", dtype: torch.dtype | None = None) -> Llama:
    """This process's part of a model: a `Llama` whose logits are whole in every process. All processes must call it,
    and then call the model with the same tokens.

    path_or_name: as for `load_checkpoint`. Every machine needs the files that its processes take: of Meta's shards, if
        there are as many as processes, each its own, `consolidated.NN.pth`; else those, or the one, of which they map
        their slices.
    how: "tensor" (a share of the heads, of the neurons and of the vocabulary) or "pipeline" (a share of the layers).
    dtype: another than the stored one, in copies; what goes to a GPU is copied, too.

    `model.params` has the sizes of the part, which fit a `KVCache`; `model.params.whole` those of the model. The
    weights are frozen. Raises in every process, in the same words: ValueError for a model that does not divide, for
    processes with different versions of this package; CheckpointError for what `load_checkpoint` refuses, a file that
    is missing on one machine, machines that have different models; ConnectionError if another process has ended.
    """
    join()
    _check_versions(how)
    # Each step is taken by all processes or by none: if it fails in one, all raise its error.
    found = all_or_none(lambda: _look(path_or_name, dtype))
    name, params, _, dtype = found[rank()]
    path = Path(name)
    for number, (_, sizes, _, theirs) in enumerate(found):
        _check_sizes(number, sizes, found[0][1])
        _check_told(number, theirs, found[0][3])
    part = part_of(params, how, rank(), size())
    shards = _count_shards(
        {name for _, _, names, _ in found for name in names}, all_or_none(lambda: parts.count_shards(path, params))
    )
    weights: dict[str, torch.Tensor] = {}

    def take() -> tuple[dict[str, str], torch.dtype]:
        taken = parts.read_part(path, params, cuts(part), shards, dtype)
        types = {tensor.dtype for tensor in taken.weights.values()}
        keep = mapped_parameter if taken.read_only else _frozen
        for key, tensor in _copying(taken.weights, dtype):
            weights[key] = keep(tensor) if tensor is taken.weights[key] else _frozen(tensor)
        return taken.marks, types.pop() if len(types) == 1 else torch.float32

    _check_same_files(all_or_none(take), dtype)
    if how == "tensor":
        _take_first_norms(weights)
    model: Any = empty_model(lambda _: empty_part(part), part)
    model.requires_grad_(False)  # or what is mapped moves to memory
    model.load_state_dict(weights, assign=True)
    if how == "tensor" and weights["output.weight"].data_ptr() == weights["tok_embeddings.weight"].data_ptr():
        model.output.weight = model.tok_embeddings.weight
    if isinstance(model.tok_embeddings, TakenOver):  # its weight is a type and a device, and no numbers
        model.tok_embeddings.weight = torch.empty(0, part.dim, dtype=next(iter(weights.values())).dtype)
    loaded: Llama = model.to(device())
    return loaded


def in_the_same_words(ids: Iterator[int], model: Llama) -> Iterator[int]:
    """What `generate` yields in every process. A weight that is NaN is known to one, which has it under a name of its
    own part; here it gets its name in the files, and all raise that.
    """
    try:
        yield from ids
    except ValueError as e:
        names_a_weight, text = isinstance(e, CheckpointError), str(e)
        if names_a_weight:
            key, _, rest = text.partition(" ")
            text = f"{cuts(model.params).get(key, (key,))[0]} {rest}"  # type: ignore[arg-type]
        raise CheckpointError(min(exchange((not names_a_weight, text)))[1]) from e


def _look(path_or_name: Any, dtype: Any) -> tuple[str, ModelArgs, list[str], torch.dtype | None]:
    """Before anything is opened: where the checkpoint is, its sizes, its shards on this machine, the type to use."""
    dtype = dtype_of_the_environment() if dtype is None else dtype
    check_dtype_and_device(dtype, None)
    path = find(path_or_name)
    return str(path), read_sizes(path), parts.shard_names(path), dtype


def _check_versions(how: str) -> None:
    if how not in WAYS:
        raise ValueError(f"how must be one of {', '.join(WAYS)}, not {how!r}")
    told = exchange((_source(), torch.__version__.partition("+")[0], how, has_gpus()))
    first = told[0]
    for number, (source, version, theirs, gpus) in enumerate(told):
        if source != first[0]:
            raise ValueError(
                f"process {number} runs another version of llama3_scratch than process 0: install the same on all "
                "machines"
            )
        if version != first[1]:
            raise ValueError(f"process {number} has torch {version}, process 0 {first[1]}: install the same on all")
        _check_told(number, theirs, first[2])
        if gpus != first[3]:
            raise ValueError(f"process {number if gpus else 0} has a GPU of its own and another has none: all must")
    if torch.cuda.is_available() and not first[3]:
        warnings.warn("fewer GPUs than processes on this machine: all compute on the CPU", stacklevel=3)


def _check_told(number: int, theirs: Any, first: Any) -> None:
    if theirs != first:
        raise ValueError(f"process {number} was told {theirs}, process 0 {first}: start all in the same way")


def _source() -> str:
    """A few letters that differ between versions of this package, whatever number they go by."""
    mark, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        mark.update(file.relative_to(root).as_posix().encode() + file.read_bytes().replace(b"\r\n", b"\n"))
    return mark.hexdigest()[:16]


def _check_sizes(number: int, theirs: ModelArgs, first: ModelArgs) -> None:
    names = [f.name for f in fields(ModelArgs) if getattr(theirs, f.name) != getattr(first, f.name)]
    if names:
        raise CheckpointError(
            f"process {number} has another model than process 0: {names[0]} is {getattr(theirs, names[0])} there, and "
            f"{getattr(first, names[0])} here; put the same checkpoint on all machines"
        )


def _count_shards(names: set[str], told: list[int]) -> int:
    """How many files Meta's layout has, by their names on all machines together, and by what is in them."""
    count = max(len(names), *told, 1)
    for i in range(count if names else 0):
        if SHARD_NAME.format(i) not in names:
            raise CheckpointError(
                f"{SHARD_NAME.format(i)}: not found on any machine, and there must be {count} files; download it"
            )
    return count


def _check_same_files(told: list[tuple[dict[str, str], torch.dtype]], dtype: torch.dtype | None) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for number, (marks, stored) in enumerate(told):
        for name, mark in marks.items():
            other, first = seen.setdefault(name, (number, mark))
            if mark != first:
                raise CheckpointError(
                    f"{name} of process {number} is of another model than that of process {other}: put the same "
                    "checkpoint on all machines"
                )
        if dtype is None and stored != told[0][1]:
            raise CheckpointError(
                f"process {number} has weights in {stored}, process 0 in {told[0][1]}; say which with --dtype or "
                "LLAMA3_DTYPE"
            )


def _take_first_norms(weights: dict[str, torch.Tensor]) -> None:
    """Every shard has all norms, and those of the 70B differ a little. The first counts, as where one process has all;
    where they differ much, the files are of different models.
    """
    names = [key for key in weights if "norm" in key]
    mine = torch.cat([weights[key] for key in names])
    first = share_out(mine.clone(), 0)
    far = ((mine.float() - first.float()).norm() / first.float().norm()).item()
    for number, distance in enumerate(exchange(far)):
        if not distance < _NORMS_DIFFER:
            raise CheckpointError(
                f"the weights of process {number} are of another model than those of process 0, after their norms: "
                "put the same checkpoint on all machines"
            )
    if far:
        parts_of_first = first.split([weights[key].numel() for key in names])
        weights.update((key, _frozen(norm)) for key, norm in zip(names, parts_of_first, strict=True))


def _copying(weights: dict[str, torch.Tensor], dtype: torch.dtype | None) -> Any:
    """The weights, in another type if one is asked for, and one at a time; what has two names is converted once."""
    done: dict[Any, torch.Tensor] = {}
    for key in progress(weights, "weights") if rank() == 0 else weights:
        tensor = weights[key]
        same = tensor.data_ptr(), tensor.shape, tensor.stride()
        done[same] = done.get(same, tensor if dtype is None else tensor.to(dtype))
        yield key, done[same]


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
