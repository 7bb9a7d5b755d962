"""Tests of the demo's server against hostile requests: server files, decompression bombs, floods."""

from __future__ import annotations

import io
import json
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from multitask_vl.demo.answers import AnswerRenderer
from multitask_vl.demo.request_guard import MAX_CALL_BYTES
from multitask_vl.demo.uploads import Limits
from multitask_vl.inference import Pipeline
from tests.demo_server import serving, write_adapter

QUESTION = "is the thing red ?"
QUEUE = 12
TOO_LARGE = "too large: the maximum is 2.1 MB"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all tests; after the last one it still answers."""
    pipeline = Pipeline.from_pretrained(write_adapter(tmp_path_factory.mktemp("hostile")))
    renderer = AnswerRenderer({"mine": pipeline}, Limits(megabytes=2, max_queue=QUEUE))
    with serving(renderer, tmp_path_factory.mktemp("uploads")) as client:
        yield client
        assert_answers(client)


@pytest.fixture
def still_answers(server):
    """After the test the server answers an ordinary question."""
    yield
    assert_answers(server)


def assert_answers(server) -> None:
    assert "mvl-text" in server.ask("vqa", QUESTION, server.upload("a.png", png(64, 48)))


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../etc/cron.d/mine", "a")
    return buffer.getvalue()


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
UPLOADS = {
    "bomb.png": (lambda: png(10_000, 10_000, "1"), "10000 x 10000 = 100.0 megapixels; the maximum is 40. Reduce its"),
    "huge.png": (lambda: png(14_000, 14_000, "1"), "far too many pixels"),
    "zip.png": (zip_file, "it is a zip archive; unpack it"),
    "drawing.svg": (lambda: SVG, "it is an SVG"),
    "drawing.png": (lambda: SVG, "it is an SVG"),
    "notes.txt": (lambda: b"hello " * 1000, "not a supported image file"),
    "half.png": (lambda: png(640, 480)[:900], "truncated"),
    "empty.png": (lambda: b"", "it is empty"),
    "noise.png": (lambda: bytes(range(256)) * 8, "not a supported image file"),
}


@pytest.mark.usefixtures("still_answers")
@pytest.mark.parametrize("name", UPLOADS)
def test_upload_rejects_non_images(server, name):
    make, reason = UPLOADS[name]
    html = server.ask("vqa", QUESTION, server.upload(name, make()))
    assert f"{name}: rejected: " in html
    assert reason in html
    assert str(server.upload_dir) not in html


def test_upload_name_with_path_or_markup_is_harmless(server):
    file = server.upload("../../../<img src=x onerror=alert(1)>.png", b"not an image")
    assert file["path"].startswith(str(server.upload_dir))
    html = server.ask("vqa", QUESTION, file)
    assert "rejected" in html
    assert "<img" not in html


@pytest.mark.usefixtures("still_answers")
def test_guard_rejects_bodies_over_the_limits(server):
    response = server.http.post("/gradio_api/upload", files={"files": ("a.png", b"\0" * 4_000_000)})
    assert (response.status_code, response.json()["detail"]) == (413, TOO_LARGE)

    def chunks():
        # chunked encoding has no content-length
        for _ in range(40):
            yield b"\0" * 100_000

    response = server.http.post("/gradio_api/upload", content=chunks(), headers={"content-type": "multipart/form-data"})
    assert response.status_code in (400, 413)
    response, _ = server.join("vqa", "what " * 2_000_000)
    detail = f"too large: the maximum is {MAX_CALL_BYTES / 1e6} MB"
    assert (response.status_code, response.json()["detail"]) == (413, detail)
    html = server.ask("vqa", "what " * 1_000, server.upload("a.png", png(64, 48)))
    assert "the question has 5,000 characters; the maximum is 1,000" in html


def raw_upload(server, sent: int, length: int = 8_000_000) -> bytes:
    """Announce ``length`` bytes, send ``sent`` of them, and only then read the response."""
    head = f"POST /gradio_api/upload HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n".encode()
    with socket.create_connection((server.http.base_url.host, server.http.base_url.port), timeout=30) as connection:
        connection.sendall(head + b"\0" * sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_rejection_reaches_client_that_sends_first(server):
    assert raw_upload(server, 8_000_000).endswith(f'{{"detail": "{TOO_LARGE}"}}\n'.encode())


def test_rejection_reaches_client_that_stops_sending(server, monkeypatch):
    monkeypatch.setattr("multitask_vl.demo.request_guard.DRAIN_SECONDS", 0.2)
    assert raw_upload(server, 100_000).endswith(f'{{"detail": "{TOO_LARGE}"}}\n'.encode())


PATHS = (
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file=http://127.0.0.1/",
    "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd",
    "/static/../../../../../../../etc/passwd",
    "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "/static/%2e%2e/%2e%2e/routes.py",
    "/static//etc/passwd",
    "/assets/%252e%252e/routes.py",
    "/svelte/../routes.py",
    "/gradio_api/custom_component/1/client/component/../../../routes.py",
    "/gradio_api/proxy=http://127.0.0.1/",
    "/gradio_api/stream/a/b/1/playlist-file",
    "/gradio_api/runs",
    "/gradio_api/vibe-code/",
    "/monitoring",
    "/docs",
    "/openapi.json",
)


@pytest.mark.parametrize("path", PATHS)
def test_server_files_are_not_served(server, path):
    import httpx

    # the raw path, because httpx would normalize it
    url = httpx.URL(server.base).copy_with(raw_path=path.encode())
    response = server.http.get(url)
    assert response.status_code == 404
    assert b"root:" not in response.content
    assert "no files" in response.json()["detail"]


def test_uploads_are_not_served(server):
    file = server.upload("a.png", png(64, 48))
    assert server.http.get(f"/gradio_api/file={file['path']}").status_code == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "http://127.0.0.1/a.png", "", "a\0b", 3, None])
def test_question_may_name_uploads_only(server, path):
    response, _ = server.join("vqa", QUESTION, {"path": path, "meta": {"_type": "gradio.FileData"}})
    assert response.status_code == 400
    assert "images must be uploaded" in response.json()["detail"]


def test_url_next_to_an_upload_is_not_fetched(server):
    file = server.upload("a.png", png(64, 48)) | {"url": "http://127.0.0.1:9/secret"}
    assert "mvl-text" in server.ask("vqa", QUESTION, file), "the upload is used"


@pytest.mark.usefixtures("still_answers")
def test_malformed_calls_are_rejected(server):
    call = {"fn_index": server.ask_index, "session_hash": "a", "data": "x"}
    deep = json.dumps(call).replace('"x"', "[" * 500 + "]" * 500).encode()
    for body in (b"", b"not json", b"[]", b"[" * 50_000, b"\xff\xfe", deep):
        response = server.http.post("/gradio_api/queue/join", content=body)
        assert response.status_code < 500, body[:10]
    for change in ({"fn_index": 10**6}, {"fn_index": [1]}, {"fn_index": None}, {"session_hash": None}, {"data": 3}):
        response = server.http.post("/gradio_api/queue/join", json=call | change)
        assert 400 <= response.status_code < 500, change
    # text in place of a file fails without revealing internals
    response, session = server.join("vqa", QUESTION, "/etc/passwd")
    assert response.status_code == 200
    assert server.result(session) == {"error": None}


def test_guard_rejects_other_hosts_and_methods(server):
    response = server.http.get("/", headers={"host": "evil.example"})
    assert (response.status_code, "this server is 127.0.0.1" in response.json()["detail"]) == (421, True)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert server.http.request(method, "/").status_code == 405
    headers = server.http.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_concurrent_questions_are_all_answered(server):
    file = server.upload("a.png", png(64, 48))
    with ThreadPoolExecutor(QUEUE) as pool:
        answers = [pool.submit(server.ask, "vqa", f"is thing {i} red ?", file) for i in range(QUEUE)]
        assert all("mvl-text" in answer.result(60) for answer in answers)


@pytest.mark.usefixtures("still_answers")
def test_full_queue_rejects_further_questions(server):
    file = server.upload("a.png", png(64, 48))
    # no question is finished while the lock is held
    with server.renderer.lock, ThreadPoolExecutor(8) as pool:
        joined = list(pool.map(lambda i: server.join("vqa", QUESTION, file), range(QUEUE + 5)))
    server.result([session for response, session in joined if response.status_code == 200][-1])
    codes = [response.status_code for response, _ in joined]
    assert codes.count(200) in (QUEUE, QUEUE + 1)
    for response, _ in joined:
        if response.status_code != 200:
            assert response.status_code == 503
            assert "full" in response.json()["detail"].lower()
