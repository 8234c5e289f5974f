"""params.json: the few numbers that fix every size in the model, and how positions turn."""

import json
from dataclasses import asdict, dataclass, fields

from .checks import check_params


@dataclass(frozen=True)
class ModelArgs:
    """The contents of Meta's params.json, under Meta's own names.

    Raises ValueError, naming the field, if a value has the wrong type or does not fit the others.
    """

    dim: int  # width of the residual stream
    n_layers: int
    n_heads: int  # query heads
    vocab_size: int
    n_kv_heads: int = None  # type: ignore[assignment]  # key and value heads; None becomes one for each query head
    multiple_of: int = 256  # the feed-forward hidden size is rounded up to a multiple of this
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    use_scaled_rope: bool = False  # Llama 3.1 and later
    # Not in Meta's files. How scaled RoPE scales: see rope_factor and functional.apply_scaling.
    rope_scale_factor: float | None = None
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_old_context_len: int = 8192
    # Positions that the model was trained for; None becomes 8192, or 131072 with scaled RoPE.
    context_len: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name, default in (("n_kv_heads", self.n_heads), ("context_len", self._default_context_len)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        check_params(self)

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
        """Width of the feed-forward layer: 2/3 of 4 * dim, times ffn_dim_multiplier, rounded up to multiple_of."""
        hidden = int(2 * (4 * self.dim) / 3)  # these two steps of int(...) are Meta's
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * -(-hidden // self.multiple_of)

    @property
    def rope_factor(self) -> float | None:
        """How far scaled RoPE stretches the slow rotations; None without it. Meta's files do not say it: 8 for
        Llama 3.1, and 32 for 3.2 1B and 3B, which are known by their widths. An explicit `rope_scale_factor` wins.
        """
        if not self.use_scaled_rope:
            return None
        return self.rope_scale_factor or (32.0 if self.dim in (2048, 3072) else 8.0)

    @property
    def _default_context_len(self) -> int:
        return 131072 if self.use_scaled_rope else 8192  # Llama 3.1 and later; Llama 3

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight, in the order of Meta's file. A matrix is [out, in]: `x @ weight.T`. Where
        input and output embeddings are tied, a file may leave out the last one, `output.weight`.
        """
        q_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (self.vocab_size, self.dim)}
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

    def to_json(self) -> str:
        """The text of a params.json. As in Meta's files, an optional key that is not in use is left out."""
        defaults = {f.name: f.default for f in fields(self)} | {"context_len": self._default_context_len}
        always = [*defaults][: [*defaults].index("rope_theta") + 1]  # the keys of every Meta file
        always.remove("ffn_dim_multiplier")
        return json.dumps({key: v for key, v in asdict(self).items() if key in always or v != defaults[key]})


# The published models, from the params.json each comes with.
PUBLISHED = {
    "Llama 3 8B": ModelArgs(4096, 32, 32, 128256, n_kv_heads=8, multiple_of=1024, ffn_dim_multiplier=1.3),
    "Llama 3 70B": ModelArgs(8192, 80, 64, 128256, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.3),
    "Llama 3.1 405B": ModelArgs(
        16384, 126, 128, 128256, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.2, use_scaled_rope=True
    ),
    "Llama 3.2 1B": ModelArgs(2048, 16, 32, 128256, n_kv_heads=8, ffn_dim_multiplier=1.5, use_scaled_rope=True),
    "Llama 3.2 3B": ModelArgs(3072, 28, 24, 128256, n_kv_heads=8, ffn_dim_multiplier=1.0, use_scaled_rope=True),
}
