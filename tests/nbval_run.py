"""Run notebooks under nbval in a process of its own, as a reader's machine would."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from llama3_scratch.files import checkpoints_folder
from llama3_scratch.notebooks import SAME_EVERYWHERE

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REAL = "smollm2-135m"


def failed_cells(notebooks: list[Path], checkpoint: str, strict: bool = False) -> dict[str, str]:
    """What nbval finds wrong with each of `notebooks` on `checkpoint`, by the notebook's name; empty if nothing.

    Strict compares all stored outputs; otherwise only cells tagged nbval-check-output are compared, and the asserts
    inside the cells do the rest.
    """
    environment = os.environ | SAME_EVERYWHERE
    environment |= {"LLAMA3_CHECKPOINT": checkpoint, "LLAMA3_HOME": str(checkpoints_folder()), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--nbval" if strict else "--nbval-lax", "--nbval-current-env"]
        options = ["--nbval-cell-timeout=300", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}"]
        paths = [str(path) for path in notebooks]
        result = subprocess.run([*command, *options, *paths], env=environment, capture_output=True, text=True)
        assert report.is_file(), result.stdout + result.stderr
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {}
    for path in notebooks:
        cells = [case for case in cases if path.name in case.get("classname")]
        assert cells, f"nbval ran nothing of {path.name}:\n{result.stdout}"
        wrong = [case.find(kind).text for case in cells for kind in ("failure", "error") if case.find(kind) is not None]
        if wrong:
            failed[path.stem] = "\n".join(wrong)
    return failed
