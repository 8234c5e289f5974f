"""Set before torch is imported, and shared by the files beside this one."""

import os

# One set of kernels on every x86 CPU: without these, about one float32 in a hundred flips its fourth decimal between
# machines. torch and its libraries read them when they are first imported, so this stands above every other import.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# One thread in each process, results being the same: OpenMP's threads wait for each other by spinning, and where
# several workers share the cores that makes everything ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from functools import cache

import pytest
from helpers import SMOLLM2_STEPS, SPECIALS_FIRST, trained
from hypothesis import settings

from llama3_scratch import Tokenizer, load_checkpoint
from llama3_scratch.loading import mapped, tiny
from llama3_scratch.loading.fetch import LLAMA3_TOKENIZER, fetch

# The same examples on every run: a red run can be repeated. No deadline: a busy machine is not a fault.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """The longest first, so that the last worker does not run alone for a minute."""
    first = ("test_notebooks.py", "test_faults.py", "test_pages.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Name -> folder of a tiny checkpoint made by this run, since those in checkpoints/ may be an older version's."""
    home = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: tiny.make_tiny(name, home / name))


@pytest.fixture(scope="session")
def smollm2():
    return load_checkpoint("smollm2-135m")


@pytest.fixture(scope="session")
def llama3():
    """The tokenizer of Llama 3, on Meta's own file."""
    return Tokenizer(fetch(LLAMA3_TOKENIZER) / "tokenizer.model")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A checkpoint of one's own, to train, to change or to break."""
    return shutil.copytree(tiny_folder("tiny-ratio3"), tmp_path / "own")


@pytest.fixture
def every_file_is_large(monkeypatch):
    """Every file is mapped read-only, as those of more than 4 GiB are."""
    monkeypatch.setattr(mapped, "COPY_ON_WRITE_BYTES", 0)


@pytest.fixture(scope="session")
def their_tokenizer_file(tmp_path_factory):
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
