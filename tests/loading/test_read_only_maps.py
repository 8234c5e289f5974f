"""Models on files that are mapped read-only, where a write ends the process: each case is a fork of its own."""

import json
import subprocess
import sys

import pytest

SETUP = """
import copy, io, pickle, sys, warnings
import torch
from torch import nn
from llama3_scratch import Llama, load_checkpoint
from llama3_scratch.loading import mapped
mapped.COPY_ON_WRITE_BYTES = 0
folder, original = sys.argv[1], {}
for key, tensor in load_checkpoint(folder).weights.items():
    original[key] = tensor.clone()
ckpt = load_checkpoint(folder)
assert ckpt.read_only
model = Llama.from_checkpoint(ckpt)
tokens = torch.arange(1, 25).view(2, 12)
def loss(model=model):
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
def in_file():
    return {name for name, p in model.named_parameters() if getattr(p, "in_file", False)}
everything = in_file()
assert everything and not any(p.requires_grad for p in model.parameters())
before = model(tokens)
"""
END = """
for key, tensor in load_checkpoint(folder).weights.items():
    assert torch.equal(tensor, original[key]), key
for key, tensor in ckpt.weights.items():
    assert torch.equal(tensor, original[key]), key
"""
TRAIN = """
model.requires_grad_(True)
optimizer = torch.optim.{optimizer}
first = loss()
for _ in range(3):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
assert loss() < first and not in_file()
"""
PEFT = """
from peft import LoraConfig, get_peft_model
lora = get_peft_model(model, LoraConfig(target_modules=["wq", "wv", "w1"], init_lora_weights=False))
optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=0.01)
loss(lora).backward()
optimizer.step()
with_lora = lora(tokens)
"""
OUR_LORA = """
from llama3_scratch import lora, training
learning = lora.add(model, 2, ["wq", "w2"])
first = loss()
optimizer = torch.optim.AdamW(learning, lr=0.01)
for _ in range(3):
    optimizer.zero_grad(); loss().backward(); optimizer.step()
assert loss() < first and len(in_file()) == len(everything)
taught = model(tokens)
"""
CASES = {
    "our LoRA": OUR_LORA,
    "our LoRA, merged": OUR_LORA
    + """
lora.merge(model)
assert torch.allclose(model(tokens), taught, atol=1e-4)
changed = {name for name in everything if name.endswith(("wq.weight", "w2.weight"))}
assert in_file() == everything - changed
""",
    "our training": """
from llama3_scratch import training
model.requires_grad_(True)
list(training.train(model, torch.arange(1, 200) % 50, training.Settings(steps=3, batch_size=2, seq_len=9)))
assert not in_file() and not torch.equal(model.norm.weight, original["norm.weight"])
""",
    "inference keeps all in the file": "assert in_file() == everything",
    "SGD, one by one": TRAIN.format(optimizer="SGD(model.parameters(), lr=0.1, foreach=False)"),
    "SGD, all together": TRAIN.format(optimizer="SGD(model.parameters(), lr=0.1, foreach=True)"),
    "SGD, fused": TRAIN.format(optimizer="SGD(model.parameters(), lr=0.1, fused=True)"),
    "AdamW, one by one": TRAIN.format(optimizer="AdamW(model.parameters(), lr=1e-3, foreach=False)"),
    "AdamW, all together": TRAIN.format(optimizer="AdamW(model.parameters(), lr=1e-3, foreach=True)"),
    "AdamW, fused": TRAIN.format(optimizer="AdamW(model.parameters(), lr=1e-3, fused=True)"),
    "the optimizer made before": """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model.requires_grad_(True)
loss().backward(); optimizer.step()
""",
    "some are trained": """
model.norm.weight.requires_grad = True
model.layers[0].attention.wq.weight.requires_grad_()
assert in_file() == everything - {"norm.weight", "layers.0.attention.wq.weight"}
loss().backward()
torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]).step()
""",
    "frozen again": "model.train().requires_grad_(False).eval(); assert in_file() == everything",
    "checkpointed gradients": """
from torch.utils.checkpoint import checkpoint
model.requires_grad_(True)
for layer in model.layers:
    layer.forward = lambda *a, f=layer.forward, **k: checkpoint(f, *a, use_reentrant=False, **k)
loss().backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
""",
    "torch.func": """
from torch.func import functional_call, grad
def of(p): return loss(lambda tokens: functional_call(model, p, (tokens,)))
gradients = grad(of)(dict(model.named_parameters()))
assert in_file() == everything and all(g.abs().max() > 0 for g in gradients.values())
with torch.no_grad():
    for name, p in model.named_parameters():
        p -= 0.1 * gradients[name]
""",
    "gradients taken by hand": """
model.requires_grad_(True)
for p, g in zip(model.parameters(), torch.autograd.grad(loss(), list(model.parameters()))):
    p.data.sub_(0.1 * g)
""",
    "methods in place": """
with torch.no_grad():
    for p in model.parameters():
        p *= 2; p.mul_(0.5); p[0] = 0; p.clamp_(-1, 1)
nn.init.normal_(model.output.weight)
""",
    ".data": "model.norm.weight.data.zero_(); assert 'norm.weight' not in in_file()",
    "load_state_dict": """
model.load_state_dict({key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items()})
assert all(not p.any() for p in model.parameters())
""",
    "load_state_dict, assigned": """
model.load_state_dict({key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items()}, assign=True)
model.requires_grad_(True); loss().backward(); torch.optim.SGD(model.parameters(), lr=0.1).step()
""",
    "state_dict copies nothing": """
state = model.state_dict()
assert state["norm.weight"].data_ptr() == model.norm.weight.data_ptr() and in_file() == everything
""",
    "another type, in place": """
model.to(torch.float64)
assert not in_file()
model.requires_grad_(True); loss().backward(); torch.optim.AdamW(model.parameters()).step()
""",
    "the same type and device": """
model.to(torch.float32).to("cpu").float()
assert in_file() == everything
model.requires_grad_(True); loss().backward(); torch.optim.AdamW(model.parameters()).step()
""",
    "deepcopy": """
other = copy.deepcopy(model)
assert in_file() == everything and torch.equal(other(tokens), before)
other.requires_grad_(True); loss(other).backward(); torch.optim.SGD(other.parameters(), lr=0.1).step()
assert (other.output.weight is other.tok_embeddings.weight) == (model.output.weight is model.tok_embeddings.weight)
""",
    "pickled": """
buffer = io.BytesIO()
torch.save(model, buffer)
assert in_file() == everything
buffer.seek(0)
other = torch.load(buffer, weights_only=False)
assert torch.equal(other(tokens), before) and type(other.norm.weight) is nn.Parameter
other.requires_grad_(True); loss(other).backward(); torch.optim.SGD(other.parameters(), lr=0.1).step()
pickle.loads(pickle.dumps(model))
""",
    "peft's LoRA": PEFT + "assert not torch.equal(with_lora, before)",
    "LoRA merged": PEFT + "merged = lora.merge_and_unload()\ntorch.testing.assert_close(merged(tokens), with_lora)",
    "LoRA merged safely": PEFT + "lora.merge_and_unload(safe_merge=True)",
    "LoRA merged and taken out": PEFT
    + """
lora.merge_adapter(); lora.unmerge_adapter()
with lora.disable_adapter(): torch.testing.assert_close(lora(tokens), before)
""",
    "an average of weights": """
average = torch.optim.swa_utils.AveragedModel(model)
average.update_parameters(model)
""",
    "a model of its own type stays trainable": """
other = Llama.from_checkpoint(ckpt, dtype=torch.float64)
assert all(p.requires_grad for p in other.parameters())
loss(other).backward(); torch.optim.SGD(other.parameters(), lr=0.1).step()
""",
}


