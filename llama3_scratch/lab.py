"""`lab`: JupyterLab on copies of the notebooks without outputs, so that no answer is in view, git sees no change, and
what a reader does to a copy is never written over.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from .loading.files import write_whole
from .messages import CheckpointError

FOLDER = "my_notebooks"
_LEDGER = ".copies.json"  # beside the copies: what was written, to tell what the reader changed


def find_root() -> Path:
    """The folder that has notebooks/: the current one, or the checkout of this package."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[1]):
        if any((root / "notebooks").glob("*.ipynb")):
            return root
    raise CheckpointError("notebooks/: no notebook there; run this from the repository")


def copy_notebooks(root: Path) -> list[str]:
    """Bring my_notebooks/ up to date with notebooks/, both in `root`; returns sentences for the reader.

    A copy that is as it was written becomes the new edition. A copy that the reader changed stays, and the new edition
    is put beside it, under another name, once.
    """
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    written, editions = _read_ledger(folder)  # copy -> content as written; notebook -> content last given out
    said = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        blank = _without_outputs(path)
        edition = _content(blank)
        name = path.name
        if _found(folder / name) not in (None, edition, written.get(name)):  # the reader changed it
            if editions.get(path.name) == edition:
                continue
            names = [f"{path.stem}_new{n}.ipynb" for n in ("", *range(2, 1000))]
            name = next(n for n in names if _found(folder / n) in (None, edition, written.get(n)))
            said.append(f"{path.name} has a new edition: {FOLDER}/{name}. Yours stays as it is.")
        if _found(folder / name) != edition:
            write_whole(folder / name, blank)
        written[name] = editions[path.name] = edition
        write_whole(folder / _LEDGER, json.dumps({"written": written, "editions": editions}, indent=1) + "\n")
    return said


def open_lab(root: Path, place: str, arguments: list[str]) -> int:
    """Start JupyterLab at `place`, and stay until it ends. It serves all of `root`, for pictures and links that lead
    out of the folder of copies. On Linux and macOS this process becomes JupyterLab.
    """
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={root}"]
    command += [f"--LabApp.default_url=/lab/tree/{place}", *arguments]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container, say
        command.append("--allow-root")
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(sys.executable, command)
    return subprocess.call(command)


def _read_ledger(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Without a ledger, every copy that differs from its notebook passes for changed."""
    try:
        ledger = json.loads((folder / _LEDGER).read_text(encoding="utf-8"))
        return dict(ledger["written"]), dict(ledger["editions"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}, {}


def _without_outputs(path: Path) -> bytes:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
    except (ValueError, TypeError, KeyError) as e:
        raise ValueError(f"{path}: not a notebook") from e
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def _found(path: Path) -> str | None:
    return _content(path.read_bytes()) if path.exists() else None


def _content(data: bytes) -> str:
    """What a reader could have changed in a notebook: its cells and their outputs. JupyterLab touches the rest as soon
    as a notebook is opened.
    """
    try:
        cells = [
            [cell["cell_type"], "".join(cell["source"]), cell.get("outputs", []), cell.get("attachments", {})]
            for cell in json.loads(data)["cells"]
        ]
        data = json.dumps(cells, sort_keys=True).encode()
    except (ValueError, TypeError, KeyError):
        pass  # no notebook any more, and so certainly changed
    return hashlib.sha256(data).hexdigest()
