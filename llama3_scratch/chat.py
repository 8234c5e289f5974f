"""Conversations as tokens. An instruct model has learned to answer texts in one exact format."""

from collections.abc import Iterable, Mapping, Sequence

from .messages import expect, short
from .tokenizer import LLAMA3_BOS, Tokenizer

ROLES = ("system", "user", "assistant", "ipython")  # the last one carries what tools returned, in Llama 3.1
# What SmolLM2 was trained to see where a conversation does not begin with a system message.
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation, ending where the assistant is to speak.

    Each message is {"role": "system", "user" or "assistant", "content": text}. The format is the one whose control
    tokens the vocabulary has: Llama 3's, or SmolLM2's. Text is text: a message that spells out "<|eot_id|>" does not
    end its turn. Raises ValueError for no messages, another role, or a vocabulary that has neither format.
    """
    expect(tokenizer, Tokenizer, "tokenizer must be the checkpoint's tokenizer")
    messages = list(messages) if isinstance(messages, Iterable) else [messages]
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError(f"a message needs a role and a content, both text: {short(message)}")
        if message.get("role") not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, not {short(message.get('role'))}")
    if not messages:
        raise ValueError("no messages")
    if {LLAMA3_BOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= tokenizer.special_tokens.keys():
        return llama3_chat(tokenizer, messages)
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_tokens.keys():
        return smollm2_chat(tokenizer, messages)
    raise ValueError("this vocabulary has no control tokens for conversations; is it a base model?")


def llama3_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """<|begin_of_text|>, then <|start_header_id|>role<|end_header_id|>, two newlines, text and <|eot_id|> for each
    message, then an open header for the assistant (Meta's llama3/tokenizer.py, ChatFormat).
    """
    control = tokenizer.special_tokens

    def header(role: str) -> list[int]:
        name = tokenizer.encode(role)
        return [control["<|start_header_id|>"], *name, control["<|end_header_id|>"], *tokenizer.encode("\n\n")]

    ids = [control[LLAMA3_BOS]]
    for message in messages:
        ids += header(message["role"]) + tokenizer.encode(message["content"].strip()) + [control["<|eot_id|>"]]
    return ids + header("assistant")


def smollm2_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """<|im_start|>role, a newline, text, <|im_end|> and a newline for each message, then the assistant's opening.

    This is ChatML, with a first message of its own where the conversation has no system message.
    """
    control = tokenizer.special_tokens
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SMOLLM2_SYSTEM}, *messages]
    ids = []
    for message in messages:
        text = tokenizer.encode(f"{message['role']}\n{message['content']}")
        ids += [control["<|im_start|>"], *text, control["<|im_end|>"], *tokenizer.encode("\n")]
    return [*ids, control["<|im_start|>"], *tokenizer.encode("assistant\n")]
