"""The commands: python -m llama3_scratch fetch | run | generate."""

import argparse
import itertools
import os
import sys
import time
import warnings
from pathlib import Path

from .files import CheckpointError
from .messages import reason


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llama3_scratch", description="Llama 3 from scratch.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetch_parser = commands.add_parser("fetch", help="get the small real model and Llama 3's vocabulary")
    fetch_parser.add_argument("names", nargs="*", help="what to get; without a name, all")
    run_parser = commands.add_parser("run", help="execute notebooks and write them as HTML")
    run_parser.add_argument("notebooks", nargs="*", type=Path, help="files; without any, all in notebooks/")
    run_parser.add_argument("--store", action="store_true", help="keep the outputs in the notebooks themselves")
    run_parser.add_argument("--build", type=Path, default=Path("build"), help="folder for the HTML (default: build)")
    write_parser = commands.add_parser("generate", help="let a model continue a text, or answer it")
    write_parser.add_argument("--checkpoint", help="a name or a folder; default: LLAMA3_CHECKPOINT, or the small model")
    write_parser.add_argument("--prompt", required=True)
    write_parser.add_argument("--chat", action="store_true", help="the prompt is a message to an instruct model")
    write_parser.add_argument("--max-new-tokens", type=int, default=128)
    write_parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most probable token")
    write_parser.add_argument("--top-p", type=float, default=1.0)
    write_parser.add_argument("--top-k", type=int)
    write_parser.add_argument("--seed", type=int)
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter shows a question mark
    try:
        return {"fetch": _fetch, "run": _run, "generate": _generate}[options.command](options)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as e:  # CheckpointError is a ValueError
        print(f"{e.filename}: {reason(e)}" if getattr(e, "filename", None) else e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "" if options.command == "generate" else "; to go on, run the same command again"
        print(f"\ninterrupted{again}", file=sys.stderr)
        return 130


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
    from . import notebooks

    paths = options.notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise CheckpointError(
            f"{missing[0] if missing else 'notebooks/'}: no notebook there; run this from the repository"
        )
    return 0 if notebooks.execute(paths, options.build, options.store) else 1


def _generate(options: argparse.Namespace) -> int:
    """The text goes to stdout as it comes, the figures to stderr."""
    from . import Llama, encode_chat, generate, load_checkpoint
    from .generation import decode_stream

    checkpoint = load_checkpoint(options.checkpoint)
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{checkpoint.path}: no tokenizer.json, so there is no way to read a prompt")
    if options.chat:
        tokens = encode_chat(tokenizer, [{"role": "user", "content": options.prompt}])
    else:
        tokens = tokenizer.encode(options.prompt, bos=tokenizer.add_bos)
    settings = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}
    ids = generate(Llama.from_checkpoint(checkpoint), tokens, stop_tokens=tokenizer.stop_tokens, **settings)
    times = [time.perf_counter()]  # the start, then the arrival of each token

    def timed():
        for id in ids:
            times.append(time.perf_counter())
            yield id

    for piece in itertools.chain([] if options.chat else [options.prompt], decode_stream(timed(), tokenizer)):
        print(piece, end="", flush=True)
    print(flush=True)
    written = len(times) - 1
    print(f"\nread {len(tokens)} tokens, wrote {written}", end="", file=sys.stderr)
    if written > 1:
        print(
            f", {(written - 1) / (times[-1] - times[1]):.1f} tokens per second after the first", end="", file=sys.stderr
        )
        print(f" ({times[1] - times[0]:.2f} s)", end="", file=sys.stderr)
    print(file=sys.stderr)
    return 0


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # the sentence, without a line of our source
    sys.exit(main())
