# ruff: noqa: E501
"""Every formula of the notebooks, to the letter, and beside it the same in Python, held against torch or the package.

A formula that stands here is one that a reviewer has read. Which are missing, and which are in no notebook any more:

    python tests/notebooks/formulas.py
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import gguf
import torch
import torch.nn.functional as F
from cells import NOTEBOOKS, prose_cells, read
from nbformat import NotebookNode
from prose import CODE, FORMULA, NO_PROSE, blank
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from llama3_scratch import Checkpoint, circuits, functional, lenses, lora, parallel, trace
from llama3_scratch.lora import LoRA
from llama3_scratch.model import Linear
from llama3_scratch.params import PUBLISHED, ModelArgs

PARAMS = ModelArgs(24, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=50, multiple_of=20, norm_eps=1e-2)
SEQ = 5


def dice(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


WEIGHTS = {key: dice(*shape, seed=i) for i, (key, shape) in enumerate(PARAMS.weight_shapes().items())}
IDS = torch.tensor([3, 1, 4, 1, 5])
X, GAIN = dice(SEQ, PARAMS.dim, seed=90), dice(PARAMS.dim, seed=91)
CIS = functional.rotations(PARAMS, SEQ)
MASK = functional.causal_mask(SEQ, torch.float64)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # rotations are in float32


def weight(name: str, layer: int = 0) -> torch.Tensor:
    return WEIGHTS[f"layers.{layer}.{name}.weight"]


# The steps, as the formulas say them


def norm_of(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    rows = [
        [number / math.sqrt(sum(n**2 for n in row) / len(row) + PARAMS.norm_eps) for number in row]
        for row in x.tolist()
    ]
    return torch.tensor(rows, dtype=x.dtype) * gain


def rotate(rows: torch.Tensor, positions: list[int] | None = None) -> torch.Tensor:
    """Each pair of a row by the angle of its place and position."""
    d, turned = rows.shape[-1], rows.clone()
    for m, position in enumerate(positions or range(len(rows))):
        for i in range(d // 2):
            angle = position * PARAMS.rope_theta ** (-2 * i / d)
            a, b = rows[m, 2 * i], rows[m, 2 * i + 1]
            turned[m, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
            turned[m, 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def softmax_of(scores: torch.Tensor) -> torch.Tensor:
    powers = math.e**scores
    return powers / powers.sum(-1, keepdim=True)


def one_head(y: torch.Tensor, i: int, layer: int = 0) -> torch.Tensor:
    d, g = PARAMS.head_dim, i // PARAMS.group_size
    wq, wk, wv = (weight(f"attention.{name}", layer) for name in ("wq", "wk", "wv"))
    q = rotate(y @ wq[i * d : (i + 1) * d].T)
    k = rotate(y @ wk[g * d : (g + 1) * d].T)
    v = y @ wv[g * d : (g + 1) * d].T
    return softmax_of(q @ k.T / math.sqrt(d) + MASK) @ v


def silu_of(z: torch.Tensor) -> torch.Tensor:
    return z * (1 / (1 + math.e**-z))


def attended(x: torch.Tensor, layer: int = 0) -> torch.Tensor:
    y = norm_of(x, weight("attention_norm", layer))
    heads = [one_head(y, i, layer) for i in range(PARAMS.n_heads)]
    return x + torch.cat(heads, dim=-1) @ weight("attention.wo", layer).T


def layered(x: torch.Tensor, layer: int = 0) -> torch.Tensor:
    x = attended(x, layer)
    y = norm_of(x, weight("ffn_norm", layer))
    w1, w2, w3 = (weight(f"feed_forward.{name}", layer) for name in ("w1", "w2", "w3"))
    return x + (silu_of(y @ w1.T) * (y @ w3.T)) @ w2.T


# What the formulas are held against


def lookup() -> None:
    table = WEIGHTS["tok_embeddings.weight"]
    assert_close(table[IDS], F.embedding(IDS, table))
    assert table[IDS].shape == (SEQ, PARAMS.dim)


def norm() -> None:
    assert_close(norm_of(X, GAIN), F.rms_norm(X, (PARAMS.dim,), GAIN, PARAMS.norm_eps))
    assert_close(norm_of(X, GAIN), functional.rms_norm(X, GAIN, PARAMS.norm_eps))


def lookup_and_norm() -> None:
    lookup()
    norm()


def turned() -> None:
    a, b, phi = 0.7, -1.3, 0.9
    pair = (a * math.cos(phi) - b * math.sin(phi), a * math.sin(phi) + b * math.cos(phi))
    both = complex(a, b) * torch.polar(torch.tensor(1.0), torch.tensor(phi)).item()
    assert_close(torch.tensor(pair), torch.tensor([both.real, both.imag]))


def whole_turn() -> None:
    assert math.isclose(math.degrees(2 * math.pi), 360)


def complex_turn() -> None:
    a, b, phi = 0.7, -1.3, 0.9
    theirs = functional.apply_rotary_emb(torch.tensor([[[a, b]]]), torch.polar(torch.ones(1, 1), torch.tensor([[phi]])))
    ours = complex(a, b) * complex(math.cos(phi), math.sin(phi))
    assert_close(theirs.flatten(), torch.tensor([ours.real, ours.imag]))


def frequencies() -> None:
    d = 16
    ours = torch.tensor([PARAMS.rope_theta ** (-2 * i / d) for i in range(d // 2)])
    assert_close(functional.precompute_freqs_cis(d, 2, PARAMS.rope_theta)[1].angle(), ours)
    i = d / 2 - 1  # the last one
    assert math.isclose(PARAMS.rope_theta ** (-2 * i / d), PARAMS.rope_theta ** -((d - 2) / d))


def distance_only() -> None:
    q, k, phi, m, n = complex(0.7, -1.3), complex(-0.2, 0.4), 0.9, 11, 8

    def turn(angle: float) -> complex:
        return complex(math.cos(angle), math.sin(angle))

    score = q * turn(m * phi) * (k * turn(n * phi)).conjugate()
    assert abs(score - q * k.conjugate() * turn((m - n) * phi)) < 1e-12
    rows = dice(2, 8)
    dots = [(rotate(rows[:1], [m + by]) @ rotate(rows[1:], [n + by]).T).item() for by in (0, 5)]
    assert math.isclose(*dots)


def softmax_of_nothing() -> None:
    assert math.exp(-math.inf) == 0 and math.e**0 == 1
    assert_close(torch.tensor([0.0, -math.inf]).softmax(0), torch.tensor([1.0, 0.0]))
    assert_close(softmax_of(X), X.softmax(-1))


def scaled_scores() -> None:
    d = 4096
    q, k = torch.randn(2, 200, d, generator=torch.Generator().manual_seed(0))
    assert abs((q * k).sum(-1).std() / math.sqrt(d) - 1) < 0.15


def uniform() -> None:
    spread = torch.linspace(-math.sqrt(3), math.sqrt(3), 10001, dtype=torch.float64)
    assert abs(spread.var().item() - 1) < 1e-3


def halves() -> None:
    """Row i and row i + head_dim/2 become neighbours 2i and 2i + 1."""
    d = 8
    theirs = torch.arange(d)
    neighbours = theirs.view(2, d // 2).T.flatten()
    for i in range(d // 2):
        assert neighbours[2 * i] == i and neighbours[2 * i + 1] == i + d // 2


def queries_keys_values() -> None:
    w = dice(PARAMS.head_dim, PARAMS.dim)
    ours, theirs = rotate(X @ w.T), functional.apply_rotary_emb(F.linear(X, w)[:, None], CIS)[:, 0]
    assert_close(ours, theirs, **CLOSE)
    assert ours.shape == (SEQ, PARAMS.head_dim)


def head() -> None:
    q, k, v = dice(3, SEQ, PARAMS.head_dim)
    ours = softmax_of(q @ k.T / math.sqrt(PARAMS.head_dim) + MASK) @ v
    assert_close(ours, F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0])


def first_half() -> None:
    matrices = (weight(f"attention.{name}") for name in ("wq", "wk", "wv", "wo"))
    normed = functional.rms_norm(X, weight("attention_norm"), PARAMS.norm_eps)
    assert_close(attended(X), X + functional.attention(normed, *matrices, CIS, MASK, PARAMS.head_dim), **CLOSE)


def silu() -> None:
    assert_close(silu_of(X), F.silu(X))


def silu_near_zero() -> None:
    z = torch.linspace(-0.05, 0.05, 11, dtype=torch.float64)
    assert_close(z / 2 + z**2 / 4, F.silu(z), rtol=0, atol=1e-6)
    far = torch.tensor(40.0, dtype=torch.float64)
    assert_close(F.silu(far) / 2, far / 2)


def silu_lowest() -> None:
    z = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    lowest = z[F.silu(z).argmin()].item()
    assert abs(lowest + 1.28) < 0.005 and lowest < 0


def gated() -> None:
    w, v = dice(PARAMS.dim, 7), dice(PARAMS.dim, 7, seed=1)
    assert_close(1 / (1 + math.e ** -(X @ w)) * (X @ v), F.glu(torch.cat([X @ v, X @ w], dim=-1)))


def two_thirds() -> None:
    assert 2 * 4 == 3 * 8 / 3
    dim = 3 * 128
    assert 3 * ModelArgs(dim, 1, 1, 9, multiple_of=1).hidden_dim == 2 * 4 * dim


def layer() -> None:
    assert_close(layered(X), functional.transformer_block(X, WEIGHTS, 0, PARAMS, CIS, MASK), **CLOSE)


def surprise() -> None:
    logits, target = dice(SEQ, 9), torch.arange(SEQ)
    p = softmax_of(logits)[range(SEQ), target]
    loss = (-torch.log(p)).mean()
    assert_close(loss, F.cross_entropy(logits, target))
    assert_close(math.e**-loss, p.prod() ** (1 / SEQ))
    assert round(math.e, 2) == 2.72 and round(math.e**-2.36, 2) == 0.09


def blind_guess() -> None:
    vocab = 50
    assert math.isclose(F.cross_entropy(torch.zeros(1, vocab), torch.tensor([7])).item(), math.log(vocab), rel_tol=1e-6)


def next_position() -> None:
    model_sees = [functional.forward(IDS[: m + 1].tolist(), WEIGHTS, PARAMS)[-1] for m in range(SEQ - 1)]
    at_once = functional.forward(IDS, WEIGHTS, PARAMS)[:-1]  # row m is asked for token m + 1
    assert_close(torch.stack(model_sees), at_once, **CLOSE)


def model() -> None:
    x = WEIGHTS["tok_embeddings.weight"][IDS]
    for i in range(PARAMS.n_layers):
        x = layered(x, i)
    logits = norm_of(x, WEIGHTS["norm.weight"]) @ WEIGHTS["output.weight"].T
    theirs = functional.forward(IDS, WEIGHTS, PARAMS)
    assert_close(logits.float(), theirs, rtol=1e-4, atol=1e-4)
    assert logits[-1].argmax() == theirs[-1].argmax()


def first_weights() -> None:
    n = 400
    numbers = torch.nn.Linear(n, 500, bias=False).weight
    assert 0.99 / math.sqrt(n) < numbers.max() <= 1 / math.sqrt(n)
    assert -1 / math.sqrt(n) <= numbers.min() < -0.99 / math.sqrt(n)


def step() -> None:
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    rate, optimizer = 0.1, torch.optim.SGD([theta], lr=0.1)
    (theta**3).sum().backward()
    wanted = theta.detach() - rate * theta.grad
    optimizer.step()
    assert_close(theta.detach(), wanted)


def positions() -> None:
    n, m = 16, 8
    lengths = list(range(n, n + m))  # n tokens for the first new one, and one more each time
    assert lengths[1] == n + 1 and lengths[-1] == n + m - 1
    assert sum(lengths) == m * n + m * (m - 1) / 2


def generate_loop() -> None:
    logits, temperature, p, dart = dice(9) * 4, 0.7, 0.8, 0.6
    ours = softmax_of(logits / temperature)
    assert_close(ours, (logits / temperature).softmax(-1))
    best = ours.sort(descending=True)
    kept = best.values * (best.values.cumsum(0) - best.values < p)
    assert 0 < kept.count_nonzero() < 9
    assert best.indices[torch.searchsorted(kept.cumsum(0) / kept.sum(), dart)] in best.indices[: kept.count_nonzero()]


def bandwidth() -> None:
    per_token, memory = 16e9, 32e9  # bytes; bytes a second
    assert memory / per_token == 1 / (per_token / memory)


def under_a_roof() -> None:
    r, shape, moved_a_second, done_a_second = 3, (10, 20), 50e9, 1e12
    with FlopCounterMode(display=False) as counter:
        F.linear(torch.ones(r, shape[1]), torch.ones(shape))
    o, m, b = counter.get_total_flops(), torch.ones(shape).nbytes, torch.float32.itemsize
    assert o / m == 2 * r / b
    assert o == 2 * r * math.prod(shape)
    ridge = done_a_second / moved_a_second
    assert max(m / moved_a_second, o / done_a_second) == (m / moved_a_second if o / m < ridge else o / done_a_second)
    matrices, cache = 15e9, 1e9
    assert moved_a_second / (matrices + cache) < moved_a_second / matrices


def stretched() -> None:
    theta, d, s, context = 5e5, 128, 8.0, 8192
    phi = torch.tensor([theta ** (-2 * i / d) for i in range(d // 2)])
    t = context * phi / (2 * math.pi)
    g = ((t - 1) / (4 - 1)).clamp(0, 1)
    assert_close(g * phi + (1 - g) * phi / s, functional.apply_scaling(phi, s))
    assert_close(phi * (g + (1 - g) / s), functional.apply_scaling(phi, s))


def costs() -> None:
    stretched()
    args, n = PUBLISHED["Llama 3 8B"], 1000
    cache = 2 * 2 * args.n_layers * args.n_kv_heads * args.head_dim * n
    keys = torch.empty(args.n_layers, args.n_kv_heads, n, args.head_dim, dtype=torch.bfloat16, device="meta")
    assert cache == 2 * keys.nbytes
    numbers, bits = sum(math.prod(shape) for shape in args.weight_shapes().values()), 16
    assert numbers * bits / 8 == 2 * numbers


def lead_in_parts() -> None:
    run, a, b = trace(_model(), IDS), 7, 11
    e = run["embeddings"][-1]
    written = [run[f"layers.{n}.attention.written"][:, -1] for n in range(PARAMS.n_layers)]
    f = [run[f"layers.{n}.feed_forward.output"][-1] for n in range(PARAMS.n_layers)]
    x = e + sum(f[n] + sum(written[n][h] for h in range(PARAMS.n_heads)) for n in range(PARAMS.n_layers))
    rows, gain = WEIGHTS["output.weight"].float(), WEIGHTS["norm.weight"].float()
    lead = x @ (gain * (rows[a] - rows[b])) / math.sqrt((x**2).mean() + PARAMS.norm_eps)
    assert_close(lead, run["logits"][-1, a] - run["logits"][-1, b], **CLOSE)
    theirs = circuits.attribution(_model(), IDS, a, against=b)
    assert_close(lead, sum(share.sum() for share in theirs.values()), **CLOSE)


def share_of_the_way() -> None:
    other, a, b = torch.tensor([3, 1, 9, 1, 5]), 7, 11
    ours, theirs = (functional.forward(ids, _model().weights, PARAMS)[-1] for ids in (IDS, other))
    m, m_other = ours[a] - ours[b], theirs[a] - theirs[b]
    patched = circuits.patching(_model(), IDS, other, a, against=b)
    share = (m - patched) / (m - m_other)
    assert_close(share[0, 2], torch.tensor(1.0), **CLOSE)  # the one token in which they differ
    assert_close(share[-1, -1], torch.tensor(1.0), **CLOSE)  # all that the answer is read from
    assert_close(share[0, [0, 1, 3, 4]], torch.zeros(4), **CLOSE)


@cache
def _model() -> Checkpoint:
    return Checkpoint(PARAMS, {key: matrix.float() for key, matrix in WEIGHTS.items()}, None, Path())


def bfloat16() -> None:
    numbers = torch.tensor([1.0, -2.5, 0.15625, 3e38, -1e-30]).bfloat16()
    for number, bits in zip(numbers.tolist(), numbers.view(torch.int16).tolist(), strict=True):
        sign, exponent, fraction = (bits >> 15) & 1, (bits >> 7) & 255, bits & 127
        assert number == (-1) ** sign * 2.0 ** (exponent - 127) * (1 + fraction / 128)


def two_lenses() -> None:
    model = Checkpoint(PARAMS, WEIGHTS, None, Path())  # type: ignore[arg-type]
    x, last, inside = lenses.states(model, IDS)[1], PARAMS.n_layers - 1, range(1, SEQ - 1)
    moves = torch.autograd.functional.jacobian(
        lambda x: functional.transformer_block(x, WEIGHTS, last, PARAMS, CIS, MASK), x
    )  # [seq, dim, seq, dim]
    j = sum(moves[later, :, t] for later in inside for t in inside if t <= later) / len(inside)
    for thought, theirs in ((x, lenses.logit_lens(model, IDS)[1]), (x @ j.T, None)):
        ours = (norm_of(thought, WEIGHTS["norm.weight"]) @ WEIGHTS["output.weight"].T).float()
        if theirs is None:
            theirs = lenses.jacobian_lens(model, IDS, [last - 1], [IDS.tolist()])[0]
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def solved_order() -> None:
    x, a = dice(SEQ * 3, 4), dice(4, 6, seed=1)
    assert_close(torch.linalg.lstsq(x, x @ a).solution, a)


def on_machines() -> None:
    """Two machines, each with half of the heads, of the neurons, of the rows of both ends."""
    matrices = [weight(f"attention.{name}") for name in ("wq", "wk", "wv", "wo")]
    parts = [m.chunk(2, dim=1 if m is matrices[3] else 0) for m in matrices]
    written = [functional.attention(X, *machine, CIS, MASK, PARAMS.head_dim) for machine in zip(*parts, strict=True)]
    assert_close(sum(written), functional.attention(X, *matrices, CIS, MASK, PARAMS.head_dim))
    w1, w2, w3 = (weight(f"feed_forward.{name}") for name in ("w1", "w2", "w3"))
    pieces = zip(w1.chunk(2), w3.chunk(2), w2.chunk(2, dim=1), strict=True)
    assert_close(
        sum((silu_of(X @ a.T) * (X @ b.T)) @ c.T for a, b, c in pieces), functional.feed_forward(X, w1, w2, w3)
    )
    output = WEIGHTS["output.weight"]
    assert_close(torch.cat([X @ rows.T for rows in output.chunk(2)], dim=-1), X @ output.T)
    table = WEIGHTS["tok_embeddings.weight"]
    columns = [F.pad(part, (12 * i, 12 - 12 * i)) for i, part in enumerate(table.chunk(2, dim=1))]
    assert_close(sum(part[IDS] for part in columns), table[IDS])


# Verbatim, and what computes it; or why nothing does.
def rows_scaled_afterwards() -> None:
    """Whole numbers times the scale of their row, in a product."""
    q, s, x = (dice(4, 6, seed=1) * 127).round(), dice(4, seed=2).abs(), dice(6, seed=3)
    by_hand = [s[i].item() * sum(x[j].item() * q[i, j].item() for j in range(6)) for i in range(4)]
    assert_close(torch.tensor(by_hand, dtype=x.dtype), (q * s[:, None]) @ x)
    bits16 = torch.ones(1, 32).bfloat16()  # what torch's own product makes of it, in numbers that 16 bits can hold
    values = torch.arange(-16, 16).repeat(2, 1).to(torch.int8)
    got = torch._weight_int8pack_mm(bits16, values, torch.tensor([0.5, 2.0]).bfloat16())
    assert got.tolist() == [[0.5 * -16, 2.0 * -16]]


def nibbles_from_the_middle() -> None:
    """GGUF's own reading of a block, and the same counted from 8."""
    blocks = gguf.quants.quantize(dice(3, 32).float().numpy(), gguf.GGMLQuantizationType.Q4_1)
    raw = torch.from_numpy(blocks)
    d, m = raw[:, :4].contiguous().view(torch.float16).double().split(1, 1)
    q = torch.cat([raw[:, 4:] & 15, raw[:, 4:] >> 4], 1).double()
    theirs = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1)).double()
    assert_close(d * q + m, theirs, **CLOSE)
    assert_close(d * (q - 8) + (m + 8 * d), theirs, **CLOSE)


