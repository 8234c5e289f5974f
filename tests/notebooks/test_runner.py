"""Small notebooks that fail, hang on to another kernel, or end their kernel: what `run` says, stores and returns."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from llama3_scratch import runner
from llama3_scratch.__main__ import main


def notebook(path, *cells, kernel=None):
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    new.metadata.kernelspec = kernel or {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(new, path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, request):
    """An empty folder to work in. Pages take seconds, and are only made where a test asks for them."""
    monkeypatch.chdir(tmp_path)
    if "with_pages" not in request.fixturenames:
        monkeypatch.setattr(runner.pages, "write", lambda *_: [])
    return tmp_path


@pytest.fixture
def with_pages():
    """Ask for real pages."""


def run(*paths, store=False):
    return main(["run", *map(str, paths), *(["--store"] if store else [])])


@pytest.mark.parametrize("failing", ["1 / 0", "import os; os._exit(3)"], ids=["raises", "ends its kernel"])
def test_one_that_fails_fails_the_run_is_not_stored_and_the_others_still_run(here, capsys, failing):
    """A failure is neither forgotten nor stored, and nothing after it is lost."""
    bad = notebook(here / "1_bad.ipynb", "print('before')", failing, "print('after')")
    good = notebook(here / "2_good.ipynb", "print(6 * 7)")
    before = bad.read_bytes()
    assert run(bad, good, store=True) == 1
    assert bad.read_bytes() == before
    assert json.loads(good.read_text())["cells"][0]["outputs"][0]["text"] == ["42\n"]
    out, err = capsys.readouterr()
    assert "FAILED" in out.splitlines()[0] and out.splitlines()[1].endswith("ok")
    assert "1_bad.ipynb" in err and "2_good" not in err


def test_only_what_is_stored_or_asks_for_every_digit_multiplies_as_on_all_processors(here, monkeypatch):
    """A third of the time for a reader; the same digits for the repository."""
    cell = "import os; print(os.environ['MKL_CBWR'], os.environ['ATEN_CPU_CAPABILITY'])"
    plain, tagged = notebook(here / "1.ipynb", cell), notebook(here / "2.ipynb", cell)
    book = nbformat.read(tagged, as_version=4)
    book.cells[0].metadata["tags"] = ["every-digit"]
    nbformat.write(book, tagged)
    shown = []
    monkeypatch.setattr(runner.pages, "write", lambda pages, *_: shown.extend(p.notebook.cells[0] for p in pages))
    assert run(plain, tagged) == 0 and run(plain, store=True) == 0
    assert [c.outputs[0].text for c in shown] == ["AUTO avx2\n", "COMPATIBLE avx2\n", "COMPATIBLE avx2\n"]


def test_what_a_timed_cell_shows_is_read_and_not_stored(here, monkeypatch):
    """Its time is of one machine. The page of a run has it; the file has the other cells' outputs."""
    timed = nbformat.v4.new_code_cell("print('3 ms')", metadata={"tags": ["timed", "nbval-ignore-output"]})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('always')"), timed])
    nbformat.write(book, here / "1.ipynb")
    shown = []
    monkeypatch.setattr(runner.pages, "write", lambda pages, *_: shown.append(pages[0].notebook.cells[1].outputs))
    assert run(here / "1.ipynb") == run(here / "1.ipynb", store=True) == 0
    assert shown[0][0].text == "3 ms\n"
    first, second = json.loads((here / "1.ipynb").read_text())["cells"]
    assert first["outputs"][0]["text"] == ["always\n"]
    assert second["outputs"] == [] and second["execution_count"] == 2


