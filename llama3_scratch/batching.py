"""Several prompts, continued together."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from .cache import KVCache
from .checks import check_generate_batch
from .generation import read, sample, seeded
from .model import Llama
from .padding import pad


def generate_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    top_k: int | None = None,
    stop_tokens: Collection[int] = (),
) -> Iterator[list[int | None]]:
    """Continue several prompts, of any lengths, together: each step yields a list with an id for each prompt, None
    for those that have stopped.

    The settings and what is raised are those of `generate`. Prompt number i draws as it would alone with seed + i.
    """
    sampling = temperature, top_p, top_k
    rows, stop = check_generate_batch(model, prompts, max_new_tokens, sampling, seed, stop_tokens)
    generators = [seeded(None if seed is None else seed + i) for i in range(len(rows))]
    return _generate_batch(model, rows, max_new_tokens, stop, generators, sampling)


@torch.inference_mode()
def _generate_batch(
    model: Llama,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_tokens: Collection[int],
    generators: list[torch.Generator],
    sampling: tuple[float, float, int | None],
) -> Iterator[list[int | None]]:
    new, mask = pad(prompts)
    attention_mask = None if mask.all() else mask
    weight, room = model.tok_embeddings.weight, new.shape[-1] + max_new_tokens - 1  # the last token is not read again
    cache = KVCache(model.params, len(prompts), max(room, 1), weight.dtype, weight.device)
    stopped = [False] * len(prompts)
    for _ in range(max_new_tokens):
        logits = read(model, new, cache, attention_mask)  # the prompts first, then one token each a step
        ids = [int(sample(row, *sampling, generator)) for row, generator in zip(logits, generators, strict=True)]
        stopped = [done or id in stop_tokens for done, id in zip(stopped, ids, strict=True)]
        if all(stopped):
            return
        yield [None if done else id for done, id in zip(stopped, ids, strict=True)]
        new, attention_mask = torch.tensor(ids)[:, None], None
