"""Planted faults are caught.

A fault in a notebook's own code must be caught by its comparison with the package, and a fault in the package by the
comparison with the notebook's own code. (A fault in both would be caught by the referee: test_referee.py.)

What no notebook computes by hand (the cache, padding, shards, other layouts, sampling, ...) is guarded by tests: each
fault, planted there, must make the test fail that is named beside it.
"""

import ast
import importlib
import inspect
import re
import shutil
import textwrap

import nbformat
import pytest
import test_chat
import test_family
import test_generation
import test_model
import torch
from nbval_run import REAL, ROOT, failed_cells

from llama3_scratch import Llama, ModelArgs, Tokenizer
from llama3_scratch.params import PUBLISHED

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


# (what, where, right, wrong, the test that must fail, with these arguments)
CACHE = (test_model.test_logits_with_a_cache_equal_those_of_the_whole_text_at_every_step, {"name": "tiny-ratio3"})
CHUNKS = (
    test_model.test_logits_of_a_text_read_in_chunks_equal_those_of_the_whole,
    {"name": "tiny-ratio3", "chunks": (5, 5, 2)},
)
PADDED = (test_model.test_a_padded_text_has_the_logits_it_has_alone, {"name": "tiny-ratio3", "side": "left"})
CONTINUED = (test_model.test_padded_texts_can_be_continued, {"name": "tiny-ratio3", "side": "right"})
SHARED = (test_model.test_parameters_are_the_checkpoints_tensors_on_the_memory_map, {"name": "tiny-ratio4"})
TIED = (test_model.test_tied_embeddings_are_one_parameter_counted_once, {"second_name": False, "dtype": None})
BATCH = (test_generation.test_prompts_of_different_lengths_are_continued_as_each_alone, {"name": "tiny-ratio3"})
GREEDY = test_generation.test_sampling_of_the_most_probable_only_is_greedy
STOPS = (test_generation.test_a_stop_token_ends_the_text_and_is_not_yielded, {})
POSITIONS = test_family.test_positions_of_the_published_models_are_hugging_faces
SHARDS = (test_family.test_shards_are_joined, {"kind": "untied", "shards": 2})
FOLDER = test_family.test_a_folder_of_hugging_face_gives_its_logits
IN_THE_FOLDED_FORM = [
    (
        "a cache that overwrites the first positions",
        "functional.attention",
        "keys[..., -x.shape[-2] :, :], values[..., -x.shape[-2] :, :] =",
        "keys[..., : x.shape[-2], :], values[..., : x.shape[-2], :] =",
        *CACHE,
    ),
    (
        "positions that restart at 0",
        "model._positions_and_mask",
        "torch.arange(start_pos, start_pos + seq, device=h.device)",
        "torch.arange(seq, device=h.device)",
        *CACHE,
    ),
    ("a mask that forgets what is cached", "functional.causal_mask", "triu(start_pos + 1)", "triu(1)", *CHUNKS),
    ("a chunk that looks ahead", "model._positions_and_mask", "is None and seq == 1", "is None and start_pos", *CHUNKS),
    (
        "a cache of another batch",
        "model.KVCache.make_room",
        "batch_size != room_for",
        "False",
        test_model.test_a_cache_that_is_full_or_of_another_batch_is_refused_and_stays_usable,
        {},
    ),
    (
        "a cache of all query heads",
        "model.KVCache.__init__",
        "params.n_kv_heads",
        "params.n_heads",
        test_model.test_the_cache_holds_kv_heads_only,
        {"name": "tiny-ratio3", "dtype": torch.float32},
    ),
    (
        "padding that is looked at",
        "model._positions_and_mask",
        "mask.masked_fill(~is_token[:, None, :] & ~itself, -torch.inf)",
        "mask.expand(len(h), -1, -1)",
        *PADDED,
    ),
    (
        "padding that takes positions",
        "model._positions_and_mask",
        "(is_token.cumsum(-1) - 1).clamp(min=0)[:, start_pos:]",
        "positions.expand(len(h), -1)",
        *CONTINUED,
    ),
    (
        "padding that the cache forgets",
        "model.KVCache.make_room",
        "if attention_mask is None and self._attention_mask is None:",
        "if attention_mask is None:",
        *CONTINUED,
    ),
    ("tied weights as two parameters", "model.Llama.from_checkpoint", "if tied:", "if False:", *TIED),
    (
        "weights that are copied",
        "model.Llama.from_checkpoint",
        "weights = {key: checkpoint.weights[key]",
        "weights = {key: checkpoint.weights[key].clone()",
        *SHARED,
    ),
    (
        "the factor of 3.1 for 3.2 1B",
        "params.ModelArgs.rope_factor",
        "{(2048, 16), (3072, 28)}",
        "set()",
        POSITIONS,
        {"params": PUBLISHED["Llama 3.2 1B"], "factor": 32.0},
    ),
    (
        "an explicit factor ignored",
        "params.ModelArgs.rope_factor",
        "return self.rope_scale_factor",
        "pass",
        POSITIONS,
        {"params": ModelArgs(64, 2, 4, 512, use_scaled_rope=True, rope_scale_factor=16.0), "factor": 16.0},
    ),
    (
        "the band ignored",
        "functional.scale_freqs",
        "(turns - low_freq_factor) / (high_freq_factor - low_freq_factor)",
        "(turns - 1) / 3",
        FOLDER,
        {"kind": "another band"},
    ),
    (
        "the old length ignored",
        "functional.rotations",
        "params.rope_old_context_len",
        "8192",
        FOLDER,
        {"kind": "another old length"},
    ),
    (
        "shards joined on the wrong dimension",
        "checkpoint.read_weights",
        "torch.cat(list(parts), shard_dim(key))",
        "torch.cat(list(parts), 0)",
        *SHARDS,
    ),
    (
        "shards in reverse",
        "checkpoint.read_weights",
        "torch.cat(list(parts), shard_dim(key))",
        "torch.cat(list(parts)[::-1], shard_dim(key))",
        *SHARDS,
    ),
    (
        "the norms of the last shard",
        "checkpoint.read_weights",
        "parts[0] if shard_dim(key) is None",
        "parts[-1] if shard_dim(key) is None",
        test_family.test_the_norms_of_the_first_shard_count,
        {},
    ),
    (
        "the second name joined to a second matrix",
        "checkpoint.read_weights",
        "and is_tied(shards[0])",
        "and False",
        test_family.test_tied_embeddings_are_one_storage_and_the_others_two,
        {"kind": "second name", "shards": 2, "dtype": None},
    ),
    (
        "Hugging Face's q and k as they are",
        "huggingface.read_weights",
        "to_interleaved(parts[0], params.head_dim) if turned else parts[0]",
        "parts[0]",
        FOLDER,
        {"kind": "as it is"},
    ),
    (
        "only q reordered",
        "huggingface.read_weights",
        'key.endswith(("wq.weight", "wk.weight"))',
        'key.endswith("wq.weight")',
        FOLDER,
        {"kind": "as it is"},
    ),
    (
        "reordered the other way",
        "huggingface.to_interleaved",
        "unflatten(0, (-1, 2, head_dim // 2))",
        "unflatten(0, (-1, head_dim // 2, 2))",
        FOLDER,
        {"kind": "as it is"},
    ),
    (
        "eps of another model",
        "huggingface.read_params",
        'config.get("rms_norm_eps", 1e-6)',
        "1e-6",
        FOLDER,
        {"kind": "eps"},
    ),
    (
        "every digit alone in every vocabulary",
        "huggingface._pattern",
        'if before[0].get("individual_digits")',
        "if True",
        lambda tmp_path: test_family.test_control_tokens_in_text_equal_the_librarys_where_they_are_allowed(
            test_family.read_by_both(test_family.FORMS["numbers together"](), tmp_path)
        ),
        {},
    ),
    (
        "a text that is not opened",
        "huggingface._opening",
        'step.get("type") == "TemplateProcessing"',
        "False",
        test_family.test_what_llama_3s_folder_says_of_its_tokens,
        {},
    ),
    ("stop tokens ignored", "generation._steps", "done or id in stop_tokens", "done", *STOPS),
    (
        "texts that go on after they stopped",
        "generation._steps",
        "[None if done else id for",
        "[id for",
        test_generation.test_texts_of_a_batch_stop_one_by_one,
        {},
    ),
    ("prompts padded on the right", "generation._steps", "pad(prompts)", 'pad(prompts, "right")', *BATCH),
    (
        "prompts without their mask",
        "generation._steps",
        "attention_mask[:, chunk] if padded else None",
        "None",
        *BATCH,
    ),
    (
        "a text longer than the model takes",
        "generation.generate",
        "longest + max_new_tokens > room",
        "longest + max_new_tokens > room + 1",
        test_generation.test_a_text_may_fill_all_the_positions_that_the_model_has,
        {},
    ),
    (
        "top_p that keeps one too few",
        "generation.distribution",
        "before >= top_p",
        "before + probs >= top_p",
        test_generation.test_draws_have_the_frequencies_of_the_distribution,
        {},
    ),
    (
        "top_k that keeps one too many",
        "generation.distribution",
        "cut[..., top_k:]",
        "cut[..., top_k + 1 :]",
        GREEDY,
        {"options": {"top_k": 1}},
    ),
    (
        "temperature upside down",
        "generation.distribution",
        "/ temperature",
        "* temperature",
        GREEDY,
        {"options": {"temperature": 1e-6}},
    ),
    (
        "a seed that does not count",
        "generation.generate",
        "generator.manual_seed(int(seed))",
        "generator.seed()",
        test_generation.test_the_same_seed_gives_the_same_text_and_another_seed_another,
        {},
    ),
    (
        "half characters",
        "generation.decode_stream",
        "decoder.decode(token)",
        "tokenizer.decode([id])",
        test_generation.test_a_character_comes_as_soon_as_its_last_byte_is_there,
        {},
    ),
    (
        "control tokens in text",
        "chat.llama3_chat",
        'tokenizer.encode(message["content"].strip())',
        'tokenizer.encode(message["content"].strip(), allowed_special="all")',
        test_chat.test_text_that_spells_a_control_token_stays_text,
        {},
    ),
    (
        "no header for the answer",
        "chat.llama3_chat",
        'return ids + header("assistant")',
        "return ids",
        test_chat.test_llama_3s_format_token_by_token,
        {},
    ),
]


