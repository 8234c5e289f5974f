"""Planted faults are caught.

A fault in a notebook's own code must be caught by its comparison with the package, a fault in the package by the
comparison with the notebook's own code (in both at once, the referee would catch it: test_referee.py), and a picture
drawn wrong by the numbers stored beside it. What no notebook computes by hand is guarded by tests, and these by
programs/mutate.py, which changes one thing of the package at a time.
"""

import ast
import re
import shutil

import nbformat
import pytest
from helpers import REAL, ROOT, failed_cells

# (what, notebook, right, wrong, checkpoint on which it shows)
IN_A_NOTEBOOK = [
    ("lowest rank forgotten", "01_tokenizer", "return min(joins)[1]", "return joins[0][1]", "tiny-ratio1"),
    ("digits one by one", "01_tokenizer", r"\p{N}{1,3}", r"\p{N}", "tiny-ratio1"),
    ("ids shifted", "02_embedding", "x = table[tokens]", "x = table[tokens - 1]", "tiny-ratio1"),
    (
        "shortcut forgotten",
        "01_tokenizer",
        "return [piece] if piece in ranks else merge_bytes(piece)",
        "return merge_bytes(piece)",
        "tiny-ratio1",
    ),
    (
        "special ids off by one",
        "01_tokenizer",
        "len(ranks) + i for i, name",
        "len(ranks) + 1 + i for i, name",
        "tiny-ratio1",
    ),
    ("cosine by one length", "02_embedding", "/ (a.norm(dim=-1) * b.norm(dim=-1))", "/ a.norm(dim=-1)", "tiny-ratio1"),
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
    (
        "unscaled scores",
        "04_single_head_attention",
        " / math.sqrt(params.head_dim)\nprint(list(q_rotated",
        "\nprint(list(q_rotated",
        "tiny-ratio3",
    ),
    ("sum for mean", "03_rmsnorm", "wide.pow(2).mean(dim=-1", "wide.pow(2).sum(dim=-1", "tiny-ratio3"),
    (
        "turned the other way",
        "04_single_head_attention",
        "first * angles.cos() - second",
        "first * angles.cos() + second",
        "tiny-ratio3",
    ),
    (
        "mask that lets one through",
        "04_single_head_attention",
        "-torch.inf, dtype=dtype).triu(1)",
        "-torch.inf, dtype=dtype).triu(2)",
        "tiny-ratio3",
    ),
    (
        "softmax twice as sharp",
        "04_single_head_attention",
        "powers = [math.exp(score)",
        "powers = [math.exp(2 * score)",
        "tiny-ratio3",
    ),
    (
        "queries turned backwards",
        "04_single_head_attention",
        "q_complex * freqs_cis",
        "q_complex * freqs_cis.conj()",
        "tiny-ratio3",
    ),
    (
        "frequencies of a wrong exponent",
        "04_single_head_attention",
        "args.rope_theta**exponents",
        "args.rope_theta ** (2 * exponents)",
        "tiny-ratio3",
    ),
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
        "groups dealt like cards",
        "05_all_heads",
        "kv_head = head // params.group_size",
        "kv_head = head % params.n_kv_heads",
        "tiny-ratio3",
    ),
    ("missing residual", "05_all_heads", "stream = embeddings + delta", "stream = x + delta", "tiny-ratio1"),
    (
        "heads in another order",
        "05_all_heads",
        "mean.transpose(0, 1).flatten(1)",
        "mean.reshape(seq, -1)",
        "tiny-ratio3",
    ),
    ("gate of w3", "06_feed_forward", "z = x @ w1.T  #", "z = x @ w3.T  #", "tiny-ratio1"),
    ("up of w1", "06_feed_forward", "up = x @ w3.T", "up = x @ w1.T", "tiny-ratio1"),
    ("sigmoid for SiLU", "06_feed_forward", "gate = z * torch.sigmoid(z)", "gate = torch.sigmoid(z)", "tiny-ratio1"),
    (
        "missing ffn_norm",
        "06_feed_forward",
        'x = functional.rms_norm(stream, weight(0, "ffn_norm"), params.norm_eps)',
        "x = stream",
        "tiny-ratio1",
    ),
    (
        "hidden size not rounded",
        "06_feed_forward",
        "args.multiple_of * -(-hidden // args.multiple_of)",
        "hidden",
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
    ("missing mask", "07_all_layers", "(scores + mask).float()", "scores.float()", "tiny-ratio1"),
    (
        "groups dealt like cards",
        "07_all_layers",
        "k.repeat_interleave(params.group_size, dim=0)",
        "k.repeat(params.group_size, 1, 1)",
        "tiny-ratio3",
    ),
    ("missing residual", "07_all_layers", "x = x + feed_forward(norm(x", "x = feed_forward(norm(x", "tiny-ratio1"),
    (
        "last norm missing on the page",
        "08_logits",
        '(norm(x, weights["norm.weight"]) @ output.T)',
        "(x @ output.T)",
        "tiny-ratio1",
    ),
    ("rotations not stretched", "08_logits", "if params.use_scaled_rope:", "if False:", "tiny-scaled"),
    ("unscaled scores", "08_logits", " / math.sqrt(params.head_dim)\n    mask", "\n    mask", "tiny-ratio3"),
    (
        "swapped w1 and w3",
        "08_logits",
        'F.silu(x @ w("feed_forward.w1").T) * (x @ w("feed_forward.w3").T)',
        'F.silu(x @ w("feed_forward.w3").T) * (x @ w("feed_forward.w1").T)',
        "tiny-ratio1",
    ),
    (
        "tied by name, not by storage",
        "09_modules",
        "    if is_tied(weights):\n        llama.output.weight = llama.tok_embeddings.weight\n",
        "",
        "tiny-ratio3",
    ),
    (
        "attention reads the stream itself",
        "09_modules",
        "h = x + self.attention(self.attention_norm(x), freqs_cis, mask)",
        "h = x + self.attention(x, freqs_cis, mask)",
        "tiny-ratio1",
    ),
    ("missing last norm", "09_modules", "self.output(self.norm(h)).float()", "self.output(h).float()", "tiny-ratio1"),
    (
        "groups dealt like cards",
        "09_modules",
        "heads.repeat_interleave(params.n_heads // heads.shape[1], dim=1)",
        "heads.repeat(1, params.n_heads // heads.shape[1], 1, 1)",
        "tiny-ratio3",
    ),
    (
        "padding not masked",
        "09_modules",
        "package(batch, attention_mask=attention_mask)[shorter, -1]",
        "package(batch)[shorter, -1]",
        "tiny-ratio1",
    ),
    (
        "a new token at position 0",
        "10_generation",
        "new_rotation = freqs_cis[n:]",
        "new_rotation = freqs_cis[:1]",
        "tiny-ratio3",
    ),
    (
        "positions one too far",
        "10_generation",
        "position = torch.tensor([len(again) - 1])",
        "position = torch.tensor([len(again)])",
        "tiny-ratio3",
    ),
    (
        "top-p one token short",
        "10_generation",
        "before = sorted_probs.cumsum(-1) - sorted_probs",
        "before = sorted_probs.cumsum(-1)",
        "tiny-ratio3",
    ),
    ("the first token's value", "10_generation", "heads(x[n:], wv)])", "heads(x[:1], wv)])", "tiny-ratio3"),
    (
        "a conversation that skips a token",
        "10_generation",
        "ids[shared:], cache",
        "ids[shared + 1 :], cache",
        "tiny-scaled",
    ),
    (
        "values not counted",
        "11_sizes_and_long_texts",
        "(q_dim + kv_dim + kv_dim + q_dim)",
        "(q_dim + kv_dim + q_dim)",
        "tiny-ratio3",
    ),
    (
        "one norm a layer",
        "11_sizes_and_long_texts",
        "in_feed_forward + 2 * llama3_8b.dim",
        "in_feed_forward + llama3_8b.dim",
        "tiny-ratio3",
    ),
    ("rounded down", "11_sizes_and_long_texts", "neurons = math.ceil(", "neurons = math.floor(", "tiny-ratio3"),
    ("tied upside down", "11_sizes_and_long_texts", "if tied else total", "if not tied else total", "tiny-ratio3"),
    (
        "a blend of a wrong width",
        "11_sizes_and_long_texts",
        "(trained_turns - low) / (high - low)",
        "(trained_turns - low) / high",
        "tiny-ratio3",
    ),
    (
        "sped up, not slowed down",
        "11_sizes_and_long_texts",
        "(1 - share) * trained / factor",
        "(1 - share) * trained * factor",
        "tiny-ratio3",
    ),
    ("the header read as numbers", "12_files", "f.seek(8 + length + begin)", "f.seek(8 + begin)", "tiny-ratio1"),
    ("exponents one too small", "12_files", "2 ** (exponent - 127)", "2 ** (exponent - 128)", "tiny-ratio1"),
    (
        "half of a tied gradient",
        "12_files",
        "assert_close(as_table + as_output, both)",
        "assert_close(as_table, both)",
        "tiny-ratio1",
    ),
    (
        "halves exchanged",
        "12_files",
        "torch.cat([rows[0::2], rows[1::2]])",
        "torch.cat([rows[1::2], rows[0::2]])",
        "tiny-ratio3",
    ),
    (
        "all shards joined by rows",
        "12_files",
        "torch.cat([left[key], right[key]], dim)",
        "torch.cat([left[key], right[key]], 0)",
        "tiny-ratio1",
    ),
    (
        "wo cut by rows",
        "12_files",
        'key.endswith(("wo.weight", "w2.weight"))',
        'key.endswith("w2.weight")',
        "tiny-ratio3",
    ),
    (
        "gathered in another order",
        "12_files",
        "torch.cat(shares, dim=-1)",
        "torch.cat(shares[::-1], dim=-1)",
        "tiny-ratio3",
    ),
]
# A picture drawn wrong is caught by the numbers stored beside it.
IN_A_PICTURE = [
    (
        "heatmap of another matrix",
        "04_single_head_attention",
        'masked.float(), labels, labels, "Scores after',
        'scores.float(), labels, labels, "Scores after',
    ),
    ("one wrong cell", "02_embedding", "cosines = unit @ unit.T\n", "cosines = unit @ unit.T\ncosines[3, 5] += 0.1\n"),
    ("a norm counted among matrices", "02_embedding", '"attention": "attention.w"', '"attention": "attention"'),
    ("colours of positive numbers only", "02_embedding", "vmin=-reach,", "vmin=0.0,"),
    ("the next token's name", "03_rmsnorm", "plots.bars(labels, rms(x)", "plots.bars([*labels[1:], labels[0]], rms(x)"),
    (
        "rotation off by 0.02",
        "04_single_head_attention",
        "plots.complex_plane(freqs_cis[position],",
        "plots.complex_plane(freqs_cis[position] * torch.exp(torch.tensor(0.02j)),",
    ),
]


