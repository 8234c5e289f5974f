# ruff: noqa: E501 - a fault stands on one line
"""Planted faults that are caught without running anything: in words and numbers of the prose, in what pictures are
told to show, in proofs, and in the form of a notebook.

What only a run can catch stands in test_faults.py, what is wrong on a finished picture in test_plots.py, weak checks of
exercises in test_exercises.py.
"""

import copy
import re
from functools import cache

import identifiers
import inventory
import proofs
import prose
import pytest
import structure
from cells import NOTEBOOKS, prose_cells, read
from formulas import wrong_formulas

PATHS = {path.stem[:2]: path for path in NOTEBOOKS}
# Each gives what there is to say of a notebook; a fault changes what one of them says.
CHECKS = {
    "facts": lambda book, path: list(prose.wrong_entries(book)),
    "numbers": lambda book, path: list(prose.unbound(book)),
    "formulas": lambda book, path: list(wrong_formulas(book)),
    "proofs": lambda book, path: [*map(proofs.hollow, proofs.proofs(book))],
    "inventory": lambda book, path: inventory.inventory(book),
    "names": lambda book, path: list(identifiers.unknown(book)),
    **{check.__name__: lambda book, path, check=check: list(check(book, path)) for check in structure.CHECKS},
}


@cache
def clean(number):
    return read(PATHS[number])


@cache
def before(number, name):
    return CHECKS[name](clean(number), PATHS[number])


def caught(number, book):
    """The first check that says something else than before."""
    return next((name for name, check in CHECKS.items() if check(book, PATHS[number]) != before(number, name)), "")


def with_other_words(number, right, wrong):
    book = copy.deepcopy(clean(number))
    cells = [cell for cell in book.cells if right in cell.source]
    assert cells, f"notebook {number} has no {right!r} any more"
    cells[0].source = cells[0].source.replace(right, wrong, 1)
    return book


