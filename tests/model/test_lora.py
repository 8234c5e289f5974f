"""LoRA beside Hugging Face's peft: the same steps from the same numbers, the same logits before and after merging, and
files that open on both sides; what is no plain LoRA for this model is refused by file and key.
"""

import json
import math

import pytest
import torch
from helpers import HF_NAMES, distance, hf_logits, hf_model, naming, random_tokens, to_half_split
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llama3_scratch import CheckpointError, Llama, ModelArgs, load_checkpoint, lora, training
from llama3_scratch.loading.export import export
from llama3_scratch.lora import LoRA, adapters

PARAMS = ModelArgs(32, n_layers=3, n_heads=4, vocab_size=64, n_kv_heads=2, multiple_of=16, rope_theta=1e4)
EVERY = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
TOKENS = random_tokens(PARAMS, 2, 24)


def new(params=PARAMS, dtype=torch.float32):
    torch.manual_seed(0)
    model = Llama(params).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(4)  # so that every matrix matters
    return model


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens)


def taught(model, **how):
    """The model with adapters that add something, as if they had learned."""
    rank = how.pop("rank", 3)
    before = logits(model)
    for p in lora.add(model, rank, **how):
        p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))) / 4
    assert distance(logits(model), before) > 0.05
    return model


def theirs_of(model):
    weights = {key.replace(".linear", ""): weight.clone() for key, weight in model.state_dict().items()}
    return hf_model(model.params, {key: weight for key, weight in weights.items() if not key.endswith((".A", ".B"))})


def their_name(name):
    """layers.0.attention.wq -> model.layers.0.self_attn.q_proj"""
    _, layer, matrix = name.split(".", 2)
    return f"model.layers.{layer}.{HF_NAMES[matrix]}"


def turned(name, b):
    return to_half_split(b, PARAMS.head_dim) if name.endswith(("wq", "wk")) else b


def with_peft(model):
    """peft's model with the same adapters as ours."""
    found = adapters(model)
    one = next(iter(found.values()))
    places = [their_name(name) for name in found]
    config = LoraConfig(r=one.rank, lora_alpha=one.alpha, target_modules=places)
    theirs = get_peft_model(theirs_of(model), config)
    for name, adapter in found.items():
        place = theirs.get_submodule(f"base_model.model.{their_name(name)}")
        place.lora_A["default"].weight.data.copy_(adapter.A)
        place.lora_B["default"].weight.data.copy_(turned(name, adapter.B))
    return theirs


# Beside peft


def test_at_first_nothing_is_added_and_b_has_a_gradient():
    model = new()
    before = logits(model)
    learning = lora.add(model, 4)
    assert torch.equal(logits(model), before)
    training.loss(model, TOKENS).backward()
    for adapter in adapters(model).values():
        assert adapter.A.grad.abs().max() == 0 and adapter.B.grad.abs().max() > 0
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in learning}
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_the_numbers_of_a_have_the_spread_that_peft_gives_them():
    torch.manual_seed(3)
    a = LoRA(torch.nn.Linear(400, 100, bias=False), 64).A
    theirs = get_peft_model(
        torch.nn.ModuleDict({"x": torch.nn.Linear(400, 100, bias=False)}), LoraConfig(r=64, target_modules=["x"])
    ).base_model.model.x.lora_A["default"]
    for numbers in (a, theirs.weight):
        assert numbers.abs().max().item() == pytest.approx(1 / math.sqrt(400), rel=0.01)
        assert numbers.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    torch.manual_seed(3)
    assert torch.equal(LoRA(torch.nn.Linear(400, 100, bias=False), 64).A, a)


