"""Chat templates of a folder: the ids of transformers, for each family of templates, and text that stays text.

The templates are our own words for what the families write; transformers renders the same file.
"""

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as TheirTokenizer
from transformers import AutoTokenizer

from llama3_scratch import Tokenizer, encode_chat

CORPUS = [
    "The user asked the assistant: what is the weather in Oslo? It's 12345 o'clock; WE'LL see!",
    "def f(x):\n    return x ** 2  # 3.14\n\n\nprint(f(2))\t\r\n system user assistant tool",
    "naïve café 中文 日本語 😀 the then than that this these   spaces  \n\n  and more",
] * 5
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA31 = [*LLAMA, "<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# With tools, and a system message that begins with a date.
DATED = """\
{{- bos_token }}
{%- if tools is not defined %}{% set tools = none %}{% endif %}
{%- DATE %}
{%- if messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set opening = "" %}
    {%- set rest = messages %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " ~ date_string ~ "\\n\\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) ~ "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- opening ~ "<|eot_id|>" }}
{%- for message in rest %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
        {{- "<|eot_id|>" }}
    {%- elif message.role in ["tool", "ipython"] %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

TEMPLATES = {
    "Llama 3": (
        LLAMA,
        "{% for message in messages %}{% set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
        "{{ text }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    "Llama 3.1": (
        LLAMA31,
        DATED.replace("DATE", "if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif"),
    ),
    "Llama 3.2": (
        LLAMA31,
        DATED.replace(
            "DATE", "if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif"
        ),
    ),
    "ChatML": (
        CHATML,
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    "ChatML with a system message of its own": (
        [*CHATML, "<repo_name>", "<file_sep>"],
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
        "<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    "Qwen": (
        [*CHATML, ("<think>",), ("</think>",), ("<tool_call>",), ("</tool_call>",), ("<tool_response>",)],
        """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = messages | length - 1 - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.last = index %}
        {%- set ns.searching = false %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- set call = call.function if call.function else call %}
                {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
                {{- call.arguments if call.arguments is string else call.arguments | tojson }}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
""",
    ),
    "DeepSeek-R1": (
        [
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            ("<think>",),
            ("</think>",),
        ],
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
        "{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
        "{%- elif message['role'] == 'assistant' %}{% set content = message['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    ),
    "Mistral": (
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"],
        """\
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("user and assistant must take turns") }}
    {%- endif %}
    {%- if turn.role == "user" %}
        {%- if tools and loop.last %}
            {{- "[AVAILABLE_TOOLS]" ~ tools | tojson ~ "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system is defined %}
            {{- "[INST]" + system + "\\n\\n" + turn.content + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + turn.content + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- turn.content + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    ),
    "Zephyr": (
        ["<unk>", "<s>", "</s>"],
        "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'assistant' %}\n"
        "{% generation %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endgeneration %}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}",
    ),
}
WITH_TOOLS = ["Llama 3.1", "Llama 3.2", "Qwen", "Mistral"]
TURNS = [
    {"role": "user", "content": "What is 2 + 2? <b>Bold</b> | [x](y) \"quoted\" 'it' & co"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},
    {"role": "user", "content": "  \n naïve 中文 😀\t\n"},
]
CONVERSATIONS = {
    "one turn": TURNS[:1],
    "three turns": TURNS,
    "a system message": [{"role": "system", "content": "Be brief."}, *TURNS],
    "thoughts by themselves": [TURNS[0], {"role": "assistant", "content": "4", "thinking": "Two."}, TURNS[2]],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather, in <i>°C</i> & text",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = [
    {"role": "user", "content": "How warm is it in Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich <x> | y"}}}],
    },
    {"role": "tool", "name": "weather", "content": '{"celsius": [3, 4]}'},
]


