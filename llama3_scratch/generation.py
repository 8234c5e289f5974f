"""Writing: the model is asked for one token after another, and each is added to the text."""

import codecs
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from numbers import Real

import torch
from torch import Tensor

from . import functional
from .messages import expect, is_whole, short
from .model import KVCache, Llama, pad
from .tokenizer import Tokenizer

_PREFILL_CHUNK = 512  # tokens of a prompt that are read at a time: bounds the memory that a long one takes


def generate(
    model: Llama,
    tokens: Sequence[int] | Tensor | Sequence[Sequence[int]],
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    top_k: int | None = None,
    stop_tokens: Collection[int] = (),
) -> Iterator[int] | Iterator[list[int | None]]:
    """Continue `tokens`, [seq] or [1, seq]: yields token ids one by one, each as soon as it is known.

    Several prompts, of any lengths, are continued together: each step then yields a list with an id for each prompt,
    None for those that have stopped.

    temperature, top_p, top_k: see `sample`; temperature 0 takes the most probable token. The same `seed` gives the
    same text; None draws anew each time.
    stop_tokens: ids that end the text (`tokenizer.stop_tokens`); they are not yielded. Without any, exactly
    `max_new_tokens` ids come.

    Raises, before any work, ValueError for an empty prompt, an id outside the vocabulary, settings out of range, or a
    text that would grow longer than `model.params.max_seq_len`; TypeError for ids that are not integers, or something
    else than a `Llama`. While writing, CheckpointError for a weight that is NaN or infinite.
    """
    expect(model, Callable, "generate takes a Llama, as Llama.from_checkpoint makes one")  # or a wrapper around it
    single, prompts = _prompts(tokens, model.params.vocab_size)
    check_sampling(temperature, top_p, top_k)
    if not is_whole(max_new_tokens) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be a whole number from 0 on, not {short(max_new_tokens)}")
    if seed is not None and (not is_whole(seed) or not 0 <= seed < 2**63):
        raise ValueError(f"seed must be a whole number from 0 on, or None, not {short(seed)}")
    expect(stop_tokens, Iterable, "stop_tokens must be a collection of ids")
    stop_tokens = [id.item() if isinstance(id, Tensor) else id for id in stop_tokens]
    if not all(map(is_whole, stop_tokens)):
        raise TypeError(f"stop_tokens must be whole numbers, not {short(stop_tokens)}")
    longest, room = max(map(len, prompts)), model.params.max_seq_len
    if longest + max_new_tokens > room:
        raise ValueError(
            f"{longest} tokens and {max_new_tokens} new ones are more than the {room} that this model takes "
            "(max_seq_len); shorten the prompt or ask for fewer"
        )
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(int(seed))
    steps = _steps(model, prompts, max_new_tokens, (temperature, top_p, top_k, generator), frozenset(stop_tokens))
    return (ids[0] for ids in steps) if single else steps


def _prompts(tokens: Sequence[int] | Tensor | Sequence[Sequence[int]], vocab_size: int) -> tuple[bool, list[list[int]]]:
    """Whether it is a single prompt, and all prompts as checked lists of ids."""
    if isinstance(tokens, Tensor):
        tokens = functional.check_tokens(tokens, vocab_size)
    rows = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    rows = list(rows) if isinstance(rows, Iterable) else rows
    nested = isinstance(rows, list) and bool(rows) and all(map(_is_prompt, rows))
    prompts = [functional.check_tokens(row, vocab_size) for row in (rows if nested else [rows])]
    if any(prompt.ndim != 1 for prompt in prompts):
        raise ValueError("a prompt is a list of ids, several prompts are a list of such lists; these are nested deeper")
    return len(prompts) == 1, [prompt.tolist() for prompt in prompts]


def _is_prompt(row: object) -> bool:
    """Not a single id, which a tensor without dimensions is, too."""
    return row.ndim > 0 if isinstance(row, Tensor) else isinstance(row, Sequence) and not isinstance(row, str)


@torch.inference_mode()
def _steps(
    model: Llama, prompts: list[list[int]], max_new_tokens: int, sampling: tuple, stop_tokens: frozenset[int]
) -> Iterator[list[int | None]]:
    if max_new_tokens == 0:
        return
    tokens, attention_mask = pad(prompts)
    weight = model.tok_embeddings.weight
    max_seq_len = tokens.shape[-1] + max_new_tokens - 1  # the last token is not read again
    cache = KVCache(model.params, len(prompts), max_seq_len, weight.dtype, weight.device)
    padded = not attention_mask.all()
    # Prefill: the whole prompt, many tokens at a time. After that, one token a step.
    for start in range(0, tokens.shape[-1], _PREFILL_CHUNK):
        chunk = slice(start, start + _PREFILL_CHUNK)
        logits = model(tokens[:, chunk], cache, attention_mask[:, chunk] if padded else None, last_only=True)
    stopped = [False] * len(prompts)
    for step in range(max_new_tokens):
        if step > 0:
            logits = model(tokens, cache)
        if not logits.sum().isfinite():  # much quicker than to gather the weights
            functional.check_logits(logits, model.state_dict())
        tokens = sample(logits[:, -1], *sampling)[:, None]
        stopped = [done or id in stop_tokens for done, id in zip(stopped, tokens[:, 0].tolist(), strict=True)]
        if all(stopped):
            return
        yield [None if done else id for done, id in zip(stopped, tokens[:, 0].tolist(), strict=True)]


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
    expect(logits, Tensor, "logits must be a tensor")
    if not logits.is_floating_point() or not logits.numel() or logits.isnan().any():
        raise ValueError("the logits are not numbers (NaN), or there are none; are the weights whole?")
    if temperature == 0:
        return logits.argmax(-1).cpu()
    probs = distribution(logits.float().cpu(), temperature, top_p, top_k)  # on the CPU: a seed means the same anywhere
    # All probabilities side by side fill the interval from 0 to 1. A random number in it falls on one of them.
    ends = probs.double().cumsum(-1)
    point = torch.rand(*probs.shape[:-1], 1, generator=generator, dtype=torch.float64) * ends[..., -1:]
    return torch.searchsorted(ends, point, right=True).squeeze(-1)


def distribution(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None) -> Tensor:
    """The probabilities that `sample` draws from: logits [..., vocab] -> probabilities [..., vocab]."""
    # The largest logit becomes 0, so that nothing overflows, however small the temperature.
    scaled = (logits - logits.max(-1, keepdim=True).values).double() / temperature
    probs = scaled.softmax(-1)
    if top_k is not None or top_p < 1:
        probs, order = probs.sort(-1, descending=True)
        before = probs.cumsum(-1) - probs  # what the more probable ones have together
        cut = (before >= top_p) & (top_p < 1)
        if top_k is not None:
            cut[..., top_k:] = True
        cut[..., 0] = False  # the most probable one always stays
        probs = torch.zeros_like(probs).scatter(-1, order, probs.masked_fill(cut, 0.0))
    return (probs / probs.sum(-1, keepdim=True)).type_as(logits)


def check_sampling(temperature: float, top_p: float, top_k: int | None):
    """Raise ValueError for a setting that is out of range or not a number."""
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if isinstance(value, bool) or not isinstance(value, Real) or not abs(value) <= sys.float_info.max:  # nor is NaN
            raise ValueError(f"{name} must be a number, not {short(value)}")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 or more, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if top_k is not None and (not is_whole(top_k) or top_k < 1):
        raise ValueError(f"top_k must be a whole number from 1 on, or None, not {short(top_k)}")


def generate_text(model: Llama, tokenizer: Tokenizer, prompt: str | Sequence[int], **options) -> Iterator[str]:
    """Continue a text, or the ids of `encode_chat`: yields pieces of text as they come, until the model stops.

    A character of several tokens is held back until it is complete. `options` are those of `generate`.
    """
    expect(tokenizer, Tokenizer, "tokenizer must be the checkpoint's tokenizer")
    tokens = tokenizer.encode(prompt, bos=tokenizer.add_bos) if isinstance(prompt, str) else prompt
    single, prompts = _prompts(tokens, model.params.vocab_size)
    if not single:
        raise ValueError("generate_text continues one text; call it for each, or take generate for several")
    options = {"max_new_tokens": 256, "stop_tokens": tokenizer.stop_tokens} | options
    return decode_stream(generate(model, prompts[0], **options), tokenizer)


def decode_stream(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Text from ids as they come, in pieces that end between two characters.

    Ids that have no token are passed over: some models have more rows than their tokenizer has tokens.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for id in ids:
        token = tokenizer.token_bytes(id) if id in tokenizer else b""
        if piece := decoder.decode(token):
            yield piece
    if rest := decoder.decode(b"", final=True):  # a character that was never finished
        yield rest
