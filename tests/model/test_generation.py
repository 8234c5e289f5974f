"""Writing: greedy text against Hugging Face's, sampling against its filters, what is refused, and when work is done."""

import inspect
import math
from typing import ClassVar

import pytest
import torch
from helpers import hf_greedy, hf_logits, hf_model, naming, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llama3_scratch import (
    KVCache,
    Llama,
    batching,
    generate,
    generate_batch,
    generate_text,
    generation,
    load_checkpoint,
)
from llama3_scratch.generation import decode_stream, logits_to_probs, sample
from llama3_scratch.loading.tiny import TINY

every_tiny = pytest.mark.parametrize("name", TINY)


@pytest.fixture
def model(tiny_folder):
    return Llama.from_checkpoint(tiny_folder("tiny-ratio3"))


@pytest.fixture
def tokenizer(tiny_folder):
    return load_checkpoint(tiny_folder("tiny-ratio3")).tokenizer


@pytest.fixture(scope="module")
def bytes_tokenizer(tiny_folder):
    """A token for every byte: the hardest case for whole characters."""
    return load_checkpoint(tiny_folder("tiny-ratio1")).tokenizer


class Scripted(torch.nn.Module):
    """A model that says what it was told to, one token a step, and counts how often it was asked."""

    def __init__(self, like: Llama, script):
        super().__init__()
        self.params, self.tok_embeddings = like.params, like.tok_embeddings
        self.script, self.asked = list(script), 0

    def forward(self, tokens, cache=None, attention_mask=None, last_only=False):
        assert last_only or tokens.shape[-1] == 1
        logits = torch.zeros(len(tokens), 1, self.params.vocab_size)
        logits[..., self.script[self.asked]] = 1.0
        self.asked += 1
        return logits


# Greedy


@every_tiny
def test_16_greedy_tokens_equal_hugging_faces(tiny_folder, name):
    ckpt = load_checkpoint(tiny_folder(name), dtype=torch.float32)
    ours, theirs = Llama.from_checkpoint(ckpt), hf_model(ckpt.params, ckpt.weights)
    for seed, length in enumerate((1, 17)):
        prompt = random_tokens(ckpt.params, length, seed=seed).tolist()
        assert list(generate(ours, prompt)) == hf_greedy(theirs, prompt, 16)


@every_tiny
def test_prompts_of_different_lengths_are_continued_as_each_alone(tiny_folder, name):
    ckpt = load_checkpoint(tiny_folder(name), dtype=torch.float32)
    ours, theirs = Llama.from_checkpoint(ckpt), hf_model(ckpt.params, ckpt.weights)
    prompts = [random_tokens(ckpt.params, n, seed=n).tolist() for n in (5, 1, 30)]
    steps = list(generate_batch(ours, prompts, max_new_tokens=8))
    assert [list(text) for text in zip(*steps, strict=True)] == [hf_greedy(theirs, prompt, 8) for prompt in prompts]


def test_a_prompt_may_be_a_list_a_tensor_or_a_batch_of_one(model):
    tokens = random_tokens(model.params, 5)
    expected = list(generate(model, tokens.tolist(), max_new_tokens=4))
    assert all(type(id) is int for id in expected)
    for same in (tokens, tokens.int(), tokens[None], tuple(tokens.tolist()), [tokens.tolist()], tokens.numpy()):
        assert list(generate(model, same, max_new_tokens=4)) == expected


def test_a_batch_may_be_a_tensor(model):
    tokens = random_tokens(model.params, 3, 5)
    steps = list(generate_batch(model, tokens, max_new_tokens=4))
    assert steps == list(generate_batch(model, tokens.tolist(), max_new_tokens=4))
    assert [len(step) for step in steps] == [3] * 4


@pytest.mark.parametrize(("lengths", "padded"), [((5, 5), False), ((5, 3), True)])
def test_a_batch_is_padded_where_lengths_differ_and_only_there(model, lengths, padded):
    prompts = [random_tokens(model.params, n, seed=n).tolist() for n in lengths]
    alone = [list(generate(model, prompt, max_new_tokens=6)) for prompt in prompts]
    masks = []
    model.register_forward_pre_hook(lambda _, args: masks.append(args[2]))
    columns = zip(*generate_batch(model, prompts, max_new_tokens=6), strict=True)
    assert [list(c) for c in columns] == alone
    assert [mask is not None for mask in masks] == [padded] + [False] * 5


