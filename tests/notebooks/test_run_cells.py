"""Notebooks that run without a kernel each: shared cells run once, and how each ended is told of each."""

import forked_torchrun
import nbformat
import pytest
from forked_kernels import Near
from helpers import failed_cells

from llama3_scratch import plots

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


@pytest.mark.parametrize("tag", ["own-model", "any-checkpoint"])
def test_what_no_checkpoint_changes_is_left_out_where_pictures_are_drawn_and_nowhere_else(write, tag):
    path = write("own", "1 / 0", tags=[tag])
    assert not failed_cells([path], "tiny-ratio3", compare="drawn")
    assert "ZeroDivisionError" in failed_cells([path], "tiny-ratio3")["own"]
    assert "ZeroDivisionError" in failed_cells([path], "tiny-ratio3", compare="all")["own"]


def test_only_drawn_makes_images(write):
    code = "from llama3_scratch import plots\npicture = plots.bars(['a'], [1], 't')"
    asserts = "assert ('image/png' in str(picture._repr_mimebundle_())) is {}"
    drawn, not_drawn = (write(str(is_it), code, asserts.format(is_it)) for is_it in (True, False))
    assert failed_cells([drawn, not_drawn], "tiny-ratio3", compare="drawn").keys() == {"False"}
    assert failed_cells([drawn, not_drawn], "tiny-ratio3").keys() == {"True"}


def test_drawn_makes_no_image_of_a_picture_that_is_stored_with_one(write):
    code = "from llama3_scratch import plots\nshown = plots.bars(['a'], [{}], 't')._repr_mimebundle_()"
    code += "\nassert ('image/png' in shown[0]) is {}"
    paths = [write("same", code.format(1, False)), write("other", code.format(2, True))]
    for path in paths:
        book = nbformat.read(path, as_version=4)
        data = {"text/plain": repr(plots.bars(["a"], [1], "t")), "image/png": ""}
        book.cells[0].outputs = [nbformat.v4.new_output("display_data", data=data)]
        nbformat.write(book, path)
    assert not failed_cells(paths, "tiny-ratio3", compare="drawn")
    assert failed_cells(paths, "tiny-ratio3").keys() == {"other"}


MULTIPLIES = "import os\nprint(os.environ['MKL_CBWR'])"


COMPARED = {  # code, what is stored of it, tags, whether that is near enough, and whether it is the same for nbval
    "own products": (MULTIPLIES, "AUTO\n", [], True, False),
    "the same everywhere": (MULTIPLIES, "COMPATIBLE\n", [], True, True),  # another run, which has the last word
    "last digits": ("print(0.123)", "0.124\n", ["last-digits"], True, False),
    "second digits": ("print(0.123)", "0.132\n", ["second-digits"], True, False),
    "first digits": ("print(0.123)", "0.143\n", ["second-digits"], False, False),
    "more than last digits": ("print(0.123)", "0.132\n", ["last-digits"], False, False),
    "other digits": ("print(0.123)", "0.124\n", [], False, False),
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_near_on_this_processor_or_the_same_everywhere_is_enough(write, name):
    code, stored, tags, near, _ = COMPARED[name]
    assert (not failed_cells([write("book", code, tags=tags, outputs=[stored])], "tiny-ratio3", compare="near")) is near


def test_only_what_is_the_same_everywhere_is_enough_for_nbval(write):
    books = [write(name, code, tags=tags, outputs=[stored]) for name, (code, stored, tags, *_) in COMPARED.items()]
    failed = failed_cells(books, "tiny-ratio3", compare="nbval")
    assert failed.keys() == {name for name, (*_, same) in COMPARED.items() if not same}


def test_under_nbval_the_first_torchrun_is_no_fork_and_the_others_are_forks_with_a_place_each(monkeypatch, tmp_path):
    real = []
    monkeypatch.setattr(forked_torchrun, "_RUN", lambda command, **_: real.append(command))
    run = forked_torchrun.ForkedElsewhere()
    (tmp_path / "script.py").write_text(
        "import os, sys\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'], sys.argv[1])"
    )
    torchrun = ["python", "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "script.py"), "given"]
    for command in (["ls"], torchrun, ["ls"]):
        run(command)
    assert real == [["ls"], torchrun, ["ls"]]
    ended = run(torchrun, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "0 2 given\n1 2 given\n")
    (tmp_path / "script.py").write_text("raise SystemExit('no')")
    assert run(torchrun).returncode == 1
    assert len(real) == 3


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
