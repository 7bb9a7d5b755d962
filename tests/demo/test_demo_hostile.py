"""What does the demo do with those who mean it harm: files of the server, bombs, floods; it says no and goes on."""

from __future__ import annotations

import io
import json
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from multitask_vl.demo.answers import Answers
from multitask_vl.demo.request_guard import CALL_BYTES
from multitask_vl.demo.uploads import Limits
from multitask_vl.inference import Pipeline
from tests.demo.test_demo import write_adapter
from tests.demo_server import serving

QUESTION = "is the thing red ?"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    answers = Answers({"mine": Pipeline.from_pretrained(write_adapter(folder))}, Limits(megabytes=2, waiting=50))
    with serving(answers, tmp_path_factory.mktemp("uploads")) as server:
        yield server


@pytest.fixture(autouse=True)
def alive(server):
    """After each test an honest question still gets its answer."""
    yield
    assert "mvl-text" in server.ask("vqa", QUESTION, server.upload("a.png", png(64, 48)))


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../etc/cron.d/mine", "a")
    return buffer.getvalue()


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
UPLOADS = {
    "bomb.png": (lambda: png(10_000, 10_000, "1"), "10000 x 10000 = 100.0 megapixels; at most 40. Make it smaller"),
    "huge.png": (lambda: png(20_000, 20_000, "1"), "far too many pixels"),
    "zip.png": (zipped, "it is a zip archive; unpack it"),
    "drawing.svg": (lambda: SVG, "it is an SVG"),
    "drawing.png": (lambda: SVG, "it is an SVG"),
    "notes.txt": (lambda: b"hello " * 1000, "no picture of a kind that is known"),
    "half.png": (lambda: png(640, 480)[:900], "truncated"),
    "empty.png": (lambda: b"", "it is empty"),
    "noise.png": (lambda: bytes(range(256)) * 8, "no picture of a kind that is known"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_files_that_are_no_picture_to_take(server, name):
    make, why = UPLOADS[name]
    html = server.ask("vqa", QUESTION, server.upload(name, make()))
    assert f"{name}: not taken: " in html
    assert why in html
    assert str(server.folder) not in html


def test_a_name_that_is_a_path_or_markup(server):
    file = server.upload("../../../<img src=x onerror=alert(1)>.png", b"no picture")
    assert file["path"].startswith(str(server.folder))
    html = server.ask("vqa", QUESTION, file)
    assert "not taken" in html
    assert "<img" not in html


def test_more_than_the_limits(server):
    response = server.http.post("/gradio_api/upload", files={"files": ("a.png", b"\0" * 4_000_000)})
    assert (response.status_code, response.json()["detail"]) == (413, "too large: at most 2.1 megabytes")

    def pieces():
        # no length is said beforehand
        for _ in range(40):
            yield b"\0" * 100_000

    response = server.http.post("/gradio_api/upload", content=pieces(), headers={"content-type": "multipart/form-data"})
    assert response.status_code in (400, 413)
    response, _ = server.join("vqa", "what " * 2_000_000)
    assert (response.status_code, response.json()["detail"]) == (
        413,
        f"too large: at most {CALL_BYTES / 1e6} megabytes",
    )
    html = server.ask("vqa", "what " * 1_000, server.upload("a.png", png(64, 48)))
    assert "the question has 5,000 characters; at most 1,000" in html


def said(server, sent: int, length: int = 8_000_000) -> bytes:
    """What comes back to one who says a length, sends as much, and listens only then."""
    head = f"POST /gradio_api/upload HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n".encode()
    with socket.create_connection((server.http.base_url.host, server.http.base_url.port), timeout=30) as line:
        line.sendall(head + b"\0" * sent)
        return b"".join(iter(lambda: line.recv(65536), b""))


def test_who_sends_all_before_listening_is_told(server):
    assert said(server, 8_000_000).endswith(b'{"detail": "too large: at most 2.1 megabytes"}\n')


def test_who_never_sends_what_was_announced_is_told(server, monkeypatch):
    monkeypatch.setattr("multitask_vl.demo.request_guard.DRAIN_SECONDS", 0.2)
    assert said(server, 100_000).endswith(b'{"detail": "too large: at most 2.1 megabytes"}\n')


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
def test_no_file_of_the_server_is_given(server, path):
    import httpx

    # as it stands: a client of good manners would shorten it
    url = httpx.URL(server.base).copy_with(raw_path=path.encode())
    response = server.http.get(url)
    assert response.status_code == 404
    assert b"root:" not in response.content
    assert "no files" in response.json()["detail"]


def test_not_even_what_was_uploaded_is_given(server):
    file = server.upload("a.png", png(64, 48))
    assert server.http.get(f"/gradio_api/file={file['path']}").status_code == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "http://127.0.0.1/a.png", "", "a\0b", 3, None])
def test_a_question_names_no_file_but_uploads(server, path):
    response, _ = server.join("vqa", QUESTION, {"path": path, "meta": {"_type": "gradio.FileData"}})
    assert response.status_code == 400
    assert "a picture must be uploaded" in response.json()["detail"]


def test_a_question_names_no_address_beside_an_upload(server):
    file = server.upload("a.png", png(64, 48)) | {"url": "http://127.0.0.1:9/secret"}
    assert "mvl-text" in server.ask("vqa", QUESTION, file), "the address is not fetched, the upload is used"


def test_bodies_that_are_no_question(server):
    ours = {"fn_index": server.question, "session_hash": "a", "data": "x"}
    deep = json.dumps(ours).replace('"x"', "[" * 500 + "]" * 500).encode()
    for body in (b"", b"no json", b"[]", b"[" * 50_000, b"\xff\xfe", deep):
        response = server.http.post("/gradio_api/queue/join", content=body)
        assert response.status_code < 500, body[:10]
    for change in ({"fn_index": 10**6}, {"fn_index": [1]}, {"fn_index": None}, {"session_hash": None}, {"data": 3}):
        response = server.http.post("/gradio_api/queue/join", json=ours | change)
        assert 400 <= response.status_code < 500, change
    # a plain text where a file belongs ends that question, and says nothing of the inside
    response, session = server.join("vqa", QUESTION, "/etc/passwd")
    assert response.status_code == 200
    assert server.result(session) == {"error": None}


def test_other_names_and_methods_are_refused(server):
    response = server.http.get("/", headers={"host": "evil.example"})
    assert (response.status_code, "this server is called 127.0.0.1" in response.json()["detail"]) == (421, True)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert server.http.request(method, "/").status_code == 405
    headers = server.http.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_fifty_at_once_are_answered_in_their_turn(server):
    file = server.upload("a.png", png(64, 48))
    with ThreadPoolExecutor(50) as crowd:
        asked = [crowd.submit(server.ask, "vqa", f"is thing {i} red ?", file) for i in range(50)]
        assert all("mvl-text" in one.result(60) for one in asked)


def test_more_than_may_wait_are_told(server):
    file = server.upload("a.png", png(64, 48))
    # while one question is answered
    with server.answers.busy, ThreadPoolExecutor(8) as crowd:
        joined = list(crowd.map(lambda i: server.join("vqa", QUESTION, file), range(60)))
    server.result([session for response, session in joined if response.status_code == 200][-1])
    codes = [response.status_code for response, _ in joined]
    assert codes.count(200) in (50, 51)
    for response, _ in joined:
        if response.status_code != 200:
            assert response.status_code == 503
            assert "full" in response.json()["detail"].lower()
