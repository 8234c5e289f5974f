"""A folder's chat template is a stranger's program: broken, greedy or endless ones end in one sentence.

And what the vocabulary in Meta's layout says about conversations: the special tokens of Llama 3 and of 3.1, and calls
of tools, held against Meta's code where its wheel is at hand (LLAMA_MODELS_WHEEL=.../llama_models-0.3.0-...whl).
"""

import importlib
import json
import os
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import random_gguf_tensors, write_gguf
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from llama3_scratch import CheckpointError, Tokenizer, encode_chat
from llama3_scratch.loading import gguf as our_gguf
from llama3_scratch.loading.chat_template import ChatTemplate
from llama3_scratch.loading.tiny import write_byte_tokenizer
from llama3_scratch.loading.vocabulary import llama3_special_tokens

HELLO = [{"role": "user", "content": "hi"}]
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    """A folder with a small vocabulary; the files of Hugging Face beside it say more."""
    write_byte_tokenizer(tmp_path, (), ("<|pad|>", "<|im_start|>", "<|im_end|>"))
    return tmp_path


def write_template(folder, text):
    (folder / "chat_template.jinja").write_bytes(text.encode() if isinstance(text, str) else text)
    return Tokenizer(folder / "tokenizer.model")


# Doubles a value a hundred times, by what stands in the braces.
DOUBLE = "{% set ns = namespace(x='aaaa') %}{% for i in range(100) %}{% set ns.x = BODY %}{% endfor %}{{ ns.x }}"
NEST = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
ENDLESS = {
    "loops": NEST.replace("BODY", ""),
    "loops that write": NEST.replace("BODY", "x" * 100),
    "a loop that takes nothing": NEST.replace("(99999) %}BODY", "(99999) if false %}"),
    "filters": "{% for i in range(99999) %}{% set x = range(99999) | map('string') | list %}{% endfor %}",
    "tests": "{% for i in range(99999) %}{% set x = range(99999) | select('equalto', 'x') | list %}{% endfor %}",
    "in": "{% for i in range(99999) %}{% if 'x' in range(99999) %}{% endif %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(80) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "strings": "{{ 'a' * 10**9 }}",
    "strings and strings": "{% set x = 'a' * 10**6 %}{{ x * 10**6 }}",
    "lists": "{{ [1] * 10**9 }}",
    "numbers": DOUBLE.replace("'aaaa'", "3").replace("BODY", "ns.x * ns.x"),
    "powers": "{{ 9 ** (9 ** 9) }}",
    "~": DOUBLE.replace("BODY", "ns.x ~ ns.x"),
    "+": DOUBLE.replace("BODY", "ns.x + ns.x"),
    "join": DOUBLE.replace("BODY", "[ns.x, ns.x] | join"),
    "replace": DOUBLE.replace("BODY", "ns.x.replace('a', ns.x)"),
    "format": DOUBLE.replace("BODY", "'{0}{0}'.format(ns.x)"),
    "%": DOUBLE.replace("BODY", "'%s%s' % (ns.x, ns.x)"),
    "a list of lists": DOUBLE.replace("BODY", "[ns.x, ns.x]"),
    "a tuple as a key": DOUBLE.replace("BODY", "(ns.x, ns.x)").replace("ns.x }}", "{ns.x: 1} }}"),
    "a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLE.replace("BODY", "f(ns.x)"),
    "set": DOUBLE.replace("{% set ns.x = BODY %}", "{% set q %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = q %}"),
    "a width": "{{ 'a' | center(10**9) }}",
    "a width of a method": "{{ 'a'.ljust(10**9) }}",
    "a width with %": "{{ '%1000000000d' % 1 }}",
    "a width in braces": "{{ '{:>1000000000}'.format(1) }}",
    "a width inside": "{{ '{:{}}'.format(1, 10**9) }}",
    "a width in other digits": "{{ '{:>١٠٠٠٠٠٠٠٠٠}'.format(1) }}",
    "a width of a date": "{{ strftime_now('%01000000000d') }}",
    "an indent": "{{ ('\n' * 10**5) | indent(10**6) }}",
    "JSON": "{{ [1, 2] | tojson(indent=10**9) }}",
    "separators": "{{ (range(99999) | list) | tojson(separators=('a' * 10**6, '')) }}",
    "escapes": "{{ ('😀' * 4000000) | tojson(true) }}",
    "a separator": "{{ range(99999) | join('a' * 10**6) }}",
    "batches": "{{ [1] | batch(10**9, 'x') | list }}",
    "characters": "{{ ('😀' * 4000000) | list | length }}",
    "words": "{{ ('a-' * 5000000) | title }}",
    "a long path": "{{ range(99999) | map(attribute='0' + '.0' * 2400) | list }}",
    "sums of lists": "{{ range(99999) | batch(1) | sum(start=[]) }}",
    "a search from behind": "{{ ('a' * 2000000).rfind('b' + 'a' * 1000000) }}",
    "many characters to strip": "{{ ('a' * 2000000).strip('bcdefg' * 100000 + 'a') }}",
    "many operators": "{{ a" + "==a" * 16000 + "}}",
    "brackets": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "bytes of a number": "{{ (5).to_bytes(10**9, 'big') }}",
}
QUICK = 4  # seconds of this process; the meter means about one, and this machine may be slow


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_without_an_end_is_stopped_soon(folder, kind):
    tokenizer = write_template(folder, ENDLESS[kind])
    start = time.process_time()
    if kind == "many operators":  # this one comes to an end
        assert tokenizer.chat_template.render(HELLO) == "True"
    else:
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template"):
            encode_chat(tokenizer, HELLO)
    assert time.process_time() - start < QUICK


