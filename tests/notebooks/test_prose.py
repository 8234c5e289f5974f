"""What the prose of the notebooks says is bound to what it comes from, and the binding can fail."""

import identifiers
import nbformat
import prose
import pytest
from cells import NOTEBOOKS, read

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_every_number_in_prose_is_bound(path):
    found = list(prose.unbound(read(path)))
    assert not found, "\n".join(found)


@every_notebook
def test_facts_are_facts(path):
    found = list(prose.wrong_entries(read(path)))
    assert not found, "\n".join(found)


@every_notebook
def test_every_name_of_code_in_prose_exists(path):
    found = list(identifiers.unknown(read(path)))
    assert not found, "\n".join(found)


def notebook(text, *facts, code=("heads, best = 9, 2",)):
    cells = [nbformat.v4.new_code_cell(source) for source in code]
    cells.append(nbformat.v4.new_markdown_cell(text, metadata={"facts": list(facts)}))
    return nbformat.v4.new_notebook(cells=cells)


def why(says):
    return {"says": says, "why": "an example"}


@pytest.mark.parametrize(
    "text",
    [
        "head 3",
        "8,030,261,248 parameters",
        "| `dim` | 4,096 |",
        "four of them",
        "Half of them",
        "twice as far",
        "Llama 3.7 is out",
        "Llama 3.2 8B",
        "SmolLM2-235M",
        "two-legged",
        "`h // 7`",
        "`9`",
        "about 13 %",
        "- 3 of them",
        "<p>3 of them</p>",
        "a link with [3 words](#there)",
        "notebook 19",
    ],
)
def test_a_number_is_found(text):
    assert list(prose.unbound(notebook(text)))


@pytest.mark.parametrize(
    "text",
    [
        "# 5. All heads",
        "Llama 3.1 405B and Llama 3, SmolLM2-135M in bfloat16; notebooks 4, 5 and 18; GPT-2's UTF-8",
        "$x_1 + 2$ and\n\n$$\\frac{1}{2}$$",
        "[Su and others, 2021](https://arxiv.org/abs/2104.09864)",
        "`best = 9`",
        "<pre><code>return 3</code></pre>",
        "```\n3\n```",
        "1. one\n2. second",
        "`w1`, `LLAMA3_PROMPT`",
    ],
)
def test_what_is_no_number_is_left_alone(text):
    assert not list(prose.unbound(notebook(text)))


@pytest.mark.parametrize(
    ("text", "says", "caught"),
    [
        ("head 2 of 9", "head 2 of 9", False),
        ("head 2 of 9", "head 2", True),
        ("head 23", "head 2", True),
        ("head 2.5", "head 2", True),
        ("ahead 2", "head 2", True),
        ("16 of the nine", "6 of the nine", True),
        ("head -2 of", "2 of", True),
    ],
)
def test_a_piece_binds_the_whole_numbers_in_it(text, says, caught):
    assert bool(list(prose.unbound(notebook(text, why(says))))) is caught


def fact(says="9 heads", **source):
    return {"says": says} | source


@pytest.mark.parametrize(
    "entry",
    [
        fact("8 heads", why="chosen"),
        fact("9", why="chosen"),
        fact(why=""),
        fact(),
        fact(why="chosen", because="chosen"),
        fact(why="chosen", **{"is": "heads == 9"}),
        {"says": "9 heads", "from": "http://example.com"},
        {"says": "9 heads", "is": "'9 heads'"},
        {"says": "9 heads", "is": "True"},
        {"says": "9 heads", "is": "f'9 heads{heads and str()}'"},
        {"says": "9 heads", "is": "heads == 8"},
        {"says": "9 heads", "is": "heads ="},
        {"says": "9 heads", "is": "(heads := 9) == 9"},
    ],
    ids=str,
)
def test_what_is_no_fact_is_refused(entry):
    assert list(prose.wrong_entries(notebook("There are 9 heads.", entry)))


@pytest.mark.parametrize(
    "code", ["f'{heads} heads'", "f'{heads:.2f} heads'", "heads == 9", "all(h == 9 for h in [heads])"]
)
def test_what_is_a_fact_is_taken(code):
    assert not list(prose.wrong_entries(notebook("There are 9 heads.", {"says": "9 heads", "is": code})))


def outcome(book):
    """What the cells put in between say, in a kernel made of a dictionary."""
    names = {}
    for cell in prose.with_facts(book).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    return set(names) - {"__builtins__"}


def test_facts_hold_and_leave_nothing_behind():
    facts = [{"says": "head 2", "is": "f'head {best}'"}, {"says": "two of them", "is": "f'{in_words(best)} of them'"}]
    facts += [{"says": "nine heads", "is": "np.int64(heads) == 9"}, {"says": "9 later", "will_be": "f'{later} later'"}]
    book = notebook(
        "head 2, two of them, nine heads, 9 later", *facts, code=["heads, best = 9, 2", "import numpy as np"]
    )
    book.cells.append(nbformat.v4.new_code_cell("later = 9"))
    assert outcome(book) == {"heads", "best", "later", "np"}


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ("head 2", "f'head {best + 1}'"),
        ("9 heads", "heads == 9 and best > 3"),
        ("no such", "f'{gone}'"),
        ("9 heads", "heads"),
    ],
)
def test_a_fact_that_does_not_hold_is_named(says, code):
    with pytest.raises(AssertionError, match=f"the text says '{says}', and it is"):
        outcome(notebook("head 2 of 9 heads, no such", {"says": says, "is": code}))


def test_facts_do_not_touch_the_dice():
    book = notebook("some 2 dice", {"says": "some 2", "is": "f'some {2 + int(torch.rand(1))}'"})
    book.cells[0].source = "import torch; torch.manual_seed(0)"
    book.cells.append(nbformat.v4.new_code_cell("torch.manual_seed(0) if not torch else None; thrown = torch.rand(1)"))
    names = {}
    for cell in prose.with_facts(book).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert names["thrown"] == names["torch"].rand(1, generator=names["torch"].Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`functional.rms_norm`", ""),
        ("`functional.rms_nrom`", "functional.rms_nrom"),
        ("`heads`", ""),
        ("`haeds`", "haeds"),
        ("`F.silu(zz)`", "zz"),
        ("`F.sliu`", "F.sliu"),
        ("`layers.0.attention.wq.weight`", ""),
        ("`layers.0.attention.wz.weight`", "layers.0.attention.wz.weight"),
        ("`params.n_kv_heads`", ""),
        ("`generate_batch()`", ""),
        ("`generate_batches()`", "generate_batches"),
        ("`llama3_scratch/model.py`", ""),
        ("`␣Paris`, `<|eot_id|>`", ""),
    ],
)
def test_names_in_prose(text, missing):
    found = list(identifiers.unknown(notebook(text)))
    assert len(found) == bool(missing)
    assert not missing or found[0].endswith(f"there is no {missing}")
