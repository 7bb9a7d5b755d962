"""What does the demo's page look like, and what serves it: gradio behind a gate, without anything from elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from multitask_vl.demo.answers import Answers
from multitask_vl.demo.request_guard import Gate
from multitask_vl.errors import InputError

TITLE = "multitask-vl: ask a saved adapter"
SPARE_BYTES = 100_000
"""Of an upload's body, beside the file."""
KEPT_S = 3600
"""How long an upload stays on disk; all go when the server ends."""
FONTS = ["system-ui", "sans-serif"]


def application(answers: Answers, folder: Path, hosts: list[str] | None = None) -> Callable:
    """The ASGI application of the page.

    Args:
        answers: asked by the page.
        folder: an empty one, for uploads.
        hosts: names by which the server may be called; None: any.

    Raises:
        InputError: gradio is not installed.
    """
    # read where gradio is imported
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
        from fastapi import FastAPI
    except ImportError as error:
        raise InputError('the page needs gradio: pip install "multitask-vl[demo]" (here: -e ".[demo]")') from error
    before, os.environ["GRADIO_TEMP_DIR"] = os.environ.get("GRADIO_TEMP_DIR"), str(folder)
    try:
        blocks = _blocks(gradio, answers)
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
            # what goes wrong inside is told in the terminal, not to whoever asks
            show_error=False,
            max_file_size=int(answers.limits.megabytes * 1e6),
        )
    finally:
        del os.environ["GRADIO_TEMP_DIR"]
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before
    return Gate(app, hosts, folder, int(answers.limits.megabytes * 1e6) + SPARE_BYTES, blocks.fns)


def _blocks(gradio, answers: Answers):
    tasks, limits = answers.tasks, answers.limits
    first = next(iter(tasks))
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as blocks:
        gradio.Markdown(f"# Ask a saved adapter\n\n{_said_of(answers)}", elem_id="mvl-head")
        if answers.remarks:
            gradio.HTML(_banner(answers.remarks), elem_id="mvl-random")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                task = gradio.Dropdown(list(tasks), value=first, label="Task", filterable=False)
                most = max(wanted for wanted, _ in tasks.values())
                pictures, previews = [], []
                for number in range(most):
                    visible = number < tasks[first][0]
                    pictures.append(
                        gradio.File(
                            label=_label(number, tasks[first][0], limits.megabytes),
                            visible=visible,
                            file_count="single",
                            height=130,
                            elem_classes=["mvl-file"],
                        )
                    )
                    previews.append(gradio.HTML(visible=visible, padding=False))
                text = gradio.Textbox(
                    label="Question or statement",
                    max_length=limits.characters,
                    lines=2,
                    visible=tasks[first][1],
                    placeholder="what color is the circle?",
                )
                ask = gradio.Button("Ask", variant="primary")
            with gradio.Column(scale=2, min_width=300):
                answer = gradio.HTML("<p>Answers appear here.</p>", elem_id="mvl-answer", padding=False)
        for picture, preview in zip(pictures, previews, strict=True):
            picture.change(answers.preview, picture, preview, api_name=False, show_progress="hidden")
        task.change(
            lambda name: _shown(gradio, tasks[name], most, limits.megabytes),
            task,
            [*pictures, *previews, text],
            api_name=False,
        )
        asked = [task, text, *pictures]
        for event in (ask.click, text.submit):
            event(
                lambda task, text, *paths: answers(task, _of(tasks, task, paths), text), asked, answer, api_name=False
            )
    return blocks.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)


def _shown(gradio, wants: tuple[int, bool], most: int, megabytes: float) -> list:
    """What a task asks for is shown, the rest not."""
    wanted, reads_text = wants
    files_ = [gradio.update(visible=number < wanted, label=_label(number, wanted, megabytes)) for number in range(most)]
    previews = [gradio.update(visible=number < wanted) for number in range(most)]
    return [*files_, *previews, gradio.update(visible=reads_text)]


def _of(tasks: dict[str, tuple[int, bool]], task: str, paths: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The pictures that a task shows; one that is left of another task is hidden and not meant."""
    return paths[: tasks[task][0]] if task in tasks else paths


def _label(number: int, wanted: int, megabytes: float) -> str:
    which = "Picture" if wanted == 1 else f"Picture {number + 1} of {wanted}"
    return f"{which}: PNG, JPEG, ... of at most {megabytes:g} MB"


def _said_of(answers: Answers) -> str:
    names = list(answers.pipelines)
    limits = answers.limits
    whose = "one adapter" if len(names) == 1 else f"{len(names)} adapters side by side"
    return (
        f"Choose a task, a picture and a question; {whose} will answer, with where each looked. Pictures of at most "
        f"{limits.megabytes:g} megabytes and {limits.megapixels:g} megapixels; they are deleted within two hours."
    )


def _banner(remarks: list[str]) -> str:
    from multitask_vl.demo.answers import TEMPLATES

    return TEMPLATES.from_string(
        '<div class="mvl-banner" role="note">{% for one in remarks %}<p>{{ one }}</p>{% endfor %}</div>'
    ).render(remarks=remarks)


def serve(answers: Answers, host: str, port: int, hosts: list[str] | None) -> None:
    """Serve the page until the process is interrupted; uploads are gone then.

    Args:
        port: 0 for any that is free; the address is printed.
        hosts: as `application` takes them.

    Raises:
        InputError: gradio is not installed, or the address cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="multitask-vl-demo-", ignore_cleanup_errors=True) as folder:
        app = application(answers, Path(folder), hosts)
        import uvicorn

        with listening(host, port) as socket_:
            place, number = socket_.getsockname()[:2]
            shown = f"[{place}]" if ":" in place else place
            print(f"http://{shown}:{number}/  (ends with Ctrl-C)", flush=True)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=2))
            # it raises the signal that ended it once more, which must not keep the folder from being removed
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with contextlib.suppress(KeyboardInterrupt):
                server.run([socket_])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; InputError if the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: {error}. Another port, or 0 for any: --port 0") from error