SLOW = {
    "filters",
    "tests",
    "calls",
    "in",
    "many operators",
    "loops",
    "sums of lists",
    "a tuple as a key",
}  # where every allocation is traced


@pytest.mark.parametrize("kind", [kind for kind in ENDLESS if kind not in SLOW])
def test_a_greedy_template_gets_little_memory(folder, kind):
    tokenizer = write_template(folder, ENDLESS[kind])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            encode_chat(tokenizer, HELLO)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


BROKEN = {
    "syntax": ("{% for %}", "line 1"),
    "an unknown filter": ("{{ messages | nonsense }}", "nonsense"),
    "what is not there": ("{{ absent.field }}", "absent"),
    "another file": ("{% include '/etc/passwd' %}", "fails"),
    "Python's inside": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "a function's inside": ("{{ raise_exception.__globals__.os }}", "unsafe"),
    "a namespace's inside": ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "underscore"),
    "changing messages": ("{{ messages.append(1) }}", "append"),
    "nothing": ("", "nothing"),
    "too long": ("a" * 60_000, "50000"),
    "not UTF-8": (b"\xff\xfe", "UTF-8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_template_is_named_once_it_is_used(folder, kind):
    content, word = BROKEN[kind]
    tokenizer = write_template(folder, content)
    assert tokenizer.decode(tokenizer.encode("plain text")) == "plain text"
    with pytest.raises(CheckpointError) as error:
        encode_chat(tokenizer, HELLO)
    message = str(error.value)
    assert str(folder / "chat_template.jinja") in message
    assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "field", [5, True, ["a"], [{"name": "rag", "template": "x"}], {"rag": "x"}, [{"name": "default"}]]
)
def test_a_field_that_holds_no_template_is_named_once_it_is_used(folder, field):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": field}))
    tokenizer = Tokenizer(folder / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: .*chat.template"):
        encode_chat(tokenizer, HELLO)


@pytest.mark.parametrize("with_template", [False, True])
def test_a_configuration_that_cannot_be_read_is_not_passed_over(folder, with_template):
    (folder / "tokenizer_config.json").write_text("{")
    if with_template:
        write_template(folder, CHATML)
    tokenizer = Tokenizer(folder / "tokenizer.model")
    assert tokenizer.decode(tokenizer.encode("plain text")) == "plain text"
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        encode_chat(tokenizer, HELLO)


def test_what_a_template_refuses_is_its_own_sentence(folder):
    tokenizer = write_template(folder, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"take this conversation .*roles must alternate") as error:
        encode_chat(tokenizer, HELLO)
    assert not isinstance(error.value, CheckpointError)  # the conversation is at fault, not the file


@pytest.mark.parametrize(
    ("messages", "variables", "word"),
    [
        ([], {}, "no messages"),
        ("hi", {}, "role"),
        ([{"content": "hi"}], {}, "role"),
        ([{"role": "<|im_end|>", "content": "hi"}], {}, "role"),
        ([{"role": "user", "content": object()}], {}, "plain data"),
        ([{"role": "user", "content": "hi"}], {"tools": [len]}, "plain data"),
        ([{"role": "user", "content": "hi"}], {"continue_final_message": True}, "continue_final_message"),
        ([{"role": "user"}], {}, "content"),
    ],
)
def test_messages_that_cannot_be_are_refused(folder, messages, variables, word):
    tokenizer = write_template(folder, CHATML)
    with pytest.raises(ValueError, match=word):
        encode_chat(tokenizer, messages, **variables)


def test_messages_that_hold_themselves_are_refused(folder):
    message = {"role": "user", "content": "hi"}
    message["more"] = [message]
    with pytest.raises(ValueError, match="nested too deeply"):
        encode_chat(write_template(folder, CHATML), [message])


def test_a_long_conversation_is_not_taken_for_an_endless_one(folder):
    loop = "{% for m in messages %}{% if m.content | trim and m != messages[-1] %}{% endif %}{% endfor %}" * 10
    tokenizer = write_template(folder, loop + CHATML)
    messages = [{"role": "user", "content": "many words | " * 100}] * 1000
    assert len(tokenizer.chat_template.render(messages)) > 1_300_000


def test_templates_render_side_by_side(folder, tmp_path):
    """Each rendering has its own meter and its own stand-ins."""
    tokenizer = write_template(folder, CHATML)
    conversations = [[{"role": "user", "content": f"{'|' * n}\ue000 {n}"}] for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda messages: encode_chat(tokenizer, messages), conversations))
    assert together == [encode_chat(tokenizer, messages) for messages in conversations]


