"""Hugging Face's tokenizer.json, read as what Meta's tokenizer.model and our JSON beside it say.

What it can say and is not read here changes ids, and is refused. Files beside it may say the same things again: the
order in which they count is that of transformers, and contradictions about ids are refused.
"""

import itertools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import regex

from ..messages import CheckpointError, short, short_name
from .added_tokens import AddedToken
from .files import (
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SPECIAL_TOKENS_NAME,
    TOKENIZER_CONFIG_NAME,
    read_json,
)

# GPT-2's pattern, and SmolLM2's: the same, after every digit (or every number) was cut out.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_AFTER_NUMBERS = r"|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
DIGITS_PATTERN, NUMBERS_PATTERN = r"\p{N}" + _AFTER_NUMBERS, r"\p{N}+" + _AFTER_NUMBERS

# One character of each kind. A pattern that finds all of them finds every string whole.
_KINDS = "aZé中ªǅ\u0301\u20dd\u09be1½Ⅷ٣-_([»«!+$^©😀 \u00a0\u2028\u3000\t\n\r\x00\x1c\u200d\u00ad\ue000\u0378"


def read_tokenizer(path: Path) -> tuple[dict[bytes, int], dict[str, Any]]:
    """tokenizer.json as the ranks of tokenizer.model, and what tokenizer_params.json says beside it.

    A token's id is its rank as long as ids follow the order of the merges, which is checked. Raises CheckpointError
    for anything but byte-level byte-pair encoding.
    """
    content = read_json(path)
    try:
        return _read_tokenizer(path, content)
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:  # of another kind than it should be
        raise CheckpointError(f"{path}: not as the tokenizers library writes it; download it again") from e


def _read_tokenizer(path: Path, content: dict[str, Any]) -> tuple[dict[bytes, int], dict[str, Any]]:
    _check_sections(path, content)
    added = _added_tokens(path, content)
    special_tokens = {token.content: token.id for token in added}
    ranks, merged = read_ranks(path, content["model"], special_tokens)
    names = {id: token for token, id in special_tokens.items()}
    opening = _opening(path, content.get("post_processor"), special_tokens)
    bos = _special_token(path.parent, "bos", names) or opening
    return ranks, {
        "pattern": _pattern(path, content.get("pre_tokenizer")),
        "special_tokens": special_tokens,
        "added": added,
        "merged": merged,
        "words": [token.content for token in added if not token.special],
        "bos": bos,
        "eos": _special_token(path.parent, "eos", names),
        "add_bos": bos is not None and bos == opening,
        "stop": [names[id] for id in _stop_ids(path.parent) if id in names],
    }


def _check_sections(path: Path, content: dict[str, Any]) -> None:
    """Refuse what would change ids or text and is not read here."""
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or _steps(content.get("normalizer"), "normalizers"):
        raise CheckpointError(f"{path}: only byte-pair encoding without a normalizer can be read here")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise CheckpointError(f"{path}: {key} is {short(model[key])}; only vocabularies without can be read here")
    for key in ("byte_fallback", "unk_token"):  # for characters that no token is made of; bytes all have one
        if model.get(key) and not gpt2_bytes().keys() <= model["vocab"].keys():
            raise CheckpointError(f"{path}: {key} is {short(model[key])}, and not every byte has a token")
    kinds = [step.get("type") for step in _steps(content.get("decoder"), "decoders")]
    if kinds not in ([], ["ByteLevel"]):
        raise CheckpointError(f"{path}: decoder {_listed(kinds)} is of a form that is not known here")
    cut = [key for key in ("truncation", "padding") if content.get(key)]
    if cut:
        warnings.warn(f"{path.name}: {' and '.join(cut)} not applied, as in transformers", stacklevel=6)


