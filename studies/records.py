"""Helpers for recorded runs: JSON with one line per run, and the commit that ran."""

from __future__ import annotations

import json
from collections.abc import Mapping


def object_lines(members: Mapping[str, str]) -> str:
    """A JSON object with one line per member; the values are JSON text."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "\n}"


def commit_label(record: Mapping) -> str:
    """Short commit hash from a run's record.json, with a star if the working tree had changes."""
    code = record.get("code", {})
    return f"{(code.get('commit') or 'unknown')[:7]}{'*' if code.get('dirty') else ''}"