@pytest.mark.parametrize("count", [0, 1, 16])
def test_as_many_tokens_as_asked_for(model, count):
    assert len(list(generate(model, [5, 6], max_new_tokens=count))) == count


def test_16_tokens_without_being_told(model):
    assert len(list(generate(model, [5, 6]))) == 16


def test_long_prompts_are_read_in_chunks_and_give_the_same_text(tiny_folder):
    ckpt = load_checkpoint(tiny_folder("tiny-scaled"))
    ours, theirs = Llama.from_checkpoint(ckpt), hf_model(ckpt.params, ckpt.weights, "sdpa")
    sizes = []
    ours.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    long, short = (random_tokens(ckpt.params, n, seed=n).tolist() for n in (1300, 40))
    expected = [hf_greedy(theirs, prompt, 4) for prompt in (long, short)]
    assert list(generate(ours, long, max_new_tokens=4)) == expected[0]
    assert sizes == [512, 512, 276, 1, 1, 1]
    # In a batch, two of the three chunks hold nothing of the short prompt but padding.
    columns = zip(*generate_batch(ours, [long, short], max_new_tokens=4), strict=True)
    assert [list(column) for column in columns] == expected


class Noted(KVCache):
    """A cache that notes the sizes with which it was made."""

    made: ClassVar[list] = []

    def __init__(self, params, *sizes):
        super().__init__(params, *sizes)
        self.made.append(sizes)


@pytest.mark.parametrize(("prompt", "count", "room"), [([5] * 4, 3, 6), ([5], 1, 1), ([5] * 4, 0, 3), ([5], 0, 1)])
def test_the_cache_has_room_for_what_will_be_read_and_no_more(tiny_folder, monkeypatch, prompt, count, room):
    # The last token that is written is not read again.
    model = Llama.from_checkpoint(tiny_folder("tiny-bfloat16"))
    for module, write, prompts in ((generation, generate, prompt), (batching, generate_batch, [prompt, [7]])):
        monkeypatch.setattr(module, "KVCache", Noted)
        Noted.made.clear()
        assert len(list(write(model, prompts, max_new_tokens=count))) == count
        assert Noted.made == [(len(prompts) if write is generate_batch else 1, room, torch.bfloat16, model.device)]


def test_a_batch_has_the_settings_of_a_single_prompt():
    single, batch = (list(inspect.signature(f).parameters.values()) for f in (generate, generate_batch))
    assert [p.name for p in batch] == [p.name if p.name != "tokens" else "prompts" for p in single]
    assert [p.default for p in batch] == [p.default for p in single]


BEGINNINGS = (
    "The capital of France is",
    "def fib(n):\n    return",
    "1, 2, 3, 4,",
    "Once upon a time",
    "中国的首都是",
    "I ❤️ 🍕",
    "Water boils at",
    "Dear Sir",
    "SELECT name FROM",
    "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
)


@pytest.mark.slow
def test_smollm2_writes_what_hugging_face_writes(smollm2):
    ids = [smollm2.tokenizer.encode(text, allowed_special="all") for text in BEGINNINGS]
    steps = generate_batch(Llama.from_checkpoint(smollm2), ids, max_new_tokens=30)
    ours = [list(column) for column in zip(*steps, strict=True)]
    theirs = hf_greedy(hf_model(smollm2.params, smollm2.weights, "sdpa"), ids, 30)
    assert len(ours) == 10 and {len(ids) for ids in ours} == {30}
    assert [smollm2.tokenizer.decode(ids) for ids in ours] == [smollm2.tokenizer.decode(ids) for ids in theirs]
    assert ours == theirs


def test_the_capital_of_france(smollm2):
    model = Llama.from_checkpoint(smollm2)
    assert "".join(generate_text(model, smollm2.tokenizer, "The capital of France is", max_new_tokens=2)) == " Paris."


# Sampling


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model):
    def text(seed):
        return list(generate(model, [5, 6, 7], max_new_tokens=24, temperature=1.0, seed=seed))

    assert text(1) == text(1)
    assert len({tuple(text(seed)) for seed in range(5)}) == 5
    assert len({tuple(text(None)) for _ in range(5)}) == 5


