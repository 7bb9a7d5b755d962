"""Path options of tasks: files, folders and patterns below the data folder."""

from __future__ import annotations

import glob
from pathlib import Path


def resolve_path(path: str | Path, data_dir: Path) -> Path:
    """Resolve a path of the configuration; relative paths start at ``data_dir``."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else data_dir / path


def expand_path(path: Path, data_dir: Path) -> list[Path]:
    """Expand a path to files, sorted by name; see `Task.expand_paths`. Empty if there are none."""
    resolved = resolve_path(path, data_dir)
    if resolved.is_dir():
        return sorted(entry for entry in resolved.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if resolved.is_file():
        return [resolved]
    pattern = str(Path(path).expanduser())
    matches = glob.glob(pattern, root_dir=data_dir, recursive=True) if glob.has_magic(pattern) else []
    return sorted(data_dir / match for match in matches if (data_dir / match).is_file())


def path_problem(option: str, path: Path, data_dir: Path) -> str | None:
    """Problem of a path that expands to no file, or of a folder that contains folders; None if there is none.

    Args:
        option: dotted path of the option in the configuration, for the message.
    """
    resolved = resolve_path(path, data_dir)
    if resolved.is_dir() and (inner := [entry.name for entry in sorted(resolved.iterdir()) if entry.is_dir()]):
        return (
            f"{option}: the folder {resolved} contains folders (first: {inner[0]}), which are not searched; name the "
            f"files, or give a pattern such as {path}/*/*.json"
        )
    if expand_path(path, data_dir):
        return None
    reason = ""
    if resolved.is_dir() or glob.has_magic(str(path)):
        reason = " (empty folder)" if resolved.is_dir() else " (no such path, and no match as a pattern)"
    return (
        f"{option}: there is no file {resolved}{reason}; set it, or data_dir (now {data_dir}), to the downloaded data"
    )
