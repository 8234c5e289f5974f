"""Run the model once and keep what it computed on the way, every tensor under its name; or change one and see.

The steps are those of `functional`, one after the other, with a name for each result. Per layer, in this order:

    layers.0.attention_norm         [seq, dim]                   what attention reads
    layers.0.attention.q            [n_heads, seq, head_dim]     queries, before rotation
    layers.0.attention.k, .v        [n_kv_heads, seq, head_dim]  keys and values
    layers.0.attention.q_rotated    [n_heads, seq, head_dim]
    layers.0.attention.k_rotated    [n_kv_heads, seq, head_dim]
    layers.0.attention.scores       [n_heads, seq, seq]          before the mask, over the root of head_dim
    layers.0.attention.masked       [n_heads, seq, seq]
    layers.0.attention.weights      [n_heads, seq, seq]          after the softmax: each row sums to 1
    layers.0.attention.heads        [n_heads, seq, head_dim]     each head's mean of values
    layers.0.attention.written      [n_heads, seq, dim]          what each head adds to the stream
    layers.0.attention.output       [seq, dim]                   what all of them add
    layers.0.attention.stream       [seq, dim]                   the stream after this half
    layers.0.ffn_norm               [seq, dim]                   what feed-forward reads
    layers.0.feed_forward.z         [seq, hidden_dim]            w1 x
    layers.0.feed_forward.gate      [seq, hidden_dim]            silu(z)
    layers.0.feed_forward.up        [seq, hidden_dim]            w3 x
    layers.0.feed_forward.hidden    [seq, hidden_dim]            gate * up: the neurons
    layers.0.feed_forward.output    [seq, dim]                   what they add
    layers.0.stream                 [seq, dim]                   the stream after the layer

before them `embeddings` [seq, dim], and after the last layer `norm` [seq, dim] and `logits` [seq, vocab].
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor

from . import functional
from .checks import check_length, check_tokens
from .loading.checkpoint import Checkpoint
from .model import Llama
from .params import ModelArgs

Change = Callable[[Tensor], Tensor] | Tensor


class Trace(Mapping[str, Tensor]):
    """What a run computed: name -> tensor, in the order of the run. `nbytes` is what it takes in memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; views into one storage count each."""
        return sum(t.nbytes for t in self._tensors.values())

    def __repr__(self) -> str:
        return f"Trace of {len(self)} tensors, {self.nbytes / 1e6:,.1f} MB"


def trace(
    model: Checkpoint | Llama,
    tokens: Sequence[int] | Tensor,
    replace: Mapping[str, Change] | None = None,
    keep: Sequence[str] | None = None,
) -> Trace:
    """Run the model on `tokens`, [seq], and return every tensor on the way: `tracing`'s docstring has the names.

    `replace` changes some of them during the run: full name -> a function of the tensor, or a tensor in its place, of
    the same shape. What comes after is computed from what it gives. `keep` says which to return, as names in which *
    stands for anything ("*.stream"); without it, all are: for n tokens about n_layers * (3 n_heads n^2 + (n_heads + 10)
    n dim + 4 n hidden_dim) + n vocab_size numbers, 37 MB for 16 tokens of SmolLM2-135M in float32, 5.5 GB for 1,000.
    The run ends with the half of a layer that has the last of these names.

    Logits are those of `functional.forward`, up to rounding. Raises KeyError, with the nearest name there is, for one
    in `replace` or `keep` that no tensor has; ValueError for a replacement of another shape; and what
    `functional.forward` raises for `tokens`.
    """
    params = model.params
    weights = weights_of(model)
    tokens = check_tokens(tokens, params.vocab_size)
    if tokens.dim() != 1:
        raise ValueError(f"tokens must be one text, [seq], not {list(tokens.shape)}")
    seq = check_length(len(tokens), params.context_len)
    run = _Run(params, weights, dict(replace or {}), keep)
    names = shapes(params, seq)
    run.left = {name for name in names if name in run.changes or run.keeps(name)}
    _check_names(run.changes, names, patterns=False)  # a pattern here would silently change nothing
    _check_names(keep or (), names)

    table = weights["tok_embeddings.weight"]
    x = run.see("embeddings", table[tokens.to(table.device)])
    freqs_cis = functional.rotations(params, seq).to(x.device)
    mask = functional.causal_mask(seq, x.dtype, x.device)
    for layer in range(params.n_layers):
        if run.left:
            x = run.attention(x, f"layers.{layer}.", freqs_cis, mask)
        if run.left:
            x = run.feed_forward(x, f"layers.{layer}.")
    if run.left:
        x = run.norm(x, "norm")
        run.see("logits", functional.linear(x, functional.output_weight(weights)).float())
    return Trace(run.kept)


def weights_of(model: Checkpoint | Llama) -> Mapping[str, Tensor]:
    """Every weight under its name in Meta's files."""
    return model.weights if isinstance(model, Checkpoint) else model.state_dict()


