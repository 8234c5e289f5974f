"""The guards of the model's files: numbers, shapes and settings that cannot be are refused before any work.

Each raises ValueError for a value that does not fit, TypeError for one of another kind, in a sentence that says what
was expected. None knows files; names of keys and fields are all that it can tell.
"""

import json
import math
import operator
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .messages import CheckpointError, expect, is_integer, short

# Far above any model's; what is larger is a slip of the pen, and must not become a long wait or fill the memory.
MOST, MOST_LAYERS = 2**31, 10_000

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def check_params(params: Any) -> None:
    """The fields of ModelArgs, each by itself and against the others."""
    integers = ("dim", "n_layers", "n_heads", "vocab_size", "n_kv_heads", "multiple_of", "context_len")
    for name in (*integers, "rope_old_context_len"):
        value = getattr(params, name)
        if type(value) is not int or not 1 <= value <= MOST:
            raise ValueError(f"{name} must be a positive integer, not {short(value)}")
    if params.n_layers > MOST_LAYERS:
        raise ValueError(f"n_layers {params.n_layers} is more than any model has")
    optional = ("ffn_dim_multiplier", "rope_scale_factor")
    for name in ("norm_eps", "rope_theta", "rope_low_freq_factor", "rope_high_freq_factor", *optional):
        value = getattr(params, name)
        if value is None and name in optional:
            continue
        if type(value) not in (int, float) or not 0 < value < 1e30:  # which NaN is not, either
            raise ValueError(f"{name} must be a positive number, not {short(value)}")
    if type(params.use_scaled_rope) is not bool:
        raise ValueError(f"use_scaled_rope must be true or false, not {short(params.use_scaled_rope)}")
    _check_divisions(params)


def _check_divisions(params: Any) -> None:
    if params.rope_low_freq_factor >= params.rope_high_freq_factor:
        raise ValueError("rope_low_freq_factor must be smaller than rope_high_freq_factor")
    if params.dim % params.n_heads:
        raise ValueError(f"dim {params.dim} does not divide into n_heads {params.n_heads}")
    if params.n_heads % params.n_kv_heads:
        raise ValueError(f"n_heads {params.n_heads} does not divide into groups over n_kv_heads {params.n_kv_heads}")
    if params.head_dim % 2:
        raise ValueError(f"dim / n_heads is {params.head_dim}; the rotary embedding turns pairs, so it must be even")
    if not 1 <= params.hidden_dim <= MOST:
        raise ValueError(f"ffn_dim_multiplier makes the hidden size {params.hidden_dim}")


def check_tokens(tokens: Any, vocab_size: int) -> Tensor:
    """The ids as a tensor of int64, [seq] or [batch, seq].

    Raises ValueError for none at all, lists of unequal length or of strings, or an id outside the vocabulary,
    TypeError for anything else that is not integers.
    """
    try:
        tokens = torch.as_tensor(tokens)
    except (RuntimeError, TypeError, ValueError) as e:
        raise (ValueError if isinstance(e, ValueError) or "verflow" in str(e) else TypeError)(
            f"token ids must be integers from 0 to {vocab_size - 1}, in a list or in lists of equal length "
            f"(padding.pad makes them so), not {short(tokens)}"
        ) from e
    if tokens.numel() == 0:
        raise ValueError("no tokens: the model needs at least one to predict the next")
    if tokens.ndim == 0:
        raise ValueError(f"tokens must be a list of ids, not a single {tokens.item()}")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"token ids must be integers, not {tokens.dtype}")
    if tokens.layout != torch.strided or tokens.is_meta:
        raise TypeError("token ids must be a plain tensor, with its numbers")
    ids: Tensor = tokens.long()
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"token ids must be 0 to {vocab_size - 1}, found {ids.min()} to {ids.max()}")
    return ids


def check_prompts(prompts: Any, vocab_size: int) -> list[list[int]]:
    """Several prompts, of any lengths, as lists of ids; at least one."""
    rows = list(prompts) if isinstance(prompts, Iterable) else [prompts]
    if not rows:
        raise ValueError("no prompts: at least one is needed")
    checked = [check_tokens(row, vocab_size) for row in rows]
    if any(row.ndim != 1 for row in checked):
        raise ValueError("a prompt is a list of ids, several prompts are a list of such lists; these are nested deeper")
    return [row.tolist() for row in checked]


