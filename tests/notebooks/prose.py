"""Numbers in the notebooks' prose, each bound to what it comes from.

A markdown cell's `metadata.facts` lists pieces of its text, each with its source:

    {"says": "head 2", "is": "f'head {best_head}'"}      computed in the kernel, when the cell's place is reached
    {"says": "head 2", "will_be": "f'head {best_head}'"} the same, after the code cells that follow the text
    {"says": "8.03 billion", "from": "https://..."}      a published figure: where it stands
    {"says": "two machines", "why": "chosen"}            a choice, an example, a word of plain speech

`is` and `will_be` are Python expressions: True, or a value whose str() is the piece itself. They see the notebook's
names, `in_words(2)`, which is "two", and `once(f, x)`, which is f(x), computed once for all facts. Every number of the
prose must stand inside a `says` of its cell.

    python tests/notebooks/prose.py notebooks/05_all_heads.ipynb          # which numbers stand in none?
    python tests/notebooks/prose.py --run notebooks/05_all_heads.ipynb    # which computed ones are wrong?
"""

import argparse
import ast
import html
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from cells import code_cells, prose_cells, read, texts_of_outputs, with_solutions
from nbformat import NotebookNode

KINDS = ("is", "will_be", "from", "why")

# Names with digits in them, free in every notebook. Each is a whole name: "Llama 3.7" is none of these.
NAMES = [
    r"Llama 3\.1 (8B|70B|405B)",
    r"Llama 3\.2 (1B|3B)",
    r"Llama 3\.3 70B",
    r"Llama 3 (8B|70B)",
    r"Llama (1|2|3|4|3\.1|3\.2|3\.3)(?! ?\d+B)(?!-)",
    r"SmolLM2-(135M|360M|1\.7B)",
    r"SmolLM2",
    r"GPT-[234]",
    r"(?<!Llama [1-4] )(?<!Llama 3\.[123] )(1B|3B|8B|70B|405B)",
    r"b?float(16|32|64)",
    r"int(4|8|16|32|64)",
    r"UTF-8",
    r"base64",
    r"Python 3",
    r"[Nn]otebook (1[0-8]|[1-9])",  # whether it is the right one is for the check of links
    r"[Nn]otebooks (1[0-8]|[1-9])((,| and| to) (1[0-8]|[1-9]))+",
    r"[Ll]ayer 0",  # by its number the first one
    r"w[123]",
    r"[AH]100",  # machines
    r"H200",
    r"MI300X",
    r"RTX 4090",
]
WORDS = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|half|halves|thirds?|quarters?|fifths?|tenths?|"
    "hundredths?|thousandths?|millionths?|twice|thrice|dozens?|hundreds?|thousands?|millions?|billions?|trillions?"
)
NAME = re.compile(rf"(?<![\w.])(?:{'|'.join(NAMES)})(?!\w)(?!\.\d)")
DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
NUMBER = re.compile(
    rf"(?<![\w)\]])[-−–+±]?{DIGITS}(?:\s?%)?|(?<![A-Za-z])(?:{WORDS})(?![A-Za-z])|{DIGITS}",
    re.IGNORECASE,
)
CODE = re.compile(r"(`+)(.+?)\1|<code>(.*?)</code>", re.DOTALL)
# What is not prose, in this order.
NO_PROSE = [
    re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE),
    re.compile(r"<pre>.*?</pre>", re.DOTALL),
]
FORMULA = re.compile(r"\$\$.+?\$\$|(?<![\\$])\$(?![\s$])[^$\n]+?(?<!\s)\$", re.DOTALL)
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
AFTERWARDS = [
    re.compile(r"https?://[^\s)>\]]+"),
    re.compile(r"</?[a-z][^<>]*>|&#?\w+;"),
    re.compile(r"^#+\s+\d+\.", re.MULTILINE),  # headings' own numbers
    re.compile(r"^\s*\d+\.\s", re.MULTILINE),  # items of a numbered list
    re.compile(r"^\*\*\d\. \((?:easy|medium|harder)\)\*\*", re.MULTILINE),  # exercises' own numbers
]


def blank(text: str, piece: re.Match | tuple[int, int]) -> str:
    start, end = piece.span() if isinstance(piece, re.Match) else piece
    return text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]


def shown_by(notebook: NotebookNode) -> str:
    """All code, and all that it printed: what a code span may quote."""
    return "\n".join(t for cell in code_cells(notebook) for t in (cell.source, *texts_of_outputs(cell)))


