"""The pages of `run`: every link leads somewhere, nothing comes from a network, and in a browser everything works.

The browser is Chromium (Debian's, or the one that `playwright install chromium` brings). Without one these tests are
skipped, unless LLAMA3_NEED_BROWSER=1 says that there has to be one.
"""

import contextlib
import html
import json
import os
import re
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from filelock import FileLock
from helpers import NOTEBOOKS, ROOT
from playwright.sync_api import Error, sync_playwright

from llama3_scratch import pages

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
EVERY_PAGE = [*(path.stem for path in NOTEBOOKS), "index", "search"]
every_page = pytest.mark.parametrize("name", EVERY_PAGE)
ANSWERS = "What the model says next:\n  'The capital of France is' -> ' Paris' (0.77)\n"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Calls a function that gives something of JSON, once for all workers that share these tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "pages"
    folder.mkdir(exist_ok=True)

    def result(name, function):
        path = folder / f"{name}.json"
        with FileLock(folder / f"{name}.lock"):
            if not path.exists():
                path.write_text(json.dumps(function(folder)))
            return json.loads(path.read_text())

    return result


@pytest.fixture(scope="module")
def made(once):
    """The site of the stored notebooks, and what Sphinx said."""

    def make(folder):
        notebooks = [pages.Page(path, nbformat.read(path, as_version=4)) for path in NOTEBOOKS]
        return [str(folder / "site"), pages.write(notebooks, folder / "site", [ANSWERS])]

    folder, said = once("made", make)
    return Path(folder), said


@pytest.fixture(scope="module")
def site(made):
    return made[0]