def test_tokens_come_from_the_folder_and_are_control_tokens_where_the_template_writes_them(folder):
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "mask_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = write_template(folder, "{{ bos_token }}x{{ eos_token }}{{ mask_token }}")
    start, end = (tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert encode_chat(tokenizer, HELLO) == [start, *tokenizer.encode("x"), end]


# Meta's layout


LLAMA31_IDS = {  # llama-models, llama3/tokenizer.py
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|reserved_special_token_0|>": 128002,
    "<|reserved_special_token_1|>": 128003,
    "<|finetune_right_pad_id|>": 128004,
    "<|step_id|>": 128005,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eom_id|>": 128008,
    "<|eot_id|>": 128009,
    "<|python_tag|>": 128010,
    "<|image|>": 128011,
    "<|reserved_special_token_2|>": 128012,
    "<|reserved_special_token_245|>": 128255,
}


@pytest.fixture(scope="module")
def llama31(llama3, tmp_path_factory):
    """Meta's folder of Llama 3.1: the same tokenizer.model, and params.json beside it."""
    folder = tmp_path_factory.mktemp("llama31")
    (folder / "tokenizer.model").symlink_to(llama3.path)
    (folder / "params.json").write_text(json.dumps({"dim": 4096, "use_scaled_rope": True}))
    return Tokenizer(folder / "tokenizer.model")


def test_special_tokens_of_llama_31(llama31, llama3):
    assert LLAMA31_IDS.items() <= llama31.special_tokens.items()
    assert len(llama31.special_tokens) == 256
    assert llama31.stop_tokens == {128001, 128008, 128009}
    assert llama31.vocab_size == llama3.vocab_size == 128256


@pytest.mark.parametrize("params", [None, {}, {"use_scaled_rope": False}, {"use_scaled_rope": "yes"}])
def test_special_tokens_of_llama_3(llama3, tmp_path, params):
    (tmp_path / "tokenizer.model").symlink_to(llama3.path)
    if params is not None:
        (tmp_path / "params.json").write_text(json.dumps(params))
    tokenizer = Tokenizer(tmp_path / "tokenizer.model")
    names = ["<|reserved_special_token_2|>", "<|reserved_special_token_4|>", "<|reserved_special_token_250|>"]
    assert [tokenizer.special_tokens[name] for name in names] == [128004, 128008, 128255]
    assert tokenizer.stop_tokens == {128001, 128009}


def test_broken_params_beside_a_vocabulary_are_named(llama3, tmp_path):
    (tmp_path / "tokenizer.model").symlink_to(llama3.path)
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"params\.json"):
        Tokenizer(tmp_path / "tokenizer.model")


