"""What may be asked of the demo's server: the page and its own calls, in small bodies, from its own address.

The page's library serves more than this page needs: files by path, addresses that it fetches, records, monitors. A
list of what is allowed stands before it, so that what a later version adds is closed as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ALLOWED = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/pwa_icon(/\d+)?|/robots\.txt"
        r"|/(assets|static)/(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*"
        r"|/gradio_api/(info|app_id|startup-events|theme\.css|queue/data|upload_progress|heartbeat/\w+)/?"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|upload|cancel|reset)/?"),
}
"""Method -> paths; everything else is refused, files by path (`/file=`) and addresses to fetch (`/proxy=`) first."""
UPLOAD = "/gradio_api/upload"
CALL_BYTES = 64_000
"""Of a question with what belongs to it."""
DRAIN_SECONDS = 5.0
"""For how long what is left of a refused request is taken and dropped before the answer goes out."""
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'; object-src 'none'"
)
"""A browser loads nothing from elsewhere for this page, and shows it inside no other."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """An ASGI application before another one.

    Args:
        app: what is behind it.
        hosts: names by which the server is called; None: any. It keeps other sites, which a browser may be told to find
            at this machine's address, from reading answers.
        uploads: the one folder whose files a question may name.
        upload_bytes: largest body of an upload.
        calls: numbers of what the page asks.
    """

    def __init__(
        self, app: Callable, hosts: Iterable[str] | None, uploads: Path, upload_bytes: int, calls: Iterable[int]
    ):
        self.app = app
        self.hosts = None if hosts is None else set(hosts)
        self.uploads = uploads.resolve()
        self.upload_bytes = upload_bytes
        self.calls = set(calls)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _drain(receive)
            await _say(send, *refusal)
            return
        upload = scope["path"].rstrip("/") == UPLOAD
        body = _Body(receive, _with_headers(send), self.upload_bytes if upload else CALL_BYTES)
        if scope["path"].startswith("/gradio_api/queue/join"):
            # small, and looked at before anything acts on it
            await body.read()
            if not body.ended and (why := self._foreign(body.held)):
                await body.end(400, why)
        if not body.ended:
            await self.app(scope, body.receive, body.send)

    def _refusal(self, scope: dict, headers: dict[str, str]) -> tuple[int, str] | None:
        host = re.sub(r":\d+$", "", headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            return 421, f"this server is called {' or '.join(sorted(self.hosts))}; start it with --host to call it else"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in ALLOWED:
            return 405, "only GET and POST"
        if not ALLOWED[method].fullmatch(scope["path"]) or ".." in scope["path"].split("/"):
            return 404, "not found: this server gives its page and answers, and no files"
        limit = self.upload_bytes if scope["path"].rstrip("/") == UPLOAD else CALL_BYTES
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > limit:
            return 413, _too_large(limit)
        return None

    def _foreign(self, body: bytes) -> str | None:
        """Why a question is not passed on: none of this page, or it names a file that is no upload, or an address."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return "not a question: the body is no JSON"
        asked = call.get("fn_index") if isinstance(call, dict) else None
        if not isinstance(asked, int) or asked not in self.calls:
            return "not a question: fn_index is none of the page's calls"
        for file in _files_of(call):
            path = file.get("path")
            if not isinstance(path, str) or "\0" in path or not Path(path).resolve().is_relative_to(self.uploads):
                return "a picture must be uploaded; the server reads none of its own files and fetches no address"
        return None


class _Body:
    """What comes of a request, up to a limit, and the one answer to it."""

    def __init__(self, receive: Callable, send: Callable, limit: int):
        self._receive, self._send, self._limit = receive, send, limit
        self._count, self._begun = 0, False
        self._kept: list[dict] = []
        self.ended = False
        """Whether it was answered here."""

    @property
    def held(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._kept)

    async def read(self) -> None:
        """The whole body, kept for who comes after."""
        more = True
        while more and not self.ended:
            message = await self._next()
            self._kept.append(message)
            more = message.get("more_body", False)

    async def receive(self) -> dict:
        return self._kept.pop(0) if self._kept else await self._next()

    async def _next(self) -> dict:
        message = await self._receive()
        self._count += len(message.get("body", b""))
        if self._count > self._limit:
            if message.get("more_body", False):
                await _drain(self._receive)
            await self.end(413, _too_large(self._limit))
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: dict) -> None:
        if not self.ended:
            self._begun = True
            await self._send(message)

    async def end(self, status: int, why: str) -> None:
        if not (self._begun or self.ended):
            self.ended = True
            await _say(self._send, status, why)


def _files_of(call: Any) -> Iterator[dict]:
    """Whatever in a question may be taken for a file, at any depth."""
    open_ = [call]
    while open_:
        value = open_.pop()
        if isinstance(value, dict):
            if {"path", "url"} & value.keys():
                yield value
            open_ += value.values()
        elif isinstance(value, list):
            open_ += value


def _too_large(limit: int) -> str:
    return f"too large: at most {limit / 1e6:g} megabytes"


def _with_headers(send: Callable) -> Callable:
    async def sending(message: dict) -> None:
        if message["type"] == "http.response.start":
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = message | {"headers": [*message.get("headers", []), *ours]}
        await send(message)

    return sending


async def _drain(receive: Callable) -> None:
    """Take the rest of a request: a connection closed with bytes unread is reset, and the answer lost with it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body", False):
                pass


async def _say(send: Callable, status: int, why: str) -> None:
    body = (json.dumps({"detail": why}) + "\n").encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # whoever sends for longer than that is not read to the end
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
