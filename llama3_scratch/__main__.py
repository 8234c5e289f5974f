"""The commands: llama3-scratch fetch | run | lab | generate | train, or python -m llama3_scratch ..."""

import argparse
import importlib.metadata
import importlib.util
import itertools
import os
import secrets
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from .checks import DTYPES
from .messages import CheckpointError, reason, sentence
from .training import command as training

_EXAMPLES = """examples:
  %(prog)s --prompt "The capital of France is"
  %(prog)s --chat --prompt "What is the capital of France?"
  %(prog)s --checkpoint path/to/model --dtype float32 --temperature 0.7 --top-p 0.9 --seed 1 --prompt "Once upon a time"
  %(prog)s --checkpoint path/to/Meta-Llama-3-8B --quantize int4 --keep --prompt "Once upon a time"
  %(prog)s < story.txt
  torchrun --nproc-per-node 2 -m llama3_scratch generate --checkpoint path/to/model --prompt "The capital of France is"
"""


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say; the exit status is 0 for success, 1 for a notebook that failed, 2 for what cannot be
    done as it was asked for, 130 after Ctrl-C.
    """
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command != "lab":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.others = others
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter shows a question mark
    try:
        return _COMMANDS[options.command](options)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as e:  # CheckpointError is a ValueError
        print(sentence(e), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "" if options.command == "generate" else "; to go on, run the same command again"
        print(f"\ninterrupted{again}", file=sys.stderr)
        return 130


def command_line() -> None:
    """main, for a shell."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # the sentence, without a line of our source
    sys.exit(main())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # of a machine's processes under torchrun, the first one tells it
            time.sleep(3)  # who ends first ends all
            raise SystemExit(2)
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    program = "llama3-scratch" if Path(sys.argv[0]).stem == "llama3-scratch" else "python -m llama3_scratch"
    parser = _Parser(
        prog=program,
        description="Llama 3 from scratch: fetch the small model, run the notebooks, let a model write.",
        epilog=f"'{program} COMMAND --help' says more of each.",
    )
    parser.add_argument("--version", action="version", version=f"llama3-scratch {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="get the small real model, Llama 3's vocabulary and a text to train on")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="smollm2-135m, llama3-tokenizer or alice; default: all")

    run = commands.add_parser("run", help="execute notebooks and make pages of them")
    run.add_argument("notebooks", nargs="*", type=Path, metavar="FILE", help="default: all in notebooks/")
    run.add_argument("--store", action="store_true", help="keep the outputs in the notebooks themselves")
    run.add_argument("--build", type=Path, default=Path("build"), help="folder for the pages; default: %(default)s")

    commands.add_parser(
        "lab",
        help="open copies of the notebooks in JupyterLab",
        description="Open copies of the notebooks, without outputs, in JupyterLab: yours, in my_notebooks/.",
        epilog="Other options go to JupyterLab, such as --no-browser and --port=9999.",
    )

    write = commands.add_parser(
        "generate",
        help="let a model continue a text, or answer it",
        description="Let a model continue a text, or answer it. The text goes to stdout, the figures to stderr.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    write.set_defaults(error=write.error)
    learn = commands.add_parser(
        "train",
        help="train a small model on a text, from nothing",
        description="Train a small model on a text, from random numbers. It is written in Meta's layout and in Hugging "
        "Face's.",
        epilog=training.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training.add_arguments(learn)
    write.add_argument("--prompt", metavar="TEXT", help="what to go on from; '-' or a pipe: all of stdin")
    write.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="a folder, a .gguf file or a name; default: the environment variable LLAMA3_CHECKPOINT, or smollm2-135m",
    )
    write.add_argument(
        "--dtype",
        choices=list(DTYPES),
        help="compute in it; default: LLAMA3_DTYPE, or the type of the file",
    )
    write.add_argument(
        "--quantize",
        choices=["int8", "int4"],
        help="pack the weights in 8 or 4 bits while they are opened (int4: the model's two ends in 8); "
        "less memory, nearly the same text",
    )
    write.add_argument(
        "--keep",
        action="store_true",
        help="with --quantize: keep the result beside the model, in a folder 'quantized', where later calls open it "
        "at once",
    )
    write.add_argument(
        "--parallel",
        choices=["tensor", "pipeline"],
        help="under torchrun, what a process has: a share of every matrix, or of the layers; default: tensor",
    )
    write.add_argument("--adapter", metavar="FOLDER", help="LoRA in peft's layout, added to the model")
    write.add_argument("--chat", action="store_true", help="the prompt is a message to an instruct model")
    write.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="stop after N tokens; default: %(default)s"
    )
    write.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0: always the most probable token; 1: as probable as the model says; default: %(default)s",
    )
    write.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the most probable tokens that together have this probability; default: %(default)s, all",
    )
    write.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable tokens; default: all")
    write.add_argument("--seed", type=int, metavar="N", help="draw the same again; default: another text each time")
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("llama3-scratch")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, without having been installed
        return "(not installed)"


