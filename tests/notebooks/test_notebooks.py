"""Every notebook runs on every kind of model, says what it said when it was stored, and keeps to our form."""

import ast
import json
import re
import shutil

import nbformat
import prose
import pytest
import torch
from cells import with_solutions
from helpers import NOTEBOOKS, REAL, failed_cells, hf_model
from safetensors.torch import load_file, save_file

from llama3_scratch import load_checkpoint, training
from llama3_scratch.loading.tiny import TINY, make_tiny
from llama3_scratch.training.runs import Run

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("part", [0, 1])  # two, so that two workers share them
def test_notebooks_run_on_a_hugging_face_folder_in_bfloat16_and_on_another_prompt(part, hub_folder):
    assert not failed_cells(NOTEBOOKS[part::2], hub_folder, compare="drawn", prompt="Hi there")


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """Another library's folder, in bfloat16: tied, and its file holds the output matrix under a second name as well."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    ckpt = load_checkpoint(make_tiny("tiny-scaled"), dtype=torch.bfloat16)
    model = hf_model(ckpt.params, ckpt.weights)
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(ckpt.tokenizer.path, folder)
    return folder


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
        most = 20 if "check" in cell.metadata.get("tags", []) else 15  # a check knows more than one wrong answer
        assert len(lines) <= most, cell.source
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
    assert tags.count("exercise") == tags.count("check") == text.count("<summary>Solution</summary>") == 3
    for cell in code_cells(path):
        if "exercise" in cell.metadata.get("tags", []):
            wrong = cell.metadata["wrong_answers"]
            assert len(wrong) >= 2
            assert all(set(one) == {"code", "says"} and len(one["says"]) > 1 for one in wrong)
            assert len({one["code"] for one in wrong}) == len(wrong)


@every_notebook
def test_a_map_stands_at_the_head_and_a_formula_at_the_end(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert any("model_map(" in source for source in code[:6])
    summary = next(c.source for c in notebook.cells if c.cell_type == "markdown" and "## Summary" in c.source)
    after = notebook.cells[[c.source for c in notebook.cells].index(summary) :]
    assert any("$$" in cell.source for cell in after if cell.cell_type == "markdown")


@every_notebook
def test_every_picture_has_a_text_for_those_who_cannot_see_it(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert output.metadata.get("image/png", {}).get("alt"), cell.source


def solved(path, folder, facts=False):
    """A copy of the notebook with solved exercises. With `facts`, what its prose says is checked on the way; without,
    the checks of the exercises are tried on wrong answers, and what trains a model of its own, or is tagged
    any-checkpoint, is left out: it would do the same again, whatever the checkpoint.
    """
    notebook = with_solutions(nbformat.read(path, as_version=4), trials=not facts)
    if not facts:
        again = {"own-model", "any-checkpoint"}
        notebook.cells = [cell for cell in notebook.cells if not again & {*cell.metadata.get("tags", [])}]
    nbformat.write(prose.with_facts(notebook) if facts else notebook, folder / path.name)
    return folder / path.name


@every_notebook
def test_stored_outputs_and_numbers_in_prose_are_what_the_real_model_gives_and_solutions_pass(path, tmp_path):
    # Some train for many steps, or round what they multiply: last digits grow into other texts and losses.
    every_digit = any("every-digit" in cell.metadata.get("tags", ()) for cell in code_cells(path))
    compare = "nbval" if every_digit else "near"
    assert not failed_cells([solved(path, tmp_path, facts=True)], REAL, compare)


# With those above: three head ratios, three token counts, float32 and bfloat16, tied and not.
@pytest.mark.parametrize("part", [0, 1])
def test_notebooks_run_and_solutions_pass_on_a_model_that_was_trained_here(part, own_folder, tmp_path):
    assert not failed_cells([solved(path, tmp_path) for path in NOTEBOOKS[part::2]], own_folder)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """What `train` leaves, in the awkward shape of tiny-ratio3. After a few steps only, all numbers would be so small
    that a wrong answer to an exercise can be near enough.
    """
    folder = tmp_path_factory.mktemp("own")
    settings = training.Settings(steps=200, batch_size=8, seq_len=32, learning_rate=1e-2)
    assert list(Run(training.read_text()[:20_000], folder, TINY["tiny-ratio3"].params, settings, tied=True).run(200))
    return folder / "meta"


@every_notebook
def test_blank_exercises_do_not_pass_their_checks(path):
    said = [cell.outputs[0].text for cell in code_cells(path) if "check" in cell.metadata.get("tags", [])]
    assert set(said) == {"Not solved yet.\n"}
