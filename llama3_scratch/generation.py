"""Writing: the model is asked for one token after another, and each is added to the text."""

import codecs
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .cache import KVCache
from .checks import check_generate, check_logits, check_sampling, check_to_sample
from .messages import expect
from .model import Llama
from .tokenizer import Tokenizer

_PREFILL_CHUNK = 512  # tokens of a prompt that are read at a time: bounds the memory that a long one takes


def generate(
    model: Llama,
    tokens: Sequence[int] | Tensor,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    top_k: int | None = None,
    stop_tokens: Collection[int] = (),
) -> Iterator[int]:
    """Continue `tokens`, [seq] or [1, seq]: yields token ids one by one, each as soon as it is known.

    temperature, top_p, top_k: see `sample`. The same `seed` draws the same way; None draws anew each time.
    stop_tokens: ids that end the text (`tokenizer.stop_tokens`) and are not yielded.
    Raises, before any work, ValueError for an empty prompt, several (see `generate_batch`), an id outside the
    vocabulary, settings out of range, or more tokens than `params.context_len`; TypeError for ids that are not
    integers. While writing, CheckpointError for a weight that is NaN or infinite.
    """
    sampling = temperature, top_p, top_k
    prompt, stop = check_generate(model, tokens, max_new_tokens, sampling, seed, stop_tokens)
    return _generate(model, prompt, max_new_tokens, stop, *sampling, seeded(seed))


@torch.inference_mode()
def _generate(
    model: Llama, prompt: list[int], max_new_tokens: int, stop_tokens: Collection[int], *sampling: Any
) -> Iterator[int]:
    weight, room = model.tok_embeddings.weight, len(prompt) + max_new_tokens - 1  # the last token is not read again
    cache, new = KVCache(model.params, 1, max(room, 1), weight.dtype, weight.device), prompt
    for _ in range(max_new_tokens):
        logits = read(model, torch.tensor([new]), cache)  # the whole prompt first, then one token a step
        id = int(sample(logits[0], *sampling))
        if id in stop_tokens:
            return
        yield id
        new = [id]


def read(model: Llama, tokens: Tensor, cache: KVCache, attention_mask: Tensor | None = None) -> Tensor:
    """Add tokens, [batch, seq], to the cache, piece by piece: the logits after the last of them, [batch, vocab]."""
    for start in range(0, tokens.shape[-1], _PREFILL_CHUNK):
        piece = slice(start, start + _PREFILL_CHUNK)
        mask = None if attention_mask is None else attention_mask[:, piece]
        logits = model(tokens[:, piece], cache, mask, last_only=True)
    return check_logits(logits[:, -1], model)


def seeded(seed: int | None) -> torch.Generator:
    """Random numbers that start from `seed`; from anywhere for None."""
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(int(seed))
    return generator


def sample(
    logits: Tensor,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose a token: logits [..., vocab] -> ids [...].

    temperature: logits are divided by it; below 1 the probable becomes more probable, 0 takes the largest logit.
    top_k: only the k most probable tokens may be drawn. top_p: only the fewest most probable ones that together have
    probability top_p (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751).
    """
    check_sampling(temperature, top_p, top_k)
    check_to_sample(logits)
    if temperature == 0:
        return logits.argmax(-1).cpu()
    # From the most probable down: the many improbable ones, whose last digits differ between processors, then move no
    # border that matters. On the CPU, where a seed means the same everywhere.
    probs, ids = logits_to_probs(logits.float().cpu(), temperature, top_p, top_k).sort(stable=True, descending=True)
    # All probabilities side by side fill the interval from 0 to 1. A random number in it falls on one of them.
    ends = probs.double().cumsum(-1)
    point = torch.rand(*probs.shape[:-1], 1, generator=generator, dtype=torch.float64) * ends[..., -1:]
    return ids.gather(-1, torch.searchsorted(ends, point, right=True)).squeeze(-1)


def logits_to_probs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None) -> Tensor:
    """The probabilities that `sample` draws from: logits [..., vocab] -> probabilities [..., vocab]."""
    # The largest logit becomes 0, so that nothing overflows, however small the temperature.
    scaled = (logits - logits.max(-1, keepdim=True).values).double() / temperature
    probs, order = scaled.softmax(-1).sort(-1, descending=True)
    before = probs.cumsum(-1) - probs  # what the more probable ones have together
    cut = (before >= top_p) & (top_p < 1)  # never the first, before which there is nothing
    cut[..., top_k or probs.shape[-1] :] = True
    probs = torch.empty_like(probs).scatter(-1, order, probs.masked_fill(cut, 0.0))
    return (probs / probs.sum(-1, keepdim=True)).type_as(logits)


def generate_text(model: Llama, tokenizer: Tokenizer, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
    """Continue a string, or the ids of `encode_chat`: yields pieces of text as they come, until the model stops. A
    character of several tokens is held back until it is complete. `options` are those of `generate`.
    """
    expect(tokenizer, Tokenizer, "tokenizer must be the checkpoint's tokenizer")
    tokens = tokenizer.encode(prompt, bos=tokenizer.add_bos) if isinstance(prompt, str) else prompt
    defaults: dict[str, Any] = {"max_new_tokens": 256, "stop_tokens": tokenizer.stop_tokens}
    return decode_stream(generate(model, tokens, **defaults | options), tokenizer)


def decode_stream(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Text from ids as they come, in pieces that end between two characters. Ids that have no token are passed over:
    some models have more rows than their tokenizer has tokens.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for id in ids:
        token = tokenizer.token_bytes(id) if id in tokenizer else b""
        if piece := decoder.decode(token):
            yield piece
    if rest := decoder.decode(b"", final=True):  # a character that was never finished
        yield rest
