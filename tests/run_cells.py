"""Run the cells of notebooks without a kernel each: `python run_cells.py tagged|all|drawn REPORT NOTEBOOK...`

torch and the rest are imported once, and each notebook then runs in a fork of this process, so that a dozen of them
take little more time than their arithmetic. What went wrong is written to REPORT as JSON, notebook -> traceback; a
notebook is left at its first failure. `tagged` compares outputs of cells tagged nbval-check-output with the stored
ones, `all` compares all but those tagged nbval-ignore-output. Neither turns a picture into an image, which takes most
of the time and is not compared; `drawn` is `tagged` with images.
"""

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from llama3_scratch.plots import Picture


def failure(path: Path, which: str) -> str | None:
    """The traceback of the first cell that fails, or how an output differs; None if nothing does."""
    os.chdir(path.parent)
    torch.set_num_threads(1)
    shell = InteractiveShell.instance(colors="NoColor")
    shell.displayhook.write_output_prompt = lambda: None  # no "Out[5]:" before a value
    if which != "drawn":
        Picture._repr_mimebundle_ = lambda self, **_: ({"text/plain": repr(self)}, {})
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        with capture_output() as shown:
            result = shell.run_cell(cell.source, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            said = "".join(traceback.format_exception(error))
            return f"{cell.source}\n\n{said}"
        tags = cell.metadata.get("tags", ())
        if "nbval-ignore-output" not in tags if which == "all" else "nbval-check-output" in tags:
            got = shown.stdout + "".join(output.data.get("text/plain", "") for output in shown.outputs)
            if lines(got) != lines(stored(cell)):
                return f"{cell.source}\n\nAssertionError: stored\n{stored(cell)}\nbut now\n{got}"
    return None


def stored(cell: nbformat.NotebookNode) -> str:
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    return "".join(texts)


def lines(text: str) -> list[str]:
    """Without empty ones: a terminal leaves one above a value of several lines, a notebook none."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def in_a_fork(path: Path, which: str) -> str | None:
    """What `failure` says, from a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w", encoding="utf-8") as pipe, redirect_stdout(io.StringIO()):
            try:
                json.dump(failure(path, which), pipe)
            except BaseException:
                json.dump(traceback.format_exc(), pipe)
            pipe.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else "its process ended"


if __name__ == "__main__":
    which, report, *notebooks = sys.argv[1:]
    Path(report).write_text(
        json.dumps({name: in_a_fork(Path(name).resolve(), which) for name in notebooks}), encoding="utf-8"
    )
