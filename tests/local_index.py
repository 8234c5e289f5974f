"""An index of packages on this machine, for the tests of what is fetched."""

import hashlib
import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Index(ThreadingHTTPServer):
    """Serves one wheel or source archive, and pages that link to it, in the ways that tests ask for; notes what it was
    asked.
    """

    daemon_threads = True

    def __init__(self, name, content):
        super().__init__(("127.0.0.1", 0), Answer)
        self.name, self.content = name, content
        self.project = name.split("-")[0].replace("_", "-")
        self.asked = []  # path and Range of each request
        self.cuts = []  # after how many bytes to hang up, request by request
        self.ranges = True  # whether it can go on in the middle
        self.json = True
        self.credentials = None
        self.seconds = 0  # between two pieces of the file
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def downloads(self):
        return [bytes_ for path, bytes_ in self.asked if path.startswith("/files/")]


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        index = self.server
        path = urlsplit(self.path).path  # what a proxy is asked for is a whole address
        index.asked.append((path, self.headers.get("Range")))
        if index.credentials and self.headers.get("Authorization") != index.credentials:
            self.send_error(401)
        elif path == f"/simple/{index.project}/":
            self.page(index)
        elif path == f"/files/{index.name}":
            self.file(index)
        else:
            self.send_error(404)

    def page(self, index):
        if index.json and "json" in self.headers["Accept"]:
            files = [{"filename": index.name, "url": f"../../files/{index.name}", "hashes": {"sha256": index.sha256}}]
            kind, body = "application/vnd.pypi.simple.v1+json", json.dumps({"files": files})
        else:
            links = '<a href="/files/other-1-py3-none-any.whl">other</a>'
            links += f'<a href="{index.name}#sha256={index.sha256}">it</a>'
            kind, body = "text/html; charset=utf-8", f'<html><base href="/files/">{links}</html>'
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def file(self, index):
        start = 0
        if index.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(index.content) - 1}/{len(index.content)}")
        else:
            self.send_response(200)
        body = index.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: index.cuts.pop(0) if index.cuts else None]
        for i in range(0, len(body), 2**16):
            time.sleep(index.seconds)
            self.wfile.write(body[i : i + 2**16])

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(ConnectionError):  # whoever asked was killed
            super().handle()


@contextmanager
def local_index(name, content):
    with Index(name, content) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield server
        server.shutdown()