# Faults in llama3_scratch/functional.py, found by function and syntax: how to change the function's tree. Names within
# a replacement are parameters of the function; {} stands for what is replaced.


def argument(call, position, new):
    """Another argument in every call of that name, by position or keyword."""

    def change(node):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).split(".")[-1] != call:
            return
        if isinstance(position, int):
            node.args[position] = expression(new, node.args[position])
        else:
            node.keywords = [k for k in node.keywords if k.arg != position]
            node.keywords.append(ast.keyword(position, expression(new)))

    return change


def parameters(**new):
    """Something else wherever a parameter is read."""

    def change(node):
        for name, old in ast.iter_fields(node):
            values = old if isinstance(old, list) else [old]
            for i, value in enumerate(values):
                if isinstance(value, ast.Name) and isinstance(value.ctx, ast.Load) and value.id in new:
                    values[i] = expression(new[value.id], value)
            setattr(node, name, values if isinstance(old, list) else values[0])

    return change


def returned(part):
    """A part of what is returned in the place of the whole."""

    def change(node):
        if isinstance(node, ast.Return):
            node.value = part(node.value)

    return change


def expression(new, old=None):
    return ast.parse(new.replace("{}", f"({ast.unparse(old)})" if old else ""), mode="eval").body


FUSED = "scaled_dot_product_attention"
# (what, notebook, function, change, checkpoint on which it shows)
IN_THE_PACKAGE = [
    (
        "group size typed in",
        "05_all_heads",
        "attention",
        argument(FUSED, 1, "{}.repeat_interleave(4, dim=-3)[..., : wq.shape[0] // head_dim, :, :]"),
        "tiny-ratio3",
    ),
    (
        "groups dealt like cards",
        "05_all_heads",
        "attention",
        argument(FUSED, 1, "{}.repeat(wq.shape[0] // wk.shape[0], 1, 1)"),
        "tiny-ratio3",
    ),
    ("missing mask", "05_all_heads", "attention", argument(FUSED, "attn_mask", "None"), "tiny-ratio1"),
    ("unscaled scores", "05_all_heads", "attention", argument(FUSED, "scale", "1.0"), "tiny-ratio1"),
    ("missing wo", "05_all_heads", "attention", returned(lambda call: call.args[0]), "tiny-ratio1"),
    ("swapped w1 and w3", "06_feed_forward", "feed_forward", parameters(w1="w3", w3="w1"), "tiny-ratio1"),
    (
        "rotated value",
        "05_all_heads",
        "attention",
        argument(FUSED, 2, "apply_rotary_emb({}.transpose(-3, -2), freqs_cis).transpose(-3, -2)"),
        "tiny-ratio1",
    ),
    ("norm without eps", "03_rmsnorm", "rms_norm", parameters(eps="0.0"), "tiny-ratio4"),
    (
        "half-split pairs",
        "04_single_head_attention",
        "apply_rotary_emb",
        parameters(x="{}.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)"),
        "tiny-ratio1",
    ),
    ("missing residual", "06_feed_forward", "residual_block", returned(lambda total: total.right), "tiny-ratio1"),
]