class Reader(HTMLParser):
    """All tags of a page as (name, attributes), and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, name, key):
        return [attributes[key] for tag, attributes in self.tags if tag == name and attributes.get(key) is not None]


@pytest.fixture(scope="module")
def read(site):
    known = {}

    def page(name):
        if name not in known:
            known[name] = Reader(site / f"{name}.html")
        return known[name]

    return page


def prose(path):
    """The markdown cells of a notebook, without code in them."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    return re.sub(r"```.*?```|`[^`\n]*`|<pre>.*?</pre>|<code>.*?</code>", "", "\n\n".join(cells), flags=re.DOTALL)


def formulas(path):
    """TeX of a notebook, in order."""
    found = re.findall(r"\$\$(.+?)\$\$|(?<!\\)\$([^$]+)\$", prose(path), re.DOTALL)
    return [display or inline for display, inline in found]


# What can be seen without a browser


def test_sphinx_has_nothing_to_complain_about(made):
    assert made[1] == []


@every_page
def test_every_link_leads_to_a_page_and_a_place_in_it(name, site, read):
    for key, values in {"href": read(name).all("a", "href"), "id": read(name).all("label", "for")}.items():
        for value in values:
            link = urlsplit(value if key == "href" else f"#{value}")
            if link.scheme:
                assert link.scheme in ("https", "http", "mailto"), value
                continue
            target = site / unquote(link.path) if link.path else site / f"{name}.html"
            assert target.is_file(), value
            if link.fragment and target.suffix == ".html":
                ids = {attributes.get("id") for _, attributes in read(target.stem).tags}
                assert unquote(link.fragment) in ids, value


@every_page
def test_what_a_page_loads_lies_beside_it(name, site, read):
    wanted = [value for tag in ("script", "img", "iframe", "source", "video") for value in read(name).all(tag, "src")]
    wanted += [attributes["href"] for tag, attributes in read(name).tags if tag == "link" and "href" in attributes]
    assert len(wanted) > 5
    for value in (value for value in wanted if value != "#"):
        link = urlsplit(value)
        assert not link.scheme and not link.netloc, value
        assert (site / unquote(link.path)).is_file(), value


def test_style_sheets_load_what_lies_beside_them(site):
    for sheet in site.rglob("*.css"):
        for value in re.findall(r"url\(\s*[\"']?([^\"')]+)", sheet.read_text(encoding="utf-8")):
            if not value.startswith(("data:", "#")):
                assert not urlsplit(value).scheme and (sheet.parent / urlsplit(value).path).is_file(), (sheet, value)


@every_notebook
def test_a_page_has_the_title_of_its_notebook_and_leads_to_its_neighbours(path, site, read):
    text = (site / f"{path.stem}.html").read_text(encoding="utf-8")
    [title] = re.findall(r"<title>(.*?)</title>", text)
    heading = re.search(r"^# (.+)$", prose(path), re.MULTILINE)[1]
    assert html.unescape(title) == f"{heading} - Llama 3 from scratch"
    number = NOTEBOOKS.index(path)
    footer = text[text.index("prev-next-footer") :]
    before = NOTEBOOKS[number - 1].stem if number else "index"
    assert f'class="left-prev"\n       href="{before}.html"' in footer
    if number + 1 < len(NOTEBOOKS):
        assert f'class="right-next"\n       href="{NOTEBOOKS[number + 1].stem}.html"' in footer
    assert {f"{other.stem}.html" for other in NOTEBOOKS if other != path} <= {*read(path.stem).all("a", "href")}
    assert "lang" in dict(read(path.stem).tags)["html"]
    assert any(attributes.get("name") == "viewport" for tag, attributes in read(path.stem).tags if tag == "meta")


@every_notebook
def test_links_between_notebooks_become_links_between_pages(path, read):
    links = re.findall(r"\]\((\w+)\.ipynb(#[^)]*)?\)", prose(path))
    for target, _ in links:
        assert f"{target}.html" in [urlsplit(href).path for href in read(path.stem).all("a", "href")]
    assert not [href for href in read(path.stem).all("a", "href") if href.endswith(".ipynb")]


@every_notebook
def test_every_formula_reaches_its_page(path, site, read):
    text = (site / f"{path.stem}.html").read_text(encoding="utf-8")
    article = text[text.index("<article") : text.index("</article>")]
    shown = re.findall(r'class="math notranslate nohighlight"[^>]*>\s*\\[(\[](.*?)\\[)\]]\s*</', article, re.DOTALL)
    shown = [
        re.sub(r"\\(begin|end)\{split\}", "", html.unescape(tex)) for tex in shown
    ]  # which Sphinx puts around rows
    assert sorted(" ".join(tex.split()) for tex in shown) == sorted(" ".join(tex.split()) for tex in formulas(path))
    article = re.sub(r"<pre>.*?</pre>|<code.*?</code>", "", article, flags=re.DOTALL)
    assert "$" not in re.sub(r"<[^>]*>", "", article)


@every_notebook
def test_answers_to_questions_and_solutions_are_folded(path, site):
    text = (site / f"{path.stem}.html").read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    guesses = [cell for cell in cells if pages.GUESS_TAG in cell.metadata.get("tags", []) and cell.outputs]
    assert text.count("Show the answer") == len(guesses)
    folds = re.findall(r"<details([^>]*)>", text)
    assert not any("open" in attributes for attributes in folds)
    solutions = re.findall(r"<details class=\"solution\"><summary>Solution</summary>(.*?)</details>", text, re.DOTALL)
    stored = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    codes = re.findall(r"<pre><code>(.*?)</code></pre>", stored, re.DOTALL)
    assert len(solutions) == stored.count("<summary>Solution</summary>")
    shown = [
        re.sub(r"<[^>]*>", "", pre) for part in solutions for pre in re.findall(r"<pre>(.*?)</pre>", part, re.DOTALL)
    ]
    assert [html.unescape(code).split() for code in shown] == [html.unescape(code).split() for code in codes]


@every_page
def test_every_picture_has_a_text(name, read):
    alts = [attributes.get("alt") for tag, attributes in read(name).tags if tag == "img"]
    assert all(alts)


@every_notebook
def test_texts_of_pictures_are_those_of_the_notebook(path, read):
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
    images = [output.metadata["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    alts = [" ".join(image["alt"].split()) for image in images]
    assert [alt for text in read(path.stem).all("img", "alt") if (alt := " ".join(text.split())) in alts] == alts


def test_the_first_page_shows_what_there_is(site, read):
    links = read("index").all("a", "href")
    assert {f"{path.stem}.html" for path in NOTEBOOKS} <= {*links}
    text = read("index").text
    assert "Start with notebook 1" in text and "Paris" in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\(notebooks/(\w+)\.ipynb\) \| (.*?) \| (.*?) \|$", readme, re.MULTILINE)
    assert [name for name, *_ in rows] == [path.stem for path in NOTEBOOKS]
    for _, build, see in rows:
        for words in (build, see):
            assert re.sub(r"[`*]", "", words).replace("'", "’") in text.replace("'", "’")


