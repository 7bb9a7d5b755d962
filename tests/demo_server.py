"""The demo page served by this process, and a client that is not a browser."""

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
from safetensors.torch import save_file

from multitask_vl.config import load_config
from multitask_vl.methods.artifact.adapter_io import save_adapter
from tests import tiny_run
from tests.drawn_images import DIM, SIDE, TINY, random_image, tiny_weights
from tests.tiny_artifacts import build_from_config
from tests.tiny_models import perturb

MISSING = 'gradio is missing: pip install -e ".[demo]"'


def write_adapter(folder: Path, **sections) -> Path:
    """Write an adapter, its vision encoder and tokenizer, and two images; return the folder of the adapter."""
    tiny_run.write_dataset(folder)
    (folder / "tiny.json").write_text(json.dumps(TINY))
    save_file(tiny_weights(), folder / "tiny.safetensors")
    vision = {"model": f"{folder}/tiny.json", "pretrained": f"{folder}/tiny.safetensors", "image_size": SIDE}
    backbone = {"config": tiny_run.base_config(folder)["backbone"]["config"] | {"init_std": 0.5}}
    sections = {"vision": vision, "visual": {"feature_dim": DIM, "pool": None}, "backbone": backbone} | sections
    config = load_config(tiny_run.write_config(folder, **sections))
    save_adapter(perturb(build_from_config(config)), folder / "run/adapter", config)
    for name in ("left", "right"):
        random_image(len(name)).save(folder / f"{name}.png")
    return folder / "run/adapter"


class DemoClient:
    """HTTP client of a running page.

    Args:
        base: URL of the page.
        upload_dir: folder of its uploads.
        renderer: the page's `AnswerRenderer`.
    """

    def __init__(self, base: str, upload_dir: Path, renderer):
        self.base, self.upload_dir, self.renderer = base, upload_dir, renderer
        # installed together with gradio
        import httpx

        self.http = httpx.Client(base_url=base, timeout=60)
        self.config = self.http.get("/config").json()

    @property
    def ask_index(self) -> int:
        """``fn_index`` of the call that asks the adapters."""
        labels = [self._label(call["targets"][0][0]) for call in self.config["dependencies"]]
        return self.config["dependencies"][labels.index("Ask")]["id"]

    def _label(self, component_id: int) -> str | None:
        props = next(item for item in self.config["components"] if item["id"] == component_id)["props"]
        return props.get("label") or props.get("value")

    def upload(self, name: str, content: bytes) -> dict:
        """Upload a file and return what the page would send for it."""
        response = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        assert response.status_code == 200, response.text
        return {"path": response.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def join(self, task: str, text: str, *files: dict | None):
        """Queue a question; return the response and the name of its session."""
        session = uuid.uuid4().hex
        files = [*files, *[None] * (2 - len(files))]
        call = {"data": [task, text, *files], "fn_index": self.ask_index, "session_hash": session}
        return self.http.post("/gradio_api/queue/join", json=call), session

    def ask(self, task: str, text: str, *files: dict | None) -> str:
        """Ask and return the HTML of the answer."""
        response, session = self.join(task, text, *files)
        assert response.status_code == 200, response.text
        return self.result(session)["data"][0]

    def result(self, session: str) -> dict[str, Any]:
        """Wait for the result of a session's question."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as response:
            for line in response.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return message["output"]
        raise AssertionError("the stream ended without an answer")


@contextmanager
def serving(renderer, upload_dir: Path) -> Iterator[DemoClient]:
    """Serve the page on a free port of this machine; skip the test if gradio is missing."""
    pytest.importorskip("gradio", reason=MISSING)
    import uvicorn

    from multitask_vl.demo.page import create_app, listen

    with listen("127.0.0.1", 0) as socket:
        app = create_app(renderer, upload_dir, ["127.0.0.1"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        try:
            yield DemoClient(f"http://127.0.0.1:{socket.getsockname()[1]}", upload_dir, renderer)
        finally:
            server.should_exit = True
            thread.join(30)
