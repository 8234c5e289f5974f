"""Execute the notebooks: for a reader to browse, or to store their outputs in the repository."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from . import pages
from .loading.files import read_bytes, write_whole
from .messages import CheckpointError, reason
from .numbering import number_cells

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
# MKL's own choice takes a third of the time of its kernels that are the same everywhere. A last digit that is printed
# may then be another; where that grows into other words, a cell has a tag that forbids it.
_OWN_PRODUCTS = {"MKL_CBWR": "AUTO"}
_EVERY_DIGIT_TAG = "every-digit"
CELL_SECONDS = 600
ROOM_FOR_TWO = 5e9  # bytes that are free; the largest notebooks take 2.8e9 and 1.9e9
_ANSWERS_TAG = "answers"  # the cell whose output `run` repeats at the end
_TIMED_TAG = "timed"  # cells that measure time: what they show is true of one machine at one moment, and is not stored

# What a notebook says of the kernel that ran it: the same everywhere, whoever saved it last. Of the language, nbconvert
# must know what to make of it.
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_LANGUAGE_KEYS = ("file_extension", "mimetype", "name", "nbconvert_exporter", "pygments_lexer")


def execute(paths: list[Path], build: Path, store: bool = False) -> bool:
    """Run each notebook from top to bottom and make pages of them in `build`; True if all ran to their ends.

    With `store`, a notebook that ran well replaces its file; its numbers are those of every x86 processor, to the last
    digit. Without, most notebooks multiply in the way that is fastest on this one. Files are written whole: an
    interrupted run leaves the earlier ones. Other numbered notebooks beside them get pages of what is stored in them,
    so that links lead somewhere. Raises OSError if a kernel does not start or a file cannot be written, ValueError for
    a file that is no notebook.
    """
    os.environ.update(SAME_EVERYWHERE)
    build.mkdir(parents=True, exist_ok=True)
    failures: dict[Path, str] = {}
    answers: list[str] = []
    shown = {path.stem: pages.Page(path, notebook) for path, notebook in _beside(paths)}
    slots = threading.Semaphore(_at_once())
    jobs = [_Job(path, slots, store) for path in paths]
    for job in _longest_early(jobs):
        job.start()
    for path, job in zip(paths, jobs, strict=True):
        print(f"  {path.stem:<28}", end="", flush=True)
        notebook, failure = job.result()
        shown[path.stem] = pages.Page(path, notebook, failure)
        if failure is not None:
            failures[path] = failure
        elif store:
            number_cells(notebook, path.stem)
            for cell in _tagged(notebook, _TIMED_TAG):
                cell.outputs = []
            write_whole(path, nbformat.writes(notebook) + "\n")
        cells = sum(cell.cell_type == "code" for cell in notebook.cells)
        result = "ok" if failure is None else "FAILED"
        print(f"{cells:>4} cells {job.seconds:>6.1f} s  {result}", flush=True)
        answers += [_printed(cell) for cell in _tagged(notebook, _ANSWERS_TAG)]
    started = time.monotonic()
    print(f"  {'pages':<28}{len(shown):>4} pages", end="", flush=True)
    pages.write([shown[stem] for stem in sorted(shown)], build, answers)
    print(f" {time.monotonic() - started:>6.1f} s  ok", flush=True)
    for path, failure in failures.items():
        print(f"\n{path.name} stopped at a cell:\n{failure}", file=sys.stderr)
    for text in answers:
        print(f"\n{text}", end="")
    print(f"\nRead them in a browser: {_from_here(build / 'index.html')}")
    return not failures


def _beside(paths: list[Path]) -> Iterator[tuple[Path, nbformat.NotebookNode]]:
    """The numbered notebooks in the folders of `paths`, if they can be read."""
    for folder in {path.parent for path in paths}:
        for path in folder.glob("[0-9][0-9]_*.ipynb"):
            with contextlib.suppress(OSError, ValueError):
                yield path, _read(path)


def _tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


class _Client(NotebookClient):
    """Runs a notebook on the Python that runs this, whatever kernel it was saved with."""

    def create_kernel_manager(self) -> KernelManager:
        manager = super().create_kernel_manager()
        manager.kernel_spec_manager = _ThisPython()
        return manager


class _ThisPython(KernelSpecManager):
    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(resource_dir="", **get_kernel_dict())


class _Job(threading.Thread):
    """A notebook that is run once there is a slot for it, in a thread: so that Ctrl-C reaches us, since nbclient would
    answer with tracebacks. Its kernel ends by itself once this process has.
    """

    def __init__(self, path: Path, slots: threading.Semaphore, every_digit: bool) -> None:
        super().__init__(daemon=True)
        self.path, self.slots, self.every_digit, self.seconds = path, slots, every_digit, 0.0
        self.notebook: nbformat.NotebookNode | None = None
        self.failure: str | None = None
        self.raised: BaseException | None = None

    def run(self) -> None:
        with self.slots:
            self._run()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            notebook = _read(self.path)
            every_digit = self.every_digit or _tagged(notebook, _EVERY_DIGIT_TAG)
            self.failure = _failure(notebook, self.path, {} if every_digit else _OWN_PRODUCTS)
            _drop_machine_details(notebook)
            self.notebook = notebook
        except BaseException as e:
            self.raised = e
        self.seconds = time.monotonic() - started

    def result(self) -> tuple[nbformat.NotebookNode, str | None]:
        """The notebook with its outputs, and what went wrong in a cell."""
        while self.is_alive():
            self.join(0.2)
        if self.raised is not None:
            raise self.raised
        assert self.notebook is not None  # or something was raised
        return self.notebook, self.failure


def _longest_early(jobs: list[_Job]) -> list[_Job]:
    """The order to begin in: as they come, but every second one is the last that is left, for a third of them. The
    later notebooks compute more. So no long one runs alone at the end, and a reader still sees the first ones soon.
    """
    many = len(jobs) // 3
    order, early = jobs[: len(jobs) - many], reversed(jobs[len(jobs) - many :])
    for n, job in enumerate(early):
        order.insert(2 * n + 1, job)
    return order


def _at_once() -> int:
    """How many notebooks run side by side, since one alone seldom keeps two cores busy: two, if there are cores for
    them, and memory for the two largest. They then share the cores.
    """
    cores = os.cpu_count() or 1
    if cores < 2 or psutil.virtual_memory().available < ROOM_FOR_TWO:
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // 2))
    return 2


def _failure(notebook: nbformat.NotebookNode, path: Path, environment: Mapping[str, str]) -> str | None:
    """Fill in the outputs; what went wrong in a cell, None if nothing did. The kernel has this environment besides."""
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what an earlier run left would pass for this one's
            cell.outputs, cell.execution_count = [], None
    client = _Client(
        notebook,
        kernel_name=_KERNEL["name"],
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,  # however the lines happened to arrive
        extra_arguments=["--log-level=50"],  # the kernel's remarks are not the reader's concern
    )
    try:
        client.execute(env=os.environ | environment)
    except (CellExecutionError, CellTimeoutError) as e:
        return str(e)
    except DeadKernelError as e:
        return f"its kernel ended ({reason(e)}); often memory ran out"
    except (AssertionError, OSError, RuntimeError) as e:  # there is no room for its files, say
        raise OSError(f"{path}: its kernel did not start, or ended ({reason(e) or 'no reason given'})") from e
    return None


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        notebook: nbformat.NotebookNode = nbformat.reads(read_bytes(path).decode("utf-8"), as_version=4)
        nbformat.validate(notebook)
    except CheckpointError:
        raise
    except Exception as e:  # many kinds, as many as there are ways not to be a notebook
        raise ValueError(f"{path}: not a notebook") from e
    return notebook


def _drop_machine_details(notebook: nbformat.NotebookNode) -> None:
    # Which Python ran it is in the metadata; the same notebook must give the same bytes everywhere.
    language: dict[str, Any] = notebook.metadata.get("language_info", {})
    kept = {key: language[key] for key in _LANGUAGE_KEYS if key in language}
    notebook.metadata.language_info = {"name": "python"} | kept  # without any, the kernel never came to say
    notebook.metadata.kernelspec = dict(_KERNEL)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def _from_here(path: Path) -> str:
    try:
        return os.path.relpath(path)
    except ValueError:  # on another drive
        return str(path.absolute())


def _printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