# what -> (notebook, right, wrong)
# fmt: off
IN_PROSE = {
    "a count": ("01", "588 do not", "688 do not"),
    "digits exchanged": ("02", "8,030,261,248", "8,030,216,248"),
    "a size in a table": ("02", "| 32, 8 |", "| 32, 4 |"),
    "a size in the same table": ("02", "| 4,096 |", "| 4,960 |"),
    "another head": ("04", "it is head 3", "it is head 2"),
    "a score": ("04", "13.87 both times", "13.78 both times"),
    "degrees": ("04", "one radian is 57 degrees", "one radian is 75 degrees"),
    "KiB": ("05", "128 KiB", "256 KiB"),
    "one in a thousand": ("05", "one in a hundred", "one in a thousand"),
    "heads of all layers": ("05", "270 heads", "207 heads"),
    "a loudness": ("03", "22 times too loud", "12 times too loud"),
    "a cosine": ("02", "cosine of 0.44", "cosine of 0.54"),
    "a sign": ("06", "between −8 and −20", "between 8 and −20"),
    "a neuron": ("06", "neuron 1005 of layer 24", "neuron 1005 of layer 25"),
    "eleven times": ("06", "eleven times as long", "twelve times as long"),
    "half for a third": ("06", "Half of them", "A third of them"),
    "per cent": ("06", "for 95 % of", "for 59 % of"),
    "megabytes": ("07", "436 MB at 8B", "463 MB at 8B"),
    "seconds": ("07", "took 1.35 seconds", "took 1.53 seconds"),
    "a layer": ("07", "feed-forward in layer 11", "feed-forward in layer 12"),
    "digits of a number": ("03", "has 21 digits", "has 12 digits"),
    "an angle": ("08", "75 degrees", "57 degrees"),
    "a factor": ("08", "39 times as large", "93 times as large"),
    "a version": ("08", "and 3.2, from 1B", "and 3.3, from 1B"),
    "tokens": ("07", "the article's 17 tokens", "the article's 71 tokens"),
    "a function that does not exist": (
        "05",
        "`functional.scaled_dot_product_attention`",
        "`functional.scaled_dot_attention`",
    ),
    "an older name of a function": ("02", "`load_checkpoint` opened", "`open_checkpoint` opened"),
    "a matrix that does not exist": ("04", "`o_proj`", "`out_proj`"),
    "a field that does not exist": ("02", "`n_kv_heads`", "`num_kv_heads`"),
    "another matrix": ("05", "Rows of <code>wq</code> and columns of <code>wo</code>", "Rows of <code>wq</code> and columns of <code>wk</code>"),
    "another shape": ("04", "times `[dim, head_dim]`", "times `[head_dim, dim]`"),
    "a key that does not exist": ("02", "`norm.weight`", "`final_norm.weight`"),
    "a question turned round": ("04", "Which will hurt more", "Which will hurt less"),
    "another question": (
        "01",
        "How many of the 128,000 will come back whole",
        "How few of the 128,000 will come back whole",
    ),
    "Llama 3.1 for 3": ("01", "Llama 3's own", "Llama 3.1's own"),
    "a bare number in code": ("08", "it would have said `4`", "it would have said `7`"),
    "terms of a sum": ("13", "In SmolLM2 that is 301", "In SmolLM2 that is 310"),
    "a score of a head": ("13", "0.36 against 0.36", "0.36 against 0.63"),
    "a grey page": ("13", "185 of SmolLM2's 270 heads", "158 of SmolLM2's 270 heads"),
    "another name of a head": ("13", "It is 1.3, a head", "It is 3.1, a head"),
    "a sign of a neuron": ("13", "between -10 and -22 before", "between 10 and -22 before"),
    "a loss": ("13", "from 1.1 to 6.4 on the code", "from 1.1 to 4.6 on the code"),
    "hits": ("14", "in 16 of the twenty", "in 19 of the twenty"),
    "a layer too far": ("14", "up to layer 22 (in all", "up to layer 32 (in all"),
}
IN_FORMULAS = {
    "a lost square": ("03", r"x_j^2", r"x_j"),
    "a lost brace": ("03", r"\frac{x_i}{", r"\frac{x_i{"),
    "a lost root": ("04", r"q\,k^T / \sqrt{\mathrm{head\_dim}}", r"q\,k^T / \mathrm{head\_dim}"),
    "a sign": ("04", r"a\cos\varphi - b\sin\varphi", r"a\cos\varphi + b\sin\varphi"),
    "a conjugate": ("04", r"\overline{k e^{in\varphi}}", r"k e^{in\varphi}"),
    "the wrong matrix": ("06", r"\odot y W_3^{\top}", r"\odot y W_1^{\top}"),
    "a shape": ("05", r"\underset{[\text{seq},\ \text{seq}]}", r"\underset{[\text{seq},\ \text{dim}]}"),
    "a norm forgotten": ("08", r"\operatorname{norm}(x)\; W_{\text{output}}", r"x\; W_{\text{output}}"),
    "a sign of the loss": ("07", r"$-\ln p$", r"$\ln p$"),
    "a lost dollar": ("06", r"$z < 0$", r"$z < 0"),
    "group for head": ("05", r"\lfloor i / \mathrm{group\_size} \rfloor", r"\lfloor i / \mathrm{n\_heads} \rfloor"),
    "another token's row": ("13", r"(W_a - W_b)", r"(W_a + W_b)"),
    "a gain forgotten": ("13", r"\frac{g \odot (W_a", r"\frac{(W_a"),
    "the way back": ("13", r"\frac{m - m_{\text{patched}}}{m - m'}", r"\frac{m_{\text{patched}} - m}{m - m'}"),
    "a lens without J": ("14", r"\operatorname{norm}(J_\ell\, x_{\ell, t})", r"\operatorname{norm}(x_{\ell, t})"),
    "who looks ahead": ("14", r"\sum_{t \le t'}", r"\sum_{t \ge t'}"),
}
ON_PICTURES = {
    "names of rows and columns": (
        "04",
        'axes = {"row_name": "query of", "column_name": "key of"}',
        'axes = {"row_name": "key of", "column_name": "query of"}',
    ),
    "the next token's label": (
        "08",
        "plots.token_labels(tokenizer, read[:-1].tolist()),",
        "plots.token_labels(tokenizer, read[1:].tolist()),",
    ),
    "the token read for the guess": (
        "08",
        "plots.token_labels(tokenizer, guess.tolist()),",
        "plots.token_labels(tokenizer, read[:-1].tolist()),",
    ),
    "right and wrong": ("08", "(guess == read[1:]).tolist()", "(guess != read[1:]).tolist()"),
    "ids in reverse": ("01", "plots.token_strip(labels, ids,", "plots.token_strip(labels, ids[::-1],"),
    "axis names": ("07", '"layers done", "RMS"', '"RMS", "layers done"'),
    "log_y": (
        "07",
        'plots.lines(curves, "Growth of the stream", "layers done", "RMS", log_y=True',
        'plots.lines(curves, "Growth of the stream", "layers done", "RMS", log_y=False',
    ),
    "a title": ("03", '"RMS of each embedding"', '"Length of each embedding"'),
    "vmin": ("02", "vmin=-reach,", "vmin=0.0,"),
    "counted from 1": ("08", "[str(n) for n in range(params.n_heads)]", "[str(n + 1) for n in range(params.n_heads)]"),
    "another box": ("06", 'here="feed_forward"', 'here="attention"'),
    "the dark box": ("01", "strong=joined", "strong=[None, *joined[:-1]]"),
    "axes exchanged": ("13", 'row_name="question",\n    column_name="put in from"', 'row_name="put in from",\n    column_name="question"'),
    "rows upside down": ("14", '["embeddings", *(f"layer {n}" for n in range(params.n_layers))][::-1],', '["embeddings", *(f"layer {n}" for n in range(params.n_layers))],'),
}
PROOFS = {
    "an assert removed": ("03", "torch.testing.assert_close(y, functional.rms_norm(x, gain, params.norm_eps))", ""),
    "the second one removed": ("03", "torch.testing.assert_close(y, F.rms_norm(x, gain.shape, gain, params.norm_eps))", ""),
    "against itself": ("06", "torch.testing.assert_close(gate, F.silu(z), **tolerance)", "torch.testing.assert_close(gate, gate, **tolerance)"),
    "against itself by another name": ("05", "ours = functional.attention(x, wq, wk, wv, wo, freqs_cis, mask, params.head_dim)", "ours = delta.clone()"),
    "a wide tolerance": ("04", "torch.testing.assert_close(mask, functional.causal_mask(seq, dtype))", "torch.testing.assert_close(mask, functional.causal_mask(seq, dtype), rtol=1, atol=1)"),
    "a tolerance set wide": ("06", "half_the_digits = torch.finfo(x.dtype).eps ** 0.5", "half_the_digits = torch.finfo(x.dtype).eps ** 0.05"),
    "assert True": ("07", "assert len(streams) == params.n_layers + 1", "assert True"),
    "an or that is always true": ("06", "assert hidden_size(params) == params.hidden_dim == w1.shape[0]", "assert hidden_size(params) == params.hidden_dim or True"),
    "fewer cases": ("01", "for text in nasty)", "for text in nasty[:1])"),
    "no case": ("01", "for text in sample)", "for text in [])"),
    "a shape for the numbers": ("08", "torch.testing.assert_close(ours, theirs, **tolerance)", "assert ours.shape == theirs.shape"),
    "one layer for all": ("07", "enumerate(pairwise(streams))", "enumerate(pairwise(streams[:2]))"),
    "our own function called": ("06", "return args.multiple_of * -(-hidden // args.multiple_of)", "return args.hidden_dim"),
    "the package for the hand": ("02", "x = table[tokens]", "x = F.embedding(tokens, table)"),
    "a constant": ("01", "assert ids == [int(number) for number in printed.split()]", "assert printed"),
    "no sum of all terms": ("13", "assert error < half_the_digits", ""),
    "one habit for six": ("13", "for name, score in by_hand.items():", "for name, score in [*by_hand.items()][:1]:"),
    "the package against the package": ("13", "theirs = circuits.attribution(ckpt, questions[0], right[0], against=wrong[0])", "theirs = dict(zip(('embeddings', 'heads', 'feed_forward'), parts))"),
    "a derivative that may be wrong": ("14", "assert difference < 0.01", "assert difference < 10"),
    "the lens not compared": ("14", "torch.testing.assert_close(packaged[0, -1], jacobian[0], rtol=1e-3, atol=1e-3)", ""),
}
IN_FORM = {
    "a heading's number": ("05", "# 5. ", "# 6. "),
    "a heading's level": ("04", "### Which head", "#### Which head"),
    "a heading's words": ("04", "## The mask", "## The masks"),
    "a lost section": ("06", "## Summary", "## Recap"),
    "a broken link": ("04", "](05_all_heads.ipynb)", "](05_all_head.ipynb)"),
    "the wrong notebook": ("03", "[notebook 7](07_all_layers.ipynb)", "[notebook 7](08_logits.ipynb)"),
    "the wrong number": ("03", "[notebook 7](07_all_layers.ipynb)", "[notebook 8](07_all_layers.ipynb)"),
    "next leads astray": ("05", "**Next:** [6. Feed-forward](06_feed_forward.ipynb)", "**Next:** [7. All layers](07_all_layers.ipynb)"),
    "another paper": ("04", "arxiv.org/abs/2104.09864", "arxiv.org/abs/2104.09846"),
    "another year": ("04", "Su and others, 2021", "Su and others, 2012"),
    "no https": ("04", "https://arxiv.org/abs/1706.03762", "http://arxiv.org/abs/1706.03762"),
    "a host that nobody approved": ("04", "https://arxiv.org/abs/1706.03762", "https://example.com/abs/1706.03762"),
    "an exercise's number": ("05", "**3. (harder)**", "**2. (harder)**"),
    "a link to another exercise": ("14", "08_logits.ipynb#Exercises", "07_all_layers.ipynb#Exercises"),
    "a heading of the first part": ("13", "## How a fact gets there", "### How a fact gets there"),
    "another paper on sinks": ("13", "arxiv.org/abs/2309.17453", "arxiv.org/abs/2309.17435"),
    "next leads nowhere": ("14", "[Previous: 13. Heads](13_heads.ipynb)", "[Previous: 13. Heads](12_files.ipynb)"),
}
# fmt: on
WORDS = {
    f"{kind}: {what}": fault
    for kind, table in {
        "prose": IN_PROSE,
        "formula": IN_FORMULAS,
        "picture": ON_PICTURES,
        "proof": PROOFS,
        "form": IN_FORM,
    }.items()
    for what, fault in table.items()
}