def test_a_seed_leaves_everybody_elses_random_numbers_alone(model):
    before = torch.get_rng_state()
    list(generate(model, [5], max_new_tokens=3, temperature=1.0, seed=0))
    list(generate(model, [5], max_new_tokens=3, temperature=1.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_prompt_of_a_batch_draws_for_itself(model):
    columns = list(zip(*generate_batch(model, [[5, 6]] * 6, max_new_tokens=12, temperature=1.0, seed=0), strict=True))
    assert len(set(columns)) == 6


def test_prompt_number_i_of_a_batch_draws_as_it_would_alone_with_seed_plus_i(model):
    prompts = [[5, 6], [7, 8], [5, 6]]
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.95, "top_k": 200}
    columns = zip(*generate_batch(model, prompts, seed=3, **options), strict=True)
    alone = [list(generate(model, prompt, seed=3 + i, **options)) for i, prompt in enumerate(prompts)]
    assert [list(column) for column in columns] == alone


def warped(logits, temperature, top_p, top_k):
    """Hugging Face's filters, in the order in which its `generate` applies them. top_k comes before top_p there."""
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1)


@pytest.fixture(scope="module")
def judged_logits(tiny_folder):
    ckpt = load_checkpoint(tiny_folder("tiny-ratio4"))
    return hf_logits(hf_model(ckpt.params, ckpt.weights), random_tokens(ckpt.params, 40))  # [40, vocab]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1e-6, 0.05, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_what_hugging_face_keeps(judged_logits, temperature, top_p):
    ours, theirs = logits_to_probs(judged_logits, temperature, top_p), warped(judged_logits, temperature, top_p, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert torch.equal(ours > 1e-6, theirs > 1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_top_p_1_keeps_everything(judged_logits, temperature):
    assert (logits_to_probs(judged_logits, temperature) > 0).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [1, 2, 40, 10**6])
def test_top_k_keeps_what_hugging_face_keeps(judged_logits, temperature, top_k):
    ours, theirs = (
        logits_to_probs(judged_logits, temperature, 1.0, top_k),
        warped(judged_logits, temperature, 1.0, top_k),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert torch.equal(ours > 1e-6, theirs > 1e-6)


def test_nucleus_of_a_distribution_counted_by_hand():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    expected = {
        0.3: [0, 1, 0, 0],
        0.41: [0, 4 / 7, 0, 3 / 7],
        0.69: [0, 4 / 7, 0, 3 / 7],
        0.8: [0, 4 / 9, 2 / 9, 3 / 9],
        1.0: [0.1, 0.4, 0.2, 0.3],
    }
    for top_p, probs in expected.items():
        assert logits_to_probs(logits, 1.0, top_p).tolist() == pytest.approx(probs, abs=1e-6)
    # Each filter looks at the whole distribution: three tokens have 0.8 of it, two of them are the top two.
    assert logits_to_probs(logits, 1.0, 0.8, top_k=2).tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.2501, 2), (0.5, 2), (0.75, 3), (0.7501, 4)])
def test_top_p_takes_no_more_tokens_than_it_needs(top_p, kept):
    logits = torch.zeros(4)
    assert (logits_to_probs(logits, 1.0, top_p) > 0).sum() == kept
    assert (warped(logits[None], 1.0, top_p, None) > 0).sum() == kept


def test_temperature_of_a_distribution_computed_by_hand():
    logits = torch.tensor([math.log(4.0), math.log(1.0)])
    assert logits_to_probs(logits, 0.5).tolist() == pytest.approx([16 / 17, 1 / 17], abs=1e-6)
    assert logits_to_probs(logits, 2.0).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-6)


@settings(max_examples=200)
@given(
    logits=st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 100), min_size=1, max_size=12),
    temperature=st.floats(1e-300, 1e3),
    top_p=st.floats(0, 1, exclude_min=True),  # down to 5e-324, which is 0 in float32
    top_k=st.none() | st.integers(1, 20),
)
def test_settings_at_the_edge_still_give_a_distribution(logits, temperature, top_p, top_k):
    logits = torch.tensor(logits)
    probs = logits_to_probs(logits, temperature, top_p, top_k)
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    assert probs.min() >= 0
    assert probs[logits == logits.max()].max() == probs.max()  # the most probable one always stays
    assert top_k is None or (probs > 0).sum() <= top_k
    assert probs[sample(logits, temperature, top_p, top_k)] > 0


