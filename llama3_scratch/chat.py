"""Conversations as tokens. An instruct model has learned to answer texts in one exact format."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .checks import check_chat_format, check_messages, check_tool_calls
from .messages import expect
from .tokenizer import Tokenizer


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
) -> list[int]:
    """Token ids of a conversation, ending where the assistant is to speak.

    Each message is {"role": "system", "user", "assistant" or "tool", "content": text}. The folder's chat template says
    the format; tools=[...], date_string="..." and other `variables` are for it. Without one, in Meta's layout, it is
    Llama 3's, to base models too, since they share the instruct models' tokenizer.model. (Hugging Face's template of
    Llama 3.1 opens with a dated system message; Meta's code, and so the format here, does not.)

    Text is text: a message that spells out "<|eot_id|>" does not end its turn. Here, text and control tokens are
    encoded apart; for a template, one character of each control token is exchanged for a stand-in wherever it occurs
    in messages and variables, until the tokens that the template itself wrote are cut out (loading/chat_template.py).
    Raises ValueError for messages that do not fit, a template that fails, or a vocabulary without a format.
    """
    expect(tokenizer, Tokenizer, "tokenizer must be the checkpoint's tokenizer")
    if tokenizer.chat_template is None:
        check_chat_format(tokenizer, variables)
        return llama3_chat(tokenizer, messages, add_generation_prompt)
    pieces = tokenizer.chat_template.pieces(messages, add_generation_prompt, **variables)
    return [i for text, allowed in pieces for i in tokenizer.encode(text, allowed_special=allowed)]


def llama3_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], open_turn: bool = True) -> list[int]:
    """<|begin_of_text|>, then <|start_header_id|>role<|end_header_id|>, two newlines, text and <|eot_id|> for each
    message, then an open header for the assistant (Meta's llama3/tokenizer.py and, since 3.1, chat_format.py).

    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}] in an assistant's message calls a
    tool: JSON, or code after <|python_tag|> for "code_interpreter". It ends in <|eom_id|>, as the turn goes on: what
    the tool returned follows as the content of role "tool" ("ipython" to the model).
    """
    control, encode = tokenizer.special_tokens, tokenizer.encode

    def header(role: str) -> list[int]:
        name = encode("ipython" if role == "tool" else role)
        return [control["<|start_header_id|>"], *name, control["<|end_header_id|>"], *encode("\n\n")]

    ids = [control["<|begin_of_text|>"]]
    for message in check_messages(messages, ("system", "user", "assistant", "tool", "ipython")):
        calls = check_tool_calls(message, control)
        ids += header(message["role"])
        if calls and calls[0][0] == "code_interpreter":
            ids.append(control["<|python_tag|>"])
        ids += encode(message["content"].strip())
        for name, arguments in calls:
            query = arguments.get("query")
            if name == "code_interpreter":
                ids += encode(arguments["code"])
            elif name in ("brave_search", "wolfram_alpha", "photogen"):  # which the models know from training
                ids += encode(f'{name}.call(query="{query}")')
            else:
                ids += encode(json.dumps({"type": "function", "name": name, "parameters": arguments}))
        ids.append(control["<|eom_id|>" if calls else "<|eot_id|>"])
    return ids + (header("assistant") if open_turn else [])
