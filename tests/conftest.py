"""Shared fixtures: the reference material next to the project and a browser, where they exist."""

from pathlib import Path

import pytest

from multitask_vl.logging import configure_logging
from tests.chromium import browser as browser

configure_logging()

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data and recorded numbers next to the project."""
    if not SHARED.is_dir():
        pytest.skip("the reference material (../shared) is not next to the project")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no worker starts one last; order within a file stays."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
