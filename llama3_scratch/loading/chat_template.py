"""A folder's own chat template: a program by a stranger, in the language Jinja, that writes a conversation as text.

It is rendered as transformers does it, in the sandbox of sandbox.py, which bounds its time and memory.

User text cannot become a control token, whatever the template does with it. Of each control token one character is
picked that text seldom has ("|" of "<|eot_id|>"), and in every string of the messages and variables it is exchanged
for a stand-in, a private character that occurs nowhere else. The template may cut, trim and join: only what it writes
by itself can still be a control token. Then the text is cut at control tokens, and between them the stand-ins are
exchanged back. Tags that a template looks for, such as </think>, stay as they are, so that it finds them.
"""

import contextlib
import functools
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checks import check_messages, check_plain
from ..messages import CheckpointError, reason, short_name
from .files import CHAT_TEMPLATE_NAME, CHAT_TEMPLATES_FOLDER, TOKENIZER_CONFIG_NAME, read_bytes, read_json
from .sandbox import LONGEST_PRINTED, ROOM, STEPS, Meter, Template, children, compiled, size_of, working

_LONGEST_TEMPLATE = 50_000  # characters; the published ones have up to 30,000
# What transformers' apply_chat_template does with the result: a template would ignore these in silence.
_NOT_VARIABLES = {"chat_template", "continue_final_message", "max_length", "return_dict", "return_tensors", "tokenize"}


class ChatTemplate:
    """The chat templates of a folder.

    sources: name -> text ("default", and perhaps "tool_use", which counts where tools are given), or the error that
    reading it ended in: a folder whose template is broken still opens for plain text. tokens: variables such as
    bos_token. control: the names of the vocabulary's control tokens.
    """

    def __init__(
        self, path: Path, sources: Mapping[str, Any], tokens: Mapping[str, str], control: Collection[str]
    ) -> None:
        self.path, self.sources, self.tokens = path, dict(sources), dict(tokens)
        self._guards = {name: _guard(name) for name in control if not name.isspace()}

    def render(self, messages: Iterable[Mapping[str, Any]], **variables: Any) -> str:
        """The conversation as text, as transformers' apply_chat_template(tokenize=False) gives it. See `pieces`."""
        return "".join(piece for piece, _ in self.pieces(messages, **variables))

    def pieces(
        self, messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[tuple[str, list[str]]]:
        """The conversation as text, cut before and after control tokens; with each piece, the token it may become.

        `variables` are what the template asks for: tools=[...] (as JSON schemas), documents, date_string and so on.
        Raises CheckpointError, naming the file, for a template that cannot be used or does not come to an end, and
        ValueError for messages that it does not take.
        """
        given = [_with_reasoning(message) for message in check_messages(messages)]
        variables = check_plain({"tools": None, "documents": None, **variables}, "a variable of a chat template")
        if not _NOT_VARIABLES.isdisjoint(variables):
            raise ValueError(f"a chat template has no {', '.join(sorted(_NOT_VARIABLES & variables.keys()))} here")
        template = compiled(self._source(variables["tools"]), self.path)
        stand_ins, back = self._stand_ins(template, [given, variables])
        keep = self._kept(template)
        exchange = functools.partial(_exchange, stand_ins=stand_ins, keep=keep)
        size = size_of([given, variables], 2**60)
        steps = STEPS + 4 * size + size // 16 * min(template.nodes, 5000)
        meter = Meter(steps, ROOM + 64 * size, LONGEST_PRINTED + 4 * size, frozenset(back))
        values = {**self.tokens, **exchange(variables), "add_generation_prompt": bool(add_generation_prompt)}
        values["messages"] = [{**exchange(message), "role": message["role"]} for message in given]
        with working(self.path, meter, "are the messages and variables what it asks for?"):
            text = template.render(values)
        if not text:
            raise CheckpointError(f"{self.path}: the chat template writes nothing for this conversation")
        longest_first = sorted(self._guards, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if longest_first else [text]
        table = str.maketrans(back)
        return [(part, [part]) if i % 2 else (part.translate(table), []) for i, part in enumerate(parts) if part]

    def _source(self, tools: Any) -> str:
        name = "tool_use" if tools is not None and "tool_use" in self.sources else "default"
        source = self.sources.get(name)
        if isinstance(source, CheckpointError):
            raise CheckpointError(str(source)) from source
        if source is None:
            names = short_name(", ".join(map(str, self.sources)))
            raise CheckpointError(f"{self.path}: several chat templates ({names}), and none of them is the default")
        if not isinstance(source, str) or len(source) > _LONGEST_TEMPLATE:
            raise CheckpointError(
                f"{self.path}: chat_template must be a string of at most {_LONGEST_TEMPLATE} characters"
            )
        return source

    def _stand_ins(self, template: "Template", data: Any) -> tuple[dict[str, str], dict[str, str]]:
        """Guard -> its stand-in, which occurs nowhere in what is rendered, and the other way round."""
        used = set(template.source).union(*_strings(data), *self.tokens.values(), *self._guards)
        free = (chr(i) for i in itertools.chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)) if chr(i) not in used)
        guards = sorted(set(self._guards.values()))
        stand_ins = dict(zip(guards, free, strict=False))
        if len(stand_ins) < len(guards):
            raise ValueError("these messages use up all private characters of Unicode, and some are needed here")
        return stand_ins, {stand_in: guard for guard, stand_in in stand_ins.items()}

    def _kept(self, template: "Template") -> re.Pattern[str]:
        """The tags that the template itself spells out and that have nothing to do with a control token."""
        tags = {tag for text in template.strings for tag in re.findall(r"</?\w+>", text)}
        tags = tags if len(tags) <= 100 else set()
        kept = [t for t in tags if not any(t in name or name in t for name in self._guards)]
        return re.compile("|".join(map(re.escape, sorted(kept, key=len, reverse=True))) or "(?!)")


