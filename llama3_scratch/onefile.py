"""Llama 3 in one file of plain Python: no torch, no numpy, nothing but the standard library.

    python -I -S llama3_scratch/onefile.py MODEL.gguf "The capital of France is" 5

adds 5 tokens to the text, the likeliest each time. MODEL.gguf is a Llama with SmolLM2's vocabulary in the format of
llama.cpp, stored as Q4_1 or Q8_0. In this order: tokenizer, file, matrix (with one trick, for speed), model, loop."""

import math
import re
import struct
import sys
from itertools import cycle, pairwise
from operator import add, mul
from typing import Any, BinaryIO

# GPT-2's letters for the 256 bytes: those that can be printed are themselves, and the others have been moved up.
LETTERS = [chr(b + (256 if b < 33 else 162 if 126 < b < 161 else 150 if b == 173 else 0)) for b in range(256)]
# A text is cut into these pieces before any merge. (`re` also takes \x1c to \x1f for spaces, which Unicode does not.)
NUMBER = f"[{''.join(c for c in map(chr, range(sys.maxunicode)) if c.isnumeric() and not c.isalpha())}]"
PIECES = rf"{NUMBER}|'(?:[sdmt]|ll|ve|re)| ?(?:(?!{NUMBER})[^\W_])+| ?(?:[^\w\s]|_)+|\s+(?={NUMBER})|\s+(?!\S)|\s+"
TYPES = "BbHhIif?saQqd"  # of values in a GGUF file, in its order: s is a string, a an array, the others are struct's
BLOCK = {(F32 := 0): 128, (Q4_1 := 3): 20, (Q8_0 := 8): 34}  # its numbers for types of weights, and bytes of 32 weights
LAYER = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]


def encode(text: str, model: dict[str, Any]) -> list[int]:
    """Byte-pair encoding: of all neighbours, the pair that stands first in the list of merges is joined, and again."""
    ids = {token: i for i, token in enumerate(model["tokenizer.ggml.tokens"])}
    ranks = {merge: i for i, merge in enumerate(model["tokenizer.ggml.merges"])}
    tokens = []
    for piece in re.findall(PIECES, text):
        parts = [LETTERS[byte] for byte in piece.encode()]
        while found := [(ranks[f"{a} {b}"], i) for i, (a, b) in enumerate(pairwise(parts)) if f"{a} {b}" in ranks]:
            i = min(found)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        tokens += [ids[part] for part in parts if part in ids]
    return tokens


def read_gguf(file: BinaryIO) -> dict[str, Any]:
    """All that the file says of the model, and its weights, by name: vectors as tuples, matrices as Matrix."""

    def read(kind: str) -> Any:
        if kind == "s":
            return file.read(read("Q")).decode()
        if kind == "a":
            return [read(item) for item in TYPES[read("I")] * read("Q")]
        return struct.unpack("<" + kind, file.read(struct.calcsize(kind)))[0]

    if file.read(4) != b"GGUF":
        raise ValueError("not a GGUF file")
    _, n_tensors, n_fields = read("I"), read("Q"), read("Q")
    model = {read("s"): read(TYPES[read("I")]) for _ in range(n_fields)}
    if (kinds := (model["general.architecture"], model["tokenizer.ggml.pre"])) != ("llama", "smollm"):
        raise ValueError(f"architecture and tokenizer are {kinds}, not llama and smollm")
    table = [(read("s"), [read("Q") for _ in range(read("I"))], read("I"), read("Q")) for _ in range(n_tensors)]
    start = file.tell() + -file.tell() % model.get("general.alignment", 32)
    for i, (name, (columns, *rows), kind, offset) in enumerate(table):
        if (len(rows), kind) not in [(0, F32), (1, Q4_1), (1, Q8_0)]:
            raise ValueError(f"{name} is stored as GGUF's type {kind}; known here are Q4_1 and Q8_0 (F32 for vectors)")
        print(f"reading {i + 1} of {n_tensors}", end="\r" if i + 1 < n_tensors else "\n", file=sys.stderr)
        file.seek(start + offset)
        data = read(f"{math.prod([columns, *rows]) * BLOCK[kind] // 32}s")
        model[name] = Matrix(data, rows[0], kind) if rows else struct.unpack(f"<{columns}f", data)
    return model


