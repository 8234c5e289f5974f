"""python -m llama3_scratch train: figures and a text on stdout, a model in two layouts, errors in one line, and a run
that goes on where it was interrupted. (Killed at random moments: loading/test_interruption.py.)
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from helpers import hf_greedy, random_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama3_scratch import Llama, ModelArgs, generate, load_checkpoint, lora, training
from llama3_scratch.__main__ import main
from llama3_scratch.loading.pth import read_pth
from llama3_scratch.training.runs import Run

TEXT = "\n\n".join(
    f"{i} The cat sat on mat number {i * i % 97}, and said {i % 7} words to dog {i % 11}." for i in range(99)
)
SMALL = {
    "--steps": 6,
    "--dim": 32,
    "--layers": 2,
    "--heads": 4,
    "--kv-heads": 2,
    "--vocab": 270,
    "--seq": 16,
    "--batch": 4,
    "--warmup": 2,
    "--save-every": 2,
}


@pytest.fixture(autouse=True)
def threads():
    """A run sets how many threads torch takes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def train(text, tmp_path, capsys):
    """Runs the command with small sizes: exit status, stdout, stderr."""

    def run(*flags, out="model", **changes):
        options = {"--text": text, "--out": tmp_path / out, **SMALL}
        options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        words = [str(word) for pair in options.items() for word in pair]
        try:
            code = main(["train", *words, *flags])
        except SystemExit as e:  # argparse's way out
            code = e.code
        return code, *capsys.readouterr()

    return run


def test_it_says_how_it_stands_and_writes_a_model_that_transformers_opens(train, tmp_path):
    code, out, err = train()
    assert code == 0 and "Traceback" not in err
    steps = re.findall(
        r"^step +(\d+)  loss (\d\.\d\d)  held out (\d\.\d\d), (\d\.\d\d) bits a byte$", out, re.MULTILINE
    )
    assert [int(step) for step, *_ in steps] == [2, 4, 6]
    assert str(tmp_path / "model" / "meta") in out and str(tmp_path / "model" / "huggingface") in out

    checkpoint = load_checkpoint(tmp_path / "model" / "meta")
    model, tokenizer = Llama.from_checkpoint(checkpoint), checkpoint.tokenizer
    training_text, held_out_text = training.split(TEXT)
    ids = tokenizer.encode(held_out_text)
    assert f"{len(tokenizer.encode(training_text)):,} tokens to learn from, {len(ids):,} held out" in out
    assert f"{sum(p.numel() for p in model.parameters()):,} numbers" in out
    nats = training.held_out(model, ids, SMALL["--seq"])
    assert float(steps[-1][2]) == pytest.approx(nats, abs=0.006)
    assert float(steps[-1][3]) == pytest.approx(training.bits_per_byte(nats, len(ids) - 1, held_out_text), abs=0.006)
    assert float(steps[-1][2]) < float(steps[0][2])

    folder = tmp_path / "model" / "huggingface"
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    prompt = AutoTokenizer.from_pretrained(folder)("The cat")["input_ids"]
    assert prompt == tokenizer.encode("The cat") and tokenizer.vocab_size == 270
    assert list(generate(model, prompt, 12)) == hf_greedy(theirs, prompt, 12)


def test_it_trains_as_the_functions_do(train, tmp_path):
    """The model that `train` leaves is the one of training.train with these settings, from this seed."""
    assert train(seed=3, learning_rate=0.01, weight_decay=0.3)[0] == 0
    checkpoint = load_checkpoint(tmp_path / "model" / "meta")
    settings = training.Settings(6, 4, 16, learning_rate=0.01, warmup=2, weight_decay=0.3, seed=3)
    torch.manual_seed(3)
    model = Llama(checkpoint.params)
    list(training.train(model, checkpoint.tokenizer.encode(training.split(TEXT)[0]), settings))
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, checkpoint.weights[key]), key
    assert checkpoint.params.n_kv_heads == 2 and checkpoint.params.dim == 32 and checkpoint.params.n_layers == 2


def test_tied_it_has_one_matrix_at_both_ends(train, tmp_path):
    assert train("--tied")[0] == 0
    model = Llama.from_checkpoint(tmp_path / "model" / "huggingface")
    assert model.output.weight is model.tok_embeddings.weight


def test_what_is_written_meanwhile_is_a_state_of_these_steps(train, tmp_path):
    train()
    state, _ = read_pth(tmp_path / "model" / "training" / "state.pth")
    assert state["history"].shape == (6, 3)
    settings = training.Settings(steps=6, warmup=2)
    assert state["history"][:, 2].tolist() == [training.learning_rate(step, settings) for step in range(6)]


