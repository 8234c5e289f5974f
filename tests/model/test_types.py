"""mypy, strict, over the whole package. It is one of the tests so that it shares the processor with them."""

import subprocess
import sys
from pathlib import Path

import pytest

import llama3_scratch

ROOT = Path(llama3_scratch.__file__).parents[1]


@pytest.mark.slow
def test_every_type_in_the_package_holds():
    checked = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