@pytest.mark.parametrize(
    ("names", "layers", "alpha"), [(("wq", "wv"), None, None), (EVERY, [0, 2], 7.0), (("w2",), [1], 9.0)], ids=str
)
def test_four_steps_teach_what_they_teach_pefts_model(names, layers, alpha):
    model = new()
    learning = lora.add(model, 3, names, layers, alpha)
    theirs = with_peft(model)
    ours = torch.optim.AdamW(learning, lr=1e-2)
    other = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    assert len(learning) == len(other.param_groups[0]["params"]) == 2 * len(names) * len(layers or range(3))
    for _ in range(4):
        ours.zero_grad(), other.zero_grad()
        loss, expected = training.loss(model, TOKENS), theirs(TOKENS, labels=TOKENS).loss
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss.backward(), expected.backward()
        ours.step(), other.step()
    for name, adapter in adapters(model).items():
        place = theirs.get_submodule(f"base_model.model.{their_name(name)}")
        torch.testing.assert_close(adapter.A, place.lora_A["default"].weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(turned(name, adapter.B), place.lora_B["default"].weight, rtol=1e-3, atol=1e-4)


def test_merged_logits_are_those_of_pefts_merged_model_and_of_the_one_before():
    model = taught(new(), names=EVERY, alpha=5.0)
    before, theirs = logits(model), with_peft(model).merge_and_unload()
    lora.merge(model)
    assert not adapters(model) and {type(m).__name__ for m in model.layers[0].attention.children()} == {"Linear"}
    assert distance(logits(model), before) < 1e-4
    assert distance(logits(model), hf_logits(theirs, TOKENS)) < 1e-4


def test_removed_adapters_leave_the_model_as_it_was():
    model = new()
    before = logits(model)
    lora.remove(taught(model, names=EVERY))
    assert torch.equal(logits(model), before) and not adapters(model)
    assert model.state_dict().keys() == new().state_dict().keys()
    assert not any(p.requires_grad for p in model.parameters())


def test_beside_sixteen_bits_an_adapter_learns_in_float32():
    model = new(dtype=torch.bfloat16)
    learning = lora.add(model, 2)
    assert {p.dtype for p in learning} == {torch.float32} and logits(model).dtype == torch.float32
    opt = torch.optim.AdamW(learning, lr=3e-3, weight_decay=0)
    losses = []
    for _ in range(8):
        opt.zero_grad()
        losses.append(training.loss(model, TOKENS))
        losses[-1].backward()
        opt.step()
    assert losses[-1] < losses[0]
    assert model.layers[0].attention.wq.linear.weight.dtype == torch.bfloat16


# Calls that cannot be


@pytest.mark.parametrize("names", ["wq", (), ("wq", "q_proj"), ("output",), ("tok_embeddings",)], ids=str)
def test_names_that_are_no_matrices_are_refused(names):
    with pytest.raises(ValueError, match="names"):
        lora.add(new(), 2, names)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, None, 2**40])
def test_a_rank_that_no_matrix_has_is_refused(rank):
    with pytest.raises(ValueError, match=naming("rank 1")):
        lora.add(new(), rank, ["wv"])


@pytest.mark.parametrize("layers", [[3], [-1], [0.5], ["0"], 1.5, 3], ids=str)
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises((ValueError, TypeError), match="layer"):
        lora.add(new(), 2, layers=layers)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "8", True])
def test_an_alpha_that_is_no_number_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        lora.add(new(), 2, alpha=alpha)


def test_a_second_adapter_in_a_place_is_refused_and_changes_nothing(tmp_path):
    model = taught(new(), layers=[2])
    lora.save(taught(new()), tmp_path / "other")
    before, places = logits(model), set(adapters(model))
    for call in (lambda: lora.add(model, 2), lambda: lora.load(model, tmp_path / "other")):
        with pytest.raises(ValueError, match=naming("layers.2.attention.wq adapter merge remove")):
            call()
        assert set(adapters(model)) == places and torch.equal(logits(model), before)


def test_a_quantized_model_takes_none(tiny_folder):
    with pytest.raises(ValueError, match="quantize"):
        lora.add(Llama.from_checkpoint(tiny_folder("tiny-ratio3"), quantize="int8"), 2)


