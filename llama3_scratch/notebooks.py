"""Execute the notebooks: for a reader to browse, or to store their outputs in the repository."""

import os
import sys
import threading
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from .files import CheckpointError, read_bytes, write_whole
from .messages import reason

# For outputs that are the same everywhere and can be compared: float32 results that do not depend on the kind of x86
# CPU, and no progress bars, which show when a machine is slow. Read in the kernels, when torch and tqdm are imported.
# The last one lets waiting threads sleep: on a busy machine, spinning ones make small products three times slower.
SAME_EVERYWHERE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "TQDM_DISABLE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
CELL_SECONDS = 600
_ANSWERS_TAG = "answers"  # the cell whose output `run` repeats at the end


def execute(paths: list[Path], build: Path, store: bool = False) -> bool:
    """Run each notebook from top to bottom and write it as HTML into `build`; True if no cell failed.

    With `store`, a notebook that ran well replaces its file. Files are written whole: an interrupted run leaves the
    earlier ones.
    """
    os.environ.update(SAME_EVERYWHERE)
    build.mkdir(parents=True, exist_ok=True)
    failed, answers = [], []
    for path in paths:
        started = time.monotonic()
        print(f"  {path.stem:<28}", end="", flush=True)
        notebook = _read(path)
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            coalesce_streams=True,  # however the lines happened to arrive
            extra_arguments=["--log-level=50"],  # the kernel's remarks are not the reader's concern
        )
        try:
            _run(client)
        except CellExecutionError as e:
            failed.append((path, e))
        except (AssertionError, OSError, RuntimeError) as e:  # there is no room for its files, say
            raise OSError(f"{path}: its kernel did not start, or ended ({reason(e) or 'no reason given'})") from e
        _drop_machine_details(notebook)
        html, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
        write_whole(build / f"{path.stem}.html", html)
        ok = not failed or failed[-1][0] != path
        if ok and store:
            write_whole(path, nbformat.writes(notebook) + "\n")
        cells = sum(cell.cell_type == "code" for cell in notebook.cells)
        print(f"{cells:>4} cells {time.monotonic() - started:>6.1f} s  {'ok' if ok else 'FAILED'}", flush=True)
        answers += [_printed(cell) for cell in notebook.cells if _ANSWERS_TAG in cell.metadata.get("tags", ())]
    write_whole(build / "index.html", _index(paths))
    for path, error in failed:
        print(f"\n{path.name} stopped at a cell:\n{error}", file=sys.stderr)
    for text in answers:
        print(f"\n{text}", end="")
    print(f"\nRead them in a browser: {os.path.relpath(build / 'index.html')}")
    return not failed


def _run(client: NotebookClient):
    """Run all cells, in a thread: so that Ctrl-C reaches us, since nbclient would answer with tracebacks. The kernel
    ends by itself once this process has.
    """
    raised = []

    def work():
        try:
            client.execute()
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if raised:
        raise raised[0]


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        notebook = nbformat.reads(read_bytes(path).decode("utf-8"), as_version=4)
        nbformat.validate(notebook)
    except CheckpointError:
        raise
    except Exception as e:  # many kinds, as many as there are ways not to be a notebook
        raise ValueError(f"{path}: not a notebook") from e
    return notebook


def _drop_machine_details(notebook: nbformat.NotebookNode):
    # Which Python ran it is in the metadata; the same notebook must give the same bytes everywhere.
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def _printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def _index(paths: list[Path]) -> str:
    links = "".join(f'<li><a href="{p.stem}.html">{p.stem.replace("_", " ")}</a></li>' for p in paths)
    style = "font: 18px/1.7 system-ui; max-width: 40em; margin: 3em auto"
    return f'<!doctype html><meta charset="utf-8"><title>Llama 3 from scratch</title><body style="{style}">' + (
        f"<h1>Llama 3 from scratch</h1><ol style='list-style: none; padding: 0'>{links}</ol>\n"
    )
