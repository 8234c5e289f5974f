"""`lab` opens copies without outputs: answers are not in view, git stays clean, and a reader's work stays."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import NOTEBOOKS, ROOT

from llama3_scratch import lab
from llama3_scratch.__main__ import main


def write(path, *sources, outputs=True):
    cells = [nbformat.v4.new_markdown_cell("# A title"), *map(nbformat.v4.new_code_cell, sources)]
    for count, cell in enumerate(cells[1:], 1):
        if outputs:
            cell.outputs = [nbformat.v4.new_output("stream", text="42\n")]
            cell.execution_count = count
    for count, cell in enumerate(cells):
        cell.id = str(count)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def sources(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "notebooks/01_one.ipynb", "print(1)")
    write(tmp_path / "notebooks/02_two.ipynb", "print(2)")
    return tmp_path


@pytest.fixture
def copy(root):
    assert lab.copy_notebooks(root) == []
    return root / "my_notebooks/01_one.ipynb"


def change(copy, source="print('mine')"):
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells[1].source = source
    nbformat.write(notebook, copy)
    return copy.read_bytes()


def names(root):
    return sorted(path.name for path in (root / "my_notebooks").glob("*.ipynb"))


def test_copies_are_the_notebooks_without_outputs(root, copy):
    assert names(root) == ["01_one.ipynb", "02_two.ipynb"]
    notebook = nbformat.read(copy, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[1].outputs == [] and notebook.cells[1].execution_count is None
    original = nbformat.read(root / "notebooks/01_one.ipynb", as_version=4)
    assert original.cells[1].outputs, "the notebook itself must stay as it is"
    for cell in original.cells[1:]:
        cell.outputs, cell.execution_count = [], None
    assert notebook == original


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_our_notebooks_survive_it_whole(path, tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(path, tmp_path / "notebooks")
    lab.copy_notebooks(tmp_path)
    original, copy = (nbformat.read(p, as_version=4) for p in (path, tmp_path / "my_notebooks" / path.name))
    nbformat.validate(copy)
    for cell in original.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    assert copy == original


def test_what_the_reader_changed_stays_and_nothing_is_said_while_the_notebook_is_the_same(root, copy):
    mine = change(copy)
    assert lab.copy_notebooks(root) == []
    assert copy.read_bytes() == mine and names(root) == ["01_one.ipynb", "02_two.ipynb"]


@pytest.mark.parametrize("kind", ["source", "outputs", "a cell more", "no notebook any more"])
def test_beside_a_changed_copy_a_new_edition_gets_a_name_of_its_own(root, copy, kind):
    notebook = nbformat.read(copy, as_version=4)
    if kind == "source":
        notebook.cells[0].source += "\n\nA note."
    elif kind == "outputs":
        notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="my own run\n")]
    else:
        notebook.cells.append(nbformat.v4.new_code_cell("print('mine')"))
    nbformat.write(notebook, copy)
    if kind == "no notebook any more":
        copy.write_text("my notes")
    mine = copy.read_bytes()
    write(root / "notebooks/01_one.ipynb", "print(10)")
    [sentence] = lab.copy_notebooks(root)
    assert "01_one.ipynb" in sentence and "my_notebooks/01_one_new.ipynb" in sentence
    assert copy.read_bytes() == mine
    assert sources(root / "my_notebooks/01_one_new.ipynb") == ["# A title", "print(10)"]
    assert lab.copy_notebooks(root) == [], "it is given once"


def test_further_editions_do_not_pile_up_but_work_in_them_stays_too(root, copy):
    mine = change(copy)
    for edition in (10, 11):
        write(root / "notebooks/01_one.ipynb", f"print({edition})")
        assert len(lab.copy_notebooks(root)) == 1
    new = root / "my_notebooks/01_one_new.ipynb"
    assert sources(new)[1] == "print(11)" and names(root) == ["01_one.ipynb", "01_one_new.ipynb", "02_two.ipynb"]
    also_mine = change(new)
    assert lab.copy_notebooks(root) == []
    write(root / "notebooks/01_one.ipynb", "print(12)")
    [sentence] = lab.copy_notebooks(root)
    assert "01_one_new2.ipynb" in sentence
    assert copy.read_bytes() == mine and new.read_bytes() == also_mine
    assert sources(root / "my_notebooks/01_one_new2.ipynb")[1] == "print(12)"


def test_an_unchanged_copy_becomes_the_new_edition(root, copy):
    write(root / "notebooks/01_one.ipynb", "print(10)")
    assert lab.copy_notebooks(root) == []
    assert sources(copy)[1] == "print(10)" and names(root) == ["01_one.ipynb", "02_two.ipynb"]


def test_opening_and_saving_changes_nothing_for_us(root, copy):
    """JupyterLab writes the kernel's version into a notebook that was only looked at."""
    notebook = nbformat.read(copy, as_version=4)
    notebook.metadata.language_info = {"name": "python", "version": "3.13.1"}
    nbformat.write(notebook, copy)
    write(root / "notebooks/01_one.ipynb", "print(10)")
    assert lab.copy_notebooks(root) == [] and sources(copy)[1] == "print(10)"


