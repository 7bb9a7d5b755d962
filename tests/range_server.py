"""A small web server on this machine that gives files by ranges of bytes, or misbehaves in a chosen way."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        ranges: answer range requests; without it, whole files as a plain server does.
        failing: number of the next range requests to answer with an error 503.
        flipped: number of the next range requests to answer with one wrong byte.
        asked: (first byte, last byte) of every range that was asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges, self.failing, self.flipped = True, 0, 0
        self.asked: list[tuple[int, int]] = []

    def url(self, name: str) -> str:
        """Where a file of the folder is served."""
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            return self._send(404, b"", {})
        body, code, headers = path.read_bytes(), 200, {}
        asked = self.headers.get("Range")
        if asked and self.server.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last or len(body)), len(body) - 1)
            self.server.asked.append((first, last))
            if self.server.failing > 0:
                self.server.failing -= 1
                return self._send(503, b"busy", {})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, code = body[first : last + 1], 206
            if self.server.flipped > 0:
                self.server.flipped -= 1
                body = bytes([body[0] ^ 1]) + body[1:]
        if self.server.ranges:
            headers["Accept-Ranges"] = "bytes"
        self._send(code, body if with_body else b"", {**headers, "Content-Length": str(len(body))})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path):
    """A `RangeServer` of a folder, on a free port, in a thread."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
