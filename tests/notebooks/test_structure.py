"""Every notebook keeps to the form, and says what reviewers have approved."""

import base64

import inventory
import proofs
import pytest
import structure
from cells import NOTEBOOKS, code_cells, read, tags
from nbformat.v4 import new_code_cell, new_notebook, new_output

from llama3_scratch import plots
from llama3_scratch.numbering import number_cells

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
@pytest.mark.parametrize("check", structure.CHECKS, ids=lambda check: check.__name__)
def test_the_form_is_kept(check, path):
    found = list(check(read(path), path))
    assert not found, "\n".join(found)


@every_notebook
def test_all_is_as_approved(path):
    """If this fails and the change is meant: python tests/notebooks/inventory.py, then again with --approve."""
    found = inventory.difference(inventory.approved().get(path.stem, {}), inventory.inventory(read(path)))
    assert not found, found


@every_notebook
def test_every_proof_can_fail(path):
    assert not list(filter(None, map(proofs.hollow, proofs.proofs(read(path)))))


def test_one_cell_of_all_gives_the_answers_that_run_prints():
    assert sum("answers" in tags(cell) for path in NOTEBOOKS for cell in code_cells(read(path))) == 1


# Which notebook must hold which of the package's steps against its own.
STEPS = {
    "01_tokenizer": ["reference.encode_ordinary(text)", "llama3_tokenizer.encode(text)", "special_tokens"],
    "02_embedding": ["F.embedding(", "F.cosine_similarity("],
    "03_rmsnorm": ["functional.rms_norm(", "F.rms_norm("],
    "04_single_head_attention": [
        "functional.precompute_freqs_cis(",
        "functional.apply_rotary_emb(",
        "functional.causal_mask(",
        "functional.scaled_dot_product_attention(",
        "functional.attention(",
    ],
    "05_all_heads": ["functional.attention(", "functional.residual_block("],
    "06_feed_forward": ["F.silu(", "functional.feed_forward(", "functional.transformer_block(", "params.hidden_dim"],
    "07_all_layers": ["functional.transformer_block("],
    "08_logits": ["functional.forward(", "F.cross_entropy("],
    "09_modules": [
        "functional.rms_norm(",
        "functional.feed_forward(",
        "functional.attention(",
        "functional.transformer_block(",
        "params.weight_shapes()",
        "functional.forward(",
        "Llama.from_checkpoint(",
    ],
    "10_generation": ["functional.attention(", "KVCache(", "generation.generate(", "encode_chat("],
    "11_sizes_and_long_texts": ["functional.apply_scaling(", "functional.rotations("],
    "12_files": ["huggingface.permute(", "meta.shard_dim(", "functional.forward("],
    "13_heads": [
        "circuits.habits(",
        'run[f"layers.0.{name}"]',
        "functional.forward(",
        "circuits.attribution(",
        "circuits.patching(",
        "functional.scaled_dot_product_attention(",
    ],
    "14_lenses": ["logit_lens(", "jacobian_lens(", "functional.forward(", "jvp("],
    "15_small_and_fast": ["get_total_flops()", "logits.amax(-1)", "generate_by_lookup("],
    "16_many_machines": ["functional.feed_forward(", "functional.forward(", "parallel.part_of(", "talk("],
    "17_training": [
        "F.cross_entropy(",
        "training.loss(",
        "byte_pairs.learn_merges(",
        "training.batch(",
        "adamw(",
        "torch.optim.AdamW(",
        "nn.utils.clip_grad_norm_(",
        "training.learning_rate(",
        "training.update(",
        "training.memory(",
    ],
    "18_teach_it_42": [
        "training.loss(",
        "F.kl_div(",
        "wq.weight + thin.B @ thin.A",
        "theirs(lesson)",
        "close(model.norm.weight, gain",
        "answer_logs(base, below[-1])",
        "taught(lesson)",
        "part.linear.weight + part.B @ part.A",
    ],
}


@every_notebook
def test_what_a_notebook_builds_is_held_against_what_others_have_built(path):
    held = "\n".join("\n".join([proof["holds"], *proof["where"]]) for proof in proofs.proofs(read(path)))
    assert not [step for step in STEPS[path.stem] if step not in held]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("assert True", "a constant"),
        ("assert 1 < 2", "a constant"),
        ("a = 1\nassert a == a", "against itself"),
        ("b = torch.ones(3)\na = b\ntorch.testing.assert_close(a, b)", "against itself"),
        ("b = torch.ones(3)\na = b.clone()\nassert torch.equal(b, a)", "against itself"),
        ("b = torch.ones(3)\nc = b\na = c.float()\nassert torch.equal(b.float(), a)", "against itself"),
        ("torch.testing.assert_close(a, b, rtol=1, atol=1)", "anything agrees"),
        ("assert a == b or True", "a constant"),
    ],
)
def test_a_proof_of_nothing_is_seen(code, why):
    [proof] = proofs.proofs(new_notebook(cells=[new_code_cell(code)]))
    assert why in proofs.hollow(proof)


@pytest.mark.parametrize(
    "code",
    [
        "b = torch.ones(3)\na = b + 1\ntorch.testing.assert_close(a, b, atol=1e-3)",
        "assert all(a == b for a, b in pairs)",
        "print(f'largest difference {(a - b).abs().max():.3f}')",
        "for a in streams:\n    if a:\n        assert a.shape == b.shape",
    ],
)
def test_what_can_fail_is_a_proof(code):
    [proof] = proofs.proofs(new_notebook(cells=[new_code_cell(code)]))
    assert not proofs.hollow(proof)


def test_a_proof_tells_the_definitions_behind_it():
    code = "eps = 1e-3\ntolerance = {'rtol': eps}\nours = x @ w\nfor y in all_of_them:\n    "
    code += "assert_close(ours, y, **tolerance)"
    [proof] = proofs.proofs(new_notebook(cells=[new_code_cell(code)]))
    assert proof["for"] == ["for y in all_of_them:"]
    assert proof["where"] == ["ours = x @ w", "tolerance = {'rtol': eps}", "eps = 1e-3"]


def test_an_image_belongs_to_its_text():
    book = new_notebook()
    for title in ("one", "other"):
        data, metadata = plots.bars(["a", "b"], [1, 2], title)._repr_mimebundle_()
        data["image/png"] = base64.b64encode(data["image/png"]).decode()
        book.cells.append(new_code_cell(title, outputs=[new_output("display_data", data, metadata=metadata)]))
    assert not list(structure.wrong_pictures(book, None))
    outputs = [cell.outputs[0] for cell in book.cells]
    outputs[0].metadata["image/png"]["alt"] = "Another text"
    assert len(list(structure.wrong_pictures(book, None))) == 1
    outputs[0].data["image/png"] = outputs[1].data["image/png"]
    assert len(list(structure.wrong_pictures(book, None))) == 1
    outputs[1].data["text/plain"] = outputs[0].data["text/plain"]
    assert len(list(structure.wrong_pictures(book, None))) == 2


def test_cells_are_named_by_their_places():
    notebook = new_notebook(cells=[new_code_cell("1"), new_code_cell("2")])
    number_cells(notebook, "09_modules")
    assert [cell.id for cell in notebook.cells] == ["09-001", "09-002"]
    number_cells(notebook, "mine")
    assert [cell.id for cell in notebook.cells] == ["09-001", "09-002"]