def test_llama_31_stops_the_same_in_both_layouts(llama3, tmp_path):
    """The first 5,000 of Meta's ranks, and the tokenizer.json that transformers makes of them."""
    meta, theirs = tmp_path / "meta", tmp_path / "theirs"
    meta.mkdir()
    theirs.mkdir()
    lines = llama3.path.read_text().splitlines()[:5000]
    (meta / "tokenizer.model").write_text("\n".join(lines))
    (meta / "params.json").write_text('{"use_scaled_rope": true}')
    names = list(llama3_special_tokens(5000, llama31=True))
    converted = TikTokenConverter(str(meta / "tokenizer.model"), extra_special_tokens=names).converted()
    PreTrainedTokenizerFast(
        tokenizer_object=converted, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    ).save_pretrained(theirs)
    (theirs / "generation_config.json").write_text(json.dumps({"eos_token_id": [5001, 5008, 5009]}))
    ours, other = Tokenizer(meta / "tokenizer.model"), Tokenizer(theirs / "tokenizer.json")
    assert ours.special_tokens == other.special_tokens
    assert ours.stop_tokens == other.stop_tokens == {5001, 5008, 5009}


def call(tool, **arguments):
    return {"type": "function", "function": {"name": tool, "arguments": arguments}}


def with_call(*calls, content=""):
    return [
        {"role": "system", "content": "Environment: ipython"},
        {"role": "user", "content": "hi é"},
        {"role": "assistant", "content": content, "tool_calls": list(calls)},
        {"role": "tool", "content": '{"a": 1}'},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "ok"},
    ]


CALLS = {
    "JSON": with_call(call("weather", city="Oslo", k=[1, 2, True])),
    "code": with_call(call("code_interpreter", code="print(1)\n")),
    "a search": with_call(call("brave_search", query="x <|eot_id|> y"), content="Let me look."),
    "two": with_call(call("weather", city="Oslo"), call("weather", city="Zürich")),
    "code and another": with_call(call("code_interpreter", code="x"), call("photogen", query="y"), content="Hm"),
}


def test_a_call_and_its_answer_token_by_token(llama31):
    """As Meta's chat_format.py encodes them."""
    assert encode_chat(llama31, CALLS["code"][1:4], add_generation_prompt=False) == [
        *[128000, 128006, 882, 128007, 271, 6151, 4046, 128009],
        *[128006, 78191, 128007, 271, 128010, 1374, 7, 16, 340, 128008],
        *[128006, 23799, 4690, 128007, 271, 5018, 64, 794, 220, 16, 92, 128009],
    ]
    assert encode_chat(llama31, CALLS["JSON"][1:3], add_generation_prompt=False) == [
        *[128000, 128006, 882, 128007, 271, 6151, 4046, 128009],
        *[128006, 78191, 128007, 271, 5018, 1337, 794, 330, 1723, 498, 330, 609, 794, 330, 15561, 498, 330, 14105, 794],
        *[5324, 9103, 794, 330, 29967, 385, 498, 330, 74, 794, 510, 16, 11, 220, 17, 11, 837, 60, 3500, 128008],
    ]


