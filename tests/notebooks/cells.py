"""Notebooks read as text: their cells, what stands in them, and copies in which the exercises are solved.

Light on purpose: nothing here imports torch, so that the static checks take no time.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<details>.*?<pre><code>(.*?)</code></pre>", re.DOTALL)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def texts_of_outputs(cell: NotebookNode) -> Iterator[str]:
    """What a code cell printed, and the texts that its pictures carry."""
    for output in cell.get("outputs", []):
        yield output.get("text") or output.get("data", {}).get("text/plain", "")


def trial(wrong: dict, checks: list[str], solution: str) -> NotebookNode:
    """A cell that gives a wrong answer to an exercise, holds its check to naming the mistake, and puts things right."""
    code = [
        "import contextlib as _contextlib, io as _io",
        f"exec({wrong['code']!r}, globals())",
        "with _contextlib.redirect_stdout(_io.StringIO()) as _said:",
        *(f"    exec({check!r}, globals())" for check in checks),
        f"assert _said.getvalue().startswith('Not yet: ') and {wrong['says']!r} in _said.getvalue(), _said.getvalue()",
        f"exec({solution!r}, globals())",
    ]
    return nbformat.v4.new_code_cell("\n".join(code), execution_count=1)


# Runs in the notebook's kernel, where `names` are its own. What a check says of no answer, and of two that are nearly
# right: the right one for its first question, given to all of them; and the right ones, each a little off.
NEARLY = r"""
import contextlib
import copy
import io

right = names[function]


def off(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value * 1.25 + 1e-3
    if isinstance(value, str):
        return value[1:]
    if isinstance(value, dict):
        return {key: off(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([off(value[0]), *value[1:]]) if value else [0]
    if hasattr(value, "is_floating_point"):
        return value * 1.25 + 1e-3 if value.is_floating_point() else value.flip(0) + 1
    return None


def hard_wired(*question, first=[], **more):
    first += [] if first else [copy.deepcopy(right(*question, **more))]
    return copy.deepcopy(first[0])


def a_little_off(*question, **more):
    return off(copy.deepcopy(right(*question, **more)))


apart = dict(names)
exec(blank, apart)
answers = {"blank": apart[function], "hard-wired": hard_wired, "a little off": a_little_off}
passed = []
for answer in wrong:
    names[function] = answers[answer]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            for check in checks:
                exec(check, names)
        except Exception:
            pass  # refused, if not politely
    names[function] = right
    if "Solved" in said.getvalue() or (answer == "blank" and said.getvalue() != "Not solved yet.\n"):
        passed.append(answer)
assert not passed, f"the check of {function} passes an answer that is {' and one that is '.join(passed)}"
"""


def nearly(exercise: NotebookNode, blank: str, checks: list[str]) -> NotebookNode:
    """A cell that holds an exercise's check to more than one input, and to a tolerance that means something."""
    [function] = re.findall(r"^def (\w+)\(", exercise.source, re.MULTILINE)[-1:]
    asked = re.search(rf"^def {function}\((\w+)", exercise.source, re.MULTILINE)
    wrong = ["blank", "hard-wired", "a little off"] if asked else ["blank", "a little off"]
    names = (
        f"'names': globals(), 'function': {function!r}, 'blank': {blank!r}, 'checks': {checks!r}, 'wrong': {wrong!r}"
    )
    return nbformat.v4.new_code_cell(f"exec({NEARLY!r}, {{{names}}})", execution_count=1)


def with_solutions(notebook: NotebookNode, trials: bool = True) -> NotebookNode:
    """The solutions put into the exercises, and the checks are to say so. After each check its stored wrong answers
    are given (`trials`), and the check must say what is wrong with them.
    """
    solutions = SOLUTION.findall("\n".join(cell.source for cell in prose_cells(notebook)))
    cells, exercise, blank, checks = [], None, "", []
    for cell in notebook.cells:
        cells.append(cell)
        if "exercise" in tags(cell):
            exercise, blank, checks = cell, cell.source, []
            cell.source = html.unescape(solutions.pop(0))
        elif exercise and cell.cell_type == "code":  # a check may take more than one cell; the last one is tagged
            checks.append(cell.source)
        if "check" in tags(cell):
            wrong_answers = exercise.metadata.get("wrong_answers", []) if trials else []
            cells += [trial(wrong, checks, exercise.source) for wrong in wrong_answers]
            cells += [nearly(exercise, blank, checks)] if trials else []
            cell.metadata["tags"] = [*tags(cell), "nbval-check-output"]
            cell.outputs[0].text = "Solved!\n"
            exercise = None
    notebook.cells = cells
    return notebook
