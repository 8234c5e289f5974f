"""What is installed, and by what commands: the lock, the extras, the Makefile's answers."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
SYSTEMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]


def machine(python, system, processor):
    patch = "2" if python == "3.11" else "0"  # Debian 12 has 3.11.2
    return {
        "python_version": python,
        "python_full_version": f"{python}.{patch}",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[system],
        "platform_machine": processor,
        "os_name": "nt" if system == "win32" else "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "processor"), SYSTEMS)
def test_every_python_and_system_finds_one_version_of_each_package(python, system, processor):
    here = machine(python, system, processor)
    pinned = {}
    for requirement in map(Requirement, LOCK):
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert requirement.name not in pinned
            [only] = requirement.specifier
            assert only.operator == "=="
            pinned[canonicalize_name(requirement.name)] = only.version
    extras = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.name != PROJECT["name"] and (requirement.marker is None or requirement.marker.evaluate(here)):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    assert pinned["torch"] == "2.13.0"


def test_the_lock_says_how_it_was_made_and_where_from_is_left_to_the_reader():
    text = (ROOT / "constraints.txt").read_text()
    [command] = re.findall(r"^#\s+(uv pip compile .*)$", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    assert " ".join(command.split()) in " ".join(makefile.split())
    assert "://" not in text and "index" not in text


def test_the_pythons_that_are_named_are_those_that_are_let_in():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [version for version in (f"3.{minor}" for minor in range(6, 20)) if allowed.contains(version)] == PYTHONS
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert named == PYTHONS


def test_importing_the_package_imports_nothing_that_only_notebooks_need():
    heavy = (
        "sphinx",
        "myst_nb",
        "matplotlib",
        "gguf",
        "nbclient",
        "nbformat",
        "IPython",
        "jupyter_client",
        "transformers",
    )
    program = f"import sys, llama3_scratch; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_notebooks_without_jupyter_are_refused_in_one_line(monkeypatch, capsys):
    from llama3_scratch.__main__ import main

    monkeypatch.delitem(sys.modules, "llama3_scratch.runner", raising=False)
    monkeypatch.delattr("llama3_scratch.runner", raising=False)
    monkeypatch.setitem(sys.modules, "nbclient", None)
    assert main(["run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "nbclient" in line and "[notebooks]" in line


def test_the_package_says_that_it_has_types():
    assert (ROOT / "llama3_scratch/py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


# The Makefile, in a copy whose folder has a space in its name, with Pythons that are pretended.

pytest_make = pytest.mark.skipif(sys.platform == "win32" or not shutil.which("make"), reason="needs make and sh")


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def pretended(folder, answer, name="python"):
    """A program that answers as `answer`, a line of sh, says; "$2" is what a Python would run."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


def make(folder, *arguments, uv=None):
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "touch", "dirname"):
        if not (tools / name).exists():
            (tools / name).symlink_to(shutil.which(name))
    if uv:
        pretended(tools, uv, "uv")
    environment = {"PATH": str(tools), "LC_ALL": "C"}
    command = [shutil.which("make"), *(arguments or [".venv/run"])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def answering(version):
    """sh that runs what it is given in this Python, which then takes itself for another version."""
    return f"""
if [ "$1" = -c ]; then exec "{sys.executable}" -I -c "import sys; sys.version_info = {(*version, 0)}
sys.version = '{version[0]}.{version[1]}.0 (pretended)'; exec(sys.argv[1])" "$2"; fi
echo "$0 $@" >> "$(dirname "$0")/calls"
"""


@pytest_make
@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 15)])
def test_a_wrong_python_is_answered_in_one_sentence_before_anything_is_made(copy, version):
    python = pretended(copy.parent, answering(version))
    code, said = make(copy, ".venv/run", f"PYTHON={python}")
    lines = [line for line in said.splitlines() if not line.startswith("make")]
    assert code != 0 and len(lines) == 1
    assert "3.10 to 3.14" in lines[0] and f"{version[0]}.{version[1]}" in lines[0] and "PYTHON=" in lines[0]
    assert not (copy / ".venv").exists() and not (copy.parent / "calls").exists()


@pytest_make
def test_no_python_at_all_is_said(copy):
    code, said = make(copy)
    lines = [line for line in said.splitlines() if not line.startswith("make")]
    assert code != 0 and len(lines) == 1 and "python3" in lines[0] and "uv" in lines[0]


def asked_to_make_it(copy, uv=None):
    """A python3.12 that only notes what it is asked to do; whether a .venv was asked for."""
    python = pretended(copy.parent, answering((3, 12)))
    (copy.parent / "calls").unlink(missing_ok=True)
    make(copy, ".venv/run", f"PYTHON={python}", uv=uv)
    return "-m venv --clear .venv" in (copy.parent / "calls").read_text() if (copy.parent / "calls").exists() else False


@pytest_make
@pytest.mark.parametrize("broken", ["exit 1", answering((3, 9)), answering((3, 13))], ids=["broken", "old", "other"])
def test_a_venv_that_will_not_do_is_made_anew_however_new_it_looks(copy, broken):
    pretended(copy / ".venv/bin", broken)
    (copy / ".venv/run").touch()
    assert asked_to_make_it(copy)


@pytest_make
def test_a_venv_that_will_do_is_kept(copy):
    pretended(copy / ".venv/bin", answering((3, 12)))
    (copy / ".venv/run").touch()
    os.utime(copy / ".venv/run", (2**32, 2**32))
    assert not asked_to_make_it(copy)
    code, said = make(copy)  # none is named, and there is no python3
    assert code == 0, said


@pytest_make
def test_uv_is_used_where_there_is_no_other_python(copy):
    uv = f'echo "uv $@" >> "{copy.parent}/calls"; [ "$1" = venv ] && exit 7; exit 0'
    make(copy, uv=uv)
    assert (copy.parent / "calls").read_text() == "uv venv --clear .venv\n"


@pytest_make
@pytest.mark.parametrize("target", ["run", "notebooks", "lab"])
@pytest.mark.parametrize("failing", ["", "fetch", "run", "lab"])
def test_make_fails_where_a_command_of_ours_fails(copy, target, failing):
    """The recipe, with a Python whose commands do nothing but end well or badly."""
    bad = f'case "$*" in "-m llama3_scratch {failing}"*) exit 1;; esac' if failing else ""
    pretended(copy / ".venv/bin", answering((3, 12)) + bad)
    for stamp in ("run", "test"):
        (copy / ".venv" / stamp).touch()
        os.utime(copy / ".venv" / stamp, (2**32, 2**32))
    code, said = make(copy, target)
    calls = re.findall(r"-m llama3_scratch (.*)", (copy / ".venv/bin/calls").read_text())
    expected = {"run": ["fetch", "run"], "notebooks": ["fetch", "run --store"], "lab": ["fetch", "lab"]}[target]
    failed = [command for command in expected if failing and command.startswith(failing)]
    assert (code != 0) == bool(failed), said
    assert calls == expected[: expected.index(failed[0]) + 1 if failed else None]