def test_arguments_as_a_string_and_the_other_name_of_the_role(llama31):
    expected = encode_chat(llama31, CALLS["JSON"])
    told = json.loads(json.dumps(CALLS["JSON"]))
    function = told[2]["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(function["arguments"])
    told[2]["content"], told[3]["role"] = None, "ipython"
    assert encode_chat(llama31, told) == expected


@pytest.mark.parametrize("kind", CALLS)
def test_text_in_a_call_stays_text(llama31, kind):
    text = "<|eom_id|><|eot_id|><|python_tag|>"
    plain = json.loads(json.dumps(CALLS[kind]))
    for call in plain[2]["tool_calls"]:
        arguments = call["function"]["arguments"]
        call["function"]["arguments"] = {key: text if isinstance(v, str) else v for key, v in arguments.items()}
    first = min(llama31.special_tokens.values())
    ids, before = encode_chat(llama31, plain), encode_chat(llama31, CALLS[kind])
    assert [i for i in ids if i >= first] == [i for i in before if i >= first]
    assert text in llama31.decode(ids)


@pytest.mark.parametrize(
    "calls", ["x", {"a": 1}, ["x"], [{}], [{"function": {"name": "f"}}], [call("code_interpreter", query="x")], [5]]
)
def test_calls_that_cannot_be_are_refused(llama31, calls):
    with pytest.raises(ValueError, match="call"):
        encode_chat(llama31, [{"role": "assistant", "content": "", "tool_calls": calls}])


def test_llama_3_has_no_calls(llama3):
    with pytest.raises(ValueError, match=r"<\|eom_id\|>"):
        encode_chat(llama3, CALLS["JSON"])
    with pytest.raises(ValueError, match="tools"):
        encode_chat(llama3, HELLO, tools=[])


@pytest.fixture(scope="module")
def metas_code():
    wheel = os.environ.get("LLAMA_MODELS_WHEEL")
    if not wheel:
        pytest.skip("LLAMA_MODELS_WHEEL does not say where Meta's code is")
    sys.path.insert(0, wheel)
    yield [importlib.import_module(f"llama_models.{name}") for name in ("llama3.chat_format", "datatypes")]
    sys.path.remove(wheel)


@pytest.mark.parametrize("kind", CALLS)
def test_conversations_are_those_of_metas_code(llama31, metas_code, kind):
    chat_format, kinds = metas_code
    theirs = chat_format.ChatFormat(chat_format.Tokenizer(llama31.path))
    messages = []
    for message in CALLS[kind]:
        functions = [call["function"] for call in message.get("tool_calls", [])]
        calls = [
            kinds.ToolCall(call_id="1", tool_name=function["name"], arguments=function["arguments"])
            for function in functions
        ]
        reason = kinds.StopReason.end_of_message if calls else kinds.StopReason.end_of_turn
        messages.append(
            kinds.RawMessage(role=message["role"], content=message["content"], tool_calls=calls, stop_reason=reason)
        )
    assert encode_chat(llama31, CALLS[kind]) == theirs.encode_dialog_prompt(messages).tokens
    assert llama31.special_tokens == theirs.tokenizer.special_tokens
    assert llama31.stop_tokens == set(theirs.tokenizer.stop_tokens)


# The small model


def test_a_vocabulary_that_is_not_smollm2s_is_not_given_its_name(folder):
    with pytest.raises(ValueError, match="no control tokens for conversations"):
        encode_chat(Tokenizer(folder / "tokenizer.model"), HELLO)


def test_a_template_beside_metas_vocabulary_is_used(folder):
    path = folder / "tokenizer_params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHATML}))
    tokenizer = Tokenizer(folder / "tokenizer.model")
    start, end = (tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert encode_chat(tokenizer, HELLO) == [start, *tokenizer.encode("user\nhi"), end, *tokenizer.encode("\n")]
    assert isinstance(tokenizer.chat_template, ChatTemplate)


def test_a_ggufs_template_is_kept(tmp_path):
    more = lambda writer: writer.add_chat_template(CHATML)  # noqa: E731
    write_gguf(tmp_path / "x.gguf", random_gguf_tensors(), more=more)
    our_gguf.write_gguf(tmp_path / "x.gguf", tmp_path)
    assert json.loads((tmp_path / "tokenizer_params.json").read_text())["chat_template"] == CHATML
