"""The exercises' checks are checked: what `cells.with_solutions` puts between the cells finds a weak one."""

import contextlib
import io

import nbformat
import pytest
from cells import with_solutions

RIGHT = "def twice(n):\n    return 2 * n"
CHECK = """found = [twice(n) for n in (3, 5.0, -1)]
if found[0] is None:
    said = "Not solved yet."
elif found == [n * n for n in (3, 5.0, -1)]:
    said = "Not yet: that is the square."
else:
    said = "Solved!" if found == [6, 10, -2] else "Not yet: two of them."
print(said)"""
WRONG = [{"code": "def twice(n):\n    return n * n", "says": "the square"}]


def outcome(solution=RIGHT, check=CHECK, wrong=WRONG):
    """Runs an exercise as its notebook would, and as a reader sees it; what its check says in the end."""
    exercise = nbformat.v4.new_code_cell(
        "def twice(n):\n    return None  # your code here", metadata={"tags": ["exercise"], "wrong_answers": wrong}
    )
    told = nbformat.v4.new_code_cell(
        check, metadata={"tags": ["check"]}, outputs=[nbformat.v4.new_output("stream", text="Not solved yet.\n")]
    )
    folded = nbformat.v4.new_markdown_cell(f"<details><summary>Solution</summary>\n<pre><code>{solution}</code></pre>")
    names = {}
    for cell in with_solutions(nbformat.v4.new_notebook(cells=[exercise, told, folded])).cells:
        if cell.cell_type == "code":
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(cell.source, names)
            if "nbval-check-output" in cell.metadata.get("tags", []):
                assert said.getvalue() == cell.outputs[0].text
    assert names["twice"](4) == 8
    return sorted(names.keys() - {"__builtins__", "twice", "found", "said", "_contextlib", "_io", "_said"})


def test_a_good_check_is_passed_by_right_answers_alone():
    assert outcome() == []


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ("print('Solved!')", None),
        ('print("Not solved yet." if twice(3) is None else "Solved!")', None),
        (CHECK.replace("found[0] is None", "False"), "blank"),
        (CHECK.replace("found == [6, 10, -2]", "found[0] == 6"), "hard-wired"),
        (CHECK.replace("(3, 5.0, -1)", "(3,)").replace("[6, 10, -2]", "[6]"), "hard-wired"),
        (CHECK.replace("found == [6, 10, -2]", "abs(found[0] - 6) <= 1 and abs(found[1] - 10) < 4"), "a little off"),
        (CHECK.replace("found == [6, 10, -2]", "True"), "hard-wired"),
        (CHECK.replace("elif found == [n * n", "elif found == [n + n + 1"), "Not yet: two of them"),
        (CHECK.replace("found == [6, 10, -2]", "found == [6, 10, -3]"), None),
    ],
    ids=["prints", "accepts anything", "passes blank", "asks one", "one input", "tolerance", "true", "mute", "wrong"],
)
def test_a_weak_check_is_found(check, why):
    with pytest.raises((AssertionError, TypeError), match=why):
        outcome(check=check)


def test_a_solution_that_solves_one_case_is_found():
    with pytest.raises(AssertionError):
        outcome(solution="def twice(n):\n    return 6")
