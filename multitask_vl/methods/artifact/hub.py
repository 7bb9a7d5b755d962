"""Download artifacts from the Hugging Face hub, and push folders to it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from multitask_vl.config import locate
from multitask_vl.errors import InputError

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
"""Files of an artifact: settings, tensors, tokenizer and card. No other file is downloaded or uploaded."""


def resolve_artifact(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Return a local folder: ``name`` itself if it is one, a bundled adapter, or a download from the hub.

    Args:
        name: local folder, ``bundled:quickstart`` or ``owner/name``.
        revision: branch, tag or commit of the repository.
        token: hub token; None: the one of ``hf auth login``.

    Raises:
        InputError: no such folder or repository, or no network.
    """
    path = Path(locate(str(name))).expanduser()
    if path.is_dir():
        return path
    name = str(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: no such folder; pass the folder adapter/ of a run, or a hub name")
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=PATTERNS))
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(
            f"{name}: no such folder, and it cannot be downloaded from the hub: {_first_line(error)}. "
            "Pass a local folder or, with network access, a hub name"
        ) from error


def push_folder(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Adapter of multitask-vl",
) -> str:
    """Create the repository if needed and upload the files of an artifact in one commit.

    Args:
        folder: folder of the artifact.
        repo_id: ``owner/name``.
        private: whether a new repository is private; None: the default of the owner's account.
        token: hub token; None: the one of ``hf auth login``.
        message: commit message.

    Returns:
        URL of the repository.

    Raises:
        InputError: no network, no write access, or an invalid name.
    """
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, allow_patterns=PATTERNS)
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(
            f"cannot push to {repo_id}: {_first_line(error)}. This needs network access and a token (`hf auth login`)"
        ) from error
    return str(url)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