def test_all_of_it_is_small(site):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 25e6


# How it is written


def one(path, text="# One", output=None):
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [output] if output else []
    return pages.Page(path, nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), cell]))


def test_files_of_others_stay_and_earlier_pages_too(tmp_path):
    (tmp_path / "build/_static").mkdir(parents=True)
    for name in ("notes.txt", "02_earlier.html", "_static/mine.css"):
        (tmp_path / "build" / name).write_text("mine")
    pages.write([one(tmp_path / "01_one.ipynb")], tmp_path / "build", [])
    for name in ("notes.txt", "02_earlier.html", "_static/mine.css"):
        assert (tmp_path / "build" / name).read_text() == "mine"
    assert not list((tmp_path / "build").rglob(".*"))


def test_whenever_it_is_interrupted_the_earlier_pages_can_be_read(tmp_path, monkeypatch):
    """The first page comes last, and each file whole."""
    build = tmp_path / "build"
    pages.write([one(tmp_path / "01_one.ipynb", "# First")], build, [])
    real, written = pages.write_whole, []

    def interrupted(path, content):
        if path.suffix == ".html" and len(written) > 0:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, content)

    monkeypatch.setattr(pages, "write_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pages.write([one(tmp_path / "01_one.ipynb", "# Second")], build, [])
    assert "First" in (build / "index.html").read_text() and "First" in (build / "01_one.html").read_text()


def test_a_link_that_leads_nowhere_is_a_warning(tmp_path):
    said = pages.write([one(tmp_path / "01_one.ipynb", "# One\n\n[two](02_two.ipynb)")], tmp_path / "build", [])
    assert any("02_two.ipynb" in line for line in said)


def test_links_to_files_and_to_places_in_pages(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "assets/predictions.png", tmp_path / "assets")
    (tmp_path / "README.md").write_text("# Read me")
    links = "![a picture](../assets/predictions.png) [the *README*](../README.md) [there](02_b.ipynb#A-place,-here)"
    first, second = tmp_path / "notebooks/01_a.ipynb", tmp_path / "notebooks/02_b.ipynb"
    said = pages.write(
        [one(first, f"# One\n\n{links}"), one(second, "# Two\n\n## A place, here\n\nText")], tmp_path / "build", []
    )
    assert said == []
    page = Reader(tmp_path / "build/01_a.html")
    [picture] = page.all("img", "src")
    assert (tmp_path / "build" / picture).is_file() and page.all("img", "alt") == ["a picture"]
    assert "the README" in page.text and not [href for href in page.all("a", "href") if "README" in href]
    assert "02_b.html#a-place-here" in page.all("a", "href")


def test_an_error_is_not_folded(tmp_path):
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
    page = one(tmp_path / "01_one.ipynb", output=error)
    page.notebook.cells[1].metadata["tags"] = [pages.GUESS_TAG]
    pages.write([page], tmp_path / "build", [])
    text = (tmp_path / "build/01_one.html").read_text()
    assert "ValueError: no" in re.sub("<[^>]*>", "", text) and "<details" not in text


@pytest.mark.parametrize("stem", ["index", "search", "with a space", "ünï"])
def test_any_name_of_a_notebook_gives_a_page_that_the_first_one_links(tmp_path, stem):
    pages.write([one(tmp_path / f"{stem}.ipynb", "No heading")], tmp_path / "build", [])
    links = [unquote(href) for href in Reader(tmp_path / "build/index.html").all("a", "href")]
    [link] = {link for link in links if link.removesuffix("_.html").removesuffix(".html") == stem}
    assert "No heading" in (tmp_path / "build" / link).read_text(encoding="utf-8")


# In a browser, with the network off

DESK, PHONE = {"width": 1400, "height": 900}, {"width": 400, "height": 800}


def browsers():
    """Chromium of the system, then playwright's own."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return [*(path for path in found if path), None]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        for path in browsers():
            with contextlib.suppress(Error):
                started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
                break
        else:
            how = "no browser: apt-get install chromium, or python -m playwright install chromium"
            if os.environ.get("LLAMA3_NEED_BROWSER") == "1":
                pytest.fail(how)
            pytest.skip(how)
        yield started
        started.close()


@pytest.fixture(scope="module")
def tab(browser):
    """Opens a tab that knows nothing of the others: (page, list of what went wrong in it, or left it, so far)."""
    contexts = []

    def opened():
        context = browser.new_context(offline=True, color_scheme="light")
        contexts.append(context)
        page, wrong = context.new_page(), []
        page.set_default_timeout(60_000)  # on a busy machine
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:", "about:")) else wrong.append(r.url),
        )
        page.on("requestfailed", lambda request: wrong.append(f"not there: {request.url}"))
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        return page, wrong

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def open_page(tab, site):
    """A page of the site, in a tab of its own."""

    def opened(name):
        page, wrong = tab()
        page.set_viewport_size(DESK)
        page.goto((site / f"{name}.html").as_uri())
        return page, wrong

    return opened


NO_MOTION = "* { transition: none !important; animation: none !important }"  # colours would fade
FORMULAS = """async () => {
    if (window.MathJax) await MathJax.startup.promise;
    const count = selector => document.querySelectorAll(selector).length;
    const article = document.querySelector('article, main').cloneNode(true);
    article.querySelectorAll('pre, code').forEach(code => code.remove());
    return {drawn: count('article mjx-container > svg'), wrong: count('mjx-merror, [data-mjx-error]'),
            dollars: article.textContent.includes('$')};
}"""
FOLDS = """() => [...document.querySelectorAll('article details')].map(fold => {
    const seen = () => [...fold.children].slice(1).some(part => part.checkVisibility());
    const before = seen();
    fold.querySelector('summary').click();
    return [before, seen()];
})"""
SIDEWAYS = """() => {
    const out = [...document.querySelectorAll('article *')].filter(element => {
        const box = element.getBoundingClientRect();
        return box.right > innerWidth + 1 && box.width > 0 && !element.closest('pre, .math, table, .cell_output');
    });
    return [document.scrollingElement.scrollWidth, out.map(element => element.outerHTML.slice(0, 200))];
}"""
PICTURES = """() => [...document.querySelectorAll('article img')].map(
    picture => [getComputedStyle(picture).backgroundColor, getComputedStyle(picture).filter, picture.naturalWidth > 0]
)"""
LOW_CONTRAST = """theme => {
    document.documentElement.dataset.theme = theme;
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const known = {};
    const rgba = text => known[text] ??= (() => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    })();
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = rgba(getComputedStyle(element).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return rgba('white');
    };
    const found = {};
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim()) continue;
        if (element.closest('script, style, svg, mjx-container, .headerlink')) continue;
        if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found[element.outerHTML.slice(0, 100)] = ratio;
    }
    return found;
}"""


@pytest.fixture(scope="module")
def visit(tab, site, once):
    """All that can be seen of a page in one visit; each page is visited once. All visits are made in one tab, which
    has then compiled MathJax already; what one page stores there is gone when the next one opens.
    """

    @cache
    def the_tab():
        page, wrong = tab()
        page.add_init_script("if (location.protocol === 'file:') { localStorage.clear(); sessionStorage.clear() }")
        return page, wrong

    def look(name):
        page, wrong = the_tab()
        wrong.clear()
        page.set_viewport_size(DESK)
        page.goto((site / f"{name}.html").as_uri())
        seen = {"formulas": page.evaluate(FORMULAS), "folds": page.evaluate(FOLDS)}
        page.add_style_tag(content=NO_MOTION)
        seen["contrast"] = {theme: page.evaluate(LOW_CONTRAST, theme) for theme in ("light", "dark")}
        seen["dark pictures"] = page.evaluate(PICTURES)
        page.set_viewport_size(PHONE)
        seen["width"], seen["sticking out"] = page.evaluate(SIDEWAYS)
        page.goto("about:blank")
        return {**seen, "wrong": [*wrong]}

    return lambda name: once(f"visit-{name}", lambda _: look(name))


@every_page
def test_nothing_goes_wrong_and_nothing_is_asked_of_a_network(name, visit):
    assert visit(name)["wrong"] == []


@every_notebook
def test_every_formula_is_drawn(path, visit):
    assert visit(path.stem)["formulas"] == {"drawn": len(formulas(path)), "wrong": 0, "dollars": False}


@every_notebook
def test_folds_open_with_a_click(path, visit):
    folds = visit(path.stem)["folds"]
    assert folds and set(map(tuple, folds)) == {(False, True)}


@every_page
def test_on_a_phone_nothing_but_code_and_outputs_scrolls_sideways(name, visit):
    assert visit(name)["width"] <= 400 and visit(name)["sticking out"] == []


@every_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(name, theme, visit):
    assert visit(name)["contrast"][theme] == {}


@every_notebook
def test_pictures_stay_on_white_in_the_dark(path, visit):
    pictures = visit(path.stem)["dark pictures"]
    assert pictures and set(map(tuple, pictures)) == {("rgb(255, 255, 255)", "none", True)}


def test_the_way_from_the_first_page_to_the_next_notebook_and_back(open_page):
    page, wrong = open_page("index")
    page.get_by_role("link", name="Start with notebook 1").click()
    page.wait_for_url(f"**/{NOTEBOOKS[0].stem}.html")
    page.locator("a.right-next").click()
    page.wait_for_url(f"**/{NOTEBOOKS[1].stem}.html")
    page.locator("a.left-prev").click()
    page.wait_for_url(f"**/{NOTEBOOKS[0].stem}.html")
    assert wrong == []


def test_the_search_finds_a_word_and_shows_where(open_page):
    page, wrong = open_page("search")
    page.locator("main input[name=q]:visible").first.fill("softmax")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('ul.search li p.context').length >= 5")
    assert page.locator("ul.search li").filter(has_text="Softmax").count() >= 1
    assert "softmax" in page.locator("ul.search li p.context").first.inner_text().lower()
    page.locator("ul.search li a").first.click()
    page.wait_for_url(re.compile(r"/\d\d_\w+\.html"))
    assert wrong == []


def test_the_page_turns_dark_and_stays_so_on_the_next(open_page):
    page, wrong = open_page("index")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.locator(".theme-switch-button:visible").click()
    choice = page.locator(".theme-change-button[data-mode=dark]")
    if choice.count():  # a menu; the button of older themes goes through light, dark and the system's
        choice.locator("visible=true").click()
    while page.evaluate("document.documentElement.dataset.theme") != "dark":
        page.locator(".theme-switch-button:visible").click()
    dark = page.evaluate(background)
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 50
    page.get_by_role("link", name="Start with notebook 1").click()
    page.wait_for_url(f"**/{NOTEBOOKS[0].stem}.html")
    assert page.evaluate(background) == dark and wrong == []
