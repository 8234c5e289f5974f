"""The pages of `run`: notebooks as a site that is read in a browser, without a network.

Sphinx does the work, with myst-nb and the theme of Jupyter Book. Here is what it is given: the notebooks with their
solutions coloured and their answers folded, a first page, our style sheet, and MathJax as a file.
"""

import base64
import copy
import html
import importlib.metadata
import importlib.util
import io
import json
import re
import shutil
import struct
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from ..loading.files import write_whole

TITLE = "Llama 3 from scratch"
GUESS_TAG = "guess"  # a question stands before the cell, and its output answers it

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]  # of a checkout
_MATHJAX = "tex-svg-full.js"  # all of TeX in one file, and it draws letters, so that no fonts are asked for
_OURS = ("index", "search", "genindex")  # pages that are no notebook
_UNUSED = re.compile(
    r"\.map$|\.buildinfo$|objects\.inv$|/_static/(locales|images)/|webpack-macros"
)  # that Sphinx makes

_PRELOAD = re.compile(rb'<link rel="preload" as="font"[^>]*>')  # by older themes; among files it is an error

_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\(([^()\s#]*)(#[^()\s]*)?\)")
_TITLE = re.compile(r"^# +(.+?)\s*#*$", re.MULTILINE)
_DETAILS = re.compile(r"<details>.*?</details>", re.DOTALL)
_CODE = re.compile(r"<pre><code>(.*?)</code></pre>", re.DOTALL)
_FORMULA = re.compile(r"(?<![\\$])\$([^$\n]+)\$(?!\$)")
_ROW = re.compile(r"^\| \[([^\]]+)\]\(([^)]+\.ipynb)\) \| (.*?) \| (.*?) \|$", re.MULTILINE)

_SETTINGS = {
    "project": TITLE,
    "html_title": TITLE,
    "html_theme": "sphinx_book_theme",
    "extensions": ["myst_nb", "sphinx_copybutton"],
    "templates_path": [str(_HERE / "templates")],
    "html_static_path": [str(_HERE / "static")],
    "html_css_files": ["llama3.css"],
    "html_context": {"default_mode": "auto"},  # light or dark, as the reader's system is
    "html_theme_options": {
        "search_bar_text": "Search",
        "use_download_button": False,
        "use_fullscreen_button": False,
        "home_page_in_toc": False,
        "toc_title": "On this page",
        "navigation_with_keys": False,
        "footer_content_items": [],
        "pygments_light_style": "a11y-high-contrast-light",
        "pygments_dark_style": "a11y-high-contrast-dark",
    },
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_use_index": False,
    "html_domain_indices": False,
    "language": "en",
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "nb_merge_streams": True,
    "nb_code_prompt_show": "Show the answer",
    "nb_code_prompt_hide": "Hide the answer",
    "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence"],
    "myst_heading_anchors": 4,
    "myst_heading_slug_func": "llama3_scratch.pages.anchor",
    "myst_links_external_new_tab": False,
    "mathjax_path": _MATHJAX,
    "mathjax3_config": {"options": {"enableMenu": False}},
    "copybutton_selector": "div.cell_input div.highlight pre, details div.highlight pre",
}


@dataclass
class Page:
    """A notebook to be shown: its file, which gives the page its name, and what is in it."""

    path: Path
    notebook: NotebookNode
    failure: str | None = None  # what went wrong, if it was run and a cell failed

    @property
    def name(self) -> str:
        """Of the page, without .html."""
        return self.path.stem + "_" * (self.path.stem in _OURS)

    @property
    def title(self) -> str:
        """Its first heading, or the file's name."""
        prose = (cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")
        titles = [title for text in prose for title in _TITLE.findall(text)]
        return str(titles[0]) if titles else self.path.stem


def write(pages: list[Page], build: Path, answers: list[str]) -> list[str]:
    """Make a site of `pages` in the folder `build`; returns Sphinx's warnings.

    It is made elsewhere and comes file by file, each of them whole, the first page last: whenever this is interrupted,
    what is there can be read. Other files in the folder are left alone. `answers` go onto the first page.
    """
    with tempfile.TemporaryDirectory(prefix="llama3_pages_") as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        source.mkdir()
        for page in pages:
            nbformat.write(_for_sphinx(page, pages, source), source / f"{page.name}.ipynb")
        (source / "index.md").write_text(_first_page(pages, answers, source), encoding="utf-8")
        said = _sphinx(source, made)
        shutil.copy(_mathjax(), made / "_static")
        (made / "_static/texts.js").write_text(_texts(made), encoding="utf-8")
        for file in _in_order(made):
            target = build / file.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = _PRELOAD.sub(b"", file.read_bytes()) if file.suffix == ".html" else file.read_bytes()
            if not target.is_file() or target.read_bytes() != content:
                write_whole(target, content)
    return said


def anchor(title: str) -> str:
    """The name that Jupyter gives to a heading in links to it."""
    return title.replace(" ", "-")


def _sphinx(source: Path, made: Path) -> list[str]:
    said = io.StringIO()
    with warnings.catch_warnings(), patch_docutils(str(source)), docutils_namespace():
        warnings.simplefilter("ignore")  # of Python: what these packages must change for their next versions
        app = Sphinx(
            srcdir=source,
            confdir=None,
            outdir=made,
            doctreedir=made.with_name("doctrees"),
            buildername="html",
            confoverrides=_SETTINGS,
            status=None,
            warning=said,
            freshenv=True,
        )
        app.build()
    return re.sub(r"\x1b\[[\d;]*m", "", said.getvalue()).splitlines()


def _texts(made: Path) -> str:
    """The words of all pages as a script, and a `fetch` that gives them to Sphinx's search: see search.html."""
    texts = {}
    for path in made.glob("*.html"):
        article = re.search(r"<article.*?</article>", path.read_text(encoding="utf-8"), re.DOTALL)
        text = re.sub(r'<a class="headerlink".*?</a>|<img[^>]*>', "", article[0] if article else "")
        texts[path.name] = f'<div role="main">{re.sub(r"<(?!/?section)[^>]*>", "", text)}</div>'
    return f"""const texts = {json.dumps(texts, ensure_ascii=False)};
window.fetch = async (url) => ({{ text: async () => texts[decodeURIComponent(url.split("/").pop())] ?? "" }});
"""


def _mathjax() -> Path:
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'sphinx-mathjax-offline'", name="sphinx-mathjax-offline")
    return Path(spec.origin).parent / "static/mathjax" / _MATHJAX


def _in_order(made: Path) -> Iterator[Path]:
    """All files to be written: what pages need comes before them, and the first page last."""
    files = [path for path in made.rglob("*") if path.is_file() and not _UNUSED.search(path.as_posix())]
    yield from sorted(files, key=lambda path: (path.suffix == ".html", path.name == "index.html", path))


def _for_sphinx(page: Page, pages: list[Page], source: Path) -> NotebookNode:
    """A copy of the notebook as Sphinx is to see it."""
    notebook = copy.deepcopy(page.notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _DETAILS.sub(_solution, cell.source)
            cell.source = _links(cell.source, page, pages, source)
        elif cell.cell_type == "code":
            _prepare_outputs(cell)
    notebook.metadata.setdefault("language_info", {"name": "python"}).setdefault("pygments_lexer", "ipython3")
    if page.title == page.path.stem:
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {page.title}"))
    if page.failure is not None:
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(_STOPPED))
    return notebook


def _prepare_outputs(cell: NotebookNode) -> None:
    """Answers to a question are folded, unless they are errors; pictures keep the text that describes them."""
    tags = cell.metadata.get("tags", [])
    failed = any(output.output_type == "error" for output in cell.outputs)
    if GUESS_TAG in tags and cell.outputs and not failed:
        cell.metadata["tags"] = [*tags, "hide-output"]
    alts = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in cell.outputs]
    image = {"alt": " ".join(alt for alt in alts if alt) or "A picture."}
    if any(_is_wide(output) for output in cell.outputs):
        image["classes"] = "wide"
    cell.metadata["mystnb"] = {"image": image}


def _is_wide(output: NotebookNode) -> bool:
    """Whether it is a picture that would be too small to read on a phone: a PNG begins with its width and height."""
    png = base64.b64decode(output.get("data", {}).get("image/png", ""))
    width, height = struct.unpack(">II", png[16:24]) if len(png) >= 24 else (1, 1)
    return bool(width > 1.5 * height)


def _solution(found: re.Match[str]) -> str:
    """A folded part, in HTML, which Sphinx lets through as it is: colours for its code, delimiters for its formulas."""

    def coloured(code: re.Match[str]) -> str:
        shown = highlight(html.unescape(code[1]), PythonLexer(), HtmlFormatter(nowrap=True))
        return f'<div class="highlight-python notranslate"><div class="highlight"><pre>{shown}</pre></div></div>'

    parts = re.split(r"(<pre>.*?</pre>|<code>.*?</code>)", _CODE.sub(coloured, found[0]), flags=re.DOTALL)
    parts[::2] = [
        _FORMULA.sub(r'<span class="math notranslate nohighlight">\\(\1\\)</span>', text) for text in parts[::2]
    ]
    text = re.sub(r"\n\s*\n", "\n&#10;\n", "".join(parts))  # an empty line would end the HTML
    return text.replace("<details>", '<details class="solution">')


def _links(text: str, page: Page, pages: list[Page], source: Path) -> str:
    """Links to files beside the notebook: those to other pages stay, pictures come along, the rest becomes text."""
    names = {other.path.name: f"{other.name}.ipynb" for other in pages}

    def link(found: re.Match[str]) -> str:
        words, target, place = found[1], unquote(found[2]), found[3] or ""
        file = page.path.parent / target
        if not target or ":" in target or not file.is_file():
            return found[0]
        if words.startswith("!"):
            return f"{words}({_take(file, source)})"
        if target in names:
            return f"{words}({quote(names[target])}{place})"
        return words[1:-1]

    return _LINK.sub(link, text)


def _take(file: Path, source: Path) -> str:
    """Copy a picture to where Sphinx finds it; its name there."""
    folder = source / "_pictures"
    folder.mkdir(exist_ok=True)
    shutil.copy(file, folder)
    return quote(f"{folder.name}/{file.name}")


def _readme() -> str:
    """The README, of the checkout or as it was installed."""
    if (_ROOT / "README.md").is_file():
        return (_ROOT / "README.md").read_text(encoding="utf-8")
    try:
        return importlib.metadata.metadata("llama3-scratch")["Description"] or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_page(pages: list[Page], answers: list[str], source: Path) -> str:
    rows = {Path(target).name: (build, see) for _, target, build, see in _ROW.findall(_readme())}
    cards = []
    for page in pages:
        build, see = rows.get(page.path.name, ("", ""))
        card = f'<div class="notebook">\n\n**[{page.title}]({page.name}.ipynb)**\n\n'
        card += f'<span class="what">You build</span> {build}\n\n<span class="what">You see</span> {see}\n\n' * bool(
            build
        )
        cards.append(f"{card}</div>\n")
    picture = _ROOT / "assets/predictions.png"
    words = {
        "picture": f"![{_PICTURE}]({_take(picture, source)})" if picture.is_file() else "",
        "start": f"{pages[0].name}.ipynb" if pages else "",
        "first": pages[0].title if pages else "",
        "cards": "\n".join(cards),
        "answers": _answers(answers),
        "toctree": "\n".join(page.name for page in pages),
    }
    text = (_HERE / "index.md").read_text(encoding="utf-8")
    for name, value in words.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


_STOPPED = """:::{error}
This notebook stopped at a cell in this run. The error stands below it; the cells after it were not run.
:::"""

_PICTURE = "What the model expects after each token of two famous sentences, and how sure it is."


def _answers(answers: list[str]) -> str:
    if not any(answers):
        return ""
    return "## What the model said in this run\n\n" + "\n\n".join(f"```text\n{text.strip()}\n```" for text in answers)
