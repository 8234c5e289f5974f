"""The form of a notebook: headings, cells' names, tags, links, and images that belong to the text beside them."""

import ast
import base64
import re
import struct
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from cells import NOTEBOOKS, ROOT, code_cells, read, tags
from inventory import HOSTS, headings, links
from nbformat import NotebookNode

from llama3_scratch.readback import fingerprint

TAGS = {
    "any-checkpoint",
    "answers",
    "check",
    "exercise",
    "guess",
    "every-digit",
    "last-digits",
    "second-digits",
    "nbval-check-output",
    "nbval-ignore-output",
    "own-model",
    "timed",
}
ASKS = re.compile("🤔 ")
FILES = {int(path.stem[:2]): path for path in NOTEBOOKS}


def wrong_headings(notebook: NotebookNode, path: Path) -> Iterator[str]:
    found = headings(notebook)
    first = notebook.cells[0].source.splitlines()[0]
    if not re.match(rf"# {int(path.stem[:2])}\. \S", first):
        yield f"{path.name} begins with {first!r}"
    if [level for level, _ in found].count(1) != 1:
        yield "one title, and sections below it"
    for (level, _), (deeper, title) in pairwise(found):
        if deeper > level + 1:
            yield f"{title!r} skips a level"
    sections = [title for level, title in found if level == 2]
    if sections[-2:] != ["Summary", "Exercises"]:
        yield f"the last sections are {sections[-2:]}, not Summary and Exercises"
    asks = re.compile(r"^\*\*\d\. \((?:easy|medium|harder)\)", re.MULTILINE)
    numbers = [asked for cell in notebook.cells for asked in asks.findall(cell.source)]
    if numbers != ["**1. (easy)", "**2. (medium)", "**3. (harder)"]:
        yield f"the exercises are {numbers}"
    titles = [title.lower() for _, title in found]
    yield from (f"two sections by the name of {title!r}" for title in {t for t in titles if titles.count(t) > 1})


def wrong_names(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Cells are named by their places; `llama3-scratch run --store` does it."""
    wanted = [f"{path.stem[:2]}-{i:03d}" for i in range(1, len(notebook.cells) + 1)]
    for cell, name in zip(notebook.cells, wanted, strict=True):
        if cell.id != name:
            yield f"cell {cell.id} stands where {name} should: {cell.source[:60]!r}"
            return


def wrong_order(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Cells were executed from the top, all of them: nbval passes over one that never was."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"{path.name}: executed in the order {counts}"


def wrong_tags(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for cell in notebook.cells:
        yield from (f"{cell.id}: a tag {tag!r}" for tag in set(tags(cell)) - TAGS)
        if "timed" in tags(cell) and ("nbval-ignore-output" not in tags(cell) or cell.outputs):
            yield f"{cell.id}: what it measures is stored, or compared"
    turns = [(cell.id, tag) for cell in notebook.cells for tag in tags(cell) if tag in ("exercise", "check")]
    for place, (name, tag) in enumerate(turns):
        if tag != ("exercise", "check")[place % 2]:
            yield f"{name}: {tag} out of turn"
    asked, answered = None, False  # the cell with the question that is open; whether one was answered
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and (ASKS.search(cell.source) or cell.source.startswith("#")):
            if asked:
                yield f"{asked.id}: the question is answered by no cell that is tagged guess"
            follows = notebook.cells[i + 1].cell_type if i + 1 < len(notebook.cells) else ""
            asked = cell if ASKS.search(cell.source) and follows == "code" else None
            answered = False
        elif "guess" in tags(cell):
            if not asked and not answered:
                yield f"{cell.id}: tagged guess, and nothing was asked"
            asked, answered = None, True


def wrong_links(notebook: NotebookNode, path: Path) -> Iterator[str]:
    number = int(path.stem[:2])
    for text, target in links(notebook):
        if fault := wrong_web(target) if "://" in target else wrong_file(text, target, number):
            yield f"[{text}]({target}): {fault}"
    last, ahead = notebook.cells[-1].source, FILES.get(number + 1)
    targets = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", last)
    before = [FILES[number - 1].name] if len(targets) > 1 and number > 1 else []  # may be named first
    if targets != [*before, ahead.name if ahead else FILES[1].name]:
        yield f"the last cell leads to {targets}"


def wrong_web(target: str) -> str:
    parts = urlsplit(target)
    if parts.scheme != "https" or not re.fullmatch(r"https://[\w.-]+/[\w./#%?=&:~+-]*", target):
        return "no proper https link"
    return "" if parts.hostname in HOSTS else f"{parts.hostname} is not among the approved hosts (inventory.py)"


@cache
def headings_of(path: Path) -> list[tuple[int, str]]:
    return headings(read(path))


def wrong_file(text: str, target: str, number: int) -> str:
    name, _, anchor = target.partition("#")
    file = (ROOT / "notebooks" / name).resolve() if name else FILES[number]
    if not file.is_file():
        return "no such file"
    if file.suffix != ".ipynb":
        return ""
    there = headings_of(file)
    if anchor and anchor not in {title.replace(" ", "-") for _, title in there}:
        return f"no heading {anchor} there"
    to = int(file.stem[:2])
    title = there[0][1]
    said = text.removeprefix("Previous: ").removeprefix("Next: ")
    if re.match(r"\d+\. ", said) and said != title and not title.startswith((f"{said}:", f"{said},")):
        return f"the title there is {title!r}"
    numbers = re.findall(r"(?:[Nn]otebook |^)(\d+)(?!\S*\w)", text)
    if numbers and int(numbers[0]) != to:
        return f"that is notebook {to}"
    for words, where in (("next notebook", number + 1), ("last notebook", number - 1), ("Last time", number - 1)):
        if words in text and to != where:
            return f"that is notebook {to}"
    return ""


def pictures(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, bytes, str, str]]:
    """Cell, image, the text beside it, the text for those who cannot see it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                alt = output.metadata.get("image/png", {}).get("alt", "")
                yield cell, base64.b64decode(data["image/png"]), data.get("text/plain", ""), alt


def note_in(png: bytes) -> str:
    """The comment in an image's head."""
    at = 8
    while at + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        if kind == b"tEXt" and body.startswith(b"Comment\0"):
            return body[8:].decode("latin-1")
        at += 12 + length
    return ""


def wrong_pictures(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for cell, png, told, alt in pictures(notebook):
        if note_in(png) != fingerprint(told, alt):
            yield f"{cell.id}: the image is not the one that its text tells of"


def wrong_any_checkpoint(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Cells that claim to do the same on any checkpoint, and use what was made from it, or from the prompt."""
    made_from_it = {"load_checkpoint", "read_prompt"}
    for cell in code_cells(notebook):
        for statement in ast.parse(cell.source).body:
            names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
            used = {name.id for name in names} & made_from_it
            if used and "any-checkpoint" in tags(cell):
                yield f"{cell.source.splitlines()[0]} uses {used}"
            if used and isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                made_from_it.add(statement.name)
            elif used:
                made_from_it |= {name.id for name in names if isinstance(name.ctx, ast.Store)}


CHECKS = (
    wrong_headings,
    wrong_names,
    wrong_order,
    wrong_tags,
    wrong_links,
    wrong_pictures,
    wrong_any_checkpoint,
)