def divergence() -> None:
    """torch's own, and 0 for equal ones."""
    p, p_ = dice(2, 5, seed=1).softmax(-1)
    terms = [a * (math.log(a) - math.log(b)) for a, b in zip(p.tolist(), p_.tolist(), strict=True)]
    assert_close(torch.tensor(sum(terms), dtype=p.dtype), F.kl_div(p_.log(), p, reduction="sum"))
    assert sum(terms) > 0 == F.kl_div(p.log(), p, reduction="sum")


def columns_scaled() -> None:
    w, x, s = dice(4, 6, seed=1), dice(6, seed=2), dice(6, seed=3).abs() + 0.1
    scaled = [sum(w[i, j] * s[j] * (x[j] / s[j]) for j in range(6)) for i in range(4)]
    assert_close(torch.stack(scaled), F.linear(x, w))


# Several processes


def dealt_out() -> None:
    """Rows of process r of N, rounded down: all of them, in order, and what the package says."""
    for total, size in ((PARAMS.hidden_dim, 3), (PARAMS.n_heads, 2), (PARAMS.vocab_size, 3)):
        ends = [(r * total // size, (r + 1) * total // size) for r in range(size)]
        assert [row for first, end in ends for row in range(first, end)] == list(range(total))
    for r in range(3):
        part = parallel.part_of(PARAMS, "tensor", r, 3)
        hidden = PARAMS.hidden_dim
        assert part.neurons == (math.floor(r * hidden / 3), math.floor((r + 1) * hidden / 3))
        assert part.n_heads == PARAMS.n_heads / 3 and part.heads[0] == r * part.n_heads


def round_the_ring() -> None:
    """Every process sends a chunk in each step, and after twice (N - 1) of them all have the sum."""
    for n in (2, 3, 5):
        vectors = dice(n, n * 4, seed=n)
        held = [list(vector.split(4)) for vector in vectors]
        sent, b = [0] * n, vectors[0].nbytes
        for s in range(2 * (n - 1)):
            parcels = [(r, (r - s) % n, held[r][(r - s) % n]) for r in range(n)]
            for r, chunk, parcel in parcels:
                sent[r] += parcel.nbytes
                to = held[(r + 1) % n]
                to[chunk] = to[chunk] + parcel if s < n - 1 else parcel
            if s == n - 2:  # after N - 1 steps everyone has a chunk of the whole sum
                whole = vectors.sum(0).split(4)
                assert all(any(torch.allclose(held[r][c], whole[c]) for c in range(n)) for r in range(n))
        for chunks in held:
            assert_close(torch.cat(chunks), vectors.sum(0))
        assert sent == [2 * (n - 1) / n * b] * n


def seconds_in_a_ring() -> None:
    m, memory, wire, latency, b, sums = 1e9, 1e11, 1e8, 1e-4, 8192, 5
    for n in (2, 4):
        waited: list[float] = []  # what the package sleeps on such a wire
        with (
            mock.patch.object(parallel.group.dist, "get_world_size", lambda n=n: n),
            mock.patch.object(parallel.group.dist, "all_reduce"),
            mock.patch.object(parallel.group.time, "sleep", waited.append),
            parallel.slow_wire(latency, wire),
        ):
            for _ in range(sums):
                parallel.group.add_up(torch.zeros(b // 4))
        told = m / memory + sums * (2 * (n - 1) * latency + 2 * (n - 1) / n * b / wire)
        assert math.isclose(told, m / memory + sum(waited), rel_tol=1e-6)


def bubble() -> None:
    """Stage s works on piece k in step s + k."""
    for p, m in ((2, 3), (4, 8), (8, 1), (1, 5)):
        at_work = {(stage, stage + piece) for stage in range(p) for piece in range(m)}
        steps = 1 + max(step for _, step in at_work)
        assert steps == m + p - 1
        assert math.isclose(1 - len(at_work) / (p * steps), (p - 1) / (m + p - 1), abs_tol=1e-12)


def over_a_wire() -> None:
    """The clock of one token, step by step: N machines, W bytes of weights, S sums of v bytes."""
    layers, N, W, B, v, latency, w = 3, 4, 24e9, 2e12, 16e3, 5e-6, 1e9
    S = sum(2 for _ in range(layers)) + 1
    assert 2 * layers + 1 == S
    clock = sent = 0.0
    for _ in range(S):
        clock += W / S / N / B  # all machines fetch their parts at once
        for _ in range(2 * (N - 1)):  # steps of the ring, each with a chunk
            clock += latency + v / N / w
            sent += v / N
    assert math.isclose(sent, S * 2 * (N - 1) / N * v)
    assert math.isclose(clock, W / (N * B) + S * (2 * (N - 1) * latency + 2 * (N - 1) / N * v / w))
    assert math.isclose(clock - sent / w, W / (N * B) + 2 * S * (N - 1) * latency)
    clock = 0.0
    for _ in range(N):  # a stage fetches its weights, and its message goes on, the last one to the first stage
        clock += W / N / B
        clock += latency + v / w
    assert math.isclose(clock, W / B + N * (latency + v / w))
    assert math.isclose(clock - N * v / w, W / B + N * latency)


def many_machines() -> None:
    bubble()
    over_a_wire()
    seconds_in_a_ring()


def adam_step() -> None:
    """Adam's first step: each number moves by one rate, m / sqrt(v) being its gradient's sign."""
    weight, gradient = dice(7, seed=70), dice(7, seed=71)
    betas, rate = (0.9, 0.95), 0.01
    m = (1 - betas[0]) * gradient / (1 - betas[0])
    v = (1 - betas[1]) * gradient**2 / (1 - betas[1])
    assert_close(m / v.sqrt(), gradient.sign())
    pupil = torch.nn.Parameter(weight.clone())
    pupil.grad = gradient
    torch.optim.AdamW([pupil], lr=rate, betas=betas, weight_decay=0.0, eps=1e-30).step()
    assert_close(pupil.detach(), weight - rate * m / v.sqrt())


def adapted_and_moved() -> None:
    torch.manual_seed(0)
    adapter = lora.LoRA(torch.nn.Linear(6, 5, bias=False, dtype=torch.float64), 2, alpha=3)
    torch.nn.init.normal_(adapter.B)
    adapted = adapter.linear.weight + adapter.alpha / 2 * adapter.B @ adapter.A
    x = dice(4, 6)
    assert_close(adapter(x), x @ adapted.T, **CLOSE)
    p, q = (softmax_of(dice(4, 9, seed=seed)) for seed in (1, 2))
    assert_close((p * (p / q).log()).sum(-1).mean(), F.kl_div(q.log(), p, reduction="batchmean"))


def beside_a_matrix() -> None:
    """One matrix W + B A does what both ways do together, and the gradient of either factor has the other in it."""
    w, b, a, x = dice(7, 5, seed=1), dice(7, 2, seed=2), dice(2, 5, seed=3), dice(5, seed=4)
    linear = Linear(5, 7, bias=False)
    thin = LoRA(linear, 2)
    for mine, values in ((linear.weight, w), (thin.A, a), (thin.B, b)):
        mine.data = values
    assert_close(thin(x), (w + b @ a) @ x)
    assert torch.linalg.matrix_rank(b @ a) == 2


def minus_log() -> None:
    logits = dice(9)
    p = softmax_of(logits)[3]
    assert_close(F.cross_entropy(logits[None], torch.tensor([3])), -torch.log(p))


def power_law() -> None:
    """A law without floor loses the same share with each doubling; with one, what is above the floor does."""
    a, c, f = 7.0, 0.3, 2.0
    n = 10.0 ** torch.arange(3, 9, dtype=torch.float64)
    for floor in (0.0, f):
        loss = floor + a / n**c
        doubled = floor + a / (2 * n) ** c
        assert_close((doubled - floor) / (loss - floor), torch.full_like(n, 2**-c))
        slopes = (loss - floor).log().diff() / n.log().diff()  # a straight line over ln N
        assert_close(slopes, torch.full_like(slopes, -c))


def six_operations() -> None:
    """Forward 2 and backward 4 for each weight and token, as torch counts them."""
    weights, tokens = torch.ones(10, 20, requires_grad=True), torch.ones(3, 20, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        F.linear(tokens, weights).sum().backward()
    assert counter.get_total_flops() == 6 * weights.numel() * len(tokens)


def attention_operations() -> None:
    d, pairs = 8, SEQ * SEQ
    q, k, v = torch.ones(3, SEQ, d)
    for product in (lambda: q @ k.T, lambda: torch.ones(SEQ, SEQ) @ v):
        with FlopCounterMode(display=False) as counter:
            product()
        assert counter.get_total_flops() == 2 * d * pairs


def largest_training() -> None:
    numbers = sum(math.prod(shape) for shape in PUBLISHED["Llama 3.1 405B"].weight_shapes().values())
    assert abs(6 * numbers * 15.6e12 / 3.8e25 - 1) < 0.01


def sums_on_a_clock() -> None:
    p, a, b = 43, 30, 25
    for speed in (1, 7):
        u, v, both = (2 * math.pi * speed * n / p for n in (a, b, (a + b) % p))
        assert math.isclose(math.cos(u) * math.cos(v) - math.sin(u) * math.sin(v), math.cos(both))
        assert math.isclose(math.cos(u + v), math.cos(both))


def best_shares() -> None:
    """Where the derivative is zero, neither more numbers nor more tokens help."""
    a, b, alpha, beta, pairs = 406.4, 410.7, 0.34, 0.28, 1e20

    def loss(n: float) -> float:
        return a / n**alpha + b / (pairs / n) ** beta

    n = (alpha * a / (beta * b) * pairs**beta) ** (1 / (alpha + beta))
    assert loss(n) < min(loss(n * 1.01), loss(n / 1.01))


def mixed_counts() -> None:
    """Witten and Bell's mixture: who looks `kinds` times at the shorter run and `times` at the counts. The chances of all
    tokens add up to 1, none is 0, and the mixture is the one with weights times / (times + kinds) and the rest.
    """
    shorter, counts = [0.5, 0.25, 0.125, 0.125], [6, 0, 2, 0]
    times, kinds = sum(counts), sum(count > 0 for count in counts)
    mixed = [(count + kinds * p) / (times + kinds) for count, p in zip(counts, shorter, strict=True)]
    assert math.isclose(sum(mixed), 1) and min(mixed) > 0
    trust = times / (times + kinds)
    by_parts = [trust * count / times + (1 - trust) * p for count, p in zip(counts, shorter, strict=True)]
    assert all(math.isclose(a, b) for a, b in zip(mixed, by_parts, strict=True))


def training_step() -> None:
    """The loss, AdamW's step and the operations of notebook 17's summary, in plain Python, beside torch's."""
    rows = dice(SEQ, 9, seed=80)
    by_hand = -sum(math.log(softmax_of(rows[i])[IDS[i + 1]]) for i in range(SEQ - 1)) / (SEQ - 1)
    assert math.isclose(by_hand, F.cross_entropy(rows[:-1], IDS[1:]).item())
    beta_1, beta_2, decay, eps = 0.9, 0.95, 0.1, 1e-8
    pupil = torch.nn.Parameter(dice(1, seed=81))
    theirs = torch.optim.AdamW([pupil], betas=(beta_1, beta_2), weight_decay=decay, eps=eps)
    w, m, v = pupil.item(), 0.0, 0.0
    for t, gradient in enumerate(dice(6, seed=82).tolist(), start=1):
        rate = 0.01 * t
        m = beta_1 * m + (1 - beta_1) * gradient
        v = beta_2 * v + (1 - beta_2) * gradient**2
        w = (1 - rate * decay) * w - rate * (m / (1 - beta_1**t)) / (math.sqrt(v / (1 - beta_2**t)) + eps)
        pupil.grad = torch.full_like(pupil, gradient)
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
        assert math.isclose(w, pupil.item(), rel_tol=1e-9)
    six_operations()


FORMULAS: dict[str, Callable[[], None] | str] = {
    # 17, how far it goes
    r"$L = a / N^c$": power_law,
    r"$L = f + a / N^c$": power_law,
    r"$\ln (L - f)$": power_law,
    r"$\ln N$": power_law,
    r"$6 N D$": six_operations,
    r"$2 d$": attention_operations,
    r"$3.8 \cdot 10^{25}$": largest_training,
    r"$L = E + A / N^\alpha + B / D^\beta$": best_shares,
    r"$a + b$": sums_on_a_clock,
    r"$b + a$": sums_on_a_clock,
    r"$\cos(u + v) = \cos u \cos v - \sin u \sin v$": sums_on_a_clock,
    r"$x_1, \dots, x_T$": "the tokens of a text",
    r"$\eta_t$": "the rate of step t",
    r"$\lambda$": "the weight decay",
    r"$1 - \beta^t$": training_step,
    r"""$$
p_n = \frac{\text{count} + \text{kinds} \cdot p_{n-1}}{\text{times} + \text{kinds}}
$$""": mixed_counts,
    r"""$$
\begin{aligned}
\text{loss} &= -\frac{1}{T - 1} \sum_{i=1}^{T-1} \ln p(x_{i+1} \mid x_1, \dots, x_i) \\
m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
w_t &= (1 - \eta_t \lambda)\, w_{t-1} - \eta_t\, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \varepsilon} \\
\text{operations} &\approx 6 N D
\end{aligned}
$$""": training_step,
    # 15
    r"$$\sum_j x_j\, s_i\, q_{ij} \;=\; s_i \sum_j x_j\, q_{ij}$$": rows_scaled_afterwards,
    r"$d\,q + m$": nibbles_from_the_middle,
    r"$p'$": "the changed probabilities",
    r"$\sum p\,(\ln p - \ln p')$": divergence,
    r"$q - 8$": nibbles_from_the_middle,
    r"$$d\,q + m \;=\; d\,(q - 8) + (m + 8 d)$$": nibbles_from_the_middle,
    r"$$W\, x \;=\; \bigl(W \operatorname{diag}(s)\bigr)\,\bigl(\operatorname{diag}(s)^{-1}\, x\bigr)$$": columns_scaled,
    # 17
    r"$\sqrt{v}$": adam_step,
    r"$m / \sqrt{v}$": adam_step,
    # 16
    r"$rS/N$": dealt_out,
    r"$(r+1)S/N$": dealt_out,
    r"$H/N$": dealt_out,
    r"$N-1$": round_the_ring,
    r"$r-s$": round_the_ring,
    r"$2(N-1)$": round_the_ring,
    r"$2(N-1)/N$": round_the_ring,
    "$$\n2\\,\\frac{N-1}{N}\\;b\n$$": round_the_ring,
    # Notebook 13
    r"$$\text{logit}_a - \text{logit}_b \;=\; \Big(e + \sum_{l} \big(f_l + \sum_{h} a_{l,h}\big)\Big) \cdot \frac{g \odot (W_a - W_b)}{\sqrt{\operatorname{mean}(x^2) + \varepsilon}}$$": lead_in_parts,
    r"$$\text{share} \;=\; \frac{m - m_{\text{patched}}}{m - m'}$$": share_of_the_way,
    r"$a_{l,h}$": lead_in_parts,
    r"$m'$": share_of_the_way,
    # Notebook 1
    r"$$\underset{[\text{seq}]}{\text{ids}} = \operatorname{BPE}(\text{text})$$": "words: no number comes of it",
    # Notebook 2
    r"$$\underset{[\text{seq},\ \text{dim}]}{x} = \underset{[\text{vocab},\ \text{dim}]}{E}\,[\text{ids}]$$": lookup,
    # Notebook 3
    r"$$y_i = \frac{x_i}{\sqrt{\frac{1}{\text{dim}}\sum_j x_j^2 + \varepsilon}} \; g_i$$": norm,
    r"$\sqrt{\text{dim}}$": "the length that it leaves; see norm",
    r"$10^{-8}$": "a size, chosen",
    r"$$\underbrace{\mathrm{ids}}_{[\mathrm{seq}]} = \mathrm{BPE}(\mathrm{text}) \qquad \underbrace{x}_{[\mathrm{seq},\ \mathrm{dim}]} = \underbrace{E}_{[\mathrm{vocab},\ \mathrm{dim}]}[\mathrm{ids}]$$": lookup,
    r"$$\underbrace{y}_{[\mathrm{seq},\ \mathrm{dim}]} = \mathrm{norm}(x) = \underbrace{x}_{[\mathrm{seq},\ \mathrm{dim}]} \;/\; \underbrace{\sqrt{\mathrm{mean}(x^2) + \varepsilon}}_{[\mathrm{seq},\ 1]} \;\cdot\; \underbrace{g}_{[\mathrm{dim}]}$$": norm,
    # Notebook 4
    r"$$a' = a\cos\varphi - b\sin\varphi \qquad b' = a\sin\varphi + b\cos\varphi$$": turned,
    r"$2\pi$": whole_turn,
    r"$a + bi$": complex_turn,
    r"$\cos\varphi + i\sin\varphi$": complex_turn,
    r"$$\theta^{-2i/\mathrm{head\_dim}} \text{ radians per token,}$$": frequencies,
    r"$(m - n)$": distance_only,
    r"$$q e^{im\varphi} \; \overline{k e^{in\varphi}} = q \bar k \; e^{i(m-n)\varphi}$$": distance_only,
    r"$e^{-\infty}$": softmax_of_nothing,
    r"$e^0 = 1$": softmax_of_nothing,
    r"$\sqrt{\mathrm{head\_dim}}$": scaled_scores,
    r"$-\sqrt 3$": uniform,
    r"$\sqrt 3$": uniform,
    r"$i + \mathrm{head\_dim}/2$": halves,
    r"$$\underbrace{\mathrm{ids}}_{[\mathrm{seq}]} = \mathrm{BPE}(\mathrm{text}) \qquad \underbrace{x}_{[\mathrm{seq},\ \mathrm{dim}]} = \underbrace{E}_{[\mathrm{vocab},\ \mathrm{dim}]}[\mathrm{ids}] \qquad \underbrace{y}_{[\mathrm{seq},\ \mathrm{dim}]} = \mathrm{norm}(x)$$": lookup_and_norm,
    r"$$\underbrace{q}_{[\mathrm{seq},\ \mathrm{head\_dim}]} = \mathrm{rotate}(y\, W_q^T) \qquad \underbrace{k}_{[\mathrm{seq},\ \mathrm{head\_dim}]} = \mathrm{rotate}(y\, W_k^T) \qquad \underbrace{v}_{[\mathrm{seq},\ \mathrm{head\_dim}]} = y\, W_v^T$$": queries_keys_values,
    r"$$\underbrace{\mathrm{head}(y)}_{[\mathrm{seq},\ \mathrm{head\_dim}]} = \mathrm{softmax}\Big(\underbrace{q\,k^T / \sqrt{\mathrm{head\_dim}} + \mathrm{mask}}_{[\mathrm{seq},\ \mathrm{seq}]}\Big)\; \underbrace{v}_{[\mathrm{seq},\ \mathrm{head\_dim}]}$$": head,
    # Notebook 5
    r"""$$
\begin{aligned}
\underset{[\text{seq},\ \text{dim}]}{h} &= \underset{[\text{vocab},\ \text{dim}]}{E}\,[\,\underset{[\text{seq}]}{\mathrm{BPE}(\text{text})}\,] \\[4pt]
\underset{[\text{seq},\ \text{dim}]}{x} &= \mathrm{norm}(h) \\[4pt]
\underset{[\text{seq},\ \mathrm{head\_dim}]}{\mathrm{head}_i} &= \mathrm{softmax}\!\Big(\underset{[\text{seq},\ \text{seq}]}{\mathrm{rot}(x W_{q,i}^{\top})\;\mathrm{rot}(x W_{k,g}^{\top})^{\top} / \sqrt{\mathrm{head\_dim}} + \text{mask}}\Big)\; \underset{[\text{seq},\ \mathrm{head\_dim}]}{x W_{v,g}^{\top}}, \qquad g = \lfloor i / \mathrm{group\_size} \rfloor \\[4pt]
\underset{[\text{seq},\ \text{dim}]}{h} &\leftarrow \underset{[\text{seq},\ \text{dim}]}{h} + \underset{[\text{seq},\ \mathrm{n\_heads} \cdot \mathrm{head\_dim}]}{[\,\mathrm{head}_0, \mathrm{head}_1, \ldots\,]}\; \underset{[\text{dim},\ \text{dim}]}{W_o^{\top}}
\end{aligned}
$$""": first_half,
    # Notebook 6
    r"$$\mathrm{silu}(z) = z \cdot \sigma(z), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$": silu,
    r"$z/2 + z^2/4$": silu_near_zero,
    r"$z < 0$": silu_lowest,
    r"$z = -1.28$": silu_lowest,
    r"$\sigma(x W) \cdot x V$": gated,
    r"$z/2$": silu_near_zero,
    r"$2 \cdot 4 = 3 \cdot \tfrac{8}{3}$": two_thirds,
    r"""$$
\begin{aligned}
\underset{[\text{seq},\ \text{dim}]}{h} &= \underset{[\text{vocab},\ \text{dim}]}{E}\,[\,\underset{[\text{seq}]}{\mathrm{BPE}(\text{text})}\,] \\[4pt]
\underset{[\text{seq},\ \mathrm{head\_dim}]}{\mathrm{head}_i} &= \mathrm{softmax}\!\Big(\underset{[\text{seq},\ \text{seq}]}{\mathrm{rot}(x W_{q,i}^{\top})\;\mathrm{rot}(x W_{k,g}^{\top})^{\top} / \sqrt{\mathrm{head\_dim}} + \text{mask}}\Big)\; x W_{v,g}^{\top}, \qquad \underset{[\text{seq},\ \text{dim}]}{x} = \mathrm{norm}(h) \\[4pt]
\underset{[\text{seq},\ \text{dim}]}{h} &\leftarrow h + \underset{[\text{seq},\ \mathrm{n\_heads} \cdot \mathrm{head\_dim}]}{[\,\mathrm{head}_0, \mathrm{head}_1, \ldots\,]}\; \underset{[\text{dim},\ \text{dim}]}{W_o^{\top}} \\[4pt]
\underset{[\text{seq},\ \text{dim}]}{h} &\leftarrow h + \Big(\underset{[\text{seq},\ \mathrm{hidden\_dim}]}{\mathrm{silu}(y W_1^{\top}) \odot y W_3^{\top}}\Big)\, \underset{[\mathrm{hidden\_dim},\ \text{dim}]}{W_2^{\top}}, \qquad \underset{[\text{seq},\ \text{dim}]}{y} = \mathrm{norm}(h)
\end{aligned}
$$""": layer,
    # Notebook 7
    r"$-\ln p$": surprise,
    r"$\ln(\text{vocab})$": blind_guess,
    r"$e^{-2.36}$": surprise,
    r"""$$
\begin{aligned}
\text{ids} &= \operatorname{BPE}(\text{text}) \qquad
x = \underbrace{E}_{[\text{vocab},\ \text{dim}]}[\text{ids}] \\[4pt]
\textbf{for each layer:}\quad
x &\leftarrow \underbrace{x}_{[\text{seq},\ \text{dim}]} + \underbrace{\operatorname{heads}\bigl(\operatorname{norm}(x)\bigr)}_{[\text{seq},\ \mathrm{n\_heads}\,\cdot\,\mathrm{head\_dim}]}\ \underbrace{W_o^{\top}}_{[\mathrm{n\_heads}\,\cdot\,\mathrm{head\_dim},\ \text{dim}]} \\
y &= \operatorname{norm}(x) \\
x &\leftarrow x + \bigl(\underbrace{\operatorname{silu}(y\,W_1^{\top}) \odot y\,W_3^{\top}}_{[\text{seq},\ \text{hidden}]}\bigr)\, \underbrace{W_2^{\top}}_{[\text{hidden},\ \text{dim}]}
\end{aligned}
$$""": layer,
    r"$\operatorname{softmax}\bigl(\operatorname{mask}(q\,k^{\top} / \sqrt{\mathrm{head\_dim}})\bigr)\,v$": head,
    # Notebook 8
    r"$e \approx 2.72$": surprise,
    r"$m + 1$": next_position,
    r"$e^{\text{loss}}$": surprise,
    r"""$$
\begin{aligned}
\text{ids} &= \operatorname{BPE}(\text{text})
&& [\text{seq}] \\
x &= E\,[\text{ids}]
&& [\text{seq},\ \text{dim}] \\[2pt]
\textbf{for each}&\textbf{ layer:} \\
y &= \operatorname{norm}(x) = g \odot x \,/\, \sqrt{\operatorname{mean}(x^2) + \varepsilon}
&& [\text{seq},\ \text{dim}] \\
q_h,\ k_h,\ v_h &= \operatorname{rotate}(y\,W_{q,h}^{\top}),\ \ \operatorname{rotate}(y\,W_{k,h}^{\top}),\ \ y\,W_{v,h}^{\top}
&& [\text{seq},\ \mathrm{head\_dim}] \\
o_h &= \operatorname{softmax}\bigl(\operatorname{mask}(q_h k_h^{\top} / \sqrt{\mathrm{head\_dim}})\bigr)\, v_h
&& [\text{seq},\ \mathrm{head\_dim}] \\
x &\leftarrow x + [\,o_0,\ o_1,\ \dots\,]\; W_o^{\top}
&& [\text{seq},\ \text{dim}] \\
y &= \operatorname{norm}(x)
&& [\text{seq},\ \text{dim}] \\
x &\leftarrow x + \bigl(\operatorname{silu}(y\,W_1^{\top}) \odot y\,W_3^{\top}\bigr)\, W_2^{\top}
&& [\text{seq},\ \text{dim}] \\[2pt]
\textbf{and at}&\textbf{ the end:} \\
\text{logits} &= \operatorname{norm}(x)\; W_{\text{output}}^{\top}
&& [\text{seq},\ \text{vocab}] \\
\text{next token} &= \operatorname{argmax}\,(\text{logits}_{\text{last}})
&& \text{one id}
\end{aligned}
$$""": model,
    # Notebook 9
    r"$-1/\sqrt{n}$": first_weights,
    r"$1/\sqrt{n}$": first_weights,
    r"""$$
\begin{aligned}
\underset{[\text{batch},\ \text{seq},\ \text{dim}]}{h} &= \mathrm{tok\_embeddings}(\underset{[\text{batch},\ \text{seq}]}{\text{tokens}}) \\[4pt]
h &\leftarrow \mathrm{layers}_i(h) && i = 0, 1, \dots \\[4pt]
\underset{[\text{batch},\ \text{seq},\ \text{vocab}]}{\text{logits}} &= \mathrm{output}(\mathrm{norm}(h)) \\[6pt]
\theta &\leftarrow \theta - \text{rate} \cdot \frac{\partial\, \text{loss}}{\partial \theta} && \text{to train it}
\end{aligned}
$$""": step,
    # Notebook 10
    r"$n + 1$": positions,
    r"$n + m - 1$": positions,
    r"$m n + m (m - 1) / 2$": positions,
    r"""$$
\begin{aligned}
K,\ V &\leftarrow \text{empty}
&& [\mathrm{n\_layers},\ \mathrm{n\_kv\_heads},\ 0,\ \mathrm{head\_dim}] \\
\text{new} &\leftarrow \operatorname{BPE}(\text{text})
&& [\text{new}] \\[2pt]
\textbf{until a}&\textbf{ stop token comes:} \\
\text{logits},\ K,\ V &\leftarrow \operatorname{Llama}(\text{new},\ K,\ V)
&& [\text{vocab}] \\
p &= \operatorname{cut}\bigl(\operatorname{softmax}(\text{logits} / \text{temperature})\bigr)
&& [\text{vocab}] \\
\text{new} &\leftarrow \text{the token that the dart hits, } \text{dart} \sim U(0, 1)
&& [1]
\end{aligned}
$$""": generate_loop,
    # Notebook 11
    r"$$\text{tokens per second} \;\le\; \frac{\text{bandwidth}}{\text{bytes read for one token}}$$": bandwidth,
    r"$\theta^{-2i/\mathrm{head\_dim}}$": frequencies,
    r"$$\varphi' = g\,\varphi + (1 - g)\,\frac{\varphi}{s} \qquad g = \frac{t - 1}{4 - 1}, \text{ but at least } 0 \text{ and at most } 1$$": stretched,
    r"""$$
\begin{aligned}
\text{bytes to hold} &= \underbrace{N \cdot b / 8}_{\text{weights}} + \underbrace{2 \cdot 2 \cdot L \cdot \mathrm{n\_kv\_heads} \cdot \mathrm{head\_dim} \cdot n}_{\text{KV cache}}
&& \text{tokens per second} \le \frac{\text{bandwidth}}{\text{bytes read}} \\[2pt]
\varphi_i &= \theta^{-2i/\mathrm{head\_dim}} \Big(g_i + \frac{1 - g_i}{s}\Big)
&& [\mathrm{head\_dim}/2]
\end{aligned}
$$""": costs,
    r"$i = \mathrm{head\_dim}/2 - 1$": frequencies,
    r"$(\mathrm{head\_dim} - 2)/\mathrm{head\_dim}$": frequencies,
    # Notebook 12
    r"$\pm\, 2^{\text{exponent} - 127} \cdot (1 + \text{fraction} / 128)$": bfloat16,
    r"$2i$": halves,
    r"$2i + 1$": halves,
    r"$Y = XA$": solved_order,
    r"""$$
\begin{aligned}
x &= \textstyle\sum_m E_m\,[\operatorname{BPE}(\text{text})] && [\text{seq},\ \text{dim}] \\
\textbf{for each}&\textbf{ layer:} \\
y &= \operatorname{norm}(x) && [\text{seq},\ \text{dim}] \\
x &\leftarrow x + \textstyle\sum_m \bigl[\,o_h : h \text{ in } m\,\bigr]\; W_{o,m}^{\top} && [\text{seq},\ \text{dim}] \\
y &= \operatorname{norm}(x) && [\text{seq},\ \text{dim}] \\
x &\leftarrow x + \textstyle\sum_m \bigl(\operatorname{silu}(y\,W_{1,m}^{\top}) \odot y\,W_{3,m}^{\top}\bigr)\, W_{2,m}^{\top} && [\text{seq},\ \text{dim}] \\
\textbf{and at}&\textbf{ the end:} \\
\text{logits} &= \bigl[\,\operatorname{norm}(x)\,W_{\text{output},0}^{\top},\ \operatorname{norm}(x)\,W_{\text{output},1}^{\top},\ \dots\,\bigr] && [\text{seq},\ \text{vocab}]
\end{aligned}
$$""": on_machines,
    # Notebook 14
    r"""$$
\begin{aligned}
\text{logit lens:}\quad & W_{\text{output}}\, \operatorname{norm}(x_{\ell, t})
&& [\text{vocab}] \\
\text{Jacobian lens:}\quad & W_{\text{output}}\, \operatorname{norm}(J_\ell\, x_{\ell, t})
&& [\text{vocab}] \\
J_\ell =\ & \operatorname{mean}_{\text{texts},\, t'} \textstyle\sum_{t \le t'} \partial x_{\text{last}, t'} / \partial x_{\ell, t}
&& [\text{dim},\ \text{dim}]
\end{aligned}
$$""": two_lenses,
    # Notebook 15
    r"$$\text{seconds} \;\ge\; \max\left(\frac{m}{\text{bytes a second}},\ \frac{o}{\text{operations a second}}\right)$$": under_a_roof,
    r"$o / m$": under_a_roof,
    r"$2r$": under_a_roof,
    r"$2r / b$": under_a_roof,
    r"$$\text{tokens a second} \;\le\; \frac{\text{bytes a second}}{\text{bytes for a token}}$$": bandwidth,
    r"""$$
\begin{aligned}
\text{seconds} &\ge \max\left(\frac{m}{\text{bytes a second}},\ \frac{o}{\text{operations a second}}\right)
&& \text{any step} \\
\frac{o}{m} &\approx \frac{2r}{b}
&& \text{few rows} \\
w &\approx d\,q + m
&& \text{a weight of a group} \\
\text{tokens a second} &\le \frac{\text{bytes a second}}{\text{bytes of the matrices} + \text{bytes of the cache}}
&& \text{one text}
\end{aligned}
$$""": under_a_roof,
    # Notebook 18
    r"$r$": "the rank of an adapter",
    r"$A$": "a matrix of an adapter",
    r"$B$": "a matrix of an adapter",
    r"$$W' \;=\; W + \tfrac{\alpha}{r}\, B A \qquad\qquad \text{KL}(p \,\|\, q) \;=\; \sum_t p_t \ln \frac{p_t}{q_t}$$": adapted_and_moved,
    # Notebook 16, second part
    r"$\ell$": over_a_wire,
    r"$W / (N B)$": over_a_wire,
    r"$S = 2\,\text{layers} + 1$": over_a_wire,
    r"$m + p - 1$": bubble,
    r"$(p - 1) / (m + p - 1)$": bubble,
    r"$$\frac{p - 1}{m + p - 1}$$": bubble,
    r"$$t_{\text{tensor}} = \frac{W}{N B} + S\left(2 (N-1)\, \ell + \frac{2 (N-1)}{N}\, \frac{v}{w}\right)$$": over_a_wire,
    r"$$t_{\text{pipeline}} = \frac{W}{B} + N \left(\ell + \frac{v}{w}\right)$$": over_a_wire,
    r"""$$
\begin{aligned}
\text{sent by each} &= \tfrac{2 (N-1)}{N}\ \text{bytes of the sum} && \text{a ring} \\
t_{\text{tensor}} &= \frac{W}{N B} + 2 S (N-1)\, \ell && \text{one token} \\
t_{\text{pipeline}} &= \frac{W}{B} + N \ell && \text{one token} \\
\text{lost} &= \frac{p - 1}{m + p - 1} && m \text{ pieces, } p \text{ stages}
\end{aligned}
$$""": many_machines,
    # Notebook 18, first part
    r"$-\ln P$": minus_log,
    r"$$\text{KL}(p \,\|\, q) = \sum_t p_t \ln \frac{p_t}{q_t}$$": divergence,
    r"$W + BA$": beside_a_matrix,
    r"$BA$": beside_a_matrix,
}
# Names of things, and shapes: what a formula says of them, the text says, too.
PLAIN = re.compile(
    r"\$(?:[A-Za-z](?:_[a-z0-9])?|\\(?:varepsilon|theta|varphi|sigma|odot)|[A-Z]_(?:\w|\{[\w,\\ {}]*\})"
    r"|\[(?:[\w\s,.\\{}+]|\\cdot)*\])\$"
)


def formulas(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """Cell and formula, in order."""
    for cell in prose_cells(notebook):
        text = cell.source
        for pattern in NO_PROSE:
            text = pattern.sub(" ", text)
        for code in CODE.finditer(text):
            text = blank(text, code)
        yield from ((cell.id, piece[0]) for piece in FORMULA.finditer(text))


def wrong_formulas(notebook: NotebookNode) -> Iterator[str]:
    for name, formula in formulas(notebook):
        if fault := unbalanced(formula):
            yield f"{name}: {fault}: {formula}"
        if formula not in FORMULAS and not PLAIN.fullmatch(formula):
            yield f"{name}: not in tests/notebooks/formulas.py: {formula}"
    for cell in prose_cells(notebook):  # a lone dollar opens a formula that never ends
        text = cell.source
        for pattern in [*NO_PROSE, CODE, FORMULA]:
            text = pattern.sub(" ", text)
        if re.search(r"(?<!\\)\$(?!\d)", text):
            yield f"{cell.id}: a dollar sign that opens nothing"


def unbalanced(formula: str) -> str:
    bare = re.sub(r"\\[{}]", "", formula)
    depth = 0
    for c in bare:
        depth += (c == "{") - (c == "}")
        if depth < 0:
            break
    if depth:
        return "braces do not balance"
    opened, closed = (re.findall(rf"\\{word}\{{(\w+)\}}", formula) for word in ("begin", "end"))
    if opened != closed[::-1]:
        return "begin and end do not match"
    if formula.count("\\left") - formula.count("\\leftarrow") != formula.count("\\right") - formula.count(
        "\\rightarrow"
    ):
        return "left and right do not match"
    return ""


def unused(notebooks: list[NotebookNode]) -> list[str]:
    found = {formula for notebook in notebooks for _, formula in formulas(notebook)}
    return [formula for formula in FORMULAS if formula not in found]


if __name__ == "__main__":
    everything = [read(path) for path in NOTEBOOKS]
    for book in everything:
        print(*wrong_formulas(book), sep="\n", end="")
    for formula in unused(everything):
        print("\nin no notebook:", formula)
