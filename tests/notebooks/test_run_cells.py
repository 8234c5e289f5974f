"""Notebooks that run without a kernel each: shared cells run once, and how each ended is told of each."""

import nbformat
import pytest
from helpers import failed_cells

ONCE = "open('log', 'a').write('once ')\nx = 1"


@pytest.fixture
def write(tmp_path):
    def notebook(name, *cells, tags=(), outputs=()):
        """Tags and an output are the last cell's."""
        new = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell, id=str(i)) for i, cell in enumerate(cells)]
        )
        if cells:
            new.cells[-1].metadata["tags"] = list(tags)
            new.cells[-1].outputs = [nbformat.v4.new_output("stream", text=text) for text in outputs]
        nbformat.write(new, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return notebook


def test_the_beginning_that_notebooks_share_runs_once_and_what_follows_is_told_of_each(write, tmp_path):
    tagged = {"tags": ["nbval-check-output"], "outputs": ["2\n"]}
    notebooks = [
        write("good", ONCE, "x += 1", "print(x)", **tagged),
        write("shorter", ONCE, "x += 1"),
        write("past Python", ONCE, "import os\nassert os.read(0, 9) == b''\nos.write(1, b'done\\n')"),
        write("says another", ONCE, "x += 1", "print(x + 1)", **tagged),
        write("stored another", ONCE, "x += 1", "print(x)", tags=["nbval-check-output"], outputs=["3\n"]),
        write("raises", ONCE, "x += 1", "1 / 0", "print('never')"),
        write("leaves", ONCE, "raise SystemExit"),
        write("ends its process", ONCE, "import os; os._exit(0)"),
        write("changed what the others have", ONCE, "x = 5", "assert x == 2"),
        write("another beginning", "x"),
        write("empty"),
    ]
    failed = failed_cells(notebooks, "tiny-ratio3")
    wanted = {
        "says another": "but now\n3",
        "stored another": "stored\n3",
        "raises": "ZeroDivisionError",
        "leaves": "SystemExit",
        "ends its process": "its process ended",
        "changed what the others have": "AssertionError",
        "another beginning": "NameError",
    }
    assert failed.keys() == wanted.keys()
    assert all(word in failed[name] for name, word in wanted.items())
    assert (tmp_path / "log").read_text() == "once "


def test_a_model_of_ones_own_is_left_out_where_pictures_are_drawn_and_nowhere_else(write):
    path = write("own", "1 / 0", tags=["own-model"])
    assert not failed_cells([path], "tiny-ratio3", compare="drawn")
    assert "ZeroDivisionError" in failed_cells([path], "tiny-ratio3")["own"]
    assert "ZeroDivisionError" in failed_cells([path], "tiny-ratio3", compare="all")["own"]


def test_only_drawn_makes_images(write):
    code = "from llama3_scratch import plots\npicture = plots.bars(['a'], [1], 't')"
    asserts = "assert ('image/png' in str(picture._repr_mimebundle_())) is {}"
    drawn, not_drawn = (write(str(is_it), code, asserts.format(is_it)) for is_it in (True, False))
    assert failed_cells([drawn, not_drawn], "tiny-ratio3", compare="drawn").keys() == {"False"}
    assert failed_cells([drawn, not_drawn], "tiny-ratio3").keys() == {"True"}