def test_draws_have_the_frequencies_of_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20000, -1)
    generator = torch.Generator().manual_seed(0)
    counts = sample(logits, 1.0, top_p=0.9, generator=generator).bincount(minlength=4) / 20000
    assert counts.tolist() == pytest.approx([10 / 19, 6 / 19, 3 / 19, 0], abs=0.015)


@pytest.mark.parametrize(
    ("point", "id"),
    [(0.0, 2), (0.4999, 2), (0.5001, 0), (0.7499, 0), (0.7501, 3), (0.8749, 3), (0.8751, 1), (0.9999, 1)],
)
def test_each_token_has_its_part_of_the_interval_the_most_probable_first(monkeypatch, point, id):
    logits = torch.tensor([0.25, 0.125, 0.5, 0.125]).log()
    logits[3] += 1e-6  # a little before the other one
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.full(shape, point, dtype=dtype))
    assert sample(logits, 1.0).item() == id
    assert sample(logits.expand(2, 3, 4), 1.0).tolist() == [[id] * 3] * 2


@pytest.mark.parametrize(("point", "id"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3)])
def test_a_border_belongs_to_the_next_token_and_equals_stand_in_the_order_of_their_ids(monkeypatch, point, id):
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.full(shape, point, dtype=dtype))
    assert sample(torch.zeros(4), 1.0).item() == id


def test_what_is_too_improbable_for_float32_can_still_be_drawn(monkeypatch):
    # 0.999999999 is 1 in float32; drawn in it, the other one would never come.
    logits = torch.tensor([0.0, math.log(1e-9)])
    for point, id in ((0.99999, 0), (1 - 1e-10, 1)):
        monkeypatch.setattr(
            torch, "rand", lambda *shape, dtype, point=point, **_: torch.full(shape, point, dtype=dtype)
        )
        assert sample(logits, 1.0).item() == id


def test_the_largest_logits_that_there_are_do_not_overflow():
    assert logits_to_probs(torch.tensor([3e38, 2e38, 3e38])).tolist() == [0.5, 0, 0.5]
    assert logits_to_probs(torch.tensor([-3e38, -2e38])).tolist() == [0, 1]


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_k", 0)])
def test_a_draw_by_itself_is_refused_settings_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=naming(name)):
        sample(torch.zeros(4), **({"temperature": 1.0} | {name: value}))


def test_logits_of_sixteen_bits_are_sampled_as_the_numbers_that_they_are():
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    narrow, wide = (sample(t, 1.0, generator=torch.Generator().manual_seed(1)) for t in (logits, logits.float()))
    assert torch.equal(narrow, wide)


