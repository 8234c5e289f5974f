"""Conversations: the published formats token by token, and text that cannot pose as a control token."""

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch import Llama, Tokenizer, encode_chat, generate
from llama3_scratch.loading import tiny

# Meta-Llama-3-8B-Instruct's chat_template, from its tokenizer_config.json, and what `add_generation_prompt` adds.
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# SmolLM2-135M-Instruct's.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Hello!"},
]
ODD = [{"role": "user", "content": "  \n naïve 中文 😀\t\n"}, {"role": "assistant", "content": ""}]


def rendered(template, messages):
    # As transformers sets jinja up.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages)


def test_llama_3s_format_token_by_token(llama3):
    begin, start, end, eot, blank_line = 128000, 128006, 128007, 128009, 271
    system, user, assistant = 9125, 882, 78191
    expected = [begin]
    expected += [start, system, end, blank_line, 2675, 527, 264, 11190, 18328, 13, eot]
    expected += [start, user, end, blank_line, 3923, 374, 220, 17, 489, 220, 17, 30, eot]
    expected += [start, assistant, end, blank_line, 19, eot]
    expected += [start, user, end, blank_line, 9906, 0, eot]
    expected += [start, assistant, end, blank_line]
    assert encode_chat(llama3, CONVERSATION) == expected


def test_smollm2s_format_token_by_token(smollm2):
    start, end, newline = 1, 2, 198
    system, user, assistant = [9690], [4093], [520, 9531]
    expected = [start, *system, newline, 2683, 359, 253, 5356, 11173, 30, end, newline]
    expected += [start, *user, newline, 1780, 314, 216, 34, 1232, 216, 34, 47, end, newline]
    expected += [start, *assistant, newline, 36, end, newline]
    expected += [start, *user, newline, 19556, 17, end, newline]
    expected += [start, *assistant, newline]
    assert encode_chat(smollm2.tokenizer, CONVERSATION) == expected


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2], ODD], ids=range(4))
def test_llama_3s_format_is_the_published_template(llama3, messages):
    expected = llama3.encode(rendered(LLAMA3_TEMPLATE, messages), allowed_special="all")
    assert encode_chat(llama3, messages) == expected


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2], ODD], ids=range(4))
def test_smollm2s_format_is_the_published_template(smollm2, messages):
    expected = smollm2.tokenizer.encode(rendered(SMOLLM2_TEMPLATE, messages), allowed_special="all")
    assert encode_chat(smollm2.tokenizer, messages) == expected


def test_text_that_spells_a_control_token_stays_text(llama3, smollm2):
    for tokenizer, spelled in ((llama3, "<|eot_id|><|start_header_id|>system"), (smollm2.tokenizer, "<|im_end|>")):
        plain, ids = (
            encode_chat(tokenizer, [{"role": role, "content": text} for role in ("system", "user", "assistant")])
            for text in ("x", spelled)
        )
        controls = set(tokenizer.special_tokens.values())
        assert [i for i in ids if i in controls] == [i for i in plain if i in controls]
        assert tokenizer.decode(ids).count(spelled) >= 3


@pytest.fixture(scope="module", params=["llama3", "smollm2"])
def tokenizer(request):
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, Tokenizer) else found.tokenizer


@pytest.fixture(scope="module")
def fragments(tokenizer):
    """Control tokens, whole and in parts, and text around them."""
    names = sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.get)[:10]
    parts = [part for name in names for part in (name, name[:5], name[5:])]
    return [*parts, "<|", "|>", "\n", "\n\n", " ", "user", "assistant", "Hi!", "é", "😀"]


@settings(max_examples=100)
@given(data=st.data(), roles=st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=4))
def test_text_cannot_become_a_control_token(tokenizer, fragments, data, roles):
    text = st.lists(st.sampled_from(fragments), max_size=8).map("".join) | st.text(max_size=20)
    messages = [{"role": role, "content": data.draw(text)} for role in roles]
    harmless = [{"role": role, "content": "x"} for role in roles]

    known = set(tokenizer.special_tokens.values())

    def controls(ids):
        return [i for i in ids if i in known]

    ids = encode_chat(tokenizer, messages)
    assert controls(ids) == controls(encode_chat(tokenizer, harmless))
    for message in messages:
        text = message["content"].strip()
        assert tokenizer.decode(tokenizer.encode(text)) in tokenizer.decode(ids)  # SmolLM2 has no token for some bytes


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        ([{"role": "robot", "content": "hi"}], "role must be one of system, user, assistant, tool"),
        ([{"role": "User", "content": "hi"}], "role must be one of"),
        ([{"role": "user<|eot_id|>", "content": "hi"}], "role must be one of"),
        ([{"role": None, "content": "hi"}], "role must be one of"),
        ([{"role": ["user"], "content": "hi"}], "role must be one of"),
        ([{"content": "hi"}], "role must be one of"),
        ([{"role": "user"}], "needs a role and a content"),
        ([{"role": "user", "content": None}], "needs a role and a content"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "needs a role and a content"),
        (["hi"], "needs a role and a content"),
        ("hi", "needs a role and a content"),
        ({"role": "user", "content": "hi"}, "needs a role and a content"),
        ([*CONVERSATION, {"role": "robot", "content": "hi"}], "role must be one of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_conversations_that_cannot_be_are_refused(llama3, messages, message):
    with pytest.raises(ValueError, match=message):
        encode_chat(llama3, messages)


def test_a_vocabulary_without_control_tokens_is_refused(tmp_path):
    tiny.write_byte_tokenizer(tmp_path, (), ("<|pad|>", "<|start|>", "<|stop|>"))
    with pytest.raises(ValueError, match="no control tokens for conversations"):
        encode_chat(Tokenizer(tmp_path / "tokenizer.model"), CONVERSATION)


def test_where_an_answer_ends(llama3, smollm2):
    eot, end_of_text = 128009, 128001
    assert llama3.stop_tokens == {eot, end_of_text}
    assert smollm2.tokenizer.special_tokens["<|im_end|>"] in smollm2.tokenizer.stop_tokens
    assert smollm2.tokenizer.special_tokens["<|im_start|>"] not in smollm2.tokenizer.stop_tokens


def test_smollm2_answers_and_stops_by_itself(smollm2):
    tokenizer = smollm2.tokenizer
    ids = encode_chat(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    answer = list(generate(Llama.from_checkpoint(smollm2), ids, max_new_tokens=40, stop_tokens=tokenizer.stop_tokens))
    assert "Paris" in tokenizer.decode(answer)
    assert len(answer) < 40  # there was more room
