"""Is T5 what it should be where it is not like BART?"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.golden.__main__ import run
from tests.golden.fixture import read
from tests.golden.names import methods_of

GOLDEN = Path(__file__).parent / "golden"


def test_adapters_of_each_task_are_understood_on_t5(tmp_path):
    """What the tasks have in common stored once a task, with noise for tasks that do not run: no output changes."""
    fixture = read(GOLDEN / "t5_single_adapter.safetensors")
    first, other = "vqa", "caption"
    own = {alias: name for alias, name in fixture.aliases.items() if "_adapter." in alias}
    tensors = {name: value for name, value in fixture.tensors.items() if not name.startswith(f"grad/{other}/")}
    tensors |= {f"weight/{alias}": fixture.weights[name] + (other not in alias) for alias, name in own.items()}
    norms = dict(zip(fixture.meta["trainable"], fixture.tensors[f"grad_norm/{other}"].tolist(), strict=True))
    moved = {name: -1.0 if f".{first}." in name else norm for name, norm in norms.items()}
    moved |= {alias: norms[name] if f".{other}." in alias else -1.0 for alias, name in own.items()}
    tensors[f"grad_norm/{other}"] = torch.tensor(list(moved.values()))
    tensors[f"grad_norm/{first}"] = torch.cat([fixture.tensors[f"grad_norm/{first}"], -torch.ones(len(own))])
    aliases = {alias: name for alias, name in fixture.aliases.items() if alias not in own}
    path = tmp_path / "per_task.safetensors"
    save_file(tensors, path, {"json": json.dumps(fixture.meta | {"aliases": aliases, "trainable": list(moved)})})
    assert methods_of(read(path))[0].sharing == "per_task"
    report = run(path)
    assert report.failures == []
    assert report.compared > 2 * len(moved)
