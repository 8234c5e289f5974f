"""params.json: the few numbers that fix every size in the model, and how positions turn."""

import json
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .files import CheckpointError, read_json
from .messages import short, short_name

# Far above any model's; what is larger is a slip of the pen, and must not become a long wait or fill the memory.
_MOST, _MOST_LAYERS = 2**31, 10_000


@dataclass(frozen=True)
class ModelArgs:
    """The contents of Meta's params.json, under Meta's own names.

    Raises CheckpointError if a value is missing, has the wrong type, or does not fit the others.
    """

    dim: int  # width of the residual stream
    n_layers: int
    n_heads: int  # query heads
    vocab_size: int
    n_kv_heads: int | None = None  # key and value heads; None means one for each query head
    multiple_of: int = 256  # the feed-forward hidden size is rounded up to a multiple of this
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    use_scaled_rope: bool = False  # Llama 3.1 and later
    # Not in Meta's files. How scaled RoPE scales: see rope_factor and functional.scale_freqs.
    rope_scale_factor: float | None = None
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_old_context_len: int = 8192
    max_seq_len: int | None = None  # positions the model was trained for; None: 8192, or 131072 with scaled RoPE

    def __post_init__(self):
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.max_seq_len is None:
            object.__setattr__(self, "max_seq_len", self._default_max_seq_len)
        whole = ("dim", "n_layers", "n_heads", "vocab_size", "n_kv_heads", "multiple_of", "max_seq_len")
        for name in (*whole, "rope_old_context_len"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _MOST:
                raise CheckpointError(f"params.json: {name} must be a positive whole number, not {short(value)}")
        if self.n_layers > _MOST_LAYERS:
            raise CheckpointError(f"params.json: n_layers {self.n_layers} is more than any model has")
        optional = ("ffn_dim_multiplier", "rope_scale_factor")
        for name in ("norm_eps", "rope_theta", "rope_low_freq_factor", "rope_high_freq_factor", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if type(value) not in (int, float) or not 0 < value < 1e30:  # which NaN is not, either
                raise CheckpointError(f"params.json: {name} must be a positive number, not {short(value)}")
        if type(self.use_scaled_rope) is not bool:
            raise CheckpointError(
                f"params.json: use_scaled_rope must be true or false, not {short(self.use_scaled_rope)}"
            )
        if self.rope_low_freq_factor >= self.rope_high_freq_factor:
            raise CheckpointError("params.json: rope_low_freq_factor must be smaller than rope_high_freq_factor")
        if self.dim % self.n_heads:
            raise CheckpointError(f"params.json: dim {self.dim} does not divide into n_heads {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"params.json: n_heads {self.n_heads} does not divide into groups over n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"params.json: dim / n_heads is {self.head_dim}; the rotary embedding turns pairs, so it must be even"
            )
        if not 1 <= self.hidden_dim <= _MOST:
            raise CheckpointError(f"params.json: ffn_dim_multiplier makes the hidden size {self.hidden_dim}")

    @property
    def head_dim(self) -> int:
        """Numbers in one head's query, key or value."""
        return self.dim // self.n_heads

    @property
    def group_size(self) -> int:
        """How many query heads share one key and value head (grouped-query attention)."""
        return self.n_heads // self.n_kv_heads

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward layer: 2/3 of 4 * dim, times ffn_dim_multiplier, rounded up to multiple_of.

        The two steps of `int(...)` are Meta's (llama3/model.py, FeedForward.__init__).
        """
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * -(-hidden // self.multiple_of)

    @property
    def rope_factor(self) -> float | None:
        """How far scaled RoPE stretches the slow rotations; None without it.

        Meta's params.json says `use_scaled_rope` and not by how much. It is 8 for the Llama 3.1 models and
        32 for Llama 3.2 1B and 3B, which are known by their shape. An explicit `rope_scale_factor` wins.
        """
        if not self.use_scaled_rope:
            return None
        if self.rope_scale_factor is not None:
            return self.rope_scale_factor
        llama_3_2_text = {(2048, 16), (3072, 28)}  # (dim, n_layers) of 1B and 3B
        return 32.0 if (self.dim, self.n_layers) in llama_3_2_text else 8.0

    @property
    def _default_max_seq_len(self) -> int:
        return 131072 if self.use_scaled_rope else 8192  # Llama 3.1 and later; Llama 3

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight, in the order of Meta's file.

        A linear layer's shape is [out, in]: it computes `x @ weight.T`. Where input and output embeddings are
        tied, a file may leave out the last one, `output.weight`.
        """
        q_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        shapes = {"tok_embeddings.weight": (self.vocab_size, self.dim)}
        for i in range(self.n_layers):
            shapes |= {
                f"layers.{i}.attention.wq.weight": (q_dim, self.dim),
                f"layers.{i}.attention.wk.weight": (kv_dim, self.dim),
                f"layers.{i}.attention.wv.weight": (kv_dim, self.dim),
                f"layers.{i}.attention.wo.weight": (self.dim, q_dim),
                f"layers.{i}.feed_forward.w1.weight": (self.hidden_dim, self.dim),
                f"layers.{i}.feed_forward.w3.weight": (self.hidden_dim, self.dim),
                f"layers.{i}.feed_forward.w2.weight": (self.dim, self.hidden_dim),
                f"layers.{i}.attention_norm.weight": (self.dim,),
                f"layers.{i}.ffn_norm.weight": (self.dim,),
            }
        return shapes | {"norm.weight": (self.dim,), "output.weight": (self.vocab_size, self.dim)}

    @classmethod
    def from_json(cls, path: str | Path) -> "ModelArgs":
        """Read params.json. Unknown keys are ignored, with a warning that names them."""
        path = Path(path)
        values = read_json(path)
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            warnings.warn(f"{path.name}: ignoring unknown keys {short_name(', '.join(unknown))}", stacklevel=2)
        missing = [f for f in ("dim", "n_layers", "n_heads", "vocab_size") if f not in values]
        if missing:
            raise CheckpointError(f"{path}: {', '.join(missing)} missing")
        try:
            return cls(**{key: value for key, value in values.items() if key in known})
        except CheckpointError as e:
            raise CheckpointError(f"{path}: {str(e).removeprefix('params.json: ')}") from e

    def to_json(self) -> str:
        """The text of a params.json. As in Meta's files, an optional key that is not in use is left out."""
        defaults = {f.name: f.default for f in fields(self)} | {"max_seq_len": self._default_max_seq_len}
        always = [*defaults][: [*defaults].index("rope_theta") + 1]  # the keys of every Meta file
        always.remove("ffn_dim_multiplier")
        return json.dumps({key: v for key, v in asdict(self).items() if key in always or v != defaults[key]})


# The published models, from the params.json each comes with.
PUBLISHED = {
    "Llama 3 8B": ModelArgs(
        4096, 32, 32, 128256, n_kv_heads=8, multiple_of=1024, ffn_dim_multiplier=1.3, norm_eps=1e-5, rope_theta=500000.0
    ),
    "Llama 3 70B": ModelArgs(
        8192, 80, 64, 128256, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.3, norm_eps=1e-5, rope_theta=500000.0
    ),
    "Llama 3.1 405B": ModelArgs(
        16384, 126, 128, 128256, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.2, use_scaled_rope=True
    ),
    "Llama 3.2 1B": ModelArgs(
        2048, 16, 32, 128256, n_kv_heads=8, multiple_of=256, ffn_dim_multiplier=1.5, use_scaled_rope=True
    ),
    "Llama 3.2 3B": ModelArgs(
        3072, 28, 24, 128256, n_kv_heads=8, multiple_of=256, ffn_dim_multiplier=1.0, use_scaled_rope=True
    ),
}