def test_a_model_without_adapters_has_none_to_save(tmp_path):
    with pytest.raises(ValueError, match="adapter"):
        lora.save(new(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_adapters_of_several_ranks_are_not_saved_in_one_folder(tmp_path):
    model = new()
    lora.add(model, 2, layers=[0])
    lora.add(model, 3, layers=[1])
    with pytest.raises(ValueError, match="several ranks"):
        lora.save(model, tmp_path / "several")
    assert not (tmp_path / "several").exists()


def test_a_folder_that_is_there_is_not_written_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(CheckpointError, match="mine"):
        lora.save(taught(new()), tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


def test_an_adapter_must_be_merged_before_the_model_is_exported(tmp_path, tiny_folder):
    checkpoint = load_checkpoint(tiny_folder("tiny-ratio3"))
    model = Llama.from_checkpoint(checkpoint)
    lora.add(model, 2)
    for layout in ("meta", "huggingface"):
        with pytest.raises(ValueError, match="merge"):
            export(model, checkpoint.tokenizer, tmp_path / "m", layout)
    assert not (tmp_path / "m").exists()


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("names", "layers", "alpha"), [(("wq", "wv"), None, None), (EVERY, [0, 2], 7.0), (("w2",), [1], 9.0)], ids=str
)
def test_a_saved_adapter_opens_in_peft_and_here_on_the_exported_model(
    tmp_path, tiny_folder, names, layers, alpha, dtype
):
    checkpoint = load_checkpoint(tiny_folder("tiny-ratio3"))
    model = Llama.from_checkpoint(checkpoint, dtype=dtype)
    export(model, checkpoint.tokenizer, tmp_path / "model", "huggingface")
    layers = [i for i in layers or range(99) if i < checkpoint.params.n_layers]
    for p in lora.add(model, 2, names, layers, alpha):
        p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))) / 5
    assert lora.save(model, tmp_path / "adapter") == tmp_path / "adapter"
    assert len({path.stat().st_mode for path in (tmp_path / "adapter").iterdir()}) == 1  # all for the same readers
    tokens = random_tokens(checkpoint.params, 2, 20)
    ours = logits(model, tokens)

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    without = hf_logits(theirs, tokens)
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    close = 1e-4 if dtype == torch.float32 else 0.15
    assert distance(hf_logits(theirs, tokens).float(), ours) < close < distance(without.float(), ours)

    again = Llama.from_checkpoint(tmp_path / "model", dtype=dtype)
    lora.load(again, tmp_path / "adapter")
    assert torch.equal(logits(again, tokens), ours)
    learning = {name for name, p in again.named_parameters() if p.requires_grad}
    assert learning == {f"{name}.{side}" for name in adapters(model) for side in "AB"}
    lora.save(again, tmp_path / "second")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "second"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