def test_new_outputs_of_the_notebook_are_no_new_edition(root, copy):
    mine = change(copy)
    write(root / "notebooks/01_one.ipynb", "print(1)", outputs=False)
    assert lab.copy_notebooks(root) == [] and copy.read_bytes() == mine


def test_what_was_removed_comes_back_and_other_files_are_left_alone(root, copy):
    (root / "my_notebooks/mine.ipynb").write_text("{}")
    (root / "my_notebooks/data.txt").write_text("numbers")
    copy.unlink()
    assert lab.copy_notebooks(root) == []
    assert sources(copy)[1] == "print(1)"
    assert (root / "my_notebooks/mine.ipynb").read_text() == "{}"
    assert (root / "my_notebooks/data.txt").read_text() == "numbers"


@pytest.mark.parametrize("ledger", [None, "{", "[]", '{"written": 1, "editions": {}}'])
def test_without_the_ledger_nothing_of_the_readers_is_lost(root, copy, ledger):
    mine = change(copy)
    path = root / "my_notebooks/.copies.json"
    path.unlink() if ledger is None else path.write_text(ledger)
    write(root / "notebooks/01_one.ipynb", "print(10)")
    lab.copy_notebooks(root)
    assert copy.read_bytes() == mine
    assert sources(root / "my_notebooks/01_one_new.ipynb")[1] == "print(10)"


def test_a_broken_notebook_is_named(root):
    (root / "notebooks/01_one.ipynb").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"01_one\.ipynb: not a notebook"):
        lab.copy_notebooks(root)


def test_git_does_not_see_the_copies():
    command = ["git", "check-ignore", "-q", "my_notebooks/01_tokenizer.ipynb"]
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git here")
    assert subprocess.run(command, cwd=ROOT).returncode == 0


# The command


@pytest.fixture
def started(monkeypatch):
    """What JupyterLab would have been started with."""
    calls = []

    def start(command):
        calls.append(command)
        return 0

    def become(program, command):
        sys.exit(start(command))

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(subprocess, "call", start)
    return calls


def opened(*arguments):
    with contextlib.suppress(SystemExit):
        main(["lab", *arguments])


def test_the_first_time_notebook_1_is_opened_and_then_the_folder(root, started, monkeypatch, capsys):
    monkeypatch.chdir(root)
    opened("--no-browser", "--port=1234")
    change(root / "my_notebooks/01_one.ipynb")
    write(root / "notebooks/01_one.ipynb", "print(10)")
    opened()
    first, second = started
    assert first[:4] == [sys.executable, "-m", "jupyter", "lab"]
    assert {"--no-browser", "--port=1234", f"--ServerApp.root_dir={root}"} <= {*first}
    assert "--LabApp.default_url=/lab/tree/my_notebooks/01_one.ipynb" in first
    assert "--LabApp.default_url=/lab/tree/my_notebooks" in second
    assert "01_one_new.ipynb" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no root here")
@pytest.mark.parametrize("user", [0, 1000])
def test_root_is_let_in(root, started, monkeypatch, user):
    monkeypatch.chdir(root)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    opened()
    assert ("--allow-root" in started[0]) == (user == 0)


def test_away_from_the_repository_it_is_the_checkouts_notebooks_or_a_sentence(tmp_path, monkeypatch, started, capsys):
    monkeypatch.chdir(tmp_path)
    assert lab.find_root() == ROOT
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "site-packages/llama3_scratch/lab.py"))
    assert main(["lab"]) == 2 and not started
    assert "notebooks" in capsys.readouterr().err
    assert not (tmp_path / "my_notebooks").exists()


def test_other_commands_take_no_options_of_jupyterlab(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--no-browser"])
    assert ended.value.code == 2 and "--no-browser" in capsys.readouterr().err


def test_jupyterlab_takes_what_it_is_given(root):
    """JupyterLab is the referee: it says what it would serve, and where it would begin."""
    command = [sys.executable, "-m", "llama3_scratch", "lab", "--show-config-json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    config = json.loads(done.stdout[done.stdout.index("{") :])
    assert config["ServerApp"]["root_dir"] == str(root)
    assert config["LabApp"]["default_url"] == "/lab/tree/my_notebooks/01_one.ipynb"
