"""What several rooms of tests need: the referee, checkpoints and vocabularies to open, and notebooks to run.

Nothing here is a test. Fixtures that are shared stand in conftest.py.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as TheirTokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_scratch import Llama, ModelArgs, functional, generate
from llama3_scratch.loading.files import checkpoints_folder
from llama3_scratch.loading.tiny import write_byte_tokenizer
from llama3_scratch.runner import SAME_EVERYWHERE

# The independent referee: Hugging Face's LlamaForCausalLM over weights that carry Meta's names

HF_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def hf_model(params: ModelArgs, weights: Mapping[str, Tensor], attention: str = "eager") -> LlamaForCausalLM:
    """Hugging Face's model over these very tensors; only wq and wk are copied. Every one must find its place.

    `attention` is theirs to choose from: "eager" is the plain formula, with no fused kernel to trust.
    """
    config = LlamaConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.dim,
        intermediate_size=weights["layers.0.feed_forward.w1.weight"].shape[0],  # as stored, not as ModelArgs derives it
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads,
        max_position_embeddings=131072,
        rms_norm_eps=params.norm_eps,
        rope_parameters=rope_parameters(
            params.rope_theta,
            params.rope_factor,
            params.rope_low_freq_factor,
            params.rope_high_freq_factor,
            params.rope_old_context_len,
        ),
        tie_word_embeddings="output.weight" not in weights,
        attn_implementation=attention,
    )
    embeddings = weights["tok_embeddings.weight"]
    state = {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights.get("output.weight", embeddings),
    }
    for layer in range(params.n_layers):
        for meta_name, name in HF_NAMES.items():
            weight = weights[f"layers.{layer}.{meta_name}.weight"]
            if meta_name in ("attention.wq", "attention.wk"):
                weight = to_half_split(weight, params.head_dim)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    with torch.device("meta"):  # no memory, until the tensors of `state` take their places
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # computed, not loaded
    return model.eval()


def hf_logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """[seq] or [batch, seq] -> logits of the same leading sizes."""
    with torch.no_grad():
        logits = model(tokens.reshape(-1, tokens.shape[-1]), use_cache=False).logits
    return logits.reshape(*tokens.shape, -1)


def hf_greedy(model: LlamaForCausalLM, prompts: Sequence, count: int) -> list:
    """The most probable next token, `count` times: their own loop, with their own cache, stopped by nothing.

    One prompt, or a list of them, which are padded on the left, as they want it.
    """
    single = isinstance(prompts[0], int)
    prompts = [prompts] if single else prompts
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    is_token = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config.eos_token_id = None
    texts = model.generate(tokens, attention_mask=is_token, max_new_tokens=count, do_sample=False, pad_token_id=0)
    texts = texts[:, longest:].tolist()
    return texts[0] if single else texts


def to_half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder each head's rows from Meta's pairs (0, 1), (2, 3), ... to Hugging Face's (0, d/2), (1, d/2 + 1), ...

    As `permute` in their convert_llama_weights_to_hf.py.
    """
    rows, columns = weight.shape
    return weight.view(-1, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def rope_parameters(
    theta: float, factor: float | None, low: float = 1.0, high: float = 4.0, old_context_len: int = 8192
) -> dict:
    """LlamaConfig's description of RoPE. The last three numbers are those of every Llama 3.1 and 3.2 config.json."""
    if factor is None:
        return {"rope_type": "default", "rope_theta": theta}
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": old_context_len,
    }


