"""torchrun ... -m llama3_scratch generate: one of the processes speaks, and if one ends, all end.

Here are two of the many faults that programs/parallel_faults.py tries, each under a torchrun of its own.
"""

import re

import pytest
from parallel_faults import FAULTS, WRITE, make_models, problems, run

from llama3_scratch.__main__ import main


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("faults")
    make_models(home)
    return home


@pytest.mark.slow
def test_torchrun_writes_what_one_process_writes_once(home, capsys):
    ran = run("nothing", FAULTS["nothing"], home)
    assert problems(FAULTS["nothing"], ran) == [], ran
    assert main(["generate", "--checkpoint", str(home / "sharded"), *WRITE]) == 0
    assert ran.texts == [capsys.readouterr().out, ""]
    assert re.match(r"\s*read \d+ tokens, wrote \d+, [\d.]+ tokens per second", ran.said[0]) and ran.said[1] == ""


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_with_one_sentence(home):
    fault = FAULTS["killed while it writes"]
    ran = run("killed while it writes", fault, home)
    assert problems(fault, ran) == [], ran
    assert -9 in ran.codes.values()
