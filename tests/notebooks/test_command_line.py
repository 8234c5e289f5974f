"""python -m llama3_scratch generate: text on stdout, figures on stderr, and errors in one line."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from helpers import hf_greedy, hf_model

from llama3_scratch import Llama, encode_chat, generate_text, load_checkpoint
from llama3_scratch.__main__ import main

PROMPT = "the question is 😀"


def said(capsys, *arguments):
    code = main(["generate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def folder(tiny_folder):
    return tiny_folder("tiny-ratio1")


def test_prompt_and_text_go_to_stdout_and_figures_to_stderr(folder, capsys):
    ckpt = load_checkpoint(folder)
    ids = ckpt.tokenizer.encode(PROMPT, bos=True)
    written = ckpt.tokenizer.decode(hf_greedy(hf_model(ckpt.params, ckpt.weights), ids, 6))
    code, out, err = said(capsys, "--checkpoint", folder, "--prompt", PROMPT, "--max-new-tokens", 6)
    assert code == 0
    assert out == f"{PROMPT}{written}\n"
    assert re.fullmatch(
        rf"\s*read {len(ids)} tokens, wrote 6, [\d.,]+ tokens per second after the first \([\d.]+ s\)\s*", err
    )


def test_the_same_from_a_shell_by_name(tmp_path):
    command = [sys.executable, "-m", "llama3_scratch", "generate", "--checkpoint", "tiny-ratio3", "--prompt", PROMPT]
    environment = {"LLAMA3_HOME": str(tmp_path), "PATH": "", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--max-new-tokens", "5"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    ckpt = load_checkpoint(tmp_path / "tiny-ratio3")
    pieces = generate_text(Llama.from_checkpoint(ckpt), ckpt.tokenizer, PROMPT, max_new_tokens=5)
    assert done.stdout.decode() == f"{PROMPT}{''.join(pieces)}\n"
    assert b"tokens per second" in done.stderr and b"Warning" not in done.stderr


@pytest.mark.parametrize("count", [0, 1])
def test_no_speed_is_claimed_without_a_second_token(folder, capsys, count):
    code, _, err = said(capsys, "--checkpoint", folder, "--prompt", "hi", "--max-new-tokens", count)
    assert code == 0
    assert err.strip() == f"read 3 tokens, wrote {count}"


def test_a_seed_makes_sampled_text_repeatable(folder, capsys):
    def text(seed):
        options = ["--temperature", "1.5", "--top-p", "0.95", "--top-k", "100", "--max-new-tokens", "20"]
        return said(capsys, "--checkpoint", folder, "--prompt", "hi", *options, "--seed", seed)[1]

    assert text(1) == text(1) != text(2)


def test_the_checkpoint_of_the_environment_is_the_default(folder, capsys, monkeypatch):
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(folder))
    named = said(capsys, "--checkpoint", folder, "--prompt", "hi", "--max-new-tokens", 3)
    assert said(capsys, "--prompt", "hi", "--max-new-tokens", 3)[:2] == named[:2]


def test_a_chat_prints_the_answer_alone(folder, capsys):
    code, out, err = said(capsys, "--checkpoint", folder, "--prompt", "hi", "--chat", "--max-new-tokens", 4)
    ckpt = load_checkpoint(folder)
    ids = encode_chat(ckpt.tokenizer, [{"role": "user", "content": "hi"}])
    pieces = generate_text(Llama.from_checkpoint(ckpt), ckpt.tokenizer, ids, max_new_tokens=4)
    assert (code, out) == (0, "".join(pieces) + "\n")
    assert f"read {len(ids)} tokens" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "llama-4"], "no checkpoint of that name"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--top-p", "1.5"], "top_p"),
        (["--top-k", "0"], "top_k"),
        (["--max-new-tokens", "-1"], "max_new_tokens"),
        (["--max-new-tokens", "100000"], "context_len"),
        (["--seed", str(2**64)], "seed"),
        (["--prompt", ""], "no tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line(tiny_folder, capsys, arguments, message):
    defaults = ["--checkpoint", tiny_folder("tiny-ratio3"), "--prompt", "hi"]  # tiny-ratio3 has no token to open with
    code, out, err = said(capsys, *defaults, *arguments)
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("file", ["consolidated.00.pth", "params.json", "tokenizer.model"])
def test_a_broken_checkpoint_is_refused_in_one_line(folder, tmp_path, capsys, file):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / file).write_text("<html>\n\n")
    code, out, err = said(capsys, "--checkpoint", broken, "--prompt", "hi")
    assert (code, out) == (2, "")
    assert file in err and len(err.splitlines()) == 1


def test_a_folder_without_a_tokenizer_cannot_read_a_prompt(tiny_folder, tmp_path, capsys):
    ckpt = load_checkpoint(tiny_folder("tiny-ratio3"))
    hf_model(ckpt.params, ckpt.weights).save_pretrained(tmp_path / "hf")
    capsys.readouterr()
    with pytest.warns(UserWarning, match="no tokenizer"):
        code, out, err = said(capsys, "--checkpoint", tmp_path / "hf", "--prompt", "hi")
    assert (code, out) == (2, "")
    assert "tokenizer" in err


def test_a_base_model_without_control_tokens_cannot_chat(tiny_folder, capsys):
    code, out, err = said(capsys, "--checkpoint", tiny_folder("tiny-ratio3"), "--prompt", "hi", "--chat")
    assert (code, out) == (2, "")
    assert "no control tokens" in err


def test_text_comes_as_it_is_written(folder, capsys, monkeypatch):
    """When the model stops in the middle, what it wrote so far is there."""
    real, calls = Llama.forward, []

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(Llama, "forward", interrupted)
    code, out, err = said(capsys, "--checkpoint", folder, "--prompt", "hi")
    assert code == 130 and "interrupted" in err
    assert out.startswith("hi") and len(out) > len("hi")


def test_params_json_with_other_keys_still_opens(folder, tmp_path, capsys):
    other = shutil.copytree(folder, tmp_path / "other")
    params = json.loads((other / "params.json").read_text()) | {"vision_chunk_size": 448}
    (other / "params.json").write_text(json.dumps(params))
    with pytest.warns(UserWarning, match="vision_chunk_size"):
        assert said(capsys, "--checkpoint", other, "--prompt", "hi", "--max-new-tokens", 1)[0] == 0


def test_a_reader_who_has_seen_enough_is_no_error(folder):
    command = [sys.executable, "-m", "llama3_scratch", "generate", "--checkpoint", str(folder), "--prompt", "a" * 99]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 0
