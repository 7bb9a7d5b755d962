"""Fixtures of the extraction tests."""

import pytest

from tests.feature_extraction.sharded_store import write_shards


@pytest.fixture
def shards(tmp_path):
    """Common name of three shards in ``tmp_path``."""
    return write_shards(tmp_path)