THEIRS = {
    "two matrices": {"target_modules": ["q_proj", "v_proj"]},
    "all seven, another alpha": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "lora_alpha": 3,
    },
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*\.1\..*(k|down)_proj"},
    "some layers": {"target_modules": ["k_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    "without one": {"target_modules": "all-linear", "exclude_modules": ["k_proj"], "lora_dropout": 0.3},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["o_proj"], "init_lora_weights": "orthogonal", "r": 4},
}


def saved_by_peft(folder, model, dtype=torch.float32, **config):
    """An adapter of peft's on our model's weights, with numbers that matter, and its logits."""
    theirs = get_peft_model(theirs_of(model), LoraConfig(**({"r": 3, "lora_alpha": 6} | config)))
    generator = torch.Generator().manual_seed(1)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data.copy_((p + torch.randn(p.shape, generator=generator) / 4).to(dtype))
    theirs.eval().save_pretrained(folder)
    return hf_logits(theirs, TOKENS)


@pytest.mark.parametrize("kind", THEIRS)
def test_an_adapter_that_peft_saved_opens_here(tmp_path, kind):
    model = new()
    expected = saved_by_peft(tmp_path / "theirs", model, **THEIRS[kind])
    assert distance(logits(model), expected) > 0.05
    lora.load(model, tmp_path / "theirs")
    assert distance(logits(model), expected) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_adapter_in_sixteen_bits_opens_as_well(tmp_path, dtype):
    model = new()
    expected = saved_by_peft(tmp_path / "theirs", model, dtype, target_modules="all-linear")
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    lora.load(model, tmp_path / "theirs")
    assert distance(logits(model), expected) < 1e-4


OTHER = {
    "scaled by the root of the rank": ({"use_rslora": True}, "use_rslora"),
    "directions and lengths": ({"use_dora": True}, "use_dora"),
    "ranks by pattern": ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    "alphas by pattern": ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    "embeddings in full": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "the output matrix": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.lora_A.weight"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    # These change the matrices that the adapter is for, so that with others beside it it means something else.
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights olora"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_what_peft_can_and_this_cannot_is_refused_by_its_key(tmp_path, kind):
    config, words = OTHER[kind]
    model = new()
    expected = saved_by_peft(tmp_path / "theirs", model, **({"target_modules": ["q_proj"]} | config))
    refused(model, tmp_path / "theirs", words)
    assert distance(logits(model), expected) > 0.02  # it does mean something else


def refused(model, folder, words):
    """Refused in one sentence that names the file and the key, and nothing has changed."""
    before, rng = logits(model), torch.get_rng_state()
    with pytest.raises(CheckpointError) as raised:
        lora.load(model, folder)
    message = str(raised.value)
    for word in words.split():
        assert word in message, message
    assert f"{folder.name}/adapter_" in message.replace("\\", "/"), message
    assert len(message) < 500 and message.isprintable(), message
    assert not adapters(model) and torch.equal(logits(model), before) and torch.equal(torch.get_rng_state(), rng)


CONFIGS = {
    "no rank": ({"r": None}, "lora_A"),
    "another rank": ({"r": 5}, "lora_A r 5"),
    "a rank in words": ({"r": "3"}, "lora_A"),
    "an endless rank": ({"r": "3" * 10_000}, "lora_A"),
    "a rank that paints": ({"r": "\x1b[31m3\n"}, "lora_A"),
    "a rank in lists": ({"r": [[3] * 500] * 500}, "lora_A"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha"),
    "alpha in words": ({"lora_alpha": "6"}, "lora_alpha"),
    "alpha true": ({"lora_alpha": True}, "lora_alpha"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha"),
    "alpha infinite": ({"lora_alpha": float("inf")}, "lora_alpha"),
    "alpha beyond floats": ({"lora_alpha": 10**400}, "lora_alpha"),
    "another method": ({"peft_type": "IA3"}, "peft_type IA3"),
    "no method": ({"peft_type": None}, "peft_type"),
    "a method in lists": ({"peft_type": ["LORA"] * 1000}, "peft_type"),
    "biases": ({"bias": "all"}, "bias all"),
    "turned": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "a hostile bias": ({"bias": "\x1b[2J" + "x" * 10_000}, "bias"),
    "a hostile list": ({"modules_to_save": ["\n" * 100] * 1000}, "modules_to_save"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_settings_that_make_no_sense_or_another_adapter_are_refused(tmp_path, kind):
    changes, words = CONFIGS[kind]
    folder = lora.save(taught(new()), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    refused(new(), folder, words)


PLACE = "base_model.model.model.layers.1.self_attn.q_proj"
A, B = f"{PLACE}.lora_A.weight", f"{PLACE}.lora_B.weight"


def renamed(tensors, old, new):
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


TENSORS = {
    "no B": (lambda t: {k: v for k, v in t.items() if k != B}, f"{A} lora_B"),
    "no A": (lambda t: {k: v for k, v in t.items() if k != A}, B),
    "A of another width": (lambda t: t | {A: torch.zeros(3, 31)}, A),
    "B of another height": (lambda t: t | {B: torch.zeros(33, 3)}, A),
    "A and B exchanged": (lambda t: t | {A: t[B], B: t[A]}, A),
    "A a vector": (lambda t: t | {A: torch.zeros(96)}, A),
    "A a number": (lambda t: t | {A: torch.tensor(0.0)}, A),
    "NaN in A": (lambda t: t | {A: torch.full((3, 32), torch.nan)}, A),
    "infinity in B": (lambda t: t | {B: torch.full((32, 3), torch.inf)}, A),
    "integers": (lambda t: t | {A: torch.zeros(3, 32).long()}, A),
    "a layer too many": (lambda t: renamed(t, "layers.1.", "layers.3."), "layers.3."),
    "a layer with a sign": (lambda t: renamed(t, "layers.1.", "layers.-1."), "layers.-1."),
    "a layer with a zero before": (lambda t: renamed(t, "layers.1.", "layers.01."), "layers.01."),
    "another prefix": (lambda t: renamed(t, "base_model.model.", ""), "lora_"),
    "another model's names": (lambda t: renamed(t, "q_proj", "query_key_value"), "query_key_value"),
    "an adapter's name inside": (lambda t: renamed(t, "lora_A", "lora_A.default"), "lora_"),
    "one tensor more": (lambda t: t | {"extra": torch.zeros(1)}, "extra"),
    "a name that paints": (lambda t: t | {"\x1b[31m\nred.lora_A.weight": torch.zeros(1)}, "red"),
    "an endless name": (lambda t: t | {"x" * 5000 + ".lora_A.weight": torch.zeros(1)}, "xxx"),
    "nothing at all": (lambda t: {}, "adapter"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_no_adapter_for_this_model_are_refused(tmp_path, kind):
    edit, words = TENSORS[kind]
    folder = lora.save(taught(new()), tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in edit(load_file(file)).items()}, file)
    refused(new(), folder, words)


@pytest.mark.parametrize(
    "params",
    [
        ModelArgs(32, n_layers=2, n_heads=4, vocab_size=64, n_kv_heads=2, multiple_of=16),
        ModelArgs(32, n_layers=3, n_heads=4, vocab_size=64, multiple_of=16),
        ModelArgs(64, n_layers=3, n_heads=8, vocab_size=64, n_kv_heads=4, multiple_of=16),
    ],
    ids=["fewer layers", "more heads of keys", "wider"],
)
def test_another_models_adapter_is_refused(tmp_path, params):
    folder = lora.save(taught(new()), tmp_path / "adapter")
    refused(new(params), folder, "layers.")


@pytest.mark.parametrize("rank", [0, 20])
def test_a_rank_of_nothing_is_refused_and_one_beyond_the_shorter_side_read_as_by_peft(tmp_path, rank):
    """20 is more than the sixteen rows of wv."""
    folder = lora.save(taught(new(), names=["wv"]), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"r": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    file = folder / "adapter_model.safetensors"
    save_file({k: torch.ones(rank, 32) if "_A" in k else torch.ones(16, rank) for k in load_file(file)}, file)
    if not rank:
        return refused(new(), folder, "empty")
    model = new()
    lora.load(model, folder)
    assert {one.rank for one in lora.adapters(model).values()} == {rank}


def test_what_a_later_version_of_peft_can_do_is_refused(tmp_path):
    folder = lora.save(taught(new()), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_something_new": True}))
    refused(new(), folder, "use_something_new")


def test_a_merge_beside_sixteen_bits_rounds_once():
    model = taught(new().to(torch.bfloat16))
    [(name, one), *_] = lora.adapters(model).items()
    exact = one.linear.weight.detach().double() + one.alpha / one.rank * (one.B.double() @ one.A.double())
    lora.merge(model)
    assert torch.equal(model.get_submodule(name).weight.double(), exact.bfloat16().double())


DAMAGED = {
    "cut in its header": ("adapter_model.safetensors", lambda data: data[:40]),
    "cut in its numbers": ("adapter_model.safetensors", lambda data: data[:-10]),
    "empty": ("adapter_model.safetensors", lambda data: b""),
    "a pickle": ("adapter_model.safetensors", lambda data: b"\x80\x04cos\nsystem\n(S'false'\ntR."),
    "a header without end": ("adapter_model.safetensors", lambda data: (2**60).to_bytes(8, "little") + data[8:]),
    "settings that are no JSON": ("adapter_config.json", lambda data: data[:-5]),
    "settings that are a list": ("adapter_config.json", lambda data: b"[1, 2]"),
    "settings nested without end": ("adapter_config.json", lambda data: b"[" * 100_000),
    "settings that are no text": ("adapter_config.json", lambda data: b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused(tmp_path, kind):
    name, damage = DAMAGED[kind]
    folder = lora.save(taught(new()), tmp_path / "adapter")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    refused(new(), folder, name)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = lora.save(taught(new()), tmp_path / "adapter")
    (folder / name).unlink()
    refused(new(), folder, name)
