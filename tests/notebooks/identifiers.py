"""Names of code in the notebooks' prose, each of which must exist: a function that is not there teaches nothing."""

import ast
import builtins
import html
import keyword
import re
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from cells import ROOT, code_cells, prose_cells, texts_of_outputs
from nbformat import NotebookNode
from prose import spans

import llama3_scratch
from llama3_scratch import batching, chat, diagrams, functional, generation, lora, model, params, plots, training
from llama3_scratch import cache as kv_cache
from llama3_scratch.params import ModelArgs

MODULES = {
    "": llama3_scratch,
    "llama3_scratch": llama3_scratch,
    "torch": torch,
    "nn": torch.nn,
    "F": F,
    "functional": functional,
    "plots": plots,
    "diagrams": diagrams,
    "generation": generation,
    "model": model,
    "params": params,
    "batching": batching,
    "chat": chat,
    "cache": kv_cache,
    "lora": lora,
    "training": training,
    "Llama": llama3_scratch.Llama,
    "Tokenizer": llama3_scratch.Tokenizer,
    "tokenizer": llama3_scratch.Tokenizer,
    "Tensor": torch.Tensor,
}

# Names from elsewhere, and whose they are.
FOREIGN = {
    "our settings": "LLAMA3_CHECKPOINT LLAMA3_PROMPT LLAMA3_HOME LLAMA3_DTYPE LLAMA3_TEXT",
    "files of checkpoints": "params.json config.json generation_config.json tokenizer_config.json tokenizer.json "
    "tokenizer.model model.safetensors model.safetensors.index.json consolidated.00.pth data.pkl "
    "pytorch_model.bin chat_template.jinja",
    "files of Meta's code": "llama3/model.py",
    "Hugging Face's": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj embed_tokens lm_head self_attn mlp "
    "input_layernorm post_attention_layernorm rope_scaling repeat_kv rotate_half ignore_merges "
    "from_pretrained save_pretrained gguf_file tie_word_embeddings merge_and_unload",
    "Meta's code": "ColumnParallelLinear RowParallelLinear Transformer TransformerBlock Attention FeedForward RMSNorm "
    "VocabParallelEmbedding layer_id apply_scaling max_seq_len start_pos apply_rotary_emb precompute_freqs_cis",
    "OpenAI's": "tiktoken cl100k_base get_encoding",
    "torchrun's": "--nnodes --rdzv-endpoint",
    "shapes": "seq batch out in len n m total longest vocab heads",
}
ELSEWHERE = {name for names in FOREIGN.values() for name in names.split()}


@cache
def existing() -> set[str]:
    """Single names that exist everywhere: Python's, torch's, ours, those of a checkpoint, those of our files."""
    names = {*dir(builtins), *keyword.kwlist, *keyword.softkwlist, *ELSEWHERE}
    for module in (*MODULES.values(), torch.testing, torch.autograd):
        names |= set(dir(module))
    tiny = ModelArgs(dim=8, n_layers=2, n_heads=1, vocab_size=8)
    names |= set(dir(tiny)) | {part for key in tiny.weight_shapes() for part in key.split(".")}
    names |= {argument for module in (functional, generation, batching, chat, lora) for argument in arguments(module)}
    return names


def arguments(module: ModuleType) -> Iterator[str]:
    for value in vars(module).values():
        if code := getattr(value, "__code__", None):
            yield from code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


@cache
def files() -> set[str]:
    kept = (path for path in ROOT.rglob("*") if not {".git", ".venv", "build", "checkpoints"} & set(path.parts))
    return {str(path.relative_to(ROOT)) for path in kept} | {path.name for path in ROOT.glob("llama3_scratch/*.py")}


def used_in(notebook: NotebookNode) -> set[str]:
    """All words of its code, and of what it prints: variables, attributes, keywords, words within strings."""
    return {
        word
        for cell in code_cells(notebook)
        for text in (cell.source, *texts_of_outputs(cell))
        for word in re.findall(r"[^\W\d]\w*", text)
    }


def unknown(notebook: NotebookNode) -> Iterator[str]:
    """Names in code spans that exist nowhere."""
    here = used_in(notebook)
    shown = "\n".join(t for cell in code_cells(notebook) for t in (cell.source, *texts_of_outputs(cell)))
    solutions = "\n".join(cell.source for cell in prose_cells(notebook) if "<pre><code>" in cell.source)
    here |= set(re.findall(r"[^\W\d]\w*", html.unescape("".join(re.findall(r"<pre>.*?</pre>", solutions, re.S)))))
    for cell in prose_cells(notebook):
        for span in spans(cell.source):
            if (
                span in shown
                or span in files()
                or span in ELSEWHERE
                or re.match(r"(python|make|pip|llama3-scratch|git) ", span)
            ):
                continue
            for name in names_of(span):
                if not exists(name, here):
                    yield f"{cell.id}: `{span}`: there is no {name}"


def names_of(span: str) -> Iterator[str]:
    """The names in a piece of code: whole dotted ones, where they are attributes of each other."""
    try:
        tree = ast.parse(span.replace("[...]", "[0]"), mode="eval")
    except SyntaxError:
        if re.fullmatch(r"[A-Za-z_][\w.]*", span):
            yield span
        return
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in inner:
            text = ast.unparse(node)
            yield text if re.fullmatch(r"[\w.]+", text) else text.split(".")[-1]
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg


def exists(name: str, here: set[str]) -> bool:
    if name in ELSEWHERE:
        return True
    first, *rest = name.split(".")
    if not rest:
        return name in here or name in existing()
    if first in MODULES and hasattr(MODULES[first], rest[0]):
        return all(part in here or part in existing() for part in rest[1:])
    if first in ("functional", "plots", "diagrams", "torch", "F", "nn", "generation"):
        return False
    return all(part.isdigit() or part in here or part in existing() for part in (first, *rest))