def test_the_same_command_again_changes_nothing(train, tmp_path):
    train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*") if path.is_file()}
    code, out, _ = train()
    assert code == 0 and "step" not in out and "the model is in" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed"),
        ({"steps": 7}, "steps"),
        ({"dim": 64}, "dim"),
        ({"kv_heads": 4}, "n_kv_heads"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"vocab": 280}, "vocab_size"),
        ({"batch": 5}, "batch_size"),
    ],
    ids=str,
)
def test_other_settings_in_the_folder_of_a_run_are_refused(train, tmp_path, changes, words):
    train(steps=2) if "steps" in changes else train()
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    code, out, err = train(**changes)
    assert (code, out) == (2, "") and words in err and "run.json" in err and len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before


def test_another_text_in_the_folder_of_a_run_is_refused(train, text):
    train()
    text.write_text(TEXT + " And more.")
    code, out, err = train()
    assert (code, out) == (2, "") and "another text" in err and len(err.splitlines()) == 1


def test_a_tied_run_is_another_run(train):
    train()
    assert train("--tied")[0] == 2


def test_a_model_of_an_earlier_run_does_not_pass_for_the_result_of_a_new_one(train, tmp_path):
    """Its states were removed, as a message may advise, and not the model."""
    train()
    for path in (tmp_path / "model" / "training").iterdir():
        path.unlink()
    (tmp_path / "model" / "training").rmdir()
    code, out, err = train(seed=5)
    assert (code, out) == (2, "") and "meta" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": -3}, "steps"),
        ({"dim": 30}, "dim n_heads"),
        ({"dim": 12}, "even"),
        ({"dim": 0}, "dim"),
        ({"layers": 0}, "n_layers"),
        ({"heads": 3}, "dim"),
        ({"kv_heads": 3}, "n_kv_heads"),
        ({"vocab": 100}, "vocabulary 100"),
        ({"vocab": 100_000}, "100000 at most"),
        ({"seq": 0}, "seq_len"),
        ({"seq": 5000}, "short"),
        ({"batch": 0}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"warmup": -1}, "warmup"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"save_every": 0}, "save-every"),
        ({"text": "nowhere.txt"}, "nowhere.txt"),
        ({"dim": "many"}, "--dim"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_no_model(train, tmp_path, changes, words):
    code, _, err = train(**changes)
    assert code == 2 and all(word in err for word in words.split()), err
    assert "Traceback" not in err and (len(err.splitlines()) == 1 or "usage:" in err), err
    assert not list(tmp_path.rglob("meta")) and not list(tmp_path.rglob(".partial*"))


CONTENTS = {
    "latin-1": ("Größe".encode("latin-1") * 500, "UTF-8"),
    "empty": (b"", "empty"),
    "blanks": (b" \n" * 500, "empty"),
    "a few letters": (b"abc", "270"),
    "a word again and again": (b"a " * 5000, "270"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_text_that_teaches_nothing_is_refused_in_one_line(train, text, tmp_path, kind):
    content, words = CONTENTS[kind]
    text.write_bytes(content)
    code, _, err = train()
    assert code == 2 and words in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "model" / "training").exists()


def test_a_text_whose_end_is_blank_is_trained_on_to_the_end(train, text):
    text.write_text(TEXT + "\n" * 2000)
    code, out, err = train()
    assert code == 0 and "the model is in" in out, err


def test_a_text_without_spaces_is_trained_on_to_the_end(train, text):
    text.write_text("愛麗絲坐在河邊。" * 600, encoding="utf-8")
    status, out, _ = train()
    assert status == 0 and "愛麗" in out


@pytest.mark.parametrize("mistake", [{"seq": 9000}, {"save_every": 0}, {"seq": 5000}], ids=str)
def test_after_a_mistake_the_right_command_works_in_the_same_folder(train, tmp_path, mistake):
    assert train(**mistake)[0] == 2
    assert not (tmp_path / "model" / "training").exists()
    assert train()[0] == 0


def test_a_training_that_nobody_listens_to_goes_on(text, tmp_path):
    options = [str(one) for pair in SMALL.items() for one in pair]
    command = [sys.executable, "-m", "llama3_scratch", "train", "--text", str(text), "--out", str(tmp_path / "model")]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(60) == 0, process.stderr.read()
    assert (tmp_path / "model" / "meta").is_dir()


def test_a_rate_that_is_too_high_ends_in_one_line(train):
    code, _, err = train(learning_rate=1e28, steps=30)
    assert code == 2 and "learning rate" in err and "Traceback" not in err, err


DAMAGED = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "of another model": lambda path: torch.save({"model.norm.weight": torch.zeros(3)}, path),
    "without a history": lambda path: torch.save({k: v for k, v in torch.load(path).items() if k != "history"}, path),
    "longer than the run": lambda path: torch.save(torch.load(path) | {"history": torch.zeros(9, 3).double()}, path),
    "a history of another form": lambda path: torch.save(torch.load(path) | {"history": torch.zeros(6)}, path),
    "a pickle that runs": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR."),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_state_is_refused_by_its_name(train, tmp_path, kind):
    train(steps=4)
    DAMAGED[kind](tmp_path / "model" / "training" / "state.pth")
    code, _, err = train(steps=4)
    assert code == 2 and "state.pth" in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("value", [None, 0, -1, True, "2", 1e9, 10**9])
def test_a_damaged_description_of_a_run_is_refused_by_its_name(train, tmp_path, value):
    train(steps=2)
    path = tmp_path / "model" / "training" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": value}))
    code, _, err = train(steps=2)
    assert code == 2 and "run.json" in err and "threads" in err and len(err.splitlines()) == 1


def test_a_run_keeps_to_the_threads_that_it_was_begun_with(tmp_path):
    """Sums in other parts have other last digits."""
    params = ModelArgs(32, n_layers=1, n_heads=4, vocab_size=262)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        Run(TEXT, tmp_path / "model", params, training.Settings())
        assert torch.get_num_threads() == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_from_a_shell_ctrl_c_ends_it_in_a_line_and_the_same_command_goes_on(text, tmp_path, train):
    words = [str(word) for pair in (SMALL | {"--save-every": 1, "--steps": 300}).items() for word in pair]
    command = [sys.executable, "-m", "llama3_scratch", "train", "--text", text, "--out", tmp_path / "model", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # As from a shell, even where these tests run in the background, with Ctrl-C ignored.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    running = subprocess.Popen(command, env=environment, **pipes, **heard)
    lines = iter(running.stdout.readline, "")
    assert next(line for line in lines if line.startswith("step     3"))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "Traceback" not in err and err.splitlines()[-1] == "interrupted; to go on, run the same command again"
    assert not (tmp_path / "model" / "meta").exists()

    code, out, _ = train(steps=300, save_every=100)
    first = int(re.search(r"step +(\d+)", out)[1])
    assert code == 0 and 4 <= first <= 300
    assert train(steps=300, save_every=100, out="other")[0] == 0
    for layout, name in (("meta", "consolidated.00.pth"), ("huggingface", "model.safetensors")):
        files = [tmp_path / out / layout / name for out in ("model", "other")]
        assert files[0].read_bytes() == files[1].read_bytes()


def help_of(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def test_every_option_is_explained_and_the_examples_are_commands(capsys):
    from llama3_scratch.__main__ import _parser

    text = help_of("train", capsys)
    options = text[text.index("options:") : text.index("examples:")]
    for name in [*SMALL, "--text", "--out", "--seed", "--tied", "--learning-rate", "--weight-decay"]:
        assert re.search(rf"^  {name}( \S+)?\s+\w", options, re.MULTILINE), name
    defaults = training.Settings()
    for default in (defaults.steps, defaults.batch_size, defaults.seq_len, defaults.learning_rate, "LLAMA3_TEXT"):
        assert str(default) in options
    examples = [line for line in text.split("examples:")[1].splitlines() if " train" in line]
    assert len(examples) >= 2
    for line in examples:
        words = shlex.split(line)
        assert _parser().parse_args(words[words.index("train") :]).command == "train"


# What was taught is used by `generate`


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    model = Llama.from_checkpoint(tiny_folder("tiny-ratio1"))
    for p in lora.add(model, 2):
        p.data = 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)))
    return lora.save(model, tmp_path / "adapter"), model


def write(tiny_folder, capsys, *arguments):
    words = ["generate", "--checkpoint", tiny_folder("tiny-ratio1"), "--prompt", "hi", "--max-new-tokens", 8]
    code = main([str(word) for word in [*words, *arguments]])
    return code, *capsys.readouterr()


def test_generate_writes_with_an_adapter(tiny_folder, adapter, capsys):
    folder, model = adapter
    tokenizer = load_checkpoint(tiny_folder("tiny-ratio1")).tokenizer
    ids = list(generate(model, tokenizer.encode("hi", bos=True), 8))
    code, out, _ = write(tiny_folder, capsys, "--adapter", folder)
    assert (code, out) == (0, f"hi{tokenizer.decode(ids)}\n")
    assert out != write(tiny_folder, capsys)[1]


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(tiny_folder, adapter, capsys, tmp_path):
    folder, _ = adapter
    for arguments, words in (
        (["--adapter", tmp_path / "none"], "none"),
        (["--adapter", folder, "--quantize", "int8"], "--quantize"),
        (["--adapter", folder, "--checkpoint", tiny_folder("tiny-ratio3")], "adapter_model.safetensors"),
    ):
        code, out, err = write(tiny_folder, capsys, *arguments)
        assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1, err


def test_logits_with_an_adapter_in_sixteen_bits(tiny_folder, adapter):
    """`--dtype bfloat16`: the adapter stays in float32, and its part is rounded as it is added."""
    folder, model = adapter
    half = Llama.from_checkpoint(tiny_folder("tiny-ratio1"), dtype=torch.bfloat16)
    lora.load(half, folder)
    tokens = random_tokens(model.params, 12)
    with torch.no_grad():
        exact, rounded = model(tokens), half(tokens)
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()