def test_two_run_side_by_side_where_there_is_room_for_both(here, monkeypatch, capsys):
    """The first waits for what the second writes; they are told in their order."""
    wait = (
        "import pathlib, time\nfor _ in range(300):\n    time.sleep(0.1)\n    if pathlib.Path('here').exists(): break"
    )
    first = notebook(here / "1_waits.ipynb", wait, "assert pathlib.Path('here').exists()")
    second = notebook(here / "2_writes.ipynb", "open('here', 'w').close()")
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(runner, "ROOM_FOR_TWO", 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run(first, second) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["1_waits", "2_writes"]


@pytest.mark.parametrize(("cores", "room"), [(1, 0), (8, float("inf"))], ids=["one core", "no room"])
def test_otherwise_one_runs_after_the_other(monkeypatch, cores, room):
    monkeypatch.setattr(runner.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(runner, "ROOM_FOR_TWO", room)
    assert runner._at_once() == 1


def test_execute_itself_says_whether_all_went_well(here):
    good, bad = notebook(here / "1.ipynb", "pass"), notebook(here / "2.ipynb", "assert False")
    assert runner.execute([good], here / "build") is True
    for paths in ([bad], [good, bad], [bad, good]):
        assert runner.execute(paths, here / "build") is False


def test_the_page_of_one_that_failed_shows_the_error_and_no_outputs_of_another_run(here):
    """As a shell sees it: the good one after it does not make the exit status good."""
    bad = notebook(here / "1_bad.ipynb", "print('bef' + 'ore')", "1 / 0", "print('ne' + 'ver')")
    good = notebook(here / "2_good.ipynb", "print(6 * 7)")
    stored = nbformat.read(bad, as_version=4)
    stored.cells[2].outputs = [nbformat.v4.new_output("stream", text="of another run\n")]
    nbformat.write(stored, bad)
    command = [sys.executable, "-m", "llama3_scratch", "run", str(bad), str(good)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    page = (here / "build/1_bad.html").read_text()
    assert "before" in page and "ZeroDivisionError" in page and "stopped at a cell" in page
    assert "never" not in page and "of another run" not in page
    good_page = (here / "build/2_good.html").read_text()
    assert ">42\n<" in good_page and "stopped at a cell" not in good_page
    assert done.stdout.strip().splitlines()[-1] == f"Read them in a browser: {os.path.join('build', 'index.html')}"
    assert '"1_bad.html"' in (here / "build/index.html").read_text()


def test_numbered_notebooks_beside_it_get_pages_of_what_is_stored_in_them(here, with_pages):
    run_now = notebook(here / "02_now.ipynb", "print('now')")
    stored = nbformat.read(notebook(here / "01_earlier.ipynb", "print('x')"), as_version=4)
    stored.cells[0].outputs = [nbformat.v4.new_output("stream", text="stored earlier\n")]
    nbformat.write(stored, here / "01_earlier.ipynb")
    notebook(here / "notes.ipynb", "1 / 0")
    (here / "03_broken.ipynb").write_text("{}")
    assert run(run_now) == 0
    assert "stored earlier" in (here / "build/01_earlier.html").read_text()
    assert {path.name for path in (here / "build").glob("[0-9n]*.html")} == {"01_earlier.html", "02_now.html"}


def test_without_store_nothing_is_stored(here):
    path = notebook(here / "1.ipynb", "print(1)")
    before = path.read_bytes()
    assert run(path) == 0
    assert path.read_bytes() == before


def test_a_cell_without_end_fails(here, monkeypatch, capsys):
    monkeypatch.setattr(runner, "CELL_SECONDS", 2)
    assert run(notebook(here / "1.ipynb", "import time", "time.sleep(60)")) == 1
    assert "1.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama3-conda", ".venv", "python3"])
def test_it_runs_on_this_python_whatever_kernel_it_was_saved_with(here, name):
    kernel = {"display_name": ".venv (3.9.1)", "language": "python", "name": name}
    path = notebook(here / "1.ipynb", "import sys; print(sys.executable)", kernel=kernel)
    assert run(path, store=True) == 0
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].outputs[0].text.strip() == sys.executable
    assert stored.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}


def test_a_kernel_of_the_user_by_the_same_name_is_not_taken(here, monkeypatch):
    folder = here / "jupyter/kernels/python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(here / "jupyter"))
    assert run(notebook(here / "1.ipynb", "print(1)")) == 0


def test_what_is_stored_converts_to_a_script_and_names_no_version(here):
    """nbconvert is the referee: its script exporter reads language_info."""
    from nbconvert import ScriptExporter

    path = notebook(here / "1.ipynb", "print(1)")
    assert run(path, store=True) == 0
    stored = nbformat.read(path, as_version=4)
    text, resources = ScriptExporter().from_notebook_node(stored)
    assert resources["output_extension"] == ".py" and "print(1)" in text
    assert stored.metadata.language_info.name == "python"
    assert ".".join(map(str, sys.version_info[:2])) not in json.dumps(stored.metadata)


def test_pages_on_another_drive_are_named_in_full(here, monkeypatch, capsys):
    def other_drive(path, start=None):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", other_drive)
    monkeypatch.setattr(runner, "_failure", lambda notebook, path, environment: None)
    assert run(notebook(here / "1.ipynb", "print(1)")) == 0
    assert str(here / "build/index.html") in capsys.readouterr().out
