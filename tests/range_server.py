"""Local HTTP server with range requests and injected faults."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Server of the files in a folder.

    Attributes:
        ranges: whether to answer range requests; if not, every answer is the complete file.
        failures_left: number of further range requests to answer with error 503.
        corruptions_left: number of further range requests to answer with one wrong byte.
        requested: (first byte, last byte) of every range request.
    """

    request_queue_size = 128  # the default of 5 drops connections of a batch, which then retry for many seconds
    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges, self.failures_left, self.corruptions_left = True, 0, 0
        self.requested: list[tuple[int, int]] = []

    def url(self, name: str) -> str:
        """Return the URL of a file in the folder."""
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
        byte_range = self.headers.get("Range")
        if byte_range and self.server.ranges:
            first, last = byte_range.removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last or len(body)), len(body) - 1)
            self.server.requested.append((first, last))
            if self.server.failures_left > 0:
                self.server.failures_left -= 1
                return self._send(503, b"busy", {})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, code = body[first : last + 1], 206
            if self.server.corruptions_left > 0:
                self.server.corruptions_left -= 1
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
        """Do not log."""


@contextmanager
def serve_folder(folder: Path):
    """Run a `RangeServer` for a folder on a free port, in a thread."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