def check_prompt(tokens: Any, vocab_size: int) -> list[int]:
    """One prompt, [seq] or [1, seq], as a list of ids."""
    if isinstance(tokens, Iterable) and not isinstance(tokens, Tensor | str):
        tokens = list(tokens)
    lists = [row for row in tokens if isinstance(row, list | tuple)] if isinstance(tokens, list) else []
    ids = check_tokens(tokens, vocab_size) if len(lists) < 2 else None
    if ids is None or ids.ndim > 2 or (ids.ndim == 2 and len(ids) > 1):
        raise ValueError("generate continues one prompt, a list of ids; generate_batch takes several")
    prompt: list[int] = ids.flatten().tolist()
    return prompt


def check_length(length: int, context_len: int) -> int:
    """The length; ValueError if it is more than the model was trained for."""
    if length > context_len:
        raise ValueError(f"{length} tokens are more than the {context_len} that this model takes (params.context_len)")
    return length


def check_layers(layers: Any, n_layers: int) -> list[int]:
    """Numbers of layers, as a list; TypeError or ValueError for one that is no layer's."""
    numbers = list(layers) if isinstance(layers, Iterable) else [layers]
    for number in numbers:
        if not is_integer(number):
            raise TypeError(f"a layer is a number from 0 to {n_layers - 1}, not {short(number)}")
        if not 0 <= number < n_layers:
            raise ValueError(f"layer {number} is not there: this model has layers 0 to {n_layers - 1}")
    return [int(number) for number in numbers]


def check_context(context: Any, skip: int) -> Sequence[int]:
    """A text to push in, as token ids: long enough to have a place between the first `skip` tokens and the last."""
    if isinstance(context, str):
        raise TypeError("a Llama has no tokenizer: give contexts as lists of token ids, or a checkpoint")
    if len(context) < skip + 2:
        raise ValueError(f"a context of {len(context)} tokens leaves no place to push: it needs {skip + 2} or more")
    ids: Sequence[int] = context
    return ids


