"""Notebooks that run without a kernel each: shared cells run once, and how each ended is told of each."""

import nbformat
import pytest
from forked_kernels import Near
from helpers import failed_cells

ONCE = "open('log', 'a').write('once ')\nx = 1"


@pytest.fixture
def write(tmp_path):
    def notebook(name, *cells, tags=(), outputs=()):
        """Tags and an output are the last cell's."""
        new = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell, id=str(i), execution_count=1) for i, cell in enumerate(cells)]
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


MULTIPLIES = "import os\nprint(os.environ['MKL_CBWR'])"


@pytest.mark.parametrize(
    ("code", "stored", "tags", "near", "nbval"),
    [
        (MULTIPLIES, "AUTO\n", [], True, False),
        (MULTIPLIES, "COMPATIBLE\n", [], True, True),  # another run, which has the last word
        ("print(0.123)", "0.124\n", ["last-digits"], True, False),
        ("print(0.123)", "0.124\n", [], False, False),
    ],
    ids=["own products", "the same everywhere", "last digits", "other digits"],
)
def test_what_is_near_on_this_processor_or_the_same_everywhere_is_enough(write, code, stored, tags, near, nbval):
    path = write("book", code, tags=tags, outputs=[stored])
    assert (not failed_cells([path], "tiny-ratio3", compare="near")) is near
    assert (not failed_cells([path], "tiny-ratio3", compare="nbval")) is nbval


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [
        ("sum 52.523 #0072b2 (7056f8)", "sum 52.524 #0072b2 (7056f8)", True),
        ("0 to 1.0", "5.96e-08 to 1.00", True),
        ("49,151.432", "49,151.37", True),
        ("y 0.000404 to 32.9, log", "y 0.000404 to 33, log", True),
        ("[12, 3.77]", "[12.1, 3.77]", True),
        ("same first choice  64%", "same first choice  63%", True),
        ("same first choice  34%", "same first choice  33%", False),
        ("2.0 tokens", "2.1 tokens", False),
        ("3 tokens", "4 tokens", False),
        ("1,203 tokens", "1,204 tokens", False),
        ("1.5 (7056f8)", "1.5 (7056f9)", False),
        ("0.5 Paris", "0.5 Rome", False),
        ("0.5", "0.5 0.5", False),
        ("0.5", "-0.5", False),
    ],
)
def test_near_are_broken_numbers_and_percents_alone(one, other, is_near):
    assert (Near(one) == other) is is_near
    assert (Near(one) != other) is not is_near