def read_chat_template(folder: Path, control: Collection[str]) -> ChatTemplate | None:
    """The chat template of a folder in Hugging Face's layout; None if it has none.

    chat_template.jinja (and additional_chat_templates/*.jinja) come before the field in tokenizer_config.json, which
    is a string, or a list of {"name": ..., "template": ...}. A file that cannot be read is named once it is used.
    """
    config_path = folder / TOKENIZER_CONFIG_NAME
    config: dict[str, Any] = {}
    error = None
    if config_path.is_symlink() or config_path.exists():
        try:
            config = read_json(config_path)
        except CheckpointError as e:
            error = e
    more: list[Path] = []
    with contextlib.suppress(OSError):
        more = sorted((folder / CHAT_TEMPLATES_FOLDER).glob("*.jinja"))[:20]
    files = {"default": folder / CHAT_TEMPLATE_NAME, **{path.stem: path for path in more}}
    sources: dict[str, Any] = {
        name: _read_text(path) for name, path in files.items() if path.is_symlink() or path.exists()
    }
    if error:
        return ChatTemplate(config_path, dict.fromkeys(sources or ["default"], error), {}, control)
    tokens = {}
    for key, token in config.items():
        token = token.get("content") if isinstance(token, dict) else token
        if key.endswith("_token") and isinstance(token, str):
            tokens[key] = token
    if sources:
        return ChatTemplate(folder / CHAT_TEMPLATE_NAME, sources, tokens, control)
    field = config.get("chat_template")
    if field is None:
        return None
    if isinstance(field, list) and all(isinstance(entry, dict) for entry in field):
        field = {str(entry.get("name")): entry.get("template") for entry in field}
    named = field if isinstance(field, dict) else {"default": field}
    return ChatTemplate(config_path, named, tokens, control)


def _read_text(path: Path) -> str | CheckpointError:
    try:
        # As Python's text files: other ends of lines become newlines.
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except CheckpointError as e:
        return e
    except UnicodeDecodeError as e:
        return CheckpointError(f"{path}: not UTF-8 ({reason(e)}); download it again")


def _guard(name: str) -> str:
    """The character of a control token that user text may not bring: one that text and templates seldom look for."""
    return next((c for c in name if not c.isalnum() and c not in "_<>/ \n\t"), "<" if "<" in name else name[0])


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose thoughts go by every name that transformers gives them."""
    names = ("reasoning_content", "thinking", "reasoning")
    told = next((message[name] for name in names if message.get(name) is not None), None)
    return message if told is None else {"thinking": told, **message, "reasoning_content": told}


def _exchange(value: Any, stand_ins: Mapping[str, str], keep: re.Pattern[str]) -> Any:
    """Plain data with every guard exchanged for its stand-in, in keys and values, but for the tags to keep."""
    table = str.maketrans(dict(stand_ins))

    def exchange(value: Any) -> Any:
        if isinstance(value, str):
            kept = [*keep.findall(value), ""]
            return "".join(part.translate(table) + tag for part, tag in zip(keep.split(value), kept, strict=True))
        if isinstance(value, dict):
            return {exchange(key): exchange(item) for key, item in value.items()}
        return [exchange(item) for item in value] if isinstance(value, list) else value

    return exchange(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for child in children(value):
        yield from _strings(child)