def plant_in_process(monkeypatch, where, right, wrong):
    """Replace a function of the package, or a method of one of its classes, by one with a fault in it."""
    module, *classes, name = where.split(".")
    owner = module = importlib.import_module(f"llama3_scratch.{module}")
    for class_name in classes:
        owner = getattr(owner, class_name)
    function = vars(owner)[name]
    source = inspect.getsource(getattr(function, "fget", None) or getattr(function, "__func__", function))
    assert right in source, f"{where} has no {right!r} any more"
    planted = {}
    exec(textwrap.dedent(source.replace(right, wrong)), vars(module), planted)
    monkeypatch.setattr(owner, name, planted[name])
    for importer in (test_chat, test_family, test_generation, test_model):
        if vars(importer).get(name) is function:
            monkeypatch.setattr(importer, name, planted[name])


@pytest.fixture
def given(request, tiny_folder, tmp_path, monkeypatch):
    """What tests ask for by name. What is opened is opened when asked for, after the fault was planted."""

    def save(theirs, **options):
        theirs.save_pretrained(tmp_path / "hf", **options)
        return tmp_path / "hf"

    makers = {
        "tiny_folder": lambda: tiny_folder,
        "tmp_path": lambda: tmp_path,
        "folder": lambda: shutil.copytree(tiny_folder("tiny-ratio3"), tmp_path / "own"),
        "save": lambda: save,
        "model": lambda: Llama.from_checkpoint(tiny_folder("tiny-ratio3")),
        "tokenizer": lambda: Tokenizer(tiny_folder("tiny-ratio3") / "tokenizer.model"),
        "llama3": lambda: request.getfixturevalue("llama3"),
        "smollm2": lambda: request.getfixturevalue("smollm2"),
    }
    return lambda test: {name: makers[name]() for name in inspect.signature(test).parameters if name in makers}


@pytest.mark.parametrize("fault", IN_THE_FOLDED_FORM, ids=lambda fault: fault[0])
@pytest.mark.filterwarnings("ignore:.*no tokenizer")
def test_every_fault_in_the_folded_form_is_caught(fault, given, monkeypatch):
    _, where, right, wrong, test, arguments = fault
    plant_in_process(monkeypatch, where, right, wrong)
    # By a comparison, or by an error that should have come and did not.
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(**given(test), **arguments)
