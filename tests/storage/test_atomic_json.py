"""Atomic JSON files."""

import json

import pytest

from multitask_vl.storage.atomic import atomic_write_json


def test_atomic_write_json_rejects_nan_without_leftovers(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "s.json", [float("nan")])
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_json_preserves_lone_surrogates(tmp_path):
    atomic_write_json(tmp_path / "s.json", {"\ud83d": "é"})
    assert json.loads((tmp_path / "s.json").read_text()) == {"\ud83d": "é"}
