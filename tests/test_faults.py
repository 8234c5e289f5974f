"""The notebooks catch mistakes: each fault, planted in a copy, must make a notebook fail.

A fault in a notebook's own code must be caught by its comparison with the package, and a fault in the package by the
comparison with the notebook's own code. (A fault in both would be caught by the referee: test_referee.py.)
"""

import ast
import re
import shutil

import nbformat
import pytest
from nbval_run import REAL, ROOT, failed_cells

# (what, notebook, right, wrong, checkpoint on which it shows)
IN_A_NOTEBOOK = [
    ("lowest rank forgotten", "01_tokenizer", "return min(joins)[1]", "return joins[0][1]", "tiny-ratio1"),
    ("digits one by one", "01_tokenizer", r"\p{N}{1,3}", r"\p{N}", "tiny-ratio1"),
    ("ids shifted", "02_embedding", "x = table[tokens]", "x = table[tokens - 1]", "tiny-ratio1"),
    ("norm without eps", "03_rmsnorm", "mean_square + params.norm_eps", "mean_square", "tiny-ratio4"),
    ("norm without gain", "03_rmsnorm", "normed.to(x.dtype) * gain", "normed.to(x.dtype)", "tiny-ratio1"),
    (
        "angles off",
        "04_single_head_attention",
        "torch.outer(torch.arange(seq)",
        "torch.outer(1 + torch.arange(seq)",
        "tiny-ratio3",
    ),
    ("missing mask", "04_single_head_attention", "masked = scores + mask", "masked = scores", "tiny-ratio3"),
    ("unscaled scores", "04_single_head_attention", " / math.sqrt(params.head_dim)\nnames", "\nnames", "tiny-ratio3"),
    (
        "rotated value",
        "04_single_head_attention",
        "out = probs @ v\n",
        "v = functional.apply_rotary_emb(v[:, None, :], freqs_cis)[:, 0]\nout = probs @ v\n",
        "tiny-ratio3",
    ),
    ("group size typed in", "05_all_heads", "h // params.group_size) for h", "h // 4) for h", "tiny-ratio3"),
    (
        "missing mask",
        "05_all_heads",
        "math.sqrt(params.head_dim) + mask\n    return",
        "math.sqrt(params.head_dim)\n    return",
        "tiny-ratio1",
    ),
    ("missing wo", "05_all_heads", "delta = side_by_side @ wo.T", "delta = side_by_side", "tiny-ratio1"),
    (
        "swapped w1 and w3",
        "06_feed_forward",
        "gate = F.silu(x @ w1.T)\nup = x @ w3.T",
        "gate = F.silu(x @ w3.T)\nup = x @ w1.T",
        "tiny-ratio1",
    ),
    ("missing residual", "06_feed_forward", "layer_0_out = stream + delta", "layer_0_out = x + delta", "tiny-ratio1"),
    (
        "a layer skipped",
        "07_all_layers",
        "in range(params.n_layers):\n    x =",
        "in range(1, params.n_layers):\n    x =",
        "tiny-ratio1",
    ),
    ("missing last norm", "08_logits", "logits = (final[-1]", "logits = (stream[-1]", "tiny-ratio1"),
]
ATTEND = "F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)"  # as functional.attention has it
IN_THE_PACKAGE = [
    (
        "group size typed in",
        "05_all_heads",
        f"    heads = {ATTEND}",
        f"    k, v = (t.repeat_interleave(4, dim=-3)[..., : q.shape[-3], :, :] for t in (k, v))\n    heads = {ATTEND}",
        "tiny-ratio3",
    ),
    (
        "groups dealt like cards",
        "05_all_heads",
        f"    heads = {ATTEND}",
        f"    k, v = (t.repeat(q.shape[-3] // t.shape[-3], 1, 1) for t in (k, v))\n    heads = {ATTEND}",
        "tiny-ratio3",
    ),
    ("missing mask", "05_all_heads", "attn_mask=mask", "attn_mask=None", "tiny-ratio1"),
    ("unscaled scores", "05_all_heads", "attn_mask=mask", "attn_mask=mask, scale=1.0", "tiny-ratio1"),
    (
        "missing wo",
        "05_all_heads",
        "return linear(heads.transpose(-3, -2).flatten(-2), wo)",
        "return heads.transpose(-3, -2).flatten(-2)",
        "tiny-ratio1",
    ),
    (
        "swapped w1 and w3",
        "06_feed_forward",
        "F.silu(linear(x, w1)) * linear(x, w3)",
        "F.silu(linear(x, w3)) * linear(x, w1)",
        "tiny-ratio1",
    ),
    (
        "rotated value",
        "04_single_head_attention",
        "q, k = apply_rotary_emb(q, freqs_cis), apply_rotary_emb(k, freqs_cis)",
        "q, k, v = (apply_rotary_emb(t, freqs_cis) for t in (q, k, v))",
        "tiny-ratio1",
    ),
    ("norm without eps", "03_rmsnorm", "keepdim=True) + eps)", "keepdim=True))", "tiny-ratio4"),
    (
        "half-split pairs",
        "04_single_head_attention",
        ".unflatten(-1, (-1, 2)).contiguous()",
        ".unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()",
        "tiny-ratio1",
    ),
    ("missing residual", "06_feed_forward", "return x + feed_forward", "return feed_forward", "tiny-ratio1"),
]
# A picture drawn wrong is caught by the numbers stored beside it.
IN_A_PICTURE = [
    (
        "heatmap of another matrix",
        "04_single_head_attention",
        "plots.heatmap(masked.float(),",
        "plots.heatmap(scores.float(),",
    ),
    ("one wrong cell", "02_embedding", "cosine = unit @ unit.T\n", "cosine = unit @ unit.T\ncosine[3, 5] += 0.1\n"),
    (
        "rotation off by 0.02",
        "04_single_head_attention",
        "plots.complex_plane(freqs_cis[position],",
        "plots.complex_plane(freqs_cis[position] * torch.exp(torch.tensor(0.02j)),",
    ),
]