def random_tokens(params: ModelArgs, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(params.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def naming(words: str) -> str:
    """A pattern for `match`: all these words, in any order. What a message must name, whatever its sentence."""
    return "^" + "".join(rf"(?=[\s\S]*(?<!\w){re.escape(word)}(?!\w))" for word in words.split())


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().nan_to_num(torch.inf).item()


def assert_like_hugging_faces(checkpoint, theirs, tolerance=1e-4, length=256):
    """Logits of both our forms, and 16 greedy tokens."""
    tokens = random_tokens(checkpoint.params, length)
    expected = hf_logits(theirs, tokens)
    model = Llama.from_checkpoint(checkpoint)
    assert distance(functional.forward(tokens, checkpoint.weights, checkpoint.params), expected) < tolerance
    with torch.no_grad():
        assert distance(model(tokens), expected) < tolerance
    prompt = tokens[:20].tolist()
    assert list(generate(model, prompt)) == hf_greedy(theirs, prompt, 16)


# Strings for tokenizers

WORDS = ["the", " The", "don't", "I'LL", "'s", " 's", "def f(x):\n    return", "1234567", " 42", "<|eot_id|>", "\\n"]
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\n\n ", "\u00a0", "\u3000", "\u2028", "\x00", "\x85", "\u200b", "\ufeff"]
SCRIPTS = [
    "中文",
    "日本語",
    "한국어",
    "العربية",
    "हिन्दी",
    "Ǆ",
    "ß",
    "e\u0301",
    "½",
    "٣",
    "😀",
    "👩\u200d👧",
    "🇫🇷",
    "❤️",
    "\ufffd",
]
fragments = st.sampled_from(WORDS + SPACES + SCRIPTS)
texts = st.one_of(
    st.text(max_size=60),
    st.lists(fragments, max_size=12).map("".join),
    st.text("0123456789٣½ .,", max_size=40),
    st.text(" \t\r\n\u00a0\u3000a", max_size=40),
    st.text(st.characters(min_codepoint=0x1F000, max_codepoint=0x1FAFF), max_size=30),  # emoji
    st.text(st.characters(min_codepoint=0x3040, max_codepoint=0x9FFF), max_size=30),  # kana and Chinese
)


# Checkpoints in Meta's layout


def write_checkpoint(folder, params_json, weights, shards=1):
    """A folder in Meta's layout, each line of it written here."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params_json))
    write_byte_tokenizer(folder)
    for i, part in enumerate(split(weights, shards)):
        torch.save(part, folder / f"consolidated.{i:02d}.pth")
    return folder


def split(weights, shards):
    """As Meta cut its models: matrices by rows, wo and w2 by columns, norms not at all."""
    parts = []
    for i in range(shards):
        part = {}
        for key, weight in weights.items():
            if "norm" in key or shards == 1:
                part[key] = weight
            else:
                part[key] = weight.chunk(shards, dim=1 if ".wo." in key or ".w2." in key else 0)[i].clone()
        parts.append(part)
    return parts


# Folders in Hugging Face's layout

BASE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": rope_parameters(500000.0, None),
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def their_model(**config):
    """Hugging Face's model with weights of a size that makes every step of it matter."""
    model = LlamaForCausalLM(LlamaConfig(**(BASE | config), attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            uniform = torch.rand(p.shape, generator=generator) * 2 - 1
            if "norm" in name:
                p.copy_(1 + uniform / 2)
            else:
                p.copy_(uniform / 8 if "embed" in name else uniform * math.sqrt(6 / p.shape[-1]))
    return model


def change_config(folder, **changes):
    """Change entries of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# Vocabularies in Hugging Face's form, made by its own library

CORPUS = [
    "The cat sat on the mat, and the dog didn't. It's 12345 o'clock; WE'LL see!",
    "def f(x):\n    return x ** 2  # 3.14\n\n\nprint(f(2))\t\r\n",
    "naïve café 中文 日本語 한국어 العربية हिन्दी 😀 👩\u200d👧 ½ ٣ Ǆ ß",
    "the the the there then than that this these those    spaces  \n\n  and more",
] * 5
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_STEPS = [
    pre_tokenizers.Split(Regex(LLAMA3_REGEX), behavior="isolated", invert=False),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
]
SMOLLM2_STEPS = [
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
]
GROUPED_STEPS = [pre_tokenizers.Digits(individual_digits=False), *SMOLLM2_STEPS[1:]]
SPECIALS_FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIALS_LAST = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def trained(steps, specials_first=(), specials_last=(), vocab_size=450):
    tokenizer = TheirTokenizer(models.BPE(ignore_merges=bool(specials_last)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials_first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(specials_last))
    if specials_last:  # as Llama 3's: every text is opened
        bos = specials_last[0]
        opening = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), opening])
    return tokenizer


FORMS = {
    "Llama 3's": lambda: trained(LLAMA3_STEPS, specials_last=SPECIALS_LAST),
    "SmolLM2's": lambda: trained(SMOLLM2_STEPS, SPECIALS_FIRST),
    "numbers together": lambda: trained(GROUPED_STEPS, SPECIALS_FIRST),
    "GPT-2's": lambda: trained(SMOLLM2_STEPS[1:], SPECIALS_FIRST),
}


def write_tokenizer(tokenizer, folder, **config):
    tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


# GGUF files, written with the format's own library

DIM, HEADS, KV_HEADS, HIDDEN, LAYERS = 96, 6, 2, 256, 2
GGUF_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GGUF_MERGES = [b" t", b"he", b" the", b"12", b"\x00\xff", b"  "]
GGUF_HALVES = [(b" ", b"t"), (b"h", b"e"), (b" t", b"he"), (b"1", b"2"), (b"\x00", b"\xff"), (b" ", b" ")]


def printed(token):
    return "".join(bytes_to_unicode()[b] for b in token)


GGUF_TOKENS = GGUF_SPECIALS + [printed(token) for token in [*map(bytes, zip(range(256))), *GGUF_MERGES]]
GGUF_SHAPES = {
    "attn_q": (DIM, DIM),
    "attn_k": (DIM * KV_HEADS // HEADS, DIM),
    "attn_v": (DIM * KV_HEADS // HEADS, DIM),
    "attn_output": (DIM, DIM),
    "ffn_gate": (HIDDEN, DIM),
    "ffn_up": (HIDDEN, DIM),
    "ffn_down": (DIM, HIDDEN),
    "attn_norm": (DIM,),
    "ffn_norm": (DIM,),
}
KINDS = gguf.GGMLQuantizationType
GGUF_TYPES = {"attn_q": KINDS.Q8_0, "ffn_gate": KINDS.Q4_1, "ffn_down": KINDS.Q8_0, "attn_v": KINDS.F16}


def random_gguf_tensors():
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(GGUF_TOKENS), DIM), "output_norm.weight": (DIM,)}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in GGUF_SHAPES.items()}
    return {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path, tensors, architecture="llama", pre="smollm", hidden=HIDDEN, more=lambda writer: None, **changes):
    """`more` adds fields; `changes` are other token types, merges, whether bos is added (None: nothing is said), and
    kinds: how matrices are stored, by a part of their names.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(GGUF_TOKENS)
    writer.add_token_types(
        changes.get("types", [3] * len(GGUF_SPECIALS) + [1] * (len(GGUF_TOKENS) - len(GGUF_SPECIALS)))
    )
    writer.add_token_merges(changes.get("merges", [f"{printed(left)} {printed(right)}" for left, right in GGUF_HALVES]))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if changes.get("add_bos", False) is not None:
        writer.add_add_bos_token(changes.get("add_bos", False))
    more(writer)
    for name, values in tensors.items():
        kind = changes.get("kinds", GGUF_TYPES).get(name.split(".")[-2], KINDS.F32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Where tensors lie


def mapped_bytes(path):
    """The addresses at which a file is mapped into this process, as Linux tells."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name == str(path):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield range(start, end)


def lies_in(tensor, path):
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes - 1
    return any(first in addresses and last in addresses for addresses in mapped_bytes(path))


# Notebooks under nbval, in a process of its own, as a reader's machine would run them

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REAL = "smollm2-135m"
_NO_GRAMMAR = "import sys; sys.modules['rfc3987_syntax'] = None"  # of addresses, as in conftest.py


def failed_cells(
    notebooks: list[Path], checkpoint: str | Path, compare: str = "tagged", prompt: str = ""
) -> dict[str, str]:
    """What goes wrong in each of `notebooks` on `checkpoint`, by the notebook's name; empty if nothing does. With a
    `prompt`, that is what the notebooks read.

    The asserts inside the cells speak, and `compare` says which stored outputs must come again: those of cells "tagged"
    nbval-check-output, or "all". These two share one start (run_cells.py) and make no images; "drawn" is "tagged" with
    images. "nbval" compares all as well, but in a kernel each, as a reader runs them. "near" first tries that with the
    products that are fastest on this processor, which takes a third of the time: numbers of cells tagged last-digits
    or second-digits then need only be near. If anything else differs, "nbval" has the last word.

    "all" and "nbval" multiply as on every x86 processor. The others compare nothing that depends on it.
    """
    assert notebooks  # without one, pytest would run all tests
    environment = os.environ | SAME_EVERYWHERE
    environment |= {"LLAMA3_CHECKPOINT": str(checkpoint), "LLAMA3_HOME": str(checkpoints_folder())}
    environment |= {"LLAMA3_PROMPT": prompt, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        own_kernels = environment | {"MKL_CBWR": "AUTO"}
        if compare in ("tagged", "drawn"):
            return _run_cells(notebooks, compare, report, own_kernels)
        if compare == "all":
            return _run_cells(notebooks, compare, report, environment)
        if compare == "near" and not _nbval(notebooks, compare, report, own_kernels):
            return {}
        return _nbval(notebooks, "nbval", report, environment)


def _run_cells(notebooks: list[Path], compare: str, report: Path, environment: dict[str, str]) -> dict[str, str]:
    paths = _ask_for(notebooks, compare, report, environment)
    ended = dict(json.loads(line) for line in report.read_text("utf-8").splitlines())
    said = {path.stem: ended.get(name, "its process ended") for path, name in zip(notebooks, paths, strict=True)}
    return {name: wrong for name, wrong in said.items() if wrong}


def _nbval(notebooks: list[Path], compare: str, report: Path, environment: dict[str, str]) -> dict[str, str]:
    paths = _ask_for(notebooks, compare, report, environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {}
    for path, name in zip(notebooks, paths, strict=True):
        cells = [case for case in cases if path.name in case.get("classname")]
        assert cells, f"nbval ran nothing of {name}"
        wrong = [case.find(kind).text for case in cells for kind in ("failure", "error") if case.find(kind) is not None]
        if wrong:
            failed[path.stem] = "\n".join(wrong)
    return failed


def _ask_for(notebooks: list[Path], compare: str, report: Path, environment: dict[str, str]) -> list[str]:
    """Have a report written; the notebooks' names in it."""
    paths = [str(path.resolve()) for path in notebooks]
    report.touch()
    cells = _cells_without_kernels()
    cells.stdin.write(json.dumps([compare, str(report), paths, environment]) + "\n")
    cells.stdin.flush()
    assert cells.stdout.readline() == "done\n", "run_cells.py ended"
    return paths


@cache
def _cells_without_kernels() -> subprocess.Popen:
    """One for all tests of this process, so that torch is imported once; it ends with its stdin."""
    path = ROOT / "tests" / "run_cells.py"
    # The imports make many objects, all of which stay: to look for some that do not takes a second.
    start = f"import gc, runpy; gc.disable(); sys.path.insert(0, {str(path.parent)!r}); "
    start += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    environment = os.environ | SAME_EVERYWHERE | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{_NO_GRAMMAR}; {start}"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def assert_words_stay_apart(picture) -> None:
    """A drawing's words stay on its board, and none covers another."""
    picture.figure.canvas.draw()
    ax = picture.axes[0]
    boxes = [text.get_window_extent().shrunk(0.98, 0.9) for text in ax.texts]
    for i, box in enumerate(boxes):
        assert ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1, ax.texts[i].get_text()
        covered = [ax.texts[j].get_text() for j in range(i) if box.overlaps(boxes[j])]
        assert not covered, (ax.texts[i].get_text(), covered)
