"""The demo page and its server: gradio behind a request guard, without resources from other hosts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from multitask_vl.demo.answers import TEMPLATE_ENV, AnswerRenderer, TaskInputs
from multitask_vl.demo.request_guard import RequestGuard
from multitask_vl.errors import InputError

TITLE = "multitask-vl: ask a saved adapter"
MULTIPART_OVERHEAD_BYTES = 100_000
"""Maximum size of an upload's request body in addition to the file."""
UPLOAD_LIFETIME_S = 3600
"""How long an upload stays on disk; all are deleted when the server ends."""
FONTS = ["system-ui", "sans-serif"]
WARNING_BANNER = TEMPLATE_ENV.from_string(
    '<div class="mvl-banner" role="note">{% for warning in warnings %}<p>{{ warning }}</p>{% endfor %}</div>'
)


def create_app(renderer: AnswerRenderer, upload_dir: Path, hosts: list[str] | None = None) -> Callable:
    """Create the ASGI application of the page.

    Args:
        renderer: answers the questions.
        upload_dir: an empty folder for uploads.
        hosts: accepted values of the Host header; None: any.

    Raises:
        InputError: gradio is not installed.
    """
    # gradio reads them at import
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
        from fastapi import FastAPI
    except ImportError as error:
        raise InputError(
            'the demo needs gradio: pip install "multitask-vl[demo]" (from a checkout: pip install -e ".[demo]")'
        ) from error
    max_file_size = int(renderer.limits.megabytes * 1e6)
    with _environment("GRADIO_TEMP_DIR", str(upload_dir)):
        blocks = _build_blocks(gradio, renderer)
        app = gradio.mount_gradio_app(
            FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
            blocks,
            path="/",
            theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
            css=files("multitask_vl.demo").joinpath("page.css").read_text(encoding="utf-8"),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            # internal errors are shown in the terminal, not to clients
            show_error=False,
            max_file_size=max_file_size,
        )
    return RequestGuard(app, hosts, upload_dir, max_file_size + MULTIPART_OVERHEAD_BYTES, blocks.fns)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the context."""
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if previous is not None:
            os.environ[name] = previous


def _build_blocks(gradio: ModuleType, renderer: AnswerRenderer) -> Any:
    tasks, limits = renderer.tasks, renderer.limits
    initial = next(iter(tasks))
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(UPLOAD_LIFETIME_S,) * 2) as blocks:
        gradio.Markdown(f"# Ask a saved adapter\n\n{_introduction(renderer)}", elem_id="mvl-head")
        if renderer.warnings:
            gradio.HTML(WARNING_BANNER.render(warnings=renderer.warnings), elem_id="mvl-warnings")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                task = gradio.Dropdown(list(tasks), value=initial, label="Task", filterable=False)
                uploads, previews = _upload_slots(gradio, tasks, initial, limits.megabytes)
                text = gradio.Textbox(
                    label="Question or statement",
                    max_length=limits.characters,
                    lines=2,
                    visible=tasks[initial].has_text,
                    placeholder="what color is the circle?",
                )
                ask = gradio.Button("Ask", variant="primary")
            with gradio.Column(scale=2, min_width=300):
                answer = gradio.HTML("<p>Answers appear here.</p>", elem_id="mvl-answer", padding=False)
        for upload, preview in zip(uploads, previews, strict=True):
            upload.change(renderer.render_preview, upload, preview, api_name=False, show_progress="hidden")
        task.change(
            lambda name: _input_updates(gradio, tasks[name], len(uploads), limits.megabytes),
            task,
            [*uploads, *previews, text],
            api_name=False,
        )
        for event in (ask.click, text.submit):
            event(
                lambda task, text, *paths: renderer.render(task, _visible_uploads(tasks, task, paths), text),
                [task, text, *uploads],
                answer,
                api_name=False,
            )
    return blocks.queue(max_size=limits.max_queue, default_concurrency_limit=1, api_open=False)


def _upload_slots(
    gradio: ModuleType, tasks: Mapping[str, TaskInputs], initial: str, megabytes: float
) -> tuple[list, list]:
    """Upload fields and previews for the task with the most images; those that ``initial`` does not take are hidden."""
    num_visible, uploads, previews = tasks[initial].num_images, [], []
    for index in range(max(inputs.num_images for inputs in tasks.values())):
        visible = index < num_visible
        label = _upload_label(index, num_visible, megabytes)
        uploads.append(
            gradio.File(label=label, visible=visible, file_count="single", height=130, elem_classes=["mvl-file"])
        )
        previews.append(gradio.HTML(visible=visible, padding=False))
    return uploads, previews


def _input_updates(gradio: ModuleType, inputs: TaskInputs, num_slots: int, megabytes: float) -> list:
    """Show the inputs that a task takes and hide the others."""
    visible = [index < inputs.num_images for index in range(num_slots)]
    labels = [_upload_label(index, inputs.num_images, megabytes) for index in range(num_slots)]
    return [
        *(gradio.update(visible=shown, label=label) for shown, label in zip(visible, labels, strict=True)),
        *(gradio.update(visible=shown) for shown in visible),
        gradio.update(visible=inputs.has_text),
    ]


def _visible_uploads(tasks: Mapping[str, TaskInputs], task: str, paths: Sequence[str | None]) -> Sequence[str | None]:
    """Uploads that the task's page shows; an upload for another task stays in its hidden field."""
    return paths[: tasks[task].num_images] if task in tasks else paths


def _upload_label(index: int, num_images: int, megabytes: float) -> str:
    name = "Image" if num_images == 1 else f"Image {index + 1} of {num_images}"
    return f"{name} (PNG, JPEG, ..., at most {megabytes:g} MB)"


def _introduction(renderer: AnswerRenderer) -> str:
    count, limits = len(renderer.pipelines), renderer.limits
    answers = "The adapter answers" if count == 1 else f"{count} adapters answer side by side, each"
    return (
        f"Choose a task, upload an image and ask a question. {answers} with a map of its attention. Images may have up "
        f"to {limits.megabytes:g} MB and {limits.megapixels:g} megapixels; they are deleted within two hours."
    )


def serve(renderer: AnswerRenderer, host: str, port: int, hosts: list[str] | None) -> None:
    """Serve the page until the process is interrupted, then delete the uploads.

    Args:
        renderer: answers the questions.
        host: address to listen on.
        port: port; 0: any free one. The address is printed.
        hosts: accepted values of the Host header; None: any.

    Raises:
        InputError: gradio is not installed, or the address is not available.
    """
    with tempfile.TemporaryDirectory(prefix="multitask-vl-demo-", ignore_cleanup_errors=True) as upload_dir:
        app = create_app(renderer, Path(upload_dir), hosts)
        import uvicorn

        with listen(host, port) as server_socket:
            address, number = server_socket.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            print(f"http://{shown}:{number}/  (stop with Ctrl-C)", flush=True)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=2))
            # uvicorn raises the signal again after shutdown; as an exception it does not prevent the cleanup
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with contextlib.suppress(KeyboardInterrupt):
                server.run([server_socket])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise InputError if the address is not available."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {host} --port {port}: {error}. Choose another port; --port 0 is any free one"
        ) from error