def test_the_largest_logit_is_taken_at_temperature_0():
    assert sample(torch.tensor([[1.0, 3.0, 2.0], [-1.0, -3.0, -2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}])
def test_sampling_of_the_most_probable_only_is_greedy(model, options):
    greedy = list(generate(model, [5, 6, 7]))
    assert list(generate(model, [5, 6, 7], seed=3, **({"temperature": 1.0} | options))) == greedy


# Stopping


def test_a_stop_token_ends_the_text_and_is_not_yielded(model):
    text = list(generate(model, [5, 6, 7]))
    stop = text[3]
    expected = text[: text.index(stop)]
    assert list(generate(model, [5, 6, 7], stop_tokens={stop, text[-1] + 1})) == expected
    assert list(generate(model, [5, 6, stop], stop_tokens=[text[0]])) != []  # one in the prompt ends nothing
    assert list(generate(model, [5, 6, 7], stop_tokens=(text[0],))) == []


def test_texts_of_a_batch_stop_one_by_one(model):
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    texts = [list(generate(model, prompt)) for prompt in prompts]
    stops = {texts[0][2], texts[1][7]}
    alone = [list(generate(model, prompt, stop_tokens=stops)) for prompt in prompts]
    assert len({len(text) for text in alone}) > 1
    columns = list(zip(*generate_batch(model, prompts, stop_tokens=stops), strict=True))
    longest = max(map(len, alone))
    assert [list(column) for column in columns] == [text + [None] * (longest - len(text)) for text in alone]


def test_generation_ends_when_every_text_has_stopped(model):
    scripted = Scripted(model, [5, 6, 7, 8])
    assert list(generate_batch(scripted, [[1], [2, 3]], max_new_tokens=100, stop_tokens=[7])) == [[5, 5], [6, 6]]
    assert scripted.asked == 3


# What is refused, and when


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ([], ValueError, "tokens one"),
        ([[]], ValueError, "tokens one"),
        (torch.zeros(1, 0, dtype=torch.long), ValueError, "tokens one"),
        ([277], ValueError, "ids 276 277"),
        ([-1], ValueError, "ids 276 -1"),
        ([[5], [6, 7]], ValueError, "generate_batch one prompt"),
        (torch.tensor([[5], [6]]), ValueError, "generate_batch one prompt"),
        ([5.0], TypeError, "ids integers"),
        (torch.tensor([5.5]), TypeError, "ids integers"),
        (torch.tensor([True]), TypeError, "ids integers"),
        ("text", (TypeError, ValueError), ""),
        (torch.tensor(5), (TypeError, ValueError), ""),
        (torch.zeros(2, 3, 4, dtype=torch.long), (TypeError, ValueError), ""),
    ],
    ids=lambda value: str(value)[:24],
)
def test_prompts_that_cannot_be_are_refused_at_the_call(model, monkeypatch, tokens, error, words):
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(error, match=naming(words)):
        generate(model, tokens)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"temperature": None}, "temperature None"),
        ({"temperature": "1"}, "temperature number '1'"),
        ({"top_p": 0}, "top_p 0 1"),
        ({"top_p": 1.5}, "top_p 0 1 1.5"),
        ({"top_p": -0.5}, "top_p 0 1 -0.5"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"top_k": 0}, "top_k integer 1 0"),
        ({"top_k": -1}, "top_k integer 1 -1"),
        ({"top_k": 1.5}, "top_k integer 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens integer -1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens integer 1.5"),
        ({"max_new_tokens": None}, "max_new_tokens None"),
        ({"max_new_tokens": 10**6}, "2 1000000 8192 context_len"),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_settings_that_cannot_be_are_refused_at_the_call(model, monkeypatch, options, words, temperature):
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr(generation, "KVCache", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match=naming(words)):
        generate(model, [5, 6], **({"temperature": temperature} | options))


@pytest.mark.parametrize("seed", [2**64, "1", 1.5])
def test_a_seed_that_cannot_be_is_refused_at_the_call(model, seed):
    with pytest.raises((ValueError, TypeError)):
        generate(model, [5, 6], temperature=1.0, seed=seed)


def test_a_text_may_fill_all_the_positions_that_the_model_has(tiny_folder):
    ckpt = load_checkpoint(tiny_folder("tiny-scaled"))
    assert ckpt.params.context_len == 131072
    model = Llama.from_checkpoint(ckpt)
    model.params = type(ckpt.params)(**vars(ckpt.params) | {"context_len": 12})
    assert len(list(generate(model, [5] * 4, max_new_tokens=8))) == 8
    assert list(generate(model, [5] * 12, max_new_tokens=0)) == []
    for write, prompt in ((generate, [5] * 5), (generate_batch, [[5], [6] * 5])):
        with pytest.raises(ValueError, match=naming("5 8 12 context_len")):
            write(model, prompt, max_new_tokens=8)


def test_nothing_is_computed_before_the_first_token_is_asked_for(model):
    scripted = Scripted(model, [5])
    generate(scripted, [1, 2])
    assert scripted.asked == 0


def test_each_token_comes_before_the_next_is_computed(model):
    scripted = Scripted(model, [5, 6, 7])
    for n, id in enumerate(generate(scripted, [1, 2], max_new_tokens=3), start=1):
        assert (id, scripted.asked) == (n + 4, n)


