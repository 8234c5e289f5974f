"""Run the cells of notebooks without a kernel each: `python run_cells.py tagged|all|drawn REPORT NOTEBOOK...`, or, for
many runs in one process, without arguments. Then each line of stdin asks for a run:

    ["tagged", "report.jsonl", ["01_tokenizer.ipynb"], {"LLAMA3_PROMPT": "hi"}]

names the outputs to compare, where to report, the notebooks, and the environment. It is answered by a line as soon as
the report is written. torch and the rest are imported once, and the notebooks then run in forks of this process, so
that a dozen of them take little more time than their arithmetic. Notebooks that begin with the same cells, like copies
of one with a fault each, run these cells together and part where they differ: each then goes on in a fork that has all
variables of the cells before it.

How each ended is written to the report as a line of JSON, [notebook, traceback or null]; a notebook is left at its
first failure. One whose process ended has no line. `tagged` compares outputs of cells tagged nbval-check-output with
the stored ones, `all` compares all but those tagged nbval-ignore-output. Neither turns a picture into an image, which
takes most of the time and is not compared; `drawn` is `tagged` with images of all pictures but those that the notebook
stores, and leaves out what would do the same again whatever the checkpoint: cells tagged own-model, which train a model
of their own, and any-checkpoint. `nbval` and `near` run nbval, with a kernel for each notebook (forked_kernels.py),
where all of it is run and every picture becomes an image; the report is junit's. Without a kernel, the processes that a
notebook starts with torchrun are forks, too (forked_torchrun.py); with one, all but the first.
"""

import functools
import gc
import json
import os
import subprocess
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import forked_kernels
import forked_torchrun
import nbformat
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat import NotebookNode
from traitlets.config import Config

from llama3_scratch.plots import Picture

REAL_IMAGE = Picture._repr_mimebundle_
Cells = dict[Path, list[NotebookNode]]  # the code cells of each notebook


def in_a_fork(function: Callable[..., None], *arguments: object) -> None:
    """Call it in a copy of this process, which then ends."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def alike(notebooks: Cells, at: int) -> list[Cells]:
    """The notebooks, in groups of those that have the same cell `at`, or none. The largest group comes last."""
    groups: dict[str, Cells] = defaultdict(dict)
    for path, cells in notebooks.items():
        groups[json.dumps(cells[at : at + 1], sort_keys=True)][path] = cells
    return sorted(groups.values(), key=len)


def run_on(notebooks: Cells, at: int, which: str, report: Path) -> None:
    """Run notebooks that were the same up to cell `at`. Where they part, all but the largest group go on in forks."""
    shell = InteractiveShell.instance()
    wrong = None
    while not wrong:
        *others, notebooks = alike(notebooks, at)
        for group in others:
            in_a_fork(run_on, group, at, which, report)
        cells = next(iter(notebooks.values()))
        if at == len(cells):
            break
        wrong = failure(cells[at], which, shell)
        at += 1
    tell(notebooks, wrong, report)


def tell(notebooks: Iterable[Path], wrong: str | None, report: Path) -> None:
    with report.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps([str(path), wrong]) + "\n" for path in notebooks)


def failure(cell: NotebookNode, which: str, shell: InteractiveShell) -> str | None:
    """The traceback of a cell that fails, or how its output differs; None if nothing is wrong."""
    tags = cell.metadata.get("tags", ())
    if which == "drawn":
        if {"own-model", "any-checkpoint"} & {*tags}:
            return None
        data = [output.get("data", {}) for output in cell.outputs]
        known = [texts["text/plain"] for texts in data if "image/png" in texts]
        Picture._repr_mimebundle_ = functools.partialmethod(image_unless_known, known)
    with capture_output() as shown:
        result = shell.run_cell(cell.source, store_history=True)
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        said = "".join(traceback.format_exception(error))
        return f"{cell.source}\n\n{said}"
    if "nbval-ignore-output" not in tags if which == "all" else "nbval-check-output" in tags:
        got = shown.stdout + "".join(output.data.get("text/plain", "") for output in shown.outputs)
        if lines(got) != lines(stored(cell)):
            return f"{cell.source}\n\nAssertionError: stored\n{stored(cell)}\nbut now\n{got}"
    return None


def image_unless_known(picture: Picture, known: list[str], **options: object) -> tuple[dict, dict]:
    """No image of a picture with the words and numbers of a stored one: it would be the stored one again."""
    told = repr(picture)
    return ({"text/plain": told}, {}) if told in known else REAL_IMAGE(picture, **options)


def stored(cell: NotebookNode) -> str:
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    return "".join(texts)


def lines(text: str) -> list[str]:
    """Without empty ones: a terminal leaves one above a value of several lines, a notebook none."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def run(which: str, report: str, notebooks: list[str], environment: dict[str, str]) -> None:
    """What one line asks for. It changes this process, and is called in a fork."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    if which in ("nbval", "near"):
        forked_kernels.run(which, report, notebooks)
        return
    subprocess.run = forked_torchrun.run
    # No file of what was run: a thread writes it, and a fork has no threads but its own.
    quiet = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(colors="NoColor", config=quiet)
    shell.displayhook.write_output_prompt = lambda: None  # no "Out[5]:" before a value
    shell.showtraceback = lambda *_, **__: None  # `failure` tells it, without colours that take a tenth of a second
    if which != "drawn":
        Picture._repr_mimebundle_ = lambda self, **_: ({"text/plain": repr(self)}, {})
    folders: dict[Path, Cells] = defaultdict(dict)
    for path in map(Path, notebooks):
        cells = nbformat.read(path, as_version=4).cells
        folders[path.parent][path] = [cell for cell in cells if cell.cell_type == "code"]
    for folder, cells_of in folders.items():
        os.chdir(folder)
        for group in alike(cells_of, 0):
            in_a_fork(run_on, group, 0, which, Path(report))


def serve() -> None:
    """Answer the lines of stdin."""
    asked, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what a cell reads and prints past Python is none of these
    os.dup2(2, 1)
    # What torch imports when these are first called, once for all forks: a second each. They multiply nothing, since
    # MKL reads at its first product whether a fork wants the kernels that are the same on every processor.
    torch.testing.assert_close(torch.ones(1), torch.ones(1))
    torch.optim.AdamW([torch.ones(1, requires_grad=True)])
    torch.func.jvp(torch.neg, (torch.ones(1),), (torch.ones(1),))
    gc.freeze()  # a collection in a fork would write to each object, and so copy the memory of them all
    gc.enable()
    for line in asked:
        in_a_fork(run, *json.loads(line))
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        which, report, *notebooks = sys.argv[1:]
        run(which, str(Path(report).resolve()), [str(Path(name).resolve()) for name in notebooks], dict(os.environ))
    else:
        serve()
