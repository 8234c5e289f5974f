"""Planted faults are caught.

A fault in a notebook's own code must be caught by its comparison with the package, a fault in the package by the
comparison with the notebook's own code (in both at once, the referee would catch it: test_referee.py), and a picture
drawn wrong by the numbers stored beside it. What no notebook computes by hand is guarded by tests, and these by
programs/mutate.py, which changes one thing of the package at a time.
"""

import ast
import re

import nbformat
import pytest
from helpers import REAL, ROOT, failed_cells

from llama3_scratch import training

# Notebooks whose proofs train a model of their own, and the heading above what takes long.
TRAINS = {"17_training": "## From random numbers to language"}

# What only notebooks call of the package, and the words with which they do so.
SPOKEN_OF = {
    "circuits": "circuits.",
    "lenses": "lenses.",
    "lora": "lora.",
    "tracing": "trace(",
    "training": "training.",
}

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
    (
        "a boundary within a group forgotten",
        "16_many_machines",
        "math.gcd(each, args.group_size)",
        "min(each, args.group_size)",
        "tiny-ratio1",
    ),
    (
        "neurons not added up",
        "16_many_machines",
        "return x + added(functional.feed_forward(y, *neurons))",
        "return x + functional.feed_forward(y, *neurons)",
        "tiny-ratio1",
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
    (
        "columns of wo dealt like cards",
        "13_heads",
        "view(params.dim, params.n_heads, -1)",
        "view(params.dim, -1, params.n_heads).transpose(1, 2)",
        "tiny-ratio3",
    ),
    ("a sum without its first term", "13_heads", 'terms = [run["embeddings"]]', "terms = []", "tiny-ratio3"),
    ("two back for one", "13_heads", "seen.diagonal(-1, 2, 3)", "seen.diagonal(-2, 2, 3)", "tiny-ratio3"),
    ("the copy for what follows", "13_heads", "diagonal(1 - half, 2, 3)", "diagonal(-half, 2, 3)", "tiny-ratio3"),
    (
        "the first row counted",
        "13_heads",
        "seen.diagonal(0, 2, 3)[..., 1:].mean(-1)",
        "seen.diagonal(0, 2, 3).mean(-1)",
        "tiny-ratio3",
    ),
    ("one largest entropy for all", "13_heads", "/ visible[1:].log()", "/ visible[-1].log()", "tiny-ratio3"),
    ("the wrong city forgotten", "13_heads", "right[0], against=wrong[0])\nfor", "right[0])\nfor", "tiny-ratio3"),
    (
        "a lone token at position 0",
        "13_heads",
        "functional.rotations(params, cache[0].shape[-2])[-1:]",
        "functional.rotations(params, cache[0].shape[-2])[:1]",
        "tiny-ratio3",
    ),
    (
        "a climb without feed-forward",
        "13_heads",
        "x = feed(torch.cat([look_back(x, n, run), entering]), n)",
        "x = torch.cat([look_back(x, n, run), entering])",
        "tiny-ratio3",
    ),
    ("a window one too wide", "13_heads", "places >= window", "places > window", "tiny-ratio3"),
    (
        "read without the gain",
        "14_lenses",
        '(state / size * weights["norm.weight"])',
        "(state / size)",
        "tiny-ratio3",
    ),
    ("read without eps", "14_lenses", " + params.norm_eps).sqrt()", ").sqrt()", "tiny-ratio4"),
    (
        "a thought from one layer below",
        "14_lenses",
        'riddle_run[f"layers.{n}.stream"][-1]',
        "riddle_run[places[n]][-1]",
        "tiny-ratio3",
    ),
    (
        "pushed below the layer",
        "14_lenses",
        "        return climb(x, layer + 1, params.n_layers)\n\n    with",
        "        return climb(x, layer, params.n_layers)\n\n    with",
        "tiny-ratio3",
    ),
    ("derivatives turned round", "14_lenses", '"sdte,te->sd"', '"tesd,te->sd"', "tiny-ratio3"),
    (
        "nobody hides what comes",
        "14_lenses",
        "functional.causal_mask(seq, x.dtype)",
        "torch.zeros(seq, seq)",
        "tiny-ratio3",
    ),
    (
        "the first token pushed",
        "14_lenses",
        "inside[1:-1] = 1\n        effects",
        "inside[:-1] = 1\n        effects",
        "tiny-ratio3",
    ),
    ("a sum for a mean", "14_lenses", "x, layer)[1:-1].mean(0)", "x, layer)[1:-1].sum(0)", "tiny-ratio3"),
    (
        "a lens from behind with another mean",
        "14_lenses",
        "[:, 1:-1].mean(1) * rows).sum()",
        "[:, 1:].mean(1) * rows).sum()",
        "tiny-ratio3",
    ),
    ("a share without the last norm", "13_heads", "* gain / size", "* gain", "tiny-ratio3"),
    ("a share without the gain", "13_heads", " * gain / size", " / size", "tiny-ratio3"),
    ("the vector before", "13_heads", "other[name][position][None]", "other[name][position - 1][None]", "tiny-ratio3"),
    ("not quite off", "13_heads", "x.index_fill(0, gone, 0)", "x.index_fill(0, gone, 1)", "tiny-ratio3"),
    ("one further back", "13_heads", "looks.float().diagonal(-n)", "looks.float().diagonal(-n - 1)", "tiny-ratio3"),
    ("written twice", "13_heads", "variants[n] = stream - written", "variants[n] = stream + written", "tiny-ratio3"),
    ("both countries", "13_heads", "- written[i] + written", "+ written", "tiny-ratio3"),
    ("the kept one dropped", "13_heads", "hidden[:, list(kept)] = False", "pass", "tiny-ratio3"),
    ("a rank counted from 1", "14_lenses", "(scores > of_final)", "(scores >= of_final)", "tiny-ratio3"),
    ("the state before", "14_lenses", "[[n + 1 for n in layers], -1]", "[layers, -1]", "tiny-ratio3"),
    (
        "every layer from the embeddings",
        "14_lenses",
        "climb(states[-1], layer, layer + 1)",
        "climb(states[0], layer, layer + 1)",
        "tiny-ratio3",
    ),
    (
        "a layer twice",
        "14_lenses",
        "climb(x, steer + 1, params.n_layers)[:, -1])\n",
        "climb(x, steer, params.n_layers)[:, -1])\n",
        "tiny-ratio3",
    ),
    (
        "labels not shifted",
        "17_training",
        "first_loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())",
        "first_loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, :-1].flatten())",
        "tiny-ratio3",
    ),
    (
        "labels not shifted in a step",
        "17_training",
        "loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())",
        "loss = F.cross_entropy(model(tokens[:, 1:]).flatten(0, 1), tokens[:, 1:].flatten())",
        "tiny-ratio3",
    ),
    (
        "surprise at the token itself",
        "17_training",
        "given = probs[range(len(targets)), targets]",
        "given = probs[range(1, len(row)), targets]",
        "tiny-ratio3",
    ),
    ("gradients not zeroed", "17_training", "    optimizer.zero_grad()  # or", "    # or", "tiny-ratio3"),
    (
        "one rate for all steps",
        "17_training",
        '        group["lr"] = rate\n    optimizer.step()',
        '        group["lr"] = settings.learning_rate\n    optimizer.step()',
        "tiny-ratio3",
    ),
    (
        "a step without clipping",
        "17_training",
        "    nn.utils.clip_grad_norm_(model.parameters(), clip)\n",
        "",
        "tiny-ratio3",
    ),
    (
        "each tensor clipped by itself",
        "17_training",
        "p.grad.pow(2).sum() for p in pupil.parameters()]).sum().sqrt()",
        "p.grad.pow(2).sum() for p in pupil.parameters()]).max().sqrt()",
        "tiny-ratio3",
    ),
    (
        "averages not corrected",
        "17_training",
        'm = state["m"] / (1 - betas[0] ** state["t"])',
        'm = state["m"]',
        "tiny-ratio3",
    ),
    ("no root", "17_training", "m / (v.sqrt() + eps)", "m / (v + eps)", "tiny-ratio3"),
    ("decay in the gradient", "17_training", "- rate * decay * weight", "- decay * weight", "tiny-ratio3"),
    (
        "one average for both",
        "17_training",
        "(1 - betas[1]) * gradient**2",
        "(1 - betas[1]) * gradient.abs()",
        "tiny-ratio3",
    ),
    (
        "norms decay",
        "17_training",
        "gains = [p for p in model.parameters() if p.ndim == 1]",
        "gains = []",
        "tiny-ratio3",
    ),
    (
        "a schedule one step behind",
        "17_training",
        "way = (step + 1 - settings.warmup)",
        "way = (step - settings.warmup)",
        "tiny-ratio3",
    ),
    (
        "a warm-up one step behind",
        "17_training",
        "settings.learning_rate * (step + 1) / settings.warmup",
        "settings.learning_rate * step / settings.warmup",
        "tiny-ratio3",
    ),
    ("a slope twice as steep", "17_training", "(2 * by)", "by", "tiny-ratio3"),
    ("moved one way only", "17_training", "(start + by, start - by)", "(start + by, start)", "tiny-ratio3"),
    ("pairs of kinds of words", "17_training", "pairs[pair] += counts[piece]", "pairs[pair] += 1", "tiny-ratio3"),
    (
        "windows without the last token",
        "17_training",
        "ids[start : start + settings.seq_len + 1] for start",
        "ids[start : start + settings.seq_len] for start",
        "tiny-ratio3",
    ),
    (
        "B not zero",
        "18_teach_it_42",
        "nn.Parameter(torch.zeros(out_size, rank))",
        "nn.Parameter(torch.ones(out_size, rank))",
        "tiny-ratio3",
    ),
    (
        "A left out",
        "18_teach_it_42",
        "self.linear(x) + x @ self.A.T @ self.B.T",
        "self.linear(x) + x @ self.A.T @ self.A @ self.linear.weight.T",
        "tiny-ratio3",
    ),
    (
        "added twice",
        "18_teach_it_42",
        "self.linear(x) + x @ self.A.T",
        "self.linear(x) + 2 * x @ self.A.T",
        "tiny-ratio3",
    ),
    ("the matrix left out", "18_teach_it_42", "return self.linear(x) + x @", "return x @", "tiny-ratio3"),
    ("A of another spread", "18_teach_it_42", "random / in_size**0.5", "random / rank**0.5", "tiny-ratio3"),
    (
        "the prompt learned, too",
        "18_teach_it_42",
        "losses(model)[-n_answer:].mean()",
        "losses(model).mean()",
        "tiny-ratio3",
    ),
    (
        "the answer read one late",
        "18_teach_it_42",
        "model(lesson[:-1]), lesson[1:]",
        "model(lesson[1:]), lesson[1:]",
        "tiny-ratio3",
    ),
    ("KL summed", "18_teach_it_42", "(old - new)).sum(-1).mean()", "(old - new)).sum()", "tiny-ratio3"),
    (
        "padding looked at",
        "18_teach_it_42",
        "rows = model(batch, attention_mask=mask)[:",
        "rows = model(batch)[:",
        "tiny-ratio3",
    ),
    ("the gradient's size kept", "18_teach_it_42", "p.grad / (p.grad.abs() + 1e-8)", "p.grad", "tiny-ratio3"),
    (
        "climbing",
        "18_teach_it_42",
        "p.data = p.data - rate * p.grad\n",
        "p.data = p.data + rate * p.grad\n",
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


# Faults in the package, found by function and syntax: how to change the function's tree. Names within a replacement are
# those of the function; {} stands for what is replaced.


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


def instead(new):
    """Another expression wherever one is read: right -> wrong."""

    def change(node):
        for name, old in ast.iter_fields(node):
            values = old if isinstance(old, list) else [old]
            for i, value in enumerate(values):
                is_read = isinstance(value, ast.expr) and not isinstance(getattr(value, "ctx", None), ast.Store)
                if is_read and (right := ast.unparse(value)) in new:
                    values[i] = expression(new[right], value)
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


FUSED = "attention"  # kernels.attention(q, k, v, mask)
# (what, notebook, function, change, checkpoint on which it shows)
IN_THE_PACKAGE = [
    (
        "group size typed in",
        "05_all_heads",
        "functional.attention",
        argument(FUSED, 1, "{}.repeat_interleave(4, dim=-3)[..., : wq.shape[0] // head_dim, :, :]"),
        "tiny-ratio3",
    ),
    (
        "groups dealt like cards",
        "05_all_heads",
        "functional.attention",
        argument(FUSED, 1, "{}.repeat(wq.shape[0] // wk.shape[0], 1, 1)"),
        "tiny-ratio3",
    ),
    ("missing mask", "05_all_heads", "functional.attention", argument(FUSED, 3, "None"), "tiny-ratio1"),
    (
        "unscaled scores",
        "05_all_heads",
        "functional.attention",
        argument(FUSED, 0, "{} * head_dim**0.5"),
        "tiny-ratio1",
    ),
    ("missing wo", "05_all_heads", "functional.attention", returned(lambda call: call.args[0]), "tiny-ratio1"),
    (
        "swapped w1 and w3",
        "06_feed_forward",
        "functional.feed_forward",
        instead({"w1": "w3", "w3": "w1"}),
        "tiny-ratio1",
    ),
    (
        "rotated value",
        "05_all_heads",
        "functional.attention",
        argument(FUSED, 2, "apply_rotary_emb({}.transpose(-3, -2), freqs_cis).transpose(-3, -2)"),
        "tiny-ratio1",
    ),
    ("norm without eps", "03_rmsnorm", "functional.rms_norm", instead({"eps": "0.0"}), "tiny-ratio4"),
    (
        "half-split pairs",
        "04_single_head_attention",
        "functional.apply_rotary_emb",
        instead({"x": "{}.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)"}),
        "tiny-ratio1",
    ),
    (
        "missing residual",
        "06_feed_forward",
        "functional.residual_block",
        returned(lambda total: total.right),
        "tiny-ratio1",
    ),
    (
        "changed in the record only",
        "13_heads",
        "tracing._Run.attention",
        instead({"heads.transpose(0, 1)": "(weights @ v).transpose(0, 1)"}),
        "tiny-ratio3",
    ),
    (
        "written of other heads",
        "13_heads",
        "tracing._Run.attention",
        instead({"torch.einsum('hsd,ohd->hso', heads, wo)": "torch.einsum('hsd,ohd->hso', heads.flip(0), wo)"}),
        "tiny-ratio3",
    ),
    (
        "copies for what follows them",
        "13_heads",
        "circuits.habits_of",
        instead({"copies[:, :-1]": "copies[:, 1:]"}),
        "tiny-ratio3",
    ),
    (
        "a mean over all rows",
        "13_heads",
        "circuits._mean_weight",
        instead({"place.any(-1).sum()": "len(place)"}),
        "tiny-ratio3",
    ),
    ("against forgotten", "13_heads", "circuits._output_row", instead({"rows[0] - rows[1]": "rows[0]"}), "tiny-ratio3"),
    ("read without the last norm", "14_lenses", "lenses.read", instead({"normed": "state"}), "tiny-ratio3"),
    ("a sum for a mean", "14_lenses", "lenses._push", instead({"there.sum(1)": "1.0"}), "tiny-ratio3"),
    ("the first token pushed", "14_lenses", "lenses._padded", instead({"skip": "0"}), "tiny-ratio3"),
    (
        "the thought from one layer below",
        "14_lenses",
        "lenses.jacobian_lens",
        instead({"here[layer + 1]": "here[layer]"}),
        "tiny-ratio3",
    ),
    (
        "padding pushed",
        "14_lenses",
        "lenses._padded",
        instead({"inside.bool()": "torch.arange(ids.shape[1]).ge(skip).expand_as(ids)"}),
        "tiny-ratio3",
    ),
    ("shares without the last norm", "13_heads", "circuits.attribution", instead({"scale": "1.0"}), "tiny-ratio3"),
    (
        "a layer too high",
        "13_heads",
        "circuits.patching",
        instead({"lenses.climb(model, x, row)": "lenses.climb(model, x, row + 1)"}),
        "tiny-ratio3",
    ),
    (
        "patched one too late",
        "13_heads",
        "circuits.patching",
        instead({"int((here != there).int().argmax())": "{} + 1"}),
        "tiny-ratio3",
    ),
    (
        "a push from one layer below",
        "14_lenses",
        "lenses.push",
        instead({"states(model, texts)[layer + 1]": "states(model, texts)[layer]"}),
        "tiny-ratio3",
    ),
    (
        "missing mask",
        "17_training",
        "functional.causal_mask",
        instead({"-torch.inf": "0.0"}),
        "tiny-ratio3",
    ),
    ("labels not shifted", "17_training", "training.loss", instead({"tokens[:, 1:]": "tokens[:, :-1]"}), "tiny-ratio3"),
    ("gradients not zeroed", "17_training", "training.update", instead({"opt.zero_grad()": "None"}), "tiny-ratio3"),
    ("a step without clipping", "17_training", "training.update", instead({"clip": "1e9"}), "tiny-ratio3"),
    (
        "one rate for all steps",
        "17_training",
        "training.update",
        instead({"rate": "opt.defaults['lr']"}),
        "tiny-ratio3",
    ),
    ("norms decay", "17_training", "training.parameter_groups", instead({"0.0": "weight_decay"}), "tiny-ratio3"),
    (
        "a schedule one step behind",
        "17_training",
        "training.learning_rate",
        instead({"step + 1 - settings.warmup": "step - settings.warmup"}),
        "tiny-ratio3",
    ),
    (
        "a warm-up one step behind",
        "17_training",
        "training.learning_rate",
        instead({"settings.learning_rate * (step + 1)": "settings.learning_rate * step"}),
        "tiny-ratio3",
    ),
    (
        "always the same batch",
        "17_training",
        "training.batch",
        instead({"settings.seed": "1 + settings.seed"}),
        "tiny-ratio3",
    ),
    ("pairs once for each word", "17_training", "loading.byte_pairs._count", instead({"times": "1"}), "tiny-ratio3"),
    ("B not zero", "18_teach_it_42", "lora.LoRA", instead({"torch.zeros": "torch.ones"}), "tiny-ratio3"),
    (
        "alpha not divided",
        "18_teach_it_42",
        "lora.LoRA.forward",
        instead({"self.alpha / self.rank": "self.alpha"}),
        "tiny-ratio3",
    ),
    ("nothing added", "18_teach_it_42", "lora.LoRA.forward", instead({"y + added.to(y.dtype)": "y"}), "tiny-ratio3"),
    (
        "A of another spread",
        "18_teach_it_42",
        "lora.LoRA",
        instead({"math.sqrt(in_features)": "in_features"}),
        "tiny-ratio3",
    ),
    (
        "the matrix learns, too",
        "18_teach_it_42",
        "lora.add",
        instead({"model.requires_grad_(False)": "model.requires_grad_(True)"}),
        "tiny-ratio3",
    ),
    (
        "subtracted",
        "18_teach_it_42",
        "lora.LoRA.product",
        instead({"self.B @ self.A": "-self.B @ self.A"}),
        "tiny-ratio3",
    ),
    ("alpha forgotten in a file", "18_teach_it_42", "lora.load", instead({"b": "2 * b"}), "tiny-ratio3"),
]


def plant_in_notebook(folder, number, notebook, right, wrong, pictures=False):
    """A copy of the notebook with one fault in it."""
    copy = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    cells = [cell for cell in copy.cells if cell.cell_type == "code" and right in cell.source + "\n"]
    assert cells, f"{notebook} has no {right!r} any more"
    cells[0].source = (cells[0].source + "\n").replace(right, wrong).rstrip("\n")
    ast.parse(cells[0].source)  # a fault is wrong code, not broken code
    return write(copy, folder, number, TRAINS.get(notebook), pictures)


def plant_in_package(folder, number, notebook, name, change):
    """A copy of the notebook that puts a function, or a class, with one fault in it into the package's module."""
    in_module, *inside = name.removeprefix("loading.").split(".")
    in_module = "loading." * name.startswith("loading.") + in_module
    module = ROOT / "llama3_scratch" / in_module.replace(".", "/")
    tree = ast.parse((module / "__init__.py" if module.is_dir() else module.with_suffix(".py")).read_text())
    whole = function = named(inside[0], tree)
    for part in inside[1:]:
        function = named(part, function)
    before = ast.unparse(function)
    for node in [node for statement in function.body for node in ast.walk(statement)]:
        change(node)
    assert ast.unparse(function) != before, f"{name} has no place for this fault any more"
    code = ast.unparse(ast.fix_missing_locations(whole))
    copy = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    code_cells = [cell for cell in copy.cells if cell.cell_type == "code"]
    # Where it is first spoken of, if only the notebook calls it: all cells before then run once for all these faults.
    words = [f"{in_module}.{inside[0]}", SPOKEN_OF[in_module]] if in_module in SPOKEN_OF else []
    spoken_of = [cell for word in words for cell in code_cells if word in cell.source]
    first = (spoken_of or code_cells)[0]
    planted = f"import sys\nimport llama3_scratch.{in_module}\n"
    planted += f"exec({code!r}, vars(sys.modules['llama3_scratch.{in_module}']))\n"
    first.source = planted + first.source
    return write(copy, folder, number, TRAINS.get(notebook))


def named(name, node):
    """The function or class of that name in a module or class."""
    return next(part for part in node.body if getattr(part, "name", None) == name)


def without_pictures(source):
    """A cell's code without its calls that only draw: nobody looks, and they take a third of the time."""
    lines = source.split("\n")
    for part in reversed(ast.parse(source).body):
        if isinstance(part, ast.Expr) and ast.unparse(part).startswith(("diagrams.", "plots.")):
            del lines[part.lineno - 1 : part.end_lineno]
    return "\n".join(lines)


def write(notebook, folder, number, trains=None, pictures=False):
    # Without the exercises and what trains a model of its own: no fault is planted there, and they take time. Where the
    # proofs themselves train, they are kept, up to the heading above what takes long.
    ends = (i for i, cell in enumerate(notebook.cells) if cell.source.startswith(trains or "## Exercises"))
    del notebook.cells[next(ends) :]
    if not trains:
        notebook.cells = [cell for cell in notebook.cells if "own-model" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code" and not pictures and "nbval-check-output" not in cell.metadata.get("tags", []):
            cell.source = without_pictures(cell.source)
    path = folder / f"fault_{number}.ipynb"
    nbformat.write(notebook, path)
    return path


def assert_all_caught(planted, checkpoint, compare="tagged"):
    """`planted` is name -> (notebook, sign). The sign must be in what failed: caught by a comparison, not by chance."""
    failed = failed_cells([path for path, _ in planted.values()], checkpoint, compare)
    said = {name: failed.get(path.stem, "nothing") for name, (path, _) in planted.items()}
    assert not {name: text for name, text in said.items() if not re.search(planted[name][1], text)}


@pytest.fixture
def short_text(tmp_path, monkeypatch):
    """For the models that notebook 17 trains: its proofs hold on any text, and a short one takes less time."""
    path = tmp_path / "text.txt"
    path.write_text(training.read_text()[:25_000])
    monkeypatch.setenv("LLAMA3_TEXT", str(path))


@pytest.mark.parametrize("checkpoint", sorted({fault[-1] for fault in IN_A_NOTEBOOK + IN_THE_PACKAGE}))
def test_every_fault_in_a_notebook_and_in_the_package_is_caught(checkpoint, tmp_path, short_text):
    """All on one checkpoint at once: what they have in common of a notebook then runs once."""
    planted = {}
    for plant, faults, sign in (
        (plant_in_notebook, IN_A_NOTEBOOK, "AssertionError"),
        (plant_in_package, IN_THE_PACKAGE, "AssertionError|RuntimeError"),
    ):
        for what, notebook, *change in (fault[:-1] for fault in faults if fault[-1] == checkpoint):
            name = f"{what}: {notebook}, {plant.__name__}"
            planted[name] = plant(tmp_path, len(planted), notebook, *change), sign
    assert_all_caught(planted, checkpoint)


def test_every_fault_in_a_picture_is_caught(tmp_path):
    planted = {}
    for what, *fault in IN_A_PICTURE:
        planted[what] = plant_in_notebook(tmp_path, len(planted), *fault, pictures=True), "Picture"
    assert_all_caught(planted, REAL, compare="all")
