"""How does an artefact come from the Hugging Face hub and go there: a name becomes a folder, a folder a repository."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from multitask_vl.errors import InputError

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
"""Files of an artefact: settings, tensors, tokenizer and card. Nothing else is fetched."""


def fetch(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of an artefact: ``name`` itself if it is one, else a copy of the repository of that name.

    Args:
        revision: branch, tag or commit of the repository.
        token: of the hub; None: the one of ``hf auth login``.

    Raises:
        InputError: no such folder or repository, or no network.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    name = str(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: there is no such folder; give the folder adapter/ of a run, or a hub name")
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=PATTERNS))
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(
            f"{name}: there is no such folder, and the hub does not give it: {_first_line(error)}. "
            "Give a local folder or, with a network, a hub name"
        ) from error


def push(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Adapter of multitask-vl",
) -> str:
    """Make the repository if need be and upload the files of an artefact in one commit; returns its address.

    Args:
        repo_id: ``owner/name``.
        private: whether a repository that is made is; None: as the owner's account has it.
        token: of the hub; None: the one of ``hf auth login``.

    Raises:
        InputError: no network, no right to write there, or no name that the hub takes.
    """
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, allow_patterns=PATTERNS)
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(
            f"cannot push to {repo_id}: {_first_line(error)}. It takes a network and a token (`hf auth login`)"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