def prose_of(source: str, shown: str) -> str:
    """A markdown cell with all that is not prose blanked out; what is left keeps its place."""
    text = source
    for pattern in NO_PROSE:
        for piece in pattern.finditer(text):
            text = blank(text, piece)
    for piece in CODE.finditer(text):
        quoted = html.unescape(piece[2] or piece[3] or "")
        if not re.search(r"(?<!\w)\d", quoted) or (quoted in shown and not re.fullmatch(DIGITS, quoted)):
            text = blank(text, piece)
    for piece in FORMULA.finditer(text):
        text = blank(text, piece)
    for piece in LINK.finditer(text):
        named, target = piece.span(1), piece.span(2)
        text = blank(text, target)
        if piece[2].startswith("https://") or ".ipynb" in piece[2]:  # such texts are held by the check of links
            text = blank(text, named)
    for pattern in AFTERWARDS:
        for piece in pattern.finditer(text):
            text = blank(text, piece)
    return text


def spans(source: str) -> Iterator[str]:
    """What stands in code type, whole blocks aside."""
    for pattern in NO_PROSE:
        source = pattern.sub(" ", source)
    for piece in CODE.finditer(source):
        yield html.unescape(piece[2] or piece[3] or "").strip()


def numbers(text: str) -> Iterator[re.Match]:
    """Those of a text that are no part of a name."""
    for piece in NAME.finditer(text):
        text = blank(text, piece)
    return NUMBER.finditer(text)


def occurrences(says: str, source: str) -> list[tuple[int, int]]:
    """Where a piece stands in a text, as whole words."""
    before = r"(?<![\w.,])" if re.match(r"\w", says) else ""
    after = r"(?!\w)(?![.,]\d)" if re.search(r"\w$", says) else ""
    return [m.span() for m in re.finditer(before + re.escape(says) + after, source)]


def sentence(text: str, at: int) -> str:
    start = max((i + 1 for i in (text.rfind(mark, 0, at) for mark in (". ", "\n", "? ")) if i >= 0), default=0)
    end = min((i for i in (text.find(mark, at) for mark in (". ", "\n", "? ")) if i >= 0), default=len(text))
    return text[start : end + 1].strip()


def unbound(notebook: NotebookNode) -> Iterator[str]:
    """Numbers in prose that stand in no `says` of their cell."""
    shown = shown_by(notebook)
    for cell in prose_cells(notebook):
        yield from unbound_in(cell, shown)


def unbound_in(cell: NotebookNode, shown: str) -> Iterator[str]:
    facts = cell.metadata.get("facts", [])
    said = [place for fact in facts for place in occurrences(str(fact.get("says", "")), cell.source)]
    for number in numbers(prose_of(cell.source, shown)):
        start, end = number.span()
        if not any(first <= start and end <= last for first, last in said):
            yield f"{cell.id}: {number[0].strip()!r} in: {sentence(cell.source, start)}"


def wrong_entries(notebook: NotebookNode) -> Iterator[str]:
    """Facts that are no facts: a piece that the text does not have, a source that says nothing."""
    for cell in notebook.cells:
        yield from wrong_entries_in(cell)


def wrong_entries_in(cell: NotebookNode) -> Iterator[str]:
    for fact in cell.metadata.get("facts", []):
        said = fact.get("says")
        kinds = [kind for kind in KINDS if kind in fact]
        if cell.cell_type != "markdown":
            fault = "facts belong to a markdown cell"
        elif set(fact) != {"says", *kinds} or len(kinds) != 1:
            fault = f"an entry has `says` and one of {', '.join(KINDS)}"
        elif not isinstance(said, str) or not occurrences(said, cell.source):
            fault = "the text does not say that"
        elif not all(isinstance(value, str) and value.strip() for value in fact.values()):
            fault = "an empty entry"
        elif len(said.split()) > 15 or "\n\n" in said:
            fault = "too long: a number and the words beside it"
        elif len(said.split()) < 2 and any(numbers(said)):
            fault = "too short: take a word beside the number as well"
        elif kinds[0] == "from":
            fault = "" if re.fullmatch(r"https://\S+\.\S+", fact["from"]) else "`from` is a link, https://..."
        elif kinds[0] == "why":
            fault = ""
        else:
            fault = wrong_expression(fact[kinds[0]], said)
        if fault:
            yield f"{cell.id}: {said!r}: {fault}"


def wrong_expression(code: str, says: str) -> str:
    """What is wrong with it; nothing, if it can hold the text to something."""
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError as e:
        return f"no Python expression: {code} ({e.msg})"
    if not any(isinstance(node, ast.Name) for node in ast.walk(tree)):
        return f"computed from nothing: {code}"
    if any(isinstance(node, ast.NamedExpr) for node in ast.walk(tree)):
        return f"an expression gives no names: {code}"
    if not yes_or_no(tree.body):
        typed = [n[0] for piece in typed_in(tree) for n in numbers(piece)]
        return f"{', '.join(typed)}: typed in, not computed: {code}" if typed else ""
    constants = [abs(n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) in (int, float)]
    for number in numbers(says):
        if (value := as_number(number[0])) is not None and not any(
            abs(c * factor - value) < 1e-9 * max(value, 1) for c in constants for factor in (1, 100, 1e-3, 1e-6, 1e-9)
        ):
            return f"{number[0]} is not what is compared: {code}"
    return ""