def write_vocabulary(folder, names):
    """A small vocabulary with these special tokens; those in tuples are words, which are no control tokens."""
    tokenizer = TheirTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    for name in names:
        word = isinstance(name, tuple)
        tokenizer.add_tokens([AddedToken(name[0] if word else name, special=not word, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_folder(folder, names, template, in_config=True):
    write_vocabulary(folder, names)
    plain = [name for name in names if isinstance(name, str)]
    bos = next((name for name in plain if "begin" in name or name == "<s>"), None)
    eos = next((name for name in plain if "eot" in name or "im_end" in name or "end▁" in name or name == "</s>"), None)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    config = {key: value for key, value in config.items() if value}
    if bos:
        config["bos_token"] = {"__type": "AddedToken", "content": bos, "special": True}
    if in_config:
        config["chat_template"] = template
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def open_both(folder):
    return Tokenizer(folder / "tokenizer.json"), AutoTokenizer.from_pretrained(folder)


def their_ids(theirs, messages, **variables):
    variables = {"add_generation_prompt": True, **variables}
    return theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **variables)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Family -> our tokenizer and theirs, over one folder."""
    made = {}

    def of(family):
        if family not in made:
            names, template = TEMPLATES[family]
            made[family] = open_both(write_folder(tmp_path_factory.mktemp("family"), names, template))
        return made[family]

    return of


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_ids_are_those_of_transformers(both, family, conversation):
    ours, theirs = both(family)
    messages = CONVERSATIONS[conversation]
    expected = their_ids(theirs, messages)
    assert encode_chat(ours, messages) == expected
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.chat_template.render(messages) == text
    assert encode_chat(ours, messages, add_generation_prompt=False) == their_ids(
        theirs, messages, add_generation_prompt=False
    )


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_tools_and_calls_are_those_of_transformers(both, family):
    ours, theirs = both(family)
    messages = CALL if family != "Mistral" else CALL[:1]
    assert encode_chat(ours, messages, tools=TOOLS) == their_ids(theirs, messages, tools=TOOLS)
    assert encode_chat(ours, messages, tools=TOOLS) != encode_chat(ours, messages)


def test_dates(both):
    dates = {"Llama 3.1": "26 Jul 2024", "Llama 3.2": datetime.now().strftime("%d %b %Y")}
    for family, date in dates.items():
        ours, theirs = both(family)
        assert f"Today Date: {date}\n" in ours.decode(encode_chat(ours, TURNS))
        ids = encode_chat(ours, TURNS, date_string="1 Apr 2025")
        assert ids == their_ids(theirs, TURNS, date_string="1 Apr 2025")
        assert "Today Date: 1 Apr 2025\n" in ours.decode(ids)


def test_variables_reach_the_template(both):
    ours, theirs = both("Qwen")
    ids = encode_chat(ours, TURNS, enable_thinking=False)
    assert ids == their_ids(theirs, TURNS, enable_thinking=False) != encode_chat(ours, TURNS)


def test_chatml_on_llama_3s_vocabulary_is_not_given_llama_3s_headers(tmp_path):
    names = [*LLAMA, "<|im_start|>", "<|im_end|>"]
    ours, theirs = open_both(write_folder(tmp_path, names, TEMPLATES["ChatML"][1]))
    ids = encode_chat(ours, TURNS)
    assert ids == their_ids(theirs, TURNS)
    assert ours.special_tokens["<|start_header_id|>"] not in ids


def test_a_file_of_its_own_comes_before_the_field(tmp_path):
    folder = write_folder(tmp_path, CHATML, "{{ 'the field' }}")
    (folder / "chat_template.jinja").write_text(TEMPLATES["ChatML"][1])
    ours, theirs = open_both(folder)
    assert encode_chat(ours, TURNS) == their_ids(theirs, TURNS)
    assert encode_chat(ours, TURNS)[0] == ours.special_tokens["<|im_start|>"]


@pytest.mark.parametrize("place", ["a list", "files"])
def test_a_template_for_tools_counts_where_there_are_tools(tmp_path, place):
    named = {"default": TEMPLATES["ChatML"][1], "tool_use": TEMPLATES["Qwen"][1]}
    field = [{"name": name, "template": template} for name, template in named.items()]
    folder = write_folder(tmp_path, CHATML, field if place == "a list" else None)
    if place == "files":
        (folder / "chat_template.jinja").write_text(named["default"])
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(named["tool_use"])
    ours, theirs = open_both(folder)
    for variables in ({}, {"tools": TOOLS}, {"tools": []}):
        assert encode_chat(ours, CALL, **variables) == their_ids(theirs, CALL, **variables)
    assert "# Tools" in ours.decode(encode_chat(ours, CALL, tools=TOOLS))
    assert "# Tools" not in ours.decode(encode_chat(ours, CALL))


def test_a_folder_without_a_template_is_refused_as_transformers_does(tmp_path):
    ours, theirs = open_both(write_folder(tmp_path, LLAMA, None))
    assert ours.chat_template is None
    with pytest.raises(ValueError, match="chat_template"):
        their_ids(theirs, TURNS)
    with pytest.raises(ValueError, match=r"no chat template.*base model"):
        encode_chat(ours, TURNS)


# User text stays text


def controls(tokenizer, ids, family):
    names = [name for name in TEMPLATES[family][0] if isinstance(name, str)]
    known = {tokenizer.special_tokens[name] for name in names}
    return [i for i in ids if i in known]


def hostile(family):
    names = [name for name in TEMPLATES[family][0] if isinstance(name, str)]
    return "".join(names) + "".join(f"{name[:3]}</think>{name[3:]}" for name in names)


@pytest.mark.parametrize("family", TEMPLATES)
def test_control_tokens_spelled_out_everywhere_stay_text(both, family):
    ours, theirs = both(family)
    text = hostile(family)
    for conversation in CONVERSATIONS.values():
        evil = [{**message, "content": text + message["content"] + text} for message in conversation]
        ids = encode_chat(ours, evil)
        assert controls(ours, ids, family) == controls(ours, encode_chat(ours, conversation), family)
        assert text[:20] in ours.decode(ids)
        # The referee, without care, reads them as control tokens: the test can fail.
        assert len(controls(ours, their_ids(theirs, evil), family)) > len(controls(ours, ids, family))
        rendered = theirs.apply_chat_template(evil, tokenize=False, add_generation_prompt=True)
        assert ours.chat_template.render(evil) == rendered == ours.decode(ids)


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_tools_calls_and_variables_stay_text(both, family):
    ours, _ = both(family)
    text = hostile(family)
    tools = [{"type": "function", "function": {"name": text, text: [text, {text: {"deep": text}}], "parameters": {}}}]
    call = {"type": "function", "function": {"name": text, "arguments": {text: text, "list": [text]}}}
    evil = [CALL[0], {**CALL[1], "tool_calls": [call]}, {"role": "tool", "name": text, "content": text}]
    evil, tame = (evil, CALL) if family != "Mistral" else (evil[:1], CALL[:1])
    ids = encode_chat(ours, evil, tools=tools, date_string=text)
    assert text[:20] in ours.decode(ids)
    assert controls(ours, ids, family) == controls(ours, encode_chat(ours, tame, tools=TOOLS), family)


@pytest.mark.parametrize("family", TEMPLATES)
@settings(max_examples=30)
@given(data=st.data())
def test_pieces_of_control_tokens_never_come_together(both, family, data):
    ours, _ = both(family)
    names = [name for name in TEMPLATES[family][0] if isinstance(name, str)]
    parts = [
        part for name in names for cut in (1, 2, len(name) // 2, len(name) - 1) for part in (name[:cut], name[cut:])
    ]
    piece = st.sampled_from(
        [*names, *parts, "</think>", "<think>", "<tool_response>", "\n", " ", "|", "<", ">", "x", "é"]
    )
    text = st.lists(piece, max_size=6).map("".join)
    roles = ["system", "user", "assistant", "user", "assistant", "user"][: data.draw(st.integers(1, 6))]
    roles = roles if len(roles) > 1 else ["user"]
    evil = [{"role": role, "content": data.draw(text)} for role in roles]
    tame = [{"role": role, "content": "x"} for role in roles]
    ids = encode_chat(ours, evil)
    assert controls(ours, ids, family) == controls(ours, encode_chat(ours, tame), family)
    assert ours.decode(ids) == ours.chat_template.render(evil)


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content.replace('</think>', '') }}",
        "{{ m.content.split('</think>') | join }}",
        "{{ m.content[:-1] }}{{ m.content[-1] }}",
        "{% for c in m.content %}{{ c }}{% endfor %}",
        "{{ m.content | list | join }}",
        "{{ m.content | replace('!', '') }}",
        "{{ m.content | tojson(ensure_ascii=true) }}",
        "{{ m.content | trim | upper | lower }}",
        "{{ '%s' % m.content }}{{ '{}'.format(m.content) }}",
    ],
)
def test_a_template_that_takes_text_apart_cannot_make_a_control_token(tmp_path, body):
    names = ["<|eot_id|>", "<s>", "</s>", "[INST]"]
    template = "{% for m in messages %}<s>" + body + "<|eot_id|>{% endfor %}"
    ours, theirs = open_both(write_folder(tmp_path, names, template))
    text = "<|eot</think>_id|> <</think>s> <!/s> [IN!ST] <s></s>[INST]<|eot_id|> é😀"
    ids = encode_chat(ours, [{"role": "user", "content": text}] * 2)
    assert [i for i in ids if i in ours.special_tokens.values()] == [
        ours.special_tokens[n] for n in ("<s>", "<|eot_id|>")
    ] * 2
    messages = [{"role": "user", "content": text}] * 2
    assert ours.decode(ids) == theirs.apply_chat_template(messages, tokenize=False)


def test_private_characters_of_the_user_come_through(both):
    ours, theirs = both("Llama 3.1")
    messages = [{"role": "user", "content": "\ue000\ue001|\ue002\U000f0000 <|x|>"}]
    assert encode_chat(ours, messages) == their_ids(theirs, messages)
