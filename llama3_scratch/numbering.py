"""Names for the cells of a notebook."""

import re

from nbformat import NotebookNode


def number_cells(notebook: NotebookNode, stem: str) -> None:
    """Name the cells of notebook NN by their places: NN-001, NN-002, ... Other files keep the names they have."""
    if re.match(r"\d\d_", stem):
        for place, cell in enumerate(notebook.cells, start=1):
            cell.id = f"{stem[:2]}-{place:03d}"
