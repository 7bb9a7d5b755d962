"""Sweep files over the quickstart, and a program in place of training."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests import tiny_run

SWEEPS = sorted((tiny_run.ROOT / "configs" / "sweeps").glob("*.yaml"))
QUICKSTART = tiny_run.ROOT / "configs" / "examples" / "quickstart.yaml"
FAKE_TRAINING = """
import json, os, pathlib, signal, sys, time
overrides = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
folder = pathlib.Path(overrides["run_dir"])
folder.mkdir(parents=True, exist_ok=True)
def save(*_):
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(folder / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
with (folder / "started").open("a") as file:
    file.write("x")
time.sleep(float(SLEEP))
lr = float(overrides.get("training.lr", 0))
if overrides.get("routing.function") == FAILS:
    print("error: some error")
    sys.exit(2)
score = {"average": 50 - abs(lr - 3e-4)}
(folder / "scores.json").write_text(json.dumps({"splits": {"val": score}}))
"""


def write_grid(folder: Path, **changes) -> Path:
    """A sweep file of 2 x 2 runs over the quickstart; ``changes`` replace its sections."""
    values = {
        "base": str(QUICKSTART),
        "out": str(folder / "out"),
        "common": {"training.max_steps": 7},
        "grid": {"routing": {"none": {"routing.function": "none"}, "mul": {"routing.function": "mul"}}, "seed": [1, 2]},
        **changes,
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False))
    return path


def fake_launcher(folder: Path, sleep: float = 0.0, fails: str | None = None) -> list[str]:
    """A launcher that runs a program in place of training; it scores best at a learning rate of 3e-4.

    Args:
        sleep: seconds that a run takes. SIGTERM ends it with exit code 75.
        fails: routing function whose runs fail.
    """
    path = folder / "fake_training.py"
    path.write_text(f"SLEEP, FAILS = {sleep}, {fails!r}\n{FAKE_TRAINING}")
    return [sys.executable, str(path)]
