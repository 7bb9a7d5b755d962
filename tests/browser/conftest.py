"""Fixtures shared with the report tests."""

from tests.reports.conftest import hostile_report as hostile_report
