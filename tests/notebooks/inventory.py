"""What reviewers have approved of each notebook, beside its text: inventory.json.

Its outline, proofs, pictures, tags, questions and links, the names and the code in its prose. A test reads all of it
anew and compares: what vanished, moved or was weakened shows, and so does what came in unseen. After a change that is
meant, look at the difference, and approve it:

    python tests/notebooks/inventory.py             # shows what differs
    python tests/notebooks/inventory.py --approve   # ...and stores it
"""

import argparse
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cells import NOTEBOOKS, code_cells, prose_cells, read, tags
from nbformat import NotebookNode
from proofs import pictures, proofs
from prose import LINK, NAME, prose_of, shown_by, spans

APPROVED = Path(__file__).with_name("inventory.json")
# Where links may lead. A new host is a decision.
HOSTS = {
    "aclanthology.org",
    "arxiv.org",
    "bssw.io",
    "cdn.openai.com",
    "crd.lbl.gov",
    "developer.nvidia.com",
    "docs.nvidia.com",
    "docs.pytorch.org",
    "docs.vllm.ai",
    "doi.org",
    "en.wikipedia.org",
    "github.com",
    "huggingface.co",
    "jishuzhan.net",
    "openaipublic.blob.core.windows.net",
    "pkware.cachefly.net",
    "pytorch.org",
    "techpowerup.com",
    "transformer-circuits.pub",
    "www.lesswrong.com",
    "www.nvidia.com",
    "www.usenix.org",
}


def inventory(notebook: NotebookNode) -> dict:
    shown = shown_by(notebook)
    prose = [prose_of(cell.source, shown) for cell in prose_cells(notebook)]
    return {
        "outline": [f"{'#' * level} {title}" for level, title in headings(notebook)],
        "proofs": proofs(notebook),
        "pictures": pictures(notebook),
        "tags": {
            tag: [first_line(cell) for cell in code_cells(notebook) if tag in tags(cell)]
            for tag in sorted({tag for cell in code_cells(notebook) for tag in tags(cell)})
        },
        "questions": [question for cell in prose_cells(notebook) for question in questions(cell.source)],
        "names": counted(name[0] for text in prose for name in NAME.finditer(text)),
        "code": counted(span for cell in prose_cells(notebook) for span in spans(cell.source)),
        "links": [f"{text} -> {target}" for text, target in links(notebook)],
    }


def counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def headings(notebook: NotebookNode) -> list[tuple[int, str]]:
    found = []
    for cell in prose_cells(notebook):
        text = re.sub(r"^```.*?^```|<pre>.*?</pre>", "", cell.source, flags=re.DOTALL | re.MULTILINE)
        found += [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#+) (.*)$", text, re.MULTILINE)]
    return found


def first_line(cell: NotebookNode) -> str:
    return next((line for line in cell.source.splitlines() if line.strip()), "")[:100]


def questions(source: str) -> list[str]:
    """What the reader is asked to guess, as far as the paragraph goes."""
    return [" ".join(m[0].split()) for m in re.finditer(r"🤔.*?(?=\n\n|\Z)", source, re.DOTALL)]


def links(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Text and target; published figures come from somewhere, too."""
    found = []
    for cell in prose_cells(notebook):
        found += [(" ".join(m[1].split()), m[2]) for m in LINK.finditer(cell.source)]
        found += [(fact["says"], fact["from"]) for fact in cell.metadata.get("facts", []) if "from" in fact]
    return found


def as_text(all_of_them: dict) -> str:
    return json.dumps(all_of_them, indent=1, ensure_ascii=False) + "\n"


def approved() -> dict:
    return json.loads(APPROVED.read_text())


def difference(old: dict, new: dict) -> str:
    """As lines that went and came."""
    before, after = (as_text(one).splitlines() for one in (old, new))
    return "\n".join(
        line for line in difflib.unified_diff(before, after, lineterm="", n=1) if line[:3] not in ("---", "+++")
    )


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--approve", action="store_true")
    now = {path.stem: inventory(read(path)) for path in NOTEBOOKS}
    print(difference(approved() if APPROVED.is_file() else {}, now) or "as approved")
    if parser.parse_args().approve:
        APPROVED.write_text(as_text(now))


if __name__ == "__main__":
    command_line()
