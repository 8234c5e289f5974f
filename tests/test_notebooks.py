"""Every notebook runs on every kind of model, says what it said when it was stored, and keeps to our form."""

import ast
import html
import json
import re

import nbformat
import pytest
from nbval_run import NOTEBOOKS, REAL, failed_cells

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_notebooks_run_on_a_tiny_checkpoint():
    assert not failed_cells(NOTEBOOKS, "tiny-ratio1")


@every_notebook
def test_cells_were_executed_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))  # nbval passes over a cell that was never executed


@every_notebook
def test_stored_outputs_hold_no_errors_paths_or_warnings(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not re.search(r"/(root|home|tmp|Users|work)/|Warning", json.dumps(output))


@every_notebook
def test_code_cells_are_short(path):
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 15, cell.source
        assert max((len(line) for line in lines), default=0) <= 100, cell.source


@every_notebook
def test_no_size_is_typed_in(path):
    """Numbers that are sizes of a published model may stand in prose only; exercises about them aside."""
    sizes = {128, 576, 1024, 1536, 2048, 4096, 14336, 49152, 128256}
    for cell in code_cells(path):
        if "check" in cell.metadata.get("tags", []):
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                in_division_by_1024 = "// 1024" in cell.source and node.value == 1024  # KiB
                assert node.value not in sizes or in_division_by_1024, cell.source


@every_notebook
def test_there_are_exercises_with_a_check_and_a_folded_solution(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    tags = [tag for cell in code_cells(path) for tag in cell.metadata.get("tags", [])]
    assert "## Summary" in text and "## Exercises" in text
    assert 2 <= tags.count("exercise") == tags.count("check") == text.count("<summary>Solution</summary>") <= 3


def solved(path, folder):
    """A copy of the notebook in which the solutions stand in the exercises, and the checks are to say so."""
    notebook = nbformat.read(path, as_version=4)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    solutions = re.findall(r"<details>.*?<pre><code>(.*?)</code></pre>", "\n".join(prose), re.DOTALL)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            cell.source = html.unescape(solutions.pop(0))
        if "check" in tags:
            cell.source += "\nassert solved"
            cell.outputs[0].text = "Solved!\n"
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


@every_notebook
def test_stored_outputs_are_what_the_real_model_gives_and_solutions_pass(path, tmp_path):
    assert not failed_cells([solved(path, tmp_path)], REAL, strict=True)


# With tiny-ratio1 above: head ratios 1, 3 and 4, three token counts, float32 and bfloat16.
@pytest.mark.parametrize("checkpoint", ["tiny-ratio3", "tiny-bfloat16"])
@pytest.mark.parametrize("half", [0, 1])  # two, so that two workers share them
def test_notebooks_run_and_solutions_pass_on_a_tiny_checkpoint(half, checkpoint, tmp_path):
    assert not failed_cells([solved(path, tmp_path) for path in NOTEBOOKS[half::2]], checkpoint)


@every_notebook
def test_blank_exercises_do_not_pass_their_checks(path):
    said = [cell.outputs[0].text for cell in code_cells(path) if "check" in cell.metadata.get("tags", [])]
    assert set(said) == {"Not solved yet.\n"}
