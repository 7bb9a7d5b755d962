"""Where are the project's programs: launch/ and configs/ of a checkout, or inside a package that was installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
HOME = _PACKAGE if (_PACKAGE / "launch").is_dir() else _PACKAGE.parent
"""Where `launch/` and `configs/` lie: in the package where it was installed from a wheel, else beside it."""
