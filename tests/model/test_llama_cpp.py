"""llama.cpp, a third referee: it reads the small model's GGUF file itself, with arithmetic and a reader of its own.

It multiplies activations of 8 bits, so its probabilities are near ours and not equal. Its likeliest token is ours, or
within 0.1 of it; of the twenty likeliest, rare ones among them, no logarithm of a probability is off by more than 0.5
(measured: 0.45), or 0.8 (0.68) where both round. As stored, ours is nearer to float32 than llama.cpp on all eight.
"""

import json
import os

import pytest
import torch

from llama3_scratch import Llama, functional
from llama3_scratch.loading.fetch import fetch

if os.environ.get("LLAMA3_NEED_REFEREE") != "1":  # with it, as in CI, one that is missing is a failure
    pytest.importorskip("xllamacpp")

TEXTS = [
    "The capital of France is",
    "def add(a, b):\n    return a +",
    "Once upon a time there was a little girl who",
    "The chemical symbol for gold is",
    "Le chat est",
    "1, 2, 3, 4,",
    "An apple a day keeps the doctor",
    "She sells sea shells by the",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf_file():
    return next(fetch("smollm2-135m").glob("*.gguf"))


@pytest.fixture(scope="module")
def expected(gguf_file, smollm2):
    """For each text, its ids, and the twenty likeliest tokens to come with the logarithms of their probabilities."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf_file)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 256, 1, False, -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server, found = xllamacpp.Server(settings), []
    for text in TEXTS:
        ids = smollm2.tokenizer.encode(text)
        said = server.handle_completions({"prompt": ids, "n_predict": 1, "n_probs": 20, "temperature": 0.0})
        said = json.loads(said) if isinstance(said, str) else said
        top = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found.append((ids, [token["id"] for token in top], torch.tensor([token["logprob"] for token in top])))
    return found


def agree(logits_of, expected, tolerance):
    for ids, top, logprobs in expected:
        ours = logits_of(ids)[-1].log_softmax(-1)
        assert ours[top[0]] > ours.max() - 0.1
        torch.testing.assert_close(ours[top], logprobs, rtol=0, atol=tolerance)


def test_the_dequantised_model_expects_what_llama_cpp_expects(smollm2, expected):
    agree(lambda ids: functional.forward(ids, smollm2.weights, smollm2.params), expected, 0.5)


@torch.inference_mode()
def test_the_model_as_stored_expects_what_llama_cpp_expects(gguf_file, expected):
    agree(Llama.from_checkpoint(gguf_file, quantize="int4"), expected, 0.8)