def test_gradients_are_neither_computed_nor_switched_off_for_others(model):
    for _ in generate(model, [5, 6], max_new_tokens=2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model([5, 6]).sum().backward()  # the model can still be trained
    assert model.norm.weight.grad is not None


def test_two_texts_of_one_model_do_not_disturb_each_other(model):
    alone = [list(generate(model, prompt, max_new_tokens=6)) for prompt in ([5, 6], [7])]
    together = zip(*(generate(model, prompt, max_new_tokens=6) for prompt in ([5, 6], [7])), strict=True)
    assert [list(text) for text in zip(*together, strict=True)] == alone


# Text


EMOJI = "naïve 😀 👩‍🚀🏳️‍🌈 中文 e\u0301 \U0001f1eb\U0001f1f7"


@settings(max_examples=300)
@given(text=st.text(max_size=40))
def test_pieces_of_a_valid_text_are_whole_characters(bytes_tokenizer, text):
    pieces = list(decode_stream(bytes_tokenizer.encode(text), bytes_tokenizer))
    assert "".join(pieces) == text
    assert [len(piece) for piece in pieces] == [1] * len(text)


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, 255) | st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xE4, 0xC3]), max_size=30))
def test_pieces_of_any_bytes_join_to_the_decoded_text(bytes_tokenizer, ids):
    assert "".join(decode_stream(ids, bytes_tokenizer)) == bytes_tokenizer.decode(ids)


def test_pieces_on_llama_3s_vocabulary_are_never_half_a_character(llama3):
    ids = llama3.encode(EMOJI)
    assert any("\ufffd" in llama3.decode([id]) for id in ids)
    pieces = list(decode_stream(ids, llama3))
    assert "".join(pieces) == EMOJI
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(decode_stream(ids[:-1], llama3)) == llama3.decode(ids[:-1])  # cut off within a character


def test_a_character_comes_as_soon_as_its_last_byte_is_there(model, tokenizer):
    ids = tokenizer.encode("a😀b")
    assert len(ids) == 6
    scripted = Scripted(model, ids)
    pieces = generate_text(scripted, tokenizer, "hello", max_new_tokens=6)
    assert [(next(pieces), scripted.asked) for _ in range(3)] == [("a", 1), ("😀", 5), ("b", 6)]


def test_generate_text_continues_the_prompt_until_the_model_stops(model, tokenizer):
    assert tokenizer.stop_tokens == {tokenizer.eos_id}
    scripted = Scripted(model, [*tokenizer.encode(" the end"), tokenizer.eos_id, 5])
    assert "".join(generate_text(scripted, tokenizer, "this is")) == " the end"
    scripted = Scripted(model, [*tokenizer.encode(" the end"), tokenizer.eos_id, *b"and more"])
    assert "".join(generate_text(scripted, tokenizer, "this", max_new_tokens=8, stop_tokens=())).startswith(
        " the end<|stop|>"
    )


def test_generate_text_writes_256_tokens_unless_told_otherwise(model, tokenizer):
    for options, count in (({}, 256), ({"max_new_tokens": 300}, 300)):
        scripted = Scripted(model, [97] * 400)
        list(generate_text(scripted, tokenizer, "hi", **options))
        assert scripted.asked == count


@pytest.mark.parametrize("name", ["tiny-ratio1", "tiny-ratio3"])  # one with a token to open every text, one without
def test_generate_text_reads_what_the_model_was_trained_to_read(tiny_folder, name):
    ckpt = load_checkpoint(tiny_folder(name))
    model, tokenizer = Llama.from_checkpoint(ckpt), ckpt.tokenizer
    prompt = "the question 😀"
    expected = hf_greedy(hf_model(ckpt.params, ckpt.weights), tokenizer.encode(prompt, bos=name == "tiny-ratio1"), 12)
    options = {"max_new_tokens": 12, "stop_tokens": ()}
    assert "".join(generate_text(model, tokenizer, prompt, **options)) == tokenizer.decode(expected)
    ids = tokenizer.encode(prompt, bos=name == "tiny-ratio1")
    assert "".join(generate_text(model, tokenizer, ids, **options)) == tokenizer.decode(expected)


def test_generate_text_refuses_at_the_call(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("work was done"))
    for prompt, options in (("", {}), ("hi", {"top_p": 0}), ("hi", {"max_new_tokens": 10**6})):
        with pytest.raises(ValueError):
            generate_text(model, tokenizer, prompt, **options)


def test_ids_without_a_token_are_passed_over(tiny_folder):
    tokenizer = load_checkpoint(tiny_folder("tiny-ratio3")).tokenizer
    ids = [*tokenizer.encode("a"), tokenizer.vocab_size + 5, *tokenizer.encode("b")]  # rows beyond the vocabulary
    assert "".join(generation.decode_stream(ids, tokenizer)) == "ab"


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        generation.sample(torch.tensor([0.0, torch.nan]))
