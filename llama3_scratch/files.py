"""Where checkpoints are kept, and how a folder appears only when it is complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def checkpoints_folder() -> Path:
    """LLAMA3_HOME if set; in a checkout of the repository its checkpoints/; else ~/.cache/llama3_scratch."""
    if os.environ.get("LLAMA3_HOME"):
        return Path(os.environ["LLAMA3_HOME"]).expanduser()
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():
        return root / "checkpoints"
    return Path.home() / ".cache" / "llama3_scratch"


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path | None]:
    """Yield an empty folder to fill, and move it to `folder` once the block ends well; None if that is there already.

    Whatever interrupts the block, `folder` is either complete or absent.
    """
    if folder.is_dir():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # else somebody else finished it first, which is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
