"""Allowlist of requests to the demo's server: the page and its own calls, small bodies, known hosts.

gradio serves more than the page needs: files by path, proxied URLs, recordings, monitoring. An allowlist in front of it
also blocks endpoints that later versions add.
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
"""HTTP method -> allowed paths. All others are rejected, above all files (`/file=`) and proxied URLs (`/proxy=`)."""
UPLOAD = "/gradio_api/upload"
MAX_CALL_BYTES = 64_000
"""Maximum size of every request body that is not an upload."""
DRAIN_SECONDS = 5.0
"""How long the rest of a rejected request is read and dropped before the response is sent."""
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'; object-src 'none'"
)
"""Browsers load nothing from other hosts for this page, and do not embed it in other pages."""
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class RequestGuard:
    """ASGI middleware that rejects all but the demo's own requests.

    Args:
        app: the guarded application.
        hosts: accepted values of the Host header; None: any. This prevents DNS rebinding, by which another site could
            read responses through the user's browser.
        upload_dir: the only folder whose files a question may name.
        max_upload_bytes: maximum size of an upload's request body.
        calls: numbers (``fn_index``) of the page's own calls.
    """

    def __init__(
        self,
        app: Callable,
        hosts: Iterable[str] | None,
        upload_dir: Path,
        max_upload_bytes: int,
        calls: Iterable[int],
    ):
        self.app = app
        self.hosts = None if hosts is None else set(hosts)
        self.upload_dir = upload_dir.resolve()
        self.max_upload_bytes = max_upload_bytes
        self.calls = set(calls)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        rejection = self._rejection(scope, headers)
        if rejection is not None:
            await _drain(receive)
            await _send_error(send, *rejection)
            return
        request = _LimitedRequest(receive, _add_headers(send), self._max_bytes(scope))
        if scope["path"].startswith("/gradio_api/queue/join"):
            # the body is small, and checked before gradio reads it
            await request.read_body()
            if not request.rejected and (reason := self._invalid_call(request.body)):
                await request.reject(400, reason)
        if not request.rejected:
            await self.app(scope, request.receive, request.send)

    def _max_bytes(self, scope: dict) -> int:
        return self.max_upload_bytes if scope["path"].rstrip("/") == UPLOAD else MAX_CALL_BYTES

    def _rejection(self, scope: dict, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return status and reason if the head of a request is not allowed."""
        host = re.sub(r":\d+$", "", headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            return 421, f"unknown host name; this server is {' or '.join(sorted(self.hosts))} (see --host)"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in ALLOWED:
            return 405, "only GET and POST are allowed"
        if not ALLOWED[method].fullmatch(scope["path"]) or ".." in scope["path"].split("/"):
            return 404, "not found: this server serves its page and answers, and no files"
        max_bytes, length = self._max_bytes(scope), headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > max_bytes:
            return 413, _too_large(max_bytes)
        return None

    def _invalid_call(self, body: bytes) -> str | None:
        """Return why a call is rejected: it is not the page's own, or names a URL or a file that was not uploaded."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return "not a question: the body is not valid JSON"
        index = call.get("fn_index") if isinstance(call, dict) else None
        if not isinstance(index, int) or index not in self.calls:
            return "not a question: fn_index is not a call of the page"
        for file in _file_objects(call):
            path = file.get("path")
            if not isinstance(path, str) or "\0" in path or not Path(path).resolve().is_relative_to(self.upload_dir):
                return "images must be uploaded; the server does not read its own files or fetch URLs"
        return None


class _LimitedRequest:
    """Request and response of one connection, where a body over the limit is rejected.

    Attributes:
        rejected: whether the guard has sent the response.
    """

    def __init__(self, receive: Callable, send: Callable, max_bytes: int):
        self._receive, self._send, self._max_bytes = receive, send, max_bytes
        self._num_bytes, self._response_started = 0, False
        self._buffered: list[dict] = []
        self.rejected = False

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._buffered)

    async def read_body(self) -> None:
        """Read the complete body and buffer it for `receive`."""
        more = True
        while more and not self.rejected:
            message = await self._next()
            self._buffered.append(message)
            more = message.get("more_body", False)

    async def receive(self) -> dict:
        return self._buffered.pop(0) if self._buffered else await self._next()

    async def _next(self) -> dict:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            if message.get("more_body", False):
                await _drain(self._receive)
            await self.reject(413, _too_large(self._max_bytes))
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: dict) -> None:
        if not self.rejected:
            self._response_started = True
            await self._send(message)

    async def reject(self, status: int, reason: str) -> None:
        if not (self._response_started or self.rejected):
            self.rejected = True
            await _send_error(self._send, status, reason)


def _file_objects(call: Any) -> Iterator[dict]:
    """Yield every object of a call, at any depth, that gradio could take for a file."""
    stack = [call]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if {"path", "url"} & value.keys():
                yield value
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _too_large(max_bytes: int) -> str:
    return f"too large: the maximum is {max_bytes / 1e6:g} MB"


def _add_headers(send: Callable) -> Callable:
    async def send_with_headers(message: dict) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = message | {"headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers


async def _drain(receive: Callable) -> None:
    """Read the rest of a request: closing a connection with unread bytes resets it, which loses the response."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body", False):
                pass


async def _send_error(send: Callable, status: int, reason: str) -> None:
    body = (json.dumps({"detail": reason}) + "\n").encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # the rest of a body that takes longer than the drain is not read
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