def _fetch(options: argparse.Namespace) -> int:
    from . import fetch

    names = options.names
    unknown = set(names) - set(fetch.SOURCES)
    if unknown:
        raise CheckpointError(f"nothing to fetch by the name {sorted(unknown)[0]!r}; known: {', '.join(fetch.SOURCES)}")
    for name in names or fetch.SOURCES:
        print(f"{name}: {fetch.fetch(name)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    try:
        from . import runner
    except ModuleNotFoundError as e:
        raise ValueError(
            f"notebooks need {e.name}, which is not installed: pip install '.[notebooks]' brings it"
        ) from e

    paths = options.notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise CheckpointError(
            f"{missing[0] if missing else 'notebooks/'}: no notebook there; run this from the repository"
        )
    return 0 if runner.execute(paths, options.build, options.store) else 1


def _lab(options: argparse.Namespace) -> int:
    from . import lab

    if importlib.util.find_spec("jupyterlab") is None:
        raise ValueError("notebooks need jupyterlab, which is not installed: pip install '.[notebooks]' brings it")
    root = lab.find_root()
    first_time = not (root / lab.FOLDER).exists()
    for line in lab.copy_notebooks(root):
        print(line)
    copies = sorted(path.name for path in (root / lab.FOLDER).glob("*.ipynb"))
    place = f"{lab.FOLDER}/{copies[0]}" if first_time else lab.FOLDER
    return lab.open_lab(root, place, options.others)


def _prompt(options: argparse.Namespace) -> str:
    """What --prompt says, or stdin without its last line's end, which `echo` adds and nobody means."""
    if options.prompt not in (None, "-"):
        return str(options.prompt)
    if options.prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        options.error("a text is needed: say --prompt TEXT, or send one through a pipe")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as e:
        raise ValueError(f"stdin: not text in {sys.stdin.encoding} ({reason(e)})") from e
    if not text:
        options.error("nothing came through stdin: say --prompt TEXT, or send a text through a pipe")
    return text.removesuffix("\n").removesuffix("\r")


def _generate(options: argparse.Namespace) -> int:
    """The text goes to stdout as it comes, the figures to stderr."""

    from . import Llama, generate, load_checkpoint, lora, parallel
    from .checks import check_quantize
    from .loading.checkpoint import open_as_stored

    if parallel.launched():
        return _generate_with_others(options)
    if options.parallel:
        raise ValueError(
            f"--parallel {options.parallel} is for several processes: put 'torchrun --nproc-per-node 2 -m' before "
            "llama3_scratch, in the place of python -m"
        )
    if options.adapter and options.quantize:
        raise ValueError("--adapter stands beside weights as they are stored: leave --quantize out")
    prompt, dtype = _prompt(options), DTYPES.get(options.dtype)
    check_quantize(options.quantize, options.keep, dtype, None)
    checkpoint = (open_as_stored if options.quantize else load_checkpoint)(options.checkpoint, dtype)
    tokenizer = _known(checkpoint.tokenizer, checkpoint.path)
    tokens = _encode(tokenizer, prompt, options.chat)
    if options.quantize:
        model = Llama.from_checkpoint(options.checkpoint, dtype, quantize=options.quantize, keep=options.keep)
    else:
        model = Llama.from_checkpoint(checkpoint)
    if options.adapter:
        lora.load(model, options.adapter)
    ids = generate(model, tokens, stop_tokens=tokenizer.stop_tokens, **_settings(options))
    _write(ids, tokenizer, prompt, len(tokens), options)
    return 0


def _known(tokenizer: Any, path: Path) -> Any:
    if tokenizer is None:
        raise CheckpointError(f"{path}: no tokenizer.json, so there is no way to read a prompt")
    return tokenizer


def _encode(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    from . import encode_chat

    if chat:
        return list(encode_chat(tokenizer, [{"role": "user", "content": prompt}]))
    return list(tokenizer.encode(prompt, bos=tokenizer.add_bos))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}


def _write(ids: Iterator[int], tokenizer: Any, prompt: str, count: int, options: argparse.Namespace) -> None:
    from .generation import decode_stream

    times = [time.perf_counter()]  # the start, then the arrival of each token

    def timed() -> Iterator[int]:
        for id in ids:
            times.append(time.perf_counter())
            yield id

    try:
        for piece in itertools.chain([] if options.chat else [prompt], decode_stream(timed(), tokenizer)):
            print(piece, end="", flush=True)
    finally:
        print(flush=True)  # what follows, an error perhaps, has a line of its own
    written = len(times) - 1
    print(f"\nread {count} tokens, wrote {written}", end="", file=sys.stderr)
    if written > 1:
        print(
            f", {(written - 1) / (times[-1] - times[1]):.1f} tokens per second after the first", end="", file=sys.stderr
        )
        print(f" ({times[1] - times[0]:.2f} s)", end="", file=sys.stderr)
    print(file=sys.stderr)


def _generate_with_others(options: argparse.Namespace) -> int:
    """The same as one of several processes. The prompt and the settings are process 0's, and it alone writes."""
    from . import generate, parallel
    from .loading.checkpoint import find, read_tokenizer
    from .parallel.command import speaking_as_one

    tokenizer: Any = None

    def job() -> tuple[list[int], Any, dict[str, Any]]:
        nonlocal tokenizer
        path = find(options.checkpoint)
        tokenizer = _known(read_tokenizer(path, model.params.whole), path)
        settings = _settings(options)
        if settings["seed"] is None:
            settings["seed"] = secrets.randbits(62)  # the same for all
        return _encode(tokenizer, prompt, options.chat), tokenizer.stop_tokens, settings

    with speaking_as_one():
        parallel.join()
        if options.quantize:
            raise ValueError("--quantize is for one process: leave it out, or start without torchrun")
        if options.adapter:
            raise ValueError("--adapter is for one process: leave it out, or start without torchrun")
        prompt = parallel.from_first(lambda: _prompt(options))
        model: Any = parallel.load(options.checkpoint, options.parallel or "tensor", DTYPES.get(options.dtype))
        tokens, stop_tokens, settings = parallel.from_first(job)
        ids = parallel.in_the_same_words(generate(model, tokens, stop_tokens=stop_tokens, **settings), model)
        if parallel.rank() == 0:
            _write(ids, tokenizer, prompt, len(tokens), options)
        else:
            for _ in ids:
                pass
        parallel.leave()
    return 0


_COMMANDS = {"fetch": _fetch, "run": _run, "lab": _lab, "generate": _generate, "train": training.train_command}

if __name__ == "__main__":
    command_line()
