"""Seconds and memory at 32, 16, 8 and 4 bits: ours beside transformers and llama.cpp. Not part of `make test`.

    python tests/programs/peers.py                                # the small model, one and two threads
    python tests/programs/peers.py --shape 1b                     # Llama 3.2 1B's shape: 8 GB of disk, 9 of memory
    python tests/programs/peers.py --shape 8b --bits 4 --threads 2   # Llama 3 8B's: see below

llama.cpp comes from the wheel `xllamacpp`, one of the test extras. At 4 bits both sides read the same GGUF file, block
for block: the small model's own, or one that is made here of random weights. At 8 bits llama.cpp has Q8_0, and we have
one scale for each row; at 16 and 32 all have the same numbers. transformers stays at 16 bits (32 in the first row).

For each number of bits and threads all sides take turns, each time in another order: a token after 17 and after 1,000
others, the median over the rounds of the mean of `--tokens`; 512 tokens of prompt with the logits of the last. Each has
a process of its own, since the threads of several in one disturb each other. llama.cpp's seconds are those that its
server reports. `memory` is what a process holds beyond the mapped files (RssAnon), less what importing took, after 17
tokens and `--tokens` more.

The 8b files are large: 16 GB at 16 bits, 9 at 8, 5 at 4, and at 16 bits a machine with 24 GB holds one side at a time:
`--sides ours`, then `--sides transformers`. Rerun on a quiet machine, and look at `uptime` first; on a busy one,
`--clock cpu` counts the processor's seconds, which is fair with one thread.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import gguf
import torch
from benchmark import SHAPES, make_checkpoint, print_table, rss_anon, some_tokens

from llama3_scratch import Llama, ModelArgs, load_checkpoint
from llama3_scratch.cache import KVCache
from llama3_scratch.loading.files import checkpoints_folder, finished_folder
from llama3_scratch.messages import progress

SMALL = "smollm2-135m"
KINDS = gguf.GGMLQuantizationType
GGUF_KINDS = {32: KINDS.F32, 16: KINDS.BF16, 8: KINDS.Q8_0, 4: KINDS.Q4_1}
DTYPES = {32: torch.float32, 16: torch.bfloat16, 8: torch.bfloat16, 4: torch.bfloat16}
LENGTHS, PROMPT = (17, 1000), 512
SIDES = ("ours", "transformers", "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["small", *SHAPES], default="small")
    parser.add_argument("--bits", type=int, nargs="+", choices=GGUF_KINDS, help="default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=8, help="decoded in each round; default: %(default)s")
    parser.add_argument("--prompt-rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--folder", type=Path, help="for what is made; default checkpoints/benchmark-SHAPE")
    args = parser.parse_args()
    args.folder = (args.folder or checkpoints_folder() / f"benchmark-{args.shape}").resolve()
    if args.shape != "small":
        make_checkpoint(args.folder, *SHAPES[args.shape])
    header = ("", "after 17", "after 1,000", f"prompt of {PROMPT}", "own memory")
    for bits in args.bits or [b for b in GGUF_KINDS if b < 32 or args.shape == "small"]:
        if "llama.cpp" in args.sides:
            gguf_file(args, bits)
        for threads in args.threads:
            measured, memory = measure(args, bits, threads)
            print(f"\n{args.shape}, {bits} bits, {threads} threads, ms a token (the prompt: s), and ours / theirs")
            rows = []
            for side in args.sides:
                seconds = [statistics.median(column) for column in measured[side]]
                figures = [f"{1000 * s:.1f}" for s in seconds[:-1]] + [f"{seconds[-1]:.2f}"]
                rows.append((side, *figures, f"{memory[side] / 1e6:.0f} MB"))
            for side in args.sides[1:] if args.sides[0] == "ours" else ():
                columns = zip(measured["ours"], measured[side], strict=True)
                ratios = [statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in columns]
                rows.append((f"ours / {side}", *(f"{ratio:.2f}" for ratio in ratios), ""))
            print_table([header, *rows])
    print(f"\ntorch {torch.__version__}, load {os.getloadavg()[0]:.1f}: {' '.join(sys.argv)}")


class Side:
    """One of those that are compared, in a process of its own that waits until it is asked."""

    def __init__(self, name: str, args: argparse.Namespace, bits: int, threads: int) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.memory = self.pool.submit(_open, name, args, bits, threads).result()

    def seconds(self, what: str, *args) -> float:
        time.sleep(0.02)  # so that the threads of who came before have gone to sleep
        return self.pool.submit(_ask, what, *args).result()


def _open(name: str, args: argparse.Namespace, bits: int, threads: int) -> int:
    """Bytes that the side holds after a first turn, beyond what importing took."""
    global _side
    IMPORT[name]()
    torch.set_num_threads(threads)
    before = rss_anon()
    _side = OPEN[name](args, bits, threads)
    _side.decode(LENGTHS[0], args.tokens, "wall")
    return rss_anon() - before


def _ask(what: str, *args) -> float:
    return getattr(_side, what)(*args)


def measure(args: argparse.Namespace, bits: int, threads: int) -> tuple[dict[str, list[list[float]]], dict[str, int]]:
    """Side -> for each length, then for the prompt, seconds a token (of the prompt) in each round; its own memory."""
    sides = {name: Side(name, args, bits, threads) for name in args.sides}
    measured = {name: [] for name in sides}
    shuffled = random.Random(0)
    for length, rounds in [*((n, args.rounds) for n in LENGTHS), (None, args.prompt_rounds)]:
        for name in sides:
            measured[name].append([])
        what = ("prompt",) if length is None else ("decode", length, args.tokens)
        for i in progress(range(rounds + 1), f"{bits} bits, {length or 'a prompt'}", "round", 0.5):
            for name in shuffled.sample(list(sides), len(sides)):
                seconds = sides[name].seconds(*what, args.clock)
                if i:  # the first one warms up
                    measured[name][-1].append(seconds)
    for side in sides.values():
        side.pool.shutdown()
    return measured, {name: side.memory for name, side in sides.items()}


def timed(clock: str, function: Callable[[], object]) -> float:
    now = time.perf_counter if clock == "wall" else time.process_time
    start = now()
    function()
    return now() - start


def checkpoint(args: argparse.Namespace, bits: int):
    return load_checkpoint(SMALL if args.shape == "small" else args.folder, DTYPES[bits])


class Ours:
    def __init__(self, args: argparse.Namespace, bits: int, threads: int) -> None:
        if bits == 4:
            self.model = Llama.from_checkpoint(gguf_file(args, bits), quantize="int4")
        else:
            self.model = Llama.from_checkpoint(checkpoint(args, bits), quantize="int8" if bits == 8 else None)
        self.caches: dict[int, KVCache] = {}
        self.dtype = self.model.tok_embeddings.weight.dtype  # that of the stream, and so of the cache

    @torch.inference_mode()
    def decode(self, length: int, count: int, clock: str) -> float:
        params = self.model.params
        if length not in self.caches:
            self.caches[length] = KVCache(params, 1, length + count, self.dtype)
            self.model(some_tokens(length, params)[None], self.caches[length], last_only=True)
        cache, token = self.caches[length], torch.tensor([[1]])

        def write() -> None:
            nonlocal token
            for _ in range(count):
                token = self.model(token, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)

        seconds = timed(clock, write) / count
        cache.length = length
        return seconds

    @torch.inference_mode()
    def prompt(self, clock: str) -> float:
        params = self.model.params
        cache = KVCache(params, 1, PROMPT, self.dtype)
        return timed(clock, lambda: self.model(some_tokens(PROMPT, params)[None], cache, last_only=True))


class Transformers:
    """Their model over the same weights, with their default attention."""

    def __init__(self, args: argparse.Namespace, bits: int, threads: int) -> None:
        sys.path.append(str(Path(__file__).resolve().parents[1]))  # tests/
        from helpers import hf_model

        ckpt = checkpoint(args, bits)
        self.params, self.model = ckpt.params, hf_model(ckpt.params, ckpt.weights, attention="sdpa")
        self.caches: dict[int, object] = {}

    def step(self, tokens, cache):
        return self.model(tokens, past_key_values=cache, logits_to_keep=1).logits

    @torch.inference_mode()
    def decode(self, length: int, count: int, clock: str) -> float:
        if length not in self.caches:
            self.caches[length] = self.new_cache()
            self.step(some_tokens(length, self.params)[None], self.caches[length])
        cache, token = self.caches[length], torch.tensor([[1]])

        def write() -> None:
            nonlocal token
            for _ in range(count):
                token = self.step(token, cache)[:, -1].argmax(-1, keepdim=True)

        seconds = timed(clock, write) / count
        cache.crop(-count)
        return seconds

    def new_cache(self):
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def prompt(self, clock: str) -> float:
        cache = self.new_cache()
        return timed(clock, lambda: self.step(some_tokens(PROMPT, self.params)[None], cache))


class LlamaCpp:
    def __init__(self, args: argparse.Namespace, bits: int, threads: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(gguf_file(args, bits))
        settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 2048, 1, True, -1
        for cpu in (settings.cpuparams, settings.cpuparams_batch):
            cpu.n_threads, cpu.poll = threads, 0  # no spinning while others measure
        self.params = checkpoint(args, bits).params
        self.server = xllamacpp.Server(settings)

    def complete(self, tokens: Sequence[int], count: int, reuse: bool) -> dict[str, float]:
        said = self.server.handle_completions(
            {"prompt": list(tokens), "n_predict": count, "cache_prompt": reuse, "temperature": 0.0, "ignore_eos": True}
        )
        said = json.loads(said) if isinstance(said, str) else said
        return said["timings"]

    def decode(self, length: int, count: int, clock: str) -> float:
        tokens = [*some_tokens(length, self.params).tolist(), 1]
        if clock == "cpu":  # one of the prompt, and all but the last of those that are written
            return timed(clock, lambda: self.complete(tokens, count, True)) / count
        timings = self.complete(tokens, count + 1, True)
        return timings["predicted_ms"] / 1000 / (timings["predicted_n"] - 1)  # counted from the first one on

    def prompt(self, clock: str) -> float:
        tokens = some_tokens(PROMPT, self.params).tolist()
        if clock == "cpu":
            return timed(clock, lambda: self.complete(tokens, 1, False))
        return self.complete(tokens, 1, False)["prompt_ms"] / 1000


def _import_transformers() -> None:
    from transformers import DynamicCache, LlamaForCausalLM  # noqa: F401


def _import_llama_cpp() -> None:
    import xllamacpp  # noqa: F401


OPEN = dict(zip(SIDES, (Ours, Transformers, LlamaCpp), strict=True))
IMPORT = dict(zip(SIDES, (lambda: None, _import_transformers, _import_llama_cpp), strict=True))


# The files of llama.cpp


def gguf_file(args: argparse.Namespace, bits: int) -> Path:
    """The file of the small model as it is fetched; else one with the same weights, made once."""
    if args.shape == "small" and bits == 4:
        return next(load_checkpoint(SMALL).path.glob("*.gguf"))
    kind = GGUF_KINDS[bits]
    folder = args.folder.with_name(f"{args.folder.name}-{kind.name}")
    with finished_folder(folder) as partial:
        if partial is not None:
            ckpt = checkpoint(args, bits)
            write_gguf(partial / f"{kind.name}.gguf", ckpt.params, ckpt.weights, kind)
    return folder / f"{kind.name}.gguf"


def write_gguf(path: Path, params: ModelArgs, weights, kind) -> None:
    """Meta's weights as llama.cpp reads them, with tokens that have names but no meaning. Where the layers have four
    bits, both ends have eight, as in the small model's file.
    """
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    writer.add_block_count(params.n_layers)
    writer.add_embedding_length(params.dim)
    writer.add_feed_forward_length(params.hidden_dim)
    writer.add_head_count(params.n_heads)
    writer.add_head_count_kv(params.n_kv_heads)
    writer.add_layer_norm_rms_eps(params.norm_eps)
    writer.add_rope_freq_base(params.rope_theta)
    writer.add_context_length(params.context_len or 8192)
    writer.add_vocab_size(params.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [chr(i) for i in itertools.chain(range(33, 127), range(161, 173), range(174, 256), range(256, 324))]
    tokens = [*letters, "ab", *(f"token{i}" for i in range(len(letters) + 1, params.vocab_size))]
    writer.add_token_list(tokens)
    words = len(tokens) - len(letters) - 1  # that no merge makes
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(letters) + 1) + [gguf.TokenType.CONTROL] * words)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(letters) + 1)
    writer.add_eos_token_id(len(letters) + 2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, params.n_layers)
    for key in progress(list(weights), f"making {path.name}", "tensor", 0.5):
        if key == "output.weight" and weights[key].data_ptr() == weights["tok_embeddings.weight"].data_ptr():
            continue
        ends = key in ("tok_embeddings.weight", "output.weight")
        of = KINDS.F32 if weights[key].ndim == 1 else KINDS.Q8_0 if ends and kind == KINDS.Q4_1 else kind
        writer.add_tensor(
            names.get_name(key, try_suffixes=(".weight",)),
            gguf.quantize(weights[key].float().numpy(), of),
            raw_dtype=of,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