def checkpoints(faults):
    return pytest.mark.parametrize("checkpoint", sorted({fault[-1] for fault in faults}))


def plant_in_notebook(folder, number, notebook, right, wrong):
    """A copy of the notebook with one fault in it."""
    copy = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    cells = [cell for cell in copy.cells if cell.cell_type == "code" and right in cell.source + "\n"]
    assert cells, f"{notebook} has no {right!r} any more"
    cells[0].source = (cells[0].source + "\n").replace(right, wrong).rstrip("\n")
    return write(copy, folder, number)


def plant_in_package(folder, number, notebook, name, change):
    """A copy of the notebook that imports a copy of the package with one fault in it."""
    package = folder / f"package_{number}"
    shutil.copytree(ROOT / "llama3_scratch", package / "llama3_scratch", ignore=shutil.ignore_patterns("__pycache__"))
    module = package / "llama3_scratch" / "functional.py"
    tree = ast.parse(module.read_text())
    function = next(f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == name)
    before = ast.unparse(function)
    for node in [node for statement in function.body for node in ast.walk(statement)]:
        change(node)
    assert ast.unparse(function) != before, f"functional.{name} has no place for this fault any more"
    module.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    copy = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    first = next(cell for cell in copy.cells if cell.cell_type == "code")
    forget = (
        "for name in [name for name in sys.modules if name.startswith('llama3_scratch')]:\n    del sys.modules[name]"
    )
    first.source = f"import sys\nsys.path.insert(0, {str(package)!r})\n{forget}\n{first.source}"
    return write(copy, folder, number)


