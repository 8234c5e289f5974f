"""Writing several tokens a step: guess what comes next by looking it up in the text, and let the model check the guess.

A step that reads a few tokens fetches the weights no more often than one that reads a single token. So a guess is
cheap to check, and the text stays what it would have been: a guessed token is kept only where the model says it, too
(speculative decoding, Leviathan et al. 2022, arXiv:2211.17192; with a look-up as the guesser, Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from .cache import KVCache
from .checks import check_generate, check_logits
from .generation import read
from .model import Llama

_LONGEST = 3  # of the last tokens are looked for, then fewer


def look_up(ids: Sequence[int], k: int) -> list[int]:
    """A guess of up to k tokens: those that came after the text's last tokens when they last stood in it."""
    ids = list(ids)
    for n in range(min(_LONGEST, len(ids) - 1), 0, -1):
        for start in range(len(ids) - n - 1, -1, -1):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + k]
    return []


def generate_by_lookup(
    model: Llama,
    tokens: Sequence[int] | Tensor,
    max_new_tokens: int = 16,
    k: int = 8,
    stop_tokens: Collection[int] = (),
) -> Iterator[list[int]]:
    """What `generate` writes greedily, in fewer steps: yields the one to k + 1 token ids of each step.

    Rounding differs a little with the number of rows, so where two tokens are equally probable to the last digits, the
    texts may part. Raises what `generate` raises, and ValueError for a negative k.
    """
    if k < 0:
        raise ValueError(f"k is how many tokens to guess, 0 or more, not {k}")
    prompt, stop = check_generate(model, tokens, max_new_tokens, (0.0, 1.0, None), None, stop_tokens)
    return _generate_by_lookup(model, prompt, max_new_tokens, k, stop)


@torch.inference_mode()
def _generate_by_lookup(
    model: Llama, ids: list[int], left: int, k: int, stop_tokens: Collection[int]
) -> Iterator[list[int]]:
    weight, ids = model.tok_embeddings.weight, list(ids)
    cache = KVCache(model.params, 1, len(ids) + left, weight.dtype, weight.device)
    if len(ids) > 1:
        read(model, torch.tensor([ids[:-1]]), cache)
    while left > 0:
        guess = look_up(ids, min(k, left - 1))
        logits = check_logits(model(torch.tensor([ids[-1:] + guess]), cache)[0], model)  # [1 + guess, vocab]
        said = logits.argmax(-1).tolist()
        right = next((i for i, id in enumerate(guess) if id != said[i]), len(guess))
        new = said[: right + 1]  # what was guessed right, and one more
        cache.length -= len(guess) - right  # the rest never was in the text
        ended = next((i for i, id in enumerate(new) if id in stop_tokens), None)
        if new[:ended]:
            yield new[:ended]
        if ended is not None:
            return
        ids, left = ids + new, left - len(new)
