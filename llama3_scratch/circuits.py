"""What the parts of a model do: where each head looks, what each part says to a token, which place carries what.

All three read from `trace`, or go on from its streams with `functional`. The first two look at one run and change
nothing; `patching` changes one vector at a time and sees what becomes of the answer.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import functional, lenses
from .checks import check_tokens
from .loading.checkpoint import Checkpoint
from .messages import progress
from .model import Llama
from .tracing import trace, weights_of


def repeated(vocab_size: int, length: int = 50, seed: int = 0) -> list[int]:
    """`length` random tokens, then the same ones again: 2 * length ids, the same on every machine.

    No token comes twice in a half, so that each in the second has one earlier copy (in too small a vocabulary, more).
    """
    half = np.random.default_rng(seed).choice(vocab_size, length, replace=length > vocab_size)
    return [int(token) for token in np.tile(half, 2)]


def habits(
    model: Checkpoint | Llama, seed: int = 0, length: int = 50, texts: int = 1, start: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Where every head looks on `repeated` random tokens: habit -> [n_layers, n_heads], each from 0 to 1.

    The habits are those of `habits_of`, as means over `texts` texts, drawn with `seed`, `seed + 1`, ... `start` are
    tokens that open each text, as beginning-of-text for a model that was trained with it.
    """
    found = []
    for n in range(texts):
        tokens = [*start, *repeated(model.params.vocab_size, length, seed + n)]
        run = trace(model, tokens, keep=["*.attention.weights"])
        found.append(habits_of(torch.stack(list(run.values())), tokens))
    return {habit: torch.stack([each[habit] for each in found]).mean(0) for habit in found[0]}


def habits_of(weights: Tensor, tokens: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """How much of its attention each head gives to some places: weights [..., seq, seq] -> habit -> [...].

        previous    the token before
        induction   the token after an earlier copy of the present one
        duplicate   an earlier copy of the present token
        first       the first token of all (not all of a sink, where the second token is one as well)
        itself      the present token
        uniform     nothing in particular: the entropy of the weights over that of equal ones

    Each is a mean over the positions that have such a place, without the first position, which has no choice; NaN if
    none has. As in TransformerLens' head detector, but that one divides by all positions.
    """
    tokens = torch.as_tensor(tokens, device=weights.device)
    weights = functional.at_least_float32(weights)
    seq = len(tokens)
    copies = (tokens[:, None] == tokens).tril(-1)  # [seq, seq]: row i, column j: token j < i is the same as token i
    after = torch.zeros_like(copies)
    after[:, 1:] = copies[:, :-1]
    places = {"previous": torch.ones_like(copies).tril(-1).triu(-1), "induction": after, "duplicate": copies}
    found = {habit: _mean_weight(weights, place) for habit, place in places.items()}
    found["first"] = weights[..., 1:, 0].mean(-1)
    found["itself"] = weights.diagonal(dim1=-2, dim2=-1)[..., 1:].mean(-1)
    visible = torch.arange(1, seq + 1, device=weights.device)
    entropy = torch.special.entr(weights).sum(-1)  # [..., seq]; the largest that there is, log(visible), for equal ones
    found["uniform"] = (entropy[..., 1:] / visible[1:].log()).mean(-1)
    return found


def _mean_weight(weights: Tensor, place: Tensor) -> Tensor:
    """The weight on `place`, [seq, seq] of bool, as a mean over the rows that have one: [..., seq, seq] -> [...]."""
    return (weights * place).sum((-2, -1)) / place.any(-1).sum()


def attribution(
    model: Checkpoint | Llama, tokens: Sequence[int] | Tensor, token: int, against: int | None = None
) -> dict[str, Tensor]:
    """What each part adds to the logit of `token` after `tokens`, less what it adds to that of `against`, if given.

    `embeddings` [], `heads` [n_layers, n_heads] and `feed_forward` [n_layers]: their sum is the logit (or the
    difference) of this run, up to rounding. The last norm divides by a number that all parts make together; it is taken
    as it is in this run (direct logit attribution). What a part does by way of later ones counts as theirs.
    """
    params, weights = model.params, weights_of(model)
    last = params.n_layers - 1
    names = ["embeddings", "*.attention.heads", "*.feed_forward.output", f"layers.{last}.stream"]
    run = {name: functional.at_least_float32(t[..., -1, :]) for name, t in trace(model, tokens, keep=names).items()}
    scale = torch.rsqrt(run[f"layers.{last}.stream"].pow(2).mean() + params.norm_eps)
    norm = functional.at_least_float32(weights["norm.weight"])
    ask = _output_row(model, token, against) * norm * scale  # [dim]; a vector in the stream adds its product with this
    heads, feed_forward = [], []
    for layer in range(params.n_layers):
        wo = functional.at_least_float32(weights[f"layers.{layer}.attention.wo.weight"])  # [dim, n_heads * head_dim]
        ask_heads = (ask @ wo).view(-1, params.head_dim)  # [n_heads, head_dim]: the same, before wo
        heads.append((run[f"layers.{layer}.attention.heads"] * ask_heads).sum(-1))
        feed_forward.append(run[f"layers.{layer}.feed_forward.output"] @ ask)
    return {
        "embeddings": run["embeddings"] @ ask,
        "heads": torch.stack(heads),
        "feed_forward": torch.stack(feed_forward),
    }


def patching(
    model: Checkpoint | Llama,
    tokens: Sequence[int] | Tensor,
    other: Sequence[int] | Tensor,
    token: int,
    against: int | None = None,
) -> Tensor:
    """Put one vector of the run on `other` into the run on `tokens`, and see what becomes of the answer.

    Returns [n_layers + 1, seq]: the logit of `token` after `tokens`, less that of `against`, if the stream at one place
    and one position is that of `other` (a text of the same length). Row 0 changes the embeddings, row l + 1 the stream
    after layer l (activation patching, of `resid_pre` and the last `resid_post` in TransformerLens). What changes the
    answer carries the difference of the two texts; what does not may still be needed by both.
    """
    params, weights = model.params, weights_of(model)
    here, there = (check_tokens(t, params.vocab_size) for t in (tokens, other))
    if here.shape != there.shape:
        raise ValueError(f"both texts must have one length, not {len(here)} and {len(there)} tokens")
    ours, theirs = (lenses.states(model, t) for t in (here, there))  # n_layers + 1 times [seq, dim]
    row_of_token = _output_row(model, token, against)

    def read(x: Tensor) -> Tensor:
        """The last stream, [..., seq, dim] -> the answer, [...]."""
        last = functional.rms_norm(x[..., -1, :], weights["norm.weight"], params.norm_eps)
        return functional.at_least_float32(last) @ row_of_token

    first = int((here != there).int().argmax())  # before it both runs are the same, and so is the answer
    one = torch.eye(len(here), dtype=torch.bool, device=ours[0].device)
    answers = read(ours[-1]).repeat(len(ours), len(here))
    for row in progress(range(len(ours)), "places"):
        x = torch.where(one[first:, :, None], theirs[row], ours[row])  # [seq - first, seq, dim]: a copy each
        answers[row, first:] = read(lenses.climb(model, x, row))
    return answers


def _output_row(model: Checkpoint | Llama, token: int, against: int | None) -> Tensor:
    """[dim]: the output matrix's row of `token`, less that of `against`, if given."""
    ids = check_tokens([token] if against is None else [token, against], model.params.vocab_size)
    rows = functional.at_least_float32(functional.output_weight(weights_of(model))[ids])
    return rows[0] if against is None else rows[0] - rows[1]
