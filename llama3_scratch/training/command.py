"""The command `train`."""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..loading.export import LAYOUTS
from ..messages import say
from ..params import ModelArgs
from . import Settings, read_text
from .runs import Run, sample

EXAMPLES = """examples:
  %(prog)s
  %(prog)s --text my_letters.txt --out my_model --steps 1000 --dim 128
  LLAMA3_CHECKPOINT=my_model/meta make run

The same command goes on where it was interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    add, default = parser.add_argument, {field.name: field.default for field in fields(Settings)}
    add("--text", type=Path, metavar="FILE", help="to learn, in UTF-8; default: LLAMA3_TEXT, or Alice in Wonderland")
    add("--out", type=Path, default=Path("my_model"), metavar="FOLDER", help="for the model; default: %(default)s")
    size: dict[str, Any] = {"type": int, "metavar": "N"}
    add("--dim", default=64, help="width of the stream; default: %(default)s", **size)
    add("--layers", default=4, help="default: %(default)s", **size)
    add("--heads", default=4, help="query heads of a layer; default: %(default)s", **size)
    add("--kv-heads", default=2, help="key and value heads of a layer; default: %(default)s", **size)
    add("--vocab", default=512, help="tokens of the vocabulary that is learned first; default: %(default)s", **size)
    add("--tied", action="store_true", help="one matrix at both ends")
    add("--steps", default=default["steps"], help="default: %(default)s", **size)
    add("--batch", default=default["batch_size"], help="texts side by side; default: %(default)s", **size)
    add("--seq", default=default["seq_len"], help="tokens of each; default: %(default)s", **size)
    add("--learning-rate", type=float, default=default["learning_rate"], metavar="R", help="default: %(default)s")
    add("--warmup", default=default["warmup"], help="steps until the rate is that high; default: %(default)s", **size)
    add("--weight-decay", type=float, default=default["weight_decay"], metavar="W", help="default: %(default)s")
    add("--seed", default=default["seed"], help="of weights and batches; default: %(default)s", **size)
    add("--save-every", default=50, help="steps; an interrupted run loses fewer; default: %(default)s", **size)


def train_command(options: argparse.Namespace) -> int:
    """Figures and the text at the end go to stdout, the progress bar to stderr."""
    params = ModelArgs(
        options.dim,
        options.layers,
        options.heads,
        options.vocab,
        n_kv_heads=options.kv_heads,
        multiple_of=32,  # Llama 3's are made for larger ones
        rope_theta=1e4,
    )
    settings = Settings(
        steps=options.steps,
        batch_size=options.batch,
        seq_len=options.seq,
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        seed=options.seed,
    )
    if options.save_every < 1:
        raise ValueError(f"--save-every must be at least 1 step, not {options.save_every}")
    if not options.out.name:
        raise ValueError("--out must name a folder of its own, such as my_model")
    run = Run(read_text(options.text), options.out, params, settings, options.tied)
    numbers = sum(p.numel() for p in run.model.parameters())
    _tell(f"{len(run.ids):,} tokens to learn from, {len(run.held_out_ids):,} held out; a model of {numbers:,} numbers")
    for report in run.run(options.save_every):
        _tell(
            f"step {report.steps:>5}  loss {report.loss:.2f}  "
            f"held out {report.held_out:.2f}, {report.bits_per_byte:.2f} bits a byte"
        )
    start_of = run.held_out_text if run.held_out_text.strip() else run.training_text
    _tell(f"\n{sample(run.model, run.tokenizer, start_of)}\n")
    _tell(f"the model is in {' and '.join(str(run.folder / layout) for layout in LAYOUTS)}")
    return 0


def _tell(line: str) -> None:
    """Print a line. The training goes on if nobody reads it any more."""
    try:
        say(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
