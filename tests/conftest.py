"""Set before torch is imported, and shared by the files beside this one."""

import os

# Nearly one set of kernels on every x86 CPU. What compares stored digits asks for MKL's own as well (helpers.py): these
# are four times slower than those it takes by itself. torch and its libraries read all this when they are first
# imported, so it stands above every other import.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# One thread in each process, results being the same: OpenMP's threads wait for each other by spinning, and where
# several workers share the cores that makes everything ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import sys
from functools import cache

import pytest
from hypothesis import settings

# What imports torch is imported in the fixtures: the process that hands out the tests to workers needs none of it.
# Notebooks' schema has no addresses; jsonschema, which could check them, would build a grammar for 1.5 s.
sys.modules["rfc3987_syntax"] = None

# The same examples on every run: a red run can be repeated. No deadline: a busy machine is not a fault.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker runs alone at the end. xdist deals out the list in halves, of which the
    later tests are taken over by whoever is done: so both halves begin with notebooks.
    """
    notebooks = [item for item in items if item.path.name == "test_notebooks.py"]
    others = [item for item in items if item.path.name != "test_notebooks.py"]
    first = ("test_types.py", "test_faults.py", "test_pages.py")
    others.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))
    middle = max(0, len(items) // 2 - len(notebooks[::2]))
    items[:] = notebooks[::2] + others[:middle] + notebooks[1::2] + others[middle:]


@pytest.fixture(autouse=True)
def environment():
    """What a test changes in the environment ends with it. `run` sets which kernels multiply: processes that later
    tests start would have other digits, and take four times as long.
    """
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Name -> folder of a tiny checkpoint made by this run, since those in checkpoints/ may be an older version's."""
    from llama3_scratch.loading import tiny

    home = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: tiny.make_tiny(name, home / name))


@pytest.fixture(scope="session")
def smollm2():
    from llama3_scratch import load_checkpoint

    return load_checkpoint("smollm2-135m")


@pytest.fixture(scope="session")
def llama3():
    """The tokenizer of Llama 3, on Meta's own file."""
    from llama3_scratch import Tokenizer
    from llama3_scratch.loading.fetch import LLAMA3_TOKENIZER, fetch

    return Tokenizer(fetch(LLAMA3_TOKENIZER) / "tokenizer.model")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A checkpoint of one's own, to train, to change or to break."""
    return shutil.copytree(tiny_folder("tiny-ratio3"), tmp_path / "own")


@pytest.fixture
def every_file_is_large(monkeypatch):
    """Every file is mapped read-only, as those of more than 4 GiB are."""
    from llama3_scratch.loading import mapped

    monkeypatch.setattr(mapped, "COPY_ON_WRITE_BYTES", 0)


@pytest.fixture(scope="session")
def their_tokenizer_file(tmp_path_factory):
    from helpers import SMOLLM2_STEPS, SPECIALS_FIRST, trained

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained(SMOLLM2_STEPS, SPECIALS_FIRST, vocab_size=400).save(str(path))
    return path


@pytest.fixture
def save(tmp_path, their_tokenizer_file):
    """Hugging Face's model -> folder, as `save_pretrained` writes it, with a tokenizer."""

    def save_model(model, **options):
        folder = tmp_path / "hf"
        model.save_pretrained(folder, **options)
        shutil.copy(their_tokenizer_file, folder)
        return folder

    return save_model