def check_logits(logits: Tensor, weights: Mapping[str, Tensor] | nn.Module) -> Tensor:
    """The logits, if they are finite; else CheckpointError for the weight that is NaN or infinite, or ValueError.

    One such weight spoils them all, so nothing has to be searched as long as they are fine.
    """
    if logits.sum().isfinite() or logits.isfinite().all():  # the first is quick, and may overflow
        return logits
    check_finite(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    raise ValueError("the logits are not finite, though all weights are: a number overflowed; try dtype=torch.float32")


def check_finite(weights: Mapping[str, Tensor], where: str = "") -> None:
    """Raise CheckpointError, naming the key, if a weight holds NaN or infinity."""
    for key, weight in weights.items():
        if not all(end.isfinite() for end in weight.aminmax()):  # NaN is both ends
            raise CheckpointError(f"{where}{key} holds NaN or infinity; download or save it again")


def check_attention_mask(attention_mask: Any, tokens: Tensor) -> Tensor | None:
    """Which of the tokens are none but padding, as booleans [batch, seq], on the device of the tokens."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != tokens.shape:
        raise ValueError(f"attention_mask must be a tensor in the shape of the tokens, {list(tokens.shape)}")
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise ValueError("attention_mask must be 1 for tokens and 0 for padding; something else is in it")
    return attention_mask.reshape(-1, tokens.shape[-1]).to(tokens.device, torch.bool)


def check_dtype_and_device(dtype: Any, device: Any) -> None:
    """A type that weights can have, a device that this machine has."""
    if dtype is not None and dtype not in DTYPES.values():
        raise ValueError(f"dtype must be torch.bfloat16, float16, float32 or float64, not {short(dtype)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as e:
        raise ValueError(f"device {short(device)} cannot be used on this machine; take 'cpu'") from e


def check_quantize(quantize: Any, keep: Any, dtype: Any, device: Any) -> None:
    """A way to quantise, and a type and a device that it has."""
    if quantize is None and keep:
        raise ValueError('keep is for a quantised model: say quantize="int4" or "int8", too')
    if quantize not in (None, "int8", "int4"):
        raise ValueError(f'quantize must be "int8", "int4" or None, not {short(quantize)}')
    if quantize and dtype not in (None, torch.bfloat16, torch.float32):
        raise ValueError(f"a quantised model computes in bfloat16 or float32, not {short(dtype)}; leave dtype out")
    if quantize and device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"a quantised model runs on the cpu, not on {short(device)}; leave device or quantize out")


def check_cache_size(shape: tuple[int, ...], dtype: Any, device: Any) -> None:
    """Numbers of [n_layers, batch_size, n_kv_heads, max_seq_len, head_dim] that memory can hold twice."""
    for name, size in (("batch_size", shape[1]), ("max_seq_len", shape[3])):
        if not is_integer(size) or not 1 <= size < 2**31:
            raise ValueError(f"{name} must be an integer from 1 on, not {short(size)}")
    check_dtype_and_device(dtype, device)
    try:
        torch.empty(2, *shape, dtype=dtype, device=device)
    except RuntimeError as e:  # out of memory
        gigabytes = 2 * math.prod(shape) * dtype.itemsize / 1e9
        raise ValueError(f"there is no room for a cache of {gigabytes:.3g} GB; make max_seq_len smaller") from e


def check_cache_fits(keys: Tensor, length: Any, params: Any, h: Tensor) -> None:
    """The rows of h, [batch, seq, dim], behind `length` of the keys, [n_layers, batch, n_kv_heads, room, head_dim]."""
    batch_size, seq, _ = h.shape
    n_layers, room_for, n_kv_heads, max_seq_len, head_dim = keys.shape
    if (n_layers, n_kv_heads, head_dim) != (params.n_layers, params.n_kv_heads, params.head_dim):
        raise ValueError("the cache was made for another model")
    if (keys.dtype, keys.device) != (h.dtype, h.device):
        raise ValueError(
            f"the cache was made for {keys.dtype} on {keys.device}, the model computes in {h.dtype} on {h.device}"
        )
    if batch_size != room_for:
        raise ValueError(f"{batch_size} prompts, but the cache was made for {room_for}")
    if not is_integer(length) or not 0 <= length <= max_seq_len:
        raise ValueError(f"cache.length must be an integer from 0 to {max_seq_len}, not {short(length)}")
    if length + seq > max_seq_len:
        raise ValueError(f"{length} + {seq} tokens, but the cache has room for {max_seq_len}")


def check_generate(
    model: Any, tokens: Any, max_new_tokens: Any, sampling: tuple[Any, Any, Any], seed: Any, stop_tokens: Any
) -> tuple[list[int], frozenset[int]]:
    """What `generate` is called with; returns the prompt, and the stop tokens as a set."""
    expect(model, Callable, "a model must be a Llama, as Llama.from_checkpoint makes one")  # or a wrapper around it
    prompt = check_prompt(tokens, model.params.vocab_size)
    check_sampling(*sampling)
    return prompt, _check_writing(max_new_tokens, seed, stop_tokens, len(prompt), model.params.context_len)


def check_generate_batch(
    model: Any, prompts: Any, max_new_tokens: Any, sampling: tuple[Any, Any, Any], seed: Any, stop_tokens: Any
) -> tuple[list[list[int]], frozenset[int]]:
    """The same for `generate_batch`; returns the prompts, and the stop tokens as a set."""
    expect(model, Callable, "a model must be a Llama, as Llama.from_checkpoint makes one")
    rows = check_prompts(prompts, model.params.vocab_size)
    check_sampling(*sampling)
    return rows, _check_writing(max_new_tokens, seed, stop_tokens, max(map(len, rows)), model.params.context_len)


def _check_writing(
    max_new_tokens: Any, seed: Any, stop_tokens: Any, prompt_len: int, context_len: int
) -> frozenset[int]:
    if not is_integer(max_new_tokens) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be an integer from 0 on, not {short(max_new_tokens)}")
    if seed is not None and (not is_integer(seed) or not 0 <= seed < 2**63):
        raise ValueError(f"seed must be an integer from 0 on, or None, not {short(seed)}")
    expect(stop_tokens, Iterable, "stop_tokens must be a collection of ids")
    stop = [id.item() if isinstance(id, Tensor) else id for id in stop_tokens]
    if not all(map(is_integer, stop)):
        raise TypeError(f"stop_tokens must be integers, not {short(stop)}")
    if prompt_len + max_new_tokens > context_len:
        raise ValueError(
            f"{prompt_len} tokens and {max_new_tokens} new ones are more than the {context_len} that this model takes "
            "(params.context_len); shorten the prompt or ask for fewer"
        )
    return frozenset(map(int, stop))


def check_sampling(temperature: Any, top_p: Any, top_k: Any) -> None:
    """The settings of sampling: numbers, and within their ranges."""
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:  # nor is NaN
            raise ValueError(f"{name} must be a number, not {short(value)}")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 or more, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if top_k is not None and (not is_integer(top_k) or top_k < 1):
        raise ValueError(f"top_k must be an integer from 1 on, or None, not {short(top_k)}")


def check_to_sample(logits: Any) -> None:
    """Logits that one can draw from."""
    expect(logits, Tensor, "logits must be a tensor")
    if not logits.is_floating_point() or not logits.numel() or logits.isnan().any():
        raise ValueError("the logits are NaN, or there are none; are the weights finite?")


def check_allowed_special(allowed_special: Any, known: Collection[str]) -> set[str]:
    """Names of special tokens that may be read in a string, "all" among them, as a set."""
    expect(allowed_special, Collection, 'allowed_special must be "all" or names of special tokens')
    if isinstance(allowed_special, str):  # one name, not a collection of letters
        allowed_special = known if allowed_special == "all" else {allowed_special}
    for name in allowed_special:
        expect(name, str, "names of special tokens must be strings")
    return set(allowed_special) & set(known)  # a name that the vocabulary does not have stays plain text


def check_bos_or_eos(id: int | None) -> int:
    """The id that opens or closes a text, if the vocabulary has one."""
    if id is None:
        raise ValueError("this vocabulary has no token to open or to close a text with")
    return id


def check_ids(ids: Any) -> None:
    """Several ids, that is; a tensor without dimensions is one."""
    if not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:
        raise TypeError(f"decode takes a list of ids, not {short(ids)}")


def check_token_id(id: Any, vocab_size: int) -> int:
    """An id within the vocabulary, as an int."""
    try:
        id = operator.index(id)
    except TypeError as e:
        raise TypeError(f"a token id must be an integer, not {short(id)}") from e
    if not 0 <= id < vocab_size:
        raise ValueError(f"token id {short(id)} is outside the vocabulary, 0 to {vocab_size - 1}")
    return int(id)


def check_plain(value: Any, what: str, depth: int = 0) -> Any:
    """A copy of plain data: what JSON can hold. ValueError for anything else."""
    if depth > 50:
        raise ValueError(f"{what} is nested too deeply")
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, bool, int, float):  # enumerations and the like, which bring methods of their own
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str.__str__(key): check_plain(item, what, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [check_plain(item, what, depth + 1) for item in value]
    raise ValueError(f"{what} must be plain data, as in JSON, not {short(value)}")


def check_messages(messages: Any, roles: Collection[str] = ()) -> list[dict[str, Any]]:
    """A conversation: at least one message, each a mapping with a role, as plain data; keys that are None are left out.

    `roles`: those of a format that knows no others; its messages need a string as their content, too.
    """
    checked = []
    for message in messages if isinstance(messages, Iterable) else [messages]:
        if not isinstance(message, Mapping):
            raise ValueError(f"a message needs a role and a content, both text: {short(message)}")
        message = {key: value for key, value in check_plain(message, "a message").items() if value is not None}
        role = message.get("role")
        if roles and "tool_calls" in message:
            message.setdefault("content", "")
        if roles and not isinstance(message.get("content"), str):
            raise ValueError(f"a message needs a role and a content, both text: {short(message)}")
        if roles and role not in roles:
            raise ValueError(f"role must be one of {', '.join(roles)}, not {short(role)}")
        if not isinstance(role, str) or not re.fullmatch(r"\w[\w.-]*", role):
            raise ValueError(f"a role must be a name, such as user, not {short(role)}")
        checked.append(message)
    if not checked:
        raise ValueError("no messages")
    return checked


def check_tool_calls(message: Mapping[str, Any], special_tokens: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
    """The name and the arguments of each call of a tool in a message; none, most often."""
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or (calls and message["role"] != "assistant"):
        raise ValueError(f"tool_calls must be a list, in a message of the assistant, not {short(calls)}")
    if calls and not {"<|eom_id|>", "<|python_tag|>"} <= set(special_tokens):
        raise ValueError("tool_calls need <|eom_id|> and <|python_tag|>, which this vocabulary does not have")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Any) -> tuple[str, dict[str, Any]]:
    function = call.get("function", call) if isinstance(call, dict) else None
    name, arguments = (function.get(key) if isinstance(function, dict) else None for key in ("name", "arguments"))
    if isinstance(arguments, str):  # as some services send them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(
            f'a tool call is {{"function": {{"name": a string, "arguments": an object}}}}, not {short(call)}'
        )
    key = {"code_interpreter": "code"} | dict.fromkeys(("brave_search", "wolfram_alpha", "photogen"), "query")
    if name in key and not isinstance(arguments.get(key[name]), str):
        raise ValueError(f"a call of {name} has the argument {key[name]!r}, a string, not {short(arguments)}")
    return name, arguments


def check_chat_format(tokenizer: Any, variables: Collection[str]) -> None:
    """Whether Llama 3's own format may be taken, for want of a chat template."""
    if tokenizer.path.suffix == ".json":  # Hugging Face's layout, where an instruct model brings its template
        raise ValueError(
            f"{tokenizer.path.parent.name}: no chat template in this folder; is it a base model's? An instruct model "
            "brings one, which must be downloaded with its tokenizer"
        )
    needed = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}
    if not needed <= set(tokenizer.special_tokens):
        raise ValueError("this vocabulary has no control tokens for conversations; is it a base model?")
    if variables:
        raise ValueError(f"there is no chat template here that could take {', '.join(variables)}")


def check_settings(settings: Any) -> None:
    """The fields of training.Settings."""
    for name, least in (("steps", 1), ("batch_size", 1), ("seq_len", 1), ("warmup", 0), ("seed", 0)):
        value = getattr(settings, name)
        if not is_integer(value) or not least <= value <= MOST:
            raise ValueError(f"{name} must be an integer of at least {least}, not {short(value)}")
    for name, least, most in (("final_rate", 0, 1), ("weight_decay", 0, 1e30)):
        _check_number(name, getattr(settings, name), least, most)
    for name in ("learning_rate", "clip"):
        value = getattr(settings, name)
        _check_number(name, value, 0, 1e30)
        if not value:
            raise ValueError(f"{name} must be more than 0")
    if not isinstance(settings.betas, tuple) or len(settings.betas) != 2:
        raise ValueError(f"betas must be two numbers, not {short(settings.betas)}")
    for beta in settings.betas:
        _check_number("betas", beta, 0, 1)
        if beta == 1:
            raise ValueError("betas must be below 1: an average that forgets nothing never learns")


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"from {least} to {most}" if most < 1e30 else f"of at least {least}"
        raise ValueError(f"{name} must be a number {bounds}, not {short(value)}")


def check_training_ids(ids: Any, seq_len: int) -> None:
    """A text's ids, long enough for one window."""
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.is_floating_point():
        raise ValueError(f"the ids of a text must be one row of integers, [tokens], not {short(ids)}")
    if len(ids) <= seq_len:
        raise ValueError(f"a text of {len(ids)} tokens is too short: one window takes {seq_len + 1}")


def check_lora(rank: Any, alpha: Any, weight: Any) -> None:
    """The settings of an adapter, and the matrix that it stands beside."""
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError("an adapter stands beside a matrix of floating-point numbers; open the model without quantize")
    if not is_integer(rank) or not 1 <= rank <= MOST:
        raise ValueError(f"rank must be an integer of at least 1, not {short(rank)}")
    if alpha is not None:
        _check_number("alpha", alpha, -1e30, 1e30)