# Each line of stdin has a folder and its cases; the children are forks, so that they need no time to start.
RUNNER = """
import json, os, signal, sys, traceback
import peft, torch, torch.utils.checkpoint
import llama3_scratch
torch.set_num_threads(1)
torch.optim.AdamW([torch.ones(1, requires_grad=True)])  # imports much, once for all forks
for line in sys.stdin:
    sys.argv[1:], setup, end, cases = json.loads(line)
    for name, case in cases.items():
        child = os.fork()
        if not child:
            signal.alarm(60)
            try:
                names = {"__name__": "case"}
                exec(setup + case + end, names)
            except BaseException:
                print(name, file=sys.stderr)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # -11: a segmentation fault
        if status:
            print(name, status)
    print("done", flush=True)
"""


# What the runner must tell of, or all else would be fine to it.
WRONG = {"through a view": "model.norm.weight.detach().zero_()", "a failure": "assert False"}


@pytest.mark.skipif(sys.platform == "win32", reason="its processes are forks")
def test_nothing_that_one_does_with_a_model_writes_to_its_file_and_a_write_ends_the_process(tiny_folder):
    names = "tiny-ratio3", "tiny-ratio4"  # tied and not
    asked = [json.dumps([[str(tiny_folder(name))], SETUP, END, CASES | WRONG]) + "\n" for name in names]
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input="".join(asked), capture_output=True, text=True)
    said, errors = done.stdout.splitlines(), done.stderr[-3000:]
    assert len(said) == len(names) * 3, (said, errors)
    for view, failure, end in zip(said[0::3], said[1::3], said[2::3], strict=True):
        assert view in ("through a view -11", "through a view -7"), errors
        assert (failure, end) == ("a failure 1", "done"), errors


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_with_a_limit_set_before_opening_the_file_does_not_count_as_data():
    code = """
import re, resource, sys
from pathlib import Path
from llama3_scratch import functional, load_checkpoint
used = int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 250 * 2**20,) * 2)
ckpt = load_checkpoint("smollm2-135m")  # 538 MB
print(ckpt.read_only, functional.forward([1, 2], ckpt.weights, ckpt.params).isfinite().all().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr
