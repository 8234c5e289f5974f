"""functional.forward against the referee, and the referee against planted faults."""

import inspect
import math

import pytest
import torch
from helpers import distance, hf_logits, hf_model, random_tokens, rope_parameters
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_scratch import functional, load_checkpoint
from llama3_scratch.loading.tiny import TINY

PROMPTS = (
    "The capital of France is",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n\n\nprint(fib(",
    "3.14159 26535 89793, 1 + 1 = 2, 2 ** 10 = 1024, 10 / 4 =",
    "中国的首都是北京，日本の首都は東京です。",
    "I ❤️ 🍕 and 👩‍🚀 🏳️‍🌈!!",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "مرحبا بالعالم. Привет, мир! Γειά σου Κόσμε",
    "SELECT name FROM users WHERE id = 'x'; -- {\"a\": [1, 2, null]} <br/>\t\\frac{1}{2}$$",
    "  \n\n \t once   upon a time \r\n  there    was",
    "the cat sat on the mat and " * 5,
)


def checkpoint(tiny_folder, name, dtype=torch.float32):
    return load_checkpoint(tiny_folder(name), dtype=dtype)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("shape", [(5,), (200,), (3, 17)], ids=["short", "long", "batch"])
def test_forward_equals_hugging_face(tiny_folder, name, shape):
    ckpt = checkpoint(tiny_folder, name)
    tokens = random_tokens(ckpt.params, *shape)
    ours = functional.forward(tokens, ckpt.weights, ckpt.params)
    assert distance(ours, hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)) < 1e-4


@pytest.mark.parametrize("name", TINY)
def test_float64_weights_are_computed_in_float64(tiny_folder, name):
    ckpt = checkpoint(tiny_folder, name, torch.float64)
    assert {w.dtype for w in ckpt.weights.values()} == {torch.float64}
    tokens = random_tokens(ckpt.params, 60)
    theirs = hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)
    # Hugging Face rounds to float32 inside each norm, and our logits are float32: 3e-6 here. In float32, 1e-5 to 3e-5.
    assert distance(functional.forward(tokens, ckpt.weights, ckpt.params), theirs) < 1e-5


def test_bfloat16_strays_from_float32_no_further_than_hugging_faces(tiny_folder):
    stored, wide = load_checkpoint(tiny_folder("tiny-bfloat16")), checkpoint(tiny_folder, "tiny-bfloat16")
    tokens = random_tokens(stored.params, 60)
    ours = functional.forward(tokens, stored.weights, stored.params)
    assert ours.dtype == torch.float32
    theirs, exact = (hf_logits(hf_model(c.params, c.weights), tokens) for c in (stored, wide))
    # bfloat16 keeps three digits. Both end about 2 % away; a step done in sixteen bits too many would be further.
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm()


@pytest.mark.slow
def test_smollm2_equals_hugging_face_at_every_position_of_ten_prompts(smollm2):
    model = hf_model(smollm2.params, smollm2.weights)
    for prompt in PROMPTS:
        tokens = torch.tensor(smollm2.tokenizer.encode(prompt, allowed_special="all"))
        ours = functional.forward(tokens, smollm2.weights, smollm2.params)
        theirs = hf_logits(model, tokens)
        assert distance(ours, theirs) < 1e-3, prompt  # measured: at most 6.3e-5, on logits up to 38
        assert ours.argmax(-1).tolist() == theirs.argmax(-1).tolist(), prompt


# Next tokens and their probabilities as llama.cpp gives them for the same file (it rounds activations to eight bits).
@pytest.mark.parametrize(
    ("prompt", "token", "prob"),
    [
        ("The capital of France is", " Paris", 0.77),
        ("The Earth revolves around the", " Sun", 0.99),
        ("An apple a day keeps the doctor", " away", 0.98),
        ("def add(a, b):\n    return a +", " b", 0.97),
    ],
)
def test_smollm2_says_what_llama_cpp_says(smollm2, prompt, token, prob):
    logits = functional.forward(smollm2.tokenizer.encode(prompt), smollm2.weights, smollm2.params)
    probs = logits[-1].softmax(-1)
    assert smollm2.tokenizer.decode([probs.argmax()]) == token
    assert probs.max().item() == pytest.approx(prob, abs=0.03)