def _steps(section: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
    """A section's steps, out of any sequences: normalizers, pretokenizers, processors or decoders."""
    if section is None:
        return []
    if section["type"] == "Sequence":
        return list(itertools.chain.from_iterable(_steps(step, several) for step in section[several]))
    return [section]


def _added_tokens(path: Path, content: dict[str, Any]) -> list[AddedToken]:
    """The tokens of added_tokens, in their order, and those that files beside it add."""
    vocab: dict[str, int] = content["model"]["vocab"]
    known: dict[str, AddedToken] = {}
    for told in content["added_tokens"]:
        token = _added_token(told, told["id"])
        if token.content in known or vocab.get(token.content, token.id) != token.id:
            raise CheckpointError(f"{path}: {short(token.content)} is added with two ids; take one of them out")
        known[token.content] = token
    free = 1 + max([*vocab.values(), *(t.id for t in known.values())], default=-1)
    for file, token, flags_too in _beside(path.parent):
        ours = known.get(token.content)
        if ours is None:
            if token.id != vocab.get(token.content, free):
                raise CheckpointError(
                    f"{file}: {short(token.content)} has id {token.id}, which is not where it would be added to "
                    f"{path.name}; the files are of different models"
                )
            known[token.content] = token
            free = max(free, token.id + 1)
        elif ours.id != token.id or (flags_too and _flags(ours) != _flags(token)):
            raise CheckpointError(
                f"{file}: {short(token.content)} has another id or other flags than in {path.name}; take one out"
            )
    return list(known.values())


def _added_token(told: Mapping[str, Any], id: Any) -> AddedToken:
    flags = {key: told.get(key, False) for key in ("special", "lstrip", "rstrip", "single_word", "normalized")}
    flags["special"] = told.get("special", True)
    if not isinstance(told["content"], str) or type(id) is not int or id < 0:
        raise ValueError("a token has a string and an id")
    if not all(type(flag) is bool for flag in flags.values()):
        raise ValueError("flags are true or false")
    return AddedToken(told["content"], id, **flags)


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return token.special, token.lstrip, token.rstrip, token.single_word


def _beside(folder: Path) -> Iterable[tuple[Path, AddedToken, bool]]:
    """What tokenizer_config.json and added_tokens.json say of added tokens; the second knows no flags."""
    found = []
    config = folder / TOKENIZER_CONFIG_NAME
    try:
        for id, told in (_read_if_there(config).get("added_tokens_decoder") or {}).items():
            found.append((config, _added_token({"special": False, **told}, int(id)), True))
        config = folder / ADDED_TOKENS_NAME
        for content, id in _read_if_there(config).items():
            found.append((config, _added_token({"content": content, "special": False}, id), False))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(
            f"{config}: its added tokens are not as transformers writes them; download it again"
        ) from e
    return sorted(found, key=lambda entry: entry[1].id)


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def read_ranks(
    path: Path, model: dict[str, Any], special_tokens: Mapping[str, int]
) -> tuple[dict[bytes, int], set[str]]:
    """The tokens that merges make, with their ids, and those of them that were added as well."""
    vocab: dict[str, int] = model["vocab"]
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    made = {left + right for left, right in merges}
    byte_of = gpt2_bytes()
    ranks = {}
    for token, id in vocab.items():
        if token not in special_tokens or token in made or token in byte_of:
            if not set(token) <= byte_of.keys():
                raise CheckpointError(
                    f"{path}: {short(token)} is not made of bytes; is this a SentencePiece vocabulary?"
                )
            ranks[bytes(byte_of[c] for c in token)] = id
    if not all(type(id) is int and id >= 0 for id in ranks.values()) or len(set(ranks.values())) < len(ranks):
        raise CheckpointError(f"{path}: an id repeats or is not an integer; download it again")
    order = [(vocab[left + right], left + right) for left, right in merges if left in vocab and right in vocab]
    if len(order) < len(merges):
        raise CheckpointError(f"{path}: a merge of what is not in the vocabulary; download it again")
    for (id, token), (next_id, next_token) in itertools.pairwise(order):
        if next_id < id:
            raise CheckpointError(
                f"{path}: the merge that makes {short(next_token)}, id {next_id}, stands behind that of "
                f"{short(token)}, id {id}; only ids that follow the order of the merges can be read here"
            )
    tokens = [token for token in vocab if len(token) > 1 and (token not in special_tokens or token in made)]
    _check_merges(path, tokens, merges, vocab, model.get("ignore_merges") is True)
    return ranks, {token for token in special_tokens if token in vocab and (token in made or token in byte_of)}


def _check_merges(
    path: Path, tokens: list[str], merges: list[tuple[str, ...]], vocab: Mapping[str, int], ignore_merges: bool
) -> None:
    """Refuse a vocabulary that its merges do not make.

    tiktoken knows no list of merges: it joins any two tokens that make a third, and takes a piece that is a token as it
    is. That comes to the same where the merges lead from the bytes of every token to the token. Where `ignore_merges`
    says that whole pieces are taken as they are, one that they do not lead to may be there, if all its halves are
    listed. (Llama 3 has some.)
    """
    order = {pair: i for i, pair in reversed(list(enumerate(merges)))}
    last: dict[str, tuple[int, str, str]] = {}  # token -> its last merge, when its bytes are all there is

    def stay_apart(left: str, right: str, until: int) -> bool:
        """Whether no merge before `until` reaches across from left to right. Time runs backwards: the one that was
        made later is undone first; of two made by one merge, the right one was later.
        """
        while order.get((left, right), until) >= until:
            (time_left, _, its_right), (time_right, its_left, _) = last.get(left, _BYTE), last.get(right, _BYTE)
            if time_left == time_right == -1:
                return True
            if time_left > time_right:
                left, until = its_right, time_left
            else:
                right, until = its_left, time_right + 1
        return False

    for i, (left, right) in enumerate(merges):
        whole = all(len(half) == 1 or half in last for half in (left, right))
        if whole and left + right not in last and stay_apart(left, right, i):
            last[left + right] = i, left, right

    def halves_are_listed(token: str) -> bool:
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        return all(pair in order for pair in halves if set(pair) <= vocab.keys())

    for token in tokens:
        if token not in last and not (ignore_merges and len(token) <= 256 and halves_are_listed(token)):
            raise CheckpointError(
                f"{path}: no merges lead to the token {short(token)}, id {vocab[token]}; such a vocabulary cannot be "
                "read here"
            )


_BYTE = (-1, "", "")


def _pattern(path: Path, pre_tokenizer: dict[str, Any] | None) -> str:
    """The regular expression that cuts text into pieces, as Llama 3 (a Split) or SmolLM2 (Digits) write it down."""
    steps = _steps(pre_tokenizer, "pretokenizers") or [{}]
    *before, last = steps
    kinds = [step.get("type") for step in steps]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space", False):
        if kinds[:-1] == ["Split"] and not last.get("use_regex", True):
            pattern = before[0]["pattern"].get("Regex")
            if before[0]["behavior"] == "Isolated" and not before[0]["invert"] and isinstance(pattern, str):
                return _whole(pattern)
        elif kinds[:-1] == [] and last.get("use_regex", True):
            return GPT2_PATTERN
        elif kinds[:-1] == ["Digits"] and last.get("use_regex", True):
            return DIGITS_PATTERN if before[0].get("individual_digits") else NUMBERS_PATTERN
    raise CheckpointError(f"{path}: pre_tokenizer {_listed(kinds)} is of a form that is not known here")


def _whole(pattern: str) -> str:
    """The pattern, and what it does not find as pieces between: tiktoken would leave that out."""
    try:
        found = all(regex.match(pattern, kind, timeout=1) for kind in _KINDS)
    except (regex.error, TimeoutError, RecursionError, MemoryError, OverflowError):
        return pattern  # to be refused
    return pattern if found else rf"{pattern}|(?:(?!{pattern})[\s\S])+"


def _special_token(folder: Path, which: str, names: dict[int, str]) -> str | None:
    """The token that opens or closes a text: special_tokens_map.json or tokenizer_config.json has its text, config.json
    its id. None without.
    """
    for name in (SPECIAL_TOKENS_NAME, TOKENIZER_CONFIG_NAME):
        token = _read_if_there(folder / name).get(f"{which}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in names.values():
            return token
    id = _read_if_there(folder / CONFIG_NAME).get(f"{which}_token_id")
    id = id[0] if isinstance(id, list) and id else id
    return names.get(id) if type(id) is int else None


def _stop_ids(folder: Path) -> list[int]:
    """All ids that end a text or a turn: config.json and generation_config.json may each name one or several."""
    ids: list[Any] = []
    for name in (CONFIG_NAME, GENERATION_CONFIG_NAME):
        told = _read_if_there(folder / name).get("eos_token_id")
        ids += told if isinstance(told, list) else [told]
    return [id for id in ids if type(id) is int]


def _opening(path: Path, post_processor: dict[str, Any] | None, special_tokens: Mapping[str, int]) -> str | None:
    """The special token that the library puts before every text, if it does; nothing else may be put anywhere."""
    steps = [step for step in _steps(post_processor, "processors") if step["type"] != "ByteLevel"]
    kinds = [step["type"] for step in steps]
    if not steps:
        return None
    names = [piece["SpecialToken"]["id"] if "SpecialToken" in piece else None for piece in steps[0].get("single", ())]
    if kinds != ["TemplateProcessing"] or names[-1:] != [None] or len(names) > 2:
        raise CheckpointError(
            f"{path}: post_processor {_listed(kinds)} puts other tokens around a text than one before it, which cannot "
            "be read here"
        )
    opening = names[0]
    if opening is None:
        return None
    if steps[0]["special_tokens"][opening]["ids"] != [special_tokens.get(opening)]:
        raise CheckpointError(f"{path}: post_processor has another id for {short(opening)} than added_tokens")
    return str(opening)


def _listed(kinds: Iterable[Any]) -> str:
    return short_name(" + ".join(map(str, kinds)))


def gpt2_bytes() -> dict[str, int]:
    """GPT-2's printable character for each byte, the other way round.

    Bytes that print in Latin-1 stand for themselves; the others, in order, are the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