CHECKPOINTS = sorted({fault[-1] for fault in IN_A_NOTEBOOK + IN_THE_PACKAGE})


def plant_in_notebook(folder, number, notebook, right, wrong):
    """A copy of the notebook with one fault in it."""
    copy = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    cells = [cell for cell in copy.cells if cell.cell_type == "code" and right in cell.source + "\n"]
    assert cells, f"{notebook} has no {right!r} any more"
    cells[0].source = (cells[0].source + "\n").replace(right, wrong).rstrip("\n")
    return write(copy, folder, number)


def plant_in_package(folder, number, notebook, right, wrong):
    """A copy of the notebook that imports a copy of the package with one fault in it."""
    package = folder / f"package_{number}"
    shutil.copytree(ROOT / "llama3_scratch", package / "llama3_scratch")
    module = package / "llama3_scratch" / "functional.py"
    source = module.read_text()
    assert right in source, f"functional.py has no {right!r} any more"
    module.write_text(source.replace(right, wrong))
    copy = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    first = next(cell for cell in copy.cells if cell.cell_type == "code")
    first.source = f"import sys\nsys.path.insert(0, {str(package)!r})\n" + first.source
    return write(copy, folder, number)


def write(notebook, folder, number):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)  # a fault is wrong code, not broken code
    path = folder / f"fault_{number}.ipynb"
    nbformat.write(notebook, path)
    return path


def assert_all_caught(planted, checkpoint, strict, sign):
    """`planted` is name -> notebook. `sign` must be in what nbval says: caught by a comparison, not by accident."""
    failed = failed_cells(list(planted.values()), checkpoint, strict)
    said = {name: failed.get(path.stem, "nothing") for name, path in planted.items()}
    assert not {name: text for name, text in said.items() if not re.search(sign, text)}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_fault_in_a_notebook_is_caught(checkpoint, tmp_path):
    faults = [fault for fault in IN_A_NOTEBOOK if fault[-1] == checkpoint]
    planted = {str(fault[:2]): plant_in_notebook(tmp_path, n, *fault[1:4]) for n, fault in enumerate(faults)}
    assert_all_caught(planted, checkpoint, strict=False, sign="AssertionError")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_fault_in_the_package_is_caught(checkpoint, tmp_path):
    faults = [fault for fault in IN_THE_PACKAGE if fault[-1] == checkpoint]
    planted = {str(fault[:2]): plant_in_package(tmp_path, n, *fault[1:4]) for n, fault in enumerate(faults)}
    assert_all_caught(planted, checkpoint, strict=False, sign="AssertionError|RuntimeError")


def test_every_fault_in_a_picture_is_caught(tmp_path):
    planted = {str(fault[:2]): plant_in_notebook(tmp_path, n, *fault[1:]) for n, fault in enumerate(IN_A_PICTURE)}
    assert_all_caught(planted, REAL, strict=True, sign="Picture")