@pytest.mark.parametrize(("head_dim", "factor"), [(128, 8.0), (64, 32.0), (128, 32.0)])
def test_scaled_frequencies_equal_hugging_face_beyond_8192_positions(head_dim, factor):
    theta, last = 500000.0, 131071
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=last + 1,
        rope_parameters=rope_parameters(theta, factor),
    )
    theirs = LlamaRotaryEmbedding(config)
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    torch.testing.assert_close(functional.apply_scaling(plain, factor), theirs.inv_freq, rtol=1e-6, atol=0)

    positions = torch.tensor([0, 1, 8191, 8192, 60001, last])
    cos, sin = (t[0, :, : head_dim // 2] for t in theirs(torch.zeros(1), positions[None]))
    ours = functional.precompute_freqs_cis(head_dim, last + 1, theta, factor)[positions]
    # At position 131071 one unit in the last place of a float32 frequency is an angle of 0.008.
    torch.testing.assert_close(ours, torch.complex(cos, sin), rtol=0, atol=0.02)


def half_split_rotation(x, freqs_cis):
    first, second = x.chunk(2, dim=-1)
    pairs = torch.stack([first, second], -1).flatten(-2)
    return ROTATE(pairs, freqs_cis).unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def heads_dealt_out(x, wq, wk, wv, wo, freqs_cis, mask, head_dim):
    # Query head h on KV head h % n_kv instead of h // group: the same as laying the query heads out in that order.
    n_heads, n_kv = wq.shape[0] // head_dim, wk.shape[0] // head_dim
    order = torch.arange(n_heads).view(-1, n_kv).T.flatten()
    wq = wq.unflatten(0, (n_heads, -1))[order].flatten(0, 1)
    wo = wo.unflatten(1, (n_heads, -1))[:, order].flatten(1)
    return ATTENTION(x, wq, wk, wv, wo, freqs_cis, mask, head_dim)


def attention_with(old, new):
    source = inspect.getsource(functional.attention)
    assert source.count(old) == 1, f"functional.attention no longer reads {old!r}: plant this fault elsewhere"
    namespace = dict(vars(functional))
    exec(source.replace(old, new), namespace)
    return namespace["attention"]


ATTENTION, FEED_FORWARD, MASK = functional.attention, functional.feed_forward, functional.causal_mask
NORM, ROTATE, FREQS = functional.rms_norm, functional.apply_rotary_emb, functional.precompute_freqs_cis

# name -> (the function of `functional` it replaces, the faulty one)
FAULTS = {
    "missing mask": ("causal_mask", lambda n, *a: torch.zeros_like(MASK(n, *a))),
    "mask that hides the position itself": ("causal_mask", lambda n, *a: MASK(n + 1, *a)[1:, :-1].clamp(min=-1e9)),
    "swapped w1 and w3": ("feed_forward", lambda x, w1, w2, w3: FEED_FORWARD(x, w3, w2, w1)),
    "relu in place of silu": ("feed_forward", lambda x, w1, w2, w3: ((x @ w1.T).relu() * (x @ w3.T)) @ w2.T),
    "pairs in Hugging Face's order": ("apply_rotary_emb", half_split_rotation),
    "half the angle": ("apply_rotary_emb", lambda x, f: ROTATE(x, f.sqrt())),
    "no rotation": ("apply_rotary_emb", lambda x, f: x),
    "query heads dealt out in turn": ("attention", heads_dealt_out),
    "missing wo": ("attention", lambda x, q, k, v, o, *a: ATTENTION(x, q, k, v, torch.eye(len(o)), *a)),
    "no division by sqrt(head_dim)": ("attention", lambda x, q, *a: ATTENTION(x, q * math.sqrt(a[-1]), *a)),
    "norm without eps": ("rms_norm", lambda x, weight, eps: NORM(x, weight, 0.0)),
    "norm without its weight": ("rms_norm", lambda x, weight, eps: NORM(x, torch.ones_like(weight), eps)),
    "theta of every model 500000": ("precompute_freqs_cis", lambda d, n, theta, *a: FREQS(d, n, 5e5, *a)),
    "scaled RoPE left out": ("precompute_freqs_cis", lambda d, n, theta, *a: FREQS(d, n, theta)),
    "scaled RoPE by 32": ("precompute_freqs_cis", lambda d, n, theta, f, *a: FREQS(d, n, theta, f and 32.0)),
}


@pytest.fixture(scope="module")
def judged(tiny_folder):
    """For each tiny checkpoint: itself, 200 tokens, and the referee's logits."""
    cases = []
    for name in TINY:
        ckpt = checkpoint(tiny_folder, name)
        tokens = random_tokens(ckpt.params, 200)
        cases.append((ckpt, tokens, hf_logits(hf_model(ckpt.params, ckpt.weights), tokens)))
    return cases


def worst(judged):
    return max(distance(functional.forward(tokens, c.weights, c.params), logits) for c, tokens, logits in judged)


def test_the_referee_accepts_what_the_faults_are_planted_in(judged):
    assert worst(judged) < 1e-4


@pytest.mark.parametrize("fault", FAULTS)
def test_the_referee_catches(judged, monkeypatch, fault):
    name, faulty = FAULTS[fault]
    monkeypatch.setattr(functional, name, faulty)
    assert worst(judged) > 1e-3


def test_the_referee_catches_rotation_of_the_value(judged, monkeypatch):
    rotated = "apply_rotary_emb(k, freqs_cis)"
    monkeypatch.setattr(
        functional, "attention", attention_with(rotated, f"{rotated}; v = apply_rotary_emb(v, freqs_cis)")
    )
    assert worst(judged) > 1e-3