def yes_or_no(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).split(".")[-1] in ("all", "any", "bool", "equal", "allclose", "isclose", "item")
    return isinstance(node, (ast.Compare, ast.BoolOp)) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def typed_in(tree: ast.AST) -> Iterator[str]:
    """The literal parts of f-strings and of strings put together."""
    formats = {id(node.format_spec) for node in ast.walk(tree) if isinstance(node, ast.FormattedValue)}  # the .2f
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in formats:
            yield from (part.value for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            yield from (
                n.value for n in (node.left, node.right) if isinstance(n, ast.Constant) and type(n.value) is str
            )


def as_number(text: str) -> float | None:
    digits = re.sub(r"[^\d.]", "", text)
    return float(digits) if digits else None


# Runs in the notebook's kernel; the names are its own. `found` gets a line for every fact that does not hold.
HELD = r"""
import sys


def in_words(n):
    small = "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    words = (small + " seventeen eighteen nineteen").split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    return words[n] if n < 20 else "-".join([tens[n // 10 - 2], *words[n % 10 : n % 10 + (n % 10 > 0)]])


def once(function, *arguments):
    known = vars(sys).setdefault("known_to_facts", {})
    key = function.__name__, repr(arguments)
    if key not in known:
        known[key] = function(*arguments)
    return known[key]


torch = sys.modules.get("torch")
state = torch.get_rng_state() if torch else None
found = []
for cell, says, code in facts:
    try:
        value = eval(code, {"in_words": in_words, "once": once, **names})
    except Exception as e:
        value = f"{type(e).__name__}: {e}"
    shown = value.item() if getattr(value, "shape", None) == () else value  # of torch or numpy
    if shown is not True and str(shown) != says:
        found.append(f"{cell}: the text says {says!r}, and it is {shown!s:.300}    <- {code}")
if torch:
    torch.set_rng_state(state)
"""
REFUSE = "\nassert not found, '\\n'.join(found)\n"
REPORT = "\nprint(*found, sep='\\n', end='\\n' if found else '')\n"


def held(facts: list[tuple[str, str, str]], end: str) -> NotebookNode:
    """A cell that holds these facts to what is in the kernel, and leaves nothing there."""
    code = f"exec({HELD + end!r}, {{'names': globals(), 'facts': {facts!r}}})"
    return nbformat.v4.new_code_cell(code, execution_count=1, metadata={"facts": True})


def with_facts(notebook: NotebookNode, end: str = REFUSE) -> NotebookNode:
    """Cells put in between that hold the text to its facts: `is` right after the text, `will_be` before the next."""
    cells, later = [], []
    for cell in [*notebook.cells, None]:
        if later and (cell is None or cell.cell_type == "markdown"):
            cells.append(held(later, end))
            later = []
        if cell is None:
            break
        cells.append(cell)
        if cell.cell_type == "markdown":
            facts = cell.metadata.get("facts", [])
            now, later = ([(cell.id, f["says"], f[kind]) for f in facts if kind in f] for kind in ("is", "will_be"))
            if now:
                cells.append(held(now, end))
    notebook.cells = cells
    return notebook


def run(path: Path) -> list[str]:
    """Evaluate all facts of a notebook, in one kernel; a line for each that does not hold."""
    from nbclient import NotebookClient  # only needed here

    notebook = with_facts(with_solutions(read(path), trials=False), REPORT)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    cells = [cell for cell in code_cells(notebook) if cell.metadata.get("facts")]
    return [line for cell in cells for text in texts_of_outputs(cell) for line in text.splitlines()]


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--run", action="store_true", help="evaluate what is computed, on the real model")
    options = parser.parse_args()
    checks: list[Callable[[NotebookNode], Iterator[str]]] = [unbound, wrong_entries]
    found = [f"{path.name} {line}" for path in options.notebooks for check in checks for line in check(read(path))]
    if options.run:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        from llama3_scratch.runner import SAME_EVERYWHERE

        os.environ.update(SAME_EVERYWHERE | {"OMP_NUM_THREADS": "1", "LLAMA3_CHECKPOINT": "smollm2-135m"})
        found += [f"{path.name} {line}" for path in options.notebooks for line in run(path)]
    print(*found, sep="\n")
    kinds = [kind for path in options.notebooks for fact in facts_of(read(path)) for kind in KINDS if kind in fact]
    print(f"{len(found)} to mend; facts:", json.dumps({kind: kinds.count(kind) for kind in KINDS}), file=sys.stderr)
    raise SystemExit(bool(found))


def facts_of(notebook: NotebookNode) -> list[dict]:
    return [fact for cell in prose_cells(notebook) for fact in cell.metadata.get("facts", [])]


if __name__ == "__main__":
    command_line()