def write(notebook, folder, number):
    # Without the exercises: no fault is planted there, and they take time.
    ends = (i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## Exercises"))
    del notebook.cells[next(ends) :]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)  # a fault is wrong code, not broken code
    path = folder / f"fault_{number}.ipynb"
    nbformat.write(notebook, path)
    return path


def assert_all_caught(planted, checkpoint, compare, sign):
    """`planted` is name -> notebook. `sign` must be in what failed: caught by a comparison, not by accident."""
    failed = failed_cells(list(planted.values()), checkpoint, compare)
    said = {name: failed.get(path.stem, "nothing") for name, path in planted.items()}
    assert not {name: text for name, text in said.items() if not re.search(sign, text)}


@checkpoints(IN_A_NOTEBOOK)
def test_every_fault_in_a_notebook_is_caught(checkpoint, tmp_path):
    faults = [fault for fault in IN_A_NOTEBOOK if fault[-1] == checkpoint]
    planted = {str(fault[:2]): plant_in_notebook(tmp_path, n, *fault[1:4]) for n, fault in enumerate(faults)}
    assert_all_caught(planted, checkpoint, compare="tagged", sign="AssertionError")


@checkpoints(IN_THE_PACKAGE)
def test_every_fault_in_the_package_is_caught(checkpoint, tmp_path):
    faults = [fault for fault in IN_THE_PACKAGE if fault[-1] == checkpoint]
    planted = {str(fault[:2]): plant_in_package(tmp_path, n, *fault[1:4]) for n, fault in enumerate(faults)}
    assert_all_caught(planted, checkpoint, compare="tagged", sign="AssertionError|RuntimeError")


def test_every_fault_in_a_picture_is_caught(tmp_path):
    planted = {str(fault[:2]): plant_in_notebook(tmp_path, n, *fault[1:]) for n, fault in enumerate(IN_A_PICTURE)}
    assert_all_caught(planted, REAL, compare="all", sign="Picture")
