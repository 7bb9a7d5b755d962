"""The demo's page served in this process, and what a program says to it that is no browser."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MISSING = 'gradio is missing: pip install -e ".[demo]"'


class Server:
    """A running page.

    Args:
        base: its address.
        folder: where its uploads lie.
        answers: who is asked.
    """

    def __init__(self, base: str, folder: Path, answers):
        self.base, self.folder, self.answers = base, folder, answers
        # only where gradio is installed
        import httpx

        self.http = httpx.Client(base_url=base, timeout=60)
        self.config = self.http.get("/config").json()

    @property
    def question(self) -> int:
        """Number of the call that asks the adapters."""
        labels = [self._label(target[0]) for one in self.config["dependencies"] for target in one["targets"][:1]]
        return self.config["dependencies"][labels.index("Ask")]["id"]

    def _label(self, number: int) -> str | None:
        props = next(one for one in self.config["components"] if one["id"] == number)["props"]
        return props.get("label") or props.get("value")

    def upload(self, name: str, content: bytes) -> dict:
        """What the page sends for a picture after it was uploaded."""
        response = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        assert response.status_code == 200, response.text
        return {"path": response.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def join(self, task: str, text: str, *files: dict | None):
        """Ask; the response to it, and the name of the session."""
        session = uuid.uuid4().hex
        files = [*files, *[None] * (2 - len(files))]
        call = {"data": [task, text, *files], "fn_index": self.question, "session_hash": session}
        return self.http.post("/gradio_api/queue/join", json=call), session

    def ask(self, task: str, text: str, *files: dict | None) -> str:
        """HTML of the answer."""
        response, session = self.join(task, text, *files)
        assert response.status_code == 200, response.text
        return self.result(session)["data"][0]

    def result(self, session: str) -> dict[str, Any]:
        """What came out of the call of a session."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return message["output"]
        raise AssertionError("the stream ended without an answer")


@contextmanager
def serving(answers, folder: Path) -> Iterator[Server]:
    """The page on a free port of this machine; skips where gradio is missing."""
    pytest.importorskip("gradio", reason=MISSING)
    import uvicorn

    from multitask_vl.demo.page import application, listening

    with listening("127.0.0.1", 0) as socket:
        app = application(answers, folder, ["127.0.0.1"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        try:
            yield Server(f"http://127.0.0.1:{socket.getsockname()[1]}", folder, answers)
        finally:
            server.should_exit = True
            thread.join(30)
