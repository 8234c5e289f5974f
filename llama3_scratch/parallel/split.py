"""Who has what: the sizes of one process's part of a model, and which rows and columns of the stored weights it takes.

Nothing here talks to anybody or opens a file; it is arithmetic on `params`, the number of processes and one's own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..loading.parts import Cut
from ..params import ModelArgs

WAYS = ("tensor", "pipeline")


@dataclass(frozen=True)
class PartArgs(ModelArgs):
    """The sizes of the part that process `rank` of `size` has: a model with fewer heads and neurons, or fewer layers.

    n_heads, n_kv_heads, n_layers and hidden_dim are the part's own, so that a cache made from them fits it. dim,
    head_dim and vocab_size are those of the whole model, `whole`.
    """

    whole: ModelArgs = None  # type: ignore[assignment]
    how: str = "tensor"
    rank: int = 0
    size: int = 1

    @property
    def head_dim(self) -> int:
        return self.whole.head_dim

    @property
    def hidden_dim(self) -> int:
        first, end = self.neurons
        return end - first

    @property
    def layers(self) -> range:
        """The layers of the whole model that are in this part."""
        return range(*self._share(self.whole.n_layers, "pipeline"))

    @property
    def heads(self) -> tuple[int, int]:
        """The first of its query heads, and the one after the last."""
        return self._share(self.whole.n_heads, "tensor")

    @property
    def kv_heads(self) -> list[int]:
        """The KV heads that its query heads read. With more processes than KV heads, several have the same one."""
        first, end = self.heads
        return [head // self.whole.group_size for head in range(first, end, self.group_size)]

    @property
    def neurons(self) -> tuple[int, int]:
        """The first of its neurons, and the one after the last."""
        return self._share(self.whole.hidden_dim, "tensor")

    @property
    def tokens(self) -> tuple[int, int]:
        """The first row of its share of the vocabulary, and the one after the last."""
        return self._share(self.whole.vocab_size, "tensor")

    def _share(self, count: int, how: str) -> tuple[int, int]:
        return share(count, self.rank, self.size) if self.how == how else (0, count)


def share(count: int, rank: int, size: int) -> tuple[int, int]:
    """Which of `count` things process `rank` of `size` has: from the first on, up to the second. As even as can be."""
    return rank * count // size, (rank + 1) * count // size


def part_of(params: ModelArgs, how: str, rank: int, size: int) -> PartArgs:
    """The sizes of what process `rank` of `size` has. Raises ValueError, and says what would do, where the model does
    not divide: tensor parallel gives every process as many query heads, a pipeline at least one layer.
    """
    if how not in WAYS:
        raise ValueError(f"how must be one of {', '.join(WAYS)}, not {how!r}")
    if how == "pipeline" and size > params.n_layers:
        raise ValueError(f"{params.n_layers} layers are not enough for a pipeline of {size} processes")
    if how == "tensor" and params.n_heads % size:
        fitting = ", ".join(str(n) for n in range(1, params.n_heads + 1) if params.n_heads % n == 0)
        raise ValueError(
            f"{params.n_heads} query heads (n_heads) do not divide among {size} processes: start {fitting}, or deal "
            "out layers, with --parallel pipeline"
        )
    sizes = {field.name: getattr(params, field.name) for field in fields(ModelArgs)}
    if how == "pipeline":
        first, end = share(params.n_layers, rank, size)
        sizes["n_layers"] = end - first
    else:
        # Each group of so many query heads, counted from the process's first, lies within one KV head's group.
        together = math.gcd(params.n_heads // size, params.group_size)
        sizes["n_heads"] = params.n_heads // size
        sizes["n_kv_heads"] = sizes["n_heads"] // together
    return PartArgs(**sizes, whole=params, how=how, rank=rank, size=size)


def cuts(part: PartArgs) -> dict[str, Cut]:
    """What the part takes of each weight: its name in the model of the part -> its name in the files, the dimension
    along which it is cut, and the stretches of that dimension, in the numbers of the whole weight.
    """
    head_dim = part.head_dim
    q = [tuple(head * head_dim for head in part.heads)]
    kv = join_stretches((head * head_dim, (head + 1) * head_dim) for head in part.kv_heads)
    along = {
        "wq": (0, q),
        "wk": (0, kv),
        "wv": (0, kv),
        "wo": (1, q),
        "w1": (0, [part.neurons]),
        "w3": (0, [part.neurons]),
        "w2": (1, [part.neurons]),
        "tok_embeddings": (0, [part.tokens]),
        "output": (0, [part.tokens]),
    }
    found: dict[str, Cut] = {}
    for key in part.weight_shapes():
        name = key.split(".")
        stored = key
        if name[0] == "layers":
            stored = ".".join(["layers", str(part.layers[int(name[1])]), *name[2:]])
        dim, stretches = along.get(name[-2], (None, []))
        found[key] = (stored, dim, stretches)  # type: ignore[assignment]
    if part.how == "pipeline" and part.rank > 0:
        del found["tok_embeddings.weight"]
    if part.how == "pipeline" and part.rank < part.size - 1:
        del found["norm.weight"], found["output.weight"]
    return found


def join_stretches(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours become one."""
    joined: list[tuple[int, int]] = []
    for first, end in stretches:
        if joined and joined[-1][1] == first:
            first = joined.pop()[0]
        joined.append((first, end))
    return joined