@pytest.mark.parametrize("what", WORDS)
def test_a_fault_in_words_is_caught(what):
    number, right, wrong = WORDS[what]
    assert caught(number, with_other_words(number, right, wrong))


def lose_tag(tag):
    def lose(book):
        cell = next(cell for cell in book.cells if tag in cell.metadata.get("tags", []))
        cell.metadata["tags"].remove(tag)

    return lose


def swap(kind, whole):
    """Two neighbours of a kind change places, with their names or without."""

    def change(book):
        places = [i for i, cell in enumerate(book.cells) if cell.cell_type == kind and len(cell.source) > 80]
        a, b = places[len(places) // 2], places[len(places) // 2 + 1]
        book.cells[a], book.cells[b] = book.cells[b], book.cells[a]
        if not whole:
            book.cells[a].id, book.cells[b].id = book.cells[b].id, book.cells[a].id

    return change


def drop(words):
    def change(book):
        book.cells = [cell for cell in book.cells if words not in cell.source]

    return change


def lose_facts(book):
    next(cell for cell in book.cells if cell.metadata.get("facts")).metadata.pop("facts")


# what -> (notebook, what is done to it)
DONE = {
    "tag answers lost": ("08", lose_tag("answers")),
    "tag nbval-check-output lost": ("05", lose_tag("nbval-check-output")),
    "tag guess lost": ("04", lose_tag("guess")),
    "tag check lost": ("03", lose_tag("check")),
    "two texts swapped": ("04", swap("markdown", whole=True)),
    "two cells of code swapped": ("05", swap("code", whole=True)),
    "two cells of code swapped, and their names": ("04", swap("code", whole=False)),
    "a cell with a proof dropped": ("06", drop("functional.transformer_block(embeddings")),
    "a picture dropped": ("05", drop("diagrams.grouped_heads")),
    "a question dropped": ("04", drop("At position 100, which hands")),
    "facts lost": ("04", lose_facts),
    "tag own-model lost": ("13", lose_tag("own-model")),
    "tag any-checkpoint lost": ("01", lose_tag("any-checkpoint")),
    "a control dropped": ("13", drop("control = induction(")),
    "another control dropped": ("14", drop("def shuffled(text)")),
}


@pytest.mark.parametrize("what", DONE)
def test_a_fault_in_what_is_done_to_a_notebook_is_caught(what):
    number, change = DONE[what]
    book = copy.deepcopy(clean(number))
    change(book)
    assert caught(number, book)


def test_the_form_of_a_copy_is_not_a_fault():
    assert not any(caught(number, copy.deepcopy(clean(number))) for number in ("03", "08"))


@pytest.mark.parametrize("number", PATHS)
def test_any_number_in_prose_that_is_changed_is_caught(number):
    shown = prose.shown_by(clean(number))
    missed = []
    for cell in prose_cells(clean(number)):
        said = len(list(prose.wrong_entries_in(cell))), len(list(prose.unbound_in(cell, shown)))
        for found in prose.numbers(prose.prose_of(cell.source, shown)):
            changed = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), found[0], count=1)
            changed = changed if changed != found[0] else f"{found[0]}teen"
            other = copy.copy(cell) | {"source": cell.source[: found.start()] + changed + cell.source[found.end() :]}
            other = type(cell)(other)
            now = len(list(prose.wrong_entries_in(other))), len(list(prose.unbound_in(other, shown)))
            if now == said:
                missed.append(f"{cell.id}: {found[0]} in {prose.sentence(cell.source, found.start())}")
    assert not missed, "\n".join(missed)