class _Run:
    """The steps of one run. `see` gives each result its name, changes it, and keeps it."""

    def __init__(
        self, params: ModelArgs, weights: Mapping[str, Tensor], changes: dict[str, Change], keep: Sequence[str] | None
    ) -> None:
        self.params, self.weights, self.changes, self.keep = params, weights, changes, keep
        self.kept: dict[str, Tensor] = {}
        self.left: set[str] = set()  # what is still to be kept or changed; without any, the run has reached its end

    def see(self, name: str, value: Tensor) -> Tensor:
        self.left.discard(name)
        if name in self.changes:
            change = self.changes[name]
            changed = change(value) if callable(change) else change
            if changed.shape != value.shape:
                raise ValueError(f"{name} is {list(value.shape)}, and its replacement {list(changed.shape)}")
            value = changed.to(value)
        if self.keeps(name):
            self.kept[name] = value
        return value

    def keeps(self, name: str) -> bool:
        return self.keep is None or any(fnmatchcase(name, pattern) for pattern in self.keep)

    def product(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return self.see(name, functional.rms_norm(x, self.weights[f"{name}.weight"], self.params.norm_eps))

    def attention(self, x: Tensor, layer: str, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        """The first half of a layer, [seq, dim] -> the same; heads come first in all that is kept."""
        at, see, head_dim = f"{layer}attention.", self.see, self.params.head_dim
        read = self.norm(x, f"{layer}attention_norm")
        q, k, v = (
            see(at + name, self.product(read, f"{at}w{name}").unflatten(-1, (-1, head_dim)).transpose(0, 1))
            for name in "qkv"
        )
        q, k = (
            see(f"{at}{name}_rotated", functional.apply_rotary_emb(t.transpose(0, 1), freqs_cis).transpose(0, 1))
            for name, t in {"q": q, "k": k}.items()
        )
        k, v = (t.repeat_interleave(self.params.group_size, dim=0) for t in (k, v))  # a KV head for each query head
        scores = see(at + "scores", q @ k.transpose(-2, -1) / math.sqrt(head_dim))
        masked = see(at + "masked", scores + mask)
        weights = see(at + "weights", functional.at_least_float32(masked).softmax(-1).type_as(q))
        heads = see(at + "heads", weights @ v)
        output = self.product(heads.transpose(0, 1).flatten(1), at + "wo")
        if self.keeps(at + "written") or at + "written" in self.changes:
            wo = self.weights[f"{at}wo.weight"].unflatten(1, (-1, head_dim))  # each head has columns of its own
            written = see(at + "written", torch.einsum("hsd,ohd->hso", heads, wo))
            if at + "written" in self.changes:  # else the product of all heads at once, which is rounded less often
                output = written.sum(0)
        return see(at + "stream", x + see(at + "output", output))

    def feed_forward(self, x: Tensor, layer: str) -> Tensor:
        """The second half of a layer, [seq, dim] -> the same."""
        at, see = f"{layer}feed_forward.", self.see
        read = self.norm(x, f"{layer}ffn_norm")
        gate = see(at + "gate", F.silu(see(at + "z", self.product(read, at + "w1"))))
        up = see(at + "up", self.product(read, at + "w3"))
        hidden = see(at + "hidden", gate * up)
        return see(f"{layer}stream", x + see(at + "output", self.product(hidden, at + "w2")))


def shapes(params: ModelArgs, seq: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that `trace` returns for `seq` tokens, in order, without running anything."""
    stream: tuple[int, ...] = (seq, params.dim)
    hidden = (seq, params.hidden_dim)
    queries, keys = ((n, seq, params.head_dim) for n in (params.n_heads, params.n_kv_heads))
    square, written = (params.n_heads, seq, seq), (params.n_heads, seq, params.dim)
    attention: dict[str, tuple[int, ...]] = {
        "q": queries,
        "k": keys,
        "v": keys,
        "q_rotated": queries,
        "k_rotated": keys,
    }
    attention |= {"scores": square, "masked": square, "weights": square, "heads": queries, "written": written}
    attention |= {"output": stream, "stream": stream}
    feed_forward = {"z": hidden, "gate": hidden, "up": hidden, "hidden": hidden, "output": stream}
    layer = {"attention_norm": stream, **{f"attention.{name}": shape for name, shape in attention.items()}}
    layer |= {"ffn_norm": stream, **{f"feed_forward.{name}": shape for name, shape in feed_forward.items()}}
    layer["stream"] = stream
    layers = {f"layers.{n}.{name}": shape for n in range(params.n_layers) for name, shape in layer.items()}
    return {"embeddings": stream, **layers, "norm": stream, "logits": (seq, params.vocab_size)}


def _check_names(wanted: Iterable[str], names: Mapping[str, object], patterns: bool = True) -> None:
    for name in wanted:
        if name not in names and not (patterns and any(fnmatchcase(known, name) for known in names)):
            near = difflib.get_close_matches(name, names, n=1)
            raise KeyError(f"no tensor of a run is called {name!r}" + (f"; {near[0]!r} is" if near else ""))
