"""What the command line takes: prompts from a pipe, a dtype, a version; and that its help can be used."""

import io
import re
import shutil
import sys

import pytest
import torch
from helpers import random_gguf_tensors, write_gguf

from llama3_scratch import Llama, generate_text, load_checkpoint
from llama3_scratch.__main__ import main

PROMPT = "Once upon a time"


@pytest.fixture
def write(tiny_folder, capsys):
    """Runs `generate` on a tiny model: exit status, stdout, stderr."""

    def run(*arguments):
        try:
            code = main(
                ["generate", "--checkpoint", str(tiny_folder("tiny-ratio1")), "--max-new-tokens", "3", *arguments]
            )
        except SystemExit as e:  # argparse's way out
            code = e.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def pipe(monkeypatch):
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


@pytest.mark.parametrize("arguments", [[], ["--prompt", "-"]], ids=["pipe", "dash"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_prompt_comes_through_a_pipe_without_the_end_of_its_line(write, pipe, arguments, end):
    expected = write("--prompt", PROMPT)[:2]
    pipe(PROMPT.encode() + end)
    assert write(*arguments)[:2] == expected
    assert expected[0] == 0


def test_only_the_last_end_of_line_is_dropped(write, pipe):
    pipe(b"one\ntwo\n\n")
    assert write()[1].startswith("one\ntwo\n")


def test_a_pipe_is_not_read_where_there_is_a_prompt(write, pipe):
    pipe(b"something else")
    assert write("--prompt", PROMPT)[1].startswith(PROMPT)
    assert sys.stdin.read() == "something else"


def test_a_prompt_is_needed_at_a_terminal(write, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    for stdin in (terminal, None):
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, err = write()
        assert (code, out) == (2, "") and "--prompt" in err


def test_an_empty_pipe_is_no_prompt(write, pipe):
    pipe(b"")
    code, out, err = write()
    assert (code, out) == (2, "") and "--prompt" in err


def test_bytes_that_are_no_text_are_refused_in_one_line(write, pipe):
    pipe(b"\xff\xfe\x00")
    code, out, err = write()
    assert (code, out) == (2, "")
    assert "stdin" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64"])
def test_a_dtype_is_the_one_that_is_computed_in(write, monkeypatch, name):
    seen, real = [], Llama.from_checkpoint

    def noted(checkpoint, **options):
        model = real(checkpoint, **options)
        seen.append({weight.dtype for weight in model.parameters()})
        return model

    monkeypatch.setattr(Llama, "from_checkpoint", noted)
    assert write("--prompt", PROMPT, "--dtype", name)[0] == 0
    assert seen == [{getattr(torch, name)}]


def test_without_a_dtype_it_is_the_file_s(write, tiny_folder):
    stored = load_checkpoint(tiny_folder("tiny-ratio1")).weights["norm.weight"].dtype
    assert write("--prompt", PROMPT)[:2] == write("--prompt", PROMPT, "--dtype", str(stored).removeprefix("torch."))[:2]


def test_a_dtype_that_is_none_is_refused(write):
    code, out, err = write("--prompt", PROMPT, "--dtype", "int8")
    assert (code, out) == (2, "") and "bfloat16" in err


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_quantize_packs_the_weights_and_keep_keeps_them(tiny_folder, tmp_path, capsys, how):
    folder = shutil.copytree(tiny_folder("tiny-ratio1"), tmp_path / "m")
    options = ["--checkpoint", str(folder), "--prompt", PROMPT, "--max-new-tokens", "3", "--quantize", how]
    model, tokenizer = Llama.from_checkpoint(folder, quantize=how), load_checkpoint(folder).tokenizer
    expected = PROMPT + "".join(generate_text(model, tokenizer, PROMPT, max_new_tokens=3)) + "\n"
    said = []
    for more in ([], ["--keep"], ["--dtype", "float32"]):
        assert main(["generate", *options, *more]) == 0
        said.append(capsys.readouterr().out)
        assert (folder / "quantized" / f"{how}.safetensors").exists() == (len(said) > 1)
    assert said == [expected] * 3


def test_keep_and_dtypes_that_do_not_go_with_it_are_refused_before_anything_is_read(write):
    for arguments, word in ((["--keep"], "quantize"), (["--quantize", "int4", "--dtype", "float64"], "dtype")):
        code, out, err = write("--prompt", PROMPT, "--checkpoint", "nowhere", *arguments)
        assert (code, out) == (2, "") and word in err and len(err.splitlines()) == 1


def test_a_gguf_file_writes(tmp_path, capsys):
    path = write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors())
    arguments = ["generate", "--checkpoint", str(path), "--prompt", "the", "--max-new-tokens", "3"]
    assert main(arguments) == 0 and main([*arguments, "--quantize", "int4"]) == 0
    assert capsys.readouterr().out.startswith("the")


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert re.match(r"llama3-scratch \S+", capsys.readouterr().out)


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = capsys.readouterr().out
    options = text[text.index("options:") : text.index("examples:")]
    for name in (
        "prompt",
        "checkpoint",
        "dtype",
        "quantize",
        "keep",
        "chat",
        "max-new-tokens",
        "temperature",
        "top-p",
        "top-k",
        "seed",
    ):
        assert re.search(rf"^  --{name}( \S+)?\s+\w", options, re.MULTILINE), name
    for default in ("128", "0.0", "1.0", "LLAMA3_CHECKPOINT", "LLAMA3_DTYPE"):
        assert default in options


def test_the_examples_of_the_help_are_commands(capsys):
    import shlex

    from llama3_scratch.__main__ import _parser

    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    examples = [line for line in capsys.readouterr().out.split("examples:")[1].splitlines() if line.strip()]
    assert len(examples) >= 3
    for line in examples:
        words = shlex.split(line.split(" < ")[0])
        assert _parser().parse_args(words[words.index("generate") :]).command == "generate"