class Matrix:
    """[rows, columns]. In each row, 32 neighbours are a block: weight = scale * q + minimum, q being 0 to 15 or to 255.

    A product is the sum of all columns, each times a number of x. Here a column is ONE very long integer, with 32 bits,
    a lane, for each row's q; so Python multiplies and adds all rows in single calls. For this the numbers of x become
    integers too, as large as 32 products in a lane allow. Sums may be negative, and a negative lane would borrow from
    the next: adding 2^31 to every lane prevents it, and flipping that bit then leaves signed integers of 32 bits."""

    def __init__(self, data: bytes, rows: int, kind: int) -> None:
        self.rows, self.blocks, self.limit = rows, [], (2**31 - 1) // (32 * (15 if kind == Q4_1 else 255))
        stride, size, every_lane = len(data) // rows, BLOCK[kind], int.from_bytes(b"\1\0\0\0" * rows, "little")
        halves, chars = memoryview(data).cast("H"), data.decode("latin-1")  # UTF-32 makes a lane of each character
        for at in range(0, stride, size):  # a slice by `stride` takes the same place of all rows
            scales, minima = (struct.unpack(f"<{rows}e", halves[i // 2 :: stride // 2].tobytes()) for i in (at, at + 2))
            columns = [int.from_bytes(chars[at + i :: stride].encode("utf-32-le"), "little") for i in range(size)]
            if kind == Q4_1:  # two in a byte: all lower halves first
                columns = [column >> shift & 15 * every_lane for shift in (0, 4) for column in columns[4:]]
            else:  # signed: 128 is added here, and taken off by the minimum
                columns, minima = [column ^ 128 * every_lane for column in columns[2:]], tuple(-128 * d for d in scales)
            self.blocks.append((scales, minima, columns))

    def __matmul__(self, x: list[float]) -> list[float]:
        y, bias = [0.0] * self.rows, int.from_bytes(b"\0\0\0\x80" * self.rows, "little")
        for (scales, minima, columns), block in zip(self.blocks, zip(*[iter(x)] * 32, strict=True), strict=True):
            step = max(map(abs, block)) / self.limit or 1.0
            integers = [round(number / step) for number in block]
            lanes = (sum(map(mul, columns, integers)) + bias) ^ bias
            sums = struct.unpack(f"<{self.rows}i", lanes.to_bytes(4 * self.rows, "little"))
            total = step * sum(integers)
            y = [a + step * d * s + total * m for a, d, s, m in zip(y, scales, sums, minima, strict=True)]
        return y


def rms_norm(x: list[float], weight: list[float], eps: float) -> list[float]:
    scale = 1 / math.sqrt(sum(map(mul, x, x)) / len(x) + eps)
    return [number * scale * w for number, w in zip(x, weight, strict=True)]


def forward(token: int, cache: list[Any], model: dict[str, Any]) -> list[float]:
    """The logits [vocab], a score for every token to come next. The cache [n_layers] keeps earlier keys and values."""
    n_heads, n_kv_heads = model["llama.attention.head_count"], model["llama.attention.head_count_kv"]
    eps, theta = model["llama.attention.layer_norm_rms_epsilon"], model["llama.rope.freq_base"]
    x = [(c >> 32 * token & 255) * d[token] + m[token] for d, m, cs in model["token_embd.weight"].blocks for c in cs]
    position, head_dim, half = len(cache[0][0]), len(x) // n_heads, len(x) // n_heads // 2
    turns = [math.e ** (1j * position * theta ** (-i / half)) for i in range(half)]  # one for each pair of numbers
    for layer, (keys, values) in enumerate(cache):
        attn_norm, wq, wk, wv, wo, ffn_norm, w1, w3, w2 = (model[f"blk.{layer}.{name}.weight"] for name in LAYER)
        y = rms_norm(x, attn_norm, eps)
        q, k = (list(map(mul, map(complex, z[0::2], z[1::2]), cycle(turns))) for z in (wq @ y, wk @ y))
        keys.append([pair.conjugate() for pair in k])  # for then the real part of q * k is the pairs' dot product
        values.append(wv @ y)
        heads: list[float] = []
        for h in range(n_heads):  # in groups, each of which shares one head of keys and values
            kv, query = h * n_kv_heads // n_heads, q[h * half : (h + 1) * half]
            scores = [sum(map(mul, query, k[kv * half : (kv + 1) * half])).real / math.sqrt(head_dim) for k in keys]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            group = (v[kv * head_dim : (kv + 1) * head_dim] for v in values)
            heads += [sum(map(mul, weights, column)) / sum(weights) for column in zip(*group, strict=True)]
        x = list(map(add, x, wo @ heads))
        y = rms_norm(x, ffn_norm, eps)
        hidden = [a / (1 + math.exp(-max(a, -700))) * b for a, b in zip(w1 @ y, w3 @ y, strict=True)]  # SwiGLU
        x = list(map(add, x, w2 @ hidden))
    return list(model.get("output.weight", model["token_embd.weight"]) @ rms_norm(x, model["output_norm.weight"], eps))


if __name__ == "__main__":
    try:
        path, text, count = [*sys.argv[1:], "1"][:3] if sys.argv[2:] else sys.exit(__doc__)
        with open(path, "rb") as file:
            model = read_gguf(file)
        tokens = encode(text, model) or [model["tokenizer.ggml.bos_token_id"]]
        cache: list[Any] = [([], []) for _ in range(model["llama.block_count"])]
        print(text, end="", flush=True)
        for i in range(len(tokens) + int(count) - 1):
            logits = forward(tokens[i], cache, model)
            if i == len(tokens) - 1:
                tokens.append(logits.index(max(logits)))
                sys.stdout.buffer.write(bytes(map(LETTERS.index, model["tokenizer.ggml.tokens"][tokens[-1]])))
                sys.stdout.flush()
        print()
    except (OSError, ValueError, LookupError, ArithmeticError, MemoryError, struct.error) as error:
        sys.exit(f"{sys.argv[1]} cannot be used: {error}")
